//! `sidebike rerun`.

use super::follow::{self, How, say};
use super::{Ended, ServerArgs};
use crate::wire::span::Span;

const EXAMPLES: &str = "\
Examples:
  sidebike rerun 018f6a2b         on the machines where it did not succeed
  sidebike rerun --all my-task    on all of its machines

It follows the new task as run does, with the same exit codes.";

/// What was typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The task: its id, the beginning of its id, or its name (then the newest)
    #[arg(value_name = "ID")]
    id: String,
    /// On all of its machines
    #[arg(long)]
    all: bool,
    /// At the end, show machines with the same output together
    #[arg(long, conflicts_with = "json")]
    fold: bool,
    /// At the end, print the new task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs a task again.
pub fn run(args: Args) -> Ended {
    let client = args.server.client()?;
    let old = client.task(&args.id, Span::default())?;
    let task = client.rerun(&old.id, args.all)?;
    let count = task.result.len();
    say(&format!(
        "task {}, again on {count} of {} machines\n",
        task.id,
        old.result.len()
    ));
    let how = How {
        fold: args.fold,
        json: args.json,
    };
    follow::to_the_end(&client, &task, how)
}
