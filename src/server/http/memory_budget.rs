//! Bounds the memory of all large bodies and answers in flight. One of them is bounded; many at once, sent or read
//! slowly on purpose, are not. When there is no room for the next one, the connection that has had its share for
//! longest is cut, if it has had time enough to be through.

use super::ConnectionId;
use log::warn;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a request waits for memory. A burst of requests is served within a few times [`PROTECTED`].
pub const MAX_WAIT: Duration = Duration::from_secs(10);
/// The pause between two tries.
pub const RETRY: Duration = Duration::from_millis(20);
/// What was reserved for less is not given up: on a busy machine it may be a good request that nobody has had the
/// time to read.
const PROTECTED: Duration = Duration::from_millis(250);

/// The budget.
#[derive(Debug)]
pub struct MemoryBudget {
    taken: Mutex<Taken>,
    freed: Condvar,
    max: usize,
    has_warned: AtomicBool,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    /// Who has some, in the order of coming.
    holders: BTreeMap<u64, Holder>,
    next: u64,
}

#[derive(Debug)]
struct Holder {
    connection: ConnectionId,
    bytes: usize,
    since: Instant,
    /// Its connection was told to close.
    is_cut: bool,
}

/// Memory set aside for one body or answer, given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<MemoryBudget>,
    number: u64,
}

/// The budget is used up.
#[derive(Debug)]
pub struct Full {
    /// The connection to cut so that there will be, if one has had its time, and the number of what it has.
    pub slowest: Option<(ConnectionId, u64)>,
}

impl MemoryBudget {
    /// For so many bytes.
    pub fn new(max: usize) -> Arc<MemoryBudget> {
        Arc::new(MemoryBudget {
            taken: Mutex::default(),
            freed: Condvar::new(),
            max,
            has_warned: AtomicBool::new(false),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets aside memory for a connection. A single request that is larger than the whole budget gets it when
    /// nobody else has any.
    pub fn reserve(
        self: &Arc<Self>,
        connection: ConnectionId,
        bytes: usize,
    ) -> Result<Reservation, Full> {
        let mut taken = self.taken();
        if taken.bytes > 0 && taken.bytes + bytes > self.max {
            return Err(self.full(taken));
        }
        let number = taken.next;
        taken.next += 1;
        taken.bytes += bytes;
        let holder = Holder {
            connection,
            bytes,
            since: Instant::now(),
            is_cut: false,
        };
        taken.holders.insert(number, holder);
        Ok(Reservation {
            budget: self.clone(),
            number,
        })
    }

    /// Chooses the connection to cut: the one that has held its memory for longest and was not cut yet.
    fn full(&self, mut taken: MutexGuard<'_, Taken>) -> Full {
        let mut holders = taken.holders.iter_mut();
        let slowest = holders.find(|(_, holder)| !holder.is_cut);
        let slowest = slowest.filter(|(_, holder)| holder.since.elapsed() > PROTECTED);
        let slowest = slowest.map(|(number, holder)| {
            holder.is_cut = true;
            (holder.connection, *number)
        });
        drop(taken);
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            warn!(
                "no room for more large requests and answers at once (--max-in-flight): the slowest are cut"
            );
        }
        Full { slowest }
    }

    /// The same, waiting for room for a while; for threads that may wait. `cut` ends a connection.
    pub fn reserve_waiting(
        self: &Arc<Self>,
        connection: ConnectionId,
        bytes: usize,
        cut: impl Fn(Full),
    ) -> Option<Reservation> {
        let started = Instant::now();
        loop {
            match self.reserve(connection, bytes) {
                Ok(reservation) => return Some(reservation),
                Err(_) if started.elapsed() > MAX_WAIT => return None,
                Err(full) => cut(full),
            }
            drop(self.freed.wait_timeout(self.taken(), RETRY));
        }
    }
}

impl Reservation {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        let taken = self.budget.taken();
        { taken.holders.get(&self.number) }.map_or(0, |holder| holder.bytes)
    }

    /// Makes it larger.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let mut taken = self.budget.taken();
        let (has, others) = match taken.holders.get(&self.number) {
            Some(holder) => (holder.bytes, taken.bytes - holder.bytes),
            None => return Ok(()),
        };
        if others > 0 && others + bytes > self.budget.max {
            return Err(self.budget.full(taken));
        }
        taken.bytes += bytes - has;
        if let Some(holder) = taken.holders.get_mut(&self.number) {
            holder.bytes = bytes;
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut taken = self.budget.taken();
        if let Some(holder) = taken.holders.remove(&self.number) {
            taken.bytes -= holder.bytes;
        }
        if taken.holders.is_empty() {
            self.budget.has_warned.store(false, Ordering::Relaxed);
        }
        drop(taken);
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_bounded_and_given_back() {
        let budget = MemoryBudget::new(100);
        let of = |n| ConnectionId::new(0, n, 0);
        let first = budget
            .reserve(of(1), 1_000)
            .expect("alone it may be any size");
        let full = budget.reserve(of(2), 1).unwrap_err();
        assert!(full.slowest.is_none(), "it has not had its time");
        std::thread::sleep(PROTECTED + RETRY);
        let slowest = budget.reserve(of(2), 1).unwrap_err().slowest;
        assert_eq!(slowest, Some((of(1), first.number())));
        let again = budget.reserve(of(2), 1).unwrap_err().slowest;
        assert_eq!(again, None, "it was told already");
        let waiting = budget.clone();
        let waiter = std::thread::spawn(move || {
            waiting.reserve_waiting(of(3), 60, |_| {}).map(|r| r.number)
        });
        drop(first);
        assert!(waiter.join().unwrap().is_some());
        let mut second = budget.reserve(of(2), 60).unwrap();
        second.grow(100).unwrap();
        assert_eq!(second.bytes(), 100);
        assert!(budget.reserve(of(4), 60).is_err());
    }
}
