//! An HTTP/1.1 client of a page: it sends what it is told, byte for byte, and reads one answer.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No answer takes longer than a held request may.
const PATIENCE: Duration = Duration::from_secs(90);

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let same = |(n, _): &&(String, String)| n.eq_ignore_ascii_case(name);
        self.headers.iter().find(same).map(|(_, value)| &**value)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("an answer in UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn msg(&self) -> String {
        self.json()["msg"].as_str().unwrap_or_default().to_owned()
    }

    /// `data` of an answer that went well.
    pub fn data(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()["data"].take()
    }
}

/// A connection, kept alive for as long as the server keeps it; and what came behind the last answer.
pub struct Connection<S = TcpStream>(S, Vec<u8>);

impl Connection {
    pub fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).expect("the server takes connections");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection(stream, Vec::new())
    }

    /// Another to the same server.
    pub fn again(&self) -> Connection {
        Connection::open(self.0.peer_addr().expect("it is connected"))
    }

    /// `None` when nobody listens.
    pub fn try_open(address: SocketAddr) -> Option<Connection> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Connection(stream, Vec::new()))
    }

    /// Whether the other side still takes it, at once.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        let patience = Duration::from_millis(300);
        self.0.set_write_timeout(Some(patience)).unwrap();
        let sent = self.0.write_all(bytes).is_ok();
        self.0.set_write_timeout(None).unwrap();
        sent
    }
}

impl<S: Read + Write> Connection<S> {
    /// Over another stream than TCP's.
    pub fn over(stream: S) -> Self {
        Connection(stream, Vec::new())
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // A server that refuses early may close while we still write: the answer tells.
        let _ = self.0.write_all(bytes);
    }

    pub fn read(&mut self) -> Reply {
        self.try_read(true).expect("an answer")
    }

    pub fn read_head_only(&mut self) -> Reply {
        self.try_read(false).expect("an answer")
    }

    /// Waits until an answer begins to come.
    pub fn wait_for_some(&mut self) {
        let mut buffer = [0; 1_024];
        let read = self.0.read(&mut buffer).expect("an answer");
        self.1.extend_from_slice(&buffer[..read]);
    }

    /// What comes until the server closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.1);
        let _ = self.0.read_to_end(&mut rest);
        rest
    }

    /// `None` when the connection ends before the answer does.
    pub fn try_read(&mut self, with_body: bool) -> Option<Reply> {
        let mut bytes = std::mem::take(&mut self.1);
        let mut buffer = [0; 64 * 1024];
        let head_ends = loop {
            if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            match self.0.read(&mut buffer).ok()? {
                0 => return None,
                n => bytes.extend_from_slice(&buffer[..n]),
            }
        };
        let head = String::from_utf8(bytes[..head_ends].to_vec()).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut reply = Reply {
            status,
            headers,
            body: bytes.split_off(head_ends),
        };
        let length = reply.header("Content-Length")?.parse().ok()?;
        while with_body && reply.body.len() < length {
            match self.0.read(&mut buffer).ok()? {
                0 => return None,
                n => reply.body.extend_from_slice(&buffer[..n]),
            }
        }
        if with_body {
            self.1 = reply.body.split_off(length);
        }
        Some(reply)
    }
}

/// A request in bytes, as curl would send it.
pub fn request(method: &str, target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}").into_bytes();
    if method == "POST" || !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}
