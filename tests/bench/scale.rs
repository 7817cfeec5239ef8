//! Nine thousand agents, and a hundred thousand executions: the time and the memory they take.

use crate::api::Api;
use crate::fleet::{Fleet, Tally};
use crate::http::request;
use crate::process::{Server, wait_until};
use crate::setting::Setting;
use crate::table::{Row, mb, median, megabytes, time};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

/// Agents on one server.
pub const AGENTS: usize = 9_000;
/// Until all of them have an order, in seconds.
const ALL_HAVE_IT: f64 = 0.5;
/// Until all results are taken, in seconds.
const ALL_TAKEN: f64 = 2.0;
/// What has not come by then comes too late.
const PATIENCE: Duration = Duration::from_secs(20);
/// The server's memory with nothing to do, in MB.
const IDLE_MB: f64 = 5.0;
/// And with all agents held, in MB.
const AGENTS_MB: f64 = 60.0;
/// Executions that wait, and the memory of a server that keeps them, in MB.
const QUEUED: usize = 100_000;
const QUEUED_MB: f64 = 100.0;
/// What is near idle when they are gone, in MB: half as much again for tables that stay.
const NEAR_IDLE_MB: f64 = 7.5;
/// How long memory may take to come back.
const SETTLING: Duration = Duration::from_secs(3);
/// The server's part of one core while all agents wait.
const IDLE_CPU: f64 = 0.05;
/// How long that is looked at, at least: ticks of 10 ms must not decide.
const CPU_SPAN: Duration = Duration::from_secs(5);
/// Clients that fill the server.
const FILLERS: usize = 4;

/// A server with so many agents whose polls it holds.
pub fn held(setting: &Setting, agents: usize, flags: &[&str]) -> Result<(Server, Fleet), String> {
    let server = Server::start(setting, flags)?;
    let mut fleet = Fleet::start(server.address, agents)?;
    wait_until_held(&server, &mut fleet, agents)?;
    Ok((server, fleet))
}

fn wait_until_held(server: &Server, fleet: &mut Fleet, agents: usize) -> Result<(), String> {
    let mut api = server.api();
    wait_until("all polls are held", || {
        fleet.run(Duration::from_millis(50), |_| false)?;
        let held: u64 = api.metric("sidebike_held_requests")?;
        Ok((held >= agents as u64).then_some(()))
    })
    .map_err(|why| format!("{why}; {:?}", fleet.tally()))
}

/// When things had happened, in seconds from just before the submit; for ever when they had not.
struct Broadcast {
    answered: f64,
    ordered: f64,
    taken: f64,
    tally: Tally,
}

/// One command for all agents, and all results back.
pub fn broadcast(setting: &Setting) -> Result<Vec<Row>, String> {
    let (server, mut fleet) = held(setting, AGENTS, &[])?;
    let mut rounds: Vec<Broadcast> = Vec::new();
    for _ in 0..setting.span.as_secs().max(1) {
        wait_until_held(&server, &mut fleet, AGENTS)?;
        let round = one_broadcast(&server, &mut fleet)?;
        let is_whole = round.taken.is_finite();
        rounds.push(round);
        if !is_whole {
            server.process.show_warnings();
            break;
        }
    }
    // One that did not end is no outlier: the last round tells.
    let middle = |of: fn(&Broadcast) -> f64| {
        let times: Vec<f64> = rounds.iter().map(of).collect();
        match times.last() {
            Some(last) if last.is_infinite() => *last,
            _ => median(&times),
        }
    };
    let (ordered, taken) = (middle(|round| round.ordered), middle(|round| round.taken));
    let failures: usize = rounds.iter().map(|round| round.tally.failures).sum();
    let failures = match failures {
        0 => String::new(),
        n => format!(", {n} calls failed and were repeated"),
    };
    let last = rounds.last().map(|round| round.tally).unwrap_or_default();
    let when = |seconds: f64, count: usize| match seconds.is_finite() {
        true => time(seconds),
        false => format!("{count} after {}", time(PATIENCE.as_secs_f64())),
    };
    Ok(vec![
        Row::new(
            format!("broadcast to {AGENTS} agents: all have it"),
            when(ordered, last.orders),
        )
        .beside(format!(
            "the submit is answered after {}",
            time(middle(|round| round.answered))
        ))
        .target(format!("≤ {}", time(ALL_HAVE_IT)), ordered <= ALL_HAVE_IT),
        Row::new(
            "all results are taken",
            format!("{}{failures}", when(taken, last.taken)),
        )
        .target(format!("≤ {}", time(ALL_TAKEN)), taken <= ALL_TAKEN),
    ])
}

fn one_broadcast(server: &Server, fleet: &mut Fleet) -> Result<Broadcast, String> {
    fleet.reset();
    let begin = Instant::now();
    let mut api = server.api();
    let submit = thread::spawn(move || {
        let task = json!({"machinePattern": "^g", "detail": {"argv": ["true"]}}).to_string();
        let reply = api.raw(&request("POST", "/api/v1/task", "", task.as_bytes()))?;
        Ok::<_, String>((begin.elapsed(), reply.data()["matched"].clone()))
    });
    fleet.run(PATIENCE, |tally| tally.taken >= AGENTS)?;
    let tally = fleet.tally();
    let (answered, matched) = submit.join().map_err(|_| "the submit failed")??;
    if matched != AGENTS {
        return Err(format!("the task matched {matched} agents"));
    }
    let when = |count: usize, last: Option<Instant>| match last {
        Some(last) if count >= AGENTS => (last - begin).as_secs_f64(),
        _ => f64::INFINITY,
    };
    Ok(Broadcast {
        answered: answered.as_secs_f64(),
        ordered: when(tally.orders, tally.last_order),
        taken: when(tally.taken, tally.last_taken),
        tally: *tally,
    })
}

/// What the server needs of a core while nothing happens but polls.
pub fn idle_cpu(setting: &Setting) -> Result<Vec<Row>, String> {
    let (server, mut fleet) = held(setting, AGENTS, &[])?;
    fleet.reset();
    let (begin, before) = (Instant::now(), server.process.cpu()?);
    fleet.run(setting.span.max(CPU_SPAN), |_| false)?;
    let used = server.process.cpu()? - before;
    let part = used.as_secs_f64() / begin.elapsed().as_secs_f64();
    let failures = fleet.tally().failures;
    if failures > 0 {
        return Err(format!("{failures} polls failed"));
    }
    Ok(vec![
        Row::new(
            format!("server's CPU with {AGENTS} idle agents"),
            format!("{:.1} % of a core", 100.0 * part),
        )
        .target(format!("< {} %", 100.0 * IDLE_CPU), part < IDLE_CPU),
    ])
}

/// The server's memory: idle, with agents, with executions that wait, and when all that is gone.
pub fn memory(setting: &Setting) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    {
        let server = Server::start(setting, &[])?;
        server.api().get("/healthz")?;
        rows.push(row("server's memory, idle", rss(&server)?, "≤", IDLE_MB));
    }
    {
        let (server, fleet) = held(setting, AGENTS, &[])?;
        let what = format!("with {AGENTS} held agents");
        rows.push(row(&what, rss(&server)?, "<", AGENTS_MB));
        drop(fleet);
        thread::sleep(SETTLING);
        // The server knows machines for ten minutes after they have gone, so this is not idle yet.
        let what = "when their connections have ended";
        rows.push(Row::new(what, mb(rss(&server)?)));
    }
    {
        let server = Server::start(setting, &["--max-tasks", "1"])?;
        fill(server.address, 0..QUEUED, &small)?;
        let what = format!("with {QUEUED} executions queued");
        let now = rss(&server)?;
        let peak = server.process.kib("VmHWM")?;
        rows.push(row(&what, now, "<", QUEUED_MB).beside(format!("at most {}", mb(peak))));
        // Of finished tasks one is kept here, so what is canceled is gone, often before its answer.
        on_all(server.address, 0..QUEUED, &[200, 404], &|n| {
            request("POST", &format!("/api/v1/task/q{n}/cancel"), "", b"")
        })?;
        thread::sleep(SETTLING);
        let what = "when they are gone";
        rows.push(row(what, rss(&server)?, "≤", NEAR_IDLE_MB));
    }
    Ok(rows)
}

fn rss(server: &Server) -> Result<u64, String> {
    server.process.kib("VmRSS")
}

fn row(what: &str, kib: u64, sign: &str, limit: f64) -> Row {
    Row::new(what, mb(kib)).target(format!("{sign} {limit} MB"), megabytes(kib) <= limit)
}

/// A task for nobody yet, as small as they are.
pub fn small(n: usize) -> Value {
    json!({"id": format!("q{n}"), "machinePattern": "^idle$", "mode": "any", "detail": {"argv": ["true"]}})
}

/// Submits tasks of these numbers, each made from its number.
pub fn fill(
    server: SocketAddr,
    tasks: Range<usize>,
    task: &(impl Fn(usize) -> Value + Sync),
) -> Result<(), String> {
    on_all(server, tasks, &[200], &|n| {
        request("POST", "/api/v1/task", "", task(n).to_string().as_bytes())
    })
}

/// Sends a request for each number, from a few clients at once.
fn on_all(
    server: SocketAddr,
    numbers: Range<usize>,
    expected: &[u16],
    make: &(impl Fn(usize) -> Vec<u8> + Sync),
) -> Result<(), String> {
    let part = |first: usize| {
        let mut api = Api::new(server);
        numbers
            .clone()
            .skip(first)
            .step_by(FILLERS)
            .try_for_each(|n| {
                let reply = api.raw(&make(n))?;
                match expected.contains(&reply.status) {
                    true => Ok(()),
                    false => Err(format!("number {n}: {} {}", reply.status, reply.text())),
                }
            })
    };
    thread::scope(|scope| {
        let parts: Vec<_> = (0..FILLERS)
            .map(|first| {
                scope.spawn({
                    let part = &part;
                    move || part(first)
                })
            })
            .collect();
        parts.into_iter().try_for_each(|part| match part.join() {
            Ok(done) => done,
            Err(_) => Err("a client failed".into()),
        })
    })
}
