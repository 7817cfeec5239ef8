//! Growing pauses between tries, and the random numbers they need.
//!
//! A pause is a random time up to a ceiling that doubles ("full jitter"). When a server comes back, a
//! thousand agents return spread over the longest pause, and not all at once.

use rustix::rand::{GetRandomFlags, getrandom};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The ceiling of the first pause.
const FIRST_CEILING: Duration = Duration::from_millis(200);
/// The highest ceiling: every agent is back within 10 s of the server.
const MAX_CEILING: Duration = Duration::from_secs(8);
/// The shortest pause, in milliseconds: without one a failing call would be repeated in a busy loop.
const MIN_PAUSE_MS: u64 = 10;

/// Growing random pauses.
#[derive(Debug)]
pub struct Backoff {
    ceiling: Duration,
}

impl Backoff {
    /// Starts with the lowest ceiling.
    pub fn new() -> Self {
        Backoff {
            ceiling: FIRST_CEILING,
        }
    }

    /// The next pause.
    pub fn next(&mut self) -> Duration {
        let ceiling = self.ceiling.as_millis() as u64;
        self.ceiling = (self.ceiling * 2).min(MAX_CEILING);
        Duration::from_millis(MIN_PAUSE_MS.max(random_number() % (ceiling + 1)))
    }

    /// Starts again with the lowest ceiling, after a success.
    pub fn reset(&mut self) {
        self.ceiling = FIRST_CEILING;
    }
}

/// 128 random bits as hexadecimal digits.
pub fn random_id() -> Result<String, String> {
    let bytes: [u8; 16] = random_bytes().ok_or("the system gives no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Random bytes from the system call: a container may have no /dev.
fn random_bytes<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let got = rustix::io::retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty())).ok()?;
    (got == N).then_some(bytes)
}

/// A number that spreads agents. Where the system has no random numbers, the clock serves.
fn random_number() -> u64 {
    random_bytes().map(u64::from_ne_bytes).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| u64::from(now.subsec_nanos()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_highest_ceiling_and_start_again() {
        let mut backoff = Backoff::new();
        assert!(backoff.next() <= FIRST_CEILING);
        for _ in 0..100 {
            assert!(backoff.next() <= MAX_CEILING);
        }
        assert_eq!(backoff.ceiling, MAX_CEILING);
        backoff.reset();
        assert!(backoff.next() <= FIRST_CEILING);
    }

    #[test]
    fn ids_differ() {
        let id = random_id().unwrap();
        assert_eq!(id.len(), 32);
        assert_ne!(id, random_id().unwrap());
    }
}
