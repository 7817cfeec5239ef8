//! The way back to the one who asked: an answer now, an answer later, or a stream.

use super::answer::Answer;
use super::mailbox::Mail;
use super::memory_budget::Reservation;
use super::{ConnectionId, Edge};
use log::debug;
use std::sync::Arc;
use std::time::Duration;

/// The way back to the one who asked. Whoever drops it without an answer closes the connection.
pub struct Responder {
    edge: Arc<Edge>,
    connection: ConnectionId,
    number: u32,
    is_answered: bool,
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
#[derive(Clone)]
pub struct Waker {
    edge: Arc<Edge>,
    connection: ConnectionId,
    number: u32,
}

impl Waker {
    /// Something may be new.
    pub fn wake(&self) {
        let mail = Mail::Wake(self.connection, self.number);
        self.edge.mailbox(self.connection).put(mail);
    }

    /// The connection of the stream.
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }
}

impl Responder {
    /// For request number `number` of a connection.
    pub(super) fn new(edge: Arc<Edge>, connection: ConnectionId, number: u32) -> Self {
        Responder {
            edge,
            connection,
            number,
            is_answered: false,
        }
    }

    /// The connection that the request came by.
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// Answers. Never waits: a large answer finds its memory on a thread of the pool.
    pub fn answer(self, answer: Answer) {
        match answer.counted_bytes() {
            Some(_) => self.answer_later(move || answer),
            None => self.send(answer, None),
        }
    }

    /// Has an answer made that may be large: few are made at once, and each finds its memory before the next one is
    /// made.
    pub fn answer_later(self, make: impl FnOnce() -> Answer + Send + 'static) {
        let edge = self.edge.clone();
        edge.pool.give(Box::new(move || {
            let edge = self.edge.clone();
            let _maker = edge.budget.make();
            let answer = make();
            let reservation = match answer.counted_bytes() {
                None => None,
                Some(bytes) => {
                    let cut = |connection| edge.cut(connection);
                    let reserved = edge.budget.reserve_patiently(self.connection, bytes, cut);
                    if reserved.is_none() {
                        return debug!("an answer found no room and was given up");
                    }
                    reserved
                }
            };
            self.send(answer, reservation);
        }));
    }

    /// Answers with a stream, the last answer of its connection.
    pub fn stream(mut self, content_type: &'static str, source: Box<dyn Source>) {
        self.is_answered = true;
        self.put(Mail::Stream(
            self.connection,
            self.number,
            content_type,
            source,
        ));
    }

    /// What wakes the stream that this request will be answered with.
    pub fn waker(&self) -> Waker {
        Waker {
            edge: self.edge.clone(),
            connection: self.connection,
            number: self.number,
        }
    }

    fn send(mut self, answer: Answer, reservation: Option<Reservation>) {
        self.is_answered = true;
        self.put(Mail::Answer(
            self.connection,
            self.number,
            answer,
            reservation,
        ));
    }

    fn put(&self, mail: Mail) {
        self.edge.mailbox(self.connection).put(mail);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.is_answered {
            self.put(Mail::Dropped(self.connection, self.number));
        }
    }
}
