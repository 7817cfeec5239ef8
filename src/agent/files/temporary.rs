//! Files that are being written, beside the place where they belong, and those that a killed helper has left.
//!
//! A helper holds a lock on each of its temporary files. When the agent closes the helper's standard input, because the
//! attempt is to stop or because the agent itself is gone, the helper removes them and ends. One that was killed leaves
//! its file: whoever writes into that folder next finds it without a lock, and removes it.

use super::place::explain;
use crate::agent::attempt::lock;
use crate::agent::backoff::random_id;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, openat,
    renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::sync::{Arc, Mutex};

/// How the name of a temporary file begins and ends. Between them are random digits.
const PREFIX: &str = ".sidebike-";
const SUFFIX: &str = ".part";
/// How many names of a folder are looked at for files that were left: the temporary folder of a machine may be large.
const MAX_LOOKED_AT: usize = 10_000;
/// A file without a lock that is younger is left alone, in seconds: it may get its lock in a moment.
const MIN_STALE_AGE: i64 = 60;

/// The temporary files of this process.
static OPEN: Mutex<Vec<(Arc<OwnedFd>, String)>> = Mutex::new(Vec::new());

/// A file that is being written. Removed when it is dropped, unless it has got its name.
#[derive(Debug)]
pub struct Temporary {
    folder: Arc<OwnedFd>,
    name: String,
    /// The file.
    pub file: File,
    is_kept: bool,
}

impl Temporary {
    /// Makes one in a folder, and removes what killed helpers have left there.
    pub fn new(folder: &impl AsFd) -> Result<Self, Errno> {
        remove_stale(folder);
        Temporary::in_looked_at(folder)
    }

    /// Makes one in a folder.
    pub fn in_looked_at(folder: &impl AsFd) -> Result<Self, Errno> {
        let folder = Arc::new(rustix::io::fcntl_dupfd_cloexec(folder, 3)?);
        let digits = random_id().map_err(|_| Errno::IO)?;
        let name = format!("{PREFIX}{digits}{SUFFIX}");
        let mut open = lock(&OPEN);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&*folder, &*name, flags, Mode::RUSR | Mode::WUSR)?;
        // Where a file system has no locks, what is left by a killed helper cannot be told from what is being written,
        // and stays.
        let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
        open.push((Arc::clone(&folder), name.clone()));
        drop(open);
        Ok(Temporary {
            folder,
            name,
            file: file.into(),
            is_kept: false,
        })
    }

    /// Gives it its name, over what has it. With `is_new` that is an error (EEXIST).
    pub fn rename(mut self, name: &OsStr, is_new: bool) -> Result<(), Errno> {
        let mut open = lock(&OPEN);
        let folder = &*self.folder;
        match is_new {
            false => renameat(folder, &*self.name, folder, name)?,
            true => {
                match renameat_with(folder, &*self.name, folder, name, RenameFlags::NOREPLACE) {
                    // Not every file system can.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        rustix::fs::linkat(folder, &*self.name, folder, name, AtFlags::empty())?;
                        let _ = unlinkat(folder, &*self.name, AtFlags::empty());
                    }
                    other => other?,
                }
            }
        }
        self.is_kept = true;
        open.retain(|(_, known)| *known != self.name);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let mut open = lock(&OPEN);
        open.retain(|(_, known)| *known != self.name);
        // Without it there is nothing to remove.
        let _ = unlinkat(&*self.folder, &*self.name, AtFlags::empty());
    }
}

/// Removes the temporary files of this process, and ends it.
pub fn remove_all_and_exit() -> ! {
    // The lock stays taken: no other one is made, and none gets its name.
    let open = lock(&OPEN);
    for (folder, name) in open.iter() {
        let _ = unlinkat(&**folder, &**name, AtFlags::empty());
    }
    std::process::exit(1)
}

/// Removes what killed helpers have left in a folder.
pub fn remove_stale(folder: &impl AsFd) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(listed) = openat(folder, ".", flags, Mode::empty()) else {
        return;
    };
    let Ok(entries) = Dir::read_from(&listed) else {
        return;
    };
    for entry in entries.take(MAX_LOOKED_AT).flatten() {
        let name = entry.file_name();
        if is_temporary(name.to_bytes()) && is_stale(folder, name) {
            // Another one may have removed it.
            let _ = unlinkat(folder, name, AtFlags::empty());
        }
    }
}

fn is_temporary(name: &[u8]) -> bool {
    let digits = name.strip_prefix(PREFIX.as_bytes());
    let digits = digits.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
    digits.is_some_and(|digits| digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit))
}

/// Whether nobody writes it any more. `flock` is asked for last: it would block nobody, but take the lock for a moment.
fn is_stale(folder: &impl AsFd, name: &std::ffi::CStr) -> bool {
    let Ok(found) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
        return false;
    };
    let own = rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_uid != own {
        return false;
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    if now.saturating_sub(found.st_ctime) < MIN_STALE_AGE {
        return false;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat(folder, name, flags, Mode::empty()) else {
        return false;
    };
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Refuses to begin what does not fit: a full file system is a nuisance for everything else on the machine.
pub fn check_space(folder: &impl AsFd, needed: u64) -> Result<(), String> {
    // Some file systems do not say.
    let Ok(found) = rustix::fs::fstatvfs(folder) else {
        return Ok(());
    };
    if found.f_blocks == 0 {
        return Ok(());
    }
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    match needed > free {
        true => Err(format!(
            "no room: it needs {needed} bytes, and {free} are free there"
        )),
        false => Ok(()),
    }
}

/// Has what was written survive a crash of the machine.
pub fn sync(file: &File) -> Result<(), String> {
    file.sync_all()
        .map_err(|why| format!("cannot be written: {why}"))
}

/// The same for the names in a folder. Not every file system can, and a folder that may not be read cannot.
pub fn sync_folder(folder: &impl AsFd) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(folder) = openat(folder, ".", flags, Mode::empty()) {
        let _ = rustix::fs::fsync(&folder);
    }
}

/// The size of an open file.
pub fn size(file: &File) -> Result<u64, String> {
    let found = fstat(file).map_err(|why| explain(why, "cannot be looked at"))?;
    Ok(u64::try_from(found.st_size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_are_temporary() {
        let digits = "0123456789abcdef0123456789abcdef";
        assert!(is_temporary(format!("{PREFIX}{digits}{SUFFIX}").as_bytes()));
        for name in [
            ".sidebike-1.part",
            ".sidebike-.part",
            "x.part",
            &format!("{PREFIX}{digits}"),
        ] {
            assert!(!is_temporary(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_temporary_file_is_removed_unless_it_has_got_its_name() {
        let path =
            std::env::temp_dir().join(format!("sidebike-temporary-{}", random_id().unwrap()));
        std::fs::create_dir(&path).unwrap();
        let folder = File::open(&path).unwrap();
        drop(Temporary::new(&folder).unwrap());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        let first = Temporary::new(&folder).unwrap();
        first.rename(OsStr::new("name"), true).unwrap();
        let second = Temporary::new(&folder).unwrap();
        assert_eq!(second.rename(OsStr::new("name"), true), Err(Errno::EXIST));
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
        // A younger one without a lock is left alone.
        std::fs::write(
            path.join(format!("{PREFIX}{}{SUFFIX}", random_id().unwrap())),
            "x",
        )
        .unwrap();
        remove_stale(&folder);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 2);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
