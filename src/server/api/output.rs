//! Output as plain text, for people with curl.

use super::call::{Call, Handled};
use super::follow;
use super::parse::{flag, looked_at_task};
use crate::core::{EventKind, Output, OutputEnd, OutputFilter, Refusal, Task, TaskKey, gap_line};
use crate::server::answers;
use crate::server::answers::text::{plain, with_left_out};
use crate::server::http::{Answer, Part, Source};
use crate::server::state::Store;
use crate::wire::agent::Stream;
use crate::wire::machine_names::MachineNames;
use crate::wire::output_line::last_state;
use std::collections::VecDeque;
use std::sync::Arc;

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
        // While this snapshot is alive, the core would copy output whenever more comes.
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
    if offset.is_none() && is_large(&task, machine.as_deref()) {
        if !call.server.store.start_reading() {
            let msg = "as many requests are held as allowed (--max-held)";
            return Err(answers::error(503, msg));
        }
        let parts = Parts {
            store: call.server.store.clone(),
            names: task.machine_names(),
            commands: task.output_ends(machine.as_deref()).into(),
            task: key,
            stream,
            at: [0; 2],
            read: VecDeque::new(),
            is_all: false,
            within_line: None,
        };
        if let Some(responder) = call.responder.take() {
            responder.stream("text/plain; charset=utf-8", Box::new(parts));
        }
        return Ok(None);
    }
    call.large(move || {
        let machine = machine.as_deref();
        let (text, missing) = match offset {
            Some(offset) => from_offset(&task, machine, stream.unwrap_or(Stream::Stdout), offset),
            None => whole(&task, machine, stream),
        };
        with_left_out(plain(200, text), missing)
    })
}

/// Output of several commands above so many bytes is not made as a whole, but sent in parts: slow readers
/// would fill the memory with it.
const LARGE_BYTES: usize = 2 << 20;

/// Whether output is that of several commands, and large.
fn is_large(task: &Task, machine: Option<&str>) -> bool {
    let outputs = task.outputs(machine);
    let bytes = outputs.iter().filter_map(|(_, output)| *output);
    outputs.len() > 1 && bytes.map(Output::kept).sum::<usize>() > LARGE_BYTES
}

/// What is read of a command's output at once, in bytes: more than its longest line that stays whole.
const READ_BYTES: usize = 128 << 10;
/// The size of a part, in bytes; it ends with the line that exceeds it.
const PART_BYTES: usize = 64 << 10;

/// What stands in place of output that was forgotten while it was being read.
const NO_LONGER_KEPT: &str = "… the rest is no longer kept …";

/// The output of several commands up to where it was at one moment, part by part. It is read from what is kept, and no
/// copy is held: one for each slow reader would take as much memory as all that is kept, and again.
struct Parts {
    store: Arc<Store>,
    task: TaskKey,
    stream: Option<Stream>,
    names: MachineNames,
    /// The commands whose output is still to be sent; up to which offsets the first one's was read.
    commands: VecDeque<OutputEnd>,
    at: [u64; 2],
    /// What was read and not sent yet.
    read: VecDeque<EventKind>,
    /// It is all that there is of this command.
    is_all: bool,
    /// The stream whose last line was sent without its end.
    within_line: Option<Stream>,
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.store.stop_reading();
    }
}

impl Source for Parts {
    fn next(&mut self) -> Part {
        let mut text = Vec::new();
        while text.len() < PART_BYTES {
            let Some(command) = self.commands.front() else {
                break;
            };
            let target = &command.target;
            let name = self.names.name(&target.label, &target.instance);
            if let Some(event) = self.read.pop_front() {
                let rest = add_event(name, event, &mut self.within_line, &mut text);
                if let Some(rest) = rest {
                    self.read.push_front(rest);
                }
                continue;
            }
            if !self.is_all {
                // It is read after the lock is released, and given back at once.
                let only = self.stream;
                let output = (self.store).ask(|core| core.output_of(self.task, command));
                let lines = output.map(|output| output.next_lines(only, &mut self.at, READ_BYTES));
                let wanted = |stream| only.is_none_or(|only| only == stream);
                let is_read = [Stream::Stdout, Stream::Stderr].into_iter().all(|stream| {
                    !wanted(stream) || self.at[stream as usize] >= command.ends[stream as usize]
                });
                if let Some((events, is_all)) = lines {
                    let events = events.into_iter();
                    let events = events.filter_map(|event| before_end(event, &command.ends));
                    self.read = events.collect();
                    self.is_all = is_all || is_read;
                    continue;
                }
                self.is_all = true;
                if self.within_line.take().is_some() {
                    text.push(b'\n');
                }
                text.extend_from_slice(format!("{name} | {NO_LONGER_KEPT}\n").as_bytes());
            }
            if self.within_line.take().is_some() {
                text.push(b'\n');
            }
            self.commands.pop_front();
            (self.at, self.is_all) = ([0; 2], false);
        }
        match text.is_empty() {
            true => Part::End,
            false => Part::Bytes(text),
        }
    }
}

/// What of an event is before these ends of the streams.
fn before_end(event: EventKind, ends: &[u64; 2]) -> Option<EventKind> {
    match event {
        EventKind::Output(stream, offset, mut bytes) => {
            let end = ends[stream as usize];
            let room = end.checked_sub(offset).filter(|room| *room > 0)?;
            bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
            Some(EventKind::Output(stream, offset, bytes))
        }
        EventKind::Gap(stream, from, to) => {
            let end = ends[stream as usize];
            (from < end).then(|| EventKind::Gap(stream, from, to.min(end)))
        }
        EventKind::State(_) | EventKind::Retried => None,
    }
}

/// Adds lines to a part until it is large enough. What is left of the event comes back.
fn add_event(
    name: &str,
    event: EventKind,
    within_line: &mut Option<Stream>,
    text: &mut Vec<u8>,
) -> Option<EventKind> {
    let begin = |text: &mut Vec<u8>| {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b" | ");
    };
    let (stream, offset, bytes) = match event {
        EventKind::Output(stream, offset, bytes) => (stream, offset, bytes),
        EventKind::Gap(_, from, end) => {
            if within_line.take().is_some() {
                text.push(b'\n');
            }
            begin(text);
            text.extend_from_slice(gap_line(end - from).trim().as_bytes());
            text.push(b'\n');
            return None;
        }
        EventKind::State(_) | EventKind::Retried => return None,
    };
    if within_line.is_some_and(|other| other != stream) {
        *within_line = None;
        text.push(b'\n');
    }
    let mut taken = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if text.len() >= PART_BYTES {
            let rest = bytes[taken..].to_vec();
            return Some(EventKind::Output(stream, offset + taken as u64, rest));
        }
        taken += line.len();
        if within_line.is_none() {
            begin(text);
        }
        let whole = line.strip_suffix(b"\n");
        *within_line = whole.is_none().then_some(stream);
        let content = whole.map_or(line, |whole| whole.strip_suffix(b"\r").unwrap_or(whole));
        text.extend_from_slice(String::from_utf8_lossy(content).as_bytes());
        if whole.is_some() {
            text.push(b'\n');
        }
    }
    None
}

/// Adds the lines of one of several commands, with the name of its machine in front.
fn add_lines(name: &str, output: Option<&Output>, stream: Option<Stream>, text: &mut String) {
    for line in { output.into_iter() }.flat_map(|output| lines(output, stream)) {
        for part in [name, " | ", last_state(&line), "\n"] {
            text.push_str(part);
        }
    }
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
        if several {
            let name = target.map_or("", |t| names.name(&t.label, &t.instance));
            add_lines(name, Some(output), stream, &mut text);
            continue;
        }
        for line in lines(output, stream) {
            text.push_str(&line);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a part of these events looks like, cut as small as can be.
    fn text(events: Vec<EventKind>) -> String {
        let (mut text, mut within, mut read) = (Vec::new(), None, VecDeque::from(events));
        while let Some(event) = read.pop_front() {
            let mut part = Vec::new();
            if let Some(rest) = add_event("m", event, &mut within, &mut part) {
                read.push_front(rest);
            }
            text.extend(part);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn lines_are_as_in_an_answer_in_one_piece() {
        let mut output = Output::default();
        output.write(Stream::Stdout, 0, b"one\r\ntw");
        output.write(Stream::Stderr, 0, b"oops\n");
        output.write(Stream::Stdout, 7, b"o\nrest");
        output.skip_to(Stream::Stdout, 100);
        output.write(Stream::Stdout, 100, &[b'\n'; 3]);
        let mut whole = String::new();
        add_lines("m", Some(&output), None, &mut whole);
        let (events, is_all) = output.next_lines(None, &mut [0; 2], READ_BYTES);
        assert!(is_all);
        assert_eq!(text(events), whole);
    }

    #[test]
    fn a_long_line_has_one_label_and_many_short_ones_make_several_parts() {
        let (mut output, mut at) = (Output::default(), [0; 2]);
        output.write(Stream::Stdout, 0, &[b'x'; 200_000]);
        output.write(Stream::Stdout, 200_000, &[b'\n'; 20_000]);
        let mut all = Vec::new();
        loop {
            let (events, is_all) = output.next_lines(None, &mut at, READ_BYTES);
            all.extend(events);
            if is_all {
                break;
            }
        }
        let mut whole = String::new();
        add_lines("m", Some(&output), None, &mut whole);
        assert_eq!(text(all), whole);
    }
}
