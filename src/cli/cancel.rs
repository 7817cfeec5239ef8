//! `sidebike cancel`.

use super::outcome::counted;
use super::{Ended, ServerArgs, print_json};
use crate::wire::span::Span;
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  sidebike cancel 018f6a2b             on all machines
  sidebike cancel 018f6a2b -m web-1    on one, by its label or its instance

What waits never starts; what runs gets TERM, and KILL after its grace.";

/// What was typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The task: its id, the beginning of its id, or its name (then the newest)
    #[arg(value_name = "ID")]
    id: String,
    /// Only on the machines with this label, or the one with this instance
    #[arg(short, long, value_name = "LABEL")]
    machine: Option<String>,
    /// Print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Cancels a task.
pub fn run(args: Args) -> Ended {
    let client = args.server.client()?;
    let task = client.task(&args.id, Span::default())?;
    let had_ended = task.state.is_terminal();
    let task = client.cancel(&task.id, args.machine.as_deref())?;
    if args.json {
        print_json(&task)?;
        return Ok(0);
    }
    let said = match (had_ended, task.counts.unfinished()) {
        (true, _) => format!("task {} had ended: {}", task.id, task.state.word()),
        (false, 0) => format!("task {} is {}", task.id, task.state.word()),
        (false, _) => format!(
            "task {} is being canceled: {}",
            task.id,
            counted(task.counts)
        ),
    };
    writeln!(io::stdout(), "{said}")?;
    Ok(0)
}
