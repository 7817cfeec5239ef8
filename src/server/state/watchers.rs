//! Who follows which task, and is told when something happens to it.

use crate::core::TaskKey;
use crate::server::http::Waker;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who follows which task.
#[derive(Default)]
pub struct Watchers(Mutex<HashMap<TaskKey, Vec<Arc<Watcher>>>>);

/// A follower's way to be told.
pub struct Watcher {
    waker: Waker,
    /// It was told since it last looked: once is enough.
    is_told: AtomicBool,
}

impl Watchers {
    fn all(&self) -> MutexGuard<'_, HashMap<TaskKey, Vec<Arc<Watcher>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has happened to a task.
    pub fn wake(&self, task: TaskKey) {
        // Woken without the lock: that is a system call for each.
        let watchers = self.all().get(&task).cloned();
        for watcher in watchers.into_iter().flatten() {
            if !watcher.is_told.swap(true, Ordering::AcqRel) {
                watcher.waker.wake();
            }
        }
    }

    /// Adds a follower of a task.
    pub fn add(&self, task: TaskKey, waker: Waker) -> Arc<Watcher> {
        let watcher = Arc::new(Watcher {
            waker,
            is_told: AtomicBool::new(false),
        });
        self.all().entry(task).or_default().push(watcher.clone());
        watcher
    }

    /// Removes a follower of a task.
    pub fn remove(&self, task: TaskKey, watcher: &Arc<Watcher>) {
        let mut all = self.all();
        if let Some(watchers) = all.get_mut(&task) {
            watchers.retain(|other| !Arc::ptr_eq(other, watcher));
            if watchers.is_empty() {
                all.remove(&task);
            }
        }
    }
}

impl Watcher {
    /// The follower looks now: what happens from now on is told again.
    pub fn looks(&self) {
        self.is_told.store(false, Ordering::Release);
    }
}
