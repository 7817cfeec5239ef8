//! What did not hold for real agents of the original. The numbers are those of the list of faults that users found.

mod common;

use common::original::Original;
use common::{SIDEBIKE, Server, id, wait_for};
use serde_json::{Value, json};
use std::process::Command;

const PONG: &str = r#"{"signal":0,"msg":"pong: X","data":null}"#;
const WORK: &str = r#"{"signal":1,"msg":"","data":null}"#;
const OK: &str = r#"{"signal":0,"msg":"","data":null}"#;
const NO_TASK: &str = r#"{"signal":-1,"msg":"no task in machine queue","data":null}"#;
const WENT_WELL: &str = r#""status":0,"msg":"","output":["line"]"#;

/// A task for every machine whose label begins with `X`.
fn all() -> Value {
    json!({"machinePattern": "^X", "detail": {"command": "echo line", "timeout": 60}})
}

/// One for any of them.
fn any(detail: Value) -> Value {
    json!({"machinePattern": "^X", "mode": "any", "detail": detail})
}

fn state(server: &Server, task: &Value) -> String {
    let task = server.task(id(task));
    task["result"][0]["state"].as_str().unwrap().to_owned()
}

fn msg(server: &Server, task: &Value) -> String {
    let task = server.task(id(task));
    task["result"][0]["msg"].as_str().unwrap().to_owned()
}

#[test]
fn fault_21_what_it_cannot_express_is_for_another_machine() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    let details = [
        ("argv", json!({"argv": ["echo", "line"]})),
        ("env", json!({"command": "echo $A", "env": {"A": "line"}})),
        ("stdin", json!({"command": "cat", "stdin": "line\n"})),
    ];
    let beyond = details.map(|(field, detail)| (field, server.submit(any(detail))));
    assert_eq!(agent.ping("X").text(), PONG, "nothing is for it");
    assert_eq!(agent.assigned("X").text(), NO_TASK);
    for (field, task) in &beyond {
        let msg = msg(&server, task);
        let start = format!("detail.{field}: waits for a sidebike agent");
        assert!(msg.starts_with(&start), "{msg}");
        assert_eq!(state(&server, task), "queued");
    }
    let within = server.submit(any(json!({"command": "echo line", "env": {}, "stdin": ""})));
    assert_eq!(agent.ping("X").text(), WORK);
    let name = agent.fetch("X");
    agent.done(&name, "X", WENT_WELL);
    assert_eq!(server.task(id(&within))["state"], "succeeded");

    let _ours = server.agent("X-ours");
    for (field, task) in &beyond {
        let done = server.finished(id(task));
        assert_eq!(done["state"], "succeeded", "{field}");
        assert_eq!(done["detail"]["result"], json!(["line"]), "{field}");
        assert_eq!(done["result"][0]["msg"], "", "{field}");
    }
}

#[test]
fn fault_22_an_agent_that_was_started_again_is_handed_the_next_task() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    let first = server.submit(all());
    agent.fetch("X");
    let second = server.submit(all());
    assert_eq!(agent.ping("X").text(), PONG, "it runs the first one");
    drop(agent);

    let mut again = Original::new(&server);
    assert_eq!(again.ping("X").text(), WORK);
    let name = again.fetch("X");
    assert_eq!(again.done(&name, "X", WENT_WELL).text(), OK);
    assert_eq!(state(&server, &second), "succeeded");
    assert_eq!(state(&server, &first), "lost");
    assert_eq!(
        msg(&server, &first),
        "its agent was started again while it ran"
    );
    assert_eq!(server.machines()[0]["running"], 0);
}

#[test]
fn fault_22_a_broken_connection_loses_no_result() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    let task = server.submit(all());
    let name = agent.fetch("X");
    drop(agent);
    let mut same = Original::new(&server);
    assert_eq!(same.ping("X").text(), PONG);
    assert_eq!(same.done(&name, "X", WENT_WELL).text(), OK);
    assert_eq!(state(&server, &task), "succeeded");
}

#[test]
fn fault_23_a_large_result_is_taken_and_cut() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    for megabytes in [2, 40] {
        let task = server.submit(all());
        let name = agent.fetch("X");
        let line = "0123456789 \\\"ü".repeat(5);
        let count = (megabytes << 20) / (line.len() + 3);
        let lines = vec![format!("\"{line}\""); count].join(",");
        let rest = format!(r#""status":0,"msg":"","output":[{lines}]"#);
        assert_eq!(agent.done(&name, "X", &rest).text(), OK);
        let task = server.task(id(&task));
        assert_eq!(task["state"], "succeeded");
        let result = &task["result"][0];
        let stdout = result["stdout"].as_str().unwrap();
        assert!(stdout.starts_with("0123456789 \"ü0123456789"), "{stdout}");
        assert!(stdout.contains(" bytes left out …"));
        let left_out = result["truncatedBytes"].as_u64().unwrap();
        assert!(left_out > (megabytes as u64) << 18, "{left_out}");
    }
    let most = server.process.figure("VmHWM");
    assert!(most < 64 << 10, "{most} KiB");
}

#[test]
fn fault_24_a_canceled_task_keeps_its_place_until_it_is_reported() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    let first = server.submit(all());
    let name = agent.fetch("X");
    let cancel = format!("/api/v1/task/{}/cancel", id(&first));
    assert_eq!(
        server.post(&cancel, &Value::Null).data()["state"],
        "canceled"
    );
    let second = server.submit(all());
    assert_eq!(agent.ping("X").text(), PONG);
    assert_eq!(agent.assigned("X").text(), NO_TASK);
    assert_eq!(server.machines()[0]["running"], 1);
    let cancel = format!("/api/v1/task/{}/cancel", id(&second));
    assert_eq!(
        server.post(&cancel, &Value::Null).data()["state"],
        "canceled"
    );
    assert_eq!(msg(&server, &second), "canceled before it started");
    let third = server.submit(all());
    assert_eq!(agent.done(&name, "X", WENT_WELL).json()["signal"], -1);
    assert_eq!(state(&server, &first), "canceled");
    assert_eq!(agent.ping("X").text(), WORK);
    let name = agent.fetch("X");
    assert_eq!(agent.done(&name, "X", WENT_WELL).text(), OK);
    assert_eq!(state(&server, &third), "succeeded");
}

#[test]
fn fault_25_reports_of_versions_before_0_2_7_are_taken() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    for (status, state, result, lines) in [
        (2, "succeeded", json!(["one", "two"]), json!(["one", "two"])),
        (3, "failed", Value::Null, json!([])),
    ] {
        let task = server.submit(all());
        let name = agent.fetch("X");
        let report = json!({"TaskName": name, "TaskStatus": status, "TaskResult": result});
        let reply = agent.post("/api/v1/task/status/done", &report.to_string());
        assert_eq!(reply.text(), OK);
        let task = server.task(id(&task));
        assert_eq!(task["state"], state);
        assert_eq!(task["detail"]["result"], lines);
    }
    let stranger = r#"{"TaskName":"a.0/1","TaskStatus":2,"TaskResult":[]}"#;
    assert_eq!(agent.post("/api/v1/task/status/done", stranger).status, 404);
}

/// The lines of a server's log that say that an agent of the original is refused.
fn refusals(server: &Server) -> Vec<String> {
    let mut log = server.process.log();
    log.retain(|line| line.contains("an agent of the original, "));
    log
}

#[test]
fn fault_26_who_is_refused_is_named_once_in_the_log() {
    let mut command = Command::new(SIDEBIKE);
    command
        .args([
            "server",
            "--listen",
            "127.0.0.1:0",
            "--allow-legacy",
            "^old",
        ])
        .env("SIDEBIKE_TOKEN", "people-token")
        .env("SIDEBIKE_AGENT_TOKEN", "agent-token");
    let server = Server::from_command(command);
    let mut agent = Original::new(&server);
    assert_eq!(agent.ping("old").status, 200);
    for _ in 0..3 {
        assert_eq!(agent.ping("X").status, 401);
        assert_eq!(agent.assigned("X").status, 401);
        assert_eq!(agent.ping("Y").status, 401);
    }
    let long = "old".repeat(1_000);
    assert_eq!(agent.ping(&long).status, 422);
    wait_for("the refusals are logged", || refusals(&server).len() == 3);
    let log = refusals(&server);
    for (line, part) in log.iter().zip(["\"X\"", "\"Y\"", "\"oldold"]) {
        assert!(line.contains(part), "{line}");
    }
    assert!(log[0].contains("is refused: tokens are in use") && log[0].contains("--allow-legacy"));
    assert!(log[2].contains("--max-label"), "{}", log[2]);
}

#[test]
fn fault_26_a_wrong_host_is_named_too() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.host = "registry.example".into();
    assert_eq!(agent.ping("X").status, 403);
    wait_for("the refusal is logged", || {
        refusals(&server)
            .iter()
            .any(|line| line.contains("\"X\", is refused: Host: "))
    });
}

#[test]
fn fault_27_the_machine_of_a_replaced_agent_is_gone_at_once() {
    let server = Server::start();
    Original::new(&server).ping("X");
    let _ours = server.agent("X");
    let machines = server.machines();
    assert_eq!(machines.len(), 1, "{machines:?}");
    let done = server.run(all());
    assert_eq!(
        (&done["state"], &done["matched"]),
        (&json!("succeeded"), &json!(1))
    );
    wait_for("the log says why", || {
        let log = server.process.log();
        log.iter()
            .any(|line| line.contains("a sidebike agent has taken its label"))
    });
}

#[test]
fn fault_28_each_ping_brings_one_task() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    agent.ping("X");
    let tasks = [(); 3].map(|()| server.submit(all()));
    for task in &tasks {
        assert_eq!(agent.ping("X").text(), WORK);
        let name = agent.fetch("X");
        agent.done(&name, "X", WENT_WELL);
        assert_eq!(state(&server, task), "succeeded");
    }
    assert_eq!(agent.ping("X").text(), PONG);
}
