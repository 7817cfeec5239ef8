//! The threads of connections. One that is through waits a moment for another connection: most are
//! short, and starting a thread is more work than answering a poll.
//!
//! A connection never waits for a thread that has another one: peers may be slow on purpose.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The stack of each, in bytes; only what is touched takes memory. Code that is not optimized needs
/// several times as much.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 1024 } else { 256 } * 1024;
/// The most that wait, as many as a burst keeps busy; they take memory.
const MAX_IDLE: usize = 16;
/// How long one waits.
const IDLE: Duration = Duration::from_secs(1);

/// Threads that do the same work with whatever they get.
pub struct Threads<T> {
    waiting: Mutex<Waiting<T>>,
    something_comes: Condvar,
    work: Box<dyn Fn(T) + Send + Sync>,
}

struct Waiting<T> {
    /// No more than the idle threads and those that are being started.
    things: VecDeque<T>,
    idle: usize,
}

impl<T: Send + 'static> Threads<T> {
    /// None yet.
    pub fn new(work: impl Fn(T) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Threads {
            waiting: Mutex::new(Waiting {
                things: VecDeque::new(),
                idle: 0,
            }),
            something_comes: Condvar::new(),
            work: Box::new(work),
        })
    }

    /// Gives something to a thread. When there is none to be had it comes back, with the reason.
    pub fn give(self: &Arc<Self>, thing: T) -> Result<(), (T, io::Error)> {
        let mut waiting = self.waiting();
        waiting.things.push_back(thing);
        if waiting.things.len() <= waiting.idle {
            drop(waiting);
            self.something_comes.notify_one();
            return Ok(());
        }
        drop(waiting);
        let threads = self.clone();
        let thread = thread::Builder::new().name("connection".into());
        let started = thread.stack_size(STACK_BYTES).spawn(move || threads.run());
        match started {
            Ok(_) => Ok(()),
            // One that was through may have taken it meanwhile.
            Err(error) => match self.waiting().things.pop_back() {
                Some(thing) => Err((thing, error)),
                None => Ok(()),
            },
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut waiting = self.waiting();
        loop {
            while let Some(thing) = waiting.things.pop_front() {
                drop(waiting);
                (self.work)(thing);
                waiting = self.waiting();
            }
            if waiting.idle >= MAX_IDLE {
                return;
            }
            waiting.idle += 1;
            let nothing = |waiting: &mut Waiting<T>| waiting.things.is_empty();
            let comes = &self.something_comes;
            let waited = comes.wait_timeout_while(waiting, IDLE, nothing);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
            waiting.idle -= 1;
            if waiting.things.is_empty() {
                return;
            }
        }
    }
}
