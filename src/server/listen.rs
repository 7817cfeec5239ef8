//! The accept loop, the threads of connections, and the guard that bounds what peers may do.
//!
//! A connection that was accepted is watched (`ready`): when something has come, one of a few workers
//! does what can be done without waiting, and leaves the rest to a thread that has it to itself
//! (`threads`), so a slow peer holds up nobody else. Neither an idle connection nor a held request needs
//! a thread. What comes encrypted has one from the start.
//! Any error of `accept` is counted, waited for and survived.

use super::connection::{Connection, Found, Phase, Turn, uptime_ms};
use super::http::{Incoming, Listener};
use super::means;
use super::open::Open;
use super::peer;
use super::ready::Events;
use super::room::Room;
use super::threads::{QUICK, STACK_BYTES, Threads};
use crate::config::ServerConfig;
use crate::tls::Pair;
use log::{debug, info, warn};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use rustix::net::sockopt;
use std::cmp::Reverse;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
/// File descriptors kept for other things than connections.
const SPARE_DESCRIPTORS: u64 = 64;
/// What a connection takes of them; while it is held, and they are short, only the one to write to.
const DESCRIPTORS_AT_WORK: usize = peer::NUMBERS_EACH;
const DESCRIPTORS_HELD: usize = 1;
/// They are short when one in so many of them is taken: many who are held may come back at once, beside
/// as many others.
const PLENTY: usize = 4;
/// The pause after some were given up, until they are gone.
const MAKING_ROOM_PAUSE: Duration = Duration::from_millis(2);
/// The pause after an error of `accept`: descriptors or memory may be free by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Of the unfinished requests one in so many is given up when there is no room for another.
const GIVEN_UP_AT_ONCE: usize = 8;
/// What came later than so many milliseconds ago is not given up: on a busy machine it may be a good
/// request that nobody had the time to read.
const GIVEN_UP_AFTER_MS: u64 = 50;
/// The same where nothing at all has come: that takes no thread, so there is more time.
const SILENT_AFTER_MS: u64 = 300;
/// Nobody is given up when in so many milliseconds so many have gone by themselves: then a crowd is being
/// served, and there is room for the next in a moment.
const FLOW_MS: u64 = 50;
const FLOW: u64 = 50;
/// Who was held and has been answered, as agents are, is about to come back: for so many milliseconds
/// he is not given up.
const IN_TOUCH_MS: u64 = 3_000;
/// Where no thread is left, a third of those is given up at once that have sent something and have us
/// wait for the rest for so many milliseconds: whoever comes behind a crowd of such waits for all of it.
const STUCK_AFTER_MS: u64 = 15;
const STUCK_GIVEN_UP_AT_ONCE: usize = 3;
/// Of the connections one in so many is never held, and so many at least (or a third, when there are few
/// in all): who waits must not keep out who asks.
const NEVER_HELD: usize = 12;
const NEVER_HELD_AT_LEAST: usize = 64;
/// What a connection takes of the memory's addresses besides its stack, in bytes: buffers, mostly.
const BUFFERS_BYTES: usize = 128 * 1024;
/// How long to wait for a connection before looking after other things.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(1);
/// What is said where there are none of those.
const NO_DESCRIPTOR: &str = "no descriptor left for a new connection";
/// At most one warning about the same trouble in this time.
const WARNING_PERIOD_MS: u64 = 10_000;

/// How many connections go by themselves.
#[derive(Default)]
struct Flow {
    /// When that was last looked at, in milliseconds of [`uptime_ms`].
    looked_ms: u64,
    gone: u64,
    is_enough: bool,
}

/// All connections.
pub struct Connections {
    open: Arc<Open>,
    max: usize,
    max_descriptors: usize,
    max_per_address: usize,
    /// The longest a request may take to arrive, an idle connection to send its next one, or an
    /// answer to be read.
    max_turn_ms: u64,
    /// The most that may come of one request between two answers.
    max_request_bytes: u64,
    last_warning: AtomicU64,
    flow: Mutex<Flow>,
    /// Can be read when a connection waits for a thread.
    nudge: OwnedFd,
    /// For large bodies and answers.
    pub room: Arc<Room>,
}

impl Connections {
    /// No connections yet; as many at most as the settings and the limit on open files allow.
    pub fn new(config: &ServerConfig) -> Result<Arc<Self>, String> {
        let descriptors = means::descriptors().saturating_sub(SPARE_DESCRIPTORS);
        let max_descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let (memory, most) = (means::memory(), STACK_BYTES + BUFFERS_BYTES);
        // Half of it for connections, a part of that half for what is on its way.
        let by_memory = memory.map_or(usize::MAX, |memory| memory / 2 / most);
        let in_flight = memory.map_or(usize::MAX, |memory| memory / 8);
        let max = config.max_connections.min(by_memory).max(1);
        let limits = &config.request;
        let nudge = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Arc::new(Connections {
            open: Open::new(max_descriptors / PLENTY)?,
            max,
            max_descriptors,
            max_per_address: config.max_connections_per_address,
            max_turn_ms: config.max_request_time.as_millis(),
            max_request_bytes: (limits.body_bytes + limits.head_bytes) as u64 + FRAMING_BYTES,
            last_warning: AtomicU64::new(0),
            flow: Mutex::default(),
            nudge: nudge.map_err(|error| format!("eventfd: {error}"))?,
            room: Room::new(config.max_in_flight_bytes.min(in_flight)),
        }))
    }

    /// A few of those that have something to be read, with whose turn it is. Waits until there are some,
    /// but no longer than its patience.
    pub fn ready(
        &self,
        events: &mut Events,
        patience: Option<Duration>,
    ) -> Vec<(Arc<Connection>, Found)> {
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let told = self.open.ready.wait(events, patience.as_ref());
        let found = told.filter_map(|(cookie, hung_up)| {
            let connection = self.open.get(cookie)?;
            let found = connection.take(hung_up);
            Some((connection, found))
        });
        found.collect()
    }

    /// Notes that a request is held that came encrypted.
    pub fn watch_hangup(&self, connection: &Connection) {
        self.open.ready.watch_hangup(&connection.peer);
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
        self.open.counts().0
    }

    /// Warns, unless it has just done so.
    fn warn(&self, text: &str) {
        let now = uptime_ms() + WARNING_PERIOD_MS;
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

    /// Whether there is room for one more.
    fn has_room(&self) -> bool {
        let (count, taken) = self.open.counts();
        count < self.max && taken + DESCRIPTORS_AT_WORK <= self.max_descriptors
    }

    /// Makes room for another connection.
    fn give_up_for_room(&self) {
        if self.flows() {
            return;
        }
        let is_unfinished = |connection: &Connection| match connection.doing() {
            (Phase::Serving | Phase::Held, ..) => false,
            (Phase::Idle, ms, _) if connection.was_held() => ms > IN_TOUCH_MS,
            // Idle between two requests: its next one finds another connection.
            (Phase::Idle, _, 1..) => true,
            (Phase::Idle, ms, 0) => ms > SILENT_AFTER_MS,
            (Phase::Reading | Phase::Draining | Phase::Writing, ms, _) => ms > GIVEN_UP_AFTER_MS,
        };
        self.give_up(is_unfinished, GIVEN_UP_AT_ONCE);
    }

    /// Whether enough go by themselves.
    fn flows(&self) -> bool {
        let mut flow = self.flow.lock().unwrap_or_else(PoisonError::into_inner);
        let now = uptime_ms();
        if now >= flow.looked_ms + FLOW_MS {
            let gone = self.open.gone();
            *flow = Flow {
                looked_ms: now,
                gone,
                is_enough: gone >= flow.gone + FLOW,
            };
        }
        flow.is_enough
    }

    /// Makes a thread free for another connection.
    fn give_up_for_a_thread(&self) {
        let is_stuck = |connection: &Connection| {
            let (phase, ms, _) = connection.doing();
            let has_begun = || connection.peer.counts().is_some_and(|c| c.received > 0);
            phase == Phase::Reading && ms > STUCK_AFTER_MS && has_begun()
        };
        if !self.give_up(is_stuck, STUCK_GIVEN_UP_AT_ONCE) {
            self.give_up_for_room();
        }
    }

    /// Gives up one in so many of those that are meant, longest first: some at once, or a crowd that
    /// comes back as fast as it is sent away would leave no place to others. Whether there were any.
    fn give_up(&self, is_meant: impl Fn(&Connection) -> bool, one_in: usize) -> bool {
        let mut meant = self.open.at_work();
        meant.retain(|connection| is_meant(connection));
        meant.sort_by_cached_key(|connection| Reverse(connection.doing().1));
        let some = meant.len().div_ceil(one_in);
        // What an idle one has sent meanwhile nobody has read yet: that is not its fault.
        let is_waited_for = |connection: &Connection| {
            connection.doing().0 == Phase::Idle && connection.peer.has_unread()
        };
        let still = meant.iter().filter(|c| is_meant(c) && !is_waited_for(c));
        let longest = still.take(some);
        longest.for_each(|connection| {
            debug!("given up while {:?}", connection.doing());
            connection.cut();
        });
        some > 0
    }

    /// Notes the connection that was accepted last. `None` when it is not to be served: its socket
    /// cannot be found (the peer may be gone already), so nobody could end it; or its address has
    /// too many.
    fn note(&self, guess: i32, incoming: Incoming) -> Option<Turn> {
        let is_taken = |number| self.open.is_taken(number);
        let knows = |cookie| self.open.knows(cookie);
        let found = peer::find_accepted(guess, self.count(), is_taken, knows);
        let Some(peer) = found else {
            debug!("a new connection could not be found");
            return None;
        };
        if let Some(address) = peer.address() {
            let has = self.open.count_of(&address);
            if has >= self.max_per_address {
                self.warn(&format!("{has} connections from {address}, as many as allowed (--max-connections-per-address)"));
                return None;
            }
        }
        Some(Connection::begin(peer, incoming, &self.open, &self.room))
    }

    /// Has somebody hear when something comes on a connection that was just accepted.
    fn watch(&self, turn: Turn) {
        // One that nobody would ever hear of is closed.
        if self.open.ready.watch(&turn.connection().peer) {
            turn.leave();
        }
    }

    /// Calls as many threads as are needed for what waits for one. Whether something may have to wait
    /// on; the error says that no thread could be started, which some had to pay for.
    pub fn call<W: Send + 'static>(&self, threads: &Arc<Threads<W>>) -> io::Result<bool> {
        threads.suffice().inspect_err(|error| {
            self.warn(&format!(
                "no thread for a new connection: {error}; the slowest are cut"
            ));
            self.give_up_for_a_thread();
        })
    }

    /// As [`Connections::call`], by somebody who does not stay to see whether that was enough.
    pub fn call_in_passing<W: Send + 'static>(&self, threads: &Arc<Threads<W>>) {
        if !matches!(self.call(threads), Ok(false)) {
            // It can be written to, as one is read as soon as it is there.
            let _ = rustix::io::write(&self.nudge, &1u64.to_ne_bytes());
        }
    }

    /// Looks at the connections at work, and cuts those that take too long or send too much.
    pub fn guard(&self) {
        for connection in self.open.at_work() {
            if self.has_misbehaved(&connection) {
                debug!("cut while {:?}", connection.doing());
                connection.cut();
            }
        }
    }

    fn has_misbehaved(&self, connection: &Connection) -> bool {
        let (phase, ms, _) = connection.doing();
        match phase {
            Phase::Serving | Phase::Held => false,
            Phase::Draining => ms > MAX_DRAIN_MS,
            Phase::Idle | Phase::Writing => ms > self.max_turn_ms,
            Phase::Reading if ms > self.max_turn_ms => true,
            // What has come within one period is no concern, however much it is.
            Phase::Reading if ms < GUARD_PERIOD.as_millis() as u64 => false,
            Phase::Reading => connection
                .received()
                .is_some_and(|bytes| bytes > self.max_request_bytes),
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

/// Accepts connections for ever. What comes encrypted is given to a thread, as the work that `encrypted`
/// makes of it; the others are watched.
pub fn accept_forever<W: Send + 'static>(
    listener: &Listener,
    connections: &Connections,
    threads: &Arc<Threads<W>>,
    encrypted: Option<fn(Turn) -> W>,
) -> ! {
    loop {
        let something_waits = connections.call(threads).unwrap_or_else(|_| {
            thread::sleep(MAKING_ROOM_PAUSE);
            true
        });
        if !connections.has_room() {
            // While some wait for a thread it is not the peers who are slow.
            if !something_waits {
                connections.give_up_for_room();
                connections.warn(
                    "as many connections as allowed (--max-connections, or the limit on open files or memory): the slowest are cut",
                );
            }
            thread::sleep(MAKING_ROOM_PAUSE);
            continue;
        }
        let patience = if something_waits {
            QUICK
        } else {
            ACCEPT_PATIENCE
        };
        match (accept_one(listener, connections, patience), encrypted) {
            (Ok(Some(turn)), None) => connections.watch(turn),
            (Ok(Some(turn)), Some(encrypted)) => {
                turn.connection().enter(Phase::Serving);
                threads.give(encrypted(turn));
            }
            (Ok(None), _) => {}
            (Err(error), _) => {
                connections.warn(&format!("cannot accept connections: {error}"));
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn accept_one(
    listener: &Listener,
    connections: &Connections,
    patience: Duration,
) -> Result<Option<Turn>, String> {
    if !listener.wait_for_connection(patience, &connections.nudge) {
        let _ = rustix::io::read(&connections.nudge, &mut [0; 8]);
        return Ok(None);
    }
    let (guess, accepted) = peer::while_none_closes(|| {
        let guess = listener.next_number();
        if guess < 0 {
            return (guess, Ok(Err(io::Error::other(NO_DESCRIPTOR))));
        }
        // tiny_http panics when it cannot duplicate the socket; that must not end the loop.
        let accept = std::panic::AssertUnwindSafe(|| listener.accept());
        (guess, std::panic::catch_unwind(accept))
    });
    match accepted {
        Ok(Ok(Some(incoming))) => Ok(connections.note(guess, incoming)),
        Ok(Ok(None)) => Ok(None),
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(NO_DESCRIPTOR.into()),
    }
}
