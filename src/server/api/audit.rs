//! The audit: one JSON line for each call that changes something, also if it was refused.

use crate::config::AuditTarget;
use crate::core::Task;
use crate::server::http::Request;
use log::{Level, info, log_enabled, warn};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

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

/// The task that a handler changed, if it got so far.
#[derive(Debug, Default)]
pub struct Change(Option<Task>);

impl Change {
    /// A change of this task.
    pub fn of(task: &Task) -> Self {
        Change(Some(task.clone()))
    }
}

/// The command of a task, cut.
fn command(task: &Task) -> String {
    let detail = &task.spec.detail;
    let line = detail.command.as_slice();
    let argv = detail.argv.as_deref().unwrap_or_default();
    let (script, args) = (detail.script.iter(), detail.script_args.iter().flatten());
    let bytes = task.spec.detail_bytes() + argv.len();
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
}

/// Where the lines go.
#[derive(Debug)]
pub struct Audit {
    file: Mutex<Option<File>>,
    target: AuditTarget,
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

    /// The line for a call; `None` if the log does not show it.
    pub fn line(
        &self,
        token: Option<&str>,
        request: &Request,
        status: u16,
        change: &Change,
    ) -> Option<String> {
        if !self.has_file() && !log_enabled!(target: LOG_TARGET, Level::Info) {
            return None;
        }
        let mut call = format!("{} /{}", request.method, request.path.join("/"));
        call.truncate(call.floor_char_boundary(MAX_CALL_BYTES));
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let task = change.0.as_ref();
        let mut machines: Vec<&str> = { task.into_iter() }
            .flat_map(|task| task.labels().take(MAX_MACHINES))
            .collect();
        machines.dedup();
        let line = Line {
            time,
            token: token.unwrap_or("none"),
            peer: request.peer,
            call: &call,
            status,
            task: task.map(|task| &*task.id),
            matched: task.map(|task| task.matched()),
            machines,
            command: task.map(command),
            user: task.and_then(|task| task.spec.detail.user.as_deref()),
        };
        let mut text = Vec::with_capacity(USUAL_BYTES);
        serde_json::to_writer(&mut text, &line).ok()?;
        String::from_utf8(text).ok()
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
