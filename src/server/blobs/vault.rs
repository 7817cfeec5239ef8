//! What is asked of the database in which several servers keep their blobs.
//!
//! An upload brings its bytes in pieces under a number of its own, then its row, which names the blob. Only what has
//! a row is there for others; pieces without one belong to an upload that broke off. A number is drawn for each
//! upload and never used again: what a late statement does to one upload, it does to no other of the same blob.

use crate::wire::files::BlobId;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::SystemTime;

/// How many bytes a piece has; the last one of a blob may have fewer.
pub const VAULT_PIECE_BYTES: u64 = 1 << 20;

/// The number of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UploadNumber(pub u64);

impl UploadNumber {
    /// A new one. It has to be new, not secret.
    pub fn fresh() -> Self {
        UploadNumber(RandomState::new().build_hasher().finish())
    }
}

/// The row of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The blob.
    pub id: BlobId,
    /// Its length in bytes.
    pub bytes: u64,
    /// The name that it was uploaded with last; empty if it has none.
    pub name: String,
    /// When it came last, to the millisecond.
    pub since: SystemTime,
    /// The upload that has its pieces.
    pub upload: UploadNumber,
}

/// What is in the database.
#[derive(Debug, Default)]
pub struct Contents {
    /// The blobs all of whose pieces are there.
    pub blobs: Vec<Entry>,
    /// Blobs of which pieces are missing.
    pub broken: Vec<Entry>,
    /// Uploads without a blob.
    pub leftovers: Vec<UploadNumber>,
}

/// What has become of the row of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// The blob is there, with the pieces of this upload: an earlier one may have brought it.
    By(UploadNumber),
    /// Pieces are missing. Nothing was changed.
    Incomplete,
}

/// A connection to the database. Each change is one statement that does nothing unless this server leads; after an
/// error it may have been done, and may still be done later. Each can be repeated. Errors are for people.
pub trait Vault: Send {
    /// What is there. Whoever led before changes nothing more of it once this server has the lead.
    fn list(&mut self) -> Result<Contents, String>;

    /// Saves a piece of an upload, in the place of the one with this number.
    fn put(&mut self, upload: UploadNumber, n: u64, piece: &[u8]) -> Result<(), String>;

    /// Names the blob that an upload has brought.
    fn name(&mut self, entry: &Entry) -> Result<Named, String>;

    /// Removes the row of a blob, if it has the pieces of this upload.
    fn remove(&mut self, id: BlobId, upload: UploadNumber) -> Result<(), String>;

    /// Removes the pieces of an upload, unless a blob has them.
    fn discard(&mut self, upload: UploadNumber) -> Result<(), String>;

    /// A piece of an upload; `None` if it is not there.
    fn piece(&mut self, upload: UploadNumber, n: u64) -> Result<Option<Vec<u8>>, String>;
}

/// Opens connections; each connects with its first call.
pub type OpenVault = dyn Fn() -> Box<dyn Vault> + Send + Sync;

/// The database of the blobs, and what was in it when this server took the lead.
pub type FoundVault = (Box<OpenVault>, Contents);
