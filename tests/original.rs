//! The original's agents must be able to work with our server as they are: what they send, byte
//! for byte as recorded, and what they must get.

mod common;

use common::original::Original;
use common::{Server, id, task};
use serde_json::{Value, json};

const PONG: &str = r#"{"signal":0,"msg":"pong: X","data":null}"#;
const WORK: &str = r#"{"signal":1,"msg":"","data":null}"#;
const OK: &str = r#"{"signal":0,"msg":"","data":null}"#;
const NO_TASK: &str = r#"{"signal":-1,"msg":"no task in machine queue","data":null}"#;
const WENT_WELL: &str = r#""status":0,"msg":"","output":["line","line"]"#;

fn posted(name: &str) -> Value {
    json!({"name": name, "machinePattern": "^X$",
        "detail": {"command": "echo line; echo line", "workspace": "/tmp", "timeout": 15}})
}

#[test]
fn the_recording_from_ping_to_done() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    assert_eq!(agent.ping("X").text(), PONG);
    assert_eq!(agent.assigned("X").text(), NO_TASK);
    let machine = server.machines().remove(0);
    assert_eq!(
        (&machine["label"], &machine["state"]),
        (&json!("X"), &json!("online"))
    );

    let submitted = server.submit(posted("T1"));
    assert_eq!(agent.ping("X").text(), WORK);
    let reply = agent.assigned("X");
    let task = reply.json();
    assert_eq!((&task["signal"], &task["msg"]), (&json!(0), &json!("")));
    let task = &task["data"];
    assert_eq!(task["machinePattern"], "^X$");
    assert_eq!(task["status"], 1);
    assert_eq!(task["assignees"], json!(["X"]));
    assert_eq!(task["result"], Value::Null);
    let detail = json!({"command": "echo line; echo line", "workspace": "/tmp", "timeout": 15});
    assert_eq!(task["detail"], detail);
    assert_eq!(agent.assigned("X").text(), NO_TASK);
    assert_eq!(agent.ping("X").text(), PONG);

    let name = task["name"].as_str().unwrap();
    assert_eq!(agent.done(name, "X", WENT_WELL).text(), OK);
    let task = server.task(id(&submitted));
    assert_eq!(
        (&task["status"], &task["state"]),
        (&json!(2), &json!("succeeded"))
    );
    assert_eq!(task["detail"]["result"], json!(["line", "line"]));
    assert_eq!(task["result"][0]["machineLabel"], "X");
}

#[test]
fn an_unknown_machine_has_no_mapping() {
    let reply = Original::new(&Server::start()).assigned("nobody");
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.text(),
        r#"{"signal":-1,"msg":"no machine mapping","data":null}"#
    );
}

#[test]
fn a_ping_without_a_label_registers_nobody() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    for target in ["/api/v1/lifecycle/ping", "/api/v1/lifecycle/ping?path="] {
        let reply = agent.get(target);
        assert_eq!(
            (reply.status, &reply.json()["signal"]),
            (400, &json!(-1)),
            "{target}"
        );
        assert!(reply.msg().starts_with("path: "), "{}", reply.text());
    }
    assert_eq!(server.machines(), Vec::<Value>::new());
}

#[test]
fn a_failure_is_a_failure_and_null_output_is_none() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    let submitted = server.submit(posted("T"));
    let name = agent.fetch("X");
    let rest = r#""status":2,"msg":"chdir /nowhere: no such file or directory","output":null"#;
    assert_eq!(agent.done(&name, "X", rest).text(), OK);
    let task = server.task(id(&submitted));
    assert_eq!(
        (&task["status"], &task["state"]),
        (&json!(3), &json!("failed"))
    );
    assert_eq!(task["detail"]["result"], json!([]));
    assert_eq!(
        task["result"][0]["msg"],
        "chdir /nowhere: no such file or directory"
    );
}

#[test]
fn two_tasks_of_one_name_are_told_apart() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    let (first, second) = (server.submit(posted("T")), server.submit(posted("T")));
    let name_1 = agent.fetch("X");
    agent.done(&name_1, "X", r#""status":0,"msg":"","output":["one"]"#);
    let name_2 = agent.fetch("X");
    assert_ne!(name_1, name_2);
    agent.done(&name_2, "X", r#""status":2,"msg":"bad","output":["two"]"#);
    assert_eq!(server.task(id(&first))["detail"]["result"], json!(["one"]));
    assert_eq!(server.task(id(&second))["detail"]["result"], json!(["two"]));
}

#[test]
fn a_task_it_cannot_express_fails_with_the_reason_and_the_next_one_goes_on() {
    for (field, value) in [
        ("env", json!({"A": "b"})),
        ("stdin", json!("text")),
        ("argv", json!(["true"])),
    ] {
        let server = Server::start();
        let mut agent = Original::new(&server);
        agent.ping("X");
        let mut bad = posted("BAD");
        if field == "argv" {
            bad["detail"] = json!({});
        }
        bad["detail"][field] = value;
        let (bad, good) = (server.submit(bad), server.submit(posted("GOOD")));
        let name = agent.fetch("X");
        let bad = server.task(id(&bad));
        assert_eq!(
            (&bad["state"], &bad["status"]),
            (&json!("failed"), &json!(3)),
            "{field}"
        );
        let msg = bad["result"][0]["msg"].as_str().unwrap();
        assert!(msg.starts_with(&format!("detail.{field}: ")), "{msg}");
        agent.done(&name, "X", WENT_WELL);
        assert_eq!(server.task(id(&good))["state"], "succeeded", "{field}");
    }
}

#[test]
fn the_timeout_it_gets_is_always_whole_seconds_above_0() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    for (timeout, seconds) in [
        (json!(0.2), 1),
        (json!("1500ms"), 2),
        (json!(-1), 31_536_000),
    ] {
        let mut posted = posted("T");
        posted["detail"]["timeout"] = timeout.clone();
        server.submit(posted);
        let task = agent.assigned("X").data();
        assert_eq!(task["detail"]["timeout"], seconds, "{timeout}");
        agent.done(task["name"].as_str().unwrap(), "X", WENT_WELL);
    }
}

#[test]
fn nobody_reports_for_what_is_not_theirs() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    agent.ping("Y");
    let submitted = server.submit(posted("T"));
    let name = agent.fetch("X");
    assert_eq!(agent.done(&name, "Y", WENT_WELL).json()["signal"], -1);
    assert_eq!(agent.done("T", "X", WENT_WELL).json()["signal"], -1);
    assert_eq!(agent.done("T/1", "X", WENT_WELL).json()["signal"], -1);
    assert_eq!(server.task(id(&submitted))["counts"]["succeeded"], 0);
    assert_eq!(agent.done(&name, "X", WENT_WELL).text(), OK);
    // The same report again changes nothing.
    agent.done(&name, "X", r#""status":2,"msg":"other","output":[]"#);
    assert_eq!(server.task(id(&submitted))["state"], "succeeded");
}

#[test]
fn a_canceled_task_is_not_handed_to_it() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    let submitted = server.submit(posted("T"));
    let cancel = format!("/api/v1/task/{}/cancel", id(&submitted));
    assert_eq!(
        server.post(&cancel, &Value::Null).data()["state"],
        "canceled"
    );
    assert_eq!(agent.ping("X").text(), PONG);
    assert_eq!(agent.assigned("X").text(), NO_TASK);
}

#[test]
fn both_kinds_of_agents_serve_one_fleet() {
    let server = Server::start();
    let _ours = server.agent("m-ours");
    let mut agent = Original::new(&server);
    agent.ping("m-theirs");
    let submitted = server.submit(task("echo line"));
    assert_eq!(submitted["assignees"], json!(["m-ours", "m-theirs"]));
    let name = agent.fetch("m-theirs");
    agent.done(
        &name,
        "m-theirs",
        r#""status":0,"msg":"","output":["line"]"#,
    );
    let done = server.finished(id(&submitted));
    assert_eq!(done["state"], "succeeded");
    assert_eq!(done["detail"]["result"], json!(["line", "line"]));
}

#[test]
fn its_member_names_are_read_without_regard_to_case() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    let submitted = server.submit(posted("T"));
    let task = agent
        .post("/api/v1/task/status/assigned/", r#"{"machineLabel":"X"}"#)
        .data();
    let name = &task["name"];
    let body = format!(
        r#"{{"taskName":{name},"result":{{"MachineLabel":"X","Status":0,"Msg":"","Output":["a"]}}}}"#
    );
    assert_eq!(agent.post("/api/v1/task/status/done/", &body).text(), OK);
    assert_eq!(
        server.task(id(&submitted))["detail"]["result"],
        json!(["a"])
    );
}
