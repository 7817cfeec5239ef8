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
            .starts_with("group g: succeeded, worst exit code 0\n1 tasks: 1 succeeded\n"),
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
