//! What is kept, what counts against a limit, and what is forgotten to make room.
//!
//! Executions that have not ended are refused beyond the limit; finished tasks and their output are
//! forgotten, oldest first. To add a limit: a field of [`super::Limits`], a sum in `ledger.rs`, its check here, and
//! its law in `invariants.rs`.

use super::timers::Timer;
use super::{Core, Refusal, TaskKey};

impl Core {
    /// Refuses new executions beyond the limit.
    pub(super) fn check_room(&self, executions: usize) -> Result<(), Refusal> {
        let limit = self.limits.executions;
        let unfinished = self.ledger.unfinished_executions();
        let unfinished_tasks = self.ledger.unfinished_tasks();
        if unfinished + executions > limit || unfinished_tasks >= limit {
            return Err(Refusal::Full(format!(
                "{unfinished} executions have not ended, {executions} more would pass the limit of {limit} (--max-executions)"
            )));
        }
        Ok(())
    }

    /// Forgets a withdrawn task once it has finished without having started.
    pub(super) fn forget_if_withdrawn(&mut self, key: TaskKey) {
        let task = self.task(key);
        if task.withdrawn && task.finished_at.is_some() && !task.has_started() {
            self.forget_task(key);
        }
    }

    /// Forgets the oldest finished tasks until the limits on tasks and executions hold.
    pub(super) fn keep_within_limits(&mut self) {
        while self.ledger.finished_tasks() > self.limits.tasks
            || self.ledger.finished_executions() > self.limits.executions
        {
            if !self.forget_oldest() {
                return;
            }
        }
    }

    /// Forgets the oldest finished tasks until so many more bytes of output are within the limit. False if that is
    /// not enough.
    pub(super) fn make_room_for_output(&mut self, bytes: usize) -> bool {
        while self.ledger.output_bytes().saturating_add(bytes) > self.limits.output_bytes {
            if !self.forget_oldest() {
                return false;
            }
        }
        true
    }

    /// Forgets the oldest finished task. The last one is always kept: its user is about to read it.
    fn forget_oldest(&mut self) -> bool {
        if self.ledger.finished_tasks() <= 1 {
            return false;
        }
        let oldest = self.ledger.oldest_finished();
        if let Some(key) = oldest {
            self.forget_task(key);
        }
        oldest.is_some()
    }

    /// Removes a finished task and every reference to it.
    pub(super) fn forget_task(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.remove(&key) else {
            return;
        };
        let Some(finished_at) = task.finished_at else {
            self.tasks.insert(key, task);
            return;
        };
        self.ledger.forget_task(finished_at, key, &task);
        if let Some(changes) = &mut self.changes {
            changes.task(key);
        }
        let forgotten_at = finished_at.plus(task.retention());
        self.timers.cancel(forgotten_at, Timer::ForgetTask(key));
        self.task_ids.remove(&task.id);
        if task.prefix != task.id {
            self.task_prefixes.remove(&task.prefix);
        }
        if let Some(keys) = self.task_names.get_mut(&task.spec.name) {
            keys.remove(&key);
            if keys.is_empty() {
                self.task_names.remove(&task.spec.name);
            }
        }
        self.stats.forgotten(task.state());
    }
}
