//! One connection, driven by its worker: bytes in, requests to the service, answers out.
//!
//! What happens when is decided by [`Lifecycle`]; here is the I/O around it. Nothing here waits: a connection goes on
//! as far as its socket allows ([`Connection::advance`]), then says what it wants to hear of ([`Interest`]) and by
//! when. Bytes behind a request stay in the input buffer, so pipelined requests are answered in order, one after the
//! other.

use super::answer::{self, Answer, SMALL};
use super::body::{Decoder, Framing};
use super::deadlines::{Deadline, Millis};
use super::head::{self, Head, Manner};
use super::lifecycle::{Action, Event, Lifecycle, State};
use super::mailbox::Mail;
use super::memory_budget::{self, Reservation};
use super::poller::Interest;
use super::request::{Refused, Request};
use super::responder::{Part, Responder, Source};
use super::transport::{Output, Transport};
use super::{Admitted, ConnectionId, Edge, Kept, Service};
use crate::tls::Got;
use log::{debug, warn};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The most that is read from or written to one connection before it is the others' turn, in bytes.
const TURN_BYTES: usize = 256 * 1024;
/// How much is read while a request is with the service, in bytes: enough to notice the peer's end behind a usual
/// pipelined request. More stays in the kernel.
const LOOK_AHEAD_BYTES: usize = 16 * 1024;
/// What is set aside for the next part of a stream, in bytes; a part is no larger than about this.
const PART_BYTES: usize = 128 * 1024;
/// How long what a refused peer still sends is thrown away, in milliseconds: time to read the answer.
const LINGER_MS: Millis = 2_000;
/// The same in bytes: reading them is work, and a client that sends so much behind a refusal is not reading.
const LINGER_BYTES: u64 = 64 << 20;
/// A body or a reader of an answer must move so many bytes in so many milliseconds: half of the slowest link that is
/// of any use (4 KB/s), leaving room for pauses.
const PACE_BYTES: u64 = 16 * 1024;
const PACE_MS: Millis = 20_000;

/// What a worker has for its connections.
pub struct Context<'a, S: Service> {
    /// The edge.
    pub edge: &'a Arc<Edge>,
    /// Who answers.
    pub service: &'a Arc<S>,
    /// The present time.
    pub now: Millis,
    /// An empty buffer, lent to a connection that reads: between requests a connection needs none of its own.
    pub spare: &'a mut Vec<u8>,
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
    /// The request whose body is being read.
    incoming: Option<Box<Incoming<S::Admission>>>,
    /// How the present request is to be answered.
    manner: Manner,
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

/// A request whose body is being read.
struct Incoming<A> {
    request: Request,
    admitted: Admitted<A>,
    decoder: Decoder,
    /// What to reserve for a body that is not small.
    expected: usize,
}

/// An answer that comes about bit by bit.
struct Stream {
    source: Box<dyn Source>,
    /// When to ask it again.
    next: Millis,
}

/// What was done of a connection in one turn.
#[derive(Default)]
struct Turn {
    bytes: usize,
    /// The socket has nothing more now.
    is_drained: bool,
}

/// How a refused request is answered, whatever it asked for.
const REFUSED: Manner = Manner {
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
            incoming: None,
            manner: REFUSED,
            output: Output::default(),
            reservation: None,
            stream: None,
            has_ended: false,
            has_probed: false,
            must_linger: false,
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
            self.write(answer);
            self.advance(cx);
        }
    }

    /// The service answers its request with a stream.
    pub fn streamed(
        &mut self,
        number: u32,
        content_type: &str,
        source: Box<dyn Source>,
        cx: &mut Context<'_, S>,
    ) {
        if self.on(Event::Stream(number), cx) != Action::Pull {
            return;
        }
        let head = answer::stream_head(content_type, self.manner);
        self.write_head(head);
        if self.manner.without_body {
            self.on(Event::StreamEnd, cx);
        } else {
            let next = cx.now;
            self.stream = Some(Stream { source, next });
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

    /// It has to make room for others.
    pub fn shed(&mut self, cx: &mut Context<'_, S>) {
        debug!("given up while {:?}", self.state());
        self.on(Event::Shed, cx);
    }

    /// Something was due.
    pub fn due(&mut self, cx: &mut Context<'_, S>) {
        if self.is_late(cx) {
            debug!("cut while {:?}", self.state());
            self.on(Event::Late, cx);
        }
        self.advance(cx);
    }

    /// Goes on as far as the socket allows.
    pub fn advance(&mut self, cx: &mut Context<'_, S>) {
        let mut turn = Turn::default();
        while self.flush(&mut turn, cx) {
            let goes_on = match self.state() {
                State::Idle | State::ReadingHead => self.read_head(&mut turn, cx),
                State::ReadingBody => self.read_body(&mut turn, cx),
                State::Writing => {
                    self.on(Event::Sent, cx);
                    true
                }
                State::Streaming => self.pull(&mut turn, cx),
                State::Lingering => self.discard(&mut turn, cx),
                State::Serving | State::Held | State::Closed => false,
            };
            if !goes_on {
                break;
            }
        }
        if self.input.is_empty() && self.input.capacity() > 0 {
            *cx.spare = std::mem::take(&mut self.input);
        }
    }

    /// What it wants to hear of.
    pub fn wanted(&self) -> Interest {
        let read = match self.state() {
            State::Idle | State::ReadingHead | State::Lingering => true,
            State::ReadingBody => self.starved.is_none(),
            State::Serving | State::Held | State::Streaming => self.input.len() < LOOK_AHEAD_BYTES,
            State::Writing | State::Closed => false,
        };
        Interest {
            read: read && !self.has_ended,
            write: !self.output.is_empty() || self.transport.wants_write(),
        }
    }

    /// When something is due.
    pub fn due_at(&self, edge: &Edge, now: Millis) -> Option<Millis> {
        let whole = self.since + edge.limits.max_request_ms;
        let paced = whole.min(self.pace.0 + PACE_MS);
        match self.state() {
            State::Idle | State::ReadingHead => Some(whole),
            State::ReadingBody if self.starved.is_some() => {
                Some(now + memory_budget::RETRY.as_millis() as Millis)
            }
            State::ReadingBody | State::Writing => Some(paced),
            State::Streaming if !self.output.is_empty() => Some(whole),
            State::Streaming => self.stream.as_ref().map(|stream| stream.next),
            State::Lingering => Some(self.since + LINGER_MS),
            State::Serving | State::Held | State::Closed => None,
        }
    }

    fn is_late(&mut self, cx: &Context<'_, S>) -> bool {
        let whole = cx.now >= self.since + cx.edge.limits.max_request_ms;
        match self.state() {
            // What has come meanwhile is read first: a request is answered, or certainly not served.
            State::Idle => whole && !self.transport.has_unread(),
            State::ReadingHead => whole,
            State::ReadingBody if self.starved.is_some() => false,
            State::ReadingBody | State::Writing => {
                let (since, before) = self.pace;
                if cx.now >= since + PACE_MS {
                    self.pace = (cx.now, self.moved);
                    return whole || self.moved - before < PACE_BYTES;
                }
                whole
            }
            State::Streaming => !self.output.is_empty() && whole,
            State::Lingering => cx.now >= self.since + LINGER_MS,
            State::Serving | State::Held | State::Closed => false,
        }
    }

    /// For how many milliseconds it has kept others waiting that could be served in its place; `None` when it is not
    /// to be given up. `limits` says what is too long.
    pub fn unfinished_for(&self, limits: &super::ShedLimits, now: Millis) -> Option<Millis> {
        let ms = now.saturating_sub(self.since);
        let is_unfinished = match self.state() {
            State::Serving | State::Held | State::Closed => false,
            State::Idle if self.was_held => ms > limits.in_touch_ms,
            // Between two requests: its next one finds another connection.
            State::Idle if self.life.had_requests() => true,
            State::Idle => ms > limits.silent_ms,
            State::ReadingBody if self.starved.is_some() => false,
            State::Streaming if self.output.is_empty() => false,
            State::ReadingHead
            | State::ReadingBody
            | State::Writing
            | State::Streaming
            | State::Lingering => ms > limits.unfinished_ms,
        };
        // What an idle one has sent meanwhile nobody has read yet: that is not its fault.
        (is_unfinished && !(self.state() == State::Idle && self.transport.has_unread()))
            .then_some(ms)
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
            Action::Linger => self.linger(cx),
            Action::Probe => self.probe(),
            Action::RefuseTruncated => {
                let refused = Refused::new(400, "the body ended before it was whole");
                let answer = self.explain(refused, cx);
                self.manner = REFUSED;
                self.write(answer);
            }
            Action::Close => self.close(before, event),
            Action::Abandon => {
                self.close(before, event);
                cx.service.abandoned(self.id);
            }
            Action::Next => self.reservation = None,
            Action::Wait | Action::ReadBody | Action::Serve(_) | Action::Write | Action::Pull => {}
        }
        action
    }

    fn close(&mut self, before: State, event: Event) {
        match (before, event) {
            (State::Writing | State::Streaming, _) if !self.output.is_empty() => {
                self.transport.discard_unsent();
            }
            // The other states have sent nothing, or have said it with their last answer.
            (State::Idle, Event::End | Event::Late) => self.transport.close_session(),
            _ => {}
        }
        self.incoming = None;
        self.stream = None;
        self.reservation = None;
    }

    /// Ends the connection so that its last answer can be read: a socket that is closed with something unread is
    /// reset, and the peer may lose what it has not read by then.
    fn linger(&mut self, cx: &mut Context<'_, S>) {
        self.reservation = None;
        self.stream = None;
        let is_clean = self.has_ended
            || !self.must_linger && self.input.is_empty() && !self.transport.has_unread();
        self.input.clear();
        self.transport.close_sending();
        if is_clean {
            self.on(Event::End, cx);
        }
    }

    /// The peer of a held request has closed its sending side, perhaps both sides. The first bytes of the answer,
    /// whatever it will be, tell: who has gone answers them with a reset.
    fn probe(&mut self) {
        if !self.has_probed {
            self.has_probed = true;
            self.output.push(answer::FIRST_BYTES);
        }
    }

    fn write(&mut self, answer: Answer) {
        let (head, body) = answer.into_parts(self.manner);
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
    fn flush(&mut self, turn: &mut Turn, cx: &mut Context<'_, S>) -> bool {
        if self.is_closed() {
            return false;
        }
        if self.output.is_empty() && !self.transport.wants_write() {
            return true;
        }
        match self.transport.write(&mut self.output) {
            Ok(bytes) => {
                self.moved += bytes as u64;
                turn.bytes += bytes;
                if bytes > 0 && self.state() == State::Streaming {
                    self.since = cx.now;
                }
                self.output.is_empty() && !self.transport.wants_write()
            }
            Err(error) => {
                debug!("an answer could not be written: {error}");
                self.on(Event::Lost, cx);
                false
            }
        }
    }

    /// Reads some more. Whether there is something new to look at.
    fn fill(&mut self, turn: &mut Turn, cx: &mut Context<'_, S>) -> bool {
        if self.has_ended {
            self.on(Event::End, cx);
            return true;
        }
        if turn.is_drained || turn.bytes >= TURN_BYTES {
            return false;
        }
        if self.input.capacity() == 0 {
            self.input = std::mem::take(cx.spare);
        }
        let before = self.input.len();
        let got = self.transport.read(&mut self.input);
        let bytes = self.input.len() - before;
        self.moved += bytes as u64;
        turn.bytes += bytes;
        match got {
            Ok(Got::Some) => true,
            Ok(Got::Nothing) => {
                turn.is_drained = true;
                if bytes == 0 && self.state() == State::Idle && self.transport.is_handshaking() {
                    self.on(Event::Part, cx);
                }
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

    /// Reads what comes while the service has the request, and notices the peer's end.
    fn look_ahead(&mut self, cx: &mut Context<'_, S>) {
        let mut turn = Turn::default();
        while !self.has_ended
            && !self.is_closed()
            && self.input.len() < LOOK_AHEAD_BYTES
            && self.fill(&mut turn, cx)
        {}
        if self.has_ended && !self.is_closed() {
            self.on(Event::End, cx);
        }
    }

    /// Looks for a head, and serves its request if that is all of it. Whether there is more to do now.
    fn read_head(&mut self, turn: &mut Turn, cx: &mut Context<'_, S>) -> bool {
        while self.searched == 0 && self.input.starts_with(b"\r\n") {
            // Some clients send an empty line behind a body.
            self.input.drain(..2);
        }
        if self.input.is_empty() {
            return self.fill(turn, cx);
        }
        let limits = &cx.edge.limits.request;
        match head::read(&self.input, self.searched, limits, Some(self.peer)) {
            Ok(None) => {
                self.searched = self.input.len();
                self.on(Event::Part, cx);
                self.fill(turn, cx)
            }
            Ok(Some(head)) => {
                self.input.drain(..head.length);
                self.searched = 0;
                self.begin(head, cx);
                true
            }
            Err(refused) => {
                self.refuse(refused, cx);
                true
            }
        }
    }

    /// Begins with a request whose head is whole.
    fn begin(&mut self, head: Head, cx: &mut Context<'_, S>) {
        self.manner = head.manner;
        self.was_held = false;
        if !head.manner.keep_alive {
            self.life.note_last();
        }
        let admitted = match cx.service.admit(&head.request) {
            Ok(admitted) => admitted,
            Err(answer) => return self.turn_away(answer, head.framing, cx),
        };
        let max = cx.edge.limits.request.body_bytes;
        let decoder = match Decoder::new(head.framing, max) {
            Ok(decoder) => decoder,
            Err(refused) => {
                let answer = cx
                    .service
                    .refuse(&refused, Some((&head.request, &admitted.admission)));
                return self.refuse_with(answer, cx);
            }
        };
        if decoder.is_done() {
            return self.serve(head.request, admitted, cx);
        }
        if head.expects_continue && self.input.is_empty() {
            self.output.push(answer::CONTINUE);
        }
        let expected = match head.framing {
            Framing::Length(bytes) => bytes as usize,
            Framing::Chunked => max,
        };
        self.on(Event::HeadWithBody, cx);
        self.incoming = Some(Box::new(Incoming {
            request: head.request,
            admitted,
            decoder,
            expected,
        }));
    }

    /// Answers a request that is not let in. Its connection stays if nothing of it is left unread.
    fn turn_away(&mut self, answer: Answer, framing: Framing, cx: &mut Context<'_, S>) {
        match framing {
            Framing::Length(bytes) if bytes <= self.input.len() as u64 => {
                self.input.drain(..bytes as usize);
                if let Action::Serve(number) = self.on(Event::Request, cx) {
                    self.on(Event::Answer(number), cx);
                    self.write(answer);
                }
            }
            _ => self.refuse_with(answer, cx),
        }
    }

    /// Reads a body, and serves the request when it is whole. Whether there is more to do now.
    fn read_body(&mut self, turn: &mut Turn, cx: &mut Context<'_, S>) -> bool {
        if self.input.is_empty() {
            return self.fill(turn, cx);
        }
        let Some(incoming) = &mut self.incoming else {
            // A body is only read of a request.
            self.on(Event::Lost, cx);
            return false;
        };
        let request = &mut incoming.request;
        let is_large = incoming.expected > SMALL && request.body.len() + self.input.len() > SMALL;
        if is_large && request.reservation.is_none() {
            match cx.edge.budget.reserve(self.id, incoming.expected) {
                Ok(reservation) => {
                    request.reservation = Some(reservation);
                    request
                        .body
                        .reserve_exact(incoming.expected - request.body.len());
                    if let Some(since) = self.starved.take() {
                        // That was not the peer's fault.
                        self.since += cx.now - since;
                        self.pace = (cx.now, self.moved);
                    }
                }
                Err(full) => {
                    full.slowest
                        .into_iter()
                        .for_each(|slowest| cx.edge.cut(slowest));
                    let since = *self.starved.get_or_insert(cx.now);
                    if cx.now - since > memory_budget::PATIENCE.as_millis() as Millis {
                        self.starved = None;
                        let msg = "too many large requests at once (--max-in-flight)";
                        self.refuse(Refused::new(503, msg), cx);
                        return true;
                    }
                    return false;
                }
            }
        }
        match incoming.decoder.decode(&self.input, &mut request.body) {
            Ok(taken) => {
                let is_done = incoming.decoder.is_done();
                self.input.drain(..taken);
                if is_done && let Some(incoming) = self.incoming.take() {
                    self.serve(incoming.request, incoming.admitted, cx);
                    return true;
                }
                self.fill(turn, cx)
            }
            Err(refused) => {
                self.refuse(refused, cx);
                true
            }
        }
    }

    /// Gives a request to the service: here, or where it may wait.
    fn serve(
        &mut self,
        request: Request,
        admitted: Admitted<S::Admission>,
        cx: &mut Context<'_, S>,
    ) {
        let Action::Serve(number) = self.on(Event::Request, cx) else {
            return;
        };
        let responder = Responder::new(cx.edge.clone(), self.id, number);
        let admission = admitted.admission;
        if admitted.may_wait {
            let service = cx.service.clone();
            let (edge, id) = (cx.edge.clone(), self.id);
            return cx.edge.pool.give(Box::new(move || {
                if let Kept(true) = service.serve(request, admission, responder) {
                    edge.mailbox(id).put(Mail::Hold(id, number));
                }
            }));
        }
        let serve = AssertUnwindSafe(|| cx.service.serve(request, admission, responder));
        match catch_unwind(serve) {
            Ok(Kept(true)) => {
                self.hold(number, cx);
            }
            Ok(Kept(false)) => {}
            Err(_) => warn!("a request failed (a bug); its connection was closed"),
        }
    }

    /// Refuses what came; the connection's last answer.
    fn refuse(&mut self, refused: Refused, cx: &mut Context<'_, S>) {
        let answer = self.explain(refused, cx);
        self.refuse_with(answer, cx);
    }

    fn explain(&mut self, refused: Refused, cx: &Context<'_, S>) -> Answer {
        let incoming = self.incoming.take();
        let of = incoming
            .as_ref()
            .map(|incoming| (&incoming.request, &incoming.admitted.admission));
        cx.service.refuse(&refused, of)
    }

    fn refuse_with(&mut self, answer: Answer, cx: &mut Context<'_, S>) {
        if self.on(Event::Refused, cx) == Action::Write {
            self.manner = REFUSED;
            self.must_linger = true;
            self.input.clear();
            self.write(answer);
        }
    }

    /// Sends the next part of a stream. Whether there is more to do now.
    fn pull(&mut self, turn: &mut Turn, cx: &mut Context<'_, S>) -> bool {
        let Some(stream) = &mut self.stream else {
            self.on(Event::StreamEnd, cx);
            return true;
        };
        // After so much it is the others' turn; it is due again at once.
        if stream.next > cx.now || turn.bytes >= TURN_BYTES {
            return false;
        }
        match cx.edge.budget.reserve(self.id, PART_BYTES) {
            Ok(reservation) => self.reservation = Some(reservation),
            Err(full) => {
                full.slowest
                    .into_iter()
                    .for_each(|slowest| cx.edge.cut(slowest));
                stream.next = cx.now + memory_budget::RETRY.as_millis() as Millis;
                return false;
            }
        }
        match stream.source.next() {
            Part::Bytes(bytes) => {
                self.since = cx.now;
                if !bytes.is_empty() {
                    self.output.push(answer::chunk(bytes, self.manner));
                }
                true
            }
            Part::Wait(time) => {
                self.reservation = None;
                stream.next = cx.now + (time.as_millis() as Millis).max(1);
                false
            }
            Part::End => {
                self.stream = None;
                self.output.push(answer::last_chunk(self.manner));
                self.on(Event::StreamEnd, cx);
                true
            }
        }
    }

    /// Throws away what the peer still sends. Whether there is more to do now.
    fn discard(&mut self, turn: &mut Turn, cx: &mut Context<'_, S>) -> bool {
        let goes_on = self.fill(turn, cx);
        self.input.clear();
        if self.moved - self.pace.1 > LINGER_BYTES {
            self.on(Event::Late, cx);
        }
        goes_on && !self.is_closed()
    }
}
