//! Rules that hold at both ends, each written once: what an agent checks of its own settings is what
//! the server checks of agents and users. No I/O, and nothing of either end.

/// The longest label of an agent, and the longest that a server takes unless told otherwise, in
/// bytes: a host name has 253 at most.
pub const MAX_LABEL_BYTES: usize = 255;
/// The most commands an agent may run at once: more is a mistake, each has a thread and 2 pipes.
pub const MAX_JOBS: u32 = 1_000;

/// What is wrong with a regular expression, in one line, and what may be meant.
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

/// What is wrong with a label, if anything: one rule for the agent's flag and the server's door. `by`
/// says what the limit is set by.
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

/// The one of `all` that this word stands for. The error says which words there are.
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
