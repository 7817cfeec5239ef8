//! What sidebike can do, measured from outside on the release build: `make bench` prints a table
//! with each figure beside its target, and with what it is compared with in the same run, since
//! machines differ.
//!
//! | command | what it does |
//! | --- | --- |
//! | `make bench` | the table, then how the cost grows |
//! | `make bench-peers` | the same tasks given to Redis and rq |
//! | `make soak` | an hour of mixed load: memory, descriptors and threads must not grow |
//!
//! | variable | default | meaning |
//! | --- | --- | --- |
//! | `BENCH_ONLY` | all | only rows whose name contains one of these words, separated by commas |
//! | `BENCH_SECONDS` | 3 | how long one thing is measured |
//! | `SOAK_SECONDS` | 3600 | how long the mixed load lasts |
//! | `SIDEBIKE` | the binary that cargo built | the binary that is measured |
//! | `SIDEBIKE_AGENT_ONLY` | none | one built with the agent alone, for its size |
//!
//! | file | what it is for |
//! | --- | --- |
//! | `table` | rows, and the table in Markdown |
//! | `setting` | the knobs, and the machine that it is measured on |
//! | `process` | servers, agents and others, their memory and CPU; killed when dropped |
//! | `api` | calls of one user over one connection |
//! | `wrk` | the load generator wrk, and nginx to compare with |
//! | `fleet` | thousands of simulated agents in one thread |
//! | `messages` | what these agents send; shared with the simulation |
//! | the others | the rows, by topic |
//!
//! To add a row: write a function that measures it, and list it in [`ROWS`].

#[path = "../common/http.rs"]
#[allow(dead_code, reason = "the benchmark uses its part")]
mod http;

mod agents;
mod allocations;
mod api;
mod attacks;
mod database;
mod files;
mod fleet;
mod growth;
mod listing;
#[path = "../simulation/messages.rs"]
mod messages;
mod newcomer;
mod peers;
#[path = "../postgresql/mod.rs"]
mod postgresql;
mod process;
mod scale;
mod servers;
mod setting;
mod sizes;
mod soak;
mod start;
mod table;
mod web;
mod workflow;
mod wrk;

use setting::Setting;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use table::{Row, Table};

/// What measures a few rows. The error says in one line why it could not.
type Measure = fn(&Setting) -> Result<Vec<Row>, String>;

/// Every row, by the name that `BENCH_ONLY` knows.
const ROWS: &[(&str, Measure)] = &[
    ("ping", web::ping),
    ("healthz", web::healthz),
    ("submit", web::submit),
    ("list", listing::list),
    ("submit-to-start", agents::submit_to_start),
    ("throughput", agents::throughput),
    ("broadcast", scale::broadcast),
    ("memory", scale::memory),
    ("idle-cpu", scale::idle_cpu),
    ("agent-idle", agents::idle),
    ("agent-flood", agents::flood),
    ("start", start::server_and_agent),
    ("sizes", sizes::sizes),
    ("db", database::durable),
    ("allocations", allocations::per_request),
    ("lock", attacks::lock),
    ("attacks", attacks::memory),
    ("schedules", workflow::schedules_due),
    ("file-rate", files::throughput),
    ("file-agents", files::many_agents),
    ("newcomer", newcomer::story),
    ("servers", servers::postgres),
];

/// The name of the second table.
const GROWTH: &str = "growth";

/// Folders of libraries that cargo adds to the environment. Whatever is started from here would search
/// them first: `sh` takes a fifth longer.
const SEARCHED: &str = "LD_LIBRARY_PATH";

fn main() -> ExitCode {
    if std::env::var_os(SEARCHED).is_some() {
        let why = start_again_without(SEARCHED);
        return failed(&format!("cannot start again without {SEARCHED}: {why}"));
    }
    // cargo adds an argument of its own.
    let command = std::env::args().nth(1).unwrap_or_default();
    if command == allocations::PROGRAM {
        return allocations::main(&std::env::args().nth(2).unwrap_or_default());
    }
    let setting = match Setting::from_environment() {
        Ok(setting) => setting,
        Err(why) => return failed(&why),
    };
    let done = match &*command {
        "soak" => soak::soak(&setting),
        "peers" => bench(&setting).map(|()| {
            if let Err(why) = peers::print(&setting) {
                println!("Redis and rq are left out: {why}");
            }
        }),
        _ => bench(&setting),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

/// Starts this program once more, in its own place; what is returned is why it could not.
fn start_again_without(variable: &str) -> std::io::Error {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(why) => return why,
    };
    let mut again = Command::new(own);
    again.args(std::env::args_os().skip(1)).env_remove(variable);
    again.exec()
}

fn failed(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}

/// A target that is missed is said in the table and is no failure: the machine may be busy. The error
/// is that nothing was asked for that there is.
fn bench(setting: &Setting) -> Result<(), String> {
    let names = ROWS.iter().map(|(name, _)| *name).chain([GROWTH]);
    let names: Vec<&str> = names.collect();
    if !names.iter().any(|name| setting.wants(name)) {
        let names = names.join(", ");
        return Err(format!("BENCH_ONLY: expected some of {names}"));
    }
    println!("{}\n", setting.machine());
    let mut table = Table::default();
    for (name, measure) in ROWS.iter().filter(|(name, _)| setting.wants(name)) {
        eprintln!("measuring: {name}");
        match measure(setting) {
            Ok(rows) => table.rows.extend(rows),
            Err(why) => table.rows.push(Row::not_measured(name, &why)),
        }
    }
    println!("{table}");
    if setting.wants(GROWTH) {
        eprintln!("measuring: {GROWTH}");
        if let Err(why) = growth::print(setting) {
            println!("not measured: {why}");
        }
    }
    Ok(())
}
