//! `sidebike cancel`.

use super::command::{CommandResult, ConnectionArgs, print_json};
use super::outcome::{is_on, label_list};
use super::sweep::{self, FILTERS, FilterArgs};
use super::task_reference::find;
use super::terminal::sanitize;
use crate::wire::task::{Execution, ExecutionState, Task};
use std::collections::HashSet;
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  sidebike cancel 018f6a2b             on all machines
  sidebike cancel 018f6a2b -m web-1    on one, by its label or its instance
  sidebike cancel --tag team=pay       all with this tag; shows them, and asks above 20
  sidebike cancel --state waiting --not-started

Waiting commands never start; running ones get TERM, and KILL after their grace.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "sidebike cancel [OPTIONS] ID\n       sidebike cancel [OPTIONS] --state STATE | --name PREFIX | --group NAME | --tag NAME=VALUE | -m LABEL"
)]
pub struct Args {
    /// Id or name of the task: a name means the newest task of that name; the first 6 characters of an id
    /// are enough
    #[arg(
        value_name = "ID",
        value_parser = clap::builder::NonEmptyStringValueParser::new(),
        required_unless_present_any = [&FILTERS[..], &["machine"]].concat(),
        conflicts_with_all = FILTERS
    )]
    id: Option<String>,
    /// Only on the machines with exactly this label, or the one with this instance
    #[arg(short, long, value_name = "LABEL")]
    machine: Option<String>,
    /// Also those who wait for its end, and those who wait for theirs
    #[arg(long, conflicts_with = "machine", requires = "id")]
    dependents: bool,
    /// Only what has not started: this empties a queue
    #[arg(long, conflicts_with = "id")]
    not_started: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// Print the task as JSON; of many tasks what was done
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Cancels a task.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let machine = args.machine.as_deref();
    let Some(id) = &args.id else {
        let mut parameters = args.filter.parameters(machine);
        if args.not_started {
            parameters.push(("notStarted", "1".into()));
        }
        let question = args.filter.question();
        return sweep::run(&client, "cancel", &parameters, question, args.json);
    };
    let before = find(&client, id)?;
    let task = client.cancel(&before.id, machine, args.dependents)?;
    if args.json {
        print_json(&task)?;
        return Ok(0);
    }
    writeln!(io::stdout(), "{}", done(&before, &task, machine))?;
    Ok(0)
}

/// What a cancel has done to a task, or to its executions on one machine, and how many others still run.
pub fn done(before: &Task, after: &Task, machine: Option<&str>) -> String {
    let id = sanitize(&after.id);
    let word = after.state.word();
    if before.state.is_terminal() {
        return format!("task {id} had ended: {word}");
    }
    let is_meant = |e: &&Execution| machine.is_none_or(|machine| is_on(e, machine));
    let (meant, others): (Vec<_>, Vec<_>) = after.result.iter().partition(is_meant);
    let ended_before = before.result.iter().filter(|e| e.state.is_terminal());
    let ended_before: HashSet<&str> = ended_before.map(|e| &*e.execution).collect();
    let had_ended = |e: &&Execution| {
        let is_canceled = e.state == ExecutionState::Canceled;
        ended_before.contains(&*e.execution) || (e.state.is_terminal() && !is_canceled)
    };
    let (ended, canceled): (Vec<_>, Vec<_>) = meant.into_iter().partition(had_ended);
    let on = |executions: &[&Execution]| label_list(executions.iter().map(|e| &*e.machine_label));
    let mut parts = Vec::new();
    if !canceled.is_empty() {
        let is_done = canceled.iter().all(|e| e.state.is_terminal());
        let word = if is_done {
            "canceled"
        } else {
            "being canceled"
        };
        let (n, all) = (canceled.len(), after.result.len());
        let names = on(&canceled);
        parts.push(format!("{word} on {n} of {all} machines: {names}"));
    }
    if !ended.is_empty() {
        parts.push(format!("had ended on {}", on(&ended)));
    }
    let go_on = others.iter().filter(|e| !e.state.is_terminal()).count();
    if go_on > 0 {
        parts.push(format!("others that go on: {go_on}"));
    }
    if parts.is_empty() {
        parts.push(word.into());
    }
    format!("task {id}: {}", parts.join("; "))
}
