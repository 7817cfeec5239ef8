//! Calls about groups of tasks.

use super::call::{Call, Handled};
use super::parse::wait_ms;
use super::server::Server;
use super::tasks::page;
use crate::core::{Task, TaskKey};
use crate::server::answers::{self, refused};
use crate::server::http::Answer;
use crate::server::state::GroupWait;
use crate::wire::Envelope;
use crate::wire::group::{Group, Member};
use crate::wire::task::TaskState;

/// The group that the path names.
pub fn named_group<'a>(call: &Call<'a>) -> &'a str {
    let path: &'a [String] = &call.request.path;
    path.get(3).map(String::as_str).unwrap_or_default()
}

/// `GET /api/v1/group/{name}`.
pub fn show(call: Call<'_>) -> Handled {
    let wait_ms = wait_ms(call.request)?;
    let (limit, last) = page(call.request)?;
    let name = named_group(&call).to_owned();
    let store = &call.server.store;
    // At once also for who would wait: nobody waits for a group that is not there.
    let known = store.ask(|core| core.members_after(&name, Some(TaskKey(u64::MAX))).map(drop));
    known.map_err(refused)?;
    let server = call.server.clone();
    let shown = name.clone();
    let make = move || answer(&server, &shown, last, limit);
    if wait_ms > 0
        && let Some(responder) = call.responder.take()
    {
        let wait = GroupWait {
            responder,
            make: Box::new(make.clone()),
            on_answer: call.note_when_answered(),
        };
        match store.wait_for_group(&name, wait_ms, wait) {
            Ok(()) => {
                *call.is_noted_later = true;
                return Ok(None);
            }
            Err(wait) => *call.responder = Some(wait.not_held()),
        }
    }
    call.large(make)
}

/// The group as it is now. Takes time in proportion to its members.
fn answer(server: &Server, name: &str, last: Option<TaskKey>, limit: usize) -> Answer {
    let (summary, members, next) = match server.store.group(name, last, limit) {
        Ok(found) => found,
        Err(refusal) => return refused(refusal),
    };
    let all = TaskState::ALL.map(TaskState::word);
    let count = |word: &str| summary.tasks().get(word).copied().unwrap_or(0);
    let group = Group {
        name: name.to_owned(),
        state: summary.state(),
        tasks: { all.iter() }
            .map(|word| ((*word).to_owned(), count(word)))
            .collect(),
        executions: summary.executions(),
        worst_exit_code: summary.worst_exit_code(),
        members: members.iter().map(Task::as_member).collect::<Vec<Member>>(),
    };
    let envelope = Envelope {
        next: next.map(|key| key.0.to_string()),
        ..Envelope::ok(group)
    };
    answers::json(200, &envelope)
}
