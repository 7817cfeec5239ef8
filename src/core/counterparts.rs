//! Which executions wait for which, of tasks that follow others machine by machine: the index, what it says in words, and
//! its checks. The rules are in `per_machine.rs`.
//!
//! The index follows from the tasks and is not saved.

use super::task::Task;
use super::timers::Timer;
use super::{Core, ExecutionKey, TaskKey, Time};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::RangeInclusive;

/// The most executions of which it is said what they wait for: it is found out under the lock.
const MAX_EXPLAINED: usize = 2_000;

/// Which executions wait for which.
#[derive(Debug, Default)]
pub(super) struct Counterparts {
    /// The counterpart of each that waits.
    waiting: BTreeMap<ExecutionKey, ExecutionKey>,
    /// The same the other way round: the counterpart first.
    by_counterpart: BTreeSet<(ExecutionKey, ExecutionKey)>,
    /// Counterparts that have ended, for which something may wait.
    pub ended: VecDeque<ExecutionKey>,
    /// Tasks whose executions have waited too long.
    pub expired: VecDeque<TaskKey>,
    /// Parents whose machines are known now, and the children that waited for that.
    pub machines: VecDeque<(TaskKey, TaskKey)>,
}

fn executions_of(task: TaskKey) -> RangeInclusive<ExecutionKey> {
    let key = |n| ExecutionKey { task, n };
    key(0)..=key(u32::MAX)
}

impl Counterparts {
    /// An execution begins to wait.
    pub fn insert(&mut self, waiting: ExecutionKey, counterpart: ExecutionKey) {
        self.waiting.insert(waiting, counterpart);
        self.by_counterpart.insert((counterpart, waiting));
    }

    /// It waits no longer. False if it did not.
    pub fn remove(&mut self, waiting: ExecutionKey) -> bool {
        let counterpart = self.waiting.remove(&waiting);
        if let Some(counterpart) = counterpart {
            self.by_counterpart.remove(&(counterpart, waiting));
        }
        counterpart.is_some()
    }

    /// The first that waits for a counterpart.
    pub fn first_for(&self, counterpart: ExecutionKey) -> Option<ExecutionKey> {
        let first = ExecutionKey {
            task: TaskKey(0),
            n: 0,
        };
        let next = self.by_counterpart.range((counterpart, first)..).next();
        next.filter(|(of, _)| *of == counterpart)
            .map(|(_, waiting)| *waiting)
    }

    /// What waits of a task.
    pub fn of_task(&self, task: TaskKey) -> impl Iterator<Item = (ExecutionKey, ExecutionKey)> {
        let waiting = self.waiting.range(executions_of(task));
        waiting.map(|(waiting, counterpart)| (*waiting, *counterpart))
    }

    /// Whether an execution waits for its counterpart.
    pub fn is_waiting(&self, key: ExecutionKey) -> bool {
        self.waiting.contains_key(&key)
    }

    /// The first task of which an execution waits for one of this task.
    pub fn first_child_of(&self, parent: TaskKey) -> Option<TaskKey> {
        let (first, last) = executions_of(parent).into_inner();
        let none = ExecutionKey {
            task: TaskKey(0),
            n: 0,
        };
        let next = self.by_counterpart.range((first, none)..).next();
        next.filter(|(counterpart, _)| *counterpart <= last)
            .map(|(_, waiting)| waiting.task)
    }

    /// The tasks that have counterparts of what waits.
    pub fn parents(&self) -> BTreeSet<TaskKey> {
        let counterparts = self.waiting.values();
        counterparts.map(|counterpart| counterpart.task).collect()
    }

    /// Whether [`Core::settle_dependents`] has something to do because of them.
    pub fn is_something_to_settle(&self) -> bool {
        !self.ended.is_empty() || !self.expired.is_empty() || !self.machines.is_empty()
    }
}

impl Core {
    /// What the first executions of a task wait for, where that is their counterpart; by number.
    pub(super) fn counterparts_in_words(&self, key: TaskKey) -> BTreeMap<u32, String> {
        let Some(edge) = self.tasks.get(&key).and_then(|task| task.per_machine()) else {
            return BTreeMap::new();
        };
        let name = edge.in_words();
        let waiting = self.counterparts.of_task(key).take(MAX_EXPLAINED);
        let waits = waiting.map(|(waiting, counterpart)| {
            let parent = self.tasks.get(&counterpart.task);
            let e = parent.and_then(|task| task.executions.get(counterpart.n as usize));
            let state = match e.map(|e| e.state) {
                Some(state) if !state.is_terminal() => format!(", where it is {}", state.word()),
                _ => String::new(),
            };
            (
                waiting.n,
                format!("waits for the end of {name} on this machine{state}"),
            )
        });
        waits.collect()
    }

    /// The same of a task as a whole.
    pub(super) fn waits_machine_by_machine(&self, key: TaskKey) -> Option<String> {
        let name = self.tasks.get(&key)?.per_machine()?.in_words();
        let waiting = self.counterparts.of_task(key).count();
        (waiting > 0).then(|| match waiting {
            1 => format!("waits on 1 machine for the end of {name} there"),
            waiting => format!("waits on {waiting} machines for the end of {name} there"),
        })
    }

    /// Whether a timer is the one at which what waits for counterparts expires.
    pub(super) fn is_counterpart_ttl(&self, key: TaskKey, time: Time) -> bool {
        let waiting = self.tasks.get(&key).and_then(|task| task.waiting.as_ref());
        self.awaits_something(key)
            && waiting.is_some_and(|waiting| waiting.blocked_until == Some(time))
    }

    /// Checks what is known of counterparts against the executions.
    pub(super) fn check_counterparts(&self) -> Result<(), String> {
        let listed: BTreeSet<(ExecutionKey, ExecutionKey)> = { self.counterparts.waiting.iter() }
            .map(|(waiting, counterpart)| (*counterpart, *waiting))
            .collect();
        if listed != self.counterparts.by_counterpart {
            return Err("what waits for counterparts is listed in two ways".into());
        }
        let ended: HashSet<&ExecutionKey> = self.counterparts.ended.iter().collect();
        let timers = self.timers.iter();
        let timers: HashSet<TaskKey> = timers
            .filter_map(|(_, timer)| match timer {
                Timer::CounterpartTtl(key) => Some(*key),
                _ => None,
            })
            .collect();
        let mut waiting = 0;
        for (key, task) in &self.tasks {
            self.check_machines_are_awaited(*key, task)?;
            for (n, e) in (0..).zip(&task.executions) {
                let execution = ExecutionKey { task: *key, n };
                let counterpart = self.counterparts.waiting.get(&execution);
                if task.awaits_counterpart(e) != counterpart.is_some() {
                    return Err(format!("{execution:?}: waits for {counterpart:?}"));
                }
                let Some(counterpart) = counterpart else {
                    continue;
                };
                waiting += 1;
                if self.is_over(*counterpart) && !ended.contains(counterpart) {
                    return Err(format!(
                        "{execution:?}: waits for ever, {counterpart:?} has ended"
                    ));
                }
                if !timers.contains(key) && !self.counterparts.expired.contains(key) {
                    return Err(format!("{execution:?}: its wait has no end"));
                }
            }
        }
        match waiting == self.counterparts.waiting.len() {
            true => Ok(()),
            false => Err("what is not there waits for a counterpart".into()),
        }
    }

    /// A task that waits for the machines of another one does so only as long as they are not known.
    fn check_machines_are_awaited(&self, key: TaskKey, task: &Task) -> Result<(), String> {
        let edge = task.per_machine().filter(|_| task.is_unbegun());
        let left = edge.into_iter().flat_map(|edge| &edge.left);
        for parent in left.copied().map(TaskKey) {
            let is_next = self.counterparts.machines.contains(&(parent, key));
            let has_ended = self.is_finished(parent);
            if self.has_fixed_machines(parent) && !is_next && !has_ended {
                return Err(format!("{key:?}: the machines of {parent:?} are known"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Limits;
    use crate::core::settle::Unsettled;

    #[test]
    fn they_are_found_in_both_directions() {
        let mut core = Core::new(Limits::NONE, Time(1_000));
        let mut counterparts = Counterparts::default();
        let key = |task, n| ExecutionKey {
            task: TaskKey(task),
            n,
        };
        for n in 0..3 {
            counterparts.insert(key(2, n), key(1, n));
            counterparts.ended.push_back(key(1, n));
        }
        assert_eq!(counterparts.first_child_of(TaskKey(1)), Some(TaskKey(2)));
        assert_eq!(counterparts.first_child_of(TaskKey(2)), None);
        assert!(counterparts.remove(key(2, 0)) && !counterparts.remove(key(2, 0)));
        core.counterparts = counterparts;
        let next = core.next_counterpart();
        assert!(
            matches!(next, Some(Unsettled::Counterpart(of, it)) if (of, it) == (key(1, 1), key(2, 1)))
        );
    }
}
