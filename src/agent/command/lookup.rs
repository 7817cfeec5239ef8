//! Looking at files for a command, where that can be left alone.
//!
//! A file system of another machine that does not answer blocks whoever looks at it, for ever and also
//! against KILL. So a look at the folder of a task is done by a thread of its own. The thread that starts
//! the command waits for it, for the time-out of the command, and for an order to stop.

use crate::agent::attempt::{Attempt, StopReason, Waker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Looks that were left alone and still hang, in number. Each has a thread.
const MAX_HANGING: usize = 32;
/// The stack of a thread that looks, in bytes: paths are short.
const STACK_BYTES: usize = 128 * 1024;
/// How long poll(2) is not called again after it failed for lack of memory.
const POLL_FAILED_PAUSE: Duration = Duration::from_millis(1);

static HANGING: AtomicUsize = AtomicUsize::new(0);

/// Why there is nothing to be seen.
#[derive(Debug, PartialEq, Eq)]
pub enum LookFailed {
    /// An order to stop came first.
    Stopped(StopReason),
    /// The time-out of the command was over first.
    TimedOut,
    /// The look could not be made.
    Impossible(String),
}

/// Calls `look` in another thread, and returns what it returns. The `waker` has to be that of the attempt.
pub fn look<T: Send + 'static>(
    attempt: &Attempt,
    waker: &Waker,
    timeout: Option<Duration>,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LookFailed> {
    if HANGING.load(Ordering::SeqCst) >= MAX_HANGING {
        return Err(LookFailed::Impossible(format!(
            "{MAX_HANGING} looks at folders of tasks hang on this machine"
        )));
    }
    let (sender, found) = sync_channel(1);
    // Set by whoever is done first: the thread, or this one when it no longer waits.
    let is_over = Arc::new(AtomicBool::new(false));
    let (is_over_there, wake) = (Arc::clone(&is_over), waker.clone());
    std::thread::Builder::new()
        .name("look".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // Without a receiver it is not needed any more.
            let _ = sender.send(look());
            wake.wake();
            if is_over_there.swap(true, Ordering::SeqCst) {
                HANGING.fetch_sub(1, Ordering::SeqCst);
            }
        })
        .map_err(|why| LookFailed::Impossible(format!("no thread is left: {why}")))?;
    let leave = |why| {
        if !is_over.load(Ordering::SeqCst) {
            HANGING.fetch_add(1, Ordering::SeqCst);
            if is_over.swap(true, Ordering::SeqCst) {
                HANGING.fetch_sub(1, Ordering::SeqCst);
            }
        }
        Err(why)
    };
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        match found.try_recv() {
            Ok(found) => return Ok(found),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(LookFailed::Impossible("the look failed (a bug)".into()));
            }
        }
        if let Some(reason) = attempt.stop_reason() {
            return leave(LookFailed::Stopped(reason));
        }
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return leave(LookFailed::TimedOut);
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(waker.fd(), PollFlags::IN)];
        if poll(&mut fds, left.as_ref()).is_err() {
            std::thread::sleep(POLL_FAILED_PAUSE);
        }
        waker.clear();
    }
}
