//! In which order tasks get their turn: a program of the test's own speaks as an agent.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::puppet::{Puppet, ended};
use common::{Folder, SIDEBIKE, Server, id, wait_for};
use serde_json::{Value, json};
use std::process::Command;

/// A task for one machine of that label, or for any such machine.
fn task(name: &str, mode: &str, more: Value) -> Value {
    let mut task = json!({
        "name": name, "machinePattern": "^web-", "mode": mode, "detail": {"command": "true"}
    });
    for (field, value) in more.as_object().unwrap() {
        task[field] = value.clone();
    }
    task
}

/// The names of what a poll hands out, in order.
fn handed_out(orders: &Value) -> Vec<String> {
    let start = orders["start"].as_array().into_iter().flatten();
    let name = |order: &Value| order["taskName"].as_str().unwrap().to_owned();
    start.map(name).collect()
}

/// An agent that takes one command at a time.
fn next(agent: &mut Puppet<'_>) -> Option<Value> {
    let orders = agent.reply(json!({"jobs": 1})).data();
    orders["start"].as_array()?.first().cloned()
}

#[test]
fn the_higher_priority_is_handed_out_first_and_the_older_within_it() {
    let server = Server::start();
    let mut agent = Puppet::new(&server, 1, "web-1");
    for (name, mode, priority) in [
        ("own-0", "all", 0),
        ("any-0", "any", 0),
        ("any-5", "any", 5),
        ("own-5", "all", 5),
        ("own-minus", "all", -10),
        ("any-10", "any", 10),
        ("own-0-again", "all", 0),
        ("any-minus", "any", -9),
    ] {
        server.submit(task(name, mode, json!({"priority": priority})));
    }
    let mut order = Vec::new();
    while let Some(started) = next(&mut agent) {
        order.push(started["taskName"].as_str().unwrap().to_owned());
        agent.done(json!([ended(&started, "succeeded")]), json!([]));
    }
    let expected = [
        "any-10",
        "own-5",
        "any-5",
        "own-0",
        "own-0-again",
        "any-0",
        "any-minus",
        "own-minus",
    ];
    assert_eq!(order, expected);
}

#[test]
fn a_priority_stays_with_a_retry_and_through_a_restart() {
    let folder = Folder::new();
    let flags = ["--db", &folder.file("db")];
    let server = Server::with(&flags);
    let mut agent = Puppet::new(&server, 1, "web-1");
    let high = json!({"priority": 3, "retry": {"max": 1}});
    let high = server.submit(task("high", "any", high));
    let first = next(&mut agent).expect("the only one");
    server.submit(task("low", "any", json!({"priority": 2})));
    agent.done(json!([ended(&first, "failed")]), json!([]));
    // Timers fire in order: when this one has, the pause before the retry is over.
    let clock = json!({"machinePattern": "^nowhere$", "ttl": 1, "detail": {"command": "true"}});
    assert_eq!(server.run(clock)["state"], "expired");
    let mut process = server.process;
    process.kill_9();
    let server = Server::with(&flags);
    assert_eq!(server.task(id(&high))["priority"], 3);
    let mut agent = Puppet::unseen(&server, 2, "web-1");
    let orders = agent.reply(json!({"jobs": 2})).data();
    assert_eq!(handed_out(&orders), ["high", "low"]);
}

#[test]
fn what_a_priority_must_be_is_said() {
    let server = Server::start();
    for (wrong, msg) in [
        (json!(11), "priority: must be -10 to 10, got 11"),
        (json!(-11), "priority: must be -10 to 10, got -11"),
        (json!("high"), "priority: invalid type"),
    ] {
        let refused = server.post(
            "/api/v1/task",
            &task("x", "any", json!({"priority": wrong})),
        );
        assert_eq!(refused.status, 400);
        assert!(refused.msg().starts_with(msg), "{}", refused.msg());
    }
    let usual = server.submit(task("x", "any", json!({"priority": 0})));
    assert!(usual.get("priority").is_none(), "{usual}");
}

#[test]
fn how_long_the_oldest_waits_is_counted_by_priority() {
    let server = Server::start();
    let metric = |priority: &str| {
        let name = format!("sidebike_oldest_queued_seconds{{priority=\"{priority}\"}}");
        server.metric(&name)
    };
    server.submit(task("low", "any", json!({"priority": -1})));
    wait_for("it waits for a second", || metric("below") > 0);
    assert_eq!((metric("zero"), metric("above")), (0, 0));
}

#[test]
fn the_command_line_sets_a_priority() {
    let server = Server::start();
    let _agent = server.agent("web-1");
    let run = |flags: &[&str]| {
        let mut command = Command::new(SIDEBIKE);
        command.args(["run", "--registry-address", &server.address.to_string()]);
        command.args(flags).args(["--", "true"]).output().unwrap()
    };
    assert!(run(&["--priority", "-4"]).status.success());
    assert_eq!(server.newest()["priority"], -4);
    let wrong = run(&["--priority", "99"]);
    let stderr = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(stderr.contains("--priority: must be -10 to 10"), "{stderr}");
}
