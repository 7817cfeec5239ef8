//! Lists of tasks: how long they take, and what they cost those who submit meanwhile.

use crate::http::request;
use crate::process::Server;
use crate::scale::{fill, small};
use crate::setting::Setting;
use crate::table::{Row, median, rate, time};
use crate::wrk;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Tasks there are, and lists that are timed.
const TASKS: usize = 10_000;
const LISTS: usize = 300;
/// The longest median of a list of 100, in seconds.
const WITHIN: f64 = 0.002;
/// One round of submits; those with and without lists take turns.
const ROUND: Duration = Duration::from_secs(1);
/// Clients that submit.
const SUBMITTERS: usize = 32;
/// Room for what they submit.
const MANY: &str = "10000000";
/// What submits keep of their rate beside somebody who does nothing but list: the list's maker and
/// its reader take a part of two cores, but nobody waits for them.
const KEPT: f64 = 0.5;

/// What a page or a script asks for again and again.
pub fn list(setting: &Setting) -> Result<Vec<Row>, String> {
    let server = Server::start(setting, &["--max-executions", MANY])?;
    fill(server.address, 0..TASKS, &small)?;
    let mut api = server.api();
    let ask = request("GET", "/api/v1/task?limit=100", "", b"");
    let (mut times, mut bytes) = (Vec::new(), 0);
    for _ in 0..LISTS {
        let begin = Instant::now();
        let reply = api.raw(&ask)?;
        times.push(begin.elapsed().as_secs_f64());
        bytes = reply.body.len();
        if reply.json()["data"].as_array().map(Vec::len) != Some(100) {
            return Err(format!(
                "not a list of 100: {} {}",
                reply.status,
                reply.text()
            ));
        }
    }
    let middle = median(&times);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let url = server.url("/api/v1/task");
    let submit = || wrk::rate(&url, SUBMITTERS, ROUND, Some("submit.lua"));
    let lists = AtomicU64::new(0);
    for _ in 0..setting.span.as_secs().max(1) {
        alone.push(submit()?);
        let over = AtomicBool::new(false);
        let submitted = thread::scope(|scope| {
            let lister = scope.spawn(|| {
                let mut api = server.api();
                while !over.load(Ordering::Relaxed) {
                    api.raw(&ask)?;
                    lists.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<(), String>(())
            });
            let submitted = submit();
            over.store(true, Ordering::Relaxed);
            let listed = lister.join().map_err(|_| "the lister failed")?;
            listed.and(submitted)
        })?;
        beside.push(submitted);
    }
    let (alone, beside) = (median(&alone), median(&beside));
    let lists = lists.into_inner() as f64 / setting.span.as_secs_f64();
    Ok(vec![
        Row::new(
            format!("list of the 100 newest of {TASKS} tasks"),
            time(middle),
        )
        .beside(format!("{} KB", bytes / 1_000))
        .target(format!("< {}", time(WITHIN)), middle < WITHIN),
        Row::new(
            format!("submits while one client lists ({})", rate(lists)),
            rate(beside),
        )
        .beside(format!("without {}", rate(alone)))
        .ratio_at_least(beside / alone, KEPT),
    ])
}

/// How long a call takes, from the request to the whole answer; the median of some.
pub fn typical(
    calls: usize,
    mut call: impl FnMut(usize) -> Result<Value, String>,
) -> Result<f64, String> {
    let times = (0..calls).map(|n| {
        let begin = Instant::now();
        call(n)?;
        Ok(begin.elapsed().as_secs_f64())
    });
    let times: Vec<f64> = times.collect::<Result<_, String>>()?;
    Ok(median(&times))
}
