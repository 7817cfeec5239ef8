//! A program of the test's own that speaks as an agent: it does what the test says, when the test says it.

use super::http::{self, Connection, Reply};
use super::{Server, wait_for};
use serde_json::{Value, json};

/// An agent that does what the test says.
pub struct Puppet<'a> {
    server: &'a Server,
    pub instance: String,
    label: String,
    seq: u64,
    pub features: Value,
}

impl<'a> Puppet<'a> {
    /// One that has polled once.
    pub fn new(server: &'a Server, n: usize, label: &str) -> Puppet<'a> {
        let mut puppet = Puppet::unseen(server, n, label);
        puppet.poll(json!([]), json!([]));
        puppet
    }

    /// One that the server does not know yet.
    pub fn unseen(server: &'a Server, n: usize, label: &str) -> Puppet<'a> {
        Puppet {
            server,
            instance: instance(n),
            label: label.into(),
            seq: 0,
            features: json!(["undo", "probes"]),
        }
    }

    fn body(&mut self, holds: Value, undos: Value, wait: u64) -> Value {
        self.seq += 1;
        json!({
            "instance": self.instance, "seq": self.seq, "label": self.label, "host": "host-1",
            "jobs": 4, "wait": wait, "holds": holds, "undos": undos, "features": self.features,
        })
    }

    /// A poll that is answered at once.
    pub fn poll(&mut self, holds: Value, undos: Value) -> Value {
        self.reply(json!({"holds": holds, "undos": undos})).data()
    }

    /// The whole answer to a poll of which some members are given.
    pub fn reply(&mut self, members: Value) -> Reply {
        let mut body = self.body(json!([]), json!([]), 0);
        for (name, value) in members.as_object().unwrap() {
            body[name] = value.clone();
        }
        self.server.post("/api/v1/agent/poll", &body)
    }

    /// A poll that is held; it is given up when the connection is dropped.
    pub fn held_poll(&mut self, holds: Value, undos: Value) -> Connection {
        let body = self.body(holds, undos, 25).to_string();
        let mut connection = self.server.connect();
        let request = http::request("POST", "/api/v1/agent/poll", "", body.as_bytes());
        connection.send(&request);
        wait_for("a held poll", || {
            self.server.metric("sidebike_held_requests") > 0
        });
        connection
    }

    /// The only order to start something.
    pub fn ordered(&mut self) -> Value {
        let orders = self.poll(json!([]), json!([]));
        assert_eq!(
            orders["start"].as_array().map(Vec::len),
            Some(1),
            "{orders}"
        );
        orders["start"][0].clone()
    }

    pub fn done(&self, results: Value, undos: Value) -> Value {
        let body = json!({"instance": self.instance, "results": results, "undos": undos});
        self.server.post("/api/v1/agent/done", &body).data()
    }
}

/// The instance id of a puppet.
pub fn instance(n: usize) -> String {
    format!("{n:016x}")
}

/// What it says of the undo of what it was ordered to start, or of an undo that it was ordered to run.
pub fn report(order: &Value, state: &str) -> Value {
    json!({
        "execution": order["execution"], "attempt": order["attempt"], "state": state, "by": "agent",
        "reason": "ended", "tries": 1, "output": "undone\n"
    })
}

/// The result of what it was ordered to start.
pub fn ended(order: &Value, state: &str) -> Value {
    json!({
        "execution": order["execution"], "attempt": order["attempt"], "state": state,
        "exitCode": 0, "durationMs": 5
    })
}

/// That it runs what it was ordered to start.
pub fn hold(order: &Value) -> Value {
    json!({"execution": order["execution"], "attempt": order["attempt"], "state": "running"})
}
