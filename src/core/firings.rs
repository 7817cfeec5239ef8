//! The tasks that schedules have fired: which of them run, on which machines, which is the last, and what the end of one
//! means. They are known by the id of the schedule, and stay known when it is deleted or made again.
//!
//! To add what the end of a firing does: [`Core::firing_ended`].

use super::invariants::Rule;
use super::schedule::{FiringOf, Firings};
use super::{Core, ExecutionKey, TaskKey, Time};
use crate::wire::schedule::{Overlap, ScheduleState};
use crate::wire::task::{ExecutionState, TaskState};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The most ended firings that are forgotten in one call.
const MAX_FORGOTTEN: usize = 20;

impl Core {
    /// A task was added: if a schedule has fired it, it is the last one of it.
    pub(super) fn index_firing(&mut self, key: TaskKey) {
        let task = self.task(key);
        let Some(of) = task.spec.scheduled.clone() else {
            return;
        };
        let is_unfinished = task.finished_at.is_none();
        let firings = self
            .schedules
            .firings
            .entry(of.schedule.clone())
            .or_default();
        let before = firings.last();
        match is_unfinished {
            true => firings.unfinished.insert(key),
            false => firings.ended.insert(key),
        };
        if let Some(before) = before.filter(|before| *before != key) {
            self.set_last(before, false);
        }
        self.refresh_last(&of.schedule);
    }

    /// A task is forgotten.
    pub(super) fn forget_firing(&mut self, key: TaskKey, of: &FiringOf) {
        let Some(firings) = self.schedules.firings.get_mut(&of.schedule) else {
            return;
        };
        firings.unfinished.remove(&key);
        firings.ended.remove(&key);
        if firings.last().is_none() {
            self.schedules.firings.remove(&of.schedule);
        }
        self.refresh_last(&of.schedule);
    }

    /// The last firing of a schedule is kept for as long as there is the schedule.
    pub(super) fn refresh_last(&mut self, id: &str) {
        let last = self.schedules.firings.get(id).and_then(Firings::last);
        if let Some(last) = last {
            let is_kept = self.schedules.ids.contains_key(id);
            self.set_last(last, is_kept && self.keeps(Rule::LastFiringIsKept));
        }
    }

    fn set_last(&mut self, key: TaskKey, is_last: bool) {
        if self.task(key).is_last_firing == is_last {
            return;
        }
        let before = self.forgotten_at(key);
        super::data_mut(&mut self.tasks, key).is_last_firing = is_last;
        self.move_forgetting(key, before);
    }

    /// The task of a firing has ended: its schedule notes how, older ones may be forgotten, the next may begin.
    pub(super) fn firing_ended(&mut self, now: Time, key: TaskKey) {
        let Some(of) = self.task(key).spec.scheduled.clone() else {
            return;
        };
        if let Some(firings) = self.schedules.firings.get_mut(&of.schedule) {
            firings.unfinished.remove(&key);
            firings.ended.insert(key);
        }
        self.note_end_of_firing(now, key);
        let Some(schedule) = self.schedules.ids.get(&of.schedule).copied() else {
            return;
        };
        let keep = self.schedules.of(schedule).plan.keep();
        let Some(firings) = self.schedules.firings.get(&of.schedule) else {
            return;
        };
        let surplus = firings.ended.len().saturating_sub(keep);
        let may_go = |old: &TaskKey| *old != key && !self.task(*old).is_kept();
        let old: Vec<TaskKey> = { firings.ended.iter().copied() }
            .filter(may_go)
            .take(surplus.min(MAX_FORGOTTEN))
            .collect();
        old.into_iter().for_each(|old| self.forget_task(old));
    }

    pub(super) fn note_end_of_firing(&mut self, now: Time, key: TaskKey) {
        let task = self.task(key);
        let Some(of) = task.spec.scheduled.clone() else {
            return;
        };
        let (id, state, counts) = (task.id.clone(), task.state(), task.counts);
        let failed = counts.failed + counts.timed_out + counts.lost + counts.expired > 0
            || state == TaskState::Expired;
        let Some(schedule) = self.schedules.ids.get(&of.schedule).copied() else {
            return;
        };
        let wall = self.wall(now);
        { self.schedules.of_mut(schedule) }.note_end(&id, state, failed);
        self.list_due(schedule, wall);
    }

    /// Counts an unfinished execution of a firing at its machine.
    pub(super) fn add_busy(&mut self, key: ExecutionKey) {
        if let Some(place) = self.busy_place(key) {
            *self.schedules.busy.entry(place).or_default() += 1;
        }
    }

    /// An execution that was counted has ended.
    pub(super) fn remove_busy(&mut self, key: ExecutionKey) {
        let Some(place) = self.busy_place(key) else {
            return;
        };
        if let Some(count) = self.schedules.busy.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.schedules.busy.remove(&place);
            }
        }
    }

    fn busy_place(&self, key: ExecutionKey) -> Option<(Arc<str>, Arc<str>)> {
        let task = self.task(key.task);
        let of = task.spec.scheduled.as_ref()?;
        let target = { task.executions.get(key.n as usize) }?.target.as_ref()?;
        (!task.is_any()).then(|| (of.schedule.clone(), target.instance.clone()))
    }

    /// Leaves out an execution whose machine still runs an earlier firing, if its schedule said so when it fired. The
    /// schedule itself may have been deleted since.
    pub(super) fn skip_if_busy(&mut self, now: Time, key: ExecutionKey) -> bool {
        let task = self.task(key.task);
        let skips = { task.spec.scheduled.as_ref() }.is_some_and(|of| of.overlap == Overlap::Skip);
        if !skips || !self.keeps(Rule::FiringsDoNotOverlap) {
            return false;
        }
        let place = self.busy_place(key);
        let others = place.and_then(|place| self.schedules.busy.get(&place));
        // It is one of them itself.
        let is_busy = others.is_some_and(|count| *count > 1);
        let is_waiting = matches!(
            self.execution(key).state,
            ExecutionState::Held | ExecutionState::Queued
        );
        is_busy
            && is_waiting
            && self.end_attempt(
                now,
                key,
                ExecutionState::Skipped,
                "its machine has not ended the firing before",
            )
    }

    /// The same for all executions of a new task.
    pub(super) fn skip_busy_machines(&mut self, now: Time, key: TaskKey) {
        if self.task(key).spec.scheduled.is_none() || self.task(key).is_any() {
            return;
        }
        for n in 0..self.task(key).executions.len() as u32 {
            self.skip_if_busy(now, ExecutionKey { task: key, n });
        }
    }

    /// What the schedules know of each other and of the tasks is right.
    pub(super) fn check_schedules(&self) -> Result<(), String> {
        let schedules = &self.schedules;
        let mut firings: BTreeMap<Arc<str>, Firings> = BTreeMap::new();
        let mut busy: HashMap<(Arc<str>, Arc<str>), u32> = HashMap::new();
        for (key, task) in &self.tasks {
            let Some(of) = &task.spec.scheduled else {
                continue;
            };
            let entry = firings.entry(of.schedule.clone()).or_default();
            match task.finished_at {
                None => entry.unfinished.insert(*key),
                Some(_) => entry.ended.insert(*key),
            };
            let unfinished = task.executions.iter().filter(|e| !e.state.is_terminal());
            for target in unfinished
                .filter_map(|e| e.target.as_ref())
                .filter(|_| !task.is_any())
            {
                let place = (of.schedule.clone(), target.instance.clone());
                *busy.entry(place).or_default() += 1;
            }
        }
        if firings != schedules.firings {
            return Err(format!(
                "firings {:?}, recounted {firings:?}",
                schedules.firings
            ));
        }
        if busy != schedules.busy {
            return Err(format!("busy {:?}, recounted {busy:?}", schedules.busy));
        }
        for (key, task) in &self.tasks {
            let of = task.spec.scheduled.as_ref();
            let is_last = of.is_some_and(|of| {
                let last = firings.get(&of.schedule).and_then(Firings::last);
                last == Some(*key) && schedules.ids.contains_key(&of.schedule)
            });
            if is_last != task.is_last_firing && self.keeps(Rule::LastFiringIsKept) {
                return Err(format!(
                    "{key:?}: is the last firing of its schedule {is_last}"
                ));
            }
        }
        let mut listed = 0;
        for (key, schedule) in &schedules.all {
            let progress = &schedule.progress;
            if schedules.ids.get(&progress.id) != Some(key) || schedules.next_key <= key.0 {
                return Err(format!("{key:?}: its id does not lead to it"));
            }
            let is_listed = schedule
                .due
                .is_some_and(|due| schedules.due.contains(&(due, *key)));
            if is_listed != schedule.due.is_some() {
                return Err(format!("{key:?}: would not be looked at"));
            }
            listed += usize::from(is_listed);
            let is_active = schedule.state() == ScheduleState::Active;
            if is_active && !is_listed {
                return Err(format!("{key:?}: is active and would never fire"));
            }
            if schedule.next.is_some_and(|next| next <= progress.position) {
                return Err(format!("{key:?}: its next time is not later than its last"));
            }
            let times = progress.history.iter().map(|past| (past.at, past.by_hand));
            if !times.is_sorted_by(|one, other| one < other) {
                return Err(format!("{key:?}: its past is not in order"));
            }
        }
        if listed != schedules.due.len() || schedules.ids.len() != schedules.all.len() {
            return Err("schedules that are not there would be looked at".into());
        }
        Ok(())
    }
}
