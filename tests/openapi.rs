//! The OpenAPI description: it has every call and parameter of the table of routes, and what the running server
//! answers fits its schemas.
//!
//! The schemas are checked by Python's jsonschema (Debian: `python3-jsonschema`); without it that test says so
//! and passes.
#![cfg(all(feature = "server", feature = "agent"))]
#![recursion_limit = "256"]

mod common;

use common::{Agent, Server, id, task, wait_for};
use serde_json::{Value, json};
use sidebike::wire::machine::MachineState;
use sidebike::wire::task::{ExecutionState, TaskState};
use sidebike::wire::undo::UndoState;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

/// Reads `[[what, schema, instance], …]`, prints a line for each instance that does not fit its schema.
const VALIDATOR: &str = "
import json, sys
from jsonschema import Draft202012Validator
given = json.load(sys.stdin)
for what, schema, instance in given['cases']:
    whole = {**schema, 'components': given['components']}
    for error in Draft202012Validator(whole).iter_errors(instance):
        print(what, error.json_path, error.message[:300])
";

fn description() -> Value {
    serde_json::from_str(&sidebike::docs::OPENAPI.text()).expect("JSON")
}

/// The value itself, or what its `$ref` points to.
fn resolved<'a>(description: &'a Value, value: &'a Value) -> &'a Value {
    let Some(path) = value["$ref"].as_str() else {
        return value;
    };
    let path = path.strip_prefix('#').expect("a reference within the file");
    description
        .pointer(path)
        .unwrap_or_else(|| panic!("there is no {path}"))
}

/// Every call of the description: its name as the table of routes has it, its path, its entry.
fn operations(description: &Value) -> Vec<(String, &str, &Value)> {
    let paths = description["paths"].as_object().unwrap().iter();
    let calls = paths.flat_map(|(path, item)| {
        let parts = path.split('/').map(|part| match part.starts_with('{') {
            true => "*",
            false => part,
        });
        let parts: Vec<&str> = parts.collect();
        let methods = item.as_object().unwrap().iter();
        let methods = methods.filter(|(name, _)| *name != "parameters");
        methods.map(move |(method, operation)| {
            let call = format!("{} {}", method.to_uppercase(), parts.join("/"));
            (call, path.as_str(), operation)
        })
    });
    calls.collect()
}

#[test]
fn it_has_every_call_that_people_make_with_its_parameters() {
    let description = description();
    let mut described = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (call, path, operation) in operations(&description) {
        let parameters = [
            &description["paths"][path]["parameters"],
            &operation["parameters"],
        ];
        let parameters = parameters.into_iter().filter_map(Value::as_array).flatten();
        let mut query = BTreeSet::new();
        let mut in_path = BTreeSet::new();
        for parameter in parameters {
            let parameter = resolved(&description, parameter);
            let name = parameter["name"].as_str().unwrap().to_owned();
            let text = parameter["description"].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{call}: {name} is not explained");
            match parameter["in"].as_str() {
                Some("query") => assert!(query.insert(name)),
                Some("path") => assert!(parameter["required"] == true && in_path.insert(name)),
                other => panic!("{call}: {name} is in {other:?}"),
            }
        }
        let named = { path.split('/') }
            .filter_map(|part| Some(part.strip_prefix('{')?.strip_suffix('}')?.to_owned()))
            .collect();
        assert_eq!(in_path, named, "{call}");
        assert!(
            ids.insert(operation["operationId"].as_str().unwrap()),
            "{call}"
        );
        described.insert(call, query);
    }
    let calls = sidebike::server::calls().into_iter();
    let table: BTreeMap<String, BTreeSet<String>> = calls
        .filter(|call| call.is_for_people)
        .map(|call| {
            (
                call.call,
                call.query.iter().map(|&name| name.to_owned()).collect(),
            )
        })
        .collect();
    assert!(table.len() > 10);
    assert_eq!(described, table);
}

#[test]
fn its_references_lead_somewhere_and_its_states_are_those_that_there_are() {
    fn check(description: &Value, value: &Value) {
        resolved(description, value);
        match value {
            Value::Object(members) => members.values().for_each(|v| check(description, v)),
            Value::Array(items) => items.iter().for_each(|v| check(description, v)),
            _ => {}
        }
    }
    let description = description();
    check(&description, &description);
    let schemas = &description["components"]["schemas"];
    assert_eq!(schemas["TaskState"]["enum"], json!(TaskState::ALL));
    assert_eq!(
        schemas["ExecutionState"]["enum"],
        json!(ExecutionState::ALL)
    );
    assert_eq!(schemas["MachineState"]["enum"], json!(MachineState::ALL));
    assert_eq!(schemas["UndoState"]["enum"], json!(UndoState::ALL));
}

#[test]
fn the_server_gives_it() {
    let server = Server::start();
    let reply = server.get("/api/v1/openapi.json");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("Content-Type"), Some("application/json"));
    assert_eq!(reply.json(), description());
}

/// Tasks may tell receivers.
const TOLD: [&str; 2] = ["--webhook-allow", "^http://127.0.0.1:9$"];
/// The tags of the agents of these tests.
const TAGS: (&str, &str) = ("SIDEBIKE_TAGS", "zone=cn-1,role=web");

/// The SHA-256 of `hello`.
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

/// Brings the file that [`complete`] names.
fn bring_hello(server: &Server) {
    let brought = server.request("PUT", "/api/v1/file/x", b"hello").data();
    assert_eq!(brought["sha256"], HELLO);
}

/// A task with every field that the description has, in one of the forms that `detail` may have, for this machine.
fn complete(server: &Server, machine: &Agent) -> Value {
    // What it begins after.
    server.submit(json!({"id": "first-1", "machinePattern": "^m$", "detail": {"command": "true"}}));
    json!({
        "id": "complete-1", "name": "complete", "machinePattern": "^m$", "mode": "all", "ttl": "90s",
        "exclude": "^n", "machineTags": {"zone": "^cn-", "role": "web"}, "hosts": ".",
        "instances": [machine.instance()],
        "expect": {"min": 1, "max": 3}, "maxTargets": "100%", "keepAlive": {"keep": 0, "pool": "^m"},
        "rollout": {
            "concurrency": "50%", "steps": [1, "100%"], "pause": "1h", "maxFailures": 1, "stopRunning": true,
            "order": "random", "canary": "^m",
        },
        "probes": [{"name": "p", "command": "true", "on": "targets", "failures": 3}],
        "files": [{"sha256": HELLO, "size": 5, "name": "x", "mode": "0755", "ifExists": "keep", "remove": true}],
        "filesTimeout": "1m", "fetch": [{"path": "/nowhere/at/all", "max": "1KiB", "missingOk": true}],
        "lateJoin": false, "retry": {"max": 2, "interval": [0.01], "on": ["failed"]},
        "resultTtl": 3600, "failureTtl": "2h", "notify": [{"url": "http://127.0.0.1:9/x", "on": ["started", "ended"]}],
        "delay": 0.01,
        "after": [{"task": "first-1", "on": "succeeded", "minSucceeded": "50%", "perMachine": false}], "blockedTtl": "1h",
        "onSuccess": {"detail": {"command": "true"}}, "onFailure": {"detail": {"command": "true"}},
        "onEnd": {"detail": {"command": "true"}},
        "group": "g", "tags": {"team": "pay"}, "description": "what it is for",
        "detail": {
            "command": "cat; echo oops >&2; exit 3", "workspace": "/tmp", "timeout": "5m",
            "killGrace": 0.5, "env": {"A": "b"}, "mergeOutput": false, "stdin": "in\n",
            "undo": {
                "command": "echo undone", "check": "echo checked", "timeout": "20s", "patience": "1m", "deadman": 90,
                "lock": "eth0",
            },
        },
    })
}

fn tagged(server: &Server, label: &str) -> Agent {
    let agent = Agent::start(server.address, label, &[TAGS]);
    server.expect(&[&agent]);
    agent
}

/// The names of an object's members.
fn names(object: &Value) -> BTreeSet<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn every_field_of_a_submit_is_taken() {
    let description = description();
    let schemas = &description["components"]["schemas"];
    let server = Server::with(&TOLD);
    let machine = tagged(&server, "m");
    bring_hello(&server);
    let complete = complete(&server, &machine);
    let mut entry = names(&complete["after"][0]);
    entry.insert("group");
    assert_eq!(entry, names(&schemas["After"]["properties"]));
    let mut fields = names(&complete);
    // In place of the delay.
    fields.insert("startAt");
    // Goes without a detail.
    fields.insert("update");
    let update = json!({"version": "99.0.0", "images": {"x86_64": HELLO}, "probation": 9});
    assert_eq!(names(&update), names(&schemas["Update"]["properties"]));
    let task = server.submit(json!({"machinePattern": "^none$", "update": update}));
    assert_eq!(task["update"], update);
    assert_eq!(fields, names(&schemas["NewTask"]["properties"]));
    assert_eq!(
        names(&complete["rollout"]),
        names(&schemas["Rollout"]["properties"])
    );
    for (field, schema) in [("expect", "Expect"), ("keepAlive", "KeepAlive")] {
        let form = &schemas[schema]["anyOf"][1]["properties"];
        assert_eq!(names(&complete[field]), names(form));
    }
    assert_eq!(
        names(&complete["retry"]),
        names(&schemas["Retry"]["properties"])
    );
    let mut detail = names(&complete["detail"]);
    // Others in their place.
    detail.extend(["argv", "script", "scriptArgs", "stdinBase64", "user"]);
    assert_eq!(detail, names(&schemas["Detail"]["properties"]));
    let mut undo = names(&complete["detail"]["undo"]);
    undo.extend(["argv", "checkArgv"]);
    assert_eq!(undo, names(&schemas["Undo"]["properties"]));
    let mut tasks = vec![server.submit(complete)];
    for detail in [
        json!({"argv": ["true"]}),
        json!({"script": "true", "scriptArgs": ["a"], "stdinBase64": "AA==", "user": "root"}),
        json!({"argv": ["true"], "undo": {"argv": ["true"], "checkArgv": ["true"], "deadman": -1}}),
    ] {
        tasks.push(server.submit(json!({"machinePattern": "m", "detail": detail})));
    }
    // With an agent that is killed before, its guard would look for the server for minutes.
    for task in tasks {
        server.finished(id(&task));
    }
}

/// Forbids members that the description does not have, so that a new field of an answer is noticed.
fn forbid_unknown(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.values_mut().for_each(forbid_unknown);
            if members.contains_key("properties") && members["type"] == "object" {
                members.insert("additionalProperties".into(), false.into());
            }
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_unknown),
        _ => {}
    }
}

/// Answers of a running server, and what the description says of them.
struct Answers {
    server: Server,
    description: Value,
    cases: Vec<Value>,
}

impl Answers {
    fn note(&mut self, what: &str, schema: Value, instance: Value) {
        self.cases.push(json!([what, schema, instance]));
    }

    /// Makes a call of the description and notes its answer.
    fn call(
        &mut self,
        method: &str,
        path: &str,
        target: &str,
        body: Option<&Value>,
        status: u16,
    ) -> Value {
        let body = body.map(Value::to_string).unwrap_or_default();
        let reply = self.server.request(method, target, body.as_bytes());
        let what = format!("{method} {target} {status}");
        assert_eq!(reply.status, status, "{what}: {}", reply.text());
        let responses = &self.description["paths"][path][method.to_lowercase()]["responses"];
        let status = status.to_string();
        let response = responses.get(&status).unwrap_or(&responses["default"]);
        let response = resolved(&self.description, response);
        let schema = response["content"]["application/json"]["schema"].clone();
        assert!(schema.is_object(), "{what}: {response}");
        let answer = reply.json();
        self.note(&what, schema, answer.clone());
        answer
    }
}

/// Suspensions, and agents that drain and end.
fn crew(a: &mut Answers) {
    let suspend = "/api/v1/suspend";
    let body = json!({"machinePattern": "^w$", "for": "1h", "reason": "why"});
    a.call("POST", suspend, suspend, Some(&body), 200);
    a.call("POST", suspend, suspend, Some(&json!({})), 400);
    let _agent = a.server.agent("w");
    let machines = a.call(
        "GET",
        "/api/v1/machine",
        "/api/v1/machine?label=w",
        None,
        200,
    );
    assert_eq!(machines["data"][0]["suspended"], "why", "{machines}");
    a.call("GET", suspend, suspend, None, 200);
    let waits = json!({"id": "waits", "machinePattern": "^w$", "detail": {"command": "true"}});
    a.call("POST", "/api/v1/task", "/api/v1/task", Some(&waits), 200);
    let summary = "/api/v1/summary";
    let seen = a.call("GET", summary, summary, None, 200);
    assert_eq!(seen["data"]["oldest"]["id"], "waits", "{seen}");
    a.call("DELETE", suspend, suspend, None, 200);
    for word in ["drain", "undrain", "shutdown"] {
        let (path, target) = (
            format!("/api/v1/machine/{{name}}/{word}"),
            format!("/api/v1/machine/w/{word}"),
        );
        a.call("POST", &path, &target, None, 200);
        a.call(
            "POST",
            &path,
            &format!("/api/v1/machine/none/{word}"),
            None,
            404,
        );
    }
}

/// Rollouts that pause, go on and stop; counts that are not met; machines with tags.
fn rollouts(a: &mut Answers) {
    let _second = tagged(&a.server, "n");
    let (tasks, machines) = ("/api/v1/task", "/api/v1/machine");
    let listed = a.call("GET", machines, "/api/v1/machine?tag=zone=^cn-", None, 200);
    assert_eq!(listed["data"][1]["tags"]["role"], "web", "{listed}");
    a.call("GET", machines, "/api/v1/machine?tag=zone", None, 400);

    let mut stepped = json!({
        "id": "stepped", "machinePattern": "^[mn]$", "expect": 2, "detail": {"command": "true"},
        "rollout": {"steps": [1, "100%"], "pause": "1h"},
    });
    let dry = "/api/v1/task?dryRun=1";
    let planned = a.call("POST", tasks, dry, Some(&stepped), 200);
    assert_eq!(planned["data"]["plan"], json!([1, 2]));
    stepped["maxTargets"] = 1.into();
    let spared = a.call("POST", tasks, dry, Some(&stepped), 200);
    assert_eq!(spared["data"]["spared"].as_array().map(Vec::len), Some(1));
    stepped["maxTargets"] = "1%".into();
    let refused = a.call("POST", tasks, dry, Some(&stepped), 200);
    assert_eq!(refused["data"]["ok"], false, "{refused}");
    a.call("POST", tasks, tasks, Some(&stepped), 409);
    stepped["maxTargets"] = "100%".into();
    a.call("POST", tasks, tasks, Some(&stepped), 200);
    wait_for("the pause after the first step", || {
        a.server.task("stepped")["rolloutState"]["state"] == "paused"
    });
    let one = "/api/v1/task/{id}";
    let paused = a.call("GET", one, "/api/v1/task/stepped", None, 200);
    assert!(paused["data"]["rolloutState"]["resumesAt"].is_string());
    let (pause, resume, stop) = (
        "/api/v1/task/{id}/pause",
        "/api/v1/task/{id}/resume",
        "/api/v1/task/{id}/stop",
    );
    let held = a.call("POST", pause, "/api/v1/task/stepped/pause", None, 200);
    assert_eq!(held["data"]["counts"]["held"], 1, "{held}");
    let stopped = "/api/v1/task/stepped/stop?running=1";
    let stopped = a.call("POST", stop, stopped, None, 200);
    assert_eq!(stopped["data"]["stoppedBy"]["kind"], "user", "{stopped}");
    a.call("POST", resume, "/api/v1/task/stepped/resume", None, 409);
    a.call("POST", stop, "/api/v1/task/none/stop", None, 404);

    // A machine that comes later joins the last step.
    let joined = json!({
        "id": "joined", "machinePattern": "^[mno]$", "lateJoin": true, "ttl": "1h",
        "rollout": {"maxFailures": "50%"}, "detail": {"command": "true"},
    });
    a.call("POST", tasks, tasks, Some(&joined), 200);
    let _late = tagged(&a.server, "o");
    a.server.when("joined", "succeeded", 3);
    let late = a.call("GET", one, "/api/v1/task/joined", None, 200);
    assert_eq!(late["data"]["rolloutState"]["lateJoined"], 1, "{late}");
    a.call("POST", stop, "/api/v1/task/joined/stop", None, 200);

    let plain = json!({"id": "plain", "machinePattern": "^m$", "detail": {"command": "sleep 600"}});
    a.call("POST", tasks, tasks, Some(&plain), 200);
    let paused = a.call("POST", pause, "/api/v1/task/plain/pause", None, 200);
    assert_eq!(paused["data"]["rolloutState"]["plan"], json!([]));
    a.call("POST", resume, "/api/v1/task/plain/resume", None, 200);
    a.call("POST", stop, "/api/v1/task/plain/stop?running=1", None, 200);
    a.server.finished("plain");
}

/// A group, and lists by group and tag.
fn groups(a: &mut Answers) {
    let (tasks, group) = ("/api/v1/task", "/api/v1/group/{name}");
    for query in ["group=g", "tag=team=pay", "group=g&tag=team=pay"] {
        let listed = a.call("GET", tasks, &format!("/api/v1/task?{query}"), None, 200);
        assert_eq!(listed["data"].as_array().map(Vec::len), Some(2), "{listed}");
    }
    a.call("GET", tasks, "/api/v1/task?tag=team", None, 400);
    let shown = a.call("GET", group, "/api/v1/group/g?wait=30s&limit=1", None, 200);
    assert!(shown["next"].is_string(), "{shown}");
    a.call("GET", group, "/api/v1/group/none?wait=30s", None, 404);
    let (list, cancel, rerun) = ("/api/v1/tasks", "/api/v1/cancel", "/api/v1/rerun");
    let item = |id: &str| json!({"id": id, "group": "l", "machinePattern": "^m$", "detail": {"command": "sleep 600"}});
    let both = json!([item("item-1"), item("item-2")]);
    a.call("POST", list, list, Some(&both), 200);
    a.call("POST", list, list, Some(&both), 409);
    a.call("POST", list, list, Some(&json!([])), 400);
    a.call("POST", cancel, cancel, None, 400);
    a.call("POST", cancel, "/api/v1/cancel?group=g&dryRun=1", None, 200);
    let call = "/api/v1/group/{name}/cancel";
    let canceled = a.call("POST", call, "/api/v1/group/l/cancel", None, 200);
    assert_eq!(canceled["data"]["tasks"], 2, "{canceled}");
    a.call("POST", call, "/api/v1/group/none/cancel", None, 404);
    a.call("GET", group, "/api/v1/group/l?wait=30s", None, 200);
    a.call("POST", rerun, "/api/v1/rerun?group=l&dryRun=1", None, 200);
    let again = a.call("POST", rerun, "/api/v1/rerun?group=l", None, 200);
    assert!(again["data"]["shown"][0]["rerun"].is_string(), "{again}");
    a.call(
        "POST",
        call,
        "/api/v1/group/l/cancel?notStarted=0",
        None,
        200,
    );
}

/// An undo that fails, is run again and is forgiven; a halt; reports.
fn experiments(a: &mut Answers) {
    let (tasks, one) = ("/api/v1/task", "/api/v1/task/{id}");
    let (undo, forgive) = ("/api/v1/task/{id}/undo", "/api/v1/task/{id}/forgive");
    let (report, halt) = ("/api/v1/task/{id}/report", "/api/v1/halt");
    let experiment = |id: &str, command: &str, undo: &str| {
        let undo = json!({"command": undo, "patience": 0});
        json!({"id": id, "machinePattern": "^m$", "detail": {"command": command, "undo": undo}})
    };
    let stuck = experiment("stuck", "true", "echo stuck; exit 4");
    let stuck = a.call("POST", tasks, "/api/v1/task?wait=30s", Some(&stuck), 200);
    let undone = &stuck["data"]["result"][0]["undo"];
    assert_eq!(
        (&undone["state"], &undone["exitCode"]),
        (&json!("failed"), &json!(4))
    );
    let unclean = a.call("GET", tasks, "/api/v1/task?clean=0", None, 200);
    assert_eq!(common::ids(&unclean["data"]), ["stuck"]);
    a.call("GET", tasks, "/api/v1/task?clean=maybe", None, 400);
    let dirty = a.call("GET", report, "/api/v1/task/stuck/report", None, 200);
    assert_eq!(dirty["data"]["verdict"], "dirty");
    a.call("DELETE", one, "/api/v1/task/stuck", None, 409);
    a.call("POST", undo, "/api/v1/task/stuck/undo?machine=m", None, 200);
    wait_for("another undo", || {
        let undo = a.server.task("stuck")["result"][0]["undo"].clone();
        undo["state"] == "failed" && undo["reason"] == "byHand"
    });
    a.call("GET", one, "/api/v1/task/stuck", None, 200);
    let forgiven = a.call("POST", forgive, "/api/v1/task/stuck/forgive", None, 200);
    assert_eq!(forgiven["data"]["undos"]["forgiven"], 1, "{forgiven}");
    a.call("POST", forgive, "/api/v1/task/stuck/forgive", None, 409);
    let report_of = |a: &mut Answers, id: &str| {
        let target = format!("/api/v1/task/{id}/report");
        a.call("GET", report, &target, None, 200)["data"]["verdict"].clone()
    };
    assert_eq!(report_of(a, "stuck"), "passed");
    a.call("DELETE", one, "/api/v1/task/stuck", None, 200);
    // Of tasks that have failed, were stopped, match nobody.
    assert_eq!(report_of(a, "complete-1"), "failed");
    assert_eq!(report_of(a, "stepped"), "stopped");
    a.call("GET", report, "/api/v1/task/none/report", None, 404);
    a.call(
        "GET",
        report,
        "/api/v1/task/stepped/report?format=pdf",
        None,
        400,
    );

    let running = experiment("running", "sleep 600", "true");
    a.call("POST", tasks, tasks, Some(&running), 200);
    wait_for("the undo is armed", || {
        a.server.task("running")["result"][0]["undo"]["state"] == "armed"
    });
    a.server.when("running", "running", 1);
    a.call("GET", one, "/api/v1/task/running", None, 200);
    assert_eq!(report_of(a, "running"), "unfinished");
    a.call("POST", undo, "/api/v1/task/running/undo", None, 409);
    a.call("GET", halt, halt, None, 200);
    let halted = a.call("POST", halt, halt, Some(&json!({"reason": "down"})), 200);
    assert_eq!(halted["data"]["canceled"], 1, "{halted}");
    a.call("POST", halt, "/api/v1/halt?all=1", Some(&json!({})), 400);
    a.call("GET", halt, halt, None, 200);
    let another = experiment("another", "true", "true");
    a.call("POST", tasks, tasks, Some(&another), 503);
    a.call("GET", "/api/v1/status", "/api/v1/status", None, 200);
    a.call("DELETE", halt, halt, None, 200);
    a.server.finished("running");
    let ended = a.call("GET", one, "/api/v1/task/running", None, 200);
    assert_eq!(ended["data"]["undos"]["done"], 1, "{ended}");
    assert_eq!(report_of(a, "running"), "stopped");
}

/// A schedule with every field that the description has.
fn schedules(a: &mut Answers) {
    let (all, one) = ("/api/v1/schedule", "/api/v1/schedule/{id}");
    let target = "/api/v1/schedule/complete";
    let mut complete = json!({
        "cron": "@daily", "timeZone": "Europe/Berlin", "overlap": "queueOne", "catchUp": "all", "startDeadline": "1h",
        "from": "2020-01-01T00:00:00+01:00", "until": "2190-01-01T00:00:00Z", "times": 3, "paused": false,
        "pauseAfterFailures": 3, "keep": 5, "task": {"machinePattern": "^m$", "detail": {"command": "exit 3"}},
    });
    let dry = format!("{target}?dryRun=1");
    a.call("PUT", one, &dry, Some(&complete), 200);
    a.call("PUT", one, target, Some(&complete), 200);
    let run = "/api/v1/schedule/{id}/run";
    let fired = format!("{target}/run");
    let fired = a.call("POST", run, &fired, None, 200);
    let task = fired["data"]["history"][0]["task"].as_str().unwrap();
    a.server.finished(task);
    let shown = a.call("GET", one, target, None, 200);
    assert_eq!(shown["data"]["history"][0]["state"], "failed", "{shown}");
    let path = format!("/api/v1/task/{task}");
    a.call("GET", "/api/v1/task/{id}", &path, None, 200);
    a.call("GET", all, all, None, 200);
    for what in ["pause", "resume"] {
        let path = format!("/api/v1/schedule/{{id}}/{what}");
        a.call("POST", &path, &format!("{target}/{what}"), None, 200);
    }
    complete["every"] = json!("1h");
    a.call("PUT", one, target, Some(&complete), 400);
    let fields = names(&a.description["components"]["schemas"]["NewSchedule"]["properties"]);
    assert_eq!(names(&complete), fields);
    complete["task"]["detail"]["command"] = json!("sleep 300");
    complete.as_object_mut().unwrap().remove("cron");
    a.call("PUT", one, target, Some(&complete), 200);
    let again = format!("{target}/run");
    let fired = a.call("POST", run, &again, None, 200);
    let waits = a.call("POST", run, &again, None, 200);
    assert!(waits["data"]["waits"]["reason"].is_string(), "{waits}");
    a.call("POST", run, &again, None, 409);
    a.call("DELETE", one, target, None, 200);
    a.call("GET", one, target, None, 404);
    let task = fired["data"]["history"][1]["task"].as_str().unwrap();
    let cancel = format!("/api/v1/task/{task}/cancel");
    a.call("POST", "/api/v1/task/{id}/cancel", &cancel, None, 200);
}

/// Everything a user may see, in as many states as can be had at once.
fn answers() -> Answers {
    let server = Server::with(&TOLD);
    let machine = tagged(&server, "m");
    let description = description();
    let mut a = Answers {
        server,
        description,
        cases: Vec::new(),
    };
    let (tasks, one) = ("/api/v1/task", "/api/v1/task/{id}");
    a.call("GET", tasks, tasks, None, 200);
    bring_hello(&a.server);
    a.call("GET", "/api/v1/blob", "/api/v1/blob", None, 200);
    let unknown = format!("/api/v1/blob/{}", "0".repeat(64));
    a.call("DELETE", "/api/v1/blob/{sha256}", &unknown, None, 404);
    let failed = complete(&a.server, &machine);
    a.call("POST", tasks, "/api/v1/task?dryRun=1", Some(&failed), 200);
    a.call("POST", tasks, "/api/v1/task?wait=30s", Some(&failed), 200);
    a.call("POST", tasks, tasks, Some(&failed), 409);
    a.call(
        "POST",
        tasks,
        tasks,
        Some(&json!({"machinePatern": "m"})),
        400,
    );
    a.call("GET", one, "/api/v1/task/complete-1", None, 200);
    a.call("GET", one, "/api/v1/task/complete-1?strict=1", None, 422);
    a.call("GET", one, "/api/v1/task/none", None, 404);
    let again = "/api/v1/task/status/new";
    let nobody = json!({"machinePattern": "^nobody$", "detail": {"argv": ["true"]}});
    a.call(
        "POST",
        again,
        "/api/v1/task/status/new?strict=1&wait=0.01",
        Some(&nobody),
        408,
    );
    let sleeps = a.call(
        "POST",
        tasks,
        tasks,
        Some(&task("echo begun; sleep 600")),
        200,
    );
    let sleeps = id(&sleeps["data"]).to_owned();
    a.server.when(&sleeps, "running", 1);
    a.call("GET", one, &format!("/api/v1/task/{sleeps}"), None, 200);
    a.call("DELETE", one, &format!("/api/v1/task/{sleeps}"), None, 409);
    let cancel = format!("/api/v1/task/{sleeps}/cancel");
    a.call("POST", "/api/v1/task/{id}/cancel", &cancel, None, 200);
    a.server.finished(&sleeps);
    let rerun = "/api/v1/task/{id}/rerun";
    a.call(
        "POST",
        rerun,
        "/api/v1/task/complete-1/rerun?wait=30s",
        None,
        200,
    );
    a.call("POST", rerun, "/api/v1/task/none/rerun", None, 404);
    a.server.run(task("true"));
    let listed = a.call("GET", tasks, "/api/v1/task?limit=2", None, 200);
    assert!(listed["next"].is_string(), "{listed}");
    a.call("GET", tasks, tasks, None, 200);
    a.call("GET", "/api/v1/machine", "/api/v1/machine", None, 200);
    groups(&mut a);
    crew(&mut a);
    rollouts(&mut a);
    experiments(&mut a);
    schedules(&mut a);
    a.call("GET", "/healthz", "/healthz", None, 200);
    // By HTTP/1.0: without chunks, ended by the connection's end.
    let mut connection = a.server.connect();
    let target = "/api/v1/task/complete-1/output?format=json";
    connection.send(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes());
    let events = String::from_utf8(connection.rest()).unwrap();
    let (head, events) = events.split_once("\r\n\r\n").expect("an answer");
    let output = &a.description["paths"]["/api/v1/task/{id}/output"]["get"];
    let kinds = output["responses"]["200"]["content"].as_object().unwrap();
    let kind = kinds
        .iter()
        .find(|(kind, _)| head.contains(&format!("Content-Type: {kind}\r\n")));
    let schema = kind.expect(head).1["schema"].clone();
    let lines = events.lines().filter(|line| !line.is_empty());
    let lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    assert!(lines.len() > 5, "{lines:?}");
    for line in lines {
        a.note("an event", schema.clone(), line);
    }
    let deleted = a.call("DELETE", one, &format!("/api/v1/task/{sleeps}"), None, 200);
    assert!(deleted["data"].is_null());
    a
}

#[test]
fn what_the_server_answers_fits_the_schemas() {
    let known = Command::new("python3")
        .args(["-c", "import jsonschema"])
        .stderr(Stdio::null())
        .status();
    if !known.is_ok_and(|status| status.success()) {
        return println!(
            "skipped: Python's jsonschema is not installed (apt-get install python3-jsonschema)"
        );
    }
    let mut answers = answers();
    let mut components = answers.description["components"].take();
    forbid_unknown(&mut components);
    let complaints = |cases: &[Value]| {
        let mut python = Command::new("python3")
            .args(["-c", VALIDATOR])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let given = json!({"components": components, "cases": cases}).to_string();
        python
            .stdin
            .take()
            .unwrap()
            .write_all(given.as_bytes())
            .unwrap();
        let output = python.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(answers.cases.len() > 20);
    assert_eq!(complaints(&answers.cases), "");
    // It would have noticed: a member too many, one too few, one of another type.
    let task = answers
        .cases
        .iter()
        .find(|case| case[2]["data"]["id"] == "complete-1");
    let case = task.expect("the task").clone();
    for change in [
        |task: &mut Value| task["new"] = json!(1),
        |task: &mut Value| drop(task.as_object_mut().unwrap().remove("counts")),
        |task: &mut Value| task["result"][0]["exitCode"] = json!("3"),
    ] {
        let mut case = case.clone();
        change(&mut case[2]["data"]);
        assert_ne!(complaints(&[case]), "");
    }
}
