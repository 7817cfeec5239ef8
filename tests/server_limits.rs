//! Nothing grows without a bound, and the server goes on whatever comes at it.

mod common;

use common::http::{Connection, Reply, request};
use common::{SIDEBIKE, Server, id, ids, task, wait_for};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

/// A poll as an agent sends it, with a made-up instance.
fn poll(n: usize, seq: u32) -> Vec<u8> {
    let body = json!({"instance": format!("{n:08x}"), "seq": seq, "label": format!("held-{n}"),
        "host": "h", "version": "1", "jobs": 1, "wait": 25, "holds": []});
    let head = "Connection: close\r\nContent-Type: application/json\r\n";
    request(
        "POST",
        "/api/v1/agent/poll",
        head,
        body.to_string().as_bytes(),
    )
}

fn held_poll(server: &Server, n: usize) -> Connection {
    let mut connection = server.connect();
    connection.send(&poll(n, 1));
    connection
}

fn wait_until_held(server: &Server, count: u64) {
    wait_for(&format!("{count} polls are held"), || {
        server.metric("sidebike_held_requests") == count
    });
}

fn is_alive(server: &Server) -> bool {
    let mut connection = server.connect();
    connection.send(&request("GET", "/healthz", "Connection: close\r\n", b""));
    connection
        .try_read(true)
        .is_some_and(|reply| reply.status == 200)
}

#[test]
fn three_thousand_held_polls_cost_little_and_one_broadcast_reaches_all() {
    const POLLS: usize = 3_000;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may be raised to the hard one");
    let enough = limit
        .maximum
        .is_none_or(|most| most > 2 * POLLS as u64 + 500);
    assert!(
        enough,
        "this test needs a hard limit of 7,000 open files (ulimit -Hn)"
    );

    let server = Server::start();
    assert!(is_alive(&server));
    let before = server.process.figure("VmRSS");
    let mut polls: Vec<Connection> = (0..POLLS).map(|n| held_poll(&server, n)).collect();
    wait_until_held(&server, POLLS as u64);
    wait_for("their threads have ended", || {
        server.process.figure("Threads") < 50
    });
    let per_poll = (server.process.figure("VmRSS") - before) * 1024 / POLLS as u64;
    assert!(per_poll < 12 * 1024, "{per_poll} bytes for each held poll");

    let submitted = server.submit(json!({"machinePattern": "^held-", "detail": {"command": "x"}}));
    assert_eq!(submitted["matched"], POLLS);
    for (n, poll) in polls.iter_mut().enumerate() {
        let answer = poll.read().json();
        assert_eq!(answer["signal"], 1, "{n}: {answer}");
        assert_eq!(answer["data"]["start"][0]["taskId"], submitted["id"], "{n}");
    }
    assert_eq!(server.task(id(&submitted))["counts"]["delivered"], POLLS);
    assert!(server.process.figure("Threads") < 50);
}

/// A server that may have so many files open.
fn with_descriptors(most: u32) -> Server {
    let mut command = Command::new("sh");
    let line = format!("ulimit -n {most}; exec {SIDEBIKE} server --listen 127.0.0.1:0");
    command.args(["-c", &line]);
    Server::from_command(command)
}

/// A poll that leaves it to the server whether the connection stays.
fn staying_poll(seq: u32) -> Vec<u8> {
    let bytes = String::from_utf8(poll(0, seq)).unwrap();
    bytes.replace("Connection: close\r\n", "").into_bytes()
}

/// Holds a poll, has it answered, and says whether the connection stays.
fn stays_after_a_held_poll(server: &Server, connection: &mut Connection, seq: u32) -> bool {
    connection.send(&staying_poll(seq));
    wait_until_held(server, 1);
    let task = server.submit(json!({"machinePattern": "held", "detail": {"command": "x"}}));
    let reply = connection.read();
    assert_eq!(reply.json()["signal"], 1);
    // Else the next poll would be handed it again at once: it does not say that it has it.
    server
        .post(&format!("/api/v1/task/{}/cancel", id(&task)), &Value::Null)
        .data();
    reply.header("Connection").is_none()
}

#[test]
fn a_held_poll_leaves_its_connection_for_the_next() {
    let server = Server::start();
    let mut connection = server.connect();
    for seq in 1..=3 {
        assert!(stays_after_a_held_poll(&server, &mut connection, seq));
    }
}

#[test]
fn where_descriptors_are_short_a_held_poll_leaves_its_connection_all_the_same() {
    let server = with_descriptors(100);
    let _idle: Vec<Connection> = (0..5).map(|_| server.connect()).collect();
    let mut connection = server.connect();
    for seq in 1..=3 {
        assert!(stays_after_a_held_poll(&server, &mut connection, seq));
    }
    assert!(is_alive(&server));
}

#[test]
fn who_has_sent_all_he_has_to_say_is_answered_and_let_go() {
    let server = Server::start();
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
        .write_all(&request("GET", "/healthz", "", b""))
        .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the end comes soon");
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn a_length_of_32_gib_is_answered_and_kills_nobody() {
    let server = Server::start();
    let targets = [
        "GET /healthz",
        "POST /api/v1/task",
        "GET /nowhere",
        "POST /api/v1/agent/poll",
    ];
    let mut connections = targets.map(|target| {
        let head =
            format!("{target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 34359738368\r\n\r\n");
        let mut connection = server.connect();
        connection.send(head.as_bytes());
        connection
    });
    // What is not there is said before the body is looked at.
    for (connection, status) in connections.iter_mut().zip([413, 413, 404, 413]) {
        assert_eq!(connection.read().status, status);
    }
    // The end of the connection, when what is left of the request is dropped, is the moment to survive.
    for connection in &mut connections {
        connection.rest();
    }
    assert!(is_alive(&server));
    assert!(server.process.figure("VmRSS") < 64 * 1024);
}

/// A body of so many bytes that is not a task.
fn post_bytes(server: &Server, count: usize) -> Reply {
    server.request("POST", "/api/v1/task", &vec![b'x'; count])
}

#[test]
fn a_body_over_the_limit_is_413_and_says_which() {
    let server = Server::start();
    assert_eq!(
        post_bytes(&server, 4 << 20).status,
        400,
        "at the limit it is read"
    );
    for count in [(4 << 20) + 1, 8 << 20] {
        let reply = post_bytes(&server, count);
        assert_eq!(reply.status, 413);
        assert!(reply.msg().contains("--max-body"), "{}", reply.text());
    }
    let other = Server::with(&["--max-body", "3"]);
    assert_eq!(post_bytes(&other, 3 << 20).status, 400);
    assert_eq!(post_bytes(&other, (3 << 20) + 1).status, 413);
    // A report that is full of short entries takes many times its length while it is read.
    let report = |count: usize| {
        let body = vec![b'x'; count];
        server.request("POST", "/api/v1/agent/done", &body).status
    };
    assert_eq!(report(1 << 20), 400);
    assert_eq!(report((1 << 20) + 1), 413);
}

#[test]
fn a_chunked_body_is_bounded_as_well() {
    let server = Server::start();
    let head =
        "POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let good = r#"{"machinePattern":"m","detail":{"command":"x"}}"#;
    let chunked = format!("{head}{:x}\r\n{good}\r\n0\r\n\r\n", good.len());
    assert_eq!(server.raw(chunked.as_bytes()).status, 200);
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut connection = server.connect();
    connection.send(head.as_bytes());
    for _ in 0..65 {
        connection.send(chunk.as_bytes());
    }
    assert_eq!(connection.read().status, 413);
}

#[test]
fn what_could_be_understood_in_two_ways_is_refused() {
    let server = Server::start();
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "x".repeat(5_000)
    );
    for (bytes, status) in [
        (
            "POST /api/v1/task HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
            400,
        ),
        (
            "POST /api/v1/task HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
            400,
        ),
        (
            "POST /api/v1/task HTTP/1.1\r\nContent-Length: two\r\n\r\n{}",
            400,
        ),
        (&*long, 414),
        ("GET /%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (
            "GET /api/v1/task?state=%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
            400,
        ),
    ] {
        assert_eq!(server.raw(bytes.as_bytes()).status, status, "{bytes}");
    }
}

#[test]
fn endless_headers_are_cut_off() {
    let server = Server::start();
    let mut connection = server.connect();
    connection.send(b"GET /healthz HTTP/1.1\r\n");
    let lines = "X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(10_000);
    // A sender that does not stop: its connection goes, not the server's memory.
    wait_for("the connection is cut", || {
        !connection.try_send(lines.as_bytes()) && server.metric("sidebike_connections") == 1
    });
    assert!(is_alive(&server));
    assert!(
        server.process.figure("VmRSS") < 100 * 1024,
        "{}",
        server.process.figure("VmRSS")
    );
}

#[test]
fn with_few_descriptors_connections_come_and_go_and_the_server_goes_on() {
    let server = with_descriptors(200);
    let idle: Vec<Connection> = (0..300).map(|_| server.connect()).collect();
    wait_for("an answer while all connections are taken", || {
        is_alive(&server)
    });
    drop(idle);
    assert!(is_alive(&server));
    let mut polls: Vec<Connection> = (0..40).map(|n| held_poll(&server, n)).collect();
    wait_until_held(&server, 40);
    server.submit(json!({"machinePattern": "held", "detail": {"command": "x"}}));
    assert!(
        polls
            .iter_mut()
            .all(|poll| poll.read().json()["signal"] == 1)
    );
}

#[test]
fn without_any_descriptor_left_the_server_waits_and_goes_on() {
    let server = Server::start();
    let mut held = held_poll(&server, 0);
    wait_until_held(&server, 1);
    let pid = Some(server.process.pid());
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(3),
        ..before
    };
    prlimit(pid, Resource::Nofile, none).unwrap();
    let idle: Vec<Connection> = (0..50).map(|_| server.connect()).collect();
    wait_for("the server notices", || {
        let log = server.process.log();
        log.iter()
            .any(|line| line.contains("descriptor") || line.contains("cannot accept"))
    });
    prlimit(pid, Resource::Nofile, before).unwrap();
    drop(idle);
    wait_for("the server answers again", || is_alive(&server));
    server.submit(json!({"machinePattern": "held", "detail": {"command": "x"}}));
    assert_eq!(
        held.read().json()["signal"],
        1,
        "what was held before is served"
    );
    assert!(server.process.log().len() < 30, "a flood in the log");
}

#[test]
fn at_max_executions_a_submit_is_503_and_what_was_accepted_is_safe() {
    let server = Server::with(&["--max-executions", "3"]);
    let first = server.submit(task("true"));
    server.submit(task("true"));
    server.submit(task("true"));
    let reply = server.post("/api/v1/task", &task("true"));
    assert_eq!((reply.status, &reply.json()["signal"]), (503, &json!(-1)));
    assert!(reply.msg().contains("--max-executions"), "{}", reply.msg());
    assert_eq!(ids(&server.get("/api/v1/task").data()).len(), 3);
    server
        .post(&format!("/api/v1/task/{}/cancel", id(&first)), &Value::Null)
        .data();
    server.submit(task("true"));
}

#[test]
fn at_max_machines_a_new_one_is_503_and_known_ones_go_on() {
    let server = Server::with(&["--max-machines", "2"]);
    let _held = (held_poll(&server, 0), held_poll(&server, 1));
    wait_until_held(&server, 2);
    for bytes in [
        poll(2, 1),
        request("GET", "/api/v1/lifecycle/ping?path=X", "", b""),
    ] {
        let reply = server.raw(&bytes);
        assert_eq!(reply.status, 503);
        assert!(reply.msg().contains("--max-machines"), "{}", reply.msg());
    }
    let labels: Vec<Value> = server
        .machines()
        .iter()
        .map(|m| m["label"].clone())
        .collect();
    assert_eq!(labels, ["held-0", "held-1"]);
    server.submit(json!({"machinePattern": "held-1", "detail": {"command": "x"}}));
    wait_until_held(&server, 1);
}

#[test]
fn at_max_held_a_poll_is_answered_at_once() {
    let server = Server::with(&["--max-held", "1"]);
    let _held = held_poll(&server, 0);
    wait_until_held(&server, 1);
    let reply = server.raw(&poll(1, 1));
    assert_eq!((reply.status, &reply.json()["signal"]), (200, &json!(0)));
}

#[test]
fn at_max_tasks_the_oldest_finished_ones_go() {
    let server = Server::with(&["--max-tasks", "2"]);
    let waits = server.submit(task("true"));
    let finished: Vec<Value> = (0..4)
        .map(|_| {
            let task = server.submit(task("true"));
            server
                .post(&format!("/api/v1/task/{}/cancel", id(&task)), &Value::Null)
                .data()
        })
        .collect();
    let kept = server.get("/api/v1/task").data();
    assert_eq!(ids(&kept), [id(&finished[3]), id(&finished[2]), id(&waits)]);
    assert_eq!(
        server
            .get(&format!("/api/v1/task/{}", id(&finished[0])))
            .status,
        404
    );
    assert_eq!(server.metric("sidebike_tasks{state=\"canceled\"}"), 2);
}

#[test]
fn at_max_output_the_oldest_tasks_go_and_what_is_cut_is_counted() {
    let server = Server::with(&["--max-output", "1"]);
    let _agent = server.agent("m");
    let big = "yes 0123456789 | head -c 600000";
    let tasks: Vec<Value> = (0..4).map(|_| server.run(task(big))).collect();
    assert_eq!(
        server
            .get(&format!("/api/v1/task/{}", id(&tasks[0])))
            .status,
        404
    );
    assert!(server.metric("sidebike_output_bytes") <= 1 << 20);
    for task in &tasks {
        let execution = &task["result"][0];
        let cut = execution["truncatedBytes"].as_u64().unwrap();
        let kept = execution["stdout"].as_str().unwrap().len();
        assert_eq!(task["state"], "succeeded");
        assert!(
            kept > 200_000 && (cut > 0) == (kept < 600_000),
            "{kept} kept, {cut} cut"
        );
    }
}

#[test]
fn texts_up_to_the_settings_are_taken_and_longer_ones_say_which() {
    let server = Server::with(&[
        "--max-pattern",
        "2000",
        "--max-compiled-pattern",
        "16",
        "--max-label",
        "20",
        "--max-name",
        "300",
    ]);
    let posted = |name: usize, pattern: &str| {
        let task = json!({"name": "n".repeat(name), "machinePattern": pattern,
            "detail": {"command": "true"}});
        server.post("/api/v1/task", &task)
    };
    // A thousand bytes of pattern are about 48 KiB when they are compiled, so these are mostly short.
    let long = |bytes: usize| format!("[{}]", "a".repeat(bytes - 2));
    for (reply, flag) in [
        (posted(300, "x"), None),
        (posted(301, "x"), Some("--max-name")),
        (posted(1, &long(2_000)), None),
        (posted(1, &long(2_001)), Some("--max-pattern)")),
        (posted(1, "x{100}"), None),
        (posted(1, "x{1000}"), Some("--max-compiled-pattern")),
    ] {
        let expected = if flag.is_some() { 400 } else { 200 };
        assert_eq!(reply.status, expected, "{}", reply.text());
        let says = flag.is_none_or(|flag| reply.msg().contains(flag));
        assert!(says, "{flag:?}: {}", reply.text());
    }
    // Both kinds of agents.
    let ping = |label: &str| {
        let target = format!("/api/v1/lifecycle/ping?path={label}");
        server.raw(&request("GET", &target, "", b""))
    };
    let poll = |instance: &str, label: &str| {
        let poll = json!({"instance": instance, "seq": 1, "label": label, "jobs": 1, "wait": 0});
        server.post("/api/v1/agent/poll", &poll)
    };
    let (fits, does_not) = ("l".repeat(20), "l".repeat(21));
    assert_eq!(ping(&fits).status, 200);
    assert_eq!(poll("00000001", &fits).status, 200);
    for reply in [ping(&does_not), poll("00000002", &does_not)] {
        assert_eq!(reply.status, 422);
        assert!(reply.msg().contains("--max-label"), "{}", reply.msg());
    }
}

#[test]
fn at_max_patterns_another_one_is_503_until_nothing_waits_under_one() {
    let server = Server::with(&["--max-patterns", "2"]);
    let waits = |pattern: &str| {
        let task = json!({"machinePattern": pattern, "detail": {"command": "true"}});
        server.post("/api/v1/task", &task)
    };
    let first = waits("^one$").data();
    waits("^two$").data();
    waits("^two$").data();
    let reply = waits("^three$");
    assert_eq!(reply.status, 503);
    assert!(reply.msg().contains("--max-patterns"), "{}", reply.msg());
    server
        .post(&format!("/api/v1/task/{}/cancel", id(&first)), &Value::Null)
        .data();
    waits("^three$").data();
    assert_eq!(waits("^one$").status, 503);
}
