//! What the agent's threads share of undos, and the results of probes.
//!
//! They go to the server with the next report, as results of commands do. What it has not taken of undos is in the
//! [`UndoLedger`](crate::agent::undo::ledger::UndoLedger).

use super::{AgentState, refused_names};
use crate::agent::attempt::{Attempt, Outcome, lock};
use crate::agent::undo::ledger::{DueUndo, new_report};
use crate::wire::agent::{AttemptId, UndoOrder};
use crate::wire::probe::{ProbeResult, RunId};
use crate::wire::undo::{UndoReport, UndoState};
use serde_json::value::RawValue;
use std::time::Instant;

/// Results of probes that were not sent, in number. Beyond it the oldest are dropped: they come too late anyway.
const MAX_PROBE_RESULTS: usize = 128;

/// An order to run an undo.
pub type UndoJob = UndoOrder<Box<RawValue>>;

impl AgentState {
    /// Records the end of an undo, and of its attempt. The caller sends the result, or calls
    /// [`AgentState::result_ready`].
    pub fn undone(&self, attempt: &Attempt, outcome: Outcome, report: UndoReport) {
        let mut inner = lock(&self.inner);
        inner.undos.note(report, Instant::now());
        attempt.end(outcome);
        if !inner.is_held(&attempt.id) {
            inner.finish(&attempt.id);
        }
        self.notify_shutdown(&inner);
    }

    /// Notes the state of an undo, and has the reporter tell the server if that is new.
    pub fn note_undo(&self, report: UndoReport) {
        let mut inner = lock(&self.inner);
        if inner.undos.note(report, Instant::now()) {
            self.report_due.notify_one();
        }
        self.notify_shutdown(&inner);
    }

    /// Takes an order to run an undo. Whether it is to be run now: not while it runs, while the agent holds the
    /// attempt, before the server has taken its last end, or during shutdown.
    pub fn accept_undo(&self, job: &UndoJob) -> bool {
        let mut inner = lock(&self.inner);
        let id = AttemptId {
            execution: job.execution.clone(),
            attempt: job.attempt,
        };
        if inner.draining
            || inner.closed
            || inner.undos.knows(&id)
            || inner.attempts.contains_key(&id)
        {
            return false;
        }
        let names = [&job.execution, &job.task_id, &job.task_name];
        let refusal = refused_names(&job.execution, &names);
        if refusal.is_some() || inner.undos.is_full() {
            let full = "there are more undos than this agent runs at once";
            inner.refusal = Some(refusal.unwrap_or(full));
            return false;
        }
        let mut report = new_report(id, UndoState::Running);
        report.reason = Some(job.reason);
        report.began_ago_ms = Some(0);
        inner.undos.note(report, Instant::now());
        self.report_due.notify_one();
        true
    }

    /// Forgets an undo that could not be begun: the server orders it again.
    pub fn undo_not_begun(&self, id: &AttemptId) {
        let mut inner = lock(&self.inner);
        inner.undos.drop_entry(id);
        self.notify_shutdown(&inner);
    }

    /// The reports of undos that go without a result.
    pub fn due_undos(&self) -> Vec<DueUndo> {
        let inner = lock(&self.inner);
        inner.undos.due(|id| inner.is_held(id), Instant::now())
    }

    /// The end of the undo of an attempt, which goes with its result.
    pub fn end_of_undo(&self, id: &AttemptId) -> Option<DueUndo> {
        lock(&self.inner).undos.end_of(id, Instant::now())
    }

    /// Records that the server has taken a report of an undo, or that it is given up.
    pub fn undo_taken(&self, id: &AttemptId, change: u64) {
        let mut inner = lock(&self.inner);
        inner.undos.taken(id, change);
        self.notify_shutdown(&inner);
    }

    /// Notes the result of a probe, and has the reporter send it.
    pub fn note_probe(&self, result: ProbeResult) {
        let mut inner = lock(&self.inner);
        if inner.probes.len() >= MAX_PROBE_RESULTS {
            inner.probes.pop_front();
        }
        inner.probes.push_back(result);
        self.report_due.notify_one();
    }

    /// The oldest results of probes, so many at most.
    pub fn probe_results(&self, most: usize) -> Vec<ProbeResult> {
        let inner = lock(&self.inner);
        inner.probes.iter().take(most).cloned().collect()
    }

    /// Records that the server has been told of these results, or that they are given up.
    pub fn probes_taken(&self, ids: &[RunId]) {
        if !ids.is_empty() {
            let mut inner = lock(&self.inner);
            inner.probes.retain(|result| !ids.contains(&result.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::PollContent;
    use super::super::tests::{failed, job, with_undo};
    use super::*;
    use crate::agent::attempt::StopReason;
    use crate::agent::undo::machine::Event;

    fn undo_job(n: u32) -> UndoJob {
        UndoJob {
            execution: job(n).id.execution,
            attempt: 1,
            task_id: "x".into(),
            task_name: "x".into(),
            key: "k".into(),
            reason: crate::wire::undo::UndoReason::Owed,
            exit_code: None,
            stdout: String::new(),
            detail: RawValue::NULL.to_owned(),
        }
    }

    #[test]
    fn an_undo_takes_no_slot_and_its_attempt_is_held_until_both_have_ended() {
        let state = AgentState::new("i".into(), 1, None);
        let first = state.accept(with_undo(1, "60s"), None).unwrap().attempt;
        assert!(state.accept(job(2), None).is_none());
        state.note_undo(new_report(first.id.clone(), UndoState::Armed));
        for event in [
            Event::Prepared,
            Event::Acknowledged,
            Event::Start,
            Event::Started,
            Event::Ended(crate::wire::undo::UndoReason::Ended),
            Event::TreeEnded,
        ] {
            first.advance(event);
        }
        let second = state.command_ended(&first).unwrap().attempt;
        assert_eq!(second.id, job(2).id);
        assert!(
            !state.stop(&first.id, StopReason::Canceled),
            "an undo cannot be canceled"
        );
        state.ended(&second, failed());
        state.delivered(&second.id);
        assert!(!state.wait_until_undone(Instant::now()));
        let ids = |poll: PollContent| (poll.holds.len(), poll.undos.len());
        assert_eq!(ids(state.next_poll(0).unwrap()), (1, 1));
        let report = new_report(first.id.clone(), UndoState::Done);
        state.undone(&first, failed(), report);
        assert!(state.wait_until_undone(Instant::now()));
        let end = state.end_of_undo(&first.id).unwrap();
        state.delivered(&first.id);
        assert!(!state.wait_until_reported(Instant::now()));
        state.undo_taken(&first.id, end.change);
        assert!(state.wait_until_reported(Instant::now()));
        assert_eq!(lock(&state.inner).slots_taken, 0);
    }

    #[test]
    fn the_end_of_the_undo_of_a_held_attempt_is_no_reason_to_report() {
        let state = AgentState::new("i".into(), 1, None);
        let attempt = state.accept(with_undo(1, "60s"), None).unwrap().attempt;
        state.note_undo(new_report(attempt.id.clone(), UndoState::Done));
        assert!(!state.has_result() && !state.has_report());
        assert!(state.due_undos().is_empty());
        // Its result never comes.
        state.forget(&attempt.id);
        assert!(state.has_result() && state.has_report());
        assert_eq!(state.due_undos().len(), 1);
    }

    #[test]
    fn an_undo_is_ordered_once_while_it_runs() {
        let state = AgentState::new("i".into(), 1, None);
        let held = state.accept(job(1), None).unwrap().attempt;
        assert!(!state.accept_undo(&undo_job(1)));
        assert!(state.accept_undo(&undo_job(2)));
        assert!(!state.accept_undo(&undo_job(2)));
        let id = job(2).id;
        state.note_undo(new_report(id.clone(), UndoState::Done));
        assert!(!state.accept_undo(&undo_job(2)), "its end is not taken");
        let due = state.due_undos();
        state.undo_taken(&id, due[0].change);
        assert!(state.accept_undo(&undo_job(2)));
        state.undo_not_begun(&id);
        for n in 3.. {
            if !state.accept_undo(&undo_job(n)) {
                break;
            }
        }
        assert!(state.take_refusal().unwrap().contains("more undos"));
        assert!(state.next_poll(0).unwrap().full);
        state.drain();
        state.ended(&held, failed());
        assert!(!state.accept_undo(&undo_job(2)));
    }
}
