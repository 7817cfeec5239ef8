//! Requests that another server answers: the edge passes them on, with its own sockets and threads.
//!
//! The edge runs in this process, with a service that forwards everything. Behind it is the real server, or one that is
//! played by the test, byte for byte.
#![cfg(feature = "server")]

mod common;
mod edge;
mod relay;

use common::http::{Reply, request};
use common::{Server, id, wait_for, wait_until};
use edge::{Client, NoAnswer, Random, get, is_pong, ping, setting};
use relay::{OTHER, Other, PATIENCE, limits, nowhere, played, relay, relay_with};
use rustix::net::listen;
use serde_json::json;
use sidebike::server::http::EdgeLimits;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

fn answered(client: &mut Client) -> Reply {
    client.answer().expect("an answer")
}

#[test]
fn the_real_server_answers_through_it() {
    let server = Server::start();
    let mut client = Client::open(relay(server.address));
    for n in 0..200 {
        client.send(&ping(&format!("n{n}")));
        assert!(is_pong(&answered(&mut client), &format!("n{n}")));
    }
    // Pipelined, of all kinds: each answer in its place, on one connection.
    let body = json!({"machinePattern": "^nobody$", "detail": {"command": "true"}}).to_string();
    let chunked = format!(
        "POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{:x};e=f\r\n{body}\r\n0\r\nT: u\r\n\r\n",
        body.len()
    );
    let mut all = request("POST", "/api/v1/task", "", body.as_bytes());
    all.extend_from_slice(chunked.as_bytes());
    all.extend_from_slice(&get("/nowhere"));
    all.extend_from_slice(&request("HEAD", "/healthz", "", b""));
    client.send(&all);
    assert!(!id(&answered(&mut client).data()).is_empty());
    let task = answered(&mut client).data();
    assert_eq!(answered(&mut client).status, 404);
    assert_eq!(client.answer_to_head().unwrap().status, 200);
    // Held, and answered when it ends.
    let target = format!("/api/v1/task/{}", id(&task));
    client.send(&get(&format!("{target}?wait=60s")));
    client.patience(Duration::from_millis(300));
    assert_eq!(client.answer().unwrap_err(), NoAnswer::TimedOut);
    server.post(&format!("{target}/cancel"), &json!(null));
    client.patience(PATIENCE);
    assert_eq!(answered(&mut client).data()["id"], task["id"]);
    client.send(&ping("again"));
    assert!(is_pong(&answered(&mut client), "again"));
}

#[test]
fn what_goes_on_is_one_request_however_it_came() {
    let other = played(|mut other| {
        let head = other.head();
        let body = match head.contains("Transfer-Encoding: chunked\r\n") {
            true => other.read_to(b"0\r\n\r\n"),
            false if head.contains("Content-Length: 5\r\n") => other.read_to(b"hello"),
            false => String::new(),
        };
        let seen = json!({"head": head, "body": body}).to_string();
        other.say(&format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{seen}",
            seen.len()
        ));
    });
    let address = relay(other);
    let seen = |raw: &str, cut: usize| {
        let mut client = Client::open(address);
        client.send(&raw.as_bytes()[..cut]);
        if cut < raw.len() {
            thread::sleep(Duration::from_millis(1));
        }
        client.send(&raw.as_bytes()[cut..]);
        let seen = answered(&mut client).json();
        let text = |name: &str| seen[name].as_str().expect("text").to_owned();
        (text("head"), text("body"))
    };
    let raw = "POST /a?b=c HTTP/1.1\r\nHost: h\r\nOrigin: o\r\nAuthorization: Bearer t\r\nTest-Secret: s\r\n\
               test-forwarded: forged\r\nConnection: x\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n\
               3;a=b\r\nhel\r\n02\r\nlo\r\n0\r\nTrailer: t\r\n\r\n";
    for cut in 0..=raw.len() {
        let (head, body) = seen(raw, cut);
        let expected = "POST /a?b=c HTTP/1.1\r\nHost: h\r\nOrigin: o\r\nAuthorization: Bearer t\r\n\
                        Test-Forwarded: for=127.0.0.1\r\nTransfer-Encoding: chunked\r\n\
                        Connection: close\r\n\r\n";
        assert_eq!(head, expected, "{cut}");
        let data: String = { body.split("\r\n") }.skip(1).step_by(2).collect();
        assert_eq!(data, "hello", "{cut}: {body:?}");
    }
    let (head, body) = seen("PUT / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello", 20);
    assert!(
        head.starts_with("PUT / HTTP/1.1\r\nTest-Forwarded: "),
        "{head}"
    );
    assert_eq!(body, "hello");
    for refused in [
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    ] {
        let mut client = Client::open(address);
        client.send(refused.as_bytes());
        assert_eq!(answered(&mut client).status, 400);
    }
}

/// A body in chunks of any sizes.
fn in_chunks(body: &str, random: &mut Random) -> String {
    let (mut rest, mut chunks) = (body, String::new());
    while !rest.is_empty() {
        let (first, others) = rest.split_at(1 + random.below(rest.len() as u64) as usize);
        chunks += &format!("{:x}\r\n{first}\r\n", first.len());
        rest = others;
    }
    chunks + "0\r\n\r\n"
}

/// Sends in pieces of any sizes.
fn say_in_pieces(other: &mut Other, text: &str, random: &mut Random) {
    let mut rest = text;
    while !rest.is_empty() {
        let (first, others) = rest.split_at(1 + random.below(rest.len() as u64) as usize);
        other.say(first);
        if random.once_in(4) {
            thread::yield_now();
        }
        rest = others;
    }
}

/// `EDGE_ROUNDS=10000 SEED=7 cargo test --test edge_forward` for more, or for others.
#[test]
fn each_client_gets_the_answers_to_what_it_asked() {
    let (seed, rounds) = (setting("SEED", 1), setting("EDGE_ROUNDS", 40));
    let other = played(|mut other| {
        let head = other.head();
        let target = head.split(' ').nth(1).expect("a target").to_owned();
        let said = format!("{target}|{}", other.body(&head));
        let mut random = Random(said.len() as u64);
        let (framing, said) = match random.below(3) {
            0 => (format!("Content-Length: {}\r\n", said.len()), said),
            1 => (
                "Transfer-Encoding: chunked\r\n".into(),
                in_chunks(&said, &mut random),
            ),
            _ => (String::new(), said),
        };
        let answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\n{said}");
        say_in_pieces(&mut other, &answer, &mut random);
    });
    let (address, edge) = relay_with(other, None, limits());
    thread::scope(|scope| {
        for client in 0..8 {
            scope.spawn(move || {
                let mut random = Random(seed * 100 + client);
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut connection = Other(stream, Vec::new());
                for round in 0..rounds {
                    let (mut sent, mut expected) = (String::new(), Vec::new());
                    for n in 0..1 + random.below(4) {
                        let target = format!("/{client}/{round}/{n}");
                        let size = match random.below(3) {
                            0 => 0,
                            1 => random.below(100),
                            _ => random.below(60_000),
                        };
                        let body = "x".repeat(size as usize);
                        sent += &match random.once_in(2) {
                            true => format!(
                                "POST {target} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                                in_chunks(&body, &mut random)
                            ),
                            false => format!(
                                "POST {target} HTTP/1.1\r\nContent-Length: {size}\r\n\r\n{body}"
                            ),
                        };
                        expected.push(format!("{target}|{body}"));
                    }
                    say_in_pieces(&mut connection, &sent, &mut random);
                    for expected in expected {
                        let head = connection.head();
                        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
                        let got = connection.body(&head);
                        assert!(got == expected, "SEED={seed}: {head}, {} bytes", got.len());
                    }
                }
            });
        }
    });
    wait_for("nothing is forwarded", || edge.forwarded() == 0);
}

#[test]
fn who_waits_for_100_continue_gets_it_from_the_other_server() {
    let other = played(|mut other| {
        let head = other.head();
        assert!(head.contains("Expect: 100-continue\r\n"), "{head}");
        if head.starts_with("PUT /no ") {
            return other.say("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n");
        }
        // It does not come before it is asked for.
        other
            .0
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        assert!(other.0.read(&mut [0]).is_err());
        other.0.set_read_timeout(Some(PATIENCE)).unwrap();
        other.say("HTTP/1.1 100 Continue\r\n\r\n");
        other.read_to(b"hello");
        other.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let address = relay(other);
    let put = |path: &str| {
        let mut client = Client::open(address);
        let head =
            format!("PUT {path} HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
        client.send(head.as_bytes());
        client
    };
    let mut client = put("/yes");
    assert_eq!(answered(&mut client).status, 100);
    client.send(b"hello");
    assert_eq!(answered(&mut client).status, 200);
    let mut client = put("/no");
    let reply = answered(&mut client);
    assert_eq!(
        (reply.status, reply.header("Connection")),
        (401, Some("close"))
    );
    assert!(client.is_ended());
}

#[test]
fn a_server_that_does_not_answer_is_told_of() {
    let msg = |address: SocketAddr| {
        let mut client = Client::open(relay(address));
        let started = Instant::now();
        client.send(&ping("x"));
        let reply = answered(&mut client);
        assert_eq!(reply.status, 502);
        // Its connection can go on: what was asked was whole.
        client.send(&ping("x"));
        assert_eq!(answered(&mut client).status, 502);
        let msg = reply.msg();
        (
            msg.strip_prefix("the other server did not answer: ")
                .expect(&msg)
                .to_owned(),
            started.elapsed(),
        )
    };
    assert!(msg(nowhere()).0.contains("refused"));
    let closing = played(|mut other| drop(other.head()));
    assert!(msg(closing).0.contains("it closed the connection"));
    let stranger = played(|mut other| {
        other.head();
        other.say("SSH-2.0-OpenSSH_9.2\r\n\r\n");
        other.wait_for_end();
    });
    assert!(msg(stranger).0.contains("malformed"));
    let two_framings = played(|mut other| {
        other.head();
        other.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n");
        other.wait_for_end();
    });
    assert!(msg(two_framings).0.contains("two framings"));
}

#[test]
fn a_server_that_cannot_be_reached_is_not_waited_for() {
    // Its queue is full: the system drops what else comes, as a machine that is gone does.
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    listen(&full, 0).unwrap();
    let address = full.local_addr().unwrap();
    let patience = Duration::from_millis(300);
    let queued: Vec<TcpStream> =
        std::iter::from_fn(|| TcpStream::connect_timeout(&address, patience).ok()).collect();
    assert!(!queued.is_empty());
    let mut client = Client::open(relay(address));
    let started = Instant::now();
    client.send(&request("POST", "/", "", b"hello"));
    let reply = answered(&mut client);
    assert_eq!(reply.status, 502);
    assert!(
        reply.msg().contains("could not be reached"),
        "{}",
        reply.msg()
    );
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1_900), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn an_answer_before_the_end_of_the_body_is_passed_on() {
    let other = played(|mut other| {
        other.head();
        other.say("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno");
        // With something unread, so by a reset.
        drop(other);
    });
    let address = relay(other);
    for _ in 0..20 {
        let mut client = Client::open(address);
        client.send(b"PUT / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n");
        client.send(&[b'x'; 100_000]);
        let reply = answered(&mut client);
        assert_eq!((reply.status, reply.text()), (413, "no"));
        assert_eq!(reply.header("Connection"), Some("close"));
        client.send(&[b'x'; 100_000]);
        assert!(client.is_ended());
    }
}

#[test]
fn an_answer_that_breaks_off_breaks_the_connection() {
    let other = played(|mut other| {
        let head = other.head();
        other.say(match head.split(' ').nth(1) {
            Some("/length") => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
            Some("/chunks") => {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
            }
            _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx",
        });
        // The first part is there before the end.
        thread::sleep(Duration::from_millis(100));
    });
    let address = relay(other);
    for version in ["1.1", "1.0"] {
        for path in ["/length", "/chunks", "/malformed"] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            write!(stream, "GET {path} HTTP/{version}\r\n\r\n").unwrap();
            let mut got = Vec::new();
            let end = stream.read_to_end(&mut got);
            let got = String::from_utf8(got).unwrap();
            if path != "/malformed" {
                assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
                assert!(got.contains("hello") && !got.contains("\r\n0\r\n"), "{got}");
            }
            let is_framed = got.contains("Content-Length: ") || got.contains("chunked");
            assert!(
                end.is_err() || is_framed,
                "the end passes for that of the answer: {got}"
            );
        }
    }
}

#[test]
fn who_goes_away_is_not_answered_for() {
    let (said, ended) = std::sync::mpsc::channel();
    let said = std::sync::Mutex::new(said);
    let other = played(move |mut other| {
        let head = other.head();
        if head.starts_with("GET /follow") {
            other.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n");
        }
        said.lock().unwrap().send("there").unwrap();
        other.wait_for_end();
        said.lock().unwrap().send("gone").unwrap();
    });
    let (address, edge) = relay_with(other, None, limits());
    let wait = |what| assert_eq!(ended.recv_timeout(PATIENCE).as_deref(), Ok(what));
    for raw in [
        &b"GET /held HTTP/1.1\r\n\r\n"[..],
        b"GET /follow HTTP/1.1\r\n\r\n",
        b"PUT /half HTTP/1.1\r\nContent-Length: 9\r\n\r\nhello",
        b"PUT /half HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
    ] {
        for resets in [false, true] {
            // The other server sees the end of its connection just before the edge has counted it.
            wait_for("nothing is forwarded", || edge.forwarded() == 0);
            let mut client = Client::open(address);
            client.send(raw);
            wait("there");
            assert_eq!(edge.forwarded(), 1);
            match resets {
                true => client.reset(),
                false => drop(client),
            }
            wait("gone");
        }
    }
    wait_for("nothing is forwarded", || edge.forwarded() == 0);
}

#[test]
fn who_has_closed_only_the_sending_side_is_answered() {
    let other = played(|mut other| {
        other.head();
        thread::sleep(Duration::from_millis(200));
        other.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        other.wait_for_end();
    });
    let mut client = Client::open(relay(other));
    client.send(&get("/"));
    client.finish();
    assert_eq!(answered(&mut client).text(), "ok");
    assert!(client.is_ended());
    let mut client = Client::open(relay(other));
    client.send(b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhello");
    client.finish();
    let reply = answered(&mut client);
    assert_eq!(
        (reply.status, reply.msg()),
        (400, "the body ended before it was whole".into())
    );
}

#[test]
fn more_than_allowed_are_refused_at_once() {
    let other = played(|mut other| {
        let head = other.head();
        if head.starts_with("GET /held") {
            return other.wait_for_end();
        }
        other.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let few = EdgeLimits {
        max_forwarded: 3,
        ..limits()
    };
    let (address, edge) = relay_with(other, None, few);
    assert_eq!(edge.most_forwarded(), 3);
    let held: Vec<Client> = (0..3)
        .map(|_| {
            let mut client = Client::open(address);
            client.send(&get("/held"));
            client
        })
        .collect();
    wait_for("three are held", || edge.forwarded() == 3);
    let mut client = Client::open(address);
    client.send(&request("POST", "/", "", b"hello"));
    let reply = answered(&mut client);
    assert_eq!(reply.status, 503);
    assert!(reply.msg().contains("--max-held"), "{}", reply.msg());
    drop(held);
    wait_until("there is room", || {
        client.send(&request("POST", "/", "", b"hello"));
        (answered(&mut client).status == 200).then_some(())
    });
}

#[test]
fn what_was_forwarded_to_a_server_that_was_replaced_ends() {
    // Frozen: it accepts everything, begins an answer at most, and says nothing more.
    let other = played(|mut other| {
        if other.head().starts_with("GET /begun") {
            other.say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhell");
        }
        other.wait_for_end();
    });
    let (address, edge) = relay_with(other, None, limits());
    let [mut held, mut uploading, mut begun] = [(); 3].map(|()| Client::open(address));
    held.send(&get("/held"));
    uploading.send(b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhello");
    begun.send(&get("/begun"));
    let mut part = Vec::new();
    while !part.ends_with(b"hell") {
        let mut byte = [0];
        begun.stream.read_exact(&mut byte).expect("it has begun");
        part.extend(byte);
    }
    wait_for("all are forwarded", || edge.forwarded() == 3);
    edge.cut_forwarded(Some(OTHER));
    held.patience(Duration::from_millis(300));
    assert_eq!(held.answer().unwrap_err(), NoAnswer::TimedOut);
    assert_eq!(edge.forwarded(), 3, "it is the one that is asked");

    edge.cut_forwarded(None);
    held.patience(PATIENCE);
    for client in [&mut held, &mut uploading] {
        let reply = answered(client);
        let why = "the other server did not answer: another one has taken its place";
        assert_eq!((reply.status, reply.msg()), (502, why.into()));
    }
    assert!(!matches!(begun.stream.read(&mut [0; 9]), Ok(1..)));
    wait_for("none is forwarded", || edge.forwarded() == 0);
    assert_eq!(edge.forwarded_ever(), 3);
    // Its connection goes on.
    held.send(&get("/held"));
    wait_for("another one is forwarded", || edge.forwarded() == 1);
}
