//! The data of a machine, and the rules for when it is online and can be given work.

use super::abilities::Abilities;
use super::crew::Wish;
use super::match_index::{SelectorKey, TraitsKey};
use super::order::{Inbox, Turn};
use super::original::OriginalAgent;
use super::probe_data::ProbeKey;
use super::selector::Tags;
use super::task::{Target, rfc3339};
use super::undo::Spot;
use super::{ExecutionKey, TaskKey, Time};
use crate::wire::agent::AttemptId;
use crate::wire::crew::Wanted;
use crate::wire::duration::TimeSpan;
use crate::wire::machine::{Machine as Answer, MachineState};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A machine is offline this long after its last request. A poll is held for 25 s at most, which leaves
/// an agent 20 s for a slow network.
pub const OFFLINE_AFTER: TimeSpan = TimeSpan::from_secs(45);
/// An offline machine is forgotten after this long.
pub(super) const FORGOTTEN_AFTER: TimeSpan = TimeSpan::from_secs(600);

/// The protocol of a machine's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ours: it polls, can be told to cancel, and repeats its reports until they are taken.
    Agent,
    /// The original's: it pings, runs one task at a time, and cannot be told anything meanwhile.
    Original,
}

/// The last open task that a machine has joined, in the order of selectors and tasks.
pub(super) type JoinCursor = (SelectorKey, TaskKey);

/// A machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub instance: Arc<str>,
    pub label: Arc<str>,
    pub host: Arc<str>,
    pub version: Arc<str>,
    /// Empty if its agent does not say it.
    pub arch: Arc<str>,
    /// Label, instance and host, shared with the executions that are addressed to it.
    pub target: Arc<Target>,
    pub tags: Tags,
    pub traits_key: TraitsKey,
    pub kind: Kind,
    pub state: MachineState,
    pub jobs: u32,
    /// What its agent can do.
    pub abilities: Abilities,
    pub since: Time,
    pub last_seen: Time,
    /// It was not heard of since the server was started again.
    pub is_restored: bool,
    /// When it went offline; meaningful while it is.
    pub offline_since: Time,
    /// The time of its `MachineSilent` timer, while it is not offline.
    pub watched_at: Option<Time>,
    /// It said goodbye; this instance will not come back.
    pub left: bool,
    /// Since when it takes no work because it is suspended, see [`super::suspension`].
    pub suspended_since: Option<Time>,
    /// What its agent was not told yet, or has not confirmed.
    pub wish: Option<Wish>,
    /// Its latest poll says that it was drained.
    pub is_drained: bool,
    /// Its latest poll says that it is about to end.
    pub is_ending: bool,
    /// Its latest poll says that it takes no work, for whatever reason.
    pub says_draining: bool,
    /// Its latest poll wants to know how things stand.
    pub asks_standing: bool,
    /// It came online and has not yet joined every open task that it matches: those behind this one are left.
    pub joins_pending: Option<JoinCursor>,
    /// The highest `seq` of its polls.
    pub seq: u64,
    /// Its poll is held by the server.
    pub poll_held: bool,
    /// The connection of its held poll was closed, and nothing was heard of it since.
    pub has_hung_up: bool,
    /// [`super::Notice::Wake`] was given for the held poll.
    pub waking: bool,
    /// Its position in the list of ready machines, if it can be given work.
    pub ready: Option<u64>,
    /// Executions queued for it.
    pub inbox: Inbox,
    /// Those of them that any matching machine may run. They are only offered: what this machine cannot take with
    /// its held poll goes back, see [`super::Core::revoke_offers`].
    pub offers: BTreeSet<Turn>,
    /// Executions handed to it.
    pub active: BTreeSet<ExecutionKey>,
    /// Probes that it has to run, to be sent with the next answer.
    pub probes: BTreeSet<ProbeKey>,
    /// Attempts that it has to kill, to be sent with the next answer.
    pub cancels: Vec<AttemptId>,
    /// What is known of the original's agent, if it has one.
    pub original: OriginalAgent,
}

impl Machine {
    /// Where it is, whichever process it is.
    pub(super) fn spot(&self) -> Spot {
        (self.label.clone(), self.host.clone())
    }

    /// Whether new work is addressed to it.
    pub fn is_live(&self) -> bool {
        self.state == MachineState::Online
    }

    /// Whether it takes no work because of a suspension.
    pub fn is_frozen(&self) -> bool {
        self.suspended_since.is_some()
    }

    /// Whether it runs undos that are ordered: also when it was drained.
    pub fn takes_undos(&self) -> bool {
        let is_drained = self.is_drained || self.wish.is_some_and(Wish::is_drain);
        match self.state {
            MachineState::Online => true,
            MachineState::Draining => is_drained && !self.is_ending,
            MachineState::Offline => false,
        }
    }

    /// Whether its agent is the original's.
    pub fn is_original(&self) -> bool {
        self.kind == Kind::Original
    }

    /// How many commands its agent runs, as far as is known.
    fn running(&self) -> usize {
        self.active.len() - self.original.doubted.len() + self.original.canceled.len()
    }

    /// How many more executions it may be handed.
    pub fn free(&self) -> usize {
        (self.jobs as usize).saturating_sub(self.running())
    }

    /// Whether it can be given an execution now that any machine may run.
    pub fn can_be_given_work(&self) -> bool {
        self.poll_held
            && self.is_live()
            && !self.is_frozen()
            && self.free() > self.inbox.unlimited()
    }

    /// How many of the executions queued for it, counted from the first, it takes with its held poll.
    pub fn takes(&self) -> usize {
        if self.poll_held && self.is_live() && !self.is_frozen() {
            self.free()
        } else {
            0
        }
    }

    /// When it will have been silent for too long, unless it is offline. The original's agent keeps
    /// pinging while it runs a task, so the same time holds for it.
    pub fn silent_at(&self) -> Option<Time> {
        (self.state != MachineState::Offline).then(|| self.last_seen.plus(OFFLINE_AFTER))
    }

    /// The machine as it is now. Cheap: the texts are shared.
    pub fn snapshot(&self) -> MachineSnapshot {
        MachineSnapshot {
            target: self.target.clone(),
            tags: self.tags.clone(),
            version: self.version.clone(),
            arch: self.arch.clone(),
            state: self.state,
            jobs: self.jobs,
            running: self.running() as u32,
            queued: self.inbox.len() as u32,
            suspended: None,
            wanted: self.wish.map(Wish::answer),
            since: self.since,
            last_seen: self.last_seen,
        }
    }
}

/// A machine at one moment. It is made under the lock, and becomes an answer outside it.
#[derive(Debug, Clone)]
pub struct MachineSnapshot {
    /// Its label, instance and host.
    pub target: Arc<Target>,
    /// Its state.
    pub state: MachineState,
    /// Its tags.
    pub tags: Tags,
    version: Arc<str>,
    arch: Arc<str>,
    jobs: u32,
    running: u32,
    queued: u32,
    /// Why it is suspended.
    pub(super) suspended: Option<Arc<str>>,
    wanted: Option<Wanted>,
    since: Time,
    last_seen: Time,
}

impl MachineSnapshot {
    /// The machine as the API answers it.
    pub fn answer(&self) -> Answer {
        Answer {
            label: self.target.label.to_string(),
            instance: self.target.instance.to_string(),
            host: self.target.host.to_string(),
            tags: self.tags.as_ref().clone(),
            version: self.version.to_string(),
            arch: self.arch.to_string(),
            state: self.state,
            jobs: self.jobs,
            running: self.running,
            queued: self.queued,
            suspended: self.suspended.as_deref().map(str::to_owned),
            wanted: self.wanted,
            since: rfc3339(self.since),
            last_seen: rfc3339(self.last_seen),
        }
    }
}
