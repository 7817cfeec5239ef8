//! Who may: every call there is, with every kind of token.

mod common;

use common::http::{Reply, request};
use common::{Folder, SIDEBIKE, Server, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// What a call answers once it is allowed, and to whom it is.
struct Line {
    call: &'static str,
    target: &'static str,
    body: &'static str,
    allowed: u16,
    who: Who,
}

#[derive(Clone, Copy, PartialEq)]
enum Who {
    Anybody,
    /// People, and who may look.
    Lookers,
    People,
    /// Agents, and people.
    Agents,
    /// Who has any token.
    Holders,
    /// Whose label `--allow-legacy` matches.
    Labels,
}
use Who::{Agents, Anybody, Holders, Labels, Lookers, People};

const fn line(
    call: &'static str,
    target: &'static str,
    body: &'static str,
    allowed: u16,
    who: Who,
) -> Line {
    Line {
        call,
        target,
        body,
        allowed,
        who,
    }
}

/// Every call. What is allowed is often a mistake in something else, which says that it was allowed.
#[rustfmt::skip]
const TABLE: &[Line] = &[
    line("POST /api/v1/task", "/api/v1/task", "{}", 400, People),
    line("POST /api/v1/task/status/new", "/api/v1/task/status/new", "{}", 400, People),
    line("GET /api/v1/task", "/api/v1/task", "", 200, Lookers),
    line("GET /api/v1/task/*", "/api/v1/task/none", "", 404, Lookers),
    line("DELETE /api/v1/task/*", "/api/v1/task/none", "", 404, People),
    line("POST /api/v1/task/*/cancel", "/api/v1/task/none/cancel", "", 404, People),
    line("POST /api/v1/task/*/pause", "/api/v1/task/none/pause", "", 404, People),
    line("POST /api/v1/task/*/resume", "/api/v1/task/none/resume", "", 404, People),
    line("POST /api/v1/task/*/stop", "/api/v1/task/none/stop", "", 404, People),
    line("POST /api/v1/task/*/undo", "/api/v1/task/none/undo", "", 404, People),
    line("POST /api/v1/task/*/forgive", "/api/v1/task/none/forgive", "", 404, People),
    line("GET /api/v1/task/*/report", "/api/v1/task/none/report", "", 404, Lookers),
    line("POST /api/v1/tasks", "/api/v1/tasks", "[]", 400, People),
    line("POST /api/v1/cancel", "/api/v1/cancel", "", 400, People),
    line("POST /api/v1/rerun", "/api/v1/rerun", "", 400, People),
    line("POST /api/v1/group/*/cancel", "/api/v1/group/none/cancel", "", 404, People),
    line("GET /api/v1/schedule", "/api/v1/schedule", "", 200, Lookers),
    line("GET /api/v1/schedule/*", "/api/v1/schedule/none", "", 404, Lookers),
    line("PUT /api/v1/schedule/*", "/api/v1/schedule/none", "{}", 400, People),
    line("DELETE /api/v1/schedule/*", "/api/v1/schedule/none", "", 404, People),
    line("POST /api/v1/schedule/*/pause", "/api/v1/schedule/none/pause", "", 404, People),
    line("POST /api/v1/schedule/*/resume", "/api/v1/schedule/none/resume", "", 404, People),
    line("POST /api/v1/schedule/*/run", "/api/v1/schedule/none/run", "", 404, People),
    line("GET /api/v1/group/*", "/api/v1/group/none", "", 404, Lookers),
    line("POST /api/v1/halt", "/api/v1/halt", "{}", 400, People),
    line("DELETE /api/v1/halt", "/api/v1/halt", "", 200, People),
    line("GET /api/v1/halt", "/api/v1/halt", "", 200, Lookers),
    line("PUT /api/v1/limit/*", "/api/v1/limit/none", "{}", 400, People),
    line("GET /api/v1/limit/*", "/api/v1/limit/none", "", 404, Lookers),
    line("DELETE /api/v1/limit/*", "/api/v1/limit/none", "", 404, People),
    line("GET /api/v1/limit", "/api/v1/limit", "", 200, Lookers),
    line("GET /api/v1/status", "/api/v1/status", "", 200, Lookers),
    line("POST /api/v1/task/*/rerun", "/api/v1/task/none/rerun", "", 404, People),
    line("GET /api/v1/task/*/output", "/api/v1/task/none/output", "", 404, Lookers),
    line("GET /api/v1/summary", "/api/v1/summary", "", 200, Lookers),
    line("POST /api/v1/suspend", "/api/v1/suspend", "{}", 400, People),
    line("GET /api/v1/suspend", "/api/v1/suspend", "", 200, Lookers),
    line("DELETE /api/v1/suspend", "/api/v1/suspend", "", 200, People),
    line("POST /api/v1/machine/*/drain", "/api/v1/machine/none/drain", "", 404, People),
    line("POST /api/v1/machine/*/undrain", "/api/v1/machine/none/undrain", "", 404, People),
    line("POST /api/v1/machine/*/shutdown", "/api/v1/machine/none/shutdown", "", 404, People),
    line("GET /api/v1/machine", "/api/v1/machine", "", 200, Lookers),
    line("POST /api/v1/agent/poll", "/api/v1/agent/poll", "{}", 400, Agents),
    line("POST /api/v1/agent/output", "/api/v1/agent/output", "{}", 400, Agents),
    line("POST /api/v1/agent/done", "/api/v1/agent/done", "{}", 400, Agents),
    line("POST /api/v1/agent/goodbye", "/api/v1/agent/goodbye", "{}", 400, Agents),
    line("GET /", "/", "", 200, Anybody),
    line("GET /docs", "/docs", "", 200, Anybody),
    line("GET /docs/*", "/docs/api", "", 200, Anybody),
    line("GET /api/v1/openapi.json", "/api/v1/openapi.json", "", 200, Anybody),
    line("GET /healthz", "/healthz", "", 200, Anybody),
    line("GET /leader", "/leader", "", 200, Anybody),
    line("PUT /api/v1/file/*", "/api/v1/file/x", "x", 200, People),
    line("GET /api/v1/blob", "/api/v1/blob", "", 200, Lookers),
    line("GET /api/v1/blob/*", "/api/v1/blob/none", "", 400, People),
    line("PATCH /api/v1/blob/*", "/api/v1/blob/none", "x", 400, People),
    line("DELETE /api/v1/blob/*", "/api/v1/blob/none", "", 400, People),
    line("GET /api/v1/agent/file/*", "/api/v1/agent/file/none", "", 400, Agents),
    line("PUT /api/v1/agent/file", "/api/v1/agent/file", "x", 400, Agents),
    line("GET /sidebike", "/sidebike?arch=none", "", 404, Holders),
    line("GET /sidebike.sha256", "/sidebike.sha256", "", 200, Holders),
    line("GET /metrics", "/metrics", "", 200, Lookers),
    line("GET /api/v1/lifecycle/ping", "/api/v1/lifecycle/ping?path=new", "", 200, Labels),
    line("POST /api/v1/task/status/assigned", "/api/v1/task/status/assigned", r#"{"MachineLabel":"new"}"#, 200, Labels),
    line("POST /api/v1/task/status/done", "/api/v1/task/status/done", r#"{"TaskName":"none.0/1","Result":{"machineLabel":"new","status":0}}"#, 200, Labels),
];

/// The kinds of tokens; each server here knows two of people.
const TOKENS: &[(&str, &str)] = &[
    ("none", ""),
    ("wrong", "wrong-secret"),
    ("read", "read-secret"),
    ("agent", "agent-secret"),
    ("people", "people-secret-1"),
    ("people too", "people-secret-2"),
];

fn with_tokens(flags: &[&str]) -> Command {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .args(flags)
        .env("SIDEBIKE_TOKEN", "people-secret-1,people-secret-2")
        .env("SIDEBIKE_AGENT_TOKEN", "agent-secret")
        .env("SIDEBIKE_READ_TOKEN", "read-secret");
    command
}

fn call(server: &Server, token: &str, method: &str, target: &str, body: &str) -> Reply {
    let authorization = if token.is_empty() {
        String::new()
    } else {
        format!("Authorization: Bearer {token}\r\n")
    };
    let headers = format!("{authorization}Connection: close\r\n");
    server.raw(&request(method, target, &headers, body.as_bytes()))
}

fn expected(line: &Line, kind: &str) -> u16 {
    let (allowed, denied) = (
        line.allowed,
        if ["none", "wrong"].contains(&kind) {
            401
        } else {
            403
        },
    );
    let may = match line.who {
        Anybody => true,
        Labels => return 401,
        People => kind.starts_with("people"),
        Lookers => kind.starts_with("people") || kind == "read",
        Agents => kind.starts_with("people") || kind == "agent",
        Holders => !["none", "wrong"].contains(&kind),
    };
    if may { allowed } else { denied }
}

#[test]
fn the_table_has_every_call() {
    let calls = sidebike::server::calls().into_iter();
    let mut calls: Vec<String> = calls.map(|call| call.call).collect();
    let mut table: Vec<&str> = TABLE.iter().map(|line| line.call).collect();
    calls.sort();
    table.sort();
    assert_eq!(calls, table);
}

#[test]
fn every_call_with_every_kind_of_token() {
    let server = Server::from_command(with_tokens(&[]));
    for line in TABLE {
        let method = line.call.split(' ').next().unwrap();
        for (kind, token) in TOKENS {
            let status = call(&server, token, method, line.target, line.body).status;
            assert_eq!(
                status,
                expected(line, kind),
                "{} with token {kind}",
                line.call
            );
            if method == "GET" {
                let headers = format!("Authorization: Bearer {token}\r\nConnection: close\r\n");
                let mut connection = server.connect();
                connection.send(&request("HEAD", line.target, &headers, b""));
                let head = connection.read_head_only().status;
                assert_eq!(
                    head,
                    expected(line, kind),
                    "HEAD of {} with token {kind}",
                    line.call
                );
            }
        }
    }
    assert_eq!(server.get("/healthz").data(), "alive");
}

#[test]
fn without_tokens_everything_is_open_and_the_server_says_so() {
    let server = Server::start();
    for line in TABLE {
        let method = line.call.split(' ').next().unwrap();
        for (kind, token) in TOKENS {
            let status = call(&server, token, method, line.target, line.body).status;
            assert_eq!(status, line.allowed, "{} with token {kind}", line.call);
        }
    }
    server.process.logged("NO TOKEN IS SET");
}

#[test]
fn the_originals_calls_are_open_to_the_labels_that_are_allowed() {
    let server = Server::from_command(with_tokens(&["--allow-legacy", "^old-"]));
    for (label, status) in [("old-1", 200), ("new", 401), ("an-old-1", 401)] {
        let ping = server.get(&format!("/api/v1/lifecycle/ping?path={label}"));
        assert_eq!(ping.status, status, "{label}");
        let assigned = server.post(
            "/api/v1/task/status/assigned",
            &json!({"MachineLabel": label}),
        );
        assert_eq!(assigned.status, status, "{label}");
        let done = json!({"TaskName": "x.0/1", "Result": {"machineLabel": label, "status": 0}});
        let done = server.post("/api/v1/task/status/done", &done);
        assert_eq!(done.status, status, "{label}");
    }
}

#[test]
fn other_ways_to_write_a_token() {
    let server = Server::from_command(with_tokens(&[]));
    for (header, status) in [
        ("Authorization: bearer people-secret-1", 200),
        ("AUTHORIZATION: Bearer   people-secret-1  ", 200),
        ("Authorization: people-secret-1", 401),
        ("Authorization: Basic people-secret-1", 401),
        ("Authorization: Bearer", 401),
        ("Authorization: Bearer ", 401),
        ("Authorization: Bearer people-secret-1,people-secret-2", 401),
        ("Authorization: Bearer people-secret-12", 401),
        ("Authorization: Bearer PEOPLE-SECRET-1", 401),
        (
            "Authorization: Bearer wrong\r\nAuthorization: Bearer people-secret-1",
            400,
        ),
        ("X-Authorization: Bearer people-secret-1", 401),
        ("Cookie: token=people-secret-1", 401),
    ] {
        let headers = format!("{header}\r\nConnection: close\r\n");
        let reply = server.raw(&request("GET", "/api/v1/task", &headers, b""));
        assert_eq!(reply.status, status, "{header}");
    }
}

fn poll(server: &Server, instance: &str, label: &str, seq: u64) -> Value {
    let poll = json!({"instance": instance, "seq": seq, "label": label, "jobs": 1, "wait": 0});
    call(
        server,
        "agent-secret",
        "POST",
        "/api/v1/agent/poll",
        &poll.to_string(),
    )
    .data()
}

#[test]
fn an_agent_reports_for_itself_only() {
    let server = Server::from_command(with_tokens(&["--allow-legacy", "^old$"]));
    let (one, other) = ("1111111111111111", "2222222222222222");
    poll(&server, one, "one", 1);
    poll(&server, other, "other", 1);
    server.get("/api/v1/lifecycle/ping?path=old");
    let task = json!({"machinePattern": "^(one|old)$", "detail": {"command": "true"}});
    let task = call(
        &server,
        "people-secret-1",
        "POST",
        "/api/v1/task",
        &task.to_string(),
    )
    .data();
    let handed_out = poll(&server, one, "one", 2)["start"][0].clone();
    let handed_to_old = server.post(
        "/api/v1/task/status/assigned",
        &json!({"MachineLabel": "old"}),
    );
    let name = handed_to_old.data()["name"].as_str().unwrap().to_owned();
    let (old, attempt) = name.rsplit_once('/').unwrap();
    let attempt: u32 = attempt.parse().unwrap();
    let execution = handed_out["execution"].as_str().expect("it was handed out");

    let done = |instance: &str, execution: &str, attempt: u32| {
        let result = json!({"execution": execution, "attempt": attempt, "state": "succeeded", "exitCode": 0});
        let done = json!({"instance": instance, "pieces": [], "results": [result]});
        call(
            &server,
            "agent-secret",
            "POST",
            "/api/v1/agent/done",
            &done.to_string(),
        )
    };
    for (instance, execution, attempt) in [(other, execution, 1), (other, old, attempt)] {
        let taken = done(instance, execution, attempt).data()["results"][0]["taken"].clone();
        assert_eq!(taken, false, "{instance} reported for {execution}");
    }
    assert_eq!(done("original:old", old, attempt).status, 422);
    let goodbye = json!({"instance": "original:old"}).to_string();
    assert_eq!(
        call(
            &server,
            "agent-secret",
            "POST",
            "/api/v1/agent/goodbye",
            &goodbye
        )
        .status,
        422
    );
    let piece = json!({"execution": execution, "attempt": 1, "stream": "stdout", "offset": 0, "data": "aGk="});
    for instance in [other, "original:old"] {
        let output = json!({"instance": instance, "pieces": [piece]}).to_string();
        call(
            &server,
            "agent-secret",
            "POST",
            "/api/v1/agent/output",
            &output,
        );
    }
    let target = format!("/api/v1/task/{}", task["id"].as_str().unwrap());
    let shown = call(&server, "read-secret", "GET", &target, "").data();
    assert_eq!(shown["counts"]["succeeded"], 0, "{shown}");
    assert!(!shown.to_string().contains("\"hi"), "{shown}");
    assert_eq!(done(one, execution, 1).data()["results"][0]["taken"], true);
}

#[test]
fn tokens_of_a_file_are_read_again_and_can_be_rotated() {
    let folder = Folder::new();
    let file = folder.file("tokens");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("first-secret\nsecond-secret\n");
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .env("SIDEBIKE_TOKEN_FILE", &file)
        .env("SIDEBIKE_AGENT_TOKEN", "agent-secret");
    let server = Server::from_command(command);
    let status = |token: &str| call(&server, token, "GET", "/api/v1/task", "").status;
    let are = |first: u16, second: u16, third: u16| {
        wait_for("the tokens are in use", || {
            [
                status("first-secret"),
                status("second-secret"),
                status("third-secret"),
            ] == [first, second, third]
        });
        assert_eq!(status("agent-secret"), 403);
    };
    are(200, 200, 401);
    write("second-secret\r\n\n  third-secret  \n");
    are(200, 200, 401);
    server.process.signal(Signal::HUP);
    are(401, 200, 200);
    // What cannot be read changes nothing, and says why without saying what.
    for (text, why) in [
        ("", "there is no token in it"),
        ("two words", "no blanks"),
        ("agent-secret", "of another kind"),
    ] {
        write(text);
        server.process.signal(Signal::HUP);
        server.process.logged(why);
        are(401, 200, 200);
    }
    std::fs::remove_file(&file).unwrap();
    server.process.signal(Signal::HUP);
    server.process.logged("No such file");
    are(401, 200, 200);
    let log = server.process.log().join("\n");
    assert!(
        !log.contains("-secret") && !log.contains("two words"),
        "{log}"
    );
}

#[test]
fn no_token_is_ever_in_the_log_and_the_audit_has_the_hash() {
    let mut command = with_tokens(&["--allow-legacy", "^old$"]);
    command.env("RUST_LOG", "trace");
    let server = Server::from_command(command);
    for (_, token) in TOKENS {
        for line in TABLE {
            let method = line.call.split(' ').next().unwrap();
            call(&server, token, method, line.target, line.body);
        }
        // Broken in ways that readers like to complain about.
        for head in [
            format!("GET / HTTP/1.1\r\nAuthorization Bearer {token}\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nAuthorization: Bearer {token}\u{fc}\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nAuthorization: Bearer {token}\nX: y\r\n\r\n"),
            format!("GET / HTTP/2.0\r\nAuthorization: Bearer {token}\r\n\r\n"),
            format!(
                "POST /api/v1/task HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: x\r\n\r\n"
            ),
            format!(
                "POST /api/v1/task HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: 2\r\n\r\n{{}}"
            ),
        ] {
            let mut connection = server.connect();
            connection.send(head.as_bytes());
            connection.try_read(true);
        }
    }
    let task = json!({"machinePattern": "nobody", "detail": {"command": "true"}}).to_string();
    call(&server, "people-secret-2", "POST", "/api/v1/task", &task).data();
    server.process.logged("sidebike::audit: ");
    let audit = |token: &str, status: u16| {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let prefix: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let marks = [
            format!("\"token\":\"{prefix}\""),
            format!("\"status\":{status}"),
        ];
        wait_for(&format!("{token} and {status} in the audit"), || {
            let log = server.process.log();
            log.iter()
                .any(|line| marks.iter().all(|mark| line.contains(mark)))
        });
    };
    audit("people-secret-1", 400);
    audit("people-secret-2", 200);
    audit("agent-secret", 403);
    audit("read-secret", 403);
    let log = server.process.log().join("\n");
    assert!(!log.contains("-secret"), "{log}");
}

#[test]
fn an_agent_with_a_token_of_people_is_warned_of_once() {
    let server = Server::from_command(with_tokens(&[]));
    let poll = |token: &str, label: &str, instance: u64| {
        let instance = format!("{instance:08}");
        let poll = json!({"instance": instance, "seq": 1, "label": label, "jobs": 1});
        let target = "/api/v1/agent/poll";
        call(&server, token, "POST", target, &poll.to_string()).status
    };
    assert_eq!(poll("agent-secret", "good", 1), 200);
    assert_eq!(poll("people-secret-1", "not\ngood", 2), 422);
    assert_eq!(poll("people-secret-1", "bad-1", 3), 200);
    assert_eq!(poll("people-secret-1", "bad-1", 4), 200);
    assert_eq!(poll("people-secret-2", "bad-2", 5), 200);
    let mark = "uses a token of people";
    server.process.logged(&format!("the agent of bad-2 {mark}"));
    let log = server.process.log().join("\n");
    assert_eq!(log.matches(mark).count(), 2, "{log}");
    assert!(log.contains("SIDEBIKE_AGENT_TOKEN"), "{log}");
    assert!(!log.contains("-secret"), "{log}");
}

#[test]
fn the_audit_has_a_line_for_every_change_also_a_refused_one() {
    let folder = Folder::new();
    let file = folder.file("audit");
    let server = Server::from_command(with_tokens(&["--audit", &file]));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "commands are in it");
    let detail = json!({"command": "echo hello", "user": "nobody"});
    let task = json!({"id": "a", "machinePattern": "no machine", "detail": detail}).to_string();
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(5_000_000));
    let calls: &[(&str, &str, &str, &str, u16)] = &[
        ("people-secret-1", "POST", "/api/v1/task", &task, 200),
        ("people-secret-1", "POST", "/api/v1/task", &task, 409),
        ("people-secret-1", "POST", "/api/v1/task", "{", 400),
        ("people-secret-1", "POST", "/api/v1/task", &large, 413),
        ("", "POST", "/api/v1/task", &task, 401),
        (
            "wrong-secret",
            "POST",
            "/api/v1/task/status/new",
            &task,
            401,
        ),
        ("agent-secret", "POST", "/api/v1/task", &task, 403),
        ("read-secret", "POST", "/api/v1/task/a/cancel", "", 403),
        ("people-secret-1", "DELETE", "/api/v1/task/a", "", 409),
        ("agent-secret", "POST", "/api/v1/task/a/stop", "", 403),
        ("people-secret-1", "POST", "/api/v1/task/a/pause", "", 200),
        ("people-secret-1", "POST", "/api/v1/task/a/resume", "", 200),
        ("people-secret-2", "POST", "/api/v1/task/a/stop", "", 200),
        ("people-secret-1", "POST", "/api/v1/task/a/pause", "", 409),
        ("people-secret-2", "POST", "/api/v1/task/a/cancel", "", 200),
        (
            "people-secret-2",
            "POST",
            "/api/v1/task/none/rerun",
            "",
            404,
        ),
        ("people-secret-2", "DELETE", "/api/v1/task/a", "", 200),
    ];
    let mut moved = 0;
    for (n, (token, method, target, body, status)) in calls.iter().enumerate() {
        let reply = call(&server, token, method, target, body);
        assert_eq!(reply.status, *status, "{method} {target}: {}", reply.text());
        // Looking is nobody's business.
        call(&server, "read-secret", "GET", "/api/v1/task", "");
        // A line may be written after the answer.
        wait_for(&format!("a line for {method} {target}"), || {
            folder.json_lines("audit").len() > n - moved
        });
        let lines = folder.json_lines("audit");
        assert_eq!(lines.len(), n + 1 - moved, "{method} {target}");
        let line = lines.last().unwrap();
        assert_eq!(line["status"], *status);
        assert_eq!(line["call"], format!("{method} {target}"));
        assert_eq!(line["peer"], "127.0.0.1");
        if n == 5 {
            // A program that rotates logs.
            std::fs::rename(&file, folder.file("audit.1")).unwrap();
            moved = n + 1;
            server.process.signal(Signal::HUP);
            wait_for("it is opened again", || {
                std::path::Path::new(&file).exists()
            });
        }
    }
    let first = &folder.json_lines("audit.1")[0];
    assert_eq!(first["task"], "a");
    assert_eq!(first["command"], "echo hello");
    assert_eq!(first["user"], "nobody");
    assert_eq!(first["matched"], 0);
    let all = [folder.lines("audit.1"), folder.lines("audit")]
        .concat()
        .join("\n");
    assert!(!all.contains("-secret"), "{all}");
}

/// A call that waits changes something when it comes and is answered much later: its line has the status that it was
/// answered with.
#[test]
fn the_audit_has_the_status_that_a_call_that_waits_was_answered_with() {
    let folder = Folder::new();
    let file = folder.file("audit");
    let server = Server::from_command(with_tokens(&["--audit", &file]));
    let submit = |id: &str, query: &str| {
        let task =
            json!({"id": id, "machinePattern": "nobody", "detail": {"command": "echo hello"}});
        let headers = "Authorization: Bearer people-secret-1\r\n";
        let target = format!("/api/v1/task?{query}");
        let mut connection = server.connect();
        connection.send(&request(
            "POST",
            &target,
            headers,
            task.to_string().as_bytes(),
        ));
        connection
    };
    let cancel = |id: &str| {
        let target = format!("/api/v1/task/{id}/cancel");
        wait_for("it can be canceled", || {
            call(&server, "people-secret-1", "POST", &target, "").status == 200
        });
    };
    let audited = |id: &str, call: &str| {
        wait_until(&format!("{call} of {id} in the audit"), || {
            let mut lines = folder.json_lines("audit").into_iter();
            lines.find(|line| line["task"] == id && line["call"] == call)
        })
    };
    let figure = |name: &str| {
        let page = call(&server, "read-secret", "GET", "/metrics", "");
        let line = page.text().lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|value| value.trim().parse::<u64>().ok());
        value.unwrap_or_else(|| panic!("no {name} in {}", page.text()))
    };
    let is_held = || figure("sidebike_held_requests ") == 1;
    let before = figure("sidebike_requests_total{status=\"4xx\"} ");

    let mut strict = submit("canceled", "wait=60s&strict=1");
    cancel("canceled");
    assert_eq!(strict.read().status, 422);
    let line = audited("canceled", "POST /api/v1/task");
    assert_eq!(line["status"], 422);
    assert_eq!(line["command"], "echo hello");
    assert_eq!(line["matched"], 0);
    assert!(
        figure("sidebike_requests_total{status=\"4xx\"} ") > before,
        "it is counted as it was answered"
    );

    let mut lenient = submit("lenient", "wait=60s");
    cancel("lenient");
    assert_eq!(lenient.read().status, 200);
    assert_eq!(audited("lenient", "POST /api/v1/task")["status"], 200);

    let mut late = submit("late", "wait=0.2&strict=1");
    assert_eq!(late.read().status, 408);
    assert_eq!(audited("late", "POST /api/v1/task")["status"], 408);

    let gone = submit("gone", "wait=60s&strict=1");
    wait_for("it is held", is_held);
    drop(gone);
    assert_eq!(audited("gone", "POST /api/v1/task")["status"], 499);

    let mut unfinished = submit("unfinished", "wait=60s&strict=1");
    wait_for("it is held", is_held);
    server.process.signal(Signal::TERM);
    assert!(unfinished.try_read(true).is_none(), "the server ended");
    assert_eq!(audited("unfinished", "POST /api/v1/task")["status"], 499);
    let lines = folder.lines("audit");
    for id in ["canceled", "lenient", "late", "gone", "unfinished"] {
        let of_it = lines.iter().filter(|line| {
            line.contains(&format!("{id:?}")) && line.contains("\"POST /api/v1/task\"")
        });
        assert_eq!(of_it.count(), 1, "{id}: one line");
    }
}
