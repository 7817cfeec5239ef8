//! Files on their way from people to machines, and back: blobs, by their SHA-256.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `range` | what `Range`, `Content-Range` and `offset` mean |
//! | `index` | which blobs there are, and what has to go when there is no room |
//! | `place` | where their bytes lie |
//! | `upload` | a blob that is coming, whole or piece by piece |
//! | `vault` | what is asked of the database in which several servers keep their blobs |
//! | `saving` | blobs on their way into it, and out of it |
//! | `fetching` | blobs that are there and not here |
//!
//! Of several servers each has a copy of the blobs in its own place; what is true is what the database has. A blob is
//! acknowledged when it is there. The index of a new leader is that of the database; bytes that are missing here are
//! fetched.
//!
//! Who needs a blob is asked of the tasks ([`Needs`]), never counted here. Locks, in this order: what has come of a
//! part, the disk, the index, the tasks. A worker of the edge takes the index's only, which is held for microseconds.

mod fetching;
mod index;
mod place;
pub mod range;
mod saving;
mod upload;
pub mod vault;

pub use self::index::{Need, Needs};
pub use self::upload::Upload;

use self::index::{Blob, Full, Index};
use self::place::{Place, Stored};
use self::range::Piece;
use self::saving::Sharing;
use self::upload::Part;
use self::vault::FoundVault;
use crate::server::http::Refused;
use crate::wire::files::BlobId;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Transfers at once, in both directions; others are told to come back. Each takes half a megabyte at most.
pub const MAX_TRANSFERS: usize = 16;
/// The largest piece of an upload, in bytes: what is lost when its connection breaks is sent again.
pub const MAX_PIECE_BYTES: u64 = 8 << 20;
/// What a file is read from of which only the length is asked for.
const NOTHING: &str = "/dev/null";
/// What is said of a file whose last piece has come.
const IS_BEING_SAVED: &str = "the file is being saved in the database; come back in a second";
/// Slots begin at pages of the kernel, at large ones, too, so that none belongs to two of them; in bytes.
const PAGE_BYTES: u64 = 2 << 20;

/// The limits, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct BlobLimits {
    /// Of one.
    pub one: u64,
    /// Of all.
    pub all: u64,
}

/// The blobs.
pub struct Blobs {
    place: Result<Place, String>,
    index: Mutex<Index>,
    /// Held while a name in the folder changes together with the index.
    disk: Mutex<()>,
    needs: Box<Needs>,
    limits: BlobLimits,
    transfers: AtomicUsize,
    /// Of several servers.
    sharing: Option<Arc<Sharing>>,
    /// What was done.
    pub counters: Counters,
}

/// What was done, for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of uploads that came.
    pub received: AtomicU64,
    /// Blobs that were kept.
    pub uploads: AtomicU64,
    /// Transfers that were told to come back.
    pub refused: AtomicU64,
    /// Blobs that were removed to make room.
    pub evicted: AtomicU64,
}

/// What became of an upload.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// The blob.
    pub id: BlobId,
    /// Its length in bytes.
    pub bytes: u64,
    /// How much of it is there.
    pub have: u64,
}

/// How a piece begins.
pub enum Begun {
    /// It is to come.
    Piece(Arc<Upload>),
    /// The blob is there already.
    Whole(Done),
    /// It does not begin where the last one ended: so much is there.
    Elsewhere(u64),
}

/// Why a transfer does not begin.
pub enum Refusal {
    /// There are as many as there may be.
    Busy,
    /// It has to wait for this, and may come back.
    Later(String),
    /// Another reason.
    Other(Refused),
}

/// The right to transfer, until it is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Blobs>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.transfers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Blobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// A blob as it is listed.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Which one.
    pub id: BlobId,
    /// Its length in bytes.
    pub bytes: u64,
    /// How much of it has come, if not all.
    pub have: Option<u64>,
    /// The name that it was uploaded with last.
    pub name: Arc<str>,
    /// When the last of it came.
    pub since: SystemTime,
}

/// A blob to be read.
pub struct Reading {
    /// The file that has it; an empty one if its bytes are not asked for, and not here.
    pub file: Arc<File>,
    /// Where it begins there.
    pub base: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its name.
    pub name: Arc<str>,
    /// Keeps its bytes from being used for another.
    pub kept: Box<dyn std::any::Any + Send>,
}

impl Blobs {
    /// Those of a folder, or none yet without one; of several servers those of the database, of which a folder has
    /// copies. The error is one line for the user.
    pub fn open(
        folder: Option<&Path>,
        limits: BlobLimits,
        needs: Box<Needs>,
        shared: Option<FoundVault>,
    ) -> Result<Arc<Self>, String> {
        let (place, found) = match folder {
            Some(folder) => {
                let (place, found) = Place::in_folder(folder)?;
                (Ok(place), found)
            }
            None => {
                let slot = limits.one.next_multiple_of(PAGE_BYTES).max(PAGE_BYTES);
                (Place::without_folder(slot), Vec::new())
            }
        };
        let most = place.as_ref().map_or(0, Place::most);
        let mut index = Index::new(limits.all, most);
        for (id, bytes, since) in found {
            if let Some(stored) = place.as_ref().ok().and_then(|place| place.stored(id)) {
                let blob = Blob {
                    bytes,
                    name: "".into(),
                    since,
                    stored: Some(stored),
                    upload: None,
                };
                index.blobs.insert(id, blob);
            }
        }
        let sharing = shared.map(|(open, contents)| {
            let strays = index.replace(&contents.blobs);
            Sharing::new(open, contents, strays)
        });
        Ok(Arc::new(Blobs {
            place,
            index: Mutex::new(index),
            disk: Mutex::new(()),
            needs,
            limits,
            transfers: AtomicUsize::new(0),
            sharing,
            counters: Counters::default(),
        }))
    }

    /// How many there are, and what everything takes, in bytes.
    pub fn usage(&self) -> (usize, u64) {
        let index = self.index();
        (index.blobs.len(), index.used())
    }

    /// Why there can be none, if so.
    pub fn trouble(&self) -> Option<&str> {
        self.place.as_ref().err().map(String::as_str)
    }

    fn place(&self) -> Result<&Place, Refused> {
        let place = self.place.as_ref();
        place.map_err(|why| Refused::new(503, why.clone()))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> MutexGuard<'_, ()> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to transfer.
    pub fn permit(self: &Arc<Self>) -> Result<Permit, Refusal> {
        let more = |now: usize| (now < MAX_TRANSFERS).then_some(now + 1);
        let order = Ordering::Relaxed;
        match self.transfers.fetch_update(order, order, more) {
            Ok(_) => Ok(Permit(self.clone())),
            Err(_) => {
                self.counters.refused.fetch_add(1, order);
                Err(Refusal::Busy)
            }
        }
    }

    /// Begins to take a whole file, of so many bytes if that is known, and of `max` at most.
    pub fn begin(
        self: &Arc<Self>,
        name: &str,
        bytes: Option<u64>,
        max: Option<(u64, &'static str)>,
    ) -> Result<Arc<Upload>, Refusal> {
        self.place().map_err(Refusal::Other)?;
        let own = (self.limits.one, "the server's --max-blob");
        let max = max.filter(|(max, _)| *max < own.0).unwrap_or(own);
        if bytes.is_some_and(|bytes| bytes > max.0) {
            return Err(Refusal::Other(upload::too_large(max.0, max.1)));
        }
        let permit = self.permit()?;
        Ok(Arc::new(Upload::whole(
            self.clone(),
            permit,
            name.into(),
            bytes,
            max,
        )))
    }

    /// Begins to take a piece of a blob.
    pub fn begin_piece(self: &Arc<Self>, id: BlobId, piece: Piece) -> Result<Begun, Refusal> {
        self.place().map_err(Refusal::Other)?;
        if piece.total > self.limits.one {
            let refused = upload::too_large(self.limits.one, "the server's --max-blob");
            return Err(Refusal::Other(refused));
        }
        let permit = self.permit()?;
        let now = SystemTime::now();
        let mut index = self.index();
        if let Some(blob) = index.blobs.get(&id) {
            let bytes = blob.bytes;
            return Ok(Begun::Whole(Done {
                id,
                bytes,
                have: bytes,
            }));
        }
        let part = index
            .parts
            .get(&id)
            .filter(|part| part.total == piece.total);
        if part.is_some_and(|part| self.is_saving(part)) {
            return Err(Refusal::Later(IS_BEING_SAVED.into()));
        }
        let goes_on_at = part.map_or(0, |part| part.goes_on_at());
        if goes_on_at != piece.offset {
            return Ok(Begun::Elsewhere(goes_on_at));
        }
        let (part, old) = match part {
            Some(part) => (part.clone(), Vec::new()),
            None => {
                let old = index.drop_old_parts(now, true);
                let part = Arc::new(Part::new(piece.total, now));
                index.parts.insert(id, part.clone());
                (part, old)
            }
        };
        drop(index);
        drop(old);
        let end = piece.offset + piece.bytes;
        Ok(Begun::Piece(Arc::new(Upload::piece(
            self.clone(),
            permit,
            id,
            part,
            end,
        ))))
    }

    /// The length of a blob that is there, in bytes.
    pub fn size(&self, id: BlobId) -> Option<u64> {
        self.index().blobs.get(&id).map(|blob| blob.bytes)
    }

    /// Where an upload goes on of a blob that is not whole.
    pub fn half(&self, id: BlobId) -> Result<Option<u64>, Refusal> {
        match self.index().parts.get(&id) {
            Some(part) if self.is_saving(part) => Err(Refusal::Later(IS_BEING_SAVED.into())),
            part => Ok(part.map(|part| part.goes_on_at())),
        }
    }

    /// Opens a blob to be read; `None` if it is not there. Without `wants_bytes` no copy is needed. Waits for the disk.
    pub fn read(&self, id: BlobId, wants_bytes: bool) -> Result<Option<Reading>, Refusal> {
        self.place().map_err(Refusal::Other)?;
        let Some(blob) = self.index().blobs.get(&id).cloned() else {
            return Ok(None);
        };
        let opened = match &blob.stored {
            Some(stored) => stored.open(),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let (file, base) = match opened {
            Ok(opened) => opened,
            // It is not here yet, was just removed, or was taken out of the folder.
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                self.forget_lost(&self.disk(), id);
                let Some(sharing) = self.sharing() else {
                    return Ok(None);
                };
                if wants_bytes {
                    return Err(Refusal::Later(sharing.want(id)));
                }
                let nothing = File::open(NOTHING).map_err(|why| Refusal::Other(on_disk(why)))?;
                (Arc::new(nothing), 0)
            }
            Err(why) => return Err(Refusal::Other(on_disk(why))),
        };
        Ok(Some(Reading {
            file,
            base,
            bytes: blob.bytes,
            name: blob.name,
            kept: Box::new(blob.stored),
        }))
    }

    /// Forgets a blob whose file somebody else has removed, so that it can be brought again; of several servers only
    /// the copy. Waits for the disk.
    fn forget_lost(&self, _disk: &MutexGuard<'_, ()>, id: BlobId) {
        let index = self.index();
        let stored = { index.blobs.get(&id) }.and_then(|blob| blob.stored.clone());
        drop(index);
        let opened = stored.map(|stored| stored.open());
        if !matches!(opened, Some(Err(why)) if why.kind() == io::ErrorKind::NotFound) {
            return;
        }
        let mut index = self.index();
        if self.sharing().is_some() {
            log::warn!("the file {id} is gone from the folder of files; it is fetched again");
            if let Some(blob) = index.blobs.get_mut(&id) {
                blob.stored = None;
            }
            return;
        }
        log::warn!("the file {id} is gone from the folder of files; it has to be brought again");
        index.blobs.remove(&id);
    }

    /// Every blob, and what is half, in the order of their hashes.
    pub fn list(&self) -> Vec<Listed> {
        let mut index = self.index();
        let old = index.drop_old_parts(SystemTime::now(), false);
        let blobs = index.blobs.iter().map(|(id, blob)| Listed {
            id: *id,
            bytes: blob.bytes,
            have: None,
            name: blob.name.clone(),
            since: blob.since,
        });
        let parts = index.parts.iter().map(|(id, part)| Listed {
            id: *id,
            bytes: part.total,
            have: Some(part.have()),
            name: "".into(),
            since: part.since(),
        });
        let mut all: Vec<Listed> = blobs.chain(parts).collect();
        drop(index);
        drop(old);
        all.sort_by_key(|listed| listed.id);
        all
    }

    /// Removes a blob, or what there is of it. False if there is none. Waits for the disk, and for the database.
    pub fn delete(&self, id: BlobId) -> Result<bool, NotRemoved> {
        let disk = self.disk();
        let mut index = self.index();
        let part = index.parts.get(&id);
        if part.is_some_and(|part| self.is_saving(part)) {
            let why = Refusal::Later(IS_BEING_SAVED.into());
            return Err(NotRemoved::Refused(why));
        }
        let part = index.parts.remove(&id);
        if !index.blobs.contains_key(&id) {
            if let Some(why) = self.sharing().and_then(|sharing| sharing.still_removes(id)) {
                return Err(NotRemoved::Refused(why));
            }
            return Ok(part.is_some());
        }
        if index.is_pinned(id) || (self.needs)(&[id]).contains(&Need::Now) {
            return Err(NotRemoved::Needed);
        }
        let blob = index.blobs.remove(&id);
        drop(index);
        let removed = blob.and_then(|blob| self.remove(id, blob));
        drop(disk);
        if let Some(removed) = removed {
            removed.wait().map_err(NotRemoved::Refused)?;
        }
        Ok(true)
    }

    /// Removes a blob that is not in the index any more, here at once and from the database soon.
    fn remove(&self, id: BlobId, blob: Blob) -> Option<saving::Outcome> {
        blob.stored.into_iter().for_each(Stored::remove);
        let sharing = self.sharing()?;
        Some(sharing.remove(id, blob.upload?))
    }

    /// Whether all of a blob has come, and the database is about to get the rest.
    fn is_saving(&self, part: &Part) -> bool {
        self.sharing().is_some() && part.is_being_saved()
    }

    /// Of several servers: bytes that were saved in the database, and bytes that were fetched from it.
    pub fn moved(&self) -> Option<(u64, u64)> {
        let sharing = self.sharing()?;
        let written = sharing.written.load(Ordering::Relaxed);
        Some((written, sharing.fetched.load(Ordering::Relaxed)))
    }

    fn sharing(&self) -> Option<&Arc<Sharing>> {
        // Without PostgreSQL the compiler knows that there is none.
        { self.sharing.as_ref() }.filter(|_| cfg!(any(feature = "pg", test)))
    }

    /// Keeps blobs from being removed until a task that names them is registered. The error is the first that is not
    /// there.
    pub fn pin(self: &Arc<Self>, ids: Vec<BlobId>) -> Result<Pins, BlobId> {
        self.index().pin(&ids)?;
        Ok(Pins(self.clone(), ids))
    }
}

/// Why a blob is not removed.
pub enum NotRemoved {
    /// A task needs it.
    Needed,
    /// Another reason.
    Refused(Refusal),
}

/// Blobs that are not removed until this is dropped.
#[derive(Debug)]
pub struct Pins(Arc<Blobs>, Vec<BlobId>);

impl Drop for Pins {
    fn drop(&mut self) {
        self.0.index().unpin(&self.1);
    }
}

/// The answer when there is no room.
fn no_room(full: &Full) -> Refused {
    let Full {
        used,
        needed,
        max,
        by_number,
    } = full;
    let msg = match by_number {
        true => "there are as many files as there may be, and tasks that have not ended need them, or they came within the last hour".into(),
        false => format!(
            "the server's files take {used} of {max} bytes (--max-blobs), {needed} of them are needed by tasks that have not ended or came within the last hour"
        ),
    };
    Refused::new(507, msg)
}

/// The answer to a failure of the disk.
fn on_disk(why: io::Error) -> Refused {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let status = match why.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => 507,
        _ => 503,
    };
    Refused::new(status, format!("the server cannot keep the file: {why}"))
}
