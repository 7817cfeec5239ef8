//! The threads of connections. One that is through takes the next connection, or waits a moment for one:
//! most connections are short, and starting a thread is more work than answering a poll.
//!
//! So thousands that come at once are served by few threads. But peers may be slow on purpose, and a
//! connection must not wait for a thread that has such a one: whoever takes longer than most need does
//! not count any more, and another thread is started.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The stack of each, in bytes; only what is touched takes memory. Code that is not optimized needs
/// several times as much.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 1024 } else { 256 } * 1024;
/// As many that are quick keep the machine busy. No more than these wait for something to do, either.
const ENOUGH: usize = 16;
/// Who has had one connection for longer is not quick.
pub const QUICK: Duration = Duration::from_millis(10);
/// How long one waits for something to do.
const IDLE: Duration = Duration::from_secs(1);

/// Threads that do the same work with whatever they get.
pub struct Threads<T> {
    crew: Mutex<Crew<T>>,
    something_comes: Condvar,
    work: Box<dyn Fn(T) + Send + Sync>,
}

struct Crew<T> {
    things: VecDeque<T>,
    idle: usize,
    /// Started, and about to take something.
    starting: usize,
    /// Since when the others have what they have; in the order of that.
    busy: BTreeMap<u64, Instant>,
    next: u64,
}

impl<T> Crew<T> {
    fn begin(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.busy.insert(number, Instant::now());
        number
    }

    /// Whether another thread is needed for what has come.
    fn needs_another(&self) -> bool {
        let is_quick = |since: &Instant| since.elapsed() < QUICK;
        self.things.len() > self.idle + self.starting
            && !self
                .busy
                .values()
                .nth_back(ENOUGH - 1)
                .is_some_and(is_quick)
    }
}

impl<T: Send + 'static> Threads<T> {
    /// None yet.
    pub fn new(work: impl Fn(T) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Threads {
            crew: Mutex::new(Crew {
                things: VecDeque::new(),
                idle: 0,
                starting: 0,
                busy: BTreeMap::new(),
                next: 0,
            }),
            something_comes: Condvar::new(),
            work: Box::new(work),
        })
    }

    /// Gives them something to do; [`Threads::suffice`] sees to it that somebody does it.
    pub fn give(&self, thing: T) {
        let mut crew = self.crew();
        crew.things.push_back(thing);
        if crew.things.len() <= crew.idle {
            drop(crew);
            self.something_comes.notify_one();
        }
    }

    /// Starts threads as they are needed. Whether something waits that may need another one soon.
    pub fn suffice(self: &Arc<Self>) -> io::Result<bool> {
        let mut crew = self.crew();
        while crew.needs_another() {
            let number = crew.begin();
            crew.starting += 1;
            drop(crew);
            let threads = self.clone();
            let thread = thread::Builder::new().name("connection".into());
            let started = thread
                .stack_size(STACK_BYTES)
                .spawn(move || threads.run(number));
            crew = self.crew();
            if let Err(error) = started {
                crew.busy.remove(&number);
                crew.starting -= 1;
                return Err(error);
            }
        }
        Ok(!crew.things.is_empty())
    }

    fn crew(&self) -> MutexGuard<'_, Crew<T>> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut number: u64) {
        let mut crew = self.crew();
        crew.starting -= 1;
        loop {
            while let Some(thing) = crew.things.pop_front() {
                drop(crew);
                (self.work)(thing);
                crew = self.crew();
                crew.busy.remove(&number);
                number = crew.begin();
            }
            crew.busy.remove(&number);
            if crew.idle >= ENOUGH {
                return;
            }
            crew.idle += 1;
            let nothing = |crew: &mut Crew<T>| crew.things.is_empty();
            let waited = self.something_comes.wait_timeout_while(crew, IDLE, nothing);
            crew = waited.unwrap_or_else(PoisonError::into_inner).0;
            crew.idle -= 1;
            if crew.things.is_empty() {
                return;
            }
            number = crew.begin();
        }
    }
}
