//! Cancel and rerun: canceled is canceled, and what did not succeed can be tried again.

mod common;

use common::http::request;
use common::{Agent, Folder, Server, id, is_gone, task, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn cancel(server: &Server, task: &Value, query: &str) -> Value {
    let path = format!("/api/v1/task/{}/cancel{query}", id(task));
    server.post(&path, &Value::Null).data()
}

/// The process group of a command that begins with `echo $$`, once it has said so.
fn group_of(server: &Server, task: &Value) -> i32 {
    let path = format!("/api/v1/task/{}/output?stream=stdout", id(task));
    wait_until("the command says its number", || {
        server.get(&path).text().lines().next()?.parse().ok()
    })
}

#[test]
fn a_running_command_is_killed_with_its_whole_group() {
    let server = Server::start();
    let _agent = server.agent("m");
    let running = server.submit(task("echo $$; sleep 300 & sleep 300"));
    let group = group_of(&server, &running);
    cancel(&server, &running, "");
    let done = server.finished(id(&running));
    assert_eq!(
        (&done["state"], &done["status"]),
        (&json!("canceled"), &json!(3))
    );
    let execution = &done["result"][0];
    assert_eq!(
        (&execution["state"], &execution["status"]),
        (&json!("canceled"), &json!(2))
    );
    assert!(!execution["msg"].as_str().unwrap().is_empty());
    wait_for("the group is gone", || is_gone(group));
}

#[test]
fn a_command_that_ignores_term_is_killed_after_the_grace() {
    let server = Server::start();
    let _agent = server.agent("m");
    let mut posted = task("trap '' TERM; echo $$; sleep 300 & while :; do sleep 300; done");
    posted["detail"]["killGrace"] = 0.5.into();
    let running = server.submit(posted);
    let group = group_of(&server, &running);
    let asked = Instant::now();
    cancel(&server, &running, "");
    let done = server.finished(id(&running));
    assert!(asked.elapsed() >= Duration::from_millis(400), "no grace");
    assert_eq!(done["result"][0]["signal"], "SIGKILL");
    assert_eq!(done["state"], "canceled");
    wait_for("the group is gone", || is_gone(group));
}

#[test]
fn what_is_queued_never_starts() {
    let (server, folder) = (Server::start(), Folder::new());
    let agent = Agent::start(server.address, "m", &[("SIDEBIKE_JOBS", "1")]);
    server.expect(&[&agent]);
    let busy = server.submit(task("sleep 300"));
    server.when(id(&busy), "running", 1);
    let mut posted = task("echo started >> starts");
    posted["detail"]["workspace"] = folder.path().into();
    let queued = server.submit(posted.clone());
    let canceled = cancel(&server, &queued, "");
    assert_eq!(
        (&canceled["state"], &canceled["counts"]["canceled"]),
        (&json!("canceled"), &json!(1))
    );
    cancel(&server, &busy, "");
    // What comes after it has run, so its turn would have come.
    posted["detail"]["command"] = "echo later >> starts".into();
    server.run(posted);
    assert_eq!(folder.lines("starts"), ["later"]);
    assert_eq!(
        server.task(id(&queued))["result"][0]["startedAt"],
        Value::Null
    );
}

#[test]
fn a_waiting_task_is_canceled_and_a_later_machine_does_not_get_it() {
    let server = Server::start();
    let waiting = server.submit(task("true"));
    assert_eq!(waiting["state"], "waiting");
    assert_eq!(cancel(&server, &waiting, "")["state"], "canceled");
    let mut any = task("true");
    any["mode"] = "any".into();
    let any = server.submit(any);
    assert_eq!(cancel(&server, &any, "")["state"], "canceled");
    let _agent = server.agent("m");
    server.run(task("true"));
    assert_eq!(server.task(id(&waiting))["matched"], 0);
    assert_eq!(server.task(id(&any))["counts"]["canceled"], 1);
}

#[test]
fn some_machines_are_canceled_by_label_or_instance() {
    let server = Server::start();
    let (twins, other) = (server.agents(2, "m-twin"), server.agent("m-other"));
    let running = server.submit(task("sleep 300"));
    server.when(id(&running), "running", 3);

    cancel(&server, &running, "?machine=m-twin");
    let task = server.when(id(&running), "canceled", 2);
    assert_eq!(
        (&task["state"], &task["counts"]["running"]),
        (&json!("running"), &json!(1))
    );

    cancel(&server, &running, &format!("?machine={}", other.instance()));
    let done = server.finished(id(&running));
    assert_eq!(
        (&done["state"], &done["counts"]["canceled"]),
        (&json!("canceled"), &json!(3))
    );
    drop(twins);
}

#[test]
fn one_of_two_replicas_is_canceled_by_its_instance() {
    let server = Server::start();
    let twins = server.agents(2, "m");
    let running = server.submit(task("sleep 300"));
    server.when(id(&running), "running", 2);
    cancel(
        &server,
        &running,
        &format!("?machine={}", twins[0].instance()),
    );
    let task = server.when(id(&running), "canceled", 1);
    for execution in task["result"].as_array().unwrap() {
        let own = execution["instance"] == *twins[0].instance();
        assert_eq!(execution["state"], if own { "canceled" } else { "running" });
    }
}

#[test]
fn a_machine_that_has_none_of_it_is_an_error() {
    let server = Server::start();
    let waiting = server.submit(task("true"));
    let path = format!("/api/v1/task/{}/cancel", id(&waiting));
    for (query, status) in [
        ("?machine=nobody", 422),
        ("?machine=", 400),
        ("?label=m", 400),
    ] {
        let reply = server.post(&format!("{path}{query}"), &Value::Null);
        assert_eq!(reply.status, status, "{query}: {}", reply.text());
    }
    assert_eq!(server.task(id(&waiting))["state"], "waiting");
}

#[test]
fn an_ended_task_stays_as_it_is() {
    let server = Server::start();
    let _agent = server.agent("m");
    let done = server.run(task("echo done"));
    assert_eq!(cancel(&server, &done, ""), done);
    assert_eq!(cancel(&server, &done, "?machine=m"), done);
}

#[test]
fn a_cancel_that_races_with_the_end_gives_one_of_two_outcomes() {
    let server = Server::start();
    let _agents = server.agents(2, "m");
    for n in 0..20 {
        let running = server.submit(task("sleep 0.05; echo ran"));
        // The cancel hits it now before, now at, now after its end.
        std::thread::sleep(Duration::from_millis(n * 5));
        cancel(&server, &running, "");
        let done = server.finished(id(&running));
        for execution in done["result"].as_array().unwrap() {
            let lines = execution["output"].as_array().unwrap().len();
            match execution["state"].as_str().unwrap() {
                "succeeded" => assert_eq!(lines, 1, "{execution}"),
                // It may have ended by itself in the same moment, with whatever exit code.
                "canceled" => assert_ne!(execution["msg"], "", "{execution}"),
                state => panic!("{state}: {execution}"),
            }
        }
        cancel(&server, &running, "");
        assert_eq!(server.task(id(&running)), done, "a terminal state changed");
    }
}

fn rerun(server: &Server, task: &Value, query: &str) -> common::http::Reply {
    let path = format!("/api/v1/task/{}/rerun{query}", id(task));
    server.post(&path, &Value::Null)
}

#[test]
fn a_rerun_goes_where_it_did_not_succeed() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = (server.agent("m1"), server.agent("m2"), server.agent("m3"));
    let mut posted = task("test $SIDEBIKE_MACHINE_LABEL = m1 || test -e good");
    posted["name"] = "N".into();
    posted["detail"]["workspace"] = folder.path().into();
    let first = server.run(posted);
    assert_eq!(
        (&first["state"], &first["counts"]["failed"]),
        (&json!("partial"), &json!(2))
    );

    std::fs::write(folder.file("good"), "").unwrap();
    let second = rerun(&server, &first, "?wait=30s").data();
    assert_ne!(second["id"], first["id"]);
    assert_eq!(
        (&second["name"], &second["state"]),
        (&json!("N"), &json!("succeeded"))
    );
    assert_eq!(second["assignees"], json!(["m2", "m3"]));
    assert_eq!(second["detail"]["command"], first["detail"]["command"]);
    assert_eq!(second["rerunOf"], first["id"]);
    assert!(first["rerunOf"].is_null());
    assert_eq!(server.task(id(&first)), first, "the first one stays");
}

#[test]
fn a_rerun_of_all_runs_everywhere_again() {
    let server = Server::start();
    let _agents = server.agents(2, "m");
    let first = server.run(task("true"));
    let second = rerun(&server, &first, "?all=1&wait=30s").data();
    assert_eq!(second["counts"]["succeeded"], 2);
}

#[test]
fn an_any_task_is_rerun_as_one() {
    let server = Server::start();
    let _agents = server.agents(2, "m");
    let mut posted = task("false");
    posted["mode"] = "any".into();
    let first = server.run(posted);
    let second = rerun(&server, &first, "?wait=30s").data();
    assert_eq!(
        (&second["mode"], &second["counts"]["failed"]),
        (&json!("any"), &json!(1))
    );
    assert_eq!(second["rerunOf"], first["id"]);
}

#[test]
fn where_there_is_nothing_to_rerun_it_says_so() {
    let server = Server::start();
    let agent = server.agent("m");
    let good = server.run(task("true"));
    let refused = rerun(&server, &good, "");
    assert_eq!(refused.status, 422);
    assert!(refused.msg().contains("all=1"), "{}", refused.msg());
    assert_eq!(rerun(&server, &good, "?all=maybe").status, 400);

    let bad = server.run(task("false"));
    let running = server.submit(task("sleep 300"));
    let refused = rerun(&server, &running, "");
    assert_eq!(refused.status, 409);
    assert!(refused.msg().contains("yet"), "{}", refused.msg());
    cancel(&server, &running, "");
    server.finished(id(&running));

    agent.0.signal(Signal::TERM);
    wait_for("the agent says goodbye", || {
        server.machines()[0]["state"] == "offline"
    });
    let refused = rerun(&server, &bad, "");
    assert_eq!(refused.status, 422);
    assert!(refused.msg().contains("machines"), "{}", refused.msg());
    assert_eq!(server.metric("sidebike_tasks_submitted_total"), 3);
}

#[test]
fn a_task_of_many_executions_is_canceled_in_slices_with_those_that_wait_for_it() {
    let folder = Folder::new();
    let mut server = Server::with(&["--db", &folder.file("db")]);
    let running = server.agent("m");
    let mut connection = server.connect();
    for n in 0..450 {
        let poll = json!({"instance": format!("{n:08x}"), "seq": 1, "label": "m-queued",
            "host": "h", "version": "1", "jobs": 1, "wait": 0, "holds": []});
        let poll = request(
            "POST",
            "/api/v1/agent/poll",
            "",
            poll.to_string().as_bytes(),
        );
        connection.send(&poll);
        connection.read().data();
    }
    server.expect(&[&running]);
    let task = |id: &str, after: Value| {
        json!({
            "id": id, "machinePattern": "^m", "after": after,
            "detail": {"command": "exec sleep 600"}
        })
    };
    server.submit(task("many", json!([])));
    server.submit(task("next", json!([{"task": "many", "on": "ended"}])));
    server.when("many", "running", 1);
    let canceled = server.post("/api/v1/task/many/cancel?dependents=1", &json!(null));
    assert_eq!(canceled.status, 200, "{}", canceled.text());
    assert_eq!(canceled.data()["counts"]["queued"], 0);
    assert_eq!(canceled.data()["counts"]["delivered"], 0);
    let many = server.finished("many");
    assert_eq!(many["counts"]["canceled"], 451, "{}", many["counts"]);
    assert_eq!(many["state"], "canceled");
    assert_eq!(server.finished("next")["state"], "canceled");
    server.process.kill_9();
    server = Server::with(&["--db", &folder.file("db")]);
    assert_eq!(server.task("many")["counts"]["canceled"], 451);
}
