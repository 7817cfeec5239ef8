//! From bytes to requests, and from requests to the service.

use super::super::answer::{self, Answer, SMALL};
use super::super::body::{Decoder, Framing};
use super::super::deadlines::Millis;
use super::super::head::{self, Head};
use super::super::lifecycle::{Action, Event, State};
use super::super::mailbox::Mail;
use super::super::memory_budget::{self, Full};
use super::super::request::{Refused, Request};
use super::super::responder::Responder;
use super::super::{Admitted, ConnectionId, Decision, Edge, Served, Service};
use super::{Connection, Context, IoBudget, UNKNOWN};
use log::warn;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is given to a sink at once, in bytes, and a read more: as much again is read while it takes that.
const PIECE_BYTES: usize = 256 * 1024;

/// A request whose body is being read.
pub(super) struct Incoming<A> {
    pub(super) request: Request,
    admitted: Admitted<A>,
    decoder: Decoder,
    /// How much of its body is kept; `None` when it comes in chunks.
    length: Option<usize>,
    /// Its sink takes a piece at the moment.
    is_taking: bool,
}

impl<A> Incoming<A> {
    /// Sets memory aside for a body that is not small: all of it where its length is known, otherwise twice what has
    /// come. `more` bytes are about to be decoded.
    fn reserve(&mut self, connection: ConnectionId, more: usize, edge: &Edge) -> Result<(), Full> {
        let body = &mut self.request.body;
        let has_come = body.len() + more;
        let needed = match self.length {
            length if self.admitted.sink.is_some() => {
                length.unwrap_or(usize::MAX).min(2 * PIECE_BYTES)
            }
            Some(length) => length,
            None => (2 * has_come).min(self.admitted.body.kept()),
        };
        let reserved = self
            .request
            .reservation
            .as_ref()
            .map_or(0, |has| has.bytes());
        if needed <= SMALL || has_come.min(needed) <= reserved.max(SMALL) {
            return Ok(());
        }
        match &mut self.request.reservation {
            Some(reservation) => reservation.grow(needed)?,
            none => *none = Some(edge.budget.reserve(connection, needed)?),
        }
        if self.admitted.sink.is_none() {
            body.reserve_exact(needed.saturating_sub(body.len()));
        }
        Ok(())
    }

    /// There is nothing to do but to wait until the sink has taken a piece.
    fn waits_for_sink(&self) -> bool {
        let has_enough = self.decoder.is_done() || self.request.body.len() >= PIECE_BYTES;
        self.is_taking && has_enough
    }
}

impl<S: Service> Connection<S> {
    /// Looks for a head, and serves its request if that is all of it. Whether there is more to do now.
    pub(super) fn read_head(&mut self, io: &mut IoBudget, cx: &mut Context<'_, S>) -> bool {
        if self.unwanted > 0 {
            let has_come = self.unwanted.min(self.input.len() as u64);
            self.input.drain(..has_come as usize);
            self.unwanted -= has_come;
        }
        if self.searched == 0 {
            // Some clients send an empty line behind a body.
            let lines = self.input.chunks(2).take_while(|two| *two == b"\r\n");
            let empty = 2 * lines.count();
            self.input.drain(..empty);
        }
        if self.input.is_empty() {
            return self.fill(io, cx);
        }
        let limits = &cx.edge.limits.request;
        match head::read(&self.input, self.searched, limits, Some(self.peer)) {
            Ok(None) => {
                self.searched = self.input.len();
                self.on(Event::Part, cx);
                self.fill(io, cx)
            }
            Ok(Some(head)) => {
                self.searched = 0;
                self.begin(head, cx);
                true
            }
            Err(refused) => {
                self.mode = UNKNOWN;
                self.refuse(refused, cx);
                true
            }
        }
    }

    /// Begins with a request whose head is whole, and still in the input.
    fn begin(&mut self, mut head: Head, cx: &mut Context<'_, S>) {
        head.request.connection = Some(self.id);
        head.request.is_first = !self.life.had_requests();
        head.request.body_bytes = match head.framing {
            Framing::Length(bytes) => Some(bytes),
            Framing::Chunked => None,
        };
        self.mode = head.mode;
        self.was_held = false;
        self.tells_state = false;
        if !head.mode.keep_alive {
            self.life.note_last();
        }
        let decided = cx.service.admit(&mut head.request);
        if let Ok(Decision::Forward(forward)) = &decided {
            return self.forward(forward, &head, cx);
        }
        self.input.drain(..head.length);
        let admitted = match decided {
            Ok(Decision::Serve(admitted)) => admitted,
            Ok(Decision::Forward(_)) => return,
            Err(answer) => return self.turn_away(answer, &head, cx),
        };
        self.tells_state = admitted.tells_state;
        let limit = admitted.body;
        let decoder = match Decoder::new(head.framing, limit) {
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
        self.on(Event::HeadWithBody, cx);
        self.incoming = Some(Box::new(Incoming {
            request: head.request,
            admitted,
            decoder,
            length: match head.framing {
                Framing::Length(bytes) => Some((bytes as usize).min(limit.kept())),
                Framing::Chunked => None,
            },
            is_taking: false,
        }));
    }

    /// Answers a request that is not let in, without waiting for its body. Its connection stays if that body is
    /// small: what of it has not come yet is thrown away when it comes.
    pub(super) fn turn_away(&mut self, answer: Answer, head: &Head, cx: &mut Context<'_, S>) {
        let Framing::Length(bytes) = head.framing else {
            return self.refuse_with(answer, cx);
        };
        let has_come = bytes.min(self.input.len() as u64);
        let to_come = bytes - has_come;
        // Who waits for 100 Continue may send the body or leave it out, and nothing tells which.
        let is_known_to_come = to_come == 0 || !head.expects_continue;
        if to_come > SMALL as u64 || !is_known_to_come {
            return self.refuse_with(answer, cx);
        }
        self.input.drain(..has_come as usize);
        self.unwanted = to_come;
        if let Action::Serve(number) = self.on(Event::Request, cx) {
            self.on(Event::Answer(number), cx);
            self.write(answer);
        }
    }

    /// Reads a body, and serves the request when it is whole. Whether there is more to do now.
    pub(super) fn read_body(&mut self, io: &mut IoBudget, cx: &mut Context<'_, S>) -> bool {
        if self.waits_for_sink() {
            return false;
        }
        if self.input.is_empty() {
            return self.fill(io, cx);
        }
        let Some(incoming) = &mut self.incoming else {
            // A body is only read of a request.
            self.on(Event::Lost, cx);
            return false;
        };
        if let Err(full) = incoming.reserve(self.id, self.input.len(), cx.edge) {
            cx.edge.cut(full);
            let since = *self.starved.get_or_insert(cx.now);
            if cx.now - since > memory_budget::MAX_WAIT.as_millis() as Millis {
                self.starved = None;
                let msg = "too many large requests at once (--max-in-flight)";
                self.refuse(Refused::new(503, msg), cx);
                return true;
            }
            return false;
        }
        if let Some(since) = self.starved.take() {
            // The time without memory does not count for the client.
            self.since += cx.now - since;
            self.pace = (cx.now, self.moved);
        }
        match incoming
            .decoder
            .decode(&self.input, &mut incoming.request.body)
        {
            Ok(taken) => {
                let is_done = incoming.decoder.is_done();
                self.input.drain(..taken);
                if incoming.admitted.sink.is_some() {
                    self.pass_on(cx);
                    // What is left of the input is the beginning of a line between chunks.
                    return match self.state() == State::ReadingBody && !self.waits_for_sink() {
                        true => self.fill(io, cx),
                        false => false,
                    };
                }
                if is_done && let Some(mut incoming) = self.incoming.take() {
                    incoming.request.body_left_out = incoming.decoder.left_out();
                    self.serve(incoming.request, incoming.admitted, cx);
                    return true;
                }
                self.fill(io, cx)
            }
            Err(refused) => {
                self.refuse(refused, cx);
                true
            }
        }
    }

    /// Whether the body goes to a sink.
    pub(super) fn has_sink(&self) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_some_and(|incoming| incoming.admitted.sink.is_some())
    }

    /// Whether nothing more of the body is read until its sink has taken what was read.
    pub(super) fn waits_for_sink(&self) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_some_and(|incoming| incoming.waits_for_sink())
    }

    /// Gives the sink what was decoded, if it takes nothing at the moment; serves the request when all of its body is
    /// taken.
    fn pass_on(&mut self, cx: &mut Context<'_, S>) {
        let number = self.life.number();
        let Some(incoming) = &mut self.incoming else {
            return;
        };
        let Some(sink) = incoming.admitted.sink.clone() else {
            return;
        };
        if incoming.is_taking {
            return;
        }
        if !incoming.request.body.is_empty() {
            incoming.is_taking = true;
            let piece = std::mem::take(&mut incoming.request.body);
            let (edge, id) = (cx.edge.clone(), self.id);
            return cx.edge.run_transfer(move || {
                let taken = catch_unwind(AssertUnwindSafe(|| sink.take(&piece)));
                let taken = taken
                    .map_err(|_| None)
                    .and_then(|taken| taken.map_err(Some));
                drop(sink);
                edge.mailbox(id).put(Mail::Taken(id, number, taken));
            });
        }
        if incoming.decoder.is_done()
            && let Some(incoming) = self.incoming.take()
        {
            self.serve(incoming.request, incoming.admitted, cx);
        }
    }

    /// The sink has taken a piece, or refuses it.
    pub fn piece_taken(
        &mut self,
        number: u32,
        taken: Result<(), Option<Refused>>,
        cx: &mut Context<'_, S>,
    ) {
        let Some(incoming) = &mut self.incoming else {
            return;
        };
        if number != self.life.number() || !incoming.is_taking {
            return;
        }
        incoming.is_taking = false;
        match taken {
            Ok(()) => {
                // Only the peer's time counts.
                self.since = cx.now;
                self.pace = (cx.now, self.moved);
                self.pass_on(cx);
            }
            Err(Some(refused)) => self.refuse(refused, cx),
            Err(None) => {
                warn!("a request failed (a bug); its connection was closed");
                self.on(Event::Lost, cx);
            }
        }
        self.advance(cx);
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
        if admitted.sink.is_some() {
            drop(admitted.sink);
            let service = cx.service.clone();
            return cx.edge.run_transfer(move || {
                service.serve(request, admission, responder);
            });
        }
        if admitted.may_wait {
            let service = cx.service.clone();
            let (edge, id) = (cx.edge.clone(), self.id);
            return cx.edge.pool.give(Box::new(move || {
                if service.serve(request, admission, responder) == Served::Held {
                    edge.mailbox(id).put(Mail::Hold(id, number));
                }
            }));
        }
        let serve = AssertUnwindSafe(|| cx.service.serve(request, admission, responder));
        match catch_unwind(serve) {
            Ok(Served::Held) => self.hold(number, cx),
            Ok(Served::Answered) => {}
            Err(_) => warn!("a request failed (a bug); its connection was closed"),
        }
    }

    /// Refuses what came; the connection's last answer.
    fn refuse(&mut self, refused: Refused, cx: &mut Context<'_, S>) {
        let answer = self.explain(refused, cx);
        self.refuse_with(answer, cx);
    }

    pub(super) fn explain(&mut self, refused: Refused, cx: &Context<'_, S>) -> Answer {
        let incoming = self.incoming.take();
        let of = incoming
            .as_ref()
            .map(|incoming| (&incoming.request, &incoming.admitted.admission));
        cx.service.refuse(&refused, of)
    }

    pub(super) fn refuse_with(&mut self, answer: Answer, cx: &mut Context<'_, S>) {
        if self.on(Event::Refused, cx) == Action::Write {
            self.mode.keep_alive = false;
            self.must_linger = true;
            self.input.clear();
            self.write(answer);
        }
    }
}
