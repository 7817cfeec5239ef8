//! The answers of the API: the envelope, and the HTTP status of each refusal.

pub mod text;

use super::http::Answer;
use crate::core::{Refusal, Task};
use crate::wire::agent::Orders;
use crate::wire::duration::TimeSpan;
use crate::wire::task::{Detail, TaskState};
use crate::wire::term::{BEGUN_HEADER, LEADER_HEADER};
use crate::wire::{self, Envelope};
use serde::Serialize;
use std::sync::Arc;

/// The longest a poll is held: with the 45 s of silence it leaves 20 s for a slow network.
pub const MAX_POLL_WAIT: TimeSpan = TimeSpan::from_secs(25);
/// Room for an answer of ordinary size, in bytes.
const USUAL_BYTES: usize = 1 << 10;
/// The longest reason of a refusal, in bytes.
const MAX_MSG_BYTES: usize = 2 << 10;
/// With so few executions, none of which has output yet, an answer is small.
pub const FEW: usize = 16;
/// An answer of more bytes is made when there is memory for it, and not before.
pub const LARGE_BYTES: usize = 16 << 10;
/// The output shown with one task, in bytes.
pub const SHOWN_OUTPUT_BYTES: usize = 1 << 20;
/// The output shown with each task of a list, in bytes.
pub const LISTED_OUTPUT_BYTES: usize = 16 << 10;
/// The part of its detail shown with each task of a list, in bytes.
pub const LISTED_DETAIL_BYTES: usize = 4 << 10;

/// JSON of any kind.
pub fn json<T: Serialize>(status: u16, value: &T) -> Answer {
    json_of(USUAL_BYTES, status, value)
}

/// The same, which takes about so many bytes.
fn json_of<T: Serialize>(bytes: usize, status: u16, value: &T) -> Answer {
    let mut body = Vec::with_capacity(bytes);
    // Our own types have only string keys and finite numbers: serializing them cannot fail.
    let _ = serde_json::to_writer(&mut body, value);
    Answer::new(status, "application/json", body)
}

/// An answer that went well.
pub fn ok<T: Serialize>(data: T) -> Answer {
    json(200, &Envelope::ok(data))
}

/// An answer that did not go well.
pub fn error(status: u16, msg: &str) -> Answer {
    // Some reasons quote what was sent, which may be megabytes.
    let cut = &msg[..msg.floor_char_boundary(MAX_MSG_BYTES)];
    let ellipsis = if cut.len() < msg.len() { "…" } else { "" };
    json(
        status,
        &Envelope {
            signal: wire::ERROR,
            msg: format!("{cut}{ellipsis}"),
            data: (),
            next: None,
        },
    )
}

/// The answer of a server that does not lead, or may not any more: another one is to be asked, the one at this address if
/// it is known. Nothing was done.
pub fn ask_another(msg: &str, leader: Option<&str>) -> Answer {
    let leader = leader.unwrap_or_default();
    error(503, msg).with_headers(&format!("{LEADER_HEADER}: {leader}\r\n"))
}

/// The same, but what was asked may have been done.
pub fn ask_another_with_care(msg: &str) -> Answer {
    ask_another(msg, None).with_headers(&format!("{BEGUN_HEADER}: yes\r\n"))
}

/// An answer that did not go well, and says more than why.
pub fn with_data<T: Serialize>(status: u16, msg: String, data: T) -> Answer {
    let envelope = Envelope {
        signal: wire::ERROR,
        msg,
        data,
        next: None,
    };
    json(status, &envelope)
}

/// The answer to a poll or to output.
pub fn orders(orders: &Orders<Arc<Detail>>) -> Answer {
    let signal = if orders.is_empty() {
        wire::OK
    } else {
        wire::WORK
    };
    json(
        200,
        &Envelope {
            signal,
            msg: String::new(),
            data: orders,
            next: None,
        },
    )
}

/// The answer that shows a task.
pub fn task(task: Result<Task, Refusal>) -> Answer {
    match task {
        Ok(kept) => {
            let task = kept.answer(SHOWN_OUTPUT_BYTES);
            json_of(
                kept.bytes_without_output(),
                200,
                &Envelope {
                    signal: wire::OK,
                    msg: task.msg.clone(),
                    data: task,
                    next: None,
                },
            )
        }
        Err(refusal) => refused(refusal),
    }
}

/// How somebody wants a task to be answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct TaskForm {
    /// As text, a line of output a line.
    pub text: bool,
    /// With a status that says whether all is finished and succeeded.
    pub strict: bool,
}

impl TaskForm {
    /// The answer that shows a task in this form.
    pub fn answer(self, shown: Result<Task, Refusal>) -> Answer {
        let Ok(found) = shown else {
            return task(shown);
        };
        let state = found.state();
        let (status, msg) = match state {
            _ if !self.strict => (200, ""),
            TaskState::Succeeded => (200, ""),
            state if state.is_terminal() => (422, "not everything succeeded"),
            _ => (408, "not finished in time"),
        };
        if !self.text && msg.is_empty() {
            return task(Ok(found));
        }
        let task = found.answer(SHOWN_OUTPUT_BYTES);
        if self.text {
            return text::of_task(status, &task);
        }
        json(
            status,
            &Envelope {
                signal: wire::ERROR,
                msg: format!("{msg}: {}", text::in_words(&task)),
                data: task,
                next: None,
            },
        )
    }
}

/// The answer to a submit whose id is taken: the task that has it.
pub fn taken(task: &Task) -> Answer {
    of_another(
        task,
        format!("id: {:?} is taken by the task in data", task.id),
    )
}

/// The answer to a submit whose unique key is held: the task that has it.
pub fn held(task: &Task) -> Answer {
    let unique = task.spec.unique.as_ref();
    let key = unique.map_or("", |unique| &*unique.key);
    of_another(
        task,
        format!("uniqueKey: {key:?} is held by the task in data"),
    )
}

fn of_another(task: &Task, msg: String) -> Answer {
    json(
        409,
        &Envelope {
            signal: wire::ERROR,
            msg,
            data: task.answer(SHOWN_OUTPUT_BYTES),
            next: None,
        },
    )
}

/// The answer to what the core refused.
pub fn refused(refusal: Refusal) -> Answer {
    let status = match &refusal {
        Refusal::Unknown(_) => 404,
        Refusal::Taken(_) | Refusal::Duplicate(_) | Refusal::Joins(_) | Refusal::Conflict(_) => 409,
        Refusal::Wrong(_) => 400,
        Refusal::Impossible(_) => 422,
        Refusal::Full(_) => 503,
    };
    error(status, &refusal.to_string())
}

/// The answer to a request that makes no sense.
pub fn bad(msg: impl AsRef<str>) -> Answer {
    error(400, msg.as_ref())
}

/// The answer to a change that happened and is not safe yet: the caller has to ask again.
pub fn not_safe<T>((_, why): (T, String)) -> Answer {
    error(503, &why)
}
