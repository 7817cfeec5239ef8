//! Reports on bad ways to the server: proxies that refuse them, links that are slow.
#![cfg(feature = "agent")]

mod fake;

use fake::gate::{Act, Gate, answer};
use fake::{Agent, Server, eventually};
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

#[test]
fn a_report_that_fails_is_said_once_for_each_reason() {
    let (server, gate, agent) = behind(|call, _| match call {
        "done" => answer(403, "<html>the firewall says no</html>"),
        _ => Act::Pass,
    });
    server.start("x", json!({"command": "true"}));
    let refused = |status: u16, words: &str| format!("refused with {status}: {words}");
    eventually("the refusal is said", || {
        agent.log().contains(&refused(
            403,
            "<html>the firewall says no</html>; trying again",
        ))
    });
    let tries = gate.lengths("done").len();
    eventually("it is tried again", || {
        gate.lengths("done").len() >= tries + 3
    });
    assert_eq!(agent.log().matches("the firewall says no").count(), 1);
    // The reason changes: that is said, with how often it failed.
    gate.change(|call, _| match call {
        "done" => answer(502, "nobody is there"),
        _ => Act::Pass,
    });
    eventually("the other reason is said", || {
        agent.log().contains("nobody is there; trying again (")
    });
    gate.change(|_, _| Act::Pass);
    server.result("x");
    eventually("it works", || agent.log().contains("done: works again"));
    let log = agent.log();
    assert_eq!(log.matches("trying again").count(), 2, "{log}");
}

#[test]
fn a_poll_that_fails_for_another_reason_says_so() {
    let (server, gate, agent) = behind(|_, _| Act::Pass);
    gate.change(|_, _| answer(502, "a proxy without a server"));
    server.start("x", json!({"command": "true"})); // ends the poll that is held
    eventually("the first reason is said", || {
        agent
            .log()
            .contains("a proxy without a server; trying again until")
    });
    gate.change(|call, _| match call {
        "poll" => answer(422, "{\"signal\":-1,\"msg\":\"the label is not allowed\"}"),
        _ => Act::Pass,
    });
    eventually("the second reason is said", || {
        agent
            .log()
            .contains("refused with 422: the label is not allowed")
    });
    assert!(agent.log().contains("failures so far"));
}
