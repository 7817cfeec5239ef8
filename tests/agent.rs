//! The agent from outside: the real binary against a small server that says what each test wants.
//!
//! Every test has a server and an agent of its own, on a free port, and waits for events, never for
//! a time to pass. To add a case: hand out work with [`Server::start`], wait with [`Server::result`].
#![cfg(feature = "agent")]

mod fake;

use fake::{Agent, Server, alive, eventually};
use serde_json::json;
use sidebike::wire::agent::{HoldState, Stream};
use sidebike::wire::task::ExecutionState;
use std::time::{Duration, Instant};

/// A pair that has met.
fn pair() -> (Server, Agent) {
    let server = Server::new();
    let agent = Agent::start(&server, &[], &[]);
    server.until(|seen| !seen.polls.is_empty());
    (server, agent)
}

#[test]
fn how_commands_end() {
    let (server, _agent) = pair();
    for (name, detail, state, code, msg) in [
        (
            "x.1",
            json!({"command": "exit 0"}),
            ExecutionState::Succeeded,
            Some(0),
            "",
        ),
        (
            "x.2",
            json!({"command": "exit 3"}),
            ExecutionState::Failed,
            Some(3),
            "exit code 3",
        ),
        (
            "x.3",
            json!({"command": "kill -9 $$"}),
            ExecutionState::Failed,
            None,
            "killed by SIGKILL",
        ),
        (
            "x.4",
            json!({"argv": ["no-such-program"]}),
            ExecutionState::Failed,
            None,
            "no-such-program",
        ),
        (
            "x.5",
            json!({"argv": ["/no/such"]}),
            ExecutionState::Failed,
            None,
            "/no/such",
        ),
        (
            "x.6",
            json!({"argv": []}),
            ExecutionState::Failed,
            None,
            "detail.argv",
        ),
        (
            "x.7",
            json!({"command": "pwd", "workspace": "/nowhere"}),
            ExecutionState::Failed,
            None,
            "\"/nowhere\"",
        ),
        (
            "x.8",
            json!({"command": "pwd", "undo": "x"}),
            ExecutionState::Failed,
            None,
            "`undo`",
        ),
        (
            "x.20",
            json!({"command": "pwd", "unknown": "x"}),
            ExecutionState::Failed,
            None,
            "`unknown`",
        ),
        (
            "x.9",
            json!({"command": "pwd", "argv": ["a"]}),
            ExecutionState::Failed,
            None,
            "either",
        ),
        (
            "x.10",
            json!({"command": "pwd", "env": {"A=B": "c"}}),
            ExecutionState::Failed,
            None,
            "A=B",
        ),
        (
            "x.11",
            json!({"command": "a\0b"}),
            ExecutionState::Failed,
            None,
            "nul",
        ),
        (
            "x.12",
            json!({"argv": ["sh", "-c", "exit $1", "sh", "7"]}),
            ExecutionState::Failed,
            Some(7),
            "exit code 7",
        ),
    ] {
        server.start(name, detail);
        let result = server.result(name);
        assert_eq!(
            (result.state, result.exit_code),
            (state, code),
            "{name}: {result:?}"
        );
        assert!(result.msg.contains(msg), "{name}: {result:?}");
    }
    assert_eq!(server.result("x.3").signal.as_deref(), Some("SIGKILL"));
    assert!(server.result("x.1").duration_ms.is_some());
    assert!(server.result("x.4").duration_ms.is_none());
    // Nothing is held any more, so the next poll says.
    server.start("x.13", json!({"command": "pwd", "workspace": "/"}));
    server.result("x.13");
    assert_eq!(server.text("x.13", Stream::Stdout), "/\n");
}

#[test]
fn a_machine_without_a_shell_says_so() {
    let server = Server::new();
    let _agent = Agent::start(&server, &[], &[("PATH", "/nowhere")]);
    server.start("x.1", json!({"command": "echo hi"}));
    assert!(server.result("x.1").msg.contains("no shell (bash or sh)"));
    server.start(
        "x.2",
        json!({"argv": ["echo", "hi"], "env": {"PATH": "/usr/bin:/bin"}}),
    );
    assert_eq!(server.result("x.2").state, ExecutionState::Succeeded);
    assert_eq!(server.text("x.2", Stream::Stdout), "hi\n");
}

#[test]
fn the_environment_of_a_command() {
    let server = Server::new();
    let _agent = Agent::start(
        &server,
        &["--machine-label", "box 1"],
        &[
            ("SIDEBIKE_SECRET_TOKEN", "s3cret"),
            ("SIDEBIKE_TOKEN", "s3cret"),
            ("OWN", "kept"),
            ("LOSES", "old"),
        ],
    );
    server.start(
        "x.1",
        json!({"command": "env", "env": {"LOSES": "new", "MINE": "a=b c"}}),
    );
    server.result("x.1");
    let env = server.text("x.1", Stream::Stdout);
    let instance = server.wait(|seen| !seen.polls.is_empty()).polls[0]
        .instance
        .clone();
    for line in [
        "SIDEBIKE_TASK_ID=the-task",
        "SIDEBIKE_TASK_NAME=the name",
        "SIDEBIKE_MACHINE_LABEL=box 1",
        "SIDEBIKE_ATTEMPT=1",
        "OWN=kept",
        "LOSES=new",
        "MINE=a=b c",
        &format!("SIDEBIKE_INSTANCE={instance}"),
    ] {
        assert!(env.lines().any(|have| have == line), "{line} in {env}");
    }
    assert!(!env.contains("s3cret"), "{env}");
    assert_eq!(instance.len(), 32);
}

#[test]
fn standard_input_is_fed_and_may_be_ignored() {
    let (server, _agent) = pair();
    let text = "0123456789abcde\n".repeat(65_536);
    server.start("x.1", json!({"command": "cat | wc -c", "stdin": text}));
    server.start("x.2", json!({"command": "exit 0", "stdin": text}));
    server.start("x.3", json!({"command": "cat; echo end"}));
    server.result("x.1");
    assert_eq!(server.text("x.1", Stream::Stdout).trim(), "1048576");
    assert_eq!(server.result("x.2").state, ExecutionState::Succeeded);
    server.result("x.3");
    assert_eq!(server.text("x.3", Stream::Stdout), "end\n");
}

#[test]
fn a_timeout_ends_the_whole_group() {
    let (server, _agent) = pair();
    server.start("x.1", json!({
        "command": "trap '' TERM; echo $$; sleep 60 & echo $!; sleep 60", "timeout": 0.5, "killGrace": 0.5,
    }));
    server.start(
        "x.2",
        json!({"command": "sleep 60 & sleep 60", "timeout": 0.5}),
    );
    let polite = server.result("x.2");
    assert_eq!(polite.state, ExecutionState::TimedOut);
    assert!(polite.duration_ms.unwrap() < 2_000, "{polite:?}");
    let stubborn = server.result("x.1");
    assert_eq!(stubborn.state, ExecutionState::TimedOut);
    assert_eq!(stubborn.msg, "timed out after 500ms");
    assert_eq!(stubborn.signal.as_deref(), Some("SIGKILL"));
    for pid in server.numbers("x.1") {
        assert!(!alive(pid));
    }
}

#[test]
fn what_runs_in_the_background_stays_and_holds_nothing_back() {
    let (server, _agent) = pair();
    let begun = Instant::now();
    server.start("x.1", json!({"command": "sleep 300 & echo $!"}));
    server.start("x.2", json!({
        "command": "(n=0; while [ $n -lt 40 ]; do echo a line; n=$((n+1)); sleep 0.02; done; exec sleep 300) & echo $!",
    }));
    server.start("x.3", json!({"command": "(yes & echo $!) | head -1; true"}));
    for name in ["x.1", "x.2"] {
        assert_eq!(server.result(name).state, ExecutionState::Succeeded);
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    let (sleeper, writer) = (server.numbers("x.1")[0], server.numbers("x.2")[0]);
    // It has written all its lines when it becomes a sleep: no SIGPIPE on the way.
    eventually("the writer gets through", || {
        std::fs::read_to_string(format!("/proc/{writer}/cmdline"))
            .is_ok_and(|line| line.starts_with("sleep"))
    });
    assert!(alive(sleeper) && alive(writer));
    fake::kill(sleeper);
    fake::kill(writer);
    server.result("x.3");
}

#[test]
fn a_flood_stays_small() {
    let (server, agent) = pair();
    server.start(
        "x.1",
        json!({"command": "yes | head -c 200000000; echo end >&2"}),
    );
    let result = server.result("x.1");
    assert_eq!(
        (result.state, result.stdout_bytes),
        (ExecutionState::Succeeded, 200_000_000)
    );
    assert!(agent.peak_kib() < 8_000, "{} KiB", agent.peak_kib());
    server.with_buffer("x.1", Stream::Stdout, |buffer| {
        assert_eq!(buffer.end(), 200_000_000);
        assert_eq!(
            buffer.kept(),
            sidebike::head_tail_buffer::HEAD_BYTES + sidebike::head_tail_buffer::TAIL_BYTES
        );
    });
    assert_eq!(server.text("x.1", Stream::Stderr), "end\n");
}

#[test]
fn bytes_are_bytes() {
    let (server, _agent) = pair();
    server.start("x.1", json!({"argv": ["printf", "a\\377\\000b"]}));
    server.start(
        "x.2",
        json!({"command": "head -c 10000000 /dev/zero | tr '\\0' x; echo"}),
    );
    server.result("x.1");
    server.with_buffer("x.1", Stream::Stdout, |buffer| {
        assert_eq!(buffer.read(0, 100).unwrap().1, b"a\xff\0b");
    });
    assert_eq!(server.result("x.2").stdout_bytes, 10_000_001);
}

#[test]
fn output_comes_while_the_command_runs_and_in_order() {
    let (server, _agent) = pair();
    server.start("x.1", json!({"command": "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three; read x; sleep 300"}));
    server.until(|seen| seen.bytes("x.1") == 14);
    server.cancel("x.1");
    assert_eq!(server.result("x.1").state, ExecutionState::Canceled);
    let order: Vec<_> = server
        .wait(|_| true)
        .pieces
        .iter()
        .map(|piece| piece.stream)
        .collect();
    let mut runs = order.clone();
    runs.dedup();
    assert_eq!(runs, [Stream::Stdout, Stream::Stderr, Stream::Stdout]);
}

#[test]
fn an_order_that_is_repeated_starts_nothing() {
    let (server, _agent) = pair();
    let file = std::env::temp_dir().join(format!("sidebike-once-{}", std::process::id()));
    let detail = json!({"command": format!("echo x >> {}", file.display())});
    for _ in 0..3 {
        server.start("x.1", detail.clone());
    }
    server.result("x.1");
    server.start("x.1", detail.clone());
    server.start("x.2", json!({"command": "true"}));
    server.result("x.2");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "x\n");
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_result_is_repeated_until_it_is_taken() {
    let (server, _agent) = pair();
    server.change(|seen| {
        seen.lose_dones = 2;
        seen.ignore_dones = 1;
    });
    server.start("x.1", json!({"command": "echo hi"}));
    server.result("x.1");
    let seen = server.wait(|seen| seen.dones.len() >= 4);
    assert!(
        seen.dones
            .iter()
            .all(|done| done.results[0].id.execution == "x.1")
    );
    drop(seen);
    assert_eq!(server.text("x.1", Stream::Stdout), "hi\n");
    // It is held until the answer has come.
    server.start("x.2", json!({"command": "true"}));
    server.result("x.2");
    server.start("x.3", json!({"command": "true"}));
    server.result("x.3");
    eventually("nothing is held", || {
        server.start("nudge", json!({"command": "true"}));
        server
            .wait(|_| true)
            .polls
            .last()
            .is_some_and(|poll| poll.holds.iter().all(|hold| hold.id.execution == "nudge"))
    });
}

#[test]
fn what_the_server_never_takes_does_not_block_the_rest() {
    let (server, agent) = pair();
    server.change(|seen| seen.refuse = Some("bad.1".into()));
    server.start("bad.1", json!({"command": "echo bad"}));
    server.start("x.1", json!({"command": "echo hi"}));
    server.result("x.1");
    eventually("it is given up", || {
        agent.log().contains("giving up the result of bad.1")
    });
}

#[test]
fn cancel_kills() {
    let (server, _agent) = pair();
    server.start("x.1", json!({"command": "trap '' TERM; echo $$; sleep 300 & echo $!; wait; sleep 300", "killGrace": 0.3}));
    server.until(|seen| {
        seen.buffers
            .get(&("x.1".into(), Stream::Stdout))
            .is_some_and(|buffer| buffer.end() > 3)
    });
    server.cancel("x.1");
    let result = server.result("x.1");
    assert_eq!(
        (result.state, result.msg.as_str()),
        (ExecutionState::Canceled, "canceled")
    );
    for pid in server.numbers("x.1") {
        assert!(!alive(pid));
    }
    let seen = server.wait(|_| true);
    assert!(
        seen.polls
            .iter()
            .flat_map(|poll| &poll.holds)
            .any(|hold| hold.state == HoldState::Ending)
    );
}

#[test]
fn what_is_forgotten_runs_on_and_is_not_reported() {
    let (server, _agent) = pair();
    server.start(
        "x.1",
        json!({"command": "echo $$; while :; do sleep 0.05; done", "timeout": 300}),
    );
    server.until(|seen| seen.bytes("x.1") > 0);
    server.forget("x.1");
    // Its place is not offered, and it is not held.
    let seen = server.wait(|seen| seen.polls.last().is_some_and(|poll| poll.jobs == 3));
    assert!(seen.polls.last().unwrap().holds.is_empty());
    drop(seen);
    let pid = server.numbers("x.1")[0];
    assert!(alive(pid));
    fake::kill(pid);
    eventually("the place is offered again", || {
        server.start("y", json!({"command": "true"}));
        server
            .wait(|_| true)
            .polls
            .last()
            .is_some_and(|poll| poll.jobs == 4)
    });
    assert!(server.wait(|_| true).results("x.1").is_empty());
}

#[test]
fn more_than_jobs_wait_for_a_place() {
    let server = Server::new();
    let _agent = Agent::start(&server, &["--jobs", "1"], &[]);
    for n in 1..=5 {
        server.start(&format!("x.{n}"), json!({"command": "sleep 0.05"}));
    }
    for n in 1..=5 {
        assert_eq!(
            server.result(&format!("x.{n}")).state,
            ExecutionState::Succeeded
        );
    }
}

#[test]
fn term_ends_an_idle_agent_at_once() {
    let (server, mut agent) = pair();
    let begun = Instant::now();
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    let seen = server.wait(|seen| !seen.goodbyes.is_empty());
    assert!(seen.goodbyes[0].holds.is_empty());
}

#[test]
fn term_waits_for_what_runs() {
    let (server, mut agent) = pair();
    server.start("x.1", json!({"command": "while [ ! -e /proc/$PPID/never ]; do echo a; read x < /dev/null; sleep 0.4; exit 0; done"}));
    server.until(|seen| seen.polls.iter().any(|poll| !poll.holds.is_empty()));
    agent.signal("INT");
    server.until(|seen| seen.polls.last().is_some_and(|poll| poll.draining));
    server.start("x.2", json!({"command": "true"}));
    assert_eq!(server.result("x.1").state, ExecutionState::Succeeded);
    assert_eq!(agent.wait(), Some(0));
    assert!(
        server
            .wait(|seen| !seen.goodbyes.is_empty())
            .results("x.2")
            .is_empty()
    );
}

#[test]
fn term_ends_what_outlives_the_grace() {
    let server = Server::new();
    let mut agent = Agent::start(&server, &["--grace", "0.2"], &[]);
    server.start("x.1", json!({"command": "echo $$; sleep 300 & sleep 300"}));
    server.until(|seen| seen.bytes("x.1") > 0);
    agent.signal("TERM");
    let result = server.result("x.1");
    assert_eq!(
        (result.state, result.msg.as_str()),
        (ExecutionState::Canceled, "the agent was shut down")
    );
    assert_eq!(agent.wait(), Some(0));
    assert!(!alive(server.numbers("x.1")[0]));
}

#[test]
fn a_second_signal_ends_at_once() {
    let (server, mut agent) = pair();
    server.start(
        "x.1",
        json!({"command": "trap '' TERM; echo $$; sleep 300"}),
    );
    server.until(|seen| seen.bytes("x.1") > 0);
    agent.signal("TERM");
    server.until(|seen| seen.polls.last().is_some_and(|poll| poll.draining));
    std::thread::sleep(Duration::from_millis(150)); // two signals at once are one
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(143));
    let pid = server.numbers("x.1")[0];
    eventually("it is dead", || !alive(pid));
}

#[test]
fn term_does_not_wait_for_ever_for_a_server_that_is_gone() {
    let (server, mut agent) = pair();
    server.change(|seen| seen.mute = true);
    server.start("x.1", json!({"command": "true"}));
    eventually("it has run", || {
        agent.log().contains("x.1 (attempt 1): succeeded")
    });
    agent.signal("TERM");
    let begun = Instant::now();
    assert_eq!(agent.wait(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_killed_agent_leaves_nothing() {
    let (server, mut agent) = pair();
    server.start(
        "x.1",
        json!({"command": "echo $$; sleep 300 & echo $!; sleep 300"}),
    );
    server.start("x.2", json!({"command": "sleep 300 & echo $!"}));
    server.result("x.2");
    let running = server
        .wait(|seen| seen.numbers("x.1").len() == 2)
        .numbers("x.1");
    agent.signal("KILL");
    agent.wait();
    eventually("its commands are dead", || {
        running.iter().all(|pid| !alive(*pid))
    });
    // What a command left behind on purpose is none of the agent's business.
    let daemon = server.numbers("x.2")[0];
    assert!(alive(daemon));
    fake::kill(daemon);
}

#[test]
fn an_agent_listens_on_nothing_and_its_commands_inherit_nothing() {
    let (server, agent) = pair();
    let own = fake::open_files("self");
    server.start("x.1", json!({"command": "echo $$; exec sleep 300"}));
    server.until(|seen| seen.bytes("x.1") > 0);
    // What this test has (pipes of cargo) the agent was given; its own is not for commands.
    let command = server.numbers("x.1")[0].to_string();
    // A program that is still being loaded has its libraries open for a moment.
    eventually("it has its three streams and nothing else", || {
        let mut files = fake::open_files(&command);
        files.retain(|file| !own.contains(file));
        files.len() == 3 && files.iter().all(|file| file.starts_with("pipe:"))
    });
    assert_eq!(agent.listening(), Vec::<String>::new());
}

#[test]
fn conflicts_lead_to_a_new_instance() {
    let (server, agent) = pair();
    let first = server.wait(|_| true).polls[0].instance.clone();
    server.change(|seen| seen.conflicts = 3);
    server.start("x.1", json!({"command": "true"}));
    eventually("it is another", || {
        server.start("y", json!({"command": "true"}));
        server
            .wait(|_| true)
            .polls
            .last()
            .is_some_and(|poll| poll.instance != first)
    });
    assert!(agent.log().contains("new one"));
}

#[test]
fn an_outage_is_said_once_and_survived() {
    let mut server = Server::new();
    let agent = Agent::start(&server, &[], &[]);
    server.until(|seen| !seen.polls.is_empty());
    server.start("x.1", json!({"command": "sleep 0.3; echo through"}));
    server.until(|seen| seen.polls.iter().any(|poll| !poll.holds.is_empty()));
    server.close();
    eventually("it notices", || {
        agent.log().contains("trying again until it works")
    });
    eventually("it ends", || agent.log().contains("succeeded"));
    server.open();
    assert_eq!(server.result("x.1").state, ExecutionState::Succeeded);
    eventually("it is back", || agent.log().contains("the server is back"));
    assert_eq!(agent.log().matches("trying again until").count(), 1);
    assert_eq!(server.text("x.1", Stream::Stdout), "through\n");
}
