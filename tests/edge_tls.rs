//! The edge with TLS is the same edge: the same limits, no thread for each connection, and an end that
//! can be told from a cut.
#![cfg(all(feature = "server", feature = "agent", feature = "tls"))]

mod authority;
mod bystander;
mod common;
mod edge;

use authority::{Authority, OWN_NAMES, Stream, server, stream};
use bystander::{alone, has_panicked};
use common::http::request;
use common::{Folder, Server, id, wait_for};
use edge::{Client, get, is_pong, open_descriptors, ping, setting, submit, task_body};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Threads that a server may start for what may wait: not one for each who does.
const POOL: u64 = 12;
/// What the server may grow by, in KiB, whatever is sent as a head.
const GROWTH_KIB: u64 = 48 * 1024;

/// A server with a certificate, whose authority has made it.
struct Served {
    server: Server,
    authority: Authority,
    _folder: Folder,
}

impl Served {
    fn with(flags: &[&str]) -> Served {
        let (folder, authority) = (Folder::new(), Authority::new());
        authority.vouch(&folder, &OWN_NAMES);
        Served {
            server: server(&folder, flags),
            authority,
            _folder: folder,
        }
    }

    fn open(&self) -> Client<Stream> {
        Client::over(stream(self.server.address, &self.authority))
    }

    fn ask(&self, bytes: &[u8]) -> common::http::Reply {
        let mut client = self.open();
        client.send(bytes);
        client.answer().expect("an answer")
    }

    fn metric(&self, name: &str) -> u64 {
        let page = self.ask(&get("/metrics"));
        let mut lines = page.text().lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.expect("the figure")
    }
}

fn pong(client: &mut Client<Stream>, label: &str) {
    let reply = client.answer();
    let is_answered = reply.as_ref().is_ok_and(|reply| is_pong(reply, label));
    assert!(is_answered, "{label}: {reply:?}");
}

/// 60 connections that each send a head of 19 MiB, as the first or the second request. Without a bound
/// for heads the server grows by all of it.
#[test]
fn large_heads_are_refused_and_take_no_memory() {
    const HEADS: usize = 60;
    const HEAD: usize = 19 << 20;
    let _alone = alone();
    let served = Served::with(&["--max-request-time", "20s"]);
    let server = &served.server;
    served.ask(&ping("warm"));
    let before = server.process.figure("VmHWM");
    let lines = format!("X-A: {}\r\n", "x".repeat(1_000)).repeat(32);
    let kinds = [
        ("GET /healthz HTTP/1.1\r\n", lines.clone()),
        ("GET /healthz HTTP/1.1\r\n", "X: y\r\n".repeat(5_000)),
        ("GET /healthz HTTP/1.1\r\nX-A: ", "x".repeat(32_000)),
        ("GET /healthz HTTP/1.1\r\nX-A: ", " ".repeat(32_000)),
        ("GET /", "x".repeat(32_000)),
        (
            "POST /api/v1/task HTTP/1.1\r\nExpect: 100-continue\r\n",
            lines,
        ),
    ];
    let grown = || server.process.figure("VmHWM").saturating_sub(before);
    let (over, too_much) = (AtomicBool::new(false), AtomicBool::new(false));
    let refused: usize = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) && !too_much.load(Ordering::Relaxed) {
                // The machine is not to suffer from what is found here.
                too_much.store(grown() > GROWTH_KIB, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let senders: Vec<_> = (0..HEADS)
            .map(|n| {
                let (start, piece) = &kinds[n % kinds.len()];
                let (served, too_much) = (&served, &too_much);
                scope.spawn(move || {
                    let mut client = served.open();
                    if n % 2 == 1 {
                        client.send(&ping("first"));
                        pong(&mut client, "first");
                    }
                    client.send(start.as_bytes());
                    let mut sent = 0;
                    while sent < HEAD && !too_much.load(Ordering::Relaxed) {
                        if !client.send(piece.as_bytes()) {
                            break;
                        }
                        sent += piece.len();
                    }
                    client.send(b"\r\n\r\n");
                    // Refused with words, where the client sends so much that it does not see them cut.
                    let answer = client.answer().map(|reply| reply.status);
                    let right = answer.as_ref().map_or(true, |s| [414, 431].contains(s));
                    assert!(right, "{answer:?} for {start:?}");
                    usize::from(answer.is_ok())
                })
            })
            .collect();
        let refused = senders.into_iter().map(|sender| sender.join().unwrap());
        let refused = refused.sum();
        over.store(true, Ordering::Relaxed);
        watch.join().unwrap();
        refused
    });
    eprintln!("{refused} of {HEADS} read why; grown by {} KiB", grown());
    assert!(grown() < GROWTH_KIB, "grown by {} KiB", grown());
    assert_eq!(has_panicked(server), None);
}

/// Heads slightly over a limit are answered, as the first and as a later request, in whatever records.
#[test]
fn limits_of_heads_hold_for_each_request() {
    let served = Served::with(&["--max-headers", "20", "--max-head", "4"]);
    let head = |lines: &str| format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
    let cases = [
        (head(&"X: y\r\n".repeat(19)), 200),
        (head(&"X: y\r\n".repeat(20)), 431),
        (head(&"X: y\r\n".repeat(600)), 431),
        (head(&format!("X: {}\r\n", "y".repeat(3_000))), 200),
        (head(&format!("X: {}\r\n", "y".repeat(4_097))), 431),
        (head(&format!("X: {}\r\n", "y".repeat(60_000))), 431),
    ];
    for (head, status) in &cases {
        for size in [100_000, 1_000, 100] {
            for before in 0..3 {
                let mut client = served.open();
                for _ in 0..before {
                    client.send(&ping("before"));
                    pong(&mut client, "before");
                }
                for part in head.as_bytes().chunks(size) {
                    client.send(part);
                }
                let reply = client.answer().map(|reply| reply.status);
                let start = &head[45..60];
                assert_eq!(
                    reply,
                    Ok(*status),
                    "{start:?}, {size} a record, {before} before"
                );
            }
        }
    }
}

#[test]
fn several_requests_in_one_record_are_all_answered() {
    const REQUESTS: usize = 30;
    let served = Served::with(&[]);
    let name = |n: usize| format!("record-{n}");
    let any = |n: usize| {
        if n % 3 == 2 {
            submit(&name(n))
        } else {
            ping(&name(n))
        }
    };
    let bytes: Vec<u8> = (0..REQUESTS).flat_map(any).collect();
    // A record has up to 16 KiB: all of them are in one, then each is in many.
    assert!(bytes.len() < 16_000);
    for size in [bytes.len(), 700, 13] {
        let mut client = served.open();
        for part in bytes.chunks(size) {
            client.send(part);
        }
        for n in 0..REQUESTS {
            let reply = client.answer();
            let right = reply.as_ref().is_ok_and(|reply| match n % 3 {
                2 => reply.text().contains(&name(n)),
                _ => is_pong(reply, &name(n)),
            });
            assert!(right, "number {n} in parts of {size}: {reply:?}");
        }
        // And it is still there.
        client.send(&ping("later"));
        pong(&mut client, "later");
    }
}

/// Whether the stream ends as TLS wants it, so that the end can be told from a cut.
fn is_closed_in_order(client: &mut Client<Stream>) -> bool {
    matches!(client.stream.read(&mut [0; 100]), Ok(0))
}

#[test]
fn the_end_is_said_with_close_notify() {
    let served = Served::with(&["--max-request-time", "1s"]);
    let close = request("GET", "/healthz", "Connection: close\r\n", b"");
    let endings: [(&[u8], u16); 4] = [
        (&close, 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nNo colon\r\n\r\n", 400),
        (
            b"POST /api/v1/task HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            413,
        ),
    ];
    for (bytes, status) in endings {
        let mut client = served.open();
        client.send(bytes);
        assert_eq!(client.answer().expect("an answer").status, status);
        assert!(is_closed_in_order(&mut client), "after {status}");
    }
    // Idle until it is cut.
    let mut client = served.open();
    client.send(&ping("idle"));
    pong(&mut client, "idle");
    assert!(is_closed_in_order(&mut client), "idle");
}

/// A client that has said all it will say, and goes on reading.
#[test]
fn who_has_closed_its_sending_side_is_answered() {
    let served = Served::with(&[]);
    let mut client = served.open();
    client.send(&[ping("one"), ping("two")].concat());
    client.stream.conn.send_close_notify();
    client.stream.flush().unwrap();
    pong(&mut client, "one");
    pong(&mut client, "two");
    assert!(is_closed_in_order(&mut client));
}

/// The first bytes of a ClientHello, and nothing more.
const HALF_A_HELLO: [u8; 11] = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];

#[test]
fn slow_handshakes_take_no_thread_each_and_hold_up_nobody() {
    const SLOW: usize = 200;
    let _alone = alone();
    edge::raise_open_files();
    let served = Served::with(&["--max-request-time", "20s"]);
    served.ask(&ping("warm"));
    let threads = served.server.process.figure("Threads");
    let slow: Vec<TcpStream> = (0..SLOW)
        .map(|n| {
            let mut stream = TcpStream::connect(served.server.address).unwrap();
            if n % 2 == 0 {
                stream.write_all(&HALF_A_HELLO).unwrap();
            }
            stream
        })
        .collect();
    wait_for("they are accepted", || {
        served.metric("sidebike_connections") >= SLOW as u64
    });
    let mut times: Vec<Duration> = (0..40)
        .map(|n| {
            let started = Instant::now();
            assert!(is_pong(
                &served.ask(&ping(&format!("good-{n}"))),
                &format!("good-{n}")
            ));
            started.elapsed()
        })
        .collect();
    times.sort();
    let now = served.server.process.figure("Threads");
    eprintln!(
        "{threads} threads, {now} beside {SLOW} slow handshakes; {:?}",
        times[39]
    );
    assert!(now <= threads + POOL, "{now} threads, {threads} before");
    assert!(times[36] < Duration::from_millis(500), "{times:?}");
    let open = open_descriptors(&served.server);
    assert!(open <= SLOW + 40, "{open} descriptors");
    drop(slow);
}

#[test]
fn held_polls_take_no_thread_each_and_are_all_answered() {
    let _alone = alone();
    edge::raise_open_files();
    let held = setting("EDGE_HELD", 500);
    let served = Served::with(&[]);
    served.ask(&ping("warm"));
    let threads = served.server.process.figure("Threads");
    let mut clients: Vec<Client<Stream>> = (0..held)
        .map(|n| {
            let body = json!({"instance": format!("{n:08x}"), "seq": 1, "label": format!("held-{n}"),
                "host": "h", "version": "1", "jobs": 1, "wait": 60, "holds": []});
            let mut client = served.open();
            let body = body.to_string();
            client.send(&request("POST", "/api/v1/agent/poll", "", body.as_bytes()));
            client
        })
        .collect();
    wait_for("all are held", || {
        served.metric("sidebike_held_requests") == held
    });
    let now = served.server.process.figure("Threads");
    let open = open_descriptors(&served.server) as u64;
    eprintln!("{threads} threads, {now} with {held} held; {open} descriptors");
    assert!(now <= threads + POOL, "{now} threads, {threads} before");
    assert!(open <= held + 40, "{open} descriptors");
    let task = json!({"machinePattern": "^held-", "detail": {"command": "x"}}).to_string();
    let task = served
        .ask(&request("POST", "/api/v1/task", "", task.as_bytes()))
        .data();
    assert_eq!(task["matched"], held);
    for (n, client) in clients.iter_mut().enumerate() {
        let reply = client.answer().expect("the held is answered").json();
        assert_eq!(reply["signal"], 1, "{n}: {reply}");
        assert_eq!(reply["data"]["start"][0]["taskId"], *id(&task), "{n}");
    }
    assert!(served.server.process.figure("Threads") <= threads + POOL);
    // And each connection takes another request.
    for (n, client) in clients.iter_mut().enumerate().take(50) {
        client.send(&ping(&format!("held-{n}")));
        pong(client, &format!("held-{n}"));
    }
}

/// A held request is answered as the next comes, as without TLS.
#[test]
fn what_comes_behind_a_held_request_is_answered() {
    let served = Served::with(&[]);
    let mut other = served.open();
    let mut client = served.open();
    for round in 0..100 {
        other.send(&submit(&format!("waits-{round}")));
        other.answer().expect("an answer").data();
        let target = format!("/api/v1/task/waits-{round}");
        let wait = get(&format!("{target}?wait=60s"));
        let next = request(
            "POST",
            "/api/v1/task",
            "",
            task_body(&format!("next-{round}")).as_bytes(),
        );
        match round % 3 {
            0 => drop(client.send(&[wait, next].concat())),
            1 => drop((client.send(&wait), client.send(&next))),
            _ => drop(client.send(&wait)),
        }
        other.send(&request("POST", &format!("{target}/cancel"), "", b""));
        other.answer().expect("an answer").data();
        if round % 3 == 2 {
            let next = task_body(&format!("next-{round}"));
            client.send(&request("POST", "/api/v1/task", "", next.as_bytes()));
        }
        let first = client
            .answer()
            .unwrap_or_else(|why| panic!("{round}: {why:?}"));
        assert_eq!(first.data()["state"], "canceled", "{round}");
        let second = client
            .answer()
            .unwrap_or_else(|why| panic!("{round}: {why:?}"));
        assert_eq!(second.data()["id"], format!("next-{round}"));
    }
    assert_eq!(served.metric("sidebike_held_requests"), 0);
}
