//! `sidebike drain`.

use super::command::{CommandResult, ConnectionArgs, print_json};
use super::selection::short_instance;
use super::terminal::sanitize;
use crate::client::Errand;
use crate::wire::crew::Wanted;
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  sidebike drain web-1             its agent takes no more commands; what runs goes on
  sidebike drain --lift web-1      it takes commands again
  sidebike drain --shutdown web-1  it ends as after TERM: what still runs after its --grace is ended

A label means all agents with it that are there now. What is queued for a drained one waits, and is
lost when it is shut down.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The agents: a label (no pattern), or one instance
    #[arg(value_name = "LABEL|INSTANCE")]
    name: String,
    /// Have them take commands again
    #[arg(long, conflicts_with = "shutdown")]
    lift: bool,
    /// Have them end
    #[arg(long)]
    shutdown: bool,
    /// Print the machines as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Drains agents, lifts that, or shuts them down.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let (errand, done, asked) = match (args.lift, args.shutdown) {
        (true, _) => (
            Errand::Undrain,
            "takes commands",
            "is told to take commands",
        ),
        (_, true) => (Errand::Shutdown, "ends", "is told to end"),
        _ => (Errand::Drain, "drains", "is told to drain"),
    };
    let machines = client.errand(&args.name, errand)?;
    if args.json {
        print_json(&machines)?;
        return Ok(0);
    }
    let mut out = io::stdout().lock();
    for machine in &machines {
        let (label, instance) = (sanitize(&machine.label), short_instance(&machine.instance));
        let word = match machine.wanted {
            None => done,
            Some(Wanted::Drain | Wanted::Undrain | Wanted::Shutdown) => asked,
        };
        writeln!(out, "{label} ({instance}) {word}")?;
    }
    Ok(0)
}
