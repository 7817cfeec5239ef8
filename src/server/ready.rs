//! Which connections have something to be read, or have hung up: the kernel says so. Looking at each
//! of thousands again and again would be most of what an idle server does, and a thread that waits for
//! each would be most of what a busy one does.
//!
//! Only a change is told (`ET`), once: whoever is told looks at what there is, and what comes while
//! somebody is at it is noted (see `connection`), so nothing is told twice and nothing is missed.

use super::peer::Peer;
use log::debug;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// The most that one thread is told at once: what it has been told of waits for it.
const AT_ONCE: usize = 8;

/// Sockets on which something may happen.
#[derive(Debug)]
pub struct Ready(OwnedFd);

/// What somebody is told of, taken from the front.
pub type Events = Vec<epoll::Event>;

impl Ready {
    /// Nobody is watched yet.
    pub fn new() -> Result<Self, String> {
        let epoll = epoll::create(CreateFlags::CLOEXEC);
        epoll.map(Ready).map_err(|e| format!("epoll: {e}"))
    }

    /// Watches one for as long as it is there. False when that cannot be done.
    pub fn watch(&self, peer: &Peer) -> bool {
        self.control(peer, EventFlags::IN | EventFlags::RDHUP | EventFlags::ET)
    }

    /// The same, but only whether it hangs up: what comes encrypted says nothing before it is read.
    pub fn watch_hangup(&self, peer: &Peer) -> bool {
        self.control(peer, EventFlags::RDHUP | EventFlags::ET)
    }

    fn control(&self, peer: &Peer, flags: EventFlags) -> bool {
        let data = EventData::new_u64(peer.cookie());
        let added = peer.with(|socket| epoll::add(&self.0, socket, data, flags));
        if let Some(Err(error)) = added {
            debug!("a connection is not watched: {error}");
        }
        matches!(added, Some(Ok(())))
    }

    /// Tells of one again if there is something still.
    pub fn look_again(&self, peer: &Peer) {
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(peer.cookie());
        match peer.with(|socket| epoll::modify(&self.0, socket, data, flags)) {
            // It is known by another number now.
            Some(Err(Errno::NOENT)) => drop(self.watch(peer)),
            Some(Err(error)) => debug!("a connection is not watched any more: {error}"),
            Some(Ok(())) | None => {}
        }
    }

    /// Waits until something happens, or for so long; gives the cookies of a few of those to whom it did,
    /// and whether they hung up. Each is told to one of those who wait.
    pub fn wait(
        &self,
        events: &mut Events,
        patience: Option<&Timespec>,
    ) -> impl Iterator<Item = (u64, bool)> {
        events.clear();
        events.reserve(AT_ONCE);
        // Interrupted: then nothing has happened.
        let _ = epoll::wait(&self.0, spare_capacity(events), patience);
        let hung_up = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        { events.drain(..) }.map(move |event| {
            let (flags, data) = (event.flags, event.data);
            (data.u64(), flags.intersects(hung_up))
        })
    }
}
