//! What the server and the client say, in the words of the command line: flags in place of the
//! API's fields, what was being done in place of a call's address, what to set where a token is wanted.

use super::TOKEN;
use super::terminal::sanitize;
use crate::client::{CallError, Kind};

/// Fields and parameters, as a refusal begins with them, and what sets them here.
const FIELDS: [(&str, &str); 9] = [
    ("machinePattern", "-m"),
    ("machine", "-m"),
    ("name", "--name"),
    ("detail.command", "COMMAND"),
    ("detail.argv", "COMMAND"),
    ("detail.env", "--env"),
    ("detail.stdin", "--stdin"),
    ("detail.timeout", "--timeout"),
    ("detail.workspace", "--workspace"),
];
/// What is said of the API within a refusal, and what to say of the command line.
const PHRASES: [(&str, &str); 4] = [
    ("?all=1", "--all"),
    (
        "send a longer script as detail.stdin to",
        "pass a longer script as --stdin FILE to",
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

/// What a person can do something with: the server's own words, or what was in the way.
pub fn describe(error: &CallError) -> String {
    let (call, server) = (error.call, error.server());
    match &error.kind {
        Kind::Refused {
            status,
            msg,
            ours: true,
        } => {
            let msg = with_flags(msg);
            // A 403 may also be about the host's name.
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
        Kind::Unreachable(why) => format!("cannot {call}: {server}: {why}"),
        Kind::NotUnderstood(why) => {
            format!("cannot {call}: the answer of {server} is not understood: {why}")
        }
    }
}

/// The same where a command gives up.
pub fn describe_failure(error: &CallError) -> String {
    let words = describe(error);
    let is_elsewhere = match &error.kind {
        Kind::Unreachable(_) | Kind::Refused { ours: false, .. } => true,
        // A path behind the address that is none of the server's.
        Kind::Refused { status, msg, .. } => *status == 404 && msg.starts_with("there is no /"),
        Kind::NotUnderstood(_) => false,
    };
    match is_elsewhere {
        true => format!(
            "{words}; --registry-address or SIDEBIKE_REGISTRY_ADDRESS says where the server is"
        ),
        false => words,
    }
}

/// A label of which there was nothing: people take it for a pattern, as in `run`.
pub fn no_such_label(label: &str, what: &str) -> String {
    let label = sanitize(label);
    format!("sidebike: no {what} the label {label:?}; -m takes a whole label here, no pattern\n")
}

fn with_flags(msg: &str) -> String {
    let flag = FIELDS.iter().find_map(|(field, flag)| {
        let rest = msg.strip_prefix(field)?;
        rest.starts_with([':', '.', '['])
            .then(|| format!("{flag}{rest}"))
    });
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
            ("names are free", "names are free"),
            (
                "no task has the name \"machinePattern: x\"",
                "no task has the name \"machinePattern: x\"",
            ),
            ("all succeeded; ?all=1 runs", "all succeeded; --all runs"),
        ] {
            assert_eq!(with_flags(said), shown);
        }
    }
}
