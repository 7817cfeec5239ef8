//! Threads for what has to wait: for the rest of a request, for a peer that reads slowly, for the disk,
//! for room. One that is through takes the next thing, or waits a moment for one: most are short, and
//! starting a thread is more work than most of them.
//!
//! So thousands that come at once are served by few threads. But peers may be slow on purpose, and
//! nothing must wait for a thread that has such a one: whoever takes longer than most need does not
//! count any more, and another thread is started.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The stack of each, in bytes; only what is touched takes memory. Code that is not optimized needs
/// several times as much.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 1024 } else { 256 } * 1024;
/// As many that are quick keep the machine busy. No more than these wait for something to do, either.
pub const ENOUGH: usize = 16;
/// The same where they wait for the disk most of the time: as many as that can share one commit.
pub const ENOUGH_FOR_A_DISK: usize = 256;
/// Who has had one connection for longer is not quick.
pub const QUICK: Duration = Duration::from_millis(10);
/// How long one waits for something to do.
const IDLE: Duration = Duration::from_secs(1);

/// Threads that do the same work with whatever they get.
pub struct Threads<T> {
    enough: usize,
    crew: Mutex<Crew<T>>,
    work: Box<dyn Fn(T) + Send + Sync>,
}

struct Crew<T> {
    things: VecDeque<T>,
    /// Those with nothing to do. The last one is called first, so that those not needed end.
    idle: Vec<Thread>,
    /// Called or started, and not here yet.
    coming: usize,
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
    fn needs_another(&self, enough: usize) -> bool {
        if self.things.len() <= self.coming {
            return false;
        }
        let newest = self.busy.values().rev().take(enough);
        let quick = newest.take_while(|since| since.elapsed() < QUICK).count();
        quick + self.coming < enough
    }
}

impl<T: Send + 'static> Threads<T> {
    /// None yet; so many that are quick will be enough.
    pub fn new(enough: usize, work: impl Fn(T) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Threads {
            enough,
            crew: Mutex::new(Crew {
                things: VecDeque::new(),
                idle: Vec::new(),
                coming: 0,
                busy: BTreeMap::new(),
                next: 0,
            }),
            work: Box::new(work),
        })
    }

    /// Gives them something to do; [`Threads::suffice`] sees to it that somebody does it.
    pub fn give(&self, thing: T) {
        self.crew().things.push_back(thing);
    }

    /// Calls or starts threads as they are needed. Whether something waits that may need another soon.
    pub fn suffice(self: &Arc<Self>) -> io::Result<bool> {
        let mut crew = self.crew();
        while crew.needs_another(self.enough) {
            crew.coming += 1;
            if let Some(idle) = crew.idle.pop() {
                idle.unpark();
                continue;
            }
            drop(crew);
            let coming = Coming(self.clone());
            let thread = thread::Builder::new().name("connection".into());
            let thread = thread.stack_size(STACK_BYTES);
            thread.spawn(move || coming.arrive())?;
            crew = self.crew();
        }
        Ok(!crew.things.is_empty())
    }

    fn crew(&self) -> MutexGuard<'_, Crew<T>> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let mut crew = self.crew();
            while let Some(thing) = crew.things.pop_front() {
                let number = crew.begin();
                drop(crew);
                (self.work)(thing);
                crew = self.crew();
                crew.busy.remove(&number);
            }
            if crew.idle.len() >= self.enough {
                return;
            }
            crew.idle.push(thread::current());
            drop(crew);
            if !self.is_called() {
                return;
            }
        }
    }

    /// Waits, being idle, until called. False when that took too long.
    fn is_called(&self) -> bool {
        let (since, me) = (Instant::now(), thread::current().id());
        loop {
            thread::park_timeout(IDLE.saturating_sub(since.elapsed()));
            let mut crew = self.crew();
            let Some(at) = crew.idle.iter().position(|idle| idle.id() == me) else {
                crew.coming -= 1;
                return true;
            };
            if since.elapsed() >= IDLE {
                crew.idle.remove(at);
                return false;
            }
        }
    }
}

/// A thread that is being started; whether or not that succeeds, it is over when this is dropped.
struct Coming<T: Send + 'static>(Arc<Threads<T>>);

impl<T: Send + 'static> Coming<T> {
    fn arrive(self) {
        let threads = self.0.clone();
        drop(self);
        threads.run();
    }
}

impl<T: Send + 'static> Drop for Coming<T> {
    fn drop(&mut self) {
        self.0.crew().coming -= 1;
    }
}
