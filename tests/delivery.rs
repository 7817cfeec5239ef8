//! Nothing lost, nothing twice, everything ends: with real processes that are killed, a server that
//! is restarted, and a network that cuts, delays and repeats.

mod common;

use common::{Agent, Folder, Server, id, is_gone, proxy, task, wait_for, wait_until, wait_within};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

fn with(mut task: Value, field: &str, value: Value) -> Value {
    task[field] = value;
    task
}

fn any(command: &str) -> Value {
    with(task(command), "mode", "any".into())
}

/// The process groups of commands that begin with `echo $$`, once all have said so.
fn groups(server: &Server, id: &str, count: usize) -> Vec<i32> {
    wait_until("the commands say their numbers", || {
        let task = server.task(id);
        let said = task["result"].as_array()?.iter();
        let numbers: Vec<i32> = said
            .filter_map(|e| e["output"][0].as_str()?.parse().ok())
            .collect();
        (numbers.len() == count).then_some(numbers)
    })
}

/// The one test that waits out the 45 s of silence. Beside it, on a server of its own, an idle agent
/// shows how seldom it asks.
#[test]
fn a_killed_agent_is_missed_neither_too_early_nor_too_late() {
    let quiet = Server::start();
    let _idle = quiet.agent("idle");
    let requests = || quiet.metric("sidebike_requests_total{status=\"2xx\"}");
    let requests_before = requests();

    let (server, folder) = (Server::start(), Folder::new());
    let mut agent = server.agent("m1");
    let running = server.submit(task("echo $$; sleep 300"));
    let retried = json!({"max": 1, "on": ["lost"]});
    let elsewhere = server.submit(with(any("echo once; sleep 300"), "retry", retried));
    let group = groups(&server, id(&running), 1)[0];
    server.when(id(&elsewhere), "running", 1);
    let silent = Instant::now();
    agent.0.kill_9();

    // What had not started runs elsewhere at once.
    let mut later = any("echo $SIDEBIKE_MACHINE_LABEL >> ran");
    later["detail"]["workspace"] = folder.path().into();
    later["machinePattern"] = "m".into();
    wait_for("the server has noticed the end of the poll", || {
        server.metric("sidebike_held_requests") == 0
    });
    let later = server.submit(later);
    let other = server.agent("m2");
    assert_eq!(server.finished(id(&later))["assignees"], json!(["m2"]));
    assert_eq!(folder.lines("ran"), ["m2"]);
    wait_for("its commands have ended with it", || is_gone(group));

    let lost = server.finished(id(&running));
    let after = silent.elapsed();
    assert!(after > Duration::from_secs(20), "lost after {after:?}");
    assert!(after < Duration::from_secs(60), "lost after {after:?}");
    let execution = &lost["result"][0];
    assert_eq!(
        (&lost["state"], &execution["state"]),
        (&json!("failed"), &json!("lost"))
    );
    assert!(
        execution["msg"].as_str().unwrap().contains("went away"),
        "{execution}"
    );
    let states: Vec<Value> = server
        .machines()
        .iter()
        .map(|m| m["state"].clone())
        .collect();
    assert_eq!(states, ["offline", "online"]);

    // Asked for, it is tried again on the machine that is there.
    let again = server.when(id(&elsewhere), "running", 1);
    let execution = &again["result"][0];
    assert_eq!(
        (&execution["attempt"], &execution["instance"]),
        (&json!(2), &json!(other.instance()))
    );
    assert_eq!(execution["attempts"][0]["state"], "lost");

    let polls = requests() - requests_before - 1;
    assert!(
        (1..=2).contains(&polls),
        "{polls} requests of an idle agent in {after:?}"
    );
}

#[test]
fn a_goodbye_is_believed_at_once() {
    let server = Server::start();
    let env = [("SIDEBIKE_JOBS", "1"), ("SIDEBIKE_GRACE", "0.1")];
    let mut agent = Agent::start(server.address, "m1", &env);
    server.expect(&[&agent]);
    let running = server.submit(task("sleep 300"));
    server.when(id(&running), "running", 1);
    let (queued, other) = (server.submit(task("true")), server.submit(any("true")));
    let asked = Instant::now();
    agent.0.signal(Signal::TERM);
    for lost in [&running, &queued] {
        let lost = server.finished(id(lost));
        assert_eq!(lost["counts"]["lost"], 1, "{lost}");
        assert_ne!(lost["result"][0]["msg"], "");
    }
    assert_eq!(agent.0.ended().code(), Some(0));
    assert!(
        asked.elapsed() < Duration::from_secs(15),
        "{:?}",
        asked.elapsed()
    );
    let _other = server.agent("m2");
    assert_eq!(server.finished(id(&other))["assignees"], json!(["m2"]));
}

#[test]
fn a_server_restarted_empty_gets_its_agents_back() {
    // Not a port that the system gives to clients: an agent that calls itself would take it.
    let port = 20_000 + std::process::id() % 10_000;
    let address = format!("127.0.0.1:{port}");
    let mut server = Server::listening_on(&address, &[]);
    let mut agents = server.agents(20, "m");
    let running = server.submit(task("echo $$; sleep 300"));
    let groups = groups(&server, id(&running), 20);
    server.process.kill_9();

    let server = Server::listening_on(&address, &[]);
    let restarted = Instant::now();
    wait_for("all agents are back", || server.machines().len() == 20);
    assert!(
        restarted.elapsed() < Duration::from_secs(10),
        "{:?}",
        restarted.elapsed()
    );
    let done = server.run(task("echo new"));
    assert_eq!(
        (&done["matched"], &done["counts"]["succeeded"]),
        (&json!(20), &json!(20))
    );
    assert_eq!(
        server.get("/api/v1/task").data().as_array().map(Vec::len),
        Some(1)
    );
    // Nobody asks for the old commands any more; they were not killed either.
    assert!(groups.iter().all(|group| !is_gone(*group)));
    for agent in &mut agents {
        assert!(agent.0.is_alive());
        let log = agent.0.log();
        assert!(log.len() < 15, "a flood in the log: {log:?}");
    }
    assert!(server.process.log().len() < 20 + 15);
}

#[test]
fn a_cancel_ends_all_groups_on_twenty_agents() {
    let server = Server::start();
    let _agents = server.agents(20, "m");
    let grace = Duration::from_secs(1);
    let mut posted = task("trap '' TERM; echo $$; sleep 300 & while :; do sleep 300; done");
    posted["detail"]["killGrace"] = grace.as_secs().into();
    let running = server.submit(posted);
    let groups = groups(&server, id(&running), 20);
    let asked = Instant::now();
    server
        .post(
            &format!("/api/v1/task/{}/cancel", id(&running)),
            &Value::Null,
        )
        .data();
    wait_for("all groups are gone", || {
        groups.iter().all(|group| is_gone(*group))
    });
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(1) + grace, "{took:?}");
    assert_eq!(server.finished(id(&running))["counts"]["canceled"], 20);
}

/// Sends an agent's request of a made-up agent; gives status and answer.
fn say(server: &Server, call: &str, body: Value) -> (u16, Value) {
    let reply = server.post(&format!("/api/v1/agent/{call}"), &body);
    (reply.status, reply.json())
}

fn poll(instance: &str, seq: u32, holds: Value) -> Value {
    json!({"instance": instance, "seq": seq, "label": "m", "jobs": 1, "wait": 0, "holds": holds})
}

#[test]
fn what_was_lost_on_the_way_is_handed_out_again_and_reported_once() {
    let server = Server::start();
    let (own, other) = ("aaaaaaaa", "bbbbbbbb");
    say(&server, "poll", poll(own, 1, json!([])));
    let submitted = server.submit(task("true"));
    let (_, first) = say(&server, "poll", poll(own, 2, json!([])));
    let start = first["data"]["start"][0].clone();
    assert_eq!(
        (&start["taskId"], &start["attempt"]),
        (&submitted["id"], &json!(1))
    );
    assert_eq!(
        say(&server, "poll", poll(own, 2, json!([]))).0,
        409,
        "a repeated poll"
    );
    let (_, again) = say(&server, "poll", poll(own, 3, json!([])));
    assert_eq!(
        again["data"]["start"][0], start,
        "the same attempt, not a second one"
    );
    assert_eq!(
        say(&server, "poll", poll(own, 1, json!([]))).0,
        409,
        "a late poll"
    );

    let hold = json!([{"execution": start["execution"], "attempt": 1, "state": "running"}]);
    let (_, held) = say(&server, "poll", poll(own, 4, hold));
    assert_eq!((&held["signal"], &held["data"]), (&json!(0), &json!({})));
    assert_eq!(server.task(id(&submitted))["counts"]["running"], 1);

    let result = |state: &str| json!([{"execution": start["execution"], "attempt": 1, "state": state, "exitCode": 0}]);
    let done = |who: &str, state: &str| {
        let body = json!({"instance": who, "results": result(state)});
        let (status, answer) = say(&server, "done", body);
        assert_eq!(status, 200);
        answer["data"]["results"][0]["taken"].as_bool().unwrap()
    };
    assert!(!done(other, "failed"), "not its own");
    assert!(done(own, "succeeded"));
    assert!(
        done(own, "succeeded"),
        "the same report again is taken as well"
    );
    done(own, "failed");
    assert_eq!(server.task(id(&submitted))["state"], "succeeded");
}

const TASKS: usize = 1_000;
const RETRIED: usize = 150;

#[test]
fn through_a_bad_network_nothing_runs_twice_and_everything_ends() {
    let (server, folder) = (Server::start(), Folder::new());
    let (address, faults) = proxy::start(server.address);
    let start = |n: usize| Agent::start(address, &format!("m{n}"), &[]);
    let mut agents: Vec<Agent> = (0..5).map(start).collect();
    server.expect(&agents.iter().collect::<Vec<_>>());
    let mut posted = any("echo $SIDEBIKE_TASK_ID $SIDEBIKE_ATTEMPT >> ran; sleep 0.1");
    posted["detail"]["workspace"] = folder.path().into();
    let retried = with(posted.clone(), "retry", json!({"max": 20, "on": ["lost"]}));
    for n in 0..TASKS {
        server.submit(with(posted.clone(), "name", "plain".into()));
        if n < RETRIED {
            server.submit(with(retried.clone(), "name", "retried".into()));
        }
    }
    for n in [0, 1] {
        let busy = agents[n].instance();
        wait_for("it is killed at work", || {
            let machines = server.machines();
            let own = machines.iter().find(|m| m["instance"] == *busy);
            own.is_some_and(|m| m["running"] == 4) && folder.lines("ran").len() > 150 * (n + 1)
        });
        agents[n].0.kill_9();
        agents[n] = start(n);
    }
    wait_within(Duration::from_secs(150), "everything ends", || {
        (server.metric("sidebike_tasks{state=\"running\"}") == 0).then_some(())
    });

    let lines = folder.lines("ran");
    let mut starts: HashMap<&str, u32> = HashMap::new();
    for line in &lines {
        *starts.entry(line).or_default() += 1;
    }
    assert!(
        starts.values().all(|n| *n == 1),
        "an attempt was started twice"
    );

    let listed = |name: &str| {
        server
            .get(&format!("/api/v1/task?limit=1000&taskPrefix={name}"))
            .data()
    };
    let (plain, retried) = (listed("plain"), listed("retried"));
    let mut lost = 0;
    for task in plain.as_array().unwrap() {
        let ran = starts.contains_key(&*format!("{} 1", id(task)));
        let execution = &task["result"][0];
        match execution["state"].as_str().unwrap() {
            "succeeded" => assert!(ran, "{task}"),
            "lost" => {
                assert!(
                    execution["msg"].as_str().unwrap().contains("its "),
                    "{task}"
                );
                lost += 1;
            }
            other => panic!("{other}: {task}"),
        }
    }
    for task in retried.as_array().unwrap() {
        assert_eq!(task["state"], "succeeded", "{task}");
        let attempt = &task["result"][0]["attempt"];
        assert!(
            starts.contains_key(&*format!("{} {attempt}", id(task))),
            "{task}"
        );
    }
    assert_eq!(plain.as_array().map(Vec::len), Some(TASKS));
    assert_eq!(retried.as_array().map(Vec::len), Some(RETRIED));
    assert!(
        (1..100).contains(&lost),
        "{lost} of {TASKS} lost by two kills"
    );
    let counts = [
        &faults.cut_before,
        &faults.cut_after,
        &faults.delayed,
        &faults.repeated,
    ];
    let counts = counts.map(|count| count.load(Relaxed));
    println!("{lost} lost; cut before, cut after, delayed, repeated: {counts:?}");
    assert!(
        counts.iter().all(|count| *count > 10),
        "too good a network: {counts:?}"
    );
}
