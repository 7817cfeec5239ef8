//! What is kept is counted, and what makes room for something gives it.

mod common;

use common::{Server, id, task};
use serde_json::{Value, json};

/// A task for nobody whose standard input has so many bytes.
fn large(bytes: usize) -> Value {
    json!({"machinePattern": "^nobody$", "detail": {"command": "true", "stdin": "x".repeat(bytes)}})
}

#[test]
fn details_are_counted_and_refused_beyond_their_limit() {
    let server = Server::with(&["--max-details", "1"]);
    let waiting: Vec<Value> = (0..3).map(|_| server.submit(large(300_000))).collect();
    let refused = server.post("/api/v1/task", &large(300_000));
    assert_eq!(refused.status, 503);
    assert!(refused.msg().contains("--max-details"), "{}", refused.msg());
    assert_eq!(server.metric("sidebike_tasks_submitted_total"), 3);
    // Small ones do not have to go for a large one.
    let small = server.submit(large(10));
    server
        .post(&format!("/api/v1/task/{}/cancel", id(&small)), &Value::Null)
        .data();
    for task in &waiting {
        server
            .post(&format!("/api/v1/task/{}/cancel", id(task)), &Value::Null)
            .data();
    }
    let newest = server.submit(large(300_000));
    assert!(server.metric("sidebike_detail_bytes") <= 1 << 20);
    let status = |task: &Value| server.get(&format!("/api/v1/task/{}", id(task))).status;
    assert_eq!(status(&waiting[0]), 404, "the oldest large one made room");
    for kept in [&small, &waiting[1], &waiting[2], &newest] {
        assert_eq!(status(kept), 200);
    }
}

#[test]
fn a_list_shows_the_beginning_of_a_detail_which_cannot_be_posted_again() {
    let server = Server::start();
    let mut posted = large(100_000);
    posted["detail"]["env"] = json!({"A": "a".repeat(9_000), "B": "b"});
    let submitted = server.submit(posted);
    let whole = server.task(id(&submitted));
    assert_eq!(
        whole["detail"]["stdin"].as_str().map(str::len),
        Some(100_000)
    );
    let list = server.get("/api/v1/task");
    assert!(list.body.len() < 8 << 10, "{} bytes", list.body.len());
    let mut listed = list.data()[0].take();
    assert_eq!(listed["detail"]["command"], "true");
    let left_out = listed["detail"]["truncatedBytes"].as_u64().unwrap();
    assert!((100_000..109_100).contains(&left_out), "{left_out}");
    listed.as_object_mut().unwrap().remove("id");
    let again = server.post("/api/v1/task", &listed);
    assert_eq!(again.status, 400);
    assert!(again.msg().contains("truncatedBytes"), "{}", again.msg());
    // What is not cut can be posted again.
    server.submit(large(10));
    let mut listed = server.get("/api/v1/task?limit=1").data()[0].take();
    listed.as_object_mut().unwrap().remove("id");
    server.submit(listed);
}

#[test]
fn a_list_shows_the_beginning_of_scripts_and_of_input_in_base64_too() {
    let server = Server::start();
    let detail = json!({
        "script": "# a comment\n".repeat(10_000),
        "scriptArgs": vec!["x".repeat(100); 1_000],
        "stdinBase64": "AAAA".repeat(30_000),
    });
    let task = server.submit(json!({"machinePattern": "^nobody$", "detail": detail}));
    let whole = server.task(id(&task));
    assert_eq!(whole["detail"]["script"], detail["script"]);
    let list = server.get("/api/v1/task");
    assert!(list.body.len() < 8 << 10, "{} bytes", list.body.len());
    let listed = list.data()[0].take();
    let shown = listed["detail"]["script"].as_str().unwrap();
    assert!(shown.starts_with("# a comment\n# a"), "{shown}");
    let left_out = listed["detail"]["truncatedBytes"].as_u64().unwrap();
    assert_eq!(left_out, 120_000 + 100_000 + 120_000 - shown.len() as u64);
}

#[test]
fn tasks_without_output_do_not_go_for_the_room_of_output() {
    let server = Server::with(&["--max-output", "1"]);
    let _agent = server.agent("m1");
    let quiet = server.run(task("true"));
    let loud = |_| server.run(task("head -c 400000 /dev/zero | tr '\\0' x"));
    let loud: Vec<Value> = (0..4).map(loud).collect();
    let status = |task: &Value| server.get(&format!("/api/v1/task/{}", id(task))).status;
    assert_eq!(status(&quiet), 200);
    assert_eq!(
        loud.iter().map(status).collect::<Vec<_>>(),
        [404, 404, 200, 200]
    );
}

#[test]
fn a_task_that_machines_join_ends_that_at_its_limit() {
    let server = Server::with(&["--max-executions", "10"]);
    let old = server.submit(json!({"machinePattern": "^nobody$", "detail": {"command": "true"}}));
    server
        .post(&format!("/api/v1/task/{}/cancel", id(&old)), &Value::Null)
        .data();
    let joined = server.submit(json!({"machinePattern": "^comes-", "lateJoin": true,
        "detail": {"command": "true"}}));
    for n in 0..30 {
        let poll = json!({"instance": format!("{n:08x}"), "seq": 1, "label": format!("comes-{n}"),
            "host": "h", "version": "1", "jobs": 1, "wait": 0, "holds": []});
        server.post("/api/v1/agent/poll", &poll).data();
        let goodbye = json!({"instance": format!("{n:08x}"), "holds": []});
        server.post("/api/v1/agent/goodbye", &goodbye).data();
    }
    let ended = server.task(id(&joined));
    assert_eq!(ended["result"].as_array().map(Vec::len), Some(5));
    assert!(ended["finishedAt"].is_string(), "{ended}");
    let msg = ended["msg"].as_str().unwrap();
    assert!(msg.starts_with("lateJoin ended: limit"), "{msg}");
    assert_eq!(server.task(id(&old))["state"], "canceled", "it is kept");
}
