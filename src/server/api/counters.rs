//! Counters of answered requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was transferred.
#[derive(Debug, Default)]
pub struct Transfers {
    /// Bytes of files and of the program sent.
    pub bytes_sent: Arc<AtomicU64>,
    /// How often the program was asked for.
    pub handed_out: AtomicU64,
}

/// Requests by class of HTTP status, 1xx to 5xx.
#[derive(Debug, Default)]
pub struct Requests([AtomicU64; 5]);

impl Requests {
    /// Counts a request.
    pub fn count(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.0[class].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were of each class, from 1xx on.
    pub fn by_class(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|count| count.load(Ordering::Relaxed))
    }
}
