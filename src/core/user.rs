//! The operations of users: rerun, cancel, delete. Submits are in `launch.rs`, and those that change the pace of a task in
//! `pacing.rs`.

use super::abilities::Abilities;
use super::counting::{MAX_NAMED, first_named};
use super::invariants::Rule;
use super::machine::JoinCursor;
use super::match_index::{SelectorKey, TraitsKey};
use super::named_limits::SetKey;
use super::task::{Execution, Place, Target, Task};
use super::{Core, ExecutionKey, MachineKey, Refusal, TaskKey, Time, data_mut};
use crate::wire::duration::TimeSpan;
use crate::wire::task::{ExecutionState, TaskState};
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

/// How long an online machine may take to confirm a cancel, beyond the command's own grace.
const CANCEL_CONFIRMED_WITHIN: TimeSpan = TimeSpan::from_secs(60);

/// The most open tasks that a machine joins in one call: it runs under the lock.
const MAX_JOINS: usize = 500;
/// The cursor of a machine that has joined nothing.
pub(super) const JOIN_ALL: JoinCursor = (SelectorKey::FIRST, TaskKey(0));

/// Which executions of a task to cancel.
#[derive(Debug, Clone)]
pub enum Selection {
    /// All of them.
    All,
    /// Those on the machine with this instance, or on the machines with this label.
    Machine(String),
}

impl Selection {
    /// Whether it means an execution.
    pub(super) fn means(&self, execution: &Execution) -> bool {
        match (self, &execution.target) {
            (Selection::All, _) => true,
            (Selection::Machine(name), Some(target)) => target.is_named(name),
            (Selection::Machine(_), None) => false,
        }
    }
}

impl Core {
    /// Submits a task again as a new task: on the machines where it did not succeed, or on all of them.
    pub fn rerun(
        &mut self,
        now: Time,
        fresh_id: &str,
        of: TaskKey,
        all: bool,
    ) -> Result<TaskKey, Refusal> {
        let id: Arc<str> = fresh_id.into();
        self.check_unused(&id, &id)?;
        let old_key = of;
        let old = self.known_task(of)?;
        self.check_halt(old.has_undo())?;
        self.check_notify(&old.spec)?;
        let of = old.id.clone();
        let mut spec = old.spec_again();
        let wanted =
            |e: &&Execution| e.state.is_terminal() && (all || e.state != ExecutionState::Succeeded);
        if old.executions.is_empty() || old.is_any() {
            if old.finished_at.is_none() {
                return Err(Refusal::Conflict(format!(
                    "task {} has not ended yet",
                    old.id
                )));
            }
            if old.executions.iter().filter(wanted).count() < old.executions.len() {
                return Err(nothing_to_rerun(old));
            }
            let key = self.submit(now, fresh_id, spec)?;
            self.task_mut(key).rerun_of = Some(of);
            return Ok(key);
        }
        let mut targets: Vec<Arc<Target>> = old
            .executions
            .iter()
            .filter(wanted)
            .filter_map(|e| e.target.clone())
            .collect();
        if targets.is_empty() && old.finished_at.is_none() {
            return Err(Refusal::Conflict(format!(
                "no execution of task {} has ended without success yet",
                old.id
            )));
        }
        if targets.is_empty() {
            return Err(nothing_to_rerun(old));
        }
        let machine_of = |target: &Arc<Target>| {
            let key = *self.instances.get(&target.instance)?;
            self.machine(key).is_live().then_some(key)
        };
        let machines: Vec<Option<MachineKey>> = targets.iter().map(machine_of).collect();
        let matched = machines.iter().flatten().count();
        if matched == 0 {
            let again = self.labels_live_again(&targets);
            let what = match again.is_empty() {
                true => "submit it again to reach those that are".into(),
                false => format!(
                    "there again, but as a new machine: {}; submit the task again to reach it",
                    again.join(", ")
                ),
            };
            return Err(Refusal::Impossible(format!(
                "none of the machines of task {} is online; {what}",
                old.id
            )));
        }
        let choice = self.choose_again(now, &spec, &mut targets)?;
        let replaced = self.check_unique(&spec)?;
        self.check_named_limits(&spec.limits)?;
        self.check_room(&spec, targets.len())?;
        self.check_children(&id, &id, &spec)?;
        spec.late_join = false;
        let same = self.known_task(old_key)?.spec.clone();
        let spec = match spec == *same {
            true => same,
            false => Arc::new(spec),
        };
        let targets = targets.into_iter().map(Some).collect();
        let key = self.add_task(now, id.clone(), id, spec, None);
        self.add_children(now, key);
        self.add_executions(now, key, targets, &choice);
        self.task_mut(key).rerun_of = Some(of);
        if self.task(key).pacing.is_some() {
            self.pace(now, key);
            self.replace(now, replaced);
            return Ok(key);
        }
        for (n, machine) in (0..).zip(machines) {
            let execution = ExecutionKey { task: key, n };
            match machine {
                Some(machine) => self.queue_first(now, execution, machine),
                None => {
                    self.end_attempt(
                        now,
                        execution,
                        ExecutionState::Lost,
                        "its machine is not there any more",
                    );
                }
            }
        }
        Ok(key)
    }

    /// Cancels executions: queued ones never start, running ones are killed. A finished task does not change.
    /// Refused with [`Refusal::Impossible`] if the task has no execution on the selected machine.
    pub fn cancel(
        &mut self,
        now: Time,
        key: TaskKey,
        selection: &Selection,
    ) -> Result<(), Refusal> {
        let task = self.known_task(key)?;
        let executions: Vec<ExecutionKey> = (0..)
            .zip(&task.executions)
            .filter(|(_, e)| selection.means(e))
            .map(|(n, _)| ExecutionKey { task: key, n })
            .collect();
        match selection {
            Selection::Machine(name) if executions.is_empty() => {
                return Err(Refusal::not_on(task, name));
            }
            Selection::All if task.finished_at.is_none() => {
                self.mark_canceled(now, key);
            }
            _ => {}
        }
        for execution in executions {
            // With its last end a task may be forgotten, to make room.
            if self.tasks.contains_key(&key) {
                self.cancel_execution(now, execution);
            }
        }
        self.finish_if_done(now, key);
        Ok(())
    }

    /// A user cancels all of an unfinished task: nothing more of it starts than what is queued.
    pub(super) fn mark_canceled(&mut self, now: Time, key: TaskKey) {
        self.task_mut(key).canceled = true;
        self.close(key);
        let state = TaskState::Canceled;
        self.end_unbegun(now, key, state, "canceled before it began");
    }

    pub(super) fn cancel_execution(&mut self, now: Time, key: ExecutionKey) {
        let execution = self.execution(key);
        match (execution.state, execution.place) {
            (ExecutionState::Queued | ExecutionState::Held, _) => {
                self.end_attempt(
                    now,
                    key,
                    ExecutionState::Canceled,
                    "canceled before it started",
                );
            }
            (_, Place::Active(machine)) if self.machine(machine).is_original() => {
                self.cancel_at_original(now, key, machine);
            }
            (_, Place::Active(machine)) if !execution.canceling => {
                let id = self.task(key.task).attempt_id(key);
                let grace = self.task(key.task).spec.kill_grace();
                let execution = self.execution_mut(key);
                execution.canceling = true;
                execution.current.msg = "cancel requested".into();
                self.set_overdue(key, now.plus(grace).plus(CANCEL_CONFIRMED_WITHIN));
                self.machine_mut(machine).cancels.push(id);
                self.wake(machine);
            }
            _ => {}
        }
    }

    /// Forgets a finished task.
    pub fn delete(&mut self, key: TaskKey) -> Result<(), Refusal> {
        let task = self.known_task(key)?;
        if task.finished_at.is_none() {
            return Err(Refusal::Conflict(format!(
                "task {} has not ended yet; cancel it first",
                task.id
            )));
        }
        if let (Some(of), true) = (&task.spec.scheduled, task.is_last_firing) {
            return Err(Refusal::Conflict(format!(
                "task {} is the last firing of schedule {}, which still needs it; delete the schedule first",
                task.id, of.schedule
            )));
        }
        if task.dirty() > 0 {
            return Err(Refusal::Conflict(format!(
                "task {} is not clean, {} of its undos are failed or owed; run them again (undo), or settle them by hand (forgive)",
                task.id,
                task.dirty()
            )));
        }
        if task.is_in_debt() {
            return Err(Refusal::Conflict(format!(
                "task {} is not clean yet, {} of its undos run again; delete it when they have ended",
                task.id,
                task.undos_under_way()
            )));
        }
        if let Some(children) = self.kept_for(key) {
            return Err(Refusal::Conflict(format!(
                "task {} is kept for those that begin after it and have not started: {children}; cancel them first",
                task.id
            )));
        }
        self.forget_task(key);
        Ok(())
    }

    /// Withdraws a task that was just submitted and could not be saved. It is forgotten as soon as it is known
    /// that nothing of it has started. If something has, it is canceled, and the task is kept to show that.
    pub fn withdraw(&mut self, now: Time, key: TaskKey) {
        if self.cancel(now, key, &Selection::All).is_ok() {
            self.task_mut(key).withdrawn = true;
            self.forget_if_withdrawn(key);
        }
    }

    pub(super) fn known_task(&self, key: TaskKey) -> Result<&Task, Refusal> {
        self.tasks
            .get(&key)
            .ok_or_else(|| Refusal::Unknown("the task has just been forgotten".into()))
    }

    pub(super) fn check_unused(&self, id: &str, prefix: &str) -> Result<(), Refusal> {
        let taken = self.task_ids.get(id).copied();
        let of_another = || match prefix == id {
            true => self.task_prefixes.get(prefix).copied(),
            false => self.task_with_prefix(prefix),
        };
        match taken.or_else(of_another) {
            // Whoever repeats a submit takes "taken" for an acknowledgement.
            Some(key) if self.is_being_withdrawn(key) => Err(Refusal::Full(format!(
                "the task {id} could not be saved, and goes as soon as it is known that nothing of it has started; submit it again then"
            ))),
            Some(key) => Err(Refusal::Taken(key)),
            None => Ok(()),
        }
    }

    fn is_being_withdrawn(&self, key: TaskKey) -> bool {
        let task = self.tasks.get(&key);
        task.is_some_and(|task| task.withdrawn && task.finished_at.is_none())
    }

    /// The labels of these machines that live machines carry now.
    fn labels_live_again<'a>(&self, gone: &'a [Arc<Target>]) -> Vec<&'a str> {
        let labels: BTreeSet<&str> = gone.iter().map(|target| &*target.label).collect();
        let live = self.machines.values().filter(|m| m.is_live());
        let live_labels: BTreeSet<&str> = live.map(|m| &*m.label).collect();
        let again = labels
            .into_iter()
            .filter(|label| live_labels.contains(label));
        again.take(MAX_NAMED).collect()
    }

    /// The machines that a selector means, in whatever state they are.
    pub(super) fn machines_of(&self, key: SelectorKey) -> impl Iterator<Item = MachineKey> {
        let entry = self.match_index.entry(key);
        self.machines_with(&entry.traits, entry.instances())
    }

    /// The machines with these traits; only those of these instances, if instances are named.
    pub(super) fn machines_with<'a>(
        &'a self,
        traits: &'a BTreeSet<TraitsKey>,
        instances: Option<&'a BTreeSet<Arc<str>>>,
    ) -> impl Iterator<Item = MachineKey> + 'a {
        let named = instances.into_iter().flatten();
        let named = named.filter_map(|instance| self.instances.get(instance));
        let is_meant = |key: &&MachineKey| traits.contains(&self.machine(**key).traits_key);
        // Without names all of them; one of the two is empty.
        let traits = traits.iter().filter(move |_| instances.is_none());
        let all = traits.flat_map(|traits| &self.match_index.traits(*traits).machines);
        named.filter(is_meant).chain(all).copied()
    }

    /// Queues an execution for one machine.
    pub(super) fn queue_for(&mut self, key: ExecutionKey, machine: MachineKey) {
        self.execution_mut(key).target = Some(self.target(machine));
        self.place(key, Place::Inbox(machine));
        let has_limits = self.task(key.task).limit_set != SetKey::NONE;
        // What has limits is woken for when one of their places is free.
        if self.machine(machine).free() > 0 && !has_limits {
            self.wake(machine);
        }
        self.revoke_offers(machine);
    }

    /// Takes back what any machine may run and this one, to which it was offered, cannot take with its held poll:
    /// something older came before it, or there is no such poll any more. It goes to a machine that is free, or
    /// waits for the first.
    pub(super) fn revoke_offers(&mut self, key: MachineKey) {
        let machine = self.machine(key);
        if machine.offers.is_empty() || (machine.is_live() && !self.keeps(Rule::OffersAreRevoked)) {
            return;
        }
        let Some(first) = machine.inbox.nth(machine.takes()) else {
            return;
        };
        let revoked = machine.offers.range(first..).map(|turn| turn.key);
        let revoked: Vec<ExecutionKey> = revoked.collect();
        for execution in revoked {
            let selector = self.selector_key_of(execution.task);
            self.queue_for_any(execution, selector);
        }
    }

    /// Queues an execution for any matching machine: for one that is ready, or else for the first to be free.
    pub(super) fn queue_for_any(&mut self, key: ExecutionKey, selector: SelectorKey) {
        let has_limits = self.task(key.task).limit_set != SetKey::NONE;
        let needed = self.needs_of(key.task);
        // What has limits is not offered to a machine: another one may have a place for it first.
        let machine = match has_limits || self.holds_back_any() {
            true => None,
            false => self.ready_machine(selector, needed, |_| true),
        };
        match machine {
            Some(machine) => self.queue_for(key, machine),
            None => {
                self.execution_mut(key).target = None;
                self.place(key, Place::Selector(selector));
                self.explain_waiting(key, selector);
            }
        }
    }

    /// The matching machine that has been ready for longest, whose agent has the abilities, and that is wanted. Searches the shorter of
    /// two lists: the ready machines, or those that the selector means.
    pub(super) fn ready_machine(
        &self,
        selector: SelectorKey,
        needed: Abilities,
        wanted: impl Fn(MachineKey) -> bool,
    ) -> Option<MachineKey> {
        let entry = self.match_index.entry(selector);
        let named = entry.instances().map_or(usize::MAX, BTreeSet::len);
        if named.min(entry.traits.len()) < self.ready.len() {
            let machines = self.machines_of(selector);
            let able = machines.filter(|key| {
                wanted(*key) && !self.is_suspended(*key) && self.may_run(self.machine(*key), needed)
            });
            let waiting = able.filter_map(|key| Some((self.machine(key).ready?, key)));
            return waiting.min().map(|(_, key)| key);
        }
        self.ready.values().copied().find(|key| {
            let machine = self.machine(*key);
            wanted(*key)
                && entry.means(machine.traits_key, &machine.instance)
                && self.may_run(machine, needed)
                && !self.is_suspended(*key)
        })
    }

    /// Lists an open task where machines that appear find it.
    pub(super) fn open(&mut self, key: TaskKey, selector: SelectorKey) {
        self.match_index.entry_mut(selector).open.insert(key);
        let targets = self.task(key).executions.iter();
        let targets = targets.filter_map(|e| Some(e.target.as_ref()?.instance.clone()));
        let joined = targets.collect();
        self.joined.insert(key, joined);
    }

    /// Closes a task: no machine may join it from now on.
    pub(super) fn close(&mut self, key: TaskKey) {
        if self.task(key).open {
            self.task_mut(key).open = false;
            self.joined.remove(&key);
            let selector = self.selector_key_of(key);
            self.match_index.entry_mut(selector).open.remove(&key);
            self.machines_are_fixed(key);
        }
    }

    /// Lets a machine that came online join the open tasks that match it: a bounded number now, the others at later
    /// polls, as when the limit on executions is reached.
    pub(super) fn join_open_tasks(&mut self, now: Time, key: MachineKey) {
        let Some((last_selector, last_task)) = self.machine_mut(key).joins_pending.take() else {
            return;
        };
        let machine = self.machine(key);
        let index = &self.match_index;
        let selectors = index.selectors_of(machine.traits_key, &machine.instance);
        let mut next = Vec::new();
        for selector in selectors.skip_while(|selector| *selector < last_selector) {
            let after = match selector == last_selector {
                true => last_task,
                false => JOIN_ALL.1,
            };
            let after = (Bound::Excluded(after), Bound::Unbounded);
            let open = self.match_index.entry(selector).open.range(after);
            next.extend(
                open.take(MAX_JOINS - next.len())
                    .map(|task| (selector, *task)),
            );
        }
        let mut cursor = (last_selector, last_task);
        let is_all = next.len() < MAX_JOINS;
        for (selector, task) in next {
            if !self.has_room_to_join() {
                self.machine_mut(key).joins_pending = Some(cursor);
                return;
            }
            self.join(now, task, key);
            cursor = (selector, task);
        }
        if !is_all {
            self.machine_mut(key).joins_pending = Some(cursor);
        }
    }

    fn join(&mut self, now: Time, key: TaskKey, machine: MachineKey) {
        let target = self.target(machine);
        let joined = self.joined.get(&key);
        let is_new = joined.is_some_and(|joined| !joined.contains(&target.instance));
        if !is_new && self.keeps(Rule::OneExecutionPerMachine) {
            return;
        }
        let executions = self.task(key).executions.len();
        let late_join = self.task(key).spec.late_join;
        if late_join && self.is_late_join_full(executions) && self.keeps(Rule::LateJoinEnds) {
            self.task_mut(key).late_join_full = true;
            self.close(key);
            self.finish_if_done(now, key);
            return;
        }
        let instance = target.instance.clone();
        let execution = ExecutionKey {
            task: key,
            n: executions as u32,
        };
        // The record of the task itself, with its detail, has not changed.
        let task = data_mut(&mut self.tasks, key);
        let state = match task.pacing {
            Some(_) => ExecutionState::Held,
            None => ExecutionState::Queued,
        };
        let pacing = task.pacing.as_mut();
        pacing
            .into_iter()
            .for_each(|pacing| pacing.joined(execution.n));
        task.executions.push(Execution::new(state, Some(target)));
        *task.counts.of(state) += 1;
        self.ledger.add_execution(state);
        self.list_queued(key);
        if let Some(changes) = &mut self.changes {
            changes.execution(execution);
        }
        self.guard(execution);
        self.list_off_queue(execution);
        self.joined.entry(key).or_default().insert(instance);
        if !late_join {
            self.close(key);
        }
        if self.skip_if_busy(now, execution) {
            self.record_change(execution);
            return;
        }
        match state {
            ExecutionState::Queued => self.queue_first(now, execution, machine),
            _ => {
                if let Some(changes) = &mut self.changes {
                    changes.execution(execution);
                }
                self.probe_before_start(now, execution);
                self.pace(now, key);
            }
        }
        self.record_change(execution);
    }
}

impl Refusal {
    /// The refusal for a task that has no execution on this machine.
    pub fn not_on(task: &Task, machine: &str) -> Refusal {
        let labels: BTreeSet<&str> = task.labels().map(|label| &**label).collect();
        let labels: Vec<&str> = labels.into_iter().collect();
        let has = match labels.is_empty() {
            true => String::new(),
            false => format!("; it has on {}", first_named(&labels)),
        };
        Refusal::Impossible(format!(
            "machine: task {} has nothing on {machine:?}{has}",
            task.id
        ))
    }
}

fn nothing_to_rerun(task: &Task) -> Refusal {
    Refusal::Impossible(format!(
        "every execution of task {} succeeded; ?all=1 runs them all again",
        task.id
    ))
}
