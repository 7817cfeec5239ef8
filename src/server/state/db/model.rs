//! An engine in memory that keeps the promises of [`StorageEngine`], and whose answers can be late or lost. For tests,
//! and for the simulation of several servers.

use super::{
    CommitNumber, Committed, Connect, Holder, LeaderRecord, RegistryId, Secret, Seen,
    StorageEngine, Term,
};
use crate::core::{Batch, Saved, Time};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The id of each model's registry: the same seed of the simulation has to do the same.
const REGISTRY: RegistryId = RegistryId(1);

/// What becomes of a commit on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives, and so does its answer.
    Answered,
    /// It never arrives.
    Lost,
    /// It arrives, its answer does not.
    AnswerLost,
    /// It arrives when [`Model::deliver`] is called, and nobody waits for its answer any more.
    Late,
}

/// A connection to the engine.
pub struct Model {
    state: Arc<Mutex<State>>,
    holder: Holder,
    /// Where the holder can be reached.
    address: Option<String>,
}

#[derive(Default, Clone)]
struct State {
    record: LeaderRecord,
    address: Option<String>,
    saved: Saved,
    /// Of the next commits, in order. Without one they are answered.
    fates: VecDeque<Fate>,
    late: Vec<Commit>,
    /// The term and number of each commit that saved something, in order.
    log: Vec<(Term, u64)>,
}

#[derive(Clone)]
struct Commit {
    holder: Holder,
    number: CommitNumber,
    now: Time,
    batch: Batch,
}

impl State {
    fn commit(&mut self, commit: &Commit) -> Committed {
        let CommitNumber { term, n, after } = commit.number;
        if (term, Some(commit.holder)) != (self.record.term, self.record.holder) {
            return Committed::Fenced;
        }
        if self.record.beat < after {
            return Committed::WentBack(self.record.beat);
        }
        if n > self.record.beat {
            self.record.beat = n;
            self.saved.apply(commit.now, &commit.batch);
            self.log.push((term, n));
        }
        Committed::Done
    }
}

/// To a new engine, which is empty.
impl Default for Model {
    fn default() -> Self {
        Model {
            state: Arc::default(),
            holder: Holder::fresh(),
            address: None,
        }
    }
}

impl Model {
    /// Another connection to the same engine.
    pub fn connect(&self) -> Self {
        self.connect_as(Holder::fresh())
    }

    /// The same, with a holder that was drawn before.
    pub fn connect_as(&self, holder: Holder) -> Self {
        Model {
            state: self.state.clone(),
            holder,
            address: self.address.clone(),
        }
    }

    /// The same, for a server that can be reached there.
    pub fn with_address(mut self, address: &str) -> Self {
        self.address = Some(address.into());
        self
    }

    /// Another engine, with all that this one has now.
    pub fn copy(&self) -> Self {
        let state = self.state().clone();
        Model {
            state: Arc::new(Mutex::new(state)),
            holder: self.holder,
            address: self.address.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides what becomes of the next commits.
    pub fn fates(&self, fates: &[Fate]) {
        self.state().fates.extend(fates);
    }

    /// Lets the late commits arrive; returns what becomes of each.
    pub fn deliver(&self) -> Vec<Committed> {
        let mut state = self.state();
        let late = std::mem::take(&mut state.late);
        late.iter().map(|commit| state.commit(commit)).collect()
    }

    /// The term and number of each commit that saved something.
    pub fn log(&self) -> Vec<(Term, u64)> {
        self.state().log.clone()
    }
}

impl StorageEngine for Model {
    fn look(&mut self) -> Result<Seen, String> {
        let state = self.state();
        Ok(Seen {
            record: state.record,
            address: state.address.clone(),
            registry: REGISTRY,
            secret: Secret([0; Secret::BYTES]),
        })
    }

    fn take(&mut self, seen: &LeaderRecord) -> Result<Option<Term>, String> {
        let holder = Some(self.holder);
        let mut state = self.state();
        if state.record != *seen {
            return Ok(None);
        }
        let term = seen.term.next();
        state.record = LeaderRecord {
            term,
            holder,
            beat: 0,
        };
        state.address = self.address.clone();
        Ok(Some(term))
    }

    fn load(&mut self) -> Result<Saved, String> {
        Ok(self.state().saved.clone())
    }

    fn commit(&mut self, number: CommitNumber, now: Time, batch: &Batch) -> Committed {
        let batch = batch.clone();
        let commit = Commit {
            holder: self.holder,
            number,
            now,
            batch,
        };
        let mut state = self.state();
        match state.fates.pop_front().unwrap_or(Fate::Answered) {
            Fate::Answered => return state.commit(&commit),
            Fate::Lost => {}
            Fate::AnswerLost => drop(state.commit(&commit)),
            Fate::Late => state.late.push(commit),
        }
        Committed::Unknown("no answer".into())
    }

    fn resign(&mut self, term: Term) -> Result<(), String> {
        let holder = Some(self.holder);
        let mut state = self.state();
        if (state.record.term, state.record.holder) == (term, holder) {
            state.record.holder = None;
            state.address = None;
        }
        Ok(())
    }
}

impl Connect for Model {
    fn connect(&self, holder: Holder) -> Box<dyn StorageEngine> {
        Box::new(self.connect_as(holder))
    }
}
