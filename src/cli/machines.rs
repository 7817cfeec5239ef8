//! `sidebike machines`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::follow::print_message;
use super::messages::no_such_label;
use super::outcome::{age, short_duration};
use super::selection::short_instance;
use super::table::{Cell, Table};
use super::terminal::Colour;
use super::watch;
use crate::client::MachineFilter;
use crate::rules::one_of;
use crate::wire::machine::{Machine, MachineState};
use std::io;

/// The columns; the last one only if a machine has tags.
const COLUMNS: [&str; 9] = [
    "LABEL", "STATE", "RUNNING", "QUEUED", "SEEN", "INSTANCE", "VERSION", "HOST", "TAGS",
];

const EXAMPLES: &str = "\
Examples:
  sidebike machines                  all known machines
  sidebike machines -w               the same, kept up to date
  sidebike machines --where zone=^cn-
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
    /// Only those with this tag, if its value matches the regular expression; can be given several times
    #[arg(long = "where", value_name = "NAME=PATTERN")]
    tags: Vec<String>,
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
    let filter = MachineFilter {
        label: args.machine,
        state: args.state,
        tags: args.tags,
    };
    let found = || {
        let machines = client.machines(&filter)?;
        let label = filter.label.as_deref();
        if let Some(label) = label.filter(|_| machines.is_empty() && !args.watch) {
            let state = filter
                .state
                .map(|state| format!(" that is {}", state.word()));
            let tag = (!filter.tags.is_empty()).then_some(" with such tags");
            let (state, tag) = (state.unwrap_or_default(), tag.unwrap_or_default());
            print_message(&no_such_label(label, &format!("machine{tag}{state} has")));
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

/// `role=canary,zone=cn-1`.
fn tags_of(machine: &Machine) -> String {
    let tags = machine.tags.iter();
    let tags: Vec<String> = tags
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    tags.join(",")
}

fn table_of(machines: &[Machine]) -> Table {
    let has_tags = machines.iter().any(|machine| !machine.tags.is_empty());
    let columns = match has_tags {
        true => &COLUMNS[..],
        false => &COLUMNS[..COLUMNS.len() - 1],
    };
    let mut table = Table::new(columns);
    for machine in machines {
        let colour = match machine.state {
            MachineState::Online => Colour::Green,
            MachineState::Draining => Colour::Yellow,
            MachineState::Offline => Colour::Red,
        };
        let mut row = vec![
            Cell::of(&machine.label),
            match &machine.suspended {
                Some(_) => Cell::painted(
                    format!("{}, suspended", machine.state.word()),
                    Some(Colour::Yellow),
                ),
                None => Cell::painted(machine.state.word(), Some(colour)),
            },
            Cell::of(format!("{}/{}", machine.running, machine.jobs)),
            Cell::of(machine.queued.to_string()),
            Cell::of(
                age(&machine.last_seen)
                    .map(short_duration)
                    .unwrap_or_default(),
            ),
            Cell::of(short_instance(&machine.instance)),
            Cell::of(&machine.version),
            Cell::of(&machine.host),
        ];
        if has_tags {
            row.push(Cell::of(tags_of(machine)));
        }
        table.add(row);
    }
    table
}
