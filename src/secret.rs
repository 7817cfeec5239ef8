//! Tokens: reads them and keeps them out of logs and messages.
//!
//! They come from the environment or from a file, never from a flag: every user of a machine can read the
//! arguments of its processes. [`Secret`] has no `Display`, and its `Debug` does not contain the token.

use std::fmt;

/// The longest token, in bytes: it is sent in a header.
const MAX_TOKEN_BYTES: usize = 1_024;
/// The largest file of tokens, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A token that another process of this program has read.
    pub fn new(token: &str) -> Result<Self, String> {
        let mut found = checked("the token", [token].into_iter())?;
        found.pop().ok_or_else(|| "the token is empty".into())
    }

    #[cfg(test)]
    pub(crate) fn for_test(token: &str) -> Self {
        Secret(token.to_owned())
    }

    /// The token itself, for the header that it is sent in.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Reads the tokens in `variable` (separated by commas) and in the file that the variable with `_FILE` appended
/// names (one on each line). The error names the source, never its content.
pub fn load(variable: &str) -> Result<Vec<Secret>, String> {
    let mut tokens = Vec::new();
    if let Some(value) = std::env::var_os(variable) {
        let text = value
            .into_string()
            .map_err(|_| format!("{variable}: must be ASCII"))?;
        tokens.extend(checked(variable, text.split(','))?);
    }
    let variable = format!("{variable}_FILE");
    if let Some(path) = std::env::var_os(&variable).filter(|path| !path.is_empty()) {
        let cannot =
            |why: &dyn fmt::Display| format!("{variable}: cannot read {}: {why}", path.display());
        let size = std::fs::metadata(&path).map_err(|why| cannot(&why))?.len();
        if size > MAX_FILE_BYTES {
            return Err(cannot(&format_args!(
                "it has more than {MAX_FILE_BYTES} bytes"
            )));
        }
        let text = std::fs::read_to_string(&path).map_err(|why| cannot(&why))?;
        let found = checked(&variable, text.lines())?;
        if found.is_empty() {
            return Err(cannot(&"there is no token in it"));
        }
        tokens.extend(found);
    }
    Ok(tokens)
}

/// Reads the one secret in `variable`, or in the file that the variable with `_FILE` appended names, as it is: any text
/// in one line. The error names the source, never its content.
#[cfg(feature = "pg")]
pub fn load_one(variable: &str) -> Result<Option<Secret>, String> {
    let in_file = format!("{variable}_FILE");
    let path = std::env::var_os(&in_file).filter(|path| !path.is_empty());
    let value = std::env::var_os(variable).filter(|value| !value.is_empty());
    let (source, text) = match (value, path) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(format!("{variable}, {in_file}: set only one of them")),
        (Some(value), None) => {
            let text = value.into_string();
            (
                variable,
                text.map_err(|_| format!("{variable}: must be UTF-8"))?,
            )
        }
        (None, Some(path)) => {
            let cannot = |why: &dyn fmt::Display| {
                format!("{in_file}: cannot read {}: {why}", path.display())
            };
            let size = std::fs::metadata(&path).map_err(|why| cannot(&why))?.len();
            if size > MAX_FILE_BYTES {
                return Err(cannot(&format_args!(
                    "it has more than {MAX_FILE_BYTES} bytes"
                )));
            }
            let text = std::fs::read_to_string(&path).map_err(|why| cannot(&why))?;
            let line = text.trim_end_matches(['\r', '\n']);
            (in_file.as_str(), line.to_owned())
        }
    };
    match text.is_empty() || text.chars().any(char::is_control) {
        true => Err(format!("{source}: must be one line of text")),
        false => Ok(Some(Secret(text))),
    }
}

fn checked<'a>(source: &str, words: impl Iterator<Item = &'a str>) -> Result<Vec<Secret>, String> {
    let words = words.map(str::trim).filter(|word| !word.is_empty());
    let tokens = words.map(|word| {
        let good = word.len() <= MAX_TOKEN_BYTES && word.bytes().all(|b| b.is_ascii_graphic());
        good.then(|| Secret(word.to_owned())).ok_or_else(|| {
            format!("{source}: a token must have {MAX_TOKEN_BYTES} visible ASCII characters at most, and no blanks")
        })
    });
    tokens.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_listed_and_never_shown() {
        let tokens = checked("X", "one, two,,three ".split(',')).unwrap();
        assert_eq!(
            tokens.iter().map(Secret::expose).collect::<Vec<_>>(),
            ["one", "two", "three"]
        );
        assert!(!format!("{tokens:?}").contains("one"));
        let error = checked("X", ["se cret"].into_iter()).unwrap_err();
        assert!(!error.contains("cret") && error.contains("X"));
    }
}
