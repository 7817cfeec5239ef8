//! `kill -9` of a server with a database around the firings of its schedules: whatever was saved of them fits together,
//! and no time has two tasks. `make soak-schedules` does it 50 times (`KILLS=50`).
#![cfg(all(feature = "server", feature = "agent"))]

mod common;

use common::http::{Connection, request};
use common::{Folder, SIDEBIKE, Server, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// The kills of a plain `cargo test`.
const KILLS: u64 = 4;

fn schedule(n: usize, server: &Server) {
    let overlap = ["allow", "skip", "queueOne", "replace"][n % 4];
    let catch_up = ["all", "latest", "none"][n % 3];
    let schedule = json!({
        "every": "1s", "overlap": overlap, "catchUp": catch_up, "keep": 1_000,
        "startDeadline": "1h",
        "task": {"machinePattern": "^m$", "mode": "any", "detail": {"command": "true"}},
    });
    let made = server.put_schedule(&format!("s{n}"), &schedule);
    assert_eq!(made.status, 200, "{}", made.text());
}

/// Every task that a schedule has fired, by the schedule and the time; each has one.
fn fired(server: &Server) -> BTreeMap<(String, String), String> {
    let mut fired = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/api/v1/task?limit=1000{cursor}");
        let page = server.get(&path).json();
        for task in page["data"].as_array().unwrap() {
            let text = |field: &str| task[field].as_str().unwrap_or_default().to_owned();
            let time = (text("schedule"), text("scheduledFor"));
            let other = fired.insert(time.clone(), text("id"));
            assert_eq!(other, None, "{time:?} has two tasks");
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return fired,
        }
    }
}

#[test]
fn a_server_that_is_killed_around_firings_makes_one_task_for_each_time() {
    let kills = std::env::var("KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok());
    let folder = Folder::new();
    let db = folder.file("db");
    let flags = ["--db", &db, "--max-tasks", "100000"];
    let mut server = Server::with(&flags);
    (0..8).for_each(|n| schedule(n, &server));
    let mut known: BTreeMap<(String, String), String> = BTreeMap::new();
    for kill in 0..kills.unwrap_or(KILLS) {
        let begun = known.len();
        wait_for("some fire", || fired(&server).len() > begun + 8);
        known.extend(fired(&server));
        // What nobody waits for is saved within half a second.
        let offset = Duration::from_millis(1_000 + kill * 137 % 1_000);
        let since = Instant::now();
        wait_for("the moment", || since.elapsed() >= offset);
        server.process.kill_9();
        server = Server::with(&flags);
        // Before the tasks: a schedule fires between two looks.
        let all = server.get("/api/v1/schedule").data();
        let now = fired(&server);
        for (time, id) in &known {
            assert_eq!(now.get(time), Some(id), "{time:?} was shown before");
        }
        assert_eq!(all.as_array().map(Vec::len), Some(8), "{all}");
        for schedule in all.as_array().unwrap() {
            assert_eq!(schedule["state"], "active", "{schedule}");
            let history = schedule["history"].as_array().unwrap();
            for firing in history.iter().filter(|firing| firing["outcome"] == "fired") {
                let id = schedule["id"].as_str().unwrap().to_owned();
                let time = (id, firing["utc"].as_str().unwrap().to_owned());
                assert_eq!(
                    now.get(&time).map(|id| json!(id)),
                    Some(firing["task"].clone())
                );
            }
        }
    }
    server.process.kill_9();
    let check = Command::new(SIDEBIKE)
        .args(["db", "check", &db])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&check.stderr);
    assert!(check.status.success(), "{said}");
}

#[test]
fn a_kill_in_the_middle_of_changes_leaves_each_schedule_as_it_was_or_as_it_is_to_be() {
    let folder = Folder::new();
    let db = folder.file("db");
    let flags = ["--db", &*db];
    let mut server = Server::with(&flags);
    for n in 0..20 {
        schedule(n, &server);
    }
    let mut connection: Connection = server.connect();
    for n in 0..10 {
        // Not waited for.
        let call = request("DELETE", &format!("/api/v1/schedule/s{n}"), "", b"");
        connection.send(&call);
    }
    server.process.kill_9();
    let server = Server::with(&flags);
    let all = server.get("/api/v1/schedule").data();
    let ids: Vec<&Value> = all.as_array().unwrap().iter().map(|s| &s["id"]).collect();
    for n in 10..20 {
        assert!(ids.contains(&&json!(format!("s{n}"))), "{ids:?}");
    }
    assert!(ids.len() <= 20);
}
