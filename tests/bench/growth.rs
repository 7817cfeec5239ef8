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
use serde_json::json;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

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

/// Prints both halves.
pub fn print(setting: &Setting) -> Result<(), String> {
    println!("| agents | submit to 10 of them | poll of another |\n| --- | --- | --- |");
    let mut first: Option<(f64, f64)> = None;
    for agents in FLEETS {
        let (submit, poll) = with_agents(setting, agents)?;
        println!("| {agents} | {} | {} |", time(submit), time(poll));
        let (first_submit, first_poll) = *first.get_or_insert((submit, poll));
        if agents == AGENTS {
            println!(
                "| {} times as many | {:.1} × | {:.1} × |\n",
                AGENTS / FLEETS[0],
                submit / first_submit,
                poll / first_poll
            );
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
    Ok(())
}

fn with_agents(setting: &Setting, agents: usize) -> Result<(f64, f64), String> {
    let (server, fleet) = held(setting, agents, &[])?;
    let fleet = fleet.in_background();
    let mut api = server.api();
    let task = json!({"machinePattern": "^g0-", "detail": {"argv": ["true"]}});
    let submit = request("POST", "/api/v1/task", "", task.to_string().as_bytes());
    // The pause is no part of the time.
    let mut times = Vec::new();
    for _ in 0..SUBMITS {
        times.push(typical(1, |_| api.call(&submit))?);
        thread::sleep(PAUSE);
    }
    let poll = poll(server.address, agents)?;
    fleet.end()?;
    Ok((median(&times), poll))
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
