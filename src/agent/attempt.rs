//! One attempt, from the order to start it until the server has taken its result.
//!
//! It is shared by the thread that supervises the command, the reporter, and the thread that obeys
//! orders. Its lock is held for memory operations only. Where the lock of the agent's state is needed too,
//! that one is taken first.

use super::files::AttemptFiles;
use super::output::{Cursor, OutputLog, Pieces};
use super::processes::attempt_processes::AttemptProcesses;
use super::processes::process_table::ProcessTable;
use super::undo::deadman::Deadman;
use super::undo::machine::{Action, Event, Experiment, Stage};
use super::undo::plan::{MAX_STDOUT_BYTES, UndoPlan};
use crate::wire::agent::{AttemptId, Ended, Hold, HoldState, Stream};
use crate::wire::duration::TimeSpan;
use crate::wire::task::ExecutionState;
use crate::wire::undo::UndoReason;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, Signal};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest message of a result, in bytes: it names a reason.
const MAX_MSG_BYTES: usize = 4_096;

/// Locks, also after a panic of another thread that held the lock: every change under a lock of the agent
/// is complete in itself, so a panic leaves nothing half done.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a command is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A user canceled it.
    Canceled,
    /// Its task was stopped.
    Stopped,
    /// The agent shuts down.
    Shutdown,
    /// The server does not know it any more, so nobody could cancel it. Only with an undo: other commands go on.
    Forgotten,
    /// No guard would undo it if the agent was killed.
    Unguarded,
    /// The guard ends and undoes it, because the agent seemed not to work.
    TakenOver,
}

impl StopReason {
    /// The message of the result.
    pub fn text(self) -> &'static str {
        match self {
            StopReason::Canceled => "canceled",
            StopReason::Stopped => "canceled: its task was stopped",
            StopReason::Shutdown => "the agent was shut down",
            StopReason::Forgotten => "the server does not know it any more",
            StopReason::Unguarded => "its guard is gone, and no other one took over its undo",
            StopReason::TakenOver => "its agent did not work for a while, so its guard ended it",
        }
    }

    /// The state of the result.
    pub fn state(self) -> ExecutionState {
        match self {
            StopReason::Canceled
            | StopReason::Stopped
            | StopReason::Shutdown
            | StopReason::Forgotten => ExecutionState::Canceled,
            StopReason::Unguarded | StopReason::TakenOver => ExecutionState::Failed,
        }
    }

    /// Why its undo runs.
    pub fn undo_reason(self) -> UndoReason {
        match self {
            StopReason::Canceled | StopReason::Forgotten => UndoReason::Canceled,
            StopReason::Stopped => UndoReason::Stopped,
            StopReason::Shutdown => UndoReason::Shutdown,
            StopReason::Unguarded | StopReason::TakenOver => UndoReason::AgentLost,
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
    /// The outcome of an attempt whose command was never started.
    pub fn not_started(state: ExecutionState, why: impl Into<String>) -> Self {
        let mut msg = why.into();
        msg.truncate(msg.floor_char_boundary(MAX_MSG_BYTES));
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

/// Wakes a thread that supervises commands, one after the other, out of poll(2). It may be woken for a
/// command that has already ended.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// None when the system has no descriptor left.
    pub fn new() -> Option<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Some(Waker(Arc::new(eventfd(0, flags).ok()?)))
    }

    /// The descriptor that becomes readable.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Makes the descriptor unreadable until the next call of [`Waker::wake`].
    pub fn clear(&self) {
        let _ = rustix::io::read(&*self.0, &mut [0u8; 8]);
    }

    /// Makes the descriptor readable.
    pub fn wake(&self) {
        // It fails only when the counter is full, and then the thread has been woken already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    /// Its id.
    pub id: AttemptId,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Wakes the thread that supervises the command.
    waker: Option<Waker>,
    started: Option<Instant>,
    /// The key and the process group of the command, until its leader is reaped.
    processes: Option<(String, Pid)>,
    stop: Option<StopReason>,
    ending: bool,
    output: OutputLog,
    outcome: Option<Outcome>,
    /// What belongs to its undo; none without one.
    undo: Option<Box<AttemptUndo>>,
    /// What it has to do with files; none without any.
    files: Option<Box<AttemptFiles>>,
}

/// What belongs to the undo of an attempt.
#[derive(Debug)]
struct AttemptUndo {
    deadman: Deadman,
    experiment: Experiment,
    /// How it is undone, from the arming on.
    plan: Option<UndoPlan>,
    /// The beginning of standard output.
    stdout: Vec<u8>,
}

impl Attempt {
    /// An attempt that was just accepted. It has an undo if it has a dead man's switch.
    pub fn new(id: AttemptId, deadman: Option<Deadman>) -> Self {
        let undo = deadman.map(|deadman| {
            Box::new(AttemptUndo {
                deadman,
                experiment: Experiment::new(),
                plan: None,
                stdout: Vec::new(),
            })
        });
        Attempt {
            id,
            inner: Mutex::new(Inner {
                undo,
                ..Inner::default()
            }),
        }
    }

    /// The same with files.
    pub fn with_order_for_files(self, files: Option<Box<AttemptFiles>>) -> Self {
        lock(&self.inner).files = files;
        self
    }

    /// Reads or changes what it has to do with files; none without any.
    pub fn with_files<T>(&self, change: impl FnOnce(&mut AttemptFiles) -> T) -> Option<T> {
        let mut inner = lock(&self.inner);
        inner.files.as_deref_mut().map(change)
    }

    /// Whether it has an undo.
    pub fn has_undo(&self) -> bool {
        lock(&self.inner).undo.is_some()
    }

    /// Whether its command has ended, or may have, and its undo is due or runs.
    pub fn is_undoing(&self) -> bool {
        self.stage() == Some(Stage::Undoing)
    }

    /// Where it is with its undo; none without one.
    pub fn stage(&self) -> Option<Stage> {
        let inner = lock(&self.inner);
        inner.undo.as_ref().map(|undo| undo.experiment.stage())
    }

    /// Tells the machine of its undo what happened. What is to be done about it.
    pub fn advance(&self, event: Event) -> Option<Action> {
        let mut inner = lock(&self.inner);
        inner.undo.as_mut()?.experiment.on(event)
    }

    /// The limit of its dead man's switch, while its command may run.
    pub fn deadman(&self) -> Option<TimeSpan> {
        let inner = lock(&self.inner);
        let undo = inner.undo.as_ref()?;
        undo.deadman.0.filter(|_| undo.experiment.has_command())
    }

    /// Keeps how it is undone.
    pub fn keep_plan(&self, plan: UndoPlan) {
        if let Some(undo) = &mut lock(&self.inner).undo {
            undo.plan = Some(plan);
        }
    }

    /// Whether it is undone by a plan with this key.
    pub fn has_plan(&self, key: &str) -> bool {
        let inner = lock(&self.inner);
        let plan = inner.undo.as_ref().and_then(|undo| undo.plan.as_ref());
        plan.is_some_and(|plan| plan.key == key)
    }

    /// How it is undone, with what is known of its command; none if it was not armed.
    pub fn take_plan(&self, exit_code: Option<i32>) -> Option<UndoPlan> {
        let mut inner = lock(&self.inner);
        let undo = inner.undo.as_mut()?;
        let mut plan = undo.plan.take()?;
        plan.because(undo.experiment.reason().unwrap_or(UndoReason::Ended));
        plan.command_ended(exit_code, &undo.stdout);
        undo.stdout = Vec::new();
        Some(plan)
    }

    /// Sets what [`Attempt::stop`] wakes from now on. A stop before this call is seen by
    /// [`Attempt::stop_reason`].
    pub fn set_waker(&self, waker: Waker) {
        lock(&self.inner).waker = Some(waker);
    }

    /// Records that the command runs, with this key in its environment and as the leader of `group`.
    pub fn started(&self, at: Instant, key: &str, group: Pid) {
        let mut inner = lock(&self.inner);
        inner.started = Some(at);
        inner.processes = Some((key.to_owned(), group));
    }

    /// Records that the command is being ended.
    pub fn ending(&self) {
        lock(&self.inner).ending = true;
    }

    /// Forgets the process group: from now on its leader may be reaped, and the system may give its
    /// number to another one.
    pub fn release_processes(&self) {
        lock(&self.inner).processes = None;
    }

    /// Sends KILL at once to the processes of the command that are in a table, or to its process group
    /// where there is no table.
    pub fn kill_now(&self, table: Option<&ProcessTable>) {
        // The lock is held until the signals are sent: meanwhile the leader is not reaped.
        let inner = lock(&self.inner);
        if let Some((key, group)) = &inner.processes {
            let mut processes = AttemptProcesses::new(key.clone(), *group);
            match table {
                Some(table) => processes.sweep_in(table, Signal::KILL),
                None => processes.sweep_group(Signal::KILL),
            };
        }
    }

    /// Orders the end of the command. Whether it changed anything.
    pub fn stop(&self, reason: StopReason) -> bool {
        let mut inner = lock(&self.inner);
        if inner.stop.is_some() || inner.outcome.is_some() {
            return false;
        }
        if let Some(undo) = &mut inner.undo {
            if !undo.experiment.has_command() {
                // An undo cannot be canceled.
                return false;
            }
            undo.experiment.on(Event::Stop(reason.undo_reason()));
        }
        inner.stop = Some(reason);
        inner.ending = true;
        let waker = inner.waker.clone();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Why the end was ordered; none if it was not.
    pub fn stop_reason(&self) -> Option<StopReason> {
        lock(&self.inner).stop
    }

    /// Keeps output of the command. How many bytes of it are for its undo, too.
    pub fn append(&self, stream: Stream, data: &[u8]) -> usize {
        let mut inner = lock(&self.inner);
        let mut for_undo = 0;
        if let Some(undo) = &mut inner.undo
            && stream == Stream::Stdout
        {
            let room = MAX_STDOUT_BYTES.saturating_sub(undo.stdout.len());
            for_undo = data.len().min(room);
            undo.stdout.extend(&data[..for_undo]);
        }
        inner.output.append(stream, data);
        for_undo
    }

    /// Frees the output and keeps none from now on.
    pub fn drop_output(&self) {
        lock(&self.inner).output.drop_all();
    }

    /// Records that the command ended, or could not be started.
    pub fn end(&self, outcome: Outcome) {
        let mut inner = lock(&self.inner);
        inner.processes = None;
        inner.waker = None;
        inner.outcome = Some(outcome);
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        lock(&self.inner).outcome.is_some()
    }

    /// Whether there is a result or output that the server has not taken.
    pub fn is_unreported(&self) -> bool {
        let inner = lock(&self.inner);
        inner.outcome.is_some() || !inner.output.is_taken()
    }

    /// Whether it has ended and the server has all of its output.
    pub fn has_only_a_result(&self) -> bool {
        let inner = lock(&self.inner);
        inner.outcome.is_some() && inner.output.is_taken()
    }

    /// How many bytes of output are in memory.
    pub fn kept_bytes(&self) -> usize {
        lock(&self.inner).output.kept_bytes()
    }

    /// The next pieces of output, for about `room` bytes of a request.
    pub fn next_pieces(&self, room: usize) -> Pieces {
        lock(&self.inner).output.next(room)
    }

    /// Records that the server has the output up to `cursor`.
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
            phase: inner.files.as_ref().and_then(|files| files.phase),
        }
    }

    /// The result as it is reported now; none while the command runs.
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
            files: { inner.files.as_ref() }.map_or_else(Vec::new, |files| files.fetched.clone()),
        })
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
