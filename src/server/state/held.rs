//! Held requests: polls of idle agents, and requests that wait for the end of a task.
//!
//! They are under the same lock as the core, so that "there is nothing to do" and "hold the request" are one step and no
//! wake-up is lost in between. They are answered after the lock is released. To hold another kind: a map for it, its
//! entry in `deadlines`, and a job in `state` that answers it.

use super::group_waits::{GroupWait, GroupWaits};
use crate::core::{MachineKey, Refusal, Task, TaskKey, Time};
use crate::server::answers::{self, TaskForm};
use crate::server::http::{ConnectionId, Responder};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// All held requests.
pub struct Held {
    polls: HashMap<MachineKey, (Responder, Time)>,
    waits: HashMap<u64, (TaskKey, HeldWait, Time)>,
    waits_by_task: HashMap<TaskKey, BTreeSet<u64>>,
    /// Those that wait for the end of a group, and until when.
    group_waits: GroupWaits,
    group_deadlines: HashMap<u64, Time>,
    next_wait: u64,
    deadlines: BTreeSet<(Time, Deadline)>,
    /// The held request of each connection.
    by_connection: HashMap<ConnectionId, Deadline>,
    /// The number of followers. They are streams of the HTTP edge, and only counted here.
    pub followers: usize,
    /// The number of those who read output in parts; streams, too.
    pub readers: usize,
    max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deadline {
    Poll(MachineKey),
    Wait(u64),
    Group(u64),
}

/// A request that waits for the end of a task.
pub struct HeldWait {
    /// Answers it.
    pub responder: Responder,
    /// The form of the answer.
    pub form: TaskForm,
    /// Is told the status of the answer.
    pub on_answer: OnAnswer,
}

impl HeldWait {
    /// Answers with the task as it is now. An answer that may be large is made when there is memory for it.
    pub fn answer(self, task: Result<Task, Refusal>) {
        let HeldWait {
            responder,
            form,
            on_answer,
        } = self;
        let is_large = task.as_ref().is_ok_and(|task| {
            task.size() > answers::FEW || task.answer_bytes() > answers::LARGE_BYTES
        });
        let make = move || {
            let answer = form.answer(task);
            on_answer.answered(answer.status);
            answer
        };
        match is_large {
            true => responder.answer_later(make),
            false => responder.answer(make()),
        }
    }

    /// Gives the responder back: the request is not held after all.
    pub fn not_held(self) -> Responder {
        self.on_answer.dismiss();
        self.responder
    }
}

/// Calls a function once with the status that a held request was answered with, or with `None` when it was dropped
/// without an answer. The function must not wait: workers drop the requests of clients that are gone.
pub struct OnAnswer(Option<Box<dyn FnOnce(Option<u16>) + Send>>);

impl OnAnswer {
    /// For this function.
    pub fn new(call: impl FnOnce(Option<u16>) + Send + 'static) -> Self {
        OnAnswer(Some(Box::new(call)))
    }

    /// The request is being answered.
    pub(super) fn answered(mut self, status: u16) {
        if let Some(call) = self.0.take() {
            call(Some(status));
        }
    }

    /// The request is answered without being held: the function is not called.
    pub(super) fn dismiss(mut self) {
        self.0 = None;
    }
}

impl Drop for OnAnswer {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call(None);
        }
    }
}

/// A held request whose client is gone. To be dropped after the lock is released.
pub enum Abandoned {
    /// The poll of a machine.
    Poll(
        MachineKey,
        #[allow(dead_code, reason = "dropped")] Responder,
    ),
    /// A request that waits for a task.
    Wait(#[allow(dead_code, reason = "dropped")] HeldWait),
    /// A request that waits for a group.
    Group(#[allow(dead_code, reason = "dropped")] GroupWait),
}

impl Held {
    /// No requests; at most `max`.
    pub fn new(max: usize) -> Self {
        Held {
            polls: HashMap::new(),
            waits: HashMap::new(),
            waits_by_task: HashMap::new(),
            group_waits: GroupWaits::default(),
            group_deadlines: HashMap::new(),
            next_wait: 0,
            deadlines: BTreeSet::new(),
            by_connection: HashMap::new(),
            followers: 0,
            readers: 0,
            max,
        }
    }

    /// Their number.
    pub fn count(&self) -> usize {
        self.polls.len() + self.waits.len() + self.group_waits.len() + self.followers + self.readers
    }

    /// Whether another one can be held.
    pub fn has_room(&self) -> bool {
        self.count() < self.max
    }

    /// Holds a machine's poll. The caller has taken out its previous one.
    pub fn add_poll(&mut self, machine: MachineKey, responder: Responder, until: Time) {
        let poll = Deadline::Poll(machine);
        self.deadlines.insert((until, poll));
        self.by_connection.insert(responder.connection(), poll);
        self.polls.insert(machine, (responder, until));
    }

    /// Ends a machine's poll at this time, if it was to be held for longer.
    pub fn shorten_poll(&mut self, machine: MachineKey, new: Time) {
        if let Some((_, until)) = self
            .polls
            .get_mut(&machine)
            .filter(|(_, until)| new < *until)
        {
            self.deadlines.remove(&(*until, Deadline::Poll(machine)));
            self.deadlines.insert((new, Deadline::Poll(machine)));
            *until = new;
        }
    }

    /// The same for all polls.
    pub fn shorten_polls(&mut self, new: Time) {
        let machines: Vec<MachineKey> = self.polls.keys().copied().collect();
        for machine in machines {
            self.shorten_poll(machine, new);
        }
    }

    /// Takes out a machine's poll.
    pub fn take_poll(&mut self, machine: MachineKey) -> Option<Responder> {
        let (responder, until) = self.polls.remove(&machine)?;
        self.deadlines.remove(&(until, Deadline::Poll(machine)));
        self.by_connection.remove(&responder.connection());
        Some(responder)
    }

    /// Takes out what is held of a connection.
    pub fn take_of(&mut self, connection: ConnectionId) -> Option<Abandoned> {
        match *self.by_connection.get(&connection)? {
            Deadline::Poll(machine) => Some(Abandoned::Poll(machine, self.take_poll(machine)?)),
            Deadline::Wait(id) => Some(Abandoned::Wait(self.take_wait(id)?.1)),
            Deadline::Group(id) => Some(Abandoned::Group(self.take_group_wait(id)?)),
        }
    }

    /// Takes out all requests that wait for a task.
    pub fn take_all_waits(&mut self) -> Vec<HeldWait> {
        let ids: Vec<u64> = self.waits.keys().copied().collect();
        ids.into_iter()
            .filter_map(|id| self.take_wait(id))
            .map(|(_, wait)| wait)
            .collect()
    }

    /// Holds a request that waits for a task.
    pub fn add_wait(&mut self, task: TaskKey, wait: HeldWait, until: Time) {
        let id = self.next_wait;
        self.next_wait += 1;
        self.deadlines.insert((until, Deadline::Wait(id)));
        let connection = wait.responder.connection();
        self.by_connection.insert(connection, Deadline::Wait(id));
        self.waits_by_task.entry(task).or_default().insert(id);
        self.waits.insert(id, (task, wait, until));
    }

    /// Takes out the requests that wait for this task.
    pub fn take_waits(&mut self, task: TaskKey) -> Vec<HeldWait> {
        let ids = self.waits_by_task.get(&task).cloned().unwrap_or_default();
        ids.into_iter()
            .filter_map(|id| self.take_wait(id))
            .map(|(_, wait)| wait)
            .collect()
    }

    /// Takes out one request that waits.
    pub fn take_wait(&mut self, id: u64) -> Option<(TaskKey, HeldWait)> {
        let (task, wait, until) = self.waits.remove(&id)?;
        self.deadlines.remove(&(until, Deadline::Wait(id)));
        self.by_connection.remove(&wait.responder.connection());
        if let Some(ids) = self.waits_by_task.get_mut(&task) {
            ids.remove(&id);
            if ids.is_empty() {
                self.waits_by_task.remove(&task);
            }
        }
        Some((task, wait))
    }

    /// Holds a request that waits for a group.
    pub fn add_group_wait(&mut self, group: Arc<str>, wait: GroupWait, until: Time) {
        let id = self.next_wait;
        self.next_wait += 1;
        self.deadlines.insert((until, Deadline::Group(id)));
        let connection = wait.responder.connection();
        self.by_connection.insert(connection, Deadline::Group(id));
        self.group_deadlines.insert(id, until);
        self.group_waits.add(id, group, wait);
    }

    /// Takes out the requests that wait for this group.
    pub fn take_group_waits(&mut self, group: &str) -> Vec<GroupWait> {
        let ids = self.group_waits.of(group).into_iter();
        ids.filter_map(|id| self.take_group_wait(id)).collect()
    }

    /// Takes out all requests that wait for a group.
    pub fn take_all_group_waits(&mut self) -> Vec<GroupWait> {
        let ids = self.group_waits.all().into_iter();
        ids.filter_map(|id| self.take_group_wait(id)).collect()
    }

    fn take_group_wait(&mut self, id: u64) -> Option<GroupWait> {
        let wait = self.group_waits.take(id)?;
        if let Some(until) = self.group_deadlines.remove(&id) {
            self.deadlines.remove(&(until, Deadline::Group(id)));
        }
        self.by_connection.remove(&wait.responder.connection());
        Some(wait)
    }

    /// Takes out the requests that wait for a group and whose time is up.
    pub fn due_group_waits(&mut self, now: Time) -> Vec<GroupWait> {
        let due = self.due(now);
        let waits = due.into_iter().filter_map(|deadline| match deadline {
            Deadline::Group(id) => self.take_group_wait(id),
            Deadline::Poll(_) | Deadline::Wait(_) => None,
        });
        waits.collect()
    }

    /// Takes out the polls whose time is up.
    pub fn due_polls(&mut self, now: Time) -> Vec<(MachineKey, Responder)> {
        let due = self.due(now);
        let polls = due.into_iter().filter_map(|deadline| match deadline {
            Deadline::Poll(machine) => Some((machine, self.take_poll(machine)?)),
            Deadline::Wait(_) | Deadline::Group(_) => None,
        });
        polls.collect()
    }

    /// Takes out the requests that wait for a task and whose time is up.
    pub fn due_waits(&mut self, now: Time) -> Vec<(TaskKey, HeldWait)> {
        let due = self.due(now);
        let waits = due.into_iter().filter_map(|deadline| match deadline {
            Deadline::Wait(id) => self.take_wait(id),
            Deadline::Poll(_) | Deadline::Group(_) => None,
        });
        waits.collect()
    }

    fn due(&self, now: Time) -> Vec<Deadline> {
        self.deadlines
            .iter()
            .take_while(|(until, _)| *until <= now)
            .map(|(_, deadline)| *deadline)
            .collect()
    }
}
