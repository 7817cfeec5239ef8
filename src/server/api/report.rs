//! `GET /api/v1/task/{id}/report`: what was asked, who was hit, what happened when, what is left. As JSON, as text, or
//! as Markdown. To add a fact: a field of [`Report`], filled in `report_of`, shown in `lines`.

use super::call::{Call, Handled};
use super::parse::{looked_at_task, parameter};
use crate::core::Task;
use crate::rules::one_of;
use crate::server::answers::text::{plain, push_visible};
use crate::server::answers::{ok, refused};
use crate::server::http::Answer;
use crate::wire::agent::Stream;
use crate::wire::counted;
use crate::wire::machine_names::MachineNames;
use crate::wire::probe::ProbeState;
use crate::wire::report::{MachineReport, Phase, ProbeReport, Report, Verdict};
use crate::wire::rollout::StoppedBy;
use crate::wire::task::{self as wire, ExecutionState, TaskState};
use crate::wire::undo::UndoState;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

/// The form of a report.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Json,
    Text,
    Markdown,
}

impl Form {
    const ALL: [Form; 3] = [Form::Json, Form::Text, Form::Markdown];

    fn word(self) -> &'static str {
        match self {
            Form::Json => "json",
            Form::Text => "text",
            Form::Markdown => "md",
        }
    }
}

/// `GET /api/v1/task/{id}/report`.
pub fn report(call: Call<'_>) -> Handled {
    let form = parameter(call.request, "format", |text| {
        one_of(&Form::ALL, Form::word, text)
    })?;
    let key = looked_at_task(&call)?;
    let task = call.server.store.show(key).map_err(refused)?;
    call.large(move || answer(&task, form.unwrap_or(Form::Json)))
}

fn answer(task: &Task, form: Form) -> Answer {
    let report = report_of(task);
    match form {
        Form::Json => ok(report),
        Form::Text | Form::Markdown => plain(200, lines(&report, form)),
    }
}

/// The report of a task as it is now.
fn report_of(task: &Task) -> Report {
    // Without output: only its hash is shown.
    let answered = task.answer(0);
    let outputs = task.outputs(None);
    let outputs = outputs.into_iter().map(|(_, output)| output);
    let machines = answered.result.iter().zip(outputs).map(|(e, output)| {
        let mut hash = Sha256::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let text = output.map(|output| output.text(stream, usize::MAX).0);
            hash.update(text.unwrap_or_default());
        }
        machine(e, &hash.finalize())
    });
    let machines: Vec<MachineReport> = machines.collect();
    let (verdict, why) = verdict(&answered, task.failed_before());
    let stopped = answered.stopped_by.as_ref();
    Report {
        task: answered.id.to_string(),
        name: answered.name.to_string(),
        state: answered.state,
        verdict,
        why,
        detail: answered.detail.detail.clone(),
        meant: meant(&answered),
        mode: answered.mode,
        matched: answered.matched,
        spared: answered.spared,
        stopped_by: stopped.map(|stopped| StoppedBy {
            kind: stopped.kind,
            name: stopped.name.as_ref().map(|name| name.to_string()),
            at: stopped.at.to_string(),
            msg: stopped.msg.to_string(),
            output: stopped.output.as_ref().map(|output| output.to_string()),
        }),
        probes: probes(&answered),
        phases: phases(&answered),
        machines,
    }
}

fn machine(e: &wire::Execution<Cow<'_, str>>, hash: &[u8]) -> MachineReport {
    let attempt = &e.attempt;
    let undo = attempt.undo.as_ref();
    // What was forgiven may still be there.
    let done = undo.filter(|undo| undo.state == UndoState::Done);
    let undone = done.and_then(|undo| undo.ended_at.as_deref());
    let text = |text: &Option<Cow<'_, str>>| text.as_ref().map(|text| text.to_string());
    let hash = hash.iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    MachineReport {
        label: e.machine_label.to_string(),
        instance: e.instance.to_string(),
        host: e.host.to_string(),
        state: e.state,
        attempt: attempt.attempt,
        exit_code: attempt.exit_code,
        signal: text(&attempt.signal),
        msg: attempt.msg.to_string(),
        started_at: text(&attempt.started_at),
        finished_at: text(&attempt.finished_at),
        duration_ms: attempt.duration_ms,
        output_hash: hash,
        undo: undo.map(|undo| undo.state),
        exposure_ms: { attempt.started_at.as_deref() }
            .zip(undone)
            .and_then(|(from, until)| between(from, until)),
    }
}

/// The milliseconds between two times of the API.
fn between(from: &str, until: &str) -> Option<u64> {
    let [from, until] = [from, until].map(|time| humantime::parse_rfc3339(time).ok());
    let span: Duration = until?.duration_since(from?).ok()?;
    u64::try_from(span.as_millis()).ok()
}

/// The first verdict that holds, and why. `failed_before` says that a probe kept it from beginning.
fn verdict(task: &wire::Task<Cow<'_, str>>, failed_before: bool) -> (Verdict, String) {
    let counts = &task.counts;
    let undos = task.undos.unwrap_or_default();
    let left = counted([
        (undos.failed, "undos failed"),
        (undos.owed, "undos are owed"),
    ]);
    if !left.is_empty() {
        return (Verdict::Dirty, left);
    }
    // An undo that was asked for runs after the end of its task.
    let undoing = undos.armed + undos.running;
    if !task.state.is_terminal() || undoing > 0 {
        let unfinished = counted([
            (counts.unfinished(), "executions have not ended"),
            (undoing, "undos have not ended"),
        ]);
        let why = match (unfinished.is_empty(), task.state) {
            (false, _) => unfinished,
            (true, TaskState::Scheduled | TaskState::Blocked) => task.msg.to_string(),
            (true, TaskState::Waiting) => "no machine has matched yet".into(),
            (true, _) => "machines may still join".into(),
        };
        return (Verdict::Unfinished, why);
    }
    if let Some(stopped) = &task.stopped_by {
        let verdict = match failed_before {
            true => Verdict::Failed,
            false => Verdict::Stopped,
        };
        return (verdict, stopped.msg.to_string());
    }
    if counts.total() == 0 && !task.msg.is_empty() {
        let verdict = match task.state {
            TaskState::Canceled | TaskState::Skipped => Verdict::Stopped,
            _ => Verdict::Failed,
        };
        return (verdict, task.msg.to_string());
    }
    if counts.canceled > 0 || task.state == TaskState::Canceled {
        return (
            Verdict::Stopped,
            format!("{} were canceled", counts.canceled),
        );
    }
    let probe = |state| task.probes.iter().find(|probe| probe.state == state);
    if let Some(probe) = probe(ProbeState::NotRecovered) {
        let why = format!(
            "probe {} did not pass again in time: {}",
            probe.posted.name, probe.msg
        );
        return (Verdict::NotRecovered, why);
    }
    if let Some(probe) = probe(ProbeState::Recovering) {
        let why = format!("probe {} has not passed again yet", probe.posted.name);
        return (Verdict::Unfinished, why);
    }
    if task.state == TaskState::Succeeded {
        let why = format!("all of {} succeeded", counts.total());
        return (Verdict::Passed, why);
    }
    let of = counts.total();
    (
        Verdict::Failed,
        format!("{} of {of} succeeded", counts.succeeded),
    )
}

fn probes(task: &wire::Task<Cow<'_, str>>) -> Vec<ProbeReport> {
    let probes = task.probes.iter().map(|probe| ProbeReport {
        name: probe.posted.name.clone(),
        state: probe.state,
        runs: probe.runs,
        failed: probe.failed,
        last_ms: probe.last_ms,
        max_ms: probe.max_ms,
        machine: probe.machine.as_ref().map(|machine| machine.to_string()),
        msg: probe.msg.to_string(),
    });
    probes.collect()
}

/// Which machines were meant, in words.
fn meant(task: &wire::Task<Cow<'_, str>>) -> String {
    let mut words = format!("label {}", task.machine_pattern);
    if let Some(exclude) = &task.exclude {
        let _ = write!(words, ", but not {exclude}");
    }
    for (name, pattern) in &task.machine_tags {
        let _ = write!(words, ", {name} {pattern}");
    }
    if let Some(hosts) = &task.hosts {
        let _ = write!(words, ", host {hosts}");
    }
    if !task.instances.is_empty() {
        let _ = write!(words, ", of {} instances", task.instances.len());
    }
    words
}

fn phases(task: &wire::Task<Cow<'_, str>>) -> Vec<Phase> {
    let attempts = || {
        let executions = task.result.iter();
        executions.flat_map(|e| {
            e.attempts
                .iter()
                .map(|past| &past.attempt)
                .chain([&e.attempt])
        })
    };
    let started = || attempts().filter_map(|attempt| attempt.started_at.as_deref());
    let ended = attempts().filter_map(|attempt| attempt.finished_at.as_deref());
    let undone = attempts().filter_map(|attempt| attempt.undo.as_ref()?.ended_at.as_deref());
    let stopped = task.stopped_by.as_ref().map(|stopped| &*stopped.at);
    // Times of the API sort as texts.
    let moments = [
        ("submitted", Some(&*task.created_at)),
        ("first command started", started().min()),
        ("last command started", started().max()),
        ("stopped", stopped),
        ("last command ended", ended.max()),
        ("last undo ended", undone.max()),
        ("finished", task.finished_at.as_deref()),
    ];
    let moments = moments
        .into_iter()
        .filter_map(|(what, at)| Some((what, at?)));
    let mut phases: Vec<Phase> = moments
        .map(|(what, at)| Phase {
            what: what.into(),
            at: at.into(),
        })
        .collect();
    phases.sort_by(|a, b| a.at.cmp(&b.at));
    phases
}

/// A report as text or Markdown.
fn lines(report: &Report, form: Form) -> String {
    let is_table = form == Form::Markdown;
    let heading = if is_table { "## " } else { "" };
    let clean = |text: &str| -> String {
        let mut visible = String::new();
        push_visible(&mut visible, text);
        match is_table {
            true => visible.replace('|', "\\|"),
            false => visible,
        }
    };
    let row = |cells: &[String]| match is_table {
        true => format!("| {} |\n", cells.join(" | ")),
        false => format!("{}\n", cells.join(" ")),
    };
    let mut text = format!(
        "{heading}Task {} ({}): {}\n\n{}\n",
        report.task,
        clean(&report.name),
        report.verdict.word(),
        clean(&report.why)
    );
    let command = report.detail.command.clone();
    let command = command.or(report.detail.script.clone());
    let command = command.or(report.detail.argv.as_ref().map(|argv| argv.join(" ")));
    let _ = write!(
        text,
        "\nran: {}\non: {}; {} matched, {} spared\n",
        clean(&command.unwrap_or_default()),
        clean(&report.meant),
        report.matched,
        report.spared
    );
    let _ = write!(text, "\n{heading}When\n\n");
    if is_table {
        text.push_str("| when | what |\n| --- | --- |\n");
    }
    for phase in &report.phases {
        text.push_str(&row(&[phase.at.clone(), phase.what.clone()]));
    }
    if !report.probes.is_empty() {
        let _ = write!(text, "\n{heading}Probes\n\n");
        if is_table {
            text.push_str("| probe | state | runs | failed | longest | machine |\n| --- | --- | --- | --- | --- | --- |\n");
        }
        for probe in &report.probes {
            let longest = probe.max_ms.map(Duration::from_millis);
            let longest = longest.map(|time| humantime::format_duration(time).to_string());
            text.push_str(&row(&[
                clean(&probe.name),
                probe.state.word().into(),
                probe.runs.to_string(),
                probe.failed.to_string(),
                longest.unwrap_or_else(|| "-".into()),
                clean(probe.machine.as_deref().unwrap_or("-")),
            ]));
        }
    }
    let _ = write!(text, "\n{heading}Machines\n\n");
    if is_table {
        text.push_str(
            "| machine | state | exit code | undo | exposure | output |\n| --- | --- | --- | --- | --- | --- |\n",
        );
    }
    let machines = report.machines.iter();
    let mut names = MachineNames::of(machines.map(|it| (&*it.label, &*it.instance, &*it.host)));
    for machine in &report.machines {
        let exit = machine.exit_code.map(|code| code.to_string());
        let exit = exit.or(machine.signal.clone());
        let exposure = machine.exposure_ms.map(Duration::from_millis);
        let exposure = exposure.map(|time| humantime::format_duration(time).to_string());
        text.push_str(&row(&[
            clean(names.name(&machine.label, &machine.instance)),
            machine.state.word().into(),
            exit.unwrap_or_else(|| "-".into()),
            machine.undo.map_or("-", |state| state.word()).into(),
            exposure.unwrap_or_else(|| "-".into()),
            machine.output_hash.chars().take(12).collect(),
        ]));
        if !matches!(machine.state, ExecutionState::Succeeded)
            && !machine.msg.is_empty()
            && !is_table
        {
            let _ = writeln!(text, "    {}", clean(&machine.msg));
        }
    }
    text
}
