//! Real agents: how fast they start commands, and what they take.

use crate::http::request;
use crate::process::{Process, Server, agent, kib, wait_until};
use crate::setting::Setting;
use crate::table::{Row, mb, median, megabytes, quantile, rate, time};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Commands started one after the other, to see how soon each of them starts.
const SUBMITS: usize = 300;
/// The pause between two of them: the agent is to be idle, its poll held.
const PAUSE: Duration = Duration::from_millis(5);
/// Submits to an agent that has waited so long that it has let go of the program.
const LATE_SUBMITS: usize = 20;
/// Time between two things that are timed then: with four of them it is more than a second.
const LATE_PAUSE: Duration = Duration::from_millis(300);
/// The median of that, in units of one spawn and two round trips...
const OF_SPAWN: f64 = 1.3;
/// ...and its 99th percentile, in seconds.
const P99: f64 = 0.010;
/// Agents that share a queue, with so many jobs each.
const AGENTS: usize = 2;
const JOBS: &str = "2";
/// The least part of the bare spawn rate.
const OF_BARE: f64 = 0.9;
/// Threads that do nothing but spawn.
const SPAWNERS: usize = 2;
/// One round; they take turns.
const ROUND: Duration = Duration::from_secs(1);
/// Tasks for a round: enough for it, and few enough that the rest of them is soon done.
const TASKS_A_ROUND: usize = 4_000;
/// An idle agent's memory, in MB.
const IDLE_MB: f64 = 3.0;
/// How long it is looked at: longer than one poll is held.
const IDLE_SPAN: Duration = Duration::from_secs(30);
/// Polls in that time.
const IDLE_POLLS: u64 = 2;
/// The most of a processor that cannot be told from nothing.
const IDLE_CPU: f64 = 0.001;
/// An agent's memory under a flood of output, in MB.
const FLOOD_MB: f64 = 10.0;
/// The flood, in bytes, and how fast it is to come, in bytes a second.
const FLOOD: u64 = 4_000_000_000;
/// How long anything else may take.
const WAIT: &str = "/api/v1/task?wait=60s";

/// Starts an agent and waits until its poll is held.
pub fn idle_agent(setting: &Setting, server: &Server, flags: &[&str]) -> Result<Process, String> {
    let mut api = server.api();
    let before: u64 = api.metric("sidebike_held_requests")?;
    let agent = agent(setting, server.address, "worker", flags)?;
    wait_until("the agent polls", || {
        let held: u64 = api.metric("sidebike_held_requests")?;
        Ok((held > before).then_some(()))
    })
    .map_err(|why| format!("{why}: {}", agent.log()))?;
    Ok(agent)
}

/// What was timed, in seconds.
#[derive(Default)]
struct Times {
    starts: Vec<f64>,
    spawns: Vec<f64>,
    dates: Vec<f64>,
    trips: Vec<f64>,
}

/// From just before the submit is sent to when the command says it is there. The command is `date`,
/// which reads the clock as the first thing it does; the server's own histogram is too coarse, and
/// `startedAt` counts milliseconds. The measure of it is what cannot be saved: spawning one `sh -c
/// true` (until it has ended), and two round trips over loopback (submit, hand out). They take
/// turns, each after a pause: a processor that has slept is slower for all of them.
fn timed(setting: &Setting, submits: usize, pause: Duration) -> Result<Times, String> {
    let server = Server::start(setting, &[])?;
    let _agent = idle_agent(setting, &server, &[])?;
    let mut api = server.api();
    let task =
        json!({"machinePattern": "^worker$", "mode": "any", "detail": {"argv": ["date", "+%s%N"]}});
    let bytes = request("POST", WAIT, "", task.to_string().as_bytes());
    let mut echo = Echo::start()?;
    let mut times = Times::default();
    for _ in 0..submits {
        thread::sleep(pause);
        let begin = now_ns()?;
        let answer = api.call(&bytes)?;
        let stamp = answer["result"][0]["stdout"].as_str().unwrap_or_default();
        times.starts.push(seconds_from(begin, stamp)?);
        thread::sleep(pause);
        let begin = now_ns()?;
        let stamp = Command::new("date").arg("+%s%N").output();
        let stamp = stamp.map_err(|why| format!("date: {why}"))?.stdout;
        let stamp = String::from_utf8_lossy(&stamp);
        times.dates.push(seconds_from(begin, &stamp)?);
        thread::sleep(pause);
        times.spawns.push(spawn_seconds()?);
        thread::sleep(pause);
        times.trips.push(echo.round_trip()?);
    }
    Ok(times)
}

/// The median of the time from submit to start, in seconds.
pub fn start_time(setting: &Setting) -> Result<f64, String> {
    timed(setting, SUBMITS, PAUSE).map(|times| median(&times.starts))
}

/// The time from submit to start.
pub fn submit_to_start(setting: &Setting) -> Result<Vec<Row>, String> {
    let late = timed(setting, LATE_SUBMITS, LATE_PAUSE)?;
    let times = timed(setting, SUBMITS, PAUSE)?;
    let (middle, p99) = (median(&times.starts), quantile(&times.starts, 0.99));
    let (spawn, trip) = (median(&times.spawns), median(&times.trips));
    let bare = spawn + 2.0 * trip;
    Ok(vec![
        Row::new("submit → command started, idle agent, median", time(middle))
            .beside(format!(
                "spawn `sh -c true` {} + 2 round trips of {}",
                time(spawn),
                time(trip)
            ))
            .ratio_at_most(middle / bare, OF_SPAWN),
        Row::new("the same, 99th percentile", time(p99))
            .beside(format!(
                "spawned by hand, `date` says so after {} (median)",
                time(median(&times.dates))
            ))
            .target(format!("< {}", time(P99)), p99 < P99),
        Row::new(
            "the same after more than a second, median",
            time(median(&late.starts)),
        )
        .beside(format!(
            "spawned by hand, `date` says so after {} (median)",
            time(median(&late.dates))
        )),
    ])
}

/// How long after a time in nanoseconds `date` looked at the clock.
fn seconds_from(begin: u64, stamp: &str) -> Result<f64, String> {
    let at = { stamp.trim().parse::<u64>() }
        .map_err(|_| format!("expected nanoseconds of date, got {stamp:?}"))?;
    Ok(at.saturating_sub(begin) as f64 / 1e9)
}

fn now_ns() -> Result<u64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map(|now| now.as_nanos() as u64)
        .map_err(|_| "this machine's clock is before 1970".into())
}

fn spawn_seconds() -> Result<f64, String> {
    let begin = Instant::now();
    let status = Command::new("sh")
        .args(["-c", "true"])
        .stdin(Stdio::null())
        .status();
    status.map_err(|why| format!("sh: {why}"))?;
    Ok(begin.elapsed().as_secs_f64())
}

/// A thread that sends back what it gets, over loopback.
struct Echo(TcpStream);

impl Echo {
    fn start() -> Result<Echo, String> {
        let connected = || -> std::io::Result<Echo> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let stream = TcpStream::connect(listener.local_addr()?)?;
            stream.set_nodelay(true)?;
            let (mut other, _) = listener.accept()?;
            other.set_nodelay(true)?;
            thread::spawn(move || {
                let mut byte = [0];
                while other.read_exact(&mut byte).is_ok() && other.write_all(&byte).is_ok() {}
            });
            Ok(Echo(stream))
        };
        connected().map_err(|why| format!("loopback: {why}"))
    }

    fn round_trip(&mut self) -> Result<f64, String> {
        let begin = Instant::now();
        let mut byte = [1];
        let done = self.0.write_all(&byte);
        done.and_then(|()| self.0.read_exact(&mut byte))
            .map_err(|why| format!("loopback: {why}"))?;
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// Tasks a second that agents take from one queue, beside the rate at which threads can spawn the
/// same command and do nothing else. The tasks are there before the count begins.
pub fn throughput(setting: &Setting) -> Result<Vec<Row>, String> {
    let mut bare = Vec::new();
    let ours = queue_rate(setting, AGENTS, JOBS, || {
        bare.push(spawn_rate()?);
        Ok(())
    })?;
    let bare = median(&bare);
    Ok(vec![
        Row::new(
            format!("`any` throughput, {AGENTS} agents of {JOBS} jobs, `sh -c true`"),
            rate(ours),
        )
        .beside(format!("{SPAWNERS} threads that spawn {}", rate(bare)))
        .ratio_at_least(ours / bare, OF_BARE),
    ])
}

/// Tasks a second that one agent runs, one at a time.
pub fn one_at_a_time(setting: &Setting) -> Result<f64, String> {
    queue_rate(setting, 1, "1", || Ok(()))
}

/// The median of some rounds, each after something else.
fn queue_rate(
    setting: &Setting,
    agents: usize,
    jobs: &str,
    mut before: impl FnMut() -> Result<(), String>,
) -> Result<f64, String> {
    let server = Server::start(setting, &[])?;
    let mut api = server.api();
    let _agents: Vec<Process> = (0..agents)
        .map(|_| idle_agent(setting, &server, &["--jobs", jobs]))
        .collect::<Result<_, _>>()?;
    let task = json!({"name": "queued", "machinePattern": "^worker$", "mode": "any", "detail": {"argv": ["sh", "-c", "true"]}});
    let submit = request("POST", "/api/v1/task", "", task.to_string().as_bytes());
    let (mut rates, mut submitted) = (Vec::new(), 0);
    for _ in 0..setting.span.as_secs().max(1) {
        before()?;
        for _ in 0..TASKS_A_ROUND {
            api.call(&submit)?;
        }
        submitted += TASKS_A_ROUND as u64;
        rates.push(run_rate(&server, submitted)?);
    }
    Ok(median(&rates))
}

fn spawn_rate() -> Result<f64, String> {
    let spawn = || -> Result<u64, String> {
        let (begin, mut count) = (Instant::now(), 0);
        while begin.elapsed() < ROUND {
            spawn_seconds()?;
            count += 1;
        }
        Ok(count)
    };
    let begin = Instant::now();
    let mut count = 0;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..SPAWNERS).map(|_| scope.spawn(spawn)).collect();
        threads.into_iter().try_for_each(|thread| {
            count += thread.join().map_err(|_| "a thread failed")??;
            Ok::<(), String>(())
        })
    })?;
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

/// How fast what is queued is run, for one round or until it is nearly all; then waits for the rest.
fn run_rate(server: &Server, submitted: u64) -> Result<f64, String> {
    let mut api = server.api();
    let mut ended = || api.metric::<u64>("sidebike_executions_ended_total{state=\"succeeded\"}");
    let (begin, first) = (Instant::now(), ended()?);
    let nearly = submitted - (submitted - first) / 10;
    let (mut span, mut last) = (begin.elapsed(), first);
    while span < ROUND && last < nearly {
        thread::sleep(ROUND / 20);
        last = ended()?;
        span = begin.elapsed();
    }
    wait_until("all tasks have run", || {
        Ok((ended()? == submitted).then_some(()))
    })?;
    Ok((last - first) as f64 / span.as_secs_f64())
}

/// An agent with nothing to do.
pub fn idle(setting: &Setting) -> Result<Vec<Row>, String> {
    let server = Server::start(setting, &[])?;
    let mut api = server.api();
    let agent = idle_agent(setting, &server, &[])?;
    let answered = "sidebike_requests_total{status=\"2xx\"}";
    // Each look is a request, too.
    let (requests, cpu) = (api.metric::<u64>(answered)? + 1, agent.cpu()?);
    thread::sleep(IDLE_SPAN);
    let polls = api.metric::<u64>(answered)? - requests;
    let cpu = (agent.cpu()? - cpu).as_secs_f64() / IDLE_SPAN.as_secs_f64();
    let own = agent.kib("VmRSS")?;
    let guards: Vec<u64> = { agent.children().into_iter() }
        .map(|pid| kib(pid, "VmRSS"))
        .collect::<Result<_, _>>()?;
    let seconds = IDLE_SPAN.as_secs();
    Ok(vec![
        Row::new("agent's memory, idle", mb(own))
            .beside(format!("its guard {}", mb(guards.iter().sum())))
            .target(format!("< {IDLE_MB} MB"), megabytes(own) < IDLE_MB),
        Row::new(
            format!("agent's CPU, idle for {seconds} s"),
            format!("{:.2} % of a core", 100.0 * cpu),
        )
        .target("not to be measured", cpu <= IDLE_CPU),
        Row::new(
            format!("agent's requests in {seconds} s, idle"),
            polls.to_string(),
        )
        .target(format!("≤ {IDLE_POLLS}"), polls <= IDLE_POLLS),
    ])
}

/// A command that writes as fast as it can.
pub fn flood(setting: &Setting) -> Result<Vec<Row>, String> {
    let server = Server::start(setting, &[])?;
    let agent = idle_agent(setting, &server, &[])?;
    let command = format!("yes | head -c {FLOOD}");
    let task = json!({"machinePattern": "^worker$", "detail": {"command": command}});
    let answer = server.api().post(WAIT, &task)?;
    let result = &answer["result"][0];
    let (Some("succeeded"), Some(ms)) = (result["state"].as_str(), result["durationMs"].as_u64())
    else {
        return Err(format!("the flood did not end well: {}", brief(result)));
    };
    let peak = agent.kib("VmHWM")?;
    agent.signal(Signal::TERM);
    Ok(vec![
        Row::new("agent's peak memory under a flood of output", mb(peak))
            .beside(format!(
                "{:.1} GB at {:.1} GB/s",
                FLOOD as f64 / 1e9,
                FLOOD as f64 / 1e6 / ms as f64
            ))
            .target(format!("< {FLOOD_MB} MB"), megabytes(peak) < FLOOD_MB),
    ])
}

/// A result without its output.
fn brief(result: &Value) -> Value {
    json!({"state": result["state"], "msg": result["msg"]})
}
