//! What the server makes of undos: a program of the test's own speaks as an agent.

mod common;

use common::puppet::{Puppet, ended, hold, instance, report};
use common::{Folder, Server, id, wait_for};
use serde_json::{Value, json};
use std::time::SystemTime;

fn experiment(pattern: &str) -> Value {
    json!({
        "machinePattern": pattern,
        "detail": {"command": "blade create", "undo": {"command": "blade destroy", "lock": "eth0"}}
    })
}

fn undo_of(task: &Value) -> &Value {
    &task["result"][0]["undo"]
}

#[test]
fn a_task_ends_with_its_undo_and_shows_it() {
    let server = Server::start();
    let mut agent = Puppet::new(&server, 1, "web-1");
    let task = server.submit(experiment("^web-1$"));
    let order = agent.ordered();
    let key = order["key"].as_str().unwrap();
    assert!(
        key.len() == 32 && key.bytes().all(|c| c.is_ascii_hexdigit()),
        "{key}"
    );
    assert_eq!(order["detail"]["undo"]["command"], "blade destroy");
    agent.done(json!([]), json!([report(&order, "armed")]));
    let shown = server.task(id(&task));
    assert_eq!(undo_of(&shown)["state"], "armed", "{shown}");
    assert_eq!(
        (&shown["clean"], &shown["undos"]["armed"]),
        (&json!(true), &json!(1))
    );
    agent.poll(json!([hold(&order)]), json!([report(&order, "running")]));
    assert_eq!(undo_of(&server.task(id(&task)))["state"], "running");
    let taken = agent.done(
        json!([ended(&order, "succeeded")]),
        json!([report(&order, "done")]),
    );
    assert_eq!(
        taken["undos"][0]["execution"], order["execution"],
        "{taken}"
    );
    let task = server.finished(id(&task));
    assert_eq!(
        (&task["state"], &task["clean"]),
        (&json!("succeeded"), &json!(true))
    );
    let undo = undo_of(&task);
    assert_eq!(
        (&undo["state"], &undo["output"]),
        (&json!("done"), &json!("undone\n"))
    );
    assert_eq!(
        (&undo["reason"], &undo["by"], &undo["tries"]),
        (&json!("ended"), &json!("agent"), &json!(1))
    );
    // Reports come twice.
    agent.done(
        json!([ended(&order, "succeeded")]),
        json!([report(&order, "armed")]),
    );
    assert_eq!(undo_of(&server.task(id(&task)))["state"], "done");
}

#[test]
fn what_failed_is_kept_until_it_is_forgiven_or_done() {
    let server = Server::with(&["--max-tasks", "1"]);
    let mut agent = Puppet::new(&server, 1, "web-1");
    let mut posted = experiment("^web-1$");
    (posted["resultTtl"], posted["id"]) = (json!("1s"), json!("dirty"));
    server.submit(posted);
    let order = agent.ordered();
    let mut failed = report(&order, "failed");
    (failed["exitCode"], failed["msg"]) = (json!(1), json!("exit code 1"));
    agent.done(json!([ended(&order, "succeeded")]), json!([failed]));
    let task = server.finished("dirty");
    assert_eq!(
        (&task["state"], &task["clean"]),
        (&json!("succeeded"), &json!(false))
    );
    assert_eq!(undo_of(&task)["msg"], "exit code 1");
    assert_eq!(server.metric("sidebike_undos_open"), 1);
    let verdict = server.get("/api/v1/task/dirty/report").data()["verdict"].clone();
    assert_eq!(verdict, "dirty");
    let refused = server.request("DELETE", "/api/v1/task/dirty", b"");
    assert!(
        refused.status == 409 && refused.msg().contains("is not clean"),
        "{}",
        refused.text()
    );
    // Neither its ttl nor the limit on tasks forgets it.
    for _ in 0..3 {
        let other =
            json!({"machinePattern": "^nobody$", "ttl": 0.05, "detail": {"command": "true"}});
        let other = server.submit(other);
        server.finished(id(&other));
    }
    let listed = server.get("/api/v1/task?clean=0").data();
    assert_eq!(common::ids(&listed), ["dirty"]);
    // The same lock is not given to anybody there, and says by whom it is held.
    let next = server.submit(experiment("^web-1$"));
    agent.poll(json!([]), json!([]));
    let next = server.finished(id(&next));
    let msg = next["result"][0]["msg"].as_str().unwrap();
    assert!(
        msg.contains("held on this machine by task dirty, whose undo is failed"),
        "{msg}"
    );
    // By hand: the machine gets it, and does not get it again while it lists it.
    server.post("/api/v1/task/dirty/undo", &json!({})).data();
    let orders = agent.poll(json!([]), json!([]));
    let again = orders["undo"][0].clone();
    assert_eq!(
        (&again["reason"], &again["key"]),
        (&json!("byHand"), &order["key"]),
        "{orders}"
    );
    let orders = agent.poll(json!([]), json!([report(&again, "running")]));
    assert!(orders["undo"].is_null(), "{orders}");
    agent.done(json!([]), json!([report(&again, "failed")]));
    assert_eq!(undo_of(&server.task("dirty"))["state"], "failed");
    let forgiven = server.post("/api/v1/task/dirty/forgive", &json!({})).data();
    assert_eq!(
        (&undo_of(&forgiven)["state"], &forgiven["clean"]),
        (&json!("forgiven"), &json!(true))
    );
    let again = server.post("/api/v1/task/dirty/forgive", &json!({}));
    assert_eq!(again.status, 409, "{}", again.text());
    // Now it is forgotten as any other.
    wait_for("it is forgotten", || {
        server.get("/api/v1/task/dirty").status == 404
    });
}

#[test]
fn what_nobody_can_say_is_owed_by_the_next_at_that_place() {
    let server = Server::start();
    let mut agent = Puppet::new(&server, 1, "web-1");
    let task = server.submit(experiment("^web-1$"));
    let order = agent.ordered();
    agent.done(json!([]), json!([report(&order, "armed")]));
    drop(agent.held_poll(json!([hold(&order)]), json!([report(&order, "armed")])));
    wait_for("it has hung up", || {
        server.metric("sidebike_held_requests") == 0
    });
    // A new process with the same label and host: the old one is gone, and the debt comes before all other work.
    let mut next = Puppet::unseen(&server, 2, "web-1");
    let work = server.submit(
        json!({"machinePattern": "^web-1$", "lateJoin": true, "detail": {"command": "true"}}),
    );
    let orders = next.poll(json!([]), json!([]));
    let owed = orders["undo"][0].clone();
    assert_eq!(
        (&owed["reason"], &owed["key"]),
        (&json!("owed"), &order["key"]),
        "{orders}"
    );
    let task = server.task(id(&task));
    assert_eq!(task["result"][0]["state"], "lost");
    assert_eq!(undo_of(&task)["state"], "running");
    // The answer did not arrive: it is handed out again.
    let orders = next.poll(json!([]), json!([]));
    assert_eq!(
        orders["undo"][0]["execution"], order["execution"],
        "{orders}"
    );
    let mut done = report(&owed, "done");
    done["reason"] = json!("owed");
    next.done(json!([]), json!([done]));
    let task = server.finished(id(&task));
    assert_eq!(
        (&task["state"], &task["clean"]),
        (&json!("failed"), &json!(true))
    );
    assert_eq!(
        (&undo_of(&task)["state"], &undo_of(&task)["reason"]),
        (&json!("done"), &json!("owed"))
    );
    drop(work);
}

#[test]
fn an_agent_that_says_goodbye_without_a_word_owes_it() {
    let server = Server::start();
    let mut agent = Puppet::new(&server, 1, "web-1");
    let task = server.submit(experiment("^web-1$"));
    let order = agent.ordered();
    let goodbye = json!({"instance": agent.instance, "holds": [hold(&order)]});
    server.post("/api/v1/agent/goodbye", &goodbye).data();
    let task = server.finished(id(&task));
    assert_eq!(undo_of(&task)["state"], "owed", "{task}");
    // Its switch acts 60 s after the last contact; ending the command takes 5 s at most, a try of the undo 30 s.
    let due = undo_of(&task)["dueAt"].as_str().unwrap();
    let due = humantime::parse_rfc3339(due).unwrap();
    let left = due.duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((60..=95).contains(&left), "{left} s");
    assert_eq!(
        server.get("/api/v1/status").data(),
        json!({"halt": null, "undosOpen": 1})
    );
    // Its guard reports later what it has done.
    let mut done = report(&order, "done");
    (done["by"], done["reason"]) = (json!("guard"), json!("agentLost"));
    agent.done(json!([]), json!([done]));
    let task = server.task(id(&task));
    assert_eq!(
        (&undo_of(&task)["state"], &undo_of(&task)["by"]),
        (&json!("done"), &json!("guard"))
    );
    assert!(undo_of(&task)["dueAt"].is_null(), "{task}");
    assert_eq!(server.get("/api/v1/status").data()["undosOpen"], 0);
}

#[test]
fn an_older_agent_is_not_handed_it_and_bad_values_are_refused() {
    let server = Server::start();
    let mut old = Puppet::new(&server, 1, "web-1");
    old.features = json!([]);
    old.poll(json!([]), json!([]));
    let task = server.submit(experiment("^web-1$"));
    old.poll(json!([]), json!([]));
    let task = server.finished(id(&task));
    let msg = task["result"][0]["msg"].as_str().unwrap();
    assert!(
        msg.starts_with("detail.undo: the agent on this machine"),
        "{msg}"
    );
    assert!(undo_of(&task).is_null(), "{task}");
    for (undo, timeout, why) in [
        (json!({}), json!(5), "detail.undo: needs command"),
        (
            json!({"command": "a", "argv": ["b"]}),
            json!(5),
            "has both command and argv",
        ),
        (
            json!({"command": "a", "check": "b", "checkArgv": ["c"]}),
            json!(5),
            "has both check and checkArgv",
        ),
        (
            json!({"command": "a"}),
            json!(-1),
            "detail.timeout: must not be -1 with an undo",
        ),
        (
            json!({"command": "a", "deadman": 5}),
            json!(5),
            "detail.undo.deadman: must be 10s or more",
        ),
        (
            json!({"command": "a", "timeout": 0}),
            json!(5),
            "detail.undo.timeout: must be above 0",
        ),
        (
            json!({"command": "a", "lock": ""}),
            json!(5),
            "detail.undo.lock: must not be empty",
        ),
        (
            json!({"command": "a", "commands": "b"}),
            json!(5),
            "unknown field `commands`",
        ),
        (json!(["a"]), json!(5), "expected an object"),
    ] {
        let detail = json!({"command": "x", "timeout": timeout, "undo": undo});
        let posted = json!({"machinePattern": ".", "detail": detail});
        let refused = server.post("/api/v1/task", &posted);
        assert!(
            refused.status == 400 && refused.msg().contains(why),
            "{}",
            refused.text()
        );
    }
}

#[test]
fn a_halt_ends_every_experiment_and_lets_none_begin() {
    let folder = Folder::new();
    let db = folder.file("db");
    let mut server = Server::with(&["--db", &db]);
    {
        let mut agent = Puppet::new(&server, 1, "web-1");
        let task = server.submit(experiment("^web-1$"));
        let plain =
            server.submit(json!({"machinePattern": "^web-1$", "detail": {"command": "true"}}));
        let orders = agent.poll(json!([]), json!([]));
        let orders = orders["start"].as_array().unwrap();
        let held: Vec<Value> = orders.iter().map(hold).collect();
        let halted = server
            .post("/api/v1/halt", &json!({"reason": "the shop is down"}))
            .data();
        assert_eq!(
            (&halted["canceled"], &halted["halt"]["all"]),
            (&json!(1), &json!(false))
        );
        let orders = agent.poll(json!(held), json!([]));
        assert_eq!(
            orders["cancel"].as_array().map(Vec::len),
            Some(1),
            "{orders}"
        );
        let refused = server.post("/api/v1/task", &experiment("^web-1$"));
        assert!(
            refused.status == 503 && refused.msg().contains("the shop is down"),
            "{}",
            refused.text()
        );
        server.submit(json!({"machinePattern": "^web-1$", "detail": {"command": "true"}}));
        drop((task, plain));
    }
    server.process.kill_9();
    let server = Server::with(&["--db", &db]);
    assert_eq!(
        server.get("/api/v1/halt").data()["reason"],
        "the shop is down"
    );
    let status = server.get("/api/v1/status").data();
    assert_eq!(status["halt"]["reason"], "the shop is down", "{status}");
    let all = server
        .post("/api/v1/halt?all=1", &json!({"reason": "all of it"}))
        .data();
    assert_eq!(all["halt"]["all"], true);
    let refused = server.post(
        "/api/v1/task",
        &json!({"machinePattern": ".", "detail": {"command": "true"}}),
    );
    assert_eq!(refused.status, 503, "{}", refused.text());
    server.request("DELETE", "/api/v1/halt", b"").data();
    assert!(server.get("/api/v1/halt").data().is_null());
    server.submit(experiment("^nobody$"));
    for (body, why) in [
        (json!({}), "missing field"),
        (json!({"reason": " "}), "reason: must have"),
    ] {
        let refused = server.post("/api/v1/halt", &body);
        assert!(
            refused.status == 400 && refused.msg().contains(why),
            "{}",
            refused.text()
        );
    }
}

#[test]
fn no_debt_is_lost_or_doubled_by_a_restart() {
    let folder = Folder::new();
    let db = folder.file("db");
    let mut server = Server::with(&["--db", &db]);
    let order = {
        let mut agent = Puppet::new(&server, 1, "web-1");
        let mut posted = experiment("^web-1$");
        posted["id"] = json!("kept");
        server.submit(posted);
        let order = agent.ordered();
        agent.done(json!([]), json!([report(&order, "armed")]));
        order
    };
    // Killed while it is armed.
    server.process.kill_9();
    server = Server::with(&["--db", &db]);
    assert_eq!(undo_of(&server.task("kept"))["state"], "armed");
    {
        let goodbye = json!({"instance": instance(1), "holds": [hold(&order)]});
        server.post("/api/v1/agent/goodbye", &goodbye).data();
        assert_eq!(undo_of(&server.task("kept"))["state"], "owed");
    }
    // Killed while it is owed.
    server.process.kill_9();
    server = Server::with(&["--db", &db]);
    assert_eq!(server.metric("sidebike_undos_open"), 1);
    {
        let mut next = Puppet::unseen(&server, 2, "web-1");
        let orders = next.poll(json!([]), json!([]));
        assert_eq!(orders["undo"][0]["key"], order["key"], "{orders}");
    }
    // Killed while it runs.
    server.process.kill_9();
    server = Server::with(&["--db", &db]);
    assert_eq!(undo_of(&server.task("kept"))["state"], "running");
    let mut done = report(&order, "done");
    done["reason"] = json!("owed");
    let body = json!({"instance": instance(2), "results": [], "undos": [done]});
    server.post("/api/v1/agent/done", &body).data();
    let task = server.task("kept");
    assert_eq!(
        (&undo_of(&task)["state"], &task["clean"]),
        (&json!("done"), &json!(true))
    );
    server.process.kill_9();
    let server = Server::with(&["--db", &db]);
    assert_eq!(undo_of(&server.task("kept"))["state"], "done");
    assert_eq!(server.metric("sidebike_undos_open"), 0);
}
