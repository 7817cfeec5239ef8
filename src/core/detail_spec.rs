//! Checks what a posted task runs: part of `spec.rs`, whose head says how.

use super::files::Files;
use super::spec::{check_count, check_text};
use crate::rules::{MAX_ARGUMENT_BYTES, MAX_SCRIPT_BYTES, MAX_STDIN_BYTES};
use crate::wire::duration::{TimeSpan, Timeout};
use crate::wire::strict_object::Posted;
use crate::wire::task::{DEFAULT_TIMEOUT, Detail};
use crate::wire::undo::Undo;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The most arguments of a command, and the most extra variables.
pub const MAX_ARGUMENTS: usize = 4_096;
/// The longest path of a workspace, in bytes: Linux takes no longer one (`PATH_MAX`).
pub const MAX_WORKSPACE_BYTES: usize = 4_095;
/// The longest detail in JSON, in bytes: no agent reads a longer answer. See `MAX_HANDED_OUT_BYTES`.
pub const MAX_SENT_BYTES: usize = 4 << 20;
/// The longest name of a user, in bytes: no system has longer ones.
pub const MAX_USER_BYTES: usize = 255;
/// The longest pause between TERM and KILL.
pub const MAX_KILL_GRACE: TimeSpan = TimeSpan::from_secs(3_600);
/// The shortest time of a dead man's switch: a network may be slow for longer than a moment.
pub const MIN_DEADMAN: TimeSpan = TimeSpan::from_secs(10);
/// The longest word of a lock, in bytes.
pub const MAX_LOCK_BYTES: usize = 64;

/// Checks the detail of a posted task.
pub(super) fn checked_detail(
    posted: Option<Posted<Detail>>,
    files: Option<&Files>,
) -> Result<Detail, String> {
    // It may only lay files down, only hand some back, or only replace the program of agents.
    let mut detail = match posted {
        Some(posted) => posted.0,
        None if files.is_some() => return Ok(Detail::default()),
        None => return Err("the task: missing field `detail`".into()),
    };
    if files.is_some() && detail == Detail::default() {
        return Ok(detail);
    }
    if let Some(argv) = &mut detail.argv {
        // It was read with spare capacity, and is stored as long as the task.
        argv.shrink_to_fit();
    }
    check_script(&detail)?;
    if let Some(undo) = &detail.undo {
        check_undo(undo, detail.timeout)?;
    }
    match (&detail.command, &detail.argv) {
        (None, None) if detail.script.is_some() => {}
        (None, None) => {
            return Err(
                "detail: needs command (a shell line) or argv (a program and its arguments)".into(),
            );
        }
        (Some(_), Some(_)) => {
            return Err("detail: has both command and argv, give one of them".into());
        }
        (Some(command), None) => {
            if command.trim().is_empty() {
                return Err("detail.command: must not be empty".into());
            }
            check_argument(
                "detail.command",
                command,
                "; send a longer script as detail.script",
            )?;
        }
        (None, Some(argv)) => {
            if argv.first().is_none_or(String::is_empty) {
                return Err(
                    "detail.argv: must begin with a program, such as [\"ls\", \"-l\"]".into(),
                );
            }
            check_count("detail.argv", argv.len(), MAX_ARGUMENTS)?;
            for (n, argument) in argv.iter().enumerate() {
                check_argument(&format!("detail.argv[{n}]"), argument, "")?;
            }
        }
    }
    if let Some(workspace) = &detail.workspace {
        check_text("detail.workspace", workspace, MAX_WORKSPACE_BYTES, "")?;
    }
    if let Some(user) = &detail.user {
        check_text("detail.user", user, MAX_USER_BYTES, "")?;
    }
    if let Some(base64) = &detail.stdin_base64 {
        if detail.stdin.is_some() {
            return Err("detail: has both stdin and stdinBase64, give one of them".into());
        }
        match STANDARD.decode(base64) {
            Ok(bytes) => check_stdin("detail.stdinBase64", bytes.len())?,
            Err(why) => return Err(format!("detail.stdinBase64: must be base64: {why}")),
        }
    }
    if let Some(text) = &detail.stdin {
        check_stdin("detail.stdin", text.len())?;
    }
    match detail.timeout {
        Some(Timeout::After(duration)) if duration == TimeSpan::default() => {
            return Err("detail.timeout: must be above 0 (seconds, or a string such as \"5m\"), or -1 for none".into());
        }
        _ => detail.timeout = Some(detail.timeout.unwrap_or(Timeout::After(DEFAULT_TIMEOUT))),
    }
    if detail
        .kill_grace
        .is_some_and(|grace| grace > MAX_KILL_GRACE)
    {
        return Err(format!(
            "detail.killGrace: must be {MAX_KILL_GRACE} at most"
        ));
    }
    let env = detail.env.iter().flatten();
    check_count("detail.env", env.clone().count(), MAX_ARGUMENTS)?;
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!(
                "detail.env: a variable's name must not be empty nor contain \"=\" or NUL, got {name:?}"
            ));
        }
        check_argument(&format!("detail.env.{name}"), value, "")?;
    }
    let sent = detail.json_bytes();
    if sent > MAX_SENT_BYTES {
        return Err(format!(
            "detail: must have {MAX_SENT_BYTES} bytes of texts in JSON at most, as agents read no more at once; got {sent}"
        ));
    }
    Ok(detail)
}

fn check_undo(undo: &Undo, timeout: Option<Timeout>) -> Result<(), String> {
    if timeout == Some(Timeout::Never) {
        return Err("detail.timeout: must not be -1 with an undo: an experiment has an end".into());
    }
    check_line_or_argv("detail.undo", "command", &undo.command, "argv", &undo.argv)?;
    if undo.check.is_some() || undo.check_argv.is_some() {
        check_line_or_argv(
            "detail.undo",
            "check",
            &undo.check,
            "checkArgv",
            &undo.check_argv,
        )?;
    }
    if undo.timeout == Some(TimeSpan::default()) {
        return Err("detail.undo.timeout: must be above 0".into());
    }
    if let Some(Timeout::After(deadman)) = undo.deadman
        && deadman < MIN_DEADMAN
    {
        return Err(format!(
            "detail.undo.deadman: must be {MIN_DEADMAN} or more, or -1 for none"
        ));
    }
    if let Some(lock) = &undo.lock {
        check_text("detail.undo.lock", lock, MAX_LOCK_BYTES, "")?;
    }
    Ok(())
}

/// Checks that exactly one of a shell line and a program with its arguments is given.
pub(super) fn check_line_or_argv(
    field: &str,
    line_name: &str,
    line: &Option<String>,
    argv_name: &str,
    argv: &Option<Vec<String>>,
) -> Result<(), String> {
    match (line, argv) {
        (None, None) => Err(format!(
            "{field}: needs {line_name} (a shell line) or {argv_name} (a program and its arguments)"
        )),
        (Some(_), Some(_)) => Err(format!(
            "{field}: has both {line_name} and {argv_name}, give one of them"
        )),
        (Some(line), None) if line.trim().is_empty() => {
            Err(format!("{field}.{line_name}: must not be empty"))
        }
        (Some(line), None) => check_argument(&format!("{field}.{line_name}"), line, ""),
        (None, Some(argv)) => {
            let field = format!("{field}.{argv_name}");
            if argv.first().is_none_or(String::is_empty) {
                return Err(format!(
                    "{field}: must begin with a program, such as [\"ls\", \"-l\"]"
                ));
            }
            check_count(&field, argv.len(), MAX_ARGUMENTS)?;
            let arguments = argv.iter().enumerate();
            { arguments }.try_for_each(|(n, a)| check_argument(&format!("{field}[{n}]"), a, ""))
        }
    }
}

fn check_stdin(field: &str, bytes: usize) -> Result<(), String> {
    if bytes > MAX_STDIN_BYTES {
        return Err(format!(
            "{field}: must have {MAX_STDIN_BYTES} bytes of standard input at most, got {bytes}"
        ));
    }
    Ok(())
}

fn check_script(detail: &Detail) -> Result<(), String> {
    let Some(script) = &detail.script else {
        return match detail.script_args {
            Some(_) => Err("detail.scriptArgs: goes with detail.script only".into()),
            None => Ok(()),
        };
    };
    if detail.command.is_some() || detail.argv.is_some() {
        return Err("detail: has script and command or argv, give one of them".into());
    }
    if script.trim().is_empty() {
        return Err("detail.script: must not be empty".into());
    }
    if script.len() > MAX_SCRIPT_BYTES {
        return Err(format!(
            "detail.script: must have {MAX_SCRIPT_BYTES} bytes at most, got {}",
            script.len()
        ));
    }
    let args = detail.script_args.iter().flatten();
    check_count("detail.scriptArgs", args.clone().count(), MAX_ARGUMENTS)?;
    for (n, argument) in args.enumerate() {
        check_argument(&format!("detail.scriptArgs[{n}]"), argument, "")?;
    }
    Ok(())
}

fn check_argument(field: &str, text: &str, hint: &str) -> Result<(), String> {
    if text.len() > MAX_ARGUMENT_BYTES {
        return Err(format!(
            "{field}: must have {MAX_ARGUMENT_BYTES} bytes at most, got {}{hint}",
            text.len()
        ));
    }
    if text.contains('\0') {
        return Err(format!("{field}: must not contain NUL"));
    }
    Ok(())
}
