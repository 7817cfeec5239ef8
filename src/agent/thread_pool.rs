//! A pool of threads that poll and run commands.
//!
//! A thread without a task waits a moment for the next one: small commands come one after the other, and
//! a new thread for each costs a tenth of `sh -c true`. The last idle thread stays, so that the next order
//! finds one.

use super::attempt::lock;
use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long a thread waits for a task before it ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Idle threads that stay for ever, in number.
const MIN_IDLE: usize = 1;

/// The tasks of the threads, and how many threads wait for one.
#[derive(Debug)]
pub struct ThreadPool<T> {
    state: Mutex<State<T>>,
    task_added: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// Threads that wait in [`ThreadPool::next`].
    idle: usize,
    /// Tasks that no thread has taken. For each there is an idle thread or one that is starting.
    tasks: VecDeque<T>,
}

impl<T> ThreadPool<T> {
    /// A pool without threads.
    pub fn new() -> Self {
        ThreadPool {
            state: Mutex::new(State {
                idle: 0,
                tasks: VecDeque::new(),
            }),
            task_added: Condvar::new(),
        }
    }

    /// Gives a task to an idle thread. Gives it back when there is none.
    pub fn offer(&self, task: T) -> Result<(), T> {
        self.submit(task, || Err(io::ErrorKind::WouldBlock.into()))
            .map_err(|(task, _)| task)
    }

    /// Gives a task to an idle thread, or to a new one that `spawn` starts and that calls
    /// [`ThreadPool::next`]. Gives it back when no thread can be started.
    pub fn submit(
        &self,
        task: T,
        spawn: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), (T, io::Error)> {
        let mut state = lock(&self.state);
        if state.tasks.len() >= state.idle
            && let Err(why) = spawn()
        {
            return Err((task, why));
        }
        state.tasks.push_back(task);
        // Unlock before notifying, or the woken thread blocks on the lock at once.
        drop(state);
        self.task_added.notify_one();
        Ok(())
    }

    /// Waits for the next task of this thread; none when the thread is to end.
    pub fn next(&self) -> Option<T> {
        let mut state = lock(&self.state);
        state.idle += 1;
        let is_empty = |state: &mut State<T>| state.tasks.is_empty();
        let waited = self
            .task_added
            .wait_timeout_while(state, IDLE_TIMEOUT, is_empty);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.idle <= MIN_IDLE {
            let waited = self.task_added.wait_while(state, is_empty);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.idle -= 1;
        state.tasks.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_idle_thread_is_offered_a_task() {
        let pool = ThreadPool::new();
        let mut task = pool.offer(7).unwrap_err();
        std::thread::scope(|scope| {
            let idle = scope.spawn(|| pool.next());
            while let Err(back) = pool.offer(task) {
                task = back;
                std::thread::yield_now();
            }
            assert_eq!(idle.join().unwrap(), Some(7));
        });
        let state = lock(&pool.state);
        assert!(state.tasks.is_empty() && state.idle == 0);
    }

    #[test]
    fn a_task_that_no_thread_can_take_is_given_back() {
        let pool = ThreadPool::new();
        let no_thread = || Err(io::ErrorKind::OutOfMemory.into());
        assert_eq!(pool.submit(1, no_thread).unwrap_err().0, 1);
        assert!(pool.submit(2, || Ok(())).is_ok());
        assert_eq!(pool.next(), Some(2));
        assert_eq!(lock(&pool.state).idle, 0);
    }

    #[test]
    fn each_task_starts_a_thread_when_none_is_idle() {
        let (pool, mut started) = (ThreadPool::new(), 0);
        for task in 0..3 {
            let spawn = || {
                started += 1;
                Ok(())
            };
            assert!(pool.submit(task, spawn).is_ok());
        }
        assert_eq!(started, 3);
        assert_eq!([(); 3].map(|()| pool.next()), [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn one_idle_thread_stays() {
        let pool = ThreadPool::new();
        std::thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| pool.next()));
            std::thread::sleep(IDLE_TIMEOUT * 2);
            let gone = both.iter().filter(|thread| thread.is_finished()).count();
            assert_eq!(gone, 1);
            assert!(pool.offer(3).is_ok());
            let tasks = both.map(|thread| thread.join().unwrap());
            assert_eq!(tasks.iter().flatten().collect::<Vec<_>>(), [&3]);
        });
    }
}
