//! What a schedule does about its bounds, looked at without tasks.

use super::plan::Plan;
use super::schedule::{Progress, Schedule, Step};
use super::spec::Spec;
use super::{ScheduleKey, TextLimits, Time};
use crate::recurrence::Zone;
use crate::wire::schedule::PostedSchedule;

const HOUR: u64 = 3_600_000;
/// Midnight.
const BEGIN: Time = Time(1_806_000_000_000 / HOUR / 24 * HOUR * 24);
const TEXTS: TextLimits = TextLimits {
    label: 255,
    name: 255,
    pattern: 1024,
    compiled: 128 << 10,
};

/// An hourly schedule with this beside, all of whose times up to `BEGIN` are settled.
fn hourly(more: &str) -> Schedule {
    let text = format!(
        r#"{{"cron":"0 * * * *",{more}"task":{{"machinePattern":".*","detail":{{"command":"true"}}}}}}"#
    );
    let posted: PostedSchedule = serde_json::from_str(&text).unwrap();
    let spec = Spec::checked(
        serde_json::from_str(posted.task.text()).unwrap(),
        &TEXTS,
        |_| None,
    );
    let plan = Plan::checked(posted, spec.unwrap(), Zone::utc(), BEGIN).unwrap();
    let progress = Progress {
        id: "a".into(),
        seed: "a".into(),
        first: BEGIN,
        made_by: None,
        created_at: BEGIN,
        position: BEGIN,
        fired: 0,
        paused: None,
        counted_from: BEGIN,
        stopped: None,
        waiting: None,
        history: Vec::new(),
    };
    Schedule::new(ScheduleKey(1), plan, progress)
}

fn after(hours: f64) -> Time {
    Time(BEGIN.0 + (hours * HOUR as f64) as u64)
}

#[test]
fn the_last_time_within_the_bounds_is_made_up_for_when_the_server_was_away_beyond_them() {
    let until = r#""until":"2027-03-25T02:30:00Z","#;
    let mut schedule = hourly(until);
    assert_eq!(schedule.next, Some(after(1.0)));
    let now = after(5.5);
    assert_eq!(
        schedule.step(now, now, false),
        Step::Miss(
            after(1.0),
            after(1.0),
            "it was due while the server was away"
        )
    );
    schedule.settle(after(1.0));
    assert_eq!(schedule.step(now, now, false), Step::Fire(after(2.0)));
    // No later one takes its place, so it has a day.
    let late = after(26.5);
    assert!(
        matches!(schedule.step(late, late, false), Step::Miss(first, last, _) if first == last)
    );
    schedule.settle(after(2.0));
    assert_eq!(schedule.step(now, now, false), Step::Wait(None));
}

#[test]
fn without_bounds_the_latest_time_is_made_up_for() {
    let mut schedule = hourly("");
    let now = after(5.5);
    assert_eq!(
        schedule.step(now, now, false),
        Step::Miss(
            after(1.0),
            after(4.0),
            "it was due while the server was away"
        )
    );
    schedule.settle(after(4.0));
    assert_eq!(schedule.step(now, now, false), Step::Fire(after(5.0)));
}
