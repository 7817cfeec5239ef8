//! The progress line at the bottom of the terminal.

use super::follow::print_message;
use super::outcome::short_duration;
use super::rollout;
use super::terminal::{self, sanitize, truncate};
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
    /// What the user can do, at the end of the line.
    hint: &'static str,
    states: HashMap<String, ExecutionState>,
    /// What it waits for before it begins.
    waits: Option<String>,
    /// How far its rollout has come.
    rollout: Option<String>,
    /// On how many machines its effect is being taken back.
    undoing: u32,
    /// The step after which it was said that the task waits for a user.
    said_after_step: Option<u32>,
    started_at: Instant,
    is_drawn: bool,
}

impl Progress {
    /// The progress of a submitted task. It is drawn only on a terminal that can clear a line.
    pub fn of(task: &Task, hint: &'static str) -> Progress {
        let mut progress = Progress {
            is_wanted: terminal::width(&io::stderr()).is_some() && !terminal::is_dumb(),
            hint,
            states: HashMap::new(),
            waits: None,
            rollout: None,
            undoing: 0,
            said_after_step: None,
            started_at: Instant::now(),
            is_drawn: false,
        };
        progress.count(task);
        progress
    }

    /// Whether it is drawn.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// Takes the states of the executions from an answer.
    pub fn count(&mut self, task: &Task) {
        let executions = task.result.iter();
        let states = executions.map(|e| (e.execution.clone(), e.state));
        self.states.extend(states);
        self.waits = { task.state.is_unbegun() }.then(|| sanitize(&task.msg));
    }

    /// Takes from an answer what the events of a task do not contain: its undos and its rollout.
    pub fn look_at(&mut self, task: &Task) {
        self.undoing = task.undos.map_or(0, |undos| undos.running);
        self.look_at_rollout(task);
    }

    /// Takes from an answer how far the rollout has come. Where no line is drawn a message says that the task waits
    /// for a user, once in each step.
    fn look_at_rollout(&mut self, task: &Task) {
        let Some(state) = rollout::state_of(task).filter(|_| !task.state.is_terminal()) else {
            self.rollout = None;
            return;
        };
        let standing = rollout::standing(task, state);
        let step = rollout::waits_for_user(task).then_some(state.step);
        let waits = rollout::waits_for(task).map(|what| match step {
            Some(_) => what,
            None => format!("paused, {what}"),
        });
        let why = waits.or_else(|| rollout::stopped(task));
        if let Some(why) = &why
            && step.is_some()
            && self.said_after_step != step
            && !self.is_wanted
        {
            print_message(&format!("sidebike: {standing}; {why}\n"));
        }
        self.said_after_step = step;
        // What to do comes first: the end of the line may be cut.
        self.rollout = Some(match why {
            Some(why) => format!("{why} ({standing})"),
            None => standing,
        });
    }

    /// Processes an event.
    pub fn note(&mut self, event: &TaskEvent) {
        if let EventKind::State { state } = event.kind {
            self.states.insert(event.execution.clone(), state);
            self.waits = None;
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
        let hint = self.hint;
        let undoing = match self.undoing {
            0 => String::new(),
            n => format!(" ({n} being undone)"),
        };
        if let Some(waits) = &self.waits {
            return format!("{waits}{hint}");
        }
        match &self.rollout {
            Some(rollout) => format!("{rollout}, {running} running{undoing}, {took}{hint}"),
            None => format!(
                "{done}/{all} done, {running} running{undoing}, {failed} failed, {took}{hint}"
            ),
        }
    }
}
