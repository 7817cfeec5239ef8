//! Answering held requests: what a change leaves to be answered, and the threads that do it.
//!
//! An answer that tells of a change waits until that is on the disk; several wait together.

use super::durable::Ticket;
use super::group_waits::GroupWait;
use super::held::HeldWait;
use super::{ANSWERING_THREADS, After, State, Store};
use crate::core::{MachineKey, Notice, Refusal, Task, TaskKey};
use crate::server::answers;
use crate::server::http::Responder;
use crate::wire::agent::Orders;
use crate::wire::duration::TimeSpan;
use crate::wire::task::Detail;
use log::{info, warn};
use std::sync::{Arc, PoisonError};

/// How long a poll stays held after its machine got work by the answer to a report. A command that ends within that
/// time is reported without a poll in between.
const SAYS_WHAT_IT_HOLDS: TimeSpan = TimeSpan::from_secs(1);
/// Held requests that one thread answers after one wait for the disk.
const MAX_JOBS_AT_ONCE: usize = 64;

/// Held requests to be answered.
pub(super) enum Job {
    /// There is work for a machine whose poll is held.
    Wake(MachineKey),
    /// A task has ended: answer the requests that wait for it.
    Finished(TaskKey),
    /// The last member of a group has ended: answer the requests that wait for it.
    GroupFinished(Arc<str>),
    /// The time of a held poll is up.
    EndPoll(Responder, Orders<Arc<Detail>>),
    /// The time of a request that waits for a task is up.
    EndWait(HeldWait, Result<Task, Refusal>),
}

/// The answer to a held request.
struct Reply {
    answer: Answer,
    /// The change that must be on the disk before it is sent, if it tells of one.
    ticket: Ticket,
}

enum Answer {
    Orders(Responder, Orders<Arc<Detail>>),
    Task(HeldWait, Result<Task, Refusal>),
    EndedTask(HeldWait, Result<Task, Refusal>),
    EndedGroup(GroupWait),
}

impl Reply {
    /// Whether it tells of a change that must be on the disk first.
    fn is_news(&self) -> bool {
        match &self.answer {
            Answer::Orders(_, orders) => has_news(orders),
            Answer::EndedTask(..) | Answer::EndedGroup(_) => true,
            Answer::Task(..) => false,
        }
    }
}

/// Whether orders tell of a change that must be on the disk first.
pub(super) fn has_news(orders: &Orders<Arc<Detail>>) -> bool {
    !orders.start.is_empty() || !orders.cancel.is_empty() || !orders.undo.is_empty()
}

impl Store {
    pub(super) fn finish(&self, after: After) {
        let ticket = after.ticket;
        let jobs = self.jobs_of(after);
        self.enqueue(ticket, jobs);
    }

    /// Logs and wakes what a change asks for; returns the held requests to be answered.
    pub(super) fn jobs_of(&self, after: After) -> Vec<Job> {
        let mut jobs = Vec::new();
        for notice in after.notices {
            match notice {
                Notice::Wake(machine) => jobs.push(Job::Wake(machine)),
                Notice::Finished(task) => {
                    jobs.push(Job::Finished(task));
                    self.watchers.wake(task);
                }
                Notice::Fired(fired) => { self.fired.lock() }
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(fired),
                Notice::GroupFinished(group) => jobs.push(Job::GroupFinished(group)),
                Notice::Changed(task) => self.watchers.wake(task),
                Notice::HandedOut(machine) => {
                    let soon = self.clock.now().plus(SAYS_WHAT_IT_HOLDS);
                    self.state().held.shorten_poll(machine, soon);
                }
                Notice::NotificationsWait => self.outbox_bell.ring(),
                Notice::NotificationDead(what) => warn!("{what}"),
                Notice::MachineOffline(label, why) => info!("machine {label} is offline: {why}"),
                Notice::NewcomersRefused(origin) => warn!(
                    "too many new machines from {origin}: more are refused for a while (--max-new-machines)"
                ),
                Notice::MachineOnline(label, instance) => {
                    info!("machine {label} is online, instance {instance}")
                }
            }
        }
        jobs
    }

    pub(super) fn enqueue(&self, ticket: Ticket, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let many = jobs.len() > 1;
        let mut queue = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        queue.extend(jobs.into_iter().map(|job| (ticket, job)));
        drop(queue);
        if many {
            self.job_waits.notify_all()
        } else {
            self.job_waits.notify_one()
        }
    }

    /// Answers held requests, several after one wait for the disk.
    pub(super) fn answer_forever(&self) {
        loop {
            let jobs: Vec<(Ticket, Job)> = {
                let queue = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                let mut queue = self
                    .job_waits
                    .wait_while(queue, |jobs| jobs.is_empty())
                    .unwrap_or_else(PoisonError::into_inner);
                let few = queue
                    .len()
                    .div_ceil(ANSWERING_THREADS)
                    .min(MAX_JOBS_AT_ONCE);
                queue.drain(..few).collect()
            };
            self.do_jobs(jobs);
        }
    }

    pub(super) fn do_jobs(&self, jobs: Vec<(Ticket, Job)>) {
        let mut replies = Vec::new();
        for (ticket, job) in jobs {
            self.do_job(ticket, job, &mut replies);
        }
        // What needs no disk does not wait for it.
        let (later, now): (Vec<Reply>, Vec<Reply>) = replies.into_iter().partition(Reply::is_news);
        for reply in now {
            self.send(reply);
        }
        // One wait is enough for all of them.
        if let Some(ticket) = later.iter().map(|reply| reply.ticket).max() {
            let _ = self.durable.wait(ticket);
        }
        for reply in later {
            self.send(reply);
        }
    }

    fn send(&self, reply: Reply) {
        match reply.answer {
            Answer::Orders(responder, orders) => {
                responder.answer(match self.only_what_is_safe(orders, reply.ticket) {
                    Ok(orders) => answers::orders(&orders),
                    Err(why) => answers::error(503, &why),
                });
            }
            Answer::EndedGroup(wait) => wait.answer(),
            Answer::Task(wait, task) | Answer::EndedTask(wait, task) => wait.answer(task),
        }
    }

    /// Finds the held requests of a job, and their answers.
    fn do_job(&self, ticket: Ticket, job: Job, replies: &mut Vec<Reply>) {
        let mut reply = |ticket, answer| replies.push(Reply { answer, ticket });
        match job {
            Job::Wake(machine) => {
                let mut state = self.state();
                let State { core, held } = &mut *state;
                let Some(responder) = held.take_poll(machine) else {
                    return;
                };
                let now = self.clock.now();
                let orders = core.collect(now, machine);
                let after = self.after(core, now);
                drop(state);
                reply(after.ticket, Answer::Orders(responder, orders));
                self.finish(after);
            }
            Job::Finished(task) => {
                let mut state = self.state();
                let waits = state.held.take_waits(task);
                if waits.is_empty() {
                    return;
                }
                let shown = state.core.show(task);
                drop(state);
                for wait in waits {
                    reply(ticket, Answer::EndedTask(wait, shown.clone()));
                }
            }
            Job::GroupFinished(group) => {
                let mut state = self.state();
                let State { core, held } = &mut *state;
                // A further member may have come.
                if !core.is_group_finished(&group) {
                    return;
                }
                let waits = held.take_group_waits(&group);
                drop(state);
                for wait in waits {
                    reply(ticket, Answer::EndedGroup(wait));
                }
            }
            Job::EndPoll(responder, orders) => reply(ticket, Answer::Orders(responder, orders)),
            Job::EndWait(wait, task) => reply(ticket, Answer::Task(wait, task)),
        }
    }
}
