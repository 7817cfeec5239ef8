//! How long a new program has until its first complete poll, and the end of that.
//!
//! Time in which no server answers at all does not count: that says nothing about the program.

use super::begin::{self, Resumed};
use super::marker::{self, Files, Pending, Step};
use crate::agent::attempt::{Attempt, Outcome, lock};
use crate::agent::processes::process_table::now_in_ms;
use crate::agent::shared::{Agent, restart_on_panic};
use crate::wire::agent::Stream;
use crate::wire::task::ExecutionState;
use log::{info, warn};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often it is looked whether the time is over.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// What the poll loop says of a program on probation.
#[derive(Debug, Default)]
pub struct Probation(Mutex<Option<Clock>>);

/// How much of the probation is over.
#[derive(Debug)]
struct Clock {
    limit: Duration,
    counted: Duration,
    /// Since when time counts that may have to be counted; none while no server answers.
    since: Option<Instant>,
    has_polled: bool,
    /// Why the latest poll failed.
    trouble: Option<String>,
}

impl Clock {
    fn count(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.counted += now.saturating_duration_since(since);
        }
        self.since = Some(now);
    }

    /// A poll failed.
    fn failed(&mut self, now: Instant, is_silent: bool, why: String) {
        self.trouble = Some(why);
        match is_silent {
            true => self.since = None,
            false => self.count(now),
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        let running = self.since.map(|since| now.saturating_duration_since(since));
        self.counted + running.unwrap_or_default() >= self.limit
    }
}

impl Probation {
    fn change(&self, change: impl FnOnce(&mut Clock)) {
        if let Some(clock) = &mut *lock(&self.0) {
            change(clock);
        }
    }

    /// Whether it lasts.
    pub fn lasts(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// A poll begins.
    pub fn asking(&self) {
        self.change(|clock| clock.count(Instant::now()));
    }

    /// A poll has failed; `is_silent` if nobody has answered.
    pub fn failed(&self, is_silent: bool, why: impl std::fmt::Display) {
        self.change(|clock| clock.failed(Instant::now(), is_silent, why.to_string()));
    }

    /// A poll was answered completely.
    pub fn polled(&self) {
        self.change(|clock| clock.has_polled = true);
    }
}

impl Agent {
    /// Goes on with an update: watches over the probation of this program, or reports that the new one has failed.
    pub fn resume_update(self: &Arc<Self>, resumed: &'static Resumed) -> std::io::Result<()> {
        let pending = &resumed.pending;
        let attempt = self.state.resume(pending);
        let agent = Arc::clone(self);
        let thread = std::thread::Builder::new().name("update".into());
        if pending.step == Step::Returning {
            thread.spawn(move || {
                agent.update_failed(pending, &attempt);
                reap(&resumed.children);
            })?;
            return Ok(());
        }
        *lock(&self.probation.0) = Some(Clock {
            limit: pending.probation.into(),
            counted: Duration::ZERO,
            since: Some(Instant::now()),
            has_polled: false,
            trouble: None,
        });
        thread.spawn(move || {
            let body = || agent.watch_probation(pending, &attempt);
            restart_on_panic("watch over an update", body);
            reap(&resumed.children);
        })?;
        Ok(())
    }

    fn watch_probation(self: &Arc<Self>, pending: &Pending, attempt: &Attempt) {
        loop {
            std::thread::sleep(LOOK_PERIOD);
            let over = match &*lock(&self.probation.0) {
                None => return,
                Some(clock) if clock.has_polled => None,
                Some(clock) if clock.is_over(Instant::now()) => Some(clock.trouble.clone()),
                Some(_) => continue,
            };
            match over {
                None => return self.update_succeeded(pending, attempt),
                Some(trouble) => {
                    let trouble = trouble.map(|why| format!(": {why}")).unwrap_or_default();
                    begin::go_back(&format!(
                        "no complete poll within {}{trouble}",
                        pending.probation
                    ));
                    // It stays as it is: there is nothing to go back to.
                    *lock(&self.probation.0) = None;
                    let msg =
                        "update: the new program has failed, and the old one is not there any more";
                    self.end_update(attempt, pending, ExecutionState::Failed, msg.into());
                    return;
                }
            }
        }
    }

    fn update_succeeded(self: &Arc<Self>, pending: &Pending, attempt: &Attempt) {
        *lock(&self.probation.0) = None;
        settle("the next start will put the old program back");
        info!("updated: {} to {}", pending.from, pending.version);
        let line = format!("{} to {}\n", pending.from, pending.version);
        attempt.append(Stream::Stdout, line.as_bytes());
        self.end_update(attempt, pending, ExecutionState::Succeeded, String::new());
    }

    fn update_failed(self: &Arc<Self>, pending: &Pending, attempt: &Attempt) {
        let msg = format!(
            "update: {} has failed here: {}; this agent goes on with {}",
            pending.version, pending.why, pending.from
        );
        warn!("{msg}");
        settle("the next start will report it again");
        self.end_update(attempt, pending, ExecutionState::Failed, msg);
    }

    fn end_update(
        self: &Arc<Self>,
        attempt: &Attempt,
        pending: &Pending,
        state: ExecutionState,
        msg: String,
    ) {
        let took = now_in_ms().saturating_sub(pending.began_ms);
        let outcome = Outcome {
            exit_code: (state == ExecutionState::Succeeded).then_some(0),
            duration: Some(Duration::from_millis(took)),
            ..Outcome::not_started(state, msg)
        };
        self.state.settled(attempt, outcome);
        self.state.result_ready();
    }
}

/// Nothing is pending any more.
fn settle(otherwise: &str) {
    let Some(files) = Files::of_this_process() else {
        return;
    };
    let settled = marker::change(files, |marker| {
        marker.settle();
        Ok(())
    });
    if let Err(why) = settled {
        warn!("{otherwise}: {why}");
    }
}

/// Reaps the children that the program before has left, such as its guard, when they end. Their numbers are theirs until
/// then.
fn reap(children: &[i32]) {
    for pid in children.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let _ = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_counts_in_which_a_server_could_answer() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut clock = Clock {
            limit: Duration::from_secs(10),
            counted: Duration::ZERO,
            since: Some(start),
            has_polled: false,
            trouble: None,
        };
        assert!(
            !clock.is_over(at(9)) && clock.is_over(at(10)),
            "it never polls"
        );
        clock.count(at(1));
        clock.failed(at(3), true, "nobody".into());
        assert!(!clock.is_over(at(100)), "no server for long");
        clock.count(at(100));
        clock.failed(at(104), false, "refused".into());
        assert!(!clock.is_over(at(108)));
        assert!(clock.is_over(at(109)), "1 + 4 + 5");
    }
}
