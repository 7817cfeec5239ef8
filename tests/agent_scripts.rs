//! Scripts on machines that cannot hand them over in memory: without /proc, or where files in memory may not be executed.
#![cfg(feature = "agent")]

mod fake;

use fake::{Agent, Server, eventually, unshare};
use serde_json::json;
use sidebike::wire::agent::Stream;
use sidebike::wire::task::ExecutionState;
use std::path::Path;

/// No /proc for the agent.
const NO_PROC: &str = "mount -t tmpfs none /proc;";
/// Says its own path, its mode, its argument and its input.
const SAYS: &str = "echo $0; stat -L -c %a $0; echo $1; cat\n";

/// The lines that a script wrote, and how it ended.
fn run(server: &Server, name: &str, script: &str, more: &[(&str, &str)]) -> (Vec<String>, String) {
    let mut detail = json!({"script": script, "scriptArgs": ["a b"], "stdin": "input\n"});
    for (field, value) in more {
        detail[field] = json!(value);
    }
    server.start(name, detail);
    let result = server.result(name);
    let is_well = result.state == ExecutionState::Succeeded;
    assert!(is_well || !result.msg.is_empty(), "{result:?}");
    let text = server.text(name, Stream::Stdout);
    (text.lines().map(str::to_owned).collect(), result.msg)
}

#[test]
fn without_proc_a_script_is_a_file_until_the_command_has_ended() {
    let Some(unshare) = unshare(&["--mount"], NO_PROC) else {
        return;
    };
    let server = Server::new();
    let _agent = Agent::start_by(unshare, &server);
    let python = "#!/usr/bin/env python3\nimport os, sys\npath = sys.argv[0]\nprint(path)\nprint('%o' % (os.stat(path).st_mode & 0o777))\nprint(sys.argv[1])\nprint(sys.stdin.read(), end='')\n";
    for (name, script) in [
        ("sh", format!("#!/bin/sh\n{SAYS}")),
        ("none", SAYS.to_owned()),
        ("python", python.to_owned()),
    ] {
        let (lines, msg) = run(&server, name, &script, &[]);
        assert_eq!(msg, "");
        let [path, said @ ..] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert!(path.contains("/sidebike-script-"), "{path}");
        assert!(!Path::new(path).exists(), "{path}");
        assert_eq!(said, ["700", "a b", "input"]);
    }
    let nobody = [("user", "nobody")];
    let (lines, msg) = run(
        &server,
        "user",
        "#!/bin/sh\nid -un; cat $0 | wc -l\n",
        &nobody,
    );
    assert_eq!((lines, &*msg), (vec!["nobody".into(), "2".into()], ""));
    let (_, msg) = run(&server, "missing", "#!/no/interpreter\n", &[]);
    assert!(
        msg.starts_with("cannot start the script: the interpreter \"/no/interpreter\""),
        "{msg}"
    );
}

#[test]
fn the_file_of_a_script_is_gone_when_its_agent_was_killed() {
    let Some(unshare) = unshare(&["--mount"], NO_PROC) else {
        return;
    };
    let server = Server::new();
    let mut agent = Agent::start_by(unshare, &server);
    server.start(
        "x",
        json!({"script": "#!/bin/sh\necho $0\nexec sleep 300\n"}),
    );
    eventually("it says its path", || {
        server.text("x", Stream::Stdout).ends_with('\n')
    });
    let path = server.text("x", Stream::Stdout).trim().to_owned();
    assert!(Path::new(&path).exists(), "{path}");
    agent.signal("KILL");
    agent.wait();
    eventually("it is removed", || !Path::new(&path).exists());
}

/// The system forbids to execute files in memory: then the file has no name.
#[test]
fn where_files_in_memory_may_not_be_executed_a_script_has_no_name() {
    let namespaces = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let forbid = "echo 2 > /proc/sys/vm/memfd_noexec || exit;";
    let Some(unshare) = unshare(&namespaces, forbid) else {
        return;
    };
    let server = Server::new();
    let _agent = Agent::start_by(unshare, &server);
    let script = format!("#!/bin/sh\nreadlink $0\n{SAYS}");
    let (lines, msg) = run(&server, "x", &script, &[]);
    assert_eq!(msg, "");
    let [file, path, said @ ..] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert!(
        file.contains("/sidebike-script-") && file.ends_with(" (deleted)"),
        "{file}"
    );
    assert!(path.starts_with("/proc/self/fd/"), "{path}");
    assert_eq!(said, ["700", "a b", "input"]);
    // What is only read by a shell need not be executed.
    let (lines, _) = run(&server, "none", &format!("readlink $0\n{SAYS}"), &[]);
    assert!(lines[0].starts_with("/memfd:"), "{lines:?}");
}

#[test]
fn a_script_is_put_where_it_may_be_executed_and_refused_where_there_is_no_such_place() {
    let server = Server::new();
    // As in many containers.
    let noexec = "mount -t tmpfs -o noexec none /dev/shm; export TMPDIR=/var/tmp;";
    let Some(noexec) = unshare(&["--mount"], &format!("{NO_PROC} {noexec}")) else {
        return;
    };
    let agent = Agent::start_by(noexec, &server);
    let (lines, msg) = run(&server, "program", &format!("#!/bin/sh\n{SAYS}"), &[]);
    assert_eq!(msg, "");
    assert!(
        lines[0].starts_with("/var/tmp/sidebike-script-"),
        "{lines:?}"
    );
    assert!(!Path::new(&lines[0]).exists());
    let (lines, _) = run(&server, "text", SAYS, &[]);
    assert!(
        lines[0].starts_with("/dev/shm/sidebike-script-"),
        "{lines:?}"
    );
    drop(agent);

    let server = Server::new();
    let read_only = "for folder in /dev/shm /tmp /var/tmp; do mount --bind $folder $folder; mount -o remount,bind,ro $folder; done; unset TMPDIR;";
    let Some(read_only) = unshare(&["--mount"], &format!("{NO_PROC} {read_only}")) else {
        return;
    };
    let _agent = Agent::start_by(read_only, &server);
    let (_, msg) = run(&server, "x", SAYS, &[]);
    for words in [
        "neither in memory",
        "/var/tmp: Read-only",
        "pass it as standard input",
    ] {
        assert!(msg.contains(words), "{words}: {msg}");
    }
}
