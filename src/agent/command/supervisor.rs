//! Supervising one command until it has ended: its output, its input, its time-out, orders to end it.
//!
//! One thread per command waits for all of them with poll(2). A command has ended when its own process,
//! the leader of its process group, has ended; what it left in the background lives on. Only a command that
//! is ended by the agent (its time is up, it was canceled, the agent shuts down) or that has an undo ends with all
//! processes of its attempt. Its leader is reaped after that: until then the number of the group cannot belong to another
//! one.

use super::orphaned_pipes::OrphanedPipes;
use super::output_pipes::{OutputOrder, OutputPipes, nonblocking};
use super::script::TemporaryFile;
use super::survivors::Survivors;
use crate::agent::attempt::{Attempt, Outcome, StopReason, Waker};
use crate::agent::processes::attempt_processes::AttemptProcesses;
use crate::agent::processes::guard::Guard;
use crate::agent::processes::out_of_memory;
use crate::agent::processes::process_table::ProcessTable;
use crate::agent::processes::termination::{Progress, Termination};
use crate::agent::state::AgentState;
use crate::agent::undo::deadman::{Deadman, silence};
use crate::agent::undo::machine::Event;
use crate::wire::agent::Stream;
use crate::wire::duration::TimeSpan;
use crate::wire::signal;
use crate::wire::task::ExecutionState;
use crate::wire::undo::UndoReason;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, waitid};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// Bytes read from a stream at once: half the capacity of a pipe.
const READ_BYTES: usize = 32 * 1024;
/// The same as long as the command writes little.
const FIRST_READ_BYTES: usize = 2 * 1024;
/// How long output waits before the reporter is told of it. A small command has ended by then, and its
/// output is sent together with its result.
const SETTLE: Duration = Duration::from_millis(10);
/// How long a pipe that is still open when the command has ended is read. What the command started to handle
/// its output, as with `exec > >(tee log)`, writes the last of it now. A process that stays in the background
/// delays the result by this much.
const LAST_OUTPUT: Duration = Duration::from_millis(100);
/// How often a system without pidfd is asked whether the leader has ended.
const EXIT_LOOK: Duration = Duration::from_millis(20);
/// The longest time between TERM and KILL when the agent shuts down.
const MAX_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// The same for a command with an undo: a container has ten seconds in all.
const MAX_SHUTDOWN_GRACE_WITH_UNDO: Duration = Duration::from_secs(2);
/// How often the guard is told that the agent lives, while a command with an undo runs. It is also how long after a
/// suspended machine wakes the silence of the server is noticed.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
/// How long poll(2) is not called again after it failed for lack of memory.
const POLL_FAILED_PAUSE: Duration = Duration::from_millis(1);

/// The exit code of a shell whose command was ended by KILL.
const KILLED_IN_SHELL: i32 = 128 + libc::SIGKILL;

/// How long a command may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The time after which it is ended; none for ever.
    pub timeout: Option<TimeSpan>,
    /// The time from TERM to KILL.
    pub kill_grace: Duration,
    /// It has an undo, with this dead man's switch.
    pub undo: Option<Deadman>,
}

/// A command that has just been started.
#[derive(Debug)]
pub struct Started {
    /// Its process, the leader of a group of its own.
    pub child: Child,
    /// The file of its script, kept until it has ended.
    pub script: Option<TemporaryFile>,
    /// The key of the attempt, in the environment of the command.
    pub key: String,
    /// Text for standard input.
    pub stdin: Vec<u8>,
    /// Where its output comes from.
    pub output: OutputPipes,
    /// How long it may take.
    pub limits: Limits,
}

impl Started {
    /// Kills it: nobody waits for it any more.
    pub fn kill(&self) {
        let group = Pid::from_child(&self.child);
        let mut processes = AttemptProcesses::new(self.key.clone(), group);
        match ProcessTable::read() {
            Some(table) => processes.sweep_in(&table, Signal::KILL),
            None => processes.sweep_group(Signal::KILL),
        };
    }
}

/// Text for standard input.
#[derive(Debug)]
struct Input {
    pipe: OwnedFd,
    text: Vec<u8>,
    written: usize,
}

/// A command that is being ended.
#[derive(Debug)]
struct Ending {
    /// How the attempt ended and why; none if its own process has ended by itself, and what it left is being ended.
    verdict: Option<(ExecutionState, String)>,
    begun: Instant,
    processes: AttemptProcesses,
    termination: Termination,
}

/// A command that runs.
#[derive(Debug)]
pub struct Supervisor<'a> {
    state: &'a AgentState,
    attempt: &'a Attempt,
    guard: &'a Guard,
    orphaned_pipes: &'a OrphanedPipes,
    survivors: &'a Survivors,
    waker: &'a Waker,
    /// The leader of the group; none once it was given to the survivors.
    child: Option<Child>,
    /// Removed when the command has ended.
    _script: Option<TemporaryFile>,
    group: Pid,
    /// The key of the attempt.
    key: String,
    limits: Limits,
    started: Instant,
    stdin: Option<Input>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Which of the two became readable first.
    output_order: Option<OutputOrder>,
    /// Readable when the leader has ended; none on an old kernel.
    pidfd: Option<OwnedFd>,
    /// The leader has ended.
    leader_ended: bool,
    /// When the leader ended by itself while a pipe was still open.
    ended_at: Option<Instant>,
    ending: Option<Ending>,
    /// The leader's status, once it has been reaped.
    exit: Option<ExitStatus>,
    /// How many processes the system had killed for lack of memory when the command started.
    kills_before: Option<u64>,
    /// When the guard is told next that the agent lives; only of a command with an undo.
    next_heartbeat: Instant,
    /// When output came of which the reporter has not been told.
    unannounced: Option<Instant>,
    /// Allocated with the first output: many commands write nothing.
    buffer: Vec<u8>,
}

/// What a descriptor in poll(2) belongs to.
#[derive(Debug, Clone, Copy)]
enum Source {
    Leader,
    Order,
    Output(Stream),
    Input,
}

impl<'a> Supervisor<'a> {
    /// Takes over a command that has just been started.
    pub fn new(
        state: &'a AgentState,
        attempt: &'a Attempt,
        guard: &'a Guard,
        orphaned_pipes: &'a OrphanedPipes,
        survivors: &'a Survivors,
        waker: &'a Waker,
        started: Started,
    ) -> Self {
        let Started {
            mut child,
            script,
            key,
            stdin,
            output,
            limits,
        } = started;
        let group = Pid::from_child(&child);
        let started = Instant::now();
        guard.set_group(&key, group);
        attempt.started(started, &key, group);
        // While the new process is busy with its start.
        out_of_memory::prefer_as_victim(group);
        let kills_before = out_of_memory::kills();
        // Without a text the pipe is closed here, and the command reads the end of its input.
        let input = child.stdin.take().filter(|_| !stdin.is_empty());
        Supervisor {
            state,
            attempt,
            guard,
            orphaned_pipes,
            survivors,
            waker,
            group,
            key,
            limits,
            started,
            stdin: input.map(|pipe| Input {
                pipe: nonblocking(pipe.into()),
                text: stdin,
                written: 0,
            }),
            stdout: Some(output.stdout),
            stderr: output.stderr,
            output_order: output.order,
            pidfd: pidfd_open(group, PidfdFlags::empty()).ok(),
            leader_ended: false,
            ended_at: None,
            child: Some(child),
            _script: script,
            ending: None,
            exit: None,
            kills_before,
            next_heartbeat: started,
            unannounced: None,
            buffer: Vec::new(),
        }
    }

    /// Supervises the command until it has ended.
    pub fn run(mut self) -> Outcome {
        loop {
            self.wait();
            if let Some(outcome) = self.advance() {
                return outcome;
            }
        }
    }

    /// Waits for an event or until a time is up, and reads and writes what is ready.
    fn wait(&mut self) {
        let timeout = self.next_wakeup();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut happened = [None; 5];
        {
            let (out, err) = (self.stdout.as_ref(), self.stderr.as_ref());
            let input = self.stdin.as_ref().map(|input| &input.pipe);
            let watched = [
                (Source::Leader, self.pidfd.as_ref(), PollFlags::IN),
                (Source::Order, Some(self.waker.fd()), PollFlags::IN),
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
            if poll(&mut fds, timeout.as_ref()).is_err() {
                // Interrupted by a signal, or out of memory.
                std::thread::sleep(POLL_FAILED_PAUSE);
                return;
            }
            for ((fd, source), slot) in fds.iter().zip(sources).zip(&mut happened) {
                let what = fd.revents();
                *slot = (!what.is_empty()).then_some((source, what));
            }
        }
        let has_output =
            |slot: &Option<(Source, PollFlags)>| matches!(slot, Some((Source::Output(_), _)));
        if happened.iter().any(has_output) && self.first_stream() == Stream::Stderr {
            happened.sort_by_key(|slot| match slot {
                Some((Source::Output(Stream::Stderr), _)) => 0,
                _ => 1,
            });
        }
        for (source, what) in happened.into_iter().flatten() {
            match source {
                Source::Leader => self.leader_ended = true,
                Source::Order => self.waker.clear(),
                Source::Output(stream) if what.contains(PollFlags::IN) => {
                    self.read(stream);
                }
                // The pipe is empty, and no process can write to it any more.
                Source::Output(Stream::Stdout) => self.stdout = None,
                Source::Output(Stream::Stderr) => self.stderr = None,
                Source::Input => self.write_input(),
            }
        }
    }

    /// The stream that has had unread output for longer, as far as the system tells.
    fn first_stream(&self) -> Stream {
        let order = self.output_order.as_ref();
        order.and_then(OutputOrder::first).unwrap_or(Stream::Stdout)
    }

    /// The time until something is due; none when only events matter.
    fn next_wakeup(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = |at: Instant| at.saturating_duration_since(now);
        let deadline = match (&self.ending, self.ended_at, self.limits.timeout) {
            (Some(ending), _, _) => Some(ending.termination.next_step()),
            (None, Some(at), _) => Some(at + LAST_OUTPUT),
            (None, None, Some(timeout)) => Some(self.started + Duration::from(timeout)),
            (None, None, None) => None,
        };
        let exit_look = (!self.leader_ended && self.pidfd.is_none()).then_some(EXIT_LOOK);
        let announce = self.unannounced.map(|came| until(came + SETTLE));
        let times = [
            deadline.map(until),
            exit_look,
            announce,
            self.until_silence(),
            self.limits.undo.map(|_| until(self.next_heartbeat)),
        ];
        times.into_iter().flatten().min()
    }

    /// How long the server may still be silent; none if that does not matter, or no more.
    fn until_silence(&self) -> Option<Duration> {
        let Deadman(limit) = self.limits.undo.filter(|_| self.ending.is_none())?;
        Some(Duration::from(limit?).saturating_sub(self.state.contact.age()))
    }

    /// Tells the guard that the agent lives, if that is due.
    fn heartbeat(&mut self, now: Instant) {
        if self.limits.undo.is_some() && now >= self.next_heartbeat {
            self.next_heartbeat = now + HEARTBEAT_PERIOD;
            self.guard.contact(self.state.contact.age());
        }
    }

    /// Reads once from a stream: further bytes have to wait until the other descriptors were served.
    /// Returns how many bytes came.
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
                let for_undo = self.attempt.append(stream, &self.buffer[..read]);
                if for_undo > 0 {
                    self.guard.output(&self.key, &self.buffer[..for_undo]);
                }
                self.unannounced.get_or_insert_with(Instant::now);
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

    /// Writes as much to standard input as it takes now. A command need not read it.
    fn write_input(&mut self) {
        let Some(input) = self.stdin.as_mut() else {
            return;
        };
        match rustix::io::write(&input.pipe, &input.text[input.written..]) {
            Ok(written) => input.written += written,
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The command has closed it.
            Err(_) => input.written = input.text.len(),
        }
        if input.written == input.text.len() {
            self.stdin = None;
        }
    }

    /// Tells the reporter of output that came [`SETTLE`] ago.
    fn announce_output(&mut self, now: Instant) {
        if self.unannounced.is_some_and(|came| now >= came + SETTLE) {
            self.unannounced = None;
            self.state.output_ready();
        }
    }

    /// Acts on what has happened. Returns the outcome when the command has ended.
    fn advance(&mut self) -> Option<Outcome> {
        let now = Instant::now();
        self.heartbeat(now);
        if self.notice_exit() {
            if self.ending.is_none() && self.limits.undo.is_some() {
                // The undo must not meet anything of the command.
                self.stdin = None;
                self.begin_ending(now, None, UndoReason::Ended, self.limits.kill_grace);
            }
            let Some(ending) = &mut self.ending else {
                self.read_what_is_there();
                if !self.has_open_pipe() {
                    return Some(self.ended_by_itself(now));
                }
                self.stdin = None;
                self.ended_at = Some(now);
                return None;
            };
            ending.termination.look_now(now);
            if !ProcessTable::is_available() {
                // Without /proc a zombie cannot be told from a live process.
                self.reap();
            }
        }
        self.announce_output(now);
        if let Some(at) = self.ended_at {
            let is_over = now >= at + LAST_OUTPUT || !self.has_open_pipe();
            return is_over.then(|| self.ended_by_itself(at));
        }
        if self.ending.is_none() {
            if let Some(reason) = self.attempt.stop_reason() {
                let grace = match reason {
                    StopReason::Canceled
                    | StopReason::Stopped
                    | StopReason::Forgotten
                    | StopReason::Unguarded
                    | StopReason::TakenOver => self.limits.kill_grace,
                    StopReason::Shutdown if self.limits.undo.is_some() => {
                        self.limits.kill_grace.min(MAX_SHUTDOWN_GRACE_WITH_UNDO)
                    }
                    StopReason::Shutdown => self.limits.kill_grace.min(MAX_SHUTDOWN_GRACE),
                };
                let verdict = (reason.state(), reason.text().into());
                self.begin_ending(now, Some(verdict), reason.undo_reason(), grace);
            } else if let Some(timeout) = self.limits.timeout
                && now >= self.started + Duration::from(timeout)
            {
                let verdict = (
                    ExecutionState::TimedOut,
                    format!("timed out after {timeout}"),
                );
                let grace = self.limits.kill_grace;
                self.begin_ending(now, Some(verdict), UndoReason::TimedOut, grace);
            } else if self.until_silence() == Some(Duration::ZERO) {
                let limit = { self.limits.undo }.and_then(|it| it.0).unwrap_or_default();
                let verdict = (ExecutionState::Failed, silence(limit));
                let grace = self.limits.kill_grace;
                self.begin_ending(now, Some(verdict), UndoReason::Deadman, grace);
            }
        }
        self.continue_ending(now)
    }

    /// Whether the leader has ended since the last call. It is not reaped here: as long as it is a zombie,
    /// the number of its group cannot belong to another one.
    fn notice_exit(&mut self) -> bool {
        if self.leader_ended {
            // Poll(2) has reported it, or an earlier call.
            return self.pidfd.take().is_some();
        }
        if self.pidfd.is_some() {
            return false;
        }
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.leader_ended = match waitid(WaitId::Pid(self.group), look) {
            Ok(status) => status.is_some(),
            Err(Errno::INTR) => false,
            // It has been reaped elsewhere.
            Err(_) => true,
        };
        self.leader_ended
    }

    fn reap(&mut self) {
        let Some(child) = self.child.as_mut().filter(|_| self.exit.is_none()) else {
            return;
        };
        self.exit = Some(child.wait().unwrap_or_else(|why| {
            warn!("the exit code of a command is lost: {why}");
            ExitStatus::from_raw(0xff00)
        }));
    }

    fn begin_ending(
        &mut self,
        now: Instant,
        verdict: Option<(ExecutionState, String)>,
        reason: UndoReason,
        grace: Duration,
    ) {
        self.attempt.advance(Event::Ended(reason));
        self.attempt.ending();
        self.ending = Some(Ending {
            verdict,
            begun: now,
            processes: AttemptProcesses::new(self.key.clone(), self.group),
            termination: Termination::new(now, grace),
        });
    }

    /// Returns the outcome when all processes are dead, or survive KILL.
    fn continue_ending(&mut self, now: Instant) -> Option<Outcome> {
        let ending = self.ending.as_mut()?;
        let progress = ending.termination.step(now, &mut ending.processes);
        if progress == Progress::Pending {
            return None;
        }
        let (verdict, begun) = (ending.verdict.take(), ending.begun);
        let survivors = (progress == Progress::Survived).then(|| {
            let living = ending.processes.describe_living();
            let living = living.unwrap_or_else(|| format!("process group {}", self.group));
            warn!("cannot end {living}");
            format!("could not be ended: {living}")
        });
        self.read_the_rest();
        self.attempt.release_processes();
        // The guard has an attempt with an undo on its list until it is undone. It has to forget the group.
        let has_undo = self.limits.undo.is_some();
        if has_undo {
            self.guard.undoing(&self.key);
        }
        if self.leader_ended {
            if !has_undo {
                self.guard.remove(&self.key);
            }
            self.reap();
        } else if let Some(child) = self.child.take() {
            let key = Some(self.key.clone()).filter(|_| !has_undo);
            self.survivors.add(child, key);
        }
        self.attempt.advance(Event::TreeEnded);
        let at = match verdict {
            Some(_) => Instant::now(),
            None => begun,
        };
        let (state, mut msg) = verdict.unwrap_or_else(|| self.verdict_of_exit());
        if let Some(survivors) = survivors {
            let separator = if msg.is_empty() { "" } else { "; " };
            msg.push_str(&format!("{separator}{survivors}"));
        }
        Some(self.outcome(state, msg, at))
    }

    /// The outcome of a command that ended `at` that time.
    fn ended_by_itself(&mut self, at: Instant) -> Outcome {
        self.read_the_rest();
        self.attempt.release_processes();
        self.guard.remove(&self.key);
        self.reap();
        let (state, msg) = self.verdict_of_exit();
        self.outcome(state, msg, at)
    }

    /// How a command ended whose own process has been reaped, and why it did not succeed.
    fn verdict_of_exit(&self) -> (ExecutionState, String) {
        let (code, signal) = self
            .exit
            .map_or((None, None), |exit| (exit.code(), exit.signal()));
        let (state, mut msg) = match (code, signal) {
            (Some(0), _) => (ExecutionState::Succeeded, String::new()),
            (Some(code), _) => (ExecutionState::Failed, format!("exit code {code}")),
            (None, Some(signal)) => (
                ExecutionState::Failed,
                format!("killed by {}", signal::name(signal)),
            ),
            (None, None) => (
                ExecutionState::Failed,
                "ended without an exit code or a signal".into(),
            ),
        };
        let is_kill = signal == Some(libc::SIGKILL) || code == Some(KILLED_IN_SHELL);
        if is_kill && let Some(killed) = self.killed_for_memory() {
            msg.push_str(&format!(
                "; memory may be the reason: it ran out meanwhile, and the system killed {killed} of the processes here"
            ));
        }
        (state, msg)
    }

    /// How many processes the system has killed for lack of memory since the command started; none if none.
    fn killed_for_memory(&self) -> Option<u64> {
        let killed = out_of_memory::kills()?.checked_sub(self.kills_before?)?;
        (killed > 0).then_some(killed)
    }

    /// Whether a process still holds the other end of a pipe.
    fn has_open_pipe(&self) -> bool {
        let mut pipes = [&self.stdout, &self.stderr].into_iter().flatten();
        pipes.any(is_still_open)
    }

    /// Reads what is in the pipes now. Pipes that a background process holds open are drained elsewhere.
    fn read_the_rest(&mut self) {
        self.read_what_is_there();
        self.stdin = None;
        for pipe in [self.stdout.take(), self.stderr.take()]
            .into_iter()
            .flatten()
        {
            if is_still_open(&pipe) {
                self.orphaned_pipes.add(pipe);
            }
        }
    }

    /// Reads what is in the pipes now, and nothing that is written later.
    fn read_what_is_there(&mut self) {
        let streams = match self.first_stream() {
            Stream::Stdout => [Stream::Stdout, Stream::Stderr],
            Stream::Stderr => [Stream::Stderr, Stream::Stdout],
        };
        for stream in streams {
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
    }

    fn outcome(&self, state: ExecutionState, msg: String, at: Instant) -> Outcome {
        let signal = self.exit.and_then(|exit| exit.signal());
        Outcome {
            state,
            exit_code: self.exit.and_then(|exit| exit.code()),
            signal: signal.map(signal::name),
            msg,
            duration: Some(at - self.started),
            at,
        }
    }
}

/// Whether a process holds the other end of a pipe.
fn is_still_open(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
    let now = Timespec::default();
    poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::HUP)
}
