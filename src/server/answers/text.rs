//! A task as plain text, for people with curl.

use crate::server::http::Answer;
use crate::wire;
use crate::wire::task::{ExecutionState, TaskState};
use std::borrow::Cow;

/// A task as it is answered.
type Answered<'a> = wire::task::Task<Cow<'a, str>>;

/// An answer in plain text.
pub fn plain(status: u16, text: String) -> Answer {
    Answer::new(status, "text/plain; charset=utf-8", text.into_bytes())
}

/// A task's output with the label in front of each line. When it has not succeeded, a line for each
/// machine that failed it, with the reason, and a last one that says how it stands.
pub fn of_task(status: u16, task: &Answered<'_>) -> Answer {
    let mut text = String::new();
    for execution in &task.result {
        for line in &execution.attempt.output {
            text.push_str(&execution.machine_label);
            text.push_str(" | ");
            text.push_str(line);
            text.push('\n');
        }
    }
    let failed = |e: &&wire::task::Execution<Cow<'_, str>>| {
        e.state.is_terminal() && e.state != ExecutionState::Succeeded
    };
    for execution in task.result.iter().filter(failed) {
        let label = match &*execution.machine_label {
            "" => "(no machine)",
            label => label,
        };
        let state = execution.state.word();
        let why = match &*execution.attempt.msg {
            "" => String::new(),
            msg => format!(": {}", msg.replace('\n', " ")),
        };
        text.push_str(&format!("{label} {state}{why}\n"));
    }
    if task.state != TaskState::Succeeded {
        text.push_str(&in_words(task));
        text.push('\n');
    }
    plain(status, text)
}

/// How a task stands, in a line.
pub fn in_words(task: &Answered<'_>) -> String {
    let mut counts = task.counts;
    let counts: Vec<String> = ExecutionState::ALL
        .iter()
        .map(|state| (*counts.of(*state), state.word()))
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    let reason = match (&*task.msg, counts.is_empty()) {
        ("", _) => counts.join(", "),
        (msg, true) => msg.to_owned(),
        (msg, false) => format!("{}; {msg}", counts.join(", ")),
    };
    format!("task {} is {}: {reason}", task.id, task.state.word())
}
