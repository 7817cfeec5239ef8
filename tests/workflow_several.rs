//! Several tasks at once: groups, tags, descriptions; cancel and rerun by filter; lists of tasks.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::said::sidebike;
use common::{Folder, Server, id, ids, task, wait_for};
use serde_json::{Value, json};
use std::thread;

/// A task of a group.
fn of_group(group: &str, command: &str) -> Value {
    let mut task = task(command);
    task["group"] = group.into();
    task
}

fn group(server: &Server, name: &str) -> Value {
    server.get(&format!("/api/v1/group/{name}")).data()
}

/// The sum of the counts of an object.
fn sum(counts: &Value) -> u64 {
    let counts = counts.as_object().expect("counts").values();
    counts.map(|count| count.as_u64().expect("a number")).sum()
}

#[test]
fn a_group_is_the_sum_of_its_members() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    server.run(of_group("g", "true"));
    assert_eq!(group(&server, "g")["state"], "succeeded");
    server.run(of_group("g", "exit 7"));
    let mut timed_out = of_group("g", "sleep 600");
    timed_out["detail"]["timeout"] = json!(0.2);
    server.run(timed_out);
    let g = group(&server, "g");
    assert_eq!(
        (&g["state"], &g["worstExitCode"]),
        (&json!("partial"), &json!(124))
    );
    server.run(of_group("g", "kill -KILL $$"));
    let waits = server
        .submit(json!({"machinePattern": "^none$", "group": "g", "detail": {"command": "true"}}));
    let runs = server.submit(of_group("g", "sleep 600"));
    server.when(id(&runs), "running", 2);
    let g = group(&server, "g");
    assert_eq!(g["name"], "g");
    assert_eq!(
        (&g["state"], &g["worstExitCode"]),
        (&json!("running"), &json!(137))
    );
    let tasks = &g["tasks"];
    let expected = json!({"waiting": 1, "running": 1, "succeeded": 1, "failed": 3});
    for (state, count) in expected.as_object().unwrap() {
        assert_eq!(&tasks[state], count, "{g}");
    }
    assert_eq!(sum(tasks), 6, "{g}");
    let executions = json!({"succeeded": 2, "failed": 4, "timedOut": 2, "running": 2});
    for (state, count) in executions.as_object().unwrap() {
        assert_eq!(&g["executions"][state], count, "{g}");
    }
    assert_eq!(sum(&g["executions"]), 10, "{g}");
    assert_eq!(ids(&g["members"])[4..], [id(&waits), id(&runs)]);
    assert_eq!(g["members"][1]["worstExitCode"], 7, "{g}");

    // What was deleted is not in it; without members there is no group.
    let none = server.get("/api/v1/group/other");
    assert_eq!(none.status, 404);
    assert!(
        none.text().contains("no task has the group"),
        "{}",
        none.text()
    );
    for task in [&waits, &runs] {
        server.post(&format!("/api/v1/task/{}/cancel", id(task)), &json!({}));
    }
    let members = group(&server, "g")["members"].clone();
    for member in ids(&members) {
        server.finished(member);
        server
            .request("DELETE", &format!("/api/v1/task/{member}"), b"")
            .data();
    }
    assert_eq!(server.get("/api/v1/group/g").status, 404);
}

#[test]
fn the_members_come_page_by_page() {
    let server = Server::start();
    let submitted: Vec<String> = (0..7)
        .map(|_| id(&server.submit(of_group("g", "true"))).to_owned())
        .collect();
    server.submit(of_group("h", "true"));
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server
            .get(&format!("/api/v1/group/g?limit=3{cursor}"))
            .json();
        assert_eq!(sum(&page["data"]["tasks"]), 7, "of all pages: {page}");
        seen.extend(ids(&page["data"]["members"]).into_iter().map(str::to_owned));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, submitted);
    for wrong in [
        "limit=0",
        "limit=1001",
        "cursor=x",
        "wait=2h",
        "state=failed",
    ] {
        let reply = server.get(&format!("/api/v1/group/g?{wrong}"));
        assert_eq!(reply.status, 400, "{wrong}");
    }
}

#[test]
fn who_waits_for_a_group_is_answered_when_the_last_member_has_ended() {
    let server = Server::start();
    let _agent = server.agent("m");
    let folder = Folder::new();
    let waits = |name: &str| {
        of_group(
            "g",
            &format!("until test -e {}; do sleep 0.02; done", folder.file(name)),
        )
    };
    let (first, second) = (server.submit(waits("a")), server.submit(waits("b")));
    server.when(id(&first), "running", 1);
    server.when(id(&second), "running", 1);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get("/api/v1/group/g?wait=60s").data());
        wait_for("it is held", || {
            server.metric("sidebike_held_requests") == 2
        });
        folder.write("a");
        server.finished(id(&first));
        let early = server.get("/api/v1/group/g?wait=10ms").data();
        assert_eq!(
            (&early["state"], sum(&early["tasks"])),
            (&json!("running"), 2)
        );
        assert!(!waiting.is_finished());
        folder.write("b");
        let ended = waiting.join().unwrap();
        assert_eq!(
            (&ended["state"], &ended["tasks"]["succeeded"]),
            (&json!("succeeded"), &json!(2))
        );
    });
    // At once, and of one that is not there.
    assert_eq!(
        server.get("/api/v1/group/g?wait=60s").data()["state"],
        "succeeded"
    );
    assert_eq!(server.get("/api/v1/group/none?wait=60s").status, 404);
}

#[test]
fn tasks_are_found_by_group_and_tags_also_after_a_restart() {
    let folder = Folder::new();
    let db = folder.file("db");
    let mut server = Server::with(&["--db", &db]);
    let labeled = |name: &str, team: &str| {
        json!({"name": name, "machinePattern": "^nobody$", "group": name, "tags": {"team": team, "env": "x=y"},
               "description": "a\nb", "detail": {"command": "true"}})
    };
    let pay = server.submit(labeled("a", "pay"));
    server.submit(labeled("b", "ops"));
    server.submit(task("true"));
    assert_eq!(pay["tags"], json!({"team": "pay", "env": "x=y"}));
    assert_eq!(
        (&pay["group"], &pay["description"]),
        (&json!("a"), &json!("a\nb"))
    );
    for restarted in [false, true] {
        if restarted {
            server.process.kill_9();
            server = Server::with(&["--db", &db]);
        }
        let found = |query: &str| {
            let list = server.get(&format!("/api/v1/task?{query}")).data();
            let names = list.as_array().unwrap().iter();
            names
                .map(|task| task["name"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(found("tag=team=pay"), ["a"]);
        assert_eq!(found("tag=env=x=y"), ["b", "a"]);
        assert_eq!(found("tag=env=x=y&tag=team=ops"), ["b"]);
        assert_eq!(found("tag=team=pa"), [""; 0]);
        assert_eq!(found("group=b"), ["b"]);
        assert_eq!(found("group=b&tag=team=pay"), [""; 0]);
        assert_eq!(found("group=none"), [""; 0]);
        assert_eq!(found("").len(), 3);
        assert_eq!(sum(&group(&server, "a")["tasks"]), 1);
        assert_eq!(server.task(id(&pay))["description"], "a\nb");
    }
}

#[test]
fn what_is_wrong_with_them_is_said() {
    let server = Server::start();
    let said = |field: &str, value: Value| {
        let mut task = task("true");
        task[field] = value;
        let reply = server.post("/api/v1/task", &task);
        assert_eq!(reply.status, 400, "{}", reply.text());
        reply.json()["msg"].as_str().unwrap().to_owned()
    };
    let many: serde_json::Map<String, Value> =
        (0..17).map(|n| (n.to_string(), json!(""))).collect();
    for (field, value, words) in [
        ("group", json!("a/b"), "group: must be 1 to 64 letters"),
        ("group", json!(""), "group: must be 1 to 64 letters"),
        ("group", json!(3), "group: "),
        (
            "tags",
            Value::Object(many),
            "tags: must have 16 entries at most, got 17",
        ),
        (
            "tags",
            json!({"a b": "c"}),
            "tags: the name of a tag must be",
        ),
        (
            "tags",
            json!({"a": "b".repeat(257)}),
            "tags.a: must have 256 bytes at most",
        ),
        ("tags", json!({"a": 1}), "tags.a: "),
        (
            "description",
            json!("x".repeat(1_025)),
            "description: must have 1024 bytes at most",
        ),
        (
            "description",
            json!("\u{7}"),
            "description: must not contain control",
        ),
    ] {
        let said = said(field, value);
        assert!(said.starts_with(words), "{said}");
    }
    let reply = server.get("/api/v1/task?tag=team");
    assert!(
        reply.status == 400 && reply.text().contains("NAME=VALUE"),
        "{}",
        reply.text()
    );
}

#[test]
fn the_command_line_knows_groups() {
    let server = Server::start();
    let _agent = server.agent("m");
    let run = |more: &[&str], line: &str| {
        let words = [
            &[
                "run",
                "--group",
                "g",
                "--tag",
                "team=pay",
                "--description",
                "why",
            ],
            more,
            &["--", line],
        ];
        sidebike(&server, &words.concat())
    };
    assert_eq!(run(&[], "true").code, 0);
    let shown = sidebike(&server, &["group", "g"]);
    assert!(
        shown
            .out
            .starts_with("group g: succeeded, worst exit code 0\ntasks       1: 1 succeeded\n"),
        "{shown:?}"
    );
    assert_eq!(sidebike(&server, &["group", "g", "--wait"]).code, 0);
    assert_eq!(run(&["--detach", "--name", "seven"], "exit 7").code, 0);
    let waited = sidebike(&server, &["group", "g", "--wait", "-n", "1"]);
    assert!(
        waited.code == 7 && waited.out.contains("… and 1 more"),
        "{waited:?}"
    );
    let json = sidebike(&server, &["group", "g", "--json"]).json();
    assert_eq!(json["state"], "partial");
    let listed = sidebike(
        &server,
        &["ps", "--group", "g", "--tag", "team=pay", "--json"],
    )
    .json();
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    assert_eq!(listed[0]["description"], "why");
    assert_eq!(sidebike(&server, &["ps", "--tag", "team"]).code, 2);
    let twice = run(&["--tag", "team=ops"], "true");
    assert!(
        twice.code == 2 && twice.err.contains("team is given twice"),
        "{twice:?}"
    );
    let wrong = sidebike(&server, &["run", "--group", "a b", "--", "true"]);
    assert!(
        wrong.code == 2 && wrong.err.contains("--group: must be"),
        "{wrong:?}"
    );
    assert_eq!(run(&["--detach"], "sleep 600").code, 0);
    let late = sidebike(&server, &["group", "g", "--wait", "--timeout", "50ms"]);
    assert!(
        late.code == 124 && late.err.contains("group g has not ended"),
        "{late:?}"
    );
    let none = sidebike(&server, &["group", "none"]);
    assert!(
        none.code == 255 && none.err.contains("no task has the group"),
        "{none:?}"
    );
}

/// A task of a group for machines that are not there.
fn waiting(group: &str, name: &str) -> Value {
    json!({"name": name, "group": group, "machinePattern": "^nobody$", "detail": {"command": "true"}})
}

fn post(server: &Server, target: &str) -> Value {
    server.post(target, &Value::Null).data()
}

#[test]
fn nothing_of_a_group_starts_by_its_cancel() {
    let folder = Folder::new();
    let server = Server::start();
    // One job: what is queued starts as soon as the command before it ends.
    let agent = common::Agent::start(server.address, "m", &[("SIDEBIKE_JOBS", "1")]);
    server.expect(&[&agent]);
    let line = format!("echo started >> {}; sleep 600", folder.file("starts"));
    let first = server.submit(of_group("g", &line));
    server.when(id(&first), "running", 1);
    let others = json!((0..30).map(|_| of_group("g", &line)).collect::<Vec<_>>());
    let others = server.post("/api/v1/tasks", &others).data();
    let canceled = post(&server, "/api/v1/group/g/cancel");
    assert_eq!(
        (&canceled["tasks"], &canceled["executions"]),
        (&json!(31), &json!(31))
    );
    assert_eq!(canceled["skipped"], json!([]));
    let g = server.get("/api/v1/group/g?wait=60s").data();
    assert_eq!(
        (&g["state"], &g["tasks"]["canceled"]),
        (&json!("canceled"), &json!(31))
    );
    assert_eq!(folder.lines("starts").len(), 1);
    assert_eq!(
        server.task(ids(&others)[0])["result"][0]["msg"],
        "canceled before it started"
    );
    // A second one has nothing to do, and says why.
    let again = post(&server, "/api/v1/group/g/cancel");
    assert_eq!(
        (&again["tasks"], &again["skipped"][0]["count"]),
        (&json!(0), &json!(31))
    );
    assert_eq!(again["skipped"][0]["reason"], "has ended");
    assert_eq!(
        again["skipped"][0]["tasks"].as_array().map(Vec::len),
        Some(10)
    );
}

#[test]
fn a_queue_is_emptied_and_what_runs_goes_on() {
    let server = Server::start();
    let agent = common::Agent::start(server.address, "m", &[("SIDEBIKE_JOBS", "1")]);
    server.expect(&[&agent]);
    let runs = server.submit(of_group("g", "sleep 600"));
    server.when(id(&runs), "running", 1);
    let queued = server.submit(of_group("g", "true"));
    let waits = server.submit(waiting("g", "waits"));
    let other = server.submit(waiting("other", "waits"));
    let meant = post(&server, "/api/v1/cancel?group=g&notStarted=1&dryRun=1");
    assert_eq!(
        (&meant["dryRun"], &meant["tasks"], &meant["executions"]),
        (&json!(true), &json!(2), &json!(1))
    );
    assert_eq!(ids(&meant["shown"]), [id(&waits), id(&queued)]);
    assert_eq!(
        server.task(id(&queued))["state"],
        "running",
        "a dry run does nothing"
    );
    let done = post(&server, "/api/v1/cancel?group=g&notStarted=1");
    assert_eq!(
        (&done["dryRun"], &done["tasks"]),
        (&json!(false), &json!(2))
    );
    assert_eq!(done["skipped"][0]["count"], 1, "{done}");
    for (task, state) in [
        (&runs, "running"),
        (&queued, "canceled"),
        (&waits, "canceled"),
        (&other, "waiting"),
    ] {
        assert_eq!(server.task(id(task))["state"], state);
    }
}

#[test]
fn a_filter_says_which_tasks_and_the_label_which_executions() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    for wrong in [
        "",
        "taskPrefix=",
        "group=",
        "label=",
        "state=none",
        "tag=a",
        "all=1&state=failed",
        "notStarted=2&group=g",
    ] {
        let reply = server.post(&format!("/api/v1/cancel?{wrong}"), &Value::Null);
        assert_eq!(reply.status, 400, "{wrong}: {}", reply.text());
    }
    let both = server.submit(task("sleep 600"));
    server.when(id(&both), "running", 2);
    let other = server.submit(
        json!({"machinePattern": "^m1$", "tags": {"a": "b"}, "detail": {"command": "sleep 600"}}),
    );
    server.when(id(&other), "running", 1);
    let done = post(&server, "/api/v1/cancel?label=m2");
    assert_eq!(
        (&done["tasks"], &done["executions"]),
        (&json!(1), &json!(1))
    );
    let half = server.when(id(&both), "canceled", 1);
    assert_eq!(half["counts"]["running"], 1);
    let done = post(&server, "/api/v1/cancel?tag=a=b&state=running");
    assert_eq!(ids(&done["shown"]), [id(&other)]);
    assert_eq!(server.finished(id(&other))["state"], "canceled");
    let done = post(&server, "/api/v1/cancel?taskPrefix=ta&state=running");
    assert_eq!(ids(&done["shown"]), [id(&both)]);
    assert_eq!(server.finished(id(&both))["state"], "canceled");
}

#[test]
fn a_rerun_by_filter_runs_once_what_did_not_succeed() {
    let folder = Folder::new();
    let server = Server::with(&["--audit", &folder.file("audit")]);
    let _agent = server.agent("m");
    let good = server.run(of_group("g", "true"));
    let bad = server.run(of_group("g", &format!("test -e {}", folder.file("mended"))));
    let runs = server.submit(of_group("g", "sleep 600"));
    let meant = post(&server, "/api/v1/rerun?group=g&dryRun=1");
    assert_eq!(ids(&meant["shown"]), [id(&bad)]);
    folder.write("mended");
    let done = post(&server, "/api/v1/rerun?group=g");
    assert_eq!(
        (&done["tasks"], &done["shown"][0]["id"]),
        (&json!(1), &bad["id"])
    );
    let new = done["shown"][0]["rerun"].as_str().unwrap();
    let rerun = server.finished(new);
    assert_eq!(
        (&rerun["state"], &rerun["rerunOf"], &rerun["group"]),
        (&json!("succeeded"), &bad["id"], &json!("g"))
    );
    let reasons = |swept: &Value| {
        let skipped = swept["skipped"].as_array().unwrap().iter();
        skipped
            .map(|s| (s["reason"].as_str().unwrap().to_owned(), ids_of(s)))
            .collect::<Vec<_>>()
    };
    let expected = |reason: &str, task: &str| (reason.to_owned(), vec![task.to_owned()]);
    assert_eq!(
        reasons(&done),
        [
            expected("every execution succeeded", id(&good)),
            expected("has not ended", id(&runs))
        ]
    );
    // Again: nothing is run twice.
    let again = post(&server, "/api/v1/rerun?group=g");
    assert_eq!(again["tasks"], 0, "{again}");
    assert!(
        reasons(&again).contains(&expected("was run again already", id(&bad))),
        "{again}"
    );
    let lines = folder.json_lines("audit");
    let line = lines
        .iter()
        .rfind(|line| line["changed"] == 1)
        .expect("a line");
    assert_eq!(
        (&line["call"], &line["filter"], &line["tasks"]),
        (
            &json!("POST /api/v1/rerun"),
            &json!("group=g"),
            &json!([new])
        )
    );
}

fn ids_of(skipped: &Value) -> Vec<String> {
    let tasks = skipped["tasks"].as_array().unwrap().iter();
    tasks.map(|id| id.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_list_is_accepted_as_a_whole_or_not_at_all() {
    let folder = Folder::new();
    let db = folder.file("db");
    let mut server = Server::with(&["--db", &db, "--audit", &folder.file("audit")]);
    let _agent = server.agent("m");
    let item = |id: &str| json!({"id": id, "machinePattern": "^m$", "detail": {"command": "true"}});
    let list =
        json!([item("a"), item("b"), {"machinePattern": "^m$", "detail": {"argv": ["true"]}}]);
    let reply = server.post("/api/v1/tasks", &list);
    let tasks = reply.data();
    assert_eq!(ids(&tasks)[..2], ["a", "b"]);
    for task in ids(&tasks) {
        assert_eq!(server.finished(task)["state"], "succeeded");
    }
    assert_eq!(
        folder
            .lines("audit")
            .iter()
            .filter(|line| line.contains("POST /api/v1/tasks"))
            .count(),
        3
    );

    // Again: the tasks that are there.
    let again = server.post("/api/v1/tasks", &json!([item("new"), item("b"), item("a")]));
    assert_eq!(again.status, 409);
    let again = again.json();
    assert_eq!(ids(&again["data"]), ["b", "a"]);
    assert!(
        again["msg"]
            .as_str()
            .unwrap()
            .starts_with("tasks[1].id: is taken"),
        "{again}"
    );

    // Refused: nothing of it is there, also after a restart, and nothing was started.
    let known = server.get("/api/v1/task").data().as_array().unwrap().len();
    let touched = folder.file("touched");
    let touches = json!({"id": "c", "machinePattern": "^m$", "group": "g", "detail": {"command": format!("touch {touched}")}});
    let many = json!({"machinePattern": "^m$", "expect": 2, "detail": {"command": "true"}});
    for (list, status, words) in [
        (json!([touches, many]), 409, "tasks[1].expect: "),
        (
            json!([touches, {"machinePattern": "^m$", "detail": {"command": ""}}]),
            400,
            "tasks[1].detail.command: must not be empty",
        ),
        (
            json!([touches, {"machinePattern": "(", "detail": {"command": "true"}}]),
            400,
            "tasks[1].machinePattern: ",
        ),
        (
            json!([touches, {"machinePattern": "m", "detail": {"comand": "true"}}]),
            400,
            "tasks[1].detail.comand: unknown field",
        ),
        (json!([touches, 3]), 400, "tasks[1]: "),
        (
            json!([touches, touches]),
            400,
            "tasks[1].id: is given twice, tasks[0] has it",
        ),
        (json!([]), 400, "tasks: the list is empty"),
        (json!({"detail": {"command": "true"}}), 400, "tasks: "),
        (json!(vec![item("x"); 1_001]), 400, "tasks"),
    ] {
        let reply = server.post("/api/v1/tasks", &list);
        let msg = reply.json()["msg"].as_str().unwrap().to_owned();
        assert!(
            reply.status == status && msg.starts_with(words),
            "{status} {words}: {} {msg}",
            reply.status
        );
    }
    for restarted in [false, true] {
        if restarted {
            server.process.kill_9();
            server = Server::with(&["--db", &db]);
        }
        assert_eq!(server.get("/api/v1/task/c").status, 404);
        assert_eq!(server.get("/api/v1/group/g").status, 404);
        assert_eq!(
            server.get("/api/v1/task").data().as_array().unwrap().len(),
            known
        );
    }
    assert!(!std::path::Path::new(&touched).exists());
}

#[test]
fn a_list_of_a_thousand_is_one_change() {
    let server = Server::with(&["--max-body", "1"]);
    let agent = server.agent("m");
    // Three times as long as one task may be.
    let pad = "x".repeat(3 << 10);
    let item = |n: usize| {
        json!({"id": format!("t{n}"), "mode": "any", "machinePattern": "^m$", "group": "g",
                                 "detail": {"command": "true", "env": {"PAD": pad}}})
    };
    let list: Vec<Value> = (0..1_000).map(item).collect();
    let before = server.metric("sidebike_tasks_submitted_total");
    let tasks = server.post("/api/v1/tasks", &json!(list)).data();
    assert_eq!(ids(&tasks)[999], "t999");
    assert_eq!(
        server.metric("sidebike_tasks_submitted_total"),
        before + 1_000
    );
    let page = server.get("/metrics");
    let held = page
        .text()
        .lines()
        .filter(|line| line.starts_with("sidebike_lock_held_seconds"))
        .collect::<Vec<_>>()
        .join("\n");
    println!("{held}");
    let g = server.get("/api/v1/group/g?limit=1").json();
    assert_eq!(sum(&g["data"]["tasks"]), 1_000, "{g}");
    let canceled = post(&server, "/api/v1/cancel?group=g");
    assert!(
        canceled["tasks"].as_u64() > Some(0)
            && canceled["shown"].as_array().map(Vec::len) == Some(100),
        "{}",
        canceled["tasks"]
    );
    let g = server.get("/api/v1/group/g?wait=60s&limit=1").data();
    assert!(g["tasks"]["canceled"].as_u64() > Some(0), "{g}");
    drop(agent);
}

#[test]
fn the_command_line_cancels_and_reruns_many_after_a_question() {
    let server = Server::start();
    let list: Vec<Value> = (0..25).map(|n| waiting("g", &format!("n{n}"))).collect();
    let said = common::said::with_input(&server, &["submit", "-"], &json!(list).to_string());
    assert!(said.code == 0 && said.out.lines().count() == 25, "{said:?}");
    let wrong = common::said::with_input(&server, &["submit", "-"], r#"[{"machinePattern": "m"}]"#);
    assert!(
        wrong.code == 2 && wrong.err.contains("tasks[0]"),
        "{wrong:?}"
    );
    let count = |state: &str| group(&server, "g")["tasks"][state].clone();
    for words in [&["cancel", "--group", "g"][..], &["group", "g", "--cancel"]] {
        let said = sidebike(&server, words);
        assert!(
            said.code == 130
                && said
                    .err
                    .contains("nothing was changed; without a terminal say --yes"),
            "{said:?}"
        );
        assert!(said.out.contains("… and 5 more"), "{said:?}");
    }
    assert_eq!(count("waiting"), 25);
    let dry = sidebike(
        &server,
        &["cancel", "--state", "waiting", "--dry-run", "--json"],
    )
    .json();
    assert_eq!(dry["tasks"], 25);
    let few = sidebike(
        &server,
        &["cancel", "--group", "g", "--name", "n1", "--not-started"],
    );
    assert!(
        few.code == 0 && few.out.contains("\n11 tasks canceled, 0 executions\n"),
        "{few:?}"
    );
    let rest = sidebike(&server, &["group", "g", "--cancel", "--yes"]);
    assert!(
        rest.out.ends_with("14 tasks canceled, 0 executions\n")
            && rest.err.contains("skipped 11: has ended"),
        "{rest:?}"
    );
    assert_eq!(count("canceled"), 25);
    let again = sidebike(&server, &["rerun", "--group", "g", "--name", "n24"]);
    assert!(
        again.code == 0 && again.out.contains(" reruns "),
        "{again:?}"
    );
    for wrong in [
        &["cancel"][..],
        &["rerun"],
        &["cancel", "x", "--group", "g"],
        &["cancel", "x", "--not-started"],
    ] {
        assert_eq!(sidebike(&server, wrong).code, 2, "{wrong:?}");
    }
}

#[test]
fn a_refusal_of_a_list_says_what_is_in_the_way() {
    let server = Server::start();
    let task = |fields: Value| {
        let mut task = json!({"machinePattern": "nobody", "detail": {"command": "true"}});
        for (field, value) in fields.as_object().unwrap() {
            task[field] = value.clone();
        }
        task
    };
    server.submit(task(json!({"id": "old", "uniqueKey": "held"})));
    let child = json!({"id": "child", "detail": {"command": "true"}});
    for (list, msg) in [
        (
            json!([task(json!({})), task(json!({"uniqueKey": "held"}))]),
            "tasks[1].uniqueKey: \"held\" is held by task old",
        ),
        (
            json!([
                task(json!({"uniqueKey": "k"})),
                task(json!({"uniqueKey": "k"}))
            ]),
            "tasks[1].uniqueKey: is given twice, tasks[0] has it, too",
        ),
        (
            json!([
                task(json!({})),
                task(json!({"onEnd": child})),
                task(json!({"id": "child"}))
            ]),
            "tasks[2].id: is given twice, tasks[1] has it, too",
        ),
        (
            json!([task(
                json!({"onEnd": {"id": "old", "detail": {"command": "true"}}})
            )]),
            "tasks[0].onEnd.id: \"old\" is taken by another task",
        ),
        (
            json!([task(
                json!({"onEnd": {"limits": ["no"], "detail": {"command": "true"}}})
            )]),
            "tasks[0].onEnd.limits: there is no limit",
        ),
    ] {
        let reply = server.post("/api/v1/tasks", &list);
        assert!(reply.msg().starts_with(msg), "{}", reply.msg());
        assert!(matches!(reply.status, 409 | 422), "{}", reply.status);
    }
    assert_eq!(
        server.get("/api/v1/task").data().as_array().unwrap().len(),
        1
    );
}

#[test]
fn a_list_is_tried_without_being_submitted() {
    let folder = Folder::new();
    let server = Server::with(&["--db", &folder.file("db")]);
    let _agent = server.agent("m");
    let list = json!([
        {"id": "a", "machinePattern": "^m$", "detail": {"command": "true"}},
        {"id": "b", "machinePattern": "^m$", "after": [{"task": "a"}], "detail": {"command": "true"}},
    ]);
    let tried = server.post("/api/v1/tasks?dryRun=1", &list);
    assert_eq!(
        (tried.status, &*tried.msg()),
        (200, "dry run: nothing was submitted")
    );
    let tried = tried.data();
    assert_eq!(tried[0]["assignees"], json!(["m"]), "{tried}");
    assert_eq!(tried[1]["state"], "blocked", "{tried}");
    assert_eq!(server.get("/api/v1/task").data(), json!([]));
    assert_eq!(server.metric("sidebike_tasks_submitted_total"), 0);
    let mut wrong = list.clone();
    wrong[1]["expect"] = json!(7);
    wrong[1].as_object_mut().unwrap().remove("after");
    let refused = server.post("/api/v1/tasks?dryRun=1", &wrong);
    assert_eq!(refused.status, 409);
    assert!(
        refused.msg().starts_with("tasks[1].expect"),
        "{}",
        refused.msg()
    );
    assert_eq!(server.post("/api/v1/tasks", &list).status, 200);
    assert_eq!(server.finished("b")["state"], "succeeded");

    let file = folder.file("tasks.json");
    std::fs::write(
        &file,
        r#"[{"machinePattern": "^m$", "name": "c", "detail": {"command": "true"}}]"#,
    )
    .unwrap();
    let said = sidebike(&server, &["submit", "--dry-run", &file]);
    assert_eq!(said.out, "tasks[0] c: running m\n");
    assert_eq!(
        server.get("/api/v1/task").data().as_array().unwrap().len(),
        2
    );
}

#[test]
fn what_is_run_again_is_queued_in_the_order_in_which_it_was() {
    let server = Server::start();
    for n in 0..5 {
        let task = json!({
            "name": format!("t{n}"), "group": "g", "mode": "any", "machinePattern": "^later$",
            "detail": {"command": "true"}
        });
        server.submit(task);
    }
    server.post("/api/v1/group/g/cancel", &json!(null));
    let rerun = server.post("/api/v1/rerun?group=g", &json!(null)).data();
    let names: Vec<&str> = { rerun["shown"].as_array().unwrap().iter() }
        .map(|task| task["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["t0", "t1", "t2", "t3", "t4"]);
}
