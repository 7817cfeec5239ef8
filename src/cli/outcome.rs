//! How a task ended: its exit code, colours and texts.

use super::terminal::{Colour, OutputStyle, sanitize};
use super::{rollout, undos};
use crate::wire::duration::TimeSpan;
use crate::wire::machine_names::MachineNames;
use crate::wire::signal;
use crate::wire::task::{Execution, ExecutionState, Task, TaskState};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Exit code: no machine matched, or not as many as were wanted.
pub const NO_MACHINE: u8 = 3;
/// Exit code of a task of which something may be left on a machine, above all others: an undo failed or is owed.
pub const NOT_UNDONE: u8 = 123;
/// Exit code of an execution that timed out, the same as that of `timeout`.
pub const TIMED_OUT: u8 = 124;
/// Exit code of an execution that was lost, skipped, or not started in time.
pub const UNKNOWN: u8 = 125;
/// Exit code of an execution that could not be started, the same as that of a shell.
const NOT_STARTED: u8 = 126;
/// Exit code of an execution that was canceled, and of `run` when it was interrupted.
pub const CANCELED: u8 = 130;
/// Added to the number of the signal that ended a command, as in a shell.
const SIGNALED: u8 = 128;
/// The most machines named in a summary; the others are only counted.
const MAX_NAMED: usize = 10;

/// The exit code of a task: the highest of its executions, unless something may be left on a machine.
pub fn exit_code(task: &Task) -> u8 {
    if undos::is_unclean(task) {
        return NOT_UNDONE;
    }
    if task.result.iter().all(matched_no_machine) {
        // Also where a later begin was refused: nothing was run.
        return match task.state {
            TaskState::Canceled => CANCELED,
            TaskState::Skipped => UNKNOWN,
            _ => NO_MACHINE,
        };
    }
    task.result.iter().map(code_of).max().unwrap_or(NO_MACHINE)
}

fn matched_no_machine(execution: &Execution) -> bool {
    execution.state == ExecutionState::Expired && execution.instance.is_empty()
}

fn code_of(execution: &Execution) -> u8 {
    let attempt = &execution.attempt;
    match execution.state {
        ExecutionState::Succeeded => 0,
        ExecutionState::Failed => match (attempt.exit_code, &attempt.signal) {
            (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX).max(1),
            (None, Some(name)) => SIGNALED + signal::number(name).unwrap_or(0),
            (None, None) => NOT_STARTED,
        },
        ExecutionState::TimedOut => TIMED_OUT,
        ExecutionState::Canceled => CANCELED,
        ExecutionState::Expired | ExecutionState::Lost | ExecutionState::Skipped => UNKNOWN,
        ExecutionState::Held
        | ExecutionState::Queued
        | ExecutionState::Delivered
        | ExecutionState::Running => UNKNOWN,
    }
}

/// The colour of a state of an execution.
pub fn state_colour(state: ExecutionState) -> Option<Colour> {
    match state {
        ExecutionState::Held | ExecutionState::Queued | ExecutionState::Delivered => None,
        ExecutionState::Running => Some(Colour::Blue),
        ExecutionState::Succeeded => Some(Colour::Green),
        ExecutionState::Failed | ExecutionState::TimedOut | ExecutionState::Lost => {
            Some(Colour::Red)
        }
        ExecutionState::Canceled | ExecutionState::Expired | ExecutionState::Skipped => {
            Some(Colour::Yellow)
        }
    }
}

/// The colour of a state of a task.
pub fn task_state_colour(state: TaskState) -> Option<Colour> {
    match state {
        TaskState::Scheduled | TaskState::Blocked | TaskState::Waiting => None,
        TaskState::Running => Some(Colour::Blue),
        TaskState::Succeeded => Some(Colour::Green),
        TaskState::Partial | TaskState::Failed => Some(Colour::Red),
        TaskState::Canceled | TaskState::Expired | TaskState::Skipped => Some(Colour::Yellow),
    }
}

/// The state of an execution, and the reason if it did not succeed.
pub fn reason(execution: &Execution) -> String {
    match (execution.state, why(execution)) {
        (state, why) if why.is_empty() => state.word().into(),
        (ExecutionState::TimedOut, why) => why,
        (state, why) => format!("{}: {why}", state.word()),
    }
}

/// Why an execution did not succeed.
pub fn why(execution: &Execution) -> String {
    let msg = sanitize(&execution.attempt.msg);
    match execution.state {
        ExecutionState::TimedOut if !msg.is_empty() => format!("{msg}, and was killed"),
        _ => msg,
    }
}

/// What to do about commands that timed out, if there are any.
pub fn advice(task: &Task) -> Option<&'static str> {
    let advice = "more time: sidebike run --timeout 1h (180s by default, -1 for ever)";
    (task.counts.timed_out > 0).then_some(advice)
}

/// The summary of a task: counts, duration, and where and why it failed.
pub fn summary(task: &Task, style: &OutputStyle) -> String {
    let took = match (
        parse_time(&task.created_at),
        task.finished_at.as_deref().and_then(parse_time),
    ) {
        (Some(created), Some(finished)) => finished.duration_since(created).unwrap_or_default(),
        _ => Duration::ZERO,
    };
    let counts = match task.counts.in_words() {
        counts if counts.is_empty() => sanitize(&task.msg),
        counts => counts,
    };
    let colour = task_state_colour(task.state).unwrap_or(Colour::Faint);
    let mut text = format!(
        "{} in {} (task {})\n",
        style.paint(colour, &counts),
        short_duration(took),
        sanitize(&task.id)
    );
    if let Some(stopped) = rollout::stopped(task) {
        text.push_str(&format!("  {stopped}\n"));
    }
    // What a stop has skipped is counted above, and has no reason of its own.
    let is_told = |state| state == ExecutionState::Skipped && task.stopped_by.is_some();
    let wrong = |e: &&Execution| e.state != ExecutionState::Succeeded && !is_told(e.state);
    let mut names = task.machine_names();
    for execution in task.result.iter().filter(wrong).take(MAX_NAMED) {
        text.push_str(&format!(
            "  {}  {}\n",
            machine_name(&mut names, execution),
            reason(execution)
        ));
    }
    let more = task
        .result
        .iter()
        .filter(wrong)
        .count()
        .saturating_sub(MAX_NAMED);
    if more > 0 {
        text.push_str(&format!(
            "  … and {more} more; see sidebike show {}\n",
            task.id
        ));
    }
    if let Some(advice) = advice(task) {
        text.push_str(&format!("  {advice}\n"));
    }
    text
}

/// The name of an execution's machine among those of its task.
pub fn machine_name(names: &mut MachineNames, execution: &Execution) -> String {
    shown(names.name(&execution.machine_label, &execution.instance))
}

fn shown(label: &str) -> String {
    match label {
        "" => "(no machine yet)".into(),
        label => sanitize(label),
    }
}

/// Whether an execution is on the machine with this instance or label.
pub fn is_on(execution: &Execution, machine: &str) -> bool {
    execution.machine_label == machine || execution.instance == machine
}

/// The names of the machines of some executions of a task, each once.
pub fn name_list<'a>(task: &Task, executions: impl Iterator<Item = &'a Execution>) -> String {
    let mut names = task.machine_names();
    let named = executions.map(|e| names.name(&e.machine_label, &e.instance).to_owned());
    let named: Vec<String> = named.collect();
    label_list(named.iter().map(String::as_str))
}

/// A list of labels, each once, with the number of machines that carry it.
pub fn label_list<'a>(labels: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for label in labels {
        *counts.entry(label).or_default() += 1;
    }
    let names = counts.into_iter().map(|(label, count)| match count {
        1 => shown(label),
        count => format!("{} ×{count}", shown(label)),
    });
    names.collect::<Vec<_>>().join(", ")
}

/// How long ago this time was, by this machine's clock.
pub fn age(time: &str) -> Option<Duration> {
    let since = SystemTime::now().duration_since(parse_time(time)?);
    Some(since.unwrap_or_default())
}

fn parse_time(time: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(time).ok()
}

/// `350ms`, `4.2s`, `3m`, `5h`, `2d`.
pub fn short_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..=9 => format!("{:.1}s", duration.as_secs_f64()),
        10..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long an execution has run.
pub fn run_time(execution: &Execution) -> Option<Duration> {
    let attempt = &execution.attempt;
    let ended = attempt
        .duration_ms
        .map(TimeSpan::from_millis)
        .map(Duration::from);
    let running = || age(attempt.started_at.as_deref()?);
    ended.or_else(|| (execution.state == ExecutionState::Running).then(running)?)
}
