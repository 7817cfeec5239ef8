//! In which order tasks get their turn: words of a task.

use super::enumeration::{self, Words};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What becomes of a task whose `uniqueKey` another one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OnDuplicate {
    /// It is refused.
    #[default]
    Reject,
    /// The other task takes its place.
    Join,
    /// It takes the place of the other one, which is canceled.
    Replace,
}

impl OnDuplicate {
    const WORDS: Words<OnDuplicate> = &[
        ("reject", OnDuplicate::Reject),
        ("join", OnDuplicate::Join),
        ("replace", OnDuplicate::Replace),
    ];
}

impl<'de> Deserialize<'de> for OnDuplicate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        enumeration::deserialize(OnDuplicate::WORDS, deserializer)
    }
}

impl std::str::FromStr for OnDuplicate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = { OnDuplicate::WORDS.iter() }.find(|(word, _)| *word == text);
        known
            .map(|(_, value)| *value)
            .ok_or_else(|| "expected reject, join or replace".into())
    }
}

/// The place of a task among what is handed out next, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// So many less one are before it.
    At(u32),
    /// More than [`Position::MOST`] are before it.
    Beyond,
}

impl Position {
    /// So far it is counted.
    pub const MOST: u32 = 1_000;
    const BEYOND: &str = "1000+";
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Position::At(n) => serializer.serialize_u32(*n),
            Position::Beyond => serializer.serialize_str(Position::BEYOND),
        }
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u32),
            Text(#[allow(dead_code, reason = "there is one only")] String),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Number(n) => Position::At(n),
            Either::Text(_) => Position::Beyond,
        })
    }
}
