//! Requests that another server answers: what a service says of one, and how many there may be.
//!
//! The edge knows neither who that server is nor why. Whether a caller may ask it, and what the other server believes
//! of the caller, is the service's business: it adds headers, and a client's headers of the same names are not passed
//! on. Each request has a connection of its own to the other server, which ends with it; nothing is tried twice.

use super::mailbox::Mail;
use super::{Admitted, Edge};
use crate::tls::ClientTls;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What becomes of a request whose head was judged.
pub enum Decision<A> {
    /// The service serves it.
    Serve(Admitted<A>),
    /// Another server answers it.
    Forward(Forward),
}

/// A request that another server answers. Its method, its target, its body and its headers go along as they came; not
/// the headers that are about its connection only, and not those below.
pub struct Forward {
    /// The other server.
    pub target: ForwardTarget,
    /// Headers to add. None that the client sent with these names is passed on.
    pub headers: Vec<(&'static str, String)>,
    /// The names of other headers of the client that are not passed on.
    pub withheld: &'static [&'static str],
}

/// A server that answers requests in this one's place.
#[derive(Debug, Clone)]
pub struct ForwardTarget {
    /// Where it listens. A name is resolved before.
    pub address: SocketAddr,
    /// How TLS is spoken with it; `None` for plain http.
    pub tls: Option<ClientTls>,
    /// How it is called in errors: `the server that leads` → "the server that leads did not answer: …".
    pub name: &'static str,
    /// Which server it is, among those that there may be: for [`Edge::cut_forwarded`].
    pub id: u64,
}

/// One of the requests that may be forwarded at once; given back when it is dropped.
pub(super) struct ForwardPermit(Arc<Edge>);

impl Edge {
    /// How many requests are forwarded at the moment.
    pub fn forwarded(&self) -> usize {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// How many may be at once. Each may wait as long as a held one, and takes two sockets; as many as are never held
    /// stay free for others.
    pub fn most_forwarded(&self) -> usize {
        let never_held = self.limits.max_connections - self.most_held();
        let by_sockets = self.max_sockets.saturating_sub(never_held) / 2;
        { self.limits.max_forwarded }
            .min(self.most_held())
            .min(by_sockets)
    }

    /// How many have been since the start.
    pub fn forwarded_ever(&self) -> u64 {
        self.forwarded_ever.load(Ordering::Relaxed)
    }

    /// Ends the requests that were forwarded to other servers than this one: a server that is frozen, or cut off, would
    /// never answer them. No request may be forwarded to those any more.
    pub fn cut_forwarded(&self, but_to: Option<u64>) {
        for mailbox in &self.mailboxes {
            mailbox.put(Mail::CutForwarded(but_to));
        }
    }

    /// Counts another one; `None` when there are as many as may be.
    pub(super) fn begin_forward(self: &Arc<Self>) -> Option<ForwardPermit> {
        let before = self.forwarded.fetch_add(1, Ordering::Relaxed);
        let permit = ForwardPermit(self.clone());
        let has_socket = self.connections() + before < self.max_sockets;
        let has_room = before < self.most_forwarded() && has_socket;
        self.forwarded_ever
            .fetch_add(has_room.into(), Ordering::Relaxed);
        has_room.then_some(permit)
    }
}

impl Drop for ForwardPermit {
    fn drop(&mut self) {
        self.0.forwarded.fetch_sub(1, Ordering::Relaxed);
    }
}
