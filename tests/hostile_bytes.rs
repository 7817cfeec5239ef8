//! Bytes that are no requests, or never end: the server answers or cuts, its memory stays small, and
//! those who behave do not notice.

mod bystander;
mod common;

use bystander::{alone, answered_or_cut, beside, has_panicked, parsed, quiet_server};
use common::{Server, wait_for};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// The most that the server may grow, in KiB.
const GROWTH_KIB: u64 = 64 * 1024;
/// A request may take 3 s here, and the machine may be busy.
const CUT: Duration = Duration::from_secs(10);

fn quick() -> Server {
    quiet_server(&["--max-request-time", "3s"])
}

/// Asserts that the server has not grown by more than it may, has not panicked, and has no thread
/// left over.
fn unharmed(mut server: Server, threads_before: u64, peak_before: u64) {
    wait_for("the threads of the hostile are gone", || {
        server.process.figure("Threads") <= threads_before + 2
    });
    let grown = server.process.figure("VmHWM").saturating_sub(peak_before);
    eprintln!("grown by {grown} KiB");
    assert!(grown < GROWTH_KIB, "grown by {grown} KiB");
    assert_eq!(has_panicked(&server), None);
    assert!(server.process.is_alive());
}

fn figures(server: &Server) -> (u64, u64) {
    (
        server.process.figure("Threads"),
        server.process.figure("VmHWM"),
    )
}

/// Writes `piece` for ever; true when the server has put an end to it in time.
fn endless(server: SocketAddr, start: &str, piece: &[u8]) -> bool {
    let mut stream = TcpStream::connect(server).expect("the server takes connections");
    let moment = Some(Duration::from_millis(50));
    stream.set_write_timeout(moment).unwrap();
    stream.set_read_timeout(moment).unwrap();
    let pieces = piece.repeat((64 * 1024 / piece.len()).max(1));
    let started = Instant::now();
    let mut written = stream.write_all(start.as_bytes());
    while started.elapsed() < CUT {
        match written {
            Ok(()) => {}
            // Nobody reads any more: because the connection was cut?
            Err(why) if why.kind() == ErrorKind::WouldBlock => match stream.read(&mut [0; 4_096]) {
                Err(why) if why.kind() == ErrorKind::WouldBlock => {}
                Ok(n) if n > 0 => {}
                _ => return true,
            },
            Err(_) => return true,
        }
        written = stream.write_all(&pieces);
    }
    false
}

#[test]
fn what_never_ends_is_cut() {
    let _alone = alone();
    let server = quick();
    let (threads, peak) = figures(&server);
    let address = server.address;
    let post = "POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\n";
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    let kinds: &[(&str, String, &[u8])] = &[
        ("headers", post.into(), b"X-Name: value\r\n"),
        ("a header", format!("{post}X-Name: "), b"value"),
        ("a target", "GET /".into(), b"very/long/"),
        ("a method", "".into(), b"GET"),
        ("chunks", chunked.clone(), b"5\r\n     \r\n"),
        (
            "a chunk's extension",
            format!("{chunked}5;"),
            b"name=value;",
        ),
        ("a chunk's size", chunked.clone(), b"0"),
        (
            "one chunk",
            format!("{chunked}7fffffffffffffff\r\n"),
            b"{\"a\":",
        ),
        (
            "10^9 bytes",
            format!("{post}Content-Length: 1000000000\r\n\r\n"),
            b" ",
        ),
        (
            "2^63 bytes",
            format!("{post}Content-Length: 9223372036854775808\r\n\r\n"),
            b" ",
        ),
        (
            "nobody's bytes",
            "POST /nowhere HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n".into(),
            b" ",
        ),
    ];
    beside(&server, || {
        // A few at a time: more would only show how this machine shares its processors.
        for few in kinds.chunks(3) {
            thread::scope(|scope| {
                for (name, start, piece) in few {
                    scope.spawn(move || assert!(endless(address, start, piece), "not cut: {name}"));
                }
            });
        }
    });
    unharmed(server, threads, peak);
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    let _alone = alone();
    let server = quick();
    let (threads, peak) = figures(&server);
    let task = r#"{"machinePattern": "nobody", "detail": {"command": "true"}}"#;
    let n = task.len();
    // The headers of a POST, and the answers that are right; 0 stands for a cut.
    let refused: &[(&str, &[u16])] = &[
        ("Content-Length: 1", &[400]),
        ("Content-Length: 1000000000", &[413]),
        ("Content-Length: 9223372036854775808", &[413]),
        ("Content-Length: 1000000000\r\nConnection: upgrade", &[413]),
        ("Transfer-Encoding: chunked\r\nConnection: upgrade", &[400]),
        ("Content-Length: 18446744073709551616", &[400]),
        ("Content-Length: -1", &[400]),
        ("Content-Length: +5", &[400]),
        ("Content-Length: 0x3b", &[400]),
        ("Content-Length: 5, 5", &[400]),
        ("Content-Length:", &[400]),
        ("Content-Length: 59\r\nContent-Length: 59", &[400]),
        ("Content-Length: 59\r\nContent-Length: 1", &[400]),
        ("Content-Length: 59\r\ncontent-length: 1", &[400]),
        ("Content-Length : 59", &[400]),
        ("Content-Length: 59\r\nTransfer-Encoding: chunked", &[400]),
        ("Transfer-Encoding: chunked\r\nContent-Length: 59", &[400]),
        ("Content-Length: x\r\nTransfer-Encoding: chunked", &[400]),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            &[400],
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            &[400],
        ),
        ("Transfer-Encoding: gzip, chunked", &[0, 400]),
        ("Transfer-Encoding: identity", &[400]),
        ("Transfer-Encoding: xchunked", &[400]),
        ("Transfer-Encoding: chunked", &[0]), // and no chunk follows
        ("Content-Length: 59\r\n Folded: line", &[400]),
        ("Content-Length: 59\r\nHost: elsewhere", &[400]),
        ("Content-Length: 59\nX: bare line feed", &[400]),
        ("Content-Length: 59\rX: bare carriage return", &[400]),
        ("Content-Length: 59\r\nExpect: a miracle", &[417]),
        ("Content-Length: 59\r\nNo colon", &[400]),
        ("Content-Length: 59\r\nX: \u{fc}", &[400]),
    ];
    beside(&server, || {
        for (headers, right) in refused {
            let bytes =
                format!("POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n{task}");
            let status = answered_or_cut(server.address, bytes.as_bytes(), CUT).unwrap_or(0);
            assert!(right.contains(&status), "{status} for {headers:?}");
        }
    });
    assert_eq!(n, 59, "the lengths above fit the task");
    assert!(
        server
            .get("/api/v1/task?taskPrefix=task&label=nobody")
            .data()
            .as_array()
            .unwrap()
            .is_empty()
    );
    unharmed(server, threads, peak);
}

#[test]
fn other_versions_and_garbage_are_answered_or_cut() {
    let _alone = alone();
    let server = quick();
    let (threads, peak) = figures(&server);
    let rest = "\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let lines: &[(&str, &[u16])] = &[
        ("GET /healthz HTTP/1.0", &[200]),
        ("GET /healthz HTTP/1.1", &[200]),
        ("GET http://localhost:9410/healthz HTTP/1.1", &[200]),
        ("GET //healthz HTTP/1.1", &[404]),
        ("GET /healthz", &[400]),
        ("GET /healthz HTTP/0.9", &[200, 400, 505]),
        ("GET /healthz HTTP/1.2", &[400, 505]),
        ("GET /healthz HTTP/2.0", &[505]),
        ("GET /healthz HTTP/3.0", &[505]),
        ("GET /healthz HTTP/2.0 HTTP/1.1", &[400]),
        ("GET /healthz HTTP/1.1 HTTP/2.0", &[400]),
        ("PRI * HTTP/2.0", &[505]),
        ("GET /healthz HTTP/11.1", &[400, 505]),
        ("GET /healthz http/1.1", &[400]),
        ("GET  /healthz HTTP/1.1", &[400]),
        ("", &[400]),
        ("\0\0\0\0", &[400]),
        (
            "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}",
            &[400],
        ),
        ("SSH-2.0-OpenSSH_9.2", &[400]),
        ("OPTIONS * HTTP/1.1", &[404, 405]),
        ("OPTIONS /api/v1/task HTTP/1.1", &[405]),
        ("TRACE /healthz HTTP/1.1", &[405]),
        ("CONNECT localhost:22 HTTP/1.1", &[404, 405]),
        ("HEAD /healthz HTTP/1.1", &[200]),
        ("GET /%00%ff HTTP/1.1", &[400]),
        ("GET /healthz?%ff HTTP/1.1", &[400]),
        ("GET /../healthz HTTP/1.1", &[404]),
        ("GET /%68ealthz HTTP/1.1", &[200]),
        ("DELETE /healthz HTTP/1.1", &[405]),
        ("G\u{e9}T / HTTP/1.1", &[400]),
    ];
    beside(&server, || {
        for (line, right) in lines {
            let bytes = format!("{line}{rest}");
            let status = answered_or_cut(server.address, bytes.as_bytes(), CUT).unwrap_or(0);
            assert!(right.contains(&status), "{status} for {line:?}");
        }
        // One that must be answered at once, not when somebody loses patience.
        let started = Instant::now();
        for head in [
            // curl --http2, and Java's client
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
            "GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
            "POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n",
        ] {
            let mut connection = server.connect();
            connection.send(head.as_bytes());
            assert!(
                [200, 404, 413].contains(&connection.read().status),
                "{head}"
            );
        }
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "held up for {:?}",
            started.elapsed()
        );
    });
    unharmed(server, threads, peak);
}

#[test]
fn a_flood_of_other_versions_leaves_no_thread_behind() {
    let server = quick();
    let (threads, peak) = figures(&server);
    for _ in 0..50 {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        assert_eq!(parsed(&answers).map(|reply| reply.status), Some(200));
    }
    unharmed(server, threads, peak);
}

#[test]
fn a_hundred_thousand_pipelined_requests() {
    let _alone = alone();
    const REQUESTS: usize = 100_000;
    let server = quick();
    let (threads, peak) = figures(&server);
    let address = server.address;
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    beside(&server, || {
        thread::scope(|scope| {
            // One reads what it gets,
            let mut stream = TcpStream::connect(address).unwrap();
            let mut reader = stream.try_clone().unwrap();
            scope.spawn(move || stream.write_all(&request.repeat(REQUESTS)));
            scope.spawn(move || {
                let (mut answers, mut buffer) = (0, vec![0; 256 * 1024]);
                reader.set_read_timeout(Some(CUT)).unwrap();
                while answers < REQUESTS {
                    match reader.read(&mut buffer) {
                        Ok(n) if n > 0 => {
                            answers += buffer[..n].iter().filter(|b| **b == b'{').count()
                        }
                        _ => break,
                    }
                }
                eprintln!("{answers} of {REQUESTS} pipelined requests were answered");
            });
            // one reads nothing, and some have a request in front that is being held.
            let poll = r#"{"instance":"0123456789abcdef","seq":1,"label":"x","jobs":1,"wait":20}"#;
            let poll = format!(
                "POST /api/v1/agent/poll HTTP/1.1\r\nContent-Length: {}\r\n\r\n{poll}",
                poll.len()
            );
            for first in [Vec::new(), poll.clone().into_bytes(), poll.into_bytes()] {
                scope.spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_write_timeout(Some(CUT)).unwrap();
                    let _ = stream.write_all(&first);
                    let _ = stream.write_all(&request.repeat(REQUESTS));
                });
            }
        });
    });
    unharmed(server, threads, peak);
}
