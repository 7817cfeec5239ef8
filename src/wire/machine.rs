//! A machine as answered.

use super::crew::Wanted;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The state of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MachineState {
    /// It takes work.
    Online,
    /// It finishes its work and takes no more.
    Draining,
    /// It said goodbye, or has been silent for too long.
    Offline,
}

impl MachineState {
    /// Every state, as the API lists them.
    pub const ALL: [Self; 3] = [Self::Online, Self::Draining, Self::Offline];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Draining => "draining",
            Self::Offline => "offline",
        }
    }
}

/// A machine as answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// The name it is addressed by.
    pub label: String,
    /// The random id of this agent process.
    pub instance: String,
    /// The host name.
    pub host: String,
    /// Its tags, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The version of the agent.
    pub version: String,
    /// The architecture of the machine, if its agent says it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arch: String,
    /// Its state.
    pub state: MachineState,
    /// How many commands it runs at the same time.
    pub jobs: u32,
    /// Executions that it was handed.
    pub running: u32,
    /// Executions queued for it.
    pub queued: u32,
    /// Why it is suspended; absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<String>,
    /// What somebody wants of its agent and the agent has not confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Wanted>,
    /// When it first came online, RFC 3339.
    pub since: String,
    /// When its last request arrived, RFC 3339.
    pub last_seen: String,
}
