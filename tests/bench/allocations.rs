//! Allocations per request: the server runs in this process, whose allocator counts.
//!
//! In a process of its own, since the server takes the signals of the process it runs in. The
//! client allocates nothing, so what is counted is the server's.

use crate::process::free_address;
use crate::setting::Setting;
use crate::table::Row;
use clap::Parser;
use sidebike::config::{CommandLine, Program};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The argument that makes the benchmark be that process.
pub const PROGRAM: &str = "allocations";
/// Requests of each kind. The server's clock allocates a little besides; this many make it vanish.
const REQUESTS: u64 = 3_000;
/// Requests before the count begins: tables grow, threads start.
const FIRST: u64 = 200;
/// How long the server may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first number of a poll: all numbers have as many digits, and so all requests one length.
const FIRST_SEQ: u64 = 1_000_000_000;

/// Counts what is allocated, while it is told to.
struct Counting;

static IS_ON: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note(bytes: usize) {
    if IS_ON.load(Ordering::Relaxed) {
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[allow(unsafe_code, reason = "an allocator cannot be written otherwise")]
// SAFETY: all is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are those that it wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Starts the process, and reads its figures.
pub fn per_request(_: &Setting) -> Result<Vec<Row>, String> {
    let own = std::env::current_exe().map_err(|why| format!("this programme: {why}"))?;
    let done = Command::new(own).arg(PROGRAM).output();
    let done = done.map_err(|why| format!("this programme: {why}"))?;
    let text = String::from_utf8_lossy(&done.stdout);
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr);
        return Err(format!("{}: {}", done.status, why.trim()));
    }
    let rows = text.lines().filter_map(|line| line.split_once('\t'));
    Ok(rows
        .map(|(what, figures)| Row::new(format!("allocations per {what}"), figures))
        .collect())
}

/// Is that process.
pub fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), String> {
    // As much is logged as by default, to nowhere.
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Info)
        .target(env_logger::Target::Pipe(Box::new(std::io::sink())))
        .init();
    let address = free_address()?;
    let listen = address.to_string();
    let words = ["sidebike", "server", "--listen", &listen];
    let line = CommandLine::try_parse_from(words).map_err(|why| why.to_string())?;
    let Program::Server(args) = line.program else {
        return Err("`sidebike server` is something else now".into());
    };
    let config = args.checked()?;
    std::thread::spawn(move || {
        if let Err(why) = sidebike::server::run(config) {
            eprintln!("{why}");
            std::process::exit(1);
        }
    });
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes();
    kept_alive("healthz", address, &get("/healthz"))?;
    kept_alive("ping", address, &get("/api/v1/lifecycle/ping?path=bench"))?;
    kept_alive("submit (`any`, 1 KiB)", address, &submit())?;
    polls(address)
}

/// The task of `submit.lua`.
fn submit() -> Vec<u8> {
    let head = r#"{"machinePattern":"^idle$","mode":"any","detail":{"argv":["true",""#;
    let tail = r#""]}}"#;
    let padding = "x".repeat(1_024 - head.len() - tail.len());
    let body = format!("{head}{padding}{tail}");
    crate::http::request("POST", "/api/v1/task", "", body.as_bytes())
}

fn kept_alive(what: &str, address: SocketAddr, bytes: &[u8]) -> Result<(), String> {
    let mut stream = connect(address)?;
    counted(what, |_| exchange(&mut stream, bytes))
}

/// Polls of an agent that wants its answer at once, each on its own connection.
fn polls(address: SocketAddr) -> Result<(), String> {
    let length = body(FIRST_SEQ).len();
    let mut bytes = Vec::with_capacity(1_024);
    counted("poll (with its connection)", |n| {
        bytes.clear();
        let written = write!(
            bytes,
            "POST /api/v1/agent/poll HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let written = written.and_then(|()| write_body(&mut bytes, FIRST_SEQ + n));
        written.map_err(|why| why.to_string())?;
        let mut stream = TcpStream::connect(address).map_err(|why| why.to_string())?;
        exchange(&mut stream, &bytes)
    })
}

fn body(seq: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory cannot fail.
    let _ = write_body(&mut bytes, seq);
    bytes
}

fn write_body(bytes: &mut Vec<u8>, seq: u64) -> std::io::Result<()> {
    write!(
        bytes,
        r#"{{"instance":"0123456789abcdef","seq":{seq},"label":"counted","host":"bench","version":"1","jobs":4,"wait":0,"holds":[]}}"#
    )
}

fn counted(what: &str, mut call: impl FnMut(u64) -> Result<(), String>) -> Result<(), String> {
    (0..FIRST).try_for_each(&mut call)?;
    COUNT.store(0, Ordering::Relaxed);
    BYTES.store(0, Ordering::Relaxed);
    IS_ON.store(true, Ordering::Relaxed);
    let done = (FIRST..FIRST + REQUESTS).try_for_each(call);
    IS_ON.store(false, Ordering::Relaxed);
    done.map_err(|why| format!("{what}: {why}"))?;
    let each = |sum: &AtomicU64| sum.load(Ordering::Relaxed) as f64 / REQUESTS as f64;
    println!("{what}\t{:.1}, {:.0} bytes", each(&COUNT), each(&BYTES));
    Ok(())
}

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(why) if begin.elapsed() > PATIENCE => return Err(why.to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// One request and its answer, which must go well; allocates nothing.
fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> Result<(), String> {
    const OK: &[u8] = b"HTTP/1.1 200";
    let mut answer = [0; 16 * 1024];
    let mut length = 0;
    let sent = stream.write_all(bytes);
    sent.map_err(|why| why.to_string())?;
    while !is_whole(&answer[..length]) {
        match stream.read(&mut answer[length..]) {
            Ok(0) => return Err("the connection has ended, or the answer is too long".into()),
            Ok(n) => length += n,
            Err(why) => return Err(why.to_string()),
        }
    }
    match answer.starts_with(OK) {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&answer[..length]).into_owned()),
    }
}

fn is_whole(answer: &[u8]) -> bool {
    const MARK: &[u8] = b"content-length:";
    let Some(ends) = answer.windows(4).position(|w| w == b"\r\n\r\n") else {
        return false;
    };
    let (head, body) = answer.split_at(ends + 4);
    let at = { head.windows(MARK.len()) }.position(|word| word.eq_ignore_ascii_case(MARK));
    let digits = at.map_or(&[][..], |at| head[at + MARK.len()..].trim_ascii_start());
    let length = { digits.iter() }
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |sum, digit| 10 * sum + usize::from(digit - b'0'));
    body.len() >= length
}
