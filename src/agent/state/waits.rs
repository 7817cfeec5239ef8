//! The waits on the agent's state: of the reporter for something to report, of the shutdown and of an update for the end of
//! what is open.

use super::{AgentState, Entry, Inner};
use crate::agent::attempt::{Attempt, lock};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::time::Instant;

impl AgentState {
    /// Whether there is anything that the server has not taken and that can be reported now.
    pub fn has_report(&self) -> bool {
        self.has_result() || !self.unreported().is_empty()
    }

    /// Whether there is a result, the state of an undo, or the result of a probe that the server has not taken.
    pub fn has_result(&self) -> bool {
        lock(&self.inner).has_result()
    }

    /// Tells the reporter that there is a result to send.
    pub fn result_ready(&self) {
        // With the lock held the reporter has either not looked yet, or already waits.
        let _inner = lock(&self.inner);
        self.report_due.notify_one();
    }

    /// Tells the reporter that a command has written something. Takes the lock only once per look of
    /// the reporter.
    pub fn output_ready(&self) {
        if !self.output_pending.swap(true, Ordering::SeqCst) {
            // With the lock held the reporter has either not looked yet, or already waits.
            let _inner = lock(&self.inner);
            self.report_due.notify_one();
        }
    }

    /// Ends the reporter's current pause.
    pub fn nudge(&self) {
        lock(&self.inner).nudged = true;
        self.report_due.notify_one();
    }

    /// Waits until there is a result, the state of an undo, or the result of a probe, and it is `not_before`, or there
    /// is output and it is also not before `output_not_before`. Whether the wait was ended by [`AgentState::nudge`].
    pub fn wait_for_report(&self, not_before: Instant, output_not_before: Instant) -> bool {
        let mut inner = lock(&self.inner);
        loop {
            let nudged = std::mem::take(&mut inner.nudged);
            let now = Instant::now();
            let start = if nudged { now } else { not_before };
            let due = if inner.has_result() {
                Some(start)
            } else if self.output_pending.load(Ordering::SeqCst) {
                Some(start.max(output_not_before))
            } else {
                None
            };
            match due {
                Some(at) if at <= now => {
                    self.output_pending.store(false, Ordering::SeqCst);
                    return nudged;
                }
                _ if nudged => return true,
                due => inner = wait_on(&self.report_due, inner, due),
            }
        }
    }

    /// Waits until no command runs. Whether that was so before the `deadline`.
    pub fn wait_until_idle(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |inner| inner.slots_taken == 0)
    }

    /// Waits until no undo is armed or runs. Whether that was so before the `deadline`.
    pub fn wait_until_undone(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |inner| !inner.has_open_undo())
    }

    /// Waits until the server has taken every result, and the end of every undo. Whether that was so before the
    /// `deadline`.
    pub fn wait_until_reported(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |inner| {
            inner.undos.is_empty() && !inner.attempts.values().any(Entry::is_held)
        })
    }

    fn wait_until(&self, deadline: Instant, reached: impl Fn(&Inner) -> bool) -> bool {
        self.locked_when(deadline, reached).is_some()
    }

    /// Waits for a condition, and returns with the lock held; none if the `deadline` came first.
    pub(super) fn locked_when(
        &self,
        deadline: Instant,
        reached: impl Fn(&Inner) -> bool,
    ) -> Option<MutexGuard<'_, Inner>> {
        let mut inner = lock(&self.inner);
        while !reached(&inner) {
            if Instant::now() >= deadline {
                return None;
            }
            inner = wait_on(&self.fewer, inner, Some(deadline));
        }
        Some(inner)
    }

    /// The attempts with something to report, those that have ended first.
    pub fn unreported(&self) -> Vec<Arc<Attempt>> {
        let held = lock(&self.inner).held();
        let unreported = held.into_iter().filter(|attempt| attempt.is_unreported());
        let (mut first, rest): (Vec<_>, Vec<_>) = unreported.partition(|it| it.has_ended());
        first.extend(rest);
        first
    }
}

/// Waits for a notification, until a point in time if there is one.
fn wait_on<'a>(
    condition: &Condvar,
    inner: MutexGuard<'a, Inner>,
    until: Option<Instant>,
) -> MutexGuard<'a, Inner> {
    match until {
        None => condition
            .wait(inner)
            .unwrap_or_else(PoisonError::into_inner),
        Some(at) => {
            let left = at.saturating_duration_since(Instant::now());
            let woken = condition.wait_timeout(inner, left);
            woken.unwrap_or_else(PoisonError::into_inner).0
        }
    }
}
