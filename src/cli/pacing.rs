//! `sidebike pause`, `resume` and `stop`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::rollout::{is_paused, standing, state_of, waits_for};
use super::task_reference::TaskArg;
use super::terminal::sanitize;
use crate::wire::task::Task;
use std::io::{self, Write};

const PAUSE: &str = "\
Examples:
  sidebike pause 018f6a2b
  sidebike resume 018f6a2b

What waits is not handed out, and its ttl stands still; what runs goes on. Between two steps the
pause becomes one that ends with resume only.";

const RESUME: &str = "\
Examples:
  sidebike run --detach --steps 1,100% --pause approve -- ./deploy.sh
  sidebike resume 018f6a2b    the first step was fine

It also ends the pause between two steps at once.";

const STOP: &str = "\
Examples:
  sidebike stop 018f6a2b             what runs ends by itself, or as the task says
  sidebike stop --running 018f6a2b   what runs is canceled, too

What has not been started is skipped. sidebike rerun runs it, and what has failed, with the same
plan.";

/// The arguments of `pause`.
#[derive(Debug, clap::Args)]
#[command(after_help = PAUSE)]
pub struct Pause {
    #[command(flatten)]
    call: CallArgs,
}

/// The arguments of `resume`.
#[derive(Debug, clap::Args)]
#[command(after_help = RESUME)]
pub struct Resume {
    #[command(flatten)]
    call: CallArgs,
}

/// The arguments of `stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = STOP)]
pub struct Stop {
    /// Cancel what runs, too
    #[arg(long, conflicts_with = "leave_running")]
    running: bool,
    /// Let what runs end by itself, even if the task says --stop-running
    #[arg(long)]
    leave_running: bool,
    #[command(flatten)]
    call: CallArgs,
}

/// The arguments that all of them have.
#[derive(Debug, clap::Args)]
struct CallArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Pauses a task.
pub fn pause(args: Pause) -> CommandResult {
    let client = args.call.server.client()?;
    let task = client.pause(&args.call.task.find(&client)?.id)?;
    let go_on = format!("go on: sidebike resume {}", sanitize(&task.id));
    args.call.done(&task, &format!("paused; {go_on}"))
}

/// Resumes a task.
pub fn resume(args: Resume) -> CommandResult {
    let client = args.call.server.client()?;
    let before = args.call.task.find(&client)?;
    let task = client.resume(&before.id)?;
    let word = match (is_paused(&before), waits_for(&task)) {
        (true, None) => "resumed".to_owned(),
        (true, Some(next)) => format!("resumed; it is between two steps and {next}"),
        (false, _) => "was not paused".into(),
    };
    args.call.done(&task, &word)
}

/// Stops a task.
pub fn stop(args: Stop) -> CommandResult {
    let running = match (args.running, args.leave_running) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    };
    let client = args.call.server.client()?;
    let before = args.call.task.find(&client)?;
    let task = client.stop(&before.id, running)?;
    if before.state.is_terminal() {
        return args
            .call
            .done(&task, &format!("had ended: {}", task.state.word()));
    }
    let detail = &task.detail.detail;
    let is_canceled = running.unwrap_or_else(|| detail.stops_running(task.rollout.as_ref()));
    let word = match (task.counts.under_way(), is_canceled) {
        (0, _) => "stopped",
        (_, true) => "stopped; what runs is being canceled",
        (_, false) => "stopped; what runs ends by itself",
    };
    args.call.done(&task, word)
}

impl CallArgs {
    /// Prints what was done, and how far the task has come.
    fn done(&self, task: &Task, what: &str) -> Result<u8, Failure> {
        if self.json {
            print_json(task)?;
            return Ok(0);
        }
        let standing = state_of(task).map(|state| format!(" ({})", standing(task, state)));
        writeln!(
            io::stdout(),
            "task {}: {what}{}",
            sanitize(&task.id),
            standing.unwrap_or_default()
        )?;
        Ok(0)
    }
}
