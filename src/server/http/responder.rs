//! The way back to the one who asked: an answer now, an answer later, or a stream.

use super::answer::Answer;
use super::mailbox::Mail;
use super::memory_budget::Reservation;
#[cfg(feature = "tiny_http")]
use super::tiny::{News, TinyWay};
use super::{ConnectionId, Edge};
use log::debug;
use std::sync::Arc;
use std::time::Duration;

/// The way back to the one who asked. Whoever drops it without an answer closes the connection.
pub struct Responder {
    /// `None` once it is answered.
    way: Option<Way>,
}

/// Which engine the request came by.
pub(super) enum Way {
    /// The edge.
    Edge(EdgeWay),
    /// The plain engine.
    #[cfg(feature = "tiny_http")]
    Tiny(Box<TinyWay>),
}

/// A request that came by the edge.
#[derive(Clone)]
pub(super) struct EdgeWay {
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
    /// Nothing now: ask again when woken, or after this time.
    Wait(Duration),
    /// That was all.
    End,
}

/// Has a stream asked for what is new.
pub struct Waker(Wakes);

enum Wakes {
    Edge(EdgeWay),
    #[cfg(feature = "tiny_http")]
    Tiny(Arc<News>),
}

impl Waker {
    /// Something may be new.
    pub fn wake(&self) {
        match &self.0 {
            Wakes::Edge(way) => way.put(Mail::Wake(way.connection, way.number)),
            #[cfg(feature = "tiny_http")]
            Wakes::Tiny(news) => news.tell(),
        }
    }
}

impl EdgeWay {
    fn put(&self, mail: Mail) {
        self.edge.mailbox(self.connection).put(mail);
    }

    fn send(self, answer: Answer, reservation: Option<Reservation>) {
        let mail = Mail::Answer(self.connection, self.number, answer, reservation);
        self.edge.mailbox(self.connection).put(mail);
    }
}

impl Responder {
    /// For request number `number` of a connection of the edge.
    pub(super) fn new(edge: Arc<Edge>, connection: ConnectionId, number: u32) -> Self {
        Responder::over(Way::Edge(EdgeWay {
            edge,
            connection,
            number,
        }))
    }

    pub(super) fn over(way: Way) -> Self {
        Responder { way: Some(way) }
    }

    /// The connection that the request came by.
    pub fn connection(&self) -> ConnectionId {
        match &self.way {
            Some(Way::Edge(way)) => way.connection,
            #[cfg(feature = "tiny_http")]
            Some(Way::Tiny(way)) => way.id(),
            // Only while it is being consumed.
            None => ConnectionId(u64::MAX),
        }
    }

    /// Answers. With the edge this never waits: a large answer finds its memory on a thread of the pool.
    pub fn answer(mut self, answer: Answer) {
        match self.way.take() {
            Some(Way::Edge(way)) if answer.counted_bytes().is_none() => way.send(answer, None),
            Some(way) => Responder::over(way).answer_later(move || answer),
            None => {}
        }
    }

    /// Has an answer made that may be large: few are made at once, and each finds its memory before the next one is
    /// made.
    pub fn answer_later(mut self, make: impl FnOnce() -> Answer + Send + 'static) {
        match self.way.take() {
            Some(Way::Edge(way)) => {
                let edge = way.edge.clone();
                let responder = Responder::over(Way::Edge(way));
                edge.pool
                    .give(Box::new(move || responder.make_and_send(make)));
            }
            #[cfg(feature = "tiny_http")]
            Some(Way::Tiny(way)) => way.answer(make()),
            None => {}
        }
    }

    /// Makes an answer when its turn has come, and sends it when there is memory for it. Waits for both. If making it
    /// panics, dropping the responder closes the connection.
    fn make_and_send(mut self, make: impl FnOnce() -> Answer) {
        let Some(Way::Edge(EdgeWay {
            edge, connection, ..
        })) = &self.way
        else {
            return;
        };
        let (edge, connection) = (edge.clone(), *connection);
        let _maker = edge.budget.make();
        let answer = make();
        let mut reservation = None;
        if let Some(bytes) = answer.counted_bytes() {
            let cut = |slowest| edge.cut(slowest);
            reservation = edge.budget.reserve_patiently(connection, bytes, cut);
            if reservation.is_none() {
                return debug!("an answer found no memory and was given up");
            }
        }
        if let Some(Way::Edge(way)) = self.way.take() {
            way.send(answer, reservation);
        }
    }

    /// Answers with a stream, the last answer of its connection.
    pub fn stream(mut self, content_type: &'static str, source: Box<dyn Source>) {
        match self.way.take() {
            Some(Way::Edge(way)) => way.put(Mail::Stream(
                way.connection,
                way.number,
                content_type,
                source,
            )),
            #[cfg(feature = "tiny_http")]
            Some(Way::Tiny(way)) => way.stream(content_type, source),
            None => {}
        }
    }

    /// What wakes the stream that this request will be answered with.
    pub fn waker(&self) -> Option<Waker> {
        match &self.way {
            Some(Way::Edge(way)) => Some(Waker(Wakes::Edge(way.clone()))),
            #[cfg(feature = "tiny_http")]
            Some(Way::Tiny(way)) => Some(Waker(Wakes::Tiny(way.news()))),
            None => None,
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(Way::Edge(way)) = self.way.take() {
            way.put(Mail::Dropped(way.connection, way.number));
        }
    }
}
