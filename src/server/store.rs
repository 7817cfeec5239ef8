//! The one lock, around the core and the requests that are being held; and who answers those.
//!
//! Under the lock things are only computed: notices of the core and held requests that are due are
//! taken out, and what has to be written, logged or said because of them is done after it is
//! released, by the answering threads.

use super::answer;
use super::follow::Bells;
use super::held::{Held, HeldWait};
use super::http::Responder;
use crate::core::{Core, Limits, MachineKey, Notice, Refusal, Task, TaskKey, Time};
use crate::wire::agent::{Orders, Poll};
use crate::wire::task::Detail;
use log::info;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Threads that answer held requests: more than one, so that one slow peer does not delay the
/// rest; few, as most answers fit into a socket's buffer.
const ANSWERING_THREADS: usize = 4;

/// The lock and what is around it.
pub struct Store {
    state: Mutex<State>,
    clock: Clock,
    jobs: Mutex<VecDeque<Job>>,
    job_waits: Condvar,
    /// Rung when something happens to a task that is followed.
    pub bells: Bells,
}

struct State {
    core: Core,
    held: Held,
}

/// Something to be answered.
enum Job {
    /// There is something for a machine's held poll.
    Wake(MachineKey),
    /// A task has ended: those who wait for it want to know.
    Finished(TaskKey),
    /// The time of a held poll is up.
    EndPoll(Responder, Orders<Arc<Detail>>),
    /// The time of somebody who waits for a task is up.
    EndWait(HeldWait, Result<Task, Refusal>),
}

/// What became of a poll.
pub enum Polled {
    /// It is to be answered so, now.
    Answer(Responder, Orders<Arc<Detail>>),
    /// It is held.
    Held,
    /// It was refused.
    Refused(Responder, Refusal),
}

/// Wall-clock time that never goes back: taken once, then counted.
struct Clock {
    started_ms: u64,
    started: Instant,
}

impl Clock {
    fn now(&self) -> Time {
        Time(self.started_ms + self.started.elapsed().as_millis() as u64)
    }
}

impl Store {
    /// An empty registry, with its answering threads.
    pub fn start(limits: Limits, max_held: usize) -> Result<Arc<Store>, String> {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let clock = Clock {
            started_ms: since_1970.as_millis() as u64,
            started: Instant::now(),
        };
        let core = Core::new(limits, clock.now());
        let store = Arc::new(Store {
            state: Mutex::new(State {
                core,
                held: Held::new(max_held),
            }),
            clock,
            jobs: Mutex::default(),
            job_waits: Condvar::new(),
            bells: Bells::default(),
        });
        for _ in 0..ANSWERING_THREADS {
            let store = store.clone();
            let thread = thread::Builder::new()
                .name("answer".into())
                .spawn(move || store.answer_forever());
            thread.map_err(|e| format!("cannot start a thread: {e}"))?;
        }
        Ok(store)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the core something.
    pub fn ask<R>(&self, question: impl FnOnce(&Core) -> R) -> R {
        question(&self.state().core)
    }

    /// Lets the core do something, and sees to what follows from it.
    pub fn change<R>(&self, operation: impl FnOnce(&mut Core, Time) -> R) -> R {
        let (result, notices) = {
            let mut state = self.state();
            let result = operation(&mut state.core, self.clock.now());
            (result, state.core.take_notices())
        };
        self.see_to(notices);
        result
    }

    /// Takes in a poll; holds it when there is nothing to do yet.
    pub fn poll(&self, poll: &Poll, mut responder: Responder) -> Polled {
        let mut superseded = None;
        let (polled, notices) = {
            let mut state = self.state();
            let now = self.clock.now();
            let State { core, held } = &mut *state;
            let polled = match core.poll(now, poll) {
                Err(refusal) => Polled::Refused(responder, refusal),
                Ok((machine, orders)) => {
                    superseded = held.take_poll(machine);
                    let until = now.plus(poll.wait.min(answer::MAX_POLL_WAIT));
                    if orders.is_empty() && until > now && held.has_room() {
                        responder.hold();
                        core.park(machine);
                        held.add_poll(machine, responder, until);
                        Polled::Held
                    } else {
                        Polled::Answer(responder, orders)
                    }
                }
            };
            (polled, core.take_notices())
        };
        if let Some(responder) = superseded {
            responder.send(&answer::orders(&Orders::none()));
        }
        self.see_to(notices);
        polled
    }

    /// Holds a request until a task has ended or its time is up. Gives it back when the task has
    /// ended already, or nothing more can be held.
    pub fn wait(&self, task: TaskKey, wait_ms: u64, mut wait: HeldWait) -> Result<(), HeldWait> {
        let mut state = self.state();
        let State { core, held } = &mut *state;
        if wait_ms == 0 || core.is_finished(task) || !held.has_room() {
            return Err(wait);
        }
        wait.responder.hold();
        held.add_wait(task, wait, Time(self.clock.now().0 + wait_ms));
        Ok(())
    }

    /// Notes that somebody follows a task. False when nothing more can be held.
    pub fn follow(&self, task: TaskKey) -> bool {
        let mut state = self.state();
        let has_room = state.held.has_room();
        if has_room {
            state.held.followers += 1;
            state.core.follow(task);
        }
        has_room
    }

    /// Notes that somebody follows a task no more.
    pub fn unfollow(&self, task: TaskKey) {
        let mut state = self.state();
        state.held.followers -= 1;
        state.core.unfollow(task);
    }

    /// Does what is due.
    pub fn tick(&self) {
        loop {
            let (notices, jobs, again) = {
                let mut state = self.state();
                let now = self.clock.now();
                let State { core, held } = &mut *state;
                let next = core.tick(now);
                let mut jobs = Vec::new();
                for (machine, responder) in held.due_polls(now) {
                    jobs.push(Job::EndPoll(responder, core.collect(now, machine)));
                }
                for (task, wait) in held.due_waits(now) {
                    jobs.push(Job::EndWait(wait, core.show(task)));
                }
                (
                    core.take_notices(),
                    jobs,
                    next.is_some_and(|next| next <= now),
                )
            };
            self.see_to(notices);
            self.enqueue(jobs);
            if !again {
                return;
            }
        }
    }

    /// Lets go of held polls whose agent is gone, so that nothing is handed out to nobody.
    pub fn drop_abandoned(&self) {
        let polls = self.state().held.polls_to_check();
        for (machine, connection) in polls {
            if connection.peer.has_closed() {
                let dropped = {
                    let mut state = self.state();
                    let State { core, held } = &mut *state;
                    let dropped = held.take_poll_of(machine, &connection);
                    if dropped.is_some() {
                        core.unpark(machine);
                    }
                    dropped
                };
                drop(dropped);
            }
        }
    }

    /// How many requests are being held.
    pub fn held(&self) -> usize {
        self.state().held.count()
    }

    fn see_to(&self, notices: Vec<Notice>) {
        let mut jobs = Vec::new();
        for notice in notices {
            match notice {
                Notice::Wake(machine) => jobs.push(Job::Wake(machine)),
                Notice::Finished(task) => {
                    jobs.push(Job::Finished(task));
                    self.bells.ring(task);
                }
                Notice::News(task) => self.bells.ring(task),
                Notice::Gone(label, why) => info!("machine {label} is offline: {why}"),
                Notice::Appeared(label, instance) => {
                    info!("machine {label} is online, instance {instance}")
                }
            }
        }
        self.enqueue(jobs);
    }

    fn enqueue(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let many = jobs.len() > 1;
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(jobs);
        if many {
            self.job_waits.notify_all()
        } else {
            self.job_waits.notify_one()
        }
    }

    fn answer_forever(&self) {
        loop {
            let job = {
                let queue = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                let mut queue = self
                    .job_waits
                    .wait_while(queue, |jobs| jobs.is_empty())
                    .unwrap_or_else(PoisonError::into_inner);
                queue.pop_front()
            };
            match job {
                Some(Job::Wake(machine)) => self.answer_poll(machine),
                Some(Job::Finished(task)) => self.answer_waits(task),
                Some(Job::EndPoll(responder, orders)) => {
                    responder.send(&answer::orders(&orders));
                }
                Some(Job::EndWait(wait, task)) => wait.answer(task),
                None => {}
            }
        }
    }

    fn answer_poll(&self, machine: MachineKey) {
        let answered = {
            let mut state = self.state();
            let State { core, held } = &mut *state;
            held.take_poll(machine)
                .map(|responder| (responder, core.collect(self.clock.now(), machine)))
        };
        if let Some((responder, orders)) = answered {
            responder.send(&answer::orders(&orders));
        }
    }

    fn answer_waits(&self, task: TaskKey) {
        let (waits, shown) = {
            let mut state = self.state();
            let waits = state.held.take_waits(task);
            if waits.is_empty() {
                return;
            }
            (waits, state.core.show(task))
        };
        for wait in waits {
            wait.answer(shown.clone());
        }
    }
}

/// The period of the clock's thread: what is due is done at most this late.
pub const TICK: Duration = super::listen::GUARD_PERIOD;
