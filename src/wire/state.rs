//! The states of tasks and executions, and how many are in which.

use serde::{Deserialize, Serialize};

/// The state of an execution, in the order of its lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExecutionState {
    /// Waits for its turn.
    Held,
    /// Waits for a machine.
    Queued,
    /// Handed to a machine, not known to have started.
    Delivered,
    /// Its command runs.
    Running,
    /// The command ended with exit code 0.
    Succeeded,
    /// The command ended otherwise, or could not be started.
    Failed,
    /// The command was killed at its time-out.
    TimedOut,
    /// A user canceled it.
    Canceled,
    /// It was not started within its `ttl`.
    Expired,
    /// Its machine went offline, or was shut down while it ran.
    Lost,
    /// Its task was stopped before its turn came.
    Skipped,
}

impl ExecutionState {
    /// Every state, as the API lists them.
    pub const ALL: [Self; 11] = [
        Self::Held,
        Self::Queued,
        Self::Delivered,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::Canceled,
        Self::Expired,
        Self::Lost,
        Self::Skipped,
    ];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Queued => "queued",
            Self::Delivered => "delivered",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timedOut",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::Lost => "lost",
            Self::Skipped => "skipped",
        }
    }

    /// Whether it can never change again.
    pub fn is_terminal(self) -> bool {
        !matches!(
            self,
            Self::Held | Self::Queued | Self::Delivered | Self::Running
        )
    }
}

/// The state of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TaskState {
    /// Its time has not come.
    Scheduled,
    /// Others have to end first.
    Blocked,
    /// No machine matches yet.
    Waiting,
    /// Some executions have not ended.
    Running,
    /// Every execution succeeded.
    Succeeded,
    /// Some executions succeeded.
    Partial,
    /// None succeeded.
    Failed,
    /// None succeeded, and it was canceled.
    Canceled,
    /// None was started in time.
    Expired,
    /// It was stopped before anything was started.
    Skipped,
}

impl TaskState {
    /// Every state, as the API lists them.
    pub const ALL: [Self; 10] = [
        Self::Scheduled,
        Self::Blocked,
        Self::Waiting,
        Self::Running,
        Self::Succeeded,
        Self::Partial,
        Self::Failed,
        Self::Canceled,
        Self::Expired,
        Self::Skipped,
    ];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Blocked => "blocked",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::Skipped => "skipped",
        }
    }

    /// Whether it has not begun, and may still do so.
    pub fn is_unbegun(self) -> bool {
        matches!(self, Self::Scheduled | Self::Blocked)
    }

    /// Whether it can never change again.
    pub fn is_terminal(self) -> bool {
        !self.is_unbegun() && !matches!(self, Self::Waiting | Self::Running)
    }
}

/// How many executions of a task are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "a field per state of an execution")]
pub struct Counts {
    #[serde(default)]
    pub held: u32,
    pub queued: u32,
    pub delivered: u32,
    pub running: u32,
    pub succeeded: u32,
    pub failed: u32,
    pub timed_out: u32,
    pub canceled: u32,
    pub expired: u32,
    pub lost: u32,
    #[serde(default)]
    pub skipped: u32,
}

impl Counts {
    /// The count of a state.
    pub fn of(&mut self, state: ExecutionState) -> &mut u32 {
        match state {
            ExecutionState::Held => &mut self.held,
            ExecutionState::Queued => &mut self.queued,
            ExecutionState::Delivered => &mut self.delivered,
            ExecutionState::Running => &mut self.running,
            ExecutionState::Succeeded => &mut self.succeeded,
            ExecutionState::Failed => &mut self.failed,
            ExecutionState::TimedOut => &mut self.timed_out,
            ExecutionState::Canceled => &mut self.canceled,
            ExecutionState::Expired => &mut self.expired,
            ExecutionState::Lost => &mut self.lost,
            ExecutionState::Skipped => &mut self.skipped,
        }
    }

    /// `2 succeeded, 1 failed`.
    pub fn in_words(mut self) -> String {
        super::counted(ExecutionState::ALL.map(|state| (*self.of(state), state.word())))
    }

    /// Adds the counts of another task.
    pub fn add(&mut self, other: &Counts) {
        let mut other = *other;
        for state in ExecutionState::ALL {
            *self.of(state) += *other.of(state);
        }
    }

    /// How many have not ended.
    pub fn unfinished(&self) -> u32 {
        self.held + self.under_way()
    }

    /// How many have had their turn and have not ended.
    pub fn under_way(&self) -> u32 {
        self.queued + self.delivered + self.running
    }

    /// How many there are.
    pub fn total(&self) -> u32 {
        self.unfinished()
            + self.succeeded
            + self.failed
            + self.timed_out
            + self.canceled
            + self.expired
            + self.lost
            + self.skipped
    }
}
