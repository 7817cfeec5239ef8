//! The commands for people, as scripts see them: output, exit codes, JSON, pipes.

mod common;

use common::said::{Said, command, sidebike, with_input};
use common::{Folder, SIDEBIKE, Server, wait_until};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::thread;

#[test]
fn one_machine_is_like_ssh() {
    let server = Server::start();
    let _agent = server.agent("m");
    let said = sidebike(
        &server,
        &["run", "--", "printf a;", "echo $((1+1)); echo err >&2"],
    );
    assert_eq!((&*said.out, &*said.err, said.code), ("a2\n", "err\n", 0));
    let said = sidebike(
        &server,
        &["run", "--exec", "--", "printf", "%s|", "a b", "$HOME"],
    );
    assert_eq!((&*said.out, said.code), ("a b|$HOME|", 0));
    let said = sidebike(
        &server,
        &[
            "run",
            "--env",
            "A=b=c",
            "--workspace",
            "/",
            "--",
            "echo $A; pwd",
        ],
    );
    assert_eq!(said.out, "b=c\n/\n");
    let said = with_input(&server, &["run", "--stdin", "-", "--", "cat"], "text\n");
    assert_eq!(said.out, "text\n");
    let said = with_input(
        &server,
        &["run", "--script", "-"],
        "#!/bin/sh\nfor i in 1 2; do\necho $i\ndone\n",
    );
    assert_eq!((&*said.out, said.code), ("1\n2\n", 0));
    let python = with_input(
        &server,
        &["run", "--script", "-"],
        "#!/usr/bin/env python3\nprint(6 * 7)\n",
    );
    assert_eq!((&*python.out, python.code), ("42\n", 0), "{}", python.err);
}

#[test]
fn exit_codes_are_the_worst_of_all() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    for (words, code) in [
        (
            &["--", "test $SIDEBIKE_MACHINE_LABEL = m1 || exit 7"][..],
            7,
        ),
        (&["-m", "nobody", "--", "true"], 3),
        (&["-m", "nobody", "--any", "--", "true"], 3),
        (&["--timeout", "200ms", "--", "sleep 60"], 124),
        (&["--ttl", "soon", "--", "true"], 2),
        (&["--ttl", "0", "--", "true"], 2),
        (&["-m", "m1", "--", "kill -9 $$"], 137),
        (&["-m", "m1", "--exec", "--", "/no/such/program"], 126),
        (&["--any", "--", "true"], 0),
        (&["--timeout", "soon", "--", "true"], 2),
        (&["-m", "(", "--", "true"], 2),
        (&["-m", "", "--", "true"], 2),
        (&["--timeout", "0", "--", "true"], 2),
        (&["--name", "", "--", "true"], 2),
        (&["--"], 2),
    ] {
        let said = sidebike(&server, &[&["run"], words].concat());
        assert_eq!(said.code, code, "{words:?}: {} {}", said.out, said.err);
        assert!(
            said.out.is_empty() && (code == 0 || !said.err.is_empty()),
            "{words:?}"
        );
    }
    let nobody = Command::new(SIDEBIKE)
        .args(["run", "--registry-address", "127.0.0.1:1", "--", "true"])
        .output()
        .unwrap();
    let nobody = Said::of(nobody);
    assert_eq!(nobody.code, 255);
    assert!(nobody.err.contains("--registry-address"), "{}", nobody.err);
}

#[test]
fn nobody_waits_longer_than_the_ttl_for_a_machine_that_may_be_gone() {
    let server = Server::start();
    // Killed without a word: for the server it may be there yet.
    drop(server.agent("gone"));
    let said = sidebike(&server, &["run", "--ttl", "300ms", "--", "true"]);
    assert_eq!(said.code, 125, "{}", said.err);
    assert!(said.err.contains("1 expired"), "{}", said.err);
}

#[test]
fn several_machines_have_labels_and_a_summary() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let line = "echo hi; printf rest; test $SIDEBIKE_MACHINE_LABEL = m1";
    let said = sidebike(&server, &["run", "--", line]);
    assert_eq!(
        said.sorted(),
        ["m1 | hi", "m1 | rest", "m2 | hi", "m2 | rest"]
    );
    assert!(said.err.contains("on 2 machines: m1, m2\n"), "{}", said.err);
    assert!(
        said.err.contains("1 succeeded, 1 failed in "),
        "{}",
        said.err
    );
    assert!(
        said.err.contains("  m2  failed: exit code 1\n"),
        "{}",
        said.err
    );
    assert!(
        !said.err.contains('\x1b'),
        "no terminal, no colours: {}",
        said.err
    );

    let said = sidebike(&server, &["run", "--fold", "--", "echo same"]);
    assert_eq!(said.out, "── m1, m2 (2 machines) succeeded\nsame\n");
    let said = sidebike(
        &server,
        &["run", "--fold", "--", "echo $SIDEBIKE_MACHINE_LABEL"],
    );
    assert_eq!(said.out.matches("(1 machine)").count(), 2, "{}", said.out);

    let said = sidebike(&server, &["run", "--json", "--", "echo hi"]);
    assert_eq!(said.json()["counts"]["succeeded"], 2);
    let said = sidebike(&server, &["run", "--any", "--json", "--", "echo hi"]);
    assert_eq!(said.json()["result"].as_array().map(Vec::len), Some(1));
}

#[test]
fn many_machines_want_a_yes_and_a_dry_run_runs_nothing() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = (server.agent("m1"), server.agent("m2"));
    let touch = format!("touch {}", folder.file("ran"));
    let said = sidebike(&server, &["run", "--yes-above", "1", "--", &touch]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("--yes"), "{}", said.err);
    let said = sidebike(&server, &["run", "--dry-run", "--", &touch]);
    assert_eq!(said.code, 0);
    let labels = said.out.lines().map(|line| line.split(' ').next().unwrap());
    assert_eq!(labels.collect::<Vec<_>>(), ["LABEL", "m1", "m2"]);
    let said = sidebike(
        &server,
        &["run", "--dry-run", "--json", "-m", "m2", "--", &touch],
    );
    assert_eq!(said.json()["matched"], 1);
    assert_eq!(said.json()["machines"][0]["label"], "m2");
    assert_eq!(
        sidebike(&server, &["run", "--dry-run", "-m", "x", "--", "x"]).code,
        3
    );
    assert_eq!(server.get("/api/v1/task").data(), serde_json::json!([]));
    assert!(!std::path::Path::new(&folder.file("ran")).exists());
    let said = sidebike(&server, &["run", "--yes-above", "1", "--yes", "--", &touch]);
    assert_eq!(said.code, 0);
    assert!(std::path::Path::new(&folder.file("ran")).exists());
}

#[test]
fn a_task_is_left_alone_looked_at_canceled_and_run_again() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = (server.agent("m1"), server.agent("m2"));
    let line = "echo out; test -e go || exit 4";
    let words = [
        "run",
        "--detach",
        "--name",
        "try",
        "--workspace",
        folder.path(),
        "--",
        line,
    ];
    let id = sidebike(&server, &words).out;
    let id = id.trim();
    assert_eq!(sidebike(&server, &["wait", id]).code, 4);
    let short = &id[..id.len() - 4];
    let shown = sidebike(&server, &["show", short]);
    assert!(
        shown.out.contains("exit code 4") && shown.out.contains("── m1\nout\n"),
        "{}",
        shown.out
    );
    assert_eq!(
        sidebike(&server, &["show", "try", "--json"]).json()["id"],
        id
    );
    let logs = sidebike(&server, &["logs", short]);
    assert_eq!(logs.sorted(), ["m1 | out", "m2 | out"]);
    assert_eq!(
        sidebike(&server, &["logs", "-f", id, "-m", "m2"]).out,
        "out\n"
    );
    let wrong = sidebike(&server, &["logs", id, "-m", "m3"]);
    assert!(
        wrong.code == 1 && wrong.err.contains("m1, m2"),
        "{}",
        wrong.err
    );
    for line in sidebike(&server, &["logs", id, "--json"]).out.lines() {
        assert!(serde_json::from_str::<Value>(line).unwrap()["event"].is_string());
    }

    std::fs::write(folder.file("go"), "").unwrap();
    let again = sidebike(&server, &["rerun", short]);
    assert_eq!((again.code, again.sorted().len()), (0, 2), "{}", again.err);
    let none = sidebike(&server, &["rerun", "try"]);
    assert_eq!(none.code, 255);
    assert_eq!(
        sidebike(&server, &["rerun", "--all", "--json", "try"]).code,
        0
    );

    let id = sidebike(&server, &["run", "--detach", "--", "sleep 60"]).out;
    let id = id.trim();
    let timed_out = sidebike(&server, &["wait", "--timeout", "50ms", id]);
    assert_eq!(timed_out.code, 124);
    assert!(
        sidebike(&server, &["cancel", id, "-m", "m1"])
            .out
            .contains("canceled")
    );
    server.when(id, "canceled", 1);
    assert_eq!(sidebike(&server, &["cancel", &id[..id.len() - 3]]).code, 0);
    assert_eq!(sidebike(&server, &["wait", id]).code, 130);
    assert!(sidebike(&server, &["cancel", id]).out.contains("had ended"));
}

#[test]
fn lists_are_tables_or_json() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    sidebike(
        &server,
        &["run", "-m", "m1", "--name", "first", "--", "exit 1"],
    );
    sidebike(&server, &["run", "--name", "故障注入", "--", "echo second"]);
    let said = sidebike(&server, &["ps"]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines.len(), 3, "{}", said.out);
    assert!(lines[1].contains("succeeded  2/2") && lines[1].ends_with("故障注入  echo second"));
    assert!(lines[2].contains("1/1, 1 not ok"));
    let id = lines[2].split(' ').next().unwrap();
    assert_eq!(
        sidebike(&server, &["wait", id]).code,
        1,
        "ids are shown as they are taken"
    );
    let failed = sidebike(&server, &["ps", "--state", "failed", "--json"]);
    assert_eq!(failed.json()[0]["name"], "first");
    assert_eq!(sidebike(&server, &["ps", "--state", "bad"]).code, 2);
    assert_eq!(sidebike(&server, &["ps", "-n", "1"]).out.lines().count(), 2);
    let machines = sidebike(&server, &["machines"]);
    assert!(
        machines.out.starts_with("LABEL  STATE "),
        "{}",
        machines.out
    );
    let one = sidebike(&server, &["machines", "-m", "m2", "--json"]);
    assert_eq!(one.json().as_array().map(Vec::len), Some(1));
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let mut command = command(&server, &["run", "--", "seq 100000"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!(said.code, 141);
    assert_eq!(
        said.err.lines().count(),
        1,
        "only who runs it: {}",
        said.err
    );
}

#[test]
fn a_script_that_is_interrupted_cancels() {
    let server = Server::start();
    let _agent = server.agent("m");
    let command = command(&server, &["run", "--", "echo ready; sleep 60"]);
    // A session of its own: nobody there to ask.
    let mut all = Command::new("setsid");
    all.arg("--wait")
        .arg(command.get_program())
        .args(command.get_args());
    all.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let child = all
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    let running = wait_until("it runs", || {
        let tasks = server.get("/api/v1/task?state=running").data();
        (tasks[0]["counts"]["running"] == 1).then(|| tasks[0].clone())
    });
    let pid = wait_until("its process", || child_of(child.id()));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!(said.code, 130, "{}", said.err);
    let begun = ": being canceled on 1 of 1 machines: m\n";
    assert!(said.err.contains(begun), "{}", said.err);
    assert_eq!(server.finished(common::id(&running))["state"], "canceled");
}

/// The child of a process, or the process itself when it has become the program.
fn child_of(pid: u32) -> Option<rustix::process::Pid> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let found = match children.split_whitespace().next() {
        Some(child) => child.parse().ok()?,
        None if name.trim() == "sidebike" => pid as i32,
        None => return None,
    };
    rustix::process::Pid::from_raw(found)
}

/// A way to the server that breaks: each of the first streams of output after some bytes.
fn breaking_proxy(server: SocketAddr, breaks: usize, after: i64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let breaks = Arc::new(AtomicUsize::new(breaks));
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let upstream = TcpStream::connect(server).unwrap();
            let (from, to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            let room = Arc::new(AtomicI64::new(i64::MAX));
            let (breaks, limit) = (breaks.clone(), room.clone());
            thread::spawn(move || {
                forward(from, to, |bytes| {
                    let is_stream = String::from_utf8_lossy(bytes).contains("/output?");
                    let less = |left: usize| left.checked_sub(1);
                    if is_stream && breaks.fetch_update(SeqCst, SeqCst, less).is_ok() {
                        limit.store(after, SeqCst);
                    }
                    true
                })
            });
            thread::spawn(move || {
                forward(upstream, client, |bytes| {
                    let n = bytes.len() as i64;
                    room.fetch_sub(n, SeqCst) > n
                })
            });
        }
    });
    address
}

/// Passes bytes on until the end, or until `goes_on` says no.
fn forward(mut from: TcpStream, mut to: TcpStream, mut goes_on: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if !goes_on(&buffer[..n]) || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn broken_connections_lose_and_repeat_nothing() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let proxy = breaking_proxy(server.address, 3, 1_500).to_string();
    let line = "for i in $(seq 100); do echo line $i; sleep 0.01; done; printf end";
    let words = ["run", "--registry-address", &proxy, "--", line];
    let said = sidebike(&server, &words);
    assert_eq!(said.code, 0, "{}", said.err);
    for machine in ["m1 | ", "m2 | "] {
        let lines: Vec<&str> = said
            .out
            .lines()
            .filter_map(|l| l.strip_prefix(machine))
            .collect();
        let mut expected: Vec<String> = (1..=100).map(|i| format!("line {i}")).collect();
        expected.push("end".into());
        assert_eq!(lines, expected);
    }
    assert!(said.err.contains("trying again"), "{}", said.err);
}

#[test]
fn every_command_explains_itself() {
    let help = |words: &[&str]| {
        let said = Said::of(Command::new(SIDEBIKE).args(words).output().unwrap());
        assert_eq!(said.code, 0, "{words:?}: {}", said.err);
        said.out
    };
    let commands = [
        "run",
        "ps",
        "show",
        "logs",
        "cancel",
        "rerun",
        "machines",
        "wait",
        "completions",
        "man",
    ];
    for command in commands {
        assert!(
            help(&[command, "--help"]).contains("Examples:"),
            "{command}"
        );
        assert!(help(&["man", command]).contains(&format!("sidebike\\-{command}")));
        assert!(help(&["--help"]).contains(&format!("  {command} ")));
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = help(&["completions", shell]);
        assert!(script.contains("machines") && !script.contains("guard"));
    }
    assert!(help(&["man"]).contains(".TH sidebike 1"));
    assert!(help(&["man", "db", "check"]).contains("sidebike db check"));
    assert!(help(&["man", "agent"]).contains("SIDEBIKE_JOBS"));
    let hidden = Command::new(SIDEBIKE).args(["man", "agent-guard"]).output();
    assert_eq!(Said::of(hidden.unwrap()).code, 2);
}
