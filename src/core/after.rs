//! Tasks that begin after others.
//!
//! Each entry of `after` is an edge, and is kept in the child with its verdict. It is settled when the parent ends, see
//! `settle.rs`. Which edges are open follows from the tasks alone.
//!
//! | the parent ended | `succeeded` | `failed` | `ended` |
//! | --- | --- | --- | --- |
//! | succeeded | goes | skipped | goes |
//! | partial | goes where `minSucceeded` is reached, else skipped | goes | goes |
//! | failed, expired | skipped | goes | goes |
//! | canceled, skipped | skipped | skipped | goes |
//!
//! An edge that is meant machine by machine is met as soon as the machines of its parent are known; `per_machine.rs` has the
//! rest.
//!
//! A parent is kept until its children have started: neither its time nor a limit takes it.

use super::counting::first_named;
use super::groups::state_of;
use super::later_spec::Wait;
use super::task::Task;
use super::timers::Timer;
use super::waiting::Waiting;
use super::{Core, Refusal, TaskKey, data_mut};
use crate::wire::after::{self as wire, Outcome};
use crate::wire::duration::TimeSpan;
use crate::wire::rollout::Share;
use crate::wire::task::{Detail, TaskState};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The most tasks that one begins after, with the members of groups: they are listed and kept one by one, under the lock.
const MAX_ALL_PARENTS: usize = 10_000;
/// The variable in which a command finds the ids of the tasks that it began after.
const VARIABLE: &str = "SIDEBIKE_AFTER";
/// The most of them, in bytes: they are handed out beside the detail.
const MAX_VARIABLE_BYTES: usize = 16 << 10;

/// Another task, or a group of tasks, that has to end first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Edge {
    /// The number of the task, or of each member that the group had at the submit.
    pub tasks: Vec<u64>,
    /// The id of the task, or the name of the group.
    pub name: Arc<str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_group: bool,
    pub on: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_succeeded: Option<Share>,
    /// Each execution waits for the one of the parent on the same machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_machine: bool,
    /// Of those of the parent, the task says itself which machines it means.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_own_machines: bool,
    /// Whether it was met, once the parent has ended; machine by machine, once the machines of the parent are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
    /// Those of the tasks whose end is open. Follows from them, and is not saved.
    #[serde(skip)]
    pub left: BTreeSet<u64>,
}

/// An entry of `after`, checked.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    missing_docs,
    reason = "the fields of wire::after::After of the same names are documented"
)]
pub struct Parent {
    pub name: Arc<str>,
    pub is_group: bool,
    pub on: Outcome,
    pub min_succeeded: Option<Share>,
    pub per_machine: bool,
}

/// Which tasks wait for which.
#[derive(Debug, Default)]
pub(super) struct Dependents {
    /// The children with an open edge, by parent.
    pub open: BTreeMap<TaskKey, BTreeSet<TaskKey>>,
    /// The children for which a parent is kept.
    kept_for: BTreeMap<TaskKey, BTreeSet<TaskKey>>,
    /// The parents whose open edges have to be settled.
    pub ended: VecDeque<TaskKey>,
    /// Parents are not kept any more since the limits were looked at.
    pub has_freed: bool,
}

impl Dependents {
    /// A child has no open edge to a parent any more.
    pub fn unlist(&mut self, parent: TaskKey, child: TaskKey) {
        if let Some(children) = self.open.get_mut(&parent) {
            children.remove(&child);
            if children.is_empty() {
                self.open.remove(&parent);
            }
        }
    }
}

impl Edge {
    /// To one task that has not ended.
    pub fn to(task: TaskKey, id: Arc<str>, on: Outcome) -> Edge {
        Edge {
            tasks: vec![task.0],
            name: id,
            is_group: false,
            on,
            min_succeeded: None,
            per_machine: false,
            has_own_machines: false,
            met: None,
            left: [task.0].into(),
        }
    }

    /// After a restart: it is not known who has ended since.
    pub fn restored(mut self) -> Edge {
        if self.met.is_none() {
            self.left = self.tasks.iter().copied().collect();
        }
        self
    }

    fn answer(&self) -> wire::After<Cow<'_, str>> {
        let name = Some(Cow::from(&*self.name));
        let (task, group) = match self.is_group {
            true => (None, name),
            false => (name, None),
        };
        wire::After {
            task,
            group,
            members: self.is_group.then_some(self.tasks.len() as u32),
            on: self.on,
            min_succeeded: self.min_succeeded,
            per_machine: self.per_machine,
            // Machine by machine each execution says it itself.
            met: self.met.filter(|met| !(self.per_machine && *met)),
        }
    }

    /// With which end of it, in words.
    pub(super) fn on_in_words(&self) -> String {
        match self.on {
            Outcome::Ended => String::new(),
            on => format!(" {}", on.word()),
        }
    }

    /// What it names, in words.
    pub(super) fn in_words(&self) -> String {
        match self.is_group {
            true => format!("group {}", self.name),
            false => format!("task {}", self.name),
        }
    }
}

/// Whether an edge is met by a parent that ended in this state, of which so many of so many have succeeded.
fn is_met(
    on: Outcome,
    min_succeeded: Option<Share>,
    state: TaskState,
    (succeeded, all): (u32, u32),
) -> bool {
    use TaskState::*;
    match (on, state) {
        (_, Scheduled | Blocked | Waiting | Running) => false,
        (Outcome::Ended, _) => true,
        (_, Canceled | Skipped) => false,
        (Outcome::Succeeded, Succeeded) => true,
        (Outcome::Succeeded, Partial) => {
            min_succeeded.is_some_and(|min| succeeded >= min.rounded_up(all))
        }
        (Outcome::Succeeded, Failed | Expired) => false,
        (Outcome::Failed, Succeeded) => false,
        (Outcome::Failed, Partial | Failed | Expired) => true,
    }
}

impl Waiting {
    /// Whether nothing is left that has to end first.
    pub(super) fn is_free(&self) -> bool {
        self.after.iter().all(|edge| edge.met == Some(true))
    }

    /// The first edge that is not met.
    pub(super) fn unmet(&self) -> Option<&Edge> {
        self.after.iter().find(|edge| edge.met == Some(false))
    }

    /// Its parents whose end is open.
    fn open_parents(&self) -> BTreeSet<TaskKey> {
        let left = self.after.iter().flat_map(|edge| &edge.left);
        left.copied().map(TaskKey).collect()
    }

    fn parents(&self) -> BTreeSet<TaskKey> {
        let tasks = self.after.iter().flat_map(|edge| &edge.tasks);
        tasks.copied().map(TaskKey).collect()
    }

    /// What it waits for, in words: the end of whom, or their beginning.
    pub(super) fn waits_for(&self) -> (&'static str, String) {
        let open = || self.after.iter().filter(|edge| edge.met.is_none());
        let event = match open().all(|edge| edge.per_machine) {
            true => "begin",
            false => "end",
        };
        let names: Vec<String> = open()
            .map(|edge| match edge.is_group {
                true => edge.in_words(),
                false => edge.name.to_string(),
            })
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        (event, first_named(&names))
    }
}

impl Task {
    /// What it begins after, as the API answers it.
    pub(super) fn answered_after(&self) -> Vec<wire::After<Cow<'_, str>>> {
        let waiting = self.waiting.iter();
        waiting.flat_map(|it| &it.after).map(Edge::answer).collect()
    }

    /// How long it may wait for that.
    pub(super) fn answered_blocked_ttl(&self) -> Option<TimeSpan> {
        let waiting = self.waiting.as_ref()?;
        if waiting.after.is_empty() || waiting.is_child {
            return None;
        }
        Some(TimeSpan::from_millis(waiting.blocked_ms))
    }

    /// Whether its parents are kept for it: it may still start something for the first time.
    fn needs_parents(&self) -> bool {
        let counts = &self.counts;
        let may_start = self.open || counts.held + counts.queued + counts.delivered > 0;
        self.finished_at.is_none() && (self.is_unbegun() || may_start)
    }
}

impl Core {
    /// The edges of a posted task. Refused with [`Refusal::Impossible`] if it names what is not there.
    pub(super) fn edges_of(&self, wait: &Wait) -> Result<Vec<Edge>, Refusal> {
        let mut all = 0;
        let edges = wait.after.iter().enumerate().map(|(n, parent)| {
            let tasks = match parent.is_group {
                false => {
                    let unknown = |why| Refusal::Impossible(format!("after[{n}].task: {why}"));
                    vec![self.find_task(&parent.name).map_err(unknown)?]
                }
                true => { self.group_members(&parent.name).into_iter() }
                    .flatten()
                    .copied()
                    .collect(),
            };
            let Some(first) = tasks.first() else {
                return Err(Refusal::Impossible(format!(
                    "after[{n}].group: no task has the group {:?}",
                    parent.name
                )));
            };
            all += tasks.len();
            if all > MAX_ALL_PARENTS {
                return Err(Refusal::Impossible(format!(
                    "after[{n}]: names {all} tasks together with the entries before, {MAX_ALL_PARENTS} at most"
                )));
            }
            if parent.per_machine {
                self.check_parent_per_machine(n, *first)?;
            }
            let is_open = |key: &&TaskKey| match parent.per_machine {
                true => !self.has_fixed_machines(**key),
                false => !self.is_finished(**key),
            };
            let open = tasks.iter().filter(is_open);
            let mut edge = Edge {
                name: match parent.is_group {
                    true => parent.name.clone(),
                    false => self.task(*first).id.clone(),
                },
                is_group: parent.is_group,
                on: parent.on,
                min_succeeded: parent.min_succeeded,
                per_machine: parent.per_machine,
                has_own_machines: parent.per_machine && !wait.has_machines_of_parent,
                met: None,
                left: open.map(|key| key.0).collect(),
                tasks: tasks.iter().map(|key| key.0).collect(),
            };
            // What has ended is settled at once, in the commit of the submit.
            if edge.left.is_empty() {
                edge.met = Some(self.verdict(&edge));
            }
            Ok(edge)
        });
        edges.collect()
    }

    /// Whether an edge is met by those that it names, which have all ended, or have machines if it is meant machine by
    /// machine.
    pub(super) fn verdict(&self, edge: &Edge) -> bool {
        let tasks = || edge.tasks.iter().map(|key| self.tasks.get(&TaskKey(*key)));
        // A restored file may not have one any more: then nobody knows how it ended.
        if tasks().any(|task| task.is_none()) {
            return false;
        }
        if edge.per_machine {
            return tasks().flatten().any(|task| task.size() > 0);
        }
        let (state, counts) = match (edge.is_group, tasks().flatten().next()) {
            (false, Some(task)) => (task.state(), (task.counts.succeeded, task.counts.total())),
            _ => {
                let states: Vec<TaskState> = tasks().flatten().map(|task| task.state()).collect();
                let succeeded = states.iter().filter(|it| **it == TaskState::Succeeded);
                let counts = (succeeded.count() as u32, states.len() as u32);
                (state_of(states), counts)
            }
        };
        is_met(edge.on, edge.min_succeeded, state, counts)
    }

    /// How those that an edge names have ended, in words.
    pub(super) fn ended_in_words(&self, edge: &Edge) -> String {
        let tasks = edge.tasks.iter();
        let states: Option<Vec<TaskState>> = tasks
            .map(|key| Some(self.tasks.get(&TaskKey(*key))?.state()))
            .collect();
        match states {
            Some(states) => format!("which ended {}", state_of(states).word()),
            None => "which is no longer known".into(),
        }
    }

    /// Has the parents of a task kept for it, which is about to be added, or was restored.
    pub(super) fn keep_parents(&mut self, key: TaskKey, waiting: &Waiting) {
        for parent in waiting.parents() {
            let children = self.after.kept_for.entry(parent).or_default();
            children.insert(key);
            self.set_needed(parent, true);
        }
    }

    /// The parents of a task are not kept for it any more, once everything of it has started or ended.
    pub(super) fn release_parents(&mut self, key: TaskKey) {
        let Some(task) = self.tasks.get(&key) else {
            return;
        };
        let holds = task.waiting.as_ref().is_some_and(|it| it.holds);
        if !holds || task.needs_parents() {
            return;
        }
        let Some(waiting) = self.task_mut(key).waiting.as_mut() else {
            return;
        };
        waiting.holds = false;
        for parent in waiting.parents() {
            let Some(children) = self.after.kept_for.get_mut(&parent) else {
                continue;
            };
            children.remove(&key);
            if children.is_empty() {
                self.after.kept_for.remove(&parent);
                self.set_needed(parent, false);
                self.after.has_freed = true;
            }
        }
    }

    fn set_needed(&mut self, key: TaskKey, needed: bool) {
        let Some(task) = self.tasks.get(&key).filter(|task| task.needed != needed) else {
            return;
        };
        if let Some(time) = task.forgotten_at() {
            self.timers.cancel(time, Timer::ForgetTask(key));
        }
        data_mut(&mut self.tasks, key).needed = needed;
        if let Some(time) = self.forgotten_at(key) {
            self.timers.set(time, Timer::ForgetTask(key));
        }
        self.list_finished_again(key);
    }

    /// The ids of the children for which a task is kept, for a refusal; none if it is not.
    pub(super) fn kept_for(&self, key: TaskKey) -> Option<String> {
        let children = self.after.kept_for.get(&key)?;
        let ids: Vec<&str> = children.iter().map(|key| &*self.task(*key).id).collect();
        Some(first_named(&ids))
    }

    /// Lists the open edges of a task that has not begun.
    pub(super) fn list_edges(&mut self, key: TaskKey) {
        let waiting = self.task(key).waiting.as_ref();
        let open = waiting.map_or_else(BTreeSet::new, |waiting| waiting.open_parents());
        for parent in open {
            self.after.open.entry(parent).or_default().insert(key);
        }
    }

    /// The same the other way round: it has begun, or has ended.
    pub(super) fn unlist_edges(&mut self, key: TaskKey) {
        let waiting = self.task(key).waiting.as_ref();
        let open = waiting.map_or_else(BTreeSet::new, |waiting| waiting.open_parents());
        for parent in open {
            self.after.unlist(parent, key);
        }
    }

    /// A task has ended, or those that wait for it are to be canceled.
    pub(super) fn parent_ended(&mut self, key: TaskKey) {
        if self.after.open.contains_key(&key) {
            self.after.ended.push_back(key);
        }
    }

    /// Whether a task has to wait for the end of others.
    pub(super) fn is_blocked(&self, key: TaskKey) -> bool {
        let waiting = self.task(key).waiting.as_ref();
        waiting.is_some_and(|waiting| !waiting.is_free())
    }

    /// An edge is settled: unlists it, unless another one of the child has the same parent and is open.
    pub(super) fn edge_is_settled(&mut self, parent: TaskKey, child: TaskKey) {
        let waiting = self.task(child).waiting.as_ref();
        if waiting.is_none_or(|waiting| !waiting.open_parents().contains(&parent)) {
            self.after.unlist(parent, child);
        }
    }

    /// The children with an open edge to a task.
    pub(super) fn open_children(&self, parent: TaskKey) -> impl Iterator<Item = TaskKey> {
        { self.after.open.get(&parent) }
            .into_iter()
            .flatten()
            .copied()
    }

    /// The detail that is handed out, and how much longer it is in bytes: with the ids of the tasks that a task began
    /// after, unless the agent is the original's.
    pub(super) fn detail_with_ids(&mut self, key: TaskKey, is_original: bool) -> Arc<Detail> {
        let task = self.task(key);
        let detail = task.spec.detail.clone();
        let Some(waiting) = task.waiting.as_ref().filter(|_| !is_original) else {
            return detail;
        };
        if waiting.after.is_empty() {
            return detail;
        }
        if let Some(made) = &waiting.detail {
            return made.clone();
        }
        let mut ids = String::new();
        let tasks = waiting.after.iter().flat_map(|edge| &edge.tasks);
        for task in tasks.filter_map(|key| self.tasks.get(&TaskKey(*key))) {
            if ids.len() + task.id.len() >= MAX_VARIABLE_BYTES {
                break;
            }
            let blank = if ids.is_empty() { "" } else { " " };
            ids.push_str(blank);
            ids.push_str(&task.id);
        }
        let mut detail = Detail::clone(&detail);
        let env = detail.env.get_or_insert_default();
        // What the task says itself wins.
        env.entry(VARIABLE.to_owned()).or_insert(ids);
        let made = Arc::new(detail);
        if let Some(waiting) = data_mut(&mut self.tasks, key).waiting.as_mut() {
            waiting.detail = Some(made.clone());
        }
        made
    }

    /// Checks the lists against the edges of all tasks.
    pub(super) fn check_dependents(&self) -> Result<(), String> {
        let (mut open, mut kept) = (BTreeMap::new(), BTreeMap::new());
        for (key, task) in &self.tasks {
            let Some(waiting) = task.waiting.as_ref() else {
                continue;
            };
            if task.is_unbegun() {
                for parent in waiting.open_parents() {
                    let children: &mut BTreeSet<TaskKey> = open.entry(parent).or_default();
                    children.insert(*key);
                }
            }
            if waiting.holds && !task.needs_parents() {
                return Err(format!("{key:?}: its parents are kept for nothing"));
            }
            for parent in waiting.parents().into_iter().filter(|_| waiting.holds) {
                let children: &mut BTreeSet<TaskKey> = kept.entry(parent).or_default();
                children.insert(*key);
                if !self.tasks.contains_key(&parent) {
                    return Err(format!("{key:?}: its parent {parent:?} is forgotten"));
                }
            }
        }
        if open != self.after.open {
            let listed = &self.after.open;
            return Err(format!("open edges {listed:?}, recounted {open:?}"));
        }
        if kept != self.after.kept_for {
            let listed = &self.after.kept_for;
            return Err(format!("parents kept {listed:?}, recounted {kept:?}"));
        }
        for (key, task) in &self.tasks {
            if task.needed != kept.contains_key(key) {
                return Err(format!("{key:?}: needed {}", task.needed));
            }
            let is_left = open.contains_key(key) && !self.after.ended.contains(key);
            if task.finished_at.is_some() && is_left {
                return Err(format!("{key:?}: has ended, and some wait for it for ever"));
            }
        }
        let is_set = self.timers.iter().any(|(_, timer)| *timer == Timer::Settle);
        let is_settled = self.after.ended.is_empty() && !self.counterparts.is_something_to_settle();
        match is_settled || is_set {
            true => Ok(()),
            false => Err("edges are to be settled, and nobody does".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_verdicts() {
        use TaskState::*;
        let row = |state, min: Option<Share>| {
            [Outcome::Succeeded, Outcome::Failed, Outcome::Ended]
                .map(|on| is_met(on, min, state, (9, 10)))
        };
        let enough = Some(Share::Percent(90));
        let more = Some(Share::Percent(91));
        for (state, min, expected) in [
            (Succeeded, None, [true, false, true]),
            (Succeeded, more, [true, false, true]),
            (Partial, None, [false, true, true]),
            (Partial, enough, [true, true, true]),
            (Partial, Some(Share::Count(9)), [true, true, true]),
            (Partial, more, [false, true, true]),
            (Partial, Some(Share::Count(10)), [false, true, true]),
            (Failed, enough, [false, true, true]),
            (Expired, enough, [false, true, true]),
            (Canceled, enough, [false, false, true]),
            (Skipped, enough, [false, false, true]),
            (Running, enough, [false, false, false]),
        ] {
            assert_eq!(row(state, min), expected, "{state:?} {min:?}");
        }
    }
}
