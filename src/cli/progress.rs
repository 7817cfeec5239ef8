//! The progress line at the bottom of the terminal.

use super::outcome::short_duration;
use super::terminal::{self, truncate};
use crate::wire::event::{EventKind, TaskEvent};
use crate::wire::task::{ExecutionState, Task};
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Instant;

/// Moves to the beginning of the line and clears it.
const CLEAR: &str = "\r\x1b[K";

/// The progress of a task.
pub struct Progress {
    is_wanted: bool,
    states: HashMap<String, ExecutionState>,
    started_at: Instant,
    is_drawn: bool,
}

impl Progress {
    /// The progress of a submitted task. It is drawn only on a terminal that can clear a line.
    pub fn of(task: &Task) -> Progress {
        let executions = task.result.iter();
        Progress {
            is_wanted: terminal::width(&io::stderr()).is_some() && !terminal::is_dumb(),
            states: executions.map(|e| (e.execution.clone(), e.state)).collect(),
            started_at: Instant::now(),
            is_drawn: false,
        }
    }

    /// Processes an event.
    pub fn note(&mut self, event: &TaskEvent) {
        if let EventKind::State { state } = event.kind {
            self.states.insert(event.execution.clone(), state);
        }
    }

    /// Clears the line, so that something else can be printed.
    pub fn erase(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            // A failure only leaves the old line visible.
            let _ = io::stderr().write_all(CLEAR.as_bytes());
        }
    }

    /// Draws the line.
    pub fn draw(&mut self) {
        let Some(width) = terminal::width(&io::stderr()).filter(|_| self.is_wanted) else {
            return;
        };
        // One column less: some terminals wrap after the last column.
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
