//! `sidebike machines`.

use super::follow::print_message;
use super::messages::no_such_label;
use super::outcome::{age, short_duration};
use super::table::{Cell, Table};
use super::terminal::Colour;
use super::{CommandResult, ConnectionArgs, Failure, print_json, watch};
use crate::rules::one_of;
use crate::wire::machine::{Machine, MachineState};
use std::io;

/// How many characters of an instance are shown: enough to tell replicas apart.
const SHOWN_INSTANCE: usize = 8;

const EXAMPLES: &str = "\
Examples:
  sidebike machines                  all known machines
  sidebike machines -w               the same, kept up to date
  sidebike machines --state online --json | jq -r '.[].label'";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only those with exactly this label (no pattern)
    #[arg(short, long, value_name = "LABEL")]
    machine: Option<String>,
    /// Only those in this state: online, draining, offline
    #[arg(long, value_parser = state)]
    state: Option<MachineState>,
    /// Keep it up to date, until Ctrl-C
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,
    /// Print the machines as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

fn state(text: &str) -> Result<MachineState, String> {
    one_of(&MachineState::ALL, MachineState::word, text)
}

/// Lists machines.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let (label, state) = (args.machine.as_deref(), args.state);
    let found = || {
        let machines = client.machines(label, state)?;
        if let Some(label) = label.filter(|_| machines.is_empty() && !args.watch) {
            print_message(&no_such_label(
                label,
                &match state {
                    None => "machine has".to_owned(),
                    Some(state) => format!("machine that is {} has", state.word()),
                },
            ));
        }
        Ok::<_, Failure>(machines)
    };
    if args.json {
        print_json(&found()?)?;
        return Ok(0);
    }
    watch::show(args.watch, |out| {
        let table = table_of(&found()?);
        table.print(out, &io::stdout()).map_err(Failure::from)
    })?;
    Ok(0)
}

fn table_of(machines: &[Machine]) -> Table {
    let mut table = Table::new(&[
        "LABEL", "STATE", "RUNNING", "QUEUED", "SEEN", "INSTANCE", "VERSION", "HOST",
    ]);
    for machine in machines {
        let colour = match machine.state {
            MachineState::Online => Colour::Green,
            MachineState::Draining => Colour::Yellow,
            MachineState::Offline => Colour::Red,
        };
        let instance = &machine.instance;
        table.add(vec![
            Cell::of(&machine.label),
            Cell::painted(machine.state.word(), Some(colour)),
            Cell::of(format!("{}/{}", machine.running, machine.jobs)),
            Cell::of(machine.queued.to_string()),
            Cell::of(
                age(&machine.last_seen)
                    .map(short_duration)
                    .unwrap_or_default(),
            ),
            Cell::of(instance.get(..SHOWN_INSTANCE).unwrap_or(instance)),
            Cell::of(&machine.version),
            Cell::of(&machine.host),
        ]);
    }
    table
}
