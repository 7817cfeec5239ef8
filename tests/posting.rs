//! Submitting a task: every mistake is answered with the field and what would be right, and
//! registers nothing; an id makes a repeated submit safe.

mod common;

use common::{Server, id, ids, task};
use serde_json::{Value, json};
use std::thread;

const GOOD: &str = r#"{"machinePattern":"m","detail":{"command":"true"}}"#;

/// A task with one field changed; `detail.x` is a field of the detail.
fn with(field: &str, value: Value) -> String {
    let mut task: Value = serde_json::from_str(GOOD).unwrap();
    match field.split_once('.') {
        Some((outer, inner)) => task[outer][inner] = value,
        None => task[field] = value,
    }
    task.to_string()
}

fn detail(value: Value) -> String {
    with("detail", value)
}

fn long(bytes: usize) -> Value {
    "x".repeat(bytes).into()
}

/// Body, field named first in the message, and words of what would be right.
type Mistake = (String, &'static str, &'static str);

#[rustfmt::skip]
fn mistakes() -> Vec<Mistake> {
    let text = str::to_owned;
    vec![
        // Not a task at all.
        (text(""), "the task", "the body is empty"),
        (text("not json"), "the task", "expected"),
        (text("name=x&machinePattern=m"), "the task", "expected"),
        (text("null"), "the task", "an object"),
        (text("[]"), "the task", "an object"),
        (text("\"m\""), "the task", "an object"),
        (text(r#"["m",{"command":"true"}]"#), "the task", "an object"),
        (text("{"), "the task", "EOF"),
        (text(&GOOD[..GOOD.len() - 1]), "the task", "EOF"),
        (text(r#"{"machinePattern":"m","detail":{"comm"#), "detail", "EOF"),
        (format!("{GOOD}{GOOD}"), "the task", "follows"),
        (format!("{GOOD} x"), "the task", "follows"),
        ("[".repeat(100_000), "the task", "nested"),
        // The machinePattern.
        (text(r#"{"detail":{"command":"true"}}"#), "machinePattern", "is required"),
        (with("machinePattern", json!("")), "machinePattern", "empty"),
        (with("machinePattern", json!(5)), "machinePattern", "a string"),
        (with("machinePattern", json!(null)), "machinePattern", "is required"),
        (with("machinePattern", json!(["m"])), "machinePattern", "a string"),
        (with("machinePattern", json!("[a")), "machinePattern", "regular expression"),
        (with("machinePattern", json!("*")), "machinePattern", "regular expression"),
        (with("machinePattern", json!("(")), "machinePattern", "regular expression"),
        (with("machinePattern", long(100_000)), "machinePattern", "at most"),
        (with("machinePattern", json!("(a{1000}){1000}")), "machinePattern", ""),
        // The name.
        (with("name", json!("")), "name", "empty"),
        (with("name", json!(1)), "name", "a string"),
        (with("name", long(256)), "name", "255"),
        (with("name", json!("a\nb")), "name", "control"),
        (with("name", json!("a\u{0}b")), "name", "control"),
        // The id.
        (with("id", json!("")), "id", "letters"),
        (with("id", json!(7)), "id", "a string"),
        (with("id", long(65)), "id", "64"),
        (with("id", json!("a b")), "id", "letters"),
        (with("id", json!("../x")), "id", "letters"),
        (with("id", json!("ä")), "id", "letters"),
        // The mode.
        (with("mode", json!("some")), "mode", "any"),
        (with("mode", json!("")), "mode", "all"),
        (with("mode", json!("ANY")), "mode", "any"),
        (with("mode", json!(1)), "mode", ""),
        // Times to live.
        (with("ttl", json!(0)), "ttl", "above 0"),
        (with("ttl", json!(-1)), "ttl", "seconds"),
        (with("ttl", json!("soon")), "ttl", "seconds"),
        (with("ttl", json!("")), "ttl", "seconds"),
        (with("ttl", json!({})), "ttl", "seconds"),
        (with("ttl", json!(1e12)), "ttl", "at most"),
        (with("resultTtl", json!(0)), "resultTtl", "above 0"),
        (with("resultTtl", json!(-5)), "resultTtl", "seconds"),
        (with("failureTtl", json!("0s")), "failureTtl", "above 0"),
        (with("failureTtl", json!(true)), "failureTtl", "seconds"),
        // Late joiners.
        (with("lateJoin", json!("yes")), "lateJoin", "a boolean"),
        (with("lateJoin", json!(1)), "lateJoin", "a boolean"),
        (text(r#"{"machinePattern":"m","mode":"any","lateJoin":true,"detail":{"command":"x"}}"#), "lateJoin", "all"),
        // Retries.
        (with("retry", json!(3)), "retry", "an object"),
        (with("retry", json!([3])), "retry", "an object"),
        (with("retry", json!({})), "retry", "max"),
        (with("retry", json!({"max": -1})), "retry.max", ""),
        (with("retry", json!({"max": "3"})), "retry.max", ""),
        (with("retry", json!({"max": 1.5})), "retry.max", ""),
        (with("retry", json!({"max": 1_000_000})), "retry.max", "at most"),
        (with("retry", json!({"max": 1, "interval": 5})), "retry.interval", "a list"),
        (with("retry", json!({"max": 1, "interval": [-1]})), "retry.interval[0]", "seconds"),
        (with("retry", json!({"max": 1, "interval": [1, "x"]})), "retry.interval[1]", "seconds"),
        (with("retry", json!({"max": 1, "interval": vec![1; 101]})), "retry.interval", "at most"),
        (with("retry", json!({"max": 1, "on": []})), "retry.on", "failed"),
        (with("retry", json!({"max": 1, "on": ["never"]})), "retry.on[0]", "timedOut"),
        (with("retry", json!({"max": 1, "on": "lost"})), "retry.on", "a list"),
        (with("retry", json!({"max": 1, "often": 2})), "retry.often", "unknown field"),
        // Unknown and duplicate names.
        (with("comand", json!("true")), "comand", "unknown field"),
        (with("timeout", json!(5)), "timeout", "unknown field"),
        (with("Name", json!("x")), "Name", "unknown field"),
        (text(r#"{"machinePattern":"m","machinePattern":"n","detail":{"command":"true"}}"#), "the task", "duplicate field `machinePattern`"),
        (text(r#"{"machinePattern":"m","detail":{"command":"a"},"detail":{"command":"b"}}"#), "the task", "duplicate field `detail`"),
        (text(r#"{"machinePattern":"m","detail":{"command":"a","command":"b"}}"#), "detail", "duplicate field `command`"),
        // The detail.
        (text(r#"{"machinePattern":"m"}"#), "the task", "detail"),
        (detail(json!(null)), "detail", "an object"),
        (detail(json!("true")), "detail", "an object"),
        (detail(json!(["true"])), "detail", "an object"),
        (detail(json!({})), "detail", "command"),
        (detail(json!({"command": "a", "argv": ["a"]})), "detail", "both"),
        (with("detail.comand", json!("x")), "detail.comand", "unknown field"),
        (with("detail.command", json!("")), "detail.command", "empty"),
        (with("detail.command", json!(" \n")), "detail.command", "empty"),
        (with("detail.command", json!(1)), "detail.command", "a string"),
        (with("detail.command", json!(["ls"])), "detail.command", "a string"),
        (with("detail.command", json!("a\u{0}b")), "detail.command", "NUL"),
        (with("detail.command", long(131_072)), "detail.command", "131071"),
        (detail(json!({"argv": []})), "detail.argv", "program"),
        (detail(json!({"argv": [""]})), "detail.argv", "program"),
        (detail(json!({"argv": "ls"})), "detail.argv", "a list"),
        (detail(json!({"argv": ["ls", 1]})), "detail.argv[1]", "a string"),
        (detail(json!({"argv": ["ls", "a\u{0}"]})), "detail.argv[1]", "NUL"),
        (detail(json!({"argv": ["ls", long(131_072)]})), "detail.argv[1]", "131071"),
        (detail(json!({"argv": vec!["x"; 4_097]})), "detail.argv", "4096"),
        (with("detail.workspace", json!("")), "detail.workspace", "empty"),
        (with("detail.workspace", json!(1)), "detail.workspace", "a string"),
        (with("detail.workspace", json!("/a\u{0}")), "detail.workspace", "control"),
        (with("detail.workspace", long(4_096)), "detail.workspace", "4095"),
        (with("detail.timeout", json!(0)), "detail.timeout", "above 0"),
        (with("detail.timeout", json!("0s")), "detail.timeout", "above 0"),
        (with("detail.timeout", json!(-2)), "detail.timeout", "-1"),
        (with("detail.timeout", json!("later")), "detail.timeout", "seconds"),
        (with("detail.timeout", json!([])), "detail.timeout", "seconds"),
        (with("detail.timeout", json!(1e300)), "detail.timeout", "at most"),
        (with("detail.killGrace", json!(-1)), "detail.killGrace", "seconds"),
        (with("detail.killGrace", json!("2h")), "detail.killGrace", "at most"),
        (with("detail.env", json!([])), "detail.env", "an object"),
        (with("detail.env", json!("A=b")), "detail.env", "an object"),
        (with("detail.env", json!({"A": 1})), "detail.env.A", "a string"),
        (with("detail.env", json!({"": "b"})), "detail.env", "empty"),
        (with("detail.env", json!({"A=B": "c"})), "detail.env", "="),
        (with("detail.env", json!({"A": "b\u{0}"})), "detail.env.A", "NUL"),
        (with("detail.env", json!({"A": long(131_072)})), "detail.env.A", "131071"),
        (with("detail.stdin", json!(1)), "detail.stdin", "a string"),
        (with("detail.stdin", json!({})), "detail.stdin", "a string"),
    ]
}

#[test]
fn every_mistake_names_its_field_and_what_would_be_right_and_registers_nothing() {
    let server = Server::start();
    let _agent = server.agent("m");
    let mut wrong = Vec::new();
    for (body, field, words) in mistakes() {
        let reply = server.request("POST", "/api/v1/task", body.as_bytes());
        let msg = reply.msg();
        let good = reply.status == 400
            && reply.json()["signal"] == -1
            && reply.json()["data"].is_null()
            && msg.starts_with(&format!("{field}: "))
            && msg.contains(words)
            && msg.len() < 1_000;
        if !good {
            let body: String = body.chars().take(120).collect();
            wrong.push(format!(
                "{field} / {words}: {} {msg}\n    {body}",
                reply.status
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(server.get("/api/v1/task").data(), json!([]));
    assert_eq!(server.machines()[0]["queued"], 0);
    assert_eq!(server.machines()[0]["running"], 0);
    assert_eq!(server.metric("sidebike_tasks_submitted_total"), 0);
}

#[test]
fn bytes_that_are_no_utf_8_are_refused() {
    let server = Server::start();
    let body = b"{\"machinePattern\":\"m\",\"detail\":{\"command\":\"\xff\"}}";
    let reply = server.request("POST", "/api/v1/task", body);
    assert_eq!(reply.status, 400);
    assert!(
        reply.msg().starts_with("detail.command: "),
        "{}",
        reply.text()
    );
}

#[test]
fn a_bad_wait_is_refused_before_anything_is_registered() {
    let server = Server::start();
    for wait in ["-1", "soon", "", "2h", "1e300"] {
        let reply = server.post(&format!("/api/v1/task?wait={wait}"), &task("true"));
        assert_eq!(reply.status, 400, "{wait}: {}", reply.text());
        assert!(reply.msg().starts_with("wait: "), "{}", reply.text());
    }
    assert_eq!(server.get("/api/v1/task").data(), json!([]));
}

#[test]
fn the_least_task_gets_the_defaults() {
    let server = Server::start();
    let all = server.submit(task("true"));
    let detail = &all["detail"];
    assert_eq!(
        (&all["name"], &all["mode"]),
        (&json!("task"), &json!("all"))
    );
    assert_eq!(
        (&all["ttl"], &detail["timeout"]),
        (&json!(600), &json!(180))
    );
    assert_eq!(
        (&all["state"], &all["status"]),
        (&json!("waiting"), &json!(0))
    );
    assert_eq!((&all["matched"], &all["type"]), (&json!(0), &json!(0)));
    let mut any = task("true");
    any["mode"] = "any".into();
    assert_eq!(server.submit(any)["ttl"], 86_400);
}

#[test]
fn everything_that_can_be_said_is_answered() {
    let server = Server::start();
    let posted = json!({
        "name": "name with spaces, ünïcode", "id": "my-id_1", "machinePattern": "^m-\\d+$", "mode": "all",
        "ttl": "1h30m", "lateJoin": true, "resultTtl": 60, "failureTtl": "2m",
        "retry": {"max": 3, "interval": [1, 0.5], "on": ["failed", "lost"]},
        "detail": {"argv": ["echo"], "workspace": "/tmp", "timeout": -1, "killGrace": "1s",
            "env": {"A": "b"}, "stdin": "text"},
    });
    let task = server.submit(posted.clone());
    for field in [
        "name",
        "id",
        "machinePattern",
        "mode",
        "lateJoin",
        "resultTtl",
        "retry",
    ] {
        assert_eq!(task[field], posted[field], "{field}");
    }
    for field in ["argv", "workspace", "timeout", "env", "stdin"] {
        assert_eq!(task["detail"][field], posted["detail"][field], "{field}");
    }
    let spans = (
        &task["ttl"],
        &task["failureTtl"],
        &task["detail"]["killGrace"],
    );
    assert_eq!(spans, (&json!(5_400), &json!(120), &json!(1)));
}

#[test]
fn an_answered_task_can_be_posted_again() {
    let server = Server::start();
    let _agent = server.agent("m");
    let mut first = task("echo again");
    first["retry"] = json!({"max": 1});
    let mut answered = server.run(first);
    answered.as_object_mut().unwrap().remove("id");
    answered["rerunOf"] = "an-earlier-one".into();
    let second = server.run(answered.clone());
    assert_ne!(second["id"], answered["id"]);
    assert_eq!(second["detail"]["result"], json!(["again"]));
    assert_eq!(second["retry"], answered["retry"]);
}

#[test]
fn an_unknown_field_lists_what_can_be_posted() {
    let server = Server::start();
    for (body, known, read_only) in [
        (
            with("comand", json!("x")),
            "`ttl`",
            ["status", "createdAt", "counts"],
        ),
        (
            with("detail.comand", json!("x")),
            "`argv`",
            ["result", "output", "_result"],
        ),
    ] {
        let msg = server
            .request("POST", "/api/v1/task", body.as_bytes())
            .msg();
        assert!(msg.contains(known), "{msg}");
        for field in read_only {
            assert!(!msg.contains(field), "{msg}");
        }
    }
}

#[test]
fn made_ids_are_sortable_by_time() {
    let server = Server::start();
    let posted: Vec<Value> = (0..20).map(|_| server.submit(task("true"))).collect();
    let ids: Vec<&str> = posted.iter().map(id).collect();
    let times: Vec<&str> = ids.iter().map(|id| id.split('-').next().unwrap()).collect();
    assert!(times.is_sorted(), "{ids:?}");
}

#[test]
fn a_taken_id_answers_409_with_the_task() {
    let server = Server::start();
    let mut posted = task("true");
    posted["id"] = "mine".into();
    posted["name"] = "first".into();
    server.submit(posted.clone());
    posted["name"] = "second".into();
    let reply = server.post("/api/v1/task", &posted);
    let answer = reply.json();
    assert_eq!((reply.status, &answer["signal"]), (409, &json!(-1)));
    assert!(reply.msg().starts_with("id: "), "{}", reply.msg());
    assert_eq!(answer["data"]["name"], "first");
    assert_eq!(ids(&server.get("/api/v1/task").data()), ["mine"]);
}

#[test]
fn when_clients_race_for_an_id_exactly_one_wins() {
    let server = Server::start();
    for round in 0..30 {
        let mut posted = task("true");
        posted["id"] = format!("race-{round}").into();
        let post = || server.post("/api/v1/task", &posted).status;
        let mut statuses: Vec<u16> = thread::scope(|scope| {
            let clients: Vec<_> = (0..4).map(|_| scope.spawn(post)).collect();
            clients.into_iter().map(|c| c.join().unwrap()).collect()
        });
        statuses.sort();
        assert_eq!(statuses, [200, 409, 409, 409]);
    }
    assert_eq!(server.metric("sidebike_tasks_submitted_total"), 30);
}
