//! The guard's process: reads orders, answers them, and acts when the agent is gone or does not work.

use super::WAKE_SIGNAL;
use super::ending::{self, Listed};
use super::record::{Answer, Order, Records};
use super::report::say;
use super::settle::{Settler, answer};
use super::watch::{Cause, Watched};
use crate::agent::processes::pipe_drain;
use crate::agent::processes::process_table::now_in_ms;
use crate::agent::undo::plan::UndoPlan;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::process::{Pid, getppid};
use rustix::stdio::dup2_stderr;
use std::collections::{HashMap, HashSet};
use std::io::Stdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long orders may wait to be read while nothing is armed: to wake up for each of them would slow down
/// small commands that come one after the other.
const READ_PERIOD: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// How often the clock is looked at while something is armed: the time that poll(2) waits does not go on while the
/// machine is suspended.
const WATCH_PERIOD_MS: u64 = 1_000;
/// Bytes read at once: the capacity of a pipe.
const READ_BYTES: usize = 64 * 1024;
/// The most attempts that are armed, in number: more than an agent runs commands and undos at once.
const MAX_ARMED: usize = 4_096;
/// The most that all their plans take, in bytes.
const MAX_ARMED_BYTES: usize = 64 << 20;
/// How long the system may take to give the children of an agent that is gone another parent, and how often that is
/// looked at.
const NEW_PARENT_TIME: Duration = Duration::from_secs(1);
const NEW_PARENT_LOOK: Duration = Duration::from_millis(5);
/// The pause before poll(2) is called again after it failed for lack of memory.
const POLL_FAILED_PAUSE: Duration = Duration::from_millis(10);

/// Runs the guard. Returns when the agent and its commands are gone, what they did is undone, and everything has closed
/// its pipes that they left in the background.
pub fn run() {
    let agent = getppid();
    // A signal to the whole session or container also ends the agent; the guard ends after it. Once it has nothing to
    // end or undo any more, a signal ends it.
    let has_ended_all = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGHUP,
    ] {
        let flag = Arc::clone(&has_ended_all);
        let _ = signal_hook::flag::register_conditional_default(signal, flag);
    }
    // This one only interrupts a pause.
    let wake = Arc::new(AtomicBool::new(false));
    let _ = signal_hook::flag::register(WAKE_SIGNAL.as_raw(), wake);
    // The current directory would keep its file system from being unmounted.
    let _ = std::env::set_current_dir("/");
    let stdin = std::io::stdin();
    // Nobody else has these ends of the pipes. If it fails, the guard may wait for an agent that does not read.
    let _ = rustix::io::ioctl_fionbio(&stdin, true);
    let _ = rustix::io::ioctl_fionbio(std::io::stdout(), true);
    // Where that fails, the agent drains the pipes itself.
    let socket = std::io::stdout().as_fd().try_clone_to_owned();
    let drain = socket.ok().and_then(pipe_drain::start);
    let mut guard = GuardProcess::default();
    guard.until_the_agent_is_gone(&stdin);
    guard.end_everything();
    if let Some(drain) = drain
        && !is_waited_for_by_process_1(agent)
    {
        has_ended_all.store(true, Ordering::SeqCst);
        // Whoever reads the log of the agent is not to wait for what it left in the background.
        let _ = dup2_stderr(&stdin);
        let _ = drain.join();
    }
}

/// Whether process 1 is this program, too, and waits for this process. Everything ends with it, so nothing in the
/// background is left to be drained for.
fn is_waited_for_by_process_1(agent: Option<Pid>) -> bool {
    // The agent's pipes are closed a moment before its children get another parent.
    let given_up = Instant::now() + NEW_PARENT_TIME;
    while getppid() == agent && agent != Some(Pid::INIT) && Instant::now() < given_up {
        std::thread::sleep(NEW_PARENT_LOOK);
    }
    let program = |process: &str| std::fs::read_link(format!("/proc/{process}/exe")).ok();
    let own = program("self");
    getppid() == Some(Pid::INIT) && own.is_some() && own == program("1")
}

#[derive(Debug, Default)]
struct GuardProcess {
    listed: Listed,
    armed: HashMap<String, Armed>,
    /// The bytes of all plans.
    armed_bytes: usize,
    /// Attempts that were settled although the agent lives, until the agent has said that they are over.
    taken_over: HashSet<String>,
    /// When the server was last heard of.
    contact: u64,
    settler: Arc<Settler>,
}

#[derive(Debug)]
struct Armed {
    watched: Watched,
    bytes: usize,
}

impl GuardProcess {
    /// Reads and watches.
    fn until_the_agent_is_gone(&mut self, stdin: &Stdin) {
        let mut records = Records::default();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            self.wait(stdin);
            loop {
                match rustix::io::read(stdin, &mut buffer[..]) {
                    Ok(read @ 1..) => {
                        records.push(&buffer[..read]);
                        if !self.obey_all(&mut records) {
                            return;
                        }
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    // A stream that cannot be read means the end as well.
                    Ok(_) | Err(_) => return,
                }
            }
            // All that has been said counts before the clock does: the guard itself may have been stopped.
            self.act_on_what_is_due(now_in_ms());
        }
    }

    /// Waits for orders, or until something is due.
    fn wait(&self, stdin: &Stdin) {
        let timeout = match self.armed.is_empty() {
            true => {
                // The end of a pipe is reported without being asked for.
                let mut only_the_end = [PollFd::new(stdin, PollFlags::empty())];
                if poll(&mut only_the_end, Some(&READ_PERIOD)).is_ok_and(|ready| ready > 0) {
                    return;
                }
                None
            }
            false => {
                let now = now_in_ms();
                let due = self.armed.values().filter_map(|armed| self.due(armed));
                let wait = due.map(|(at, _)| at.saturating_sub(now)).min();
                let wait = wait.unwrap_or(WATCH_PERIOD_MS).min(WATCH_PERIOD_MS);
                Timespec::try_from(Duration::from_millis(wait)).ok()
            }
        };
        let mut orders = [PollFd::new(stdin, PollFlags::IN)];
        match poll(&mut orders, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::thread::sleep(POLL_FAILED_PAUSE),
        }
    }

    fn due(&self, armed: &Armed) -> Option<(u64, Cause)> {
        armed.watched.due(self.contact)
    }

    /// Obeys what has come. Whether it is understood.
    fn obey_all(&mut self, records: &mut Records) -> bool {
        loop {
            match records.take() {
                Ok(Some(record)) => {
                    if let Some(order) = Order::decode(record)
                        && let Some(said) = self.obey(order)
                    {
                        answer(&said);
                    }
                }
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Obeys an order. What is to be answered.
    fn obey(&mut self, order: Order) -> Option<Answer> {
        match order {
            Order::Add(key) => {
                self.listed.insert(key, None);
            }
            Order::SetGroup(key, group, at) => {
                if let Some(armed) = self.armed.get_mut(&key) {
                    armed.watched.started(group, at);
                }
                if let Some(found) = self.listed.get_mut(&key) {
                    *found = Some(group);
                }
            }
            Order::Remove(key) => {
                self.listed.remove(&key);
            }
            Order::ReportTo(destination) => {
                if let Ok(destination) = serde_json::from_slice(&destination) {
                    self.settler.reports.set_destination(destination);
                }
            }
            Order::Arm(key, at, plan) => {
                return Some(match self.arm(&key, at, &plan) {
                    Ok(()) => Answer::Armed(key),
                    Err(why) => Answer::Refused(key, why),
                });
            }
            Order::Disarm(key) => {
                self.disarm(&key);
                self.taken_over.remove(&key);
            }
            Order::Output(key, bytes) => {
                if let Some(armed) = self.armed.get_mut(&key) {
                    armed.watched.wrote(&bytes);
                }
            }
            Order::Undoing(key, at) => {
                if let Some(armed) = self.armed.get_mut(&key) {
                    armed.watched.undoing(at);
                }
            }
            Order::Ended(key, reason, exit_code) => {
                if let Some(armed) = self.armed.get_mut(&key) {
                    armed.watched.ended(reason, exit_code);
                }
            }
            Order::Contact(at) => self.contact = self.contact.max(at),
        }
        None
    }

    fn arm(&mut self, key: &str, at: u64, plan: &[u8]) -> Result<(), String> {
        let plan_of_key = UndoPlan::from_record(plan)
            .map_err(|why| format!("the guard does not understand the undo: {why}"))?;
        if plan_of_key.key != key {
            return Err("the undo has another key".into());
        }
        self.disarm(key);
        let is_full = self.armed.len() + self.taken_over.len() >= MAX_ARMED;
        if is_full || self.armed_bytes + plan.len() > MAX_ARMED_BYTES {
            return Err(format!(
                "the guard keeps {MAX_ARMED} undos at most, of {MAX_ARMED_BYTES} bytes together"
            ));
        }
        self.armed_bytes += plan.len();
        let armed = Armed {
            watched: Watched::new(plan_of_key, at),
            bytes: plan.len(),
        };
        self.armed.insert(key.to_owned(), armed);
        Ok(())
    }

    fn disarm(&mut self, key: &str) -> Option<Watched> {
        let armed = self.armed.remove(key)?;
        self.armed_bytes -= armed.bytes;
        Some(armed.watched)
    }

    /// Settles what the agent should have settled by now.
    fn act_on_what_is_due(&mut self, now: u64) {
        if self.armed.is_empty() {
            return;
        }
        let due: Vec<(String, Cause)> = { self.armed.iter() }
            .filter_map(|(key, armed)| {
                let (_, cause) = self.due(armed).filter(|(at, _)| *at <= now)?;
                Some((key.clone(), cause))
            })
            .collect();
        for (key, cause) in due {
            let Some(watched) = self.disarm(&key) else {
                continue;
            };
            answer(&Answer::TakenOver(key.clone(), watched.was_started()));
            self.listed.remove(&key);
            self.taken_over.insert(key);
            say(&format!(
                "ending and undoing {}: {}",
                watched.plan.id.execution,
                cause.msg()
            ));
            let watched = Arc::new(watched);
            if !self.settler.begin(&watched, cause) {
                // Late is better than not at all: meanwhile the agent waits for answers in vain, as it does not work.
                self.settler.settle(&watched, cause);
            }
        }
    }

    /// The agent is gone: ends everything that is listed, and undoes what is armed.
    fn end_everything(mut self) {
        let armed: Vec<Arc<Watched>> = std::mem::take(&mut self.armed)
            .into_values()
            .map(|armed| Arc::new(armed.watched))
            .collect();
        if !armed.is_empty() {
            say(&format!(
                "the agent is gone: ending and undoing {} commands",
                armed.len()
            ));
        }
        let mut left = Vec::new();
        for watched in armed {
            self.listed.remove(&watched.plan.key);
            if !self.settler.begin(&watched, Cause::AgentGone) {
                left.push(watched);
            }
        }
        ending::end(self.listed);
        for watched in left {
            self.settler.settle(&watched, Cause::AgentGone);
        }
        self.settler.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::undo::plan::tests::plan;

    fn obey(guard: &mut GuardProcess, orders: &[Order]) -> Vec<Answer> {
        let answers = orders.iter().filter_map(|order| guard.obey(order.clone()));
        answers.collect()
    }

    fn group(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    #[test]
    fn the_list_is_what_was_added_and_not_removed() {
        let mut guard = GuardProcess::default();
        let key = str::to_owned;
        let answers = obey(
            &mut guard,
            &[
                Order::Add(key("a")),
                Order::Add(key("b")),
                Order::SetGroup(key("a"), group(10), 0),
                Order::Remove(key("b")),
                Order::Add(key("c")),
                Order::SetGroup(key("d"), group(12), 0),
                Order::Remove(key("e")),
            ],
        );
        assert_eq!(answers, []);
        let expected = [("a", Some(group(10))), ("c", None)];
        assert_eq!(
            guard.listed,
            expected.map(|(key, group)| (key.into(), group)).into()
        );
    }

    #[test]
    fn an_undo_is_armed_until_it_is_disarmed() {
        let mut guard = GuardProcess::default();
        let plan = plan("undo", None);
        let key = plan.key.clone();
        let record: Arc<[u8]> = plan.to_record().unwrap().into();
        let arm = Order::Arm(key.clone(), 5, Arc::clone(&record));
        // Twice, as after a guard was replaced.
        let answers = obey(&mut guard, &[arm.clone(), arm]);
        assert_eq!(answers, [(); 2].map(|()| Answer::Armed(key.clone())));
        assert_eq!(guard.armed_bytes, record.len());
        obey(&mut guard, &[Order::SetGroup(key.clone(), group(10), 77)]);
        let watched = &guard.armed[&key].watched;
        assert_eq!(watched.group, Some(group(10)));
        assert_eq!(watched.started_at(), Some(77));
        obey(&mut guard, &[Order::Remove(key.clone())]);
        assert_eq!(guard.armed.len(), 1);
        obey(&mut guard, &[Order::Disarm(key)]);
        assert!(guard.armed.is_empty() && guard.armed_bytes == 0);
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let mut guard = GuardProcess::default();
        let plan = plan("undo", None);
        let record: Arc<[u8]> = plan.to_record().unwrap().into();
        let refused = |answers: Vec<Answer>, what: &str| match &answers[..] {
            [Answer::Refused(_, why)] => assert!(why.contains(what), "{why}"),
            other => panic!("{other:?}"),
        };
        let broken = Order::Arm(plan.key.clone(), 0, (*b"{").into());
        refused(obey(&mut guard, &[broken]), "not understand");
        let other = Order::Arm("other".into(), 0, Arc::clone(&record));
        refused(obey(&mut guard, &[other]), "another key");
        guard.armed_bytes = MAX_ARMED_BYTES;
        let more = Order::Arm(plan.key.clone(), 0, record);
        refused(obey(&mut guard, &[more]), "at most");
    }
}
