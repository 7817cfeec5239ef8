//! Durations of the API: in JSON a number of seconds, or a string such as `"1h30m"`.

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The longest duration, in milliseconds: 366 days. Anything longer is a mistake, and a sum of several must
/// not overflow.
pub const MAX_DURATION_MS: u64 = 366 * 24 * 3_600_000;

/// A duration of the API, in whole milliseconds and at most [`MAX_DURATION_MS`]. It has another name than
/// `std::time::Duration`, which has neither that limit nor that JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TimeSpan(u64);

impl TimeSpan {
    /// A duration of `ms` milliseconds, capped at [`MAX_DURATION_MS`].
    pub const fn from_millis(ms: u64) -> Self {
        TimeSpan(if ms > MAX_DURATION_MS {
            MAX_DURATION_MS
        } else {
            ms
        })
    }

    /// A duration of `seconds`, capped in the same way.
    pub const fn from_secs(seconds: u64) -> Self {
        TimeSpan::from_millis(seconds.saturating_mul(1000))
    }

    /// The duration in milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    fn from_seconds_f64(seconds: f64) -> Option<Self> {
        let ms = (seconds * 1000.0).round();
        (ms >= 0.0 && ms <= MAX_DURATION_MS as f64).then_some(TimeSpan(ms as u64))
    }
}

impl From<TimeSpan> for Duration {
    fn from(duration: TimeSpan) -> Duration {
        Duration::from_millis(duration.0)
    }
}

const EXPECTED: &str =
    "a number of seconds or a string such as \"90s\" or \"1h30m\", a year at most";

/// Parses `90`, `1.5`, `90s` and `1h30m`. The error says what was expected.
impl FromStr for TimeSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let duration = match text.parse::<f64>() {
            Ok(seconds) => TimeSpan::from_seconds_f64(seconds),
            Err(_) => humantime::parse_duration(text)
                .ok()
                .and_then(|d| u64::try_from(d.as_millis()).ok())
                .filter(|ms| *ms <= MAX_DURATION_MS)
                .map(TimeSpan),
        };
        duration.ok_or_else(|| format!("expected {EXPECTED}"))
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration((*self).into()).fmt(f)
    }
}

/// Written as a number of seconds, an integer where possible.
impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            serializer.serialize_u64(self.0 / 1000)
        } else {
            serializer.serialize_f64(self.0 as f64 / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(DurationVisitor { endless: false })? {
            Timeout::After(duration) => Ok(duration),
            Timeout::Never => Err(de::Error::custom(format_args!("expected {EXPECTED}"))),
        }
    }
}

/// How long a command may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// It is killed after this long.
    After(TimeSpan),
    /// No time-out; `-1` in JSON.
    Never,
}

impl Serialize for Timeout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Timeout::After(duration) => duration.serialize(serializer),
            Timeout::Never => serializer.serialize_i64(-1),
        }
    }
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DurationVisitor { endless: true })
    }
}

/// The visitor of both types. `endless` allows -1, which means no time-out.
struct DurationVisitor {
    endless: bool,
}

impl DurationVisitor {
    fn seconds<E: de::Error>(&self, seconds: f64) -> Result<Timeout, E> {
        if self.endless && seconds == -1.0 {
            return Ok(Timeout::Never);
        }
        TimeSpan::from_seconds_f64(seconds)
            .map(Timeout::After)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Float(seconds), self))
    }
}

impl Visitor<'_> for DurationVisitor {
    type Value = Timeout;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)?;
        if self.endless {
            f.write_str(", or -1 for none")
        } else {
            Ok(())
        }
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<Timeout, E> {
        self.seconds(n as f64)
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<Timeout, E> {
        self.seconds(n as f64)
    }

    fn visit_f64<E: de::Error>(self, n: f64) -> Result<Timeout, E> {
        self.seconds(n)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Timeout, E> {
        if self.endless && text.trim() == "-1" {
            return Ok(Timeout::Never);
        }
        text.parse()
            .map(Timeout::After)
            .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ms) in [
            ("15", 15_000),
            ("\"90s\"", 90_000),
            ("\"1h30m\"", 5_400_000),
            ("0.25", 250),
            ("\"2\"", 2_000),
        ] {
            let duration: TimeSpan = serde_json::from_str(text).unwrap();
            assert_eq!(duration.as_millis(), ms, "{text}");
        }
        assert_eq!(
            serde_json::from_str::<Timeout>("-1").unwrap(),
            Timeout::Never
        );
    }

    #[test]
    fn refuses_the_rest_and_says_what_would_be_right() {
        for text in [
            "-1",
            "-0.5",
            "\"soon\"",
            "1e300",
            "\"NaN\"",
            "\"inf\"",
            "null",
            "[]",
            "\"1000000y\"",
            "\"\"",
        ] {
            let error = serde_json::from_str::<TimeSpan>(text)
                .unwrap_err()
                .to_string();
            assert!(error.contains("seconds"), "{text}: {error}");
        }
        assert!(serde_json::from_str::<Timeout>("-2").is_err());
    }

    #[test]
    fn writes_seconds() {
        assert_eq!(
            serde_json::to_string(&TimeSpan::from_millis(15_000)).unwrap(),
            "15"
        );
        assert_eq!(
            serde_json::to_string(&TimeSpan::from_millis(1_500)).unwrap(),
            "1.5"
        );
        assert_eq!(serde_json::to_string(&Timeout::Never).unwrap(), "-1");
    }
}
