//! Starting one command: which program runs, in which directory and with which environment.
//!
//! How a program is made a process is in [`super::launch`], how a command that runs is watched and ended in
//! [`super::supervisor`]. To support a new field of `detail`: read it in
//! [`Runner::prepare`], and fail with a message where it cannot be honoured. It must never be ignored.
//!
//! Nothing here needs /dev, /proc or /etc: a container may have none of them.

use super::launch;
use super::lookup::{self, LookFailed};
use super::orphaned_pipes::OrphanedPipes;
use super::output_pipes::OutputPipes;
use super::path_lookup;
use super::policy;
use super::program::{Program, Surroundings};
use super::script::{self, Script, TemporaryFile};
use super::start_failure;
use super::start_watch::{Start, stopped};
use super::supervisor::{Limits, Started, Supervisor};
use super::survivors::Survivors;
use super::undo_plan;
use super::user::User;
use crate::agent::attempt::{Attempt, Outcome, StopReason, Waker};
use crate::agent::backoff::random_id;
use crate::agent::files::folder;
use crate::agent::probes::StartedProbe;
use crate::agent::processes::guard::Guard;
use crate::agent::processes::inheritance;
use crate::agent::processes::process_table::KEY_VARIABLE;
use crate::agent::state::{AgentState, Job, UndoJob};
use crate::agent::undo::deadman::{Deadman, silence};
use crate::agent::undo::ledger::new_report;
use crate::agent::undo::machine::{Action, Event};
use crate::agent::undo::plan::UndoPlan;
use crate::agent::undo::run::Process;
use crate::config::CommandPolicy;
use crate::rules::{MAX_STDIN_BYTES, tag_variable};
use crate::wire::agent::AttemptId;
use crate::wire::probe::ProbeOrder;
use crate::wire::task::{DEFAULT_KILL_GRACE, Detail, ExecutionState};
use crate::wire::undo::{Undo, UndoState};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Access, access};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// The length of the key of an attempt: 128 bits as hexadecimal digits.
const KEY_DIGITS: usize = 32;
/// The variable that tells the programs of an attempt with an undo what they are for.
pub const PHASE_VARIABLE: &str = "SIDEBIKE_PHASE";

/// The variable that names the folder of files that a task brings without a path.
const FILES_VARIABLE: &str = "SIDEBIKE_FILES";

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

    /// The guard.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Where the pipes of background processes are drained.
    pub fn orphaned_pipes(&self) -> &OrphanedPipes {
        &self.orphaned_pipes
    }

    /// Starts the command of `job`. One with an undo is armed before.
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
            Ok(Spawned { started, waker, .. }) if is_ours => {
                attempt.advance(Event::Started);
                Ok(Supervisor::new(
                    state,
                    attempt,
                    &self.guard,
                    &self.orphaned_pipes,
                    &self.survivors,
                    waker,
                    started,
                ))
            }
            Ok(Spawned { started, plan, .. }) => {
                started.kill();
                let is_listed = !attempt.has_undo();
                let key = is_listed.then_some(started.key);
                self.survivors.add(started.child, key);
                Err(NotStarted::LeftAlone(plan))
            }
            Err(outcome) if is_ours => Err(NotStarted::Ended(outcome)),
            Err(_) => Err(NotStarted::LeftAlone(None)),
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
    ) -> Result<Spawned<'a>, Outcome> {
        let waker = waker.ok_or_else(|| failed("this machine has no file descriptors left"))?;
        // Set the waker before looking for an order to stop: an order after the look wakes.
        attempt.set_waker(waker.clone());
        if let Some(reason) = attempt.stop_reason() {
            return Err(stopped(reason));
        }
        let key = match &job.key {
            Some(key) if is_key(key) => key.clone(),
            _ => random_id().map_err(failed)?,
        };
        let has_undo = attempt.has_undo();
        if !has_undo {
            // Before the start: if the agent is killed meanwhile, the guard finds the command by its key.
            self.guard.add(&key);
        }
        let order = Order {
            id: &job.id,
            task_id: &job.task_id,
            task_name: &job.task_name,
            instance: &state.instance(),
            key: &key,
            files: attempt.with_files(|files| files.folder.clone()).flatten(),
        };
        let prepared = self.prepare(&job.detail, &order, attempt, waker, start);
        let mut armed = None;
        let started = prepared.and_then(|mut prepared| {
            if let Some(plan) = prepared.plan.take() {
                armed = Some(Box::new(plan.clone()));
                self.arm_attempt(plan, state, attempt)?;
            }
            // Preparing may have taken a while, and there must be no start after an order to stop.
            if let Some(reason) = attempt.stop_reason() {
                return Err(stopped(reason));
            }
            if start.is_left_alone() {
                return Err(failed("its time is up"));
            }
            start.set_timeout(prepared.limits.timeout);
            if has_undo {
                self.guard.may_start(&key).map_err(failed)?;
                advance(attempt, Event::Start, Action::Start)?;
            }
            prepared.spawn().map_err(failed)
        });
        let started = started.inspect_err(|_| match has_undo {
            // The watch over starts has given up on it: whoever undoes it disarms it.
            true if attempt.is_undoing() => {}
            true => self.guard.disarm(&key),
            false => self.guard.remove(&key),
        })?;
        Ok(Spawned {
            started,
            waker,
            plan: armed,
        })
    }

    /// Has the guard acknowledge the plan, and the server be told.
    fn arm_attempt(
        &self,
        plan: UndoPlan,
        state: &AgentState,
        attempt: &Attempt,
    ) -> Result<(), Outcome> {
        // It may have waited for a free job.
        if let Some(limit) = plan.deadman
            && state.contact.age() >= Duration::from(limit)
        {
            return Err(failed(silence(limit)));
        }
        advance(attempt, Event::Prepared, Action::Arm)?;
        // Before the guard has it: from then on it may say that it does not work any more.
        attempt.keep_plan(plan.clone());
        self.guard.arm(&plan).map_err(|why| {
            failed(format!(
                "not started, because its undo could not be armed: {why}"
            ))
        })?;
        advance(attempt, Event::Acknowledged, Action::ReportArmed)?;
        state.note_undo(new_report(attempt.id.clone(), UndoState::Armed));
        Ok(())
    }

    /// How to run an undo that the server orders. The error is the reason why it cannot be run.
    pub fn plan_order(&self, job: &UndoJob, instance: &str) -> Result<UndoPlan, String> {
        if !is_key(&job.key) {
            return Err("the key of the attempt must be 32 hexadecimal digits".into());
        }
        let detail = parse(&job.detail)?;
        let user = self.allowed_user(&detail)?;
        let id = AttemptId {
            execution: job.execution.clone(),
            attempt: job.attempt,
        };
        let files = &self.policy.files;
        let order = Order {
            id: &id,
            task_id: &job.task_id,
            task_name: &job.task_name,
            instance,
            key: &job.key,
            files: folder::known(files.folder.as_deref(), files.root.as_deref()),
        };
        let own = std::env::current_dir().unwrap_or_default();
        let directory = own.join(detail.workspace.as_deref().unwrap_or_default());
        let programs = undo_plan::programs(&detail, self.policy.wrapper.as_deref(), &directory)?;
        let surroundings = Surroundings {
            directory: None,
            variables: self.variables(&order, &detail, user.as_ref())?,
            user: user.map(|user| user.ids),
            needs_session: self.needs_session,
        };
        let mut plan = undo_plan::plan(&order, &detail, programs, &directory, surroundings)
            .ok_or("the order has no undo")?;
        plan.deadman = None;
        plan.command_timeout = None;
        plan.because(job.reason);
        plan.command_ended(job.exit_code, job.stdout.as_bytes());
        Ok(plan)
    }

    /// Starts a probe. The error says why it could not be started, or may not.
    pub fn start_probe(&self, order: &ProbeOrder, instance: &str) -> Result<StartedProbe, String> {
        let detail = Detail {
            command: order.command.clone(),
            argv: order.argv.clone(),
            ..Detail::default()
        };
        policy::check(&self.policy, &detail)?;
        let directory = std::env::current_dir().unwrap_or_default();
        let program = command_line(&detail, self.policy.wrapper.as_deref(), &directory)?;
        let mut variables = self.tags.clone();
        for (name, value) in [
            ("SIDEBIKE_TASK_ID", &*order.task_id),
            ("SIDEBIKE_TASK_NAME", &order.task_name),
            ("SIDEBIKE_MACHINE_LABEL", &self.label),
            ("SIDEBIKE_INSTANCE", instance),
            ("SIDEBIKE_PROBE", &order.name),
            (PHASE_VARIABLE, "probe"),
        ] {
            variables.push((name.to_owned(), value.replace('\0', "")));
        }
        let surroundings = Surroundings {
            directory: None,
            variables,
            user: None,
            needs_session: self.needs_session,
        };
        // One of its own: what has the key of an attempt is ended with that.
        let key = random_id()?;
        // Before the start: if the agent is killed meanwhile, the guard finds it by its key.
        self.guard.add(&key);
        let started = launch::spawn_program(
            &program,
            &surroundings,
            &[(KEY_VARIABLE, Some(key.clone()))],
        );
        match started {
            Ok((child, pipe)) => Ok(StartedProbe {
                process: Process::new(child, pipe),
                key,
            }),
            Err(why) => {
                self.guard.remove(&key);
                Err(why)
            }
        }
    }

    /// Checks the owner's rules for a request of a probe, as for a command with the text `GET URL`. A wrapper cannot
    /// decide about it, so with one alone it is refused.
    pub fn check_request(&self, url: &str) -> Result<(), String> {
        if self.policy.wrapper.is_some() && self.policy.allow.is_empty() {
            return Err("refused by this machine's owner: with --wrapper an http probe needs an --allow pattern that matches \"GET URL\"".into());
        }
        let detail = Detail {
            command: Some(format!("GET {url}")),
            ..Detail::default()
        };
        policy::check(&self.policy, &detail)
    }

    /// The detail of an order, if the owner's rules allow what it runs. One without a command runs nothing.
    pub fn check(&self, detail: &RawValue) -> Result<Detail, String> {
        let detail = parse(detail)?;
        if detail.command.is_some() || detail.argv.is_some() || detail.script.is_some() {
            self.allowed_user(&detail)?;
        }
        Ok(detail)
    }

    /// Checks the owner's rules, for the command and for what belongs to it. The user to run it as.
    fn allowed_user(&self, detail: &Detail) -> Result<Option<User>, String> {
        policy::check(&self.policy, detail)?;
        for (what, part) in undo_plan::parts(detail)? {
            policy::check(&self.policy, &part).map_err(|why| format!("{what}: {why}"))?;
        }
        let user = detail.user.as_deref().map(User::find).transpose()?;
        if let Some(user) = &user {
            policy::check_user(&self.policy, &user.name)?;
        }
        Ok(user)
    }

    /// Does all that can be done before the start. The error is the outcome if that fails.
    fn prepare(
        &self,
        detail: &RawValue,
        order: &Order<'_>,
        attempt: &Attempt,
        waker: &Waker,
        start: &Start<'_>,
    ) -> Result<Prepared, Outcome> {
        let mut detail = parse(detail).map_err(failed)?;
        let user = self.allowed_user(&detail).map_err(failed)?;
        let stdin = standard_input(&mut detail).map_err(failed)?;
        if stdin.len() > MAX_STDIN_BYTES {
            return Err(failed(format!(
                "detail.stdin: must have {MAX_STDIN_BYTES} bytes at most, got {}",
                stdin.len()
            )));
        }
        let limits = Limits {
            timeout: undo_plan::command_timeout(&detail),
            kill_grace: detail.kill_grace.unwrap_or(DEFAULT_KILL_GRACE).into(),
            undo: detail.undo.as_ref().map(|undo| Deadman(undo.deadman())),
        };
        if limits.undo.is_some() && limits.timeout.is_none() {
            let why = "detail.timeout: must not be -1 with an undo, an experiment has an end";
            return Err(failed(why));
        }
        let wrapper = self.policy.wrapper.clone();
        let script = detail.script.take();
        let detail = Arc::new(detail);
        let owner = user.as_ref().map(User::owner);
        let look = {
            let (detail, key) = (Arc::clone(&detail), order.key.to_owned());
            move || {
                let directory = workspace(&detail)?;
                let (command, script) = match script {
                    Some(script) => {
                        let script = Script::new(&script, &key, owner)?;
                        script_line(script, &detail, &directory)?
                    }
                    None => {
                        let program = command_line(&detail, wrapper.as_deref(), &directory)?;
                        (launch::to_command(&program), None)
                    }
                };
                let undo = undo_plan::programs(&detail, wrapper.as_deref(), &directory)?;
                Ok((command, script, directory, undo))
            }
        };
        let (mut command, script, directory, undo) = match &detail.workspace {
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
        let variables = { self.variables(order, &detail, user.as_ref()) }.map_err(failed)?;
        let surroundings = Surroundings {
            directory: detail.workspace.as_ref().map(|_| directory.clone()),
            variables,
            user: user.map(|user| user.ids),
            needs_session: self.needs_session,
        };
        launch::surround(&mut command, &surroundings);
        // Last, because no task may change it: the processes of the attempt are found by it.
        command.env(KEY_VARIABLE, order.key);
        let plan = undo_plan::plan(order, &detail, undo, &directory, surroundings);
        if plan.is_some() {
            command.env(PHASE_VARIABLE, "command");
        }
        // Standard input is a pipe even when there is nothing to read: /dev/null may not exist.
        command.stdin(Stdio::piped());
        let merge = detail.merge_output.unwrap_or(false);
        let output = OutputPipes::open(&mut command, merge)
            .map_err(|why| failed(format!("no pipe for the output: {why}")))?;
        let key = order.key.to_owned();
        Ok(Prepared {
            plan,
            command,
            script,
            directory,
            key,
            stdin,
            output,
            limits,
        })
    }

    /// The variables that are added to the environment of the agent: those that describe the user and the attempt,
    /// then the task's own, which win.
    fn variables(
        &self,
        order: &Order<'_>,
        detail: &Detail,
        user: Option<&User>,
    ) -> Result<Vec<(String, String)>, String> {
        let mut variables = user.map(User::variables).unwrap_or_default();
        variables.extend(self.tags.iter().cloned());
        let attempt = order.id.attempt.to_string();
        for (name, value) in [
            ("SIDEBIKE_TASK_ID", order.task_id),
            ("SIDEBIKE_TASK_NAME", order.task_name),
            ("SIDEBIKE_MACHINE_LABEL", &self.label),
            ("SIDEBIKE_INSTANCE", order.instance),
            ("SIDEBIKE_ATTEMPT", &attempt),
        ] {
            // A name is free text, and a variable cannot hold a NUL.
            variables.push((name.to_owned(), value.replace('\0', "")));
        }
        if let Some(folder) = &order.files {
            let folder = folder.to_string_lossy().into_owned();
            variables.push((FILES_VARIABLE.to_owned(), folder));
        }
        for (name, value) in detail.env.iter().flatten() {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("detail.env: {name:?} cannot be a variable's name"));
            }
            if value.contains('\0') {
                return Err(format!("detail.env: the value of {name:?} contains a NUL"));
            }
            variables.push((name.clone(), value.clone()));
        }
        Ok(variables)
    }
}

/// Why there is no command to supervise.
#[derive(Debug)]
pub enum NotStarted {
    /// It could not be started: the outcome of the attempt.
    Ended(Outcome),
    /// Its start took too long, and its attempt has ended meanwhile. If the command was started after all, with how it is
    /// undone.
    LeftAlone(Option<Box<UndoPlan>>),
}

/// A command that was started, for whoever supervises it.
struct Spawned<'a> {
    started: Started,
    waker: &'a Waker,
    /// How it is undone, if it has an undo.
    plan: Option<Box<UndoPlan>>,
}

/// What an order says about an attempt, beside its detail.
pub(super) struct Order<'a> {
    pub id: &'a AttemptId,
    pub task_id: &'a str,
    pub task_name: &'a str,
    pub instance: &'a str,
    pub key: &'a str,
    /// The folder of files without a path, if it may need that.
    pub files: Option<PathBuf>,
}

/// A command that only has to be started.
struct Prepared {
    /// How it is undone, if it has an undo.
    plan: Option<UndoPlan>,
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

/// The detail of an order.
fn parse(detail: &RawValue) -> Result<Detail, String> {
    #[derive(Deserialize)]
    struct UndoAlone {
        #[serde(default, deserialize_with = "Undo::strict")]
        #[allow(dead_code, reason = "only the error counts")]
        undo: Option<Box<Undo>>,
    }
    serde_json::from_str(detail.get()).map_err(|why| {
        let version = env!("CARGO_PKG_VERSION");
        let undo = serde_json::from_str::<UndoAlone>(detail.get()).err();
        let part = if undo.is_some() { "`undo`: " } else { "" };
        format!("this agent (version {version}) does not understand the detail: {part}{why}")
    })
}

/// Whether a text can be the key of an attempt: processes are found by it, so it must not be a common word.
fn is_key(key: &str) -> bool {
    key.len() == KEY_DIGITS && key.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Tells the machine of an undo what happened. The error is the outcome if something else is to be done next than was
/// expected: the attempt was stopped meanwhile.
fn advance(attempt: &Attempt, event: Event, expected: Action) -> Result<(), Outcome> {
    match attempt.advance(event) == Some(expected) {
        true => Ok(()),
        false => Err(stopped(
            attempt.stop_reason().unwrap_or(StopReason::Canceled),
        )),
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

/// The program and its arguments. With a wrapper that is the program, and they are its arguments.
pub(super) fn command_line(
    detail: &Detail,
    wrapper: Option<&Path>,
    base: &Path,
) -> Result<Program, String> {
    match (&detail.command, &detail.argv) {
        (Some(line), None) => {
            let line = without_options(line);
            let path = std::env::var_os("PATH");
            let shell = path_lookup::shell(path.as_deref(), base);
            let args = ["-c".to_owned(), line.into_owned()];
            if let Some(wrapper) = wrapper {
                // The wrapper may run the line where there is a shell, for instance in a container.
                let name = shell.map_or("sh", |(name, _)| name).to_owned();
                return Ok(Program {
                    file: wrapper.into(),
                    name: None,
                    args: [name].into_iter().chain(args).collect(),
                });
            }
            let (name, shell) =
                shell.ok_or("no shell (bash or sh) on this machine's PATH; use detail.argv")?;
            Ok(Program {
                file: shell,
                name: Some(name.into()),
                args: args.into(),
            })
        }
        (None, Some(argv)) => {
            let (name, args) = argv
                .split_first()
                .filter(|(name, _)| !name.is_empty())
                .ok_or("detail.argv: must name a program")?;
            Ok(match wrapper {
                Some(wrapper) => Program {
                    file: wrapper.into(),
                    name: None,
                    args: argv.clone(),
                },
                None => Program {
                    file: program(name, detail, base)?,
                    name: Some(name.clone()),
                    args: args.into(),
                },
            })
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
    let program = if script.has_interpreter {
        Program {
            file: script.path(),
            name: None,
            args: Vec::new(),
        }
    } else {
        let path = std::env::var_os("PATH");
        let (name, shell) = path_lookup::shell(path.as_deref(), base)
            .ok_or("no shell (bash or sh) on this machine's PATH for a script without #! line")?;
        Program {
            file: shell,
            name: Some(name.into()),
            args: Vec::new(),
        }
    };
    let mut command = launch::to_command(&program);
    if !script.has_interpreter {
        command.arg(script.path());
    }
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
