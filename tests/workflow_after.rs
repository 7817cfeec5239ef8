//! Tasks that begin after others: `after`, `blockedTtl`, `minSucceeded`, and what they mean for cancels and deletes.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::said::{lines_with, sidebike};
use common::{Folder, Server, id, task, wait_until};
use serde_json::{Value, json};

/// A task that begins after others.
fn after(command: &str, entries: Value) -> Value {
    let mut task = task(command);
    task["after"] = entries;
    task
}

/// One that any machine may run, and that ends when `go` is there.
fn gate(folder: &Folder, then: &str) -> Value {
    let file = folder.file("go");
    let line = format!("while ! test -e {}; do sleep 0.05; done; {then}", file);
    let mut task = task(&line);
    task["mode"] = "any".into();
    task
}

fn open(folder: &Folder) {
    std::fs::write(folder.file("go"), "").unwrap();
}

fn refused(server: &Server, task: &Value) -> (u16, String) {
    let reply = server.post("/api/v1/task", task);
    (reply.status, reply.msg())
}

#[test]
fn a_task_is_blocked_until_the_other_has_succeeded() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agent = server.agent("m");
    let first = server.submit(gate(&folder, "true"));
    let second = server.submit(after(
        "echo [$SIDEBIKE_AFTER]",
        json!([{"task": id(&first)}]),
    ));
    assert_eq!(second["state"], "blocked", "{second}");
    assert_eq!(
        second["after"],
        json!([{"task": first["id"], "on": "succeeded"}])
    );
    assert_eq!(second["blockedTtl"], 604_800);
    let msg = format!("waits for the end of {}", id(&first));
    assert_eq!(second["msg"], msg);
    assert_eq!(server.metric("sidebike_tasks{state=\"blocked\"}"), 1);
    let listed = server.get("/api/v1/task?state=blocked").data();
    assert_eq!(listed[0]["id"], second["id"]);
    // The parent is kept for it.
    open(&folder);
    let done = server.finished(id(&second));
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["after"][0]["met"], true);
    assert_eq!(done["result"][0]["stdout"], format!("[{}]\n", id(&first)));
    assert_eq!(server.metric("sidebike_tasks{state=\"blocked\"}"), 0);
    let first_ended = server.task(id(&first))["finishedAt"]
        .as_str()
        .map(str::to_owned);
    assert!(done["result"][0]["startedAt"].as_str().map(str::to_owned) >= first_ended);
    let delete = format!("/api/v1/task/{}", id(&first));
    assert_eq!(
        server.request("DELETE", &delete, b"").status,
        200,
        "it has started"
    );
    // A rerun does not wait, and asks for no task that is gone.
    let again = format!("/api/v1/task/{}/rerun?all=1&wait=60s", id(&second));
    let again = server.post(&again, &Value::Null).data();
    assert_eq!(
        (&again["state"], &again["after"]),
        (&json!("succeeded"), &Value::Null)
    );
}

#[test]
fn each_row_of_the_table_once() {
    let server = Server::start();
    let _agents = [server.agent("m-a"), server.agent("m-b")];
    let parent = |line: &str, more: Value| {
        let mut parent = task(line);
        for (field, value) in more.as_object().unwrap() {
            parent[field] = value.clone();
        }
        let parent = server.submit(parent);
        id(&parent).to_owned()
    };
    let succeeded = parent("true", json!({}));
    let partial = parent("test $SIDEBIKE_MACHINE_LABEL = m-a", json!({}));
    let failed = parent("false", json!({}));
    let expired = parent("true", json!({"machinePattern": "^nobody$", "ttl": "50ms"}));
    let canceled = parent("true", json!({"delay": "1h"}));
    server
        .post(&format!("/api/v1/task/{canceled}/cancel"), &Value::Null)
        .data();
    let skipped = parent("true", json!({"delay": "1h"}));
    server
        .post(&format!("/api/v1/task/{skipped}/stop"), &Value::Null)
        .data();
    let ends = [
        (&succeeded, "succeeded", [true, false, true]),
        (&partial, "partial", [false, true, true]),
        (&failed, "failed", [false, true, true]),
        (&expired, "expired", [false, true, true]),
        (&canceled, "canceled", [false, false, true]),
        (&skipped, "skipped", [false, false, true]),
    ];
    for (parent, state, goes) in ends {
        for (on, goes) in ["succeeded", "failed", "ended"].into_iter().zip(goes) {
            // Half of them before the parent has ended, as it may happen.
            let child = server.run(after("true", json!([{"task": parent, "on": on}])));
            let expected = if goes { "succeeded" } else { "skipped" };
            assert_eq!(server.task(parent)["state"], state);
            assert_eq!(child["state"], expected, "{state} {on}: {child}");
            assert_eq!(child["after"][0]["met"], goes);
            if !goes {
                let msg = child["msg"].as_str().unwrap();
                let why = format!("{parent} {on}, which ended {state}");
                assert!(msg.ends_with(&why), "{msg}");
                assert_eq!(child["result"], json!([]));
            }
        }
    }
    for (min, expected) in [
        (json!("50%"), "succeeded"),
        (json!(1), "succeeded"),
        (json!("51%"), "skipped"),
    ] {
        let entry = json!([{"task": partial, "minSucceeded": min}]);
        let child = server.run(after("true", entry));
        assert_eq!(child["state"], expected, "{min}");
    }
}

#[test]
fn it_is_skipped_as_soon_as_one_cannot_be_met_any_more() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = server.agents(2, "m");
    let slow = server.submit(gate(&folder, "true"));
    let fails = server.submit(gate(&folder, "true"));
    let both = json!([{"task": id(&slow)}, {"task": id(&fails)}]);
    let child = server.submit(after("true", both));
    let grandchild =
        json!([{"task": id(&child), "on": "ended"}, {"task": id(&fails), "on": "ended"}]);
    let grandchild = server.submit(after("true", grandchild));
    let cancel = format!("/api/v1/task/{}/cancel", id(&fails));
    server.post(&cancel, &Value::Null).data();
    let child = server.finished(id(&child));
    assert_eq!(child["state"], "skipped", "{child}");
    assert_eq!(server.task(id(&slow))["state"], "running");
    assert_eq!(server.finished(id(&grandchild))["state"], "succeeded");
    open(&folder);
    server.finished(id(&slow));
    let seen = sidebike(&server, &["wait", id(&child)]);
    assert_eq!(seen.code, 125, "{}", seen.err);
}

#[test]
fn only_the_last_attempt_is_an_end() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agent = server.agent("m");
    let mut flaky = task("echo x >> tries; test $(wc -l < tries) = 3");
    flaky["detail"]["workspace"] = folder.path().into();
    flaky["retry"] = json!({"max": 5, "interval": [0.05]});
    let flaky = server.submit(flaky);
    let child = server.run(after("true", json!([{"task": id(&flaky)}])));
    assert_eq!(child["state"], "succeeded", "{child}");
    let failure = server.run(after("true", json!([{"task": id(&flaky), "on": "failed"}])));
    assert_eq!(failure["state"], "skipped", "{failure}");
}

#[test]
fn what_is_named_must_be_there_and_makes_sense() {
    let server = Server::start();
    let (status, msg) = refused(&server, &after("true", json!([{"task": "none"}])));
    assert_eq!(status, 422);
    assert!(
        msg.starts_with("after[0].task: no task has the id or name \"none\""),
        "{msg}"
    );
    for (entries, why) in [
        (json!([{}]), "after[0]: needs task"),
        (
            json!([{"task": ""}]),
            "after[0]: needs task (the id or the name of a task) or group",
        ),
        (json!([{"task": "a", "on": "done"}]), "on: "),
        (
            json!([{"task": "a", "minSucceeded": 0}]),
            "after[0].minSucceeded: must be above 0",
        ),
        (
            json!([{"task": "a", "on": "ended", "minSucceeded": 1}]),
            "goes with \"on\": \"succeeded\" only",
        ),
        (
            Value::from(vec![json!({"task": "a"}); 101]),
            "after: must have 100 entries at most",
        ),
    ] {
        let (status, msg) = refused(&server, &after("true", entries));
        assert!(
            status == 400 && msg.contains(why),
            "{status} {msg}, not {why}"
        );
    }
    let mut alone = task("true");
    alone["blockedTtl"] = 5.into();
    let (status, msg) = refused(&server, &alone);
    assert_eq!((status, &*msg), (400, "blockedTtl: goes with after only"));
    // A name is the newest task of that name.
    let mut named = task("true");
    named["name"] = "nightly".into();
    named["delay"] = "1h".into();
    server.submit(named.clone());
    let newest = server.submit(named);
    let child = server.submit(after("true", json!([{"task": "nightly"}])));
    assert_eq!(child["after"][0]["task"], newest["id"]);
}

#[test]
fn who_waits_for_too_long_expires() {
    let server = Server::start();
    let _agent = server.agent("m");
    let mut never = task("true");
    never["delay"] = "1h".into();
    let never = server.submit(never);
    let mut child = after("true", json!([{"task": id(&never)}]));
    child["blockedTtl"] = "200ms".into();
    let child = server.run(child);
    assert_eq!(child["state"], "expired", "{child}");
    let msg = format!("{} did not end within its blockedTtl", id(&never));
    assert_eq!(child["msg"], msg);
    // With a time of its own its blockedTtl begins then.
    let mut child = after("true", json!([{"task": id(&never)}]));
    child["blockedTtl"] = "200ms".into();
    child["delay"] = "300ms".into();
    let child = server.submit(child);
    assert_eq!(child["state"], "scheduled", "time comes first: {child}");
    assert_eq!(server.finished(id(&child))["state"], "expired");
}

#[test]
fn a_parent_is_kept_until_its_children_have_started() {
    let server = Server::with(&["--max-tasks", "3"]);
    let _agent = server.agent("m");
    let mut short = task("true");
    short["resultTtl"] = "100ms".into();
    let parent = server.run(short);
    let mut child = after("true", json!([{"task": id(&parent)}]));
    child["delay"] = "3s".into();
    let child = server.submit(child);
    let delete = format!("/api/v1/task/{}", id(&parent));
    let kept = server.request("DELETE", &delete, b"");
    assert_eq!(kept.status, 409);
    assert!(kept.msg().contains(id(&child)), "{}", kept.msg());
    for _ in 0..6 {
        server.run(task("true"));
    }
    assert_eq!(
        server.get(&delete).status,
        200,
        "neither its time nor the limit takes it"
    );
    assert_eq!(server.finished(id(&child))["state"], "succeeded");
    wait_until("it is forgotten", || {
        (server.get(&delete).status == 404).then_some(())
    });
}

#[test]
fn a_cancel_reaches_those_who_wait_only_if_asked_to() {
    let server = Server::start();
    let _agent = server.agent("m");
    let chain = |ends: &str| {
        let mut first = task("sleep 300");
        first["mode"] = "any".into();
        let first = server.submit(first);
        let second = server.submit(after("true", json!([{"task": id(&first), "on": ends}])));
        let third = server.submit(after("true", json!([{"task": id(&second), "on": "ended"}])));
        server.when(id(&first), "running", 1);
        [first, second, third]
    };
    let [first, second, third] = chain("ended");
    let machine = format!("/api/v1/task/{}/cancel?dependents=1&machine=m", id(&first));
    assert_eq!(server.post(&machine, &Value::Null).status, 400);
    let all = format!("/api/v1/task/{}/cancel?dependents=1", id(&first));
    server.post(&all, &Value::Null).data();
    // At once: the first one may take its time to end.
    for task in [second, third] {
        let task = server.task(id(&task));
        assert_eq!(task["state"], "canceled", "{task}");
    }
    assert_eq!(server.finished(id(&first))["state"], "canceled");
    let [first, second, third] = chain("succeeded");
    let alone = sidebike(&server, &["cancel", id(&first)]);
    assert_eq!(alone.code, 0, "{}", alone.err);
    assert_eq!(server.finished(id(&second))["state"], "skipped");
    assert_eq!(server.finished(id(&third))["state"], "succeeded");
    let [first, second, third] = chain("ended");
    let said = sidebike(&server, &["cancel", "--dependents", id(&first)]);
    assert_eq!(said.code, 0, "{}", said.err);
    for task in [first, second, third] {
        assert_eq!(server.finished(id(&task))["state"], "canceled");
    }
}

#[test]
fn a_thousand_children_and_a_long_chain_are_settled() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agent = server.agent("m");
    let first = server.submit(gate(&folder, "false"));
    let entry = json!([{"task": id(&first)}]);
    for _ in 0..1_200 {
        server.submit(after("true", entry.clone()));
    }
    let mut last = first.clone();
    for _ in 0..1_200 {
        last = server.submit(after("true", json!([{"task": id(&last)}])));
    }
    assert_eq!(server.metric("sidebike_tasks{state=\"blocked\"}"), 2_400);
    open(&folder);
    server.finished(id(&last));
    wait_until("all are skipped", || {
        (server.metric("sidebike_tasks{state=\"blocked\"}") == 0).then_some(())
    });
    assert_eq!(server.metric("sidebike_tasks{state=\"skipped\"}"), 2_400);
}

#[test]
fn what_a_killed_server_had_accepted_is_settled_when_it_is_back() {
    let folder = Folder::new();
    let file = folder.file("db");
    let flags = ["--db", &*file];
    let mut server = Server::with(&flags);
    let mut soon = task("true");
    soon["delay"] = "400ms".into();
    soon["machinePattern"] = "^nobody$".into();
    soon["ttl"] = "50ms".into();
    let soon = server.submit(soon);
    let goes = server.submit(after("true", json!([{"task": id(&soon), "on": "failed"}])));
    let not = server.submit(after("true", json!([{"task": id(&soon)}])));
    let beyond = server.submit(after("true", json!([{"task": id(&not), "on": "ended"}])));
    server.process.kill_9();
    drop(server);
    let server = Server::with(&flags);
    let _agent = server.agent("m");
    assert_eq!(server.finished(id(&soon))["state"], "expired");
    assert_eq!(server.finished(id(&goes))["state"], "succeeded");
    assert_eq!(server.finished(id(&not))["state"], "skipped");
    assert_eq!(server.finished(id(&beyond))["state"], "succeeded");
}

#[test]
fn the_command_line_runs_after_others() {
    let server = Server::start();
    let _agent = server.agent("m");
    let first = sidebike(&server, &["run", "--detach", "--", "sleep 0.3; false"]).out;
    let first = first.trim();
    let on = format!("{first}:ended");
    let ran = sidebike(
        &server,
        &["run", "--after", &on, "--", "echo [$SIDEBIKE_AFTER]"],
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains(&format!("[{first}]")), "{}", ran.out);
    let skipped = sidebike(&server, &["run", "--after", first, "--", "true"]);
    assert_eq!(skipped.code, 125, "{}", skipped.err);
    assert!(
        skipped.err.contains("which ended failed"),
        "{}",
        skipped.err
    );
    let shown = sidebike(&server, &["ps", "--state", "skipped", "--json"]).json();
    let shown = sidebike(&server, &["show", shown[0]["id"].as_str().unwrap()]).out;
    assert_eq!(
        lines_with(&shown, "after ").len(),
        2,
        "the edge and the note: {shown}"
    );
    let unknown = sidebike(&server, &["run", "--after", "none", "--", "true"]);
    assert_ne!(unknown.code, 0);
    assert!(
        unknown.err.contains("no task has the id"),
        "{}",
        unknown.err
    );
}

/// The child of a task that begins with this end of it.
fn child(server: &Server, parent: &Value, on: &str) -> String {
    let parent = server.task(id(parent));
    let children = parent["children"]
        .as_array()
        .unwrap_or_else(|| panic!("{parent}"));
    let child = children.iter().find(|child| child["on"] == on);
    child.unwrap()["task"].as_str().unwrap().to_owned()
}

fn with_children(command: &str) -> Value {
    let mut parent = task(command);
    let line = |word: &str| json!({"detail": {"command": format!("echo {word} $SIDEBIKE_AFTER")}});
    parent["onSuccess"] = line("well");
    parent["onFailure"] = line("bad");
    parent["onEnd"] = line("over");
    parent
}

#[test]
fn children_begin_with_the_end_of_their_parent() {
    let server = Server::start();
    let _agents = server.agents(2, "m");
    let parent = server.submit(with_children("exit 4"));
    let [well, bad, over] = ["succeeded", "failed", "ended"].map(|on| child(&server, &parent, on));
    assert_eq!(server.finished(&well)["state"], "skipped");
    for (id_of, word) in [(&bad, "bad"), (&over, "over")] {
        let child = server.finished(id_of);
        assert_eq!(child["state"], "succeeded", "{child}");
        assert_eq!(
            (&child["mode"], &child["ttl"]),
            (&json!("any"), &json!(600))
        );
        assert_eq!(child["machinePattern"], parent["machinePattern"]);
        assert_eq!(child["parent"], parent["id"]);
        let line = format!("{word} {}\n", id(&parent));
        assert_eq!(child["result"][0]["stdout"], line);
    }
    let ended = server.finished(id(&parent));
    assert_eq!(ended["state"], "failed", "they change nothing about it");
    assert_eq!(
        ended["onFailure"]["detail"]["command"],
        "echo bad $SIDEBIKE_AFTER"
    );
    // A rerun has them again, and what was answered can be posted again.
    let again = format!("/api/v1/task/{}/rerun", id(&parent));
    let again = server.post(&again, &Value::Null).data();
    let new = child(&server, &again, "failed");
    assert_ne!(new, bad);
    assert_eq!(server.finished(&new)["parent"], again["id"]);
    let mut posted = ended.clone();
    for field in ["id", "truncatedInstances"] {
        posted.as_object_mut().unwrap().remove(field);
    }
    let posted = server.submit(posted);
    assert_eq!(
        server.finished(&child(&server, &posted, "failed"))["state"],
        "succeeded"
    );
}

#[test]
fn a_family_is_accepted_as_a_whole_or_not_at_all() {
    let server = Server::start();
    let _agent = server.agent("m");
    for (field, value, why) in [
        (
            "onEnd",
            json!({"detail": {"command": ""}}),
            "onEnd.detail.command: must not be empty",
        ),
        (
            "onEnd",
            json!({"detail": {"command": "true"}, "delay": 1}),
            "onEnd.delay: is not for",
        ),
        (
            "onEnd",
            json!({"detail": {"command": "true"}, "after": []}),
            "onEnd.after: is not for",
        ),
        (
            "onEnd",
            with_children("true"),
            "onEnd.onSuccess: is not for",
        ),
        (
            "onEnd",
            json!({"detail": {"command": "true"}, "nonsense": 1}),
            "nonsense",
        ),
    ] {
        let mut parent = task("true");
        parent[field] = value;
        let (status, msg) = refused(&server, &parent);
        assert!(
            status == 400 && msg.contains(why),
            "{status} {msg}, not {why}"
        );
    }
    let mut known = task("true");
    known["id"] = "known".into();
    server.submit(known);
    let mut parent = with_children("true");
    parent["id"] = "parent".into();
    parent["onEnd"]["id"] = "known".into();
    assert_eq!(refused(&server, &parent).0, 409);
    parent["onEnd"]["id"] = "parent".into();
    assert_eq!(refused(&server, &parent).0, 409);
    assert_eq!(server.get("/api/v1/task/parent").status, 404);
    assert_eq!(server.metric("sidebike_tasks_submitted_total"), 1);
}

#[test]
fn a_child_runs_although_the_machine_of_its_parent_died_and_after_a_kill_of_the_server() {
    let folder = Folder::new();
    let file = folder.file("db");
    let flags = ["--db", &*file];
    let mut server = Server::with(&flags);
    let mut parent = with_children("true");
    parent["machinePattern"] = "^nobody$".into();
    parent["ttl"] = 1.into();
    parent["onEnd"]["machinePattern"] = "^m$".into();
    let parent = server.submit(parent);
    server.process.kill_9();
    drop(server);
    let server = Server::with(&flags);
    let _agent = server.agent("m");
    assert_eq!(server.finished(id(&parent))["state"], "expired");
    let over = server.finished(&child(&server, &parent, "ended"));
    assert_eq!(over["state"], "succeeded", "{over}");
    let again = format!("/api/v1/task/{}/rerun", id(&parent));
    let again = server.post(&again, &Value::Null).data();
    assert_eq!(
        again["onEnd"]["machinePattern"], "^m$",
        "kept in the database: {again}"
    );
}

#[test]
fn the_command_line_has_children() {
    let server = Server::start();
    let _agent = server.agent("m");
    let ran = sidebike(
        &server,
        &["run", "--json", "--on-failure", "echo bad", "--", "false"],
    );
    let parent: Value = serde_json::from_str(&ran.out).unwrap();
    let bad = server.finished(&child(&server, &parent, "failed"));
    assert_eq!(bad["result"][0]["stdout"], "bad\n");
    let shown = sidebike(&server, &["show", id(&parent)]).out;
    assert_eq!(lines_with(&shown, "when it has failed").len(), 1, "{shown}");
    let shown = sidebike(&server, &["show", id(&bad)]).out;
    assert_eq!(lines_with(&shown, "parent ").len(), 1, "{shown}");
}

#[test]
fn a_group_is_one_parent_with_the_members_that_it_has_then() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = server.agents(2, "m");
    let member = |then: &str| {
        let mut member = gate(&folder, then);
        member["group"] = "tests".into();
        id(&server.submit(member)).to_owned()
    };
    let (good, bad) = (member("true"), member("false"));
    let group = |more: Value| {
        let mut entry = json!({"group": "tests"});
        for (field, value) in more.as_object().unwrap() {
            entry[field] = value.clone();
        }
        server.submit(after("echo [$SIDEBIKE_AFTER]", json!([entry])))
    };
    let ended = group(json!({"on": "ended"}));
    assert_eq!(ended["state"], "blocked", "{ended}");
    assert_eq!(
        ended["after"],
        json!([{"group": "tests", "members": 2, "on": "ended"}])
    );
    assert_eq!(ended["msg"], "waits for the end of group tests");
    let all = group(json!({}));
    let half = group(json!({"minSucceeded": "50%"}));
    let failed = group(json!({"on": "failed"}));
    // One that comes later is not meant.
    let mut late = task("sleep 300");
    late["group"] = "tests".into();
    let late = server.submit(late);
    let kept = server.request("DELETE", &format!("/api/v1/task/{good}"), b"");
    assert_eq!(kept.status, 409);
    open(&folder);
    for (child, state) in [
        (&ended, "succeeded"),
        (&half, "succeeded"),
        (&failed, "succeeded"),
        (&all, "skipped"),
    ] {
        assert_eq!(server.finished(id(child))["state"], state, "{child}");
    }
    let ended = server.task(id(&ended));
    assert_eq!(ended["result"][0]["stdout"], format!("[{good} {bad}]\n"));
    let msg = server.task(id(&all))["msg"].as_str().unwrap().to_owned();
    assert_eq!(
        msg,
        "was to begin after group tests succeeded, which ended partial"
    );
    server
        .post(&format!("/api/v1/task/{}/cancel", id(&late)), &Value::Null)
        .data();
    let (status, msg) = refused(&server, &after("true", json!([{"group": "none"}])));
    assert!(
        status == 422 && msg == "after[0].group: no task has the group \"none\"",
        "{status} {msg}"
    );
    let both = json!([{"group": "tests", "task": good}]);
    assert_eq!(refused(&server, &after("true", both)).0, 400);
    let ran = sidebike(
        &server,
        &["run", "--after-group", "tests:ended", "--", "true"],
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
}
