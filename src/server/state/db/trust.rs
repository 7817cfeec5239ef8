//! Until when this server may answer from memory.
//!
//! The thread that commits sets it, see [`Elector::trusted_until`](super::election::Elector::trusted_until); whoever
//! answers reads it, without a lock.

use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The time since the machine was started, which goes on while it sleeps (CLOCK_BOOTTIME).
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The end of the trust.
#[derive(Debug)]
pub struct Trust {
    /// In milliseconds of [`boot_time`]; 0 for nothing, the highest number for ever.
    until_ms: AtomicU64,
}

impl Trust {
    /// Of the only server that has the database.
    pub fn for_ever() -> Trust {
        Trust {
            until_ms: AtomicU64::new(u64::MAX),
        }
    }

    /// Of one of several servers; it does not lead yet.
    pub fn none() -> Trust {
        Trust {
            until_ms: AtomicU64::new(0),
        }
    }

    /// Sets its end.
    pub fn set(&self, until: Option<Duration>) {
        let until_ms = until.map_or(0, |until| until.as_millis() as u64);
        self.until_ms.store(until_ms, Ordering::Release);
    }

    /// Whether this server may answer now.
    pub fn is_there(&self) -> bool {
        match self.until_ms.load(Ordering::Acquire) {
            u64::MAX => true,
            until_ms => (boot_time().as_millis() as u64) < until_ms,
        }
    }
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
}
