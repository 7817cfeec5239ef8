//! Connections to a server without a proxy; TLS is a layer above them.
//!
//! ureq's own connections send the head of a request and then its body, which wakes the server twice, and
//! make nine system calls beside sending and receiving. These send both together when the answer is
//! awaited, and make two: a fifth of the time of a small command.
//!
//! An answer may come before its request has been sent: a proxy answers 413 to the head and closes, and
//! what is still being sent to it makes the system report a reset. The answer is there all the same. So
//! where nothing more can be sent, what has come is read, and the rest of the request is dropped.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;
use ureq::Error;
#[cfg(feature = "tls")]
use ureq::unversioned::transport::RustlsConnector;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, LazyBuffers, NextTimeout, Transport,
};

/// A time-out may come this much later than asked for. What is left of it shrinks with each call, and
/// setting it on the socket each time would be a system call for nothing.
const TIMEOUT_SLACK: Duration = Duration::from_secs(1);
/// Bytes that the system keeps of what is being sent; Linux doubles it. With more, all of a report would be
/// in the system at once, and nobody could tell a slow link, on which it goes on, from a dead one.
const SEND_BUFFER_BYTES: usize = 16 << 10;
/// Each buffer of a connection at first, in bytes: an order or a result fits in a fraction of it. To clear
/// ureq's 128 KiB for every new connection took longer than the rest of a poll.
pub const BUFFER_BYTES: usize = 16 << 10;
/// The largest buffer for what is received, in bytes: larger than the longest head, which is an error then.
pub const MAX_INPUT_BYTES: usize = 128 << 10;
/// The least time for one address of several: a shorter one could not succeed.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_millis(10);

/// Makes these connections, or ureq's where there is a proxy.
#[derive(Debug, Default)]
pub struct Connections {
    fallback: DefaultConnector,
    #[cfg(feature = "tls")]
    tls: RustlsConnector,
    is_for_files: bool,
}

impl Connections {
    #[cfg(any(feature = "agent", feature = "cli"))]
    /// Connections that send and receive files: the system decides how much of them is under way.
    pub fn for_files() -> Self {
        Connections {
            is_for_files: true,
            ..Connections::default()
        }
    }
}

impl Connector for Connections {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        // In a build without TLS ureq returns the error.
        let lacks_tls = details.needs_tls() && !cfg!(feature = "tls");
        if lacks_tls || details.config.proxy().is_some() {
            return self.fallback.connect(details, chained);
        }
        let stream = connect(details)?;
        stream.set_nodelay(true)?;
        let bytes = match self.is_for_files {
            true => MAX_INPUT_BYTES,
            false => {
                // Without it the connection works as well; only a slow link is given up too soon.
                let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
                BUFFER_BYTES
            }
        };
        let connection = Connection {
            stream,
            buffers: LazyBuffers::new(bytes, bytes),
            input_bytes: bytes,
            unsent: Vec::new(),
            is_encrypted: details.needs_tls(),
            is_cut: false,
            read_timeout: None,
        };
        #[cfg(feature = "tls")]
        if details.needs_tls() {
            let encrypted = self.tls.connect(details, Some(connection))?;
            return Ok(encrypted.map(Transport::boxed));
        }
        Ok(Some(connection.boxed()))
    }
}

/// Tries the addresses one after the other. Each gets its share of the time that is left.
fn connect(details: &ConnectionDetails) -> Result<TcpStream, Error> {
    let begin = std::time::Instant::now();
    let mut why = Error::HostNotFound;
    let mut left = details.addrs.len() as u32;
    for address in &details.addrs {
        let connected = match details.timeout.not_zero() {
            None => TcpStream::connect(address),
            Some(timeout) => {
                let part = timeout.saturating_sub(begin.elapsed()) / left.max(1);
                TcpStream::connect_timeout(address, part.max(MIN_CONNECT_TIMEOUT))
            }
        };
        left = left.saturating_sub(1);
        match connected {
            Ok(stream) => return Ok(stream),
            Err(failure) => why = as_timeout(failure, &details.timeout),
        }
    }
    Err(why)
}

/// An I/O error as ureq reports it: with the reason of the time-out if it was one.
fn as_timeout(why: io::Error, timeout: &NextTimeout) -> Error {
    match why.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Error::Timeout(timeout.reason),
        _ => Error::Io(why),
    }
}

/// A connection.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// The size of the buffer for what is received.
    input_bytes: usize,
    /// Bytes to be sent when the answer is awaited.
    unsent: Vec<u8>,
    /// The bytes are those of TLS: what has come need not be an answer.
    is_encrypted: bool,
    /// The rest of the request was dropped because an answer had come.
    is_cut: bool,
    read_timeout: Option<Duration>,
}

impl Connection {
    /// Sends what is unsent. Each wait for the peer to take more has the whole time-out of a write, so a
    /// slow link is no error as long as it goes on.
    fn send(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        let unsent = std::mem::take(&mut self.unsent);
        let mut rest = &unsent[..];
        while !rest.is_empty() && !self.is_cut {
            match send(
                &self.stream,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_for_room(&timeout.for_write())?,
                Err(Errno::PIPE | Errno::CONNRESET) if self.has_input() => self.is_cut = true,
                Err(why) => return Err(Error::Io(why.into())),
            }
        }
        self.unsent = unsent;
        self.unsent.clear();
        Ok(())
    }

    /// Waits until more can be sent, or until an answer has come instead.
    fn wait_for_room(&mut self, timeout: &NextTimeout) -> Result<(), Error> {
        let mut wanted = PollFlags::OUT;
        if !self.is_encrypted {
            wanted |= PollFlags::IN;
        }
        let limit = timeout.not_zero();
        let limit = limit.and_then(|limit| Timespec::try_from(*limit).ok());
        let mut fds = [PollFd::new(&self.stream, wanted)];
        let ready = match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return Err(Error::Timeout(timeout.reason)),
            Ok(_) => fds[0].revents(),
            Err(Errno::INTR) => return Ok(()),
            Err(why) => return Err(Error::Io(why.into())),
        };
        // With an error both are set, and the next write reports it.
        self.is_cut = ready.contains(PollFlags::IN) && !ready.contains(PollFlags::OUT);
        Ok(())
    }

    /// Makes room in the buffer for what is received, if it is full: the head of an answer is parsed as a whole.
    fn grow_input(&mut self) {
        if !self.buffers.input_append_buf().is_empty() || self.input_bytes >= MAX_INPUT_BYTES {
            return;
        }
        let received = self.buffers.input().to_vec();
        self.input_bytes *= 2;
        self.buffers = LazyBuffers::new(self.input_bytes, BUFFER_BYTES);
        self.buffers.input_append_buf()[..received.len()].copy_from_slice(&received);
        self.buffers.input_appended(received.len());
    }

    /// Whether the peer has sent something that was not read.
    fn has_input(&self) -> bool {
        let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(recv(&self.stream, &mut [0u8; 1], look), Ok((1.., _)))
    }
}

/// The time-out to set on a socket; none if the one it has is near enough.
fn changed_timeout(timeout: &NextTimeout, set: &mut Option<Duration>) -> Option<Option<Duration>> {
    let wanted = timeout.not_zero().map(|wanted| *wanted);
    let near = match (*set, wanted) {
        (Some(set), Some(wanted)) => set >= wanted && set - wanted <= TIMEOUT_SLACK,
        (None, None) => true,
        _ => false,
    };
    if near {
        return None;
    }
    *set = wanted;
    Some(wanted)
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = self.buffers.output();
        let room = output.len();
        if self.is_cut {
            return Ok(());
        }
        self.unsent.extend_from_slice(&output[..amount]);
        match self.unsent.len() < room {
            true => Ok(()),
            false => self.send(timeout),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.send(timeout)?;
        self.grow_input();
        let timeout = timeout.for_read();
        if let Some(wanted) = changed_timeout(&timeout, &mut self.read_timeout) {
            self.stream.set_read_timeout(wanted)?;
        }
        let read = loop {
            match self.stream.read(self.buffers.input_append_buf()) {
                // Interrupted by a signal: Linux does not restart a read that has a time-out.
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                read => break read.map_err(|why| as_timeout(why, &timeout))?,
            }
        };
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// Whether the server has neither closed the connection nor sent anything that was not asked for.
    fn is_open(&mut self) -> bool {
        if self.is_cut {
            return false;
        }
        let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let found = recv(&self.stream, &mut [0u8; 1], look);
        matches!(found, Err(Errno::AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::config::Registry;
    use crate::wire::agent::Goodbye;
    use std::io::Write;
    use std::net::TcpListener;

    /// Answers this many requests, each of which has to come in one piece. Returns their bodies.
    fn serve(listener: &TcpListener, requests: usize) -> Vec<String> {
        let (mut stream, _) = listener.accept().unwrap();
        let body = r#"{"signal":0,"msg":"","data":null}"#;
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        let one = |_| {
            let mut piece = [0; 4_096];
            let read = stream.read(&mut piece).unwrap();
            stream
                .write_all((answer.clone() + body).as_bytes())
                .unwrap();
            let text = String::from_utf8_lossy(&piece[..read]);
            text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
        };
        (0..requests).map(one).collect()
    }

    #[test]
    fn a_request_is_one_piece_and_an_open_connection_is_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::new(&Registry::new(vec![url], None)).unwrap();
        let goodbye = Goodbye {
            instance: "i".into(),
            holds: Vec::new(),
        };
        // The server closes the first connection after two requests; the third needs another one.
        for requests in [2, 1] {
            let bodies = std::thread::scope(|scope| {
                let server = scope.spawn(|| serve(&listener, requests));
                for _ in 0..requests {
                    client.goodbye(&goodbye).unwrap();
                }
                server.join().unwrap()
            });
            assert_eq!(bodies, vec![r#"{"instance":"i","holds":[]}"#; requests]);
        }
    }

    #[test]
    fn a_time_out_is_set_again_when_it_differs() {
        let mut set = None;
        let mut is_set = |ms| {
            let timeout = NextTimeout {
                after: Duration::from_millis(ms).into(),
                ..NextTimeout::default()
            };
            changed_timeout(&timeout, &mut set).is_some()
        };
        let times = [30_000, 29_999, 29_100, 28_000, 28_001, 7_000, 7_000, 35_000];
        let calls = times.map(&mut is_set);
        assert_eq!(calls, [true, false, false, true, true, true, false, true]);
    }
}
