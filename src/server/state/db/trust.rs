//! Until when this server may answer from memory.
//!
//! The thread that commits sets it, see [`Elector::trusted_until`](super::election::Elector::trusted_until); whoever
//! answers reads it, without a lock.

use super::election::RETRY_PAUSE;
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The time since the machine was started, which goes on while it sleeps (CLOCK_BOOTTIME).
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The end of the trust, and whether it is in doubt.
#[derive(Debug)]
pub struct Trust {
    /// In milliseconds of [`boot_time`]; 0 for nothing, the highest number for ever.
    until_ms: AtomicU64,
    /// Somebody has seen a higher term: there is no trust until that is looked up in the database.
    is_in_doubt: AtomicBool,
    /// When the last doubt was settled, in the same milliseconds.
    settled_ms: AtomicU64,
}

impl Trust {
    /// Of the only server that has the database.
    pub fn for_ever() -> Trust {
        Trust::until(u64::MAX)
    }

    /// Of one of several servers; it does not lead yet.
    pub fn none() -> Trust {
        Trust::until(0)
    }

    fn until(ms: u64) -> Trust {
        Trust {
            until_ms: AtomicU64::new(ms),
            is_in_doubt: AtomicBool::new(false),
            settled_ms: AtomicU64::new(0),
        }
    }

    /// Whether another server can ever lead.
    pub fn is_of_several(&self) -> bool {
        self.until_ms.load(Ordering::Acquire) != u64::MAX
    }

    /// Sets its end.
    pub fn set(&self, until: Option<Duration>) {
        let until_ms = until.map_or(0, |until| until.as_millis() as u64);
        self.until_ms.store(until_ms, Ordering::Release);
    }

    /// Somebody has seen a higher term. Whether that is to be looked up: just after a doubt was settled nobody is believed,
    /// as by [`Elector::heard`](super::election::Elector::heard), or whoever says so again and again keeps a server from
    /// answering.
    pub fn doubt(&self) -> bool {
        let believed = self.settled_ms.load(Ordering::Acquire) + RETRY_PAUSE.as_millis() as u64;
        let is_believed = now_ms() >= believed;
        if is_believed {
            self.is_in_doubt.store(true, Ordering::Release);
        }
        is_believed
    }

    /// It was looked up, and this server still leads.
    pub fn settle(&self) {
        self.settled_ms.store(now_ms(), Ordering::Release);
        self.is_in_doubt.store(false, Ordering::Release);
    }

    /// Whether this server may answer now.
    pub fn is_there(&self) -> bool {
        if self.is_in_doubt.load(Ordering::Acquire) {
            return false;
        }
        match self.until_ms.load(Ordering::Acquire) {
            u64::MAX => true,
            until_ms => now_ms() < until_ms,
        }
    }
}

fn now_ms() -> u64 {
    boot_time().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends() {
        assert!(Trust::for_ever().is_there());
        let trust = Trust::none();
        assert!(!trust.is_there());
        trust.set(Some(boot_time() + Duration::from_secs(60)));
        assert!(trust.is_there());
        trust.set(Some(boot_time()));
        assert!(!trust.is_there());
        trust.set(None);
        assert!(!trust.is_there());
    }

    #[test]
    fn a_doubt_has_to_be_settled_and_comes_not_at_once_again() {
        let trust = Trust::none();
        let until = Some(boot_time() + Duration::from_secs(60));
        trust.set(until);
        assert!(trust.doubt());
        trust.set(until);
        assert!(!trust.is_there(), "what was on its way settles nothing");
        trust.settle();
        assert!(trust.is_there());
        assert!(!trust.doubt());
        assert!(trust.is_there());
    }
}
