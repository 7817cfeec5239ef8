//! A socket to a server of the database: it notices a dead one, and is encrypted except to this machine.

use super::url::{Host, TlsMode};
use crate::tls::{ClientTls, TlsStream};
use rustix::net::sockopt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// The longest time to connect to one address of a host: a leader has 7 s to find the server that is alive.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A server from which nothing comes is asked whether it is there after this time, and again after the same.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// So many questions without an answer, and the connection is broken: within 4 s, well within the trust of a leader.
const PROBES: u32 = 3;
/// The same while something is on its way to it, in milliseconds.
const UNACKNOWLEDGED_MS: u32 = 4_000;

/// A connected socket.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

/// Connects to a host. The error is for people and does not name it.
pub fn connect(host: &Host) -> Result<TcpStream, String> {
    let addresses = (host.name.as_str(), host.port).to_socket_addrs();
    let addresses = addresses.map_err(|why| format!("its name cannot be resolved: {why}"))?;
    let mut last = "its name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(socket) => {
                watch(&socket).map_err(|why| format!("its socket cannot be set up: {why}"))?;
                return Ok(socket);
            }
            Err(why) if why.kind() == io::ErrorKind::TimedOut => {
                last = format!("it did not accept a connection within {CONNECT_TIMEOUT:?}");
            }
            Err(why) => last = format!("cannot connect: {why}"),
        }
    }
    Err(last)
}

/// Lets the kernel notice that the other side is gone. A commit may wait for minutes for the standby of the database,
/// so how long an answer takes says nothing.
fn watch(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, PROBE_INTERVAL)?;
    sockopt::set_tcp_keepintvl(socket, PROBE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    sockopt::set_tcp_user_timeout(socket, UNACKNOWLEDGED_MS)?;
    Ok(())
}

impl Stream {
    /// Whether connections to the host are encrypted.
    pub fn wants_tls(mode: TlsMode, host: &Host) -> bool {
        match mode {
            TlsMode::Always => true,
            TlsMode::Never => false,
            TlsMode::Usual => !host.is_loopback(),
        }
    }

    /// Encrypts a socket whose server is ready for it.
    pub fn encrypted(socket: TcpStream, tls: &ClientTls) -> Result<Stream, String> {
        let stream = TlsStream::connect(socket, tls);
        let stream = stream.map_err(|why| format!("TLS: {why}; --db-ca FILE names the authorities to trust, `?sslmode=disable` behind the URL turns TLS off"))?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.socket(),
        }
    }

    /// The longest time without a byte of an answer.
    pub fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket().set_read_timeout(limit)
    }

    /// Whether something has come that nobody asked for, such as the end: then it cannot be used any more.
    pub fn is_stale(&self) -> bool {
        let socket = self.socket();
        let mut byte = [0];
        let peeked = socket.set_nonblocking(true).and_then(|()| {
            let peeked = socket.peek(&mut byte);
            socket.set_nonblocking(false)?;
            peeked
        });
        !peeked.is_err_and(|why| why.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(to),
            Stream::Tls(stream) => stream.read(to),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}
