//! What a bad server can do to an agent: its memory and its time are bounded.
#![cfg(feature = "agent")]

mod fake;

use fake::gate::{Act, Gate, reply};
use fake::{Agent, Server, eventually};
use serde_json::json;
use sidebike::wire::task::ExecutionState;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// The memory of its own that an agent may have beside the output of its commands, in KiB.
const MAX_OWN_KIB: u64 = 16 << 10;
/// A little less than the longest answer that an agent of four jobs reads.
const LONG: usize = (4 << 20) + 30_000;
/// How many bad answers of each kind an agent gets.
const ROUNDS: usize = 4;

/// A kind of bad answers, by their number.
type Bad = fn(usize) -> String;

fn answer(data: String) -> String {
    format!(r#"{{"signal":1,"msg":"","data":{data}}}"#)
}

/// As many of them as fit.
fn list(field: &str, entry: impl Fn(usize) -> String, most: usize) -> String {
    let mut text = format!(r#"{{"{field}":["#);
    for n in 0..most {
        let entry = entry(n);
        if text.len() + entry.len() > LONG - 200 {
            break;
        }
        if n > 0 {
            text.push(',');
        }
        text.push_str(&entry);
    }
    answer(text + "]}")
}

fn start(id: &str, name: &str, detail: &str) -> String {
    format!(
        r#"{{"execution":"{id}","attempt":1,"taskId":"t","taskName":"{name}","detail":{detail}}}"#
    )
}

const SLEEP: &str = r#"{"argv":["sleep","300"]}"#;

const BAD: [(&str, Bad); 11] = [
    ("starts without end", |round| {
        list(
            "start",
            |n| start(&format!("{round}.{n}"), "x", SLEEP),
            4_000,
        )
    }),
    ("more starts than any agent has jobs", |round| {
        list(
            "start",
            |n| start(&format!("{round}.{n}"), "x", "0"),
            100_000,
        )
    }),
    ("a long detail", |round| {
        let stdin = "x".repeat(LONG - 1_000);
        let detail = json!({"argv": ["sleep", "300"], "stdin": stdin}).to_string();
        list("start", |_| start(&format!("{round}.0"), "x", &detail), 1)
    }),
    ("details of many values", |round| {
        let zeros = format!("[{}0]", "0,".repeat(500_000));
        list("start", |n| start(&format!("{round}.{n}"), "x", &zeros), 10)
    }),
    ("a long id", |round| {
        let id = format!("{round}-{}", "i".repeat(LONG - 1_000));
        list("start", |_| start(&id, "x", SLEEP), 1)
    }),
    ("a long name", |round| {
        let name = "n".repeat(LONG - 1_000);
        list("start", |_| start(&format!("{round}.0"), &name, SLEEP), 1)
    }),
    ("unknown fields", |round| {
        let zeros = "0,".repeat(LONG / 2 - 1_000);
        let order = start(&format!("{round}.0"), "x", SLEEP);
        let order = order.trim_end_matches('}');
        list("start", |_| format!("{order},\"other\":[{zeros}0]}}}}"), 1)
    }),
    ("cancels without end", |_| {
        list(
            "cancel",
            |n| format!(r#"{{"execution":"{n}","attempt":1}}"#),
            usize::MAX,
        )
    }),
    ("long ids to forget", |round| {
        let id = |n| {
            format!(
                r#"{{"execution":"{round}-{n}-{}","attempt":1}}"#,
                "f".repeat(900)
            )
        };
        list("forget", id, 4_000)
    }),
    ("a long message", |_| {
        let msg = "m".repeat(LONG - 1_000);
        format!(r#"{{"signal":-1,"msg":"{msg}","data":null}}"#)
    }),
    ("an answer without end", |_| " ".repeat(40 << 20)),
];

#[test]
fn no_answer_of_a_server_takes_more_memory() {
    for (name, bad) in BAD {
        let server = Server::new();
        let polls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&polls);
        let gate = Gate::new(server.port, move |call, _| match call {
            "poll" if count.load(Ordering::SeqCst) < ROUNDS => {
                reply(200, &bad(count.fetch_add(1, Ordering::SeqCst)))
            }
            _ => Act::Pass,
        });
        let agent = Agent::start_behind(&gate, &["--jobs", "4"], &[]);
        let mut most = 0;
        eventually(name, || {
            most = most.max(agent.own_kib());
            // The next poll goes to the server: the bad answers have been read.
            !server.wait(|_| true).polls.is_empty()
        });
        most = most.max(agent.own_kib());
        println!("{name}: {most} KiB");
        assert!(polls.load(Ordering::SeqCst) >= ROUNDS);
        assert!(most < MAX_OWN_KIB, "{name}: {most} KiB");
        let holds = server.wait(|_| true).polls.last().unwrap().holds.len();
        assert!(holds <= 4 + 16, "{name}: {holds} held");
    }
}

#[test]
fn orders_beyond_the_jobs_are_refused_and_the_others_run() {
    let server = Server::new();
    let polls = AtomicUsize::new(0);
    let gate = Gate::new(server.port, move |call, _| {
        match (
            call,
            polls.fetch_add(usize::from(call == "poll"), Ordering::SeqCst),
        ) {
            ("poll", 0) => reply(
                200,
                &list(
                    "start",
                    |n| start(&format!("x.{n}"), "x", "{\"argv\":[\"true\"]}"),
                    1_000,
                ),
            ),
            _ => Act::Pass,
        }
    });
    let agent = Agent::start_behind(&gate, &["--jobs", "2"], &[]);
    for n in 0..2 {
        assert_eq!(
            server.result(&format!("x.{n}")).state,
            ExecutionState::Succeeded
        );
    }
    eventually("it is said", || {
        agent
            .log()
            .contains("it is refused: there are more than this agent takes at once")
    });
    // What was refused was not started, and may be ordered again.
    server.start("x.999", json!({"argv": ["true"]}));
    assert_eq!(server.result("x.999").state, ExecutionState::Succeeded);
    assert!(server.wait(|_| true).dones.len() < 100);
}

#[test]
fn a_token_is_masked_in_one_pass() {
    const TOKEN: &str = "a-token-of-this-agent";
    let server = Server::new();
    let body = format!("{{\"signal\":-1,\"msg\":\"{}\"}}", TOKEN.repeat(150_000));
    let gate = Gate::new(server.port, move |_, _| reply(422, &body));
    let begun = Instant::now();
    let agent = Agent::start_behind(&gate, &[], &[("SIDEBIKE_AGENT_TOKEN", TOKEN)]);
    eventually("it is said", || {
        agent.log().contains("refused with 422: ......")
    });
    let took = begun.elapsed();
    assert!(took.as_secs() < 5, "{took:?}");
    assert!(!agent.log().contains(TOKEN));
}

#[test]
fn output_that_the_server_has_taken_does_not_fill_the_agent() {
    // Together more than the 64 MiB at which an agent takes no more work.
    const COMMANDS: usize = 140;
    // As much as is kept of the beginning of a stream.
    const BYTES: usize = 256 << 10;
    let server = Server::new();
    let _agent = Agent::start(&server, &["--jobs", "200"], &[]);
    server.until(|seen| !seen.polls.is_empty());
    let line = format!("head -c {BYTES} /dev/zero; head -c {BYTES} /dev/zero >&2; sleep 300");
    let names: Vec<String> = (0..COMMANDS).map(|n| format!("x.{n}")).collect();
    for name in &names {
        server.start(name, json!({"command": line}));
    }
    for name in &names {
        server.until(|seen| seen.bytes(name) == 2 * BYTES as u64);
    }
    let polls = server.wait(|_| true).polls.len();
    server.start("next", json!({"argv": ["true"]}));
    server.result("next");
    let seen = server.wait(|seen| seen.polls.len() > polls);
    let last = seen.polls.last().unwrap();
    assert!(last.holds.len() >= COMMANDS && !last.draining);
}
