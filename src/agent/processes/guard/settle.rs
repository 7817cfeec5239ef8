//! Settling one attempt in place of the agent: its processes are ended, then it is undone, then the server is told.

use super::ending::{self, Listed};
use super::record::Answer;
use super::report::{Finished, Reports};
use super::watch::{Cause, Watched};
use crate::agent::attempt::lock;
use crate::agent::command::orphaned_pipes::OrphanedPipes;
use crate::agent::processes::process_table::now_in_ms;
use crate::agent::undo::exclusion::Exclusion;
use crate::agent::undo::plan::UndoPlan;
use crate::agent::undo::run::{self, Observer};
use crate::wire::agent::{Done, Ended};
use crate::wire::task::ExecutionState;
use crate::wire::undo::{Undo, UndoBy, UndoReport};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The stack of a thread that settles an attempt, in bytes.
const STACK_BYTES: usize = 256 << 10;

/// Settles attempts, each in a thread of its own.
#[derive(Debug, Default)]
pub struct Settler {
    /// Where the server is told.
    pub reports: Reports,
    pipes: OrphanedPipes,
    /// How many threads are at work.
    active: Mutex<usize>,
    ended: Condvar,
}

impl Settler {
    /// Begins to settle an attempt. Whether a thread could be started for it.
    pub fn begin(self: &Arc<Self>, watched: &Arc<Watched>, cause: Cause) -> bool {
        *lock(&self.active) += 1;
        let active = Active(Arc::clone(self));
        let watched = Arc::clone(watched);
        std::thread::Builder::new()
            .name("settle".into())
            .stack_size(STACK_BYTES)
            // Where no thread can be started, `active` is dropped with the closure.
            .spawn(move || active.0.settle(&watched, cause))
            .is_ok()
    }

    /// Settles an attempt. Returns when the server knows, or does not want to.
    pub fn settle(&self, watched: &Watched, cause: Cause) {
        let plan = watched.plan_because(cause);
        // Before anything is ended: an undo that the next agent of this machine runs has the same key.
        let exclusion = Exclusion::take(&plan.key);
        if !watched.is_ended() {
            ending::end(Listed::from([(plan.key.clone(), watched.group)]));
        } else if exclusion.is_some() {
            // What the agent's own undo has left.
            ending::end_present(&plan.key);
        }
        let ended_at = now_in_ms();
        let result = (!watched.has_no_command()).then(|| Ended {
            id: plan.id.clone(),
            state: ExecutionState::Failed,
            exit_code: None,
            signal: None,
            msg: cause.msg(),
            ended_ago_ms: 0,
            duration_ms: { watched.started_at() }.map(|started| ended_at.saturating_sub(started)),
            stdout_bytes: 0,
            stderr_bytes: 0,
            files: Vec::new(),
        });
        let report = run::run(&plan, UndoBy::Guard, &self.pipes, &mut Silent, exclusion);
        let now = now_in_ms();
        answer(&Answer::Undone(plan.key.clone(), Box::new(report.clone())));
        let result = result.map(|ended| Ended {
            ended_ago_ms: now.saturating_sub(ended_at),
            ..ended
        });
        let done = Done {
            instance: plan.instance,
            seq: None,
            pieces: Vec::new(),
            results: result.into_iter().collect(),
            undos: vec![report],
            probes: Vec::new(),
        };
        self.reports.send(Finished { done, at: now });
    }

    /// Waits until no thread is at work.
    pub fn wait(&self) {
        let active = lock(&self.active);
        let waited = self.ended.wait_while(active, |active| *active > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// A thread that is at work, or is about to be; also when it panics.
struct Active(Arc<Settler>);

impl Drop for Active {
    fn drop(&mut self) {
        *lock(&self.0.active) -= 1;
        self.0.ended.notify_all();
    }
}

/// Nobody asks how an undo goes.
struct Silent;

impl Observer for Silent {
    fn changed(&mut self, _: &UndoReport) {}
    fn tick(&mut self) {}
}

/// The longest time from the beginning to the answer: to end the processes, and to undo what they did.
pub fn longest(plan: &UndoPlan) -> Duration {
    let undo = Undo {
        timeout: Some(plan.timeout),
        patience: Some(plan.patience),
        ..Undo::default()
    };
    ending::LONGEST + Duration::from(undo.longest())
}

/// Tells the agent. An agent that is gone, or that does not read, is not told.
pub fn answer(answer: &Answer) {
    // Standard output is non-blocking, and takes it in one piece or not at all.
    let _ = rustix::io::write(std::io::stdout(), &answer.encode());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::duration::TimeSpan;

    #[test]
    fn the_longest_time_has_room_for_the_last_try_and_its_check() {
        let mut plan = crate::agent::undo::plan::tests::plan("undo", Some("check"));
        plan.patience = TimeSpan::from_secs(60);
        plan.timeout = TimeSpan::from_secs(10);
        let undo = Duration::from_secs(60 + 2 * (10 + 5));
        assert_eq!(longest(&plan), ending::LONGEST + undo);
    }
}
