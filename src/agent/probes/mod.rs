//! Running probes: each order once, at once, in a thread of the pool, beside the commands and never in their way.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | from an order to a result; the owner's rules; `http` probes |
//! | `command` | the processes of a `command` or `argv` probe |
//!
//! The server counts a run as failed when its time is over, so a result goes out at that moment, and the processes are
//! ended after it. To add a way to probe: a field of [`ProbeOrder`] and an arm in `Agent::probe`.

mod command;

pub use self::command::StartedProbe;

use super::shared::{Agent, Task};
use crate::wire::probe::{
    DEFAULT_STATUSES, HttpProbe, MAX_MSG_BYTES, MAX_OUTPUT_BYTES, ProbeOrder, ProbeResult,
};
use log::{debug, warn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Probes that run at the same time, in number; more have failed at once.
pub const MAX_PROBES: usize = 64;
/// Files per probe: a pipe, a pidfd, and the other ends while it starts; or a connection.
pub const FILES_PER_PROBE: u64 = 6;
/// How much of the body of an answer is read, in bytes.
const MAX_BODY_BYTES: u64 = 64 << 10;

/// The longest time that a run is given, in milliseconds, whatever a server says.
const MAX_WITHIN_MS: u64 = 60_000;

/// How many probes run.
#[derive(Debug, Default)]
pub struct RunningProbes(Arc<AtomicUsize>);

/// The place of a probe that runs, or is about to. It is free again when this is dropped.
#[derive(Debug)]
struct Slot(Arc<AtomicUsize>);

impl RunningProbes {
    /// Whether none runs.
    pub fn is_idle(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }

    /// None if as many run as may.
    fn begin(&self) -> Option<Slot> {
        let begin = |running: usize| (running < MAX_PROBES).then_some(running + 1);
        let begun = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, begin);
        begun.is_ok().then(|| Slot(Arc::clone(&self.0)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A probe to be run.
#[derive(Debug)]
pub struct ProbeJob {
    order: ProbeOrder,
    received: Instant,
    /// Taken before there is a thread for it.
    _slot: Slot,
}

/// How a run ended, as far as it knows itself.
#[derive(Debug)]
struct Ended {
    /// Why it failed; none if it passed.
    why: Option<String>,
    output: String,
}

impl Ended {
    fn failed(why: impl Into<String>) -> Self {
        Ended {
            why: Some(why.into()),
            output: String::new(),
        }
    }
}

impl Agent {
    /// Has another thread run a probe.
    pub fn start_probe(self: &Arc<Self>, order: ProbeOrder) {
        let received = Instant::now();
        let Some(slot) = self.probes.begin() else {
            let why = format!("{MAX_PROBES} probes run on this machine already, the most");
            return self.probe_ended(&order, received, Ended::failed(why));
        };
        let job = ProbeJob {
            order,
            received,
            _slot: slot,
        };
        if let Err(back) = self.submit(Task::Probe(Box::new(job))) {
            let (task, why) = *back;
            warn!("cannot start a thread for a probe: {why}");
            if let Task::Probe(job) = task {
                let why = format!("this machine has no thread left to run it: {why}");
                self.probe_ended(&job.order, received, Ended::failed(why));
            }
        }
    }

    /// Runs a probe, and has its result reported.
    pub fn run_probe(&self, job: &ProbeJob) {
        let run = || self.probe(&job.order, job.received);
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            let why = "the agent failed to run it (a bug)";
            self.probe_ended(&job.order, job.received, Ended::failed(why));
        }
    }

    fn probe(&self, order: &ProbeOrder, received: Instant) {
        let within = Duration::from_millis(order.within_ms.min(MAX_WITHIN_MS));
        let deadline = received + within;
        let report = |ended| self.probe_ended(order, received, ended);
        if let Some(http) = &order.http {
            return report(self.ask(order, http, deadline));
        }
        match self.runner.start_probe(order, &self.state.instance()) {
            Ok(started) => {
                let guard = self.runner.guard();
                command::supervise(started, guard, order.timeout, deadline, report);
            }
            Err(why) => report(Ended::failed(why)),
        }
    }

    fn probe_ended(&self, order: &ProbeOrder, received: Instant, ended: Ended) {
        let took = received.elapsed().as_millis();
        debug!("probe {} of {}: {:?}", order.name, order.task_id, ended.why);
        let mut msg = ended.why.clone().unwrap_or_default();
        msg.truncate(msg.floor_char_boundary(MAX_MSG_BYTES));
        self.state.note_probe(ProbeResult {
            id: order.id.clone(),
            ok: ended.why.is_none(),
            msg,
            output: ended.output,
            duration_ms: u64::try_from(took).unwrap_or(u64::MAX),
        });
    }

    /// Makes the request of a probe.
    fn ask(&self, order: &ProbeOrder, http: &HttpProbe, deadline: Instant) -> Ended {
        if let Err(why) = self.runner.check_request(&http.url) {
            return Ended::failed(why);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ended::failed(format!("timed out after {}", order.timeout));
        }
        let answer = match self.client.probe(&http.url, left, MAX_BODY_BYTES) {
            Ok(answer) => answer,
            Err(_) if Instant::now() >= deadline => {
                return Ended::failed(format!("no answer within {}", order.timeout));
            }
            Err(why) => return Ended::failed(why),
        };
        let wanted = http.status.as_ref().unwrap_or(&DEFAULT_STATUSES);
        let text = String::from_utf8_lossy(&answer.body);
        let lacks = { http.contains.as_deref() }.filter(|wanted| !text.contains(*wanted));
        let why = match lacks {
            _ if !wanted.has(answer.status) => {
                Some(format!("status {}, {wanted} was wanted", answer.status))
            }
            Some(wanted) => Some(format!("the answer does not contain {wanted:?}")),
            None => None,
        };
        let output = text[..text.floor_char_boundary(MAX_OUTPUT_BYTES)].to_owned();
        Ended { why, output }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_run_at_once_than_may() {
        let running = RunningProbes::default();
        let slots: Vec<_> = (0..MAX_PROBES).map(|_| running.begin()).collect();
        assert!(slots.iter().all(Option::is_some) && running.begin().is_none());
        drop(slots);
        assert!(running.begin().is_some());
    }
}
