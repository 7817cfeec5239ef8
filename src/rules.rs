//! Checks and limits that both ends share: the server applies them to what agents and users send, the others to their
//! own settings and before they send. To add one: a function here without I/O, or a constant, used by both.

use std::collections::{BTreeMap, BTreeSet};

/// The longest label of an agent, and the default limit of a server, in bytes. A host name has at most 253.
pub const MAX_LABEL_BYTES: usize = 255;
/// The most commands an agent may run at the same time. More is a mistake: each has a thread and two pipes.
pub const MAX_JOBS: u32 = 1_000;

/// The longest shell line, argument or variable, in bytes: Linux takes no longer one (`MAX_ARG_STRLEN`).
pub const MAX_ARGUMENT_BYTES: usize = 131_071;
/// The longest script and the longest standard input, in bytes. A server accepts less if its --max-body is lower.
pub const MAX_SCRIPT_BYTES: usize = 1 << 20;
/// As above.
pub const MAX_STDIN_BYTES: usize = 1 << 20;

/// The most tags of a machine.
pub const MAX_TAGS: usize = 16;
/// The longest name of a tag, in bytes.
pub const MAX_TAG_NAME_BYTES: usize = 63;
/// The longest value of a tag, in bytes.
pub const MAX_TAG_VALUE_BYTES: usize = 255;

/// The error of a regular expression in one line, with a hint if a shell pattern was probably meant.
#[cfg(any(feature = "server", feature = "agent"))]
pub fn wrong_regex(pattern: &str, why: &regex::Error) -> String {
    let text = why.to_string();
    let reason = text.lines().last().unwrap_or_default();
    let reason = reason.trim_start_matches("error: ");
    match pattern.contains('*') && reason.contains("repetition") {
        true => format!("{reason}; for any text write .* in place of *"),
        false => reason.to_owned(),
    }
}

/// Checks a label. `by` says what sets the limit.
pub fn check_label(label: &str, max_bytes: usize, by: &str) -> Result<(), String> {
    if label.is_empty() {
        return Err("must not be empty".into());
    }
    if label.len() > max_bytes {
        return Err(format!(
            "must have {max_bytes} bytes at most{by}, got {}",
            label.len()
        ));
    }
    if label.chars().any(char::is_control) {
        return Err("must not contain control characters".into());
    }
    Ok(())
}

/// Checks the tags of a machine.
pub fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), String> {
    if tags.len() > MAX_TAGS {
        return Err(format!(
            "a machine has {MAX_TAGS} tags at most, got {}",
            tags.len()
        ));
    }
    for (name, value) in tags {
        check_tag_name(name)?;
        if value.len() > MAX_TAG_VALUE_BYTES || value.chars().any(char::is_control) {
            return Err(format!(
                "the value of {name} must have {MAX_TAG_VALUE_BYTES} bytes at most, and no control characters"
            ));
        }
    }
    let names: BTreeSet<String> = tags.keys().map(|name| tag_variable(name)).collect();
    if names.len() < tags.len() {
        return Err("two names are the same variable of the environment".into());
    }
    Ok(())
}

/// Checks the name of a tag.
pub fn check_tag_name(name: &str) -> Result<(), String> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    if (1..=MAX_TAG_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_good) {
        return Ok(());
    }
    Err(format!(
        "the name of a tag must be 1 to {MAX_TAG_NAME_BYTES} letters, digits, \"-\", \"_\", \".\" and \"/\", got {name:?}"
    ))
}

/// The variable in which a command finds a tag of its machine.
pub fn tag_variable(name: &str) -> String {
    let upper = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_uppercase(),
        false => '_',
    };
    let name: String = name.chars().map(upper).collect();
    format!("SIDEBIKE_TAG_{name}")
}

/// Finds the value that a word stands for. The error lists the words.
pub fn one_of<T: Copy>(
    all: &[T],
    word: impl Fn(T) -> &'static str,
    text: &str,
) -> Result<T, String> {
    let found = all.iter().copied().find(|one| word(*one) == text);
    found.ok_or_else(|| {
        let words: Vec<&str> = all.iter().map(|one| word(*one)).collect();
        format!("expected one of {}", words.join(", "))
    })
}
