//! The sockets of accepted connections, looked at and cut from outside.
//!
//! tiny_http keeps the sockets it accepts to itself. To bound what a peer may do we need to find
//! them: right after an accept the new socket is the one accepted socket of ours that is not yet
//! known. It is duplicated then, and told from all others by the kernel's cookie, which is never used
//! twice.
//!
//! While a request is held our own number is let go of, as descriptors are what limits how many can be
//! held. What has to be done to the socket then is done by the number that it was found by: that is
//! duplicated and the cookie compared, so a number that has been closed and used again cannot be
//! mistaken. tiny_http has two, one to read from, which it closes as soon as nothing more is read, and
//! one to write to. Either may be found first, so when the number does not lead to the socket any
//! more, the other one is looked for.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, Shutdown, shutdown, sockopt};
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// An accepted socket.
#[derive(Debug)]
pub struct Peer {
    own: Mutex<Option<Arc<OwnedFd>>>,
    /// The number by which it was found: one of tiny_http's.
    found_by: RawFd,
    /// All its numbers are below this one.
    below: RawFd,
    cookie: u64,
    address: Option<IpAddr>,
}

/// Descriptors of a connection, at most: tiny_http's two and our own.
const NUMBERS_EACH: usize = 3;
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

    /// The number by which it was found: while it is there, most likely no other one has that.
    pub fn found_by(&self) -> RawFd {
        self.found_by
    }

    /// Ends both directions; whoever reads or writes comes back at once.
    pub fn cut(&self) {
        if let Some(socket) = self.socket() {
            // It may be over already, which is what is wanted.
            let _ = shutdown(&socket, Shutdown::Both);
        }
    }

    /// As [`Peer::cut`], and what was not sent by then is thrown away as soon as the socket is closed.
    pub fn reset(&self) {
        if let Some(socket) = self.socket() {
            let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
            let _ = shutdown(&socket, Shutdown::Both);
        }
    }

    /// The socket; `None` when it is gone, or there is no descriptor for it.
    pub fn socket(&self) -> Option<Arc<OwnedFd>> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = &*own {
            return Some(own.clone());
        }
        drop(own);
        let it = |number: RawFd| {
            let fd = duplicate(number)?;
            (sockopt::socket_cookie(&fd).ok()? == self.cookie).then_some(Arc::new(fd))
        };
        it(self.found_by).or_else(|| (0..self.below).find_map(it))
    }

    /// Lets go of our own number of it.
    pub fn release(&self) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What the kernel counts, if the socket is still there.
    pub fn counts(&self) -> Option<Counts> {
        tcp_info(self.socket()?.as_fd())
    }

    /// Whether its buffer has room for some more now.
    pub fn takes_more(&self) -> bool {
        self.socket().is_some_and(|socket| {
            let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
            poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        })
    }

    /// Whether the other side has closed its end, or the socket is gone.
    pub fn has_closed(&self) -> bool {
        match self.counts() {
            Some(counts) => counts.closed_by_peer,
            // Without a descriptor to spare nobody can say.
            None => lowest_free_number(&std::io::stderr()) >= 0,
        }
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
    // Numbers are taken from below, so no new one is above the count of those that are open.
    let below = (NUMBERS_EACH * count + OTHER_NUMBERS) as RawFd;
    let new = |number: RawFd| {
        let socket = duplicate(number)?;
        let cookie = sockopt::socket_cookie(&socket).ok()?;
        if knows(cookie) {
            return None;
        }
        let address = peer_address(&socket);
        (address.is_some() || is_accepted(&socket)).then(|| Peer {
            own: Mutex::new(Some(Arc::new(socket))),
            found_by: number,
            below,
            cookie,
            address,
        })
    };
    new(guess)
        .or_else(|| (0..below).filter(|n| !is_taken(*n)).find_map(new))
        .or_else(|| (0..below).find_map(new))
}

/// The address of the other side, if that is there and has one: nobody but who was accepted does.
fn peer_address(fd: &OwnedFd) -> Option<IpAddr> {
    let address = rustix::net::getpeername(fd).ok()??;
    SocketAddr::try_from(address)
        .ok()
        .map(|address| address.ip())
}

/// Whether it was accepted, if perhaps reset since: a search for each of those would be work without
/// end. Over IP, as pairs of local sockets are not, by which the signals come.
fn is_accepted(fd: &OwnedFd) -> bool {
    sockopt::socket_domain(fd)
        .is_ok_and(|family| [AddressFamily::INET, AddressFamily::INET6].contains(&family))
        && sockopt::socket_type(fd).is_ok_and(|t| t == rustix::net::SocketType::STREAM)
        && sockopt::socket_acceptconn(fd).is_ok_and(|listens| !listens)
}

/// The lowest free number: the one the next socket will have, if nobody is quicker.
pub fn lowest_free_number(any: &impl AsFd) -> RawFd {
    fcntl_dupfd_cloexec(any, 0).map_or(-1, |fd| fd.as_raw_fd())
}

#[allow(
    unsafe_code,
    reason = "a file descriptor that another owner may close at any time"
)]
fn duplicate(number: RawFd) -> Option<OwnedFd> {
    if number < 0 {
        return None;
    }
    // SAFETY: the borrowed descriptor is used for this one call of fcntl(2) only, which touches no
    // memory. If its owner closes it at the same time the call fails with EBADF or duplicates what
    // took its number, and every caller checks what it got before doing anything to it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_dupfd_cloexec(borrowed, 0).ok()
}

/// Bytes received on a socket and acknowledged, in all.
pub fn bytes_received(socket: &OwnedFd) -> Option<u64> {
    tcp_info(socket.as_fd()).map(|counts| counts.received)
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
        peer.release();
        let to_write_to = accepted.try_clone().unwrap();
        drop(accepted);
        assert!(!peer.has_closed(), "one of its two numbers is still there");
        drop(client);
        while !peer.has_closed() {}
        drop(to_write_to);
        assert!(
            peer.counts().is_none(),
            "a closed socket's number must not be mistaken"
        );
    }
}
