//! The halt of all experiments, as posted and as answered.

use serde::{Deserialize, Serialize};

/// A halt as posted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostedHalt {
    /// Why; shown to everyone whose task is refused.
    pub reason: String,
}

/// A halt that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// Why.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// Tasks without an undo are refused, too.
    pub all: bool,
}

/// What everybody should know who works with this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The halt that is in force.
    pub halt: Option<Halt>,
    /// How many undos are failed or owed.
    pub undos_open: usize,
}

/// What a halt has done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Halted {
    /// The halt.
    pub halt: Halt,
    /// How many tasks it canceled.
    pub canceled: usize,
}
