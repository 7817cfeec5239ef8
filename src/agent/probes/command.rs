//! The processes of one run of a `command` or `argv` probe: its result at its end or when its time is over, and after
//! that the end of everything that it started.

use super::Ended;
use crate::agent::attempt::lock;
use crate::agent::processes::attempt_processes::AttemptProcesses;
use crate::agent::processes::guard::Guard;
use crate::agent::processes::process_table::ProcessTable;
use crate::agent::processes::termination::{Progress, Termination};
use crate::agent::undo::run::{Process, READ_BYTES};
use crate::wire::duration::TimeSpan;
use crate::wire::probe::MAX_OUTPUT_BYTES;
use log::warn;
use std::collections::VecDeque;
use std::process::Child;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The time from TERM to KILL of what a probe has started.
const KILL_AFTER: Duration = Duration::from_secs(1);
/// How often it is looked at least whether it has ended.
const LOOK: Duration = Duration::from_secs(1);
/// How long the pipe is read once the process has ended while another process holds it open.
const LAST_OUTPUT: Duration = Duration::from_millis(50);

/// Processes that survived KILL. They are reaped when they end.
static UNREAPED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// A probe that was started.
pub struct StartedProbe {
    /// Its process.
    pub process: Process,
    /// What all of its processes carry in their environment.
    pub key: String,
}

/// Waits until a probe has ended, or until its time is over, and says how it went. Then ends all that is left of it.
pub fn supervise(
    started: StartedProbe,
    guard: &Guard,
    timeout: TimeSpan,
    deadline: Instant,
    report: impl FnOnce(Ended),
) {
    let StartedProbe { mut process, key } = started;
    guard.set_group(&key, process.group());
    lock(&UNREAPED).retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    let mut output = VecDeque::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut read_until: Option<Instant> = None;
    let why = loop {
        let due = read_until.unwrap_or(deadline);
        process.wait(due.saturating_duration_since(Instant::now()).min(LOOK));
        process.read_once(&mut buffer, &mut output);
        let now = Instant::now();
        if process.notice_end() {
            read_until = Some(now + LAST_OUTPUT);
        }
        match read_until {
            Some(until) if !process.is_writable() || now >= until => {
                process.read_rest(&mut buffer, &mut output);
                break process.failure();
            }
            None if now >= deadline => {
                process.read_rest(&mut buffer, &mut output);
                break Some(format!("timed out after {timeout}"));
            }
            _ => {}
        }
    };
    let mut processes = AttemptProcesses::new(key.clone(), process.group());
    let mut termination = Termination::new(Instant::now(), KILL_AFTER);
    // TERM before anything that may wait.
    let mut progress = termination.step(Instant::now(), &mut processes);
    report(Ended {
        why,
        output: text(&mut output),
    });
    while matches!(progress, Progress::Pending) {
        let due = termination.next_step();
        process.wait(due.saturating_duration_since(Instant::now()).min(LOOK));
        process.read_once(&mut buffer, &mut output);
        output.clear();
        if process.notice_end() {
            termination.look_now(Instant::now());
            if !ProcessTable::is_available() {
                // Without /proc a zombie cannot be told from a live process.
                process.reap();
            }
        }
        progress = termination.step(Instant::now(), &mut processes);
    }
    if matches!(progress, Progress::Survived) {
        let living = processes.describe_living().unwrap_or_default();
        warn!("a probe survived KILL: {living}");
    }
    guard.remove(&key);
    lock(&UNREAPED).extend(process.give_up());
}

/// The end of the output as text.
fn text(output: &mut VecDeque<u8>) -> String {
    let excess = output.len().saturating_sub(MAX_OUTPUT_BYTES);
    output.drain(..excess);
    let mut text = String::from_utf8_lossy(output.make_contiguous()).into_owned();
    // What is no UTF-8 is longer after it was replaced.
    let excess = text.len().saturating_sub(MAX_OUTPUT_BYTES);
    text.drain(..text.ceil_char_boundary(excess));
    text
}
