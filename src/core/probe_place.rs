//! One probe at one place, as a state machine: when its next run is due, and what the end of a run means.
//!
//! A place is the one machine that a probe is done on, or one target. It is in a phase, and has a run or none:
//!
//! | phase | what for | leaves it when |
//! | --- | --- | --- |
//! | `Idle` | nothing has been handed out | something was: `Watching` |
//! | `Before` | it has to pass before anything is handed out | it passes: `Idle`; `failures` in a row: the task fails |
//! | `Watching` | the task runs | the task ends: `After`, or `Over`; `failures` in a row stop the task |
//! | `After` | it has to pass again | it passes: `Recovered`; the time is over: `NotRecovered` |
//! | `Recovered`, `NotRecovered`, `Over` | nothing | never |
//!
//! | run | what happens at its time |
//! | --- | --- |
//! | `None` | |
//! | `Waiting` | the next run begins: `Out` |
//! | `Out` | there was no result in time: a failure, whether the order was handed out or not. `Waiting` |
//!
//! There is no clock in here: the time comes in. A result counts only for the run that is out, and once.

use super::Time;
use crate::wire::duration::TimeSpan;
use crate::wire::probe::Probe;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a place is for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Nothing has been handed out.
    #[default]
    Idle,
    /// It has to pass before anything is handed out.
    Before,
    /// The task runs.
    Watching,
    /// It has to pass again until this time.
    After(Time),
    /// It has passed again.
    Recovered,
    /// It has not passed again in time.
    NotRecovered,
    /// It is not asked any more.
    Over,
}

/// The run that is due or under way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Run {
    /// None.
    #[default]
    None,
    /// The next one begins at this time.
    Waiting(Time),
    /// One is under way.
    Out(Out),
}

/// A run that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Out {
    /// When it was due.
    pub since: Time,
    /// When it has failed for lack of a result.
    pub until: Time,
    /// The instance that is to do it.
    pub instance: Arc<str>,
    /// The order was put into an answer.
    pub is_handed_out: bool,
}

/// What a probe says about time and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    pub interval: TimeSpan,
    pub timeout: TimeSpan,
    pub failures: u32,
}

impl Pace {
    /// That of a probe.
    pub fn of(probe: &Probe) -> Self {
        Pace {
            interval: probe.interval(),
            timeout: probe.timeout(),
            failures: probe.failures(),
        }
    }
}

/// What follows from the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// It has passed before the task begins.
    MayBegin,
    /// The task must not begin.
    MustNotBegin,
    /// The task has to stop.
    Stop,
    /// It has passed again, or its time for that is over.
    Settled,
}

/// A probe at one place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct ProbePlace {
    pub phase: Phase,
    /// It has passed in the phase before the task began.
    #[serde(default)]
    pub has_passed: bool,
    /// The instance that did the latest run.
    #[serde(default)]
    pub machine: Option<Arc<str>>,
    /// There was no result from it in time.
    #[serde(default)]
    pub is_doubted: bool,
    run: Run,
    /// The number of the latest run.
    number: u32,
    /// How many runs have failed since one passed.
    in_a_row: u32,
}

impl ProbePlace {
    /// When something happens here next.
    pub fn next(&self) -> Option<Time> {
        match &self.run {
            Run::None => None,
            Run::Waiting(at) => Some(*at),
            Run::Out(out) => Some(out.until),
        }
    }

    /// The run that is under way.
    pub fn out(&self) -> Option<&Out> {
        match &self.run {
            Run::Out(out) => Some(out),
            Run::None | Run::Waiting(_) => None,
        }
    }

    /// The number of the latest run.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// How many runs have failed since one passed.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Whether it is asked no more.
    pub fn is_settled(&self) -> bool {
        matches!(
            self.phase,
            Phase::Recovered | Phase::NotRecovered | Phase::Over
        )
    }

    /// It has to pass before the task begins.
    pub fn begin_before(&mut self, now: Time) {
        if self.phase == Phase::Idle {
            self.enter(Phase::Before, Run::Waiting(now));
        }
    }

    /// Something was handed out: it is done from this time on. Does nothing if it is done already.
    pub fn begin(&mut self, at: Time) {
        if matches!(self.phase, Phase::Idle | Phase::Before) {
            self.enter(Phase::Watching, Run::Waiting(at));
        }
    }

    /// The task has ended: it has to pass again until a time, if one is given. A run that is under way does not count:
    /// it may have begun before the end.
    pub fn task_ended(&mut self, now: Time, until: Option<Time>) {
        match (self.phase, until) {
            (Phase::Watching, Some(until)) => {
                self.enter(Phase::After(until), Run::Waiting(now));
            }
            (Phase::Idle | Phase::Before | Phase::Watching, _) => self.end(),
            (Phase::After(_) | Phase::Recovered | Phase::NotRecovered | Phase::Over, _) => {}
        }
    }

    /// It is not asked any more.
    pub fn end(&mut self) {
        if !self.is_settled() {
            self.phase = Phase::Over;
        }
        self.run = Run::None;
    }

    fn enter(&mut self, phase: Phase, run: Run) {
        self.phase = phase;
        self.run = run;
        self.in_a_row = 0;
    }

    /// Whether the time to pass again is over.
    pub fn is_too_late(&self, now: Time) -> bool {
        matches!(self.phase, Phase::After(until) if until <= now)
    }

    /// The time to pass again is over.
    pub fn give_up(&mut self) {
        self.enter(Phase::NotRecovered, Run::None);
    }

    /// A run begins on this instance.
    pub fn begin_run(&mut self, now: Time, pace: Pace, instance: Arc<str>) {
        self.number = self.number.wrapping_add(1);
        self.machine = Some(instance.clone());
        let mut until = now.plus(pace.timeout);
        if let Phase::After(end) = self.phase {
            until = until.min(end);
        }
        self.run = Run::Out(Out {
            since: now,
            until,
            instance,
            is_handed_out: false,
        });
    }

    /// No run begins now, because there is nothing to be asked there.
    pub fn skip_run(&mut self, now: Time, pace: Pace) {
        self.run = Run::Waiting(self.limited(now.plus(pace.interval)));
    }

    /// The run that is under way begins again: its time does not count.
    pub fn run_again(&mut self, now: Time) {
        if self.out().is_some() {
            self.run = Run::Waiting(now);
        }
    }

    /// The order of the run that is under way was put into an answer.
    pub fn handed_out(&mut self) {
        if let Run::Out(out) = &mut self.run {
            out.is_handed_out = true;
        }
    }

    /// A run has ended. What follows from it.
    pub fn ended(&mut self, now: Time, pace: Pace, passed: bool) -> Effect {
        let since = self.out().map_or(now, |out| out.since);
        let next = since.plus(pace.interval).max(now);
        self.run = Run::Waiting(self.limited(next));
        self.in_a_row = match passed {
            true => 0,
            false => self.in_a_row.saturating_add(1),
        };
        let is_enough = self.in_a_row >= pace.failures;
        match (self.phase, passed) {
            (Phase::Before, true) => {
                self.has_passed = true;
                self.enter(Phase::Idle, Run::None);
                Effect::MayBegin
            }
            (Phase::Before, false) if is_enough => {
                self.end();
                Effect::MustNotBegin
            }
            (Phase::Watching, false) if is_enough => Effect::Stop,
            (Phase::After(_), true) => {
                self.enter(Phase::Recovered, Run::None);
                Effect::Settled
            }
            _ => Effect::None,
        }
    }

    /// A time, but not after the end of the time to pass again.
    fn limited(&self, time: Time) -> Time {
        match self.phase {
            Phase::After(until) => time.min(until),
            _ => time,
        }
    }

    /// The same after a restart: times are later by so much, and a run that was under way is due again.
    pub fn restored(mut self, now: Time, away: u64) -> Self {
        let later = |time: Time| time.later_by(away);
        if let Phase::After(until) = &mut self.phase {
            *until = later(*until);
        }
        self.run = match self.run {
            Run::None => Run::None,
            Run::Waiting(at) => Run::Waiting(later(at)),
            Run::Out(_) => Run::Waiting(now),
        };
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        interval: TimeSpan::from_secs(5),
        timeout: TimeSpan::from_secs(2),
        failures: 2,
    };

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000)
    }

    fn run(place: &mut ProbePlace, now: Time, passed: bool) -> Effect {
        place.begin_run(now, PACE, "i".into());
        place.ended(now, PACE, passed)
    }

    #[test]
    fn a_run_has_failed_at_its_time_out_and_the_next_keeps_the_interval() {
        let mut place = ProbePlace::default();
        assert_eq!(place.next(), None);
        place.begin(at(3));
        assert_eq!(place.next(), Some(at(3)));
        place.begin_run(at(3), PACE, "i".into());
        assert_eq!(place.next(), Some(at(5)));
        assert_eq!(place.ended(at(5), PACE, false), Effect::None);
        assert_eq!(place.next(), Some(at(8)));
        // A run that took longer than the interval is followed by the next at once.
        place.begin_run(at(8), PACE, "i".into());
        assert_eq!(place.ended(at(20), PACE, false), Effect::Stop);
        assert_eq!(place.next(), Some(at(20)));
        assert_eq!(place.number(), 2);
    }

    #[test]
    fn only_failures_in_a_row_stop_the_task() {
        let mut place = ProbePlace::default();
        place.begin(at(0));
        for n in 0..5 {
            assert_eq!(run(&mut place, at(n), n % 2 == 0), Effect::None, "{n}");
        }
        assert_eq!(run(&mut place, at(5), false), Effect::None);
        assert_eq!(run(&mut place, at(6), false), Effect::Stop);
        // It goes on to be asked, and says so again.
        assert_eq!(run(&mut place, at(7), false), Effect::Stop);
        assert_eq!(place.in_a_row(), 3);
    }

    #[test]
    fn before_the_task_it_passes_once_or_the_task_fails() {
        let mut place = ProbePlace::default();
        place.begin_before(at(0));
        assert_eq!(run(&mut place, at(0), false), Effect::None);
        assert_eq!(run(&mut place, at(1), true), Effect::MayBegin);
        assert!(place.has_passed && place.next().is_none());
        place.begin(at(9));
        assert_eq!((place.next(), place.in_a_row()), (Some(at(9)), 0));
        let mut place = ProbePlace::default();
        place.begin_before(at(0));
        assert_eq!(run(&mut place, at(0), false), Effect::None);
        assert_eq!(run(&mut place, at(1), false), Effect::MustNotBegin);
        assert!(place.is_settled() && !place.has_passed && place.next().is_none());
        place.begin(at(2));
        assert_eq!(place.next(), None);
    }

    #[test]
    fn afterwards_it_passes_again_or_its_time_is_over() {
        let mut place = ProbePlace::default();
        place.begin(at(0));
        place.begin_run(at(0), PACE, "i".into());
        place.task_ended(at(1), Some(at(9)));
        assert_eq!(place.out(), None);
        let mut other = place.clone();
        assert_eq!(run(&mut place, at(1), false), Effect::None);
        assert_eq!(run(&mut place, at(6), true), Effect::Settled);
        assert_eq!((place.phase, place.next()), (Phase::Recovered, None));
        for n in [1, 2, 7] {
            assert_eq!(run(&mut other, at(n), false), Effect::None);
        }
        // Neither the next run nor its time-out is later than the end.
        assert_eq!(other.next(), Some(at(9)));
        other.begin_run(at(8), PACE, "i".into());
        assert_eq!(other.next(), Some(at(9)));
        assert!(!other.is_too_late(at(8)) && other.is_too_late(at(9)));
        other.give_up();
        assert_eq!((other.phase, other.next()), (Phase::NotRecovered, None));
        other.task_ended(at(10), None);
        assert_eq!(other.phase, Phase::NotRecovered);
    }

    #[test]
    fn a_place_that_was_never_asked_need_not_recover() {
        for before in [false, true] {
            let mut place = ProbePlace::default();
            if before {
                place.begin_before(at(0));
            }
            place.task_ended(at(1), Some(at(9)));
            assert_eq!((place.phase, place.next()), (Phase::Over, None));
        }
    }

    #[test]
    fn after_a_restart_the_run_that_was_out_is_due_again() {
        let mut place = ProbePlace::default();
        place.begin(at(1));
        assert_eq!(place.clone().restored(at(99), 5_000).next(), Some(at(6)));
        place.begin_run(at(1), PACE, "i".into());
        let text = serde_json::to_string(&place).unwrap();
        let saved: ProbePlace = serde_json::from_str(&text).unwrap();
        assert_eq!(saved, place);
        let mut place = saved.restored(at(99), 5_000);
        assert_eq!(place.next(), Some(at(99)));
        place.task_ended(at(100), Some(at(110)));
        let place = place.restored(at(120), 20_000);
        assert_eq!(place.phase, Phase::After(at(130)));
    }
}
