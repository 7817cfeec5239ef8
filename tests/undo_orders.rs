//! Undos that the server orders: no more at a time than an agent reads and runs, and none of one that is about to end.

mod common;

use common::puppet::{Puppet, hold, report};
use common::{Server, id};
use serde_json::{Value, json};

/// More than fits into one answer with others of its size, in bytes.
const SCRIPT_BYTES: usize = 900_000;
const DEBTS: usize = 6;
/// What an agent reads of an answer for its jobs, in bytes, and beside that.
const READ_BYTES: usize = (4 << 20) + (64 << 10);

/// One that can take all of them at once.
fn agent<'a>(server: &'a Server, n: usize) -> Puppet<'a> {
    let mut agent = Puppet::unseen(server, n, "m");
    agent.features = json!(["undo", "script"]);
    agent
}

/// Polls, and answers with the orders of a kind.
fn orders(agent: &mut Puppet<'_>, kind: &str, mut members: Value) -> Vec<Value> {
    members["jobs"] = json!(DEBTS);
    let reply = agent.reply(members);
    assert!(reply.body.len() <= READ_BYTES, "{}", reply.body.len());
    let orders = reply.data()[kind].take();
    orders.as_array().cloned().unwrap_or_default()
}

/// A server to which an agent owes undos with a long script each.
fn in_debt() -> Server {
    let server = Server::start();
    let mut agent = agent(&server, 1);
    agent.reply(json!({})).data();
    let script = format!("true # {}", "x".repeat(SCRIPT_BYTES));
    let task =
        json!({"machinePattern": "^m$", "detail": {"script": script, "undo": {"command": "true"}}});
    let tasks: Vec<Value> = (0..DEBTS).map(|_| server.submit(task.clone())).collect();
    let mut holds = Vec::new();
    while holds.len() < DEBTS {
        let started = orders(&mut agent, "start", json!({"holds": holds}));
        holds.extend(started.iter().map(hold));
    }
    let goodbye = json!({"instance": agent.instance, "holds": holds});
    server.post("/api/v1/agent/goodbye", &goodbye).data();
    for task in tasks {
        assert_eq!(server.task(id(&task))["undos"]["owed"], 1);
    }
    server
}

#[test]
fn debts_come_in_answers_that_an_agent_reads() {
    let server = in_debt();
    let mut next = agent(&server, 2);
    let mut running = Vec::new();
    // One that is lost on its way is sent again, within the same bounds.
    orders(&mut next, "undo", json!({}));
    for _ in 0..DEBTS {
        let ordered = orders(&mut next, "undo", json!({"undos": running}));
        running.extend(ordered.iter().map(|order| report(order, "running")));
        if running.len() == DEBTS {
            break;
        }
        assert!(!ordered.is_empty(), "{}", running.len());
    }
    assert_eq!(running.len(), DEBTS);
    let ordered = orders(&mut next, "undo", json!({"undos": running}));
    assert_eq!(ordered, [Value::Null; 0]);
}

#[test]
fn an_agent_that_is_about_to_end_is_ordered_none() {
    let server = in_debt();
    let mut next = agent(&server, 2);
    let ordered = orders(&mut next, "undo", json!({"draining": true}));
    assert_eq!(ordered, [Value::Null; 0]);
    assert!(!orders(&mut next, "undo", json!({})).is_empty());
}
