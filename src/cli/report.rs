//! `sidebike report`.

use super::command::{CommandResult, ConnectionArgs, print_json};
use super::task_reference::TaskArg;
use super::terminal::{OutputStyle, sanitize};
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  sidebike report 018f6a2b                 as text
  sidebike report --md 018f6a2b > run.md   as Markdown, for a ticket
  sidebike report --json 018f6a2b | jq -r .verdict

The verdict is the first that holds: dirty (something may be left on a machine), unfinished,
stopped (failed, if a probe kept it from beginning), notRecovered (a probe did not pass again),
passed or failed. It is unfinished, too, while a probe has yet to pass again.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    task: TaskArg,
    /// Print it as Markdown
    #[arg(long, conflicts_with = "json")]
    md: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Prints the report of a task.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let id = args.task.find(&client)?.id;
    if args.json {
        print_json(&client.report(&id)?)?;
        return Ok(0);
    }
    let text = client.report_text(&id, if args.md { "md" } else { "text" })?;
    let mut out = io::stdout().lock();
    let is_terminal = OutputStyle::of(&io::stdout()).is_terminal;
    for line in text.lines() {
        match is_terminal {
            true => writeln!(out, "{}", sanitize(line))?,
            false => writeln!(out, "{line}")?,
        }
    }
    Ok(out.flush().map(|()| 0)?)
}
