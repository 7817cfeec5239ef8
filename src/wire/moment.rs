//! Points in time of the API: RFC 3339 with an offset.
//!
//! A time without an offset means another moment on each machine that reads it, so it is refused. What is accepted can be
//! written again: all of it lies within the years that RFC 3339 has.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// The end of the times that are accepted, in milliseconds since 1970: the year 2200. Later ones are mistakes, and sums
/// of a time and durations must stay below the year 10000, which RFC 3339 cannot write.
const END_MS: u64 = 7_258_118_400_000;
/// The length of an offset such as `+01:00`, in bytes.
const OFFSET_BYTES: usize = 6;
const MINUTE_MS: i64 = 60_000;

/// A point in time, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

/// Parses `2026-12-24T18:00:00+01:00`. The error says what was expected.
impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected a time such as \"2026-12-24T18:00:00+01:00\" or \"2026-12-24T17:00:00Z\" (RFC 3339)";
        const OUTSIDE: &str = "must lie between the years 1970 and 2200";
        let upper = text.to_ascii_uppercase();
        let (local, offset) = match upper.strip_suffix('Z') {
            Some(local) => (local, Some(0)),
            None => { upper.len().checked_sub(OFFSET_BYTES) }
                .and_then(|at| upper.split_at_checked(at))
                .and_then(|(local, offset)| Some((local, Some(offset_minutes(offset)?))))
                .unwrap_or((&upper, None)),
        };
        let time = match parse_utc(local) {
            Ok(time) => time,
            Err(_) if offset.is_some() && has_early_year(local) => return Err(OUTSIDE.into()),
            Err(_) => return Err(format!("{EXPECTED}, got {text:?}")),
        };
        let Some(offset) = offset else {
            return Err(format!(
                "{EXPECTED}; {text:?} says no offset from UTC, so it could mean several times"
            ));
        };
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
        let ms = u64::try_from(ms.saturating_sub(offset * MINUTE_MS)).ok();
        ms.filter(|ms| *ms < END_MS)
            .map(Moment)
            .ok_or_else(|| OUTSIDE.into())
    }
}

fn parse_utc(local: &str) -> Result<SystemTime, humantime::TimestampError> {
    humantime::parse_rfc3339(&format!("{local}Z"))
}

/// Whether all that is wrong with a time is a year before 1970: the same in the year 2000 can be read.
fn has_early_year(local: &str) -> bool {
    let Some((year, rest)) = local.split_at_checked(4) else {
        return false;
    };
    let is_early = *year < *"1970" && year.bytes().all(|byte| byte.is_ascii_digit());
    is_early && parse_utc(&format!("2000{rest}")).is_ok()
}

/// The minutes of `+01:00` or `-05:30`.
fn offset_minutes(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes() {
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    let [h1, h2, b':', m1, m2] = digits else {
        return None;
    };
    let number = |tens: &u8, ones: &u8| {
        let both = tens.is_ascii_digit() && ones.is_ascii_digit();
        both.then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
    };
    let (hours, minutes) = (number(h1, h2)?, number(m1, m2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_an_offset() {
        let at = |text: &str| text.parse::<Moment>();
        assert_eq!(at("1970-01-01T00:00:01Z"), Ok(Moment(1_000)));
        assert_eq!(at("1970-01-01t01:00:01.5+01:00"), Ok(Moment(1_500)));
        assert_eq!(at("1970-01-01T00:00:00-05:30"), Ok(Moment(19_800_000)));
        let why = at("2026-12-24T18:00:00").unwrap_err();
        assert!(why.contains("no offset"), "{why}");
        for bad in [
            "",
            "now",
            "2026-12-24",
            "2026-12-24T18:00:00+1:00",
            "2026-13-24T18:00:00Z",
            "é+01:00",
        ] {
            assert!(at(bad).unwrap_err().starts_with("expected a time"), "{bad}");
        }
    }

    #[test]
    fn a_time_lies_in_a_range_that_can_be_written_again() {
        for bad in [
            "1970-01-01T00:00:00+00:01",
            "2200-01-01T00:00:00Z",
            "9999-12-31T23:59:59-05:00",
        ] {
            let why = bad.parse::<Moment>().unwrap_err();
            assert!(
                why.contains("between the years 1970 and 2200"),
                "{bad}: {why}"
            );
        }
        assert!("2199-12-31T23:59:59Z".parse::<Moment>().is_ok());
    }
}
