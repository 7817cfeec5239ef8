//! What the tests of the HTTP edge share: a client that reads several answers from one connection,
//! numbers from a seed, and figures of the server's process.

#![allow(dead_code, reason = "each file of tests uses its part")]

use crate::common::Server;
use crate::common::http::{Reply, request};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

/// No answer takes longer than a held request may.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |text| text.parse().expect("a number"))
}

/// Allows this process as many open files as the system lets it have.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may be raised to the hard one");
}

/// The number of descriptors that the server has open.
pub fn open_descriptors(server: &Server) -> usize {
    let path = format!("/proc/{}/fd", server.process.pid().as_raw_nonzero());
    std::fs::read_dir(path).expect("it lives").count()
}

/// Why there was no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The connection ended before the first byte of an answer.
    Closed,
    /// The connection was reset before the whole answer.
    Reset,
    /// The connection ended inside an answer, or the bytes were none.
    Broken(String),
    /// Nothing came in time.
    TimedOut,
}

/// A client that keeps the bytes behind an answer for the next one.
pub struct Client<S = TcpStream> {
    pub stream: S,
    unread: Vec<u8>,
}

impl Client {
    pub fn open(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("the server accepts connections");
        stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client::over(stream)
    }

    pub fn patience(&self, timeout: Duration) {
        self.stream.set_read_timeout(Some(timeout)).unwrap();
    }

    /// Sends FIN; answers can still be read.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Closes with RST.
    pub fn reset(self) {
        let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
    }
}

impl<S: Read + Write> Client<S> {
    pub fn over(stream: S) -> Client<S> {
        Client {
            stream,
            unread: Vec::new(),
        }
    }

    /// A server that refuses early may close while the client still writes: the answer tells.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok() && self.stream.flush().is_ok()
    }

    fn fill(&mut self) -> Result<(), NoAnswer> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) if self.unread.is_empty() => Err(NoAnswer::Closed),
            Ok(0) => Err(NoAnswer::Broken(
                String::from_utf8_lossy(&self.unread).into_owned(),
            )),
            Ok(n) => {
                self.unread.extend_from_slice(&buffer[..n]);
                Ok(())
            }
            Err(why) if why.kind() == ErrorKind::WouldBlock => Err(NoAnswer::TimedOut),
            Err(why) if why.kind() == ErrorKind::Interrupted => Ok(()),
            Err(why) if why.kind() == ErrorKind::ConnectionReset => Err(NoAnswer::Reset),
            Err(why) => Err(NoAnswer::Broken(why.to_string())),
        }
    }

    /// The next answer. One to HEAD has no body, whatever its length says; an interim one neither.
    fn next(&mut self, is_head: bool) -> Result<Reply, NoAnswer> {
        let at = loop {
            if let Some(at) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let head: Vec<u8> = self.unread.drain(..at + 4).collect();
        let head = String::from_utf8_lossy(&head[..at]).into_owned();
        let broken = || NoAnswer::Broken(head.clone());
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        if words.next() != Some("HTTP/1.1") {
            return Err(broken());
        }
        let status = words.next().and_then(|word| word.parse().ok());
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        let mut reply = Reply {
            status: status.ok_or_else(broken)?,
            headers: headers.collect(),
            body: Vec::new(),
        };
        if is_head || reply.status < 200 {
            return Ok(reply);
        }
        let length = reply.header("Content-Length").unwrap_or("0").parse();
        let length = length.map_err(|_| broken())?;
        while self.unread.len() < length {
            match self.fill() {
                Err(NoAnswer::Closed) => return Err(broken()),
                other => other?,
            }
        }
        reply.body = self.unread.drain(..length).collect();
        Ok(reply)
    }

    pub fn answer(&mut self) -> Result<Reply, NoAnswer> {
        self.next(false)
    }

    pub fn answer_to_head(&mut self) -> Result<Reply, NoAnswer> {
        self.next(true)
    }

    /// All answers until the connection ends, and how it ended.
    pub fn answers(&mut self, is_head: bool) -> (Vec<Reply>, NoAnswer) {
        let mut answers = Vec::new();
        loop {
            match self.next(is_head) {
                Ok(reply) => answers.push(reply),
                Err(why) => return (answers, why),
            }
        }
    }

    /// Whether the server ends the connection without another byte.
    pub fn is_ended(&mut self) -> bool {
        matches!(self.answer(), Err(NoAnswer::Closed | NoAnswer::Reset))
    }
}

pub fn get(target: &str) -> Vec<u8> {
    request("GET", target, "", b"")
}

/// A request whose answer names the label.
pub fn ping(label: &str) -> Vec<u8> {
    get(&format!("/api/v1/lifecycle/ping?path={label}"))
}

pub fn is_pong(reply: &Reply, label: &str) -> bool {
    reply.status == 200 && reply.msg() == format!("pong: {label}")
}

/// The body of a submit with an id of its own, for a machine that never comes.
pub fn task_body(id: &str) -> String {
    json!({"id": id, "machinePattern": "^nobody$", "detail": {"command": "true"}}).to_string()
}

pub fn submit(id: &str) -> Vec<u8> {
    request("POST", "/api/v1/task", "", task_body(id).as_bytes())
}

/// Whether the server knows this task, so whether its submit was executed.
pub fn exists(server: &Server, id: &str) -> bool {
    match server.get(&format!("/api/v1/task/{id}")).status {
        200 => true,
        404 => false,
        other => panic!("{other} for the task {id}"),
    }
}

/// The numbers of a seed: splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What to put before a command so that strace delays its system calls; `None`, with a word, where it cannot.
pub fn strace_words(trace: &'static str, inject: &'static str) -> Option<[&'static str; 9]> {
    let words = [
        "strace",
        "--seccomp-bpf",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        trace,
        "-e",
        inject,
    ];
    let tried = Command::new(words[0])
        .args(&words[1..])
        .arg("true")
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: there is no strace that could delay system calls");
        return None;
    }
    Some(words)
}
