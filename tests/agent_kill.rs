//! A kill ends everything of an attempt, however its processes are grouped: real process trees, and every
//! way in which the agent ends a command.
//!
//! To add a tree: a line in [`TREES`]. Its command prints the number of each process that has to die, one a
//! line, and then waits.
#![cfg(feature = "agent")]

mod fake;

use fake::{Agent, Server, alive, eventually, guard_of};
use serde_json::{Value, json};
use sidebike::wire::agent::Stream;
use sidebike::wire::task::ExecutionState;
use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A process that prints its number and waits, as a shell command.
const SLEEPER: &str = "sh -c 'echo $$; exec sleep 300'";

/// The name of a tree, its command, and how many numbers it prints.
const TREES: [(&str, &str, usize); 9] = [
    ("plain", "SLEEPER & SLEEPER", 2),
    ("timeout", "timeout 300 SLEEPER; echo never", 1),
    ("job-control", "set -m; SLEEPER & SLEEPER & wait", 2),
    ("session", "setsid SLEEPER & wait", 1),
    ("double-fork", "(setsid SLEEPER &); SLEEPER", 2),
    ("no-environment", "env -i setsid SLEEPER & SLEEPER", 2),
    (
        "nested",
        "setsid sh -c 'timeout 300 env -i setsid sh -c \"echo \\$\\$; exec sleep 300\"' & wait",
        1,
    ),
    (
        "stopped",
        "setsid sh -c 'echo $$; kill -STOP $$; exec sleep 300' & SLEEPER",
        2,
    ),
    (
        "leader-gone",
        "(setsid SLEEPER & SLEEPER & wait) & sleep 300",
        2,
    ),
];

fn command(tree: &str) -> String {
    tree.replace("SLEEPER", SLEEPER)
}

fn agent(server: &Server) -> Agent {
    let agent = Agent::start(server, &["--jobs", "20"], &[]);
    server.until(|seen| !seen.polls.is_empty());
    agent
}

/// Starts every tree; returns the numbers of its processes, once all have been printed.
fn start_trees(server: &Server, extra: &Value) -> Vec<(&'static str, Vec<i32>)> {
    for (name, tree, _) in TREES {
        let mut detail = json!({"command": command(tree)});
        for (field, value) in extra.as_object().unwrap() {
            detail[field] = value.clone();
        }
        server.start(name, detail);
    }
    let numbers = TREES.map(|(name, _, count)| {
        server.until(|seen| seen.numbers(name).len() == count);
        (name, server.numbers(name))
    });
    for (name, pids) in &numbers {
        assert!(pids.iter().all(|pid| alive(*pid)), "{name}: {pids:?}");
    }
    numbers.into()
}

fn assert_dead(trees: &[(&str, Vec<i32>)]) {
    for (name, pids) in trees {
        assert!(!pids.iter().any(|pid| alive(*pid)), "{name}: {pids:?}");
    }
}

#[test]
fn a_cancel_ends_every_tree() {
    let server = Server::new();
    let _agent = agent(&server);
    let trees = start_trees(&server, &json!({"killGrace": 60}));
    let begun = Instant::now();
    for (name, _) in &trees {
        server.cancel(name);
    }
    for (name, _) in &trees {
        let result = server.result(name);
        assert_eq!(result.state, ExecutionState::Canceled, "{result:?}");
        assert_eq!(result.msg, "canceled", "{result:?}");
    }
    assert_dead(&trees);
    // They obey TERM, so none had to wait for the grace.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn a_time_out_ends_every_tree() {
    let server = Server::new();
    let _agent = agent(&server);
    let trees = start_trees(&server, &json!({"timeout": 3}));
    for (name, _) in &trees {
        let result = server.result(name);
        assert_eq!(result.state, ExecutionState::TimedOut, "{result:?}");
        assert_eq!(result.msg, "timed out after 3s", "{result:?}");
    }
    assert_dead(&trees);
}

#[test]
fn the_shutdown_of_an_agent_ends_every_tree() {
    let server = Server::new();
    let mut agent = Agent::start(&server, &["--jobs", "20", "--grace", "0.1"], &[]);
    let trees = start_trees(&server, &json!({}));
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(0));
    assert_dead(&trees);
}

#[test]
fn a_second_signal_kills_every_tree() {
    let server = Server::new();
    let mut agent = agent(&server);
    let trees = start_trees(&server, &json!({}));
    agent.signal("TERM");
    server.until(|seen| seen.polls.last().is_some_and(|poll| poll.draining));
    std::thread::sleep(Duration::from_millis(150)); // two signals at once are one
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(143));
    eventually("they are dead", || {
        trees
            .iter()
            .all(|(_, pids)| pids.iter().all(|pid| !alive(*pid)))
    });
}

#[test]
fn a_killed_agent_leaves_no_tree() {
    let server = Server::new();
    let mut agent = agent(&server);
    let trees = start_trees(&server, &json!({}));
    agent.signal("KILL");
    agent.wait();
    eventually("they are dead", || {
        trees
            .iter()
            .all(|(_, pids)| pids.iter().all(|pid| !alive(*pid)))
    });
}

const STUBBORN: &str =
    "trap '' TERM; (setsid SLEEPER &); env -i setsid SLEEPER & SLEEPER; sleep 300";

#[test]
fn a_tree_that_ignores_term_is_killed_after_the_grace() {
    let server = Server::new();
    let _agent = agent(&server);
    let detail =
        |timeout| json!({"command": command(STUBBORN), "timeout": timeout, "killGrace": 1});
    server.start("canceled", detail(300));
    server.start("timed-out", detail(3));
    server.until(|seen| seen.numbers("canceled").len() == 3);
    let begun = Instant::now();
    server.cancel("canceled");
    for (name, state) in [
        ("canceled", ExecutionState::Canceled),
        ("timed-out", ExecutionState::TimedOut),
    ] {
        let result = server.result(name);
        assert_eq!(
            (result.state, result.signal.as_deref()),
            (state, Some("SIGKILL"))
        );
        assert_eq!(server.numbers(name).len(), 3);
        assert_dead(&[(name, server.numbers(name))]);
        assert!(begun.elapsed() >= Duration::from_millis(900), "no grace");
    }
}

#[test]
fn a_killed_agent_leaves_no_tree_that_ignores_term() {
    let server = Server::new();
    let mut agent = agent(&server);
    server.start("x", json!({"command": command(STUBBORN)}));
    server.until(|seen| seen.numbers("x").len() == 3);
    let pids = server.numbers("x");
    agent.signal("KILL");
    agent.wait();
    eventually("they are dead", || pids.iter().all(|pid| !alive(*pid)));
}

/// A process outside of the command's group gets TERM, only once, and the grace like the others.
#[test]
fn every_process_sees_term_once() {
    let server = Server::new();
    let _agent = agent(&server);
    let child = "trap 'echo bye' TERM; echo $$; while ! [ -e /nowhere ]; do sleep 0.05; done";
    server.start(
        "x",
        json!({"command": format!("setsid sh -c \"{child}\" & wait"), "killGrace": 1.5}),
    );
    server.until(|seen| seen.numbers("x").len() == 1);
    server.cancel("x");
    server.result("x");
    assert_dead(&[("x", server.numbers("x"))]);
    assert_eq!(server.text("x", Stream::Stdout).matches("bye").count(), 1);
}

#[test]
fn nothing_else_is_ended() {
    let server = Server::new();
    let mut agent = agent(&server);
    // What an attempt that ended by itself left running, in its group and in a session of its own.
    server.start(
        "daemons",
        json!({"command": "sleep 300 & echo $!; setsid sleep 300 & echo $!"}),
    );
    assert_eq!(server.result("daemons").state, ExecutionState::Succeeded);
    // A process that has nothing to do with the agent, and carries some key.
    let mut stranger = Command::new("sleep")
        .arg("300")
        .env("SIDEBIKE_KEY", "0123456789abcdef0123456789abcdef")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut others = server.numbers("daemons");
    others.push(stranger.id() as i32);
    assert_eq!(others.len(), 3);

    server.start("other", json!({"command": "echo $$; sleep 300"}));
    server.start("canceled", json!({"command": "echo $$; sleep 300"}));
    server.until(|seen| seen.numbers("other").len() + seen.numbers("canceled").len() == 2);
    server.cancel("canceled");
    server.result("canceled");
    let other = server.numbers("other")[0];
    assert!(alive(other));
    assert!(others.iter().all(|pid| alive(*pid)));
    agent.signal("KILL");
    agent.wait();
    eventually("the other one is dead", || !alive(other));
    assert!(others.iter().all(|pid| alive(*pid)));
    for pid in others {
        fake::kill(pid);
    }
    stranger.wait().unwrap();
}

#[test]
fn each_attempt_has_a_key_of_its_own() {
    let server = Server::new();
    let _agent = agent(&server);
    let mut keys = HashSet::new();
    for name in ["x.1", "x.2", "x.3"] {
        server.start(
            name,
            json!({"command": "echo $SIDEBIKE_KEY", "env": {"SIDEBIKE_KEY": "mine"}}),
        );
        server.result(name);
        let key = server.text(name, Stream::Stdout).trim().to_owned();
        assert_eq!(key.len(), 32, "{key}");
        assert!(key.bytes().all(|it| it.is_ascii_hexdigit()), "{key}");
        assert!(keys.insert(key));
    }
}

/// Without /proc the process group is what can be found. A mount of its own for the agent needs rights that
/// not everyone has; without them this test shows nothing, and says so.
#[test]
fn without_proc_the_process_group_is_ended() {
    let Some(unshare) = fake::unshare(&["--mount"], "mount -t tmpfs none /proc;") else {
        return;
    };
    let server = Server::new();
    let mut agent = Agent::start_by(unshare, &server);
    let stubborn = format!("trap '' TERM; {SLEEPER} & {SLEEPER}");
    for (name, line) in [
        ("polite", format!("{SLEEPER} & {SLEEPER}")),
        ("stubborn", stubborn),
        ("left", format!("{SLEEPER} & {SLEEPER}")),
    ] {
        server.start(name, json!({"command": line, "killGrace": 1}));
        server.until(|seen| seen.numbers(name).len() == 2);
    }
    for (name, signal) in [("polite", "SIGTERM"), ("stubborn", "SIGKILL")] {
        server.cancel(name);
        let result = server.result(name);
        assert_eq!(result.signal.as_deref(), Some(signal), "{result:?}");
        assert_dead(&[(name, server.numbers(name))]);
    }
    let left = server.numbers("left");
    assert!(left.iter().all(|pid| alive(*pid)));
    agent.signal("KILL");
    agent.wait();
    eventually("it is dead", || left.iter().all(|pid| !alive(*pid)));
}

#[test]
fn a_guard_that_does_not_read_stops_nothing_and_catches_up() {
    // More commands than the pipe to the guard has room for lines.
    const COMMANDS: usize = 700;
    let server = Server::new();
    let mut agent = agent(&server);
    let guard = guard_of(&agent);
    fake::send(guard, "STOP");
    for n in 0..COMMANDS {
        server.start(&format!("x.{n}"), json!({"argv": ["true"]}));
    }
    for n in 0..COMMANDS {
        server.result(&format!("x.{n}"));
    }
    server.start("last", json!({"command": "echo $$; sleep 300"}));
    server.until(|seen| seen.numbers("last").len() == 1);
    let pid = server.numbers("last")[0];
    fake::send(guard, "CONT");
    eventually("the guard has read", || {
        let state = std::fs::read_to_string(format!("/proc/{guard}/io")).unwrap_or_default();
        let read = state.lines().find_map(|line| line.strip_prefix("rchar: "));
        read.is_none_or(|read| read.parse::<usize>().unwrap() > 64 * 1024)
    });
    // The lines that were kept go before those of the next command.
    server.start("next", json!({"argv": ["true"]}));
    server.result("next");
    agent.signal("KILL");
    agent.wait();
    eventually("the last one is dead", || !alive(pid));
}

/// A command that stops itself, and writes a file when it sees TERM. It stops again before it has looked
/// for signals, as a process does that reads from a terminal in the background. (When the agent dies, the
/// system itself sends HUP to a group that is stopped.)
fn stopped(file: &str) -> String {
    format!(
        "trap '' HUP; trap 'echo bye > {file}; exit' TERM; echo $$; while true; do kill -STOP $$; done"
    )
}

#[test]
fn a_stopped_command_sees_term_from_the_agent_and_from_the_guard() {
    let server = Server::new();
    let mut agent = agent(&server);
    let folder = std::env::temp_dir().join(format!("sidebike-stopped-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    let is_stopped = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(") T ")
    };
    for name in ["canceled", "left"] {
        let line = stopped(&file(name));
        server.start(name, json!({"command": line, "killGrace": 60}));
        server.until(|seen| seen.numbers(name).len() == 1);
        let pid = server.numbers(name)[0];
        eventually("it is stopped", || is_stopped(pid));
    }
    server.cancel("canceled");
    let result = server.result("canceled");
    assert_eq!(result.signal, None, "{result:?}");
    assert_eq!(std::fs::read_to_string(file("canceled")).unwrap(), "bye\n");
    let pid = server.numbers("left")[0];
    agent.signal("KILL");
    agent.wait();
    eventually("it is dead", || !alive(pid));
    assert_eq!(std::fs::read_to_string(file("left")).unwrap(), "bye\n");
    std::fs::remove_dir_all(folder).unwrap();
}
