//! Undos: what is armed, what runs, what is owed, and who settles it.
//!
//! Each attempt of a task with an undo has one, from the moment in which it is handed out. What agents and guards
//! report of it goes through the table in `undo_lifecycle.rs`. When nobody can say any more what became of it, it is a
//! debt of the place where it ran: label and host. The next machine with both gets it before any other work. A task
//! with a debt is not forgotten, and no further execution with the same lock runs there.
//!
//! Only the latest attempt of an execution can have an undo that is not settled: an attempt whose undo failed or is
//! owed is not followed by another. To add an event: `undo_lifecycle.rs`, and here where it happens.

use super::invariants::{Rule, UndoView};
use super::task::{TaskData, attempt_key, timestamp};
use super::undo_lifecycle::{self, UndoEvent};
use super::user::Selection;
use super::{Core, ExecutionKey, MachineKey, Refusal, TaskKey, Time, data_mut};
use crate::wire::agent::{AttemptId, Feature, Orders, Stream, UndoOrder};
use crate::wire::machine::MachineState;
use crate::wire::task::{Detail, ExecutionState, Mode};
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
/// How much of a command's standard output its undo is given, in bytes.
const STDOUT_BYTES: usize = 4 << 10;

/// The undo of an attempt.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AttemptUndo {
    /// Its state; none until it is armed.
    pub(super) state: Option<UndoState>,
    reason: Option<UndoReason>,
    by: Option<UndoBy>,
    tries: u32,
    exit_code: Option<i32>,
    check_exit_code: Option<i32>,
    msg: Box<str>,
    output: Box<str>,
    armed_at: Option<Time>,
    began_at: Option<Time>,
    ended_at: Option<Time>,
    /// While it is owed because its machine is gone: when that has undone it by itself, if it still can.
    #[serde(default)]
    due_at: Option<Time>,
    /// The machine that is to run it again, until it has.
    handed_to: Option<Arc<str>>,
    /// A user wants it to run again.
    #[serde(default)]
    wanted: bool,
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

    /// Whether it belongs to those that a machine with its label and host is to run.
    fn is_due(&self) -> bool {
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
    due: BTreeMap<Spot, BTreeSet<ExecutionKey>>,
    /// How many are owed or have failed.
    dirty: usize,
    /// The unsettled and the dirty ones at each spot.
    open: BTreeMap<Spot, BTreeSet<ExecutionKey>>,
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

    /// Whether its unfinished executions are counted at their machines.
    pub(super) fn is_guarding(&self) -> bool {
        self.spec.is_guarding() && self.spec.mode == Mode::All
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

    fn spot(&self, key: ExecutionKey) -> Option<Spot> {
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
    fn apply_undo(&mut self, now: Time, key: ExecutionKey, event: UndoEvent) -> bool {
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
    fn count_undo(&mut self, key: ExecutionKey, state: Option<UndoState>) {
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
        let is_open = undo
            .state
            .is_none_or(|state| !state.is_settled() || state.is_dirty());
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

    fn unindex_undo(&mut self, key: ExecutionKey) {
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
        let machine = self.machine(machine);
        let spot = (machine.label.clone(), machine.host.clone());
        self.undos.open.contains_key(&spot)
    }

    /// Why an execution may not be handed to a machine: another one there holds its lock.
    pub(super) fn locked_by(&self, key: ExecutionKey, machine: MachineKey) -> Option<String> {
        let lock = |task: TaskKey| self.task(task).spec.detail.undo.as_ref()?.lock.as_deref();
        let word = lock(key.task).filter(|_| self.keeps(Rule::LockIsHeld))?;
        let machine = self.machine(machine);
        let spot = (machine.label.clone(), machine.host.clone());
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
            // What is settled now may be forgotten.
            self.keep_within_limits();
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
    fn undo_settled(&mut self, now: Time, key: ExecutionKey) {
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
        let is_unsettled = undo.state.is_none_or(|state| !state.is_settled());
        if !is_unsettled || !self.keeps(Rule::LostIsOwed) {
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

    fn lose_undo(&mut self, now: Time, key: ExecutionKey) {
        let due_at = self.undone_by(key);
        if self.apply_undo(now, key, UndoEvent::Lose)
            && let Some(undo) = self.execution_mut(key).current.undo.as_mut()
        {
            (undo.by, undo.due_at) = (Some(UndoBy::Server), due_at);
            undo.msg = "its machine is gone; nobody has said whether it was undone".into();
            if let Some(spot) = self.spot(key) {
                self.wake_for_debts(&spot);
            }
        }
    }

    /// Something may be due now for a machine at a spot: it gets it with the poll that is held for it.
    pub(super) fn wake_for_debts(&mut self, spot: &Spot) {
        if !self.undos.due.contains_key(spot) {
            return;
        }
        for key in self.match_index.machines_at(&spot.0, &spot.1) {
            if self.machine(key).poll_held && self.has_undo_for(key) {
                self.wake(key);
            }
        }
    }

    /// When a machine that has lost the server has undone an execution by itself: its dead man's switch acts so long
    /// after the last contact, then the command is ended, and the undo has one try.
    fn undone_by(&self, key: ExecutionKey) -> Option<Time> {
        let spec = &self.task(key.task).spec;
        let undo = spec.detail.undo.as_ref()?;
        let target = self.execution(key).target.as_ref()?;
        let machine = self.machine(*self.instances.get(&target.instance)?);
        let acts = machine.last_seen.plus(undo.deadman()?);
        Some(acts.plus(spec.kill_grace()).plus(undo.timeout()))
    }

    /// A machine is gone: what it was to undo is owed.
    pub(super) fn lose_undos_of(&mut self, now: Time, key: MachineKey) {
        let machine = self.machine(key);
        let spot = (machine.label.clone(), machine.host.clone());
        let instance = machine.instance.clone();
        let Some(open) = self.undos.open.get(&spot).cloned() else {
            return;
        };
        for execution in open {
            let e = self.execution(execution);
            let is_target = { e.target.as_ref() }.is_some_and(|t| t.instance == instance);
            let undo = e.current.undo.as_ref();
            let handed_to = undo.and_then(|undo| undo.handed_to.as_ref());
            let is_its_own = match handed_to {
                Some(other) => *other == instance,
                None => is_target,
            };
            if is_its_own {
                self.lose_undo(now, execution);
                self.undo_settled(now, execution);
            }
        }
    }

    /// Adds the undos that a machine is to run: what is owed where it is, and what users want. `listed` is what its
    /// poll says, if there is one; what it was handed and does not list has not arrived.
    pub(super) fn order_undos(
        &mut self,
        now: Time,
        key: MachineKey,
        listed: Option<&[UndoReport]>,
        orders: &mut Orders<Arc<Detail>>,
    ) {
        let machine = self.machine(key);
        if !machine.abilities.has(Feature::Undo) {
            return;
        }
        let spot = (machine.label.clone(), machine.host.clone());
        let instance = machine.instance.clone();
        let open = self.undos.open.get(&spot).into_iter().flatten().copied();
        let lost = open.filter(|execution| {
            let undo = self.execution(*execution).current.undo.as_ref();
            let is_handed = undo.is_some_and(|undo| undo.handed_to.as_ref() == Some(&instance));
            let is_listed = |listed: &[UndoReport]| {
                listed
                    .iter()
                    .any(|report| self.is_undo_of(*execution, report))
            };
            is_handed && listed.is_some_and(|listed| !is_listed(listed))
        });
        let lost: Vec<ExecutionKey> = lost.collect();
        let due = self.undos.due.get(&spot).into_iter().flatten().copied();
        let due = due.filter(|execution| self.is_for(*execution, key));
        for execution in due.chain(lost).collect::<Vec<_>>() {
            self.order_undo(now, execution, &instance, orders);
        }
    }

    fn is_undo_of(&self, key: ExecutionKey, report: &UndoReport) -> bool {
        self.find(&report.id.execution) == Some(key)
            && self.execution(key).current.number == report.id.attempt
    }

    /// Whether a machine is to run a due undo: the machine of the attempt is this one, or is gone and this one came
    /// after it.
    fn is_for(&self, execution: ExecutionKey, key: MachineKey) -> bool {
        let Some(target) = self.execution(execution).target.as_ref() else {
            return false;
        };
        match self.instances.get(&target.instance) {
            Some(own) if *own == key => true,
            Some(own) => {
                let (old, new) = (self.machine(*own), self.machine(key));
                !old.is_live() && new.since >= old.last_seen
            }
            None => true,
        }
    }

    fn order_undo(
        &mut self,
        now: Time,
        key: ExecutionKey,
        instance: &Arc<str>,
        orders: &mut Orders<Arc<Detail>>,
    ) {
        let undo = self.execution(key).current.undo.as_ref();
        let reason = match undo.is_some_and(|undo| undo.state == Some(UndoState::Owed)) {
            true => UndoReason::Owed,
            false => UndoReason::ByHand,
        };
        let is_new = self.apply_undo(now, key, UndoEvent::Again);
        if let Some(undo) = self.execution_mut(key).current.undo.as_mut() {
            undo.handed_to = Some(instance.clone());
            if is_new {
                (undo.reason, undo.by) = (Some(reason), Some(UndoBy::Agent));
            }
        }
        let task = self.task(key.task);
        let current = &task.executions[key.n as usize].current;
        let stdout = current.output.as_ref();
        let stdout = stdout.map(|output| output.text(Stream::Stdout, STDOUT_BYTES).0);
        let id = task.attempt_id(key);
        orders.undo.push(UndoOrder {
            execution: id.execution,
            attempt: id.attempt,
            task_id: task.id.to_string(),
            task_name: task.spec.name.to_string(),
            key: attempt_key(&task.prefix, key.n, id.attempt),
            reason: current
                .undo
                .as_ref()
                .and_then(|undo| undo.reason)
                .unwrap_or(reason),
            exit_code: current.exit_code,
            stdout: stdout.unwrap_or_default(),
            detail: task.spec.detail.clone(),
        });
    }

    /// Has the undos of a task run again: of all its executions, or of those on one machine. Refused with
    /// [`Refusal::Conflict`] if one of them runs or nothing of it was started.
    pub fn undo_again(&mut self, key: TaskKey, selection: &Selection) -> Result<(), Refusal> {
        let selected = self.undos_of(key, selection)?;
        let is_settled = |e: &&ExecutionKey| {
            let undo = self.execution(**e).current.undo.as_ref();
            let state = undo.and_then(|undo| undo.state);
            state.is_some_and(|state| state.is_settled() && state != UndoState::NotNeeded)
        };
        let settled: Vec<ExecutionKey> = selected.iter().filter(is_settled).copied().collect();
        if settled.is_empty() {
            return Err(Refusal::Conflict(format!(
                "task {}: no undo of it has ended yet",
                self.task(key).id
            )));
        }
        for execution in settled {
            self.unindex_undo(execution);
            if let Some(undo) = self.execution_mut(execution).current.undo.as_mut() {
                undo.wanted = true;
            }
            self.index_undo(execution);
            if let Some(spot) = self.spot(execution) {
                self.wake_for_debts(&spot);
            }
        }
        Ok(())
    }

    /// Settles debts of a task by hand; `who` says who takes the responsibility.
    pub fn forgive(
        &mut self,
        now: Time,
        key: TaskKey,
        selection: &Selection,
        who: &str,
    ) -> Result<(), Refusal> {
        let mut any = false;
        for execution in self.undos_of(key, selection)? {
            if self.apply_undo(now, execution, UndoEvent::Forgive) {
                any = true;
                if let Some(undo) = self.execution_mut(execution).current.undo.as_mut() {
                    undo.by = Some(UndoBy::Server);
                    undo.msg = format!("forgiven by {who}").into();
                }
            }
        }
        match any {
            true => {
                self.finish_if_done(now, key);
                self.keep_within_limits();
                Ok(())
            }
            false => Err(Refusal::Conflict(format!(
                "task {}: no undo of it is failed or owed",
                self.task(key).id
            ))),
        }
    }

    /// The executions with an undo that a user means.
    fn undos_of(&self, key: TaskKey, selection: &Selection) -> Result<Vec<ExecutionKey>, Refusal> {
        let task = self.known_task(key)?;
        let meant = { task.executions.iter().zip(0..) }.filter(|(e, _)| match selection {
            Selection::All => true,
            Selection::Machine(name) => {
                let target = e.target.as_ref();
                target.is_some_and(|target| target.is_named(name))
            }
        });
        let with_undo = meant.filter(|(e, _)| e.current.undo.is_some());
        let keys: Vec<ExecutionKey> = with_undo
            .map(|(_, n)| ExecutionKey { task: key, n })
            .collect();
        match (keys.is_empty(), selection) {
            (false, _) => Ok(keys),
            (true, Selection::Machine(name)) => Err(Refusal::not_on(task, name)),
            (true, Selection::All) => Err(Refusal::Conflict(format!(
                "task {}: nothing of it was handed out with an undo",
                task.id
            ))),
        }
    }

    /// A new machine has appeared. An older one with its label and host that has hung up is gone: what it was to undo
    /// is owed, and the new one gets it at once.
    pub(super) fn replace_hung_up(&mut self, now: Time, key: MachineKey) {
        let machine = self.machine(key);
        let spot = (machine.label.clone(), machine.host.clone());
        let there = self.undos.open.get(&spot).into_iter().flatten();
        let instances = there.filter_map(|e| Some(&self.execution(*e).target.as_ref()?.instance));
        let machines = instances.filter_map(|instance| self.instances.get(instance).copied());
        let gone: BTreeSet<MachineKey> = machines
            .filter(|other| *other != key && self.machine(*other).has_hung_up)
            .collect();
        for other in gone {
            if self.machine(other).state != MachineState::Offline {
                self.take_offline(now, other, "another one has taken its place");
            }
        }
    }

    /// Whether there is an undo for a machine to run.
    pub(super) fn has_undo_for(&self, key: MachineKey) -> bool {
        let machine = self.machine(key);
        let spot = (machine.label.clone(), machine.host.clone());
        let due = self.undos.due.get(&spot);
        machine.abilities.has(Feature::Undo)
            && due.is_some_and(|due| due.iter().any(|execution| self.is_for(*execution, key)))
    }

    /// No machine whose poll is held waits for an undo that it is to run.
    pub(super) fn check_debts_are_handed_out(&self) -> Result<(), String> {
        for ((label, host), due) in &self.undos.due {
            let held = { self.machines.iter() }
                .filter(|(_, m)| m.label == *label && m.host == *host)
                .filter(|(_, m)| m.poll_held && !m.waking && m.is_live());
            for (key, machine) in held.filter(|(_, m)| m.abilities.has(Feature::Undo)) {
                if let Some(execution) = due.iter().find(|it| self.is_for(**it, *key)) {
                    return Err(format!(
                        "the undo of {execution:?} waits, and the poll of {} is held",
                        machine.instance
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks the counts and indexes of undos.
    pub(super) fn check_undos(&self) -> Result<(), String> {
        let mut dirty = 0;
        let (mut due, mut open) = (0, 0);
        for (key, task) in &self.tasks {
            let mut counts = crate::wire::undo::UndoCounts::default();
            for (e, n) in task.executions.iter().zip(0..) {
                let Some(undo) = e.current.undo.as_ref() else {
                    continue;
                };
                let execution = ExecutionKey { task: *key, n };
                if let Some(state) = undo.state {
                    *counts.of(state) += 1;
                    dirty += usize::from(state.is_dirty());
                }
                let is_open = undo.state.is_none_or(|s| !s.is_settled() || s.is_dirty());
                let spot = self.spot(execution);
                let listed = |index: &BTreeMap<Spot, BTreeSet<ExecutionKey>>| {
                    let keys = spot.as_ref().and_then(|spot| index.get(spot));
                    keys.is_some_and(|keys| keys.contains(&execution))
                };
                let listed = [listed(&self.undos.due), listed(&self.undos.open)];
                if listed != [undo.is_due(), is_open] {
                    return Err(format!(
                        "{execution:?}: undo {:?} listed {listed:?}",
                        undo.state
                    ));
                }
                due += usize::from(undo.is_due());
                open += usize::from(is_open);
                // An agent that was thought to be gone may still have it armed when its execution has ended.
                let is_unsettled = undo.state.is_none_or(|state| !state.is_settled());
                let own = e.target.as_ref().map(|target| &target.instance);
                let who = undo.handed_to.as_ref().or(own);
                let machine = who.and_then(|who| self.instances.get(who));
                let is_there = machine
                    .is_some_and(|machine| self.machine(*machine).state != MachineState::Offline);
                if is_unsettled && (!is_there || (e.state.is_terminal() && undo.state.is_none())) {
                    return Err(format!(
                        "{execution:?}: {:?}, its undo is {:?}, and nobody works on it",
                        e.state, undo.state
                    ));
                }
            }
            if counts != task.undos {
                return Err(format!(
                    "{key:?}: undos {:?}, recounted {counts:?}",
                    task.undos
                ));
            }
        }
        let total = |index: &BTreeMap<Spot, BTreeSet<ExecutionKey>>| -> usize {
            index.values().map(BTreeSet::len).sum()
        };
        let listed = (
            total(&self.undos.due),
            total(&self.undos.open),
            self.undos.dirty,
        );
        match listed == (due, open, dirty) {
            true => Ok(()),
            false => Err(format!(
                "undos {listed:?}, recounted {:?}",
                (due, open, dirty)
            )),
        }
    }
}
