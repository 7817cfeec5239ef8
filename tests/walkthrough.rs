//! What the program is for, as its users do it: a server, agents, a curl.

mod common;

use common::{Agent, Folder, Server, ids, task};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// `newtask.json` of the original.
const NEW_TASK: &str = r#"{
    "name": "MY_TASK_1",
    "machinePattern": ".*",
    "detail": {"command": "echo hello; echo sidebike", "workspace": "/tmp", "timeout": 15}
}"#;

/// `curl --data @newtask.json URL`.
fn curl_data(server: &Server, path: &str) -> Value {
    let head = "User-Agent: curl/7.88.1\r\nAccept: */*\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let bytes = common::http::request("POST", path, head, NEW_TASK.as_bytes());
    server.raw(&bytes).data()
}

fn assert_walked_through(post_to: &str, read_from: &str) {
    let server = Server::start();
    let agent = server.agent("MY_MACHINE_1");
    let posted = curl_data(&server, post_to);
    assert_eq!(posted["assignees"], json!(["MY_MACHINE_1"]));
    server.finished(common::id(&posted));

    let tasks = server.get(read_from).data();
    let task = &tasks[0];
    assert_eq!(ids(&tasks).len(), 1);
    assert_eq!(
        (&task["name"], &task["status"]),
        (&json!("MY_TASK_1"), &json!(2))
    );
    assert_eq!(task["state"], "succeeded");
    assert_eq!(task["detail"]["result"], json!(["hello", "sidebike"]));
    assert_eq!(task["detail"]["workspace"], "/tmp");
    assert_eq!(task["detail"]["timeout"], 15);
    let execution = &task["result"][0];
    assert_eq!(execution["machineLabel"], "MY_MACHINE_1");
    assert_eq!(execution["instance"], agent.instance());
    assert_eq!(execution["status"], 0);
    assert_eq!(execution["exitCode"], 0);
    assert_eq!(execution["output"], json!(["hello", "sidebike"]));
    assert_eq!(execution["stdout"], "hello\nsidebike\n");
}

#[test]
fn the_original_walk_through_with_slashes() {
    assert_walked_through("/api/v1/task/", "/api/v1/task/?taskPrefix=MY");
}

#[test]
fn the_original_walk_through_without_slashes() {
    assert_walked_through("/api/v1/task", "/api/v1/task?taskPrefix=MY");
}

#[test]
fn the_original_walk_through_by_its_other_path() {
    assert_walked_through("/api/v1/task/status/new", "/api/v1/task");
    assert_walked_through("/api/v1/task/status/new/", "/api/v1/task/");
}

#[test]
fn three_replicas_run_a_task_once_each() {
    let (server, folder) = (Server::start(), Folder::new());
    let agents = server.agents(3, "m");
    let mut posted = task("echo $SIDEBIKE_INSTANCE >> starts; echo $SIDEBIKE_MACHINE_LABEL");
    posted["detail"]["workspace"] = folder.path().into();
    let task = server.run(posted);
    assert_eq!(task["matched"], 3);
    assert_eq!(task["counts"]["succeeded"], 3);
    assert_eq!(task["assignees"], json!(["m", "m", "m"]));
    assert_eq!(task["detail"]["result"], json!(["m", "m", "m"]));
    let instances: BTreeSet<String> = agents.iter().map(Agent::instance).collect();
    let starts = folder.lines("starts");
    assert_eq!(starts.len(), 3);
    assert_eq!(starts.into_iter().collect::<BTreeSet<_>>(), instances);
}

#[test]
fn a_hundred_any_tasks_run_once_each_and_all_replicas_take_part() {
    let (server, folder) = (Server::start(), Folder::new());
    let agents = server.agents(3, "m");
    let command = "echo $SIDEBIKE_TASK_ID $SIDEBIKE_INSTANCE >> starts; sleep 0.02";
    let detail = json!({"command": command, "workspace": folder.path()});
    let posted = json!({"machinePattern": "m", "mode": "any", "detail": detail});
    let tasks: Vec<Value> = (0..100).map(|_| server.submit(posted.clone())).collect();
    for task in &tasks {
        let task = server.finished(common::id(task));
        assert_eq!(task["state"], "succeeded", "{task}");
        assert_eq!(task["result"].as_array().map(Vec::len), Some(1));
    }
    let starts = folder.lines("starts");
    assert_eq!(starts.len(), 100);
    let started: BTreeMap<&str, &str> = starts.iter().filter_map(|l| l.split_once(' ')).collect();
    assert_eq!(started.len(), 100, "an id twice");
    let took_part: BTreeSet<String> = started.values().map(|i| (*i).to_owned()).collect();
    assert_eq!(took_part, agents.iter().map(Agent::instance).collect());
}

#[test]
fn only_matching_machines_run_it() {
    let server = Server::start();
    let _agents = (
        server.agent("web-1"),
        server.agent("web-2"),
        server.agent("db-1"),
    );
    let posted = json!({"machinePattern": "^web-", "detail": {"argv": ["echo", "a b", "$HOME"]}});
    let task = server.run(posted);
    assert_eq!(task["assignees"], json!(["web-1", "web-2"]));
    assert_eq!(task["detail"]["result"], json!(["a b $HOME", "a b $HOME"]));
}

#[test]
fn some_succeed_is_partial_and_the_reason_is_there() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let task = server.run(task(
        "echo out; echo err >&2; test $SIDEBIKE_MACHINE_LABEL = m1 || exit 7",
    ));
    assert_eq!(task["state"], "partial");
    assert_eq!(task["status"], 3);
    let failed = &task["result"][1];
    assert_eq!(
        (&failed["state"], &failed["status"]),
        (&json!("failed"), &json!(2))
    );
    assert_eq!(failed["exitCode"], 7);
    assert_eq!(failed["stderr"], "err\n");
    assert!(failed["msg"].as_str().unwrap().contains('7'), "{failed}");
}

#[test]
fn a_task_sees_its_surroundings() {
    let server = Server::start();
    let _agent = server.agent("m");
    let command = "echo $SIDEBIKE_TASK_NAME $SIDEBIKE_TASK_ID $SIDEBIKE_ATTEMPT $COLOR; cat; pwd";
    let task = server.run(json!({
        "name": "N", "id": "I", "machinePattern": "m",
        "detail": {"command": command, "env": {"COLOR": "red"}, "stdin": "text\n", "workspace": "/"},
    }));
    assert_eq!(task["detail"]["result"], json!(["N I 1 red", "text", "/"]));
}

#[test]
fn a_submit_can_wait_for_the_end() {
    let server = Server::start();
    let _agent = server.agent("m");
    let done = server
        .post("/api/v1/task?wait=30s", &task("echo done"))
        .data();
    assert_eq!(done["state"], "succeeded");
    let still = server
        .post("/api/v1/task?wait=0.2", &task("sleep 60"))
        .data();
    assert_eq!(still["state"], "running");
    let again = server.get(&format!("/api/v1/task/{}?wait=100ms", common::id(&still)));
    assert_eq!(again.data()["state"], "running");
}
