//! The agents as a crew: suspensions, what is wanted of an agent, how things stand.

use super::duration::TimeSpan;
use super::halt::Halt;
use super::limit::Limit;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A suspension as posted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PostedSuspension {
    /// Which labels it means, as in a task.
    pub machine_pattern: String,
    /// When it ends by itself; without it, when it is lifted.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<TimeSpan>,
    /// Why; shown wherever something waits for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// A suspension that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Suspension {
    /// Which labels it means.
    pub machine_pattern: String,
    /// Why.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// When it ends by itself, RFC 3339; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// What is wanted of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wanted {
    /// It is to take no more work.
    Drain,
    /// It is to take work again.
    Undrain,
    /// It is to end as after TERM.
    Shutdown,
}

/// How things stand for an agent: whether it may end because nothing is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Something is queued, held, blocked or between two attempts that could come to it.
    pub pending: bool,
    /// Its machine is suspended.
    pub suspended: bool,
}

/// How the server is, at a glance.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How many tasks are in which state.
    pub tasks: BTreeMap<String, u64>,
    /// How many executions are.
    pub executions: BTreeMap<String, u64>,
    /// How many machines are.
    pub machines: BTreeMap<String, u64>,
    /// The machines by label, in alphabetical order; not all labels if there are many.
    pub labels: Vec<LabelSummary>,
    /// How many labels are not listed.
    pub more_labels: u64,
    /// What has waited for longest of all that is queued.
    pub oldest: Option<OldestWaiting>,
    /// The suspensions in force.
    pub suspensions: Vec<Suspension>,
    /// The limits with a name, and how they are used.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// How many schedules are in which state.
    #[serde(default)]
    pub schedules: BTreeMap<String, u64>,
    /// How many of them are due, and have not fired yet.
    #[serde(default)]
    pub schedules_due: u64,
    /// The halt that is in force.
    pub halt: Option<Halt>,
    /// How many undos are failed or owed.
    pub undos_open: u64,
    /// The servers of the registry, the one that leads first; empty if it has only one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerSummary>,
}

/// One of the servers of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerSummary {
    /// Where it can be reached.
    pub address: String,
    /// Its version.
    pub version: String,
    /// It leads; the others stand by.
    pub leads: bool,
    /// Since when it has been there.
    pub since: String,
    /// Which of its settings differ from those of the server that leads: `tokens`, `limits`, `binaries`.
    pub differing: Vec<String>,
}

/// The machines of one label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSummary {
    /// The label.
    pub label: String,
    /// How many are online, whether or not they are suspended.
    pub online: u32,
    /// How many are draining.
    pub draining: u32,
    /// How many are offline.
    pub offline: u32,
    /// How many are suspended.
    pub suspended: u32,
    /// Executions that were handed to them.
    pub running: u32,
    /// Executions that wait for them.
    pub queued: u32,
}

/// The task that has waited for longest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OldestWaiting {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was submitted, RFC 3339.
    pub created_at: String,
    /// What it waits for.
    pub msg: String,
}
