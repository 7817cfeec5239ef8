//! Requests a second.

use crate::process::Server;
use crate::scale::{fill, small};
use crate::setting::Setting;
use crate::table::{Row, median, rate};
use crate::wrk::{self, Nginx};
use std::time::Duration;

/// The least part of nginx's rate.
const OF_NGINX: f64 = 0.75;
/// Connections at once: few, and as many as a busy day has.
const CONNECTIONS: [usize; 2] = [32, 200];
/// One round; the rounds of those that are compared take turns, so that what else the machine does
/// meets both.
const ROUND: Duration = Duration::from_secs(1);
/// Clients that submit.
const SUBMITTERS: usize = 32;
/// Submits a second, at least.
const SUBMITS: f64 = 50_000.0;
/// What is submitted is not run, so the rounds need room.
const MANY: &str = "10000000";
/// Tasks that have piled up: as many as may wait by default.
const PILED: usize = 100_000;
/// Tasks that pile up must not make submits slower than so.
const FLAT: f64 = 0.9;

/// The ping of the original's agents: a look at the machines under the lock.
pub fn ping(setting: &Setting) -> Result<Vec<Row>, String> {
    beside_nginx(setting, "ping", "/api/v1/lifecycle/ping?path=bench")
}

/// The least that the server can be asked.
pub fn healthz(setting: &Setting) -> Result<Vec<Row>, String> {
    beside_nginx(setting, "healthz", "/healthz")
}

fn beside_nginx(setting: &Setting, name: &str, path: &str) -> Result<Vec<Row>, String> {
    let server = Server::start(setting, &[])?;
    let nginx = Nginx::start(setting);
    let url = server.url(path);
    CONNECTIONS
        .iter()
        .map(|connections| {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..setting.span.as_secs().max(1) {
                ours.push(wrk::rate(&url, *connections, ROUND, None)?);
                if let Ok(nginx) = &nginx {
                    theirs.push(wrk::rate(&nginx.url(), *connections, ROUND, None)?);
                }
            }
            let (ours, theirs) = (median(&ours), median(&theirs));
            let row = Row::new(format!("{name}, {connections} connections"), rate(ours));
            Ok(match &nginx {
                Ok(_) => row
                    .beside(format!("nginx hello-world {}", rate(theirs)))
                    .ratio_at_least(ours / theirs, OF_NGINX),
                Err(why) => row.beside(format!("left out: {why}")),
            })
        })
        .collect()
}

/// Tasks of 1 KiB for a pattern that matches nobody: each round begins with an empty server, and then
/// with one on which they have piled up.
pub fn submit(setting: &Setting) -> Result<Vec<Row>, String> {
    let start = || Server::start(setting, &["--max-executions", MANY]);
    let submit = |server: &Server| {
        let url = server.url("/api/v1/task");
        wrk::rate(&url, SUBMITTERS, ROUND, Some("submit.lua"))
    };
    let rounds = setting.span.as_secs().max(1);
    let first: Vec<f64> = (0..rounds)
        .map(|_| submit(&start()?))
        .collect::<Result<_, _>>()?;
    let server = start()?;
    fill(server.address, 0..PILED, &small)?;
    let later: Vec<f64> = (0..rounds)
        .map(|_| submit(&server))
        .collect::<Result<_, _>>()?;
    let (first, later) = (median(&first), median(&later));
    let mut api = server.api();
    let holds: f64 = api.metric("sidebike_lock_holds_total")?;
    let held: f64 = api.metric("sidebike_lock_held_seconds_total")?;
    let longest: f64 = api.metric("sidebike_lock_held_seconds_max")?;
    Ok(vec![
        Row::new(
            format!("submit (`any`, 1 KiB), {SUBMITTERS} connections"),
            rate(first),
        )
        .target(format!("≥ {}", rate(SUBMITS)), first >= SUBMITS),
        Row::new(
            format!("the same with {}k tasks waiting", PILED / 1_000),
            rate(later),
        )
        .beside(format!("at the beginning {}", rate(first)))
        .ratio_at_least(later / first, FLAT),
        Row::new(
            "the one lock was held meanwhile, on average",
            format!("{:.1} µs", held / holds * 1e6),
        )
        .beside(format!(
            "at most {:.1} ms, with what the machine did in between",
            longest * 1e3
        )),
    ])
}
