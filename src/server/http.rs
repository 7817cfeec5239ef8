//! Bytes → requests. The only place that names tiny_http.
//!
//! Of tiny_http we use the parser and the reader of bodies. The accept loop is ours (`listen`), and
//! so are the answers (`respond`). What tiny_http leaves unbounded is
//! bounded by `listen`'s guard, which needs to know what each connection is doing: see
//! [`Phase`](super::connection::Phase).

use super::connection::{Connection, Phase, Turn};
use super::peer::lowest_free_number;
use super::respond::{Answer, Manner, Responder};
use super::room::{SMALL, Share};
use crate::tls::Pair;
use log::debug;
use percent_encoding::percent_decode_str;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use std::io::{self, Read};
use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// A body up to this size has been read with the head, in bytes; a fact about tiny_http.
const READ_AHEAD_BYTES: usize = 1_024;

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
    /// `Accept`.
    pub accept: Option<String>,
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

/// A request that is not to be served. Its body has not been read to its end, so its connection is of no
/// further use.
pub struct Unserved(Box<Raw>);

impl Unserved {
    /// One that tiny_http has just read.
    pub fn new(raw: Raw) -> Self {
        Unserved(Box::new(raw))
    }

    /// Answers it. That waits for the peer: tiny_http writes the answer, and reads the rest of the body
    /// when the request is dropped; the guard ends that.
    pub fn refuse(self, connection: &Connection, answer: &Answer) {
        connection.enter(Phase::Draining);
        let mut response =
            tiny_http::Response::from_data(&answer.body[..]).with_status_code(answer.status);
        if let Ok(header) = tiny_http::Header::from_bytes("Content-Type", answer.content_type) {
            response = response.with_header(header);
        }
        if let Err(error) = self.0.respond(response) {
            debug!("a refusal could not be written: {error}");
        }
    }
}

/// A request whose body could not be read, and why.
pub type Unread = (Unserved, Refused, Request);

/// Takes in the next request, whose head `head` has judged; else says why not.
pub fn arrived(
    turn: &Turn,
    raw: Raw,
    last: bool,
    limits: &RequestLimits,
) -> Result<Arrived, (Unserved, Refused)> {
    match check(&raw, limits).and_then(|()| head_of(&raw)) {
        Ok(request) => Ok(Arrived {
            raw,
            connection: turn.connection().clone(),
            last,
            request,
        }),
        Err(refused) => Err((Unserved::new(raw), refused)),
    }
}

impl Arrived {
    /// Prepares for an answer without having read the body, if that leaves nothing behind.
    pub fn without_body(self) -> Result<Responder, Unserved> {
        let announced = self.raw.body_length().unwrap_or(0);
        let has = |name| self.raw.headers().get(name).is_some();
        let unread = announced > READ_AHEAD_BYTES || has("Transfer-Encoding") || has("Expect");
        match unread {
            true => Err(Unserved::new(self.raw)),
            false => Ok(responder(self.raw, self.connection, self.last)),
        }
    }

    /// Reads the body; else says why not, and of which request.
    pub fn read(mut self, limits: &RequestLimits) -> Result<(Request, Responder), Box<Unread>> {
        match read_body(&mut self.raw, limits.body_bytes, &self.connection) {
            Ok((body, room)) => {
                self.connection.enter(Phase::Serving);
                Ok((
                    Request {
                        body,
                        _room: room,
                        ..self.request
                    },
                    responder(self.raw, self.connection, self.last),
                ))
            }
            Err(refused) => {
                let unserved = Unserved::new(self.raw);
                Err(Box::new((unserved, refused, self.request)))
            }
        }
    }
}

fn responder(raw: Raw, connection: Arc<Connection>, last: bool) -> Responder {
    let manner = Manner {
        keep_alive: !last && wants_to_stay(&raw),
        knows_chunks: *raw.http_version() >= tiny_http::HTTPVersion(1, 1),
        without_body: *raw.method() == tiny_http::Method::Head,
        is_plain: !raw.secure(),
    };
    Responder::new(raw.into_writer(), connection, manner)
}

/// What a status is called.
pub fn reason(status: u16) -> &'static str {
    tiny_http::StatusCode::from(status).default_reason_phrase()
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
        accept: header("Accept"),
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
