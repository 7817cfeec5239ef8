//! Turns errors of the server and the client into messages of the command line: flags in place of the API's
//! fields, the command in place of the address of a call, and what to set if a token is needed.

use super::command::TOKEN;
use super::terminal::sanitize;
use crate::client::{CallError, Kind};

/// Fields and parameters of the API, as messages begin with them, and the flags that set them.
const FIELDS: [(&str, &str); 65] = [
    ("cron", "--cron"),
    ("every", "--every"),
    ("timeZone", "--zone"),
    ("overlap", "--overlap"),
    ("catchUp", "--catch-up"),
    ("startDeadline", "--start-deadline"),
    ("from", "--from"),
    ("until", "--until"),
    ("times", "--times"),
    ("pauseAfterFailures", "--pause-after-failures"),
    ("keep", "--keep"),
    ("machinePattern", "-m"),
    ("machine", "-m"),
    ("exclude", "--exclude"),
    ("machineTags", "--where"),
    ("tag", "--where"),
    ("hosts", "--host"),
    ("instances", "--instance"),
    ("expect", "--expect"),
    ("maxTargets", "--max-targets"),
    ("keepAlive", "--keep-alive"),
    ("rollout.concurrency", "--concurrency"),
    ("rollout.steps", "--steps"),
    ("rollout.pause", "--pause"),
    ("rollout.maxFailures", "--max-failures"),
    ("rollout.stopRunning", "--stop-running"),
    ("rollout.order", "--order"),
    ("rollout.canary", "--canary"),
    ("notify", "--notify"),
    ("name", "--name"),
    ("group", "--group"),
    ("tags", "--tag"),
    ("description", "--description"),
    ("detail.command", "COMMAND"),
    ("detail.argv", "COMMAND"),
    ("detail.env", "--env"),
    ("detail.stdin", "--stdin"),
    ("detail.stdinBase64", "--stdin"),
    ("detail.script", "--script"),
    ("detail.scriptArgs", "ARG"),
    ("detail.user", "--user"),
    ("detail.mergeOutput", "--merge"),
    ("detail.timeout", "--timeout"),
    ("detail.workspace", "--workspace"),
    ("detail.undo.command", "--undo"),
    ("detail.undo.check", "--undo-check"),
    ("detail.undo.timeout", "--undo-timeout"),
    ("detail.undo.patience", "--undo-patience"),
    ("detail.undo.deadman", "--deadman"),
    ("detail.undo.lock", "--lock"),
    ("files", "--file"),
    ("filesTimeout", "--files-timeout"),
    ("fetch", "--fetch"),
    ("update.probation", "--probation"),
    ("reason", "REASON"),
    ("priority", "--priority"),
    ("limits", "--limit"),
    ("spread", "--spread"),
    ("perMinute", "--per-minute"),
    ("running", "--running"),
    ("uniqueKey", "--unique"),
    ("onDuplicate", "--on-duplicate"),
    ("replaceRunning", "--replace-running"),
    ("for", "--for"),
    ("after", "--after"),
];
/// The same for the fields of an entry of a list, without its number, where a flag of its own sets them.
const ENTRIES: [(&str, &str); 10] = [
    ("files.path", "--file"),
    ("files.mode", "--mode"),
    ("files.unpack", "--unpack"),
    ("files.strip", "--strip"),
    ("files.ifExists", "--if-exists"),
    ("files.inPlace", "--in-place"),
    ("fetch.path", "--fetch"),
    ("after.task", "--after"),
    ("after.group", "--after-group"),
    ("after.perMachine", "--per-machine"),
];
/// The fields with which the server begins a refusal because of the number of machines.
const COUNTS: [&str; 4] = ["expect", "maxTargets", "keepAlive", "rollout"];
/// Phrases about the API inside messages, and what replaces them.
const PHRASES: [(&str, &str); 12] = [
    ("?all=1", "--all"),
    (
        "DELETE /api/v1/halt (sidebike halt --lift)",
        "sidebike halt --lift",
    ),
    (
        "DELETE /api/v1/suspend (sidebike suspend --lift)",
        "sidebike suspend --lift",
    ),
    ("unless instances are given", "unless --instance is given"),
    ("goes with uniqueKey only", "goes with --unique only"),
    (
        "goes with onDuplicate \"replace\" only",
        "goes with --on-duplicate replace only",
    ),
    (
        "goes with mode \"all\" only, an \"any\" task runs once",
        "does not go with --any",
    ),
    ("is taken by the task in data", "is taken by another task"),
    ("is held by the task in data", "is held by another task"),
    (
        "send a longer script as detail.script",
        "pass a longer script as --script FILE",
    ),
    (
        "after their resultTtl or failureTtl",
        "after a day (those that did not succeed: after a week)",
    ),
    (
        "needs a token: Authorization: Bearer TOKEN",
        "the server wants a token",
    ),
];

/// The message for an error: the server's own, or what prevented the call.
pub fn describe(error: &CallError) -> String {
    let mut words = describe_first(error);
    for (server, kind) in error.others() {
        words.push_str(&format!("; {server}: {kind}"));
    }
    words
}

/// What came of the server whose failure counts.
fn describe_first(error: &CallError) -> String {
    let (call, server) = (error.call, error.server());
    match &error.kind {
        Kind::Refused {
            status,
            msg,
            ours: true,
        } => {
            let msg = with_flags(msg);
            // A 403 may also be about the host name.
            if *status == 401 || (*status == 403 && msg.contains("token")) {
                return format!(
                    "{msg}; set {TOKEN}, or {TOKEN}_FILE to a file, with a token of people (to look only a read token will do, an agent's never does)"
                );
            }
            msg
        }
        Kind::Refused { status, msg, .. } => format!(
            "cannot {call}: not a sidebike server, but something else answered at {server}: {status} {msg}"
        ),
        Kind::NotConnected(why)
        | Kind::Unreachable(why)
        | Kind::Interrupted(why)
        | Kind::Outdated(why) => format!("cannot {call}: {server}: {why}"),
        Kind::Standby { msg, .. } => with_flags(msg),
        Kind::NotUnderstood(why) => {
            format!("cannot {call}: the answer of {server} is not understood: {why}")
        }
    }
}

/// The same for an error that ends a command: also says how to name another server.
pub fn describe_failure(error: &CallError) -> String {
    let words = describe(error);
    let is_elsewhere = match &error.kind {
        Kind::NotConnected(_)
        | Kind::Unreachable(_)
        | Kind::Interrupted(_)
        | Kind::Refused { ours: false, .. } => true,
        // The address has a path that is not the server's.
        Kind::Refused { status, msg, .. } => *status == 404 && msg.starts_with("there is no /"),
        Kind::Standby { leader, .. } => !leader.is_empty(),
        Kind::Outdated(_) | Kind::NotUnderstood(_) => false,
    };
    match is_elsewhere {
        true => format!(
            "{words}; --registry-address or SIDEBIKE_REGISTRY_ADDRESS says where the server is"
        ),
        false => words,
    }
}

/// The message when no machine or task has this label. Many expect a pattern here, as in `run`.
pub fn no_such_label(label: &str, what: &str) -> String {
    let label = sanitize(label);
    format!("sidebike: no {what} the label {label:?}; -m takes a whole label here, no pattern\n")
}

/// Whether the server refused because other machines match than were wanted: nothing was submitted.
pub fn is_refusal_of_counts(error: &CallError) -> bool {
    match &error.kind {
        Kind::Refused { status, msg, ours } => {
            let begins = |field: &&str| begins_with_field(msg, field).is_some();
            *status == 409 && *ours && COUNTS.iter().any(begins)
        }
        _ => false,
    }
}

/// What follows the field in a message that begins with it.
fn begins_with_field<'a>(msg: &'a str, field: &str) -> Option<&'a str> {
    let rest = msg.strip_prefix(field)?;
    rest.starts_with([':', '.', '[']).then_some(rest)
}

/// A message that begins with `files[3].mode` as `files.mode`.
fn without_number(msg: &str) -> Option<String> {
    let (list, rest) = msg.split_once('[')?;
    let (number, rest) = rest.split_once(']')?;
    let is_entry = number.bytes().all(|byte| byte.is_ascii_digit()) && rest.starts_with('.');
    is_entry.then(|| format!("{list}{rest}"))
}

/// A message without the place in the JSON: the command wrote that JSON, its user has not seen it.
fn without_place(msg: &str) -> &str {
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match msg.rsplit_once(" at line ") {
        Some((why, place))
            if { place.split_once(" column ") }
                .is_some_and(|(line, column)| is_number(line) && is_number(column)) =>
        {
            why
        }
        _ => msg,
    }
}

/// A message that begins with one of these fields, with its flag in place of it.
fn with_flag_of(msg: &str, fields: &[(&str, &str)]) -> Option<String> {
    fields.iter().find_map(|(field, flag)| {
        let rest = begins_with_field(msg, field)?;
        Some(format!("{flag}{rest}"))
    })
}

/// A message of the server with flags in place of the API's fields.
pub fn with_flags(msg: &str) -> String {
    // The task of a schedule has the flags of a task.
    let msg = without_place(msg.strip_prefix("task.").unwrap_or(msg));
    let entry = without_number(msg).and_then(|msg| with_flag_of(&msg, &ENTRIES));
    let flag = entry.or_else(|| with_flag_of(msg, &FIELDS));
    let msg = flag.unwrap_or_else(|| msg.to_owned());
    let replaced = |msg: String, (api, own): &(&str, &str)| msg.replace(api, own);
    PHRASES.iter().fold(msg, replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_flags_only_where_a_refusal_begins() {
        for (said, shown) in [
            ("machinePattern: must not be empty", "-m: must not be empty"),
            ("detail.env.A: no NUL", "--env.A: no NUL"),
            ("detail.argv[1]: no NUL", "COMMAND[1]: no NUL"),
            (
                "machineTags.zone: expected a regular expression",
                "--where.zone: expected a regular expression",
            ),
            ("rollout.steps: each", "--steps: each"),
            ("rollout: goes with", "rollout: goes with"),
            ("names are free", "names are free"),
            (
                "no task has the name \"machinePattern: x\"",
                "no task has the name \"machinePattern: x\"",
            ),
            ("all succeeded; ?all=1 runs", "all succeeded; --all runs"),
            ("files[0].mode: must be octal", "--mode: must be octal"),
            ("files[0].size: must be 3", "--file[0].size: must be 3"),
            ("after[1].task: no task", "--after: no task"),
            ("after[1]: needs task", "--after[1]: needs task"),
            ("files[x].mode: no", "--file[x].mode: no"),
            (
                "overlap: expected \"skip\" at line 1 column 31",
                "--overlap: expected \"skip\"",
            ),
            ("name: at line 1 column x", "--name: at line 1 column x"),
            (
                "onDuplicate: goes with uniqueKey only",
                "--on-duplicate: goes with --unique only",
            ),
            (
                "after[0].perMachine: goes with mode \"all\" only, an \"any\" task runs once",
                "--per-machine: does not go with --any",
            ),
        ] {
            assert_eq!(with_flags(said), shown);
        }
    }
}
