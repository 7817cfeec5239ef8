//! What real use does to commands and to those who run them: ends by signals, programs that cannot be started.
#![cfg(all(feature = "agent", feature = "server", feature = "cli"))]

mod common;

use common::said::sidebike;
use common::{Agent, Folder, Process, SIDEBIKE, Server, task};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Issue 16, number 3.
#[test]
fn a_signal_is_its_number_above_128_in_the_exit_code() {
    let server = Server::start();
    let _agent = server.agent("m");
    for (signal, number) in [
        ("USR1", 10),
        ("USR2", 12),
        ("ALRM", 14),
        ("XFSZ", 25),
        ("XCPU", 24),
        ("SYS", 31),
        ("STKFLT", 16),
        ("34", 34),
        ("64", 64),
    ] {
        let line = format!("kill -{signal} $$; sleep 5");
        let said = sidebike(&server, &["run", "--exec", "--", "bash", "-c", &line]);
        assert_eq!(said.code, 128 + number, "{signal}: {}", said.err);
    }
}

/// Runs a program on `server`, which must not be startable; gives the reason.
fn refusal(server: &Server, detail: Value) -> String {
    let task = server.run(json!({"machinePattern": "^m", "detail": detail}));
    let execution = &task["result"][0];
    assert_eq!(execution["state"], "failed", "{execution}");
    assert_eq!(execution["exitCode"], Value::Null, "{execution}");
    execution["msg"].as_str().unwrap().to_owned()
}

fn executable(folder: &Folder, name: &str, content: &[u8]) -> String {
    let path = folder.file(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Issue 16, number 5.
#[test]
fn what_is_missing_when_a_program_cannot_be_started_is_named() {
    let server = Server::start();
    let _agent = server.agent("m");
    let folder = Folder::new();
    let crlf = executable(&folder, "crlf", b"#!/bin/sh\r\necho\r\n");
    let lost = executable(&folder, "lost", b"#!/opt/no/such/perl -w\nprint 1\n");
    let text = executable(&folder, "text", b"hello\n");
    let plain = folder.file("plain");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    for (program, words) in [
        (&*crlf, "CR LF"),
        (
            &*lost,
            "\"/opt/no/such/perl\" in its first line is not on this machine",
        ),
        (&*text, "first line names an interpreter"),
        (&*plain, "chmod +x"),
        (folder.path(), "it is a folder"),
        ("/no/such/program", "there is no such file"),
    ] {
        let msg = refusal(&server, json!({"argv": [program]}));
        assert!(
            msg.starts_with("cannot start ") && msg.contains(program),
            "{msg}"
        );
        assert!(msg.contains(words), "{msg}");
    }
    let relative = refusal(
        &server,
        json!({"argv": ["./crlf"], "workspace": folder.path()}),
    );
    assert!(relative.contains("CR LF"), "{relative}");
}

/// Issue 16, number 5.
#[test]
fn a_workspace_that_may_not_be_entered_is_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can start an agent that may not enter a folder");
        return;
    }
    let server = Server::start();
    let folder = Folder::new();
    let closed = folder.file("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    // The folder of the build may be closed to others: the agent is started as root and has no privilege left.
    let mut command = Command::new("setpriv");
    command
        .args([
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--",
            SIDEBIKE,
            "agent",
        ])
        .env("SIDEBIKE_MACHINE_LABEL", "m")
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
    let agent = Agent(Process::start(command));
    server.expect(&[&agent]);
    let msg = refusal(&server, json!({"command": "true", "workspace": closed}));
    assert!(
        msg.contains("workspace") && msg.contains("permission"),
        "{msg}"
    );
    assert!(msg.contains(&closed) && !msg.contains("bash"), "{msg}");
    assert_eq!(server.run(task("true"))["state"], "succeeded");
}
