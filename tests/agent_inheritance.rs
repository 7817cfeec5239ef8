//! What the agent inherited from the process that started it does not reach its commands: ignored and
//! blocked signals, open files, the terminal.
#![cfg(feature = "agent")]

mod fake;

use fake::{Agent, Server};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use sidebike::wire::agent::{Ended, Stream};
use sidebike::wire::task::ExecutionState;
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

/// An agent that `starter` starts, and that has polled.
fn started_by(server: &Server, starter: Command) -> Agent {
    let agent = Agent::start_by(starter, server);
    server.until(|seen| !seen.polls.is_empty());
    agent
}

/// A shell that runs a line, in which `"$@"` starts the agent.
fn shell(line: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", line, "bash"]);
    command
}

fn run(server: &Server, name: &str, detail: Value) -> Ended {
    server.start(name, detail);
    server.result(name)
}

#[test]
fn signals_that_the_agent_ignores_are_not_ignored_in_commands() {
    let server = Server::new();
    let ignoring = shell("trap '' HUP INT QUIT USR1 CHLD ALRM RTMIN+1; exec \"$@\"");
    let _agent = started_by(&server, ignoring);
    assert_eq!(
        run(&server, "exit", json!({"command": "exit 3"})).exit_code,
        Some(3)
    );
    for signal in ["HUP", "INT", "USR1", "ALRM"] {
        let line = format!("kill -{signal} $$; sleep 5");
        let result = run(&server, signal, json!({"command": line}));
        let expected = format!("SIG{signal}");
        assert_eq!(result.signal.as_deref(), Some(&*expected), "{result:?}");
    }
    // Bash ignores QUIT whoever starts it. Other programs show what they inherited.
    run(
        &server,
        "masks",
        json!({"argv": ["cat", "/proc/self/status"]}),
    );
    let status = server.text("masks", Stream::Stdout);
    for name in ["SigIgn", "SigBlk"] {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let mask = u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap();
        // glibc has its own two signals ignored in every program that it starts.
        assert_eq!(mask & !(0b11 << 31), 0, "{line}");
    }
}

#[test]
fn signals_that_the_agent_blocks_are_not_blocked_in_commands() {
    let server = Server::new();
    let mut blocking = Command::new("env");
    blocking.args(["--block-signal=TERM,USR1", "--"]);
    let mut agent = started_by(&server, blocking);
    let result = run(&server, "x", json!({"command": "kill -USR1 $$; sleep 5"}));
    assert_eq!(result.signal.as_deref(), Some("SIGUSR1"), "{result:?}");
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(0));
}

#[test]
fn a_lock_of_the_agents_parent_is_not_held_by_what_a_command_leaves_running() {
    let server = Server::new();
    let path = std::env::temp_dir().join(format!("sidebike-lock-{}", std::process::id()));
    let line = format!("exec 7>{} 200>&7; flock 7; exec \"$@\"", path.display());
    let mut agent = started_by(&server, shell(&line));
    run(&server, "daemon", json!({"command": "sleep 300 & echo $!"}));
    let daemon = server.numbers("daemon")[0];
    let lock = || {
        let file = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        flock(file, FlockOperation::NonBlockingLockExclusive)
    };
    assert!(lock().is_err(), "the agent has it");
    agent.signal("KILL");
    agent.wait();
    fake::eventually("the lock is free", || lock().is_ok());
    assert!(fake::alive(daemon));
    fake::kill(daemon);
    std::fs::remove_file(path).unwrap();
}

/// Command lines of a shell that make the agent the leader of the session, or a process in it.
const IN_SESSION: [&str; 2] = ["exec \"$@\"", "\"$@\"; exit $?"];

/// An agent in a pseudo-terminal of its own.
struct InTerminal<'a> {
    server: &'a Server,
    keyboard: File,
    _agent: Agent,
}

impl<'a> InTerminal<'a> {
    fn start(server: &'a Server, line: &str) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let keyboard = openpt(flags).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let screen: File = rustix::fs::open(&*name, flags, Mode::empty())
            .unwrap()
            .into();
        let mut starter = Command::new("setsid");
        starter.args(["--ctty", "--wait", "bash", "-c", line, "bash"]);
        starter.stdin(screen.try_clone().unwrap());
        starter.stdout(Stdio::from(screen));
        InTerminal {
            server,
            keyboard: keyboard.into(),
            _agent: started_by(server, starter),
        }
    }

    fn press_ctrl_c(&mut self) {
        self.keyboard.write_all(b"\x03").unwrap();
    }
}

impl Drop for InTerminal<'_> {
    /// Ends the agent: only its parent is known by its number.
    fn drop(&mut self) {
        self.press_ctrl_c();
        if !std::thread::panicking() {
            self.server.until(|seen| !seen.goodbyes.is_empty());
        }
    }
}

#[test]
fn a_command_cannot_wait_for_the_terminal_of_the_agent() {
    for line in IN_SESSION {
        let server = Server::new();
        let _terminal = InTerminal::start(&server, line);
        let detail = json!({"command": "read x </dev/tty; echo read $?", "timeout": 10});
        let result = run(&server, "x", detail);
        let (out, err) = (
            server.text("x", Stream::Stdout),
            server.text("x", Stream::Stderr),
        );
        assert_eq!(
            result.state,
            ExecutionState::Succeeded,
            "{line}: {result:?}"
        );
        assert_eq!(out, "read 1\n", "{line}");
        assert!(err.contains("/dev/tty: No such device"), "{line}: {err}");
    }
}

#[test]
fn ctrl_c_in_its_terminal_ends_the_agent() {
    for line in IN_SESSION {
        let server = Server::new();
        let mut terminal = InTerminal::start(&server, line);
        terminal.press_ctrl_c();
        server.until(|seen| !seen.goodbyes.is_empty());
    }
}
