//! Cancel and rerun of many tasks at once: of a group, or of all that a filter means.
//!
//! It is worked off in slices, with the lock released in between. What has not started is canceled first, in all of the
//! tasks, newest first: otherwise a slot that a canceled command frees would start the next one of them, and the end of a
//! task the one that waits for it, which is always newer. Then what runs is canceled. To sweep in another way: a method
//! here that does one slice.

use super::invariants::Rule;
use super::task::{Execution, Place, Task};
use super::user::Selection;
use super::{Core, ExecutionKey, TaskKey, TaskQuery, Time};
use crate::wire::sweep as wire;
use crate::wire::task::{ExecutionState, TaskState};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The most executions and tasks handled in one call: it runs under the lock.
pub const MAX_SWEPT: usize = 200;
/// The most tasks visited in one call to find those that are meant.
const MAX_VISITED: usize = 2_000;
/// The most tasks run again in one call.
pub const MAX_RERUNS: usize = 20;
/// Tasks that an answer names.
const MAX_SHOWN: usize = 100;
/// Skipped tasks that an answer names for each reason.
const MAX_SKIPPED_SHOWN: usize = 10;
/// Different reasons in an answer; the others are counted together.
const MAX_REASONS: usize = 20;

const HAS_ENDED: &str = "has ended";
const NOTHING_LEFT: &str = "all of it that is meant has ended, or is being canceled";
const HAS_STARTED: &str = "all of it has started";
const HAS_NOT_ENDED: &str = "has not ended";
const WAS_RERUN: &str = "was run again already";
const ALL_SUCCEEDED: &str = "every execution succeeded";
const OTHER: &str = "for other reasons";

/// The tasks that a filter means.
#[derive(Debug, Default)]
pub struct Meant {
    tasks: Vec<TaskKey>,
    /// The ids of those that were run again, if they were visited.
    rerun: HashSet<Arc<str>>,
    before: Option<TaskKey>,
    is_complete: bool,
}

impl Meant {
    /// One task.
    pub fn one(key: TaskKey) -> Meant {
        Meant {
            tasks: vec![key],
            is_complete: true,
            ..Meant::default()
        }
    }

    /// Whether all are found.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }
}

/// How far a sweep has come, and what it has done.
#[derive(Debug)]
pub struct Sweep {
    tasks: Vec<TaskKey>,
    rerun: HashSet<Arc<str>>,
    selection: Selection,
    only_unstarted: bool,
    is_dry: bool,
    /// The task that is next, and how many of its executions are still to be looked at.
    at: usize,
    left: Option<usize>,
    /// What has not started is canceled already.
    is_second_pass: bool,
    swept: wire::Swept,
    skipped: BTreeMap<String, (u32, Vec<String>)>,
    changed: Vec<TaskKey>,
}

impl Sweep {
    /// Over the tasks that were found.
    pub fn new(meant: Meant, selection: Selection, only_unstarted: bool, is_dry: bool) -> Sweep {
        Sweep {
            tasks: meant.tasks,
            rerun: meant.rerun,
            selection,
            only_unstarted,
            is_dry,
            at: 0,
            left: None,
            is_second_pass: false,
            swept: wire::Swept {
                dry_run: is_dry,
                ..wire::Swept::default()
            },
            skipped: BTreeMap::new(),
            changed: Vec::new(),
        }
    }

    /// Begins with the oldest: what is run again is queued in the order in which it was.
    pub fn oldest_first(mut self) -> Sweep {
        self.tasks.reverse();
        self
    }

    /// What it has done.
    pub fn swept(&self) -> wire::Swept {
        let skipped = self
            .skipped
            .iter()
            .map(|(reason, (count, tasks))| wire::Skipped {
                reason: reason.clone(),
                count: *count,
                tasks: tasks.clone(),
            });
        wire::Swept {
            skipped: skipped.collect(),
            ..self.swept.clone()
        }
    }

    /// The new tasks of a rerun.
    pub fn new_tasks(&self) -> &[TaskKey] {
        &self.changed
    }

    /// The tasks that are still worked on.
    #[doc(hidden)]
    pub fn tasks(&self) -> &[TaskKey] {
        &self.tasks
    }

    fn show(&mut self, task: &Task, executions: u32, rerun: Option<&str>) {
        self.swept.tasks += 1;
        self.swept.executions += executions;
        if self.swept.shown.len() < MAX_SHOWN {
            self.swept.shown.push(wire::SweptTask {
                id: task.id.to_string(),
                name: task.spec.name.to_string(),
                state: task.state(),
                executions,
                rerun: rerun.map(str::to_owned),
            });
        }
    }

    fn skip(&mut self, task: &Task, reason: &str) {
        let is_known = self.skipped.contains_key(reason) || self.skipped.len() < MAX_REASONS;
        let reason = if is_known { reason } else { OTHER };
        let (count, tasks) = self.skipped.entry(reason.to_owned()).or_default();
        *count += 1;
        if tasks.len() < MAX_SKIPPED_SHOWN {
            tasks.push(task.id.to_string());
        }
    }
}

impl Core {
    /// Finds some more of the tasks that a filter means, newest first.
    pub fn find_meant(&self, query: &TaskQuery, meant: &mut Meant) {
        let all = self.matching_from(query, meant.before);
        for (visited, (key, task)) in all.enumerate() {
            if visited == MAX_VISITED {
                return;
            }
            meant.before = Some(*key);
            if let Some(of) = &task.rerun_of {
                meant.rerun.insert(of.clone());
            }
            if query.wants(task) {
                meant.tasks.push(*key);
            }
        }
        meant.is_complete = true;
    }

    /// Cancels some more of what a sweep means: looks at so many tasks and executions. True when all is done.
    pub fn cancel_slice(&mut self, now: Time, sweep: &mut Sweep, mut budget: usize) -> bool {
        while budget > 0 {
            let Some(key) = sweep.tasks.get(sweep.at).copied() else {
                if sweep.is_second_pass || sweep.only_unstarted || sweep.is_dry {
                    return true;
                }
                (sweep.is_second_pass, sweep.at, sweep.left) = (true, 0, None);
                sweep.tasks = std::mem::take(&mut sweep.changed);
                continue;
            };
            budget -= 1;
            let left = match sweep.left {
                Some(left) => left,
                None => match self.begin_cancel(now, key, sweep) {
                    Some(executions) => executions,
                    None => {
                        sweep.at += 1;
                        continue;
                    }
                },
            };
            // The last first: what is held behind others of its task does not get their turns.
            let slice = left.min(budget);
            let is_last = sweep.is_second_pass || !self.keeps(Rule::UnstartedIsCanceledFirst);
            for n in (left - slice..left).rev() {
                let execution = ExecutionKey {
                    task: key,
                    n: n as u32,
                };
                let e = self.tasks.get(&key).and_then(|task| task.executions.get(n));
                if e.is_some_and(|e| {
                    sweep.selection.means(e) && e.is_swept(sweep.only_unstarted, is_last)
                }) {
                    self.cancel_execution(now, execution);
                }
            }
            budget -= slice;
            sweep.left = Some(left - slice);
            if left == slice {
                self.finish_if_done(now, key);
                (sweep.at, sweep.left) = (sweep.at + 1, None);
            }
        }
        false
    }

    /// Decides what a sweep does about a task, before anything of it is canceled: how many executions are to be looked at.
    fn begin_cancel(&mut self, now: Time, key: TaskKey, sweep: &mut Sweep) -> Option<usize> {
        let task = self.tasks.get(&key)?.clone();
        if sweep.is_second_pass {
            return Some(task.executions.len());
        }
        let is_whole = matches!(sweep.selection, Selection::All);
        let meant = { task.executions.iter() }
            .filter(|e| sweep.selection.means(e) && e.is_meant(sweep.only_unstarted))
            .count() as u32;
        // Machines that have not come yet are what is left of some.
        let is_open = is_whole && (task.open || task.executions.is_empty());
        match () {
            () if task.finished_at.is_some() => sweep.skip(&task, HAS_ENDED),
            () if meant == 0 && !is_open => sweep.skip(
                &task,
                match sweep.only_unstarted {
                    true => HAS_STARTED,
                    false => NOTHING_LEFT,
                },
            ),
            () => {
                sweep.show(&task, meant, None);
                if sweep.is_dry {
                    return None;
                }
                sweep.changed.push(key);
                let executions = task.executions.len();
                let has_begun = task.has_started() || task.counts.delivered > 0;
                drop(task);
                if is_whole && !(sweep.only_unstarted && has_begun) {
                    self.mark_canceled(now, key);
                } else if is_whole {
                    // Machines that come later are among what has not started.
                    self.close(key);
                }
                // All that it waited for may be machines that do not join it any more.
                self.finish_if_done(now, key);
                return Some(executions);
            }
        }
        None
    }

    /// Runs some more of the tasks of a sweep again; each with one of these ids, which were never used. True when all is
    /// done.
    pub fn rerun_slice(&mut self, now: Time, sweep: &mut Sweep, all: bool, ids: &[String]) -> bool {
        let (mut ids, mut budget) = (ids.iter(), MAX_SWEPT);
        while let Some(key) = sweep.tasks.get(sweep.at).copied() {
            if ids.len() == 0 || budget == 0 {
                return false;
            }
            budget -= 1;
            sweep.at += 1;
            let Some(task) = self.tasks.get(&key).cloned() else {
                continue;
            };
            let why = match () {
                () if task.finished_at.is_none() => HAS_NOT_ENDED,
                () if sweep.rerun.contains(&task.id) => WAS_RERUN,
                () if !all && task.state() == TaskState::Succeeded => ALL_SUCCEEDED,
                () if sweep.is_dry => {
                    sweep.show(&task, task.to_rerun(all), None);
                    continue;
                }
                () => "",
            };
            if !why.is_empty() {
                sweep.skip(&task, why);
                continue;
            }
            let Some(id) = ids.next() else {
                return false;
            };
            match self.rerun(now, id, key, all) {
                Ok(new) => {
                    let executions = self.tasks.get(&new).map_or(0, |new| new.executions.len());
                    budget = budget.saturating_sub(executions);
                    sweep.show(&task, executions as u32, Some(id));
                    sweep.changed.push(new);
                }
                Err(refusal) => {
                    let unique = task.spec.unique.as_deref();
                    let why = { self.naming(None, unique, refusal) }
                        .to_string()
                        .replace(&format!("task {}", task.id), "it");
                    sweep.skip(&task, &why);
                }
            }
        }
        true
    }
}

impl Execution {
    /// Whether a cancel of this kind means it.
    pub(super) fn is_meant(&self, only_unstarted: bool) -> bool {
        let is_unstarted = matches!(self.state, ExecutionState::Held | ExecutionState::Queued);
        match only_unstarted {
            true => is_unstarted && self.past.is_empty(),
            false => !self.state.is_terminal() && !self.canceling,
        }
    }

    /// Whether a pass of such a cancel means it: the first what no machine has, the second the rest.
    fn is_swept(&self, only_unstarted: bool, is_second_pass: bool) -> bool {
        let is_at_machine = matches!(self.place, Place::Active(_));
        self.is_meant(only_unstarted) && (is_second_pass || !is_at_machine)
    }
}

impl Task {
    /// Whether a user canceled all of it.
    #[doc(hidden)]
    pub fn is_canceled(&self) -> bool {
        self.canceled
    }

    /// How many executions a rerun of it has.
    fn to_rerun(&self, all: bool) -> u32 {
        match all {
            true => self.counts.total(),
            false => self.counts.total() - self.counts.succeeded,
        }
    }
}
