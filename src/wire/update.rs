//! A task that replaces the program of agents.

use super::bounded;
use super::duration::TimeSpan;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The longest time that a new program has until its first complete poll.
pub const MAX_PROBATION: TimeSpan = TimeSpan::from_secs(60);
/// That time unless the task says otherwise. It is below the 45 s after which a silent machine counts as offline: an old
/// program that is back after them could not report why.
pub const DEFAULT_PROBATION: TimeSpan = TimeSpan::from_secs(30);
/// The longest version, in bytes.
const MAX_VERSION_BYTES: usize = 64;

/// The program that agents are to run from now on, as posted, as answered, and as handed to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Update {
    /// Its version, such as 0.2.0.
    pub version: String,
    /// For each architecture, as `uname -m` has it, the SHA-256 of the program: a blob, or what the server hands out.
    #[serde(deserialize_with = "bounded::map")]
    pub images: BTreeMap<String, String>,
    /// How long it has until its first complete poll.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probation: Option<TimeSpan>,
}

impl Update {
    /// How long it has until its first complete poll.
    pub fn probation(&self) -> TimeSpan {
        self.probation.unwrap_or(DEFAULT_PROBATION)
    }
}

/// A version that can be compared: three numbers, and what follows them after a hyphen.
///
/// `1.2.0` is newer than `1.2.0-rc.1`; two texts after the hyphen are compared as texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    numbers: [u32; 3],
    is_release: bool,
    pre: String,
}

impl std::str::FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a version such as 0.2.0, got {:?}", short(text));
        let (numbers, pre) = text.split_once('-').unwrap_or((text, ""));
        let mut parts = numbers.split('.').map(|part| match part.len() {
            1..=9 if part.bytes().all(|byte| byte.is_ascii_digit()) => part.parse().ok(),
            _ => None,
        });
        let mut next = || parts.next().flatten().ok_or_else(wrong);
        let numbers = [next()?, next()?, next()?];
        let is_pre = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+');
        if parts.next().is_some()
            || text.len() > MAX_VERSION_BYTES
            || text.ends_with('-')
            || !pre.bytes().all(is_pre)
        {
            return Err(wrong());
        }
        Ok(Version {
            numbers,
            is_release: pre.is_empty(),
            pre: pre.to_owned(),
        })
    }
}

/// The beginning of a text, for a message.
fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_VERSION_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_their_numbers_say() {
        let ordered = [
            "0.1.0-a", "0.1.0-b", "0.1.0", "0.1.1", "0.2.0", "0.10.0", "1.0.0",
        ];
        let versions = ordered.map(|text| text.parse::<Version>().unwrap());
        assert!(
            versions.is_sorted_by(|one, next| one < next),
            "{versions:?}"
        );
        for wrong in [
            "", "1", "1.2", "1.2.3.4", "v1.2.3", "1.2.x", "1.2.3-", "1..3", "1.2.3 ",
        ] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong:?}");
        }
        assert!(
            format!("1.2.3-{}", "é".repeat(99))
                .parse::<Version>()
                .is_err()
        );
    }
}
