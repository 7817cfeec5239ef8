//! The state that the agent's threads share: every attempt the agent knows, and what is to be done with it.
//!
//! The states of an attempt, in one map by its id:
//!
//! | stage | its command | listed in polls | leaves the stage when |
//! | --- | --- | --- | --- |
//! | `Waiting` | waits for a free slot | yes | a slot is free, or it is canceled |
//! | `Active` | runs or has ended | yes | the server has taken the result |
//! | `Forgotten` | runs, and nobody asks for its result | no | it ends |
//!
//! The result of an attempt with an undo exists only when the undo has ended. Its slot is free before: undos run outside
//! of `--jobs`. What the server is to be told of undos is in the [`UndoLedger`]; how it gets there is in `state/undos`.
//!
//! The ids of attempts that left the map are remembered, so that a repeated order cannot start one twice.
//!
//! What an update of the program needs is in `state/updates`; how the reporter, the shutdown and an update wait is in
//! `state/waits`.
//!
//! Nothing here starts or looks for a process, or knows a socket or a thread. The lock of the state is taken before that of an
//! [`Attempt`], never after it.

mod undos;
mod updates;
mod waits;

use super::attempt::{Attempt, Outcome, StopReason, lock};
use super::files::AttemptFiles;
use super::processes::process_table::ProcessTable;
use super::recent_ids::RecentIds;
use super::undo::deadman::{Contact, Deadman};
use super::undo::ledger::{UndoLedger, new_report};
use super::undo::machine::Event;
use crate::wire::agent::{Assignment, AttemptId, Hold};
use crate::wire::duration::TimeSpan;
use crate::wire::probe::ProbeResult;
use crate::wire::task::ExecutionState;
use crate::wire::undo::{UndoReport, UndoState};
use serde_json::value::RawValue;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;
pub use undos::UndoJob;

/// Results the server has not taken, in number. At this limit the polls say that the agent is draining,
/// and it gets no more work until the server has taken some.
const MAX_UNREPORTED: usize = 1_000;
/// Output in memory, in bytes, with the same consequence. Commands that already run may exceed it, each
/// by the 2 MiB that are kept of its output at most.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// The longest id of an execution, in bytes: those of a server have 64 and a number. Ids are remembered.
const MAX_ID_BYTES: usize = 128;
/// The longest name of a task, in bytes: a server takes 255 unless it is told otherwise.
const MAX_NAME_BYTES: usize = 4 << 10;
/// Commands that wait for a slot, in number. A server hands out no more than there are slots, but slots of
/// commands that were forgotten may be free later than it knows.
const MAX_WAITING: usize = 16;
/// What commands that wait may take in memory, in bytes: two with the longest standard input.
const MAX_WAITING_BYTES: usize = 2 << 20;

/// An order to run a command.
pub type Job = Assignment<Box<RawValue>>;

/// An attempt that has a slot: its command is to be started now.
#[derive(Debug)]
pub struct Runnable {
    /// The attempt.
    pub attempt: Arc<Attempt>,
    /// The order that started it.
    pub job: Job,
}

/// The shared state.
#[derive(Debug)]
pub struct AgentState {
    /// When the server was last heard of.
    pub contact: Contact,
    inner: Mutex<Inner>,
    /// Notified when the reporter has something to send.
    report_due: Condvar,
    /// Notified when a command has ended or a result was taken, but only while the agent shuts down.
    fewer: Condvar,
    /// A command has written something since the reporter last looked.
    output_pending: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    instance: String,
    slots: usize,
    /// Slots that are taken: by commands of active and of forgotten attempts.
    slots_taken: usize,
    /// The number of the latest poll.
    seq: u64,
    /// Counts the poll loops that were started; only the latest continues.
    epoch: u64,
    draining: bool,
    /// The server wants it to take no more work, until it says otherwise.
    drained: bool,
    /// It takes no more work because its program is to be replaced.
    updating: bool,
    /// It takes nothing more at all: its program is replaced now.
    closed: bool,
    /// The shortest dead man's switch when the latest poll began.
    polled_for: Option<TimeSpan>,
    attempts: HashMap<AttemptId, Entry>,
    undos: UndoLedger,
    /// Results of probes that the server has not been told.
    probes: VecDeque<ProbeResult>,
    /// How many attempts were ever accepted: gives each its place in the order of arrival.
    accepted: u64,
    /// How many it accepts at most.
    max_commands: Option<u64>,
    /// When it last had something to do.
    last_active: Instant,
    /// The ids of attempts that left the map.
    finished: RecentIds,
    /// The reporter is to skip its pause.
    nudged: bool,
    /// Why the latest order was refused that was.
    refusal: Option<&'static str>,
}

#[derive(Debug)]
struct Entry {
    attempt: Arc<Attempt>,
    /// Its place in the order of arrival.
    arrival: u64,
    stage: Stage,
    /// Its command has a slot.
    has_slot: bool,
}

#[derive(Debug)]
enum Stage {
    Waiting(Job),
    Active,
    Forgotten,
}

impl Entry {
    fn is_held(&self) -> bool {
        !matches!(self.stage, Stage::Forgotten)
    }

    /// Ends an attempt that waits for a slot.
    fn end_waiting(&mut self, reason: StopReason, undos: &mut UndoLedger) {
        self.stage = Stage::Active;
        let state = ExecutionState::Canceled;
        let outcome = Outcome::not_started(state, reason.text());
        end_without_undo(&self.attempt, outcome, undos);
    }
}

/// What a poll says about the agent.
#[derive(Debug)]
pub struct PollContent {
    /// The random id of this agent.
    pub instance: String,
    /// The number of the poll.
    pub seq: u64,
    /// Slots that the server may fill.
    pub jobs: u32,
    /// The agent takes no more work because it shuts down.
    pub draining: bool,
    /// The agent takes no more work because the server wants it so.
    pub drained: bool,
    /// The agent takes no more work for now because a limit is reached.
    pub full: bool,
    /// The attempts it holds.
    pub holds: Vec<Hold>,
    /// The undos it knows of.
    pub undos: Vec<UndoReport>,
    /// The shortest dead man's switch of a command that may run.
    pub deadman: Option<TimeSpan>,
}

/// Records the end of a command that was not started, or that has no undo.
fn end_without_undo(attempt: &Attempt, outcome: Outcome, undos: &mut UndoLedger) {
    if attempt.has_undo() {
        attempt.advance(Event::NotStarted);
        let report = new_report(attempt.id.clone(), UndoState::NotNeeded);
        undos.note(report, Instant::now());
    }
    attempt.end(outcome);
}

impl Inner {
    /// The attempts that a poll lists, in order of arrival.
    fn held(&self) -> Vec<Arc<Attempt>> {
        let mut held: Vec<&Entry> = self
            .attempts
            .values()
            .filter(|entry| entry.is_held())
            .collect();
        held.sort_unstable_by_key(|entry| entry.arrival);
        held.iter()
            .map(|entry| Arc::clone(&entry.attempt))
            .collect()
    }

    fn holds(&self) -> Vec<Hold> {
        self.held().iter().map(|attempt| attempt.hold()).collect()
    }

    /// Whether there is a result, the state of an undo, or the result of a probe to send.
    fn has_result(&self) -> bool {
        let mut entries = self.attempts.values();
        entries.any(|entry| entry.is_held() && entry.attempt.has_ended())
            || self.undos.has_due(|id| self.is_held(id))
            || !self.probes.is_empty()
    }

    fn has_open_undo(&self) -> bool {
        let mut attempts = self.attempts.values();
        self.undos.has_open() || attempts.any(|it| it.attempt.has_undo() && !it.attempt.has_ended())
    }

    fn is_held(&self, id: &AttemptId) -> bool {
        self.attempts.get(id).is_some_and(Entry::is_held)
    }

    /// The shortest dead man's switch of a command that may run.
    fn deadman(&self) -> Option<TimeSpan> {
        let attempts = self.attempts.values();
        attempts.filter_map(|entry| entry.attempt.deadman()).min()
    }

    fn is_full(&self) -> bool {
        let (mut unreported, mut kept_bytes) = (0, 0);
        for entry in self.attempts.values().filter(|entry| entry.is_held()) {
            unreported += usize::from(entry.attempt.has_ended());
            kept_bytes += entry.attempt.kept_bytes();
        }
        unreported >= MAX_UNREPORTED || kept_bytes >= MAX_KEPT_BYTES || self.undos.is_full()
    }

    /// Why an order to start is refused. A server that keeps to what polls say gives no reason.
    fn refusal(&self, job: &Job) -> Option<&'static str> {
        if self.commands_left() == Some(0) {
            return Some("it has run as many commands as it may (--max-commands)");
        }
        let id = &job.id.execution;
        let names = [id, &job.task_id, &job.task_name];
        if let Some(why) = refused_names(id, &names) {
            return Some(why);
        }
        if self.is_full() {
            return Some("results or output that the server does not take fill the memory");
        }
        if self.slots_taken < self.slots {
            return None;
        }
        let (mut waiting, mut bytes) = (0, job.detail.get().len());
        for entry in self.attempts.values() {
            if let Stage::Waiting(job) = &entry.stage {
                waiting += 1;
                bytes += job.detail.get().len();
            }
        }
        (waiting >= MAX_WAITING || bytes > MAX_WAITING_BYTES)
            .then_some("there are more than this agent takes at once")
    }

    /// How many more commands it accepts; none if there is no bound.
    fn commands_left(&self) -> Option<u64> {
        Some(self.max_commands?.saturating_sub(self.accepted))
    }

    /// Removes an attempt that is over.
    fn finish(&mut self, id: &AttemptId) {
        self.last_active = Instant::now();
        if self.attempts.remove(id).is_some() {
            self.finished.remember(id);
        }
    }

    /// Gives a free slot to the attempt that has waited longest.
    fn activate_next(&mut self) -> Option<Runnable> {
        let waiting = self
            .attempts
            .values_mut()
            .filter(|entry| matches!(entry.stage, Stage::Waiting(_)));
        let entry = waiting.min_by_key(|entry| entry.arrival)?;
        entry.has_slot = true;
        match std::mem::replace(&mut entry.stage, Stage::Active) {
            Stage::Waiting(job) => Some(Runnable {
                attempt: Arc::clone(&entry.attempt),
                job,
            }),
            Stage::Active | Stage::Forgotten => None,
        }
    }
}

/// Why an order is refused because of its id and its names.
fn refused_names(id: &str, names: &[&String]) -> Option<&'static str> {
    if id.len() > MAX_ID_BYTES || names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
        return Some("its id or its name is too long");
    }
    (id.chars().any(char::is_control)).then_some("its id has control characters")
}

impl AgentState {
    /// A state without attempts.
    pub fn new(instance: String, jobs: u32, max_commands: Option<u64>) -> Self {
        AgentState {
            contact: Contact::default(),
            inner: Mutex::new(Inner {
                instance,
                slots: jobs as usize,
                slots_taken: 0,
                seq: 0,
                epoch: 0,
                draining: false,
                drained: false,
                updating: false,
                closed: false,
                polled_for: None,
                attempts: HashMap::new(),
                undos: UndoLedger::default(),
                probes: VecDeque::new(),
                accepted: 0,
                max_commands,
                last_active: Instant::now(),
                finished: RecentIds::default(),
                nudged: false,
                refusal: None,
            }),
            report_due: Condvar::new(),
            fewer: Condvar::new(),
            output_pending: AtomicBool::new(false),
        }
    }

    /// The random id of this agent.
    pub fn instance(&self) -> String {
        lock(&self.inner).instance.clone()
    }

    /// Takes a new random id, unless attempts are held under the old one. Whether it did.
    pub fn renew_instance(&self, instance: String) -> bool {
        let mut inner = lock(&self.inner);
        let holds_nothing = inner.undos.is_empty() && !inner.attempts.values().any(Entry::is_held);
        if holds_nothing {
            inner.instance = instance;
        }
        holds_nothing
    }

    /// The number of the latest poll, with which a report asks for more work; none at a limit.
    pub fn work_request(&self) -> Option<u64> {
        let inner = lock(&self.inner);
        let has_left = { inner.commands_left() }.is_none_or(|left| left >= inner.slots as u64);
        let is_open = !inner.draining && !inner.drained && !inner.updating;
        (is_open && !inner.is_full() && has_left).then_some(inner.seq)
    }

    /// What the next poll says; none when the poll loop of this `epoch` is to end.
    pub fn next_poll(&self, epoch: u64) -> Option<PollContent> {
        let mut inner = lock(&self.inner);
        if inner.epoch != epoch {
            return None;
        }
        inner.seq += 1;
        let forgotten = inner
            .attempts
            .values()
            .filter(|entry| !entry.is_held() && entry.has_slot)
            .count();
        inner.polled_for = inner.deadman();
        let mut slots = inner.slots.saturating_sub(forgotten);
        if let Some(left) = inner.commands_left() {
            let held = inner
                .attempts
                .values()
                .filter(|entry| entry.is_held())
                .count();
            slots = slots.min(held.saturating_add(usize::try_from(left).unwrap_or(usize::MAX)));
        }
        Some(PollContent {
            instance: inner.instance.clone(),
            seq: inner.seq,
            jobs: u32::try_from(slots.max(1)).unwrap_or(u32::MAX),
            draining: inner.draining,
            drained: inner.drained,
            full: slots == 0
                || inner.updating
                || inner.is_full()
                || inner.commands_left() == Some(0),
            holds: inner.holds(),
            undos: inner.undos.states(Instant::now()),
            deadman: inner.polled_for,
        })
    }

    /// The shortest dead man's switch of a command that may run; none if there is none.
    pub fn deadman(&self) -> Option<TimeSpan> {
        lock(&self.inner).deadman()
    }

    /// The epoch of a poll loop that is to take the place of the present one, because the poll that is under way may
    /// be held for longer than a command that was accepted meanwhile allows; none if it need not. `asking` is the
    /// epoch of a loop that polls next.
    pub fn shorten_poll(&self, asking: Option<u64>) -> Option<u64> {
        let mut inner = lock(&self.inner);
        let deadman = inner.deadman().filter(|_| !inner.draining)?;
        if asking == Some(inner.epoch) || inner.polled_for.is_some_and(|known| known <= deadman) {
            return None;
        }
        // Until the new loop has polled, it is not asked for once more.
        inner.polled_for = Some(deadman);
        inner.epoch += 1;
        Some(inner.epoch)
    }

    /// The epoch of a poll loop that takes the place of the present one, because the server is to be told something that
    /// polls say; none during shutdown.
    pub fn poll_anew(&self) -> Option<u64> {
        let mut inner = lock(&self.inner);
        if inner.draining {
            return None;
        }
        inner.epoch += 1;
        Some(inner.epoch)
    }

    /// Has the poll loop before `epoch` go on, because the one of `epoch` could not be started.
    pub fn keep_polls(&self, epoch: u64) {
        let mut inner = lock(&self.inner);
        if inner.epoch == epoch {
            inner.epoch -= 1;
            inner.polled_for = None;
        }
    }

    /// Takes an order to start. Returns the attempt if it is to be started now, and none when it is
    /// already known, has to wait for a slot, is refused (see [`AgentState::take_refusal`]), or comes during
    /// shutdown (the goodbye does not list it, which tells the server that it was not started).
    ///
    /// An order in the answer to a report, or to a poll, counts only while `latest` is the number of the latest poll: a
    /// later poll has already told the server that the order never arrived.
    pub fn accept(&self, job: Job, latest: Option<u64>) -> Option<Runnable> {
        // Without the lock: a detail may be long.
        let deadman = Deadman::of_detail(&job.detail);
        let mut inner = lock(&self.inner);
        let is_known = inner.attempts.contains_key(&job.id) || inner.finished.contains(&job.id);
        let is_outdated = latest.is_some_and(|latest| latest != inner.seq);
        if inner.draining || inner.closed || is_known || is_outdated {
            return None;
        }
        if let Some(why) = inner.refusal(&job) {
            inner.refusal = Some(why);
            return None;
        }
        let attempt = Attempt::new(job.id.clone(), deadman);
        let attempt = Arc::new(attempt.with_order_for_files(AttemptFiles::of(&job)));
        let has_slot = inner.slots_taken < inner.slots;
        let (stage, runnable) = if has_slot {
            inner.slots_taken += 1;
            let attempt = Arc::clone(&attempt);
            (Stage::Active, Some(Runnable { attempt, job }))
        } else {
            (Stage::Waiting(job), None)
        };
        inner.accepted += 1;
        let entry = Entry {
            arrival: inner.accepted,
            stage,
            has_slot,
            attempt,
        };
        inner.attempts.insert(entry.attempt.id.clone(), entry);
        runnable
    }

    /// For how long it has had nothing to do; none if it has something to do.
    pub fn idle_for(&self) -> Option<std::time::Duration> {
        let inner = lock(&self.inner);
        let is_idle = inner.attempts.is_empty() && inner.undos.is_empty();
        is_idle.then(|| inner.last_active.elapsed())
    }

    /// Whether it has accepted as many commands as it may.
    pub fn is_spent(&self) -> bool {
        lock(&self.inner).commands_left() == Some(0)
    }

    /// Takes no more work, or takes work again. Whether that changed anything.
    pub fn set_drained(&self, drained: bool) -> bool {
        std::mem::replace(&mut lock(&self.inner).drained, drained) != drained
    }

    /// Why an order was refused since the last call; none if none was. The next poll does not list its
    /// attempt, which tells the server that it was not started.
    pub fn take_refusal(&self) -> Option<&'static str> {
        lock(&self.inner).refusal.take()
    }

    /// Obeys an order to cancel, for this reason. Whether it changed anything.
    pub fn stop(&self, id: &AttemptId, reason: StopReason) -> bool {
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        let Some(entry) = inner.attempts.get_mut(id) else {
            return false;
        };
        if !matches!(entry.stage, Stage::Waiting(_)) {
            return entry.attempt.stop(reason);
        }
        entry.end_waiting(reason, &mut inner.undos);
        self.report_due.notify_one();
        true
    }

    /// Obeys an order to forget: a command that runs goes on, its result is not reported. One with an undo is ended
    /// and undone: nobody could cancel it any more. Whether it changed anything.
    pub fn forget(&self, id: &AttemptId) -> bool {
        let mut inner = lock(&self.inner);
        let Some(entry) = inner.attempts.get_mut(id).filter(|entry| entry.is_held()) else {
            return false;
        };
        entry.attempt.drop_output();
        let is_running = matches!(entry.stage, Stage::Active) && !entry.attempt.has_ended();
        if is_running {
            entry.stage = Stage::Forgotten;
            if entry.attempt.has_undo() {
                entry.attempt.stop(StopReason::Forgotten);
            }
        } else {
            inner.finish(id);
        }
        // The end of its undo waited for its result.
        self.report_due.notify_one();
        self.notify_shutdown(&inner);
        true
    }

    /// Records the end of a command that was not started, or that has no undo, and frees its slot. Returns the attempt
    /// that gets the slot next. The caller either sends the result or calls [`AgentState::result_ready`].
    pub fn ended(&self, attempt: &Attempt, outcome: Outcome) -> Option<Runnable> {
        let mut inner = lock(&self.inner);
        end_without_undo(attempt, outcome, &mut inner.undos);
        if let Some(entry) = inner.attempts.get(&attempt.id)
            && !entry.is_held()
        {
            inner.finish(&attempt.id);
        }
        self.next_for_slot(&mut inner)
    }

    /// Frees the slot of a command that has ended and is undone now. Returns the attempt that gets the slot next.
    pub fn command_ended(&self, attempt: &Attempt) -> Option<Runnable> {
        let mut inner = lock(&self.inner);
        if let Some(entry) = inner.attempts.get_mut(&attempt.id) {
            entry.has_slot = false;
        }
        self.next_for_slot(&mut inner)
    }

    fn next_for_slot(&self, inner: &mut Inner) -> Option<Runnable> {
        let next = inner.activate_next();
        if next.is_none() {
            inner.slots_taken = inner.slots_taken.saturating_sub(1);
        }
        self.notify_shutdown(inner);
        next
    }

    /// Records that the server has taken the result.
    pub fn delivered(&self, id: &AttemptId) {
        let mut inner = lock(&self.inner);
        if inner.attempts.get(id).is_some_and(Entry::is_held) {
            inner.finish(id);
            self.notify_shutdown(&inner);
        }
    }

    /// Only shutdown waits for this; at other times the system call is saved.
    fn notify_shutdown(&self, inner: &Inner) {
        if inner.draining || inner.updating {
            self.fewer.notify_all();
        }
    }

    /// The attempts that the agent holds, for its goodbye.
    pub fn holds(&self) -> Vec<Hold> {
        lock(&self.inner).holds()
    }

    /// Accepts no more work. Attempts that wait for a slot end here; commands with an undo are ordered to end. Returns
    /// the epoch of the poll loop that tells the server.
    pub fn drain(&self) -> u64 {
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        inner.draining = true;
        inner.epoch += 1;
        for entry in inner.attempts.values_mut() {
            if matches!(entry.stage, Stage::Waiting(_)) {
                entry.end_waiting(StopReason::Shutdown, &mut inner.undos);
            } else if entry.attempt.has_undo() {
                // There may be little time, and the undo takes its own.
                entry.attempt.stop(StopReason::Shutdown);
            }
        }
        self.report_due.notify_one();
        inner.epoch
    }

    /// Ends the poll loop.
    pub fn end_polls(&self) {
        lock(&self.inner).epoch += 1;
    }

    /// Orders the end of every command, because the agent shuts down.
    pub fn stop_all(&self) {
        for entry in lock(&self.inner).attempts.values() {
            entry.attempt.stop(StopReason::Shutdown);
        }
    }

    /// Orders the end of the command with an undo of this key.
    pub fn stop_with_key(&self, key: &str, reason: StopReason) {
        for entry in lock(&self.inner).attempts.values() {
            if entry.attempt.has_plan(key) {
                entry.attempt.stop(reason);
            }
        }
    }

    /// Sends KILL at once to the processes of every command (see [`Attempt::kill_now`]).
    pub fn kill_all(&self, table: Option<&ProcessTable>) {
        for entry in lock(&self.inner).attempts.values() {
            entry.attempt.kill_now(table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn job(n: u32) -> Job {
        Job {
            id: AttemptId {
                execution: format!("x.{n}"),
                attempt: 1,
            },
            task_id: "x".into(),
            task_name: "x".into(),
            key: None,
            detail: RawValue::NULL.to_owned(),
            files: Vec::new(),
            files_timeout: None,
            update: None,
            fetch: Vec::new(),
        }
    }

    pub(super) fn with_undo(n: u32, deadman: &str) -> Job {
        let detail = format!(r#"{{"undo": {{"deadman": "{deadman}"}}}}"#);
        Job {
            detail: RawValue::from_string(detail).unwrap(),
            ..job(n)
        }
    }

    pub(super) fn failed() -> Outcome {
        Outcome::not_started(ExecutionState::Failed, "test")
    }

    #[test]
    fn an_attempt_is_started_once() {
        let state = AgentState::new("i".into(), 2, None);
        let started = state.accept(job(1), None).unwrap().attempt;
        assert!(state.accept(job(1), None).is_none());
        state.ended(&started, failed());
        assert!(state.accept(job(1), None).is_none());
        state.delivered(&started.id);
        assert!(state.accept(job(1), None).is_none());
        assert!(state.next_poll(0).unwrap().holds.is_empty());
    }

    #[test]
    fn an_order_in_a_report_counts_until_the_next_poll() {
        let state = AgentState::new("i".into(), 2, None);
        state.next_poll(0);
        let latest = state.work_request();
        assert!(state.accept(job(1), latest).is_some());
        assert_eq!(state.next_poll(0).unwrap().holds.len(), 1);
        assert!(state.accept(job(2), latest).is_none());
        assert!(state.accept(job(2), None).is_some());
        state.drain();
        assert_eq!(state.work_request(), None);
    }

    #[test]
    fn an_attempt_without_a_free_slot_waits_and_is_not_lost() {
        let state = AgentState::new("i".into(), 1, None);
        let first = state.accept(job(1), None).unwrap().attempt;
        for n in 2..=4 {
            assert!(state.accept(job(n), None).is_none());
        }
        assert!(state.stop(&job(2).id, StopReason::Canceled));
        assert_eq!(state.next_poll(0).unwrap().holds.len(), 4);
        let third = state.ended(&first, failed()).unwrap().attempt;
        assert_eq!(third.id, job(3).id);
        let fourth = state.ended(&third, failed()).unwrap().attempt;
        assert_eq!(fourth.id, job(4).id);
        assert!(state.ended(&fourth, failed()).is_none());
        assert_eq!(lock(&state.inner).slots_taken, 0);
    }

    #[test]
    fn a_forgotten_attempt_keeps_its_slot_until_it_ends() {
        let state = AgentState::new("i".into(), 1, None);
        let started = state.accept(job(1), None).unwrap().attempt;
        assert!(state.forget(&started.id));
        assert!(!state.forget(&started.id));
        let poll = state.next_poll(0).unwrap();
        assert!(poll.full && poll.holds.is_empty());
        assert!(state.accept(job(1), None).is_none());
        state.ended(&started, failed());
        assert!(!state.next_poll(0).unwrap().full);
        assert!(state.accept(job(1), None).is_none());
        assert!(state.unreported().is_empty());
    }

    #[test]
    fn a_forgotten_attempt_that_waits_never_starts() {
        let state = AgentState::new("i".into(), 1, None);
        let first = state.accept(job(1), None).unwrap().attempt;
        assert!(state.accept(job(2), None).is_none());
        assert!(state.forget(&job(2).id));
        assert!(state.ended(&first, failed()).is_none());
        assert!(state.accept(job(2), None).is_none());
    }

    #[test]
    fn a_command_with_an_undo_is_ended_when_it_is_forgotten_and_at_shutdown() {
        let state = AgentState::new("i".into(), 3, None);
        let forgotten = state.accept(with_undo(1, "60s"), None).unwrap().attempt;
        let other = state.accept(job(2), None).unwrap().attempt;
        let third = state.accept(with_undo(3, "60s"), None).unwrap().attempt;
        assert!(state.forget(&forgotten.id) && state.forget(&other.id));
        assert_eq!(forgotten.stop_reason(), Some(StopReason::Forgotten));
        assert_eq!(other.stop_reason(), None);
        state.drain();
        assert_eq!(third.stop_reason(), Some(StopReason::Shutdown));
        state.ended(&third, failed());
        let undo = state.end_of_undo(&third.id).unwrap();
        assert_eq!(undo.report.state, UndoState::NotNeeded);
    }

    #[test]
    fn a_shorter_switch_asks_for_another_poll() {
        let state = AgentState::new("i".into(), 3, None);
        assert_eq!(state.next_poll(0).unwrap().deadman, None);
        assert_eq!(state.shorten_poll(None), None);
        state.accept(with_undo(1, "60s"), None);
        assert_eq!(state.shorten_poll(Some(0)), None, "it polls next");
        assert_eq!(state.shorten_poll(None), Some(1));
        assert_eq!(state.shorten_poll(None), None);
        assert!(state.next_poll(0).is_none());
        let shortest = TimeSpan::from_secs(60);
        assert_eq!(state.next_poll(1).unwrap().deadman, Some(shortest));
        state.accept(with_undo(2, "2m"), None);
        assert_eq!(state.shorten_poll(None), None);
        state.accept(with_undo(3, "20s"), None);
        assert_eq!(state.shorten_poll(None), Some(2));
        // No thread for it: the one before goes on, and the next call tries again.
        state.keep_polls(2);
        assert_eq!(state.shorten_poll(None), Some(2));
        state.drain();
        assert_eq!(state.shorten_poll(None), None);
    }

    #[test]
    fn too_many_results_stop_the_intake() {
        let state = AgentState::new("i".into(), 1, None);
        for n in 0..MAX_UNREPORTED as u32 {
            let started = state.accept(job(n), None).unwrap().attempt;
            state.ended(&started, failed());
        }
        assert!(state.next_poll(0).unwrap().full);
        state.delivered(&job(0).id);
        assert!(!state.next_poll(0).unwrap().full);
    }

    #[test]
    fn a_draining_agent_starts_nothing_and_older_poll_loops_end() {
        let state = AgentState::new("i".into(), 1, None);
        let started = state.accept(job(1), None).unwrap().attempt;
        state.accept(job(2), None);
        let epoch = state.drain();
        assert!(state.next_poll(0).is_none());
        assert!(state.next_poll(epoch).unwrap().draining);
        assert!(state.accept(job(3), None).is_none());
        assert!(state.ended(&started, failed()).is_none());
        let unreported = state.unreported();
        let ids: Vec<_> = unreported.iter().map(|it| &*it.id.execution).collect();
        assert_eq!(ids, ["x.1", "x.2"]);
        assert!(!state.renew_instance("j".into()));
    }
}
