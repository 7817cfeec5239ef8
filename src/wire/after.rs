//! What a task begins after: as posted, and as answered.

use super::enumeration::{self, Words};
use super::rollout::Share;
use super::strict_object::ReadOnlyFields;
use serde::{Deserialize, Deserializer, Serialize};

/// With which end of another task a task begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It succeeded.
    #[default]
    Succeeded,
    /// It failed, in part or altogether, or was not started in time.
    Failed,
    /// It ended, however.
    Ended,
}

impl Outcome {
    const WORDS: Words<Outcome> = &[
        ("succeeded", Outcome::Succeeded),
        ("failed", Outcome::Failed),
        ("ended", Outcome::Ended),
    ];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Succeeded => "succeeded",
            Outcome::Failed => "failed",
            Outcome::Ended => "ended",
        }
    }

    /// The outcome of this word.
    pub fn of_word(text: &str) -> Option<Outcome> {
        let known = Self::WORDS.iter().find(|(word, _)| *word == text);
        known.map(|(_, outcome)| *outcome)
    }
}

impl<'de> Deserialize<'de> for Outcome {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        enumeration::deserialize(Self::WORDS, deserializer)
    }
}

/// Another task that has to end first, as posted.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(
    missing_docs,
    reason = "the answer's fields of the same names are documented"
)]
pub struct PostedAfter {
    pub task: Option<String>,
    pub group: Option<String>,
    pub on: Option<Outcome>,
    pub min_succeeded: Option<Share>,
    pub per_machine: Option<bool>,
}

impl ReadOnlyFields for PostedAfter {
    const READ_ONLY: &[&str] = &["members", "met"];
}

/// The same as answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct After<S = String> {
    /// The id of the task.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub task: Option<S>,
    /// Or the name of the group.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub group: Option<S>,
    /// How many tasks that group had at the submit: these are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,
    /// With which end of it.
    pub on: Outcome,
    /// A part is enough: so many of its executions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_succeeded: Option<Share>,
    /// Machine by machine: each execution waits for that task's execution on the same instance.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_machine: bool,
    /// Whether it ended so; absent until it has ended, and with `per_machine` unless it never began anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}
