//! Allocations per request: a server inside a process of this programme, whose allocator counts.
//!
//! The process has nothing but the server in it: it takes the signals of its process for its own,
//! and its process's sockets for those that it accepted. So the client is outside, and turns the
//! counting on and off with a byte on the process's standard input.

use crate::api::Api;
use crate::http::request;
use crate::process::{free_address, wait_until};
use crate::setting::Setting;
use crate::table::Row;
use clap::Parser;
use serde_json::json;
use sidebike::command_line::{CommandLine, Program};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The argument that makes the benchmark be that process; the address follows.
pub const PROGRAM: &str = "allocations";
/// Requests of each kind. The server's clock allocates a little besides; this many make it vanish.
const REQUESTS: u64 = 3_000;
/// Requests before the count begins: tables grow, threads start.
const FIRST: u64 = 200;
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

/// The server in its process, which ends when its standard input does.
struct Counted {
    process: Child,
    switch: Option<ChildStdin>,
    figures: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Counted {
    fn start() -> Result<Counted, String> {
        let address = free_address()?;
        let own = std::env::current_exe().map_err(|why| format!("this programme: {why}"))?;
        let mut process = Command::new(own)
            .args([PROGRAM, &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|why| format!("this programme: {why}"))?;
        let (switch, figures) = (process.stdin.take(), process.stdout.take());
        let counted = Counted {
            process,
            switch,
            figures: BufReader::new(figures.ok_or("a pipe is missing")?),
            address,
        };
        wait_until("the server answers", || {
            Ok(Api::new(address).get("/healthz").ok())
        })?;
        Ok(counted)
    }

    /// Turns the counting on; or off, then there is a line of figures.
    fn turn(&mut self) -> Result<(), String> {
        let switch = self.switch.as_mut().ok_or("a pipe is missing")?;
        let turned = switch.write_all(b"\n").and_then(|()| switch.flush());
        turned.map_err(|why| format!("the counted server: {why}"))
    }

    /// What such a call takes, in the mean.
    fn row(
        &mut self,
        what: &str,
        mut call: impl FnMut(u64) -> Result<(), String>,
    ) -> Result<Row, String> {
        (0..FIRST).try_for_each(&mut call)?;
        self.turn()?;
        (FIRST..FIRST + REQUESTS).try_for_each(call)?;
        self.turn()?;
        let mut line = String::new();
        let read = self.figures.read_line(&mut line);
        read.map_err(|why| format!("the counted server: {why}"))?;
        let figures: Vec<f64> = { line.split_whitespace() }
            .filter_map(|word| word.parse().ok())
            .map(|sum: f64| sum / REQUESTS as f64)
            .collect();
        match figures[..] {
            [count, bytes] => Ok(Row::new(
                format!("allocations per {what}"),
                format!("{count:.1}, {bytes:.0} bytes"),
            )),
            _ => Err(format!("the counted server said {line:?}")),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.switch = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Of the calls that there are most of.
pub fn per_request(_: &Setting) -> Result<Vec<Row>, String> {
    let mut server = Counted::start()?;
    let address = server.address;
    let mut api = Api::new(address);
    let mut kept_alive = |what: &str, bytes: Vec<u8>| {
        server.row(what, |_| match api.raw(&bytes)? {
            reply if reply.status == 200 => Ok(()),
            reply => Err(format!("{what}: {} {}", reply.status, reply.text())),
        })
    };
    let ping = "/api/v1/lifecycle/ping?path=bench";
    let mut rows = vec![
        kept_alive("healthz", request("GET", "/healthz", "", b""))?,
        kept_alive("ping", request("GET", ping, "", b""))?,
        kept_alive("submit (`any`, 1 KiB)", submit())?,
    ];
    // An agent that wants its answer at once, each time on a new connection.
    rows.push(server.row("poll (with its connection)", |n| {
        let poll = json!({
            "instance": "0123456789abcdef", "seq": FIRST_SEQ + n, "label": "counted",
            "host": "bench", "version": "1", "jobs": 4, "wait": 0, "holds": []
        });
        let (path, body) = ("/api/v1/agent/poll", poll.to_string());
        let bytes = request("POST", path, "Connection: close\r\n", body.as_bytes());
        Api::new(address).call(&bytes).map(drop)
    })?);
    Ok(rows)
}

/// The task of `submit.lua`.
fn submit() -> Vec<u8> {
    let head = r#"{"machinePattern":"^idle$","mode":"any","detail":{"argv":["true",""#;
    let tail = r#""]}}"#;
    let padding = "x".repeat(1_024 - head.len() - tail.len());
    let body = format!("{head}{padding}{tail}");
    request("POST", "/api/v1/task", "", body.as_bytes())
}

/// Is that process.
pub fn main(address: &str) -> ExitCode {
    match serve(address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: &str) -> Result<(), String> {
    // As much is logged as by default, to nowhere.
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Info)
        .target(env_logger::Target::Pipe(Box::new(std::io::sink())))
        .init();
    let words = ["sidebike", "server", "--listen", address];
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
    let (mut switch, mut byte) = (std::io::stdin(), [0]);
    while switch.read(&mut byte).is_ok_and(|n| n > 0) {
        if IS_ON.swap(false, Ordering::SeqCst) {
            let sums = [&COUNT, &BYTES].map(|sum| sum.swap(0, Ordering::SeqCst));
            println!("{} {}", sums[0], sums[1]);
        } else {
            IS_ON.store(true, Ordering::SeqCst);
        }
    }
    Ok(())
}
