//! What the agent's threads share while its program is replaced: taking no more work, the moment at which nothing else is
//! left, and what the next program goes on with.

use super::{AgentState, Entry, Stage};
use crate::agent::attempt::{Attempt, Outcome, lock};
use crate::agent::update::marker::Pending;
use crate::wire::agent::AttemptId;
use std::sync::Arc;
use std::time::Instant;

/// What the next program in this process goes on with.
#[derive(Debug)]
pub struct Continuation {
    /// The random id of this agent.
    pub instance: String,
    /// The number of the latest poll.
    pub seq: u64,
    /// How many attempts were ever accepted.
    pub accepted: u64,
}

impl AgentState {
    /// Takes no more work because the program is to be replaced, or takes work again.
    pub fn set_updating(&self, updating: bool) {
        lock(&self.inner).updating = updating;
    }

    /// Whether an undo is armed, runs, or has failed and the server has not been told.
    pub fn has_open_undo(&self) -> bool {
        lock(&self.inner).has_open_undo()
    }

    /// Waits until this attempt is all there is and the server has taken everything else, and takes nothing more from
    /// then on; the poll loop ends. Whether that was so before the `deadline`.
    pub fn close_if_alone(&self, id: &AttemptId, deadline: Instant) -> bool {
        let alone = self.locked_when(deadline, |inner| {
            let mut others = inner.attempts.keys().filter(|other| *other != id);
            others.next().is_none() && inner.undos.is_empty() && inner.probes.is_empty()
        });
        let Some(mut inner) = alone.filter(|inner| !inner.draining) else {
            return false;
        };
        inner.closed = true;
        inner.epoch += 1;
        true
    }

    /// Takes work again. The epoch of the poll loop that is to be started; none during shutdown, which has its own.
    pub fn reopen(&self) -> Option<u64> {
        let mut inner = lock(&self.inner);
        inner.closed = false;
        if inner.draining {
            return None;
        }
        inner.epoch += 1;
        Some(inner.epoch)
    }

    /// What the next program goes on with.
    pub fn continuation(&self) -> Continuation {
        let inner = lock(&self.inner);
        Continuation {
            instance: inner.instance.clone(),
            seq: inner.seq,
            accepted: inner.accepted,
        }
    }

    /// Goes on with the attempt of an update, before the first poll.
    pub fn resume(&self, pending: &Pending) -> Arc<Attempt> {
        let attempt = Arc::new(Attempt::new(pending.attempt.clone(), None));
        let mut inner = lock(&self.inner);
        inner.instance = pending.instance.clone();
        inner.seq = pending.seq;
        inner.accepted = pending.accepted;
        let entry = Entry {
            attempt: Arc::clone(&attempt),
            arrival: 0,
            stage: Stage::Active,
            has_slot: false,
        };
        inner.attempts.insert(pending.attempt.clone(), entry);
        attempt
    }

    /// Records the end of an attempt without a slot. The caller calls [`AgentState::result_ready`].
    pub fn settled(&self, attempt: &Attempt, outcome: Outcome) {
        let mut inner = lock(&self.inner);
        attempt.end(outcome);
        if !inner.is_held(&attempt.id) {
            inner.finish(&attempt.id);
        }
        self.notify_shutdown(&inner);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{failed, job};
    use super::*;

    #[test]
    fn an_update_waits_for_what_runs_and_takes_nothing_more() {
        let state = AgentState::new("i".into(), 2, None);
        let update = state.accept(job(1), None).unwrap().attempt;
        assert!(state.command_ended(&update).is_none());
        let other = state.accept(job(2), None).unwrap().attempt;
        state.set_updating(true);
        assert!(state.next_poll(0).unwrap().full);
        assert_eq!(state.work_request(), None);
        assert!(!state.close_if_alone(&update.id, Instant::now()));
        state.ended(&other, failed());
        assert!(
            !state.close_if_alone(&update.id, Instant::now()),
            "not reported"
        );
        state.delivered(&other.id);
        assert!(state.close_if_alone(&update.id, Instant::now()));
        assert!(state.accept(job(3), None).is_none());
        assert!(state.next_poll(0).is_none(), "its polls have ended");
        // Not replaced after all.
        let epoch = state.reopen().unwrap();
        state.set_updating(false);
        assert!(!state.next_poll(epoch).unwrap().full);
        assert!(state.accept(job(3), None).is_some());
    }
}
