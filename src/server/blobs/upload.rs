//! A blob that is coming: whole, or piece by piece so that a broken upload goes on.
//!
//! What comes is hashed and written as it comes. The pieces of one blob may come by several connections, of which an
//! earlier one may be dead without anybody knowing: the latest has its turn, and an earlier one is refused what it
//! still brings. A piece that breaks off counts as far as it came.

use super::index::{Blob, Index};
use super::place::Draft;
use super::saving::Deposit;
use super::vault::UploadNumber;
use super::{Blobs, Done, Permit, Refusal, no_room, on_disk};
use crate::server::http::{Refused, Sink};
use crate::wire::files::BlobId;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// What the database has of it, of several servers.
    deposit: Option<Deposit>,
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
    /// All of the blob has come already, but it could not be saved: what comes is not taken again.
    is_repeated: bool,
    /// Its end has come.
    is_finished: AtomicBool,
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
    /// All of it has come, and it could not be saved.
    is_stuck: AtomicBool,
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
            is_stuck: AtomicBool::new(false),
            coming: Mutex::default(),
        }
    }

    /// How much of it has come, in bytes.
    pub fn have(&self) -> u64 {
        self.have.load(Ordering::Relaxed)
    }

    /// Where an upload goes on. If all of it has come, and could not be saved, its last byte is to come once more.
    pub fn goes_on_at(&self) -> u64 {
        match self.is_stuck() {
            true => self.total - 1,
            false => self.have(),
        }
    }

    /// Whether all of it has come, and it is being saved.
    pub fn is_being_saved(&self) -> bool {
        self.have() == self.total && !self.is_stuck()
    }

    fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    /// It could not be saved, or nobody is there any more who waits for that. If something is still to come, that
    /// goes on.
    fn note_stuck(&self) {
        if self.have() == self.total {
            self.is_stuck.store(true, Ordering::Relaxed);
        }
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
        self.save(blobs, false)
    }

    /// Saves what has come in the database, if there is one: full pieces, or everything.
    fn save(&mut self, blobs: &Blobs, is_whole: bool) -> Result<(), Refused> {
        let Some(sharing) = blobs.sharing() else {
            return Ok(());
        };
        let deposit = { self.deposit.as_mut() };
        let deposit = match deposit {
            Some(deposit) => deposit,
            None => self.deposit.insert(sharing.deposit()),
        };
        match &self.draft {
            Some(draft) => deposit.save(draft, self.bytes, is_whole),
            None => Ok(()),
        }
    }

    fn id(&mut self) -> BlobId {
        BlobId(self.hash.finalize_reset().into())
    }

    /// What has come, with an empty draft for an empty blob.
    fn whole(&mut self, blobs: &Blobs, id: BlobId, from: Origin) -> Result<Arrived, Refused> {
        let draft = match self.draft.take() {
            Some(draft) => draft,
            None => blobs.place()?.draft().map_err(on_disk)?,
        };
        Ok(Arrived {
            draft,
            deposit: self.deposit.take(),
            id,
            bytes: self.bytes,
            from,
        })
    }
}

/// A blob all of whose bytes have come.
#[derive(Debug)]
pub struct Arrived {
    draft: Draft,
    /// What the database has of it, of several servers.
    pub deposit: Option<Deposit>,
    /// What it is.
    pub id: BlobId,
    /// Its length in bytes.
    pub bytes: u64,
    from: Origin,
}

/// How a blob has come.
#[derive(Debug)]
enum Origin {
    /// Whole: the number in the index under which room is set aside, and the name.
    Whole(u64, Arc<str>),
    /// In pieces.
    Pieces(Arc<Part>),
}

impl Arrived {
    /// Its name; empty if it has none.
    pub fn name(&self) -> Arc<str> {
        match &self.from {
            Origin::Whole(_, name) => name.clone(),
            Origin::Pieces(_) => "".into(),
        }
    }

    /// It is not coming any more: it was kept or thrown away.
    pub fn leave(&self, index: &mut Index) {
        self.from.leave(index, self.id);
    }
}

impl Origin {
    fn leave(&self, index: &mut Index, id: BlobId) {
        match self {
            Origin::Whole(number, _) => index.reserve(*number, 0),
            Origin::Pieces(part) => forget(index, id, part),
        }
    }
}

/// Forgets a part, unless another one has taken its place.
fn forget(index: &mut Index, id: BlobId, part: &Arc<Part>) {
    if { index.parts.get(&id) }.is_some_and(|other| Arc::ptr_eq(other, part)) {
        index.parts.remove(&id);
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
        let is_repeated = part.is_stuck();
        let piece = Piece {
            id,
            part,
            turn,
            end,
            is_repeated,
            is_finished: AtomicBool::new(false),
        };
        Upload {
            blobs,
            kind: Kind::Piece(piece),
            _permit: permit,
        }
    }

    /// All of the body has come: the blob is kept if it is whole. Waits for the disk, and for the database.
    pub fn finish(&self) -> Result<Done, Refusal> {
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
        match &self.kind {
            Kind::Whole(whole) => self.blobs.index().reserve(whole.number, 0),
            Kind::Piece(piece) if !piece.is_finished.load(Ordering::Relaxed) => {
                piece.part.note_stuck();
            }
            Kind::Piece(_) => {}
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

    fn finish(&self, blobs: &Blobs) -> Result<Done, Refusal> {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        coming.save(blobs, true).map_err(Refusal::Other)?;
        let (id, bytes) = (coming.id(), coming.bytes);
        let from = Origin::Whole(self.number, self.name.clone());
        let arrived = coming.whole(blobs, id, from).map_err(Refusal::Other)?;
        blobs.keep(arrived)?;
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
        if self.is_repeated {
            return Ok(());
        }
        if coming.bytes + piece.len() as u64 > self.end {
            return Err(other_length(self.end));
        }
        blobs.make_room(piece.len() as u64, |_| {})?;
        let added = coming.add(blobs, piece);
        self.part.have.store(coming.bytes, Ordering::Relaxed);
        self.part
            .since
            .store(seconds(SystemTime::now()), Ordering::Relaxed);
        added
    }

    fn finish(&self, blobs: &Blobs) -> Result<Done, Refusal> {
        self.is_finished.store(true, Ordering::Relaxed);
        let mut coming = self.part.coming();
        self.check_turn(&coming).map_err(Refusal::Other)?;
        let have = coming.bytes;
        if have != self.end {
            return Err(Refusal::Other(other_length(self.end)));
        }
        let done = Done {
            id: self.id,
            bytes: self.part.total,
            have,
        };
        if have < self.part.total {
            return Ok(done);
        }
        coming.save(blobs, true).map_err(|refused| {
            self.part.note_stuck();
            Refusal::Other(refused)
        })?;
        self.part.is_stuck.store(false, Ordering::Relaxed);
        coming.is_over = true;
        let is = coming.id();
        let arrived = coming.whole(blobs, is, Origin::Pieces(self.part.clone()));
        drop(coming);
        if is != self.id {
            forget(&mut blobs.index(), self.id, &self.part);
            let msg = format!(
                "sha256: what came has the SHA-256 {is}, not {}; it was thrown away",
                self.id
            );
            return Err(Refusal::Other(Refused::new(422, msg)));
        }
        let kept = arrived.map_err(Refusal::Other);
        let kept = kept.and_then(|arrived| blobs.keep(arrived));
        // Of what takes longer the end is still to come.
        if !matches!(kept, Err(Refusal::Later(_))) {
            forget(&mut blobs.index(), self.id, &self.part);
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
        self.evict(gone);
        Ok(())
    }

    fn evict(&self, gone: Vec<(BlobId, Blob)>) {
        let count = gone.len() as u64;
        self.counters.evicted.fetch_add(count, Ordering::Relaxed);
        for (id, blob) in gone {
            self.remove(id, blob);
        }
    }

    /// Keeps a blob that is whole. Waits for the disk, and for the database.
    fn keep(&self, arrived: Arrived) -> Result<(), Refusal> {
        let place = self.place().map_err(Refusal::Other)?;
        let synced = place.sync(&arrived.draft);
        synced.map_err(|why| Refusal::Other(on_disk(why)))?;
        match self.sharing() {
            None => self.keep_here(arrived, None).map_err(Refusal::Other),
            Some(sharing) => {
                let room = self.room_for_one(&self.disk(), arrived.id);
                room.map_err(Refusal::Other)?;
                sharing.name(arrived).wait()
            }
        }
    }

    /// Makes room for one more; its bytes are counted already.
    fn room_for_one(&self, _disk: &MutexGuard<'_, ()>, id: BlobId) -> Result<(), Refused> {
        let mut index = self.index();
        if index.blobs.contains_key(&id) {
            return Ok(());
        }
        let gone = index.make_room(0, None, SystemTime::now(), &*self.needs);
        drop(index);
        self.evict(gone.map_err(|full| no_room(&full))?);
        Ok(())
    }

    /// Keeps a blob in its place here; the database has it as this upload, if there is one. Waits for the disk.
    pub(super) fn keep_here(
        &self,
        arrived: Arrived,
        upload: Option<UploadNumber>,
    ) -> Result<(), Refused> {
        let place = self.place()?;
        let disk = self.disk();
        let (id, now) = (arrived.id, SystemTime::now());
        self.forget_lost(&disk, id);
        if upload.is_none() {
            self.room_for_one(&disk, id)?;
        }
        let mut index = self.index();
        let (mut name, bytes) = (arrived.name(), arrived.bytes);
        if let Some(blob) = index.blobs.get_mut(&id) {
            if name.is_empty() {
                name = blob.name.clone();
            }
            if blob.stored.is_some() {
                (blob.since, blob.upload, blob.name) = (now, upload, name);
                arrived.leave(&mut index);
                return Ok(());
            }
        }
        drop(index);
        let Arrived { draft, from, .. } = arrived;
        let stored = match place.keep(draft, id) {
            Ok(stored) => Some(stored),
            // The database has it.
            Err(why) if upload.is_some() => {
                log::warn!("the file {id} cannot be kept here: {why}");
                None
            }
            Err(why) => return Err(on_disk(why)),
        };
        let blob = Blob {
            bytes,
            name,
            since: now,
            stored,
            upload,
        };
        let mut index = self.index();
        from.leave(&mut index, id);
        index.blobs.insert(id, blob);
        self.counters.uploads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
