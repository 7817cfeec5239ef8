//! Several servers over PostgreSQL whose ways to the database break, and whose database fails over.
#![cfg(all(feature = "pg", feature = "agent", feature = "cli"))]

mod common;
mod postgresql;
mod several;

use common::{wait_for, wait_within};
use postgresql::PostgreSql;
use several::{Servers, status, under_load};
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
