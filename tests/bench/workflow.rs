//! Tasks that wait for something: many at once, for each other, for their time.

use crate::agents::idle_agent;
use crate::http::request;
use crate::process::{LOOK, Server, wait_until};
use crate::setting::Setting;
use crate::table::{Row, median, time};
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Tasks in one call, children of one parent: as many as one call may have, with the parent.
const LIST: usize = 1_000;
/// Tasks of which each waits for the one before.
const CHAIN: usize = 100;
/// Lists that are timed.
const LISTS: usize = 20;
/// Firings of a schedule that are timed.
const FIRINGS: usize = 10;
/// Schedules that are due in the same second.
const SCHEDULES: usize = 10_000;
/// How long it may take to make them.
const MADE_WITHIN: Duration = Duration::from_secs(30);
/// The longest that they may hold the lock.
const HELD: f64 = 0.005;

/// Seconds that a call with a list of 1,000 tasks takes, median.
pub fn list_time(setting: &Setting) -> Result<f64, String> {
    let server = Server::start(setting, &["--max-executions", "100000"])?;
    let mut api = server.api();
    let list: Vec<Value> = (0..LIST).map(|_| task("^idle$")).collect();
    let bytes = request(
        "POST",
        "/api/v1/tasks",
        "",
        json!(list).to_string().as_bytes(),
    );
    let mut times = Vec::new();
    for _ in 0..LISTS {
        let begin = Instant::now();
        api.call(&bytes)?;
        times.push(begin.elapsed().as_secs_f64());
    }
    Ok(median(&times))
}

/// Seconds from the submit of a chain of 100 to the end of its last task, with one agent.
pub fn chain_time(setting: &Setting) -> Result<f64, String> {
    let link = |n: usize| match n {
        0 => json!({"id": "link-0"}),
        n => json!({"id": format!("link-{n}"), "after": [{"task": format!("link-{}", n - 1)}]}),
    };
    run_time(setting, (0..CHAIN).map(link).collect())
}

/// Seconds from the submit of a parent and 999 children to the end of the last child, with one agent.
pub fn children_time(setting: &Setting) -> Result<f64, String> {
    let child = |n: usize| match n {
        0 => json!({"id": "link-0"}),
        n => json!({"id": format!("link-{n}"), "after": [{"task": "link-0"}]}),
    };
    run_time(setting, (0..LIST).map(child).collect())
}

/// Submits these in one call, each with the same command, and waits until the last has ended.
fn run_time(setting: &Setting, tasks: Vec<Value>) -> Result<f64, String> {
    let server = Server::start(setting, &[])?;
    let _agent = idle_agent(setting, &server, &["--jobs", "1"])?;
    let mut api = server.api();
    let wait = format!("/api/v1/task/link-{}?wait=5m", tasks.len() - 1);
    let list: Vec<Value> = { tasks.into_iter() }
        .map(|own| {
            let mut whole = task("^worker$");
            if let (Some(whole), Value::Object(own)) = (whole.as_object_mut(), own) {
                whole.extend(own);
            }
            whole
        })
        .collect();
    let begin = Instant::now();
    api.post("/api/v1/tasks", &json!(list))?;
    let last = api.get(&wait)?;
    match last["state"] == "succeeded" {
        true => Ok(begin.elapsed().as_secs_f64()),
        false => Err(format!("the last of them: {last}")),
    }
}

fn task(pattern: &str) -> Value {
    json!({"machinePattern": pattern, "mode": "any", "detail": {"argv": ["sh", "-c", "true"]}})
}

/// Seconds from the time of a firing to the start of its command, median: a schedule each second.
pub fn firing_time(setting: &Setting) -> Result<f64, String> {
    let server = Server::start(setting, &[])?;
    let _agent = idle_agent(setting, &server, &[])?;
    let mut api = server.api();
    let command = "echo $(date +%s%N) $(date -d $SIDEBIKE_SCHEDULED_FOR +%s%N)";
    let task = json!({"machinePattern": "^worker$", "mode": "any", "detail": {"command": command}});
    put(
        &mut api,
        "each-second",
        &json!({"every": "1s", "task": task}),
    )?;
    let path = format!("/api/v1/task?state=succeeded&limit={FIRINGS}");
    let tasks = wait_until("a schedule has fired", || {
        thread::sleep(10 * LOOK);
        let tasks = api.get(&path)?;
        let count = tasks.as_array().map_or(0, Vec::len);
        Ok((count == FIRINGS).then_some(tasks))
    })?;
    let mut times = Vec::new();
    for listed in tasks.as_array().into_iter().flatten() {
        let id = listed["id"].as_str().unwrap_or_default();
        let task = api.get(&format!("/api/v1/task/{id}"))?;
        let stdout = task["result"][0]["stdout"].as_str().unwrap_or_default();
        let stamps: Vec<i64> = { stdout.split_whitespace() }
            .filter_map(|stamp| stamp.parse().ok())
            .collect();
        match stamps[..] {
            [started, due] => times.push((started - due) as f64 / 1e9),
            _ => return Err(format!("expected two times, got {stdout:?}")),
        }
    }
    Ok(median(&times))
}

fn put(api: &mut crate::api::Api, id: &str, schedule: &Value) -> Result<(), String> {
    let path = format!("/api/v1/schedule/{id}");
    let body = schedule.to_string();
    api.call(&request("PUT", &path, "", body.as_bytes()))
        .map(drop)
}

/// How long the one lock is held when 10,000 schedules are due in the same second.
pub fn schedules_due(setting: &Setting) -> Result<Vec<Row>, String> {
    let many = (2 * SCHEDULES).to_string();
    let flags = [
        "--max-schedules",
        &many,
        "--max-executions",
        &many,
        "--max-tasks",
        &many,
    ];
    let server = Server::start(setting, &flags)?;
    let mut api = server.api();
    let due = SystemTime::now() + MADE_WITHIN;
    let from = humantime::format_rfc3339_seconds(due).to_string();
    for n in 0..SCHEDULES {
        let schedule = json!({"every": "1h", "from": from, "task": task("^idle$")});
        put(&mut api, &format!("s{n}"), &schedule)?;
    }
    if SystemTime::now() >= due {
        return Err(format!(
            "{SCHEDULES} schedules were not made in {MADE_WITHIN:?}"
        ));
    }
    let before: f64 = api.metric("sidebike_lock_held_seconds_max")?;
    let begun = wait_until("they fire", || {
        thread::sleep(LOOK);
        let fired: usize = api.metric(QUEUED)?;
        Ok((fired > 0).then(Instant::now))
    })?;
    wait_until("all have fired", || {
        thread::sleep(10 * LOOK);
        let fired: usize = api.metric(QUEUED)?;
        Ok((fired >= SCHEDULES).then_some(()))
    })?;
    let longest: f64 = api.metric("sidebike_lock_held_seconds_max")?;
    let what = format!("the lock was held with {SCHEDULES} schedules due, at most");
    let done = begun.elapsed().as_secs_f64();
    Ok(vec![
        Row::new(what, time(longest))
            .beside(format!(
                "before {}; all had fired after {}",
                time(before),
                time(done)
            ))
            .target(format!("≤ {}", time(HELD)), longest <= HELD),
    ])
}

/// Executions that wait for an agent, as `/metrics` names them.
const QUEUED: &str = "sidebike_executions{state=\"queued\"}";
