//! The connection to a server that answers a request in this one's place. Nothing here waits.

use super::forward::ForwardTarget;
use super::output::Output;
use super::poller::{Interest, Poller};
use super::transport::Transport;
use crate::tls::Got;
use log::debug;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Whoever acknowledges nothing for so long, or takes nothing, is gone. Longer than the edge waits for one that takes
/// nothing: it can say so.
const UNACKNOWLEDGED: Duration = Duration::from_secs(40);
/// The same while nothing is sent (TCP keepalive): the idle time before the first probe, the time between probes, and
/// their number.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 2;

/// A connection to another server.
pub struct Upstream {
    transport: Transport,
    /// What it is still to be sent.
    pub output: Output,
    /// What was read and not parsed.
    pub input: Vec<u8>,
    is_connected: bool,
    /// It takes nothing more of what it is sent; its answer may be there all the same, and reading tells.
    takes_no_more: bool,
    /// What the worker's poller was told; `None` while it is not in there.
    polled: Option<Interest>,
}

impl Upstream {
    /// Begins to connect.
    pub fn open(target: &ForwardTarget) -> io::Result<Self> {
        let family = match target.address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED.as_millis() as u32)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, KEEPALIVE_AFTER)?;
        sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_EVERY)?;
        sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
        match connect(&socket, &target.address) {
            // Interrupted: it goes on all the same.
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let transport = Transport::to_server(TcpStream::from(socket), target.tls.as_ref())?;
        Ok(Upstream {
            transport,
            output: Output::default(),
            input: Vec::new(),
            is_connected: false,
            takes_no_more: false,
            polled: None,
        })
    }

    /// Whether it is connected by now. The error says why it never will be.
    pub fn look(&mut self) -> io::Result<bool> {
        if !self.is_connected {
            match self.transport.socket.take_error()? {
                Some(error) => return Err(error),
                None => self.is_connected = self.transport.socket.peer_addr().is_ok(),
            }
        }
        Ok(self.is_connected)
    }

    /// Whether the other end has accepted the connection.
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Whether TLS is not ready yet.
    pub fn is_handshaking(&self) -> bool {
        self.transport.is_handshaking()
    }

    /// Whether it takes nothing more of what it is sent. It may have answered without wanting all of it.
    pub fn takes_no_more(&self) -> bool {
        self.takes_no_more
    }

    /// Whether something is to be sent that the socket did not take yet.
    pub fn has_unsent(&self) -> bool {
        !self.takes_no_more && (!self.output.is_empty() || self.transport.wants_write())
    }

    /// Writes what the socket takes, `most` bytes or a little more. Returns how many bytes of the output went.
    pub fn write(&mut self, most: usize) -> usize {
        if self.takes_no_more {
            return 0;
        }
        let written = match self.is_handshaking() {
            // The session would keep it, and say that it is sent.
            true => self.transport.write(&mut Output::default(), most),
            false => self.transport.write(&mut self.output, most),
        };
        written.unwrap_or_else(|error| {
            debug!("a request could not be passed on whole: {error}");
            self.takes_no_more = true;
            self.output = Output::default();
            0
        })
    }

    /// Reads what is there, some of it.
    pub fn read(&mut self) -> io::Result<Got> {
        self.transport.read(&mut self.input)
    }

    /// Whether its end, which was read, can be told from a cut.
    pub fn has_ended_cleanly(&self) -> bool {
        self.transport.has_ended_cleanly()
    }

    /// Has the poller tell under this number what is wanted: an answer, where `wants_answer`, and room for what is to
    /// be sent. A socket of which nothing is wanted is taken out, or it would be told without end that it is broken.
    pub fn poll(&mut self, poller: &Poller, id: u64, wants_answer: bool) -> io::Result<()> {
        let is_handshaking = self.is_handshaking();
        let wanted = match self.is_connected {
            false => Interest {
                read: false,
                write: true,
            },
            true => Interest {
                read: wants_answer || is_handshaking,
                write: self.has_unsent() && (!is_handshaking || self.transport.wants_write()),
            },
        };
        let wanted = Some(wanted).filter(|wanted| wanted.read || wanted.write);
        let socket = &self.transport.socket;
        match (self.polled, wanted) {
            (before, now) if before == now => {}
            (None, Some(interest)) => poller.add(socket, id, interest)?,
            (Some(_), Some(interest)) => poller.change(socket, id, interest)?,
            (_, None) => poller.remove(socket)?,
        }
        self.polled = wanted;
        Ok(())
    }

    /// Ends it; with TLS says so, if the socket takes that now.
    pub fn close(mut self) {
        self.transport.close_session();
    }
}
