//! The types of the API's JSON: what travels between users, server and agents.
//!
//! No rules and no I/O live here: a type says how its JSON looks, `core` says what may happen.
//! To add a field to the API: add it to the type that carries it, then to the rule in `core` that
//! uses it, then to the README's reference.

pub mod agent;
pub mod duration;
pub mod event;
pub mod machine;

pub mod strict_object;
pub mod task;

use serde::{Deserialize, Serialize};

/// `signal` of an answer: all went well.
pub const OK: i32 = 0;
/// `signal` of an answer to an agent: there is work.
pub const WORK: i32 = 1;
/// `signal` of an answer: it did not go well, `msg` says why.
pub const ERROR: i32 = -1;

/// What every answer is wrapped in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`OK`], [`WORK`] or [`ERROR`].
    pub signal: i32,
    /// In words, what there is to say; empty when there is nothing.
    #[serde(default)]
    pub msg: String,
    /// The answer proper.
    pub data: T,
    /// Where the next page of a list begins; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> Envelope<T> {
    /// An answer that went well.
    pub fn ok(data: T) -> Self {
        Envelope {
            signal: OK,
            msg: String::new(),
            data,
            next: None,
        }
    }
}
