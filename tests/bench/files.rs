//! Files: how fast one client gets one, beside nginx; and many agents that fetch one at the same time.

use crate::http::request;
use crate::process::{LOOK, Process, Server, agent_command, wait_for};
use crate::setting::Setting;
use crate::table::{Row, median, megabytes, time};
use crate::wrk::Nginx;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// The file that one client gets.
const LARGE: usize = 256 << 20;
/// How often it is got from each.
const ROUNDS: usize = 5;
/// The least part of nginx's rate.
const OF_NGINX: f64 = 0.7;
/// Agents that fetch at the same time, and what each of them fetches.
const AGENTS: usize = 500;
const FILE: usize = 20 << 20;
/// What that may cost the server, in MB.
const GROWTH_MB: f64 = 64.0;
/// How long all of it may take before the row is given up: it is ten gigabytes.
const PATIENCE: Duration = Duration::from_secs(600);

/// One client gets a large file, by turns from sidebike and from nginx.
pub fn throughput(setting: &Setting) -> Result<Vec<Row>, String> {
    let server = Server::start(setting, &[])?;
    let bytes = content(LARGE);
    let hash = uploaded(&server, &bytes)?;
    let blob = format!("/api/v1/blob/{hash}");
    let nginx = Nginx::serving(setting, &bytes);
    drop(bytes);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(got(server.address, &blob)?);
        if let Ok(nginx) = &nginx {
            theirs.push(got(nginx.address, "/file")?);
        }
    }
    let per_second = |times: &[f64]| LARGE as f64 / 1e6 / median(times);
    let ours = per_second(&ours);
    let row = Row::new("a file of 256 MiB, one client", format!("{ours:.0} MB/s"));
    Ok(vec![match &nginx {
        Ok(_) => {
            let theirs = per_second(&theirs);
            row.beside(format!("nginx {theirs:.0} MB/s"))
                .ratio_at_least(ours / theirs, OF_NGINX)
        }
        Err(why) => row.beside(format!("left out: {why}")),
    }])
}

/// 500 agents are given a file of 20 MiB at the same time.
pub fn many_agents(setting: &Setting) -> Result<Vec<Row>, String> {
    let server = Server::start(setting, &[])?;
    let hash = uploaded(&server, &content(FILE))?;
    let folder = setting.fresh("agents");
    let agents: Vec<Process> = (0..AGENTS)
        .map(|n| {
            let own = folder.join(n.to_string());
            fs::create_dir_all(&own).map_err(|why| format!("{}: {why}", own.display()))?;
            let mut command = agent_command(setting, server.address, &format!("a{n}"), &[]);
            command.env("TMPDIR", &own);
            Process::start(setting, command)
        })
        .collect::<Result<_, _>>()?;
    let mut api = server.api();
    wait_for(PATIENCE, "all agents poll", || {
        thread::sleep(10 * LOOK);
        let held: usize = api.metric("sidebike_held_requests")?;
        Ok((held >= AGENTS).then_some(()))
    })?;
    let before = server.process.kib("VmRSS")?;
    let task = json!({
        "id": "files", "machinePattern": "^a", "filesTimeout": "10m",
        "files": [{"sha256": hash, "size": FILE, "name": "package", "remove": true}],
    });
    let begin = Instant::now();
    api.post("/api/v1/task", &task)?;
    let mut most = before;
    wait_for(PATIENCE, "all agents have the file", || {
        thread::sleep(50 * LOOK);
        most = most.max(server.process.kib("VmRSS")?);
        let task = api.get("/api/v1/task/files")?;
        match task["state"].as_str() {
            Some("succeeded") => Ok(Some(())),
            Some("running") | Some("queued") => Ok(None),
            state => Err(format!("the task is {state:?}: {}", task["counts"])),
        }
    })?;
    let took = begin.elapsed().as_secs_f64();
    drop(agents);
    let grown = megabytes(most) - megabytes(before);
    Ok(vec![
        Row::new(
            format!("server's memory while {AGENTS} agents fetch 20 MiB each, more by"),
            format!("{grown:.1} MB"),
        )
        .beside(format!("all have it after {}", time(took)))
        .target(format!("< {GROWTH_MB} MB"), grown < GROWTH_MB),
    ])
}

/// Bytes that do not repeat.
pub fn content(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..length.div_ceil(8))
        .flat_map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state ^ (state >> 29)).to_le_bytes()
        })
        .collect()
}

/// Uploads it; gives its hash.
fn uploaded(server: &Server, bytes: &[u8]) -> Result<String, String> {
    let answer = server
        .api()
        .call(&request("PUT", "/api/v1/file/bench", "", bytes))?;
    let hash = answer["sha256"].as_str();
    hash.map(str::to_owned)
        .ok_or_else(|| format!("no hash in {answer}"))
}

/// Gets it over a connection of its own and throws it away; gives the seconds.
fn got(address: SocketAddr, path: &str) -> Result<f64, String> {
    let read = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let (mut piece, mut count) = (vec![0; 256 << 10], 0);
        loop {
            match stream.read(&mut piece)? {
                0 => return Ok(count),
                length => count += length,
            }
        }
    };
    let begin = Instant::now();
    match read() {
        Ok(count) if count > LARGE => Ok(begin.elapsed().as_secs_f64()),
        Ok(count) => Err(format!("{path}: {count} bytes came")),
        Err(why) => Err(format!("{path}: {why}")),
    }
}
