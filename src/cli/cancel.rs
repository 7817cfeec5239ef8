//! `sidebike cancel`.

use super::named::TaskArg;
use super::outcome::{counted, is_on, names};
use super::{Ended, ServerArgs, print_json};
use crate::wire::task::{Execution, ExecutionState, Task};
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
    #[command(flatten)]
    task: TaskArg,
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
    let before = args.task.find(&client)?;
    let machine = args.machine.as_deref();
    let task = client.cancel(&before.id, machine)?;
    if args.json {
        print_json(&task)?;
        return Ok(0);
    }
    let said = match (machine, before.state.is_terminal()) {
        (_, true) => format!("task {} had ended: {}", task.id, task.state.word()),
        (Some(machine), false) => on_machine(&task, machine),
        (None, false) if task.counts.unfinished() == 0 => {
            format!("task {} is {}", task.id, task.state.word())
        }
        (None, false) => format!(
            "task {} is being canceled: {}",
            task.id,
            counted(task.counts)
        ),
    };
    writeln!(io::stdout(), "{said}")?;
    Ok(0)
}

/// What became of the executions on a machine, and how many of the others go on.
fn on_machine(task: &Task, machine: &str) -> String {
    let had_ended = |e: &&Execution| e.state.is_terminal() && e.state != ExecutionState::Canceled;
    let (meant, others): (Vec<_>, Vec<_>) = task.result.iter().partition(|e| is_on(e, machine));
    let (ended, canceled): (Vec<_>, Vec<_>) = meant.into_iter().partition(had_ended);
    let on = |executions: &[&Execution]| names(executions.iter().map(|e| &*e.machine_label));
    let mut parts = Vec::new();
    if !canceled.is_empty() {
        let (n, all) = (canceled.len(), task.result.len());
        let names = on(&canceled);
        parts.push(format!("canceled on {n} of {all} machines: {names}"));
    }
    if !ended.is_empty() {
        parts.push(format!("had ended on {}", on(&ended)));
    }
    let go_on = others.iter().filter(|e| !e.state.is_terminal()).count();
    if go_on > 0 {
        parts.push(format!("others that go on: {go_on}"));
    }
    format!("task {}: {}", task.id, parts.join("; "))
}
