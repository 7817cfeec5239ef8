//! Each answer belongs to its question: many clients ask for what only they have named, beside slow
//! heads, half bodies and cut connections. No answer goes to another client, none is lost, and nothing
//! that was cut off or stood behind the end is executed.
//!
//! `EDGE_REQUESTS=1000000 SEED=7 cargo test --test edge_answers` for more, or for others.

mod bystander;
mod common;
mod edge;

use bystander::{alone, has_panicked};
use common::http::{Reply, request};
use common::{SIDEBIKE, Server, id};
use edge::{Client, Random, exists, get, ping, setting, strace_words, submit, task_body};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Requests of well-behaved clients; a soak has a million.
const REQUESTS: u64 = 100_000;
/// Under strace each connection takes many times as long: one in so many.
const TRACED_SHARE: u64 = 25;
const INHERITED_SHARE: u64 = 5;
/// Pauses of an attacker, in microseconds, at most.
const PACE_US: u64 = 3_000;
/// Where accept takes 1 ms longer: fewer come than can be accepted.
const TRACED_PACE_US: u64 = 20_000;
const CLIENTS: u64 = 8;
const ATTACKERS: u64 = 3;
/// Connections that an attacker has at once: the numbers of descriptors come and go.
const CROWD: usize = 120;
/// Labels of a client: each makes a machine, whose number is limited.
const LABELS: u64 = 500;
/// Requests sent at once on one connection, at most; `EDGE_PIPELINED=1` sends each alone.
const MAX_PIPELINED: u64 = 4;

fn server_command(before: &[&str]) -> Command {
    let own = [SIDEBIKE, "server", "--listen", "127.0.0.1:0"];
    let words = [
        before,
        &own,
        &["--max-executions", "1000000", "--max-request-time", "3s"],
    ]
    .concat();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .env("RUST_LOG", "info,sidebike::audit=warn");
    command
}

/// A request and what its answer must be.
struct Question {
    bytes: Vec<u8>,
    status: u16,
    /// What only this question's answer has in it.
    mark: String,
}

impl Question {
    fn any(random: &mut Random, client: u64, n: u64) -> Question {
        let name = format!("c{client}-{n}_");
        let (bytes, status, mark) = match random.below(8) {
            0..=2 => {
                let label = format!("c{client}-{}", n % LABELS);
                (ping(&label), 200, format!("pong: {label}\""))
            }
            3 => (submit(&name), 200, format!("\"id\":\"{name}\"")),
            4 => (
                get(&format!("/api/v1/task/{name}")),
                404,
                format!("\\\"{name}\\\""),
            ),
            _ => (
                get(&format!("/nowhere/{name}")),
                404,
                format!("/nowhere/{name};"),
            ),
        };
        Question {
            bytes,
            status,
            mark,
        }
    }

    fn is_answered_by(&self, reply: &Reply) -> bool {
        reply.status == self.status && reply.text().contains(&self.mark)
    }
}

/// Asks until it has asked so often, on connections that are kept for a while, some with one request
/// only, some with several at once. Gives the ids that stood behind the end of a connection.
fn ask(server: SocketAddr, client: u64, count: u64, seed: u64) -> Vec<String> {
    let mut random = Random(seed.wrapping_mul(1_000) + client);
    let pipelined = setting("EDGE_PIPELINED", MAX_PIPELINED);
    let mut behind_the_end = Vec::new();
    let mut connection: Option<Client> = None;
    let mut n = 0;
    while n < count {
        let mut open = connection.take().unwrap_or_else(|| Client::open(server));
        let questions: Vec<Question> = (0..=random.below(pipelined))
            .map(|more| Question::any(&mut random, client, n + more))
            .collect();
        n += questions.len() as u64;
        let mut bytes: Vec<u8> = questions.iter().flat_map(|q| q.bytes.clone()).collect();
        let is_last = pipelined > 1 && random.once_in(12);
        let last = format!("/nowhere/last-of-{client}-{n};");
        if is_last {
            let target = format!("/nowhere/last-of-{client}-{n}");
            bytes.extend(request("GET", &target, "Connection: close\r\n", b""));
            let id = format!("behind-{client}-{n}_");
            bytes.extend(submit(&id));
            behind_the_end.push(id);
        }
        assert!(open.send(&bytes), "SEED={seed}: {client} is cut at {n}");
        for question in &questions {
            let reply = open.answer().unwrap_or_else(|why| {
                panic!("SEED={seed}: lost by {client}: {} ({why:?})", question.mark)
            });
            assert!(
                question.is_answered_by(&reply),
                "SEED={seed}: {client} asked for {} and got {reply:?}",
                question.mark
            );
        }
        if is_last {
            let reply = open.answer().expect("the last answer");
            assert!(reply.text().contains(&last), "SEED={seed}: {reply:?}");
            assert!(open.is_ended(), "SEED={seed}: answered behind the end");
        } else if !random.once_in(6) {
            connection = Some(open);
        } else if random.once_in(2) {
            open.reset();
        }
    }
    behind_the_end
}

/// Opens connections with half a head, half a body, or a request whose answer nobody reads, and cuts
/// them, until it is over. Gives the ids of submits whose body was cut off.
fn attack(server: SocketAddr, attacker: u64, pace: u64, over: &AtomicBool) -> Vec<String> {
    let mut random = Random(!setting("SEED", 1).wrapping_mul(1_000) - attacker);
    let mut cut_off = Vec::new();
    let mut crowd: Vec<Option<Client>> = (0..CROWD).map(|_| None).collect();
    let mut n = 0;
    while !over.load(Ordering::Relaxed) {
        let place = random.below(CROWD as u64) as usize;
        match crowd[place].take() {
            Some(client) if random.once_in(2) => client.reset(),
            // Closed with FIN.
            other => drop(other),
        }
        n += 1;
        let Ok(stream) = TcpStream::connect(server) else {
            continue;
        };
        let mut client = Client::over(stream);
        match random.below(8) {
            0..=4 => {
                let whole = submit(&format!("head-{attacker}-{n}_"));
                client.send(&whole[..1 + random.below(60) as usize]);
            }
            5 | 6 => {
                let id = format!("cut-{attacker}-{n}_");
                let whole = submit(&id);
                let body = task_body(&id).len() as u64;
                client.send(&whole[..whole.len() - 1 - random.below(body) as usize]);
                cut_off.push(id);
            }
            _ => drop(client.send(&get("/api/v1/task?limit=9").repeat(2))),
        }
        crowd[place] = Some(client);
        thread::sleep(Duration::from_micros(random.below(pace)));
    }
    cut_off
}

/// The whole of it, on this server.
fn each_has_its_own_answer(server: &Server, requests: u64, pace: u64) {
    let seed = setting("SEED", 1);
    let (over, address) = (AtomicBool::new(false), server.address);
    let (over, cut_off) = (&over, Mutex::new(Vec::new()));
    let behind_the_end: Vec<String> = thread::scope(|scope| {
        for attacker in 0..ATTACKERS {
            let cut_off = &cut_off;
            scope.spawn(move || {
                let ids = attack(address, attacker, pace, over);
                cut_off.lock().unwrap().extend(ids);
            });
        }
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| scope.spawn(move || ask(address, client, requests / CLIENTS, seed)))
            .collect();
        let asked: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        over.store(true, Ordering::Relaxed);
        let asked = asked.into_iter().flat_map(|ids| match ids {
            Ok(ids) => ids,
            Err(why) => std::panic::resume_unwind(why),
        });
        asked.collect()
    });
    let never = [behind_the_end, cut_off.into_inner().unwrap()].concat();
    eprintln!("{requests} requests, and {} never executed", never.len());
    let mut client = Client::open(address);
    for id in never {
        client.send(&get(&format!("/api/v1/task/{id}")));
        let reply = client.answer().expect("an answer");
        assert_eq!(reply.status, 404, "SEED={seed}: executed: {id}");
    }
    assert_eq!(has_panicked(server), None);
}

/// A server that names descriptors it does not own loses 1 or 2 of 150,000: that takes luck or many
/// rounds, and `EDGE_PIPELINED=1` where pipelined requests are lost anyway.
#[test]
fn each_client_gets_its_own_answers() {
    let _alone = alone();
    let server = Server::from_command(server_command(&[]));
    let requests = setting("EDGE_REQUESTS", REQUESTS);
    each_has_its_own_answer(&server, requests, PACE_US);
}

/// A descriptor that the server did not accept itself: it must be left alone. A server that searches for
/// what it has accepted finds this one within a few thousand requests.
#[test]
fn an_inherited_connection_is_left_alone() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let inherited = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut other, _) = listener.accept().unwrap();
    fcntl_setfd(&inherited, FdFlags::empty()).unwrap();
    let server = Server::from_command(server_command(&[]));
    fcntl_setfd(&inherited, FdFlags::CLOEXEC).unwrap();
    drop(inherited);
    // Were it taken for an accepted one, this would be read and executed.
    other.write_all(&submit("stolen")).unwrap();
    // Held requests and an output have the server do more with descriptors than accept and close them.
    let held = server.submit(json!({"machinePattern": "^nobody$", "detail": {"command": "x"}}));
    let wait = get(&format!("/api/v1/task/{}?wait=60s", id(&held)));
    let mut waiting: Vec<Client> = (0..20).map(|_| Client::open(server.address)).collect();
    for client in &mut waiting {
        client.send(&wait);
    }
    let requests = setting("EDGE_REQUESTS", REQUESTS) / INHERITED_SHARE;
    each_has_its_own_answer(&server, requests, PACE_US);
    assert!(!exists(&server, "stolen"), "read from what is not its own");
    other
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let read = other.read(&mut [0; 4_096]);
    let is_silent = read.as_ref().is_err_and(|why| {
        // Neither answered nor closed.
        why.kind() == std::io::ErrorKind::WouldBlock
    });
    assert!(is_silent, "{read:?} on the inherited connection");
    drop(waiting);
}

/// Whatever happens between the choice of a descriptor's number and the accepting thread going on. As
/// above, with more luck: a number must be freed and taken in that millisecond.
#[test]
fn a_delayed_accept_confuses_nobody() {
    let _alone = alone();
    let Some(words) = strace_words(
        "trace=accept4,accept",
        "inject=accept4,accept:delay_enter=500:delay_exit=500",
    ) else {
        return;
    };
    let server = Server::from_command(server_command(&words));
    let requests = setting("EDGE_REQUESTS", REQUESTS) / TRACED_SHARE;
    each_has_its_own_answer(&server, requests, TRACED_PACE_US);
}
