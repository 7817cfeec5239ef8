//! The agent: asks the server what there is to do, does it, and says how it went.
//!
//! | file | what it is for |
//! | --- | --- |
//! | this one | the poll loop: ask, hand out, obey |
//! | `board` | what the threads share: which attempts are held, and their state |
//! | `crew` | the threads that poll and run commands, in turns |
//! | `held`, `output` | one attempt and its output, until the server has taken them |
//! | `runner`, `search` | starting one command; the only place that names `process::Command` |
//! | `owner` | what the owner of this machine allows to be run |
//! | `token` | the agent's token, read again when it changes |
//! | `watch`, `group` | watching it until it, or its whole process group, has ended |
//! | `leftovers` | the pipes of what commands left running |
//! | `reporter` | results and output, sent until taken |
//! | `guard` | the process that ends commands when the agent is killed |
//! | `init` | the duties of process 1 |
//! | `shutdown` | the signals: TERM and INT, HUP |
//!
//! Threads: the main one waits for signals, one reports, and there is a crew: one polls, one is there
//! for what comes, and there is one per command that runs. Whoever is given a command in an answer runs
//! it and then reports it: the poller leaves the polls to another one before that.
//! The agent listens on no socket and writes no file.
//!
//! To obey a new kind of order: add it to [`Orders`], and to [`Agent::obey`].

mod board;
mod crew;
mod group;
pub mod guard;
mod held;
mod init;
mod leftovers;
mod output;
mod owner;
mod pauses;
mod reporter;
mod runner;
pub(crate) mod search;
mod shutdown;
mod token;
mod watch;

use crate::client::{CallError, Client};
use crate::config::AgentConfig;
use crate::wire::agent::{Orders, Poll};
use crate::wire::duration::TimeSpan;
use crate::wire::task::ExecutionState;
use board::{Board, Job};
use crew::Crew;
use guard::Guard;
use held::{Held, Outcome, Wake};
use leftovers::Leftovers;
use log::{debug, info, warn};
use pauses::Pauses;
use reporter::Reporter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use token::Rereader;
use watch::Watch;

/// How long the server may hold a poll while nothing is held. With the way there and back it is
/// well below the 45 s after which a machine counts as offline.
const IDLE_WAIT: TimeSpan = TimeSpan::from_secs(25);
/// The same while something is held: the heartbeat of running work is closer.
const BUSY_WAIT: TimeSpan = TimeSpan::from_secs(20);
/// The same while there is no room for more: there may soon be.
const FULL_WAIT: TimeSpan = TimeSpan::from_secs(2);
/// So many polls in a row answered with 409 make the agent take a new instance id.
const MAX_CONFLICTS: u32 = 3;
/// An answer that comes sooner than this and asks for nothing new is suspicious...
const QUICK: Duration = Duration::from_millis(500);
/// ...and after so many of them in a row there is a pause, so that a broken server or proxy does
/// not get a thousand polls a second.
const MAX_QUICK: u32 = 5;
/// That pause.
const QUICK_PAUSE: Duration = Duration::from_millis(200);
/// The pause before a loop that failed is started again.
const BUG_PAUSE: Duration = Duration::from_secs(1);
/// The stack of a thread of the crew, in bytes. Buffers are on the heap; the deepest calls are those
/// that parse JSON, start processes and begin a TLS connection.
const STACK_BYTES: usize = 512 * 1024;
/// Files the agent needs open beside those of its commands, in number.
const FILES: u64 = 320;
/// Files per command: three pipes, a pidfd, an eventfd, and the other ends while it starts.
const FILES_PER_JOB: u64 = 8;

/// How often it is said that the server does not accept the token: who looks at the end of a log has
/// to find it.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(300);

/// A command that is to be run now.
type Work = (Arc<Held>, Job);

/// What a thread of the crew does next.
#[derive(Debug)]
enum Turn {
    Command(Work),
    Poll(Polls),
}

impl Turn {
    fn command(self) -> Option<Work> {
        match self {
            Turn::Command(work) => Some(work),
            Turn::Poll(_) => None,
        }
    }
}

/// An agent.
#[derive(Debug)]
struct Agent {
    config: AgentConfig,
    client: Client,
    board: Board,
    crew: Crew<Turn>,
    guard: Guard,
    leftovers: Leftovers,
    reporter: Mutex<Reporter>,
    rereader: Rereader,
}

/// Runs an agent until it is told to end.
pub fn run(config: AgentConfig) -> Result<(), String> {
    let root = rustix::process::geteuid().is_root();
    if root && config.refuse_root {
        return Err("this is root, and --refuse-root says not to start as root".into());
    }
    if init::is_process_1() {
        return init::run();
    }
    let token = token::load()?;
    let signals = shutdown::catch()?;
    let instance = pauses::random_id()?;
    info!(
        "sidebike {} agent: label {:?}, instance {instance}, registry {}, {} jobs",
        env!("CARGO_PKG_VERSION"),
        config.label,
        config.registry.url,
        config.jobs,
    );
    if root {
        warn!("running as root: so will every command; --refuse-root keeps it from starting");
    }
    token::explain(token.as_ref(), &config.registry);
    if let Some(rules) = owner::in_words(&config.rules) {
        info!("{rules}");
    }
    allow_files(config.jobs);
    let client = Client::new(&config.registry)?;
    client.set_token(token);
    let agent = Arc::new(Agent {
        client,
        board: Board::new(instance, config.jobs),
        crew: Crew::new(),
        guard: Guard::start(),
        leftovers: Leftovers::new(),
        reporter: Mutex::new(Reporter::new()),
        rereader: Rereader::default(),
        config,
    });
    let its_own = Arc::clone(&agent);
    std::thread::Builder::new()
        .name("reporter".into())
        .spawn(move || persist("reporter", || reporter::run(&its_own)))
        .and_then(|_| agent.start_polls(0))
        .map_err(|why| format!("cannot start a thread: {why}"))?;
    shutdown::wait(&agent, signals)
}

/// Makes sure that `jobs` commands can be watched at once, if the system lets us. Otherwise the
/// limit stays as it is: commands inherit it.
fn allow_files(jobs: u32) {
    let limit = getrlimit(Resource::Nofile);
    let needed = FILES + FILES_PER_JOB * u64::from(jobs);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let raised = Rlimit {
        current: Some(limit.maximum.map_or(needed, |most| most.min(needed))),
        maximum: limit.maximum,
    };
    let done = setrlimit(Resource::Nofile, raised);
    if done.is_err() || raised.current < Some(needed) {
        warn!("{jobs} jobs may need {needed} open files, more than this process may have");
    }
}

/// Runs a thread's loop again should it panic: that would be a bug, but one that must not leave an
/// agent that looks alive and does nothing. What the loops share is complete at any time.
fn persist(name: &str, body: impl Fn()) {
    while catch_unwind(AssertUnwindSafe(&body)).is_err() {
        say_bug(name);
    }
}

fn say_bug(name: &str) {
    warn!("the {name} failed (a bug); starting it again");
    std::thread::sleep(BUG_PAUSE);
}

/// The polls of an epoch.
#[derive(Debug)]
struct Polls {
    epoch: u64,
    weather: Weather,
    pauses: Pauses,
}

impl Polls {
    /// None made yet.
    fn new(epoch: u64) -> Self {
        Polls {
            epoch,
            weather: Weather::default(),
            pauses: Pauses::new(),
        }
    }
}

/// How the polls have been going.
#[derive(Debug, Default)]
struct Weather {
    away: bool,
    /// When it was said that the server does not accept the token.
    denied: Option<Instant>,
    conflicts: u32,
    quick: u32,
}

/// Whether a complaint that was said then is to be said again; notes that it is.
fn is_due(said: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = said.is_none_or(|said| now.saturating_duration_since(said) >= COMPLAINT_PERIOD);
    if is_due {
        *said = Some(now);
    }
    is_due
}

impl Agent {
    /// Starts the polls of an epoch; earlier ones end by themselves.
    fn start_polls(self: &Arc<Self>, epoch: u64) -> std::io::Result<()> {
        self.give(Turn::Poll(Polls::new(epoch)))
            .map_err(|back| back.1)
    }

    /// Gives a turn to a thread of the crew.
    fn give(self: &Arc<Self>, turn: Turn) -> Result<(), Box<(Turn, std::io::Error)>> {
        let make = || {
            let agent = Arc::clone(self);
            std::thread::Builder::new()
                .name("crew".into())
                .stack_size(STACK_BYTES)
                .spawn(move || agent.take_turns())
                .map(|_| ())
        };
        self.crew.give(turn, make).map_err(Box::new)
    }

    /// What a thread of the crew does, until there is nothing to do for a while.
    fn take_turns(self: &Arc<Self>) {
        let mut wake = None;
        let mut next = self.crew.first();
        while let Some(turn) = next.take() {
            let work = match turn {
                Turn::Command(work) => {
                    wake = wake.or_else(Wake::new);
                    self.run_one(work, wake.as_ref())
                }
                Turn::Poll(polls) => self.poll(polls),
            };
            next = work.map(Turn::Command).or_else(|| self.crew.wait());
        }
    }

    /// Polls, and polls again should that panic.
    fn poll(self: &Arc<Self>, mut polls: Polls) -> Option<Work> {
        loop {
            let epoch = polls.epoch;
            match catch_unwind(AssertUnwindSafe(|| self.poll_loop(polls))) {
                Ok(work) => return work,
                Err(_) => say_bug("poll loop"),
            }
            polls = Polls::new(epoch);
        }
    }

    /// Asks and obeys. Returns a command that this thread is to run, when another one goes on with
    /// the polls; none when those of this epoch are over.
    ///
    /// It is the command that is waited for, and to wake a thread for it takes longer than all the
    /// rest that is done here.
    fn poll_loop(self: &Arc<Self>, mut polls: Polls) -> Option<Work> {
        while let Some(poll) = self.next_poll(polls.epoch, polls.weather.away) {
            let asked = Instant::now();
            match self.client.poll(&poll) {
                Ok(orders) => {
                    let (news, work) = self.poll_answered(orders, &mut polls);
                    if news || asked.elapsed() > QUICK {
                        polls.weather.quick = 0;
                    } else {
                        polls.weather.quick += 1;
                    }
                    let Some(work) = work else {
                        if polls.weather.quick > MAX_QUICK {
                            std::thread::sleep(QUICK_PAUSE);
                        }
                        continue;
                    };
                    match self.give(Turn::Poll(polls)).map_err(|back| back.0) {
                        Err(Turn::Poll(back)) => polls = back,
                        _ => return Some(work),
                    }
                    // No other thread, so none for the command either.
                    self.start(work);
                }
                Err(why) => {
                    self.poll_failed(&why, &mut polls.weather);
                    std::thread::sleep(polls.pauses.next());
                }
            }
        }
        None
    }

    /// Takes note of an answer. Whether it was news, and a command that is to be run.
    fn poll_answered(
        self: &Arc<Self>,
        orders: Orders<Value>,
        polls: &mut Polls,
    ) -> (bool, Option<Work>) {
        if std::mem::take(&mut polls.weather.away) {
            info!("the server is back");
            self.board.nudge();
        }
        polls.weather.conflicts = 0;
        polls.weather.denied = None;
        polls.pauses.reset();
        let (news, work) = self.obey(orders);
        let mut work = work.into_iter();
        let first = work.next();
        work.for_each(|work| self.start(work));
        (news, first)
    }

    fn next_poll(&self, epoch: u64, away: bool) -> Option<Poll> {
        let report = self.board.report(epoch)?;
        Some(Poll {
            // A server that may be back is asked for a quick answer, to know that it is.
            wait: if away {
                TimeSpan::default()
            } else if report.full && !report.draining {
                FULL_WAIT
            } else if report.holds.is_empty() {
                IDLE_WAIT
            } else {
                BUSY_WAIT
            },
            instance: report.instance,
            seq: report.seq,
            label: self.config.label.clone(),
            host: self.config.host.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            jobs: report.jobs,
            // Without room it is as good as draining: the server keeps the work for others.
            draining: report.draining || report.full,
            holds: report.holds,
        })
    }

    fn poll_failed(&self, why: &CallError, weather: &mut Weather) {
        if why.is_denied() {
            weather.away = true;
            self.denied(why, weather);
        } else if !std::mem::replace(&mut weather.away, true) {
            warn!("{why}; trying again until it works");
        } else {
            debug!("{why}");
        }
        if why.status() != Some(409) {
            weather.conflicts = 0;
            return;
        }
        weather.conflicts += 1;
        if weather.conflicts < MAX_CONFLICTS {
            return;
        }
        if let Ok(instance) = pauses::random_id()
            && self.board.renew_instance(instance.clone())
        {
            weather.conflicts = 0;
            info!("the server does not accept this instance id; the new one is {instance}");
        }
    }

    /// The server says that it is the token; said now and then, until a poll succeeds.
    fn denied(&self, why: &CallError, weather: &mut Weather) {
        if self.rereader.refused(&self.client) {
            weather.denied = None;
        } else if !is_due(&mut weather.denied, Instant::now()) {
            debug!("{why}");
        } else if self.client.token().is_none() {
            let name = token::VARIABLE;
            warn!("the server wants a token, this agent has none ({name}): {why}; trying again");
        } else {
            let name = token::VARIABLE;
            warn!("the server does not accept the agent's token ({name}): {why}; trying again");
        }
    }

    /// Does what the server wants. Whether any of it was news, and what is to be run now.
    fn obey(&self, orders: Orders<Value>) -> (bool, Vec<Work>) {
        let accepted = { orders.start.into_iter() }.filter_map(|job| self.board.accept(job, None));
        let work: Vec<Work> = accepted.collect();
        let mut news = !work.is_empty();
        for id in orders.cancel {
            if self.board.cancel(&id) {
                info!("{} (attempt {}): canceled", id.execution, id.attempt);
                news = true;
            }
        }
        for id in orders.forget {
            if self.board.forget(&id) {
                info!("{} (attempt {}): forgotten", id.execution, id.attempt);
                news = true;
            }
        }
        (news, work)
    }

    /// Runs a command in another thread.
    fn start(self: &Arc<Self>, work: Work) {
        let mut next = Some(work);
        while let Some(work) = next.take() {
            let held = Arc::clone(&work.0);
            if let Err(back) = self.give(Turn::Command(work)) {
                let why = back.1;
                warn!("cannot start a thread: {why}");
                let msg = format!("this machine has no thread left to run it: {why}");
                let outcome = Outcome::not_started(ExecutionState::Failed, msg);
                next = self.board.ended(&held, outcome);
                self.board.result_came();
            }
        }
    }

    /// Runs one command to its end and sees to it that it is reported; returns what is to be run next.
    fn run_one(self: &Arc<Self>, (held, job): Work, wake: Option<&Wake>) -> Option<Work> {
        let next = self.run_to_its_end(&held, job, wake);
        drop(held);
        if next.is_some() {
            self.board.result_came();
            return next;
        }
        catch_unwind(AssertUnwindSafe(|| reporter::report(self))).unwrap_or_else(|_| {
            self.board.result_came();
            None
        })
    }

    /// Returns what is to be run in its place.
    fn run_to_its_end(&self, held: &Held, mut job: Job, wake: Option<&Wake>) -> Option<Work> {
        let id = &held.id;
        let run = || {
            let started = runner::start(self, held, &mut job, wake);
            // Only now: a line takes its time, and it is the command that is waited for.
            info!(
                "{} (attempt {}): starting, task {:?}",
                id.execution, id.attempt, job.task_name
            );
            started.map_or_else(|not_started| not_started, Watch::until_ended)
        };
        // A bug in here must cost one command its result, not the agent a place for ever.
        let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            held.kill_now();
            Outcome::not_started(ExecutionState::Failed, "the agent failed to run it (a bug)")
        });
        let why = if outcome.msg.is_empty() { "" } else { ": " };
        info!(
            "{} (attempt {}): {}{why}{}",
            id.execution,
            id.attempt,
            outcome.state.word(),
            outcome.msg
        );
        self.board.ended(held, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_repeated_now_and_then() {
        let (mut said, start) = (None, Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let due = [0, 1, 299, 300, 301, 599, 600].map(|s| is_due(&mut said, after(s)));
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }
}
