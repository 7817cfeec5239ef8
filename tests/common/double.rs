//! A server that is none: what it does with each request is said by the test.

use super::http::Connection;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A connection that waits in vain for as long as this was not made.
const NOT_CONNECTED: Duration = Duration::from_millis(300);

/// A request that came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Method and path.
    pub line: String,
    /// All of it, in bytes.
    bytes: Vec<u8>,
}

impl Asked {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.bytes);
        let head = text.split("\r\n\r\n").next().unwrap_or_default();
        let mut headers = head.lines().filter_map(|line| line.split_once(':'));
        let found = headers.find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    }

    /// All of it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Has a server answer it; gives that answer, with the headers that are sidebike's own.
    pub fn pass_on(&self, server: SocketAddr) -> Reaction {
        let Some(mut connection) = Connection::try_open(server) else {
            return Reaction::Cut;
        };
        connection.send(&self.bytes);
        let Some(reply) = connection.try_read(true) else {
            return Reaction::Cut;
        };
        let own = reply.headers.iter().filter(|(name, _)| {
            let name = name.to_ascii_lowercase();
            name.starts_with("sidebike-")
        });
        let own = own.map(|(name, value)| format!("{name}: {value}\r\n"));
        Reaction::Answer(reply.status, own.collect(), reply.text().to_owned())
    }
}

/// What becomes of a request.
pub enum Reaction {
    /// It is answered with these headers, each with its end of line, and this body.
    Answer(u16, String, String),
    /// The connection ends without an answer.
    Cut,
}

impl Reaction {
    /// The answer of a server that does not lead.
    pub fn standby(leader: &str) -> Reaction {
        let headers = format!("Sidebike-Leader: {leader}\r\nRetry-After: 1\r\n");
        let body = r#"{"signal":-1,"msg":"this server stands by","data":null}"#;
        Reaction::Answer(503, headers, body.into())
    }
}

/// The server. It lives as long as the test process.
pub struct Double {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Double {
    pub fn start(react: impl Fn(&Asked) -> Reaction + Send + Sync + 'static) -> Double {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, react) = (Arc::clone(&asked), Arc::new(react));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, react) = (Arc::clone(&seen), Arc::clone(&react));
                thread::spawn(move || serve(stream, &seen, &*react));
            }
        });
        Double { address, asked }
    }

    /// One that does not lead, and says who does.
    pub fn standby(leader: impl ToString) -> Double {
        let leader = leader.to_string();
        Double::start(move |_| Reaction::standby(&leader))
    }

    /// What came so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Asked>>,
    react: &dyn Fn(&Asked) -> Reaction,
) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let asked = next(&mut stream, &mut bytes)?;
        seen.lock().unwrap().push(asked.clone());
        let Reaction::Answer(status, headers, body) = react(&asked) else {
            return None;
        };
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

/// Reads a request; none when the connection has ended.
fn next(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Asked> {
    let mut buffer = [0; 64 * 1024];
    loop {
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(head) = head {
            let mut asked = Asked {
                line: String::new(),
                bytes: bytes.clone(),
            };
            let length = asked.header("content-length");
            let length: usize = length.map_or(0, |length| length.parse().expect("a length"));
            if bytes.len() >= head + 4 + length {
                asked.bytes.truncate(head + 4 + length);
                bytes.drain(..head + 4 + length);
                let text = String::from_utf8_lossy(&asked.bytes);
                let first = text.lines().next().unwrap_or_default();
                asked.line = first.trim_end_matches(" HTTP/1.1").to_owned();
                return Some(asked);
            }
        }
        match stream.read(&mut buffer).ok()? {
            0 => return None,
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

/// An address to which no connection is ever made, and refused neither: the queue of its listener is full.
pub struct BlackHole {
    pub address: SocketAddr,
    _listener: OwnedFd,
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    pub fn open() -> BlackHole {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let listener = listener.expect("a socket");
        bind(&listener, &any).expect("a free port");
        listen(&listener, 0).expect("it listens");
        let address = getsockname(&listener).expect("an address");
        let address: SocketAddr = address.try_into().expect("an address of TCP");
        let connect = || TcpStream::connect_timeout(&address, NOT_CONNECTED).ok();
        BlackHole {
            address,
            _waiting: std::iter::from_fn(connect).collect(),
            _listener: listener,
        }
    }
}
