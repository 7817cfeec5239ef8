//! A task as it is posted, and as it is answered.

use super::after::{After, PostedAfter};
use super::bounded;
use super::child::{ChildId, ChildTask};
use super::duration::TimeSpan;
use super::enumeration::{self, Words};
use super::files::{Fetch, FetchedFile, File, Phase};
use super::machine_names::MachineNames;
use super::moment::Moment;
use super::notify::{AnsweredNotification, Notify};
use super::order::{OnDuplicate, Position};
use super::probe::{AnsweredProbe, Probe};
use super::rollout::{Expect, KeepAlive, Rollout, RolloutState, Share, StoppedBy};
use super::strict_object::{Posted, ReadOnlyFields, StrictObject};
use super::undo::{AnsweredUndo, UndoCounts};
use super::update::Update;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

pub use super::detail::{DEFAULT_KILL_GRACE, DEFAULT_TIMEOUT, Detail, json_bytes};
pub use super::state::{Counts, ExecutionState, TaskState};

/// Which machines run a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Every matching machine runs it.
    #[default]
    All,
    /// Exactly one matching machine runs it, whichever is free first.
    Any,
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WORDS: Words<Mode> = &[("all", Mode::All), ("any", Mode::Any)];
        enumeration::deserialize(WORDS, deserializer)
    }
}

/// After which results an attempt is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RetryOn {
    /// It ended `failed`.
    Failed,
    /// It ended `timedOut`.
    TimedOut,
    /// Its machine went offline.
    Lost,
}

impl<'de> Deserialize<'de> for RetryOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WORDS: Words<RetryOn> = &[
            ("failed", RetryOn::Failed),
            ("timedOut", RetryOn::TimedOut),
            ("lost", RetryOn::Lost),
        ];
        enumeration::deserialize(WORDS, deserializer)
    }
}

/// Retries; there are none by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// The most retries.
    pub max: u32,
    /// The pauses before the retries; the last one is used for all further ones.
    #[serde(default, deserialize_with = "bounded::list")]
    pub interval: Vec<TimeSpan>,
    /// After which results.
    #[serde(default = "Retry::default_on", deserialize_with = "bounded::list")]
    pub on: Vec<RetryOn>,
}

impl Retry {
    fn default_on() -> Vec<RetryOn> {
        vec![RetryOn::Failed, RetryOn::TimedOut]
    }
}

/// A task as posted. It is read as [`Posted`], so that an answered task can be posted again; any other unknown field
/// is an error that names it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(
    missing_docs,
    reason = "the answer's fields of the same names are documented"
)]
pub struct PostedTask {
    pub machine_pattern: Option<String>,
    pub exclude: Option<String>,
    #[serde(default, deserialize_with = "bounded::some_map")]
    pub machine_tags: Option<BTreeMap<String, String>>,
    pub hosts: Option<String>,
    #[serde(default, deserialize_with = "bounded::some_list")]
    pub instances: Option<Vec<String>>,
    pub expect: Option<Expect>,
    pub max_targets: Option<Share>,
    pub keep_alive: Option<KeepAlive>,
    pub rollout: Option<StrictObject<Rollout>>,
    #[serde(default, deserialize_with = "bounded::some_list")]
    pub probes: Option<Vec<Posted<Probe>>>,
    #[serde(default, deserialize_with = "bounded::some")]
    pub detail: Option<Posted<Detail>>,
    #[serde(default, deserialize_with = "bounded::some_list")]
    pub files: Option<Vec<StrictObject<File>>>,
    pub files_timeout: Option<TimeSpan>,
    #[serde(default, deserialize_with = "bounded::some_list")]
    pub fetch: Option<Vec<StrictObject<Fetch>>>,
    pub update: Option<StrictObject<Update>>,
    pub name: Option<String>,
    pub id: Option<String>,
    pub priority: Option<i64>,
    pub unique_key: Option<String>,
    pub on_duplicate: Option<OnDuplicate>,
    pub replace_running: Option<bool>,
    #[serde(default, deserialize_with = "bounded::some_list")]
    pub limits: Option<Vec<String>>,
    pub spread: Option<TimeSpan>,
    pub mode: Option<Mode>,
    pub ttl: Option<TimeSpan>,
    pub late_join: Option<bool>,
    pub retry: Option<StrictObject<Retry>>,
    pub result_ttl: Option<TimeSpan>,
    pub failure_ttl: Option<TimeSpan>,
    #[serde(default, deserialize_with = "bounded::some_list")]
    pub notify: Option<Vec<StrictObject<Notify>>>,
    pub group: Option<String>,
    #[serde(default, deserialize_with = "bounded::some_map")]
    pub tags: Option<BTreeMap<String, String>>,
    pub description: Option<String>,
    pub start_at: Option<Moment>,
    pub delay: Option<TimeSpan>,
    #[serde(default, deserialize_with = "bounded::some_list")]
    pub after: Option<Vec<Posted<PostedAfter>>>,
    pub blocked_ttl: Option<TimeSpan>,
    pub on_success: Option<Box<Posted<PostedTask>>>,
    pub on_failure: Option<Box<Posted<PostedTask>>>,
    pub on_end: Option<Box<Posted<PostedTask>>>,
}

/// The most tasks of a list: they are accepted in one change, with the lock held for some 10 µs each.
pub const MAX_LIST: usize = 1_000;

/// A list of tasks as posted.
#[derive(Debug)]
pub struct PostedTasks(pub Vec<Posted<PostedTask>>);

impl<'de> Deserialize<'de> for PostedTasks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bounded::list_of(deserializer, MAX_LIST).map(PostedTasks)
    }
}

impl ReadOnlyFields for PostedTask {
    const READ_ONLY: &[&str] = &[
        "type",
        "status",
        "state",
        "msg",
        "createdAt",
        "finishedAt",
        "rerunOf",
        "parent",
        "children",
        "schedule",
        "scheduledFor",
        "matched",
        "spared",
        "position",
        "rolloutState",
        "stoppedBy",
        "assignees",
        "counts",
        "undos",
        "clean",
        "notifications",
        "result",
    ];
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn is_usual(priority: &i8) -> bool {
    *priority == 0
}

fn is_nothing(bytes: &u64) -> bool {
    *bytes == 0
}

/// What would become of a task if it were submitted now.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    /// It would be accepted.
    #[serde(default = "yes")]
    pub ok: bool,
    /// Why it would not, or what it would wait for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub msg: String,
    /// How many live machines match.
    pub matched: u32,
    /// The machines that would run it, in the order of its rollout; one of them if the mode is `any`.
    pub machines: Vec<Target>,
    /// The machines that match and are spared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spared: Vec<Target>,
    /// How many of its targets its rollout has started when each step is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<u32>,
    /// The most executions of its rollout at once, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// How many match but are offline.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offline: u32,
    /// How many match but are draining: they take no more work.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub draining: u32,
}

fn yes() -> bool {
    true
}

/// A machine that a task is addressed to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// Its label.
    pub label: String,
    /// Its instance.
    pub instance: String,
}

/// A task as the command line posts it: what its flags say. The server fills in the rest.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(
    missing_docs,
    reason = "the answer's fields of the same names are documented"
)]
pub struct NewTask {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_pattern: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub machine_tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_targets: Option<Share>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_duplicate: Option<OnDuplicate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace_running: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<TimeSpan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<TimeSpan>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Notify>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<TimeSpan>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<After>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_ttl: Option<TimeSpan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_success: Option<NewChild>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<NewChild>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_end: Option<NewChild>,
    pub detail: Detail,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files_timeout: Option<TimeSpan>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fetch: Vec<Fetch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
}

/// A child of it as the command line posts it.
#[derive(Debug, Clone, Serialize)]
pub struct NewChild {
    /// What it runs.
    pub detail: Detail,
}

/// A task as answered: everything that was posted, and the results. `S` is a text: owned where it is read, borrowed
/// where it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task<S = String> {
    /// Its id.
    pub id: S,
    /// Its name.
    pub name: S,
    /// Always 0, as in the original.
    #[serde(rename = "type")]
    pub kind: u8,
    /// The original's number: 0 new, 1 assigned, 2 succeeded, 3 ended otherwise.
    pub status: u8,
    /// Its state.
    pub state: TaskState,
    /// A message about the state; usually empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub msg: String,
    /// When it was accepted, RFC 3339.
    pub created_at: S,
    /// When it ended, RFC 3339.
    pub finished_at: Option<S>,
    /// The pattern it was addressed with.
    pub machine_pattern: S,
    /// Labels that are not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<S>,
    /// A pattern for each of these tags.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    pub machine_tags: BTreeMap<String, String>,
    /// The pattern of the host names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<S>,
    /// The only instances that are meant.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<S>,
    /// How many of them a list leaves out. Not accepted when posted: a part of them would be other machines.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub truncated_instances: u32,
    /// How many machines had to match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// At most so many of those that matched are targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_targets: Option<Share>,
    /// How many machines had to be left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
    /// In which order and at which pace it reaches its targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// How far its rollout has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout_state: Option<RolloutState<S>>,
    /// What stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<StoppedBy<S>>,
    /// Its probes, and how their runs went.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<AnsweredProbe<S>>,
    /// The higher ones are handed out first.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub priority: i8,
    /// Of the tasks with the same one, one runs at a time.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub unique_key: Option<S>,
    /// What becomes of it when another task has its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_duplicate: Option<OnDuplicate>,
    /// The other task is replaced even if something of it has started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace_running: bool,
    /// The limits that it counts for.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<S>,
    /// The release of each execution is delayed by a part of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<TimeSpan>,
    /// Its place among what is handed out next, from 1: a number, or `"1000+"`.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Which of the matching machines run it.
    pub mode: Mode,
    /// How long an execution may wait to be started.
    pub ttl: TimeSpan,
    /// Whether machines that come online within `ttl` run it too.
    pub late_join: bool,
    /// Retries, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// The group that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<S>,
    /// What people sort it by.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<S>,
    /// How long it is kept after it succeeded.
    pub result_ttl: TimeSpan,
    /// How long it is kept after it ended otherwise.
    pub failure_ttl: TimeSpan,
    /// The id of the task that it reruns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun_of: Option<S>,
    /// The id of the schedule that fired it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<S>,
    /// When that firing was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_for: Option<S>,
    /// How many live machines matched when it was submitted.
    /// When it begins, or was to begin at the earliest, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<S>,
    /// What has to end first.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<After<S>>,
    /// How long it may wait for that, from when its time has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_ttl: Option<TimeSpan>,
    /// The id of the task with whose end it begins, if it was submitted with that one.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub parent: Option<S>,
    /// A task that begins when it has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_success: Option<ChildTask>,
    /// A task that begins when it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<ChildTask>,
    /// A task that begins when it has ended in any way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_end: Option<ChildTask>,
    /// The ids of these.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<ChildId<S>>,
    /// How many live machines matched when it began.
    pub matched: u32,
    /// How many of them are no targets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spared: u32,
    /// The labels of its targets.
    pub assignees: Vec<S>,
    /// Its executions by state.
    pub counts: Counts,
    /// Their undos by state, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undos: Option<UndoCounts>,
    /// Nothing of it may be left on a machine; only of a task with an undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<bool>,
    /// The files that it lays down before its command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// How long that may take, and handing back again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_timeout: Option<TimeSpan>,
    /// The files that it hands back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fetch: Vec<Fetch>,
    /// The program that agents are to run from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// Whom it tells of which events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Notify>,
    /// What became of that; a list leaves it out.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub notifications: Vec<AnsweredNotification<S>>,
    /// What it runs, and the original's flat list of output lines.
    pub detail: AnsweredDetail,
    /// One entry per execution.
    pub result: Vec<Execution<S>>,
}

impl<S: AsRef<str>> Task<S> {
    /// The names of its machines.
    pub fn machine_names(&self) -> MachineNames {
        let machines = self.result.iter();
        MachineNames::of(machines.map(|e| {
            (
                e.machine_label.as_ref(),
                e.instance.as_ref(),
                e.host.as_ref(),
            )
        }))
    }
}

/// [`Detail`] with the output lines of all machines, in order of finishing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnsweredDetail {
    /// What it runs.
    #[serde(flatten)]
    pub detail: Arc<Detail>,
    /// How many bytes of it a list leaves out. Not accepted when posted: a part of a command must not run.
    #[serde(rename = "truncatedBytes", default, skip_serializing_if = "is_nothing")]
    pub truncated_bytes: u64,
    /// The lines.
    #[serde(default)]
    pub result: Vec<String>,
}

/// An execution as answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Execution<S = String> {
    /// Its id: the prefix of its task (the task's id, if the server made that), a dot, a number.
    pub execution: S,
    /// The label of its machine; empty while it has none.
    pub machine_label: S,
    /// The instance of its machine; empty while it has none.
    pub instance: S,
    /// The host of its machine; empty while it has none.
    pub host: S,
    /// 0 succeeded, 1 not finished, 2 ended otherwise.
    pub status: u8,
    /// Its state.
    pub state: ExecutionState,
    /// What it does with files, while it is `running`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The attempt and its outcome.
    #[serde(flatten)]
    pub attempt: Attempt<S>,
    /// Earlier attempts, oldest first; the last ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<PastAttempt<S>>,
}

/// One attempt and what became of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt<S = String> {
    /// Its number, from 1.
    pub attempt: u32,
    /// The exit code, when the command exited.
    pub exit_code: Option<i32>,
    /// The name of the signal that ended the command.
    pub signal: Option<S>,
    /// Why it did not succeed.
    pub msg: S,
    /// The lines of both streams, in order of arrival.
    pub output: Vec<String>,
    /// The kept standard output.
    pub stdout: String,
    /// The kept standard error.
    pub stderr: String,
    /// How many bytes of both streams are missing here.
    pub truncated_bytes: u64,
    /// How many of them the server does not have: they were not kept. The others can be had as output of the task.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub missing_bytes: u64,
    /// When the command started, RFC 3339.
    pub started_at: Option<S>,
    /// When it ended, RFC 3339.
    pub finished_at: Option<S>,
    /// How long it ran, in milliseconds.
    pub duration_ms: Option<u64>,
    /// Its undo, once it was handed out with one.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub undo: Option<AnsweredUndo<S>>,
    /// The files that it handed back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FetchedFile>,
}

/// An earlier attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PastAttempt<S = String> {
    /// How it ended.
    pub state: ExecutionState,
    /// The label of the machine it ran on.
    pub machine_label: S,
    /// The instance of that machine.
    pub instance: S,
    /// The attempt and its outcome.
    #[serde(flatten)]
    pub attempt: Attempt<S>,
}
