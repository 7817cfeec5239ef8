//! A machine as kept, and when it counts as there.

use super::match_index::LabelKey;
use super::task::{Target, rfc3339};
use super::{ExecutionKey, Time};
use crate::wire::agent::AttemptId;
use crate::wire::duration::TimeSpan;
use crate::wire::machine::{Machine as Answer, MachineState};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A machine is offline this long after its last request arrived. A poll is held for 25 s at most,
/// so this leaves an agent 20 s for a slow network.
pub const OFFLINE_AFTER: TimeSpan = TimeSpan::from_secs(45);
/// An offline machine is forgotten after this long.
pub(super) const FORGOTTEN_AFTER: TimeSpan = TimeSpan::from_secs(600);

/// Which protocol a machine's agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ours: it polls, can be told to cancel, repeats what it reports.
    Agent,
    /// The original's: it pings, runs one task at a time, cannot be told anything while it does.
    Original,
}

/// A machine as kept.
#[derive(Debug)]
pub(super) struct Machine {
    pub instance: Arc<str>,
    pub label: Arc<str>,
    pub host: Arc<str>,
    pub version: Arc<str>,
    /// The same for the executions that are addressed to it: they share it.
    pub target: Arc<Target>,
    pub label_key: LabelKey,
    pub kind: Kind,
    pub state: MachineState,
    pub jobs: u32,
    pub since: Time,
    pub last_seen: Time,
    /// Since when it is offline, when it is.
    pub offline_since: Time,
    /// When its silence is looked at next, while it is not offline.
    pub watched_at: Option<Time>,
    /// It said goodbye: this instance never comes back.
    pub left: bool,
    /// It has appeared, and not yet joined every open task that it matches.
    pub joins_pending: bool,
    /// The highest `seq` of its polls.
    pub seq: u64,
    /// Its poll is being held.
    pub poll_held: bool,
    /// Its number in the list of machines that can be given work.
    pub ready: Option<u64>,
    /// Queued for it.
    pub inbox: BTreeSet<ExecutionKey>,
    /// Handed to it.
    pub active: BTreeSet<ExecutionKey>,
    /// What it is to kill, to be said at the next chance.
    pub cancels: Vec<AttemptId>,
}

impl Machine {
    /// Whether a broadcast reaches it.
    pub fn is_live(&self) -> bool {
        self.state == MachineState::Online
    }

    /// Whether its agent is the original's.
    pub fn is_original(&self) -> bool {
        self.kind == Kind::Original
    }

    /// How many more executions it may be handed.
    pub fn free(&self) -> usize {
        (self.jobs as usize).saturating_sub(self.active.len())
    }

    /// Whether an execution that waits for any machine should be given to it now.
    pub fn can_be_given_work(&self) -> bool {
        self.poll_held && self.is_live() && self.free() > self.inbox.len()
    }

    /// When its silence has lasted too long. The original's agent pings on while it runs the one
    /// task that it is given at a time.
    pub fn silent_at(&self) -> Option<Time> {
        (self.state != MachineState::Offline).then(|| self.last_seen.plus(OFFLINE_AFTER))
    }

    /// The answer of the API.
    pub fn answer(&self) -> Answer {
        Answer {
            label: self.label.to_string(),
            instance: self.instance.to_string(),
            host: self.host.to_string(),
            version: self.version.to_string(),
            state: self.state,
            jobs: self.jobs,
            running: self.active.len() as u32,
            queued: self.inbox.len() as u32,
            since: rfc3339(self.since),
            last_seen: rfc3339(self.last_seen),
        }
    }
}
