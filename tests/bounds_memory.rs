//! Answers are made when there is memory for them: many slow readers of something large do not fill the server's.

mod common;

use common::http::{Connection, request};
use common::{Server, id, task, wait_for};
use serde_json::Value;

/// Machines of the task, the output of each in bytes, and slow readers.
const MACHINES: usize = 10;
const OUTPUT: usize = 900_000;
const READERS: usize = 12;

/// A finished task with a lot of output.
fn loud(server: &Server) -> Value {
    let line = format!("head -c {OUTPUT} /dev/zero | tr '\\0' x");
    let submitted = server.submit(task(&line));
    server.when(id(&submitted), "succeeded", MACHINES as u64)
}

#[test]
fn output_of_many_machines_is_sent_one_by_one() {
    let server = Server::start();
    let _agents = server.agents(MACHINES, "m1");
    let finished = loud(&server);
    let target = format!("/api/v1/task/{}/output", id(&finished));
    let bytes = request("GET", &target, "", b"");
    let before = server.process.figure("VmRSS");
    let mut readers: Vec<Connection> = (0..READERS).map(|_| server.connect()).collect();
    for reader in &mut readers {
        reader.send(&bytes);
    }
    // Each has its answer's head and reads no further.
    wait_for("all of them are being answered", || {
        server.metric("sidebike_requests_total{status=\"2xx\"}") >= READERS as u64
    });
    let peak = server.process.figure("VmRSS").saturating_sub(before) * 1024;
    let whole = READERS * MACHINES * OUTPUT;
    assert!(
        peak < whole as u64 / 4,
        "{peak} bytes for {READERS} readers of {whole} in all"
    );
    let all = readers[0].rest();
    let head = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let all = &all[head..];
    let counted = all.iter().filter(|byte| **byte == b'x').count();
    assert_eq!(counted, MACHINES * OUTPUT);
    // Replicas on one host are told apart by their instances.
    let text = String::from_utf8_lossy(all).into_owned();
    let is_named = |line: &&str| line.starts_with("m1/") && line.contains(" | x");
    assert_eq!(text.split('\n').filter(is_named).count(), MACHINES);
}

#[test]
fn those_who_wait_for_a_task_are_answered_one_after_the_other() {
    const WAITERS: usize = 60;
    let server = Server::with(&["--max-in-flight", "32"]);
    let _agents = server.agents(2, "m1");
    let line = format!("sleep 2; head -c {OUTPUT} /dev/zero | tr '\\0' x");
    let submitted = server.submit(task(&line));
    let target = format!("/api/v1/task/{}?wait=60s", id(&submitted));
    let bytes = request("GET", &target, "Connection: close\r\n", b"");
    let mut waiters: Vec<Connection> = (0..WAITERS).map(|_| server.connect()).collect();
    for waiter in &mut waiters {
        waiter.send(&bytes);
    }
    let before = server.process.figure("VmRSS");
    let mut answered = 0;
    let mut peak = 0;
    for waiter in &mut waiters {
        peak = peak.max(server.process.figure("VmRSS"));
        answered += usize::from(
            waiter
                .try_read(true)
                .is_some_and(|reply| reply.status == 200),
        );
    }
    assert!(answered > 0, "nobody was answered");
    let peak = peak.saturating_sub(before) >> 10;
    assert!(peak < 100, "{peak} MiB for {WAITERS} answers of 3 MiB");
}

#[test]
fn what_slow_readers_read_is_not_kept_for_them() {
    const TASKS: usize = 5;
    // Room for the output of one task: the next one pushes it out.
    let server = Server::with(&["--max-output", "10"]);
    let _agents = server.agents(MACHINES, "m1");
    let mut readers = Vec::new();
    let mut first = 0;
    for n in 0..TASKS {
        let finished = loud(&server);
        let target = format!("/api/v1/task/{}/output", id(&finished));
        let mut reader = server.connect();
        reader.send(&request("GET", &target, "", b""));
        reader.wait_for_some();
        readers.push(reader);
        if n == 0 {
            first = server.process.figure("RssAnon");
        }
    }
    let grown = server.process.figure("RssAnon").saturating_sub(first) * 1024;
    let of_a_task = (MACHINES * OUTPUT) as u64;
    assert!(
        grown < 2 * of_a_task,
        "{grown} bytes more for the readers of {TASKS} tasks of {of_a_task}"
    );
    let last = readers.pop().unwrap().rest();
    let head = last.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let counted = last[head..].iter().filter(|byte| **byte == b'x').count();
    assert_eq!(counted, MACHINES * OUTPUT);
    let rest = readers[0].rest();
    let text = String::from_utf8_lossy(&rest);
    assert!(text.starts_with("HTTP/1.1 200 "));
    assert!(text.contains(" | … the rest is no longer kept …\n"));
}
