//! The load generator wrk: of all that there are it takes the least of the processor it shares with
//! the server. And nginx, for what a server can do on this machine that does nothing.

use crate::process::{Process, free_address, wait_until};
use crate::setting::Setting;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Threads of wrk: with more of them it takes the processor from the server.
const THREADS: usize = 2;

/// Requests a second over so many connections, for whole seconds. A script says what is sent.
pub fn rate(
    url: &str,
    connections: usize,
    span: Duration,
    script: Option<&str>,
) -> Result<f64, String> {
    let mut command = Command::new("wrk");
    command.args(["-t", &THREADS.min(connections).to_string()]);
    command.args(["-c", &connections.to_string()]);
    command.args(["-d", &format!("{}s", span.as_secs().max(1))]);
    if let Some(script) = script {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench");
        command.arg("-s").arg(folder.join(script));
    }
    let done = command.arg(url).output();
    let done = done.map_err(|why| format!("wrk (Debian: wrk): {why}"))?;
    let text = String::from_utf8_lossy(&done.stdout);
    let line = |mark: &str| text.lines().find_map(|l| l.trim().strip_prefix(mark));
    if let Some(bad) = line("Non-2xx or 3xx responses:") {
        return Err(format!("{url}:{bad} answers were not well"));
    }
    if let Some(bad) = line("Socket errors:") {
        return Err(format!("{url}: errors of connections:{bad}"));
    }
    let rate = line("Requests/sec:").and_then(|rest| rest.trim().parse().ok());
    rate.ok_or_else(|| {
        let why = String::from_utf8_lossy(&done.stderr);
        format!("wrk said no rate: {text}{why}")
    })
}

/// nginx's "hello world": as many workers as there are processors, nothing logged, nothing closed.
pub struct Nginx {
    _process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Nginx {
    /// Starts it.
    pub fn start(setting: &Setting) -> Result<Nginx, String> {
        Nginx::serving(setting, b"")
    }

    /// Starts it; these bytes are at `/file`.
    pub fn serving(setting: &Setting, bytes: &[u8]) -> Result<Nginx, String> {
        let address = free_address()?;
        let folder = setting.fresh("nginx");
        let file = folder.join("nginx.conf");
        let text = configuration(&folder, address);
        let written = std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(&file, text))
            .and_then(|()| std::fs::write(folder.join("file"), bytes));
        written.map_err(|why| format!("{}: {why}", file.display()))?;
        // Debian has it where only root's PATH leads.
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("nginx");
        command
            .env("PATH", format!("{path}:/usr/sbin"))
            .args(["-e", "stderr", "-c"])
            .arg(&file);
        let process = Process::start(setting, command)
            .map_err(|why| format!("{why} (Debian: nginx-light)"))?;
        wait_until("nginx answers", || {
            Ok(TcpStream::connect(address).is_ok().then_some(()))
        })
        .map_err(|why| format!("{why}: {}", process.log()))?;
        Ok(Nginx {
            _process: process,
            address,
        })
    }

    /// Where it says hello.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

fn configuration(folder: &Path, address: SocketAddr) -> String {
    let folder = folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = { temporary.iter() }
        .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
        .collect();
    format!(
        "daemon off;\nworker_processes auto;\npid {folder}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n{temporary}access_log off;\nsendfile on;\nkeepalive_requests 1000000000;\n\
         server {{ listen {address}; location / {{ default_type text/plain; return 200 \"hello world\"; }}\n\
         location = /file {{ root {folder}; }} }}\n}}\n"
    )
}
