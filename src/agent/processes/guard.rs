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
use crate::agent::undo::plan::UndoPlan;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{BufRead, BufReader, Read, Stdin};
use std::process::{ChildStdin, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The hidden program of the command line.
pub const PROGRAM: &str = "agent-guard";
/// The time from TERM to KILL when the agent is gone.
const GRACE: Duration = Duration::from_secs(5);
/// How long a command whose start was announced may take to show its key. When the agent was killed, the new
/// process may have had the agent's environment still: a program on a slow disk takes a while to be executed.
const START_TIME: Duration = Duration::from_secs(10);
/// The pause between looks for such a command.
const START_LOOK_PERIOD: Duration = Duration::from_millis(100);
/// How long lines may wait to be read while the agent lives: to wake up for each of them would slow down
/// small commands that come one after the other.
const READ_PERIOD: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// Bytes read at once: the capacity of a pipe.
const READ_BYTES: usize = 64 * 1024;
/// Lines kept for a guard that does not read, in number: those of more commands than can run at once.
const MAX_UNSENT: usize = 10_000;

/// The agent's end of the pipe. Threads that supervise commands write to it, so a guard that does not read
/// (because it was stopped, or has no time) must not block them: lines that the pipe does not take are kept.
#[derive(Debug)]
pub struct Guard {
    pipe: Mutex<Pipe>,
}

#[derive(Debug)]
struct Pipe {
    /// None when there is no guard.
    stdin: Option<ChildStdin>,
    unsent: VecDeque<Line>,
}

/// A line of the pipe.
#[derive(Debug, PartialEq)]
enum Line {
    Add(String),
    SetGroup(String, Pid),
    Remove(String),
}

impl Guard {
    /// Starts a guard. Without one the agent works all the same.
    pub fn start() -> Self {
        let stdin = runner::spawn_self(&[PROGRAM.into()], Stdio::piped()).and_then(|mut child| {
            // The agent never waits for it: the guard ends after the agent.
            let stdin = child.stdin.take();
            if let Some(stdin) = &stdin {
                rustix::io::ioctl_fionbio(stdin, true)?;
            }
            Ok(stdin)
        });
        let stdin = stdin.unwrap_or_else(|why| {
            warn!(
                "cannot start the guard ({why}): if this agent is killed, its commands will go on"
            );
            None
        });
        Guard {
            pipe: Mutex::new(Pipe {
                stdin,
                unsent: VecDeque::new(),
            }),
        }
    }

    /// Lists an attempt: its processes are to end with the agent.
    pub fn add(&self, key: &str) {
        self.send(Line::Add(key.to_owned()));
    }

    /// Adds the process group of an attempt that is listed.
    pub fn set_group(&self, key: &str, group: Pid) {
        self.send(Line::SetGroup(key.to_owned(), group));
    }

    /// Removes an attempt from the list.
    pub fn remove(&self, key: &str) {
        self.send(Line::Remove(key.to_owned()));
    }

    /// Lists an attempt with an undo: its processes are to end with the agent. The error says why it is not listed.
    pub fn arm(&self, plan: &UndoPlan) -> Result<(), String> {
        plan.to_record()?;
        self.add(&plan.key);
        match lock(&self.pipe).stdin {
            Some(_) => Ok(()),
            None => Err("there is no guard".into()),
        }
    }

    /// Removes an attempt with an undo from the list.
    pub fn disarm(&self, key: &str) {
        self.remove(key);
    }

    /// The agent runs the undo of an attempt that is listed: it stays on the list.
    pub fn undoing(&self, _key: &str) {
        self.flush();
    }

    /// The agent lives, and heard of the server so long ago. While it does, the guard has nothing to do.
    pub fn contact(&self, _age: Duration) {
        self.flush();
    }

    /// Sends the lines that the pipe did not take before.
    pub fn flush(&self) {
        lock(&self.pipe).flush();
    }

    fn send(&self, line: Line) {
        let mut pipe = lock(&self.pipe);
        if pipe.stdin.is_some() {
            pipe.push(line);
            pipe.flush();
        }
    }
}

impl Pipe {
    /// Keeps a line. If the guard has not been told of the attempt that it removes, it need not be.
    fn push(&mut self, line: Line) {
        if let Line::Remove(key) = &line
            && self
                .unsent
                .iter()
                .any(|it| matches!(it, Line::Add(added) if added == key))
        {
            self.unsent.retain(|it| it.key() != key);
        } else {
            self.unsent.push_back(line);
        }
    }

    fn flush(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        let mut result = Ok(());
        while let Some(line) = self.unsent.front() {
            // A line is shorter than PIPE_BUF: it is written whole or not at all.
            match rustix::io::write(stdin, line.to_string().as_bytes()) {
                Ok(_) => drop(self.unsent.pop_front()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.unsent.len() > MAX_UNSENT => {
                    result = Err("it does not read".to_owned());
                    break;
                }
                Err(Errno::AGAIN) => break,
                Err(why) => {
                    result = Err(why.to_string());
                    break;
                }
            }
        }
        if let Err(why) = result {
            self.stdin = None;
            self.unsent = VecDeque::new();
            warn!("the guard is gone ({why}): if this agent is killed, its commands will go on");
        }
    }
}

impl Line {
    fn key(&self) -> &str {
        match self {
            Line::Add(key) | Line::SetGroup(key, _) | Line::Remove(key) => key,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Add(key) => writeln!(f, "+{key}"),
            Line::SetGroup(key, group) => writeln!(f, "={key} {}", group.as_raw_nonzero()),
            Line::Remove(key) => writeln!(f, "-{key}"),
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
    let pipe = SlowReader(std::io::stdin());
    let listed = read_list(BufReader::with_capacity(READ_BYTES, pipe));
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
    let begun = Instant::now();
    let mut ending: Vec<Ending> = listed
        .into_iter()
        .map(|(key, group)| Ending::new(key, group, begun))
        .collect();
    while !ending.is_empty() {
        let now = Instant::now();
        let mut table = SharedTable::default();
        ending.retain_mut(|one| {
            let mut tree = WithTable(&mut one.processes, &mut table);
            if one.termination.step(now, &mut tree) == Progress::Pending {
                return true;
            }
            let may_start = one.group.is_none() && now < begun + START_TIME;
            if may_start {
                // From the beginning: a process that was looked at may have the key by then.
                *one = Ending::new(std::mem::take(&mut one.key), None, now + START_LOOK_PERIOD);
            }
            may_start
        });
        let steps = ending.iter().map(|one| one.termination.next_step());
        if let Some(next) = steps.min() {
            std::thread::sleep(next.saturating_duration_since(now));
        }
    }
}

/// An attempt whose processes are being ended.
struct Ending {
    key: String,
    group: Option<Pid>,
    processes: AttemptProcesses,
    termination: Termination,
}

impl Ending {
    /// Begins at a point in time.
    fn new(key: String, group: Option<Pid>, at: Instant) -> Self {
        Ending {
            processes: AttemptProcesses::of_dead_agent(key.clone(), group),
            termination: Termination::new(at, GRACE),
            key,
            group,
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
    fn a_guard_that_does_not_read_is_told_what_still_runs() {
        let key = |n: u32| n.to_string();
        let mut pipe = Pipe {
            stdin: None,
            unsent: VecDeque::from([Line::Remove(key(0))]),
        };
        for n in 1..=100 {
            pipe.push(Line::Add(key(n)));
            pipe.push(Line::SetGroup(key(n), Pid::INIT));
            if n != 50 {
                pipe.push(Line::Remove(key(n)));
            }
        }
        let lines: String = pipe.unsent.iter().map(Line::to_string).collect();
        assert_eq!(lines, "-0\n+50\n=50 1\n");
    }

    #[test]
    fn the_list_is_what_was_added_and_not_removed() {
        let lines = "+a\n+b\n=a 10\n-b\nnonsense\n+c\n=c x\n=c 1\n=d 12\n-e\n+f\n=f 13";
        let expected = [("a", Some(10)), ("c", None), ("f", Some(13))];
        let expected = expected.map(|(key, group)| (key.into(), group.and_then(Pid::from_raw)));
        assert_eq!(read_list(lines.as_bytes()), Listed::from(expected));
        assert!(read_list("".as_bytes()).is_empty());
    }
}
