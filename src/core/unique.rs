//! Unique keys: of the tasks with the same key, one runs at a time, and what becomes of a further one is said by it.
//!
//! A key is held by every task that has it and has not ended, from its accept on. The index has these tasks; it follows
//! from them. There is more than one only while a task that was replaced has not ended yet: the newest one counts, and
//! is held back until it is the only one, so what has the same key never runs twice at once.

use super::invariants::Rule;
use super::spec::{Spec, check_text};
use super::task::Task;
use super::user::Selection;
use super::{Core, Refusal, TaskKey, Time};
use crate::wire::order::OnDuplicate;
use crate::wire::task::PostedTask;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The longest key, in bytes: it may contain a path or an address.
const MAX_KEY_BYTES: usize = 256;

/// The tasks that have each key and have not ended.
pub(super) type Keys = BTreeMap<Arc<str>, BTreeSet<TaskKey>>;

/// The key of a task, and what becomes of it when the key is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the fields of wire::task::Task of the same names are documented"
)]
pub struct Unique {
    pub key: Arc<str>,
    #[serde(default)]
    pub on_duplicate: OnDuplicate,
    #[serde(default)]
    pub replace_running: bool,
}

/// The key of a posted task.
pub(super) fn checked(posted: &mut PostedTask) -> Result<Option<Box<Unique>>, String> {
    let (on_duplicate, running) = (posted.on_duplicate, posted.replace_running);
    let Some(key) = posted.unique_key.take() else {
        let alone = [
            ("onDuplicate", on_duplicate.is_some()),
            ("replaceRunning", running.is_some()),
        ];
        return match alone.into_iter().find(|(_, is_given)| *is_given) {
            Some((field, _)) => Err(format!("{field}: goes with uniqueKey only")),
            None => Ok(None),
        };
    };
    check_text("uniqueKey", &key, MAX_KEY_BYTES, "")?;
    let on_duplicate = on_duplicate.unwrap_or_default();
    if running == Some(true) && on_duplicate != OnDuplicate::Replace {
        return Err("replaceRunning: goes with onDuplicate \"replace\" only".into());
    }
    Ok(Some(Box::new(Unique {
        key: key.into(),
        on_duplicate,
        replace_running: running == Some(true),
    })))
}

impl Task {
    /// Whether something of it may run, or may have run.
    fn may_have_started(&self) -> bool {
        self.counts.delivered + self.counts.running > 0 || self.has_started()
    }
}

impl Core {
    /// What becomes of a task with this spec because of its key: the task that it replaces, if it replaces one. Refused with
    /// [`Refusal::Joins`] if the task that has the key takes its place, with [`Refusal::Duplicate`] if it cannot be.
    pub(super) fn check_unique(&self, spec: &Spec) -> Result<Option<TaskKey>, Refusal> {
        let Some(unique) = &spec.unique else {
            return Ok(None);
        };
        let Some(holder) = self.holder_of(&unique.key) else {
            return Ok(None);
        };
        match unique.on_duplicate {
            OnDuplicate::Reject => Err(Refusal::Duplicate(holder)),
            OnDuplicate::Join => Err(Refusal::Joins(holder)),
            OnDuplicate::Replace
                if self.task(holder).may_have_started() && !unique.replace_running =>
            {
                Err(Refusal::Duplicate(holder))
            }
            OnDuplicate::Replace => Ok(Some(holder)),
        }
    }

    /// The task that has a key: the newest one, if one that it replaced has not ended yet.
    fn holder_of(&self, key: &str) -> Option<TaskKey> {
        self.keys.get(key)?.last().copied()
    }

    /// Cancels the task that a new one replaces. The new one has its key, and goes on when the old one has ended.
    pub(super) fn replace(&mut self, now: Time, old: Option<TaskKey>) {
        if let Some(old) = old {
            // It has not ended, and all of it is meant: nothing refuses that.
            let _ = self.cancel(now, old, &Selection::All);
        }
    }

    /// A task was added, or restored, and has not ended.
    pub(super) fn take_key(&mut self, key: TaskKey) {
        if let Some(unique) = &self.task(key).spec.unique {
            let unique = unique.key.clone();
            self.keys.entry(unique).or_default().insert(key);
        }
    }

    /// A task has ended: the one that waits for its key goes on.
    pub(super) fn free_key(&mut self, now: Time, key: TaskKey) {
        let Some(unique) = self
            .tasks
            .get(&key)
            .and_then(|task| task.spec.unique.as_ref())
        else {
            return;
        };
        let unique = unique.key.clone();
        let Some(tasks) = self.keys.get_mut(&unique) else {
            return;
        };
        tasks.remove(&key);
        match tasks.first().copied() {
            Some(first) => self.pace(now, first),
            None => drop(self.keys.remove(&unique)),
        }
    }

    /// Whether a task waits until one with its key has ended that it replaces.
    pub(super) fn waits_for_key(&self, key: TaskKey) -> bool {
        let unique = self.task(key).spec.unique.as_ref();
        let tasks = unique.and_then(|unique| self.keys.get(&unique.key));
        let first = tasks.and_then(|tasks| tasks.first());
        first.is_some_and(|first| *first < key) && self.keeps(Rule::KeyWaitsForItsHolder)
    }

    /// The index of keys is right.
    pub(super) fn check_keys(&self) -> Result<(), String> {
        let mut keys = Keys::new();
        for (key, task) in &self.tasks {
            let unique = task.spec.unique.as_ref();
            if let Some(unique) = unique.filter(|_| task.finished_at.is_none()) {
                keys.entry(unique.key.clone()).or_default().insert(*key);
            }
        }
        match keys == self.keys {
            true => Ok(()),
            false => Err(format!("keys {:?}, recounted {keys:?}", self.keys)),
        }
    }
}
