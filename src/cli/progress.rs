//! The line at the bottom of the terminal that says how far a task is.

use super::outcome::short_duration;
use super::terminal::{self, truncate};
use crate::wire::event::{EventKind, TaskEvent};
use crate::wire::task::{ExecutionState, Task};
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Instant;

/// Goes to the beginning of the line and clears it.
const CLEAR: &str = "\r\x1b[K";

/// How far a task is.
pub struct Progress {
    is_wanted: bool,
    states: HashMap<String, ExecutionState>,
    started_at: Instant,
    is_drawn: bool,
}

impl Progress {
    /// Of a task as it was submitted. It shows only on a terminal that can clear a line.
    pub fn of(task: &Task) -> Progress {
        let executions = task.result.iter();
        Progress {
            is_wanted: terminal::width(&io::stderr()).is_some() && !terminal::is_dumb(),
            states: executions.map(|e| (e.execution.clone(), e.state)).collect(),
            started_at: Instant::now(),
            is_drawn: false,
        }
    }

    /// Takes in what happened.
    pub fn note(&mut self, event: &TaskEvent) {
        if let EventKind::State { state } = event.kind {
            self.states.insert(event.execution.clone(), state);
        }
    }

    /// Makes room for something else.
    pub fn erase(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            // Without it the terminal looks a little untidy, no more.
            let _ = io::stderr().write_all(CLEAR.as_bytes());
        }
    }

    /// Shows it, or shows it anew.
    pub fn draw(&mut self) {
        let Some(width) = terminal::width(&io::stderr()).filter(|_| self.is_wanted) else {
            return;
        };
        // One column less: some terminals wrap when the last one is written to.
        let line = truncate(&self.words(), width - 1);
        self.is_drawn = true;
        let _ = write!(io::stderr(), "{CLEAR}{line}");
    }

    fn words(&self) -> String {
        let count =
            |is: fn(ExecutionState) -> bool| self.states.values().filter(|s| is(**s)).count();
        let done = count(ExecutionState::is_terminal);
        let running = count(|state| state == ExecutionState::Running);
        let failed = count(|state| state.is_terminal() && state != ExecutionState::Succeeded);
        let took = short_duration(self.started_at.elapsed());
        let all = self.states.len();
        format!(
            "{done}/{all} done, {running} running, {failed} failed, {took} (Ctrl-C to cancel or detach)"
        )
    }
}
