//! At the limits of the system and of the settings: the server says so, keeps serving those who
//! behave, and is as before when the crowd has gone.

mod bystander;
mod common;

use bystander::{alone, beside, has_panicked, limited};
use common::{Server, wait_for};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// How long a crowd stays.
const CROWDED: Duration = Duration::from_secs(3);

/// Clients that keep coming back: as many connections at once as `count`, each begun with `bytes`
/// and then left alone, and begun again within a second when it was cut; for a while.
fn crowd(server: SocketAddr, count: usize, bytes: &[u8]) {
    let started = Instant::now();
    let mut clients: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    while started.elapsed() < CROWDED {
        for client in &mut clients {
            let is_there = client.as_mut().is_some_and(|client| {
                let read = client.read(&mut [0; 4_096]);
                read.is_err_and(|why| why.kind() == std::io::ErrorKind::WouldBlock)
            });
            if !is_there {
                *client = TcpStream::connect_timeout(&server, Duration::from_secs(1)).ok();
                if let Some(client) = client {
                    let _ = client.set_nonblocking(true);
                    let _ = client.write_all(bytes);
                }
            }
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Asserts that the crowd has left nothing behind, and that the log has `mark`; without one, that there was nothing
/// to warn of.
fn recovered(mut server: Server, threads_before: u64, mark: Option<&str>) {
    wait_for("the crowd's threads are gone", || {
        server.process.figure("Threads") <= threads_before + 4
    });
    let log = server.process.log();
    let is_marked = |line: &&String| line.contains(mark.unwrap_or("the slowest are cut"));
    let marked = log.iter().filter(is_marked).count();
    let log_text = log.join("\n");
    assert_eq!(
        marked > 0,
        mark.is_some(),
        "{mark:?} in the log:\n{log_text}"
    );
    assert!(marked < 20, "the log was flooded:\n{log_text}");
    assert_eq!(has_panicked(&server), None);
    assert!(server.process.is_alive());
    assert_eq!(server.get("/healthz").data(), "alive");
}

const HALF_A_HEAD: &[u8] = b"POST /api/v1/task HTTP/1.1\r\nHost: loc";
const HALF_A_BODY: &[u8] =
    b"POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n{";

#[test]
fn few_descriptors() {
    let _alone = alone();
    let server = limited(&[], "ulimit -n 240", &[]);
    let threads = server.process.figure("Threads");
    beside(&server, || crowd(server.address, 250, HALF_A_BODY));
    recovered(server, threads, Some("limit on open files"));
}

#[test]
fn few_threads() {
    let _alone = alone();
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can be somebody else, whom a limit on threads binds");
        return;
    }
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--",
        "prlimit",
        "--nproc=48",
        "--",
    ];
    let server = limited(&nobody, "true", &[]);
    let threads = server.process.figure("Threads");
    beside(&server, || crowd(server.address, 100, HALF_A_HEAD));
    // No connection needs a thread.
    recovered(server, threads, None);
}

#[test]
fn little_memory() {
    let _alone = alone();
    let server = limited(&[], "ulimit -v 400000", &[]);
    let threads = server.process.figure("Threads");
    let most_of_a_body = [HALF_A_BODY, &b" ".repeat(800_000)[..]].concat();
    beside(&server, || crowd(server.address, 120, &most_of_a_body));
    recovered(server, threads, Some("the slowest are cut"));
}

#[test]
fn few_connections() {
    let _alone = alone();
    let server = limited(&[], "true", &["--max-connections", "80"]);
    let threads = server.process.figure("Threads");
    beside(&server, || {
        crowd(server.address, 100, HALF_A_HEAD);
        // Kept alive, and idle.
        crowd(
            server.address,
            100,
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        );
    });
    recovered(server, threads, Some("--max-connections"));
}

/// Requests that are held are not unfinished: nobody gives them up, and they must not fill the house.
#[test]
fn all_that_may_be_held_is_held() {
    let _alone = alone();
    for flags in [["--max-connections", "80"], ["--max-held", "10"]] {
        let server = limited(&[], "true", &flags);
        let waiting =
            server.submit(json!({"machinePattern": "^nobody$", "detail": {"command": "true"}}));
        let wait = format!(
            "GET /api/v1/task/{}?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n",
            waiting["id"].as_str().unwrap()
        );
        let address = server.address;
        beside(&server, || crowd(address, 100, wait.as_bytes()));
        let before = server.metric("sidebike_held_requests");
        wait_for("those who are gone are let go of", || {
            // The agent of the well-behaved has gone with the test.
            server.metric("sidebike_held_requests") <= 1
        });
        eprintln!("{before} were held at the end of the crowd");
        assert_eq!(has_panicked(&server), None);
    }
}

/// A connection from another address of this machine.
fn from(address: [u8; 4], to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else {
        panic!("an address of version 4")
    };
    let own = SocketAddrV4::new(address.into(), 0);
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &own).unwrap();
    connect(&socket, &to).unwrap();
    TcpStream::from(socket)
}

#[test]
fn so_many_from_one_address() {
    let _alone = alone();
    let server = limited(&[], "true", &["--max-connections-per-address", "20"]);
    let address = server.address;
    beside(&server, || {
        let mut held: Vec<TcpStream> = (0..20).map(|_| from([127, 0, 0, 2], address)).collect();
        for stream in &mut held {
            stream.write_all(HALF_A_HEAD).unwrap();
        }
        for _ in 0..50 {
            let mut one_more = from([127, 0, 0, 2], address);
            let _ = one_more.write_all(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n");
            let mut answer = Vec::new();
            let _ = one_more.read_to_end(&mut answer);
            assert!(answer.is_empty(), "there were 20 already");
        }
        // One goes, one comes.
        held.pop();
        wait_for("another one is let in", || {
            let mut another = from([127, 0, 0, 2], address);
            let _ = another.write_all(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n");
            let mut answer = Vec::new();
            another.read_to_end(&mut answer).is_ok() && answer.starts_with(b"HTTP/1.1 200")
        });
    });
    server.process.logged("--max-connections-per-address");
}

/// Connections that are reset before they are accepted: each must be as cheap as any.
#[test]
fn thousands_are_reset_at_once() {
    let _alone = alone();
    let server = limited(&[], "true", &[]);
    let threads = server.process.figure("Threads");
    let idle: Vec<TcpStream> = (0..500)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    beside(&server, || {
        for _ in 0..5_000 {
            let client = TcpStream::connect(server.address).unwrap();
            // Closed with a reset.
            rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        }
    });
    drop(idle);
    wait_for("their threads are gone", || {
        server.process.figure("Threads") <= threads + 4
    });
    assert_eq!(has_panicked(&server), None);
}
