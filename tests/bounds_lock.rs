//! The one lock is held for computing that is bounded, never for matching or formatting.

mod common;

use common::Server;
use common::http::request;
use serde_json::json;
use std::time::{Duration, Instant};

/// The longest that the lock has been held so far.
fn longest_hold(server: &Server) -> Duration {
    let page = server.get("/metrics");
    let line = { page.text().lines() }
        .find_map(|line| line.strip_prefix("sidebike_lock_held_seconds_max "));
    Duration::from_secs_f64(line.expect("the figure").parse().unwrap())
}

#[test]
fn a_new_pattern_is_matched_with_all_labels_outside_the_lock() {
    let server = Server::start();
    let mut connection = server.connect();
    for n in 0..400 {
        let poll = json!({"instance": format!("{n:08x}"), "seq": 1,
            "label": format!("{}-{n}", "w".repeat(200)), "host": "h", "version": "1", "jobs": 1,
            "wait": 0, "holds": []});
        let bytes = request(
            "POST",
            "/api/v1/agent/poll",
            "",
            poll.to_string().as_bytes(),
        );
        connection.send(&bytes);
        connection.read().data();
    }
    let before = longest_hold(&server);
    let alternatives: Vec<String> = (0..40).map(|n| format!("w.*{n}w.*x")).collect();
    let started = Instant::now();
    let pattern = alternatives.join("|");
    let task = server.submit(json!({"machinePattern": pattern, "detail": {"command": "true"}}));
    let took = started.elapsed();
    assert_eq!(task["matched"], 0);
    let held = longest_hold(&server);
    assert!(
        held <= before.max(took / 4),
        "the lock was held for {held:?} of {took:?}, before that {before:?} at most"
    );
}
