//! Somebody who behaves, going on while others do not: an agent that runs what it is given, and a
//! user who looks and submits all the time. Neither may ever fail, and the user is never kept
//! waiting. Also the few words that hostile clients are written with.

#![allow(dead_code, reason = "each file of tests uses its part")]

use crate::common::http::{Reply, request};
use crate::common::{Agent, SIDEBIKE, Server, wait_for, wait_until};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// 99 of 100 answers come within this, from a build that is not optimized on a machine that the attack keeps busy: whoever
/// is held up by a slow client waits for seconds.
const SOON: Duration = Duration::from_millis(200);
/// A percentile of fewer answers says little.
const ENOUGH: usize = 300;
const TRIES: usize = 3;
const PACE: Duration = Duration::from_millis(8);
/// One in so many requests is a submit; each of those starts a process.
const SUBMIT_EVERY: usize = 8;

/// Keeps the tests of a file apart that load the machine: one would be measured by the other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server that does not log what was changed: hostile clients would fill pages.
pub fn quiet_server(flags: &[&str]) -> Server {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .args(flags)
        .env("RUST_LOG", "info,sidebike::audit=warn");
    at_work(command)
}

/// A server that has begun its work: all its threads are there, to be counted.
pub fn at_work(command: Command) -> Server {
    let server = Server::from_command(command);
    assert_eq!(server.get("/healthz").status, 200);
    server
}

/// A server under limits of the shell, with what stands before it on the command line.
pub fn limited(before: &[&str], limits: &str, flags: &[&str]) -> Server {
    let line = format!("{limits}; exec \"$0\" server --listen 127.0.0.1:0 \"$@\"");
    let shell = ["sh", "-c", &line, SIDEBIKE];
    let words: Vec<&&str> = before.iter().chain(&shell).chain(flags).collect();
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .env("RUST_LOG", "info,sidebike::audit=warn")
        // Of each thread's own pool of memory musl, which releases are built with, knows nothing.
        .env("MALLOC_ARENA_MAX", "1");
    at_work(command)
}

/// Does something hostile, with the well-behaved going on beside it. On a machine that is busy
/// with other things the percentile has another try; failing is never forgiven.
pub fn beside(server: &Server, mut attack: impl FnMut()) {
    beside_with(server, "", &[], &mut attack);
}

/// The same where a token is needed: a header for the user, variables for the agent.
pub fn beside_with(server: &Server, header: &str, env: &[(&str, &str)], attack: &mut dyn FnMut()) {
    let agent = Agent::start(server.address, "well-behaved", env);
    let instance = agent.instance();
    wait_for("the well-behaved agent is there", || {
        let bytes = request("GET", "/api/v1/machine", &with_close(header), b"");
        let machines = ask(server.address, &bytes).map(|reply| reply.data());
        machines.is_ok_and(|machines| machines.to_string().contains(&instance))
    });
    for _ in 0..TRIES {
        let measured = measure(server, header, attack);
        if measured.late <= SOON || measured.says_nothing() {
            return;
        }
    }
    panic!("99 of 100 were later than {SOON:?}, {TRIES} times");
}

/// What was seen beside an attack.
struct Measured {
    /// 99 of 100 answers came within this.
    late: Duration,
    /// 99 of 100 answers of a mere echo, in this process, came within this.
    echo_late: Duration,
    /// The share that the server had in the time of all processors.
    share: f64,
}

impl Measured {
    /// Whether this machine was so busy, and not with the server, that a percentile says nothing.
    fn says_nothing(&self) -> bool {
        self.echo_late > SOON / 2 && self.share < 0.25
    }
}

fn with_close(header: &str) -> String {
    format!("{header}Connection: close\r\n")
}

fn measure(server: &Server, header: &str, attack: &mut dyn FnMut()) -> Measured {
    let over = AtomicBool::new(false);
    let header = with_close(header);
    let (started, cpu) = (Instant::now(), server.process.cpu_time());
    thread::scope(|scope| {
        let user = scope.spawn(|| use_it(server.address, &header, &over));
        let echo = scope.spawn(|| use_echo(&over));
        let attacked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let cpu = server.process.cpu_time().saturating_sub(cpu);
        let share = cpu.as_secs_f64() / started.elapsed().as_secs_f64() / processors as f64;
        over.store(true, Ordering::Relaxed);
        let (took, echo_took) = (user.join(), echo.join());
        if let Err(why) = attacked {
            std::panic::resume_unwind(why);
        }
        let mut took = took.unwrap_or_else(|why| std::panic::resume_unwind(why));
        let mut echo_took = echo_took.unwrap_or_else(|why| std::panic::resume_unwind(why));
        let (late, echo_late) = (percentile(&mut took, 99), percentile(&mut echo_took, 99));
        eprintln!(
            "{} answers beside it: half within {:?}, 99 of 100 within {late:?}, all within {:?}; \
             99 of 100 echoes within {echo_late:?}; {share:.2} of the machine for the server",
            took.len(),
            percentile(&mut took, 50),
            percentile(&mut took, 100)
        );
        Measured {
            late,
            echo_late,
            share,
        }
    })
}

fn percentile(took: &mut [Duration], share: usize) -> Duration {
    took.sort();
    took[(took.len() * share / 100).min(took.len() - 1)]
}

/// What this machine makes of the simplest of servers at the same time and pace.
fn use_echo(over: &AtomicBool) -> Vec<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming().flatten() {
                // As the server does it: a thread for each connection.
                let echo = thread::spawn(move || {
                    let mut stream = stream;
                    let mut byte = [0];
                    let _ = stream.read_exact(&mut byte);
                    let _ = stream.write_all(&byte);
                    byte[0]
                });
                if echo.join().is_ok_and(|byte| byte == b'.') {
                    return;
                }
            }
        });
        let ask = |byte: u8| {
            let started = Instant::now();
            let mut stream = TcpStream::connect(address).expect("the echo is there");
            stream.write_all(&[byte]).expect("the echo reads");
            stream.read_exact(&mut [0]).expect("the echo answers");
            started.elapsed()
        };
        let mut took = vec![ask(b'a')];
        while !over.load(Ordering::Relaxed) {
            took.push(ask(b'a'));
            thread::sleep(PACE);
        }
        ask(b'.');
        took
    })
}

/// Looks and submits until it is over; how long each answer took.
fn use_it(server: SocketAddr, header: &str, over: &AtomicBool) -> Vec<Duration> {
    let task = json!({"machinePattern": "^well-behaved$", "detail": {"argv": ["true"]}});
    let look = request("GET", "/healthz", header, b"");
    let submit = request("POST", "/api/v1/task", header, task.to_string().as_bytes());
    let mut took = Vec::new();
    let mut submitted = Vec::new();
    while !over.load(Ordering::Relaxed) || took.len() < ENOUGH {
        let submits = took.len().is_multiple_of(SUBMIT_EVERY);
        let started = Instant::now();
        let answered = ask(server, if submits { &submit } else { &look });
        took.push(started.elapsed());
        let reply = answered.unwrap_or_else(|why| panic!("the well-behaved was let down: {why}"));
        let data = reply.data();
        if submits {
            submitted.push(data["id"].as_str().expect("an id").to_owned());
        }
        thread::sleep(PACE);
    }
    for id in submitted {
        let target = format!("/api/v1/task/{id}?wait=60s");
        let look = request("GET", &target, header, b"");
        // Where no more may be held, it is answered at once.
        let task = wait_until("a task of the well-behaved has ended", || {
            let task = ask(server, &look)
                .expect("the well-behaved was let down")
                .data();
            task["finishedAt"].is_string().then_some(task)
        });
        assert_eq!(task["state"], "succeeded", "{task}");
    }
    took
}

/// One request on a connection of its own. The error says what went wrong.
pub fn ask(server: SocketAddr, bytes: &[u8]) -> Result<Reply, String> {
    let say = |what: &str, why: std::io::Error| format!("{what}: {why}");
    let mut stream = TcpStream::connect(server).map_err(|why| say("connecting", why))?;
    let patience = Some(Duration::from_secs(70));
    stream
        .set_read_timeout(patience)
        .map_err(|why| say("?", why))?;
    stream.write_all(bytes).map_err(|why| say("writing", why))?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .map_err(|why| say("reading", why))?;
    parsed(&answer).ok_or_else(|| format!("no answer but {:?}", String::from_utf8_lossy(&answer)))
}

/// The first answer in these bytes.
pub fn parsed(bytes: &[u8]) -> Option<Reply> {
    let at = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..at]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let body = bytes[at + 4..].to_vec();
    Some(Reply {
        status,
        headers,
        body,
    })
}

/// Sends, then reads until the server closes: the status, or `None` when it was cut without one.
/// Panics when neither happens in time.
pub fn answered_or_cut(server: SocketAddr, bytes: &[u8], within: Duration) -> Option<u16> {
    let mut stream = TcpStream::connect(server).expect("the server takes connections");
    stream.set_read_timeout(Some(within)).unwrap();
    stream.set_write_timeout(Some(within)).unwrap();
    // A server that refuses early may close while we still write: the answer tells.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let started = Instant::now();
    let mut buffer = [0; 4_096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("neither answered nor cut: {:?}", shown(bytes))
            }
            Err(_) => break,
        }
        assert!(started.elapsed() < within, "not cut: {:?}", shown(bytes));
    }
    parsed(&answer).map(|reply| reply.status)
}

/// The beginning of a request, for a message.
pub fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

/// Whether the log tells of a panic.
pub fn has_panicked(server: &Server) -> Option<String> {
    let log = server.process.log();
    log.into_iter()
        .find(|line| line.contains("panicked") || line.contains("overflowed its stack"))
}
