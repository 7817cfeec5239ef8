//! `sidebike limit`.

use super::command::{CommandResult, ConnectionArgs, print_json};
use super::table::{Cell, Table};
use super::terminal::sanitize;
use crate::wire::limit::{Limit, PostedLimit};
use clap::{ArgGroup, Subcommand};
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  sidebike limit set db --running 2          of the tasks that name db, two commands run at once
  sidebike limit set mail --per-minute 60    60 are handed out a minute
  sidebike run --limit db -- ./migrate.sh    a task that names it
  sidebike limit ls                          all limits, and how they are used
  sidebike limit rm db                       when no task that has not ended names it";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a limit, or change it
    Set(SetArgs),
    /// List the limits
    Ls(ListArgs),
    /// Remove a limit
    Rm(RemoveArgs),
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").args(["running", "per_minute"]).required(true).multiple(true))]
struct SetArgs {
    /// Its name: letters, digits, - _ and .
    name: String,
    /// So many commands at once, on the whole server; 0 lets nothing go
    #[arg(long, value_name = "N")]
    running: Option<u32>,
    /// So many are handed out a minute
    #[arg(long, value_name = "N")]
    per_minute: Option<u32>,
    /// Print the limit as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Print the limits as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Sets, lists or removes limits.
pub fn run(args: Args) -> CommandResult {
    match args.what {
        What::Set(args) => {
            let posted = PostedLimit {
                running: args.running,
                per_minute: args.per_minute,
            };
            let limit = args.server.client()?.set_limit(&args.name, &posted)?;
            match args.json {
                true => print_json(&limit)?,
                false => print(&[limit])?,
            }
        }
        What::Ls(args) => {
            let limits = args.server.client()?.limits()?;
            match args.json {
                true => print_json(&limits)?,
                false => print(&limits)?,
            }
        }
        What::Rm(args) => {
            args.server.client()?.remove_limit(&args.name)?;
            writeln!(io::stdout(), "removed: {}", sanitize(&args.name))?;
        }
    }
    Ok(0)
}

fn print(limits: &[Limit]) -> io::Result<()> {
    let number = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
    let mut table = Table::new(&["NAME", "AT ONCE", "A MINUTE", "RUNNING", "WAITING"]);
    for limit in limits {
        table.add(vec![
            Cell::of(&limit.name),
            Cell::of(number(limit.running)),
            Cell::of(number(limit.per_minute)),
            Cell::of(limit.running_now.to_string()),
            Cell::of(limit.waiting.to_string()),
        ]);
    }
    table.print(&mut io::stdout(), &io::stdout())
}
