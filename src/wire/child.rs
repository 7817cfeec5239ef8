//! A task that is submitted as the child of another and begins with its end: as answered with its parent. It is posted as
//! any task, see [`super::task::PostedTask`], and can be posted again as it is answered.

use super::after::Outcome;
use super::duration::TimeSpan;
use super::probe::Probe;
use super::rollout::{Expect, KeepAlive, Rollout, Share};
use super::task::{Detail, Mode, Retry};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a child was posted with, the defaults filled in. The fields are those of a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(
    missing_docs,
    reason = "the fields of Task of the same names are documented"
)]
pub struct ChildTask {
    pub name: String,
    pub machine_pattern: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub machine_tags: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_targets: Option<Share>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
    pub mode: Mode,
    pub ttl: TimeSpan,
    pub late_join: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    pub result_ttl: TimeSpan,
    pub failure_ttl: TimeSpan,
    /// Empty in a list, where it would take too much: a part of a command must not be posted again.
    pub detail: Arc<Detail>,
}

/// The child of a task, by its id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChildId<S = String> {
    /// With which end of its parent it begins.
    pub on: Outcome,
    /// Its id.
    pub task: S,
}
