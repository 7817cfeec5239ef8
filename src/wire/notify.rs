//! Notifications: whom a task tells of its events, as posted and as answered, and what is sent.

use super::bounded;
use super::enumeration::{self, Words};
use super::rollout::StoppedBy;
use super::task::{Counts, Mode, TaskState};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// Something that happened to a task, or to a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NotifyEvent {
    /// The first of its commands has started.
    Started,
    /// The task has ended.
    Ended,
    /// The task has ended otherwise than well.
    Failed,
    /// The task was stopped.
    Stopped,
    /// A firing of its schedule became no task.
    Missed,
}

impl NotifyEvent {
    /// Every event, as the API lists them.
    pub const ALL: [Self; 5] = [
        Self::Started,
        Self::Ended,
        Self::Failed,
        Self::Stopped,
        Self::Missed,
    ];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Ended => "ended",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Missed => "missed",
        }
    }
}

impl<'de> Deserialize<'de> for NotifyEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WORDS: Words<NotifyEvent> = &[
            ("started", NotifyEvent::Started),
            ("ended", NotifyEvent::Ended),
            ("failed", NotifyEvent::Failed),
            ("stopped", NotifyEvent::Stopped),
            ("missed", NotifyEvent::Missed),
        ];
        enumeration::deserialize(WORDS, deserializer)
    }
}

/// Whom a task tells of which events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Notify {
    /// Where a request is sent to.
    pub url: String,
    /// The events.
    #[serde(default = "Notify::default_on", deserialize_with = "bounded::list")]
    pub on: Vec<NotifyEvent>,
}

impl Notify {
    /// The events of which a notification tells that names none.
    pub fn default_on() -> Vec<NotifyEvent> {
        vec![NotifyEvent::Ended]
    }
}

/// How far a notification has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NotificationState {
    /// It waits for its next try, or is being sent.
    Pending,
    /// It was taken.
    Delivered,
    /// It was given up.
    Dead,
}

impl NotificationState {
    /// Every state, as the API lists them.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Dead];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

/// A notification of a task as answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnsweredNotification<S = String> {
    /// What every try sends as `webhook-id`.
    pub id: S,
    /// Where it is sent to.
    pub url: S,
    /// What it tells of.
    pub event: NotifyEvent,
    /// How far it has come.
    pub state: NotificationState,
    /// How often it was tried.
    pub tries: u32,
    /// Why the last try failed.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub last_error: Option<S>,
    /// When it is tried next, RFC 3339.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub next_try: Option<S>,
}

/// What is sent: the task without its output, as it was at the event; or the schedule whose firing was missed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// What happened.
    pub event: NotifyEvent,
    /// When, RFC 3339.
    pub at: String,
    /// What it happened to.
    #[serde(flatten)]
    pub subject: Subject,
    /// Where people see it, if the server knows its own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// What something happened to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Subject {
    /// A task.
    Task(Box<NotifiedTask>),
    /// A schedule.
    Schedule(Box<MissedFiring>),
}

/// A task in a notification.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(
    missing_docs,
    reason = "the fields of Task of the same names are documented"
)]
pub struct NotifiedTask {
    pub id: String,
    pub name: String,
    pub state: TaskState,
    pub machine_pattern: String,
    pub mode: Mode,
    pub matched: u32,
    pub counts: Counts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<StoppedBy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun_of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub created_at: String,
    /// When the first of its commands started, RFC 3339.
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
}

/// A firing that became no task, in a notification.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissedFiring {
    /// The id of the schedule.
    pub schedule: String,
    /// The name of the task that it would have been.
    pub name: String,
    /// The nominal time, RFC 3339.
    pub scheduled_for: String,
    /// Why.
    pub reason: String,
}
