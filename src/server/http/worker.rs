//! A worker: one thread that does everything for the connections that are its own.
//!
//! It waits for sockets, deadlines and messages, and does what needs no waiting; the rest goes to the pool. No other
//! thread touches its connections, so they need no lock. A few workers serve all connections.

use super::connection::{Connection, Context};
use super::deadlines::{Deadlines, Millis};
use super::lifecycle::State;
use super::mailbox::Mail;
use super::poller::{Poller, Readiness};
use super::slab::{Key, Slab};
use super::transport::Transport;
use super::{ConnectionId, Edge, SHED_LIMITS, Service};
use log::{debug, warn};
use std::cmp::Reverse;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// TLS handshakes continued in one pass of the loop. Each takes about a millisecond of CPU; many of them must not delay
/// the established connections.
const HANDSHAKES_PER_PASS: usize = 2;
/// The share of the sheddable connections that is closed at once, the longest unfinished first. Fewer would not keep up
/// with clients that reconnect at once; all of them would include good ones.
const SHED_ONE_IN: usize = 8;
/// How often memory that other threads freed is returned to the system.
const TIDY_PERIOD: Duration = Duration::from_secs(1);

/// A worker.
pub struct Worker<S: Service> {
    number: usize,
    edge: Arc<Edge>,
    service: Arc<S>,
    poller: Poller,
    connections: Slab<Connection<S>>,
    deadlines: Deadlines,
    /// The buffer that is lent to connections.
    scratch: Vec<u8>,
    now: Millis,
}

impl<S: Service> Worker<S> {
    /// Worker number `number` of an edge, without connections.
    pub fn new(number: usize, edge: Arc<Edge>, service: Arc<S>) -> io::Result<Self> {
        let poller = Poller::new()?;
        let interest = super::poller::Interest {
            read: true,
            write: false,
        };
        poller.add(edge.mailboxes[number].wakeup(), WAKEUP, interest)?;
        Ok(Worker {
            number,
            edge,
            service,
            poller,
            connections: Slab::new(),
            deadlines: Deadlines::default(),
            scratch: Vec::new(),
            now: 0,
        })
    }

    /// Works for ever.
    pub fn run(mut self) -> ! {
        let mut ready = Vec::new();
        let mut handshaking = Vec::new();
        let (mut tidied, mut has_worked) = (Instant::now(), false);
        loop {
            self.read_mail();
            let timeout = match self.edge.mailboxes[self.number].fall_asleep() {
                true => self.timeout(has_worked),
                false => Some(Duration::ZERO),
            };
            self.poller.wait(timeout, &mut ready);
            self.now = self.edge.now();
            let was_rung = ready.iter().any(|ready| ready.id == WAKEUP);
            self.edge.mailboxes[self.number].wake_up(was_rung);
            has_worked |= !ready.is_empty();
            for ready in ready.drain(..) {
                if ready.id == WAKEUP {
                    continue;
                }
                let key = key_of(ready);
                match self.connections.get_mut(key) {
                    Some(connection) if connection.is_handshaking(is_upstream(ready)) => {
                        handshaking.push(ready);
                    }
                    Some(_) => self.handle(ready),
                    None => {}
                }
            }
            // The poller reports the others again.
            handshaking.truncate(HANDSHAKES_PER_PASS);
            handshaking.drain(..).for_each(|ready| self.handle(ready));
            self.handle_deadlines();
            if has_worked && tidied.elapsed() >= TIDY_PERIOD {
                crate::allocator::give_back();
                (tidied, has_worked) = (Instant::now(), false);
            }
        }
    }

    /// How long to wait for events.
    fn timeout(&self, has_worked: bool) -> Option<Duration> {
        let due = self.deadlines.next();
        let due = due.map(|due| Duration::from_millis(due.saturating_sub(self.now)));
        let tidy = has_worked.then_some(TIDY_PERIOD);
        due.into_iter().chain(tidy).min()
    }

    fn handle(&mut self, ready: Readiness) {
        let key = key_of(ready);
        self.with(key, |connection, cx| match is_upstream(ready) {
            true => connection.advance(cx),
            false => connection.ready(ready.is_broken, cx),
        });
        // Write the answer before handling the next connection.
        self.read_mail();
    }

    /// Handles the deadlines that have passed, once for each connection: one that is due again at once waits for the
    /// next pass.
    fn handle_deadlines(&mut self) {
        let up: Vec<Key> = std::iter::from_fn(|| self.deadlines.pop(self.now)).collect();
        for key in up {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            let deadline = &mut connection.deadline;
            if self.deadlines.is_due(key, deadline, self.now) {
                self.with(key, |connection, cx| connection.due(cx));
                self.read_mail();
            }
        }
    }

    /// Reads the messages that are there now, not those that handling them adds: a client that pipelines without end
    /// must not occupy the worker.
    fn read_mail(&mut self) {
        for mail in self.edge.mailboxes[self.number].take() {
            let received = catch_unwind(AssertUnwindSafe(|| self.receive(mail)));
            if received.is_err() {
                warn!("a worker failed to do something (a bug), and goes on");
            }
        }
    }

    fn receive(&mut self, mail: Mail) {
        match mail {
            Mail::Accepted(socket, peer) => self.accept(socket, peer),
            Mail::Hold(of, number) => match self.connections.get_mut(of.key()) {
                Some(_) => self.with(of.key(), |c, cx| c.held(number, cx)),
                // It went away before the service kept its request.
                None => self.service.abandoned(of),
            },
            Mail::Answer(of, number, answer, reservation) => {
                self.with(of.key(), |c, cx| {
                    c.answered(number, answer, reservation, cx)
                });
            }
            Mail::Stream(of, number, head, source) => {
                self.with(of.key(), |c, cx| c.streamed(number, head, source, cx));
            }
            Mail::Taken(of, number, taken) => {
                self.with(of.key(), |c, cx| c.piece_taken(number, taken, cx));
            }
            Mail::Wake(of, number) => self.with(of.key(), |c, cx| c.woken(number, cx)),
            Mail::Dropped(of, number) => self.with(of.key(), |c, cx| c.dropped(number, cx)),
            Mail::Cut(of, number) => self.with(of.key(), |c, cx| c.cut(number, cx)),
            Mail::CutForwarded(but_to) => self.cut_forwarded(but_to),
            Mail::Shed(by_system) => self.shed(by_system),
        }
    }

    fn accept(&mut self, socket: TcpStream, peer: IpAddr) {
        let key = self.connections.next_key();
        let id = ConnectionId::new(self.number, key.slot, key.generation);
        let tls = self.edge.tls();
        let begun = Transport::new(socket, tls.as_ref()).and_then(|transport| {
            let connection = Connection::new(id, transport, peer, self.now);
            let socket = &connection.transport().socket;
            self.poller.add(socket, id.0, connection.interest)?;
            Ok(connection)
        });
        match begun {
            Ok(connection) => {
                self.connections.add(connection);
                self.with(key, |_, _| {});
            }
            Err(error) => {
                debug!("a new connection was closed: {error}");
                self.edge.note_closed(peer);
            }
        }
    }

    /// Does something with a connection, if it is still there, and notes what it wants then.
    fn with(&mut self, key: Key, what: impl FnOnce(&mut Connection<S>, &mut Context<'_, S>)) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let mut context = Context {
            edge: &self.edge,
            service: &self.service,
            now: self.now,
            scratch: &mut self.scratch,
        };
        // A bug must cost one connection, not the worker with all the others.
        let done = catch_unwind(AssertUnwindSafe(|| what(connection, &mut context)));
        if done.is_err() {
            warn!("a connection failed (a bug) and was closed");
        }
        if done.is_err() || connection.is_closed() {
            return self.remove(key);
        }
        let id = ConnectionId::new(self.number, key.slot, key.generation);
        if let Err(error) = connection.poll_upstream(&self.poller, id.0 | UPSTREAM) {
            debug!("a connection to another server cannot be polled: {error}");
            return self.remove(key);
        }
        let wanted = connection.wanted();
        if wanted != connection.interest {
            connection.interest = wanted;
            let socket = &connection.transport().socket;
            if let Err(error) = self.poller.change(socket, id.0, wanted) {
                debug!("a connection cannot be polled any more: {error}");
                return self.remove(key);
            }
        }
        let due = connection.due_at(&self.edge, self.now);
        self.deadlines.set(key, &mut connection.deadline, due);
    }

    fn remove(&mut self, key: Key) {
        if let Some(mut connection) = self.connections.remove(key) {
            if connection.state() == State::Held {
                self.service.abandoned(connection.id());
            }
            if connection.was_shed() {
                self.edge.note_shed();
            }
            self.deadlines.remove(key, &mut connection.deadline);
            let peer = connection.peer();
            drop(connection);
            self.edge.note_closed(peer);
        }
    }

    /// Ends the requests that were forwarded to other servers than this one.
    fn cut_forwarded(&mut self, but_to: Option<u64>) {
        let others =
            { self.connections.iter() }.filter(|(_, connection)| connection.is_forwarded(but_to));
        let others: Vec<Key> = others.map(|(key, _)| key).collect();
        for key in others {
            self.with(key, |connection, cx| connection.cut_forwarding(but_to, cx));
        }
    }

    /// Closes some of the connections with unfinished requests.
    fn shed(&mut self, by_system: bool) {
        self.edge.mailboxes[self.number].sheds();
        // There may be room by now.
        if !by_system && self.edge.has_room() {
            return;
        }
        let now = self.now;
        let mut unfinished: Vec<(Millis, Key)> = { self.connections.iter() }
            .filter_map(|(key, c)| Some((c.sheddable_for(&SHED_LIMITS, now)?, key)))
            .collect();
        unfinished.sort_by_key(|(ms, _)| Reverse(*ms));
        let some = unfinished.len().div_ceil(SHED_ONE_IN);
        for (_, key) in unfinished.into_iter().take(some) {
            self.with(key, |connection, cx| connection.shed(cx));
        }
    }
}

/// The number of the mailbox in the poller; no connection has it.
const WAKEUP: u64 = u64::MAX;
/// In the poller the socket to another server has its connection's number and this bit, which no number of a
/// connection has: there are few workers. One that comes late only makes its connection look.
const UPSTREAM: u64 = 1 << 63;

fn key_of(ready: Readiness) -> Key {
    ConnectionId(ready.id & !UPSTREAM).key()
}

fn is_upstream(ready: Readiness) -> bool {
    ready.id & UPSTREAM != 0
}
