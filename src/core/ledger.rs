//! The sums of everything that is kept. Every limit on what is kept is checked against them.
//!
//! Each change of a task, an execution or an output is entered here where it is made; `invariants.rs` recounts the
//! sums. To count something new: a field, an entry for each change, a limit in `retention.rs`.

use super::task::TaskData;
use super::{TaskKey, Time};
use crate::wire::task::{Counts, ExecutionState};
use std::collections::BTreeSet;

/// A task whose detail is larger than this, in bytes, is forgotten for the room its detail takes before others are.
pub(super) const LARGE_DETAIL_BYTES: usize = 4 << 10;

/// What a finished task frees when it is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frees {
    /// A task.
    Task,
    /// Executions.
    Executions,
    /// Bytes of output.
    Output,
    /// Bytes of a large detail.
    LargeDetail,
}

/// The sums of everything that is kept.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    tasks: usize,
    executions: Counts,
    /// The finished tasks, oldest first.
    finished: BTreeSet<(Time, TaskKey)>,
    /// Those that may be forgotten: none of their undos is failed, owed, or runs, and nothing else needs them.
    clean: BTreeSet<(Time, TaskKey)>,
    /// Those of them with executions, with output, with a large detail.
    with_executions: BTreeSet<(Time, TaskKey)>,
    with_output: BTreeSet<(Time, TaskKey)>,
    with_large_detail: BTreeSet<(Time, TaskKey)>,
    finished_executions: usize,
    output_bytes: usize,
    detail_bytes: usize,
    finished_detail_bytes: usize,
}

impl Ledger {
    /// A task was added, with a detail of this size; its executions are entered separately.
    pub fn add_task(&mut self, detail_bytes: usize) {
        self.tasks += 1;
        self.detail_bytes += detail_bytes;
    }

    /// An execution was added.
    pub fn add_execution(&mut self, state: ExecutionState) {
        *self.executions.of(state) += 1;
    }

    /// An execution changed its state.
    pub fn change_state(&mut self, from: ExecutionState, to: ExecutionState) {
        *self.executions.of(from) -= 1;
        *self.executions.of(to) += 1;
    }

    /// The output of an attempt of an unfinished task, or of a task that is being restored, changed its size, in bytes.
    pub fn resize_output(&mut self, before: usize, after: usize) {
        self.output_bytes = self.output_bytes + after - before;
    }

    /// A task finished. What it keeps of undos and probes may still change.
    pub fn finish_task(&mut self, at: Time, key: TaskKey, task: &TaskData) {
        self.finished.insert((at, key));
        self.finished_executions += task.executions.len();
        self.finished_detail_bytes += task.spec.kept_bytes();
        self.list_finished(at, key, task);
    }

    /// Lists a finished task by what it frees: after its output was restored, or its undos have changed. One that is
    /// not clean is not forgotten to make room.
    pub fn list_finished(&mut self, at: Time, key: TaskKey, task: &TaskData) {
        let is_clean = !task.is_kept();
        let lists = [
            (&mut self.clean, true),
            (&mut self.with_executions, !task.executions.is_empty()),
            (&mut self.with_output, task.output_bytes > 0),
            (
                &mut self.with_large_detail,
                task.spec.kept_bytes() > LARGE_DETAIL_BYTES,
            ),
        ];
        for (list, has_it) in lists {
            match is_clean && has_it {
                true => list.insert((at, key)),
                false => list.remove(&(at, key)),
            };
        }
    }

    /// A finished task was forgotten, with its executions and their output.
    pub fn forget_task(&mut self, finished_at: Time, key: TaskKey, task: &TaskData) {
        let entry = (finished_at, key);
        self.tasks -= 1;
        self.finished.remove(&entry);
        self.clean.remove(&entry);
        self.with_executions.remove(&entry);
        self.with_output.remove(&entry);
        self.with_large_detail.remove(&entry);
        self.finished_executions -= task.executions.len();
        self.output_bytes -= task.output_bytes;
        self.detail_bytes -= task.spec.kept_bytes();
        self.finished_detail_bytes -= task.spec.kept_bytes();
        for execution in &task.executions {
            *self.executions.of(execution.state) -= 1;
        }
    }

    /// All tasks.
    pub fn tasks(&self) -> usize {
        self.tasks
    }

    /// The tasks that have not finished.
    pub fn unfinished_tasks(&self) -> usize {
        self.tasks - self.finished.len()
    }

    /// The tasks that have finished.
    pub fn finished_tasks(&self) -> usize {
        self.finished.len()
    }

    /// The oldest finished task that frees something of this kind. Never the newest finished one: its user is about
    /// to read it.
    pub fn oldest_that_frees(&self, what: Frees) -> Option<TaskKey> {
        let those = match what {
            Frees::Task => &self.clean,
            Frees::Executions => &self.with_executions,
            Frees::Output => &self.with_output,
            Frees::LargeDetail => &self.with_large_detail,
        };
        let oldest = those
            .first()
            .filter(|oldest| Some(*oldest) != self.finished.last());
        oldest.map(|(_, key)| *key)
    }

    /// The oldest finished task, whatever it frees and whether it is clean; for tests that break the rule.
    pub fn oldest(&self) -> Option<TaskKey> {
        let newest = self.finished.last();
        let oldest = self.finished.first().filter(|it| Some(*it) != newest);
        oldest.map(|(_, key)| *key)
    }

    /// Whether a task is listed as finished at that time.
    pub fn is_finished(&self, at: Time, key: TaskKey) -> bool {
        self.finished.contains(&(at, key))
    }

    /// Whether the oldest of each kind is found by what a finished task keeps.
    pub fn lists(&self, at: Time, key: TaskKey, task: &TaskData) -> bool {
        let entry = &(at, key);
        let clean = !task.is_kept();
        let large = task.spec.kept_bytes() > LARGE_DETAIL_BYTES;
        self.clean.contains(entry) == clean
            && self.with_executions.contains(entry) == (clean && !task.executions.is_empty())
            && self.with_output.contains(entry) == (clean && task.output_bytes > 0)
            && self.with_large_detail.contains(entry) == (clean && large)
    }

    /// The executions of all tasks, by state.
    pub fn executions(&self) -> Counts {
        self.executions
    }

    /// The executions that have not ended.
    pub fn unfinished_executions(&self) -> usize {
        self.executions.unfinished() as usize
    }

    /// The executions of finished tasks.
    pub fn finished_executions(&self) -> usize {
        self.finished_executions
    }

    /// The executions of tasks that have not finished, ended ones too.
    pub fn executions_of_unfinished_tasks(&self) -> usize {
        self.executions.total() as usize - self.finished_executions
    }

    /// The output of all executions, in bytes.
    pub fn output_bytes(&self) -> usize {
        self.output_bytes
    }

    /// The details of all tasks, in bytes; one that several tasks share is counted for each.
    pub fn detail_bytes(&self) -> usize {
        self.detail_bytes
    }

    /// The details of tasks that have not finished, in bytes.
    pub fn unfinished_detail_bytes(&self) -> usize {
        self.detail_bytes - self.finished_detail_bytes
    }
}
