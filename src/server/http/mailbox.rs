//! Messages for a worker: accepted connections, answers, wake-ups.
//!
//! Only its worker touches a connection; other threads put messages here, which wakes a sleeping worker. The worker
//! falls asleep under the mailbox's lock, and only when the mailbox is empty, so no message is missed.

use super::ConnectionId;
use super::answer::Answer;
use super::memory_budget::Reservation;
use super::request::Refused;
use super::responder::{Source, StreamHead};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Something for a worker. What is about a request carries its number in its connection.
pub enum Mail {
    /// A connection that was accepted.
    Accepted(TcpStream, IpAddr),
    /// The service keeps a request.
    Hold(ConnectionId, u32),
    /// The answer to a request, and its part of the memory budget.
    Answer(ConnectionId, u32, Answer, Option<Reservation>),
    /// The answer to a request comes about bit by bit.
    Stream(ConnectionId, u32, StreamHead, Box<dyn Source>),
    /// A piece of a body was taken, or not; `None` when that failed by a bug.
    Taken(ConnectionId, u32, Result<(), Option<Refused>>),
    /// A stream may have something new.
    Wake(ConnectionId, u32),
    /// A request was dropped without an answer.
    Dropped(ConnectionId, u32),
    /// Close a connection if it still has the reservation with this number: others need the memory.
    Cut(ConnectionId, u64),
    /// End the requests that were forwarded to other servers than this one.
    CutForwarded(Option<u64>),
    /// Close some connections, as no new one can be accepted; whether the system has refused it.
    Shed(bool),
}

/// The mail of one worker.
pub struct Mailbox {
    inbox: Mutex<Inbox>,
    /// The worker was asked to shed and has not done so.
    is_shed_wanted: AtomicBool,
    /// Tells without the lock whether there is something; the lock has the last word.
    has_mail: AtomicBool,
    /// Becomes readable when a sleeping worker has mail (eventfd).
    wakeup: OwnedFd,
}

#[derive(Default)]
struct Inbox {
    mail: Vec<Mail>,
    is_asleep: bool,
}

impl Mailbox {
    /// Without mail.
    pub fn new() -> io::Result<Self> {
        Ok(Mailbox {
            inbox: Mutex::default(),
            has_mail: AtomicBool::new(false),
            is_shed_wanted: AtomicBool::new(false),
            wakeup: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// What to poll to be woken.
    pub fn wakeup(&self) -> &OwnedFd {
        &self.wakeup
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves something for the worker.
    pub fn put(&self, mail: Mail) {
        let mut inbox = self.inbox();
        inbox.mail.push(mail);
        self.has_mail.store(true, Ordering::Relaxed);
        let wake = std::mem::take(&mut inbox.is_asleep);
        drop(inbox);
        if wake {
            // It cannot be full: it is read after each wake-up.
            let _ = rustix::io::write(&self.wakeup, &1u64.to_ne_bytes());
        }
    }

    /// Asks the worker to shed, unless it was asked already.
    pub fn ask_to_shed(&self, by_system: bool) {
        if !self.is_shed_wanted.swap(true, Ordering::Relaxed) {
            self.put(Mail::Shed(by_system));
        }
    }

    /// The worker sheds now.
    pub fn sheds(&self) {
        self.is_shed_wanted.store(false, Ordering::Relaxed);
    }

    /// Takes out what there is.
    pub fn take(&self) -> Vec<Mail> {
        if !self.has_mail.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut inbox = self.inbox();
        self.has_mail.store(false, Ordering::Relaxed);
        std::mem::take(&mut inbox.mail)
    }

    /// Lets the worker sleep. False when there is mail.
    pub fn fall_asleep(&self) -> bool {
        let mut inbox = self.inbox();
        inbox.is_asleep = inbox.mail.is_empty();
        inbox.is_asleep
    }

    /// The worker is awake: no need to wake it.
    pub fn wake_up(&self, was_rung: bool) {
        self.inbox().is_asleep = false;
        if was_rung {
            let _ = rustix::io::read(&self.wakeup, &mut [0; 8]);
        }
    }
}
