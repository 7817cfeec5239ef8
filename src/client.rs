//! Every HTTP call to a server, typed; the only module that names ureq.
//!
//! A call returns the data of the answer or a [`CallError`]: which call failed, where it went, and of which
//! [`Kind`] the failure is. That is all a caller needs to decide whether to try again. Where there are several servers,
//! a call has been made to all that may be asked before it fails.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `client` | the agent's calls; connections, the token, answers |
//! | `addresses` | which server is asked first, and who comes next |
//! | `ask` | one call, made to one server after the other |
//! | `failure` | why a call failed, and what that means |
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
//! carries: `Ask::prepared`.

mod addresses;
#[cfg_attr(
    not(all(feature = "agent", feature = "cli")),
    allow(dead_code, reason = "each program makes a part of the calls")
)]
mod ask;
#[cfg(any(feature = "agent", feature = "cli"))]
mod blobs;
mod connections;
#[cfg_attr(
    not(all(feature = "agent", feature = "cli")),
    allow(
        dead_code,
        reason = "each program asks for a part of what a failure means"
    )
)]
mod failure;
#[cfg(feature = "cli")]
mod people;
#[cfg(feature = "agent")]
mod probe;
mod proxy;
mod resolver;
mod tls;
#[cfg(feature = "server")]
pub mod webhook;

pub use ask::TermMemory;
#[cfg(any(feature = "agent", feature = "cli"))]
pub use blobs::FetchedPiece;
#[cfg(feature = "agent")]
pub use blobs::SentFile;
#[cfg(feature = "cli")]
pub use blobs::{BlobState, PieceAnswer};
pub use failure::{CallError, Kind};
#[cfg(feature = "cli")]
pub use people::{Errand, EventReader, MachineFilter, TaskFilter};

use crate::config::Registry;
use crate::secret::Secret;
use crate::tls::Roots;
use crate::wire::agent::{Done, Goodbye, Orders, Output, Poll, Taken};
use crate::wire::term::Position;
use crate::wire::{ERROR, Envelope};
use addresses::Addresses;
use ask::{Ask, Repeat};
use connections::Connections;
use failure::refused;
use proxy::NamedProxy;
use resolver::TimedResolver;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use ureq::config::Config;
use ureq::http::HeaderValue;

/// Time-out of making a connection. If it takes longer, the server is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same of each of several servers: the next one is there. The look-up of its name may take as long.
const SEVERAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
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

/// Calls a server of a list: the one that answered last, or the next one that answers.
#[derive(Debug, Clone)]
pub struct Client {
    addresses: Arc<Addresses>,
    /// For each server its connections; those without a proxy share theirs, and those with it, too. Replaced when other
    /// authorities are to be trusted.
    http: Arc<RwLock<Vec<ureq::Agent>>>,
    /// The authorities of `--ca`, where they matter.
    authorities: Arc<Mutex<Option<Roots>>>,
    token: Arc<RwLock<Option<Secret>>>,
    /// What an agent has seen of terms; none of the command line.
    terms: Option<Arc<dyn TermMemory>>,
    /// The longest answer that may hand out work, in bytes.
    max_work_answer: u64,
}

impl Client {
    /// A client of these servers. Honours the proxy settings of the environment (`HTTP_PROXY`, `NO_PROXY`, …).
    /// The error is one line for people.
    pub fn new(registry: &Registry) -> Result<Self, String> {
        Client::with_connections(registry, Connections::default)
    }

    fn with_connections(registry: &Registry, make: fn() -> Connections) -> Result<Self, String> {
        let addresses = Addresses::new(registry)?;
        let needs_tls = registry.is_https() || addresses.has_https_proxy();
        let roots = tls::load(registry, needs_tls)?;
        let http = Client::http(&addresses, roots.as_ref(), make);
        Ok(Client {
            addresses: Arc::new(addresses),
            http: Arc::new(RwLock::new(http)),
            // Those of the system are many, and are read once.
            authorities: Arc::new(Mutex::new(roots.filter(|_| registry.ca.is_some()))),
            token: Arc::default(),
            terms: None,
            max_work_answer: work_answer(MIN_ANSWER_JOBS),
        })
    }

    /// Connections to each of the servers, which these authorities vouch for.
    fn http(
        addresses: &Addresses,
        roots: Option<&Roots>,
        make: fn() -> Connections,
    ) -> Vec<ureq::Agent> {
        let mut made: [Option<ureq::Agent>; 2] = [None, None];
        (0..addresses.count())
            .map(|server| {
                // The environment names one proxy at most.
                let proxy = addresses.proxy(server);
                let made = &mut made[usize::from(proxy.is_some())];
                let is_one_of_several = addresses.count() > 1;
                let http = || Client::http_by(proxy, roots, make(), is_one_of_several);
                made.get_or_insert_with(http).clone()
            })
            .collect()
    }

    fn http_by(
        proxy: Option<&NamedProxy>,
        roots: Option<&Roots>,
        connections: Connections,
        is_one_of_several: bool,
    ) -> ureq::Agent {
        let (connect, resolve) = match is_one_of_several {
            true => (SEVERAL_CONNECT_TIMEOUT, Some(SEVERAL_CONNECT_TIMEOUT)),
            false => (CONNECT_TIMEOUT, None),
        };
        let config = tls::settings(Config::builder(), roots)
            .proxy(proxy.map(|proxy| proxy.proxy.clone()))
            .http_status_as_error(false)
            .user_agent(concat!("sidebike/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(resolve)
            .timeout_connect(Some(connect))
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
        let roots = tls::load(self.addresses.registry(), true)?;
        if roots == *known {
            return Ok(Some(false));
        }
        let http = Client::http(&self.addresses, roots.as_ref(), Connections::default);
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = http;
        *known = roots;
        Ok(Some(true))
    }

    fn agent(&self, server: usize) -> ureq::Agent {
        let http = self.http.read().unwrap_or_else(PoisonError::into_inner);
        http[server].clone()
    }

    /// The servers, the one that is asked first at the beginning.
    pub fn urls(&self) -> Vec<String> {
        self.addresses.urls()
    }

    /// The server that answered last, where there are several.
    pub fn one_of_several(&self) -> Option<&str> {
        self.addresses.one_of_several()
    }

    /// The highest term that was seen, and the last commit in it, if that is remembered.
    pub fn highest_term(&self) -> Option<Position> {
        self.terms.as_ref().and_then(|terms| terms.highest())
    }

    /// Has requests say which term and which commit were seen, and answers with a lower one fail.
    pub fn with_terms(mut self, terms: Arc<dyn TermMemory>) -> Self {
        self.terms = Some(terms);
        self
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
    /// limited further by `slack`. A server takes each poll once: after a failure by which it may have arrived, another
    /// server gets another one, see [`CallError::is_one_left`].
    pub fn poll(
        &self,
        poll: &Poll,
        slack: Option<Duration>,
    ) -> Result<Orders<Box<RawValue>>, CallError> {
        let slack = slack.map_or(POLL_SLACK, |slack| slack.min(POLL_SLACK));
        let timeout = Duration::from(poll.wait) + slack;
        let max_answer = self.max_work_answer;
        self.post("poll", poll, Repeat::NotTwice, timeout, max_answer)
    }

    /// Sends output of commands that run.
    pub fn output(&self, output: &Output) -> Result<Orders<Box<RawValue>>, CallError> {
        self.post("output", output, Repeat::Safe, CALL_TIMEOUT, MAX_ANSWER)
    }

    /// Reports results. The answer may hand out more work.
    pub fn done(&self, done: &Done) -> Result<Taken<Box<RawValue>>, CallError> {
        let max_answer = self.max_work_answer;
        self.post("done", done, Repeat::Safe, CALL_TIMEOUT, max_answer)
    }

    /// Tells the server that the agent ends now.
    pub fn goodbye(&self, goodbye: &Goodbye) -> Result<(), CallError> {
        let repeat = Repeat::SafeWithin(GOODBYE_TIMEOUT);
        self.post::<_, IgnoredAny>("goodbye", goodbye, repeat, GOODBYE_TIMEOUT, MAX_ANSWER)
            .map(|_| ())
    }

    /// One call of an agent.
    fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: &'static str,
        question: &Q,
        repeat: Repeat,
        timeout: Duration,
        max_answer: u64,
    ) -> Result<A, CallError> {
        let body = serde_json::to_vec(question);
        let path = format!("/api/v1/agent/{call}");
        self.in_turn(call, &path, repeat, |ask| {
            let body = body.as_deref().map_err(unwritable)?;
            let (status, answer) = self.exchange(ask, body, timeout, max_answer)?;
            self.understand(status, answer)
        })
    }

    /// Sends a body; returns the status and the body of the answer.
    fn exchange(
        &self,
        ask: &Ask<'_>,
        body: &[u8],
        timeout: Duration,
        max_answer: u64,
    ) -> Result<(u16, Vec<u8>), Kind> {
        let request = with_json(ask.post(), timeout);
        let request = match timeout < CALL_TIMEOUT {
            // The caller cannot wait for longer.
            true => request,
            false => with_patience(request, timeout, body.len() as u64 + max_answer),
        };
        ask.read(request.send(body), max_answer)
    }

    /// Adds the token.
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

/// A question that cannot be sent.
fn unwritable(why: &serde_json::Error) -> Kind {
    Kind::NotUnderstood(format!("cannot be written as JSON: {why}"))
}

/// A request with a JSON body.
fn with_json(
    request: ureq::RequestBuilder<ureq::typestate::WithBody>,
    timeout: Duration,
) -> ureq::RequestBuilder<ureq::typestate::WithBody> {
    request
        .header("content-type", "application/json")
        .config()
        .timeout_global(Some(timeout))
        .build()
}

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
        let urls = vec!["http://127.0.0.1:1".to_owned()];
        Client::new(&Registry::new(urls, None)).unwrap()
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
        assert!(matches!(error.kind, Kind::NotConnected(_)));
        let text = error.to_string();
        assert!(
            text.starts_with("goodbye to http://127.0.0.1:1/api/v1/agent/goodbye: unreachable: "),
            "{text}"
        );
    }
}
