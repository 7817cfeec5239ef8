//! What people say of a task: its group, its tags, its description. Nothing of it changes what is run or where.
//!
//! Most tasks have none of it, so it is one value that is absent then. To add such a word: a field here, its check in
//! [`checked`], its bytes in [`About::kept_bytes`], and its place in the answer (`task.rs`).

use super::selector::ENTRY_BYTES;
use super::spec::{check_count, check_text, shown};
use crate::wire::task::PostedTask;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The longest name of a group, in bytes, as long as an id: it is a part of a URL.
pub const MAX_GROUP_BYTES: usize = 64;
/// The most tags of a task.
pub const MAX_TASK_TAGS: usize = 16;
/// The longest name of a tag of a task, in bytes.
pub const MAX_TAG_NAME_BYTES: usize = 64;
/// The longest value of a tag of a task, in bytes.
pub const MAX_TAG_VALUE_BYTES: usize = 256;
/// The longest description, in bytes: a paragraph. It is shown in every answer.
pub const MAX_DESCRIPTION_BYTES: usize = 1 << 10;

/// What people say of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the fields of wire::task::Task of the same names are documented"
)]
pub struct About {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

impl About {
    /// What it takes of memory, in bytes, roughly.
    pub fn kept_bytes(&self) -> usize {
        let tags = self.tags.iter();
        self.group.as_ref().map_or(0, |group| group.len())
            + self.description.as_ref().map_or(0, String::len)
            + tags
                .map(|(name, value)| name.len() + value.len() + ENTRY_BYTES)
                .sum::<usize>()
    }
}

/// Takes it from a posted task and checks it. `None` if the task says nothing.
pub(super) fn checked(posted: &mut PostedTask) -> Result<Option<Box<About>>, String> {
    if let Some(group) = &posted.group {
        check_group("group", group)?;
    }
    let tags = posted.tags.take().unwrap_or_default();
    check_count("tags", tags.len(), MAX_TASK_TAGS)?;
    for (name, value) in &tags {
        check_tag("tags", name, value)?;
    }
    let description = posted.description.take();
    if let Some(description) = &description {
        check_description(description)?;
    }
    let about = About {
        group: posted.group.take().map(Arc::from),
        tags,
        description,
    };
    Ok((about != About::default()).then(|| Box::new(about)))
}

/// Checks the name of a group.
pub fn check_group(field: &str, group: &str) -> Result<(), String> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    // Those two would be folders in a URL.
    let is_path = group == "." || group == "..";
    if (1..=MAX_GROUP_BYTES).contains(&group.len()) && group.bytes().all(is_good) && !is_path {
        return Ok(());
    }
    Err(format!(
        "{field}: must be 1 to {MAX_GROUP_BYTES} letters, digits, \"-\", \"_\" and \".\", got {}",
        shown(group)
    ))
}

/// Checks a tag of a task.
pub fn check_tag(field: &str, name: &str, value: &str) -> Result<(), String> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    if !(1..=MAX_TAG_NAME_BYTES).contains(&name.len()) || !name.bytes().all(is_good) {
        return Err(format!(
            "{field}: the name of a tag must be 1 to {MAX_TAG_NAME_BYTES} letters, digits, \"-\", \"_\", \".\" and \"/\", got {}",
            shown(name)
        ));
    }
    match value {
        "" => Ok(()),
        value => check_text(&format!("{field}.{name}"), value, MAX_TAG_VALUE_BYTES, ""),
    }
}

fn check_description(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("description: must not be empty; leave it out to have none".into());
    }
    if text.len() > MAX_DESCRIPTION_BYTES {
        return Err(format!(
            "description: must have {MAX_DESCRIPTION_BYTES} bytes at most, got {}",
            text.len()
        ));
    }
    if text.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
        return Err(
            "description: must not contain control characters other than line breaks and tabs"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_a_part_of_a_path() {
        let long = "g".repeat(MAX_GROUP_BYTES + 1);
        for wrong in ["", ".", "..", "a/b", "a b", "ü", &long] {
            let said = check_group("group", wrong).unwrap_err();
            assert!(said.starts_with("group: must be 1 to 64 "), "{said}");
        }
        for good in ["g", "nightly-2024.5_x", &long[1..]] {
            assert_eq!(check_group("group", good), Ok(()));
        }
    }

    #[test]
    fn tags_have_names_of_letters_and_values_without_control_characters() {
        assert_eq!(check_tag("tags", "team/x", "pay day"), Ok(()));
        assert_eq!(check_tag("tags", "team", ""), Ok(()));
        for (name, value) in [
            ("", "v"),
            ("a=b", "v"),
            ("a", "\n"),
            ("a", &"v".repeat(257)),
        ] {
            let said = check_tag("tags", name, value).unwrap_err();
            assert!(said.starts_with("tags"), "{said}");
        }
    }
}
