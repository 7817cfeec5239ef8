//! Results and output, kept until the server has taken them.
//!
//! One request at a time, with whatever there is by then: results at once, output every now and then,
//! several commands' together. A result is sent by the thread that ran the command, which then runs
//! what the answer brings: handed to another thread and back, a small command would take a tenth
//! longer. The rest is sent by a thread of its own: output, what came while another request was under
//! way, and what could not be sent.
//!
//! Nothing is taken from the board before the server has answered, so a lost request is repeated by
//! collecting again. When the server is away, pauses grow; a poll that gets through ends them.
//!
//! A request that the server will never take must not block the others: what it carried is sent
//! command by command, and what is refused then is given up, first the output, then the result.

use super::held::{Held, lock};
use super::output::{Cursor, PIECE_OVERHEAD};
use super::pauses::Pauses;
use super::{Agent, Turn, Work};
use crate::client::{CallError, Kind};
use crate::wire::agent::{AttemptId, Done, Ended, Orders, Output, Piece, Taken};
use log::{debug, warn};
use serde_json::Value;
use std::sync::{Arc, TryLockError};
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

/// How the requests have been going. Who has the lock of it sends; and looks for results once more
/// when it is given back, because nobody has waited for it meanwhile.
#[derive(Debug)]
pub struct Reporter {
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
    loop {
        let (not_before, output_not_before) = {
            let reporter = lock(&agent.reporter);
            (reporter.not_before, reporter.output_not_before)
        };
        let nudged = agent.board.wait_for_news(not_before, output_not_before);
        let mut reporter = lock(&agent.reporter);
        if nudged {
            reporter.pauses.reset();
        } else if Instant::now() < reporter.not_before {
            // Another thread has failed meanwhile: the pause is due.
            agent.board.output_came();
            continue;
        }
        reporter.round(agent);
    }
}

/// Reports the result of a command that this thread has run, and what else there is. Returns what
/// this thread is to run next.
pub fn report(agent: &Arc<Agent>) -> Option<Work> {
    let mut next = None;
    loop {
        let mut reporter = match agent.reporter.try_lock() {
            Ok(reporter) => reporter,
            Err(TryLockError::Poisoned(reporter)) => reporter.into_inner(),
            // Who sends looks again.
            Err(TryLockError::WouldBlock) => return next,
        };
        let sent = reporter.not_before <= Instant::now() && {
            let (sent, orders) = reporter.send_next(agent);
            for work in orders {
                match next {
                    None => next = Some(work),
                    Some(_) => agent.start(work),
                }
            }
            sent
        };
        drop(reporter);
        if !agent.board.has_result() {
            return next;
        }
        // More results came meanwhile. They are sent here if another thread can run what is next.
        if sent && let Some(work) = next.take() {
            let back = agent.crew.offer(Turn::Command(work)).err();
            next = back.and_then(Turn::command);
        }
        if !sent || next.is_some() {
            agent.board.result_came();
            return next;
        }
    }
}

impl Reporter {
    /// Nothing sent yet.
    pub fn new() -> Self {
        let now = Instant::now();
        Reporter {
            pauses: Pauses::new(),
            not_before: now,
            output_not_before: now,
            singly: 0,
            failing: false,
        }
    }

    /// Tells what there is now.
    fn round(&mut self, agent: &Arc<Agent>) {
        let start = Instant::now();
        self.not_before = start;
        // What comes meanwhile is for the next round: a flood is sampled, not followed.
        let kept: usize = agent.board.news().iter().map(|held| held.kept()).sum();
        for _ in 0..=kept / ROOM_BYTES + 1 + self.singly {
            if agent.board.news().is_empty() {
                break;
            }
            let (sent, orders) = self.send_next(agent);
            for work in orders {
                agent.start(work);
            }
            if !sent {
                break;
            }
        }
        self.output_not_before = start + PACE;
        if !agent.board.news().is_empty() {
            agent.board.output_came();
        }
    }

    /// Sends one request, if there is anything to tell. Whether to go on, otherwise there is a pause
    /// now; and what is to be run next.
    fn send_next(&mut self, agent: &Arc<Agent>) -> (bool, Vec<Work>) {
        let batch = self.collect(agent);
        if batch.cursors.is_empty() {
            return (true, Vec::new());
        }
        let (sent, orders) = self.send(agent, batch);
        if !sent {
            self.not_before = Instant::now() + self.pauses.next();
        }
        (sent, orders)
    }

    /// The next request: first the commands that have ended, each with its result if all the rest
    /// of its output fits.
    fn collect(&self, agent: &Agent) -> Batch {
        let mut batch = Batch::default();
        let mut room = ROOM_BYTES;
        for held in agent.board.news() {
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

    /// Sends a request. Whether to go on, otherwise a pause is due; and what is to be run next.
    fn send(&mut self, agent: &Arc<Agent>, batch: Batch) -> (bool, Vec<Work>) {
        self.singly = self.singly.saturating_sub(1);
        let instance = agent.board.instance();
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
        let client = &agent.client;
        let answer = if results.is_empty() {
            if !carried.output {
                // Only gaps: what would have been in them is gone.
                carried.output_taken();
                return (true, Vec::new());
            }
            client
                .output(&Output { instance, pieces })
                .map(|orders| Answer::Orders(Box::new(orders)))
        } else {
            let seq = agent.board.asks_for_more();
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
                let (all, orders) = accept(agent, answer, &carried);
                if all {
                    self.pauses.reset();
                }
                (all, orders)
            }
            Err(why) => (self.refused(agent, &why, &carried), Vec::new()),
        }
    }

    /// Deals with a failure. Whether to go on at once.
    fn refused(&mut self, agent: &Agent, why: &CallError, carried: &Carried) -> bool {
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
                    agent.board.delivered(id);
                }
            }
            return true;
        }
        if why.is_denied() {
            agent.rereader.refused(&agent.client);
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

/// Takes note of an answer. Whether everything was dealt with, and what is to be run next.
fn accept(agent: &Agent, answer: Answer, carried: &Carried) -> (bool, Vec<Work>) {
    let mut orders = Vec::new();
    let verdicts = match answer {
        Answer::Orders(orders) => return (true, agent.obey(*orders).1),
        Answer::Taken(taken, latest) => {
            // Without having asked nothing is started: it could be a second time.
            for job in taken.start.into_iter().filter(|_| latest.is_some()) {
                orders.extend(agent.board.accept(job, latest));
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
        agent.board.delivered(id);
    }
    let listed = |id: &AttemptId| verdicts.iter().any(|verdict| verdict.id == *id);
    (carried.results.iter().all(listed), orders)
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
