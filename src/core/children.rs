//! Children by outcome: tasks that are submitted together with another one and begin with its end.
//!
//! A child is a task of its own with one edge to its parent (`after.rs`), so it runs also where the machine of its parent
//! died, and changes nothing about it. Parent and children are accepted in one commit, all or none. The parent's spec keeps
//! what they were posted with: a rerun has the same children.

use super::after::Edge;
use super::spec::Spec;
use super::task::{Task, TaskData};
use super::waiting::Waiting;
use super::{Core, Refusal, TaskKey, Time};
use crate::wire::after::Outcome;
use crate::wire::child::{ChildId, ChildTask};
use crate::wire::task::Detail;
use std::borrow::Cow;
use std::sync::Arc;

/// How long a child waits for the end of its parent, in milliseconds: ten years. However late the parent begins, its end
/// is not missed.
const WAITS_MS: u64 = 10 * 366 * 24 * 3_600_000;

/// A child, as it was posted with its parent.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    /// With which end of its parent it begins.
    pub on: Outcome,
    /// The child.
    pub spec: Arc<Spec>,
}

impl Child {
    /// The field of its parent that has it.
    pub fn field(on: Outcome) -> &'static str {
        match on {
            Outcome::Succeeded => "onSuccess",
            Outcome::Failed => "onFailure",
            Outcome::Ended => "onEnd",
        }
    }

    /// Its id, which follows from its parent's prefix unless it was posted with one.
    fn id(&self, prefix: &str) -> Arc<str> {
        match &self.spec.id {
            Some(id) => id.clone(),
            None => own_prefix(self.on, prefix),
        }
    }

    fn answer(&self, shows_detail: bool) -> ChildTask {
        let spec = &self.spec;
        let selector = spec.selector.text();
        let narrowing = selector.narrowing.as_deref();
        ChildTask {
            name: spec.name.to_string(),
            machine_pattern: selector.pattern.to_string(),
            exclude: narrowing.and_then(|it| it.exclude.clone()),
            machine_tags: narrowing.map_or_else(Default::default, |it| it.tags.clone()),
            hosts: narrowing.and_then(|it| it.hosts.clone()),
            instances: { narrowing.into_iter() }
                .flat_map(|it| it.instances.iter().map(|instance| instance.to_string()))
                .filter(|_| shows_detail)
                .collect(),
            expect: spec.counts.expect,
            max_targets: spec.counts.max_targets,
            keep_alive: spec.counts.keep_alive.as_ref().map(|it| it.posted()),
            rollout: spec.rollout.as_ref().map(|rollout| rollout.posted.clone()),
            probes: { spec.probes.iter() }
                .map(|probe| probe.posted.clone())
                .filter(|_| shows_detail)
                .collect(),
            mode: spec.mode,
            ttl: spec.ttl,
            late_join: spec.late_join,
            retry: spec.retry.as_deref().cloned(),
            result_ttl: spec.result_ttl,
            failure_ttl: spec.failure_ttl,
            detail: match shows_detail {
                true => spec.detail.clone(),
                false => Arc::new(Detail::default()),
            },
        }
    }
}

/// The prefix of a child: as unique as its parent's. It begins otherwise, so that the beginning of an id means the parent.
fn own_prefix(on: Outcome, prefix: &str) -> Arc<str> {
    let word = match on {
        Outcome::Succeeded => "on-success",
        Outcome::Failed => "on-failure",
        Outcome::Ended => "on-end",
    };
    format!("{word}-{prefix}").into()
}

impl Task {
    /// The child that begins with this end of it, as it was posted. A list leaves out what may be long.
    pub(super) fn answered_child(&self, on: Outcome, shows_detail: bool) -> Option<ChildTask> {
        let child = self.spec.children.iter().find(|child| child.on == on)?;
        Some(child.answer(shows_detail))
    }

    /// The ids of its children.
    pub(super) fn answered_children(&self) -> Vec<ChildId<Cow<'_, str>>> {
        let children = self.spec.children.iter();
        let children = children.map(|child| ChildId {
            on: child.on,
            task: Cow::from(child.id(&self.prefix).to_string()),
        });
        children.collect()
    }

    /// The id of the task that it is a child by outcome of.
    pub(super) fn parent_id(&self) -> Option<&str> {
        let waiting = self.waiting.as_ref().filter(|it| it.is_child)?;
        Some(&waiting.after.first()?.name)
    }
}

impl Core {
    /// Checks everything that could refuse the children of a new task.
    pub(super) fn check_children(
        &mut self,
        id: &str,
        prefix: &str,
        spec: &Spec,
    ) -> Result<(), Refusal> {
        if spec.children.is_empty() {
            return Ok(());
        }
        let mut ids: Vec<Arc<str>> = vec![id.into()];
        let mut bytes = spec.kept_bytes();
        for child in &spec.children {
            let child_id = child.id(prefix);
            let field = Child::field(child.on);
            let unused = self.check_unused(&child_id, &own_prefix(child.on, prefix));
            unused.map_err(|_| {
                Refusal::Conflict(format!("{field}.id: {child_id:?} is taken by another task"))
            })?;
            if ids.contains(&child_id) {
                return Err(Refusal::Conflict(format!(
                    "{field}.id: {child_id:?} is given twice"
                )));
            }
            ids.push(child_id);
            let allowed = { self.check_halt(child.spec.detail.undo.is_some()) }
                .and_then(|()| self.check_notify(&child.spec))
                .and_then(|()| self.check_named_limits(&child.spec.limits));
            allowed.map_err(|why| why.within(field))?;
            if child.spec.unique.is_some() {
                return Err(Refusal::Impossible(format!(
                    "{field}.uniqueKey: does not go with a task that begins with the end of another one"
                )));
            }
            bytes += child.spec.kept_bytes();
            self.selector_if_room(&child.spec)?;
        }
        self.check_room_for_tasks(ids.len(), bytes)
    }

    /// Adds the children of a task that has just been added. [`Core::check_children`] has allowed them.
    pub(super) fn add_children(&mut self, now: Time, parent: TaskKey) {
        let task = self.task(parent);
        let (spec, id, prefix) = (task.spec.clone(), task.id.clone(), task.prefix.clone());
        for child in &spec.children {
            let edge = Edge::to(parent, id.clone(), child.on);
            let waiting = Waiting::child(now, WAITS_MS, edge);
            let mut stored = Spec::clone(&child.spec);
            stored.id = None;
            let selector = self.match_index.key_of(&stored.selector);
            let stored = self.shared_spec(selector, stored);
            self.keep_parents(TaskKey(self.next_task), &waiting);
            let (child_id, prefix) = (child.id(&prefix), own_prefix(child.on, &prefix));
            let key = self.add_task(now, child_id, prefix, stored, Some(waiting));
            self.list_waiting(key);
        }
    }
}

impl TaskData {
    /// Its spec as a rerun has it: with the same children, under new ids.
    pub(super) fn spec_again(&self) -> Spec {
        let mut spec = Spec::clone(&self.spec);
        spec.id = None;
        // It is no firing.
        spec.scheduled = None;
        for child in &mut spec.children {
            if child.spec.id.is_some() {
                Arc::make_mut(&mut child.spec).id = None;
            }
        }
        spec
    }
}
