//! Experiments on the command line: `run --undo` and what becomes of it, `undo`, `forgive`, `halt`, `report`, `diff`,
//! `info`. The binary against a real server with real agents; where an agent has to be gone for good, the test speaks
//! for it.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::puppet::{Puppet, hold, report};
use common::said::{Said, command, lines_with, sidebike, with_input};
use common::{Agent, Folder, Process, Server, id, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;

fn agents(server: &Server, labels: &[&str]) -> Vec<Agent> {
    let start = |label: &&str| Agent::start(server.address, label, &[]);
    let agents: Vec<Agent> = labels.iter().map(start).collect();
    server.expect(&agents.iter().collect::<Vec<_>>());
    agents
}

/// `sidebike run` on every machine, with more flags.
fn run(server: &Server, flags: &[&str], line: &str) -> Said {
    let words = [&["run", "-m", "."], flags, &["--", line]].concat();
    sidebike(server, &words)
}

/// A command that runs in the background; what it says on stderr is its log.
fn in_background(server: &Server, words: &[&str]) -> Process {
    Process::start(command(server, words))
}

fn code(process: &mut Process) -> i32 {
    process.ended().code().expect("it was not killed")
}

#[test]
fn a_run_takes_its_effect_back_and_ends_with_the_commands_code() {
    let server = Server::start();
    let folder = Folder::new();
    let _agents = agents(&server, &["web-1"]);
    let undo = [
        "--workspace",
        folder.path(),
        "--undo",
        "rm -f effect; echo undone",
        "--undo-check",
        "test ! -e effect",
        "--undo-timeout",
        "20s",
        "--undo-patience",
        "1m",
        "--deadman",
        "30s",
        "--lock",
        "disk",
    ];
    let said = run(&server, &undo, "touch effect; echo out; exit 7");
    assert_eq!((said.code, &*said.out), (7, "out\n"), "{said:?}");
    assert!(!said.err.contains("NOT UNDONE"), "{said:?}");
    assert_eq!(folder.lines("effect").len(), 0);
    assert!(!fs::exists(folder.file("effect")).unwrap());
    let task = server.newest();
    let posted = json!({"command": "rm -f effect; echo undone", "check": "test ! -e effect",
        "timeout": 20, "patience": 60, "deadman": 30, "lock": "disk"});
    assert_eq!(task["detail"]["undo"], posted);
    let said = sidebike(&server, &["show", "run"]);
    for line in [
        "undo       rm -f effect; echo undone",
        "check      test ! -e effect",
        "lock       disk",
        "undos      1 done",
        "MACHINE  STATE   UNDO  EXIT",
        "web-1    failed  done  7",
    ] {
        assert!(said.out.contains(line), "lacks {line}: {said:?}");
    }
    assert!(!said.out.contains("NOT UNDONE"), "{said:?}");
    // Without an undo there is nothing of it.
    assert_eq!(run(&server, &["--name", "plain"], "true").code, 0);
    let said = sidebike(&server, &["show", "plain"]);
    assert!(!said.out.to_lowercase().contains("undo"), "{said:?}");
}

#[test]
fn a_stop_cancels_an_experiment_unless_the_task_says_otherwise() {
    let server = Server::start();
    let _agents = agents(&server, &["m-1"]);
    let cancels = "what runs is canceled when it is stopped";
    for (stop_running, word) in [
        (Value::Null, "is being canceled"),
        (json!(false), "ends by itself"),
    ] {
        let mut task = common::task("exec sleep 600");
        task["detail"]["undo"] = json!({"command": "true"});
        task["detail"]["timeout"] = json!(900);
        task["rollout"] = json!({"concurrency": 1});
        if !stop_running.is_null() {
            task["rollout"]["stopRunning"] = stop_running;
        }
        let task = server.submit(task);
        server.when(id(&task), "running", 1);
        let said = sidebike(&server, &["show", id(&task)]);
        assert!(said.out.contains("pace       1 at once"), "{said:?}");
        let says = said.out.contains(cancels);
        assert_eq!(says, word == "is being canceled", "{said:?}");
        let said = sidebike(&server, &["stop", id(&task)]);
        let words = format!(": stopped; what runs {word} (");
        assert!(said.out.contains(&words), "{said:?}");
        if word == "ends by itself" {
            server.when(id(&task), "running", 1);
            assert_eq!(sidebike(&server, &["cancel", id(&task)]).code, 0);
        }
        assert_eq!(server.finished(id(&task))["counts"]["canceled"], 1);
    }
}

#[test]
fn a_task_is_shown_with_its_probes() {
    let server = Server::start();
    let _agents = agents(&server, &["m-1", "probe-1"]);
    let on = json!({"machinePattern": "^probe-"});
    let probe = |name: &str, line: &str| json!({"name": name, "command": line, "on": on, "interval": 1, "failures": 1, "after": 0});
    let mut task = common::task("exec sleep 600");
    task["detail"]["timeout"] = json!(900);
    task["detail"]["undo"] = json!({"command": "true"});
    task["probes"] = json!([probe("fine", "true"), probe("p99", "exit 7")]);
    let task = server.submit(task);
    server.finished(id(&task));
    let said = sidebike(&server, &["show", id(&task)]);
    let line = "\nprobe      p99: failed, 1 failed in a row: exit code 7\n";
    assert!(said.out.contains(line), "{said:?}");
    assert_eq!(lines_with(&said.out, "probe      ").len(), 2, "{said:?}");
}

#[test]
fn what_is_held_is_undone_after_that_time() {
    let server = Server::start();
    let folder = Folder::new();
    let _agents = agents(&server, &["web-1"]);
    let flags = [
        "--workspace",
        folder.path(),
        "--hold",
        "0.9s",
        "--undo",
        "echo \"$SIDEBIKE_UNDO_REASON $SIDEBIKE_EXIT_CODE\" >> log",
    ];
    let said = run(&server, &flags, "echo begun >> log; exit 0 # as asked");
    assert_eq!((said.code, &*said.err), (0, ""), "{said:?}");
    assert_eq!(folder.lines("log"), ["begun", "ended 0"]);
    let task = server.newest();
    assert_eq!(task["detail"]["timeout"], 180.9);
    let ran = task["result"][0]["durationMs"].as_u64().unwrap();
    assert!(ran >= 1_000, "{task}");
    // What fails is not held.
    let said = run(
        &server,
        &[&flags[..3], &["1h"], &flags[4..]].concat(),
        "false",
    );
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(folder.lines("log").last().unwrap(), "ended 1");
    let words = [
        &["run", "-m", ".", "--exec"],
        &flags[..],
        &["--", "printf", "%s|", "a b", "$c"],
    ];
    let said = sidebike(&server, &words.concat());
    assert_eq!((said.code, &*said.out), (0, "a b|$c|"), "{said:?}");
    assert_eq!(folder.lines("log").last().unwrap(), "ended 0");
}

#[test]
fn what_is_not_undone_is_said_last_and_ends_with_123() {
    let server = Server::start();
    let folder = Folder::new();
    let agents = agents(&server, &["web-1", "web-2"]);
    let bad = agents[1].instance();
    let undo = "echo trying; test $SIDEBIKE_MACHINE_LABEL = web-1 || test -e mended";
    let flags = [
        "--workspace",
        folder.path(),
        "--undo",
        undo,
        "--undo-patience",
        "0.1s",
    ];
    let said = run(&server, &flags, "exit 200");
    assert_eq!(said.code, 123, "{said:?}");
    let task = server.newest();
    let first = id(&task);
    let is_told = |said: &Said| {
        assert_eq!(said.code, 123, "{said:?}");
        let last = said.err.lines().last().unwrap();
        assert!(
            last.starts_with("web-2: NOT UNDONE: the undo failed after "),
            "{said:?}"
        );
        let to_do = format!("again: sidebike undo {first} -m {bad}; ");
        assert!(last.contains(&to_do), "{said:?}");
        assert_eq!(lines_with(&said.err, "NOT UNDONE").len(), 1, "{said:?}");
    };
    is_told(&said);
    is_told(&sidebike(&server, &["wait", first]));
    is_told(&sidebike(&server, &["wait", "--json", first]));
    let said = sidebike(&server, &["show", first]);
    for line in [
        "undos      1 done, 1 failed (NOT UNDONE)",
        "web-2: NOT UNDONE: ",
        "\n    trying\n",
    ] {
        assert!(said.out.contains(line), "lacks {line}: {said:?}");
    }
    let said = sidebike(&server, &["rerun", first]);
    assert_eq!(said.code, 123, "{said:?}");
    let second = server.newest();
    let second = id(&second);
    assert_eq!(run(&server, &[], "true").code, 0);
    let unclean = || {
        let said = sidebike(&server, &["ps", "--unclean", "--json"]);
        let tasks = said.json();
        let ids = common::ids(&tasks).into_iter().map(str::to_owned);
        ids.collect::<Vec<_>>()
    };
    assert_eq!(unclean(), [second, first]);
    let said = sidebike(&server, &["ps"]);
    assert_eq!(
        lines_with(&said.out, "failed, 1 NOT UNDONE").len(),
        2,
        "{said:?}"
    );
    let said = sidebike(&server, &["info"]);
    assert!(
        said.out.contains("2 NOT UNDONE; see sidebike ps --unclean"),
        "{said:?}"
    );
    assert_eq!(
        sidebike(&server, &["info", "--json"]).json()["undosOpen"],
        2
    );
    let said = sidebike(&server, &["report", first]);
    let verdict = format!("Task {first} (run): dirty");
    assert_eq!(said.out.lines().next(), Some(&*verdict), "{said:?}");
    assert!(said.out.contains("\n\n1 undos failed\n"), "{said:?}");

    // In vain, then not.
    is_told(&sidebike(&server, &["undo", first]));
    is_told(&sidebike(&server, &["undo", "--all", "--json", first]));
    fs::write(folder.file("mended"), "").unwrap();
    let said = sidebike(&server, &["undo", first]);
    assert_eq!(
        (said.code, &*said.out),
        (0, "web-2: done after 1 try\n"),
        "{said:?}"
    );
    assert_eq!(sidebike(&server, &["wait", first]).code, 200);
    let said = sidebike(&server, &["undo", first]);
    assert_eq!(said.code, 255, "{said:?}");
    assert!(
        said.err
            .contains("no undo of it is failed or owed; --all runs them"),
        "{said:?}"
    );
    let said = sidebike(&server, &["undo", "-m", "web-1", first]);
    assert_eq!(
        (said.code, &*said.out),
        (0, "web-1: done after 1 try\n"),
        "{said:?}"
    );
    let said = sidebike(&server, &["undo", "--all", first]);
    let lines = ["web-1: done after 1 try", "web-2: done after 1 try"];
    assert_eq!((said.code, said.sorted()), (0, lines.to_vec()), "{said:?}");
    let said = sidebike(&server, &["undo", "--detach", "-m", "web-1", first]);
    let words = format!("task {first}: being undone on web-1\n");
    assert_eq!((said.code, said.out), (0, words));

    // The other one by hand.
    assert_eq!(unclean(), [second]);
    let said = sidebike(&server, &["forgive", second]);
    assert!(
        said.code == 2
            && said
                .err
                .contains("web-2 would not be shown any more: say --yes"),
        "{said:?}"
    );
    let said = sidebike(&server, &["forgive", "--yes", "-m", "web-3", second]);
    assert!(said.code == 1 && said.err.contains("web-3"), "{said:?}");
    assert_eq!(unclean(), [second]);
    let said = sidebike(&server, &["forgive", "--yes", second]);
    let words = format!("task {second}: forgiven on web-2\n");
    assert_eq!((said.code, said.out), (0, words));
    // What was forgiven may still be there.
    let report = sidebike(&server, &["report", "--json", second]).json();
    for machine in report["machines"].as_array().unwrap() {
        let is_done = machine["undo"] == "done";
        assert_eq!(machine["exposureMs"].is_u64(), is_done, "{report}");
    }
    let said = sidebike(&server, &["forgive", second]);
    assert!(
        said.code == 1 && said.err.contains("no undo of it is failed or owed"),
        "{said:?}"
    );
    assert_eq!(unclean().len(), 0);
    assert_eq!(sidebike(&server, &["wait", second]).code, 200);
    let said = sidebike(&server, &["show", second]);
    assert!(said.out.contains("1 done, 1 forgiven"), "{said:?}");
    let said = sidebike(&server, &["info"]);
    assert!(said.out.contains("undos      nothing is left"), "{said:?}");
}

#[test]
fn what_is_owed_is_waited_for_until_somebody_runs_it() {
    let server = Server::start();
    let mut first = Puppet::new(&server, 1, "web-1");
    let quick = ["--deadman", "10s", "--undo-timeout", "0.1s"];
    let words = [
        &["run", "-m", "web", "--undo", "true"],
        &quick[..],
        &["--", "true"],
    ];
    let mut running = in_background(&server, &words.concat());
    wait_for("the task", || {
        server.metric("sidebike_tasks_submitted_total") == 1
    });
    let order = first.ordered();
    let goodbye = json!({"instance": first.instance, "holds": [hold(&order)]});
    server.post("/api/v1/agent/goodbye", &goodbye).data();
    assert_eq!(code(&mut running), 123);
    let task = server.newest();
    let debt = running.logged("web-1: NOT UNDONE: ");
    let words = format!(
        "on host host-1 again: sidebike undo {} waits for that",
        id(&task)
    );
    assert!(
        debt.starts_with("nobody knows whether the undo has run") && debt.contains(&words),
        "{debt}"
    );
    // It is late only once its machine had the time to undo it without the server.
    let is_late = || {
        let due = &task["result"][0]["undo"]["dueAt"];
        let late = format!(
            "\nweb-1: should have undone itself by {}, not confirmed\n",
            due.as_str().unwrap()
        );
        let said = sidebike(&server, &["show", id(&task)]);
        assert!(said.out.contains("web-1: NOT UNDONE: "), "{said:?}");
        said.out.contains(&late)
    };
    assert!(!is_late());
    wait_for("the time by which it had to be undone", is_late);
    let said = sidebike(&server, &["undo", "--timeout", "0.1s", id(&task)]);
    assert_eq!(said.code, 123, "it is still owed: {said:?}");
    assert!(
        said.err
            .contains("sidebike: not ended within 100ms on web-1\n"),
        "{said:?}"
    );

    let mut undoing = in_background(&server, &["undo", id(&task)]);
    undoing.logged("web-1 waits for an agent with this label on host host-1");
    let mut next = Puppet::unseen(&server, 2, "web-1");
    let order = next.poll(json!([]), json!([]))["undo"][0].take();
    assert_eq!(order["reason"], "owed");
    let mut undo = report(&order, "running");
    undo["reason"] = json!("owed");
    next.done(json!([]), json!([undo]));
    let said = sidebike(
        &server,
        &["undo", "--timeout", "0.1s", "-m", "web-1", id(&task)],
    );
    assert!(
        said.code == 255 && said.err.contains("no undo of it has ended yet"),
        "{said:?}"
    );
    undo["state"] = json!("done");
    next.done(json!([]), json!([undo]));
    assert_eq!(code(&mut undoing), 0);
    assert_eq!(
        sidebike(&server, &["wait", id(&task)]).code,
        125,
        "lost, and undone"
    );
}

#[test]
fn a_signal_cancels_and_waits_for_the_undo_and_a_second_one_does_not() {
    let server = Server::start();
    let folder = Folder::new();
    let _agents = agents(&server, &["web-1"]);
    let words = |undo| {
        [
            "run",
            "-m",
            ".",
            "--workspace",
            folder.path(),
            "--undo",
            undo,
            "--",
            "touch begun; exec sleep 600",
        ]
    };
    let undo = "echo $SIDEBIKE_UNDO_REASON >> log; while test ! -e go; do sleep 0.02; done";
    for (is_second, expected) in [(true, "its undo goes on; "), (false, "canceled in ")] {
        let mut running = in_background(&server, &words(undo));
        wait_for("the command", || fs::exists(folder.file("begun")).unwrap());
        running.signal(Signal::TERM);
        running.logged("waiting for its undo");
        wait_for("the undo", || folder.lines("log").len() == 1);
        assert!(running.is_alive());
        if is_second {
            running.signal(Signal::TERM);
            assert_eq!(code(&mut running), 130);
        }
        fs::write(folder.file("go"), "").unwrap();
        assert_eq!(code(&mut running), 130);
        running.logged(expected);
        let task = server.newest();
        let task = server.finished(id(&task));
        assert_eq!(
            (&task["state"], &task["clean"]),
            (&json!("canceled"), &json!(true))
        );
        assert_eq!(folder.lines("log"), ["canceled"]);
        for name in ["begun", "log", "go"] {
            fs::remove_file(folder.file(name)).unwrap();
        }
    }
    // The undo that is canceled for fails.
    let flags = words("false");
    let flags = [&flags[..5], &["--undo-patience", "0.1s"], &flags[5..]].concat();
    let mut running = in_background(&server, &flags);
    wait_for("the command", || fs::exists(folder.file("begun")).unwrap());
    running.signal(Signal::INT);
    assert_eq!(code(&mut running), 123);
    running.logged("web-1: NOT UNDONE: the undo failed ");
}

#[test]
fn a_halt_ends_every_experiment_until_it_is_lifted() {
    let server = Server::start();
    let folder = Folder::new();
    let _agents = agents(&server, &["web-1"]);
    let said = sidebike(&server, &["halt", "--status"]);
    assert_eq!((said.code, &*said.out), (0, "there is no halt\n"));
    assert!(
        sidebike(&server, &["halt", "--status", "--json"])
            .json()
            .is_null()
    );
    let experiment = [
        "run",
        "-m",
        ".",
        "--workspace",
        folder.path(),
        "--undo",
        "echo undone >> log",
        "--",
        "touch begun; exec sleep 600",
    ];
    let mut running = in_background(&server, &experiment);
    wait_for("the command", || fs::exists(folder.file("begun")).unwrap());
    let said = sidebike(&server, &["halt", "the shop is down"]);
    let words =
        "halted: the shop is down; 1 task is being canceled; lift it with sidebike halt --lift\n";
    assert_eq!((said.code, &*said.out), (0, words), "{said:?}");
    assert_eq!(code(&mut running), 130);
    assert_eq!(folder.lines("log"), ["undone"]);
    let said = sidebike(&server, &experiment);
    assert_eq!(said.code, 255, "{said:?}");
    assert!(
        said.err
            .contains("the shop is down; lift it with sidebike halt --lift\n"),
        "{said:?}"
    );
    assert_eq!(run(&server, &[], "true").code, 0, "no experiment");
    for words in [&["halt", "--status"][..], &["info"]] {
        let said = sidebike(&server, words);
        assert!(said.out.starts_with("halted since 2"), "{said:?}");
        assert!(said.out.contains("Z: the shop is down"), "{said:?}");
    }
    assert_eq!(
        sidebike(&server, &["info", "--json"]).json()["halt"]["reason"],
        "the shop is down"
    );
    let said = sidebike(&server, &["halt", "--all", "--json", "everything"]);
    assert_eq!(said.json()["halt"]["all"], true, "{said:?}");
    let said = run(&server, &[], "true");
    assert!(
        said.code == 255 && said.err.contains("everything; lift it with"),
        "{said:?}"
    );
    let said = sidebike(&server, &["halt", "--lift"]);
    assert_eq!((said.code, &*said.out), (0, "lifted: everything\n"));
    let said = sidebike(&server, &["halt", "--lift"]);
    assert_eq!((said.code, &*said.out), (0, "there is no halt\n"));
    let said = run(&server, &["--undo", "true"], "true");
    assert_eq!(said.code, 0, "{said:?}");
    for (words, expected) in [
        (&["halt"][..], "REASON"),
        (&["halt", ""], "REASON: must have 1 to"),
        (&["halt", " "], "REASON: must have 1 to"),
        (&["halt", "--lift", "why"], "--lift"),
        (&["halt", "--lift", "--status"], "--status"),
        (&["halt", "--lift", "--all"], "--all"),
    ] {
        let said = sidebike(&server, words);
        assert!(
            said.code == 2 && said.err.contains(expected),
            "{words:?}: {said:?}"
        );
    }
}

#[test]
fn a_report_is_text_markdown_or_json() {
    let server = Server::start();
    let _agents = agents(&server, &["web-1"]);
    let said = run(
        &server,
        &["--undo", "true", "--name", "try"],
        "echo | tee; exit 3",
    );
    assert_eq!(said.code, 3, "{said:?}");
    let task = server.newest();
    let text = sidebike(&server, &["report", "try"]);
    assert_eq!(text.code, 0, "{text:?}");
    let head = format!("Task {} (try): failed", id(&task));
    assert_eq!(text.out.lines().next(), Some(&*head), "{text:?}");
    assert!(text.out.contains("web-1 failed 3 done "), "{text:?}");
    let md = sidebike(&server, &["report", "--md", "try"]);
    assert!(md.out.starts_with(&format!("## {head}\n")), "{md:?}");
    assert!(
        md.out.contains("\n| web-1 | failed | 3 | done | "),
        "{md:?}"
    );
    assert!(md.out.contains("echo \\| tee"), "{md:?}");
    let json = sidebike(&server, &["report", "--json", &id(&task)[..16]]).json();
    assert_eq!(
        (&json["verdict"], &json["machines"][0]["undo"]),
        (&json!("failed"), &json!("done"))
    );
    for (words, code, expected) in [
        (&["report", "--md", "--json", "try"][..], 2, "--json"),
        (&["report"], 2, "<ID>"),
        (
            &["report", "nobody"],
            1,
            "sidebike ps -n 1000 lists the known tasks",
        ),
    ] {
        let said = sidebike(&server, words);
        assert!(
            said.code == code && said.err.contains(expected),
            "{words:?}: {said:?}"
        );
    }
}

#[test]
fn a_report_tells_machines_of_one_label_apart_and_knows_their_earlier_attempts() {
    let server = Server::start();
    let _agents = agents(&server, &["web", "web"]);
    let folder = Folder::new();
    let mut task = common::task("exit 3");
    task["machinePattern"] = json!("^web$");
    task["retry"] = json!({"max": 1, "interval": ["0.1s"]});
    let task = server.submit(task);
    let task = server.finished(id(&task));
    let attempts = task["result"].as_array().unwrap().iter();
    let first = attempts.map(|e| e["attempts"][0]["startedAt"].as_str().unwrap());
    let report = sidebike(&server, &["report", "--json", id(&task)]).json();
    let phases = report["phases"].as_array().unwrap();
    let started = phases
        .iter()
        .find(|phase| phase["what"] == "first command started");
    assert_eq!(started.unwrap()["at"], first.min().unwrap(), "{report}");
    let text = sidebike(&server, &["report", id(&task)]);
    for execution in task["result"].as_array().unwrap() {
        let instance = execution["instance"].as_str().unwrap();
        let line = format!("\nweb/{} failed 3 - ", &instance[..8]);
        assert!(text.out.contains(&line), "{text:?}");
    }

    // While an undo runs again.
    let mended = folder.file("mended");
    fs::write(&mended, "").unwrap();
    let undo = format!("until test -e {mended}; do sleep 0.05; done");
    let words = ["run", "-m", "web", "--any", "--undo", &undo, "--", "true"];
    let said = sidebike(&server, &words);
    assert_eq!(said.code, 0, "{said:?}");
    let task = server.newest();
    let report = || {
        let report = sidebike(&server, &["report", "--json", id(&task)]).json();
        [&report["verdict"], &report["why"]].map(|it| it.as_str().unwrap().to_owned())
    };
    assert_eq!(report(), ["passed", "all of 1 succeeded"]);
    fs::remove_file(&mended).unwrap();
    let said = sidebike(&server, &["undo", "--all", "--detach", id(&task)]);
    assert_eq!(said.code, 0, "{said:?}");
    wait_for("the undo", || {
        server.task(id(&task))["undos"]["running"] == 1
    });
    assert_eq!(report(), ["unfinished", "1 undos have not ended"]);
    fs::write(&mended, "").unwrap();
    wait_for("the undo", || server.task(id(&task))["undos"]["done"] == 1);
    assert_eq!(report(), ["passed", "all of 1 succeeded"]);
}

#[test]
fn tasks_are_compared_machine_by_machine() {
    let server = Server::start();
    let agents_before = agents(&server, &["db-1", "web-1", "web-2", "web-3"]);
    let line = |two: &str| {
        format!("sleep 0.02; case $SIDEBIKE_MACHINE_LABEL in web-2) {two};; *) seq 9;; esac")
    };
    let submit = |name: &str, pattern: &str, two: &str| {
        let said = sidebike(
            &server,
            &["run", "-m", pattern, "--name", name, "--", &line(two)],
        );
        (
            said.code,
            server.newest()["id"].as_str().unwrap().to_owned(),
        )
    };
    let (code, before) = submit("before", "^web|^db", "seq 9 | sed s/4/four/; echo oops >&2");
    assert_eq!(code, 0);
    let (code, after) = submit("after", "^web", "seq 9; exit 3");
    assert_eq!(code, 3);
    let said = sidebike(&server, &["diff", "before", "before"]);
    assert_eq!((said.code, &*said.out), (0, ""), "{said:?}");
    assert!(
        said.err
            .starts_with("no difference on 4 machines; the second took 1.00 to 1.00"),
        "{said:?}"
    );

    let said = sidebike(&server, &["diff", "before", &after[..18]]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.err
            .starts_with("2 of 4 machines differ; the second took "),
        "{said:?}"
    );
    let rows: Vec<&str> = said.out.lines().collect();
    assert_eq!(rows.len(), 3, "{said:?}");
    let row = |name: &str| {
        lines_with(&said.out, name)[0]
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!(row("db-1"), ["db-1", "only", "in", &before]);
    let changed = [
        "web-2",
        "succeeded",
        "→",
        "failed",
        "0",
        "→",
        "3",
        "differs",
    ];
    assert_eq!(row("web-2")[..changed.len()], changed);
    assert!(row("web-2").last().unwrap().ends_with('×'), "{said:?}");
    let said = sidebike(&server, &["diff", "--all", "after", "before"]);
    assert_eq!(said.out.lines().count(), 5, "{said:?}");
    assert!(
        lines_with(&said.out, "db-1")[0].contains(&format!("only in {before}")),
        "{said:?}"
    );
    let row = lines_with(&said.out, "web-1")[0].split_whitespace();
    let same = ["web-1", "succeeded", "0", "same"];
    assert_eq!(row.take(same.len()).collect::<Vec<_>>(), same);

    let said = sidebike(&server, &["diff", "--output", "before", "after"]);
    let unified = format!(
        "--- {before}/web-2/stdout\n+++ {after}/web-2/stdout\n@@ -1,7 +1,7 @@\n 1\n 2\n 3\n-four\n+4\n 5\n 6\n 7\n\
         --- {before}/web-2/stderr\n+++ {after}/web-2/stderr\n@@ -1 +0,0 @@\n-oops\n"
    );
    assert!(said.code == 1 && said.out.ends_with(&unified), "{said:?}");
    let pairs = sidebike(&server, &["diff", "--json", "before", "after"]);
    let (code, pairs) = (pairs.code, pairs.json());
    let two = pairs
        .as_array()
        .unwrap()
        .iter()
        .find(|pair| pair["label"] == "web-2");
    assert_eq!(
        two.unwrap()["differs"],
        json!(["state", "exitCode", "output"])
    );
    assert_eq!((code, pairs.as_array().unwrap().len()), (1, 2));

    // Another instance at the same place is the same machine.
    for mut agent in agents_before {
        agent.0.signal(Signal::TERM);
        agent.0.ended();
    }
    let _agents = agents(&server, &["web-1", "web-2", "web-3"]);
    submit("later", "^web", "seq 9; exit 3");
    let said = sidebike(&server, &["diff", "after", "later"]);
    assert_eq!((said.code, &*said.out), (0, ""), "{said:?}");
    for (words, code, expected) in [
        (&["diff", "before"][..], 2, "<B>"),
        (&["diff", "before", ""], 2, "<B>"),
        (
            &["diff", "before", "nobody"],
            2,
            "sidebike ps -n 1000 lists the known tasks",
        ),
        (
            &["diff", "--json", "--output", "before", "after"],
            2,
            "--output",
        ),
    ] {
        let said = sidebike(&server, words);
        assert!(
            said.code == code && said.err.contains(expected),
            "{words:?}: {said:?}"
        );
    }
}

#[test]
fn wrong_flags_are_refused_and_say_what_is_right() {
    let server = Server::start();
    let _agents = agents(&server, &["web-1"]);
    let needs = "needs --undo CMD, the command that takes the effect away";
    for (flags, expected) in [
        (&["--hold", "5m"][..], format!("--hold: {needs}")),
        (&["--undo-check", "x"], format!("--undo-check: {needs}")),
        (&["--lock", "x"], format!("--lock: {needs}")),
        (&["--deadman", "-1"], format!("--deadman: {needs}")),
        (
            &["--undo", "x", "--hold", "soon"],
            "--hold: expected a number of seconds".into(),
        ),
        (
            &["--undo", "x", "--hold", "0"],
            "--hold: must be above 0".into(),
        ),
        (
            &["--undo", "x", "--hold", "5m", "--timeout", "5m"],
            "--timeout: must be longer than --hold, 5m".into(),
        ),
        (
            &["--undo", "x", "--timeout", "-1"],
            "--timeout: must not be -1 with an undo".into(),
        ),
        (
            &["--undo", "x", "--deadman", "5s"],
            "--deadman: must be 10s or more".into(),
        ),
        (
            &["--undo", "x", "--deadman", "long"],
            "--deadman: expected".into(),
        ),
        (
            &["--undo", "x", "--undo-timeout", "0"],
            "--undo-timeout: must be above 0".into(),
        ),
        (
            &["--undo", "x", "--undo-patience", "x"],
            "--undo-patience: expected".into(),
        ),
        (
            &["--undo", "x", "--lock", ""],
            "--lock: must not be empty".into(),
        ),
        (&["--undo", ""], "--undo: ".into()),
    ] {
        let said = run(&server, flags, "true");
        assert!(
            said.code == 2 && said.err.contains(&expected),
            "{flags:?}: {said:?}"
        );
    }
    let script = Folder::new();
    fs::write(script.file("s"), "#!/usr/bin/python3\n").unwrap();
    let file = script.file("s");
    let said = sidebike(
        &server,
        &[
            "run", "-m", ".", "--undo", "x", "--hold", "1s", "--script", &file,
        ],
    );
    assert!(
        said.code == 2 && said.err.contains("--hold: goes with a command"),
        "{said:?}"
    );
    for words in [
        &["undo", "--all", "-m", "x", "y"][..],
        &["undo", "--detach", "--timeout", "1s", "y"],
    ] {
        let said = sidebike(&server, words);
        assert!(
            said.code == 2 && said.err.contains("cannot be used with"),
            "{said:?}"
        );
    }
    for (words, code) in [(&["undo", "nobody"][..], 255), (&["forgive", "nobody"], 1)] {
        let said = sidebike(&server, words);
        assert!(said.code == code && said.err.contains("nobody"), "{said:?}");
    }
    assert_eq!(run(&server, &["--name", "plain"], "true").code, 0);
    let said = sidebike(&server, &["undo", "plain"]);
    assert!(
        said.code == 255 && said.err.contains("has no undo"),
        "{said:?}"
    );
    assert_eq!(server.metric("sidebike_tasks_submitted_total"), 1);
}

#[test]
fn flags_replace_what_a_task_of_a_file_says_of_its_undo() {
    let server = Server::start();
    let _agents = agents(&server, &["web-1"]);
    let file = json!({"machinePattern": ".", "detail": {
        "command": "true", "undo": {"argv": ["true"], "checkArgv": ["true"], "lock": "a"}}});
    let detail = |more: &[&str]| {
        let words = [&["run", "--json", "--task", "-"], more].concat();
        let said = with_input(&server, &words, &file.to_string());
        assert_eq!(said.code, 0, "{said:?}");
        said.json()["detail"].take()
    };
    let undo = detail(&[])["undo"].take();
    assert_eq!(undo, file["detail"]["undo"]);
    let undo = detail(&["--undo", "true", "--lock", "b"])["undo"].take();
    assert_eq!(
        undo,
        json!({"command": "true", "checkArgv": ["true"], "lock": "b"})
    );
    let undo = detail(&["--undo-check", "true"])["undo"].take();
    assert_eq!(
        undo,
        json!({"argv": ["true"], "check": "true", "lock": "a"})
    );
    let held = detail(&["--hold", "0.1s"]);
    assert_eq!(held["timeout"], 180.1);
    assert!(
        held["command"].as_str().unwrap().contains("exec sleep 1;"),
        "{held}"
    );
}
