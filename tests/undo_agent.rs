//! The agent's half of undo, from outside: the real binary against a small server that says what each test wants.
//!
//! Undos write what happened into a file of the test. To add a case: hand out work with an undo by [`Server::start`], wait
//! with [`Server::result`] or [`Server::undone`].
#![cfg(feature = "agent")]

mod common;
mod fake;

use common::Folder;
use fake::gate::{Act, Gate, answer};
use fake::{Agent, Seen, Server, alive, eventually, pair};
use serde_json::{Value, json};
use sidebike::wire::agent::{HoldState, Poll};
use sidebike::wire::task::ExecutionState;
use sidebike::wire::undo::{UndoBy, UndoReason, UndoState};
use std::time::{Duration, Instant};

/// Keys of attempts. Processes are found by them, so each test has its own.
const KEYS: [&str; 2] = [
    "00112233445566778899aabbccddeeff",
    "0123456789abcdef0123456789abcdef",
];
/// What a loaded machine may take for what takes no time, in tests that measure.
const SLACK: Duration = Duration::from_secs(3);
/// How much later than promised a dead man's switch may have its command undone.
const DEADMAN_SLACK: Duration = Duration::from_secs(1);

/// A command with an undo that works in a folder.
fn with_undo(folder: &Folder, command: &str, undo: Value) -> Value {
    json!({"command": command, "workspace": folder.path(), "undo": undo})
}

/// The states that were reported of an undo, each once.
fn states(seen: &Seen, execution: &str) -> Vec<UndoState> {
    let undos = seen.undos(execution).into_iter();
    let mut states: Vec<UndoState> = undos.map(|undo| undo.state).collect();
    states.dedup();
    states
}

/// Has the agent poll until a poll fits.
fn until_polled(server: &Server, fits: impl Fn(&Poll) -> bool) {
    eventually("a poll", || {
        let polls = server.wait(|_| true).polls.len();
        // Any order is an answer.
        server.cancel("none");
        let seen = server.wait(|seen| seen.polls.len() > polls);
        seen.polls[polls..].iter().any(&fits)
    });
}

#[test]
fn a_command_is_undone_and_both_results_are_reported_together() {
    let (server, _agent) = pair(&["--machine-label", "m1"]);
    let folder = Folder::new();
    let line = |word: &str| {
        format!(
            "echo \"{word} $SIDEBIKE_PHASE $SIDEBIKE_KEY $SIDEBIKE_MACHINE_LABEL $SIDEBIKE_ATTEMPT $MINE\" >> log"
        )
    };
    let mut detail = with_undo(
        &folder,
        &format!("{}; echo out; echo err >&2; exit 3", line("c")),
        json!({
            "command": format!("{}; echo \"$SIDEBIKE_UNDO_REASON $SIDEBIKE_EXIT_CODE $SIDEBIKE_STDOUT\"; exit 5", line("u")),
            "check": format!("{}; echo checked", line("k")),
        }),
    );
    detail["env"] = json!({"MINE": "mine", "SIDEBIKE_PHASE": "mine", "SIDEBIKE_KEY": "mine"});
    let key = KEYS[0];
    server.start_with_key("x.1", key, detail);
    let result = server.result("x.1");
    let undo = server.undone("x.1");
    assert_eq!(
        (result.state, result.exit_code),
        (ExecutionState::Failed, Some(3))
    );
    assert_eq!(result.msg, "exit code 3");
    assert_eq!((undo.state, undo.by), (UndoState::Done, UndoBy::Agent));
    assert_eq!((undo.reason, undo.tries), (Some(UndoReason::Ended), 1));
    assert_eq!((undo.exit_code, undo.check_exit_code), (Some(5), Some(0)));
    assert_eq!(undo.output, "ended 3 out\n\nchecked\n");
    assert!(undo.began_ago_ms >= undo.ended_ago_ms && undo.ended_ago_ms.is_some());
    let expected = ["c command", "u undo", "k check"].map(|it| format!("{it} {key} m1 1 mine"));
    assert_eq!(folder.lines("log"), expected);
    let seen = server.wait(|_| true);
    assert_eq!(states(&seen, "x.1").first(), Some(&UndoState::Armed));
    for done in &seen.dones {
        let has_end = done.undos.iter().any(|undo| undo.state.is_settled());
        assert_eq!(done.results.is_empty(), !has_end, "one without the other");
    }
    drop(seen);
    // What the server has taken is not listed any more.
    until_polled(&server, |poll| {
        poll.holds.is_empty() && poll.undos.is_empty()
    });
}

#[test]
fn polls_list_undos_and_ends_are_repeated_until_they_are_taken() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    server.change(|seen| (seen.lose_dones, seen.ignore_undos) = (3, 3));
    let undo = json!({"command": "echo undo >> log; while [ ! -e go ]; do sleep 0.02; done"});
    server.start("x.1", with_undo(&folder, "echo $SIDEBIKE_KEY >> key", undo));
    folder.until("log", 1);
    server.cancel("x.1");
    until_polled(&server, |poll| {
        let mut undos = poll.undos.iter();
        let is_running = undos.any(|undo| undo.state == UndoState::Running);
        is_running
            && poll
                .holds
                .iter()
                .any(|hold| hold.state == HoldState::Ending)
    });
    folder.write("go");
    server.until(|seen| seen.lose_dones == 0 && seen.ignore_undos == 0);
    until_polled(&server, |poll| {
        poll.holds.is_empty() && poll.undos.is_empty()
    });
    let seen = server.wait(|_| true);
    let undos = seen.undos("x.1");
    assert_eq!(seen.results("x.1")[0].state, ExecutionState::Succeeded);
    // It was canceled when its command had ended: that changes nothing.
    assert!({ undos.iter() }.all(|undo| undo.reason != Some(UndoReason::Canceled)));
    // Without a key in the order the agent makes one.
    assert_eq!(folder.lines("key")[0].len(), 32);
    assert_eq!(folder.lines("log"), ["undo"]);
}

#[test]
fn the_reason_is_that_of_the_end() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let undo = json!({"command": "echo $SIDEBIKE_UNDO_REASON ${SIDEBIKE_EXIT_CODE-none} >> log"});
    let mut detail = with_undo(&folder, "sleep 1000", undo.clone());
    detail["timeout"] = json!(1);
    server.start("x.1", detail);
    assert_eq!(server.result("x.1").state, ExecutionState::TimedOut);
    assert_eq!(server.undone("x.1").reason, Some(UndoReason::TimedOut));
    server.start(
        "x.2",
        with_undo(&folder, "echo > x.2; exec sleep 1000", undo),
    );
    folder.until("x.2", 1);
    server.cancel("x.2");
    assert_eq!(server.result("x.2").state, ExecutionState::Canceled);
    assert_eq!(server.undone("x.2").reason, Some(UndoReason::Canceled));
    assert_eq!(folder.lines("log"), ["timedOut none", "canceled none"]);
}

#[test]
fn what_a_command_left_is_ended_before_it_is_undone() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let command =
        "(trap '' TERM; exec setsid sleep 1000) & echo $! > pid; sleep 1000 & echo $! >> pid";
    let undo = json!({
        "command": "for pid in $(cat pid); do kill -0 $pid 2>/dev/null && ! grep -q ') Z' /proc/$pid/stat && echo $pid >> alive; done; echo undone >> log",
        "check": "[ ! -e alive ]",
        "patience": 1,
    });
    let mut detail = with_undo(&folder, command, undo);
    detail["killGrace"] = json!(0.5);
    server.start("x.1", detail);
    let result = server.result("x.1");
    assert_eq!(
        (result.state, &*result.msg),
        (ExecutionState::Succeeded, "")
    );
    // The time from TERM to KILL is not the command's.
    assert!(result.duration_ms.unwrap() < 500);
    assert_eq!(server.undone("x.1").state, UndoState::Done);
    assert_eq!(folder.lines("pid").len(), 2);
    for pid in folder.lines("pid") {
        assert!(!alive(pid.parse().unwrap()), "{pid} lives");
    }
}

#[test]
fn one_that_is_refused_by_the_owner_is_refused_whole() {
    let (server, _agent) = pair(&["--allow", "true", "--allow", "touch .*"]);
    let folder = Folder::new();
    for (name, undo) in [
        ("x.1", json!({"command": "rm file"})),
        ("x.2", json!({"argv": ["rm", "file"]})),
        ("x.3", json!({"command": "true", "check": "false"})),
        ("x.4", json!({"command": "true", "checkArgv": ["false"]})),
    ] {
        server.start(name, with_undo(&folder, "touch file", undo));
        let result = server.result(name);
        assert_eq!(result.state, ExecutionState::Failed);
        assert!(result.msg.contains("owner"), "{}", result.msg);
        assert!(result.msg.contains("detail.undo"), "{}", result.msg);
        assert_eq!(server.undone(name).state, UndoState::NotNeeded);
        let seen = server.wait(|_| true);
        assert_eq!(states(&seen, name), [UndoState::NotNeeded]);
    }
    assert!(!std::fs::exists(folder.file("file")).unwrap());
    server.start(
        "x.5",
        with_undo(&folder, "touch file", json!({"command": "true"})),
    );
    assert_eq!(server.result("x.5").state, ExecutionState::Succeeded);
    assert_eq!(server.undone("x.5").state, UndoState::Done);
}

#[test]
fn undo_and_check_go_through_the_wrapper() {
    let folder = Folder::new();
    let script = "#!/bin/sh\necho \"$SIDEBIKE_PHASE: $*\" >> log\nexec \"$@\"\n";
    let wrapper = folder.program("wrapper", script);
    let (server, _agent) = pair(&["--wrapper", &wrapper]);
    let undo = json!({"argv": ["echo", "undo"], "checkArgv": ["echo", "check"]});
    let detail = json!({"argv": ["echo", "command"], "workspace": folder.path(), "undo": undo});
    server.start("x.1", detail);
    let undo = server.undone("x.1");
    assert_eq!(
        (undo.state, &*undo.output),
        (UndoState::Done, "undo\ncheck\n")
    );
    let expected = ["command", "undo", "check"].map(|it| format!("{it}: echo {it}"));
    assert_eq!(folder.lines("log"), expected);
}

#[test]
fn undo_and_check_run_as_the_user_of_the_command() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can start an agent that may change its user");
        return;
    }
    let (server, _agent) = pair(&[]);
    let undo = json!({"command": "id -un; echo $USER", "check": "id -un"});
    let detail = json!({"command": "id -un", "user": "nobody", "workspace": "/", "undo": undo});
    server.start("x.1", detail);
    let undo = server.undone("x.1");
    assert_eq!(undo.output, "nobody\nnobody\nnobody\n", "{}", undo.msg);
    assert_eq!(undo.state, UndoState::Done);
}

#[test]
fn what_cannot_be_started_needs_no_undo() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let undo = json!({"command": "echo undo >> log"});
    let broken = json!({"command": "echo undo >> log", "unknown": 1});
    for (name, detail, msg) in [
        (
            "x.1",
            json!({"argv": ["/no/such"], "undo": undo}),
            "/no/such",
        ),
        ("x.2", json!({"argv": ["no-such"], "undo": undo}), "no-such"),
        ("x.3", json!({"command": "true", "undo": broken}), "unknown"),
        (
            "x.4",
            json!({"command": "true", "undo": {"check": "true"}}),
            "detail.undo",
        ),
        (
            "x.5",
            json!({"command": "true", "timeout": -1, "undo": undo}),
            "detail.timeout",
        ),
        (
            "x.6",
            json!({"command": "true", "workspace": "/no/such", "undo": undo}),
            "workspace",
        ),
    ] {
        let mut detail = detail;
        if detail.get("workspace").is_none() {
            detail["workspace"] = json!(folder.path());
        }
        server.start(name, detail);
        let result = server.result(name);
        assert_eq!(result.state, ExecutionState::Failed, "{name}");
        assert!(result.msg.contains(msg), "{name}: {}", result.msg);
        assert_eq!(server.undone(name).state, UndoState::NotNeeded, "{name}");
    }
    assert!(folder.lines("log").is_empty());
    // A shell that does not find its command was started.
    server.start("x.7", with_undo(&folder, "no-such-program", undo));
    assert_eq!(server.result("x.7").exit_code, Some(127));
    assert_eq!(server.undone("x.7").state, UndoState::Done);
    assert_eq!(folder.lines("log"), ["undo"]);
}

#[test]
fn an_undo_is_tried_until_it_works_or_its_patience_is_over() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let twice = json!({"command": "echo >> tries; [ $(wc -l < tries) -ge 3 ]"});
    server.start("x.1", with_undo(&folder, "true", twice));
    let undo = server.undone("x.1");
    assert_eq!((undo.state, undo.tries), (UndoState::Done, 3));
    let hangs = json!({"command": "trap '' TERM; sleep 1000", "timeout": 0.5, "patience": 0});
    server.start("x.2", with_undo(&folder, "true", hangs));
    let missing = json!({"argv": ["./blade"], "check": "echo not clean; false", "patience": 1});
    server.start("x.3", with_undo(&folder, "true", missing));
    let undo = server.undone("x.3");
    assert_eq!((undo.state, undo.tries), (UndoState::Failed, 2));
    assert_eq!((undo.exit_code, undo.check_exit_code), (None, Some(1)));
    assert_eq!(undo.output, "not clean\nnot clean\n");
    assert!(undo.msg.contains("blade") && undo.msg.contains("exit code 1"));
    let undo = server.undone("x.2");
    assert_eq!((undo.state, undo.tries), (UndoState::Failed, 1));
    assert!(undo.msg.contains("timed out after 500ms"), "{}", undo.msg);
    // What an undo did is none of the command's business.
    assert_eq!(server.result("x.2").state, ExecutionState::Succeeded);
    // The program of an undo may be brought by the command.
    let command = "printf '#!/bin/sh\\necho destroyed' > blade; chmod +x blade";
    server.start(
        "x.4",
        with_undo(&folder, command, json!({"argv": ["./blade"]})),
    );
    let undo = server.undone("x.4");
    assert_eq!(
        (undo.state, &*undo.output),
        (UndoState::Done, "destroyed\n")
    );
}

#[test]
fn an_undo_takes_no_job_and_cannot_be_canceled() {
    let (server, _agent) = pair(&["--jobs", "1"]);
    let folder = Folder::new();
    let undo = json!({"command": "echo undo >> log; while [ ! -e go ]; do sleep 0.02; done"});
    server.start("x.1", with_undo(&folder, "true", undo));
    folder.until("log", 1);
    server.cancel("x.1");
    server.start("x.2", json!({"command": "true"}));
    assert_eq!(server.result("x.2").state, ExecutionState::Succeeded);
    assert!(server.wait(|_| true).results("x.1").is_empty());
    folder.write("go");
    assert_eq!(server.result("x.1").state, ExecutionState::Succeeded);
    let undo = server.undone("x.1");
    assert_eq!((undo.state, undo.tries), (UndoState::Done, 1));
}

#[test]
fn an_undo_is_run_on_order() {
    let (server, _agent) = pair(&["--jobs", "1", "--machine-label", "m1"]);
    let (folder, key) = (Folder::new(), KEYS[1]);
    server.start("x.1", json!({"command": "sleep 1000"}));
    server.until(|seen| !seen.polls.last().unwrap().holds.is_empty());
    let undo = json!({
        "command": "echo $SIDEBIKE_UNDO_REASON $SIDEBIKE_EXIT_CODE $SIDEBIKE_STDOUT $SIDEBIKE_KEY $SIDEBIKE_MACHINE_LABEL >> log; while [ ! -e go ]; do sleep 0.02; done",
    });
    let detail = with_undo(&folder, "touch started", undo);
    // The order is repeated as long as the server does not know that it is obeyed.
    for _ in 0..3 {
        server.undo("x.0", key, UndoReason::Owed, detail.clone());
    }
    folder.until("log", 1);
    server.until(|seen| {
        let polls = seen.polls.iter().rev();
        polls.filter(|poll| !poll.undos.is_empty()).count() >= 2
    });
    folder.write("go");
    let undo = server.undone("x.0");
    assert_eq!(
        (undo.state, undo.reason),
        (UndoState::Done, Some(UndoReason::Owed))
    );
    until_polled(&server, |poll| poll.undos.is_empty());
    let first = format!("owed 9 what it said {key} m1");
    assert_eq!(folder.lines("log"), std::slice::from_ref(&first));
    // By hand it is repeated.
    server.undo("x.0", key, UndoReason::ByHand, detail);
    folder.until("log", 2);
    let second = format!("byHand 9 what it said {key} m1");
    assert_eq!(folder.lines("log"), [first, second]);
    server.until(|seen| {
        let mut undos = seen.undos("x.0").into_iter();
        undos.any(|it| it.state == UndoState::Done && it.reason == Some(UndoReason::ByHand))
    });
    assert!(!std::fs::exists(folder.file("started")).unwrap());
    // What cannot be run is reported, too.
    server.undo(
        "x.9",
        "no key",
        UndoReason::Owed,
        json!({"command": "true", "undo": {"command": "true"}}),
    );
    let undo = server.undone("x.9");
    assert_eq!((undo.state, undo.tries), (UndoState::Failed, 0));
    assert!(undo.msg.contains("key"), "{}", undo.msg);
}

#[test]
fn what_the_server_does_not_know_any_more_is_undone() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let undo = json!({"command": "echo $SIDEBIKE_UNDO_REASON >> log"});
    server.start(
        "x.1",
        with_undo(&folder, "echo $$ > pid; exec sleep 1000", undo),
    );
    let pid = folder.pid("pid");
    server.forget("x.1");
    let undo = server.undone("x.1");
    assert_eq!(
        (undo.state, undo.reason),
        (UndoState::Done, Some(UndoReason::Canceled))
    );
    assert!(!alive(pid));
    assert_eq!(folder.lines("log"), ["canceled"]);
    server.start("x.2", json!({"command": "true"}));
    server.result("x.2");
    assert!(server.wait(|_| true).results("x.1").is_empty());
}

#[test]
fn at_shutdown_a_command_is_ended_at_once_and_undone() {
    let (server, mut agent) = pair(&["--grace", "600"]);
    let folder = Folder::new();
    let undo = json!({"command": "echo $SIDEBIKE_UNDO_REASON >> log"});
    let stubborn = "trap '' TERM; echo > x.1; while :; do sleep 0.1; done";
    let mut detail = with_undo(&folder, stubborn, undo.clone());
    detail["killGrace"] = json!(100);
    server.start("x.1", detail);
    folder.until("x.1", 1);
    let begun = Instant::now();
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(0));
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(begun.elapsed() < Duration::from_secs(2) + SLACK);
    let result = server.result("x.1");
    assert_eq!(result.state, ExecutionState::Canceled);
    assert!(result.msg.contains("shut down"), "{}", result.msg);
    let undo = server.undone("x.1");
    assert_eq!(
        (undo.state, undo.reason),
        (UndoState::Done, Some(UndoReason::Shutdown))
    );
    assert_eq!(folder.lines("log"), ["shutdown"]);
    let seen = server.wait(|seen| !seen.goodbyes.is_empty());
    assert!(seen.goodbyes[0].holds.is_empty());
}

#[test]
fn shutdown_waits_for_an_undo() {
    let (server, mut agent) = pair(&[]);
    let folder = Folder::new();
    let undo = json!({"command": "echo >> tries; [ $(wc -l < tries) -ge 3 ]"});
    server.start("x.1", with_undo(&folder, "true", undo));
    folder.until("tries", 1);
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(0));
    let undo = server.undone("x.1");
    assert_eq!((undo.state, undo.tries), (UndoState::Done, 3));
    // It had ended before.
    assert_eq!(undo.reason, Some(UndoReason::Ended));
    assert_eq!(server.result("x.1").state, ExecutionState::Succeeded);
    server.until(|seen| !seen.goodbyes.is_empty());
}

/// A command with a dead man's switch, whose undo writes why it runs into `log`.
fn watched(folder: &Folder, deadman: u64) -> Value {
    let undo = json!({"command": "echo $SIDEBIKE_UNDO_REASON >> log", "deadman": deadman});
    with_undo(folder, "echo > started; exec sleep 1000", undo)
}

/// The last answer of the server was so long ago, when the undo has just begun.
fn assert_in_time(server: &Server, deadman: Duration) {
    let took = server.wait(|_| true).answered.last().unwrap().elapsed();
    assert!(took >= deadman - Duration::from_millis(100), "{took:?}");
    assert!(took < deadman + DEADMAN_SLACK, "{took:?}");
}

#[test]
fn without_contact_a_command_is_undone() {
    let (mut server, _agent) = pair(&[]);
    let folder = Folder::new();
    let deadman = Duration::from_secs(3);
    server.start("x.1", watched(&folder, 3));
    folder.until("started", 1);
    // While it runs, polls are held for a sixth of that.
    let polls = server.wait(|_| true).polls.len();
    server.until(|seen| seen.polls.len() > polls + 2);
    for poll in server.wait(|_| true).polls.iter().skip(polls) {
        assert!(Duration::from(poll.wait) <= deadman / 6);
    }
    server.close();
    folder.until("log", 1);
    assert_in_time(&server, deadman);
    server.open();
    let result = server.result("x.1");
    assert_eq!(result.state, ExecutionState::Failed);
    assert_eq!(result.msg, "the server could not be reached for 3s");
    let undo = server.undone("x.1");
    assert_eq!(
        (undo.state, undo.reason),
        (UndoState::Done, Some(UndoReason::Deadman))
    );
    assert_eq!(folder.lines("log"), ["deadman"]);
    // Polls are held for long again.
    server.until(|seen| Duration::from(seen.polls.last().unwrap().wait) > deadman);
}

/// An outage of less than half of the time does no harm, a longer one has the command undone.
fn outage(rule: impl Fn(&str, usize) -> Act + Clone + Send + Sync + 'static) {
    let server = Server::new();
    let gate = Gate::new(server.port, |_, _| Act::Pass);
    let _agent = Agent::start_behind(&gate, &[], &[]);
    server.until(|seen| !seen.polls.is_empty());
    let folder = Folder::new();
    let deadman = Duration::from_secs(4);
    server.start("x.1", watched(&folder, 4));
    folder.until("started", 1);
    // No report is under way that could be answered later.
    server.until(|seen| !seen.undos("x.1").is_empty());
    gate.change(rule.clone());
    std::thread::sleep(deadman / 2 - Duration::from_millis(100));
    gate.change(|_, _| Act::Pass);
    let polls = server.wait(|_| true).polls.len();
    server.until(|seen| seen.polls.len() > polls + 4);
    assert!(folder.lines("log").is_empty(), "undone too early");
    gate.change(rule);
    folder.until("log", 1);
    assert_in_time(&server, deadman);
    gate.change(|_, _| Act::Pass);
    assert_eq!(server.undone("x.1").reason, Some(UndoReason::Deadman));
}

#[test]
fn a_proxy_that_refuses_is_no_contact() {
    outage(|_, _| answer(502, "<html>Bad gateway</html>"));
}

#[test]
fn a_page_of_another_is_no_contact() {
    outage(|_, _| answer(200, "<html>Welcome</html>"));
}

#[test]
fn a_server_that_does_not_answer_is_no_contact() {
    outage(|_, _| Act::Slow {
        rate: 20,
        cut: Duration::from_secs(2),
    });
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_no_contact() {
    outage(|_, _| Act::Silent);
}

#[test]
fn work_from_a_report_shortens_the_poll_that_is_held() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    server.start_by_report("x.1", watched(&folder, 3));
    // Its result asks for work while a long poll is held.
    server.start("x.0", json!({"command": "sleep 0.5"}));
    folder.until("started", 1);
    let begun = Instant::now();
    server.until(|_| begun.elapsed() > Duration::from_secs(5));
    assert!(
        folder.lines("log").is_empty(),
        "undone though there was contact"
    );
    server.cancel("x.1");
    assert_eq!(server.undone("x.1").reason, Some(UndoReason::Canceled));
}

#[test]
fn the_switch_can_be_off() {
    let (mut server, _agent) = pair(&[]);
    let folder = Folder::new();
    let undo = json!({"command": "echo $SIDEBIKE_UNDO_REASON >> log", "deadman": -1});
    server.start(
        "x.1",
        with_undo(&folder, "echo > started; exec sleep 1000", undo),
    );
    folder.until("started", 1);
    server.until(|seen| seen.undos("x.1").len() == 1);
    for poll in &server.wait(|_| true).polls {
        assert!(Duration::from(poll.wait) >= Duration::from_secs(20));
    }
    server.close();
    server.open();
    server.cancel("x.1");
    assert_eq!(server.undone("x.1").reason, Some(UndoReason::Canceled));
}
