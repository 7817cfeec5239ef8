//! Settles what waits for others: edges whose parents have ended, and executions whose counterparts have.
//!
//! [`Core::settle_dependents`] follows each operation, in the same commit, and works off a bounded number. A timer goes on
//! with the rest, also after a restart: what is open follows from the tasks alone. A child that is skipped is a parent
//! itself; it joins the same queue, so a long chain is no recursion.
//!
//! To add something that is settled: a variant of [`Unsettled`], where it comes in [`Core::next_to_settle`], and how it is
//! found again after a restart.

use super::invariants::Rule;
use super::timers::Timer;
use super::waiting::Phase;
use super::{Core, ExecutionKey, TaskKey, Time, data_mut};
use crate::wire::duration::TimeSpan;
use crate::wire::task::TaskState;

/// The most children and executions settled in one call: it runs under the lock.
const MAX_SETTLED: usize = 500;
/// After this time a call does the rest.
const SOON: TimeSpan = TimeSpan::from_millis(1);

/// Something that has to be settled.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unsettled {
    /// The edges from this parent, which has ended, to this child.
    Edge(TaskKey, TaskKey),
    /// Of this parent the dependents are canceled, and an execution of this child waits for one of it.
    Canceled(TaskKey, TaskKey),
    /// This execution has waited too long for one of another task.
    Expired(ExecutionKey),
    /// The machines of this parent are known, and this child waited for that.
    Machines(TaskKey, TaskKey),
    /// This execution has ended, and this one of another task waited for it.
    Counterpart(ExecutionKey, ExecutionKey),
}

impl Core {
    /// Settles what waits for tasks that have ended, up to a bounded number: what of it can begin does, what cannot any
    /// more is skipped. To be called after each operation, before its changes are taken.
    pub fn settle_dependents(&mut self, now: Time) {
        let mut left = MAX_SETTLED;
        while let Some(next) = self.next_to_settle() {
            if left == 0 || self.waiting.has_begun_enough() {
                self.timers.set(now.plus(SOON), Timer::Settle);
                return;
            }
            left -= 1;
            match next {
                Unsettled::Edge(parent, child) => self.settle(now, parent, child),
                Unsettled::Canceled(parent, child) => {
                    left -= self.cancel_waiting(now, parent, child, left);
                }
                Unsettled::Expired(waiting) => self.counterpart_ttl_is_over(now, waiting),
                Unsettled::Machines(parent, child) => self.settle_machines(now, parent, child),
                Unsettled::Counterpart(counterpart, waiting) => {
                    self.settle_counterpart(now, counterpart, waiting);
                }
            }
        }
    }

    /// What is to be settled next. Tasks come first: what is canceled with its parent must not go with an end of it.
    fn next_to_settle(&mut self) -> Option<Unsettled> {
        while let Some(parent) = self.after.ended.front().copied() {
            let children = self.after.open.get(&parent);
            if let Some(child) = children.and_then(|children| children.first()) {
                return Some(Unsettled::Edge(parent, *child));
            }
            let task = self.tasks.get(&parent);
            if task.is_some_and(|task| task.cancels_dependents)
                && let Some(child) = self.counterparts.first_child_of(parent)
            {
                return Some(Unsettled::Canceled(parent, child));
            }
            self.after.ended.pop_front();
            self.clear_cancel(parent);
        }
        self.next_counterpart()
    }

    /// Settles the edges from one parent to one child.
    fn settle(&mut self, now: Time, parent: TaskKey, child: TaskKey) {
        let parent_task = self.tasks.get(&parent);
        if let Some(task) = parent_task.filter(|task| task.cancels_dependents) {
            let id = task.id.clone();
            // Of one that nobody waits for nothing would clear it: whoever comes later is not meant.
            let is_waited_for = self.is_waited_for(child);
            let child_task = self.task_mut(child);
            child_task.canceled = true;
            child_task.cancels_dependents = is_waited_for;
            let why = format!("canceled with task {id}, which it waited for");
            return self.end_unbegun(now, child, TaskState::Canceled, &why);
        }
        self.after.unlist(parent, child);
        let waiting = data_mut(&mut self.tasks, child).waiting.as_mut();
        let mut ended = Vec::new();
        for (edge, n) in waiting.into_iter().flat_map(|it| &mut it.after).zip(0..) {
            if edge.left.remove(&parent.0) && edge.left.is_empty() {
                ended.push((n, edge.clone()));
            }
        }
        // With a large group most ends decide nothing, and there is nothing to save.
        for (n, edge) in ended {
            let met = self.verdict(&edge) || !self.keeps(Rule::EdgesAreKept);
            let waiting = self.task_mut(child).waiting.as_mut();
            if let Some(edge) = waiting.and_then(|waiting| waiting.after.get_mut::<usize>(n)) {
                edge.met = Some(met);
            }
        }
        self.go_on_after(now, child);
    }

    /// An edge of a task that has not begun was settled, or all of them at its submit: skips the task or has it begin, if
    /// that is decided.
    pub(super) fn go_on_after(&mut self, now: Time, key: TaskKey) {
        let Some(waiting) = self.task(key).waiting.as_ref() else {
            return;
        };
        if let Some(edge) = waiting.unmet() {
            let (name, ended) = (edge.in_words(), self.ended_in_words(edge));
            let why = match edge.per_machine {
                false => format!("was to begin after {name}{}, {ended}", edge.on_in_words()),
                true => format!("was to begin after {name} on its machines, {ended} without any"),
            };
            return self.end_unbegun(now, key, TaskState::Skipped, &why);
        }
        if waiting.phase == Phase::Blocked && waiting.is_free() {
            self.begin(now, key);
        }
    }

    /// Its time is over in which what a task waits for may end.
    pub(super) fn blocked_ttl_is_over(&mut self, now: Time, key: TaskKey) {
        let Some(waiting) = self.tasks.get(&key).and_then(|task| task.waiting.as_ref()) else {
            return;
        };
        if waiting.phase == Phase::Blocked {
            let (event, names) = waiting.waits_for();
            let why = format!("{names} did not {event} within its blockedTtl");
            self.end_unbegun(now, key, TaskState::Expired, &why);
        }
    }

    /// Cancels those who wait for a task, too, and those who wait for them.
    pub fn cancel_dependents(&mut self, key: TaskKey) {
        if self.is_waited_for(key) && !self.task(key).cancels_dependents {
            self.task_mut(key).cancels_dependents = true;
            self.after.ended.push_back(key);
        }
    }

    fn is_waited_for(&self, key: TaskKey) -> bool {
        self.after.open.contains_key(&key) || self.counterparts.first_child_of(key).is_some()
    }

    /// All who waited for a task are canceled. Who comes later is not meant.
    fn clear_cancel(&mut self, key: TaskKey) {
        if self
            .tasks
            .get(&key)
            .is_some_and(|task| task.cancels_dependents)
        {
            self.task_mut(key).cancels_dependents = false;
        }
    }

    /// Goes on with what a crash has interrupted: settles edges whose parents have ended, at the next tick.
    pub(super) fn restore_dependents(&mut self, now: Time) {
        let is_over = |key: &TaskKey| {
            let parent = self.tasks.get(key);
            parent.is_none_or(|it| it.finished_at.is_some() || it.cancels_dependents)
        };
        let ended: Vec<TaskKey> = self.after.open.keys().copied().filter(is_over).collect();
        self.after.ended.extend(ended);
        self.restore_counterparts(now);
        let cancels = self.counterparts.parents().into_iter().filter(|key| {
            let parent = self.tasks.get(key);
            parent.is_some_and(|it| it.cancels_dependents)
        });
        self.after.ended.extend(cancels);
        if !self.after.ended.is_empty() || self.counterparts.is_something_to_settle() {
            self.timers.set(now, Timer::Settle);
        }
    }
}
