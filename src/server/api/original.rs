//! The calls of the original's agents, so that a fleet can be moved server first, agents later.
//!
//! Everything about their wire is here; without this file and its line in `routes` they are gone
//! and nothing else changes (but for `Kind::Original` in the core, which says how they behave).
//! Their agent looks at `signal` and `data` only, never at the HTTP status.

use super::access::{Access, Right};
use super::call::{Call, Handled, Route, route};
use super::encoding;
use super::parse::check_depth;
use crate::core::{Link, Refusal, original_instance};
use crate::server::answers;
use crate::server::http::{Answer, BodyLimit, Request};
use crate::wire::agent::{Assignment, AttemptId, Ended, Piece, Stream};
use crate::wire::duration::Timeout;
use crate::wire::task::{Detail, ExecutionState};
use crate::wire::{self, Envelope};
use report::Report;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

mod report;

/// How much of a result is read into memory, in bytes: several times what is kept of the output. The agent sends a
/// result once, so a larger one is cut, not refused.
const KEPT_RESULT_BYTES: usize = 4 << 20;
/// The longest label or address in a warning, in bytes.
const MAX_NAMED_BYTES: usize = 255;

/// The calls of the original's agents.
pub const ROUTES: &[Route] = &[
    route(
        Right::Original,
        "GET",
        &["api", "v1", "lifecycle", "ping"],
        &["path"],
        ping,
    ),
    route(
        Right::Original,
        "POST",
        &["api", "v1", "task", "status", "assigned"],
        &[],
        assigned,
    ),
    route(
        Right::Original,
        "POST",
        &["api", "v1", "task", "status", "done"],
        &[],
        done,
    ),
];

/// What "no time-out" is to an agent that knows none, in seconds: a year.
const NO_TIMEOUT_SECONDS: u64 = 365 * 24 * 3_600;

fn ping(call: Call<'_>) -> Handled {
    let label = call.request.query("path").filter(|label| !label.is_empty());
    let Some(label) = label else {
        return Err(answers::error(
            400,
            "path: must be the machine's label, such as ?path=MY_MACHINE_1",
        ));
    };
    admit(&call, label)?;
    let link = link(call.request);
    let origin = call.caller.origin(call.request.peer);
    let store = &call.server.store;
    let pinged = store.change(|core, now| {
        core.admit(now, &origin, &original_instance(label))?;
        core.ping_of_original(now, label, link)
    });
    let has_work = pinged.map_err(|refusal| refused(&call, label, refusal))?;
    Ok(Some(if has_work {
        signal(wire::WORK, String::new(), ())
    } else {
        signal(wire::OK, format!("pong: {label}"), ())
    }))
}

/// The connection of a call, where connections have numbers.
fn link(request: &Request) -> Option<Link> {
    request.connection.map(|connection| Link {
        connection: connection.number(),
        is_new: request.is_first,
    })
}

fn assigned(call: Call<'_>) -> Handled {
    #[derive(Deserialize)]
    struct Asked {
        machinelabel: String,
    }
    let Asked {
        machinelabel: label,
    } = body(&call)?;
    admit(&call, &label)?;
    let link = link(call.request);
    let store = &call.server.store;
    let fetched = store.change_safely(|core, now| core.fetch_of_original(now, &label, link));
    let task = match fetched {
        Ok(None) => return Ok(Some(no("no machine mapping"))),
        Ok(Some(orders)) => {
            let handed_out = orders.start.first().map(|job| job.id.clone());
            let task = store.still_to_start(orders.start).into_iter().next();
            if let (None, Some(id)) = (&task, handed_out) {
                store.change(|core, _| core.not_sent_to_original(&label, &id));
            }
            task
        }
        // What could not be made safe is not handed out; it ends `lost` when its time is up.
        Err(_) => None,
    };
    Ok(Some(match task {
        Some(task) => signal(wire::OK, String::new(), expressed(&task, &label)),
        None => no("no task in machine queue"),
    }))
}

fn no(msg: &str) -> Answer {
    signal(wire::ERROR, msg.into(), Value::Null)
}

/// A task as the original's agent reads it. It is handed only tasks that it can express.
fn expressed(assignment: &Assignment<Arc<Detail>>, label: &str) -> Value {
    let detail = &assignment.detail;
    let timeout = match detail.timeout {
        Some(Timeout::After(span)) => span.as_millis().div_ceil(1000),
        Some(Timeout::Never) | None => NO_TIMEOUT_SECONDS,
    };
    json!({
        "name": name_of(&assignment.id),
        "machinePattern": format!("^{}$", regex::escape(label)),
        "status": 1,
        "detail": {
            "command": detail.command,
            "workspace": detail.workspace.as_deref().unwrap_or("."),
            "timeout": timeout,
        },
        "assignees": [label],
        "result": null,
    })
}

/// `TaskName` is all that a report says, so it names the attempt.
fn name_of(id: &AttemptId) -> String {
    format!("{}/{}", id.execution, id.attempt)
}

fn attempt_of(name: &str) -> Option<AttemptId> {
    let (execution, attempt) = name.rsplit_once('/')?;
    Some(AttemptId {
        execution: execution.to_owned(),
        attempt: attempt.parse().ok()?,
    })
}

fn done(call: Call<'_>) -> Handled {
    check_depth(&call, "the body")?;
    let left_out = call.request.body_left_out;
    let report = Report::read(&call.request.body, left_out > 0)
        .map_err(|error| answers::error(400, &format!("the body: {error}")))?;
    let unknown = || {
        let name = &report.task_name;
        answers::error(
            404,
            &format!("TaskName: nothing was handed out under {name:?}"),
        )
    };
    let id = attempt_of(&report.task_name).ok_or_else(unknown)?;
    let label = match &report.machine_label {
        Some(label) => label.clone(),
        // Versions before 0.2.7 do not say who they are.
        None => {
            let handed_to = call.server.store.ask(|core| core.original_with(&id));
            handed_to.ok_or_else(unknown)?.to_string()
        }
    };
    admit(&call, &label)?;
    let (state, msg) = match report.has_succeeded {
        true => (ExecutionState::Succeeded, report.msg),
        false if report.msg.is_empty() => (
            ExecutionState::Failed,
            "the original's agent says that it failed".into(),
        ),
        false => (ExecutionState::Failed, report.msg),
    };
    let ended = Ended {
        stdout_bytes: report.text.len() as u64 + left_out,
        ..ended(id.clone(), state, msg)
    };
    let piece = Piece {
        id,
        stream: Stream::Stdout,
        offset: 0,
        data: report.text,
    };
    let link = link(call.request);
    let taken = call
        .server
        .store
        .change_safely(|core, now| core.done_of_original(now, &label, link, piece, &ended));
    let verdict = taken.map_err(|(_, why)| answers::error(503, &why))?;
    match verdict {
        Some(verdict) if !verdict.taken => Ok(Some(signal(wire::ERROR, verdict.msg, ()))),
        _ => Ok(Some(signal(wire::OK, String::new(), ()))),
    }
}

/// How large the body of a call may be, where that of others may have `max` bytes.
pub fn body_limit(max: usize) -> BodyLimit {
    BodyLimit::Cut(max.max(KEPT_RESULT_BYTES))
}

/// Warns of an agent that was refused before its call was read: only a ping says in its head who it is.
pub fn note_refused(access: &Access, request: &Request, why: &str) {
    let label = request.query("path").map(named);
    let peer = || {
        request
            .peer
            .map_or("at an unknown address".into(), |peer| format!("at {peer}"))
    };
    access.note_refused_original(&label.unwrap_or_else(peer), why);
}

/// A label in a warning.
fn named(label: &str) -> String {
    format!("{:?}", &label[..label.floor_char_boundary(MAX_NAMED_BYTES)])
}

/// The answer to an agent that the core refuses.
fn refused(call: &Call<'_>, label: &str, refusal: Refusal) -> Answer {
    if let Refusal::Impossible(why) | Refusal::Full(why) = &refusal {
        call.server.access.note_refused_original(&named(label), why);
    }
    answers::refused(refusal)
}

/// These agents cannot send a token: with tokens in use, a label has to be allowed.
fn admit(call: &Call<'_>, label: &str) -> Result<(), Answer> {
    if call.server.access.allows_original(label) {
        return Ok(());
    }
    let msg = format!(
        "tokens are in use, and the label {label:?} is not allowed without one (--allow-legacy)"
    );
    call.server
        .access
        .note_refused_original(&named(label), &msg);
    Err(answers::error(401, &msg))
}

fn ended(id: AttemptId, state: ExecutionState, msg: String) -> Ended {
    Ended {
        id,
        state,
        exit_code: None,
        signal: None,
        msg,
        ended_ago_ms: 0,
        duration_ms: None,
        stdout_bytes: 0,
        stderr_bytes: 0,
    }
}

fn signal<T: serde::Serialize>(signal: i32, msg: String, data: T) -> Answer {
    answers::json(
        200,
        &Envelope {
            signal,
            msg,
            data,
            next: None,
        },
    )
}

/// Reads JSON whose member names may be written in any case.
fn body<T: for<'a> Deserialize<'a>>(call: &Call<'_>) -> Result<T, Answer> {
    let bytes = encoding::without_mark(&call.request.body);
    check_depth(call, "the body")?;
    let value = serde_json::from_slice::<Value>(bytes).map(lowercase);
    value
        .and_then(T::deserialize)
        .map_err(|error| answers::error(400, &format!("the body: {error}")))
}

fn lowercase(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut lower = serde_json::Map::new();
            for (name, value) in members {
                lower.insert(name.to_lowercase(), lowercase(value));
            }
            Value::Object(lower)
        }
        other => other,
    }
}
