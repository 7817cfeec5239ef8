//! Few descriptors and few threads: slow heads and followers take one descriptor and no thread each, and
//! those who behave are served in time.

mod bystander;
mod common;
mod edge;

use bystander::{alone, has_panicked, limited};
use common::{Folder, Server, id, task, wait_for};
use edge::{Client, get, is_pong, open_descriptors, ping};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A good client is served within this, whatever the others do.
const SERVED: Duration = Duration::from_secs(2);
/// How long good clients come, one after the other, beside slow heads.
const WATCHED: Duration = Duration::from_secs(6);
/// Threads that a server may start for what may wait: not one for each who does. On a busy machine with a database it has
/// been seen to start 33 for 70 followers.
const POOL: u64 = 48;
const HALF_A_HEAD: &[u8] = b"POST /api/v1/task HTTP/1.1\r\nHost: loc";

/// Connections with half a head each, opened again when they were cut, until it is over.
fn slow_heads(server: SocketAddr, count: usize, opened: &AtomicBool, over: &AtomicBool) {
    let open = || {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1)).ok()?;
        stream.write_all(HALF_A_HEAD).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    };
    let mut crowd: Vec<Option<TcpStream>> = (0..count).map(|_| open()).collect();
    opened.store(true, Ordering::Relaxed);
    while !over.load(Ordering::Relaxed) {
        for place in &mut crowd {
            let is_there = place.as_mut().is_some_and(|stream| {
                let read = stream.read(&mut [0; 1_024]);
                read.is_err_and(|why| why.kind() == std::io::ErrorKind::WouldBlock)
            });
            if !is_there {
                *place = open();
            }
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Asks on a connection of its own; how long that took.
fn served(server: SocketAddr, label: &str) -> Result<Duration, String> {
    let started = Instant::now();
    let failed = |why: &dyn std::fmt::Debug| format!("{why:?} after {:?}", started.elapsed());
    let stream = TcpStream::connect_timeout(&server, SERVED).map_err(|why| failed(&why))?;
    stream.set_read_timeout(Some(SERVED)).unwrap();
    let mut client = Client::over(stream);
    client.send(&ping(label));
    match client.answer() {
        Ok(reply) if is_pong(&reply, label) => Ok(started.elapsed()),
        other => Err(failed(&other)),
    }
}

fn good_clients_are_served_beside(heads: usize) {
    let _alone = alone();
    edge::raise_open_files();
    let server = limited(&[], "ulimit -n 1024", &[]);
    let address = server.address;
    let (opened, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (times, failures) = thread::scope(|scope| {
        scope.spawn(|| slow_heads(address, heads, &opened, &over));
        while !opened.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        let started = Instant::now();
        let (mut times, mut failures) = (Vec::new(), Vec::new());
        while started.elapsed() < WATCHED {
            match served(address, &format!("good-{}", times.len() % 50)) {
                Ok(took) => times.push(took),
                Err(why) => failures.push(why),
            }
            thread::sleep(Duration::from_millis(5));
        }
        over.store(true, Ordering::Relaxed);
        (times, failures)
    });
    let slowest = times.iter().max();
    eprintln!("{} served, the slowest in {slowest:?}", times.len());
    assert!(
        failures.is_empty(),
        "{} times: {failures:?}",
        failures.len()
    );
    assert!(slowest.is_some_and(|slowest| *slowest < SERVED));
    assert_eq!(has_panicked(&server), None);
}

#[test]
fn good_clients_are_served_beside_340_slow_heads() {
    good_clients_are_served_beside(340);
}

#[test]
fn good_clients_are_served_beside_900_slow_heads() {
    good_clients_are_served_beside(900);
}

/// What came is as much as one descriptor each.
#[test]
fn an_unfinished_request_takes_one_descriptor() {
    const EACH: usize = 100;
    let _alone = alone();
    edge::raise_open_files();
    let server = limited(&[], "true", &[]);
    let before = open_descriptors(&server);
    let half_a_body = b"POST /api/v1/task HTTP/1.1\r\nContent-Length: 900000\r\n\r\n{".as_slice();
    let mut clients = Vec::new();
    for start in [b"".as_slice(), HALF_A_HEAD, half_a_body] {
        for _ in 0..EACH {
            let mut client = Client::open(server.address);
            client.send(start);
            clients.push(client);
        }
    }
    wait_for("all are accepted", || {
        server.metric("sidebike_connections") > 3 * EACH as u64
    });
    // Whoever is to read what has come has had the time to begin.
    thread::sleep(Duration::from_millis(300));
    let taken = open_descriptors(&server) - before;
    assert!(taken <= 3 * EACH + 10, "{taken} for {} clients", 3 * EACH);
    drop(clients);
}

/// Followers of a running task: they get what is written, and take no thread each.
fn followers(server: &Server, count: usize) {
    let folder = Folder::new();
    let (_talker, _other) = (server.agent("m"), server.agent("other"));
    let mut posted = task("echo first; while [ ! -e gate ]; do sleep 0.05; done; echo last");
    posted["detail"]["workspace"] = folder.path().into();
    let followed = server.submit(posted);
    server.when(id(&followed), "running", 1);
    let threads = server.process.figure("Threads");
    let target = format!("/api/v1/task/{}/output?follow=1", id(&followed));
    let mut streams: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            stream.write_all(&get(&target)).unwrap();
            stream
        })
        .collect();
    let until = |stream: &mut TcpStream, text: &mut String, mark: &str| {
        let mut buffer = [0; 4_096];
        while !text.contains(mark) {
            match stream.read(&mut buffer) {
                Ok(n @ 1..) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
                other => panic!("{other:?} before {mark:?}: {text:?}"),
            }
        }
    };
    let mut texts = vec![String::new(); count];
    for (stream, text) in streams.iter_mut().zip(&mut texts) {
        until(stream, text, "first\n");
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
    let now = server.process.figure("Threads");
    eprintln!("{threads} threads, {now} with {count} followers");
    // What needs the core, the database and held requests goes on.
    for n in 0..20 {
        let started = Instant::now();
        let done = server.run(json!({"machinePattern": "^other$", "detail": {"argv": ["true"]}}));
        assert_eq!(done["state"], "succeeded");
        let held = server.submit(json!({"machinePattern": "^nobody$", "detail": {"command": "x"}}));
        let target = format!("/api/v1/task/{}", id(&held));
        let mut waiting = Client::open(server.address);
        waiting.send(&get(&format!("{target}?wait=60s")));
        server
            .post(&format!("{target}/cancel"), &Value::Null)
            .data();
        let reply = waiting.answer().expect("the held is answered");
        assert_eq!(reply.data()["state"], "canceled");
        served(server.address, "good").expect("served");
        let took = started.elapsed();
        assert!(took < SERVED, "round {n} took {took:?}");
    }
    assert!(now <= threads + POOL, "{now} threads, {threads} before");
    std::fs::write(folder.file("gate"), "").unwrap();
    for (stream, text) in streams.iter_mut().zip(&mut texts) {
        until(stream, text, "\r\n0\r\n\r\n");
        assert!(text.contains("last\n"), "{text:?}");
    }
    assert_eq!(has_panicked(server), None);
}

#[test]
fn followers_take_no_thread_each() {
    let _alone = alone();
    edge::raise_open_files();
    followers(&limited(&[], "true", &["--max-connections", "400"]), 300);
}

/// Where threads are limited by the system, for somebody who is nobody else on this machine.
fn with_80_threads(flags: &[&str]) -> Option<Server> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can be somebody else, whom a limit on threads binds");
        return None;
    }
    let somebody = [
        "setpriv",
        "--reuid=61234",
        "--regid=61234",
        "--clear-groups",
        "--",
        "prlimit",
        "--nproc=80",
        "--",
    ];
    Some(limited(&somebody, "true", flags))
}

#[test]
fn seventy_followers_leave_threads_for_others() {
    let _alone = alone();
    if let Some(server) = with_80_threads(&[]) {
        followers(&server, 70);
    }
}

#[test]
fn seventy_followers_leave_threads_for_others_and_the_database() {
    let _alone = alone();
    let folder = Folder::new();
    let anybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.path(), anybody).unwrap();
    if let Some(server) = with_80_threads(&["--db", &folder.file("db")]) {
        followers(&server, 70);
    }
}
