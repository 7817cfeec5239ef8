//! `sidebike logs`.

use super::command::{CommandResult, ConnectionArgs, Failure};
use super::event_stream::{EventStream, StreamItem};
use super::follow::{is_several, print_message};
use super::outcome::is_on;
use super::printer::Printer;
use super::task_reference::TaskArg;
use std::io::{self, Write};
use std::time::Duration;

/// How long to wait for an event before waiting again.
const WAIT: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  sidebike logs 018f6a2b              its output so far
  sidebike logs -f 018f6a2b           and its output until it ends
  sidebike logs 018f6a2b -m web-1     on one machine only
  sidebike logs 018f6a2b 2>/dev/null  without standard error

A command's standard output goes to standard output, its standard error to standard error.
With --json each line is an event: output with its offset in its stream, or the new state of an
execution.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    task: TaskArg,
    /// Continue until the task ends
    #[arg(short, long)]
    follow: bool,
    /// Only of the machines with exactly this label, or the one with this instance
    #[arg(short, long, value_name = "LABEL")]
    machine: Option<String>,
    /// Print events as JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Prints the output of a task.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let task = args.task.find(&client)?;
    let machine = args.machine.as_deref();
    let addressed = |name: &str| task.result.iter().filter(|e| is_on(e, name)).count() > 1;
    let mut printer = Printer::new(&task, machine.map_or(is_several(&task), addressed));
    let mut stream = EventStream::open(&client, &task.id, machine, args.follow);
    let mut complained = false;
    loop {
        match stream.next(WAIT) {
            Some(StreamItem::Event(event)) if args.json => {
                // Our own types have only string keys and finite numbers: this cannot fail.
                let line = serde_json::to_string(&event).unwrap_or_default();
                writeln!(io::stdout(), "{line}")?;
            }
            Some(StreamItem::Event(event)) => {
                complained = false;
                printer.print(&event)?;
                printer.flush()?;
            }
            Some(StreamItem::Broken(_)) if complained => {}
            Some(StreamItem::Broken(why)) => {
                complained = true;
                print_message(&format!("sidebike: {why}; trying again\n"));
            }
            Some(StreamItem::Ended) => break,
            Some(StreamItem::Refused(why)) => return Err(Failure::Because(why)),
            None => {}
        }
    }
    printer.finish()?;
    Ok(0)
}
