//! Starts that do not return: the program, its interpreter or the working folder is on a file system of another machine
//! that does not answer.
//!
//! The kernel lets nobody out of such a call, and the thread that starts the command waits with it. So one thread, which
//! sleeps as long as nothing is being started, looks at the starts that are under way. When the time of one is up, or
//! when it is to stop, its attempt is ended here and its thread is left alone. If that comes back after all, it ends
//! what it has started.

use crate::agent::attempt::{Attempt, Outcome, StopReason, lock};
use crate::wire::duration::TimeSpan;
use crate::wire::task::ExecutionState;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pause between looks while something is being started.
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// After so many looks at nothing the thread sleeps until the next start: it is not woken for each of many small
/// commands.
const QUIET_LOOKS: u32 = 10;
/// A start may take this long, also if it is to stop: a command that is just being started gets its TERM and its grace.
/// A time-out that is shorter is for a command that runs.
const SHORTEST: Duration = Duration::from_secs(1);
/// Starts that were left alone and still hang, in number. Each has a thread and a process.
const MAX_HANGING: usize = 32;
/// The stack of the thread, in bytes: where no other one can be started, it also runs an undo.
pub const STACK_BYTES: usize = 256 * 1024;

/// The starts that are under way.
#[derive(Debug, Default)]
pub struct StartWatch {
    state: Mutex<State>,
    begun: Condvar,
}

#[derive(Debug, Default)]
struct State {
    under_way: HashMap<u64, UnderWay>,
    next: u64,
    /// Starts that were left alone and have not come back.
    hanging: usize,
    /// The thread runs.
    is_running: bool,
    /// The thread waits for the next start.
    is_asleep: bool,
}

#[derive(Debug)]
struct UnderWay {
    attempt: Arc<Attempt>,
    /// The thread that waits for it.
    thread: Pid,
    begun: Instant,
    timeout: Option<(Instant, TimeSpan)>,
}

/// A start that is under way, until it is dropped.
#[derive(Debug)]
pub struct Start<'a> {
    watch: &'a StartWatch,
    number: u64,
}

impl StartWatch {
    /// Begins a start in this thread. `spawn` starts the thread that calls [`StartWatch::look_forever`], if there is
    /// none; without it nobody looks. The error says why nothing may be started.
    pub fn begin(
        &self,
        attempt: &Arc<Attempt>,
        spawn: impl FnOnce() -> io::Result<()>,
    ) -> Result<Start<'_>, String> {
        let mut state = lock(&self.state);
        if state.hanging >= MAX_HANGING {
            return Err(format!(
                "{MAX_HANGING} starts of commands hang on this machine: a file system does not answer"
            ));
        }
        let number = state.next;
        state.next += 1;
        let start = UnderWay {
            attempt: Arc::clone(attempt),
            thread: rustix::thread::gettid(),
            begun: Instant::now(),
            timeout: None,
        };
        state.under_way.insert(number, start);
        if !state.is_running {
            state.is_running = spawn().is_ok();
        }
        let is_asleep = state.is_asleep;
        // Unlock before notifying, or the woken thread blocks on the lock at once.
        drop(state);
        if is_asleep {
            self.begun.notify_one();
        }
        Ok(Start {
            watch: self,
            number,
        })
    }

    /// Looks at the starts, and calls `end` for each that is left alone.
    pub fn look_forever(&self, end: impl Fn(&Arc<Attempt>, Outcome)) {
        let mut quiet = 0;
        loop {
            std::thread::sleep(LOOK_PERIOD);
            let left = self.take_what_hangs(Instant::now());
            for (start, outcome) in left {
                kill_children(start.thread);
                end(&start.attempt, outcome);
            }
            let mut state = lock(&self.state);
            quiet = if state.under_way.is_empty() {
                quiet + 1
            } else {
                0
            };
            if quiet >= QUIET_LOOKS {
                state.is_asleep = true;
                let is_quiet = |state: &mut State| state.under_way.is_empty();
                let woken = self.begun.wait_while(state, is_quiet);
                woken.unwrap_or_else(PoisonError::into_inner).is_asleep = false;
            }
        }
    }

    fn take_what_hangs(&self, now: Instant) -> Vec<(UnderWay, Outcome)> {
        let mut state = lock(&self.state);
        let outcomes = state.under_way.iter().filter_map(|(number, start)| {
            let outcome = match (start.attempt.stop_reason(), start.timeout) {
                (Some(reason), _) if now >= start.begun + SHORTEST => stopped(reason),
                (None, Some((at, timeout))) if now >= at => timed_out(timeout),
                _ => return None,
            };
            Some((*number, outcome))
        });
        let outcomes: Vec<(u64, Outcome)> = outcomes.collect();
        state.hanging += outcomes.len();
        let taken = outcomes
            .into_iter()
            .filter_map(|(number, outcome)| Some((state.under_way.remove(&number)?, outcome)));
        taken.collect()
    }
}

impl Start<'_> {
    /// Sets the time after which it is left alone.
    pub fn set_timeout(&self, timeout: Option<TimeSpan>) {
        let Some(timeout) = timeout else { return };
        let at = Instant::now().checked_add(Duration::from(timeout).max(SHORTEST));
        let mut state = lock(&self.watch.state);
        if let (Some(start), Some(at)) = (state.under_way.get_mut(&self.number), at) {
            start.timeout = Some((at, timeout));
        }
    }

    /// Whether it was left alone: its attempt has ended.
    pub fn is_left_alone(&self) -> bool {
        !lock(&self.watch.state).under_way.contains_key(&self.number)
    }

    /// It has come back. Whether it was not left alone; then nobody else ends its attempt.
    pub fn finish(self) -> bool {
        let finished = lock(&self.watch.state).under_way.remove(&self.number);
        let is_ours = finished.is_some();
        if is_ours {
            std::mem::forget(self);
        }
        is_ours
    }
}

impl Drop for Start<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.watch.state);
        if state.under_way.remove(&self.number).is_none() {
            state.hanging = state.hanging.saturating_sub(1);
        }
    }
}

/// The outcome of an attempt that was to stop before its command was started.
pub fn stopped(reason: StopReason) -> Outcome {
    Outcome::not_started(reason.state(), reason.text())
}

fn timed_out(timeout: TimeSpan) -> Outcome {
    Outcome::not_started(
        ExecutionState::TimedOut,
        format!(
            "timed out after {timeout}: the command could not be started in that time; a file system that its program is on does not answer"
        ),
    )
}

/// Kills the processes that a thread has started and not reaped: a program that is loaded after all must not run. A
/// thread that starts a command has no other ones, but for some that survived KILL before. Where the kernel does not
/// list them, the thread does that when it comes back.
fn kill_children(thread: Pid) {
    let path = format!("/proc/self/task/{}/children", thread.as_raw_nonzero());
    let children = std::fs::read_to_string(path).unwrap_or_default();
    for child in children.split_whitespace() {
        if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
            // It may have ended.
            let _ = kill_process(child, Signal::KILL);
        }
    }
}
