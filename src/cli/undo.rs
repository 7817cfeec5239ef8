//! `sidebike undo` and `sidebike forgive`.

use super::command::{CommandResult, ConnectionArgs, Failure, duration, print_json};
use super::follow::print_message;
use super::outcome::{NOT_UNDONE, TIMED_OUT, is_on, machine_name, name_list};
use super::task_reference::TaskArg;
use super::terminal::{OutputStyle, Prompt, sanitize};
use super::undos::{self, tries};
use crate::client::Client;
use crate::wire::duration::TimeSpan;
use crate::wire::task::{Execution, Task};
use crate::wire::undo::{AnsweredUndo, Undo as PostedUndo, UndoState};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked whether an undo has ended: at first, and at most. The answer has the task's output.
const LOOKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// After this time it is said what has not begun: its machine is busy with nothing else, so it is gone.
const UNUSUAL: Duration = Duration::from_secs(3);

const UNDO: &str = "\
Examples:
  sidebike undo 018f6a2b             where its undo failed or is owed
  sidebike undo 018f6a2b -m web-1    on one machine, also if it is done there
  sidebike undo --all 018f6a2b       also where it is done
  sidebike undo --detach 018f6a2b    do not wait for it

A machine that is not there runs it when it is back; after --timeout this command waits no longer.
The exit code is 0 if all of it is undone, 123 if not, 124 if it still runs after --timeout,
255 if sidebike itself failed.";

const FORGIVE: &str = "\
Examples:
  sidebike forgive 018f6a2b             everything that the task has not undone
  sidebike forgive 018f6a2b -m web-1    on one machine, by its label or its instance

Nothing is run. Look at the machine first: what was forgiven is not shown as a debt any more, and
its lock is free. The audit says who did it.";

/// The arguments of `undo`.
#[derive(Debug, clap::Args)]
#[command(after_help = UNDO)]
pub struct Undo {
    #[command(flatten)]
    task: TaskArg,
    /// Only on the machines with exactly this label, or the one with this instance; also if it is done there
    #[arg(short, long, value_name = "LABEL")]
    machine: Option<String>,
    /// Also where it is done
    #[arg(long, conflicts_with = "machine")]
    all: bool,
    /// Wait no longer than this, such as 1m [default: as long as it may be tried]
    #[arg(long, value_name = "DURATION", conflicts_with = "detach")]
    timeout: Option<String>,
    /// Do not wait for its end
    #[arg(long)]
    detach: bool,
    /// Print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// The arguments of `forgive`.
#[derive(Debug, clap::Args)]
#[command(after_help = FORGIVE)]
pub struct Forgive {
    #[command(flatten)]
    task: TaskArg,
    /// Only on the machines with exactly this label, or the one with this instance
    #[arg(short, long, value_name = "LABEL")]
    machine: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Has undos run again.
pub fn undo(args: Undo) -> CommandResult {
    let timeout = duration("--timeout", &args.timeout)?;
    let client = args.server.client()?;
    let before = args.task.find(&client)?;
    let task = ask(&client, &before, &args)?;
    let mut asked = Asked::of(&before, |execution| match (&args.machine, args.all) {
        (Some(machine), _) => is_on(execution, machine),
        (None, true) => true,
        (None, false) => undos::debt(execution).is_some(),
    });
    if args.detach {
        let on = name_list(&task, task.result.iter().filter(|e| asked.has(e)));
        return print(&task, args.json, &format!("being undone on {on}"));
    }
    let timeout = timeout.unwrap_or_else(|| {
        let undo = before.detail.detail.undo.as_deref();
        undo.map_or_else(TimeSpan::default, PostedUndo::longest)
    });
    let task = asked.wait(&client, task, timeout.into(), args.json)?;
    if args.json {
        print_json(&task)?;
    }
    let mut debts = undos::not_undone(&task, &OutputStyle::of(&io::stderr()));
    debts.retain(|(execution, _)| asked.has(execution));
    let on = name_list(
        &task,
        task.result.iter().filter(|e| asked.is_waiting_for(e)),
    );
    if !on.is_empty() {
        print_message(&format!("sidebike: not ended within {timeout} on {on}\n"));
    }
    for (_, line) in &debts {
        print_message(&format!("{line}\n"));
    }
    Ok(match (debts.is_empty(), on.is_empty()) {
        (false, _) => NOT_UNDONE,
        (true, false) => TIMED_OUT,
        (true, true) => 0,
    })
}

/// Asks the server for what is meant, by default for each debt.
fn ask(client: &Client, before: &Task, args: &Undo) -> Result<Task, Failure> {
    if args.all || args.machine.is_some() {
        return Ok(client.undo(&before.id, args.machine.as_deref())?);
    }
    let unclean = before.result.iter().filter(|e| undos::debt(e).is_some());
    let unclean: BTreeSet<&str> = unclean.map(|e| &*e.instance).collect();
    if unclean.is_empty() {
        return Err(nothing_to_undo(before));
    }
    for instance in unclean {
        match client.undo(&before.id, Some(instance)) {
            // It runs again already.
            Err(error) if error.status() == Some(409) => {}
            asked => drop(asked?),
        }
    }
    Ok(client.task(&before.id, TimeSpan::default())?)
}

/// The undos that were asked for, by execution.
struct Asked<'a> {
    /// As they were before.
    before: BTreeMap<&'a str, &'a AnsweredUndo>,
    /// Those that have ended since.
    ended: BTreeSet<&'a str>,
}

impl<'a> Asked<'a> {
    /// Those of a task that run again: what has not ended, or never had to run, does not.
    fn of(before: &'a Task, is_meant: impl Fn(&Execution) -> bool) -> Asked<'a> {
        let meant = before.result.iter().filter(|e| is_meant(e));
        let undos = meant.filter_map(|e| Some((&*e.execution, e.attempt.undo.as_ref()?)));
        let run_again =
            undos.filter(|(_, undo)| undo.state.is_settled() && undo.state != UndoState::NotNeeded);
        Asked {
            before: run_again.collect(),
            ended: BTreeSet::new(),
        }
    }

    fn has(&self, execution: &Execution) -> bool {
        self.before.contains_key(&*execution.execution)
    }

    fn is_waiting_for(&self, execution: &Execution) -> bool {
        self.has(execution) && !self.ended.contains(&*execution.execution)
    }

    /// Waits until all of them have ended, and says how. Returns the task as it was then, or after `timeout`.
    fn wait(
        &mut self,
        client: &Client,
        mut task: Task,
        timeout: Duration,
        is_quiet: bool,
    ) -> Result<Task, Failure> {
        let (began, mut pause, mut has_told) = (Instant::now(), LOOKS.0, false);
        loop {
            self.note_ended(&task, is_quiet)?;
            let waited = began.elapsed();
            if self.ended.len() == self.before.len() || waited >= timeout {
                return Ok(task);
            }
            if waited >= UNUSUAL && !std::mem::replace(&mut has_told, true) {
                self.tell_waiting(&task);
            }
            thread::sleep(pause.min(timeout.saturating_sub(waited)));
            pause = (pause * 2).min(LOOKS.1);
            task = client.task(&task.id, TimeSpan::default())?;
        }
    }

    /// Notes which have ended, and says how; those that failed are told at the end.
    fn note_ended(&mut self, task: &Task, is_quiet: bool) -> Result<(), Failure> {
        let mut names = task.machine_names();
        for execution in &task.result {
            let before = self.before.get_key_value(&*execution.execution);
            let undo = execution.attempt.undo.as_ref();
            let Some(((key, before), undo)) = before.zip(undo) else {
                continue;
            };
            let is_new = undo.began_at != before.began_at || undo.state != before.state;
            let has_ended = is_new && undo.state.is_settled();
            if !has_ended || !self.ended.insert(key) || is_quiet || undo.state.is_dirty() {
                continue;
            }
            let name = machine_name(&mut names, execution);
            let (word, tries) = (undo.state.word(), tries(undo.tries));
            writeln!(io::stdout(), "{name}: {word} {tries}")?;
        }
        Ok(())
    }

    /// Says which have not begun.
    fn tell_waiting(&self, task: &Task) {
        let mut names = task.machine_names();
        let waiting = task.result.iter().filter(|e| self.is_waiting_for(e));
        for execution in waiting {
            let undo = execution.attempt.undo.as_ref();
            if undo.is_some_and(|undo| undo.state.is_settled()) {
                print_message(&format!(
                    "sidebike: {} waits for an agent with this label on host {}\n",
                    machine_name(&mut names, execution),
                    sanitize(&execution.host)
                ));
            }
        }
    }
}

fn nothing_to_undo(task: &Task) -> Failure {
    let id = sanitize(&task.id);
    Failure::Because(match &task.detail.detail.undo {
        None => format!("task {id} has no undo"),
        Some(_) => format!(
            "task {id}: no undo of it is failed or owed; --all runs them again where they are done"
        ),
    })
}

/// Settles debts by hand.
pub fn forgive(args: Forgive) -> CommandResult {
    let client = args.server.client()?;
    let before = args.task.find(&client)?;
    let machine = args.machine.as_deref();
    let is_meant = |e: &&Execution| {
        undos::debt(e).is_some() && machine.is_none_or(|machine| is_on(e, machine))
    };
    let on = name_list(&before, before.result.iter().filter(is_meant));
    // Where there is nothing to settle the server says why.
    if !on.is_empty() && !args.yes {
        let Some(mut person) = Prompt::open() else {
            return Err(Failure::Usage(format!(
                "what is not undone on {on} would not be shown any more: say --yes"
            )));
        };
        let style = OutputStyle::of(&io::stderr());
        let debts = undos::not_undone(&before, &style);
        for (_, line) in debts.iter().filter(|(e, _)| is_meant(e)) {
            print_message(&format!("{line}\n"));
        }
        let answer = person.ask(&format!(
            "Is its effect gone on {on}, or does it not matter? It is not shown any more. [y/N] "
        ));
        if !matches!(&*answer, "y" | "yes") {
            print_message("sidebike: nothing forgiven\n");
            return Ok(super::FAILED);
        }
    }
    let task = client.forgive(&before.id, machine)?;
    print(&task, args.json, &format!("forgiven on {on}"))
}

/// Prints a task as JSON, or what was done to it.
fn print(task: &Task, as_json: bool, what: &str) -> CommandResult {
    match as_json {
        true => print_json(task)?,
        false => writeln!(io::stdout(), "task {}: {what}", sanitize(&task.id))?,
    }
    Ok(0)
}
