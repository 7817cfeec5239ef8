//! What several servers over PostgreSQL cost, and how soon one is replaced.

use crate::database::{
    CLIENTS, MANY, PATIENCE, SlowerDisk, WARM_UP, leads, submits, submits_to_file,
};
use crate::postgresql::PostgreSql;
use crate::process::{Server, wait_for};
use crate::setting::Setting;
use crate::table::{Row, rate, time};
use crate::wrk;
use rustix::process::Signal;

/// A submit of one client may take so many times as long as with a file...
const SLOWER: f64 = 1.5;
/// ...and those of many may not be fewer a second.
const SHARED: f64 = 1.0;
/// How long a leader that ends may be missed, in seconds, and one that is killed: 10 s of silence and the load.
const ENDED: f64 = 3.0;
const KILLED: f64 = 12.0;
/// What is loaded by the next leader, and in which time, in seconds.
const LOADED: u64 = 100_000;
const LOAD_TAKES: f64 = 2.0;

/// Submits on PostgreSQL beside those on a file, takeovers, and the load of many tasks.
pub fn postgres(setting: &Setting) -> Result<Vec<Row>, String> {
    const WHAT: &str = "several servers over PostgreSQL";
    let Some(postgres) = PostgreSql::start(&[]) else {
        return Ok(vec![Row::not_measured(WHAT, "there is no PostgreSQL")]);
    };
    let mut rows = beside_file(setting, &postgres, None)?;
    if let Some(slower) = SlowerDisk::here()
        && let Some(postgres) = PostgreSql::wrapped(&[&slower.words()[..], &["-D"]].concat(), &[])
    {
        rows.extend(beside_file(setting, &postgres, Some(&slower))?);
    }
    rows.extend(takeovers(setting, &postgres.database())?);
    Ok(rows)
}

/// Submits of one client and of many on PostgreSQL, and on a file; both on a slower disk, if it is one.
fn beside_file(
    setting: &Setting,
    postgres: &PostgreSql,
    slower: Option<&SlowerDisk>,
) -> Result<Vec<Row>, String> {
    let words = slower.map(SlowerDisk::words).unwrap_or_default();
    let on_file = submits_to_file(setting, &words)?;
    let on_postgres = submits(setting, &[], &["--db", &postgres.database()])?;
    let disk = slower.map(|slower| format!(", {slower}"));
    let disk = disk.unwrap_or_default();
    let row = |clients: usize, postgres: f64, file: f64| {
        let what = format!("submits on PostgreSQL, clients: {clients}{disk}");
        Row::new(what, rate(postgres)).beside(format!("--db FILE {}", rate(file)))
    };
    Ok(vec![
        row(1, on_postgres.0, on_file.0).ratio_at_most(on_file.0 / on_postgres.0, SLOWER),
        row(CLIENTS, on_postgres.1, on_file.1).ratio_at_least(on_postgres.1 / on_file.1, SHARED),
    ])
}

/// How long until another server leads, after the end and after the death of the leader, with many tasks to be loaded.
fn takeovers(setting: &Setting, db: &str) -> Result<Vec<Row>, String> {
    let start = || Server::start(setting, &["--max-executions", MANY, "--db", db]);
    let first = start()?;
    leads(&first)?;
    let url = first.url("/api/v1/task");
    let mut api = first.api();
    wait_for(PATIENCE * 4, "the tasks are there", || {
        wrk::rate(&url, CLIENTS, WARM_UP, Some("submit.lua"))?;
        let accepted: u64 = api.metric("sidebike_tasks_submitted_total")?;
        Ok((accepted >= LOADED).then_some(()))
    })?;
    let tasks: u64 = api.metric("sidebike_tasks_submitted_total")?;

    let second = start()?;
    first.process.signal(Signal::TERM);
    let ended = leads(&second)?;
    let third = start()?;
    second.process.signal(Signal::KILL);
    let killed = leads(&third)?;
    let loads = |server: &Server| -> Result<f64, String> {
        let log = server.process.log();
        let (_, rest) = log
            .split_once("has loaded everything in ")
            .ok_or("nothing was loaded")?;
        let ms = rest.split(' ').next().and_then(|ms| ms.parse::<f64>().ok());
        Ok(ms.ok_or("no time of the load")? / 1e3)
    };
    let load = loads(&second)?.max(loads(&third)?);
    let per = load * LOADED as f64 / tasks as f64;
    Ok(vec![
        Row::new(
            "another server leads after the end of the leader, with the load",
            time(ended),
        )
        .target(format!("{ended:.1} s (≤ {ENDED} s)"), ended <= ENDED),
        Row::new("the same after `kill -9`", time(killed)).target(
            format!("{killed:.1} s (≤ {KILLED} s + the load)"),
            killed <= KILLED + load,
        ),
        Row::new(format!("the load of {tasks} tasks"), time(load))
            .beside(format!("of {LOADED}: {}", time(per)))
            .target(format!("{per:.2} s (≤ {LOAD_TAKES} s)"), per <= LOAD_TAKES),
    ])
}
