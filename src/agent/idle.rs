//! When an agent ends by itself: after a number of commands, or when it had nothing to do for some time.
//!
//! Whether anything waits that could come to it only the server knows, and says so in the answers to polls. So it is
//! decided after each of them, and a poll is held no longer than until the next moment at which the agent could end.

use super::shared::Agent;
use crate::wire::crew::Standing;
use crate::wire::duration::TimeSpan;
use log::warn;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a poll is held when the agent has been idle for long enough, and something is still pending.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest time for which a poll is held: a server that is asked more often does nothing else.
const SHORTEST: Duration = Duration::from_millis(50);

/// When the agent ends by itself.
#[derive(Debug, Clone, Default)]
pub struct IdleConfig {
    /// When it was idle for so long, and nothing is pending.
    pub until_idle: Option<TimeSpan>,
    /// When it was idle for so long, whatever is pending; not counted while suspended or without a server.
    pub max_idle: Option<TimeSpan>,
    /// After so many commands.
    pub max_commands: Option<u64>,
}

impl IdleConfig {
    /// Whether the server has to say how things stand.
    pub fn asks(&self) -> bool {
        self.until_idle.is_some() || self.max_idle.is_some()
    }
}

/// For how long the agent has been idle.
#[derive(Debug, Default)]
pub struct Idle(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// The idle time that counts for `--max-idle`.
    counted: Duration,
    /// The machine was suspended when the server last said how things stand.
    suspended: bool,
    /// It was logged that the server does not say how things stand.
    has_warned: bool,
}

impl Counted {
    /// Counts a poll that took so long; `idle_for` says since when the agent is idle, if it is.
    fn polled(&mut self, took: Duration, idle_for: Option<Duration>, suspended: bool) {
        let was_suspended = std::mem::replace(&mut self.suspended, suspended);
        let Some(idle_for) = idle_for else {
            self.counted = Duration::ZERO;
            return;
        };
        if idle_for < took {
            // There was something to do meanwhile.
            self.counted = Duration::ZERO;
        }
        if !suspended && !was_suspended {
            self.counted += took.min(idle_for);
        }
    }
}

impl Agent {
    /// How long the next poll may be held at most, so that the agent ends in time.
    pub fn longest_wait(&self, wait: TimeSpan) -> TimeSpan {
        let IdleConfig {
            until_idle,
            max_idle,
            max_commands,
        } = self.config.idle;
        let idle_for = self.state.idle_for();
        let mut longest = Duration::from(wait);
        let mut at_most = |limit: TimeSpan, idle: Duration| {
            let limit = Duration::from(limit);
            let left = limit.checked_sub(idle).filter(|left| !left.is_zero());
            longest = longest.min(left.unwrap_or(LOOK).max(SHORTEST));
        };
        if let Some(limit) = until_idle {
            at_most(limit, idle_for.unwrap_or_default());
        }
        if let Some(limit) = max_idle {
            let counted = self.idle.0.lock().unwrap_or_else(PoisonError::into_inner);
            at_most(limit, idle_for.map_or(Duration::ZERO, |_| counted.counted));
        }
        if max_commands.is_some_and(|_| self.state.is_spent()) {
            longest = longest.min(LOOK);
        }
        TimeSpan::from_millis(longest.as_millis() as u64)
    }

    /// A poll was answered after so long: ends the agent if it is time for that.
    pub fn end_if_idle(self: &Arc<Self>, took: Duration, standing: Option<Standing>) {
        let config = &self.config.idle;
        let idle_for = self.state.idle_for();
        if config.max_commands.is_some() && self.state.is_spent() && idle_for.is_some() {
            self.end("--max-commands");
            return;
        }
        if !config.asks() {
            return;
        }
        let mut counted = self.idle.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(standing) = standing else {
            if !std::mem::replace(&mut counted.has_warned, true) {
                warn!(
                    "the server does not say whether anything is pending: with this one --until-idle and --max-idle do nothing"
                );
            }
            return;
        };
        counted.polled(took, idle_for, standing.suspended);
        let is_over = |limit: Option<TimeSpan>, idle: Duration| {
            limit.is_some_and(|limit| idle >= Duration::from(limit))
        };
        let Some(idle_for) = idle_for else {
            return;
        };
        if is_over(config.until_idle, idle_for) && !standing.pending {
            self.end("--until-idle");
        } else if is_over(config.max_idle, counted.counted) {
            self.end("--max-idle");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_counts_neither_while_suspended_nor_before_something_was_done() {
        let s = Duration::from_secs;
        let mut counted = Counted::default();
        counted.polled(s(20), Some(s(20)), false);
        counted.polled(s(20), Some(s(40)), false);
        assert_eq!(counted.counted, s(40));
        counted.polled(s(20), Some(s(60)), true);
        // The machine was suspended when that poll began.
        counted.polled(s(20), Some(s(80)), false);
        assert_eq!(counted.counted, s(40));
        counted.polled(s(20), Some(s(100)), false);
        assert_eq!(counted.counted, s(60));
        counted.polled(s(20), Some(s(5)), false);
        assert_eq!(counted.counted, s(5));
        counted.polled(s(1), None, false);
        assert_eq!(counted.counted, s(0));
    }
}
