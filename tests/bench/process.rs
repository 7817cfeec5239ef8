//! Servers, agents and other programs: what they use, as /proc tells; killed when dropped.

use crate::api::Api;
use crate::setting::Setting;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long something may take to be there before the row is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for something that takes a while.
pub const LOOK: Duration = Duration::from_millis(2);
/// A tick of /proc/PID/stat: Linux shows all programs 100 of them a second.
const TICK: Duration = Duration::from_millis(10);

/// A program with a process group of its own. Its log goes to a file, as a service's does: a pipe
/// would need a reader, and the reader a part of the processor that is measured.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it.
    pub fn start(setting: &Setting, mut command: Command) -> Result<Process, String> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log = setting.fresh("log");
        let file = File::create(&log).map_err(|why| format!("{}: {why}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .process_group(0)
            .spawn()
            .map_err(|why| match why.kind() {
                ErrorKind::NotFound => format!("there is no {program}"),
                _ => format!("{program}: {why}"),
            })?;
        Ok(Process { child, log })
    }

    /// Sends it a signal; one that has ended needs none.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// A number of KiB from /proc/PID/status, such as `VmRSS` or `VmHWM`.
    pub fn kib(&self, name: &str) -> Result<u64, String> {
        kib(self.child.id(), name)
    }

    /// How many threads it has.
    pub fn threads(&self) -> Result<u64, String> {
        kib(self.child.id(), "Threads")
    }

    /// How many files it has open.
    pub fn descriptors(&self) -> Result<u64, String> {
        let path = format!("/proc/{}/fd", self.child.id());
        let entries = fs::read_dir(&path).map_err(|why| format!("{path}: {why}"))?;
        Ok(entries.count() as u64)
    }

    /// How long it has been on a processor, threads that have ended included.
    pub fn cpu(&self) -> Result<Duration, String> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(&path).map_err(|why| format!("{path}: {why}"))?;
        // After the name, which may have blanks: state is the first, utime the 12th, stime the 13th.
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks: Vec<u32> = { fields.split(' ').skip(11).take(2) }
            .filter_map(|field| field.parse().ok())
            .collect();
        match ticks[..] {
            [user, system] => Ok(TICK * (user + system)),
            _ => Err(format!("{path}: no times in {stat:?}")),
        }
    }

    /// The processes that it has started and that are still there.
    pub fn children(&self) -> Vec<u32> {
        let pid = self.child.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = fs::read_to_string(path).unwrap_or_default();
        let numbers = text.split_whitespace();
        numbers.filter_map(|number| number.parse().ok()).collect()
    }

    /// Its log.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Shows what it warned of, for somebody who wonders about a figure.
    pub fn show_warnings(&self) {
        for line in self.log().lines().filter(|line| line.contains("WARN")) {
            eprintln!("{line}");
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Not the group at once: an agent's guard is in it, and ends the agent's commands.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::TERM);
        let _ = fs::remove_file(&self.log);
    }
}

/// A number from /proc/PID/status.
pub fn kib(pid: u32, name: &str) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(|why| format!("{path}: {why}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
    word.and_then(|word| word.parse().ok())
        .ok_or_else(|| format!("{path}: no {name}"))
}

/// A server of the row's own.
pub struct Server {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts one with these flags more, and waits until it answers.
    pub fn start(setting: &Setting, flags: &[&str]) -> Result<Server, String> {
        Server::wrapped(setting, &[], flags)
    }

    /// The same, started by another program such as strace.
    pub fn wrapped(setting: &Setting, by: &[&str], flags: &[&str]) -> Result<Server, String> {
        let address = free_address()?;
        let binary = setting.binary.to_string_lossy();
        let own = [&*binary, "server", "--listen"];
        let words: Vec<&str> = [by, &own].concat();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .arg(address.to_string())
            .args(flags)
            .env_remove("RUST_LOG");
        let mut process = Process::start(setting, command)?;
        let mut server_log = || match process.has_ended() {
            true => Some(process.log()),
            false => None,
        };
        wait_until("the server answers", || {
            if let Some(log) = server_log() {
                return Err(format!("the server has ended: {log}"));
            }
            Ok(TcpStream::connect(address).is_ok().then_some(()))
        })?;
        Ok(Server { process, address })
    }

    /// A connection to it.
    pub fn api(&self) -> Api {
        Api::new(self.address)
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// An agent process.
pub fn agent(
    setting: &Setting,
    server: SocketAddr,
    label: &str,
    flags: &[&str],
) -> Result<Process, String> {
    Process::start(setting, agent_command(setting, server, label, flags))
}

/// What starts an agent.
pub fn agent_command(
    setting: &Setting,
    server: SocketAddr,
    label: &str,
    flags: &[&str],
) -> Command {
    let mut command = Command::new(&setting.binary);
    command
        .arg("agent")
        .args(flags)
        .env("SIDEBIKE_MACHINE_LABEL", label)
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.to_string())
        .env_remove("RUST_LOG");
    command
}

/// An address on which nobody listens.
pub fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map_err(|why| format!("no free port: {why}"))
}

/// Looks again and again until it is there; the words say what was awaited.
pub fn wait_until<T>(
    what: &str,
    look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    wait_for(PATIENCE, what, look)
}

/// The same for so long.
pub fn wait_for<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let begin = Instant::now();
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if begin.elapsed() > patience {
            return Err(format!("in vain: {what}"));
        }
        std::thread::sleep(LOOK);
    }
}
