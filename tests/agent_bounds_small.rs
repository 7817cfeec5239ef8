//! Small things that went wrong on bad machines and behind bad servers.
#![cfg(feature = "agent")]

mod fake;

use fake::gate::{Act, Gate, reply};
use fake::{Agent, Server, alive, eventually};
use serde_json::json;
use sidebike::wire::agent::Stream;
use sidebike::wire::task::ExecutionState;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn the_words_of_a_server_are_one_line_of_the_log() {
    let server = Server::new();
    let msg = "no\\r\\n2026-01-01T00:00:00Z INFO  forged\\u001b[31mred\\u2028\\u202eback";
    let body = format!("{{\"signal\":-1,\"msg\":\"{msg}\"}}");
    let gate = Gate::new(server.port, move |_, _| reply(422, &body));
    let agent = Agent::start_behind(&gate, &[], &[]);
    eventually("it is said", || agent.log().contains("refused with 422"));
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("refused with 422"));
    let line = line.unwrap();
    assert!(
        line.contains(r"no\r\n2026-01-01T00:00:00Z INFO  forged\u{1b}[31mred\u{2028}\u{202e}back"),
        "{line}"
    );
    assert!(
        !log.contains(['\u{1b}', '\r', '\u{2028}', '\u{202e}']),
        "{log}"
    );
}

#[test]
fn a_long_head_of_an_answer_is_read_and_one_that_is_too_long_is_named() {
    let server = Server::new();
    let polls = AtomicUsize::new(0);
    let order = json!({"signal": 1, "msg": "", "data": {"start": [{
        "execution": "x", "attempt": 1, "taskId": "t", "taskName": "n", "detail": {"command": "echo hi"}
    }]}})
    .to_string();
    let gate = Gate::new(server.port, move |call, _| {
        let length = match (
            call,
            polls.fetch_add(usize::from(call == "poll"), Ordering::SeqCst),
        ) {
            ("poll", 0) => 50_000,
            ("poll", 1) => 100_000,
            _ => return Act::Pass,
        };
        Act::Reply(format!(
            "HTTP/1.1 200 X\r\nx-long: {}\r\ncontent-length: {}\r\n\r\n{order}",
            "h".repeat(length),
            order.len()
        ))
    });
    let agent = Agent::start_behind(&gate, &[], &[]);
    assert_eq!(server.result("x").state, ExecutionState::Succeeded);
    eventually("it is said", || {
        agent.log().contains("its head is longer than 65536 bytes")
    });
}

/// The time of the processor that a process has used.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .skip(11)
        .take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_process_left_behind_that_writes_without_end_costs_little() {
    let server = Server::new();
    let agent = Agent::start(&server, &[], &[]);
    server.start("x", json!({"command": "yes & echo $! >&2"}));
    server.result("x");
    let pid: i32 = server.text("x", Stream::Stderr).trim().parse().unwrap();
    let (begun, before) = (std::time::Instant::now(), cpu(agent.id()) + cpu(pid as u32));
    while begun.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let used = cpu(agent.id()) + cpu(pid as u32) - before;
    assert!(alive(pid), "its pipe is read");
    assert!(used < begun.elapsed() / 10, "{used:?}");
    fake::kill(pid);
}

#[test]
fn without_dev_and_with_closed_streams_an_agent_starts() {
    let Some(unshare) = fake::unshare(&["--mount"], "mount -t tmpfs none /dev; exec <&- >&-;")
    else {
        return;
    };
    let server = Server::new();
    let mut agent = Agent::start_by(unshare, &server);
    server.start("x", json!({"command": "cat; echo hi"}));
    assert_eq!(server.result("x").state, ExecutionState::Succeeded);
    assert_eq!(server.text("x", Stream::Stdout), "hi\n");
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(0));
}

/// The session and the group of what is started in a container by a program outside of it have no number
/// inside: the system says 0.
#[test]
fn an_agent_whose_session_is_outside_of_its_container_starts() {
    let namespace = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    for (role, prepare) in [("process 1", ""), ("another process", "\"$@\"; exit;")] {
        let Some(unshare) = fake::unshare(&namespace, prepare) else {
            return;
        };
        let server = Server::new();
        let _agent = Agent::start_by(unshare, &server);
        server.start("x", json!({"command": "echo hi"}));
        assert_eq!(server.result("x").state, ExecutionState::Succeeded);
        assert_eq!(server.text("x", Stream::Stdout), "hi\n", "{role}");
    }
}

#[test]
fn what_handles_the_output_of_a_command_may_write_the_last_of_it() {
    let server = Server::new();
    let _agent = Agent::start(&server, &["--jobs", "8"], &[]);
    let slow = |name: &str| format!("exec > >(sleep 0.03; cat; echo {name} >&2); echo hi");
    let names: Vec<String> = (0..16).map(|n| format!("x.{n}")).collect();
    for name in &names {
        server.start(name, json!({"argv": ["bash", "-c", slow(name)]}));
    }
    for name in &names {
        let result = server.result(name);
        assert_eq!(result.state, ExecutionState::Succeeded, "{result:?}");
        assert_eq!(server.text(name, Stream::Stdout), "hi\n", "{name}");
        assert_eq!(server.text(name, Stream::Stderr), format!("{name}\n"));
    }
}

#[test]
fn a_process_left_behind_delays_the_result_by_little() {
    let server = Server::new();
    let _agent = Agent::start(&server, &[], &[]);
    let begun = std::time::Instant::now();
    server.start("x", json!({"command": "sleep 300 & echo $!"}));
    let result = server.result("x");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(result.state, ExecutionState::Succeeded, "{result:?}");
    let pid = server.numbers("x")[0];
    assert!(alive(pid));
    fake::kill(pid);
}

/// A command that the agent's user may not signal stands for one that hangs in the kernel.
#[test]
fn a_command_that_survives_kill_is_named_and_reaped_later() {
    const NOBODY: &str = "65534";
    let setpriv = Command::new("sh")
        .args(["-c", "command -v setpriv"])
        .output();
    let setpriv = setpriv.map(|found| String::from_utf8(found.stdout).unwrap());
    let setpriv = setpriv.unwrap_or_default().trim().to_owned();
    if !rustix::process::geteuid().is_root() || setpriv.is_empty() {
        eprintln!("skipped: needs root and setpriv");
        return;
    }
    let folder = std::env::temp_dir().join(format!("sidebike-survivor-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let as_root = folder.join("as-root").display().to_string();
    std::fs::copy(&setpriv, &as_root).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    std::fs::set_permissions(&as_root, mode).unwrap();
    let mut starter = Command::new(&setpriv);
    starter.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    let server = Server::new();
    let _agent = Agent::start_by(starter, &server);
    let argv = [
        &as_root,
        "--reuid",
        "0",
        "sh",
        "-c",
        "echo $$; exec sleep 5",
    ];
    server.start("x", json!({"argv": argv, "killGrace": 0}));
    server.until(|seen| seen.numbers("x").len() == 1);
    let pid = server.numbers("x")[0];
    server.cancel("x");
    let result = server.result("x");
    assert_eq!(
        (result.state, &result.signal),
        (ExecutionState::Canceled, &None)
    );
    let named = format!("could not be ended: sleep (process {pid})");
    assert!(result.msg.contains(&named), "{result:?}");
    assert!(alive(pid));
    // It ends by itself, and is no zombie then.
    eventually("it is reaped", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    std::fs::remove_dir_all(folder).unwrap();
}
