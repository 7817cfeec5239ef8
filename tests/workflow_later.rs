//! Tasks that begin later: `startAt` and `delay`.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::said::{lines_with, sidebike};
use common::{Folder, Server, id, task, wait_for, wait_until};
use serde_json::{Value, json};

/// A task that begins in an hour.
fn in_an_hour(command: &str) -> Value {
    let mut task = task(command);
    task["delay"] = "1h".into();
    task
}

#[test]
fn a_task_begins_after_its_delay_and_matches_who_is_there_then() {
    let server = Server::start();
    let mut later = task("echo hello");
    later["delay"] = 1.into();
    later["ttl"] = 30.into();
    let accepted = server.submit(later);
    assert_eq!(accepted["state"], "scheduled", "{accepted}");
    assert_eq!(accepted["status"], 0, "{accepted}");
    assert_eq!(accepted["matched"], 0, "nobody is there: {accepted}");
    assert!(accepted["startAt"].is_string(), "{accepted}");
    let msg = accepted["msg"].as_str().unwrap();
    assert!(msg.starts_with("begins at 2"), "{msg}");
    // The machine comes after the submit.
    let _agent = server.agent("m");
    let done = server.finished(id(&accepted));
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["matched"], 1, "settled when it began: {done}");
    assert_eq!(done["startAt"], accepted["startAt"]);
    assert!(
        done["result"][0]["startedAt"].as_str() >= done["startAt"].as_str(),
        "{done}"
    );
}

#[test]
fn a_time_in_the_past_means_now_and_needs_an_offset() {
    let server = Server::start();
    let _agent = server.agent("m");
    let at = |text: &str| {
        let mut task = task("true");
        task["startAt"] = text.into();
        server.post("/api/v1/task", &task)
    };
    let past = at("2001-02-03T04:05:06+01:00").data();
    assert_eq!(server.finished(id(&past))["state"], "succeeded");
    for (text, why) in [
        ("2099-12-24T18:00:00", "startAt: expected a time such as"),
        ("2099-12-24T18:00:00", "says no offset"),
        (
            "tomorrow",
            "startAt: expected a time such as \"2026-12-24T18:00:00+01:00\" or \"2026-12-24T17:00:00Z\" (RFC 3339), got \"tomorrow\"",
        ),
        (
            "9999-12-31T23:59:59-05:00",
            "between the years 1970 and 2200",
        ),
    ] {
        let refused = at(text);
        assert_eq!(refused.status, 400, "{text}");
        assert!(refused.msg().contains(why), "{text}: {}", refused.msg());
    }
    // Nothing of that broke the lists.
    assert_eq!(server.get("/api/v1/task").status, 200);
    let mut both = in_an_hour("true");
    both["startAt"] = "2099-12-24T18:00:00Z".into();
    let refused = server.post("/api/v1/task", &both);
    assert_eq!(refused.status, 400);
    assert!(
        refused.msg().contains("both startAt and delay"),
        "{}",
        refused.msg()
    );
}

#[test]
fn what_is_scheduled_is_listed_counted_and_canceled_at_once() {
    let server = Server::start();
    let _agent = server.agent("m");
    let later = server.submit(in_an_hour("true"));
    let listed = server.get("/api/v1/task?state=scheduled").data();
    assert_eq!(listed[0]["id"], later["id"], "{listed}");
    assert_eq!(server.metric("sidebike_tasks{state=\"scheduled\"}"), 1);
    assert_eq!(server.metric("sidebike_tasks{state=\"running\"}"), 0);
    let path = format!("/api/v1/task/{}", id(&later));
    for (call, status) in [("pause", 409), ("resume", 409), ("rerun", 409)] {
        let refused = server.post(&format!("{path}/{call}"), &Value::Null);
        assert_eq!(refused.status, status, "{call}: {}", refused.text());
    }
    assert_eq!(server.request("DELETE", &path, b"").status, 409);
    let machine = server.post(&format!("{path}/cancel?machine=m"), &Value::Null);
    assert_eq!(machine.status, 422, "it is on no machine yet");
    // Somebody waits for its end.
    let waits = std::thread::scope(|scope| {
        let waits = scope.spawn(|| server.get(&format!("{path}?wait=60s")).data());
        wait_for("the wait is held", || {
            server.metric("sidebike_held_requests") >= 2
        });
        let canceled = server.post(&format!("{path}/cancel"), &Value::Null).data();
        assert_eq!(canceled["state"], "canceled", "{canceled}");
        assert_eq!(canceled["msg"], "canceled before it began");
        waits.join().unwrap()
    });
    assert_eq!(waits["state"], "canceled", "{waits}");
    assert_eq!(server.metric("sidebike_tasks{state=\"scheduled\"}"), 0);
    let stopped = server.submit(in_an_hour("true"));
    let stop = format!("/api/v1/task/{}/stop", id(&stopped));
    assert_eq!(server.post(&stop, &Value::Null).data()["state"], "skipped");
    // Neither ever runs, and both can be run again, at once.
    let again = server
        .post(&format!("{path}/rerun?wait=60s"), &Value::Null)
        .data();
    assert_eq!(again["state"], "succeeded", "{again}");
    assert!(again["startAt"].is_null(), "{again}");
    assert_eq!(server.request("DELETE", &path, b"").status, 200);
}

#[test]
fn what_would_be_refused_at_its_time_ends_with_the_reason() {
    let server = Server::start();
    let _agent = server.agent("m");
    let later = |more: Value| {
        let mut task = task("true");
        task["delay"] = "300ms".into();
        for (field, value) in more.as_object().unwrap() {
            task[field] = value.clone();
        }
        task
    };
    let expects = later(json!({"expect": 7}));
    let dry = server.post("/api/v1/task?dryRun=1", &expects).data();
    assert_eq!(dry["ok"], true, "{dry}");
    assert!(
        dry["msg"].as_str().unwrap().contains("begin later"),
        "{dry}"
    );
    let done = server.run(expects);
    assert_eq!(done["state"], "failed", "{done}");
    let msg = done["msg"].as_str().unwrap();
    assert!(msg.starts_with("could not begin: expect: 7"), "{msg}");
    let nobody = later(json!({"machinePattern": "^nobody$", "ttl": "200ms"}));
    let done = server.run(nobody);
    assert_eq!(
        done["state"], "expired",
        "its ttl begins when it does: {done}"
    );
    let report = server.get(&format!("/api/v1/task/{}/report", id(&done)));
    assert_eq!(report.status, 200, "{}", report.text());
}

#[test]
fn a_thousand_due_at_the_same_moment_all_run() {
    let server = Server::start();
    let _agent = server.agent("m");
    let mut task = task("true");
    task["name"] = "crowd".into();
    task["machinePattern"] = "^nobody$".into();
    task["delay"] = 2.into();
    task["ttl"] = "50ms".into();
    for _ in 0..1_000 {
        server.submit(task.clone());
    }
    wait_for("all have begun and ended", || {
        server.metric("sidebike_tasks{state=\"expired\"}") == 1_000
    });
}

#[test]
fn a_server_that_was_away_has_it_begin_when_it_is_back() {
    let folder = Folder::new();
    let file = folder.file("db");
    let flags = ["--db", &*file];
    let mut server = Server::with(&flags);
    let mut soon = task("true");
    soon["delay"] = "700ms".into();
    soon["machinePattern"] = "^nobody$".into();
    soon["ttl"] = "10s".into();
    let soon = server.submit(soon);
    let late = server.submit(in_an_hour("true"));
    server.process.kill_9();
    drop(server);
    let server = Server::with(&flags);
    wait_until("it has begun", || {
        let task = server.task(id(&soon));
        (task["state"] == "waiting").then_some(())
    });
    let late_now = server.task(id(&late));
    assert_eq!(late_now["state"], "scheduled", "{late_now}");
    assert_eq!(
        late_now["startAt"], late["startAt"],
        "a restart does not move it"
    );
}

#[test]
fn the_command_line_submits_also_when_nobody_matches_yet() {
    let server = Server::start();
    let ran = sidebike(
        &server,
        &["run", "--delay", "200ms", "--ttl", "200ms", "--", "true"],
    );
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(
        ran.err.contains("begins at "),
        "it was submitted: {}",
        ran.err
    );
}

#[test]
fn the_command_line_waits_and_prints() {
    let server = Server::start();
    let _agent = server.agent("m");
    let ran = sidebike(&server, &["run", "--delay", "300ms", "--", "echo hello"]);
    assert_eq!(
        (ran.code, ran.out.contains("hello")),
        (0, true),
        "{}{}",
        ran.out,
        ran.err
    );
    assert_eq!(lines_with(&ran.err, "begins at ").len(), 1, "{}", ran.err);
    let wrong = sidebike(
        &server,
        &["run", "--at", "2099-12-24T18:00:00", "--", "true"],
    );
    assert!(
        wrong.code == 2 && wrong.err.contains("--at: expected a time"),
        "{}",
        wrong.err
    );
    let at = [
        "run",
        "--detach",
        "--at",
        "2099-12-24T18:00:00+01:00",
        "--",
        "true",
    ];
    let later = sidebike(&server, &at);
    let later = later.out.trim();
    let shown = sidebike(&server, &["show", later]).out;
    assert!(
        shown.contains("start at   2099-12-24T17:00:00.000Z"),
        "{shown}"
    );
    let listed = sidebike(&server, &["ps", "--state", "scheduled"]).out;
    assert_eq!(lines_with(&listed, &later[..8]).len(), 1, "{listed}");
    let dry = sidebike(
        &server,
        &[
            "run",
            "--dry-run",
            "--delay",
            "1h",
            "-m",
            "^nobody$",
            "--",
            "true",
        ],
    );
    assert!(
        dry.code == 0 && dry.err.contains("begin later"),
        "{}",
        dry.err
    );
}
