//! Where the bytes of blobs lie: in a folder, or in one file without a name.
//!
//! In a folder each blob is a file named by its hash; it gets that name when all of it is on the disk, so a crash leaves
//! no half blob, and what is half is removed at the next start. Without a folder one unlinked file in the temporary
//! folder has a slot for each: one descriptor for all of them, and nothing is left behind however the server ends. The
//! file is sparse, and a slot that is free again takes no space.

use crate::server::http::start_thread;
use crate::wire::files::BlobId;
use log::warn;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// What a file that is not whole is called, with a number behind it.
const PART: &str = ".part-";
/// The lock of a folder: two servers in one would remove each other's halves.
const LOCK: &str = ".lock";
/// The largest file that every usual file system takes, in bytes, with room to spare.
const MAX_FILE_BYTES: u64 = 8 << 40;

/// Where they lie.
#[derive(Debug)]
pub enum Place {
    /// In this folder, which is locked as long as the file is open.
    Folder(PathBuf, #[allow(dead_code, reason = "it is the lock")] File),
    /// In slots of one file.
    Slots(Arc<Slots>),
}

/// The slots of a file.
#[derive(Debug)]
pub struct Slots {
    file: Arc<File>,
    slot_bytes: u64,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Slots that were used and are free again.
    free: Vec<u64>,
    /// The first one that was never used.
    next: u64,
}

/// A place for one blob, given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    number: u64,
}

/// Where a whole blob lies.
#[derive(Debug, Clone)]
pub enum Stored {
    /// In a file of its own.
    File(PathBuf),
    /// In a slot.
    Slot(Arc<Slot>),
}

/// Where one is being written.
#[derive(Debug)]
pub enum Draft {
    /// In a file that has not got its name, and is removed when it is dropped.
    File(DraftFile),
    /// In a slot.
    Slot(Arc<Slot>),
}

/// A file that is being written.
#[derive(Debug)]
pub struct DraftFile {
    file: File,
    path: PathBuf,
    is_kept: bool,
}

/// A blob that was there at the start: what it is, how large, since when.
pub type Found = (BlobId, u64, SystemTime);

impl Place {
    /// Opens a folder, and says what is in it.
    pub fn in_folder(folder: &Path) -> Result<(Self, Vec<Found>), String> {
        let cannot = |why: &dyn std::fmt::Display| format!("--blobs: {}: {why}", folder.display());
        fs::create_dir_all(folder).map_err(|why| cannot(&why))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join(LOCK))
            .map_err(|why| cannot(&why))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| cannot(&"another server uses it"))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(|why| cannot(&why))? {
            let entry = entry.map_err(|why| cannot(&why))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if name.starts_with(PART) {
                fs::remove_file(entry.path()).map_err(|why| cannot(&why))?;
            }
            if let (Ok(id), Ok(meta)) = (name.parse(), entry.metadata())
                && meta.is_file()
            {
                let since = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((id, meta.len(), since));
            }
        }
        Ok((Place::Folder(folder.to_owned(), lock), found))
    }

    /// Makes the file without a name, with slots for blobs of so many bytes.
    pub fn without_folder(slot_bytes: u64) -> Result<Self, String> {
        let folder = std::env::temp_dir();
        let file = unlinked_file(&folder).map_err(|why| {
            format!(
                "there is nowhere to keep files: {}: {why}; give the server a folder with --blobs",
                folder.display()
            )
        })?;
        Ok(Place::Slots(Arc::new(Slots {
            file: Arc::new(file),
            slot_bytes,
            taken: Mutex::default(),
        })))
    }

    /// How many blobs there can be at once.
    pub fn most(&self) -> usize {
        match self {
            Place::Folder(..) => usize::MAX,
            Place::Slots(slots) => (MAX_FILE_BYTES / slots.slot_bytes) as usize,
        }
    }

    /// A place to write one.
    pub fn draft(&self) -> io::Result<Draft> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Ok(match self {
            Place::Folder(folder, _) => {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let path = folder.join(format!("{PART}{number}"));
                let file = OpenOptions::new()
                    .create_new(true)
                    .read(true)
                    .write(true)
                    .mode(0o600)
                    .open(&path)?;
                Draft::File(DraftFile {
                    file,
                    path,
                    is_kept: false,
                })
            }
            Place::Slots(slots) => Draft::Slot(slots.take()?),
        })
    }

    /// Has a draft on the disk, before it gets its name.
    pub fn sync(&self, draft: &Draft) -> io::Result<()> {
        match draft {
            Draft::File(draft) => draft.file.sync_all(),
            // It does not survive a crash anyway.
            Draft::Slot(_) => Ok(()),
        }
    }

    /// Gives a draft, which is on the disk, its name.
    pub fn keep(&self, draft: Draft, id: BlobId) -> io::Result<Stored> {
        match (self, draft) {
            (Place::Folder(folder, _), Draft::File(mut draft)) => {
                let path = folder.join(id.to_string());
                fs::rename(&draft.path, &path)?;
                draft.is_kept = true;
                File::open(folder)?.sync_all()?;
                Ok(Stored::File(path))
            }
            (_, Draft::Slot(slot)) => Ok(Stored::Slot(slot)),
            // A place makes its own kind only.
            (Place::Slots(_), Draft::File(_)) => Err(io::Error::other("a draft of another place")),
        }
    }

    /// Where a blob lies that was found at the start.
    pub fn stored(&self, id: BlobId) -> Option<Stored> {
        match self {
            Place::Folder(folder, _) => Some(Stored::File(folder.join(id.to_string()))),
            Place::Slots(_) => None,
        }
    }
}

/// A file that has no name, and that nobody else can open.
fn unlinked_file(folder: &Path) -> io::Result<File> {
    let name = format!("sidebike-blobs-{}-{:x}", std::process::id(), random());
    let path = folder.join(name);
    let file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    fs::remove_file(&path)?;
    // Where space cannot be given back, the next blob of a slot would change what sockets still have of the one before.
    give_back(&file, 0, 1)?;
    Ok(file)
}

/// Gives the space of a part of a file back. What sockets have of it stays as it was.
fn give_back(file: &File, at: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, at, bytes)?)
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

impl Slots {
    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>) -> io::Result<Arc<Slot>> {
        let mut taken = self.taken();
        let number = match taken.free.pop() {
            Some(number) => number,
            None if (taken.next + 1) * self.slot_bytes > MAX_FILE_BYTES => {
                return Err(io::ErrorKind::StorageFull.into());
            }
            None => {
                taken.next += 1;
                taken.next - 1
            }
        };
        Ok(Arc::new(Slot {
            slots: self.clone(),
            number,
        }))
    }
}

impl Slot {
    fn base(&self) -> u64 {
        self.number * self.slots.slot_bytes
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (slots, number, base) = (self.slots.clone(), self.number, self.base());
        in_background(
            move || match give_back(&slots.file, base, slots.slot_bytes) {
                Ok(()) => slots.taken().free.push(number),
                Err(why) => warn!("the space of a file is not given back: {why}"),
            },
        );
    }
}

impl Stored {
    /// The file that has it, and where it begins there.
    pub fn open(&self) -> io::Result<(Arc<File>, u64)> {
        match self {
            Stored::File(path) => Ok((Arc::new(File::open(path)?), 0)),
            Stored::Slot(slot) => Ok((slot.slots.file.clone(), slot.base())),
        }
    }

    /// Removes it; readers that have begun read to its end.
    pub fn remove(self) {
        if let Stored::File(path) = self
            && let Err(why) = fs::remove_file(&path)
        {
            warn!("{} cannot be removed: {why}", path.display());
        }
    }
}

impl Draft {
    /// Reads bytes that were written.
    pub fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        match self {
            Draft::File(draft) => draft.file.read_exact_at(to, at),
            Draft::Slot(slot) => slot.slots.file.read_exact_at(to, slot.base() + at),
        }
    }

    /// Writes bytes at a place within the blob.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Draft::File(draft) => draft.file.write_all_at(bytes, at),
            Draft::Slot(slot) if at + bytes.len() as u64 <= slot.slots.slot_bytes => {
                slot.slots.file.write_all_at(bytes, slot.base() + at)
            }
            Draft::Slot(_) => Err(io::ErrorKind::FileTooLarge.into()),
        }
    }
}

impl Drop for DraftFile {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let path = std::mem::take(&mut self.path);
        in_background(move || {
            if let Err(why) = fs::remove_file(&path) {
                warn!("{} cannot be removed: {why}", path.display());
            }
        });
    }
}

/// A connection that breaks off drops what it has written; its worker must not wait for the disk.
fn in_background(work: impl FnOnce() + Send + Clone + 'static) {
    if start_thread("tidy", work.clone()).is_err() {
        work();
    }
}
