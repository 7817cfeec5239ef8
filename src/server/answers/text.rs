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
            push_label(&mut text, name);
            text.push_str(" | ");
            push_visible(&mut text, last_state(line));
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
        push_label(&mut text, label);
        text.push_str(&format!(" {state}"));
        if !execution.attempt.msg.is_empty() {
            text.push_str(": ");
            push_visible(&mut text, &execution.attempt.msg.replace('\n', " "));
        }
        text.push('\n');
    }
    if task.state != TaskState::Succeeded {
        text.push_str(&in_words(task));
        text.push('\n');
    }
    with_left_out(plain(status, text), left_out)
}

/// Adds a text in which nothing begins a line or commands a terminal: such characters are shown escaped, as `\u{1b}`.
pub fn push_visible(to: &mut String, text: &str) {
    let obeyed = |c: char| (c.is_control() && c != '\t') || matches!(c, '\u{2028}' | '\u{2029}');
    let mut rest = text;
    while let Some(at) = rest.find(obeyed) {
        let (before, after) = rest.split_at(at);
        to.push_str(before);
        let mut chars = after.chars();
        to.extend(chars.next().into_iter().flat_map(char::escape_default));
        rest = chars.as_str();
    }
    to.push_str(rest);
}

/// Adds a label, in which nothing looks like the bar after it.
fn push_label(to: &mut String, label: &str) {
    push_visible(to, &label.replace(" | ", " \\| "));
}

/// How a task stands, in a line.
pub fn in_words(task: &Answered<'_>) -> String {
    let counts = task.counts.in_words();
    let reason = match (&*task.msg, counts.is_empty()) {
        ("", _) => counts,
        (msg, true) => msg.to_owned(),
        (msg, false) => format!("{counts}; {msg}"),
    };
    format!("task {} is {}: {reason}", task.id, task.state.word())
}
