//! What one agent's token can do to all the others is bounded.

mod common;

use common::http::request;
use common::{Server, id};
use serde_json::{Value, json};

/// A poll of a made-up machine that is answered at once.
fn poll(n: usize) -> Value {
    json!({"instance": format!("{n:08x}"), "seq": 1, "label": format!("machine-{n}"),
        "host": "h", "version": "1", "jobs": 1, "wait": 0, "holds": []})
}

fn goodbye(server: &Server, n: usize) {
    let goodbye = json!({"instance": format!("{n:08x}"), "holds": []});
    server.post("/api/v1/agent/goodbye", &goodbye).data();
}

#[test]
fn new_machines_from_one_address_are_limited_and_known_ones_go_on() {
    let server = Server::with(&["--max-new-machines", "3"]);
    for n in 0..3 {
        server.post("/api/v1/agent/poll", &poll(n)).data();
        goodbye(&server, n);
    }
    for n in 3..6 {
        let refused = server.post("/api/v1/agent/poll", &poll(n));
        assert_eq!(refused.status, 503);
        assert!(
            refused.msg().contains("--max-new-machines"),
            "{}",
            refused.msg()
        );
    }
    assert_eq!(server.machines().len(), 3);
    let words = "too many new machines from 127.0.0.1";
    // A thread of its own writes the log.
    server.process.logged(words);
    let log = server.process.log();
    let said = log.iter().filter(|line| line.contains(words));
    assert_eq!(said.count(), 1, "{log:?}");
}

#[test]
fn a_machine_with_a_queue_is_not_forgotten_for_a_new_one() {
    let server = Server::with(&["--max-machines", "2"]);
    // Two that are busy: the second has something queued, and an unreachable agent.
    for n in 0..2 {
        server.post("/api/v1/agent/poll", &poll(n)).data();
    }
    let queued = server.submit(json!({"machinePattern": "machine-1", "ttl": "10m",
        "detail": {"command": "true"}}));
    goodbye(&server, 0);
    let status = |n: usize| server.post("/api/v1/agent/poll", &poll(n)).status;
    assert_eq!(status(2), 200, "the one that said goodbye makes room");
    assert_eq!(status(3), 503);
    assert_eq!(server.task(id(&queued))["counts"]["queued"], 1);
}

#[test]
fn a_report_has_as_many_pieces_as_an_agent_sends_and_unknown_ones_are_named_once() {
    let server = Server::start();
    server.post("/api/v1/agent/poll", &poll(0)).data();
    let piece = |n: usize| {
        json!({"execution": format!("e{n}.0"), "attempt": 1, "stream": "stdout",
        "offset": 0, "data": ""})
    };
    let report = |pieces: Vec<Value>| {
        let body = json!({"instance": format!("{:08x}", 0), "pieces": pieces}).to_string();
        server.raw(&request(
            "POST",
            "/api/v1/agent/output",
            "Connection: close\r\n",
            body.as_bytes(),
        ))
    };
    let refused = report((0..9_000).map(piece).collect());
    assert_eq!(refused.status, 422);
    assert!(refused.msg().starts_with("pieces: "), "{}", refused.msg());
    let pieces = (0..2_000).map(|n| piece(n / 2)).collect();
    let forgotten = report(pieces).data()["forget"].take();
    assert_eq!(forgotten.as_array().map(Vec::len), Some(1_000));
}
