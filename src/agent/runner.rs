//! Starting one command; the only place that names `process::Command`.
//!
//! What runs is decided here (which shell, which folder, which environment); how it is watched and
//! ended is in [`super::watch`]. To support a new field of `detail`: read it in `spawn`, and refuse
//! it in words when it cannot be honoured, because what it asks for must not silently not be done.
//!
//! Nothing here needs /dev, /proc or /etc: a container may have none of them.

use super::Agent;
use super::board::Job;
use super::held::{Held, Outcome, Wake};
use super::owner;
use super::search;
use super::watch::{Limits, Watch};
use crate::wire::duration::Timeout;
use crate::wire::task::{DEFAULT_KILL_GRACE, DEFAULT_TIMEOUT, Detail, ExecutionState};
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

/// The longest text for standard input, in bytes: as long as the longest request.
const MAX_STDIN_BYTES: usize = 1 << 20;

/// Starts the command of `job`, whose end can be ordered by `wake`; or says why not.
pub fn start<'a>(
    agent: &'a Agent,
    held: &'a Held,
    job: &mut Job,
    wake: Option<&'a Wake>,
) -> Result<Watch<'a>, Outcome> {
    let failed = |why| Outcome::not_started(ExecutionState::Failed, why);
    let wake = wake.ok_or_else(|| failed("this machine has no file descriptors left".into()))?;
    // Before the look: what is ordered after it wakes.
    held.watched(wake.clone());
    if let Some(stop) = held.stop_ordered() {
        return Err(Outcome::not_started(ExecutionState::Canceled, stop.words()));
    }
    let (child, stdin, limits) = spawn(agent, job).map_err(failed)?;
    Ok(Watch::new(agent, held, wake, child, stdin, limits))
}

/// Spawns its process; the error says why it could not be done.
fn spawn(agent: &Agent, job: &mut Job) -> Result<(Child, Vec<u8>, Limits), String> {
    let mut detail: Detail = serde_json::from_value(job.detail.take()).map_err(|why| {
        let version = env!("CARGO_PKG_VERSION");
        format!("this agent (version {version}) does not understand the detail: {why}")
    })?;
    owner::check(&agent.config.rules, &detail)?;
    let stdin = detail.stdin.take().unwrap_or_default().into_bytes();
    if stdin.len() > MAX_STDIN_BYTES {
        return Err(format!(
            "detail.stdin: must have {MAX_STDIN_BYTES} bytes at most, got {}",
            stdin.len()
        ));
    }
    let limits = Limits {
        timeout: match detail.timeout {
            None => Some(DEFAULT_TIMEOUT),
            Some(Timeout::After(span)) => Some(span),
            Some(Timeout::Never) => None,
        },
        kill_grace: detail.kill_grace.unwrap_or(DEFAULT_KILL_GRACE).into(),
    };
    let mut command = program(&detail, agent.config.rules.wrapper.as_deref())?;
    environment(&mut command, agent, job, &detail)?;
    if let Some(workspace) = &detail.workspace {
        command.current_dir(workspace);
    }
    // Standard input is a pipe even when there is nothing to read: /dev/null may not exist.
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command
        .spawn()
        .map_err(|why| format!("cannot start {}: {why}", command.get_program().display()))?;
    Ok((child, stdin, limits))
}

/// The program and its arguments; with a wrapper it is the wrapper, and they are its arguments.
fn program(detail: &Detail, wrapper: Option<&Path>) -> Result<Command, String> {
    let base = workspace(detail)?;
    match (&detail.command, &detail.argv) {
        (Some(line), None) => {
            let line = no_option(line);
            let path = std::env::var_os("PATH");
            let shell = ["bash", "sh"]
                .iter()
                .find_map(|name| Some((name, search::on_path(name, path.as_deref(), &base)?)));
            if let Some(wrapper) = wrapper {
                let mut command = Command::new(wrapper);
                // Where the wrapper goes with it there may be a shell.
                let name = shell.map_or("sh", |(name, _)| name);
                command.args([name, "-c", &line]);
                return Ok(command);
            }
            let (name, shell) =
                shell.ok_or("no shell (bash or sh) on this machine's PATH; use detail.argv")?;
            let mut command = Command::new(shell);
            command.arg0(name).arg("-c").arg(&*line);
            Ok(command)
        }
        (None, Some(argv)) => {
            let (name, args) = argv
                .split_first()
                .filter(|(name, _)| !name.is_empty())
                .ok_or("detail.argv: must name a program")?;
            if let Some(wrapper) = wrapper {
                let mut command = Command::new(wrapper);
                command.args(argv);
                return Ok(command);
            }
            let mut command = Command::new(find(name, detail, &base)?);
            command.arg0(name).args(args);
            Ok(command)
        }
        _ => Err("detail: must have either command or argv".into()),
    }
}

/// A line that no shell takes for options: with a blank before what looks like some. `--` before it
/// would do as well, but wrappers know the line as what follows `-c`.
fn no_option(line: &str) -> Cow<'_, str> {
    match line.starts_with(['-', '+']) {
        true => format!(" {line}").into(),
        false => line.into(),
    }
}

/// The folder the command runs in, which must exist: an error of `exec` would not say which of the
/// two is missing, the folder or the program.
fn workspace(detail: &Detail) -> Result<PathBuf, String> {
    let own = std::env::current_dir();
    let Some(workspace) = &detail.workspace else {
        return Ok(own.unwrap_or_default());
    };
    match std::fs::metadata(workspace) {
        Ok(found) if found.is_dir() => Ok(own.unwrap_or_default().join(workspace)),
        Ok(_) => Err(format!("workspace {workspace:?} is not a folder")),
        Err(why) => Err(format!("workspace {workspace:?} cannot be used: {why}")),
    }
}

/// The program called `name`, on the PATH the command will have.
fn find(name: &str, detail: &Detail, base: &Path) -> Result<PathBuf, String> {
    if name.contains('/') {
        return Ok(name.into());
    }
    let own = || std::env::var_os("PATH");
    let given = detail.env.as_ref().and_then(|env| env.get("PATH"));
    let path = given.map(OsString::from).or_else(own);
    search::on_path(name, path.as_deref(), base)
        .ok_or_else(|| format!("no program {name:?} on this machine's PATH"))
}

/// The agent's own environment without its secrets, what a command may want to know about itself,
/// and what the task asks for, which wins.
fn environment(
    command: &mut Command,
    agent: &Agent,
    job: &Job,
    detail: &Detail,
) -> Result<(), String> {
    // Without what is left out, instead of only with what is left in: that is two copies less of each.
    for name in SECRETS.iter() {
        command.env_remove(name);
    }
    let attempt = job.id.attempt.to_string();
    for (name, value) in [
        ("SIDEBIKE_TASK_ID", &job.task_id),
        ("SIDEBIKE_TASK_NAME", &job.task_name),
        ("SIDEBIKE_MACHINE_LABEL", &agent.config.label),
        ("SIDEBIKE_INSTANCE", &agent.board.instance()),
        ("SIDEBIKE_ATTEMPT", &attempt),
    ] {
        // A name is free text; a NUL cannot be in a variable.
        command.env(name, value.replace('\0', ""));
    }
    for (name, value) in detail.env.iter().flatten() {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!("detail.env: {name:?} cannot be a variable's name"));
        }
        if value.contains('\0') {
            return Err(format!("detail.env: the value of {name:?} contains a NUL"));
        }
        command.env(name, value);
    }
    Ok(())
}

/// The agent's own variables that are not for commands to see. No part of it sets any.
static SECRETS: LazyLock<Vec<OsString>> = LazyLock::new(|| {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| is_secret(name)).collect()
});

/// Whether a variable is not for commands to see: `SIDEBIKE_*TOKEN*`.
fn is_secret(name: &OsStr) -> bool {
    let rest = name.as_bytes().strip_prefix(b"SIDEBIKE_");
    rest.is_some_and(|rest| rest.windows(5).any(|word| word == b"TOKEN"))
}

/// Starts this very program once more, with other arguments, in a process group of its own (what a
/// terminal sends to the agent's group is the agent's to handle).
pub fn spawn_self(args: &[OsString], stdin: Stdio) -> io::Result<Child> {
    let unnamed = || io::Error::other("this program does not know where it is");
    // Without /proc only the name it was started by is known.
    let own = std::env::current_exe().or_else(|_| {
        std::env::args_os()
            .next()
            .map(PathBuf::from)
            .ok_or_else(unnamed)
    })?;
    Command::new(own)
        .args(args)
        .stdin(stdin)
        .process_group(0)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_by_their_name() {
        for (name, secret) in [
            ("SIDEBIKE_TOKEN", true),
            ("SIDEBIKE_AGENT_TOKEN", true),
            ("SIDEBIKE_TOKEN_FILE", true),
            ("SIDEBIKE_JOBS", false),
            ("MY_TOKEN", false),
            ("SIDEBIKE_", false),
        ] {
            assert_eq!(is_secret(OsStr::new(name)), secret, "{name}");
        }
    }
}
