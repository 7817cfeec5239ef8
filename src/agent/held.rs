//! One attempt in the agent's hands: from the order to start it until the server has its result.
//!
//! It is shared by the thread that watches the command, the reporter, and whoever obeys orders.
//! Its lock is held for memory operations only; where the board's lock is needed too, the board's
//! is taken first.

use super::output::{Cursor, OutputLog, Pieces};
use crate::wire::agent::{AttemptId, Ended, Hold, HoldState, Stream};
use crate::wire::task::ExecutionState;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, Signal, kill_process_group};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest text of a result, in bytes: it names a reason, it does not tell a story.
const MAX_MSG_BYTES: usize = 4_096;

/// Locks, whatever happened to those who held the lock before: every change here is complete in
/// itself, so a panic elsewhere leaves nothing half done.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a command is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A user canceled it.
    Cancel,
    /// The agent is about to end.
    Shutdown,
}

impl Stop {
    /// What the result says about it.
    pub fn words(self) -> &'static str {
        match self {
            Stop::Cancel => "canceled",
            Stop::Shutdown => "the agent was shut down",
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// `succeeded`, `failed`, `timedOut` or `canceled`.
    pub state: ExecutionState,
    /// The exit code, when the command exited.
    pub exit_code: Option<i32>,
    /// The name of the signal that ended it.
    pub signal: Option<String>,
    /// Why it did not succeed.
    pub msg: String,
    /// How long it ran; none when it was not started.
    pub duration: Option<Duration>,
    /// When it ended.
    pub at: Instant,
}

impl Outcome {
    /// An attempt whose command was never started.
    pub fn not_started(state: ExecutionState, why: impl Into<String>) -> Self {
        let mut msg = why.into();
        if msg.len() > MAX_MSG_BYTES {
            let cut = (0..=MAX_MSG_BYTES).rev().find(|n| msg.is_char_boundary(*n));
            msg.truncate(cut.unwrap_or(0));
        }
        Outcome {
            state,
            exit_code: None,
            signal: None,
            msg,
            duration: None,
            at: Instant::now(),
        }
    }
}

/// Wakes a thread that watches commands, one after the other. It can be woken for one that is over.
#[derive(Debug, Clone)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    /// None when the system has no descriptor left.
    pub fn new() -> Option<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Some(Wake(Arc::new(eventfd(0, flags).ok()?)))
    }

    /// What becomes readable.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Takes notice of having been woken.
    pub fn clear(&self) {
        let _ = rustix::io::read(&*self.0, &mut [0u8; 8]);
    }

    fn up(&self) {
        // Full means that the thread has been woken already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// One attempt.
#[derive(Debug)]
pub struct Held {
    /// Which.
    pub id: AttemptId,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Wakes the thread that watches the command.
    wake: Option<Wake>,
    started: Option<Instant>,
    /// The process group of the command, while it is certain that the number is still its own.
    group: Option<Pid>,
    stop: Option<Stop>,
    ending: bool,
    forgotten: bool,
    output: OutputLog,
    outcome: Option<Outcome>,
}

impl Held {
    /// An attempt that was just handed to the agent.
    pub fn new(id: AttemptId) -> Self {
        Held {
            id,
            inner: Mutex::new(Inner::default()),
        }
    }

    /// Whom [`Held::stop`] wakes from now on; an earlier one is seen by [`Held::stop_ordered`].
    pub fn watched(&self, wake: Wake) {
        lock(&self.inner).wake = Some(wake);
    }

    /// The command runs, as the leader of `group`.
    pub fn started(&self, at: Instant, group: Pid) {
        let mut inner = lock(&self.inner);
        inner.started = Some(at);
        inner.group = Some(group);
    }

    /// The command is being killed.
    pub fn ending(&self) {
        lock(&self.inner).ending = true;
    }

    /// From now on the group's number may come to mean somebody else.
    pub fn group_gone(&self) {
        lock(&self.inner).group = None;
    }

    /// Kills the group at once, if there is one.
    pub fn kill_now(&self) {
        if let Some(group) = lock(&self.inner).group {
            // It may be empty by now; there is nothing to do about any other failure either.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Orders the end of the command. Whether that is news.
    pub fn stop(&self, why: Stop) -> bool {
        let mut inner = lock(&self.inner);
        if inner.stop.is_some() || inner.outcome.is_some() {
            return false;
        }
        inner.stop = Some(why);
        inner.ending = true;
        let wake = inner.wake.clone();
        drop(inner);
        if let Some(wake) = wake {
            wake.up();
        }
        true
    }

    /// Whether the end was ordered, and why.
    pub fn stop_ordered(&self) -> Option<Stop> {
        lock(&self.inner).stop
    }

    /// Keeps what the command wrote.
    pub fn append(&self, stream: Stream, data: &[u8]) {
        lock(&self.inner).output.append(stream, data);
    }

    /// Nobody asks for it any more.
    pub fn forget(&self) {
        let mut inner = lock(&self.inner);
        inner.forgotten = true;
        inner.output.drop_all();
    }

    /// The command ended, or could not be started.
    pub fn end(&self, outcome: Outcome) {
        let mut inner = lock(&self.inner);
        inner.group = None;
        inner.wake = None;
        inner.outcome = Some(outcome);
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        lock(&self.inner).outcome.is_some()
    }

    /// Whether there is anything to tell the server.
    pub fn has_news(&self) -> bool {
        let inner = lock(&self.inner);
        !inner.forgotten && (inner.outcome.is_some() || !inner.output.is_taken())
    }

    /// How many bytes of output are in memory.
    pub fn kept(&self) -> usize {
        lock(&self.inner).output.kept()
    }

    /// The next pieces of output, for about `room` bytes of a request.
    pub fn next_pieces(&self, room: usize) -> Pieces {
        lock(&self.inner).output.next(room)
    }

    /// The server has the output up to `cursor`.
    pub fn output_taken(&self, cursor: Cursor) {
        lock(&self.inner).output.taken(cursor);
    }

    /// What a poll says about it.
    pub fn hold(&self) -> Hold {
        let inner = lock(&self.inner);
        Hold {
            id: self.id.clone(),
            state: if inner.outcome.is_some() {
                HoldState::Ended
            } else if inner.ending {
                HoldState::Ending
            } else {
                HoldState::Running
            },
            started_ago_ms: inner.started.map_or(0, |at| ms(at.elapsed())),
        }
    }

    /// The result as it is reported now; none while it runs.
    pub fn result(&self) -> Option<Ended> {
        let inner = lock(&self.inner);
        let outcome = inner.outcome.as_ref()?;
        let [stdout_bytes, stderr_bytes] = inner.output.totals();
        Some(Ended {
            id: self.id.clone(),
            state: outcome.state,
            exit_code: outcome.exit_code,
            signal: outcome.signal.clone(),
            msg: outcome.msg.clone(),
            ended_ago_ms: ms(outcome.at.elapsed()),
            duration_ms: outcome.duration.map(ms),
            stdout_bytes,
            stderr_bytes,
        })
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
