//! Reads and discards what background processes write after the end of their command.
//!
//! Closing the read end of such a pipe would kill the process with SIGPIPE at its next line, and an unread pipe would
//! block it. So the agent hands the read ends to its guard, over a socket. There they cost the agent no descriptor,
//! however many there are, and stay open when the agent ends: what a command left running lives on.

use super::inheritance;
use rustix::event::epoll;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown,
    socketpair,
};
use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::thread::JoinHandle;
use std::time::Duration;

/// Pipes kept open, in number: two of each background process. The oldest is closed to make room.
const MAX_PIPES: usize = 16_384;
/// Descriptors for other things, in number: what the hard limit on open files leaves beside them is for pipes.
const OTHER_FILES: usize = 64;
/// Bytes read at once: the capacity of a pipe.
const READ_BYTES: usize = 64 * 1024;
/// Pipes that are read in one round, in number; the others come next.
const MAX_EVENTS: usize = 1_024;
/// The pause after something was read. A process that writes without end would else take half a core for its
/// output to be discarded; so it can write 640 KB a second.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// The stack of the thread, in bytes: its buffers are on the heap.
const STACK_BYTES: usize = 64 * 1024;
/// What an event of the socket carries; those of pipes carry their numbers, from 1.
const SOCKET: u64 = 0;

/// The agent's end of the socket. What the other process writes to its own end is read from here.
#[derive(Debug)]
pub struct PipeSender(OwnedFd);

impl AsFd for PipeSender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PipeSender {
    /// A sender, and the end for the process that is to drain the pipes.
    pub fn new() -> io::Result<(PipeSender, OwnedFd)> {
        // Messages of which each is sent as a whole or not at all.
        let (own, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((PipeSender(own), other))
    }

    /// Sends the read end of a pipe, which must be non-blocking. False if the other process does not take it now.
    pub fn send(&self, pipe: &OwnedFd) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        let pipe = [pipe.as_fd()];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        message.push(SendAncillaryMessage::ScmRights(&pipe))
            && sendmsg(&self.0, &[IoSlice::new(&[0])], &mut message, flags).is_ok()
    }
}

/// Starts a thread that drains the pipes that come over a socket. It ends when the agent is gone and every pipe is closed
/// at the other end. None if it cannot be started: then the agent's sends fail.
pub fn start(socket: OwnedFd) -> Option<JoinHandle<()>> {
    let drain = Drain::new(socket).ok()?;
    std::thread::Builder::new()
        .name("pipe-drain".into())
        .stack_size(STACK_BYTES)
        .spawn(move || drain.run())
        .ok()
}

struct Drain {
    epoll: OwnedFd,
    /// None when the agent is gone.
    socket: Option<OwnedFd>,
    /// By number, in the order in which they came.
    pipes: BTreeMap<u64, OwnedFd>,
    next: u64,
    max: usize,
    /// Allocated with the first pipe: most agents never have one.
    buffer: Vec<u8>,
}

impl Drop for Drain {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            refuse(socket);
        }
    }
}

/// Has the agent's sends fail. What is sent to the agent over the same socket goes on.
fn refuse(socket: &OwnedFd) {
    let _ = shutdown(socket, Shutdown::Read);
}

impl Drain {
    fn new(socket: OwnedFd) -> io::Result<Drain> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC);
        let epoll = epoll.inspect_err(|_| refuse(&socket))?;
        let data = epoll::EventData::new_u64(SOCKET);
        let added = epoll::add(&epoll, &socket, data, epoll::EventFlags::IN);
        added.inspect_err(|_| refuse(&socket))?;
        Ok(Drain {
            epoll,
            socket: Some(socket),
            pipes: BTreeMap::new(),
            next: SOCKET + 1,
            max: MAX_PIPES.min(inheritance::raise_file_limit().saturating_sub(OTHER_FILES)),
            buffer: Vec::new(),
        })
    }

    fn run(mut self) {
        let nothing = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(SOCKET),
        };
        // One, until there is a pipe.
        let mut events = vec![nothing];
        while self.socket.is_some() || !self.pipes.is_empty() {
            let ready = match epoll::wait(&self.epoll, &mut events[..], None) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            let mut is_busy = false;
            for event in &events[..ready] {
                // A copy, because the fields of an event need not be aligned.
                let data = event.data;
                match data.u64() {
                    SOCKET => self.receive(),
                    number => is_busy |= self.read(number),
                }
            }
            if is_busy {
                std::thread::sleep(BUSY_PAUSE);
            }
            if !self.pipes.is_empty() {
                events.resize(MAX_EVENTS, nothing);
            }
        }
    }

    /// Takes over what was sent.
    fn receive(&mut self) {
        while let Some(socket) = &self.socket {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut message = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut byte)],
                &mut message,
                flags,
            ) {
                Ok(received) if received.bytes > 0 => {
                    let pipes = message.drain().filter_map(|message| match message {
                        RecvAncillaryMessage::ScmRights(pipes) => Some(pipes),
                        _ => None,
                    });
                    let pipes: Vec<OwnedFd> = pipes.flatten().collect();
                    pipes.into_iter().for_each(|pipe| self.add(pipe));
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The agent is gone.
                Ok(_) | Err(_) => {
                    // This process has it open elsewhere too.
                    let _ = epoll::delete(&self.epoll, socket);
                    self.socket = None;
                }
            }
        }
    }

    fn add(&mut self, pipe: OwnedFd) {
        while self.pipes.len() >= self.max {
            let Some((_, oldest)) = self.pipes.pop_first() else {
                return;
            };
            self.close(&oldest);
        }
        self.buffer.resize(READ_BYTES, 0);
        let data = epoll::EventData::new_u64(self.next);
        if epoll::add(&self.epoll, &pipe, data, epoll::EventFlags::IN).is_ok() {
            self.pipes.insert(self.next, pipe);
            self.next += 1;
        }
    }

    /// Reads what is in a pipe, once. Whether there was anything.
    fn read(&mut self, number: u64) -> bool {
        let Some(pipe) = self.pipes.get(&number) else {
            return false;
        };
        match rustix::io::read(pipe, &mut self.buffer[..]) {
            Ok(1..) => true,
            Err(Errno::AGAIN | Errno::INTR) => false,
            // Every writer has closed it.
            Ok(0) | Err(_) => {
                if let Some(pipe) = self.pipes.remove(&number) {
                    self.close(&pipe);
                }
                false
            }
        }
    }

    /// Stops watching a pipe that is about to be dropped. That alone would not do while another process has it open.
    fn close(&self, pipe: &OwnedFd) {
        let _ = epoll::delete(&self.epoll, pipe);
    }
}
