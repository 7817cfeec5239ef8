//! When something is due for a connection, when it is late, and when it may be shed.

use super::super::deadlines::Millis;
use super::super::lifecycle::State;
use super::super::{Edge, Service, ShedLimits, memory_budget};
use super::{Connection, Context};

/// How long the last answer's peer may still send, in milliseconds: time to read the answer.
const LINGER_MS: Millis = 2_000;
/// A body or a reader of an answer must move so many bytes in so many milliseconds: a fifth of the slowest link that
/// is of any use (4 KB/s), leaving room for pauses.
const PACE_BYTES: u64 = 16 * 1024;
const PACE_MS: Millis = 20_000;
/// A reader of a stream that has closed its sending side may have gone altogether; nothing tells while nothing is
/// sent. So it is closed when there was nothing to send for so long, in milliseconds.
const HALF_CLOSED_MS: Millis = 10_000;

impl<S: Service> Connection<S> {
    /// When something is due.
    pub fn due_at(&self, edge: &Edge, now: Millis) -> Option<Millis> {
        let whole = self.since + edge.limits.max_request_ms;
        let paced = whole.min(self.pace.0 + PACE_MS);
        let transferred = self.pace.0 + edge.limits.stall_ms;
        match self.state() {
            State::Idle | State::ReadingHead => Some(whole),
            State::ReadingBody if self.starved.is_some() => {
                Some(now + memory_budget::RETRY.as_millis() as Millis)
            }
            // The sink says when it is ready.
            State::ReadingBody if self.waits_for_sink() => None,
            State::ReadingBody if self.has_sink() => Some(transferred),
            State::ReadingBody | State::Writing => Some(paced),
            State::Streaming if self.has_unsent() && self.is_sized() => Some(transferred),
            State::Streaming if self.has_unsent() => Some(whole),
            State::Streaming => {
                let next = self.stream.as_ref().map(|stream| stream.next);
                let half_closed = self.has_ended.then_some(self.since + HALF_CLOSED_MS);
                next.into_iter().chain(half_closed).min()
            }
            State::Forwarding | State::Relaying => {
                let client = self.client_must_move().then_some(transferred);
                let half_closed = self
                    .may_be_gone_unseen()
                    .then_some(self.since + HALF_CLOSED_MS);
                let due = [self.upstream_due_at(&edge.limits), client, half_closed];
                due.into_iter().flatten().min()
            }
            State::Lingering => Some(self.since + LINGER_MS),
            State::Serving | State::Held | State::Closed => None,
        }
    }

    pub(super) fn is_late(&mut self, cx: &Context<'_, S>) -> bool {
        let whole = cx.now >= self.since + cx.edge.limits.max_request_ms;
        match self.state() {
            State::Idle | State::ReadingHead => whole,
            State::ReadingBody if self.starved.is_some() => false,
            State::ReadingBody if self.waits_for_sink() => false,
            State::ReadingBody if self.has_sink() => self.is_too_slow(cx),
            State::Streaming if self.has_unsent() && self.is_sized() => self.is_too_slow(cx),
            State::ReadingBody | State::Writing => {
                let (since, before) = self.pace;
                if cx.now >= since + PACE_MS {
                    self.pace = (cx.now, self.moved);
                    return whole || self.moved - before < PACE_BYTES;
                }
                whole
            }
            State::Streaming if self.has_unsent() => whole,
            State::Streaming => self.has_ended && cx.now >= self.since + HALF_CLOSED_MS,
            State::Forwarding | State::Relaying if self.client_must_move() => self.is_too_slow(cx),
            State::Forwarding | State::Relaying => {
                self.may_be_gone_unseen() && cx.now >= self.since + HALF_CLOSED_MS
            }
            State::Lingering => cx.now >= self.since + LINGER_MS,
            State::Serving | State::Held | State::Closed => false,
        }
    }

    /// Whether a transfer without a limit in all has moved less than [`PACE_BYTES`] in the time in which it must.
    fn is_too_slow(&mut self, cx: &Context<'_, S>) -> bool {
        let (since, before) = self.pace;
        if cx.now < since + cx.edge.limits.stall_ms {
            return false;
        }
        self.pace = (cx.now, self.moved);
        self.moved - before < PACE_BYTES
    }

    /// Whether it is the client's turn to take what it is sent of a forwarded request's answer, or to send its body.
    fn client_must_move(&self) -> bool {
        self.has_unsent() || (self.is_sending_up() && self.wants_body())
    }

    /// Whether nothing would tell that the client has gone altogether: its sending side is closed, and there is
    /// nothing to send it.
    fn may_be_gone_unseen(&self) -> bool {
        self.state() == State::Relaying && self.has_ended && !self.client_must_move()
    }

    /// For how many milliseconds its request has been unfinished, if it may be shed.
    pub fn sheddable_for(&self, limits: &ShedLimits, now: Millis) -> Option<Millis> {
        let ms = now.saturating_sub(self.since);
        let is_unfinished = match self.state() {
            State::Serving | State::Held | State::Closed => false,
            State::Idle if self.transport.is_handshaking() && self.moved > 0 => {
                ms > limits.unfinished_ms
            }
            State::Idle if self.was_held => ms > limits.after_held_ms,
            // Between two requests: its next one finds another connection.
            State::Idle if self.life.had_requests() => true,
            State::Idle => ms > limits.silent_ms,
            State::ReadingBody if self.starved.is_some() || self.waits_for_sink() => false,
            State::Streaming if !self.has_unsent() => false,
            State::Forwarding | State::Relaying if !self.client_must_move() => false,
            State::ReadingHead
            | State::ReadingBody
            | State::Writing
            | State::Streaming
            | State::Forwarding
            | State::Relaying
            | State::Lingering => ms > limits.unfinished_ms,
        };
        // An idle one that has just sent a request is not shed: the worker has not read it yet.
        (is_unfinished && !(self.state() == State::Idle && self.transport.has_unread()))
            .then_some(ms)
    }
}
