//! Who is meant, how many at once, when to stop: selectors, counts and rollouts against the real server.
//!
//! Most machines here are made up: one thread polls for all of them and ends their commands as the test says, so that
//! fifty cost little.
#![cfg(feature = "server")]

mod common;

use common::http::{Connection, request};
use common::original::Original;
use common::{Agent, Folder, SIDEBIKE, Server, free_address, id, wait_for, wait_until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Between two rounds of polls, so that the thread does not use a processor up.
const ROUND: Duration = Duration::from_millis(2);

/// What a made-up machine does with a command: its exit code, or `None` while it runs.
type Behaviour = Box<dyn Fn(&str) -> Option<i32> + Send>;

/// What a fleet has done.
struct Seen {
    behaviour: Behaviour,
    /// Every start: the execution, the attempt, the label.
    starts: Vec<(String, u64, String)>,
    /// The most machines that ran something at the same time.
    most_busy: usize,
    /// It sends nothing.
    is_silent: bool,
    /// How many rounds of polls have been answered.
    rounds: u64,
}

/// Machines that are polled for by one thread. They survive their server.
struct Fleet {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Machine {
    label: String,
    instance: String,
    seq: u64,
    /// What it runs, as in a poll.
    holds: Vec<Value>,
    /// What it has to report.
    results: Vec<Value>,
}

impl Fleet {
    /// A machine for each label; its behaviour is asked again in each round.
    fn start(
        address: SocketAddr,
        labels: &[String],
        behaviour: impl Fn(&str) -> Option<i32> + Send + 'static,
    ) -> Fleet {
        let machine = |(n, label): (usize, &String)| Machine {
            label: label.clone(),
            instance: format!("{:016x}", n + 1),
            seq: 0,
            holds: Vec::new(),
            results: Vec::new(),
        };
        let machines = labels.iter().enumerate().map(machine).collect();
        Fleet::of(address, machines, behaviour)
    }

    fn of(
        address: SocketAddr,
        mut machines: Vec<Machine>,
        behaviour: impl Fn(&str) -> Option<i32> + Send + 'static,
    ) -> Fleet {
        let seen = Arc::new(Mutex::new(Seen {
            behaviour: Box::new(behaviour),
            starts: Vec::new(),
            most_busy: 0,
            is_silent: false,
            rounds: 0,
        }));
        let over = Arc::new(AtomicBool::new(false));
        let (shared, ends) = (Arc::clone(&seen), Arc::clone(&over));
        let thread = thread::spawn(move || {
            let mut connection = None;
            while !ends.load(Ordering::Relaxed) {
                round(address, &mut connection, &mut machines, &shared);
                thread::sleep(ROUND);
            }
        });
        Fleet {
            seen,
            over,
            thread: Some(thread),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// From now on it behaves otherwise.
    fn behaves(&self, behaviour: impl Fn(&str) -> Option<i32> + Send + 'static) {
        self.seen().behaviour = Box::new(behaviour);
    }

    fn is_silent(&self, is_silent: bool) {
        self.seen().is_silent = is_silent;
    }

    /// The labels in the order in which their commands were started.
    fn started(&self) -> Vec<String> {
        let seen = self.seen();
        seen.starts.iter().map(|start| start.2.clone()).collect()
    }

    /// Waits until every machine has polled again, after everything that was done before.
    fn settles(&self) {
        let from = self.seen().rounds;
        wait_for("two more rounds of polls", || {
            self.seen().rounds >= from + 2
        });
    }

    /// No attempt was started twice.
    fn check_starts(&self) {
        let seen = self.seen();
        let attempts: HashSet<_> = seen
            .starts
            .iter()
            .map(|start| (&start.0, start.1))
            .collect();
        assert_eq!(attempts.len(), seen.starts.len(), "{:?}", seen.starts);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()));
    }
}

/// Each machine reports what has ended and polls.
fn round(
    address: SocketAddr,
    connection: &mut Option<Connection>,
    machines: &mut [Machine],
    shared: &Mutex<Seen>,
) {
    if shared.lock().unwrap().is_silent {
        return;
    }
    for n in 0..machines.len() {
        let mut seen = shared.lock().unwrap();
        let busy = machines.iter().filter(|m| !m.holds.is_empty()).count();
        seen.most_busy = seen.most_busy.max(busy);
        let machine = &mut machines[n];
        if let Some(code) = (seen.behaviour)(&machine.label) {
            let state = if code == 0 { "succeeded" } else { "failed" };
            machine.ends(state, code, |_| true);
        }
        drop(seen);
        if machine.report(address, connection).is_none() {
            return *connection = None;
        }
        let Some(orders) = machine.poll(address, connection) else {
            return *connection = None;
        };
        let list = |name: &str| orders[name].as_array().cloned().unwrap_or_default();
        for order in list("cancel") {
            machine.ends("canceled", 143, |id| id == &order["execution"]);
        }
        for order in list("start") {
            let attempt = order["attempt"].as_u64().unwrap();
            let execution = order["execution"].as_str().unwrap().to_owned();
            let hold = json!({"execution": execution, "attempt": attempt, "state": "running"});
            if !machine.holds.contains(&hold) {
                machine.holds.push(hold);
                let start = (execution, attempt, machine.label.clone());
                shared.lock().unwrap().starts.push(start);
            }
        }
    }
    shared.lock().unwrap().rounds += 1;
}

impl Machine {
    /// Commands end, those whose execution fits.
    fn ends(&mut self, state: &str, code: i32, fits: impl Fn(&Value) -> bool) {
        let (ended, others) = { self.holds.drain(..) }.partition(|hold| fits(&hold["execution"]));
        self.holds = others;
        let ended: Vec<Value> = ended;
        self.results.extend(ended.iter().map(|hold| {
            json!({"execution": hold["execution"], "attempt": hold["attempt"], "state": state, "exitCode": code})
        }));
    }

    /// Repeats its results until they are taken. `None` if the server did not answer.
    fn report(&mut self, address: SocketAddr, connection: &mut Option<Connection>) -> Option<()> {
        if !self.results.is_empty() {
            let done = json!({"instance": self.instance, "results": self.results});
            say(address, connection, "done", &done)?;
            self.results.clear();
        }
        Some(())
    }

    fn poll(&mut self, address: SocketAddr, connection: &mut Option<Connection>) -> Option<Value> {
        self.seq += 1;
        let poll = json!({
            "instance": self.instance, "seq": self.seq, "label": self.label, "host": "made-up", "jobs": 1,
            "wait": 0, "holds": self.holds,
        });
        say(address, connection, "poll", &poll)
    }
}

/// `data` of the answer; `None` if there was none, or none that went well.
fn say(
    address: SocketAddr,
    connection: &mut Option<Connection>,
    call: &str,
    body: &Value,
) -> Option<Value> {
    if connection.is_none() {
        *connection = Connection::try_open(address);
    }
    let open = connection.as_mut()?;
    let target = format!("/api/v1/agent/{call}");
    open.send(&request("POST", &target, "", body.to_string().as_bytes()));
    let reply = open.try_read(true)?;
    (reply.status == 200).then(|| reply.json()["data"].take())
}

/// `m-1`, `m-2`, …
fn labels(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("m-{n}")).collect()
}

/// The number at the end of a label.
fn number(label: &str) -> usize {
    label.rsplit('-').next().unwrap().parse().unwrap()
}

fn online(server: &Server, count: usize) {
    wait_for("the machines are online", || {
        server.machines().len() == count
    });
}

/// A task for all of a fleet.
fn rollout(id: &str, rollout: Value) -> Value {
    json!({
        "id": id, "machinePattern": "^m-", "detail": {"command": "true"}, "ttl": "1h", "rollout": rollout,
    })
}

fn call(server: &Server, id: &str, call: &str) -> Value {
    server
        .post(&format!("/api/v1/task/{id}/{call}"), &Value::Null)
        .data()
}

/// Waits until a rollout is in this state in this step.
fn reaches(server: &Server, id: &str, state: &str, step: u64) -> Value {
    wait_until(&format!("{id} is {state} in step {step}"), || {
        let task = server.task(id);
        let now = &task["rolloutState"];
        (now["state"] == state && now["step"] == step).then_some(task)
    })
}

fn instances(task: &Value) -> BTreeSet<String> {
    let results = task["result"].as_array().unwrap();
    let instances = results
        .iter()
        .map(|e| e["instance"].as_str().unwrap().to_owned());
    instances.collect()
}

#[test]
fn of_twenty_submits_at_once_none_takes_the_last_healthy_machine() {
    let server = Server::start();
    let fleet = Fleet::start(server.address, &labels(10), |_| None);
    online(&server, 10);
    let posted = |most: usize| {
        json!({
            "machinePattern": "^m-", "keepAlive": "50%", "maxTargets": most, "detail": {"command": "true"},
        })
    };
    let at_once = |most: fn(usize) -> usize| -> Vec<(u16, Value)> {
        thread::scope(|scope| {
            let submit = |n: usize| {
                let (server, posted) = (&server, posted(most(n)));
                scope.spawn(move || {
                    let reply = server.post("/api/v1/task", &posted);
                    (reply.status, reply.json())
                })
            };
            let users: Vec<_> = (0..20).map(submit).collect();
            users.into_iter().map(|user| user.join().unwrap()).collect()
        })
    };
    // Nothing ends: five are touched, and everything that would touch a sixth is refused.
    let answers = at_once(|_| 1);
    let mut touched = BTreeSet::new();
    for (status, answer) in &answers {
        match status {
            200 => touched.append(&mut instances(&answer["data"])),
            _ => {
                assert_eq!(*status, 409, "{answer}");
                assert_eq!(
                    answer["msg"],
                    "keepAlive: 5 of 10 machines must stay (50 %), 5 are healthy (5 more are targets of tasks with keepAlive or an undo that have not ended, or not been undone), so none may be hit; 1 were asked for"
                );
            }
        }
    }
    assert_eq!(touched.len(), 5, "{answers:?}");
    fleet.settles();
    assert_eq!(fleet.seen().most_busy, 5);
    // Commands end while further ones are submitted, for one to three machines each.
    fleet.behaves(|_| Some(0));
    let mut accepted = 0;
    for _ in 0..10 {
        let answers = at_once(|n| n % 3 + 1);
        accepted += answers.iter().filter(|(status, _)| *status == 200).count();
        let refused = answers.iter().filter(|(status, _)| *status != 200);
        for (status, answer) in refused {
            let msg = answer["msg"].as_str().unwrap();
            assert!(
                *status == 409 && msg.starts_with("keepAlive: 5 of 10"),
                "{answer}"
            );
        }
    }
    assert!(accepted > 10, "{accepted}");
    wait_for("everything has ended", || {
        server.metric("sidebike_tasks{state=\"running\"}") == 0
    });
    assert_eq!(fleet.seen().most_busy, 5);
    fleet.check_starts();
    // More than may be hit at all is refused also when everything is healthy.
    let refused = server.post("/api/v1/task", &posted(6));
    assert_eq!(refused.status, 409);
    assert_eq!(
        refused.msg(),
        "keepAlive: 5 of 10 machines must stay (50 %), 10 are healthy, so 5 may be hit; 6 were asked for"
    );
    let mut all = posted(1);
    all["keepAlive"] = u32::MAX.into();
    let refused = server.post("/api/v1/task", &all);
    assert_eq!(refused.status, 409);
    assert_eq!(
        refused.msg(),
        "keepAlive: 4294967295 of 10 machines must stay, 10 are healthy, so none may be hit; 1 were asked for"
    );
    server.submit(posted(5));
}

#[test]
fn a_rollout_whose_third_step_fails_stops_there_and_says_so() {
    let server = Server::start();
    let fails = |label: &str| Some(i32::from((6..=25).contains(&number(label))));
    let fleet = Fleet::start(server.address, &labels(50), fails);
    online(&server, 50);
    let posted = rollout(
        "bad-third",
        json!({"steps": [1, "10%", "50%", "100%"], "concurrency": 4, "maxFailures": "5%"}),
    );
    let planned = server.post("/api/v1/task?dryRun=1", &posted).data();
    assert_eq!(planned["plan"], json!([1, 5, 25, 50]));
    server.submit(posted);
    let task = server.finished("bad-third");
    // Three failures are too many; of the four at once the others end by themselves.
    let count = |state: &str| task["counts"][state].as_u64().unwrap();
    let (failed, skipped) = (count("failed"), count("skipped"));
    assert!((3..=6).contains(&failed), "{}", task["counts"]);
    assert_eq!(count("succeeded"), 5);
    assert_eq!(failed + skipped, 45);
    let state = &task["rolloutState"];
    let shown = json!([
        state["state"],
        state["step"],
        state["of"],
        state["started"],
        state["failures"]
    ]);
    assert_eq!(shown, json!(["stopped", 3, 4, 5 + failed, failed]));
    assert_eq!(task["state"], "partial");
    let why = "stopped after 3 failures (2 allowed)";
    let by = &task["stoppedBy"];
    assert_eq!((&by["kind"], &by["msg"]), (&json!("failures"), &json!(why)));
    assert!(by["at"].is_string());
    for execution in task["result"].as_array().unwrap() {
        if execution["state"] == "skipped" {
            assert_eq!(
                (&execution["msg"], &execution["status"]),
                (&json!(why), &json!(2))
            );
        }
    }
    // The order is that of people, and nothing starts any more.
    fleet.settles();
    let started = fleet.started();
    let started: Vec<usize> = started.iter().map(|label| number(label)).collect();
    assert_eq!(started.len() as u64, 5 + failed);
    assert_eq!(started[0], 1);
    let second: BTreeSet<usize> = started[1..5].iter().copied().collect();
    assert_eq!(second, (2..=5).collect());
    let third: BTreeSet<usize> = started[5..].iter().copied().collect();
    assert_eq!(third, (6..6 + failed as usize).collect());
    assert!(fleet.seen().most_busy <= 4);
    fleet.check_starts();

    let listed = server.get("/api/v1/task?state=partial").data();
    assert_eq!(listed[0]["stoppedBy"], *by);
    assert_eq!(listed[0]["rolloutState"], *state);
    let figures = [
        ("sidebike_executions{state=\"skipped\"}", skipped),
        ("sidebike_executions{state=\"held\"}", 0),
        (
            "sidebike_executions_ended_total{state=\"skipped\"}",
            skipped,
        ),
        ("sidebike_executions_ended_total{state=\"failed\"}", failed),
        ("sidebike_tasks{state=\"partial\"}", 1),
        ("sidebike_tasks{state=\"skipped\"}", 0),
    ];
    for (name, figure) in figures {
        assert_eq!(server.metric(name), figure, "{name}");
    }
    // A rerun takes the failed and the skipped ones, in the same steps.
    fleet.behaves(|_| Some(0));
    let rerun = call(&server, "bad-third", "rerun");
    assert_eq!(rerun["assignees"].as_array().map(Vec::len), Some(45));
    assert_eq!(rerun["rolloutState"]["plan"], json!([1, 4, 22, 45]));
    assert_eq!(server.finished(id(&rerun))["state"], "succeeded");
}

#[cfg(feature = "cli")]
#[test]
fn the_command_line_shows_what_was_skipped_and_why() {
    let server = Server::start();
    let _fleet = Fleet::start(server.address, &labels(3), |_| Some(1));
    online(&server, 3);
    server.submit(rollout("stops", json!({"concurrency": 1})));
    let say = |words: &[&str]| {
        let mut command = Command::new(SIDEBIKE);
        command
            .args(words)
            .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    // What never ran is not known to be well: worse than the exit code 1 of the first machine.
    assert_eq!(say(&["wait", "stops"]).0, Some(125));
    let (code, shown) = say(&["show", "stops"]);
    assert_eq!(code, Some(0));
    let why = "stopped after 1 failure (0 allowed)";
    assert_eq!(shown.matches(why).count(), 2, "{shown}");
    assert!(
        shown.contains("1 failed") && shown.contains("2 skipped"),
        "{shown}"
    );
}

#[test]
fn a_killed_server_goes_on_with_every_step_and_starts_nothing_twice() {
    let folder = Folder::new();
    let (db, address) = (folder.file("db"), free_address());
    let start = || Server::listening_on(&address.to_string(), &["--db", &db]);
    let mut server = start();
    let fleet = Fleet::start(address, &labels(8), |_| None);
    online(&server, 8);
    let rollout = rollout(
        "steps",
        json!({"steps": [1, "25%", "50%", "100%"], "pause": "approve", "concurrency": 3}),
    );
    assert_eq!(
        server.submit(rollout)["rolloutState"]["plan"],
        json!([1, 2, 4, 8])
    );
    for (step, before, until) in [(1, 0, 1), (2, 1, 2), (3, 2, 4), (4, 4, 8)] {
        let runs = 3.min(until - before);
        wait_for("the step runs", || fleet.started().len() == before + runs);
        fleet.settles();
        server.process.kill_9();
        server = start();
        // The window is full, also for the new process: nothing more starts.
        fleet.settles();
        let task = reaches(&server, "steps", "running", step);
        assert_eq!(task["counts"]["running"], runs, "{}", task["counts"]);
        assert_eq!(fleet.started().len(), before + runs);
        fleet.behaves(|_| Some(0));
        if step == 4 {
            break;
        }
        reaches(&server, "steps", "paused", step + 1);
        fleet.behaves(|_| None);
        server.process.kill_9();
        server = start();
        fleet.settles();
        let task = reaches(&server, "steps", "paused", step + 1);
        assert_eq!(task["counts"]["held"], 8 - until, "{}", task["counts"]);
        assert_eq!(fleet.started().len(), until);
        call(&server, "steps", "resume");
    }
    let task = server.finished("steps");
    assert_eq!(task["state"], "succeeded", "{}", task["counts"]);
    assert_eq!(task["rolloutState"]["state"], "done");
    assert!(fleet.seen().most_busy <= 3);
    let started: BTreeSet<String> = fleet.started().into_iter().collect();
    assert_eq!((started.len(), fleet.started().len()), (8, 8));
    fleet.check_starts();
}

#[test]
fn a_pause_a_stop_and_the_failures_survive_a_restart() {
    let folder = Folder::new();
    let (db, address) = (folder.file("db"), free_address());
    let start = || Server::listening_on(&address.to_string(), &["--db", &db]);
    let mut server = start();
    let fails = |label: &str| Some(i32::from(number(label) <= 2));
    let fleet = Fleet::start(address, &labels(6), fails);
    online(&server, 6);
    let steps = |pause: &str| json!({"steps": [1, 2, "100%"], "pause": pause, "maxFailures": 1});
    server.submit(rollout("timed", steps("1.5s")));
    server.submit(rollout("stopped", steps("approve")));
    let timed = reaches(&server, "timed", "paused", 2);
    assert!(timed["rolloutState"]["resumesAt"].is_string(), "{timed}");
    reaches(&server, "stopped", "paused", 2);
    let by = call(&server, "stopped", "stop")["stoppedBy"].clone();
    assert_eq!(by["kind"], "user");
    server.process.kill_9();
    server = start();
    // Its pause ends by itself; its second failure is one too many.
    let timed = server.finished("timed");
    assert_eq!(
        timed["stoppedBy"]["msg"],
        "stopped after 2 failures (1 allowed)"
    );
    assert_eq!(
        (&timed["counts"]["failed"], &timed["counts"]["skipped"]),
        (&json!(2), &json!(4))
    );
    let stopped = server.task("stopped");
    assert_eq!(stopped["stoppedBy"], by);
    assert_eq!(
        (&stopped["state"], &stopped["counts"]["skipped"]),
        (&json!("failed"), &json!(5))
    );
    assert_eq!(fleet.started().len(), 3);
    fleet.check_starts();
}

/// What is held has to be in the database too, whatever happens to others of its task.
#[test]
fn held_executions_survive_a_restart_also_of_late_machines_and_beside_canceled_ones() {
    let folder = Folder::new();
    let (db, address) = (folder.file("db"), free_address());
    let start = || Server::listening_on(&address.to_string(), &["--db", &db]);
    let mut server = start();
    let fleet = Fleet::start(address, &labels(5), |_| Some(0));
    online(&server, 5);
    let mut posted = rollout("held", json!({"steps": [1, "100%"], "pause": "approve"}));
    posted["lateJoin"] = true.into();
    server.submit(posted);
    reaches(&server, "held", "paused", 2);
    call(&server, "held", "cancel?machine=m-4");
    let late = Machine {
        label: "m-6".into(),
        instance: "f".repeat(16),
        seq: 0,
        holds: Vec::new(),
        results: Vec::new(),
    };
    let behaviour = |_: &str| Some(0);
    let late = Fleet::of(address, vec![late], behaviour);
    server.when("held", "held", 4);
    // What was acknowledged after it is in the database, and so it is, too.
    let nobody = json!({"machinePattern": "^nobody$", "detail": {"command": "true"}});
    server.submit(nobody);
    server.process.kill_9();
    server = start();
    let task = server.task("held");
    assert_eq!(task["counts"]["held"], 4, "{}", task["counts"]);
    assert_eq!(
        (&task["counts"]["succeeded"], &task["counts"]["canceled"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(task["rolloutState"]["lateJoined"], 1);
    online(&server, 6);
    call(&server, "held", "resume");
    server.when("held", "succeeded", 5);
    assert_eq!((fleet.started().len(), late.started().len()), (4, 1));
    fleet.check_starts();
    call(&server, "held", "stop");
    server.finished("held");
}

#[test]
fn a_server_that_was_started_again_counts_when_its_machines_are_back() {
    let folder = Folder::new();
    let (db, address) = (folder.file("db"), free_address());
    let start = || Server::listening_on(&address.to_string(), &["--db", &db]);
    let mut server = start();
    let fleet = Fleet::start(address, &labels(3), |_| Some(0));
    online(&server, 3);
    // With a task, so that the machines are in the database.
    let saved = server.submit(rollout("saved", json!({})));
    server.finished(id(&saved));
    fleet.is_silent(true);
    server.process.kill_9();
    server = start();
    let posted = |field: &str, value: Value| {
        let mut task = json!({"machinePattern": "^m-", "detail": {"command": "true"}});
        task[field] = value;
        task
    };
    let counts = [
        ("expect", json!(3)),
        ("maxTargets", json!("50%")),
        ("keepAlive", json!("50%")),
    ];
    for (field, value) in counts {
        let refused = server.post("/api/v1/task", &posted(field, value));
        assert_eq!(refused.status, 503, "{field}");
        let msg = refused.msg();
        assert!(
            msg.starts_with("still counting: 3 of the machines"),
            "{msg}"
        );
    }
    server.submit(posted("name", "no counts".into()));
    fleet.is_silent(false);
    let accepted = wait_until("the machines are counted", || {
        let reply = server.post("/api/v1/task", &posted("expect", json!(3)));
        (reply.status == 200).then(|| reply.data())
    });
    assert_eq!(accepted["matched"], 3);
    server.finished(id(&accepted));
}

#[test]
fn paused_resumed_and_stopped_also_without_a_rollout() {
    let server = Server::start();
    let fleet = Fleet::start(server.address, &labels(2), |_| None);
    online(&server, 2);
    let plain = |id: &str| json!({"id": id, "machinePattern": "^m-", "detail": {"command": "true"}, "ttl": 2});
    // The machines are busy with the first task, so the others are queued.
    server.submit(plain("first"));
    server.when("first", "running", 2);
    for id in ["second", "third"] {
        server.submit(plain(id));
        let paused = call(&server, id, "pause");
        assert_eq!(paused["counts"]["held"], 2, "{paused}");
        assert_eq!(paused["rolloutState"]["state"], "paused");
    }
    server.submit(plain("expires"));
    assert_eq!(server.finished("expires")["state"], "expired");
    // Longer than its ttl, which stands still; and nothing is handed out, although the machines are free.
    fleet.behaves(|_| Some(0));
    server.finished("first");
    fleet.settles();
    assert_eq!(server.task("second")["counts"]["held"], 2);
    fleet.behaves(|_| None);
    call(&server, "second", "resume");
    server.when("second", "running", 2);
    assert_eq!(call(&server, "third", "stop")["state"], "skipped");
    let third = server.finished("third");
    assert_eq!(third["stoppedBy"]["kind"], "user");
    // What runs goes on; a second stop cancels it.
    let stopped = call(&server, "second", "stop");
    assert_eq!(stopped["counts"]["running"], 2, "{stopped}");
    fleet.settles();
    assert_eq!(server.task("second")["counts"]["running"], 2);
    call(&server, "second", "stop?running=1");
    assert_eq!(server.finished("second")["counts"]["canceled"], 2);
    // What has ended is not changed, and cannot go on.
    for (id, why) in [("second", "has ended"), ("third", "has ended")] {
        assert_eq!(call(&server, id, "stop")["id"], id);
        for call in ["pause", "resume"] {
            let refused = server.post(&format!("/api/v1/task/{id}/{call}"), &Value::Null);
            assert_eq!(
                (refused.status, refused.msg()),
                (409, format!("task {id} {why}"))
            );
        }
    }
    let wrong = server.post("/api/v1/task/second/stop?running=maybe", &Value::Null);
    assert_eq!(
        (wrong.status, wrong.msg()),
        (400, "running: expected 1 or 0, got \"maybe\"".into())
    );
    fleet.check_starts();
}

/// An execution whose turn has come waits for its busy machine when its task is paused: its `ttl` stands still, too.
#[test]
fn a_paused_rollout_does_not_expire_and_a_timed_pause_can_be_cut_short() {
    let server = Server::start();
    let fleet = Fleet::start(server.address, &labels(3), |_| None);
    online(&server, 3);
    let first = json!({"id": "first", "machinePattern": "-1$", "detail": {"command": "true"}});
    server.submit(first);
    server.when("first", "running", 1);
    let mut posted = rollout("waits", json!({"steps": [1, 2, "100%"], "pause": "1h"}));
    posted["ttl"] = 1.into();
    server.submit(posted.clone());
    assert_eq!(call(&server, "waits", "pause")["counts"]["held"], 3);
    posted["id"] = "expires".into();
    server.submit(posted);
    // The other one was submitted later, and its ttl is over.
    reaches(&server, "expires", "stopped", 1);
    assert_eq!(server.task("waits")["counts"]["held"], 3);
    assert_eq!(server.metric("sidebike_executions{state=\"held\"}"), 3);
    call(&server, "waits", "resume");
    fleet.behaves(|_| Some(0));
    for step in [2, 3] {
        let paused = reaches(&server, "waits", "paused", step);
        assert!(paused["rolloutState"]["resumesAt"].is_string(), "{paused}");
        call(&server, "waits", "resume");
    }
    assert_eq!(server.finished("waits")["state"], "succeeded");
    // A pause within a timed pause waits for somebody; a cancel ends what is paused.
    server.submit(rollout(
        "canceled",
        json!({"steps": [1, "100%"], "pause": "1s"}),
    ));
    reaches(&server, "canceled", "paused", 2);
    let paused = call(&server, "canceled", "pause");
    assert!(paused["rolloutState"]["resumesAt"].is_null(), "{paused}");
    call(&server, "canceled", "cancel");
    let canceled = server.finished("canceled");
    assert_eq!(
        (&canceled["state"], &canceled["counts"]["canceled"]),
        (&json!("partial"), &json!(2))
    );
    fleet.check_starts();
}

#[test]
fn pause_and_stop_of_tasks_that_wait_for_a_machine() {
    let folder = Folder::new();
    let (db, address) = (folder.file("db"), free_address());
    let start = || Server::listening_on(&address.to_string(), &["--db", &db]);
    let mut server = start();
    let posted = |id: &str, mode: &str| json!({"id": id, "machinePattern": "^m-", "mode": mode, "detail": {"command": "true"}});
    for mode in ["all", "any"] {
        for id in ["resumed", "stopped"] {
            server.submit(posted(&format!("{mode}-{id}"), mode));
        }
        call(&server, &format!("{mode}-resumed"), "pause");
        let stopped = call(&server, &format!("{mode}-stopped"), "stop");
        assert_eq!(
            (&stopped["state"], &stopped["status"]),
            (&json!("skipped"), &json!(3)),
            "{stopped}"
        );
    }
    server.process.kill_9();
    server = start();
    let fleet = Fleet::start(address, &labels(2), |_| Some(0));
    online(&server, 2);
    fleet.settles();
    assert_eq!(fleet.started(), [""; 0]);
    for mode in ["all", "any"] {
        let id = format!("{mode}-resumed");
        assert_eq!(server.task(&id)["rolloutState"]["state"], "paused");
        call(&server, &id, "resume");
        let done = server.finished(&id);
        assert_eq!(
            (&done["state"], &done["counts"]["succeeded"]),
            (&json!("succeeded"), &json!(1))
        );
    }
}

#[test]
fn a_stop_with_running_ones_cancels_them() {
    let server = Server::start();
    let fleet = Fleet::start(server.address, &labels(6), |label| {
        (number(label) == 2).then_some(1)
    });
    online(&server, 6);
    let posted = rollout(
        "all-stop",
        json!({"concurrency": "50%", "stopRunning": true}),
    );
    server.submit(posted);
    let task = server.finished("all-stop");
    let counts = &task["counts"];
    assert_eq!(
        [&counts["failed"], &counts["canceled"], &counts["skipped"]],
        [1, 2, 3],
        "{counts}"
    );
    assert_eq!(fleet.started().len(), 3);
}

#[test]
fn a_dry_run_says_what_the_submit_then_does() {
    let server = Server::start();
    let fleet = Fleet::start(server.address, &labels(12), |_| Some(0));
    online(&server, 12);
    for order in ["label", "random", "joined"] {
        let id = format!("like-{order}");
        let mut posted = rollout(
            &id,
            json!({"concurrency": 1, "order": order, "canary": "-1[12]$", "steps": ["50%", "100%"]}),
        );
        posted["maxTargets"] = "75%".into();
        posted["exclude"] = "-(3|4)$".into();
        let dry = server.post("/api/v1/task?dryRun=1", &posted).data();
        let names = |targets: &Value| -> Vec<String> {
            let targets = targets.as_array().unwrap().iter();
            targets
                .map(|t| t["label"].as_str().unwrap().to_owned())
                .collect()
        };
        // By chance no canary may be among those that are taken; that would be a refusal.
        if dry["ok"] == false {
            assert!(
                dry["msg"].as_str().unwrap().starts_with("rollout.canary:"),
                "{dry}"
            );
            assert_eq!(server.post("/api/v1/task", &posted).status, 409);
            continue;
        }
        let machines = names(&dry["machines"]);
        assert_eq!((dry["matched"].as_u64(), machines.len()), (Some(10), 7));
        assert_eq!(names(&dry["spared"]).len(), 3);
        let before = fleet.started().len();
        let task = server.submit(posted);
        assert_eq!(task["rolloutState"]["plan"], dry["plan"]);
        assert_eq!(task["spared"], 3);
        server.finished(&id);
        assert_eq!(fleet.started()[before..], machines, "{order}");
    }
    assert_eq!(
        server
            .get("/api/v1/task")
            .data()
            .as_array()
            .map(|tasks| tasks.is_empty()),
        Some(false)
    );
}

#[cfg(feature = "agent")]
#[test]
fn machines_are_selected_by_tags_hosts_labels_and_instances() {
    let server = Server::start();
    let mut agents = BTreeMap::new();
    for (label, tags) in [
        ("web-1", "zone=cn-1,role=canary"),
        ("web-2", "zone=cn-2"),
        ("web-10", "zone=eu-1"),
        ("db-1", ""),
    ] {
        agents.insert(
            label,
            Agent::start(server.address, label, &[("SIDEBIKE_TAGS", tags)]),
        );
    }
    server.expect(&agents.values().collect::<Vec<_>>());
    let host = server.machines()[0]["host"].as_str().unwrap().to_owned();
    let matching = |selector: Value| -> Vec<String> {
        let mut posted = json!({"detail": {"command": "true"}, "rollout": {}});
        for (name, value) in selector.as_object().unwrap() {
            posted[name] = value.clone();
        }
        let dry = server.post("/api/v1/task?dryRun=1", &posted).data();
        let machines = dry["machines"].as_array().unwrap().iter();
        machines
            .map(|m| m["label"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = json!({"machinePattern": ".*", "hosts": format!("^{host}$")});
    assert_eq!(matching(all), ["db-1", "web-1", "web-2", "web-10"]);
    assert_eq!(
        matching(json!({"machinePattern": ".*", "hosts": "^not-there$"})),
        [""; 0]
    );
    let tagged = |tags: Value| matching(json!({"machinePattern": ".", "machineTags": tags}));
    assert_eq!(tagged(json!({"zone": "^cn-"})), ["web-1", "web-2"]);
    assert_eq!(tagged(json!({"zone": ".*"})), ["web-1", "web-2", "web-10"]);
    assert_eq!(tagged(json!({"zone": "1$", "role": "^canary$"})), ["web-1"]);
    assert_eq!(tagged(json!({"Zone": "."})), [""; 0]);
    let excluded = json!({"machinePattern": "^web-", "exclude": "^web-1$"});
    assert_eq!(matching(excluded), ["web-2", "web-10"]);
    let instance = agents["web-2"].instance();
    assert_eq!(matching(json!({"instances": [instance]})), ["web-2"]);
    assert_eq!(
        matching(json!({"instances": [instance, "00000000"], "exclude": "2"})),
        [""; 0]
    );

    let listed = |filter: &str| -> Vec<Value> {
        let machines = server.get(&format!("/api/v1/machine?tag={filter}")).data();
        machines
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["label"].clone())
            .collect()
    };
    assert_eq!(listed("zone=^cn-"), ["web-1", "web-2"]);
    assert_eq!(listed("role=canary"), ["web-1"]);
    for (filter, why) in [
        ("zone", "tag: expected NAME=PATTERN, got \"zone\""),
        ("a%20b=x", "tag: the name of a tag must be"),
        ("zone=(", "tag: its pattern: must be a regular expression"),
    ] {
        let refused = server.get(&format!("/api/v1/machine?tag={filter}"));
        assert_eq!(refused.status, 400);
        assert!(refused.msg().starts_with(why), "{}", refused.msg());
    }
    let filters = |number: usize| vec!["tag=zone=%5Ecn-"; number].join("&");
    let filtered = |number| server.get(&format!("/api/v1/machine?{}", filters(number)));
    assert_eq!(filtered(16).data().as_array().unwrap().len(), 2);
    assert_eq!(filtered(17).status, 400);
    assert_eq!(
        filtered(17).msg(),
        "tag: can be given 16 times at most, got 17"
    );
    // A command finds the tags of its machine.
    let posted = json!({
        "machinePattern": ".", "machineTags": {"role": "."},
        "detail": {"command": "echo $SIDEBIKE_TAG_ZONE $SIDEBIKE_TAG_ROLE"},
    });
    assert_eq!(
        server.run(posted)["detail"]["result"],
        json!(["cn-1 canary"])
    );
}

/// Machines with the original's agent have neither tags nor a host name; in a rollout they take their turn.
#[test]
fn the_originals_agents_take_part_in_a_rollout() {
    let server = Server::start();
    let mut agent = Original::new(&server);
    let labels = ["m-1", "m-2", "m-3"];
    for label in labels {
        agent.ping(label);
    }
    let well = r#""status":0,"msg":"","output":["line"]"#;
    let badly = r#""status":1,"msg":"exit status 1","output":["line"]"#;
    // One at a time: the next one has work when the one before has reported.
    server.submit(rollout(
        "one-by-one",
        json!({"concurrency": 1, "stopRunning": true}),
    ));
    let works = |agent: &mut Original| labels.map(|label| agent.ping(label).json()["signal"] == 1);
    assert_eq!(works(&mut agent), [true, false, false]);
    let name = agent.fetch("m-1");
    agent.done(&name, "m-1", well);
    assert_eq!(works(&mut agent), [false, true, false]);
    let name = agent.fetch("m-2");
    agent.done(&name, "m-2", badly);
    assert_eq!(works(&mut agent), [false, false, false]);
    let task = server.finished("one-by-one");
    let states = task["result"].as_array().unwrap().iter();
    let states: Vec<&Value> = states.map(|e| &e["state"]).collect();
    assert_eq!(states, ["succeeded", "failed", "skipped"], "{task}");
    // It cannot be told to end a command.
    server.submit(rollout("stopped", json!({"concurrency": 2})));
    agent.fetch("m-1");
    let stopped = call(&server, "stopped", "stop?running=1");
    let msg = stopped["result"][0]["msg"].as_str().unwrap();
    assert!(msg.contains("the original's agent cannot be told"), "{msg}");
    assert_eq!(
        (
            &stopped["counts"]["canceled"],
            &stopped["counts"]["skipped"]
        ),
        (&json!(1), &json!(2))
    );
    let matching = |field: &str, value: Value| {
        let mut posted = json!({"machinePattern": "^m-", "detail": {"command": "true"}});
        posted[field] = value;
        server.post("/api/v1/task?dryRun=1", &posted).data()["matched"].clone()
    };
    assert_eq!(matching("machineTags", json!({"zone": ".*"})), 0);
    assert_eq!(matching("hosts", json!("^$")), 3);
    assert_eq!(matching("hosts", json!(".")), 0);
    assert_eq!(matching("instances", json!(["original:m-2"])), 1);
    let refused = server.post("/api/v1/task?dryRun=1", &{
        let mut posted = rollout("kept", json!({}));
        posted["keepAlive"] = "50%".into();
        posted
    });
    assert_eq!(
        refused.data()["msg"],
        "keepAlive: 2 of 3 machines must stay (50 %), 3 are healthy, so 1 may be hit; 3 were asked for"
    );
}

/// It joined the last step; in the rerun it is a target from the beginning.
#[test]
fn a_canary_that_joined_late_is_in_the_first_step_of_a_rerun() {
    let server = Server::start();
    let _fleet = Fleet::start(server.address, &labels(3), |_| Some(0));
    online(&server, 3);
    let mut posted = rollout("joined", json!({"canary": "^m-[19]$"}));
    posted["lateJoin"] = true.into();
    server.submit(posted);
    let late = Machine {
        label: "m-9".into(),
        instance: format!("{:016x}", 9),
        seq: 0,
        holds: Vec::new(),
        results: Vec::new(),
    };
    let _late = Fleet::of(server.address, vec![late], |_| Some(0));
    wait_for("the late machine has run it", || {
        server.task("joined")["counts"]["succeeded"] == 4
    });
    let rerun = call(&server, "joined", "rerun?all=1");
    assert_eq!(rerun["rolloutState"]["plan"], json!([2, 4]));
    let executions = rerun["result"].as_array().unwrap().iter();
    let labels: Vec<&Value> = executions.map(|e| &e["machineLabel"]).collect();
    assert_eq!(labels, ["m-1", "m-9", "m-2", "m-3"]);
    assert_eq!(server.finished(id(&rerun))["state"], "succeeded");
}

/// What a task with `keepAlive` touches stays touched when the server is started again.
#[test]
fn what_is_touched_is_still_touched_after_a_restart() {
    let folder = Folder::new();
    let (db, address) = (folder.file("db"), free_address());
    let start = || Server::listening_on(&address.to_string(), &["--db", &db]);
    let mut server = start();
    let fleet = Fleet::start(address, &labels(4), |_| None);
    online(&server, 4);
    let posted = |id: &str| json!({"id": id, "machinePattern": "^m-", "keepAlive": "50%", "maxTargets": 2, "detail": {"command": "true"}});
    server.submit(posted("first"));
    server.when("first", "running", 2);
    server.process.kill_9();
    server = start();
    let refused = wait_until("the machines are counted", || {
        let reply = server.post("/api/v1/task?dryRun=1", &posted("second"));
        let msg = reply.data()["msg"].as_str().unwrap_or_default().to_owned();
        (!msg.starts_with("still counting")).then_some(msg)
    });
    // The choice may fall on what is touched already.
    let why = "keepAlive: 2 of 4 machines must stay (50 %), 2 are healthy (2 more are targets of tasks with keepAlive or an undo that have not ended, or not been undone), so none may be hit";
    let first = instances(&server.task("first"));
    let dry = server
        .post("/api/v1/task?dryRun=1", &posted("second"))
        .data();
    let chosen = dry["machines"].as_array().unwrap().iter();
    let chosen: BTreeSet<String> = chosen
        .map(|m| m["instance"].as_str().unwrap().to_owned())
        .collect();
    assert!(refused.starts_with(why) || chosen == first, "{dry}");
    fleet.behaves(|_| Some(0));
    server.finished("first");
    assert_eq!(server.submit(posted("second"))["spared"], 2);
}

#[cfg(feature = "agent")]
#[test]
fn wrong_tags_of_an_agent_are_named() {
    for (tags, why) in [
        (
            "zone",
            "--tag: expected NAME=VALUE such as zone=cn-1, got \"zone\"",
        ),
        ("zone=1,zone=2", "--tag: zone is given twice"),
        (
            "a b=1",
            "--tag: the name of a tag must be 1 to 63 letters, digits",
        ),
        (
            "a-b=1,a_b=2",
            "--tag: two names are the same variable of the environment",
        ),
    ] {
        let mut command = Command::new(SIDEBIKE);
        command.args(["agent", "--tag", tags, "--registry-address", "127.0.0.1:1"]);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(why), "{stderr}");
    }
    let many: Vec<String> = (0..17).map(|n| format!("t{n}=x")).collect();
    let server = Server::start();
    let poll = |tags: Value| {
        let poll = json!({"instance": "0000000000000001", "seq": 1, "label": "m", "jobs": 1, "wait": 0, "tags": tags});
        server.post("/api/v1/agent/poll", &poll)
    };
    let tags: BTreeMap<&str, &str> = many.iter().filter_map(|tag| tag.split_once('=')).collect();
    let refused = poll(json!(tags));
    assert_eq!(refused.status, 422);
    assert!(
        refused.msg().contains("16 tags at most, got 17"),
        "{}",
        refused.msg()
    );
    assert!(server.machines().is_empty());
}

/// Every bad value of every field: 400, with the field, the rule and what was given.
#[test]
#[rustfmt::skip]
fn what_is_wrong_is_named_with_its_field_and_the_rule() {
    let server = Server::start();
    let share = "expected a whole number or a percentage such as \"25%\", 100% at most";
    let long = "x".repeat(1_025);
    let many: BTreeMap<String, &str> = (0..17).map(|n| (format!("t{n}"), "x")).collect();
    let steps: Vec<u32> = (1..=101).collect();
    let shares = [json!("5"), json!("101%"), json!("-1%"), json!("2.5%"), json!(""), json!(-1), json!(2.5), json!(true), json!([])];
    let mut cases: Vec<(Value, String)> = Vec::new();
    let mut case = |patch: Value, why: &str| cases.push((patch, why.to_owned()));
    for bad in &shares {
        case(json!({"maxTargets": bad}), &format!("maxTargets: …, {share}"));
        case(json!({"keepAlive": bad}), &format!("keepAlive: …, {share}"));
        case(json!({"keepAlive": {"keep": bad}}), &format!("keepAlive.keep: …, {share}"));
        for field in ["concurrency", "maxFailures"] {
            case(json!({"rollout": {field: bad}}), &format!("rollout.{field}: …, {share}"));
        }
        case(json!({"rollout": {"steps": [1, bad]}}), &format!("rollout.steps[1]: …, {share}"));
    }
    case(json!({"maxTargets": 0}), "maxTargets: must be above 0");
    case(json!({"maxTargets": "0%"}), "maxTargets: must be above 0");
    case(json!({"maxTargets": 1, "mode": "any"}), "maxTargets: goes with mode \"all\" only, an \"any\" task runs once");
    case(json!({"maxTargets": 1, "lateJoin": true}), "maxTargets: does not go with lateJoin, by which any number of machines may join");
    case(json!({"keepAlive": 1, "mode": "any"}), "keepAlive: goes with mode \"all\" only, an \"any\" task runs once");
    case(json!({"keepAlive": 1, "lateJoin": true}), "keepAlive: does not go with lateJoin, by which any number of machines may join");
    case(json!({"keepAlive": true}), &format!("keepAlive: …, {share}, or an object such as {{\"keep\": \"50%\", \"pool\": \"^web-\"}}"));
    case(json!({"keepAlive": {"pool": "x"}}), "keepAlive: missing field `keep`");
    case(json!({"keepAlive": {"keep": 1, "pol": "x"}}), "keepAlive.pol: unknown field `pol`, expected `keep` or `pool`");
    case(json!({"keepAlive": {"keep": 1, "pool": "("}}), "keepAlive.pool: must be a regular expression: unclosed group");
    case(json!({"keepAlive": {"keep": 1, "pool": ""}}), "keepAlive.pool: must not be empty; \".*\" matches every text");
    for bad in [json!("3"), json!(-1), json!(1.5), json!([])] {
        case(json!({"expect": bad}), "expect: …, expected a whole number or an object such as {\"min\": 2, \"max\": 10}");
    }
    case(json!({"expect": {}}), "expect: needs min or max");
    case(json!({"expect": {"min": 3, "max": 2}}), "expect: min must not be above max");
    case(json!({"expect": {"minimum": 3}}), "expect.minimum: unknown field `minimum`, expected `min` or `max`");
    case(json!({"machinePattern": null}), "machinePattern: is required, unless instances are given; \".*\" matches every label");
    case(json!({"exclude": "("}), "exclude: must be a regular expression: unclosed group");
    case(json!({"exclude": ""}), "exclude: must not be empty; \".*\" matches every text");
    case(json!({"exclude": long}), "exclude: must have 1024 bytes at most (--max-pattern), got 1025");
    case(json!({"hosts": "*"}), "hosts: must be a regular expression: repetition operator missing expression; for any text write .* in place of *");
    case(json!({"hosts": ""}), "hosts: must not be empty; \".*\" matches every text");
    case(json!({"machineTags": {"zone": "["}}), "machineTags.zone: must be a regular expression: unclosed character class");
    case(json!({"machineTags": {"zone": ""}}), "machineTags.zone: must not be empty; \".*\" matches every text");
    case(json!({"machineTags": {"a b": "x"}}), "machineTags: the name of a tag must be 1 to 63 letters, digits, \"-\", \"_\", \".\" and \"/\", got \"a b\"");
    case(json!({"machineTags": many}), "machineTags: must have 16 entries at most, got 17");
    case(json!({"machineTags": ["zone"]}), "machineTags: invalid type: a list, expected an object");
    case(json!({"instances": []}), "instances: must name at least one; leave it out to mean every machine");
    case(json!({"instances": "x"}), "instances: invalid type: string \"x\", expected a list");
    case(json!({"rollout": 5}), "rollout: …expected");
    case(json!({"rollout": {"step": [1]}}), "rollout.step: unknown field `step`, expected one of `concurrency`, `steps`, `pause`, `maxFailures`, `stopRunning`, `order`, `canary`");
    case(json!({"rollout": {}, "mode": "any"}), "rollout: goes with mode \"all\" only, an \"any\" task runs once");
    case(json!({"rollout": {"concurrency": 0}}), "rollout.concurrency: must be above 0");
    case(json!({"rollout": {"concurrency": "0%"}}), "rollout.concurrency: must be above 0");
    case(json!({"rollout": {"steps": [0, 1]}}), "rollout.steps: each must be above 0");
    case(json!({"rollout": {"steps": steps}}), "rollout.steps: must have 100 entries at most, got 101");
    case(json!({"rollout": {"steps": 3}}), "rollout.steps: invalid type: integer `3`, expected a list");
    for bad in [json!("later"), json!(-1), json!(true)] {
        case(json!({"rollout": {"pause": bad}}), "rollout.pause: …, expected a number of seconds, a string such as \"30s\", or \"approve\"");
    }
    case(json!({"rollout": {"stopRunning": 1}}), "rollout.stopRunning: invalid type: integer `1`, expected a boolean");
    case(json!({"rollout": {"order": "labels"}}), "rollout.order: …label");
    case(json!({"rollout": {"canary": "("}}), "rollout.canary: must be a regular expression: unclosed group");
    case(json!({"rollout": {"canary": ""}}), "rollout.canary: must not be empty; \".*\" matches every text");
    let mut wrong = Vec::new();
    for (patch, why) in &cases {
        let mut posted = json!({"machinePattern": "^m", "detail": {"command": "true"}});
        for (name, value) in patch.as_object().unwrap() {
            posted[name] = value.clone();
        }
        for target in ["/api/v1/task", "/api/v1/task?dryRun=1"] {
            let reply = server.post(target, &posted);
            // "…" stands for what was given, in the words of the JSON reader.
            let (begin, rest) = why.split_once('…').unwrap_or((why, ""));
            let msg = reply.msg();
            if reply.status != 400 || !msg.starts_with(begin) || !msg.contains(rest) {
                wrong.push(format!("{patch}: {} {msg:?}, not {why:?}", reply.status));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(server.get("/api/v1/task").data(), json!([]));
}

/// Counts that are not met: 409 with the numbers and the machines, and nothing is registered.
#[test]
#[rustfmt::skip]
fn counts_that_are_not_met_are_refused_with_the_numbers() {
    let server = Server::start();
    let _fleet = Fleet::start(server.address, &labels(3), |_| Some(0));
    online(&server, 3);
    let cases = [
        (json!({"expect": 4}), "expect: 4 machines were expected, 3 match: m-1, m-2, m-3"),
        (json!({"expect": {"min": 4}}), "expect: at least 4 machines were expected, 3 match: m-1, m-2, m-3"),
        (json!({"expect": {"max": 2}}), "expect: at most 2 machines were expected, 3 match: m-1, m-2, m-3"),
        (json!({"expect": {"min": 4, "max": 9}}), "expect: 4 to 9 machines were expected, 3 match: m-1, m-2, m-3"),
        (json!({"expect": {"min": 1}, "machinePattern": "^nobody$"}), "expect: at least 1 machines were expected, 0 match"),
        (json!({"expect": 1, "mode": "any"}), "expect: 1 machine was expected, 3 match: m-1, m-2, m-3"),
        (json!({"maxTargets": "25%"}), "maxTargets: 25 % of 3 machines is none"),
        (json!({"keepAlive": "50%"}), "keepAlive: 2 of 3 machines must stay (50 %), 3 are healthy, so 1 may be hit; 3 were asked for"),
        (json!({"keepAlive": 1}), "keepAlive: 1 of 3 machines must stay, 3 are healthy, so 2 may be hit; 3 were asked for"),
        (json!({"keepAlive": "100%", "maxTargets": 1}), "keepAlive: 3 of 3 machines must stay (100 %), 3 are healthy, so none may be hit; 1 were asked for"),
        (json!({"keepAlive": {"keep": 1, "pool": "^nobody$"}, "maxTargets": 1}), "keepAlive.pool: \"^nobody$\" matches no machine"),
        (json!({"keepAlive": {"keep": "50%", "pool": "-[12]$"}, "machinePattern": "-[123]$"}), "keepAlive: 1 of 2 machines must stay (50 %), 2 are healthy, so 1 may be hit; 2 were asked for"),
        (json!({"rollout": {"canary": "^web-"}}), "rollout.canary: \"^web-\" matches none of the 3 targets: m-1, m-2, m-3"),
    ];
    for (patch, why) in cases {
        let mut posted = json!({"machinePattern": "^m-", "detail": {"command": "true"}});
        for (name, value) in patch.as_object().unwrap() {
            posted[name] = value.clone();
        }
        let dry = server.post("/api/v1/task?dryRun=1", &posted);
        assert_eq!(dry.status, 200, "{patch}: {}", dry.text());
        let dry = dry.data();
        assert_eq!((&dry["ok"], &dry["msg"]), (&json!(false), &json!(why)), "{patch}");
        let refused = server.post("/api/v1/task", &posted);
        assert_eq!((refused.status, refused.msg()), (409, why.to_owned()), "{patch}");
        assert!(refused.json()["data"].is_null());
    }
    // A floor that more than 10 machines stand under names ten of them.
    assert_eq!(server.get("/api/v1/task").data(), json!([]));
    // Exactly as many as are left may be hit.
    let accepted = server.run(json!({"machinePattern": "^m-", "detail": {"command": "true"}, "keepAlive": "50%", "maxTargets": "34%"}));
    assert_eq!((&accepted["matched"], &accepted["spared"]), (&json!(3), &json!(2)));
}

/// The law of a rollout holds for machines that come later, too: nothing starts after the failure that is one too many.
#[test]
fn a_late_machine_does_not_start_what_has_failed_too_often() {
    let server = Server::start();
    let _fleet = Fleet::start(server.address, &labels(2), |_| Some(1));
    online(&server, 2);
    let mut posted = rollout("fails", json!({"maxFailures": 1}));
    posted["lateJoin"] = true.into();
    server.submit(posted);
    let task = reaches(&server, "fails", "stopped", 1);
    assert_eq!(
        task["stoppedBy"]["msg"],
        "stopped after 2 failures (1 allowed)"
    );
    assert_eq!(server.finished("fails")["state"], "failed");
}
