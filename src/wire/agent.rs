//! The calls of agents. There are four, all `POST` with a JSON body, all safe to repeat:
//!
//! | path | body | `data` of the answer |
//! | --- | --- | --- |
//! | `/api/v1/agent/poll` | [`Poll`] | [`Orders`]; held until there is something to do |
//! | `/api/v1/agent/output` | [`Output`] | [`Orders`] |
//! | `/api/v1/agent/done` | [`Done`] | [`Taken`] |
//! | `/api/v1/agent/goodbye` | [`Goodbye`] | `null` |
//!
//! Unknown fields are ignored here, so that agents and servers of different versions work together. Points in time
//! are sent as "milliseconds ago": the clocks of containers may be wrong.

use super::crew::{Standing, Wanted};
use super::duration::TimeSpan;
use super::files::{Fetch, FetchedFile, File, Phase};
use super::probe::{ProbeOrder, ProbeResult};
use super::task::ExecutionState;
use super::undo::{UndoReason, UndoReport};
use super::update::Update;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// The most entries in a list of an answer, in number: more than an agent can hold attempts. A longer list
/// is no answer of a sidebike server, and would only take memory.
const MAX_LISTED: usize = 4_096;

/// The poll of an agent for orders. It is also the heartbeat.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Poll {
    /// The random id of this agent process.
    pub instance: String,
    /// Increases with every poll of this instance; identifies late and repeated ones.
    pub seq: u64,
    /// The name the machine is addressed by.
    pub label: String,
    /// The host name.
    #[serde(default)]
    pub host: String,
    /// Its tags, by name. They do not change while the agent runs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The version of the agent.
    #[serde(default)]
    pub version: String,
    /// The architecture of its machine, as `uname -m` has it; older agents do not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arch: String,
    /// How many commands it runs at the same time.
    pub jobs: u32,
    /// It takes no more work because it is about to end.
    #[serde(default)]
    pub draining: bool,
    /// That is so because it was told to drain, and until it is told otherwise.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drained: bool,
    /// It is about to end, and cannot be kept from it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ending: bool,
    /// It wants to know how things stand for it, see [`Orders::standing`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub standing: bool,
    /// How long the server may hold the poll; it may answer sooner.
    #[serde(default)]
    pub wait: TimeSpan,
    /// Every attempt the agent was handed whose result the server has not taken yet.
    #[serde(default)]
    pub holds: Vec<Hold>,
    /// The undo of every attempt that it knows of and whose end the server has not taken, in its present state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undos: Vec<UndoReport>,
    /// What it can do beyond what the first version could, see [`Feature`]. A server ignores words that it does not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Something that a task, or a user, can ask for and that the first version of the agent cannot do. To add one: a variant, its word,
/// and the field of `detail` that needs it in [`super::task::Detail::needs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `detail.user`.
    User,
    /// `detail.stdinBase64`.
    StdinBase64,
    /// `detail.mergeOutput`.
    MergeOutput,
    /// `detail.script`.
    Script,
    /// `detail.undo`.
    Undo,
    /// `probes`.
    Probes,
    /// `files`.
    Files,
    /// `files` with `unpack`.
    Unpack,
    /// `fetch`.
    Fetch,
    /// It obeys [`Orders::crew`].
    Crew,
    /// `update`: its owner lets it replace its own program.
    Update,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::User,
        Self::StdinBase64,
        Self::MergeOutput,
        Self::Script,
        Self::Undo,
        Self::Probes,
        Self::Files,
        Self::Unpack,
        Self::Fetch,
        Self::Crew,
        Self::Update,
    ];

    /// The word in a poll: the field of the task or of its `detail`.
    pub fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::StdinBase64 => "stdinBase64",
            Self::MergeOutput => "mergeOutput",
            Self::Script => "script",
            Self::Undo => "undo",
            Self::Probes => "probes",
            Self::Files => "files",
            Self::Unpack => "unpack",
            Self::Fetch => "fetch",
            Self::Crew => "crew",
            Self::Update => "update",
        }
    }
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

/// The state of an attempt at its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HoldState {
    /// Its command runs.
    Running,
    /// Its command is being killed.
    Ending,
    /// Its command has ended; the result has not been taken yet.
    Ended,
}

/// An attempt that an agent holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// Which attempt.
    #[serde(flatten)]
    pub id: AttemptId,
    /// Its state.
    pub state: HoldState,
    /// How long ago its command was started, in milliseconds.
    #[serde(default)]
    pub started_ago_ms: u64,
    /// What it does with files now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
}

/// The server's orders to an agent. `D` is the detail: a [`super::task::Detail`] where it is written, a plain JSON
/// value where it is read, so that an agent can refuse a single task whose detail it does not understand.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "D: Deserialize<'de>"))]
pub struct Orders<D> {
    /// Attempts to start.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "bounded")]
    pub start: Vec<Assignment<D>>,
    /// Attempts to kill, and to report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "bounded")]
    pub cancel: Vec<AttemptId>,
    /// Those of `cancel` whose task was stopped: nobody asked for the end of this very one. Their undos are told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "bounded")]
    pub stopped: Vec<AttemptId>,
    /// Attempts that the server no longer knows: let them run, but do not report them. One with an undo is ended and
    /// undone, as nobody could cancel it any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "bounded")]
    pub forget: Vec<AttemptId>,
    /// Undos to run again, before anything else. One that runs already is not started twice.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "bounded")]
    pub undo: Vec<UndoOrder<D>>,
    /// Probes to run once, at once, beside everything else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "bounded")]
    pub probe: Vec<ProbeOrder>,
    /// What is wanted of the agent itself. Repeated until a poll shows that it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crew: Option<Wanted>,
    /// How things stand for the agent, if its poll asks for that. It alone is no reason to answer a poll that is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
}

impl<D> Orders<D> {
    /// No orders.
    pub fn none() -> Self {
        Orders {
            start: Vec::new(),
            cancel: Vec::new(),
            stopped: Vec::new(),
            forget: Vec::new(),
            undo: Vec::new(),
            probe: Vec::new(),
            crew: None,
            standing: None,
        }
    }

    /// Whether there are no orders.
    pub fn is_empty(&self) -> bool {
        self.start.is_empty()
            && self.cancel.is_empty()
            && self.forget.is_empty()
            && self.undo.is_empty()
            && self.probe.is_empty()
            && self.crew.is_none()
    }
}

/// An attempt handed to an agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    from = "FlatAssignment<D>",
    bound(deserialize = "D: Deserialize<'de>")
)]
pub struct Assignment<D> {
    /// Which attempt.
    #[serde(flatten)]
    pub id: AttemptId,
    /// The id of its task.
    pub task_id: String,
    /// The name of its task.
    pub task_name: String,
    /// The key of the attempt, 32 hexadecimal digits; older servers leave it to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What to run; without a command if the task only lays files down.
    pub detail: D,
    /// The files that are laid down before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// How long that may take, and as long again what is handed back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_timeout: Option<TimeSpan>,
    /// The files that are handed back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fetch: Vec<Fetch>,
    /// The program that the agent is to run from now on. It waits for `files_timeout` at most until nothing else runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Box<Update>>,
}

/// An undo that an agent is to run although it does not hold the attempt, or has reported its end: it is owed by an
/// earlier agent on this machine, or a user wants it once more.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "D: Deserialize<'de>"))]
pub struct UndoOrder<D> {
    /// The execution.
    pub execution: String,
    /// The number of the attempt whose effect is taken back.
    pub attempt: u32,
    /// The id of its task.
    pub task_id: String,
    /// The name of its task.
    pub task_name: String,
    /// The key of that attempt.
    pub key: String,
    /// Why it runs.
    pub reason: UndoReason,
    /// The exit code of the command, if it is known.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The beginning of the command's standard output, 4 KiB at most.
    #[serde(default)]
    pub stdout: String,
    /// The detail with the undo.
    pub detail: D,
}

/// An [`Assignment`] as it is read. A type that is flattened would keep all unknown fields in memory, at 16
/// times their length, before it ignores them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlatAssignment<D> {
    execution: String,
    attempt: u32,
    task_id: String,
    task_name: String,
    #[serde(default)]
    key: Option<String>,
    detail: D,
    #[serde(default = "Vec::new", deserialize_with = "bounded")]
    files: Vec<File>,
    #[serde(default)]
    files_timeout: Option<TimeSpan>,
    #[serde(default = "Vec::new", deserialize_with = "bounded")]
    fetch: Vec<Fetch>,
    #[serde(default)]
    update: Option<Box<Update>>,
}

impl<D> From<FlatAssignment<D>> for Assignment<D> {
    fn from(flat: FlatAssignment<D>) -> Self {
        Assignment {
            id: AttemptId {
                execution: flat.execution,
                attempt: flat.attempt,
            },
            task_id: flat.task_id,
            task_name: flat.task_name,
            key: flat.key,
            detail: flat.detail,
            files: flat.files,
            files_timeout: flat.files_timeout,
            fetch: flat.fetch,
            update: flat.update,
        }
    }
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

/// A piece of output. Its offset gives its position, so it can be sent repeatedly.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Piece {
    /// The attempt.
    #[serde(flatten)]
    pub id: AttemptId,
    /// The stream.
    pub stream: Stream,
    /// The offset of the first byte in the stream.
    pub offset: u64,
    /// The bytes.
    #[serde(with = "as_base64")]
    pub data: Vec<u8>,
}

/// Output of running commands, in the order in which they wrote it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The instance of the agent.
    pub instance: String,
    /// The pieces.
    pub pieces: Vec<Piece>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Which attempt.
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
    /// The files that it handed back.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "bounded")]
    pub files: Vec<FetchedFile>,
}

/// Results, with the last of their output.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    /// The instance of the agent.
    pub instance: String,
    /// Asks for more work in the answer: the `seq` of the agent's latest poll. Work is handed out, and accepted by
    /// the agent, only while that is its latest poll; whatever a later poll does not list has not arrived. Absent
    /// if the agent has no free job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Output that was not sent before; it is stored before the results.
    #[serde(default)]
    pub pieces: Vec<Piece>,
    /// The results. That of an attempt with an undo is sent once the undo has ended, too.
    pub results: Vec<Ended>,
    /// What has become of undos; taken before the results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undos: Vec<UndoReport>,
    /// How runs of probes ended. They need not be answered for; one that comes too late does not count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeResult>,
}

/// The answer to reported results. None of them need be reported again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "D: Deserialize<'de>"))]
pub struct Taken<D> {
    /// One entry per result, in the order of the report.
    #[serde(deserialize_with = "bounded")]
    pub results: Vec<Verdict>,
    /// The attempts whose undos were reported and need not be reported again in this state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "bounded")]
    pub undos: Vec<AttemptId>,
    /// Attempts to start, if the report asked for that.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "bounded")]
    pub start: Vec<Assignment<D>>,
}

/// The server's verdict on a reported result.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "FlatVerdict")]
pub struct Verdict {
    /// Which attempt.
    #[serde(flatten)]
    pub id: AttemptId,
    /// Whether the result counts; also true if it was taken before.
    pub taken: bool,
    /// Why it does not count.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub msg: String,
}

/// A [`Verdict`] as it is read, for the same reason as [`FlatAssignment`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlatVerdict {
    execution: String,
    attempt: u32,
    taken: bool,
    #[serde(default)]
    msg: String,
}

impl From<FlatVerdict> for Verdict {
    fn from(flat: FlatVerdict) -> Self {
        Verdict {
            id: AttemptId {
                execution: flat.execution,
                attempt: flat.attempt,
            },
            taken: flat.taken,
            msg: flat.msg,
        }
    }
}

/// A list of [`MAX_LISTED`] entries at most.
fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    super::bounded::list_of(deserializer, MAX_LISTED)
}

/// The goodbye of an agent that ends. Attempts that it was handed and that are not in `holds` were never started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Goodbye {
    /// The instance of the agent.
    pub instance: String,
    /// Attempts that it started and could not report.
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
