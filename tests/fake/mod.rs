//! A server for one test, and the agent that talks to it.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod blobs;
pub mod gate;
pub mod shim;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sidebike::head_tail_buffer::HeadTailBuffer;
use sidebike::wire::agent::{
    Assignment, AttemptId, Done, Ended, Goodbye, Orders, Output, Piece, Poll, Stream, UndoOrder,
};
use sidebike::wire::undo::{UndoReason, UndoReport};
use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Patience with an event; only a failing test takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server has seen, and what it is to do.
#[derive(Default)]
pub struct Seen {
    pub polls: Vec<Poll>,
    pub pieces: Vec<Piece>,
    pub dones: Vec<Done>,
    pub goodbyes: Vec<Goodbye>,
    pub buffers: HashMap<(String, Stream), HeadTailBuffer>,
    /// When each request was answered with 200.
    pub answered: Vec<Instant>,
    orders: VecDeque<Orders<Value>>,
    /// Handed out in the next answer to a report that asks for work.
    starts: Vec<Assignment<Value>>,
    /// So many reports are read, then the connection is cut.
    pub lose_dones: usize,
    /// So many reports are answered without listing the results.
    pub ignore_dones: usize,
    /// So many reports are answered without listing the undos.
    pub ignore_undos: usize,
    /// So many polls are answered with 409.
    pub conflicts: usize,
    /// Requests that name this execution are answered with 400.
    pub refuse: Option<String>,
    /// Reads, and never answers a report.
    pub mute: bool,
    newest_poll: usize,
    /// What agents may fetch, by its hash.
    pub blobs: HashMap<String, Vec<u8>>,
    /// What goes wrong with the next requests for it.
    pub troubles: VecDeque<blobs::Trouble>,
    /// So many requests for it came.
    pub gets: usize,
    /// What agents have handed back, with its path.
    pub uploads: Vec<(String, Vec<u8>)>,
}

impl Seen {
    /// How many bytes of both streams came.
    pub fn bytes(&self, execution: &str) -> u64 {
        [Stream::Stdout, Stream::Stderr]
            .iter()
            .filter_map(|stream| self.buffers.get(&(execution.to_owned(), *stream)))
            .map(HeadTailBuffer::end)
            .sum()
    }

    /// Every report of a result.
    pub fn results(&self, execution: &str) -> Vec<Ended> {
        let all = self.dones.iter().flat_map(|done| &done.results);
        all.filter(|ended| ended.id.execution == execution)
            .cloned()
            .collect()
    }

    /// Every report about the undo of an execution.
    pub fn undos(&self, execution: &str) -> Vec<UndoReport> {
        let all = self.dones.iter().flat_map(|done| &done.undos);
        all.filter(|undo| undo.id.execution == execution)
            .cloned()
            .collect()
    }

    /// Standard output as numbers, one a line.
    pub fn numbers(&self, execution: &str) -> Vec<i32> {
        let buffer = self.buffers.get(&(execution.to_owned(), Stream::Stdout));
        let bytes = buffer
            .and_then(|buffer| buffer.read(0, 1 << 20))
            .unwrap_or_default()
            .1;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect()
    }

    fn keep(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            let key = (piece.id.execution.clone(), piece.stream);
            self.buffers
                .entry(key)
                .or_default()
                .write(piece.offset, &piece.data);
            self.pieces.push(piece.clone());
        }
    }
}

type Shared = Arc<(Mutex<Seen>, Condvar)>;

/// The server.
pub struct Server {
    pub port: u16,
    shared: Shared,
    open: Arc<AtomicBool>,
}

impl Server {
    pub fn new() -> Self {
        let mut server = Server {
            port: 0,
            shared: Arc::default(),
            open: Arc::default(),
        };
        server.open();
        server
    }

    /// Accepts again, on the same port.
    pub fn open(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).unwrap();
        self.port = listener.local_addr().unwrap().port();
        self.open = Arc::new(AtomicBool::new(true));
        let (shared, open) = (Arc::clone(&self.shared), Arc::clone(&self.open));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if !open.load(Ordering::SeqCst) {
                    return;
                }
                let (shared, open) = (Arc::clone(&shared), Arc::clone(&open));
                std::thread::spawn(move || serve(stream.unwrap(), &shared, &open));
            }
        });
    }

    /// Cuts every connection and accepts none.
    pub fn close(&mut self) {
        self.open.store(false, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.shared.1.notify_all();
        eventually("the port is closed", || {
            TcpStream::connect(("127.0.0.1", self.port)).is_err()
        });
    }

    pub fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.shared.0.lock().unwrap());
        self.shared.1.notify_all();
    }

    /// Orders a start.
    pub fn start(&self, execution: &str, detail: Value) {
        let mut orders = Orders::none();
        orders.start.push(assignment(execution, None, detail));
        self.change(|seen| seen.orders.push_back(orders));
    }

    /// The same with files: a change of the order.
    pub fn start_with(
        &self,
        execution: &str,
        detail: Value,
        change: impl FnOnce(&mut Assignment<Value>),
    ) {
        let mut orders = Orders::none();
        let mut start = assignment(execution, None, detail);
        change(&mut start);
        orders.start.push(start);
        self.change(|seen| seen.orders.push_back(orders));
    }

    /// The same, with the key of the attempt.
    pub fn start_with_key(&self, execution: &str, key: &str, detail: Value) {
        let mut orders = Orders::none();
        orders.start.push(assignment(execution, Some(key), detail));
        self.change(|seen| seen.orders.push_back(orders));
    }

    /// Orders a start in the next answer to a report that asks for work.
    pub fn start_by_report(&self, execution: &str, detail: Value) {
        let start = assignment(execution, None, detail);
        self.change(|seen| seen.starts.push(start));
    }

    /// Orders an undo.
    pub fn undo(&self, execution: &str, key: &str, reason: UndoReason, detail: Value) {
        let mut orders = Orders::none();
        orders.undo.push(UndoOrder {
            execution: execution.into(),
            attempt: 1,
            task_id: "the-task".into(),
            task_name: "the name".into(),
            key: key.into(),
            reason,
            exit_code: Some(9),
            stdout: "what it said".into(),
            detail,
        });
        self.change(|seen| seen.orders.push_back(orders));
    }

    pub fn cancel(&self, execution: &str) {
        let mut orders = Orders::none();
        orders.cancel.push(id(execution));
        self.change(|seen| seen.orders.push_back(orders));
    }

    pub fn forget(&self, execution: &str) {
        let mut orders = Orders::none();
        orders.forget.push(id(execution));
        self.change(|seen| seen.orders.push_back(orders));
    }

    /// Waits until what was seen fits.
    pub fn until(&self, fits: impl Fn(&Seen) -> bool) {
        drop(self.wait(fits));
    }

    /// The same, to look at it closely; until that is dropped the server stands still.
    pub fn wait(&self, fits: impl Fn(&Seen) -> bool) -> MutexGuard<'_, Seen> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.shared.0.lock().unwrap();
        while !fits(&seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it did not come");
            seen = self.shared.1.wait_timeout(seen, left).unwrap().0;
        }
        seen
    }

    /// Waits for the end of an undo.
    pub fn undone(&self, execution: &str) -> UndoReport {
        let end = |seen: &Seen| {
            let mut undos = seen.undos(execution).into_iter();
            undos.find(|undo| undo.state.is_settled())
        };
        end(&self.wait(|seen| end(seen).is_some())).unwrap()
    }

    /// Waits for a result.
    pub fn result(&self, execution: &str) -> Ended {
        let seen = self.wait(|seen| !seen.results(execution).is_empty());
        seen.results(execution).remove(0)
    }

    pub fn with_buffer(&self, execution: &str, stream: Stream, look: impl FnOnce(&HeadTailBuffer)) {
        let seen = self.wait(|_| true);
        let nothing = HeadTailBuffer::default();
        let key = (execution.to_owned(), stream);
        look(seen.buffers.get(&key).unwrap_or(&nothing));
    }

    /// The first bytes of a stream as text.
    pub fn text(&self, execution: &str, stream: Stream) -> String {
        let mut text = String::new();
        self.with_buffer(execution, stream, |buffer| {
            let bytes = buffer.read(0, 1 << 20).unwrap_or_default().1;
            text = String::from_utf8_lossy(&bytes).into_owned();
        });
        text
    }

    pub fn numbers(&self, execution: &str) -> Vec<i32> {
        self.wait(|_| true).numbers(execution)
    }
}

fn assignment(execution: &str, key: Option<&str>, detail: Value) -> Assignment<Value> {
    Assignment {
        id: id(execution),
        task_id: "the-task".into(),
        task_name: "the name".into(),
        key: key.map(str::to_owned),
        detail,
        files: Vec::new(),
        files_timeout: None,
        update: None,
        fetch: Vec::new(),
    }
}

fn id(execution: &str) -> AttemptId {
    AttemptId {
        execution: execution.to_owned(),
        attempt: 1,
    }
}

/// One connection.
fn serve(stream: TcpStream, shared: &Shared, open: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some((call, range, body)) = request(&mut reader) {
        if call.starts_with("file") {
            match blobs::answer(&stream, &call, range.as_deref(), body, shared) {
                Some(()) => continue,
                None => return,
            }
        }
        let Some((status, data)) = answer(&call, &body, shared, open) else {
            return;
        };
        let signal = if status == 200 { 0 } else { -1 };
        let text = json!({"signal": signal, "msg": "as told", "data": data}).to_string();
        let close = if call == "poll" {
            "connection: close\r\n"
        } else {
            ""
        };
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{close}\r\n{text}",
            text.len()
        );
        if !open.load(Ordering::SeqCst) || (&stream).write_all(answer.as_bytes()).is_err() {
            return;
        }
        if status == 200 {
            shared.0.lock().unwrap().answered.push(Instant::now());
        }
        if call == "poll" {
            return;
        }
    }
}

/// The call, the range that is asked for, and the body.
fn request(reader: &mut impl BufRead) -> Option<(String, Option<String>, Vec<u8>)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let call = first
        .split(' ')
        .nth(1)?
        .strip_prefix("/api/v1/agent/")?
        .to_owned();
    let mut length = 0;
    let mut range = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range:") {
            range = Some(value.trim().to_owned());
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let is_file = call.starts_with("file");
    assert!(
        is_file || length < 1 << 20,
        "a server does not read {length} bytes"
    );
    Some((call, range, body))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> T {
    serde_json::from_slice(body).expect("what agents send is understood")
}

/// Status and data; nothing when the connection is to be cut.
fn answer(call: &str, body: &[u8], shared: &Shared, open: &AtomicBool) -> Option<(u16, Value)> {
    let mut seen = shared.0.lock().unwrap();
    let answer = match call {
        "poll" => {
            let poll: Poll = parse(body);
            let until = Instant::now() + Duration::from(poll.wait);
            seen.polls.push(poll);
            seen.newest_poll += 1;
            let this = seen.newest_poll;
            shared.1.notify_all();
            if seen.conflicts > 0 {
                seen.conflicts -= 1;
                return Some((409, Value::Null));
            }
            while seen.orders.is_empty() && seen.newest_poll == this && open.load(Ordering::SeqCst)
            {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                seen = shared.1.wait_timeout(seen, left).unwrap().0;
            }
            if !open.load(Ordering::SeqCst) {
                return None;
            }
            let orders = match seen.newest_poll == this {
                true => seen.orders.pop_front(),
                false => None,
            };
            serde_json::to_value(orders.unwrap_or(Orders::none())).unwrap()
        }
        "output" => {
            let output: Output = parse(body);
            if let Some(bad) = &seen.refuse
                && output.pieces.iter().any(|piece| piece.id.execution == *bad)
            {
                return Some((400, Value::Null));
            }
            seen.keep(&output.pieces);
            json!({})
        }
        "done" => return done(parse(body), shared, seen),
        "goodbye" => {
            seen.goodbyes.push(parse(body));
            Value::Null
        }
        other => panic!("no such call: {other}"),
    };
    drop(seen);
    shared.1.notify_all();
    Some((200, answer))
}

fn done(done: Done, shared: &Shared, mut seen: MutexGuard<'_, Seen>) -> Option<(u16, Value)> {
    if let Some(bad) = &seen.refuse {
        let of_bad = |id: &AttemptId| id.execution == *bad;
        if done.results.iter().any(|ended| of_bad(&ended.id)) {
            return Some((400, Value::Null));
        }
    }
    if seen.mute {
        let _never = shared
            .1
            .wait_timeout_while(seen, PATIENCE, |seen| seen.mute);
        return None;
    }
    seen.keep(&done.pieces);
    let mut verdicts: Vec<Value> = done
        .results
        .iter()
        .map(|ended| json!({"execution": ended.id.execution, "attempt": ended.id.attempt, "taken": true}))
        .collect();
    let mut undos: Vec<Value> = { done.undos.iter() }
        .map(|undo| json!({"execution": undo.id.execution, "attempt": undo.id.attempt}))
        .collect();
    let start = match done.seq.is_some() {
        true => std::mem::take(&mut seen.starts),
        false => Vec::new(),
    };
    seen.dones.push(done);
    let mut lost = false;
    if seen.ignore_undos > 0 && !undos.is_empty() {
        seen.ignore_undos -= 1;
        undos.clear();
    }
    if seen.lose_dones > 0 {
        seen.lose_dones -= 1;
        lost = true;
    } else if seen.ignore_dones > 0 {
        seen.ignore_dones -= 1;
        verdicts.clear();
    }
    drop(seen);
    shared.1.notify_all();
    let answer = json!({"results": verdicts, "undos": undos, "start": start});
    (!lost).then_some((200, answer))
}

/// The agent.
pub struct Agent {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Agent {
    pub fn start(server: &Server, args: &[&str], env: &[(&str, &str)]) -> Self {
        let agent = Command::new(env!("CARGO_BIN_EXE_sidebike"));
        Self::spawn(agent, server.port, args, env)
    }

    /// The same, with something between it and the server.
    pub fn start_behind(gate: &gate::Gate, args: &[&str], env: &[(&str, &str)]) -> Self {
        let agent = Command::new(env!("CARGO_BIN_EXE_sidebike"));
        Self::spawn(agent, gate.port, args, env)
    }

    /// Started by another program, which gets the agent's command line as its arguments.
    pub fn start_by(mut starter: Command, server: &Server) -> Self {
        starter.arg(env!("CARGO_BIN_EXE_sidebike"));
        Self::spawn(starter, server.port, &[], &[])
    }

    fn spawn(mut command: Command, port: u16, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut child = command
            .args(["agent", "--registry-address", &format!("127.0.0.1:{port}")])
            .args(args)
            .envs(env.iter().copied())
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (to, from) = (Arc::clone(&log), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                *to.lock().unwrap() += &format!("{line}\n");
            }
        });
        Agent { child, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, name: &str) {
        send(self.child.id() as i32, name);
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit code, once it has ended.
    pub fn wait(&mut self) -> Option<i32> {
        eventually("the agent ends", || {
            self.child.try_wait().unwrap().is_some()
        });
        self.child.wait().unwrap().code()
    }

    /// The most memory it has had, in KiB, without the pages of its program: those of a test build are many, and the
    /// system may take them back.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kib = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.unwrap().trim().trim_end_matches(" kB");
            number.parse().unwrap()
        };
        kib("VmHWM:") - kib("RssFile:")
    }

    /// The memory of its own that it has now, in KiB: without that of files, such as the program itself.
    pub fn own_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Its sockets that listen.
    pub fn listening(&self) -> Vec<String> {
        let own = open_files(&self.child.id().to_string());
        assert!(
            own.iter().any(|link| link.starts_with("socket:")),
            "{own:?}"
        );
        let mut found = Vec::new();
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
            for line in text.lines().skip(1) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let is_own = own.contains(&format!("socket:[{}]", words[9]));
                // 0A is LISTEN; any socket of UDP would be one too many.
                if is_own && (words[3] == "0A" || table.starts_with("udp")) {
                    found.push(line.to_owned());
                }
            }
        }
        found
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The guard ends what it runs.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

/// A server, and an agent that has polled.
pub fn pair(args: &[&str]) -> (Server, Agent) {
    let server = Server::new();
    let agent = Agent::start(&server, args, &[]);
    server.until(|seen| !seen.polls.is_empty());
    (server, agent)
}

/// The living processes of this program with this first argument and this parent.
pub fn helpers(program: &str, parent: i32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let found = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<i32>();
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let is_it = line.split('\0').nth(1) == Some(program);
        (found == Ok(parent) && is_it && alive(pid)).then_some(pid)
    });
    all.collect()
}

/// The process number of the agent's guard, once its program has been started.
pub fn guard_of(agent: &Agent) -> i32 {
    let mut guards = Vec::new();
    eventually("it has a guard", || {
        guards = helpers("agent-guard", agent.id() as i32);
        !guards.is_empty()
    });
    assert_eq!(guards.len(), 1, "{guards:?}");
    guards[0]
}

/// Looks again and again until it is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a process has open.
pub fn open_files(pid: &str) -> Vec<String> {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .map(|link| link.display().to_string())
        .collect()
}

/// Whether a process can do anything; a zombie cannot.
pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

pub fn kill(pid: i32) {
    send(pid, "KILL");
}

/// Sends a signal by its name.
pub fn send(pid: i32, name: &str) {
    let done = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    assert!(done.unwrap().success());
}

/// A command that starts another in namespaces of its own, after a script has prepared them; none, with a
/// word about it, where this user may not do that.
pub fn unshare(namespaces: &[&str], script: &str) -> Option<Command> {
    let unshare = || {
        let mut command = Command::new("unshare");
        let script = format!("{script} exec \"$@\"");
        command.args(namespaces).args(["sh", "-c", &script, "sh"]);
        command
    };
    let may = unshare().arg("true").status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this user has no right to namespaces");
        return None;
    }
    Some(unshare())
}
