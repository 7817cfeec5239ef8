//! A standard error that nobody reads does not stop an agent.
#![cfg(feature = "agent")]

mod fake;

use fake::Server;
use serde_json::json;
use sidebike::wire::task::ExecutionState;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Ends the agent with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing_and_says_later_what_is_missing() {
    // More lines than the pipe takes, two for each command.
    const COMMANDS: usize = 100;
    let server = Server::new();
    let child = Command::new(env!("CARGO_BIN_EXE_sidebike"))
        .args([
            "agent",
            "--registry-address",
            &format!("127.0.0.1:{}", server.port),
        ])
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn();
    let mut agent = Ended(child.unwrap());
    let log = agent.0.stderr.take().unwrap();
    rustix::pipe::fcntl_setpipe_size(&log, 4_096).unwrap();
    for n in 0..COMMANDS {
        server.start(&format!("x.{n}"), json!({"argv": ["true"]}));
    }
    for n in 0..COMMANDS {
        server.result(&format!("x.{n}"));
    }
    server.start("timed-out", json!({"command": "sleep 300", "timeout": 0.2}));
    assert_eq!(server.result("timed-out").state, ExecutionState::TimedOut);
    server.start("canceled", json!({"command": "echo $$; sleep 300"}));
    server.until(|seen| seen.numbers("canceled").len() == 1);
    server.cancel("canceled");
    assert_eq!(server.result("canceled").state, ExecutionState::Canceled);
    // Somebody reads: what comes then says how much is missing.
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut seen = Vec::new();
    let missing = loop {
        server.start(&format!("more.{}", seen.len()), json!({"argv": ["true"]}));
        let line = lines
            .recv_timeout(std::time::Duration::from_secs(20))
            .unwrap();
        if let Some((before, _)) = line.split_once(" lines of the log are missing here") {
            break before.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
        }
        seen.push(line);
    };
    assert!(missing > COMMANDS, "{missing}");
    assert!(missing + seen.len() < 3 * COMMANDS, "{missing}");
    fake::send(agent.0.id() as i32, "TERM");
    assert_eq!(agent.0.wait().unwrap().code(), Some(0));
}
