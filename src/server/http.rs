//! Bytes ↔ requests and answers. The only place that names tiny_http.
//!
//! Of tiny_http we use the parser and the reader of bodies. The accept loop is ours (`listen`), and
//! answers are written as one piece, head and body together. What tiny_http leaves unbounded is
//! bounded by `listen`'s guard, which needs to know what each connection is doing: see
//! [`Phase`](super::connection::Phase).

use super::connection::{Connection, Phase, Turn};
use super::peer::lowest_free_number;
use super::room::{SMALL, Share};
use crate::tls::Pair;
use log::{debug, warn};
use percent_encoding::percent_decode_str;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::net::{SendFlags, send};
use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A body up to this size has been read with the head, in bytes; a fact about tiny_http.
const READ_AHEAD_BYTES: usize = 1_024;

/// An answer up to this size fits into the buffer of a socket that takes any at all, in bytes.
const FITS: usize = 4 * 1_024;
/// The stack of a thread that writes one answer, in bytes.
const WRITER_STACK_BYTES: usize = 64 * 1_024;
/// Room for the head of an answer, in bytes.
const HEAD_BYTES: usize = 256;

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

    /// Waits until a connection can be accepted. False when none has come for so long, or before
    /// `other` could be read.
    pub fn wait_for_connection(&self, patience: Duration, other: &impl AsFd) -> bool {
        let mut fds = [
            PollFd::new(&self.inner, PollFlags::IN),
            PollFd::new(other, PollFlags::IN),
        ];
        let patience = Timespec::try_from(patience).ok();
        let came = poll(&mut fds, patience.as_ref()).is_ok_and(|ready| ready > 0);
        came && !fds[0].revents().is_empty()
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
    /// tiny_http's; what comes next on the connection waits until it is dropped.
    writer: Option<Box<dyn Write + Send>>,
    connection: Arc<Connection>,
    keep_alive: bool,
    without_body: bool,
    knows_chunks: bool,
    /// What is written needs no encrypting: the socket itself can be written to.
    is_plain: bool,
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
        self.responder.write(&[rest]) && self.responder.keep_alive
    }
}

impl Answer {
    /// Whether it takes room: see `room`.
    pub fn is_large(&self) -> bool {
        self.body.len() > SMALL
    }
}

impl Responder {
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
        let mut bytes = head(answer, self.keep_alive);
        if !self.without_body {
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
        let written = if answer.is_large() && !self.without_body {
            let head = head(answer, self.keep_alive);
            self.write(&[&head, &answer.body])
        } else {
            let bytes = self.in_bytes(answer);
            self.write(&[&bytes])
        };
        written && self.keep_alive
    }

    /// Sends as much of an answer that is not large as can be sent without waiting for the peer.
    pub fn send_now(mut self, answer: &Answer) -> Sent {
        let bytes = self.in_bytes(answer);
        let mut sent = 0;
        if self.is_plain {
            const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
            // Nothing is in tiny_http's own buffer: whatever is written is flushed.
            let socket = &self.connection.peer;
            if let Some(Ok(now)) = socket.with(|socket| send(socket, &bytes, FLAGS)) {
                sent = now;
            }
        }
        if sent == bytes.len() {
            self.is_held = false;
            return Sent::Whole(self.keep_alive);
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
        let encoding = if self.knows_chunks {
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
        (written && !self.without_body).then_some(Streaming { responder: self })
    }

    /// Answers a held request. Never waits for the peer: few threads answer all who are held.
    pub fn send_held(self, answer: Answer) {
        let connection = self.connection.clone();
        let is_small = answer.body.len() <= FITS;
        // Encrypted it is sent by whoever may wait, unless it is sure to fit.
        if !self.is_plain && is_small && connection.takes_more() {
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
        // Who reads what comes encrypted has to wait for it: there is to be no thread for that.
        self.is_thin = self.connection.hold(!self.keep_alive || !self.is_plain);
        self.keep_alive &= !self.is_thin;
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
        if !self.responder.knows_chunks {
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
        if self.responder.knows_chunks {
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

/// Takes in the next request, whose head `head` has judged. `explain` makes the answer of a refusal;
/// after one the connection is of no further use.
pub fn arrived(
    turn: &Turn,
    raw: Raw,
    last: bool,
    limits: &RequestLimits,
    explain: impl FnOnce(Refused) -> Answer,
) -> Option<Arrived> {
    match check(&raw, limits).and_then(|()| head_of(&raw)) {
        Ok(request) => Some(Arrived {
            raw,
            connection: turn.connection().clone(),
            last,
            request,
        }),
        Err(refused) => {
            refuse(raw, turn.connection(), &explain(refused));
            None
        }
    }
}

impl Arrived {
    /// Prepares for an answer without having read the body. `None` when its connection is of no further
    /// use after it, and it has been answered.
    pub fn without_body(self, answer: &Answer) -> Option<Responder> {
        let announced = self.raw.body_length().unwrap_or(0);
        let has = |name| self.raw.headers().get(name).is_some();
        let unread = announced > READ_AHEAD_BYTES || has("Transfer-Encoding") || has("Expect");
        if unread {
            refuse(self.raw, &self.connection, answer);
            return None;
        }
        Some(responder(self.raw, self.connection, self.last))
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
        is_plain: !raw.secure(),
        is_held: false,
        is_thin: false,
        connection,
        writer: Some(raw.into_writer()),
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
        // As most are: nothing to decode.
        if !text.contains('%') {
            return Ok(text.to_owned());
        }
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
            let text = |text: &str| {
                let what = "the query must be UTF-8";
                match text.contains('+') {
                    true => decoded(&text.replace('+', " "), what),
                    false => decoded(text, what),
                }
            };
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
