//! Bytes ↔ requests and answers. The only place that names tiny_http.
//!
//! Of tiny_http we use the parser and the reader of bodies. The accept loop is ours (`listen`), and
//! answers are written as one piece, head and body together. What tiny_http leaves unbounded is
//! bounded by `listen`'s guard, which needs to know what each connection is doing: see [`Phase`].

use super::open::Open;
use super::peer::{Peer, lowest_free_number};
use super::room::{Room, SMALL, Share};
use crate::tls::Pair;
use log::{debug, warn};
use percent_encoding::percent_decode_str;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// A body up to this size has been read with the head, in bytes; a fact about tiny_http.
const READ_AHEAD_BYTES: usize = 1_024;

/// An answer up to this size fits into the buffer of a socket that takes any at all, in bytes.
const FITS: usize = 4 * 1_024;
/// The stack of a thread that writes one answer, in bytes.
const WRITER_STACK_BYTES: usize = 64 * 1_024;

/// What a connection is doing, for the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// We wait for a request, or read one.
    Reading,
    /// We work on an answer.
    Serving,
    /// The request is held; nobody reads or writes.
    Held,
    /// We write an answer.
    Writing,
    /// We have refused a body, and throw away what comes of it.
    Draining,
}

/// What is known of a connection, shared between its thread, the guard and whoever answers it.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub peer: Peer,
    phase: AtomicU8,
    /// Since when it is in that phase, in milliseconds of [`uptime_ms`].
    since_ms: AtomicU64,
    /// Counts requests, so that the guard can tell them apart.
    turn: AtomicU32,
    /// When the guard first looked at a request: which one, and what had been received by then.
    looked: Mutex<(u32, u64)>,
    open: Arc<Open>,
    room: Arc<Room>,
}

/// Milliseconds since the first call.
pub fn uptime_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(peer: Peer, open: &Arc<Open>, room: &Arc<Room>) -> Arc<Self> {
        let connection = Arc::new(Connection {
            peer,
            // Its thread has yet to begin: that takes a moment on a busy machine.
            phase: AtomicU8::new(Phase::Serving as u8),
            since_ms: AtomicU64::new(uptime_ms()),
            turn: AtomicU32::new(0),
            looked: Mutex::default(),
            open: open.clone(),
            room: room.clone(),
        });
        open.add(&connection);
        connection
    }

    /// Notes what the connection does from now on.
    pub fn enter(&self, phase: Phase) {
        self.since_ms.store(uptime_ms(), Ordering::Relaxed);
        if phase == Phase::Reading {
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        let before = self.phase.swap(phase as u8, Ordering::AcqRel);
        let (was_held, is_held) = (before == Phase::Held as u8, phase == Phase::Held);
        if was_held != is_held {
            self.open.note_held(self, is_held);
        }
    }

    /// Whether its socket's buffer has room for a small answer: it is empty before the first one.
    fn takes_more(&self) -> bool {
        self.turn.load(Ordering::Relaxed) <= 1 || self.peer.takes_more()
    }

    /// Bytes received of its present request, as far as the guard saw.
    pub fn received(&self) -> Option<u64> {
        let received = self.peer.counts()?.received;
        let turn = self.turn.load(Ordering::Relaxed);
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.0 != turn {
            *looked = (turn, if turn <= 1 { 0 } else { received });
        }
        Some(received - looked.1)
    }

    /// Ends it from outside. A peer that does not read its answer would keep what is left of that in
    /// the kernel for a minute and more, so that is thrown away; a refusal still gets to be read.
    pub fn cut(&self) {
        match self.doing().0 {
            Phase::Writing => self.peer.reset(),
            Phase::Reading | Phase::Serving | Phase::Held | Phase::Draining => self.peer.cut(),
        }
    }

    /// What it does, for how many milliseconds, and for which request.
    pub fn doing(&self) -> (Phase, u64, u32) {
        let phase = match self.phase.load(Ordering::Acquire) {
            0 => Phase::Reading,
            1 => Phase::Serving,
            2 => Phase::Held,
            3 => Phase::Writing,
            _ => Phase::Draining,
        };
        let since = self.since_ms.load(Ordering::Relaxed);
        (
            phase,
            uptime_ms().saturating_sub(since),
            self.turn.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.remove(self);
    }
}

/// The socket that new connections come from.
pub struct Listener {
    inner: tiny_http::Listener,
    tls: RwLock<tiny_http::SslContextWrap>,
}

/// The requests of one connection; each `next` blocks until one has come.
pub type Incoming = Box<dyn Iterator<Item = Result<Raw, String>> + Send>;

/// A request as tiny_http hands it over.
pub type Raw = tiny_http::Request;

impl Listener {
    /// Takes over a listening socket; with a certificate and its key it speaks https.
    pub fn new(listener: TcpListener, pair: Option<Pair>) -> Result<Self, String> {
        Ok(Listener {
            inner: tiny_http::Listener::Tcp(listener),
            tls: RwLock::new(tls_context(pair)?),
        })
    }

    /// Uses this certificate and key for the connections to come.
    pub fn renew(&self, pair: Pair) -> Result<(), String> {
        let context = tls_context(Some(pair))?;
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = context;
        Ok(())
    }

    /// Waits until a connection can be accepted. False when none has come for so long.
    pub fn wait_for_connection(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(&self.inner, PollFlags::IN)];
        let patience = Timespec::try_from(patience).ok();
        poll(&mut fds, patience.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// The number that the next socket will most likely have.
    pub fn next_number(&self) -> i32 {
        lowest_free_number(&self.inner)
    }

    /// Accepts the next connection.
    pub fn accept(&self) -> io::Result<Option<Incoming>> {
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner);
        // With TLS, too, nothing is read here: the first read of the connection's own thread is
        // what does the handshake.
        let accepted = tiny_http::Server::accept_connection(&self.inner, &tls)?;
        Ok(accepted
            .map(|requests| Box::new(requests.map(|r| r.map_err(|e| e.to_string()))) as Incoming))
    }
}

fn tls_context(pair: Option<Pair>) -> Result<tiny_http::SslContextWrap, String> {
    let config = pair.map(|pair| tiny_http::SslConfig {
        certificate: pair.certificates,
        private_key: pair.key,
    });
    tiny_http::SslContextWrap::build_ssl_capabilities(config).map_err(|e| e.to_string())
}

/// A request as far as handlers need it.
#[derive(Debug)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The parts of the path between slashes, decoded, without a trailing empty one.
    pub path: Vec<String>,
    query: Vec<(String, String)>,
    /// The headers that matter.
    pub headers: Headers,
    /// Where it came from.
    pub peer: Option<IpAddr>,
    /// The body; empty until it has been read.
    pub body: Vec<u8>,
    /// The body's share of the room, if it is large.
    _room: Option<Share>,
}

/// The headers that say who is asking.
#[derive(Debug, Default)]
pub struct Headers {
    /// `Host`.
    pub host: Option<String>,
    /// `Origin`.
    pub origin: Option<String>,
    /// `Sec-Fetch-Site`.
    pub fetch_site: Option<String>,
    /// `Authorization`: a secret, see the `Debug` of its type.
    pub authorization: Option<Authorization>,
}

/// The value of an `Authorization` header, which must never show.
pub struct Authorization(String);

impl Authorization {
    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization(…)")
    }
}

impl Request {
    /// A request line, its target taken apart; without a body.
    pub fn parsed(
        method: &str,
        target: &str,
        headers: Headers,
        peer: Option<IpAddr>,
    ) -> Result<Self, Refused> {
        let (path, query) = split_target(target)?;
        Ok(Request {
            method: method.to_owned(),
            path,
            query,
            headers,
            peer,
            body: Vec::new(),
            _room: None,
        })
    }

    /// A parameter of the query; the last one when it was given several times.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The names of all parameters of the query.
    pub fn query_names(&self) -> impl Iterator<Item = &str> {
        self.query.iter().map(|(name, _)| name.as_str())
    }
}

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

/// The way back to the one who asked.
pub struct Responder {
    writer: Box<dyn Write + Send>,
    connection: Arc<Connection>,
    keep_alive: bool,
    without_body: bool,
    knows_chunks: bool,
    /// The answer's share of the room, if it is large.
    room: Option<Share>,
}

impl Responder {
    /// Takes the room that a large answer needs. False when there is none.
    pub fn make_room(&mut self, answer: &Answer) -> bool {
        let bytes = answer.body.len();
        if bytes > SMALL && self.room.is_none() {
            self.room = self.connection.room.take(&self.connection, bytes);
        }
        bytes <= SMALL || self.room.is_some()
    }

    /// Writes the answer. Whether the connection can take another request.
    pub fn send(mut self, answer: &Answer) -> bool {
        self.connection.enter(Phase::Writing);
        if !self.make_room(answer) {
            debug!("an answer found no room and was given up");
            return false;
        }
        let mut bytes = head(answer, self.keep_alive);
        let body = if self.without_body {
            &[]
        } else {
            &answer.body[..]
        };
        // One piece where it is small, no copy where it is large.
        let (first, second) = if body.len() <= SMALL {
            bytes.extend_from_slice(body);
            (&bytes[..], &[][..])
        } else {
            (&bytes[..], body)
        };
        let written = self
            .writer
            .write_all(first)
            .and_then(|()| self.writer.write_all(second))
            .and_then(|()| self.writer.flush());
        if let Err(error) = &written {
            debug!("an answer could not be written: {error}");
        }
        written.is_ok() && self.keep_alive
    }

    /// Begins an answer of unknown length, the last one of its connection. `None` when the peer is
    /// gone, or wants the head only.
    pub fn stream(mut self, content_type: &'static str) -> Option<Streaming> {
        self.connection.enter(Phase::Writing);
        let encoding = if self.knows_chunks {
            "Transfer-Encoding: chunked\r\n"
        } else {
            ""
        };
        let date = httpdate::HttpDate::from(std::time::SystemTime::now());
        let head = format!(
            "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: {content_type}\r\n{encoding}Cache-Control: no-store\r\nX-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        );
        let written = self.writer.write_all(head.as_bytes());
        let written = written.and_then(|()| self.writer.flush());
        (written.is_ok() && !self.without_body).then_some(Streaming {
            writer: self.writer,
            connection: self.connection,
            chunked: self.knows_chunks,
        })
    }

    /// Answers a held request. Never waits for the peer: few threads answer all who are held.
    pub fn send_held(self, answer: Answer) {
        if answer.body.len() <= FITS && self.connection.takes_more() {
            self.send(&answer);
            return;
        }
        let writer = std::thread::Builder::new()
            .name("writer".into())
            .stack_size(WRITER_STACK_BYTES)
            .spawn(move || self.send(&answer));
        if let Err(error) = writer {
            warn!("no thread to answer a held request, its connection was cut: {error}");
        }
    }

    /// Makes this the last request of its connection, to be answered later from anywhere.
    pub fn hold(&mut self) {
        self.keep_alive = false;
        self.connection.enter(Phase::Held);
    }

    /// The connection that the request came by.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

/// An answer that is being written as it comes about.
pub struct Streaming {
    writer: Box<dyn Write + Send>,
    connection: Arc<Connection>,
    /// In chunks of HTTP/1.1; else the end of the connection is the end of the answer.
    chunked: bool,
}

impl Streaming {
    /// Writes the next part, at once. Whether it could be written.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        if !self.chunked {
            return self.put(bytes);
        }
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        // A chunk of no bytes would be the end.
        bytes.is_empty() || self.put(&chunk)
    }

    /// Says that this was all.
    pub fn finish(mut self) {
        if self.chunked {
            self.put(b"0\r\n\r\n");
        }
    }

    /// The connection it goes by.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    fn put(&mut self, bytes: &[u8]) -> bool {
        self.connection.enter(Phase::Writing);
        let written = self.writer.write_all(bytes);
        let written = written.and_then(|()| self.writer.flush());
        if let Err(error) = &written {
            debug!("a stream could not be written on: {error}");
        }
        written.is_ok()
    }
}

/// An answer after which the connection is closed, whole.
pub fn in_bytes(answer: &Answer) -> Vec<u8> {
    let mut bytes = head(answer, false);
    bytes.extend_from_slice(&answer.body);
    bytes
}

fn head(answer: &Answer, keep_alive: bool) -> Vec<u8> {
    let mut head = Vec::with_capacity(256 + answer.body.len().min(SMALL));
    let connection = if keep_alive {
        ""
    } else {
        "Connection: close\r\n"
    };
    let date = httpdate::HttpDate::from(std::time::SystemTime::now());
    // Writing to a vector cannot fail.
    let _ = write!(
        head,
        "HTTP/1.1 {} {}\r\nDate: {date}\r\nContent-Type: {}\r\nContent-Length: {}\r\nX-Content-Type-Options: nosniff\r\n{}{connection}",
        answer.status,
        reason(answer.status),
        answer.content_type,
        answer.body.len(),
        answer.headers,
    );
    if let Some(methods) = &answer.allow {
        let _ = write!(head, "Allow: {methods}\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn reason(status: u16) -> &'static str {
    tiny_http::StatusCode::from(status).default_reason_phrase()
}

/// A request that could not be taken in.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// Why.
    pub msg: String,
}

/// A request whose head has been read.
pub struct Arrived {
    raw: tiny_http::Request,
    connection: Arc<Connection>,
    /// Its connection takes no other after it.
    last: bool,
    /// What its head says; without the body.
    pub request: Request,
}

/// How much a request may have; settings of the server.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// Bytes of all headers.
    pub head_bytes: usize,
    /// Number of headers.
    pub headers: usize,
    /// Bytes of path and query.
    pub target_bytes: usize,
    /// Bytes of the body.
    pub body_bytes: usize,
}

/// Takes in a request whose head `head` has judged. `explain` makes the answer of a refusal; after
/// one the connection is of no further use.
pub fn arrived(
    raw: tiny_http::Request,
    connection: &Arc<Connection>,
    last: bool,
    limits: &RequestLimits,
    explain: impl FnOnce(Refused) -> Answer,
) -> Option<Arrived> {
    match check(&raw, limits).and_then(|()| head_of(&raw)) {
        Ok(request) => Some(Arrived {
            raw,
            connection: connection.clone(),
            last,
            request,
        }),
        Err(refused) => {
            refuse(raw, connection, &explain(refused));
            None
        }
    }
}

impl Arrived {
    /// Answers without having read the body. Whether the connection can take another request.
    pub fn refuse(self, answer: &Answer) -> bool {
        let announced = self.raw.body_length().unwrap_or(0);
        let has = |name| self.raw.headers().get(name).is_some();
        let unread = announced > READ_AHEAD_BYTES || has("Transfer-Encoding") || has("Expect");
        if unread {
            refuse(self.raw, &self.connection, answer);
            return false;
        }
        responder(self.raw, self.connection, self.last).send(answer)
    }

    /// Reads the body. `None` when that failed and was answered, as in [`arrived`].
    pub fn read(
        mut self,
        limits: &RequestLimits,
        explain: impl FnOnce(Refused, &Request) -> Answer,
    ) -> Option<(Request, Responder)> {
        match read_body(&mut self.raw, limits.body_bytes, &self.connection) {
            Ok((body, room)) => {
                self.connection.enter(Phase::Serving);
                Some((
                    Request {
                        body,
                        _room: room,
                        ..self.request
                    },
                    responder(self.raw, self.connection, self.last),
                ))
            }
            Err(refused) => {
                let answer = explain(refused, &self.request);
                refuse(self.raw, &self.connection, &answer);
                None
            }
        }
    }
}

fn responder(raw: tiny_http::Request, connection: Arc<Connection>, last: bool) -> Responder {
    Responder {
        keep_alive: !last && wants_to_stay(&raw),
        knows_chunks: *raw.http_version() >= tiny_http::HTTPVersion(1, 1),
        without_body: *raw.method() == tiny_http::Method::Head,
        connection,
        writer: raw.into_writer(),
        room: None,
    }
}

/// Answers a request whose body has not been read to its end; its connection is of no further use.
pub fn refuse(raw: tiny_http::Request, connection: &Connection, answer: &Answer) {
    // tiny_http reads the rest of the body when the request is dropped; the guard ends that.
    connection.enter(Phase::Draining);
    let mut response =
        tiny_http::Response::from_data(&answer.body[..]).with_status_code(answer.status);
    if let Ok(header) = tiny_http::Header::from_bytes("Content-Type", answer.content_type) {
        response = response.with_header(header);
    }
    if let Err(error) = raw.respond(response) {
        debug!("a refusal could not be written: {error}");
    }
}

fn head_of(raw: &tiny_http::Request) -> Result<Request, Refused> {
    let header = |name| {
        raw.headers()
            .get(name)
            .map(|value| value.as_str().to_owned())
    };
    let headers = Headers {
        host: header("Host"),
        origin: header("Origin"),
        fetch_site: header("Sec-Fetch-Site"),
        authorization: header("Authorization").map(Authorization),
    };
    let peer = raw.remote_addr().map(|address| address.ip());
    Request::parsed(raw.method().as_str(), raw.url(), headers, peer)
}

/// Refuses what `head` leaves to be refused here.
fn check(raw: &tiny_http::Request, limits: &RequestLimits) -> Result<(), Refused> {
    let refused = |status, msg: String| Err(Refused { status, msg });
    if raw.url().len() > limits.target_bytes {
        let most = limits.target_bytes;
        return refused(
            414,
            format!("the path and query must have {most} bytes at most (--max-target)"),
        );
    }
    // `head` has seen that it is a number; where memory is small it may be too large for one.
    if raw.headers().get("Content-Length").is_some() && raw.body_length().is_none() {
        return refused(400, "Content-Length: must be a number of bytes".into());
    }
    if raw.headers().get("Transfer-Encoding").is_some() && asks_to_upgrade(raw) {
        return refused(
            400,
            "Transfer-Encoding: does not go with Connection: upgrade".into(),
        );
    }
    Ok(())
}

/// The body, and its share of the room if it is large.
fn read_body(
    raw: &mut tiny_http::Request,
    max: usize,
    connection: &Arc<Connection>,
) -> Result<(Vec<u8>, Option<Share>), Refused> {
    let too_large = || Refused {
        status: 413,
        msg: format!("the body must have {max} bytes at most (--max-body)"),
    };
    let announced = raw.body_length();
    if announced.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    // Memory for what has come, not for what was announced.
    let mut body = Vec::with_capacity(announced.unwrap_or(0).min(SMALL));
    // To the end, not to the announced length: only then does tiny_http let go of the reader. But
    // when it was asked to upgrade, which we never do, the end is that of the connection.
    let most = if asks_to_upgrade(raw) {
        announced.unwrap_or(0)
    } else {
        max + 1
    };
    let mut reader = raw.as_reader().take(most.min(SMALL) as u64);
    let mut read = reader.read_to_end(&mut body);
    let mut room = None;
    if read.is_ok() && body.len() == SMALL {
        room = connection.room.take(connection, announced.unwrap_or(max));
        if room.is_none() {
            return Err(Refused {
                status: 503,
                msg: "too many large requests at once (--max-in-flight)".into(),
            });
        }
        body.reserve_exact(announced.unwrap_or(0).saturating_sub(SMALL));
        reader.set_limit((most - SMALL) as u64);
        read = reader.read_to_end(&mut body);
    }
    if let Err(error) = read {
        return Err(Refused {
            status: 400,
            msg: format!("the body could not be read: {error}"),
        });
    }
    if body.len() > max {
        return Err(too_large());
    }
    if announced.is_some_and(|length| length != body.len()) {
        return Err(Refused {
            status: 400,
            msg: "the body ended before its Content-Length".into(),
        });
    }
    Ok((body, room))
}

fn asks_to_upgrade(raw: &tiny_http::Request) -> bool {
    let connection = raw.headers().get("Connection");
    connection.is_some_and(|value| value.as_str().to_ascii_lowercase().contains("upgrade"))
}

fn wants_to_stay(raw: &tiny_http::Request) -> bool {
    let header = raw
        .headers()
        .get("Connection")
        .map(|value| value.as_str().to_ascii_lowercase());
    match header {
        Some(value) if value.contains("close") || value.contains("upgrade") => false,
        Some(value) if value.contains("keep-alive") => true,
        _ => *raw.http_version() >= tiny_http::HTTPVersion(1, 1),
    }
}

/// The parts of a path, and the parameters of a query.
type Target = (Vec<String>, Vec<(String, String)>);

/// `/a/b%20c/?x=1&y` → path and query, decoded.
fn split_target(target: &str) -> Result<Target, Refused> {
    let bad = |msg: &str| Refused {
        status: 400,
        msg: msg.into(),
    };
    let target = target.split('#').next().unwrap_or_default();
    let target = match target.split_once("://") {
        Some(("http" | "https", rest)) => &rest[rest.find('/').unwrap_or(rest.len())..],
        _ => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let decoded = |text: &str, what| {
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| bad(what))
    };
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let path = if path.is_empty() {
        Vec::new()
    } else {
        path.split('/').collect()
    };
    let path = path
        .into_iter()
        .map(|part| decoded(part, "the path must be UTF-8"))
        .collect::<Result<_, _>>()?;
    let pairs = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |text: &str| decoded(&text.replace('+', " "), "the query must be UTF-8");
            Ok((text(name)?, text(value)?))
        });
    Ok((path, pairs.collect::<Result<_, Refused>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_and_without_a_slash_are_the_same() {
        let (with, query) = split_target("/api/v1/task/?taskPrefix=a%20b&limit=5&x").unwrap();
        let (without, _) = split_target("http://host:9410/api/v1/task").unwrap();
        assert_eq!(with, ["api", "v1", "task"]);
        assert_eq!(with, without);
        assert_eq!(query[0], ("taskPrefix".into(), "a b".into()));
        assert_eq!(query[2], ("x".into(), String::new()));
        assert!(split_target("/").unwrap().0.is_empty());
        assert!(split_target("/%ff").is_err());
    }
}
