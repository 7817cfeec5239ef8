//! Old and new together: the version before and this one, as server, agent and command line.
//!
//! `SIDEBIKE_PREVIOUS` names the binary of the version before; `make test` builds it from the history
//! (`make previous`). Without it the tests are left out with a word.

mod common;

use common::{Agent, Folder, Process, SIDEBIKE, Server, id, is_gone, task, wait_for, wait_until};
use serde_json::{Value, json};
use std::process::Command;

/// The binary of the version before.
fn previous() -> Option<String> {
    let path = std::env::var("SIDEBIKE_PREVIOUS").ok();
    let path = path.filter(|path| std::path::Path::new(path).exists());
    if path.is_none() {
        eprintln!("left out: SIDEBIKE_PREVIOUS names no binary of the version before");
    }
    path
}

fn server(binary: &str, flags: &[&str]) -> Server {
    let mut command = Command::new(binary);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .args(flags);
    Server::from_command(command)
}

fn agent(binary: &str, server: &Server, label: &str) -> Agent {
    let mut command = Command::new(binary);
    command
        .arg("agent")
        .env("SIDEBIKE_MACHINE_LABEL", label)
        .env("SIDEBIKE_TAGS", "zone=cn-1")
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
    let agent = Agent(Process::start(command));
    server.expect(&[&agent]);
    agent
}

/// What a server and an agent do for each other, whichever is the older one.
fn work_together(server: &Server, agent: &mut Agent) {
    let mut posted = task("cat; echo $NAME; echo bad >&2; exit 3");
    posted["detail"]["stdin"] = "in\n".into();
    posted["detail"]["env"] = json!({"NAME": "value"});
    posted["retry"] = json!({"max": 1});
    let done = server.run(posted);
    let execution = &done["result"][0];
    assert_eq!(
        (&execution["state"], &execution["exitCode"]),
        (&json!("failed"), &json!(3))
    );
    assert_eq!(execution["attempt"], 2, "{done}");
    assert_eq!(
        (&execution["stdout"], &execution["stderr"]),
        (&json!("in\nvalue\n"), &json!("bad\n"))
    );

    let large = server.run(task("seq 1 200000"));
    assert_eq!(large["state"], "succeeded");
    assert!(
        large["result"][0]["truncatedBytes"].as_u64() > Some(0),
        "{}",
        large["counts"]
    );

    let mut slow = task("sleep 300");
    slow["detail"]["timeout"] = 1.into();
    assert_eq!(server.run(slow)["result"][0]["state"], "timedOut");

    let canceled = server.submit(task("echo $$; exec sleep 300"));
    let group = {
        let task = server.when(id(&canceled), "running", 1);
        wait_for("its output is there", || {
            server.task(id(&task))["result"][0]["stdout"] != ""
        });
        let stdout = server.task(id(&task))["result"][0]["stdout"].clone();
        stdout.as_str().unwrap().trim().parse().unwrap()
    };
    server
        .post(
            &format!("/api/v1/task/{}/cancel", id(&canceled)),
            &Value::Null,
        )
        .data();
    assert_eq!(server.finished(id(&canceled))["state"], "canceled");
    wait_for("its processes are gone", || is_gone(group));

    agent.0.signal(rustix::process::Signal::TERM);
    assert!(agent.0.ended().success());
    wait_for("it has said goodbye", || {
        server.machines()[0]["state"] == "offline"
    });
}

#[test]
fn an_agent_of_the_version_before_works_with_this_server() {
    let Some(previous) = previous() else { return };
    let server = server(SIDEBIKE, &[]);
    let mut agent = agent(&previous, &server, "m-old");
    work_together(&server, &mut agent);
}

#[test]
fn this_agent_works_with_a_server_of_the_version_before() {
    let Some(previous) = previous() else { return };
    let server = server(&previous, &[]);
    let mut agent = agent(SIDEBIKE, &server, "m-new");
    work_together(&server, &mut agent);
}

#[test]
fn both_command_lines_work_with_both_servers() {
    let Some(previous) = previous() else { return };
    for (cli, registry) in [(&*previous, SIDEBIKE), (SIDEBIKE, &*previous)] {
        let server = server(registry, &[]);
        let _agent = agent(SIDEBIKE, &server, "m1");
        let mut command = Command::new(cli);
        command
            .args(["run", "-m", "m1", "--", "echo hello; exit 7"])
            .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    }
}

#[test]
fn a_database_of_the_version_before_opens() {
    let Some(previous) = previous() else { return };
    let folder = Folder::new();
    let file = folder.file("old.db");
    let (finished, waiting) = {
        let server = server(&previous, &["--db", &file]);
        let _agent = agent(&previous, &server, "m1");
        let finished = server.run(task("echo kept"));
        let waiting = server.submit(json!({"machinePattern": "^later$", "ttl": "1h",
            "detail": {"command": "echo came"}}));
        let mut server = server;
        server.process.kill_9();
        (finished, waiting)
    };
    let server = server(SIDEBIKE, &["--db", &file]);
    assert_eq!(server.task(id(&finished))["result"][0]["stdout"], "kept\n");
    let _agent = agent(SIDEBIKE, &server, "later");
    let came = server.finished(id(&waiting));
    assert_eq!(came["result"][0]["stdout"], "came\n");
}

/// What the version before cannot read it refuses, in words; without such tasks it reads the file of this one.
#[test]
fn the_version_before_opens_a_database_of_this_one_unless_a_rollout_is_in_it() {
    let Some(previous) = previous() else { return };
    let folder = Folder::new();
    let file = folder.file("new.db");
    let plain = {
        let mut server = server(SIDEBIKE, &["--db", &file]);
        let _agent = agent(SIDEBIKE, &server, "m1");
        let plain = server.run(task("echo kept"));
        server.process.kill_9();
        plain
    };
    let rolled_out = {
        let mut old = server(&previous, &["--db", &file]);
        assert_eq!(old.task(id(&plain))["result"][0]["stdout"], "kept\n");
        old.process.kill_9();
        let mut server = server(SIDEBIKE, &["--db", &file]);
        let _agent = agent(SIDEBIKE, &server, "m1");
        let mut posted = task("echo stepped");
        posted["rollout"] = json!({});
        let rolled_out = server.run(posted);
        server.process.kill_9();
        rolled_out
    };
    let mut command = Command::new(&previous);
    command.args(["server", "--listen", "127.0.0.1:0", "--db", &file]);
    let mut refused = Process::start(command);
    assert_eq!(refused.ended().code(), Some(1));
    let why = refused.logged("it has version 3 and was written by a newer sidebike");
    assert!(why.contains("use the newer one"), "{why}");
    // It has not changed the file.
    let server = server(SIDEBIKE, &["--db", &file]);
    for (task, stdout) in [(&plain, "kept\n"), (&rolled_out, "stepped\n")] {
        assert_eq!(server.task(id(task))["result"][0]["stdout"], stdout);
    }
}

#[test]
fn an_agent_of_the_version_before_takes_part_in_a_rollout() {
    let Some(previous) = previous() else { return };
    let server = server(SIDEBIKE, &[]);
    let _old = agent(&previous, &server, "m-old");
    let _new = agent(SIDEBIKE, &server, "m-new");
    let posted = |command: &str| {
        let mut posted = task(command);
        posted["rollout"] = json!({"steps": [1, "100%"], "canary": "old", "pause": "approve"});
        posted
    };
    let submitted = server.submit(posted("echo on $SIDEBIKE_MACHINE_LABEL"));
    let paused = wait_until("it waits after the first step", || {
        let task = server.task(id(&submitted));
        (task["rolloutState"]["state"] == "paused").then_some(task)
    });
    assert_eq!(paused["detail"]["result"], json!(["on m-old"]));
    assert_eq!(paused["counts"]["held"], 1);
    let call = |id: &str, call: &str| {
        let target = format!("/api/v1/task/{id}/{call}");
        server.post(&target, &Value::Null).data()
    };
    call(id(&submitted), "resume");
    let done = server.finished(id(&submitted));
    assert_eq!(done["detail"]["result"], json!(["on m-old", "on m-new"]));
    // A stop with what runs reaches it as a cancel.
    let submitted = server.submit(posted("exec sleep 300"));
    server.when(id(&submitted), "running", 1);
    call(id(&submitted), "stop?running=1");
    let stopped = server.finished(id(&submitted));
    let counts = (
        &stopped["counts"]["canceled"],
        &stopped["counts"]["skipped"],
    );
    assert_eq!(counts, (&json!(1), &json!(1)), "{stopped}");
    // Only the new one has its tags.
    let mut tagged = task("true");
    tagged["machineTags"] = json!({"zone": "."});
    tagged["expect"] = 2.into();
    let refused = server.post("/api/v1/task", &tagged);
    let why = "expect: 2 machines were expected, 1 match: m-new";
    assert_eq!((refused.status, refused.msg()), (409, why.into()));
}

/// An agent may be newer than its server, which then is replaced while the agent goes on.
#[test]
fn tags_that_the_server_of_the_version_before_did_not_know_are_there_after_it_is_replaced() {
    let Some(previous) = previous() else { return };
    let folder = Folder::new();
    let file = folder.file("tags.db");
    let mut old = server(&previous, &["--db", &file]);
    let agent = agent(SIDEBIKE, &old, "m1");
    old.run(task("true"));
    let address = old.address.to_string();
    old.process.kill_9();
    let new = Server::listening_on(&address, &["--db", &file]);
    wait_for("its next poll", || {
        new.metric("sidebike_held_requests") == 1
    });
    let machine = &new.machines()[0];
    assert_eq!(machine["instance"], agent.instance());
    assert_eq!(machine["tags"], json!({"zone": "cn-1"}), "{machine}");
}
