//! Every HTTP call to a server, typed; the only module that names ureq.
//!
//! A call returns the data of the answer or a [`CallError`]: which call failed, where it went, and of which
//! [`Kind`] the failure is. That is all a caller needs to decide whether to try again.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `client` | the agent's calls; sending, the token, errors |
//! | `people` | the calls of the commands for people |
//! | `blobs` | the bytes of files, in both directions |
//! | `probe` | the requests of probes, which do not go to the server |
//! | `webhook` | the requests of notifications, which do not go to a server of sidebike |
//! | `connections` | connections without a proxy |
//! | `proxy` | which proxy there is, if any |
//! | `resolver` | names → addresses |
//! | `tls` | the certificates a server has to have |
//!
//! To add a call of the agent: a method next to [`Client::poll`]. To add something that every request
//! carries: [`Client::with_token`] is where the token is set.

#[cfg(any(feature = "agent", feature = "cli"))]
mod blobs;
mod connections;
#[cfg(feature = "cli")]
mod people;
#[cfg(feature = "agent")]
mod probe;
mod proxy;
mod resolver;
mod tls;
#[cfg(feature = "server")]
pub mod webhook;

#[cfg(any(feature = "agent", feature = "cli"))]
pub use blobs::FetchedPiece;
#[cfg(feature = "agent")]
pub use blobs::SentFile;
#[cfg(feature = "cli")]
pub use blobs::{BlobState, PieceAnswer};
#[cfg(feature = "cli")]
pub use people::{Errand, EventReader, MachineFilter, TaskFilter};

use crate::config::Registry;
use crate::secret::Secret;
use crate::tls::Roots;
use crate::wire::agent::{Done, Goodbye, Orders, Output, Poll, Taken};
use crate::wire::{ERROR, Envelope};
use connections::Connections;
use proxy::NamedProxy;
use resolver::TimedResolver;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use ureq::config::Config;
use ureq::http::HeaderValue;

/// Time-out of making a connection. If it takes longer, the server is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time-out of a call that is answered at once: of the answer, once the request was sent, and of each part
/// of both. Sending and receiving may take longer, as long as they go on.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The slowest link that a call goes on with, in bytes a second, on the average of the whole call.
const MIN_RATE: u64 = 1 << 10;
/// Time-out of a poll beyond the time it may be held: the time on the network, also while a report fills a
/// slow link.
const POLL_SLACK: Duration = Duration::from_secs(10);
/// Time-out of a goodbye: it is optional, and the process is about to end.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle connections kept: one for the reporter, one to spare.
const IDLE_CONNECTIONS: usize = 2;
/// The age from which an idle connection is not used again: servers and proxies close theirs as well.
const IDLE_AGE: Duration = Duration::from_secs(10);
/// The longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// How much of an answer that hands out work is for each job, in bytes: a server reads a task of 1 MiB.
const ANSWER_PER_JOB: u64 = 1 << 20;
/// For how many jobs at most an answer may be so long, and for how many at least. While it is read, an
/// answer is in memory twice.
const MAX_ANSWER_JOBS: u32 = 32;
const MIN_ANSWER_JOBS: u32 = 4;
/// What an answer that hands out work may have beside that, in bytes: names, ids, other orders.
const ANSWER_OVERHEAD: u64 = 64 << 10;
/// The longest other answer, in bytes.
const MAX_ANSWER: u64 = 4 << 20;
/// The shortest token that is masked in an answer, in bytes: shorter ones are parts of ordinary words.
const MIN_MASKED: usize = 8;
/// The longest reason of a failure that is kept, in bytes.
const MAX_REASON: usize = 2 << 10;
/// How much of an answer that is no JSON of the server goes into an error message, in characters.
const MAX_QUOTED: usize = 200;

/// Calls one server.
#[derive(Debug, Clone)]
pub struct Client {
    /// Replaced when other authorities are to be trusted.
    http: Arc<RwLock<ureq::Agent>>,
    registry: Registry,
    proxy: Option<NamedProxy>,
    /// The authorities of `--ca`, where they matter.
    authorities: Arc<Mutex<Option<Roots>>>,
    base: String,
    token: Arc<RwLock<Option<Secret>>>,
    /// The longest answer that may hand out work, in bytes.
    max_work_answer: u64,
}

/// Why a call failed.
#[derive(Debug)]
pub struct CallError {
    /// The call: the name of an agent's call, or text for people that follows "cannot".
    pub call: &'static str,
    url: String,
    /// The kind of failure.
    pub kind: Kind,
}

/// The kinds of failure.
#[derive(Debug)]
pub enum Kind {
    /// No answer came. Whether the server has read the request is not known.
    Unreachable(String),
    /// The same, after the call had begun: the time was over, or the connection was cut. A shorter request
    /// may succeed.
    Interrupted(String),
    /// The server refused.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The reason it gave.
        msg: String,
        /// Whether the answer has the form of a sidebike server; otherwise a proxy may have answered.
        ours: bool,
    },
    /// An answer came that is not of the expected form.
    NotUnderstood(String),
}

impl CallError {
    /// The server that was called.
    pub fn server(&self) -> &str {
        let server = self.url.split_once("/api/v1/");
        server.map_or(&self.url, |(server, _)| server)
    }

    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self.kind {
            Kind::Refused { status, .. } => Some(status),
            Kind::Unreachable(_) | Kind::Interrupted(_) | Kind::NotUnderstood(_) => None,
        }
    }

    /// Whether the server refuses the token, or wants one.
    pub fn is_denied(&self) -> bool {
        matches!(self.status(), Some(401 | 403))
    }

    /// Whether the server's certificate was not accepted.
    pub fn is_untrusted(&self) -> bool {
        matches!(&self.kind, Kind::Unreachable(why) if why.contains(UNTRUSTED))
    }

    /// Whether no server has answered at all, but perhaps a proxy that has found none.
    #[cfg(feature = "agent")]
    pub fn is_silence(&self) -> bool {
        match self.kind {
            Kind::Refused { status, ours, .. } => !ours && matches!(status, 502..=504),
            Kind::Unreachable(_) | Kind::Interrupted(_) => !self.is_untrusted(),
            Kind::NotUnderstood(_) => false,
        }
    }

    /// Whether the same request may succeed in a moment: nobody answered, or nobody who knows better.
    pub fn is_temporary(&self) -> bool {
        match self.kind {
            Kind::Refused { status, ours, .. } => {
                !ours || matches!(status, 408 | 425 | 429 | 500 | 502..=504)
            }
            Kind::Unreachable(_) | Kind::Interrupted(_) => !self.is_untrusted(),
            Kind::NotUnderstood(_) => true,
        }
    }

    /// Whether the same request can never succeed. A 404 that does not come from a sidebike server (but
    /// from a proxy, or while a server is being replaced) may be temporary.
    pub fn is_final(&self) -> bool {
        match self.kind {
            Kind::Refused { status, ours, .. } => match status {
                400 | 404 | 422 => ours,
                413 => true,
                _ => false,
            },
            Kind::Unreachable(_) | Kind::Interrupted(_) | Kind::NotUnderstood(_) => false,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}: ", self.call, self.url)?;
        match &self.kind {
            Kind::Unreachable(why) | Kind::Interrupted(why) => f.write_str(why),
            Kind::Refused { status, msg, .. } => write!(f, "refused with {status}: {msg}"),
            Kind::NotUnderstood(why) => write!(f, "the answer is not understood: {why}"),
        }
    }
}

impl std::error::Error for CallError {}

impl Client {
    /// A client of a server. Honours the proxy settings of the environment (`HTTP_PROXY`, `NO_PROXY`, …).
    /// The error is one line for people.
    pub fn new(registry: &Registry) -> Result<Self, String> {
        Client::with_connections(registry, Connections::default())
    }

    fn with_connections(registry: &Registry, connections: Connections) -> Result<Self, String> {
        let proxy = proxy::from_environment(&registry.url)?;
        let needs_tls = registry.is_https() || proxy.as_ref().is_some_and(NamedProxy::is_https);
        let roots = tls::load(registry, needs_tls)?;
        let http = Client::http(proxy.as_ref(), roots.as_ref(), connections);
        Ok(Client {
            http: Arc::new(RwLock::new(http)),
            proxy,
            // Those of the system are many, and are read once.
            authorities: Arc::new(Mutex::new(roots.filter(|_| registry.ca.is_some()))),
            registry: registry.clone(),
            base: registry.url.clone(),
            token: Arc::default(),
            max_work_answer: work_answer(MIN_ANSWER_JOBS),
        })
    }

    /// Connections by this proxy, to servers that these authorities vouch for.
    fn http(
        proxy: Option<&NamedProxy>,
        roots: Option<&Roots>,
        connections: Connections,
    ) -> ureq::Agent {
        let config = tls::settings(Config::builder(), roots)
            .proxy(proxy.map(|proxy| proxy.proxy.clone()))
            .http_status_as_error(false)
            .user_agent(concat!("sidebike/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(CALL_TIMEOUT))
            .max_response_header_size(MAX_HEAD)
            // Of connections with TLS or through a proxy; others have buffers that grow.
            .input_buffer_size(connections::MAX_INPUT_BYTES)
            .output_buffer_size(connections::BUFFER_BYTES)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .max_idle_age(IDLE_AGE)
            .build();
        ureq::Agent::with_parts(config, connections, TimedResolver)
    }

    /// Reads the authorities of `--ca` again. Whether they differ from those before; `None` if they do not matter.
    /// After an error those in use stay. The error is one line for people.
    pub fn reload_authorities(&self) -> Result<Option<bool>, String> {
        let mut known = self
            .authorities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            return Ok(None);
        }
        let roots = tls::load(&self.registry, true)?;
        if roots == *known {
            return Ok(Some(false));
        }
        let connections = Connections::default();
        let http = Client::http(self.proxy.as_ref(), roots.as_ref(), connections);
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = http;
        *known = roots;
        Ok(Some(true))
    }

    fn agent(&self) -> ureq::Agent {
        let http = self.http.read().unwrap_or_else(PoisonError::into_inner);
        http.clone()
    }

    /// Why no answer came.
    fn unreachable(&self, why: ureq::Error) -> Kind {
        if let ureq::Error::LargeResponseHeader(_, max) = why {
            return Kind::NotUnderstood(format!("its head is longer than {max} bytes"));
        }
        let text = unreachable(&why);
        let text = match &self.proxy {
            Some(proxy) => proxy.explain(&why, &text),
            None => text,
        };
        match is_interrupted(&why) {
            true => Kind::Interrupted(text),
            false => Kind::Unreachable(text),
        }
    }

    /// Has answers hand out work for so many jobs.
    pub fn for_jobs(mut self, jobs: u32) -> Self {
        self.max_work_answer = work_answer(jobs);
        self
    }

    /// Sets the token that every request carries from now on. Whether it differs from the one before.
    pub fn set_token(&self, token: Option<Secret>) -> bool {
        let mut known = self.token.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *known != token;
        *known = token;
        changed
    }

    /// The token in use.
    pub fn token(&self) -> Option<Secret> {
        let known = self.token.read().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    /// Asks for orders. Returns when there are some, or after `poll.wait`; the time on the network beyond that may be
    /// limited further by `slack`.
    pub fn poll(
        &self,
        poll: &Poll,
        slack: Option<Duration>,
    ) -> Result<Orders<Box<RawValue>>, CallError> {
        let slack = slack.map_or(POLL_SLACK, |slack| slack.min(POLL_SLACK));
        let timeout = Duration::from(poll.wait) + slack;
        self.post("poll", poll, timeout, self.max_work_answer)
    }

    /// Sends output of commands that run.
    pub fn output(&self, output: &Output) -> Result<Orders<Box<RawValue>>, CallError> {
        self.post("output", output, CALL_TIMEOUT, MAX_ANSWER)
    }

    /// Reports results. The answer may hand out more work.
    pub fn done(&self, done: &Done) -> Result<Taken<Box<RawValue>>, CallError> {
        self.post("done", done, CALL_TIMEOUT, self.max_work_answer)
    }

    /// Tells the server that the agent ends now.
    pub fn goodbye(&self, goodbye: &Goodbye) -> Result<(), CallError> {
        self.post::<_, IgnoredAny>("goodbye", goodbye, GOODBYE_TIMEOUT, MAX_ANSWER)
            .map(|_| ())
    }

    /// One call of an agent.
    fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: &'static str,
        question: &Q,
        timeout: Duration,
        max_answer: u64,
    ) -> Result<A, CallError> {
        let url = format!("{}/api/v1/agent/{call}", self.base);
        serde_json::to_vec(question)
            .map_err(|why| Kind::NotUnderstood(format!("cannot be written as JSON: {why}")))
            .and_then(|body| self.exchange(&url, &body, timeout, max_answer))
            .and_then(|(status, answer)| self.understand(status, answer))
            .map_err(|kind| CallError { call, url, kind })
    }

    /// Sends a body; returns the status and the body of the answer.
    fn exchange(
        &self,
        url: &str,
        body: &[u8],
        timeout: Duration,
        max_answer: u64,
    ) -> Result<(u16, Vec<u8>), Kind> {
        let request = self.request(url, timeout);
        let request = match timeout < CALL_TIMEOUT {
            // The caller cannot wait for longer.
            true => request,
            false => with_patience(request, timeout, body.len() as u64 + max_answer),
        };
        let mut answer = request.send(body).map_err(|why| self.unreachable(why))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut();
        // With the length known it is allocated once, and not moved while it grows.
        let expected = body.content_length().unwrap_or(0).min(max_answer);
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        let mut rest = body.as_reader().take(max_answer + 1);
        rest.read_to_end(&mut bytes)
            .map_err(|why| self.unreachable(why.into()))?;
        if bytes.len() as u64 > max_answer {
            let why = format!("it is longer than {max_answer} bytes");
            return Err(Kind::NotUnderstood(why));
        }
        Ok((status, bytes))
    }

    /// A request with a JSON body.
    fn request(
        &self,
        url: &str,
        timeout: Duration,
    ) -> ureq::RequestBuilder<ureq::typestate::WithBody> {
        self.with_token(self.agent().post(url))
            .header("content-type", "application/json")
            .config()
            .timeout_global(Some(timeout))
            .build()
    }

    /// Adds the token. Every request goes through here.
    fn with_token<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        let Some(token) = self.token() else {
            return request;
        };
        match HeaderValue::from_str(&format!("Bearer {}", token.expose())) {
            Ok(mut value) => {
                value.set_sensitive(true);
                request.header("authorization", value)
            }
            // Impossible: a token consists of visible ASCII characters.
            Err(_) => request,
        }
    }

    /// Does what [`understand`] does, with the token masked in errors.
    fn understand<A: DeserializeOwned>(&self, status: u16, answer: Vec<u8>) -> Result<A, Kind> {
        match understand(status, &answer) {
            Ok(answer) => Ok(answer),
            Err(_) => understand(status, &self.without_token(answer)),
        }
    }

    /// Masks the token: some proxies answer with the request that they refused.
    fn without_token(&self, answer: Vec<u8>) -> Vec<u8> {
        let Some(token) = self.token() else {
            return answer;
        };
        let token = token.expose().as_bytes();
        if token.len() < MIN_MASKED {
            return answer;
        }
        let mut masked = Vec::with_capacity(answer.len());
        let mut rest = &answer[..];
        while let Some(at) = rest.windows(token.len()).position(|part| part == token) {
            masked.extend_from_slice(&rest[..at]);
            masked.extend_from_slice(b"...");
            rest = &rest[at + token.len()..];
        }
        masked.extend_from_slice(rest);
        masked
    }
}

/// In the errors of libraries: the server's certificate is not accepted.
const UNTRUSTED: &str = "invalid peer certificate";

/// Has a request go on as long as there is progress: sending and receiving wait for each part for `timeout`
/// at most, and take as long as `bytes` take on the slowest link.
fn with_patience(
    request: ureq::RequestBuilder<ureq::typestate::WithBody>,
    timeout: Duration,
    bytes: u64,
) -> ureq::RequestBuilder<ureq::typestate::WithBody> {
    let in_all = timeout + Duration::from_secs(bytes / MIN_RATE);
    request
        .config()
        .timeout_global(Some(in_all))
        .timeout_recv_response(Some(timeout))
        .timeout_per_read(Some(timeout))
        .timeout_per_write(Some(timeout))
        .build()
}

/// The longest answer that hands out work to an agent with so many jobs, in bytes.
fn work_answer(jobs: u32) -> u64 {
    let jobs = jobs.clamp(MIN_ANSWER_JOBS, MAX_ANSWER_JOBS);
    ANSWER_OVERHEAD + ANSWER_PER_JOB * u64::from(jobs)
}

/// The beginning of a reason: it is kept and logged.
fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    reason.shrink_to_fit();
    reason
}

/// What these words in errors of libraries usually mean.
const HINTS: [(&str, &str); 4] = [
    (
        "CaUsedAsEndEntity",
        "a server needs a certificate of its own, with CA:FALSE, not that of an authority",
    ),
    (
        "UnknownIssuer",
        "this machine trusts no authority that has signed it; name a file with the certificate of the authority with --ca or SIDEBIKE_CA",
    ),
    ("InvalidContentType", "maybe it speaks http, not https"),
    ("invalid HTTP version", "maybe it speaks https, not http"),
];

/// Whether the call had begun.
fn is_interrupted(why: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match why {
        ureq::Error::Timeout(reason) => {
            !matches!(reason, ureq::Timeout::Resolve | ureq::Timeout::Connect)
        }
        ureq::Error::Io(why) => {
            matches!(why.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
        }
        _ => false,
    }
}

/// Why no answer came.
fn unreachable(why: &ureq::Error) -> String {
    let mut text = match why {
        ureq::Error::Timeout(reason) => format!("no answer in time ({reason})"),
        ureq::Error::Io(why) => format!("unreachable: {why}"),
        ureq::Error::HostNotFound => "unreachable: no such host".into(),
        ureq::Error::ConnectionFailed => "unreachable: cannot connect".into(),
        why => format!("unreachable: {why}"),
    };
    if let Some((_, hint)) = HINTS.iter().find(|(words, _)| text.contains(words)) {
        text.push_str(&format!(" ({hint})"));
    }
    text
}

/// Status and body → the data of the answer, or what is wrong with it.
fn understand<A: DeserializeOwned>(status: u16, body: &[u8]) -> Result<A, Kind> {
    if status != 200 {
        return Err(refused(status, body, None));
    }
    match serde_json::from_slice::<Envelope<A>>(body) {
        Ok(envelope) if envelope.signal != ERROR => Ok(envelope.data),
        Ok(_) => Err(refused(status, body, None)),
        // The answer may be an error without `data`, or with other data.
        Err(why) => Err(refused(status, body, Some(why))),
    }
}

/// The failure in an answer: a refusal, or an answer that is not understood because of `why`.
fn refused(status: u16, body: &[u8], why: Option<serde_json::Error>) -> Kind {
    let refusal = serde_json::from_slice::<Refusal>(body);
    if let Some(why) = why
        && !(refusal.as_ref()).is_ok_and(|refusal| refusal.signal == ERROR)
    {
        let why = cut(why.to_string());
        return Kind::NotUnderstood(format!("{why}: {}", quoted(body)));
    }
    match refusal {
        Ok(refusal) => Kind::Refused {
            status,
            msg: cut(refusal.msg),
            ours: true,
        },
        Err(_) => Kind::Refused {
            status,
            msg: quoted(body),
            ours: false,
        },
    }
}

/// The part of an [`Envelope`] that matters in a refusal.
#[derive(serde::Deserialize)]
struct Refusal {
    signal: i32,
    #[serde(default)]
    msg: String,
}

/// The beginning of an answer as one line.
fn quoted(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_QUOTED * 4)]);
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_QUOTED)
        .collect();
    if line.trim().is_empty() {
        "(no text)".into()
    } else {
        line.trim().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn answers_and_refusals_are_distinguished() {
        let good = br#"{"signal":1,"msg":"","data":{"results":[]}}"#;
        assert!(
            understand::<Taken<Value>>(200, good)
                .unwrap()
                .results
                .is_empty()
        );
        for (status, body, ours) in [
            (200, r#"{"signal":-1,"msg":"no"}"#, true),
            (409, r#"{"signal":-1,"msg":"stale","data":null}"#, true),
            (404, "<html>\nnot here</html>", false),
            (502, "", false),
        ] {
            match understand::<Taken<Value>>(status, body.as_bytes()) {
                Err(Kind::Refused {
                    status: s, ours: o, ..
                }) => {
                    assert_eq!((s, o), (status, ours), "{body}");
                }
                other => panic!("{body}: {other:?}"),
            }
        }
        for body in ["", "hello", r#"{"signal":0,"data":7}"#] {
            let got = understand::<Taken<Value>>(200, body.as_bytes());
            assert!(
                matches!(
                    got,
                    Err(Kind::NotUnderstood(_) | Kind::Refused { ours: false, .. })
                ),
                "{body}"
            );
        }
    }

    fn unreachable_client() -> Client {
        let url = "http://127.0.0.1:1".to_owned();
        Client::new(&Registry { url, ca: None }).unwrap()
    }

    #[test]
    fn the_token_is_masked_in_an_answer() {
        let client = unreachable_client();
        assert!(client.set_token(Some(Secret::for_test("s3cret-token"))));
        assert!(!client.set_token(Some(Secret::for_test("s3cret-token"))));
        let echo = client.without_token(b"Bearer s3cret-token, s3cret-token!".to_vec());
        assert_eq!(echo, b"Bearer ..., ...!");
    }

    #[test]
    fn an_error_names_the_call_the_server_and_the_reason() {
        let client = unreachable_client();
        let goodbye = Goodbye {
            instance: "i".into(),
            holds: Vec::new(),
        };
        let error = client.goodbye(&goodbye).unwrap_err();
        assert!(matches!(error.kind, Kind::Unreachable(_)));
        let text = error.to_string();
        assert!(
            text.starts_with("goodbye to http://127.0.0.1:1/api/v1/agent/goodbye: unreachable: "),
            "{text}"
        );
    }
}
