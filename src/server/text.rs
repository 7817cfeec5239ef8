//! Output as plain text, for people with curl.

use super::answer;
use super::http::Answer;
use super::routes::{Call, Handled, named_task};
use crate::core::{Output, Task, gap_line};
use crate::wire::agent::Stream;

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
    let machine = request.query("machine");
    let key = named_task(&call)?;
    let task = call
        .server
        .store
        .ask(|core| core.show(key))
        .map_err(|refusal| answer::refused(&refusal))?;
    let text = match offset {
        Some(offset) => from_offset(&task, machine, stream.unwrap_or(Stream::Stdout), offset)?,
        None => whole(&task, machine, stream),
    };
    Ok(Some(Answer {
        status: 200,
        content_type: "text/plain; charset=utf-8",
        body: text.into_bytes(),
        allow: None,
        headers: "",
    }))
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

/// What one command wrote to one stream from `offset` on, as it wrote it.
fn from_offset(
    task: &Task,
    machine: Option<&str>,
    stream: Stream,
    offset: u64,
) -> Result<String, Answer> {
    let outputs = task.outputs(machine);
    let [(_, output)] = &*outputs else {
        let msg = format!(
            "offset: counts the bytes of one command, and {} match; name one with machine= (an instance)",
            outputs.len()
        );
        return Err(answer::error(422, &msg));
    };
    let mut text = String::new();
    let mut at = offset;
    let Some(output) = output else {
        return Ok(text);
    };
    let tape = output.tape(stream);
    while at < tape.end() {
        let (from, bytes) = tape
            .read(at, usize::MAX)
            .unwrap_or((tape.end(), Vec::new()));
        if from > at {
            text.push_str(&gap_line(from - at));
        }
        text.push_str(&String::from_utf8_lossy(&bytes));
        at = from + bytes.len() as u64;
    }
    Ok(text)
}
