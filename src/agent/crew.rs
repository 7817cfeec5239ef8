//! The threads that take turns: with commands, and with the polls. One that is through waits a moment
//! for its next turn: small commands come one after the other, and a new thread for each costs a tenth
//! of `sh -c true`. The last one that waits stays, so that the next order finds it.

use super::held::lock;
use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long a thread without a turn waits for one before it ends.
const LINGER: Duration = Duration::from_secs(1);
/// So many stay for ever.
const STAY: usize = 1;

/// The threads, and what is to be done by them.
#[derive(Debug)]
pub struct Crew<T> {
    state: Mutex<State<T>>,
    came: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// Threads without a turn; a new one counts from the moment it is made.
    free: usize,
    /// Never more than there are free threads.
    turns: VecDeque<T>,
}

impl<T> Crew<T> {
    /// Nobody.
    pub fn new() -> Self {
        Crew {
            state: Mutex::new(State {
                free: 0,
                turns: VecDeque::new(),
            }),
            came: Condvar::new(),
        }
    }

    /// Gives a turn to a thread that waits. With none it is given back.
    pub fn offer(&self, turn: T) -> Result<(), T> {
        self.give(turn, || Err(io::ErrorKind::WouldBlock.into()))
            .map_err(|(turn, _)| turn)
    }

    /// Gives a turn to a thread that waits, or to a new one, which has to begin with
    /// [`Crew::first`]. Given back when it cannot be made.
    pub fn give(
        &self,
        turn: T,
        make: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), (T, io::Error)> {
        let mut state = lock(&self.state);
        if state.turns.len() >= state.free {
            if let Err(why) = make() {
                return Err((turn, why));
            }
            state.free += 1;
        }
        state.turns.push_back(turn);
        // Woken with the lock held by another, a thread would only go to sleep again.
        drop(state);
        self.came.notify_one();
        Ok(())
    }

    /// The first turn of a new thread.
    pub fn first(&self) -> Option<T> {
        self.take(false)
    }

    /// Waits for the next turn; none when the thread is to end.
    pub fn wait(&self) -> Option<T> {
        self.take(true)
    }

    fn take(&self, counts_from_now: bool) -> Option<T> {
        let mut state = lock(&self.state);
        state.free += usize::from(counts_from_now);
        let none = |state: &mut State<T>| state.turns.is_empty();
        if state.turns.is_empty() {
            let waited = self.came.wait_timeout_while(state, LINGER, none);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.turns.is_empty() && state.free <= STAY {
            let waited = self.came.wait_while(state, none);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.free -= 1;
        state.turns.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_waits_is_offered_a_turn() {
        let crew = Crew::new();
        let mut turn = crew.offer(7).unwrap_err();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| crew.wait());
            while let Err(back) = crew.offer(turn) {
                turn = back;
                std::thread::yield_now();
            }
            assert_eq!(waits.join().unwrap(), Some(7));
        });
        let state = lock(&crew.state);
        assert!(state.turns.is_empty() && state.free == 0);
    }

    #[test]
    fn a_turn_that_nobody_can_take_is_given_back() {
        let crew = Crew::new();
        let no_thread = || Err(io::ErrorKind::OutOfMemory.into());
        assert_eq!(crew.give(1, no_thread).unwrap_err().0, 1);
        assert!(crew.give(2, || Ok(())).is_ok());
        assert_eq!(crew.first(), Some(2));
        assert_eq!(lock(&crew.state).free, 0);
    }

    #[test]
    fn of_those_without_a_turn_one_stays() {
        let crew = Crew::new();
        std::thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| crew.wait()));
            std::thread::sleep(LINGER * 2);
            let gone = both.iter().filter(|thread| thread.is_finished()).count();
            assert_eq!(gone, 1);
            assert!(crew.offer(3).is_ok());
            let turns = both.map(|thread| thread.join().unwrap());
            assert_eq!(turns.iter().flatten().collect::<Vec<_>>(), [&3]);
        });
    }
}
