//! The data of a task and of its executions and attempts.
//!
//! To add a field: here, in `saved.rs`, `saving.rs` and `restored.rs` if it is to survive a restart, and in
//! `task_answer.rs` if users see it.

use super::counting::mixed;
use super::lazy_box::{LazyBox, SharedDefault};
use super::match_index::SelectorKey;
use super::named_limits::SetKey;
use super::outbox::Entry;
use super::output::Output;
use super::pace::Pacing;
use super::probe_data::ProbeData;
use super::spec::Spec;
use super::undo::AttemptUndo;
use super::waiting::{Phase, Waiting};
use super::waits_for::WaitsFor;
use super::{ExecutionKey, MachineKey, Time};
use crate::wire::agent::{AttemptId, Stream};
use crate::wire::duration::TimeSpan;
use crate::wire::files::{self, FetchedFile};
use crate::wire::machine_names::MachineNames;
use crate::wire::task::{Counts, ExecutionState, Mode, TaskState};
use crate::wire::undo::UndoCounts;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

/// Earlier attempts kept for each execution; the last ones explain why it fails.
pub(super) const MAX_PAST_ATTEMPTS: usize = 10;

/// How long a task is kept at least while an undo of it is failed or owed: until then the machine may come back.
const DEBTS_KEPT: TimeSpan = TimeSpan::from_secs(7 * 24 * 3_600);

/// A task. A copy is cheap and shows the task as it is now: the data is shared until it changes.
#[derive(Debug, Clone)]
pub struct Task {
    data: Arc<TaskData>,
    /// What it waits for, on a copy that is shown.
    waits: Option<Box<WaitsFor>>,
    pub(super) execution_waits: Waits,
}

/// What waiting executions wait for, by their number, where that does not follow from the task itself. Only a task that is
/// to be shown has it.
pub(super) type Waits = Option<Arc<BTreeMap<u32, String>>>;

/// The data of a task.
#[derive(Debug, Clone)]
pub struct TaskData {
    /// Its id.
    pub id: Arc<str>,
    /// The beginning of the ids of its executions. Always new, even if the task's id was used before: an agent
    /// may still hold executions of an earlier task with that id.
    pub prefix: Arc<str>,
    /// What the user asked for.
    pub spec: Arc<Spec>,
    pub(super) created_at: Time,
    /// Its place among what waits, if it was let go later than it was submitted. Else its number is.
    pub(super) order: Option<u64>,
    /// The set of its limits, until it has ended.
    pub(super) limit_set: SetKey,
    /// Until when first attempts may be started, and machines may join.
    pub(super) expires_at: Time,
    pub(super) finished_at: Option<Time>,
    /// The id of the task that this one reruns.
    pub(super) rerun_of: Option<Arc<str>>,
    pub(super) matched: u32,
    /// How many of them are no targets.
    pub(super) spared: u32,
    /// How far it has come, if it has a rollout, has to wait for probes, was paused or was stopped.
    pub(super) pacing: Option<Box<Pacing>>,
    /// How its probes go, if it has any.
    pub(super) probes: Option<Box<[ProbeData]>>,
    /// New machines may still join it.
    pub(super) open: bool,
    /// No further machine may join it although it has `lateJoin`: it has as many executions as it may have.
    pub(super) late_join_full: bool,
    /// A user canceled the whole task.
    pub(super) canceled: bool,
    /// The submit was refused after all, as it could not be saved: the task is forgotten once it ends, unless
    /// something of it was started.
    pub(super) withdrawn: bool,
    /// What it waits for before it begins, or has waited for.
    pub(super) waiting: Option<Box<Waiting>>,
    /// Others begin after it and have not started: it is kept for them. Follows from them, and is not saved.
    pub(super) needed: bool,
    /// Those who wait for it are to be canceled, too.
    pub(super) cancels_dependents: bool,
    pub(super) counts: Counts,
    /// The undos of the latest attempts.
    pub(super) undos: UndoCounts,
    /// What was told of it, or waits to be told.
    pub(super) notifications: Vec<Arc<Entry>>,
    /// Bytes of output kept, of all its executions.
    pub(super) output_bytes: usize,
    /// It is the last one that its schedule has fired: it is kept for as long as there is the schedule.
    pub(super) is_last_firing: bool,
    pub(super) executions: Vec<Execution>,
}

/// Where an unfinished execution is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it is held, it has ended, or its next attempt is not due yet.
    Nowhere,
    /// Queued for any machine that this selector means.
    Selector(SelectorKey),
    /// Queued for one machine.
    Inbox(MachineKey),
    /// Handed to a machine.
    Active(MachineKey),
}

/// The machine that an execution is addressed to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Target {
    pub label: Arc<str>,
    pub instance: Arc<str>,
    pub host: Arc<str>,
}

/// How far the output of an execution went at some moment.
#[derive(Debug)]
pub struct OutputEnd {
    /// The execution within its task.
    pub n: u32,
    /// Its attempt.
    pub attempt: u32,
    /// Its machine.
    pub target: Arc<Target>,
    /// The ends of both streams.
    pub ends: [u64; 2],
}

/// An execution.
#[derive(Debug, Clone)]
pub struct Execution {
    pub(super) state: ExecutionState,
    pub(super) place: Place,
    pub(super) target: Option<Arc<Target>>,
    /// A user canceled it; its machine has not confirmed that yet.
    pub(super) canceling: bool,
    /// Its latest attempt.
    pub(super) current: LazyBox<Attempt>,
    /// Its earlier attempts, oldest first.
    pub(super) past: LazyBox<Vec<PastAttempt>>,
}

/// An attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Attempt {
    pub number: u32,
    /// When the pause before a retry is over, during that pause.
    pub due_at: Option<Time>,
    /// Until when a retry may wait to be started. For first attempts the task's `ttl` holds.
    pub expires_at: Option<Time>,
    /// When its machine should have reported its end, while a machine has it.
    pub overdue_at: Option<Time>,
    pub delivered_at: Option<Time>,
    pub started_at: Option<Time>,
    pub finished_at: Option<Time>,
    pub duration_ms: Option<u64>,
    pub exit_code: Option<i32>,
    pub signal: Option<Box<str>>,
    pub msg: Box<str>,
    /// Its machine's own report ended it; the same report again is accepted without effect.
    pub reported: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Box<AttemptUndo>>,
    /// What it has handed back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Box<[FetchedFile]>>,
    /// What it does with files now; not saved, the next poll says it.
    #[serde(skip)]
    pub phase: Option<files::Phase>,
    /// Saved separately.
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
    /// What is kept of its output and of that of its undo, in bytes.
    pub fn kept_output(&self) -> usize {
        let output = self.output.as_ref().map_or(0, |output| output.kept());
        output + self.undo.as_ref().map_or(0, |undo| undo.kept())
    }

    /// Whether its undo is failed or owed.
    pub fn is_dirty(&self) -> bool {
        let state = self.undo.as_ref().and_then(|undo| undo.state);
        state.is_some_and(|state| state.is_dirty())
    }

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
            undo: None,
            files: None,
            phase: None,
            output: None,
        }
    }
}

/// The first attempt, not handed out yet.
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
    /// One that begins in this state, nowhere yet.
    pub(super) fn new(state: ExecutionState, target: Option<Arc<Target>>) -> Self {
        Execution {
            state,
            place: Place::Nowhere,
            target,
            canceling: false,
            current: LazyBox::unallocated(),
            past: LazyBox::unallocated(),
        }
    }
}

/// The id of an execution: its task's prefix, a dot, its number.
pub fn execution_id(prefix: &str, n: u32) -> String {
    // At most ten digits and a dot: one allocation, as every order and every answer contains such ids.
    let mut id = String::with_capacity(prefix.len() + 11);
    id.push_str(prefix);
    let _ = write!(id, ".{n}");
    id
}

/// The key of an attempt. It follows from the ids alone, so it need not be stored; the prefix is new for each task.
pub(super) fn attempt_key(prefix: &str, n: u32, attempt: u32) -> String {
    let id = format!("{n}.{attempt}");
    let halves = ["key", "second half"].map(|half| mixed(&[half, prefix, &id]));
    format!("{:016x}{:016x}", halves[0], halves[1])
}

impl TaskData {
    /// Whether it is kept whatever the limits are: somebody has to know of it, or still needs it.
    pub(super) fn is_kept(&self) -> bool {
        self.is_in_debt() || self.is_last_firing || self.needed
    }
}

impl Deref for Task {
    type Target = TaskData;

    fn deref(&self) -> &TaskData {
        &self.data
    }
}

impl Task {
    pub(super) fn new(data: TaskData) -> Task {
        Task {
            data: Arc::new(data),
            waits: None,
            execution_waits: None,
        }
    }

    /// A copy that says what the task waits for.
    pub(super) fn shown(&self, waits: Option<WaitsFor>) -> Task {
        Task {
            data: self.data.clone(),
            waits: waits.map(Box::new),
            execution_waits: None,
        }
    }

    pub(super) fn waits(&self) -> Option<&WaitsFor> {
        self.waits.as_deref()
    }

    /// The data, to be changed. Copies of the task do not change.
    pub(super) fn data_mut(&mut self) -> &mut TaskData {
        Arc::make_mut(&mut self.data)
    }

    /// The task with what its executions wait for, to be shown.
    pub(super) fn with_waits(mut self, waits: Waits) -> Task {
        self.execution_waits = waits;
        self
    }

    pub(super) fn attempt_id(&self, key: ExecutionKey) -> AttemptId {
        let attempt = self.executions[key.n as usize].current.number;
        AttemptId {
            execution: execution_id(&self.prefix, key.n),
            attempt,
        }
    }

    /// The key of an execution's latest attempt: 32 hexadecimal digits that no other attempt has.
    pub(super) fn attempt_key(&self, key: ExecutionKey) -> String {
        let attempt = self.executions[key.n as usize].current.number;
        attempt_key(&self.prefix, key.n, attempt)
    }

    /// How many executions it has.
    pub fn size(&self) -> usize {
        self.executions.len()
    }

    /// Its state, computed from its executions.
    pub fn state(&self) -> TaskState {
        let counts = &self.counts;
        let unsuccessful = counts.failed + counts.timed_out + counts.lost;
        if let Some(unbegun) = self.unbegun() {
            unbegun.state
        } else if self.finished_at.is_none() {
            if self.phase() == Phase::Scheduled {
                TaskState::Scheduled
            } else if self.phase() == Phase::Blocked {
                TaskState::Blocked
            } else if self.waits_for_a_machine() {
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
        } else if unsuccessful > 0 || self.failed_before() {
            TaskState::Failed
        } else if counts.canceled > 0 || self.canceled {
            TaskState::Canceled
        } else if counts.expired == 0 && (counts.skipped > 0 || self.is_stopped()) {
            TaskState::Skipped
        } else {
            TaskState::Expired
        }
    }

    /// Whether no machine has matched yet.
    fn waits_for_a_machine(&self) -> bool {
        let waits = |e: &Execution| {
            matches!(e.place, Place::Selector(_)) && e.target.is_none() && !e.has_started()
        };
        match self.is_any() {
            true => self.matched == 0 && self.executions.iter().all(waits),
            false => self.executions.is_empty(),
        }
    }

    /// Whether any of its commands may have been started.
    pub(super) fn has_started(&self) -> bool {
        self.executions.iter().any(Execution::has_started)
    }

    /// How long it is kept after it has finished.
    fn retention(&self) -> TimeSpan {
        match self.state() {
            TaskState::Succeeded => self.spec.result_ttl,
            _ => self.spec.failure_ttl,
        }
    }

    /// When it is forgotten, if it has finished and is not kept for others. As long as an undo of it is failed or owed, or runs again, it is kept
    /// for longer: somebody has to know.
    pub(super) fn forgotten_at(&self) -> Option<Time> {
        if self.needed || self.is_last_firing {
            return None;
        }
        let retention = match self.is_in_debt() {
            false => self.retention(),
            true => self.retention().max(DEBTS_KEPT),
        };
        Some(self.finished_at?.plus(retention))
    }

    /// How many live machines matched when it was submitted.
    pub fn matched(&self) -> u32 {
        self.matched
    }

    /// The labels of its targets.
    pub fn labels(&self) -> impl Iterator<Item = &Arc<str>> {
        self.executions
            .iter()
            .filter_map(|e| Some(&e.target.as_ref()?.label))
    }

    /// The names of its machines.
    pub fn machine_names(&self) -> MachineNames {
        let targets = self.executions.iter().filter_map(|e| e.target.as_ref());
        MachineNames::of(targets.map(|t| (&*t.label, &*t.instance, &*t.host)))
    }

    /// The targets and outputs of its executions: of all, or of those on the machine with this instance or the
    /// machines with this label.
    pub fn outputs(&self, machine: Option<&str>) -> Vec<(Option<&Target>, Option<&Output>)> {
        let addressed = |e: &&Execution| match (machine, &e.target) {
            (None, _) => true,
            (Some(name), Some(target)) => target.is_named(name),
            (Some(_), None) => false,
        };
        let outputs = self.executions.iter().filter(addressed);
        let outputs = outputs.map(|e| (e.target.as_deref(), e.current.output.as_deref()));
        outputs.collect()
    }

    /// How far the output of each of its executions goes now: of those that have some, on all machines or on those that
    /// `machine` names.
    pub fn output_ends(&self, machine: Option<&str>) -> Vec<OutputEnd> {
        let executions = (0..).zip(&self.executions).filter_map(|(n, e)| {
            let (target, output) = (e.target.as_ref()?, e.current.output.as_ref()?);
            machine
                .is_none_or(|name| target.is_named(name))
                .then(|| OutputEnd {
                    n,
                    attempt: e.current.number,
                    target: target.clone(),
                    ends: [Stream::Stdout, Stream::Stderr].map(|of| output.stream(of).end()),
                })
        });
        executions.collect()
    }

    /// Whether it has, or may still get, an execution on a machine with this instance or label.
    pub fn may_be_on(&self, machine: &str) -> bool {
        let is_free = |e: &Execution| e.target.is_none() && !e.state.is_terminal();
        let may_get = self.open || self.is_unbegun() || self.executions.iter().any(is_free);
        may_get || !self.outputs(Some(machine)).is_empty()
    }

    /// Whether its output comes from several machines, or may do so later.
    pub fn has_several_machines(&self, machine: Option<&str>) -> bool {
        let may_grow = match self.is_unbegun() {
            true => !self.is_any(),
            false => self.open && self.spec.late_join,
        };
        let is_one = |name: &str| {
            let mut targets = self.executions.iter().filter_map(|e| e.target.as_ref());
            targets.any(|target| *target.instance == *name)
        };
        self.outputs(machine).len() > 1 || (may_grow && !machine.is_some_and(is_one))
    }

    /// Whether its mode is `any`: one of the matching machines runs it.
    pub(super) fn is_any(&self) -> bool {
        self.spec.mode == Mode::Any
    }
}

impl Execution {
    /// Whether it is in a queue.
    pub(super) fn is_in_queue(&self) -> bool {
        matches!(self.place, Place::Selector(_) | Place::Inbox(_))
    }

    /// Whether any attempt of it may have been started, however the last one ended.
    fn has_started(&self) -> bool {
        self.current.started_at.is_some() || !self.past.is_empty()
    }
}

pub(super) fn timestamp<'a>(time: Time) -> Cow<'a, str> {
    rfc3339(time).into()
}

/// A point in time as the API writes it.
pub(super) fn rfc3339(time: Time) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(time.0)).to_string()
}
