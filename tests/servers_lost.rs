//! Several servers over PostgreSQL, of which an older backup is put back while all servers are gone: agents are the only
//! ones who know what is lost.
#![cfg(all(feature = "pg", feature = "agent", feature = "cli"))]

mod common;
mod postgresql;
mod several;

use common::{Folder, id, wait_for, wait_within};
use postgresql::PostgreSql;
use serde_json::json;
use several::Servers;
use std::time::Duration;

/// The leader's caution after a loss, and time for it to be noticed.
const CAUTION: Duration = Duration::from_secs(60);

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
