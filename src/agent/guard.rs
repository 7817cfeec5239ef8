//! The guard: a killed agent leaves nothing running.
//!
//! `kill -9` gives an agent no chance to end its commands. So it starts a tiny process with it, and
//! tells it over a pipe which process groups there are. When the pipe ends, the agent is gone, and
//! whatever is still listed is ended: TERM, then KILL. On a clean end nothing is listed. Between
//! the agent and the guard there is one word per line: `+GROUP` and `-GROUP`.

use super::group;
use super::held::lock;
use super::runner;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Stdin, Write};
use std::process::{ChildStdin, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The hidden program of the command line.
pub const PROGRAM: &str = "agent-guard";
/// Time between TERM and KILL once the agent is gone.
const GRACE: Duration = Duration::from_secs(5);
/// How long lines may wait to be read while the agent lives: to wake up for each of them would slow
/// down small commands that come one after the other.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// How often it is looked whether the groups are gone.
const LOOK: Duration = Duration::from_millis(50);

/// The agent's end of the pipe; none when there is no guard.
#[derive(Debug)]
pub struct Guard {
    pipe: Mutex<Option<ChildStdin>>,
}

impl Guard {
    /// Starts one. Without it the agent works all the same.
    pub fn start() -> Self {
        let pipe = match runner::spawn_self(&[PROGRAM.into()], Stdio::piped()) {
            // It is never waited for: it outlives the agent by design.
            Ok(mut child) => child.stdin.take(),
            Err(why) => {
                warn!(
                    "cannot start the guard ({why}): should this agent be killed, its commands will go on"
                );
                None
            }
        };
        Guard {
            pipe: Mutex::new(pipe),
        }
    }

    /// This group dies with the agent.
    pub fn add(&self, group: Pid) {
        self.say('+', group);
    }

    /// This group is gone, or it may stay: its command has ended, and what it left in the
    /// background is meant to live.
    pub fn remove(&self, group: Pid) {
        self.say('-', group);
    }

    fn say(&self, what: char, group: Pid) {
        let mut pipe = lock(&self.pipe);
        let Some(open) = pipe.as_mut() else { return };
        let line = format!("{what}{}\n", group.as_raw_nonzero());
        if let Err(why) = open.write_all(line.as_bytes()) {
            warn!(
                "the guard is gone ({why}): should this agent be killed, its commands will go on"
            );
            *pipe = None;
        }
    }
}

/// The guard itself; returns when its work is done.
pub fn run() {
    // Whoever ends the agent's session or container politely ends the agent; the guard follows it.
    for signal in [
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGHUP,
    ] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    // It must not keep a file system busy.
    let _ = std::env::set_current_dir("/");
    let left = listen(BufReader::new(Unhurried(std::io::stdin())));
    end(left);
}

/// The pipe, of which only the end is news at once.
struct Unhurried(Stdin);

impl Read for Unhurried {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // That nobody is there any more is told without asking for it.
        let mut only_its_end = [PollFd::new(&self.0, PollFlags::empty())];
        let _ = poll(&mut only_its_end, Some(&PAUSE));
        Ok(rustix::io::read(&self.0, buffer)?)
    }
}

/// Reads the list until the agent is gone.
fn listen(mut lines: impl BufRead) -> BTreeSet<i32> {
    let mut groups = BTreeSet::new();
    let mut line = String::new();
    // A line that cannot be read is the end as well.
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        let word = line.trim_end();
        if let Some(group) = word.strip_prefix('+').and_then(|n| n.parse().ok()) {
            groups.insert(group);
        } else if let Some(group) = word.strip_prefix('-').and_then(|n| n.parse::<i32>().ok()) {
            groups.remove(&group);
        }
        line.clear();
    }
    groups
}

/// Ends the groups that are left.
fn end(groups: BTreeSet<i32>) {
    let mut groups: Vec<Pid> = groups
        .into_iter()
        .filter(|raw| *raw > 1)
        .filter_map(Pid::from_raw)
        .collect();
    groups.retain(|group| kill_process_group(*group, Signal::TERM).is_ok());
    let deadline = Instant::now() + GRACE;
    while !groups.is_empty() && Instant::now() < deadline {
        std::thread::sleep(LOOK);
        groups.retain(|group| !group::is_dead(*group));
    }
    for group in groups {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_what_was_added_and_not_removed() {
        let said = "+10\n+11\n-10\nnonsense\n+x\n+12\n-99\n+13";
        assert_eq!(listen(said.as_bytes()), BTreeSet::from([11, 12, 13]));
        assert!(listen("".as_bytes()).is_empty());
    }
}
