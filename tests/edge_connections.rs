//! What a connection does between requests: pipelined ones are answered in order, a client that has sent
//! FIN reads its answers, and nothing waits for a timer that need not.

mod common;
mod edge;

use common::Server;
use common::http::{Reply, request};
use edge::{Client, NoAnswer, exists, get, is_pong, ping, submit, task_body};
use std::io::Write;
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

/// It is answered before its body has come; a small body is then thrown away, and what is behind it is the
/// next request. A client that waits for 100 Continue may have left the body out: nothing is behind it.
#[test]
fn who_is_turned_away_before_a_small_body_has_come_keeps_the_connection() {
    let server = Server::start();
    let head =
        |lines: &str| format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n");
    let mut client = open(&server);
    for body in [
        "AAA",
        "BBBB\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let length = format!("Content-Length: {}", body.len());
        client.send(head(&length).as_bytes());
        assert_eq!(client.answer().expect("an answer").status, 404, "{body:?}");
        let (first, second) = body.split_at(body.len() / 2);
        client.send(first.as_bytes());
        client.send(&[second.as_bytes(), &ping("behind")].concat());
        pong(&mut client, "behind");
    }
    client.send(head("Content-Length: 3\r\nExpect: 100-continue").as_bytes());
    assert_eq!(client.answer().expect("an answer").status, 404);
    client.send(&ping("no request"));
    assert!(client.is_ended());

    let mut client = open(&server);
    client.send(head("Content-Length: 3").as_bytes());
    client.finish();
    assert_eq!(client.answer().expect("an answer").status, 404);
    assert!(client.is_ended(), "a body that never came");
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

/// Where a request comes in pieces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comes {
    First,
    Later,
    /// With its first piece sent together with a whole request.
    BehindAnother,
}

#[test]
fn a_request_in_pieces_is_answered_without_delay() {
    in_pieces(Comes::First);
    in_pieces(Comes::Later);
}

#[test]
fn a_request_in_pieces_behind_another_is_answered_without_delay() {
    in_pieces(Comes::BehindAnother);
}

/// A head that comes in pieces is answered when it is whole, not when somebody looks again.
fn in_pieces(where_it_comes: Comes) {
    let server = Server::start();
    let mut took = Vec::new();
    let empty =
        b"POST /api/v1/task HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n";
    for round in 0..27 {
        let bytes = match round % 3 {
            0 => ping("pieces"),
            1 => submit(&format!("pieces-{round}")),
            _ => empty.to_vec(),
        };
        // Byte for byte, in two pieces, and in three with pauses.
        let (size, pause) = match round / 3 % 3 {
            0 => (1, Duration::from_micros(100)),
            1 => (bytes.len() / 2 + 1, Duration::from_millis(30)),
            _ => (bytes.len() / 3 + 1, Duration::from_millis(310)),
        };
        let mut client = open(&server);
        if where_it_comes == Comes::Later {
            client.send(&ping("before"));
            pong(&mut client, "before");
        }
        for (n, piece) in bytes.chunks(size).enumerate() {
            if n == 0 && where_it_comes == Comes::BehindAnother {
                client.send(&[&ping("before"), piece].concat());
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
    eprintln!("answered within {:?} .. {:?}", took[0], took[26]);
    // A tenth may be late on a busy machine.
    assert!(took[23] < Duration::from_millis(150), "{took:?}");
}
