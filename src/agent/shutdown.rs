//! Signals: the first TERM or INT ends the agent in good order, a second one at once. HUP reads the token
//! and `--ca` again. The server can have the agent end in good order, too.
//!
//! In good order means: the agent takes no more work, commands with an undo are ended at once and undone, others get `--grace` to end by themselves, those
//! that still run are ended, every result is reported, and a goodbye is sent. The polls go on meanwhile, so
//! the server knows that the agent lives and drains.

use super::processes::process_table::ProcessTable;
use super::reread;
use super::shared::Agent;
use super::token;
use crate::wire::agent::Goodbye;
use log::{info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long commands that were told to end may take: 5 s from TERM to KILL, and a little.
const STOP_TIMEOUT: Duration = Duration::from_secs(7);
/// How long undos are waited for until it is looked whether they have ended. There is no other limit: the patience of
/// each is one, and the guard does it when there is no more time.
const UNDO_WAIT: Duration = Duration::from_secs(60);
/// How long a server may take to accept the last results.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Two signals this close together count as one: some supervisors signal a process and its group.
const SAME_SIGNAL: Duration = Duration::from_millis(100);
/// The exit code after a second signal is its number plus this, as in shells.
const SIGNALED: i32 = 128;

/// Ends the agent in good order, once.
#[derive(Debug)]
pub struct Ending {
    /// Closed when the agent has ended: nobody waits for signals any more.
    signals: Handle,
    has_begun: AtomicBool,
}

impl Ending {
    /// Of an agent that waits for these signals.
    pub fn new(signals: Handle) -> Self {
        Ending {
            signals,
            has_begun: AtomicBool::new(false),
        }
    }

    /// Whether the agent ends.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }
}

/// Catches the signals from now on.
pub fn catch_signals() -> Result<Signals, String> {
    Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|why| format!("cannot catch signals: {why}"))
}

/// Obeys the signals. Returns when the agent has ended in good order.
pub fn wait(agent: &Arc<Agent>, mut signals: Signals) -> Result<(), String> {
    let mut first: Option<Instant> = None;
    for signal in signals.forever() {
        match first {
            _ if signal == SIGHUP => {
                token::reload(&agent.client);
                reread::reload_authorities(&agent.client);
            }
            None => {
                first = Some(Instant::now());
                let name = if signal == SIGINT { "INT" } else { "TERM" };
                // Act before logging: standard error may block.
                begin(agent)?;
                info!("{name}: taking no more work");
            }
            Some(at) if at.elapsed() < SAME_SIGNAL => {}
            Some(_) => {
                agent.state.kill_all(ProcessTable::read().as_ref());
                warn!("a second signal: killed everything");
                std::process::exit(SIGNALED + signal);
            }
        }
    }
    Ok(())
}

impl Agent {
    /// Ends the agent as after TERM, because of `who`. Whether it had not begun to end.
    pub fn end(self: &Arc<Self>, who: &str) -> bool {
        match begin(self) {
            Ok(true) => info!("{who}: taking no more work, and ending"),
            Ok(false) => return false,
            Err(why) => warn!("{who}: {why}"),
        }
        true
    }
}

/// Ends the agent in another thread: this one waits for the second signal. False if it ends already.
fn begin(agent: &Arc<Agent>) -> Result<bool, String> {
    if agent.ending.has_begun.swap(true, Ordering::AcqRel) {
        return Ok(false);
    }
    let ending = Arc::clone(agent);
    let thread = std::thread::Builder::new().name("shutdown".into());
    let started = thread.spawn(move || {
        end(&ending);
        ending.ending.signals.close();
    });
    match started {
        Ok(_) => Ok(true),
        Err(why) => {
            agent.ending.has_begun.store(false, Ordering::Release);
            Err(format!("cannot end in good order (no thread: {why})"))
        }
    }
}

fn end(agent: &Arc<Agent>) {
    let state = &agent.state;
    let epoch = state.drain();
    let now = Instant::now();
    if !state.wait_until_reported(now) || !state.wait_until_idle(now) {
        if let Err(why) = agent.start_polls(epoch) {
            warn!("cannot poll any more: {why}");
        }
        if !state.wait_until_idle(Instant::now() + Duration::from(agent.config.grace)) {
            state.stop_all();
            info!("the grace is over: ending the commands that still run");
            if !state.wait_until_idle(Instant::now() + STOP_TIMEOUT) {
                state.kill_all(ProcessTable::read().as_ref());
            }
        }
        while !state.wait_until_undone(Instant::now() + UNDO_WAIT) {
            info!("waiting for undos");
        }
        state.nudge();
        if !state.wait_until_reported(Instant::now() + REPORT_TIMEOUT) {
            warn!("the server does not take the last results");
        }
    }
    state.end_polls();
    let goodbye = Goodbye {
        instance: state.instance(),
        holds: state.holds(),
    };
    match agent.client.goodbye(&goodbye) {
        Ok(()) => info!("goodbye"),
        Err(why) => warn!("{why}"),
    }
}
