//! Taking back what a command did: as posted, as agents report it, and as answered.

use super::agent::AttemptId;
use super::duration::{TimeSpan, Timeout};
use super::strict_object::StrictObject;
use serde::{Deserialize, Deserializer, Serialize};

/// The default time-out of each try of an undo, and of each check.
pub const DEFAULT_TIMEOUT: TimeSpan = TimeSpan::from_secs(30);
/// How long an undo is tried by default.
pub const DEFAULT_PATIENCE: TimeSpan = TimeSpan::from_secs(600);
/// After how long without contact to the server a command with an undo is ended by default.
pub const DEFAULT_DEADMAN: TimeSpan = TimeSpan::from_secs(60);

/// The time from TERM to KILL of a try or a check.
pub const KILL_GRACE: TimeSpan = TimeSpan::from_secs(5);

/// What takes back the effect of a command, as posted. It has exactly one of `command` and `argv`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Undo {
    /// A shell line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// A program and its arguments, run without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// A shell line that succeeds when nothing is left of the effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// The same as a program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_argv: Option<Vec<String>>,
    /// How long each try, and each check, may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<TimeSpan>,
    /// How long it is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<TimeSpan>,
    /// After how long without contact to the server the command is ended and undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadman: Option<Timeout>,
    /// A machine runs one execution with this word at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
}

impl Undo {
    /// Reads one from a JSON object only, see [`StrictObject`].
    pub fn strict<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Box<Self>>, D::Error> {
        let undo: Option<StrictObject<Undo>> = Option::deserialize(deserializer)?;
        Ok(undo.map(|undo| Box::new(undo.0)))
    }

    /// The longest time until it has ended: the last try may begin at the end of the patience.
    pub fn longest(&self) -> TimeSpan {
        let last = 2 * (self.timeout().as_millis() + KILL_GRACE.as_millis());
        TimeSpan::from_millis(self.patience().as_millis() + last)
    }

    /// Its texts.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        let lines = [&self.command, &self.check, &self.lock];
        let argvs = [&self.argv, &self.check_argv];
        { lines.into_iter().flatten() }.chain(argvs.into_iter().flatten().flatten())
    }

    /// The size of its texts in bytes.
    pub fn text_bytes(&self) -> usize {
        self.texts().map(String::len).sum()
    }

    /// How long each try, and each check, may run.
    pub fn timeout(&self) -> TimeSpan {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }

    /// How long it is tried.
    pub fn patience(&self) -> TimeSpan {
        self.patience.unwrap_or(DEFAULT_PATIENCE)
    }

    /// After how long without contact the command is ended; none if never.
    pub fn deadman(&self) -> Option<TimeSpan> {
        match self.deadman {
            None => Some(DEFAULT_DEADMAN),
            Some(Timeout::After(time)) => Some(time),
            Some(Timeout::Never) => None,
        }
    }
}

/// The state of an undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UndoState {
    /// The command was certainly never started.
    NotNeeded,
    /// It is going to run, whatever happens to the command.
    Armed,
    /// It is being tried.
    Running,
    /// The effect is gone.
    Done,
    /// It was tried for all of its patience.
    Failed,
    /// Nobody can say: agent and guard are gone, or the machine is.
    Owed,
    /// Somebody has settled it by hand.
    Forgiven,
}

impl UndoState {
    /// Every state, as the API lists them.
    pub const ALL: [Self; 7] = [
        Self::NotNeeded,
        Self::Armed,
        Self::Running,
        Self::Done,
        Self::Failed,
        Self::Owed,
        Self::Forgiven,
    ];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotNeeded => "notNeeded",
            Self::Armed => "armed",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Owed => "owed",
            Self::Forgiven => "forgiven",
        }
    }

    /// Whether nobody works on it: an end of a task does not wait for it.
    pub fn is_settled(self) -> bool {
        !matches!(self, Self::Armed | Self::Running)
    }

    /// Whether something may be left on the machine.
    pub fn is_dirty(self) -> bool {
        matches!(self, Self::Failed | Self::Owed)
    }
}

/// Why an undo runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UndoReason {
    /// The command ended.
    Ended,
    /// Its time was up.
    TimedOut,
    /// A user canceled it.
    Canceled,
    /// Its task was stopped.
    Stopped,
    /// The server could not be reached.
    Deadman,
    /// The agent was shut down.
    Shutdown,
    /// The agent is gone.
    AgentLost,
    /// It was owed.
    Owed,
    /// A user asked for it.
    ByHand,
}

impl UndoReason {
    /// The word of the API, and of the environment of an undo.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::TimedOut => "timedOut",
            Self::Canceled => "canceled",
            Self::Stopped => "stopped",
            Self::Deadman => "deadman",
            Self::Shutdown => "shutdown",
            Self::AgentLost => "agentLost",
            Self::Owed => "owed",
            Self::ByHand => "byHand",
        }
    }
}

/// Who ran an undo, or decided about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UndoBy {
    /// The agent.
    Agent,
    /// The guard of an agent that was gone.
    Guard,
    /// The server.
    Server,
}

/// What an agent or a guard says about an undo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UndoReport {
    /// The attempt.
    #[serde(flatten)]
    pub id: AttemptId,
    /// Its state: `notNeeded`, `armed`, `running`, `done` or `failed`.
    pub state: UndoState,
    /// Why it runs; absent until it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<UndoReason>,
    /// Who runs it.
    pub by: UndoBy,
    /// How often it was tried.
    #[serde(default)]
    pub tries: u32,
    /// The exit code of the last try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The exit code of the last check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_exit_code: Option<i32>,
    /// Why the last try or check did not succeed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub msg: String,
    /// The last of what undo and check wrote.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How long ago it began, in milliseconds; absent until it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_ago_ms: Option<u64>,
    /// How long ago it ended, in milliseconds; absent until it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ago_ms: Option<u64>,
}

/// An undo as answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnsweredUndo<S = String> {
    /// Its state.
    pub state: UndoState,
    /// Why it runs, or ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<UndoReason>,
    /// Who runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<UndoBy>,
    /// How often it was tried.
    pub tries: u32,
    /// The exit code of the last try.
    pub exit_code: Option<i32>,
    /// The exit code of the last check.
    pub check_exit_code: Option<i32>,
    /// Why it did not succeed, or who has settled it.
    pub msg: S,
    /// The last of what undo and check wrote.
    pub output: S,
    /// When it was armed, RFC 3339.
    pub armed_at: Option<S>,
    /// When it began, RFC 3339.
    pub began_at: Option<S>,
    /// When it ended, RFC 3339.
    pub ended_at: Option<S>,
    /// By when the machine has undone it by itself if it cannot reach the server, RFC 3339; only while it is owed,
    /// which means that this is not confirmed.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub due_at: Option<S>,
}

/// How many undos of a task are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "a field per state of an undo")]
pub struct UndoCounts {
    pub not_needed: u32,
    pub armed: u32,
    pub running: u32,
    pub done: u32,
    pub failed: u32,
    pub owed: u32,
    pub forgiven: u32,
}

impl UndoCounts {
    /// The count of a state.
    pub fn of(&mut self, state: UndoState) -> &mut u32 {
        match state {
            UndoState::NotNeeded => &mut self.not_needed,
            UndoState::Armed => &mut self.armed,
            UndoState::Running => &mut self.running,
            UndoState::Done => &mut self.done,
            UndoState::Failed => &mut self.failed,
            UndoState::Owed => &mut self.owed,
            UndoState::Forgiven => &mut self.forgiven,
        }
    }

    /// `2 done, 1 failed`.
    pub fn in_words(mut self) -> String {
        super::counted(UndoState::ALL.map(|state| (*self.of(state), state.word())))
    }
}
