//! Checks that both ends share: the server applies them to what agents and users send, the agent to its own
//! settings. To add one: a function here without I/O, called by both.

/// The longest label of an agent, and the default limit of a server, in bytes. A host name has at most 253.
pub const MAX_LABEL_BYTES: usize = 255;
/// The most commands an agent may run at the same time. More is a mistake: each has a thread and two pipes.
pub const MAX_JOBS: u32 = 1_000;

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
