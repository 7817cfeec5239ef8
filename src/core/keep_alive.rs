//! `keepAlive` while a task runs: it is stopped when too few machines of its pool are left alone and healthy for a while.
//!
//! What counts is the same as when the task was submitted, see `counting.rs`. A watched task is counted once a second,
//! with a large pool less often. Nothing of this is saved: after a restart the patience begins again, once the machines
//! that were there before had the time to come back.

use super::pace::Stopped;
use super::task::Task;
use super::timers::Timer;
use super::{Core, TaskKey, Time};
use crate::wire::duration::TimeSpan;
use crate::wire::rollout::StopKind;

/// How long there may be too few before the task is stopped.
const PATIENCE: TimeSpan = TimeSpan::from_secs(10);
/// The time between two counts.
const LOOK_EVERY: TimeSpan = TimeSpan::from_secs(1);
/// With a larger pool, in machines, that time is longer in proportion: it is counted under the lock.
const SMALL_POOL: usize = 5_000;

/// The watch over the pool of a task.
#[derive(Debug)]
pub(super) struct Watch {
    /// When it is counted next.
    at: Time,
    /// Since when there have been too few.
    too_few_since: Option<Time>,
}

impl Core {
    /// Begins the watch over the pool of a task, if it says how many machines must stay and can do harm: it has an undo,
    /// or is rolled out.
    pub(super) fn watch_pool(&mut self, now: Time, key: TaskKey) {
        let task = self.task(key);
        let spec = &task.spec;
        let can_harm = spec.detail.undo.is_some() || spec.rollout.is_some();
        if spec.counts.keep_alive.is_none() || !can_harm || task.finished_at.is_some() {
            return;
        }
        self.look_again(key, now.plus(LOOK_EVERY), None);
    }

    fn look_again(&mut self, key: TaskKey, at: Time, too_few_since: Option<Time>) {
        self.timers.set(at, Timer::KeepAlive(key));
        self.pools.insert(key, Watch { at, too_few_since });
    }

    /// Counts the pool of a task, and stops it if there have been too few machines for too long.
    pub(super) fn look_at_pool(&mut self, now: Time, key: TaskKey) {
        let Some(watch) = self.pools.remove(&key) else {
            return;
        };
        let Some(task) = self.tasks.get(&key) else {
            return;
        };
        if task.finished_at.is_some() || task.is_stopped() || task.canceled {
            return;
        }
        let spec = task.spec.clone();
        let Some(keep_alive) = &spec.counts.keep_alive else {
            return;
        };
        if self.is_recounting(now) {
            return self.look_again(key, now.plus(LOOK_EVERY), None);
        }
        // From now on it is known which machines match, also of those that appear.
        let selector = keep_alive.pool.as_ref().unwrap_or(&spec.selector);
        self.match_index.key_of(selector);
        let pool = self.pool_of(keep_alive.keep, self.meant_by(selector));
        let parts = pool.total.div_ceil(SMALL_POOL).max(1) as u64;
        let next = now.plus(TimeSpan::from_millis(LOOK_EVERY.as_millis() * parts));
        if pool.healthy.len() >= pool.must_stay as usize {
            return self.look_again(key, next, None);
        }
        let since = match watch.too_few_since {
            // The server did not run meanwhile: nobody was heard of.
            Some(since) if since >= self.resumed_at => since,
            _ => now,
        };
        if now.millis_since(since) < PATIENCE.as_millis() {
            return self.look_again(key, next, Some(since));
        }
        let msg = format!(
            "keepAlive: {} of {} machines must stay, {} have been left alone and healthy for {PATIENCE} or longer",
            pool.must_stay,
            pool.total,
            pool.healthy.len(),
        );
        let stopped = Stopped::new(StopKind::KeepAlive, now, &msg);
        self.stop_by(now, key, stopped, true);
    }

    /// Whether a timer of a watch is the one that was set last.
    pub(super) fn is_next_look(&self, key: TaskKey, time: Time) -> bool {
        self.pools.get(&key).is_some_and(|watch| watch.at == time)
    }
}

impl Task {
    /// Whether its `keepAlive` has stopped it. For tests.
    #[doc(hidden)]
    pub fn was_stopped_by_keep_alive(&self) -> bool {
        self.stopped()
            .is_some_and(|stopped| stopped.kind == StopKind::KeepAlive)
    }
}
