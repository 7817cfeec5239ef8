//! What real use does to output: too much of it, several machines of one name, long lines, readers that go away,
//! progress bars, two streams.
#![cfg(all(feature = "agent", feature = "server", feature = "cli"))]

mod common;

use common::said::{Said, command, sidebike};
use common::{Agent, Process, SIDEBIKE, Server, id, task, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// The header of an answer in plain text that says how many bytes are not in it.
const LEFT_OUT: &str = "Sidebike-Left-Out-Bytes";
/// Bytes of `seq 1 400000`, and those of them that are kept.
const SEQ_BYTES: usize = 2_688_895;
const KEPT_BYTES: usize = 1 << 20;

/// The body of an answer that ends with its connection.
fn read_to_end(server: &Server, target: &str) -> String {
    let mut socket = TcpStream::connect(server.address).unwrap();
    write!(socket, "GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn output_that_is_missing_is_said_on_standard_error() {
    let server = Server::start();
    let _agent = server.agent("m");
    let missing = SEQ_BYTES - KEPT_BYTES;
    let ended = server.run(task("seq 1 400000"));
    let id = id(&ended);
    assert_eq!(ended["result"][0]["missingBytes"], missing);
    let words = format!("sidebike: {missing} bytes of output are missing (m: {missing})");
    let logs = sidebike(&server, &["logs", id]);
    assert_eq!(logs.code, 0);
    // What is kept, and the end of the line in which the gap begins.
    assert_eq!(logs.out.len(), KEPT_BYTES + 1);
    assert!(!logs.out.contains("left out"), "it stands in the data");
    assert!(logs.err.contains(&words), "{}", logs.err);
    let wait = sidebike(&server, &["wait", id]);
    assert!(wait.err.contains(&words), "{}", wait.err);
    for format in ["--json", "--fold"] {
        let run = sidebike(&server, &["run", format, "--", "seq 1 400000"]);
        assert!(run.err.contains(&words), "{format}: {}", run.err);
    }
    // A follower may read more than is kept, or less. What it does not get, it is told.
    let run = sidebike(&server, &["run", "--", "seq 1 400000"]);
    let told = run.err.split_once("sidebike: ").map_or(0, |(_, rest)| {
        let number = rest.split(' ').next().unwrap();
        number.parse::<usize>().unwrap()
    });
    let ends = run.out.len() + told - SEQ_BYTES;
    assert!(ends <= run.err.matches("left out").count(), "{}", run.err);

    let plain = server.get(&format!("/api/v1/task/{id}/output"));
    assert_eq!(plain.header(LEFT_OUT), Some(&*missing.to_string()));
    let text = server.get(&format!("/api/v1/task/{id}?format=text"));
    let left_out = text.header(LEFT_OUT).expect("a header").parse::<usize>();
    assert!(left_out.unwrap() >= missing);
    let whole = server.run(task("echo all"));
    for target in ["/output", "?format=text"] {
        let path = format!("/api/v1/task/{}{target}", common::id(&whole));
        assert_eq!(server.get(&path).header(LEFT_OUT), None);
    }
}

#[test]
fn an_answer_without_all_that_is_kept_is_not_reported_as_missing() {
    let server = Server::start();
    let _agents = server.agents(2, "m");
    let ended = server.run(task("head -c 900000 /dev/zero | tr '\\0' x"));
    assert!(ended["result"][0]["truncatedBytes"].as_u64() > Some(0));
    let wait = sidebike(&server, &["wait", id(&ended)]);
    assert!(!wait.err.contains("missing"), "{}", wait.err);
}

/// The names that two machines with the label `dup` must have.
fn names_of(agents: &[Agent]) -> Vec<String> {
    let name = |agent: &Agent| format!("dup/{}", &agent.instance()[..8]);
    let mut names: Vec<String> = agents.iter().map(name).collect();
    names.sort();
    names
}

#[test]
fn machines_of_one_label_are_told_apart() {
    let server = Server::start();
    let agents = server.agents(2, "dup");
    let _other = server.agent("own");
    let names = names_of(&agents);
    let has_names = |text: &str, end: &str| {
        for name in &names {
            let wanted = format!("{name}{end}");
            assert!(text.contains(&wanted), "no {wanted:?} in {text}");
        }
        assert!(text.contains(&format!("own{end}")), "{text}");
    };
    let line = "echo $SIDEBIKE_INSTANCE; exit 3";
    let said = sidebike(&server, &["run", "--", line]);
    for agent in &agents {
        let instance = agent.instance();
        let wanted = format!("dup/{} | {instance}\n", &instance[..8]);
        assert!(said.out.contains(&wanted), "{}", said.out);
    }
    has_names(&said.out, " | ");
    has_names(&said.err, "  failed: exit code 3");
    let folded = sidebike(&server, &["run", "--fold", "--", "exit 3"]);
    assert!(folded.out.contains(&names.join(", ")), "{}", folded.out);
    let ended = server.run(json!({"machinePattern": ".", "detail": {"command": line}}));
    let of_task = |end: &str| {
        let path = format!("/api/v1/task/{}{end}", id(&ended));
        read_to_end(&server, &path)
    };
    has_names(&of_task("?format=text"), " | ");
    has_names(&of_task("?format=text"), " failed: exit code 3");
    has_names(&of_task("/output"), " | ");
    has_names(&of_task("/output?follow=1"), " | ");
    for words in [["logs", id(&ended)], ["show", id(&ended)]] {
        let said = sidebike(&server, &words);
        has_names(&said.out, " ");
    }
    // A task on one of them needs no more than the label.
    let one =
        server.run(json!({"machinePattern": "dup", "mode": "any", "detail": {"command": line}}));
    let text = server.get(&format!("/api/v1/task/{}?format=text", id(&one)));
    assert!(text.text().starts_with("dup | "), "{}", text.text());
}

#[test]
fn lines_of_several_machines_are_whole_up_to_1_mib() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let long = 900_000;
    let line = format!("head -c {long} /dev/zero | tr '\\0' x; echo; echo end");
    let ended = server.run(task(&line));
    let path = format!("/api/v1/task/{}/output?follow=1", id(&ended));
    let followed = read_to_end(&server, &path);
    let said = sidebike(&server, &["run", "--", &line]);
    let logs = sidebike(&server, &["logs", id(&ended)]);
    for text in [&followed, &said.out, &logs.out] {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable_by_key(|line| (line.len(), *line));
        assert_eq!(lines[..2], ["m1 | end", "m2 | end"]);
        assert_eq!(lines.len(), 4);
        for line in &lines[2..] {
            let (label, rest) = line.split_once(" | ").unwrap();
            assert!(["m1", "m2"].contains(&label));
            assert!(rest.len() == long && rest.bytes().all(|byte| byte == b'x'));
        }
    }
}

#[test]
fn a_longer_line_says_that_it_is_cut() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    // The line is followed while it is written: it is cut where it is longer than what is kept.
    let line =
        "for i in 1 2 3 4 5 6 7 8; do head -c 200000 /dev/zero | tr '\\0' x; sleep 0.7; done";
    let said = sidebike(&server, &["run", "--", line]);
    let lines: Vec<&str> = said.out.lines().collect();
    let is_cut = |line: &&&str| line.ends_with(" … (the line is cut here)");
    assert!(
        lines.iter().filter(is_cut).count() >= 2,
        "{} lines, {}",
        lines.len(),
        said.err
    );
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with("m1 | x") || line.starts_with("m2 | x"))
    );
    assert!(lines.iter().all(|line| line.len() < (1 << 20) + 40_000));
}

/// A `run` whose first line has been read.
fn running(server: &Server, words: &[&str]) -> (Child, String) {
    let mut command = command(server, words);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    // From here on nobody reads.
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    reader.read_line(&mut first).unwrap();
    drop(reader);
    (child, first)
}

const LOOP: &str = "while echo tick; do sleep 0.1; done";

#[test]
fn a_reader_that_goes_away_cancels() {
    let server = Server::start();
    let _agent = server.agent("m");
    let (child, first) = running(&server, &["run", "--", LOOP]);
    assert_eq!(first, "tick\n");
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!(said.code, 141);
    assert!(
        said.err.contains("the reader of the output is gone"),
        "{}",
        said.err
    );
    assert!(said.err.contains("canceled"), "{}", said.err);
    let task = server.newest();
    assert_eq!(server.finished(id(&task))["state"], "canceled");

    let (child, _) = running(&server, &["run", "--detach-on-exit", "--", LOOP]);
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!(said.code, 141);
    assert!(said.err.contains("detached; it runs on"), "{}", said.err);
    let task = server.newest();
    assert_eq!(server.task(id(&task))["state"], "running");
    server.post(&format!("/api/v1/task/{}/cancel", id(&task)), &json!({}));
}

#[test]
fn hup_cancels_unless_it_is_ignored() {
    let server = Server::start();
    let _agent = server.agent("m");
    let start = |starter: &[&str], flag: &[&str]| {
        let mut words = starter.to_vec();
        words.extend([SIDEBIKE, "run"]);
        words.extend(flag);
        words.extend(["--", "echo ready; sleep 60"]);
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut first = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut first)
            .unwrap();
        child
    };
    let hup = |child: &Child| kill_process(Pid::from_child(child), Signal::HUP).unwrap();
    let child = start(&["env"], &[]);
    hup(&child);
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!(said.code, 130, "{}", said.err);
    assert_eq!(server.finished(id(&server.newest()))["state"], "canceled");

    let child = start(&["env"], &["--detach-on-exit"]);
    hup(&child);
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!(said.code, 130, "{}", said.err);
    assert!(said.err.contains("detached"), "{}", said.err);
    let task = server.newest();
    assert_eq!(server.task(id(&task))["state"], "running");
    server.post(&format!("/api/v1/task/{}/cancel", id(&task)), &json!({}));

    let mut child = start(&["nohup"], &[]);
    hup(&child);
    assert!(child.try_wait().unwrap().is_none(), "nohup is not honoured");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_progress_bar_of_several_machines_is_its_last_state() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let line = "printf '10%%\\r50%%\\r100%%\\ndone\\r\\n'";
    let ended = server.run(task(line));
    let path = |end: &str| format!("/api/v1/task/{}{end}", id(&ended));
    let wanted = "m1 | 100%\nm1 | done\nm2 | 100%\nm2 | done\n";
    for text in ["/output", "?format=text"] {
        assert_eq!(server.get(&path(text)).text(), wanted, "{text}");
    }
    for words in [vec!["run", "--", line], vec!["logs", id(&ended)]] {
        let said = sidebike(&server, &words);
        let lines: Vec<&str> = wanted.lines().collect();
        assert_eq!(said.sorted(), lines, "{words:?}");
    }
    let folded = sidebike(&server, &["run", "--fold", "--", line]);
    assert!(folded.out.ends_with("\n100%\ndone\n"), "{:?}", folded.out);
    // The bytes of one machine are passed on as they are.
    let one = sidebike(&server, &["run", "-m", "m1", "--", line]);
    assert_eq!(one.out, "10%\r50%\r100%\ndone\r\n");
}

#[test]
fn a_stream_that_was_written_to_first_comes_first() {
    let server = Server::start();
    let _agent = server.agent("m");
    for (line, wanted) in [
        ("echo e >&2; echo o", ["e", "o"]),
        ("echo o; echo e >&2", ["o", "e"]),
    ] {
        for _ in 0..20 {
            let ended = server.run(task(line));
            assert_eq!(ended["result"][0]["output"], json!(wanted), "{line}");
        }
    }
}

#[test]
fn words_and_patterns_that_are_easily_taken_wrong_are_explained() {
    let server = Server::start();
    for (field, value, words) in [
        (
            "mode",
            json!("some"),
            "mode: invalid value: string \"some\", expected \"all\" or \"any\"",
        ),
        ("mode", json!(5), "expected \"all\" or \"any\""),
        ("mode", json!(["any"]), "expected \"all\" or \"any\""),
        ("mode", json!({"any": 1}), "expected \"all\" or \"any\""),
        (
            "retry",
            json!({"max": 1, "on": [true]}),
            "retry.on[0]: invalid type: boolean `true`, expected \"failed\", \"timedOut\" or \"lost\"",
        ),
    ] {
        let mut task = task("true");
        task[field] = value;
        let reply = server.post("/api/v1/task", &task);
        assert_eq!(reply.status, 400);
        assert!(
            reply.text().contains(&words.replace('"', "\\\"")),
            "{}",
            reply.text()
        );
    }
    let any = server
        .submit(json!({"machinePattern": "^web-1$", "mode": "any", "detail": {"command": "true"}}));
    let waiting = server.task(id(&any));
    assert_eq!(
        (&waiting["state"], &waiting["status"]),
        (&json!("waiting"), &json!(0))
    );
    assert!(
        waiting["msg"]
            .as_str()
            .unwrap()
            .contains("no machine matches yet")
    );
    assert_eq!(server.metric("sidebike_tasks{state=\"waiting\"}"), 1);
    let listed = server.get("/api/v1/task?state=waiting").data();
    assert_eq!(listed.as_array().map(Vec::len), Some(1));

    let _agents = [server.agent("web-1"), server.agent("web-10")];
    assert_eq!(server.finished(id(&any))["state"], "succeeded");
    let said = sidebike(&server, &["run", "-m", "web-1", "--", "true"]);
    let first = said.err.lines().next().unwrap();
    assert!(
        first.contains("web-10") && first.contains("-m '^web-1$'"),
        "{first}"
    );
    for pattern in ["^web-1$", "web-10", "web", "."] {
        let said = sidebike(&server, &["run", "-m", pattern, "--", "true"]);
        assert!(!said.err.contains("also matches"), "{}", said.err);
    }
}

#[test]
fn commands_are_killed_before_the_agent_when_memory_runs_out() {
    let server = Server::start();
    let agent = server.agent("m");
    let pid = agent.0.pid().as_raw_nonzero();
    let own = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    let own: i64 = own.trim().parse().unwrap();
    let ended = server.run(task("sleep 0.2; cat /proc/self/oom_score_adj"));
    let score = (own.max(0) + 100).min(1_000);
    assert_eq!(ended["result"][0]["stdout"], format!("{score}\n"));
    let ended = server.run(task("kill -9 $$"));
    assert_eq!(ended["result"][0]["msg"], "killed by SIGKILL");
}

/// A control group of version 1 with little memory; `None`, with a word, where none can be made.
struct SmallGroup(String);

impl SmallGroup {
    const BYTES: u32 = 64 << 20;

    fn new() -> Option<SmallGroup> {
        let path = format!("/sys/fs/cgroup/memory/sidebike-test-{}", std::process::id());
        let limit = format!("{path}/memory.limit_in_bytes");
        let made = std::fs::create_dir(&path)
            .and_then(|()| std::fs::write(limit, Self::BYTES.to_string()));
        match made {
            Ok(()) => Some(SmallGroup(path)),
            Err(why) => {
                eprintln!("left out: no control group can be made here ({why})");
                None
            }
        }
    }
}

impl Drop for SmallGroup {
    fn drop(&mut self) {
        wait_for("the group is empty", || {
            std::fs::remove_dir(&self.0).is_ok()
        });
    }
}

#[test]
fn a_command_that_was_killed_for_lack_of_memory_says_so() {
    let Some(group) = SmallGroup::new() else {
        return;
    };
    let server = Server::start();
    let mut command = Command::new("sh");
    let line = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.0);
    command
        .args(["-c", &line, "sh", SIDEBIKE, "agent"])
        .env("SIDEBIKE_MACHINE_LABEL", "m")
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
    let agent = Agent(Process::start(command));
    server.expect(&[&agent]);
    // Both the shell's child and the leader itself.
    for detail in [
        json!({"command": "head -c 300m /dev/zero | tail; exit ${PIPESTATUS[1]}"}),
        json!({"argv": ["python3", "-c", "x = bytearray(300 << 20)"]}),
    ] {
        let ended = server.run(json!({"machinePattern": "m", "detail": detail}));
        let msg = ended["result"][0]["msg"].as_str().unwrap();
        assert!(msg.contains("memory may be the reason"), "{ended}");
    }
    let after = server.run(task("kill -9 $$"));
    assert_eq!(after["result"][0]["msg"], "killed by SIGKILL");
    drop(agent);
    wait_until("the group is given up", || {
        let left = std::fs::read_to_string(format!("{}/cgroup.procs", group.0)).ok()?;
        left.is_empty().then_some(())
    });
}
