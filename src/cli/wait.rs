//! `sidebike wait`.

use super::command::{CommandResult, ConnectionArgs, duration, over_failovers, print_json};
use super::follow::print_message;
use super::outcome::{self, TIMED_OUT};
use super::printer::MissingOutput;
use super::progress::Progress;
use super::rollout::POLL_INTERVAL;
use super::task_reference::TaskArg;
use super::terminal::OutputStyle;
use super::undos;
use crate::wire::duration::TimeSpan;
use std::io;
use std::time::{Duration, Instant};

/// How long one request waits: many proxies close longer ones.
const MAX_WAIT: TimeSpan = TimeSpan::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  id=$(sidebike run --detach -- make)
  sidebike wait $id && echo built
  sidebike wait --timeout 10m $id

The exit codes are those of run; 124 also when the task has not ended after --timeout.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    task: TaskArg,
    /// Wait no longer than this, such as 10m [default: as long as it takes]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Waits for the end of a task.
pub fn run(args: Args) -> CommandResult {
    let timeout = duration("--timeout", &args.timeout)?.map(Duration::from);
    let client = args.server.client()?;
    let started = Instant::now();
    // Use the id from now on: the name may come to mean a newer task.
    let mut task = args.task.find(&client)?;
    let mut progress = Progress::of(&task, "");
    while !task.state.is_terminal() {
        progress.count(&task);
        progress.look_at(&task);
        progress.draw();
        let left = timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
        if left == Some(Duration::ZERO) {
            progress.erase();
            print_message(&format!("sidebike: task {} has not ended\n", task.id));
            return Ok(TIMED_OUT);
        }
        let longest = match progress.is_wanted() || task.rollout_state.is_some() {
            true => POLL_INTERVAL,
            false => MAX_WAIT,
        };
        let wait = left.map_or(longest, |left| {
            TimeSpan::from_millis(left.as_millis() as u64)
        });
        let answered = over_failovers(&client, left, || client.task(&task.id, wait.min(longest)));
        if answered.is_err() {
            progress.erase();
        }
        task = answered?;
    }
    progress.erase();
    if args.json {
        print_json(&task)?;
    } else {
        print_message(&outcome::summary(&task, &OutputStyle::of(&io::stderr())));
    }
    MissingOutput::of(&task).report();
    undos::report(&task);
    Ok(outcome::exit_code(&task))
}
