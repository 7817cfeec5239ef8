//! What takes the effect of a command back: the flags of `run`. To add one: a field of [`UndoArgs`], used in
//! [`UndoArgs::undo`], and the field of the API that it sets in `messages.rs`.

use super::command::{Failure, duration};
use super::new_task::timeout_of;
use crate::wire::duration::{TimeSpan, Timeout};
use crate::wire::task::DEFAULT_TIMEOUT;
use crate::wire::undo::Undo;
use serde_json::{Map, Value, json};

/// The heading of these flags in the help.
const HEADING: &str = "Taking its effect back";
/// What a shell does after the command of a task that is held: the command's exit code counts, and the effect stays
/// for that many seconds if it is 0. Not `&&`, in front of which `set -e` has no effect.
const THEN_WAIT: &str = "status=$?; [ \"$status\" = 0 ] && exec sleep SECONDS; exit \"$status\"";

/// The arguments about the undo.
#[derive(Debug, clap::Args)]
pub struct UndoArgs {
    /// Take its effect back with this line for the shell, however the command ends, also if its agent or the server is
    /// gone. It must be harmless where there is no effect, and when it runs twice
    #[arg(help_heading = HEADING, long, value_name = "CMD", allow_hyphen_values = true)]
    undo: Option<String>,
    /// After each try of the undo: nothing is left if this line for the shell succeeds. Then the undo's own exit code
    /// does not count
    #[arg(help_heading = HEADING, long, value_name = "CMD", allow_hyphen_values = true)]
    undo_check: Option<String>,
    /// How long each try and each check may run [default: 30s]
    #[arg(help_heading = HEADING, long, value_name = "DURATION")]
    undo_timeout: Option<String>,
    /// How long the undo is tried again [default: 10m]
    #[arg(help_heading = HEADING, long, value_name = "DURATION")]
    undo_patience: Option<String>,
    /// When the command has succeeded, leave its effect for so long, such as 5m, then undo it. Without --timeout
    /// the command has 180s besides
    #[arg(help_heading = HEADING, long, value_name = "DURATION")]
    hold: Option<String>,
    /// End and undo it when its agent has not reached the server for so long, 10s or more; -1: never [default: 60s]
    #[arg(help_heading = HEADING, long, value_name = "DURATION", allow_hyphen_values = true)]
    deadman: Option<String>,
    /// A machine runs one command with this word at a time, and none while one with it is not undone there
    #[arg(help_heading = HEADING, long, value_name = "WORD")]
    lock: Option<String>,
}

impl UndoArgs {
    /// The undo that the flags describe; without its command if that is to come from a file.
    pub fn undo(&self) -> Result<Option<Undo>, Failure> {
        let deadman = self.deadman.as_deref();
        let undo = Undo {
            command: self.undo.clone(),
            check: self.undo_check.clone(),
            timeout: duration("--undo-timeout", &self.undo_timeout)?,
            patience: duration("--undo-patience", &self.undo_patience)?,
            deadman: deadman
                .map(|text| timeout_of("--deadman", text))
                .transpose()?,
            lock: self.lock.clone(),
            ..Undo::default()
        };
        Ok((undo != Undo::default()).then_some(undo))
    }

    /// Checks that a task, to which the flags were added, has an undo if they need one, and holds its command.
    pub fn complete(&self, task: &mut Map<String, Value>) -> Result<(), Failure> {
        let given = [
            ("--undo-check", &self.undo_check),
            ("--undo-timeout", &self.undo_timeout),
            ("--undo-patience", &self.undo_patience),
            ("--hold", &self.hold),
            ("--deadman", &self.deadman),
            ("--lock", &self.lock),
        ];
        let undo = task.get("detail").and_then(|detail| detail.get("undo"));
        let has = |name: &str| undo.is_some_and(|undo| undo.get(name).is_some());
        let has_undo = has("command") || has("argv");
        if let Some((flag, _)) = given.iter().find(|(_, value)| value.is_some())
            && !has_undo
        {
            return Err(Failure::Usage(format!(
                "{flag}: needs --undo CMD, the command that takes the effect away"
            )));
        }
        let detail = task.get_mut("detail").and_then(Value::as_object_mut);
        match (duration("--hold", &self.hold)?, detail) {
            (Some(hold), Some(detail)) => hold_command(detail, hold),
            _ => Ok(()),
        }
    }
}

/// Has a command wait after it has succeeded.
fn hold_command(detail: &mut Map<String, Value>, hold: TimeSpan) -> Result<(), Failure> {
    if hold == TimeSpan::default() {
        return Err(Failure::Usage("--hold: must be above 0".into()));
    }
    // Not every sleep knows fractions.
    let seconds = hold.as_millis().div_ceil(1_000).to_string();
    let then_wait = THEN_WAIT.replace("SECONDS", &seconds);
    let command = detail.get("command").and_then(Value::as_str);
    let argv = detail.get("argv").and_then(Value::as_array);
    match (command, argv) {
        (Some(line), _) => {
            // In a shell of its own, which it may leave by `exit` or `exec`. The line may end with a comment.
            let line = format!("(\n{line}\n)\n{then_wait}");
            detail.insert("command".into(), line.into());
        }
        (None, Some(argv)) => {
            let line = format!("\"$@\"\n{then_wait}");
            let shell = [json!("sh"), json!("-c"), json!(line), json!("sh")];
            let words = shell.into_iter().chain(argv.iter().cloned());
            let words: Vec<Value> = words.collect();
            detail.insert("argv".into(), words.into());
        }
        (None, None) => {
            return Err(Failure::Usage(
                "--hold: goes with a command or a short script for the shell; another script has to wait itself".into(),
            ));
        }
    }
    let timeout = detail.get("timeout");
    match timeout.map(|timeout| serde_json::from_value(timeout.clone())) {
        None => {
            let timeout = TimeSpan::from_millis(hold.as_millis() + DEFAULT_TIMEOUT.as_millis());
            detail.insert("timeout".into(), json!(timeout));
        }
        Some(Ok(Timeout::After(timeout))) if timeout <= hold => {
            return Err(Failure::Usage(format!(
                "--timeout: must be longer than --hold, {hold}: the command is ended then; got {timeout}"
            )));
        }
        // The server judges what else there is.
        Some(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn held(detail: Value, hold: &str) -> Result<Map<String, Value>, String> {
        let Value::Object(mut detail) = detail else {
            panic!("an object");
        };
        match hold_command(&mut detail, hold.parse()?) {
            Ok(()) => Ok(detail),
            Err(Failure::Usage(why)) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// The exit code and the output of a program whose shell only says for how long it would sleep.
    fn run(program: &str, args: &[&str]) -> (i32, String) {
        let args = args
            .iter()
            .map(|arg| arg.replace("exec sleep", "exec echo sleep"));
        let output = Command::new(program).args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    }

    #[test]
    fn only_what_succeeded_is_held_whatever_it_looks_like() {
        for (line, code, text) in [
            ("echo a", 0, "a\nsleep 90\n"),
            ("echo a # ends with a comment", 0, "a\nsleep 90\n"),
            ("echo a; exit 0", 0, "a\nsleep 90\n"),
            ("exec echo a", 0, "a\nsleep 90\n"),
            ("cat <<X\na\nX", 0, "a\nsleep 90\n"),
            ("set -e\nfalse\necho a", 1, ""),
            ("exit 7", 7, ""),
            ("false || exit 9", 9, ""),
            ("no-such-command-at-all 2>/dev/null", 127, ""),
        ] {
            let detail = held(json!({"command": line}), "89.5s").unwrap();
            let line = detail["command"].as_str().unwrap();
            assert_eq!(run("sh", &["-c", line]), (code, text.into()), "{line}");
        }
        let detail = held(json!({"argv": ["printf", "%s|", "a b", "$c"]}), "2m").unwrap();
        let argv = detail["argv"].as_array().unwrap();
        let argv: Vec<&str> = argv.iter().filter_map(Value::as_str).collect();
        let (code, text) = run(argv[0], &argv[1..]);
        assert_eq!((code, &*text), (0, "a b|$c|sleep 120\n"));
    }

    #[test]
    fn the_time_out_is_longer_than_the_hold() {
        let detail = held(json!({"command": "x"}), "5m").unwrap();
        assert_eq!(detail["timeout"], 480);
        let detail = held(json!({"command": "x", "timeout": "6m"}), "5m").unwrap();
        assert_eq!(detail["timeout"], "6m");
        let why = held(json!({"command": "x", "timeout": 300}), "5m").unwrap_err();
        assert!(
            why.starts_with("--timeout: must be longer than --hold, 5m"),
            "{why}"
        );
        assert_eq!(
            held(json!({"command": "x"}), "0").unwrap_err(),
            "--hold: must be above 0"
        );
        assert!(
            held(json!({"script": "x"}), "5m")
                .unwrap_err()
                .starts_with("--hold: goes with")
        );
    }
}
