//! The poll loop: asks the server for orders and has them obeyed.
//!
//! A thread that gets a command in the answer to its poll runs the command itself and leaves the polls to
//! another thread: the command is urgent, and waking a thread for it would take longer than everything
//! else that is done here.

use super::backoff::{Backoff, random_id};
use super::failures::FailureLog;
use super::reread;
use super::shared::{Agent, Task, pause_after_panic};
use super::state::Runnable;
use super::token;
use super::undo::deadman;
use crate::client::CallError;
use crate::wire::agent::{Feature, Orders, Poll};
use crate::wire::duration::TimeSpan;
use log::{debug, info, warn};
use serde_json::value::RawValue;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the server may hold a poll while nothing is held. With the time on the network it is well
/// below the 45 s after which a machine counts as offline.
const IDLE_WAIT: TimeSpan = TimeSpan::from_secs(25);
/// The same while something is held: running work has a faster heartbeat.
const BUSY_WAIT: TimeSpan = TimeSpan::from_secs(20);
/// The same at a limit: soon there may be room again.
const FULL_WAIT: TimeSpan = TimeSpan::from_secs(2);
/// After this many conflicts (409) in a row the agent takes a new instance id.
const MAX_CONFLICTS: u32 = 3;
/// The status of an answer that refuses for another reason than that it does not know the token.
const FORBIDDEN: u16 = 403;
/// An answer that comes sooner than this, and with nothing new, is suspicious.
const QUICK: Duration = Duration::from_millis(500);
/// This many suspicious answers in a row are accepted without a pause.
const MAX_QUICK: u32 = 5;
/// The pause that follows them: a broken server or proxy must not get a thousand polls a second.
const QUICK_PAUSE: Duration = Duration::from_millis(200);

/// The name of the call among failures.
const CALL: &str = "poll";

/// The polls of one epoch (see [`super::state::AgentState::drain`]).
#[derive(Debug)]
pub struct PollLoop {
    epoch: u64,
    health: Health,
    backoff: Backoff,
    /// Polls in a row that followed a failed one at once, because another server may answer.
    at_once: usize,
}

/// How the latest polls went.
#[derive(Debug, Default)]
struct Health {
    /// The latest poll failed.
    is_down: bool,
    /// What was logged of failures.
    failures: FailureLog,
    /// Conflicts in a row.
    conflicts: u32,
    /// Suspicious answers in a row.
    quick: u32,
}

impl PollLoop {
    /// A loop that has not polled yet.
    pub fn new(epoch: u64) -> Self {
        PollLoop {
            epoch,
            health: Health::default(),
            backoff: Backoff::new(),
            at_once: 0,
        }
    }

    /// Whether the next poll need not wait for a pause after this failure: each server of the list gets one.
    fn goes_on_at_once(&mut self, why: &CallError, servers: usize) -> bool {
        let at_once = why.is_one_left() && self.at_once + 1 < servers;
        self.at_once = if at_once { self.at_once + 1 } else { 0 };
        at_once
    }
}

impl Agent {
    /// Starts the poll loop of an epoch. Earlier ones end by themselves.
    pub fn start_polls(self: &Arc<Self>, epoch: u64) -> std::io::Result<()> {
        self.submit(Task::Poll(PollLoop::new(epoch)))
            .map_err(|back| back.1)
    }

    /// Polls, and polls again should that panic. Returns as [`Agent::poll_until_command`] does.
    pub fn poll(self: &Arc<Self>, mut polls: PollLoop) -> Option<Runnable> {
        loop {
            let epoch = polls.epoch;
            match catch_unwind(AssertUnwindSafe(|| self.poll_until_command(polls))) {
                Ok(runnable) => return runnable,
                Err(_) => pause_after_panic("poll loop"),
            }
            polls = PollLoop::new(epoch);
        }
    }

    /// Polls until there is a command for this thread to run, and has another thread continue the loop.
    /// None when the epoch is over.
    fn poll_until_command(self: &Arc<Self>, mut polls: PollLoop) -> Option<Runnable> {
        while let Some((poll, slack)) = self.next_poll(polls.epoch, polls.health.is_down) {
            self.runner.guard().flush();
            let asked = Instant::now();
            self.probation.asking();
            match self.client.poll(&poll, slack) {
                Ok(orders) => {
                    self.state.contact.made();
                    self.probation.polled();
                    let standing = orders.standing;
                    let (changed, runnable) = self.poll_answered(orders, poll.seq, &mut polls);
                    self.end_if_idle(asked.elapsed(), standing);
                    if changed || asked.elapsed() > QUICK {
                        polls.health.quick = 0;
                    } else {
                        polls.health.quick += 1;
                    }
                    let Some(runnable) = runnable else {
                        if polls.health.quick > MAX_QUICK {
                            std::thread::sleep(QUICK_PAUSE);
                        }
                        continue;
                    };
                    match self.submit(Task::Poll(polls)).map_err(|back| back.0) {
                        Err(Task::Poll(back)) => polls = back,
                        _ => return Some(runnable),
                    }
                    // No thread can be started, so there is none for the command either.
                    self.start(runnable);
                }
                Err(why) => {
                    self.probation.failed(why.is_silence(), &why);
                    if polls.goes_on_at_once(&why, self.client.urls().len()) {
                        debug!("{why}; asking the next server");
                        continue;
                    }
                    self.poll_failed(&why, &mut polls.health);
                    let pause = polls.backoff.next();
                    std::thread::sleep(deadman::pause(pause, self.state.deadman()));
                }
            }
        }
        None
    }

    /// The next poll, and how long it may be on the network if a dead man's switch limits that.
    fn next_poll(&self, epoch: u64, is_down: bool) -> Option<(Poll, Option<Duration>)> {
        let content = self.state.next_poll(epoch)?;
        let wait = if is_down || self.probation.lasts() {
            // A quick answer shows that a server that was down is back, or that a new program works.
            TimeSpan::default()
        } else if content.full && !content.draining && !content.drained {
            FULL_WAIT
        } else if content.holds.is_empty() {
            IDLE_WAIT
        } else {
            BUSY_WAIT
        };
        let longest = content.deadman.map(deadman::longest_hold);
        let slack = content.deadman.map(deadman::longest_slack);
        let poll = Poll {
            wait: self.longest_wait(wait.min(longest.unwrap_or(wait))),
            standing: self.config.idle.asks(),
            instance: content.instance,
            seq: content.seq,
            label: self.config.label.clone(),
            host: self.config.host.clone(),
            tags: self.config.tags.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            arch: std::env::consts::ARCH.into(),
            jobs: content.jobs,
            // The server treats both alike: it gives the work to other machines.
            draining: content.draining || content.drained || content.full,
            drained: content.drained,
            ending: content.draining,
            holds: content.holds,
            undos: content.undos,
            features: { Feature::ALL.into_iter() }
                .filter(|feature| *feature != Feature::Update || self.config.self_update)
                .map(|feature| feature.word().into())
                .collect(),
        };
        Some((poll, slack))
    }

    /// Has another loop poll at once if the poll that is under way may be held for too long, because a command with a
    /// dead man's switch was accepted meanwhile. The server answers the older poll then. `asking` is the epoch of the
    /// calling loop.
    pub fn shorten_poll(self: &Arc<Self>, asking: Option<u64>) {
        if let Some(epoch) = self.state.shorten_poll(asking)
            && let Err(why) = self.start_polls(epoch)
        {
            debug!("no thread for another poll: {why}");
            self.state.keep_polls(epoch);
        }
    }

    /// Has the server be told of what polls say: the one that is under way may be held for long.
    pub fn poll_soon(self: &Arc<Self>) {
        if let Some(epoch) = self.state.poll_anew()
            && self.start_polls(epoch).is_err()
        {
            self.state.keep_polls(epoch);
        }
    }

    /// Handles an answer. Whether it changed anything, and a command for this thread to run.
    fn poll_answered(
        self: &Arc<Self>,
        orders: Orders<Box<RawValue>>,
        seq: u64,
        polls: &mut PollLoop,
    ) -> (bool, Option<Runnable>) {
        if std::mem::take(&mut polls.health.is_down) {
            info!("the server is back");
            self.state.nudge();
        }
        polls.health.failures.succeeded(CALL);
        polls.health.conflicts = 0;
        polls.backoff.reset();
        polls.at_once = 0;
        let obeyed = self.obey(orders, Some(seq));
        self.shorten_poll(Some(polls.epoch));
        let mut runnable = obeyed.runnable.into_iter();
        let first = runnable.next();
        runnable.for_each(|runnable| self.start(runnable));
        (obeyed.changed, first)
    }

    fn poll_failed(&self, why: &CallError, health: &mut Health) {
        health.is_down = true;
        if self.is_remedied(why) {
            health.failures.succeeded(CALL);
            debug!("{why}");
        } else {
            self.log_failure(why, health);
        }
        if why.status() != Some(409) {
            health.conflicts = 0;
            return;
        }
        health.conflicts += 1;
        if health.conflicts < MAX_CONFLICTS {
            return;
        }
        if let Ok(instance) = random_id()
            && self.state.renew_instance(instance.clone())
        {
            health.conflicts = 0;
            info!("the server does not accept this instance id; the new one is {instance}");
        }
    }

    /// Reads again what the server's refusal, or its certificate, is about. Whether that has changed: then the next
    /// poll may succeed.
    fn is_remedied(&self, why: &CallError) -> bool {
        if why.is_untrusted() {
            reread::untrusted(&self.ca_reread, &self.client)
        } else {
            why.is_denied() && self.token_reader.refused(&self.client)
        }
    }

    fn log_failure(&self, why: &CallError, health: &mut Health) {
        let name = token::VARIABLE;
        let reason = why.to_string();
        let Some(count) = health.failures.failed(CALL, &reason, Instant::now()) else {
            return debug!("{why}");
        };
        if why.status() == Some(FORBIDDEN) {
            // Not only because of the token: the server may not know the name it is called by.
            warn!("the server refuses this agent: {why}; trying again{count}");
        } else if why.is_denied() && self.client.token().is_none() {
            warn!(
                "the server wants a token, this agent has none ({name}): {why}; trying again{count}"
            );
        } else if why.is_denied() {
            warn!(
                "the server does not accept the agent's token ({name}): {why}; trying again{count}"
            );
        } else if count.is_first() {
            warn!("{why}; trying again until it works");
        } else {
            warn!("{why}; still trying{count}");
        }
    }
}
