//! The clock of the schedules: fires what is due, a bounded number at a time.
//!
//! A firing is identified by the number of its schedule and the time it was due. The task is made in the change that
//! moves the schedule's position beyond that time, and both are saved in one commit: so there is one task for each at most,
//! whatever crashes or whichever way the clock is set. To add what a firing does: [`Core::fire_task`].

use super::counting::mixed;
use super::invariants::Rule;
use super::outbox::Missed;
use super::schedule::{FiringOf, PastFiring, RETRY_PAUSE, Step, Waiting};
use super::schedules::FiredTask;
use super::selector::Selector;
use super::spec::MAX_ID_BYTES;
use super::task::rfc3339;
use super::tick::PAUSED;
use super::user::Selection;
use super::{Core, Notice, Refusal, ScheduleKey, TaskKey, Time};
use crate::wire::schedule::{Outcome, Overlap};
use crate::wire::task::Mode;
use std::sync::Arc;

/// What is done for schedules in one call, in firings: it runs under the lock, and a firing takes some 20 µs.
const MAX_COST: usize = 50;
/// A firing costs one more for so many machines.
const MACHINES_PER_COST: usize = 40;
/// The most firings that are canceled in one call to be replaced.
const MAX_REPLACED: usize = 20;
/// How long before a firing its machines are looked for, in milliseconds: a few looks of the clock's thread.
const SOON_MS: u64 = 500;
/// The variable in which a command finds the time it was due.
pub(super) const SCHEDULED_FOR: &str = "SIDEBIKE_SCHEDULED_FOR";

/// What became of an attempt to fire.
pub(super) enum Fire {
    Fired(TaskKey),
    /// It waits for the end of the one before.
    Busy(String),
    Skipped(String),
    Refused(Refusal),
}

impl Core {
    /// The selectors of schedules that are about to fire and that are not known: matching one with all machines may take
    /// long, and is not for a call that holds the lock.
    pub fn selectors_of_due(&self, now: Time) -> Vec<(ScheduleKey, Selector)> {
        let soon = Time(self.wall(now).0.saturating_add(SOON_MS));
        let due = self
            .schedules
            .due
            .iter()
            .take_while(|(due, _)| *due <= soon);
        let due = due.take(MAX_COST).filter_map(|(_, key)| {
            let selector = &self.schedules.of(*key).plan.spec.selector;
            let is_known = selector.is_matched() || self.match_index.knows(selector.text());
            (!is_known).then(|| (*key, selector.clone()))
        });
        due.collect()
    }

    /// The selector of a schedule, compiled and matched with the machines there are.
    pub fn set_selector_of_schedule(&mut self, key: ScheduleKey, selector: Selector) {
        if let Some(schedule) = self.schedules.all.get_mut(&key)
            && schedule.plan.spec.selector == selector
        {
            schedule.plan.spec.selector = selector;
        }
    }

    /// Fires what is due, a bounded number of firings. Returns when to call again.
    pub(super) fn fire_schedules(&mut self, now: Time) -> Option<Time> {
        let wall = self.wall(now);
        let (last, schedules) = (self.schedules.looked_at, &mut self.schedules);
        if wall < last || wall.millis_since(last) > PAUSED.as_millis() {
            schedules.awake_since = wall;
        }
        schedules.looked_at = wall;
        if wall < last {
            // What was listed by the clock as it was would be looked at hours later.
            let all = self.schedules.all.values_mut();
            all.for_each(|schedule| schedule.retry_by(wall));
            let all: Vec<ScheduleKey> = self.schedules.all.keys().copied().collect();
            all.into_iter().for_each(|key| self.list_due(key, wall));
        }
        let mut cost = 0;
        while cost < MAX_COST
            && let Some((_, key)) = { self.schedules.due.first() }
                .filter(|(due, _)| *due <= wall)
                .copied()
        {
            cost += self.look_at_schedule(now, wall, key);
        }
        let (due, _) = self.schedules.due.first()?;
        Some(self.when_wall_shows(*due))
    }

    /// Does the next thing about a schedule that is due. Returns what it cost.
    fn look_at_schedule(&mut self, now: Time, wall: Time, key: ScheduleKey) -> usize {
        let is_busy = self.has_unfinished_firing(&self.schedules.of(key).progress.id);
        let awake_since = self.schedules.awake_since;
        let schedule = self.schedules.of(key);
        let before = (
            schedule.progress.position,
            schedule.progress.waiting.clone(),
        );
        let mut cost = 1;
        match schedule.step(wall, awake_since, is_busy) {
            Step::Wait(_) => {
                self.list_due(key, wall);
                return cost;
            }
            Step::Miss(first, last, why) => {
                let mut missed = PastFiring::new(first, Outcome::Missed, why);
                missed.through = Some(last).filter(|last| *last > first);
                self.record_firing(now, key, missed);
                self.schedules.of_mut(key).settle(last);
            }
            Step::GiveUp => {
                let schedule = self.schedules.of_mut(key);
                if let Some(waiting) = schedule.progress.waiting.take() {
                    let why = format!("not started before its startDeadline: {}", waiting.reason);
                    let mut missed = PastFiring::new(waiting.at, Outcome::Missed, &why);
                    missed.by_hand = waiting.by_hand;
                    self.record_firing(now, key, missed);
                }
                self.schedules.of_mut(key).find_next();
            }
            Step::Fire(at) => {
                let fired = self.fire_task(now, key, at, false);
                cost += self.cost_of(&fired);
                self.settle_fired(now, key, at, fired);
            }
            Step::Retry => {
                let waiting = self.schedules.of_mut(key).progress.waiting.take();
                if let Some(waiting) = waiting {
                    let fired = self.fire_task(now, key, waiting.at, waiting.by_hand);
                    cost += self.cost_of(&fired);
                    self.settle_retried(now, key, &waiting, fired);
                }
            }
        }
        self.list_due(key, wall);
        let settles = self.keeps(Rule::FiringSettlesItsTime);
        let schedule = self.schedules.of_mut(key);
        let after = (
            schedule.progress.position,
            schedule.progress.waiting.clone(),
        );
        if settles && before == after && schedule.due.is_some_and(|due| due <= wall) {
            // It would be looked at for ever.
            schedule.progress.stopped = Some("its next firing cannot be told; replace it".into());
            schedule.find_next();
            self.list_due(key, wall);
        }
        cost
    }

    fn cost_of(&self, fired: &Fire) -> usize {
        match fired {
            Fire::Fired(task) => self.tasks.get(task).map_or(0, |task| task.executions.len()),
            _ => 0,
        }
        .div_euclid(MACHINES_PER_COST)
    }

    /// What follows from the first attempt to fire what is due: its time is settled.
    fn settle_fired(&mut self, now: Time, key: ScheduleKey, at: Time, fired: Fire) {
        match fired {
            Fire::Fired(_) => {}
            Fire::Skipped(why) => {
                self.record_firing(now, key, PastFiring::new(at, Outcome::Skipped, &why));
            }
            Fire::Busy(why) => {
                let schedule = self.schedules.of_mut(key);
                let replaces = schedule.plan.overlap() == Overlap::Replace;
                match schedule.progress.waiting.take() {
                    Some(waiting) if !replaces => {
                        schedule.progress.waiting = Some(waiting);
                        let why = "another firing waits already";
                        self.record_firing(now, key, PastFiring::new(at, Outcome::Skipped, why));
                    }
                    older => {
                        if let Some(older) = older {
                            let why = "a later firing took its place";
                            let mut past = PastFiring::new(older.at, Outcome::Skipped, why);
                            past.by_hand = older.by_hand;
                            self.record_firing(now, key, past);
                        }
                        self.wait_for(key, at, false, None, &why);
                    }
                }
            }
            Fire::Refused(refusal) => {
                let (why, retry_at) = (refusal.to_string(), self.wall(now).plus(RETRY_PAUSE));
                self.record_firing(now, key, PastFiring::new(at, Outcome::Refused, &why));
                self.wait_for(key, at, false, Some(retry_at), &why);
            }
        }
        if self.keeps(Rule::FiringSettlesItsTime) {
            self.schedules.of_mut(key).settle(at);
        }
    }

    /// What follows from another attempt to fire what waits.
    fn settle_retried(&mut self, now: Time, key: ScheduleKey, waiting: &Waiting, fired: Fire) {
        let again = |retry_at, reason: &str| Waiting {
            retry_at,
            reason: reason.into(),
            ..waiting.clone()
        };
        let wall = self.wall(now);
        let left = match fired {
            Fire::Fired(_) => None,
            Fire::Skipped(why) => {
                let mut past = PastFiring::new(waiting.at, Outcome::Skipped, &why);
                past.by_hand = waiting.by_hand;
                self.record_firing(now, key, past);
                None
            }
            Fire::Busy(why) => Some(again(None, &why)),
            Fire::Refused(refusal) => {
                let why = refusal.to_string();
                if waiting.retry_at.is_none() {
                    let mut past = PastFiring::new(waiting.at, Outcome::Refused, &why);
                    past.by_hand = waiting.by_hand;
                    self.record_firing(now, key, past);
                }
                Some(again(Some(wall.plus(RETRY_PAUSE)), &why))
            }
        };
        let schedule = self.schedules.of_mut(key);
        schedule.progress.waiting = left;
        schedule.find_next();
    }

    /// Lets a firing wait: for another try, or for the end of the one before.
    pub(super) fn wait_for(
        &mut self,
        key: ScheduleKey,
        at: Time,
        by_hand: bool,
        retry_at: Option<Time>,
        why: &str,
    ) {
        let schedule = self.schedules.of_mut(key);
        schedule.progress.waiting = Some(Waiting {
            at,
            deadline: schedule.deadline(at, by_hand),
            retry_at,
            reason: why.into(),
            by_hand,
        });
    }

    /// Writes down and counts what became of a firing.
    fn record_firing(&mut self, now: Time, key: ScheduleKey, past: PastFiring) {
        self.schedules.outcomes[past.outcome as usize] += 1;
        if past.outcome == Outcome::Missed {
            let schedule = self.schedules.of(key);
            let (id, spec) = (schedule.progress.id.clone(), schedule.plan.spec.clone());
            let missed = Missed {
                schedule: &id,
                incarnation: key.0,
                nominal: past.at,
                reason: &past.reason,
            };
            self.notify_missed(now, &spec, &missed);
        }
        self.schedules.of_mut(key).record(past);
        self.schedule_changed(key);
    }

    /// Whether a task of a schedule has not ended.
    pub(super) fn has_unfinished_firing(&self, id: &str) -> bool {
        let firings = self.schedules.firings.get(id);
        firings.is_some_and(|firings| !firings.unfinished.is_empty())
    }

    /// Makes the task of a firing, if the one before allows it.
    pub(super) fn fire_task(
        &mut self,
        now: Time,
        key: ScheduleKey,
        at: Time,
        by_hand: bool,
    ) -> Fire {
        let schedule = self.schedules.of(key);
        let (plan, id) = (&schedule.plan, schedule.progress.id.clone());
        let overlap = plan.overlap();
        // For each machine of a task for `all` it is decided when its execution is made.
        let is_of_machines = overlap == Overlap::Skip && plan.spec.mode == Mode::All;
        if !is_of_machines
            && overlap != Overlap::Allow
            && let Some(why) = self.firing_before(&id)
        {
            match overlap {
                Overlap::Skip | Overlap::Allow => return Fire::Skipped(why),
                Overlap::QueueOne => return Fire::Busy(why),
                Overlap::Replace => {
                    self.cancel_firings(now, &id);
                    if let Some(why) = self.firing_before(&id) {
                        return Fire::Busy(why);
                    }
                }
            }
        }
        let schedule = self.schedules.of(key);
        let number = key.0.to_string();
        let due = rfc3339(at);
        let by = if by_hand { "hand" } else { "time" };
        let hash = mixed(&[&schedule.progress.seed, &number, &due, by]);
        let fresh_id = format!("{:012x}-{:010x}", now.0, hash >> 24);
        let task_id = schedule.task_id(at, by_hand);
        let mut spec = schedule.plan.spec.clone();
        let is_free = task_id.len() <= MAX_ID_BYTES
            && self.check_unused(&task_id, &task_id).is_ok()
            && self.keeps(Rule::FiringSettlesItsTime);
        spec.id = is_free.then(|| task_id.as_str().into());
        spec.scheduled = Some(Arc::new(FiringOf {
            schedule: id.clone(),
            incarnation: key.0,
            at,
            by_hand,
            overlap,
        }));
        spec.add_variable(SCHEDULED_FOR, due);
        match self.submit(now, &fresh_id, spec) {
            Ok(task) => {
                self.note_fired(now, key, at, by_hand, task);
                // The firing before may be forgotten now.
                self.keep_within_limits();
                Fire::Fired(task)
            }
            Err(Refusal::Joins(holder)) => {
                let id = self.tasks.get(&holder).map_or("", |task| &*task.id);
                Fire::Skipped(format!("it joins task {id}, which has its uniqueKey"))
            }
            Err(refusal) => {
                let unique = { self.schedules.of(key).plan.spec.unique.as_deref() };
                Fire::Refused(self.naming(None, unique, refusal))
            }
        }
    }

    fn note_fired(&mut self, now: Time, key: ScheduleKey, at: Time, by_hand: bool, task: TaskKey) {
        let mut past = PastFiring::new(at, Outcome::Fired, "");
        past.by_hand = by_hand;
        past.task = self.tasks.get(&task).map(|task| task.id.clone());
        self.record_firing(now, key, past);
        let schedule = self.schedules.of_mut(key);
        schedule.progress.fired += u64::from(!by_hand);
        // Compiled for this firing; it is known now, or will be compiled again.
        { schedule.plan.spec.selectors_mut() }.for_each(Selector::drop_compiled);
        let notice = FiredTask {
            schedule: schedule.progress.id.clone(),
            made_by: schedule.progress.made_by.clone(),
            task,
        };
        self.notices.push(Notice::Fired(notice));
        // All of its machines may be busy.
        if self
            .tasks
            .get(&task)
            .is_some_and(|task| task.finished_at.is_some())
        {
            self.note_end_of_firing(now, task);
        }
    }

    /// Why the next firing has to wait, or is left out.
    fn firing_before(&self, id: &str) -> Option<String> {
        let running = self.schedules.firings.get(id)?.unfinished.last()?;
        Some(format!(
            "the firing before has not ended, task {}",
            self.task(*running).id
        ))
    }

    fn cancel_firings(&mut self, now: Time, id: &str) {
        let firings = self.schedules.firings.get(id);
        let unfinished = firings.into_iter().flat_map(|firings| &firings.unfinished);
        let to_cancel: Vec<TaskKey> = unfinished
            .copied()
            .filter(|key| !self.task(*key).canceled)
            .take(MAX_REPLACED)
            .collect();
        for task in to_cancel {
            // It is known and has not ended, so nothing refuses that.
            let _ = self.cancel(now, task, &Selection::All);
        }
    }
}
