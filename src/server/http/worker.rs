//! A worker: one thread that does everything for the connections that are its own.
//!
//! It sleeps until a socket, a deadline or its mailbox has something, and does what can be done without waiting; what
//! may wait goes to the pool. As nobody else touches its connections, a connection needs no lock, and an answer is
//! written by the thread that reads the next request. A few workers serve all connections.

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

/// Handshakes that are gone on with in one turn: each is a millisecond of cryptography, and a crowd of them must
/// not hold up those who are through.
const HANDSHAKES_PER_TURN: usize = 2;
/// Of the connections that may be given up one in so many is, longest first: a crowd that comes back as fast as it is
/// sent away would leave no place to others, and giving up all of them would hit good ones.
const SHED_ONE_IN: usize = 8;
/// How often memory that other threads have freed is given back.
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
    spare: Vec<u8>,
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
            spare: Vec::new(),
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
            let patience = match self.edge.mailboxes[self.number].fall_asleep() {
                true => self.patience(has_worked),
                false => Some(Duration::ZERO),
            };
            self.poller.wait(patience, &mut ready);
            self.now = self.edge.now();
            let was_rung = ready.iter().any(|ready| ready.id == WAKEUP);
            self.edge.mailboxes[self.number].wake_up(was_rung);
            has_worked |= !ready.is_empty();
            for ready in ready.drain(..) {
                if ready.id == WAKEUP {
                    continue;
                }
                let key = ConnectionId(ready.id).key();
                match self.connections.get_mut(key) {
                    Some(connection) if connection.transport().is_handshaking() => {
                        handshaking.push(ready);
                    }
                    Some(_) => self.handle(ready),
                    None => {}
                }
            }
            // The poller tells of the others again.
            handshaking.truncate(HANDSHAKES_PER_TURN);
            handshaking.drain(..).for_each(|ready| self.handle(ready));
            self.handle_deadlines();
            if has_worked && tidied.elapsed() >= TIDY_PERIOD {
                crate::allocator::give_back();
                (tidied, has_worked) = (Instant::now(), false);
            }
        }
    }

    /// How long there is nothing to do if nothing comes.
    fn patience(&self, has_worked: bool) -> Option<Duration> {
        let due = self.deadlines.next();
        let due = due.map(|due| Duration::from_millis(due.saturating_sub(self.now)));
        let tidy = has_worked.then_some(TIDY_PERIOD);
        due.into_iter().chain(tidy).min()
    }

    fn handle(&mut self, ready: Readiness) {
        let key = ConnectionId(ready.id).key();
        self.with(key, |connection, cx| connection.ready(ready.is_broken, cx));
        // What was answered meanwhile goes out before the next one is looked at.
        self.read_mail();
    }

    /// Handles what is due, once for each connection: what is due again at once waits for the others.
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

    /// Reads what there is now. What comes of it meanwhile waits for the sockets of others: a client that pipelines
    /// without end must not keep the worker to itself.
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
            Mail::Stream(of, number, content_type, source) => {
                self.with(of.key(), |c, cx| {
                    c.streamed(number, content_type, source, cx)
                });
            }
            Mail::Wake(of, number) => self.with(of.key(), |c, cx| c.woken(number, cx)),
            Mail::Dropped(of, number) => self.with(of.key(), |c, cx| c.dropped(number, cx)),
            Mail::Cut(of, number) => self.with(of.key(), |c, cx| c.cut(number, cx)),
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
            spare: &mut self.spare,
        };
        // A bug must cost one connection, not the worker with all the others.
        let done = catch_unwind(AssertUnwindSafe(|| what(connection, &mut context)));
        if done.is_err() {
            warn!("a connection failed (a bug) and was closed");
        }
        if done.is_err() || connection.is_closed() {
            return self.remove(key);
        }
        let wanted = connection.wanted();
        if wanted != connection.interest {
            connection.interest = wanted;
            let socket = &connection.transport().socket;
            let id = ConnectionId::new(self.number, key.slot, key.generation);
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

    /// Gives up some of the connections that keep others waiting.
    fn shed(&mut self, by_system: bool) {
        self.edge.mailboxes[self.number].sheds();
        // There may be room by now.
        if !by_system && self.edge.has_room() {
            return;
        }
        let now = self.now;
        let mut unfinished: Vec<(Millis, Key)> = { self.connections.iter() }
            .filter_map(|(key, c)| Some((c.unfinished_for(&SHED_LIMITS, now)?, key)))
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
