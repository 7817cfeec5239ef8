//! A task and its executions, as kept; and how they are turned into the API's answer.

use super::lazy_box::{LazyBox, SharedDefault};
use super::match_index::PatternKey;
use super::output::Output;
use super::spec::Spec;
use super::{ExecutionKey, MachineKey, Time};
use crate::wire::agent::{AttemptId, Stream};
use crate::wire::duration::TimeSpan;
use crate::wire::task::{self as wire, Counts, ExecutionState, Mode, TaskState};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt::Write;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

/// Earlier attempts kept per execution: the last ones tell why it fails.
pub(super) const MAX_PAST_ATTEMPTS: usize = 10;

/// A task. A copy shows it as it is now, and costs nothing: what is kept is shared, until it changes.
#[derive(Debug, Clone)]
pub struct Task(Arc<TaskData>);

/// What is kept of a task.
#[derive(Debug, Clone)]
pub struct TaskData {
    /// Its id.
    pub id: Arc<str>,
    /// What the ids of its executions begin with. Fresh, also where its id was used before: what an
    /// agent still holds of an earlier task with that id must not be taken for this one's.
    pub prefix: Arc<str>,
    /// What was asked for.
    pub spec: Arc<Spec>,
    pub(super) created_at: Time,
    /// Until when what is queued since its submission may be started, and machines may join.
    pub(super) expires_at: Time,
    pub(super) finished_at: Option<Time>,
    /// The id of the task that it runs again.
    pub(super) rerun_of: Option<Arc<str>>,
    pub(super) matched: u32,
    /// Machines that appear may still join it.
    pub(super) open: bool,
    /// A user canceled the whole task.
    pub(super) canceled: bool,
    /// It was not accepted after all: when it ends without having started, it is forgotten.
    pub(super) withdrawn: bool,
    pub(super) counts: Counts,
    /// Bytes of output kept for it.
    pub(super) output_bytes: usize,
    pub(super) executions: Vec<Execution>,
}

/// Where an execution is, when it has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Ended, or waiting for its next attempt to be due.
    Nowhere,
    /// Queued until some machine is free.
    Pattern(PatternKey),
    /// Queued for one machine.
    Inbox(MachineKey),
    /// In the hands of a machine.
    Active(MachineKey),
}

/// The machine of an execution, as it was when the execution was addressed to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Target {
    pub label: Arc<str>,
    pub instance: Arc<str>,
    pub host: Arc<str>,
}

/// An execution as kept.
#[derive(Debug, Clone)]
pub struct Execution {
    pub(super) state: ExecutionState,
    pub(super) place: Place,
    pub(super) target: Option<Arc<Target>>,
    /// A user does not want it any more, its machine has yet to confirm.
    pub(super) canceling: bool,
    pub(super) now: LazyBox<Attempt>,
    pub(super) past: LazyBox<Vec<PastAttempt>>,
}

/// One attempt as kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Attempt {
    pub number: u32,
    /// When a further attempt is due, while it waits for that.
    pub due_at: Option<Time>,
    /// Until when a further attempt may wait to be started; the first has its task's `ttl`.
    pub expires_at: Option<Time>,
    /// When its machine should have reported it, while it is in a machine's hands.
    pub overdue_at: Option<Time>,
    pub delivered_at: Option<Time>,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
    pub duration_ms: Option<u64>,
    pub exit_code: Option<i32>,
    pub signal: Option<Box<str>>,
    pub msg: Box<str>,
    /// Whether its machine's own report ended it: the same report again is no news.
    pub reported: bool,
    /// Saved apart.
    #[serde(skip)]
    pub output: Option<Arc<Output>>,
}

/// An attempt that was followed by another.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PastAttempt {
    pub state: ExecutionState,
    pub target: Option<Arc<Target>>,
    pub attempt: Attempt,
}

impl Target {
    /// Whether this name means the machine: it is its instance or its label.
    pub fn is_named(&self, name: &str) -> bool {
        *self.instance == *name || *self.label == *name
    }
}

impl Attempt {
    pub fn new(number: u32) -> Self {
        Attempt {
            number,
            due_at: None,
            expires_at: None,
            overdue_at: None,
            delivered_at: None,
            started_at: None,
            finished_at: None,
            duration_ms: None,
            exit_code: None,
            signal: None,
            msg: "".into(),
            reported: false,
            output: None,
        }
    }
}

/// The first attempt, while it waits.
impl SharedDefault for Attempt {
    fn shared() -> &'static Self {
        static FIRST: LazyLock<Attempt> = LazyLock::new(Attempt::owned);
        &FIRST
    }

    fn owned() -> Self {
        Attempt::new(1)
    }
}

/// No earlier attempts.
impl SharedDefault for Vec<PastAttempt> {
    fn shared() -> &'static Self {
        const { &Vec::new() }
    }

    fn owned() -> Self {
        Vec::new()
    }
}

impl Execution {
    pub(super) fn queued(place: Place, target: Option<Arc<Target>>) -> Self {
        Execution {
            state: ExecutionState::Queued,
            place,
            target,
            canceling: false,
            now: LazyBox::unallocated(),
            past: LazyBox::unallocated(),
        }
    }
}

/// The id of an execution: its task's prefix, a dot, its number.
pub fn execution_id(prefix: &str, n: u32) -> String {
    // Ten digits at most: as every order and every answer has one, it is to be made in one piece.
    let mut id = String::with_capacity(prefix.len() + 11);
    id.push_str(prefix);
    let _ = write!(id, ".{n}");
    id
}

impl Deref for Task {
    type Target = TaskData;

    fn deref(&self) -> &TaskData {
        &self.0
    }
}

impl Task {
    pub(super) fn new(data: TaskData) -> Task {
        Task(Arc::new(data))
    }

    /// What is kept of it, to be changed. Who looks at a copy does not see that.
    pub(super) fn data_mut(&mut self) -> &mut TaskData {
        Arc::make_mut(&mut self.0)
    }

    pub(super) fn attempt_id(&self, key: ExecutionKey) -> AttemptId {
        let attempt = self.executions[key.n as usize].now.number;
        AttemptId {
            execution: execution_id(&self.prefix, key.n),
            attempt,
        }
    }

    /// How many executions it has.
    pub fn size(&self) -> usize {
        self.executions.len()
    }

    /// Its state, which follows from its executions.
    pub fn state(&self) -> TaskState {
        let counts = &self.counts;
        let unsuccessful = counts.failed + counts.timed_out + counts.lost;
        if self.finished_at.is_none() {
            if self.executions.is_empty() {
                TaskState::Waiting
            } else {
                TaskState::Running
            }
        } else if counts.succeeded > 0 {
            if counts.succeeded == counts.total() {
                TaskState::Succeeded
            } else {
                TaskState::Partial
            }
        } else if unsuccessful > 0 {
            TaskState::Failed
        } else if counts.canceled > 0 || self.canceled {
            TaskState::Canceled
        } else {
            TaskState::Expired
        }
    }

    /// Whether a command of it has run, as far as is known.
    pub(super) fn has_started(&self) -> bool {
        let started = |e: &Execution| e.now.started_at.is_some() || !e.past.is_empty();
        self.executions.iter().any(started)
    }

    /// How long it is kept, once it has ended.
    pub(super) fn retention(&self) -> TimeSpan {
        match self.state() {
            TaskState::Succeeded => self.spec.result_ttl,
            _ => self.spec.failure_ttl,
        }
    }

    fn status(&self) -> u8 {
        match self.state() {
            TaskState::Waiting => 0,
            TaskState::Running if self.executions.iter().all(|e| e.target.is_none()) => 0,
            TaskState::Running => 1,
            TaskState::Succeeded => 2,
            TaskState::Partial | TaskState::Failed | TaskState::Canceled | TaskState::Expired => 3,
        }
    }

    fn msg(&self) -> String {
        match self.state() {
            TaskState::Waiting => {
                "no machine matches yet; it goes to the first that appears within its ttl".into()
            }
            TaskState::Running if self.counts.unfinished() == 0 => {
                "open to machines that appear within its ttl".into()
            }
            TaskState::Expired if self.executions.is_empty() => {
                "no machine matched within its ttl".into()
            }
            _ => String::new(),
        }
    }

    /// The answer of the API, with about `output_limit` bytes of output in all. Costs time in
    /// proportion to the output: not to be called under the lock.
    pub fn answer(&self, output_limit: usize) -> wire::Task<Cow<'_, str>> {
        let with_output = self
            .executions
            .iter()
            .filter(|e| e.now.output.is_some())
            .count();
        let share = output_limit / with_output.max(1);
        let result: Vec<wire::Execution<Cow<'_, str>>> = self
            .executions
            .iter()
            .zip(0..)
            .map(|(e, n)| e.answer(&self.prefix, n, share))
            .collect();
        let mut finished: Vec<usize> = (0..result.len())
            .filter(|n| self.executions[*n].state.is_terminal())
            .collect();
        finished.sort_unstable_by_key(|n| (self.executions[*n].now.finished_at, *n));
        let lines = finished
            .iter()
            .flat_map(|n| result[*n].attempt.output.iter().cloned())
            .collect();
        let spec = &self.spec;
        wire::Task {
            id: Cow::from(&*self.id),
            name: Cow::from(&*spec.name),
            kind: 0,
            status: self.status(),
            state: self.state(),
            msg: self.msg(),
            created_at: timestamp(self.created_at),
            finished_at: self.finished_at.map(timestamp),
            machine_pattern: spec.pattern.text().into(),
            mode: spec.mode,
            ttl: spec.ttl,
            late_join: spec.late_join,
            retry: spec.retry.as_deref().cloned(),
            result_ttl: spec.result_ttl,
            failure_ttl: spec.failure_ttl,
            rerun_of: self.rerun_of.as_deref().map(Cow::from),
            matched: self.matched,
            assignees: self.labels().map(Cow::from).collect(),
            counts: self.counts,
            detail: wire::AnsweredDetail {
                detail: spec.detail.clone(),
                result: lines,
            },
            result,
        }
    }

    /// About how many bytes the answer takes beside the output.
    pub fn bytes_without_output(&self) -> usize {
        // Rather a little more: to grow is to copy.
        const TASK: usize = 800;
        const EXECUTION: usize = 400;
        TASK + EXECUTION * self.executions.len() + self.spec.detail_bytes()
    }

    /// How many live machines matched when it was submitted.
    pub fn matched(&self) -> u32 {
        self.matched
    }

    /// The labels of its targets.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.executions
            .iter()
            .filter_map(|e| Some(&*e.target.as_ref()?.label))
    }

    /// Labels and outputs of its executions: of all, or of those on a machine (an instance, or a
    /// label: all of that label).
    pub fn outputs(&self, machine: Option<&str>) -> Vec<(&str, Option<&Output>)> {
        let addressed = |e: &&Execution| match (machine, &e.target) {
            (None, _) => true,
            (Some(name), Some(target)) => target.is_named(name),
            (Some(_), None) => false,
        };
        let outputs = self.executions.iter().filter(addressed).map(|e| {
            let label = e.target.as_ref().map_or("", |target| &*target.label);
            (label, e.now.output.as_deref())
        });
        outputs.collect()
    }

    /// Whether it has something on a machine (an instance, or a label), or may get it yet.
    pub fn may_be_on(&self, machine: &str) -> bool {
        let is_free = |e: &Execution| e.target.is_none() && !e.state.is_terminal();
        let may_get = self.open || self.executions.iter().any(is_free);
        may_get || !self.outputs(Some(machine)).is_empty()
    }

    /// Whether its output is that of several machines, or may become so.
    pub fn has_several_machines(&self, machine: Option<&str>) -> bool {
        let may_grow = self.open && self.spec.late_join;
        let is_one = |name: &str| {
            let mut targets = self.executions.iter().filter_map(|e| e.target.as_ref());
            targets.any(|target| *target.instance == *name)
        };
        self.outputs(machine).len() > 1 || (may_grow && !machine.is_some_and(is_one))
    }

    /// Whether it runs on one machine only, whichever that will be.
    pub(super) fn is_any(&self) -> bool {
        self.spec.mode == Mode::Any
    }
}

impl Execution {
    fn answer(&self, prefix: &str, n: u32, output_limit: usize) -> wire::Execution<Cow<'_, str>> {
        let [machine_label, instance, host] = target_words(self.target.as_deref());
        let status = match self.state {
            ExecutionState::Succeeded => 0,
            state if state.is_terminal() => 2,
            _ => 1,
        };
        wire::Execution {
            execution: execution_id(prefix, n).into(),
            machine_label,
            instance,
            host,
            status,
            state: self.state,
            attempt: self.now.answer(output_limit),
            attempts: self
                .past
                .iter()
                .map(|past| past.answer(output_limit))
                .collect(),
        }
    }
}

impl PastAttempt {
    fn answer(&self, output_limit: usize) -> wire::PastAttempt<Cow<'_, str>> {
        let [machine_label, instance, _] = target_words(self.target.as_deref());
        wire::PastAttempt {
            state: self.state,
            machine_label,
            instance,
            attempt: self.attempt.answer(output_limit),
        }
    }
}

impl Attempt {
    fn answer(&self, output_limit: usize) -> wire::Attempt<Cow<'_, str>> {
        let mut answer = wire::Attempt {
            attempt: self.number,
            exit_code: self.exit_code,
            signal: self.signal.as_deref().map(Cow::from),
            msg: Cow::from(&*self.msg),
            started_at: self.started_at.map(timestamp),
            finished_at: self.finished_at.map(timestamp),
            duration_ms: self.duration_ms,
            ..Default::default()
        };
        if let Some(output) = &self.output {
            let (out, err) = (
                output.stream(Stream::Stdout).kept(),
                output.stream(Stream::Stderr).kept(),
            );
            let fits = out + err <= output_limit;
            let limit = if fits { usize::MAX } else { output_limit / 2 };
            let (stdout, stdout_missing) = output.text(Stream::Stdout, limit);
            let (stderr, stderr_missing) = output.text(Stream::Stderr, limit);
            answer.output = output.lines(limit);
            answer.truncated_bytes = stdout_missing + stderr_missing;
            (answer.stdout, answer.stderr) = (stdout, stderr);
        }
        answer
    }
}

fn target_words(target: Option<&Target>) -> [Cow<'_, str>; 3] {
    let words = target.map_or([""; 3], |t| [&*t.label, &*t.instance, &*t.host]);
    words.map(Cow::from)
}

fn timestamp<'a>(time: Time) -> Cow<'a, str> {
    rfc3339(time).into()
}

/// A point in time as the API writes it.
pub(super) fn rfc3339(time: Time) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(time.0)).to_string()
}
