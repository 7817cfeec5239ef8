//! Where a request is answered: now, later, or by a stream.

use super::answer::Answer;
use super::mailbox::Mail;
use super::memory_budget::Reservation;
use super::output::FilePart;
#[cfg(feature = "tiny_http")]
use super::tiny::{StreamSignal, TinyReply};
use super::{ConnectionId, Edge};
use log::debug;
use std::sync::Arc;
use std::time::Duration;

/// Answers one request. Dropping it without an answer closes the connection.
pub struct Responder {
    /// `None` once it is answered.
    path: Option<ReplyPath>,
}

/// Which engine the request came by.
pub(super) enum ReplyPath {
    /// The edge.
    Edge(EdgeReply),
    /// The plain engine.
    #[cfg(feature = "tiny_http")]
    Tiny(Box<TinyReply>),
}

/// A request that came by the edge.
#[derive(Clone)]
pub(super) struct EdgeReply {
    edge: Arc<Edge>,
    connection: ConnectionId,
    number: u32,
}

/// Gives an answer part by part. Asked by the connection's worker, so it must not wait.
pub trait Source: Send {
    /// The next part.
    fn next(&mut self) -> Part;
}

/// What a [`Source`] gives.
#[derive(Debug)]
pub enum Part {
    /// Something to be sent.
    Bytes(Vec<u8>),
    /// A part of a file, in an answer of known length.
    File(FilePart),
    /// Nothing now: ask again when woken, or after this time.
    Wait(Duration),
    /// That was all.
    End,
}

/// How an answer begins whose body comes from a [`Source`].
pub enum StreamHead {
    /// With this type, of unknown length: the last answer of its connection.
    Endless(&'static str),
    /// With this head, and so many bytes. A source that ends before them breaks its connection off.
    Sized(Answer, u64),
}

/// Makes the connection ask its stream for the next part.
pub struct Waker(Wakes);

enum Wakes {
    Edge(EdgeReply),
    #[cfg(feature = "tiny_http")]
    Tiny(Arc<StreamSignal>),
}

impl Waker {
    /// Something may be new.
    pub fn wake(&self) {
        match &self.0 {
            Wakes::Edge(path) => path.put(Mail::Wake(path.connection, path.number)),
            #[cfg(feature = "tiny_http")]
            Wakes::Tiny(signal) => signal.notify(),
        }
    }
}

impl EdgeReply {
    fn put(&self, mail: Mail) {
        self.edge.mailbox(self.connection).put(mail);
    }

    fn stream(self, head: StreamHead, source: Box<dyn Source>) {
        self.put(Mail::Stream(self.connection, self.number, head, source));
    }

    fn send(self, answer: Answer, reservation: Option<Reservation>) {
        let mail = Mail::Answer(self.connection, self.number, answer, reservation);
        self.edge.mailbox(self.connection).put(mail);
    }
}

impl Responder {
    /// For request number `number` of a connection of the edge.
    pub(super) fn new(edge: Arc<Edge>, connection: ConnectionId, number: u32) -> Self {
        Responder::over(ReplyPath::Edge(EdgeReply {
            edge,
            connection,
            number,
        }))
    }

    pub(super) fn over(path: ReplyPath) -> Self {
        Responder { path: Some(path) }
    }

    /// The connection that the request came by.
    pub fn connection(&self) -> ConnectionId {
        match &self.path {
            Some(ReplyPath::Edge(path)) => path.connection,
            #[cfg(feature = "tiny_http")]
            Some(ReplyPath::Tiny(path)) => path.id(),
            // Only while it is being consumed.
            None => ConnectionId(u64::MAX),
        }
    }

    /// Answers. With the edge this never waits: a large answer finds its memory on a thread of the pool.
    pub fn answer(mut self, answer: Answer) {
        match self.path.take() {
            Some(ReplyPath::Edge(path)) if answer.counted_bytes().is_none() => {
                path.send(answer, None)
            }
            Some(path) => Responder::over(path).answer_later(move || answer),
            None => {}
        }
    }

    /// Has an answer made that may be large: few are made at once, and each waits for its memory.
    pub fn answer_later(mut self, make: impl FnOnce() -> Answer + Send + 'static) {
        match self.path.take() {
            Some(ReplyPath::Edge(path)) => {
                let edge = path.edge.clone();
                let responder = Responder::over(ReplyPath::Edge(path));
                edge.large_answers
                    .give(Box::new(move || responder.make_and_send(make)));
            }
            #[cfg(feature = "tiny_http")]
            Some(ReplyPath::Tiny(path)) => path.answer(make()),
            None => {}
        }
    }

    /// Makes an answer when its turn has come, and sends it when there is memory for it. Waits for both. If making it
    /// panics, dropping the responder closes the connection.
    fn make_and_send(mut self, make: impl FnOnce() -> Answer) {
        let Some(ReplyPath::Edge(EdgeReply {
            edge, connection, ..
        })) = &self.path
        else {
            return;
        };
        let (edge, connection) = (edge.clone(), *connection);
        let answer = make();
        let mut reservation = None;
        if let Some(bytes) = answer.counted_bytes() {
            let cut = |full| edge.cut(full);
            reservation = edge.budget.reserve_waiting(connection, bytes, cut);
            if reservation.is_none() {
                return debug!("an answer found no memory and was given up");
            }
        }
        if let Some(ReplyPath::Edge(path)) = self.path.take() {
            path.send(answer, reservation);
        }
    }

    /// Answers with a stream, the last answer of its connection.
    pub fn stream(mut self, content_type: &'static str, source: Box<dyn Source>) {
        match self.path.take() {
            Some(ReplyPath::Edge(path)) => path.stream(StreamHead::Endless(content_type), source),
            #[cfg(feature = "tiny_http")]
            Some(ReplyPath::Tiny(path)) => path.stream(content_type, source),
            None => {}
        }
    }

    /// Answers with a body of so many bytes that a source gives; the body of `answer` does not count.
    pub fn stream_sized(mut self, answer: Answer, bytes: u64, source: Box<dyn Source>) {
        match self.path.take() {
            Some(ReplyPath::Edge(path)) => path.stream(StreamHead::Sized(answer, bytes), source),
            #[cfg(feature = "tiny_http")]
            Some(ReplyPath::Tiny(path)) => path.stream_sized(answer, bytes, source),
            None => {}
        }
    }

    /// Wakes the stream that will answer this request.
    pub fn waker(&self) -> Option<Waker> {
        match &self.path {
            Some(ReplyPath::Edge(path)) => Some(Waker(Wakes::Edge(path.clone()))),
            #[cfg(feature = "tiny_http")]
            Some(ReplyPath::Tiny(path)) => Some(Waker(Wakes::Tiny(path.signal()))),
            None => None,
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(ReplyPath::Edge(path)) = self.path.take() {
            path.put(Mail::Dropped(path.connection, path.number));
        }
    }
}
