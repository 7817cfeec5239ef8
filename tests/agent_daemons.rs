//! What commands leave running: it keeps its output, however much of it there is, and whatever becomes of the agent.
#![cfg(feature = "agent")]

mod fake;

use fake::{Agent, Server, alive, eventually, guard_of, unshare};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use sidebike::wire::agent::Stream;
use sidebike::wire::task::ExecutionState;
use std::time::{Duration, Instant};

/// A daemon that counts what it has written, on standard error of the command; a line above the capacity of a pipe in
/// all. It ends when it cannot write.
const COUNTS: &str = r#"
    (
        trap '' PIPE
        n=0
        while echo "a line that nobody reads $(printf %0900d 0)"; do
            n=$((n + 1))
            echo $n > "$FILE"
            sleep 0.01
        done
        rm "$FILE"
    ) 2>&- &
    echo $! >&2
"#;

/// A daemon that was started, and the file that it counts in.
struct Daemon {
    pid: i32,
    file: String,
}

impl Daemon {
    fn start(server: &Server, name: &str) -> Daemon {
        let file =
            std::env::temp_dir().join(format!("sidebike-daemon-{}-{name}", std::process::id()));
        let file = file.to_str().unwrap().to_owned();
        server.start(name, json!({"command": COUNTS, "env": {"FILE": file}}));
        let result = server.result(name);
        assert_eq!(result.state, ExecutionState::Succeeded, "{result:?}");
        let pid = server.text(name, Stream::Stderr).trim().parse().unwrap();
        Daemon { pid, file }
    }

    fn count(&self) -> Option<u64> {
        std::fs::read_to_string(&self.file)
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// It goes on writing, more than fits into a pipe.
    fn assert_writes(&self) {
        let mut before = None;
        eventually("it writes", || {
            before = before.or(self.count());
            assert!(alive(self.pid), "it could not write");
            self.count() > before.map(|count| count + 150)
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end(self.pid);
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Processes that are ended with the test.
#[derive(Default)]
struct Left(Vec<i32>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.iter().copied().for_each(end);
    }
}

/// Kills a process that may have gone already.
fn end(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn open_files(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[test]
fn a_daemon_keeps_its_pipe_however_many_there_are() {
    const OTHERS: usize = 200;
    let server = Server::new();
    let agent = Agent::start(&server, &["--jobs", "8"], &[]);
    let daemon = Daemon::start(&server, "first");
    let mut left = Left::default();
    let names: Vec<String> = (0..OTHERS).map(|n| format!("x.{n}")).collect();
    for some in names.chunks(8) {
        for name in some {
            server.start(name, json!({"command": "sleep 300 & echo $!"}));
        }
        for name in some {
            server.result(name);
            let pid: i32 = server.text(name, Stream::Stdout).trim().parse().unwrap();
            left.0.push(pid);
        }
    }
    daemon.assert_writes();
    let guard = guard_of(&agent);
    // Two pipes of each.
    eventually("the guard has the pipes", || open_files(guard) > 2 * OTHERS);
    assert!(
        open_files(agent.id() as i32) < 40,
        "{}",
        open_files(agent.id() as i32)
    );
    drop(left);
    eventually("they are closed", || open_files(guard) < 20);
    daemon.assert_writes();
}

#[test]
fn a_daemon_lives_on_when_its_agent_is_gone() {
    for signal in ["TERM", "KILL"] {
        let server = Server::new();
        let mut agent = Agent::start(&server, &[], &[]);
        let daemon = Daemon::start(&server, &format!("by-{signal}"));
        let guard = guard_of(&agent);
        agent.signal(signal);
        agent.wait();
        daemon.assert_writes();
        assert!(alive(guard));
        drop(daemon);
        eventually("the guard ends when nothing is left", || !alive(guard));
    }
}

#[test]
fn a_guard_that_has_nothing_left_to_end_obeys_a_signal() {
    let server = Server::new();
    let mut agent = Agent::start(&server, &[], &[]);
    let daemon = Daemon::start(&server, "signal");
    let guard = guard_of(&agent);
    agent.signal("TERM");
    agent.wait();
    daemon.assert_writes();
    eventually("it ends", || {
        let _ = std::process::Command::new("kill")
            .arg(guard.to_string())
            .status();
        !alive(guard)
    });
}

/// Without a guard, or with one that does not read, the agent drains the pipes itself.
#[test]
fn without_a_guard_a_daemon_keeps_its_pipe_too() {
    for signal in ["-KILL", "-STOP"] {
        let server = Server::new();
        let agent = Agent::start(&server, &["--jobs", "8"], &[]);
        let guard = guard_of(&agent);
        let send = |signal: &str| {
            let words = [signal, &guard.to_string()];
            let sent = std::process::Command::new("kill").args(words).status();
            assert!(sent.unwrap().success());
        };
        send(signal);
        if signal == "-KILL" {
            let daemon = Daemon::start(&server, "no-guard");
            daemon.assert_writes();
            continue;
        }
        // What waits in the socket is read when the guard goes on.
        let daemon = Daemon::start(&server, "stopped-guard");
        send("-CONT");
        daemon.assert_writes();
    }
}

/// Everything in a container ends with process 1. So it waits for no daemon.
#[test]
fn a_container_ends_with_its_agent() {
    for (signal, code) in [("TERM", 0), ("KILL", 137)] {
        let namespace = ["--pid", "--fork", "--kill-child", "--mount-proc"];
        let Some(unshare) = unshare(&namespace, "") else {
            return;
        };
        let server = Server::new();
        let mut agent = Agent::start_by(unshare, &server);
        server.start("daemon", json!({"command": "sleep 300 &"}));
        let result = server.result("daemon");
        assert_eq!(result.state, ExecutionState::Succeeded, "{result:?}");
        let begun = Instant::now();
        // The agent is the parent of its commands.
        let end = format!("kill -{signal} $PPID; sleep 0.1");
        server.start("end", json!({"command": end}));
        assert_eq!(agent.wait(), Some(code), "by {signal}");
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
