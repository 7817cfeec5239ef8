//! The calls of the original's agents, so that a fleet can be moved server first, agents later.
//!
//! Everything about their wire is here; without this file and its line in `routes` they are gone
//! and nothing else changes (but for `Kind::Original` in the core, which says how they behave).
//! Their agent looks at `signal` and `data` only, never at the HTTP status.

use super::access::Right;
use super::call::{Call, Handled, Route};
use super::parse::check_depth;
use crate::core::{MachineKey, Refusal};
use crate::server::answers;
use crate::server::http::Answer;
use crate::wire::agent::{Assignment, AttemptId, Ended, Piece, Stream};
use crate::wire::duration::Timeout;
use crate::wire::task::{Detail, ExecutionState};
use crate::wire::{self, Envelope};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// The calls of the original's agents.
pub const ROUTES: &[Route] = &[
    Route {
        right: Right::Original,
        method: "GET",
        path: &["api", "v1", "lifecycle", "ping"],
        query: &["path"],
        handler: ping,
    },
    Route {
        right: Right::Original,
        method: "POST",
        path: &["api", "v1", "task", "status", "assigned"],
        query: &[],
        handler: assigned,
    },
    Route {
        right: Right::Original,
        method: "POST",
        path: &["api", "v1", "task", "status", "done"],
        query: &[],
        handler: done,
    },
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
    let origin = call.caller.origin(call.request.peer);
    let has_work = call.server.store.change(|core, now| {
        core.admit(now, &origin, &instance(label))?;
        let machine = core.ping_of_original(now, label)?;
        Ok::<_, Refusal>(core.has_work_for(machine))
    });
    Ok(Some(if has_work.map_err(answers::refused)? {
        signal(wire::WORK, String::new(), ())
    } else {
        signal(wire::OK, format!("pong: {label}"), ())
    }))
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
    let Some(machine) = call.server.store.ask(|core| core.original(&label)) else {
        return Ok(Some(signal(
            wire::ERROR,
            "no machine mapping".into(),
            Value::Null,
        )));
    };
    Ok(Some(match next_expressible(&call, machine, &label) {
        Some(task) => signal(wire::OK, String::new(), task),
        None => signal(wire::ERROR, "no task in machine queue".into(), ()),
    }))
}

/// Hands out the next task that the original's agent can express; the others end with the reason.
fn next_expressible(call: &Call<'_>, machine: MachineKey, label: &str) -> Option<Value> {
    loop {
        // What could not be made safe is not handed out; it ends `lost` when its time is up.
        let collected = call
            .server
            .store
            .change_safely(|core, now| core.collect(now, machine));
        let start = call.server.store.still_to_start(collected.ok()?.start);
        let assignment = start.into_iter().next()?;
        match expressed(&assignment, label) {
            Ok(task) => return Some(task),
            Err(field) => {
                let msg = format!(
                    "detail.{field}: the original's agent on this machine cannot do it; it needs a sidebike agent"
                );
                let ended = ended(assignment.id, ExecutionState::Failed, msg);
                call.server
                    .store
                    .change(|core, now| core.done(now, &instance(label), &[], &[ended]));
            }
        }
    }
}

/// A task as the original's agent reads it, or the field that it does not know.
fn expressed(assignment: &Assignment<Arc<Detail>>, label: &str) -> Result<Value, &'static str> {
    let detail = &assignment.detail;
    if detail.argv.is_some() {
        return Err("argv");
    }
    if detail.env.as_ref().is_some_and(|env| !env.is_empty()) {
        return Err("env");
    }
    if detail.stdin.is_some() {
        return Err("stdin");
    }
    let timeout = match detail.timeout {
        Some(Timeout::After(span)) => span.as_millis().div_ceil(1000),
        Some(Timeout::Never) | None => NO_TIMEOUT_SECONDS,
    };
    Ok(json!({
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
    }))
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
    #[derive(Deserialize)]
    struct Report {
        taskname: String,
        result: Reported,
    }
    #[derive(Deserialize)]
    struct Reported {
        machinelabel: String,
        status: i64,
        #[serde(default)]
        msg: Option<String>,
        #[serde(default)]
        output: Option<Vec<String>>,
    }
    let Report { taskname, result } = body(&call)?;
    let Some(id) = attempt_of(&taskname) else {
        return Err(answers::error(
            404,
            &format!("TaskName: nothing was handed out under {taskname:?}"),
        ));
    };
    admit(&call, &result.machinelabel)?;
    let msg = result.msg.unwrap_or_default();
    let (state, msg) = match result.status {
        0 => (ExecutionState::Succeeded, msg),
        _ if msg.is_empty() => (
            ExecutionState::Failed,
            "the original's agent says that it failed".into(),
        ),
        _ => (ExecutionState::Failed, msg),
    };
    let mut text = result.output.unwrap_or_default().join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    let piece = Piece {
        id: id.clone(),
        stream: Stream::Stdout,
        offset: 0,
        data: text.into_bytes(),
    };
    let ended = ended(id, state, msg);
    let taken = call.server.store.change_safely(|core, now| {
        core.done(now, &instance(&result.machinelabel), &[piece], &[ended])
    });
    let verdicts = taken.map_err(|(_, why)| answers::error(503, &why))?;
    match verdicts.first() {
        Some(verdict) if !verdict.taken => Ok(Some(signal(wire::ERROR, verdict.msg.clone(), ()))),
        _ => Ok(Some(signal(wire::OK, String::new(), ()))),
    }
}

/// These agents cannot send a token: with tokens in use, a label has to be allowed.
fn admit(call: &Call<'_>, label: &str) -> Result<(), Answer> {
    if call.server.access.allows_original(label) {
        return Ok(());
    }
    let msg = format!(
        "tokens are in use, and the label {label:?} is not allowed without one (--allow-legacy)"
    );
    Err(answers::error(401, &msg))
}

fn instance(label: &str) -> String {
    crate::core::original_instance(label)
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
    let bytes = &call.request.body;
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
