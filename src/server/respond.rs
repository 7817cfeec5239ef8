//! Answers → bytes, and the way they go: head and body as one piece, at once as far as the peer takes it,
//! and the rest where somebody may wait for that. tiny_http's writer is but a writer here.

use super::connection::{Connection, Phase};
use super::http::reason;
use super::room::{SMALL, Share};
use log::{debug, warn};
use rustix::net::{SendFlags, send};
use std::cell::Cell;
use std::io::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// An answer up to this size fits into the buffer of a socket that takes any at all, in bytes.
const FITS: usize = 4 * 1_024;
/// Room for the head of an answer, in bytes.
const HEAD_BYTES: usize = 256;
/// The stack of a thread that writes one answer, in bytes.
const WRITER_STACK_BYTES: usize = 64 * 1_024;

/// What is sent back.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
    /// The methods that the path takes, for a 405.
    pub allow: Option<String>,
    /// More headers, each with its line end; empty when there are none.
    pub headers: &'static str,
}

/// How a request is to be answered.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// The connection can take another one.
    pub keep_alive: bool,
    /// Only the head is wanted.
    pub without_body: bool,
    /// The peer speaks HTTP/1.1.
    pub knows_chunks: bool,
    /// What is written needs no encrypting: the socket itself can be written to.
    pub is_plain: bool,
}

/// The way back to the one who asked.
pub struct Responder {
    /// tiny_http's; what comes next on the connection waits until it is dropped.
    writer: Option<Box<dyn Write + Send>>,
    connection: Arc<Connection>,
    manner: Manner,
    is_held: bool,
    /// The connection has nothing but the writer.
    is_thin: bool,
    /// The answer's share of the room, if it is large.
    room: Option<Share>,
}

/// What became of an answer that nobody waited for.
pub enum Sent {
    /// It was sent; whether the connection can take another request.
    Whole(bool),
    /// Somebody who may wait has to send the rest.
    Part(Rest),
}

/// The rest of an answer.
pub struct Rest {
    responder: Responder,
    bytes: Vec<u8>,
    sent: usize,
}

impl Rest {
    /// Writes it. Whether the connection can take another request.
    pub fn send(mut self) -> bool {
        self.responder.is_held = false;
        self.responder.connection.enter(Phase::Writing);
        let rest = self.bytes.get(self.sent..).unwrap_or_default();
        self.responder.write(&[rest]) && self.responder.manner.keep_alive
    }
}

impl Answer {
    /// Whether it takes room: see `room`.
    pub fn is_large(&self) -> bool {
        self.body.len() > SMALL
    }
}

impl Responder {
    /// The way back by tiny_http's writer.
    pub fn new(writer: Box<dyn Write + Send>, connection: Arc<Connection>, manner: Manner) -> Self {
        Responder {
            writer: Some(writer),
            connection,
            manner,
            is_held: false,
            is_thin: false,
            room: None,
        }
    }

    /// Takes the room that a large answer needs. False when there is none.
    pub fn make_room(&mut self, answer: &Answer) -> bool {
        if answer.is_large() && self.room.is_none() {
            let bytes = answer.body.len();
            self.room = self.connection.room.take(&self.connection, bytes);
        }
        !answer.is_large() || self.room.is_some()
    }

    fn write(&mut self, parts: &[&[u8]]) -> bool {
        let Some(writer) = &mut self.writer else {
            return false;
        };
        let written = parts.iter().try_for_each(|part| writer.write_all(part));
        let written = written.and_then(|()| writer.flush());
        if let Err(error) = &written {
            debug!("an answer could not be written: {error}");
        }
        written.is_ok()
    }

    /// Head and body, if that is wanted.
    fn in_bytes(&self, answer: &Answer) -> Vec<u8> {
        let mut bytes = head(answer, self.manner.keep_alive);
        if !self.manner.without_body {
            bytes.extend_from_slice(&answer.body);
        }
        bytes
    }

    /// Writes the answer. Whether the connection can take another request.
    pub fn send(mut self, answer: &Answer) -> bool {
        self.is_held = false;
        self.connection.enter(Phase::Writing);
        if !self.make_room(answer) {
            debug!("an answer found no room and was given up");
            return false;
        }
        // One piece where it is small, no copy where it is large.
        let written = if answer.is_large() && !self.manner.without_body {
            let head = head(answer, self.manner.keep_alive);
            self.write(&[&head, &answer.body])
        } else {
            let bytes = self.in_bytes(answer);
            self.write(&[&bytes])
        };
        written && self.manner.keep_alive
    }

    /// Sends as much of an answer that is not large as can be sent without waiting for the peer.
    pub fn send_now(mut self, answer: &Answer) -> Sent {
        let bytes = self.in_bytes(answer);
        let mut sent = 0;
        if self.manner.is_plain {
            const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
            // Nothing is in tiny_http's own buffer: whatever is written is flushed.
            let socket = &self.connection.peer;
            if let Some(Ok(now)) = socket.with(|socket| send(socket, &bytes, FLAGS)) {
                sent = now;
            }
        }
        if sent == bytes.len() {
            self.is_held = false;
            return Sent::Whole(self.manner.keep_alive);
        }
        Sent::Part(Rest {
            responder: self,
            bytes,
            sent,
        })
    }

    /// Begins an answer of unknown length, the last one of its connection. `None` when the peer is
    /// gone, or wants the head only.
    pub fn stream(mut self, content_type: &'static str) -> Option<Streaming> {
        self.connection.enter(Phase::Writing);
        let encoding = if self.manner.knows_chunks {
            "Transfer-Encoding: chunked\r\n"
        } else {
            ""
        };
        let mut head = b"HTTP/1.1 200 OK\r\nDate: ".to_vec();
        add_date(&mut head);
        // Writing to a vector cannot fail.
        let _ = write!(
            head,
            "\r\nContent-Type: {content_type}\r\n{encoding}Cache-Control: no-store\r\nX-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        );
        let written = self.write(&[&head]);
        (written && !self.manner.without_body).then_some(Streaming { responder: self })
    }

    /// Answers a held request. Never waits for the peer: few threads answer all who are held.
    pub fn send_held(self, answer: Answer) {
        let connection = self.connection.clone();
        let is_small = answer.body.len() <= FITS;
        // Encrypted it is sent by whoever may wait, unless it is sure to fit.
        if !self.manner.is_plain && is_small && connection.takes_more() {
            return connection.answered(self.send(&answer));
        }
        let rest = match answer.is_large() {
            true => Err((self, answer)),
            false => match self.send_now(&answer) {
                Sent::Whole(stays) => return connection.answered(stays),
                Sent::Part(rest) => Ok(rest),
            },
        };
        let writer = std::thread::Builder::new()
            .name("writer".into())
            .stack_size(WRITER_STACK_BYTES)
            .spawn(move || {
                let stays = match rest {
                    Ok(rest) => rest.send(),
                    Err((responder, answer)) => responder.send(&answer),
                };
                connection.answered(stays);
            });
        if let Err(error) = writer {
            warn!("no thread to answer a held request, its connection was cut: {error}");
        }
    }

    /// Lets the request be answered later, from anywhere.
    pub fn hold(&mut self) {
        let Manner {
            keep_alive,
            is_plain,
            ..
        } = self.manner;
        self.is_thin = self.connection.hold(keep_alive, is_plain);
        self.manner.keep_alive &= !self.is_thin;
        self.is_held = true;
    }

    /// The connection that the request came by.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let writer = self.writer.take();
        if self.is_thin {
            // There is nothing else of the connection.
            self.connection.peer.close(|| drop(writer));
        } else {
            // Before the connection is closed, so that nothing is left of it then.
            drop(writer);
        }
        if self.is_held {
            // Nobody has answered it, and nobody will.
            self.connection.answered(false);
        }
    }
}

/// An answer that is being written as it comes about.
pub struct Streaming {
    responder: Responder,
}

impl Streaming {
    /// Writes the next part, at once. Whether it could be written.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        if !self.responder.manner.knows_chunks {
            return self.put(bytes);
        }
        // Without chunks, which came with HTTP/1.1, the end of the connection is that of the answer.
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        // A chunk of no bytes would be the end.
        bytes.is_empty() || self.put(&chunk)
    }

    /// Says that this was all.
    pub fn finish(mut self) {
        if self.responder.manner.knows_chunks {
            self.put(b"0\r\n\r\n");
        }
    }

    /// The connection it goes by.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.responder.connection
    }

    fn put(&mut self, bytes: &[u8]) -> bool {
        self.connection().enter(Phase::Writing);
        self.responder.write(&[bytes])
    }
}

/// An answer after which the connection is closed, whole.
pub fn in_bytes(answer: &Answer) -> Vec<u8> {
    let mut bytes = head(answer, false);
    bytes.extend_from_slice(&answer.body);
    bytes
}

fn head(answer: &Answer, keep_alive: bool) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES + answer.body.len().min(SMALL));
    let (status, length) = (answer.status.to_string(), answer.body.len().to_string());
    let mut put = |text: &str| head.extend_from_slice(text.as_bytes());
    put("HTTP/1.1 ");
    put(&status);
    put(" ");
    put(reason(answer.status));
    put("\r\nContent-Type: ");
    put(answer.content_type);
    put("\r\nContent-Length: ");
    put(&length);
    put("\r\nX-Content-Type-Options: nosniff\r\n");
    put(answer.headers);
    if !keep_alive {
        put("Connection: close\r\n");
    }
    if let Some(methods) = &answer.allow {
        put("Allow: ");
        put(methods);
        put("\r\n");
    }
    put("Date: ");
    add_date(&mut head);
    head.extend_from_slice(b"\r\n\r\n");
    head
}

/// The time of an answer. A second has many answers, and to put its name together is a part of each.
fn add_date(to: &mut Vec<u8>) {
    /// As `Sun, 06 Nov 1994 08:49:37 GMT`.
    const LENGTH: usize = 29;
    thread_local! {
        static LAST: Cell<(u64, [u8; LENGTH])> = const { Cell::new((0, [b' '; LENGTH])) };
    }
    let now = SystemTime::now();
    let second = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (of, mut text) = LAST.get();
    if of != second {
        let date = httpdate::HttpDate::from(now).to_string();
        if let Ok(date) = date.into_bytes().try_into() {
            text = date;
            LAST.set((second, text));
        }
    }
    to.extend_from_slice(&text);
}
