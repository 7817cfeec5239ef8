//! A look at a request's head before tiny_http reads it.
//!
//! tiny_http puts no bound on a head; it keeps a thread for ever when a request line ends in
//! `HTTP/2.0` (its answer waits for a writer that waits for the answer); it takes a folded line for
//! a header of its own, and shows only the first of two headers with the same name. So the head is
//! looked at while it still lies in the kernel (`MSG_PEEK`), and handed on only when it is whole,
//! within the limits, and means one thing only. Who looks also learns whether all of the request is
//! there: then nobody has to wait while tiny_http reads it.
//!
//! tiny_http reads ahead: bytes sent together with a request may already be in its buffer, where
//! they cannot be looked at. A connection on which that happens gets no further request; a client
//! that waits for its answer, as all but pipelining ones do, never notices.
//!
//! What comes encrypted is looked at when it is decrypted, a moment before tiny_http gets it.

use super::connection::Turn;
use super::http::{Refused, RequestLimits};
use super::peer::bytes_received;
use super::room::SMALL;
use crate::tls::Overheard;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Room for a head of ordinary size, in bytes; there is more when it is needed.
const USUAL_BYTES: usize = 2 * 1024;
/// The first and the longest pause before another look at a head that is not whole yet. Thousands of
/// them may stay unfinished on purpose, and looking must not be work.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// What is read of a refused request so that its sender gets to read the answer, in bytes.
const DRAINED_BYTES: usize = 1 << 20;

/// Headers that must be given once: of two, one program in front of us may believe the first,
/// another one the last.
const ONCE: [&str; 6] = [
    "Content-Length",
    "Transfer-Encoding",
    "Host",
    "Origin",
    "Sec-Fetch-Site",
    "Authorization",
];

/// Looks at heads, one after the other, of any connection.
pub struct Lookout {
    buffer: Vec<u8>,
}

/// What there is to do with a connection.
#[derive(Debug)]
pub enum Sight {
    /// Nothing has come.
    Nothing,
    /// Part of a head.
    Part,
    /// A good head is there: let tiny_http read it. After a last one no other may be read.
    Request {
        /// Whether it is the connection's last.
        last: bool,
        /// The whole request, in bytes.
        bytes: u64,
        /// All of it can be read without waiting for anything.
        is_there: bool,
    },
    /// A head is there that is not to be read.
    Refused(Refused),
    /// Nothing more will come.
    Over,
}

impl Lookout {
    /// With room for heads as they usually are.
    pub fn new() -> Self {
        Lookout {
            buffer: vec![0; USUAL_BYTES],
        }
    }

    /// Looks at what has come of the next request.
    pub fn look(&mut self, turn: &Turn, limits: &RequestLimits) -> Sight {
        const FLAGS: RecvFlags = RecvFlags::PEEK.union(RecvFlags::DONTWAIT);
        loop {
            let buffer = &mut self.buffer[..];
            let peer = &turn.connection().peer;
            let there = match peer.with(|socket| recv(socket, &mut *buffer, FLAGS)) {
                Some(Ok((_, 0))) | None => return Sight::Over,
                Some(Ok((_, there))) => there.min(self.buffer.len()),
                Some(Err(Errno::INTR)) => continue,
                Some(Err(Errno::AGAIN)) => return Sight::Nothing,
                Some(Err(_)) => return Sight::Over,
            };
            let bytes = &self.buffer[..there];
            if let Some(end) = head_end(bytes) {
                match self.judge(turn, end, there, limits) {
                    Some(sight) => return sight,
                    // More has come meanwhile: look at all of it.
                    None => continue,
                }
            }
            if has_bare_newline(bytes) {
                return refused(400, "a line of the head must end with CR LF");
            }
            if there > limits.head_bytes {
                return refused(431, &too_large(limits));
            }
            if there < self.buffer.len() {
                return Sight::Part;
            }
            self.buffer
                .resize((there * 4).min(limits.head_bytes + 1), 0);
        }
    }

    /// Waits until the next head is whole. How long that may take is the guard's business.
    pub fn wait(&mut self, turn: &Turn, limits: &RequestLimits) -> Sight {
        let Some(socket) = turn.connection().peer.duplicate() else {
            return Sight::Over;
        };
        let mut pause = FIRST_PAUSE;
        let mut nothing_follows = false;
        loop {
            match self.look(turn, limits) {
                Sight::Nothing | Sight::Part if nothing_follows => return Sight::Over,
                Sight::Nothing | Sight::Part => {}
                sight => return sight,
            }
            // More bytes do not end the pause, the end of the connection does; the next look then
            // sees all there will ever be.
            nothing_follows = ends_within(&socket, pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What to do with a head of which `there` bytes were seen, with what follows it. `None` when
    /// that is not to be told before another look.
    fn judge(
        &self,
        turn: &Turn,
        end: usize,
        there: usize,
        limits: &RequestLimits,
    ) -> Option<Sight> {
        if end > limits.head_bytes {
            return Some(refused(431, &too_large(limits)));
        }
        let head = match read_head(&self.buffer[..end], limits) {
            Ok(head) => head,
            Err(refused) => return Some(Sight::Refused(refused)),
        };
        if turn.handed_on() > 0 {
            match is_at_a_boundary(turn, there) {
                Some(true) => {}
                Some(false) => return Some(Sight::Over),
                None => return None,
            }
        }
        let bytes = (end as u64).saturating_add(head.content_length);
        let fits = bytes <= SMALL as u64 && !head.chunked && !head.expects;
        let is_all_seen = there as u64 >= bytes;
        let is_there = fits && (is_all_seen || there == self.buffer.len() && has(turn, bytes));
        Some(Sight::Request {
            last: head.chunked || there as u64 > bytes,
            bytes,
            is_there,
        })
    }
}

/// Whether so many bytes have come that nobody has read.
fn has(turn: &Turn, bytes: u64) -> bool {
    let unread = turn.connection().peer.with(|socket| ioctl_fionread(socket));
    matches!(unread, Some(Ok(unread)) if unread >= bytes)
}

fn ends_within(socket: &OwnedFd, pause: Duration) -> bool {
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: pause.subsec_nanos().into(),
    };
    let mut ends = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut ends, Some(&pause)).is_ok_and(|ready| ready > 0)
}

/// Whether everything that tiny_http has read belonged to requests that were handed on, when so many
/// bytes that it has not read were seen a moment ago. `None` when others came since, so that nobody
/// can say.
fn is_at_a_boundary(turn: &Turn, there: usize) -> Option<bool> {
    let handed_on = turn.handed_on();
    let looked = turn.connection().peer.with(|socket| {
        let received = bytes_received(socket)?;
        if received.saturating_sub(there as u64) == handed_on {
            return Some(Some(true));
        }
        // Either it has read too much, or what was seen is not all there is. Only with nothing come
        // between are the two counts of the same moment.
        let (unread, again) = (ioctl_fionread(socket).ok()?, bytes_received(socket));
        let is_one_moment = again == Some(received);
        Some(is_one_moment.then(|| received.saturating_sub(unread) == handed_on))
    });
    looked.flatten().unwrap_or(Some(false))
}

/// Answers a head that was refused, and lets its sender read that.
pub fn refuse(turn: &Turn, answer: &[u8]) {
    let Some(socket) = turn.connection().peer.duplicate() else {
        return;
    };
    let mut rest = answer;
    while !rest.is_empty() {
        match rustix::io::write(&socket, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
    let _ = shutdown(&socket, Shutdown::Write);
    let mut buffer = [0u8; USUAL_BYTES];
    let mut drained = 0;
    while drained < DRAINED_BYTES {
        match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, 0)) | Err(_) => return,
            Ok((_, read)) => drained += read,
        }
    }
}

/// Looks at the heads of one connection's requests that come encrypted: as they are decrypted, on the
/// thread that reads them.
///
/// What tiny_http must not see, a first line of another version, ends the connection at once. The
/// rest is judged when tiny_http has read the head, too, so that it can be answered with the reason.
pub struct Eavesdropper {
    heard: Rc<RefCell<Heard>>,
    /// Bytes of all requests handed on so far, from their first to their last.
    handed_on: u64,
    _overheard: Overheard,
}

/// What was decrypted.
struct Heard {
    max_bytes: usize,
    /// The head, and perhaps what came with its end; nothing more once that is there.
    head: Vec<u8>,
    /// Its length, when it is whole.
    end: Option<usize>,
    /// Its first line is there, and good.
    has_begun: bool,
    /// It is larger than it may be.
    too_large: bool,
    /// Bytes in all.
    bytes: u64,
}

impl Heard {
    /// Takes in some more. Whether others may.
    fn hear(&mut self, bytes: &[u8]) -> bool {
        self.bytes += bytes.len() as u64;
        if self.end.is_some() || self.too_large {
            return true;
        }
        // Its end may have come in two parts.
        let from = self.head.len().saturating_sub(3);
        self.head.extend_from_slice(bytes);
        self.end = head_end(&self.head[from..]).map(|at| from + at);
        if !self.has_begun {
            let line = self.head.split(|byte| *byte == b'\n').next();
            let line = line.filter(|line| line.len() < self.head.len());
            if let Some(line) = line {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                if wrong_first_line(line).is_some() {
                    return false;
                }
                self.has_begun = true;
            }
        }
        self.too_large = self.end.unwrap_or(self.head.len()) > self.max_bytes;
        // A line without an end that is too long to be looked at is not to be read either.
        self.has_begun || !self.too_large
    }
}

impl Eavesdropper {
    /// For the connection that this thread is about to read.
    pub fn on_this_thread(limits: &RequestLimits) -> Self {
        let heard = Rc::new(RefCell::new(Heard {
            max_bytes: limits.head_bytes,
            head: Vec::new(),
            end: None,
            has_begun: false,
            too_large: false,
            bytes: 0,
        }));
        let ear = heard.clone();
        Eavesdropper {
            heard,
            handed_on: 0,
            _overheard: Overheard::by(move |bytes| ear.borrow_mut().hear(bytes)),
        }
    }

    /// Prepares for the next head. False when something of it was read already, unseen, or the last
    /// request was not read to its end.
    pub fn expects_a_head(&mut self) -> bool {
        let mut heard = self.heard.borrow_mut();
        heard.head = Vec::new();
        (heard.end, heard.has_begun) = (None, false);
        heard.bytes == self.handed_on
    }

    /// What there is to do with the request that has just been read.
    pub fn judge(&mut self, limits: &RequestLimits) -> Sight {
        let heard = self.heard.borrow();
        if heard.too_large {
            return refused(431, &too_large(limits));
        }
        let Some(end) = heard.end else {
            return Sight::Over;
        };
        let head = match read_head(&heard.head[..end], limits) {
            Ok(head) => head,
            Err(refused) => return Sight::Refused(refused),
        };
        let bytes = (end as u64).saturating_add(head.content_length);
        self.handed_on = self.handed_on.saturating_add(bytes);
        Sight::Request {
            last: head.chunked || heard.bytes > self.handed_on,
            bytes,
            is_there: false,
        }
    }
}

fn refused(status: u16, msg: &str) -> Sight {
    Sight::Refused(Refused {
        status,
        msg: msg.into(),
    })
}

fn too_large(limits: &RequestLimits) -> String {
    format!(
        "the head must have {} bytes at most (--max-head)",
        limits.head_bytes
    )
}

/// Where the body begins, if the whole head is there.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map(|at| at + 4)
}

fn has_bare_newline(bytes: &[u8]) -> bool {
    let newlines = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    newlines
        .into_iter()
        .any(|(at, _)| at == 0 || bytes[at - 1] != b'\r')
}

/// What has to be known of a head before it is handed on.
struct Head {
    content_length: u64,
    chunked: bool,
    /// Its body is not sent before it is asked for.
    expects: bool,
}

/// What is wrong with the first line. Exactly three words: tiny_http takes the third for the version,
/// whatever follows.
fn wrong_first_line(line: &[u8]) -> Option<Refused> {
    let refused = |status, msg: &str| {
        Some(Refused {
            status,
            msg: msg.into(),
        })
    };
    let words: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
    let three = words.len() == 3 && words.iter().all(|word| !word.is_empty());
    match words.last().copied() {
        Some(b"HTTP/1.1" | b"HTTP/1.0") if three => None,
        Some(version) if three && version.starts_with(b"HTTP/") => {
            refused(505, "HTTP/1.1 and HTTP/1.0 are spoken here")
        }
        _ => refused(400, "the first line must be METHOD PATH HTTP/1.1"),
    }
}

fn read_head(head: &[u8], limits: &RequestLimits) -> Result<Head, Refused> {
    let bad = |status, msg: &str| {
        Err(Refused {
            status,
            msg: msg.into(),
        })
    };
    if has_bare_newline(head) {
        return bad(400, "a line of the head must end with CR LF");
    }
    let mut lines = head[..head.len() - 4].split(|byte| *byte == b'\n');
    let lines = lines
        .by_ref()
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut lines = lines;
    if let Some(refused) = wrong_first_line(lines.next().unwrap_or_default()) {
        return Err(refused);
    }
    let (mut headers, mut content_length) = (0, None);
    let (mut chunked, mut expects) = (false, false);
    let mut seen = [false; ONCE.len()];
    for line in lines {
        headers += 1;
        if line.first().is_none_or(|byte| matches!(byte, b' ' | b'\t')) {
            return bad(400, "a header must not be folded over several lines");
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().unwrap_or_default();
        // tiny_http would see another name than is looked at here: it trims more than blanks.
        let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let (true, Some(value)) = (name.iter().all(is_letter), parts.next()) else {
            return bad(
                400,
                "a header must be a name of letters, digits, - and _, a colon and a value",
            );
        };
        let value = value.trim_ascii();
        if !value.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) {
            return bad(
                400,
                "a header's value must be of ASCII letters, signs and blanks",
            );
        }
        let once = ONCE
            .iter()
            .position(|once| name.eq_ignore_ascii_case(once.as_bytes()));
        if let Some(n) = once
            && std::mem::replace(&mut seen[n], true)
        {
            return bad(400, &format!("{}: must be given once", ONCE[n]));
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(value)
                .ok()
                .filter(|_| digits)
                .and_then(|v| v.parse().ok());
            let Some(number) = number else {
                return bad(400, "Content-Length: must be a number of bytes");
            };
            content_length = Some(number);
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if value != b"chunked" {
                return bad(400, "Transfer-Encoding: must be chunked");
            }
            chunked = true;
        }
        if name.eq_ignore_ascii_case(b"expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return bad(417, "Expect: must be 100-continue");
            }
            expects = true;
        }
    }
    if headers > limits.headers {
        let msg = format!(
            "{} headers at most (--max-headers), got {headers}",
            limits.headers
        );
        return bad(431, &msg);
    }
    if content_length.is_some() && chunked {
        return bad(
            400,
            "Transfer-Encoding: does not go with Content-Length, give one of them",
        );
    }
    Ok(Head {
        content_length: content_length.unwrap_or(0),
        chunked,
        expects,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits {
        head_bytes: 16 << 10,
        headers: 4,
        target_bytes: 99,
        body_bytes: 99,
    };

    fn status(head: &str) -> u16 {
        read_head(head.as_bytes(), &LIMITS).map_or_else(|refused| refused.status, |_| 200)
    }

    #[test]
    fn a_head_means_one_thing_or_is_refused() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", 200),
            ("GET / HTTP/1.0\r\nHost: x\r\n\r\n", 200),
            ("PRI * HTTP/2.0\r\n\r\n", 505),
            ("GET / HTTP/1.1x\r\n\r\n", 505),
            ("GET / HTTP/2.0 HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1 \r\n\r\n", 400),
            (" / HTTP/1.1\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\x0bContent-Length: 9\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length\x0c: 9\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length : 9\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA\r\n\r\n", 400),
            ("GET / HTTP/1.1\nA: b\r\n\r\n", 400),
            (
                "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-length: 1\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("GET / HTTP/1.1\r\nA: \0\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: é\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\tc d~\r\n\r\n", 200),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nExpect: 100-Continue\r\n\r\n", 200),
            ("GET / HTTP/1.1\r\nExpect: much\r\n\r\n", 417),
            ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (
                "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\ne: 5\r\n\r\n",
                431,
            ),
        ] {
            assert_eq!(status(head), expected, "{head:?}");
        }
    }
}
