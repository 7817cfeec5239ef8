//! `sidebike show`.

use super::command::{CommandResult, ConnectionArgs, print_json};
use super::outcome::{
    advice, machine_name, run_time, short_duration, state_colour, task_state_colour, why,
};
use super::selection::{Selection, short_instance};
use super::table::{Cell, Table};
use super::task_reference::TaskArg;
use super::terminal::{Colour, OutputStyle, sanitize, sanitize_output};
use super::transfer::in_units;
use super::{rollout, undos};
use crate::wire::duration::Timeout;
use crate::wire::notify::{AnsweredNotification, NotificationState};
use crate::wire::output_line::last_state;
use crate::wire::probe::{AnsweredProbe, ProbeState};
use crate::wire::rollout::{Order, Pause, Rollout};
use crate::wire::task::{DEFAULT_TIMEOUT, Execution, ExecutionState, Task};
use crate::wire::undo::UndoCounts;
use std::io::{self, Write};

/// How many of the last lines of output are shown where a command failed.
const LAST_LINES: usize = 5;
/// For how many machines they are shown.
const MAX_EXPLAINED: usize = 5;

const EXAMPLES: &str = "\
Examples:
  sidebike show 018f6a2b    the result on each machine, and the reason where it failed
  sidebike show my-task     the newest of that name
  sidebike show 018f6a2b --json | jq '.result[] | select(.status == 2)'";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    task: TaskArg,
    /// Print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Shows a task.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let task = args.task.find(&client)?;
    if args.json {
        print_json(&task)?;
    } else {
        print(&task, &mut io::stdout().lock())?;
    }
    Ok(0)
}

fn print(task: &Task, out: &mut dyn Write) -> io::Result<()> {
    let stdout = io::stdout();
    let style = OutputStyle::of(&stdout);
    let detail = &task.detail.detail;
    let state = match task_state_colour(task.state) {
        Some(colour) => style.paint(colour, task.state.word()),
        None => task.state.word().to_owned(),
    };
    let argv = || detail.argv.as_ref().map(|argv| format!("{argv:?}"));
    let command = detail.command.clone().or_else(argv);
    let command = command
        .or_else(|| detail.script.clone())
        .unwrap_or_default();
    let mut fields = vec![
        ("task", sanitize(&task.id)),
        ("name", sanitize(&task.name)),
        ("state", state),
        (
            "machines",
            format!("{} matching {}", task.matched, Selection::of(task)),
        ),
        (
            "command",
            command
                .lines()
                .map(sanitize)
                .collect::<Vec<_>>()
                .join("\n           "),
        ),
    ];
    // One that only lays files down has none.
    fields.retain(|(name, value)| *name != "command" || !value.is_empty());
    fields.extend(files_of(task));
    if let Some(workspace) = &detail.workspace {
        fields.push(("workspace", sanitize(workspace)));
    }
    match detail.timeout {
        None | Some(Timeout::After(DEFAULT_TIMEOUT)) => {}
        Some(Timeout::After(duration)) => fields.push(("time-out", duration.to_string())),
        Some(Timeout::Never) => fields.push(("time-out", "none".into())),
    }
    if let Some(env) = detail.env.as_ref().filter(|env| !env.is_empty()) {
        let names: Vec<String> = env.keys().map(|name| sanitize(name)).collect();
        fields.push(("env", names.join(", ")));
    }
    fields.push(("created", task.created_at.clone()));
    if let Some(of) = &task.rerun_of {
        fields.insert(2, ("rerun of", sanitize(of)));
    }
    if let Some(at) = &task.start_at {
        fields.push(("start at", at.clone()));
    }
    for child in &task.children {
        let text = format!("{} when it has {}", sanitize(&child.task), child.on.word());
        fields.push(("child", text));
    }
    if let Some(parent) = &task.parent {
        fields.push(("parent", sanitize(parent)));
    }
    for after in &task.after {
        let group = after.group.as_ref().map(|group| format!("group {group}"));
        let name = after.task.clone().or(group);
        let met = match after.met {
            None => "",
            Some(true) => " (it has)",
            Some(false) => " (it has not)",
        };
        let on = after.on.word();
        let on = match after.per_machine {
            true => format!("{on} on each machine"),
            false => on.to_owned(),
        };
        let text = format!("{} {on}{met}", sanitize(&name.unwrap_or_default()));
        fields.push(("after", text));
    }
    if !task.msg.is_empty() {
        fields.push(("note", sanitize(&task.msg)));
    }
    if let Some(finished) = &task.finished_at {
        fields.push(("finished", finished.clone()));
    }
    fields.extend(pace_of(task));
    fields.extend(
        task.probes
            .iter()
            .map(|probe| ("probe", in_words(probe, &style))),
    );
    if task.counts.total() > 0 {
        fields.push(("counts", task.counts.in_words()));
    }
    fields.extend(undos_of(task, &style));
    let told = task.notifications.iter();
    fields.extend(told.map(|it| ("notified", told_in_words(it, &style))));
    if let Some(advice) = advice(task) {
        fields.push(("hint", advice.into()));
    }
    for (name, value) in fields {
        writeln!(out, "{name:9}  {value}")?;
    }
    if task.result.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    table_of(task).print(out, &stdout)?;
    explain(task, out, &style)?;
    explain_undos(task, out, &style)
}

/// `p99: failed, 3 failed in a row: exit code 1`.
fn in_words(probe: &AnsweredProbe, style: &OutputStyle) -> String {
    let state = match probe.state {
        state @ (ProbeState::Failed | ProbeState::NotRecovered) => {
            style.paint(Colour::Red, state.word())
        }
        state => state.word().into(),
    };
    let mut words = format!("{}: {state}", sanitize(&probe.posted.name));
    if probe.in_a_row > 0 {
        words.push_str(&format!(", {} failed in a row", probe.in_a_row));
    }
    if !probe.msg.is_empty() {
        words.push_str(&format!(": {}", sanitize(&probe.msg)));
    }
    words
}

/// The files that it lays down, and those that were handed back.
fn files_of(task: &Task) -> Vec<(&'static str, String)> {
    let mut fields = Vec::new();
    for file in &task.files {
        let name = file.name.as_deref().unwrap_or_default();
        let place = match &file.path {
            Some(path) => sanitize(path),
            None => format!("$SIDEBIKE_FILES/{}", sanitize(name)),
        };
        let unpacked = if file.unpack.is_some() {
            ", unpacked"
        } else {
            ""
        };
        fields.push((
            "file",
            format!("{place} ({}{unpacked})", in_units(file.size)),
        ));
    }
    let fetch = task.fetch.iter();
    fields.extend(fetch.map(|fetch| ("fetch", sanitize(&fetch.path))));
    let back = task.result.iter().flat_map(|e| &e.attempt.files);
    let (count, bytes) = back.fold((0, 0), |(count, bytes), file| {
        (count + 1, bytes + file.size)
    });
    if count > 0 {
        let id = sanitize(&task.id);
        fields.push((
            "back",
            format!("{count} files, {}: sidebike pull {id}", in_units(bytes)),
        ));
    }
    fields
}

/// `ended, https://hooks.example/x: pending, 2 tries, next 2026-01-01T00:00:00Z: it answers 503`.
fn told_in_words(told: &AnsweredNotification, style: &OutputStyle) -> String {
    let (event, url) = (told.event.word(), sanitize(&told.url));
    let state = match told.state {
        NotificationState::Dead => style.paint(Colour::Red, "given up"),
        state => state.word().to_owned(),
    };
    let mut words = format!("{event}, {url}: {state}");
    if told.tries > 1 || told.last_error.is_some() {
        let many = if told.tries == 1 { "try" } else { "tries" };
        words.push_str(&format!(", {} {many}", told.tries));
    }
    if let Some(next) = told.next_try.as_ref().filter(|_| told.tries > 0) {
        words.push_str(&format!(", next {}", sanitize(next)));
    }
    if let Some(why) = &told.last_error {
        words.push_str(&format!(": {}", sanitize(why)));
    }
    words
}

/// What takes its effect back, and how that went.
fn undos_of(task: &Task, style: &OutputStyle) -> Vec<(&'static str, String)> {
    let Some(undo) = &task.detail.detail.undo else {
        return Vec::new();
    };
    let line = |line: &Option<String>, argv: &Option<Vec<String>>| {
        let line = line.as_deref().map(sanitize);
        line.or_else(|| argv.as_ref().map(|argv| sanitize(&format!("{argv:?}"))))
    };
    let undos = task.undos.map(UndoCounts::in_words);
    let undos = undos.filter(|text| !text.is_empty());
    let fields = [
        ("undo", line(&undo.command, &undo.argv)),
        ("check", line(&undo.check, &undo.check_argv)),
        ("lock", undo.lock.as_deref().map(sanitize)),
        (
            "undos",
            undos.map(|text| match undos::is_unclean(task) {
                true => style.paint(Colour::Red, &format!("{text} (NOT UNDONE)")),
                false => text,
            }),
        ),
    ];
    let given = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    given.collect()
}

/// How many machines it was for, how far its rollout has come, and what stopped it.
fn pace_of(task: &Task) -> Vec<(&'static str, String)> {
    let mut fields = Vec::new();
    if let Some(expect) = &task.expect {
        fields.push(("expected", expect.to_string()));
    }
    if task.spared > 0 {
        let most = task.max_targets.map(|most| format!(" (at most {most})"));
        let spared = format!("{}{}", task.spared, most.unwrap_or_default());
        fields.push(("spared", spared));
    }
    if let Some(keep_alive) = &task.keep_alive {
        let pool = keep_alive.pool.as_ref();
        let pool = pool.map(|pool| format!(" of those matching {:?}", sanitize(pool)));
        let pool = pool.unwrap_or_default();
        fields.push(("untouched", format!("at least {}{pool}", keep_alive.keep)));
    }
    let detail = &task.detail.detail;
    let rollout = task.rollout.as_ref();
    let pace = rollout.map(|rollout| pace_in_words(rollout, detail.stops_running(Some(rollout))));
    if let Some(pace) = pace.filter(|pace| !pace.is_empty()) {
        fields.push(("pace", pace));
    }
    if let Some(state) = rollout::state_of(task) {
        let waits = rollout::waits_for(task).map(|what| format!("; {what}"));
        let standing = rollout::standing(task, state);
        let phase = state.state.word();
        let text = format!("{phase}: {standing}{}", waits.unwrap_or_default());
        fields.push(("rollout", text));
        if state.plan.len() > 1 {
            let plan = state.plan.iter().map(u32::to_string);
            fields.push(("steps", plan.collect::<Vec<_>>().join(", ")));
        }
    }
    if let Some((by, why)) = task.stopped_by.as_ref().zip(rollout::stopped(task)) {
        let why = why.strip_prefix("stopped ").unwrap_or(&why);
        fields.push(("stopped", format!("{why}, at {}", sanitize(&by.at))));
    }
    fields
}

/// `10 at once; 30s after each step; 5 % may fail`; `cancels` if a stop cancels what runs.
fn pace_in_words(rollout: &Rollout, cancels: bool) -> String {
    let canary = rollout.canary.as_ref();
    let pause = rollout.pause.map(|pause| match pause {
        Pause::For(duration) => format!("{duration} after each step"),
        Pause::Approve => "an approval after each step".into(),
    });
    let order = rollout.order.filter(|order| *order != Order::default());
    let words = [
        rollout.concurrency.map(|share| format!("{share} at once")),
        canary.map(|pattern| format!("first {:?}", sanitize(pattern))),
        pause,
        rollout
            .max_failures
            .map(|share| format!("{share} may fail")),
        order.map(|order| format!("order {}", order.word())),
        cancels.then(|| "what runs is canceled when it is stopped".into()),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn table_of(task: &Task) -> Table {
    let has_undo = task.detail.detail.undo.is_some();
    let mut columns = vec!["MACHINE", "STATE", "EXIT", "TIME", "TRY", "INSTANCE", "WHY"];
    if has_undo {
        columns.insert(2, "UNDO");
    }
    let mut table = Table::new(&columns);
    let mut names = task.machine_names();
    for execution in &task.result {
        let attempt = &execution.attempt;
        let exit = match (attempt.exit_code, &attempt.signal) {
            (Some(code), _) => code.to_string(),
            (None, Some(signal)) => signal.clone(),
            (None, None) => String::new(),
        };
        let instance = &execution.instance;
        let mut row = vec![
            Cell::of(machine_name(&mut names, execution)),
            Cell::painted(execution.state.word(), state_colour(execution.state)),
            Cell::of(exit),
            Cell::of(run_time(execution).map(short_duration).unwrap_or_default()),
            Cell::of(attempt.attempt.to_string()),
            Cell::of(short_instance(instance)),
            Cell::of(why(execution)),
        ];
        if has_undo {
            let state = attempt.undo.as_ref().map(|undo| undo.state);
            let word = state.map(|state| state.word()).unwrap_or_default();
            row.insert(2, Cell::painted(word, state.and_then(undos::colour)));
        }
        table.add(row);
    }
    table
}

/// Prints the last lines of output where a command failed; they usually say why.
fn explain(task: &Task, out: &mut dyn Write, style: &OutputStyle) -> io::Result<()> {
    let wrong = |e: &&Execution| {
        e.state.is_terminal()
            && e.state != ExecutionState::Succeeded
            && !e.attempt.output.is_empty()
    };
    let mut names = task.machine_names();
    for execution in task.result.iter().filter(wrong).take(MAX_EXPLAINED) {
        let output = &execution.attempt.output;
        let skipped = output.len().saturating_sub(LAST_LINES);
        let more = match skipped {
            0 => String::new(),
            n => format!(
                ", {n} lines before: sidebike logs {} -m {}",
                task.id, execution.instance
            ),
        };
        let name = machine_name(&mut names, execution);
        writeln!(out, "\n── {name}{more}")?;
        for line in &output[skipped..] {
            let line = if style.is_terminal {
                &sanitize_output(last_state(line))
            } else {
                line
            };
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// Says what is not undone and why, with the last lines that undo and check wrote, and what is overdue.
fn explain_undos(task: &Task, out: &mut dyn Write, style: &OutputStyle) -> io::Result<()> {
    let late = undos::overdue(task);
    let debts = undos::not_undone(task, style);
    if !late.is_empty() || !debts.is_empty() {
        writeln!(out)?;
    }
    for line in late {
        writeln!(out, "{}", style.paint(Colour::Yellow, &line))?;
    }
    for (n, (execution, line)) in debts.into_iter().enumerate() {
        writeln!(out, "{line}")?;
        let undo = undos::debt(execution);
        let output = undo.map(|undo| &*undo.output).unwrap_or_default();
        let lines: Vec<&str> = output.lines().collect();
        let from = match n < MAX_EXPLAINED {
            true => lines.len().saturating_sub(LAST_LINES),
            false => lines.len(),
        };
        for line in &lines[from..] {
            writeln!(out, "    {}", sanitize_output(last_state(line)))?;
        }
    }
    Ok(())
}
