//! Follows a task until it ends: prints its output with labels in front and its progress, handles Ctrl-C, and
//! prints a summary. Used by `run` and `rerun`.

use super::command::{CommandResult, Failure, over_failovers, print_json};
use super::event_stream::{EventStream, StreamItem};
use super::outcome::{self, CANCELED, NOT_UNDONE};
use super::printer::{MissingOutput, Printer};
use super::progress::Progress;
use super::rollout::TaskWatch;
use super::terminal::{OutputStyle, Prompt};
use super::{cancel, fold, undos};
use crate::client::Client;
use crate::wire::duration::TimeSpan;
use crate::wire::event::{EventKind, TaskEvent};
use crate::wire::task::{Mode, Task};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
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
/// How long a task may take to end by itself after the reader of the output is gone.
const END_WAIT: TimeSpan = TimeSpan::from_millis(500);
const QUESTION: &str = "\nc: cancel the task   d: detach, it runs on   nothing: go on   (Ctrl-C again: detach)\nType one of them and Enter: ";

/// What to print at the end.
#[derive(Debug, Clone, Copy, Default)]
pub struct FollowOptions {
    /// The output, grouped by machines with the same output.
    pub fold: bool,
    /// The task as JSON.
    pub json: bool,
    /// Let the task go on where nobody is left to see its output: after INT, TERM or HUP without a terminal, and when
    /// the reader of the output is gone.
    pub detach_on_exit: bool,
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
        printer: Printer::new(task, is_several(task)),
        progress: Progress::of(task, " (Ctrl-C to cancel or detach)"),
        watch: TaskWatch::of(client, task),
        control,
        has_undo: task.detail.detail.undo.is_some(),
        is_interrupted: false,
        is_live: !options.fold && !options.json,
        detach_on_exit: options.detach_on_exit,
    };
    let mut stream = EventStream::open(client, &task.id, None, true);
    let ended = loop {
        match following.watch(&mut stream) {
            Err(Failure::NoReader) => {
                following.lost_reader()?;
                return Err(Failure::NoReader);
            }
            watched => {
                if let Some(code) = watched? {
                    return Ok(code);
                }
            }
        }
        let task = over_failovers(client, None, || client.task(&task.id, FINISH_WAIT))?;
        if task.state.is_terminal() {
            break task;
        }
        stream.reopen();
    };
    following.printer.finish()?;
    if !following.is_live {
        MissingOutput::of(&ended).report();
    }
    let (stdout, stderr) = (
        OutputStyle::of(&io::stdout()),
        OutputStyle::of(&io::stderr()),
    );
    if options.json {
        print_json(&ended)?;
    } else if options.fold {
        fold::print(&ended, &mut io::stdout().lock(), &stdout)?;
    }
    let code = match outcome::exit_code(&ended) {
        NOT_UNDONE => NOT_UNDONE,
        _ if following.is_interrupted => CANCELED,
        code => code,
    };
    if code != 0 || ended.result.len() > 1 || stderr.is_terminal {
        print_message(&outcome::summary(&ended, &stderr));
    }
    undos::report(&ended);
    Ok(code)
}

/// Whether lines need labels. The server decides in the same way.
pub fn is_several(task: &Task) -> bool {
    let may_grow = match task.state.is_unbegun() {
        true => task.mode == Mode::All,
        false => task.late_join && !task.state.is_terminal(),
    };
    task.result.len() > 1 || may_grow
}

/// Prints a message to stderr.
pub fn print_message(text: &str) {
    // Ignore a closed stderr.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// From now on Ctrl-C, TERM and HUP do not end the process; [`follow_to_end`] handles them.
pub fn controls() -> Result<Controls, Failure> {
    let mut handled = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        handled.push(SIGHUP);
    }
    let mut signals = Signals::new(handled)?;
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

/// Whether this process was started with a signal ignored, as by `nohup`. Without /proc it counts as not ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

struct Following<'a> {
    client: &'a Client,
    id: &'a str,
    printer: Printer,
    progress: Progress,
    watch: TaskWatch,
    control: Controls,
    has_undo: bool,
    /// A signal has canceled the task, and its undo is waited for.
    is_interrupted: bool,
    /// Output is printed as it arrives.
    is_live: bool,
    detach_on_exit: bool,
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
                if let Some(task) = self.watch.newest() {
                    self.progress.look_at(&task);
                }
                self.progress.draw();
            }
        }
    }

    fn show(&mut self, event: &TaskEvent) -> Result<(), Failure> {
        self.progress.note(event);
        self.watch.note(event);
        if self.is_live {
            if !matches!(event.kind, EventKind::State { .. }) {
                self.progress.erase();
            }
            self.printer.print(event)?;
        }
        Ok(())
    }

    /// Handles Ctrl-C: asks the user what to do if there is a terminal, and cancels otherwise.
    fn interrupted(&mut self, signal: i32) -> Result<Option<u8>, Failure> {
        self.progress.erase();
        let person = Prompt::open().filter(|_| signal == SIGINT);
        let Some(mut person) = person else {
            if self.detach_on_exit {
                self.detached();
                return Ok(Some(CANCELED));
            }
            if self.is_interrupted {
                let id = self.id;
                print_message(&format!(
                    "sidebike: its undo goes on; sidebike wait {id} says whether it succeeds\n"
                ));
                return Ok(Some(CANCELED));
            }
            let had_ended = self.cancel()?;
            if self.has_undo && !had_ended {
                self.is_interrupted = true;
                print_message(
                    "sidebike: waiting for its undo; a further signal ends this command, not the undo\n",
                );
                return Ok(None);
            }
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
                print_message("\n");
                self.detached();
                Ok(Some(CANCELED))
            }
        }
    }

    fn detached(&self) {
        let id = self.id;
        print_message(&format!(
            "detached; it runs on: sidebike logs -f {id}, sidebike cancel {id}\n"
        ));
    }

    /// Handles a reader of our output that is gone: the commands would go on without anybody who sees it.
    fn lost_reader(&mut self) -> Result<(), Failure> {
        self.progress.erase();
        // A command that has written all its output needs no cancel, and no message.
        if self.client.task(self.id, END_WAIT)?.state.is_terminal() {
            return Ok(());
        }
        print_message("sidebike: the reader of the output is gone\n");
        match self.detach_on_exit {
            true => self.detached(),
            false => {
                self.cancel()?;
                if self.has_undo {
                    let id = self.id;
                    print_message(&format!(
                        "sidebike: its undo runs; sidebike wait {id} says whether it succeeds\n"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Cancels the task and prints the result. Returns whether the task had ended before.
    fn cancel(&self) -> Result<bool, Failure> {
        let before = self.client.task(self.id, TimeSpan::default())?;
        let after = self.client.cancel(self.id, None, false)?;
        print_message(&format!(
            "sidebike: {}\n",
            cancel::done(&before, &after, None)
        ));
        Ok(before.state.is_terminal())
    }
}
