//! What an answer shows is bounded, and what it says of retries is true.

mod common;

use common::{Agent, Server, id, task, wait_for};
use serde_json::json;

/// The output that one task shows, in bytes, as documented.
const SHOWN: usize = 1 << 20;

#[test]
fn earlier_attempts_share_what_one_task_shows() {
    let server = Server::start();
    let _agents = server.agents(2, "m1");
    let mut posted = task("head -c 300000 /dev/zero | tr '\\0' x; exit 3");
    posted["retry"] = json!({"max": 5});
    let shown = server.run(posted);
    assert_eq!(shown["state"], "failed");
    let mut bytes = 0;
    for execution in shown["result"].as_array().unwrap() {
        let past = execution["attempts"].as_array().unwrap();
        assert_eq!(past.len(), 5);
        for attempt in past.iter().chain([execution]) {
            let stdout = attempt["stdout"].as_str().unwrap();
            assert!(stdout.len() > SHOWN / 30, "each has its share");
            bytes += stdout.len();
        }
    }
    assert!(bytes < SHOWN + 12 * 100, "{bytes} bytes of output");
}

#[test]
fn a_retry_that_is_not_started_in_time_leaves_the_end_of_the_attempt_before() {
    let server = Server::start();
    let agent = Agent::start(server.address, "m1", &[("SIDEBIKE_JOBS", "1")]);
    server.expect(&[&agent]);
    let mut posted = task("exit 3");
    posted["ttl"] = json!(1);
    posted["retry"] = json!({"max": 1, "interval": [3]});
    let submitted = server.submit(posted);
    wait_for("the first attempt has failed", || {
        server.task(id(&submitted))["result"][0]["attempt"] == 2
    });
    // Its only job is taken for longer than the second attempt may wait.
    let other = server.submit(task("sleep 60"));
    server.when(id(&other), "running", 1);
    let ended = server.finished(id(&submitted));
    assert_eq!(
        (&ended["state"], &ended["counts"]["failed"]),
        (&json!("failed"), &json!(1))
    );
    let execution = &ended["result"][0];
    assert_eq!(
        (&execution["exitCode"], &execution["attempt"]),
        (&json!(3), &json!(2))
    );
    let msg = execution["msg"].as_str().unwrap();
    let right =
        msg.contains("attempt 2 was not started within its ttl") && msg.contains("exit code 3");
    assert!(right, "{msg}");
}

#[test]
fn nothing_in_a_task_as_text_forges_a_line_or_commands_a_terminal() {
    let server = Server::start();
    let agent = Agent::start(server.address, "m1 | x", &[]);
    server.expect(&[&agent]);
    let line = r"printf 'a\rb\033[2Jc\342\200\250d\te\n'; exit 3";
    let submitted = server.submit(task(line));
    server.finished(id(&submitted));
    let shown = server.get(&format!("/api/v1/task/{}?format=text", id(&submitted)));
    let lines: Vec<&str> = shown.text().lines().collect();
    assert_eq!(lines[0], "m1 \\| x | a\\rb\\u{1b}[2Jc\\u{2028}d\te");
    assert_eq!(lines[1], "m1 \\| x failed: exit code 3");
}
