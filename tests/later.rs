//! What happens later: further attempts, machines that appear late, and what waits too long.

mod common;

use common::{Agent, Folder, Server, id, task, wait_for};
use serde_json::{Value, json};

fn with(mut task: Value, field: &str, value: Value) -> Value {
    task[field] = value;
    task
}

#[test]
fn a_retry_keeps_the_earlier_attempts() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agent = server.agent("m");
    let command = "echo try $SIDEBIKE_ATTEMPT; echo x >> tries; test $(wc -l < tries) = 3";
    let mut posted = with(
        task(command),
        "retry",
        json!({"max": 5, "interval": [0.05, 0.1]}),
    );
    posted["detail"]["workspace"] = folder.path().into();
    let done = server.run(posted);
    let execution = &done["result"][0];
    assert_eq!(
        (&done["state"], &execution["attempt"]),
        (&json!("succeeded"), &json!(3))
    );
    assert_eq!(execution["output"], json!(["try 3"]));
    let earlier = execution["attempts"].as_array().unwrap();
    let what = |field: &str| -> Vec<Value> { earlier.iter().map(|a| a[field].clone()).collect() };
    assert_eq!(what("state"), ["failed", "failed"]);
    assert_eq!(what("attempt"), [1, 2]);
    assert_eq!(what("exitCode"), [1, 1]);
    assert_eq!(what("output"), [json!(["try 1"]), json!(["try 2"])]);
    assert_eq!(folder.lines("tries").len(), 3);
    assert_eq!(server.metric("sidebike_retries_total"), 2);
}

#[test]
fn retries_end_at_their_number_and_happen_only_when_asked_for() {
    let server = Server::start();
    let _agent = server.agent("m");
    let attempts = |command: &str, retry: Value| {
        let mut posted = with(task(command), "retry", retry);
        posted["detail"]["timeout"] = 0.1.into();
        let execution = server.run(posted)["result"][0].clone();
        (
            execution["state"].as_str().unwrap().to_owned(),
            execution["attempt"].as_u64().unwrap(),
        )
    };
    assert_eq!(attempts("false", json!({"max": 2})), ("failed".into(), 3));
    assert_eq!(
        attempts("sleep 300", json!({"max": 1})),
        ("timedOut".into(), 2)
    );
    assert_eq!(
        attempts("false", json!({"max": 2, "on": ["timedOut"]})),
        ("failed".into(), 1)
    );
    assert_eq!(attempts("false", json!({"max": 0})), ("failed".into(), 1));
    assert_eq!(attempts("true", json!({"max": 2})), ("succeeded".into(), 1));
}

#[test]
fn a_cancel_between_two_attempts_is_the_end() {
    let server = Server::start();
    let _agent = server.agent("m");
    let posted = with(
        task("false"),
        "retry",
        json!({"max": 5, "interval": ["1h"]}),
    );
    let submitted = server.submit(posted);
    wait_for("the first attempt is over", || {
        server.task(id(&submitted))["result"][0]["attempt"] == 2
    });
    server
        .post(
            &format!("/api/v1/task/{}/cancel", id(&submitted)),
            &Value::Null,
        )
        .data();
    assert_eq!(server.task(id(&submitted))["state"], "canceled");
}

#[test]
fn a_task_that_matches_nobody_waits_for_its_first_machine() {
    let server = Server::start();
    let waiting = server.post("/api/v1/task", &task("echo here"));
    assert!(
        waiting.msg().contains("no machine matches"),
        "{}",
        waiting.msg()
    );
    let waiting = waiting.data();
    assert_eq!(
        (&waiting["state"], &waiting["matched"]),
        (&json!("waiting"), &json!(0))
    );
    let _agents = (server.agent("other"), server.agent("m1"));
    let done = server.finished(id(&waiting));
    let _second = server.agent("m2");
    server.run(task("true"));
    let done_later = server.task(id(&waiting));
    assert_eq!(done_later, done, "the second machine must not get it");
    assert_eq!(
        (&done["state"], &done["assignees"]),
        (&json!("succeeded"), &json!(["m1"]))
    );
}

#[test]
fn late_joiners_run_it_once_each() {
    let (server, folder) = (Server::start(), Folder::new());
    let _first = server.agent("m1");
    let mut posted = with(
        task("echo $SIDEBIKE_MACHINE_LABEL >> ran"),
        "lateJoin",
        true.into(),
    );
    posted["detail"]["workspace"] = folder.path().into();
    let open = server.submit(posted);
    assert_eq!(open["matched"], 1);
    server.when(id(&open), "succeeded", 1);
    let _more = (
        server.agent("m2"),
        server.agent("other"),
        server.agent("m3"),
    );
    let task_now = server.when(id(&open), "succeeded", 3);
    assert_eq!(task_now["state"], "running", "it is open until its ttl");
    server.run(task("true"));
    let mut ran = folder.lines("ran");
    ran.sort();
    assert_eq!(ran, ["m1", "m2", "m3"]);
}

#[test]
fn late_joiners_come_too_late_after_the_ttl() {
    let server = Server::start();
    let posted = with(task("true"), "lateJoin", true.into());
    let open = server.submit(with(posted, "ttl", 0.3.into()));
    let expired = server.finished(id(&open));
    assert_eq!(
        (&expired["state"], &expired["status"]),
        (&json!("expired"), &json!(3))
    );
    let _agent = server.agent("m");
    server.run(task("true"));
    assert_eq!(server.task(id(&open)), expired);
}

#[test]
fn what_waits_too_long_expires_and_never_starts() {
    let (server, folder) = (Server::start(), Folder::new());
    let agent = Agent::start(server.address, "m", &[("SIDEBIKE_JOBS", "1")]);
    server.expect(&[&agent]);
    let busy = server.submit(task("sleep 300"));
    server.when(id(&busy), "running", 1);
    let mut posted = with(task("echo late >> ran"), "ttl", 0.3.into());
    posted["detail"]["workspace"] = folder.path().into();
    let (all, any) = (
        server.submit(posted.clone()),
        server.submit(with(posted, "mode", "any".into())),
    );
    for expired in [all, any] {
        let expired = server.finished(id(&expired));
        assert_eq!(
            (&expired["state"], &expired["counts"]["expired"]),
            (&json!("expired"), &json!(1))
        );
        assert!(
            expired["result"][0]["msg"]
                .as_str()
                .unwrap()
                .contains("ttl")
        );
    }
    server
        .post(&format!("/api/v1/task/{}/cancel", id(&busy)), &Value::Null)
        .data();
    server.run(task("true"));
    assert!(folder.lines("ran").is_empty());
}
