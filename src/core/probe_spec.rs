//! Checks the probes of a posted task: part of `spec.rs`, whose head says how.

use super::TextLimits;
use super::detail_spec::check_line_or_argv;
use super::probe_data::CheckedProbe;
use super::selector::Selector;
use super::spec::{check_count, check_text, shown};
use crate::wire::duration::TimeSpan;
use crate::wire::probe::{HttpProbe, Probe, ProbeOn};
use crate::wire::strict_object::Posted;
use crate::wire::task::{Mode, PostedTask};
use std::collections::BTreeSet;

/// The most probes of a task, in number.
pub const MAX_PROBES: usize = 8;
/// The longest name of a probe, in bytes.
pub const MAX_PROBE_NAME_BYTES: usize = 64;
/// The shortest time-out of a run.
pub const MIN_PROBE_TIMEOUT: TimeSpan = TimeSpan::from_millis(100);
/// The longest texts of a probe in JSON, in bytes: what it runs is sent with each run.
pub const MAX_PROBE_BYTES: usize = 8 << 10;
/// The shortest and the longest time between two runs of a probe.
pub const MIN_PROBE_INTERVAL: TimeSpan = TimeSpan::from_secs(1);
/// See [`MIN_PROBE_INTERVAL`].
pub const MAX_PROBE_INTERVAL: TimeSpan = TimeSpan::from_secs(3_600);
/// The longest time-out of a run.
pub const MAX_PROBE_TIMEOUT: TimeSpan = TimeSpan::from_secs(60);
/// The most failures in a row that may be allowed.
pub const MAX_PROBE_FAILURES: u32 = 100;
/// The longest time until the first run, and to pass again.
pub const MAX_PROBE_DELAY: TimeSpan = TimeSpan::from_secs(24 * 3_600);

pub(super) fn checked_probes(
    posted: &mut PostedTask,
    mode: Mode,
    limits: &TextLimits,
) -> Result<Box<[CheckedProbe]>, String> {
    let probes = posted.probes.take().unwrap_or_default();
    check_count("probes", probes.len(), MAX_PROBES)?;
    let mut names = BTreeSet::new();
    let checked = probes.into_iter().enumerate().map(|(n, Posted(probe))| {
        let field = format!("probes[{n}]");
        check_probe(&field, &probe, mode)?;
        if !names.insert(probe.name.clone()) {
            return Err(format!(
                "{field}.name: another probe has the name {:?}, each needs its own",
                probe.name
            ));
        }
        let on = match probe.on() {
            ProbeOn::Targets => None,
            ProbeOn::Machine(pattern) => {
                let field = format!("{field}.on.machinePattern");
                Some(Selector::checked_pattern(&field, pattern, limits)?)
            }
        };
        Ok(CheckedProbe { posted: probe, on })
    });
    checked.collect()
}

fn check_probe(field: &str, probe: &Probe, mode: Mode) -> Result<(), String> {
    let name = format!("{field}.name");
    check_text(&name, &probe.name, MAX_PROBE_NAME_BYTES, "")?;
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !probe.name.chars().all(is_word) {
        return Err(format!(
            "{name}: must be a word of letters, digits, \"-\", \"_\" and \".\", got {}",
            shown(&probe.name)
        ));
    }
    match &probe.http {
        Some(_) if probe.command.is_some() || probe.argv.is_some() => {
            return Err(format!(
                "{field}: has http and command or argv, give one of them"
            ));
        }
        Some(http) => check_http(field, http)?,
        None if probe.command.is_none() && probe.argv.is_none() => {
            return Err(format!(
                "{field}: needs command (a shell line), argv (a program and its arguments) or http (such as {{\"url\": \"http://shop/health\"}})"
            ));
        }
        None => check_line_or_argv(field, "command", &probe.command, "argv", &probe.argv)?,
    }
    let bytes = probe.json_bytes();
    if bytes > MAX_PROBE_BYTES {
        return Err(format!(
            "{field}: must have {MAX_PROBE_BYTES} bytes of texts in JSON at most, got {bytes}; put a longer command into a file on the machine"
        ));
    }
    // The fault may be between the service and its targets: whoever asks has to be chosen.
    if probe.http.is_some() && probe.on.is_none() {
        return Err(format!(
            "{field}.on: must say where http is asked from: {{\"machinePattern\": \"^probe-\"}} for a machine that is no target, or \"targets\""
        ));
    }
    if probe.is_before() && mode == Mode::Any && *probe.on() == ProbeOn::Targets {
        return Err(format!(
            "{field}.before: does not go with mode \"any\" on \"targets\", nobody knows before which machine runs it"
        ));
    }
    let times = [
        (
            "interval",
            probe.interval,
            MIN_PROBE_INTERVAL,
            MAX_PROBE_INTERVAL,
        ),
        (
            "timeout",
            probe.timeout,
            MIN_PROBE_TIMEOUT,
            MAX_PROBE_TIMEOUT,
        ),
        ("delay", probe.delay, TimeSpan::default(), MAX_PROBE_DELAY),
        ("after", probe.after, TimeSpan::default(), MAX_PROBE_DELAY),
    ];
    for (part, time, least, most) in times {
        if time.is_some_and(|time| time < least || time > most) {
            return Err(format!("{field}.{part}: must be from {least} to {most}"));
        }
    }
    if !(1..=MAX_PROBE_FAILURES).contains(&probe.failures()) {
        return Err(format!(
            "{field}.failures: must be from 1 to {MAX_PROBE_FAILURES}, got {}",
            probe.failures()
        ));
    }
    Ok(())
}

fn check_http(field: &str, http: &HttpProbe) -> Result<(), String> {
    let mut schemes = ["http://", "https://"].into_iter();
    let rest = schemes.find_map(|scheme| http.url.strip_prefix(scheme));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next());
    let is_good = host.is_some_and(|host| !host.is_empty())
        && !http.url.contains(|c: char| c.is_control() || c == ' ');
    if !is_good {
        return Err(format!(
            "{field}.http.url: must be a URL such as \"http://shop/health\", got {}",
            shown(&http.url)
        ));
    }
    match &http.contains {
        Some(text) if text.is_empty() => Err(format!(
            "{field}.http.contains: must not be empty; leave it out to take any text"
        )),
        _ => Ok(()),
    }
}
