//! Prints the output of commands: their standard output to ours, their standard error to ours. The lines of several
//! machines begin with the name of the machine. What is missing is said on standard error.

use super::follow::print_message;
use super::terminal::{Colour, OutputStyle, sanitize, sanitize_output};
use crate::wire::agent::Stream;
use crate::wire::event::{EventKind, TaskEvent};
use crate::wire::machine_names::MachineNames;
use crate::wire::output_line::{CUT, MAX_LINE_BYTES, last_state};
use crate::wire::task::Task;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

/// The most bytes of unfinished lines of all machines. The server sends whole lines, in parts that follow each other:
/// several lines are unfinished only after a connection broke.
const MAX_UNFINISHED_BYTES: usize = 64 << 20;
/// The most machines named where output is missing; the others are only counted.
const MAX_NAMED: usize = 5;
/// The colours of names, to tell machines apart.
const NAME_COLOURS: [Colour; 5] = [
    Colour::Cyan,
    Colour::Magenta,
    Colour::Yellow,
    Colour::Blue,
    Colour::Green,
];

/// Prints output of commands.
pub struct Printer {
    several: bool,
    out: OutputStyle,
    err: OutputStyle,
    within_line: [bool; 2],
    names: MachineNames,
    /// Unfinished lines of several machines, by execution.
    unfinished: HashMap<String, [String; 2]>,
    unfinished_bytes: usize,
    missing: MissingOutput,
}

impl Printer {
    /// For the output of a task; with names in front of the lines if there are several machines.
    pub fn new(task: &Task, several: bool) -> Printer {
        Printer {
            several,
            out: OutputStyle::of(&io::stdout()),
            err: OutputStyle::of(&io::stderr()),
            within_line: [false; 2],
            names: task.machine_names(),
            unfinished: HashMap::new(),
            unfinished_bytes: 0,
            missing: MissingOutput::default(),
        }
    }

    /// Prints an event if it is output or has to do with output.
    pub fn print(&mut self, event: &TaskEvent) -> io::Result<()> {
        let (label, instance) = (&event.machine_label, &event.instance);
        self.names.add(label, instance, &event.host);
        match &event.kind {
            EventKind::State { state } if state.is_terminal() => self.end_lines(event),
            EventKind::State { .. } => Ok(()),
            EventKind::Output { stream, text, .. } if self.several => {
                self.add_lines(event, *stream, text)
            }
            EventKind::Output { stream, text, .. } => {
                self.within_line[*stream as usize] = !text.ends_with('\n');
                self.write(*stream, text)
            }
            EventKind::Missing {
                stream,
                offset,
                end,
            } => {
                let bytes = end - offset;
                self.cut_line(event, *stream);
                self.end_lines(event)?;
                self.missing.add(self.names.name(label, instance), bytes);
                // What comes behind the gap is not the rest of this line.
                if std::mem::take(&mut self.within_line[*stream as usize]) {
                    self.write(*stream, "\n")?;
                }
                self.remark(event, &format!("… {bytes} bytes left out …"))
            }
            EventKind::Attempt => {
                self.end_lines(event)?;
                self.remark(event, &format!("… attempt {} begins …", event.attempt))
            }
        }
    }

    /// Prints the lines that a part of the output of one of several machines ends, and keeps the rest.
    fn add_lines(&mut self, event: &TaskEvent, stream: Stream, text: &str) -> io::Result<()> {
        let name = self.painted_name(event, stream);
        let style = self.style(stream);
        let kept = match self.unfinished.get_mut(&event.execution) {
            Some(kept) => &mut kept[stream as usize],
            None => {
                let kept = self.unfinished.entry(event.execution.clone());
                &mut kept.or_default()[stream as usize]
            }
        };
        self.unfinished_bytes -= kept.len();
        let mut lines = String::with_capacity(text.len() + name.len());
        for part in text.split_inclusive('\n') {
            let line = part.strip_suffix('\n');
            if kept.is_empty()
                && let Some(line) = line
            {
                push_line(&mut lines, &name, line, style);
                continue;
            }
            kept.push_str(line.unwrap_or(part));
            let is_full = kept.len() >= MAX_LINE_BYTES
                || self.unfinished_bytes + kept.len() > MAX_UNFINISHED_BYTES;
            if line.is_some() {
                push_line(&mut lines, &name, kept, style);
                kept.clear();
            } else if is_full {
                kept.push_str(CUT);
                push_line(&mut lines, &name, kept, style);
                kept.clear();
            }
        }
        self.unfinished_bytes += kept.len();
        if kept.is_empty() {
            // A line may have been long.
            *kept = String::new();
        }
        self.write(stream, &lines)
    }

    /// Marks the unfinished line of a stream: its rest is missing.
    fn cut_line(&mut self, event: &TaskEvent, stream: Stream) {
        let rests = self.unfinished.get_mut(&event.execution);
        if let Some(rest) = rests.map(|rests| &mut rests[stream as usize])
            && !rest.is_empty()
        {
            rest.push_str(CUT);
            self.unfinished_bytes += CUT.len();
        }
    }

    /// Prints the unfinished lines of an execution, to which nothing will be added.
    fn end_lines(&mut self, event: &TaskEvent) -> io::Result<()> {
        let Some(rests) = self.unfinished.remove(&event.execution) else {
            return Ok(());
        };
        for (stream, rest) in [Stream::Stdout, Stream::Stderr].into_iter().zip(rests) {
            self.unfinished_bytes -= rest.len();
            if !rest.is_empty() {
                let mut line = String::with_capacity(rest.len() + event.machine_label.len());
                let name = self.painted_name(event, stream);
                push_line(&mut line, &name, &rest, self.style(stream));
                self.write(stream, &line)?;
            }
        }
        Ok(())
    }

    /// The name of the machine as it is printed in front of a line.
    fn painted_name(&mut self, event: &TaskEvent, stream: Stream) -> String {
        let style = self.style(stream);
        let name = self.names.name(&event.machine_label, &event.instance);
        let sum: usize = name.bytes().map(usize::from).sum();
        let colour = NAME_COLOURS[sum % NAME_COLOURS.len()];
        match style.is_terminal {
            true => style.paint(colour, &sanitize(name)),
            false => name.to_owned(),
        }
    }

    /// Prints a line about the output to standard error.
    fn remark(&mut self, event: &TaskEvent, remark: &str) -> io::Result<()> {
        let mut line = String::new();
        if self.several {
            let name = self.painted_name(event, Stream::Stderr);
            push_line(&mut line, &name, remark, self.err);
        } else {
            let is_within = std::mem::take(&mut self.within_line[Stream::Stderr as usize]);
            line.push_str(if is_within { "\n" } else { "" });
            line.push_str(remark);
            line.push('\n');
        }
        self.write(Stream::Stderr, &line)
    }

    fn style(&self, stream: Stream) -> OutputStyle {
        match stream {
            Stream::Stdout => self.out,
            Stream::Stderr => self.err,
        }
    }

    fn write(&self, stream: Stream, text: &str) -> io::Result<()> {
        match stream {
            Stream::Stdout => io::stdout().write_all(text.as_bytes()),
            Stream::Stderr => io::stderr().write_all(text.as_bytes()),
        }
    }

    /// Flushes stdout.
    pub fn flush(&self) -> io::Result<()> {
        io::stdout().flush()
    }

    /// Whether the cursor of the terminal is in the middle of a line of output.
    pub fn is_within_line(&self) -> bool {
        let [out, err] = self.within_line;
        (out && self.out.is_terminal) || (err && self.err.is_terminal)
    }

    /// Ends an unfinished line on a terminal, so that the next message begins on its own line, and says what is missing
    /// of the output.
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        if self.is_within_line() {
            print_message("\n");
            self.within_line = [false; 2];
        }
        self.missing.report();
        Ok(())
    }
}

fn push_line(lines: &mut String, name: &str, line: &str, style: OutputStyle) {
    lines.push_str(name);
    lines.push_str(" | ");
    let line = last_state(line);
    if style.is_terminal {
        lines.push_str(&sanitize_output(line));
    } else {
        lines.push_str(line);
    }
    lines.push('\n');
}

/// How many bytes of output are missing, by machine.
#[derive(Debug, Default)]
pub struct MissingOutput(BTreeMap<String, u64>);

impl MissingOutput {
    /// What the server does not have of the output of a task.
    pub fn of(task: &Task) -> Self {
        let mut missing = MissingOutput::default();
        let mut names = task.machine_names();
        for execution in &task.result {
            let name = names.name(&execution.machine_label, &execution.instance);
            missing.add(name, execution.attempt.missing_bytes);
        }
        missing
    }

    fn add(&mut self, machine: &str, bytes: u64) {
        if bytes > 0 {
            *self.0.entry(machine.to_owned()).or_default() += bytes;
        }
    }

    /// Says it on standard error, if anything is missing.
    pub fn report(&self) {
        let all: u64 = self.0.values().sum();
        if all == 0 {
            return;
        }
        let by_machine = self.0.iter().take(MAX_NAMED);
        let mut named: Vec<String> = by_machine
            .map(|(name, bytes)| format!("{}: {bytes}", sanitize(name)))
            .collect();
        if self.0.len() > MAX_NAMED {
            named.push(format!("{} machines more", self.0.len() - MAX_NAMED));
        }
        print_message(&format!(
            "sidebike: {all} bytes of output are missing ({}); the first 256 KiB and the last 768 KiB of a stream are kept. To have all of it, let the command write to a file\n",
            named.join(", ")
        ));
    }
}
