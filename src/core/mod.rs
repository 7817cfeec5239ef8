//! Machines, tasks, executions: the pure state machine, and the only home of the rules.
//!
//! What may happen to a task is decided here and nowhere else. There is no clock, no lock, no
//! socket, no log: the time and fresh ids come in as arguments, and what the outside must do
//! because of a change is left in [`Core::take_notices`]. An operation either changes the state as a
//! whole or refuses and changes nothing.
//!
//! The operations, each in the file of its kind:
//!
//! | who | operations | file |
//! | --- | --- | --- |
//! | users | submit, rerun, cancel, delete | `user.rs` |
//! | agents | poll, collect, leave | `agent.rs` |
//! | | output, done | `report.rs` |
//! | time | tick | `tick.rs` |
//! | anyone | queries | `query.rs` |
//! | followers | follow, unfollow, next_events | `follow.rs` |
//!
//! To add an operation: decide in `lifecycle.rs` which events it means, write it beside its kind, and let
//! the simulation in `tests/simulation` call it.

mod agent;
mod follow;
mod invariants;
mod lazy_box;
mod lifecycle;
mod limits;
mod machine;
mod match_index;
mod output;
mod pattern;
mod query;
mod report;
mod restored;
mod saved;
mod spec;
mod task;
mod tick;
mod timers;
mod user;

pub use self::agent::original_instance;
pub use self::follow::{EventBatch, EventKind, Follower, OutputFilter, TaskEvent};
#[doc(hidden)]
pub use self::invariants::{ExecutionView, Rule};
pub use self::limits::{Limits, TextLimits};
pub use self::machine::OFFLINE_AFTER;
pub use self::output::{Output, gap_line};
pub use self::pattern::Pattern;
pub use self::query::{Histogram, Stats, TaskPage, TaskQuery};
pub use self::saved::{
    Batch, OutputChange, OutputKey, Saved, SavedExecution, SavedMachine, SavedPiece, SavedTask,
};
pub use self::spec::Spec;
pub use self::task::{Execution, Task, TaskData, execution_id};
pub use self::user::Selection;

use self::follow::ChangeLog;
use self::lazy_box::LazyBox;
use self::lifecycle::Event;
use self::machine::Machine;
use self::match_index::{MatchIndex, PatternKey};
use self::task::{Attempt, MAX_PAST_ATTEMPTS, PastAttempt, Place, Target};
use self::timers::{Timer, Timers};
use crate::wire::duration::TimeSpan;
use crate::wire::task::{Counts, ExecutionState, RetryOn};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

const EXPIRED: &str = "not started within its ttl";

/// A point in time: milliseconds since 1970, on a clock that never goes back.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// This much later.
    pub fn plus(self, duration: TimeSpan) -> Time {
        Time(self.0.saturating_add(duration.as_millis()))
    }

    /// How long after `earlier`, in milliseconds; 0 when it was not after.
    pub fn millis_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A task, in order of submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey(pub(crate) u64);

/// A machine, in order of appearance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineKey(u64);

/// An execution of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ExecutionKey {
    task: TaskKey,
    n: u32,
}

/// Why an operation was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such thing.
    Unknown(String),
    /// The id is taken, by this task.
    Taken(TaskKey),
    /// It contradicts the state of things.
    Conflict(String),
    /// Understood, but it cannot be done.
    Impossible(String),
    /// A limit is reached.
    Full(String),
}

/// What the outside has to do because of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// There is something for the held poll of this machine.
    Wake(MachineKey),
    /// This machine was handed something beside its held poll. That is to end soon, so that the next
    /// one says what has been started.
    HandedOut(MachineKey),
    /// A task has ended.
    Finished(TaskKey),
    /// A task that has followers has changed.
    Changed(TaskKey),
    /// A machine went offline; in words, why.
    MachineOffline(Arc<str>, &'static str),
    /// A machine appeared.
    MachineOnline(Arc<str>, Arc<str>),
}

/// The registry.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    tasks: BTreeMap<TaskKey, Task>,
    /// By id. A tree, as it never has to be made anew as a whole while somebody waits, and finds ids by
    /// their beginning; most new ids come last in it.
    task_ids: BTreeMap<Arc<str>, TaskKey>,
    /// Of tasks whose prefix is not their id.
    task_prefixes: BTreeMap<Arc<str>, TaskKey>,
    task_names: HashMap<Arc<str>, BTreeSet<TaskKey>>,
    next_task: u64,
    machines: BTreeMap<MachineKey, Machine>,
    instances: HashMap<Arc<str>, MachineKey>,
    next_machine: u64,
    match_index: MatchIndex,
    /// Machines whose held poll can be given work, longest-waiting first.
    ready: BTreeMap<u64, MachineKey>,
    next_ready: u64,
    timers: Timers,
    last_tick: Time,
    /// When the server came back, after it was away (stopped, or starved).
    back_since: Time,
    /// Finished tasks, oldest first.
    finished: BTreeSet<(Time, TaskKey)>,
    finished_executions: usize,
    executions: Counts,
    output_bytes: usize,
    stats: Stats,
    change_logs: HashMap<TaskKey, ChangeLog>,
    notices: Vec<Notice>,
    /// What has changed, when somebody saves it.
    changes: Option<saved::Changes>,
    /// Only tests set it, to see that they notice.
    broken: Option<Rule>,
}

impl Core {
    /// An empty registry.
    pub fn new(limits: Limits, now: Time) -> Core {
        Core {
            tasks: BTreeMap::new(),
            task_ids: BTreeMap::new(),
            task_prefixes: BTreeMap::new(),
            task_names: HashMap::new(),
            next_task: 1,
            machines: BTreeMap::new(),
            instances: HashMap::new(),
            next_machine: 1,
            match_index: MatchIndex::new(limits.patterns),
            ready: BTreeMap::new(),
            next_ready: 1,
            timers: Timers::default(),
            last_tick: now,
            back_since: Time(0),
            finished: BTreeSet::new(),
            finished_executions: 0,
            executions: Counts::default(),
            output_bytes: 0,
            stats: Stats::default(),
            change_logs: HashMap::new(),
            notices: Vec::new(),
            changes: None,
            broken: None,
            limits,
        }
    }

    /// What the outside has to do because of the changes since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn task(&self, key: TaskKey) -> &Task {
        self.tasks
            .get(&key)
            .expect("a task is dropped with everything that names it")
    }

    /// A task, to be changed: what is reached by this is saved.
    fn task_mut(&mut self, key: TaskKey) -> &mut TaskData {
        if let Some(changes) = &mut self.changes {
            changes.task(key);
        }
        data_mut(&mut self.tasks, key)
    }

    fn task_with_prefix(&self, prefix: &str) -> Option<TaskKey> {
        let with_id = self.task_ids.get(prefix).copied();
        with_id
            .filter(|key| *self.task(*key).prefix == *prefix)
            .or_else(|| self.task_prefixes.get(prefix).copied())
    }

    fn execution(&self, key: ExecutionKey) -> &Execution {
        &self.task(key.task).executions[key.n as usize]
    }

    /// An execution, to be changed: what is reached by this is saved.
    fn execution_mut(&mut self, key: ExecutionKey) -> &mut Execution {
        if let Some(changes) = &mut self.changes {
            changes.execution(key);
        }
        &mut data_mut(&mut self.tasks, key.task).executions[key.n as usize]
    }

    /// Notes that a machine is to be saved as it is now.
    fn machine_changed(&mut self, key: MachineKey) {
        if let (Some(changes), Some(machine)) = (&mut self.changes, self.machines.get(&key)) {
            changes.machine(&machine.instance);
        }
    }

    fn machine(&self, key: MachineKey) -> &Machine {
        self.machines
            .get(&key)
            .expect("a machine is forgotten with everything that names it")
    }

    fn machine_mut(&mut self, key: MachineKey) -> &mut Machine {
        self.machines
            .get_mut(&key)
            .expect("a machine is forgotten with everything that names it")
    }

    /// Applies an event to an execution, if the table has it. The one place where a state changes.
    fn apply(&mut self, key: ExecutionKey, event: Event) -> bool {
        let task = data_mut(&mut self.tasks, key.task);
        let execution = &mut task.executions[key.n as usize];
        let Some(state) = lifecycle::next(execution.state, event) else {
            return false;
        };
        if let Some(changes) = &mut self.changes {
            changes.execution(key);
        }
        *task.counts.of(execution.state) -= 1;
        *self.executions.of(execution.state) -= 1;
        execution.state = state;
        *task.counts.of(state) += 1;
        *self.executions.of(state) += 1;
        if state.is_terminal() {
            self.stats.ended(state);
        }
        self.record_change(key);
        true
    }

    /// Moves an execution to another place, and keeps the queues in step with it.
    fn place(&mut self, key: ExecutionKey, place: Place) {
        let was = std::mem::replace(&mut self.execution_mut(key).place, place);
        match was {
            Place::Nowhere => {}
            Place::Pattern(pattern) => {
                self.match_index.entry_mut(pattern).queue.remove(&key.task);
            }
            Place::Inbox(machine) => {
                self.machine_mut(machine).inbox.remove(&key);
                self.refresh_ready(machine);
            }
            Place::Active(machine) => {
                self.machine_mut(machine).active.remove(&key);
                self.refresh_ready(machine);
            }
        }
        match place {
            Place::Nowhere => {}
            Place::Pattern(pattern) => {
                self.match_index.entry_mut(pattern).queue.insert(key.task);
            }
            Place::Inbox(machine) => {
                self.machine_mut(machine).inbox.insert(key);
                self.refresh_ready(machine);
            }
            Place::Active(machine) => {
                self.machine_mut(machine).active.insert(key);
                self.refresh_ready(machine);
            }
        }
    }

    fn pattern_key_of(&mut self, task: TaskKey) -> PatternKey {
        let pattern = self.task(task).spec.pattern.clone();
        self.match_index.key_of(&pattern)
    }

    /// Keeps the list of machines that can be given work in step with one machine.
    fn refresh_ready(&mut self, key: MachineKey) {
        let machine = self
            .machines
            .get_mut(&key)
            .expect("a machine is forgotten with everything that names it");
        match (machine.ready, machine.can_be_given_work()) {
            (None, true) => {
                machine.ready = Some(self.next_ready);
                self.ready.insert(self.next_ready, key);
                self.next_ready += 1;
            }
            (Some(order), false) => {
                machine.ready = None;
                self.ready.remove(&order);
            }
            (Some(_), true) | (None, false) => {}
        }
    }

    fn wake(&mut self, machine: MachineKey) {
        if self.machine(machine).poll_held {
            self.notices.push(Notice::Wake(machine));
        }
    }

    /// Ends the current attempt of an execution: for good, or to try again when its task asked for
    /// that. `state` is terminal; `msg` says why when it is not `succeeded`.
    fn end_attempt(
        &mut self,
        now: Time,
        key: ExecutionKey,
        state: ExecutionState,
        msg: &str,
    ) -> bool {
        let execution = self.execution(key);
        if lifecycle::next(execution.state, Event::End(state)).is_none() {
            return false;
        }
        let delivered = execution.state != ExecutionState::Queued;
        if let (true, Some(due)) = (delivered, self.next_attempt_due(now, key, state)) {
            self.retry(now, key, state, msg, due);
            return true;
        }
        let event = match state {
            ExecutionState::Canceled if !delivered => Event::Cancel,
            ExecutionState::Expired => Event::Expire,
            ExecutionState::Lost => Event::Lose,
            state => Event::End(state),
        };
        if !self.apply(key, event) {
            return false;
        }
        self.place(key, Place::Nowhere);
        self.record_end(now, key, msg);
        self.finish_if_done(now, key.task);
        true
    }

    fn record_end(&mut self, now: Time, key: ExecutionKey, msg: &str) {
        self.output_ended(key);
        self.cancel_attempt_timers(key);
        let attempt = &mut self.execution_mut(key).now;
        attempt.finished_at = attempt.finished_at.or(Some(now));
        attempt.msg = msg.into();
        if let Some(ms) = attempt.duration_ms {
            self.stats.run_time.add(ms);
        }
    }

    /// Nothing more is kept of the current attempt's output.
    fn output_ended(&mut self, key: ExecutionKey) {
        if let Some(changes) = &mut self.changes {
            let attempt = &self.tasks[&key.task].executions[key.n as usize].now;
            let output = OutputKey::of(key, attempt.number);
            changes.output_ended(output, attempt.output.as_deref());
        }
    }

    /// When the next attempt of an execution that ended so is due, if its task asked for one.
    fn next_attempt_due(
        &self,
        now: Time,
        key: ExecutionKey,
        state: ExecutionState,
    ) -> Option<Time> {
        let task = self.task(key.task);
        let execution = self.execution(key);
        let retry = task.spec.retry.as_ref()?;
        let asked = match state {
            ExecutionState::Failed => RetryOn::Failed,
            ExecutionState::TimedOut => RetryOn::TimedOut,
            ExecutionState::Lost => RetryOn::Lost,
            _ => return None,
        };
        if !retry.on.contains(&asked)
            || execution.now.number > retry.max
            || execution.canceling
            || task.canceled
        {
            return None;
        }
        // A broadcast's execution belongs to its machine: without it there is nowhere to try again.
        if !task.is_any() {
            let instance = &execution.target.as_ref()?.instance;
            let machine = self.machine(*self.instances.get(instance)?);
            if !machine.is_live() {
                return None;
            }
        }
        let nth = (execution.now.number as usize).min(retry.interval.len());
        let pause = nth
            .checked_sub(1)
            .map_or(TimeSpan::default(), |n| retry.interval[n]);
        Some(now.plus(pause))
    }

    fn retry(&mut self, now: Time, key: ExecutionKey, state: ExecutionState, msg: &str, due: Time) {
        self.apply(key, Event::Retry);
        self.place(key, Place::Nowhere);
        self.record_end(now, key, msg);
        let is_any = self.task(key.task).is_any();
        let execution = self.execution_mut(key);
        let number = execution.now.number + 1;
        let mut next = Attempt::new(number);
        next.due_at = Some(due);
        let attempt = std::mem::replace(&mut execution.now, LazyBox::new(next)).into_inner();
        let target = if is_any {
            execution.target.take()
        } else {
            execution.target.clone()
        };
        execution.past.push(PastAttempt {
            state,
            target,
            attempt,
        });
        if execution.past.len() > MAX_PAST_ATTEMPTS {
            let dropped = execution.past.remove(0);
            if let (Some(changes), Some(_)) = (&mut self.changes, &dropped.attempt.output) {
                changes.output_dropped(OutputKey::of(key, dropped.attempt.number));
            }
            let bytes = dropped.attempt.output.map_or(0, |output| output.kept());
            self.task_mut(key.task).output_bytes -= bytes;
            self.output_bytes -= bytes;
        }
        self.stats.retries += 1;
        self.timers.set(due, Timer::AttemptDue(key, number));
    }

    /// Ends a task of which nothing is left to do.
    fn finish_if_done(&mut self, now: Time, key: TaskKey) {
        let Some(task) = self.tasks.get(&key) else {
            return;
        };
        if task.open || task.finished_at.is_some() || task.counts.unfinished() > 0 {
            return;
        }
        let task = data_mut(&mut self.tasks, key);
        task.finished_at = Some(now);
        let task = self.task(key);
        let forgotten_at = now.plus(task.retention());
        let (state, executions, expires_at) =
            (task.state(), task.executions.len(), task.expires_at);
        if let Some(changes) = &mut self.changes {
            changes.task(key);
        }
        self.timers.cancel(expires_at, Timer::TaskTtl(key));
        self.timers.set(forgotten_at, Timer::ForgetTask(key));
        self.finished.insert((now, key));
        self.finished_executions += executions;
        self.stats.finished(state);
        self.notices.push(Notice::Finished(key));
        self.forget_if_withdrawn(key);
        self.keep_within_limits();
    }

    /// Forgets a task that was taken back, once it has ended without having started.
    fn forget_if_withdrawn(&mut self, key: TaskKey) {
        let task = self.task(key);
        if task.withdrawn && task.finished_at.is_some() && !task.has_started() {
            self.forget_task(key);
        }
    }

    /// Forgets the oldest finished tasks until the limits are kept.
    fn keep_within_limits(&mut self) {
        while self.finished.len() > self.limits.tasks
            || self.finished_executions > self.limits.executions
        {
            if !self.forget_oldest() {
                return;
            }
        }
    }

    /// Forgets the oldest finished tasks until so many bytes of output would be within the limit.
    fn make_room_for_output(&mut self, wanted: usize) {
        let before = self.output_bytes;
        while wanted - (before - self.output_bytes) > self.limits.output_bytes {
            if !self.forget_oldest() {
                return;
            }
        }
    }

    /// Forgets the oldest finished task; not the last one, which somebody is about to read.
    fn forget_oldest(&mut self) -> bool {
        let oldest = self
            .finished
            .first()
            .copied()
            .filter(|_| self.finished.len() > 1);
        if let Some((_, key)) = oldest {
            self.forget_task(key);
        }
        oldest.is_some()
    }

    /// Drops a finished task and everything that names it.
    fn forget_task(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.remove(&key) else {
            return;
        };
        let Some(finished_at) = task.finished_at else {
            self.tasks.insert(key, task);
            return;
        };
        self.finished.remove(&(finished_at, key));
        self.finished_executions -= task.executions.len();
        self.output_bytes -= task.output_bytes;
        if let Some(changes) = &mut self.changes {
            changes.task(key);
        }
        let forgotten_at = finished_at.plus(task.retention());
        self.timers.cancel(forgotten_at, Timer::ForgetTask(key));
        for execution in &task.executions {
            *self.executions.of(execution.state) -= 1;
        }
        self.task_ids.remove(&task.id);
        if task.prefix != task.id {
            self.task_prefixes.remove(&task.prefix);
        }
        if let Some(keys) = self.task_names.get_mut(&task.spec.name) {
            keys.remove(&key);
            if keys.is_empty() {
                self.task_names.remove(&task.spec.name);
            }
        }
        self.stats.forgotten(task.state());
    }

    fn target(&self, machine: MachineKey) -> Arc<Target> {
        self.machine(machine).target.clone()
    }
}

/// What is kept of a task, to be changed.
fn data_mut(tasks: &mut BTreeMap<TaskKey, Task>, key: TaskKey) -> &mut TaskData {
    let task = tasks.get_mut(&key);
    task.expect("a task is dropped with everything that names it")
        .data_mut()
}
