//! The script that a task brings along: `detail.script`.
//!
//! It is handed over as a file in memory, which the command has open and which is named by /proc. So nothing is written
//! to a disk, and nothing is left behind.

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::{FdFlags, fcntl_setfd, write};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// A script in memory.
#[derive(Debug)]
pub struct Script {
    file: OwnedFd,
    /// Its first line names an interpreter.
    pub has_interpreter: bool,
}

impl Script {
    /// Keeps a script until its command has started. The error is the reason why that is impossible here.
    pub fn new(text: &str) -> Result<Script, String> {
        let file = in_memory(text.as_bytes()).map_err(|why| {
            format!(
                "detail.script: this machine cannot hand over a script without a file, which takes /proc and memfd_create ({why}); pass it as standard input to its interpreter"
            )
        })?;
        Ok(Script {
            file,
            has_interpreter: text.starts_with("#!"),
        })
    }

    /// Its path in a process that has it open.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Has a command get the script open. No other command gets it.
    #[allow(
        unsafe_code,
        reason = "std can hand over only the three standard streams"
    )]
    pub fn hand_over(self, command: &mut Command) {
        let file = self.file;
        // SAFETY: between fork and exec only this system call is made; it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || Ok(fcntl_setfd(file.as_fd(), FdFlags::empty())?));
        }
    }
}

fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let writable = memfd_create("script", MemfdFlags::CLOEXEC)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = write(&writable, rest)?;
        rest = &rest[written..];
    }
    // A file that is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", writable.as_raw_fd());
    Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
