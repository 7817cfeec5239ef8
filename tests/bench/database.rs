//! What `--db` costs: a submit is answered when it is on the disk, and many share a commit.

use crate::process::Server;
use crate::setting::Setting;
use crate::table::{Row, rate};
use crate::wrk;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Clients that share commits.
const CLIENTS: usize = 32;
/// How many times as many submits they get as one client alone, on a disk whose fsync takes...
const SHARED: f64 = 10.0;
/// ...so long, in microseconds: the machine's own may be faster than any real disk.
const DISK_TAKES_US: u32 = 1_000;
/// Submits before the count begins.
const WARM_UP: Duration = Duration::from_secs(1);
/// What is submitted stays, so the default of 100,000 would be full soon.
const MANY: &str = "10000000";

/// Durable submits of many clients beside those of one: on a disk that takes a while, on this
/// machine's, and without a database.
pub fn durable(setting: &Setting) -> Result<Vec<Row>, String> {
    let what = format!("submits with --db, {CLIENTS} clients, fsync delayed by 1 ms");
    let delay = format!("inject=fsync,fdatasync:delay_exit={DISK_TAKES_US}");
    let strace = ["strace", "--seccomp-bpf", "-f", "-o", "/dev/null"];
    let slowed = ["-e", "trace=fsync,fdatasync", "-e", &delay];
    let slow = match can_trace() {
        true => {
            let by = [&strace[..], &slowed[..]].concat();
            let (one, many) = submits(setting, &by, true)?;
            Row::new(what, rate(many))
                .beside(format!("one client {}", rate(one)))
                .ratio_at_least(many / one, SHARED)
        }
        false => Row::not_measured(&what, "there is no strace"),
    };
    // Where fsync costs next to nothing there is nothing to share: figures without a target.
    let plain = |what: &str, (one, many): (f64, f64)| {
        Row::new(format!("the same, {CLIENTS} clients, {what}"), rate(many))
            .beside(format!("one client {}", rate(one)))
    };
    Ok(vec![
        slow,
        plain("fsync as it is here", submits(setting, &[], true)?),
        plain("without --db", submits(setting, &[], false)?),
    ])
}

/// Submits a second of one client and of many, on a server that has had some before: its file has
/// grown by then.
fn submits(setting: &Setting, by: &[&str], with_database: bool) -> Result<(f64, f64), String> {
    let file = setting.fresh("db");
    let path = file.to_string_lossy();
    let mut flags = vec!["--max-executions", MANY];
    if with_database {
        flags.extend(["--db", &path]);
    }
    let server = Server::wrapped(setting, by, &flags)?;
    let url = server.url("/api/v1/task");
    let rate = |clients, span| wrk::rate(&url, clients, span, Some("submit.lua"));
    rate(CLIENTS, WARM_UP)?;
    let rates = (rate(1, setting.span)?, rate(CLIENTS, setting.span)?);
    drop(server);
    let _ = fs::remove_file(&file);
    Ok(rates)
}

/// Whether strace is there and may trace: in many containers it may not.
fn can_trace() -> bool {
    let tried = Command::new("strace")
        .args(["--seccomp-bpf", "-f", "-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}
