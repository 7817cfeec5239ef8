//! Watching one command until it ends: its output, its input, its time, and the order to end it.
//!
//! One thread per command waits for all of them at once with poll(2). A command has ended when its
//! own process, the leader of its process group, has ended; what it left in the background stays.
//! Only when it is being ended (its time is up, it was canceled, the agent ends) the whole group
//! has to be gone.
//!
//! A group's number stays its own while its leader has not been waited for, or any process is in
//! it. So signals are sent before that, or, while the group is being ended, for as long as the last
//! look a few milliseconds ago found somebody in it.

use super::Agent;
use super::group;
use super::held::{Held, Outcome, Stop, Wake};
use crate::wire::agent::Stream;
use crate::wire::duration::TimeSpan;
use crate::wire::task::ExecutionState;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// Read from a stream at once, in bytes: half of what a pipe holds.
const READ_BYTES: usize = 32 * 1024;
/// The same as long as the command says little.
const FIRST_READ_BYTES: usize = 2 * 1024;
/// How long output waits before the reporter is told that there is some.
const SETTLE: Duration = Duration::from_millis(10);
/// How often a system without pidfd is asked whether the leader has ended.
const EXIT_LOOK: Duration = Duration::from_millis(20);
/// How often it is looked whether a group that is being ended is dead.
const GROUP_LOOK: Duration = Duration::from_millis(25);
/// So many looks in a row have to find it dead.
const LOOKS: u32 = 2;
/// Patience after KILL: then it is reported, even if a process hangs in the kernel or nobody reaps
/// the zombies of this container.
const AFTER_KILL: Duration = Duration::from_millis(700);
/// The longest time between TERM and KILL when the agent ends: it is waited for.
const MAX_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How long a command may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until it is ended; none for ever.
    pub timeout: Option<TimeSpan>,
    /// From TERM to KILL.
    pub kill_grace: Duration,
}

/// Text for standard input.
#[derive(Debug)]
struct Feed {
    pipe: OwnedFd,
    text: Vec<u8>,
    at: usize,
}

/// A command that is being ended.
#[derive(Debug)]
struct Ending {
    state: ExecutionState,
    msg: String,
    kill_at: Instant,
    /// Set when KILL was sent.
    give_up_at: Option<Instant>,
    /// Looks in a row that found the group dead.
    found_dead: u32,
}

/// A command that runs.
#[derive(Debug)]
pub struct Watch<'a> {
    agent: &'a Agent,
    held: &'a Held,
    wake: &'a Wake,
    child: Child,
    group: Pid,
    limits: Limits,
    started: Instant,
    stdin: Option<Feed>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Readable when the leader has ended; none on an old kernel, and once it has ended.
    pidfd: Option<OwnedFd>,
    /// The leader has ended, says the pidfd.
    leader_ended: bool,
    ending: Option<Ending>,
    /// The leader's, once it has been waited for.
    exit: Option<ExitStatus>,
    /// When output came that the reporter has not been told of.
    untold: Option<Instant>,
    /// Made when there is something to read: many commands say nothing.
    buffer: Vec<u8>,
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
enum Source {
    Leader,
    Order,
    Output(Stream),
    Input,
}

impl<'a> Watch<'a> {
    /// A command that has just been started.
    pub fn new(
        agent: &'a Agent,
        held: &'a Held,
        wake: &'a Wake,
        mut child: Child,
        stdin: Vec<u8>,
        limits: Limits,
    ) -> Self {
        let group = Pid::from_child(&child);
        let started = Instant::now();
        agent.guard.add(group);
        held.started(started, group);
        // With nothing to read its end is closed here and now.
        let feed = child.stdin.take().filter(|_| !stdin.is_empty());
        Watch {
            agent,
            held,
            wake,
            group,
            limits,
            started,
            stdin: feed.map(|pipe| Feed {
                pipe: nonblocking(pipe.into()),
                text: stdin,
                at: 0,
            }),
            stdout: child.stdout.take().map(|pipe| nonblocking(pipe.into())),
            stderr: child.stderr.take().map(|pipe| nonblocking(pipe.into())),
            pidfd: pidfd_open(group, PidfdFlags::empty()).ok(),
            leader_ended: false,
            child,
            ending: None,
            exit: None,
            untold: None,
            buffer: Vec::new(),
        }
    }

    /// Watches it until it has ended.
    pub fn until_ended(mut self) -> Outcome {
        loop {
            self.wait();
            if let Some(outcome) = self.advance() {
                return outcome;
            }
        }
    }

    /// Waits until something happens or some time is up, and moves the bytes there are.
    fn wait(&mut self) {
        let patience = self.patience();
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let mut happened = [None; 5];
        {
            let (out, err) = (self.stdout.as_ref(), self.stderr.as_ref());
            let input = self.stdin.as_ref().map(|feed| &feed.pipe);
            let watched = [
                (Source::Leader, self.pidfd.as_ref(), PollFlags::IN),
                (Source::Order, Some(self.wake.fd()), PollFlags::IN),
                (Source::Output(Stream::Stdout), out, PollFlags::IN),
                (Source::Output(Stream::Stderr), err, PollFlags::IN),
                (Source::Input, input, PollFlags::OUT),
            ];
            let mut fds = Vec::with_capacity(watched.len());
            let mut sources = Vec::with_capacity(watched.len());
            for (source, fd, flags) in watched {
                if let Some(fd) = fd {
                    fds.push(PollFd::new(fd, flags));
                    sources.push(source);
                }
            }
            if poll(&mut fds, patience.as_ref()).is_err() {
                // Interrupted, or out of memory: the pause keeps the latter from spinning.
                std::thread::sleep(Duration::from_millis(1));
                return;
            }
            for ((fd, source), slot) in fds.iter().zip(sources).zip(&mut happened) {
                let what = fd.revents();
                *slot = (!what.is_empty()).then_some((source, what));
            }
        }
        for (source, what) in happened.into_iter().flatten() {
            match source {
                Source::Leader => self.leader_ended = true,
                Source::Order => self.wake.clear(),
                Source::Output(stream) if what.contains(PollFlags::IN) => {
                    self.read(stream);
                }
                // Nothing is left in it, and nobody can write to it any more.
                Source::Output(Stream::Stdout) => self.stdout = None,
                Source::Output(Stream::Stderr) => self.stderr = None,
                Source::Input => self.feed(),
            }
        }
    }

    /// How long to wait for something to happen; none for ever.
    fn patience(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = |at: Instant| at.saturating_duration_since(now);
        let deadline = match &self.ending {
            None => self
                .limits
                .timeout
                .map(|t| self.started + Duration::from(t)),
            Some(ending) => Some(ending.give_up_at.unwrap_or(ending.kill_at)),
        };
        let look = if self.exit.is_some() {
            Some(GROUP_LOOK)
        } else if self.pidfd.is_none() {
            Some(EXIT_LOOK)
        } else {
            None
        };
        let tell = self.untold.map(|came| until(came + SETTLE));
        let times = [deadline.map(until), look, tell];
        times.into_iter().flatten().min()
    }

    /// Reads once from a stream; the other ones get their turn. How many bytes came.
    fn read(&mut self, stream: Stream) -> usize {
        let pipe = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(open) = pipe.as_ref() else { return 0 };
        if self.buffer.is_empty() {
            self.buffer = vec![0; FIRST_READ_BYTES];
        }
        match rustix::io::read(open, &mut self.buffer[..]) {
            Ok(0) => *pipe = None,
            Ok(read) => {
                self.held.append(stream, &self.buffer[..read]);
                self.untold.get_or_insert_with(Instant::now);
                if read == self.buffer.len() {
                    self.buffer.resize(READ_BYTES, 0);
                }
                return read;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => *pipe = None,
        }
        0
    }

    /// Writes to standard input what it takes now. A command that does not read it does no harm.
    fn feed(&mut self) {
        let Some(feed) = self.stdin.as_mut() else {
            return;
        };
        match rustix::io::write(&feed.pipe, &feed.text[feed.at..]) {
            Ok(written) => feed.at += written,
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Nobody reads any more.
            Err(_) => feed.at = feed.text.len(),
        }
        if feed.at == feed.text.len() {
            self.stdin = None;
        }
    }

    /// Tells the reporter of output that came a moment ago. Not at once: a small command has ended
    /// by then, and its output goes with its result.
    fn tell(&mut self, now: Instant) {
        if self.untold.is_some_and(|came| now >= came + SETTLE) {
            self.untold = None;
            self.agent.board.output_came();
        }
    }

    /// Acts on what has happened; the outcome when the command has ended.
    fn advance(&mut self) -> Option<Outcome> {
        if self.exit.is_none() && self.leader_has_ended() {
            if self.ending.is_none() {
                return Some(self.ended_by_itself());
            }
            self.pidfd = None;
            self.reap();
        }
        let now = Instant::now();
        self.tell(now);
        if self.ending.is_none() {
            if let Some(stop) = self.held.stop_ordered() {
                let grace = match stop {
                    Stop::Cancel => self.limits.kill_grace,
                    Stop::Shutdown => self.limits.kill_grace.min(MAX_SHUTDOWN_GRACE),
                };
                self.begin_ending(ExecutionState::Canceled, stop.words().into(), grace);
            } else if let Some(timeout) = self.limits.timeout
                && now >= self.started + Duration::from(timeout)
            {
                let msg = format!("timed out after {timeout}");
                self.begin_ending(ExecutionState::TimedOut, msg, self.limits.kill_grace);
            }
        }
        self.go_on_ending(now)
    }

    /// Whether the leader has ended; it stays a zombie, and its group's number its own.
    fn leader_has_ended(&self) -> bool {
        if self.leader_ended || self.pidfd.is_some() {
            return self.leader_ended;
        }
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.group), look) {
            Ok(status) => status.is_some(),
            Err(Errno::INTR) => false,
            // Somebody else has waited for it.
            Err(_) => true,
        }
    }

    fn reap(&mut self) {
        self.exit = Some(self.child.wait().unwrap_or_else(|why| {
            warn!("a command's exit code is lost: {why}");
            ExitStatus::from_raw(0xff00)
        }));
    }

    /// TERM to the whole group.
    fn begin_ending(&mut self, state: ExecutionState, msg: String, grace: Duration) {
        self.held.ending();
        let _ = kill_process_group(self.group, Signal::TERM);
        self.ending = Some(Ending {
            state,
            msg,
            kill_at: Instant::now() + grace,
            give_up_at: None,
            found_dead: 0,
        });
    }

    /// KILL when the grace is over; the outcome when the group is dead.
    fn go_on_ending(&mut self, now: Instant) -> Option<Outcome> {
        let reaped = self.exit.is_some();
        let ending = self.ending.as_mut()?;
        if reaped && group::is_dead(self.group) {
            ending.found_dead += 1;
        } else {
            ending.found_dead = 0;
        }
        if ending.found_dead < LOOKS {
            match ending.give_up_at {
                None if now >= ending.kill_at => {
                    let _ = kill_process_group(self.group, Signal::KILL);
                    ending.give_up_at = Some(now + AFTER_KILL);
                    return None;
                }
                Some(at) if now >= at => {
                    warn!("process group {} outlives KILL", self.group);
                }
                _ => return None,
            }
        }
        // For one that both looks may have missed; the zombies do not mind.
        let _ = kill_process_group(self.group, Signal::KILL);
        let (state, msg) = (ending.state, std::mem::take(&mut ending.msg));
        self.read_the_rest();
        self.held.group_gone();
        // An unreaped leader stays listed: its number cannot be anybody else's.
        if reaped {
            self.agent.guard.remove(self.group);
        }
        Some(self.outcome(state, msg))
    }

    fn ended_by_itself(&mut self) -> Outcome {
        self.read_the_rest();
        self.held.group_gone();
        self.agent.guard.remove(self.group);
        self.reap();
        let (code, signal) = self
            .exit
            .map_or((None, None), |exit| (exit.code(), exit.signal()));
        let (state, msg) = match (code, signal) {
            (Some(0), _) => (ExecutionState::Succeeded, String::new()),
            (Some(code), _) => (ExecutionState::Failed, format!("exit code {code}")),
            (None, Some(signal)) => (
                ExecutionState::Failed,
                format!("killed by {}", signal_name(signal)),
            ),
            (None, None) => (ExecutionState::Failed, "ended, nobody knows how".into()),
        };
        self.outcome(state, msg)
    }

    /// Reads what is in the pipes now, and not what is written later. Pipes that somebody may still
    /// write to are kept open elsewhere.
    fn read_the_rest(&mut self) {
        self.stdin = None;
        for stream in [Stream::Stdout, Stream::Stderr] {
            let pipe = match stream {
                Stream::Stdout => self.stdout.as_ref(),
                Stream::Stderr => self.stderr.as_ref(),
            };
            let there = pipe.and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok());
            let mut left = usize::try_from(there.unwrap_or(0)).unwrap_or(0);
            while left > 0 {
                match self.read(stream) {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
        }
        for pipe in [self.stdout.take(), self.stderr.take()]
            .into_iter()
            .flatten()
        {
            if is_still_open(&pipe) {
                self.agent.leftovers.take(pipe);
            }
        }
    }

    fn outcome(&self, state: ExecutionState, msg: String) -> Outcome {
        let at = Instant::now();
        let signal = self.exit.and_then(|exit| exit.signal());
        Outcome {
            state,
            exit_code: self.exit.and_then(|exit| exit.code()),
            signal: signal.map(signal_name),
            msg,
            duration: Some(at - self.started),
            at,
        }
    }
}

/// Our end of a pipe, which is not to block; the command's end is another matter.
fn nonblocking(pipe: OwnedFd) -> OwnedFd {
    if let Err(why) = rustix::io::ioctl_fionbio(&pipe, true) {
        warn!("a pipe cannot be made non-blocking: {why}");
    }
    pipe
}

/// Whether somebody holds the other end of a pipe.
fn is_still_open(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
    let now = Timespec::default();
    poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::HUP)
}

fn signal_name(signal: i32) -> String {
    signal_hook::low_level::signal_name(signal)
        .map_or_else(|| format!("signal {signal}"), str::to_owned)
}
