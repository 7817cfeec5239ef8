//! How long programs take to be there.

use crate::http::{Connection, request};
use crate::process::{Process, agent_command, free_address};
use crate::setting::Setting;
use crate::table::{Row, median, quantile, time};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// Starts of each.
const STARTS: usize = 20;
/// The longest from exec to the server's first answer, in seconds.
const SERVER_WITHIN: f64 = 0.010;
/// The longest from exec to the agent's first poll, in seconds.
const AGENT_WITHIN: f64 = 0.020;
/// How often a connection is tried.
const TRY: Duration = Duration::from_micros(100);
/// How long it may take before the row is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// From exec to the answer to /healthz, and from exec to the first poll.
pub fn server_and_agent(setting: &Setting) -> Result<Vec<Row>, String> {
    let server: Vec<f64> = (0..STARTS)
        .map(|_| server_start(setting))
        .collect::<Result<_, _>>()?;
    let agent: Vec<f64> = (0..STARTS)
        .map(|_| agent_start(setting))
        .collect::<Result<_, _>>()?;
    let row = |what: &str, times: &[f64], within: f64| {
        let middle = median(times);
        Row::new(
            what,
            format!("{}, at most {}", time(middle), time(quantile(times, 1.0))),
        )
        .target(format!("median ≤ {}", time(within)), middle <= within)
    };
    Ok(vec![
        row("exec → the server answers", &server, SERVER_WITHIN),
        row("exec → the agent has polled", &agent, AGENT_WITHIN),
    ])
}

fn server_start(setting: &Setting) -> Result<f64, String> {
    let address = free_address()?;
    let mut command = Command::new(&setting.binary);
    command
        .args(["server", "--listen", &address.to_string()])
        .env_remove("RUST_LOG");
    let begin = Instant::now();
    let _server = Process::start(setting, command)?;
    while TcpStream::connect(address).is_err() {
        if begin.elapsed() > PATIENCE {
            return Err("the server does not come".into());
        }
        std::thread::sleep(TRY);
    }
    let mut connection = Connection::try_open(address).ok_or("the server has gone")?;
    connection.send(&request("GET", "/healthz", "", b""));
    let reply = connection.try_read(true).ok_or("the server has gone")?;
    match reply.status {
        200 => Ok(begin.elapsed().as_secs_f64()),
        status => Err(format!("/healthz: {status}")),
    }
}

/// In place of the server a socket: what counts is when the agent's request arrives.
fn agent_start(setting: &Setting) -> Result<f64, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listener = listener.map_err(|why| format!("no free port: {why}"))?;
    let address: SocketAddr = listener.local_addr().map_err(|why| why.to_string())?;
    let command = agent_command(setting, address, "started", &[]);
    let begin = Instant::now();
    let _agent = Process::start(setting, command)?;
    let mut first_words = [0; 16];
    let read = listener.accept().and_then(|(mut stream, _)| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut first_words)
    });
    read.map_err(|why| format!("the agent's poll: {why}"))?;
    Ok(begin.elapsed().as_secs_f64())
}
