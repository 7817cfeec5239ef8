//! What the guard does with undos when the agent is killed, stopped, or shut down at once, and what the agent does when
//! the guard is: never "the command ran and no undo ran". The real binary, real signals, and a small server.
//!
//! Commands and undos write what happened into a file of the test. `make soak-undo` kills at more random moments than the
//! default.
#![cfg(feature = "agent")]

mod common;
mod fake;

use common::Folder;
use fake::shim::Shim;
use fake::{Agent, Server, alive, eventually, guard_of, helpers, pair, send};
use serde_json::{Value, json};
use sidebike::wire::task::ExecutionState;
use sidebike::wire::undo::{UndoBy, UndoReason, UndoReport, UndoState};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Kills at random moments, in number. `make soak-undo` does 500.
const KILLS: usize = 50;
/// How many of them are under way at the same time.
const AT_ONCE: usize = 10;
/// The kills come within this time of the order, in milliseconds.
const KILL_WINDOW_MS: u64 = 300;
/// What a loaded machine may take for what takes no time, in tests that measure.
const SLACK: Duration = Duration::from_secs(4);

/// A command that writes its process number and waits, and an undo that writes why it runs.
fn sleeper(folder: &Folder) -> Value {
    with_undo(
        folder,
        "echo $$ >> ran; echo c >> log; exec sleep 300",
        "true",
    )
}

/// The same with a command and an undo that do something else, too.
fn with_undo(folder: &Folder, command: &str, undo: &str) -> Value {
    json!({
        "command": command, "workspace": folder.path(), "killGrace": 0.1, "timeout": "5m",
        "undo": {"command": format!("echo u $SIDEBIKE_UNDO_REASON >> log; {undo}"), "patience": "5s"},
    })
}

/// The guard that takes the place of one that was killed.
fn guard_after(agent: &Agent, killed: i32) -> i32 {
    eventually("there is another guard", || {
        let guards = helpers("agent-guard", agent.id() as i32);
        guards.len() == 1 && guards[0] != killed
    });
    guard_of(agent)
}

/// Whether a guard knows of an undo: it has given an answer.
fn has_answered(guard: i32) -> bool {
    let io = std::fs::read_to_string(format!("/proc/{guard}/io")).unwrap_or_default();
    let wrote = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    wrote.is_none_or(|bytes| bytes.parse::<u64>().unwrap() > 0)
}

/// An agent that runs a copy of the program in this folder, and the copy.
fn agent_of_a_copy(folder: &Folder, server: &Server) -> (Agent, String) {
    let binary = folder.file("sidebike");
    std::fs::copy(env!("CARGO_BIN_EXE_sidebike"), &binary).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "shift; exec \"$0\" \"$@\""]).arg(&binary);
    (Agent::start_by(shell, server), binary)
}

fn kill(agent: &mut Agent) {
    agent.signal("KILL");
    agent.wait();
}

/// Another agent, after the first one was killed: it has polled.
fn next_agent(server: &Server) -> Agent {
    let before = server.wait(|_| true).polls.last().unwrap().instance.clone();
    let agent = Agent::start(server, &[], &[]);
    server.until(|seen| seen.polls.last().unwrap().instance != before);
    agent
}

/// Whether the guard has reported that it undid it because the agent was killed.
fn assert_undone_by_guard(server: &Server, execution: &str) -> UndoReport {
    assert_undone_because(server, execution, UndoReason::AgentLost)
}

/// The same for another reason: the first one counts.
fn assert_undone_because(server: &Server, execution: &str, reason: UndoReason) -> UndoReport {
    let undo = server.undone(execution);
    assert_eq!((undo.state, undo.by), (UndoState::Done, UndoBy::Guard));
    assert_eq!(undo.reason, Some(reason));
    let result = server.result(execution);
    assert_eq!(result.state, ExecutionState::Failed);
    assert_eq!(result.msg, "its agent was killed");
    undo
}

/// A number that differs from run to run.
fn random(below: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let hasher = std::collections::hash_map::RandomState::new();
    hasher.build_hasher().finish() % below
}

#[test]
fn a_killed_agent_is_replaced_by_its_guard() {
    let (server, mut agent) = pair(&["--machine-label", "m1"]);
    let folder = Folder::new();
    let mut detail = with_undo(
        &folder,
        "echo uid-7; sleep 0.5; echo $$ >> ran; echo c >> log; trap '' TERM; while :; do sleep 0.1; done",
        "echo $SIDEBIKE_STDOUT $SIDEBIKE_MACHINE_LABEL $SIDEBIKE_PHASE ${#SIDEBIKE_KEY} $MINE; pwd",
    );
    detail["env"] = json!({"MINE": "mine"});
    detail["undo"]["check"] = json!("echo $SIDEBIKE_PHASE; [ -e log ]");
    server.start("x.1", detail);
    let pid = folder.pid("ran");
    kill(&mut agent);
    let undo = assert_undone_by_guard(&server, "x.1");
    assert!(!alive(pid));
    assert_eq!(folder.lines("log"), ["c", "u agentLost"]);
    let folder = Path::new(folder.path()).canonicalize().unwrap();
    let expected = format!("uid-7 m1 undo 32 mine\n{}\ncheck\n", folder.display());
    assert_eq!(undo.output, expected);
    assert_eq!((undo.exit_code, undo.check_exit_code), (Some(0), Some(0)));
}

/// Without a workspace a command runs in the agent's own folder. So does its undo.
#[test]
fn an_undo_by_the_guard_runs_where_the_command_ran() {
    let server = Server::new();
    let folder = Folder::new();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "cd \"$0\" && exec \"$@\""])
        .arg(folder.path());
    let mut agent = Agent::start_by(shell, &server);
    let mut detail = sleeper(&folder);
    detail.as_object_mut().unwrap().remove("workspace");
    server.start("x.1", detail);
    folder.until("ran", 1);
    kill(&mut agent);
    assert_undone_by_guard(&server, "x.1");
    assert_eq!(folder.lines("log"), ["c", "u agentLost"]);
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_that_is_not_undone() {
    let kills = std::env::var("KILLS").map_or(KILLS, |n| n.parse().expect("KILLS: a number"));
    let mut ran = 0;
    let all: Vec<usize> = (0..kills).collect();
    for some in all.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = { some.iter() }
                .map(|n| scope.spawn(move || kill_at_random(*n)))
                .collect();
            for thread in threads {
                ran += usize::from(thread.join().unwrap());
            }
        });
    }
    // The moments are spread: not all came before the start.
    assert!(ran > 0, "of {kills} commands none was started");
}

/// Kills an agent at a random moment around the start of a command. Whether the command ran.
fn kill_at_random(n: usize) -> bool {
    let (server, mut agent) = pair(&[]);
    let folder = Folder::new();
    let guard = guard_of(&agent);
    // Most of what matters happens soon after the order.
    let window = if n.is_multiple_of(2) {
        KILL_WINDOW_MS
    } else {
        60
    };
    let moment = Duration::from_micros(random(window * 1_000));
    server.start("x.1", sleeper(&folder));
    std::thread::sleep(moment);
    kill(&mut agent);
    // It may take ten seconds to be sure that nothing is started any more.
    eventually("the guard has ended", || !alive(guard));
    let (log, ran) = (folder.lines("log"), folder.lines("ran"));
    let is_undone = log.last().is_some_and(|line| line == "u agentLost");
    for pid in &ran {
        assert!(
            !alive(pid.parse().unwrap()),
            "after {moment:?}: {pid} lives"
        );
    }
    if !ran.is_empty() {
        assert!(is_undone, "after {moment:?}: {log:?}");
        assert_undone_by_guard(&server, "x.1");
    }
    !ran.is_empty()
}

/// Sends the agent a signal right before or right after it starts a process, once for each file of that name.
const SIGNAL_AT_START: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static void at(const char *moment, int signal) {
    const char *shim = getenv("SHIM");
    char file[4096];
    if (!shim) return;
    snprintf(file, sizeof file, "%s/%s", shim, moment);
    if (unlink(file) == 0) kill(getpid(), signal);
}
int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[]) {
    static int (*real)(pid_t *, const char *, const posix_spawn_file_actions_t *,
                       const posix_spawnattr_t *, char *const[], char *const[]);
    int result;
    at("kill-before", SIGKILL);
    at("stop-before", SIGSTOP);
    real = dlsym(RTLD_NEXT, "posix_spawnp");
    result = real(pid, file, actions, attributes, argv, envp);
    at("kill-after", SIGKILL);
    return result;
}
"#;

/// An agent that gets a signal at the next start.
fn signaled_at_start(shim: &Shim, moment: &str) -> (Server, Agent) {
    let env = shim.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, &**value)).collect();
    let server = Server::new();
    let agent = Agent::start(&server, &[], &env);
    server.until(|seen| !seen.polls.is_empty());
    std::fs::write(shim.path(moment), "").unwrap();
    (server, agent)
}

#[test]
fn an_agent_that_is_killed_between_arming_and_start_is_replaced() {
    for moment in ["kill-before", "kill-after"] {
        let Some(shim) = Shim::new(&format!("undo-{moment}"), SIGNAL_AT_START) else {
            return;
        };
        let folder = Folder::new();
        let (server, mut agent) = signaled_at_start(&shim, moment);
        server.start("x.1", sleeper(&folder));
        assert_eq!(agent.wait(), None);
        assert_undone_by_guard(&server, "x.1");
        let log = folder.lines("log");
        assert_eq!(log.last().unwrap(), "u agentLost", "{moment}");
        // The guard does not know whether there was a start: it undoes in any case.
        assert!(log.len() == 1 || moment == "kill-after", "{log:?}");
        for pid in folder.lines("ran") {
            assert!(!alive(pid.parse().unwrap()), "{moment}");
        }
    }
}

/// The guard undoes what was not started yet. What an agent that wakes starts after that is ended and undone, too.
#[test]
fn an_agent_that_is_stopped_between_arming_and_start_undoes_what_it_starts_too_late() {
    let Some(shim) = Shim::new("undo-stop-before", SIGNAL_AT_START) else {
        return;
    };
    let folder = Folder::new();
    let (server, agent) = signaled_at_start(&shim, "stop-before");
    let mut detail = sleeper(&folder);
    detail["timeout"] = json!(1);
    server.start("x.1", detail);
    eventually("the guard acts", || {
        agent.log().contains("ending and undoing x.1")
    });
    agent.signal("CONT");
    for by in [UndoBy::Guard, UndoBy::Agent] {
        server.until(|seen| {
            let done = |undo: &UndoReport| undo.state == UndoState::Done && undo.by == by;
            seen.undos("x.1").iter().any(done)
        });
    }
    let log = folder.lines("log");
    let last_start = log.iter().rposition(|line| line == "c");
    let last_undo = log.iter().rposition(|line| line.starts_with("u "));
    assert!(last_undo > last_start, "{log:?}");
    for pid in folder.lines("ran") {
        assert!(!alive(pid.parse().unwrap()));
    }
    let results = server.wait(|_| true).results("x.1");
    let failed = |ended: &sidebike::wire::agent::Ended| ended.state == ExecutionState::Failed;
    assert!(results.iter().any(failed), "{results:?}");
}

#[test]
fn a_stopped_agent_is_replaced_and_finds_it_done() {
    let (server, agent) = pair(&[]);
    let by_deadline = Folder::new();
    let by_contact = Folder::new();
    let mut detail = sleeper(&by_deadline);
    detail["timeout"] = json!(2);
    detail["undo"]["deadman"] = json!(-1);
    server.start("x.1", detail);
    let mut detail = sleeper(&by_contact);
    detail["undo"]["deadman"] = json!(10);
    server.start("x.2", detail);
    let pids = [by_deadline.pid("ran"), by_contact.pid("ran")];
    let begun = Instant::now();
    agent.signal("STOP");
    for (execution, folder, reason, seconds, msg) in [
        ("x.1", &by_deadline, UndoReason::TimedOut, 12, "in time"),
        ("x.2", &by_contact, UndoReason::Deadman, 15, "for 10s"),
    ] {
        let undo = server.undone(execution);
        let took = begun.elapsed();
        let least = Duration::from_secs(seconds - 1);
        assert!(
            took >= least && took < least + SLACK,
            "{execution}: {took:?}"
        );
        assert_eq!((undo.state, undo.by), (UndoState::Done, UndoBy::Guard));
        assert_eq!(undo.reason, Some(reason));
        let result = server.result(execution);
        assert_eq!(result.state, ExecutionState::Failed);
        assert!(result.msg.contains(msg), "{}", result.msg);
        assert_eq!(folder.lines("log").len(), 2);
    }
    assert!(pids.iter().all(|pid| !alive(*pid)));
    agent.signal("CONT");
    // It reports what the guard did, and has nothing left to do.
    server.until(|seen| {
        let is_settled = |execution: &str| seen.results(execution).len() == 2;
        let last = seen.polls.last().unwrap();
        let is_idle = last.holds.is_empty() && last.undos.is_empty();
        is_settled("x.1") && is_settled("x.2") && is_idle
    });
    let seen = server.wait(|_| true);
    for (execution, folder) in [("x.1", &by_deadline), ("x.2", &by_contact)] {
        let undos = seen.undos(execution);
        let last = undos.last().unwrap();
        assert_eq!((last.state, last.by), (UndoState::Done, UndoBy::Guard));
        assert_eq!(folder.lines("log").len(), 2, "undone twice");
    }
}

#[test]
fn a_guard_that_was_killed_is_replaced() {
    let (server, mut agent) = pair(&[]);
    let folder = Folder::new();
    let plain = Folder::new();
    server.start("x.1", sleeper(&folder));
    let line = "echo $$ >> ran; exec sleep 300";
    server.start("x.2", json!({"command": line, "workspace": plain.path()}));
    let pids = [folder.pid("ran"), plain.pid("ran")];
    let mut guard = guard_of(&agent);
    for _ in 0..3 {
        send(guard, "KILL");
        guard = guard_after(&agent, guard);
    }
    // Nothing was ended.
    eventually("it has acknowledged the undo", || has_answered(guard));
    assert!(pids.iter().all(|pid| alive(*pid)));
    kill(&mut agent);
    assert_undone_by_guard(&server, "x.1");
    assert_eq!(folder.lines("log"), ["c", "u agentLost"]);
    eventually("the other one is dead", || !alive(pids[1]));
}

/// An upgrade puts another file in the place of the program while it runs.
#[test]
fn an_agent_whose_program_was_replaced_has_a_guard_that_reports() {
    let server = Server::new();
    let folder = Folder::new();
    let (mut agent, binary) = agent_of_a_copy(&folder, &server);
    server.start("x.1", sleeper(&folder));
    let pid = folder.pid("ran");
    let new = folder.file("new");
    std::fs::write(&new, "another version").unwrap();
    std::fs::rename(&new, &binary).unwrap();
    let guard = guard_of(&agent);
    send(guard, "KILL");
    let guard = guard_after(&agent, guard);
    eventually("it has acknowledged the undo", || has_answered(guard));
    kill(&mut agent);
    assert_undone_by_guard(&server, "x.1");
    assert!(!alive(pid));
    assert_eq!(folder.lines("log"), ["c", "u agentLost"]);
}

#[test]
fn without_another_guard_the_agent_undoes_at_once() {
    let server = Server::new();
    let folder = Folder::new();
    let (agent, binary) = agent_of_a_copy(&folder, &server);
    server.start("x.1", sleeper(&folder));
    folder.until("ran", 1);
    // It cannot be started again from here on.
    std::fs::set_permissions(&binary, Permissions::from_mode(0o644)).unwrap();
    send(guard_of(&agent), "KILL");
    let result = server.result("x.1");
    assert_eq!(result.state, ExecutionState::Failed);
    assert!(result.msg.contains("guard is gone"), "{}", result.msg);
    let undo = server.undone("x.1");
    assert_eq!((undo.state, undo.by), (UndoState::Done, UndoBy::Agent));
    assert_eq!(folder.lines("log"), ["c", "u agentLost"]);
    // Other commands run; one with an undo does not.
    server.start("x.2", json!({"command": "true"}));
    assert_eq!(server.result("x.2").state, ExecutionState::Succeeded);
    server.start("x.3", sleeper(&folder));
    let result = server.result("x.3");
    assert_eq!(result.state, ExecutionState::Failed);
    assert!(result.msg.contains("no guard"), "{}", result.msg);
    assert_eq!(folder.lines("ran").len(), 1);
}

#[test]
fn a_guard_that_does_not_answer_blocks_nothing() {
    let (server, agent) = pair(&[]);
    let folder = Folder::new();
    let guard = guard_of(&agent);
    send(guard, "STOP");
    let begun = Instant::now();
    server.start("x.1", sleeper(&folder));
    server.start("x.2", json!({"command": "true"}));
    assert_eq!(server.result("x.2").state, ExecutionState::Succeeded);
    let result = server.result("x.1");
    assert!(begun.elapsed() < Duration::from_secs(2) + SLACK);
    assert_eq!(result.state, ExecutionState::Failed);
    assert!(result.msg.contains("does not answer"), "{}", result.msg);
    assert_eq!(server.undone("x.1").state, UndoState::NotNeeded);
    send(guard, "CONT");
    server.start("x.3", with_undo(&folder, "echo c >> log", "true"));
    assert_eq!(server.result("x.3").state, ExecutionState::Succeeded);
    assert_eq!(folder.lines("log"), ["c", "u ended"]);
}

#[test]
fn a_second_signal_leaves_the_undo_to_the_guard() {
    let (server, mut agent) = pair(&[]);
    let folder = Folder::new();
    // The agent is still busy with the first undo when the second signal comes.
    server.start("x.1", {
        let mut detail = with_undo(
            &folder,
            "echo $$ >> ran; exec sleep 300",
            "[ $(wc -l < log) -gt 1 ] || { echo $$ >> undo; sleep 300; }",
        );
        detail["undo"]["timeout"] = json!("10m");
        detail
    });
    let pid = folder.pid("ran");
    agent.signal("INT");
    let undo = folder.pid("undo");
    std::thread::sleep(Duration::from_millis(150)); // two signals at once are one
    agent.signal("INT");
    assert_eq!(agent.wait(), Some(130));
    assert_undone_because(&server, "x.1", UndoReason::Shutdown);
    assert!(!alive(pid) && !alive(undo));
    assert_eq!(folder.lines("log"), ["u shutdown", "u shutdown"]);
}

const KEY: &str = "8899aabbccddeeff0011223344556677";

#[test]
fn when_both_are_killed_the_next_agent_ends_and_undoes_it() {
    let (server, mut agent) = pair(&[]);
    let folder = Folder::new();
    let detail = sleeper(&folder);
    server.start_with_key("x.1", KEY, detail.clone());
    let pid = folder.pid("ran");
    // Stopped, it cannot start another guard.
    let guard = guard_of(&agent);
    agent.signal("STOP");
    send(guard, "KILL");
    eventually("the guard is gone", || !alive(guard));
    kill(&mut agent);
    assert!(alive(pid));
    let _agent = next_agent(&server);
    server.undo("x.1", KEY, UndoReason::Owed, detail);
    let undo = server.undone("x.1");
    assert_eq!((undo.state, undo.by), (UndoState::Done, UndoBy::Agent));
    assert!(!alive(pid));
    assert_eq!(folder.lines("log"), ["c", "u owed"]);
}

#[test]
fn the_next_agent_waits_for_a_guard_that_is_at_work() {
    const KEY: &str = "99aabbccddeeff001122334455667788";
    let (server, mut agent) = pair(&[]);
    let folder = Folder::new();
    let undo = "while [ ! -e go ]; do sleep 0.02; done; echo end >> log";
    let detail = with_undo(&folder, "echo $$ >> ran; exec sleep 300", undo);
    server.start_with_key("x.1", KEY, detail.clone());
    folder.until("ran", 1);
    kill(&mut agent);
    folder.until("log", 1);
    let _agent = next_agent(&server);
    server.undo("x.1", KEY, UndoReason::Owed, detail);
    server.until(|seen| {
        let running = |undo: &UndoReport| undo.state == UndoState::Running;
        seen.undos("x.1").iter().any(running)
    });
    assert_eq!(folder.lines("log"), ["u agentLost"]);
    folder.write("go");
    folder.until("log", 4);
    assert_eq!(folder.lines("log"), ["u agentLost", "end", "u owed", "end"]);
    for by in [UndoBy::Guard, UndoBy::Agent] {
        server.until(|seen| {
            let done = |undo: &UndoReport| undo.state == UndoState::Done && undo.by == by;
            seen.undos("x.1").iter().any(done)
        });
    }
}

#[test]
fn the_report_waits_for_the_server_and_its_token_is_not_to_be_seen() {
    const TOKEN: &str = "a-token-that-nobody-sees";
    let mut server = Server::new();
    let mut agent = Agent::start(&server, &[], &[("SIDEBIKE_AGENT_TOKEN", TOKEN)]);
    let folder = Folder::new();
    server.start("x.1", sleeper(&folder));
    folder.until("ran", 1);
    let guard = guard_of(&agent);
    server.close();
    kill(&mut agent);
    folder.until("log", 2);
    eventually("the report is being sent", || {
        !helpers("agent-settle", guard).is_empty()
    });
    let settle = helpers("agent-settle", guard)[0];
    for pid in [guard, settle] {
        for file in ["environ", "cmdline"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains(TOKEN), "{file} of {pid}");
        }
    }
    server.open();
    assert_undone_by_guard(&server, "x.1");
    eventually("both have ended", || !alive(guard) && !alive(settle));
}

#[test]
fn an_undo_that_is_longer_than_the_pipe_is_armed() {
    let (server, mut agent) = pair(&[]);
    let folder = Folder::new();
    let comment = format!("true # {}", "x".repeat(100_000));
    server.start(
        "x.1",
        with_undo(&folder, "echo $$ >> ran; exec sleep 300", &comment),
    );
    folder.until("ran", 1);
    kill(&mut agent);
    assert_undone_by_guard(&server, "x.1");
    assert_eq!(folder.lines("log"), ["u agentLost"]);
}

/// The guard reads what plain commands tell it every 100 ms only. One quick round shows that arming does not wait for
/// that: a loaded machine may make others slow.
#[test]
fn arming_does_not_wait_for_the_pause_of_the_guard() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let rounds = (0..30).map(|n| {
        let (plain, undone) = (format!("p.{n}"), format!("x.{n}"));
        server.start(&plain, json!({"argv": ["true"]}));
        server.result(&plain);
        let begun = Instant::now();
        server.start(&undone, with_undo(&folder, "true", "true"));
        server.undone(&undone);
        begun.elapsed()
    });
    let quickest = rounds.min().unwrap();
    assert!(quickest < Duration::from_millis(60), "{quickest:?}");
}

#[test]
fn a_guard_with_nothing_to_guard_sleeps() {
    let (server, agent) = pair(&[]);
    let folder = Folder::new();
    server.start("x.1", with_undo(&folder, "true", "true"));
    assert_eq!(server.undone("x.1").state, UndoState::Done);
    let guard = guard_of(&agent);
    let switches = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{guard}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    // It was just told that this is over.
    let mut before = switches();
    eventually("it has read that", || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut before, switches()) == switches()
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(switches(), before);
}

/// Everything in a container ends with process 1. It waits for the guard.
#[test]
fn process_1_waits_for_the_guard_of_a_killed_agent() {
    let namespace = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let Some(unshare) = fake::unshare(&namespace, "") else {
        return;
    };
    let server = Server::new();
    let folder = Folder::new();
    let mut agent = Agent::start_by(unshare, &server);
    // The agent is the parent of its commands.
    let command = "echo $$ >> ran; echo c >> log; kill -KILL $PPID; exec sleep 300";
    server.start("x.1", with_undo(&folder, command, "sleep 1"));
    assert_undone_by_guard(&server, "x.1");
    assert_eq!(folder.lines("log"), ["c", "u agentLost"]);
    assert_eq!(agent.wait(), Some(137));
}

/// The guard may have more files open than the agent. That is no matter of what it starts.
#[test]
fn an_undo_by_the_guard_has_the_limits_of_the_agent() {
    let server = Server::new();
    let folder = Folder::new();
    let mut starter = Command::new("sh");
    starter.args(["-c", "ulimit -S -n 300; exec \"$@\"", "sh"]);
    let mut agent = Agent::start_by(starter, &server);
    let command = "ulimit -S -n >> ran; exec sleep 300";
    let detail = with_undo(
        &folder,
        command,
        "ulimit -S -n >> undone; ulimit -H -n >> most",
    );
    server.start("x.1", detail);
    folder.until("ran", 1);
    kill(&mut agent);
    assert_undone_by_guard(&server, "x.1");
    assert_eq!(folder.lines("undone"), folder.lines("ran"));
    assert_ne!(folder.lines("undone"), folder.lines("most"));
}
