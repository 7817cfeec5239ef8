//! What `--db` costs: a submit is answered when it is on the disk, and many share a commit.

use crate::process::Server;
use crate::setting::Setting;
use crate::table::{Row, rate};
use crate::wrk;
use std::fs;
use std::process::{Command, Stdio};

/// Clients that share commits.
const CLIENTS: usize = 32;
/// How many times as many submits they get as one client alone, on a disk whose fsync takes...
const SHARED: f64 = 10.0;
/// ...so long, in microseconds: the machine's own may be faster than any real disk.
const DISK_TAKES_US: u32 = 1_000;
/// What is submitted stays, so the default of 100,000 would be full soon.
const MANY: &str = "10000000";

/// Durable submits of many clients beside those of one, on this machine's disk, on a disk that
/// takes a while, and without a database.
pub fn durable(setting: &Setting) -> Result<Vec<Row>, String> {
    let without = submits(setting, &[], false, CLIENTS)?;
    let delay = format!("inject=fsync,fdatasync:delay_exit={DISK_TAKES_US}");
    let strace = ["strace", "--seccomp-bpf", "-f", "-o", "/dev/null"];
    let slowed = ["-e", "trace=fsync,fdatasync", "-e", &delay];
    let what = format!("submits with --db, {CLIENTS} clients, fsync delayed by 1 ms");
    let slow = if can_trace() {
        let by = [&strace[..], &slowed[..]].concat();
        let one = submits(setting, &by, true, 1)?;
        let many = submits(setting, &by, true, CLIENTS)?;
        Row::new(what, rate(many))
            .beside(format!("one client {}", rate(one)))
            .ratio_at_least(many / one, SHARED)
    } else {
        Row::not_measured(&what, "there is no strace")
    };
    // Where fsync costs next to nothing there is nothing to share: a figure without a target.
    let one = submits(setting, &[], true, 1)?;
    let many = submits(setting, &[], true, CLIENTS)?;
    Ok(vec![
        slow,
        Row::new(
            format!("the same, {CLIENTS} clients, fsync as it is here"),
            rate(many),
        )
        .beside(format!("one client {}", rate(one))),
        Row::new(
            format!("the same, {CLIENTS} clients, without --db"),
            rate(without),
        ),
    ])
}

/// Submits a second of a server that has just been started.
fn submits(
    setting: &Setting,
    by: &[&str],
    with_database: bool,
    clients: usize,
) -> Result<f64, String> {
    let file = setting.fresh("db");
    let path = file.to_string_lossy();
    let mut flags = vec!["--max-executions", MANY];
    if with_database {
        flags.extend(["--db", &path]);
    }
    let server = Server::wrapped(setting, by, &flags)?;
    let url = server.url("/api/v1/task");
    let rate = wrk::rate(&url, clients, setting.span, Some("submit.lua"));
    drop(server);
    let _ = fs::remove_file(&file);
    rate
}

/// Whether strace is there and may trace: in many containers it may not.
fn can_trace() -> bool {
    let tried = Command::new("strace")
        .args(["--seccomp-bpf", "-f", "-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}
