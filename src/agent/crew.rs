//! The threads that run commands. One that has ended its command waits a moment for the next: small
//! commands come one after the other, and a new thread for each costs a tenth of `sh -c true`.

use super::board::Job;
use super::held::{Held, lock};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long a thread without a command waits for one before it ends.
const LINGER: Duration = Duration::from_secs(1);

/// A command that is to be run now.
pub type Work = (Arc<Held>, Job);

/// The threads that wait.
#[derive(Debug, Default)]
pub struct Crew {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    /// Never more than there are threads to take it.
    work: VecDeque<Work>,
}

impl Crew {
    /// Gives a command to a thread that waits. With none it is given back, for a new one.
    pub fn give(&self, work: Work) -> Result<(), Work> {
        let mut state = lock(&self.state);
        if state.work.len() >= state.waiting {
            return Err(work);
        }
        state.work.push_back(work);
        self.came.notify_one();
        Ok(())
    }

    /// Waits for a command; none when the thread is to end.
    pub fn wait(&self) -> Option<Work> {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let waited = self
            .came
            .wait_timeout_while(state, LINGER, |state| state.work.is_empty());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.work.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::agent::AttemptId;

    #[test]
    fn only_who_waits_is_given_work() {
        let id = AttemptId {
            execution: "x.0".into(),
            attempt: 1,
        };
        let job = Job {
            id: id.clone(),
            task_id: "x".into(),
            task_name: "x".into(),
            detail: serde_json::Value::Null,
        };
        let crew = Crew::default();
        let mut work = crew.give((Arc::new(Held::new(id)), job)).unwrap_err();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| crew.wait());
            while let Err(back) = crew.give(work) {
                work = back;
                std::thread::yield_now();
            }
            assert!(waits.join().unwrap().is_some());
        });
        assert!(lock(&crew.state).work.is_empty());
    }
}
