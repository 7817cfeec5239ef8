//! Which sockets can be read from or written to (epoll).
//!
//! Level-triggered, one poller for each worker and its connections: while a socket has something that the worker is
//! interested in, every `epoll_wait` reports it again. So no wake-up can be lost, whatever the worker did with the one
//! before. [`Interest`] says what it does not want to be told.

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// Events taken by one `epoll_wait`. More would delay the sockets at the end of a long list.
const AT_ONCE: usize = 64;

/// What a worker wants to hear of a socket. That it is broken is always said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// It can be read from.
    pub read: bool,
    /// It can be written to.
    pub write: bool,
}

/// What there is about a socket.
#[derive(Debug, Clone, Copy)]
pub struct Readiness {
    /// The number under which it was added.
    pub id: u64,
    /// It is broken: reset, or closed in both directions.
    pub is_broken: bool,
}

/// Sockets on which something may happen.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Interest {
    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

impl Poller {
    /// Without any socket.
    pub fn new() -> io::Result<Self> {
        Ok(Poller {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    /// Adds a socket; it leaves when it is closed.
    pub fn add(&self, socket: &impl AsFd, id: u64, interest: Interest) -> io::Result<()> {
        let data = EventData::new_u64(id);
        Ok(epoll::add(&self.epoll, socket, data, interest.flags())?)
    }

    /// Changes what is wanted of a socket.
    pub fn change(&self, socket: &impl AsFd, id: u64, interest: Interest) -> io::Result<()> {
        let data = EventData::new_u64(id);
        Ok(epoll::modify(&self.epoll, socket, data, interest.flags())?)
    }

    /// Takes a socket out that stays open.
    pub fn remove(&self, socket: &impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits until something happens, for so long at most, and adds what happened to a few sockets to `ready`.
    pub fn wait(&self, patience: Option<Duration>, ready: &mut Vec<Readiness>) {
        let mut room = [const { MaybeUninit::uninit() }; AT_ONCE];
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        // Interrupted: then nothing has happened.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut room, patience.as_ref()) else {
            return;
        };
        let broken = EventFlags::HUP | EventFlags::ERR;
        ready.extend(events.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            Readiness {
                id: data.u64(),
                is_broken: flags.intersects(broken),
            }
        }));
    }
}
