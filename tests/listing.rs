//! Reading back: lists and their pages, one task, its output, machines, figures; and what is said
//! to a call that does not exist.

mod common;

use common::{Server, id, ids, task};
use serde_json::{Value, json};

/// A server without machines and tasks t0, t1, … of which the last is the newest; all wait.
fn server_with(count: usize) -> Server {
    let server = Server::start();
    for n in 0..count {
        let mut posted = task("true");
        posted["name"] = format!("t{n}").into();
        posted["id"] = format!("id{n}").into();
        server.submit(posted);
    }
    server
}

fn list(server: &Server, query: &str) -> Value {
    server.get(&format!("/api/v1/task?{query}")).data()
}

#[test]
fn tasks_are_listed_newest_first() {
    let tasks = server_with(3).get("/api/v1/task").data();
    assert_eq!(ids(&tasks), ["id2", "id1", "id0"]);
}

#[test]
fn pages_follow_each_other_until_there_is_no_next() {
    let server = server_with(7);
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = server.get(&format!("/api/v1/task?limit=3{cursor}")).json();
        seen.extend(ids(&page["data"]).into_iter().map(str::to_owned));
        pages += 1;
        let Some(next) = page["next"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, ["id6", "id5", "id4", "id3", "id2", "id1", "id0"]);
    assert_eq!(pages, 3);
}

#[test]
fn a_page_that_ends_with_the_last_task_has_no_next() {
    let page = server_with(3).get("/api/v1/task?limit=3").json();
    assert_eq!(page["data"].as_array().map(Vec::len), Some(3));
    assert!(page.get("next").is_none(), "{}", page["next"]);
}

#[test]
fn a_list_has_100_tasks_when_not_said_otherwise() {
    let server = server_with(101);
    assert_eq!(ids(&list(&server, "")).len(), 100);
    assert_eq!(ids(&list(&server, "limit=1000")).len(), 101);
}

#[test]
fn lists_are_narrowed_by_prefix_state_and_label() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    for (id, pattern, command) in [
        ("good", "m1", "true"),
        ("bad", "m2", "false"),
        ("both", "m", "true"),
        ("waits", "nobody", "true"),
    ] {
        let posted = json!({"id": id, "name": format!("{id}-task"), "machinePattern": pattern,
            "detail": {"command": command}});
        server.submit(posted);
        if id != "waits" {
            server.finished(id);
        }
    }
    assert_eq!(ids(&list(&server, "taskPrefix=b")), ["both", "bad"]);
    assert_eq!(ids(&list(&server, "taskPrefix=task")), [""; 0]);
    assert_eq!(ids(&list(&server, "state=succeeded")), ["both", "good"]);
    assert_eq!(ids(&list(&server, "state=failed")), ["bad"]);
    assert_eq!(ids(&list(&server, "state=waiting")), ["waits"]);
    assert_eq!(ids(&list(&server, "label=m2")), ["both", "bad"]);
    assert_eq!(ids(&list(&server, "label=m2&state=succeeded")), ["both"]);
    assert_eq!(ids(&list(&server, "label=m")), [""; 0]);
}

#[test]
fn a_wrong_parameter_is_named_with_what_would_be_right() {
    let server = Server::start();
    for (target, field, words) in [
        ("/api/v1/task?limit=0", "limit", "1000"),
        ("/api/v1/task?limit=1001", "limit", "1000"),
        ("/api/v1/task?limit=many", "limit", "number"),
        ("/api/v1/task?cursor=x", "cursor", "next"),
        ("/api/v1/task?state=done", "state", "succeeded"),
        ("/api/v1/task?prefix=x", "prefix", "taskPrefix"),
        ("/api/v1/task?taskPrefix=x&limt=3", "limt", "limit"),
        ("/api/v1/machine?state=dead", "state", "offline"),
        ("/api/v1/machine?lable=x", "lable", "label"),
        ("/healthz?x", "x", "none"),
    ] {
        let reply = server.get(target);
        assert_eq!(reply.status, 400, "{target}");
        let msg = reply.msg();
        let good = msg.starts_with(&format!("{field}: ")) && msg.contains(words);
        assert!(good, "{target}: {msg}");
    }
}

#[test]
fn a_task_is_shown_by_id_or_else_the_newest_of_its_name() {
    let server = Server::start();
    for (id, name) in [
        ("a", "same"),
        ("b", "same"),
        ("c", "a"),
        ("d", "with space"),
    ] {
        let mut posted = task("true");
        posted["id"] = id.into();
        posted["name"] = name.into();
        server.submit(posted);
    }
    assert_eq!(server.task("same")["id"], "b");
    assert_eq!(server.task("a")["id"], "a", "an id goes before a name");
    assert_eq!(server.task("with%20space")["id"], "d");
    assert_eq!(server.task("c/")["id"], "c");
}

#[test]
fn what_does_not_exist_is_404_and_says_so() {
    let server = Server::start();
    for (method, target) in [
        ("GET", "/api/v1/task/nobody"),
        ("GET", "/api/v1/task/nobody/output"),
        ("POST", "/api/v1/task/nobody/cancel"),
        ("POST", "/api/v1/task/nobody/rerun"),
        ("DELETE", "/api/v1/task/nobody"),
        ("GET", "/api/v1/nobody"),
        ("GET", "/api/v2/task"),
        ("GET", "/api/v1/task/a/b/c"),
        ("GET", "//healthz"),
    ] {
        let reply = server.request(method, target, b"");
        assert_eq!(reply.status, 404, "{method} {target}");
        assert_eq!(reply.json()["signal"], -1, "{method} {target}");
        assert!(!reply.msg().is_empty(), "{method} {target}");
    }
}

#[test]
fn a_wrong_method_is_405_with_the_right_ones() {
    let server = Server::start();
    for (method, target, allowed) in [
        ("DELETE", "/api/v1/task", "POST, GET"),
        ("PUT", "/api/v1/task/x", "GET, DELETE"),
        ("GET", "/api/v1/task/x/cancel", "POST"),
        ("POST", "/api/v1/machine", "GET"),
        ("GET", "/api/v1/agent/poll", "POST"),
        ("POST", "/healthz", "GET"),
        ("BREW", "/metrics", "GET"),
    ] {
        let reply = server.request(method, target, b"");
        assert_eq!(reply.status, 405, "{method} {target}");
        assert_eq!(reply.header("Allow"), Some(allowed), "{method} {target}");
        assert_eq!(reply.json()["signal"], -1);
    }
}

#[test]
fn head_is_get_without_the_body_and_the_connection_goes_on() {
    let server = server_with(1);
    let mut connection = server.connect();
    for target in ["/api/v1/task", "/api/v1/task/id0", "/healthz"] {
        connection.send(&common::http::request("HEAD", target, "", b""));
        let head = connection.read_head_only();
        assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
        connection.send(&common::http::request("GET", target, "", b""));
        let get = connection.read();
        let length = get.body.len().to_string();
        assert_eq!(head.header("Content-Length"), Some(&*length), "{target}");
    }
}

#[test]
fn a_connection_takes_many_requests_and_closes_when_asked() {
    let server = Server::start();
    let mut connection = server.connect();
    for _ in 0..20 {
        connection.send(&common::http::request("GET", "/healthz", "", b""));
        assert_eq!(connection.read().data(), "alive");
    }
    let last = common::http::request("GET", "/healthz", "Connection: close\r\n", b"");
    connection.send(&last);
    assert_eq!(connection.read().data(), "alive");
    assert_eq!(connection.rest(), b"");
}

#[test]
fn a_finished_task_is_deleted_and_a_running_one_is_not() {
    let server = Server::start();
    let _agent = server.agent("m");
    let done = server.run(task("true"));
    let path = format!("/api/v1/task/{}", id(&done));
    assert_eq!(server.request("DELETE", &path, b"").data(), Value::Null);
    assert_eq!(server.get(&path).status, 404);
    assert_eq!(server.request("DELETE", &path, b"").status, 404);

    let running = server.submit(task("sleep 60"));
    let path = format!("/api/v1/task/{}", id(&running));
    let refused = server.request("DELETE", &path, b"");
    assert_eq!(refused.status, 409);
    assert!(refused.msg().contains("cancel"), "{}", refused.msg());
    assert_eq!(server.get(&path).status, 200);
}

#[test]
fn machines_are_listed_with_what_they_do() {
    let server = Server::start();
    let _agents = (
        server.agent("m2"),
        server.agent("m1"),
        server.agent("other"),
    );
    let running = server.submit(task("sleep 60"));
    server.when(id(&running), "running", 2);
    let machines = server.machines();
    let labels: Vec<&Value> = machines.iter().map(|m| &m["label"]).collect();
    assert_eq!(labels, ["m1", "m2", "other"]);
    let host = rustix::system::uname()
        .nodename()
        .to_str()
        .unwrap()
        .to_owned();
    for (machine, running) in machines.iter().zip([1, 1, 0]) {
        assert_eq!(
            (&machine["running"], &machine["queued"]),
            (&json!(running), &json!(0))
        );
        assert_eq!(
            (&machine["jobs"], &machine["state"]),
            (&json!(4), &json!("online"))
        );
        assert_eq!(
            (&machine["host"], &machine["version"]),
            (&json!(host), &json!(env!("CARGO_PKG_VERSION")))
        );
        assert!(machine["lastSeen"].as_str() >= machine["since"].as_str());
    }
    let count = |query: &str| {
        server
            .get(&format!("/api/v1/machine/?{query}"))
            .data()
            .as_array()
            .map(Vec::len)
    };
    assert_eq!(count("label=m1"), Some(1));
    assert_eq!(count("label=m"), Some(0));
    assert_eq!(count("state=online"), Some(3));
    assert_eq!(count("state=offline"), Some(0));
}

#[test]
fn output_is_plain_text() {
    let server = Server::start();
    let _agent = server.agent("m");
    let done = server.run(task("printf 'one\\ntwo'; sleep 0.3; printf 'err\\n' >&2"));
    let get = |query: &str| {
        let reply = server.get(&format!("/api/v1/task/{}/output{query}", id(&done)));
        assert_eq!(reply.status, 200, "{query}: {}", reply.text());
        assert_eq!(
            reply.header("Content-Type"),
            Some("text/plain; charset=utf-8")
        );
        reply.text().to_owned()
    };
    assert_eq!(get("?stream=stdout"), "one\ntwo");
    assert_eq!(get("?stream=stderr"), "err\n");
    assert_eq!(get("?offset=2"), "e\ntwo");
    assert_eq!(get("?offset=2&stream=stderr"), "r\n");
    assert_eq!(get("?offset=1000"), "");
    assert_eq!(get("?machine=m&stream=stderr"), "err\n");
    let both = get("");
    let mut lines: Vec<&str> = both.lines().collect();
    lines.sort();
    assert_eq!(lines, ["err", "one", "two"]);
}

#[test]
fn output_of_several_machines_says_whose_a_line_is() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let done = server.run(task("echo hi from $SIDEBIKE_MACHINE_LABEL"));
    let path = format!("/api/v1/task/{}/output", id(&done));
    assert_eq!(
        server.get(&path).text(),
        "m1 | hi from m1\nm2 | hi from m2\n"
    );
    assert_eq!(
        server.get(&format!("{path}/?machine=m2")).text(),
        "hi from m2\n"
    );
    let which = server.get(&format!("{path}?offset=3"));
    assert_eq!(which.status, 422);
    assert!(which.msg().starts_with("offset: ") && which.msg().contains("machine="));
}

#[test]
fn output_is_there_while_the_command_runs() {
    let server = Server::start();
    let _agent = server.agent("m");
    let running = server.submit(task("echo early; sleep 60"));
    let path = format!("/api/v1/task/{}/output", id(&running));
    common::wait_for("output of a running command", || {
        server.get(&path).text() == "early\n"
    });
    assert_eq!(server.task(id(&running))["state"], "running");
}

#[test]
fn a_long_output_is_cut_in_lists_and_whole_in_output() {
    let server = Server::start();
    let _agent = server.agent("m");
    let done = server.run(task("yes 123456789 | head -n 20000"));
    let listed = &list(&server, "")[0];
    assert!(listed["result"][0]["stdout"].as_str().unwrap().len() <= 17 * 1024);
    assert!(listed["result"][0]["truncatedBytes"].as_u64() >= Some(180_000));
    assert_eq!(
        done["result"][0]["stdout"].as_str().map(str::len),
        Some(200_000)
    );
    assert_eq!(done["result"][0]["truncatedBytes"], 0);
    let whole = server.get(&format!("/api/v1/task/{}/output?stream=stdout", id(&done)));
    assert_eq!(whole.body.len(), 200_000);
}

#[test]
fn metrics_are_well_formed() {
    let server = Server::start();
    let _agent = server.agent("m");
    server.run(task("true"));
    server.run(task("false"));
    let page = server.get("/metrics");
    assert!(
        page.header("Content-Type")
            .unwrap()
            .starts_with("text/plain")
    );
    let mut family = "";
    for line in page.text().lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family, "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(series.starts_with(family) && !family.is_empty(), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
        }
    }
    for (name, value) in [
        ("sidebike_machines{state=\"online\"}", 1),
        ("sidebike_tasks{state=\"succeeded\"}", 1),
        ("sidebike_tasks{state=\"failed\"}", 1),
        ("sidebike_executions{state=\"failed\"}", 1),
        ("sidebike_executions_ended_total{state=\"succeeded\"}", 1),
        ("sidebike_tasks_submitted_total", 2),
        ("sidebike_submit_to_start_seconds_count", 2),
        ("sidebike_run_time_seconds_bucket{le=\"+Inf\"}", 2),
    ] {
        assert_eq!(server.metric(name), value, "{name}");
    }
}
