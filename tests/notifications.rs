//! Notifications, from outside: the real server tells a receiver of the test, which is slow, closed, redirects, fails,
//! answers too much; the server is killed between the end of a task and the delivery.
//!
//! To add a case: a [`Reaction`] of the receiver, and what becomes of the notification.
#![cfg(all(feature = "server", feature = "agent", feature = "cli", feature = "db"))]

#[cfg(feature = "tls")]
mod authority;
mod common;
mod receiver;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::said::sidebike;
use common::{Folder, SIDEBIKE, Server, free_address, id, task, wait_for, wait_until};
use hmac::{Hmac, KeyInit, Mac};
use receiver::{Reaction, Received, Receiver};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::Sha256;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

/// All of this machine's own receivers.
const ALLOW: [&str; 2] = ["--webhook-allow", r"^http://127\.0\.0\.1:\d+$"];
/// No pause between two tries.
const HASTY: [&str; 2] = ["--webhook-pause", "1ms"];
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SECOND: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

fn server(flags: &[&str]) -> Server {
    Server::with(&[&ALLOW[..], flags].concat())
}

/// A task that tells this URL of these events.
fn telling(url: &str, on: Value, command: &str) -> Value {
    let mut task = task(command);
    task["notify"] = json!([{"url": url, "on": on}]);
    task
}

/// Waits until the only notification of a task is in that state.
fn notified(server: &Server, task: &str, state: &str) -> Value {
    wait_until(&format!("the notification is {state}"), || {
        let told = server.task(task)["notifications"][0].take();
        (told["state"] == state).then_some(told)
    })
}

/// Waits until the last try of the only notification has failed for that reason.
fn failed_with(server: &Server, task: &str, why: &str) -> Value {
    wait_until(why, || {
        let told = server.task(task)["notifications"][0].take();
        let error = told["lastError"].as_str().unwrap_or_default();
        error.contains(why).then_some(told)
    })
}

/// The signature of a request by a secret.
fn signature(request: &Received, secret: &str) -> String {
    let secret = STANDARD.decode(&secret["whsec_".len()..]).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret).unwrap();
    let of = |name: &str| request.header(name).expect(name).to_owned();
    mac.update(format!("{}.{}.", of("webhook-id"), of("webhook-timestamp")).as_bytes());
    mac.update(&request.body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[test]
fn the_end_of_a_task_is_told_signed_and_without_its_output() {
    let receiver = Receiver::new(|_| Reaction::Answer(204));
    let mut command = Command::new(SIDEBIKE);
    command.args(["server", "--listen", "127.0.0.1:0"]);
    command.args(ALLOW);
    command.args(["--public-url", "https://sidebike.example/x/"]);
    command.env("SIDEBIKE_WEBHOOK_SECRET", SECRET);
    // No proxy comes between.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.set_nonblocking(true).unwrap();
    let proxied = format!("http://{}", proxy.local_addr().unwrap());
    command
        .env("HTTP_PROXY", &proxied)
        .env("ALL_PROXY", &proxied);
    let server = Server::from_command(command);
    let _agent = server.agent("m1");
    let mut task = task("echo s3cret-output");
    task["name"] = "backup".into();
    task["group"] = "nightly".into();
    task["tags"] = json!({"team": "pay"});
    task["notify"] = json!([{"url": receiver.url() + "?key=1"}]);
    let task = server.run(task);
    assert_eq!(task["notify"][0]["on"], json!(["ended"]));
    let request = receiver.until(1).remove(0);
    assert_eq!(request.line, "POST /hook?key=1 HTTP/1.1");
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(
        request.header("webhook-signature"),
        Some(&*signature(&request, SECRET))
    );
    let sent: u64 = request
        .header("webhook-timestamp")
        .unwrap()
        .parse()
        .unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    assert!(now.unwrap().as_secs().abs_diff(sent) < 60, "{sent}");
    let body = request.json();
    for field in [
        "id",
        "name",
        "group",
        "tags",
        "state",
        "machinePattern",
        "mode",
        "matched",
        "counts",
        "createdAt",
        "finishedAt",
    ] {
        assert_eq!(body[field], task[field], "{field}");
    }
    assert_eq!(
        (&body["event"], &body["state"]),
        (&json!("ended"), &json!("succeeded"))
    );
    assert_eq!(body["startedAt"], task["result"][0]["startedAt"]);
    let link = format!("https://sidebike.example/x/#/task/{}", id(&task));
    assert_eq!(
        body["link"].as_str().map(|link| link.replace("%2D", "-")),
        Some(link)
    );
    assert!(!String::from_utf8_lossy(&request.body).contains("s3cret"));
    let told = notified(&server, id(&task), "delivered");
    assert_eq!(told["tries"], 1);
    assert_eq!(told["id"].as_str(), request.header("webhook-id"));
    assert_eq!(told["url"], receiver.url() + "?key=1");
    assert!(
        told["lastError"].is_null() && told["nextTry"].is_null(),
        "{told}"
    );
    assert!(proxy.accept().is_err(), "a proxy was asked");
    assert!(server.get("/api/v1/task").data()[0]["notifications"].is_null());
    let metrics = server.get("/metrics");
    for line in [
        "sidebike_notifications_pending 0",
        "sidebike_notifications_total{state=\"delivered\"} 1",
        "sidebike_notifications_total{state=\"dead\"} 0",
        "sidebike_notification_failures_total 0",
    ] {
        assert!(metrics.text().lines().any(|it| it == line), "{line}");
    }
}

#[test]
fn nobody_is_told_unless_the_server_allows_it() {
    let off = Server::start();
    let refused = off.post(
        "/api/v1/task",
        &telling("http://127.0.0.1:1/", json!(["ended"]), "true"),
    );
    assert_eq!(refused.status, 422, "{}", refused.text());
    let msg = refused.msg();
    assert!(
        msg.starts_with("notify[0].url: notifications are off") && msg.contains("--webhook-allow"),
        "{msg}"
    );
    let server = server(&[]);
    let refused = |task: &Value| server.post("/api/v1/task", task);
    let other = telling("https://hooks.example/x?k=s3cret", json!(["ended"]), "true");
    let answer = refused(&other);
    assert_eq!(answer.status, 422);
    assert!(
        answer
            .msg()
            .contains("https://hooks.example:443 is not allowed"),
        "{}",
        answer.msg()
    );
    assert!(!answer.msg().contains("s3cret"));
    let dry = server.post("/api/v1/task?dryRun=1", &other).data();
    assert_eq!(dry["ok"], false, "{dry}");
    for (notify, why) in [
        (
            json!([{"url": "http://u:s3cret@127.0.0.1:1/"}]),
            "notify[0].url: expected a URL",
        ),
        (
            json!([{"url": "ftp://h/"}]),
            "notify[0].url: expected a URL",
        ),
        (
            json!([{"url": "http://127.0.0.1:1/", "on": []}]),
            "notify[0].on: must name at least one",
        ),
        (
            json!([{"url": "http://127.0.0.1:1/", "on": ["begun"]}]),
            "notify[0].on[0]",
        ),
        (
            json!([{"url": "http://127.0.0.1:1/", "to": 1}]),
            "notify[0].to",
        ),
        (json!([{"on": ["ended"]}]), "notify[0]"),
        (json!(["http://127.0.0.1:1/"]), "notify[0]"),
        (
            json!(vec![json!({"url": "http://127.0.0.1:1/"}); 5]),
            "notify: must have 4 entries at most",
        ),
    ] {
        let mut task = task("true");
        task["notify"] = notify;
        let answer = refused(&task);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(
            answer.msg().starts_with(why) && !answer.msg().contains("s3cret"),
            "{}",
            answer.msg()
        );
    }
    for wrong in ["", "("] {
        let started = Command::new(SIDEBIKE)
            .args([
                "server",
                "--listen",
                "127.0.0.1:0",
                "--webhook-allow",
                wrong,
            ])
            .output()
            .unwrap();
        assert_eq!(started.status.code(), Some(2));
        let said = String::from_utf8_lossy(&started.stderr).into_owned();
        assert!(said.contains("--webhook-allow: "), "{said}");
    }
}

#[test]
fn what_fails_nine_times_is_tried_a_tenth_time() {
    let receiver = Receiver::new(|nth| match nth {
        0 => Reaction::Close,
        1 => Reaction::Answer(404),
        2 => Reaction::Answer(410),
        3 => Reaction::HugeHead,
        4..9 => Reaction::Answer(503),
        _ => Reaction::Answer(200),
    });
    let server = server(&HASTY);
    let _agent = server.agent("m1");
    let task = server.run(telling(&receiver.url(), json!(["ended"]), "true"));
    let told = notified(&server, id(&task), "delivered");
    assert_eq!(told["tries"], 10, "{told}");
    let received = receiver.until(10);
    assert_eq!(received.len(), 10);
    let first = &received[0];
    for request in &received {
        assert_eq!(request.header("webhook-id"), first.header("webhook-id"));
        assert_eq!(request.body, first.body, "what is repeated is the same");
    }
    assert_eq!(server.metric("sidebike_notification_failures_total"), 9);
}

#[test]
fn what_fails_ten_times_is_given_up_and_nothing_secret_is_logged() {
    let receiver = Receiver::new(|_| Reaction::Answer(500));
    let server = server(&HASTY);
    let _agent = server.agent("m1");
    let url = receiver.url() + "?key=s3cret";
    let task = server.run(telling(&url, json!(["ended"]), "true"));
    let told = notified(&server, id(&task), "dead");
    assert_eq!(
        (&told["tries"], &told["nextTry"]),
        (&json!(10), &Value::Null)
    );
    assert_eq!(told["lastError"], "after 10 tries: it answers 500");
    let given_up = server.process.logged(" is given up: ");
    assert!(given_up.contains("it answers 500"), "{given_up}");
    assert!(!server.process.log().join("\n").contains("s3cret"));
    assert_eq!(receiver.received().len(), 10);
    let metrics = server.get("/metrics");
    let line = "sidebike_notifications_total{state=\"dead\"} 1";
    assert!(metrics.text().contains(line), "{}", metrics.text());
    let shown = sidebike(&server, &["show", id(&task)]);
    assert!(
        shown
            .out
            .contains("given up, 10 tries: after 10 tries: it answers 500"),
        "{}",
        shown.out
    );
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::new(|_| Reaction::Answer(200));
    let to = elsewhere.url();
    let receiver = Receiver::new(move |_| Reaction::Redirect(to.clone()));
    let server = server(&[]);
    let _agent = server.agent("m1");
    let task = server.run(telling(&receiver.url(), json!(["ended"]), "true"));
    let told = failed_with(&server, id(&task), "redirects are not followed");
    assert_eq!(told["state"], "pending");
    assert!(elsewhere.received().is_empty());
}

#[test]
fn the_second_try_comes_after_five_seconds() {
    let receiver = Receiver::new(|nth| match nth {
        0 => Reaction::Answer(503),
        _ => Reaction::HugeBody,
    });
    let server = server(&[]);
    let _agent = server.agent("m1");
    let task = server.run(telling(&receiver.url(), json!(["ended"]), "true"));
    let waits = failed_with(&server, id(&task), "it answers 503");
    assert!(waits["nextTry"].is_string(), "{waits}");
    let received = receiver.until(2);
    let pause = received[1].at - received[0].at;
    assert!(pause >= Duration::from_millis(4_900), "{pause:?}");
    // Of an answer that never ends only the head is read.
    notified(&server, id(&task), "delivered");
}

#[test]
fn each_event_is_told_once_and_only_final_ends_count() {
    let receiver = Receiver::new(|_| Reaction::Answer(200));
    let folder = Folder::new();
    let server = server(&[]);
    let _agents = (server.agent("m1"), server.agent("m2"));
    let all = json!(["started", "ended", "failed", "stopped", "missed"]);
    let told_of = |id: &str| {
        let received = receiver.received().into_iter();
        let mut events: Vec<String> = received
            .filter(|request| request.json()["id"] == id)
            .map(|request| request.event())
            .collect();
        events.sort();
        events
    };
    let until = |id: &str, expected: &[&str]| {
        wait_for(&format!("{id} is told as {expected:?}"), || {
            told_of(id).len() >= expected.len()
        });
        assert_eq!(told_of(id), expected, "{id}");
    };
    // On two machines; on each it fails once before it succeeds.
    let line = format!(
        "mkdir {}/$SIDEBIKE_MACHINE_LABEL || exit 0; exit 1",
        folder.path()
    );
    let mut good = telling(&receiver.url(), all.clone(), &line);
    good["id"] = "good".into();
    good["retry"] = json!({"max": 1});
    server.run(good);
    until("good", &["ended", "started"]);
    let mut bad = telling(&receiver.url(), all.clone(), "exit 1");
    bad["id"] = "bad".into();
    bad["retry"] = json!({"max": 1});
    let bad = server.run(bad);
    until("bad", &["ended", "failed", "started"]);
    let mut stopped = telling(&receiver.url(), all.clone(), "sleep 600");
    stopped["id"] = "stopped".into();
    let stopped = server.submit(stopped);
    server.when("stopped", "running", 2);
    server.post("/api/v1/task/stopped/stop?running=1", &Value::Null);
    server.finished(id(&stopped));
    until("stopped", &["ended", "failed", "started", "stopped"]);
    let mut never = telling(&receiver.url(), all, "true");
    never["id"] = "never".into();
    never["machinePattern"] = "nobody".into();
    server.submit(never);
    server.post("/api/v1/task/never/cancel", &Value::Null);
    until("never", &["ended", "failed"]);
    // A rerun tells the same, as another task.
    let again = server
        .post(&format!("/api/v1/task/{}/rerun", id(&bad)), &Value::Null)
        .data();
    server.finished(id(&again));
    until(id(&again), &["ended", "failed", "started"]);
    let ids: Vec<String> = { receiver.received().into_iter() }
        .map(|request| request.header("webhook-id").unwrap().to_owned())
        .collect();
    let different: std::collections::BTreeSet<&String> = ids.iter().collect();
    assert_eq!(
        ids.len(),
        different.len(),
        "each has its own id, and came once"
    );
    let request = { receiver.received().into_iter() }
        .find(|request| request.event() == "stopped")
        .unwrap();
    assert_eq!(request.json()["stoppedBy"]["kind"], "user");
    assert_eq!(request.json()["state"], "running");
}

#[test]
fn a_slow_receiver_gets_two_at_once_and_others_do_not_wait_for_it() {
    let slow = Receiver::new(|_| Reaction::Late(Duration::from_secs(2)));
    let quick = Receiver::new(|_| Reaction::Answer(200));
    let server = server(&[]);
    let _agent = server.agent("m1");
    let tasks: Vec<Value> = (0..5)
        .map(|_| server.run(telling(&slow.url(), json!(["ended"]), "true")))
        .collect();
    let last = server.run(telling(&quick.url(), json!(["ended"]), "true"));
    notified(&server, id(&last), "delivered");
    assert!(
        slow.received().len() < 5,
        "it did not wait for the slow one"
    );
    for task in &tasks {
        notified(&server, id(task), "delivered");
    }
    assert_eq!(slow.most_at_once(), 2);
}

#[test]
fn what_was_not_told_when_the_server_was_killed_is_told_afterwards() {
    let folder = Folder::new();
    let db = folder.file("db");
    let flags = ["--db", &db];
    let address = free_address();
    let url = format!("http://{address}/hook");
    let mut server = server(&flags);
    let agent = server.agent("m1");
    let task = server.run(telling(&url, json!(["started", "ended"]), "true"));
    let kept = wait_until("both were tried", || {
        let told = server.task(id(&task))["notifications"].take();
        let tried = |n: usize| told[n]["tries"].as_u64() >= Some(1);
        (tried(0) && tried(1)).then_some(told)
    });
    assert_eq!(
        (&kept[0]["event"], &kept[1]["event"]),
        (&json!("started"), &json!("ended"))
    );
    server.process.kill_9();
    drop(agent);
    let receiver = Receiver::at(&address.to_string(), |_| Reaction::Answer(200));
    let mut server = self::server(&flags);
    let received = receiver.until(2);
    let mut ids: Vec<&str> = received
        .iter()
        .filter_map(|it| it.header("webhook-id"))
        .collect();
    let mut expected = [
        kept[0]["id"].as_str().unwrap(),
        kept[1]["id"].as_str().unwrap(),
    ];
    ids.sort();
    expected.sort();
    assert_eq!(ids, expected);
    wait_for("both are delivered", || {
        let told = server.task(id(&task))["notifications"].take();
        let is_done =
            |n: usize| told[n]["state"] == "delivered" && told[n]["tries"].as_u64() >= Some(2);
        is_done(0) && is_done(1)
    });
    // What was delivered stays so, and is not told again: a server that ends by itself has saved it.
    server.process.signal(Signal::TERM);
    server.process.ended();
    drop(server);
    let server = self::server(&flags);
    let told = server.task(id(&task))["notifications"].take();
    assert_eq!(
        (&told[0]["state"], &told[1]["state"]),
        (&json!("delivered"), &json!("delivered"))
    );
    assert_eq!(server.metric("sidebike_notifications_pending"), 0);
    assert_eq!(receiver.received().len(), 2);
}

#[test]
fn killed_at_any_moment_every_end_is_told_at_least_once() {
    let folder = Folder::new();
    let db = folder.file("db");
    let receiver = Receiver::new(|nth| match nth % 3 {
        0 => Reaction::Close,
        _ => Reaction::Answer(200),
    });
    let address = free_address().to_string();
    let flags = [&ALLOW[..], &HASTY[..], &["--db", &db]].concat();
    let mut ids = Vec::new();
    let mut agent = None;
    for round in 0..8 {
        let mut server = Server::listening_on(&address, &flags);
        let agent = agent.get_or_insert_with(|| server.agent("m1"));
        server.expect(&[agent]);
        for n in 0..4 {
            let task = server.submit(telling(&receiver.url(), json!(["ended"]), "true"));
            ids.push(id(&task).to_owned());
            if n == round % 4 {
                server.finished(id(&task));
            }
        }
        server.process.kill_9();
    }
    let server = Server::listening_on(&address, &flags);
    for id in &ids {
        server.finished(id);
        notified(&server, id, "delivered");
    }
    let received = receiver.received();
    for id in &ids {
        let told: Vec<&Received> = received
            .iter()
            .filter(|it| it.json()["id"] == **id)
            .collect();
        assert!(!told.is_empty(), "{id} was never told");
        assert!(
            told.iter()
                .all(|it| it.header("webhook-id") == told[0].header("webhook-id"))
        );
        assert!(
            told.iter().all(|it| it.json()["state"] == "succeeded"),
            "nothing is told that a crash undid"
        );
    }
}

#[test]
fn what_is_still_to_be_told_of_a_forgotten_task_is_told() {
    let address = free_address();
    let server = server(&["--webhook-pause", "100ms"]);
    let _agent = server.agent("m1");
    let task = server.run(telling(
        &format!("http://{address}/"),
        json!(["ended"]),
        "true",
    ));
    failed_with(&server, id(&task), "unreachable");
    let deleted = server.request("DELETE", &format!("/api/v1/task/{}", id(&task)), b"");
    assert_eq!(deleted.status, 200);
    assert_eq!(server.metric("sidebike_notifications_pending"), 1);
    let receiver = Receiver::at(&address.to_string(), |_| Reaction::Answer(200));
    assert_eq!(receiver.until(1)[0].json()["id"], task["id"]);
    wait_for("nothing waits", || {
        server.metric("sidebike_notifications_pending") == 0
    });
}

#[test]
fn a_server_that_ends_does_not_wait_for_a_receiver() {
    let folder = Folder::new();
    let db = folder.file("db");
    let flags = ["--db", &db];
    let receiver = Receiver::new(|nth| match nth {
        0 => Reaction::Hang,
        _ => Reaction::Answer(200),
    });
    let mut server = server(&flags);
    let agent = server.agent("m1");
    let task = server.run(telling(&receiver.url(), json!(["ended"]), "true"));
    receiver.until(1);
    drop(agent);
    let begin = Instant::now();
    server.process.signal(Signal::TERM);
    assert!(server.process.ended().success());
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    let server = self::server(&flags);
    let told = notified(&server, id(&task), "delivered");
    assert_eq!(told["tries"], 1, "what was given up is no try");
    assert_eq!(receiver.until(2).len(), 2);
}

#[test]
fn the_machine_itself_is_told_only_if_it_is_named() {
    let receiver = Receiver::new(|_| Reaction::Answer(200));
    let port = receiver.address.port();
    let server = Server::with(&["--webhook-allow", ".*"]);
    server
        .process
        .logged("matches any part of scheme://host:port");
    let _agent = server.agent("m1");
    for host in [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "127.1",
        "2130706433",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
    ] {
        let task = server.run(telling(
            &format!("http://{host}:{port}/"),
            json!(["ended"]),
            "true",
        ));
        let told = failed_with(&server, id(&task), "its address ");
        let why = told["lastError"].as_str().unwrap();
        assert!(
            why.contains("loopback") || why.contains("metadata"),
            "{host}: {why}"
        );
    }
    assert!(receiver.received().is_empty());
    // By another name of an address that is named.
    let named = Server::with(&[
        "--webhook-allow",
        r"^http://(127\.0\.0\.1|localhost|127\.1):",
    ]);
    let _agent = named.agent("m1");
    for host in ["127.0.0.1", "localhost", "127.1"] {
        let task = named.run(telling(
            &format!("http://{host}:{port}/"),
            json!(["ended"]),
            "true",
        ));
        notified(&named, id(&task), "delivered");
    }
}

#[test]
fn secrets_are_exchanged_while_the_server_runs_and_never_shown() {
    let folder = Folder::new();
    let file = folder.file("secret");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    let receiver = Receiver::new(|_| Reaction::Answer(200));
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .args(ALLOW);
    command.env("SIDEBIKE_WEBHOOK_SECRET_FILE", &file);
    let server = Server::from_command(command);
    let _agent = server.agent("m1");
    let signatures = |nth: usize| {
        server.run(telling(&receiver.url(), json!(["ended"]), "true"));
        let request = receiver.until(nth).remove(nth - 1);
        let signed = request.header("webhook-signature").unwrap().to_owned();
        let by = |secret: &str| {
            signed
                .split(' ')
                .any(|it| it == signature(&request, secret))
        };
        (signed.split(' ').count(), by(SECRET), by(SECOND))
    };
    assert_eq!(signatures(1), (1, true, false));
    std::fs::write(&file, format!("{SECRET}\n{SECOND}\n")).unwrap();
    server.process.signal(Signal::HUP);
    server
        .process
        .logged("2 secrets of notifications are in use");
    assert_eq!(signatures(2), (2, true, true));
    std::fs::write(&file, format!("{SECOND}\n")).unwrap();
    server.process.signal(Signal::HUP);
    server
        .process
        .logged("1 secrets of notifications are in use");
    assert_eq!(signatures(3), (1, false, true));
    std::fs::write(&file, "s3cret\n").unwrap();
    server.process.signal(Signal::HUP);
    server.process.logged("the secrets in use stay in use");
    assert_eq!(signatures(4), (1, false, true));
    let log = server.process.log().join("\n");
    for secret in [&SECRET[6..], &SECOND[6..], "s3cret", "NOT SIGNED"] {
        assert!(!log.contains(secret), "{log}");
    }
    let wrong = Command::new(SIDEBIKE)
        .args(["server", "--listen", "127.0.0.1:0"])
        .args(ALLOW)
        .env("SIDEBIKE_WEBHOOK_SECRET", "s3cret")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        said.contains("SIDEBIKE_WEBHOOK_SECRET: expected whsec_") && !said.contains("s3cret"),
        "{said}"
    );
}

#[test]
fn without_a_secret_the_server_warns_and_nothing_is_signed() {
    let receiver = Receiver::new(|_| Reaction::Answer(200));
    let server = server(&[]);
    server.process.logged("NOTIFICATIONS ARE NOT SIGNED");
    let _agent = server.agent("m1");
    server.run(telling(&receiver.url(), json!(["ended"]), "true"));
    let request = receiver.until(1).remove(0);
    assert!(request.header("webhook-id").is_some());
    assert_eq!(request.header("webhook-signature"), None);
}

#[test]
fn run_asks_for_notifications_and_show_tells_of_them() {
    let receiver = Receiver::new(|_| Reaction::Answer(200));
    let server = server(&[]);
    let _agent = server.agent("m1");
    let url = receiver.url() + "?a=b";
    let events = format!("{url}=started,failed");
    let ran = sidebike(
        &server,
        &[
            "run", "--name", "told", "--notify", &url, "--notify", &events, "--", "exit 4",
        ],
    );
    assert_eq!(ran.code, 4, "{}", ran.err);
    let mut told: Vec<String> = receiver.until(3).iter().map(Received::event).collect();
    told.sort();
    assert_eq!(told, ["ended", "failed", "started"]);
    let task = server.newest();
    assert_eq!(task["notify"][0], json!({"url": url, "on": ["ended"]}));
    wait_for("all are delivered", || {
        let shown = sidebike(&server, &["show", "told"]).out;
        shown.matches("/hook?a=b: delivered").count() == 3
    });
    let refused = sidebike(
        &server,
        &["run", "--notify", "http://other.example/", "--", "true"],
    );
    assert!(
        refused
            .err
            .contains("--notify[0].url: http://other.example:80 is not allowed"),
        "{}",
        refused.err
    );
}

#[cfg(feature = "tls")]
#[test]
fn a_receiver_with_https_has_to_be_vouched_for() {
    use authority::{Authority, OWN_NAMES};
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let ca = authority.file(&folder, "ca");
    let other = Authority::new().file(&folder, "other");
    // It answers, and that is all that matters here.
    let receiver = authority::server(&folder, &[]);
    let url = format!("https://{}/hook", receiver.address);
    for (ca, why) in [(&ca, "it answers 4"), (&other, "UnknownIssuer")] {
        let server = Server::with(&[
            "--webhook-allow",
            r"^https://127\.0\.0\.1:",
            "--webhook-ca",
            ca,
        ]);
        let _agent = server.agent("m1");
        let task = server.run(telling(&url, json!(["ended"]), "true"));
        failed_with(&server, id(&task), why);
    }
}
