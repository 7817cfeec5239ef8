//! `sidebike group`.

use super::command::{
    CommandResult, ConnectionArgs, Failure, duration, over_failovers, print_json,
};
use super::follow::print_message;
use super::outcome::{self, TIMED_OUT, age, short_duration, task_state_colour};
use super::sweep::{self, QuestionArgs};
use super::table::{Cell, Table};
use super::terminal::sanitize;
use crate::client::Client;
use crate::wire::counted;
use crate::wire::duration::TimeSpan;
use crate::wire::group::Group;
use crate::wire::task::TaskState;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How long one request waits: many proxies close longer ones.
const MAX_WAIT: TimeSpan = TimeSpan::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  sidebike run --detach --group nightly -m '^db-' -- ./backup.sh
  sidebike group nightly                  how its tasks go
  sidebike group nightly --wait           until all have ended
  sidebike group nightly --cancel         all of them
  sidebike ps --group nightly             its tasks as a list, newest first

A group is there as long as a task that names it is kept.
The exit code is 0 if it was only shown. With --wait it is 0 if every task succeeded, else the worst
exit code of all commands: 128+N ended by signal N, 124 time-out (also: not ended after --timeout),
130 canceled, 125 without an exit code.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The group
    #[arg(value_name = "NAME")]
    name: String,
    /// Wait until all of its tasks have ended
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this, such as 10m [default: as long as it takes]
    #[arg(long, value_name = "DURATION", requires = "wait")]
    timeout: Option<String>,
    /// Cancel all of its tasks: first what has not started, so that nothing of it starts by the cancel
    #[arg(long, conflicts_with_all = ["wait", "limit"])]
    cancel: bool,
    #[command(flatten)]
    question: QuestionArgs,
    /// Show at most this many of its tasks
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Print the group as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Shows a group.
pub fn run(args: Args) -> CommandResult {
    let timeout = duration("--timeout", &args.timeout)?;
    let client = args.server.client()?;
    if args.cancel {
        let path = client.group_path(&args.name, "cancel");
        return sweep::run(&client, &path, &[], &args.question, args.json);
    }
    let group = match args.wait {
        true => wait(&client, &args, timeout.map(Duration::from))?,
        false => client.group(&args.name, args.limit, TimeSpan::default())?,
    };
    match args.json {
        true => print_json(&group)?,
        false => show(&group)?,
    }
    if !args.wait {
        return Ok(0);
    }
    if !group.state.is_terminal() {
        print_message(&format!(
            "sidebike: group {} has not ended\n",
            sanitize(&group.name)
        ));
        return Ok(TIMED_OUT);
    }
    Ok(exit_code(&group))
}

fn wait(client: &Client, args: &Args, timeout: Option<Duration>) -> Result<Group, Failure> {
    let started = Instant::now();
    loop {
        let left = timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
        let wait = left.map_or(MAX_WAIT, |left| {
            TimeSpan::from_millis(left.as_millis() as u64)
        });
        let look = || client.group(&args.name, args.limit, wait.min(MAX_WAIT));
        let group = over_failovers(client, left, look)?;
        if group.state.is_terminal() || wait == TimeSpan::default() {
            return Ok(group);
        }
    }
}

fn exit_code(group: &Group) -> u8 {
    let worst = group.worst_exit_code.unwrap_or(0);
    let worst = u8::try_from(worst).unwrap_or(u8::MAX);
    match group.state {
        TaskState::Succeeded => 0,
        _ if worst > 0 => worst,
        TaskState::Canceled => outcome::CANCELED,
        _ => outcome::UNKNOWN,
    }
}

fn show(group: &Group) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let number: u32 = group.tasks.values().sum();
    let states = TaskState::ALL.map(TaskState::word);
    let states = states.map(|word| (group.tasks.get(word).copied().unwrap_or(0), word));
    let code = match group.worst_exit_code {
        Some(code) => format!(", worst exit code {code}"),
        None => String::new(),
    };
    writeln!(
        out,
        "group {}: {}{code}\ntasks       {number}: {}\nexecutions  {}: {}\n",
        sanitize(&group.name),
        group.state.word(),
        counted(states),
        group.executions.total(),
        group.executions.in_words()
    )?;
    let mut table = Table::new(&["ID", "STATE", "MACHINES", "AGE", "NAME"]);
    for member in &group.members {
        let all = member.counts.total();
        let done = all - member.counts.unfinished();
        table.add(vec![
            Cell::of(&member.id),
            Cell::painted(member.state.word(), task_state_colour(member.state)),
            Cell::of(format!("{done}/{all}")),
            Cell::of({ age(&member.created_at) }.map_or_else(String::new, short_duration)),
            Cell::of(&member.name),
        ]);
    }
    table.print(&mut out, &io::stdout())?;
    let others = number.saturating_sub(group.members.len() as u32);
    if others > 0 {
        writeln!(out, "… and {others} more")?;
    }
    Ok(())
}
