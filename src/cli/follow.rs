//! Follows a task until it ends: prints its output with labels in front and its progress, handles Ctrl-C, and
//! prints a summary. Used by `run` and `rerun`; `logs` uses the [`Printer`].

use super::event_stream::{EventStream, StreamItem};
use super::outcome::{self, CANCELED};
use super::progress::Progress;
use super::terminal::{Colour, OutputStyle, Prompt, sanitize, sanitize_output};
use super::{CommandResult, Failure, cancel, fold, print_json};
use crate::client::Client;
use crate::wire::agent::Stream;
use crate::wire::duration::TimeSpan;
use crate::wire::event::{EventKind, TaskEvent};
use crate::wire::task::Task;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// How often the progress line is redrawn and Ctrl-C is checked.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// The most events printed between two redraws of the progress line.
const EVENTS_PER_REDRAW: usize = 200;
/// How long the server may take to show a task as ended after its last event.
const FINISH_WAIT: TimeSpan = TimeSpan::from_secs(10);
/// The colours of labels, to tell machines apart.
const LABEL_COLOURS: [Colour; 5] = [
    Colour::Cyan,
    Colour::Magenta,
    Colour::Yellow,
    Colour::Blue,
    Colour::Green,
];
const QUESTION: &str = "\nc: cancel the task   d: detach, it runs on   nothing: go on   (Ctrl-C again: detach)\nType one of them and Enter: ";

/// What to print at the end.
#[derive(Debug, Clone, Copy, Default)]
pub struct FollowOptions {
    /// The output, grouped by machines with the same output.
    pub fold: bool,
    /// The task as JSON.
    pub json: bool,
}

/// Both ends of the channel of interruptions.
pub type Controls = (Sender<Control>, Receiver<Control>);

/// An interruption.
pub enum Control {
    /// A signal arrived.
    Signal(i32),
    /// The user answered the question.
    Answer(String),
}

/// Follows a task that was just submitted until it ends; the exit code is its result. `control` was created
/// before the submit, so that Ctrl-C never leaves a task running without telling its id.
pub fn follow_to_end(
    client: &Client,
    task: &Task,
    options: FollowOptions,
    control: Controls,
) -> CommandResult {
    let mut following = Following {
        client,
        id: &task.id,
        printer: Printer::new(is_several(task)),
        progress: Progress::of(task),
        control,
        is_live: !options.fold && !options.json,
    };
    let mut stream = EventStream::open(client, &task.id, None, true);
    let ended = loop {
        if let Some(code) = following.watch(&mut stream)? {
            return Ok(code);
        }
        let task = client.task(&task.id, FINISH_WAIT)?;
        if task.state.is_terminal() {
            break task;
        }
        stream.reopen();
    };
    following.printer.finish()?;
    let (stdout, stderr) = (
        OutputStyle::of(&io::stdout()),
        OutputStyle::of(&io::stderr()),
    );
    if options.json {
        print_json(&ended)?;
    } else if options.fold {
        fold::print(&ended, &mut io::stdout().lock(), &stdout)?;
    }
    let code = outcome::exit_code(&ended);
    if code != 0 || ended.result.len() > 1 || stderr.is_terminal {
        print_message(&outcome::summary(&ended, &stderr));
    }
    Ok(code)
}

/// Whether lines need labels. The server decides in the same way.
pub fn is_several(task: &Task) -> bool {
    task.result.len() > 1 || (task.late_join && !task.state.is_terminal())
}

/// Prints a message to stderr.
pub fn print_message(text: &str) {
    // Ignore a closed stderr.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// From now on Ctrl-C and TERM do not end the process; [`follow_to_end`] handles them.
pub fn controls() -> Result<Controls, Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (sender, controls) = channel();
    let signaled = sender.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signaled.send(Control::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
    Ok((sender, controls))
}

struct Following<'a> {
    client: &'a Client,
    id: &'a str,
    printer: Printer,
    progress: Progress,
    control: Controls,
    /// Output is printed as it arrives.
    is_live: bool,
}

impl Following<'_> {
    /// Prints events until the last one. Returns an exit code if the user detached or canceled.
    fn watch(&mut self, stream: &mut EventStream) -> Result<Option<u8>, Failure> {
        let mut complained = false;
        loop {
            if let Ok(Control::Signal(signal)) = self.control.1.try_recv()
                && let Some(code) = self.interrupted(signal)?
            {
                return Ok(Some(code));
            }
            let mut patience = REDRAW_INTERVAL;
            for _ in 0..EVENTS_PER_REDRAW {
                let Some(item) = stream.next(patience) else {
                    break;
                };
                patience = Duration::ZERO;
                match item {
                    StreamItem::Event(event) => {
                        complained = false;
                        self.show(&event)?;
                    }
                    StreamItem::Broken(why) => {
                        self.progress.erase();
                        if !std::mem::replace(&mut complained, true) {
                            print_message(&format!("sidebike: {why}; trying again\n"));
                        }
                    }
                    StreamItem::Ended => {
                        self.progress.erase();
                        return Ok(None);
                    }
                    StreamItem::Refused(why) => {
                        self.progress.erase();
                        return Err(Failure::Because(why));
                    }
                }
            }
            self.printer.flush()?;
            if !self.printer.is_within_line() {
                self.progress.draw();
            }
        }
    }

    fn show(&mut self, event: &TaskEvent) -> Result<(), Failure> {
        self.progress.note(event);
        if self.is_live && !matches!(event.kind, EventKind::State { .. }) {
            self.progress.erase();
            self.printer.print(event)?;
        }
        Ok(())
    }

    /// Handles Ctrl-C: asks the user what to do if there is a terminal, and cancels otherwise.
    fn interrupted(&mut self, signal: i32) -> Result<Option<u8>, Failure> {
        self.progress.erase();
        let person = Prompt::open().filter(|_| signal == SIGINT);
        let Some(mut person) = person else {
            let had_ended = self.cancel()?;
            return Ok((!had_ended).then_some(CANCELED));
        };
        self.printer.flush()?;
        let answers = self.control.0.clone();
        thread::Builder::new()
            .name("question".into())
            .spawn(move || {
                let mut answer = person.ask(QUESTION);
                while !["c", "cancel", "d", "detach", ""].contains(&&*answer) {
                    answer = person.ask(QUESTION);
                }
                // The receiver may be gone by now.
                let _ = answers.send(Control::Answer(answer));
            })?;
        match self.control.1.recv() {
            Ok(Control::Answer(answer)) if answer.starts_with('c') => {
                self.cancel()?;
                Ok(None)
            }
            Ok(Control::Answer(answer)) if answer.is_empty() => Ok(None),
            _ => {
                let id = self.id;
                print_message(&format!(
                    "\ndetached; it runs on: sidebike logs -f {id}, sidebike cancel {id}\n"
                ));
                Ok(Some(CANCELED))
            }
        }
    }

    /// Cancels the task and prints the result. Returns whether the task had ended before.
    fn cancel(&self) -> Result<bool, Failure> {
        let before = self.client.task(self.id, TimeSpan::default())?;
        let after = self.client.cancel(self.id, None)?;
        print_message(&format!(
            "sidebike: {}\n",
            cancel::done(&before, &after, None)
        ));
        Ok(before.state.is_terminal())
    }
}

/// Prints output of commands: their stdout to our stdout, their stderr to our stderr.
pub struct Printer {
    several: bool,
    out: OutputStyle,
    err: OutputStyle,
    within_line: [bool; 2],
}

impl Printer {
    /// With labels in front of the lines if there are several machines.
    pub fn new(several: bool) -> Printer {
        Printer {
            several,
            out: OutputStyle::of(&io::stdout()),
            err: OutputStyle::of(&io::stderr()),
            within_line: [false; 2],
        }
    }

    /// Prints an event if it is output or has to do with output.
    pub fn print(&mut self, event: &TaskEvent) -> io::Result<()> {
        match &event.kind {
            EventKind::State { .. } => Ok(()),
            EventKind::Output { stream, text, .. } => {
                self.output(*stream, &event.machine_label, text)
            }
            EventKind::Missing {
                stream,
                offset,
                end,
            } => {
                let remark = format!("… {} bytes left out …", end - offset);
                self.remark(*stream, &event.machine_label, &remark)
            }
            EventKind::Attempt => {
                let remark = format!("… attempt {} begins …", event.attempt);
                self.remark(Stream::Stderr, &event.machine_label, &remark)
            }
        }
    }

    fn output(&mut self, stream: Stream, label: &str, text: &str) -> io::Result<()> {
        if !self.several {
            self.within_line[stream as usize] = !text.ends_with('\n');
            return self.write(stream, text);
        }
        let style = self.style(stream);
        let colour =
            LABEL_COLOURS[label.bytes().map(usize::from).sum::<usize>() % LABEL_COLOURS.len()];
        let label = if style.is_terminal {
            style.paint(colour, &sanitize(label))
        } else {
            label.to_owned()
        };
        let mut lines = String::with_capacity(text.len() + label.len());
        for line in text.split_inclusive('\n') {
            let line = line.strip_suffix('\n').unwrap_or(line);
            lines.push_str(&label);
            lines.push_str(" | ");
            if style.is_terminal {
                lines.push_str(&sanitize_output(line));
            } else {
                lines.push_str(line);
            }
            lines.push('\n');
        }
        self.write(stream, &lines)
    }

    fn remark(&mut self, stream: Stream, label: &str, remark: &str) -> io::Result<()> {
        if self.several {
            return self.output(stream, label, remark);
        }
        let begin = if std::mem::take(&mut self.within_line[stream as usize]) {
            "\n"
        } else {
            ""
        };
        self.write(stream, &format!("{begin}{remark}\n"))
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
    fn is_within_line(&self) -> bool {
        let [out, err] = self.within_line;
        (out && self.out.is_terminal) || (err && self.err.is_terminal)
    }

    /// Ends an unfinished line on a terminal, so that the next message begins on its own line.
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        if self.is_within_line() {
            print_message("\n");
            self.within_line = [false; 2];
        }
        Ok(())
    }
}
