//! Several servers over PostgreSQL whose ways to the database break, and whose database fails over.
#![cfg(all(feature = "pg", feature = "agent", feature = "cli"))]

mod common;
mod postgresql;
mod several;

use common::http::{Connection, request};
use common::{id, wait_for, wait_within};
use postgresql::PostgreSql;
use rustix::process::Signal;
use serde_json::json;
use several::{Servers, TAKEOVER, status, under_load};
use std::net::TcpStream;
use std::time::Duration;

#[test]
fn a_leader_that_is_cut_off_from_the_database_is_mute_before_another_one_leads() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let (mut servers, ways) = Servers::by_ways(2, &postgres);
    under_load(&mut servers, |servers, load| {
        let leader = servers.leader();
        let (old, new) = (servers.addresses[leader], servers.addresses[1 - leader]);
        ways[leader].cut(true);
        wait_within(Duration::from_secs(40), "the other one leads", || {
            let leads = status(new, "GET", "/leader") == Some(200);
            let is_told = leads.then(|| status(old, "GET", "/leader"));
            is_told.inspect(|told| assert_eq!(*told, Some(503), "two lead"))
        });
        load.wait_for_more(20);
        ways[leader].cut(false);
        servers.servers[leader]
            .process
            .logged("starts anew, as a standby");
        wait_for("it stands by", || {
            status(old, "GET", "/healthz") == Some(200)
        });
    });
    assert_eq!(servers.term(), 2);
}

#[test]
fn what_was_passed_on_to_a_frozen_leader_is_answered_when_another_one_leads() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let servers = Servers::start(3, &postgres.database());
    let leader = servers.leader();
    let task = json!({"machinePattern": "^nobody$", "detail": {"command": "true"}});
    let task = servers.ask("POST", "/api/v1/task", task.to_string().as_bytes());
    let wait = format!("/api/v1/task/{}?wait=1h", id(&task.data()));
    // One of them takes the lead, the other one sees who does.
    let standbys = (0..3).filter(|n| *n != leader);
    let waits = standbys.map(|n| {
        let stream = TcpStream::connect(servers.addresses[n]).unwrap();
        stream.set_read_timeout(Some(TAKEOVER)).unwrap();
        let mut connection = Connection::over(stream);
        connection.send(&request("GET", &wait, "", b""));
        let server = &servers.servers[n];
        wait_for("it waits at the leader", || {
            server.metric("sidebike_forwarded") == 1
        });
        (server, connection)
    });
    let waits: Vec<_> = waits.collect();
    servers.servers[leader].process.signal(Signal::STOP);
    for (server, mut connection) in waits {
        let reply = connection.try_read(true).expect("an answer");
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert_eq!(server.metric("sidebike_forwarded"), 0);
    }
    servers.servers[leader].process.signal(Signal::CONT);
}

#[test]
fn a_failover_of_the_database_to_its_synchronous_standby_loses_nothing() {
    let Some(primary) = PostgreSql::start(&[]) else {
        return;
    };
    let url = primary.database();
    let standby = primary.standby();
    let (_, name) = url.rsplit_once('/').unwrap();
    let (one, two) = (primary.port(), standby.port());
    let url = format!("postgres://postgres@127.0.0.1:{one},127.0.0.1:{two}/{name}");
    let mut servers = Servers::start(2, &url);
    under_load(&mut servers, |servers, load| {
        let leader = &servers.servers[servers.leader()];
        assert_eq!(leader.metric("sidebike_db_synchronous"), 1);
        primary.kill();
        standby.promote();
        load.wait_for_more(20);
    });
}
