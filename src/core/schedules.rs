//! The schedules: making, changing and listing them. `firing.rs` fires what is due, `firings.rs` knows the tasks that were
//! fired, `schedule.rs` is one schedule.
//!
//! Schedules go by the wall clock, which may be set; everything else in the core goes by a clock that never goes back.
//! To add an operation: here; to add a field: `schedule.rs` says how.

use super::children::Child;
use super::firing::Fire;
use super::plan::Plan;
use super::schedule::{Firings, Progress, Schedule, Step};
use super::{Core, Refusal, ScheduleKey, TaskKey, Time};
use crate::wire::schedule::{Outcome, PostedSchedule, Schedule as Answer, ScheduleState};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The firings of the past that are shown of each schedule in a list.
const LISTED_HISTORY: usize = 5;

/// All schedules, and the tasks that they have fired.
#[derive(Debug, Default)]
pub(super) struct Schedules {
    pub(super) all: BTreeMap<ScheduleKey, Schedule>,
    pub(super) ids: BTreeMap<Arc<str>, ScheduleKey>,
    /// When each is looked at next.
    pub(super) due: BTreeSet<(Time, ScheduleKey)>,
    /// The number of the next schedule. None is used twice, even after a restart.
    pub(super) next_key: u64,
    /// The tasks that are kept, by the id of their schedule. Those of deleted schedules, too.
    pub(super) firings: BTreeMap<Arc<str>, Firings>,
    /// How many executions of firings for `all` each instance has not ended, by the id of the schedule.
    pub(super) busy: HashMap<(Arc<str>, Arc<str>), u32>,
    /// The wall clock is so many milliseconds ahead of the clock of the core.
    pub(super) wall_ahead: i64,
    /// The wall clock at the last look.
    pub(super) looked_at: Time,
    /// Since when the wall clock has gone on without a pause or a leap.
    pub(super) awake_since: Time,
    /// How many firings had each outcome, in the order of [`Outcome::ALL`].
    pub(super) outcomes: [u64; Outcome::ALL.len()],
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
    pub(super) fn when_wall_shows(&self, wall: Time) -> Time {
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

    /// Refuses a schedule whose task, or a child of it, names a limit that is not there.
    pub fn check_limits_of(&self, plan: &Plan) -> Result<(), Refusal> {
        let checked = self.check_named_limits(&plan.spec.limits);
        checked.map_err(|why| why.within("task"))?;
        plan.spec.children.iter().try_for_each(|child| {
            let checked = self.check_named_limits(&child.spec.limits);
            checked.map_err(|why| why.within(&format!("task.{}", Child::field(child.on))))
        })
    }

    /// The schedules whose tasks name a limit.
    pub(super) fn schedules_with_limit(&self, name: &str) -> impl Iterator<Item = &str> {
        let all = self.schedules.all.values();
        let named = all.filter(move |schedule| {
            let spec = &schedule.plan.spec;
            let children = spec.children.iter().flat_map(|child| &*child.spec.limits);
            { spec.limits.iter() }
                .chain(children)
                .any(|limit| **limit == *name)
        });
        named.map(|schedule| &*schedule.progress.id)
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
            Fire::Busy(why) => self.wait_for(key, at, true, None, &why),
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

    pub(super) fn known_schedule(&self, id: &str) -> Result<ScheduleKey, Refusal> {
        let known = self.schedules.ids.get(id).copied();
        known.ok_or_else(|| Refusal::Unknown(format!("there is no schedule {id:?}")))
    }

    pub(super) fn schedule_changed(&mut self, key: ScheduleKey) {
        if let Some(changes) = &mut self.changes {
            changes.schedule(key);
        }
    }

    /// Lists when a schedule is looked at next, and has it saved.
    pub(super) fn list_due(&mut self, key: ScheduleKey, wall: Time) {
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

    pub(super) fn of(&self, key: ScheduleKey) -> &Schedule {
        { self.all.get(&key) }.expect("a schedule is removed together with every reference to it")
    }

    pub(super) fn of_mut(&mut self, key: ScheduleKey) -> &mut Schedule {
        { self.all.get_mut(&key) }
            .expect("a schedule is removed together with every reference to it")
    }

    pub(super) fn by_id(&self, id: &str) -> Option<&Schedule> {
        self.all.get(self.ids.get(id)?)
    }

    pub(super) fn unlist(&mut self, key: ScheduleKey) {
        let due = self
            .all
            .get_mut(&key)
            .and_then(|schedule| schedule.due.take());
        if let Some(due) = due {
            self.due.remove(&(due, key));
        }
    }
}
