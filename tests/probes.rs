//! Probes from outside: the real server and real agents; where the moment of every call matters, a program of the test's
//! own speaks as an agent. `keepAlive` while a task runs is in here, too: it stops a task in the same way.
#![cfg(all(feature = "server", feature = "agent"))]

mod common;

use common::puppet::{Puppet, hold};
use common::{Agent, Folder, Server, id, wait_for, wait_until, wait_within};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What a loaded machine may take for what takes no time, in tests that measure.
const SLACK: Duration = Duration::from_secs(3);

/// Polls as this agent until there is a probe to run.
fn ordered_probe(agent: &mut Puppet) -> Value {
    wait_until("an order to probe", || {
        let orders = agent.poll(json!([]), json!([]));
        orders["probe"].get(0).cloned()
    })
}

/// Reports the result of a probe as this agent.
fn probed(server: &Server, agent: &Puppet, order: &Value, ok: bool, msg: &str) {
    let result = json!({
        "id": order["id"], "ok": ok, "msg": msg, "output": "said\n", "durationMs": 7
    });
    let body = json!({"instance": agent.instance, "results": [], "probes": [result]});
    server.post("/api/v1/agent/done", &body).data();
}

/// A task on `^t` whose command waits for a file of the test, with an undo that writes into it, and these probes.
fn experiment(folder: &Folder, probes: Value) -> Value {
    // It ignores TERM first: the agent also ends what the trap starts.
    let command = "echo $$ >> begun; trap 'trap \"\" TERM; date +%s%3N >> term; exit 1' TERM; while [ ! -e end ]; do sleep 0.05; done";
    json!({
        "machinePattern": "^t",
        "probes": probes,
        "detail": {
            "command": command, "workspace": folder.path(), "timeout": "2m",
            "undo": {"command": "echo undone >> undone", "deadman": -1}
        }
    })
}

fn on(pattern: &str) -> Value {
    json!({"machinePattern": pattern})
}

fn write(folder: &Folder, name: &str) {
    std::fs::write(folder.file(name), "").unwrap();
}

fn begun(folder: &Folder) {
    wait_for("the command runs", || !folder.lines("begun").is_empty());
}

fn probe_of(task: &Value) -> &Value {
    &task["probes"][0]
}

/// Waits until the first probe of a task is in a state.
fn until_probe(server: &Server, task: &str, state: &str) -> Value {
    wait_until(&format!("the probe is {state}"), || {
        let task = server.task(task);
        (probe_of(&task)["state"] == state).then_some(task)
    })
}

fn verdict(server: &Server, task: &str) -> Value {
    let report = server.get(&format!("/api/v1/task/{task}/report")).data();
    report["verdict"].clone()
}

#[test]
fn what_cannot_be_meant_is_refused_and_says_what_would_be_right() {
    let server = Server::start();
    let refusal = |probes: Value, mode: &str| {
        let posted = json!({
            "machinePattern": ".", "mode": mode, "detail": {"command": "x"}, "probes": probes
        });
        let refused = server.post("/api/v1/task", &posted);
        assert_eq!(refused.status, 400, "{}", refused.text());
        refused.msg()
    };
    let url = json!({"url": "http://shop/"});
    for (probe, why) in [
        (json!({}), "missing field `name`"),
        (json!({"name": "p"}), "probes[0]: needs command"),
        (
            json!({"name": "p", "command": "a", "argv": ["b"]}),
            "probes[0]: has both command and argv",
        ),
        (
            json!({"name": "p", "command": "a", "http": url, "on": "targets"}),
            "probes[0]: has http and command or argv",
        ),
        (
            json!({"name": "p", "command": " "}),
            "probes[0].command: must not be empty",
        ),
        (
            json!({"name": "p", "argv": []}),
            "probes[0].argv: must begin with a program",
        ),
        (json!({"name": "", "command": "a"}), "probes[0].name"),
        (
            json!({"name": "p 99", "command": "a"}),
            "probes[0].name: must be a word",
        ),
        (
            json!({"name": "p", "http": url}),
            "probes[0].on: must say where http is asked from",
        ),
        (
            json!({"name": "p", "http": {"url": "shop"}, "on": "targets"}),
            "probes[0].http.url: must be a URL such as",
        ),
        (
            json!({"name": "p", "http": {"url": "http://shop", "contains": ""}, "on": "targets"}),
            "probes[0].http.contains: must not be empty",
        ),
        (
            json!({"name": "p", "http": {"url": "http://shop", "status": "okay"}, "on": "targets"}),
            "a range such as \"200-299\"",
        ),
        (
            json!({"name": "p", "command": "a", "on": on("(")}),
            "probes[0].on.machinePattern",
        ),
        (
            json!({"name": "p", "command": "a", "on": "nobody"}),
            "{\"machinePattern\": \"^probe-\"}",
        ),
        (
            json!({"name": "p", "command": "a", "interval": 0.5}),
            "probes[0].interval: must be from 1s to 1h",
        ),
        (
            json!({"name": "p", "command": "a", "timeout": "2m"}),
            "probes[0].timeout: must be from 100ms to 1m",
        ),
        (
            json!({"name": "p", "command": "a", "failures": 0}),
            "probes[0].failures: must be from 1 to 100, got 0",
        ),
        (
            json!({"name": "p", "command": "a", "failures": 101}),
            "got 101",
        ),
        (
            json!({"name": "p", "command": "a", "delay": "2days"}),
            "probes[0].delay: must be",
        ),
        (
            json!({"name": "p", "command": "a", "after": "2days"}),
            "probes[0].after: must be",
        ),
        (
            json!({"name": "p", "command": "x".repeat(9_000)}),
            "probes[0]: must have 8192 bytes",
        ),
        (
            json!({"name": "p", "command": "a", "every": 5}),
            "unknown field `every`",
        ),
        (json!(["p"]), "an object"),
    ] {
        let msg = refusal(json!([probe]), "all");
        assert!(msg.contains(why), "{msg}");
    }
    let named = |n: usize| json!({"name": format!("p{n}"), "command": "a"});
    let nine: Vec<Value> = (0..9).map(named).collect();
    assert!(refusal(json!(nine), "all").contains("probes: must have 8 entries at most, got 9"));
    let msg = refusal(json!([named(1), named(1)]), "all");
    assert!(msg.contains("probes[1].name: another probe"), "{msg}");
    let before = json!({"name": "p", "command": "a", "before": true});
    assert!(refusal(json!([before]), "any").contains("probes[0].before"));
    // Well-formed, but nobody is there to run it.
    let posted = json!({
        "machinePattern": ".", "detail": {"command": "x"},
        "probes": [{"name": "p", "command": "a", "on": on("^probe-")}]
    });
    let refused = server.post("/api/v1/task", &posted);
    assert_eq!(refused.status, 409);
    assert!(
        refused
            .msg()
            .starts_with("probes[0].on: no online machine matches")
    );
    let dry = server.post("/api/v1/task?dryRun=1", &posted).data();
    assert_eq!(dry["ok"], false);
}

#[test]
fn it_runs_on_a_machine_that_is_no_target_and_the_task_passes() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = [server.agent("t-1"), server.agent("tp-1")];
    let line = format!(
        "echo $SIDEBIKE_PHASE $SIDEBIKE_PROBE $SIDEBIKE_MACHINE_LABEL ${{#SIDEBIKE_KEY}} >> {}; echo fine",
        folder.file("log")
    );
    // The pattern matches the target, too, which is not taken for that.
    let probes =
        json!([{"name": "p99", "command": line, "on": on("^t"), "interval": 1, "after": "30s"}]);
    let mut posted = experiment(&folder, probes);
    posted["machinePattern"] = json!("^t-");
    let task = server.submit(posted);
    begun(&folder);
    wait_for("two runs", || folder.lines("log").len() >= 2);
    let shown = server.task(id(&task));
    let probe = probe_of(&shown);
    assert_eq!(
        (&probe["state"], &probe["machine"]),
        (&json!("running"), &json!("tp-1"))
    );
    assert_eq!((&probe["failed"], &probe["inARow"]), (&json!(0), &json!(0)));
    assert_eq!(
        (&probe["output"], &probe["msg"]),
        (&json!("fine\n"), &json!(""))
    );
    assert!(
        probe["runs"].as_u64().unwrap() >= 1 && probe["maxMs"].is_number(),
        "{probe}"
    );
    write(&folder, "end");
    server.finished(id(&task));
    let task = until_probe(&server, id(&task), "recovered");
    assert_eq!(
        (&task["state"], &task["clean"]),
        (&json!("succeeded"), &json!(true))
    );
    let report = server
        .get(&format!("/api/v1/task/{}/report", id(&task)))
        .data();
    let of_report = &report["probes"][0];
    assert_eq!(report["verdict"], "passed");
    assert_eq!(
        (&of_report["name"], &of_report["failed"]),
        (&json!("p99"), &json!(0))
    );
    let text = server.get(&format!("/api/v1/task/{}/report?format=md", id(&task)));
    assert!(
        text.text().contains("| p99 | recovered |"),
        "{}",
        text.text()
    );
    assert!(
        folder
            .lines("log")
            .iter()
            .all(|line| line == "probe p99 tp-1 32")
    );
    // An answered task can be posted again.
    let mut again = task.clone();
    again["id"] = json!("again");
    let again = server.post("/api/v1/task", &again);
    assert_eq!(again.data()["probes"][0]["runs"], 0);
    server.finished("again");
    // A list leaves output out.
    let listed = server.get("/api/v1/task").data();
    let listed = listed.as_array().unwrap();
    assert!(listed.iter().all(|task| probe_of(task)["output"] == ""));
}

#[test]
fn a_probe_that_fails_ends_the_command_within_a_second_and_undoes_it() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = [server.agent("t-1"), server.agent("probe-1")];
    let line = format!(
        "cd {}; [ -e bad ] || exit 0; date +%s%3N >> failed; echo why; exit 3",
        folder.path()
    );
    let probe = json!({"name": "slow", "command": line, "on": on("^probe-"), "interval": 1, "failures": 2, "after": 0});
    let task = server.submit(experiment(&folder, json!([probe])));
    begun(&folder);
    write(&folder, "bad");
    let task = server.finished(id(&task));
    let by = &task["stoppedBy"];
    assert_eq!(
        (&by["kind"], &by["name"]),
        (&json!("probe"), &json!("slow"))
    );
    assert_eq!(by["output"], "why\n");
    assert_eq!(
        by["msg"],
        "probe slow failed 2 times in a row on probe-1: exit code 3"
    );
    assert_eq!(probe_of(&task)["state"], "failed");
    assert_eq!(task["result"][0]["state"], "canceled");
    assert_eq!(task["result"][0]["undo"]["state"], "done");
    assert_eq!(folder.lines("undone"), ["undone"]);
    assert_eq!(verdict(&server, id(&task)), "stopped");
    let time = |line: &String| line.parse::<u64>().unwrap();
    let (failed, term) = (folder.lines("failed"), folder.lines("term"));
    assert_eq!((failed.len(), term.len()), (2, 1));
    let took = time(&term[0]) - time(&failed[1]);
    eprintln!("{took} ms from the failed probe to TERM");
    assert!(took < 1_000, "{took} ms from the failed probe to TERM");
    let stopped = server.post(&format!("/api/v1/task/{}/stop", id(&task)), &json!({}));
    assert_eq!(stopped.data()["stoppedBy"], *by, "its end does not change");
}

/// Section 7.4: a probe fails while 200 executions are being handed out.
#[test]
fn nothing_is_handed_out_after_the_probe_has_failed() {
    const MACHINES: usize = 200;
    let server = Server::with(&["--max-new-machines", "1000"]);
    let mut probe = Puppet::new(&server, 1, "probe-1");
    let targets = (0..MACHINES).map(|n| Puppet::new(&server, 100 + n, &format!("t-{n}")));
    let targets: Vec<Puppet<'_>> = targets.collect();
    let task = server.submit(json!({
        "machinePattern": "^t-",
        "detail": {"command": "x", "undo": {"command": "y"}},
        "probes": [{"name": "p", "command": "z", "on": on("^probe-"), "failures": 1, "after": 0}],
    }));
    let (is_stopped, handed_out) = (AtomicBool::new(false), AtomicUsize::new(0));
    // The second half is handed out while the failure is reported.
    let (goes_on, half) = (AtomicBool::new(false), MACHINES / 2);
    let started = Mutex::new(Vec::new());
    let queue = Mutex::new(targets);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(mut target) = queue.lock().unwrap().pop() else {
                        return;
                    };
                    wait_for("the order to probe", || {
                        goes_on.load(Ordering::SeqCst) || handed_out.load(Ordering::SeqCst) < half
                    });
                    // Looked at before the poll: what begins after the answer about the failure must get nothing.
                    let was_stopped = is_stopped.load(Ordering::SeqCst);
                    let orders = target.poll(json!([]), json!([]));
                    let starts = orders["start"].as_array().map_or(0, Vec::len);
                    assert!(!was_stopped || starts == 0, "{orders}");
                    if starts > 0 {
                        handed_out.fetch_add(starts, Ordering::SeqCst);
                        started
                            .lock()
                            .unwrap()
                            .push((target, orders["start"][0].clone()));
                    }
                }
            });
        }
        let order = ordered_probe(&mut probe);
        assert_eq!(
            (&order["name"], &order["command"]),
            (&json!("p"), &json!("z"))
        );
        wait_for("half of it", || handed_out.load(Ordering::SeqCst) >= half);
        goes_on.store(true, Ordering::SeqCst);
        probed(&server, &probe, &order, false, "too slow");
        is_stopped.store(true, Ordering::SeqCst);
    });
    let shown = server.task(id(&task));
    assert_eq!(
        shown["stoppedBy"]["msg"],
        "probe p failed on probe-1: too slow"
    );
    let handed_out = handed_out.into_inner() as u64;
    assert!(
        handed_out < MACHINES as u64,
        "it came too late to show anything"
    );
    let count = |state: &str| shown["counts"][state].as_u64().unwrap();
    assert_eq!(
        count("skipped"),
        MACHINES as u64 - handed_out,
        "{}",
        shown["counts"]
    );
    // Those that run are told to end.
    let mut started = started.into_inner().unwrap();
    let (target, order) = &mut started[0];
    let orders = target.poll(json!([hold(order)]), json!([]));
    assert_eq!(
        orders["cancel"][0]["execution"], order["execution"],
        "{orders}"
    );
}

#[test]
fn a_probe_that_hangs_or_whose_machine_is_killed_stops_the_task_in_time() {
    // (interval + timeout) × failures + 5 s
    let most = Duration::from_secs((1 + 1) * 2 + 5) + SLACK;
    let probe = |line: &str| json!([{"name": "p", "command": line, "on": on("^probe-"), "interval": 1, "timeout": 1, "failures": 2, "after": 0}]);
    let (server, folder) = (Server::start(), Folder::new());
    let _target = server.agent("t-1");
    let mut killed = server.agent("probe-1");

    let hangs = format!(
        "echo $$ >> {0}/pids; echo begun; (setsid sleep 1000 &) ; trap '' TERM; sleep 1000",
        folder.path()
    );
    let task = server.submit(experiment(&folder, probe(&hangs)));
    begun(&folder);
    let since = Instant::now();
    let task = server.finished(id(&task));
    assert!(since.elapsed() < most, "{:?}", since.elapsed());
    assert_eq!(
        task["stoppedBy"]["msg"],
        "probe p failed 2 times in a row on probe-1: timed out after 1s"
    );
    assert_eq!(task["stoppedBy"]["output"], "begun\n");
    // Nothing is left of what hung.
    for pid in folder.lines("pids") {
        wait_for("the probe is gone", || {
            common::is_gone(pid.parse().unwrap())
        });
    }

    std::fs::remove_file(folder.file("begun")).unwrap();
    let task = server.submit(experiment(&folder, probe("true")));
    begun(&folder);
    wait_for("it has passed", || {
        probe_of(&server.task(id(&task)))["runs"] != 0
    });
    let since = Instant::now();
    killed.0.kill_9();
    let task = server.finished(id(&task));
    assert!(since.elapsed() < most, "{:?}", since.elapsed());
    let msg = task["stoppedBy"]["msg"].as_str().unwrap();
    assert!(
        msg.contains("on probe-1: its machine did not ask for orders within 1s"),
        "{msg}"
    );
    assert_eq!(folder.lines("undone").len(), 2);
}

#[test]
fn what_a_probe_has_started_ends_with_its_agent() {
    let (server, folder) = (Server::start(), Folder::new());
    let _target = server.agent("t-1");
    let mut probing = server.agent("probe-1");
    let line = format!(
        "cd {}; setsid sh -c 'echo $$ >> pids; exec sleep 1000' & echo $$ >> pids; exec sleep 1000",
        folder.path()
    );
    let probe =
        json!([{"name": "p", "command": line, "on": on("^probe-"), "timeout": "1m", "after": 0}]);
    let task = server.submit(experiment(&folder, probe));
    wait_for("it runs", || folder.lines("pids").len() == 2);
    probing.0.kill_9();
    for pid in folder.lines("pids") {
        wait_for("it is gone", || common::is_gone(pid.parse().unwrap()));
    }
    write(&folder, "end");
    assert_eq!(server.finished(id(&task))["state"], "succeeded");
}

#[test]
fn another_machine_takes_over_and_none_is_a_stop() {
    let (server, folder) = (Server::start(), Folder::new());
    let _target = server.agent("t-1");
    let agents = server.agents(2, "probe-1");
    let probe = json!([{"name": "p", "command": format!("echo $SIDEBIKE_INSTANCE >> {}", folder.file("log")), "on": on("^probe-"), "interval": 1, "failures": 2, "timeout": 1, "after": 0}]);
    let task = server.submit(experiment(&folder, probe));
    begun(&folder);
    wait_for("a run", || !folder.lines("log").is_empty());
    let first = folder.lines("log")[0].clone();
    let (mut first, other): (Vec<Agent>, Vec<Agent>) = agents
        .into_iter()
        .partition(|agent| agent.instance() == first);
    first[0].0.kill_9();
    let other_id = other[0].instance();
    wait_for("the other one runs it", || {
        folder.lines("log").contains(&other_id)
    });
    assert!(server.task(id(&task))["stoppedBy"].is_null());
    // One goes with a goodbye. What was killed counts as online for a while, and does not answer.
    other[0].0.signal(rustix::process::Signal::TERM);
    let task = server.finished(id(&task));
    assert_eq!(task["stoppedBy"]["kind"], "probe", "{task}");
    assert_eq!(folder.lines("undone"), ["undone"]);
}

#[test]
fn the_last_machine_that_says_goodbye_stops_the_task_at_once() {
    let (server, folder) = (Server::start(), Folder::new());
    let _target = server.agent("t-1");
    let mut last = server.agent("probe-1");
    let probe = json!([{"name": "p", "command": "true", "on": on("^probe-"), "interval": 1, "failures": 100, "after": 0}]);
    let task = server.submit(experiment(&folder, probe));
    begun(&folder);
    last.0.signal(rustix::process::Signal::TERM);
    last.0.ended();
    let task = server.finished(id(&task));
    assert_eq!(
        task["stoppedBy"]["msg"],
        "probe p cannot run: no online machine matches \"^probe-\" that is no target"
    );
}

#[test]
fn on_targets_each_has_its_own_streak_and_no_job_is_taken() {
    let (server, folder) = (Server::start(), Folder::new());
    let one_job = [("SIDEBIKE_JOBS", "1")];
    let agents: Vec<Agent> = ["t-1", "t-2"]
        .map(|label| Agent::start(server.address, label, &one_job))
        .into();
    server.expect(&agents.iter().collect::<Vec<_>>());
    let line = format!(
        "cd {}; echo $SIDEBIKE_MACHINE_LABEL >> log; [ ! -e bad-$SIDEBIKE_MACHINE_LABEL ]",
        folder.path()
    );
    let probe = json!([{"name": "p", "command": line, "interval": 1, "failures": 3, "after": 0}]);
    let task = server.submit(experiment(&folder, probe));
    let on_both = || {
        let log = folder.lines("log");
        ["t-1", "t-2"]
            .iter()
            .all(|label| log.iter().any(|line| line == label))
    };
    wait_for("it runs on both, beside the command", on_both);
    write(&folder, "bad-t-2");
    let task = server.finished(id(&task));
    assert_eq!(
        task["stoppedBy"]["msg"],
        "probe p failed 3 times in a row on t-2: exit code 1"
    );
    assert_eq!(task["counts"]["canceled"], 2);
    let probe = probe_of(&task);
    assert!(
        probe["failed"].as_u64().unwrap() >= 3 && probe["runs"].as_u64() > probe["failed"].as_u64()
    );
}

#[test]
fn an_agent_that_cannot_probe_is_not_handed_what_is_probed_there() {
    let server = Server::start();
    let mut old = Puppet::new(&server, 1, "t-1");
    old.features = json!(["undo"]);
    old.poll(json!([]), json!([]));
    let probed = |mode: &str| {
        json!({
            "machinePattern": "^t", "mode": mode, "detail": {"command": "x"},
            "probes": [{"name": "p", "command": "true"}]
        })
    };
    let task = server.submit(probed("all"));
    old.poll(json!([]), json!([]));
    let task = server.finished(id(&task));
    let msg = task["result"][0]["msg"].as_str().unwrap();
    assert!(
        msg.starts_with("probes: the agent on this machine"),
        "{msg}"
    );
    let waits = server.submit(probed("any"));
    let orders = old.poll(json!([]), json!([]));
    assert!(orders["start"].is_null(), "{orders}");
    let msg = server.task(id(&waits))["result"][0]["msg"].clone();
    assert!(
        msg.as_str().unwrap().starts_with("probes: waits for"),
        "{msg}"
    );
    // One that can gets it with its first poll.
    let new = Puppet::new(&server, 2, "t-2");
    let waits = server.when(id(&waits), "delivered", 1);
    assert_eq!(waits["result"][0]["instance"], new.instance);
}

#[test]
fn what_does_not_pass_before_is_not_touched() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = [
        server.agent("t-1"),
        server.agent("t-2"),
        server.agent("probe-1"),
    ];
    let line = |name: &str| {
        format!(
            "cd {}; echo >> runs; [ -e {name} ] || {{ echo {name}; exit 1; }}",
            folder.path()
        )
    };
    let probe = |name: &str, on: Value| json!({"name": name, "command": line(name), "on": on, "interval": 1, "failures": 2, "before": true, "after": 0});
    let mut posted = experiment(&folder, json!([probe("good", on("^probe-"))]));
    posted["rollout"] = json!({"steps": [1, "100%"]});
    let task = server.submit(posted);
    assert_eq!(
        (&task["counts"]["held"], &task["msg"]),
        (&json!(2), &json!("waits until its probes have passed"))
    );
    assert_eq!(probe_of(&task)["state"], "before");
    let task = server.finished(id(&task));
    assert_eq!(
        (&task["state"], &task["counts"]["failed"]),
        (&json!("failed"), &json!(2))
    );
    let by = &task["stoppedBy"];
    let why = "probe good did not pass before the start on probe-1: exit code 1";
    assert_eq!(
        (&by["kind"], &by["msg"], &by["output"]),
        (&json!("probe"), &json!(why), &json!("good\n"))
    );
    assert_eq!(task["result"][1]["msg"], why);
    assert_eq!(verdict(&server, id(&task)), "failed");
    assert!(folder.lines("begun").is_empty() && folder.lines("undone").is_empty());
    assert_eq!(folder.lines("runs").len(), 2);

    // A task that waits for probes can be canceled.
    let mut posted = experiment(&folder, json!([probe("never", on("^probe-"))]));
    posted["probes"][0]["failures"] = json!(100);
    let task = server.submit(posted);
    let canceled = server.post(&format!("/api/v1/task/{}/cancel", id(&task)), &json!({}));
    assert_eq!(canceled.data()["state"], "canceled");

    // On the targets, and on one machine: both have to pass, then it begins.
    write(&folder, "good");
    let both = json!([
        probe("good", on("^probe-")),
        probe("each", json!("targets"))
    ]);
    let mut posted = experiment(&folder, both);
    posted["probes"][1]["failures"] = json!(100);
    let task = server.submit(posted);
    wait_for("one has passed", || {
        probe_of(&server.task(id(&task)))["state"] == "waiting"
    });
    assert!(folder.lines("begun").is_empty());
    assert_eq!(server.task(id(&task))["counts"]["held"], 2);
    write(&folder, "each");
    wait_for("it begins on both", || folder.lines("begun").len() == 2);
    write(&folder, "end");
    let task = server.finished(id(&task));
    assert_eq!(task["state"], "succeeded", "{task}");
    assert!(task["stoppedBy"].is_null());
}

#[test]
fn the_next_step_waits_until_the_probe_passes() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = [
        server.agent("t-1"),
        server.agent("t-2"),
        server.agent("probe-1"),
    ];
    let line = format!("cd {}; [ ! -e bad ]", folder.path());
    let probe = json!([{"name": "p", "command": line, "on": on("^probe-"), "interval": 1, "failures": 100, "after": 0}]);
    let mut posted = experiment(&folder, probe);
    posted["rollout"] = json!({"steps": [1, "100%"]});
    let task = server.submit(posted);
    begun(&folder);
    write(&folder, "bad");
    let failed = || {
        probe_of(&server.task(id(&task)))["failed"]
            .as_u64()
            .unwrap()
    };
    wait_for("it has failed", || failed() > 0);
    write(&folder, "end");
    server.when(id(&task), "succeeded", 1);
    let before = failed();
    wait_for("it has failed again", || failed() > before);
    assert_eq!(folder.lines("begun").len(), 1);
    assert_eq!(server.task(id(&task))["rolloutState"]["step"], 1);
    std::fs::remove_file(folder.file("bad")).unwrap();
    let task = server.finished(id(&task));
    assert_eq!(task["state"], "succeeded");
    assert_eq!(folder.lines("begun").len(), 2);
}

#[test]
fn what_does_not_recover_is_in_the_report_alone() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = [server.agent("t-1"), server.agent("probe-1")];
    let line = format!("cd {}; [ ! -e end ] || [ -e well ]", folder.path());
    let probe = |after: &str| json!([{"name": "p", "command": line, "on": on("^probe-"), "interval": 1, "failures": 100, "after": after}]);
    let task = server.submit(experiment(&folder, probe("2s")));
    begun(&folder);
    wait_for("it has passed", || {
        probe_of(&server.task(id(&task)))["runs"] != 0
    });
    write(&folder, "end");
    let task = server.finished(id(&task));
    assert_eq!(probe_of(&task)["state"], "recovering");
    assert_eq!(verdict(&server, id(&task)), "unfinished");
    let finished = task["finishedAt"].clone();
    let task = until_probe(&server, id(&task), "notRecovered");
    assert_eq!(
        (&task["state"], &task["finishedAt"]),
        (&json!("succeeded"), &finished)
    );
    let report = server
        .get(&format!("/api/v1/task/{}/report", id(&task)))
        .data();
    assert_eq!(report["verdict"], "notRecovered");
    assert_eq!(
        report["why"],
        "probe p did not pass again in time: exit code 1"
    );

    let task = server.submit(experiment(&folder, probe("30s")));
    let task = server.finished(id(&task));
    write(&folder, "well");
    until_probe(&server, id(&task), "recovered");
    assert_eq!(verdict(&server, id(&task)), "passed");
    // It can be forgotten at any time.
    std::fs::remove_file(folder.file("well")).unwrap();
    let task = server.submit(experiment(&folder, probe("30s")));
    let task = server.finished(id(&task));
    let deleted = server.request("DELETE", &format!("/api/v1/task/{}", id(&task)), b"");
    assert_eq!(deleted.status, 200, "{}", deleted.text());
}

#[test]
fn a_restart_of_the_server_loses_nothing() {
    let (folder, db) = (Folder::new(), Folder::new());
    let flags = ["--db", &db.file("db")];
    let mut server = Server::with(&flags);
    let address = server.address.to_string();
    let _agents = [server.agent("t-1"), server.agent("probe-1")];
    let line = format!("cd {}; echo >> runs; [ ! -e bad ]", folder.path());
    let probes = json!([
        {"name": "p", "command": line, "on": on("^probe-"), "interval": 1, "failures": 3, "after": "40s"},
        {"name": "gate", "command": format!("cd {}; [ -e open ]", folder.path()), "on": "targets",
         "interval": 1, "failures": 100, "before": true, "after": 0},
    ]);
    let task = server.submit(experiment(&folder, probes));
    wait_for("the gate was tried", || {
        server.task(id(&task))["probes"][1]["runs"] != 0
    });
    server.process.kill_9();
    let mut server = Server::listening_on(&address, &flags);
    assert_eq!(
        server.task(id(&task))["counts"]["held"],
        1,
        "it still waits"
    );
    write(&folder, "open");
    begun(&folder);
    wait_for("it ran twice", || folder.lines("runs").len() >= 2);
    let before = wait_until("they are counted", || {
        let runs = probe_of(&server.task(id(&task)))["runs"].as_u64().unwrap();
        (runs >= 2).then_some(runs)
    });
    server.process.kill_9();
    let mut server = Server::listening_on(&address, &flags);
    let task = server.task(id(&task));
    assert!(
        probe_of(&task)["runs"].as_u64().unwrap() + 1 >= before,
        "{task}"
    );
    assert_eq!(task["counts"]["running"], 1);
    write(&folder, "bad");
    let task = server.finished(id(&task));
    assert_eq!(task["stoppedBy"]["name"], "p", "{task}");
    assert_eq!(folder.lines("undone"), ["undone"]);
    assert_eq!(probe_of(&task)["state"], "recovering");
    // Also what has to pass afterwards is asked again.
    wait_for("it is saved", || {
        server.metric("sidebike_held_requests") > 0
    });
    server.process.kill_9();
    let server = Server::listening_on(&address, &flags);
    std::fs::remove_file(folder.file("bad")).unwrap();
    let task = until_probe(&server, id(&task), "recovered");
    assert_eq!(task["stoppedBy"]["kind"], "probe");
}

/// Answers every request with what the path says; counts them.
fn web(requests: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let requests = requests.clone();
            thread::spawn(move || {
                let mut head = [0; 2_048];
                let read = stream.read(&mut head).unwrap_or(0);
                let text = String::from_utf8_lossy(&head[..read]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                requests.lock().unwrap().push(text);
                let (status, body) = match &*path {
                    "/good" => ("200 OK", "all ok"),
                    "/away" => ("302 Found\r\nLocation: /good", "moved"),
                    "/down" => ("503 Service Unavailable", "down"),
                    _ => {
                        thread::sleep(Duration::from_secs(30));
                        return;
                    }
                };
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    });
    address
}

#[test]
fn http_is_asked_by_the_agent_itself() {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let address = web(requests.clone());
    let server = Server::start();
    // No proxy of the environment is used.
    let proxy = [
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("NO_PROXY", &*server.address.to_string()),
    ];
    let probing = Agent::start(server.address, "probe-1", &proxy);
    let _target = server.agent("t-1");
    server.expect(&[&probing]);
    let msg = |path: &str, http: Value| {
        let mut http = http;
        http["url"] = json!(format!("http://{address}{path}"));
        let task = server.submit(json!({
            "machinePattern": "^t", "detail": {"command": "true"},
            "probes": [{"name": "h", "http": http, "on": on("^probe-"), "failures": 1, "timeout": 1, "before": true}],
        }));
        let task = server.finished(id(&task));
        match task["state"] == "succeeded" {
            true => String::new(),
            false => probe_of(&task)["msg"].as_str().unwrap().to_owned(),
        }
    };
    assert_eq!(
        msg("/good", json!({"contains": "ok", "status": "200-299"})),
        ""
    );
    assert_eq!(
        msg("/good", json!({"contains": "fine"})),
        "the answer does not contain \"fine\""
    );
    assert_eq!(
        msg("/good", json!({"status": [204, 404]})),
        "status 200, 204, 404 was wanted"
    );
    assert_eq!(msg("/down", json!({})), "status 503, 200-299 was wanted");
    assert_eq!(msg("/down", json!({"status": 503})), "");
    // Redirects are answers.
    assert_eq!(msg("/away", json!({})), "status 302, 200-299 was wanted");
    assert_eq!(
        msg("/away", json!({"status": 302, "contains": "moved"})),
        ""
    );
    let slow = msg("/never", json!({}));
    assert!(slow.contains("no answer"), "{slow}");
    let requests = requests.lock().unwrap();
    assert!(
        requests
            .iter()
            .all(|it| it.starts_with("GET /") && !it.contains("uthorization"))
    );
}

#[test]
fn the_owners_rules_hold_for_probes() {
    let server = Server::start();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let address = web(requests.clone());
    let allow = format!("GET http://{address}/good|true").replace('.', "\\.");
    let _target = server.agent("t-1");
    let strict = Agent::start(server.address, "strict", &[("SIDEBIKE_ALLOW", &allow)]);
    let wrapped = Agent::start(
        server.address,
        "wrapped",
        &[("SIDEBIKE_WRAPPER", "/usr/bin/env")],
    );
    server.expect(&[&strict, &wrapped]);
    let msg = |machine: &str, mut probe: Value| {
        probe["name"] = json!("p");
        (probe["on"], probe["before"], probe["failures"]) = (on(machine), json!(true), json!(1));
        let task = server.submit(
            json!({"machinePattern": "^t", "detail": {"command": "true"}, "probes": [probe]}),
        );
        let task = server.finished(id(&task));
        assert_eq!(
            task["state"] == "succeeded",
            probe_of(&task)["msg"] == "",
            "{task}"
        );
        probe_of(&task)["msg"].as_str().unwrap().to_owned()
    };
    let get = |path: &str| json!({"http": {"url": format!("http://{address}{path}")}});
    let refused = "refused by this machine's owner";
    assert_eq!(msg("strict", json!({"command": "true"})), "");
    assert!(msg("strict", json!({"argv": ["id"]})).starts_with(refused));
    assert_eq!(msg("strict", get("/good")), "");
    assert!(msg("strict", get("/down")).starts_with(refused));
    assert_eq!(msg("wrapped", json!({"argv": ["true"]})), "");
    assert!(msg("wrapped", get("/good")).starts_with(refused));
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[test]
fn a_result_counts_once_and_only_from_whom_it_is_awaited() {
    let server = Server::start();
    let (mut probe, other) = (
        Puppet::new(&server, 1, "probe-1"),
        Puppet::new(&server, 2, "other"),
    );
    let mut target = Puppet::new(&server, 3, "t-1");
    let task = server.submit(json!({
        "machinePattern": "^t", "detail": {"command": "x"},
        "probes": [{"name": "p", "command": "z", "on": on("^probe-"), "failures": 2, "interval": "1h"}],
    }));
    target.poll(json!([]), json!([]));
    let order = ordered_probe(&mut probe);
    assert!(
        order["withinMs"].as_u64().unwrap() < 5_000 && order["timeout"] == 5,
        "{order}"
    );
    probed(&server, &other, &order, false, "from another");
    let mut wrong = order.clone();
    wrong["id"]["run"] = json!(7);
    probed(&server, &probe, &wrong, false, "another run");
    for (part, value) in [
        ("probe", json!(9)),
        ("place", json!(0)),
        ("task", json!("none")),
    ] {
        let mut wrong = order.clone();
        wrong["id"][part] = value;
        probed(&server, &probe, &wrong, false, "another place");
    }
    assert_eq!(probe_of(&server.task(id(&task)))["runs"], 0);
    for _ in 0..3 {
        probed(&server, &probe, &order, false, "once");
    }
    let shown = server.task(id(&task));
    let probe_now = probe_of(&shown);
    assert_eq!(
        (&probe_now["runs"], &probe_now["inARow"], &probe_now["msg"]),
        (&json!(1), &json!(1), &json!("once"))
    );
    assert!(shown["stoppedBy"].is_null());
    let many: Vec<Value> = (0..300)
        .map(|_| json!({"id": order["id"], "ok": true}))
        .collect();
    let body = json!({"instance": probe.instance, "results": [], "probes": many});
    let refused = server.post("/api/v1/agent/done", &body);
    assert!(
        refused
            .msg()
            .starts_with("probes: must have 256 entries at most"),
        "{}",
        refused.text()
    );
}

#[test]
fn too_few_healthy_machines_stop_the_task() {
    let (server, folder) = (Server::start(), Folder::new());
    let _target = server.agent("t-1");
    let mut others = server.agents(2, "other");
    let mut posted = experiment(&folder, json!([]));
    posted["keepAlive"] = json!({"keep": 2, "pool": "."});
    let task = server.submit(posted);
    begun(&folder);
    let since = Instant::now();
    others[0].0.signal(rustix::process::Signal::TERM);
    others[0].0.ended();
    let task = wait_within(Duration::from_secs(25), "it is stopped", || {
        let task = server.task(id(&task));
        (!task["stoppedBy"].is_null()).then_some(task)
    });
    assert!(
        since.elapsed() >= Duration::from_secs(9),
        "it has patience: {:?}",
        since.elapsed()
    );
    let by = &task["stoppedBy"];
    assert_eq!(by["kind"], "keepAlive");
    assert_eq!(
        by["msg"],
        "keepAlive: 2 of 2 machines must stay, 1 have been left alone and healthy for 10s or longer"
    );
    let task = server.finished(id(&task));
    assert_eq!(task["result"][0]["undo"]["state"], "done");
    assert_eq!(verdict(&server, id(&task)), "stopped");
}
