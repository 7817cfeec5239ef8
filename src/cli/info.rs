//! `sidebike info`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::outcome::{age, short_duration};
use super::table::{Cell, Table};
use super::terminal::{Colour, OutputStyle, sanitize};
use super::{halt, suspend, watch};
use crate::client::Client;
use crate::wire::crew::{LabelSummary, OldestWaiting, ServerSummary, Suspension};
use crate::wire::halt::Halt;
use crate::wire::limit::Limit;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// The figures with a count for each state of machines and of tasks.
const BY_STATE: [&str; 2] = ["sidebike_machines", "sidebike_tasks"];

const EXAMPLES: &str = "\
Examples:
  sidebike info
  sidebike info -w                       the same, kept up to date
  sidebike info --labels                 also the machines of each label
  sidebike info --json | jq .undosOpen   how much is not undone

sidebike ps --unclean lists the tasks of what is not undone.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Keep it up to date, until Ctrl-C
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,
    /// Also list the machines of each label
    #[arg(long)]
    labels: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// The state of a server. What an old one does not know is absent, or empty.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    /// Which server of the list has answered; none without a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    /// The servers of the registry, if it has several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    servers: Vec<ServerSummary>,
    /// How many machines are in which state.
    machines: BTreeMap<String, u64>,
    /// How many tasks are in which state.
    tasks: BTreeMap<String, u64>,
    /// How many executions are.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    executions: BTreeMap<String, u64>,
    /// The machines by label.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<LabelSummary>,
    /// How many labels are not listed.
    #[serde(skip_serializing_if = "is_zero")]
    more_labels: u64,
    /// What has waited for longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<OldestWaiting>,
    /// The suspensions in force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suspensions: Vec<Suspension>,
    /// The limits with a name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    limits: Vec<Limit>,
    /// How many schedules are in which state.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    schedules: BTreeMap<String, u64>,
    /// How many of them are due.
    #[serde(skip_serializing_if = "is_zero")]
    schedules_due: u64,
    /// How many undos failed or are owed; none if the server does not know undos.
    undos_open: Option<usize>,
    /// The halt that is in force.
    halt: Option<Halt>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Shows the state of the server.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    if args.json {
        print_json(&Info::of(&client)?)?;
        return Ok(0);
    }
    let style = OutputStyle::of(&io::stdout());
    watch::show(args.watch, |out| {
        let info = Info::of(&client)?;
        info.print(out, &style)?;
        if args.labels && !info.labels.is_empty() {
            writeln!(out)?;
            table_of(&info.labels).print(out, &io::stdout())?;
            if info.more_labels > 0 {
                writeln!(out, "and {} more labels", info.more_labels)?;
            }
        }
        Ok(())
    })?;
    Ok(0)
}

impl Info {
    fn of(client: &Client) -> Result<Info, Failure> {
        let mut info = Info::asked(client)?;
        info.server = client.one_of_several().map(str::to_owned);
        Ok(info)
    }

    fn asked(client: &Client) -> Result<Info, Failure> {
        if let Some(summary) = client.summary()? {
            return Ok(Info {
                server: None,
                servers: summary.servers,
                machines: summary.machines,
                tasks: summary.tasks,
                executions: summary.executions,
                labels: summary.labels,
                more_labels: summary.more_labels,
                oldest: summary.oldest,
                suspensions: summary.suspensions,
                limits: summary.limits,
                schedules: summary.schedules,
                schedules_due: summary.schedules_due,
                undos_open: Some(usize::try_from(summary.undos_open).unwrap_or(usize::MAX)),
                halt: summary.halt,
            });
        }
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
            ..Info::default()
        })
    }

    fn print(&self, out: &mut dyn Write, style: &OutputStyle) -> io::Result<()> {
        if let Some(halt) = &self.halt {
            let text = format!("{}; lift it: sidebike halt --lift", halt::in_words(halt));
            writeln!(out, "{}", style.paint(Colour::Red, &text))?;
        }
        for suspension in &self.suspensions {
            let text = format!("suspended: {}", suspend::in_words(suspension));
            writeln!(out, "{}", style.paint(Colour::Yellow, &text))?;
        }
        if let Some(server) = &self.server {
            writeln!(out, "server     {}", sanitize(server))?;
        }
        for server in &self.servers {
            let role = match server.leads {
                true => "leads",
                false => "stands by",
            };
            let since = age(&server.since).map(short_duration).unwrap_or_default();
            let (address, version) = (sanitize(&server.address), sanitize(&server.version));
            write!(
                out,
                "           {address} {role}, version {version}, up {since}"
            )?;
            if !server.differing.is_empty() {
                let text = format!("; OTHER {}", sanitize(&server.differing.join(", ")));
                write!(out, "{}", style.paint(Colour::Red, &text))?;
            }
            writeln!(out)?;
        }
        for (name, counts) in [("machines", &self.machines), ("tasks", &self.tasks)] {
            writeln!(out, "{name:9}  {}", in_words(counts))?;
        }
        if let Some(oldest) = &self.oldest {
            let id = sanitize(&oldest.id);
            let waited = age(&oldest.created_at).map(short_duration);
            let msg = sanitize(&oldest.msg);
            writeln!(
                out,
                "oldest     {id}, {}: {msg}",
                waited.unwrap_or_default()
            )?;
        }
        if !self.schedules.values().all(is_zero) {
            let due = match self.schedules_due {
                0 => String::new(),
                due => format!("; {due} due"),
            };
            writeln!(out, "schedules  {}{due}", in_words(&self.schedules))?;
        }
        for limit in &self.limits {
            let most = limit
                .running
                .map_or(String::new(), |most| format!(" of {most}"));
            writeln!(
                out,
                "limit      {}: {}{most} running, {} waiting",
                sanitize(&limit.name),
                limit.running_now,
                limit.waiting
            )?;
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

fn table_of(labels: &[LabelSummary]) -> Table {
    let mut table = Table::new(&[
        "LABEL",
        "ONLINE",
        "DRAINING",
        "OFFLINE",
        "SUSPENDED",
        "RUNNING",
        "QUEUED",
    ]);
    for label in labels {
        let counts = [
            label.online,
            label.draining,
            label.offline,
            label.suspended,
            label.running,
            label.queued,
        ];
        let counts = counts.into_iter().map(|count| Cell::of(count.to_string()));
        table.add([Cell::of(&label.label)].into_iter().chain(counts).collect());
    }
    table
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
