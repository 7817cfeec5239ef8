//! `make bench-peers`: the same tasks given to Redis and rq, which is what sidebike is like.
//!
//! rq is installed from PyPI into a folder of the build, once. Without Redis, Python or PyPI the
//! table is left out, with a word.

use crate::agents;
use crate::process::{Process, Server, agent, free_address, wait_until};
use crate::setting::Setting;
use crate::table::{mb, rate, time};
use crate::workflow;
use crate::wrk;
use std::collections::HashMap;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What rq did, by the names that `peers.py` prints.
type Figures = HashMap<String, f64>;

/// Prints the table.
pub fn print(setting: &Setting) -> Result<(), String> {
    let rq = rq(setting)?;
    let rq = |name: &str| -> Result<f64, String> {
        let figure = rq.get(name).copied();
        figure.ok_or_else(|| format!("peers.py said no {name}"))
    };
    let server = Server::start(setting, &["--max-executions", "10000000"])?;
    let url = server.url("/api/v1/task");
    let submits = wrk::rate(&url, 1, setting.span, Some("submit.lua"))?;
    drop(server);
    let start = agents::start_time(setting)?;
    let jobs = agents::one_at_a_time(setting)?;
    let memory = agent_memory(setting)?;
    println!("| one client, one worker | sidebike | Redis and rq |\n| --- | --- | --- |");
    println!(
        "| submits | {} | {} |",
        rate(submits),
        rate(rq("enqueues")?)
    );
    println!(
        "| submit → started, median | {} | {} |",
        time(start),
        time(rq("start")?)
    );
    println!("| `sh -c true` | {} | {} |", rate(jobs), rate(rq("jobs")?));
    type Seconds = fn(&Setting) -> Result<f64, String>;
    let rows: [(&str, &str, Seconds); 4] = [
        ("1,000 tasks in one call", "list", workflow::list_time),
        (
            "a chain of 100, each after the one before",
            "chain",
            workflow::chain_time,
        ),
        (
            "a parent and 999 children",
            "children",
            workflow::children_time,
        ),
        (
            "due → started, a schedule each second, median",
            "firing",
            workflow::firing_time,
        ),
    ];
    for (what, name, seconds) in rows {
        println!(
            "| {what} | {} | {} |",
            time(seconds(setting)?),
            time(rq(name)?)
        );
    }
    println!(
        "| the worker's memory | {memory} | {:.1} MB |\n",
        rq("memory")?
    );
    Ok(())
}

fn agent_memory(setting: &Setting) -> Result<String, String> {
    let server = Server::start(setting, &[])?;
    let agent = agent(setting, server.address, "worker", &[])?;
    let mut api = server.api();
    wait_until("the agent polls", || {
        let held: u64 = api.metric("sidebike_held_requests")?;
        Ok((held > 0).then_some(()))
    })?;
    Ok(mb(agent.kib("VmRSS")?))
}

/// Has rq do it.
fn rq(setting: &Setting) -> Result<Figures, String> {
    let programs = installed()?;
    let address = free_address()?;
    let port = address.port().to_string();
    let mut command = Command::new("redis-server");
    command.args([
        "--bind",
        "127.0.0.1",
        "--port",
        &port,
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    let redis =
        Process::start(setting, command).map_err(|why| format!("{why} (Debian: redis-server)"))?;
    wait_until("Redis answers", || {
        Ok(TcpStream::connect(address).is_ok().then_some(()))
    })
    .map_err(|why| format!("{why}: {}", redis.log()))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/peers.py");
    let done = Command::new(programs.join("python3"))
        .arg(script)
        .arg(format!("redis://127.0.0.1:{port}"))
        .arg(programs.join("rq"))
        .arg(setting.span.as_secs().to_string())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|why| format!("python3: {why}"))?;
    if !done.status.success() {
        return Err(format!("peers.py: {}", done.status));
    }
    let text = String::from_utf8_lossy(&done.stdout);
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    Ok(lines
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect())
}

/// The folder of rq's programs; installs it when it is not there.
fn installed() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rq");
    let programs = folder.join("bin");
    if programs.join("rq").exists() {
        return Ok(programs);
    }
    eprintln!("installing rq into {}", folder.display());
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&folder);
    let mut pip = Command::new(programs.join("pip"));
    pip.args(["install", "--quiet", "rq"]);
    for mut command in [venv, pip] {
        let status = command.stdout(Stdio::null()).status();
        let program = command.get_program().to_string_lossy().into_owned();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(format!("{program}: {status}")),
            Err(why) => return Err(format!("{program}: {why}")),
        }
    }
    Ok(programs)
}
