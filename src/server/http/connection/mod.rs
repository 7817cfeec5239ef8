//! One connection, driven by its worker: bytes in, requests to the service, answers out.
//!
//! What happens when is decided by [`Lifecycle`]; here is the I/O around it. Nothing here waits: a connection goes on
//! as far as its socket allows ([`Connection::advance`]), then says what it wants to hear of ([`Interest`]) and by
//! when. Bytes behind a request stay in the input buffer, so pipelined requests are answered in order, one after the
//! other.

mod forwarding;
mod request;
mod timing;

use self::forwarding::Forwarding;
use self::request::Incoming;
use super::answer::{self, Answer};
use super::deadlines::{Deadline, Millis};
use super::head::ResponseMode;
use super::lifecycle::{Action, Event, Lifecycle, State};
use super::memory_budget::{self, Reservation};
use super::output::{Output, Piece};
use super::poller::Interest;
use super::request::Refused;
use super::responder::{Part, Source, StreamHead};
use super::transport::Transport;
use super::{ConnectionId, Edge, Service};
use crate::tls::Got;
use log::debug;
use std::net::IpAddr;
use std::sync::Arc;

/// Bytes read from or written to one connection in one pass of the worker, so that other connections are not delayed.
pub const TURN_BYTES: usize = 256 * 1024;
/// Bytes read while a request is with the service: enough to see the client's end behind a usual pipelined request.
/// More stays in the kernel.
const LOOK_AHEAD_BYTES: usize = 16 * 1024;
/// What is set aside for the next part of a stream, in bytes; a part in memory is no larger than about this.
pub const PART_BYTES: usize = 128 * 1024;
/// What may come behind the last answer, in bytes: reading it is work, and a client that sends so much is not reading.
const LINGER_BYTES: u64 = 64 << 20;

/// What a worker has for its connections.
pub struct Context<'a, S: Service> {
    /// The edge.
    pub edge: &'a Arc<Edge>,
    /// Who answers.
    pub service: &'a Arc<S>,
    /// The present time.
    pub now: Millis,
    /// An empty buffer, lent to a connection that reads: between requests a connection needs none of its own.
    pub scratch: &'a mut Vec<u8>,
}

/// A connection.
pub struct Connection<S: Service> {
    id: ConnectionId,
    peer: IpAddr,
    transport: Transport,
    life: Lifecycle,
    /// What was read and not parsed.
    input: Vec<u8>,
    /// How much of it was searched for the end of a head.
    searched: usize,
    /// How much is still to come of the body of a request that was not let in.
    unwanted: u64,
    /// The request whose body is being read.
    incoming: Option<Box<Incoming<S::Admission>>>,
    /// The request that another server answers.
    forwarding: Option<Box<Forwarding>>,
    /// How the present request is to be answered.
    mode: ResponseMode,
    /// Its answer depends on what the service knows at the moment.
    tells_state: bool,
    output: Output,
    /// What the answer on its way takes of the memory budget.
    reservation: Option<Reservation>,
    stream: Option<Stream>,
    /// The peer has closed its sending side.
    has_ended: bool,
    /// The first bytes of the answer were sent already, to see whether the peer is there.
    has_probed: bool,
    /// The peer may still be sending a body that nobody reads.
    must_linger: bool,
    /// The sending side is closed.
    has_shut: bool,
    /// It was closed to make room for others.
    was_shed: bool,
    /// The last request was held.
    was_held: bool,
    /// Since when it does what it does; a request counts from its first byte.
    since: Millis,
    /// Since when it waits for memory for its body.
    starved: Option<Millis>,
    /// Bytes read and written in all.
    moved: u64,
    /// Since when the pace is measured, and what had moved by then.
    pace: (Millis, u64),
    /// What the worker was told to poll.
    pub interest: Interest,
    /// When something is due.
    pub deadline: Deadline,
}

/// An answer that comes about bit by bit.
struct Stream {
    source: Box<dyn Source>,
    /// When to ask it again.
    next: Millis,
    /// How many bytes are to come, where that is known.
    left: Option<u64>,
}

/// What was read and written in one pass.
#[derive(Default)]
struct IoBudget {
    bytes: usize,
    /// The socket has nothing more now, or is not to be read.
    is_drained: bool,
    /// The same of the socket to another server.
    is_upstream_drained: bool,
}

/// How what is no request is answered.
const UNKNOWN: ResponseMode = ResponseMode {
    keep_alive: false,
    is_http_1_0: false,
    without_body: false,
};

impl<S: Service> Connection<S> {
    /// A connection that was just accepted.
    pub fn new(id: ConnectionId, transport: Transport, peer: IpAddr, now: Millis) -> Self {
        Connection {
            id,
            peer,
            transport,
            life: Lifecycle::new(),
            input: Vec::new(),
            searched: 0,
            unwanted: 0,
            incoming: None,
            forwarding: None,
            mode: UNKNOWN,
            tells_state: false,
            output: Output::default(),
            reservation: None,
            stream: None,
            has_ended: false,
            has_probed: false,
            must_linger: false,
            has_shut: false,
            was_shed: false,
            was_held: false,
            since: now,
            starved: None,
            moved: 0,
            pace: (now, 0),
            interest: Interest {
                read: true,
                write: false,
            },
            deadline: Deadline::default(),
        }
    }

    /// Where it comes from.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Its transport, to be polled.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// What it does.
    pub fn state(&self) -> State {
        self.life.state()
    }

    /// Its number.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Whether it was closed to make room for others.
    pub fn was_shed(&self) -> bool {
        self.was_shed
    }

    /// Whether it is over.
    pub fn is_closed(&self) -> bool {
        self.state() == State::Closed
    }

    /// Its socket can be read from or written to, or is broken.
    pub fn ready(&mut self, is_broken: bool, cx: &mut Context<'_, S>) {
        if is_broken && self.state() != State::Lingering {
            self.on(Event::Lost, cx);
        }
        match self.state() {
            State::Serving | State::Held | State::Streaming => self.look_ahead(cx),
            State::Forwarding | State::Relaying if !self.is_sending_up() => self.look_ahead(cx),
            _ => {}
        }
        self.advance(cx);
    }

    /// The service keeps its request.
    pub fn held(&mut self, number: u32, cx: &mut Context<'_, S>) {
        self.hold(number, cx);
        self.advance(cx);
    }

    fn hold(&mut self, number: u32, cx: &mut Context<'_, S>) {
        self.on(Event::Hold(number), cx);
        if self.state() == State::Held {
            self.was_held = true;
            if self.has_ended {
                self.on(Event::End, cx);
            }
        }
    }

    /// The service has answered its request.
    pub fn answered(
        &mut self,
        number: u32,
        answer: Answer,
        reservation: Option<Reservation>,
        cx: &mut Context<'_, S>,
    ) {
        if self.on(Event::Answer(number), cx) == Action::Write {
            self.reservation = reservation;
            self.write(match self.stamp(cx) {
                Ok(None) => answer,
                Ok(Some(lines)) => answer.with_headers(&lines),
                Err(instead) => instead,
            });
            // A client sends its next request when it has read this answer, so a read now would find nothing. The
            // poller reports what comes, and what has come already.
            let io = IoBudget {
                is_drained: true,
                ..IoBudget::default()
            };
            self.advance_within(io, cx);
        }
    }

    /// The service answers its request with a stream.
    pub fn streamed(
        &mut self,
        number: u32,
        head: StreamHead,
        source: Box<dyn Source>,
        cx: &mut Context<'_, S>,
    ) {
        let lines = match self.stamp(cx) {
            Ok(lines) => lines.unwrap_or_default(),
            Err(instead) => {
                if self.on(Event::Answer(number), cx) == Action::Write {
                    self.write(instead);
                    self.advance(cx);
                }
                return;
            }
        };
        if self.on(Event::Stream(number), cx) != Action::Pull {
            return;
        }
        let (head, left) = match head {
            StreamHead::Endless(content_type) => {
                (answer::stream_head(content_type, &lines, self.mode), None)
            }
            StreamHead::Sized(answer, bytes) => {
                let answer = answer.with_headers(&lines);
                (answer.head_for(self.mode, bytes), Some(bytes))
            }
        };
        self.write_head(head);
        let is_empty = self.mode.without_body || left == Some(0);
        match left {
            Some(_) if is_empty => drop(self.on(Event::StreamWhole, cx)),
            None if is_empty => drop(self.on(Event::StreamEnd, cx)),
            left => {
                let next = cx.now;
                self.stream = Some(Stream { source, next, left });
            }
        }
        self.advance(cx);
    }

    /// Its stream may have something new.
    pub fn woken(&mut self, number: u32, cx: &mut Context<'_, S>) {
        if number == self.life.number()
            && let Some(stream) = &mut self.stream
        {
            stream.next = cx.now;
            self.advance(cx);
        }
    }

    /// The service has dropped its request.
    pub fn dropped(&mut self, number: u32, cx: &mut Context<'_, S>) {
        self.on(Event::Dropped(number), cx);
    }

    /// Others need the memory that reservation number `number` has.
    pub fn cut(&mut self, number: u64, cx: &mut Context<'_, S>) {
        let incoming = self.incoming.as_ref();
        let body = incoming.and_then(|incoming| incoming.request.reservation.as_ref());
        if { body.into_iter().chain(&self.reservation) }.any(|has| has.number() == number) {
            self.shed(cx);
        }
    }

    /// It has to make room for others.
    pub fn shed(&mut self, cx: &mut Context<'_, S>) {
        debug!("given up while {:?}", self.state());
        self.on(Event::Shed, cx);
        self.was_shed = self.is_closed();
    }

    /// Something was due.
    pub fn due(&mut self, cx: &mut Context<'_, S>) {
        // Read first what has come meanwhile, so that no request is cut that was already received.
        self.advance(cx);
        if let Some(why) = self.upstream_overdue(cx) {
            self.upstream_failed(why, cx);
            self.advance(cx);
        } else if self.is_late(cx) {
            debug!("cut while {:?}", self.state());
            self.on(Event::Late, cx);
            self.advance(cx);
        }
    }

    /// Whether its stream says how long it is.
    fn is_sized(&self) -> bool {
        let stream = self.stream.as_ref();
        stream.is_some_and(|stream| stream.left.is_some())
    }

    /// Whether something is on its way that the socket did not take yet.
    fn has_unsent(&self) -> bool {
        !self.output.is_empty() || self.transport.wants_write()
    }

    /// Goes on as far as the socket allows.
    pub fn advance(&mut self, cx: &mut Context<'_, S>) {
        self.advance_within(IoBudget::default(), cx);
    }

    fn advance_within(&mut self, mut io: IoBudget, cx: &mut Context<'_, S>) {
        loop {
            let is_forwarded = matches!(self.state(), State::Forwarding | State::Relaying);
            // Neither direction waits for the other.
            if !is_forwarded && !self.flush(&mut io, cx) {
                break;
            }
            let goes_on = match self.state() {
                State::Idle | State::ReadingHead => self.read_head(&mut io, cx),
                State::ReadingBody => self.read_body(&mut io, cx),
                State::Writing => {
                    self.on(Event::Sent, cx);
                    true
                }
                State::Streaming => self.pull(&mut io, cx),
                State::Forwarding | State::Relaying => self.relay(&mut io, cx),
                State::Lingering => self.discard(&mut io, cx),
                State::Serving | State::Held | State::Closed => false,
            };
            if !goes_on {
                break;
            }
        }
        if self.input.is_empty() && self.input.capacity() > 0 {
            *cx.scratch = std::mem::take(&mut self.input);
        }
    }

    /// What it wants to hear of.
    pub fn wanted(&self) -> Interest {
        let read = match self.state() {
            State::Idle | State::ReadingHead | State::Lingering => true,
            State::ReadingBody => self.starved.is_none() && !self.waits_for_sink(),
            State::Forwarding | State::Relaying if self.is_sending_up() => self.wants_body(),
            State::Forwarding | State::Relaying => self.input.len() < LOOK_AHEAD_BYTES,
            State::Serving | State::Held | State::Streaming => self.input.len() < LOOK_AHEAD_BYTES,
            State::Writing | State::Closed => false,
        };
        Interest {
            read: read && !self.has_ended,
            write: self.has_unsent(),
        }
    }

    /// Tells the lifecycle, and does what needs nothing else to be done.
    fn on(&mut self, event: Event, cx: &mut Context<'_, S>) -> Action {
        let before = self.state();
        let action = self.life.on(event);
        let after = self.state();
        if before != after && (before, after) != (State::ReadingHead, State::ReadingBody) {
            self.since = cx.now;
        }
        if before != after {
            self.pace = (cx.now, self.moved);
        }
        match action {
            Action::Linger => self.linger(),
            Action::Probe => self.probe(),
            Action::RefuseTruncated => {
                let refused = Refused::new(400, "the body ended before it was whole");
                let answer = self.explain(refused, cx);
                self.mode.keep_alive = false;
                self.write(answer);
            }
            Action::Close => self.close(before, event),
            Action::Abandon => {
                self.close(before, event);
                cx.service.abandoned(self.id);
            }
            Action::Next => self.reservation = None,
            Action::Wait | Action::ReadBody | Action::Serve(_) => {}
            Action::Forward | Action::Write | Action::Pull => {}
        }
        action
    }

    fn close(&mut self, before: State, event: Event) {
        match (before, event) {
            (State::Writing | State::Streaming, _) if self.has_unsent() => {
                self.transport.discard_unsent();
            }
            // Else the end of the connection could pass for that of the answer.
            (State::Relaying, _) if self.has_unsent() || !self.is_relay_framed() => {
                self.transport.discard_unsent();
            }
            // The other states have sent nothing, or have said it with their last answer.
            (State::Idle, Event::End | Event::Late | Event::Shed) => self.transport.close_session(),
            _ => {}
        }
        self.incoming = None;
        self.forwarding = None;
        self.stream = None;
        self.reservation = None;
    }

    /// Ends the connection so that its last answer can be read: a socket that is closed with something unread is
    /// reset, and the peer may lose what it has not read by then.
    fn linger(&mut self) {
        self.reservation = None;
        self.stream = None;
        self.must_linger |=
            !self.input.is_empty() || self.unwanted > 0 || self.transport.has_unread();
        self.input.clear();
        self.transport.close_session();
    }

    /// The peer of a held request has closed its sending side, perhaps both sides. The first bytes of the answer,
    /// whatever it will be, tell: who has gone answers them with a reset.
    fn probe(&mut self) {
        if !self.has_probed {
            self.has_probed = true;
            self.output.push(answer::FIRST_BYTES);
        }
    }

    /// What is to be added to an answer that leaves now, or what leaves in its place.
    fn stamp(&self, cx: &Context<'_, S>) -> Result<Option<Arc<str>>, Answer> {
        match self.tells_state {
            true => cx.service.stamp(),
            false => Ok(None),
        }
    }

    fn write(&mut self, answer: Answer) {
        let (head, body) = answer.into_parts(self.mode);
        self.write_head(head);
        if let Some(body) = body {
            self.output.push(body);
        }
    }

    fn write_head(&mut self, mut head: Vec<u8>) {
        if std::mem::take(&mut self.has_probed) {
            head.drain(..answer::FIRST_BYTES.len());
        }
        self.output.push(head);
    }

    /// Writes what there is. Whether that was all.
    fn flush(&mut self, io: &mut IoBudget, cx: &mut Context<'_, S>) -> bool {
        if self.is_closed() {
            return false;
        }
        if !self.has_unsent() {
            return true;
        }
        // The poller reports again that the socket takes more.
        let most = TURN_BYTES.saturating_sub(io.bytes);
        match self.transport.write(&mut self.output, most) {
            Ok(bytes) => {
                self.moved += bytes as u64;
                io.bytes += bytes;
                if bytes > 0 && matches!(self.state(), State::Streaming | State::Relaying) {
                    self.since = cx.now;
                }
                !self.has_unsent()
            }
            Err(error) => {
                debug!("an answer could not be written: {error}");
                self.on(Event::Lost, cx);
                false
            }
        }
    }

    /// Reads some more. Whether there is something new to look at.
    fn fill(&mut self, io: &mut IoBudget, cx: &mut Context<'_, S>) -> bool {
        if self.has_ended {
            self.on(Event::End, cx);
            return true;
        }
        if io.is_drained || io.bytes >= TURN_BYTES {
            return false;
        }
        if self.input.capacity() == 0 {
            self.input = std::mem::take(cx.scratch);
        }
        let before = self.input.len();
        let got = self.transport.read(&mut self.input);
        let bytes = self.input.len() - before;
        self.moved += bytes as u64;
        io.bytes += bytes;
        match got {
            Ok(Got::Some) => true,
            Ok(Got::Nothing) => {
                io.is_drained = true;
                bytes > 0
            }
            Ok(Got::End) => {
                self.has_ended = true;
                true
            }
            Err(error) => {
                debug!("a connection ended: {error}");
                self.on(Event::Lost, cx);
                false
            }
        }
    }

    /// Reads what comes while the service, or another server, has the request, and notices the peer's end.
    fn look_ahead(&mut self, cx: &mut Context<'_, S>) {
        let mut io = IoBudget::default();
        while !self.has_ended
            && !self.is_closed()
            && self.input.len() < LOOK_AHEAD_BYTES
            && self.fill(&mut io, cx)
        {}
        if self.has_ended && !self.is_closed() {
            self.on(Event::End, cx);
        }
    }

    /// Sends the next part of a stream. Whether there is more to do now.
    fn pull(&mut self, io: &mut IoBudget, cx: &mut Context<'_, S>) -> bool {
        let Some(stream) = &mut self.stream else {
            self.on(Event::StreamEnd, cx);
            return true;
        };
        // The socket has all of it. Until then the source keeps the file's place from being used for another file.
        if stream.left == Some(0) {
            self.stream = None;
            self.on(Event::StreamWhole, cx);
            return true;
        }
        // The rest is due in the next pass.
        if stream.next > cx.now || io.bytes >= TURN_BYTES {
            return false;
        }
        if self.tells_state && cx.service.stamp().is_err() {
            debug!("a body was broken off: the service may not answer any more");
            self.on(Event::Lost, cx);
            return false;
        }
        self.reservation = None;
        match cx.edge.budget.reserve(self.id, PART_BYTES) {
            Ok(reservation) => self.reservation = Some(reservation),
            Err(full) => {
                cx.edge.cut(full);
                stream.next = cx.now + memory_budget::RETRY.as_millis() as Millis;
                return false;
            }
        }
        let mut piece: Piece = match stream.source.next() {
            Part::Bytes(bytes) if bytes.is_empty() => return true,
            Part::Bytes(bytes) if stream.left.is_none() => answer::chunk(bytes, self.mode).into(),
            Part::Bytes(bytes) => bytes.into(),
            Part::File(part) => {
                // It stays in the kernel's memory.
                self.reservation = None;
                Piece::File(part)
            }
            Part::Wait(time) => {
                self.reservation = None;
                stream.next = cx.now + (time.as_millis() as Millis).max(1);
                return false;
            }
            Part::End if stream.left.is_some() => {
                debug!("a body ended before all of it was sent; the connection is closed");
                self.on(Event::Lost, cx);
                return false;
            }
            Part::End => {
                self.stream = None;
                self.output.push(answer::last_chunk(self.mode));
                self.on(Event::StreamEnd, cx);
                return true;
            }
        };
        self.since = cx.now;
        self.pace = (cx.now, self.moved);
        if let Some(left) = &mut stream.left {
            // No more than was said, or it would pass for the next answer.
            *left -= piece.truncate(*left);
        }
        self.output.push(piece);
        true
    }

    /// Throws away what the peer still sends. Whether there is more to do now.
    fn discard(&mut self, io: &mut IoBudget, cx: &mut Context<'_, S>) -> bool {
        // Now that everything is sent.
        if !std::mem::replace(&mut self.has_shut, true) {
            self.transport.close_sending();
            if self.has_ended || !self.must_linger {
                self.on(Event::End, cx);
                return false;
            }
        }
        let goes_on = self.fill(io, cx);
        self.input.clear();
        if self.moved - self.pace.1 > LINGER_BYTES {
            self.on(Event::Late, cx);
        }
        goes_on && !self.is_closed()
    }
}
