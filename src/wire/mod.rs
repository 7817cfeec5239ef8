//! The types of the API's JSON, exchanged between users, server and agents. They contain no rules and do no I/O.
//!
//! | file | content |
//! | --- | --- |
//! | `task` | tasks: as posted, as answered |
//! | `detail` | what a task runs |
//! | `state` | the states of tasks and executions |
//! | `machine` | machines |
//! | `rollout` | how many machines a task may hit, in which order, when it stops |
//! | `crew` | suspensions, what is wanted of an agent |
//! | `event` | the events of a task's output |
//! | `group` | groups of tasks |
//! | `sweep` | cancel and rerun of many tasks |
//! | `agent` | the calls of agents |
//! | `report` | the report of a task |
//! | `notify` | notifications |
//! | `schedule` | schedules, and what became of their firings |
//! | `halt` | the halt of all experiments |
//! | `undo` | taking back what a command did |
//! | `probe` | probes, which stop a task by themselves |
//! | `after`, `child` | what a task begins after; the tasks that begin with its end |
//! | `order`, `limit` | in which order tasks get their turn; limits with a name |
//! | `files`, `blobs` | the files of a task; the bytes that the server keeps |
//! | `update` | replacing the program of agents |
//! | `duration`, `moment`, `strict_object` | how durations, points in time and objects are read |
//! | `bounded` | lists and maps that are read up to a number of entries |
//! | `enumeration` | values that are one of a few words |
//! | `signal` | names of signals |
//! | `term` | which leader of which registry answers |
//! | `output_line` | lines of output with a label in front |
//! | `machine_names` | names that tell the machines of a task apart |
//!
//! To add a field: to the type that carries it (in `task.rs` twice: `PostedTask` and `Task`), to the rule in `core`
//! that uses it, and to `src/docs/api.md` and `openapi.json`. A new field of an agent's call needs `#[serde(default)]`, as agents and
//! servers of different versions work together.

pub mod after;
pub mod agent;
pub mod blobs;
mod bounded;
pub mod child;
pub mod crew;
mod detail;
pub mod duration;
pub mod enumeration;
pub mod event;
pub mod files;
pub mod group;
pub mod halt;
pub mod limit;
pub mod machine;
pub mod machine_names;
pub mod moment;
pub mod notify;
pub mod order;
pub mod output_line;
pub mod probe;
pub mod report;
pub mod rollout;
pub mod schedule;
pub mod signal;
mod state;
pub mod strict_object;
pub mod sweep;
pub mod task;
pub mod term;
pub mod undo;
pub mod update;

use serde::{Deserialize, Serialize};

/// `2 succeeded, 1 failed`: counts above zero, each with its word.
pub fn counted(counts: impl IntoIterator<Item = (u32, &'static str)>) -> String {
    let some = counts.into_iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = some
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    words.join(", ")
}

/// `signal` of a successful answer.
pub const OK: i32 = 0;
/// `signal` of an answer to an agent: there is work.
pub const WORK: i32 = 1;
/// `signal` of an error; `msg` gives the reason.
pub const ERROR: i32 = -1;

/// The envelope of every answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`OK`], [`WORK`] or [`ERROR`].
    pub signal: i32,
    /// A message; usually empty unless this is an error.
    #[serde(default)]
    pub msg: String,
    /// The answer itself.
    pub data: T,
    /// The cursor of the next page of a list; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> Envelope<T> {
    /// A successful answer.
    pub fn ok(data: T) -> Self {
        Envelope {
            signal: OK,
            msg: String::new(),
            data,
            next: None,
        }
    }
}
