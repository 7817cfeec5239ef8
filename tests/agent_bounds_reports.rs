//! Reports on bad ways to the server: proxies that refuse them, links that are slow.
#![cfg(feature = "agent")]

mod fake;

use fake::gate::{Act, Gate, answer};
use fake::{Agent, Server, eventually};
use serde_json::json;
use sidebike::wire::task::ExecutionState;
use std::time::{Duration, Instant};

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

#[test]
fn on_a_link_that_is_cut_again_and_again_reports_get_shorter() {
    // About 60 KB in one request; a whole report has 175 KB.
    let slow = |call: &str, _: usize| match call {
        "done" | "output" => Act::Slow {
            rate: 60_000,
            cut: Duration::from_secs(1),
        },
        _ => Act::Pass,
    };
    let (server, gate, _agent) = behind(|call, _| match call {
        "done" | "output" => answer(502, "nobody is there"),
        _ => Act::Pass,
    });
    server.start("long", prints(120_000));
    server.start("next", json!({"command": "true"}));
    eventually("both have ended", || {
        gate.lengths("done")
            .last()
            .is_some_and(|length| *length > 160_000)
    });
    gate.change(slow);
    // The result without output does not wait for the output of the other.
    let seen = server.wait(|seen| !seen.results("next").is_empty());
    assert!(seen.results("long").is_empty());
    drop(seen);
    assert_eq!(server.result("long").stdout_bytes, 120_000);
    assert_eq!(server.wait(|_| true).bytes("long"), 120_000);
    assert!(gate.lengths("done").len() < 30);
}

#[test]
fn a_report_may_take_longer_than_a_call_as_long_as_it_goes_on() {
    const MAX_TIME: Duration = Duration::from_secs(60);
    let (server, gate, agent) = behind(|call, _| match call {
        "done" | "output" => Act::Slow {
            rate: 4_500,
            cut: MAX_TIME,
        },
        _ => Act::Pass,
    });
    let begun = Instant::now();
    server.start("long", prints(125_000));
    while server.wait(|_| true).bytes("long") < 125_000 {
        assert!(begun.elapsed() < MAX_TIME, "{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = begun.elapsed();
    assert!(
        took > Duration::from_secs(32),
        "the link was not slow: {took:?}"
    );
    assert!(!agent.log().contains("trying again"), "{}", agent.log());
    let lengths = [gate.lengths("done"), gate.lengths("output")].concat();
    assert!(lengths[0] > 150_000, "{lengths:?}");
}
