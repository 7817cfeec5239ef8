//! Several servers over PostgreSQL: the leader is stopped, killed or cut off in the middle of one commit.
#![cfg(all(feature = "pg", feature = "agent", feature = "cli"))]

mod common;
mod postgresql;
mod several;

use common::http::{Connection, Reply, request};
use common::{wait_for, wait_within};
use postgresql::PostgreSql;
use rustix::process::Signal;
use serde_json::Value;
use several::way::{Part, Way};
use several::{LOADED, Servers, status, under_load};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

/// The longest time until another server leads: 10 s of silence, a look, and the load, on a busy machine.
const IN_TIME: Duration = Duration::from_secs(25);
/// The task whose commit is held.
const HELD: &str = "the-held-one";

/// One that waits as long as it takes; `None` if the connection ends without an answer.
fn submit(address: SocketAddr, task: &Value) -> Option<Reply> {
    let mut connection = Connection::try_open(address)?;
    let body = task.to_string();
    let headers = "Connection: close\r\n";
    connection.send(&request("POST", "/api/v1/task", headers, body.as_bytes()));
    connection.try_read(true)
}

/// What somebody is told who gets no acknowledgement: that it may have begun, or nothing at all.
fn is_no_acknowledgement(reply: Option<Reply>) {
    if let Some(reply) = reply {
        assert_eq!(reply.status, 503, "{}", reply.text());
        let has_begun = reply.header("Sidebike-Begun") == Some("yes");
        let is_refused = reply.header("Sidebike-Leader").is_some();
        assert!(has_begun || !is_refused, "it may be saved: {reply:?}");
    }
}

fn wait_for_another(address: SocketAddr) {
    wait_within(IN_TIME, "the other one leads", || {
        (status(address, "GET", "/leader") == Some(200)).then_some(())
    });
}

fn wait_for_standby(address: SocketAddr) {
    wait_for("it stands by", || {
        status(address, "GET", "/healthz") == Some(200)
            && status(address, "GET", "/leader") == Some(503)
    });
}

/// Asks of whoever is stopped, which the kernel keeps for it.
struct Asked(Vec<Connection>);

impl Asked {
    fn of(address: SocketAddr) -> Asked {
        let poll = br#"{"instance": "0123456789abcdef", "seq": 1, "label": "m", "jobs": 1}"#;
        let asks = [
            request("GET", "/leader", "", b""),
            request("GET", "/api/v1/task", "", b""),
            request("GET", "/api/v1/task/task-0-0", "", b""),
            request("DELETE", "/api/v1/task/task-0-0", "", b""),
            request("POST", "/api/v1/agent/poll", "", poll),
        ];
        let ask = |ask: &Vec<u8>| {
            let mut connection = Connection::open(address);
            connection.send(ask);
            connection
        };
        Asked(asks.iter().map(ask).collect())
    }

    fn are_not_answered(self) {
        for mut connection in self.0 {
            if let Some(reply) = connection.try_read(true) {
                assert_eq!(reply.status, 503, "{}", reply.text());
            }
        }
    }
}

/// Whether a task is in the database.
fn is_saved(postgres: &PostgreSql, servers: &Servers, id: &str) -> bool {
    let found = format!("SELECT count(*) FROM sb_task WHERE position('{id}'::bytea IN record) > 0");
    match postgres.sql(servers.url(0), &found).as_str() {
        "0" => false,
        "1" => true,
        many => panic!("{many} tasks"),
    }
}

/// The database has applied a commit, and the leader is stopped before it hears so.
fn stopped_before_the_answer(postgres: &PostgreSql, comes: Comes) {
    let (mut servers, ways) = Servers::by_ways(2, postgres);
    under_load(&mut servers, |servers, load| {
        let leader = servers.leader();
        let (old, new) = (servers.addresses[leader], servers.addresses[1 - leader]);
        let (process, way) = (&servers.servers[leader].process, &ways[leader]);
        way.hold(Part::Answer, HELD);
        let task = load.task(HELD, LOADED);
        thread::scope(|scope| {
            let submitted = scope.spawn(|| submit(old, &task));
            way.wait_until_held();
            process.signal(Signal::STOP);
            assert!(is_saved(postgres, servers, HELD));
            let asked = Asked::of(old);
            wait_for_another(new);
            load.wait_for_more(20);
            if comes == Comes::WhileStopped {
                way.release();
                way.wait_until_answered();
            }
            process.signal(Signal::CONT);
            asked.are_not_answered();
            if comes == Comes::Later {
                // It waits for that answer, and is mute.
                assert_ne!(status(old, "GET", "/leader"), Some(200));
                way.release();
            }
            process.logged("starts anew, as a standby");
            is_no_acknowledgement(submitted.join().unwrap());
            wait_for_standby(old);
        });
        // It was applied, so the next leader has it.
        assert_eq!(
            status(new, "GET", &format!("/api/v1/task/{HELD}")),
            Some(200)
        );
        load.acknowledged(HELD);
    });
    assert_eq!(servers.term(), 2);
}

/// When the answer of the database comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comes {
    WhileStopped,
    Later,
}

#[test]
fn a_leader_that_is_stopped_between_a_commit_and_its_answer_says_nothing_stale() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    thread::scope(|scope| {
        for comes in [Comes::WhileStopped, Comes::Later] {
            let postgres = &postgres;
            scope.spawn(move || stopped_before_the_answer(postgres, comes));
        }
    });
}

/// The leader is stopped or killed when the database has half of a commit.
fn stopped_in_the_middle(postgres: &PostgreSql, signal: Signal) {
    let (mut servers, ways) = Servers::by_ways(2, postgres);
    under_load(&mut servers, |servers, load| {
        let leader = servers.leader();
        let (old, new) = (servers.addresses[leader], servers.addresses[1 - leader]);
        let way: &Way = &ways[leader];
        way.hold(Part::SecondHalf, HELD);
        let task = load.task(HELD, LOADED);
        thread::scope(|scope| {
            let submitted = scope.spawn(|| submit(old, &task));
            way.wait_until_held();
            servers.servers[leader].process.signal(signal);
            wait_for_another(new);
            load.wait_for_more(20);
            // What comes after all is fenced, all of it.
            way.release();
            way.wait_until_answered();
            assert!(!is_saved(postgres, servers, HELD));
            assert_eq!(
                status(new, "GET", &format!("/api/v1/task/{HELD}")),
                Some(404)
            );
            if signal == Signal::STOP {
                let process = &servers.servers[leader].process;
                process.signal(Signal::CONT);
                process.logged("starts anew, as a standby");
                wait_for_standby(old);
            }
            is_no_acknowledgement(submitted.join().unwrap());
        });
        let again = servers.ask("POST", "/api/v1/task", task.to_string().as_bytes());
        assert_eq!(again.status, 200, "{}", again.text());
        load.acknowledged(HELD);
    });
    assert_eq!(servers.term(), 2);
}

#[test]
fn half_a_commit_blocks_nobody_and_changes_nothing() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    thread::scope(|scope| {
        for signal in [Signal::STOP, Signal::KILL] {
            let postgres = &postgres;
            scope.spawn(move || stopped_in_the_middle(postgres, signal));
        }
    });
}

#[test]
fn a_commit_whose_connection_breaks_is_no_failover_whether_it_was_applied_or_not() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let (mut servers, ways) = Servers::by_ways(2, &postgres);
    under_load(&mut servers, |servers, load| {
        let leader = servers.leader();
        let (address, way) = (servers.addresses[leader], &ways[leader]);
        for (part, id) in [
            (Part::SecondHalf, "half-of-it"),
            (Part::Answer, "all-of-it"),
        ] {
            way.hold(part, id);
            let task = load.task(id, LOADED);
            thread::scope(|scope| {
                let submitted = scope.spawn(|| submit(address, &task));
                way.wait_until_held();
                way.lose();
                is_no_acknowledgement(submitted.join().unwrap());
            });
            // Nobody was promised anything: it is withdrawn, unless it was saved by the repetition before that was known.
            let again = servers.ask("POST", "/api/v1/task", task.to_string().as_bytes());
            assert!([200, 409].contains(&again.status), "{}", again.text());
            assert!(is_saved(&postgres, servers, id));
            load.acknowledged(id);
        }
        assert_eq!(servers.leader_now(), Some(leader));
    });
    assert_eq!(servers.term(), 1);
}
