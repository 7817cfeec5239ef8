//! In which order tasks get their turn: a program of the test's own speaks as an agent.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::puppet::{Puppet, ended, hold};
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

/// The state of a task.
fn state(server: &Server, id: &str) -> String {
    server.task(id)["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_key_is_held_until_its_task_has_ended() {
    let server = Server::start();
    let mut agent = Puppet::new(&server, 1, "web-1");
    let keyed = json!({"uniqueKey": "k"});
    let first = server.submit(task("first", "any", keyed.clone()));
    let second = server.post("/api/v1/task", &task("second", "any", keyed.clone()));
    assert_eq!(second.status, 409);
    assert_eq!(second.json()["data"]["id"], first["id"]);
    let msg = "uniqueKey: \"k\" is held by the task in data";
    assert_eq!(second.msg(), msg);
    let dry = server.post(
        "/api/v1/task?dryRun=1",
        &task("second", "any", keyed.clone()),
    );
    assert_eq!(dry.data()["ok"], false);
    let join = json!({"uniqueKey": "k", "onDuplicate": "join"});
    let joined = server.submit(task("second", "all", join));
    assert_eq!(joined["id"], first["id"]);
    server.submit(task("other", "any", json!({"uniqueKey": "another"})));
    let order = next(&mut agent).expect("the first");
    agent.done(json!([ended(&order, "succeeded")]), json!([]));
    server.finished(id(&first));
    let again = server.submit(task("second", "any", keyed));
    assert_ne!(again["id"], first["id"]);
}

#[test]
fn a_key_survives_a_restart_and_is_held_by_what_waits_for_its_time() {
    let folder = Folder::new();
    let flags = ["--db", &folder.file("db")];
    let server = Server::with(&flags);
    let later = json!({"uniqueKey": "k", "delay": "1h"});
    let later = server.submit(task("later", "any", later));
    let mut process = server.process;
    process.kill_9();
    let server = Server::with(&flags);
    let keyed = json!({"uniqueKey": "k"});
    let refused = server.post("/api/v1/task", &task("now", "any", keyed));
    assert_eq!(
        (refused.status, &refused.json()["data"]["id"]),
        (409, &later["id"])
    );
    let replace = json!({"uniqueKey": "k", "onDuplicate": "replace"});
    server.submit(task("now", "any", replace));
    assert_eq!(state(&server, id(&later)), "canceled");
}

#[test]
fn what_has_not_started_is_replaced_and_what_runs_only_when_that_is_asked_for() {
    let server = Server::start();
    let mut agent = Puppet::new(&server, 1, "web-1");
    let replace = json!({"uniqueKey": "k", "onDuplicate": "replace"});
    let running = json!({"uniqueKey": "k", "onDuplicate": "replace", "replaceRunning": true});
    let first = server.submit(task("first", "any", replace.clone()));
    let second = server.submit(task("second", "all", replace.clone()));
    assert_eq!(state(&server, id(&first)), "canceled");
    let order = agent.ordered();
    assert_eq!(order["taskName"], "second");
    let refused = server.post("/api/v1/task", &task("third", "any", replace.clone()));
    assert_eq!(
        (refused.status, &refused.json()["data"]["id"]),
        (409, &second["id"])
    );
    // It is accepted, and nothing of it begins before the other one has ended.
    let third = server.submit(task("third", "all", running.clone()));
    assert_eq!(third["counts"]["held"], 1, "{third}");
    let orders = agent.poll(json!([hold(&order)]), json!([]));
    assert_eq!(orders["cancel"][0]["execution"], order["execution"]);
    assert!(handed_out(&orders).is_empty(), "{orders}");
    // A further one takes its place, not that of the one that runs.
    let fourth = server.submit(task("fourth", "any", replace));
    assert_eq!(state(&server, id(&third)), "canceled");
    assert_eq!(state(&server, id(&second)), "running");
    let orders = agent.poll(json!([hold(&order)]), json!([]));
    assert!(handed_out(&orders).is_empty(), "{orders}");
    agent.done(json!([ended(&order, "canceled")]), json!([]));
    assert_eq!(state(&server, id(&second)), "canceled");
    assert_eq!(agent.ordered()["taskName"], "fourth");
    assert_eq!(state(&server, id(&fourth)), "running");
}

#[test]
fn what_a_key_must_be_is_said() {
    let server = Server::start();
    for (fields, msg) in [
        (json!({"uniqueKey": ""}), "uniqueKey: must not be empty"),
        (
            json!({"onDuplicate": "join"}),
            "onDuplicate: goes with uniqueKey only",
        ),
        (
            json!({"uniqueKey": "k", "replaceRunning": true}),
            "replaceRunning: goes with onDuplicate",
        ),
        (
            json!({"uniqueKey": "k", "onDuplicate": "x"}),
            "onDuplicate: invalid value",
        ),
    ] {
        let refused = server.post("/api/v1/task", &task("x", "any", fields));
        assert_eq!(refused.status, 400);
        assert!(refused.msg().starts_with(msg), "{}", refused.msg());
    }
}

fn set_limit(server: &Server, name: &str, limit: Value) {
    let path = format!("/api/v1/limit/{name}");
    server.put(&path, &limit).data();
}

#[test]
fn a_limit_counts_over_all_machines_and_does_not_hold_up_others() {
    let server = Server::start();
    set_limit(&server, "db", json!({"running": 1}));
    let mut one = Puppet::new(&server, 1, "web-1");
    let mut two = Puppet::new(&server, 2, "web-2");
    let limited = json!({"limits": ["db"]});
    server.submit(task("first", "all", limited.clone()));
    let second = server.submit(task("second", "any", limited.clone()));
    server.submit(task("free", "all", json!({})));
    assert_eq!(
        handed_out(&one.poll(json!([]), json!([]))),
        ["first", "free"]
    );
    let orders = two.poll(json!([]), json!([]));
    assert_eq!(handed_out(&orders), ["free"], "{orders}");
    let waiting = server.task(id(&second));
    assert_eq!(waiting["msg"], "waits for the limit \"db\": 1 of 1 run");
    let limit = server.get("/api/v1/limit/db").data();
    assert_eq!(
        (&limit["runningNow"], &limit["waiting"]),
        (&json!(1), &json!(2))
    );
    let used = server.request("DELETE", "/api/v1/limit/db", b"");
    assert_eq!(used.status, 409, "{}", used.msg());
    // A raised limit wakes what waits.
    let orders = server.task(id(&second));
    assert_eq!(orders["counts"]["queued"], 1);
    set_limit(&server, "db", json!({"running": 3}));
    let mut names = handed_out(&two.poll(json!([]), json!([])));
    names.sort();
    // It does not say that it has what it was handed before.
    assert_eq!(names, ["first", "free", "second"]);
}

#[test]
fn an_end_frees_a_place_for_the_one_that_waits_for_longest_on_whichever_machine() {
    let server = Server::start();
    set_limit(&server, "db", json!({"running": 1}));
    let mut one = Puppet::new(&server, 1, "web-1");
    let mut two = Puppet::new(&server, 2, "web-2");
    let on = |name: &str, pattern: &str| {
        let fields = json!({"limits": ["db"], "machinePattern": pattern});
        server.submit(task(name, "all", fields))
    };
    on("a", "^web-1$");
    let order = one.ordered();
    on("b", "^web-2$");
    on("c", "^web-1$");
    let mut held = two.held_poll(json!([]), json!([]));
    let body = json!({
        "instance": one.instance, "results": [ended(&order, "succeeded")], "seq": 2
    });
    let taken = server.post("/api/v1/agent/done", &body).data();
    assert!(handed_out(&taken).is_empty(), "c came before b: {taken}");
    assert_eq!(handed_out(&held.read().data()), ["b"]);
}

#[test]
fn limits_survive_a_restart_and_a_rate_is_kept() {
    let folder = Folder::new();
    let flags = ["--db", &folder.file("db")];
    let server = Server::with(&flags);
    set_limit(&server, "mail", json!({"perMinute": 6}));
    for _ in 0..3 {
        server.submit(task("mail", "any", json!({"limits": ["mail"]})));
    }
    let mut agent = Puppet::new(&server, 1, "web-1");
    let orders = agent.poll(json!([]), json!([]));
    let first = handed_out(&orders).len();
    assert!(first <= 1, "one token at least is one token: {orders}");
    let mut process = server.process;
    process.kill_9();
    let server = Server::with(&flags);
    let limit = server.get("/api/v1/limit/mail").data();
    assert_eq!(limit["perMinute"], 6);
    let mut agent = Puppet::new(&server, 2, "web-1");
    let orders = agent.poll(json!([]), json!([]));
    assert!(
        handed_out(&orders).is_empty(),
        "the restart gave a token: {orders}"
    );
}

#[test]
fn what_a_limit_must_be_is_said() {
    let server = Server::start();
    let put = |name: &str, limit: Value| {
        let path = format!("/api/v1/limit/{name}");
        server.put(&path, &limit)
    };
    for (name, limit, status, msg) in [
        ("x", json!({}), 400, "the limit: needs running"),
        ("x", json!({"perMinute": 0}), 400, "perMinute: must be 1 to"),
        (
            "x",
            json!({"running": -1}),
            400,
            "running: invalid value: integer `-1`, expected a whole number from 0 to 4294967295",
        ),
        ("x", json!({"runing": 1}), 400, "runing: unknown field"),
        ("x%20y", json!({"running": 1}), 400, "name: must be letters"),
    ] {
        let refused = put(name, limit);
        assert_eq!(refused.status, status, "{}", refused.msg());
        assert!(refused.msg().starts_with(msg), "{}", refused.msg());
    }
    let unknown = server.post(
        "/api/v1/task",
        &task("x", "any", json!({"limits": ["none"]})),
    );
    assert_eq!(unknown.status, 422);
    assert!(
        unknown
            .msg()
            .starts_with("limits: there is no limit \"none\""),
        "{}",
        unknown.msg()
    );
    assert_eq!(server.get("/api/v1/limit/none").status, 404);
}

#[test]
fn a_spread_is_the_same_each_time_and_the_ttl_runs_from_the_release() {
    let server = Server::start();
    let mut agent = Puppet::new(&server, 1, "web-1");
    let spread = json!({"spread": "2s", "ttl": 30});
    let spread = server.submit(task("spread", "all", spread));
    assert_eq!(
        (&spread["spread"], &spread["counts"]["queued"]),
        (&json!(2), &json!(1))
    );
    wait_for("its release", || {
        !handed_out(&agent.poll(json!([]), json!([]))).is_empty()
    });
    let refused = server.post("/api/v1/task", &task("x", "any", json!({"spread": "2s"})));
    assert!(
        refused
            .msg()
            .starts_with("spread: goes with mode \"all\" only")
    );
}

#[test]
fn what_waits_says_where_it_stands_and_for_what() {
    let server = Server::start();
    let show = |id: &str| {
        let task = server.task(id);
        (
            task["position"].clone(),
            task["msg"].as_str().unwrap().to_owned(),
        )
    };
    let nowhere = server.submit(task("x", "any", json!({})));
    assert_eq!(show(id(&nowhere)).0, json!(1));
    assert!(show(id(&nowhere)).1.starts_with("no machine matches yet"));
    let mut agent = Puppet::unseen(&server, 1, "web-1");
    let first = next(&mut agent).expect("the first");
    let behind: Vec<Value> = (0..3)
        .map(|n| server.submit(task(&format!("b{n}"), "any", json!({}))))
        .collect();
    let high = server.submit(task("high", "any", json!({"priority": 1})));
    assert_eq!(
        show(id(&high)),
        (json!(1), "waits for a free machine, of 1 that match".into())
    );
    assert_eq!(show(id(&behind[2])).0, json!(4));
    agent.done(json!([ended(&first, "succeeded")]), json!([]));
    let listed = server.get("/api/v1/task").data();
    assert!(listed[0].get("position").is_none());
}

#[test]
fn what_begins_with_the_end_of_others_replaces_nothing() {
    let server = Server::start();
    let child = json!({"detail": {"command": "true"}});
    let refused = json!({"uniqueKey": "k", "onDuplicate": "replace", "onFailure": child});
    let refused = server.post("/api/v1/task", &task("x", "any", refused));
    assert_eq!(refused.status, 422);
    let msg = "onDuplicate: \"replace\" does not go with after";
    assert!(refused.msg().starts_with(msg), "{}", refused.msg());
    let child = json!({"detail": {"command": "true"}, "limits": ["none"]});
    let refused = server.post(
        "/api/v1/task",
        &task("x", "any", json!({"onFailure": child})),
    );
    assert_eq!(refused.status, 422, "{}", refused.msg());
}
