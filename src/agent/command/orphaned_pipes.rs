//! Drains the pipes of commands that have ended but left a background process that still writes.
//!
//! Closing the read end would kill that process with SIGPIPE at its next line, and an unread pipe would
//! block it. The guard drains them, see `pipe_drain`. Where it does not take them (there is none, or it does not read),
//! one thread of the agent reads and discards until it does; that thread is started when it is first needed.

use crate::agent::attempt::lock;
use crate::agent::processes::guard::Guard;
use log::warn;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Pipes that the guard has not taken, in number. The oldest is closed to make room.
const MAX_PIPES: usize = 256;
/// Bytes read at once: the capacity of a pipe.
const READ_BYTES: usize = 64 * 1024;
/// The pause after something was read. A process that writes without end would else take half a core for its
/// output to be discarded; so it can write 640 KB a second.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// The stack of the thread, in bytes: its buffer is on the heap.
const STACK_BYTES: usize = 128 * 1024;
/// How often the thread looks for new pipes when it has no eventfd that wakes it.
const LOOK_PERIOD: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The pipes, and the thread that drains them.
#[derive(Debug)]
pub struct OrphanedPipes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// None in the guard itself.
    guard: Option<Arc<Guard>>,
    state: Mutex<State>,
    /// Wakes the thread; none when the system has no descriptor left. Made when it is first needed.
    wake: OnceLock<Option<OwnedFd>>,
}

impl Shared {
    fn wake(&self) -> Option<&OwnedFd> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        self.wake.get_or_init(|| eventfd(0, flags).ok()).as_ref()
    }

    /// Hands a pipe to the guard. Whether it has taken it.
    fn hand_over(&self, pipe: &OwnedFd) -> bool {
        { self.guard.as_ref() }.is_some_and(|guard| guard.take_pipe(pipe))
    }
}

#[derive(Debug, Default)]
struct State {
    /// Pipes that the thread has not taken over yet.
    added: VecDeque<OwnedFd>,
    is_running: bool,
}

impl Default for OrphanedPipes {
    /// No pipes, and no guard that would take them.
    fn default() -> Self {
        Self::with_guard(None)
    }
}

impl OrphanedPipes {
    /// No pipes, and no thread.
    pub fn new(guard: Arc<Guard>) -> Self {
        Self::with_guard(Some(guard))
    }

    fn with_guard(guard: Option<Arc<Guard>>) -> Self {
        OrphanedPipes {
            shared: Arc::new(Shared {
                guard,
                state: Mutex::new(State::default()),
                wake: OnceLock::new(),
            }),
        }
    }

    /// Adds the read end of a pipe, which must be non-blocking.
    pub fn add(&self, pipe: OwnedFd) {
        if self.shared.hand_over(&pipe) {
            return;
        }
        let mut state = lock(&self.shared.state);
        if state.added.len() >= MAX_PIPES {
            state.added.pop_front();
        }
        state.added.push_back(pipe);
        if state.is_running {
            if let Some(wake) = self.shared.wake() {
                let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
            }
            return;
        }
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new()
            .name("orphaned-pipes".into())
            .stack_size(STACK_BYTES)
            .spawn(move || drain(&shared));
        match started {
            Ok(_) => state.is_running = true,
            // The pipes stay open, and the next call tries again.
            Err(why) => {
                warn!("cannot start a thread that reads the output of background processes: {why}");
            }
        }
    }
}

/// Reads and discards until every pipe is closed, or with the guard.
fn drain(shared: &Shared) {
    let mut pipes: VecDeque<OwnedFd> = VecDeque::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        {
            let mut state = lock(&shared.state);
            pipes.append(&mut state.added);
            while pipes.front().is_some_and(|pipe| shared.hand_over(pipe)) {
                pipes.pop_front();
            }
            if pipes.is_empty() {
                state.is_running = false;
                return;
            }
        }
        while pipes.len() > MAX_PIPES {
            pipes.pop_front();
        }
        let ready = wait(&pipes, shared.wake());
        if let Some(wake) = shared.wake() {
            let _ = rustix::io::read(wake, &mut [0u8; 8]);
        }
        let is_busy = ready.contains(&true);
        let mut ready = ready.into_iter();
        pipes.retain(|pipe| {
            !ready.next().unwrap_or(false) || {
                let read = rustix::io::read(pipe, &mut buffer[..]);
                matches!(read, Ok(1..) | Err(Errno::AGAIN | Errno::INTR))
            }
        });
        if is_busy {
            std::thread::sleep(BUSY_PAUSE);
        }
    }
}

/// Which pipes have something to read, or are closed at the other end.
fn wait(pipes: &VecDeque<OwnedFd>, wake: Option<&OwnedFd>) -> Vec<bool> {
    let mut fds: Vec<PollFd<'_>> = pipes
        .iter()
        .chain(wake)
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    let timeout = wake.is_none().then_some(&LOOK_PERIOD);
    if poll(&mut fds, timeout).is_err() {
        return Vec::new();
    }
    let ready = fds.iter().map(|fd| !fd.revents().is_empty());
    ready.take(pipes.len()).collect()
}
