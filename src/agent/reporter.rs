//! When reports are sent, and what a failure means. What goes into one is in [`super::batch`].
//!
//! One request is under way at a time. Results are sent at once, output every now and then, that of
//! several commands together. The thread that ran a command sends its result and then runs what the
//! answer hands out: to pass it to another thread and back would make a small command a tenth slower.
//! Everything else is sent by the reporter's own thread: output, results that came while another request
//! was under way, and results that could not be sent.
//!
//! Nothing is dropped from the state before the server has answered, so a lost request is repeated by
//! collecting its content again. While the server is away the pauses grow; a poll that succeeds ends them.
//!
//! On a slow link a long report may never arrive. After a time-out the next one is half as long, after a
//! success twice as long, and results that need no output go first. A report that is too long for a proxy
//! (413) is halved, and stays so. A request that the server will
//! never take must not block the others. Its attempts are reported one by
//! one; if that is refused as well, first the output is given up, then the result.

use super::attempt::lock;
use super::backoff::Backoff;
use super::batch::{Batch, Delivery, MAX_OUTPUT_BYTES, MIN_OUTPUT_BYTES};
use super::failures::FailureLog;
use super::shared::{Agent, Task};
use super::state::Runnable;
use super::undo::deadman;
use crate::client::CallError;
use crate::wire::agent::{Done, Orders, Output, Taken};
use log::{debug, info, warn};
use serde_json::value::RawValue;
use std::sync::{Arc, TryLockError};
use std::time::{Duration, Instant};

/// The time between two reports of output: short enough for output to be at most a second behind, long
/// enough that a chatty command does not cause one request per line.
const OUTPUT_PERIOD: Duration = Duration::from_millis(400);

/// The state of reporting. The thread that holds the lock around it sends. Others do not wait for the
/// lock, so that thread looks for results once more after it has released the lock.
#[derive(Debug)]
pub struct Reporter {
    backoff: Backoff,
    not_before: Instant,
    output_not_before: Instant,
    /// The output in the next request, in bytes.
    room: usize,
    /// The most that a proxy on the way has not refused.
    max_room: usize,
    /// This many of the next requests are about one attempt only.
    singly: usize,
    /// What was logged of failures.
    failures: FailureLog,
}

/// Whether to send the next request at once, or after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    AtOnce,
    AfterPause,
}

/// The answer to a report.
enum Answer {
    ToOutput(Box<Orders<Box<RawValue>>>),
    /// With the number of the poll by which the report asked for work, if it did.
    ToResults(Taken<Box<RawValue>>, Option<u64>),
}

/// The reporter's thread. Never returns.
pub fn run(agent: &Arc<Agent>) {
    loop {
        let (not_before, output_not_before) = {
            let reporter = lock(&agent.reporter);
            (reporter.not_before, reporter.output_not_before)
        };
        let nudged = agent.state.wait_for_report(not_before, output_not_before);
        let mut reporter = lock(&agent.reporter);
        if nudged {
            reporter.backoff.reset();
        } else if Instant::now() < reporter.not_before {
            // Another thread has failed since `not_before` was read: its pause has to pass first.
            agent.state.output_ready();
            continue;
        }
        reporter.send_all(agent);
    }
}

/// Reports the result of the command that this thread has run, and whatever else is due. Returns the
/// attempt that this thread is to run next.
pub fn report(agent: &Arc<Agent>) -> Option<Runnable> {
    let mut next = None;
    loop {
        let mut reporter = match agent.reporter.try_lock() {
            Ok(reporter) => reporter,
            Err(TryLockError::Poisoned(reporter)) => reporter.into_inner(),
            // The thread that sends now looks again afterwards.
            Err(TryLockError::WouldBlock) => return next,
        };
        let sent = reporter.not_before <= Instant::now() && {
            let (then, orders) = reporter.send_next(agent);
            for runnable in orders {
                match next {
                    None => next = Some(runnable),
                    Some(_) => agent.start(runnable),
                }
            }
            then == Next::AtOnce
        };
        drop(reporter);
        if !agent.state.has_result() {
            return next;
        }
        // More results came meanwhile. This thread sends them if another one can run the next command.
        if sent && let Some(runnable) = next.take() {
            let back = agent.threads.offer(Task::Run(runnable)).err();
            next = back.and_then(Task::into_runnable);
        }
        if !sent || next.is_some() {
            agent.state.result_ready();
            return next;
        }
    }
}

impl Reporter {
    /// A reporter that has sent nothing.
    pub fn new() -> Self {
        let now = Instant::now();
        Reporter {
            backoff: Backoff::new(),
            not_before: now,
            output_not_before: now,
            room: MAX_OUTPUT_BYTES,
            max_room: MAX_OUTPUT_BYTES,
            singly: 0,
            failures: FailureLog::default(),
        }
    }

    /// Sends what is there now. What comes meanwhile is left for the next time: otherwise a command that
    /// writes without a pause would keep the reporter here.
    fn send_all(&mut self, agent: &Arc<Agent>) {
        let start = Instant::now();
        self.not_before = start;
        let unreported = agent.state.unreported();
        let kept_bytes: usize = unreported.iter().map(|attempt| attempt.kept_bytes()).sum();
        for _ in 0..=kept_bytes / self.room + 1 + self.singly {
            if !agent.state.has_report() {
                break;
            }
            let (then, orders) = self.send_next(agent);
            for runnable in orders {
                agent.start(runnable);
            }
            if then == Next::AfterPause {
                break;
            }
        }
        self.output_not_before = start + OUTPUT_PERIOD;
        if agent.state.has_report() {
            agent.state.output_ready();
        }
    }

    /// Sends one request, if there is anything to report, and sets the pause that follows. Also returns
    /// what the answer hands out.
    fn send_next(&mut self, agent: &Arc<Agent>) -> (Next, Vec<Runnable>) {
        let batch = Batch::collect(&agent.state, self.room, self.singly > 0);
        if batch.is_empty() {
            return (Next::AtOnce, Vec::new());
        }
        let (then, orders) = self.send(agent, batch);
        if then == Next::AfterPause {
            let pause = deadman::pause(self.backoff.next(), agent.state.deadman());
            self.not_before = Instant::now() + pause;
        }
        (then, orders)
    }

    fn send(&mut self, agent: &Arc<Agent>, batch: Batch) -> (Next, Vec<Runnable>) {
        self.singly = self.singly.saturating_sub(1);
        let instance = agent.state.instance();
        let Batch {
            pieces,
            results,
            undos,
            probes,
            delivery,
        } = batch;
        let call = match results.is_empty() && undos.is_empty() && probes.is_empty() {
            true => "output",
            false => "done",
        };
        let answer = if call == "done" {
            // What an undo has begun frees no job.
            let seq = agent.state.work_request().filter(|_| !results.is_empty());
            let done = Done {
                instance,
                seq,
                pieces,
                results,
                undos,
                probes,
            };
            let answer = agent.client.done(&done);
            answer.map(|taken| Answer::ToResults(taken, seq))
        } else if delivery.has_output() {
            let answer = agent.client.output(&Output { instance, pieces });
            answer.map(|orders| Answer::ToOutput(Box::new(orders)))
        } else {
            // All that is left are gaps: the bytes in them have been dropped.
            delivery.output_taken();
            return (Next::AtOnce, Vec::new());
        };
        match answer {
            Ok(answer) => {
                agent.state.contact.made();
                delivery.output_taken();
                delivery.probes_taken(&agent.state);
                self.room = (self.room * 2).min(self.max_room);
                let answered = self.answered(agent, answer, &delivery);
                if answered.0 == Next::AfterPause {
                    self.log_failure(call, "done: the server does not answer for everything");
                } else if let Some(failures) = self.failures.succeeded(call) {
                    info!("{call}: works again after {failures} failures");
                }
                answered
            }
            Err(why) => (self.failed(agent, call, &why, &delivery), Vec::new()),
        }
    }

    /// Obeys an answer.
    fn answered(
        &mut self,
        agent: &Arc<Agent>,
        answer: Answer,
        delivery: &Delivery,
    ) -> (Next, Vec<Runnable>) {
        let (is_complete, orders) = match answer {
            Answer::ToOutput(orders) => (true, agent.obey(*orders, None).runnable),
            Answer::ToResults(taken, latest) => {
                let mut orders = Vec::new();
                // Without a request for work nothing is started: it could be a second start.
                for job in taken.start.into_iter().filter(|_| latest.is_some()) {
                    orders.extend(agent.state.accept(job, latest));
                }
                agent.log_refused_orders();
                let undos_taken = delivery.undos_answered(&agent.state, &taken.undos);
                let results_taken = delivery.results_answered(&agent.state, &taken.results);
                (undos_taken && results_taken, orders)
            }
        };
        agent.shorten_poll(None);
        if !is_complete {
            return (Next::AfterPause, orders);
        }
        self.backoff.reset();
        (Next::AtOnce, orders)
    }

    /// Decides what a failure means.
    fn failed(
        &mut self,
        agent: &Agent,
        call: &'static str,
        why: &CallError,
        delivery: &Delivery,
    ) -> Next {
        if why.is_interrupted() {
            self.room = (self.room / 2).max(MIN_OUTPUT_BYTES);
        }
        if why.status() == Some(413) && self.room > MIN_OUTPUT_BYTES {
            self.room = (self.room / 2).max(MIN_OUTPUT_BYTES);
            self.max_room = self.room;
            warn!("{why}; sending {} bytes of output at once", self.room);
            return Next::AtOnce;
        }
        if why.is_final() {
            if delivery.attempts() > 1 {
                warn!("{why}; reporting the commands one by one");
                self.singly = delivery.attempts();
            } else if delivery.has_output() {
                delivery.output_taken();
                warn!("{why}; giving up a piece of output");
            } else {
                delivery.probes_taken(&agent.state);
                for id in delivery.give_up_undos(&agent.state) {
                    let (execution, attempt) = (&id.execution, id.attempt);
                    warn!(
                        "{why}; giving up what is known of the undo of {execution} (attempt {attempt})"
                    );
                }
                for id in delivery.results() {
                    let (execution, attempt) = (&id.execution, id.attempt);
                    agent.state.delivered(id);
                    warn!("{why}; giving up the result of {execution} (attempt {attempt})");
                }
            }
            return Next::AtOnce;
        }
        if why.is_denied() {
            agent.token_reader.refused(&agent.client);
        }
        self.log_failure(call, &why.to_string());
        Next::AfterPause
    }

    fn log_failure(&mut self, call: &'static str, why: &str) {
        match self.failures.failed(call, why, Instant::now()) {
            Some(count) => warn!("{why}; trying again{count}"),
            None => debug!("{why}"),
        }
    }
}
