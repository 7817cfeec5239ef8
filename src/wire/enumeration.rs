//! Values that are one of a few words. Whatever else is sent, the error names the words.

use serde::Deserializer;
use serde::de::{Error, Unexpected, Visitor};
use std::fmt;

/// The words of an enumeration and what they mean.
pub type Words<T> = &'static [(&'static str, T)];

/// Reads one of these words.
pub fn deserialize<'de, T: Copy, D: Deserializer<'de>>(
    words: Words<T>,
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(WordVisitor(words))
}

struct WordVisitor<T: 'static>(Words<T>);

impl<T: Copy> Visitor<'_> for WordVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.0.len() - 1;
        for (n, (word, _)) in self.0.iter().enumerate() {
            let before = match n {
                0 => "",
                n if n == last => " or ",
                _ => ", ",
            };
            write!(f, "{before}{word:?}")?;
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        let known = self.0.iter().find(|(word, _)| *word == text);
        known
            .map(|(_, value)| *value)
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}
