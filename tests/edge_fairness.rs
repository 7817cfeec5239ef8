//! One connection that always has something to do keeps nobody else waiting, and takes no more memory than is set
//! aside for it.

mod bystander;
mod common;
mod edge;

use bystander::{alone, beside, quiet_server};
use common::http::request;
use common::{Server, id, wait_for};
use edge::{Client, get};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// As many as a server has workers on a machine like this: one for each.
const ONE_EACH: usize = 4;
/// How long each goes on.
const LASTS: Duration = Duration::from_secs(3);

/// Writes the same bytes again and again, reading whatever comes back.
fn flood(server: &Server, bytes: &[u8]) {
    let over = AtomicBool::new(false);
    let many = bytes.repeat(64 * 1024 / bytes.len());
    thread::scope(|scope| {
        for _ in 0..ONE_EACH {
            let mut writer = TcpStream::connect(server.address).unwrap();
            let mut reader = writer.try_clone().unwrap();
            scope.spawn(move || while reader.read(&mut [0; 64 * 1024]).is_ok_and(|n| n > 0) {});
            let (over, many) = (&over, &many);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) && writer.write_all(many).is_ok() {}
                let _ = writer.shutdown(std::net::Shutdown::Both);
            });
        }
        thread::sleep(LASTS);
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn who_pipelines_without_end_gets_one_turn_after_the_other() {
    let _alone = alone();
    let server = quiet_server(&[]);
    beside(&server, || flood(&server, b"GET /healthz HTTP/1.1\r\n\r\n"));
}

#[test]
fn who_sends_empty_lines_without_end_is_cut_in_time() {
    let _alone = alone();
    let server = quiet_server(&["--max-request-time", "1s"]);
    beside(&server, || flood(&server, b"\r\n"));
    let mut client = TcpStream::connect(server.address).unwrap();
    let started = Instant::now();
    while client.write_all(b"\r\n").is_ok() && started.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(20));
    }
    assert!(started.elapsed() < Duration::from_secs(5), "it was not cut");
}

#[test]
fn a_full_house_sheds_nobody_while_nobody_waits() {
    let server = Server::with(&["--max-connections", "60"]);
    let mut idle: Vec<Client> = (0..60).map(|_| Client::open(server.address)).collect();
    for client in &mut idle {
        client.send(&get("/healthz"));
        assert_eq!(client.answer().expect("an answer").status, 200);
    }
    // Longer than any limit of the policy.
    thread::sleep(Duration::from_secs(4));
    for client in &mut idle {
        client.send(&get("/healthz"));
        assert_eq!(client.answer().expect("it is still there").status, 200);
    }
    // Now somebody waits, and is served soon.
    let started = Instant::now();
    let mut newcomer = Client::open(server.address);
    newcomer.send(&get("/healthz"));
    assert_eq!(newcomer.answer().expect("an answer").status, 200);
    assert!(started.elapsed() < Duration::from_secs(2));
}

/// Each byte of this output is a line, and each line gets a label: what is sent is 250 times as much.
#[test]
fn followers_of_many_short_lines_take_what_is_set_aside_for_them() {
    let server = Server::with(&["--max-in-flight", "16"]);
    let label = "l".repeat(250);
    let _agents = server.agents(2, &label);
    let task = server.submit(json!({"machinePattern": "^l",
        "detail": {"command": "head -c 250000 /dev/zero | tr '\\0' '\\n'"}}));
    server.finished(id(&task));
    let before = server.process.figure("VmRSS");
    let target = format!("/api/v1/task/{}/output?follow=1", id(&task));
    let followers: Vec<TcpStream> = (0..30)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            set_socket_recv_buffer_size(&stream, 4_096).unwrap();
            stream.write_all(&request("GET", &target, "", b"")).unwrap();
            stream
        })
        .collect();
    wait_for("all are answered", || {
        server.metric("sidebike_held_requests") >= 2
    });
    thread::sleep(LASTS);
    let grown = server.process.figure("VmRSS").saturating_sub(before);
    assert!(
        grown < 64 * 1024,
        "{grown} KiB for {} followers",
        followers.len()
    );
    drop(followers);
    // One that reads gets all of it.
    let mut reader = server.connect();
    reader.send(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes());
    let answer = reader.rest();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = answer.len() - head.expect("a head") - 4;
    // Replicas on one host are told apart by eight digits of their instances.
    let name = label.len() + 1 + 8;
    assert_eq!(body, 2 * 250_000 * (name + 4));
}

/// The end of a follower that has gone is noticed though nothing is sent to it.
#[test]
fn who_follows_a_quiet_task_and_goes_is_forgotten_soon() {
    let server = Server::start();
    let task = server.submit(json!({"machinePattern": "^nobody$", "detail": {"command": "x"}}));
    let target = format!("/api/v1/task/{}/output?follow=1", id(&task));
    for _ in 0..20 {
        let mut client = Client::open(server.address);
        client.send(&get(&target));
        wait_for("it is counted", || {
            server.metric("sidebike_held_requests") > 0
        });
    }
    wait_for("nobody is held", || {
        server.metric("sidebike_held_requests") == 0
    });
}
