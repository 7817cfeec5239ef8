//! Schedules, against the real binary: each field of `docs/schedules.md` once, and what becomes of firings.
#![cfg(all(feature = "server", feature = "agent"))]

mod common;

use common::http::Reply;
use common::{Folder, Server, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

fn call(server: &Server, id: &str, what: &str) -> Reply {
    server.post(&format!("/api/v1/schedule/{id}/{what}"), &json!(null))
}

fn every_second(command: &str) -> Value {
    json!({"every": "1s", "task": any(command)})
}

fn any(command: &str) -> Value {
    json!({"machinePattern": "^m$", "mode": "any", "detail": {"command": command}})
}

fn all(command: &str) -> Value {
    json!({"machinePattern": "^m", "detail": {"command": command}})
}

/// The firings with this outcome, as soon as there are so many.
fn firings(server: &Server, id: &str, outcome: &str, count: usize) -> Vec<Value> {
    wait_until(&format!("{count} firings {outcome}"), || {
        let schedule = server.schedule(id);
        let history = schedule["history"].as_array().unwrap();
        let those = history.iter().filter(|firing| firing["outcome"] == outcome);
        let those: Vec<Value> = those.cloned().collect();
        (those.len() >= count).then_some(those)
    })
}

#[test]
fn a_schedule_fires_and_its_command_knows_for_when() {
    let folder = Folder::new();
    let audit = folder.file("audit");
    let server = Server::with(&["--audit", &audit]);
    let _agent = server.agent("m");
    let made = server.put_schedule("tick", &every_second("echo $SIDEBIKE_SCHEDULED_FOR"));
    assert_eq!(made.status, 200, "{}", made.text());
    assert!(made.msg().contains("--db"), "{}", made.msg());
    let made = made.data();
    assert_eq!(made["state"], "active");
    assert_eq!(made["next"].as_array().unwrap().len(), 5, "{made}");
    let fired = firings(&server, "tick", "fired", 3);
    let mut times: Vec<&str> = Vec::new();
    for firing in &fired {
        let task = server.finished(firing["task"].as_str().unwrap());
        assert_eq!(task["schedule"], "tick", "{task}");
        assert_eq!(task["scheduledFor"], firing["utc"]);
        assert_eq!(task["name"], "tick");
        assert_eq!(task["detail"]["result"][0], firing["utc"], "{task}");
        times.push(firing["utc"].as_str().unwrap());
    }
    assert!(times.is_sorted_by(|one, other| one < other), "{times:?}");
    wait_for("the audit names the firing", || {
        let text = std::fs::read_to_string(&audit).unwrap();
        let line = text.lines().find(|line| line.contains("\"schedule tick\""));
        line.is_some_and(|line| line.contains("\"token\":\"none\"") && line.contains("echo"))
    });
    assert!(server.metric("sidebike_firings_total{outcome=\"fired\"}") >= 3);
    assert_eq!(server.metric("sidebike_schedules{state=\"active\"}"), 1);

    let list = server.get("/api/v1/schedule").data();
    assert_eq!(list[0]["id"], "tick", "{list}");
    let again = server
        .put_schedule("tick", &every_second("echo $SIDEBIKE_SCHEDULED_FOR"))
        .data();
    assert_eq!(
        again["createdAt"], made["createdAt"],
        "the same changes nothing"
    );
    assert!(again["fired"].as_u64().unwrap() >= 3);

    let deleted = server.request("DELETE", "/api/v1/schedule/tick", b"");
    assert_eq!(deleted.status, 200);
    assert_eq!(server.get("/api/v1/schedule/tick").status, 404);
    let next = server.put_schedule("tick", &every_second("true")).data();
    assert!(
        next["incarnation"].as_u64() > made["incarnation"].as_u64(),
        "{next}"
    );
}

#[test]
fn what_cannot_be_scheduled_is_refused_with_the_field() {
    let server = Server::with(&["--max-schedules", "1"]);
    let task = any("true");
    let with = |field: &str, value: Value| {
        let mut schedule = json!({"cron": "@daily", "task": task});
        schedule[field] = value;
        schedule
    };
    for (schedule, status, words) in [
        (json!({"task": task}), 400, "cron: is required"),
        (json!({"cron": "@daily"}), 400, "task"),
        (with("every", json!("1h")), 400, "one of them"),
        (with("cron", json!("61 * * * *")), 400, "cron"),
        (with("cron", json!("0 0 30 2 *")), 400, "nine years"),
        (
            json!({"every": "0.5s", "task": task}),
            400,
            "every: must be 1s",
        ),
        (with("timeZone", json!("Mars/Base")), 422, "timeZone"),
        (with("timeZone", json!("localtime")), 422, "timeZone"),
        (with("from", json!("2026-12-01T08:00:00")), 400, "from"),
        (with("from", json!("12026-12-01T08:00:00Z")), 400, "from"),
        (
            with("until", json!("2020-01-01T00:00:00Z")),
            400,
            "until: nothing is due",
        ),
        (with("overlap", json!("both")), 400, "overlap"),
        (with("catchUp", json!(3)), 400, "catchUp"),
        (with("times", json!(0)), 400, "times"),
        (with("keep", json!(100_000)), 400, "keep: must be"),
        (
            with("pauseAfterFailures", json!(0)),
            400,
            "pauseAfterFailures",
        ),
        (with("startDeadline", json!(0)), 400, "startDeadline"),
        (with("crn", json!(1)), 400, "crn"),
        (with("task", json!([])), 400, "task"),
        (
            with("task", json!({"detail": {"command": "true"}})),
            400,
            "task.machinePattern",
        ),
        (
            with(
                "task",
                json!({"machinePattern": "m", "detail": {"comand": "x"}}),
            ),
            400,
            "task.detail.comand",
        ),
        (
            with(
                "task",
                json!({"machinePattern": "m", "id": "a", "detail": {"command": "x"}}),
            ),
            400,
            "task.id",
        ),
        (
            with(
                "task",
                json!({"machinePattern": "m", "delay": "1s", "detail": {"command": "x"}}),
            ),
            400,
            "delay",
        ),
        (
            with(
                "task",
                json!({"machinePattern": "(", "detail": {"command": "x"}}),
            ),
            400,
            "task.machinePattern",
        ),
    ] {
        let refused = server.put_schedule("x", &schedule);
        assert_eq!(refused.status, status, "{schedule}: {}", refused.text());
        assert!(
            refused.msg().contains(words),
            "{schedule}: {}",
            refused.msg()
        );
    }
    for id in ["a.b", "a b", "", &"x".repeat(33)] {
        let path = format!("/api/v1/schedule/{}", id.replace(' ', "%20"));
        let refused = server.put(&path, &with("times", json!(1)));
        assert!(
            [400, 404, 405].contains(&refused.status),
            "{id}: {}",
            refused.text()
        );
    }
    assert_eq!(
        server.get("/api/v1/schedule").data(),
        json!([]),
        "nothing was made"
    );

    let put_dry = |zone: &str, cron: &str| {
        let schedule = json!({"cron": cron, "timeZone": zone, "task": task});
        server.put_schedule("x?dryRun=1", &schedule).data()
    };
    let dry = put_dry("Europe/Berlin", "30 2 28 3 *");
    assert!(
        dry["next"][0]["local"]
            .as_str()
            .unwrap()
            .contains("-03-28T"),
        "{dry}"
    );
    assert!(!dry["timeZoneData"].as_str().unwrap().is_empty());
    assert_eq!(
        server.get("/api/v1/schedule").data(),
        json!([]),
        "nothing was made"
    );
    assert_eq!(
        server.put_schedule("one", &with("times", json!(1))).status,
        200
    );
    let refused = server.put_schedule("two", &with("times", json!(1)));
    assert_eq!(refused.status, 503);
    assert!(
        refused.msg().contains("--max-schedules"),
        "{}",
        refused.msg()
    );
    for what in ["pause", "resume", "run"] {
        assert_eq!(call(&server, "three", what).status, 404);
    }
}

#[test]
fn a_firing_whose_last_one_still_runs_is_skipped_or_waits_or_takes_its_place() {
    let server = Server::start();
    let _agent = server.agent("m");
    for overlap in ["skip", "queueOne", "replace", "allow"] {
        let mut schedule = every_second("sleep 300");
        schedule["every"] = json!("2d");
        schedule["overlap"] = json!(overlap);
        assert_eq!(server.put_schedule(overlap, &schedule).status, 200);
        let first = call(&server, overlap, "run").data();
        let first = first["history"][0]["task"].as_str().unwrap().to_owned();
        server.when(&first, "running", 1);
        let again = call(&server, overlap, "run");
        match overlap {
            "skip" => {
                assert_eq!(again.status, 409);
                assert!(again.msg().contains(&first), "{}", again.msg());
                server.post(&format!("/api/v1/task/{first}/cancel"), &json!(null));
            }
            "queueOne" => {
                let waits = again.data();
                let reason = waits["waits"]["reason"].as_str().unwrap();
                assert!(reason.contains(&first), "{waits}");
                assert_eq!(call(&server, overlap, "run").status, 409, "one at most");
                server.post(&format!("/api/v1/task/{first}/cancel"), &json!(null));
                let both = firings(&server, overlap, "fired", 2);
                let second = both[1]["task"].as_str().unwrap();
                server.when(second, "running", 1);
                server.post(&format!("/api/v1/task/{second}/cancel"), &json!(null));
                assert!(server.schedule(overlap)["waits"].is_null());
            }
            "replace" => {
                assert_eq!(again.status, 200);
                assert_eq!(server.finished(&first)["state"], "canceled");
                let both = firings(&server, overlap, "fired", 2);
                let second = both[1]["task"].as_str().unwrap();
                server.when(second, "running", 1);
                server.post(&format!("/api/v1/task/{second}/cancel"), &json!(null));
            }
            _ => {
                let both = firings(&server, overlap, "fired", 2);
                server.when(both[1]["task"].as_str().unwrap(), "running", 1);
                assert_eq!(server.task(&first)["state"], "running");
            }
        }
    }
}

#[test]
fn of_a_task_for_all_only_those_machines_are_left_out_that_are_busy_also_without_the_schedule() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let mut task = all("test $SIDEBIKE_MACHINE_LABEL = m2 || sleep 300");
    task["lateJoin"] = json!(true);
    task["ttl"] = json!("1h");
    let schedule = json!({"every": "2d", "task": task});
    server.put_schedule("fleet", &schedule);
    let first = call(&server, "fleet", "run").data();
    let first = first["history"][0]["task"].as_str().unwrap().to_owned();
    server.when(&first, "succeeded", 1);
    server.when(&first, "running", 1);
    let second = call(&server, "fleet", "run").data();
    let second = second["history"][1]["task"].as_str().unwrap().to_owned();
    let task = server.when(&second, "succeeded", 1);
    assert_eq!(task["counts"]["skipped"], 1, "{task}");
    let skipped = task["result"].as_array().unwrap();
    let skipped = skipped.iter().find(|e| e["state"] == "skipped").unwrap();
    assert_eq!(skipped["machineLabel"], "m1");
    assert!(
        skipped["msg"]
            .as_str()
            .unwrap()
            .contains("the firing before")
    );

    let deleted = server.request("DELETE", "/api/v1/schedule/fleet", b"");
    assert_eq!(deleted.status, 200);
    // It joins both, and runs one of them.
    let _late = server.agent("m3");
    server.when(&first, "running", 2);
    let task = server.when(&second, "skipped", 2);
    assert_eq!(task["counts"]["running"], 0, "{task}");
}

#[test]
fn it_pauses_by_hand_and_after_failures() {
    let server = Server::start();
    let _agent = server.agent("m");
    let mut schedule = every_second("false");
    schedule["pauseAfterFailures"] = json!(2);
    server.put_schedule("bad", &schedule);
    let paused = wait_until("it pauses itself", || {
        let schedule = server.schedule("bad");
        (schedule["state"] == "paused").then_some(schedule)
    });
    assert!(
        paused["msg"].as_str().unwrap().contains("2 firings"),
        "{paused}"
    );
    assert_eq!(paused["failures"], 2);
    let fired = paused["fired"].as_u64().unwrap();
    let resumed = call(&server, "bad", "resume").data();
    assert_eq!(resumed["failures"], 0, "{resumed}");
    wait_for("it fires again", || {
        server.schedule("bad")["fired"].as_u64().unwrap() > fired
    });

    server.put_schedule("good", &every_second("true"));
    firings(&server, "good", "fired", 1);
    let paused = call(&server, "good", "pause").data();
    assert_eq!(paused["paused"], true);
    let fired = paused["fired"].clone();
    wait_for("two more would have been due", || {
        let next = server.schedule("good")["next"][0]["utc"]
            .as_str()
            .unwrap()
            .to_owned();
        let before = paused["next"][2]["utc"].as_str().unwrap();
        next.as_str() > before
    });
    assert_eq!(server.schedule("good")["fired"], fired);
    call(&server, "good", "resume");
    firings(
        &server,
        "good",
        "fired",
        fired.as_u64().unwrap() as usize + 1,
    );
    let history = server.schedule("good")["history"]
        .as_array()
        .unwrap()
        .clone();
    assert!(
        history.iter().all(|firing| firing["outcome"] != "missed"),
        "{history:?}"
    );
}

#[test]
fn it_ends_after_so_many_times_and_its_last_firing_is_kept() {
    let server = Server::with(&["--max-tasks", "1"]);
    let _agent = server.agent("m");
    let mut schedule = every_second("true");
    schedule["times"] = json!(3);
    schedule["keep"] = json!(2);
    schedule["task"]["resultTtl"] = json!("1s");
    server.put_schedule("three", &schedule);
    let ended = wait_until("it ends", || {
        let schedule = server.schedule("three");
        let all_ended = schedule["history"]
            .as_array()
            .unwrap()
            .iter()
            .all(|f| f["state"].is_string());
        (schedule["state"] == "ended" && all_ended).then_some(schedule)
    });
    assert_eq!(ended["fired"], 3);
    assert_eq!(ended["next"], json!([]));
    let last = ended["history"][2]["task"].as_str().unwrap();
    for _ in 0..3 {
        server.run(any("true"));
    }
    let first = ended["history"][0]["task"].as_str().unwrap();
    wait_for("the first is forgotten", || {
        server.get(&format!("/api/v1/task/{first}")).status == 404
    });
    let kept = server.request("DELETE", &format!("/api/v1/task/{last}"), b"");
    assert_eq!(kept.status, 409, "{}", kept.text());
    assert!(kept.msg().contains("three"), "{}", kept.msg());
    server.request("DELETE", "/api/v1/schedule/three", b"");
    wait_for("it is a task like others now", || {
        server.get(&format!("/api/v1/task/{last}")).status == 404
    });
}

#[test]
fn a_refused_firing_is_told_and_tried_again_and_missed_in_the_end() {
    let server = Server::with(&["--max-executions", "1"]);
    let _agent = server.agent("m");
    let blocker = server.submit(any("sleep 300"));
    let blocker = blocker["id"].as_str().unwrap();
    let mut schedule = every_second("true");
    schedule["times"] = json!(1);
    schedule["startDeadline"] = json!("60s");
    server.put_schedule("patient", &schedule);
    schedule["every"] = json!("3s");
    schedule["startDeadline"] = json!("1s");
    server.put_schedule("hasty", &schedule);
    let refused = firings(&server, "patient", "refused", 1);
    let reason = refused[0]["reason"].as_str().unwrap();
    assert!(reason.contains("--max-executions"), "{reason}");
    assert!(server.schedule("patient")["waits"]["reason"].is_string());
    let missed = firings(&server, "hasty", "missed", 1);
    let reason = missed[0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("startDeadline") && reason.contains("--max-executions"),
        "{reason}"
    );
    let ticks = server.metric("sidebike_lock_holds_total");
    server.request("DELETE", "/api/v1/schedule/hasty", b"");
    server.post(&format!("/api/v1/task/{blocker}/cancel"), &json!(null));
    let fired = firings(&server, "patient", "fired", 1);
    assert_eq!(fired.len(), 1, "in place of what was refused");
    let more = server.metric("sidebike_lock_holds_total") - ticks;
    assert!(more < 3_000, "the clock spins: {more}");
    assert!(server.schedule("patient")["waits"].is_null());
    assert_eq!(server.schedule("patient")["state"], "ended");
}

#[test]
fn a_restart_keeps_schedules_and_makes_up_for_what_was_due() {
    let folder = Folder::new();
    let db = folder.file("db");
    let flags = ["--db", &db];
    let mut server = Server::with(&flags);
    server.put_schedule("latest", &every_second("true"));
    let mut none = every_second("true");
    none["catchUp"] = json!("none");
    server.put_schedule("none", &none);
    let mut every = every_second("true");
    every["catchUp"] = json!("all");
    every["overlap"] = json!("allow");
    server.put_schedule("all", &every);
    let made = server.put_schedule("gone", &every_second("true")).data();
    server.request("DELETE", "/api/v1/schedule/gone", b"");
    assert_eq!(server.schedule("all")["msg"], "");
    for id in ["latest", "none"] {
        firings(&server, id, "fired", 1);
    }
    firings(&server, "all", "fired", 2);
    server.process.signal(Signal::TERM);
    server.process.ended();
    let before = std::time::SystemTime::now();
    wait_for("some were due", || before.elapsed().unwrap().as_secs() >= 4);
    let server = Server::with(&flags);
    let missed = firings(&server, "none", "missed", 1);
    assert!(missed[0]["through"].is_string(), "{missed:?}");
    firings(&server, "latest", "skipped", 1);
    let caught_up = server.schedule("all")["history"]
        .as_array()
        .unwrap()
        .clone();
    assert!(
        caught_up.iter().all(|firing| firing["outcome"] == "fired"),
        "{caught_up:?}"
    );
    firings(&server, "all", "fired", 6);
    let after = server.put_schedule("gone", &every_second("true")).data();
    assert!(
        after["incarnation"].as_u64() > made["incarnation"].as_u64(),
        "{after}"
    );
    let tasks = server.get("/api/v1/task?limit=1000").data();
    let mut times: Vec<String> = { tasks.as_array().unwrap().iter() }
        .map(|task| format!("{} {}", task["schedule"], task["scheduledFor"]))
        .collect();
    let number = times.len();
    times.sort();
    times.dedup();
    assert_eq!(times.len(), number, "one task for each time");
}

#[test]
fn schedules_of_a_file_are_read_and_a_file_with_an_error_changes_nothing() {
    let folder = Folder::new();
    let path = folder.file("schedules.json");
    let write = |content: &Value| std::fs::write(&path, content.to_string()).unwrap();
    let one = json!({"cron": "@daily", "task": any("true")});
    let other = json!({"every": "1h", "task": any("true")});
    write(&json!({"one": one, "two": other}));
    let server = Server::with(&["--schedules", &path]);
    server.put_schedule("own", &one);
    let ids = |server: &Server| -> Vec<String> {
        let list = server.get("/api/v1/schedule").data();
        let list = list.as_array().unwrap().iter();
        list.map(|s| s["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&server), ["one", "own", "two"]);
    assert_eq!(server.schedule("one")["madeBy"], "--schedules");

    let wrong = json!({"cron": "never", "task": any("true")});
    write(&json!({"three": one, "bad": wrong}));
    server.process.signal(Signal::HUP);
    let why = server
        .process
        .logged("WARN  sidebike::server::api::schedules: ");
    assert!(
        why.contains("bad: cron") && why.contains("schedules.json"),
        "{why}"
    );
    assert_eq!(ids(&server), ["one", "own", "two"], "nothing has changed");

    write(&json!({"three": one, "two": one}));
    server.process.signal(Signal::HUP);
    wait_for("it is read", || ids(&server) == ["own", "three", "two"]);
    assert_eq!(server.schedule("two")["cron"], "@daily");

    let mut command = std::process::Command::new(common::SIDEBIKE);
    write(&json!({"bad": wrong}));
    command.args(["server", "--listen", "127.0.0.1:0", "--schedules", &path]);
    let refused = command.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("bad: cron"),
        "{said}"
    );
}
