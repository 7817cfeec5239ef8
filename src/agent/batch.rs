//! The content of one report: which results and which output go into it, and what its answer means for
//! them. When it is sent, and what a failure means, is in [`super::reporter`].

use super::attempt::Attempt;
use super::output::{Cursor, PIECE_OVERHEAD};
use super::state::AgentState;
use crate::wire::agent::{AttemptId, Ended, Piece, Verdict};
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

/// The content of one report.
#[derive(Debug, Default)]
pub struct Batch {
    /// Output.
    pub pieces: Vec<Piece>,
    /// Results.
    pub results: Vec<Ended>,
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
    has_output: bool,
}

impl Batch {
    /// The next report, with about `room` bytes of output: attempts that have ended come first, each with
    /// its result if the rest of its output fits. With `single` it is about one attempt only. With less room
    /// than usual, on a slow link, results that need no output go first and alone.
    pub fn collect(state: &AgentState, mut room: usize, single: bool) -> Self {
        let mut batch = Batch::default();
        let is_slow = room < MAX_OUTPUT_BYTES;
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
            let next = attempt.next_pieces(room - RESULT_OVERHEAD);
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
        self.delivery.cursors.is_empty()
    }
}

impl Delivery {
    /// How many attempts the report is about.
    pub fn attempts(&self) -> usize {
        self.cursors.len()
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
    use crate::wire::agent::{Assignment, Stream};
    use crate::wire::task::ExecutionState;
    use serde_json::value::RawValue;

    fn started(state: &AgentState, execution: &str) -> Arc<Attempt> {
        let job = Assignment {
            id: AttemptId {
                execution: execution.into(),
                attempt: 1,
            },
            task_id: "t".into(),
            task_name: "t".into(),
            key: None,
            detail: RawValue::NULL.to_owned(),
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
        let state = AgentState::new("i".into(), 4);
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
        let state = AgentState::new("i".into(), 4);
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

    #[test]
    fn an_unanswered_result_stays_and_a_foreign_one_is_ignored() {
        let state = AgentState::new("i".into(), 4);
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
