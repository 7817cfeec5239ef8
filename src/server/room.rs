//! Room for large bodies and answers that are on their way. One of them is bounded; many at once,
//! sent or read slowly on purpose, are not. When there is no room for the next one in line, the one
//! that has been on its way for longest is given up, if it has had time enough to be through.

use super::connection::Connection;
use log::warn;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is smaller is not counted, in bytes: a connection's thread takes more.
pub const SMALL: usize = 16 * 1024;
/// How long to wait for room. A crowd that came at once is through in a few turns of [`ITS_TIME`].
const PATIENCE: Duration = Duration::from_secs(10);
/// What has been on its way for less is not given up: on a busy machine it may be a good one that
/// nobody has had the time to read.
const ITS_TIME: Duration = Duration::from_millis(250);
/// Answers that are being made at once: they have no room yet, and making them is work.
const MAKERS: usize = 8;

/// The room.
#[derive(Debug)]
pub struct Room {
    taken: Mutex<Taken>,
    freed: Condvar,
    max: usize,
    has_warned: AtomicBool,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    makers: usize,
    /// Who has some, in the order of coming.
    holders: BTreeMap<u64, Holder>,
    /// Who waits for some, likewise.
    line: BTreeSet<u64>,
    next: u64,
}

#[derive(Debug)]
struct Holder {
    connection: Arc<Connection>,
    bytes: usize,
    since: Instant,
}

/// Somebody's share of the room, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    room: Arc<Room>,
    number: u64,
}

/// The leave to make an answer, given back when it is dropped.
pub struct Maker<'a>(&'a Room);

impl Room {
    /// Room for this many bytes.
    pub fn new(max: usize) -> Arc<Room> {
        Arc::new(Room {
            taken: Mutex::default(),
            freed: Condvar::new(),
            max,
            has_warned: AtomicBool::new(false),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes some of the room. `None` when there is none even after a while.
    pub fn take(self: &Arc<Self>, connection: &Arc<Connection>, bytes: usize) -> Option<Share> {
        let started = Instant::now();
        let mut taken = self.taken();
        let number = taken.next;
        taken.next += 1;
        taken.line.insert(number);
        while taken.line.first() != Some(&number)
            || taken.bytes > 0 && taken.bytes + bytes > self.max
        {
            if started.elapsed() > PATIENCE {
                taken.line.remove(&number);
                return None;
            }
            if let Some(longest) = taken.holders.values().next()
                && longest.since.elapsed() > ITS_TIME
            {
                longest.connection.cut();
            }
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                warn!(
                    "no room for more large requests and answers at once (--max-in-flight): the slowest are cut"
                );
            }
            taken = self.wait(taken);
        }
        taken.line.remove(&number);
        taken.bytes += bytes;
        let holder = Holder {
            connection: connection.clone(),
            bytes,
            since: Instant::now(),
        };
        taken.holders.insert(number, holder);
        drop(taken);
        // There may be room for the next in line, too.
        self.freed.notify_all();
        Some(Share {
            room: self.clone(),
            number,
        })
    }

    /// Waits for the leave to make an answer that may be large.
    pub fn make(&self) -> Maker<'_> {
        let mut taken = self.taken();
        while taken.makers >= MAKERS {
            taken = self.wait(taken);
        }
        taken.makers += 1;
        Maker(self)
    }

    fn wait<'a>(&self, taken: MutexGuard<'a, Taken>) -> MutexGuard<'a, Taken> {
        let waited = self.freed.wait_timeout(taken, Duration::from_millis(20));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        if let Some(holder) = taken.holders.remove(&self.number) {
            taken.bytes -= holder.bytes;
        }
        if taken.holders.is_empty() {
            self.room.has_warned.store(false, Ordering::Relaxed);
        }
        drop(taken);
        self.room.freed.notify_all();
    }
}

impl Drop for Maker<'_> {
    fn drop(&mut self) {
        self.0.taken().makers -= 1;
        self.0.freed.notify_all();
    }
}
