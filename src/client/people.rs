//! The calls of the commands for people.
//!
//! To add one: a method here, which ends in `look` (reads something) or `change` (changes something).

use super::ask::{Ask, Repeat};
use super::{CALL_TIMEOUT, CallError, Client, Kind, POLL_SLACK, unwritable, with_json};
use crate::wire::Envelope;
use crate::wire::crew::{PostedSuspension, Summary, Suspension};
use crate::wire::duration::TimeSpan;
use crate::wire::event::TaskEvent;
use crate::wire::group::Group;
use crate::wire::halt::{Halt, Halted, PostedHalt, Status};
use crate::wire::limit::{Limit, PostedLimit};
use crate::wire::machine::{Machine, MachineState};
use crate::wire::report::Report;
use crate::wire::schedule::{Schedule, SchedulePreview};
use crate::wire::sweep::Swept;
use crate::wire::task::{DryRun, Task, TaskState};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest answer, in bytes: a list of a thousand tasks with their output.
const MAX_ANSWER: u64 = 256 << 20;
/// The longest event, in bytes: 64 KiB of output, each byte escaped as six.
const MAX_LINE: u64 = 1 << 20;
/// How many bytes are read of a refusal in place of an event stream.
const MAX_REFUSAL: u64 = 64 << 10;

/// Which tasks to list.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Only those whose name begins with this.
    pub prefix: Option<String>,
    /// Only those in this state.
    pub state: Option<TaskState>,
    /// Only those with a target of this label.
    pub label: Option<String>,
    /// Only those with an undo that failed or is owed.
    pub is_unclean: bool,
    /// Only the members of this group.
    pub group: Option<String>,
    /// Only those with all of these tags.
    pub tags: Vec<(String, String)>,
    /// This many at most.
    pub limit: usize,
}

/// What agents are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// To take no more commands.
    Drain,
    /// To take commands again.
    Undrain,
    /// To end.
    Shutdown,
}

/// Which machines to list.
#[derive(Debug, Clone, Default)]
pub struct MachineFilter {
    /// Only those of this label.
    pub label: Option<String>,
    /// Only those in this state.
    pub state: Option<MachineState>,
    /// Only those with all these tags, each as `NAME=PATTERN`.
    pub tags: Vec<String>,
}

/// A program that the server hands out.
#[derive(Debug)]
pub struct HandedOut {
    /// The hash of its bytes.
    pub sha256: String,
    /// The version of the server, which is that of its programs. Older servers do not say it.
    pub version: Option<String>,
}

impl Client {
    /// Submits a task. Where there are several servers it gets an id of its own, unless it has one: a server to which the
    /// submit is repeated then knows whether it has arrived.
    pub fn submit(&self, task: &Map<String, Value>) -> Result<Task, CallError> {
        let call = "submit the task";
        let has_id = task.get("id").is_some_and(|id| !id.is_null());
        if has_id || self.addresses.count() == 1 {
            let repeat = match has_id {
                true => Repeat::Safe,
                false => Repeat::NotTwice,
            };
            return self.post_json(call, "task", task, repeat);
        }
        let mut task = task.clone();
        let id = fresh_id();
        task.insert("id".into(), id.clone().into());
        self.submit_with_ids(call, "task", &task, |accepted: &Task| *accepted.id == id)
    }

    /// A submit that may be repeated to another server, because it has an id that nobody else has. If an earlier server has
    /// accepted it, the ids are taken; `is_own` recognizes what it has accepted.
    fn submit_with_ids<A: DeserializeOwned>(
        &self,
        call: &'static str,
        path: &str,
        submitted: &impl serde::Serialize,
        is_own: impl Fn(&A) -> bool,
    ) -> Result<A, CallError> {
        let body = serde_json::to_vec(submitted);
        self.in_turn(call, &api(path), Repeat::Safe, |ask| {
            let body = body.as_deref().map_err(unwritable)?;
            let (status, answer) = self.exchange(ask, body, CALL_TIMEOUT, MAX_ANSWER)?;
            if (status, ask.may_be_done) == (409, true)
                && let Ok(Envelope { data: accepted, .. }) = serde_json::from_slice(&answer)
                && is_own(&accepted)
            {
                return Ok(accepted);
            }
            self.understand(status, answer)
        })
    }

    /// Finds the machines that would run a task if it were submitted now.
    pub fn dry_run(&self, task: &Map<String, Value>) -> Result<DryRun, CallError> {
        self.ask_about("find out which machines match", "task?dryRun=1", task)
    }

    /// Gets a task by its id, the beginning of its id, or its name. Waits up to `wait` for its end.
    pub fn task(&self, name: &str, wait: TimeSpan) -> Result<Task, CallError> {
        let path = format!("task/{}?wait={}ms", encoded(name), wait.as_millis());
        self.look("look at the task", &path, Duration::from(wait) + POLL_SLACK)
    }

    /// Lists the newest tasks.
    pub fn tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>, CallError> {
        let limit = filter.limit.to_string();
        let tags = filter.tags.iter();
        let tags: Vec<String> = tags
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut parameters: Vec<(&str, Option<&str>)> = vec![
            ("limit", Some(&limit)),
            ("taskPrefix", filter.prefix.as_deref()),
            ("state", filter.state.map(TaskState::word)),
            ("label", filter.label.as_deref()),
            ("clean", filter.is_unclean.then_some("0")),
            ("group", filter.group.as_deref()),
        ];
        parameters.extend(tags.iter().map(|tag| ("tag", Some(tag.as_str()))));
        self.look("list tasks", &with_query("task", &parameters), CALL_TIMEOUT)
    }

    /// How a group goes, with its first members. Waits up to `wait` for its end.
    pub fn group(&self, name: &str, members: u32, wait: TimeSpan) -> Result<Group, CallError> {
        let path = format!(
            "group/{}?limit={members}&wait={}ms",
            encoded(name),
            wait.as_millis()
        );
        self.look(
            "look at the group",
            &path,
            Duration::from(wait) + POLL_SLACK,
        )
    }

    /// Submits all tasks of a list, or none; or only finds out what would become of them. Where there are several servers
    /// each task gets an id of its own, as in [`submit`](Client::submit).
    pub fn submit_all(&self, list: &Value, is_dry: bool) -> Result<Vec<Task>, CallError> {
        let call = "submit the tasks";
        if is_dry {
            return self.ask_about(call, "tasks?dryRun=1", list);
        }
        if self.addresses.count() == 1 {
            return self.change(call, "tasks", list);
        }
        let mut list = list.clone();
        let made = add_ids(&mut list);
        self.submit_with_ids(call, "tasks", &list, |taken: &Vec<Task>| {
            // All or none: with one id that nobody else has the whole list was accepted.
            taken.iter().any(|task| made.contains(&*task.id))
        })
    }

    /// The path of a call about a group.
    pub fn group_path(&self, name: &str, call: &str) -> String {
        format!("group/{}/{call}", encoded(name))
    }

    /// Cancels or reruns all tasks that are meant, or only finds them.
    pub fn sweep(
        &self,
        path: &str,
        parameters: &[(&'static str, String)],
        is_dry: bool,
    ) -> Result<Swept, CallError> {
        let given = parameters.iter();
        let given = given.map(|(name, value)| (*name, Some(value.as_str())));
        let dry = ("dryRun", is_dry.then_some("1"));
        let parameters: Vec<(&str, Option<&str>)> = given.chain([dry]).collect();
        let path = with_query(path, &parameters);
        match is_dry {
            true => self.ask_about("change the tasks", &path, &()),
            false => self.change("change the tasks", &path, &()),
        }
    }

    /// Cancels a task, or its executions on one machine. With `dependents` those who wait for it, too.
    pub fn cancel(
        &self,
        id: &str,
        machine: Option<&str>,
        dependents: bool,
    ) -> Result<Task, CallError> {
        let path = format!("task/{}/cancel", encoded(id));
        let query = [
            ("machine", machine),
            ("dependents", dependents.then_some("1")),
        ];
        self.change("cancel the task", &with_query(&path, &query), &())
    }

    /// Starts nothing more of a task until it is resumed.
    pub fn pause(&self, id: &str) -> Result<Task, CallError> {
        let path = format!("task/{}/pause", encoded(id));
        self.change("pause the task", &path, &())
    }

    /// Goes on with a task that is paused.
    pub fn resume(&self, id: &str) -> Result<Task, CallError> {
        let path = format!("task/{}/resume", encoded(id));
        self.change("resume the task", &path, &())
    }

    /// Starts nothing more of a task. What runs is canceled with `running`, ends by itself without, and does as the
    /// task says if that is left open.
    pub fn stop(&self, id: &str, running: Option<bool>) -> Result<Task, CallError> {
        let path = format!("task/{}/stop", encoded(id));
        let running = running.map(|running| if running { "1" } else { "0" });
        let path = with_query(&path, &[("running", running)]);
        self.change("stop the task", &path, &())
    }

    /// Has the undos of a task run again, or those on one machine.
    pub fn undo(&self, id: &str, machine: Option<&str>) -> Result<Task, CallError> {
        let path = format!("task/{}/undo", encoded(id));
        let path = with_query(&path, &[("machine", machine)]);
        self.change("undo the task", &path, &())
    }

    /// Settles what a task owes, or what it owes on one machine.
    pub fn forgive(&self, id: &str, machine: Option<&str>) -> Result<Task, CallError> {
        let path = format!("task/{}/forgive", encoded(id));
        let path = with_query(&path, &[("machine", machine)]);
        self.change("settle what the task owes", &path, &())
    }

    /// Cancels every task with an undo, or every task, and has new ones refused.
    pub fn halt(&self, halt: &PostedHalt, all: bool) -> Result<Halted, CallError> {
        let path = format!("halt?all={}", u8::from(all));
        self.change("halt", &path, halt)
    }

    /// Lifts the halt, if there is one.
    pub fn lift_halt(&self) -> Result<(), CallError> {
        self.delete("lift the halt", "halt")
    }

    /// Makes a limit, or changes it.
    pub fn set_limit(&self, name: &str, limit: &PostedLimit) -> Result<Limit, CallError> {
        self.put("set the limit", &format!("limit/{}", encoded(name)), limit)
    }

    /// All limits.
    pub fn limits(&self) -> Result<Vec<Limit>, CallError> {
        self.look("list the limits", "limit", CALL_TIMEOUT)
    }

    /// Removes a limit.
    pub fn remove_limit(&self, name: &str) -> Result<(), CallError> {
        self.delete("remove the limit", &format!("limit/{}", encoded(name)))
    }

    /// The halt that is in force.
    pub fn halted(&self) -> Result<Option<Halt>, CallError> {
        self.look("find out whether there is a halt", "halt", CALL_TIMEOUT)
    }

    /// Suspends machines.
    pub fn suspend(&self, suspension: &PostedSuspension) -> Result<Suspension, CallError> {
        self.change("suspend the machines", "suspend", suspension)
    }

    /// The suspensions in force.
    pub fn suspensions(&self) -> Result<Vec<Suspension>, CallError> {
        self.look("list the suspensions", "suspend", CALL_TIMEOUT)
    }

    /// Lifts the suspension of a pattern, or all; gives those that were in force.
    pub fn lift_suspensions(&self, pattern: Option<&str>) -> Result<Vec<Suspension>, CallError> {
        let path = with_query("suspend", &[("machinePattern", pattern)]);
        self.delete("lift the suspension", &path)
    }

    /// Drains the agents that a name means, or has them do something else.
    pub fn errand(&self, name: &str, errand: Errand) -> Result<Vec<Machine>, CallError> {
        let (word, call) = match errand {
            Errand::Drain => ("drain", "drain the agents"),
            Errand::Undrain => ("undrain", "have the agents take commands again"),
            Errand::Shutdown => ("shutdown", "shut the agents down"),
        };
        let path = format!("machine/{}/{word}", encoded(name));
        self.change(call, &path, &())
    }

    /// How the server is, at a glance; none if it is older than that.
    pub fn summary(&self) -> Result<Option<Summary>, CallError> {
        match self.look("look at the server", "summary", CALL_TIMEOUT) {
            Err(error) if error.status() == Some(404) => Ok(None),
            summary => summary.map(Some),
        }
    }

    /// What everybody should know who works with this server; none if it is older than that.
    pub fn status(&self) -> Result<Option<Status>, CallError> {
        match self.look("look at the server", "status", CALL_TIMEOUT) {
            Err(error) if error.status() == Some(404) => Ok(None),
            status => status.map(Some),
        }
    }

    /// Makes a schedule, or changes it.
    pub fn put_schedule(
        &self,
        id: &str,
        schedule: &Map<String, Value>,
    ) -> Result<Schedule, CallError> {
        let path = format!("schedule/{}", encoded(id));
        self.put("make the schedule", &path, schedule)
    }

    /// When a schedule would fire if it were made.
    pub fn preview_schedule(
        &self,
        id: &str,
        schedule: &Map<String, Value>,
    ) -> Result<SchedulePreview, CallError> {
        let path = format!("schedule/{}?dryRun=1", encoded(id));
        self.put("find out when it would fire", &path, schedule)
    }

    /// Pauses, resumes or fires a schedule; `what` is the last part of the path.
    pub fn change_schedule(&self, id: &str, what: &str) -> Result<Schedule, CallError> {
        let path = format!("schedule/{}/{what}", encoded(id));
        self.change("change the schedule", &path, &())
    }

    /// Deletes a schedule.
    pub fn delete_schedule(&self, id: &str) -> Result<(), CallError> {
        self.delete("delete the schedule", &format!("schedule/{}", encoded(id)))
    }

    /// A schedule.
    pub fn schedule(&self, id: &str) -> Result<Schedule, CallError> {
        let path = format!("schedule/{}", encoded(id));
        self.look("look at the schedule", &path, CALL_TIMEOUT)
    }

    /// All schedules.
    pub fn schedules(&self) -> Result<Vec<Schedule>, CallError> {
        self.look("list schedules", "schedule", CALL_TIMEOUT)
    }

    /// The report of a task.
    pub fn report(&self, id: &str) -> Result<Report, CallError> {
        let path = format!("task/{}/report", encoded(id));
        self.look("get the report", &path, CALL_TIMEOUT)
    }

    /// The same as a text; `format` is a value of the parameter of that name.
    pub fn report_text(&self, id: &str, format: &str) -> Result<String, CallError> {
        let path = format!("task/{}/report", encoded(id));
        let path = with_query(&path, &[("format", Some(format))]);
        self.look_at_text("get the report", &api(&path))
    }

    /// The figures of the server, in the text format of Prometheus.
    pub fn metrics(&self) -> Result<String, CallError> {
        self.look_at_text("get the figures", "/metrics")
    }

    /// The program that the server hands out for an architecture; none if it has none.
    pub fn image(&self, arch: &str) -> Result<Option<HandedOut>, CallError> {
        let path = with_query("/sidebike.sha256", &[("arch", Some(arch))]);
        let call = "find out which program the server hands out";
        self.in_turn(call, &path, Repeat::Safe, |ask| {
            let answer = ask.answered(get(ask, Some(CALL_TIMEOUT)).call())?;
            let version = answer.headers().get("sidebike-version");
            let version = version.and_then(|version| Some(version.to_str().ok()?.to_owned()));
            let (status, body) = ask.read(Ok(answer), MAX_ANSWER)?;
            let text = String::from_utf8_lossy(&body);
            match (status, text.split_whitespace().next()) {
                (404, _) => Ok(None),
                (200, Some(sha256)) => Ok(Some(HandedOut {
                    sha256: sha256.to_owned(),
                    version,
                })),
                _ => (self.understand(status, body))
                    .and_then(|()| Err(Kind::NotUnderstood(format!("status {status}")))),
            }
        })
    }

    /// Runs a task again where it did not succeed, or everywhere.
    pub fn rerun(&self, id: &str, all: bool) -> Result<Task, CallError> {
        let path = format!("task/{}/rerun?all={}", encoded(id), u8::from(all));
        self.change("run the task again", &path, &())
    }

    /// Lists machines, all or those that fit.
    pub fn machines(&self, filter: &MachineFilter) -> Result<Vec<Machine>, CallError> {
        let mut parameters = vec![
            ("label", filter.label.as_deref()),
            ("state", filter.state.map(MachineState::word)),
        ];
        parameters.extend(filter.tags.iter().map(|tag| ("tag", Some(tag.as_str()))));
        let path = with_query("machine", &parameters);
        self.look("list machines", &path, CALL_TIMEOUT)
    }

    /// Opens the event stream of a task: what has happened, and with `live` what happens until it ends.
    pub fn events(
        &self,
        id: &str,
        machine: Option<&str>,
        live: bool,
    ) -> Result<EventReader, CallError> {
        let path = format!("task/{}/output", encoded(id));
        let path = with_query(
            &path,
            &[
                ("format", Some("json")),
                ("follow", live.then_some("1")),
                ("machine", machine),
            ],
        );
        self.in_turn("follow the task", &api(&path), Repeat::Safe, |ask| {
            let answer = ask.answered(get(ask, None).call())?;
            let status = answer.status().as_u16();
            let body = answer.into_body().into_reader();
            if status == 200 {
                return Ok(EventReader {
                    lines: BufReader::new(Box::new(body)),
                    url: ask.url.clone(),
                });
            }
            let mut refusal = Vec::new();
            // An incomplete refusal is better than none.
            let _ = body.take(MAX_REFUSAL).read_to_end(&mut refusal);
            self.understand(status, refusal)
                .and_then(|()| Err(Kind::NotUnderstood(format!("status {status}"))))
        })
    }

    /// A call that changes something. It is made once at most.
    fn change<Q: serde::Serialize, A: DeserializeOwned>(
        &self,
        call: &'static str,
        path: &str,
        question: &Q,
    ) -> Result<A, CallError> {
        self.post_json(call, path, question, Repeat::NotTwice)
    }

    /// A call that changes nothing, but has a question.
    fn ask_about<Q: serde::Serialize, A: DeserializeOwned>(
        &self,
        call: &'static str,
        path: &str,
        question: &Q,
    ) -> Result<A, CallError> {
        self.post_json(call, path, question, Repeat::Safe)
    }

    fn post_json<Q: serde::Serialize, A: DeserializeOwned>(
        &self,
        call: &'static str,
        path: &str,
        question: &Q,
        repeat: Repeat,
    ) -> Result<A, CallError> {
        let body = serde_json::to_vec(question);
        self.in_turn(call, &api(path), repeat, |ask| {
            let body = body.as_deref().map_err(unwritable)?;
            let (status, answer) = self.exchange(ask, body, CALL_TIMEOUT, MAX_ANSWER)?;
            self.understand(status, answer)
        })
    }

    /// A call that puts something in its place. To do it twice is the same as to do it once.
    fn put<Q: serde::Serialize, A: DeserializeOwned>(
        &self,
        call: &'static str,
        path: &str,
        question: &Q,
    ) -> Result<A, CallError> {
        let body = serde_json::to_vec(question);
        self.in_turn(call, &api(path), Repeat::Safe, |ask| {
            let body = body.as_deref().map_err(unwritable)?;
            let request = with_json(ask.put(), CALL_TIMEOUT);
            let (status, answer) = ask.read(request.send(body), MAX_ANSWER)?;
            self.understand(status, answer)
        })
    }

    /// A call that deletes something. The second time there would be nothing to delete.
    fn delete<A: DeserializeOwned>(&self, call: &'static str, path: &str) -> Result<A, CallError> {
        self.in_turn(call, &api(path), Repeat::NotTwice, |ask| {
            let request = ask.delete().config().timeout_global(Some(CALL_TIMEOUT));
            let (status, answer) = ask.read(request.build().call(), MAX_ANSWER)?;
            self.understand(status, answer)
        })
    }

    /// A call that changes nothing.
    fn look<A: DeserializeOwned>(
        &self,
        call: &'static str,
        path: &str,
        timeout: Duration,
    ) -> Result<A, CallError> {
        self.in_turn(call, &api(path), Repeat::Safe, |ask| {
            let (status, answer) = ask.read(get(ask, Some(timeout)).call(), MAX_ANSWER)?;
            self.understand(status, answer)
        })
    }

    /// A call that changes nothing and is answered with a text.
    fn look_at_text(&self, call: &'static str, path: &str) -> Result<String, CallError> {
        self.in_turn(call, path, Repeat::Safe, |ask| {
            let (status, answer) = ask.read(get(ask, Some(CALL_TIMEOUT)).call(), MAX_ANSWER)?;
            match status {
                200 => String::from_utf8(answer)
                    .map_err(|_| Kind::NotUnderstood("it is not text in UTF-8".into())),
                _ => self
                    .understand(status, answer)
                    .and_then(|()| Err(Kind::NotUnderstood(format!("status {status}")))),
            }
        })
    }
}

/// A request that changes nothing; without a time-out one whose answer takes as long as it likes once it has begun.
fn get(
    ask: &Ask<'_>,
    timeout: Option<Duration>,
) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
    let config = ask.get().config().timeout_global(timeout);
    config
        .timeout_recv_response(Some(timeout.unwrap_or(CALL_TIMEOUT)))
        .build()
}

/// The path of a call of the API.
fn api(path: &str) -> String {
    format!("/api/v1/{path}")
}

/// The event stream of a task.
pub struct EventReader {
    lines: BufReader<Box<dyn Read + Send>>,
    url: String,
}

impl EventReader {
    /// Waits for the next event. `Ok(None)` is the end of the stream, an inner `None` a heartbeat.
    pub fn next_event(&mut self) -> Result<Option<Option<TaskEvent>>, CallError> {
        let mut line = Vec::new();
        let read = (&mut self.lines)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line);
        let understood = match read {
            Ok(0) => Ok(None),
            Ok(1) if line == b"\n" => Ok(Some(None)),
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(event) => Ok(Some(Some(event))),
                Err(why) => Err(Kind::NotUnderstood(why.to_string())),
            },
            Err(why) => Err(Kind::Unreachable(format!("the connection broke: {why}"))),
        };
        understood.map_err(|kind| CallError::new("follow the task", self.url.clone(), kind))
    }
}

/// Gives an id to each task of a list that has none; those that were made.
fn add_ids(list: &mut Value) -> HashSet<String> {
    let mut made = HashSet::new();
    let tasks = list.as_array_mut().into_iter().flatten();
    for task in tasks.filter_map(Value::as_object_mut) {
        if task.get("id").is_none_or(Value::is_null) {
            let id = fresh_id();
            task.insert("id".into(), id.clone().into());
            made.insert(id);
        }
    }
    made
}

/// A new id for a task, of the form that servers give: sortable by time, then random.
fn fresh_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let ms = now.unwrap_or_default().as_millis() as u64;
    // Seeded by the system.
    let random = RandomState::new().build_hasher().finish() >> 24;
    format!("{ms:012x}-{random:010x}")
}

/// A path with those parameters that have a value.
fn with_query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let given = { parameters.iter() }.filter_map(|(name, value)| Some((name, (*value)?)));
    let pairs = given.map(|(name, value)| format!("{name}={}", encoded(value)));
    let query = pairs.collect::<Vec<_>>().join("&");
    if query.is_empty() {
        return path.to_owned();
    }
    format!("{path}?{query}")
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
