//! The agent's end of the guard.
//!
//! Threads that supervise commands tell the guard, so a guard that does not read (because it was stopped, or has no
//! time) must not block them: orders that the pipe does not take are kept. Only [`Guard::arm`] waits for an answer, and
//! not for long, and [`Guard::wait_until_undone`], for no longer than the guard may take.
//!
//! With the first armed attempt a thread begins to read the answers. It notices at once when the guard is gone, and
//! has another one started that is told everything again. Where that fails, nobody would undo the armed attempts if
//! the agent was killed: it is told to end them now ([`Loss`]).

use super::connection::{Armed, Shared, State};
use super::record::Order;
use super::report::Destination;
use super::settle;
use crate::agent::attempt::lock;
use crate::agent::processes::process_table::now_in_ms;
use crate::agent::undo::plan::UndoPlan;
use crate::wire::undo::{UndoReason, UndoReport};
use log::warn;
use rustix::fd::OwnedFd;
use rustix::process::Pid;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a guard may take to acknowledge that it has a plan.
pub const ARM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after the acknowledgement a command may be started. An agent that was stopped in between may have been
/// replaced by its guard.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest time between two orders that only say that all is well.
const ALIVE_PERIOD: Duration = Duration::from_secs(1);

/// What the agent has to know of its guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No guard has the plan any more: the attempt is to be ended and undone now.
    Unguarded,
    /// The guard ends and undoes the attempt, because this agent seemed not to work.
    TakenOver,
}

/// The guard, as the agent sees it.
pub struct Guard {
    shared: Arc<Shared>,
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

    /// Hands over the read end of a pipe of a background process, which must be non-blocking. False if the guard does
    /// not take it now.
    pub fn take_pipe(&self, pipe: &OwnedFd) -> bool {
        let state = lock(&self.shared.state);
        { state.process.as_ref() }.is_some_and(|process| process.socket.send(pipe))
    }

    /// Sends the orders that the pipe did not take before. To be called now and then.
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
        if let Some(process) = &state.process {
            process.wake();
        }
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
    pub fn wait_until_undone(&self, plan: &UndoPlan) -> Option<UndoReport> {
        self.wait_for_report(&plan.key, settle::longest(plan))
    }

    /// The same, for so long at most: an answer is lost when the socket is full. To undo once more does no harm.
    fn wait_for_report(&self, key: &str, most: Duration) -> Option<UndoReport> {
        let begun = Instant::now();
        let mut state = lock(&self.shared.state);
        loop {
            let armed = state.armed.get(key);
            let armed = armed.filter(|armed| armed.taken_over == Some(true))?;
            if let Some(report) = &armed.report {
                return Some(report.clone());
            }
            let left = most.saturating_sub(begun.elapsed());
            if left.is_zero() {
                warn!(
                    "the guard has not said within {most:?} how it undid an attempt: undoing it again"
                );
                return None;
            }
            // The thread that reads answers wakes this one, also when the guard is gone.
            let waited = self.shared.answered.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::processes::guard::record::Answer;
    use crate::agent::undo::plan::tests::plan;
    use crate::wire::undo::{UndoBy, UndoState};

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
            assert_eq!(guard.wait_until_undone(&plan), None);
            let key = || plan.key.clone();
            let taken_over = Answer::TakenOver(key(), was_started);
            guard.shared.answered(taken_over, 1);
            assert!(guard.may_start(&plan.key).is_err());
            // Its answer may be lost.
            let soon = Duration::from_millis(20);
            assert_eq!(guard.wait_for_report(&plan.key, soon), None);
            let undone = Answer::Undone(key(), Box::new(report.clone()));
            guard.shared.answered(undone, 1);
            let expected = was_started.then(|| report.clone());
            assert_eq!(guard.wait_until_undone(&plan), expected);
        }
        // It was stopped after the arming.
        let at = now_in_ms() - 60_000;
        let armed = Armed::new(at, Arc::new([]));
        lock(&guard.shared.state)
            .armed
            .insert(plan.key.clone(), armed);
        assert!(guard.may_start(&plan.key).is_err());
    }
}
