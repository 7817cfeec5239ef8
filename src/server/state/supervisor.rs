//! Threads that must not end: a panic in one of them is logged and counted, and the thread starts again.
//!
//! What cannot go on makes the server unhealthy: `/healthz` then answers 503, so that whoever watches it starts it again.

use crate::server::http::start_thread;
use log::error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The pause before a thread starts again: a bug that comes at once again must not take a processor.
const PAUSE: Duration = Duration::from_millis(100);
/// A thread that fails so many times in a row, each time within [`IN_A_ROW`] of its start, is given up.
const MAX_FAILURES: u32 = 10;
const IN_A_ROW: Duration = Duration::from_secs(1);

/// How the threads that must not end are.
#[derive(Debug, Default)]
pub struct Health {
    /// How often one of them failed.
    failures: AtomicU64,
    is_ill: AtomicBool,
    /// Why the server cannot go on.
    trouble: Mutex<Option<String>>,
}

impl Health {
    /// How often a thread failed and was started again, or given up.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Why the server has to be started again, if so.
    pub fn trouble(&self) -> Option<String> {
        if !self.is_ill.load(Ordering::Acquire) {
            return None;
        }
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }

    fn note_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    fn give_up(&self, name: &str) {
        self.set_trouble(format!(
            "its {name} thread has failed (a bug): start the server again"
        ));
    }

    /// Makes the server unhealthy from now on.
    pub(super) fn set_trouble(&self, why: String) {
        error!("{why}");
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.is_ill.store(true, Ordering::Release);
    }
}

/// Starts a thread that does `work`, again whenever that panics. It ends when `work` returns.
pub fn supervise(
    health: &Arc<Health>,
    name: &'static str,
    mut work: impl FnMut() + Send + 'static,
) -> Result<(), String> {
    let health = health.clone();
    start_thread(name, move || {
        let mut in_a_row = 0;
        loop {
            let started = Instant::now();
            if catch_unwind(AssertUnwindSafe(&mut work)).is_ok() {
                return;
            }
            health.note_failure();
            in_a_row = if started.elapsed() < IN_A_ROW {
                in_a_row + 1
            } else {
                1
            };
            if in_a_row >= MAX_FAILURES {
                return health.give_up(name);
            }
            error!("the {name} thread failed (a bug); it starts again");
            thread::sleep(PAUSE);
        }
    })
}

/// Starts a thread whose work cannot begin again. When it panics, `failed` is called and the server is unhealthy.
#[cfg(any(feature = "db", test))]
pub fn supervise_once(
    health: &Arc<Health>,
    name: &'static str,
    work: impl FnOnce() + Send + 'static,
    failed: impl FnOnce() + Send + 'static,
) -> Result<(), String> {
    let health = health.clone();
    start_thread(name, move || {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            health.note_failure();
            failed();
            health.give_up(name);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn what_fails_starts_again_and_is_counted() {
        let health = Arc::new(Health::default());
        let (tell, told) = channel();
        let mut runs = 0;
        supervise(&health, "test", move || {
            runs += 1;
            assert!(runs >= 3, "on purpose");
            tell.send(runs).unwrap();
        })
        .unwrap();
        assert_eq!(told.recv(), Ok(3));
        assert_eq!((health.failures(), health.trouble()), (2, None));
    }

    #[test]
    fn what_fails_again_and_again_is_trouble() {
        let health = Arc::new(Health::default());
        let (tell, told) = channel::<()>();
        supervise(&health, "test", move || {
            let _held_until_it_is_given_up = &tell;
            panic!("on purpose");
        })
        .unwrap();
        assert!(told.recv().is_err());
        assert_eq!(health.failures(), u64::from(MAX_FAILURES));
        assert!(
            health
                .trouble()
                .is_some_and(|why| why.contains("test thread"))
        );
    }

    #[test]
    fn what_cannot_begin_again_is_trouble_at_once() {
        let health = Arc::new(Health::default());
        let (tell, told) = channel();
        let work = || panic!("on purpose");
        supervise_once(&health, "test", work, move || tell.send(()).unwrap()).unwrap();
        assert_eq!(told.recv(), Ok(()));
        while health.trouble().is_none() {
            thread::yield_now();
        }
        assert_eq!(health.failures(), 1);
    }
}
