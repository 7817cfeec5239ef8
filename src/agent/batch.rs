//! The content of one report: which results and which output go into it, and what its answer means for
//! them. When it is sent, and what a failure means, is in [`super::reporter`].

use super::attempt::Attempt;
use super::output::{Cursor, PIECE_OVERHEAD};
use super::state::AgentState;
use super::undo::ledger::DueUndo;
use super::undo::run;
use crate::wire::agent::{AttemptId, Ended, Piece, Verdict};
use crate::wire::probe::{ProbeResult, RunId};
use crate::wire::undo::UndoReport;
use log::warn;
use std::sync::Arc;

/// The output in one request, in bytes before base64 adds a third. The server reads 1 MiB. It is less
/// because the output is in memory four times while it is sent: kept, copied, as base64, in the request.
pub const MAX_OUTPUT_BYTES: usize = 128 * 1024;
/// The least output in one request, in bytes: enough for a few results. A link on which that takes longer
/// than a call may is none.
pub const MIN_OUTPUT_BYTES: usize = 2 * 1024;
/// The size of a result in a request without its message, in bytes.
const RESULT_OVERHEAD: usize = 512;
/// The size of what an undo is reported with, without its output and its message, in bytes.
const UNDO_OVERHEAD: usize = 512;
/// Results of probes in one report, in number: each has 5 KiB at most.
const MAX_PROBES: usize = 16;

/// The content of one report.
#[derive(Debug, Default)]
pub struct Batch {
    /// Output.
    pub pieces: Vec<Piece>,
    /// Results.
    pub results: Vec<Ended>,
    /// What has become of undos.
    pub undos: Vec<UndoReport>,
    /// Results of probes.
    pub probes: Vec<ProbeResult>,
    /// What the request delivers.
    pub delivery: Delivery,
}

/// What a report delivers, to be recorded when the server has answered.
#[derive(Debug, Default)]
pub struct Delivery {
    /// The attempts whose results it carries.
    results: Vec<AttemptId>,
    /// The attempts it speaks of, and how far their output is delivered with it.
    cursors: Vec<(Arc<Attempt>, Cursor)>,
    /// The undos it reports, each with the number of its change.
    undos: Vec<(AttemptId, u64)>,
    /// How many of them go without a result.
    lone_undos: usize,
    /// The runs of probes that it reports.
    probes: Vec<RunId>,
    has_output: bool,
}

impl Batch {
    /// The next report, with about `room` bytes of output: attempts that have ended come first, each with
    /// its result if the rest of its output fits. With `single` it is about one attempt only. With less room
    /// than usual, on a slow link, results that need no output go first and alone. States of undos come before all, the
    /// end of an undo goes with the result of its attempt.
    pub fn collect(state: &AgentState, mut room: usize, single: bool) -> Self {
        let mut batch = Batch {
            probes: state.probe_results(MAX_PROBES),
            ..Batch::default()
        };
        let ids = batch.probes.iter().map(|result| result.id.clone());
        batch.delivery.probes = ids.collect();
        if single && !batch.probes.is_empty() {
            return batch;
        }
        let is_slow = room < MAX_OUTPUT_BYTES;
        let whole_room = room;
        for due in state.due_undos() {
            if batch.add_undo(due, whole_room, &mut room, false) && single {
                return batch;
            }
        }
        let mut unreported = state.unreported();
        if is_slow {
            unreported.sort_by_key(|attempt| !attempt.has_only_a_result());
        }
        for attempt in unreported {
            if is_slow && !batch.results.is_empty() && !attempt.has_only_a_result() {
                break;
            }
            if room <= PIECE_OVERHEAD + RESULT_OVERHEAD {
                break;
            }
            // Take the result first: output that exists together with a result is all of the output.
            let result = attempt.result();
            let undo = result.as_ref().and_then(|_| state.end_of_undo(&attempt.id));
            let undo_size = undo.as_ref().map_or(0, |undo| size(undo, whole_room));
            if room < PIECE_OVERHEAD + RESULT_OVERHEAD + undo_size && !batch.is_empty() {
                break;
            }
            let next = attempt.next_pieces(room.saturating_sub(RESULT_OVERHEAD + undo_size));
            for (stream, offset, data) in next.pieces {
                room = room.saturating_sub(PIECE_OVERHEAD + data.len());
                batch.pieces.push(Piece {
                    id: attempt.id.clone(),
                    stream,
                    offset,
                    data,
                });
            }
            if let Some(result) = result.filter(|_| next.complete) {
                room = room.saturating_sub(RESULT_OVERHEAD + result.msg.len());
                batch.delivery.results.push(result.id.clone());
                batch.results.push(result);
                if let Some(undo) = undo {
                    batch.add_undo(undo, whole_room, &mut room, true);
                }
            }
            batch.delivery.cursors.push((attempt, next.cursor));
            if single {
                break;
            }
        }
        batch.delivery.has_output = !batch.pieces.is_empty();
        batch
    }

    /// Whether there is nothing to report.
    pub fn is_empty(&self) -> bool {
        self.delivery.cursors.is_empty() && self.undos.is_empty() && self.probes.is_empty()
    }

    /// Adds what has become of an undo, if there is room for it; with a result in any case. Whether it did.
    fn add_undo(
        &mut self,
        due: DueUndo,
        whole_room: usize,
        room: &mut usize,
        with_result: bool,
    ) -> bool {
        let size = size(&due, whole_room);
        if size > *room && !with_result && !self.is_empty() {
            return false;
        }
        *room = room.saturating_sub(size);
        let mut report = due.report;
        let excess = (report.output.len()).saturating_sub(most_output(whole_room));
        let excess = report.output.ceil_char_boundary(excess);
        report.output.drain(..excess);
        self.delivery.undos.push((report.id.clone(), due.change));
        self.delivery.lone_undos += usize::from(!with_result);
        self.undos.push(report);
        true
    }
}

/// How much of the output of an undo goes into a report with so much room, in bytes: on a slow link only the end of it.
fn most_output(room: usize) -> usize {
    if room >= MAX_OUTPUT_BYTES {
        return run::MAX_OUTPUT_BYTES;
    }
    room.saturating_sub(PIECE_OVERHEAD + RESULT_OVERHEAD + UNDO_OVERHEAD) / 2
}

/// The size of what is reported of an undo.
fn size(due: &DueUndo, room: usize) -> usize {
    UNDO_OVERHEAD + due.report.msg.len() + due.report.output.len().min(most_output(room))
}

impl Delivery {
    /// How many attempts the report is about.
    pub fn attempts(&self) -> usize {
        self.cursors.len() + self.lone_undos + usize::from(!self.probes.is_empty())
    }

    /// Records which undos the server has taken in the state it was told. Whether these are all that were reported:
    /// the others are reported again.
    pub fn undos_answered(&self, state: &AgentState, taken: &[AttemptId]) -> bool {
        let mut is_complete = true;
        for (id, change) in &self.undos {
            match taken.contains(id) {
                true => state.undo_taken(id, *change),
                false => is_complete = false,
            }
        }
        is_complete
    }

    /// Gives up what is reported of undos. Which ones.
    pub fn give_up_undos(&self, state: &AgentState) -> impl Iterator<Item = &AttemptId> {
        { self.undos.iter() }.map(|(id, change)| {
            state.undo_taken(id, *change);
            id
        })
    }

    /// Records that the server has been told of results of probes, or that they are given up.
    pub fn probes_taken(&self, state: &AgentState) {
        state.probes_taken(&self.probes);
    }

    /// Whether the report carries output.
    pub fn has_output(&self) -> bool {
        self.has_output
    }

    /// The attempts whose results the report carries.
    pub fn results(&self) -> &[AttemptId] {
        &self.results
    }

    /// Records that the server has the output, or that it is given up.
    pub fn output_taken(&self) {
        for (attempt, cursor) in &self.cursors {
            attempt.output_taken(*cursor);
        }
    }

    /// Records what the server says about the results. Whether it names all of them: those that are
    /// missing are reported again.
    pub fn results_answered(&self, state: &AgentState, verdicts: &[Verdict]) -> bool {
        for verdict in verdicts {
            let id = &verdict.id;
            if !self.results.contains(id) {
                // The report did not carry it. Its command may still run, so it is not to be dropped.
                continue;
            }
            if !verdict.taken {
                let (execution, attempt, msg) = (&id.execution, id.attempt, &verdict.msg);
                warn!(
                    "{execution} (attempt {attempt}): the server does not count the result: {msg}"
                );
            }
            state.delivered(id);
        }
        let is_answered = |id: &AttemptId| verdicts.iter().any(|verdict| verdict.id == *id);
        self.results.iter().all(is_answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::attempt::Outcome;
    use crate::agent::undo::ledger::new_report;
    use crate::wire::agent::{Assignment, Stream};
    use crate::wire::task::ExecutionState;
    use crate::wire::undo::UndoState;
    use serde_json::value::RawValue;

    fn started(state: &AgentState, execution: &str) -> Arc<Attempt> {
        started_with(state, execution, RawValue::NULL)
    }

    fn started_with(state: &AgentState, execution: &str, detail: &RawValue) -> Arc<Attempt> {
        let job = Assignment {
            id: AttemptId {
                execution: execution.into(),
                attempt: 1,
            },
            task_id: "t".into(),
            task_name: "t".into(),
            key: None,
            detail: detail.to_owned(),
            files: Vec::new(),
            files_timeout: None,
            update: None,
            fetch: Vec::new(),
        };
        state.accept(job, None).unwrap().attempt
    }

    fn end(state: &AgentState, attempt: &Attempt) {
        state.ended(
            attempt,
            Outcome::not_started(ExecutionState::Failed, "test"),
        );
    }

    fn verdict(attempt: &Attempt) -> Verdict {
        Verdict {
            id: attempt.id.clone(),
            taken: true,
            msg: String::new(),
        }
    }

    #[test]
    fn a_result_goes_with_the_last_of_its_output() {
        let state = AgentState::new("i".into(), 4, None);
        let (chatty, silent) = (started(&state, "chatty"), started(&state, "silent"));
        chatty.append(Stream::Stdout, &[b'x'; MAX_OUTPUT_BYTES + 1]);
        assert!(
            Batch::collect(&state, MAX_OUTPUT_BYTES, false)
                .results
                .is_empty()
        );
        end(&state, &chatty);
        end(&state, &silent);

        let first = Batch::collect(&state, MAX_OUTPUT_BYTES, false);
        assert!(first.results.is_empty() && first.delivery.attempts() == 1);
        first.delivery.output_taken();
        let second = Batch::collect(&state, MAX_OUTPUT_BYTES, false);
        let ids: Vec<_> = second.results.iter().map(|it| &*it.id.execution).collect();
        assert_eq!(ids, ["chatty", "silent"]);
        assert_eq!(
            Batch::collect(&state, MAX_OUTPUT_BYTES, true).results.len(),
            1
        );
    }

    #[test]
    fn on_a_slow_link_results_without_output_go_first() {
        let state = AgentState::new("i".into(), 4, None);
        let (chatty, silent) = (started(&state, "chatty"), started(&state, "silent"));
        chatty.append(Stream::Stdout, b"x");
        end(&state, &chatty);
        end(&state, &silent);
        let first = Batch::collect(&state, MAX_OUTPUT_BYTES / 2, false);
        assert!(first.pieces.is_empty() && first.results.len() == 1);
        assert_eq!(first.results[0].id, silent.id);
        state.delivered(&silent.id);
        let second = Batch::collect(&state, MAX_OUTPUT_BYTES / 2, false);
        assert_eq!((second.pieces.len(), second.results.len()), (1, 1));
    }

    /// An attempt whose undo has ended, with much output.
    fn undone(state: &AgentState, execution: &str) -> Arc<Attempt> {
        let detail = RawValue::from_string(r#"{"undo": {}}"#.into()).unwrap();
        let attempt = started_with(state, execution, &detail);
        state.note_undo(new_report(attempt.id.clone(), UndoState::Armed));
        let mut report = new_report(attempt.id.clone(), UndoState::Done);
        report.output = "x".repeat(run::MAX_OUTPUT_BYTES - 1);
        report.output.push('e');
        let outcome = Outcome::not_started(ExecutionState::Failed, "test");
        state.undone(&attempt, outcome, report);
        attempt
    }

    #[test]
    fn the_end_of_an_undo_goes_with_the_result() {
        let state = AgentState::new("i".into(), 4, None);
        let detail = RawValue::from_string(r#"{"undo": {}}"#.into()).unwrap();
        let running = started_with(&state, "running", &detail);
        state.note_undo(new_report(running.id.clone(), UndoState::Armed));
        let attempt = undone(&state, "undone");
        attempt.append(Stream::Stdout, &[b'x'; 100 << 10]);

        let first = Batch::collect(&state, MAX_OUTPUT_BYTES, false);
        let states = first.undos.iter().map(|undo| undo.state);
        assert_eq!(states.collect::<Vec<_>>(), [UndoState::Armed]);
        assert!(first.results.is_empty() && !first.pieces.is_empty());
        first.delivery.output_taken();
        assert!(
            first
                .delivery
                .undos_answered(&state, std::slice::from_ref(&running.id))
        );

        let second = Batch::collect(&state, MAX_OUTPUT_BYTES, false);
        assert_eq!((second.results.len(), second.undos.len()), (1, 1));
        assert_eq!(second.undos[0].output.len(), run::MAX_OUTPUT_BYTES);
        assert!(!second.delivery.undos_answered(&state, &[]));
        assert!(
            second
                .delivery
                .results_answered(&state, &[verdict(&attempt)])
        );

        // The server has taken the result, but has not said that it has taken the undo.
        let third = Batch::collect(&state, MAX_OUTPUT_BYTES, false);
        assert_eq!((third.results.len(), third.undos.len()), (0, 1));
        assert!(
            third
                .delivery
                .undos_answered(&state, std::slice::from_ref(&attempt.id))
        );
        assert!(Batch::collect(&state, MAX_OUTPUT_BYTES, false).is_empty());
        assert_eq!(state.next_poll(0).unwrap().undos.len(), 1);
    }

    #[test]
    fn on_a_slow_link_the_end_of_the_output_of_an_undo_is_reported() {
        let state = AgentState::new("i".into(), 4, None);
        undone(&state, "undone");
        let batch = Batch::collect(&state, MIN_OUTPUT_BYTES, false);
        assert_eq!((batch.results.len(), batch.undos.len()), (1, 1));
        let output = &batch.undos[0].output;
        assert!(output.len() < MIN_OUTPUT_BYTES / 2 && output.ends_with("xe"));
        let given_up: Vec<_> = batch.delivery.give_up_undos(&state).collect();
        assert_eq!(given_up.len(), 1);
        assert!(state.next_poll(0).unwrap().undos.is_empty());
    }

    #[test]
    fn an_unanswered_result_stays_and_a_foreign_one_is_ignored() {
        let state = AgentState::new("i".into(), 4, None);
        let (ended, running) = (started(&state, "ended"), started(&state, "running"));
        end(&state, &ended);
        let batch = Batch::collect(&state, MAX_OUTPUT_BYTES, false);
        let foreign = [verdict(&running)];
        assert!(!batch.delivery.results_answered(&state, &foreign));
        assert_eq!(state.holds().len(), 2);
        assert!(batch.delivery.results_answered(&state, &[verdict(&ended)]));
        assert_eq!(state.holds().len(), 1);
        assert!(Batch::collect(&state, MAX_OUTPUT_BYTES, false).is_empty());
    }
}
