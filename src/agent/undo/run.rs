//! Running an undo: its tries with real processes, until it is done or its patience is over.
//!
//! It blocks the calling thread and cannot be canceled. The agent runs it, and the guard when the agent is gone. Each
//! run of undo or check has a process group of its own, and one pipe for both streams.

use super::exclusion::Exclusion;
use super::plan::{MAX_STDOUT_BYTES, UndoPlan};
use super::tries::{Phase, RunEnd, Step, Tries};
use crate::agent::command::launch;
use crate::agent::command::orphaned_pipes::OrphanedPipes;
use crate::agent::command::runner::PHASE_VARIABLE;
use crate::agent::processes::attempt_processes::AttemptProcesses;
use crate::agent::processes::process_table::{KEY_VARIABLE, ProcessTable};
use crate::agent::processes::termination::{Progress, Termination};
use crate::wire::signal;
use crate::wire::undo::{KILL_GRACE, UndoBy, UndoReason, UndoReport, UndoState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};
use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::mpsc::{RecvTimeoutError, SendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much of the output of undo and check is kept, in bytes: the end of it.
pub const MAX_OUTPUT_BYTES: usize = 64 << 10;
/// The longest reason of a failure, in bytes. It is in every poll.
const MAX_MSG_BYTES: usize = 1 << 10;
/// How often the observer is called at least.
pub const TICK: Duration = Duration::from_secs(1);
/// How long another process that undoes the same attempt is waited for, beyond one try and one check of it. It may
/// hang, and two undos at once do no harm.
const EXCLUSION_SLACK: Duration = Duration::from_secs(5);
/// How often it is looked whether the other one has ended.
const EXCLUSION_LOOK: Duration = Duration::from_millis(100);
/// How long the pipe is read once the process has ended while another process holds it open.
const LAST_OUTPUT: Duration = Duration::from_millis(100);
/// How often a system without pidfd is asked whether the process has ended.
const EXIT_LOOK: Duration = Duration::from_millis(20);
/// Bytes read at once: half the capacity of a pipe.
pub const READ_BYTES: usize = 32 << 10;
/// The stack of a thread that starts a process, in bytes: as that of the threads that start commands.
const STACK_BYTES: usize = 512 << 10;
/// How long poll(2) is not called again after it failed for lack of memory.
const POLL_FAILED_PAUSE: Duration = Duration::from_millis(1);

/// What wants to know how an undo goes.
pub trait Observer {
    /// It has begun, or a try has ended.
    fn changed(&mut self, report: &UndoReport);
    /// It goes on. Called every [`TICK`].
    fn tick(&mut self);
}

/// Runs an undo to its end. The result has the state `done` or `failed`. Pipes that a background process of the undo
/// holds open are given to `pipes`. Without the `exclusion` of the attempt another process has it: that one is waited for,
/// and what it leaves is ended.
pub fn run(
    plan: &UndoPlan,
    by: UndoBy,
    pipes: &OrphanedPipes,
    observer: &mut dyn Observer,
    exclusion: Option<Exclusion>,
) -> UndoReport {
    let now = Instant::now();
    let mut run = Run {
        plan,
        by,
        pipes,
        observer,
        tries: Tries::new(plan.check.is_some(), plan.patience.into()),
        output: VecDeque::new(),
        unreaped: Vec::new(),
        starting: None,
        began: now,
        ticked: now,
    };
    run.finish(exclusion)
}

struct Run<'a> {
    plan: &'a UndoPlan,
    by: UndoBy,
    pipes: &'a OrphanedPipes,
    observer: &'a mut dyn Observer,
    tries: Tries,
    /// The last [`MAX_OUTPUT_BYTES`] of undo and check.
    output: VecDeque<u8>,
    /// Processes that survived KILL.
    unreaped: Vec<Child>,
    /// The thread that made the latest start.
    starting: Option<JoinHandle<()>>,
    began: Instant,
    ticked: Instant,
}

impl Run<'_> {
    fn finish(&mut self, exclusion: Option<Exclusion>) -> UndoReport {
        self.observer.changed(&self.report(UndoState::Running));
        let _exclusion = exclusion.or_else(|| self.wait_for_exclusion());
        let mut step = self.tries.begin();
        loop {
            step = match step {
                Step::Run(phase) => {
                    let end = self.run_once(phase);
                    self.tries.ended(end, self.began.elapsed())
                }
                Step::Pause(pause) => {
                    self.observer.changed(&self.report(UndoState::Running));
                    self.pause(pause);
                    self.tries.waited()
                }
                Step::Over(state) => {
                    let mut report = self.report(state);
                    report.ended_ago_ms = Some(0);
                    return report;
                }
            };
        }
    }

    fn report(&self, state: UndoState) -> UndoReport {
        UndoReport {
            id: self.plan.id.clone(),
            state,
            reason: self.plan.reason,
            by: self.by,
            tries: self.tries.tries,
            exit_code: self.tries.exit_code(),
            check_exit_code: self.tries.check_exit_code(),
            msg: {
                let mut msg = self.tries.msg();
                msg.truncate(msg.floor_char_boundary(MAX_MSG_BYTES));
                msg
            },
            output: text(&self.output),
            began_ago_ms: u64::try_from(self.began.elapsed().as_millis()).ok(),
            ended_ago_ms: None,
        }
    }

    /// Waits until the other process that undoes this attempt is done, or dead, and takes its place.
    fn wait_for_exclusion(&mut self) -> Option<Exclusion> {
        let one_run = Duration::from(self.plan.timeout) + Duration::from(KILL_GRACE);
        let deadline = Instant::now() + one_run * 2 + EXCLUSION_SLACK;
        loop {
            let taken = Exclusion::take_over(&self.plan.key);
            if taken.is_some() || Instant::now() >= deadline {
                return taken;
            }
            self.pause(EXCLUSION_LOOK);
        }
    }

    fn pause(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            self.tick();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.ticked) >= TICK {
            self.ticked = now;
            self.observer.tick();
        }
    }

    /// Runs undo or check once.
    fn run_once(&mut self, phase: Phase) -> RunEnd {
        self.unreaped
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        match self.start(phase) {
            Ok((child, pipe)) => self.supervise(Process::new(child, pipe)),
            Err(msg) => RunEnd {
                exit_code: None,
                msg,
            },
        }
    }

    /// Starts undo or check, from a thread of its own: a folder on a file system that does not answer blocks whoever
    /// starts something there. The error says why it was not started.
    fn start(&mut self, phase: Phase) -> Result<(Child, OwnedFd), String> {
        if { self.starting.as_ref() }.is_some_and(|thread| !thread.is_finished()) {
            return Err("an earlier start still hangs: its folder does not answer".into());
        }
        let program = match (phase, &self.plan.check) {
            (Phase::Check, Some(check)) => check.clone(),
            _ => self.plan.undo.clone(),
        };
        let surroundings = self.plan.surroundings.clone();
        let variables = variables(self.plan, phase);
        // Without room for a value: what nobody waits for any more stays with the thread.
        let (sender, started) = sync_channel(0);
        let start = move || {
            let result = launch::spawn_program(&program, &surroundings, &variables);
            if let Err(SendError(Ok((mut child, _)))) = sender.send(result) {
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
            }
        };
        let thread = std::thread::Builder::new()
            .name("undo-start".into())
            .stack_size(STACK_BYTES)
            .spawn(start)
            .map_err(|why| format!("no thread is left to start it: {why}"))?;
        self.starting = Some(thread);
        let timeout = self.plan.timeout;
        let deadline = Instant::now() + Duration::from(timeout);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match started.recv_timeout(left.min(TICK)) {
                Ok(result) => {
                    // It has nothing left to do, though it may not be finished yet.
                    self.starting = None;
                    return result;
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    return Err(format!(
                        "could not be started within {timeout}: its folder does not answer"
                    ));
                }
                Err(RecvTimeoutError::Timeout) => self.tick(),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("could not be started (a bug)".into());
                }
            }
        }
    }

    fn supervise(&mut self, mut process: Process) -> RunEnd {
        let timeout = self.plan.timeout;
        let deadline = Instant::now() + Duration::from(timeout);
        let mut ending: Option<(AttemptProcesses, Termination)> = None;
        // Until when the rest of the output is read, once the process has ended by itself.
        let mut read_until: Option<Instant> = None;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let due = match (&ending, read_until) {
                (Some((_, termination)), _) => termination.next_step(),
                (None, Some(until)) => until,
                (None, None) => deadline,
            };
            process.wait(due.saturating_duration_since(Instant::now()).min(TICK));
            self.tick();
            process.read_once(&mut buffer, &mut self.output);
            let has_just_ended = process.notice_end();
            let now = Instant::now();
            if let Some((processes, termination)) = &mut ending {
                if has_just_ended {
                    termination.look_now(now);
                    if !ProcessTable::is_available() {
                        // Without /proc a zombie cannot be told from a live process.
                        process.reap();
                    }
                }
                match termination.step(now, processes) {
                    Progress::Pending => continue,
                    Progress::Dead => {}
                    Progress::Survived => {
                        let living = processes.describe_living().unwrap_or_default();
                        process.read_rest(&mut buffer, &mut self.output);
                        self.unreaped.extend(process.give_up());
                        return RunEnd {
                            exit_code: None,
                            msg: format!("timed out after {timeout}, and survived KILL: {living}"),
                        };
                    }
                }
                process.read_rest(&mut buffer, &mut self.output);
                let exit_code = process.end().exit_code;
                return RunEnd {
                    exit_code,
                    msg: format!("timed out after {timeout}"),
                };
            }
            if has_just_ended {
                read_until = Some(now + LAST_OUTPUT);
            }
            if let Some(until) = read_until {
                if process.is_writable() && now < until {
                    continue;
                }
                process.read_rest(&mut buffer, &mut self.output);
                if let Some(pipe) = process.pipe.take().filter(|_| process.is_held) {
                    // A background process that lost its output would be killed by its next line.
                    self.pipes.add(pipe);
                }
                return process.end();
            }
            if now >= deadline {
                let processes = AttemptProcesses::of_group(process.group);
                ending = Some((processes, Termination::new(now, KILL_GRACE.into())));
            }
        }
    }
}

/// The variables of one run, beside those of the plan.
fn variables(plan: &UndoPlan, phase: Phase) -> [(&'static str, Option<String>); 5] {
    let reason = plan.reason.unwrap_or(UndoReason::Ended);
    let mut stdout = plan.stdout.replace('\0', "");
    stdout.truncate(stdout.floor_char_boundary(MAX_STDOUT_BYTES));
    [
        (KEY_VARIABLE, Some(plan.key.clone())),
        (PHASE_VARIABLE, Some(phase.word().into())),
        ("SIDEBIKE_UNDO_REASON", Some(reason.word().into())),
        (
            "SIDEBIKE_EXIT_CODE",
            plan.exit_code.map(|code| code.to_string()),
        ),
        ("SIDEBIKE_STDOUT", Some(stdout)),
    ]
}

/// The end of the output as text.
fn text(output: &VecDeque<u8>) -> String {
    let (first, second) = output.as_slices();
    let mut text = String::from_utf8_lossy(&[first, second].concat()).into_owned();
    // What is no UTF-8 is longer after it was replaced.
    let excess = text.len().saturating_sub(MAX_OUTPUT_BYTES);
    text.drain(..text.ceil_char_boundary(excess));
    text
}

/// A process that runs, with a group of its own and one pipe for its output.
pub struct Process {
    child: Child,
    group: Pid,
    /// Readable when it has ended; none on an old kernel, and afterwards.
    pidfd: Option<OwnedFd>,
    /// Its output.
    pipe: Option<OwnedFd>,
    /// Another process has the pipe open as well.
    is_held: bool,
    has_ended: bool,
}

impl Process {
    /// One that has just been started.
    pub fn new(child: Child, pipe: OwnedFd) -> Self {
        let group = Pid::from_child(&child);
        Process {
            child,
            group,
            pidfd: pidfd_open(group, PidfdFlags::empty()).ok(),
            pipe: Some(pipe),
            is_held: false,
            has_ended: false,
        }
    }

    /// Its process group.
    pub fn group(&self) -> Pid {
        self.group
    }

    /// Waits for its end, for output, or so long.
    pub fn wait(&self, mut timeout: Duration) {
        if self.pidfd.is_none() && !self.has_ended {
            timeout = timeout.min(EXIT_LOOK);
        }
        let fds = [self.pidfd.as_ref(), self.pipe.as_ref()];
        let mut fds: Vec<PollFd<'_>> = { fds.into_iter().flatten() }
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        let timeout = Timespec::try_from(timeout).unwrap_or_default();
        if poll(&mut fds, Some(&timeout)).is_err() {
            std::thread::sleep(POLL_FAILED_PAUSE);
        }
    }

    /// Whether it has ended since the last call. It is not reaped: as long as it is a zombie, the number of its group
    /// cannot belong to another one.
    pub fn notice_end(&mut self) -> bool {
        if self.has_ended {
            return false;
        }
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.has_ended = match waitid(WaitId::Pid(self.group), look) {
            Ok(status) => status.is_some(),
            Err(Errno::INTR) => false,
            // It has been reaped elsewhere.
            Err(_) => true,
        };
        if self.has_ended {
            self.pidfd = None;
        }
        self.has_ended
    }

    /// Reads once. How many bytes came.
    pub fn read_once(&mut self, buffer: &mut [u8], output: &mut VecDeque<u8>) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        self.is_held = true;
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(read @ 1..) => {
                let new = &buffer[..read];
                let new = &new[new.len().saturating_sub(MAX_OUTPUT_BYTES)..];
                let excess = (output.len() + new.len()).saturating_sub(MAX_OUTPUT_BYTES);
                output.drain(..excess);
                output.extend(new);
                return read;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                self.pipe = None;
                self.is_held = false;
            }
        }
        0
    }

    /// Reads what is in the pipe now, and nothing that is written later.
    pub fn read_rest(&mut self, buffer: &mut [u8], output: &mut VecDeque<u8>) {
        let there = { self.pipe.as_ref() }.and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok());
        let mut left = usize::try_from(there.unwrap_or(0)).unwrap_or(0);
        while left > 0 {
            match self.read_once(buffer, output) {
                0 => return,
                read => left = left.saturating_sub(read),
            }
        }
        // Finds out whether the pipe is closed at the other end.
        self.read_once(buffer, output);
    }

    /// Whether a process may still write to the pipe.
    pub fn is_writable(&self) -> bool {
        self.pipe.is_some()
    }

    /// Reaps it; it has ended.
    pub fn reap(&mut self) {
        let _ = self.child.wait();
    }

    /// Why it did not succeed, of one that has ended. It is not reaped.
    pub fn failure(&self) -> Option<String> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(self.group), look).ok().flatten();
        match status.map(|status| (status.exit_status(), status.terminating_signal())) {
            Some((Some(0), _)) => None,
            Some((Some(code), _)) => Some(format!("exit code {code}")),
            Some((None, Some(number))) => Some(format!("killed by {}", signal::name(number))),
            Some((None, None)) | None => Some("its exit code is lost".into()),
        }
    }

    /// How it ended.
    fn end(mut self) -> RunEnd {
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(why) => {
                return RunEnd {
                    exit_code: None,
                    msg: format!("its exit code is lost: {why}"),
                };
            }
        };
        let msg = match (status.code(), status.signal()) {
            (Some(0), _) => String::new(),
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by {}", signal::name(signal)),
            (None, None) => "ended without an exit code or a signal".into(),
        };
        RunEnd {
            exit_code: status.code(),
            msg,
        }
    }

    /// Its child, unless it has ended and can be reaped now.
    pub fn give_up(mut self) -> Option<Child> {
        matches!(self.child.try_wait(), Ok(None)).then_some(self.child)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;
    use crate::wire::duration::TimeSpan;

    /// What the observer was told.
    #[derive(Default)]
    struct Told {
        states: Vec<UndoState>,
        ticks: usize,
    }

    impl Observer for Told {
        fn changed(&mut self, report: &UndoReport) {
            self.states.push(report.state);
        }

        fn tick(&mut self) {
            self.ticks += 1;
        }
    }

    fn undo(plan: &UndoPlan) -> (UndoReport, Told) {
        let mut told = Told::default();
        let report = run(
            plan,
            UndoBy::Agent,
            &OrphanedPipes::default(),
            &mut told,
            Exclusion::take(&plan.key),
        );
        assert_eq!(report.ended_ago_ms, Some(0));
        (report, told)
    }

    #[test]
    fn it_is_done_when_the_check_says_so_and_gets_its_variables() {
        let mut plan = plan(
            "echo $SIDEBIKE_PHASE $SIDEBIKE_UNDO_REASON $SIDEBIKE_EXIT_CODE $SIDEBIKE_STDOUT $EXTRA; exit 3",
            Some("echo $SIDEBIKE_PHASE ${#SIDEBIKE_KEY} >&2"),
        );
        plan.surroundings.variables = vec![("EXTRA".into(), "more".into())];
        plan.command_ended(Some(7), b"its\0 output");
        let (report, told) = undo(&plan);
        assert_eq!(report.state, UndoState::Done);
        assert_eq!(report.output, "undo ended 7 its output more\ncheck 32\n");
        let codes = (report.exit_code, report.check_exit_code, report.tries);
        assert_eq!(codes, (Some(3), Some(0), 1));
        assert_eq!((&*report.msg, report.by), ("", UndoBy::Agent));
        assert_eq!(told.states, [UndoState::Running]);
    }

    #[test]
    fn it_is_tried_again_and_the_end_of_a_flood_is_kept() {
        let file = std::env::temp_dir().join(crate::agent::backoff::random_id().unwrap());
        let line = format!(
            "head -c 3000000 /dev/zero | tr '\\0' x; echo end; [ -e {0} ] || {{ touch {0}; exit 1; }}; rm {0}",
            file.display()
        );
        let (report, told) = undo(&plan(&line, None));
        assert_eq!((report.state, report.tries), (UndoState::Done, 2));
        assert_eq!(report.output.len(), MAX_OUTPUT_BYTES);
        assert!(report.output.ends_with("xend\n"));
        assert_eq!(told.states, [UndoState::Running; 2]);
    }

    #[test]
    fn one_that_hangs_is_ended_with_its_group() {
        let mut plan = plan("sleep 1000 & echo $!; wait", None);
        plan.timeout = TimeSpan::from_millis(1_500);
        plan.patience = TimeSpan::default();
        let (report, told) = undo(&plan);
        assert_eq!(report.state, UndoState::Failed);
        assert_eq!(report.msg, "undo: timed out after 1s 500ms");
        assert!(told.ticks >= 1);
        let sleeper: i32 = report.output.trim().parse().unwrap();
        let table = ProcessTable::read().unwrap();
        let mut living = table.processes.iter().filter(|it| !it.is_zombie);
        assert!(!living.any(|process| process.pid == sleeper));
    }

    #[test]
    fn one_that_cannot_be_started_fails_and_says_why() {
        let mut plan = plan("true", None);
        plan.undo.file = "/nowhere/blade".into();
        plan.patience = TimeSpan::default();
        let (report, _) = undo(&plan);
        assert_eq!((report.state, report.tries), (UndoState::Failed, 1));
        assert!(report.msg.contains("/nowhere/blade"), "{}", report.msg);
    }

    /// Another process that undoes the attempt, and is killed after a while, or was before.
    struct Other(Option<Exclusion>);

    impl Observer for Other {
        fn changed(&mut self, _: &UndoReport) {}

        fn tick(&mut self) {
            self.0 = None;
        }
    }

    #[test]
    fn what_another_one_left_that_was_killed_is_ended_first() {
        for is_there in [true, false] {
            let plan = plan("true", None);
            let mut left = std::process::Command::new("sleep");
            let left = left.arg("987.6").env(KEY_VARIABLE, &plan.key);
            let mut left = left.spawn().unwrap();
            let mut other = Other(Exclusion::take(&plan.key).filter(|_| is_there));
            let pipes = OrphanedPipes::default();
            let report = run(&plan, UndoBy::Guard, &pipes, &mut other, None);
            assert_eq!(report.state, UndoState::Done);
            assert!(other.0.is_none());
            let ended = left.try_wait().unwrap();
            left.kill().unwrap();
            assert!(ended.is_some(), "it ran beside the undo");
        }
    }

    #[test]
    fn what_it_leaves_in_the_background_does_not_hold_it_back() {
        let begun = Instant::now();
        let (report, _) = undo(&plan("sleep 3 & echo started", None));
        assert_eq!(report.state, UndoState::Done);
        assert_eq!(report.output, "started\n");
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}
