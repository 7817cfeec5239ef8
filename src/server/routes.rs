//! One table of routes. A handler parses, calls the core, answers; it decides nothing.
//!
//! To add a call: write its handler, add its line to [`ROUTES`] with the parameters it takes, and
//! document it in the README.

use super::access::{Caller, Right};
use super::answer::{self, TaskForm};
use super::audit::Change;
use super::held::HeldWait;
use super::http::Request;
use super::respond::{Answer, Responder};
use super::store::Polled;
use super::{Server, metrics, original, page, text};
use crate::core::{
    Core, Refusal, Selection, Spec, Task, TaskKey, TaskPage, TaskQuery, Time, original_instance,
};
use crate::rules::one_of;
use crate::wire::Envelope;
use crate::wire::agent::{Done, Goodbye, Output, Poll};
use crate::wire::duration::TimeSpan;
use crate::wire::machine::MachineState;
use crate::wire::strict_object::{Posted, StrictObject};
use crate::wire::task::{DryRun, PostedTask, Target, TaskState};
use serde::de::DeserializeOwned;

/// The longest a request may wait for a task: longer ones are asked again.
const MAX_WAIT: TimeSpan = TimeSpan::from_secs(3_600);
/// Tasks in a list when not said otherwise, and at most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

/// With so few executions, none of which has output yet, an answer is small.
const FEW: usize = 16;

/// What a handler is called with.
pub struct Call<'a> {
    /// The server.
    pub server: &'a Server,
    /// The request.
    pub request: &'a Request,
    /// Whose it is.
    pub caller: &'a Caller,
    /// The way back; a handler that holds the request takes it.
    pub responder: &'a mut Option<Responder>,
    /// What a handler that changes something says of it, for the audit.
    pub change: &'a mut Change,
    /// What makes the answer, where a handler leaves that to others.
    pub later: &'a mut Option<Make>,
}

/// Makes an answer.
pub type Make = Box<dyn FnOnce() -> Answer + Send>;

impl Call<'_> {
    /// Leaves an answer that may be large to be made where one may wait for the room it takes.
    pub fn large(self, make: impl FnOnce() -> Answer + Send + 'static) -> Handled {
        *self.later = Some(Box::new(make));
        Ok(None)
    }
}

/// What a handler gives: an answer, or `None` when it has taken the responder, or said who makes the
/// answer later.
pub type Handled = Result<Option<Answer>, Answer>;

/// A call of the API.
pub struct Route {
    /// What the caller must have the right to.
    pub right: Right,
    /// The method.
    pub method: &'static str,
    /// The parts of the path; `*` stands for any one part.
    pub path: &'static [&'static str],
    /// The parameters of the query that it takes. Others are an error: a typo must not silently
    /// change what is done.
    pub query: &'static [&'static str],
    /// What does it.
    pub handler: fn(Call<'_>) -> Handled,
    /// It takes its time, and so a thread of its own.
    pub waits: bool,
}

const fn route(
    right: Right,
    method: &'static str,
    path: &'static [&'static str],
    query: &'static [&'static str],
    handler: fn(Call<'_>) -> Handled,
) -> Route {
    Route {
        right,
        method,
        path,
        query,
        handler,
        waits: false,
    }
}

const OPEN: Right = Right::Open;
const LOOK: Right = Right::Look;
const CHANGE: Right = Right::Change;
const AGENT: Right = Right::Agent;

/// Every call but the original's agents'.
#[rustfmt::skip]
const ROUTES: &[Route] = &[
    route(CHANGE, "POST", &["api", "v1", "task"], &["wait", "format", "strict", "dryRun"], submit),
    route(CHANGE, "POST", &["api", "v1", "task", "status", "new"], &["wait", "format", "strict", "dryRun"], submit),
    route(LOOK, "GET", &["api", "v1", "task"], &["taskPrefix", "state", "label", "limit", "cursor"], list),
    route(LOOK, "GET", &["api", "v1", "task", "*"], &["wait", "format", "strict"], show),
    route(CHANGE, "DELETE", &["api", "v1", "task", "*"], &[], delete),
    route(CHANGE, "POST", &["api", "v1", "task", "*", "cancel"], &["machine"], cancel),
    route(CHANGE, "POST", &["api", "v1", "task", "*", "rerun"], &["all", "wait", "format", "strict"], rerun),
    Route { waits: true, ..route(LOOK, "GET", &["api", "v1", "task", "*", "output"], &["machine", "stream", "offset", "follow", "format"], text::output) },
    route(LOOK, "GET", &["api", "v1", "machine"], &["label", "state"], machines),
    route(AGENT, "POST", &["api", "v1", "agent", "poll"], &[], poll),
    route(AGENT, "POST", &["api", "v1", "agent", "output"], &[], output),
    route(AGENT, "POST", &["api", "v1", "agent", "done"], &[], done),
    route(AGENT, "POST", &["api", "v1", "agent", "goodbye"], &[], goodbye),
    route(OPEN, "GET", &[], &[], page::page),
    route(OPEN, "GET", &["healthz"], &[], healthz),
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
            return Err(answer::error(
                404,
                &format!("there is no /{path}; see the README's API reference"),
            ));
        }
        let methods = methods.join(", ");
        let msg = format!("{} is not for this path, {methods} is", request.method);
        return Err(Answer {
            allow: Some(methods),
            ..answer::error(405, &msg)
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
        return Err(bad(format!(
            "{name}: is not a parameter of this call; known: {known}"
        )));
    }
    Ok(route)
}

fn bad(msg: impl AsRef<str>) -> Answer {
    answer::error(400, msg.as_ref())
}

fn refused(refusal: Refusal) -> Answer {
    answer::refused(&refusal)
}

/// A change that happened and is not safe yet: the caller has to ask again.
fn not_safe<T>((_, why): (T, String)) -> Answer {
    answer::error(503, &why)
}

/// Reads a JSON body, as a [`StrictObject`] or [`Posted`]. The error names the field.
fn body<T: DeserializeOwned>(call: &Call<'_>, what: &str) -> Result<T, Answer> {
    let bytes = &call.request.body;
    if bytes.is_empty() {
        return Err(bad(format!("{what}: the body is empty, expected JSON")));
    }
    check_depth(call, what)?;
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    // To keep in mind where one is costs as much as to read; only for the words of an error.
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut json);
    let value: T = read.map_err(|error| {
        let path = error.path().to_string();
        // "?" stands where the JSON broke off before a name was complete.
        let field = match path.trim_end_matches('?').trim_end_matches('.') {
            "" => what,
            field => field,
        };
        bad(format!("{field}: {}", error.inner()))
    })?;
    json.end()
        .map_err(|error| bad(format!("{what}: something follows the JSON: {error}")))?;
    Ok(value)
}

/// Refuses a body whose JSON is nested too deeply, before anything is made of it.
pub fn check_depth(call: &Call<'_>, what: &str) -> Result<(), Answer> {
    let max = call.server.max_json_depth;
    if nests_within(&call.request.body, max) {
        return Ok(());
    }
    Err(bad(format!(
        "{what}: must not be nested deeper than {max} (--max-json-depth)"
    )))
}

/// Whether arrays and objects are nested no deeper than `max`.
fn nests_within(body: &[u8], max: usize) -> bool {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(byte) = body.get(at) {
        at += 1;
        match byte {
            b'"' => at += string_length(&body[at..]),
            b'{' | b'[' if depth == max => return false,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// The length of a JSON string in bytes, from after its opening quote to after its closing one.
fn string_length(rest: &[u8]) -> usize {
    let mut is_escaped = false;
    for (at, byte) in rest.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Reads a parameter of the query.
fn parameter<T>(
    request: &Request,
    name: &str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, Answer> {
    let value = request.query(name).map(read).transpose();
    value.map_err(|why| {
        bad(format!(
            "{name}: {why}, got {:?}",
            request.query(name).unwrap_or_default()
        ))
    })
}

fn wait_ms(request: &Request) -> Result<u64, Answer> {
    let read = |text: &str| match text.parse::<TimeSpan>() {
        Ok(span) if span <= MAX_WAIT => Ok(span),
        _ => Err(format!(
            "expected a number of seconds or a string such as \"90s\", {MAX_WAIT} at most"
        )),
    };
    Ok(parameter(request, "wait", read)?
        .unwrap_or_default()
        .as_millis())
}

/// The task that the path names.
pub fn named_task(call: &Call<'_>) -> Result<TaskKey, Answer> {
    let name = task_name(call);
    let found = call.server.store.ask(|core| core.find_task(name));
    found.map_err(refused)
}

/// The task that the path names, if only by the beginning of its id: for calls that change nothing.
pub fn looked_at_task(call: &Call<'_>) -> Result<TaskKey, Answer> {
    let name = task_name(call);
    let store = &call.server.store;
    let found = store.ask(|core| core.find_task_by_beginning(name));
    found.map_err(refused)
}

fn task_name<'a>(call: &Call<'a>) -> &'a str {
    let path: &'a [String] = &call.request.path;
    path.get(3).map(String::as_str).unwrap_or_default()
}

/// A parameter that is either set or not.
pub fn flag(request: &Request, name: &str) -> Result<bool, Answer> {
    let set = parameter(request, name, |text| match text {
        "1" | "true" | "" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("expected 1 or 0".into()),
    })?;
    Ok(set.unwrap_or(false))
}

/// How the caller wants a task to be answered.
fn task_form(request: &Request) -> Result<TaskForm, Answer> {
    let text = parameter(request, "format", |text| match text {
        "text" => Ok(true),
        "json" => Ok(false),
        _ => Err("expected text or json".into()),
    })?;
    Ok(TaskForm {
        text: text.unwrap_or(false),
        strict: flag(request, "strict")?,
    })
}

/// Answers with a task: at once, or when it has ended or the time is up.
fn answer_or_wait(
    call: Call<'_>,
    key: TaskKey,
    task: Task,
    wait_ms: u64,
    form: TaskForm,
) -> Handled {
    if wait_ms > 0
        && let Some(responder) = call.responder.take()
    {
        let wait = HeldWait { responder, form };
        match call.server.store.wait(key, wait_ms, wait) {
            Ok(()) => return Ok(None),
            Err(wait) => *call.responder = Some(wait.responder),
        }
        // It may have ended meanwhile.
        let shown = call.server.store.show(key);
        return call.large(move || form.answer(shown));
    }
    call.large(move || form.answer(Ok(task)))
}

/// A submit or rerun that was refused, could not be made safe, or went well.
type Submitted = (Result<TaskKey, Refusal>, Option<Task>);

/// Lets the core accept a task, and answers when that is safe.
fn accept(
    call: Call<'_>,
    operation: impl FnOnce(&mut Core, Time, &str) -> Result<TaskKey, Refusal>,
) -> Handled {
    let wait_ms = wait_ms(call.request)?;
    let form = task_form(call.request)?;
    let store = &call.server.store;
    if let Some(why) = store.trouble() {
        return Err(answer::error(503, &why));
    }
    let id = call.server.fresh_id();
    let accepted = store.change_safely(|core, now| -> Submitted {
        let submitted = operation(core, now, &id);
        let task = match &submitted {
            Ok(key) | Err(Refusal::Taken(key)) => core.show(*key).ok(),
            Err(_) => None,
        };
        (submitted, task)
    });
    match accepted {
        Ok((Ok(key), Some(task))) => {
            *call.change = Change::of(&task);
            if wait_ms == 0 && task.size() <= FEW {
                return Ok(Some(form.answer(Ok(task))));
            }
            answer_or_wait(call, key, task, wait_ms, form)
        }
        Ok((Err(Refusal::Taken(_)), Some(task))) => Err(answer::taken(&task)),
        Ok((Err(refusal), _)) => Err(refused(refusal)),
        Ok((Ok(_), None)) => Err(answer::error(
            503,
            "the task was forgotten at once, to keep a limit",
        )),
        Err(((submitted, _), why)) => {
            if let Ok(key) = submitted {
                store.change(|core, now| core.withdraw(now, key));
            }
            Err(answer::error(503, &why))
        }
    }
}

fn submit(call: Call<'_>) -> Handled {
    let is_dry = flag(call.request, "dryRun")?;
    let Posted(posted): Posted<PostedTask> = body(&call, "the task")?;
    let known = |text: &str| call.server.store.ask(|core| core.pattern(text));
    let spec = Spec::checked(posted, &call.server.texts, known).map_err(bad)?;
    if is_dry {
        return dry_run(call, &spec);
    }
    accept(call, |core, now, id| core.submit(now, id, spec))
}

/// Who would run a task, if it were submitted now.
fn dry_run(call: Call<'_>, spec: &Spec) -> Handled {
    let store = &call.server.store;
    let mut machines = store.ask(|core| core.list_machines(None, None));
    machines.retain(|machine| spec.pattern.matches(&machine.label));
    let count = |state| machines.iter().filter(|m| m.state == state).count() as u32;
    let offline = count(MachineState::Offline);
    let draining = count(MachineState::Draining);
    machines.retain(|machine| machine.state == MachineState::Online);
    call.large(move || {
        let machines: Vec<Target> = { machines.into_iter() }
            .map(|machine| Target {
                label: machine.label,
                instance: machine.instance,
            })
            .collect();
        answer::ok(DryRun {
            matched: machines.len() as u32,
            machines,
            offline,
            draining,
        })
    })
}

fn show(call: Call<'_>) -> Handled {
    let wait_ms = wait_ms(call.request)?;
    let form = task_form(call.request)?;
    let key = looked_at_task(&call)?;
    let task = call.server.store.show(key).map_err(refused)?;
    answer_or_wait(call, key, task, wait_ms, form)
}

fn rerun(call: Call<'_>) -> Handled {
    let all = flag(call.request, "all")?;
    let old = named_task(&call)?;
    accept(call, |core, now, id| core.rerun(now, id, old, all))
}

fn list(call: Call<'_>) -> Handled {
    let request = call.request;
    let query = TaskQuery {
        prefix: request.query("taskPrefix").map(str::to_owned),
        state: parameter(request, "state", |text| {
            one_of(&TaskState::ALL, TaskState::word, text)
        })?,
        label: request.query("label").map(str::to_owned),
    };
    let limit = parameter(request, "limit", |text| {
        let number = text.parse().ok().filter(|n| (1..=MAX_LIMIT).contains(n));
        number.ok_or_else(|| format!("expected a number from 1 to {MAX_LIMIT}"))
    })?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    let cursor = |text: &str| {
        let number = text.parse().ok().map(TaskKey);
        number.ok_or_else(|| "expected what an earlier answer gave as \"next\"".into())
    };
    let mut before = parameter(request, "cursor", cursor)?;
    let mut tasks = Vec::new();
    let next = loop {
        let page: TaskPage = call
            .server
            .store
            .ask(|core| core.list(&query, before, limit - tasks.len()));
        tasks.extend(page.tasks);
        before = page.next;
        if !page.interrupted {
            break page.next;
        }
    };
    let next = next.map(|key| key.0.to_string());
    call.large(move || {
        let data: Vec<_> = tasks
            .iter()
            .map(|task| task.answer(answer::LISTED_OUTPUT_BYTES))
            .collect();
        let list = Envelope {
            next,
            ..Envelope::ok(data)
        };
        answer::json(200, &list)
    })
}

fn cancel(call: Call<'_>) -> Handled {
    let key = named_task(&call)?;
    let machine = call.request.query("machine");
    if machine == Some("") {
        return Err(bad("machine: expected an instance or a label, got nothing"));
    }
    let selection = machine.map_or(Selection::All, |name| Selection::Machine(name.to_owned()));
    let canceled = call.server.store.change_safely(|core, now| {
        core.cancel(now, key, &selection)?;
        core.show(key)
    });
    let canceled = canceled.map_err(not_safe)?;
    if let Ok(task) = &canceled {
        *call.change = Change::of(task);
    }
    call.large(move || answer::task(canceled))
}

fn delete(call: Call<'_>) -> Handled {
    let key = named_task(&call)?;
    let deleted = call.server.store.change_safely(|core, _| {
        let task = core.show(key)?;
        core.delete(key).map(|()| task)
    });
    *call.change = Change::of(&deleted.map_err(not_safe)?.map_err(refused)?);
    Ok(Some(answer::ok(())))
}

fn machines(call: Call<'_>) -> Handled {
    let label = call.request.query("label");
    let state = parameter(call.request, "state", |text| {
        one_of(&MachineState::ALL, MachineState::word, text)
    })?;
    let machines = call
        .server
        .store
        .ask(|core| core.list_machines(label, state));
    call.large(move || answer::ok(machines))
}

fn poll(call: Call<'_>) -> Handled {
    let StrictObject(poll): StrictObject<Poll> = body(&call, "the poll")?;
    let Some(responder) = call.responder.take() else {
        return Ok(None);
    };
    let polled = call.server.store.poll(&poll, responder);
    if !matches!(polled, Polled::Refused(..)) {
        call.server.access.note_agent(call.caller, &poll.label);
    }
    match polled {
        Polled::Held => Ok(None),
        Polled::Answer(responder, orders) => {
            *call.responder = Some(responder);
            Ok(Some(answer::orders(&orders)))
        }
        Polled::Refused(responder, refusal) => {
            *call.responder = Some(responder);
            Err(refused(refusal))
        }
        Polled::Unsafe(responder, why) => {
            *call.responder = Some(responder);
            Err(answer::error(503, &why))
        }
    }
}

/// An agent proves who it is by knowing its instance, which is random. That of an agent of the
/// original is made of its label, which anybody can guess: nobody else may speak for it.
fn check_speaks_for(instance: &str) -> Result<(), Answer> {
    if instance.starts_with(&original_instance("")) {
        return Err(answer::error(422, "instance: is not an agent's own"));
    }
    Ok(())
}

fn output(call: Call<'_>) -> Handled {
    let StrictObject(output): StrictObject<Output> = body(&call, "the output")?;
    check_speaks_for(&output.instance)?;
    // The agent drops what was taken.
    let taken = call
        .server
        .store
        .change_safely(|core, now| core.output(now, &output.instance, &output.pieces));
    let orders = taken.map_err(not_safe)?;
    Ok(Some(answer::orders(&orders)))
}

fn done(call: Call<'_>) -> Handled {
    let StrictObject(done): StrictObject<Done> = body(&call, "the results")?;
    check_speaks_for(&done.instance)?;
    let taken = call
        .server
        .store
        .change_safely(|core, now| core.done_and_next(now, &done));
    Ok(Some(answer::ok(taken.map_err(not_safe)?)))
}

fn goodbye(call: Call<'_>) -> Handled {
    let StrictObject(goodbye): StrictObject<Goodbye> = body(&call, "the goodbye")?;
    check_speaks_for(&goodbye.instance)?;
    let left = call
        .server
        .store
        .change_safely(|core, now| core.leave(now, &goodbye));
    left.map_err(not_safe)?;
    Ok(Some(answer::ok(())))
}

fn healthz(_: Call<'_>) -> Handled {
    Ok(Some(answer::ok("alive")))
}
