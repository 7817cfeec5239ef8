//! The end of an agent: TERM or INT, once politely, twice at once. HUP only reads the token again.
//!
//! Politely: no more work is taken, commands get `--grace` to end by themselves, then they are
//! ended; every result is reported; goodbye. The polls go on meanwhile, so the server knows that
//! the agent is alive and draining.

use super::{Agent, token};
use crate::wire::agent::Goodbye;
use log::{info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Patience with commands that have been told to end: TERM, 5 s, KILL, and a little.
const END_PATIENCE: Duration = Duration::from_secs(7);
/// Patience with a server that does not take the last results.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);
/// Two signals this close are one: some supervisors signal the process and its group.
const SAME_SIGNAL: Duration = Duration::from_millis(100);
/// Added to a signal's number, as shells do, when the agent ends at once.
const SIGNALED: i32 = 128;

/// Waits for the signals and obeys; returns when the agent has ended as it should.
pub fn wait(agent: &Arc<Agent>, mut signals: Signals) -> Result<(), String> {
    let mut first: Option<Instant> = None;
    let handle = signals.handle();
    for signal in signals.forever() {
        match first {
            _ if signal == SIGHUP => token::reload(&agent.client),
            None => {
                first = Some(Instant::now());
                let name = if signal == SIGINT { "INT" } else { "TERM" };
                info!("{name}: taking no more work");
                begin(agent, handle.clone())?;
            }
            Some(at) if at.elapsed() < SAME_SIGNAL => {}
            Some(_) => {
                warn!("a second signal: killing everything");
                agent.board.kill_all();
                std::process::exit(SIGNALED + signal);
            }
        }
    }
    Ok(())
}

/// Catches the signals from now on.
pub fn catch() -> Result<Signals, String> {
    Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|why| format!("cannot catch signals: {why}"))
}

/// Ends the agent in another thread: this one waits for the second signal.
fn begin(agent: &Arc<Agent>, signals: Handle) -> Result<(), String> {
    let agent = Arc::clone(agent);
    std::thread::Builder::new()
        .name("shutdown".into())
        .spawn(move || {
            end(&agent);
            signals.close();
        })
        .map(|_| ())
        .map_err(|why| format!("cannot end in good order (no thread: {why})"))
}

fn end(agent: &Arc<Agent>) {
    let epoch = agent.board.drain();
    let now = Instant::now();
    if !agent.board.wait_until_reported(now) || !agent.board.wait_until_idle(now) {
        if let Err(why) = agent.start_polls(epoch) {
            warn!("cannot poll any more: {why}");
        }
        let grace = Duration::from(agent.config.grace);
        if !agent.board.wait_until_idle(Instant::now() + grace) {
            info!("the grace is over: ending what still runs");
            agent.board.stop_all();
            if !agent.board.wait_until_idle(Instant::now() + END_PATIENCE) {
                agent.board.kill_all();
            }
        }
        agent.board.nudge();
        if !agent
            .board
            .wait_until_reported(Instant::now() + REPORT_PATIENCE)
        {
            warn!("the server does not take the last results");
        }
    }
    agent.board.end_polls();
    let goodbye = Goodbye {
        instance: agent.board.instance(),
        holds: agent.board.holds(),
    };
    match agent.client.goodbye(&goodbye) {
        Ok(()) => info!("goodbye"),
        Err(why) => warn!("{why}"),
    }
}
