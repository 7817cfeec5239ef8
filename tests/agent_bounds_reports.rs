//! Reports on bad ways to the server: proxies that refuse them, links that are slow.
#![cfg(feature = "agent")]

mod fake;

use fake::gate::{Act, Gate, answer};
use fake::{Agent, Server};
use serde_json::json;
use sidebike::wire::task::ExecutionState;

/// A command that prints so many bytes.
fn prints(bytes: usize) -> serde_json::Value {
    json!({"command": format!("head -c {bytes} /dev/zero | tr '\\0' x")})
}

fn behind(rule: impl Fn(&str, usize) -> Act + Send + Sync + 'static) -> (Server, Gate, Agent) {
    let server = Server::new();
    let gate = Gate::new(server.port, rule);
    let agent = Agent::start_behind(&gate, &[], &[]);
    server.until(|seen| !seen.polls.is_empty());
    (server, gate, agent)
}

#[test]
fn an_answer_that_comes_before_the_report_was_sent_is_read() {
    // The proxy looks at the head and closes: the rest of the report cannot be sent.
    let (server, gate, agent) = behind(|call, length| match call {
        "done" | "output" if length > 50_000 => answer(413, "too long"),
        _ => Act::Pass,
    });
    server.start("long", prints(400_000));
    server.start("next", json!({"command": "echo hi"}));
    assert_eq!(server.result("long").stdout_bytes, 400_000);
    assert_eq!(server.result("next").state, ExecutionState::Succeeded);
    let came = server.wait(|_| true).bytes("long");
    assert_eq!(came, 400_000, "nothing is given up");
    let log = agent.log();
    assert!(log.contains("refused with 413"), "{log}");
    // It does not try the long ones again and again.
    let lengths = [gate.lengths("done"), gate.lengths("output")].concat();
    let long = lengths.iter().filter(|length| **length > 50_000).count();
    assert!((1..=4).contains(&long), "{lengths:?}");
}
