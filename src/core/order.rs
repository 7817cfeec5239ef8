//! In which order what waits is handed out: the higher priority first, and what waited first within the same one.
//!
//! The queues of the machines and of the selectors are sorted by [`Turn`]. `Core::next_for` decides between them, and
//! nothing else does. A task keeps its priority and its place through retries and reassignment; one that was let go
//! later than it was submitted has its place behind those that were there, see [`Core::join_the_end`].

use super::invariants::Rule;
use super::machine::Machine;
use super::{Core, ExecutionKey, TaskKey, Time};
use std::collections::BTreeSet;

/// The lowest and the highest priority.
pub const PRIORITIES: std::ops::RangeInclusive<i8> = -10..=10;

/// A priority in the order in which it is handed out: the highest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(i8);

impl Rank {
    /// That of a priority.
    pub fn of(priority: i8) -> Self {
        Rank(priority.saturating_neg())
    }
}

/// The place of an execution in a queue. The lower one is handed out first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub rank: Rank,
    /// The number of its task, or of the next one when it was let go.
    order: u64,
    pub key: ExecutionKey,
}

/// What is queued for a machine, in the order in which it is handed out.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Inbox {
    turns: BTreeSet<Turn>,
}

impl Inbox {
    pub fn insert(&mut self, turn: Turn) {
        self.turns.insert(turn);
    }

    pub fn remove(&mut self, turn: &Turn) {
        self.turns.remove(turn);
    }

    pub fn len(&self) -> usize {
        self.turns.len()
    }

    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    pub fn first(&self) -> Option<Turn> {
        self.turns.first().copied()
    }

    /// The one that so many are handed out before.
    pub fn nth(&self, n: usize) -> Option<Turn> {
        self.turns.iter().nth(n).copied()
    }

    /// How many are handed out before this one.
    pub fn before(&self, turn: &Turn) -> usize {
        self.turns.range(..turn).count()
    }

    /// A copy, so that the queue can be changed meanwhile.
    pub fn executions(&self) -> Vec<ExecutionKey> {
        self.turns.iter().map(|turn| turn.key).collect()
    }
}

impl Core {
    /// The place of an execution in a queue.
    pub(super) fn turn_of(&self, key: ExecutionKey) -> Turn {
        let task = self.task(key.task);
        Turn {
            rank: Rank::of(task.spec.priority),
            order: task.order.unwrap_or(key.task.0),
            key,
        }
    }

    /// Has a task that is let go now, later than it was submitted, wait behind those that are there, within its
    /// priority. To be called before anything of it is queued.
    pub(super) fn join_the_end(&mut self, key: TaskKey) {
        let next = self.next_task;
        self.task_mut(key).order = Some(next);
    }

    /// What a machine is handed next: the first of what is queued for it and of what any machine may run. Of two with the
    /// same priority the one that is queued for it.
    pub(super) fn next_for(&self, machine: &Machine) -> Option<ExecutionKey> {
        let (own, any) = (machine.inbox.first(), self.next_any(machine));
        let next = match (own, any) {
            (Some(own), Some(any))
                if any.rank < own.rank && self.keeps(Rule::HigherPriorityFirst) =>
            {
                any
            }
            (Some(own), _) => own,
            (None, any) => any?,
        };
        Some(next.key)
    }

    /// What any machine may run, matches this one, can be run by its agent, and is handed out first.
    fn next_any(&self, machine: &Machine) -> Option<Turn> {
        let index = &self.match_index;
        let selectors = index.selectors_of(machine.traits_key, &machine.instance);
        selectors
            .flat_map(|selector| &index.entry(selector).by_need)
            .filter(|(needed, _)| self.may_run(machine, **needed))
            .filter_map(|(_, waiting)| waiting.first().copied())
            .min()
    }

    /// Lists a task as one of which something is queued, or no longer. It follows from its counts, and is looked at
    /// after each change of them.
    pub(super) fn list_queued(&mut self, key: TaskKey) {
        let first = self.turn_of(ExecutionKey { task: key, n: 0 });
        let entry = (first.rank, first.order, key);
        match self.task(key).counts.queued > 0 {
            true => self.queued_tasks.insert(entry),
            false => self.queued_tasks.remove(&entry),
        };
    }

    /// For how long the oldest task waits, of which something is queued: among those with a priority below 0, with 0, and
    /// above 0.
    pub fn oldest_queued(&self, now: Time) -> [(&'static str, u64); 3] {
        let of = |priorities: std::ops::RangeInclusive<i8>| {
            let oldest = priorities.filter_map(|priority| {
                let rank = Rank::of(priority);
                let first = self.queued_tasks.range((rank, 0, TaskKey(0))..).next()?;
                let task = self.task(first.2);
                // Its ttl runs from its launch.
                let launched_at = task.expires_at.0.saturating_sub(task.spec.ttl.as_millis());
                (first.0 == rank).then(|| now.millis_since(Time(launched_at)))
            });
            oldest.max().unwrap_or(0)
        };
        [
            ("below", of(*PRIORITIES.start()..=-1)),
            ("zero", of(0..=0)),
            ("above", of(1..=*PRIORITIES.end())),
        ]
    }

    /// The list of queued tasks is right.
    pub(super) fn check_queued_tasks(&self) -> Result<(), String> {
        let queued = { self.tasks.iter() }.filter(|(_, task)| task.counts.queued > 0);
        let queued = queued.map(|(key, _)| {
            let first = self.turn_of(ExecutionKey { task: *key, n: 0 });
            (first.rank, first.order, *key)
        });
        let queued: BTreeSet<_> = queued.collect();
        match queued == self.queued_tasks {
            true => Ok(()),
            false => Err(format!(
                "of these tasks something is queued: {queued:?}, listed are {:?}",
                self.queued_tasks
            )),
        }
    }
}
