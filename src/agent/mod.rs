//! The agent: asks the server for orders, runs commands, and reports how they ended.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | the start of the agent |
//! | `shared` | what all threads share |
//! | `poll` | the poll loop: when to ask, and what a failure means |
//! | `orders` | obeying orders; the threads that run commands |
//! | `state` | every attempt the agent knows, and its stage |
//! | `state/undos` | undos and results of probes that the server is to be told |
//! | `state/updates` | what the threads share while the agent's program is replaced |
//! | `state/waits` | waits for something to report, and for the end of what is open |
//! | `recent_ids` | the ids of attempts that are over |
//! | `seen_term` | which answers are of a server that was replaced |
//! | `attempt`, `output` | one attempt and its output, until the server has taken them |
//! | `batch` | what goes into a report, and what its answer means |
//! | `reporter` | when a report is sent, and what a failure means |
//! | `thread_pool` | the threads that poll and run commands |
//! | `backoff` | growing pauses between tries |
//! | `failures` | failed calls in the log |
//! | `log_writer` | the log does not wait for its reader |
//! | `token` | the agent's token, read again when it changes |
//! | `reread` | when a file is read again; the authorities of `--ca` |
//! | `idle` | when the agent ends by itself |
//! | `shutdown` | TERM, INT and the server end the agent, HUP reads the token and `--ca` again |
//! | `files/` | laying files down before a command, handing files back after it |
//! | `undo/` | taking back what a command did |
//! | `update/` | replacing the agent's own program |
//! | `probes/` | probes that the server orders |
//! | `command/` | one command: whether it is allowed, its start, its end |
//! | `processes/` | ending process trees, the guard, process 1 |
//!
//! Threads: the main one waits for signals, one reports, and a pool polls and runs commands. There is one
//! thread for each command that runs. The thread that gets a command in an answer runs it and then reports
//! its result; another one continues the polls. A thread whose command has an undo runs that, too; an undo that the
//! server orders has a thread of its own.
//!
//! The agent listens on no socket, and writes no file of its own accord: only those that a task brings.
//!
//! How to add
//!
//! - *an order of the server*: a field of [`Orders`](crate::wire::agent::Orders), and a loop in
//!   [`Agent::obey`] that says whether it changed anything. Orders are repeated: the second one must
//!   change nothing. The run of a probe alone is handed out once.
//! - *a field of a result*: a field of [`Ended`](crate::wire::agent::Ended) with a default for older
//!   agents, a field of `Outcome` in `attempt`, set in `command/supervisor`, copied in `Attempt::result`.
//! - *a field of a task's detail*: read it in `command/runner`, and fail with a message where it cannot be
//!   honoured. Add it to `command/policy` if it can change what a command does.
//! - *a setting*: a field of `AgentArgs` and one of [`AgentConfig`] in `config/agent`, checked there.
//!   What concerns commands belongs into `CommandPolicy`.
//! - *something that an undo needs*: a field of `UndoPlan` in `undo/plan`, set in `command/undo_plan`. It has to be known
//!   before the command starts: the guard asks nobody.
//! - *a way to end a command*: a variant of `StopReason` in `attempt`, ordered by `Attempt::stop`.

mod attempt;
mod backoff;
mod batch;
pub(crate) mod command;
mod failures;
pub mod files;
pub mod idle;
pub mod log_writer;
mod orders;
mod output;
mod poll;
mod probes;
pub mod processes;
mod recent_ids;
mod reporter;
mod reread;
#[doc(hidden)]
pub mod seen_term;
mod shared;
mod shutdown;
mod state;
mod thread_pool;
mod token;
pub mod undo;
pub mod update;

use crate::client::Client;
use crate::config::AgentConfig;
use command::policy;
use command::runner::Runner;
use command::start_watch::StartWatch;
use idle::Idle;
use log::{info, warn};
use probes::{FILES_PER_PROBE, MAX_PROBES, RunningProbes};
use processes::{inheritance, init};
use reporter::Reporter;
use reread::RereadLimit;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seen_term::SharedTerm;
use shared::Agent;
use shutdown::Ending;
use state::AgentState;
use std::sync::{Arc, Mutex};
use thread_pool::ThreadPool;
use token::TokenReader;
use update::probation::Probation;
use update::{Updating, begin};

/// Files the agent needs open beside those of its commands, in number.
const FILES: u64 = 320;
/// Files per command: three pipes, a pidfd, an eventfd, and the other ends while it starts.
const FILES_PER_JOB: u64 = 8;

/// Runs an agent until it is told to end.
pub fn run(config: AgentConfig) -> Result<(), String> {
    let ended = start(config);
    if let Err(why) = &ended {
        begin::start_failed(why);
    }
    ended
}

fn start(config: AgentConfig) -> Result<(), String> {
    let is_root = rustix::process::geteuid().is_root();
    if is_root && config.refuse_root {
        return Err("this is root, and --refuse-root says not to start as root".into());
    }
    inheritance::clear();
    if init::is_process_1() {
        return init::run();
    }
    let token = token::load()?;
    let signals = shutdown::catch_signals()?;
    let instance = match begin::resumed() {
        Some(resumed) => resumed.pending.instance.clone(),
        None => backoff::random_id()?,
    };
    info!(
        "sidebike {} agent: label {:?}, instance {instance}, registry {}, {} jobs",
        env!("CARGO_PKG_VERSION"),
        config.label,
        config.registry,
        config.jobs,
    );
    if is_root {
        warn!("running as root: so will every command; --refuse-root keeps it from starting");
    }
    token::explain(token.as_ref(), &config.registry);
    if let Some(summary) = policy::summary(&config.policy) {
        info!("{summary}");
    }
    raise_file_limit(config.jobs);
    let client = Client::new(&config.registry)?
        .for_jobs(config.jobs)
        .with_terms(Arc::new(SharedTerm::default()));
    client.set_token(token);
    let agent = Arc::new(Agent {
        client,
        state: AgentState::new(instance, config.jobs, config.idle.max_commands),
        threads: ThreadPool::new(),
        runner: Runner::new(config.policy.clone(), config.label.clone(), &config.tags),
        start_watch: StartWatch::default(),
        reporter: Mutex::new(Reporter::new()),
        token_reader: TokenReader::default(),
        ca_reread: RereadLimit::default(),
        refused_orders: Mutex::default(),
        probes: RunningProbes::default(),
        idle: Idle::default(),
        ending: Ending::new(signals.handle()),
        updating: Updating::default(),
        probation: Probation::default(),
        config,
    });
    agent.connect_guard();
    if let Some(resumed) = begin::resumed() {
        { agent.resume_update(resumed) }.map_err(|why| format!("cannot start a thread: {why}"))?;
    }
    let reporting = Arc::clone(&agent);
    std::thread::Builder::new()
        .name("reporter".into())
        .spawn(move || shared::restart_on_panic("reporter", || reporter::run(&reporting)))
        .and_then(|_| agent.start_polls(0))
        .map_err(|why| format!("cannot start a thread: {why}"))?;
    shutdown::wait(&agent, signals)
}

/// Raises the limit on open files, if the system allows it, so that `jobs` commands can run at once. A
/// limit that is high enough stays as it is: commands inherit it.
fn raise_file_limit(jobs: u32) {
    let limit = getrlimit(Resource::Nofile);
    let probes = FILES_PER_PROBE * MAX_PROBES as u64;
    let needed = FILES + FILES_PER_JOB * u64::from(jobs) + probes;
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
