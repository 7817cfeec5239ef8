//! The undos of a task in words: what is not undone, and what to do about it.

use super::follow::print_message;
use super::outcome::{age, machine_name};
use super::terminal::{Colour, OutputStyle, sanitize};
use crate::wire::task::{Execution, Task};
use crate::wire::undo::{AnsweredUndo, UndoState};
use std::io;
use std::time::Duration;

/// Whether something may be left on a machine: an undo failed or is owed.
pub fn is_unclean(task: &Task) -> bool {
    task.clean == Some(false)
}

/// The undo of an execution, if it failed or is owed.
pub fn debt(execution: &Execution) -> Option<&AnsweredUndo> {
    let undo = execution.attempt.undo.as_ref();
    undo.filter(|undo| undo.state.is_dirty())
}

/// The colour of a state.
pub fn colour(state: UndoState) -> Option<Colour> {
    match state {
        UndoState::NotNeeded => None,
        UndoState::Armed | UndoState::Running => Some(Colour::Blue),
        UndoState::Done => Some(Colour::Green),
        UndoState::Failed | UndoState::Owed => Some(Colour::Red),
        UndoState::Forgiven => Some(Colour::Yellow),
    }
}

/// `after 3 tries`.
pub fn tries(count: u32) -> String {
    match count {
        1 => "after 1 try".into(),
        n => format!("after {n} tries"),
    }
}

/// A line for each machine on which something may be left: why, and what to do. The server bounds their number.
pub fn not_undone<'a>(task: &'a Task, style: &OutputStyle) -> Vec<(&'a Execution, String)> {
    let mut names = task.machine_names();
    let unclean = { task.result.iter() }.filter_map(|e| Some((e, debt(e)?)));
    let lines = unclean.map(|(execution, undo)| {
        let name = machine_name(&mut names, execution);
        let what = style.paint(Colour::Red, &format!("{name}: NOT UNDONE:"));
        let line = format!("{what} {}; {}", why(undo), to_do(task, execution, undo));
        (execution, line)
    });
    lines.collect()
}

fn why(undo: &AnsweredUndo) -> String {
    let mut why = match undo.state {
        UndoState::Failed => format!("the undo failed {}", tries(undo.tries)),
        _ => "nobody knows whether the undo has run".into(),
    };
    if !undo.msg.is_empty() {
        why.push_str(&format!(": {}", sanitize(&undo.msg)));
    }
    why
}

fn to_do(task: &Task, execution: &Execution, undo: &AnsweredUndo) -> String {
    let mut reference = sanitize(&task.id);
    if task.result.len() > 1 {
        reference.push_str(&format!(" -m {}", sanitize(&execution.instance)));
    }
    let first = match undo.state {
        UndoState::Failed => format!("again: sidebike undo {reference}"),
        // The server hands it out by itself, but a user wants to see how it ends.
        _ => format!(
            "it runs when an agent with this label is on host {} again: sidebike undo {reference} waits for that",
            sanitize(&execution.host)
        ),
    };
    format!("{first}; settled by hand: sidebike forgive {reference}")
}

/// A line for each machine that had to undo it by itself, and has not confirmed that.
pub fn overdue(task: &Task) -> Vec<String> {
    let mut names = task.machine_names();
    let late = task.result.iter().filter_map(|execution| {
        let undo = execution.attempt.undo.as_ref()?;
        let due_at = undo.due_at.as_deref()?;
        let is_past = age(due_at).is_some_and(|age| age > Duration::ZERO);
        let name = machine_name(&mut names, execution);
        let due_at = sanitize(due_at);
        is_past.then(|| format!("{name}: should have undone itself by {due_at}, not confirmed"))
    });
    late.collect()
}

/// Says on standard error what is not undone.
pub fn report(task: &Task) {
    for (_, line) in not_undone(task, &OutputStyle::of(&io::stderr())) {
        print_message(&format!("{line}\n"));
    }
}
