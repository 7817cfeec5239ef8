//! Those who hang up while a request of theirs is held. The kernel says who: looking at each of
//! thousands again and again would be most of what an idle server does.

use super::peer::Peer;
use log::debug;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;

/// The most that are told of at once.
const AT_ONCE: usize = 256;

/// Sockets on which something happened.
pub struct Hangups(OwnedFd);

impl Hangups {
    /// Nobody is watched yet.
    pub fn new() -> Result<Self, String> {
        let epoll = epoll::create(CreateFlags::CLOEXEC);
        epoll.map(Hangups).map_err(|e| format!("epoll: {e}"))
    }

    /// Watches one for as long as it is there.
    pub fn watch(&self, peer: &Peer) {
        // tiny_http has ended the direction from which it read, so the kernel takes the socket for
        // hung up already. Only a change is told (`ET`); at the other side's end there is one.
        let flags = EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(peer.cookie());
        let Some(socket) = peer.socket() else {
            return;
        };
        // As long as it is there by any number.
        if let Err(error) = epoll::add(&self.0, &socket, data, flags) {
            // Then that it hangs up is noticed when its time is up.
            debug!("a held request is not watched: {error}");
        }
    }

    /// The cookies of those who may have hung up since the last call; more may have happened.
    pub fn suspected(&self) -> Vec<u64> {
        let mut events = Vec::with_capacity(AT_ONCE);
        let mut cookies = Vec::new();
        let now = Timespec::default();
        while let Ok(n) = epoll::wait(&self.0, spare_capacity(&mut events), Some(&now)) {
            cookies.extend(events.drain(..).map(|event| event.data.u64()));
            if n < AT_ONCE {
                break;
            }
        }
        cookies
    }
}
