//! The report of a task: what was asked, who was hit, what happened when, what is left.

use super::probe::ProbeState;
use super::rollout::StoppedBy;
use super::task::{Detail, ExecutionState, Mode, TaskState};
use super::undo::UndoState;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How a task is to be judged: the first that holds. One that a probe kept from beginning has failed, though it was
/// stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Something may be left on a machine: an undo failed or is owed.
    Dirty,
    /// It, or an undo of it, has not ended yet; after that, if none of the next two holds, a probe has not passed again yet.
    Unfinished,
    /// It was stopped or canceled.
    Stopped,
    /// A probe did not pass again in time after everything was undone.
    NotRecovered,
    /// Every command succeeded, and everything is undone.
    Passed,
    /// Not every command succeeded.
    Failed,
}

impl Verdict {
    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Dirty => "dirty",
            Verdict::Unfinished => "unfinished",
            Verdict::Stopped => "stopped",
            Verdict::NotRecovered => "notRecovered",
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
        }
    }
}

/// A moment of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// What happened.
    pub what: String,
    /// When, RFC 3339.
    pub at: String,
}

/// What became of a task on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineReport {
    /// The label of the machine.
    pub label: String,
    /// Its instance.
    pub instance: String,
    /// Its host.
    pub host: String,
    /// How it ended there, or stands.
    pub state: ExecutionState,
    /// The number of the last attempt.
    pub attempt: u32,
    /// The exit code of the command, if it exited.
    pub exit_code: Option<i32>,
    /// The name of the signal that ended it.
    pub signal: Option<String>,
    /// Why it did not succeed.
    pub msg: String,
    /// When the command started, RFC 3339.
    pub started_at: Option<String>,
    /// When it ended, RFC 3339.
    pub finished_at: Option<String>,
    /// How long it ran, in milliseconds.
    pub duration_ms: Option<u64>,
    /// The SHA-256 of what is kept of its output, standard output first, in hexadecimal digits.
    pub output_hash: String,
    /// What became of the undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoState>,
    /// From the start of the command until the effect was gone, in milliseconds; absent unless the undo is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure_ms: Option<u64>,
}

/// How a probe of a task went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: ProbeState,
    /// How often it ran.
    pub runs: u32,
    /// How many of the runs failed.
    pub failed: u32,
    /// How long the last run took that gave a result, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<u64>,
    /// How long the longest of them took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<u64>,
    /// The label of the machine of the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Why the last run failed; empty if it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub msg: String,
}

/// The report of a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The id of the task.
    pub task: String,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: TaskState,
    /// How it is to be judged.
    pub verdict: Verdict,
    /// Why, in words.
    pub why: String,
    /// What it ran.
    pub detail: Arc<Detail>,
    /// Which machines were meant, in words: the pattern, and what narrowed it down.
    pub meant: String,
    /// Whether all of them ran it, or any one.
    pub mode: Mode,
    /// How many machines matched.
    pub matched: u32,
    /// How many of them were spared.
    pub spared: u32,
    /// What stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<StoppedBy>,
    /// Its probes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeReport>,
    /// Its moments, in order.
    pub phases: Vec<Phase>,
    /// Its machines, in the order of its executions.
    pub machines: Vec<MachineReport>,
}
