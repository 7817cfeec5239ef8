//! The halt: every experiment ends, and none begins until somebody lifts it.

use super::invariants::Rule;
use super::task::rfc3339;
use super::user::Selection;
use super::{Core, Refusal, TaskKey, Time};
use crate::wire::halt as wire;
use serde::{Deserialize, Serialize};

/// The longest reason of a halt, in bytes.
pub const MAX_REASON_BYTES: usize = 1 << 10;

/// A halt that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Time,
    /// Also tasks without an undo are refused.
    pub all: bool,
}

impl Halt {
    /// As the API answers it.
    pub fn answer(&self) -> wire::Halt {
        wire::Halt {
            reason: self.reason.clone(),
            since: rfc3339(self.since),
            all: self.all,
        }
    }
}

impl Core {
    /// The halt that is in force.
    pub fn halt(&self) -> Option<&Halt> {
        self.halt.as_ref()
    }

    /// Cancels every unfinished task with an undo, or every task at all, and refuses new ones until the halt is lifted.
    /// A further halt replaces the reason, and never means less than the one before. Returns the halt that is in force
    /// now, and how many tasks it canceled.
    pub fn begin_halt(&mut self, now: Time, reason: &str, all: bool) -> (Halt, usize) {
        let before = self.halt.take();
        let (since, was_all) = before.map_or((now, false), |halt| (halt.since, halt.all));
        let all = all || was_all;
        let halt = Halt {
            reason: reason.to_owned(),
            since,
            all,
        };
        self.set_halt(Some(halt.clone()));
        let meant = self.tasks.iter().filter(|(_, task)| {
            task.finished_at.is_none() && !task.canceled && (all || task.has_undo())
        });
        let meant: Vec<TaskKey> = meant.map(|(key, _)| *key).collect();
        for key in &meant {
            // It is known and has not finished, so nothing refuses that.
            let _ = self.cancel(now, *key, &Selection::All);
        }
        (halt, meant.len())
    }

    /// Lifts the halt. False if there is none.
    pub fn lift_halt(&mut self) -> bool {
        let was = self.halt.is_some();
        if was {
            self.set_halt(None);
        }
        was
    }

    fn set_halt(&mut self, halt: Option<Halt>) {
        if let Some(changes) = &mut self.changes {
            changes.halt = Some(halt.clone());
        }
        self.halt = halt;
    }

    /// Refuses a new task while a halt is in force.
    pub(super) fn check_halt(&self, has_undo: bool) -> Result<(), Refusal> {
        match &self.halt {
            Some(halt) if (halt.all || has_undo) && self.keeps(Rule::HaltRefuses) => {
                Err(Refusal::Full(format!(
                    "halted since {}: {}; lift it with DELETE /api/v1/halt (sidebike halt --lift)",
                    rfc3339(halt.since),
                    halt.reason
                )))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::*;

    #[test]
    fn only_a_halt_that_was_there_is_lifted_and_saved() {
        let mut core = Core::new(Limits::NONE, Time(1_000));
        core.record_changes();
        assert!(!core.lift_halt());
        assert!(core.take_batch().is_empty(), "an older program reads it");
        core.begin_halt(Time(1_000), "why", false);
        assert_eq!(core.take_batch().reader_version(), 4);
        assert!(core.lift_halt());
        assert_eq!(core.take_batch().halt, Some(None));
    }
}
