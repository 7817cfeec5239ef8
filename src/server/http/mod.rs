//! The HTTP edge: bytes ↔ requests and answers. It knows no route and no task.
//!
//! An answer must never reach another client than the one that asked. So a connection owns its socket, one worker
//! owns the connection, and every message for a connection carries its number, with a generation, and the number of
//! the request: a message for an earlier connection or request is dropped. No thread waits for a client.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `acceptor` | the accept loop; what happens at the limits |
//! | `worker` | one thread that does everything for its connections |
//! | `connection` | one connection: the I/O around its lifecycle |
//! | `lifecycle` | what happens in each state on each event; without I/O |
//! | `head`, `body` | the rules of requests; without I/O |
//! | `forward` | requests that another server answers: what the service says of them |
//! | `relay` | the rules of what goes to and fro then; without I/O |
//! | `upstream` | the connection to that server |
//! | `request`, `answer` | what handlers get and give; answers → bytes |
//! | `responder` | how a request is answered: now, later, or by a stream |
//! | `mailbox` | messages for a worker |
//! | `poller`, `deadlines`, `slab` | readiness, time-outs, numbers of connections |
//! | `output` | what is still to be written: bytes, and parts of files |
//! | `transport` | the socket, and TLS over it |
//! | `memory_budget` | the memory of large bodies and answers |
//! | `pool` | threads for what may wait |
//! | `os_limits` | what the system lets the process have |
//! | `tiny` | the plain engine, behind the same face |
//!
//! To add something that a request may say: `head`. Something that a connection does: a state or an event of
//! `lifecycle`. A limit: [`EdgeLimits`], and its flag in `config`.

mod acceptor;
mod answer;
mod body;
mod connection;
mod deadlines;
mod forward;
mod head;
mod lifecycle;
mod mailbox;
mod memory_budget;
mod os_limits;
mod output;
mod poller;
mod pool;
mod relay;
mod request;
mod responder;
mod slab;
#[cfg(feature = "tiny_http")]
mod tiny;
mod transport;
mod upstream;
mod worker;

pub use self::acceptor::bind;
pub use self::answer::Answer;
pub use self::body::BodyLimit;
pub use self::connection::{PART_BYTES, TURN_BYTES};
pub use self::forward::{Decision, Forward, ForwardTarget};
pub use self::head::RequestLimits;
pub use self::output::FilePart;
pub use self::pool::start_thread;
pub use self::request::{Authorization, Headers, Refused, Request};
pub use self::responder::{Part, Responder, Source, StreamHead, Waker};

use self::deadlines::Millis;
use self::mailbox::{Mail, Mailbox};
use self::memory_budget::{Full, MemoryBudget};
use self::pool::Pool;
use self::slab::Key;
use self::worker::Worker;
use crate::tls::ServerTls;
use log::info;
use std::collections::HashMap;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::Instant;

/// Workers: as many as there are processors, but so many at least, since one may be at something large, and so many
/// at most.
const MIN_WORKERS: usize = 2;
const MAX_WORKERS: usize = 8;
/// File descriptors kept for other things than connections.
const SPARE_DESCRIPTORS: usize = 64;
/// What a connection takes of the process's memory at most, in bytes, besides what the memory budget counts: a head,
/// what was read ahead, what is on its way; and with a TLS session.
const CONNECTION_BYTES: usize = 64 * 1024;
const TLS_CONNECTION_BYTES: usize = 256 * 1024;
/// Large answers that are made or wait for memory at once.
const LARGE_ANSWERS: usize = 8;
/// Threads that read and write what is transferred, at once: as many as there are transfers.
const TRANSFERS: usize = 16;
/// One connection in NEVER_HELD, at least NEVER_HELD_AT_LEAST of them (or a third, where there are few in all), is kept
/// for requests that are answered at once.
const NEVER_HELD: usize = 12;
const NEVER_HELD_AT_LEAST: usize = 64;

/// When a connection may be closed so that another can be accepted, in milliseconds.
pub struct ShedLimits {
    /// With an unfinished request for longer than this. On a busy machine a good request may be unread for a while.
    unfinished_ms: Millis,
    /// Open for longer than this without having sent anything.
    silent_ms: Millis,
    /// Idle for longer than this after a held request was answered: agents poll again at once.
    after_held_ms: Millis,
}

/// The policy.
const SHED_LIMITS: ShedLimits = ShedLimits {
    unfinished_ms: 50,
    silent_ms: 300,
    after_held_ms: 3_000,
};

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// What is known of a request that was let in.
    type Admission: Send + 'static;

    /// Judges a request by its head, before its body is read; may correct where it came from. The error is its answer.
    fn admit(self: &Arc<Self>, request: &mut Request) -> Result<Decision<Self::Admission>, Answer>;

    /// Serves a request, and says whether it is held.
    fn serve(
        self: &Arc<Self>,
        request: Request,
        admission: Self::Admission,
        responder: Responder,
    ) -> Served;

    /// The answer to what could not be taken in, or not be forwarded; of which request, if it was let in.
    fn refuse(
        self: &Arc<Self>,
        refused: &Refused,
        of: Option<(&Request, &Self::Admission)>,
    ) -> Answer;

    /// The peer of a held request is gone.
    fn abandoned(&self, connection: ConnectionId);

    /// Asked at the moment when an answer leaves that [tells the state](Admitted::tells_state), and before each part of
    /// one that comes in parts: the header lines to add, each with its line end. The error goes out in its place; an
    /// answer that has begun is broken off.
    fn stamp(&self) -> Result<Option<Arc<str>>, Answer> {
        Ok(None)
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It was answered, or will be by the pool.
    Answered,
    /// It is held, to be answered later from anywhere. When its peer goes away [`Service::abandoned`] is called.
    Held,
}

/// A request that was let in.
pub struct Admitted<A> {
    /// What the service knows of it.
    pub admission: A,
    /// Serving it may take its time, or wait for the disk: a thread of the pool does it.
    pub may_wait: bool,
    /// Its answer depends on what the service knows at the moment, see [`Service::stamp`].
    pub tells_state: bool,
    /// How large its body may be.
    pub body: BodyLimit,
    /// Takes the body piece by piece, which then has [`BodyLimit::Streamed`]; the request is served, by a thread for
    /// transfers, when all of it is taken.
    pub sink: Option<Arc<dyn Sink>>,
}

/// Takes a body piece by piece, on a thread that may wait. It is dropped when the body breaks off.
pub trait Sink: Send + Sync {
    /// Takes the next piece. An error is the request's answer, and the rest of the body is not read.
    fn take(&self, piece: &[u8]) -> Result<(), Refused>;
}

/// The number of a connection; no other one of this process ever has it (but for one 2^32 connections later).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// It as a number.
    pub fn number(self) -> u64 {
        self.0
    }

    const SLOT_BITS: u32 = 24;

    fn new(worker: usize, slot: u32, generation: u32) -> Self {
        let place = (worker as u64) << Self::SLOT_BITS | u64::from(slot);
        ConnectionId(place << u32::BITS | u64::from(generation))
    }

    fn worker(self) -> usize {
        (self.0 >> (u32::BITS + Self::SLOT_BITS)) as usize
    }

    fn key(self) -> Key {
        let slot = (self.0 >> u32::BITS) as u32 & ((1 << Self::SLOT_BITS) - 1);
        Key {
            slot,
            generation: self.0 as u32,
        }
    }
}

/// What speaks HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// This edge.
    Edge,
    /// tiny_http's own loop: for closed networks.
    #[cfg(feature = "tiny_http")]
    TinyHttp,
}

impl Engine {
    /// The engine of this name. The error says which there are.
    pub fn named(name: &str) -> Result<Engine, String> {
        match name {
            "edge" => Ok(Engine::Edge),
            #[cfg(feature = "tiny_http")]
            "tiny_http" => Ok(Engine::TinyHttp),
            #[cfg(not(feature = "tiny_http"))]
            "tiny_http" => Err(
                "this build has no engine tiny_http (it was made without the feature `tiny_http`)"
                    .into(),
            ),
            _ => Err(format!("expected edge or tiny_http, got {name:?}")),
        }
    }
}

/// The settings of the edge.
#[derive(Debug, Clone)]
pub struct EdgeLimits {
    /// Of a request.
    pub request: RequestLimits,
    /// Connections at once.
    pub max_connections: usize,
    /// Connections at once from one address.
    pub max_connections_per_address: usize,
    /// Bytes of large bodies and answers in flight.
    pub max_in_flight_bytes: usize,
    /// The longest a request may take to arrive, an idle connection may stay, or an answer may take to be read.
    pub max_request_ms: Millis,
    /// How long a large transfer may move next to nothing, or another server take nothing of a request.
    pub stall_ms: Millis,
    /// Threads for what may wait.
    pub max_threads: usize,
    /// Requests that are forwarded at once.
    pub max_forwarded: usize,
}

/// What workers, acceptor and responders share.
pub struct Edge {
    limits: EdgeLimits,
    mailboxes: Vec<Mailbox>,
    budget: Arc<MemoryBudget>,
    pool: Arc<Pool>,
    /// For large answers: making them is work, and they wait for memory.
    large_answers: Arc<Pool>,
    /// For what is transferred, so that a slow disk delays nothing else; made when it is first needed.
    transfers: OnceLock<Arc<Pool>>,
    tls: RwLock<Option<ServerTls>>,
    started: Instant,
    open: AtomicUsize,
    closed: AtomicU64,
    shed: AtomicU64,
    /// Connections from each address; only counted where that is limited.
    per_address: Option<Mutex<HashMap<IpAddr, usize>>>,
    /// Requests that are forwarded, each with a socket to another server besides its client's.
    forwarded: AtomicUsize,
    forwarded_ever: AtomicU64,
    /// How many sockets there may be in all, as far as the system allows.
    max_sockets: usize,
}

impl Edge {
    /// The largest body of an ordinary request, in bytes.
    pub fn max_body(&self) -> usize {
        self.limits.request.body_bytes
    }

    /// An edge without connections; as many at most as the settings and the system's limits allow.
    pub fn new(mut limits: EdgeLimits, tls: Option<ServerTls>) -> Result<Arc<Self>, String> {
        let by_descriptors = os_limits::descriptors().saturating_sub(SPARE_DESCRIPTORS);
        let memory = os_limits::memory();
        // Half of it for connections, a part of that half for what is in flight.
        let each = match tls {
            Some(_) => TLS_CONNECTION_BYTES,
            None => CONNECTION_BYTES,
        };
        let by_memory = memory.map_or(usize::MAX, |memory| memory / 2 / each);
        let in_flight = memory.map_or(usize::MAX, |memory| memory / 8);
        let max_sockets = by_descriptors.min(by_memory);
        let max = limits.max_connections.min(max_sockets);
        limits.max_connections = max.clamp(1, (1 << ConnectionId::SLOT_BITS) - 1);
        limits.max_in_flight_bytes = limits.max_in_flight_bytes.min(in_flight);
        let workers = thread::available_parallelism().map_or(MIN_WORKERS, |n| n.get());
        let mailboxes = (0..workers.clamp(MIN_WORKERS, MAX_WORKERS)).map(|_| Mailbox::new());
        let mailboxes: std::io::Result<Vec<Mailbox>> = mailboxes.collect();
        let per_address = limits.max_connections_per_address < limits.max_connections;
        Ok(Arc::new(Edge {
            mailboxes: mailboxes.map_err(|error| format!("eventfd: {error}"))?,
            budget: MemoryBudget::new(limits.max_in_flight_bytes),
            pool: Pool::start(limits.max_threads)?,
            large_answers: Pool::start(LARGE_ANSWERS)?,
            transfers: OnceLock::new(),
            tls: RwLock::new(tls),
            started: Instant::now(),
            open: AtomicUsize::new(0),
            closed: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            per_address: per_address.then(Mutex::default),
            forwarded: AtomicUsize::new(0),
            forwarded_ever: AtomicU64::new(0),
            max_sockets,
            limits,
        }))
    }

    /// Starts to serve by the engine that the settings name.
    pub fn serve<S: Service>(
        self: &Arc<Self>,
        engine: Engine,
        listener: TcpListener,
        service: &Arc<S>,
    ) -> Result<(), String> {
        match engine {
            Engine::Edge => self.start(listener, service),
            #[cfg(feature = "tiny_http")]
            Engine::TinyHttp => tiny::start(listener, &self.limits.request, service),
        }
    }

    /// Starts workers and the accept loop.
    fn start<S: Service>(
        self: &Arc<Self>,
        listener: TcpListener,
        service: &Arc<S>,
    ) -> Result<(), String> {
        for number in 0..self.mailboxes.len() {
            let worker = Worker::new(number, self.clone(), service.clone());
            let worker = worker.map_err(|error| format!("epoll: {error}"))?;
            start_thread("worker", move || worker.run())?;
        }
        let edge = self.clone();
        start_thread("accept", move || acceptor::accept_forever(&listener, &edge))
    }

    /// Has something done by a thread that may wait for the disk.
    pub fn run_in_pool(&self, job: impl FnOnce() + Send + 'static) {
        self.pool.give(Box::new(job));
    }

    /// Has a piece of a transfer read or written.
    pub fn run_transfer(&self, job: impl FnOnce() + Send + 'static) {
        let start = || Pool::start(TRANSFERS).unwrap_or_else(|_| self.pool.clone());
        self.transfers.get_or_init(start).give(Box::new(job));
    }

    /// Says for how many there is room.
    pub fn explain(&self) {
        let (max, held) = (self.limits.max_connections, self.most_held());
        info!("room for {max} connections, {held} of them with held requests");
    }

    /// How many requests may be held, so that there is room for others.
    pub fn most_held(&self) -> usize {
        let most = self.limits.max_connections;
        let never = most.div_ceil(NEVER_HELD).max(NEVER_HELD_AT_LEAST);
        most - never.min(most.div_ceil(3))
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Uses this certificate for the connections to come.
    pub fn renew_certificate(&self, tls: ServerTls) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(tls);
    }

    fn tls(&self) -> Option<ServerTls> {
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner);
        tls.clone()
    }

    fn now(&self) -> Millis {
        self.started.elapsed().as_millis() as Millis
    }

    fn mailbox(&self, of: ConnectionId) -> &Mailbox {
        &self.mailboxes[of.worker()]
    }

    /// Ends the connection that has had memory for longest.
    fn cut(&self, full: Full) {
        if let Some((connection, number)) = full.slowest {
            self.mailbox(connection).put(Mail::Cut(connection, number));
        }
    }

    fn has_room(&self) -> bool {
        let open = self.connections();
        open < self.limits.max_connections && open + self.forwarded() < self.max_sockets.max(1)
    }

    /// Counts a new connection. The error says how many its address has already.
    fn note_opened(&self, peer: IpAddr) -> Result<(), usize> {
        if let Some(per_address) = &self.per_address {
            let mut counts = per_address.lock().unwrap_or_else(PoisonError::into_inner);
            let has = counts.entry(peer).or_default();
            if *has >= self.limits.max_connections_per_address {
                return Err(*has);
            }
            *has += 1;
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn note_closed(&self, peer: IpAddr) {
        if let Some(per_address) = &self.per_address {
            let mut counts = per_address.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(has) = counts.get_mut(&peer) {
                *has -= 1;
                if *has == 0 {
                    counts.remove(&peer);
                }
            }
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    fn note_shed(&self) {
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were closed so far that were not shed.
    fn closed_by_themselves(&self) -> u64 {
        let shed = self.shed.load(Ordering::Relaxed);
        self.closed.load(Ordering::Relaxed).saturating_sub(shed)
    }
}

/// What the parser of heads and bodies makes of some bytes that come in two pieces: how many requests are in them, and
/// the status of the refusal that ends them, if any. For `tests/fuzz`, which sees the crate from outside.
#[cfg(fuzzing)]
pub fn parsed(bytes: &[u8], cut: usize, limits: &RequestLimits) -> (usize, Option<u16>) {
    let (mut requests, mut at, mut end, mut seen) = (0, 0, cut, 0);
    let mut reading: Option<(body::Decoder, Vec<u8>)> = None;
    loop {
        let input = &bytes[at..end];
        let before = (at, requests);
        match &mut reading {
            None => match head::read(input, seen, limits, None) {
                Ok(Some(head)) => {
                    at += head.length;
                    seen = 0;
                    match body::Decoder::new(head.framing, BodyLimit::Refuse(limits.body_bytes)) {
                        Ok(decoder) => reading = Some((decoder, Vec::new())),
                        Err(refused) => return (requests, Some(refused.status)),
                    }
                }
                Ok(None) => seen = input.len(),
                Err(refused) => return (requests, Some(refused.status)),
            },
            Some((decoder, body)) => {
                match decoder.decode(input, body) {
                    Ok(taken) => at += taken,
                    Err(refused) => return (requests, Some(refused.status)),
                }
                assert!(body.len() <= limits.body_bytes, "a body beyond its limit");
                if decoder.is_done() {
                    reading = None;
                    requests += 1;
                }
            }
        }
        if before == (at, requests) {
            if end == bytes.len() {
                return (requests, None);
            }
            end = bytes.len();
        }
    }
}

/// Drives the states of a connection by these bytes; panics when what must never happen does.
#[cfg(fuzzing)]
pub fn live(choices: &[u8]) {
    let mut choices = choices.iter();
    lifecycle::model::run("fuzz", |most| Some(u32::from(*choices.next()?) % most));
}
