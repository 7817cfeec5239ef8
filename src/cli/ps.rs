//! `sidebike ps`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::follow::print_message;
use super::messages::no_such_label;
use super::new_task::task_tag;
use super::outcome::{age, short_duration, task_state_colour};
use super::table::{Cell, Table};
use super::terminal::Colour;
use super::{rollout, undos, watch};
use crate::client::TaskFilter;
use crate::rules::one_of;
use crate::wire::rollout::RolloutPhase;
use crate::wire::task::{Task, TaskState};
use std::io;

/// The fewest characters of an id that are shown: its time, in which most ids differ.
const MIN_ID_CHARS: usize = 12;

const EXAMPLES: &str = "\
Examples:
  sidebike ps                      the newest tasks
  sidebike ps -w                   the same, kept up to date
  sidebike ps --state failed -n 5  the last five that failed
  sidebike ps --tag team=pay       those with this tag
  sidebike ps --unclean            those of which something may be left on a machine
  sidebike ps --json | jq -r '.[].id'

The ids are shortened; every command accepts them like this.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// At most this many tasks
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only those in this state: waiting, running, succeeded, partial, failed, canceled, expired, skipped
    #[arg(long, value_parser = state)]
    state: Option<TaskState>,
    /// Only those whose name begins with this
    #[arg(long, value_name = "PREFIX")]
    name: Option<String>,
    /// Only those on a machine with exactly this label (no pattern)
    #[arg(short, long, value_name = "LABEL")]
    machine: Option<String>,
    /// Only those of which something may be left on a machine: an undo failed or is owed
    #[arg(long)]
    unclean: bool,
    /// Only those of this group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Only those with this tag; can be given several times
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = task_tag)]
    tags: Vec<(String, String)>,
    /// Keep it up to date, until Ctrl-C
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,
    /// Print the tasks as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Reads the state of a task.
pub fn state(text: &str) -> Result<TaskState, String> {
    one_of(&TaskState::ALL, TaskState::word, text)
}

/// Lists tasks.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let filter = TaskFilter {
        prefix: args.name,
        state: args.state,
        label: args.machine,
        is_unclean: args.unclean,
        group: args.group,
        tags: args.tags,
        limit: args.limit as usize,
    };
    let found = || {
        let tasks = client.tasks(&filter)?;
        if let Some(label) = filter.label.as_deref()
            && tasks.is_empty()
            && !args.watch
        {
            print_message(&no_such_label(label, "such task is on a machine of"));
        }
        Ok::<_, Failure>(tasks)
    };
    if args.json {
        print_json(&found()?)?;
        return Ok(0);
    }
    watch::show(args.watch, |out| {
        let table = table_of(&found()?);
        table.print(out, &io::stdout()).map_err(Failure::from)
    })?;
    Ok(0)
}

/// A table of tasks.
pub fn table_of(tasks: &[Task]) -> Table {
    let mut table = Table::new(&["ID", "STATE", "MACHINES", "AGE", "NAME", "COMMAND"]);
    let length = length_of_ids(tasks);
    let short_id = |id: &str| id.get(..length).unwrap_or(id).to_owned();
    for task in tasks {
        let detail = &task.detail.detail;
        let argv = || detail.argv.as_ref().map(|argv| argv.join(" "));
        let command = detail.command.clone().or_else(argv);
        let command = command
            .or_else(|| detail.script.clone())
            .unwrap_or_default();
        let name = match &task.rerun_of {
            Some(of) => format!("{} (rerun of {})", task.name, short_id(of)),
            None => task.name.clone(),
        };
        table.add(vec![
            Cell::of(short_id(&task.id)),
            Cell::painted(state_of(task), colour_of(task)),
            Cell::of(machines_of(task)),
            Cell::of(
                age(&task.created_at)
                    .map(short_duration)
                    .unwrap_or_default(),
            ),
            Cell::of(name),
            Cell::of(command.trim_end().replace('\n', " ")),
        ]);
    }
    table
}

/// `running, paused`; `failed, 2 NOT UNDONE`.
fn state_of(task: &Task) -> String {
    let mut text = task.state.word().to_owned();
    if let Some(phase @ (RolloutPhase::Paused | RolloutPhase::Stopped)) =
        rollout::state_of(task).map(|state| state.state)
    {
        text.push_str(&format!(", {}", phase.word()));
    }
    let undos = task.undos.unwrap_or_default();
    for (count, words) in [
        (undos.running, "being undone"),
        (undos.failed + undos.owed, "NOT UNDONE"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {words}"));
        }
    }
    text
}

fn colour_of(task: &Task) -> Option<Colour> {
    match undos::is_unclean(task) {
        true => Some(Colour::Red),
        false => task_state_colour(task.state),
    }
}

/// `11/100, 1 not ok, 89 held, step 2/3`.
fn machines_of(task: &Task) -> String {
    let counts = task.counts;
    let all = counts.total();
    let done = all - counts.unfinished();
    let mut text = format!("{done}/{all}");
    for (count, word) in [
        (done - counts.succeeded - counts.skipped, "not ok"),
        (counts.skipped, "skipped"),
        (counts.held, "held"),
        (task.spared, "spared"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    let state = rollout::state_of(task).filter(|state| state.of > 1);
    if let Some(state) = state.filter(|_| !task.state.is_terminal()) {
        text.push_str(&format!(", step {}/{}", state.step, state.of));
    }
    text
}

/// How many characters of the ids have to be shown to tell all of them apart.
fn length_of_ids(tasks: &[Task]) -> usize {
    let mut ids: Vec<&str> = tasks.iter().map(|task| &*task.id).collect();
    ids.sort_unstable();
    let alike = |pair: &[&str]| {
        let both = pair[0].chars().zip(pair[1].chars());
        both.take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len_utf8())
            .sum::<usize>()
    };
    let longest = ids.windows(2).map(alike).max().unwrap_or(0);
    (longest + 1).max(MIN_ID_CHARS)
}
