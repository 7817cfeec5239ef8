//! The script that a task brings along: `detail.script`.
//!
//! It is handed over as a file in memory, which the command has open and which is named by /proc. So nothing is written
//! to a disk, and nothing is left behind. Where the system has no such files, or forbids to execute them, a temporary
//! file takes its place: without a name if there is /proc, else until the command has ended, as nobody can tell when
//! its interpreter opens it for the last time. If the agent is killed meanwhile, the guard removes it.

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Access, MemfdFlags, Mode, OFlags, access, fchmod, fchown, memfd_create, open};
use rustix::fs::{Gid, Uid};
use rustix::io::{Errno, FdFlags, fcntl_setfd, write};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a temporary file may be, beside `TMPDIR`: in memory first. The next one is taken where one cannot be written, or
/// nothing there may be executed.
const FOLDERS: [&str; 3] = ["/dev/shm", "/tmp", "/var/tmp"];

/// A script that a command is to run.
#[derive(Debug)]
pub struct Script {
    place: Place,
    /// Its first line names an interpreter.
    pub has_interpreter: bool,
}

#[derive(Debug)]
enum Place {
    /// A file without a name, which the command gets open.
    Descriptor(OwnedFd),
    File(TemporaryFile),
}

/// A script as a file with a name, removed when it is dropped.
#[derive(Debug)]
pub struct TemporaryFile(PathBuf);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // Without it there is nothing to remove.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl TemporaryFile {
    /// Whether this is its path.
    pub fn is_at(&self, path: &Path) -> bool {
        self.0 == path
    }
}

impl Script {
    /// Keeps a script until its command has started. `key` is that of the attempt, `owner` the user the command runs as,
    /// if it is another one. The error is the reason why that is impossible here.
    pub fn new(text: &str, key: &str, owner: Option<(Uid, Gid)>) -> Result<Script, String> {
        let has_interpreter = text.starts_with("#!");
        let place = in_memory(text.as_bytes(), has_interpreter).or_else(|in_memory| {
            in_file(text.as_bytes(), has_interpreter, key, owner).map_err(|in_file| {
                format!(
                    "detail.script: this machine can hand over a script neither in memory, which takes /proc and memfd_create ({in_memory}), nor as a temporary file ({in_file}); pass it as standard input to its interpreter"
                )
            })
        })?;
        Ok(Script {
            place,
            has_interpreter,
        })
    }

    /// Its path in a process that it was handed over to.
    pub fn path(&self) -> PathBuf {
        match &self.place {
            Place::Descriptor(file) => path_of(file),
            Place::File(file) => file.0.clone(),
        }
    }

    /// Has a command get the script. No other command gets it. If it is a file, that must be kept until the command
    /// has ended.
    #[allow(
        unsafe_code,
        reason = "std can hand over only the three standard streams"
    )]
    pub fn hand_over(self, command: &mut Command) -> Option<TemporaryFile> {
        let file = match self.place {
            Place::Descriptor(file) => file,
            Place::File(file) => return Some(file),
        };
        // SAFETY: between fork and exec only this system call is made; it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || Ok(fcntl_setfd(file.as_fd(), FdFlags::empty())?));
        }
        None
    }
}

/// Whether this is the path of a script that was handed over without a name.
pub fn is_descriptor(path: &Path) -> bool {
    path.starts_with("/proc/self/fd")
}

/// Removes the file that a script of an attempt may have left, because its agent was killed.
pub fn remove_file_of(key: &str) {
    for folder in folders() {
        let _ = std::fs::remove_file(folder.join(file_name(key)));
    }
}

fn path_of(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn in_memory(bytes: &[u8], is_executed: bool) -> io::Result<Place> {
    // A system may be set up so that files in memory may be executed only when they are made for that, or not at all.
    let purpose = match is_executed {
        true => MemfdFlags::EXEC,
        false => MemfdFlags::NOEXEC_SEAL,
    };
    let create = |flags| memfd_create("script", MemfdFlags::CLOEXEC | flags);
    let writable = match create(purpose) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => create(MemfdFlags::empty()),
        other => other,
    }?;
    write_all(&writable, bytes)?;
    // A file that is open for writing cannot be executed.
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(Place::Descriptor(open(
        path_of(&writable),
        read,
        Mode::empty(),
    )?))
}

/// The error names each folder that was tried.
fn in_file(
    bytes: &[u8],
    is_executed: bool,
    key: &str,
    owner: Option<(Uid, Gid)>,
) -> Result<Place, String> {
    let mut reasons = Vec::new();
    for folder in folders() {
        let path = folder.join(file_name(key));
        match in_file_at(path, bytes, is_executed, owner) {
            Ok(place) => return Ok(place),
            Err(why) => reasons.push(format!("{}: {why}", folder.display())),
        }
    }
    Err(reasons.join("; "))
}

fn in_file_at(
    path: PathBuf,
    bytes: &[u8],
    is_executed: bool,
    owner: Option<(Uid, Gid)>,
) -> io::Result<Place> {
    // Others may write to the folder: neither their files nor their links are taken.
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let writable = open(&path, create | OFlags::CLOEXEC, Mode::RWXU)?;
    let file = TemporaryFile(path);
    if let Some((user, group)) = owner {
        fchown(&writable, Some(user), Some(group))?;
    }
    fchmod(&writable, Mode::RWXU)?;
    write_all(&writable, bytes)?;
    // A file that is open for writing cannot be executed.
    drop(writable);
    if is_executed {
        access(&file.0, Access::EXEC_OK)?;
    }
    let readable = open(&file.0, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(match path_of(&readable).exists() {
        true => Place::Descriptor(readable),
        false => Place::File(file),
    })
}

fn write_all(file: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match write(file, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
    Ok(())
}

/// Where a temporary file may be.
fn folders() -> impl Iterator<Item = PathBuf> {
    let [memory, others @ ..] = FOLDERS;
    let own = std::env::var_os("TMPDIR").map(PathBuf::from);
    let own = own.filter(|folder| folder.is_absolute());
    [PathBuf::from(memory)]
        .into_iter()
        .chain(own)
        .chain(others.map(PathBuf::from))
}

fn file_name(key: &str) -> String {
    format!("sidebike-script-{key}")
}
