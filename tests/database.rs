//! `--db FILE` as its user sees it: what comes back after a restart, which files are refused and in
//! which words, that the file stays small, and what happens when the disk is full.

mod common;

use common::{Folder, Process, SIDEBIKE, Server, id, ids, task, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(SIDEBIKE);
    command.args(arguments).env("RUST_LOG", "off");
    command.output().expect("the binary starts")
}

fn check(file: &str) -> Output {
    run(&["db", "check", file])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("words in UTF-8")
}

/// What a server says that does not start with this file.
fn refusal(file: &str) -> String {
    let begin = Instant::now();
    let output = run(&["server", "--listen", "127.0.0.1:0", "--db", file]);
    assert_eq!(output.status.code(), Some(1), "{file} was accepted");
    assert!(begin.elapsed() < Duration::from_secs(20));
    let said = text(&output.stderr);
    assert!(said.starts_with("sidebike: --db: "), "{said}");
    assert_eq!(said.lines().count(), 1, "one line for a person: {said}");
    said
}

/// Ends a server as its user would.
fn end(server: Server) {
    let mut process: Process = server.process;
    process.signal(Signal::TERM);
    assert_eq!(process.ended().code(), Some(0));
}

fn waiting(id: &str, ttl: &str) -> Value {
    json!({"id": id, "machinePattern": "^nobody$", "ttl": ttl, "detail": {"command": "true"}})
}

/// A file with a task of each kind, and its server's answer to "which tasks".
fn file_with_tasks(folder: &Folder) -> (String, Vec<Value>) {
    let db = folder.file("db");
    let server = Server::with(&["--db", &db]);
    let _agent = server.agent("m1");
    server.run(task("echo out; echo err >&2; printf '\\377\\n'"));
    let failed = server.run(task("exit 3"));
    let rerun = format!("/api/v1/task/{}/rerun?wait=30s", id(&failed));
    assert_eq!(
        server.post(&rerun, &Value::Null).data()["rerunOf"],
        failed["id"]
    );
    server.submit(waiting("waits", "1h"));
    server.submit(waiting("unwanted", "1h"));
    server
        .post("/api/v1/task/unwanted/cancel", &Value::Null)
        .data();
    let tasks = server.get("/api/v1/task").data();
    end(server);
    (db, tasks.as_array().expect("a list").clone())
}

#[test]
fn everything_is_as_it_was_after_a_restart() {
    let folder = Folder::new();
    let (db, before) = file_with_tasks(&folder);
    let server = Server::with(&["--db", &db]);
    let after = server.get("/api/v1/task").data();
    assert_eq!(after, json!(before));
    let machines = server.machines();
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0]["label"], "m1");
    // What waited goes on waiting, and what comes now is newer.
    let newest = server.submit(waiting("newest", "1h"));
    let tasks = server.get("/api/v1/task").data();
    assert_eq!(ids(&tasks)[0], newest["id"]);
    let canceled = server
        .post("/api/v1/task/waits/cancel", &Value::Null)
        .data();
    assert_eq!(canceled["state"], "canceled");
    server
        .request("DELETE", "/api/v1/task/unwanted", b"")
        .data();
    let mut server = server;
    server.process.kill_9();
    let server = Server::with(&["--db", &db]);
    assert_eq!(server.task("waits")["state"], "canceled");
    assert_eq!(server.get("/api/v1/task/unwanted").status, 404);
    // A repeated submit is still safe.
    let again = server.post("/api/v1/task", &waiting("newest", "1h"));
    assert_eq!(again.status, 409);
}

/// Agents go on while the server is away; its return disturbs nothing.
#[test]
fn what_runs_goes_on_and_is_reported_to_the_next_server() {
    let folder = Folder::new();
    let db = folder.file("db");
    let mut server = Server::with(&["--db", &db]);
    let address = server.address.to_string();
    let _agents = server.agents(2, "m1");
    let starts = folder.file("starts");
    let command = format!(
        "echo x >> {starts}; echo before; while [ ! -e {starts}.go ]; do sleep 0.05; done; echo after"
    );
    let id = server.submit(task(&command))["id"]
        .as_str()
        .unwrap()
        .to_owned();
    server.when(&id, "running", 2);
    wait_for("its output is there", || {
        server.task(&id)["detail"]["result"] == json!([])
            || server.task(&id)["result"][0]["output"] == json!(["before"])
    });
    server.process.kill_9();
    std::fs::write(format!("{starts}.go"), "").unwrap();
    let server = Server::listening_on(&address, &["--db", &db]);
    let ended = server.finished(&id);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(ended["result"][0]["output"], json!(["before", "after"]));
    assert_eq!(folder.lines("starts").len(), 2);
}

/// Waits do not count the time that the server was away; ended tasks go by the wall clock.
#[test]
fn time_away_does_not_count_however_often_it_is_away() {
    let folder = Folder::new();
    let db = folder.file("db");
    let mut server = Server::with(&["--db", &db]);
    server.submit(waiting("short", "4s"));
    server.submit(json!({"id": "gone", "machinePattern": "^nobody$", "ttl": "60s", "failureTtl": "1s", "detail": {"command": "true"}}));
    server.post("/api/v1/task/gone/cancel", &Value::Null).data();
    // Twice: the second start must not forget the first absence.
    for _ in 0..2 {
        server.process.kill_9();
        std::thread::sleep(Duration::from_millis(2_500));
        server = Server::with(&["--db", &db]);
    }
    assert_eq!(server.task("short")["state"], "waiting");
    wait_for("what has ended leaves by its failureTtl", || {
        server.get("/api/v1/task/gone").status == 404
    });
    wait_for("it ends when its time is up", || {
        server.task("short")["state"] == "expired"
    });
}

/// Only while something waits is it worth a write that the server lives.
#[test]
fn a_server_says_that_it_lives_while_something_waits() {
    let folder = Folder::new();
    let db = folder.file("db");
    let server = Server::with(&["--db", &db]);
    server.submit(waiting("long", "1h"));
    let written = || std::fs::metadata(&db).unwrap().modified().unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    let before = written();
    wait_until("a sign of life", || (written() > before).then_some(()));
    server.post("/api/v1/task/long/cancel", &Value::Null).data();
    std::thread::sleep(Duration::from_millis(1_500));
    let before = written();
    std::thread::sleep(Duration::from_millis(11_000));
    assert_eq!(written(), before, "nothing waits, so nothing is written");
}

#[test]
fn files_that_cannot_be_right_are_refused_and_left_alone() {
    let folder = Folder::new();
    let (db, _) = file_with_tasks(&folder);
    let whole = std::fs::read(&db).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.file(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut garbage = whole.clone();
    garbage[..64].fill(b'x');
    for (path, words) in [
        (file("empty", b""), "it is empty"),
        (
            file("text", b"name,value\n1,2\n"),
            "it does not begin like one",
        ),
        (file("garbage", &garbage), "it does not begin like one"),
        (
            file("half", &whole[..whole.len() / 2]),
            "contradicts itself",
        ),
        (file("little", &whole[..100]), "is damaged"),
    ] {
        let before = std::fs::read(&path).unwrap();
        let said = refusal(&path);
        assert!(said.contains(words), "{path}: {said}");
        assert!(said.contains("move the file away to start empty"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "{path} was changed");
        let checked = check(&path);
        assert_eq!(checked.status.code(), Some(1));
        assert!(text(&checked.stderr).contains(words));
    }
    let folder_path = folder.path();
    assert!(refusal(folder_path).contains("it is not a file"));
    let nowhere = folder.file("no/such/folder/db");
    assert!(refusal(&nowhere).contains("No such file or directory"));
    let missing = check(&folder.file("missing"));
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("No such file"));
    assert!(
        !Path::new(&folder.file("missing")).exists(),
        "a check makes no file"
    );
}

/// A byte that has changed is noticed where it matters, and nobody panics over it.
#[test]
fn flipped_bytes_are_reported_or_harmless() {
    let folder = Folder::new();
    let (db, tasks) = file_with_tasks(&folder);
    let whole = std::fs::read(&db).unwrap();
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let path = folder.file("flipped");
    let mut noticed = 0;
    for n in 0..40 {
        let at = used[(n * 7_919 + 13) % used.len()];
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        std::fs::write(&path, &bytes).unwrap();
        let checked = check(&path);
        let said = text(&checked.stderr) + &text(&checked.stdout);
        assert!(!said.contains("panicked"), "byte {at}: {said}");
        match checked.status.code() {
            Some(0) => {}
            Some(1) => {
                noticed += 1;
                assert!(said.contains("sidebike: "), "byte {at}: {said}");
                std::fs::write(&path, &bytes).unwrap();
                let exported = run(&["db", "export", &path]);
                assert!(exported.status.code().is_some_and(|code| code <= 1));
                assert!(text(&exported.stdout).lines().count() <= tasks.len());
            }
            other => panic!("byte {at}: {other:?} {said}"),
        }
    }
    println!("{noticed} of 40 flipped bytes noticed");
    assert!(noticed > 0);
}

#[test]
fn a_file_in_use_is_refused() {
    let folder = Folder::new();
    let db = folder.file("db");
    let server = Server::with(&["--db", &db]);
    server.submit(waiting("there", "1h"));
    assert!(refusal(&db).contains("is in use by another server"));
    let checked = check(&db);
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(&checked.stderr).contains("is in use by another server"));
    server.submit(waiting("still", "1h"));
}

#[test]
fn a_file_belongs_to_its_server_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let (db, _) = file_with_tasks(&folder);
    let mode = std::fs::metadata(&db).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!Path::new(&format!("{db}.new")).exists());
    std::fs::set_permissions(&db, PermissionsExt::from_mode(0o000)).unwrap();
    let denied = match rustix::process::geteuid().is_root() {
        false => run(&["server", "--listen", "127.0.0.1:0", "--db", &db]),
        // Root may read everything.
        true => Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .args([SIDEBIKE, "server", "--listen", "127.0.0.1:0", "--db", &db])
            .env("RUST_LOG", "off")
            .output()
            .expect("setpriv of util-linux"),
    };
    let said = text(&denied.stderr);
    assert!(!denied.status.success(), "{said}");
    assert!(said.starts_with("sidebike: --db: cannot open"), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    assert_eq!(said.lines().count(), 1, "one line for a person: {said}");
}

#[test]
fn check_and_export_say_what_is_in_the_file() {
    let folder = Folder::new();
    let (db, tasks) = file_with_tasks(&folder);
    let checked = check(&db);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let said = text(&checked.stdout);
    assert!(
        said.contains("is whole: 5 tasks, 3 executions, 1 machines"),
        "{said}"
    );
    let exported = run(&["db", "export", &db]);
    assert_eq!(exported.status.code(), Some(0));
    let lines: Vec<Value> = text(&exported.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let oldest_first: Vec<Value> = tasks.into_iter().rev().collect();
    assert_eq!(lines, oldest_first);
    // A reader that has seen enough is no error.
    let quiet = format!(
        "{SIDEBIKE} db export {db} | head -c 10 >/dev/null; {SIDEBIKE} db check {db} | true"
    );
    let output = Command::new("sh").args(["-c", &quiet]).output().unwrap();
    assert_eq!(text(&output.stderr), "");
}

/// The file that the first version with a database wrote opens in every later one. It was made by
/// `cargo test --test database make_v1 -- --ignored`, which writes it anew.
#[test]
fn a_file_of_version_1_opens() {
    let folder = Folder::new();
    let db = folder.file("db");
    std::fs::copy("tests/data/v1.db", &db).expect("the file is in the repository");
    let checked = check(&db);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let server = Server::with(&["--db", &db, "--max-tasks", "1000"]);
    let _ = std::fs::copy("tests/data/v1.db", folder.file("export"));
    let exported = text(&run(&["db", "export", &folder.file("export")]).stdout);
    // An `any` task that no machine has matched waits too.
    assert_eq!(exported.matches("\"state\":\"waiting\"").count(), 2);
    for state in ["succeeded", "failed", "canceled"] {
        let word = format!("\"state\":\"{state}\"");
        assert!(exported.contains(&word), "no task {state} in {exported}");
    }
    assert!(exported.contains("\"result\":[\"out\",\"err\"]"));
    // What had ended when it was written may have left by its time since; what waits is there.
    assert_eq!(server.task("v1-waits")["state"], "waiting");
    let _agent = server.agent("late");
    assert_eq!(server.finished("v1-waits")["state"], "succeeded");
}

#[test]
#[ignore = "writes tests/data/v1.db"]
fn make_v1() {
    let db = "tests/data/v1.db";
    std::fs::create_dir_all("tests/data").unwrap();
    let _ = std::fs::remove_file(db);
    let server = Server::with(&["--db", db]);
    let _agent = server.agent("m1");
    let forever = "8760h";
    let with = |id: &str, command: &str| {
        json!({"id": id, "machinePattern": "^m", "resultTtl": forever, "failureTtl": forever,
            "retry": {"max": 1}, "detail": {"command": command, "env": {"A": "1"}, "stdin": "in"}})
    };
    server.run(with("v1-succeeded", "echo out; sleep 0.1; echo err >&2"));
    server.run(with("v1-failed", "exit 3"));
    server.submit(json!({"id": "v1-waits", "machinePattern": "^late$", "ttl": forever, "detail": {"command": "true"}}));
    server.submit(json!({"id": "v1-any", "machinePattern": "^nobody$", "mode": "any", "ttl": forever, "detail": {"argv": ["true"]}}));
    server.submit(waiting("v1-canceled", "1h"));
    server
        .post("/api/v1/task/v1-canceled/cancel", &Value::Null)
        .data();
    end(server);
}

/// Many tasks go through a server that keeps few: the file stays as small as what it keeps.
#[test]
fn the_file_does_not_grow_without_end() {
    let folder = Folder::new();
    let db = folder.file("db");
    let server = Server::with(&["--db", &db, "--max-tasks", "10"]);
    let _agent = server.agent("m1");
    let size = || std::fs::metadata(&db).unwrap().len();
    let mut sizes = Vec::new();
    for _ in 0..4 {
        for _ in 0..12 {
            // 100 KB each; 10 are kept.
            server.run(task("yes 0123456789 | head -c 100000"));
        }
        sizes.push(size());
    }
    println!("bytes after 12, 24, 36, 48 tasks: {sizes:?}");
    assert!(sizes[3] <= 8 << 20, "{sizes:?}");
    assert!(sizes[3] <= sizes[1] * 3 / 2, "{sizes:?}");
}

#[test]
fn lower_limits_are_kept_from_the_start() {
    let folder = Folder::new();
    let db = folder.file("db");
    let server = Server::with(&["--db", &db]);
    for n in 0..20 {
        let id = format!("t{n}");
        server.submit(waiting(&id, "1h"));
        server
            .post(&format!("/api/v1/task/{id}/cancel"), &Value::Null)
            .data();
    }
    end(server);
    let server = Server::with(&["--db", &db, "--max-tasks", "5"]);
    let kept = server.get("/api/v1/task").data();
    assert_eq!(ids(&kept), ["t19", "t18", "t17", "t16", "t15"]);
    end(server);
    assert!(text(&check(&db).stdout).contains("5 tasks"));
}

/// Limits hold for what comes in. What came in before stays, and works.
#[test]
fn what_is_larger_than_lower_limits_is_kept() {
    let folder = Folder::new();
    let db = folder.file("db");
    let server = Server::with(&["--db", &db, "--max-label", "300"]);
    // Ten patterns that need much when compiled, and a name that is too long later.
    let name = "n".repeat(200);
    let large = |n: usize| format!("^m{n}$|x{{500}}");
    for n in 0..10 {
        server.submit(json!({"id": format!("t{n}"), "name": name, "ttl": "1h",
            "machinePattern": large(n), "mode": "any", "detail": {"command": "true"}}));
    }
    let label = "m".repeat(300);
    let poll =
        json!({"instance": "0123456789abcdef", "seq": 1, "label": label, "jobs": 1, "wait": 0});
    assert_eq!(server.post("/api/v1/agent/poll", &poll).status, 200);
    end(server);

    let lower = [
        "--db",
        &db,
        "--max-patterns",
        "3",
        "--max-pattern",
        "5",
        "--max-compiled-pattern",
        "4",
        "--max-label",
        "8",
        "--max-name",
        "8",
    ];
    let server = Server::with(&lower);
    let kept = server.get("/api/v1/task").data();
    assert_eq!(ids(&kept).len(), 10);
    assert_eq!(kept[0]["name"], *name);
    // The machine is known, and may go on.
    assert_eq!(server.machines()[0]["label"], *label);
    let poll =
        json!({"instance": "0123456789abcdef", "seq": 2, "label": label, "jobs": 1, "wait": 0});
    assert_eq!(server.post("/api/v1/agent/poll", &poll).status, 200);
    // Nothing new that is too large, and no further pattern.
    let small = json!({"machinePattern": "new", "detail": {"command": "true"}});
    let reply = server.post("/api/v1/task", &small);
    assert_eq!(reply.status, 503, "{}", reply.text());
    let same = json!({"machinePattern": large(1), "detail": {"command": "true"}});
    assert_eq!(server.post("/api/v1/task", &same).status, 400);
    // What waited still finds its machine, and can be run again.
    for n in [3, 7] {
        let _agent = server.agent(&format!("m{n}"));
        let id = format!("t{n}");
        assert_eq!(server.finished(&id)["state"], "succeeded");
        let again = server.post(
            &format!("/api/v1/task/{id}/rerun?all=1&wait=30s"),
            &Value::Null,
        );
        assert_eq!(again.status, 200, "{}", again.text());
        assert_eq!(again.data()["state"], "succeeded");
    }
    // Once they are gone there is room for as many as the limit says.
    for n in 0..10 {
        server.post(&format!("/api/v1/task/t{n}/cancel"), &Value::Null);
    }
    assert_eq!(server.post("/api/v1/task", &small).status, 200);
    end(server);
}

/// A file system of 4 MiB, gone with the test.
struct Tmpfs(Folder);

impl Tmpfs {
    /// `None`, with a word, where it cannot be had.
    fn mount() -> Option<Tmpfs> {
        let folder = Folder::new();
        let options = ["-t", "tmpfs", "-o", "size=4M", "tmpfs", folder.path()];
        let mounted = Command::new("mount").args(options).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Tmpfs(folder));
        }
        eprintln!("left out: a tmpfs cannot be mounted here");
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // What still has a file open there is about to end.
        let _ = Command::new("umount").args(["-l", self.0.path()]).status();
    }
}

#[test]
fn a_full_disk_refuses_what_is_new_and_loses_nothing() {
    let Some(disk) = Tmpfs::mount() else { return };
    let outside = Folder::new();
    let (db, ballast, go) = (
        disk.0.file("db"),
        disk.0.file("ballast"),
        outside.file("go"),
    );
    let mut server = Server::with(&["--db", &db]);
    let address = server.address.to_string();
    let _agent = server.agent("m1");
    let command = format!("while [ ! -e {go} ]; do sleep 0.05; done; echo done");
    server.submit(json!({"id": "runs", "machinePattern": "^m", "detail": {"command": command}}));
    server.when("runs", "running", 1);
    // Somebody else fills the disk but for a little.
    let _ = std::fs::write(&ballast, vec![1; 8 << 20]);
    let full = std::fs::metadata(&ballast).unwrap().len();
    let file = std::fs::File::options().write(true).open(&ballast).unwrap();
    file.set_len(full - 400_000).unwrap();
    drop(file);
    let mut accepted = Vec::new();
    let env = "x".repeat(20_000);
    let large = |id: &str| json!({"id": id, "machinePattern": "^nobody$", "ttl": "1h", "detail": {"command": "true", "env": {"A": env}}});
    let refused = (0..500).find_map(|n| {
        let id = format!("t{n}");
        let reply = server.post("/api/v1/task", &large(&id));
        match reply.status {
            200 => accepted.push(id),
            503 => return Some(reply.msg()),
            _ => panic!("{}", reply.text()),
        }
        None
    });
    let refused = refused.expect("the disk is full");
    println!("{} tasks accepted before: {refused}", accepted.len());
    assert!(refused.contains("No space left on device"), "{refused}");
    assert_eq!(server.get("/healthz").status, 200);
    // What runs goes on and ends; its report waits with the agent.
    assert_eq!(server.task("runs")["state"], "running");
    std::fs::write(&go, "").unwrap();
    wait_until("it ends", || {
        (server.task("runs")["state"] == "succeeded").then_some(())
    });
    // The server dies on the full disk, and another cannot open the file, or can: it says so.
    server.process.kill_9();
    let mut again = Command::new(SIDEBIKE);
    again.args(["server", "--listen", &address, "--db", &db]);
    let mut again = Process::start(again);
    let opened = wait_until("it says how it went", || {
        let log = again.log().join("\n");
        let opened = log.contains("database ") && log.contains(" tasks");
        (opened || log.contains("sidebike: --db: ")).then_some(opened)
    });
    println!(
        "on the full disk the file opens: {opened}; {:?}",
        again.log().last()
    );
    if !opened {
        assert_eq!(again.ended().code(), Some(1));
        assert!(again.log().join("\n").contains("No space left on device"));
    }
    std::fs::remove_file(&ballast).unwrap();
    if opened {
        again.kill_9();
    }
    let server = Server::listening_on(&address, &["--db", &db]);
    for id in &accepted {
        assert_eq!(server.task(id)["state"], "waiting", "{id} was accepted");
    }
    assert_eq!(server.finished("runs")["detail"]["result"], json!(["done"]));
    wait_until("there is room again", || {
        (server.post("/api/v1/task", &waiting("later", "1h")).status == 200).then_some(())
    });
    end(server);
    assert_eq!(check(&db).status.code(), Some(0));
}

/// A server that cannot write a single byte shows what there is, and takes tasks once it can.
#[test]
fn a_server_starts_on_a_disk_without_any_room() {
    let Some(disk) = Tmpfs::mount() else { return };
    let (db, ballast) = (disk.0.file("db"), disk.0.file("ballast"));
    let server = Server::with(&["--db", &db]);
    server.submit(waiting("before", "1h"));
    end(server);
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    let mut server = Server::with(&["--db", &db]);
    assert_eq!(server.task("before")["state"], "waiting");
    let refused = server.post("/api/v1/task", &waiting("refused", "1h"));
    assert_eq!(refused.status, 503);
    assert!(refused.msg().contains("No space left on device"));
    assert_eq!(server.get("/healthz").status, 200);
    std::fs::remove_file(&ballast).unwrap();
    drop(file);
    wait_until("there is room again", || {
        (server.post("/api/v1/task", &waiting("after", "1h")).status == 200).then_some(())
    });
    server.process.kill_9();
    let server = Server::with(&["--db", &db]);
    for id in ["before", "after"] {
        assert_eq!(server.task(id)["state"], "waiting");
    }
    end(server);
    assert_eq!(check(&db).status.code(), Some(0));
}

/// The same without a restart: the server itself recovers.
#[test]
fn a_server_recovers_when_there_is_room_again() {
    let Some(disk) = Tmpfs::mount() else { return };
    let (db, ballast) = (disk.0.file("db"), disk.0.file("ballast"));
    let server = Server::with(&["--db", &db]);
    let _agent = server.agent("m1");
    let _ = std::fs::write(&ballast, vec![1; 8 << 20]);
    let output = "yes 0123456789 | head -c 300000";
    let mut ids = Vec::new();
    wait_until("the disk is full", || {
        let reply = server.post("/api/v1/task", &task(output));
        if reply.status == 200 {
            ids.push(common::id(&reply.data()).to_owned());
        }
        (reply.status == 503).then_some(())
    });
    std::fs::remove_file(&ballast).unwrap();
    for id in &ids {
        let ended = server.finished(id);
        assert_eq!(ended["state"], "succeeded", "{}", ended["result"][0]["msg"]);
    }
    wait_until("there is room again", || {
        (server.post("/api/v1/task", &task("true")).status == 200).then_some(())
    });
    let mut server = server;
    server.process.kill_9();
    let server = Server::with(&["--db", &db]);
    for id in &ids {
        let task = server.task(id);
        assert_eq!(task["state"], "succeeded");
        let written = task["result"][0]["stdout"].as_str().unwrap().len();
        assert_eq!(written, 300_000);
    }
}

#[test]
fn room_that_is_not_used_any_more_is_given_back_at_a_start() {
    let folder = Folder::new();
    let db = folder.file("db");
    let server = Server::with(&["--db", &db]);
    let _agent = server.agent("m1");
    for n in 0..24 {
        let command = format!("yes {n} 0123456789 | head -c 1000000");
        let ended = server.run(task(&command));
        assert_eq!(ended["state"], "succeeded");
    }
    end(server);
    let size = || std::fs::metadata(&db).unwrap().len();
    let before = size();
    assert!(before > 20 << 20, "{before} bytes");
    // What is beyond the lower limit leaves at this start, and its room at the next.
    end(Server::with(&["--db", &db, "--max-tasks", "2"]));
    let server = Server::with(&["--db", &db, "--max-tasks", "2"]);
    let tasks = server.get("/api/v1/task").data();
    assert_eq!(ids(&tasks).len(), 2);
    println!("{before} bytes, then {}", size());
    assert!(size() < 8 << 20, "{} bytes of {before} are left", size());
    end(server);
    assert_eq!(check(&db).status.code(), Some(0));
}
