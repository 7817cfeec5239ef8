//! The table of routes. To add a call: write its handler, add its line to [`ROUTES`] with the parameters it takes, and
//! describe it in `src/docs/api.md` and `src/docs/openapi.json`.

use super::access::Right;
use super::call::{Call, Handled, Route, route, with_bodies};
use super::service::MUTE;
use super::{
    agents, blobs, crew, docs, groups, halt, hand_out, limits, lists, machines, metrics, original,
    output, page, report, schedules, sweeps, tasks,
};
use crate::server::answers;
use crate::server::http::{Answer, Request};

const OPEN: Right = Right::Open;
const LOOK: Right = Right::Look;
const CHANGE: Right = Right::Change;
const AGENT: Right = Right::Agent;
const HAND_OUT: Right = Right::HandOut;
const READ: Right = Right::Read;
/// The only parameter that may be given more than once.
const REPEATABLE: &str = "tag";

/// A list of tasks may be so many times as large as one task.
const LIST_BODIES: usize = 16;

/// Every call but the original's agents'.
#[rustfmt::skip]
const ROUTES: &[Route] = &[
    route(CHANGE, "POST", &["api", "v1", "task"], &["wait", "format", "strict", "dryRun"], tasks::submit),
    route(CHANGE, "POST", &["api", "v1", "task", "status", "new"], &["wait", "format", "strict", "dryRun"], tasks::submit),
    route(LOOK, "GET", &["api", "v1", "task"], &["taskPrefix", "state", "label", "clean", "group", "tag", "limit", "cursor"], tasks::list),
    route(LOOK, "GET", &["api", "v1", "task", "*"], &["wait", "format", "strict"], tasks::show),
    route(CHANGE, "DELETE", &["api", "v1", "task", "*"], &[], tasks::delete),
    route(CHANGE, "POST", &["api", "v1", "task", "*", "cancel"], &["machine", "dependents"], tasks::cancel),
    route(CHANGE, "POST", &["api", "v1", "task", "*", "pause"], &[], tasks::pause),
    route(CHANGE, "POST", &["api", "v1", "task", "*", "resume"], &[], tasks::resume),
    route(CHANGE, "POST", &["api", "v1", "task", "*", "stop"], &["running"], tasks::stop),
    route(CHANGE, "POST", &["api", "v1", "task", "*", "undo"], &["machine"], tasks::undo),
    route(CHANGE, "POST", &["api", "v1", "task", "*", "forgive"], &["machine"], tasks::forgive),
    route(CHANGE, "POST", &["api", "v1", "task", "*", "rerun"], &["all", "wait", "format", "strict"], tasks::rerun),
    route(LOOK, "GET", &["api", "v1", "task", "*", "report"], &["format"], report::report),
    route(LOOK, "GET", &["api", "v1", "task", "*", "output"], &["machine", "stream", "offset", "follow", "format"], output::output),
    with_bodies(LIST_BODIES, route(CHANGE, "POST", &["api", "v1", "tasks"], &["dryRun"], lists::submit)),
    route(CHANGE, "POST", &["api", "v1", "cancel"], &["state", "taskPrefix", "label", "tag", "group", "notStarted", "dryRun"], sweeps::cancel),
    route(CHANGE, "POST", &["api", "v1", "rerun"], &["state", "taskPrefix", "label", "tag", "group", "all", "dryRun"], sweeps::rerun),
    route(CHANGE, "POST", &["api", "v1", "group", "*", "cancel"], &["notStarted", "dryRun"], sweeps::cancel_group),
    route(LOOK, "GET", &["api", "v1", "schedule"], &[], schedules::list),
    route(LOOK, "GET", &["api", "v1", "schedule", "*"], &[], schedules::show),
    route(CHANGE, "PUT", &["api", "v1", "schedule", "*"], &["dryRun"], schedules::put),
    route(CHANGE, "DELETE", &["api", "v1", "schedule", "*"], &[], schedules::delete),
    route(CHANGE, "POST", &["api", "v1", "schedule", "*", "pause"], &[], schedules::pause),
    route(CHANGE, "POST", &["api", "v1", "schedule", "*", "resume"], &[], schedules::resume),
    route(CHANGE, "POST", &["api", "v1", "schedule", "*", "run"], &[], schedules::run),
    route(LOOK, "GET", &["api", "v1", "group", "*"], &["wait", "limit", "cursor"], groups::show),
    route(CHANGE, "POST", &["api", "v1", "halt"], &["all"], halt::halt),
    route(CHANGE, "DELETE", &["api", "v1", "halt"], &[], halt::lift),
    route(LOOK, "GET", &["api", "v1", "halt"], &[], halt::show),
    route(CHANGE, "PUT", &["api", "v1", "limit", "*"], &[], limits::set),
    route(LOOK, "GET", &["api", "v1", "limit", "*"], &[], limits::show),
    route(CHANGE, "DELETE", &["api", "v1", "limit", "*"], &[], limits::remove),
    route(LOOK, "GET", &["api", "v1", "limit"], &[], limits::list),
    route(LOOK, "GET", &["api", "v1", "status"], &[], halt::status),
    route(CHANGE, "POST", &["api", "v1", "suspend"], &[], crew::suspend),
    route(LOOK, "GET", &["api", "v1", "summary"], &[], crew::summary),
    route(LOOK, "GET", &["api", "v1", "suspend"], &[], crew::suspensions),
    route(CHANGE, "DELETE", &["api", "v1", "suspend"], &["machinePattern"], crew::lift),
    route(CHANGE, "POST", &["api", "v1", "machine", "*", "drain"], &[], crew::drain),
    route(CHANGE, "POST", &["api", "v1", "machine", "*", "undrain"], &[], crew::undrain),
    route(CHANGE, "POST", &["api", "v1", "machine", "*", "shutdown"], &[], crew::shutdown),
    route(LOOK, "GET", &["api", "v1", "machine"], &["label", "state", "tag"], machines::list),
    route(AGENT, "POST", &["api", "v1", "agent", "poll"], &[], agents::poll),
    route(AGENT, "POST", &["api", "v1", "agent", "output"], &[], agents::output),
    route(AGENT, "POST", &["api", "v1", "agent", "done"], &[], agents::done),
    route(AGENT, "POST", &["api", "v1", "agent", "goodbye"], &[], agents::goodbye),
    route(AGENT, "GET", &["api", "v1", "agent", "file", "*"], &[], blobs::read_for_agent).reading_files(),
    route(AGENT, "PUT", &["api", "v1", "agent", "file"], &["execution", "attempt", "path"], blobs::finish).taking_in(blobs::begin_hand_back),
    route(CHANGE, "PUT", &["api", "v1", "file", "*"], &[], blobs::finish).taking_in(blobs::begin_file),
    route(LOOK, "GET", &["api", "v1", "blob"], &[], blobs::list),
    route(READ, "GET", &["api", "v1", "blob", "*"], &[], blobs::read).reading_files(),
    route(CHANGE, "PATCH", &["api", "v1", "blob", "*"], &["offset"], blobs::finish).taking_in(blobs::begin_piece),
    route(CHANGE, "DELETE", &["api", "v1", "blob", "*"], &[], blobs::delete).reading_files(),
    route(OPEN, "GET", &[], &[], page::page),
    route(OPEN, "GET", &["docs"], &[], docs::index),
    route(OPEN, "GET", &["docs", "*"], &[], docs::page),
    route(OPEN, "GET", &["api", "v1", "openapi.json"], &[], docs::openapi),
    route(HAND_OUT, "GET", &["sidebike"], &["arch"], hand_out::binary).reading_files(),
    route(HAND_OUT, "GET", &["sidebike.sha256"], &["arch"], hand_out::hash).reading_files(),
    route(OPEN, "GET", &["healthz"], &[], healthz),
    route(OPEN, "GET", &["leader"], &[], leader),
    route(LOOK, "GET", &["metrics"], &[], metrics::metrics),
];

/// Every call.
pub fn all() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().chain(original::ROUTES)
}

/// Finds the call that a request makes, or the answer that there is none.
pub fn find(request: &Request) -> Result<&'static Route, Answer> {
    let fits = |route: &&Route| {
        // From the end: nearly all begin alike.
        let parts = route.path.iter().rev().zip(request.path.iter().rev());
        route.path.len() == request.path.len() && { parts }
            .all(|(want, is)| want == is || *want == "*")
    };
    let method = if request.method == "HEAD" {
        "GET"
    } else {
        &request.method
    };
    let Some(route) = all().filter(|route| route.method == method).find(fits) else {
        let methods: Vec<&str> = all().filter(fits).map(|route| route.method).collect();
        if methods.is_empty() {
            let path = request.path.join("/");
            return Err(answers::error(
                404,
                &format!("there is no /{path}; /docs/api describes the calls that there are"),
            ));
        }
        let methods = methods.join(", ");
        let msg = format!("{} is not for this path, {methods} is", request.method);
        return Err(Answer {
            allow: Some(methods),
            ..answers::error(405, &msg)
        });
    };
    if let Some(name) = request
        .query_names()
        .find(|name| !route.query.contains(name))
    {
        let known = if route.query.is_empty() {
            "none".into()
        } else {
            route.query.join(", ")
        };
        return Err(answers::bad(format!(
            "{name}: is not a parameter of this call; known: {known}"
        )));
    }
    let is_twice = |name: &&str| request.query_all(name).nth(1).is_some();
    if let Some(name) = request
        .query_names()
        .find(is_twice)
        .filter(|name| *name != REPEATABLE)
    {
        return Err(answers::bad(format!("{name}: is given twice")));
    }
    Ok(route)
}

fn healthz(call: Call<'_>) -> Handled {
    match call.server.store.health.trouble() {
        None => Ok(Some(answers::ok("alive"))),
        Some(why) => Err(answers::error(503, &why)),
    }
}

/// Whether requests are to be sent to this server, for load balancers.
fn leader(call: Call<'_>) -> Handled {
    match call.server.store.is_mute() {
        false => Ok(Some(answers::ok("leads"))),
        true => Err(answers::ask_another(MUTE, None)),
    }
}
