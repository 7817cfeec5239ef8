//! The promise of `--db`: what was acknowledged survives `kill -9` at any moment, also where the
//! disk fails, and nothing is started twice. Users submit and cancel, agents run, the server dies
//! again and again.
//!
//! `KILLS=1000 cargo test --test database_kill` does it more often than the default.

mod common;

use common::http::{Connection, Reply, request};
use common::{Agent, Folder, SIDEBIKE, Server, free_address, strace, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const KILLS: u64 = 100;
/// Deaths while writes fail.
const KILLS_WITH_FAULTS: u64 = 8;
/// How long a server lives, in milliseconds.
const LIFE: (u64, u64) = (10, 600);
const LIFE_WITH_FAULTS: (u64, u64) = (1_000, 2_500);
const AGENTS: usize = 3;
const USERS: u64 = 3;
/// Tasks of a user that have not ended, at most.
const AT_ONCE: usize = 8;

/// How executions had ended when a user was told so; `None` of a task of which that was not said.
type Ends = BTreeMap<String, Value>;

/// What users were told: of each accepted task, its executions that had ended.
#[derive(Default)]
struct Told {
    tasks: BTreeMap<String, Ends>,
    cancels: usize,
    refused: usize,
    /// Canceled before they were handed out: they must never start.
    never: Vec<(String, String)>,
}

impl Told {
    /// Notes an answer that was safe when it was given: what it says must never change.
    fn note(&mut self, id: &str, task: &Value) {
        let known = self.tasks.entry(id.to_owned()).or_default();
        for (execution, end) in ends(task) {
            match known.get(&execution) {
                Some(before) => assert_eq!(*before, end, "what has ended changes no more: {id}"),
                None => drop(known.insert(execution, end)),
            }
        }
    }
}

fn results(task: &Value) -> &[Value] {
    task["result"].as_array().expect("a list")
}

fn ends(task: &Value) -> Ends {
    let ended = results(task).iter().filter(|e| e["finishedAt"].is_string());
    let words = |e: &Value| json!([e["state"], e["attempt"], e["exitCode"], e["stdout"]]);
    ended
        .map(|e| (e["execution"].to_string(), words(e)))
        .collect()
}

/// The same from run to run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn between(&mut self, (low, high): (u64, u64)) -> u64 {
        low + self.below(high - low)
    }
}

/// A request to a server that may die meanwhile, or be dead.
fn try_call(address: SocketAddr, method: &str, target: &str, body: &Value) -> Option<Reply> {
    let mut connection = Connection::try_open(address)?;
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let headers = "Connection: close\r\n";
    connection.send(&request(method, target, headers, body.as_bytes()));
    connection.try_read(true)
}

struct World<'a> {
    address: SocketAddr,
    folder: &'a Folder,
    told: Mutex<Told>,
    over: AtomicBool,
    /// Names of tasks, apart from those of another run over the same file.
    run: &'a str,
}

impl World<'_> {
    /// A user: submits, cancels some, looks at some, as fast as it can.
    fn use_it(&self, user: u64) {
        let mut chance = Chance(user + 1);
        let mut open: Vec<String> = Vec::new();
        let mut n = 0;
        while !self.over.load(Ordering::Relaxed) {
            if open.len() < AT_ONCE {
                n += 1;
                let id = format!("{}-{user}-{n}", self.run);
                if self.submit(&id, &mut chance) {
                    open.push(id);
                }
            }
            if open.is_empty() {
                thread::sleep(Duration::from_millis(3));
                continue;
            }
            let at = chance.below(open.len() as u64) as usize;
            let id = open[at].clone();
            if chance.below(6) == 0 {
                self.cancel(&id);
            }
            if self.has_ended(&id) {
                open.swap_remove(at);
            }
        }
    }

    fn submit(&self, id: &str, chance: &mut Chance) -> bool {
        let log = self.folder.file("starts");
        let mode = ["all", "all", "any"][chance.below(3) as usize];
        let long = ["", "", "; sleep 0.2"][chance.below(3) as usize];
        let task = json!({
            "id": id,
            "machinePattern": "^m",
            "ttl": "20m",
            "mode": mode,
            "detail": {
                "command": format!("echo $SIDEBIKE_TASK_ID $SIDEBIKE_MACHINE_LABEL $SIDEBIKE_ATTEMPT >> {log}; echo $SIDEBIKE_TASK_ID{long}"),
                "killGrace": 1,
            }
        });
        let reply = try_call(self.address, "POST", "/api/v1/task", &task);
        let mut told = self.told.lock().unwrap();
        match reply {
            Some(reply) if reply.status == 200 => {
                told.note(id, &reply.data());
                true
            }
            Some(reply) => {
                assert_eq!(reply.status, 503, "{}", reply.text());
                assert!(reply.msg().contains("database"), "{}", reply.msg());
                told.refused += 1;
                false
            }
            None => false,
        }
    }

    fn cancel(&self, id: &str) {
        let target = format!("/api/v1/task/{id}/cancel");
        let reply = try_call(self.address, "POST", &target, &Value::Null);
        if let Some(reply) = reply.filter(|reply| reply.status != 503) {
            let task = reply.data();
            let mut told = self.told.lock().unwrap();
            told.cancels += 1;
            told.note(id, &task);
            let queued = |e: &&Value| e["msg"] == "canceled before it started";
            let never = results(&task).iter().filter(queued);
            let never = never.map(|e| (id.to_owned(), e["machineLabel"].to_string()));
            let never: Vec<_> = never.collect();
            told.never.extend(never);
            assert_eq!(task["counts"]["queued"], 0, "{task}");
        }
    }

    fn has_ended(&self, id: &str) -> bool {
        let reply = try_call(
            self.address,
            "GET",
            &format!("/api/v1/task/{id}"),
            &Value::Null,
        );
        let Some(reply) = reply else { return false };
        assert_eq!(reply.status, 200, "{id} was accepted: {}", reply.text());
        let task = reply.data();
        let ended = task["finishedAt"].is_string();
        // The disk may refuse it for now: then its end is shown, but may not be safe.
        if ended && self.run == "kill" {
            self.told.lock().unwrap().note(id, &task);
        }
        ended
    }

    /// After all: everything that was said holds.
    fn check(&self, server: &Server) {
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        let mut after = Told::default();
        for (id, ends) in &told.tasks {
            let task = wait_until(&format!("the end of {id}"), || {
                let task = server.get(&format!("/api/v1/task/{id}?wait=30s")).data();
                task["finishedAt"].is_string().then_some(task)
            });
            // Nothing is killed before its cancel is safe; but while the disk takes nothing it is.
            if self.run == "kill" {
                assert_eq!(task["counts"]["lost"], 0, "the agents live: {task}");
            }
            after.tasks.insert(id.clone(), ends.clone());
            after.note(id, &task);
        }
        let mut starts: BTreeMap<String, u32> = BTreeMap::new();
        for line in self.folder.lines("starts") {
            *starts.entry(line).or_default() += 1;
        }
        let twice: Vec<_> = starts.iter().filter(|(_, n)| **n > 1).collect();
        assert!(twice.is_empty(), "started twice: {twice:?}");
        for (id, label) in &told.never {
            let label: String = label.replace('"', "");
            let line = format!("{id} {label} 1");
            assert!(
                !starts.contains_key(&line),
                "started after its cancel: {line}"
            );
        }
        println!(
            "{} tasks accepted, {} cancels answered, {} refused, {} starts",
            told.tasks.len(),
            told.cancels,
            told.refused,
            starts.len()
        );
        let few = if self.run == "kill" { 50 } else { 5 };
        assert!(told.tasks.len() > few && told.cancels > 0, "hardly used");
    }
}

/// Lets users use a server that dies so often; `live` is one life, and begins when it answers.
fn die_often(run: &str, kills: u64, live: impl Fn(&Server, &mut Chance)) {
    let folder = Folder::new();
    let (db, address) = (folder.file("db"), free_address());
    let flags = ["--db", &db, "--max-tasks", "1000000"];
    let start = || Server::listening_on(&address.to_string(), &flags);
    let mut server = start();
    let agent = |n| Agent::start(address, &format!("m{n}"), &[]);
    let agents: Vec<Agent> = (0..AGENTS).map(agent).collect();
    server.expect(&agents.iter().collect::<Vec<_>>());
    let world = World {
        address,
        folder: &folder,
        told: Mutex::default(),
        over: AtomicBool::new(false),
        run,
    };
    let begin = Instant::now();
    let mut chance = Chance(kills);
    thread::scope(|scope| {
        let world = &world;
        let users: Vec<_> = (0..USERS)
            .map(|user| scope.spawn(move || world.use_it(user)))
            .collect();
        for _ in 0..kills {
            live(&server, &mut chance);
            server.process.kill_9();
            server = start();
            if users.iter().any(|user| user.is_finished()) {
                break;
            }
        }
        world.over.store(true, Ordering::Relaxed);
    });
    println!("{kills} deaths in {:.1} s", begin.elapsed().as_secs_f64());
    world.check(&server);
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let kills = std::env::var("KILLS").map_or(KILLS, |n| n.parse().expect("KILLS: a number"));
    die_often("kill", kills, |_, chance| {
        thread::sleep(Duration::from_millis(chance.between(LIFE)));
    });
}

#[test]
fn what_was_acknowledged_survives_where_writes_fail() {
    let calls = "pwrite64,fdatasync,fsync,ftruncate";
    die_often("fault", KILLS_WITH_FAULTS, |server, chance| {
        let (first, error) = (
            1 + chance.below(30),
            ["EIO", "ENOSPC"][chance.below(2) as usize],
        );
        // While the file is opened, an error ends the server, as it should.
        assert_eq!(server.get("/healthz").status, 200);
        let every = 5 + chance.below(40);
        let inject = format!("inject={calls}:error={error}:when={first}+{every}");
        let faults = strace(&server.process, &inject);
        thread::sleep(Duration::from_millis(chance.between(LIFE_WITH_FAULTS)));
        drop(faults);
    });
}

/// Nothing can be written at all for a while.
#[test]
fn a_server_whose_disk_fails_says_so_goes_on_and_recovers() {
    let folder = Folder::new();
    let db = folder.file("db");
    let server = Server::with(&["--db", &db]);
    let _agent = server.agent("m1");
    let wait = folder.file("go");
    let command = format!("while [ ! -e {wait} ]; do sleep 0.05; done; echo done");
    let runs = json!({"id": "runs", "machinePattern": "^m", "detail": {"command": command}});
    server.submit(runs);
    server.when("runs", "running", 1);
    let inject = "inject=pwrite64,fdatasync,fsync,ftruncate:error=EIO";
    let Some(faults) = strace(&server.process, inject) else {
        return;
    };
    let small = |id: &str| json!({"id": id, "machinePattern": "^m", "detail": {"command": "true"}});
    let refused = server.post("/api/v1/task", &small("refused"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(
        refused.msg().contains("Input/output error"),
        "{}",
        refused.msg()
    );
    // From now on it is known, and said without trying.
    let begin = Instant::now();
    for _ in 0..20 {
        assert_eq!(server.post("/api/v1/task", &small("refused")).status, 503);
    }
    assert!(begin.elapsed() < Duration::from_secs(2));
    wait_until("what was refused is forgotten", || {
        (server.get("/api/v1/task/refused").status == 404).then_some(())
    });
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(server.task("runs")["state"], "running");
    std::fs::write(&wait, "").unwrap();
    wait_until("it ends all the same", || {
        (server.task("runs")["state"] == "succeeded").then_some(())
    });
    drop(faults);
    wait_until("it takes tasks again", || {
        let reply = server.post("/api/v1/task", &small("later"));
        (reply.status == 200).then_some(())
    });
    server.finished("later");
    let mut server = server;
    server.process.kill_9();
    let server = Server::with(&["--db", &db]);
    assert_eq!(server.task("runs")["state"], "succeeded");
    assert_eq!(server.task("runs")["detail"]["result"], json!(["done"]));
    assert_eq!(server.task("later")["state"], "succeeded");
    assert_eq!(server.get("/api/v1/task/refused").status, 404);
}

/// After an error of the disk the file is closed until the next attempt. If another server has used it meanwhile, what
/// this one has in memory is out of date.
#[test]
fn a_server_whose_file_another_one_has_opened_since_changes_nothing_in_it() {
    let folder = Folder::new();
    let db = folder.file("db");
    let waits = |id: &str| json!({"id": id, "machinePattern": "^nobody$", "ttl": "1h", "detail": {"command": "true"}});
    let server = Server::with(&["--db", &db]);
    server.submit(waits("first"));
    let inject = "inject=pwrite64,fdatasync,fsync,ftruncate:error=EIO";
    let Some(faults) = strace(&server.process, inject) else {
        return;
    };
    assert_eq!(server.post("/api/v1/task", &waits("lost")).status, 503);
    wait_until("it is stopped while the file is closed", || {
        server.process.signal(Signal::STOP);
        let check = Command::new(SIDEBIKE).args(["db", "check", &db]).output();
        if check.expect("the binary starts").status.success() {
            return Some(());
        }
        server.process.signal(Signal::CONT);
        None
    });
    let mut other = Server::with(&["--db", &db]);
    assert_eq!(other.get("/api/v1/task/lost").status, 404);
    other.submit(waits("second"));
    other.process.signal(Signal::TERM);
    assert_eq!(other.process.ended().code(), Some(0));
    server.process.signal(Signal::CONT);
    drop(faults);
    server.process.logged("another server has opened it since");
    let unhealthy = server.get("/healthz");
    assert_eq!(unhealthy.status, 503);
    let refused = server.post("/api/v1/task", &waits("third"));
    assert_eq!(refused.status, 503);
    for said in [unhealthy.msg(), refused.msg()] {
        assert!(said.contains("start this server again"), "{said}");
    }
    let mut server = server;
    server.process.signal(Signal::TERM);
    assert_eq!(server.process.ended().code(), Some(0));
    let server = Server::with(&["--db", &db]);
    for id in ["first", "second"] {
        assert_eq!(server.task(id)["state"], "waiting");
    }
    for id in ["lost", "third"] {
        assert_eq!(server.get(&format!("/api/v1/task/{id}")).status, 404);
    }
}
