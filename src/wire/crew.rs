//! The agents as a crew: suspensions, and what is wanted of an agent.

use super::duration::TimeSpan;
use serde::{Deserialize, Serialize};

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
