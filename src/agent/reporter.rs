//! Results and output, kept until the server has taken them.
//!
//! One thread sends: results at once, output every now and then, several commands' in one request.
//! Nothing is taken from the board before the server has answered, so a lost request is repeated by
//! collecting again. When the server is away, pauses grow; a poll that gets through ends them.
//!
//! A request that the server will never take must not block the others: what it carried is sent
//! command by command, and what is refused then is given up, first the output, then the result.

use super::Agent;
use super::held::Held;
use super::output::{Cursor, PIECE_OVERHEAD};
use super::pauses::Pauses;
use crate::client::{CallError, Kind};
use crate::wire::agent::{AttemptId, Done, Ended, Orders, Output, Piece, Taken};
use log::{debug, warn};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The room in a request, in bytes of raw output. The server reads 1 MiB, and base64 adds a third; but
/// while it is sent it is in memory four times: kept, taken out, as base64, in the request.
const ROOM_BYTES: usize = 128 * 1024;
/// What a result costs in a request beside its text, in bytes.
const RESULT_OVERHEAD: usize = 512;
/// Time between two looks at the output: it is at most a second behind, and a chatty command does
/// not make a request per line.
const PACE: Duration = Duration::from_millis(400);

/// What goes into one request.
#[derive(Default)]
struct Batch {
    pieces: Vec<Piece>,
    results: Vec<Ended>,
    /// Whose pieces, and up to where.
    cursors: Vec<(Arc<Held>, Cursor)>,
}

struct Reporter<'a> {
    agent: &'a Arc<Agent>,
    pauses: Pauses,
    not_before: Instant,
    output_not_before: Instant,
    /// So many requests carry one command only.
    singly: usize,
    /// A failure has been logged and nothing got through since.
    failing: bool,
}

/// Reports for as long as the process lives.
pub fn run(agent: &Arc<Agent>) {
    let now = Instant::now();
    let mut reporter = Reporter {
        agent,
        pauses: Pauses::new(),
        not_before: now,
        output_not_before: now,
        singly: 0,
        failing: false,
    };
    loop {
        reporter.round();
    }
}

impl Reporter<'_> {
    /// Waits for something to tell, and tells what there is by then.
    fn round(&mut self) {
        let nudged = self
            .agent
            .board
            .wait_for_news(self.not_before, self.output_not_before);
        if nudged {
            self.pauses.reset();
        }
        let start = Instant::now();
        self.not_before = start;
        // What comes meanwhile is for the next round: a flood is sampled, not followed.
        let kept: usize = self.agent.board.news().iter().map(|held| held.kept()).sum();
        for _ in 0..=kept / ROOM_BYTES + 1 + self.singly {
            let batch = self.collect();
            if batch.cursors.is_empty() {
                break;
            }
            if !self.send(batch) {
                self.not_before = Instant::now() + self.pauses.next();
                break;
            }
        }
        self.output_not_before = start + PACE;
        if !self.agent.board.news().is_empty() {
            self.agent.board.output_came();
        }
    }

    /// The next request: first the commands that have ended, each with its result if all the rest
    /// of its output fits.
    fn collect(&self) -> Batch {
        let mut batch = Batch::default();
        let mut room = ROOM_BYTES;
        for held in self.agent.board.news() {
            if room <= PIECE_OVERHEAD + RESULT_OVERHEAD {
                break;
            }
            // A result that is there now has all its output before it.
            let result = held.result();
            let next = held.next_pieces(room - RESULT_OVERHEAD);
            for (stream, offset, data) in next.pieces {
                room = room.saturating_sub(PIECE_OVERHEAD + data.len());
                batch.pieces.push(Piece {
                    id: held.id.clone(),
                    stream,
                    offset,
                    data,
                });
            }
            if let Some(result) = result.filter(|_| next.complete) {
                room = room.saturating_sub(RESULT_OVERHEAD + result.msg.len());
                batch.results.push(result);
            }
            batch.cursors.push((held, next.cursor));
            if self.singly > 0 {
                break;
            }
        }
        batch
    }

    /// Sends a request. Whether to go on; otherwise a pause is due.
    fn send(&mut self, batch: Batch) -> bool {
        self.singly = self.singly.saturating_sub(1);
        let instance = self.agent.board.instance();
        let Batch {
            pieces,
            results,
            cursors,
        } = batch;
        let carried = Carried {
            output: !pieces.is_empty(),
            results: results.iter().map(|result| result.id.clone()).collect(),
            cursors,
        };
        let client = &self.agent.client;
        let answer = if results.is_empty() {
            if !carried.output {
                // Only gaps: what would have been in them is gone.
                carried.output_taken();
                return true;
            }
            client
                .output(&Output { instance, pieces })
                .map(|orders| Answer::Orders(Box::new(orders)))
        } else {
            let seq = self.agent.board.asks_for_more();
            client
                .done(&Done {
                    instance,
                    seq,
                    pieces,
                    results,
                })
                .map(|taken| Answer::Taken(taken, seq))
        };
        match answer {
            Ok(answer) => {
                self.failing = false;
                carried.output_taken();
                let all = self.accept(answer, &carried);
                if all {
                    self.pauses.reset();
                }
                all
            }
            Err(why) => self.refused(&why, &carried),
        }
    }

    /// Takes note of an answer. Whether everything was dealt with.
    fn accept(&self, answer: Answer, carried: &Carried) -> bool {
        let verdicts = match answer {
            Answer::Orders(orders) => {
                self.agent.obey(*orders);
                return true;
            }
            Answer::Taken(taken, latest) => {
                // Without having asked nothing is started: it could be a second time.
                for job in taken.start.into_iter().filter(|_| latest.is_some()) {
                    self.agent.begin(job, latest);
                }
                taken.results
            }
        };
        for verdict in &verdicts {
            let id = &verdict.id;
            if !carried.results.contains(id) {
                // Not asked about: whatever it means, it must not end something that runs.
                continue;
            }
            if !verdict.taken {
                let (execution, attempt, msg) = (&id.execution, id.attempt, &verdict.msg);
                warn!("the result of {execution} (attempt {attempt}) does not count: {msg}");
            }
            self.agent.board.delivered(id);
        }
        let listed = |id: &AttemptId| verdicts.iter().any(|verdict| verdict.id == *id);
        carried.results.iter().all(listed)
    }

    /// Deals with a failure. Whether to go on at once.
    fn refused(&mut self, why: &CallError, carried: &Carried) -> bool {
        if why.is_final() {
            if carried.cursors.len() > 1 {
                warn!("{why}; sending command by command");
                self.singly = carried.cursors.len();
            } else if carried.output {
                warn!("{why}; giving up a piece of output");
                carried.output_taken();
            } else {
                for id in &carried.results {
                    let (execution, attempt) = (&id.execution, id.attempt);
                    warn!("{why}; giving up the result of {execution} (attempt {attempt})");
                    self.agent.board.delivered(id);
                }
            }
            return true;
        }
        if why.is_denied() {
            self.agent.rereader.refused(&self.agent.client);
        }
        // That the server is away, or does not let us in, is said once, by the poll loop.
        let said = matches!(why.kind, Kind::Unreachable(_)) || why.is_denied();
        if !self.failing && !said {
            warn!("{why}; trying again");
            self.failing = true;
        } else {
            debug!("{why}");
        }
        false
    }
}

/// What was in a request that is under way.
struct Carried {
    output: bool,
    results: Vec<AttemptId>,
    cursors: Vec<(Arc<Held>, Cursor)>,
}

impl Carried {
    /// The server has the pieces.
    fn output_taken(&self) {
        for (held, cursor) in &self.cursors {
            held.output_taken(*cursor);
        }
    }
}

enum Answer {
    Orders(Box<Orders<Value>>),
    /// With the latest poll when it was asked for.
    Taken(Taken<Value>, Option<u64>),
}
