//! The two engines behind one face: the same well-formed requests get the same answers.

#![cfg(feature = "tiny_http")]

mod common;

use common::http::{Connection, Reply, request};
use common::{SIDEBIKE, Server};
use serde_json::{Value, json};
use std::process::Command;

/// How many requests are compared.
const REQUESTS: u64 = 10_000;

fn server(engine: &str) -> Server {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0", "--engine", engine])
        .env("RUST_LOG", "warn,sidebike::server=info");
    Server::from_command(command)
}

/// One of the requests that people make: each number always gives the same one.
fn nth(n: u64) -> Vec<u8> {
    let get = |target: &str| request("GET", target, "", b"");
    let post = |target: &str, body: Value| request("POST", target, "", body.to_string().as_bytes());
    let id = format!("t{}", n / 11);
    match n % 11 {
        0 => post(
            "/api/v1/task",
            json!({"id": id, "machinePattern": "nobody", "ttl": "1h", "name": format!("n{n} ü"),
                "detail": {"command": "x".repeat(n as usize % 3_000)}}),
        ),
        1 => get(&format!("/api/v1/task/{id}")),
        2 => get(&format!("/api/v1/task/?taskPrefix=n{n}%20%C3%BC&limit=2")),
        3 => post("/api/v1/task/", json!({"id": id, "machinePattern": "("})),
        4 => request("HEAD", "/healthz", "", b""),
        5 => get(&format!("/nowhere/{n}?x={n}")),
        6 => get(&format!("/api/v1/lifecycle/ping?path=machine-{}", n % 50)),
        7 => request("DELETE", &format!("/api/v1/task/{id}"), "", b""),
        8 => post(&format!("/api/v1/task/{id}/cancel"), Value::Null),
        9 => request("PUT", "/api/v1/task", "", b"{}"),
        _ => get(&format!("/api/v1/task/{id}/output?offset=x{n}")),
    }
}

/// What an answer says, without the time at which it was said.
fn said(reply: &Reply) -> (u16, Option<String>, Option<String>, Value) {
    let mut body = serde_json::from_slice(&reply.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&reply.body).into_owned()));
    forget_times(&mut body);
    let header = |name| reply.header(name).map(str::to_owned);
    (reply.status, header("Content-Type"), header("Allow"), body)
}

fn forget_times(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !matches!(&**name, "createdAt" | "finishedAt" | "execution"));
            members.values_mut().for_each(forget_times);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_times),
        _ => {}
    }
}

#[test]
fn both_engines_give_the_same_answers() {
    let servers = [server("edge"), server("tiny_http")];
    let mut connections = servers.each_ref().map(Server::connect);
    for n in 0..REQUESTS {
        let bytes = nth(n);
        let with_body = !bytes.starts_with(b"HEAD");
        let answers = connections.each_mut().map(|connection: &mut Connection| {
            connection.send(&bytes);
            let reply = connection.try_read(with_body);
            said(&reply.unwrap_or_else(|| panic!("an answer to request {n}")))
        });
        let [edge, tiny] = answers;
        assert_eq!(edge, tiny, "{n}: {}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn the_plain_engine_says_what_it_is_and_what_it_cannot_do() {
    let plain = server("tiny_http");
    plain.process.logged("for closed networks");
    let mut command = Command::new(SIDEBIKE);
    command.args([
        "server",
        "--engine",
        "tiny_http",
        "--tls-cert",
        "a",
        "--tls-key",
        "b",
    ]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("tiny_http speaks no https"), "{said}");
}
