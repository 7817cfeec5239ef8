//! The schedules: making and changing them, firing what is due, what their tasks mean for each other.
//!
//! A firing is identified by the number of its schedule and the time it was due. The task is made in the change that
//! moves the schedule's position beyond that time, and both are saved in one commit: so there is one task for each at most,
//! whatever crashes or whichever way the clock is set. The clock's thread fires a bounded number at a time.
//!
//! Schedules go by the wall clock, which may be set; everything else in the core goes by a clock that never goes back.
//! To add what a firing does: [`Core::fire_task`]; what its end means: [`Core::firing_ended`].

use super::counting::mixed;
use super::invariants::Rule;
use super::schedule::{
    FiringOf, Firings, PastFiring, Plan, Progress, RETRY_PAUSE, Schedule, Step, Waiting,
};
use super::selector::Selector;
use super::spec::MAX_ID_BYTES;
use super::task::rfc3339;
use super::tick::PAUSED;
use super::user::Selection;
use super::{Core, ExecutionKey, Notice, Refusal, ScheduleKey, TaskKey, Time};
use crate::wire::schedule::{Outcome, Overlap, PostedSchedule, Schedule as Answer, ScheduleState};
use crate::wire::task::{ExecutionState, Mode};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What is done for schedules in one call, in firings: it runs under the lock, and a firing takes some 20 µs.
const MAX_COST: usize = 50;
/// A firing costs one more for so many machines.
const MACHINES_PER_COST: usize = 40;
/// The most ended firings that are forgotten in one call.
const MAX_FORGOTTEN: usize = 20;
/// The most firings that are canceled in one call to be replaced.
const MAX_REPLACED: usize = 20;
/// How long before a firing its machines are looked for, in milliseconds: a few looks of the clock's thread.
const SOON_MS: u64 = 500;
/// The variable in which a command finds the time it was due.
pub(super) const SCHEDULED_FOR: &str = "SIDEBIKE_SCHEDULED_FOR";
/// The firings of the past that are shown of each schedule in a list.
const LISTED_HISTORY: usize = 5;

/// All schedules, and the tasks that they have fired.
#[derive(Debug, Default)]
pub(super) struct Schedules {
    all: BTreeMap<ScheduleKey, Schedule>,
    ids: BTreeMap<Arc<str>, ScheduleKey>,
    /// When each is looked at next.
    due: BTreeSet<(Time, ScheduleKey)>,
    /// The number of the next schedule. None is used twice, even after a restart.
    pub(super) next_key: u64,
    /// The tasks that are kept, by the id of their schedule. Those of deleted schedules, too.
    firings: BTreeMap<Arc<str>, Firings>,
    /// How many executions of firings for `all` each instance has not ended, by the id of the schedule.
    busy: HashMap<(Arc<str>, Arc<str>), u32>,
    /// The wall clock is so many milliseconds ahead of the clock of the core.
    wall_ahead: i64,
    /// The wall clock at the last look.
    looked_at: Time,
    /// Since when the wall clock has gone on without a pause or a leap.
    awake_since: Time,
    /// How many firings had each outcome, in the order of [`Outcome::ALL`].
    outcomes: [u64; Outcome::ALL.len()],
}

/// What became of an attempt to fire.
enum Fire {
    Fired(TaskKey),
    /// It waits for the end of the one before.
    Busy(String),
    Skipped(String),
    Refused(Refusal),
}

/// A firing, for the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiredTask {
    /// The schedule.
    pub schedule: Arc<str>,
    /// The token that made the schedule.
    pub made_by: Option<Arc<str>>,
    /// The task.
    pub task: TaskKey,
}

/// What a new schedule is made of, beside its plan.
#[derive(Debug, Clone)]
pub struct NewSchedule<'a> {
    /// Its id.
    pub id: &'a str,
    /// The token that makes it.
    pub made_by: Option<&'a str>,
    /// A text that was never used before.
    pub seed: &'a str,
}

impl Core {
    /// Says what the wall clock shows. The core's own clock does not notice when that is set.
    pub fn set_wall_clock(&mut self, now: Time, wall: Time) {
        self.schedules.wall_ahead = wall.0 as i64 - now.0 as i64;
    }

    /// The wall clock.
    pub(super) fn wall(&self, now: Time) -> Time {
        Time(
            (now.0 as i64)
                .saturating_add(self.schedules.wall_ahead)
                .max(0) as u64,
        )
    }

    /// The time at which the core's clock has come when the wall clock shows this.
    fn when_wall_shows(&self, wall: Time) -> Time {
        Time(
            (wall.0 as i64)
                .saturating_sub(self.schedules.wall_ahead)
                .max(0) as u64,
        )
    }

    /// How many schedules there are in each state.
    pub fn schedules_by_state(&self) -> Vec<(ScheduleState, usize)> {
        let of = |state| {
            let all = self.schedules.all.values();
            all.filter(|schedule| schedule.state() == state).count()
        };
        { ScheduleState::ALL.into_iter() }
            .map(|state| (state, of(state)))
            .collect()
    }

    /// How many firings had each outcome.
    pub fn firings_by_outcome(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.into_iter().zip(self.schedules.outcomes)
    }

    /// How many schedules are due at this moment, and wait for the next look or for another try.
    pub fn schedules_due(&self, now: Time) -> usize {
        let wall = self.wall(now);
        let all = self.schedules.all.values();
        all.filter(|schedule| {
            schedule.due.is_some_and(|due| due <= wall) || schedule.progress.waiting.is_some()
        })
        .count()
    }

    /// When the slots of a schedule are counted from, if it is there and has these.
    pub fn first_slot(&self, id: &str, posted: &PostedSchedule) -> Option<Time> {
        let schedule = self.schedules.by_id(id)?;
        let old = &schedule.plan.posted;
        let is_same = (old.every, &old.from) == (posted.every, &posted.from);
        is_same.then_some(schedule.progress.first)
    }

    /// Makes a schedule, or changes it. What it was is kept: its position, its past, its firings. The same again
    /// changes nothing.
    pub fn put_schedule(
        &mut self,
        now: Time,
        new: &NewSchedule<'_>,
        plan: Plan,
    ) -> Result<Answer, Refusal> {
        let wall = self.wall(now);
        let known = self.schedules.ids.get(new.id).copied();
        if let Some(key) = known
            && self.schedules.of(key).plan.posted == plan.posted
        {
            return self.schedule(now, new.id);
        }
        { self.check_room_for_plans([(new.id, &plan)], &[]) }.map_err(Refusal::Full)?;
        let paused = plan.posted.paused;
        let key = match known {
            Some(key) => {
                let schedule = self.schedules.of_mut(key);
                // It would run another task than the one that was due.
                schedule.drop_waiting("the schedule was changed before it could start");
                schedule.plan = plan;
                schedule.progress.first = schedule.plan.first();
                schedule.progress.stopped = None;
                schedule.progress.counted_from = wall;
                schedule.progress.made_by = new.made_by.map(Arc::from);
                schedule.settle(wall);
                key
            }
            None => {
                if self.schedules.all.len() >= self.limits.schedules {
                    return Err(Refusal::Full(format!(
                        "there are {} schedules, the limit (--max-schedules)",
                        self.schedules.all.len()
                    )));
                }
                let key = ScheduleKey(self.schedules.next_key);
                self.schedules.next_key += 1;
                let id: Arc<str> = new.id.into();
                let progress = Progress {
                    id: id.clone(),
                    seed: new.seed.into(),
                    first: plan.first(),
                    made_by: new.made_by.map(Arc::from),
                    created_at: wall,
                    position: wall,
                    fired: 0,
                    paused: None,
                    counted_from: wall,
                    stopped: None,
                    waiting: None,
                    history: Vec::new(),
                };
                self.schedules.ids.insert(id.clone(), key);
                let schedule = Schedule::new(key, plan, progress);
                self.schedules.all.insert(key, schedule);
                self.refresh_last(&id);
                key
            }
        };
        let schedule = self.schedules.of_mut(key);
        match (paused, schedule.progress.paused.is_some()) {
            (Some(true), false) => schedule.pause("made so"),
            (Some(false), true) => schedule.resume(wall),
            _ => {}
        }
        if let Some(changes) = &mut self.changes {
            changes.schedule_text(key);
        }
        self.list_due(key, wall);
        self.schedule(now, new.id)
    }

    /// The most schedules there may be.
    pub fn max_schedules(&self) -> usize {
        self.limits.schedules
    }

    /// Refuses schedules whose tasks are too large, all together. Those in `gone` are about to be deleted.
    pub fn check_room_for_plans<'a>(
        &self,
        plans: impl IntoIterator<Item = (&'a str, &'a Plan)>,
        gone: &[&str],
    ) -> Result<(), String> {
        let mut replaced: BTreeSet<&str> = gone.iter().copied().collect();
        let mut more = 0usize;
        for (id, plan) in plans {
            replaced.insert(id);
            more = more.saturating_add(plan.kept_bytes());
        }
        let kept = self.schedules.all.values();
        let kept = kept.filter(|schedule| !replaced.contains(&*schedule.progress.id));
        let bytes: usize = kept.map(|schedule| schedule.plan.kept_bytes()).sum();
        let limit = self.limits.detail_bytes;
        if bytes.saturating_add(more) > limit {
            return Err(format!(
                "the tasks of all schedules take {bytes} bytes, {more} more would pass the limit of {limit} (--max-details)"
            ));
        }
        Ok(())
    }

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

    /// Deletes a schedule. What it has fired goes on.
    pub fn delete_schedule(&mut self, id: &str) -> Result<(), Refusal> {
        let key = self.known_schedule(id)?;
        self.schedules.unlist(key);
        self.schedules.all.remove(&key);
        self.schedules.ids.remove(id);
        if let Some(changes) = &mut self.changes {
            changes.schedule_text(key);
        }
        self.refresh_last(id);
        self.keep_within_limits();
        Ok(())
    }

    /// Stops firing until it is resumed.
    pub fn pause_schedule(&mut self, now: Time, id: &str, why: &str) -> Result<Answer, Refusal> {
        let (key, wall) = (self.known_schedule(id)?, self.wall(now));
        let schedule = self.schedules.of_mut(key);
        if schedule.progress.paused.is_none() {
            schedule.pause(why);
            self.list_due(key, wall);
        }
        self.schedule(now, id)
    }

    /// Fires again, from now on.
    pub fn resume_schedule(&mut self, now: Time, id: &str) -> Result<Answer, Refusal> {
        let (key, wall) = (self.known_schedule(id)?, self.wall(now));
        self.schedules.of_mut(key).resume(wall);
        self.list_due(key, wall);
        self.schedule(now, id)
    }

    /// Fires a schedule now; its position stays. What it does while the firing before runs is obeyed.
    pub fn run_schedule(&mut self, now: Time, id: &str) -> Result<Answer, Refusal> {
        let (key, wall) = (self.known_schedule(id)?, self.wall(now));
        let schedule = self.schedules.of(key);
        if let Some(why) = &schedule.progress.stopped {
            return Err(Refusal::Conflict(format!("schedule {id}: {why}")));
        }
        if schedule.progress.waiting.is_some() {
            return Err(Refusal::Conflict(format!(
                "a firing of schedule {id} waits already"
            )));
        }
        let last = { schedule.progress.history.iter().rev() }.find(|past| past.by_hand);
        // Two within a millisecond are two all the same.
        let at = last.map_or(wall, |last| wall.max(Time(last.at.0 + 1)));
        match self.fire_task(now, key, at, true) {
            Fire::Fired(_) => {}
            Fire::Busy(why) => self.wait_for(now, key, at, true, None, &why),
            Fire::Skipped(why) => return Err(Refusal::Conflict(why)),
            Fire::Refused(refusal) => return Err(refusal),
        }
        self.list_due(key, wall);
        self.schedule(now, id)
    }

    /// A schedule.
    pub fn schedule(&self, now: Time, id: &str) -> Result<Answer, Refusal> {
        let schedule = self.schedules.of(self.known_schedule(id)?);
        Ok(schedule.answer(self.wall(now), usize::MAX, ""))
    }

    /// Up to `limit` schedules in the order of their ids, after one of them. Each with a part of its past.
    pub fn list_schedules(&self, now: Time, after: Option<&str>, limit: usize) -> Vec<Answer> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        let (ids, wall) = (&self.schedules.ids, self.wall(now));
        ids.range::<str, _>(range)
            .take(limit)
            .map(|(_, key)| {
                let schedule = self.schedules.of(*key);
                schedule.answer(wall, LISTED_HISTORY, "")
            })
            .collect()
    }

    fn known_schedule(&self, id: &str) -> Result<ScheduleKey, Refusal> {
        let known = self.schedules.ids.get(id).copied();
        known.ok_or_else(|| Refusal::Unknown(format!("there is no schedule {id:?}")))
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
            let all = self.schedules.all.iter_mut();
            let late = all.filter_map(|(key, schedule)| schedule.retry_by(wall).then_some(*key));
            let late: Vec<ScheduleKey> = late.collect();
            late.into_iter().for_each(|key| self.list_due(key, wall));
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
                self.record_firing(key, missed);
                self.schedules.of_mut(key).settle(last);
            }
            Step::GiveUp => {
                let schedule = self.schedules.of_mut(key);
                if let Some(waiting) = schedule.progress.waiting.take() {
                    let why = format!("not started before its startDeadline: {}", waiting.reason);
                    let mut missed = PastFiring::new(waiting.at, Outcome::Missed, &why);
                    missed.by_hand = waiting.by_hand;
                    self.record_firing(key, missed);
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
        let schedule = self.schedules.of_mut(key);
        let after = (
            schedule.progress.position,
            schedule.progress.waiting.clone(),
        );
        if before == after && schedule.due.is_some_and(|due| due <= wall) {
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
                self.record_firing(key, PastFiring::new(at, Outcome::Skipped, &why));
            }
            Fire::Busy(why) => {
                let schedule = self.schedules.of_mut(key);
                let replaces = schedule.plan.overlap() == Overlap::Replace;
                match schedule.progress.waiting.take() {
                    Some(waiting) if !replaces => {
                        schedule.progress.waiting = Some(waiting);
                        let why = "another firing waits already";
                        self.record_firing(key, PastFiring::new(at, Outcome::Skipped, why));
                    }
                    older => {
                        if let Some(older) = older {
                            let why = "a later firing took its place";
                            let mut past = PastFiring::new(older.at, Outcome::Skipped, why);
                            past.by_hand = older.by_hand;
                            self.record_firing(key, past);
                        }
                        self.wait_for(now, key, at, false, None, &why);
                    }
                }
            }
            Fire::Refused(refusal) => {
                let (why, retry_at) = (refusal.to_string(), self.wall(now).plus(RETRY_PAUSE));
                self.record_firing(key, PastFiring::new(at, Outcome::Refused, &why));
                self.wait_for(now, key, at, false, Some(retry_at), &why);
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
                self.record_firing(key, past);
                None
            }
            Fire::Busy(why) => Some(again(None, &why)),
            Fire::Refused(refusal) => {
                let why = refusal.to_string();
                if waiting.retry_at.is_none() {
                    let mut past = PastFiring::new(waiting.at, Outcome::Refused, &why);
                    past.by_hand = waiting.by_hand;
                    self.record_firing(key, past);
                }
                Some(again(Some(wall.plus(RETRY_PAUSE)), &why))
            }
        };
        let schedule = self.schedules.of_mut(key);
        schedule.progress.waiting = left;
        schedule.find_next();
    }

    /// Lets a firing wait: for another try, or for the end of the one before.
    fn wait_for(
        &mut self,
        _now: Time,
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
    fn record_firing(&mut self, key: ScheduleKey, past: PastFiring) {
        self.schedules.outcomes[past.outcome as usize] += 1;
        self.schedules.of_mut(key).record(past);
        self.schedule_changed(key);
    }

    fn schedule_changed(&mut self, key: ScheduleKey) {
        if let Some(changes) = &mut self.changes {
            changes.schedule(key);
        }
    }

    /// Whether a task of a schedule has not ended.
    fn has_unfinished_firing(&self, id: &str) -> bool {
        let firings = self.schedules.firings.get(id);
        firings.is_some_and(|firings| !firings.unfinished.is_empty())
    }

    /// Makes the task of a firing, if the one before allows it.
    fn fire_task(&mut self, now: Time, key: ScheduleKey, at: Time, by_hand: bool) -> Fire {
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
            Err(refusal) => Fire::Refused(refusal),
        }
    }

    fn note_fired(&mut self, now: Time, key: ScheduleKey, at: Time, by_hand: bool, task: TaskKey) {
        let mut past = PastFiring::new(at, Outcome::Fired, "");
        past.by_hand = by_hand;
        past.task = self.tasks.get(&task).map(|task| task.id.clone());
        self.record_firing(key, past);
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
    fn refresh_last(&mut self, id: &str) {
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

    fn note_end_of_firing(&mut self, now: Time, key: TaskKey) {
        let task = self.task(key);
        let Some(of) = task.spec.scheduled.clone() else {
            return;
        };
        let (id, state, counts) = (task.id.clone(), task.state(), task.counts);
        let failed = counts.failed + counts.timed_out + counts.lost + counts.expired > 0
            || state == crate::wire::task::TaskState::Expired;
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

    /// Lists when a schedule is looked at next, and has it saved.
    fn list_due(&mut self, key: ScheduleKey, wall: Time) {
        let awake_since = self.schedules.awake_since;
        let schedule = self.schedules.of(key);
        let is_busy = self.has_unfinished_firing(&schedule.progress.id);
        let due = match schedule.step(wall, awake_since, is_busy) {
            Step::Wait(due) => due,
            // After those that are due already.
            _ => Some(wall),
        };
        self.schedules.unlist(key);
        if let Some(due) = due {
            self.schedules.due.insert((due, key));
        }
        self.schedules.of_mut(key).due = due;
        self.schedule_changed(key);
    }

    /// Adds a schedule as it was saved.
    pub(super) fn restore_schedule(
        &mut self,
        now: Time,
        key: ScheduleKey,
        plan: Plan,
        progress: Progress,
    ) -> Result<(), String> {
        let id = progress.id.clone();
        self.schedules.next_key = self.schedules.next_key.max(key.0 + 1);
        if self.schedules.ids.insert(id.clone(), key).is_some() {
            return Err(format!("two schedules have the id {id}"));
        }
        let schedule = Schedule::new(key, plan, progress);
        self.schedules.all.insert(key, schedule);
        self.list_due(key, self.wall(now));
        self.refresh_last(&id);
        Ok(())
    }

    /// What is saved of a schedule.
    pub(super) fn saved_schedule(
        &self,
        key: ScheduleKey,
    ) -> Option<(&Arc<PostedSchedule>, &Progress)> {
        let schedule = self.schedules.all.get(&key)?;
        Some((&schedule.plan.posted, &schedule.progress))
    }

    /// Every schedule as it is saved; for tests.
    #[doc(hidden)]
    pub fn schedule_progress(&self) -> impl Iterator<Item = (ScheduleKey, &Progress)> {
        { self.schedules.all.iter() }.map(|(key, schedule)| (*key, &schedule.progress))
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

impl Schedules {
    /// None yet.
    pub fn new(now: Time) -> Self {
        Schedules {
            next_key: 1,
            looked_at: now,
            awake_since: now,
            ..Schedules::default()
        }
    }

    fn of(&self, key: ScheduleKey) -> &Schedule {
        { self.all.get(&key) }.expect("a schedule is removed together with every reference to it")
    }

    fn of_mut(&mut self, key: ScheduleKey) -> &mut Schedule {
        { self.all.get_mut(&key) }
            .expect("a schedule is removed together with every reference to it")
    }

    fn by_id(&self, id: &str) -> Option<&Schedule> {
        self.all.get(self.ids.get(id)?)
    }

    fn unlist(&mut self, key: ScheduleKey) {
        let due = self
            .all
            .get_mut(&key)
            .and_then(|schedule| schedule.due.take());
        if let Some(due) = due {
            self.due.remove(&(due, key));
        }
    }
}
