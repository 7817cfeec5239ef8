//! The audit: one JSON line for each call that changes something, also if it was refused.

use super::access::Caller;
use crate::config::AuditTarget;
use crate::core::{Plan, Spec, Task};
use crate::server::http::Request;
use crate::wire::sweep::Swept;
use log::{Level, info, log_enabled, warn};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

/// The longest command in a line, in bytes: enough to recognize it; a script is cut.
const MAX_COMMAND_BYTES: usize = 4 * 1024;
/// The longest method and path in a line, in bytes: a path with the longest name of a task fits.
const MAX_CALL_BYTES: usize = 512;
/// Room for a line of ordinary size, in bytes.
const USUAL_BYTES: usize = 2 << 10;
/// The log target of the lines, if they go to the log.
const LOG_TARGET: &str = "sidebike::audit";
/// Machines named in a line; `matched` has their number.
const MAX_MACHINES: usize = 100;
/// How long the server waits at its end for lines that are being written.
const SETTLE: Duration = Duration::from_secs(5);

/// What a handler changed, if it got so far.
#[derive(Debug, Clone, Default)]
pub struct Change(What);

#[derive(Debug, Clone, Default)]
enum What {
    #[default]
    Nothing,
    /// These tasks; a line for each.
    Tasks(Vec<Changed>),
    /// The tasks that a filter meant.
    Filtered(Arc<Filtered>),
    /// So many machines, of which these are the first.
    Machines(u32, Vec<Arc<str>>),
    /// The suspension of these machines, for this reason.
    Suspension(Box<str>, Box<str>),
    /// What the path names is this from now on, and the command of a schedule.
    Set(Box<str>, Option<Box<str>>),
    /// A file.
    Blob(Arc<ChangedBlob>),
}

/// What a line says of a file.
#[derive(Debug)]
struct ChangedBlob {
    sha256: String,
    bytes: u64,
}

/// What a call with a filter has done, once it has.
#[derive(Debug)]
struct Filtered {
    filter: String,
    done: OnceLock<(u32, Vec<String>)>,
}

/// Notes what a call with a filter has done.
pub struct FilteredChange(Arc<Filtered>);

impl FilteredChange {
    /// It has done this.
    pub fn is(&self, swept: &Swept) {
        let ids = swept
            .shown
            .iter()
            .map(|task| task.rerun.as_ref().unwrap_or(&task.id));
        // It is noted once.
        let _ = self.0.done.set((swept.tasks, ids.cloned().collect()));
    }
}

/// What a line says of a task. Not the task itself: a copy that is kept would double its memory with its next change.
#[derive(Debug, Clone)]
pub struct Changed {
    task: Arc<str>,
    spec: Arc<Spec>,
    matched: u32,
    machines: Vec<Arc<str>>,
}

impl Change {
    /// A change of this file, which has so many bytes; 0 where that says nothing.
    pub fn of_blob(sha256: &str, bytes: u64) -> Self {
        let sha256 = sha256.to_owned();
        Change(What::Blob(Arc::new(ChangedBlob { sha256, bytes })))
    }

    /// A change of this task.
    pub fn of(task: &Task) -> Self {
        let mut machines: Vec<Arc<str>> = task.labels().take(MAX_MACHINES).cloned().collect();
        machines.dedup();
        Change(What::Tasks(vec![Changed {
            task: task.id.clone(),
            spec: task.spec.clone(),
            matched: task.matched(),
            machines,
        }]))
    }

    /// A change of these tasks.
    pub fn of_all(tasks: &[Task]) -> Self {
        let changed = tasks.iter().flat_map(|task| match Change::of(task).0 {
            What::Tasks(tasks) => tasks,
            _ => Vec::new(),
        });
        Change(What::Tasks(changed.collect()))
    }

    /// A change of what a filter means, which is about to be made.
    pub fn later(filter: String) -> (Self, FilteredChange) {
        let filtered = Arc::new(Filtered {
            filter,
            done: OnceLock::new(),
        });
        let change = Change(What::Filtered(filtered.clone()));
        (change, FilteredChange(filtered))
    }

    /// A change of machines with these labels.
    pub fn of_machines<'a>(labels: impl ExactSizeIterator<Item = &'a str>) -> Self {
        let number = labels.len() as u32;
        let labels = labels.take(MAX_MACHINES).map(Arc::from).collect();
        Change(What::Machines(number, labels))
    }

    /// The limit that the path names is this from now on, in words.
    pub fn of_limit(set: &str) -> Self {
        Change(What::Set(set.into(), None))
    }

    /// The schedule that the path names is this from now on.
    pub fn of_schedule(plan: &Plan) -> Self {
        Change(What::Set(
            plan.times_in_words().into(),
            Some(command(&plan.spec).into()),
        ))
    }

    /// A change of the suspension with this pattern.
    pub fn of_suspension(pattern: &str, reason: &str) -> Self {
        let cut = |text: &str| text[..text.floor_char_boundary(MAX_COMMAND_BYTES)].into();
        Change(What::Suspension(cut(pattern), cut(reason)))
    }
}

/// The command of a task, cut.
fn command(spec: &Spec) -> String {
    let detail = &spec.detail;
    let line = detail.command.as_slice();
    let argv = detail.argv.as_deref().unwrap_or_default();
    let (script, args) = (detail.script.iter(), detail.script_args.iter().flatten());
    let bytes = spec.detail_bytes() + argv.len();
    let mut words = String::with_capacity(bytes.min(MAX_COMMAND_BYTES));
    for word in line.iter().chain(argv).chain(script).chain(args) {
        if !words.is_empty() {
            words.push(' ');
        }
        let room = MAX_COMMAND_BYTES.saturating_sub(words.len());
        if room == 0 {
            break;
        }
        words.push_str(&word[..word.floor_char_boundary(room)]);
    }
    words
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    token: &'a str,
    peer: Option<IpAddr>,
    call: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    matched: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    machines: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// What a call with a filter meant, how many tasks it has changed, and the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tasks: Vec<&'a str>,
    /// What the limit or schedule that the call names is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<&'a str>,
    #[serde(rename = "machinePattern", skip_serializing_if = "Option::is_none")]
    machine_pattern: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// A call, as its line tells of it once its status is known.
#[derive(Debug)]
pub struct Record {
    time: SystemTime,
    token: Option<Box<str>>,
    peer: Option<IpAddr>,
    call: Box<str>,
    change: Change,
}

impl Record {
    /// Its lines: one, or one for each task of a list.
    pub fn lines(&self, status: u16) -> Vec<String> {
        let lines = match &self.change.0 {
            What::Tasks(tasks) => tasks
                .iter()
                .map(|task| self.line(status, Some(task)))
                .collect(),
            _ => vec![self.line(status, None)],
        };
        lines.into_iter().flatten().collect()
    }

    fn line(&self, status: u16, changed: Option<&Changed>) -> Option<String> {
        let (mut filtered, mut suspension, mut blob) = (None, None, None);
        let mut set = None;
        let mut machines = changed.map_or(&[][..], |changed| &changed.machines);
        let mut matched = changed.map(|changed| changed.matched);
        match &self.change.0 {
            What::Nothing | What::Tasks(_) => {}
            What::Blob(changed) => blob = Some(&**changed),
            What::Filtered(change) => filtered = Some(change),
            What::Machines(number, labels) => (machines, matched) = (labels, Some(*number)),
            What::Set(words, command) => set = Some((&**words, command.as_deref())),
            What::Suspension(pattern, reason) => suspension = Some((&**pattern, &**reason)),
        }
        let done = filtered.and_then(|filtered| filtered.done.get());
        let line = Line {
            time: humantime::format_rfc3339_millis(self.time).to_string(),
            token: self.token.as_deref().unwrap_or("none"),
            peer: self.peer,
            call: &self.call,
            status,
            task: changed.map(|changed| &*changed.task),
            matched,
            machines: machines.iter().map(|label| &**label).collect(),
            command: { changed.map(|changed| command(&changed.spec)) }
                .or_else(|| set.and_then(|(_, command)| command.map(str::to_owned))),
            user: changed.and_then(|changed| changed.spec.detail.user.as_deref()),
            files: { changed.iter() }
                .flat_map(|changed| changed.spec.files.as_deref())
                .flat_map(|files| files.named().map(String::as_str))
                .collect(),
            sha256: blob.map(|blob: &ChangedBlob| blob.sha256.as_str()),
            bytes: blob.map(|blob| blob.bytes).filter(|bytes| *bytes > 0),
            filter: filtered
                .map(|filtered| &*filtered.filter)
                .filter(|filter| !filter.is_empty()),
            changed: done.map(|(count, _)| *count),
            tasks: done.map_or_else(Vec::new, |(_, ids)| {
                ids.iter().map(String::as_str).collect()
            }),
            set: set.map(|(words, _)| words),
            machine_pattern: suspension.map(|(pattern, _)| pattern),
            reason: suspension
                .map(|(_, reason)| reason)
                .filter(|it| !it.is_empty()),
        };
        let mut text = Vec::with_capacity(USUAL_BYTES);
        serde_json::to_writer(&mut text, &line).ok()?;
        String::from_utf8(text).ok()
    }
}

/// Where the lines go.
#[derive(Debug)]
pub struct Audit {
    file: Mutex<Option<File>>,
    target: AuditTarget,
    pending: Arc<PendingLines>,
}

/// How many lines other threads are about to write.
#[derive(Debug, Default)]
struct PendingLines {
    count: Mutex<usize>,
    written: Condvar,
}

/// A line that is about to be written, until it is dropped.
#[derive(Debug)]
pub struct PendingLine(Arc<PendingLines>);

impl Drop for PendingLine {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.written.notify_all();
    }
}

impl Audit {
    /// Opens the file, if the lines go to one. The error is one line for the user.
    pub fn open(target: AuditTarget) -> Result<Self, String> {
        let file = match &target {
            AuditTarget::Log => None,
            AuditTarget::File(path) => Some(open(path)?),
        };
        Ok(Audit {
            file: Mutex::new(file),
            target,
            pending: Arc::default(),
        })
    }

    /// Whether lines go to a file.
    pub fn has_file(&self) -> bool {
        matches!(self.target, AuditTarget::File(_))
    }

    /// Opens the file again: log rotation may have moved it away.
    pub fn reopen(&self) {
        if let AuditTarget::File(path) = &self.target {
            match open(path) {
                Ok(file) => *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file),
                Err(why) => warn!("{why}; the file in use stays in use"),
            }
        }
    }

    /// What the line of a call will tell; `None` if the log does not show it.
    pub fn record(&self, caller: &Caller, request: &Request, change: &Change) -> Option<Record> {
        if !self.has_file() && !log_enabled!(target: LOG_TARGET, Level::Info) {
            return None;
        }
        let mut call = format!("{} /{}", request.method, request.path.join("/"));
        call.truncate(call.floor_char_boundary(MAX_CALL_BYTES));
        Some(Record {
            time: SystemTime::now(),
            token: caller.name.as_deref().map(Box::from),
            peer: request.peer,
            call: call.into(),
            change: change.clone(),
        })
    }

    /// What the line of a firing tells: in the name of the token that made the schedule.
    pub fn firing(&self, token: Option<&str>, call: &str, change: &Change) -> Option<Record> {
        if !self.has_file() && !log_enabled!(target: LOG_TARGET, Level::Info) {
            return None;
        }
        Some(Record {
            time: SystemTime::now(),
            token: token.map(Box::from),
            peer: None,
            call: call.into(),
            change: change.clone(),
        })
    }

    /// Notes that another thread is about to write a line.
    pub fn pending(&self) -> PendingLine {
        let mut count = { self.pending.count.lock() }.unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        PendingLine(self.pending.clone())
    }

    /// Waits until the lines are written that other threads are about to write, but no longer than [`SETTLE`].
    pub fn settle(&self) {
        let count = { self.pending.count.lock() }.unwrap_or_else(PoisonError::into_inner);
        let is_pending = |count: &mut usize| *count > 0;
        drop((self.pending.written).wait_timeout_while(count, SETTLE, is_pending));
    }

    /// Writes a line. With a file this may wait for the disk.
    pub fn write(&self, mut text: String) {
        if !self.has_file() {
            return info!(target: LOG_TARGET, "{text}");
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        text.push('\n');
        if let Some(file) = &mut *file
            && let Err(why) = file.write_all(text.as_bytes())
        {
            warn!(
                "the audit file cannot be written: {why}; {}",
                text.trim_end()
            );
        }
    }
}

fn open(path: &Path) -> Result<File, String> {
    // Commands may contain secrets: only the server's user may read the file.
    let opened = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path);
    opened.map_err(|why| format!("--audit: cannot open {}: {why}", path.display()))
}
