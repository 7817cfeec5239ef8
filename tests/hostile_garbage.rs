//! Malformed requests from a generator that knows the API: the server refuses each for what it is,
//! never by an error of its own, and lives.
//!
//! `HOSTILE_REQUESTS=200000 SEED=7 cargo test --test hostile_garbage` for more, or for others. The
//! seed is shown on failure.

mod bystander;
mod common;

use bystander::{beside, has_panicked, parsed, quiet_server, shown};
use common::{Server, wait_for};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

const REQUESTS: u64 = 20_000;
const SEED: u64 = 1;
const CLIENTS: u64 = 4;
/// A refusal says what was wrong; it does not send back what was sent.
const MAX_REFUSAL_BYTES: usize = 16 * 1024;

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn garbage_is_refused_for_what_it_is() {
    let (requests, seed) = (setting("HOSTILE_REQUESTS", REQUESTS), setting("SEED", SEED));
    let mut server = quiet_server(&["--max-machines", "300"]);
    server.submit(
        json!({"id": "a-task", "machinePattern": "^nobody$", "detail": {"command": "true"}}),
    );
    let address = server.address;
    let seen = Mutex::new(BTreeMap::new());
    beside(&server, || {
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let seen = &seen;
                scope.spawn(move || {
                    let mut random = Random(seed.wrapping_mul(1_000) + client);
                    for n in 0..requests / CLIENTS {
                        let request = a_request(&mut random);
                        let status = send(address, &request);
                        *seen.lock().unwrap().entry(status).or_insert(0) += 1;
                        assert!(
                            status < 500 || [503, 505].contains(&status),
                            "SEED={seed}, number {n} of client {client}: {status} for {}",
                            shown(&request)
                        );
                    }
                });
            }
        });
    });
    let seen: BTreeMap<u16, u64> = seen.into_inner().unwrap();
    eprintln!("SEED={seed}: {seen:?}");
    for status in [200, 400, 404, 405] {
        assert!(
            seen.contains_key(&status),
            "the generator makes no {status}"
        );
    }
    assert_eq!(has_panicked(&server), None, "SEED={seed}");
    assert!(server.process.is_alive(), "SEED={seed}");
    // Nobody who is gone leaves anything behind.
    let descriptors = || {
        let path = format!("/proc/{}/fd", server.process.pid().as_raw_nonzero());
        std::fs::read_dir(path).expect("it lives").count()
    };
    wait_for("few descriptors are open", || descriptors() < 40);
    wait_for("few threads are left", || {
        server.process.figure("Threads") < 20
    });
    // What it has taken it can show.
    for target in ["/api/v1/task?limit=1000", "/api/v1/machine", "/metrics"] {
        assert_eq!(server.get(target).status, 200, "SEED={seed}, {target}");
    }
    check_log(&server);
}

/// However much was sent, the log has only so much of it.
fn check_log(server: &Server) {
    for line in server.process.log() {
        assert!(line.len() < 9_000, "a line of {} bytes", line.len());
    }
}

/// The status; 0 when there was no answer.
fn send(server: SocketAddr, request: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(server).expect("the server takes connections");
    // What is held is not worth waiting for.
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let (mut answer, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..n]);
    }
    let status = parsed(&answer).map_or(0, |reply| reply.status);
    assert!(
        status < 400 || answer.len() < MAX_REFUSAL_BYTES,
        "{} bytes of answer for {}",
        answer.len(),
        shown(request)
    );
    status
}

/// The numbers of a seed: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

const METHODS: &[&str] = &[
    "GET", "POST", "POST", "POST", "DELETE", "HEAD", "PUT", "OPTIONS", "TRACE", "CONNECT", "get",
    "X\u{fc}", "", "G@T",
];

const TARGETS: &[&str] = &[
    "/api/v1/task",
    "/api/v1/task/status/new",
    "/api/v1/task/a-task",
    "/api/v1/task/a-task/cancel",
    "/api/v1/task/a-task/rerun",
    "/api/v1/task/a-task/output",
    "/api/v1/machine",
    "/api/v1/agent/poll",
    "/api/v1/agent/output",
    "/api/v1/agent/done",
    "/api/v1/agent/goodbye",
    "/api/v1/lifecycle/ping",
    "/api/v1/task/status/assigned",
    "/api/v1/task/status/done",
    "/healthz",
    "/metrics",
    "/",
];

const PARTS: &[&str] = &[
    "/",
    "//",
    "/..",
    "/.",
    "/%2e%2e",
    "/%00",
    "/%ff",
    "/%",
    "/%zz",
    "/%2F",
    "/*",
    "?",
    "#",
    "&",
    "=",
    "\\",
    ";",
    "/a-task",
    "/api",
    "/\u{e4}",
    "%25%32%65",
    "http://",
    "https://x/",
    "@",
    ":9410",
    " ",
];

const QUERIES: &[&str] = &[
    "wait=1s",
    "wait=-1",
    "wait=1e99",
    "wait=NaN",
    "wait=99999999999999999999d",
    "limit=0",
    "limit=-1",
    "limit=1000",
    "limit=18446744073709551616",
    "cursor=0",
    "cursor=x",
    "cursor=18446744073709551615",
    "state=running",
    "state=%00",
    "label=%f0%9f%98%80",
    "label=",
    "taskPrefix=%ff",
    "taskPrefix=((((",
    "machine=",
    "machine=a&machine=b",
    "offset=-1",
    "offset=18446744073709551615",
    "stream=stdin",
    "stream=stdout&offset=5",
    "follow=1",
    "all=2",
    "path=x",
    "path=",
    "path=%0a%0d",
    "unknown=1",
    "=",
    "&&&",
    "a=b=c",
    "text=1",
    "strict=1",
];

const BODIES: &[&str] = &[
    r#"{"name":"n","id":"an-id","machinePattern":"^nobody$","mode":"any","ttl":"10m","lateJoin":false,"retry":{"max":1,"interval":[1,"2s"],"on":["failed"]},"resultTtl":5,"failureTtl":"9s","detail":{"command":"true","workspace":"/tmp","timeout":15,"killGrace":"1s","env":{"A":"b"},"stdin":"x"}}"#,
    r#"{"machinePattern":"^nobody$","detail":{"argv":["true","x"],"timeout":-1}}"#,
    r#"{"instance":"0123456789abcdef","seq":1,"label":"m","host":"h","version":"1","jobs":2,"draining":false,"wait":0,"holds":[{"execution":"a-task.0","attempt":1,"state":"running","startedAgoMs":3}]}"#,
    r#"{"instance":"0123456789abcdef","pieces":[{"execution":"a-task.0","attempt":1,"stream":"stdout","offset":0,"data":"aGk="}]}"#,
    r#"{"instance":"0123456789abcdef","pieces":[],"results":[{"execution":"a-task.0","attempt":1,"state":"failed","exitCode":1,"signal":null,"msg":"m","endedAgoMs":5,"durationMs":3,"stdoutBytes":2,"stderrBytes":0}]}"#,
    r#"{"instance":"0123456789abcdef","holds":[]}"#,
    r#"{"MachineLabel":"X"}"#,
    r#"{"TaskName":"a-task.0/1","Result":{"machineLabel":"X","status":0,"msg":"","output":["line"]}}"#,
];

/// Calls, and which of the bodies is for them.
const CALLS: &[(&str, &str, usize)] = &[
    ("POST", "/api/v1/task", 0),
    ("POST", "/api/v1/task", 1),
    ("POST", "/api/v1/task/status/new/", 1),
    ("POST", "/api/v1/agent/poll", 2),
    ("POST", "/api/v1/agent/output", 3),
    ("POST", "/api/v1/agent/done", 4),
    ("POST", "/api/v1/agent/goodbye", 5),
    ("POST", "/api/v1/task/status/assigned", 6),
    ("POST", "/api/v1/task/status/done", 7),
    ("POST", "/api/v1/task/a-task/cancel", 5),
    ("POST", "/api/v1/task/a-task/rerun?all=1", 5),
    ("GET", "/api/v1/lifecycle/ping?path=X", 5),
    ("GET", "/api/v1/task?limit=5", 5),
    ("GET", "/api/v1/task/a-task/output", 5),
];

const VALUES: &[&str] = &[
    "null",
    "true",
    "[]",
    "{}",
    "-1",
    "0",
    "1e999",
    "-1e-999",
    "18446744073709551616",
    "1.5",
    "99999999999999999999999999999999999999",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\u{1f600}\"",
    "\"9999999999999999999y\"",
    "\"-1s\"",
    "\"NaN\"",
    "\"[[[[\"",
    "\"(?i)(((((x\"",
    "\"a{1000}{1000}\"",
    "\"\\\\pL+\\\\w+\\\\d+\"",
    "\"../../etc\"",
    "[[[[[[[[]]]]]]]]",
    "{\"\":{}}",
    "NaN",
    "Infinity",
    "'x'",
    "\"\\x\"",
    "0x10",
    "01",
    "tru",
    "",
    ",",
    "}",
];

const HEADERS: &[&str] = &[
    "Host: evil.example",
    "Host: localhost\r\nHost: x",
    "Host:",
    "Origin: null",
    "Origin: http://evil.example",
    "Sec-Fetch-Site: cross-site",
    "Authorization: Bearer",
    "Authorization: Bearer \u{e4}",
    "Authorization: Basic eDp5",
    "Expect: 100-continue",
    "Expect: x",
    "Connection: upgrade",
    "Connection: keep-alive, close",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip",
    "Content-Length: 5",
    "Content-Length: x",
    "Content-Encoding: gzip",
    "Content-Type: text/plain",
    "Range: bytes=0-",
    "X:",
    ": x",
    "X",
    " folded",
    "X: \0",
    "Cookie: a=b",
    "If-None-Match: *",
    "Upgrade: h2c",
    "TE: trailers",
    "X: \t\x7f",
];

fn a_request(random: &mut Random) -> Vec<u8> {
    // Most find the call that their body is for, or they would see little of the server.
    let (mut method, mut target, body_of) = CALLS[random.below(CALLS.len())];
    let mut body = a_body(random, body_of);
    let twisted = a_target(random, target);
    if random.once_in(3) {
        method = random.one_of(METHODS);
    }
    if random.once_in(3) {
        target = &twisted;
    }
    let version = match random.below(60) {
        0 => "HTTP/2.0",
        1 => "HTTP/1.0",
        2 => "HTTP/9",
        3 => "",
        _ => "HTTP/1.1",
    };
    let mut head = format!("{method} {target} {version}\r\n").into_bytes();
    for _ in 0..random.below(3) {
        head.extend_from_slice(random.one_of(HEADERS).as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    if random.once_in(50) {
        let many = random.below(300);
        head.extend_from_slice(format!("X-{many}: y\r\n").repeat(many).as_bytes());
    }
    if random.once_in(50) {
        let long = random.below(40_000);
        head.extend_from_slice(format!("X: {}\r\n", "z".repeat(long)).as_bytes());
    }
    match random.below(20) {
        0 => {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            body = in_chunks(random, &body);
        }
        1 => {}
        2 => {
            let lie = random.below(body.len() + 50);
            head.extend_from_slice(format!("Content-Length: {lie}\r\n").as_bytes());
        }
        _ => head.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes()),
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    if random.once_in(30) {
        mutate(random, &mut head);
    }
    head.extend_from_slice(&body);
    head
}

fn in_chunks(random: &mut Random, body: &[u8]) -> Vec<u8> {
    let mut chunks = Vec::new();
    for piece in body.chunks(1 + random.below(100)) {
        let size = piece.len() + usize::from(random.once_in(40));
        chunks.extend_from_slice(format!("{size:x}\r\n").as_bytes());
        chunks.extend_from_slice(piece);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(
        random
            .one_of(&["0\r\n\r\n", "0\r\n\r\n", "", "0\r\nX: y\r\n\r\n", "-1\r\n"])
            .as_bytes(),
    );
    chunks
}

fn a_target(random: &mut Random, right: &str) -> String {
    let other = random.once_in(2);
    let mut target = if other { random.one_of(TARGETS) } else { right }.to_owned();
    if random.once_in(4) {
        for _ in 0..=random.below(3) {
            let mut at = random.below(target.len() + 1);
            while !target.is_char_boundary(at) {
                at -= 1;
            }
            target.insert_str(at, random.one_of(PARTS));
        }
    }
    if random.once_in(100) {
        target.push_str(&"/very-long".repeat(random.below(1_000)));
    }
    for n in 0..random.below(3) {
        target.push(if n == 0 { '?' } else { '&' });
        target.push_str(random.one_of(QUERIES));
    }
    target
}

fn a_body(random: &mut Random, right: usize) -> Vec<u8> {
    match random.below(60) {
        0 => return Vec::new(),
        1 => return "[".repeat(random.below(200_000)).into_bytes(),
        2 => return "{\"a\":".repeat(random.below(50_000)).into_bytes(),
        3 => {
            let (open, close) = ("[".repeat(random.below(200)), "]".repeat(random.below(200)));
            return format!("{{\"result\":{open}{close},{}", &BODIES[0][1..]).into_bytes();
        }
        4 => return format!("{{\"{}\":1}}", "k".repeat(random.below(900_000))).into_bytes(),
        5 => return format!("{{\"mode\":\"{}\"}}", "v".repeat(random.below(900_000))).into_bytes(),
        6 => {
            let deep = random.below(260);
            let pattern = match random.below(3) {
                0 => format!("{}x{}", "(".repeat(deep), ")".repeat(deep)),
                1 => format!("{}x{}", "(?:".repeat(deep), ")*".repeat(deep)),
                _ => format!("x{}", "|(y".repeat(deep) + &")".repeat(deep)),
            };
            return json!({"machinePattern": pattern, "detail": {"command": "true"}})
                .to_string()
                .into_bytes();
        }
        7 => {
            let pattern = random.one_of(&[
                "(a*)*b",
                "((a{0,100}){0,100}){0,100}",
                "(?:\\w{1,50}){1,50}",
                "[^x]{999}",
                "(.*)*(.*)*(.*)*x",
            ]);
            return json!({"machinePattern": pattern, "detail": {"command": "true"}})
                .to_string()
                .into_bytes();
        }
        _ => {}
    }
    let other = random.once_in(10);
    let mut text = if other {
        random.one_of(BODIES)
    } else {
        BODIES[right]
    }
    .to_owned();
    for _ in 0..random.below(4) {
        // A value for another one.
        let colons: Vec<usize> = text.match_indices(':').map(|(at, _)| at).collect();
        if let Some(at) = (!colons.is_empty()).then(|| colons[random.below(colons.len())] + 1) {
            let end = text[at..]
                .find([',', '}', ']'])
                .map_or(text.len(), |n| at + n);
            text.replace_range(at..end, random.one_of(VALUES));
        }
    }
    let mut bytes = text.into_bytes();
    if random.once_in(3) {
        mutate(random, &mut bytes);
    }
    bytes
}

/// Some bytes changed, gone, or there twice.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        let end = (at + random.below(20)).min(bytes.len());
        match random.below(4) {
            0 => bytes[at] = random.next() as u8,
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => drop(bytes.splice(at..at, [0xff, 0xfe, 0xc0, 0x80])),
        }
    }
}
