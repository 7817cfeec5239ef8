//! The records that are saved of tasks, executions, output and machines.
//!
//! The core knows no database. It records what has changed and gives it as a [`Batch`] of whole records, see `saving.rs`; a
//! later batch can be applied on top of an earlier one. `restored.rs` rebuilds a core from the records. To save a
//! new field: add it to its record with `#[serde(default)]`, so that files of earlier versions still open.

use super::about::About;
use super::crew::Wish;
use super::files::Files;
use super::halt::Halt;
use super::later_spec::is_per_machine;
use super::named_limits::SavedLimit;
use super::original::CanceledAttempt;
use super::outbox::Entry as SavedNotification;
use super::pace::Pacing;
use super::probe_data::Summary;
use super::probe_place::ProbePlace;
use super::schedule::{FiringOf, Progress};
use super::selector::Narrowing;
use super::suspension::SavedSuspensions;
use super::task::{Attempt, PastAttempt, Target};
use super::unique::Unique;
use super::update;
use super::waiting::Waiting;
use super::{ExecutionKey, ScheduleKey, TaskKey, Time};
use crate::recurrence::Zone;
use crate::wire::after::Outcome;
use crate::wire::agent::Stream;
use crate::wire::duration::TimeSpan;
use crate::wire::notify::Notify;
use crate::wire::probe::Probe;
use crate::wire::rollout::{Expect, KeepAlive, Rollout, Share};
use crate::wire::schedule::PostedSchedule;
use crate::wire::task::{Detail, ExecutionState, Mode, Retry};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The size of a piece in the database beside its bytes, roughly.
const PIECE_BYTES: usize = 64;

/// A task as saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the fields of Task and Spec of the same names are documented"
)]
pub struct SavedTask {
    pub id: Arc<str>,
    pub prefix: Arc<str>,
    pub name: Arc<str>,
    pub pattern: Arc<str>,
    pub mode: Mode,
    pub ttl: TimeSpan,
    pub late_join: bool,
    pub retry: Option<Retry>,
    pub result_ttl: TimeSpan,
    pub failure_ttl: TimeSpan,
    pub detail: Arc<Detail>,
    pub created_at: Time,
    pub expires_at: Time,
    pub finished_at: Option<Time>,
    pub matched: u32,
    pub open: bool,
    pub canceled: bool,
    #[serde(default)]
    pub withdrawn: bool,
    #[serde(default)]
    pub late_join_full: bool,
    #[serde(default)]
    pub rerun_of: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub narrowing: Option<Arc<Narrowing>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_targets: Option<Share>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    #[serde(default)]
    pub spared: u32,
    #[serde(default, skip_serializing_if = "is_usual")]
    pub priority: i8,
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub limits: Box<[Arc<str>]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<TimeSpan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<Box<Unique>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pacing: Option<Box<Pacing>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) probes: Vec<SavedProbe>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Notify>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Arc<FiringOf>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) about: Option<Box<About>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) waiting: Option<Box<Waiting>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Box<Files>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) cancels_dependents: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) children: Vec<SavedChild>,
    /// As [`Saved::away_ms`] was when this was saved.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) away_ms: u64,
}

impl SavedTask {
    /// Whether it begins after another one machine by machine.
    fn is_per_machine(&self) -> bool {
        let mut edges = self.waiting.iter().flat_map(|waiting| &waiting.after);
        edges.any(|edge| edge.per_machine)
    }

    /// Whether it replaces the program of agents, or a task that begins with its end does.
    fn is_update(&self) -> bool {
        let own = { self.files.as_ref() }.is_some_and(|files| files.update.is_some());
        own || self.children.iter().any(|child| child.task.is_update())
    }
}

/// A task that begins with the end of another one, as saved with that one: of its record only what was posted counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedChild {
    pub on: Outcome,
    /// The id that it was posted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Arc<str>>,
    pub task: Box<SavedTask>,
}

fn is_usual(priority: &i8) -> bool {
    *priority == 0
}

pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A probe of a task as saved. What is known of it on a target is saved with the execution.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedProbe {
    pub posted: Probe,
    pub summary: Summary,
    /// What is known of it on the machine that it is done on, if that is no target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<ProbePlace>,
}

/// An execution as saved; its output is saved separately.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the fields of Execution of the same names are documented"
)]
pub struct SavedExecution {
    pub state: ExecutionState,
    pub place: SavedPlace,
    pub target: Option<Arc<Target>>,
    pub canceling: bool,
    #[serde(rename = "now")]
    pub current: Attempt,
    #[serde(default)]
    pub past: Vec<PastAttempt>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) probes: BTreeMap<u8, ProbePlace>,
    /// As [`Saved::away_ms`] was when this was saved.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) away_ms: u64,
}

impl SavedExecution {
    /// Whether its place is possible in its state.
    pub(super) fn has_valid_place(&self) -> bool {
        match self.state {
            ExecutionState::Queued => match self.place {
                SavedPlace::Selector => true,
                SavedPlace::Inbox => self.target.is_some(),
                SavedPlace::Nowhere => self.current.due_at.is_some(),
                SavedPlace::Active => false,
            },
            ExecutionState::Held => self.place == SavedPlace::Nowhere,
            ExecutionState::Delivered | ExecutionState::Running => {
                self.place == SavedPlace::Active && self.target.is_some()
            }
            _ => self.place == SavedPlace::Nowhere,
        }
    }
}

/// Where an execution is; its target says which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the variants of Place of the same names are documented"
)]
pub enum SavedPlace {
    Nowhere,
    #[serde(rename = "Group")]
    Selector,
    Inbox,
    Active,
}

/// A machine as saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the fields of Machine of the same names are documented"
)]
pub struct SavedMachine {
    pub label: Arc<str>,
    pub host: Arc<str>,
    pub version: Arc<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub arch: Arc<str>,
    pub original: bool,
    pub jobs: u32,
    pub since: Time,
    pub left: bool,
    pub offline: bool,
    #[serde(default)]
    pub draining: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_since: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wish: Option<Wish>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    pub seq: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) canceled: Vec<CanceledAttempt>,
    /// As [`Saved::away_ms`] was when this was saved.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) away_ms: u64,
}

impl SavedMachine {
    /// Whether the time for which a server is away counts for it.
    fn waits(&self) -> bool {
        self.suspended_since.is_some() || !self.canceled.is_empty()
    }
}

/// Identifies the attempt that some output belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutputKey {
    /// The task.
    pub task: TaskKey,
    /// The execution's number in it.
    pub n: u32,
    /// The attempt's number.
    pub attempt: u32,
}

impl OutputKey {
    /// That of an execution's attempt.
    pub(super) fn of(execution: ExecutionKey, attempt: u32) -> Self {
        OutputKey {
            task: execution.task,
            n: execution.n,
            attempt,
        }
    }
}

/// A piece of output. One without bytes records only how far the command wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedPiece {
    /// The stream.
    pub stream: Stream,
    /// The offset of the first byte.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
}

impl SavedPiece {
    /// Its size in the database in bytes, roughly.
    pub fn cost(&self) -> usize {
        self.data.len() + PIECE_BYTES
    }
}

/// A change of the output of an attempt.
#[derive(Debug, Clone)]
pub enum OutputChange {
    /// This piece was added.
    Appended(SavedPiece),
    /// All earlier pieces are replaced by these.
    Replaced(Vec<SavedPiece>),
}

impl OutputChange {
    /// Its size in the database in bytes, roughly.
    pub fn cost(&self) -> usize {
        match self {
            OutputChange::Appended(piece) => piece.cost(),
            OutputChange::Replaced(pieces) => pieces.iter().map(SavedPiece::cost).sum(),
        }
    }
}

/// Everything that has changed, as whole records; `None` for what was removed.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Tasks. Removing one removes its executions and their output.
    pub tasks: BTreeMap<TaskKey, Option<SavedTask>>,
    /// Executions.
    pub executions: BTreeMap<(TaskKey, u32), SavedExecution>,
    /// Machines by instance.
    pub machines: BTreeMap<Arc<str>, Option<SavedMachine>>,
    /// Output, in order of arrival.
    pub output: Vec<(OutputKey, OutputChange)>,
    /// Notifications by number.
    pub notifications: BTreeMap<u64, Option<SavedNotification>>,
    /// The halt, if it has changed.
    pub halt: Option<Option<Halt>>,
    /// Limits by name.
    pub limits: BTreeMap<Arc<str>, Option<SavedLimit>>,
    /// The suspensions, if they have changed.
    pub suspensions: Option<SavedSuspensions>,
    /// Schedules as they were posted; `None` for what was deleted.
    pub schedules: BTreeMap<ScheduleKey, Option<Arc<PostedSchedule>>>,
    /// How far schedules have come.
    pub progress: BTreeMap<ScheduleKey, Progress>,
    /// The number of the next schedule.
    pub next_schedule: u64,
    /// The number of the next task. No number is used twice, even after a restart.
    pub next_task: u64,
    /// For how long servers were away in all, if that has changed; see [`Saved::away_ms`].
    pub away_ms: Option<u64>,
}

impl Batch {
    /// The lowest version of a reader that understands all of it. An older one would drop what it does not know, so it
    /// must not open the database any more. To save a state or a field that matters: a new version here, and
    /// `db::records::VERSION`.
    pub fn reader_version(&self) -> u64 {
        let tasks = || self.tasks.values().flatten();
        let is_targeted = |t: &SavedTask| {
            t.narrowing.is_some()
                || t.expect.is_some()
                || t.max_targets.is_some()
                || t.keep_alive.is_some()
                || t.pacing.is_some()
        };
        let is_ordered = |t: &SavedTask| {
            t.priority != 0
                || t.order.is_some()
                || t.unique.is_some()
                || !t.limits.is_empty()
                || t.spread.is_some()
        };
        let machines = || self.machines.values().flatten();
        let is_new_schedule = |posted: &Arc<PostedSchedule>| {
            let task = posted.task.read();
            task.is_ok_and(|task| is_per_machine(&task) || update::has_update(&task))
        };
        match () {
            () if self.away_ms.is_some_and(|away| away > 0) => 7,
            () if tasks().any(|t| t.is_per_machine() || t.is_update()) => 6,
            () if self.schedules.values().flatten().any(is_new_schedule) => 6,
            () if !self.limits.is_empty() || tasks().any(is_ordered) => 5,
            () if self.suspensions.is_some() || !self.notifications.is_empty() => 5,
            () if !self.schedules.is_empty() || !self.progress.is_empty() => 5,
            () if machines().any(|m| m.suspended_since.is_some() || m.wish.is_some()) => 5,
            () if tasks().any(|t| {
                t.about.is_some()
                    || t.waiting.is_some()
                    || t.scheduled.is_some()
                    || !t.children.is_empty()
                    || !t.notify.is_empty()
                    || t.files.is_some()
            }) =>
            {
                5
            }
            () if self.halt.is_some()
                || tasks().any(|t| t.detail.undo.is_some() || !t.probes.is_empty()) =>
            {
                4
            }
            () if tasks().any(is_targeted) => 3,
            () if tasks().any(|t| t.late_join_full) => 2,
            () => 1,
        }
    }

    /// All records, as if each had just changed.
    pub fn of_all(saved: Saved) -> Batch {
        fn set<K: Ord, T>(records: BTreeMap<K, T>) -> BTreeMap<K, Option<T>> {
            let set = records.into_iter().map(|(key, record)| (key, Some(record)));
            set.collect()
        }
        let appended = |(key, piece)| (key, OutputChange::Appended(piece));
        let has_suspensions = saved.suspensions != SavedSuspensions::default();
        Batch {
            tasks: set(saved.tasks),
            executions: saved.executions,
            machines: set(saved.machines),
            output: saved.output.into_iter().map(appended).collect(),
            notifications: set(saved.notifications),
            halt: saved.halt.map(Some),
            limits: set(saved.limits),
            suspensions: has_suspensions.then_some(saved.suspensions),
            schedules: set(saved.schedules),
            progress: saved.progress,
            next_schedule: saved.next_schedule,
            next_task: saved.next_task,
            away_ms: (saved.away_ms > 0).then_some(saved.away_ms),
        }
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
            && self.executions.is_empty()
            && self.machines.is_empty()
            && self.output.is_empty()
            && self.notifications.is_empty()
            && self.halt.is_none()
            && self.limits.is_empty()
            && self.suspensions.is_none()
            && self.schedules.is_empty()
            && self.progress.is_empty()
            && self.away_ms.is_none()
    }

    /// Applies a later batch on top of this one.
    pub fn add(&mut self, later: Batch) {
        let removed = later.tasks.iter().filter(|(_, task)| task.is_none());
        let gone: BTreeSet<TaskKey> = removed.map(|(key, _)| *key).collect();
        for key in &gone {
            while let Some((first, _)) = self.executions.range((*key, 0)..=(*key, u32::MAX)).next()
            {
                let first = *first;
                self.executions.remove(&first);
            }
        }
        if !gone.is_empty() {
            self.output.retain(|(of, _)| !gone.contains(&of.task));
        }
        self.tasks.extend(later.tasks);
        self.executions.extend(later.executions);
        self.machines.extend(later.machines);
        self.output.extend(later.output);
        self.limits.extend(later.limits);
        self.notifications.extend(later.notifications);
        let deleted = later
            .schedules
            .iter()
            .filter(|(_, posted)| posted.is_none());
        for (key, _) in deleted {
            self.progress.remove(key);
        }
        self.schedules.extend(later.schedules);
        self.progress.extend(later.progress);
        self.next_schedule = self.next_schedule.max(later.next_schedule);
        self.halt = later.halt.or(self.halt.take());
        self.suspensions = later.suspensions.or(self.suspensions.take());
        self.next_task = self.next_task.max(later.next_task);
        self.away_ms = later.away_ms.or(self.away_ms);
    }
}

/// All records, to rebuild a core from.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    /// Tasks.
    pub tasks: BTreeMap<TaskKey, SavedTask>,
    /// Executions; numbered without gaps from 0 within a task.
    pub executions: BTreeMap<(TaskKey, u32), SavedExecution>,
    /// Output, in order of arrival.
    pub output: Vec<(OutputKey, SavedPiece)>,
    /// Machines by instance.
    pub machines: BTreeMap<Arc<str>, SavedMachine>,
    /// Notifications by number.
    pub notifications: BTreeMap<u64, SavedNotification>,
    /// The halt that is in force.
    pub halt: Option<Halt>,
    /// Limits by name.
    pub limits: BTreeMap<Arc<str>, SavedLimit>,
    /// The suspensions.
    pub suspensions: SavedSuspensions,
    /// Schedules as they were posted.
    pub schedules: BTreeMap<ScheduleKey, Arc<PostedSchedule>>,
    /// How far they have come.
    pub progress: BTreeMap<ScheduleKey, Progress>,
    /// The zones that they name; reading them is not for the core.
    pub zones: BTreeMap<String, Zone>,
    /// The number of the next schedule; 0 if it was not saved.
    pub next_schedule: u64,
    /// The number of the next task; 0 if it was not saved.
    pub next_task: u64,
    /// When the process that saved them was last known to run.
    pub last_alive: Time,
    /// For how long servers were away in all until that one began, in ms, as far as something waited then. A record that
    /// waits for times has the value of when it was saved: its times are later by the difference. So a start changes no
    /// record, however many wait.
    pub away_ms: u64,
}

impl Saved {
    /// Whether there is anything for which the time counts that no server was there.
    pub(super) fn waits(&self) -> bool {
        self.tasks.values().any(|task| task.finished_at.is_none())
            || self.machines.values().any(SavedMachine::waits)
            || self.suspensions.waits()
    }

    /// Applies a batch as a database does. For models of databases in tests.
    #[doc(hidden)]
    pub fn apply(&mut self, now: Time, batch: &Batch) {
        for (key, task) in &batch.tasks {
            match task {
                Some(task) => drop(self.tasks.insert(*key, task.clone())),
                None => {
                    self.tasks.remove(key);
                    self.executions.retain(|(task, _), _| task != key);
                    self.output.retain(|(of, _)| of.task != *key);
                }
            }
        }
        self.executions.extend(batch.executions.clone());
        for (key, change) in &batch.output {
            match change {
                OutputChange::Appended(piece) => self.output.push((*key, piece.clone())),
                OutputChange::Replaced(pieces) => {
                    self.output.retain(|(of, _)| of != key);
                    self.output
                        .extend(pieces.iter().map(|piece| (*key, piece.clone())));
                }
            }
        }
        for (instance, machine) in &batch.machines {
            match machine {
                Some(machine) => drop(self.machines.insert(instance.clone(), machine.clone())),
                None => drop(self.machines.remove(instance)),
            }
        }
        for (name, limit) in &batch.limits {
            match limit {
                Some(limit) => drop(self.limits.insert(name.clone(), limit.clone())),
                None => drop(self.limits.remove(name)),
            }
        }
        for (number, entry) in &batch.notifications {
            match entry {
                Some(entry) => drop(self.notifications.insert(*number, entry.clone())),
                None => drop(self.notifications.remove(number)),
            }
        }
        if let Some(suspensions) = &batch.suspensions {
            self.suspensions.clone_from(suspensions);
        }
        if let Some(halt) = &batch.halt {
            self.halt.clone_from(halt);
        }
        self.progress.extend(batch.progress.clone());
        for (key, posted) in &batch.schedules {
            match posted {
                Some(posted) => drop(self.schedules.insert(*key, posted.clone())),
                None => {
                    self.schedules.remove(key);
                    self.progress.remove(key);
                }
            }
        }
        self.next_schedule = self.next_schedule.max(batch.next_schedule);
        self.next_task = self.next_task.max(batch.next_task);
        self.away_ms = batch.away_ms.unwrap_or(self.away_ms);
        self.last_alive = self.last_alive.max(now);
    }
}
