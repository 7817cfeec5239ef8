//! A group of tasks as answered.

use super::task::{Counts, TaskState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A group of tasks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Its name.
    pub name: String,
    /// That of one task with the executions of all members.
    pub state: TaskState,
    /// How many members are in each state.
    pub tasks: BTreeMap<String, u32>,
    /// How many of their executions are in each state.
    pub executions: Counts,
    /// The highest exit code of all executions that have ended: a signal counts 128 and its number, a time-out 124.
    pub worst_exit_code: Option<i32>,
    /// A page of its members, in order of submission.
    pub members: Vec<Member>,
}

/// A member of a group.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: TaskState,
    /// Its executions by state.
    pub counts: Counts,
    /// The highest exit code of its executions that have ended.
    pub worst_exit_code: Option<i32>,
    /// When it was accepted, RFC 3339.
    pub created_at: String,
    /// When it ended, RFC 3339.
    pub finished_at: Option<String>,
}
