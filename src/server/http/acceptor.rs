//! The accept loop: new connections, each to a worker, as long as there is room.
//!
//! At the limit (connections, descriptors, memory) and with a client waiting, connections with unfinished requests are
//! closed, the longest unfinished first, until a new one can be accepted. Errors of `accept` are logged; the loop goes
//! on after a pause.

use super::Edge;
use super::mailbox::Mail;
use log::warn;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with, sockopt};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Connections that wait to be accepted: a fleet that comes back after a restart must fit.
const BACKLOG: i32 = 4_096;
/// What was sent and is not acknowledged in this time means that the peer is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(75);
/// TCP keepalive: the idle time before the first probe, the time between probes, and their number. Without it a peer
/// that vanished while its request is held would never be noticed.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;
/// The pause after shedding, until the workers have closed the connections.
const SHED_PAUSE: Duration = Duration::from_millis(2);
/// The pause after an error of `accept`: descriptors or memory may be free by then.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// Do not shed while at least FLOW connections close by themselves within FLOW_PERIOD: many short requests are being
/// served, and there is room again in a moment.
const FLOW_PERIOD: Duration = Duration::from_millis(50);
const FLOW: u64 = 50;
/// At most one warning about the same trouble in this time.
const WARNING_PERIOD: Duration = Duration::from_secs(10);

/// Binds the address and sets the options that accepted sockets inherit.
pub fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), String> {
    let cannot =
        |error: &dyn std::fmt::Display| format!("--listen: cannot listen on {address}: {error}");
    let listener = TcpListener::bind(address).map_err(|e| cannot(&e))?;
    let local = listener.local_addr().map_err(|e| cannot(&e))?;
    let options = || -> rustix::io::Result<()> {
        rustix::net::listen(&listener, BACKLOG)?;
        sockopt::set_tcp_nodelay(&listener, true)?;
        sockopt::set_tcp_user_timeout(&listener, UNACKNOWLEDGED.as_millis() as u32)?;
        sockopt::set_socket_keepalive(&listener, true)?;
        sockopt::set_tcp_keepidle(&listener, KEEPALIVE_AFTER)?;
        sockopt::set_tcp_keepintvl(&listener, KEEPALIVE_EVERY)?;
        sockopt::set_tcp_keepcnt(&listener, KEEPALIVE_PROBES)
    };
    options().map_err(|e| cannot(&e))?;
    // A connection that is gone before it is accepted must not block the loop.
    listener.set_nonblocking(true).map_err(|e| cannot(&e))?;
    Ok((listener, local))
}

/// Accepts connections for ever.
pub fn accept_forever(listener: &TcpListener, edge: &Arc<Edge>) -> ! {
    let mut acceptor = Acceptor {
        edge,
        next_worker: 0,
        flow: (Instant::now(), 0, false),
        warned: None,
    };
    loop {
        acceptor.accept_next(listener);
    }
}

/// Waits until a client wants to connect, or a signal interrupts.
fn wait_for_connection(listener: &TcpListener) {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let _ = poll(&mut fds, None);
}

struct Acceptor<'a> {
    edge: &'a Arc<Edge>,
    next_worker: usize,
    /// When the closed connections were last counted, their number, and whether enough had closed by themselves.
    flow: (Instant, u64, bool),
    warned: Option<Instant>,
}

impl Acceptor<'_> {
    fn accept_next(&mut self, listener: &TcpListener) {
        if !self.edge.has_room() {
            // Shed only when a client is waiting to connect.
            wait_for_connection(listener);
            self.shed(
                false,
                "as many connections as allowed (--max-connections, or the limit on open files or memory): the slowest are cut",
            );
            return thread::sleep(SHED_PAUSE);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match acceptfrom_with(listener, flags) {
            Ok((socket, address)) => {
                let address = address.and_then(|address| SocketAddr::try_from(address).ok());
                // One that was reset meanwhile has no address any more.
                let peer = address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |a| a.ip());
                self.begin(socket.into(), peer);
            }
            Err(Errno::AGAIN) => {
                wait_for_connection(listener);
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                let why = format!("cannot accept connections: {error}: the slowest are cut");
                self.shed(true, &why);
                thread::sleep(ERROR_PAUSE);
            }
            Err(error) => {
                self.warn(&format!("cannot accept connections: {error}"));
                thread::sleep(ERROR_PAUSE);
            }
        }
    }

    fn begin(&mut self, socket: TcpStream, peer: IpAddr) {
        if let Err(has) = self.edge.note_opened(peer) {
            return self.warn(&format!(
                "{has} connections from {peer}, as many as allowed (--max-connections-per-address)"
            ));
        }
        self.next_worker = (self.next_worker + 1) % self.edge.mailboxes.len();
        self.edge.mailboxes[self.next_worker].put(Mail::Accepted(socket, peer));
    }

    fn shed(&mut self, by_system: bool, why: &str) {
        if !by_system && self.flows() {
            return;
        }
        self.warn(why);
        for mailbox in &self.edge.mailboxes {
            mailbox.ask_to_shed(by_system);
        }
    }

    /// Whether enough connections close by themselves.
    fn flows(&mut self) -> bool {
        let (looked, before, is_enough) = self.flow;
        if looked.elapsed() < FLOW_PERIOD {
            return is_enough;
        }
        let gone = self.edge.closed_by_themselves();
        self.flow = (Instant::now(), gone, gone >= before + FLOW);
        self.flow.2
    }

    /// Logs a warning, at most one in a period.
    fn warn(&mut self, text: &str) {
        if self.warned.is_none_or(|at| at.elapsed() > WARNING_PERIOD) {
            warn!("{text}");
            self.warned = Some(Instant::now());
        }
    }
}
