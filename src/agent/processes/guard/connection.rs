//! What the agent knows of its guard: the process, what it was told, and what another one has to be told.

use super::client::Loss;
use super::record::Order;
use super::report::Destination;
use super::unsent::Unsent;
use super::{PROGRAM, WAKE_SIGNAL};
use crate::agent::attempt::lock;
use crate::agent::command::launch;
use crate::agent::processes::pipe_drain::PipeSender;
use crate::agent::processes::process_table::now_in_ms;
use crate::wire::undo::{UndoReason, UndoReport};
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, kill_process};
use std::collections::{HashMap, VecDeque};
use std::process::{Child, ChildStdin};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often it is tried to write more while the pipe is full.
pub const FULL_PIPE_PERIOD: Duration = Duration::from_millis(50);
/// Orders kept for a guard that does not read, in number: those of more commands than can run at once.
const MAX_UNSENT: usize = 10_000;
/// Guards started within [`START_WINDOW`], in number. One that ends again and again is not started any more.
const MAX_STARTS: usize = 5;
/// See [`MAX_STARTS`].
const START_WINDOW: Duration = Duration::from_secs(60);
/// The stack of the thread that reaps a guard, in bytes.
const STACK_BYTES: usize = 128 << 10;

/// Where the agent is told of a [`Loss`], with the key of the attempt.
pub type Hook = Arc<dyn Fn(&str, Loss) + Send + Sync>;
/// Where reports of the guard are to go to now.
pub type ReportTo = Arc<dyn Fn() -> Destination + Send + Sync>;

/// What the threads of the agent share.
pub struct Shared {
    /// What is known.
    pub state: Mutex<State>,
    /// The guard has answered, or is gone.
    pub answered: Condvar,
    /// How many attempts are armed, to find out without the lock.
    pub armed: AtomicUsize,
}

/// What is known of the guard.
pub struct State {
    /// None when there is no guard.
    pub process: Option<GuardChild>,
    /// The attempts that end with the agent, with their process groups and when they were started.
    pub listed: HashMap<String, Option<(Pid, u64)>>,
    /// The attempts with an armed undo.
    pub armed: HashMap<String, Armed>,
    /// The last contact to the server that the guard is to know of.
    pub contact: u64,
    /// When the guard was last told of one.
    pub contact_sent: Option<Instant>,
    /// When guards were started.
    pub starts: VecDeque<Instant>,
    /// Counts the guards.
    pub generation: u64,
    /// See [`ReportTo`].
    pub report_to: Option<ReportTo>,
    /// See [`Hook`].
    pub hook: Option<Hook>,
}

/// A guard's process.
pub struct GuardChild {
    /// Its process.
    pub child: Child,
    /// Where orders go to. It is non-blocking.
    pub stdin: Arc<ChildStdin>,
    /// Takes the pipes that it drains; its answers come here.
    pub socket: Arc<PipeSender>,
    /// No thread reads its answers yet.
    pub is_unread: bool,
    /// What it has not been told yet.
    pub unsent: Unsent,
    /// Which guard of this agent it is.
    pub generation: u64,
    /// Where it was told to send reports.
    pub told: Option<Destination>,
}

/// An attempt whose undo is armed, or about to be.
pub struct Armed {
    /// When it was armed.
    pub at: u64,
    /// How it is undone, as a record.
    pub plan: Arc<[u8]>,
    /// The process group of its command, while that runs, and when it was started.
    pub group: Option<(Pid, u64)>,
    /// The beginning of the command's standard output.
    pub stdout: Vec<u8>,
    /// When the guard was last told that the agent undoes it.
    pub undoing: Option<Instant>,
    /// Why it is undone, and the exit code of the command.
    pub ended: Option<(UndoReason, Option<i32>)>,
    /// The guard that has acknowledged it.
    pub acknowledged: Option<u64>,
    /// Why the guard cannot keep it.
    pub refused: Option<String>,
    /// The guard has taken it over, and whether it knew then that the command was started.
    pub taken_over: Option<bool>,
    /// How the guard has undone it.
    pub report: Option<UndoReport>,
}

impl Armed {
    /// One that the guard is to be told of.
    pub fn new(at: u64, plan: Arc<[u8]>) -> Self {
        Armed {
            at,
            plan,
            group: None,
            stdout: Vec::new(),
            undoing: None,
            ended: None,
            acknowledged: None,
            refused: None,
            taken_over: None,
            report: None,
        }
    }
}

impl State {
    /// No guard, and nothing to guard.
    pub fn new() -> Self {
        State {
            process: None,
            listed: HashMap::new(),
            armed: HashMap::new(),
            contact: 0,
            contact_sent: None,
            starts: VecDeque::new(),
            generation: 0,
            report_to: None,
            hook: None,
        }
    }

    /// Starts a guard, and tells it what the one before it knew.
    pub fn start_process(&mut self) {
        let now = Instant::now();
        self.starts
            .retain(|at| now.saturating_duration_since(*at) < START_WINDOW);
        if self.starts.len() >= MAX_STARTS {
            warn!(
                "{MAX_STARTS} guards have ended within {START_WINDOW:?}: no other is started for a while"
            );
            return;
        }
        self.starts.push_back(now);
        self.generation += 1;
        match GuardChild::start(self.generation) {
            Ok(process) => self.process = Some(process),
            Err(why) => {
                warn!(
                    "cannot start the guard ({why}): if this agent is killed, its commands will go on"
                );
                return;
            }
        }
        self.tell_destination();
        let mut orders = Vec::new();
        for (key, group) in &self.listed {
            orders.push(Order::Add(key.clone()));
            orders.extend(group.map(|(group, at)| Order::SetGroup(key.clone(), group, at)));
        }
        if !self.armed.is_empty() {
            orders.push(Order::Contact(self.contact));
        }
        for (key, armed) in &mut self.armed {
            // Nobody knows how far the guard has come that had taken it over. Its answer may have been read after its
            // end.
            armed.taken_over = None;
            orders.push(Order::Arm(key.clone(), armed.at, Arc::clone(&armed.plan)));
            let group = armed.group;
            orders.extend(group.map(|(group, at)| Order::SetGroup(key.clone(), group, at)));
            if !armed.stdout.is_empty() {
                orders.push(Order::Output(key.clone(), armed.stdout.clone()));
            }
            let ended = armed.ended;
            orders.extend(ended.map(|(reason, code)| Order::Ended(key.clone(), reason, code)));
            if armed.undoing.is_some() {
                orders.push(Order::Undoing(key.clone(), now_in_ms()));
            }
        }
        for order in orders {
            self.push(order);
        }
    }

    /// Tells the guard where reports go to, if that has changed: the token may be another one.
    pub fn tell_destination(&mut self) {
        let (Some(process), Some(report_to)) = (&mut self.process, &self.report_to) else {
            return;
        };
        let destination = report_to();
        if process.told.as_ref() == Some(&destination) {
            return;
        }
        // It cannot fail: keys of maps are texts.
        let json = serde_json::to_vec(&destination).unwrap_or_default();
        process.told = Some(destination);
        process.unsent.push(Order::ReportTo(json.into()));
    }

    /// Has the guard told of something with the next flush.
    pub fn push(&mut self, order: Order) {
        if let Some(process) = &mut self.process {
            process.unsent.push(order);
        }
    }

    /// The guard is gone, or has to go. Whether a thread reads its answers, and will start another one.
    pub fn end_process(&mut self, why: &str) -> bool {
        let Some(process) = self.process.take() else {
            return false;
        };
        warn!("the guard is gone: {why}");
        for armed in self.armed.values_mut() {
            armed.acknowledged = None;
            armed.taken_over = None;
        }
        let is_watched = !process.is_unread;
        process.end();
        is_watched
    }
}

impl GuardChild {
    /// Starts one.
    pub fn start(generation: u64) -> std::io::Result<Self> {
        let (socket, its_end) = PipeSender::new()?;
        let mut child = launch::spawn_helper(PROGRAM, its_end.into())?;
        // It is always there: it was asked for.
        let stdin = child.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        rustix::io::ioctl_fionbio(&stdin, true)?;
        Ok(GuardChild {
            child,
            stdin: Arc::new(stdin),
            socket: Arc::new(socket),
            is_unread: true,
            unsent: Unsent::default(),
            generation,
            told: None,
        })
    }

    /// Has it read at once.
    pub fn wake(&self) {
        // It is not reaped yet: the number is its own.
        let _ = kill_process(Pid::from_child(&self.child), WAKE_SIGNAL);
    }

    /// Kills it, so that it does not take a closed pipe for the end of the agent, and reaps it.
    pub fn end(mut self) {
        let _ = self.child.kill();
        // It may hang in the kernel. Where no thread can be started, it stays a zombie.
        let _ = std::thread::Builder::new()
            .name("reap-guard".into())
            .stack_size(STACK_BYTES)
            .spawn(move || self.child.wait());
    }

    /// Writes what the pipe takes. The error is the reason why the guard cannot be used any more.
    pub fn flush(&mut self) -> Result<(), String> {
        loop {
            let Some((record, written)) = self.unsent.begin() else {
                return Ok(());
            };
            match rustix::io::write(&self.stdin, &record[*written..]) {
                Ok(more) => *written += more,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.unsent.len() > MAX_UNSENT => {
                    return Err("it does not read".to_owned());
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(why) => return Err(why.to_string()),
            }
        }
    }
}

impl Shared {
    /// Writes what the pipe takes.
    pub fn flush(&self, state: &mut State) {
        let Some(process) = &mut state.process else {
            return;
        };
        let Err(why) = process.flush() else { return };
        if !state.end_process(&why) {
            // Without a thread that reads answers nothing is armed.
            state.start_process();
            if let Some(process) = &mut state.process {
                // What it does not take is sent later; if it fails again, that is noticed then.
                let _ = process.flush();
            }
        }
    }

    /// Waits for an answer, or until the pipe takes more; so long at most.
    pub fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        most: Duration,
    ) -> MutexGuard<'a, State> {
        let full = { state.process.as_ref() }.filter(|process| !process.unsent.is_empty());
        let Some(stdin) = full.map(|process| Arc::clone(&process.stdin)) else {
            let waited = self.answered.wait_timeout(state, most);
            return waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(state);
        wait_for(&*stdin, PollFlags::OUT, most.min(FULL_PIPE_PERIOD));
        let mut state = lock(&self.state);
        self.flush(&mut state);
        state
    }
}

/// Waits for a descriptor. Whether it is ready.
pub fn wait_for(fd: &impl rustix::fd::AsFd, what: PollFlags, most: Duration) -> bool {
    let mut fds = [PollFd::new(fd, what)];
    let timeout = Timespec::try_from(most).unwrap_or_default();
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => ready > 0,
        Err(Errno::INTR) => false,
        Err(_) => {
            // Out of memory.
            std::thread::sleep(FULL_PIPE_PERIOD);
            false
        }
    }
}
