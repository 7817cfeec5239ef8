//! A standard error that nobody reads does not stop a server.
#![cfg(feature = "server")]

mod common;

use common::http::{Connection, request};
use common::{SIDEBIKE, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};

/// A server whose log is read by the test, or not.
struct Quiet {
    process: Child,
    log: BufReader<ChildStderr>,
    address: SocketAddr,
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Quiet {
    /// Reads the log until the server listens, and no further.
    fn start() -> Quiet {
        let mut process = Command::new(SIDEBIKE)
            .args(["server", "--listen", "127.0.0.1:0"])
            .env("RUST_LOG", "debug")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut log = BufReader::new(process.stderr.take().unwrap());
        rustix::pipe::fcntl_setpipe_size(log.get_ref(), 4_096).unwrap();
        let address = loop {
            let mut line = String::new();
            log.read_line(&mut line).unwrap();
            if let Some((_, address)) = line.split_once(" listens on ") {
                break address.trim().parse().unwrap();
            }
        };
        Quiet {
            process,
            log,
            address,
        }
    }

    /// Makes calls, each of which logs a line of 600 bytes.
    fn call(&self, calls: usize) {
        let name = "x".repeat(450);
        let call = request("POST", &format!("/api/v1/task/{name}/cancel"), "", b"");
        let mut connection = Connection::open(self.address);
        for _ in 0..calls {
            connection.send(&call);
            assert_eq!(connection.read().status, 404);
        }
    }

    fn end(&mut self) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::TERM).unwrap();
        let status = wait_until("it ends", || self.process.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing_and_says_later_what_is_missing() {
    const CALLS: usize = 10_000;
    let mut server = Quiet::start();
    server.call(CALLS);
    let mut connection = Connection::open(server.address);
    connection.send(&request("GET", "/metrics", "", b""));
    let metrics = connection.read().text().to_owned();
    let dropped = metrics.lines().find_map(|line| {
        line.strip_prefix("sidebike_log_lines_dropped_total ")?
            .parse::<usize>()
            .ok()
    });
    let dropped = dropped.expect("it is counted");
    // Somebody reads.
    let (mut seen, mut missing) = (0, 0);
    while missing == 0 {
        let mut line = String::new();
        server.log.read_line(&mut line).unwrap();
        seen += usize::from(line.contains("sidebike::audit"));
        if let Some((before, _)) = line.split_once(" lines of the log are missing here") {
            missing = before.rsplit(' ').next().unwrap().parse().unwrap();
        }
    }
    assert_eq!(missing, dropped);
    assert_eq!(seen + missing, CALLS, "every line was written or counted");
    assert!(seen > 1_000, "{seen}");
    // From now on nothing is missing.
    server.call(10);
    for _ in 0..10 {
        let mut line = String::new();
        while !line.contains("sidebike::audit") {
            line.clear();
            server.log.read_line(&mut line).unwrap();
        }
    }
    server.end();
}

#[test]
fn a_server_ends_though_nobody_reads_its_log() {
    let mut server = Quiet::start();
    server.call(100);
    server.end();
}
