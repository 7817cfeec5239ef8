//! Pauses between attempts, and the randomness they need.
//!
//! Full jitter: a pause is anything between next to nothing and a ceiling that doubles. When a
//! server comes back, a thousand agents come back within the longest pause, and not all at once.

use rustix::rand::{GetRandomFlags, getrandom};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The ceiling of the first pause.
const BASE: Duration = Duration::from_millis(200);
/// The highest ceiling: everybody is back within 10 s of the server.
const CAP: Duration = Duration::from_secs(8);
/// The shortest pause, in milliseconds: never none at all.
const SHORTEST_MS: u64 = 10;

/// Growing, jittered pauses.
#[derive(Debug)]
pub struct Pauses {
    ceiling: Duration,
}

impl Pauses {
    /// From the beginning.
    pub fn new() -> Self {
        Pauses { ceiling: BASE }
    }

    /// The next pause.
    pub fn next(&mut self) -> Duration {
        let ceiling = self.ceiling.as_millis() as u64;
        self.ceiling = (self.ceiling * 2).min(CAP);
        Duration::from_millis(SHORTEST_MS.max(random_number() % (ceiling + 1)))
    }

    /// All is well again.
    pub fn reset(&mut self) {
        self.ceiling = BASE;
    }
}

/// 128 random bits as hexadecimal digits.
pub fn random_id() -> Result<String, String> {
    let bytes: [u8; 16] = random_bytes().ok_or("the system gives no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// By system call: a container may have no /dev.
fn random_bytes<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let got = rustix::io::retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty())).ok()?;
    (got == N).then_some(bytes)
}

/// Good enough to spread agents, whatever happens.
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
    fn pauses_grow_to_the_cap_and_start_again() {
        let mut pauses = Pauses::new();
        assert!(pauses.next() <= BASE);
        for _ in 0..100 {
            assert!(pauses.next() <= CAP);
        }
        assert_eq!(pauses.ceiling, CAP);
        pauses.reset();
        assert!(pauses.next() <= BASE);
    }

    #[test]
    fn ids_differ() {
        let id = random_id().unwrap();
        assert_eq!(id.len(), 32);
        assert_ne!(id, random_id().unwrap());
    }
}
