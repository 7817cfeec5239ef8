//! The cost of `--db`: many who wait for the disk wait together, and a file with many tasks is read
//! quickly.
//!
//! Figures of a release build: `SIDEBIKE=target/release/sidebike TASKS=100000 cargo test --test
//! database_load -- --nocapture`.

mod common;

use common::http::{Connection, request};
use common::{Folder, SIDEBIKE, Server};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a commit's wait for the disk takes here, in microseconds.
const DISK_TAKES_US: u32 = 10_000;
const CLIENTS: usize = 32;
const MEASURED_FOR: Duration = Duration::from_secs(2);
/// Tasks in the file, of a plain `cargo test`.
const TASKS: u64 = 5_000;

fn binary() -> String {
    std::env::var("SIDEBIKE").unwrap_or_else(|_| SIDEBIKE.into())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
}

/// A server on a slow disk; `None`, with a word, where a disk cannot be slowed.
fn on_a_slow_disk(db: &str) -> Option<Server> {
    let delay = number("DISK_TAKES_US", DISK_TAKES_US.into());
    let mut command = Command::new("strace");
    let inject = format!("inject=fdatasync:delay_enter={delay}");
    command
        .args(["--seccomp-bpf", "-f", "-o", "/dev/null"])
        .args(["-e", "trace=fdatasync", "-e", &inject])
        .args([&binary(), "server", "--listen", "127.0.0.1:0", "--db", db])
        .env("RUST_LOG", "warn,sidebike::server=info");
    let tried = Command::new("strace")
        .args([
            "--seccomp-bpf",
            "-f",
            "-e",
            "trace=fdatasync",
            "-o",
            "/dev/null",
            "true",
        ])
        .status();
    if !tried.is_ok_and(|status| status.success()) {
        eprintln!("left out: there is no strace that could slow the disk");
        return None;
    }
    Some(Server::from_command(command))
}

/// Submits a second from so many clients that wait for each answer.
fn rate(server: &Server, clients: usize) -> f64 {
    let (count, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let task = json!({"machinePattern": "^nobody$", "detail": {"command": "true"}}).to_string();
    let bytes = request("POST", "/api/v1/task", "", task.as_bytes());
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut connection = server.connect();
                while !over.load(Ordering::Relaxed) {
                    connection.send(&bytes);
                    assert_eq!(connection.read().status, 200);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(MEASURED_FOR);
        over.store(true, Ordering::Relaxed);
    });
    count.into_inner() as f64 / begin.elapsed().as_secs_f64()
}

#[test]
fn many_clients_share_a_commit() {
    let folder = Folder::new();
    let Some(server) = on_a_slow_disk(&folder.file("db")) else {
        return;
    };
    rate(&server, 1);
    let (one, many) = (rate(&server, 1), rate(&server, CLIENTS));
    println!("submits a second: {one:.0} of one client, {many:.0} of {CLIENTS}");
    let disk = number("DISK_TAKES_US", DISK_TAKES_US.into()) as f64 / 1e6;
    println!(
        "a submit takes {:.2} ms, the disk {:.2} ms",
        1e3 / one,
        1e3 * disk
    );
    // A commit for each would be 1. Far below what an idle machine reaches: others may be at work.
    assert!(many >= 5.0 * one, "{one:.0} and {many:.0}");
    // Nobody waits for a timer besides.
    assert!(1.0 / one < 0.25, "{:.4} s", 1.0 / one);
}

#[test]
fn a_broadcast_takes_a_few_commits_not_one_for_each_machine() {
    const MACHINES: usize = 200;
    let folder = Folder::new();
    let Some(server) = on_a_slow_disk(&folder.file("db")) else {
        return;
    };
    let mut polls: Vec<Connection> = (0..MACHINES)
        .map(|n| {
            let poll = json!({"instance": format!("{n:08x}"), "seq": 1, "label": "m", "jobs": 1, "wait": 20, "holds": []});
            let mut connection = server.connect();
            let body = poll.to_string();
            connection.send(&request("POST", "/api/v1/agent/poll", "", body.as_bytes()));
            connection
        })
        .collect();
    common::wait_for("all polls are held", || {
        server.metric("sidebike_held_requests") == MACHINES as u64
    });
    let begin = Instant::now();
    let task = server.submit(json!({"machinePattern": "m", "detail": {"command": "true"}}));
    assert_eq!(task["matched"], MACHINES);
    for poll in &mut polls {
        assert_eq!(
            poll.read().data()["start"].as_array().map(Vec::len),
            Some(1)
        );
    }
    let took = begin.elapsed();
    println!("{MACHINES} machines have it after {} ms", took.as_millis());
    assert!(took < Duration::from_millis(1_000), "{took:?}");
}

/// Has tasks run by something that polls and reports as an agent would, without a process.
fn run_all(server: &Server, tasks: u64) {
    let (submitted, done) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = server.connect();
                loop {
                    let n = submitted.fetch_add(1, Ordering::Relaxed);
                    if n >= tasks {
                        return;
                    }
                    while n > done.load(Ordering::Relaxed) + 2_000 {
                        thread::sleep(Duration::from_millis(2));
                    }
                    let command = format!("echo run number {n} of the nightly cleaning");
                    let detail = json!({"command": command, "workspace": "/tmp", "timeout": 60});
                    let task = json!({"name": "CLEAN", "machinePattern": "^m1$", "detail": detail});
                    call(&mut connection, "/api/v1/task", &task);
                }
            });
        }
        let mut connection = server.connect();
        let instance = "0123456789abcdef";
        for seq in 1.. {
            if done.load(Ordering::Relaxed) == tasks {
                return;
            }
            let poll = json!({"instance": instance, "seq": seq, "label": "m1", "jobs": 1_000, "wait": 1, "holds": []});
            let orders = call(&mut connection, "/api/v1/agent/poll", &poll);
            let start = orders["start"].as_array().cloned().unwrap_or_default();
            if start.is_empty() {
                continue;
            }
            let each = |job: &Value, more: Value| {
                let mut one = json!({"execution": job["execution"], "attempt": job["attempt"]});
                let members = more.as_object().cloned().expect("an object");
                one.as_object_mut().expect("an object").extend(members);
                one
            };
            let results = start.iter().map(|job| {
                let end = json!({"state": "succeeded", "exitCode": 0, "durationMs": 5, "stdoutBytes": 23, "stderrBytes": 0, "endedAgoMs": 0});
                each(job, end)
            });
            let pieces = start.iter().map(|job| {
                let data = "aGVsbG8gZnJvbSBhIGNvbW1hbmQuLgo=";
                each(job, json!({"stream": "stdout", "offset": 0, "data": data}))
            });
            let (pieces, results): (Vec<_>, Vec<_>) = (pieces.collect(), results.collect());
            let report = json!({"instance": instance, "pieces": pieces, "results": results});
            call(&mut connection, "/api/v1/agent/done", &report);
            done.fetch_add(start.len() as u64, Ordering::Relaxed);
        }
    });
}

fn call(connection: &mut Connection, path: &str, body: &Value) -> Value {
    let body = body.to_string();
    connection.send(&request("POST", path, "", body.as_bytes()));
    let reply = connection.read();
    if reply
        .header("Connection")
        .is_some_and(|word| word.eq_ignore_ascii_case("close"))
    {
        *connection = connection.again();
    }
    reply.data()
}

#[test]
fn a_file_with_many_tasks_is_read_quickly() {
    let tasks = number("TASKS", TASKS);
    let folder = Folder::new();
    let db = folder.file("db");
    let start = || {
        let mut command = Command::new(binary());
        command
            .args(["server", "--listen", "127.0.0.1:0", "--db", &db])
            .args(["--max-tasks", "100000", "--max-body", "16"])
            .env("RUST_LOG", "warn,sidebike::server=info");
        let begin = Instant::now();
        let server = Server::from_command(command);
        // It answers when it has read its file.
        assert_eq!(server.get("/healthz").status, 200);
        (server, begin.elapsed())
    };
    let (mut server, _) = start();
    let begin = Instant::now();
    run_all(&server, tasks);
    println!(
        "{tasks} tasks run in {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    let before = server.process.figure("VmRSS");
    server.process.kill_9();
    let size = std::fs::metadata(&db).unwrap().len();
    let (mut server, after_kill) = start();
    let (after, peak) = (
        server.process.figure("VmRSS"),
        server.process.figure("VmHWM"),
    );
    server.process.signal(Signal::TERM);
    assert_eq!(server.process.ended().code(), Some(0));
    let (server, after_end) = start();
    println!(
        "{tasks} tasks, {} MiB of file: start in {} ms after a kill, {} ms after an end; memory {} MiB before, {} MiB after, at most {} MiB",
        size >> 20,
        after_kill.as_millis(),
        after_end.as_millis(),
        before >> 10,
        after >> 10,
        peak >> 10
    );
    assert_eq!(server.metric("sidebike_tasks{state=\"succeeded\"}"), tasks);
    assert!(after_kill < Duration::from_secs(3) && after_end < Duration::from_secs(3));
    assert!(
        peak < before * 5 / 2 + (64 << 10),
        "{peak} KiB, {before} KiB before"
    );
}
