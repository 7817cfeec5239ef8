//! Output as plain text, for people with curl.

use super::respond::Answer;
use super::routes::{Call, Handled, flag, looked_at_task};
use super::{answer, follow};
use crate::core::{Output, OutputFilter, Refusal, Task, gap_line};
use crate::wire;
use crate::wire::agent::Stream;
use crate::wire::task::{ExecutionState, TaskState};
use std::borrow::Cow;

/// A task as it is answered.
type Answered<'a> = wire::task::Task<Cow<'a, str>>;

/// `GET /api/v1/task/{id}/output`.
pub fn output(call: Call<'_>) -> Handled {
    let request = call.request;
    let stream = match request.query("stream") {
        None => None,
        Some("stdout") => Some(Stream::Stdout),
        Some("stderr") => Some(Stream::Stderr),
        Some(other) => {
            return Err(answer::error(
                400,
                &format!("stream: expected stdout or stderr, got {other:?}"),
            ));
        }
    };
    let offset = request.query("offset").map(|text| {
        let number = text.parse::<u64>().ok();
        number.ok_or_else(|| {
            answer::error(
                400,
                &format!("offset: expected a number of bytes, got {text:?}"),
            )
        })
    });
    let offset = offset.transpose()?;
    let live = flag(request, "follow")?;
    let as_json = request.query("format").map(|format| match format {
        "text" => Ok(false),
        "json" => Ok(true),
        other => Err(answer::error(
            400,
            &format!("format: expected text or json, got {other:?}"),
        )),
    });
    let as_json = as_json.transpose()?.unwrap_or(false);
    let machine = request.query("machine");
    let key = looked_at_task(&call)?;
    let task = call
        .server
        .store
        .ask(|core| core.show(key))
        .map_err(|refusal| answer::refused(&refusal))?;
    if let Some(name) = machine
        && !task.may_be_on(name)
    {
        return Err(answer::refused(&Refusal::not_on(&task, name)));
    }
    if live || as_json {
        let several = task.has_several_machines(machine);
        if offset.is_some() {
            let may_join = usize::from(several);
            check_one(task.outputs(machine).len().max(2 * may_join))?;
        }
        let wanted = OutputFilter {
            machine: machine.map(str::to_owned),
            stream: stream.or(offset.map(|_| Stream::Stdout)),
            offset,
            whole_lines: several,
        };
        let prefix = task.prefix.clone();
        // What is held here would have to be copied whenever output comes.
        drop(task);
        if as_json {
            return follow::answer(call, key, wanted, live, &mut follow::Json { prefix });
        }
        let within_line = false;
        let mut form = follow::Text {
            several,
            within_line,
        };
        return follow::answer(call, key, wanted, live, &mut form);
    }
    let text = match offset {
        Some(offset) => from_offset(&task, machine, stream.unwrap_or(Stream::Stdout), offset)?,
        None => whole(&task, machine, stream),
    };
    Ok(Some(plain(200, text)))
}

fn plain(status: u16, text: String) -> Answer {
    Answer {
        status,
        content_type: "text/plain; charset=utf-8",
        body: text.into_bytes(),
        allow: None,
        headers: "",
    }
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

fn whole(task: &Task, machine: Option<&str>, stream: Option<Stream>) -> String {
    let outputs = task.outputs(machine);
    if let ([(_, Some(output))], Some(stream)) = (&*outputs, stream) {
        return output.text(stream, usize::MAX).0;
    }
    let several = outputs.len() > 1;
    let mut text = String::new();
    for (label, output) in &outputs {
        for line in output
            .map(|output| lines(output, stream))
            .unwrap_or_default()
        {
            if several {
                text.push_str(label);
                text.push_str(" | ");
            }
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

fn lines(output: &Output, stream: Option<Stream>) -> Vec<String> {
    match stream {
        None => output.lines(usize::MAX),
        Some(stream) => output
            .text(stream, usize::MAX)
            .0
            .lines()
            .map(str::to_owned)
            .collect(),
    }
}

fn check_one(commands: usize) -> Result<(), Answer> {
    if commands == 1 {
        return Ok(());
    }
    let msg = format!(
        "offset: counts the bytes of one command, and {commands} match; name one with machine= (an instance)"
    );
    Err(answer::error(422, &msg))
}

/// What one command wrote to one stream from `offset` on, as it wrote it.
fn from_offset(
    task: &Task,
    machine: Option<&str>,
    stream: Stream,
    offset: u64,
) -> Result<String, Answer> {
    let outputs = task.outputs(machine);
    check_one(outputs.len())?;
    let output = outputs.first().and_then(|(_, output)| *output);
    let mut text = String::new();
    let mut at = offset;
    let Some(output) = output else {
        return Ok(text);
    };
    let buffer = output.stream(stream);
    while at < buffer.end() {
        let (from, bytes) = buffer
            .read(at, usize::MAX)
            .unwrap_or((buffer.end(), Vec::new()));
        if from > at {
            text.push_str(&gap_line(from - at));
        }
        text.push_str(&String::from_utf8_lossy(&bytes));
        at = from + bytes.len() as u64;
    }
    Ok(text)
}
