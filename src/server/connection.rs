//! One connection: what it is doing, for the guard; and whose turn it is to read from it.
//!
//! Nobody waits for the next request of a connection. Between two requests tiny_http's part of it lies
//! on its seat; whoever hears that something has come takes it from there ([`Connection::take`]), and
//! has the [`Turn`] until it is put back or dropped, which closes the connection. What comes meanwhile
//! is noted, so that whoever puts it back looks once more. A request that is held leaves the
//! connection on its seat, too, until it is answered.
//!
//! To add something that a connection does: add a [`Phase`], and say in `listen` how long it may last.

use super::http::Incoming;
use super::open::Open;
use super::peer::Peer;
use super::room::Room;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a connection is doing, for the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// We wait for a request, nothing of which has come.
    Idle,
    /// We read a request.
    Reading,
    /// We work on an answer.
    Serving,
    /// The request is held; nobody reads or writes.
    Held,
    /// We write an answer.
    Writing,
    /// We have refused a body, and throw away what comes of it.
    Draining,
}

/// What is known of a connection, shared between whose turn it is, the guard and whoever answers it.
pub struct Connection {
    /// The socket.
    pub peer: Peer,
    phase: AtomicU8,
    /// Since when it is in that phase, in milliseconds of [`uptime_ms`].
    since_ms: AtomicU64,
    /// Counts requests, so that the guard can tell them apart.
    requests: AtomicU32,
    /// The last request was held.
    was_held: AtomicBool,
    /// It was ended from outside.
    was_cut: AtomicBool,
    /// When the guard first looked at a request: which one, and what had been received by then.
    looked: Mutex<(u32, u64)>,
    seat: Mutex<Seat>,
    open: Arc<Open>,
    /// For large bodies and answers.
    pub room: Arc<Room>,
}

/// tiny_http's part of a connection.
struct Engine {
    incoming: Incoming,
    /// Bytes of all requests it was to read so far, from their first to their last.
    handed_on: u64,
}

/// Where the engine is while it is nobody's turn.
struct Seat {
    engine: Option<Engine>,
    is: Is,
    /// Something has come that nobody has looked at.
    again: bool,
    /// The request is the last one, and held without the engine.
    is_thin: bool,
    /// It does not come encrypted: there are two descriptors, and no lock on both.
    is_plain: bool,
}

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    /// Nobody's; the next request may come.
    Free,
    /// Somebody's.
    Taken,
    /// The request is held. The engine may be on its way to the seat.
    Held,
    /// The request is held, and the engine has gone.
    HeldThin,
    /// What was held was answered before the engine was back; whether another request may come.
    Answered(bool),
    /// Nobody's any more.
    Over,
}

/// What somebody finds who heard that something has come.
pub enum Found {
    /// It is his turn.
    Turn(Turn),
    /// Its request is held: what has come may be that it hung up.
    Held,
    /// Somebody else sees to it.
    Busy,
}

/// The right, and the duty, to read from a connection: one has it at a time. Dropping it closes the
/// connection.
pub struct Turn {
    connection: Arc<Connection>,
    engine: Option<Engine>,
}

/// Milliseconds since the first call.
pub fn uptime_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({:?}, {:?})", self.peer, self.doing())
    }
}

impl Connection {
    /// A connection that has just been accepted, and the first turn.
    pub fn begin(peer: Peer, incoming: Incoming, open: &Arc<Open>, room: &Arc<Room>) -> Turn {
        let engine = Engine {
            incoming,
            handed_on: 0,
        };
        let connection = Arc::new(Connection {
            peer,
            phase: AtomicU8::new(Phase::Idle as u8),
            since_ms: AtomicU64::new(uptime_ms()),
            requests: AtomicU32::new(0),
            was_held: AtomicBool::new(false),
            was_cut: AtomicBool::new(false),
            looked: Mutex::default(),
            seat: Mutex::new(Seat {
                engine: None,
                is: Is::Taken,
                again: false,
                is_thin: false,
                is_plain: true,
            }),
            open: open.clone(),
            room: room.clone(),
        });
        open.add(&connection);
        Turn {
            connection,
            engine: Some(engine),
        }
    }

    fn seat(&self) -> MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has come: takes the turn, if it is nobody's. When the other side `hung_up`, too, that is
    /// not told again, so there is something to look at once more after what it has sent.
    pub fn take(self: &Arc<Self>, hung_up: bool) -> Found {
        let mut seat = self.seat();
        match (seat.is, seat.engine.is_some()) {
            (Is::Free, true) => {
                seat.is = Is::Taken;
                seat.again = hung_up;
                Found::Turn(Turn {
                    connection: self.clone(),
                    engine: seat.engine.take(),
                })
            }
            (Is::Held, true) | (Is::HeldThin, _) => {
                seat.again = true;
                Found::Held
            }
            _ => {
                seat.again = true;
                Found::Busy
            }
        }
    }

    /// Notes that the request is held: from now on it may be answered from anywhere. Whether only what is
    /// needed for that will be kept, so that no other request may come.
    pub fn hold(&self, stays: bool, is_plain: bool) -> bool {
        // Whoever reads what comes encrypted has to wait for it: there is to be no thread for that.
        let is_thin = !stays || !is_plain || self.open.is_short();
        let mut seat = self.seat();
        seat.is = Is::Held;
        seat.is_thin = is_thin;
        seat.is_plain = is_plain;
        drop(seat);
        self.was_held.store(true, Ordering::Relaxed);
        self.enter(Phase::Held);
        is_thin
    }

    /// The request that was held has been answered, or nobody answers it any more; whether another one
    /// may come.
    pub fn answered(self: &Arc<Self>, stays: bool) {
        let mut seat = self.seat();
        match seat.is {
            Is::Held => {}
            Is::HeldThin => {
                seat.is = Is::Over;
                drop(seat);
                return self.open.remove(self);
            }
            Is::Free | Is::Taken | Is::Answered(_) | Is::Over => return,
        }
        let Some(engine) = seat.engine.take() else {
            seat.is = Is::Answered(stays);
            return;
        };
        let turn = Turn {
            connection: self.clone(),
            engine: Some(engine),
        };
        seat.is = Is::Taken;
        drop(seat);
        if stays {
            turn.leave();
        }
    }

    /// Notes what the connection does from now on.
    pub fn enter(&self, phase: Phase) {
        self.since_ms.store(uptime_ms(), Ordering::Relaxed);
        let before = self.phase.swap(phase as u8, Ordering::AcqRel);
        let (was_held, is_held) = (before == Phase::Held as u8, phase == Phase::Held);
        if was_held != is_held {
            self.open.note_held(self, is_held);
        }
    }

    /// Whether its last request was held.
    pub fn was_held(&self) -> bool {
        self.was_held.load(Ordering::Relaxed)
    }

    /// Whether its socket's buffer has room for a small answer: it is empty before the first one.
    pub fn takes_more(&self) -> bool {
        self.requests.load(Ordering::Relaxed) <= 1 || self.peer.takes_more()
    }

    /// Bytes received of its present request, as far as the guard saw.
    pub fn received(&self) -> Option<u64> {
        let received = self.peer.counts()?.received;
        let request = self.requests.load(Ordering::Relaxed);
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.0 != request {
            *looked = (request, if request <= 1 { 0 } else { received });
        }
        Some(received - looked.1)
    }

    /// Ends it from outside. A peer that does not read its answer would keep what is left of that in
    /// the kernel for a minute and more, so that is thrown away; a refusal still gets to be read.
    pub fn cut(&self) {
        self.was_cut.store(true, Ordering::Relaxed);
        match self.doing().0 {
            Phase::Writing => self.peer.reset(),
            Phase::Idle | Phase::Reading | Phase::Serving | Phase::Held | Phase::Draining => {
                self.peer.cut();
            }
        }
    }

    /// Whether it was ended from outside.
    pub fn was_cut(&self) -> bool {
        self.was_cut.load(Ordering::Relaxed)
    }

    /// What it does, for how many milliseconds, and how many requests it has begun.
    pub fn doing(&self) -> (Phase, u64, u32) {
        let phase = match self.phase.load(Ordering::Acquire) {
            0 => Phase::Idle,
            1 => Phase::Reading,
            2 => Phase::Serving,
            3 => Phase::Held,
            4 => Phase::Writing,
            _ => Phase::Draining,
        };
        let since = self.since_ms.load(Ordering::Relaxed);
        (
            phase,
            uptime_ms().saturating_sub(since),
            self.requests.load(Ordering::Relaxed),
        )
    }
}

impl Turn {
    /// The connection whose turn it is.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Bytes of all requests that tiny_http was to read so far.
    pub fn handed_on(&self) -> u64 {
        self.engine.as_ref().map_or(0, |engine| engine.handed_on)
    }

    /// Notes that tiny_http is to read a request of so many bytes.
    pub fn hand_on(&mut self, bytes: u64) {
        if let Some(engine) = &mut self.engine {
            engine.handed_on = engine.handed_on.saturating_add(bytes);
        }
    }

    /// Notes that a request begins.
    pub fn begin_request(&self, phase: Phase) {
        self.connection.requests.fetch_add(1, Ordering::Relaxed);
        self.connection.was_held.store(false, Ordering::Relaxed);
        self.connection.enter(phase);
    }

    /// The request that comes next, read by tiny_http; `None` when there is none.
    pub fn incoming(&mut self) -> Option<&mut Incoming> {
        self.engine.as_mut().map(|engine| &mut engine.incoming)
    }

    /// Puts the connection back on its seat, for its next request, or because this one is held. Gives
    /// the turn back when there is something to look at at once.
    pub fn put_back(mut self) -> Option<Turn> {
        let connection = self.connection.clone();
        let mut seat = connection.seat();
        let is = seat.is;
        match is {
            Is::Held if seat.is_thin => {
                let is_plain = seat.is_plain;
                drop(seat);
                let engine = self.engine.take();
                if is_plain {
                    let (count, _) = connection.open.counts();
                    // The descriptor to write to stays with who has the way to answer.
                    connection.peer.outlive(|| drop(engine), count);
                } else {
                    // That waits for whoever answers just now; there is but one descriptor, which stays.
                    drop(engine);
                }
                connection.open.note_thin(&connection);
                let mut seat = connection.seat();
                let (is_answered, again) = (seat.is != Is::Held, seat.again);
                seat.is = Is::HeldThin;
                drop(seat);
                if is_answered {
                    connection.answered(false);
                } else if again {
                    connection.open.ready.look_again(&connection.peer);
                }
                None
            }
            Is::Held => {
                seat.engine = self.engine.take();
                let again = std::mem::take(&mut seat.again);
                drop(seat);
                if again {
                    // It may have hung up meanwhile.
                    connection.open.ready.look_again(&connection.peer);
                }
                None
            }
            Is::Answered(false) => {
                drop(seat);
                None
            }
            _ if seat.again => {
                seat.again = false;
                seat.is = Is::Taken;
                drop(seat);
                Some(self)
            }
            _ => {
                connection.enter(Phase::Idle);
                seat.is = Is::Free;
                seat.engine = self.engine.take();
                None
            }
        }
    }

    /// What follows when somebody else has, or had, the way to answer: the request is held, and the
    /// connection waits for that on its seat, or it is over.
    pub fn after_taken(self) -> Option<Turn> {
        let is_held = matches!(self.connection.seat().is, Is::Held | Is::Answered(_));
        if is_held { self.put_back() } else { None }
    }

    /// Puts the connection back, and leaves what there is to look at to others.
    pub fn leave(self) {
        let connection = self.connection.clone();
        let (mut turn, mut news) = (self.put_back(), false);
        while let Some(again) = turn {
            news = true;
            turn = again.put_back();
        }
        if news {
            connection.open.ready.look_again(&connection.peer);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(engine) = self.engine.take() else {
            return;
        };
        let connection = &self.connection;
        connection.seat().is = Is::Over;
        connection.peer.close(|| drop(engine));
        connection.open.remove(connection);
    }
}
