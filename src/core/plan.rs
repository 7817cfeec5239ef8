//! The plan of a schedule: what was posted, checked, and its calendar.
//!
//! To add a field: `wire::schedule`, its check in [`Plan::checked`], its meaning in `schedule.rs` or `firing.rs`.

use super::Time;
use super::schedule::MAX_HISTORY;
use super::selector::Selector;
use super::spec::{Spec, check_id};
use super::task::rfc3339;
use crate::recurrence::{MAX_PAUSE_MS, Recurrence, UTC, Zone};
use crate::wire::duration::TimeSpan;
use crate::wire::moment::Moment;
use crate::wire::schedule::{BothTimes, CatchUp, Overlap, PostedSchedule};
use std::sync::Arc;

/// The longest id of a schedule, in bytes: with a number and a time it is the id of a task, which has 64 at most.
pub const MAX_SCHEDULE_ID_BYTES: usize = 32;
/// The next firings that are shown.
const SHOWN_NEXT: usize = 5;
/// How late a firing may be, if its schedule does not say.
pub(super) const DEFAULT_DEADLINE: TimeSpan = TimeSpan::from_secs(24 * 3_600);
/// The shortest time between two firings.
const MIN_EVERY: TimeSpan = TimeSpan::from_secs(1);
/// How many ended firings are kept, if the schedule does not say.
const DEFAULT_KEEP: u32 = 20;
/// The most that may be kept: they are tasks like others, of which 10,000 are kept by default.
const MAX_KEEP: u32 = 1_000;
/// The most failures that may be counted: the history has no more.
const MAX_FAILURES: u32 = MAX_HISTORY as u32;

/// A checked schedule.
#[derive(Debug, Clone)]
pub struct Plan {
    /// As it was posted.
    pub posted: Arc<PostedSchedule>,
    recurrence: Recurrence,
    /// When slots are counted from, unless the schedule says.
    first: Time,
    from: Option<Time>,
    until: Option<Time>,
    /// Its task.
    pub spec: Spec,
}

impl Plan {
    /// Checks a posted schedule. `first` is when its slots are counted from if it does not say. The error names the
    /// field and what would be right.
    pub fn checked(
        posted: PostedSchedule,
        mut spec: Spec,
        zone: Zone,
        first: Time,
    ) -> Result<Plan, String> {
        spec.selectors_mut().for_each(Selector::drop_compiled);
        { spec.selectors_of_children_mut() }.for_each(Selector::drop_compiled);
        let time = |field: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(str::parse::<Moment>).transpose();
            parsed
                .map(|moment| moment.map(|moment| Time(moment.0)))
                .map_err(|why| format!("{field}: {why}"))
        };
        let (from, until) = (time("from", &posted.from)?, time("until", &posted.until)?);
        if from.zip(until).is_some_and(|(from, until)| until <= from) {
            return Err("until: must be later than from".into());
        }
        let above_zero = [
            ("times", posted.times == Some(0)),
            ("pauseAfterFailures", posted.pause_after_failures == Some(0)),
            ("keep", posted.keep == Some(0)),
            (
                "startDeadline",
                posted.start_deadline == Some(TimeSpan::default()),
            ),
        ];
        if let Some((field, _)) = above_zero.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(format!("{field}: must be above 0"));
        }
        let most = [
            (
                "pauseAfterFailures",
                posted.pause_after_failures,
                MAX_FAILURES,
            ),
            ("keep", posted.keep, MAX_KEEP),
        ];
        for (field, value, max) in most {
            if value.is_some_and(|value| value > max) {
                return Err(format!("{field}: must be {max} at most"));
            }
        }
        let first = from.unwrap_or(first);
        let recurrence = match (&posted.cron, posted.every) {
            (Some(_), Some(_)) => {
                return Err("cron: does not go with every, give one of them".into());
            }
            (None, None) => {
                return Err(
                    "cron: is required, or every; such as \"30 2 * * *\", or \"15m\" as every"
                        .into(),
                );
            }
            (Some(cron), None) => Recurrence::cron(cron, zone)?,
            (None, Some(every)) if every < MIN_EVERY => {
                return Err(format!("every: must be {MIN_EVERY} or more"));
            }
            (None, Some(every)) => {
                // Without `from` the first slot is one from now. The clock that said what is now may be a little ahead of
                // the one that fires.
                let begin = from.unwrap_or(first.plus(every));
                Recurrence::every(begin.0, every.as_millis(), zone)
            }
        };
        Ok(Plan {
            posted: Arc::new(posted),
            recurrence,
            first,
            from,
            until,
            spec,
        })
    }

    /// Refuses a schedule that would never fire, or not for nine years.
    pub fn check_fires(&self, wall: Time) -> Result<(), String> {
        let begin = self.from.map_or(wall, |from| from.max(wall));
        let next = self.next(begin.before());
        match next {
            None if self.until.is_some() && self.recurrence.next(begin.before().0).is_some() => {
                Err("until: nothing is due before that time".into())
            }
            Some(next) if next.millis_since(begin) <= MAX_PAUSE_MS => Ok(()),
            _ => Err("cron: would not fire within nine years; does that day exist?".into()),
        }
    }

    /// When its slots are counted from.
    pub(super) fn first(&self) -> Time {
        self.first
    }

    /// The next time after a position, within the bounds.
    pub(super) fn next(&self, position: Time) -> Option<Time> {
        let after = match self.from {
            Some(from) => position.max(from.before()),
            None => position,
        };
        let next = Time(self.recurrence.next(after.0)?);
        let is_within = self.until.is_none_or(|until| next <= until);
        is_within.then_some(next)
    }

    /// The last time before another one, within the bounds.
    pub(super) fn last_before(&self, time: Time) -> Option<Time> {
        let end = { self.until }.map_or(time, |until| time.min(Time(until.0.saturating_add(1))));
        self.recurrence.last_before(end.0).map(Time)
    }

    /// A time as it is shown.
    pub fn both(&self, time: Time) -> BothTimes {
        BothTimes {
            utc: rfc3339(time),
            local: self.recurrence.zone().local(time.0),
        }
    }

    /// The next firings after a time.
    pub fn preview(&self, wall: Time) -> Vec<BothTimes> {
        let begin = self.from.map_or(wall, |from| from.before().max(wall));
        self.following(Some(begin), self.posted.times.unwrap_or(u64::MAX))
    }

    pub(super) fn following(&self, position: Option<Time>, left: u64) -> Vec<BothTimes> {
        let mut at = position;
        let times = std::iter::from_fn(|| {
            at = self.next(at?);
            at
        });
        let shown = SHOWN_NEXT.min(usize::try_from(left).unwrap_or(SHOWN_NEXT));
        times.take(shown).map(|time| self.both(time)).collect()
    }

    /// Where the data of its zone come from.
    pub fn zone_data(&self) -> &str {
        self.recurrence.zone().data()
    }

    /// The name of its zone.
    pub fn zone_name(posted: &PostedSchedule) -> &str {
        posted.time_zone.as_deref().unwrap_or(UTC)
    }

    /// What happens when the firing before has not ended.
    pub fn overlap(&self) -> Overlap {
        self.posted.overlap.unwrap_or_default()
    }

    pub(super) fn catch_up(&self) -> CatchUp {
        self.posted.catch_up.unwrap_or_default()
    }

    /// How many ended firings are kept.
    pub fn keep(&self) -> usize {
        self.posted.keep.unwrap_or(DEFAULT_KEEP) as usize
    }

    /// When it fires, for the audit.
    pub fn times_in_words(&self) -> String {
        match (&self.posted.cron, self.posted.every) {
            (Some(cron), _) => format!("cron {cron}, {}", Plan::zone_name(&self.posted)),
            (None, every) => format!("every {}", every.unwrap_or_default()),
        }
    }

    /// What it takes of memory, in bytes, roughly.
    pub fn kept_bytes(&self) -> usize {
        self.posted.task.text().len() + self.spec.kept_bytes()
    }

    /// Until when a firing may start.
    pub(super) fn deadline(&self, time: Time) -> Time {
        let at_most = time.plus(DEFAULT_DEADLINE);
        match (self.posted.start_deadline, self.catch_up()) {
            (Some(deadline), _) => time.plus(deadline),
            (None, CatchUp::All) => at_most,
            (None, _) => { self.next(time) }.map_or(at_most, |next| at_most.min(next.before())),
        }
    }

    /// The earliest time that may still start.
    pub(super) fn earliest(&self, wall: Time) -> Time {
        let ago = |span: TimeSpan| Time(wall.0.saturating_sub(span.as_millis()));
        match (self.posted.start_deadline, self.catch_up()) {
            (Some(deadline), _) => ago(deadline),
            (None, CatchUp::All) => ago(DEFAULT_DEADLINE),
            (None, _) => {
                let latest = self.last_before(Time(wall.0.saturating_add(1)));
                latest.map_or(wall, |latest| latest.max(ago(DEFAULT_DEADLINE)))
            }
        }
    }
}

impl Time {
    /// The millisecond before.
    pub(super) fn before(self) -> Time {
        Time(self.0.saturating_sub(1))
    }
}

/// Checks the id of a schedule.
pub fn check_schedule_id(id: &str) -> Result<(), String> {
    if id.len() > MAX_SCHEDULE_ID_BYTES {
        return Err(format!(
            "id: must have {MAX_SCHEDULE_ID_BYTES} bytes at most, got {}",
            id.len()
        ));
    }
    check_id(id)
}
