//! The pipes of commands that have ended, but left something running that still writes.
//!
//! Closing the read end would kill a background process with SIGPIPE at its next line, keeping it
//! unread would block it. So one thread, started when it is first needed, reads and throws away.

use super::held::lock;
use log::warn;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Pipes kept open, in number; the oldest is closed to make room.
const MAX_PIPES: usize = 256;
/// Read at once, in bytes: what a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// The stack of the thread, in bytes: its buffer is not on it.
const STACK_BYTES: usize = 128 * 1024;

/// Reads and throws away.
#[derive(Debug)]
pub struct Leftovers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Option<OwnedFd>,
}

#[derive(Debug, Default)]
struct State {
    new: VecDeque<OwnedFd>,
    running: bool,
}

impl Leftovers {
    /// Nothing to read yet.
    pub fn new() -> Self {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Leftovers {
            shared: Arc::new(Shared {
                state: Mutex::new(State::default()),
                wake: eventfd(0, flags).ok(),
            }),
        }
    }

    /// Takes over the read end of a pipe, which does not block.
    pub fn take(&self, pipe: OwnedFd) {
        let mut state = lock(&self.shared.state);
        if state.new.len() >= MAX_PIPES {
            state.new.pop_front();
        }
        state.new.push_back(pipe);
        if state.running {
            if let Some(wake) = &self.shared.wake {
                let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
            }
            return;
        }
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new()
            .name("leftovers".into())
            .stack_size(STACK_BYTES)
            .spawn(move || read_all(&shared));
        match started {
            Ok(_) => state.running = true,
            // The pipes stay open, and the next one tries again.
            Err(why) => warn!("cannot read what background processes write: {why}"),
        }
    }
}

/// Reads until no pipe is left.
fn read_all(shared: &Shared) {
    let mut pipes: VecDeque<OwnedFd> = VecDeque::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        {
            let mut state = lock(&shared.state);
            pipes.append(&mut state.new);
            if pipes.is_empty() {
                state.running = false;
                return;
            }
        }
        while pipes.len() > MAX_PIPES {
            pipes.pop_front();
        }
        let ready = wait(&pipes, shared.wake.as_ref());
        if let Some(wake) = &shared.wake {
            let _ = rustix::io::read(wake, &mut [0u8; 8]);
        }
        let mut ready = ready.into_iter();
        pipes.retain(|pipe| {
            !ready.next().unwrap_or(false) || {
                let got = rustix::io::read(pipe, &mut buffer[..]);
                matches!(got, Ok(1..) | Err(Errno::AGAIN | Errno::INTR))
            }
        });
    }
}

/// Which pipes have something to read, or have ended.
fn wait(pipes: &VecDeque<OwnedFd>, wake: Option<&OwnedFd>) -> Vec<bool> {
    let mut fds: Vec<PollFd<'_>> = pipes
        .iter()
        .chain(wake)
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    // Without something to wake it, it looks for new pipes now and then.
    let second = rustix::event::Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    if poll(&mut fds, wake.is_none().then_some(&second)).is_err() {
        return Vec::new();
    }
    fds.iter().map(|fd| !fd.revents().is_empty()).collect()
}
