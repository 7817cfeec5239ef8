//! How many machines a task may hit, in which order, and when it stops: as posted, and as answered.
//!
//! Shares are read from a number or from a text such as `"25%"`, and written as they were read.

use super::duration::TimeSpan;
use super::enumeration::{self, Words};
use crate::rules::one_of;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A number of machines, or a percentage of some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// This number.
    Count(u32),
    /// This percentage; 100 at most.
    Percent(u8),
}

const SHARE: &str = "a whole number or a percentage such as \"25%\", 100% at most";

impl Share {
    /// The share of `total`, rounded down: for what may be hit.
    pub fn rounded_down(self, total: u32) -> u32 {
        match self {
            Share::Count(count) => count,
            Share::Percent(percent) => (u64::from(total) * u64::from(percent) / 100) as u32,
        }
    }

    /// The share of `total`, rounded up: for what must stay.
    pub fn rounded_up(self, total: u32) -> u32 {
        match self {
            Share::Count(count) => count,
            Share::Percent(percent) => (u64::from(total) * u64::from(percent)).div_ceil(100) as u32,
        }
    }

    /// Whether it is 0, whatever the total.
    pub fn is_zero(self) -> bool {
        matches!(self, Share::Count(0) | Share::Percent(0))
    }

    fn percent(text: &str) -> Option<Share> {
        let number = text.trim().strip_suffix('%')?.trim_end();
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        let percent = number
            .parse()
            .ok()
            .filter(|_| is_number)
            .filter(|percent| *percent <= 100)?;
        Some(Share::Percent(percent))
    }
}

/// Parses `5` and `25%`. The error says what was expected.
impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = text.trim().bytes().all(|byte| byte.is_ascii_digit());
        let count = || {
            text.trim()
                .parse()
                .ok()
                .filter(|_| is_number)
                .map(Share::Count)
        };
        let share = Share::percent(text).or_else(count);
        share.ok_or_else(|| "expected a whole number or a percentage up to 100%".into())
    }
}

/// `25 %`, or `5`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Count(count) => count.fmt(f),
            Share::Percent(percent) => write!(f, "{percent} %"),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Share::Count(count) => serializer.serialize_u32(*count),
            Share::Percent(percent) => serializer.collect_str(&format_args!("{percent}%")),
        }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShareVisitor)
    }
}

struct ShareVisitor;

impl Visitor<'_> for ShareVisitor {
    type Value = Share;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHARE)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Share, E> {
        let count = u32::try_from(number).map(Share::Count);
        count.map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Share, E> {
        let share = Share::percent(text);
        share.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// How many machines have to match; otherwise nothing is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Expect {
    /// Exactly so many.
    Exactly(u32),
    /// From so many to so many.
    Between {
        /// At least so many.
        #[serde(skip_serializing_if = "Option::is_none")]
        min: Option<u32>,
        /// At most so many.
        #[serde(skip_serializing_if = "Option::is_none")]
        max: Option<u32>,
    },
}

impl Expect {
    /// Whether this many machines are right.
    pub fn allows(self, matched: u32) -> bool {
        match self {
            Expect::Exactly(number) => matched == number,
            Expect::Between { min, max } => {
                min.is_none_or(|min| matched >= min) && max.is_none_or(|max| matched <= max)
            }
        }
    }
}

/// `3`, `at least 2`, `2 to 10`.
impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Exactly(number) => number.fmt(f),
            Expect::Between { min, max: None } => write!(f, "at least {}", min.unwrap_or(0)),
            Expect::Between { min: None, max } => write!(f, "at most {}", max.unwrap_or(0)),
            Expect::Between {
                min: Some(min),
                max: Some(max),
            } => write!(f, "{min} to {max}"),
        }
    }
}

/// Parses `3`, `2..10`, `2..` and `..10`. The error says what was expected.
impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.trim() {
            "" => Ok(None),
            digits => digits.parse().map(Some).map_err(|_| ()),
        };
        let read = || match text.split_once("..") {
            None => Ok(number(text)?.map(Expect::Exactly)),
            Some((min, max)) => {
                let (min, max) = (number(min)?, number(max)?);
                let is_given = min.is_some() || max.is_some();
                Ok(is_given.then_some(Expect::Between { min, max }))
            }
        };
        let read: Result<_, ()> = read();
        let read = read.ok().flatten();
        read.ok_or_else(|| "expected a number such as 3, or a range such as 2..10 or 2..".into())
    }
}

impl<'de> Deserialize<'de> for Expect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Object {
            min: Option<u32>,
            max: Option<u32>,
        }

        struct ExpectVisitor;

        impl<'de> Visitor<'de> for ExpectVisitor {
            type Value = Expect;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or an object such as {\"min\": 2, \"max\": 10}")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Expect, E> {
                let exactly = u32::try_from(number).map(Expect::Exactly);
                exactly.map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Expect, A::Error> {
                let Object { min, max } = Object::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Expect::Between { min, max })
            }
        }
        deserializer.deserialize_any(ExpectVisitor)
    }
}

/// How many machines a task has to leave alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepAlive {
    /// So many of the pool.
    pub keep: Share,
    /// Regular expression on the labels of the pool; the machines that the task means, if absent.
    pub pool: Option<String>,
}

/// Parses `2`, `50%` and `50%:^web-`. The error says what was expected.
impl FromStr for KeepAlive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (keep, pool) = match text.split_once(':') {
            Some((keep, pool)) => (keep, Some(pool.to_owned())),
            None => (text, None),
        };
        match keep.parse() {
            Ok(keep) => Ok(KeepAlive { keep, pool }),
            Err(why) => Err(format!("{why}, or with a pool such as 50%:^web-")),
        }
    }
}

impl Serialize for KeepAlive {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Object<'a> {
            keep: Share,
            pool: &'a str,
        }
        match &self.pool {
            None => self.keep.serialize(serializer),
            Some(pool) => Object {
                keep: self.keep,
                pool,
            }
            .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for KeepAlive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Object {
            keep: Share,
            pool: Option<String>,
        }

        struct KeepAliveVisitor;

        impl<'de> Visitor<'de> for KeepAliveVisitor {
            type Value = KeepAlive;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "{SHARE}, or an object such as {{\"keep\": \"50%\", \"pool\": \"^web-\"}}"
                )
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<KeepAlive, E> {
                let keep = ShareVisitor.visit_u64(number)?;
                Ok(KeepAlive { keep, pool: None })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<KeepAlive, E> {
                let keep = ShareVisitor.visit_str(text)?;
                Ok(KeepAlive { keep, pool: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<KeepAlive, A::Error> {
                let Object { keep, pool } = Object::deserialize(MapAccessDeserializer::new(map))?;
                Ok(KeepAlive { keep, pool })
            }
        }
        deserializer.deserialize_any(KeepAliveVisitor)
    }
}

/// In which order a rollout starts its targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// By label, web-2 before web-10, then by instance.
    #[default]
    Label,
    /// In an order that the task's id decides.
    Random,
    /// Those that came online first are first.
    Joined,
}

impl Order {
    const WORDS: Words<Order> = &[
        ("label", Order::Label),
        ("random", Order::Random),
        ("joined", Order::Joined),
    ];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        let known = Order::WORDS.iter().find(|(_, order)| *order == self);
        known.map_or("", |(word, _)| word)
    }
}

/// Parses one of the words. The error lists them.
impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = one_of(Order::WORDS, |(word, _)| word, text);
        known.map(|(_, order)| order)
    }
}

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        enumeration::deserialize(Order::WORDS, deserializer)
    }
}

/// What a rollout does between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// It waits for this long.
    For(TimeSpan),
    /// It waits until a user resumes it.
    Approve,
}

/// Parses `approve` and durations such as `30s`. The error says what was expected.
impl FromStr for Pause {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "approve" => Ok(Pause::Approve),
            duration => match duration.parse() {
                Ok(duration) => Ok(Pause::For(duration)),
                Err(why) => Err(format!("{why}, or approve")),
            },
        }
    }
}

impl Serialize for Pause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Pause::For(duration) => duration.serialize(serializer),
            Pause::Approve => serializer.serialize_str("approve"),
        }
    }
}

impl<'de> Deserialize<'de> for Pause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PauseVisitor;

        impl Visitor<'_> for PauseVisitor {
            type Value = Pause;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds, a string such as \"30s\", or \"approve\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Pause, E> {
                let pause = text.parse();
                pause.map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Pause, E> {
                self.visit_str(&seconds.to_string())
            }

            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Pause, E> {
                self.visit_str(&seconds.to_string())
            }
        }
        deserializer.deserialize_any(PauseVisitor)
    }
}

/// In which order and at which pace a task reaches its targets, and when it stops.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// The most executions at once; all, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Share>,
    /// How many of all targets have been started when each step is done; the last step is everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Share>,
    /// What happens after each step but the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// It stops when more than these have failed; 0, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<Share>,
    /// What runs when it stops is canceled; if absent, only that of a task with an undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_running: Option<bool>,
    /// The order of its targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// Regular expression: targets with such labels are the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
}

/// What a rollout does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RolloutPhase {
    /// It starts its targets.
    Running,
    /// It starts nothing until it is resumed, or until its pause is over.
    Paused,
    /// It starts nothing any more.
    Stopped,
    /// All of its executions have ended.
    Done,
}

impl RolloutPhase {
    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Done => "done",
        }
    }
}

/// How far a rollout has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutState<S = String> {
    /// What it does.
    pub state: RolloutPhase,
    /// The present step, from 1.
    pub step: u32,
    /// How many steps there are.
    pub of: u32,
    /// How many targets have had their turn.
    pub started: u32,
    /// How many executions have failed.
    pub failures: u32,
    /// How many targets have been started when each step is done.
    pub plan: Vec<u32>,
    /// The most executions at once, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// It stops when more have failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<u32>,
    /// How many machines have joined the last step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late_joined: u32,
    /// When its pause is over, RFC 3339; absent while it waits for a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumes_at: Option<S>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What stopped a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StopKind {
    /// Too many of its executions failed.
    Failures,
    /// A user stopped it.
    User,
    /// A probe of it failed.
    Probe,
    /// Too few machines of its pool were left alone and healthy.
    KeepAlive,
}

/// What stopped a task, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedBy<S = String> {
    /// What kind of cause.
    pub kind: StopKind,
    /// The name of the probe.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub name: Option<S>,
    /// When it was stopped, RFC 3339.
    pub at: S,
    /// Why, in words.
    pub msg: S,
    /// The last of what the probe wrote.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub output: Option<S>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    #[test]
    fn what_may_be_hit_rounds_down_and_what_must_stay_rounds_up() {
        for total in [0, 1, 2, 3, 99, 100, 101, u32::MAX] {
            for percent in [0, 1, 33, 50, 99, 100] {
                let share = Share::Percent(percent);
                let (down, up) = (share.rounded_down(total), share.rounded_up(total));
                let exact = f64::from(total) * f64::from(percent) / 100.0;
                assert_eq!(
                    [f64::from(down), f64::from(up)],
                    [exact.floor(), exact.ceil()]
                );
            }
        }
        assert_eq!(Share::Percent(25).rounded_down(3), 0);
        assert_eq!(Share::Count(5).rounded_down(3), 5);
    }

    #[test]
    fn what_is_read_is_written_again() {
        fn same<T: Serialize + for<'de> Deserialize<'de>>(value: Value) {
            let read: T = from_value(value.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), value);
        }
        same::<Share>(json!(5));
        same::<Share>(json!("25%"));
        same::<Expect>(json!(3));
        same::<Expect>(json!({"min": 2, "max": 10}));
        same::<Expect>(json!({"min": 2}));
        same::<KeepAlive>(json!(2));
        same::<KeepAlive>(json!("50%"));
        same::<KeepAlive>(json!({"keep": "50%", "pool": "^web-"}));
        same::<Pause>(json!("approve"));
        same::<Pause>(json!(30));
        same::<Rollout>(json!({}));
        same::<Rollout>(json!({
            "concurrency": 10, "steps": [1, "10%", "100%"], "pause": 30, "maxFailures": 0,
            "stopRunning": true, "order": "random", "canary": "^web-1$"
        }));
    }

    #[test]
    fn errors_say_what_is_expected() {
        fn wrong<T: for<'de> Deserialize<'de>>(value: Value, expected: &str) {
            let why = from_value::<T>(value).err().unwrap().to_string();
            assert!(why.contains(expected), "{why}");
        }
        for share in [
            json!("101%"),
            json!("5"),
            json!(-1),
            json!(2.5),
            json!("%"),
            json!(null),
        ] {
            wrong::<Share>(share, "a percentage such as \"25%\"");
        }
        wrong::<Expect>(json!("3"), "{\"min\": 2, \"max\": 10}");
        wrong::<Expect>(json!({"minimum": 3}), "unknown field `minimum`");
        wrong::<KeepAlive>(json!({"pool": "x"}), "missing field `keep`");
        wrong::<Pause>(json!("later"), "or \"approve\"");
        wrong::<Pause>(json!(-1), "or \"approve\"");
        wrong::<Rollout>(json!({"order": "labels"}), "label");
    }

    #[test]
    fn the_words_of_the_command_line() {
        assert_eq!("5".parse(), Ok(Share::Count(5)));
        assert_eq!("25%".parse(), Ok(Share::Percent(25)));
        assert_eq!("3".parse(), Ok(Expect::Exactly(3)));
        let between = |min, max| Ok(Expect::Between { min, max });
        assert_eq!("2..10".parse(), between(Some(2), Some(10)));
        assert_eq!("2..".parse(), between(Some(2), None));
        assert_eq!("..10".parse(), between(None, Some(10)));
        let keep_alive = |keep, pool: Option<&str>| {
            let pool = pool.map(str::to_owned);
            Ok(KeepAlive { keep, pool })
        };
        assert_eq!("2".parse(), keep_alive(Share::Count(2), None));
        let half = Share::Percent(50);
        assert_eq!("50%:^a:b".parse(), keep_alive(half, Some("^a:b")));
        for wrong in ["", ":", "^web-:50%", "-1"] {
            let why = wrong.parse::<KeepAlive>().unwrap_err();
            assert!(why.contains("50%:^web-"), "{wrong:?}: {why}");
        }
        assert_eq!("joined".parse(), Ok(Order::Joined));
        let why = "host".parse::<Order>().unwrap_err();
        assert_eq!(why, "expected one of label, random, joined");
        for wrong in ["", "..", "a", "2..b", "-1"] {
            assert!(wrong.parse::<Expect>().is_err(), "{wrong:?}");
        }
        for wrong in ["", "%", "101%", "-1", "1.5", "+5", "+5%"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong:?}");
        }
    }
}
