//! A blob that is coming: whole, or piece by piece so that a broken upload goes on.
//!
//! What comes is hashed and written as it comes. The pieces of one blob may come by several connections, of which an
//! earlier one may be dead without anybody knowing: the latest has its turn, and an earlier one is refused what it still
//! brings. A piece that breaks off counts as far as it came.

use super::place::Draft;
use super::{Blobs, Done, Permit, no_room, on_disk};
use crate::server::http::{Refused, Sink};
use crate::wire::files::BlobId;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// What an upload of unknown length sets aside at once, in bytes.
const RESERVED_STEP: u64 = 8 << 20;

/// An upload.
#[derive(Debug)]
pub struct Upload {
    blobs: Arc<Blobs>,
    kind: Kind,
    _permit: Permit,
}

#[derive(Debug)]
enum Kind {
    Whole(Whole),
    Piece(Piece),
}

/// A file whose hash nobody knows yet.
#[derive(Debug)]
struct Whole {
    name: Arc<str>,
    /// Its number in the index.
    number: u64,
    /// Its length, if that is known.
    bytes: Option<u64>,
    /// The most bytes that it may have, and by what.
    max: (u64, &'static str),
    coming: Mutex<Coming>,
}

/// What has come of a blob.
#[derive(Debug, Default)]
struct Coming {
    draft: Option<Draft>,
    hash: Sha256,
    bytes: u64,
    reserved: u64,
    /// It was kept or thrown away.
    is_over: bool,
}

/// A piece of a blob.
#[derive(Debug)]
struct Piece {
    id: BlobId,
    part: Arc<Part>,
    turn: u64,
    /// Where it ends in the blob.
    end: u64,
}

/// A blob of which some has come.
#[derive(Debug)]
pub struct Part {
    /// How long it will be, in bytes.
    pub total: u64,
    have: AtomicU64,
    turn: AtomicU64,
    /// When the last of it came, in seconds since 1970.
    since: AtomicU64,
    coming: Mutex<Coming>,
}

impl Part {
    /// One of which nothing has come.
    pub fn new(total: u64, now: SystemTime) -> Self {
        Part {
            total,
            have: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            since: AtomicU64::new(seconds(now)),
            coming: Mutex::default(),
        }
    }

    /// How much of it has come, in bytes.
    pub fn have(&self) -> u64 {
        self.have.load(Ordering::Relaxed)
    }

    /// When the last of it came.
    pub fn since(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.since.load(Ordering::Relaxed))
    }

    fn coming(&self) -> MutexGuard<'_, Coming> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

impl Coming {
    fn add(&mut self, blobs: &Blobs, piece: &[u8]) -> Result<(), Refused> {
        let draft = match &mut self.draft {
            Some(draft) => draft,
            none => none.insert(blobs.place()?.draft().map_err(on_disk)?),
        };
        draft.write(self.bytes, piece).map_err(on_disk)?;
        self.hash.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }

    fn id(&mut self) -> BlobId {
        BlobId(self.hash.finalize_reset().into())
    }

    /// The draft, with an empty one for an empty blob.
    fn draft(&mut self, blobs: &Blobs) -> Result<Draft, Refused> {
        match self.draft.take() {
            Some(draft) => Ok(draft),
            None => blobs.place()?.draft().map_err(on_disk),
        }
    }
}

impl Upload {
    pub(super) fn whole(
        blobs: Arc<Blobs>,
        permit: Permit,
        name: Arc<str>,
        bytes: Option<u64>,
        max: (u64, &'static str),
    ) -> Self {
        let number = blobs.index().number();
        let whole = Whole {
            name,
            number,
            bytes,
            max,
            coming: Mutex::default(),
        };
        Upload {
            blobs,
            kind: Kind::Whole(whole),
            _permit: permit,
        }
    }

    pub(super) fn piece(
        blobs: Arc<Blobs>,
        permit: Permit,
        id: BlobId,
        part: Arc<Part>,
        end: u64,
    ) -> Self {
        let turn = part.turn.fetch_add(1, Ordering::Relaxed) + 1;
        let piece = Piece {
            id,
            part,
            turn,
            end,
        };
        Upload {
            blobs,
            kind: Kind::Piece(piece),
            _permit: permit,
        }
    }

    /// All of the body has come: the blob is kept if it is whole. Waits for the disk.
    pub fn finish(&self) -> Result<Done, Refused> {
        match &self.kind {
            Kind::Whole(whole) => whole.finish(&self.blobs),
            Kind::Piece(piece) => piece.finish(&self.blobs),
        }
    }
}

impl Sink for Upload {
    fn take(&self, piece: &[u8]) -> Result<(), Refused> {
        let blobs = &self.blobs;
        blobs
            .counters
            .received
            .fetch_add(piece.len() as u64, Ordering::Relaxed);
        match &self.kind {
            Kind::Whole(whole) => whole.take(blobs, piece),
            Kind::Piece(part) => part.take(blobs, piece),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Kind::Whole(whole) = &self.kind {
            self.blobs.index().reserve(whole.number, 0);
        }
    }
}

impl Whole {
    fn take(&self, blobs: &Blobs, piece: &[u8]) -> Result<(), Refused> {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let (max, by) = self.max;
        let bytes = coming.bytes + piece.len() as u64;
        if bytes > max {
            return Err(too_large(max, by));
        }
        if bytes > coming.reserved {
            let wanted = self.bytes.unwrap_or(coming.reserved + RESERVED_STEP);
            let wanted = wanted.max(bytes).min(max);
            blobs.make_room(wanted - coming.reserved, |index| {
                index.reserve(self.number, wanted)
            })?;
            coming.reserved = wanted;
        }
        coming.add(blobs, piece)
    }

    fn finish(&self, blobs: &Blobs) -> Result<Done, Refused> {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, bytes) = (coming.id(), coming.bytes);
        let draft = coming.draft(blobs)?;
        blobs.keep(draft, id, bytes, Some(&self.name), |index| {
            index.reserve(self.number, 0)
        })?;
        Ok(Done {
            id,
            bytes,
            have: bytes,
        })
    }
}

impl Piece {
    fn check_turn(&self, coming: &Coming) -> Result<(), Refused> {
        match self.turn == self.part.turn.load(Ordering::Relaxed) && !coming.is_over {
            true => Ok(()),
            false => Err(Refused::new(
                409,
                "another upload of the same file goes on with it",
            )),
        }
    }

    fn take(&self, blobs: &Blobs, piece: &[u8]) -> Result<(), Refused> {
        let mut coming = self.part.coming();
        self.check_turn(&coming)?;
        if coming.bytes + piece.len() as u64 > self.end {
            return Err(other_length(self.end));
        }
        blobs.make_room(piece.len() as u64, |_| {})?;
        coming.add(blobs, piece)?;
        self.part.have.store(coming.bytes, Ordering::Relaxed);
        self.part
            .since
            .store(seconds(SystemTime::now()), Ordering::Relaxed);
        Ok(())
    }

    fn finish(&self, blobs: &Blobs) -> Result<Done, Refused> {
        let mut coming = self.part.coming();
        self.check_turn(&coming)?;
        let have = coming.bytes;
        if have != self.end {
            return Err(other_length(self.end));
        }
        let done = Done {
            id: self.id,
            bytes: self.part.total,
            have,
        };
        if have < self.part.total {
            return Ok(done);
        }
        coming.is_over = true;
        let is = coming.id();
        let draft = coming.draft(blobs);
        let own = |index: &mut super::index::Index| {
            // Another one may have taken its place.
            if { index.parts.get(&self.id) }.is_some_and(|part| Arc::ptr_eq(part, &self.part)) {
                index.parts.remove(&self.id);
            }
        };
        if is != self.id {
            own(&mut blobs.index());
            return Err(Refused::new(
                422,
                format!(
                    "sha256: what came has the SHA-256 {is}, not {}; it was thrown away",
                    self.id
                ),
            ));
        }
        let kept = draft.and_then(|draft| blobs.keep(draft, is, have, None, own));
        if kept.is_err() {
            own(&mut blobs.index());
        }
        kept.map(|()| done)
    }
}

/// The answer to a file that is larger than it may be.
pub(super) fn too_large(max: u64, by: &str) -> Refused {
    Refused::new(
        413,
        format!("the file must have {max} bytes at most ({by})"),
    )
}

fn other_length(end: u64) -> Refused {
    Refused::new(
        400,
        format!("Content-Range: must fit the body; the body does not end at byte {end}"),
    )
}

impl Blobs {
    /// Makes room for so many bytes more, and has it taken at once. Waits for the disk.
    fn make_room(
        &self,
        bytes: u64,
        take: impl FnOnce(&mut super::index::Index),
    ) -> Result<(), Refused> {
        let mut index = self.index();
        if index.has_room(bytes) {
            take(&mut index);
            return Ok(());
        }
        drop(index);
        let _disk = self.disk();
        let mut index = self.index();
        let gone = index.make_room(bytes, None, SystemTime::now(), &*self.needs);
        let gone = gone.map_err(|full| no_room(&full))?;
        take(&mut index);
        drop(index);
        self.counters
            .evicted
            .fetch_add(gone.len() as u64, Ordering::Relaxed);
        gone.into_iter().for_each(|blob| blob.stored.remove());
        Ok(())
    }

    /// Keeps a blob that is whole. Waits for the disk.
    fn keep(
        &self,
        draft: Draft,
        id: BlobId,
        bytes: u64,
        name: Option<&Arc<str>>,
        take: impl FnOnce(&mut super::index::Index),
    ) -> Result<(), Refused> {
        let place = self.place()?;
        place.sync(&draft).map_err(on_disk)?;
        let disk = self.disk();
        self.forget_lost(&disk, id);
        let mut index = self.index();
        let now = SystemTime::now();
        if let Some(blob) = index.blobs.get_mut(&id) {
            blob.since = now;
            if let Some(name) = name {
                blob.name = name.clone();
            }
            take(&mut index);
            return Ok(());
        }
        // For one more; its bytes are counted already.
        let gone = index.make_room(0, None, now, &*self.needs);
        let gone = gone.map_err(|full| no_room(&full))?;
        drop(index);
        gone.into_iter().for_each(|blob| blob.stored.remove());
        let stored = place.keep(draft, id).map_err(on_disk)?;
        let blob = super::index::Blob {
            bytes,
            name: name.cloned().unwrap_or_else(|| "".into()),
            since: now,
            stored,
        };
        let mut index = self.index();
        take(&mut index);
        index.blobs.insert(id, blob);
        self.counters.uploads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
