//! The accept loop, the threads of connections, and the guard that bounds what peers may do.
//!
//! Each connection's requests are handled on a thread of its own, so a slow peer holds up nobody
//! else. A held request needs no thread: it is the last one of its connection, whose thread ends.
//! Any error of `accept` is counted, waited for and survived.

use super::http::{self, Connection, Incoming, Listener, Phase};
use super::peer;
use super::room::Room;
use crate::config::ServerConfig;
use crate::tls::Pair;
use log::{info, warn};
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Connections that wait to be accepted: a fleet that comes back after a restart must fit.
const BACKLOG: i32 = 4_096;
/// How often the guard looks, and so how late it may be.
pub const GUARD_PERIOD: Duration = Duration::from_millis(100);
/// The longest we listen to a body that was refused, in milliseconds: time to read the answer.
const MAX_DRAIN_MS: u64 = 2_000;
/// What a request may have beyond its head and body, in bytes: the framing of chunks. The guard
/// looks only now and then, so this bounds memory, it does not measure requests.
const FRAMING_BYTES: u64 = 256 * 1024;
/// A read or write without any progress fails after this.
const STALLED: Duration = Duration::from_secs(75);
/// The stack of a connection's thread, in bytes; only what is touched takes memory. Code that is not
/// optimized needs several times as much.
const STACK_BYTES: usize = if cfg!(debug_assertions) { 1024 } else { 256 } * 1024;
/// File descriptors kept for other things than connections.
const SPARE_DESCRIPTORS: u64 = 64;
/// What a connection takes of them: tiny_http's two and, while it has a thread, one more.
const DESCRIPTORS_AT_WORK: usize = 3;
const DESCRIPTORS_HELD: usize = 2;
/// The pause after an error of `accept`: descriptors or memory may be free by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// At most one warning about the same trouble in this time.
const WARNING_PERIOD_MS: u64 = 10_000;

/// All connections.
pub struct Connections {
    open: Mutex<Open>,
    max: usize,
    max_descriptors: usize,
    max_per_address: usize,
    /// The longest a request may take to arrive, an idle connection to send its next one, or an
    /// answer to be read.
    max_turn_ms: u64,
    /// The most that may come of one request between two answers.
    max_request_bytes: u64,
    last_warning: AtomicU64,
    /// For large bodies and answers.
    pub room: Arc<Room>,
}

#[derive(Default)]
struct Open {
    list: Vec<Watched>,
    cookies: HashSet<u64>,
    per_address: HashMap<Option<IpAddr>, usize>,
}

struct Watched {
    connection: Arc<Connection>,
    address: Option<IpAddr>,
    /// For which request the count below was noted.
    turn: u32,
    /// Bytes received before that request, as far as the guard saw.
    received_before: u64,
}

impl Connections {
    /// No connections yet; as many at most as the settings and the limit on open files allow.
    pub fn new(config: &ServerConfig) -> Arc<Self> {
        let descriptors = raise_descriptor_limit().saturating_sub(SPARE_DESCRIPTORS);
        let max_descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let max = config.max_connections.max(1);
        info!(
            "room for {} connections at work, or {} with held requests",
            max.min(max_descriptors / DESCRIPTORS_AT_WORK),
            max.min(max_descriptors / DESCRIPTORS_HELD),
        );
        let limits = &config.request;
        Arc::new(Connections {
            open: Mutex::default(),
            max,
            max_descriptors,
            max_per_address: config.max_connections_per_address,
            max_turn_ms: config.max_request_time.as_millis(),
            max_request_bytes: (limits.body_bytes + limits.head_bytes) as u64 + FRAMING_BYTES,
            last_warning: AtomicU64::new(0),
            room: Room::new(config.max_in_flight_bytes),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open().list.len()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Warns, unless it has just done so.
    fn warn(&self, text: &str) {
        let now = http::uptime_ms() + WARNING_PERIOD_MS;
        let last = self.last_warning.load(Ordering::Relaxed);
        if now.saturating_sub(last) >= WARNING_PERIOD_MS
            && self
                .last_warning
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            warn!("{text}");
        }
    }

    /// Makes room for one more by giving up the request that has been unfinished for longest.
    fn make_room(&self) -> bool {
        let open = self.open();
        let count = open.list.len();
        // Counted one by one only when it is close.
        let affordable = || {
            let held = open
                .list
                .iter()
                .filter(|w| w.connection.doing().0 == Phase::Held)
                .count();
            let taken = held * DESCRIPTORS_HELD + (count - held) * DESCRIPTORS_AT_WORK;
            taken + DESCRIPTORS_AT_WORK <= self.max_descriptors
        };
        if count < self.max
            && ((count + 1) * DESCRIPTORS_AT_WORK <= self.max_descriptors || affordable())
        {
            return true;
        }
        let unfinished = open
            .list
            .iter()
            .filter_map(|watched| match watched.connection.doing() {
                (Phase::Reading | Phase::Draining | Phase::Writing, ms, _) => Some((ms, watched)),
                _ => None,
            });
        if let Some((_, longest)) = unfinished.max_by_key(|(ms, _)| *ms) {
            longest.connection.peer.cut();
        }
        false
    }

    /// Notes the connection that was accepted last. `None` when it is not to be served: its socket
    /// cannot be found (the peer may be gone already), so nobody could end it; or its address has
    /// too many.
    fn note(&self, guess: i32) -> Option<Arc<Connection>> {
        let mut open = self.open();
        let peer = peer::find_accepted(guess, &open.cookies)?;
        let address = peer.address();
        let has = open.per_address.get(&address).copied().unwrap_or(0);
        if has >= self.max_per_address {
            drop(open);
            self.warn(&format!("{has} connections from {address:?}, as many as allowed (--max-connections-per-address)"));
            return None;
        }
        open.per_address.insert(address, has + 1);
        open.cookies.insert(peer.cookie());
        let connection = Connection::new(peer, &self.room);
        open.list.push(Watched {
            connection: connection.clone(),
            address,
            turn: 0,
            received_before: 0,
        });
        Some(connection)
    }

    /// Looks at every connection, cuts those that take too long or send too much, and forgets
    /// those that are over.
    pub fn guard(&self) {
        let mut open = self.open();
        let Open {
            list,
            cookies,
            per_address,
        } = &mut *open;
        list.retain_mut(|watched| {
            if Arc::strong_count(&watched.connection) == 1 {
                cookies.remove(&watched.connection.peer.cookie());
                if let Some(count) = per_address.get_mut(&watched.address) {
                    *count -= 1;
                    if *count == 0 {
                        per_address.remove(&watched.address);
                    }
                }
                return false;
            }
            if self.has_misbehaved(watched) {
                watched.connection.peer.cut();
            }
            true
        });
    }

    fn has_misbehaved(&self, watched: &mut Watched) -> bool {
        let (phase, ms, turn) = watched.connection.doing();
        match phase {
            Phase::Serving | Phase::Held => false,
            Phase::Draining => ms > MAX_DRAIN_MS,
            Phase::Writing => ms > self.max_turn_ms,
            Phase::Reading if ms > self.max_turn_ms => true,
            // What has come within one period is no concern, however much it is.
            Phase::Reading if ms < GUARD_PERIOD.as_millis() as u64 => false,
            Phase::Reading => {
                let Some(counts) = watched.connection.peer.counts() else {
                    return false;
                };
                if watched.turn != turn {
                    watched.turn = turn;
                    watched.received_before = if turn <= 1 { 0 } else { counts.received };
                }
                counts.received - watched.received_before > self.max_request_bytes
            }
        }
    }
}

/// Raises the limit on open files as far as allowed. Returns the limit.
fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        return limit.maximum.unwrap_or(u64::MAX);
    }
    limit.current.unwrap_or(u64::MAX)
}

/// Binds the address and sets the options that accepted sockets inherit.
pub fn bind(address: SocketAddr, pair: Option<Pair>) -> Result<(Listener, SocketAddr), String> {
    let cannot =
        |error: &dyn std::fmt::Display| format!("--listen: cannot listen on {address}: {error}");
    let listener = TcpListener::bind(address).map_err(|e| cannot(&e))?;
    let local = listener.local_addr().map_err(|e| cannot(&e))?;
    let options = || -> rustix::io::Result<()> {
        rustix::net::listen(&listener, BACKLOG)?;
        sockopt::set_tcp_nodelay(&listener, true)?;
        sockopt::set_socket_keepalive(&listener, true)?;
        sockopt::set_tcp_user_timeout(&listener, STALLED.as_millis() as u32)?;
        sockopt::set_socket_timeout(&listener, sockopt::Timeout::Send, Some(STALLED))?;
        sockopt::set_socket_timeout(&listener, sockopt::Timeout::Recv, Some(STALLED))
    };
    options().map_err(|e| cannot(&e))?;
    // A connection that is gone before it is accepted must not block the loop.
    listener.set_nonblocking(true).map_err(|e| cannot(&e))?;
    Ok((Listener::new(listener, pair)?, local))
}

/// Accepts connections for ever, each served by `serve` on a thread of its own.
pub fn accept_forever(
    listener: &Listener,
    connections: &Connections,
    serve: impl Fn(Incoming, Arc<Connection>) + Clone + Send + 'static,
) -> ! {
    loop {
        if !connections.make_room() {
            connections.warn(
                "as many connections as allowed (--max-connections, or the limit on open files)",
            );
            thread::sleep(Duration::from_millis(5));
            connections.guard();
            continue;
        }
        let accepted = accept_one(listener, connections);
        match accepted {
            Ok(Some((incoming, connection))) => {
                let serve = serve.clone();
                let spawned = thread::Builder::new()
                    .name("connection".into())
                    .stack_size(STACK_BYTES)
                    .spawn(move || serve(incoming, connection));
                if let Err(error) = spawned {
                    connections.warn(&format!(
                        "no thread for a new connection, it was cut: {error}"
                    ));
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
            Ok(None) => {}
            Err(error) => {
                connections.warn(&format!("cannot accept connections: {error}"));
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

type Accepted = Option<(Incoming, Arc<Connection>)>;

fn accept_one(listener: &Listener, connections: &Connections) -> Result<Accepted, String> {
    if !listener.wait_for_connection() {
        return Ok(None);
    }
    let guess = listener.next_number();
    // tiny_http panics when it cannot duplicate the socket; that must not end the loop.
    let accepted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| listener.accept()));
    match accepted {
        Ok(Ok(Some(incoming))) => Ok(connections
            .note(guess)
            .map(|connection| (incoming, connection))),
        Ok(Ok(None)) => Ok(None),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no descriptor left for a new connection".into()),
    }
}
