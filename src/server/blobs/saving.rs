//! Blobs on their way into the database of several servers, and out of it.
//!
//! The pieces of an upload are put by the thread that takes it in. What decides which blobs there are, their rows, is
//! changed by one thread, in the order of the requests. A change whose outcome is not known is repeated until it is.
//! Whoever waits for one is told after a while to come back; it happens all the same.

use super::index::{Blob, Index, Need};
use super::place::Draft;
use super::upload::Arrived;
use super::vault::{Contents, Entry, Named, OpenVault, UploadNumber, VAULT_PIECE_BYTES, Vault};
use super::{Blobs, Refusal, on_disk};
use crate::server::http::Refused;
use crate::wire::files::BlobId;
use log::{error, info, warn};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Connections for pieces. More would not be faster: the database writes them into one log.
const LANES: usize = 4;
/// After a failure nothing is put for so long: whoever uploads hears of it at once, rather than after a time-out each.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// The pause before a change is repeated.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A request waits for its change so long. Whoever uploads waits 30 s for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is said of a change that takes longer.
const NOT_YET: &str = "the database has not acknowledged it yet; come back in a second";

/// What the servers share.
pub struct Sharing {
    open: Box<OpenVault>,
    lanes: [Mutex<Lane>; LANES],
    next_lane: AtomicU64,
    changes: Mutex<Changes>,
    has_changes: Condvar,
    /// What was found here and not in the database.
    strays: Mutex<Vec<(BlobId, Blob)>>,
    /// Blobs that are to be fetched.
    pub(super) fetches: super::fetching::Fetches,
    /// Bytes of pieces that were put.
    pub written: AtomicU64,
    /// Bytes of pieces that were fetched.
    pub fetched: AtomicU64,
}

#[derive(Default)]
struct Lane {
    vault: Option<Box<dyn Vault>>,
    failed: Option<(Instant, String)>,
}

#[derive(Default)]
struct Changes {
    waiting: VecDeque<Change>,
    /// How many rows of a blob are being removed.
    removing: BTreeMap<BlobId, u32>,
}

enum Change {
    /// A blob that has come.
    Name(Box<Arrived>, Sender<Result<(), Refused>>),
    /// A blob that is not in the index any more.
    Remove(BlobId, UploadNumber, Sender<Result<(), Refused>>),
    /// An upload that broke off.
    Discard(UploadNumber),
    /// The database may have lost some.
    Mend,
}

/// What becomes of a change.
pub struct Outcome(Receiver<Result<(), Refused>>);

impl Outcome {
    /// Waits for it for a while.
    pub fn wait(self) -> Result<(), Refusal> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome.map_err(Refusal::Other),
            Err(_) => Err(Refusal::Later(NOT_YET.into())),
        }
    }
}

/// What the database has of an upload. It is discarded unless a blob has it.
pub struct Deposit {
    sharing: Arc<Sharing>,
    upload: UploadNumber,
    /// How much was saved, in bytes.
    saved: u64,
    /// There may be pieces that nobody needs.
    is_to_be_discarded: bool,
}

impl std::fmt::Debug for Deposit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deposit").finish_non_exhaustive()
    }
}

impl Deposit {
    /// Saves the full pieces of so many bytes, or everything.
    pub fn save(&mut self, draft: &Draft, have: u64, is_whole: bool) -> Result<(), Refused> {
        loop {
            let bytes = (have - self.saved).min(VAULT_PIECE_BYTES);
            if bytes == 0 || bytes < VAULT_PIECE_BYTES && !is_whole {
                return Ok(());
            }
            let mut piece = vec![0; bytes as usize];
            draft.read(self.saved, &mut piece).map_err(on_disk)?;
            self.put(&piece).map_err(|why| {
                let msg = format!("the file cannot be saved in the database: {why}");
                Refused::new(503, msg)
            })?;
        }
    }

    /// Saves the next piece.
    fn put(&mut self, piece: &[u8]) -> Result<(), String> {
        self.is_to_be_discarded = true;
        let n = self.saved / VAULT_PIECE_BYTES;
        self.sharing.put(self.upload, n, piece)?;
        self.saved += piece.len() as u64;
        Ok(())
    }

    /// Has the blob named that it is. Returns the upload whose pieces the blob has.
    fn name(&mut self, vault: &mut dyn Vault, entry: &Entry) -> Option<UploadNumber> {
        match repeat(|| vault.name(entry)) {
            Named::By(upload) => {
                self.is_to_be_discarded = upload != self.upload;
                Some(upload)
            }
            Named::Incomplete => None,
        }
    }
}

impl Drop for Deposit {
    fn drop(&mut self) {
        if self.is_to_be_discarded {
            self.sharing.give(Change::Discard(self.upload));
        }
    }
}

impl Sharing {
    /// With what was found in the database, and what was found here and not there.
    pub fn new(open: Box<OpenVault>, contents: Contents, strays: Vec<(BlobId, Blob)>) -> Arc<Self> {
        let mut waiting = VecDeque::new();
        for entry in contents.broken {
            warn!(
                "of the file {} pieces are missing in the database; it has to be brought again",
                entry.id
            );
            waiting.push_back(Change::Remove(entry.id, entry.upload, channel().0));
        }
        waiting.extend(contents.leftovers.into_iter().map(Change::Discard));
        Arc::new(Sharing {
            open,
            lanes: Default::default(),
            next_lane: AtomicU64::new(0),
            changes: Mutex::new(Changes {
                waiting,
                removing: BTreeMap::new(),
            }),
            has_changes: Condvar::new(),
            strays: Mutex::new(strays),
            fetches: Default::default(),
            written: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
        })
    }

    /// A connection.
    pub(super) fn open(&self) -> Box<dyn Vault> {
        (self.open)()
    }

    /// For a new upload.
    pub fn deposit(self: &Arc<Self>) -> Deposit {
        Deposit {
            sharing: self.clone(),
            upload: UploadNumber::fresh(),
            saved: 0,
            is_to_be_discarded: false,
        }
    }

    fn put(&self, upload: UploadNumber, n: u64, piece: &[u8]) -> Result<(), String> {
        let lane = self.next_lane.fetch_add(1, Ordering::Relaxed) as usize % LANES;
        let lane = self.lanes[lane].lock();
        let mut lane = lane.unwrap_or_else(PoisonError::into_inner);
        if let Some((at, why)) = &lane.failed
            && at.elapsed() < FAILURE_PAUSE
        {
            return Err(why.clone());
        }
        let vault = lane.vault.get_or_insert_with(|| self.open());
        let put = vault.put(upload, n, piece);
        lane.failed = put.clone().err().map(|why| (Instant::now(), why));
        self.written
            .fetch_add(piece.len() as u64, Ordering::Relaxed);
        put
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, change: Change) {
        self.changes().waiting.push_back(change);
        self.has_changes.notify_one();
    }

    /// Has a blob named that has come, and then kept here.
    pub fn name(&self, arrived: Arrived) -> Outcome {
        let (sender, outcome) = channel();
        self.give(Change::Name(Box::new(arrived), sender));
        Outcome(outcome)
    }

    /// Has a blob removed that is not in the index any more.
    pub fn remove(&self, id: BlobId, upload: UploadNumber) -> Outcome {
        let (sender, outcome) = channel();
        *self.changes().removing.entry(id).or_default() += 1;
        self.give(Change::Remove(id, upload, sender));
        Outcome(outcome)
    }

    /// Why nobody may say that a blob is not there which is not in the index.
    pub fn still_removes(&self, id: BlobId) -> Option<Refusal> {
        let is_removing = self.changes().removing.contains_key(&id);
        is_removing.then(|| Refusal::Later(NOT_YET.into()))
    }

    fn next_change(&self) -> Change {
        let mut changes = self.changes();
        loop {
            if let Some(next) = changes.waiting.pop_front() {
                return next;
            }
            let waited = self.has_changes.wait(changes);
            changes = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn note_removed(&self, id: BlobId) {
        let mut changes = self.changes();
        if let Some(count) = changes.removing.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                changes.removing.remove(&id);
            }
        }
    }
}

/// Repeats a change until its outcome is known.
fn repeat<T>(mut change: impl FnMut() -> Result<T, String>) -> T {
    let mut has_failed = false;
    loop {
        match change() {
            Ok(done) => {
                if has_failed {
                    info!("what was to be done about a file in the database is done");
                }
                return done;
            }
            Err(why) if !std::mem::replace(&mut has_failed, true) => {
                warn!("files in the database: {why}; tries again every second");
            }
            Err(_) => {}
        }
        thread::sleep(RETRY_PAUSE);
    }
}

impl Blobs {
    /// The database has lost what it had saved: what it should have is compared with what is here.
    pub fn mend(&self) {
        if let Some(sharing) = self.sharing() {
            sharing.give(Change::Mend);
        }
    }

    /// Makes the changes of the database, one after the other, for ever. Of a single server it returns at once.
    pub fn change_forever(&self) {
        let Some(sharing) = self.sharing() else {
            return;
        };
        let mut vault = sharing.open();
        self.adopt_strays(sharing, &mut *vault);
        loop {
            match sharing.next_change() {
                Change::Name(arrived, outcome) => {
                    let named = self.name(&mut *vault, *arrived);
                    // Nobody may wait for it any more.
                    let _ = outcome.send(named);
                }
                Change::Remove(id, upload, outcome) => {
                    repeat(|| vault.remove(id, upload));
                    sharing.note_removed(id);
                    let _ = outcome.send(Ok(()));
                    sharing.give(Change::Discard(upload));
                }
                Change::Discard(upload) => repeat(|| vault.discard(upload)),
                Change::Mend => self.mend_now(sharing, &mut *vault),
            }
        }
    }

    /// Brings what tasks need of that which only the folder has: an earlier build has left it there. The rest was
    /// removed by another server, or nobody needs it.
    fn adopt_strays(&self, sharing: &Arc<Sharing>, vault: &mut dyn Vault) {
        let strays = std::mem::take(
            &mut *sharing
                .strays
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (id, mut blob) in strays {
            let is_here = self.index().blobs.contains_key(&id);
            let is_needed = (self.needs)(&[id]).iter().any(|need| *need != Need::Nobody);
            if is_here {
                continue;
            }
            if !is_needed || !self.index().has_room(blob.bytes) {
                self.remove(id, blob);
                continue;
            }
            match self.bring(sharing, vault, id, &blob) {
                Ok(upload) => {
                    info!("the file {id} of the folder was saved in the database");
                    blob.upload = Some(upload);
                    self.index().blobs.entry(id).or_insert(blob);
                }
                Err(why) => {
                    warn!("the file {id} of the folder is not saved in the database: {why}")
                }
            }
        }
    }

    /// Brings what the database has lost, and removes from it what is not in the index.
    fn mend_now(&self, sharing: &Arc<Sharing>, vault: &mut dyn Vault) {
        let contents = repeat(|| vault.list());
        let blobs = self.index().blobs.clone();
        let is_there = |id: &BlobId, blob: &Blob| {
            let mut there = contents.blobs.iter();
            there.any(|entry| entry.id == *id && Some(entry.upload) == blob.upload)
        };
        for entry in contents.blobs.iter().chain(&contents.broken) {
            let own =
                { blobs.get(&entry.id) }.is_some_and(|blob| blob.upload == Some(entry.upload));
            if !own || contents.broken.contains(entry) {
                repeat(|| vault.remove(entry.id, entry.upload));
                sharing.give(Change::Discard(entry.upload));
            }
        }
        for (id, blob) in { blobs.iter() }.filter(|(id, blob)| !is_there(id, blob)) {
            match self.bring(sharing, vault, *id, blob) {
                Ok(upload) => {
                    if let Some(now) = self.index().blobs.get_mut(id) {
                        now.upload = Some(upload);
                    }
                    info!("the file {id} was saved in the database anew");
                }
                Err(why) => error!("the database has lost the file {id}: {why}"),
            }
        }
    }

    /// Saves a copy that is here in the database.
    fn bring(
        &self,
        sharing: &Arc<Sharing>,
        vault: &mut dyn Vault,
        id: BlobId,
        blob: &Blob,
    ) -> Result<UploadNumber, String> {
        let stored = blob.stored.as_ref().ok_or("it is not here either")?;
        let (file, base) = stored.open().map_err(|why| why.to_string())?;
        let mut deposit = sharing.deposit();
        let mut hash = Sha256::new();
        while deposit.saved < blob.bytes {
            let bytes = (blob.bytes - deposit.saved).min(VAULT_PIECE_BYTES);
            let mut piece = vec![0; bytes as usize];
            let read = file.read_exact_at(&mut piece, base + deposit.saved);
            read.map_err(|why| why.to_string())?;
            hash.update(&piece);
            deposit.put(&piece)?;
        }
        if BlobId(hash.finalize().into()) != id {
            return Err("its bytes here are others".into());
        }
        let entry = Entry {
            id,
            bytes: blob.bytes,
            name: blob.name.to_string(),
            since: blob.since,
            upload: deposit.upload,
        };
        let upload = deposit.name(vault, &entry);
        upload.ok_or_else(|| "the database has lost pieces of it again".into())
    }

    fn name(&self, vault: &mut dyn Vault, mut arrived: Arrived) -> Result<(), Refused> {
        let name = arrived.name();
        let Some(deposit) = &mut arrived.deposit else {
            return Err(Refused::new(500, "nothing of the file was saved (a bug)"));
        };
        let entry = Entry {
            id: arrived.id,
            bytes: arrived.bytes,
            name: name.to_string(),
            since: SystemTime::now(),
            upload: deposit.upload,
        };
        match deposit.name(vault, &entry) {
            Some(upload) => self.keep_here(arrived, Some(upload)),
            None => {
                arrived.leave(&mut self.index());
                let msg = "the database has lost pieces of the file; send it again";
                Err(Refused::new(503, msg))
            }
        }
    }
}

impl Index {
    /// Takes what the database has for true; what is there and not here is to be fetched. Returns what is not there.
    pub(super) fn replace(&mut self, entries: &[Entry]) -> Vec<(BlobId, Blob)> {
        let mut copies = std::mem::take(&mut self.blobs);
        for entry in entries {
            let copy = copies.remove(&entry.id);
            let copy = copy.and_then(|copy| match copy.bytes == entry.bytes {
                true => copy.stored,
                false => None,
            });
            let blob = Blob {
                bytes: entry.bytes,
                name: (&*entry.name).into(),
                since: entry.since,
                stored: copy,
                upload: Some(entry.upload),
            };
            self.blobs.insert(entry.id, blob);
        }
        copies.into_iter().collect()
    }
}
