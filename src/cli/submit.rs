//! `sidebike submit`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::new_task::bytes_of;
use super::terminal::sanitize;
use serde_json::Value;
use std::io::{self, Write};

const EXAMPLES: &str = "\
Examples:
  sidebike submit tasks.json
  jq -c '...' | sidebike submit -
  sidebike group nightly --wait    if the tasks have the group nightly

The file has a list of tasks as JSON, 1,000 at most, each as for POST /api/v1/task; or one task.
All of them are accepted, or none. Their ids are printed in the same order; nothing waits for them.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The file with the tasks; - reads standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// Only show what would become of each; nothing is submitted
    #[arg(long)]
    dry_run: bool,
    /// Print the tasks as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Submits the tasks of a file.
pub fn run(args: Args) -> CommandResult {
    let bytes = bytes_of("FILE", &args.file)?;
    let list = match serde_json::from_slice(&bytes) {
        Ok(list @ Value::Array(_)) => list,
        Ok(task @ Value::Object(_)) => Value::Array(vec![task]),
        Ok(_) => {
            return Err(Failure::Usage(
                "FILE: expected a list of tasks, or a task, as JSON".into(),
            ));
        }
        Err(why) => {
            return Err(Failure::Usage(format!(
                "FILE: expected a list of tasks, or a task, as JSON: {why}"
            )));
        }
    };
    let tasks = args.server.client()?.submit_all(&list, args.dry_run)?;
    if args.json {
        print_json(&tasks)?;
        return Ok(0);
    }
    let mut out = io::stdout().lock();
    if args.dry_run {
        for (n, task) in tasks.iter().enumerate() {
            let machines = task.assignees.join(", ");
            let name = sanitize(&task.name);
            let words = format!(
                "tasks[{n}] {name}: {} {}",
                task.state.word(),
                sanitize(&machines)
            );
            writeln!(out, "{}", words.trim_end())?;
        }
        return Ok(0);
    }
    for task in &tasks {
        writeln!(out, "{}", sanitize(&task.id))?;
    }
    Ok(0)
}
