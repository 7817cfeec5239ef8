//! What a connection does between requests: pipelined ones are answered in order, a client that has sent
//! FIN reads its answers, an answer is never cut by bytes that nobody has read, and nothing waits for a
//! timer that need not.

mod common;
mod edge;

use common::Server;
use common::http::{Reply, request};
use edge::{Client, NoAnswer, exists, get, is_pong, ping, submit, task_body};
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

fn pong(client: &mut Client, label: &str) {
    let reply = client.answer();
    let is_answered = reply.as_ref().is_ok_and(|reply| is_pong(reply, label));
    assert!(is_answered, "{label}: {reply:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    const REQUESTS: usize = 200;
    let server = Server::start();
    let name = |n: usize| format!("piped-{n:03}");
    let chunked = |n: usize| {
        let body = task_body(&name(n));
        let lines = "Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let size = body.len();
        format!("POST /api/v1/task HTTP/1.1\r\n{lines}{size:x}\r\n{body}\r\n0\r\n\r\n").into_bytes()
    };
    let bytes: Vec<u8> = (0..REQUESTS)
        .flat_map(|n| match n % 5 {
            0 => ping(&name(n)),
            1 => submit(&name(n)),
            2 => chunked(n),
            3 => request("HEAD", "/healthz", "", b""),
            _ => get(&format!("/nowhere/{}", name(n))),
        })
        .collect();
    // At once, in parts that end anywhere, and byte for byte.
    for (round, size) in [bytes.len(), 997, 61, 1].into_iter().enumerate() {
        let mut client = open(&server);
        let mut writer = client.stream.try_clone().unwrap();
        let parts = bytes.clone();
        let sent = std::thread::spawn(move || {
            parts
                .chunks(size)
                .try_for_each(|part| writer.write_all(part))
        });
        for n in 0..REQUESTS {
            let at = || format!("number {n} in parts of {size}");
            if n % 5 == 3 {
                let reply = client.answer_to_head();
                assert!(reply.is_ok_and(|reply| reply.status == 200), "{}", at());
                continue;
            }
            let reply = client
                .answer()
                .unwrap_or_else(|why| panic!("{}: {why:?}", at()));
            let right = match n % 5 {
                0 => is_pong(&reply, &name(n)),
                1 | 2 if round == 0 => reply.status == 200 && reply.data()["id"] == *name(n),
                // The id is there already.
                1 | 2 => reply.text().contains(&name(n)),
                _ => reply.status == 404 && reply.text().contains(&name(n)),
            };
            assert!(right, "{}: {reply:?}", at());
        }
        sent.join().unwrap().expect("the server reads all of it");
    }
}

#[test]
fn who_sends_fin_behind_several_requests_reads_all_answers() {
    let server = Server::start();
    for count in 1..=6 {
        let labels: Vec<String> = (0..count).map(|n| format!("fin-{count}-{n}")).collect();
        let bytes: Vec<u8> = labels.iter().flat_map(|label| ping(label)).collect();
        let mut client = open(&server);
        client.send(&bytes);
        client.finish();
        for label in &labels {
            pong(&mut client, label);
        }
        assert!(client.is_ended());
    }
    // As two packets, FIN with the second; and FIN alone, later.
    for late in [false, true] {
        let mut client = open(&server);
        client.send(&ping("fin-first"));
        pong(&mut client, "fin-first");
        client.send(&submit(if late { "fin-late" } else { "fin-soon" }));
        if late {
            std::thread::sleep(Duration::from_millis(30));
        }
        client.finish();
        assert_eq!(client.answer().map(|reply| reply.status).ok(), Some(200));
        assert!(client.is_ended());
    }
    // A request that FIN breaks off spoils none before it.
    let mut client = open(&server);
    let half = submit("fin-half");
    client.send(&[ping("fin-whole"), half[..half.len() - 5].to_vec()].concat());
    client.finish();
    pong(&mut client, "fin-whole");
    let (answers, _) = client.answers(false);
    assert!(
        answers.iter().all(|reply| reply.status == 400),
        "{answers:?}"
    );
    assert!(!exists(&server, "fin-half"));
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
        for _ in 0..40 {
            client.send(chunk.as_bytes());
        }
        let reply = client.answer();
        let status = reply.as_ref().map(|reply| reply.status).ok();
        assert_eq!(status, Some(413), "round {round}: {reply:?}");
    }
}

#[test]
fn who_expects_100_continue_gets_it() {
    let server = Server::start();
    for (n, chunked) in [(0, false), (1, true), (2, false), (3, true)] {
        let name = format!("expects-{n}");
        let body = task_body(&name);
        let framing = match chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {}", body.len()),
        };
        let expect = if n < 2 {
            "100-continue"
        } else {
            "100-Continue"
        };
        let mut client = open(&server);
        let head = format!(
            "POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\nExpect: {expect}\r\n{framing}\r\n\r\n"
        );
        let asked = Instant::now();
        client.send(head.as_bytes());
        let interim = client.answer().expect("an interim answer");
        assert_eq!(interim.status, 100, "{framing}");
        // RFC 9110, 8.6: no Content-Length in a 1xx answer.
        let length = interim.header("Content-Length");
        assert_eq!(length, None, "{:?}", interim.headers);
        assert!(asked.elapsed() < Duration::from_millis(500));
        let bytes = match chunked {
            true => format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            false => body,
        };
        client.send(bytes.as_bytes());
        let reply = client.answer().expect("the answer");
        assert_eq!(reply.data()["id"], *name);
        client.send(&ping("behind"));
        pong(&mut client, "behind");
    }
    // Who does not wait for it gets one answer in any case.
    let body = task_body("impatient");
    let expect = "Expect: 100-continue\r\n";
    let mut client = open(&server);
    client.send(&request("POST", "/api/v1/task", expect, body.as_bytes()));
    let mut reply = client.answer().expect("an answer");
    if reply.status == 100 {
        reply = client.answer().expect("an answer");
    }
    assert_eq!(reply.data()["id"], "impatient");
}

#[test]
fn http_1_0_is_kept_alive_when_it_asks() {
    let server = Server::start();
    let connection = |reply: &Reply| {
        let value = reply.header("Connection").unwrap_or_default();
        value.to_ascii_lowercase()
    };
    let mut client = open(&server);
    for _ in 0..3 {
        client.send(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let reply = client.answer().expect("an answer");
        assert_eq!((reply.status, &*connection(&reply)), (200, "keep-alive"));
    }
    client.send(b"GET /healthz HTTP/1.0\r\n\r\n");
    let reply = client.answer().expect("an answer");
    assert_eq!(reply.status, 200);
    assert_ne!(connection(&reply), "keep-alive");
    assert!(client.is_ended());
    // A client of version 1.0 knows no chunks.
    let mut client = open(&server);
    let body = task_body("old-client");
    let head = format!(
        "POST /api/v1/task HTTP/1.0\r\nContent-Length: {}\r\n",
        body.len()
    );
    client.send(format!("{head}Connection: Keep-Alive\r\n\r\n{body}").as_bytes());
    let reply = client.answer().expect("an answer");
    assert_eq!(reply.data()["id"], "old-client");
    assert_eq!(connection(&reply), "keep-alive");
}

#[test]
fn empty_lines_before_a_request_are_skipped() {
    let server = Server::start();
    let mut client = open(&server);
    client.send(&[b"\r\n".to_vec(), ping("one"), b"\r\n".to_vec(), ping("two")].concat());
    pong(&mut client, "one");
    pong(&mut client, "two");
    // For ever is too long.
    let mut client = open(&server);
    client.send(&b"\r\n".repeat(100_000));
    client.finish();
    let (answers, end) = client.answers(false);
    assert!(
        answers.iter().all(|reply| reply.status >= 400),
        "{answers:?}"
    );
    assert_ne!(end, NoAnswer::TimedOut);
}

/// A head that comes in pieces is answered when it is whole, not when somebody looks again.
#[test]
fn a_request_in_pieces_is_answered_without_delay() {
    let server = Server::start();
    let mut took = Vec::new();
    let empty =
        b"POST /api/v1/task HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n";
    for round in 0..54 {
        let bytes = match round % 3 {
            0 => ping("pieces"),
            1 => submit(&format!("pieces-{round}")),
            _ => empty.to_vec(),
        };
        // Byte for byte, in two pieces, and in three with pauses.
        let (size, pause) = match round / 3 % 3 {
            0 => (1, Duration::from_micros(100)),
            1 => (bytes.len() / 2 + 1, Duration::from_millis(30)),
            _ => (bytes.len() / 3 + 1, Duration::from_millis(120)),
        };
        let mut client = open(&server);
        // On a new connection, on a used one, and with the first piece behind another request.
        let mut before = match round / 9 % 3 {
            0 => Vec::new(),
            _ => ping("before"),
        };
        if round / 9 % 3 == 1 {
            client.send(&before);
            pong(&mut client, "before");
            before.clear();
        }
        for (n, piece) in bytes.chunks(size).enumerate() {
            if n == 0 && !before.is_empty() {
                client.send(&[&before, piece].concat());
                pong(&mut client, "before");
                continue;
            }
            if n > 0 {
                std::thread::sleep(pause);
            }
            client.send(piece);
        }
        let sent = Instant::now();
        client.answer().expect("an answer");
        took.push(sent.elapsed());
    }
    took.sort();
    eprintln!("answered within {:?} .. {:?}", took[0], took[53]);
    // A tenth may be late on a busy machine.
    assert!(took[48] < Duration::from_millis(150), "{took:?}");
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

/// A large answer is on its way to a client that reads slowly, and has sent more than was wanted.
#[test]
fn a_large_last_answer_arrives_whole() {
    let server = Server::start();
    let target = "/";
    let whole = server.get(target);
    assert!(whole.body.len() > 20_000, "a large page");
    let close = request("GET", target, "Connection: close\r\n", b"");
    for behind in [0, 10, 3_000, 300_000] {
        for times in [1, 8] {
            let mut stream = TcpStream::connect(server.address).unwrap();
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
