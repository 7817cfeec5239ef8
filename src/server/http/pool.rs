//! Threads for what may wait: for the disk, for memory, for a large answer to be made.
//!
//! They are started as they are needed and end when they have had nothing to do for a while; the first ones stay.
//! No job waits for a peer, so a bounded number is enough. There is at most one job for each connection.

use log::warn;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The stack of each, in bytes; only what is touched takes memory. Code that is not optimized needs several times
/// as much.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 1024 } else { 256 } * 1024;
/// Threads that are always there: some work must go on where no other thread can be started.
const ALWAYS: usize = 2;
/// How long a thread waits for something to do before it ends.
const IDLE: Duration = Duration::from_secs(1);

/// Something to be done.
pub type Job = Box<dyn FnOnce() + Send>;

/// The threads.
pub struct Pool {
    queue: Mutex<Queue>,
    comes: Condvar,
    max: usize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    has_warned: bool,
}

impl Pool {
    /// With so many threads at most.
    pub fn start(max: usize) -> Result<Arc<Pool>, String> {
        let pool = Arc::new(Pool {
            queue: Mutex::default(),
            comes: Condvar::new(),
            max: max.max(ALWAYS),
        });
        for _ in 0..ALWAYS {
            pool.queue().threads += 1;
            let new = pool.clone();
            start_thread("pool", move || new.run())?;
        }
        Ok(pool)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has something done by one of the threads.
    pub fn give(self: &Arc<Self>, job: Job) {
        let mut queue = self.queue();
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() || queue.threads >= self.max {
            drop(queue);
            return self.comes.notify_one();
        }
        queue.threads += 1;
        drop(queue);
        let pool = self.clone();
        if let Err(why) = start_thread("pool", move || pool.run()) {
            let mut queue = self.queue();
            queue.threads -= 1;
            if !std::mem::replace(&mut queue.has_warned, true) {
                warn!("{why}; those that are there go on");
            }
        }
    }

    fn run(&self) {
        let mut queue = self.queue();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                // A bug in a job costs its connection, not the thread: what the job had of it is dropped.
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    warn!("a request failed (a bug); its connection was closed");
                }
                queue = self.queue();
                continue;
            }
            queue.idle += 1;
            let empty = |queue: &mut Queue| queue.jobs.is_empty();
            let waited = self.comes.wait_timeout_while(queue, IDLE, empty);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            queue.idle -= 1;
            if queue.jobs.is_empty() && queue.threads > ALWAYS {
                queue.threads -= 1;
                return;
            }
        }
    }
}

/// Starts a thread that is not waited for.
pub fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = thread::Builder::new().name(name.into());
    let started = thread.stack_size(STACK_BYTES).spawn(work);
    started
        .map(drop)
        .map_err(|error| format!("cannot start a thread: {error}"))
}
