//! The events of a task, one JSON object a line: `GET /api/v1/task/{id}/output?format=json`.

use super::agent::Stream;
use super::task::ExecutionState;
use serde::{Deserialize, Serialize};

/// Something that happened to an execution.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskEvent {
    /// The execution's id.
    pub execution: String,
    /// The label of its machine; empty while it has none.
    pub machine_label: String,
    /// The instance of its machine; empty while it has none.
    pub instance: String,
    /// The host of its machine; empty while it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The number of the attempt.
    pub attempt: u32,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen to an execution.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum EventKind {
    /// Its state changed.
    State {
        /// The new state.
        state: ExecutionState,
    },
    /// A further attempt began.
    Attempt,
    /// Its command wrote output. If the task has several machines the output is cut into whole lines.
    Output {
        /// The stream.
        stream: Stream,
        /// The offset of the first byte in the stream.
        offset: u64,
        /// The offset after the last byte.
        end: u64,
        /// The text; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// Its command wrote output that is not kept.
    Missing {
        /// The stream.
        stream: Stream,
        /// The offset of the first byte in the stream.
        offset: u64,
        /// The offset after the last byte.
        end: u64,
    },
}
