//! The guard: a small process that ends the commands of an agent that was killed.
//!
//! `kill -9` gives an agent no chance to end its commands. So the agent starts a guard, and tells it over
//! a pipe which process groups there are. When the pipe ends, the agent is gone, and the guard ends the
//! groups that are still listed. After a clean end none is listed. The pipe carries one word per line:
//! `+GROUP` and `-GROUP`.

use super::process_group::ProcessGroup;
use super::termination::{Progress, Termination};
use crate::agent::attempt::lock;
use crate::agent::command::runner;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Stdin, Write};
use std::process::{ChildStdin, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The hidden program of the command line.
pub const PROGRAM: &str = "agent-guard";
/// The time from TERM to KILL when the agent is gone.
const GRACE: Duration = Duration::from_secs(5);
/// How long lines may wait to be read while the agent lives: to wake up for each of them would slow down
/// small commands that come one after the other.
const READ_PERIOD: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The agent's end of the pipe; none when there is no guard.
#[derive(Debug)]
pub struct Guard {
    pipe: Mutex<Option<ChildStdin>>,
}

impl Guard {
    /// Starts a guard. Without one the agent works all the same.
    pub fn start() -> Self {
        let pipe = match runner::spawn_self(&[PROGRAM.into()], Stdio::piped()) {
            // The agent never waits for it: the guard ends after the agent.
            Ok(mut child) => child.stdin.take(),
            Err(why) => {
                warn!(
                    "cannot start the guard ({why}): if this agent is killed, its commands will go on"
                );
                None
            }
        };
        Guard {
            pipe: Mutex::new(pipe),
        }
    }

    /// Lists a group: it is to end with the agent.
    pub fn add(&self, group: Pid) {
        self.send('+', group);
    }

    /// Removes a group from the list: it is dead, or its command has ended and what the command left in
    /// the background is to live on.
    pub fn remove(&self, group: Pid) {
        self.send('-', group);
    }

    fn send(&self, change: char, group: Pid) {
        let mut pipe = lock(&self.pipe);
        let Some(open) = pipe.as_mut() else { return };
        let line = format!("{change}{}\n", group.as_raw_nonzero());
        if let Err(why) = open.write_all(line.as_bytes()) {
            warn!("the guard is gone ({why}): if this agent is killed, its commands will go on");
            *pipe = None;
        }
    }
}

/// The guard's process. Returns when the agent and its commands are gone.
pub fn run() {
    // A signal to the whole session or container also ends the agent; the guard ends after it.
    for signal in [
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGHUP,
    ] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    // The current directory would keep its file system from being unmounted.
    let _ = std::env::set_current_dir("/");
    let listed = read_list(BufReader::new(SlowReader(std::io::stdin())));
    end(listed);
}

/// The pipe, read every [`READ_PERIOD`], and at once when it ends.
struct SlowReader(Stdin);

impl Read for SlowReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // The end of a pipe is reported without being asked for.
        let mut only_the_end = [PollFd::new(&self.0, PollFlags::empty())];
        let _ = poll(&mut only_the_end, Some(&READ_PERIOD));
        Ok(rustix::io::read(&self.0, buffer)?)
    }
}

/// Reads until the agent is gone; returns the groups that are listed then.
fn read_list(mut lines: impl BufRead) -> BTreeSet<i32> {
    let mut groups = BTreeSet::new();
    let mut line = String::new();
    // A line that cannot be read means the end as well.
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

fn end(groups: BTreeSet<i32>) {
    let now = Instant::now();
    let groups = groups.into_iter().filter(|raw| *raw > 1);
    let mut ending: Vec<(ProcessGroup, Termination)> = groups
        .filter_map(Pid::from_raw)
        .map(|group| {
            let mut group = ProcessGroup(group);
            let termination = Termination::begin(now, GRACE, &mut group);
            (group, termination)
        })
        .collect();
    loop {
        let now = Instant::now();
        ending.retain_mut(|(group, ending)| ending.step(now, group) == Progress::Pending);
        let steps = ending.iter().map(|(_, ending)| ending.next_step());
        let Some(next) = steps.min() else { return };
        std::thread::sleep(next.saturating_duration_since(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_what_was_added_and_not_removed() {
        let lines = "+10\n+11\n-10\nnonsense\n+x\n+12\n-99\n+13";
        assert_eq!(read_list(lines.as_bytes()), BTreeSet::from([11, 12, 13]));
        assert!(read_list("".as_bytes()).is_empty());
    }
}
