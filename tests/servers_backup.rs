//! Several servers over PostgreSQL in whose place an older backup is put.
#![cfg(all(feature = "pg", feature = "agent", feature = "cli"))]

mod common;
mod postgresql;
mod several;

use common::{Agent, Folder, id, wait_for, wait_within};
use postgresql::PostgreSql;
use rustix::process::Signal;
use serde_json::{Value, json};
use several::{Servers, TAKEOVER, under_load};

/// What a leader says that has found less than it had saved.
const HEALS: &str = "everything is written anew from memory";

#[test]
fn a_leader_writes_anew_what_an_older_backup_has_not() {
    let Some(postgres) = PostgreSql::start(&["fsync=off"]) else {
        return;
    };
    let mut servers = Servers::start(2, &postgres.database());
    under_load(&mut servers, |servers, load| {
        let leader = servers.leader();
        postgres.back_up();
        load.wait_for_more(20);
        postgres.put_back();
        servers.servers[leader].process.logged(HEALS);
        load.wait_for_more(20);
        assert_eq!(servers.leader_now(), Some(leader));
    });
    assert_eq!(servers.term(), 1);
    // The next leader finds it in the database.
    let leader = servers.leader();
    let count =
        |server: usize| servers.servers[server].metric("sidebike_tasks{state=\"succeeded\"}");
    let before = count(leader);
    servers.servers[leader].process.signal(Signal::TERM);
    wait_for("the other one leads", || servers.term() == 2);
    assert_eq!(count(1 - leader), before);
}

/// Lets the other server lead.
fn replace_leader(servers: &mut Servers) {
    let leader = servers.leader();
    servers.servers[leader].process.signal(Signal::TERM);
    assert!(servers.servers[leader].process.ended().success());
    servers.restart(leader);
    servers.leader();
}

/// Waits until a server leads in a term that the agents accept, and everything ends that is there or comes.
fn all_goes_on(servers: &Servers, agents: &[Agent], seen: u64, kept: &str, folder: &Folder) {
    wait_within(TAKEOVER * 2, "the term is above what was seen", || {
        (servers.term() > seen).then_some(())
    });
    let leader = &servers.servers[servers.leader()];
    leader.expect(&agents.iter().collect::<Vec<_>>());
    for label in ["one", "two"] {
        let new = leader.run(json!({"machinePattern": label, "detail": {"command": "echo new"}}));
        assert_eq!(new["state"], "succeeded", "{new}");
    }
    // It had begun when the backup was made, and has ended long since.
    let ended = leader.finished(kept);
    println!("what ran at the backup: {}", ended["state"]);
    assert_eq!(
        folder.lines("started"),
        ["started"],
        "it ran again: {ended}"
    );
}

#[test]
fn servers_rise_above_the_terms_that_an_older_backup_has_not() {
    let Some(postgres) = PostgreSql::start(&["fsync=off"]) else {
        return;
    };
    let mut servers = Servers::start(2, &postgres.database());
    let mut agents = servers.agents(1, "one");
    agents.extend(servers.agents(1, "two"));
    let folder = Folder::new();
    let (started, goes_on) = (folder.file("started"), folder.file("goes-on"));
    let command = format!("echo started >> {started}; until [ -e {goes_on} ]; do sleep 0.05; done");
    let leader = &servers.servers[servers.leader()];
    let task: Value = leader.submit(
        json!({"machinePattern": "one|two", "mode": "any", "ttl": "10m",
        "detail": {"command": command}}),
    );
    let kept = id(&task);
    leader.when(kept, "running", 1);
    // What is running is saved a little later than it is shown.
    let url = servers.url(0).to_owned();
    let running = "SELECT count(*) FROM sb_execution WHERE position('unning' IN convert_from(record, 'UTF8')) > 0";
    postgres.wait_for(&url, running, "1");
    postgres.back_up();
    std::fs::write(&goes_on, "").unwrap();
    assert_eq!(leader.finished(kept)["state"], "succeeded");
    replace_leader(&mut servers);
    replace_leader(&mut servers);
    assert_eq!(servers.term(), 3);
    let lost = servers.servers[servers.leader()]
        .run(json!({"machinePattern": "one|two", "detail": {"command": "echo lost"}}));
    assert_eq!(lost["state"], "succeeded", "{lost}");

    // Under servers that run: the leader is fenced, and says what has happened.
    let leader = servers.leader();
    postgres.put_back();
    let process = &servers.servers[leader].process;
    process
        .logged("the database is in term 1, this server leads in 3: an older backup was put back");
    process.logged("starts anew, as a standby");
    all_goes_on(&servers, &agents, 3, kept, &folder);

    // Under servers that are all started anew.
    let seen = servers.term();
    for server in &mut servers.servers {
        server.process.kill_9();
    }
    postgres.put_back();
    for n in 0..servers.addresses.len() {
        servers.restart(n);
    }
    all_goes_on(&servers, &agents, seen, kept, &folder);
}
