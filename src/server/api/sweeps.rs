//! Calls that cancel or rerun many tasks: those of a group, or all that a filter means.

use super::audit::Change;
use super::call::{Call, Handled};
use super::groups::named_group;
use super::parse::flag;
use super::server::Server;
use super::tasks::filter;
use crate::core::{MAX_RERUNS, MAX_SWEPT, Meant, Selection, Sweep, TaskKey, TaskQuery};
use crate::server::answers::{self, bad, refused};
use crate::server::http::{Answer, Request};

/// Which of the tasks that are meant, and what is done about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Cancel { only_unstarted: bool },
    Rerun { all: bool },
}

/// `POST /api/v1/cancel`.
pub fn cancel(call: Call<'_>) -> Handled {
    let only_unstarted = flag(call.request, "notStarted")?;
    let query = some_filter(call.request)?;
    sweep(call, query, What::Cancel { only_unstarted })
}

/// `POST /api/v1/rerun`.
pub fn rerun(call: Call<'_>) -> Handled {
    let all = flag(call.request, "all")?;
    let query = some_filter(call.request)?;
    sweep(call, query, What::Rerun { all })
}

/// `POST /api/v1/group/{name}/cancel`.
pub fn cancel_group(call: Call<'_>) -> Handled {
    let name = named_group(&call);
    let store = &call.server.store;
    let known = store.ask(|core| core.members_after(name, Some(TaskKey(u64::MAX))).map(drop));
    known.map_err(refused)?;
    let query = TaskQuery {
        group: Some(name.to_owned()),
        ..TaskQuery::default()
    };
    let only_unstarted = flag(call.request, "notStarted")?;
    sweep(call, query, What::Cancel { only_unstarted })
}

/// The filter of a call that changes what it means: without one it would mean everything.
fn some_filter(request: &Request) -> Result<TaskQuery, Answer> {
    let query = filter(request)?;
    // An empty value is a variable of a script that was not set.
    for (name, value) in [
        ("taskPrefix", &query.prefix),
        ("label", &query.label),
        ("group", &query.group),
    ] {
        if value.as_ref().is_some_and(String::is_empty) {
            return Err(bad(format!("{name}: must not be empty here")));
        }
    }
    let is_given = query.prefix.is_some()
        || query.state.is_some()
        || query.label.is_some()
        || query.group.is_some()
        || !query.tags.is_empty();
    match is_given {
        true => Ok(query),
        false => Err(bad(
            "state: at least one of state, taskPrefix, label, tag and group must say which tasks are meant",
        )),
    }
}

fn sweep(call: Call<'_>, query: TaskQuery, what: What) -> Handled {
    let is_dry = flag(call.request, "dryRun")?;
    if let Some(why) = call.server.store.trouble() {
        return Err(answers::error(503, &why));
    }
    let (change, done) = Change::later(in_words(&query, is_dry));
    *call.change = change;
    let server = call.server.clone();
    // It may take long, and is done by a thread that may take it.
    call.large(move || {
        let meant = meant(&server, &query);
        let (answer, sweep) = match what {
            What::Cancel { only_unstarted } => {
                let selection = match query.label {
                    Some(label) => Selection::Machine(label),
                    None => Selection::All,
                };
                let sweep = Sweep::new(meant, selection, only_unstarted, is_dry);
                cancel_all(&server, sweep)
            }
            What::Rerun { all } => {
                let sweep = Sweep::new(meant, Selection::All, false, is_dry).oldest_first();
                rerun_all(&server, sweep, all)
            }
        };
        done.is(&sweep.swept());
        answer
    })
}

/// The filter, for the audit.
fn in_words(query: &TaskQuery, is_dry: bool) -> String {
    let mut words = Vec::new();
    let state = query.state.map(|state| state.word().to_owned());
    for (name, value) in [
        ("state", &state),
        ("taskPrefix", &query.prefix),
        ("label", &query.label),
        ("group", &query.group),
    ] {
        words.extend(value.iter().map(|value| format!("{name}={value}")));
    }
    let tags = query.tags.iter();
    words.extend(tags.map(|(name, value)| format!("tag={name}={value}")));
    words.extend(is_dry.then(|| "dryRun=1".to_owned()));
    words.join("&")
}

/// The tasks that a filter means at this moment.
fn meant(server: &Server, query: &TaskQuery) -> Meant {
    let mut meant = Meant::default();
    while !meant.is_complete() {
        server.store.ask(|core| core.find_meant(query, &mut meant));
    }
    meant
}

/// Cancels all of one task, in slices.
pub fn cancel_one(server: &Server, key: TaskKey) {
    cancel_in_slices(
        server,
        &mut Sweep::new(Meant::one(key), Selection::All, false, false),
    );
}

fn cancel_in_slices(server: &Server, sweep: &mut Sweep) {
    let store = &server.store;
    while !store.change(|core, now| core.cancel_slice(now, sweep, MAX_SWEPT)) {}
}

fn cancel_all(server: &Server, mut sweep: Sweep) -> (Answer, Sweep) {
    let store = &server.store;
    cancel_in_slices(server, &mut sweep);
    let answer = match store.change_safely(|_, _| ()) {
        Ok(()) => answers::ok(sweep.swept()),
        Err(not_safe) => answers::not_safe(not_safe),
    };
    (answer, sweep)
}

fn rerun_all(server: &Server, mut sweep: Sweep, all: bool) -> (Answer, Sweep) {
    let store = &server.store;
    loop {
        let ids: Vec<String> = (0..MAX_RERUNS).map(|_| server.fresh_id()).collect();
        if store.change(|core, now| core.rerun_slice(now, &mut sweep, all, &ids)) {
            break;
        }
    }
    let answer = match store.change_safely(|_, _| ()) {
        Ok(()) => answers::ok(sweep.swept()),
        Err(((), why)) => {
            let keys = sweep.new_tasks().to_vec();
            store.change(|core, now| core.withdraw_all(now, &keys));
            answers::error(503, &why)
        }
    };
    (answer, sweep)
}
