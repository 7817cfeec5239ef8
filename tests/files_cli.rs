//! `push`, `run --file`, `run --fetch` and `pull`, with a real server and real agents.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::said::{lines_with, sidebike};
use common::{Folder, Server};
use serde_json::json;
use std::fs;

/// Bytes that differ from piece to piece.
fn bytes(size: usize) -> Vec<u8> {
    let words = (0u64..).flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    words.take(size).collect()
}

#[test]
fn a_file_goes_onto_a_group_and_is_not_sent_twice() {
    let server = Server::start();
    let _agents = (
        server.agent("web-1"),
        server.agent("web-2"),
        server.agent("db-1"),
    );
    let folder = Folder::new();
    let data = bytes(9 << 20);
    fs::write(folder.file("pkg.tgz"), &data).unwrap();
    let to = folder.file("to/");
    let push = |more: &[&str]| {
        let words = ["push", &folder.file("pkg.tgz"), "-m", "^web-", "--to", &to];
        sidebike(&server, &[&words[..], more].concat())
    };
    let said = push(&["--dry-run"]);
    assert_eq!(
        (said.code, said.out.matches("web-").count()),
        (0, 2),
        "{said:?}"
    );
    let said = push(&[]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("pkg.tgz: sent 9.0 MiB in "), "{said:?}");
    assert_eq!(said.out.matches("to/pkg.tgz: ").count(), 2, "{said:?}");
    assert!(fs::read(folder.file("to/pkg.tgz")).unwrap() == data);
    let said = push(&["--json"]);
    assert!(said.err.contains("the server has it already"), "{said:?}");
    let task = said.json();
    assert_eq!(task["state"], "succeeded");
    assert_eq!(task["files"][0]["path"], folder.file("to/pkg.tgz"));
    assert_eq!(
        lines_with(&task["detail"]["result"].to_string(), "unchanged").len(),
        1
    );

    let none = sidebike(&server, &["push", &folder.file("none"), "--to", "/tmp/x"]);
    assert_eq!(none.code, 2, "{none:?}");
    let nobody = sidebike(
        &server,
        &[
            "push",
            &folder.file("pkg.tgz"),
            "-m",
            "nobody",
            "--to",
            "/tmp/x",
        ],
    );
    assert_eq!(nobody.code, 3, "{nobody:?}");
    let failed = sidebike(
        &server,
        &[
            "push",
            &folder.file("pkg.tgz"),
            "-m",
            "^db-",
            "--to",
            "/proc/x",
        ],
    );
    assert!(
        failed.code != 0 && failed.err.contains("file /proc/x"),
        "{failed:?}"
    );
}

#[test]
fn a_command_has_its_files_and_hands_others_back() {
    let server = Server::start();
    let _agents = (server.agents(2, "web"), server.agent("db-1"));
    let folder = Folder::new();
    let tool = folder.program("tool", "#!/bin/sh\necho \"$1 runs\"\n");
    let said = sidebike(
        &server,
        &[
            "run",
            "-m",
            "db-1",
            "--file",
            &tool,
            "--",
            "\"$SIDEBIKE_FILES/tool\" it",
        ],
    );
    assert_eq!((&*said.out, said.code), ("it runs\n", 0), "{said:?}");
    let at = format!("{tool}:{}", folder.file("here"));
    let line = format!("{} too", folder.file("here"));
    let said = sidebike(
        &server,
        &[
            "run",
            "-m",
            "db-1",
            "--file",
            &at,
            "--remove-files",
            "--",
            &line,
        ],
    );
    assert_eq!((&*said.out, said.code), ("too runs\n", 0), "{said:?}");
    assert!(!fs::exists(folder.file("here")).unwrap());

    let common = folder.file("result");
    fs::write(&common, bytes(100_000)).unwrap();
    let line = "exit 3";
    let said = sidebike(&server, &["run", "--json", "--fetch", &common, "--", line]);
    assert_eq!(said.code, 3, "{said:?}");
    let task = said.json();
    let id = task["id"].as_str().unwrap();
    assert_eq!(task["result"][0]["files"][0]["path"], common);
    let into = folder.file("got");
    let said = sidebike(&server, &["pull", id, &into]);
    assert_eq!((said.code, said.out.lines().count()), (0, 3), "{said:?}");
    let mut names: Vec<String> = fs::read_dir(&into)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(
        names[0] == "db-1" && names[1].starts_with("web-") && names.len() == 3,
        "{names:?}"
    );
    let expected = fs::read(&common).unwrap();
    for name in &names {
        assert_eq!(
            fs::read(format!("{into}/{name}{common}")).unwrap(),
            expected
        );
    }
    let said = sidebike(&server, &["pull", id, &into, "-m", "db-1"]);
    assert!(said.code == 0 && said.out.contains("unchanged"), "{said:?}");
    let said = sidebike(&server, &["pull", id, &into, "-m", "^db-"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("has the label \"^db-\""), "{said:?}");

    let said = sidebike(
        &server,
        &[
            "run",
            "-m",
            "db-1",
            "--fetch",
            "/no/such/file",
            "--",
            "true",
        ],
    );
    assert!(
        said.code != 0 && said.err.contains("no such file"),
        "{said:?}"
    );
    let said = sidebike(&server, &["run", "-m", "db-1", "--json", "--", "true"]).json();
    let said = sidebike(&server, &["pull", said["id"].as_str().unwrap()]);
    assert!(
        said.code == 1 && said.err.contains("run --fetch"),
        "{said:?}"
    );
}

#[test]
fn a_task_is_checked_and_an_agent_is_never_asked_for_more_than_it_can() {
    let server = Server::start();
    let file = json!({"sha256": "0".repeat(64), "size": 1, "path": "/tmp/x"});
    let post = |task| server.post("/api/v1/task", &task);
    let unknown = post(json!({"machinePattern": ".*", "files": [file]}));
    assert!(
        unknown.status == 422 || unknown.status == 409 || unknown.status == 404,
        "{}",
        unknown.text()
    );
    assert!(unknown.text().contains("files[0]"), "{}", unknown.text());
    let nothing = post(json!({"machinePattern": ".*"}));
    assert!(
        nothing.status == 400 && nothing.text().contains("detail"),
        "{}",
        nothing.text()
    );

    // An agent of an earlier version.
    let poll = |seq: u64| {
        let poll = json!({
            "instance": "00112233445566778899aabbccddeeff", "seq": seq, "label": "old",
            "version": "0.1.0", "jobs": 4, "features": ["undo"]
        });
        server.post("/api/v1/agent/poll", &poll).data()
    };
    poll(1);
    let sent = server.request("PUT", "/api/v1/file/x", b"x").data();
    let file = json!({"sha256": sent["sha256"], "size": 1, "path": "/tmp/x"});
    let detail = json!({"command": "true"});
    let tasks = [
        (
            json!({"machinePattern": "old", "detail": detail, "files": [file]}),
            "take files",
        ),
        (
            json!({"machinePattern": "old", "files": [file]}),
            "take files",
        ),
        (
            json!({"machinePattern": "old", "detail": detail, "fetch": [{"path": "/x"}]}),
            "hand files back",
        ),
    ];
    let tasks = tasks.map(|(task, what)| (server.submit(task), what));
    assert!(poll(2)["start"].is_null());
    for (task, what) in tasks {
        let task = server.finished(task["id"].as_str().unwrap());
        assert_eq!(
            task["result"][0]["msg"],
            format!("agent 0.1.0 cannot {what}")
        );
    }
}

#[test]
fn names_of_files_are_as_the_machine_has_them() {
    let server = Server::start();
    let _agent = server.agent("db-1");
    let folder = Folder::new();
    // One is called as a file that is not whole yet once was, and one has the longest name that there is.
    let names = ["x.sidebike-part", "x", &"n".repeat(255)];
    let mut flags = vec!["run".to_owned(), "--json".into()];
    for name in names {
        fs::write(folder.file(name), name).unwrap();
        flags.extend(["--fetch".into(), folder.file(name)]);
    }
    flags.extend(["--".into(), "true".into()]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let said = sidebike(&server, &flags);
    assert_eq!(said.code, 0, "{said:?}");
    let task = said.json();
    let into = folder.file("got");
    let said = sidebike(&server, &["pull", task["id"].as_str().unwrap(), &into]);
    assert_eq!(said.code, 0, "{said:?}");
    let there = format!("{into}/db-1{}", folder.path());
    for name in names {
        assert_eq!(fs::read_to_string(format!("{there}/{name}")).unwrap(), name);
    }
    assert_eq!(fs::read_dir(&there).unwrap().count(), names.len());
}

#[test]
fn what_cannot_be_sent_is_said_at_once() {
    let server = Server::start();
    let _agent = server.agent("db-1");
    let folder = Folder::new();
    let fifo = folder.file("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let said = sidebike(&server, &["push", &fifo]);
    assert!(
        said.code == 2 && said.err.contains("no ordinary file"),
        "{said:?}"
    );
    let said = sidebike(&server, &["run", "--unpack", "--", "true"]);
    assert!(
        said.code == 2 && said.err.contains("--unpack: goes with --file only"),
        "{said:?}"
    );
}

#[test]
fn files_of_the_kernel_are_handed_back_as_they_read() {
    let server = Server::start();
    let _agent = server.agent("db-1");
    let folder = Folder::new();
    // They say that they have 0 bytes, or a page.
    let version = "/proc/version";
    let small = "/sys/kernel/mm/transparent_hugepage/enabled";
    let mut flags = vec!["run", "--json", "--fetch", version];
    if fs::exists(small).unwrap() {
        flags.extend(["--fetch", small]);
    }
    flags.extend(["--", "true"]);
    let said = sidebike(&server, &flags);
    assert_eq!(said.code, 0, "{said:?}");
    let task = said.json();
    let into = folder.file("got");
    let said = sidebike(&server, &["pull", task["id"].as_str().unwrap(), &into]);
    assert_eq!(said.code, 0, "{said:?}");
    for path in flags.iter().filter(|flag| flag.starts_with('/')) {
        let got = fs::read(format!("{into}/db-1{path}")).unwrap();
        assert_eq!(got, fs::read(path).unwrap(), "{path}");
        assert!(!got.is_empty(), "{path}");
    }
    // What has more than is wanted says so.
    let task = serde_json::json!({
        "machinePattern": "db-1",
        "detail": {"command": "true"},
        "fetch": [{"path": version, "max": 5}],
    });
    let file = folder.file("task.json");
    fs::write(&file, task.to_string()).unwrap();
    let task = sidebike(&server, &["run", "--json", "--task", &file]).json();
    let got = &task["result"][0]["files"][0];
    assert_eq!((&got["size"], &got["truncated"]), (&5.into(), &true.into()));
}
