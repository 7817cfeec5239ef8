//! Starting one command; the only file that names `process::Command`.
//!
//! It decides which program runs, in which directory and with which environment. How a command that runs is
//! watched and ended is in [`super::supervisor`]. To support a new field of `detail`: read it in
//! [`Runner::prepare`], and fail with a message where it cannot be honoured. It must never be ignored.
//!
//! Nothing here needs /dev, /proc or /etc: a container may have none of them.

use super::lookup::{self, LookFailed};
use super::orphaned_pipes::OrphanedPipes;
use super::output_pipes::OutputPipes;
use super::path_lookup;
use super::policy;
use super::script::{self, Script, TemporaryFile};
use super::start_failure;
use super::start_watch::{Start, stopped};
use super::supervisor::{Limits, Started, Supervisor};
use super::survivors::Survivors;
use super::user::User;
use crate::agent::attempt::{Attempt, Outcome, Waker};
use crate::agent::backoff::random_id;
use crate::agent::processes::guard::Guard;
use crate::agent::processes::inheritance;
use crate::agent::processes::process_table::KEY_VARIABLE;
use crate::agent::state::{AgentState, Job};
use crate::config::CommandPolicy;
use crate::rules::{MAX_STDIN_BYTES, tag_variable};
use crate::wire::duration::Timeout;
use crate::wire::task::{DEFAULT_KILL_GRACE, DEFAULT_TIMEOUT, Detail, ExecutionState};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Access, access};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// How often the start of a script is tried while a process that another thread is starting has the file open for
/// writing, as it was when that process was made; and the pause between two tries. It has been executed by then.
const SCRIPT_BUSY_TRIES: u32 = 100;
const SCRIPT_BUSY_PAUSE: Duration = Duration::from_millis(2);

/// Starts commands. Holds what all commands of this agent share.
#[derive(Debug)]
pub struct Runner {
    policy: CommandPolicy,
    label: String,
    /// The variables of its tags.
    tags: Vec<(String, String)>,
    /// Whether each command needs a session of its own, or it could use the terminal of the agent.
    needs_session: bool,
    guard: Arc<Guard>,
    orphaned_pipes: OrphanedPipes,
    survivors: Survivors,
}

impl Runner {
    /// Also starts the guard.
    pub fn new(policy: CommandPolicy, label: String, tags: &BTreeMap<String, String>) -> Self {
        let guard = Arc::new(Guard::start());
        Runner {
            policy,
            label,
            tags: { tags.iter() }
                .map(|(name, value)| (tag_variable(name), value.clone()))
                .collect(),
            needs_session: inheritance::has_terminal(),
            guard: Arc::clone(&guard),
            orphaned_pipes: OrphanedPipes::new(Arc::clone(&guard)),
            survivors: Survivors::new(guard),
        }
    }

    /// To be called now and then: the guard is told what its pipe did not take before.
    pub fn flush_guard(&self) {
        self.guard.flush();
    }

    /// Starts the command of `job`.
    pub fn start<'a>(
        &'a self,
        state: &'a AgentState,
        attempt: &'a Attempt,
        job: &Job,
        waker: Option<&'a Waker>,
        start: Start<'_>,
    ) -> Result<Supervisor<'a>, NotStarted> {
        let spawned = self.spawn(state, attempt, job, waker, &start);
        let is_ours = start.finish();
        match spawned {
            Ok((started, waker)) if is_ours => Ok(Supervisor::new(
                state,
                attempt,
                &self.guard,
                &self.orphaned_pipes,
                &self.survivors,
                waker,
                started,
            )),
            Ok((started, _)) => {
                started.kill();
                self.survivors.add(started.child, started.key);
                Err(NotStarted::LeftAlone)
            }
            Err(outcome) if is_ours => Err(NotStarted::Ended(outcome)),
            Err(_) => Err(NotStarted::LeftAlone),
        }
    }

    /// Starts the process. The error is the outcome of an attempt that could not be started.
    fn spawn<'a>(
        &self,
        state: &AgentState,
        attempt: &Attempt,
        job: &Job,
        waker: Option<&'a Waker>,
        start: &Start<'_>,
    ) -> Result<(Started, &'a Waker), Outcome> {
        let waker = waker.ok_or_else(|| failed("this machine has no file descriptors left"))?;
        // Set the waker before looking for an order to stop: an order after the look wakes.
        attempt.set_waker(waker.clone());
        if let Some(reason) = attempt.stop_reason() {
            return Err(stopped(reason));
        }
        let key = random_id().map_err(failed)?;
        // Before the start: if the agent is killed meanwhile, the guard finds the command by its key.
        self.guard.add(&key);
        let instance = state.instance();
        let prepared = self.prepare(job, &instance, key.clone(), attempt, waker, start);
        let started = prepared.and_then(|prepared| {
            // Preparing may have taken a while, and there must be no start after an order to stop.
            match attempt.stop_reason() {
                Some(reason) => Err(stopped(reason)),
                None if start.is_left_alone() => Err(failed("its time is up")),
                None => {
                    start.set_timeout(prepared.limits.timeout);
                    prepared.spawn().map_err(failed)
                }
            }
        });
        let started = started.inspect_err(|_| self.guard.remove(&key))?;
        Ok((started, waker))
    }

    /// Does all that can be done before the start. The error is the outcome if that fails.
    fn prepare(
        &self,
        job: &Job,
        instance: &str,
        key: String,
        attempt: &Attempt,
        waker: &Waker,
        start: &Start<'_>,
    ) -> Result<Prepared, Outcome> {
        let mut detail: Detail = serde_json::from_str(job.detail.get()).map_err(|why| {
            let version = env!("CARGO_PKG_VERSION");
            failed(format!(
                "this agent (version {version}) does not understand the detail: {why}"
            ))
        })?;
        policy::check(&self.policy, &detail).map_err(failed)?;
        let user = detail.user.as_deref().map(User::find).transpose();
        let user = user.map_err(failed)?;
        if let Some(user) = &user {
            policy::check_user(&self.policy, &user.name).map_err(failed)?;
        }
        let stdin = standard_input(&mut detail).map_err(failed)?;
        if stdin.len() > MAX_STDIN_BYTES {
            return Err(failed(format!(
                "detail.stdin: must have {MAX_STDIN_BYTES} bytes at most, got {}",
                stdin.len()
            )));
        }
        let limits = Limits {
            timeout: match detail.timeout {
                None => Some(DEFAULT_TIMEOUT),
                Some(Timeout::After(span)) => Some(span),
                Some(Timeout::Never) => None,
            },
            kill_grace: detail.kill_grace.unwrap_or(DEFAULT_KILL_GRACE).into(),
        };
        let wrapper = self.policy.wrapper.clone();
        let script = detail.script.take();
        let detail = Arc::new(detail);
        let owner = user.as_ref().map(User::ids);
        let look = {
            let (detail, key) = (Arc::clone(&detail), key.clone());
            move || {
                let directory = workspace(&detail)?;
                let (command, script) = match script {
                    Some(script) => {
                        let script = Script::new(&script, &key, owner)?;
                        script_line(script, &detail, &directory)?
                    }
                    None => {
                        let command = command_line(&detail, wrapper.as_deref(), &directory)?;
                        (command, None)
                    }
                };
                Ok((command, script, directory))
            }
        };
        let (mut command, script, directory) = match &detail.workspace {
            None => {
                start.set_timeout(limits.timeout);
                look().map_err(failed)?
            }
            Some(workspace) => {
                let timeout = limits.timeout.map(Duration::from);
                let found = lookup::look(attempt, waker, timeout, look);
                let found: Result<Result<_, String>, _> =
                    found.map_err(|why| look_failed(why, workspace, limits));
                found?.map_err(failed)?
            }
        };
        if let Some(user) = &user {
            user.apply(&mut command);
        }
        self.set_environment(&mut command, job, instance, &detail)
            .map_err(failed)?;
        // Last, because no task may change it: the processes of the attempt are found by it.
        command.env(KEY_VARIABLE, &key);
        if let Some(workspace) = &detail.workspace {
            command.current_dir(workspace);
        }
        // Standard input is a pipe even when there is nothing to read: /dev/null may not exist.
        command.stdin(Stdio::piped());
        let merge = detail.merge_output.unwrap_or(false);
        let output = OutputPipes::open(&mut command, merge)
            .map_err(|why| failed(format!("no pipe for the output: {why}")))?;
        if self.needs_session {
            start_session(&mut command);
        } else {
            command.process_group(0);
        }
        Ok(Prepared {
            command,
            script,
            directory,
            key,
            stdin,
            output,
            limits,
        })
    }

    /// The environment is that of the agent without its secrets, then variables that describe the attempt,
    /// then the task's own, which win.
    fn set_environment(
        &self,
        command: &mut Command,
        job: &Job,
        instance: &str,
        detail: &Detail,
    ) -> Result<(), String> {
        for name in SECRETS.iter() {
            command.env_remove(name);
        }
        for (name, value) in &self.tags {
            command.env(name, value);
        }
        let attempt = job.id.attempt.to_string();
        for (name, value) in [
            ("SIDEBIKE_TASK_ID", &*job.task_id),
            ("SIDEBIKE_TASK_NAME", &job.task_name),
            ("SIDEBIKE_MACHINE_LABEL", &self.label),
            ("SIDEBIKE_INSTANCE", instance),
            ("SIDEBIKE_ATTEMPT", &attempt),
        ] {
            // A name is free text, and a variable cannot hold a NUL.
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
}

/// Why there is no command to supervise.
#[derive(Debug)]
pub enum NotStarted {
    /// It could not be started: the outcome of the attempt.
    Ended(Outcome),
    /// Its start took too long, and its attempt has ended meanwhile.
    LeftAlone,
}

/// A command that only has to be started.
struct Prepared {
    command: Command,
    /// The file of its script, if that has one.
    script: Option<TemporaryFile>,
    key: String,
    stdin: Vec<u8>,
    output: OutputPipes,
    limits: Limits,
    /// Where it starts.
    directory: PathBuf,
}

impl Prepared {
    /// Spawns the process. The error says why that could not be done.
    fn spawn(mut self) -> Result<Started, String> {
        let is_script = {
            let program = Path::new(self.command.get_program());
            let file = self.script.as_ref();
            script::is_descriptor(program) || file.is_some_and(|file| file.is_at(program))
        };
        let mut spawned = self.command.spawn();
        for _ in 0..SCRIPT_BUSY_TRIES {
            let is_busy =
                matches!(&spawned, Err(why) if why.kind() == ErrorKind::ExecutableFileBusy);
            if !is_script || !is_busy {
                break;
            }
            std::thread::sleep(SCRIPT_BUSY_PAUSE);
            spawned = self.command.spawn();
        }
        let child = spawned.map_err(|why| {
            let program = Path::new(self.command.get_program());
            let reason = start_failure::explain(&why, program, &self.directory);
            match is_script {
                true => format!("cannot start the script: {reason}"),
                false => format!("cannot start {}: {reason}", program.display()),
            }
        })?;
        Ok(Started {
            child,
            script: self.script,
            key: self.key,
            stdin: self.stdin,
            output: self.output,
            limits: self.limits,
        })
    }
}

fn failed(why: impl Into<String>) -> Outcome {
    Outcome::not_started(ExecutionState::Failed, why)
}

/// The outcome of an attempt whose workspace could not be looked at.
fn look_failed(why: LookFailed, workspace: &str, limits: Limits) -> Outcome {
    match why {
        LookFailed::Stopped(reason) => stopped(reason),
        LookFailed::Impossible(why) => {
            failed(format!("workspace {workspace:?} cannot be used: {why}"))
        }
        LookFailed::TimedOut => {
            let after = limits.timeout.unwrap_or_default();
            let msg = format!("timed out after {after}: workspace {workspace:?} does not answer");
            Outcome::not_started(ExecutionState::TimedOut, msg)
        }
    }
}

/// The bytes for standard input.
fn standard_input(detail: &mut Detail) -> Result<Vec<u8>, String> {
    match (detail.stdin.take(), detail.stdin_base64.take()) {
        (Some(_), Some(_)) => Err("detail: has both stdin and stdinBase64".into()),
        (text, None) => Ok(text.unwrap_or_default().into_bytes()),
        (None, Some(base64)) => STANDARD
            .decode(base64)
            .map_err(|why| format!("detail.stdinBase64: {why}")),
    }
}

/// Has the command start in a session of its own, which has no terminal. Its number is that of the process
/// group, as without it. Starting takes half as long again: std cannot use posix_spawn then.
#[allow(unsafe_code, reason = "std has no stable call for it")]
fn start_session(command: &mut Command) {
    // SAFETY: between fork and exec only this system call is made; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
}

/// The program and its arguments. With a wrapper that is the program, and they are its arguments.
fn command_line(detail: &Detail, wrapper: Option<&Path>, base: &Path) -> Result<Command, String> {
    match (&detail.command, &detail.argv) {
        (Some(line), None) => {
            let line = without_options(line);
            let path = std::env::var_os("PATH");
            let shell = path_lookup::shell(path.as_deref(), base);
            if let Some(wrapper) = wrapper {
                let mut command = Command::new(wrapper);
                // The wrapper may run the line where there is a shell, for instance in a container.
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
            let mut command = Command::new(program(name, detail, base)?);
            command.arg0(name).args(args);
            Ok(command)
        }
        _ => Err("detail: must have either command or argv".into()),
    }
}

/// A script and its arguments: run by the interpreter that its first line names, else by the shell.
fn script_line(
    script: Script,
    detail: &Detail,
    base: &Path,
) -> Result<(Command, Option<TemporaryFile>), String> {
    if detail.command.is_some() || detail.argv.is_some() {
        return Err("detail: must have one of command, argv and script".into());
    }
    let mut command = if script.has_interpreter {
        Command::new(script.path())
    } else {
        let path = std::env::var_os("PATH");
        let (name, shell) = path_lookup::shell(path.as_deref(), base)
            .ok_or("no shell (bash or sh) on this machine's PATH for a script without #! line")?;
        let mut command = Command::new(shell);
        command.arg0(name).arg(script.path());
        command
    };
    command.args(detail.script_args.iter().flatten());
    let file = script.hand_over(&mut command);
    Ok((command, file))
}

/// A shell takes a line that begins with a sign for options; a blank before it prevents that. `--` would
/// do as well, but wrappers expect the line right after `-c`.
fn without_options(line: &str) -> Cow<'_, str> {
    match line.starts_with(['-', '+']) {
        true => format!(" {line}").into(),
        false => line.into(),
    }
}

/// The directory the command runs in. It is checked first: an error of `exec` would not tell a missing
/// directory from a missing program.
fn workspace(detail: &Detail) -> Result<PathBuf, String> {
    let own = std::env::current_dir().unwrap_or_default();
    let Some(workspace) = &detail.workspace else {
        return Ok(own);
    };
    match std::fs::metadata(workspace) {
        Ok(found) if !found.is_dir() => Err(format!("workspace {workspace:?} is not a folder")),
        Ok(_) if access(workspace, Access::EXEC_OK).is_err() => Err(format!(
            "workspace {workspace:?} may not be entered by the agent's user (permission denied)"
        )),
        Ok(_) => Ok(own.join(workspace)),
        Err(why) => Err(format!("workspace {workspace:?} cannot be used: {why}")),
    }
}

/// The program called `name`, on the PATH that the command will have.
fn program(name: &str, detail: &Detail, base: &Path) -> Result<PathBuf, String> {
    if name.contains('/') {
        return Ok(name.into());
    }
    let own = || std::env::var_os("PATH");
    let given = detail.env.as_ref().and_then(|env| env.get("PATH"));
    let path = given.map(OsString::from).or_else(own);
    path_lookup::on_path(name, path.as_deref(), base)
        .ok_or_else(|| format!("no program {name:?} on this machine's PATH"))
}

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

/// Starts this program once more with other arguments, in a process group of its own: a signal of the
/// terminal goes to the agent's group, and the agent decides what it means.
pub fn spawn_self(args: &[OsString], stdin: Stdio, stdout: Stdio) -> io::Result<Child> {
    let unnamed = || io::Error::other("the path of this program is not known");
    // Without /proc only the name by which it was started is known.
    let own = std::env::current_exe().or_else(|_| {
        std::env::args_os()
            .next()
            .map(PathBuf::from)
            .ok_or_else(unnamed)
    })?;
    Command::new(own)
        .args(args)
        .stdin(stdin)
        .stdout(stdout)
        .process_group(0)
        .spawn()
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
