//! Lists of tasks: all of them are accepted, or none.

use super::task::Task;
use super::unique::Unique;
use super::{Core, Notice, Refusal, Rule, Spec, TaskKey, Time};
use crate::wire::order::OnDuplicate;
use std::sync::Arc;

/// Why a list was refused.
#[derive(Debug)]
pub enum ListRefusal {
    /// The ids of these items, counted from 0, are in use by these tasks.
    Taken(Vec<(usize, TaskKey)>),
    /// This item was refused.
    Item(usize, Refusal),
}

impl Core {
    /// Accepts a list of tasks in this order: all, or none, and then nothing is left of those before the one that is
    /// refused. Each comes with an id that was never used, see [`Core::submit`]. A later one may name an earlier one.
    /// Also returns the tasks. If it is `is_dry`, nothing is left of them in any case.
    pub fn submit_all(
        &mut self,
        now: Time,
        list: Vec<(String, Spec)>,
        is_dry: bool,
    ) -> Result<(Vec<TaskKey>, Vec<Task>), ListRefusal> {
        let taken = (0..).zip(&list).filter_map(|(n, (fresh, spec))| {
            let id = spec.id.as_deref().unwrap_or(fresh);
            match self.check_unused(id, fresh) {
                Err(Refusal::Taken(key)) => Some((n, key)),
                _ => None,
            }
        });
        let taken: Vec<_> = taken.collect();
        if !taken.is_empty() {
            return Err(ListRefusal::Taken(taken));
        }
        // What a refused list has canceled could not be taken back.
        let replaces = |(_, spec): &(String, Spec)| {
            let unique = spec.unique.as_ref();
            unique.is_some_and(|unique| unique.on_duplicate == OnDuplicate::Replace)
        };
        if let Some(n) = list.iter().position(replaces) {
            let why = "onDuplicate: \"replace\" does not go with a list of tasks";
            return Err(ListRefusal::Item(n, Refusal::Impossible(why.into())));
        }
        let first = TaskKey(self.next_task);
        let stats = self.stats.clone();
        // Nothing is forgotten for tasks that may be refused after all.
        self.forgets_later = true;
        let mut keys = Vec::with_capacity(list.len());
        let mut refused = None;
        for (n, (fresh, spec)) in list.into_iter().enumerate() {
            // For the words of a refusal; a copy of the whole would be large.
            let (id, unique) = (spec.id.clone(), spec.unique.clone());
            match self.submit(now, &fresh, spec) {
                Ok(key) => keys.push(key),
                Err(refusal) => {
                    let refusal = self.of_item(&keys, first, refusal, id, unique);
                    refused = Some(ListRefusal::Item(n, refusal));
                    break;
                }
            }
        }
        let tasks = match &refused {
            None => self.show_all(keys.iter().copied()),
            Some(_) => Vec::new(),
        };
        if (is_dry || refused.is_some()) && self.keeps(Rule::ListIsTakenBack) {
            self.take_back_from(now, first);
            self.stats = stats;
        }
        self.forgets_later = false;
        self.keep_within_limits();
        refused.map_or(Ok((keys, tasks)), Err)
    }

    /// The refusal of an item, in words that hold when those before it are taken back: what it has in common with one of
    /// them, it is said, and another task that is in the way is named.
    fn of_item(
        &self,
        before: &[TaskKey],
        first: TaskKey,
        refusal: Refusal,
        id: Option<Arc<str>>,
        unique: Option<Box<Unique>>,
    ) -> Refusal {
        let (field, key) = match refusal {
            Refusal::Taken(key) => ("id", key),
            Refusal::Duplicate(key) | Refusal::Joins(key) => ("uniqueKey", key),
            other => return other,
        };
        if key < first {
            return self.naming(id.as_deref(), unique.as_deref(), refusal);
        }
        // The children of an item come after it.
        let item = before.partition_point(|before| *before <= key) - 1;
        Refusal::Conflict(format!(
            "{field}: is given twice, tasks[{item}] has it, too"
        ))
    }

    /// Takes back every task from this one on, in the same call in which they were accepted: nothing of them was handed
    /// out, told or saved. The newest first, as a later one may wait for an earlier one.
    fn take_back_from(&mut self, now: Time, first: TaskKey) {
        let keys: Vec<TaskKey> = self.tasks.range(first..).map(|(key, _)| *key).collect();
        for key in keys.into_iter().rev() {
            self.withdraw(now, key);
        }
        self.notices.retain(|notice| match notice {
            Notice::Finished(key) | Notice::Changed(key) => *key < first,
            _ => true,
        });
        if let Some(changes) = &mut self.changes {
            changes.forget_from(first);
        }
    }

    /// Withdraws tasks that were just accepted together and could not be saved, see [`Core::withdraw`].
    pub fn withdraw_all(&mut self, now: Time, keys: &[TaskKey]) {
        for key in keys.iter().rev() {
            self.withdraw(now, *key);
        }
    }

    /// The tasks with these keys that are known.
    pub fn show_all(&self, keys: impl IntoIterator<Item = TaskKey>) -> Vec<Task> {
        { keys.into_iter() }
            .filter_map(|key| self.tasks.get(&key).cloned())
            .collect()
    }
}
