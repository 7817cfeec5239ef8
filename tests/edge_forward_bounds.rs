//! What forwarded requests may cost: no thread for those that are held, and no memory for what one side sends and the
//! other does not take.
#![cfg(all(feature = "server", feature = "agent"))]

mod bystander;
mod common;
mod edge;
mod relay;

use bystander::alone;
use common::http::request;
use common::{Server, id, wait_for, wait_until};
use edge::{Client, get};
use relay::{Other, PATIENCE, limits, played, relay, relay_with};
use rustix::net::sockopt;
use serde_json::json;
use sidebike::server::http::EdgeLimits;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const HELD: usize = 200;
/// What is sent one way.
const LARGE: u64 = 100 << 20;
/// What may be on its way between two that do not read: buffers of four sockets of the kernel, as large as they grow.
const ON_THE_WAY: u64 = 40 << 20;
/// What this process may grow by meanwhile, in KiB: what is relayed is a few pieces.
const GROWTH_KIB: u64 = 8 * 1024;
/// What each held one may take of it, in KiB, in a build that is not optimized, with the test's own end.
const HELD_KIB: u64 = 24;

/// A figure of this process.
fn figure(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
    word.and_then(|word| word.parse().ok()).expect("a number")
}

/// Fails if this process is busy, for instance with being told again and again what it cannot change.
fn is_quiet() {
    let busy = || {
        let usage = std::fs::read_to_string("/proc/self/stat").unwrap();
        let rest = usage.rsplit(')').next().unwrap_or_default();
        let ticks = rest.split_whitespace().skip(11).take(2);
        ticks
            .filter_map(|ticks| ticks.parse::<u64>().ok())
            .sum::<u64>()
    };
    // Of a hundred in a second.
    let before = busy();
    thread::sleep(Duration::from_secs(1));
    let ticks = busy() - before;
    assert!(
        ticks < 30,
        "{ticks} ticks of CPU in a second without anything to do"
    );
}

#[test]
fn requests_that_are_held_elsewhere_take_no_thread() {
    let _alone = alone();
    let server = Server::start();
    let task = json!({"machinePattern": "^nobody$", "detail": {"command": "true"}});
    let task = server.post("/api/v1/task", &task).data();
    let target = format!("/api/v1/task/{}", id(&task));
    let (address, edge) = relay_with(server.address, None, limits());
    let wait = get(&format!("{target}?wait=60s"));
    let mut clients: Vec<Client> = (0..HELD).map(|_| Client::open(address)).collect();
    let mut first = Client::open(address);
    first.send(&get("/healthz"));
    first.answer().expect("an answer");
    let (threads, memory) = (figure("Threads"), figure("VmRSS"));
    for client in &mut clients {
        client.send(&wait);
    }
    wait_for("all are held", || edge.forwarded() == HELD);
    assert_eq!(figure("Threads"), threads);
    is_quiet();
    let grown = figure("VmRSS").saturating_sub(memory);
    assert!(grown < HELD_KIB * HELD as u64, "{grown} KiB");
    // Others go on beside them.
    first.send(&get("/healthz"));
    assert_eq!(first.answer().expect("an answer").status, 200);
    let end = request("POST", &format!("{target}/cancel"), "", b"");
    first.send(&end);
    first.answer().expect("an answer").data();
    for client in &mut clients {
        assert_eq!(client.answer().expect("an answer").data()["id"], task["id"]);
    }
    assert_eq!(figure("Threads"), threads);
    wait_for("nothing is forwarded", || edge.forwarded() == 0);
}

/// What is sent, again and again; a prime number of bytes, so that no piece of another size passes for the next one.
const PATTERN_BYTES: usize = 65_537;

fn pattern() -> Vec<u8> {
    let byte = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (0..PATTERN_BYTES as u64).map(byte).collect()
}

/// Writes [`LARGE`] bytes, in chunks or not, and counts them; as far as they are taken.
fn write_large(mut to: &TcpStream, in_chunks: bool, written: &AtomicU64) {
    let (pattern, mut at) = (pattern(), 0);
    while at < LARGE {
        let left = usize::try_from(LARGE - at).unwrap();
        let piece = &pattern[..left.min(PATTERN_BYTES)];
        if in_chunks {
            let size = format!("{:x}\r\n", piece.len());
            to.write_all(size.as_bytes()).expect("it is taken");
        }
        to.write_all(piece).expect("it is taken");
        if in_chunks {
            to.write_all(b"\r\n").expect("it is taken");
        }
        at += piece.len() as u64;
        written.store(at, Ordering::Relaxed);
    }
    if in_chunks {
        to.write_all(b"0\r\n\r\n").expect("it is taken");
    }
}

/// Reads what was written, in chunks or not, and compares it.
fn read_large(other: &mut Other, in_chunks: bool) {
    let (pattern, mut at) = (pattern(), 0);
    let mut next = 0;
    while at < LARGE {
        let mut left = match in_chunks {
            true => {
                let line = other.read_to(b"\r\n");
                usize::from_str_radix(line.trim(), 16).expect("a size")
            }
            false => usize::try_from(LARGE).unwrap(),
        };
        at += left as u64;
        while left > 0 {
            let some = other.read_some(left.min(PATTERN_BYTES - next));
            assert!(some == pattern[next..next + some.len()], "near {at}");
            next = (next + some.len()) % PATTERN_BYTES;
            left -= some.len();
        }
        if in_chunks {
            assert_eq!(other.read_some(2), b"\r\n");
        }
    }
}

/// Waits until no more is written, and says how much was.
fn stalled(written: &AtomicU64) -> u64 {
    let mut before = 0;
    wait_until("no more is taken", || {
        thread::sleep(Duration::from_millis(500));
        let now = written.load(Ordering::Relaxed);
        let is_stalled = now > 0 && now == std::mem::replace(&mut before, now);
        is_stalled.then_some(now)
    })
}

fn framing(in_chunks: bool) -> String {
    match in_chunks {
        true => "Transfer-Encoding: chunked".into(),
        false => format!("Content-Length: {LARGE}"),
    }
}

#[test]
fn an_answer_is_no_faster_than_its_reader() {
    let _alone = alone();
    for in_chunks in [false, true] {
        let written = Arc::new(AtomicU64::new(0));
        let count = written.clone();
        let other = played(move |mut other| {
            other.head();
            other.say(&format!(
                "HTTP/1.1 200 OK\r\n{}\r\n\r\n",
                framing(in_chunks)
            ));
            write_large(&other.0, in_chunks, &count);
            other.wait_for_end();
        });
        let stream = TcpStream::connect(relay(other)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let memory = figure("VmRSS");
        let mut client = Other(stream, Vec::new());
        client.say("GET / HTTP/1.1\r\n\r\n");
        let taken = stalled(&written);
        assert!(taken < ON_THE_WAY, "{taken} bytes were taken of {LARGE}");
        is_quiet();
        let head = client.head();
        assert!(head.contains(&framing(in_chunks)), "{head}");
        read_large(&mut client, in_chunks);
        let grown = figure("VmRSS").saturating_sub(memory);
        assert!(grown < GROWTH_KIB, "{grown} KiB");
    }
}

#[test]
fn a_body_is_no_faster_than_its_reader() {
    let _alone = alone();
    for in_chunks in [false, true] {
        let (may_read, reads) = std::sync::mpsc::channel();
        let reads = std::sync::Mutex::new(reads);
        let other = played(move |mut other| {
            let head = other.head();
            assert!(head.contains(&framing(in_chunks)), "{head}");
            reads.lock().unwrap().recv().expect("it goes on");
            read_large(&mut other, in_chunks);
            other.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            other.wait_for_end();
        });
        let mut client = Client::open(relay(other));
        let memory = figure("VmRSS");
        client.send(format!("PUT / HTTP/1.1\r\n{}\r\n\r\n", framing(in_chunks)).as_bytes());
        let written = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| write_large(&client.stream, in_chunks, &written));
            let taken = stalled(&written);
            assert!(taken < ON_THE_WAY, "{taken} bytes were taken of {LARGE}");
            is_quiet();
            may_read.send(()).unwrap();
        });
        assert_eq!(client.answer().expect("an answer").text(), "ok");
        let grown = figure("VmRSS").saturating_sub(memory);
        assert!(grown < GROWTH_KIB, "{grown} KiB");
    }
}

#[test]
fn a_broken_connection_that_nobody_reads_costs_nothing() {
    let _alone = alone();
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let other = played(move |mut other| {
        other.head();
        other.say("HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n");
        other
            .0
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        while let Ok(bytes) = other.0.write(&[b'x'; 50_000]) {
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        // With something unread, so by a reset, with much of the answer on its way.
        sockopt::set_socket_linger(&other.0, Some(Duration::ZERO)).unwrap();
    });
    let (address, edge) = relay_with(other, None, limits());
    let mut client = Client::open(address);
    client.send(&get("/"));
    stalled(&written);
    is_quiet();
    assert_eq!(edge.forwarded(), 1);
    // It is noticed as soon as its client reads.
    let mut buffer = vec![0; 1 << 20];
    while client.stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
    wait_for("it is over", || edge.forwarded() == 0);
}

/// More than a busy machine takes for all that comes before.
const STALL_MS: u64 = 4_000;

#[test]
fn who_stalls_is_given_up() {
    let _alone = alone();
    let other = played(|mut other| {
        let head = other.head();
        if head.starts_with("GET") {
            other.say("HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n");
            while other.0.write(&[b'x'; 50_000]).is_ok() {}
        } else if head.contains("Content-Length: 9\r\n") {
            other.wait_for_end();
        } else {
            // It takes nothing.
            loop {
                thread::park();
            }
        }
    });
    let brief = EdgeLimits {
        stall_ms: STALL_MS,
        ..limits()
    };
    let (address, edge) = relay_with(other, None, brief);
    let open = |sent: &[u8]| {
        let mut client = Client::open(address);
        client.send(sent);
        client
    };
    let _reads_nothing = open(&get("/"));
    let sends_nothing = open(b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhello");
    let mut sends_all = open(b"PUT / HTTP/1.1\r\nContent-Length: 900000000\r\n\r\n");
    sends_all
        .stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    while sends_all.stream.write(&[b'x'; 50_000]).is_ok() {}
    assert_eq!(edge.forwarded(), 3);
    is_quiet();
    let started = Instant::now();
    let reply = sends_all.answer().expect("an answer");
    assert_eq!(reply.status, 502);
    assert!(reply.msg().contains("it took too long"), "{}", reply.msg());
    let mut sends_nothing = sends_nothing;
    assert!(sends_nothing.is_ended());
    assert!(started.elapsed() < Duration::from_millis(STALL_MS) + Duration::from_secs(20));
    // It may have taken enough for one more period at first.
    wait_for("all are given up", || edge.forwarded() == 0);
}

#[test]
fn at_the_limit_those_that_are_held_stay() {
    let _alone = alone();
    let other = played(|mut other| {
        other.head();
        other.wait_for_end();
    });
    let few = EdgeLimits {
        max_connections: 12,
        ..limits()
    };
    let (address, edge) = relay_with(other, None, few);
    assert_eq!(edge.most_forwarded(), 8);
    let put = b"PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n";
    let mut held: Vec<Client> = (0..8).map(|_| Client::open(address)).collect();
    for client in &mut held {
        client.send(&request("POST", "/", "", b"no"));
    }
    wait_for("all are held", || edge.forwarded() == 8);
    let idle: Vec<Client> = (0..40).map(|_| Client::open(address)).collect();
    for _ in 0..20 {
        let mut client = Client::open(address);
        client.send(put);
        let reply = client.answer().expect("an answer");
        assert_eq!(reply.status, 503);
    }
    assert_eq!(edge.forwarded(), 8);
    drop((idle, held));
    wait_for("they are gone", || edge.forwarded() == 0);
}
