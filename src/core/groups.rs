//! Groups of tasks: who belongs to one, and how it goes as a whole.
//!
//! A group is nothing of its own: it is there as long as a task that names it is kept. The index below only finds its
//! members; it is rebuilt at a start, and `invariants.rs` checks it against all tasks. What is said of a group is summed
//! up from its members ([`GroupSummary`]), outside the lock and in slices: one of 100,000 members would take too long.
//! To say more of a group: a field of the summary.

use super::invariants::Rule;
use super::task::{Task, rfc3339};
use super::{Core, Notice, Refusal, TaskKey};
use crate::wire::group::Member;
use crate::wire::signal;
use crate::wire::task::{Counts, ExecutionState, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// Members copied in one call: it runs under the lock.
const MAX_COPIED: usize = 500;
/// The exit code that a time-out counts as, the same as that of `timeout`.
const TIMED_OUT: i32 = 124;
/// Added to the number of the signal that ended a command, as in a shell.
const SIGNALED: i32 = 128;

/// Some members of a group, and the last of them if there are more.
pub type MembersPage = (Vec<(TaskKey, Task)>, Option<TaskKey>);

/// The members of all groups.
#[derive(Debug, Default)]
pub(super) struct Groups(BTreeMap<Arc<str>, Members>);

/// The members of a group.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Members {
    /// All of them.
    pub all: BTreeSet<TaskKey>,
    /// Those that have not ended.
    pub unfinished: BTreeSet<TaskKey>,
}

impl Groups {
    /// A task with this group was added.
    pub fn add(&mut self, group: &Arc<str>, key: TaskKey, is_finished: bool) {
        let members = match self.0.get_mut(group) {
            Some(members) => members,
            None => self.0.entry(group.clone()).or_default(),
        };
        members.all.insert(key);
        if !is_finished {
            members.unfinished.insert(key);
        }
    }

    /// A member has ended. True if it was the last one that had not.
    pub fn finish(&mut self, group: &str, key: TaskKey) -> bool {
        let Some(members) = self.0.get_mut(group) else {
            return false;
        };
        members.unfinished.remove(&key) && members.unfinished.is_empty()
    }

    /// A member was forgotten.
    pub fn forget(&mut self, group: &str, key: TaskKey) {
        let Some(members) = self.0.get_mut(group) else {
            return;
        };
        members.all.remove(&key);
        members.unfinished.remove(&key);
        if members.all.is_empty() {
            self.0.remove(group);
        }
    }

    /// The members of a group, if it has any.
    pub fn of(&self, group: &str) -> Option<&Members> {
        self.0.get(group)
    }
}

impl Core {
    /// The keys of all members of a group at this moment, in order of submission; none if no task names it.
    pub fn group_members(&self, group: &str) -> Option<&BTreeSet<TaskKey>> {
        Some(&self.groups.of(group)?.all)
    }

    /// Whether every member of a group has ended. An unknown group has none that has not.
    pub fn is_group_finished(&self, group: &str) -> bool {
        let members = self.groups.of(group);
        members.is_none_or(|members| members.unfinished.is_empty())
    }

    /// The first members of a group after this one, and where to continue; `None` if there are no more. Refused with
    /// [`Refusal::Unknown`] if the group has no members at all.
    pub fn members_after(
        &self,
        group: &str,
        last: Option<TaskKey>,
    ) -> Result<MembersPage, Refusal> {
        let Some(members) = self.groups.of(group) else {
            return Err(unknown_group(group));
        };
        let begin = last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = members.all.range((begin, Bound::Unbounded));
        let copied = { rest.by_ref() }.take(MAX_COPIED);
        let copied: Vec<_> = copied.map(|key| (*key, self.task(*key).clone())).collect();
        let next = copied.last().map(|(key, _)| *key);
        Ok((copied, next.filter(|_| rest.next().is_some())))
    }

    /// The members that this index has of all groups, and those that the tasks say: for the invariants.
    pub(super) fn check_groups(&self) -> Result<(), String> {
        let mut recounted = Groups::default();
        for (key, task) in &self.tasks {
            if let Some(group) = task.group() {
                recounted.add(group, *key, task.finished_at.is_some());
            }
        }
        match recounted.0 == self.groups.0 {
            true => Ok(()),
            false => Err(format!(
                "groups {:?}, recounted {:?}",
                self.groups.0, recounted.0
            )),
        }
    }

    /// A task has ended: its group may have, too.
    pub(super) fn group_may_have_ended(&mut self, key: TaskKey) {
        let Some(group) = self.task(key).group().cloned() else {
            return;
        };
        if self.groups.finish(&group, key) && self.keeps(Rule::EndOfGroupIsTold) {
            self.notices.push(Notice::GroupFinished(group));
        }
    }
}

fn unknown_group(group: &str) -> Refusal {
    Refusal::Unknown(format!(
        "no task has the group {group:?}; a group is there as long as one of its tasks is kept"
    ))
}

/// How a group goes as a whole.
#[derive(Debug, Clone, Default)]
pub struct GroupSummary {
    tasks: BTreeMap<&'static str, u32>,
    states: BTreeSet<usize>,
    executions: Counts,
    worst_exit_code: Option<i32>,
}

impl GroupSummary {
    /// Counts a member. Takes time in proportion to its executions: must not be called under the lock.
    pub fn add(&mut self, task: &Task) {
        let state = task.state();
        *self.tasks.entry(state.word()).or_default() += 1;
        self.states.insert(state as usize);
        self.executions.add(&task.counts);
        self.worst_exit_code = self.worst_exit_code.max(task.worst_exit_code());
    }

    /// How many members are in each state that one is in.
    pub fn tasks(&self) -> &BTreeMap<&'static str, u32> {
        &self.tasks
    }

    /// How many of their executions are in each state.
    pub fn executions(&self) -> Counts {
        self.executions
    }

    /// The highest exit code of all executions that have ended.
    pub fn worst_exit_code(&self) -> Option<i32> {
        self.worst_exit_code
    }

    /// The state of the group.
    pub fn state(&self) -> TaskState {
        let states = TaskState::ALL.into_iter();
        state_of(states.filter(|state| self.states.contains(&(*state as usize))))
    }
}

/// The state of a group with members in these states: that of one task that has all of their executions. As long as one
/// has not ended it runs, unless all are in the same state.
pub fn state_of(states: impl IntoIterator<Item = TaskState>) -> TaskState {
    let states: BTreeSet<usize> = states.into_iter().map(|state| state as usize).collect();
    let has = |state: TaskState| states.contains(&(state as usize));
    let mut unfinished = { TaskState::ALL.into_iter() }
        .filter(|state| !state.is_terminal())
        .filter(|state| has(*state));
    if let Some(first) = unfinished.next() {
        return match states.len() {
            1 => first,
            _ => TaskState::Running,
        };
    }
    if has(TaskState::Succeeded) || has(TaskState::Partial) {
        return match states.len() {
            1 if has(TaskState::Succeeded) => TaskState::Succeeded,
            _ => TaskState::Partial,
        };
    }
    let worst = [TaskState::Failed, TaskState::Canceled, TaskState::Expired];
    let worst = worst.into_iter().find(|state| has(*state));
    worst.unwrap_or(TaskState::Skipped)
}

impl Task {
    /// Its group.
    pub fn group(&self) -> Option<&Arc<str>> {
        self.spec.about.as_ref()?.group.as_ref()
    }

    /// What is said of it as a member of its group.
    pub fn as_member(&self) -> Member {
        Member {
            id: self.id.to_string(),
            name: self.spec.name.to_string(),
            state: self.state(),
            counts: self.counts,
            worst_exit_code: self.worst_exit_code(),
            created_at: rfc3339(self.created_at),
            finished_at: self.finished_at.map(rfc3339),
        }
    }

    /// The highest exit code of its executions that have ended: a signal counts as in a shell, a time-out as for
    /// `timeout`. `None` as long as none has one.
    pub fn worst_exit_code(&self) -> Option<i32> {
        let codes = self.executions.iter().filter_map(|e| {
            let ended = Some(&e.current).filter(|_| e.state.is_terminal())?;
            match (e.state, ended.exit_code, &ended.signal) {
                (ExecutionState::TimedOut, _, _) => Some(TIMED_OUT),
                (_, Some(code), _) => Some(code),
                (_, None, Some(name)) => Some(SIGNALED + i32::from(signal::number(name)?)),
                (_, None, None) => None,
            }
        });
        codes.max()
    }
}

#[cfg(test)]
mod tests {
    use super::TaskState::*;
    use super::*;

    #[test]
    fn the_state_of_a_group_is_that_of_one_task_with_all_executions() {
        for (members, state) in [
            (&[Waiting][..], Waiting),
            (&[Waiting, Running], Running),
            (&[Running], Running),
            (&[Succeeded, Waiting], Running),
            (&[Succeeded], Succeeded),
            (&[Succeeded, Failed], Partial),
            (&[Succeeded, Expired], Partial),
            (&[Succeeded, Skipped], Partial),
            (&[Partial], Partial),
            (&[Partial, Succeeded], Partial),
            (&[Failed, Canceled, Expired, Skipped], Failed),
            (&[Canceled, Expired, Skipped], Canceled),
            (&[Expired, Skipped], Expired),
            (&[Skipped], Skipped),
        ] {
            assert_eq!(state_of(members.iter().copied()), state, "{members:?}");
        }
    }
}
