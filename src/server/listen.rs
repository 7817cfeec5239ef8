//! The accept loop, the threads of connections, and the guard that bounds what peers may do.
//!
//! Each connection's requests are handled on a thread of its own, so a slow peer holds up nobody
//! else. A held request needs no thread: it is the last one of its connection, whose thread ends.
//! Any error of `accept` is counted, waited for and survived.

use super::http::{self, Connection, Incoming, Listener, Phase};
use super::means;
use super::peer;
use super::room::Room;
use crate::config::ServerConfig;
use crate::tls::Pair;
use log::{debug, info, warn};
use rustix::net::sockopt;
use std::cmp::Reverse;
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
/// The pause after some were given up, until they are gone.
const MAKING_ROOM_PAUSE: Duration = Duration::from_millis(2);
/// The pause after an error of `accept`: descriptors or memory may be free by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Of the unfinished requests one in so many is given up when there is no room for another.
const GIVEN_UP_AT_ONCE: usize = 8;
/// What came later than so many milliseconds ago is not given up: on a busy machine it may be a good
/// request that nobody had the time to read.
const GIVEN_UP_AFTER_MS: u64 = 50;
/// Of the connections one in so many is never held, and so many at least (or a third, when there are few
/// in all): who waits must not keep out who asks.
const NEVER_HELD: usize = 12;
const NEVER_HELD_AT_LEAST: usize = 64;
/// What a connection takes of the memory's addresses besides its stack, in bytes: buffers, mostly.
const BUFFERS_BYTES: usize = 128 * 1024;
/// How often a thread for a connection is tried to be had.
const THREAD_TRIES: usize = 20;
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

impl Open {
    fn count_of(&self, address: &Option<IpAddr>) -> usize {
        self.per_address.get(address).copied().unwrap_or(0)
    }

    fn forget_finished(&mut self) {
        let Open {
            list,
            cookies,
            per_address,
        } = self;
        list.retain(|watched| {
            let is_over = Arc::strong_count(&watched.connection) == 1;
            if is_over {
                cookies.remove(&watched.connection.peer.cookie());
                if let Some(count) = per_address.get_mut(&watched.address) {
                    *count -= 1;
                    if *count == 0 {
                        per_address.remove(&watched.address);
                    }
                }
            }
            !is_over
        });
    }
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
        let descriptors = means::descriptors().saturating_sub(SPARE_DESCRIPTORS);
        let max_descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let (memory, most) = (means::memory(), STACK_BYTES + BUFFERS_BYTES);
        // Half of it for connections, a part of that half for what is on its way.
        let by_memory = memory.map_or(usize::MAX, |memory| memory / 2 / most);
        let in_flight = memory.map_or(usize::MAX, |memory| memory / 8);
        let max = config.max_connections.min(by_memory).max(1);
        let limits = &config.request;
        Arc::new(Connections {
            open: Mutex::default(),
            max,
            max_descriptors,
            max_per_address: config.max_connections_per_address,
            max_turn_ms: config.max_request_time.as_millis(),
            max_request_bytes: (limits.body_bytes + limits.head_bytes) as u64 + FRAMING_BYTES,
            last_warning: AtomicU64::new(0),
            room: Room::new(config.max_in_flight_bytes.min(in_flight)),
        })
    }

    /// Says for how many there is room.
    pub fn explain(&self) {
        let (max, descriptors) = (self.max, self.max_descriptors);
        info!(
            "room for {} connections at work, or {} with held requests",
            max.min(descriptors / DESCRIPTORS_AT_WORK),
            max.min(descriptors / DESCRIPTORS_HELD),
        );
    }

    /// How many requests may be held, so that there is room for others.
    pub fn most_held(&self) -> usize {
        let most = self.max.min(self.max_descriptors / DESCRIPTORS_HELD);
        let never = most.div_ceil(NEVER_HELD).max(NEVER_HELD_AT_LEAST);
        most - never.min(most.div_ceil(3))
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

    /// Whether there is room for one more; if not, makes some.
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
        drop(open);
        self.give_up();
        false
    }

    /// Gives up the requests that have been unfinished for longest: some at once, or a crowd that
    /// comes back as fast as it is sent away would leave no place to others.
    fn give_up(&self) {
        let open = self.open();
        let unfinished = open
            .list
            .iter()
            .filter_map(|watched| match watched.connection.doing() {
                // Idle between two requests: its next one finds another connection.
                (Phase::Reading, ms, 2..) => Some((ms, watched)),
                (Phase::Reading | Phase::Draining | Phase::Writing, ms, _)
                    if ms > GIVEN_UP_AFTER_MS =>
                {
                    Some((ms, watched))
                }
                _ => None,
            });
        let mut unfinished: Vec<(u64, &Watched)> = unfinished.collect();
        unfinished.sort_unstable_by_key(|(ms, _)| Reverse(*ms));
        let some = unfinished.len().div_ceil(GIVEN_UP_AT_ONCE);
        for (_, longest) in unfinished.iter().take(some) {
            longest.connection.cut();
        }
    }

    /// Notes the connection that was accepted last. `None` when it is not to be served: its socket
    /// cannot be found (the peer may be gone already), so nobody could end it; or its address has
    /// too many.
    fn note(&self, guess: i32) -> Option<Arc<Connection>> {
        let mut open = self.open();
        let Some(peer) = peer::find_accepted(guess, &open.cookies) else {
            debug!("a new connection could not be found");
            return None;
        };
        let address = peer.address();
        let mut has = open.count_of(&address);
        if has >= self.max_per_address {
            // Those that are over count until somebody looks.
            open.forget_finished();
            has = open.count_of(&address);
        }
        if has >= self.max_per_address {
            drop(open);
            let address = address
                .map(|address| address.to_string())
                .unwrap_or_default();
            self.warn(&format!("{has} connections from {address}, as many as allowed (--max-connections-per-address)"));
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
        open.forget_finished();
        for watched in &mut open.list {
            if self.has_misbehaved(watched) {
                debug!("cut while {:?}", watched.connection.doing());
                watched.connection.cut();
            }
        }
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
                "as many connections as allowed (--max-connections, or the limit on open files or memory): the slowest are cut",
            );
            thread::sleep(MAKING_ROOM_PAUSE);
            connections.guard();
            continue;
        }
        let accepted = accept_one(listener, connections);
        match accepted {
            Ok(Some((incoming, connection))) => {
                serve_on_a_thread(connections, (incoming, connection), serve.clone());
            }
            Ok(None) => {}
            Err(error) => {
                connections.warn(&format!("cannot accept connections: {error}"));
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

type New = (Incoming, Arc<Connection>);

/// Serves a connection on a thread of its own. When there is none to be had, those that are
/// unfinished for longest are given up for it.
fn serve_on_a_thread(
    connections: &Connections,
    new: New,
    serve: impl Fn(Incoming, Arc<Connection>) + Clone + Send + 'static,
) {
    // A thread that could not be started takes with it what it was given.
    let new = Arc::new(Mutex::new(Some(new)));
    for _ in 0..THREAD_TRIES {
        let (serve, for_it) = (serve.clone(), new.clone());
        let work = move || {
            let new = for_it.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some((incoming, connection)) = new {
                serve(incoming, connection);
            }
        };
        let thread = thread::Builder::new().name("connection".into());
        let Err(error) = thread.stack_size(STACK_BYTES).spawn(work) else {
            return;
        };
        connections.warn(&format!(
            "no thread for a new connection: {error}; the slowest are cut"
        ));
        connections.give_up();
        thread::sleep(MAKING_ROOM_PAUSE);
        connections.guard();
    }
}

fn accept_one(listener: &Listener, connections: &Connections) -> Result<Option<New>, String> {
    if !listener.wait_for_connection() {
        return Ok(None);
    }
    let guess = listener.next_number();
    if guess < 0 {
        return Err("no descriptor left for a new connection".into());
    }
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
