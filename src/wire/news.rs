//! What happens to a task, one JSON object a line: `GET /api/v1/task/{id}/output?format=json`.

use super::agent::Stream;
use super::task::ExecutionState;
use serde::{Deserialize, Serialize};

/// Something that happened to an execution.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct News {
    /// The execution's id.
    pub execution: String,
    /// The label of its machine; empty while it has none.
    pub machine_label: String,
    /// The instance of its machine; empty while it has none.
    pub instance: String,
    /// The number of the attempt.
    pub attempt: u32,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// The things that happen to an execution.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum What {
    /// It is in another state.
    State {
        /// Which.
        state: ExecutionState,
    },
    /// A further attempt begins.
    Attempt,
    /// It wrote something: whole lines when the task has several machines, else as it came.
    Output {
        /// To this stream.
        stream: Stream,
        /// The place of the first byte in the stream.
        offset: u64,
        /// The place after the last byte.
        end: u64,
        /// The text; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// It wrote something that is not kept.
    Missing {
        /// To this stream.
        stream: Stream,
        /// The place of the first byte in the stream.
        offset: u64,
        /// The place after the last byte.
        end: u64,
    },
}
