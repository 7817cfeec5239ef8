//! What an agent and the server say to each other.
//!
//! Four calls, all `POST` with a JSON body, all safe to repeat:
//!
//! | path | body | `data` of the answer |
//! | --- | --- | --- |
//! | `/api/v1/agent/poll` | [`Poll`] | [`Orders`]; held until there is something to do |
//! | `/api/v1/agent/output` | [`Output`] | [`Orders`] |
//! | `/api/v1/agent/done` | [`Done`] | [`Taken`] |
//! | `/api/v1/agent/goodbye` | [`Goodbye`] | `null` |
//!
//! Unknown fields are ignored here, so that agents and servers of different versions get along.
//! Points in time travel as "so many milliseconds ago": the clocks of containers are not to be trusted.

use super::duration::TimeSpan;
use super::task::ExecutionState;
use serde::{Deserialize, Serialize};

/// "Here I am; what is there to do?" Also the heartbeat.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Poll {
    /// The random id of this agent process.
    pub instance: String,
    /// Counts up with every poll of this instance: a late or repeated one is recognized by it.
    pub seq: u64,
    /// The name the machine is addressed by.
    pub label: String,
    /// The host name.
    #[serde(default)]
    pub host: String,
    /// The version of the agent.
    #[serde(default)]
    pub version: String,
    /// How many commands it runs at once.
    pub jobs: u32,
    /// Takes no more work, is about to end.
    #[serde(default)]
    pub draining: bool,
    /// How long the server may hold the poll; it may answer sooner.
    #[serde(default)]
    pub wait: TimeSpan,
    /// Every execution the agent was handed and whose result the server has not taken yet.
    #[serde(default)]
    pub holds: Vec<Hold>,
}

/// One attempt of one execution.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttemptId {
    /// The execution's id.
    pub execution: String,
    /// The attempt's number.
    pub attempt: u32,
}

/// What an agent does with an attempt it was handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HoldState {
    /// Its command runs.
    Running,
    /// Its command is being killed.
    Ending,
    /// Its command has ended, the result is on its way.
    Ended,
}

/// An attempt in the agent's hands.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// Which.
    #[serde(flatten)]
    pub id: AttemptId,
    /// What the agent does with it.
    pub state: HoldState,
    /// How long ago its command was started, in milliseconds.
    #[serde(default)]
    pub started_ago_ms: u64,
}

/// What the server wants of an agent. `D` is the detail: a [`super::task::Detail`] where it is
/// written, a plain JSON value where it is read, so that an agent can refuse the one task whose
/// detail it does not understand.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Orders<D> {
    /// Start these.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<Assignment<D>>,
    /// Kill these, and report them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cancel: Vec<AttemptId>,
    /// Nobody asks for these any more: let them run, report nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forget: Vec<AttemptId>,
}

impl<D> Orders<D> {
    /// Nothing to do.
    pub fn none() -> Self {
        Orders {
            start: Vec::new(),
            cancel: Vec::new(),
            forget: Vec::new(),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.start.is_empty() && self.cancel.is_empty() && self.forget.is_empty()
    }
}

/// An attempt handed to an agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment<D> {
    /// Which.
    #[serde(flatten)]
    pub id: AttemptId,
    /// The id of its task.
    pub task_id: String,
    /// The name of its task.
    pub task_name: String,
    /// What to run.
    pub detail: D,
}

/// A stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output. Its place is given by its offset, so a repeated piece does no harm.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Piece {
    /// Of which attempt.
    #[serde(flatten)]
    pub id: AttemptId,
    /// Of which stream.
    pub stream: Stream,
    /// How many bytes of the stream the command had written before.
    pub offset: u64,
    /// The bytes.
    #[serde(with = "as_base64")]
    pub data: Vec<u8>,
}

/// Output of commands that still run, in the order in which it came.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Who says so.
    pub instance: String,
    /// The pieces.
    pub pieces: Vec<Piece>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Which.
    #[serde(flatten)]
    pub id: AttemptId,
    /// `succeeded`, `failed`, `timedOut` or `canceled`.
    pub state: ExecutionState,
    /// The exit code, when the command exited.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The name of the signal that ended it, such as `SIGKILL`.
    #[serde(default)]
    pub signal: Option<String>,
    /// Why it did not succeed.
    #[serde(default)]
    pub msg: String,
    /// How long ago it ended, in milliseconds.
    #[serde(default)]
    pub ended_ago_ms: u64,
    /// How long it ran, in milliseconds; absent when it could not be started.
    #[serde(default)]
    pub duration_ms: Option<u64>,
    /// How many bytes the command wrote to standard output.
    #[serde(default)]
    pub stdout_bytes: u64,
    /// How many bytes the command wrote to standard error.
    #[serde(default)]
    pub stderr_bytes: u64,
}

/// Results, with the last of their output.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    /// Who says so.
    pub instance: String,
    /// Asks for orders to start in the answer: the `seq` of the agent's latest poll. They are handed
    /// out, and obeyed, only as long as that is its latest: what a later poll does not list never
    /// arrived. Absent when there is no room for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Output that had not been shipped; taken in before the results.
    #[serde(default)]
    pub pieces: Vec<Piece>,
    /// The results.
    pub results: Vec<Ended>,
}

/// What became of the reported results. Whatever is listed need not be reported again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taken<D> {
    /// One entry per result, in the order of the report.
    pub results: Vec<Verdict>,
    /// What is to be started next, if the report asked for that.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<Assignment<D>>,
}

/// What became of one reported result.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Which.
    #[serde(flatten)]
    pub id: AttemptId,
    /// Whether the result counts (also when it had been taken before).
    pub taken: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub msg: String,
}

/// "I end now." What was handed to the instance and is not in `holds` was never started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Goodbye {
    /// Who says so.
    pub instance: String,
    /// What it started and could not report.
    #[serde(default)]
    pub holds: Vec<Hold>,
}

/// Bytes as base64 text.
mod as_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};
    use std::borrow::Cow;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(de::Error::custom)
    }
}
