//! Connections to a server that is spoken to without a proxy; TLS lies over them.
//!
//! ureq's own send the head of a request and then its body, which wakes a server twice, and make nine
//! system calls beside the sending and the receiving. These send both together, when the answer is
//! awaited, and make two.

use rustix::net::{RecvFlags, recv};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use ureq::Error;
#[cfg(feature = "tls")]
use ureq::unversioned::transport::RustlsConnector;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, LazyBuffers, NextTimeout, Transport,
};

/// A time-out may come so much later than asked for: what is left of it is a little less with each
/// call, and to tell the system each time would be a system call for nothing.
const SLACK: Duration = Duration::from_secs(1);

/// Makes connections: these where they will do, else ureq's.
#[derive(Debug, Default)]
pub struct Connections {
    others: DefaultConnector,
    #[cfg(feature = "tls")]
    tls: RustlsConnector,
}

impl Connector for Connections {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        // Where there is no TLS it is ureq's that says so.
        let is_not_for_us = details.needs_tls() && !cfg!(feature = "tls");
        if is_not_for_us || details.config.proxy().is_some() {
            return self.others.connect(details, chained);
        }
        let stream = connect(details)?;
        stream.set_nodelay(true)?;
        let (input, output) = (
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        let connection = Connection {
            stream,
            buffers: LazyBuffers::new(input, output),
            unsent: Vec::new(),
            read_timeout: None,
            write_timeout: None,
        };
        #[cfg(feature = "tls")]
        if details.needs_tls() {
            let encrypted = self.tls.connect(details, Some(connection))?;
            return Ok(encrypted.map(Transport::boxed));
        }
        Ok(Some(connection.boxed()))
    }
}

/// Tries the addresses one after the other; each may take its part of the time that is left.
fn connect(details: &ConnectionDetails) -> Result<TcpStream, Error> {
    let begin = std::time::Instant::now();
    let mut why = Error::HostNotFound;
    let mut left = details.addrs.len() as u32;
    for address in &details.addrs {
        let connected = match details.timeout.not_zero() {
            None => TcpStream::connect(address),
            Some(patience) => {
                let part = patience.saturating_sub(begin.elapsed()) / left.max(1);
                TcpStream::connect_timeout(address, part.max(Duration::from_millis(10)))
            }
        };
        left = left.saturating_sub(1);
        match connected {
            Ok(stream) => return Ok(stream),
            Err(failure) => why = in_time(failure, &details.timeout),
        }
    }
    Err(why)
}

/// What a failure means when the socket had this time-out.
fn in_time(why: io::Error, timeout: &NextTimeout) -> Error {
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
    /// What is sent when the answer is awaited.
    unsent: Vec<u8>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Connection {
    fn send(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let timeout = timeout.for_write();
        if let Some(wanted) = due(&timeout, &mut self.write_timeout) {
            self.stream.set_write_timeout(wanted)?;
        }
        let sent = self.stream.write_all(&self.unsent);
        self.unsent.clear();
        sent.map_err(|why| in_time(why, &timeout))
    }
}

/// The time-out that is to be set on a socket, if it is not near enough to the one it has.
fn due(timeout: &NextTimeout, set: &mut Option<Duration>) -> Option<Option<Duration>> {
    let wanted = timeout.not_zero().map(|wanted| *wanted);
    let near = match (*set, wanted) {
        (Some(set), Some(wanted)) => set >= wanted && set - wanted <= SLACK,
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
        self.unsent.extend_from_slice(&output[..amount]);
        match self.unsent.len() < room {
            true => Ok(()),
            false => self.send(timeout),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.send(timeout)?;
        let timeout = timeout.for_read();
        if let Some(wanted) = due(&timeout, &mut self.read_timeout) {
            self.stream.set_read_timeout(wanted)?;
        }
        let read = loop {
            match self.stream.read(self.buffers.input_append_buf()) {
                // A signal; Linux does not go on by itself with a read that has a time-out.
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                read => break read.map_err(|why| in_time(why, &timeout))?,
            }
        };
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// Whether the server has neither hung up nor said what nobody asked for.
    fn is_open(&mut self) -> bool {
        let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let found = recv(&self.stream, &mut [0u8; 1], look);
        matches!(found, Err(rustix::io::Errno::AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::config::Registry;
    use crate::wire::agent::Goodbye;
    use std::net::TcpListener;

    /// Answers so many requests, each of which has to come in one piece; returns their ends.
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
        let client = Client::new(&Registry { url, ca: None }).unwrap();
        let goodbye = Goodbye {
            instance: "i".into(),
            holds: Vec::new(),
        };
        // The second connection is there because the first is gone by the third request.
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
        let mut due_for = |ms| {
            let timeout = NextTimeout {
                after: Duration::from_millis(ms).into(),
                ..NextTimeout::default()
            };
            due(&timeout, &mut set).is_some()
        };
        let times = [30_000, 29_999, 29_100, 28_000, 28_001, 7_000, 7_000, 35_000];
        let told = times.map(&mut due_for);
        assert_eq!(told, [true, false, false, true, true, true, false, true]);
    }
}
