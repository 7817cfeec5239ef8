//! `sidebike info`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::halt;
use super::terminal::{Colour, OutputStyle};
use crate::client::Client;
use crate::wire::halt::Halt;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// The figures with a count for each state of machines and of tasks.
const BY_STATE: [&str; 2] = ["sidebike_machines", "sidebike_tasks"];

const EXAMPLES: &str = "\
Examples:
  sidebike info
  sidebike info --json | jq .undosOpen   how much is not undone

sidebike ps --unclean lists the tasks of what is not undone.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// The state of a server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    /// How many machines are in which state.
    machines: BTreeMap<String, u64>,
    /// How many tasks are in which state.
    tasks: BTreeMap<String, u64>,
    /// How many undos failed or are owed; none if the server does not know undos.
    undos_open: Option<usize>,
    /// The halt that is in force.
    halt: Option<Halt>,
}

/// Shows the state of the server.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let info = Info::of(&client)?;
    if args.json {
        print_json(&info)?;
    } else {
        info.print(&mut io::stdout().lock(), &OutputStyle::of(&io::stdout()))?;
    }
    Ok(0)
}

impl Info {
    fn of(client: &Client) -> Result<Info, Failure> {
        let page = client.metrics()?;
        let (halt, undos_open) = match client.status()? {
            Some(status) => (status.halt, Some(status.undos_open)),
            None => (None, None),
        };
        let [machines, tasks] = BY_STATE.map(|name| by_state(&page, name));
        Ok(Info {
            machines,
            tasks,
            undos_open,
            halt,
        })
    }

    fn print(&self, out: &mut dyn Write, style: &OutputStyle) -> io::Result<()> {
        if let Some(halt) = &self.halt {
            let text = format!("{}; lift it: sidebike halt --lift", halt::in_words(halt));
            writeln!(out, "{}", style.paint(Colour::Red, &text))?;
        }
        for (name, counts) in [("machines", &self.machines), ("tasks", &self.tasks)] {
            writeln!(out, "{name:9}  {}", in_words(counts))?;
        }
        let undos = match self.undos_open {
            None => "not known by this server".into(),
            Some(0) => "nothing is left".into(),
            Some(n) => style.paint(
                Colour::Red,
                &format!("{n} NOT UNDONE; see sidebike ps --unclean"),
            ),
        };
        writeln!(out, "undos      {undos}")
    }
}

/// `3 online, 1 offline`.
fn in_words(counts: &BTreeMap<String, u64>) -> String {
    let some = counts.iter().filter(|(_, count)| **count > 0);
    let words: Vec<String> = some
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    match words.is_empty() {
        true => "none".into(),
        false => words.join(", "),
    }
}

/// A figure whose label is a state. States are words; whatever else is there is left out.
fn by_state(page: &str, name: &str) -> BTreeMap<String, u64> {
    let samples = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix("{state=\"")?;
        let (state, count) = rest.split_once("\"} ")?;
        let is_word = state.chars().all(|c| c.is_ascii_alphanumeric());
        is_word.then_some((state.to_owned(), count.parse().ok()?))
    });
    samples.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_others() {
        let page = "# TYPE sidebike_tasks gauge\nsidebike_tasks{state=\"failed\"} 2\nsidebike_tasks{state=\"\u{1b}[2J\"} 3\n\
            sidebike_tasks_submitted_total 9\n";
        let tasks = by_state(page, "sidebike_tasks");
        assert_eq!(in_words(&tasks), "2 failed");
        assert_eq!(in_words(&by_state(page, "sidebike_machines")), "none");
    }
}
