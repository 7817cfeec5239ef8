//! `sidebike run`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::follow::{self, FollowOptions, print_message};
use super::later_flags::waits;
use super::messages::with_flags;
use super::new_task::NewTaskArgs;
use super::outcome::{CANCELED, NO_MACHINE, label_list};
use super::selection::Selection;
use super::table::{Cell, Table};
use super::terminal::{self, Prompt, sanitize, truncate};
use crate::client::Client;
use crate::wire::machine::MachineState;
use crate::wire::task::{DryRun, Target, Task};
use serde_json::{Map, Value};
use std::io::{self, Write};

/// How much of a list of other machines is shown in a hint, in columns.
const MAX_OTHERS_COLUMNS: usize = 120;

const EXAMPLES: &str = "\
Examples:
  sidebike run -- uptime                         on every machine
  sidebike run -m '^web-' -- 'df -h | tail -1'   on those whose label begins with web-
  sidebike run -m 'web-1|db-1' -- uptime         on two of them; it may match a part of the label
  sidebike run -m '^web-' --dry-run -- reboot    only show who would run it
  sidebike run --fold -- cat /etc/os-release     machines with the same output together
  sidebike run --any -m '^db-' -- ./vacuum.sh    on one of them, whichever is free first
  sidebike run --script ./probe.py -- -v /data   a script of this machine, with arguments
  sidebike run --timeout 2h -- ./backup.sh       longer than the usual 3 minutes
  sidebike run --exec -- printf '%s\\n' 'a b'     no shell at all
  sidebike run --where zone=^cn- -- uptime       on those whose tag zone begins with cn-
  sidebike run --steps 1,10%,100% --pause 30s --max-failures 5% -- ./deploy.sh
                                                 step by step; stops when more than 5 % have failed
  sidebike run --at 2026-12-24T23:30:00+01:00 -- ./backup.sh
                                                 at that time; --delay 10m: after that time
  sidebike run --after build-1 -- ./deploy.sh    when it has succeeded; build-1:ended: any end of it
  sidebike run --max-targets 25% --keep-alive 50% -- ./break.sh
                                                 on a quarter, if half of them stay untouched
  sidebike run --file ./blade.tgz:/tmp/blade --unpack --workspace /tmp/blade -- ./blade version
                                                 a package of this machine, unpacked first
  sidebike run --fetch /tmp/heap.hprof -- ./dump.sh
                                                 hand a file back; sidebike pull gets it
  sidebike run --task task.json --expect 3       the task of a file, if exactly 3 machines match
  sidebike run -m '^web-1$' --hold 5m --undo ./mend.sh --lock eth0 -- ./break.sh
                                                 a fault for five minutes, which is then taken back,
                                                 also if its agent or the server is gone

Put the line in single quotes: without them your own shell fills in $ and ends the command at ; & |.
To name a shell yourself take --exec: sidebike run --exec -- bash -c 'a && b'.
The command has SIDEBIKE_MACHINE_LABEL, SIDEBIKE_INSTANCE, SIDEBIKE_TASK_ID, SIDEBIKE_TASK_NAME and
SIDEBIKE_ATTEMPT in its environment, the ids of --after in SIDEBIKE_AFTER, and each tag of its
machine: zone as SIDEBIKE_TAG_ZONE.
Its standard output goes to standard output, its standard error to standard error, as do the
messages of sidebike itself; --fold shows both together on standard output.

The exit code is the worst of all machines':
  0 all succeeded, else the command's own; 3 no machine matched, or not as many as were wanted:
  nothing was submitted; 123 an undo failed or is owed, whatever else happened; 124 time-out,
  125 lost, skipped or not started in time, 126 could not be started, 128+N ended by signal N,
  130 canceled or detached, 141 the reader of the output went away, 255 sidebike itself failed,
  2 wrong usage.
Ctrl-C asks whether to cancel or to detach; a second one detaches. Without a terminal it cancels,
and waits for an undo. So do TERM, HUP and, without waiting, a reader of the output that goes away
(| head), unless --detach-on-exit is given.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "sidebike run [OPTIONS] -- COMMAND...\n       sidebike run [OPTIONS] --script FILE\n       sidebike run [OPTIONS] --script FILE -- ARG...\n       sidebike run [OPTIONS] --task FILE"
)]
pub struct Args {
    #[command(flatten)]
    task: NewTaskArgs,
    /// Do not wait for the end; print the task's id
    #[arg(long)]
    detach: bool,
    /// Let the task go on when this command is interrupted or the reader of its output goes away
    #[arg(long)]
    detach_on_exit: bool,
    /// Only show which machines would run it
    #[arg(long)]
    dry_run: bool,
    /// At the end, show machines with the same output together
    #[arg(long, conflicts_with_all = ["json", "detach"])]
    fold: bool,
    /// Ask before running on more machines than this
    #[arg(long, value_name = "N", default_value_t = 20)]
    yes_above: u32,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// At the end, print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Runs a command on machines.
pub fn run(args: Args) -> CommandResult {
    let mut task = args.task.read()?;
    let client = args.server.client_for_files()?;
    args.task.set_instances(&mut task, &client)?;
    let matching = client.dry_run(&task)?;
    let is_any = task.get("mode").is_some_and(|mode| mode == "any");
    let waits = waits(&task);
    let joins_later = waits || task.get("lateJoin") == Some(&Value::Bool(true));
    let pattern = task.get("machinePattern").and_then(Value::as_str);
    if let Some(hint) = pattern.and_then(|pattern| matches_more_than_named(pattern, &matching)) {
        print_message(&hint);
    }
    if args.dry_run {
        show_matching(&matching, waits, args.json)?;
        let is_refused = (matching.matched == 0 && !waits) || !matching.ok;
        return Ok(if is_refused { NO_MACHINE } else { 0 });
    }
    // The submit refuses what has nothing to do with the machines: an id or a key that is taken, a missing limit.
    let is_refused = ["id: ", "uniqueKey: ", "limits: "]
        .iter()
        .any(|field| matching.msg.starts_with(field));
    if (!matching.ok && !is_refused) || (matching.matched == 0 && !joins_later && !is_refused) {
        return Err(nowhere(&Selection::posted(&task), &matching));
    }
    let number = matching.machines.len();
    if !is_any && !args.yes && number > args.yes_above as usize {
        let is_meant = confirm(&matching)?;
        if !is_meant {
            print_message("sidebike: not run\n");
            return Ok(CANCELED);
        }
    }
    args.task.send_files(&task, &client)?;
    if args.detach {
        return submit_detached(&client, &task, args.json);
    }
    let control = follow::controls()?;
    let task = client.submit(&task)?;
    if terminal::width(&io::stderr()).is_some() || task.result.len() > 1 || waits {
        let on = match is_any {
            _ if task.state.is_unbegun() => format!(" {}", sanitize(&task.msg)),
            true => format!(" on {}", any_in_words(&matching)),
            false => format!(" on {}", targets_in_words(&task)),
        };
        print_message(&format!("task {}{on}\n", task.id));
    }
    let options = FollowOptions {
        fold: args.fold,
        json: args.json,
        detach_on_exit: args.detach_on_exit,
    };
    follow::follow_to_end(&client, &task, options, control)
}

/// Submits a task, prints its id or all of it, and leaves it alone.
pub fn submit_detached(client: &Client, task: &Map<String, Value>, as_json: bool) -> CommandResult {
    let task = client.submit(task)?;
    match as_json {
        true => print_json(&task)?,
        false => writeln!(io::stdout(), "{}", task.id)?,
    }
    Ok(0)
}

/// Why it would run nowhere.
pub fn nowhere(selection: &Selection, matching: &DryRun) -> Failure {
    let others = not_online(matching);
    let refusal = match matching.ok {
        true => String::new(),
        false => sanitize(&with_flags(&matching.msg)),
    };
    Failure::NoMachine(match (matching.matched, &*refusal) {
        (0, "") => format!("no machine matches {selection}{others}; see sidebike machines"),
        (0, why) => {
            format!("no machine matches {selection}{others}; see sidebike machines; {why}")
        }
        (_, why) => format!("nothing was run: {why}{others}"),
    })
}

/// Shows which machines would run it.
pub fn show_matching(matching: &DryRun, waits: bool, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print_json(matching);
    }
    let has_steps = !matching.plan.is_empty() || !matching.spared.is_empty();
    let mut table = match has_steps {
        true => Table::new(&["LABEL", "INSTANCE", "STEP"]),
        false => Table::new(&["LABEL", "INSTANCE"]),
    };
    let mut add = |machine: &Target, step: String| {
        let mut row = vec![Cell::of(&machine.label), Cell::of(&machine.instance)];
        row.extend(has_steps.then(|| Cell::of(step)));
        table.add(row);
    };
    for (n, machine) in (0..).zip(&matching.machines) {
        let steps_before = matching.plan.iter().filter(|started| **started <= n);
        add(machine, (steps_before.count() + 1).to_string());
    }
    let others = match matching.ok {
        true => "spared",
        false => "refused",
    };
    for machine in &matching.spared {
        add(machine, others.into());
    }
    let stdout = io::stdout();
    table.print(&mut stdout.lock(), &stdout)?;
    print_message(&verdict(matching, waits));
    Ok(())
}

/// What a dry run has shown: the numbers, the steps, and why it would be refused.
fn verdict(matching: &DryRun, waits: bool) -> String {
    let others = not_online(matching);
    let mut text = match matching.matched {
        1 => format!("1 machine matches{others}\n"),
        n => format!("{n} machines match{others}\n"),
    };
    let targets = matching.machines.len();
    if !matching.ok {
        let why = sanitize(&with_flags(&matching.msg));
        return text + &format!("it would be refused: {why}\n");
    }
    if waits {
        text.push_str(&format!("{}\n", sanitize(&with_flags(&matching.msg))));
    }
    if !matching.spared.is_empty() {
        let spared = matching.spared.len();
        text.push_str(&format!(
            "it would run on {targets} of them and spare {spared}; the task's id decides which, so another run chooses others\n"
        ));
    }
    if !matching.plan.is_empty() {
        let plan: Vec<String> = matching.plan.iter().map(u32::to_string).collect();
        text.push_str(&format!(
            "when each step is done, so many of {targets} have been started: {}\n",
            plan.join(", ")
        ));
    }
    if let Some(most) = matching.concurrency {
        text.push_str(&format!("at most {most} run it at the same time\n"));
    }
    text
}

/// A hint when the pattern is the label of a machine and matches others too: who types `web-1` may not mean `web-10`.
fn matches_more_than_named(pattern: &str, matching: &DryRun) -> Option<String> {
    let (named, others): (Vec<_>, Vec<_>) = matching
        .machines
        .iter()
        .map(|machine| &*machine.label)
        .partition(|label| *label == pattern);
    if named.is_empty() || others.is_empty() {
        return None;
    }
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    let mut exact = String::new();
    for c in pattern.chars() {
        exact.push_str(if is_plain(c) { "" } else { "\\" });
        exact.push(c);
    }
    let others = label_list(others.into_iter());
    Some(format!(
        "sidebike: {:?} is the label of a machine, and as a pattern it also matches: {}; only that one: -m '^{}$'\n",
        sanitize(pattern),
        truncate(&others, MAX_OTHERS_COLUMNS),
        sanitize(&exact)
    ))
}

/// Asks whether to run on that many machines.
pub fn confirm(matching: &DryRun) -> Result<bool, Failure> {
    let number = matching.machines.len();
    let words = match matching.spared.is_empty() {
        true => {
            let labels = matching.machines.iter().map(|machine| &*machine.label);
            counted(number, &label_list(labels))
        }
        // Which ones is decided when it is submitted.
        false => format!(
            "{number} of {} machines, chosen at random",
            matching.matched
        ),
    };
    let Some(mut person) = Prompt::open() else {
        return Err(Failure::Usage(format!(
            "it would run on {words}: say --yes, or --yes-above {number}"
        )));
    };
    let answer = person.ask(&format!("Run on {words}? [y/N] "));
    Ok(matches!(&*answer, "y" | "yes"))
}

/// How many matching machines cannot take work now, as a text.
fn not_online(matching: &DryRun) -> String {
    let states = [
        (matching.offline, MachineState::Offline),
        (matching.draining, MachineState::Draining),
    ];
    let some = states.into_iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = some
        .map(|(count, state)| match count {
            1 => format!("1 matches but is {}", state.word()),
            n => format!("{n} match but are {}", state.word()),
        })
        .collect();
    match words.is_empty() {
        true => String::new(),
        false => format!(" ({})", words.join(", ")),
    }
}

/// `any of 3: web-1, web-2, web-3`.
fn any_in_words(matching: &DryRun) -> String {
    let names = label_list(matching.machines.iter().map(|machine| &*machine.label));
    format!("any of {}: {}", matching.matched, cut(&names))
}

/// `3 machines: web-1, web-2, web-3 (2 spared)`.
pub fn targets_in_words(task: &Task) -> String {
    let names = label_list(task.result.iter().map(|e| &*e.machine_label));
    let spared = match task.spared {
        0 => String::new(),
        spared => format!(" ({spared} spared)"),
    };
    match task.matched {
        0 => "the machines that come later".into(),
        _ => counted(task.result.len(), &names) + &spared,
    }
}

/// `3 machines: web-1, web-2, web-3`.
fn counted(number: usize, names: &str) -> String {
    match number {
        1 => format!("1 machine: {}", cut(names)),
        n => format!("{n} machines: {}", cut(names)),
    }
}

/// A list of names, cut to the width of the terminal.
fn cut(names: &str) -> String {
    let width = terminal::width(&io::stderr()).unwrap_or(80);
    truncate(names, width.saturating_sub(20).max(20))
}
