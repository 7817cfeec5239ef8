//! The guard: a small process that ends the commands of an agent that was killed.
//!
//! `kill -9` gives an agent no chance to end its commands. So the agent starts a guard, and tells it over
//! a pipe which attempts there are. When the pipe ends, the agent is gone, and the guard ends the processes of
//! the attempts that are still listed. After a clean end none is listed. Lines of the pipe:
//!
//! - `+KEY`: an attempt with this key is about to be started.
//! - `=KEY GROUP`: its command runs in this process group.
//! - `-KEY`: it is over. What it left in the background is to live on.

use super::attempt_processes::AttemptProcesses;
use super::process_table::ProcessTable;
use super::termination::{ProcessTree, Progress, Termination};
use crate::agent::attempt::lock;
use crate::agent::command::runner;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Stdin, Write};
use std::process::{ChildStdin, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The hidden program of the command line.
pub const PROGRAM: &str = "agent-guard";
/// The time from TERM to KILL when the agent is gone.
const GRACE: Duration = Duration::from_secs(5);
/// How long a command whose start was announced may take to show its key. The agent may have been killed
/// before the new process had its environment.
const START_TIME: Duration = Duration::from_millis(100);
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

    /// Lists an attempt: its processes are to end with the agent.
    pub fn add(&self, key: &str) {
        self.send(&format!("+{key}\n"));
    }

    /// Adds the process group of an attempt that is listed.
    pub fn set_group(&self, key: &str, group: Pid) {
        self.send(&format!("={key} {}\n", group.as_raw_nonzero()));
    }

    /// Removes an attempt from the list.
    pub fn remove(&self, key: &str) {
        self.send(&format!("-{key}\n"));
    }

    fn send(&self, line: &str) {
        let mut pipe = lock(&self.pipe);
        let Some(open) = pipe.as_mut() else { return };
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

/// Attempts by their keys, with the process group of those that run.
type Listed = HashMap<String, Option<Pid>>;

/// Reads until the agent is gone; returns what is listed then.
fn read_list(mut lines: impl BufRead) -> Listed {
    let mut listed = Listed::new();
    let mut line = String::new();
    // A line that cannot be read means the end as well.
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        apply(&mut listed, line.trim_end());
        line.clear();
    }
    listed
}

fn apply(listed: &mut Listed, line: &str) {
    if let Some(key) = line.strip_prefix('+') {
        listed.insert(key.to_owned(), None);
    } else if let Some(key) = line.strip_prefix('-') {
        listed.remove(key);
    } else if let Some((key, group)) = line.strip_prefix('=').and_then(|it| it.split_once(' '))
        && let Some(found) = listed.get_mut(key)
        && let Ok(group @ 2..) = group.parse()
    {
        *found = Pid::from_raw(group);
    }
}

/// Ends the processes of all listed attempts.
fn end(listed: Listed) {
    if listed.values().any(Option::is_none) {
        std::thread::sleep(START_TIME);
    }
    let now = Instant::now();
    let attempts = listed.into_iter();
    let mut ending: Vec<(AttemptProcesses, Termination)> = attempts
        .map(|(key, group)| {
            let processes = AttemptProcesses::of_dead_agent(key, group);
            (processes, Termination::new(now, GRACE))
        })
        .collect();
    while !ending.is_empty() {
        let now = Instant::now();
        let mut table = SharedTable::default();
        ending.retain_mut(|(processes, ending)| {
            let mut tree = WithTable(processes, &mut table);
            ending.step(now, &mut tree) == Progress::Pending
        });
        let steps = ending.iter().map(|(_, ending)| ending.next_step());
        if let Some(next) = steps.min() {
            std::thread::sleep(next.saturating_duration_since(now));
        }
    }
}

/// The table of processes of one round, read once for all attempts.
#[derive(Default)]
struct SharedTable(Option<Option<ProcessTable>>);

/// The processes of an attempt, looked for in the table of the round.
struct WithTable<'a>(&'a mut AttemptProcesses, &'a mut SharedTable);

impl ProcessTree for WithTable<'_> {
    fn sweep(&mut self, signal: Signal) -> bool {
        match self.1.0.get_or_insert_with(ProcessTable::read) {
            Some(table) => self.0.sweep_in(table, signal),
            None => self.0.sweep_group(signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_what_was_added_and_not_removed() {
        let lines = "+a\n+b\n=a 10\n-b\nnonsense\n+c\n=c x\n=c 1\n=d 12\n-e\n+f\n=f 13";
        let expected = [("a", Some(10)), ("c", None), ("f", Some(13))];
        let expected = expected.map(|(key, group)| (key.into(), group.and_then(Pid::from_raw)));
        assert_eq!(read_list(lines.as_bytes()), Listed::from(expected));
        assert!(read_list("".as_bytes()).is_empty());
    }
}
