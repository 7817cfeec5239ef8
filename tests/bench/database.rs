//! What `--db` costs: a submit is answered when it is on the disk, and many share a commit.

use crate::process::Server;
use crate::setting::Setting;
use crate::table::{Row, rate};
use crate::wrk;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Clients that share commits.
const CLIENTS: usize = 32;
/// How many times as many submits they get as one client alone, on a disk whose fsync takes...
const SHARED: f64 = 10.0;
/// ...so long or longer: the machine's own may be faster than any real disk.
const DISK_TAKES: Duration = Duration::from_millis(1);
/// Then it is delayed by so much, as long as a disk takes that others use as well. With less one would
/// measure strace, which takes half a processor for itself.
const DELAY: Duration = Duration::from_millis(4);
/// Times that an fsync is measured.
const SYNCS: u64 = 50;
/// What a server is slowed by.
const TRACED: [&str; 5] = ["strace", "--seccomp-bpf", "-f", "-o", "/dev/null"];
/// Submits before the count begins.
const WARM_UP: Duration = Duration::from_secs(1);
/// What is submitted stays, so the default of 100,000 would be full soon.
const MANY: &str = "10000000";

/// Durable submits of many clients beside those of one: on this machine's disk, on a slower one where
/// that is too fast, and without a database.
pub fn durable(setting: &Setting) -> Result<Vec<Row>, String> {
    let takes = fsync_takes(setting)?;
    let row = |what: &str, (one, many): (f64, f64)| {
        let what = format!("submits with --db, {CLIENTS} clients, {what}");
        let row = Row::new(what, rate(many)).beside(format!("one client {}", rate(one)));
        (row, many / one)
    };
    let (own, ratio) = row(
        &format!("fsync takes {:.1} ms", takes.as_secs_f64() * 1e3),
        submits(setting, &[], true)?,
    );
    let mut rows = Vec::new();
    if takes >= DISK_TAKES {
        rows.push(own.ratio_at_least(ratio, SHARED));
    } else {
        rows.push(own);
        rows.push(match can_trace() {
            true => {
                let delay = format!("inject=fsync,fdatasync:delay_exit={}", DELAY.as_micros());
                let by = [&TRACED[..], &["-e", "trace=fsync,fdatasync", "-e", &delay]].concat();
                let (row, ratio) = row(
                    &format!("fsync delayed by {} ms", DELAY.as_millis()),
                    submits(setting, &by, true)?,
                );
                row.ratio_at_least(ratio, SHARED)
            }
            false => Row::not_measured("submits on a slower disk", "there is no strace"),
        });
    }
    let (without, _) = row("but without it", submits(setting, &[], false)?);
    rows.push(without);
    Ok(rows)
}

/// What an fsync takes here, half of the times.
fn fsync_takes(setting: &Setting) -> Result<Duration, String> {
    let say = |why: std::io::Error| format!("a file to be synced: {why}");
    let path = setting.fresh("synced");
    let file = fs::File::create(&path).map_err(say)?;
    let mut took = Vec::new();
    for n in 0..SYNCS {
        file.write_all_at(&[n as u8; 4_096], n * 4_096)
            .map_err(say)?;
        let started = Instant::now();
        file.sync_data().map_err(say)?;
        took.push(started.elapsed());
    }
    let _ = fs::remove_file(&path);
    took.sort();
    Ok(took[took.len() / 2])
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
    let tried = Command::new(TRACED[0])
        .args(&TRACED[1..])
        .arg("true")
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}
