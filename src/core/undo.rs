//! Undos: what is armed, what runs, what is owed, and who settles it.
//!
//! Each attempt of a task with an undo has one, from the moment in which it is handed out. What agents and guards
//! report of it goes through the table in `undo_lifecycle.rs`. When nobody can say any more what became of it, it is a
//! debt of the place where it ran: label and host. The next machine with both gets it before any other work. A task
//! with a debt is kept for seven days at least, and no further execution with the same lock runs there.
//!
//! Only the latest attempt of an execution can have an undo that is not settled: an attempt whose undo failed or is
//! owed is not followed by another. To add an event: `undo_lifecycle.rs`, and here where it happens.

use super::invariants::{Rule, UndoView};
use super::task::{TaskData, timestamp};
use super::undo_lifecycle::{self, UndoEvent};
use super::{Core, ExecutionKey, MachineKey, TaskKey, Time, data_mut};
use crate::wire::agent::AttemptId;
use crate::wire::machine::MachineState;
use crate::wire::task::ExecutionState;
use crate::wire::undo::{AnsweredUndo, UndoBy, UndoReason, UndoReport, UndoState};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The most debts, in number; then tasks with an undo are refused.
pub(super) const MAX_DEBTS: usize = 10_000;
/// The longest output of an undo that is kept, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 << 10;
/// The longest reason that is kept, in bytes.
const MAX_MSG_BYTES: usize = 4 << 10;

/// The undo of an attempt.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AttemptUndo {
    /// Its state; none until it is armed.
    pub(super) state: Option<UndoState>,
    pub(super) reason: Option<UndoReason>,
    pub(super) by: Option<UndoBy>,
    pub(super) tries: u32,
    pub(super) exit_code: Option<i32>,
    pub(super) check_exit_code: Option<i32>,
    pub(super) msg: Box<str>,
    pub(super) output: Box<str>,
    pub(super) armed_at: Option<Time>,
    pub(super) began_at: Option<Time>,
    pub(super) ended_at: Option<Time>,
    /// While it is owed because its machine is gone: when that has undone it by itself, if it still can.
    #[serde(default)]
    pub(super) due_at: Option<Time>,
    /// The machine that is to run it again, until it has.
    pub(super) handed_to: Option<Arc<str>>,
    /// A user wants it to run again.
    #[serde(default)]
    pub(super) wanted: bool,
}

impl AttemptUndo {
    /// What is kept of its output, in bytes.
    pub(super) fn kept(&self) -> usize {
        self.output.len()
    }

    /// As the simulation sees it.
    pub(super) fn view(&self) -> UndoView<'_> {
        UndoView {
            state: self.state,
            handed_to: self.handed_to.as_deref(),
        }
    }

    /// Whether somebody works on it, or is about to.
    pub(super) fn is_unsettled(&self) -> bool {
        self.state.is_none_or(|state| !state.is_settled())
    }

    /// Whether something of it is left to do: it is unsettled, or a debt.
    pub(super) fn is_open(&self) -> bool {
        self.is_unsettled() || self.state.is_some_and(UndoState::is_dirty)
    }

    /// Whether it belongs to those that a machine with its label and host is to run.
    pub(super) fn is_due(&self) -> bool {
        self.state == Some(UndoState::Owed) || self.wanted
    }

    /// As the API answers it.
    pub(super) fn answer(&self) -> AnsweredUndo<Cow<'_, str>> {
        let time = |time: Option<Time>| time.map(timestamp);
        AnsweredUndo {
            state: self.state.unwrap_or(UndoState::Armed),
            reason: self.reason,
            by: self.by,
            tries: self.tries,
            exit_code: self.exit_code,
            check_exit_code: self.check_exit_code,
            msg: Cow::from(&*self.msg),
            output: Cow::from(&*self.output),
            armed_at: time(self.armed_at),
            began_at: time(self.began_at),
            ended_at: time(self.ended_at),
            due_at: time(self.due_at),
        }
    }
}

/// Where something runs, whichever process of a machine it is: a label and a host.
pub(super) type Spot = (Arc<str>, Arc<str>);

/// What undos are indexed by.
#[derive(Debug, Default)]
pub(super) struct Undos {
    /// Those that the next machine at a spot is to run.
    pub(super) due: BTreeMap<Spot, BTreeSet<ExecutionKey>>,
    /// How many are owed or have failed.
    pub(super) dirty: usize,
    /// Debts were forgiven: what was kept because of them is forgotten with the next tick, if the limits want that.
    pub(super) are_settled_by_hand: bool,
    /// The unsettled and the dirty ones at each spot.
    pub(super) open: BTreeMap<Spot, BTreeSet<ExecutionKey>>,
}

impl TaskData {
    /// How many of its undos are failed or owed.
    pub(super) fn dirty(&self) -> u32 {
        self.undos.failed + self.undos.owed
    }

    /// How many of its undos somebody works on.
    pub(super) fn undos_under_way(&self) -> u32 {
        self.undos.armed + self.undos.running
    }

    /// Whether somebody has to know of it: an undo of it is failed or owed, or runs and may be so next.
    pub(super) fn is_in_debt(&self) -> bool {
        self.dirty() + self.undos_under_way() > 0
    }

    /// Whether it has an undo.
    pub(super) fn has_undo(&self) -> bool {
        self.spec.detail.undo.is_some()
    }
}

impl Core {
    /// How many undos are failed or owed.
    pub fn debts(&self) -> usize {
        self.undos.dirty
    }

    pub(super) fn spot(&self, key: ExecutionKey) -> Option<Spot> {
        let target = self.execution(key).target.as_ref()?;
        Some((target.label.clone(), target.host.clone()))
    }

    /// An attempt is being handed to a machine: from now on it may have an effect there.
    pub(super) fn begin_undo(&mut self, key: ExecutionKey) {
        if !self.task(key.task).has_undo() {
            return;
        }
        self.execution_mut(key).current.undo = Some(Box::default());
        self.index_undo(key);
    }

    /// A hand-out provably did not arrive.
    pub(super) fn drop_undo(&mut self, key: ExecutionKey) {
        if let Some(undo) = &self.execution(key).current.undo {
            let kept = undo.kept();
            self.unindex_undo(key);
            self.count_undo(key, None);
            self.execution_mut(key).current.undo = None;
            data_mut(&mut self.tasks, key.task).output_bytes -= kept;
            self.ledger.resize_output(kept, 0);
        }
    }

    /// Applies an event to the undo of an execution's latest attempt, if the table allows it. The only place where
    /// its state changes.
    pub(super) fn apply_undo(&mut self, now: Time, key: ExecutionKey, event: UndoEvent) -> bool {
        let Some(undo) = self.execution(key).current.undo.as_ref() else {
            return false;
        };
        let Some(state) = undo_lifecycle::next(undo.state, event) else {
            return false;
        };
        let forgotten_at = self.forgotten_at(key.task);
        self.unindex_undo(key);
        self.count_undo(key, Some(state));
        if let Some(undo) = self.execution_mut(key).current.undo.as_mut() {
            (undo.state, undo.due_at) = (Some(state), None);
            match state {
                UndoState::Armed => undo.armed_at = undo.armed_at.or(Some(now)),
                UndoState::Running => {
                    (undo.began_at, undo.ended_at) = (Some(now), None);
                    undo.wanted = false;
                }
                _ => {
                    undo.ended_at = Some(now);
                    undo.handed_to = None;
                }
            }
        }
        self.index_undo(key);
        self.record_change(key);
        self.change_forgetting(key.task, forgotten_at);
        true
    }

    /// Takes the undo of an attempt that is followed by another out of the counts.
    pub(super) fn leave_undo(&mut self, key: ExecutionKey) {
        if self.execution(key).current.undo.is_some() {
            self.unindex_undo(key);
            self.count_undo(key, None);
        }
    }

    /// A task is forgotten, and its undos with it: also those that users wanted again, and debts that were kept for long
    /// enough.
    pub(super) fn forget_undos(&mut self, key: TaskKey) {
        if !self.task(key).has_undo() {
            return;
        }
        for n in 0..self.task(key).executions.len() as u32 {
            self.leave_undo(ExecutionKey { task: key, n });
        }
    }

    /// Counts an undo in its new state.
    pub(super) fn count_undo(&mut self, key: ExecutionKey, state: Option<UndoState>) {
        let was = self.execution(key).current.undo.as_ref();
        let was = was.and_then(|undo| undo.state);
        let is_dirty =
            |state: Option<UndoState>| usize::from(state.is_some_and(UndoState::is_dirty));
        self.undos.dirty = self.undos.dirty + is_dirty(state) - is_dirty(was);
        let counts = &mut data_mut(&mut self.tasks, key.task).undos;
        if let Some(was) = was {
            *counts.of(was) -= 1;
        }
        if let Some(state) = state {
            *counts.of(state) += 1;
        }
    }

    /// Lists an undo where machines, locks and counts find it.
    pub(super) fn index_undo(&mut self, key: ExecutionKey) {
        let Some(spot) = self.spot(key) else { return };
        let Some(undo) = self.execution(key).current.undo.as_ref() else {
            return;
        };
        let is_open = undo.is_open();
        if undo.is_due() {
            self.undos.due.entry(spot.clone()).or_default().insert(key);
        }
        if is_open {
            self.undos.open.entry(spot).or_default().insert(key);
        }
    }

    /// Counts and lists a restored undo; its task counts it already.
    pub(super) fn restore_undo(&mut self, key: ExecutionKey) {
        let execution = self.execution(key);
        let past = execution.past.iter().map(|past| &past.attempt);
        let undos = past.chain([&*execution.current]);
        let undos = undos.filter_map(|attempt| attempt.undo.as_ref());
        let kept = undos.map(|undo| undo.kept()).sum();
        let is_dirty = execution.current.is_dirty();
        self.undos.dirty += usize::from(is_dirty);
        self.ledger.resize_output(0, kept);
        self.index_undo(key);
    }

    pub(super) fn unindex_undo(&mut self, key: ExecutionKey) {
        let Some(spot) = self.spot(key) else { return };
        for index in [&mut self.undos.due, &mut self.undos.open] {
            if let Some(keys) = index.get_mut(&spot) {
                keys.remove(&key);
                if keys.is_empty() {
                    index.remove(&spot);
                }
            }
        }
    }

    /// Whether an undo is unsettled, failed or owed where a machine is.
    pub(super) fn has_open_undo(&self, machine: MachineKey) -> bool {
        !self.undos.open.is_empty() && {
            let spot = self.machine(machine).spot();
            self.undos.open.contains_key(&spot)
        }
    }

    /// Why an execution may not be handed to a machine: another one there holds its lock.
    pub(super) fn locked_by(&self, key: ExecutionKey, machine: MachineKey) -> Option<String> {
        let lock = |task: TaskKey| self.task(task).spec.detail.undo.as_ref()?.lock.as_deref();
        let word = lock(key.task).filter(|_| self.keeps(Rule::LockIsHeld))?;
        let spot = self.machine(machine).spot();
        let mut others = self.undos.open.get(&spot)?.iter();
        let holder = others.find(|other| **other != key && lock(other.task) == Some(word))?;
        let state = self.execution(*holder).current.undo.as_ref()?.state;
        let what = match state {
            None => "about to start",
            Some(UndoState::Armed) => "running",
            Some(state) => state.word(),
        };
        Some(format!(
            "detail.undo.lock: {word:?} is held on this machine by task {}, whose undo is {what}",
            self.task(holder.task).id
        ))
    }

    /// Takes in what an agent, or a guard, says about undos. Returns those that need not be reported again.
    pub fn report_undos(
        &mut self,
        now: Time,
        instance: &str,
        reports: &[UndoReport],
    ) -> Vec<AttemptId> {
        let machine = self.instances.get(instance).copied();
        let is_there = machine.is_some_and(|key| self.machine(key).state != MachineState::Offline);
        for report in reports {
            // A late report of a machine that is gone: it does not work on it any more, whatever it wrote then. What has
            // ended then has ended.
            if !is_there && !report.state.is_settled() {
                continue;
            }
            if let Some(key) = self.find(&report.id.execution)
                && self.may_report_undo(key, instance, &report.id)
            {
                self.undo_reported(now, key, report);
            }
        }
        if !reports.is_empty() {
            // What is settled now may be forgotten, and there is room for another that is due.
            self.keep_within_limits();
            if let Some(machine) = self.instances.get(instance) {
                self.wake_for_debts(&self.machine(*machine).spot());
            }
        }
        // Whatever is not known here any more is of no use to anybody.
        reports.iter().map(|report| report.id.clone()).collect()
    }

    /// Whether this instance may say what became of an undo: it was handed the attempt, or the undo.
    fn may_report_undo(&self, key: ExecutionKey, instance: &str, id: &AttemptId) -> bool {
        let execution = self.execution(key);
        let Some(undo) = execution.current.undo.as_ref() else {
            return false;
        };
        let is_target = { execution.target.as_ref() }.is_some_and(|t| *t.instance == *instance);
        let is_handed = undo.handed_to.as_deref() == Some(instance);
        execution.current.number == id.attempt && (is_target || is_handed)
    }

    fn undo_reported(&mut self, now: Time, key: ExecutionKey, report: &UndoReport) {
        let event = match report.state {
            UndoState::NotNeeded => UndoEvent::NotStarted,
            UndoState::Armed => UndoEvent::Arm,
            UndoState::Running => UndoEvent::Begin,
            UndoState::Done => UndoEvent::Succeed,
            UndoState::Failed => UndoEvent::Fail,
            // Only the server decides these.
            UndoState::Owed | UndoState::Forgiven => return,
        };
        let before = self.execution(key).current.undo.as_ref();
        let is_news = before.is_some_and(|undo| undo_lifecycle::next(undo.state, event).is_some());
        if !is_news {
            return;
        }
        let ago = |ms: Option<u64>| ms.map(|ms| Time(now.0.saturating_sub(ms)));
        let short = |text: &str, most: usize| -> Box<str> {
            let from = text.len().saturating_sub(most);
            text[text.ceil_char_boundary(from)..].into()
        };
        let output = short(&report.output, MAX_OUTPUT_BYTES);
        let before = before.map_or(0, |undo| undo.kept());
        let kept = match self.make_room_for_output(output.len().saturating_sub(before)) {
            true => output,
            false => "".into(),
        };
        // It may have been forgotten to make that room.
        if !self.tasks.contains_key(&key.task) || !self.apply_undo(now, key, event) {
            return;
        }
        let after = kept.len();
        if let Some(undo) = self.execution_mut(key).current.undo.as_mut() {
            undo.reason = report.reason.or(undo.reason);
            undo.by = Some(report.by);
            undo.tries = report.tries;
            undo.exit_code = report.exit_code;
            undo.check_exit_code = report.check_exit_code;
            undo.msg = report.msg[..report.msg.floor_char_boundary(MAX_MSG_BYTES)].into();
            undo.output = kept;
            undo.began_at = ago(report.began_ago_ms).or(undo.began_at);
            undo.ended_at = ago(report.ended_ago_ms).or(undo.ended_at);
        }
        let task = data_mut(&mut self.tasks, key.task);
        task.output_bytes = task.output_bytes + after - before;
        self.ledger.resize_output(before, after);
        self.list_finished_again(key.task);
        self.undo_settled(now, key);
    }

    /// What has to follow when an undo may have been settled: the end of its task, or the end of a rollout.
    pub(super) fn undo_settled(&mut self, now: Time, key: ExecutionKey) {
        if self.execution(key).state.is_terminal() {
            self.pace_after_end(now, key.task);
            self.finish_if_done(now, key.task);
        }
    }

    /// The end of an attempt has to say what became of its undo: an agent reports both together. What it does not
    /// say is owed, unless the command was certainly never started.
    pub(super) fn settle_undo(&mut self, now: Time, key: ExecutionKey, state: ExecutionState) {
        let current = &self.execution(key).current;
        let Some(undo) = current.undo.as_ref() else {
            return;
        };
        if !undo.is_unsettled() || !self.keeps(Rule::LostIsOwed) {
            return;
        }
        let never_started = current.reported && current.duration_ms.is_none();
        match undo.state {
            None if never_started && state != ExecutionState::Lost => {
                self.apply_undo(now, key, UndoEvent::NotStarted);
            }
            _ => self.lose_undo(now, key),
        }
    }

    pub(super) fn lose_undo(&mut self, now: Time, key: ExecutionKey) {
        let target = self.execution(key).target.as_ref();
        let machine = target.and_then(|target| self.instances.get(&target.instance));
        let is_gone = machine.is_none_or(|key| self.machine(*key).state == MachineState::Offline);
        let (due_at, why) = match is_gone {
            true => (
                self.undone_by(key),
                "its machine is gone; nobody has said whether it was undone",
            ),
            false => (None, "its agent has not said whether it was undone"),
        };
        if self.apply_undo(now, key, UndoEvent::Lose)
            && let Some(undo) = self.execution_mut(key).current.undo.as_mut()
        {
            (undo.by, undo.due_at) = (Some(UndoBy::Server), due_at);
            undo.msg = why.into();
            if let Some(spot) = self.spot(key) {
                self.wake_for_debts(&spot);
            }
        }
    }
}
