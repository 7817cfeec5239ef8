//! Answers → bytes.

use super::head::ResponseMode;
use std::borrow::Cow;
use std::cell::Cell;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is smaller is not counted by the memory budget, in bytes: a connection may have that much in its buffers.
pub const SMALL: usize = 16 * 1024;
/// Room for the head of an answer, in bytes.
const HEAD_BYTES: usize = 256;
/// What every answer begins with, of whatever status.
pub const FIRST_BYTES: &[u8] = b"HTTP/1.1 ";
/// Asks a client that waits for it to send its body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What is sent back.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Cow<'static, [u8]>,
    /// The methods that the path takes, for a 405.
    pub allow: Option<String>,
    /// More headers, each with its line end; empty when there are none.
    pub headers: Cow<'static, str>,
}

impl Answer {
    /// With this status and body, without further headers.
    pub fn new(
        status: u16,
        content_type: &'static str,
        body: impl Into<Cow<'static, [u8]>>,
    ) -> Answer {
        Answer {
            status,
            content_type,
            body: body.into(),
            allow: None,
            headers: Cow::Borrowed(""),
        }
    }

    /// The same, with more header lines.
    pub fn with_headers(mut self, lines: &str) -> Answer {
        if !lines.is_empty() {
            self.headers.to_mut().push_str(lines);
        }
        self
    }

    /// The bytes that count for the memory budget: a constant body takes no memory, a small one is not counted.
    pub fn counted_bytes(&self) -> Option<usize> {
        match &self.body {
            Cow::Owned(body) if body.len() > SMALL => Some(body.len()),
            _ => None,
        }
    }

    /// Head and body, in one piece where the body is small.
    pub fn into_parts(self, mode: ResponseMode) -> (Vec<u8>, Option<Cow<'static, [u8]>>) {
        let mut head = self.head(mode);
        if mode.without_body || self.body.is_empty() {
            return (head, None);
        }
        if self.body.len() <= SMALL {
            head.extend_from_slice(&self.body);
            return (head, None);
        }
        (head, Some(self.body))
    }

    fn head(&self, mode: ResponseMode) -> Vec<u8> {
        self.head_for(mode, self.body.len() as u64)
    }

    /// The head, for a body of so many bytes that comes from elsewhere.
    pub fn head_for(&self, mode: ResponseMode, length: u64) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEAD_BYTES + self.body.len().min(SMALL));
        begin(&mut head, self.status, self.content_type);
        // Writing to a vector cannot fail.
        // A 304 has no body, and its length would be that of the body which the client has.
        if self.status != 304 {
            let _ = write!(head, "Content-Length: {length}\r\n");
        }
        head.extend_from_slice(self.headers.as_bytes());
        if !mode.keep_alive {
            head.extend_from_slice(b"Connection: close\r\n");
        } else if mode.is_http_1_0 {
            head.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        if let Some(methods) = &self.allow {
            let _ = write!(head, "Allow: {methods}\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// The head of an answer of unknown length, the last one of its connection, with more header lines.
pub fn stream_head(content_type: &str, lines: &str, mode: ResponseMode) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    begin(&mut head, 200, content_type);
    if !mode.is_http_1_0 {
        head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    head.extend_from_slice(lines.as_bytes());
    head.extend_from_slice(
        b"Cache-Control: no-store\r\nX-Accel-Buffering: no\r\nConnection: close\r\n\r\n",
    );
    head
}

/// A part of a stream as it is sent. Without chunks, which came with HTTP/1.1, the end of the connection is that of
/// the answer.
pub fn chunk(part: Vec<u8>, mode: ResponseMode) -> Vec<u8> {
    if mode.is_http_1_0 {
        return part;
    }
    let mut chunk = format!("{:x}\r\n", part.len()).into_bytes();
    chunk.extend_from_slice(&part);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// What ends a stream.
pub fn last_chunk(mode: ResponseMode) -> &'static [u8] {
    if mode.is_http_1_0 { b"" } else { b"0\r\n\r\n" }
}

fn begin(head: &mut Vec<u8>, status: u16, content_type: &str) {
    head.extend_from_slice(FIRST_BYTES);
    let _ = write!(head, "{status} ");
    head.extend_from_slice(reason(status).as_bytes());
    head.extend_from_slice(b"\r\nDate: ");
    add_date(head);
    head.extend_from_slice(b"\r\nContent-Type: ");
    head.extend_from_slice(content_type.as_bytes());
    head.extend_from_slice(b"\r\nX-Content-Type-Options: nosniff\r\n");
}

/// What the statuses that are used here are called.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        505 => "HTTP Version Not Supported",
        // The words mean nothing to programs.
        _ => "Other",
    }
}

/// The time of an answer. Formatted once a second, as a second has many answers.
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
