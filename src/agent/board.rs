//! What the agent's threads share: which attempts it holds, and what is to be done with them.
//!
//! An attempt is *held* from the order to start it until the server has taken its result; that is
//! what a poll lists. One that was *forgotten* while it ran is not held any more, but its command
//! goes on and takes one of the agent's places until it ends. Of those that are gone the ids are
//! remembered, so that no repeated order can start one twice.
//!
//! The board knows no process, no socket and no thread. Its lock is taken before that of a
//! [`Held`], never after it.

use super::held::{Held, Outcome, Stop, lock};
use crate::wire::agent::{Assignment, AttemptId, Hold};
use crate::wire::task::ExecutionState;
use serde_json::Value;
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Ids remembered of attempts that are gone, in number: far more than a server could repeat.
const MAX_REMEMBERED: usize = 10_000;
/// Results the server has not taken, in number. At this bound the agent takes no more work: its
/// polls say that it is draining, until the server has taken some.
const MAX_UNREPORTED: usize = 1_000;
/// Output in memory, in bytes, with the same consequence. What runs already may go beyond it, by
/// the 2 MiB that are kept of a command at most.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// A command to run.
pub type Job = Assignment<Value>;

/// The shared state.
#[derive(Debug)]
pub struct Board {
    state: Mutex<State>,
    /// There is something for the reporter.
    news: Condvar,
    /// Less runs, or less is held: the end of the agent waits for it, and nobody else.
    less: Condvar,
    /// Some command has written something the reporter has not looked at.
    output_came: AtomicBool,
}

#[derive(Debug)]
struct State {
    instance: String,
    jobs: usize,
    seq: u64,
    /// Counts the poll loops that were started: only the latest goes on.
    epoch: u64,
    draining: bool,
    held: Vec<Arc<Held>>,
    forgotten: Vec<Arc<Held>>,
    /// Held, but there was no free place.
    waiting: VecDeque<(Arc<Held>, Job)>,
    /// Places taken.
    running: usize,
    gone: Gone,
    nudged: bool,
}

/// The ids of attempts that are gone, the oldest leave first.
#[derive(Debug, Default)]
struct Gone {
    ids: HashSet<AttemptId>,
    order: VecDeque<AttemptId>,
}

impl Gone {
    fn remember(&mut self, id: &AttemptId) {
        if self.ids.insert(id.clone()) {
            self.order.push_back(id.clone());
        }
        if self.order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

/// What a poll says about the agent.
#[derive(Debug)]
pub struct Report {
    /// The random id of this agent.
    pub instance: String,
    /// The number of the poll.
    pub seq: u64,
    /// Places that can be filled by the server.
    pub jobs: u32,
    /// Takes no more work: it is about to end.
    pub draining: bool,
    /// Takes no more work for now: there is no room.
    pub full: bool,
    /// The attempts it holds.
    pub holds: Vec<Hold>,
}

impl State {
    fn is_known(&self, id: &AttemptId) -> bool {
        self.gone.ids.contains(id)
            || self.held.iter().any(|held| held.id == *id)
            || self.forgotten.iter().any(|held| held.id == *id)
    }

    fn is_full(&self) -> bool {
        let ended = self.held.iter().filter(|held| held.has_ended()).count();
        ended >= MAX_UNREPORTED
            || self.held.iter().map(|held| held.kept()).sum::<usize>() >= MAX_KEPT_BYTES
    }

    /// Takes an attempt out of the hands of the agent.
    fn let_go(&mut self, id: &AttemptId) -> Option<Arc<Held>> {
        let at = self.held.iter().position(|held| held.id == *id)?;
        Some(self.held.remove(at))
    }

    fn take_waiting(&mut self, id: &AttemptId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(held, _)| held.id != *id);
        before != self.waiting.len()
    }
}

impl Board {
    /// Nothing held, nothing running.
    pub fn new(instance: String, jobs: u32) -> Self {
        Board {
            state: Mutex::new(State {
                instance,
                jobs: jobs as usize,
                seq: 0,
                epoch: 0,
                draining: false,
                held: Vec::new(),
                forgotten: Vec::new(),
                waiting: VecDeque::new(),
                running: 0,
                gone: Gone::default(),
                nudged: false,
            }),
            news: Condvar::new(),
            less: Condvar::new(),
            output_came: AtomicBool::new(false),
        }
    }

    /// The random id of this agent.
    pub fn instance(&self) -> String {
        lock(&self.state).instance.clone()
    }

    /// The number of the latest poll, by which a report asks for more; none when there is no room.
    pub fn asks_for_more(&self) -> Option<u64> {
        let state = lock(&self.state);
        (!state.draining && !state.is_full()).then_some(state.seq)
    }

    /// Takes a new random id, if nothing is held under the old one. Whether it did.
    pub fn renew_instance(&self, instance: String) -> bool {
        let mut state = lock(&self.state);
        let free = state.held.is_empty();
        if free {
            state.instance = instance;
        }
        free
    }

    /// What the next poll says; none when the poll loop of this `epoch` is to end.
    pub fn report(&self, epoch: u64) -> Option<Report> {
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return None;
        }
        state.seq += 1;
        let places = state.jobs.saturating_sub(state.forgotten.len());
        Some(Report {
            instance: state.instance.clone(),
            seq: state.seq,
            jobs: u32::try_from(places.max(1)).unwrap_or(u32::MAX),
            draining: state.draining,
            full: places == 0 || state.is_full(),
            holds: state.held.iter().map(|held| held.hold()).collect(),
        })
    }

    /// An order to start. Returns what is to be started now; nothing when the attempt is known, when
    /// it has to wait for a free place, or when the agent is about to end (an attempt that is not
    /// held was not started, and the goodbye says so).
    ///
    /// An order that came beside the polls counts only while the `latest` of them is the one it was
    /// asked for with: a later one has said already that it never arrived.
    pub fn accept(&self, job: Job, latest: Option<u64>) -> Option<(Arc<Held>, Job)> {
        let mut state = lock(&self.state);
        if state.draining || state.is_known(&job.id) {
            return None;
        }
        if latest.is_some_and(|latest| latest != state.seq) {
            return None;
        }
        let held = Arc::new(Held::new(job.id.clone()));
        state.held.push(Arc::clone(&held));
        if state.running >= state.jobs {
            state.waiting.push_back((held, job));
            return None;
        }
        state.running += 1;
        Some((held, job))
    }

    /// An order to cancel. Whether it is news.
    pub fn cancel(&self, id: &AttemptId) -> bool {
        let mut state = lock(&self.state);
        if state.take_waiting(id) {
            if let Some(held) = state.held.iter().find(|held| held.id == *id) {
                held.end(Outcome::not_started(
                    ExecutionState::Canceled,
                    Stop::Cancel.words(),
                ));
            }
            self.news.notify_one();
            return true;
        }
        let mut known = state.held.iter().chain(&state.forgotten);
        known
            .find(|held| held.id == *id)
            .is_some_and(|held| held.stop(Stop::Cancel))
    }

    /// An order to forget. Whether it is news.
    pub fn forget(&self, id: &AttemptId) -> bool {
        let mut state = lock(&self.state);
        let Some(held) = state.let_go(id) else {
            return false;
        };
        held.forget();
        if state.take_waiting(id) || held.has_ended() {
            state.gone.remember(id);
        } else {
            state.forgotten.push(held);
        }
        self.tell_the_end(&state);
        true
    }

    /// A command ended, or could not be started. Returns what is to be started in its place. That
    /// there is a result the reporter is told by [`Board::result_came`], unless the caller sends it.
    pub fn ended(&self, held: &Held, outcome: Outcome) -> Option<(Arc<Held>, Job)> {
        let mut state = lock(&self.state);
        held.end(outcome);
        if let Some(at) = state.forgotten.iter().position(|f| f.id == held.id) {
            state.forgotten.remove(at);
            state.gone.remember(&held.id);
        }
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.running = state.running.saturating_sub(1);
        }
        self.tell_the_end(&state);
        next
    }

    /// The server has the result.
    pub fn delivered(&self, id: &AttemptId) {
        let mut state = lock(&self.state);
        if state.let_go(id).is_some() {
            state.gone.remember(id);
            self.tell_the_end(&state);
        }
    }

    /// Wakes who waits for the end of the agent; a call to wake nobody is saved.
    fn tell_the_end(&self, state: &State) {
        if state.draining {
            self.less.notify_all();
        }
    }

    /// Whether there is a result that the server has not taken.
    pub fn has_result(&self) -> bool {
        lock(&self.state).held.iter().any(|held| held.has_ended())
    }

    /// There is a result for the reporter to send.
    pub fn result_came(&self) {
        // The lock makes sure that the reporter is either before its look at the results or asleep.
        let _state = lock(&self.state);
        self.news.notify_one();
    }

    /// A command has written something. Costs a lock only when that is news to the reporter.
    pub fn output_came(&self) {
        if !self.output_came.swap(true, Ordering::SeqCst) {
            // The lock makes sure that the reporter is either before its look at the flag or asleep.
            let _state = lock(&self.state);
            self.news.notify_one();
        }
    }

    /// Whatever pauses there are, now is a good time to try again.
    pub fn nudge(&self) {
        lock(&self.state).nudged = true;
        self.news.notify_one();
    }

    /// Sleeps until there is a result and it is `not_before`, or there is output and it is also not
    /// before `output_not_before`. Whether it was nudged out of its pause.
    pub fn wait_for_news(&self, not_before: Instant, output_not_before: Instant) -> bool {
        let mut state = lock(&self.state);
        loop {
            let nudged = std::mem::take(&mut state.nudged);
            let now = Instant::now();
            let start = if nudged { now } else { not_before };
            let due = if state.held.iter().any(|held| held.has_ended()) {
                Some(start)
            } else if self.output_came.load(Ordering::SeqCst) {
                Some(start.max(output_not_before))
            } else {
                None
            };
            match due {
                Some(at) if at <= now => {
                    self.output_came.store(false, Ordering::SeqCst);
                    return nudged;
                }
                _ if nudged => return true,
                due => state = sleep(&self.news, state, due),
            }
        }
    }

    /// Waits until nothing runs. Whether that came before the `deadline`.
    pub fn wait_until_idle(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |state| state.running == 0)
    }

    /// Waits until the server has every result. Whether that came before the `deadline`.
    pub fn wait_until_reported(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |state| state.held.is_empty())
    }

    fn wait_until(&self, deadline: Instant, reached: impl Fn(&State) -> bool) -> bool {
        let mut state = lock(&self.state);
        while !reached(&state) {
            if Instant::now() >= deadline {
                return false;
            }
            state = sleep(&self.less, state, Some(deadline));
        }
        true
    }

    /// The attempts with something to tell the server, those that have ended first.
    pub fn news(&self) -> Vec<Arc<Held>> {
        let state = lock(&self.state);
        let news = state.held.iter().filter(|held| held.has_news());
        let (mut first, rest): (Vec<_>, Vec<_>) = news.cloned().partition(|held| held.has_ended());
        first.extend(rest);
        first
    }

    /// What the agent holds, for its goodbye.
    pub fn holds(&self) -> Vec<Hold> {
        lock(&self.state).held.iter().map(|h| h.hold()).collect()
    }

    /// Takes no more work from now on; what waits for a free place ends here. Returns the epoch of
    /// the poll loop that says so.
    pub fn drain(&self) -> u64 {
        let mut state = lock(&self.state);
        state.draining = true;
        state.epoch += 1;
        for (held, _) in state.waiting.drain(..) {
            held.end(Outcome::not_started(
                ExecutionState::Canceled,
                Stop::Shutdown.words(),
            ));
        }
        self.news.notify_one();
        state.epoch
    }

    /// No poll loop goes on.
    pub fn end_polls(&self) {
        lock(&self.state).epoch += 1;
    }

    /// Orders the end of everything that runs.
    pub fn stop_all(&self) {
        let state = lock(&self.state);
        for held in state.held.iter().chain(&state.forgotten) {
            held.stop(Stop::Shutdown);
        }
    }

    /// Kills everything that runs, at once.
    pub fn kill_all(&self) {
        let state = lock(&self.state);
        for held in state.held.iter().chain(&state.forgotten) {
            held.kill_now();
        }
    }
}

/// Waits to be woken by `condition`, until a point in time if there is one.
fn sleep<'a>(
    condition: &Condvar,
    state: MutexGuard<'a, State>,
    until: Option<Instant>,
) -> MutexGuard<'a, State> {
    match until {
        None => condition
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner),
        Some(at) => {
            let left = at.saturating_duration_since(Instant::now());
            let woken = condition.wait_timeout(state, left);
            woken.unwrap_or_else(PoisonError::into_inner).0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(n: u32) -> Job {
        Job {
            id: AttemptId {
                execution: format!("x.{n}"),
                attempt: 1,
            },
            task_id: "x".into(),
            task_name: "x".into(),
            detail: Value::Null,
        }
    }

    fn over() -> Outcome {
        Outcome::not_started(ExecutionState::Failed, "test")
    }

    #[test]
    fn an_attempt_is_started_once() {
        let board = Board::new("i".into(), 2);
        let (held, _) = board.accept(job(1), None).unwrap();
        assert!(board.accept(job(1), None).is_none());
        board.ended(&held, over());
        assert!(board.accept(job(1), None).is_none());
        board.delivered(&held.id);
        assert!(board.accept(job(1), None).is_none());
        assert!(board.report(0).unwrap().holds.is_empty());
    }

    #[test]
    fn an_order_beside_the_polls_counts_until_the_next_poll() {
        let board = Board::new("i".into(), 2);
        board.report(0);
        let latest = board.asks_for_more();
        assert!(board.accept(job(1), latest).is_some());
        assert_eq!(board.report(0).unwrap().holds.len(), 1);
        assert!(board.accept(job(2), latest).is_none());
        assert!(board.accept(job(2), None).is_some());
        board.drain();
        assert_eq!(board.asks_for_more(), None);
    }

    #[test]
    fn the_remembered_ids_are_bounded() {
        let board = Board::new("i".into(), 1);
        for n in 0..MAX_REMEMBERED as u32 + 10 {
            let (held, _) = board.accept(job(n), None).unwrap();
            board.ended(&held, over());
            board.delivered(&held.id);
        }
        let state = lock(&board.state);
        assert_eq!(state.gone.ids.len(), MAX_REMEMBERED);
        assert_eq!(state.gone.order.len(), MAX_REMEMBERED);
        assert!(!state.is_known(&job(1).id) && state.is_known(&job(100).id));
    }

    #[test]
    fn what_finds_no_free_place_waits_and_is_not_lost() {
        let board = Board::new("i".into(), 1);
        let (first, _) = board.accept(job(1), None).unwrap();
        assert!(board.accept(job(2), None).is_none());
        assert!(board.accept(job(3), None).is_none());
        assert!(board.cancel(&job(2).id));
        assert_eq!(board.report(0).unwrap().holds.len(), 3);
        let (third, _) = board.ended(&first, over()).unwrap();
        assert_eq!(third.id, job(3).id);
        assert!(board.ended(&third, over()).is_none());
        assert_eq!(lock(&board.state).running, 0);
    }

    #[test]
    fn the_forgotten_keep_their_place_until_they_end() {
        let board = Board::new("i".into(), 1);
        let (held, _) = board.accept(job(1), None).unwrap();
        assert!(board.forget(&held.id));
        assert!(!board.forget(&held.id));
        let report = board.report(0).unwrap();
        assert!(report.full && report.holds.is_empty());
        assert!(board.accept(job(1), None).is_none());
        board.ended(&held, over());
        assert!(!board.report(0).unwrap().full);
        assert!(board.accept(job(1), None).is_none());
        assert!(board.news().is_empty());
    }

    #[test]
    fn too_many_results_close_the_door() {
        let board = Board::new("i".into(), 1);
        for n in 0..MAX_UNREPORTED as u32 {
            let (held, _) = board.accept(job(n), None).unwrap();
            board.ended(&held, over());
        }
        assert!(board.report(0).unwrap().full);
        board.delivered(&job(0).id);
        assert!(!board.report(0).unwrap().full);
    }

    #[test]
    fn a_draining_agent_starts_nothing_and_older_poll_loops_end() {
        let board = Board::new("i".into(), 1);
        let (held, _) = board.accept(job(1), None).unwrap();
        board.accept(job(2), None);
        let epoch = board.drain();
        assert!(board.report(0).is_none());
        assert!(board.report(epoch).unwrap().draining);
        assert!(board.accept(job(3), None).is_none());
        assert!(board.ended(&held, over()).is_none());
        assert_eq!(board.news().len(), 2);
        assert!(!board.renew_instance("j".into()));
    }
}
