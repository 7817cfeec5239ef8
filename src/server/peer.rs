//! The sockets of accepted connections, looked at and cut from outside.
//!
//! tiny_http keeps the sockets it accepts to itself. To bound what a peer may do, and to know when it
//! has sent something, we need to find them: right after an accept the new socket is the one accepted
//! socket of ours that is not yet known. It is told from all others by the kernel's cookie, which is
//! never used twice.
//!
//! No descriptor of our own is taken: they are what limits how many agents can be held. tiny_http has
//! two, one to read from and one to write to. The number by which a socket was found stays its own for
//! as long as it has the connection, and whoever lets go of the connection says so here first.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionread};
use rustix::net::{AddressFamily, Shutdown, shutdown, sockopt};
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

/// Whoever accepts wants to know beforehand which number the socket will have, so nobody may close one
/// of another connection just then. If something else does, it has to be looked for.
static CLOSING: RwLock<()> = RwLock::new(());

/// Does what closes a descriptor of a connection.
pub fn closing<R>(close: impl FnOnce() -> R) -> R {
    let _guard = CLOSING.read().unwrap_or_else(PoisonError::into_inner);
    close()
}

/// Does what takes the lowest number that is free.
pub fn while_none_closes<R>(accept: impl FnOnce() -> R) -> R {
    let _guard = CLOSING.write().unwrap_or_else(PoisonError::into_inner);
    accept()
}

/// An accepted socket.
#[derive(Debug)]
pub struct Peer {
    /// The number by which it was found; `None` once the connection is to be dropped.
    number: Mutex<Option<RawFd>>,
    found_by: RawFd,
    cookie: u64,
    address: Option<IpAddr>,
}

/// Descriptors of a connection, at most: tiny_http's two.
pub const NUMBERS_EACH: usize = 2;
/// Descriptors for other things than connections, at most.
const OTHER_NUMBERS: usize = 256;

/// What the kernel counts for a socket.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Bytes received and acknowledged, in all.
    pub received: u64,
    /// The other side has closed its end.
    pub closed_by_peer: bool,
}

impl Peer {
    /// The cookie: unique for the time the machine is up.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The address of the other side; `None` when it was gone before it was accepted.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The number by which it was found.
    pub fn found_by(&self) -> RawFd {
        self.found_by
    }

    /// Does something quick with the socket; `None` when it has been let go of.
    pub fn with<R>(&self, quick: impl FnOnce(BorrowedFd<'_>) -> R) -> Option<R> {
        let number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        // It is closed by nobody but `close`, which waits for this lock.
        (*number).map(|number| borrowed(number, quick))
    }

    /// Does what closes the last descriptor: from then on the number may be anybody's. What tiny_http has
    /// yet to send is sent if the socket takes it; nobody waits for that.
    pub fn close(&self, close: impl FnOnce()) {
        let mut number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = number.take() {
            // Whoever closes still has it.
            let _ = borrowed(open, |socket| rustix::io::ioctl_fionbio(socket, true));
        }
        drop(number);
        closing(close);
    }

    /// Does something by which tiny_http closes one of its two descriptors, perhaps the one whose number
    /// is known: then it is looked for by the other one, below the most there may be.
    pub fn outlive(&self, close: impl FnOnce(), count: usize) {
        let mut number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        closing(close);
        if number.is_none() {
            // It is being closed altogether.
            return;
        }
        let is_it = |number: &RawFd| accepted(*number).is_some_and(|(c, _)| c == self.cookie);
        *number = { *number }
            .filter(is_it)
            .or_else(|| (0..below(count)).find(is_it));
    }

    /// A descriptor of one's own, for what is not quick. `None` also when there is none left.
    pub fn duplicate(&self) -> Option<OwnedFd> {
        self.with(|socket| fcntl_dupfd_cloexec(socket, 0).ok())
            .flatten()
    }

    /// Ends both directions; whoever reads or writes comes back at once.
    pub fn cut(&self) {
        // It may be over already, which is what is wanted.
        self.with(|socket| shutdown(socket, Shutdown::Both));
    }

    /// As [`Peer::cut`], and what was not sent by then is thrown away as soon as the socket is closed.
    pub fn reset(&self) {
        self.with(|socket| {
            let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
            let _ = shutdown(socket, Shutdown::Both);
        });
    }

    /// What the kernel counts, if the socket is still there.
    pub fn counts(&self) -> Option<Counts> {
        self.with(tcp_info).flatten()
    }

    /// Whether its buffer has room for some more now.
    pub fn takes_more(&self) -> bool {
        let takes_more = self.with(|socket| {
            let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
            poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        });
        takes_more.unwrap_or(false)
    }

    /// Whether something has come that nobody has read.
    pub fn has_unread(&self) -> bool {
        let unread = self.with(|socket| ioctl_fionread(socket));
        matches!(unread, Some(Ok(1..)))
    }

    /// Whether the other side has closed its end, or the socket is gone.
    pub fn has_closed(&self) -> bool {
        self.counts().is_none_or(|counts| counts.closed_by_peer)
    }
}

/// Finds the socket that was accepted last, not by its cookie one of the `count` that are known.
/// `guess` is the number it most likely has; else it is looked for, first where no known one `is_taken`.
pub fn find_accepted(
    guess: RawFd,
    count: usize,
    is_taken: impl Fn(RawFd) -> bool,
    knows: impl Fn(u64) -> bool,
) -> Option<Peer> {
    let below = below(count);
    let new = |number: RawFd| {
        let (cookie, address) = accepted(number)?;
        (!knows(cookie)).then(|| Peer {
            number: Mutex::new(Some(number)),
            found_by: number,
            cookie,
            address,
        })
    };
    new(guess)
        .or_else(|| (0..below).filter(|n| !is_taken(*n)).find_map(new))
        .or_else(|| (0..below).find_map(new))
}

/// Does something with a descriptor that tiny_http has, and does not show.
#[allow(unsafe_code, reason = "a descriptor that somebody else owns")]
fn borrowed<R>(number: RawFd, quick: impl FnOnce(BorrowedFd<'_>) -> R) -> R {
    // SAFETY: callers see to it that the descriptor is not closed meanwhile, or do nothing with it that
    // could harm the one that has its number then.
    quick(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Numbers are taken from below, so with so many connections none is above this.
fn below(count: usize) -> RawFd {
    (NUMBERS_EACH * count + OTHER_NUMBERS) as RawFd
}

/// The cookie and the other side's address of the accepted socket with this number, if that is one.
/// Nothing is done to it but look: it may be closed at any time.
fn accepted(number: RawFd) -> Option<(u64, Option<IpAddr>)> {
    if number < 0 {
        return None;
    }
    borrowed(number, |socket| {
        let cookie = sockopt::socket_cookie(socket).ok()?;
        let address = peer_address(socket);
        (address.is_some() || is_accepted(socket)).then_some((cookie, address))
    })
}

/// The address of the other side, if that is there and has one: nobody but who was accepted does.
fn peer_address(fd: BorrowedFd<'_>) -> Option<IpAddr> {
    let address = rustix::net::getpeername(fd).ok()??;
    SocketAddr::try_from(address)
        .ok()
        .map(|address| address.ip())
}

/// Whether it was accepted, if perhaps reset since: a search for each of those would be work without
/// end. Over IP, as pairs of local sockets are not, by which the signals come.
fn is_accepted(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_domain(fd)
        .is_ok_and(|family| [AddressFamily::INET, AddressFamily::INET6].contains(&family))
        && sockopt::socket_type(fd).is_ok_and(|t| t == rustix::net::SocketType::STREAM)
        && sockopt::socket_acceptconn(fd).is_ok_and(|listens| !listens)
}

/// The lowest free number: the one the next socket will have, if nobody is quicker.
pub fn lowest_free_number(any: &impl AsFd) -> RawFd {
    fcntl_dupfd_cloexec(any, 0).map_or(-1, |fd| fd.as_raw_fd())
}

/// Bytes received on a socket and acknowledged, in all.
pub fn bytes_received(socket: BorrowedFd<'_>) -> Option<u64> {
    tcp_info(socket).map(|counts| counts.received)
}

#[allow(unsafe_code, reason = "rustix has no TCP_INFO")]
fn tcp_info(fd: BorrowedFd<'_>) -> Option<Counts> {
    const CLOSE_WAIT: u8 = 8;
    const LAST_ACK: u8 = 9;
    const CLOSE: u8 = 7;
    const CLOSING: u8 = 11;
    // Linux 4.1 and later: struct tcp_info has tcpi_bytes_received (u64) at this offset.
    const BYTES_RECEIVED_AT: usize = 128;
    const ENOUGH: usize = BYTES_RECEIVED_AT + size_of::<u64>();
    let mut info = MaybeUninit::<[u8; ENOUGH]>::zeroed();
    let mut length = ENOUGH as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the array, and the
    // array was zeroed, so all of it is initialized whatever the kernel wrote.
    let (result, info) = unsafe {
        let result = libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        );
        (result, info.assume_init())
    };
    if result != 0 {
        return None;
    }
    let received = info[BYTES_RECEIVED_AT..]
        .try_into()
        .map(u64::from_ne_bytes)
        .ok()?;
    let closed_by_peer = matches!(info[0], CLOSE_WAIT | LAST_ACK | CLOSE | CLOSING);
    Some(Counts {
        received,
        closed_by_peer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_local_socket_is_not_taken_for_an_accepted_one() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let found = find_accepted(one.as_raw_fd(), 0, |_| false, |_| false);
        assert_ne!(
            found.map(|peer| peer.cookie),
            sockopt::socket_cookie(&one).ok()
        );
    }

    #[test]
    fn an_accepted_socket_is_found_counted_and_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let cookie = sockopt::socket_cookie(&accepted).unwrap();
        // By no matter which number, beside the sockets of other tests.
        let find = |guess| find_accepted(guess, 999, |_| false, |other| other != cookie).unwrap();
        for peer in [find(accepted.as_raw_fd()), find(-1)] {
            assert_eq!(peer.cookie, cookie);
            assert_eq!(peer.address(), Some(client.local_addr().unwrap().ip()));
        }
        let peer = find(accepted.as_raw_fd());
        client.write_all(b"12345").unwrap();
        while peer.counts().unwrap().received < 5 {}
        assert!(!peer.has_closed());
        drop(client);
        while !peer.has_closed() {}
        peer.close(|| drop(accepted));
        assert!(
            peer.counts().is_none() && peer.duplicate().is_none(),
            "a closed socket's number must not be mistaken"
        );
    }
}
