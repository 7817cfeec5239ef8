//! Debts: undos that somebody has to run again, or to settle by hand.
//!
//! A debt belongs to the place where the command ran, label and host, and the next machine with both gets it before any
//! other work, as soon as it polls. A user can have any undo run again, and forgive what is failed or owed.

use super::agent::MAX_HANDED_OUT_BYTES;
use super::task::attempt_key;
use super::undo::Spot;
use super::undo_lifecycle::UndoEvent;
use super::user::Selection;
use super::{Core, ExecutionKey, MachineKey, Refusal, TaskKey, Time};
use crate::wire::agent::{Feature, Orders, Stream, UndoOrder};
use crate::wire::machine::MachineState;
use crate::wire::task::Detail;
use crate::wire::undo::{UndoBy, UndoReason, UndoReport, UndoState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The most undos that an agent runs at a time because they were ordered: half of what it takes, as it has its own.
const MAX_ORDERED: usize = 64;
/// How much of a command's standard output its undo is given, in bytes.
const STDOUT_BYTES: usize = 4 << 10;

impl Core {
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
    pub(super) fn undone_by(&self, key: ExecutionKey) -> Option<Time> {
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
        let spot = machine.spot();
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
    /// poll says, if there is one; what it was handed and does not list has not arrived. Returns how many bytes of the
    /// answer they take: what does not fit, or is too much at a time, goes with a later one.
    pub(super) fn order_undos(
        &mut self,
        now: Time,
        key: MachineKey,
        listed: Option<&[UndoReport]>,
        orders: &mut Orders<Arc<Detail>>,
    ) -> usize {
        let machine = self.machine(key);
        if !machine.abilities.has(Feature::Undo) {
            return 0;
        }
        let spot = machine.spot();
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
        let room = (MAX_ORDERED + lost.len()).saturating_sub(self.handed_undos(key));
        let due = self.undos.due.get(&spot).into_iter().flatten().copied();
        let due = due.filter(|execution| self.is_for(*execution, key));
        let mut bytes = 0;
        for execution in due.chain(lost).take(room).collect::<Vec<_>>() {
            let sent = self.task(execution.task).spec.sent_bytes + STDOUT_BYTES;
            if bytes > 0 && bytes + sent > MAX_HANDED_OUT_BYTES {
                break;
            }
            bytes += sent;
            self.order_undo(now, execution, &instance, orders);
        }
        bytes
    }

    /// How many undos a machine was handed that are not settled.
    fn handed_undos(&self, key: MachineKey) -> usize {
        let machine = self.machine(key);
        let open = self.undos.open.get(&machine.spot()).into_iter().flatten();
        let handed = open.filter(|execution| {
            let undo = self.execution(**execution).current.undo.as_ref();
            undo.is_some_and(|undo| undo.handed_to.as_ref() == Some(&machine.instance))
        });
        handed.count()
    }

    pub(super) fn is_undo_of(&self, key: ExecutionKey, report: &UndoReport) -> bool {
        self.find(&report.id.execution) == Some(key)
            && self.execution(key).current.number == report.id.attempt
    }

    /// Whether a machine is to run a due undo: the machine of the attempt is this one, or is gone and this one came
    /// after it.
    pub(super) fn is_for(&self, execution: ExecutionKey, key: MachineKey) -> bool {
        let Some(target) = self.execution(execution).target.as_ref() else {
            return false;
        };
        match self.instances.get(&target.instance) {
            Some(own) if *own == key => true,
            Some(own) => {
                let (old, new) = (self.machine(*own), self.machine(key));
                old.state == MachineState::Offline && new.since >= old.last_seen
            }
            None => true,
        }
    }

    pub(super) fn order_undo(
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
                // What was said of it before is not true of this run.
                (undo.tries, undo.msg) = (0, "".into());
                (undo.exit_code, undo.check_exit_code) = (None, None);
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
                // Its user is about to read it.
                self.undos.are_settled_by_hand = true;
                Ok(())
            }
            false => Err(Refusal::Conflict(format!(
                "task {}: no undo of it is failed or owed",
                self.task(key).id
            ))),
        }
    }

    /// The executions with an undo that a user means.
    pub(super) fn undos_of(
        &self,
        key: TaskKey,
        selection: &Selection,
    ) -> Result<Vec<ExecutionKey>, Refusal> {
        let task = self.known_task(key)?;
        let meant = task
            .executions
            .iter()
            .zip(0..)
            .filter(|(e, _)| selection.means(e));
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
        let spot = self.machine(key).spot();
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

    /// Whether there is an undo for a machine to run, and it runs less than it may.
    pub(super) fn has_undo_for(&self, key: MachineKey) -> bool {
        let machine = self.machine(key);
        let spot = machine.spot();
        let due = self.undos.due.get(&spot);
        machine.abilities.has(Feature::Undo)
            && due.is_some_and(|due| due.iter().any(|execution| self.is_for(*execution, key)))
            && self.handed_undos(key) < MAX_ORDERED
    }

    /// No machine whose poll is held waits for an undo that it is to run.
    pub(super) fn check_debts_are_handed_out(&self) -> Result<(), String> {
        for ((label, host), due) in &self.undos.due {
            let held = { self.machines.iter() }
                .filter(|(_, m)| m.label == *label && m.host == *host)
                .filter(|(_, m)| m.poll_held && !m.waking && m.takes_undos());
            for (key, machine) in held.filter(|(_, m)| m.abilities.has(Feature::Undo)) {
                if self.has_undo_for(*key) {
                    return Err(format!(
                        "an undo of {due:?} waits, and the poll of {} is held",
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
                let is_open = undo.is_open();
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
                let own = e.target.as_ref().map(|target| &target.instance);
                let who = undo.handed_to.as_ref().or(own);
                let machine = who.and_then(|who| self.instances.get(who));
                let is_there = machine
                    .is_some_and(|machine| self.machine(*machine).state != MachineState::Offline);
                if undo.is_unsettled()
                    && (!is_there || (e.state.is_terminal() && undo.state.is_none()))
                {
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
