//! In which order what waits is handed out: the higher priority first, and what waited first within the same one.
//!
//! The queues of the machines and of the selectors are sorted by [`Turn`]. `Core::next_for` decides between them, and
//! nothing else does. A task keeps its priority and its place through retries and reassignment; one that was let go
//! later than it was submitted has its place behind those that were there, see [`Core::join_the_end`].

use super::counting::mixed;
use super::invariants::Rule;
use super::machine::Machine;
use super::named_limits::SetKey;
use super::timers::Timer;
use super::{Core, ExecutionKey, MachineKey, TaskKey, Time};
use std::collections::{BTreeMap, BTreeSet};

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

/// How many of these come before `turn`, at most so many. Counts from the nearer end: what was just submitted is mostly
/// the last, and each answer to a submit says its position.
pub(super) fn count_before(turns: &BTreeSet<Turn>, turn: Turn, at_most: u32) -> u32 {
    let (mut before, mut after) = (turns.range(..turn), turns.range(turn..));
    for n in 0..at_most {
        if before.next().is_none() {
            return n;
        }
        if after.next().is_none() {
            return at_most.min((turns.len() as u32).saturating_sub(n));
        }
    }
    at_most
}

/// What is queued for a machine: in the order in which it is handed out, apart by the limits that it counts for.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// What counts for no limit.
    unlimited: BTreeSet<Turn>,
    limited: BTreeMap<SetKey, Limited>,
    /// How many of `limited` there are in all.
    number_limited: usize,
}

/// What counts for the same limits.
#[derive(Debug, Default)]
struct Limited {
    turns: BTreeSet<Turn>,
    /// The first of them, as the list of all queues has it.
    listed: Option<Turn>,
}

impl Inbox {
    pub fn insert(&mut self, set: SetKey, turn: Turn) {
        match set {
            SetKey::NONE => drop(self.unlimited.insert(turn)),
            set => {
                let is_new = self.limited.entry(set).or_default().turns.insert(turn);
                self.number_limited += usize::from(is_new);
            }
        }
    }

    pub fn remove(&mut self, set: SetKey, turn: &Turn) {
        match self.limited.get_mut(&set) {
            None => drop(self.unlimited.remove(turn)),
            Some(limited) => {
                let was_there = limited.turns.remove(turn);
                self.number_limited -= usize::from(was_there);
                // It may still be in the list of all queues: `changed_heads` drops it.
            }
        }
    }

    pub fn len(&self) -> usize {
        self.unlimited.len() + self.number_limited
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many count for no limit.
    pub fn unlimited(&self) -> usize {
        self.unlimited.len()
    }

    /// What is handed out first, if no limit holds it up.
    pub fn first(&self) -> Option<ExecutionKey> {
        let limited = self.firsts().map(|(_, turn)| turn);
        let first = self.first_unlimited().into_iter().chain(limited).min();
        first.map(|turn| turn.key)
    }

    /// The first of those that count for no limit.
    fn first_unlimited(&self) -> Option<Turn> {
        self.unlimited.first().copied()
    }

    /// Of those that count for no limit, the one that so many are handed out before.
    pub fn nth(&self, n: usize) -> Option<Turn> {
        self.unlimited.iter().nth(n).copied()
    }

    /// Of those that count for no limit, how many are handed out before this one.
    pub fn before(&self, turn: &Turn) -> usize {
        count_before(&self.unlimited, *turn, u32::MAX) as usize
    }

    /// The first of each set of limits.
    pub fn firsts(&self) -> impl Iterator<Item = (SetKey, Turn)> {
        let limited = self.limited.iter();
        limited.filter_map(|(set, limited)| Some((*set, *limited.turns.first()?)))
    }

    /// The firsts that have changed since the last call, before and after: none is one while the machine takes nothing.
    pub fn changed_heads(&mut self, is_ready: bool) -> Vec<(SetKey, Option<Turn>, Option<Turn>)> {
        let mut changed = Vec::new();
        self.limited.retain(|set, limited| {
            let first = limited.turns.first().copied().filter(|_| is_ready);
            let before = std::mem::replace(&mut limited.listed, first);
            if before != first {
                changed.push((*set, before, first));
            }
            !limited.turns.is_empty()
        });
        changed
    }

    /// All of it, in order.
    pub fn turns(&self) -> Vec<(SetKey, Turn)> {
        let unlimited = self.unlimited.iter().map(|turn| (SetKey::NONE, *turn));
        let limited = { self.limited.iter() }
            .flat_map(|(set, limited)| limited.turns.iter().map(|turn| (*set, *turn)));
        let mut turns: Vec<(SetKey, Turn)> = unlimited.chain(limited).collect();
        turns.sort_unstable_by_key(|(_, turn)| *turn);
        turns
    }

    /// The same, as a copy, so that the queue can be changed meanwhile.
    pub fn executions(&self) -> Vec<ExecutionKey> {
        self.turns().into_iter().map(|(_, turn)| turn.key).collect()
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
    /// same priority the one that is queued for it. What counts for a limit without a free place is passed over.
    pub(super) fn next_for(&self, machine: &Machine) -> Option<ExecutionKey> {
        let by_rank = self.keeps(Rule::HigherPriorityFirst);
        let order = |is_any: bool, turn: Turn| {
            let rank = if by_rank { turn.rank } else { Rank::of(0) };
            (rank, is_any, turn)
        };
        let mut best = machine
            .inbox
            .first_unlimited()
            .map(|turn| order(false, turn));
        let own = machine.inbox.firsts();
        let mut limited: Vec<_> = own.map(|(set, turn)| (order(false, turn), set)).collect();
        let index = &self.match_index;
        let selectors = index.selectors_of(machine.traits_key, &machine.instance);
        let selectors = selectors.filter(|_| !self.holds_back_any());
        let queues = selectors.flat_map(|selector| &index.entry(selector).by_need);
        for ((needed, set), waiting) in queues {
            let Some(first) = waiting.first().filter(|_| self.may_run(machine, *needed)) else {
                continue;
            };
            let first = order(true, *first);
            match *set {
                SetKey::NONE => best = Some(best.map_or(first, |best| best.min(first))),
                set => limited.push((first, set)),
            }
        }
        limited.retain(|(place, _)| best.is_none_or(|best| *place < best));
        limited.sort_unstable_by_key(|(place, _)| *place);
        let open = limited.into_iter().find(|((_, _, turn), set)| {
            let is_free = !self.named_limits.is_exhausted(*set);
            !self.keeps_limits() || (is_free && self.is_first_in_limits(*set, *turn, machine))
        });
        open.map(|(place, _)| place)
            .or(best)
            .map(|(_, _, turn)| turn.key)
    }

    /// Queues the first attempt of an execution for its machine: at once, or within the spread of its task.
    pub(super) fn queue_first(&mut self, now: Time, key: ExecutionKey, machine: MachineKey) {
        let spread = self.task(key.task).spec.spread;
        let attempt = &self.execution(key).current;
        // It has been released before if it has a time of its own.
        let spread = spread.filter(|_| attempt.number == 1 && attempt.expires_at.is_none());
        let Some(spread) = spread else {
            return self.queue_for(key, machine);
        };
        let target = &self.machine(machine).target;
        let name = &self.task(key.task).spec.name;
        let hash = mixed(&["spread", name, &target.label, &target.host]);
        let due = now.later_by(hash % spread.as_millis().max(1));
        let target = target.clone();
        let execution = self.execution_mut(key);
        execution.target = Some(target);
        execution.current.due_at = Some(due);
        self.timers.set(due, Timer::AttemptDue(key, 1));
        self.list_off_queue(key);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_queue_is_counted_from_either_end() {
        let turn = |order| Turn {
            rank: Rank::of(0),
            order,
            key: ExecutionKey {
                task: TaskKey(order),
                n: 0,
            },
        };
        for length in [0, 1, 2, 9, 10, 11, 40] {
            let turns: BTreeSet<Turn> = (0..length).map(|n| turn(2 * n)).collect();
            for at in 0..=2 * length {
                let before = turns.iter().filter(|other| **other < turn(at)).count() as u32;
                for at_most in [0, 1, 10, 100] {
                    assert_eq!(count_before(&turns, turn(at), at_most), before.min(at_most));
                }
            }
        }
    }
}
