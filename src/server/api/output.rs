//! Output as plain text, for people with curl.

use super::call::{Call, Handled};
use super::follow;
use super::parse::{flag, looked_at_task};
use crate::core::{Output, OutputFilter, Refusal, Task, gap_line};
use crate::server::answers;
use crate::server::answers::text::plain;
use crate::server::http::Answer;
use crate::wire::agent::Stream;

/// `GET /api/v1/task/{id}/output`.
pub fn output(call: Call<'_>) -> Handled {
    let request = call.request;
    let stream = match request.query("stream") {
        None => None,
        Some("stdout") => Some(Stream::Stdout),
        Some("stderr") => Some(Stream::Stderr),
        Some(other) => {
            return Err(answers::error(
                400,
                &format!("stream: expected stdout or stderr, got {other:?}"),
            ));
        }
    };
    let offset = request.query("offset").map(|text| {
        let number = text.parse::<u64>().ok();
        number.ok_or_else(|| {
            answers::error(
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
        other => Err(answers::error(
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
        .map_err(answers::refused)?;
    if let Some(name) = machine
        && !task.may_be_on(name)
    {
        return Err(answers::refused(Refusal::not_on(&task, name)));
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
        // While this snapshot is alive, the core would copy output whenever more comes.
        drop(task);
        if as_json {
            return follow::answer(call, key, wanted, live, Box::new(follow::Json { prefix }));
        }
        let within_line = false;
        let form = follow::Text {
            several,
            within_line,
        };
        return follow::answer(call, key, wanted, live, Box::new(form));
    }
    if offset.is_some() {
        check_one(task.outputs(machine).len())?;
    }
    let machine = machine.map(str::to_owned);
    call.large(move || {
        let machine = machine.as_deref();
        let stdout = Stream::Stdout;
        plain(
            200,
            match offset {
                Some(offset) => from_offset(&task, machine, stream.unwrap_or(stdout), offset),
                None => whole(&task, machine, stream),
            },
        )
    })
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
    Err(answers::error(422, &msg))
}

/// What one command wrote to one stream from `offset` on, as it wrote it.
fn from_offset(task: &Task, machine: Option<&str>, stream: Stream, offset: u64) -> String {
    let outputs = task.outputs(machine);
    let output = outputs.first().and_then(|(_, output)| *output);
    let mut text = String::new();
    let mut at = offset;
    let Some(output) = output else {
        return text;
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
    text
}
