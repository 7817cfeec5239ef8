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
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

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
    assert_eq!(edge.forwarded(), 0);
}

/// The byte at this place of what is sent.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Writes [`LARGE`] bytes, in chunks or not, and counts them; as far as they are taken.
fn write_large(mut to: &TcpStream, in_chunks: bool, written: &AtomicU64) {
    let mut at = 0;
    while at < LARGE {
        let piece: Vec<u8> = (at..LARGE.min(at + 50_000)).map(byte).collect();
        let framed = match in_chunks {
            true => [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat(),
            false => piece,
        };
        to.write_all(&framed).expect("it is taken");
        at = LARGE.min(at + 50_000);
        written.store(at, Ordering::Relaxed);
    }
    if in_chunks {
        to.write_all(b"0\r\n\r\n").expect("it is taken");
    }
}

/// Reads what was written, in chunks or not, and compares it.
fn read_large(mut from: &TcpStream, mut unread: Vec<u8>, in_chunks: bool) {
    let mut at = 0;
    let mut chunk = if in_chunks { 0 } else { LARGE };
    let mut buffer = vec![0; 64 * 1024];
    while at < LARGE {
        while in_chunks && chunk == 0 {
            let Some(end) = unread.windows(2).skip(2).position(|two| two == b"\r\n") else {
                break;
            };
            let line: Vec<u8> = unread.drain(..end + 4).collect();
            let size = std::str::from_utf8(&line).unwrap().trim();
            chunk = u64::from_str_radix(size, 16).expect("a size");
        }
        let some = unread.len().min(chunk as usize);
        for got in unread.drain(..some) {
            assert_eq!(got, byte(at), "at {at}");
            at += 1;
        }
        chunk -= some as u64;
        if at < LARGE && (chunk > 0 || unread.len() < 4) {
            let read = from.read(&mut buffer).expect("more comes");
            assert!(read > 0, "it ends at {at}");
            unread.extend_from_slice(&buffer[..read]);
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
        let head = client.head();
        assert!(head.contains(&framing(in_chunks)), "{head}");
        let mut unread = std::mem::take(&mut client.1);
        if in_chunks {
            unread.splice(..0, *b"\r\n");
        }
        read_large(&client.0, unread, in_chunks);
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
            let mut unread = std::mem::take(&mut other.1);
            if in_chunks {
                unread.splice(..0, *b"\r\n");
            }
            read_large(&other.0, unread, in_chunks);
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
            may_read.send(()).unwrap();
        });
        assert_eq!(client.answer().expect("an answer").text(), "ok");
        let grown = figure("VmRSS").saturating_sub(memory);
        assert!(grown < GROWTH_KIB, "{grown} KiB");
    }
}
