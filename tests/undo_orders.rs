//! Undos that the server orders: no more at a time than an agent reads and runs, and none of one that is about to end.

mod common;

use common::{Server, id};
use serde_json::{Value, json};

/// More than fits into one answer with others of its size, in bytes.
const SCRIPT_BYTES: usize = 900_000;
const DEBTS: usize = 6;
/// What an agent reads of an answer for its jobs, in bytes, and beside that.
const READ_BYTES: usize = (4 << 20) + (64 << 10);

struct Agent<'a> {
    server: &'a Server,
    instance: &'static str,
    seq: u64,
}

impl Agent<'_> {
    /// Polls, and answers with the orders and the size of the answer.
    fn poll(&mut self, more: Value) -> (Value, usize) {
        self.seq += 1;
        let mut poll = json!({
            "instance": self.instance, "seq": self.seq, "label": "m", "host": "h", "jobs": 8, "wait": 0,
            "features": ["undo", "script"], "holds": [], "undos": [],
        });
        for (name, value) in more.as_object().unwrap() {
            poll[name] = value.clone();
        }
        let reply = self.server.post("/api/v1/agent/poll", &poll);
        (reply.data(), reply.body.len())
    }
}

fn ids(orders: &Value, state: &str) -> Vec<Value> {
    let orders = orders.as_array().into_iter().flatten();
    let listed = orders.map(|order| {
        json!({"execution": order["execution"], "attempt": order["attempt"], "state": state, "by": "agent"})
    });
    listed.collect()
}

/// A server to which an agent owes undos with a long script each.
fn in_debt() -> Server {
    let server = Server::start();
    let mut agent = Agent {
        server: &server,
        instance: "a1a1a1a1a1a1a1a1",
        seq: 0,
    };
    agent.poll(json!({}));
    let script = format!("true # {}", "x".repeat(SCRIPT_BYTES));
    let task =
        json!({"machinePattern": "^m$", "detail": {"script": script, "undo": {"command": "true"}}});
    let tasks: Vec<Value> = (0..DEBTS).map(|_| server.submit(task.clone())).collect();
    let mut holds = Vec::new();
    while holds.len() < DEBTS {
        let (orders, bytes) = agent.poll(json!({"holds": holds}));
        assert!(bytes <= READ_BYTES, "{bytes}");
        holds.extend(ids(&orders["start"], "running"));
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
    let mut next = Agent {
        server: &server,
        instance: "b2b2b2b2b2b2b2b2",
        seq: 0,
    };
    let mut running = Vec::new();
    // One that is lost on its way is sent again, within the same bounds.
    next.poll(json!({}));
    for _ in 0..DEBTS {
        let (orders, bytes) = next.poll(json!({"undos": running}));
        assert!(bytes <= READ_BYTES, "{bytes}");
        running.extend(ids(&orders["undo"], "running"));
        if running.len() == DEBTS {
            break;
        }
        assert!(!orders["undo"].is_null(), "{}", running.len());
    }
    assert_eq!(running.len(), DEBTS);
    let (orders, _) = next.poll(json!({"undos": running}));
    assert_eq!(orders["undo"], Value::Null);
}

#[test]
fn an_agent_that_is_about_to_end_is_ordered_none() {
    let server = in_debt();
    let mut next = Agent {
        server: &server,
        instance: "b2b2b2b2b2b2b2b2",
        seq: 0,
    };
    let (orders, _) = next.poll(json!({"draining": true}));
    assert_eq!(orders["undo"], Value::Null);
    let (orders, _) = next.poll(json!({}));
    assert!(!ids(&orders["undo"], "running").is_empty());
}
