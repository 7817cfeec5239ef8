//! Schedules together with what their tasks may have: unique keys, limits, pauses and what is fired by hand in one.
#![cfg(all(feature = "server", feature = "agent"))]

mod common;

use common::http::Reply;
use common::{Folder, Server, wait_for, wait_until};
use serde_json::{Value, json};

fn call(server: &Server, id: &str, what: &str) -> Reply {
    server.post(&format!("/api/v1/schedule/{id}/{what}"), &json!(null))
}

fn limit(server: &Server, method: &str, name: &str, body: &Value) -> Reply {
    let path = format!("/api/v1/limit/{name}");
    server.request(method, &path, body.to_string().as_bytes())
}

/// A schedule of a task for any machine, with these fields of the task.
fn hourly(overlap: &str, command: &str, fields: Value) -> Value {
    let mut task = json!({"machinePattern": "^m$", "mode": "any", "detail": {"command": command}});
    for (field, value) in fields.as_object().unwrap() {
        task[field] = value.clone();
    }
    json!({"every": "1h", "overlap": overlap, "task": task})
}

/// The first firing of the past with this outcome, as soon as there is one.
fn firing(server: &Server, id: &str, outcome: &str) -> Value {
    wait_until(outcome, || {
        let schedule = server.schedule(id);
        let history = schedule["history"].as_array().unwrap();
        history
            .iter()
            .find(|past| past["outcome"] == outcome)
            .cloned()
    })
}

#[test]
fn what_is_fired_by_hand_in_a_pause_waits_for_the_one_before_and_not_for_the_resume() {
    let server = Server::start();
    let _agent = server.agent("m");
    let folder = Folder::new();
    let command = format!("while ! test -e {}; do sleep 0.05; done", folder.file("go"));
    server.put_schedule("a", &hourly("queueOne", &command, json!({})));
    assert_eq!(call(&server, "a", "run").status, 200);
    let first = firing(&server, "a", "fired");
    server.when(first["task"].as_str().unwrap(), "running", 1);
    assert_eq!(call(&server, "a", "pause").status, 200);
    let waits = call(&server, "a", "run").data();
    assert!(waits["waits"]["reason"].is_string(), "{waits}");
    folder.write("go");
    wait_for("the second is fired", || {
        let schedule = server.schedule("a");
        schedule["state"] == "paused" && schedule["history"].as_array().unwrap().len() == 2
    });
    assert_eq!(server.schedule("a")["waits"], Value::Null);
}

#[test]
fn a_firing_joins_the_task_that_has_its_key_or_names_it() {
    let server = Server::start();
    let holder = server.submit(json!({
        "id": "holder", "machinePattern": "nobody", "uniqueKey": "k", "detail": {"command": "true"}
    }));
    assert_eq!(holder["state"], "waiting");
    let joins = hourly(
        "allow",
        "true",
        json!({"uniqueKey": "k", "onDuplicate": "join"}),
    );
    server.put_schedule("joins", &joins);
    let refused = call(&server, "joins", "run");
    assert_eq!(refused.status, 409);
    assert_eq!(
        refused.msg(),
        "it joins task holder, which has its uniqueKey"
    );
    let mut by_time = joins.clone();
    by_time["every"] = json!("1s");
    server.put_schedule("joins", &by_time);
    let skipped = firing(&server, "joins", "skipped");
    assert_eq!(
        skipped["reason"],
        "it joins task holder, which has its uniqueKey"
    );
    let rejects = hourly("allow", "true", json!({"uniqueKey": "k"}));
    server.put_schedule("rejects", &rejects);
    let refused = call(&server, "rejects", "run");
    assert_eq!(refused.status, 409);
    assert_eq!(refused.msg(), "uniqueKey: \"k\" is held by task holder");

    // A firing has the key as any task has it, and what replaces it takes it.
    let holder = server.post("/api/v1/task/holder/cancel", &json!(null));
    assert_eq!(holder.data()["state"], "canceled");
    assert_eq!(call(&server, "rejects", "run").status, 200);
    let fired = firing(&server, "rejects", "fired");
    let further = json!({"machinePattern": "x", "uniqueKey": "k", "detail": {"command": "true"}});
    let further = server.post("/api/v1/task", &further);
    assert_eq!(further.status, 409);
    assert_eq!(further.json()["data"]["id"], fired["task"]);
}

#[test]
fn the_limits_of_a_schedule_are_there_and_stay() {
    let server = Server::start();
    let _agent = server.agent("m");
    let limited = hourly("allow", "true", json!({"limits": ["db"]}));
    let unknown = server.put_schedule("a", &limited);
    assert_eq!(unknown.status, 422);
    assert!(
        unknown
            .msg()
            .starts_with("task.limits: there is no limit \"db\""),
        "{}",
        unknown.msg()
    );
    let mut of_child = hourly("allow", "true", json!({}));
    of_child["task"]["onEnd"] = json!({"limits": ["db"], "detail": {"command": "true"}});
    let unknown = server.put_schedule("b", &of_child);
    assert!(
        unknown.msg().starts_with("task.onEnd.limits: "),
        "{}",
        unknown.msg()
    );
    assert_eq!(
        limit(&server, "PUT", "db", &json!({"running": 0})).status,
        200
    );
    assert_eq!(server.put_schedule("a", &limited).status, 200);
    assert_eq!(server.put_schedule("b", &of_child).status, 200);
    let used = limit(&server, "DELETE", "db", &json!(null));
    assert_eq!(used.status, 409);
    assert!(used.msg().contains("schedule: a, b;"), "{}", used.msg());

    assert_eq!(call(&server, "a", "run").status, 200);
    let fired = firing(&server, "a", "fired");
    let task = fired["task"].as_str().unwrap();
    wait_for("the firing waits for the limit", || {
        server.task(task)["msg"] == "waits for the limit \"db\": 0 of 0 run"
    });
    limit(&server, "PUT", "db", &json!({"running": 1}));
    assert_eq!(server.finished(task)["state"], "succeeded");
    for id in ["a", "b"] {
        let path = format!("/api/v1/schedule/{id}");
        assert_eq!(server.request("DELETE", &path, b"").status, 200);
    }
    assert_eq!(limit(&server, "DELETE", "db", &json!(null)).status, 200);
}

#[test]
fn no_more_firings_are_shown_than_there_will_be() {
    let server = Server::start();
    let mut twice = hourly("skip", "true", json!({}));
    twice["times"] = json!(2);
    for path in ["/api/v1/schedule/a?dryRun=1", "/api/v1/schedule/a"] {
        let shown = server.put(path, &twice).data();
        assert_eq!(
            shown["next"].as_array().unwrap().len(),
            2,
            "{path}: {shown}"
        );
    }
}

#[test]
fn a_field_of_an_expression_that_is_wrong_is_named() {
    let server = Server::start();
    for (cron, field) in [
        ("60 * * * *", "the minute \"60\""),
        ("* 24 * * *", "the hour \"24\""),
        ("* * 0 * *", "the day of the month \"0\""),
        ("* * * 13 *", "the month \"13\""),
        ("* * * * 8", "the day of the week \"8\""),
        ("*/0 * * * *", "the minute \"*/0\""),
        ("5/15 * * * *", "the minute \"5/15\""),
        ("0 0 * * fri-mon", "a range that ends before it begins"),
    ] {
        let mut schedule = hourly("skip", "true", json!({"name": "x"}));
        schedule.as_object_mut().unwrap().remove("every");
        schedule["cron"] = json!(cron);
        let reply = server.put_schedule("a", &schedule);
        assert_eq!(reply.status, 400, "{cron}");
        assert!(reply.msg().starts_with("cron: "), "{cron}: {}", reply.msg());
        assert!(reply.msg().contains(field), "{cron}: {}", reply.msg());
    }
}

#[test]
fn the_audit_says_what_a_limit_and_a_schedule_are_now() {
    let folder = Folder::new();
    let audit = folder.file("audit");
    let server = Server::with(&["--audit", &audit]);
    limit(&server, "PUT", "db", &json!({"running": 2}));
    limit(
        &server,
        "PUT",
        "db",
        &json!({"running": 3, "perMinute": 60}),
    );
    limit(&server, "DELETE", "db", &json!(null));
    let schedule = json!({
        "cron": "30 2 * * *", "timeZone": "Europe/Berlin",
        "task": {"machinePattern": ".*", "detail": {"command": "./backup.sh", "env": {"A": "secret"}}}
    });
    server.put_schedule("a", &schedule);
    for (call, set) in [
        ("PUT /api/v1/limit/db", "running 2 (new)"),
        (
            "PUT /api/v1/limit/db",
            "running 3, perMinute 60 (was running 2)",
        ),
        (
            "DELETE /api/v1/limit/db",
            "gone (was running 3, perMinute 60)",
        ),
        ("PUT /api/v1/schedule/a", "cron 30 2 * * *, Europe/Berlin"),
    ] {
        wait_for(&format!("{call}: {set}"), || {
            let mut lines = folder.json_lines("audit").into_iter();
            lines.any(|line| line["call"] == call && line["set"] == set)
        });
    }
    let text = std::fs::read_to_string(&audit).unwrap();
    assert!(text.contains("\"command\":\"./backup.sh\""), "{text}");
    assert!(!text.contains("secret"), "{text}");
}
