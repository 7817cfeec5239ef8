//! Obeying orders of the server, and running the commands they start in threads of the pool.

use super::attempt::{Attempt, Outcome, StopReason, Waker, lock};
use super::command::runner::NotStarted;
use super::command::start_watch;
use super::files::Laid;
use super::processes::process_table::ProcessTable;
use super::reporter;
use super::shared::{Agent, Task, restart_on_panic};
use super::state::{Job, Runnable};
use super::undo::machine::Event;
use crate::wire::agent::{AttemptId, Orders};
use crate::wire::crew::Wanted;
use crate::wire::task::ExecutionState;
use crate::wire::undo::UndoReason;
use crate::wire::update::Update;
use log::{info, warn};
use serde_json::value::RawValue;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// The stack of a thread of the pool, in bytes. Buffers are on the heap. The deepest calls are those that
/// parse JSON, start processes and begin a TLS connection.
const STACK_BYTES: usize = 512 * 1024;

/// What orders led to.
#[derive(Debug)]
pub struct Obeyed {
    /// Commands to be started now.
    pub runnable: Vec<Runnable>,
    /// Whether any order changed anything.
    pub changed: bool,
}

impl Agent {
    /// Obeys orders, up to the start of commands. Commands are started only while `latest` is the number of the latest
    /// poll, if the orders are the answer to one: a later poll has already told the server that they never arrived.
    pub fn obey(self: &Arc<Self>, orders: Orders<Box<RawValue>>, latest: Option<u64>) -> Obeyed {
        // Before anything else: what is left of an earlier command may be in the way of the next.
        let mut has_undo = false;
        for job in orders.undo {
            has_undo |= self.start_undo(job);
        }
        let has_probe = !orders.probe.is_empty();
        for order in orders.probe {
            self.start_probe(order);
        }
        let jobs = orders.start.into_iter();
        let runnable: Vec<Runnable> = jobs
            .filter_map(|job| self.state.accept(job, latest))
            .collect();
        self.log_refused_orders();
        let mut changed = has_undo || has_probe || !runnable.is_empty();
        changed |= orders.crew.is_some_and(|wanted| self.obey_wish(wanted));
        for id in orders.cancel {
            let reason = match orders.stopped.contains(&id) {
                true => StopReason::Stopped,
                false => StopReason::Canceled,
            };
            if self.state.stop(&id, reason) {
                let (execution, attempt, why) = (&id.execution, id.attempt, reason.text());
                info!("{execution} (attempt {attempt}): {why}");
                changed = true;
            }
        }
        for id in orders.forget {
            if self.state.forget(&id) {
                info!("{} (attempt {}): forgotten", id.execution, id.attempt);
                changed = true;
            }
        }
        Obeyed { runnable, changed }
    }

    /// Obeys an order about the agent itself. Whether that changed anything.
    fn obey_wish(self: &Arc<Self>, wanted: Wanted) -> bool {
        let changed = match wanted {
            Wanted::Drain => self.state.set_drained(true),
            Wanted::Undrain => self.state.set_drained(false),
            Wanted::Shutdown => return self.end("the server"),
        };
        match wanted {
            Wanted::Drain if changed => {
                info!("the server: taking no more work until it says otherwise")
            }
            Wanted::Undrain if changed => info!("the server: taking work again"),
            _ => {}
        }
        changed
    }

    /// Logs that orders to start a command or an undo were refused, now and then.
    pub fn log_refused_orders(&self) {
        if let Some(why) = self.state.take_refusal()
            && let Some(count) = lock(&self.refused_orders).failed("start", why, Instant::now())
        {
            warn!("the server gave an order, and it is refused: {why}{count}");
        }
    }

    /// Runs a command in another thread. Where none can be started, the attempt fails.
    pub fn start(self: &Arc<Self>, runnable: Runnable) {
        let mut next = Some(runnable);
        while let Some(runnable) = next.take() {
            let attempt = Arc::clone(&runnable.attempt);
            if let Err(back) = self.submit(Task::Run(runnable)) {
                let why = back.1;
                warn!("cannot start a thread: {why}");
                let msg = format!("this machine has no thread left to run it: {why}");
                let outcome = Outcome::not_started(ExecutionState::Failed, msg);
                next = self.state.ended(&attempt, outcome);
                self.state.result_ready();
            }
        }
    }

    /// Gives a task to a thread of the pool. Gives it back when no thread can be started.
    pub fn submit(self: &Arc<Self>, task: Task) -> Result<(), Box<(Task, io::Error)>> {
        let spawn = || {
            let agent = Arc::clone(self);
            std::thread::Builder::new()
                .name("worker".into())
                .stack_size(STACK_BYTES)
                .spawn(move || agent.run_tasks())
                .map(|_| ())
        };
        self.threads.submit(task, spawn).map_err(Box::new)
    }

    /// The loop of a thread of the pool. Ends when there is no task for a while.
    fn run_tasks(self: &Arc<Self>) {
        let mut waker = None;
        let mut next = self.threads.next();
        while let Some(task) = next.take() {
            let runnable = match task {
                Task::Run(runnable) => {
                    waker = waker.or_else(Waker::new);
                    self.run(runnable, waker.as_ref())
                }
                Task::Poll(polls) => self.poll(polls),
                Task::Undo(job) => {
                    self.undo_order(*job);
                    None
                }
                Task::Probe(job) => {
                    self.run_probe(&job);
                    None
                }
                Task::SettleLeftAlone(attempt, outcome) => {
                    let next = self.settle_left_alone(&attempt, outcome);
                    self.state.result_ready();
                    next
                }
            };
            next = runnable.map(Task::Run).or_else(|| self.threads.next());
        }
    }

    /// Runs one command to its end and has the result reported. Returns what this thread runs next.
    fn run(self: &Arc<Self>, runnable: Runnable, waker: Option<&Waker>) -> Option<Runnable> {
        let Runnable { attempt, job } = runnable;
        if let Some(update) = &job.update {
            self.run_update(&attempt, &job, update, waker);
            return None;
        }
        let next = match self.run_to_end(&attempt, job, waker) {
            Ok(next) => next,
            Err(outcome) => {
                // Its slot is free: undos run outside of `--jobs`.
                let runnable = self.state.command_ended(&attempt);
                runnable.into_iter().for_each(|it| self.start(it));
                self.undo_attempt(&attempt, outcome);
                None
            }
        };
        drop(attempt);
        if next.is_some() {
            self.state.result_ready();
            return next;
        }
        catch_unwind(AssertUnwindSafe(|| reporter::report(self))).unwrap_or_else(|_| {
            self.state.result_ready();
            None
        })
    }

    /// Replaces the program of this agent. Returns if that is not done, and has the reason reported.
    fn run_update(
        self: &Arc<Self>,
        attempt: &Attempt,
        job: &Job,
        update: &Update,
        waker: Option<&Waker>,
    ) {
        // It waits for what runs, so it must not take its slot.
        let next = self.state.command_ended(attempt);
        next.into_iter().for_each(|next| self.start(next));
        let run = AssertUnwindSafe(|| self.update(attempt, job, update, waker));
        let outcome = catch_unwind(run).unwrap_or_else(|_| {
            let why = "update: the agent failed to do it (a bug)";
            Outcome::not_started(ExecutionState::Failed, why)
        });
        log_end(&attempt.id, &outcome);
        self.state.settled(attempt, outcome);
        self.state.result_ready();
    }

    /// Returns the attempt that gets the slot next. The error is the outcome of a command that is to be undone.
    fn run_to_end(
        self: &Arc<Self>,
        attempt: &Arc<Attempt>,
        job: Job,
        waker: Option<&Waker>,
    ) -> Result<Option<Runnable>, Outcome> {
        let id = &attempt.id;
        let run = move || {
            match self.lay_files(attempt, &job, waker) {
                Ok(Laid::Start) => {}
                Ok(Laid::Over(outcome)) | Err(outcome) => return Some(outcome),
            }
            let start = match self.start_watch.begin(attempt, || self.watch_starts()) {
                Ok(start) => start,
                Err(why) => return Some(Outcome::not_started(ExecutionState::Failed, why)),
            };
            let started = match self.runner.start(&self.state, attempt, &job, waker, start) {
                Ok(supervisor) => Ok(supervisor),
                Err(NotStarted::Ended(outcome)) => Err(outcome),
                Err(NotStarted::LeftAlone(plan)) => {
                    if let Some(plan) = plan {
                        self.undo_late_start(attempt, *plan);
                    }
                    return None;
                }
            };
            // Log after the start: writing the line would delay it.
            info!(
                "{} (attempt {}): starting, task {:?}",
                id.execution, id.attempt, job.task_name
            );
            drop(job);
            Some(match started {
                Ok(supervisor) => supervisor.run(),
                Err(outcome) => outcome,
            })
        };
        // A bug in there costs one command its result, and not the agent a slot for ever.
        let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            attempt.kill_now(ProcessTable::read().as_ref());
            attempt.advance(Event::Abandoned);
            let why = "the agent failed to run it (a bug)";
            Some(Outcome::not_started(ExecutionState::Failed, why))
        });
        let Some(outcome) = outcome else {
            return Ok(None);
        };
        log_end(id, &outcome);
        if attempt.is_undoing() {
            return Err(outcome);
        }
        let outcome = self.settle_files(attempt, waker, outcome);
        Ok(self.state.ended(attempt, outcome))
    }

    /// Starts the thread that ends attempts whose start does not return.
    fn watch_starts(self: &Arc<Self>) -> io::Result<()> {
        let agent = Arc::clone(self);
        let end = move |attempt: &Arc<Attempt>, outcome| agent.leave_alone(attempt, outcome);
        let agent = Arc::clone(self);
        let look = move || agent.start_watch.look_forever(&end);
        let thread = std::thread::Builder::new().name("start watch".into());
        let thread = thread.stack_size(start_watch::STACK_BYTES);
        let started = thread.spawn(move || restart_on_panic("watch over starts", look));
        started.map(drop)
    }

    /// Ends an attempt whose start does not return. Its command may have been started: then it is undone.
    fn leave_alone(self: &Arc<Self>, attempt: &Arc<Attempt>, outcome: Outcome) {
        log_end(&attempt.id, &outcome);
        if outcome.state == ExecutionState::TimedOut {
            attempt.advance(Event::Ended(UndoReason::TimedOut));
        }
        attempt.advance(Event::Abandoned);
        let next = if attempt.is_undoing() || attempt.has_files() {
            let next = match attempt.is_undoing() {
                true => self.state.command_ended(attempt),
                false => None,
            };
            let settle = Task::SettleLeftAlone(Arc::clone(attempt), outcome);
            let more = match self.submit(settle).map_err(|back| *back) {
                Err((Task::SettleLeftAlone(attempt, outcome), why)) => {
                    warn!("cannot start a thread for what follows a command: {why}");
                    self.settle_left_alone(&attempt, outcome)
                }
                _ => None,
            };
            next.or(more)
        } else {
            self.state.ended(attempt, outcome)
        };
        self.state.result_ready();
        next.into_iter().for_each(|next| self.start(next));
    }
}

impl Agent {
    /// Undoes an attempt whose start was left alone, or removes its files. The attempt that gets its slot, if it had one.
    fn settle_left_alone(
        self: &Arc<Self>,
        attempt: &Attempt,
        outcome: Outcome,
    ) -> Option<Runnable> {
        if attempt.is_undoing() {
            self.undo_attempt(attempt, outcome);
            return None;
        }
        let outcome = self.settle_files(attempt, None, outcome);
        self.state.ended(attempt, outcome)
    }
}

fn log_end(id: &AttemptId, outcome: &Outcome) {
    let separator = if outcome.msg.is_empty() { "" } else { ": " };
    info!(
        "{} (attempt {}): {}{separator}{}",
        id.execution,
        id.attempt,
        outcome.state.word(),
        outcome.msg
    );
}
