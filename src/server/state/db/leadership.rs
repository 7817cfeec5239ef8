//! The term of this server. It numbers the commits.

use super::{Committed, StorageEngine, Term};
use crate::core::{Batch, Saved, Time};

/// The engine, while this server leads.
pub struct Leadership {
    engine: Box<dyn StorageEngine>,
    term: Term,
    /// The number of the last commit that was tried.
    last: u64,
}

impl Leadership {
    /// Takes the lead and returns what was saved. The error says what to do.
    pub fn take(mut engine: Box<dyn StorageEngine>) -> Result<(Leadership, Saved), String> {
        let seen = engine.look()?;
        let taken = engine.take(&seen.record)?;
        let term = taken.ok_or("another server has just taken it; start this one again")?;
        let saved = engine.load()?;
        let leadership = Leadership {
            engine,
            term,
            last: 0,
        };
        Ok((leadership, saved))
    }

    /// Saves a batch. Each attempt has a number of its own, because after [`Committed::Unknown`] the next batch is
    /// another one: it is empty, or contains the one before and the changes since.
    pub fn commit(&mut self, now: Time, batch: &Batch) -> Committed {
        self.last += 1;
        self.engine.commit(self.term, self.last, now, batch)
    }

    /// Lets another server lead.
    pub fn resign(mut self) {
        // An error loses nothing: the next server finds what it would find after a kill.
        let _ = self.engine.resign(self.term);
    }
}
