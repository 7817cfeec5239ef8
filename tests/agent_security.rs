//! Who commands an agent, from outside: its token, and what the owner of its machine allows.
//!
//! The real binary on both sides. To add a case of what may run: a line in the tables below.
#![cfg(all(feature = "server", feature = "agent"))]

mod common;

use common::http::{Reply, request};
use common::{Folder, Process, SIDEBIKE, Server, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::Command;

const PEOPLE: &str = "people-0123456789-abcdefghij";
const OLD: &str = "qWeRtYuIoP-old-1357924680-AsDfGh";
const NEW: &str = "zXcVbNmLkJ-new-2468013579-PoIuYt";
/// Lines that say that the token is not accepted.
const NOT_ACCEPTED: &str = "does not accept the agent's token (SIDEBIKE_AGENT_TOKEN)";

fn agent(server: &Server, flags: &[&str], env: &[(&str, &str)]) -> Process {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["agent", "--machine-label", "m", "--registry-address"])
        .arg(server.address.to_string())
        .args(flags)
        .envs(env.iter().copied());
    Process::start(command)
}

/// A server that takes the token of people and the agents' tokens in a file.
fn closed_server(file: &str) -> Server {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .env("SIDEBIKE_TOKEN", PEOPLE)
        .env("SIDEBIKE_AGENT_TOKEN_FILE", file);
    Server::from_command(command)
}

fn ask(server: &Server, method: &str, target: &str, body: &Value) -> Reply {
    let headers = format!("Connection: close\r\nAuthorization: Bearer {PEOPLE}\r\n");
    let body = match method {
        "GET" => String::new(),
        _ => body.to_string(),
    };
    server.raw(&request(method, target, &headers, body.as_bytes()))
}

fn run(server: &Server, detail: Value) -> Value {
    let task = json!({"machinePattern": "^m$", "detail": detail});
    let task = ask(server, "POST", "/api/v1/task?wait=60s", &task).data();
    assert_eq!(task["matched"], 1, "{task}");
    task["result"][0].clone()
}

fn online(server: &Server) {
    wait_for("the agent is online", || {
        let machines = ask(server, "GET", "/api/v1/machine", &Value::Null).data();
        machines[0]["state"] == "online"
    });
}

fn count(agent: &Process, mark: &str) -> usize {
    agent
        .log()
        .iter()
        .filter(|line| line.contains(mark))
        .count()
}

/// No part of a token, as text or as the digits of its bytes.
fn assert_no_trace_of(token: &str, text: &str) {
    let digits: String = text.chars().filter(|c| c.is_ascii_hexdigit()).collect();
    for part in token.as_bytes().windows(6) {
        let part = std::str::from_utf8(part).unwrap();
        assert!(!text.contains(part), "{part} in {text}");
        let hex: String = part.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!digits.contains(&hex), "{part} as {hex} in {text}");
    }
}

#[test]
fn a_changed_token_needs_no_restart() {
    let folder = Folder::new();
    let (servers, agents) = (folder.file("servers"), folder.file("agents"));
    std::fs::write(&servers, NEW).unwrap();
    std::fs::write(&agents, OLD).unwrap();
    let server = closed_server(&servers);
    let agent = agent(&server, &[], &[("SIDEBIKE_AGENT_TOKEN_FILE", &agents)]);

    // The wrong one: said once, tried again and again.
    agent.logged(NOT_ACCEPTED);
    wait_for("it tries again", || {
        let metrics = ask(&server, "GET", "/metrics", &Value::Null);
        let refused = metrics.text().lines().filter(|line| line.contains("401"));
        let count: u64 = refused
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum();
        count >= 3
    });
    assert_eq!(count(&agent, NOT_ACCEPTED), 1);
    let refused = "an agent at 127.0.0.1 is refused: the token is not known";
    assert_eq!(count(&server.process, refused), 1);

    // The right one, without a word to the agent.
    std::fs::write(&agents, format!("{NEW}\n")).unwrap();
    online(&server);
    agent.logged("the token has changed");

    // Another one: the poll that is held ends, and nothing is run with the old one.
    std::fs::write(&servers, OLD).unwrap();
    server.process.signal(Signal::HUP);
    wait_for("the agent is refused again", || {
        count(&agent, NOT_ACCEPTED) == 2
    });
    std::fs::write(&agents, OLD).unwrap();
    assert_eq!(
        run(&server, json!({"command": "true"}))["state"],
        "succeeded"
    );

    // And on HUP.
    std::fs::write(&agents, NEW).unwrap();
    agent.signal(Signal::HUP);
    agent.logged("HUP: a new token was read");
    std::fs::remove_file(&agents).unwrap();
    agent.signal(Signal::HUP);
    agent.logged("the token in use stays in use");
}

#[test]
fn a_token_shows_nowhere() {
    let folder = Folder::new();
    let (servers, agents) = (folder.file("servers"), folder.file("agents"));
    std::fs::write(&servers, OLD).unwrap();
    std::fs::write(&agents, NEW).unwrap();
    let server = closed_server(&servers);
    let agent = agent(
        &server,
        &[],
        &[
            ("SIDEBIKE_AGENT_TOKEN_FILE", &agents),
            ("RUST_LOG", "trace"),
        ],
    );
    agent.logged(NOT_ACCEPTED);
    std::fs::write(&agents, OLD).unwrap();
    online(&server);
    let result = run(&server, json!({"command": "env; cat /proc/self/environ"}));
    let shown = result["stdout"].as_str().unwrap();
    assert!(shown.contains("SIDEBIKE_TASK_ID"), "{shown}");
    assert!(!shown.contains("AGENT_TOKEN"), "{shown}");
    agent.signal(Signal::TERM);
    agent.logged("goodbye");

    let log = agent.log().join("\n");
    // The libraries do log: otherwise this test shows nothing.
    assert!(log.contains("ureq"), "{log}");
    for token in [OLD, NEW] {
        assert_no_trace_of(token, &log);
        assert_no_trace_of(token, shown);
        assert_no_trace_of(token, &server.process.log().join("\n"));
    }
}

#[test]
fn a_token_in_the_environment_is_not_handed_on() {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .env("SIDEBIKE_TOKEN", PEOPLE)
        .env("SIDEBIKE_AGENT_TOKEN", format!("{NEW},{OLD}"));
    let server = Server::from_command(command);
    let agent = agent(
        &server,
        &[],
        &[
            ("SIDEBIKE_AGENT_TOKEN", OLD),
            ("SIDEBIKE_TOKEN", PEOPLE),
            ("SIDEBIKE_READ_TOKEN_FILE", "/some/where"),
        ],
    );
    online(&server);
    let result = run(
        &server,
        json!({"command": "env; tr '\\0' '\\n' </proc/$PPID/cmdline"}),
    );
    let shown = result["stdout"].as_str().unwrap();
    assert!(shown.contains("--machine-label"), "{shown}");
    assert!(!shown.contains("TOKEN"), "{shown}");
    assert_no_trace_of(OLD, shown);
    assert_no_trace_of(PEOPLE, shown);
    assert_eq!(count(&agent, "NO TOKEN"), 0);
}

#[test]
fn what_a_missing_or_overheard_token_means_is_said_at_the_start() {
    let server = Server::start();
    agent(&server, &[], &[]).logged("NO TOKEN IS SET (SIDEBIKE_AGENT_TOKEN)");
    // Nobody is there: addresses of TEST-NET-1 are for documentation.
    let far = ["--registry-address", "192.0.2.1"];
    let mut command = Command::new(SIDEBIKE);
    command
        .arg("agent")
        .args(far)
        .env("SIDEBIKE_AGENT_TOKEN", OLD);
    let far = Process::start(command);
    far.logged("as plain text");
    let near = agent(&server, &[], &[("SIDEBIKE_AGENT_TOKEN", OLD)]);
    near.logged("agent: label");
    online(&server);
    assert_eq!(count(&near, "as plain text"), 0);

    let mut command = Command::new(SIDEBIKE);
    command.args(["server", "--listen", "127.0.0.1:0"]);
    command
        .env("SIDEBIKE_TOKEN", PEOPLE)
        .env("SIDEBIKE_AGENT_TOKEN", OLD);
    let closed = Server::from_command(command);
    agent(&closed, &[], &[]).logged("this agent has none (SIDEBIKE_AGENT_TOKEN)");
    closed.process.logged("an agent at 127.0.0.1 is refused: ");
}

#[test]
fn a_token_file_that_cannot_be_used_is_an_error() {
    let folder = Folder::new();
    let empty = folder.file("empty");
    std::fs::write(&empty, "\n").unwrap();
    for file in ["/no/such/file", &empty] {
        let output = Command::new(SIDEBIKE)
            .arg("agent")
            .env("SIDEBIKE_AGENT_TOKEN_FILE", file)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            error.contains("SIDEBIKE_AGENT_TOKEN_FILE: cannot read"),
            "{error}"
        );
    }
}

#[test]
fn only_what_is_allowed_runs() {
    let server = Server::start();
    let flags = ["--allow", "echo [a-z ]*", "--allow", "pwd|printf .*"];
    let _agent = agent(&server, &flags, &[]);
    online(&server);
    for (detail, allowed) in [
        (json!({"command": "echo hi"}), true),
        (json!({"command": "pwd"}), true),
        (
            json!({"command": "printf 'a b'", "stdin": "x", "workspace": "/"}),
            true,
        ),
        (json!({"argv": ["echo", "a", "b"]}), true),
        (json!({"argv": ["printf", "a b"]}), true),
        (json!({"command": "pwd; id"}), false),
        (json!({"command": "id; pwd"}), false),
        (json!({"command": "printf x\nid"}), false),
        (json!({"command": "pwd\n"}), false),
        (json!({"argv": ["echo", "a b"]}), false),
        (json!({"argv": ["echo", "$(id)"]}), false),
        (json!({"argv": ["id"]}), false),
        (
            json!({"command": "pwd", "env": {"BASH_ENV": "$(id >&2)"}}),
            false,
        ),
    ] {
        let result = run(&server, detail.clone());
        let msg = result["msg"].as_str().unwrap();
        if allowed {
            assert_eq!(result["state"], "succeeded", "{detail}: {result}");
        } else {
            assert_eq!(result["state"], "failed", "{detail}: {result}");
            assert!(msg.contains("this machine's owner"), "{msg}");
            assert!(msg.contains("--allow"), "{msg}");
            assert_eq!(result["stdout"], "");
        }
    }
}

#[test]
fn one_pattern_in_the_environment() {
    let server = Server::start();
    let _agent = agent(&server, &[], &[("SIDEBIKE_ALLOW", "echo (a,b|c d)")]);
    online(&server);
    for (line, state) in [
        ("echo a,b", "succeeded"),
        ("echo c d", "succeeded"),
        ("echo c", "failed"),
    ] {
        assert_eq!(
            run(&server, json!({"command": line}))["state"],
            state,
            "{line}"
        );
    }
}

#[test]
fn the_wrapper_decides() {
    let folder = Folder::new();
    let script =
        "#!/bin/sh\nfor a; do printf '<%s>' \"$a\"; done\n[ \"$1\" = no ] && exit 9\nexec \"$@\"\n";
    let wrapper = folder.program("wrapper", script);
    let server = Server::start();
    let agent = agent(&server, &["--wrapper", &wrapper], &[]);
    agent.logged(&format!("owner allows only: --wrapper {wrapper}"));
    online(&server);
    let result = run(
        &server,
        json!({"command": "echo 'a b'; exit 3", "workspace": "/"}),
    );
    let out = result["stdout"].as_str().unwrap();
    let shell = ["<bash><-c>", "<sh><-c>"].map(|shell| format!("{shell}<echo 'a b'; exit 3>a b\n"));
    assert!(shell.iter().any(|expected| out == expected), "{out}");
    assert_eq!(result["exitCode"], 3);
    let result = run(&server, json!({"command": "-n x"}));
    let out = result["stdout"].as_str().unwrap();
    assert!(out.ends_with("<-c>< -n x>"), "{result}");
    assert_eq!(result["exitCode"], 127, "the shell looks for it");
    let result = run(&server, json!({"argv": ["echo", "a b", ""]}));
    assert_eq!(result["stdout"], "<echo><a b><>a b \n");
    let result = run(&server, json!({"argv": ["no"]}));
    assert_eq!(
        (&result["state"], &result["exitCode"]),
        (&json!("failed"), &json!(9))
    );
    for detail in [
        json!({"command": "id", "env": {"LD_PRELOAD": "/tmp/x.so"}}),
        json!({"argv": ["-x", "id"]}),
    ] {
        let result = run(&server, detail);
        let msg = result["msg"].as_str().unwrap();
        assert!(msg.contains("owner") && msg.contains("--wrapper"), "{msg}");
    }
}

#[test]
fn settings_that_cannot_work_are_errors() {
    let folder = Folder::new();
    let plain = folder.file("plain");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    for (flags, words) in [
        (["--allow", "("], "--allow: expected a regular expression"),
        (["--wrapper", &plain], "it may not be executed"),
        (["--wrapper", "/no/such"], "there is no such file"),
        (
            ["--allow", "a)|(b"],
            "--allow: expected a regular expression",
        ),
        (["--allow", ""], "--allow: must not be empty"),
        (["--wrapper", "/no/such"], "--wrapper: expected a program"),
        (["--wrapper", "/"], "--wrapper: expected a program"),
        (
            ["--wrapper", "no-such-program"],
            "--wrapper: expected a program",
        ),
    ] {
        let output = Command::new(SIDEBIKE)
            .arg("agent")
            .args(flags)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(error.contains(words), "{flags:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn root_is_warned_of_or_refused() {
    let server = Server::start();
    if !rustix::process::geteuid().is_root() {
        let agent = agent(&server, &["--refuse-root"], &[]);
        agent.logged("agent: label");
        return;
    }
    agent(&server, &[], &[]).logged("running as root");
    for (flags, env) in [
        (&["--refuse-root"][..], &[][..]),
        (&[], &[("SIDEBIKE_REFUSE_ROOT", "1")]),
    ] {
        let mut refused = agent(&server, flags, env);
        assert_eq!(refused.ended().code(), Some(1));
        refused.logged("--refuse-root says not to start as root");
        assert_eq!(refused.log().len(), 1);
    }
}
