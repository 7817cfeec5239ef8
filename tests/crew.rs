//! The agents as a crew, against the real binary: suspensions, drains, shutdowns; over restarts of the server; and the
//! commands for them.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::puppet::{Puppet, ended, hold};
use common::{Agent, Folder, Process, SIDEBIKE, Server, id, task, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

const SUSPEND: &str = "/api/v1/suspend";

fn suspend(server: &Server, body: Value) -> Value {
    server.post(SUSPEND, &body).data()
}

fn lift(server: &Server) -> Value {
    server.request("DELETE", SUSPEND, b"").data()
}

fn tell(server: &Server, name: &str, errand: &str) -> Value {
    server
        .post(&format!("/api/v1/machine/{name}/{errand}"), &json!({}))
        .data()
}

/// What the command line prints.
fn sidebike(server: &Server, args: &[&str]) -> (i32, String) {
    let output = Command::new(SIDEBIKE)
        .args(args)
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string())
        .output()
        .expect("the binary starts");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("UTF-8");
    (output.status.code().unwrap_or(-1), text)
}

fn state(server: &Server, label: &str) -> Value {
    let machines = server.machines().into_iter();
    let mut own = machines.filter(|machine| machine["label"] == label);
    own.next_back().expect("the machine is known")
}

#[test]
fn nothing_is_handed_out_while_suspended_and_no_ttl_runs() {
    let server = Server::start();
    let mut m = Puppet::new(&server, 1, "m");
    suspend(
        &server,
        json!({"machinePattern": "^m$", "reason": "disk swap"}),
    );
    let short = |mode: &str| json!({"machinePattern": "^m$", "ttl": "500ms", "mode": mode, "detail": {"command": "true"}});
    let (all, any) = (server.submit(short("all")), server.submit(short("any")));
    assert!(m.poll(json!([]), json!([]))["start"].is_null());
    // Much longer than the ttl; a task for another machine says that it would be over.
    let control = json!({"machinePattern": "^x$", "ttl": "1500ms", "detail": {"command": "true"}});
    assert_eq!(server.run(control)["state"], "expired");
    for task in [&all, &any] {
        let task = server.task(id(task));
        assert_eq!(task["counts"]["queued"], 1, "{task}");
        let msg = task["result"][0]["msg"].as_str().unwrap_or_default();
        assert!(msg.contains("suspended: disk swap"), "{task}");
    }
    assert_eq!(state(&server, "m")["suspended"], "disk swap");
    assert_eq!(server.metric("sidebike_suspensions"), 1);
    // One that appears meanwhile is suspended, too.
    let mut late = Puppet::new(&server, 2, "m");
    assert!(late.poll(json!([]), json!([]))["start"].is_null());

    assert_eq!(lift(&server).as_array().map(Vec::len), Some(1));
    let mut orders = m.reply(json!({})).data()["start"].take();
    let handed = |orders: &Value| orders.as_array().map_or(0, Vec::len);
    assert_eq!(handed(&orders), 2, "{orders}");
    let results: Vec<Value> = { orders.as_array_mut().unwrap().iter() }
        .map(|order| ended(order, "succeeded"))
        .collect();
    m.done(json!(results), json!([]));
    assert_eq!(server.finished(id(&any))["state"], "succeeded");
}

#[test]
fn what_runs_goes_on_and_is_canceled_and_the_end_comes_by_itself() {
    let server = Server::start();
    let mut m = Puppet::new(&server, 1, "m");
    let running = server.submit(task("sleep 600"));
    let order = m.ordered();
    m.poll(json!([hold(&order)]), json!([]));
    suspend(&server, json!({"machinePattern": ".*", "for": "2s"}));
    let waiting = server.submit(task("true"));
    server.post(&format!("/api/v1/task/{}/cancel", id(&running)), &json!({}));
    let orders = m.poll(json!([hold(&order)]), json!([]));
    assert_eq!(
        orders["cancel"].as_array().map(Vec::len),
        Some(1),
        "{orders}"
    );
    assert!(orders["start"].is_null(), "{orders}");
    // It is handed out with the poll that is held when the time is over.
    m.done(json!([ended(&order, "canceled")]), json!([]));
    let orders = m.reply(json!({"wait": "20s"})).data();
    assert_eq!(
        orders["start"].as_array().map(Vec::len),
        Some(1),
        "{orders}"
    );
    assert_eq!(orders["start"][0]["taskId"], waiting["id"]);
    assert_eq!(server.get(SUSPEND).data(), json!([]));
}

#[test]
fn what_is_wrong_with_a_suspension_is_said() {
    let server = Server::start();
    for (body, status, field) in [
        (json!({}), 400, "machinePattern"),
        (json!({"machinePattern": "("}), 400, "machinePattern"),
        (json!({"machinePattern": "a", "for": "0s"}), 400, "for"),
        (json!({"machinePattern": "a", "for": "9000d"}), 400, "for"),
        (json!({"machinePattern": "a", "until": "1s"}), 400, "until"),
        (
            json!({"machinePattern": "a", "reason": "x".repeat(1025)}),
            400,
            "reason",
        ),
    ] {
        let reply = server.post(SUSPEND, &body);
        let msg = reply.json()["msg"].as_str().unwrap_or_default().to_owned();
        assert_eq!(reply.status, status, "{body}: {msg}");
        assert!(msg.contains(field), "{body}: {msg}");
    }
    for n in 0..100 {
        suspend(&server, json!({"machinePattern": format!("^m{n}$")}));
    }
    let reply = server.post(SUSPEND, &json!({"machinePattern": "more"}));
    assert_eq!(reply.status, 503, "{}", reply.text());
    // The same pattern again replaces the reason.
    suspend(&server, json!({"machinePattern": "^m1$", "reason": "why"}));
    assert_eq!(server.get(SUSPEND).data()[1]["reason"], "why");
    let one = format!("{SUSPEND}?machinePattern=%5Em1%24");
    assert_eq!(server.request("DELETE", &one, b"").status, 200);
    assert_eq!(server.request("DELETE", &one, b"").status, 404);
    assert_eq!(lift(&server).as_array().map(Vec::len), Some(99));
}

#[test]
fn an_agent_that_is_told_drains_works_again_and_ends() {
    let server = Server::start();
    let mut agent = server.agent("m");
    let answer = tell(&server, "m", "drain");
    assert_eq!(answer[0]["wanted"], "drain", "{answer}");
    assert_eq!(answer[0]["state"], "draining", "{answer}");
    agent
        .0
        .logged("taking no more work until it says otherwise");
    let confirmed = || {
        let machine = state(&server, "m");
        (machine["state"] == "draining" && machine["wanted"].is_null()).then_some(())
    };
    wait_until("the agent says that it drains", confirmed);
    let waiting = json!({"machinePattern": "^m$", "ttl": "1h", "detail": {"command": "true"}});
    let waiting = server.submit(waiting);
    assert_eq!(server.task(id(&waiting))["state"], "waiting");
    tell(&server, "m", "undrain");
    agent.0.logged("taking work again");
    assert_eq!(server.finished(id(&waiting))["state"], "succeeded");
    // It does as after TERM: what runs has its grace, and is reported.
    let running = server.submit(task("trap '' TERM; sleep 600 & wait"));
    server.when(id(&running), "running", 1);
    let instance = agent.instance();
    tell(&server, &instance, "shutdown");
    agent.0.logged("taking no more work, and ending");
    assert!(agent.0.ended().success());
    let ended = server.finished(id(&running));
    assert_ne!(ended["state"], "succeeded", "{ended}");
    assert_eq!(state(&server, "m")["wanted"], Value::Null);
    let gone = server.post(&format!("/api/v1/machine/{instance}/drain"), &json!({}));
    assert_eq!(gone.status, 404, "{}", gone.text());
}

#[test]
fn one_that_cannot_be_told_is_handed_nothing_and_not_shut_down() {
    let server = Server::start();
    let mut old = Puppet::new(&server, 1, "m");
    let queued = server.submit(task("true"));
    tell(&server, "m", "drain");
    let orders = old.poll(json!([]), json!([]));
    assert!(
        orders["start"].is_null() && orders["crew"].is_null(),
        "{orders}"
    );
    assert_eq!(state(&server, "m")["state"], "draining");
    let refused = server.post("/api/v1/machine/m/shutdown", &json!({}));
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("cannot be shut down by the server"));
    tell(&server, "m", "undrain");
    assert_eq!(old.ordered()["taskId"], queued["id"]);
    let unknown = server.post("/api/v1/machine/none/drain", &json!({}));
    assert_eq!(unknown.status, 404);
}

#[test]
fn a_restart_forgets_neither_suspensions_nor_wishes() {
    let folder = Folder::new();
    let file = folder.file("crew.db");
    let flags = ["--db", &file];
    let mut server = Server::with(&flags);
    let agent = server.agent("m");
    tell(&server, "m", "drain");
    wait_for("it is drained", || state(&server, "m")["wanted"].is_null());
    let old = Puppet::new(&server, 2, "old");
    tell(&server, "old", "drain");
    suspend(
        &server,
        json!({"machinePattern": "^db", "reason": "why", "for": "1h"}),
    );
    let waiting = json!({"machinePattern": "^(m|old)$", "mode": "any", "ttl": "1h", "detail": {"command": "true"}});
    let waiting = server.submit(waiting);
    let (seq, instance) = (9, old.instance.clone());
    let address = server.address.to_string();
    server.process.kill_9();
    let server = Server::listening_on(&address, &flags);
    let suspensions = server.get(SUSPEND).data();
    assert_eq!(suspensions[0]["reason"], "why", "{suspensions}");
    assert!(suspensions[0]["until"].is_string(), "{suspensions}");
    let poll = json!({
        "instance": instance, "seq": seq, "label": "old", "jobs": 1, "wait": 0, "holds": [],
    });
    let orders = server.post("/api/v1/agent/poll", &poll).data();
    assert!(orders["start"].is_null(), "{orders}");
    agent.0.logged("the server is back");
    assert_eq!(server.task(id(&waiting))["state"], "waiting");
    wait_for("it has polled", || {
        state(&server, "m")["state"] == "draining"
    });
    tell(&server, "m", "undrain");
    assert_eq!(server.finished(id(&waiting))["state"], "succeeded");
}

#[test]
fn the_time_of_what_waits_stands_still_over_a_restart() {
    let folder = Folder::new();
    let file = folder.file("crew.db");
    let flags = ["--db", &file];
    let mut server = Server::with(&flags);
    let agent = server.agent("m");
    suspend(&server, json!({"machinePattern": "^m$"}));
    let short = |mode: &str| json!({"machinePattern": "^m$", "ttl": "2s", "mode": mode, "detail": {"command": "true"}});
    let tasks = [server.submit(short("any")), server.submit(short("all"))];
    let control = json!({"machinePattern": "^x$", "ttl": "4s", "detail": {"command": "true"}});
    assert_eq!(server.run(control)["state"], "expired");
    let address = server.address.to_string();
    server.process.kill_9();
    let server = Server::listening_on(&address, &flags);
    server.expect(&[&agent]);
    lift(&server);
    for task in tasks {
        assert_eq!(server.finished(id(&task))["state"], "succeeded");
    }
}

#[test]
fn the_commands() {
    let server = Server::start();
    let mut agent = server.agent("m");
    let (code, text) = sidebike(&server, &["suspend"]);
    assert_eq!((code, &*text), (0, "nothing is suspended\n"));
    let args = ["suspend", "^m$", "--for", "10m", "--reason", "disk swap"];
    let (code, text) = sidebike(&server, &args);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.starts_with("suspended: ^m$ until ") && text.ends_with(": disk swap\n"),
        "{text}"
    );
    let (_, text) = sidebike(&server, &["suspend"]);
    assert!(
        text.contains("MACHINES") && text.contains("disk swap"),
        "{text}"
    );
    let (_, text) = sidebike(&server, &["machines"]);
    assert!(text.contains("online, suspended"), "{text}");
    let (code, text) = sidebike(&server, &["suspend", "--lift", "^m$"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("lifted: ^m$"), "{text}");
    let (code, text) = sidebike(&server, &["suspend", "--for", "1m"]);
    assert_eq!(code, 2, "{text}");
    let (code, text) = sidebike(&server, &["suspend", "m", "--for", "0s"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("--for: must be from"), "{text}");

    let (code, text) = sidebike(&server, &["drain", "m"]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.starts_with("m (") && text.ends_with("is told to drain\n"),
        "{text}"
    );
    wait_for("it drains", || state(&server, "m")["wanted"].is_null());
    let (_, text) = sidebike(&server, &["drain", "m"]);
    assert!(text.ends_with(" drains\n"), "{text}");
    let (_, text) = sidebike(&server, &["drain", "--lift", "m"]);
    assert!(text.contains("take"), "{text}");
    let (code, _) = sidebike(&server, &["drain", "--shutdown", "m"]);
    assert_eq!(code, 0);
    assert!(agent.0.ended().success());
    let (code, text) = sidebike(&server, &["drain", "none"]);
    assert_eq!(code, 1);
    assert!(text.contains("no machine has the label \"none\""), "{text}");
}

#[test]
fn the_audit_names_machines_and_suspensions() {
    let folder = Folder::new();
    let file = folder.file("audit");
    let server = Server::with(&["--audit", &file]);
    let _m = Puppet::new(&server, 1, "m");
    suspend(
        &server,
        json!({"machinePattern": "^m$", "reason": "disk swap"}),
    );
    tell(&server, "m", "drain");
    lift(&server);
    folder.until("audit", 3);
    let lines = folder.json_lines("audit");
    assert_eq!(lines[0]["machinePattern"], "^m$");
    assert_eq!(lines[0]["reason"], "disk swap");
    assert_eq!(lines[1]["call"], "POST /api/v1/machine/m/drain");
    assert_eq!(lines[1]["machines"], json!(["m"]));
    assert_eq!(lines[2]["machinePattern"], "^m$");
}

#[test]
fn a_second_term_kills_also_one_that_the_server_shuts_down() {
    let server = Server::start();
    let mut agent: Agent = Agent::start(server.address, "m", &[("SIDEBIKE_GRACE", "10m")]);
    server.expect(&[&agent]);
    let running = server.submit(task("sleep 600"));
    server.when(id(&running), "running", 1);
    tell(&server, "m", "shutdown");
    agent.0.logged("taking no more work, and ending");
    agent.0.signal(Signal::TERM);
    agent.0.logged("TERM: taking no more work");
    std::thread::sleep(std::time::Duration::from_millis(200));
    agent.0.signal(Signal::TERM);
    assert_eq!(agent.0.ended().code(), Some(128 + 15));
}

fn agent_with(server: &Server, flags: &[&str]) -> Agent {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["agent", "--machine-label", "m"])
        .args(flags)
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
    Agent(Process::start(command))
}

#[test]
fn an_agent_works_off_what_there_is_and_ends() {
    let server = Server::start();
    let ids: Vec<String> = (0..3)
        .map(|_| {
            let task = json!({
                "machinePattern": "^m$", "mode": "any", "detail": {"command": "true"},
                "retry": {"max": 1, "interval": ["1500ms"], "on": ["failed"]},
            });
            id(&server.submit(task)).to_owned()
        })
        .collect();
    // Longer than the idle time lies between its two attempts: that is waited for.
    let folder = Folder::new();
    let retried = json!({
        "machinePattern": "^m$", "mode": "any",
        "detail": {"command": format!("test -e {0} || {{ touch {0}; exit 1; }}", folder.file("a"))},
        "retry": {"max": 1, "interval": ["2500ms"], "on": ["failed"]},
    });
    let retried = server.submit(retried);
    let begun = Instant::now();
    let mut agent = agent_with(&server, &["--until-idle", "1s"]);
    assert!(agent.0.ended().success());
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    for id in &ids {
        assert_eq!(server.task(id)["state"], "succeeded");
    }
    assert_eq!(server.task(id(&retried))["state"], "succeeded");
    assert!(
        agent
            .0
            .log()
            .iter()
            .any(|line| line.contains("--until-idle: "))
    );
}

#[test]
fn an_agent_ends_soon_after_its_last_command_although_its_poll_is_held() {
    let server = Server::start();
    let mut agent = agent_with(&server, &["--until-idle", "2s"]);
    server.expect(&[&agent]);
    let ran = server.run(json!({"machinePattern": "^m$", "detail": {"command": "sleep 1"}}));
    assert_eq!(ran["state"], "succeeded");
    let ended = Instant::now();
    assert!(agent.0.ended().success());
    // Far below the 20 s for which a poll of an agent with work is held.
    assert!(
        ended.elapsed() < Duration::from_secs(12),
        "{:?}",
        ended.elapsed()
    );
}

#[test]
fn what_is_queued_for_a_suspended_machine_is_pending_and_max_idle_waits_for_it() {
    let server = Server::start();
    suspend(&server, json!({"machinePattern": "^m$"}));
    server.submit(json!({
        "machinePattern": "^m$", "mode": "any", "ttl": "1h", "detail": {"command": "true"},
    }));
    let mut until = agent_with(&server, &["--until-idle", "300ms"]);
    let mut idle = agent_with(&server, &["--max-idle", "300ms"]);
    server.expect(&[&until, &idle]);
    // One with the same idle time and nothing to wait for ends meanwhile.
    let mut other = Command::new(SIDEBIKE);
    other
        .args(["agent", "--machine-label", "other", "--until-idle", "2s"])
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
    assert!(Agent(Process::start(other)).0.ended().success());
    assert!(
        idle.0.is_alive(),
        "the time while it is suspended does not count"
    );
    lift(&server);
    assert!(idle.0.ended().success());
    // Either of the two ran it; the other one has nothing to wait for any more.
    assert!(until.0.ended().success());
}

#[test]
fn an_agent_ends_after_its_last_command_and_takes_no_more() {
    let server = Server::start();
    let tasks: Vec<Value> = (0..5)
        .map(|_| {
            server.submit(json!({
                "machinePattern": "^m$", "mode": "any", "ttl": "1h",
                "detail": {"command": "true"},
            }))
        })
        .collect();
    let mut agent = agent_with(&server, &["--max-commands", "3"]);
    assert!(agent.0.ended().success());
    let states: Vec<Value> = { tasks.iter() }
        .map(|task| server.task(id(task))["state"].clone())
        .collect();
    let done = states.iter().filter(|state| *state == "succeeded").count();
    assert_eq!(done, 3, "{states:?}");
    assert_eq!(states.iter().filter(|state| *state == "waiting").count(), 2);
}

#[test]
fn the_summary_says_what_waits_and_for_what() {
    let server = Server::start();
    let _m = Puppet::new(&server, 1, "m");
    let _n = Puppet::new(&server, 2, "n");
    let nobody = server
        .submit(json!({"machinePattern": "^x$", "mode": "any", "detail": {"command": "true"}}));
    let summary = server.get("/api/v1/summary").data();
    assert_eq!(summary["oldest"]["id"], nobody["id"], "{summary}");
    assert_eq!(summary["machines"]["online"], 2);
    assert_eq!(summary["tasks"]["waiting"], 1);
    assert_eq!(summary["labels"][0]["label"], "m");
    let (code, text) = sidebike(&server, &["info", "--labels"]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("oldest ") && text.contains("none that matches is online"),
        "{text}"
    );
    assert!(text.contains("LABEL"), "{text}");
    suspend(&server, json!({"machinePattern": "^m$", "reason": "why"}));
    let (_, text) = sidebike(&server, &["info"]);
    assert!(text.starts_with("suspended: ^m$: why"), "{text}");
}

#[test]
fn a_task_says_that_the_machines_which_match_take_no_work() {
    let server = Server::start();
    let mut agent = Puppet::new(&server, 1, "m");
    suspend(
        &server,
        json!({"machinePattern": "^m$", "reason": "disk swap"}),
    );
    let any = json!({"machinePattern": "^m$", "mode": "any", "detail": {"command": "true"}});
    let any = server.submit(any);
    assert_eq!(
        server.task(id(&any))["msg"],
        "waits: ^m$ is suspended: disk swap"
    );
    lift(&server);
    tell(&server, "m", "drain");
    agent.poll(json!([]), json!([]));
    let all = server.submit(json!({"machinePattern": "^m$", "detail": {"command": "true"}}));
    let msg = "no machine that matches takes work now, 1 draining and 0 offline; it goes to the first that does within its ttl";
    assert_eq!(server.task(id(&all))["msg"], msg);
}
