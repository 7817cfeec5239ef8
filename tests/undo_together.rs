//! Undos with everything else a task can have, server and agents both real: retries, rollouts, locks, `keepAlive`, and a
//! server that goes away.

mod common;

use common::{Agent, Folder, Server, free_address, id, wait_for};
use serde_json::{Value, json};
use std::path::Path;

/// A detail whose command and undo write a line each into `log` in the folder: `run LABEL`, then what `then` does, and
/// `undo LABEL REASON`.
fn logged(folder: &Folder, then: &str, undo: &str) -> Value {
    json!({
        "workspace": folder.path(),
        "command": format!("echo run $SIDEBIKE_MACHINE_LABEL >> log; {then}"),
        "undo": {
            "command": format!("{undo}; echo undo $SIDEBIKE_MACHINE_LABEL $SIDEBIKE_UNDO_REASON >> log")
        },
    })
}

/// Waits until a file is in the folder.
fn appears(folder: &Folder, name: &str) {
    let path = folder.file(name);
    wait_for(name, || Path::new(&path).exists());
}

fn logs(folder: &Folder, line: &str) {
    wait_for(line, || folder.lines("log").iter().any(|l| l == line));
}

#[test]
fn a_retry_begins_after_the_undo_of_the_attempt_before() {
    let folder = Folder::new();
    let server = Server::start();
    let _agent = server.agent("m-1");
    let detail = logged(&folder, "exit 7", "sleep 0.3");
    let task = server.submit(json!({
        "machinePattern": "^m-1$", "detail": detail, "retry": {"max": 2, "interval": [0]},
    }));
    let task = server.finished(id(&task));
    let expected = ["run m-1", "undo m-1 ended"].repeat(3);
    assert_eq!(folder.lines("log"), expected);
    assert_eq!(
        (&task["undos"]["done"], &task["clean"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(task["result"][0]["attempt"], 3);
}

#[test]
fn an_undo_that_fails_is_not_followed_by_a_retry() {
    let folder = Folder::new();
    let server = Server::start();
    let _agent = server.agent("m-1");
    let mut detail = logged(&folder, "exit 7", "false");
    detail["undo"]["command"] = json!("exit 1");
    detail["undo"]["patience"] = json!(0);
    let task = server.submit(json!({
        "machinePattern": "^m-1$", "detail": detail, "retry": {"max": 2, "interval": [0]},
    }));
    let task = server.finished(id(&task));
    assert_eq!(folder.lines("log"), ["run m-1"]);
    assert_eq!(
        (&task["undos"]["failed"], &task["clean"]),
        (&json!(1), &json!(false))
    );
}

#[test]
fn the_next_step_of_a_rollout_waits_for_undos() {
    let folder = Folder::new();
    let server = Server::start();
    let _agents = server.agents(3, "m");
    let detail = logged(&folder, "true", "sleep 0.3");
    let task = server.submit(json!({
        "machinePattern": "^m", "detail": detail, "rollout": {"concurrency": 1},
    }));
    let task = server.finished(id(&task));
    assert_eq!(task["state"], "succeeded", "{task}");
    let log = folder.lines("log");
    assert_eq!(log.len(), 6);
    for pair in log.chunks(2) {
        let label = pair[0].strip_prefix("run ").unwrap();
        assert_eq!(pair[1], format!("undo {label} ended"));
    }
}

#[test]
fn what_a_stop_ends_is_undone_and_says_so() {
    let folder = Folder::new();
    let server = Server::start();
    let _agents = server.agents(3, "m");
    let then = "if mkdir first 2>/dev/null; then while [ ! -e fail ]; do sleep 0.02; done; exit 1; fi; touch second; sleep 60";
    let task = server.submit(json!({
        "machinePattern": "^m", "detail": logged(&folder, then, "true"),
        "rollout": {"concurrency": 2, "stopRunning": true},
    }));
    appears(&folder, "first");
    appears(&folder, "second");
    folder.write("fail");
    let task = server.finished(id(&task));
    assert_eq!(
        (
            &task["counts"]["failed"],
            &task["counts"]["canceled"],
            &task["counts"]["skipped"]
        ),
        (&json!(1), &json!(1), &json!(1)),
        "{task}"
    );
    let log = folder.lines("log");
    let undone = |reason: &str| log.iter().filter(|line| line.ends_with(reason)).count();
    assert_eq!((undone(" ended"), undone(" stopped")), (1, 1), "{log:?}");
    let result = task["result"].as_array().unwrap();
    let stopped = result.iter().find(|e| e["state"] == "canceled").unwrap();
    assert_eq!(stopped["undo"]["reason"], "stopped");
    assert_eq!(stopped["msg"], "canceled: its task was stopped");
}

#[test]
fn a_lock_keeps_a_second_experiment_away_until_the_first_is_undone() {
    let folder = Folder::new();
    let server = Server::start();
    let _agent = server.agent("m-1");
    let locked = |id: &str, then: &str, undo: &str| {
        let mut detail = logged(&folder, then, undo);
        detail["undo"]["lock"] = json!("eth0");
        server.submit(json!({"id": id, "machinePattern": "^m-1$", "detail": detail}))
    };
    let wait = "while [ ! -e undo ]; do sleep 0.02; done";
    locked("first", "true", &format!("touch undoing; {wait}"));
    appears(&folder, "undoing");
    locked("second", "true", "true");
    let second = server.finished("second");
    let refused = &second["result"][0];
    assert_eq!(
        (&refused["state"], &refused["undo"]),
        (&json!("failed"), &Value::Null)
    );
    let msg = refused["msg"].as_str().unwrap();
    assert!(
        msg.contains("\"eth0\"") && msg.contains("task first"),
        "{msg}"
    );
    folder.write("undo");
    server.finished("first");
    locked("third", "true", "true");
    assert_eq!(server.finished("third")["state"], "succeeded");
    assert_eq!(folder.lines("log").len(), 4);
}

#[test]
fn a_machine_with_an_undo_is_not_one_of_those_that_stay() {
    let folder = Folder::new();
    let server = Server::start();
    let _agents = server.agents(2, "m");
    let kept = |id: &str, pattern: &str| {
        let wait = "touch undoing; while [ ! -e undo ]; do sleep 0.02; done";
        json!({
            "id": id, "machinePattern": pattern, "detail": logged(&folder, "true", wait),
            "keepAlive": {"keep": 1, "pool": "^m"}, "maxTargets": 1,
        })
    };
    server.submit(kept("first", "^m"));
    appears(&folder, "undoing");
    let refused = server.post("/api/v1/task", &kept("second", "^m"));
    assert_eq!(refused.status, 409, "{}", refused.text());
    folder.write("undo");
    server.finished("first");
    server.submit(kept("third", "^m"));
    assert_eq!(server.finished("third")["state"], "succeeded");
}

/// Without a database nobody could cancel what a server that was started again does not know.
#[test]
fn a_server_that_lost_its_memory_has_experiments_ended() {
    let folder = Folder::new();
    let address = free_address();
    let mut server = Server::listening_on(&address.to_string(), &[]);
    let agent = Agent::start(address, "m-1", &[]);
    server.expect(&[&agent]);
    let task = json!({"machinePattern": "^m", "detail": logged(&folder, "sleep 60", "true")});
    server.submit(task);
    logs(&folder, "run m-1");
    server.process.kill_9();
    let _server = Server::listening_on(&address.to_string(), &[]);
    logs(&folder, "undo m-1 canceled");
}

/// The server is killed while an undo is armed, and while it runs. (While it is owed: `undo_server.rs`.)
#[test]
fn with_a_database_a_killed_server_loses_no_undo_and_doubles_none() {
    let folder = Folder::new();
    let (db, address) = (folder.file("db"), free_address());
    let start = || Server::listening_on(&address.to_string(), &["--db", &db]);
    let mut server = start();
    let agent = Agent::start(address, "m-1", &[]);
    server.expect(&[&agent]);
    let then = "touch running; while [ ! -e end ]; do sleep 0.02; done";
    let undo = "touch undoing; while [ ! -e undo ]; do sleep 0.02; done";
    let detail = logged(&folder, then, undo);
    server.submit(json!({"id": "x", "machinePattern": "^m", "detail": detail}));
    appears(&folder, "running");
    let state = |server: &Server, state: &str| {
        wait_for(state, || {
            server.task("x")["result"][0]["undo"]["state"] == state
        });
    };
    state(&server, "armed");
    server.process.kill_9();
    server = start();
    state(&server, "armed");
    folder.write("end");
    state(&server, "running");
    server.process.kill_9();
    server = start();
    state(&server, "running");
    folder.write("undo");
    let task = server.finished("x");
    assert_eq!(
        (&task["undos"]["done"], &task["clean"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(folder.lines("log"), ["run m-1", "undo m-1 ended"]);
}
