//! How a connection ends: the last answer arrives whole, whatever the client has sent that nobody has
//! read, and both ends are closed in order.

mod common;
mod edge;

use common::Server;
use common::http::request;
use edge::{Client, NoAnswer, get};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Nothing here has a reason to take longer.
const SOON: Duration = Duration::from_secs(10);

fn open(server: &Server) -> Client {
    let client = Client::open(server.address);
    client.patience(SOON);
    client
}

/// The answer is sent before the body has been read. Closing then would have the kernel send RST, and
/// that throws away what the client has not read yet.
#[test]
fn who_sends_what_is_not_wanted_can_read_why() {
    const BODY: usize = 24 << 20;
    let server = Server::start();
    let task = "POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\n";
    let length = format!("Content-Length: {BODY}\r\n");
    let many = "X-Header: value\r\n".repeat(100);
    let long = format!("X-Header: {}\r\n", "x".repeat(40_000));
    let target = "x".repeat(20_000);
    let kinds: &[(String, &[u16])] = &[
        (format!("{task}{length}"), &[413]),
        (format!("{task}{length}Connection: close\r\n"), &[413]),
        (format!("{task}{length}Expect: a miracle\r\n"), &[417]),
        (format!("{task}{length}{length}"), &[400]),
        (format!("{task}{length}No colon\r\n"), &[400]),
        (format!("{task}{length}{many}"), &[431]),
        (format!("{task}{length}{long}"), &[431]),
        (format!("POST /nowhere HTTP/1.1\r\n{length}"), &[404, 413]),
        (
            format!("PUT /api/v1/task HTTP/1.1\r\n{length}"),
            &[405, 413],
        ),
        (format!("GET /healthz HTTP/1.1\r\n{length}"), &[200, 413]),
        (format!("GET /{target} HTTP/1.1\r\n{length}"), &[414, 431]),
        (format!("GET /healthz HTTP/3.0\r\n{length}"), &[505]),
    ];
    let part = vec![b' '; 64 * 1024];
    let mut failures = Vec::new();
    for (head, right) in kinds {
        // Like a client that reads only when it has sent what it can: a little, some, or all of it.
        for (parts, pause) in [(1, 20), (24, 0), (24, 100), (BODY / part.len(), 50)] {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.set_write_timeout(Some(SOON)).unwrap();
            stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
            let written = (0..parts).take_while(|_| stream.write_all(&part).is_ok());
            let written = written.count();
            std::thread::sleep(Duration::from_millis(pause));
            let mut client = Client::over(stream);
            match client.answer() {
                Ok(reply) if right.contains(&reply.status) => {}
                other => {
                    let start = &head[..head.len().min(120)];
                    let other = other.map(|reply| reply.status);
                    failures.push(format!("{other:?}, {written} of {parts} parts: {start:?}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_chunked_body_that_is_too_large_can_be_read_about() {
    let server = Server::start();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for round in 0..10 {
        let mut client = open(&server);
        client.send(b"POST /api/v1/task HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..160 {
            client.send(chunk.as_bytes());
        }
        let reply = client.answer();
        let status = reply.as_ref().map(|reply| reply.status).ok();
        assert_eq!(status, Some(413), "round {round}: {reply:?}");
    }
}

/// The same for a client that goes on sending, slowly, for longer than a moment.
#[test]
fn who_goes_on_sending_what_is_not_wanted_can_read_why() {
    const SENDING: Duration = Duration::from_secs(4);
    let server = Server::start();
    let length = "Content-Length: 100000000\r\n\r\n";
    let kinds = [
        (format!("POST /api/v1/task HTTP/1.1\r\n{length}"), 413),
        (format!("POST /api/v1/agent/poll HTTP/1.1\r\n{length}"), 413),
        (format!("POST /nowhere HTTP/1.1\r\n{length}"), 404),
        (
            format!("POST /api/v1/task HTTP/1.1\r\nX: \0\r\n{length}"),
            400,
        ),
    ];
    std::thread::scope(|scope| {
        for (head, status) in &kinds {
            let server = &server;
            scope.spawn(move || {
                let mut client = open(server);
                client.send(head.as_bytes());
                let started = Instant::now();
                while started.elapsed() < SENDING && client.send(&[b' '; 1_000]) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                let reply = client.answer().map(|reply| reply.status);
                let took = started.elapsed();
                assert_eq!(reply, Ok(*status), "after {took:?}: {head:?}");
            });
        }
    });
}

#[test]
fn a_large_only_answer_arrives_whole() {
    large_answers_arrive_whole(1);
}

#[test]
fn large_pipelined_answers_arrive_whole() {
    large_answers_arrive_whole(8);
}

/// A large answer is on its way to a client that reads slowly, and has sent more than was wanted.
fn large_answers_arrive_whole(times: usize) {
    let server = Server::start();
    let target = "/docs/operations";
    let whole = server.get(target);
    assert!(whole.body.len() > 20_000, "a large page");
    let close = request("GET", target, "Connection: close\r\n", b"");
    for behind in [0, 10, 3_000, 300_000] {
        let stream = TcpStream::connect(server.address).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4_096).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        let first = get(target).repeat(times - 1);
        let bytes = [first, close.clone(), vec![b'x'; behind]].concat();
        let mut writer = stream.try_clone().unwrap();
        let sent = std::thread::spawn(move || drop(writer.write_all(&bytes)));
        std::thread::sleep(Duration::from_millis(150));
        let mut client = Client::over(stream);
        for n in 1..=times {
            let reply = client.answer();
            let at = format!("answer {n} of {times} with {behind} bytes behind");
            let reply = reply.unwrap_or_else(|why| panic!("{at}: {why:?}"));
            assert_eq!((reply.status, &reply.body), (200, &whole.body), "{at}");
        }
        let (more, end) = client.answers(false);
        assert_eq!((more.len(), end), (0, NoAnswer::Closed));
        sent.join().unwrap();
    }
}

/// Both ends are closed in order: the client sees FIN, not RST, whatever it has sent before.
#[test]
fn a_connection_ends_with_fin() {
    let server = Server::start();
    let close = "Connection: close\r\n";
    for behind in ["", "some more bytes", "GET /nowhere HTTP/1.1\r\n\r\n"] {
        for _ in 0..50 {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut bytes = request("GET", "/healthz", close, b"");
            bytes.extend_from_slice(behind.as_bytes());
            stream.write_all(&bytes).unwrap();
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            assert!(read.is_ok(), "{read:?} with {behind:?} behind");
            let text = String::from_utf8_lossy(&answer);
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
