//! The agent's end of the guard.
//!
//! Threads that supervise commands tell the guard, so a guard that does not read (because it was stopped, or has no
//! time) must not block them: orders that the pipe does not take are kept. Only [`Guard::arm`] waits for an answer, and
//! not for long.
//!
//! With the first armed attempt a thread begins to read the answers. It notices at once when the guard is gone, and
//! has another one started that is told everything again. Where that fails, nobody would undo the armed attempts if
//! the agent was killed: it is told to end them now ([`Loss`]).

use super::PROGRAM;
use super::record::{Answer, Order, Records};
use super::report::Destination;
use crate::agent::attempt::lock;
use crate::agent::command::runner;
use crate::agent::processes::process_table::now_in_ms;
use crate::agent::undo::plan::UndoPlan;
use crate::wire::undo::{UndoReason, UndoReport};
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a guard may take to acknowledge that it has a plan.
const ARM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after the acknowledgement a command may be started. An agent that was stopped in between may have been
/// replaced by its guard.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is tried to write more while the pipe is full.
const FULL_PIPE_PERIOD: Duration = Duration::from_millis(50);
/// The shortest time between two orders that only say that all is well.
const ALIVE_PERIOD: Duration = Duration::from_secs(1);
/// Orders kept for a guard that does not read, in number: those of more commands than can run at once.
const MAX_UNSENT: usize = 10_000;
/// Guards started within [`START_WINDOW`], in number. One that ends again and again is not started any more.
const MAX_STARTS: usize = 5;
/// See [`MAX_STARTS`].
const START_WINDOW: Duration = Duration::from_secs(60);
/// The stack of the thread that reads answers, in bytes.
const STACK_BYTES: usize = 128 << 10;
/// Answers read at once, in bytes.
const READ_BYTES: usize = 4 << 10;

/// What the agent has to know of its guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No guard has the plan any more: the attempt is to be ended and undone now.
    Unguarded,
    /// The guard ends and undoes the attempt, because this agent seemed not to work.
    TakenOver,
}

/// Where the agent is told of a [`Loss`], with the key of the attempt.
type Hook = Arc<dyn Fn(&str, Loss) + Send + Sync>;
/// Where reports of the guard are to go to now.
type ReportTo = Arc<dyn Fn() -> Destination + Send + Sync>;

/// The guard, as the agent sees it.
pub struct Guard {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The guard has answered, or is gone.
    answered: Condvar,
    /// How many attempts are armed, to find out without the lock.
    armed: AtomicUsize,
}

struct State {
    /// None when there is no guard.
    process: Option<GuardChild>,
    /// The attempts that end with the agent, with their process groups and when they were started.
    listed: HashMap<String, Option<(Pid, u64)>>,
    armed: HashMap<String, Armed>,
    /// The last contact to the server that the guard is to know of.
    contact: u64,
    /// When the guard was last told of one.
    contact_sent: Option<Instant>,
    /// When guards were started.
    starts: VecDeque<Instant>,
    /// Counts the guards.
    generation: u64,
    report_to: Option<ReportTo>,
    hook: Option<Hook>,
}

/// A guard's process.
struct GuardChild {
    child: Child,
    stdin: Arc<ChildStdin>,
    /// Its answers; taken by the thread that reads them.
    stdout: Option<ChildStdout>,
    unsent: Unsent,
    generation: u64,
    /// Where it was told to send reports.
    told: Option<Destination>,
}

/// Orders that the pipe did not take.
#[derive(Default)]
struct Unsent {
    orders: VecDeque<Order>,
    /// A record that the pipe may have taken a part of, and how much.
    begun: Option<(Vec<u8>, usize)>,
}

/// An attempt whose undo is armed, or about to be.
struct Armed {
    at: u64,
    plan: Arc<[u8]>,
    group: Option<(Pid, u64)>,
    /// The beginning of the command's standard output.
    stdout: Vec<u8>,
    /// When the guard was last told that the agent undoes it.
    undoing: Option<Instant>,
    /// Why it is undone, and the exit code of the command.
    ended: Option<(UndoReason, Option<i32>)>,
    /// The guard that has acknowledged it.
    acknowledged: Option<u64>,
    refused: Option<String>,
    /// The guard has taken it over, and whether it knew then that the command was started.
    taken_over: Option<bool>,
    report: Option<UndoReport>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Guard {
    /// Starts a guard. Without one the agent works all the same, but starts no command with an undo.
    pub fn start() -> Self {
        let mut state = State::new();
        state.start_process();
        Guard {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                answered: Condvar::new(),
                armed: AtomicUsize::new(0),
            }),
        }
    }

    /// Sets where the guard reports to when it has acted in place of the agent. Asked at each arming, and now and then
    /// while something is armed.
    pub fn report_to(&self, destination: impl Fn() -> Destination + Send + Sync + 'static) {
        lock(&self.shared.state).report_to = Some(Arc::new(destination));
    }

    /// Sets who is told that the agent has to act. Called without locks, from a thread of the guard's own.
    pub fn on_loss(&self, hook: impl Fn(&str, Loss) + Send + Sync + 'static) {
        lock(&self.shared.state).hook = Some(Arc::new(hook));
    }

    /// Lists an attempt: its processes are to end with the agent.
    pub fn add(&self, key: &str) {
        let mut state = lock(&self.shared.state);
        state.listed.insert(key.to_owned(), None);
        self.send(&mut state, Order::Add(key.to_owned()));
    }

    /// Adds the process group of an attempt that is listed, or armed: its command has just been started.
    pub fn set_group(&self, key: &str, group: Pid) {
        let now = now_in_ms();
        let mut state = lock(&self.shared.state);
        let started = Some((group, now));
        if let Some(listed) = state.listed.get_mut(key) {
            *listed = started;
        }
        if let Some(armed) = state.armed.get_mut(key) {
            armed.group = started;
        }
        self.send(&mut state, Order::SetGroup(key.to_owned(), group, now));
    }

    /// Removes an attempt from the list.
    pub fn remove(&self, key: &str) {
        let mut state = lock(&self.shared.state);
        state.listed.remove(key);
        self.send(&mut state, Order::Remove(key.to_owned()));
    }

    /// Sends the orders that the pipe did not take before.
    pub fn flush(&self) {
        self.shared.flush(&mut lock(&self.shared.state));
    }

    /// Gives the guard what it needs to undo an attempt, and waits until it has it. The error is the reason why the
    /// command must not be started.
    pub fn arm(&self, plan: &UndoPlan) -> Result<(), String> {
        let shared = &self.shared;
        let record: Arc<[u8]> = independent(plan)?.to_record()?.into();
        let key = &plan.key;
        let deadline = Instant::now() + ARM_TIMEOUT;
        let mut state = lock(&shared.state);
        // One that takes the place of another has to acknowledge everything again.
        let mut rearmed_by = None;
        if state.process.is_none() {
            state.start_process();
            rearmed_by = Some(deadline);
        }
        Shared::watch(shared, &mut state, rearmed_by)?;
        state.tell_destination();
        let at = now_in_ms();
        state.contact = state.contact.max(at);
        state
            .armed
            .insert(key.clone(), Armed::new(at, Arc::clone(&record)));
        shared.armed.store(state.armed.len(), Ordering::Relaxed);
        self.send(&mut state, Order::Arm(key.clone(), at, record));
        let failed = loop {
            let Some(armed) = state.armed.get(key) else {
                return Err("it was disarmed meanwhile".into());
            };
            if armed.acknowledged.is_some() {
                return Ok(());
            }
            if let Some(why) = &armed.refused {
                break why.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break match state.process {
                    Some(_) => format!("the guard does not answer within {ARM_TIMEOUT:?}"),
                    None => "there is no guard, and none can be started".into(),
                };
            }
            state = shared.wait(state, left);
        };
        self.forget(&mut state, key);
        Err(failed)
    }

    /// Whether the command of an armed attempt may be started now. The error is the reason why it must not.
    pub fn may_start(&self, key: &str) -> Result<(), String> {
        let state = lock(&self.shared.state);
        match state.armed.get(key) {
            None => Err("its undo is not armed".into()),
            Some(armed) if armed.taken_over.is_some() => Err("its guard has undone it".into()),
            Some(armed)
                if now_in_ms().saturating_sub(armed.at)
                    > (ARM_TIMEOUT + START_TIMEOUT).as_millis() as u64 =>
            {
                Err("the agent did not work for a while after its undo was armed".into())
            }
            Some(_) => Ok(()),
        }
    }

    /// Settles an armed attempt: nothing is left to be undone.
    pub fn disarm(&self, key: &str) {
        self.forget(&mut lock(&self.shared.state), key);
    }

    /// Adds to the beginning of the standard output of an armed attempt, for its undo.
    pub fn output(&self, key: &str, bytes: &[u8]) {
        let mut state = lock(&self.shared.state);
        if let Some(armed) = state.armed.get_mut(key) {
            armed.stdout.extend(bytes);
            self.send(&mut state, Order::Output(key.to_owned(), bytes.to_vec()));
        }
    }

    /// Says why an armed attempt is undone, and the exit code of its command.
    pub fn ended(&self, key: &str, reason: UndoReason, exit_code: Option<i32>) {
        let mut state = lock(&self.shared.state);
        if let Some(armed) = state.armed.get_mut(key) {
            armed.ended = Some((reason, exit_code));
            self.send(&mut state, Order::Ended(key.to_owned(), reason, exit_code));
        }
    }

    /// Says that the processes of an armed attempt have ended and that the agent itself undoes it. To be called before
    /// the leader of the process group is reaped, and repeated while the undo runs; the guard is told once a second.
    pub fn undoing(&self, key: &str) {
        let mut state = lock(&self.shared.state);
        let Some(armed) = state.armed.get_mut(key) else {
            return;
        };
        if armed.undoing.is_some_and(|at| at.elapsed() < ALIVE_PERIOD) {
            return;
        }
        armed.undoing = Some(Instant::now());
        armed.group = None;
        self.send(&mut state, Order::Undoing(key.to_owned(), now_in_ms()));
    }

    /// Says that the agent works, and that the server was heard of so long ago. The guard is told once a second at most,
    /// and only while something is armed.
    pub fn contact(&self, age: Duration) {
        if self.shared.armed.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut state = lock(&self.shared.state);
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let at = now_in_ms().saturating_sub(age);
        state.contact = state.contact.max(at);
        if state
            .contact_sent
            .is_some_and(|at| at.elapsed() < ALIVE_PERIOD)
        {
            return;
        }
        state.contact_sent = Some(Instant::now());
        // The token may have been replaced.
        state.tell_destination();
        self.send(&mut state, Order::Contact(at));
    }

    /// Waits until the guard has undone an attempt that it has taken over. None if it has not, or does not any more, or
    /// if the command may have been started after that: then the agent has to.
    pub fn wait_until_undone(&self, key: &str) -> Option<UndoReport> {
        let mut state = lock(&self.shared.state);
        loop {
            let armed = state.armed.get(key);
            let armed = armed.filter(|armed| armed.taken_over == Some(true))?;
            if let Some(report) = &armed.report {
                return Some(report.clone());
            }
            // The thread that reads answers wakes this one, also when the guard is gone.
            let waited = self.shared.answered.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn send(&self, state: &mut State, order: Order) {
        state.push(order);
        self.shared.flush(state);
    }

    fn forget(&self, state: &mut State, key: &str) {
        if state.armed.remove(key).is_none() {
            return;
        }
        let count = state.armed.len();
        self.shared.armed.store(count, Ordering::Relaxed);
        self.send(state, Order::Disarm(key.to_owned()));
    }
}

/// A plan that does not depend on the agent's own folder: the guard has another one.
fn independent(plan: &UndoPlan) -> Result<UndoPlan, String> {
    let mut plan = plan.clone();
    let directory = plan.surroundings.directory.take();
    let own =
        || std::env::current_dir().map_err(|why| format!("the agent's own folder is lost: {why}"));
    plan.surroundings.directory = Some(match directory {
        Some(directory) if directory.is_absolute() => directory,
        Some(directory) => own()?.join(directory),
        None => own()?,
    });
    Ok(plan)
}

impl Armed {
    fn new(at: u64, plan: Arc<[u8]>) -> Self {
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
    fn new() -> Self {
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
    fn start_process(&mut self) {
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
            // Nobody knows how far the guard has come that had taken it over.
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
    fn tell_destination(&mut self) {
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

    fn push(&mut self, order: Order) {
        if let Some(process) = &mut self.process {
            process.unsent.push(order);
        }
    }

    /// The guard is gone, or has to go. Whether a thread reads its answers, and will start another one.
    fn end_process(&mut self, why: &str) -> bool {
        let Some(process) = self.process.take() else {
            return false;
        };
        warn!("the guard is gone: {why}");
        for armed in self.armed.values_mut() {
            armed.acknowledged = None;
            armed.taken_over = None;
        }
        let is_watched = process.stdout.is_none();
        process.end();
        is_watched
    }
}

impl GuardChild {
    fn start(generation: u64) -> std::io::Result<Self> {
        let mut child = runner::spawn_helper(PROGRAM)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        // Both are always there: they were asked for.
        let (stdin, stdout) = pipes.ok_or(std::io::ErrorKind::BrokenPipe)?;
        rustix::io::ioctl_fionbio(&stdin, true)?;
        Ok(GuardChild {
            child,
            stdin: Arc::new(stdin),
            stdout: Some(stdout),
            unsent: Unsent::default(),
            generation,
            told: None,
        })
    }

    /// Kills it, so that it does not take a closed pipe for the end of the agent, and reaps it.
    fn end(mut self) {
        let _ = self.child.kill();
        // It may hang in the kernel. Where no thread can be started, it stays a zombie.
        let _ = std::thread::Builder::new()
            .name("reap-guard".into())
            .stack_size(STACK_BYTES)
            .spawn(move || self.child.wait());
    }

    /// Writes what the pipe takes. The error is the reason why the guard cannot be used any more.
    fn flush(&mut self) -> Result<(), String> {
        loop {
            let Some((record, written)) = self.unsent.begin() else {
                return Ok(());
            };
            match rustix::io::write(&self.stdin, &record[*written..]) {
                Ok(more) => *written += more,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.unsent.orders.len() > MAX_UNSENT => {
                    return Err("it does not read".to_owned());
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(why) => return Err(why.to_string()),
            }
        }
    }
}

impl Unsent {
    fn is_empty(&self) -> bool {
        self.orders.is_empty() && self.begun.is_none()
    }

    /// Keeps an order. If the guard has not been told of the attempt that it removes, it need not be; of two orders
    /// that say that all is well the later one is enough.
    fn push(&mut self, order: Order) {
        match &order {
            Order::Remove(key) => {
                let is_add = |it: &Order| matches!(it, Order::Add(added) if added == key);
                if self.orders.iter().any(is_add) {
                    self.drop_of(key, |it| matches!(it, Order::Add(_) | Order::SetGroup(..)));
                    return;
                }
            }
            Order::Disarm(key) => {
                let is_arm = |it: &Order| matches!(it, Order::Arm(armed, ..) if armed == key);
                if self.orders.iter().any(is_arm) {
                    self.drop_of(key, |_| true);
                    return;
                }
                self.drop_of(key, |it| matches!(it, Order::Undoing(..)));
            }
            Order::Undoing(key, _) => self.drop_of(key, |it| matches!(it, Order::Undoing(..))),
            Order::Contact(_) => self.orders.retain(|it| !matches!(it, Order::Contact(_))),
            Order::Add(_)
            | Order::SetGroup(..)
            | Order::ReportTo(_)
            | Order::Arm(..)
            | Order::Output(..)
            | Order::Ended(..) => {}
        }
        self.orders.push_back(order);
    }

    fn drop_of(&mut self, key: &str, is_needless: impl Fn(&Order) -> bool) {
        { &mut self.orders }.retain(|it| it.key() != Some(key) || !is_needless(it));
    }

    /// The record that is to be written next, and how much of it was.
    fn begin(&mut self) -> Option<(&[u8], &mut usize)> {
        if { self.begun.as_ref() }.is_none_or(|(record, written)| *written == record.len()) {
            let order = self.orders.pop_front();
            self.begun = order.map(|order| (order.encode(), 0));
        }
        let (record, written) = self.begun.as_mut()?;
        Some((record, written))
    }
}

impl Shared {
    /// Writes what the pipe takes.
    fn flush(&self, state: &mut State) {
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
    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
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

    /// Has a thread read the answers of the guard, if none does. What is armed has to be acknowledged until
    /// `rearmed_by`, if the guard took the place of another one.
    fn watch(
        shared: &Arc<Shared>,
        state: &mut State,
        rearmed_by: Option<Instant>,
    ) -> Result<(), String> {
        let Some(process) = &mut state.process else {
            return Err("there is no guard, and none can be started".into());
        };
        let Some(stdout) = process.stdout.take() else {
            return Ok(());
        };
        let watcher = Watcher {
            shared: Arc::clone(shared),
            stdout,
            generation: process.generation,
            rearmed_by,
        };
        let started = std::thread::Builder::new()
            .name("guard".into())
            .stack_size(STACK_BYTES)
            .spawn(move || watcher.run());
        match started {
            Ok(_) => Ok(()),
            Err(why) => {
                // The other end of its answers is closed: it cannot be used any more.
                state.end_process(&format!("no thread is left for its answers ({why})"));
                state.start_process();
                Err(format!("no thread is left for the guard: {why}"))
            }
        }
    }

    fn answered(&self, answer: Answer, generation: u64) {
        let mut state = lock(&self.state);
        let mut taken_over = None;
        match answer {
            Answer::Armed(key) => {
                if let Some(armed) = state.armed.get_mut(&key) {
                    armed.acknowledged = Some(generation);
                }
            }
            Answer::Refused(key, why) => {
                if let Some(armed) = state.armed.get_mut(&key) {
                    armed.refused = Some(why);
                }
            }
            Answer::TakenOver(key, was_started) => {
                if let Some(armed) = state.armed.get_mut(&key) {
                    armed.taken_over = Some(was_started);
                    taken_over = Some(key);
                }
            }
            Answer::Undone(key, report) => {
                if let Some(armed) = state.armed.get_mut(&key) {
                    armed.report = Some(*report);
                }
            }
        }
        let hook = state.hook.clone();
        drop(state);
        self.answered.notify_all();
        if let (Some(key), Some(hook)) = (taken_over, hook) {
            hook(&key, Loss::TakenOver);
        }
    }
}

/// Reads the answers of one guard.
struct Watcher {
    shared: Arc<Shared>,
    stdout: ChildStdout,
    generation: u64,
    /// Until when the guard has to acknowledge everything that is armed; none once it has.
    rearmed_by: Option<Instant>,
}

impl Watcher {
    /// Reads until the guard is gone, and has another one started.
    fn run(mut self) {
        let mut records = Records::default();
        let mut buffer = [0; READ_BYTES];
        loop {
            self.check_rearmed();
            match self.rearmed_by {
                Some(_) if !wait_for(&self.stdout, PollFlags::IN, FULL_PIPE_PERIOD) => continue,
                _ => {}
            }
            match rustix::io::read(&self.stdout, &mut buffer[..]) {
                Ok(read @ 1..) => records.push(&buffer[..read]),
                Err(Errno::INTR) => continue,
                Ok(_) | Err(_) => break,
            }
            while let Ok(Some(record)) = records.take() {
                if let Some(answer) = Answer::decode(record) {
                    self.shared.answered(answer, self.generation);
                }
            }
        }
        self.replace();
    }

    /// Tells the agent of what a guard that took the place of another one has not acknowledged in time.
    fn check_rearmed(&mut self) {
        let Some(deadline) = self.rearmed_by else {
            return;
        };
        let mut state = lock(&self.shared.state);
        self.shared.flush(&mut state);
        let is_missing =
            |armed: &Armed| armed.acknowledged != Some(self.generation) && armed.report.is_none();
        let missing: Vec<String> = { state.armed.iter() }
            .filter(|(_, armed)| is_missing(armed))
            .map(|(key, _)| key.clone())
            .collect();
        if !missing.is_empty() && Instant::now() < deadline {
            return;
        }
        self.rearmed_by = None;
        let hook = state.hook.clone();
        drop(state);
        unguarded(hook, &missing);
    }

    /// The guard is gone: starts another one.
    fn replace(self) {
        let mut state = lock(&self.shared.state);
        if state
            .process
            .as_ref()
            .is_some_and(|process| process.generation == self.generation)
        {
            state.end_process("it has ended");
        }
        if state.process.is_none() {
            state.start_process();
        }
        let deadline = Instant::now() + ARM_TIMEOUT;
        let lost: Vec<String> = match Shared::watch(&self.shared, &mut state, Some(deadline)) {
            Ok(()) => {
                self.shared.flush(&mut state);
                Vec::new()
            }
            Err(why) => {
                warn!("{why}");
                state.armed.keys().cloned().collect()
            }
        };
        let hook = state.hook.clone();
        drop(state);
        self.shared.answered.notify_all();
        unguarded(hook, &lost);
    }
}

/// Tells the agent of attempts that no guard would undo.
fn unguarded(hook: Option<Hook>, keys: &[String]) {
    for key in keys {
        warn!("the guard does not know of an undo any more: ending the command with the key {key}");
        if let Some(hook) = &hook {
            hook(key, Loss::Unguarded);
        }
    }
}

/// Waits for a descriptor. Whether it is ready.
fn wait_for(fd: &impl rustix::fd::AsFd, what: PollFlags, most: Duration) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::undo::plan::tests::plan;
    use crate::wire::undo::{UndoBy, UndoState};

    #[test]
    fn a_guard_that_does_not_read_is_told_what_still_runs() {
        let key = |n: u32| n.to_string();
        let mut unsent = Unsent::default();
        unsent.push(Order::Remove(key(0)));
        for n in 1..=100 {
            unsent.push(Order::Add(key(n)));
            unsent.push(Order::SetGroup(key(n), Pid::INIT, 7));
            if n != 50 {
                unsent.push(Order::Remove(key(n)));
            }
        }
        let expected = [
            Order::Remove(key(0)),
            Order::Add(key(50)),
            Order::SetGroup(key(50), Pid::INIT, 7),
        ];
        assert_eq!(unsent.orders, expected);
    }

    #[test]
    fn what_is_disarmed_before_the_guard_knows_of_it_is_not_told() {
        let key = || "a".to_owned();
        let mut unsent = Unsent::default();
        for order in [
            Order::Contact(1),
            Order::Arm(key(), 1, (*b"{}").into()),
            Order::SetGroup(key(), Pid::INIT, 2),
            Order::Output(key(), b"out".into()),
            Order::Undoing(key(), 2),
            Order::Undoing(key(), 3),
            Order::Contact(2),
            Order::Disarm("b".into()),
        ] {
            unsent.push(order);
        }
        assert_eq!(unsent.orders.len(), 6);
        unsent.push(Order::Disarm(key()));
        assert_eq!(
            unsent.orders,
            [Order::Contact(2), Order::Disarm("b".into())]
        );
    }

    /// What a guard has undone counts only if it was undone after the start.
    #[test]
    fn what_the_guard_undid_before_the_start_is_undone_again() {
        let guard = Guard {
            shared: Arc::new(Shared {
                state: Mutex::new(State::new()),
                answered: Condvar::new(),
                armed: AtomicUsize::new(0),
            }),
        };
        let plan = plan("undo", None);
        let report = UndoReport {
            id: plan.id.clone(),
            state: UndoState::Done,
            reason: None,
            by: UndoBy::Guard,
            tries: 1,
            exit_code: Some(0),
            check_exit_code: None,
            msg: String::new(),
            output: String::new(),
            began_ago_ms: None,
            ended_ago_ms: None,
        };
        assert!(guard.may_start(&plan.key).is_err());
        for was_started in [true, false] {
            let armed = Armed::new(now_in_ms(), Arc::new([]));
            lock(&guard.shared.state)
                .armed
                .insert(plan.key.clone(), armed);
            assert_eq!(guard.may_start(&plan.key), Ok(()));
            assert_eq!(guard.wait_until_undone(&plan.key), None);
            let key = || plan.key.clone();
            let taken_over = Answer::TakenOver(key(), was_started);
            guard.shared.answered(taken_over, 1);
            assert!(guard.may_start(&plan.key).is_err());
            let undone = Answer::Undone(key(), Box::new(report.clone()));
            guard.shared.answered(undone, 1);
            let expected = was_started.then(|| report.clone());
            assert_eq!(guard.wait_until_undone(&plan.key), expected);
        }
        // It was stopped after the arming.
        let at = now_in_ms() - 60_000;
        let armed = Armed::new(at, Arc::new([]));
        lock(&guard.shared.state)
            .armed
            .insert(plan.key.clone(), armed);
        assert!(guard.may_start(&plan.key).is_err());
    }

    #[test]
    fn an_order_that_was_written_in_part_is_finished() {
        let mut unsent = Unsent::default();
        unsent.push(Order::Add("a".into()));
        let record = Order::Add("a".into()).encode();
        *unsent.begin().unwrap().1 = 3;
        unsent.push(Order::Remove("a".into()));
        let (begun, written) = unsent.begin().unwrap();
        assert_eq!((begun, *written), (&record[..], 3));
        *written = record.len();
        assert_eq!(
            unsent.begin().unwrap().0,
            Order::Remove("a".into()).encode()
        );
        *unsent.begin().unwrap().1 = Order::Remove("a".into()).encode().len();
        assert!(unsent.begin().is_none() && unsent.is_empty());
    }
}
