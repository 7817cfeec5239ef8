//! What `--db` costs: a submit is answered when it is on the disk, and many share a commit.

use crate::process::{Server, wait_for};
use crate::setting::Setting;
use crate::table::{Row, rate};
use crate::wrk;
use std::fmt;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Clients that share commits.
pub const CLIENTS: usize = 32;
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
pub const WARM_UP: Duration = Duration::from_secs(1);
/// What is submitted stays, so the default of 100,000 would be full soon.
pub const MANY: &str = "10000000";
/// A server leads within this time, or the row is a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

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
        submits_to_file(setting, &[])?,
    );
    let mut rows = Vec::new();
    if takes >= DISK_TAKES {
        rows.push(own.ratio_at_least(ratio, SHARED));
    } else {
        rows.push(own);
        rows.push(match SlowerDisk::here() {
            Some(slower) => {
                let rates = submits_to_file(setting, &slower.words())?;
                let (row, ratio) = row(&slower.to_string(), rates);
                row.ratio_at_least(ratio, SHARED)
            }
            None => Row::not_measured("submits on a slower disk", "there is no strace"),
        });
    }
    let (without, _) = row("but without it", submits(setting, &[], &[])?);
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

/// Submits a second of one client and of many, with a file.
pub fn submits_to_file(setting: &Setting, by: &[&str]) -> Result<(f64, f64), String> {
    let file = setting.fresh("db");
    let rates = submits(setting, by, &["--db", &file.to_string_lossy()]);
    let _ = fs::remove_file(&file);
    rates
}

/// The same of a server with these flags, started by another program if there is one. It has had some before: its
/// database has grown by then.
pub fn submits(setting: &Setting, by: &[&str], flags: &[&str]) -> Result<(f64, f64), String> {
    let flags = [&["--max-executions", MANY], flags].concat();
    let server = Server::wrapped(setting, by, &flags)?;
    leads(&server)?;
    let url = server.url("/api/v1/task");
    let rate = |clients, span| wrk::rate(&url, clients, span, Some("submit.lua"));
    rate(CLIENTS, WARM_UP)?;
    Ok((rate(1, setting.span)?, rate(CLIENTS, setting.span)?))
}

/// Waits until a server leads, and can be asked; how many seconds that took.
pub fn leads(server: &Server) -> Result<f64, String> {
    let begin = Instant::now();
    wait_for(PATIENCE, "the server leads", || {
        let answer = server.api().get("/leader");
        Ok(answer.is_ok_and(|data| data == "leads").then_some(()))
    })?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Has a program run as on a disk whose fsync takes longer.
pub struct SlowerDisk {
    delay: String,
}

impl SlowerDisk {
    /// If strace is there and may trace: in many containers it may not.
    pub fn here() -> Option<SlowerDisk> {
        let tried = Command::new(TRACED[0])
            .args(&TRACED[1..])
            .arg("true")
            .stderr(Stdio::null())
            .status();
        let can_trace = tried.is_ok_and(|status| status.success());
        can_trace.then(|| SlowerDisk {
            delay: format!("inject=fsync,fdatasync:delay_exit={}", DELAY.as_micros()),
        })
    }

    /// The words before the program's own.
    pub fn words(&self) -> Vec<&str> {
        [
            &TRACED[..],
            &["-e", "trace=fsync,fdatasync", "-e", &self.delay],
        ]
        .concat()
    }
}

impl fmt::Display for SlowerDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fsync delayed by {} ms", DELAY.as_millis())
    }
}
