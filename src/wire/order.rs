//! In which order tasks get their turn: words of a task.

use super::enumeration::{self, Words};
use serde::{Deserialize, Deserializer, Serialize};

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
