//! Tasks that begin after another one machine by machine: `"perMachine": true` in an entry of `after`.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::said::sidebike;
use common::{Agent, Folder, Server, id, task, wait_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A task that follows another one machine by machine, on all of its machines.
fn follows(parent: &Value, on: &str, command: &str) -> Value {
    json!({
        "after": [{"task": id(parent), "on": on, "perMachine": true}],
        "detail": {"command": command},
    })
}

/// A task that waits on each machine until the file of that machine is there.
fn gates(folder: &Folder, then: &str) -> Value {
    let file = folder.file("go-$SIDEBIKE_MACHINE_LABEL");
    task(&format!(
        "while ! test -e {file}; do sleep 0.05; done; {then}"
    ))
}

fn open(folder: &Folder, label: &str) {
    std::fs::write(folder.file(&format!("go-{label}")), "").unwrap();
}

/// The execution on the machine with this label.
fn on<'a>(task: &'a Value, label: &str) -> &'a Value {
    let executions = task["result"].as_array().expect("executions");
    let found = executions.iter().find(|e| e["machineLabel"] == label);
    found.unwrap_or_else(|| panic!("{label}: {task}"))
}

/// Waits until the execution on this machine is in this state.
fn until(server: &Server, task: &Value, label: &str, state: &str) -> Value {
    wait_until(&format!("{label} is {state}"), || {
        let task = server.task(id(task));
        (on(&task, label)["state"] == state).then_some(task)
    })
}

fn post(server: &Server, target: &str) {
    let reply = server.post(target, &Value::Null);
    assert_eq!(reply.status, 200, "{target}: {}", reply.msg());
}

fn refused(server: &Server, task: &Value) -> (u16, String) {
    let reply = server.post("/api/v1/task", task);
    (reply.status, reply.msg())
}

fn two(server: &Server) -> [Agent; 2] {
    let agents = [server.agent("m-a"), server.agent("m-b")];
    server.expect(&[&agents[0], &agents[1]]);
    agents
}

#[test]
fn a_fast_machine_does_not_wait_for_a_slow_one() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = two(&server);
    let parent = server.submit(gates(&folder, "true"));
    let child = server.submit(follows(&parent, "succeeded", "echo [$SIDEBIKE_AFTER]"));
    assert_eq!(child["state"], "running", "it has its machines: {child}");
    assert_eq!(child["counts"]["held"], 2, "{child}");
    assert_eq!(child["machinePattern"], parent["machinePattern"]);
    assert_eq!(
        child["after"],
        json!([{"task": parent["id"], "on": "succeeded", "perMachine": true}])
    );
    let parent_id = id(&parent);
    let shown = server.task(id(&child));
    assert_eq!(
        shown["msg"],
        format!("waits on 2 machines for the end of task {parent_id} there")
    );
    until(&server, &parent, "m-b", "running");
    let shown = server.task(id(&child));
    assert_eq!(
        on(&shown, "m-b")["msg"],
        format!("waits for the end of task {parent_id} on this machine, where it is running")
    );
    open(&folder, "m-a");
    let half = until(&server, &child, "m-a", "succeeded");
    assert_eq!(
        on(&half, "m-a")["stdout"],
        format!("[{parent_id}]\n"),
        "{half}"
    );
    assert_eq!(on(&half, "m-b")["state"], "held");
    assert_eq!(
        half["msg"],
        format!("waits on 1 machine for the end of task {parent_id} there")
    );
    assert_eq!(server.task(parent_id)["state"], "running");
    // A further one, after the end on one of the machines.
    let late = server.submit(follows(&parent, "ended", "true"));
    until(&server, &late, "m-a", "succeeded");
    open(&folder, "m-b");
    assert_eq!(server.finished(id(&child))["state"], "succeeded");
    assert_eq!(server.finished(id(&late))["state"], "succeeded");
    // And one after its end.
    let after = server.run(follows(&parent, "succeeded", "true"));
    assert_eq!(after["state"], "succeeded", "{after}");
    assert_eq!(after["counts"]["succeeded"], 2);
    let again = format!("/api/v1/task/{}/rerun?all=1&wait=60s", id(&child));
    let again = server.post(&again, &Value::Null).data();
    assert_eq!(
        (&again["state"], &again["after"]),
        (&json!("succeeded"), &Value::Null),
        "a rerun does not wait"
    );
}

#[test]
fn each_row_of_the_table_once() {
    let (server, folder) = (Server::start(), Folder::new());
    let labels = ["m-canceled", "m-failed", "m-succeeded", "m-timedOut"];
    let agents = labels.map(|label| server.agent(label));
    server.expect(&agents.each_ref());
    let mut parent = gates(
        &folder,
        "case $SIDEBIKE_MACHINE_LABEL in m-failed) exit 3;; m-timedOut) sleep 60;; esac",
    );
    parent["detail"]["timeout"] = "1500ms".into();
    let parent = server.submit(parent);
    server.when(id(&parent), "running", 4);
    // Half of them before the end, and half after it.
    let before = ["succeeded", "failed", "ended"]
        .map(|on| (on, server.submit(follows(&parent, on, "true"))));
    post(
        &server,
        &format!("/api/v1/task/{}/cancel?machine=m-canceled", id(&parent)),
    );
    for label in ["m-failed", "m-succeeded", "m-timedOut"] {
        open(&folder, label);
    }
    let parent = server.finished(id(&parent));
    let after = ["succeeded", "failed", "ended"]
        .map(|on| (on, server.submit(follows(&parent, on, "true"))));
    let mut nothing = task("true");
    nothing["limits"] = json!(["none"]);
    nothing["ttl"] = "100ms".into();
    let limit = server.request("PUT", "/api/v1/limit/none", b"{\"running\": 0}");
    assert_eq!(limit.status, 200, "{}", limit.msg());
    let expired = server.run(nothing);
    assert_eq!(expired["state"], "expired", "{expired}");
    let rows = [
        ("succeeded", [true, false, true]),
        ("failed", [false, true, true]),
        ("timedOut", [false, true, true]),
        ("canceled", [false, false, true]),
    ];
    for (state, goes) in rows {
        let label = format!("m-{state}");
        assert_eq!(on(&parent, &label)["state"], state, "{parent}");
        for children in [&before, &after] {
            for ((word, child), goes) in children.iter().zip(goes) {
                let child = server.finished(id(child));
                let e = on(&child, &label);
                let expected = if goes { "succeeded" } else { "skipped" };
                assert_eq!(e["state"], expected, "{state} {word}: {child}");
                if !goes {
                    let why = format!(
                        "was to begin after task {} {word} on this machine, where it ended {state}",
                        id(&parent)
                    );
                    assert_eq!(e["msg"], why);
                    assert!(e["startedAt"].is_null());
                }
            }
        }
    }
    // What is skipped is a parent itself.
    let skipped = server.finished(id(&before[0].1));
    for (parent, state, goes) in [
        (&expired, "expired", [false, true, true]),
        (&skipped, "skipped", [false, false, true]),
    ] {
        for (word, goes) in ["succeeded", "failed", "ended"].into_iter().zip(goes) {
            let child = server.run(follows(parent, word, "true"));
            let e = on(&child, "m-failed");
            let expected = if goes { "succeeded" } else { "skipped" };
            assert_eq!(on(parent, "m-failed")["state"], state);
            assert_eq!(e["state"], expected, "{state} {word}: {child}");
        }
    }
}

#[test]
fn a_machine_that_the_other_has_not_is_skipped() {
    let server = Server::start();
    let _agents = two(&server);
    let mut parent = task("true");
    parent["machinePattern"] = "^m-a$".into();
    let parent = server.run(parent);
    let _late = server.agent("m-late");
    wait_until("three machines", || {
        (server.machines().len() == 3).then_some(())
    });
    let mut child = follows(&parent, "ended", "true");
    child["machinePattern"] = ".*".into();
    let child = server.run(child);
    assert_eq!(child["state"], "partial", "{child}");
    assert_eq!(on(&child, "m-a")["state"], "succeeded");
    for label in ["m-b", "m-late"] {
        assert_eq!(on(&child, label)["state"], "skipped");
        assert_eq!(
            on(&child, label)["msg"],
            format!("task {} has nothing on this machine", id(&parent))
        );
    }
    // Without a pattern its machines are those of the other.
    let child = server.run(follows(&parent, "succeeded", "true"));
    assert_eq!(
        (&child["state"], child["result"].as_array().unwrap().len()),
        (&json!("succeeded"), 1)
    );
    // What narrows it down means some of them.
    let both = server.run(task("true"));
    let mut child = follows(&both, "succeeded", "true");
    child["exclude"] = "late|b".into();
    let child = server.run(child);
    assert_eq!(
        (&child["state"], &child["assignees"]),
        (&json!("succeeded"), &json!(["m-a"]))
    );
    let mut child = follows(&both, "succeeded", "true");
    child["machinePattern"] = "^nobody$".into();
    let child = server.run(child);
    assert_eq!(child["state"], "skipped", "{child}");
    assert_eq!(
        child["msg"],
        "none of the machines of the task that it follows is meant"
    );
}

#[test]
fn what_does_not_go_with_it_is_refused() {
    let server = Server::start();
    let _agent = server.agent("m");
    let parent = server.run(task("true"));
    let mut any = task("true");
    any["mode"] = "any".into();
    let any = server.run(any);
    let mut open = task("true");
    open["lateJoin"] = true.into();
    let open = server.submit(open);
    let entry = |more: Value| {
        let mut entry = json!({"task": id(&parent), "perMachine": true});
        for (field, value) in more.as_object().unwrap() {
            entry[field] = value.clone();
        }
        let mut child = task("true");
        child["after"] = json!([entry]);
        child
    };
    let with = |field: &str, value: Value| {
        let mut child = entry(json!({}));
        child[field] = value;
        child
    };
    let mut twice = entry(json!({}));
    twice["after"] = json!([
        {"task": id(&parent)},
        {"task": id(&parent), "perMachine": true},
        {"task": id(&parent), "perMachine": true},
    ]);
    let mut of_group = task("true");
    of_group["after"] = json!([{"group": "g", "perMachine": true}]);
    let mut with_child = follows(&parent, "ended", "true");
    with_child["onEnd"] = json!({"detail": {"command": "true"}});
    let is_any = format!("after[0].perMachine: task {} runs on any one", id(&any));
    let is_open = format!("after[0].perMachine: task {} has lateJoin", id(&open));
    for (child, why) in [
        (
            twice,
            "after[2].perMachine: stands in one entry at most, after[1]",
        ),
        (of_group, "after[0].perMachine: goes with task only"),
        (
            entry(json!({"minSucceeded": "50%"})),
            "after[0].minSucceeded: does not go with perMachine",
        ),
        (
            with("mode", json!("any")),
            "after[0].perMachine: goes with mode \"all\"",
        ),
        (
            with("lateJoin", json!(true)),
            "lateJoin: does not go with perMachine",
        ),
        (
            with("spread", json!("1m")),
            "spread: does not go with perMachine",
        ),
        (
            with("expect", json!(1)),
            "expect: does not go with perMachine",
        ),
        (
            with("maxTargets", json!(1)),
            "maxTargets: does not go with perMachine",
        ),
        (
            with("rollout", json!({"steps": [1, "100%"]})),
            "rollout: does not go with perMachine",
        ),
        (with_child, "onEnd.machinePattern: is required"),
        (follows(&any, "ended", "true"), &is_any),
        (follows(&open, "ended", "true"), &is_open),
    ] {
        let (status, msg) = refused(&server, &child);
        assert!(
            status == 400 && msg.starts_with(why),
            "{status} {msg}, not {why}"
        );
    }
    let unknown = follows(&json!({"id": "none"}), "ended", "true");
    assert_eq!(refused(&server, &unknown).0, 422);
    // Without it a task has to say where it runs, as ever.
    let mut plain = follows(&parent, "ended", "true");
    plain["after"][0]["perMachine"] = false.into();
    let (status, msg) = refused(&server, &plain);
    assert!(status == 400 && msg.starts_with("machinePattern: is required"));
    let list = json!([
        {"id": "p-1", "machinePattern": ".*", "mode": "any", "detail": {"command": "true"}},
        follows(&json!({"id": "p-1"}), "ended", "true"),
    ]);
    let reply = server.post("/api/v1/tasks", &list);
    assert!(
        reply.status == 400 && reply.msg().starts_with("tasks[1].after[0].perMachine: "),
        "{}",
        reply.msg()
    );
}

#[test]
fn the_other_one_may_begin_later_or_never() {
    let server = Server::start();
    let _agents = two(&server);
    let later = |delay: &str| {
        let mut parent = task("true");
        parent["delay"] = delay.into();
        server.submit(parent)
    };
    let parent = later("700ms");
    let child = server.submit(follows(&parent, "succeeded", "true"));
    assert_eq!(child["state"], "blocked", "{child}");
    assert_eq!(
        child["msg"],
        format!(
            "waits until {} has begun; then it follows machine by machine",
            id(&parent)
        )
    );
    let grandchild = server.submit(follows(&child, "succeeded", "true"));
    assert_eq!(grandchild["state"], "blocked", "{grandchild}");
    let done = server.finished(id(&grandchild));
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["counts"]["succeeded"], 2);
    for on in ["succeeded", "failed", "ended"] {
        let parent = later("1h");
        let child = server.submit(follows(&parent, on, "true"));
        post(&server, &format!("/api/v1/task/{}/cancel", id(&parent)));
        let child = server.finished(id(&child));
        assert_eq!(child["state"], "skipped", "{child}");
        let why = format!(
            "was to begin after task {} on its machines, which ended canceled without any",
            id(&parent)
        );
        assert_eq!(child["msg"], why);
        assert_eq!(child["after"][0]["met"], false);
    }
    // It waits for its own machines: the first that appears.
    let mut waits = task("true");
    waits["machinePattern"] = "^m-c$".into();
    let waits = server.submit(waits);
    let child = server.submit(follows(&waits, "succeeded", "true"));
    assert_eq!(child["state"], "blocked", "{child}");
    let _agent = server.agent("m-c");
    let child = server.finished(id(&child));
    assert_eq!(
        (&child["state"], &child["assignees"]),
        (&json!("succeeded"), &json!(["m-c"]))
    );
    // Others and a time of its own come first.
    let mut child = follows(&waits, "succeeded", "true");
    child["delay"] = "300ms".into();
    child["after"] = json!([child["after"][0], {"task": id(&later("600ms"))}]);
    let child = server.submit(child);
    assert_eq!(child["state"], "scheduled");
    assert_eq!(server.finished(id(&child))["state"], "succeeded");
}

#[test]
fn a_cancel_reaches_what_waits_only_if_asked_to() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = two(&server);
    let scene = |on: &str| {
        let parent = server.submit(gates(&folder, "sleep 0.1"));
        let child = server.submit(follows(&parent, on, "test $SIDEBIKE_MACHINE_LABEL = m-b"));
        let grandchild = server.submit(follows(&child, "ended", "true"));
        [parent, child, grandchild]
    };
    open(&folder, "m-a");
    let [parent, child, grandchild] = scene("succeeded");
    until(&server, &grandchild, "m-a", "succeeded");
    post(&server, &format!("/api/v1/task/{}/cancel", id(&parent)));
    let child = server.finished(id(&child));
    assert_eq!(on(&child, "m-a")["state"], "failed", "{child}");
    assert_eq!(on(&child, "m-b")["state"], "skipped", "{child}");
    let grandchild = server.finished(id(&grandchild));
    assert_eq!(grandchild["state"], "succeeded", "after any end");
    let [parent, child, grandchild] = scene("ended");
    let whole = server.submit({
        let mut whole = task("true");
        whole["after"] = json!([{"task": id(&child), "on": "ended"}]);
        whole
    });
    until(&server, &grandchild, "m-a", "succeeded");
    let said = sidebike(&server, &["cancel", "--dependents", id(&parent)]);
    assert_eq!(said.code, 0, "{}", said.err);
    for task in [&child, &grandchild] {
        let task = server.task(id(task));
        assert_eq!(on(&task, "m-b")["state"], "canceled", "at once: {task}");
        let why = "which it waited for";
        let msg = on(&task, "m-b")["msg"].as_str().unwrap();
        assert!(
            msg.starts_with("canceled with task ") && msg.ends_with(why),
            "{msg}"
        );
        assert!(!task["finishedAt"].is_null(), "{task}");
    }
    assert_eq!(server.task(id(&whole))["state"], "canceled");
    assert_eq!(server.finished(id(&parent))["state"], "partial");
    // Who comes later is not meant.
    let late = server.run(follows(&parent, "ended", "true"));
    assert_eq!(late["state"], "succeeded", "{late}");
}

#[test]
fn only_the_last_attempt_is_an_end() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = two(&server);
    let mut flaky =
        task("echo x >> $SIDEBIKE_MACHINE_LABEL; test $(wc -l < $SIDEBIKE_MACHINE_LABEL) = 3");
    flaky["detail"]["workspace"] = folder.path().into();
    flaky["retry"] = json!({"max": 5, "interval": [0.05]});
    let flaky = server.submit(flaky);
    let failure = server.submit(follows(&flaky, "failed", "true"));
    let child = server.run(follows(
        &flaky,
        "succeeded",
        &format!("wc -l < {}", folder.file("$SIDEBIKE_MACHINE_LABEL")),
    ));
    assert_eq!(child["state"], "succeeded", "{child}");
    for label in ["m-a", "m-b"] {
        assert_eq!(on(&child, label)["stdout"], "3\n");
    }
    assert_eq!(server.finished(id(&failure))["state"], "skipped");
    // A rerun of the other one is another task.
    let failed = server.run(task("false"));
    let child = server.submit(follows(&failed, "succeeded", "true"));
    post(&server, &format!("/api/v1/task/{}/rerun", id(&failed)));
    assert_eq!(server.finished(id(&child))["state"], "skipped");
}

#[test]
fn its_time_begins_when_it_goes_and_the_wait_is_bounded() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = two(&server);
    open(&folder, "m-a");
    let parent = server.submit(gates(&folder, "true"));
    let mut short = follows(&parent, "succeeded", "true");
    short["ttl"] = "1s".into();
    let short = server.submit(short);
    let mut bounded = follows(&parent, "succeeded", "true");
    bounded["blockedTtl"] = "1200ms".into();
    let bounded = server.submit(bounded);
    let bounded = server.finished(id(&bounded));
    assert_eq!(bounded["state"], "partial", "{bounded}");
    assert_eq!(on(&bounded, "m-a")["state"], "succeeded");
    assert_eq!(on(&bounded, "m-b")["state"], "expired");
    assert_eq!(
        on(&bounded, "m-b")["msg"],
        format!(
            "task {} did not end on this machine within the blockedTtl",
            id(&parent)
        )
    );
    // More than its ttl has passed by now.
    assert_eq!(on(&server.task(id(&short)), "m-b")["state"], "held");
    // In a pause nothing goes, and no time runs.
    post(&server, &format!("/api/v1/task/{}/pause", id(&short)));
    open(&folder, "m-b");
    server.finished(id(&parent));
    wait_until("the ttl would be over", || {
        let shown = server.task(id(&short));
        assert_eq!(on(&shown, "m-b")["state"], "held", "{shown}");
        let ended = server.task(id(&parent))["finishedAt"].clone();
        let ended = humantime::parse_rfc3339(ended.as_str().unwrap()).unwrap();
        let now = std::time::SystemTime::now();
        (now.duration_since(ended).unwrap_or_default().as_millis() > 1_500).then_some(())
    });
    post(&server, &format!("/api/v1/task/{}/resume", id(&short)));
    assert_eq!(server.finished(id(&short))["state"], "succeeded");
    // Without a pause it expires.
    let limit = server.request("PUT", "/api/v1/limit/none", b"{\"running\": 0}");
    assert_eq!(limit.status, 200);
    let mut late = follows(&parent, "succeeded", "true");
    late["ttl"] = "200ms".into();
    late["limits"] = json!(["none"]);
    assert_eq!(server.run(late)["state"], "expired");
}

#[test]
fn a_suspension_and_a_drain_hold_up_what_goes() {
    let server = Server::start();
    let _agents = two(&server);
    let parent = server.run(task("true"));
    let suspended = server.post(
        "/api/v1/suspend",
        &json!({"machinePattern": "^m-b$", "reason": "disk"}),
    );
    assert_eq!(suspended.status, 200, "{}", suspended.msg());
    let mut child = follows(&parent, "succeeded", "true");
    child["ttl"] = "1s".into();
    let child = server.submit(child);
    let shown = until(&server, &child, "m-a", "succeeded");
    assert_eq!(on(&shown, "m-b")["state"], "queued");
    assert_eq!(
        on(&server.task(id(&child)), "m-b")["msg"],
        "waits: ^m-b$ is suspended: disk"
    );
    let begin = Instant::now();
    wait_until("its ttl would be over", || {
        let shown = server.task(id(&child));
        assert_eq!(on(&shown, "m-b")["state"], "queued", "{shown}");
        (begin.elapsed() > Duration::from_millis(1_200)).then_some(())
    });
    assert_eq!(server.request("DELETE", "/api/v1/suspend", b"").status, 200);
    assert_eq!(server.finished(id(&child))["state"], "succeeded");
    let drained = server.post("/api/v1/machine/m-b/drain", &Value::Null);
    assert_eq!(drained.status, 200, "{}", drained.msg());
    let child = server.submit(follows(&parent, "succeeded", "true"));
    until(&server, &child, "m-a", "succeeded");
    let ended = server.post("/api/v1/machine/m-b/shutdown", &Value::Null);
    assert_eq!(ended.status, 200, "{}", ended.msg());
    let child = server.finished(id(&child));
    assert_eq!(on(&child, "m-b")["state"], "lost", "{child}");
    // What follows a machine that is gone is lost, or skipped.
    for (word, expected) in [("succeeded", "skipped"), ("failed", "lost")] {
        let last = server.run(follows(&child, word, "true"));
        assert_eq!(on(&last, "m-b")["state"], expected, "{word}: {last}");
    }
}

#[test]
fn the_other_one_is_kept_as_long_as_something_waits() {
    let (server, folder) = (Server::with(&["--max-tasks", "3"]), Folder::new());
    let _agents = two(&server);
    let mut parent = task("true");
    parent["resultTtl"] = "100ms".into();
    let parent = server.run(parent);
    let second = server.submit(gates(&folder, "true"));
    let mut child = follows(&second, "succeeded", "true");
    let edges = json!([child["after"][0], {"task": id(&parent), "on": "ended"}]);
    child["after"] = edges;
    let child = server.submit(child);
    assert_eq!(child["counts"]["held"], 2, "{child}");
    let delete = |parent: &Value| {
        let target = format!("/api/v1/task/{}", id(parent));
        server.request("DELETE", &target, b"")
    };
    let kept = delete(&parent);
    assert!(
        kept.status == 409 && kept.msg().contains(id(&child)),
        "{}",
        kept.msg()
    );
    for _ in 0..6 {
        server.run(task("true"));
    }
    let target = format!("/api/v1/task/{}", id(&parent));
    assert_eq!(server.get(&target).status, 200);
    open(&folder, "m-a");
    until(&server, &child, "m-a", "succeeded");
    assert_eq!(delete(&parent).status, 409, "one of them still waits");
    open(&folder, "m-b");
    assert_eq!(server.finished(id(&child))["state"], "succeeded");
    wait_until("it is forgotten", || {
        (server.get(&target).status == 404).then_some(())
    });
}

#[test]
fn what_a_killed_server_had_accepted_goes_on_machine_by_machine() {
    let folder = Folder::new();
    let file = folder.file("db");
    let flags = ["--db", &*file];
    let mut server = Server::with(&flags);
    let agents = two(&server);
    let address = server.address;
    let mut later = gates(&folder, "true");
    later["delay"] = "1h".into();
    let later = server.submit(later);
    let blocked = server.submit(follows(&later, "ended", "true"));
    let parent = server.submit(gates(&folder, "true"));
    let held = server.submit(follows(&parent, "succeeded", "true"));
    let third = server.submit(follows(&held, "succeeded", "true"));
    open(&folder, "m-a");
    until(&server, &third, "m-a", "succeeded");
    // One of them is paused.
    let mut paused = follows(&parent, "succeeded", "true");
    paused["ttl"] = "1h".into();
    let paused = server.submit(paused);
    until(&server, &paused, "m-a", "succeeded");
    post(&server, &format!("/api/v1/task/{}/pause", id(&paused)));
    for _ in 0..2 {
        server.process.kill_9();
        drop(server);
        server = Server::listening_on(&address.to_string(), &flags);
        let shown = server.task(id(&held));
        assert_eq!(on(&shown, "m-a")["state"], "succeeded", "{shown}");
        assert_eq!(on(&shown, "m-b")["state"], "held", "{shown}");
        assert_eq!(on(&server.task(id(&third)), "m-b")["state"], "held");
        assert_eq!(server.task(id(&blocked))["state"], "blocked");
        let kept = server.request("DELETE", &format!("/api/v1/task/{}", id(&held)), b"");
        assert_eq!(kept.status, 409, "{}", kept.msg());
    }
    open(&folder, "m-b");
    assert_eq!(server.finished(id(&third))["state"], "succeeded");
    // What has its turn in a pause keeps it.
    until(&server, &parent, "m-b", "succeeded");
    assert_eq!(on(&server.task(id(&paused)), "m-b")["state"], "held");
    server.process.kill_9();
    drop(server);
    let server = Server::listening_on(&address.to_string(), &flags);
    assert_eq!(on(&server.task(id(&paused)), "m-b")["state"], "held");
    post(&server, &format!("/api/v1/task/{}/resume", id(&paused)));
    assert_eq!(server.finished(id(&paused))["state"], "succeeded");
    post(
        &server,
        &format!("/api/v1/task/{}/cancel?dependents=1", id(&later)),
    );
    assert_eq!(server.finished(id(&blocked))["state"], "canceled");
    drop(agents);
}

#[test]
fn the_command_line_follows_machine_by_machine() {
    let server = Server::start();
    let _agents = two(&server);
    let first = sidebike(
        &server,
        &["run", "--detach", "-m", "m-a", "--", "sleep 0.3"],
    )
    .out;
    let first = first.trim();
    let ran = sidebike(
        &server,
        &[
            "run",
            "--after",
            first,
            "--per-machine",
            "--",
            "echo [$SIDEBIKE_AFTER]",
        ],
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains(&format!("[{first}]")), "{}", ran.out);
    let newest = server.newest();
    assert_eq!(newest["assignees"], json!(["m-a"]), "{newest}");
    let shown = sidebike(&server, &["show", id(&newest)]).out;
    assert!(
        shown.contains(&format!("{first} succeeded on each machine")),
        "{shown}"
    );
    let wider = sidebike(
        &server,
        &[
            "run",
            "-m",
            ".*",
            "--after",
            first,
            "--per-machine",
            "--",
            "true",
        ],
    );
    assert_eq!(wider.code, 125, "skipped on m-b: {}", wider.err);
    for (args, why) in [
        (vec!["--per-machine"], "--after"),
        (
            vec!["--per-machine", "--after", "a", "--after", "b"],
            "--per-machine: goes with one --after",
        ),
    ] {
        let args = [vec!["run"], args, vec!["--", "true"]].concat();
        let wrong = sidebike(&server, &args);
        assert!(wrong.code == 2 && wrong.err.contains(why), "{}", wrong.err);
    }
}

#[test]
fn a_thousand_tasks_follow_on_each_machine_and_a_long_chain() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = two(&server);
    let mut narrow = gates(&folder, "true");
    narrow["machinePattern"] = "^m-a$".into();
    let parent = server.submit(narrow);
    for _ in 0..1_200 {
        server.submit(follows(&parent, "failed", "true"));
    }
    let mut last = parent.clone();
    for _ in 0..1_200 {
        last = server.submit(follows(&last, "failed", "true"));
    }
    open(&folder, "m-a");
    server.finished(id(&last));
    wait_until("all are skipped", || {
        let skipped = server.metric("sidebike_tasks{state=\"skipped\"}");
        (skipped == 2_400).then_some(())
    });
}
