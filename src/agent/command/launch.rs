//! Starting programs; the only file that calls `process::Command::new`.
//!
//! Here a program gets its process group or session, its environment, its user, and the limit on open files that the
//! agent was started with. Which program it is, is decided in [`super::runner`] for commands and probes, and in
//! [`super::undo_plan`] for undos. The agent's own helpers are started here, too.
//!
//! Nothing here needs /dev, /proc or /etc: a container may have none of them.

use super::output_pipes::OutputPipes;
use super::program::{Program, Surroundings};
use super::start_failure;
use super::user;
use crate::agent::processes::inheritance;
use rustix::fd::AsFd;
use rustix::fd::OwnedFd;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, setrlimit};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The program of this process, also when an upgrade has replaced its file: then there is no path of it any more.
const RUNNING_PROGRAM: &str = "/proc/self/exe";

/// How often it is looked whether a program that was asked has ended.
const ASK_PERIOD: Duration = Duration::from_millis(20);

/// The agent's own variables that commands must not see. The agent never changes its environment, so they
/// are looked for once.
static SECRETS: LazyLock<Vec<OsString>> = LazyLock::new(|| {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| is_secret(name)).collect()
});

/// Whether a variable is a secret: `SIDEBIKE_*TOKEN*`.
fn is_secret(name: &OsStr) -> bool {
    let rest = name.as_bytes().strip_prefix(b"SIDEBIKE_");
    rest.is_some_and(|rest| rest.windows(5).any(|word| word == b"TOKEN"))
}

/// Starts a program in a process group of its own, with these variables beside those of its surroundings; those
/// without a value are removed. Its standard input is empty, and both streams of its output go into the pipe. The
/// error says why it could not be started.
pub fn spawn_program(
    program: &Program,
    surroundings: &Surroundings,
    variables: &[(&str, Option<String>)],
) -> Result<(Child, OwnedFd), String> {
    let mut command = to_command(program);
    surround(&mut command, surroundings);
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::piped());
    let output = OutputPipes::open(&mut command, true)
        .map_err(|why| format!("no pipe for the output: {why}"))?;
    let mut child = command.spawn().map_err(|why| {
        let directory = surroundings.directory.clone().unwrap_or_default();
        if surroundings.directory.is_some() && !directory.is_dir() {
            return format!("workspace {directory:?} cannot be used: {why}");
        }
        let reason = start_failure::explain(&why, &program.file, &directory);
        format!("cannot start {}: {reason}", program.file.display())
    })?;
    drop(child.stdin.take());
    Ok((child, output.stdout))
}

/// A program with its arguments. It is not surrounded yet.
pub(super) fn to_command(program: &Program) -> Command {
    let mut command = Command::new(&program.file);
    if let Some(name) = &program.name {
        command.arg0(name);
    }
    command.args(&program.args);
    command
}

/// Has a command start where it belongs: its environment is that of this process without its secrets, and the
/// variables of the surroundings.
pub(super) fn surround(command: &mut Command, surroundings: &Surroundings) {
    for name in SECRETS.iter() {
        command.env_remove(name);
    }
    for (name, value) in &surroundings.variables {
        command.env(name, value);
    }
    if let Some(directory) = &surroundings.directory {
        command.current_dir(directory);
    }
    if let Some(user) = &surroundings.user {
        user::apply(user, command);
    }
    if surroundings.needs_session {
        start_session(command);
    } else {
        command.process_group(0);
    }
    if let Some(limit) = inheritance::own_file_limit() {
        restore_file_limit(command, limit);
    }
}

/// Has the command start with the limit on open files that this process had before it raised its own.
#[allow(unsafe_code, reason = "std has no stable call for it")]
fn restore_file_limit(command: &mut Command, limit: Rlimit) {
    let restore = move || Ok(setrlimit(Resource::Nofile, limit)?);
    // SAFETY: between fork and exec only this system call is made; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(restore) };
}

/// Has the command start in a session of its own, which has no terminal. Its number is that of the process
/// group, as without it. Starting takes half as long again: std cannot use posix_spawn then.
#[allow(unsafe_code, reason = "std has no stable call for it")]
fn start_session(command: &mut Command) {
    // SAFETY: between fork and exec only this system call is made; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
}

/// Starts this program once more with other arguments, in a process group of its own: a signal of the
/// terminal goes to the agent's group, and the agent decides what it means.
pub fn spawn_self(args: &[OsString]) -> io::Result<Child> {
    this_program()?.args(args).spawn()
}

/// Starts this program once more as a helper of the agent, with a pipe for standard input and without the agent's
/// secrets.
pub fn spawn_helper(program: &str, stdout: Stdio) -> io::Result<Child> {
    let mut command = this_program()?;
    for name in SECRETS.iter() {
        command.env_remove(name);
    }
    command
        .arg(program)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .spawn()
}

/// Executes another program in this process, with the arguments and the environment of this one. Returns only if that
/// fails.
pub fn execute(program: &Path) -> io::Error {
    let mut args = std::env::args_os();
    let mut command = Command::new(program);
    command.arg0(args.next().unwrap_or_default()).args(args);
    if let Some(limit) = inheritance::own_file_limit() {
        // The next program raises its own.
        let _ = setrlimit(Resource::Nofile, limit);
    }
    command.exec()
}

/// How a program has answered.
#[derive(Debug)]
pub enum Asked {
    /// It ended well, and said this.
    Answered(String),
    /// It ended otherwise, and said this.
    Failed(ExitStatus, String),
    /// It did not end in time.
    TimedOut,
}

/// Runs a program that is to take the place of this one, with this one's environment, and gives the beginning of what it
/// says: of standard output if it ends well, else of standard error.
pub fn ask(program: &Path, args: &[OsString], timeout: Duration) -> io::Result<Asked> {
    let mut command = Command::new(program);
    command.args(args).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + timeout;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(ASK_PERIOD),
            Ok(None) | Err(_) => break None,
        }
    };
    // What it has started ends as well.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let Some(status) = status else {
        let _ = child.wait();
        return Ok(Asked::TimedOut);
    };
    Ok(match status.success() {
        true => Asked::Answered(beginning(child.stdout.take())),
        false => Asked::Failed(status, beginning(child.stderr.take())),
    })
}

/// What is in a pipe. Nothing is waited for.
fn beginning(pipe: Option<impl AsFd>) -> String {
    let mut bytes = [0; 4096];
    let read = pipe.and_then(|pipe| {
        rustix::io::ioctl_fionbio(&pipe, true).ok()?;
        rustix::io::read(&pipe, &mut bytes[..]).ok()
    });
    String::from_utf8_lossy(&bytes[..read.unwrap_or(0)]).into_owned()
}

/// This program, without arguments, in a process group of its own.
fn this_program() -> io::Result<Command> {
    let name = std::env::args_os().next();
    let mut command = match std::env::current_exe() {
        Ok(own) if own.exists() => Command::new(own),
        Ok(_) => {
            let mut command = Command::new(RUNNING_PROGRAM);
            // A list of processes shows what it is.
            command.arg0(name.unwrap_or_default());
            command
        }
        // Without /proc only the name by which it was started is known.
        Err(_) => Command::new(
            name.ok_or_else(|| io::Error::other("the path of this program is not known"))?,
        ),
    };
    command.process_group(0);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_recognized_by_their_name() {
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
