//! Output as plain text, for people with curl.

use super::call::{Call, Handled};
use super::follow;
use super::parse::{flag, looked_at_task};
use crate::core::{Output, OutputFilter, Refusal, Task, gap_line};
use crate::server::answers;
use crate::server::answers::text::{plain, with_left_out};
use crate::server::http::Answer;
use crate::wire::agent::Stream;
use crate::wire::machine_names::MachineNames;
use crate::wire::output_line::last_state;

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
        let names = match several && !as_json {
            true => task.machine_names(),
            false => MachineNames::default(),
        };
        // What is held here would have to be copied whenever output comes.
        drop(task);
        if as_json {
            return follow::answer(call, key, wanted, live, Box::new(follow::Json { prefix }));
        }
        let within_line = false;
        let form = follow::Text {
            several,
            within_line,
            names,
        };
        return follow::answer(call, key, wanted, live, Box::new(form));
    }
    if offset.is_some() {
        check_one(task.outputs(machine).len())?;
    }
    let machine = machine.map(str::to_owned);
    call.large(move || {
        let machine = machine.as_deref();
        let (text, missing) = match offset {
            Some(offset) => from_offset(&task, machine, stream.unwrap_or(Stream::Stdout), offset),
            None => whole(&task, machine, stream),
        };
        with_left_out(plain(200, text), missing)
    })
}

/// The output of all commands, or of those on a machine, and how many bytes are missing of it.
fn whole(task: &Task, machine: Option<&str>, stream: Option<Stream>) -> (String, u64) {
    let outputs = task.outputs(machine);
    if let ([(_, Some(output))], Some(stream)) = (&*outputs, stream) {
        return output.text(stream, usize::MAX);
    }
    let several = outputs.len() > 1;
    let mut names = match several {
        true => task.machine_names(),
        false => MachineNames::default(),
    };
    let (mut text, mut missing) = (String::new(), 0);
    for (target, output) in &outputs {
        let Some(output) = output else {
            continue;
        };
        missing += match stream {
            None => output.truncated(),
            Some(stream) => output.stream(stream).truncated(),
        };
        let name = target.map_or("", |t| names.name(&t.label, &t.instance));
        for line in lines(output, stream) {
            if several {
                text.push_str(name);
                text.push_str(" | ");
                text.push_str(last_state(&line));
            } else {
                text.push_str(&line);
            }
            text.push('\n');
        }
    }
    (text, missing)
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

/// What one command wrote to one stream from `offset` on, as it wrote it, and how many bytes are missing of it.
fn from_offset(task: &Task, machine: Option<&str>, stream: Stream, offset: u64) -> (String, u64) {
    let outputs = task.outputs(machine);
    let output = outputs.first().and_then(|(_, output)| *output);
    let (mut text, mut missing) = (String::new(), 0);
    let mut at = offset;
    let Some(output) = output else {
        return (text, missing);
    };
    let buffer = output.stream(stream);
    while at < buffer.end() {
        let (from, bytes) = buffer
            .read(at, usize::MAX)
            .unwrap_or((buffer.end(), Vec::new()));
        if from > at {
            missing += from - at;
            text.push_str(&gap_line(from - at));
        }
        text.push_str(&String::from_utf8_lossy(&bytes));
        at = from + bytes.len() as u64;
    }
    (text, missing)
}
