//! The files beside the program: the new one, the old one, and the marker that says what is under way.
//!
//! Agents that share a program share them, too. So the marker names the process that it speaks of, and is changed under
//! a lock of the folder.

use crate::agent::processes::process_table::Process;
use crate::wire::agent::AttemptId;
use crate::wire::duration::TimeSpan;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// The image that this process runs, whatever lies under its name by now.
pub const OWN_IMAGE: &str = "/proc/self/exe";
/// The most images that are remembered as failed; the oldest are forgotten.
const MAX_REFUSED: usize = 32;
/// The longest marker, in bytes.
const MAX_BYTES: u64 = 256 << 10;
/// A marker of another host that was not touched for so long is of a container that is gone.
const FOREIGN_AGE: Duration = Duration::from_secs(600);

/// Where the program lies, and what is beside it.
#[derive(Debug)]
pub struct Files {
    /// The program that is started next.
    pub program: PathBuf,
}

impl Files {
    /// Those of this process, as they were at the first call. None if its file was gone by then, or cannot be named.
    pub fn of_this_process() -> Option<&'static Files> {
        static OWN: OnceLock<Option<Files>> = OnceLock::new();
        let found = || {
            let program = std::env::current_exe().ok()?;
            program.is_file().then_some(Files { program })
        };
        OWN.get_or_init(found).as_ref()
    }

    fn beside(&self, end: &str) -> PathBuf {
        let mut name = OsString::from(&self.program);
        name.push(end);
        name.into()
    }

    /// The new program until it gets its name. Each process has its own.
    pub fn new_program(&self) -> PathBuf {
        self.beside(&format!(".new.{}", std::process::id()))
    }

    /// The program before the last update.
    pub fn old_program(&self) -> PathBuf {
        self.beside(".old")
    }

    /// The marker.
    pub fn marker(&self) -> PathBuf {
        self.beside(".update")
    }

    /// Excludes other agents as long as the file is open. Where the file system has no locks, nothing excludes them.
    fn lock(&self) -> Result<File, String> {
        let folder = self.program.parent().unwrap_or(Path::new("/"));
        let file = File::open(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
        let _ = rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive));
        Ok(file)
    }
}

/// A process, as it can be found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessName {
    host: String,
    pid: i32,
    /// When it was started, in clock ticks since the machine's: it stays when another program is executed.
    start: u64,
}

impl ProcessName {
    /// This one.
    pub fn own() -> Self {
        let pid = std::process::id() as i32;
        ProcessName {
            host: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            pid,
            start: Process::read(pid).map_or(0, |own| own.start),
        }
    }

    fn lives(&self) -> bool {
        let now = Process::read(self.pid);
        now.is_some_and(|now| now.start == self.start && !now.is_zombie)
    }
}

/// How far an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// The new program has its name, and is executed next.
    Starting,
    /// It has started, and no server has answered a poll of it.
    Probation,
    /// It has failed: the old one gets its name back, and is executed next.
    Returning,
}

/// An update that has not come to its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// How far it is.
    pub step: Step,
    /// The hash of the new program.
    pub sha256: String,
    /// Its version.
    pub version: String,
    /// The version before.
    pub from: String,
    /// How long it has until its first complete poll.
    pub probation: TimeSpan,
    /// The process that it takes place in.
    pub process: ProcessName,
    /// How many programs have been started since.
    pub starts: u32,
    /// The instance of the agent.
    pub instance: String,
    /// The number of its latest poll.
    pub seq: u64,
    /// How many attempts it has accepted.
    pub accepted: u64,
    /// The attempt that it is done for.
    pub attempt: AttemptId,
    /// When the process was given to the new program, in milliseconds since the machine's start.
    pub began_ms: u64,
    /// Why the new program has failed.
    pub why: String,
}

/// An image that has failed here.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Refused {
    sha256: String,
    why: String,
}

/// What the marker says. There is no file if that is nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Marker {
    #[serde(default)]
    pending: Option<Pending>,
    #[serde(default)]
    refused: Vec<Refused>,
}

/// Whom what is pending belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum Whose {
    /// This process.
    Own,
    /// Another one that lives.
    Other,
    /// One that is gone.
    Gone,
}

/// Why a program was not installed.
pub enum Busy {
    /// Another agent is on probation with this file.
    Other,
    /// It cannot be done, for this reason.
    Failed(String),
}

impl Marker {
    /// Reads it. One that is not there, or not understood, says nothing.
    pub fn read(files: &Files) -> Self {
        let read = || {
            use std::io::Read;
            let mut bytes = Vec::new();
            let file = File::open(files.marker()).ok()?;
            file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
            serde_json::from_slice(&bytes).ok()
        };
        read().unwrap_or_default()
    }

    /// Writes it, so that it is there whole or as before, also after a crash of the machine.
    pub fn write(&self, files: &Files) -> Result<(), String> {
        let path = files.marker();
        let failed = |why: std::io::Error| format!("{} cannot be written: {why}", path.display());
        if self.pending.is_none() && self.refused.is_empty() {
            return match fs::remove_file(&path) {
                Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(failed(why)),
                _ => Ok(()),
            };
        }
        let json = serde_json::to_vec(self).map_err(|why| why.to_string())?;
        let new = files.beside(&format!(".update.{}", std::process::id()));
        let mut file = File::create(&new).map_err(failed)?;
        let written = file.write_all(&json).and_then(|()| file.sync_all());
        let renamed = written.and_then(|()| fs::rename(&new, &path));
        if renamed.is_err() {
            let _ = fs::remove_file(&new);
        }
        renamed.map_err(failed)
    }

    /// What is pending, and whom it belongs to.
    pub fn pending(&mut self, files: &Files) -> Option<(Whose, &mut Pending)> {
        let pending = self.pending.as_mut()?;
        let own = ProcessName::own();
        let whose = if pending.process == own {
            Whose::Own
        } else if pending.process.host != own.host {
            // Process numbers of another container mean nothing here.
            let touched = fs::metadata(files.marker()).and_then(|found| found.modified());
            let age = touched.ok().and_then(|touched| touched.elapsed().ok());
            match age.is_some_and(|age| age > FOREIGN_AGE) {
                true => Whose::Gone,
                false => Whose::Other,
            }
        } else if pending.process.lives() {
            Whose::Other
        } else {
            Whose::Gone
        };
        Some((whose, pending))
    }

    /// Why an image has failed here, if it has.
    pub fn refused(&self, sha256: &str) -> Option<&str> {
        let refused = self.refused.iter().find(|it| it.sha256 == sha256);
        refused.map(|it| &*it.why)
    }

    /// Nothing is pending any more.
    pub fn settle(&mut self) {
        self.pending = None;
    }

    /// Remembers that what is pending has failed.
    pub fn fail(&mut self, why: &str) {
        let Some(pending) = &mut self.pending else {
            return;
        };
        pending.step = Step::Returning;
        pending.process = ProcessName::own();
        pending.why = why.to_owned();
        let sha256 = pending.sha256.clone();
        self.refused.retain(|it| it.sha256 != sha256);
        if self.refused.len() >= MAX_REFUSED {
            self.refused.remove(0);
        }
        self.refused.push(Refused {
            sha256,
            why: why.to_owned(),
        });
    }
}

/// Writes the marker, and gives the new program the name of the old one.
pub fn install(files: &Files, new: &Path, pending: Pending) -> Result<(), Busy> {
    let lock = files.lock().map_err(Busy::Failed)?;
    let mut marker = Marker::read(files);
    if let Some((Whose::Other, _)) = marker.pending(files) {
        return Err(Busy::Other);
    }
    marker.pending = Some(pending);
    marker.write(files).map_err(Busy::Failed)?;
    if let Err(why) = fs::rename(new, &files.program) {
        marker.settle();
        // The next start would find nothing to put back.
        let _ = marker.write(files);
        return Err(Busy::Failed(format!(
            "{} cannot be replaced: {why}",
            files.program.display()
        )));
    }
    // Not every file system can.
    let _ = lock.sync_all();
    Ok(())
}

/// Whether another agent is on probation with this program.
pub fn is_busy() -> bool {
    let Some(files) = Files::of_this_process() else {
        return false;
    };
    let mut marker = Marker::read(files);
    matches!(marker.pending(files), Some((Whose::Other, _)))
}

/// Puts the old program back for a process that still runs it.
pub fn put_back(files: &Files, why: &str) -> Result<(), String> {
    change(files, |marker| {
        marker.fail(why);
        rename_back(files)?;
        marker.settle();
        Ok(())
    })
}

/// Gives the old program its name back. It may have it already: something was killed in between.
pub fn rename_back(files: &Files) -> Result<(), String> {
    let old = files.old_program();
    match fs::rename(&old, &files.program) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(format!(
            "{} cannot be renamed to {}: {why}",
            old.display(),
            files.program.display()
        )),
        _ => Ok(()),
    }
}

/// Changes the marker under the lock. It is written also if the change says that something else went wrong.
pub fn change<T>(
    files: &Files,
    change: impl FnOnce(&mut Marker) -> Result<T, String>,
) -> Result<T, String> {
    let _lock = files.lock()?;
    let mut marker = Marker::read(files);
    let changed = change(&mut marker);
    let written = marker.write(files);
    changed.and_then(|value| written.map(|()| value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::backoff::random_id;

    fn pending(process: ProcessName) -> Pending {
        Pending {
            step: Step::Starting,
            sha256: "ab".into(),
            version: "2.0.0".into(),
            from: "1.0.0".into(),
            probation: TimeSpan::from_secs(5),
            process,
            starts: 0,
            instance: "i".into(),
            seq: 7,
            accepted: 1,
            attempt: AttemptId {
                execution: "x.1".into(),
                attempt: 1,
            },
            began_ms: 0,
            why: String::new(),
        }
    }

    fn with_folder(test: impl FnOnce(&Files)) {
        let folder = std::env::temp_dir().join(format!("sidebike-{}", random_id().unwrap()));
        fs::create_dir(&folder).unwrap();
        let files = Files {
            program: folder.join("sidebike"),
        };
        test(&files);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_program_is_installed_and_put_back_and_not_tried_again() {
        with_folder(|files| {
            fs::write(&files.program, "old").unwrap();
            fs::write(files.old_program(), "old").unwrap();
            let new = files.new_program();
            fs::write(&new, "new").unwrap();
            assert!(install(files, &new, pending(ProcessName::own())).is_ok());
            assert_eq!(fs::read(&files.program).unwrap(), b"new");
            let mut marker = Marker::read(files);
            assert_eq!(marker.pending(files).unwrap().0, Whose::Own);
            assert_eq!(marker.refused("ab"), None);
            put_back(files, "it is bad").unwrap();
            assert_eq!(fs::read(&files.program).unwrap(), b"old");
            let mut marker = Marker::read(files);
            assert!(marker.pending(files).is_none());
            assert_eq!(marker.refused("ab"), Some("it is bad"));
        });
    }

    #[test]
    fn what_belongs_to_another_process_is_left_alone_as_long_as_that_lives() {
        with_folder(|files| {
            let new = files.new_program();
            let init = ProcessName {
                pid: 1,
                start: Process::read(1).unwrap().start,
                ..ProcessName::own()
            };
            let gone = ProcessName {
                start: init.start + 1,
                ..init.clone()
            };
            fs::write(&new, "new").unwrap();
            assert!(install(files, &new, pending(init)).is_ok());
            let again = install(files, &new, pending(ProcessName::own()));
            assert!(matches!(again, Err(Busy::Other)));
            fs::remove_file(files.marker()).unwrap();
            fs::write(&new, "new").unwrap();
            assert!(install(files, &new, pending(gone)).is_ok());
            assert_eq!(Marker::read(files).pending(files).unwrap().0, Whose::Gone);
            // A new program that is gone leaves no marker.
            let own = install(files, &new, pending(ProcessName::own()));
            assert!(matches!(own, Err(Busy::Failed(_))));
            assert!(!files.marker().exists());
        });
    }
}
