//! A task as plain text, for people with curl.

use crate::server::http::Answer;
use crate::wire;
use crate::wire::output_line::last_state;
use crate::wire::task::{ExecutionState, TaskState};
use std::borrow::Cow;

/// A task as it is answered.
type Answered<'a> = wire::task::Task<Cow<'a, str>>;

/// An answer in plain text.
pub fn plain(status: u16, text: String) -> Answer {
    Answer::new(status, "text/plain; charset=utf-8", text.into_bytes())
}

/// The same answer with a header that says how many bytes of output are not in it.
pub fn with_left_out(mut answer: Answer, bytes: u64) -> Answer {
    if bytes > 0 {
        answer.headers = format!("Sidebike-Left-Out-Bytes: {bytes}\r\n").into();
    }
    answer
}

/// A task's output with the label in front of each line. When it has not succeeded, a line for each
/// machine that failed it, with the reason, and a last one that says how it stands.
pub fn of_task(status: u16, task: &Answered<'_>) -> Answer {
    let mut text = String::new();
    let mut names = task.machine_names();
    let mut left_out = 0;
    for execution in &task.result {
        let name = names.name(&execution.machine_label, &execution.instance);
        left_out += execution.attempt.truncated_bytes;
        for line in &execution.attempt.output {
            text.push_str(name);
            text.push_str(" | ");
            text.push_str(last_state(line));
            text.push('\n');
        }
    }
    let failed = |e: &&wire::task::Execution<Cow<'_, str>>| {
        e.state.is_terminal() && e.state != ExecutionState::Succeeded
    };
    for execution in task.result.iter().filter(failed) {
        let label = match &*execution.machine_label {
            "" => "(no machine)",
            label => names.name(label, &execution.instance),
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
    with_left_out(plain(status, text), left_out)
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
