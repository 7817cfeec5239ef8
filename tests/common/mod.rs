//! What tests from outside share: the real binary in processes that die with the test, a small
//! HTTP client, and waiting for events.
//!
//! Nothing is shared between tests: each has its server on a free port. Nothing sleeps for a fixed
//! time: [`wait_until`] looks until it sees.

#![allow(dead_code, reason = "each file of tests uses its part")]

pub mod double;
pub mod http;
pub mod original;
pub mod proxy;
pub mod puppet;
pub mod said;

use http::{Connection, Reply};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The binary under test.
pub const SIDEBIKE: &str = env!("CARGO_BIN_EXE_sidebike");
/// How long an event may take on a busy machine before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for a file that a command writes.
const FILE_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(15);

/// Looks again and again until `look` sees it; the words say what was awaited.
pub fn wait_until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, look)
}

/// The same with a patience of one's own.
pub fn wait_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < patience, "in vain: {what}");
        thread::sleep(LOOK);
    }
}

/// The same for a condition.
pub fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    wait_until(what, || is().then_some(()));
}

/// A process of the binary. It and its process group are killed when the test is done with it; its
/// log is shown when the test fails.
pub struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub fn start(mut command: Command) -> Process {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (log.clone(), child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Process { child, log }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The rest of the first line of the log that has `mark`.
    pub fn logged(&self, mark: &str) -> String {
        wait_until(mark, || {
            let log = self.log();
            let mut rests = log.iter().filter_map(|line| line.split_once(mark));
            rests.next().map(|(_, rest)| rest.to_owned())
        })
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it lives");
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        wait_until("the process ends", || self.child.try_wait().unwrap())
    }

    /// `kill -9` of this process alone, as when a machine kills it.
    pub fn kill_9(&mut self) {
        self.signal(Signal::KILL);
        assert_eq!(self.ended().signal(), Some(9));
    }

    /// A number from /proc/PID/status: `Threads`, or `VmRSS` in KiB.
    pub fn figure(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(path).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
        word.and_then(|word| word.parse().ok())
            .expect("a number in /proc")
    }

    /// The processor time it has used.
    pub fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.pid().as_raw_nonzero());
        let stat = std::fs::read_to_string(path).expect("it lives");
        // What follows the name, which may contain anything; user and system time are 14th and 15th.
        let rest = stat.rsplit(')').next().unwrap_or_default();
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.child.id(), self.log().join("\n"));
        }
        // Not the group at once: an agent's guard is in it, and ends the agent's commands.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::TERM);
    }
}

/// A server of the test's own.
pub struct Server {
    pub process: Process,
    pub address: SocketAddr,
}

impl Server {
    pub fn start() -> Server {
        Server::with(&[])
    }

    /// With more flags.
    pub fn with(flags: &[&str]) -> Server {
        Server::listening_on("127.0.0.1:0", flags)
    }

    pub fn listening_on(address: &str, flags: &[&str]) -> Server {
        let mut command = Command::new(SIDEBIKE);
        command.args(["server", "--listen", address]).args(flags);
        Server::from_command(command)
    }

    pub fn from_command(command: Command) -> Server {
        let process = Process::start(command);
        let address = process.logged(" listens on ");
        let address = address.split(',').next().unwrap_or_default().parse();
        Server {
            process,
            address: address.expect("an address in the log"),
        }
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    pub fn raw(&self, bytes: &[u8]) -> Reply {
        let mut connection = self.connect();
        connection.send(bytes);
        connection.read()
    }

    pub fn request(&self, method: &str, target: &str, body: &[u8]) -> Reply {
        self.raw(&http::request(
            method,
            target,
            "Connection: close\r\n",
            body,
        ))
    }

    pub fn get(&self, target: &str) -> Reply {
        self.request("GET", target, b"")
    }

    pub fn post(&self, target: &str, body: &Value) -> Reply {
        self.request("POST", target, body.to_string().as_bytes())
    }

    pub fn put(&self, target: &str, body: &Value) -> Reply {
        self.request("PUT", target, body.to_string().as_bytes())
    }

    pub fn put_schedule(&self, id: &str, schedule: &Value) -> Reply {
        self.put(&format!("/api/v1/schedule/{id}"), schedule)
    }

    pub fn schedule(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/schedule/{id}")).data()
    }

    /// Submits a task, which must be accepted; gives it as answered.
    pub fn submit(&self, task: Value) -> Value {
        self.post("/api/v1/task", &task).data()
    }

    /// Submits a task and waits for its end.
    pub fn run(&self, task: Value) -> Value {
        let task = self.submit(task);
        self.finished(id(&task))
    }

    pub fn task(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/task/{id}")).data()
    }

    /// Waits for the end of a task.
    pub fn finished(&self, id: &str) -> Value {
        let task = self.get(&format!("/api/v1/task/{id}?wait=60s")).data();
        assert!(task["finishedAt"].is_string(), "it did not end: {task}");
        task
    }

    /// Waits until so many executions of a task are in that state.
    pub fn when(&self, id: &str, state: &str, count: u64) -> Value {
        wait_until(&format!("{count} executions {state}"), || {
            let task = self.task(id);
            (task["counts"][state] == count).then_some(task)
        })
    }

    pub fn machines(&self) -> Vec<Value> {
        let machines = self.get("/api/v1/machine").data();
        machines.as_array().expect("a list").clone()
    }

    /// Starts an agent and waits until it is there.
    pub fn agent(&self, label: &str) -> Agent {
        let agent = Agent::start(self.address, label, &[]);
        self.expect(&[&agent]);
        agent
    }

    /// Starts agents of one label and waits until they are there.
    pub fn agents(&self, count: usize, label: &str) -> Vec<Agent> {
        let start = |_| Agent::start(self.address, label, &[]);
        let agents: Vec<Agent> = (0..count).map(start).collect();
        self.expect(&agents.iter().collect::<Vec<_>>());
        agents
    }

    /// Waits until these agents are online.
    pub fn expect(&self, agents: &[&Agent]) {
        wait_for("the agents are online", || {
            let machines = self.machines();
            let online = |agent: &&Agent| {
                let instance = agent.instance();
                let own = |m: &Value| m["instance"] == *instance && m["state"] == "online";
                machines.iter().any(own)
            };
            agents.iter().all(online)
        });
    }

    /// The newest task.
    pub fn newest(&self) -> Value {
        self.get("/api/v1/task?limit=1").data()[0].take()
    }

    /// A figure of /metrics.
    pub fn metric(&self, name: &str) -> u64 {
        let page = self.get("/metrics");
        let line = page.text().lines().find_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.strip_prefix(' ')?.parse().ok()
        });
        line.unwrap_or_else(|| panic!("no {name} in {}", page.text()))
    }
}

/// An address at which nobody listens.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}

/// An agent process.
pub struct Agent(pub Process);

impl Agent {
    pub fn start(server: SocketAddr, label: &str, env: &[(&str, &str)]) -> Agent {
        let mut command = Command::new(SIDEBIKE);
        command
            .arg("agent")
            .env("SIDEBIKE_MACHINE_LABEL", label)
            .env("SIDEBIKE_REGISTRY_ADDRESS", server.to_string())
            .envs(env.iter().copied());
        Agent(Process::start(command))
    }

    /// Its first instance id, from its log.
    pub fn instance(&self) -> String {
        let rest = self.0.logged(", instance ");
        rest.split(',').next().unwrap_or_default().to_owned()
    }
}

/// Makes system calls of a running process fail or wait, as `strace -e` says it, until it is dropped.
/// `None`, with a word, where that cannot be had.
pub fn strace(process: &Process, inject: &str) -> Option<Strace> {
    let pid = process.pid().as_raw_nonzero().to_string();
    let started = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", inject, "-p", &pid])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        eprintln!("left out: there is no strace");
        return None;
    };
    // Its first line says that it is attached, or why not.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let _ = stderr.read_line(&mut line);
    let strace = Strace(child, stderr);
    if !line.contains("attached") {
        eprintln!("left out: {line}");
        return None;
    }
    Some(strace)
}

pub struct Strace(Child, BufReader<std::process::ChildStderr>);

impl Drop for Strace {
    fn drop(&mut self) {
        // It detaches on TERM, and has gone when its process has.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// A task that runs a shell line on every machine whose label begins with `m`.
pub fn task(command: &str) -> Value {
    json!({"machinePattern": "^m", "detail": {"command": command}})
}

/// The id of an answered task.
pub fn id(task: &Value) -> &str {
    task["id"].as_str().expect("a task has an id")
}

/// The ids of answered tasks.
pub fn ids(tasks: &Value) -> Vec<&str> {
    tasks.as_array().expect("a list").iter().map(id).collect()
}

/// Whether nothing of a process group is left but what nobody has reaped yet.
pub fn is_gone(group: i32) -> bool {
    let pid = Pid::from_raw(group).expect("the number of a group");
    if test_kill_process_group(pid).is_err() {
        return true;
    }
    let processes = std::fs::read_dir("/proc").expect("there is /proc");
    let mut stats = processes.flatten().filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut words = stat.rsplit_once(") ")?.1.split(' ');
        let (state, _, of) = (words.next()?, words.next()?, words.next()?);
        (of == group.to_string()).then(|| state.to_owned())
    });
    stats.all(|state| state == "Z")
}

/// The hash of bytes as hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that repeat nowhere, so that a piece in the wrong place is noticed.
pub fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// A folder of the test's own, gone with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outside-{}-{n}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Folder(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("a path in UTF-8")
    }

    pub fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.path())
    }

    /// The lines of a file in it; none when it does not exist.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.file(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a file in it has so many lines.
    pub fn until(&self, name: &str, lines: usize) {
        wait_within(FILE_PATIENCE, name, || {
            (self.lines(name).len() >= lines).then_some(())
        });
    }

    /// Waits until a process has written its number into a file in it.
    pub fn pid(&self, name: &str) -> i32 {
        self.until(name, 1);
        self.lines(name)[0]
            .parse()
            .expect("the number of a process")
    }

    /// The objects of a file in it that has one a line; the last line may not be whole yet.
    pub fn json_lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.file(name)).unwrap_or_default();
        let whole = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        whole
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// Writes a program into it; gives its path.
    pub fn program(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.file(name);
        std::fs::write(&path, bytes).expect("a program in the folder");
        let mode = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("the mode of a program");
        path
    }

    /// Creates an empty file in it.
    pub fn write(&self, name: &str) {
        std::fs::write(self.file(name), "").expect("a file in the folder");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
