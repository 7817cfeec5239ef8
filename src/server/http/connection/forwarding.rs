//! A request that another server answers: its body goes there as it comes, and so does the answer to the client.
//!
//! Of each direction there is one piece in memory, and no more is read while the other side has not taken that. Until
//! the answer has begun, whatever fails is told by an answer of ours; then the connection is broken off.

use super::super::body::{Decoder, Framing};
use super::super::deadlines::Millis;
use super::super::forward::{Forward, ForwardPermit};
use super::super::head::Head;
use super::super::lifecycle::{Action, Event, State};
use super::super::poller::Poller;
use super::super::relay::{self, AnswerReader};
use super::super::request::Refused;
use super::super::upstream::Upstream;
use super::super::{BodyLimit, EdgeLimits, Service, answer};
use super::{Connection, Context, IoBudget, TURN_BYTES};
use crate::tls::Got;
use log::debug;
use std::io;

/// How long connecting to another server may take, in milliseconds: it is near, and a client waits.
const CONNECT_MS: Millis = 2_000;
/// The same for a handshake of TLS: it is work, and others may be before it.
const HANDSHAKE_MS: Millis = 5_000;
/// How long the answer may take to begin, in milliseconds: a little more than the longest that a request is held, an
/// hour. A server that is gone is noticed by its connection long before.
const ANSWER_MS: Millis = 3_660_000;
/// If the other server took nothing for so long, in milliseconds, the client's pace is measured anew.
const PAUSE_MS: Millis = 1_000;

/// A request that another server answers.
pub(super) struct Forwarding {
    upstream: Upstream,
    name: &'static str,
    /// Which server it is.
    server: u64,
    /// Decodes the request's body.
    body: Decoder,
    /// The body goes on in chunks.
    is_chunked: bool,
    answer: AnswerReader,
    /// When something of the request last went to the other server, or its connection came a step further.
    since: Millis,
    _permit: ForwardPermit,
}

impl Forwarding {
    fn is_sending(&self) -> bool {
        !self.upstream.takes_no_more() && !self.body.is_done()
    }
}

impl<S: Service> Connection<S> {
    /// Begins to forward a request, whose head is at the beginning of the input.
    pub(super) fn forward(&mut self, forward: &Forward, head: &Head, cx: &mut Context<'_, S>) {
        let begun = self.begin_forwarding(forward, head, cx);
        self.input.drain(..head.length);
        let forwarding = match begun {
            Ok(forwarding) => forwarding,
            Err(refused) => {
                let answer = cx.service.refuse(&refused, None);
                return self.turn_away(answer, head, cx);
            }
        };
        if self.on(Event::Forward, cx) != Action::Forward {
            return;
        }
        self.forwarding = Some(Box::new(forwarding));
        self.note_end(cx);
    }

    fn begin_forwarding(
        &self,
        forward: &Forward,
        head: &Head,
        cx: &Context<'_, S>,
    ) -> Result<Forwarding, Refused> {
        let full = || Refused::new(503, "too many requests are forwarded at once (--max-held)");
        let permit = cx.edge.begin_forward().ok_or_else(full)?;
        let head_out = relay::request_head(
            &self.input[..head.length],
            &cx.edge.limits.request,
            head.framing,
            head.expects_continue,
            forward,
        )?;
        let name = forward.target.name;
        let upstream = Upstream::open(&forward.target);
        let mut upstream = upstream.map_err(|error| unanswered(name, &error.to_string()))?;
        upstream.output.push(head_out);
        Ok(Forwarding {
            upstream,
            name,
            server: forward.target.id,
            body: Decoder::new(head.framing, BodyLimit::Streamed)?,
            is_chunked: head.framing == Framing::Chunked,
            answer: AnswerReader::new(),
            since: cx.now,
            _permit: permit,
        })
    }

    /// Tells the lifecycle that the client has closed its sending side, if nothing of the request is to come.
    fn note_end(&mut self, cx: &mut Context<'_, S>) {
        if self.has_ended && !self.is_sending_up() {
            self.on(Event::End, cx);
        }
    }

    /// Whether the body of a forwarded request is still on its way.
    pub(super) fn is_sending_up(&self) -> bool {
        { self.forwarding.as_ref() }.is_some_and(|forwarding| forwarding.is_sending())
    }

    /// Whether the other server has taken what was read of the body.
    pub(super) fn wants_body(&self) -> bool {
        self.forwarding.as_ref().is_some_and(|forwarding| {
            let upstream = &forwarding.upstream;
            upstream.is_connected() && !upstream.has_unsent()
        })
    }

    /// Whether its request was forwarded to another server than this one.
    pub fn is_forwarded(&self, but_to: Option<u64>) -> bool {
        { self.forwarding.as_ref() }.is_some_and(|it| Some(it.server) != but_to)
    }

    /// Ends its request if that was forwarded to another server than this one. What that has answered is read first;
    /// then the client's next request may be on its way.
    pub fn cut_forwarding(&mut self, but_to: Option<u64>, cx: &mut Context<'_, S>) {
        self.advance(cx);
        if self.is_forwarded(but_to) {
            self.upstream_failed("another one has taken its place", cx);
            self.advance(cx);
        }
    }

    /// Whether its client sees where the answer ends, which another server gives.
    pub(super) fn is_relay_framed(&self) -> bool {
        { self.forwarding.as_ref() }.is_none_or(|forwarding| forwarding.answer.is_framed())
    }

    /// Whether the next bytes are those of a handshake, which is work: its client's, or that with another server.
    pub fn is_handshaking(&self, upstream: bool) -> bool {
        match upstream {
            false => self.transport.is_handshaking(),
            true => {
                let forwarding = self.forwarding.as_ref();
                forwarding.is_some_and(|forwarding| forwarding.upstream.is_handshaking())
            }
        }
    }

    /// Has the poller tell, under this number, what there is of the connection to another server.
    pub fn poll_upstream(&mut self, poller: &Poller, id: u64) -> io::Result<()> {
        let wants_answer = !self.has_unsent();
        match &mut self.forwarding {
            Some(forwarding) => forwarding.upstream.poll(poller, id, wants_answer),
            None => Ok(()),
        }
    }

    /// When the other server has to have done something.
    pub(super) fn upstream_due_at(&self, limits: &EdgeLimits) -> Option<Millis> {
        let forwarding = self.forwarding.as_ref()?;
        let upstream = &forwarding.upstream;
        let time = if !upstream.is_connected() {
            CONNECT_MS
        } else if upstream.is_handshaking() {
            HANDSHAKE_MS
        } else if upstream.has_unsent() {
            limits.stall_ms
        } else if self.state() == State::Forwarding && !forwarding.is_sending() {
            ANSWER_MS
        } else {
            return None;
        };
        Some(forwarding.since + time)
    }

    /// Why the other server is given up, if it has taken too long.
    pub(super) fn upstream_overdue(&self, cx: &Context<'_, S>) -> Option<&'static str> {
        let due = self.upstream_due_at(&cx.edge.limits)?;
        let is_connected = { self.forwarding.as_ref() }
            .is_some_and(|forwarding| forwarding.upstream.is_connected());
        (cx.now >= due).then_some(match is_connected {
            true => "it took too long",
            false => "it could not be reached in time",
        })
    }

    /// Moves what both sides take. Whether there is more to do now.
    pub(super) fn relay(&mut self, io: &mut IoBudget, cx: &mut Context<'_, S>) -> bool {
        let went_up = self.send_up(io, cx);
        let came_down = self.forwarding.is_some() && self.bring_down(io, cx);
        (went_up || came_down) && !self.is_closed()
    }

    /// Sends some of the request to the other server. Whether something was done.
    fn send_up(&mut self, io: &mut IoBudget, cx: &mut Context<'_, S>) -> bool {
        let Some(forwarding) = &mut self.forwarding else {
            return false;
        };
        let upstream = &mut forwarding.upstream;
        let was_connected = upstream.is_connected();
        match upstream.look() {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                self.upstream_failed(&error.to_string(), cx);
                return true;
            }
        }
        let (had_unsent, was_handshaking) = (upstream.has_unsent(), upstream.is_handshaking());
        let written = upstream.write(TURN_BYTES.saturating_sub(io.bytes));
        io.bytes += written;
        let is_further = was_handshaking != upstream.is_handshaking() || !was_connected;
        if written > 0 || is_further {
            if had_unsent && !upstream.has_unsent() && cx.now > forwarding.since + PAUSE_MS {
                self.pace = (cx.now, self.moved);
            }
            forwarding.since = cx.now;
        }
        let was_moved = written > 0 || is_further;
        if upstream.has_unsent() || upstream.takes_no_more() || forwarding.body.is_done() {
            return was_moved;
        }
        let mut piece = Vec::new();
        let decoded = forwarding.body.decode(&self.input, &mut piece);
        let taken = match decoded {
            Ok(taken) => taken,
            Err(refused) => {
                self.body_failed(&refused, cx);
                return true;
            }
        };
        self.input.drain(..taken);
        let is_last = forwarding.body.is_done();
        if taken > 0 || is_last {
            let piece = relay::request_piece(piece, forwarding.is_chunked, is_last);
            upstream.output.push(piece);
            (forwarding.since, self.since) = (cx.now, cx.now);
            self.note_end(cx);
            return true;
        }
        if self.has_ended {
            self.body_failed(&Refused::new(400, "the body ended before it was whole"), cx);
            return true;
        }
        self.fill(io, cx) || was_moved
    }

    /// Reads some of the other server's answer, if its client has taken what was read before. Whether something was
    /// done.
    fn bring_down(&mut self, io: &mut IoBudget, cx: &mut Context<'_, S>) -> bool {
        let before = self.moved;
        if !self.flush(io, cx) {
            return false;
        }
        let was_moved = self.moved > before;
        let Some(forwarding) = &mut self.forwarding else {
            return was_moved;
        };
        let upstream = &mut forwarding.upstream;
        if !upstream.is_connected() || io.is_upstream_drained || io.bytes >= TURN_BYTES {
            return was_moved;
        }
        if upstream.input.capacity() == 0 {
            upstream.input = std::mem::take(cx.scratch);
        }
        let had = upstream.input.len();
        let got = match upstream.read() {
            Ok(got) => got,
            Err(error) => {
                self.upstream_failed(&error.to_string(), cx);
                return true;
            }
        };
        let bytes = upstream.input.len() - had;
        io.bytes += bytes;
        io.is_upstream_drained = got == Got::Nothing;
        let mut mode = self.mode;
        // What is left of the body would pass for the next request.
        mode.keep_alive &= forwarding.body.is_done();
        let (mut out, mut taken) = (Vec::new(), 0);
        let had_begun = forwarding.answer.has_begun();
        let mut read = loop {
            match forwarding
                .answer
                .take(&upstream.input[taken..], mode, &mut out)
            {
                Ok(0) => break Ok(()),
                Ok(bytes) => taken += bytes,
                Err(why) => break Err(why),
            }
        };
        upstream.input.drain(..taken);
        if upstream.input.is_empty() {
            *cx.scratch = std::mem::take(&mut upstream.input);
        }
        if read.is_ok() && got == Got::End {
            let is_clean = upstream.has_ended_cleanly();
            read = forwarding.answer.end(is_clean, &mut out);
        }
        let (has_begun, is_done) = (forwarding.answer.has_begun(), forwarding.answer.is_done());
        let keeps_alive = forwarding.answer.keeps_alive();
        // A head that came with a malformed body is not sent: what is wrong can still be said.
        if let Err(why) = read
            && !had_begun
        {
            self.upstream_failed(why, cx);
            return true;
        }
        if has_begun && !had_begun {
            self.on(Event::Relay, cx);
            if !keeps_alive {
                self.mode.keep_alive = false;
                self.life.note_last();
            }
        }
        if !out.is_empty() {
            if std::mem::take(&mut self.has_probed) {
                out.drain(..answer::FIRST_BYTES.len());
            }
            self.output.push(out);
            (self.since, self.pace) = (cx.now, (cx.now, self.moved));
        }
        if let Err(why) = read {
            self.upstream_failed(why, cx);
        } else if is_done {
            self.end_forwarding(cx);
        }
        is_done || bytes > 0 || got != Got::Nothing || was_moved
    }

    /// The answer is whole.
    fn end_forwarding(&mut self, cx: &mut Context<'_, S>) {
        let Some(forwarding) = self.forwarding.take() else {
            return;
        };
        let event = match forwarding.body.is_done() {
            true => Event::StreamWhole,
            false => {
                // The rest of the body is not wanted.
                self.must_linger = true;
                self.input.clear();
                Event::StreamEnd
            }
        };
        forwarding.upstream.close();
        self.on(event, cx);
    }

    /// The other server has not answered, or not to the end.
    pub(super) fn upstream_failed(&mut self, why: &str, cx: &mut Context<'_, S>) {
        let Some(forwarding) = &self.forwarding else {
            return;
        };
        let refused = unanswered(forwarding.name, why);
        if self.state() == State::Relaying {
            debug!("an answer was broken off: {}", refused.msg);
            self.on(Event::Lost, cx);
            return;
        }
        self.answer_instead(&refused, cx);
    }

    /// The body of the request is malformed, or broke off.
    fn body_failed(&mut self, refused: &Refused, cx: &mut Context<'_, S>) {
        match self.state() {
            State::Forwarding => self.answer_instead(refused, cx),
            _ => drop(self.on(Event::Lost, cx)),
        }
    }

    fn answer_instead(&mut self, refused: &Refused, cx: &mut Context<'_, S>) {
        let is_whole = { self.forwarding.take() }.is_none_or(|had| had.body.is_done());
        let answer = cx.service.refuse(refused, None);
        match is_whole {
            true => {
                if self.on(Event::Answer(self.life.number()), cx) == Action::Write {
                    self.write(answer);
                }
            }
            false => self.refuse_with(answer, cx),
        }
    }
}

fn unanswered(name: &str, why: &str) -> Refused {
    Refused::new(502, format!("{name} did not answer: {why}"))
}
