//! The sums of everything that is kept. Every limit on what is kept is checked against them.
//!
//! Each change of a task, an execution or an output is entered here where it is made; `invariants.rs` recounts the
//! sums. To count something new: a field, an entry for each change, a limit in `retention.rs`.

use super::task::TaskData;
use super::{TaskKey, Time};
use crate::wire::task::{Counts, ExecutionState};
use std::collections::BTreeSet;

/// The sums of everything that is kept.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    tasks: usize,
    executions: Counts,
    /// The finished tasks, oldest first.
    finished: BTreeSet<(Time, TaskKey)>,
    finished_executions: usize,
    output_bytes: usize,
}

impl Ledger {
    /// A task was added; its executions are entered separately.
    pub fn add_task(&mut self) {
        self.tasks += 1;
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

    /// The output of an attempt changed its size, in bytes.
    pub fn resize_output(&mut self, before: usize, after: usize) {
        self.output_bytes = self.output_bytes + after - before;
    }

    /// A task finished.
    pub fn finish_task(&mut self, at: Time, key: TaskKey, executions: usize) {
        self.finished.insert((at, key));
        self.finished_executions += executions;
    }

    /// A finished task was forgotten, with its executions and their output.
    pub fn forget_task(&mut self, finished_at: Time, key: TaskKey, task: &TaskData) {
        self.tasks -= 1;
        self.finished.remove(&(finished_at, key));
        self.finished_executions -= task.executions.len();
        self.output_bytes -= task.output_bytes;
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

    /// The finished task that is forgotten next.
    pub fn oldest_finished(&self) -> Option<TaskKey> {
        self.finished.first().map(|(_, key)| *key)
    }

    /// Whether a task is listed as finished at that time.
    pub fn is_finished(&self, at: Time, key: TaskKey) -> bool {
        self.finished.contains(&(at, key))
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

    /// The output of all executions, in bytes.
    pub fn output_bytes(&self) -> usize {
        self.output_bytes
    }
}
