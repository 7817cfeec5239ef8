//! What all threads of the agent share, and the tasks of its thread pool.

use super::attempt::{Attempt, Outcome};
use super::command::runner::Runner;
use super::command::start_watch::StartWatch;
use super::failures::FailureLog;
use super::idle::Idle;
use super::poll::PollLoop;
use super::probes::{ProbeJob, RunningProbes};
use super::reporter::Reporter;
use super::reread::RereadLimit;
use super::shutdown::Ending;
use super::state::{AgentState, Runnable, UndoJob};
use super::thread_pool::ThreadPool;
use super::token::TokenReader;
use super::update::Updating;
use super::update::probation::Probation;
use crate::client::Client;
use crate::config::AgentConfig;
use log::warn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The pause before a loop that panicked is started again.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// An agent.
#[derive(Debug)]
pub struct Agent {
    /// Its settings.
    pub config: AgentConfig,
    /// The connection to the server.
    pub client: Client,
    /// The attempts it knows.
    pub state: AgentState,
    /// The threads that poll and run commands.
    pub threads: ThreadPool<Task>,
    /// Starts commands.
    pub runner: Runner,
    /// Ends attempts whose start does not return.
    pub start_watch: StartWatch,
    /// Sends results and output.
    pub reporter: Mutex<Reporter>,
    /// Reads the token again.
    pub token_reader: TokenReader,
    /// When the authorities were read again because of a failure.
    pub ca_reread: RereadLimit,
    /// What was logged of orders that were refused.
    pub refused_orders: Mutex<FailureLog>,
    /// For how long it has been idle.
    pub idle: Idle,
    /// Ends the agent.
    pub ending: Ending,
    /// How many probes run.
    pub probes: RunningProbes,
    /// Whether its program is being replaced.
    pub updating: Updating,
    /// How a program that was put in place of another one does.
    pub probation: Probation,
}

/// A task of a thread of the pool.
#[derive(Debug)]
pub enum Task {
    /// Runs a command.
    Run(Runnable),
    /// Polls.
    Poll(PollLoop),
    /// Runs an undo that the server has ordered.
    Undo(Box<UndoJob>),
    /// Undoes an attempt whose start was left alone, with this outcome, or removes its files.
    SettleLeftAlone(Arc<Attempt>, Outcome),
    /// Runs a probe that the server has ordered.
    Probe(Box<ProbeJob>),
}

impl Task {
    /// The attempt to run, if it is one.
    pub fn into_runnable(self) -> Option<Runnable> {
        match self {
            Task::Run(runnable) => Some(runnable),
            Task::Poll(_) | Task::Undo(_) | Task::SettleLeftAlone(..) | Task::Probe(_) => None,
        }
    }
}

/// Runs the loop of a thread again should it panic. Without that a bug would leave an agent that polls
/// and does nothing, or the other way round. What the loops share is consistent at any time.
pub fn restart_on_panic(name: &str, body: impl Fn()) {
    while catch_unwind(AssertUnwindSafe(&body)).is_err() {
        pause_after_panic(name);
    }
}

/// Logs that a loop panicked, and waits before it is started again.
pub fn pause_after_panic(name: &str) {
    warn!("the {name} failed (a bug); starting it again");
    std::thread::sleep(PANIC_PAUSE);
}
