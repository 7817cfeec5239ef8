//! The laws: what must be true after every step. Each is a function named after it.

use crate::agent::{KEPT_BYTES, STREAMS, text};
use crate::server::Server;
use crate::users::TaskModel;
use crate::world::{AttemptKey, Lawful, Ms};
use sidebike::core::{Core, ExecutionView, Output, Task, TaskKey};
use sidebike::wire::agent::{Assignment, Feature};
use sidebike::wire::machine::MachineState;
use sidebike::wire::task::{Detail, ExecutionState, Mode, TaskState};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What the simulation knows of the hand-out of an attempt.
pub struct HandOut<'a> {
    pub now: Ms,
    pub key: AttemptKey,
    pub draining: bool,
    pub task: Option<&'a TaskModel>,
}

/// A command's end, as its agent saw it.
#[derive(Debug, Clone)]
pub struct RealEnd {
    pub state: ExecutionState,
    /// To each stream.
    pub written: [u64; 2],
}

#[derive(Debug, Default)]
pub struct Laws {
    /// Which agent started which attempt; kept across restarts of the server.
    starts: HashMap<AttemptKey, usize>,
    starts_of_task: HashMap<(u32, TaskKey), u32>,
    ends: HashMap<AttemptKey, RealEnd>,
    /// Ended by the guard of an agent, which reports them as failed.
    guard_ends: HashSet<AttemptKey>,
    /// Canceled before they were handed out.
    never_to_start: HashMap<(TaskKey, u32), u32>,
    canceled: HashSet<TaskKey>,
    tasks: HashMap<TaskKey, TaskState>,
    executions: HashMap<(TaskKey, u32), (ExecutionState, u32)>,
    finished: HashSet<TaskKey>,
    heard: HashMap<String, Ms>,
    left: HashSet<String>,
    /// The connections of their polls broke, and nothing was heard of them since.
    hung_up: HashSet<String>,
    server_back_at: Ms,
    /// Since when.
    offline: HashMap<String, Ms>,
    /// Results that the server said it has taken.
    taken: HashSet<AttemptKey>,
    /// Handed to a hostile agent, or to one of two that have the same instance: it is reported what they like.
    untrusted: HashSet<AttemptKey>,
}

/// What the laws remember of the server's state; after a crash it is reset to the saved state.
#[derive(Debug, Clone)]
pub struct Memory {
    never_to_start: HashMap<(TaskKey, u32), u32>,
    canceled: HashSet<TaskKey>,
    tasks: HashMap<TaskKey, TaskState>,
    executions: HashMap<(TaskKey, u32), (ExecutionState, u32)>,
    finished: HashSet<TaskKey>,
}

impl Laws {
    /// The present memory of the server's state.
    pub fn memory(&self) -> Memory {
        Memory {
            never_to_start: self.never_to_start.clone(),
            canceled: self.canceled.clone(),
            tasks: self.tasks.clone(),
            executions: self.executions.clone(),
            finished: self.finished.clone(),
        }
    }

    /// The server crashed and has its saved state again. What agents did remains done.
    pub fn roll_back(&mut self, memory: Memory, core: &Core) {
        let Memory {
            never_to_start,
            canceled,
            tasks,
            executions,
            finished,
        } = memory;
        self.never_to_start = never_to_start;
        self.canceled = canceled;
        self.tasks = tasks;
        self.executions = executions;
        self.finished = finished;
        let offline = core.machine_states();
        let offline = offline.filter(|(_, state)| *state == MachineState::Offline);
        self.offline = offline.map(|(instance, _)| (instance.into(), 0)).collect();
    }

    /// The server crashed without a database. What agents did remains done.
    pub fn wipe(&mut self) {
        *self = Laws {
            starts: std::mem::take(&mut self.starts),
            starts_of_task: std::mem::take(&mut self.starts_of_task),
            ends: std::mem::take(&mut self.ends),
            guard_ends: std::mem::take(&mut self.guard_ends),
            untrusted: std::mem::take(&mut self.untrusted),
            ..Laws::default()
        };
    }

    pub fn heard_of(&mut self, now: Ms, instance: &str) {
        self.heard.insert(instance.into(), now);
        self.hung_up.remove(instance);
    }

    /// The connection of a held poll broke.
    pub fn hung_up(&mut self, instance: &str) {
        self.hung_up.insert(instance.into());
    }

    pub fn server_stopped_until(&mut self, time: Ms) {
        self.server_back_at = time;
    }

    /// Goodbyes that a crashed server had not saved do not count: they were not acknowledged.
    pub fn forget_unsaved_goodbyes<'a>(
        &mut self,
        restored: impl Iterator<Item = (&'a str, MachineState)>,
    ) {
        for (instance, state) in restored {
            if state != MachineState::Offline {
                self.left.remove(instance);
            }
        }
    }

    /// Whether a machine has said goodbye.
    pub fn has_left(&self, instance: &str) -> bool {
        self.left.contains(instance)
    }

    pub fn left(&mut self, instance: &str) {
        self.left.insert(instance.into());
    }

    /// Whether a user's cancel of the whole task was answered.
    pub fn is_canceled(&self, key: TaskKey) -> bool {
        self.canceled.contains(&key)
    }

    /// A task is withdrawn: what is left of it is canceled.
    pub fn withdrawn(&mut self, key: TaskKey) {
        self.canceled.insert(key);
    }

    /// A user's cancel was answered.
    pub fn canceled(
        &mut self,
        core: &Core,
        key: TaskKey,
        before: &[(u32, ExecutionState)],
        all: bool,
    ) {
        if all {
            self.canceled.insert(key);
        }
        let Some((_, task)) = core.tasks_by_key().find(|(k, _)| *k == key) else {
            return;
        };
        for execution in task.execution_views() {
            let waited = [ExecutionState::Queued, ExecutionState::Held]
                .iter()
                .any(|state| before.contains(&(execution.n, *state)));
            if waited && execution.state == ExecutionState::Canceled {
                self.never_to_start
                    .insert((key, execution.n), execution.attempt);
            }
        }
    }

    /// What is reported of an attempt may be made up, and two processes may start it.
    pub fn nobody_knows_what_becomes_of(&mut self, key: AttemptKey) {
        self.untrusted.insert(key);
    }

    /// A model agent starts a command.
    pub fn started(&mut self, key: AttemptKey, who: usize, task: Option<&TaskModel>) -> Lawful {
        if self.untrusted.contains(&key) {
            self.starts.insert(key, who);
            return Ok(());
        }
        self.no_attempt_starts_twice(key, who)?;
        let starts = self
            .starts_of_task
            .entry((key.epoch, key.task))
            .or_default();
        *starts += 1;
        let starts = *starts;
        if let Some(task) = task.filter(|task| task.epoch == key.epoch) {
            any_without_retry_starts_once(task, starts)?;
            self.what_was_canceled_before_it_was_handed_out_never_starts(key)?;
        }
        Ok(())
    }

    /// A command of a model agent ended.
    pub fn ended(&mut self, key: AttemptKey, end: RealEnd) {
        self.ends.insert(key, end);
    }

    /// The guard of an agent reports the end of an attempt.
    pub fn guard_ended(&mut self, key: AttemptKey) {
        self.guard_ends.insert(key);
    }

    /// A result that was taken once is taken again, also after a retry: its agent may not have heard of it.
    pub fn verdict(&mut self, core: &Core, key: AttemptKey, taken: bool) -> Lawful {
        if taken {
            self.taken.insert(key);
            return Ok(());
        }
        let current = core.tasks_by_key().find(|(task, _)| *task == key.task);
        let current = current.and_then(|(_, task)| {
            let mut views = task.execution_views();
            views.find(|e| e.n == key.n).map(|e| e.attempt)
        });
        let kept = current.is_some_and(|current| current <= key.attempt + 10);
        if kept && self.taken.contains(&key) {
            return Err(format!("what_was_taken_is_taken_again: {key:?}"));
        }
        Ok(())
    }

    /// An attempt is started at most once, on whatever machine.
    fn no_attempt_starts_twice(&mut self, key: AttemptKey, who: usize) -> Lawful {
        match self.starts.insert(key, who) {
            None => Ok(()),
            Some(first) => Err(format!(
                "no_attempt_starts_twice: {key:?}, by agents {first} and {who}"
            )),
        }
    }

    /// An execution that was canceled while queued never starts.
    fn what_was_canceled_before_it_was_handed_out_never_starts(&self, key: AttemptKey) -> Lawful {
        if self.is_never_to_start(key) {
            return Err(format!(
                "what_was_canceled_before_it_was_handed_out_never_starts: {key:?}"
            ));
        }
        Ok(())
    }

    fn is_never_to_start(&self, key: AttemptKey) -> bool {
        let canceled = self.never_to_start.get(&(key.task, key.n));
        canceled.is_some_and(|attempt| key.attempt >= *attempt)
    }

    /// The server puts an attempt into an answer.
    pub fn handed_out(&self, out: HandOut<'_>) -> Lawful {
        let HandOut {
            now,
            key,
            draining,
            task,
        } = out;
        // After a cancel was answered, nothing of the task is handed out.
        if self.canceled.contains(&key.task) || self.is_never_to_start(key) {
            return Err(format!("nothing_canceled_is_handed_out: {key:?}"));
        }
        // An agent that is about to end gets no more work.
        if draining {
            return Err(format!("nobody_draining_is_handed_anything: {key:?}"));
        }
        // Nothing is handed out after its ttl.
        let own_time = |task: &&TaskModel| !task.pace.is_rolled_out() && key.attempt == 1;
        let late = |task: &&TaskModel| now >= task.created + task.ttl;
        if let Some(task) = task.filter(own_time).filter(late) {
            return Err(format!(
                "nothing_is_handed_out_after_its_ttl: {key:?}, {} ms late",
                now - task.created - task.ttl
            ));
        }
        Ok(())
    }

    /// The server sends an answer that has waited for the disk: what was canceled meanwhile is not in it.
    pub fn sent(&self, keys: &[AttemptKey]) -> Lawful {
        let canceled = |key: &&AttemptKey| self.canceled.contains(&key.task);
        match keys.iter().find(canceled) {
            Some(key) => Err(format!("nothing_canceled_is_sent: {key:?}")),
            None => Ok(()),
        }
    }

    /// The end of a task is announced once.
    pub fn finished(&mut self, key: TaskKey) -> Lawful {
        if self.finished.insert(key) {
            return Ok(());
        }
        Err(format!("a_task_ends_once: {key:?}"))
    }

    /// Checks everything, after every step.
    pub fn look(&mut self, now: Ms, server: &Server) -> Lawful {
        for (key, task) in server.core.tasks_by_key() {
            self.no_task_changes_after_its_end(key, task.state(), server.core.is_finished(key))?;
            let mut instances: Vec<&str> = Vec::new();
            for seen in task.execution_views() {
                if let Some(instance) = seen.instance.filter(|_| task.spec.mode == Mode::All) {
                    // Each machine has an `all` task at most once, whenever it came online.
                    if instances.contains(&instance) {
                        return Err(format!("one_execution_per_machine: {key:?} {instance}"));
                    }
                    instances.push(instance);
                }
                what_could_run_elsewhere_is_not_lost_unstarted(key, task.spec.mode, &seen)?;
                what_any_may_run_does_not_fail_where_it_cannot(key, task.spec.mode, &seen)?;
                self.no_queue_is_forgotten_before_its_time(now, key, &seen)?;
                let known = self
                    .executions
                    .insert((key, seen.n), (seen.state, seen.attempt));
                if known == Some((seen.state, seen.attempt)) {
                    continue;
                }
                let attempt = AttemptKey {
                    epoch: server.epoch,
                    task: key,
                    n: seen.n,
                    attempt: seen.attempt,
                };
                no_execution_changes_after_its_end(attempt, known, (seen.state, seen.attempt))?;
                self.nothing_is_overdue_while_the_server_was_away(now, attempt, &seen)?;
                self.results_are_what_really_happened(attempt, seen.state, seen.msg)
                    .map_err(|law| format!("{law} {:?}", seen.msg))?;
            }
        }
        nothing_that_could_run_waits_for_a_busy_machine(&server.core)?;
        self.no_machine_goes_offline_too_early(now, &server.core)?;
        self.who_said_goodbye_never_comes_back(server)
    }

    /// What is queued for an offline machine is not lost before that machine is forgotten after its ten minutes,
    /// however many new machines come.
    fn no_queue_is_forgotten_before_its_time(
        &self,
        now: Ms,
        key: TaskKey,
        seen: &ExecutionView<'_>,
    ) -> Lawful {
        let known = self.executions.get(&(key, seen.n));
        let is_new = known.is_none_or(|(state, _)| *state != ExecutionState::Lost);
        let forgotten = seen.state == ExecutionState::Lost
            && seen.msg == "its machine went away before it started";
        // One with the original's agent is gone at once when one of ours takes its label.
        let since = seen
            .instance
            .filter(|instance| !sidebike::core::is_of_original(instance))
            .and_then(|instance| self.offline.get(instance));
        match since {
            Some(since) if is_new && forgotten && now < since + 600_000 => Err(format!(
                "no_queue_is_forgotten_before_its_time: {key:?} after {} ms",
                now - since
            )),
            _ => Ok(()),
        }
    }

    /// A terminal state of a task never changes.
    fn no_task_changes_after_its_end(
        &mut self,
        key: TaskKey,
        state: TaskState,
        finished: bool,
    ) -> Lawful {
        let before = self.tasks.insert(key, state);
        if state.is_terminal() != finished
            || before.is_some_and(|before| before.is_terminal() && before != state)
        {
            return Err(format!(
                "no_task_changes_after_its_end: {key:?} from {before:?} to {state:?}"
            ));
        }
        Ok(())
    }

    /// Nothing is overdue while the server itself was paused: no report could arrive.
    fn nothing_is_overdue_while_the_server_was_away(
        &self,
        now: Ms,
        key: AttemptKey,
        seen: &ExecutionView<'_>,
    ) -> Lawful {
        let overdue = seen.state == ExecutionState::Lost
            && (seen.msg.contains("did not report") || seen.msg.contains("did not confirm"));
        if overdue && now < self.server_back_at + 60_000 {
            return Err(format!(
                "nothing_is_overdue_while_the_server_was_away: {key:?}"
            ));
        }
        Ok(())
    }

    /// An agent of the original is handed nothing that it cannot express.
    pub fn an_original_can_do_what_it_is_handed(&self, detail: &Detail) -> Lawful {
        match detail.env.is_some() || detail.needs().next().is_some() {
            true => Err("an_original_can_do_what_it_is_handed".into()),
            false => Ok(()),
        }
    }

    /// An agent is handed nothing that it cannot do.
    pub fn an_agent_can_do_what_it_is_handed(
        &self,
        job: &Assignment<Arc<Detail>>,
        features: &[Feature],
    ) -> Lawful {
        let update = job.update.as_ref().map(|_| Feature::Update);
        match job
            .detail
            .needs()
            .chain(update)
            .find(|need| !features.contains(need))
        {
            Some(need) => Err(format!("an_agent_can_do_what_it_is_handed: {need:?}")),
            None => Ok(()),
        }
    }

    /// The server reports the end of an attempt as its agent saw it.
    fn results_are_what_really_happened(
        &self,
        key: AttemptKey,
        state: ExecutionState,
        msg: &str,
    ) -> Lawful {
        if self.untrusted.contains(&key) {
            return Ok(());
        }
        let started = self.starts.contains_key(&key);
        let end = self.ends.get(&key).map(|end| end.state);
        // A retry that was not started in time leaves the execution as the attempt before ended.
        let unstarted = [
            "was not started within its ttl",
            "was stopped; attempt",
            "was stopped: keepAlive",
            "was stopped after",
        ];
        let retry_expired = !started && unstarted.iter().any(|why| msg.contains(why));
        let before = AttemptKey {
            attempt: key.attempt.saturating_sub(1),
            ..key
        };
        let end_before = self.ends.get(&before).map(|end| end.state);
        let is_end_before = |state| {
            let by_guard = state == ExecutionState::Failed && self.guard_ends.contains(&before);
            end_before == Some(state) || by_guard || self.untrusted.contains(&before)
        };
        let right = match state {
            // Refused for an agent that cannot do it, which never saw it.
            ExecutionState::Failed if is_beyond_its_agent(msg) || is_locked(msg) => !started,
            ExecutionState::Failed if self.guard_ends.contains(&key) => started,
            ExecutionState::Failed | ExecutionState::TimedOut if retry_expired => {
                is_end_before(state)
            }
            ExecutionState::Succeeded | ExecutionState::Failed | ExecutionState::TimedOut => {
                end == Some(state)
            }
            ExecutionState::Canceled => !started || end == Some(state) || self.is_original(key),
            // Not even an earlier attempt.
            ExecutionState::Expired => !started && key.attempt == 1,
            ExecutionState::Running => started,
            ExecutionState::Held
            | ExecutionState::Queued
            | ExecutionState::Delivered
            | ExecutionState::Lost
            | ExecutionState::Skipped => true,
        };
        if right {
            return Ok(());
        }
        Err(format!(
            "results_are_what_really_happened: {key:?} is {state:?}, started {started}, ended {end:?}"
        ))
    }

    fn is_original(&self, key: AttemptKey) -> bool {
        self.starts
            .get(&key)
            .is_some_and(|who| *who >= crate::agent::ORIGINALS)
    }

    /// A machine goes offline when it said goodbye, or 45 s after its last request arrived, however slow the network.
    fn no_machine_goes_offline_too_early(&mut self, now: Ms, core: &Core) -> Lawful {
        for (instance, state) in core.machine_states() {
            if state != MachineState::Offline {
                self.offline.remove(instance);
                continue;
            }
            if !self.offline.contains_key(instance) {
                self.offline.insert(instance.into(), now);
                let silent = now - self.heard.get(instance).copied().unwrap_or(0);
                // One with its label and host has taken its place.
                let is_replaced = self.hung_up.contains(instance);
                if silent < 45_000 && !self.left.contains(instance) && !is_replaced {
                    return Err(format!(
                        "no_machine_goes_offline_too_early: {instance} after {silent} ms"
                    ));
                }
            }
        }
        Ok(())
    }

    /// A poll after the goodbye is refused as long as the machine is known.
    fn who_said_goodbye_never_comes_back(&mut self, server: &Server) -> Lawful {
        if self.left.is_empty() {
            return Ok(());
        }
        let known: HashMap<&str, MachineState> = server.core.machine_states().collect();
        self.left.retain(|instance| known.contains_key(&**instance));
        let mut left = self.left.iter();
        match left.find(|instance| known[&***instance] != MachineState::Offline) {
            Some(instance) => Err(format!("who_said_goodbye_never_comes_back: {instance}")),
            None => Ok(()),
        }
    }

    /// At the end: the kept output is what the commands wrote.
    pub fn after_all(&self, server: &Server) -> Lawful {
        let core = &server.core;
        for (key, task) in core.tasks_by_key() {
            if !core.is_finished(key) {
                return Err(format!("what_was_accepted_ends: {key:?}"));
            }
            an_answer_is_bounded(key, task)?;
            let outputs = task.outputs(None);
            for (seen, (_, output)) in task.execution_views().zip(outputs) {
                let attempt = AttemptKey {
                    epoch: server.epoch,
                    task: key,
                    n: seen.n,
                    attempt: seen.attempt,
                };
                let end = self.ends.get(&attempt);
                let end = end.filter(|_| !self.untrusted.contains(&attempt));
                if let (Some(output), Some(end)) = (output, end)
                    && seen.state == ExecutionState::Succeeded
                {
                    output_is_what_was_written(attempt, output, end)?;
                }
            }
        }
        Ok(())
    }
}

/// Every byte that is kept is what the command wrote there.
fn output_is_what_was_written(key: AttemptKey, output: &Output, end: &RealEnd) -> Lawful {
    for stream in STREAMS {
        let (buffer, written) = (output.stream(stream), end.written[stream as usize]);
        if buffer.end() != written || buffer.kept() as u64 > KEPT_BYTES {
            return Err(format!(
                "output_is_what_was_written: {key:?} {stream:?}: {} of {written} bytes, {} kept",
                buffer.end(),
                buffer.kept()
            ));
        }
        let mut at = 0;
        while let Some((offset, bytes)) = buffer.read(at, usize::MAX) {
            at = offset + bytes.len() as u64;
            if bytes != text(key, stream, offset, at) {
                return Err(format!(
                    "output_is_what_was_written: {key:?} {stream:?} from {offset} to {at}"
                ));
            }
        }
    }
    Ok(())
}

/// Nothing that could run waits while a machine that could run it is free.
fn nothing_that_could_run_waits_for_a_busy_machine(core: &Core) -> Lawful {
    let conserved = core.check_work_conservation();
    conserved.map_err(|what| format!("nothing_that_could_run_waits_for_a_busy_machine: {what}"))
}

/// An answer has about as much output as was asked for, whatever the number of executions and attempts.
fn an_answer_is_bounded(key: TaskKey, task: &Task) -> Lawful {
    const LIMIT: usize = 1_000;
    // Of each attempt: a line for each place of its two streams where something is missing.
    const GAPS: usize = 200;
    let answer = task.answer(LIMIT);
    let (mut bytes, mut attempts) = (0, 0);
    for e in &answer.result {
        let past = e.attempts.iter().map(|past| &past.attempt);
        for attempt in past.chain([&e.attempt]) {
            bytes += attempt.stdout.len() + attempt.stderr.len();
            attempts += 1;
        }
    }
    if bytes > LIMIT + attempts * GAPS {
        return Err(format!(
            "an_answer_is_bounded: {key:?}, {bytes} bytes of {attempts} attempts"
        ));
    }
    Ok(())
}

/// What any machine may run, and had not started on a machine that went offline, goes to another one.
fn what_could_run_elsewhere_is_not_lost_unstarted(
    key: TaskKey,
    mode: Mode,
    seen: &ExecutionView<'_>,
) -> Lawful {
    let unstarted = seen.state == ExecutionState::Lost && seen.msg.contains("before it started");
    if mode == Mode::Any && unstarted {
        return Err(format!(
            "what_could_run_elsewhere_is_not_lost_unstarted: {key:?} {:?}",
            seen.msg
        ));
    }
    Ok(())
}

/// What any machine may run is not handed to one whose agent cannot run it: it waits for another.
fn what_any_may_run_does_not_fail_where_it_cannot(
    key: TaskKey,
    mode: Mode,
    seen: &ExecutionView<'_>,
) -> Lawful {
    let refused = seen.state == ExecutionState::Failed && is_beyond_its_agent(seen.msg);
    if mode == Mode::Any && refused {
        return Err(format!(
            "what_any_may_run_does_not_fail_where_it_cannot: {key:?} {:?}",
            seen.msg
        ));
    }
    Ok(())
}

/// Whether the message says that the agent on a machine cannot do what the task asks for.
fn is_beyond_its_agent(msg: &str) -> bool {
    let lacks_files = msg.starts_with("agent ") && msg.contains(" cannot ");
    let lacks_consent = msg.starts_with("update: the agent on this machine");
    lacks_files || lacks_consent || (msg.starts_with("detail.") && msg.contains("cannot do it"))
}

/// Whether the message says that another execution has the lock.
fn is_locked(msg: &str) -> bool {
    msg.starts_with("detail.undo.lock") && msg.contains("is held on this machine")
}

/// A terminal state of an execution never changes, and the number of its attempt only increases.
fn no_execution_changes_after_its_end(
    key: AttemptKey,
    before: Option<(ExecutionState, u32)>,
    after: (ExecutionState, u32),
) -> Lawful {
    let Some(before) = before else {
        return Ok(());
    };
    if before.0.is_terminal() || after.1 < before.1 {
        return Err(format!(
            "no_execution_changes_after_its_end: {key:?} from {before:?} to {after:?}"
        ));
    }
    Ok(())
}

/// An `any` task without retries starts at most once.
fn any_without_retry_starts_once(task: &TaskModel, starts: u32) -> Lawful {
    if task.mode == Mode::Any && task.retries == 0 && starts > 1 {
        return Err(format!("any_without_retry_starts_once: {:?}", task.key));
    }
    Ok(())
}
