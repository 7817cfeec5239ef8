//! Answers for scripts with curl: as text, with a status that says how it went, without running
//! anything; and ids that were shortened.

mod common;

use common::{Server, id, task};
use serde_json::{Value, json};

#[test]
fn a_dry_run_says_who_and_registers_nothing() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let dry = server
        .post("/api/v1/task?dryRun=1", &task("echo hi"))
        .data();
    assert_eq!(dry["matched"], 2);
    assert_eq!(dry["machines"][0]["label"], "m1");
    assert_eq!(
        dry["machines"][1]["instance"],
        server.machines()[1]["instance"]
    );
    let nobody = json!({"machinePattern": "x", "detail": {"command": "true"}});
    let dry = server
        .post("/api/v1/task/status/new/?dryRun=1", &nobody)
        .data();
    let msg = "no machine matches; it would wait for the first that appears within its ttl";
    let expected = json!({"ok": true, "msg": msg, "matched": 0, "machines": []});
    assert_eq!(dry, expected);
    let wrong = server.post("/api/v1/task?dryRun=1", &json!({"machinePattern": "("}));
    assert_eq!(wrong.status, 400);
    assert_eq!(server.get("/api/v1/task").data(), json!([]));
    let real = server.post("/api/v1/task?dryRun=0", &task("true")).data();
    assert!(real["id"].is_string());
}

#[test]
fn text_has_labels_and_a_last_line_when_it_did_not_succeed() {
    let server = Server::start();
    let _agent = server.agent("m");
    let good = server.post("/api/v1/task?wait=30s&format=text", &task("echo a; echo b"));
    assert_eq!((good.status, good.text()), (200, "m | a\nm | b\n"));
    assert!(
        good.header("Content-Type")
            .unwrap()
            .starts_with("text/plain")
    );
    let bad = server.post("/api/v1/task?wait=30s&format=text", &task("echo a; exit 3"));
    assert!(
        bad.text()
            .starts_with("m | a\nm failed: exit code 3\ntask "),
        "{}",
        bad.text()
    );
    assert!(
        bad.text().ends_with(" is failed: 1 failed\n"),
        "{}",
        bad.text()
    );
    let found = &server.get("/api/v1/task").data()[0];
    let shown = server.get(&format!("/api/v1/task/{}?format=text", id(found)));
    assert_eq!(shown.text(), bad.text());
    let silent = server.post("/api/v1/task?wait=30s&format=text", &task("exit 3"));
    assert!(
        silent.text().starts_with("m failed: exit code 3\ntask "),
        "{}",
        silent.text()
    );
    assert_eq!(server.get("/api/v1/task/x?format=xml").status, 400);
}

#[test]
fn output_of_a_machine_that_a_task_is_not_on_is_an_error() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let done = server.run(task("echo a"));
    let output = |id: &str, query: &str| server.get(&format!("/api/v1/task/{id}/output?{query}"));
    for query in [
        "",
        "&follow=1",
        "&format=json",
        "&offset=0",
        "&format=json&follow=1",
    ] {
        let missing = output(id(&done), &format!("machine=foo{query}"));
        assert_eq!(missing.status, 422, "{query}");
        assert!(
            missing.msg().ends_with("on \"foo\"; it has on m1, m2"),
            "{}",
            missing.msg()
        );
    }
    assert_eq!(output(id(&done), "machine=m1").status, 200);
    let waiting = json!({"machinePattern": "^foo", "detail": {"command": "true"}});
    let waiting = server.submit(waiting);
    assert_eq!(
        output(id(&waiting), "machine=foo").status,
        200,
        "it may come"
    );
}

#[test]
fn bodies_and_waits_that_make_no_sense_say_why() {
    let server = Server::start();
    let empty = server.request("POST", "/api/v1/task", b"");
    assert_eq!(empty.status, 400);
    assert!(empty.msg().contains("the body is empty"), "{}", empty.msg());
    for wait in ["3x", "2h"] {
        let wrong = server.post(&format!("/api/v1/task?wait={wait}"), &task("true"));
        assert_eq!(wrong.status, 400);
        assert!(wrong.msg().contains("1h at most"), "{}", wrong.msg());
    }
}

#[test]
fn strict_answers_have_a_status_that_says_how_it_went() {
    let server = Server::start();
    let _agent = server.agent("m");
    let run = |query: &str, line: &str| server.post(&format!("/api/v1/task?{query}"), &task(line));
    let good = run("wait=30s&strict=1", "echo a");
    assert_eq!(
        (good.status, &good.json()["data"]["state"]),
        (200, &json!("succeeded"))
    );
    let bad = run("wait=30s&strict=1", "exit 3");
    assert_eq!((bad.status, &bad.json()["signal"]), (422, &json!(-1)));
    assert_eq!(bad.json()["data"]["result"][0]["exitCode"], 3);
    assert!(bad.msg().contains("1 failed"), "{}", bad.msg());
    let late = run("wait=100ms&strict=1&format=text", "echo begun; sleep 60");
    assert_eq!(late.status, 408);
    assert!(late.text().contains("1 running"), "{}", late.text());
    let tasks = server.get("/api/v1/task").data();
    let states: Vec<u16> = { tasks.as_array().unwrap().iter() }
        .map(|task| {
            server
                .get(&format!("/api/v1/task/{}?strict=1", id(task)))
                .status
        })
        .collect();
    assert_eq!(states, [408, 422, 200]);
}

#[test]
fn ids_can_be_shortened_to_look_but_not_to_change() {
    let server = Server::start();
    let _agent = server.agent("m");
    let mut posted = task("sleep 60");
    for name in ["abcdef-1", "abcdef-2", "abcdefg"] {
        posted["id"] = name.into();
        server.submit(posted.clone());
    }
    let get = |name: &str| server.get(&format!("/api/v1/task/{name}"));
    assert_eq!(get("abcdef-").status, 422);
    assert!(get("abcdef-").msg().contains("write more of it"));
    assert_eq!(get("abcde").status, 404, "too short");
    assert_eq!(id(&get("abcdefg").data()), "abcdefg");
    posted["id"] = "xyzxyz-1".into();
    server.submit(posted);
    assert_eq!(id(&get("xyzxyz").data()), "xyzxyz-1");
    assert_eq!(server.get("/api/v1/task/xyzxyz/output").status, 200);
    let cancel = |name: &str| server.post(&format!("/api/v1/task/{name}/cancel"), &Value::Null);
    assert_eq!(cancel("xyzxyz").status, 404);
    for (short, words) in [
        ("xyzxyz", "xyzxyz-1; give the whole id"),
        ("abcdef-", "whole id"),
    ] {
        assert!(
            cancel(short).msg().contains(words),
            "{}",
            cancel(short).msg()
        );
    }
    assert!(cancel("nobody").msg().contains("without a database"));
    for name in ["xyzxyz-1", "abcdef-1", "abcdef-2", "abcdefg"] {
        assert_eq!(cancel(name).status, 200);
    }
}
