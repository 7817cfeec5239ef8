//! What a cancel or a rerun of many tasks has done.

use super::task::TaskState;
use serde::{Deserialize, Serialize};

/// What it has done, or with a dry run would do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Swept {
    /// Nothing was done: this is what is meant.
    pub dry_run: bool,
    /// How many tasks were canceled, or run again.
    pub tasks: u32,
    /// How many of their executions.
    pub executions: u32,
    /// The first of the tasks.
    pub shown: Vec<SweptTask>,
    /// The tasks that were meant and not changed, by reason.
    pub skipped: Vec<Skipped>,
}

/// A task that was canceled, or run again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SweptTask {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its state before.
    pub state: TaskState,
    /// How many of its executions were canceled; of a rerun, how many the new task has.
    pub executions: u32,
    /// The id of the new task, of a rerun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<String>,
}

/// Tasks that were skipped for the same reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// Why.
    pub reason: String,
    /// How many.
    pub count: u32,
    /// The ids of the first of them.
    pub tasks: Vec<String>,
}
