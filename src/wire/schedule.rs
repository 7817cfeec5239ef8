//! A schedule as it is posted, and as it is answered.

use super::duration::TimeSpan;
use super::enumeration::{self, Words};
use super::strict_object::{Posted, ReadOnlyFields};
use super::task::{PostedTask, TaskState};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// What happens when a firing is due and the one before has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Overlap {
    /// It is left out; of a task for `all`, on the machines that still run the one before.
    #[default]
    Skip,
    /// It waits for the end; one at most.
    QueueOne,
    /// The one before is canceled, and it runs as soon as that has ended.
    Replace,
    /// Both run.
    Allow,
}

impl Overlap {
    /// The words of the API.
    pub const WORDS: Words<Overlap> = &[
        ("skip", Overlap::Skip),
        ("queueOne", Overlap::QueueOne),
        ("replace", Overlap::Replace),
        ("allow", Overlap::Allow),
    ];
}

impl<'de> Deserialize<'de> for Overlap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        enumeration::deserialize(Overlap::WORDS, deserializer)
    }
}

/// What is made up for after the server was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CatchUp {
    /// Nothing.
    None,
    /// The latest firing.
    #[default]
    Latest,
    /// Every firing, the latest hundred at most.
    All,
}

impl CatchUp {
    /// The words of the API.
    pub const WORDS: Words<CatchUp> = &[
        ("none", CatchUp::None),
        ("latest", CatchUp::Latest),
        ("all", CatchUp::All),
    ];
}

impl<'de> Deserialize<'de> for CatchUp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        enumeration::deserialize(CatchUp::WORDS, deserializer)
    }
}

/// A task as JSON. It is kept as it was posted: what it may say is for the check of a task alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskJson(pub Box<RawValue>);

impl TaskJson {
    /// The text.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// What it says. The error says what is wrong.
    pub fn read(&self) -> Result<PostedTask, String> {
        let read: Result<Posted<PostedTask>, _> = serde_json::from_str(self.text());
        let Posted(task) = read.map_err(|why| format!("task: {why}"))?;
        Ok(task)
    }
}

impl PartialEq for TaskJson {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

/// A schedule as posted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PostedSchedule {
    /// A cron expression: five fields, or a short form such as `@daily`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// In place of it: the time between two firings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<TimeSpan>,
    /// The zone that the expression means, UTC when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// The task of each firing, as for a submit.
    pub task: TaskJson,
    /// What happens when the firing before has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
    /// What is made up for after the server was away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<CatchUp>,
    /// How late a firing may be; later it is missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_deadline: Option<TimeSpan>,
    /// Not before this time, RFC 3339 with an offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Not after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// It ends after so many tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// It does not fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// It pauses itself when so many firings in a row have failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after_failures: Option<u32>,
    /// How many ended firings are kept, if their ttl is not over before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
}

impl ReadOnlyFields for PostedSchedule {
    const READ_ONLY: &[&str] = &[
        "id",
        "incarnation",
        "timeZoneData",
        "state",
        "msg",
        "madeBy",
        "createdAt",
        "fired",
        "failures",
        "waits",
        "next",
        "history",
    ];
}

/// Whether a schedule fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ScheduleState {
    /// It does.
    Active,
    /// Not until it is resumed.
    Paused,
    /// Its last firing is over.
    Ended,
    /// It cannot go on; `msg` says why.
    Stopped,
}

impl ScheduleState {
    /// Every state, as the API lists them.
    pub const ALL: [Self; 4] = [Self::Active, Self::Paused, Self::Ended, Self::Stopped];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Ended => "ended",
            Self::Stopped => "stopped",
        }
    }
}

/// What became of a firing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It became a task.
    Fired,
    /// It was left out, as the one before had not ended.
    Skipped,
    /// It could not be started in time.
    Missed,
    /// The server refused its task, and tries again.
    Refused,
}

impl Outcome {
    /// Every outcome, as the API lists them.
    pub const ALL: [Self; 4] = [Self::Fired, Self::Skipped, Self::Missed, Self::Refused];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fired => "fired",
            Self::Skipped => "skipped",
            Self::Missed => "missed",
            Self::Refused => "refused",
        }
    }
}

/// A time, for machines and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BothTimes {
    /// In UTC, RFC 3339.
    pub utc: String,
    /// As clocks show it in the zone of the schedule, with the offset.
    pub local: String,
}

/// A firing of the past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Firing {
    /// The time it was due.
    #[serde(flatten)]
    pub at: BothTimes,
    /// What became of it.
    pub outcome: Outcome,
    /// The id of its task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// How its task ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TaskState>,
    /// Why it was not fired.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The time of the last of several that were missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
    /// Somebody fired it by hand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
}

/// A schedule as answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Its id.
    pub id: String,
    /// A number that no schedule has had before, also none of this id.
    pub incarnation: u64,
    /// Its expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The time between two firings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<TimeSpan>,
    /// The zone.
    pub time_zone: String,
    /// Where the data of the zone come from, and their version.
    pub time_zone_data: String,
    /// The task of each firing, as it was posted.
    pub task: TaskJson,
    /// What happens when the firing before has not ended.
    pub overlap: Overlap,
    /// What is made up for after the server was away.
    pub catch_up: CatchUp,
    /// How late a firing may be; until the next one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_deadline: Option<TimeSpan>,
    /// Not before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Not after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// It ends after so many tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// It does not fire until it is resumed.
    pub paused: bool,
    /// It pauses itself when so many firings in a row have failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after_failures: Option<u32>,
    /// How many ended firings are kept.
    pub keep: u32,
    /// Whether it fires.
    pub state: ScheduleState,
    /// Why it does not, or what else is to be known.
    pub msg: String,
    /// The token that made it, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// How many firings have become a task, without those by hand.
    pub fired: u64,
    /// How many firings in a row have failed.
    pub failures: u32,
    /// The firing that is due and has not become a task yet, and what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<WaitingFiring>,
    /// The next firings.
    pub next: Vec<BothTimes>,
    /// The last firings by the time they were due, newest last.
    #[serde(default)]
    pub history: Vec<Firing>,
}

/// A firing that is due and has not become a task yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingFiring {
    /// The time it was due.
    #[serde(flatten)]
    pub at: BothTimes,
    /// What it waits for.
    pub reason: String,
}

/// What a schedule would do, as the answer to a dry run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SchedulePreview {
    /// Where the data of the zone come from, and their version.
    pub time_zone_data: String,
    /// The next firings.
    pub next: Vec<BothTimes>,
}
