//! `sidebike suspend`.

use super::command::{CommandResult, ConnectionArgs, duration, print_json};
use super::table::{Cell, Table};
use super::terminal::sanitize;
use crate::wire::crew::{PostedSuspension, Suspension};
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  sidebike suspend '^db-' --for 10m --reason 'disk swap'   hand out nothing new there
  sidebike suspend                                         the suspensions that are in force
  sidebike suspend --lift '^db-'                           end that one
  sidebike suspend --lift                                  end all of them

What runs goes on. What waits keeps its time: the --ttl stands still. Machines that appear later
and match are suspended, too.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The machines: a regular expression for their labels, as -m of sidebike run
    pattern: Option<String>,
    /// End by itself after this time
    #[arg(long = "for", value_name = "DURATION", requires = "pattern")]
    duration: Option<String>,
    /// Why; everyone whose command waits for it reads it
    #[arg(long, requires = "pattern")]
    reason: Option<String>,
    /// End the suspension of exactly this pattern, or all
    #[arg(long, conflicts_with_all = ["duration", "reason"])]
    lift: bool,
    /// Print the suspensions as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Suspends machines, lifts suspensions, or lists them.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let (all, word) = match (args.pattern, args.lift) {
        (pattern, true) => (client.lift_suspensions(pattern.as_deref())?, "lifted"),
        (Some(machine_pattern), false) => {
            let posted = PostedSuspension {
                machine_pattern,
                duration: duration("--for", &args.duration)?,
                reason: args.reason.unwrap_or_default(),
            };
            (vec![client.suspend(&posted)?], "suspended")
        }
        (None, false) => {
            let all = client.suspensions()?;
            if !args.json && !all.is_empty() {
                table_of(&all).print(&mut io::stdout().lock(), &io::stdout())?;
                return Ok(0);
            }
            (all, "")
        }
    };
    if args.json {
        print_json(&all)?;
        return Ok(0);
    }
    let mut out = io::stdout().lock();
    if all.is_empty() {
        writeln!(out, "nothing is suspended")?;
    }
    for suspension in &all {
        writeln!(out, "{word}: {}", in_words(suspension))?;
    }
    Ok(0)
}

/// `^db- until 2026-11-29T12:00:00Z: disk swap`.
pub fn in_words(suspension: &Suspension) -> String {
    let pattern = sanitize(&suspension.machine_pattern);
    let until = match &suspension.until {
        Some(until) => format!(" until {}", sanitize(until)),
        None => String::new(),
    };
    let reason = match &*suspension.reason {
        "" => String::new(),
        reason => format!(": {}", sanitize(reason)),
    };
    format!("{pattern}{until}{reason}")
}

fn table_of(all: &[Suspension]) -> Table {
    let mut table = Table::new(&["MACHINES", "SINCE", "UNTIL", "REASON"]);
    for suspension in all {
        table.add(vec![
            Cell::of(&suspension.machine_pattern),
            Cell::of(&suspension.since),
            Cell::of(suspension.until.as_deref().unwrap_or("lifted")),
            Cell::of(&suspension.reason),
        ]);
    }
    table
}
