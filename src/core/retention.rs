//! What is kept, what counts against a limit, and what is forgotten to make room.
//!
//! Executions that have not ended are refused beyond the limit; finished tasks and their output are
//! forgotten, oldest first. To add a limit: a field of [`super::Limits`], a sum in `ledger.rs`, its check here, and
//! its law in `invariants.rs`.

use super::invariants::Rule;
use super::ledger::Frees;
use super::spec::Spec;
use super::timers::Timer;
use super::undo::MAX_DEBTS;
use super::{Core, Refusal, TaskKey, Time};

/// Of the limit on executions, a task with `lateJoin` may have one part in so many: machines that come and go must not
/// make it grow until its end pushes out everything else that is kept.
pub(super) const LATE_JOIN_PART: usize = 2;
/// The executions of unfinished tasks, as a multiple of the limit: as many may have ended as not.
const ENDED_TOO: usize = 2;

impl Core {
    /// Refuses a new task beyond the limits, with so many executions.
    pub(super) fn check_room(&self, spec: &Spec, executions: usize) -> Result<(), Refusal> {
        self.check_room_for_debts(spec)?;
        let limit = self.limits.executions;
        let tasks = self.ledger.unfinished_tasks();
        if tasks >= limit {
            return Err(Refusal::Full(format!(
                "{tasks} tasks have not ended, the limit (--max-executions)"
            )));
        }
        self.check_room_for_executions(executions)?;
        let (details, limit) = (
            self.ledger.unfinished_detail_bytes(),
            self.limits.detail_bytes,
        );
        let more = spec.kept_bytes();
        if details.saturating_add(more) > limit {
            return Err(Refusal::Full(format!(
                "the details of the tasks that have not ended take {details} bytes, {more} more would pass the limit of {limit} (--max-details)"
            )));
        }
        Ok(())
    }

    /// Refuses so many tasks that are accepted at once, with details of so many bytes in all, beyond the limits.
    pub(super) fn check_room_for_tasks(&self, tasks: usize, bytes: usize) -> Result<(), Refusal> {
        let (unfinished, limit) = (self.ledger.unfinished_tasks(), self.limits.executions);
        if unfinished.saturating_add(tasks) > limit {
            return Err(Refusal::Full(format!(
                "{unfinished} tasks have not ended, {tasks} more would pass the limit of {limit} (--max-executions)"
            )));
        }
        let details = self.ledger.unfinished_detail_bytes();
        let limit = self.limits.detail_bytes;
        if details.saturating_add(bytes) > limit {
            return Err(Refusal::Full(format!(
                "the details of the tasks that have not ended take {details} bytes, {bytes} more would pass the limit of {limit} (--max-details)"
            )));
        }
        Ok(())
    }

    fn check_room_for_debts(&self, spec: &Spec) -> Result<(), Refusal> {
        if spec.detail.undo.is_some() && self.debts() >= MAX_DEBTS {
            return Err(Refusal::Full(format!(
                "{} undos are failed or owed, {MAX_DEBTS} are the most; settle some first (undo, forgive)",
                self.debts()
            )));
        }
        Ok(())
    }

    /// Refuses to begin an accepted task, which counts already, with so many executions.
    pub(super) fn check_room_to_begin(
        &self,
        spec: &Spec,
        executions: usize,
    ) -> Result<(), Refusal> {
        self.check_room_for_debts(spec)?;
        self.check_room_for_executions(executions)
    }

    /// Refuses so many more executions beyond the limits.
    pub(super) fn check_room_for_executions(&self, executions: usize) -> Result<(), Refusal> {
        let limit = self.limits.executions;
        let unfinished = self.ledger.unfinished_executions();
        if unfinished + executions > limit {
            return Err(Refusal::Full(format!(
                "{unfinished} executions have not ended, {executions} more would pass the limit of {limit} (--max-executions)"
            )));
        }
        let kept = self.ledger.executions_of_unfinished_tasks();
        let most = limit.saturating_mul(ENDED_TOO);
        if kept + executions > most {
            return Err(Refusal::Full(format!(
                "the tasks that have not ended have {kept} executions, {executions} more would pass the limit of {most} (twice --max-executions)"
            )));
        }
        Ok(())
    }

    /// Whether a task has as many executions as `lateJoin` may give it.
    pub(super) fn is_late_join_full(&self, executions: usize) -> bool {
        executions >= self.limits.executions.div_ceil(LATE_JOIN_PART)
    }

    /// Whether one more machine may join some task.
    pub(super) fn has_room_to_join(&self) -> bool {
        let limit = self.limits.executions;
        self.ledger.unfinished_executions() < limit
            && self.ledger.executions_of_unfinished_tasks() < limit.saturating_mul(ENDED_TOO)
    }

    /// Forgets finished tasks until a new detail is within the limit.
    pub(super) fn make_room_for_detail(&mut self, bytes: usize) {
        if self.forgets_later {
            return;
        }
        while self.ledger.detail_bytes().saturating_add(bytes) > self.limits.detail_bytes {
            if !self.forget_oldest(Frees::LargeDetail) && !self.forget_oldest(Frees::Task) {
                return;
            }
        }
    }

    /// Forgets a withdrawn task once it has finished without having started.
    pub(super) fn forget_if_withdrawn(&mut self, key: TaskKey) {
        let task = self.task(key);
        if task.withdrawn && task.finished_at.is_some() && !task.has_started() {
            self.drop_notifications(key);
            self.forget_task(key);
        }
    }

    /// Forgets the oldest finished tasks until the limits on tasks and executions hold.
    pub(super) fn keep_within_limits(&mut self) {
        if self.forgets_later {
            return;
        }
        while self.ledger.finished_executions() > self.limits.executions
            && self.forget_oldest(Frees::Executions)
        {}
        while self.ledger.finished_tasks() > self.limits.tasks && self.forget_oldest(Frees::Task) {}
        self.make_room_for_detail(0);
    }

    /// Forgets the oldest finished tasks with output until so many more bytes are within the limit. False if that is
    /// not enough.
    pub(super) fn make_room_for_output(&mut self, bytes: usize) -> bool {
        while self.ledger.output_bytes().saturating_add(bytes) > self.limits.output_bytes {
            if !self.forget_oldest(Frees::Output) {
                return false;
            }
        }
        true
    }

    /// Forgets the oldest finished task that frees something of this kind. The last one is always kept: its user is
    /// about to read it.
    fn forget_oldest(&mut self, frees: Frees) -> bool {
        let oldest = match self.keeps(Rule::DebtsAreKept) {
            true => self.ledger.oldest_that_frees(frees),
            false => self.ledger.oldest(),
        };
        if let Some(key) = oldest {
            self.forget_task(key);
        }
        oldest.is_some()
    }

    /// When a finished task is forgotten.
    pub(super) fn forgotten_at(&self, key: TaskKey) -> Option<Time> {
        self.tasks.get(&key)?.forgotten_at()
    }

    /// The undos of a finished task have changed: while one is failed or owed it is kept, whatever its limits are.
    pub(super) fn change_forgetting(&mut self, key: TaskKey, before: Option<Time>) {
        self.move_forgetting(key, before);
    }

    /// When a task is forgotten may have changed, from this time.
    pub(super) fn move_forgetting(&mut self, key: TaskKey, before: Option<Time>) {
        if let Some(before) = before {
            self.timers.cancel(before, Timer::ForgetTask(key));
        }
        if let Some(after) = self.forgotten_at(key) {
            self.timers.set(after, Timer::ForgetTask(key));
        }
        self.list_finished_again(key);
    }

    /// What a finished task keeps has changed, or whether it may be forgotten.
    pub(super) fn list_finished_again(&mut self, key: TaskKey) {
        let task = &self.tasks[&key];
        if let Some(finished_at) = task.finished_at {
            self.ledger.list_finished(finished_at, key, task);
        }
    }

    /// Removes a finished task and every reference to it.
    pub(super) fn forget_task(&mut self, key: TaskKey) {
        let task = self.tasks.get(&key).filter(|task| !task.needed);
        let Some(finished_at) = task.and_then(|task| task.finished_at) else {
            return;
        };
        self.forget_probes(key);
        // How long it was to be kept follows from its undos, which are not counted any more when it is gone.
        let forgotten_at = self.forgotten_at(key);
        self.forget_undos(key);
        let Some(task) = self.tasks.remove(&key) else {
            return;
        };
        self.ledger.forget_task(finished_at, key, &task);
        self.forget_notifications(&task);
        if let Some(changes) = &mut self.changes {
            changes.task(key);
        }
        if let Some(forgotten_at) = forgotten_at {
            self.timers.cancel(forgotten_at, Timer::ForgetTask(key));
        }
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
        if let Some(group) = task.group() {
            self.groups.forget(group, key);
        }
        self.stats.forgotten(task.state());
        if let Some(of) = &task.spec.scheduled {
            self.forget_firing(key, of);
        }
    }
}
