//! Agents that replace their own program: real binaries, which differ in the bytes after their end, and scripts that only
//! look like one. Whatever goes wrong, the old one runs on and says why.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::said::sidebike;
use common::{Folder, Process, SIDEBIKE, Server, id, sha256, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::env::consts::ARCH;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The shortest probation.
const PROBATION: &str = "5s";

/// The binary without what only a debugger needs: it is copied often.
fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let folder = Folder::new();
        let stripped = folder.file("stripped");
        let done = Command::new("strip")
            .args(["-o", &stripped, SIDEBIKE])
            .status();
        match done.is_ok_and(|status| status.success()) {
            true => fs::read(stripped).unwrap(),
            false => fs::read(SIDEBIKE).unwrap(),
        }
    })
}

/// The same program with another hash.
fn other_image(end: &str) -> Vec<u8> {
    [image(), end.as_bytes()].concat()
}

/// An agent with a program of its own.
struct Updated {
    folder: Folder,
    process: Process,
}

impl Updated {
    fn command(program: &str, label: &str, address: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["agent", "--self-update", "--machine-label", label]);
        command.args(["--registry-address", address]);
        command
    }

    fn start(server: &Server, label: &str, change: impl FnOnce(&mut Command)) -> Updated {
        let folder = Folder::new();
        folder.program("sidebike", image());
        let address = server.address.to_string();
        let mut command = Updated::command(&folder.file("sidebike"), label, &address);
        change(&mut command);
        let process = Process::start(command);
        let updated = Updated { folder, process };
        wait_for("the agent is there", || is_online(server, label));
        updated
    }

    /// The names in its folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// What it runs.
    fn runs(&self) -> String {
        let pid = self.process.pid().as_raw_nonzero();
        sha256(&fs::read(format!("/proc/{pid}/exe")).unwrap())
    }

    fn lies_there(&self) -> String {
        sha256(&fs::read(self.folder.file("sidebike")).unwrap())
    }
}

fn is_online(server: &Server, label: &str) -> bool {
    let machines = server.machines();
    let mut own = machines.iter().filter(|machine| machine["label"] == label);
    own.any(|machine| machine["state"] == "online")
}

/// Brings an image, and makes the task that has agents run it.
fn update_to(server: &Server, bytes: &[u8]) -> Value {
    let brought = server.request("PUT", "/api/v1/file/sidebike", bytes).data();
    let sha256 = sha256(bytes);
    assert_eq!(brought["sha256"], *sha256);
    task_for(VERSION, ARCH, &sha256)
}

fn task_for(version: &str, arch: &str, sha256: &str) -> Value {
    json!({
        "machinePattern": ".*",
        "update": {"version": version, "images": {arch: sha256}, "probation": PROBATION}
    })
}

/// The only result of a task that has ended.
fn result(task: &Value) -> (&str, &str) {
    let result = &task["result"][0];
    (
        result["state"].as_str().unwrap(),
        result["msg"].as_str().unwrap(),
    )
}

fn runs_commands(server: &Server) {
    let task = server.run(json!({"machinePattern": ".*", "detail": {"command": "echo well"}}));
    assert_eq!(task["state"], "succeeded", "{task}");
}

/// Between an agent and its server. While a new program is on probation, it either answers with 500 or not at all.
struct Gate {
    address: SocketAddr,
    is_open: Arc<AtomicBool>,
}

impl Gate {
    fn start(
        server: &Server,
        marker: impl Fn() -> String + Send + Sync + 'static,
        answers: bool,
    ) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let is_open = Arc::new(AtomicBool::new(false));
        let (open, to) = (is_open.clone(), server.address);
        thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let text = fs::read_to_string(marker()).unwrap_or_default();
                let is_probation = ["starting", "probation"]
                    .iter()
                    .any(|step| text.contains(&format!("\"step\":\"{step}\"")));
                if is_probation && !open.load(Ordering::SeqCst) {
                    if answers {
                        let answer =
                            "HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                        let _ = (&from).write_all(answer.as_bytes());
                    }
                    continue;
                }
                let Ok(to) = TcpStream::connect(to) else {
                    continue;
                };
                let pairs = [
                    (from.try_clone().unwrap(), to.try_clone().unwrap()),
                    (to, from),
                ];
                for (mut from, mut to) in pairs {
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Gate { address, is_open }
    }
}

/// An agent behind a gate.
fn gated(server: &Server, answers: bool) -> (Updated, Gate) {
    let path = Arc::new(OnceLock::<String>::new());
    let known = path.clone();
    let gate = Gate::start(
        server,
        move || known.get().cloned().unwrap_or_default(),
        answers,
    );
    let folder = Folder::new();
    path.set(folder.file("sidebike.update")).unwrap();
    folder.program("sidebike", image());
    let address = gate.address.to_string();
    let process = Process::start(Updated::command(
        &folder.file("sidebike"),
        "web-1",
        &address,
    ));
    wait_for("the agent is there", || is_online(server, "web-1"));
    (Updated { folder, process }, gate)
}

#[test]
fn the_new_program_takes_the_place_of_the_old_one_when_nothing_else_runs() {
    let server = Server::start();
    let mut agent = Updated::start(&server, "web-1", |_| {});
    let instance = server.machines()[0]["instance"].clone();
    let new = other_image("new");
    let task = update_to(&server, &new);
    // Something runs: it is waited for, and what comes later waits for the new program.
    let hold = agent.folder.file("hold");
    fs::write(&hold, "").unwrap();
    let command = format!("while [ -e {hold} ]; do sleep 0.05; done");
    let running = server.submit(json!({"machinePattern": ".*", "detail": {"command": command}}));
    server.when(id(&running), "running", 1);
    let update = server.submit(task.clone());
    wait_for("it takes no more work", || {
        server.machines()[0]["state"] == "draining"
    });
    let later = server.submit(json!({
        "machinePattern": ".*",
        "detail": {"command": "sha256sum /proc/$PPID/exe; echo $SIDEBIKE_INSTANCE"}
    }));
    assert_eq!(agent.runs(), sha256(image()));
    fs::remove_file(&hold).unwrap();
    let update = server.finished(id(&update));
    assert_eq!(update["state"], "succeeded", "{update}");
    assert_eq!(
        update["detail"]["result"][0],
        format!("{VERSION} to {VERSION}")
    );
    assert_eq!(server.finished(id(&running))["state"], "succeeded");
    assert!(agent.process.is_alive());
    assert_eq!(agent.runs(), sha256(&new));
    assert_eq!(agent.lies_there(), sha256(&new));
    let later = server.finished(id(&later));
    let said = &later["detail"]["result"];
    assert!(
        said[0].as_str().unwrap().starts_with(&sha256(&new)),
        "{said}"
    );
    assert_eq!(said[1], instance, "the machine is the same");
    assert_eq!(server.machines().len(), 1);
    wait_for("no marker is left", || {
        agent.names() == ["sidebike", "sidebike.old"]
    });
    assert_eq!(
        sha256(&fs::read(agent.folder.file("sidebike.old")).unwrap()),
        sha256(image())
    );
    let again = server.run(task);
    let line = again["detail"]["result"][0].as_str().unwrap();
    assert!(line.contains("unchanged"), "{again}");
    runs_commands(&server);
    agent.process.signal(Signal::TERM);
    assert!(agent.process.ended().success());
}

#[test]
fn what_cannot_take_its_place_is_refused_and_leaves_nothing() {
    let folder = Folder::new();
    let blobs = folder.file("blobs");
    let server = Server::with(&["--blobs", &blobs]);
    let agent = Updated::start(&server, "web-1", |_| {});
    let new = sha256(image());
    update_to(&server, image());
    let script = |body: &str| {
        let version = format!("[ $1 = --version ] && echo sidebike {VERSION} && exit");
        format!("#!/bin/sh\n{version}\n{body}\n").into_bytes()
    };
    let other_version = b"#!/bin/sh\necho sidebike 99.0.0\n".to_vec();
    let wrong_bytes = other_image("wrong");
    let wrong = update_to(&server, &wrong_bytes);
    let stored = format!("{blobs}/{}", sha256(&wrong_bytes));
    let stored = match Path::new(&stored).exists() {
        true => stored,
        false => wait_until("the blob lies somewhere", || {
            find(&blobs, &sha256(&wrong_bytes))
        }),
    };
    let mut changed = wrong_bytes.clone();
    changed[1_000_000] ^= 1;
    fs::write(&stored, &changed).unwrap();
    let older = "is older than this agent";
    // It answers what it should, and then is not there.
    let ends = script("exit 3");
    let hangs = script("sleep 1000");
    let silent = b"#!/bin/sh\nsleep 1000\n".to_vec();
    for (task, why) in [
        (
            task_for(VERSION, "sparc", &new),
            "no image for this machine's architecture",
        ),
        (task_for("0.0.9", ARCH, &new), older),
        (wrong, "another hash"),
        (
            update_to(&server, &ends),
            "does not answer a trial of its start: exit status: 3",
        ),
        (
            update_to(&server, &hangs),
            "does not answer a trial of its start within",
        ),
        (
            update_to(&server, &silent),
            "does not answer --version within",
        ),
        (update_to(&server, b"no program"), "cannot be executed"),
        (update_to(&server, &other_version), "the task says"),
    ] {
        let ended = server.run(task);
        let (state, msg) = result(&ended);
        assert_eq!(state, "failed", "{why}: {msg}");
        assert!(
            msg.starts_with("update: ") && msg.contains(why),
            "{why}: {msg}"
        );
        assert!(msg.ends_with("; this agent goes on as before"), "{msg}");
    }
    assert_eq!(agent.runs(), sha256(image()));
    assert_eq!(agent.lies_there(), sha256(image()));
    let mut left = agent.names();
    left.retain(|name| name != "sidebike.old");
    assert_eq!(left, ["sidebike"]);
    runs_commands(&server);
    // Without an image that is there, the server takes no task at all.
    let reply = server.post("/api/v1/task", &task_for(VERSION, ARCH, &"ab".repeat(32)));
    assert_eq!(reply.status, 422);
    assert!(
        reply.text().contains(&format!("update.images.{ARCH}: ")),
        "{}",
        reply.text()
    );
}

/// A file of this name beneath a folder.
fn find(folder: &str, name: &str) -> Option<String> {
    let found = Command::new("find")
        .args([folder, "-name", &format!("{name}*")])
        .output();
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    found.lines().next().map(str::to_owned)
}

#[test]
fn an_agent_takes_part_only_if_its_owner_says_so() {
    let server = Server::start();
    let _agent = server.agent("web-1");
    let task = server.run(update_to(&server, &other_image("x")));
    let (state, msg) = result(&task);
    assert_eq!(state, "failed");
    assert!(msg.contains("was not started with --self-update"), "{msg}");
}

#[test]
fn an_agent_with_an_undo_to_do_is_not_replaced() {
    let server = Server::start();
    let agent = Updated::start(&server, "web-1", |_| {});
    let undone = agent.folder.file("undone");
    let experiment = server.submit(json!({
        "machinePattern": ".*",
        "detail": {
            "command": "sleep 1000", "timeout": "1h",
            "undo": {"command": format!("touch {undone}"), "deadman": "10m"}
        }
    }));
    server.when(id(&experiment), "running", 1);
    let new = other_image("x");
    let task = update_to(&server, &new);
    let refused = server.run(task.clone());
    let (state, msg) = result(&refused);
    assert_eq!(state, "failed");
    assert!(msg.contains("an undo is not done"), "{msg}");
    let cancel = format!("/api/v1/task/{}/cancel", id(&experiment));
    assert_eq!(server.post(&cancel, &json!({})).status, 200);
    server.finished(id(&experiment));
    wait_for("it is undone", || Path::new(&undone).exists());
    assert_eq!(server.run(task)["state"], "succeeded");
    assert_eq!(agent.runs(), sha256(&new));
}

#[test]
fn a_folder_that_cannot_be_written_keeps_its_program() {
    let server = Server::start();
    let folder = Folder::new();
    folder.program("sidebike", image());
    let mount =
        "mount --bind \"$0\" \"$0\" && mount -o remount,ro,bind \"$0\" && cd / && exec \"$@\"";
    let read_only = |command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--mount", "sh", "-c", mount, folder.path()])
            .args(command);
        unshare
    };
    if !read_only(&["true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("left out: this user may not mount");
        return;
    }
    let address = server.address.to_string();
    let program = folder.file("sidebike");
    let words = ["agent", "--self-update", "--registry-address", &address];
    let _agent = Process::start(read_only(&[&[&*program], &words[..]].concat()));
    wait_for("the agent is there", || server.machines().len() == 1);
    let task = server.run(update_to(&server, &other_image("x")));
    let (state, msg) = result(&task);
    assert_eq!(state, "failed");
    assert!(
        msg.contains("cannot be written to, where this program lies"),
        "{msg}"
    );
    runs_commands(&server);
}

#[test]
fn a_program_that_never_completes_a_poll_is_replaced_by_the_old_one() {
    let server = Server::start();
    let (mut agent, _gate) = gated(&server, true);
    let instance = server.machines()[0]["instance"].clone();
    let new = other_image("new");
    let task = update_to(&server, &new);
    let submitted = server.submit(task.clone());
    wait_for("the new one is there", || {
        agent.lies_there() == sha256(&new)
    });
    let ended = server.finished(id(&submitted));
    let (state, msg) = result(&ended);
    assert_eq!(state, "failed", "{msg}");
    assert!(
        msg.contains("no complete poll within 5s") && msg.contains("500"),
        "{msg}"
    );
    assert!(agent.process.is_alive());
    assert_eq!(agent.runs(), sha256(image()));
    assert_eq!(agent.lies_there(), sha256(image()));
    assert_eq!(server.machines()[0]["instance"], instance);
    runs_commands(&server);
    let again = server.run(task);
    let (state, msg) = result(&again);
    assert_eq!(state, "failed");
    assert!(msg.contains("this image has failed here before"), "{msg}");
    // Another one is tried.
    let another = server.submit(update_to(&server, &other_image("another")));
    wait_for("another one is there", || {
        agent.lies_there() != sha256(image())
    });
    assert_eq!(result(&server.finished(id(&another))).0, "failed");
}

#[test]
fn a_program_that_is_killed_on_probation_is_replaced_at_the_next_start() {
    let server = Server::start();
    let (mut agent, gate) = gated(&server, true);
    let submitted = server.submit(update_to(&server, &other_image("new")));
    wait_for("the new one has started", || {
        let marker = fs::read_to_string(agent.folder.file("sidebike.update"));
        marker.is_ok_and(|text| text.contains("\"step\":\"probation\""))
    });
    agent.process.kill_9();
    assert_ne!(agent.lies_there(), sha256(image()));
    // As a supervisor does it.
    let program = agent.folder.file("sidebike");
    agent.process = Process::start(Updated::command(
        &program,
        "web-1",
        &gate.address.to_string(),
    ));
    let ended = server.finished(id(&submitted));
    let (state, msg) = result(&ended);
    assert_eq!(state, "failed", "{msg}");
    assert!(
        msg.contains("it ended before its first complete poll"),
        "{msg}"
    );
    assert_eq!(agent.runs(), sha256(image()));
    assert_eq!(agent.lies_there(), sha256(image()));
    runs_commands(&server);
}

#[test]
fn time_without_a_server_is_no_fault_of_the_new_program() {
    let server = Server::start();
    let (agent, gate) = gated(&server, false);
    let new = other_image("new");
    let submitted = server.submit(update_to(&server, &new));
    wait_for("the new one is there", || {
        agent.lies_there() == sha256(&new)
    });
    // Longer than the probation: there is no event to wait for, as nothing must happen.
    thread::sleep(Duration::from_secs(7));
    assert_eq!(agent.runs(), sha256(&new));
    gate.is_open.store(true, Ordering::SeqCst);
    let ended = server.finished(id(&submitted));
    assert_eq!(ended["state"], "succeeded", "{ended}");
}

#[test]
fn the_command_line_gives_agents_the_servers_program_step_by_step() {
    let folder = Folder::new();
    let new = other_image("server");
    let program = folder.program("server", &new);
    let mut command = Command::new(&program);
    command.args(["server", "--listen", "127.0.0.1:0"]);
    let server = Server::from_command(command);
    // Three agents with one program, and one that its owner does not want to be updated.
    let shared = Folder::new();
    let own = shared.program("sidebike", image());
    let address = server.address.to_string();
    let start = |n: u32| Process::start(Updated::command(&own, &format!("web-{n}"), &address));
    let agents: Vec<Process> = (1..=3).map(start).collect();
    let _other = server.agent("db-1");
    wait_for("they are there", || server.machines().len() == 4);
    let update = |more: &[&str]| sidebike(&server, &[&["update"], more].concat());
    let said = update(&["-m", "^web-", "--dry-run"]);
    assert_eq!(
        (said.code, said.out.matches("web-").count()),
        (0, 3),
        "{said:?}"
    );
    let said = update(&["-m", "^web-", "--steps", "1,100%", "--probation", "20s"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(
        said.out.matches(&format!("{VERSION} to {VERSION}")).count(),
        3,
        "{said:?}"
    );
    for agent in &agents {
        let pid = agent.pid().as_raw_nonzero();
        let runs = fs::read(format!("/proc/{pid}/exe")).unwrap();
        assert_eq!(sha256(&runs), sha256(&new));
    }
    let task = server.newest();
    assert_eq!(task["update"]["images"][ARCH], *sha256(&new));
    assert_eq!(task["update"]["version"], VERSION);
    let said = update(&["--json"]);
    assert_ne!(said.code, 0, "one does not take part: {said:?}");
    let task = said.json();
    assert_eq!(
        (&task["counts"]["succeeded"], &task["counts"]["failed"]),
        (&json!(3), &json!(1))
    );
    let said = update(&["-m", "^nobody$"]);
    assert_ne!(said.code, 0, "{said:?}");
}
