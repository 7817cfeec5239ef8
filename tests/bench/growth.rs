//! How the cost of a call grows with what there is: the second table.
//!
//! Each figure is the median time of one call at a time, from the request to its answer. What
//! counts is how a column changes from line to line.

use crate::api::Api;
use crate::http::request;
use crate::listing::typical;
use crate::process::Server;
use crate::scale::{AGENTS, fill, held, small};
use crate::setting::Setting;
use crate::table::{median, time};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// Agents there are.
const FLEETS: [usize; 4] = [10, 100, 1_000, AGENTS];
/// Tasks there are.
const TASKS: [usize; 3] = [1_000, 10_000, 100_000];
/// Room for them, and for those of the measurement.
const MANY: &str = "200000";
/// Calls that are timed.
const CALLS: usize = 300;
/// Submits to agents that are timed, and the pause after each: all of them are to wait again, or the
/// next one has less to do.
const SUBMITS: usize = 100;
const PAUSE: Duration = Duration::from_millis(25);
/// Executions of a rollout at once.
const WINDOW: usize = 100;

/// Prints both halves.
pub fn print(setting: &Setting) -> Result<(), String> {
    println!(
        "| agents | submit to 10 of them | by tags | by tags not seen before | poll of another | rollout, {WINDOW} at once, per start |\n| --- | --- | --- | --- | --- | --- |"
    );
    let mut first: Option<[f64; 5]> = None;
    for agents in FLEETS {
        let line = with_agents(setting, agents)?;
        println!("| {agents} | {} |", line.map(time).join(" | "));
        let first = *first.get_or_insert(line);
        if agents == AGENTS {
            let times = [0, 1, 2, 3, 4].map(|n| format!("{:.1} ×", line[n] / first[n]));
            let more = AGENTS / FLEETS[0];
            println!("| {more} times as many | {} |\n", times.join(" | "));
        }
    }
    println!(
        "| tasks that wait | submit | list of 100 | poll of an agent |\n| --- | --- | --- | --- |"
    );
    let server = Server::start(setting, &["--max-executions", MANY])?;
    let mut lines: Vec<[f64; 3]> = Vec::new();
    let mut there = 0;
    for tasks in TASKS {
        fill(server.address, there..tasks, &small)?;
        there = tasks;
        let line = with_tasks(&server, tasks)?;
        let [submit, list, poll] = line.map(time);
        println!("| {tasks} | {submit} | {list} | {poll} |");
        lines.push(line);
    }
    if let [first, .., last] = &lines[..] {
        let [submit, list, poll] = [0, 1, 2].map(|n| format!("{:.1} ×", last[n] / first[n]));
        let times = TASKS[TASKS.len() - 1] / TASKS[0];
        println!("| {times} times as many | {submit} | {list} | {poll} |\n");
    }
    println!(
        "| {WAITING} tasks wait | submit | poll of an agent that could run them |\n| --- | --- | --- |"
    );
    for (what, task) in WAITS {
        let server = Server::start(setting, &["--max-executions", MANY])?;
        let mut api = server.api();
        // One machine that could run them, a limit that lets nothing go, and a task that does not end.
        poll(server.address, WAITING)?;
        let shut = request("PUT", "/api/v1/limit/shut", "", br#"{"running": 0}"#);
        api.call(&shut)?;
        api.post("/api/v1/task", &json!({"id": "first", "machinePattern": "^idle$", "mode": "any", "detail": {"argv": ["true"]}}))?;
        fill(server.address, 0..WAITING, &|_| task())?;
        let submit = typical(CALLS, |n| api.post("/api/v1/task", &small(n)))?;
        let poll = poll(server.address, WAITING + 1)?;
        println!("| {what} | {} | {} |", time(submit), time(poll));
    }
    println!();
    Ok(())
}

/// Tasks that wait, of each kind.
const WAITING: usize = 100_000;

/// A task that waits for something.
type Waits = fn() -> Value;

/// What a task can wait for.
const WAITS: [(&str, Waits); 4] = [
    ("for a machine that is not there", || {
        waits(json!({"machinePattern": "^idle$"}))
    }),
    ("for their time", || waits(json!({"delay": "1h"}))),
    ("for another task", || {
        waits(json!({"after": [{"task": "first"}]}))
    }),
    ("for a limit", || waits(json!({"limits": ["shut"]}))),
];

/// A task for the agent that polls, with this more.
fn waits(own: Value) -> Value {
    let mut task =
        json!({"machinePattern": "^probe$", "mode": "any", "detail": {"argv": ["true"]}});
    if let (Some(task), Value::Object(own)) = (task.as_object_mut(), own) {
        task.extend(own);
    }
    task
}

fn with_agents(setting: &Setting, agents: usize) -> Result<[f64; 5], String> {
    let (server, fleet) = held(setting, agents, &[])?;
    let fleet = fleet.in_background();
    let mut api = server.api();
    let detail = json!({"argv": ["true"]});
    let tags = json!({"zone": "^z", "role": "^r[0-9]$"});
    let by_label = json!({"machinePattern": "^g0-", "detail": detail});
    let by_tags = json!({"machinePattern": "^g0-", "machineTags": tags, "detail": detail});
    let by_new_tags = |n: usize| {
        let exclude = format!("^none-{n}$");
        json!({"machinePattern": "^g0-", "machineTags": tags, "exclude": exclude, "detail": detail})
    };
    let submits = [
        submits(&mut api, |_| by_label.clone())?,
        submits(&mut api, |_| by_tags.clone())?,
        submits(&mut api, by_new_tags)?,
    ];
    let poll = poll(server.address, agents)?;
    let rollout = json!({
        "machinePattern": "^g", "id": "rollout", "rollout": {"concurrency": WINDOW}, "detail": detail
    });
    let begun = Instant::now();
    api.post("/api/v1/task", &rollout)?;
    let ended = request("GET", "/api/v1/task/rollout?wait=10m", "", b"");
    api.raw(&ended)?;
    let per_start = begun.elapsed().as_secs_f64() / agents as f64;
    fleet.end()?;
    let [by_label, by_tags, by_new_tags] = submits;
    Ok([by_label, by_tags, by_new_tags, poll, per_start])
}

/// Submits of these tasks, one at a time. The pause is no part of the time.
fn submits(api: &mut Api, task: impl Fn(usize) -> Value) -> Result<f64, String> {
    let mut times = Vec::new();
    for n in 0..SUBMITS {
        let submit = request("POST", "/api/v1/task", "", task(n).to_string().as_bytes());
        times.push(typical(1, |_| api.call(&submit))?);
        thread::sleep(PAUSE);
    }
    Ok(median(&times))
}

fn with_tasks(server: &Server, tasks: usize) -> Result<[f64; 3], String> {
    let mut api = server.api();
    let submit = typical(CALLS, |n| {
        api.post("/api/v1/task", &small(10 * tasks + n + 1_000_000))
    })?;
    let list = request("GET", "/api/v1/task?limit=100", "", b"");
    let list = typical(CALLS, |_| api.raw(&list).map(|reply| reply.status.into()))?;
    Ok([submit, list, poll(server.address, tasks)?])
}

/// Polls of an agent for which there is nothing to do, each with its connection.
fn poll(server: SocketAddr, run: usize) -> Result<f64, String> {
    typical(CALLS, |n| {
        let poll = json!({
            "instance": format!("{run:016x}"), "seq": n + 1, "label": "probe", "jobs": 1, "wait": 0, "holds": []
        });
        Api::new(server).post("/api/v1/agent/poll", &poll)
    })
}
