//! What hostile callers can do: how long the one lock is held meanwhile, and the memory of a server under all of it.
//!
//! Each attack is one that once held the lock for long, or took memory that no limit counted. Those of agents need an
//! agent's token, those of readers one that allows to look only.

use crate::api::Api;
use crate::http::{Connection, request};
use crate::process::Server;
use crate::scale::{AGENTS, held};
use crate::setting::Setting;
use crate::table::{Row, mb, megabytes, time};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// The longest that the lock may be held, in seconds.
const LONGEST_HOLD: f64 = 0.005;
/// Machines with labels of their own beside the agents.
const MORE_LABELS: usize = 1_000;
/// Machines of the task with a lot of output, the output of each attempt in bytes, and its attempts.
const LOUD: usize = 20;
const LOUD_BYTES: usize = 640 << 10;
const LOUD_ATTEMPTS: usize = 3;
/// Pieces of one report: the most that there may be.
const PIECES: usize = 2_048;
/// Standard input of a task, in bytes: nearly a whole body.
const STDIN_BYTES: usize = 900_000;
/// Alternatives of a pattern.
const ALTERNATIVES: usize = 60;
/// Slow readers, and those who wait for one task.
const READERS: usize = 16;
const WAITERS: usize = 300;

/// What somebody does until the time is over. What the server refuses is no error: that is what limits are for.
type Attack = fn(SocketAddr, Instant) -> Result<(), String>;

const ATTACKS: [(&str, Attack); 9] = [
    ("a task with retries is looked at", look_at_loud_task),
    (
        "agents come and go while a lateJoin task is open",
        come_and_go,
    ),
    ("slow readers, and many who wait for one task", read_slowly),
    (
        "tasks with much standard input, and lists of them",
        submit_large,
    ),
    ("reports of many pieces for unknown ids", report_nonsense),
    ("new patterns of many alternatives", match_much),
    ("dry runs and lists of machines", list_machines),
    ("any tasks for machines that are busy", queue_for_any),
    ("new instances", appear),
];

/// How long the lock is held at most, with all agents there and each attack going on: each on a server of its own, as
/// the server tells its longest hold only.
pub fn lock(setting: &Setting) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for (what, attack) in ATTACKS {
        let (before, after) = longest_hold(setting, attack)?;
        rows.push(
            Row::new(format!("the lock's longest hold: {what}"), time(after))
                .beside(format!("{} before", time(before)))
                .target(format!("≤ {}", time(LONGEST_HOLD)), after <= LONGEST_HOLD),
        );
    }
    Ok(rows)
}

/// The longest hold when all agents have come, and after the attack.
fn longest_hold(setting: &Setting, attack: Attack) -> Result<(f64, f64), String> {
    let (server, fleet) = held(setting, AGENTS, &["--max-machines", "20000"])?;
    let fleet = fleet.in_background();
    let mut api = server.api();
    for n in 0..MORE_LABELS {
        poll(&mut api, &format!("{n:016x}"), &format!("more-{n}"), 1)?;
    }
    let before = api.metric("sidebike_lock_held_seconds_max")?;
    attack(server.address, Instant::now() + setting.span)?;
    let after = api.metric("sidebike_lock_held_seconds_max")?;
    fleet.end()?;
    Ok((before, after))
}

/// The limits of the server that is attacked from all sides, and the memory that each allows for, in MB: what it says,
/// or as many things as it allows, of the size that they are measured to have (`memory`, and the table of limits).
const LIMITS: [(&str, &str, f64); 7] = [
    ("--max-output", "32", 33.6),
    ("--max-details", "32", 33.6),
    ("--max-in-flight", "32", 33.6),
    // A kilobyte each; as many may be unfinished, ended in unfinished tasks, and ended.
    ("--max-executions", "10000", 30.0),
    // 7 KB each.
    ("--max-machines", "2000", 14.0),
    // Twice 128 KiB each.
    ("--max-patterns", "100", 26.2),
    // 16 KiB in buffers each.
    ("--max-connections", "2000", 32.8),
];
/// The server itself, its threads and what its allocator keeps for each of them.
const ITSELF_MB: f64 = 25.0;

/// The memory of a server while all attacks go on at once.
pub fn memory(setting: &Setting) -> Result<Vec<Row>, String> {
    let flags: Vec<&str> = LIMITS
        .iter()
        .flat_map(|(flag, value, _)| [*flag, *value])
        .collect();
    let server = Server::start(setting, &flags)?;
    let end = Instant::now() + setting.span.max(Duration::from_secs(10));
    thread::scope(|scope| {
        let attacks: Vec<_> = { ATTACKS.iter() }
            .map(|(_, attack)| scope.spawn(|| attack(server.address, end)))
            .collect();
        attacks
            .into_iter()
            .try_for_each(|attack| match attack.join() {
                Ok(done) => done,
                Err(_) => Err("an attack failed".into()),
            })
    })?;
    server.api().get("/healthz")?;
    let peak = server.process.kib("VmHWM")?;
    let allowed = ITSELF_MB
        + LIMITS
            .iter()
            .map(|(_, _, megabytes)| megabytes)
            .sum::<f64>();
    Ok(vec![
        Row::new(
            "server's memory under all attacks at once, at most",
            mb(peak),
        )
        .target(
            format!("≤ {allowed:.0} MB, the sum of its limits"),
            megabytes(peak) <= allowed,
        ),
    ])
}

/// A poll that is answered at once; the ids of what is to be started.
fn poll(api: &mut Api, instance: &str, label: &str, seq: u64) -> Result<Vec<Value>, String> {
    let poll = json!({"instance": instance, "seq": seq, "label": label, "jobs": 4, "wait": 0, "holds": []});
    let body = poll.to_string();
    let reply = api.raw(&request("POST", "/api/v1/agent/poll", "", body.as_bytes()))?;
    if reply.status != 200 {
        return Ok(Vec::new());
    }
    let mut data = reply.data();
    match data["start"].take() {
        Value::Array(start) => Ok(start),
        _ => Ok(Vec::new()),
    }
}

fn instance(of: &str, n: usize) -> String {
    let salt = of
        .bytes()
        .fold(0u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
    format!("{salt:08x}{n:08x}")
}

/// Sends, and takes whatever comes: the server may refuse.
fn send(api: &mut Api, method: &str, target: &str, body: &str) -> Result<(), String> {
    api.raw(&request(method, target, "", body.as_bytes()))
        .map(drop)
}

/// A task on some machines, each attempt with a lot of output.
fn loud_task(server: SocketAddr, name: &str) -> Result<(), String> {
    let mut api = Api::new(server);
    let label = |n: usize| format!("{name}-{n}");
    for n in 0..LOUD {
        poll(&mut api, &instance(name, n), &label(n), 1)?;
    }
    let task = json!({"name": name, "machinePattern": format!("^{name}-"), "detail": {"argv": ["x"]},
        "retry": {"max": LOUD_ATTEMPTS - 1, "on": ["failed"]}});
    send(&mut api, "POST", "/api/v1/task", &task.to_string())?;
    let data = STANDARD.encode(vec![b'x'; LOUD_BYTES]);
    for seq in 0..LOUD_ATTEMPTS as u64 {
        for n in 0..LOUD {
            for job in poll(&mut api, &instance(name, n), &label(n), seq + 2)? {
                let (execution, attempt) = (&job["execution"], &job["attempt"]);
                let done = json!({"instance": instance(name, n),
                    "pieces": [{"execution": execution, "attempt": attempt, "stream": "stdout",
                        "offset": 0, "data": data}],
                    "results": [{"execution": execution, "attempt": attempt, "state": "failed",
                        "exitCode": 1, "stdoutBytes": LOUD_BYTES, "stderrBytes": 0}]});
                send(&mut api, "POST", "/api/v1/agent/done", &done.to_string())?;
            }
        }
    }
    Ok(())
}

fn look_at_loud_task(server: SocketAddr, end: Instant) -> Result<(), String> {
    loud_task(server, "loud")?;
    let mut api = Api::new(server);
    while Instant::now() < end {
        send(&mut api, "GET", "/api/v1/task/loud", "")?;
        send(&mut api, "GET", "/api/v1/task?limit=1000", "")?;
    }
    Ok(())
}

fn come_and_go(server: SocketAddr, end: Instant) -> Result<(), String> {
    let mut api = Api::new(server);
    let task = json!({"machinePattern": "^late-", "lateJoin": true, "ttl": "1h", "detail": {"argv": ["x"]}});
    send(&mut api, "POST", "/api/v1/task", &task.to_string())?;
    for n in 0.. {
        if Instant::now() >= end {
            break;
        }
        let own = instance("late", n);
        poll(&mut api, &own, &format!("late-{}", n % 10), 1)?;
        let goodbye = json!({"instance": own, "holds": []}).to_string();
        send(&mut api, "POST", "/api/v1/agent/goodbye", &goodbye)?;
    }
    Ok(())
}

fn read_slowly(server: SocketAddr, end: Instant) -> Result<(), String> {
    loud_task(server, "slow")?;
    let mut api = Api::new(server);
    let waiting =
        json!({"id": "waited-for", "machinePattern": "^nobody$", "detail": {"argv": ["x"]}});
    send(&mut api, "POST", "/api/v1/task", &waiting.to_string())?;
    let mut open = Vec::new();
    let mut start = |target: &str, count: usize| {
        for _ in 0..count {
            if let Some(mut connection) = Connection::try_open(server) {
                connection.send(&request("GET", target, "", b""));
                open.push(connection);
            }
        }
    };
    start("/api/v1/task/slow/output", READERS);
    start("/api/v1/task/slow", READERS);
    start("/api/v1/task/waited-for?wait=60s", WAITERS);
    thread::sleep(end.saturating_duration_since(Instant::now()));
    send(&mut api, "POST", "/api/v1/task/waited-for/cancel", "")
}

fn submit_large(server: SocketAddr, end: Instant) -> Result<(), String> {
    let mut api = Api::new(server);
    let text = "x".repeat(STDIN_BYTES);
    let task = json!({"machinePattern": "^nobody$", "detail": {"argv": ["x"], "stdin": text}});
    let task = task.to_string();
    while Instant::now() < end {
        for _ in 0..10 {
            send(&mut api, "POST", "/api/v1/task", &task)?;
        }
        send(&mut api, "GET", "/api/v1/task?limit=1000", "")?;
    }
    Ok(())
}

fn report_nonsense(server: SocketAddr, end: Instant) -> Result<(), String> {
    let mut api = Api::new(server);
    let piece = |n: usize| json!({"execution": format!("nothing-{n}.0"), "attempt": 1, "stream": "stdout", "offset": 0, "data": ""});
    let pieces: Vec<Value> = (0..PIECES).map(piece).collect();
    let report = json!({"instance": instance("nonsense", 0), "pieces": pieces}).to_string();
    while Instant::now() < end {
        send(&mut api, "POST", "/api/v1/agent/output", &report)?;
    }
    Ok(())
}

/// A task that matches nobody, with a pattern that takes long to find that out.
fn slow_pattern(round: usize) -> String {
    let words: Vec<String> = { 0..ALTERNATIVES }
        .map(|n| format!("g.*{n}x{round}-"))
        .collect();
    let task = json!({"machinePattern": words.join("|"), "ttl": "1s", "detail": {"argv": ["x"]}});
    task.to_string()
}

fn match_much(server: SocketAddr, end: Instant) -> Result<(), String> {
    let mut api = Api::new(server);
    for round in 0.. {
        if Instant::now() >= end {
            break;
        }
        send(&mut api, "POST", "/api/v1/task", &slow_pattern(round))?;
    }
    Ok(())
}

fn list_machines(server: SocketAddr, end: Instant) -> Result<(), String> {
    let mut api = Api::new(server);
    for round in 0.. {
        if Instant::now() >= end {
            break;
        }
        send(
            &mut api,
            "POST",
            "/api/v1/task?dryRun=1",
            &slow_pattern(round),
        )?;
        send(&mut api, "GET", "/api/v1/machine", "")?;
    }
    Ok(())
}

fn queue_for_any(server: SocketAddr, end: Instant) -> Result<(), String> {
    let mut api = Api::new(server);
    let own = instance("busy", 0);
    let task =
        json!({"machinePattern": "^busy-", "mode": "any", "detail": {"argv": ["x"]}}).to_string();
    for seq in 1.. {
        if Instant::now() >= end {
            break;
        }
        for _ in 0..20 {
            send(&mut api, "POST", "/api/v1/task", &task)?;
        }
        // What it was handed it never got: it goes back, and is offered again.
        poll(&mut api, &own, "busy-0", seq)?;
    }
    Ok(())
}

fn appear(server: SocketAddr, end: Instant) -> Result<(), String> {
    let mut api = Api::new(server);
    for n in 0.. {
        if Instant::now() >= end {
            break;
        }
        poll(&mut api, &instance("new", n), &format!("new-{n}"), 1)?;
    }
    Ok(())
}
