//! A `machinePattern`: a regular expression that is searched in labels.

use super::TextLimits;
use super::match_index::Matches;
use crate::rules::wrong_regex;
use regex::{Regex, RegexBuilder};
use std::sync::Arc;

/// How deep groups and repetitions of a pattern may be nested. Compiling it recurses as deep, on the
/// small stack of a server thread.
const MAX_NESTING: u32 = 50;

/// A pattern, searched unanchored in labels. It is compiled while a task is submitted with it or waits
/// under it; a stored task keeps the text only, which takes a thousandth of the memory.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: Arc<str>,
    compiled: Option<Arc<Regex>>,
    /// What was found outside the lock, until the pattern is known.
    matches: Option<Arc<Matches>>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Compiles a pattern, unless `known` gives a compiled one. The error says what is wrong with it.
    pub fn compiled(
        text: &str,
        limits: &TextLimits,
        known: impl FnOnce(&str) -> Option<Pattern>,
    ) -> Result<Pattern, String> {
        if text.is_empty() {
            return Err("machinePattern: must not be empty; \".*\" matches every label".into());
        }
        if text.len() > limits.pattern {
            return Err(format!(
                "machinePattern: must have {} bytes at most (--max-pattern), got {}",
                limits.pattern,
                text.len()
            ));
        }
        if let Some(pattern) = known(text) {
            return Ok(pattern);
        }
        let regex = build(text, limits.compiled)?;
        Ok(Pattern {
            text: text.into(),
            compiled: Some(Arc::new(regex)),
            matches: None,
        })
    }

    /// A pattern that was accepted before; it is not compiled.
    pub(super) fn accepted(text: Arc<str>) -> Pattern {
        Pattern {
            text,
            compiled: None,
            matches: None,
        }
    }

    /// Drops the compiled form; it can be compiled again.
    pub(super) fn drop_compiled(&mut self) {
        (self.compiled, self.matches) = (None, None);
    }

    pub(super) fn set_matches(&mut self, matches: Matches) {
        self.matches = Some(Arc::new(matches));
    }

    /// Which labels of a snapshot match, if that has been found out.
    pub(super) fn matches_of_snapshot(&self) -> Option<Arc<Matches>> {
        self.matches.clone()
    }

    /// The pattern as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a label matches; false if the pattern is not compiled.
    pub fn matches(&self, label: &str) -> bool {
        self.compiled
            .as_ref()
            .is_some_and(|regex| regex.is_match(label))
    }

    /// A compiled copy. An accepted pattern compiles again, without today's size limit; should that ever
    /// fail, it matches no label.
    pub(super) fn to_compiled(&self) -> Pattern {
        Pattern {
            text: self.text.clone(),
            compiled: self
                .compiled
                .clone()
                .or_else(|| build(&self.text, usize::MAX).ok().map(Arc::new)),
            matches: None,
        }
    }
}

fn build(text: &str, max_bytes: usize) -> Result<Regex, String> {
    let built = RegexBuilder::new(text)
        .size_limit(max_bytes)
        .nest_limit(MAX_NESTING)
        .build();
    built.map_err(|error| {
        if let regex::Error::CompiledTooBig(most) = error {
            return format!(
                "machinePattern: must have {most} bytes at most when compiled (--max-compiled-pattern)"
            );
        }
        let reason = wrong_regex(text, &error);
        format!("machinePattern: must be a regular expression: {reason}")
    })
}
