//! Obeying orders of the server, and running the commands they start in threads of the pool.

use super::attempt::{Attempt, Outcome, Waker, lock};
use super::command::runner::NotStarted;
use super::command::start_watch;
use super::processes::process_table::ProcessTable;
use super::reporter;
use super::shared::{Agent, Task, restart_on_panic};
use super::state::{Job, Runnable};
use crate::wire::agent::{AttemptId, Orders};
use crate::wire::task::ExecutionState;
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
    /// Obeys orders, up to the start of commands.
    pub fn obey(&self, orders: Orders<Box<RawValue>>) -> Obeyed {
        let jobs = orders.start.into_iter();
        let runnable: Vec<Runnable> = jobs
            .filter_map(|job| self.state.accept(job, None))
            .collect();
        self.log_refused_orders();
        let mut changed = !runnable.is_empty();
        for id in orders.cancel {
            if self.state.cancel(&id) {
                info!("{} (attempt {}): canceled", id.execution, id.attempt);
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

    /// Logs that orders were refused, now and then.
    pub fn log_refused_orders(&self) {
        if let Some(why) = self.state.take_refusal()
            && let Some(count) = lock(&self.refused_orders).failed("start", why, Instant::now())
        {
            warn!("the server ordered a start, and it is refused: {why}{count}");
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
            };
            next = runnable.map(Task::Run).or_else(|| self.threads.next());
        }
    }

    /// Runs one command to its end and has the result reported. Returns what this thread runs next.
    fn run(self: &Arc<Self>, runnable: Runnable, waker: Option<&Waker>) -> Option<Runnable> {
        let Runnable { attempt, job } = runnable;
        let next = self.run_to_end(&attempt, job, waker);
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

    /// Returns the attempt that gets the slot next.
    fn run_to_end(
        self: &Arc<Self>,
        attempt: &Arc<Attempt>,
        job: Job,
        waker: Option<&Waker>,
    ) -> Option<Runnable> {
        let id = &attempt.id;
        let run = move || {
            let start = match self.start_watch.begin(attempt, || self.watch_starts()) {
                Ok(start) => start,
                Err(why) => return Some(Outcome::not_started(ExecutionState::Failed, why)),
            };
            let started = self.runner.start(&self.state, attempt, &job, waker, start);
            if let Err(NotStarted::LeftAlone) = started {
                return None;
            }
            // Log after the start: writing the line would delay it.
            info!(
                "{} (attempt {}): starting, task {:?}",
                id.execution, id.attempt, job.task_name
            );
            drop(job);
            match started {
                Ok(supervisor) => Some(supervisor.run()),
                Err(NotStarted::Ended(outcome)) => Some(outcome),
                Err(NotStarted::LeftAlone) => None,
            }
        };
        // A bug in there costs one command its result, and not the agent a slot for ever.
        let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            attempt.kill_now(ProcessTable::read().as_ref());
            let why = "the agent failed to run it (a bug)";
            Some(Outcome::not_started(ExecutionState::Failed, why))
        });
        log_end(id, outcome.as_ref()?);
        self.state.ended(attempt, outcome?)
    }

    /// Starts the thread that ends attempts whose start does not return.
    fn watch_starts(self: &Arc<Self>) -> io::Result<()> {
        let agent = Arc::clone(self);
        let end = move |attempt: &Arc<Attempt>, outcome: Outcome| {
            log_end(&attempt.id, &outcome);
            let next = agent.state.ended(attempt, outcome);
            agent.state.result_ready();
            next.into_iter().for_each(|next| agent.start(next));
        };
        let agent = Arc::clone(self);
        let look = move || agent.start_watch.look_forever(&end);
        let thread = std::thread::Builder::new().name("start watch".into());
        let thread = thread.stack_size(start_watch::STACK_BYTES);
        let started = thread.spawn(move || restart_on_panic("watch over starts", look));
        started.map(drop)
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
