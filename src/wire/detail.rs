//! What a task runs.

use super::agent::Feature;
use super::bounded;
use super::duration::{TimeSpan, Timeout};
use super::rollout::Rollout;
use super::strict_object::ReadOnlyFields;
use super::undo::Undo;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The default time-out of a command.
pub const DEFAULT_TIMEOUT: TimeSpan = TimeSpan::from_secs(180);
/// The default time between TERM and KILL.
pub const DEFAULT_KILL_GRACE: TimeSpan = TimeSpan::from_secs(5);

/// What to run, as posted, as answered, and as handed to an agent. It has exactly one of `command`, `argv` and `script`. An
/// unknown field is an error wherever this is read; otherwise a request would silently be ignored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Detail {
    /// A shell line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// A program and its arguments, run without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "bounded::some_list")]
    pub argv: Option<Vec<String>>,
    /// A script, run by the interpreter that its first line names, else by the shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The arguments of the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "bounded::some_list")]
    pub script_args: Option<Vec<String>>,
    /// The folder it runs in; the agent's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// How long it may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// The time between TERM and KILL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_grace: Option<TimeSpan>,
    /// Extra variables of its environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "bounded::some_map")]
    pub env: Option<BTreeMap<String, String>>,
    /// The text of its standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Its standard input as base64, in place of `stdin`: any bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_base64: Option<String>,
    /// The user it runs as, by name or number; the agent's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What takes back its effect, whatever happens.
    #[serde(
        default,
        deserialize_with = "Undo::strict",
        skip_serializing_if = "Option::is_none"
    )]
    pub undo: Option<Box<Undo>>,
    /// Both streams go through one pipe, as standard output, so that their order is that of the writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_output: Option<bool>,
}

impl Detail {
    /// What an agent must be able to do to run it, beyond what the first version could.
    pub fn needs(&self) -> impl Iterator<Item = Feature> {
        let needed = [
            (self.user.is_some(), Feature::User),
            (self.stdin_base64.is_some(), Feature::StdinBase64),
            (self.merge_output == Some(true), Feature::MergeOutput),
            (self.script.is_some(), Feature::Script),
            (self.undo.is_some(), Feature::Undo),
        ];
        let needed = needed.into_iter().filter(|(is_needed, _)| *is_needed);
        needed.map(|(_, feature)| feature)
    }

    /// Whether what runs is canceled when a task with this detail and rollout is stopped: an effect that can be taken back
    /// does not outlast the stop unless the task says so.
    pub fn stops_running(&self, rollout: Option<&Rollout>) -> bool {
        let asked = rollout.and_then(|rollout| rollout.stop_running);
        asked.unwrap_or(self.undo.is_some())
    }

    /// How long its texts are in JSON, in bytes: that is what is sent and read. The names of its fields and its numbers
    /// are not counted.
    pub fn json_bytes(&self) -> usize {
        let texts = [
            &self.command,
            &self.script,
            &self.workspace,
            &self.stdin,
            &self.stdin_base64,
            &self.user,
        ];
        let lists = [&self.argv, &self.script_args].into_iter().flatten();
        let variables = self.env.iter().flatten();
        let texts = { texts.into_iter().flatten() }
            .chain(lists.flatten())
            .chain(variables.flat_map(|(name, value)| [name, value]))
            .chain(self.undo.iter().flat_map(|undo| undo.texts()));
        texts.map(|text| json_bytes(text) + JSON_MARKS).sum()
    }
}

/// What stands around a text in JSON, in bytes: quotes, and a comma or colon.
const JSON_MARKS: usize = 3;

/// How many bytes each byte of a text is in JSON. A start asks for all its texts, so they are looked up.
const BYTES_IN_JSON: [u8; 256] = {
    let mut bytes = [1; 256];
    let mut byte = 0;
    while byte < bytes.len() {
        bytes[byte] = match byte as u8 {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
            0..0x20 => 6,
            _ => 1,
        };
        byte += 1;
    }
    bytes
};

/// How long a text is in JSON, in bytes: quotes and control characters are escaped.
pub fn json_bytes(text: &str) -> usize {
    let bytes = text
        .bytes()
        .map(|byte| usize::from(BYTES_IN_JSON[usize::from(byte)]));
    bytes.sum()
}

impl ReadOnlyFields for Detail {
    const READ_ONLY: &[&str] = &["result"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_as_long_in_json_as_it_is_written() {
        let all: String = (0..0x2_000).filter_map(char::from_u32).collect();
        for text in [
            "",
            "plain",
            "\u{1}\u{8}\t\n\u{b}\u{c}\r\u{1f} \"\\/\u{7f}",
            &all,
        ] {
            let written = serde_json::to_string(text).unwrap();
            assert_eq!(json_bytes(text) + 2, written.len(), "{text:?}");
        }
    }

    #[test]
    fn the_texts_of_a_detail_are_about_as_long_in_json_as_it_is_written() {
        let detail = Detail {
            argv: Some(vec!["a\"b".into(); 100]),
            env: Some((0..100).map(|n| (n.to_string(), "\u{1}".into())).collect()),
            stdin: Some("\n".repeat(1_000)),
            undo: Some(Box::new(Undo {
                command: Some("\n".repeat(1_000)),
                check_argv: Some(vec!["a\"b".into(); 100]),
                ..Undo::default()
            })),
            ..Detail::default()
        };
        let written = serde_json::to_string(&detail).unwrap().len();
        let names = written - detail.json_bytes();
        assert!(names < 100, "{names}");
    }
}
