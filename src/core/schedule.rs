//! One schedule: its checked plan, how far it has come, and what is to be done about it at a given time.
//!
//! Nothing here knows a task or another schedule: `schedules.rs` carries out what [`Schedule::step`] says. All times are
//! those of the wall clock, which may be set back. The position never goes back: every time up to it is settled, so a
//! time becomes a task once at most. What a long absence has left behind is settled in one step, however long it was.
//!
//! To add something to be done: a variant of [`Step`]. `plan.rs` says how to add a field.

use super::plan::{DEFAULT_DEADLINE, Plan};
use super::task::rfc3339;
use super::{ScheduleKey, TaskKey, Time};
use crate::wire::duration::TimeSpan;
use crate::wire::schedule::{
    CatchUp, Firing, Outcome, Overlap, Schedule as Answer, ScheduleState, WaitingFiring,
};
use crate::wire::task::TaskState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The firings that a schedule remembers.
pub const MAX_HISTORY: usize = 100;
/// The most firings that are made up for with `catchUp: all`.
const MAX_CAUGHT_UP: usize = 100;
/// How long the server waits before it tries a refused firing again.
pub(super) const RETRY_PAUSE: TimeSpan = TimeSpan::from_secs(5);

/// What a task knows of the schedule that fired it. It stays with the task: the schedule may be deleted or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiringOf {
    /// The id of the schedule.
    pub schedule: Arc<str>,
    /// Its number.
    pub incarnation: u64,
    /// When the firing was due.
    pub at: Time,
    /// Somebody fired it by hand.
    #[serde(default)]
    pub by_hand: bool,
    /// What happens on machines that still run the firing before.
    pub overlap: Overlap,
}

/// A firing of the past as it is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PastFiring {
    pub at: Time,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Arc<str>>,
    /// How its task ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TaskState>,
    /// Its task ended badly.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub reason: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<Time>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
}

impl PastFiring {
    pub fn new(at: Time, outcome: Outcome, reason: &str) -> Self {
        PastFiring {
            at,
            outcome,
            task: None,
            state: None,
            failed: false,
            reason: reason.into(),
            through: None,
            by_hand: false,
        }
    }
}

/// A firing that is due and has not become a task yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub at: Time,
    /// Later it is missed.
    pub deadline: Time,
    /// When it is tried again; without, when the firing before has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    pub reason: Arc<str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
}

/// How far a schedule has come, as it is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of the answer are documented")]
pub struct Progress {
    pub id: Arc<str>,
    /// What the ids of its firings' executions are made of, so that they are new.
    pub seed: Arc<str>,
    pub first: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<Arc<str>>,
    pub created_at: Time,
    /// Every time up to this one is settled.
    pub position: Time,
    #[serde(default)]
    pub fired: u64,
    /// Why it does not fire until it is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Arc<str>>,
    /// Failures of firings before do not count.
    #[serde(default)]
    pub counted_from: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) waiting: Option<Waiting>,
    #[serde(default)]
    pub(super) history: Vec<PastFiring>,
}

/// A schedule.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    pub key: ScheduleKey,
    pub plan: Plan,
    pub progress: Progress,
    /// The next time that is not settled.
    pub next: Option<Time>,
    /// When it is looked at next, as it is listed.
    pub due: Option<Time>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing before that time; `None`: nothing any more, until something changes.
    Wait(Option<Time>),
    /// The firing that waits is tried again.
    Retry,
    /// The firing that waits is too late.
    GiveUp,
    /// Everything from the first of these times through the second is missed.
    Miss(Time, Time, &'static str),
    /// This time is due.
    Fire(Time),
}

impl Schedule {
    pub fn new(key: ScheduleKey, plan: Plan, progress: Progress) -> Schedule {
        let mut schedule = Schedule {
            key,
            plan,
            progress,
            next: None,
            due: None,
        };
        schedule.find_next();
        schedule
    }

    /// Finds the next time after the position. It is always later: a schedule whose calendar says otherwise stops.
    pub fn find_next(&mut self) {
        let waiting = self.progress.waiting.as_ref();
        let waiting = u64::from(waiting.is_some_and(|waiting| !waiting.by_hand));
        let fired = self.progress.fired + waiting;
        let is_over = { self.plan.posted.times }.is_some_and(|times| fired >= times);
        self.next = match is_over || self.progress.stopped.is_some() {
            true => None,
            false => self.plan.next(self.progress.position),
        };
        if self.next.is_some_and(|next| next <= self.progress.position) {
            self.next = None;
            let why = "its calendar gives no time later than the last; replace it";
            self.progress.stopped = Some(why.into());
        }
    }

    /// Settles everything up to a time. The position never goes back.
    pub fn settle(&mut self, through: Time) {
        self.progress.position = self.progress.position.max(through);
        self.find_next();
    }

    /// What is to be done now. `awake_since` is since when the server has run without a pause: what was due before that
    /// is made up for, or not, as the schedule says.
    pub fn step(&self, wall: Time, awake_since: Time, is_busy: bool) -> Step {
        if self.progress.stopped.is_some() {
            return Step::Wait(None);
        }
        // In a pause only what somebody has fired by hand goes on.
        let next = self.next.filter(|_| self.progress.paused.is_none());
        if let Some(waiting) = &self.progress.waiting {
            if wall > waiting.deadline {
                return Step::GiveUp;
            }
            let after_deadline = Time(waiting.deadline.0.saturating_add(1));
            match waiting.retry_at {
                Some(at) if at <= wall => return Step::Retry,
                Some(at) => return Step::Wait(Some(at.min(after_deadline))),
                None if !is_busy => return Step::Retry,
                // A later firing does not wait too. There may be many of them, as below.
                None if next.is_some_and(|next| next <= wall) => {}
                None => {
                    let until = next.map_or(after_deadline, |at| at.min(after_deadline));
                    return Step::Wait(Some(until));
                }
            }
        }
        let Some(next) = next else {
            return Step::Wait(None);
        };
        if next > wall {
            return Step::Wait(Some(next));
        }
        let away = "it was due while the server was away";
        let late = "it could not start before its startDeadline";
        let (made_up, why) = match self.plan.catch_up() {
            _ if next >= awake_since => (next, late),
            CatchUp::None => (awake_since, away),
            CatchUp::Latest => {
                let latest = self.plan.last_before(awake_since);
                (latest.unwrap_or(next), away)
            }
            CatchUp::All => {
                let mut times = 0..MAX_CAUGHT_UP;
                let first = times.try_fold(awake_since, |time, _| {
                    self.plan.last_before(time).filter(|last| *last > next)
                });
                (first.unwrap_or(next), away)
            }
        };
        let earliest = self.plan.earliest(wall);
        let (begin, why) = match earliest > made_up {
            true => (earliest, late),
            false => (made_up, why),
        };
        if begin <= next {
            return Step::Fire(next);
        }
        let last = self.plan.last_before(begin);
        Step::Miss(next, last.map_or(next, |last| last.max(next)), why)
    }

    /// Until when a firing may start.
    pub fn deadline(&self, at: Time, by_hand: bool) -> Time {
        match by_hand {
            true => at.plus(self.plan.posted.start_deadline.unwrap_or(DEFAULT_DEADLINE)),
            false => self.plan.deadline(at),
        }
    }

    /// Writes down what became of a firing, in place of what was written of it before.
    pub fn record(&mut self, firing: PastFiring) {
        let history = &mut self.progress.history;
        let place = |past: &PastFiring| (past.at, past.by_hand);
        match history.binary_search_by_key(&place(&firing), place) {
            Ok(n) => history[n] = firing,
            Err(n) => history.insert(n, firing),
        }
        if history.len() > MAX_HISTORY {
            history.remove(0);
        }
    }

    /// How many firings in a row have failed.
    pub fn failures(&self) -> u32 {
        let ended = { self.progress.history.iter().rev() }
            .take_while(|past| past.at >= self.progress.counted_from)
            .filter(|past| {
                let state = past.state;
                past.failed || matches!(state, Some(TaskState::Succeeded | TaskState::Partial))
            });
        ended.take_while(|past| past.failed).count() as u32
    }

    /// Notes that the task of a firing has ended; whether the schedule pauses because of it.
    pub fn note_end(&mut self, task: &str, state: TaskState, failed: bool) -> bool {
        let mut past = self.progress.history.iter_mut().rev();
        let Some(past) = past.find(|past| past.task.as_deref() == Some(task)) else {
            return false;
        };
        (past.state, past.failed) = (Some(state), failed);
        let failures = self.failures();
        let limit = self.plan.posted.pause_after_failures;
        let pauses = failed && limit.is_some_and(|limit| failures >= limit);
        if pauses && self.progress.paused.is_none() {
            let why = format!("{failures} firings in a row have failed (pauseAfterFailures)");
            self.pause(&why);
        }
        pauses
    }

    /// Leaves out the firing that waits, if there is one.
    pub fn drop_waiting(&mut self, why: &str) {
        if let Some(waiting) = self.progress.waiting.take() {
            let mut past = PastFiring::new(waiting.at, Outcome::Skipped, why);
            past.by_hand = waiting.by_hand;
            self.record(past);
        }
    }

    /// Stops firing until it is resumed. A firing that waits is left out; one that is fired by hand later is not.
    pub fn pause(&mut self, why: &str) {
        self.drop_waiting("the schedule was paused before it could start");
        self.progress.paused = Some(why.into());
        self.find_next();
    }

    /// The clock was set back: what is tried again is not tried again hours later.
    pub fn retry_by(&mut self, wall: Time) {
        let waiting = self.progress.waiting.as_mut();
        if let Some(retry_at) = waiting.and_then(|waiting| waiting.retry_at.as_mut()) {
            *retry_at = wall.plus(RETRY_PAUSE).min(*retry_at);
        }
    }

    /// Fires again. What was due in the pause is not made up for, and is not missed.
    pub fn resume(&mut self, wall: Time) {
        if self.progress.paused.take().is_some() {
            self.progress.counted_from = wall;
            self.settle(wall);
        }
    }

    /// Its state.
    pub fn state(&self) -> ScheduleState {
        match &self.progress {
            Progress {
                stopped: Some(_), ..
            } => ScheduleState::Stopped,
            Progress {
                paused: Some(_), ..
            } => ScheduleState::Paused,
            Progress { waiting: None, .. } if self.next.is_none() => ScheduleState::Ended,
            _ => ScheduleState::Active,
        }
    }

    fn msg(&self, wall: Time, note: &str) -> String {
        let progress = &self.progress;
        let why = [&progress.stopped, &progress.paused].into_iter().flatten();
        let mut parts: Vec<&str> = why.take(1).map(|why| &**why).collect();
        if progress.position > wall {
            parts
                .push("the clock was set back: it fires when the clock has passed its last firing");
        }
        parts.extend(Some(note).filter(|note| !note.is_empty()));
        parts.join("; ")
    }

    /// As the API answers it, with so many firings of the past.
    pub fn answer(&self, wall: Time, history: usize, note: &str) -> Answer {
        let (plan, progress) = (&self.plan, &self.progress);
        let posted = &plan.posted;
        let skipped = progress.history.len().saturating_sub(history);
        let times_left = { posted.times }.map(|times| times.saturating_sub(progress.fired));
        let is_on = matches!(self.state(), ScheduleState::Active | ScheduleState::Paused);
        // In a pause nothing is settled; it goes on from now when it is resumed.
        let position = match progress.paused {
            Some(_) => progress.position.max(wall),
            None => progress.position,
        };
        Answer {
            id: progress.id.to_string(),
            incarnation: self.key.0,
            cron: posted.cron.clone(),
            every: posted.every,
            time_zone: Plan::zone_name(posted).to_owned(),
            time_zone_data: plan.zone_data().to_owned(),
            task: posted.task.clone(),
            overlap: plan.overlap(),
            catch_up: plan.catch_up(),
            start_deadline: posted.start_deadline,
            from: posted.from.clone(),
            until: posted.until.clone(),
            times: posted.times,
            paused: progress.paused.is_some(),
            pause_after_failures: posted.pause_after_failures,
            keep: plan.keep() as u32,
            state: self.state(),
            msg: self.msg(wall, note),
            made_by: progress.made_by.as_deref().map(str::to_owned),
            created_at: rfc3339(progress.created_at),
            fired: progress.fired,
            failures: self.failures(),
            waits: progress.waiting.as_ref().map(|waiting| WaitingFiring {
                at: plan.both(waiting.at),
                reason: waiting.reason.to_string(),
            }),
            next: plan.following(
                Some(position).filter(|_| is_on),
                times_left.unwrap_or(u64::MAX),
            ),
            history: { progress.history.iter().skip(skipped) }
                .map(|past| Firing {
                    at: plan.both(past.at),
                    outcome: past.outcome,
                    task: past.task.as_deref().map(str::to_owned),
                    state: past.state,
                    reason: past.reason.to_string(),
                    through: past.through.map(rfc3339),
                    by_hand: past.by_hand,
                })
                .collect(),
        }
    }

    /// The id of the task of a firing: readable, and of this firing alone.
    pub fn task_id(&self, at: Time, by_hand: bool) -> String {
        // 2026-12-01T08:00:00.000Z → 20261201T080000Z
        let time = rfc3339(at);
        let time: String = { time.chars() }
            .filter(|c| !matches!(c, '-' | ':'))
            .collect();
        let time = match (by_hand, time.split_once('.')) {
            (false, Some((seconds, "000Z"))) => format!("{seconds}Z"),
            _ => time.replace('.', "_"),
        };
        let by_hand = if by_hand { "-run" } else { "" };
        format!("{}-{}-{time}{by_hand}", self.progress.id, self.key.0)
    }
}

/// The tasks of a schedule that are kept, by whether they have ended. Those of a deleted schedule, too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Firings {
    pub unfinished: BTreeSet<TaskKey>,
    pub ended: BTreeSet<TaskKey>,
}

impl Firings {
    /// The last one.
    pub fn last(&self) -> Option<TaskKey> {
        self.unfinished.last().max(self.ended.last()).copied()
    }
}
