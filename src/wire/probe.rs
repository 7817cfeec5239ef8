//! Probes, which stop an experiment by themselves: as posted, as ordered, as reported, as answered.

use super::duration::TimeSpan;
use super::strict_object::{ReadOnlyFields, StrictObject};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// How often a probe runs by default.
pub const DEFAULT_INTERVAL: TimeSpan = TimeSpan::from_secs(5);
/// How long a run may take by default.
pub const DEFAULT_TIMEOUT: TimeSpan = TimeSpan::from_secs(5);
/// After how many failures in a row the task is stopped by default.
pub const DEFAULT_FAILURES: u32 = 3;
/// Within which time a probe has to pass after the undos of a task, by default.
pub const DEFAULT_AFTER: TimeSpan = TimeSpan::from_secs(60);
/// The statuses of an answer with which an `http` probe passes by default.
pub const DEFAULT_STATUSES: Statuses = Statuses::Range(200, 299);

/// The longest output of a run that is reported and kept, in bytes: the end of it.
pub const MAX_OUTPUT_BYTES: usize = 4 << 10;
/// The longest reason of a failure, in bytes.
pub const MAX_MSG_BYTES: usize = 1 << 10;
/// The most statuses in a list, in number.
const MAX_STATUSES: usize = 100;
/// The lowest and the highest status of HTTP.
const STATUSES: std::ops::RangeInclusive<u16> = 100..=599;

/// A probe, as posted. It has exactly one of `command`, `argv` and `http`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// Its name, which no other probe of the task has.
    pub name: String,
    /// A shell line that succeeds while all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The same as a program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "super::bounded::some_list")]
    pub argv: Option<Vec<String>>,
    /// A request that the agent itself makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "HttpProbe::strict")]
    pub http: Option<HttpProbe>,
    /// Where it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<ProbeOn>,
    /// The time from one run to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<TimeSpan>,
    /// How long a run may take; then it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<TimeSpan>,
    /// So many failures in a row stop the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// How long after the first start its first run is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<TimeSpan>,
    /// It has to pass once before anything is handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<bool>,
    /// Within which time it has to pass once all undos have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<TimeSpan>,
}

impl Probe {
    /// Where it is done.
    pub fn on(&self) -> &ProbeOn {
        self.on.as_ref().unwrap_or(&ProbeOn::Targets)
    }

    /// The time from one run to the next.
    pub fn interval(&self) -> TimeSpan {
        self.interval.unwrap_or(DEFAULT_INTERVAL)
    }

    /// How long a run may take.
    pub fn timeout(&self) -> TimeSpan {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }

    /// How many failures in a row stop the task.
    pub fn failures(&self) -> u32 {
        self.failures.unwrap_or(DEFAULT_FAILURES)
    }

    /// Whether it has to pass before anything is handed out.
    pub fn is_before(&self) -> bool {
        self.before == Some(true)
    }

    /// Within which time it has to pass afterwards; zero if it need not. A task without an undo has nothing to recover
    /// from unless that is said.
    pub fn after(&self, has_undo: bool) -> TimeSpan {
        self.after.unwrap_or(match has_undo {
            true => DEFAULT_AFTER,
            false => TimeSpan::default(),
        })
    }

    /// The size of its texts in bytes.
    pub fn text_bytes(&self) -> usize {
        self.texts().map(str::len).sum()
    }

    /// The size of its texts in JSON, in bytes.
    pub fn json_bytes(&self) -> usize {
        self.texts().map(super::task::json_bytes).sum()
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let http = self.http.as_ref();
        let contains = http.and_then(|http| http.contains.as_deref());
        let url = http.map(|http| &*http.url);
        let lines = [Some(&*self.name), self.command.as_deref(), url, contains];
        let argv = self.argv.iter().flatten().map(String::as_str);
        lines.into_iter().flatten().chain(argv)
    }
}

impl ReadOnlyFields for Probe {
    const READ_ONLY: &[&str] = &[
        "state", "runs", "failed", "inARow", "machine", "lastAt", "msg", "output", "lastMs",
        "maxMs",
    ];
}

/// A request of a probe. It passes if the answer has a wanted status, and a wanted text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpProbe {
    /// What is asked for, by GET.
    pub url: String,
    /// The wanted statuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Statuses>,
    /// A text in the beginning of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
}

impl HttpProbe {
    /// Reads one from a JSON object only, see [`StrictObject`].
    fn strict<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        let http: Option<StrictObject<HttpProbe>> = Option::deserialize(deserializer)?;
        Ok(http.map(|http| http.0))
    }
}

/// Statuses of answers. Written as they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statuses {
    /// This one.
    One(u16),
    /// From the first to the last.
    Range(u16, u16),
    /// These.
    List(Vec<u16>),
}

const EXPECTED_STATUSES: &str = "a status, a list of them, or a range such as \"200-299\"";

impl Statuses {
    /// Whether a status is one of them.
    pub fn has(&self, status: u16) -> bool {
        match self {
            Statuses::One(one) => *one == status,
            Statuses::Range(first, last) => (*first..=*last).contains(&status),
            Statuses::List(list) => list.contains(&status),
        }
    }

    fn range(text: &str) -> Option<Statuses> {
        let number = |text: &str| {
            let text = text.trim();
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|_| is_number);
            number.filter(|status| STATUSES.contains(status))
        };
        match text.split_once('-') {
            None => number(text).map(Statuses::One),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Statuses::Range(first, last))
            }
        }
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Statuses::One(one) => one.fmt(f),
            Statuses::Range(first, last) => write!(f, "{first}-{last}"),
            Statuses::List(list) => {
                let list: Vec<String> = list.iter().map(u16::to_string).collect();
                f.write_str(&list.join(", "))
            }
        }
    }
}

impl Serialize for Statuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Statuses::One(one) => one.serialize(serializer),
            Statuses::Range(..) => serializer.collect_str(self),
            Statuses::List(list) => list.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StatusVisitor;

        impl<'de> Visitor<'de> for StatusVisitor {
            type Value = Statuses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED_STATUSES)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Statuses, E> {
                let status = u16::try_from(number).ok();
                let status = status.filter(|status| STATUSES.contains(status));
                status
                    .map(Statuses::One)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Statuses, E> {
                Statuses::range(text)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Statuses, A::Error> {
                let mut list = Vec::new();
                while let Some(status) = entries.next_element::<u16>()? {
                    if list.len() >= MAX_STATUSES || !STATUSES.contains(&status) {
                        let of = de::Unexpected::Unsigned(status.into());
                        return Err(de::Error::invalid_value(of, &self));
                    }
                    list.push(status);
                }
                match list.is_empty() {
                    true => Err(de::Error::invalid_length(0, &self)),
                    false => Ok(Statuses::List(list)),
                }
            }
        }
        deserializer.deserialize_any(StatusVisitor)
    }
}

/// Where a probe is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOn {
    /// On every target that runs.
    Targets,
    /// On one machine whose label matches this regular expression and that is no target.
    Machine(String),
}

impl Serialize for ProbeOn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Object<'a> {
            machine_pattern: &'a str,
        }
        match self {
            ProbeOn::Targets => serializer.serialize_str("targets"),
            ProbeOn::Machine(machine_pattern) => Object { machine_pattern }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ProbeOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Object {
            machine_pattern: String,
        }

        struct OnVisitor;

        impl<'de> Visitor<'de> for OnVisitor {
            type Value = ProbeOn;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"targets\" or an object such as {\"machinePattern\": \"^probe-\"}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ProbeOn, E> {
                match text {
                    "targets" => Ok(ProbeOn::Targets),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ProbeOn, A::Error> {
                let object = Object::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ProbeOn::Machine(object.machine_pattern))
            }
        }
        deserializer.deserialize_any(OnVisitor)
    }
}

/// Which run of which probe. An agent gives it back as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunId {
    /// The beginning of the ids of the task's executions.
    pub task: String,
    /// The number of the probe in its task, from 0.
    pub probe: u8,
    /// Where: the number of the execution whose target it is done on, or the highest number if it is no target.
    pub place: u32,
    /// The number of the run there.
    pub run: u32,
}

/// An order to run a probe once, at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeOrder {
    /// Which run.
    pub id: RunId,
    /// The name of the probe.
    pub name: String,
    /// The id of its task.
    pub task_id: String,
    /// The name of its task.
    pub task_name: String,
    /// How long a run may take.
    pub timeout: TimeSpan,
    /// How much of that is left, in milliseconds: a result that comes later does not count.
    pub within_ms: u64,
    /// A shell line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// A program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// A request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeResult {
    /// Which run.
    pub id: RunId,
    /// It passed.
    pub ok: bool,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub msg: String,
    /// The last of what it wrote, or the beginning of the answer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
}

/// The state of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeState {
    /// Nothing has been handed out yet.
    Waiting,
    /// It has to pass before anything is handed out.
    Before,
    /// It runs every now and then.
    Running,
    /// It has failed too often: the task was stopped, or was not begun.
    Failed,
    /// The task has ended, and it has not passed since.
    Recovering,
    /// It has passed since the task ended.
    Recovered,
    /// It has not passed in time since the task ended.
    NotRecovered,
    /// The task has ended, and it is not asked again.
    Ended,
}

impl ProbeState {
    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Before => "before",
            Self::Running => "running",
            Self::Failed => "failed",
            Self::Recovering => "recovering",
            Self::Recovered => "recovered",
            Self::NotRecovered => "notRecovered",
            Self::Ended => "ended",
        }
    }
}

/// A probe as answered: what was posted, and how its runs went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnsweredProbe<S = String> {
    /// As it was posted.
    #[serde(flatten)]
    pub posted: Probe,
    /// Its state.
    pub state: ProbeState,
    /// How often it has run, on all machines.
    pub runs: u32,
    /// How many of the runs have failed.
    pub failed: u32,
    /// How many have failed in a row until now, on the machine where these are most.
    pub in_a_row: u32,
    /// The label of the machine of the last run.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub machine: Option<S>,
    /// When the last run ended, RFC 3339.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub last_at: Option<S>,
    /// Why the last run failed; empty if it did not.
    pub msg: S,
    /// The last of what the last run wrote.
    pub output: S,
    /// How long the last run took that gave a result, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<u64>,
    /// How long the longest of them took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::strict_object::Posted;
    use serde_json::{Value, from_value, json};

    #[test]
    fn what_is_read_is_written_again() {
        let posted = json!({
            "name": "p99", "http": {"url": "http://shop/", "status": "200-299", "contains": "ok"},
            "on": {"machinePattern": "^probe-"}, "interval": 5, "timeout": 1.5, "failures": 3,
            "delay": 1, "before": true, "after": 60,
        });
        let read: Probe = from_value(posted.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), posted);
        for status in [json!(204), json!([200, 404]), json!("200-204")] {
            let read: Statuses = from_value(status.clone()).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), status);
            assert!(!read.has(500));
        }
        assert!(DEFAULT_STATUSES.has(200) && DEFAULT_STATUSES.has(299));
        assert!(!DEFAULT_STATUSES.has(199) && !DEFAULT_STATUSES.has(300));
    }

    #[test]
    fn an_answer_can_be_posted_again() {
        let answered = AnsweredProbe {
            posted: Probe {
                name: "p".into(),
                command: Some("true".into()),
                on: Some(ProbeOn::Targets),
                ..Probe::default()
            },
            state: ProbeState::Running,
            runs: 3,
            failed: 1,
            in_a_row: 1,
            machine: Some("m".to_owned()),
            last_at: Some("t".into()),
            msg: "exit code 1".into(),
            output: "o".into(),
            last_ms: Some(1),
            max_ms: Some(2),
        };
        let text = serde_json::to_string(&answered).unwrap();
        let again: AnsweredProbe = serde_json::from_str(&text).unwrap();
        assert_eq!(again, answered);
        let posted: Posted<Probe> = serde_json::from_str(&text).unwrap();
        assert_eq!(posted.0, answered.posted);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_would_be_right() {
        let wrong = |value: Value, words: &str| {
            let error = from_value::<Probe>(value).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        let http = |status: Value| json!({"name": "p", "http": {"url": "u", "status": status}});
        for status in [
            json!("ok"),
            json!("300-200"),
            json!(99),
            json!("200-700"),
            json!([]),
            json!([0]),
        ] {
            wrong(http(status), "a range such as \"200-299\"");
        }
        wrong(json!({"name": "p", "http": ["u"]}), "an object");
        let on = "{\"machinePattern\": \"^probe-\"}";
        wrong(json!({"name": "p", "on": "target"}), on);
        wrong(
            json!({"name": "p", "on": {"pattern": "x"}}),
            "machinePattern",
        );
        wrong(json!({"name": "p", "every": 1}), "unknown field `every`");
    }
}
