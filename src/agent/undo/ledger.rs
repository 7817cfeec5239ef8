//! What the server is to be told about undos, until it has taken it.
//!
//! An entry is made when an undo is armed, or ordered, and leaves when the server has taken its end, or when an undo
//! that was ordered could not be begun. A later state replaces an earlier one, even if the server has not been told of
//! that. The end of the undo of an attempt that the agent holds is reported together with its result, never before and
//! never after.
//!
//! There is no lock and no clock in here.

use crate::wire::agent::AttemptId;
use crate::wire::undo::{UndoBy, UndoReport, UndoState};
use std::collections::HashMap;
use std::time::Instant;

/// Undos that are known, in number. Each keeps up to 64 KiB of output, and each that runs has a thread. At this limit
/// no more work is taken, and no more undos.
pub const MAX_UNDOS: usize = 128;

/// The undos that the agent knows of.
#[derive(Debug, Default)]
pub struct UndoLedger {
    entries: HashMap<AttemptId, Entry>,
    /// Counts all changes of state.
    changes: u64,
}

#[derive(Debug)]
struct Entry {
    report: UndoReport,
    /// When the report was made: what it says of times grows older from then on.
    at: Instant,
    /// The number of the change that led to this state.
    change: u64,
    /// The server has not taken this state.
    is_due: bool,
}

/// A report to be sent, and the number by which its entry knows what the server has taken.
#[derive(Debug, Clone)]
pub struct DueUndo {
    /// The report.
    pub report: UndoReport,
    /// The argument of [`UndoLedger::taken`].
    pub change: u64,
}

/// A report without anything that is known only later.
pub fn new_report(id: AttemptId, state: UndoState) -> UndoReport {
    UndoReport {
        id,
        state,
        reason: None,
        by: UndoBy::Agent,
        tries: 0,
        exit_code: None,
        check_exit_code: None,
        msg: String::new(),
        output: String::new(),
        began_ago_ms: None,
        ended_ago_ms: None,
    }
}

impl UndoLedger {
    /// Notes what is known of an undo now. Whether its state is new, so that the server is to be told.
    pub fn note(&mut self, report: UndoReport, now: Instant) -> bool {
        let known = self.entries.get(&report.id);
        let is_new = known.is_none_or(|known| known.report.state != report.state);
        let (change, is_due) = match known {
            Some(known) if !is_new => (known.change, known.is_due),
            _ => {
                self.changes += 1;
                (self.changes, true)
            }
        };
        let entry = Entry {
            at: now,
            change,
            is_due,
            report,
        };
        self.entries.insert(entry.report.id.clone(), entry);
        is_new
    }

    /// Whether there is an entry for an attempt.
    pub fn knows(&self, id: &AttemptId) -> bool {
        self.entries.contains_key(id)
    }

    /// Whether no more fit in.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= MAX_UNDOS
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether any has not ended.
    pub fn has_open(&self) -> bool {
        let mut entries = self.entries.values();
        entries.any(|entry| !entry.report.state.is_settled())
    }

    /// Whether anything is to be reported apart from results, see [`UndoLedger::due`].
    pub fn has_due(&self, held: impl Fn(&AttemptId) -> bool) -> bool {
        let mut entries = self.entries.values();
        entries.any(|entry| entry.goes_alone(&held))
    }

    /// Everything for a poll: states, without the output.
    pub fn states(&self, now: Instant) -> Vec<UndoReport> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_unstable_by_key(|entry| entry.change);
        entries
            .into_iter()
            .map(|entry| entry.aged(now, false))
            .collect()
    }

    /// What is to be reported apart from results, the oldest first: the end of an attempt that is `held` goes with its
    /// result.
    pub fn due(&self, held: impl Fn(&AttemptId) -> bool, now: Instant) -> Vec<DueUndo> {
        let mut due: Vec<DueUndo> = { self.entries.values() }
            .filter(|entry| entry.goes_alone(&held))
            .map(|entry| entry.due(now))
            .collect();
        due.sort_unstable_by_key(|due| due.change);
        due
    }

    /// The end of the undo of an attempt; none while it has not ended.
    pub fn end_of(&self, id: &AttemptId, now: Instant) -> Option<DueUndo> {
        let entry = self.entries.get(id)?;
        entry.report.state.is_settled().then(|| entry.due(now))
    }

    /// Records that the server has taken a report, or that it is given up.
    pub fn taken(&mut self, id: &AttemptId, change: u64) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        if entry.change != change {
            return;
        }
        entry.is_due = false;
        if entry.report.state.is_settled() {
            self.entries.remove(id);
        }
    }

    /// Forgets an undo that was not begun.
    pub fn drop_entry(&mut self, id: &AttemptId) {
        self.entries.remove(id);
    }
}

impl Entry {
    /// Whether it is to be reported apart from a result.
    fn goes_alone(&self, held: &impl Fn(&AttemptId) -> bool) -> bool {
        self.is_due && !(self.report.state.is_settled() && held(&self.report.id))
    }

    /// The report as it is now. The output is copied only if it is wanted: it is long.
    fn aged(&self, now: Instant, with_output: bool) -> UndoReport {
        let age = now.saturating_duration_since(self.at).as_millis();
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        let aged = |ago: Option<u64>| ago.map(|ago| ago.saturating_add(age));
        let report = &self.report;
        UndoReport {
            id: report.id.clone(),
            state: report.state,
            reason: report.reason,
            by: report.by,
            tries: report.tries,
            exit_code: report.exit_code,
            check_exit_code: report.check_exit_code,
            msg: report.msg.clone(),
            output: { with_output.then(|| report.output.clone()) }.unwrap_or_default(),
            began_ago_ms: aged(report.began_ago_ms),
            ended_ago_ms: aged(report.ended_ago_ms),
        }
    }

    /// Output comes with the end.
    fn due(&self, now: Instant) -> DueUndo {
        DueUndo {
            report: self.aged(now, self.report.state.is_settled()),
            change: self.change,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(execution: &str) -> AttemptId {
        AttemptId {
            execution: execution.into(),
            attempt: 1,
        }
    }

    fn report(execution: &str, state: UndoState) -> UndoReport {
        let mut report = new_report(id(execution), state);
        report.began_ago_ms = Some(5);
        report.output = "output".into();
        report
    }

    #[test]
    fn a_state_is_due_until_it_is_taken_and_a_later_one_replaces_it() {
        let (mut ledger, now) = (UndoLedger::default(), Instant::now());
        assert!(ledger.note(report("x", UndoState::Armed), now));
        let nobody = |_: &AttemptId| false;
        let armed = ledger.due(nobody, now).remove(0);
        assert!(ledger.note(report("x", UndoState::Running), now));
        ledger.taken(&id("x"), armed.change);
        let running = ledger.due(nobody, now).remove(0);
        assert_eq!(running.report.state, UndoState::Running);
        assert_eq!(running.report.output, "");
        ledger.taken(&id("x"), running.change);
        assert!(!ledger.has_due(nobody) && ledger.has_open());
        // Another try changes no state.
        assert!(!ledger.note(report("x", UndoState::Running), now));
        assert!(!ledger.has_due(nobody));
        assert_eq!(ledger.states(now).len(), 1);
        assert!(ledger.note(report("x", UndoState::Done), now));
        assert!(!ledger.has_open());
        let done = ledger
            .due(nobody, now + Duration::from_millis(20))
            .remove(0);
        assert_eq!(done.report.output, "output");
        assert_eq!(done.report.began_ago_ms, Some(25));
        ledger.taken(&id("x"), done.change);
        assert!(ledger.is_empty());
    }

    #[test]
    fn the_end_of_a_held_attempt_waits_for_its_result() {
        let (mut ledger, now) = (UndoLedger::default(), Instant::now());
        let held = |id: &AttemptId| id.execution == "held";
        ledger.note(report("held", UndoState::Running), now);
        assert_eq!(ledger.due(held, now).len(), 1);
        assert!(ledger.end_of(&id("held"), now).is_none());
        assert!(ledger.has_due(held));
        ledger.note(report("held", UndoState::Failed), now);
        assert!(!ledger.has_due(held) && ledger.has_due(|_| false));
        ledger.note(report("other", UndoState::Done), now);
        let due = ledger.due(held, now);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].report.id, id("other"));
        assert!(ledger.end_of(&id("held"), now).is_some());
    }

    #[test]
    fn they_are_bounded() {
        let (mut ledger, now) = (UndoLedger::default(), Instant::now());
        for n in 0..MAX_UNDOS {
            assert!(!ledger.is_full());
            ledger.note(report(&n.to_string(), UndoState::Done), now);
        }
        assert!(ledger.is_full());
        ledger.drop_entry(&id("0"));
        assert!(!ledger.is_full() && !ledger.knows(&id("0")));
    }
}
