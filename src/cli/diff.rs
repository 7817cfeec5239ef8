//! `sidebike diff`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::follow::print_message;
use super::outcome::short_duration;
use super::table::{Cell, Table};
use super::task_reference::find;
use super::terminal::{Colour, OutputStyle, sanitize, sanitize_output};
use super::unified_diff::unified_diff;
use crate::client::Client;
use crate::wire::agent::Stream;
use crate::wire::event::EventKind;
use crate::wire::machine_names::MachineNames;
use crate::wire::report::{MachineReport, Report};
use crate::wire::task::ExecutionState;
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::time::Duration;

/// Exit code when the tasks could not be compared, as with `diff`.
pub const TROUBLE: u8 = 2;
/// Exit code when they differ.
const DIFFERENT: u8 = 1;
const EXAMPLES: &str = "\
Examples:
  sidebike diff before after             the newest tasks of these names
  sidebike diff 018f6a2b 018f7c11        state, exit code, output, time
  sidebike diff --output before after    also how the output differs

Machines are compared by label; those with the same label by host. Times are shown, but do not
count as different. The exit code is 0 if the tasks are the same, 1 if they differ, 2 if sidebike
could not compare them.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The first task: its id, the beginning of its id (6 characters or more), or a name
    #[arg(value_name = "A", value_parser = NonEmptyStringValueParser::new())]
    a: String,
    /// The second task, given in the same way
    #[arg(value_name = "B", value_parser = NonEmptyStringValueParser::new())]
    b: String,
    /// Show how the outputs differ
    #[arg(long, conflicts_with = "json")]
    output: bool,
    /// Also list the machines that do not differ
    #[arg(long)]
    all: bool,
    /// Print the machines as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// A machine in both tasks, or in one of them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pair<'a> {
    label: &'a str,
    a: Option<&'a MachineReport>,
    b: Option<&'a MachineReport>,
    /// What differs.
    differs: Vec<Difference>,
    /// The time in the second task, in parts of the time in the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ratio: Option<f64>,
}

/// Something that can differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Difference {
    /// It is a machine of one of the tasks only.
    Machine,
    State,
    ExitCode,
    Output,
}

/// Whether two machines are to be compared.
type Fits<'a> = &'a dyn Fn(&MachineReport, &MachineReport) -> bool;

/// Compares two tasks.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let report = |task: &str| Ok::<_, Failure>(client.report(&find(&client, task)?.id)?);
    let (a, b) = (report(&args.a)?, report(&args.b)?);
    for report in [&a, &b].into_iter().filter(|r| !r.state.is_terminal()) {
        print_message(&format!(
            "sidebike: task {} has not ended\n",
            sanitize(&report.task)
        ));
    }
    let pairs = pairs(&a.machines, &b.machines);
    let different = pairs.iter().filter(|pair| !pair.differs.is_empty()).count();
    let is_shown = |pair: &&Pair<'_>| args.all || !pair.differs.is_empty();
    if args.json {
        print_json(&pairs.iter().filter(is_shown).collect::<Vec<_>>())?;
    } else {
        let shown: Vec<&Pair<'_>> = pairs.iter().filter(is_shown).collect();
        print(&shown, &a, &b)?;
        if args.output {
            let changed = pairs
                .iter()
                .filter(|p| p.differs.contains(&Difference::Output));
            for (pair, (one, other)) in changed.filter_map(|p| Some((p, p.a.zip(p.b)?))) {
                print_outputs(&client, pair.label, (&a, one), (&b, other))?;
            }
        }
        print_message(&summary(&pairs, different));
    }
    Ok(if different > 0 { DIFFERENT } else { 0 })
}

/// The machines of both tasks: by label, in the order of the first task, then what only the second one has.
fn pairs<'a>(a: &'a [MachineReport], b: &'a [MachineReport]) -> Vec<Pair<'a>> {
    let mut others: BTreeMap<&str, Vec<&MachineReport>> = BTreeMap::new();
    for machine in b {
        others.entry(&machine.label).or_default().push(machine);
    }
    let mut counts: HashMap<&str, [usize; 2]> = HashMap::new();
    for (n, machines) in [a, b].into_iter().enumerate() {
        for machine in machines {
            counts.entry(&machine.label).or_default()[n] += 1;
        }
    }
    // What is certain comes first: the same instance, then the same host, then the only one with its label.
    let mut partners: Vec<Option<&MachineReport>> = vec![None; a.len()];
    let fits: [Fits<'_>; 3] = [
        &|one, other| one.instance == other.instance,
        &|one, other| one.host == other.host,
        &|one, _| counts.get(&*one.label) == Some(&[1, 1]),
    ];
    for fits in fits {
        for (machine, partner) in a.iter().zip(&mut partners) {
            let Some(others) = others
                .get_mut(&*machine.label)
                .filter(|_| partner.is_none())
            else {
                continue;
            };
            let at = others.iter().position(|other| fits(machine, other));
            *partner = at.map(|at| others.remove(at));
        }
    }
    let of_a =
        { a.iter().zip(partners) }.map(|(machine, partner)| Pair::of(Some(machine), partner));
    let rest = others.into_values().flatten();
    let only_b = rest.map(|machine| Pair::of(None, Some(machine)));
    of_a.chain(only_b).collect()
}

impl<'a> Pair<'a> {
    fn of(a: Option<&'a MachineReport>, b: Option<&'a MachineReport>) -> Pair<'a> {
        let label = a.or(b).map(|machine| &*machine.label).unwrap_or_default();
        let Some((one, other)) = a.zip(b) else {
            let differs = vec![Difference::Machine];
            return Pair {
                label,
                a,
                b,
                differs,
                duration_ratio: None,
            };
        };
        let exit = |m: &MachineReport| (m.exit_code, m.signal.clone());
        let differs = [
            (one.state != other.state, Difference::State),
            (exit(one) != exit(other), Difference::ExitCode),
            (one.output_hash != other.output_hash, Difference::Output),
        ];
        let differs = differs.into_iter().filter(|(is, _)| *is);
        let times = one.duration_ms.zip(other.duration_ms);
        Pair {
            label,
            a,
            b,
            differs: differs.map(|(_, what)| what).collect(),
            duration_ratio: times
                .filter(|(one, _)| *one > 0)
                .map(|(one, other)| other as f64 / one as f64),
        }
    }

    fn has(&self, what: Difference) -> bool {
        self.differs.contains(&what)
    }
}

fn print(pairs: &[&Pair<'_>], a: &Report, b: &Report) -> Result<(), Failure> {
    if pairs.is_empty() {
        return Ok(());
    }
    let mut names = [a, b].map(names);
    let mut table = Table::new(&["MACHINE", "STATE", "EXIT", "OUTPUT", "TIME", "RATIO"]);
    for pair in pairs {
        let [names_of_a, names_of_b] = &mut names;
        let name = match (pair.a, pair.b) {
            (Some(m), _) => Some(names_of_a.name(&m.label, &m.instance).to_owned()),
            (None, other) => other.map(|m| names_of_b.name(&m.label, &m.instance).to_owned()),
        };
        let mut row = vec![Cell::of(match name.unwrap_or_default() {
            name if name.is_empty() => "(no machine yet)".into(),
            name => name,
        })];
        if pair.has(Difference::Machine) {
            let only = pair.a.map_or(&b.task, |_| &a.task);
            row.push(Cell::painted(
                format!("only in {only}"),
                Some(Colour::Yellow),
            ));
            row.extend((0..4).map(|_| Cell::of("")));
            table.add(row);
            continue;
        }
        let both = |text: &dyn Fn(&MachineReport) -> String| {
            [pair.a, pair.b].map(|machine| machine.map(text).unwrap_or_default())
        };
        row.push(changed(
            pair.has(Difference::State),
            both(&|m| m.state.word().into()),
        ));
        row.push(changed(pair.has(Difference::ExitCode), both(&exit)));
        row.push(match pair.has(Difference::Output) {
            true => Cell::painted("differs", Some(Colour::Yellow)),
            false => Cell::of("same"),
        });
        let times = both(&|m| m.duration_ms.map_or("-".into(), milliseconds));
        row.push(Cell::of(times.join(" → ")));
        row.push(Cell::of(
            pair.duration_ratio
                .map_or(String::new(), |r| format!("{r:.2}×")),
        ));
        table.add(row);
    }
    let stdout = io::stdout();
    Ok(table.print(&mut stdout.lock(), &stdout)?)
}

/// The names of the machines of a task.
fn names(report: &Report) -> MachineNames {
    let machines = report.machines.iter();
    MachineNames::of(machines.map(|m| (&*m.label, &*m.instance, &*m.host)))
}

/// `succeeded → failed`.
fn changed(is_changed: bool, [one, other]: [String; 2]) -> Cell {
    match is_changed {
        true => Cell::painted(format!("{one} → {other}"), Some(Colour::Yellow)),
        false => Cell::of(one),
    }
}

fn exit(machine: &MachineReport) -> String {
    let code = machine.exit_code.map(|code| code.to_string());
    code.or_else(|| machine.signal.clone())
        .unwrap_or_else(|| "-".into())
}

fn milliseconds(ms: u64) -> String {
    short_duration(Duration::from_millis(ms))
}

/// `2 of 10 machines differ; the second took 0.98 to 1.40 times as long where both succeeded`.
fn summary(pairs: &[Pair<'_>], different: usize) -> String {
    let of = match pairs.len() {
        1 => "1 machine".into(),
        n => format!("{n} machines"),
    };
    let succeeded = |machine: Option<&MachineReport>| {
        machine.is_some_and(|machine| machine.state == ExecutionState::Succeeded)
    };
    let ratios = pairs.iter().filter(|p| succeeded(p.a) && succeeded(p.b));
    let mut ratios: Vec<f64> = ratios.filter_map(|pair| pair.duration_ratio).collect();
    ratios.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    let took = match ratios[..] {
        [] => String::new(),
        [only] => format!("; the second took {only:.2} times as long where both succeeded"),
        [least, .., most] => {
            format!("; the second took {least:.2} to {most:.2} times as long where both succeeded")
        }
    };
    match different {
        0 => format!("no difference on {of}{took}\n"),
        1 => format!("1 of {of} differs{took}\n"),
        n => format!("{n} of {of} differ{took}\n"),
    }
}

/// Prints how the outputs of a machine differ, each stream by itself.
fn print_outputs(
    client: &Client,
    label: &str,
    a: (&Report, &MachineReport),
    b: (&Report, &MachineReport),
) -> Result<(), Failure> {
    let [one, other] = [a, b].map(|(report, machine)| output(client, report, machine));
    let (one, other) = (one?, other?);
    let style = OutputStyle::of(&io::stdout());
    let mut out = io::stdout().lock();
    for stream in [Stream::Stdout, Stream::Stderr] {
        let (one, other) = (&one[stream as usize], &other[stream as usize]);
        let word = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let header =
            |report: &Report| format!("{}/{}/{word}", sanitize(&report.task), sanitize(label));
        let (name_of_a, name_of_b) = (header(a.0), header(b.0));
        let diff = unified_diff([&name_of_a, &name_of_b], [one, other]);
        for line in diff.split_terminator('\n') {
            if !style.is_terminal {
                writeln!(out, "{line}")?;
                continue;
            }
            let mut shown = sanitize_output(line);
            // A carriage return at the end may be all that differs.
            shown.push_str(if line.ends_with('\r') { "\u{FFFD}" } else { "" });
            let colour = match line.as_bytes().first() {
                Some(b'-') => Some(Colour::Red),
                Some(b'+') => Some(Colour::Green),
                Some(b'@') => Some(Colour::Cyan),
                _ => None,
            };
            match colour {
                Some(colour) => writeln!(out, "{}", style.paint(colour, &shown))?,
                None => writeln!(out, "{shown}")?,
            }
        }
    }
    Ok(out.flush()?)
}

/// What is kept of the output of a machine's last attempt, by stream. What is missing is marked.
fn output(
    client: &Client,
    report: &Report,
    machine: &MachineReport,
) -> Result<[String; 2], Failure> {
    let mut texts = [String::new(), String::new()];
    let name = match &*machine.instance {
        "" => return Ok(texts),
        instance => Some(instance),
    };
    let mut reader = client.events(&report.task, name, false)?;
    while let Some(event) = reader.next_event()? {
        let Some(event) = event.filter(|event| event.attempt == machine.attempt) else {
            continue;
        };
        match event.kind {
            EventKind::Output { stream, text, .. } => texts[stream as usize].push_str(&text),
            EventKind::Missing {
                stream,
                offset,
                end,
            } => {
                texts[stream as usize].push_str(&format!("\n… {} bytes left out …\n", end - offset))
            }
            EventKind::State { .. } | EventKind::Attempt => {}
        }
    }
    Ok(texts)
}
