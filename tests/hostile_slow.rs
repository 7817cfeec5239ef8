//! Clients that are slow on purpose: each is cut in time, and those who behave do not notice.

mod bystander;
mod common;

use bystander::{alone, beside, has_panicked, quiet_server};
use common::{Agent, Server, id, wait_for};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// The most that the server may grow, in KiB: 1,200 threads, and a few answers in the making.
const GROWTH_KIB: u64 = 400 * 1024;

/// What a slow client does after its first bytes.
#[derive(Clone, Copy)]
enum Then {
    Nothing,
    AByteASecond,
}

/// `count` clients that send `start` and then what `then` says.
struct Slow {
    clients: Vec<TcpStream>,
    then: Then,
}

impl Slow {
    fn start(server: SocketAddr, count: usize, start: &str, then: Then) -> Slow {
        let client = |_| {
            let mut client = TcpStream::connect(server).expect("the server takes connections");
            // As little of an answer as possible is to fit into this side's buffer.
            let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&client, 4_096);
            client.write_all(start.as_bytes()).expect("it listens");
            client.set_nonblocking(true).unwrap();
            client
        };
        Slow {
            clients: (0..count).map(client).collect(),
            then,
        }
    }

    /// Goes on being slow until every one has been cut. They look for that, but read no answer.
    fn until_cut(mut self, within: Duration) {
        let started = Instant::now();
        while !self.clients.is_empty() {
            let left = self.clients.len();
            assert!(started.elapsed() < within, "{left} were not cut");
            self.clients.retain_mut(|client| {
                let is_sent = match self.then {
                    Then::Nothing => true,
                    Then::AByteASecond => client.write_all(b" ").is_ok(),
                };
                let read = client.read(&mut [0; 256]);
                is_sent && read.is_err_and(|why| why.kind() == ErrorKind::WouldBlock)
            });
            thread::sleep(Duration::from_secs(1));
        }
    }
}

/// A server with a finished task that has a megabyte of output, and that task's id.
fn server_with_output(flags: &[&str]) -> (Server, Agent, String) {
    let server = quiet_server(flags);
    let agent = server.agent("talkative");
    let task = server.run(json!({"machinePattern": "^talkative$",
        "detail": {"command": "yes sixteen characters | head -c 1000000"}}));
    let id = id(&task).to_owned();
    (server, agent, id)
}

const HALF_A_HEAD: &str = "POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\nX-Sl";
const A_BODY: &str = "POST /api/v1/task HTTP/1.1\r\nContent-Length: 900000\r\n\r\n{";

/// The three kinds at once, until all are cut.
fn slow_clients(server: &Server, id: &str, within: Duration) {
    let address = server.address;
    let before = server.process.figure("Threads");
    let ask = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // Enough of each to fill all buffers on the way.
    let deaf = [
        (
            150,
            ask(&format!("/api/v1/task/{id}/output?offset=0")).repeat(9),
        ),
        (120, ask("/api/v1/task?limit=9").repeat(3)),
        (10, ask(&format!("/api/v1/task/{id}"))),
        (10, ask(&format!("/api/v1/task/{id}?wait=5s")).repeat(3)),
    ];
    // They never read, so what there is to see is the server's side.
    let deaf: Vec<Slow> = deaf
        .iter()
        .map(|(count, requests)| Slow::start(address, *count, requests, Then::Nothing))
        .collect();
    let heads = Slow::start(address, 500, HALF_A_HEAD, Then::Nothing);
    let bodies = Slow::start(address, 500, A_BODY, Then::AByteASecond);
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| heads.until_cut(within));
        scope.spawn(|| bodies.until_cut(within));
    });
    wait_for("nobody is left", || {
        server.process.figure("Threads") <= before + 4
    });
    let took = started.elapsed();
    assert!(took < within, "the last one was cut after {took:?}");
    drop(deaf);
}

#[test]
fn slow_clients_are_cut() {
    let _alone = alone();
    let (mut server, _agent, id) =
        server_with_output(&["--max-request-time", "3s", "--max-in-flight", "32"]);
    let peak = server.process.figure("VmHWM");
    // 3 s, and what a busy machine may be late.
    beside(&server, || {
        slow_clients(&server, &id, Duration::from_secs(25))
    });
    let grown = server.process.figure("VmHWM") - peak;
    eprintln!("grown by {grown} KiB");
    assert!(grown < GROWTH_KIB, "grown by {grown} KiB");
    assert_eq!(has_panicked(&server), None);
    assert!(server.process.is_alive());
}

#[test]
#[ignore = "takes more than a minute"]
fn slow_clients_are_cut_with_the_defaults_too() {
    let (server, _agent, id) = server_with_output(&[]);
    slow_clients(&server, &id, Duration::from_secs(75));
    assert_eq!(has_panicked(&server), None);
}

/// Bytes that the kernel keeps for those who are to read them from this port, whether or not a
/// process still has the socket.
fn unread_from(server: SocketAddr) -> u64 {
    let port = format!(":{:04X}", server.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let unread = table.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (to_send, _) = words[4].split_once(':')?;
        { words[1].ends_with(&port) }.then(|| u64::from_str_radix(to_send, 16).unwrap())
    });
    unread.sum()
}

/// The kernel keeps what nobody reads; not for those who were cut for that.
#[test]
fn nothing_is_kept_for_those_who_do_not_read() {
    let _alone = alone();
    let server = quiet_server(&["--max-request-time", "3s"]);
    let agents = server.agents(8, "talkative");
    // More than fits into the buffers of a socket.
    let task = server.run(json!({"machinePattern": "^talkative",
        "detail": {"command": "yes sixteen characters | head -c 1000000"}}));
    drop(agents);
    let target = format!("/api/v1/task/{}/output", id(&task));
    let ask = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let deaf = Slow::start(server.address, 10, &ask, Then::Nothing);
    wait_for("they are being answered", || {
        unread_from(server.address) > 1 << 20
    });
    let started = Instant::now();
    wait_for("nothing is left of it", || unread_from(server.address) == 0);
    // 3 s, and what a busy machine may be late.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(25), "it was kept for {took:?}");
    // As long as they are there themselves.
    drop(deaf);
    assert_eq!(has_panicked(&server), None);
}

/// Few threads answer all who are held: those who wait and then do not read must not stop them.
#[test]
fn those_who_wait_and_do_not_read_hold_up_nobody() {
    let _alone = alone();
    let (server, talkative, _) = server_with_output(&["--max-request-time", "20s"]);
    let task = server.submit(json!({"machinePattern": "^talkative$",
        "detail": {"command": "yes sixteen characters | head -c 1000000; sleep 3"}}));
    let wait = format!("GET /api/v1/task/{}?wait=60s HTTP/1.1\r\n\r\n", id(&task));
    let waiting = Slow::start(server.address, 40, &wait, Then::Nothing);
    // The agent of the well-behaved is held all the time.
    beside(&server, || {
        server.finished(id(&task));
        thread::sleep(Duration::from_secs(2));
    });
    drop((waiting, talkative));
    assert_eq!(has_panicked(&server), None);
}

/// Large bodies that are half there take memory: there is room for so many, and for good ones.
#[test]
fn large_bodies_have_so_much_room() {
    let _alone = alone();
    let mut server = quiet_server(&["--max-request-time", "20s", "--max-in-flight", "16"]);
    let peak = server.process.figure("VmHWM");
    let start = format!("{A_BODY}{}", " ".repeat(800_000));
    let slow = Slow::start(server.address, 100, &start, Then::Nothing);
    beside(&server, || {
        let body = json!({"machinePattern": "nobody", "detail": {"command": "true", "stdin": "x".repeat(300_000)}});
        for _ in 0..5 {
            server.submit(body.clone());
        }
    });
    drop(slow);
    let grown = server.process.figure("VmHWM") - peak;
    eprintln!("grown by {grown} KiB");
    // 16 MiB of bodies, and the tasks that were kept.
    assert!(grown < 100 * 1024, "grown by {grown} KiB");
    let log = server.process.log().join("\n");
    assert!(log.contains("--max-in-flight"), "{log}");
    assert!(server.process.is_alive());
}
