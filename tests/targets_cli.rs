//! Which machines, how many and at which pace: the flags of `run`, `pause`, `resume` and `stop`, the tags of agents.

mod common;

use common::said::{Said, command, sidebike, with_input};
use common::{Agent, Folder, SIDEBIKE, Server, id, task, wait_until};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Child, Command, Stdio};

/// Starts agents with these labels and tags, and waits until they are there.
fn agents(server: &Server, machines: &[(&str, &str)]) -> Vec<Agent> {
    let start = |(label, tags): &(&str, &str)| {
        Agent::start(server.address, label, &[("SIDEBIKE_TAGS", tags)])
    };
    let agents: Vec<Agent> = machines.iter().map(start).collect();
    server.expect(&agents.iter().collect::<Vec<_>>());
    agents
}

/// Agents with these labels, without tags.
fn labeled(server: &Server, labels: &[&str]) -> Vec<Agent> {
    let machines: Vec<(&str, &str)> = labels.iter().map(|label| (*label, "")).collect();
    agents(server, &machines)
}

fn spawned(command: &mut Command) -> Child {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().unwrap()
}

fn tasks(server: &Server) -> usize {
    let tasks = server.get("/api/v1/task").data();
    tasks.as_array().map(Vec::len).unwrap()
}

/// The newest task, once it fits.
fn newest(server: &Server, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    wait_until(what, || {
        let mut tasks = server.get("/api/v1/task?limit=1").data();
        let task = tasks.get_mut(0)?.take();
        fits(&task).then_some(task)
    })
}

fn waits_at(step: u32) -> impl Fn(&Value) -> bool {
    move |task| {
        let state = &task["rolloutState"];
        state["state"] == "paused" && state["step"] == step && state["resumesAt"].is_null()
    }
}

/// The labels, and what stands in the last column, of a table.
fn rows(table: &str) -> Vec<(&str, &str)> {
    let lines = table.lines().skip(1);
    let cells = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ends = cells.map(|cells| (cells[0], cells[cells.len() - 1]));
    ends.collect()
}

#[test]
fn machines_are_chosen_by_label_tag_host_and_instance() {
    let server = Server::start();
    let agents = agents(
        &server,
        &[
            ("web-1", "zone=cn-1,role=canary"),
            ("web-2", "zone=cn-2,role=usual"),
            ("web-7", "zone=cn-1"),
            ("db-1", "zone=eu-1,role=usual"),
            ("db-2", ""),
        ],
    );
    let host = server.machines()[0]["host"].as_str().unwrap().to_owned();
    let (web_2, db_2) = (agents[1].instance(), agents[4].instance());
    let labels = |words: &[&str]| {
        let said = sidebike(
            &server,
            &[&["run", "--dry-run"], words, &["--", "x"]].concat(),
        );
        let rows = rows(&said.out)
            .into_iter()
            .map(|(label, _)| label.to_owned());
        let mut labels: Vec<String> = rows.collect();
        labels.sort();
        assert_eq!(said.code, if labels.is_empty() { 3 } else { 0 }, "{said:?}");
        labels
    };
    let whole = format!("^{host}$");
    for (words, expected) in [
        (
            &["-m", "^web-", "--exclude", "web-7"][..],
            &["web-1", "web-2"][..],
        ),
        (&["--where", "zone=^cn-"], &["web-1", "web-2", "web-7"]),
        (&["--where", "zone=^cn-1$", "--where", "role=."], &["web-1"]),
        (&["--where", "role=usual", "-m", "^db-"], &["db-1"]),
        (&["--where", "zone=="], &[]),
        (&["--host", &whole, "-m", "1$"], &["db-1", "web-1"]),
        (&["--host", "no such host"], &[]),
        (&["--instance", &web_2], &["web-2"]),
        (
            &["--instance", &web_2[..16], "--instance", &db_2],
            &["db-2", "web-2"],
        ),
        (&["--instance", &web_2, "-m", "^db-"], &[]),
    ] {
        assert_eq!(labels(words), expected, "{words:?}");
    }
    let said = sidebike(
        &server,
        &[
            "run",
            "--instance",
            &web_2,
            "--",
            "echo $SIDEBIKE_MACHINE_LABEL",
        ],
    );
    assert_eq!((&*said.out, said.code), ("web-2\n", 0), "{said:?}");
    let nobody = [
        "run",
        "-m",
        "^web",
        "--exclude",
        "web",
        "--where",
        "a=b",
        "--",
        "x",
    ];
    let said = sidebike(&server, &nobody);
    let words = "no machine matches \"^web\" --exclude \"web\" --where \"a=b\"; see";
    assert!(said.code == 3 && said.err.contains(words), "{said:?}");
    // As it was asked for, in show too.
    let said = sidebike(&server, &["show", "run"]);
    let words = format!("1 matching \".*\" --instance {}\n", &web_2[..8]);
    assert!(said.out.contains(&words), "{said:?}");
}

#[test]
fn an_instance_is_found_by_a_unique_beginning() {
    let server = Server::start();
    for (instance, label) in [("aaaa1111", "m1"), ("aaaa2222", "m2"), ("aaaa22223", "m3")] {
        let poll = json!({"instance": instance, "seq": 1, "label": label, "host": "h",
            "version": "1", "jobs": 1, "wait": 0, "holds": []});
        server.post("/api/v1/agent/poll", &poll).data();
    }
    let run = |instance: &str| {
        sidebike(
            &server,
            &["run", "--dry-run", "--instance", instance, "--", "x"],
        )
    };
    for (beginning, label) in [("aaaa1", "m1"), ("aaaa22223", "m3"), ("aaaa2222", "m2")] {
        let said = run(beginning);
        assert_eq!(rows(&said.out)[0].0, label, "{said:?}");
    }
    let said = run("aaaa2");
    assert_eq!(said.code, 2, "{said:?}");
    for words in [
        "--instance: \"aaaa2\" is the beginning of 2 instances",
        "aaaa2222 ",
        "aaaa22223",
    ] {
        assert!(said.err.contains(words), "{said:?}");
    }
    assert!(!said.err.contains("aaaa1111"), "{said:?}");
    for (instance, code, words) in [
        (
            "bbbb",
            3,
            "--instance: no machine has an instance that begins with \"bbbb\"; see sidebike machines",
        ),
        ("", 2, "--instance: expected an instance or its beginning"),
    ] {
        let said = run(instance);
        assert!(said.code == code && said.err.contains(words), "{said:?}");
    }
    assert_eq!(tasks(&server), 0);
}

#[test]
fn wrong_values_name_the_flag_and_what_is_right() {
    let server = Server::start();
    let _agents = labeled(&server, &["m1"]);
    let share = "a whole number or a percentage up to 100%";
    for (words, expected) in [
        (
            &["--exclude", "("][..],
            &["--exclude: ", "regular expression"][..],
        ),
        (&["--host", "("], &["--host: ", "regular expression"]),
        (&["--where", "zone"], &["--where", "NAME=PATTERN"]),
        (&["--where", "=x"], &["--where", "NAME=PATTERN"]),
        (
            &["--where", "zone=("],
            &["--where.zone: ", "regular expression"],
        ),
        (&["--where", "a b=x"], &["--where", "letters, digits"]),
        (
            &["--where", "a=1", "--where", "a=2"],
            &["--where: a is given twice"],
        ),
        (
            &["--expect", "many"],
            &["--expect", "a range such as 2..10"],
        ),
        (
            &["--expect", "3..2"],
            &["--expect: min must not be above max"],
        ),
        (&["--max-targets", "101%"], &["--max-targets", share]),
        (&["--max-targets", "0"], &["--max-targets: must be above 0"]),
        (
            &["--keep-alive", "-1"],
            &["--keep-alive", share, "50%:^web-"],
        ),
        (
            &["--keep-alive", "1:("],
            &["--keep-alive.pool: ", "regular expression"],
        ),
        (&["--concurrency", "1.5"], &["--concurrency", share]),
        (&["--concurrency", "0"], &["--concurrency: must be above 0"]),
        (&["--steps", "1,,2"], &["--steps", share]),
        (&["--steps", "1,0%"], &["--steps: each must be above 0"]),
        (&["--pause", "soon"], &["--pause", "90s", "or approve"]),
        (&["--max-failures", "-1"], &["--max-failures", share]),
        (&["--canary", "("], &["--canary: ", "regular expression"]),
        (&["--order", "name"], &["--order", "label, random, joined"]),
        (&["--any", "--steps", "1"], &["--any", "--steps"]),
        (
            &["--any", "--max-targets", "1"],
            &["--any", "--max-targets"],
        ),
        (&["--any", "--keep-alive", "1"], &["--any", "--keep-alive"]),
        (
            &["--task", "/no/such/file"],
            &["--task: cannot read /no/such/file"],
        ),
        (
            &["--task", "-", "--stdin", "-"],
            &["--task - and --stdin -", "only one"],
        ),
    ] {
        let said = sidebike(&server, &[&["run"], words, &["--", "true"]].concat());
        assert_eq!(said.code, 2, "{words:?}: {said:?}");
        for word in expected {
            assert!(said.err.contains(word), "{words:?} lacks {word}: {said:?}");
        }
    }
    for (input, expected) in [
        (
            "",
            "--task: expected a task as JSON in standard input, such as {",
        ),
        ("[1]", "--task: expected a task as JSON"),
        (
            "{\"detail\": {\"command\": \"true\"}}",
            "-m: is required, unless --instance is given",
        ),
        ("{\"machinePattern\": \".*\"}", "detail"),
        (
            "{\"machinePattern\": \".*\", \"detial\": {}}",
            "unknown field `detial`",
        ),
    ] {
        let said = with_input(&server, &["run", "--task", "-"], input);
        assert_eq!(said.code, 2, "{input}: {said:?}");
        assert!(said.err.contains(expected), "{input}: {said:?}");
    }
    for (words, expected) in [
        (
            &["machines", "--where", "zone"][..],
            "--where: expected NAME=PATTERN",
        ),
        (
            &["stop", "--running", "--leave-running", "x"],
            "--leave-running",
        ),
    ] {
        let said = sidebike(&server, words);
        assert!(said.code == 2 && said.err.contains(expected), "{said:?}");
    }
    assert_eq!(tasks(&server), 0);
}

#[test]
fn counts_that_are_not_met_register_nothing_and_end_with_3() {
    let server = Server::start();
    let _agents = labeled(&server, &["web-1", "web-2", "web-3"]);
    for (words, why) in [
        (
            &["--expect", "2"][..],
            "--expect: 2 machines were expected, 3 match: web-1, web-2, web-3",
        ),
        (
            &["--expect", "4.."],
            "--expect: at least 4 machines were expected, 3 match",
        ),
        (
            &["--max-targets", "25%"],
            "--max-targets: 25 % of 3 machines is none",
        ),
        (
            &["--keep-alive", "1"],
            "--keep-alive: 1 of 3 machines must stay, 3 are healthy, so 2 may be hit; 3 were asked for",
        ),
        (
            &["--keep-alive", "1:^db-"],
            "--keep-alive.pool: \"^db-\" matches no machine",
        ),
        (
            &["--canary", "^db-"],
            "--canary: \"^db-\" matches none of the 3 targets",
        ),
    ] {
        let words = [words, &["--", "true"]].concat();
        let said = sidebike(&server, &[&["run"], &words[..]].concat());
        assert_eq!(said.code, 3, "{words:?}: {said:?}");
        let line = format!("sidebike: nothing was run: {why}");
        assert!(
            said.err.starts_with(&line) && said.out.is_empty(),
            "{said:?}"
        );
        let said = sidebike(&server, &[&["run", "--dry-run"], &words[..]].concat());
        assert_eq!(said.code, 3, "{words:?}: {said:?}");
        let line = format!("3 machines match\nit would be refused: {why}");
        assert!(said.err.starts_with(&line), "{said:?}");
        assert!(
            rows(&said.out).iter().all(|(_, what)| *what == "refused"),
            "{said:?}"
        );
        let said = sidebike(
            &server,
            &[&["run", "--dry-run", "--json"], &words[..]].concat(),
        );
        assert_eq!((said.code, &said.json()["ok"]), (3, &json!(false)));
    }
    let said = sidebike(&server, &["run", "-m", "db", "--expect", "1", "--", "true"]);
    let words = "no machine matches \"db\"; see sidebike machines; --expect: 1 machine was expected, 0 match";
    assert!(said.code == 3 && said.err.contains(words), "{said:?}");
    assert_eq!(tasks(&server), 0);
    for words in [
        &["--expect", "3"][..],
        &["--expect", "..3"],
        &["--max-targets", "2"],
        &["--keep-alive", "2:web", "-m", "1$"],
        &["--keep-alive", "66%:web", "-m", "1$"],
    ] {
        let said = sidebike(&server, &[&["run"], words, &["--", "true"]].concat());
        assert_eq!(said.code, 0, "{words:?}: {said:?}");
    }
    // A repeat of a task with an id of its own is something else.
    let taken = json!({"id": "taken", "machinePattern": "web", "detail": {"command": "true"}});
    server.run(taken.clone());
    let said = with_input(&server, &["run", "--task", "-"], &taken.to_string());
    assert_eq!(said.code, 255, "the task exists: {said:?}");
    assert!(
        said.err.contains("id: \"taken\" is taken by another task"),
        "{said:?}"
    );
}

#[test]
fn a_dry_run_shows_who_is_spared_and_the_steps() {
    let server = Server::start();
    let _agents = labeled(&server, &["web-10", "web-2", "web-1", "web-3"]);
    let said = sidebike(
        &server,
        &["run", "--dry-run", "--steps", "1,50%,100%", "--", "x"],
    );
    let steps = [
        ("web-1", "1"),
        ("web-2", "2"),
        ("web-3", "3"),
        ("web-10", "3"),
    ];
    assert_eq!(
        (rows(&said.out), said.code),
        (steps.to_vec(), 0),
        "{said:?}"
    );
    let plan = "when each step is done, so many of 4 have been started: 1, 2, 4\n";
    assert_eq!(said.err, format!("4 machines match\n{plan}"));
    let said = sidebike(
        &server,
        &[
            "run",
            "--dry-run",
            "--canary",
            "10",
            "--steps",
            "2,4",
            "--",
            "x",
        ],
    );
    assert_eq!(rows(&said.out)[0], ("web-10", "1"), "{said:?}");

    let said = sidebike(
        &server,
        &["run", "--dry-run", "--max-targets", "3", "--", "x"],
    );
    let spared = rows(&said.out);
    let spared = spared.iter().filter(|(_, what)| *what == "spared").count();
    assert_eq!((spared, said.code), (1, 0), "{said:?}");
    assert!(
        said.err.contains("it would run on 3 of them and spare 1"),
        "{said:?}"
    );
    let said = sidebike(
        &server,
        &["run", "--max-targets", "3", "--yes-above", "2", "--", "x"],
    );
    assert!(
        said.err.contains("on 3 of 4 machines, chosen at random"),
        "{said:?}"
    );
    assert_eq!((said.code, tasks(&server)), (2, 0));
    let said = sidebike(&server, &["run", "--max-targets", "3", "--", "true"]);
    assert!(
        said.err.contains(" on 3 machines: ") && said.err.contains(" (1 spared)\n"),
        "{said:?}"
    );
    assert!(
        sidebike(&server, &["show", "run"])
            .out
            .contains("\nspared     1 (at most 3)\n")
    );
    assert!(sidebike(&server, &["ps"]).out.contains(" 3/3, 1 spared "));
}

#[test]
fn flags_replace_what_a_task_of_a_file_says() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = labeled(&server, &["m1", "m2"]);
    let text = json!({
        "machinePattern": "^m1$", "name": "file", "ttl": "5m", "rollout": {"steps": [1]},
        "detail": {"argv": ["sh", "-c", "echo $A $B; cat"], "env": {"A": "1", "stdin": "x"},
            "stdin": "in\n", "timeout": 20}
    });
    let text = text.to_string();
    let file = folder.file("task.json");
    std::fs::write(&file, &text).unwrap();
    let said = sidebike(&server, &["run", "--task", &file]);
    assert_eq!((&*said.out, said.code), ("1\nin\n", 0), "{said:?}");
    let said = with_input(
        &server,
        &["run", "--task", "-", "--env", "B=2", "-m", "m2"],
        &text,
    );
    assert_eq!((&*said.out, said.code), ("1 2\nin\n", 0), "{said:?}");

    let other = folder.file("input");
    std::fs::write(&other, b"\xff").unwrap();
    let words = [
        "run",
        "--task",
        "-",
        "--json",
        "--name",
        "flags",
        "--ttl",
        "90s",
        "--env",
        "A=3",
        "--stdin",
        &other,
        "--concurrency",
        "1",
        "--max-failures",
        "1",
        "-m",
        "m",
        "--",
        "wc -c; echo $A",
    ];
    let task = with_input(&server, &words, &text).json();
    let rollout = json!({"steps": [1], "concurrency": 1, "maxFailures": 1});
    assert_eq!(
        (&task["rollout"], &task["name"]),
        (&rollout, &json!("flags"))
    );
    assert_eq!(
        (&task["ttl"], &task["machinePattern"]),
        (&json!(90), &json!("m"))
    );
    let detail = &task["detail"];
    assert_eq!(detail["env"], json!({"A": "3", "stdin": "x"}));
    assert_eq!(
        (&detail["timeout"], &detail["stdinBase64"]),
        (&json!(20), &json!("/w=="))
    );
    assert_eq!(detail["command"], "wc -c; echo $A");
    assert!(
        detail["argv"].is_null() && detail["stdin"].is_null(),
        "{detail}"
    );
    assert_eq!(task["result"][1]["stdout"], "1\n3\n");

    let words = [
        "run",
        "--concurrency",
        "50%",
        "--canary",
        "m2",
        "--pause",
        "1ms",
        "--order",
        "joined",
        "--stop-running",
        "--keep-alive",
        "0:m",
        "--max-failures",
        "5%",
        "--",
        "true",
    ];
    assert_eq!(sidebike(&server, &words).code, 0);
    let shown = sidebike(&server, &["show", "run"]).out;
    for words in [
        "pace       50 % at once; first \"m2\"; 1ms after each step; 5 % may fail; order joined; what runs is canceled",
        "untouched  at least 0 of those matching \"m\"\n",
        "rollout    done: step 2 of 2, 2 of 2 started, 0 failed\n",
    ] {
        assert!(shown.contains(words), "{shown}");
    }

    // Without a file's pattern an instance is enough.
    let instance = server.machines()[1]["instance"]
        .as_str()
        .unwrap()
        .to_owned();
    let bare = json!({"detail": {"command": "echo $SIDEBIKE_MACHINE_LABEL"}}).to_string();
    let said = with_input(
        &server,
        &["run", "--task", "-", "--instance", &instance[..10]],
        &bare,
    );
    assert_eq!(said.out, "m2\n", "{said:?}");
    // A task that was answered can be run again, but for its id.
    let mut shown = sidebike(&server, &["show", "file", "--json"]).json();
    shown.as_object_mut().unwrap().remove("id");
    let said = with_input(
        &server,
        &["run", "--task", "-", "--env", "B=5"],
        &shown.to_string(),
    );
    assert_eq!((&*said.out, said.code), ("1 5\nin\n", 0), "{said:?}");
}

#[test]
fn a_task_of_a_file_may_wait_for_machines() {
    let server = Server::start();
    let text = json!({"machinePattern": "^late$", "lateJoin": true, "ttl": "20s", "detail": {"command": "echo hi"}});
    let mut command = command(&server, &["run", "--task", "-"]);
    let mut child = spawned(command.stdin(Stdio::piped()));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.to_string().as_bytes()).unwrap();
    drop(stdin);
    let task = newest(&server, "it is submitted", |_| true);
    let _agent = server.agent("late");
    server.when(id(&task), "succeeded", 1);
    // Others could join until the ttl is over.
    sidebike(&server, &["stop", id(&task)]);
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!((&*said.out, said.code), ("late | hi\n", 0), "{said:?}");
}

#[test]
fn too_many_failures_stop_a_rollout_and_it_says_why() {
    let server = Server::start();
    let _agents = labeled(&server, &["web-10", "web-2", "web-1", "web-3"]);
    let line = "test $SIDEBIKE_MACHINE_LABEL = web-1";
    let said = sidebike(
        &server,
        &[
            "run",
            "--steps",
            "1,3,100%",
            "--max-failures",
            "1",
            "--",
            line,
        ],
    );
    assert_eq!(said.code, 125, "{said:?}");
    for words in [
        "1 succeeded, 2 failed, 1 skipped in ",
        "\n  stopped after 2 failures (1 allowed)\n  web-2  failed: exit code 1\n  web-3  failed: exit code 1\n",
    ] {
        assert!(said.err.contains(words), "{said:?}");
    }
    assert!(!said.err.contains("web-10  "), "{said:?}");
    let shown = sidebike(&server, &["show", "run"]).out;
    for words in [
        "rollout    stopped: step 2 of 3, 3 of 4 started, 2 failed\n",
        "steps      1, 3, 4\n",
        "pace       1 may fail\n",
        "stopped    after 2 failures (1 allowed), at 2",
        "counts     1 succeeded, 2 failed, 1 skipped\n",
    ] {
        assert!(shown.contains(words), "{shown}");
    }
    let list = sidebike(&server, &["ps"]).out;
    assert!(
        list.contains("partial, stopped  4/4, 2 not ok, 1 skipped "),
        "{list}"
    );
    assert_eq!(sidebike(&server, &["wait", "run"]).code, 125);
    let said = sidebike(&server, &["rerun", "run"]);
    assert!(
        said.err.contains("on 3 of its 4 machines"),
        "what was skipped, too: {said:?}"
    );
    // Within the limit all get their turn.
    let said = sidebike(
        &server,
        &[
            "run",
            "--steps",
            "1,3,100%",
            "--max-failures",
            "75%",
            "--",
            line,
        ],
    );
    assert!(
        said.code == 1 && said.err.contains("1 succeeded, 3 failed in"),
        "{said:?}"
    );
}

#[test]
fn a_rollout_waits_for_an_approval_and_says_so() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = labeled(&server, &["m1", "m2", "m3"]);
    let line = format!("echo $SIDEBIKE_MACHINE_LABEL >> {}", folder.file("ran"));
    let words = [
        "run", "--steps", "1,2,100%", "--pause", "approve", "--", &line,
    ];
    let child = spawned(&mut command(&server, &words));
    let task = newest(&server, "the first pause", waits_at(2));
    let id = id(&task).to_owned();
    assert_eq!(folder.lines("ran"), ["m1"]);
    let shown = sidebike(&server, &["show", &id]).out;
    let words = format!(
        "rollout    paused: step 2 of 3, 1 of 3 started, 0 failed; waits for: sidebike resume {id}\n"
    );
    assert!(shown.contains(&words), "{shown}");
    let list = sidebike(&server, &["ps"]).out;
    assert!(
        list.contains("running, paused  1/3, 2 held, step 2/3 "),
        "{list}"
    );
    let waits = spawned(&mut command(&server, &["wait", "--timeout", "1500ms", &id]));
    let said = Said::of(waits.wait_with_output().unwrap());
    let words = format!(
        "sidebike: step 2 of 3, 1 of 3 started, 0 failed; waits for: sidebike resume {id}\n"
    );
    assert!(said.code == 124 && said.err.starts_with(&words), "{said:?}");
    assert_eq!(said.err.matches("waits for").count(), 1, "{said:?}");

    let said = sidebike(&server, &["resume", &id[..id.len() - 1]]);
    let words = format!("task {id}: resumed (step 2 of 3, 2 of 3 started, 0 failed)\n");
    assert_eq!((&said.out, said.code), (&words, 0), "{said:?}");
    newest(&server, "the second pause", waits_at(3));
    assert_eq!(folder.lines("ran"), ["m1", "m2"]);
    let resumed = sidebike(&server, &["resume", "--json", "run"]).json();
    assert_eq!(resumed["id"], *id);
    let said = Said::of(child.wait_with_output().unwrap());
    assert!(
        said.code == 0 && said.err.contains("3 succeeded in "),
        "{said:?}"
    );
    assert_eq!(folder.lines("ran"), ["m1", "m2", "m3"]);
    let late = sidebike(&server, &["resume", &id]);
    assert!(late.code == 1 && late.err.contains("has ended"), "{late:?}");
}

/// Follows a task, with standard error in a file of this name.
fn follower(server: &Server, words: &[&str], folder: &Folder, name: &str) -> Child {
    let err = std::fs::File::create(folder.file(name)).unwrap();
    let mut command = command(server, words);
    command.stdout(Stdio::null()).stderr(err).spawn().unwrap()
}

#[test]
fn a_follower_without_a_terminal_hears_once_what_to_do() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = labeled(&server, &["m1", "m2"]);
    let waits = |name: &str| {
        wait_until("it says what it waits for", || {
            let lines = folder.lines(name);
            lines.into_iter().find(|line| line.contains("waits for: "))
        })
    };
    let words = [
        "run", "--steps", "1,100%", "--pause", "approve", "--", "true",
    ];
    let mut child = follower(&server, &words, &folder, "steps");
    let task = newest(&server, "the pause", waits_at(2));
    let rollout_id = id(&task);
    let words = format!(
        "sidebike: step 2 of 2, 1 of 2 started, 0 failed; waits for: sidebike resume {rollout_id}"
    );
    assert_eq!(waits("steps"), words);
    sidebike(&server, &["resume", rollout_id]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let lines = folder.lines("steps");
    let said = lines.iter().filter(|line| line.contains("waits for"));
    assert_eq!(said.count(), 1, "{lines:?}");

    // Of a task without a rollout, that somebody else pauses.
    let busy = Agent::start(server.address, "busy", &[("SIDEBIKE_JOBS", "1")]);
    server.expect(&[&busy]);
    let first = server.submit(json!({"machinePattern": "busy", "detail": {"command": "sleep 60"}}));
    server.when(id(&first), "running", 1);
    let mut child = follower(
        &server,
        &["run", "-m", "busy", "--", "true"],
        &folder,
        "plain",
    );
    let second = newest(&server, "it is queued", |task| {
        task["counts"]["queued"] == 1
    });
    sidebike(&server, &["pause", id(&second)]);
    let words = format!(
        "sidebike: 0 of 1 started, 0 failed; waits for: sidebike resume {}",
        id(&second)
    );
    assert_eq!(waits("plain"), words);
    sidebike(&server, &["resume", id(&second)]);
    sidebike(&server, &["cancel", id(&first)]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_task_is_paused_resumed_and_stopped() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = labeled(&server, &["m1", "m2", "m3"]);
    let gate = folder.file("gate");
    let line =
        format!("test $SIDEBIKE_MACHINE_LABEL = m1 || while [ ! -e {gate} ]; do sleep 0.02; done");
    let words = ["run", "--detach", "--concurrency", "1", "--", &line];
    let detached = |words: &[&str]| sidebike(&server, words).out.trim().to_owned();
    let id = detached(&words);
    server.when(&id, "running", 1);
    server.when(&id, "succeeded", 1);
    let said = sidebike(&server, &["pause", &id]);
    let standing = "2 of 3 started, 0 failed";
    let words = format!("task {id}: paused; go on: sidebike resume {id} ({standing})\n");
    assert_eq!((&said.out, said.code), (&words, 0), "{said:?}");
    let said = sidebike(&server, &["resume", &id]);
    assert_eq!(said.out, format!("task {id}: resumed ({standing})\n"));
    let said = sidebike(&server, &["resume", &id]);
    assert_eq!(
        said.out,
        format!("task {id}: was not paused ({standing})\n")
    );
    let said = sidebike(&server, &["stop", &id]);
    assert_eq!(
        said.out,
        format!("task {id}: stopped; what runs ends by itself ({standing})\n")
    );
    let said = sidebike(&server, &["pause", &id]);
    assert!(
        said.code == 1 && said.err.contains("was stopped"),
        "{said:?}"
    );
    std::fs::write(&gate, "").unwrap();
    let said = sidebike(&server, &["wait", &id]);
    assert_eq!(said.code, 125, "{said:?}");
    assert!(said.err.contains("2 succeeded, 1 skipped in "), "{said:?}");
    assert!(said.err.contains("\n  stopped by a user\n"), "{said:?}");
    let said = sidebike(&server, &["stop", &id]);
    assert!(said.out.contains(": had ended: partial ("), "{said:?}");

    std::fs::remove_file(&gate).unwrap();
    for (flags, stop, word, code) in [
        (&["--stop-running"][..], &[][..], "is being canceled", 130),
        (
            &["--concurrency", "1"],
            &["--running"],
            "is being canceled",
            130,
        ),
        (
            &["--stop-running", "--concurrency", "1"],
            &["--leave-running"],
            "ends by itself",
            125,
        ),
    ] {
        let id = detached(&[&["run", "--detach", "-m", "m[23]"], flags, &["--", &line]].concat());
        newest(&server, "something runs", |task| {
            task["counts"]["running"].as_u64() > Some(0)
        });
        let said = sidebike(&server, &[&["stop", &id], stop].concat());
        assert!(
            said.out.contains(&format!("stopped; what runs {word} (")),
            "{said:?}"
        );
        if code == 125 {
            std::fs::write(&gate, "").unwrap();
        }
        let said = sidebike(&server, &["wait", &id]);
        assert_eq!(said.code, code, "{flags:?}: {said:?}");
    }
}

#[test]
fn what_is_skipped_everywhere_is_not_taken_for_no_machine() {
    let server = Server::start();
    let _busy = Agent::start(server.address, "m1", &[("SIDEBIKE_JOBS", "1")]);
    wait_until("it is online", || {
        (server.machines().len() == 1).then_some(())
    });
    let first = server.submit(task("sleep 60"));
    server.when(id(&first), "running", 1);
    let child = spawned(&mut command(&server, &["run", "--", "true"]));
    let second = newest(&server, "the second task", |task| {
        task["counts"]["queued"] == 1
    });
    sidebike(&server, &["stop", id(&second)]);
    let said = Said::of(child.wait_with_output().unwrap());
    assert_eq!(said.code, 125, "{said:?}");
    assert!(
        said.err.contains("1 skipped in ") && said.err.contains("\n  stopped by a user\n"),
        "{said:?}"
    );
    let shown = sidebike(&server, &["show", id(&second)]).out;
    assert!(shown.contains("state      skipped\n"), "{shown}");
    let listed = sidebike(&server, &["ps", "--state", "skipped", "--json"]).json();
    assert_eq!(listed[0]["id"], second["id"]);

    // Nobody matched, and it was stopped: it ended because of that.
    let waiting = server.submit(
        json!({"machinePattern": "nobody", "lateJoin": true, "detail": {"command": "true"}}),
    );
    sidebike(&server, &["stop", id(&waiting)]);
    assert_eq!(sidebike(&server, &["wait", id(&waiting)]).code, 125);
}

#[test]
fn a_rerun_that_is_refused_by_counts_ends_with_3() {
    let server = Server::start();
    let agents = labeled(&server, &["m1", "m2"]);
    let said = sidebike(&server, &["run", "--expect", "2", "--", "false"]);
    assert_eq!(said.code, 1, "{said:?}");
    let again = sidebike(&server, &["rerun", "run"]);
    assert_eq!(again.code, 1, "{again:?}");
    agents[1].0.signal(rustix::process::Signal::TERM);
    wait_until("it is gone", || {
        let offline = server.machines().iter().any(|m| m["state"] == "offline");
        offline.then_some(())
    });
    let before = tasks(&server);
    let again = sidebike(&server, &["rerun", "run"]);
    assert_eq!(again.code, 3, "{again:?}");
    assert!(
        again
            .err
            .contains("--expect: 2 machines were expected, 1 match"),
        "{again:?}"
    );
    assert_eq!(tasks(&server), before);
}

#[test]
fn tags_are_listed_searched_and_in_the_environment() {
    let server = Server::start();
    let plain = labeled(&server, &["m0"]);
    let without = sidebike(&server, &["machines"]).out;
    assert!(
        without.starts_with("LABEL") && !without.contains("TAGS"),
        "{without}"
    );
    let mut command = Command::new(SIDEBIKE);
    command
        .args([
            "agent",
            "--machine-label",
            "m1",
            "--tag",
            "zone=cn-1",
            "--tag",
            "app.name/x=a=b,n=",
        ])
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string())
        .env("SIDEBIKE_TAGS", "zone=unused");
    let tagged = Agent(common::Process::start(command));
    server.expect(&[&tagged, &plain[0]]);
    let table = sidebike(&server, &["machines"]).out;
    let tags: Vec<(&str, &str)> = rows(&table);
    assert_eq!(tags[1], ("m1", "app.name/x=a=b,n=,zone=cn-1"), "{table}");
    assert!(table.lines().next().unwrap().ends_with("  TAGS"), "{table}");
    for (tag, count) in [
        ("zone=^cn-", 1),
        ("zone=eu", 0),
        ("app.name/x==", 1),
        ("n=^$", 1),
        ("role=.", 0),
    ] {
        let said = sidebike(&server, &["machines", "--where", tag, "--json"]);
        assert_eq!(
            said.json().as_array().map(Vec::len),
            Some(count),
            "{tag}: {said:?}"
        );
    }
    let said = sidebike(&server, &["machines", "-m", "m0", "--where", "zone=."]);
    assert!(
        said.err
            .contains("no machine with such tags has the label \"m0\""),
        "{said:?}"
    );
    let said = sidebike(
        &server,
        &[
            "run",
            "--where",
            "n=^$",
            "--",
            "env | grep ^SIDEBIKE_TAG_ | sort",
        ],
    );
    let expected = "SIDEBIKE_TAG_APP_NAME_X=a=b\nSIDEBIKE_TAG_N=\nSIDEBIKE_TAG_ZONE=cn-1\n";
    assert_eq!(said.out, expected, "{said:?}");
    let said = sidebike(
        &server,
        &["run", "-m", "m0", "--", "env | grep -c ^SIDEBIKE_TAG_"],
    );
    assert_eq!(said.out, "0\n", "{said:?}");
}

#[test]
fn wrong_tags_are_said_in_one_line() {
    let many: Vec<String> = (0..17).map(|n| format!("t{n}=x")).collect();
    let long = format!("a={}", "x".repeat(10_000));
    for (tags, words) in [
        (
            "zone",
            "expected NAME=VALUE such as zone=cn-1, got \"zone\"",
        ),
        ("a=1,zone", "got \"zone\""),
        ("=x", "the name of a tag must be 1 to "),
        ("a b=x", "letters, digits"),
        ("a=1,a=2", "a is given twice"),
        ("a-b=1,a.b=2", "the same variable"),
        ("a=\u{1}", "control characters"),
        (&long, "bytes at most"),
        (&many.join(","), "16 tags at most, got 17"),
    ] {
        for by_flag in [true, false] {
            let mut command = Command::new(SIDEBIKE);
            command.arg("agent").env("RUST_LOG", "warn");
            match by_flag {
                true => command.args(["--tag", tags]),
                false => command.env("SIDEBIKE_TAGS", tags),
            };
            let said = Said::of(command.output().unwrap());
            assert_eq!(said.code, 2, "{tags}: {said:?}");
            assert!(
                said.err.starts_with("sidebike: --tag: "),
                "{tags}: {said:?}"
            );
            assert!(
                said.err.contains(words) && said.err.lines().count() == 1,
                "{tags}: {said:?}"
            );
        }
    }
}
