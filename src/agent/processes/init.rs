//! The duties of process 1.
//!
//! In a container the agent may be the first process. Then every orphan becomes its child, and stays a
//! zombie until process 1 waits for it. Waiting for all children would take the exit codes of commands
//! from their supervisors, so process 1 does nothing else: it starts the real agent, passes signals on,
//! reaps, and ends as the agent ended. Everything else in the container ends with process 1, so it waits for the guard
//! of an agent that was killed: that may have something to undo, and effects on the network of a pod would outlive the
//! container. A guard that only drains pipes of background processes ends then: they end as well.

use super::guard;
use super::process_table::ProcessTable;
use crate::agent::command::launch;
use log::info;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The exit code is the number of the signal that ended the agent plus this, as in shells.
const SIGNALED: i32 = 128;

/// Whether this process has these duties.
pub fn is_process_1() -> bool {
    rustix::process::getpid().is_init()
}

/// Runs the real agent and exits with its exit code. Returns only when the agent cannot be started.
pub fn run() -> Result<(), String> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD])
        .map_err(|why| format!("cannot catch signals: {why}"))?;
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let child =
        launch::spawn_self(&args).map_err(|why| format!("cannot start the agent itself: {why}"))?;
    let agent = Pid::from_child(&child);
    info!("this is process 1: it reaps, the agent is process {agent}");
    let mut ended = None;
    for signal in signals.forever() {
        let forwarded = match signal {
            SIGTERM => Signal::TERM,
            SIGINT => Signal::INT,
            SIGHUP => Signal::HUP,
            _ => {
                ended = reap(agent).or(ended);
                if let Some(status) = ended
                    && !is_guard_at_work()
                {
                    std::process::exit(exit_code(status));
                }
                continue;
            }
        };
        if ended.is_some() {
            // Its number may belong to another process.
            continue;
        }
        // If the agent has just ended, its SIGCHLD follows.
        let _ = kill_process(agent, forwarded);
    }
    Ok(())
}

/// Whether the guard of an agent that is gone lives: it has become a child of this process.
fn is_guard_at_work() -> bool {
    let own = std::process::id() as i32;
    let table = ProcessTable::read().unwrap_or_default();
    let mut children = { table.processes.iter() }.filter(|it| it.parent == own && !it.is_zombie);
    children.any(|child| child.has_first_argument(guard::PROGRAM))
}

/// Reaps every child that has ended. Returns the agent's status if it was one of them.
fn reap(agent: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == agent {
            ended = Some(status);
        }
    }
    ended
}

fn exit_code(status: WaitStatus) -> i32 {
    let signaled = || status.terminating_signal().map(|signal| SIGNALED + signal);
    status.exit_status().or_else(signaled).unwrap_or(1)
}
