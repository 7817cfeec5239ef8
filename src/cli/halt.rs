//! `sidebike halt`.

use super::command::{CommandResult, ConnectionArgs, print_json};
use super::terminal::sanitize;
use crate::wire::halt::{Halt, PostedHalt};
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  sidebike halt 'the shop is down'   cancel every task with an undo, refuse new ones
  sidebike halt --all 'a fire'       the same for every task at all
  sidebike halt --status             whether there is a halt, and why
  sidebike halt --lift               tasks are accepted again

It does not ask. sidebike ps --state running shows what has not ended yet, sidebike info counts
what is not undone. A further halt replaces the reason; after --all it stays one of every task.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "sidebike halt [OPTIONS] REASON\n       sidebike halt [OPTIONS] --lift\n       sidebike halt [OPTIONS] --status"
)]
pub struct Args {
    /// Why; everyone whose task is refused reads it
    #[arg(required_unless_present_any = ["lift", "status"], conflicts_with_all = ["lift", "status"])]
    reason: Option<String>,
    /// Cancel and refuse tasks without an undo, too
    #[arg(long, conflicts_with_all = ["lift", "status"])]
    all: bool,
    /// Accept tasks again
    #[arg(long, conflicts_with = "status")]
    lift: bool,
    /// Show whether there is a halt
    #[arg(long)]
    status: bool,
    /// Print the halt as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Halts, lifts the halt, or shows it.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    if let Some(reason) = args.reason {
        let halted = client.halt(&PostedHalt { reason }, args.all)?;
        if args.json {
            print_json(&halted)?;
            return Ok(0);
        }
        let canceled = match halted.canceled {
            0 => "no task had to be canceled".into(),
            1 => "1 task is being canceled".into(),
            n => format!("{n} tasks are being canceled"),
        };
        writeln!(
            io::stdout(),
            "halted{}: {}; {canceled}; lift it with sidebike halt --lift",
            whole(&halted.halt),
            sanitize(&halted.halt.reason)
        )?;
        return Ok(0);
    }
    let halt = client.halted()?;
    if args.lift {
        client.lift_halt()?;
    }
    if args.json {
        print_json(&halt)?;
        return Ok(0);
    }
    let text = match (&halt, args.lift) {
        (None, _) => "there is no halt".into(),
        (Some(halt), false) => in_words(halt),
        (Some(halt), true) => format!("lifted: {}", sanitize(&halt.reason)),
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(0)
}

/// `halted since 2026-11-29T12:00:00Z: the shop is down`.
pub fn in_words(halt: &Halt) -> String {
    let (since, reason) = (sanitize(&halt.since), sanitize(&halt.reason));
    format!("halted{} since {since}: {reason}", whole(halt))
}

fn whole(halt: &Halt) -> &'static str {
    match halt.all {
        true => " (every task)",
        false => "",
    }
}
