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
use std::time::Duration;

/// What a leader says that has found less than it had saved.
const HEALS: &str = "everything is written anew from memory";
/// The leader's caution after a loss, and time for it to be noticed.
const CAUTION: Duration = Duration::from_secs(60);

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

/// All servers are gone meanwhile: agents are the only ones who know what is lost.
#[test]
fn what_an_agent_runs_is_adopted_and_not_started_twice_when_a_backup_was_put_back() {
    let Some(postgres) = PostgreSql::start(&["fsync=off"]) else {
        return;
    };
    let folder = Folder::new();
    let (started, go_on) = (folder.file("started"), folder.file("go-on"));
    let url = postgres.database();
    let mut servers = Servers::start(1, &url);
    let leader = &servers.servers[0];
    let command = format!(
        "echo $SIDEBIKE_MACHINE_LABEL >> {started}; echo before; until [ -e {go_on} ]; do sleep 0.1; done; echo after"
    );
    let any = json!({"machinePattern": "^spare$", "mode": "any", "detail": {"command": command}});
    let any = leader.submit(any);
    wait_for("the backup has the task", || {
        postgres.sql(&url, "SELECT count(*) FROM sb_task") == "1"
    });
    postgres.back_up();
    // What comes now is lost: that there are machines, that one of them was handed the task, and another task.
    let runner = servers.agents(1, "spare").remove(0);
    folder.until("started", 1);
    let unknown = leader.submit(json!({"machinePattern": "^spare$", "mode": "any",
        "detail": {"command": format!("echo unknown >> {started}; exec sleep 3600")}}));
    folder.until("started", 2);
    wait_for("both are saved", || {
        let running = leader.task(id(&unknown))["counts"]["running"] == json!(1);
        running && leader.task(id(&any))["counts"]["running"] == json!(1)
    });

    servers.servers[0].process.kill_9();
    postgres.put_back();
    servers.restart(0);
    servers.leader();
    let leader = &servers.servers[0];
    leader
        .process
        .logged("the database has lost commits that it had acknowledged");
    wait_for("what runs is adopted", || {
        leader.task(id(&any))["counts"]["running"] == json!(1)
    });
    assert_eq!(leader.metric("sidebike_db_losses_total"), 1);
    assert_eq!(leader.metric("sidebike_adopted_total"), 1);

    // Somebody else could run it, and does not; what is new waits as well.
    let other = servers.agents(1, "spare").remove(0);
    let new = leader.submit(json!({"machinePattern": "^spare$", "mode": "any",
        "detail": {"command": format!("echo new >> {started}")}}));
    let waits = leader.task(id(&new));
    let msg = waits["msg"].as_str().unwrap_or_default();
    assert!(msg.contains("the database has lost"), "{waits}");
    folder.write("go-on");
    let ended = leader.finished(id(&any));
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(
        ended["result"][0]["instance"].as_str(),
        Some(&*runner.instance()),
        "{ended}"
    );
    // The rest of its output is there, whatever was sent before the loss.
    let lines = ended["detail"]["result"].to_string();
    assert!(lines.contains("after"), "{lines}");
    let gone = leader.get(&format!("/api/v1/task/{}", id(&unknown)));
    assert_eq!(gone.status, 404, "its task is lost: {}", gone.text());
    assert_eq!(folder.lines("started"), ["spare", "unknown"]);

    // In the end everything goes on.
    wait_within(CAUTION, "the new task has ended", || {
        (leader.task(id(&new))["state"] == "succeeded").then_some(())
    });
    assert_eq!(folder.lines("started"), ["spare", "unknown", "new"]);
    for agent in [&runner, &other] {
        let log = agent.0.log();
        let killed = log.iter().find(|line| line.contains("canceled"));
        assert_eq!(killed, None);
    }
}
