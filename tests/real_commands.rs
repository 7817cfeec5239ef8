//! What real use does to commands and to those who run them: ends by signals, programs that cannot be started.
#![cfg(all(feature = "agent", feature = "server", feature = "cli"))]

mod common;

use common::said::sidebike;
use common::{Agent, Folder, Process, SIDEBIKE, Server, task};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

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

#[test]
fn what_is_missing_when_a_program_cannot_be_started_is_named() {
    let server = Server::start();
    let _agent = server.agent("m");
    let folder = Folder::new();
    let crlf = folder.program("crlf", b"#!/bin/sh\r\necho\r\n");
    let lost = folder.program("lost", b"#!/opt/no/such/perl -w\nprint 1\n");
    let text = folder.program("text", b"hello\n");
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

#[test]
fn a_command_runs_as_the_user_that_the_task_names() {
    let server = Server::start();
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can start an agent that may change its user");
        return;
    }
    let free = server.agent("free");
    let start = |label: &str, env: &[(&str, &str)]| Agent::start(server.address, label, env);
    let agents = [
        start("listed", &[("SIDEBIKE_ALLOW_USER", "nobody|daemon")]),
        start("strict", &[("SIDEBIKE_ALLOW", ".*")]),
        start(
            "both",
            &[("SIDEBIKE_ALLOW", ".*"), ("SIDEBIKE_ALLOW_USER", "nobody")],
        ),
    ];
    let mut powerless = Command::new("setpriv");
    powerless
        .args([
            "--reuid",
            "65534",
            "--clear-groups",
            "--",
            SIDEBIKE,
            "agent",
        ])
        .env("SIDEBIKE_MACHINE_LABEL", "powerless")
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
    let powerless = Agent(Process::start(powerless));
    let mut all: Vec<&Agent> = agents.iter().collect();
    all.extend([&free, &powerless]);
    server.expect(&all);
    let run = |label: &str, user: &str| {
        let line =
            "id -un; id -u; id -Gn; echo $HOME $USER $LOGNAME; cat /proc/self/status | grep ^Cap";
        let detail = json!({"command": line, "user": user});
        let task = server.run(json!({"machinePattern": format!("^{label}$"), "detail": detail}));
        task["result"][0].clone()
    };
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let nobody: Vec<&str> = passwd
        .lines()
        .find_map(|line| {
            line.starts_with("nobody:")
                .then(|| line.split(':').collect())
        })
        .unwrap();
    for user in ["nobody", nobody[2]] {
        let execution = run("free", user);
        let lines: Vec<&str> = execution["stdout"].as_str().unwrap().lines().collect();
        let home = format!("{} nobody nobody", nobody[5]);
        assert_eq!(
            (lines[0], lines[1], lines[3]),
            ("nobody", nobody[2], &*home)
        );
        assert!(!lines[2].contains("root"), "{lines:?}");
        let effective = lines.iter().find_map(|line| line.strip_prefix("CapEff:"));
        assert_eq!(effective.map(str::trim), Some("0000000000000000"));
    }
    for (label, user, words) in [
        ("free", "no-such-user", "there is no user"),
        ("listed", "daemon", ""),
        ("listed", "root", "--allow-user"),
        ("listed", "0", "--allow-user"),
        ("strict", "nobody", "only with --allow-user"),
        ("both", "nobody", ""),
        ("both", "daemon", "--allow-user"),
        ("powerless", "daemon", "does not run as root"),
    ] {
        let execution = run(label, user);
        let msg = execution["msg"].as_str().unwrap();
        let is_refused = execution["state"] == "failed" && execution["exitCode"].is_null();
        assert_eq!(is_refused, !words.is_empty(), "{label} {user}: {execution}");
        assert!(msg.contains(words), "{label} {user}: {msg}");
    }
    let said = sidebike(
        &server,
        &["run", "-m", "free", "--user", "nobody", "--", "id -un"],
    );
    assert_eq!((&*said.out, said.code), ("nobody\n", 0));
    let said = sidebike(&server, &["run", "-m", "free", "--user", "", "--", "id"]);
    assert!(
        said.code == 2 && said.err.contains("--user"),
        "{}",
        said.err
    );
}

#[test]
fn standard_input_may_be_any_bytes() {
    let server = Server::start();
    let _agent = server.agent("m");
    let folder = Folder::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let file = folder.file("input");
    fs::write(&file, &bytes).unwrap();
    let copy = folder.file("copy");
    let said = sidebike(
        &server,
        &["run", "--stdin", &file, "--", &format!("cat > {copy}")],
    );
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(fs::read(&copy).unwrap() == bytes);
    for (detail, words) in [
        (
            json!({"command": "cat", "stdinBase64": "!"}),
            "detail.stdinBase64: must be base64",
        ),
        (
            json!({"command": "cat", "stdinBase64": "", "stdin": ""}),
            "stdin and stdinBase64",
        ),
    ] {
        let reply = server.post(
            "/api/v1/task",
            &json!({"machinePattern": "m", "detail": detail}),
        );
        assert_eq!(reply.status, 400);
        assert!(reply.text().contains(words), "{}", reply.text());
    }
}

/// With the default limits.
#[test]
fn standard_input_and_scripts_of_one_mebibyte_arrive() {
    const MIB: usize = 1 << 20;
    let server = Server::start();
    let _agent = server.agent("m");
    let folder = Folder::new();
    let of = |name: &str, part: &[u8], bytes: usize| {
        let file = folder.file(name);
        let content: Vec<u8> = part.iter().copied().cycle().take(bytes).collect();
        fs::write(&file, content).unwrap();
        file
    };
    let all: Vec<u8> = (0..=255).collect();
    let script_text = b"# \"a\" 'comment' \\ and\ttabs\n";
    let script = of("script", script_text, MIB - 20);
    let mut text = fs::read(&script).unwrap();
    text.truncate(text.iter().rposition(|byte| *byte == b'\n').unwrap() + 1);
    text.extend_from_slice(b"cksum\n");
    fs::write(&script, text).unwrap();
    for (name, part) in [
        ("bytes", &all[..]),
        ("text", b"plain text\n"),
        ("quotes", b"\"\\\n"),
        ("control", b"\x01"),
    ] {
        let file = of(name, part, MIB);
        let output = Command::new("cksum")
            .stdin(fs::File::open(&file).unwrap())
            .output();
        let right = String::from_utf8(output.unwrap().stdout).unwrap();
        let said = sidebike(&server, &["run", "--stdin", &file, "--script", &script]);
        assert_eq!(
            (&*said.out, said.code),
            (&*right, 0),
            "{name}: {}",
            said.err
        );
    }
    let file = of("long", b"x", MIB + 1);
    for flag in ["--stdin", "--script"] {
        let words = ["run", flag, &file, "--", "cat"];
        let said = sidebike(&server, &words);
        assert_eq!(said.code, 2, "{flag}: {}", said.err);
        let why = format!("{flag}: {file} has 1048577 bytes, 1048576 at most");
        assert!(said.err.contains(&why), "{}", said.err);
    }

    // What others post: the error says which limit it is.
    let post = |detail: Value| {
        let task = json!({"machinePattern": "m", "detail": detail});
        let reply = server.post("/api/v1/task", &task);
        (reply.status, reply.msg())
    };
    let long = "x".repeat(MIB + 1);
    let (status, msg) = post(json!({"command": "cat", "stdin": long}));
    assert_eq!(status, 400);
    assert!(
        msg.starts_with("detail.stdin: must have 1048576 bytes"),
        "{msg}"
    );
    let (status, msg) = post(json!({"command": "cat", "stdinBase64": "AAAA".repeat(MIB / 3 + 1)}));
    assert_eq!(status, 400);
    assert!(
        msg.starts_with("detail.stdinBase64: must have 1048576 bytes"),
        "{msg}"
    );
    let control = "\u{1}".repeat(MIB);
    let (status, msg) = post(json!({"command": "cat", "stdin": control}));
    assert_eq!(status, 413);
    assert!(msg.contains("--max-body"), "{msg}");
    let (status, msg) = post(json!({"argv": vec![""; 20_000]}));
    assert_eq!(status, 400);
    assert!(
        msg.contains("detail.argv: a list has more than 16384 entries"),
        "{msg}"
    );
}

/// An agent, also an older one, reads answers up to a length.
#[test]
fn an_answer_is_not_longer_than_agents_read() {
    const READ_BYTES: usize = (4 << 20) + (64 << 10);
    let server = Server::start();
    let tasks: Vec<Value> = (0..4)
        .map(|n| {
            let input = "\n".repeat((1 << 20) - n);
            let detail = json!({"command": "wc -c", "stdin": input});
            server.submit(json!({"machinePattern": "m", "detail": detail}))
        })
        .collect();
    let mut poll = json!({"instance": "0123456789abcdef", "seq": 1, "label": "raw-m", "version": "0.0.9", "jobs": 8});
    let mut handed_out = 0;
    for seq in 1..=tasks.len() {
        poll["seq"] = json!(seq);
        let reply = server.post("/api/v1/agent/poll", &poll);
        assert!(reply.body.len() <= READ_BYTES, "{}", reply.body.len());
        let orders = reply.data();
        let start = orders["start"].as_array().expect("work");
        assert!(!start.is_empty());
        handed_out += start.len();
        if handed_out == tasks.len() {
            break;
        }
        let holds = start
            .iter()
            .map(|job| json!({"execution": job["execution"], "attempt": 1, "state": "running"}));
        let held = poll["holds"].as_array().cloned().unwrap_or_default();
        poll["holds"] = held.into_iter().chain(holds).collect();
    }
    assert_eq!(handed_out, tasks.len());

    let _agent = server.agent("real-m");
    let runs: Vec<Value> = (0..4)
        .map(|n| {
            let input = "\n".repeat((1 << 20) - n);
            let detail = json!({"command": "wc -c", "stdin": input});
            server.submit(json!({"machinePattern": "real-m", "detail": detail}))
        })
        .collect();
    for (n, task) in runs.iter().enumerate() {
        let task = server.finished(common::id(task));
        let length = ((1 << 20) - n).to_string();
        assert_eq!(
            task["result"][0]["output"],
            json!([length]),
            "{}",
            task["state"]
        );
    }
}

#[test]
fn merged_output_is_in_the_order_of_the_writes() {
    let server = Server::start();
    let _agent = server.agent("m");
    let line = "for i in 1 2 3; do echo o$i; echo e$i >&2; done";
    let said = sidebike(&server, &["run", "--merge", "--", line]);
    assert_eq!((&*said.out, &*said.err), ("o1\ne1\no2\ne2\no3\ne3\n", ""));
}

#[test]
fn an_older_agent_is_not_handed_what_it_cannot_do() {
    let server = Server::start();
    // As an agent polls that knows no features.
    let poll = json!({"instance": "0123456789abcdef", "seq": 1, "label": "m", "version": "0.0.9", "jobs": 4});
    assert_eq!(server.post("/api/v1/agent/poll", &poll).status, 200);
    for (field, value) in [
        ("user", json!("nobody")),
        ("stdinBase64", json!("AAAA")),
        ("mergeOutput", json!(true)),
    ] {
        let mut task = task("true");
        task["detail"][field] = value;
        let task = server.submit(task);
        let mut again = poll.clone();
        again["seq"] = json!(2 + server.metric("sidebike_tasks{state=\"failed\"}"));
        let orders = server.post("/api/v1/agent/poll", &again).data();
        assert!(
            orders["start"].as_array().is_none_or(Vec::is_empty),
            "{orders}"
        );
        let execution = server.finished(common::id(&task))["result"][0].clone();
        assert_eq!(execution["state"], "failed");
        let msg = execution["msg"].as_str().unwrap();
        assert!(msg.contains(field) && msg.contains("0.0.9"), "{msg}");
        assert!(msg.contains(env!("CARGO_PKG_VERSION")), "{msg}");
    }
    let mut plain = task("true");
    plain["detail"]["mergeOutput"] = json!(false);
    server.submit(plain);
    let mut again = poll.clone();
    again["seq"] = json!(100);
    let orders = server.post("/api/v1/agent/poll", &again).data();
    assert_eq!(orders["start"].as_array().map(Vec::len), Some(1));
}

#[test]
fn what_any_machine_may_run_waits_for_an_agent_that_can() {
    let server = Server::start();
    // As an agent polls that knows no features: it is free and waits.
    let older = json!({"instance": "0123456789abcdef", "seq": 1, "label": "older", "version": "0.0.9", "jobs": 4});
    assert_eq!(server.post("/api/v1/agent/poll", &older).status, 200);
    let any = |detail: Value| json!({"machinePattern": ".*", "mode": "any", "detail": detail});
    let beyond = [
        any(json!({"script": "#!/bin/sh\necho by a script\n"})),
        any(json!({"command": "cat", "stdinBase64": "AAAA"})),
    ];
    let beyond = beyond.map(|task| server.submit(task));
    let within = server.submit(any(json!({"command": "true"})));
    let mut again = older.clone();
    again["seq"] = json!(2);
    let orders = server.post("/api/v1/agent/poll", &again).data();
    let start = orders["start"].as_array().unwrap();
    assert_eq!(start.len(), 1, "{orders}");
    assert_eq!(start[0]["taskId"], within["id"]);
    for task in &beyond {
        let task = server.task(common::id(task));
        let execution = &task["result"][0];
        assert_eq!(execution["state"], "queued");
        let msg = execution["msg"].as_str().unwrap();
        assert!(msg.contains("waits for a machine whose agent"), "{msg}");
    }
    let _newer = server.agent("newer");
    for task in &beyond {
        let task = server.finished(common::id(task));
        assert_eq!(task["state"], "succeeded", "{task}");
        assert_eq!(task["result"][0]["machineLabel"], "newer");
        assert_eq!(task["result"][0]["msg"], "");
    }
}

#[test]
fn a_script_of_any_interpreter_runs_with_arguments_and_leaves_no_file() {
    let server = Server::start();
    let _agent = server.agent("m");
    let folder = Folder::new();
    let long = "# a comment of a long script\n".repeat(10_000);
    assert!(long.len() > 128 * 1024);
    for (name, text, wanted) in [
        (
            "sh",
            "#!/bin/sh\necho \"$#\" \"$1\" \"$2\"\n".to_owned(),
            "2 a b c\n",
        ),
        (
            "none",
            "echo \"$#\" \"$1\" \"$2\"\n".to_owned(),
            "2 a b c\n",
        ),
        (
            "python",
            "#!/usr/bin/env python3\nimport sys\nprint(len(sys.argv) - 1, *sys.argv[1:])\n"
                .to_owned(),
            "2 a b c\n",
        ),
        (
            "awk",
            "#!/usr/bin/awk -f\nBEGIN { print ARGC - 1, ARGV[1], ARGV[2] }\n".to_owned(),
            "2 a b c\n",
        ),
        (
            "long",
            format!("#!/bin/sh\n{long}echo $# $1 $2\n"),
            "2 a b c\n",
        ),
    ] {
        let file = folder.file(name);
        fs::write(&file, text).unwrap();
        let said = sidebike(&server, &["run", "--script", &file, "--", "a b", "c"]);
        assert_eq!((&*said.out, said.code), (wanted, 0), "{name}: {}", said.err);
    }
    let file = folder.file("options");
    fs::write(&file, "#!/bin/sh -e\nfalse\necho not reached\n").unwrap();
    let said = sidebike(&server, &["run", "--script", &file]);
    assert_eq!((&*said.out, said.code), ("", 1));
    fs::write(&file, "#!/no/interpreter\n").unwrap();
    let said = sidebike(&server, &["run", "--script", &file]);
    assert_eq!(said.code, 126);
    assert!(
        said.err
            .contains("cannot start the script: the interpreter \"/no/interpreter\""),
        "{}",
        said.err
    );
    for (detail, words) in [
        (json!({"script": ""}), "detail.script: must not be empty"),
        (json!({"script": "x", "command": "x"}), "give one of them"),
        (
            json!({"scriptArgs": ["x"], "command": "x"}),
            "detail.scriptArgs",
        ),
    ] {
        let reply = server.post(
            "/api/v1/task",
            &json!({"machinePattern": "m", "detail": detail}),
        );
        assert!(
            reply.status == 400 && reply.text().contains(words),
            "{}",
            reply.text()
        );
    }
    if rustix::process::geteuid().is_root() {
        fs::write(&file, "#!/bin/sh\nid -un\n").unwrap();
        let said = sidebike(
            &server,
            &["run", "--user", "nobody", "--script", &file, "--", "x"],
        );
        assert_eq!((&*said.out, said.code), ("nobody\n", 0), "{}", said.err);
    }
}
