//! The term of this server. It numbers the commits, and says how far they have come.

use super::election::{Action, Elector};
use super::trust::{Trust, boot_time};
use super::{CommitNumber, Committed, StorageEngine, Term};
use crate::core::{Batch, Saved, Time};
use log::warn;
use std::sync::Arc;
use std::thread;

/// What others have to know of a leader that is one of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The commit with this number is done.
    Committed(u64),
    /// The term has become a higher one, because somebody has seen the first: the database has lost it.
    Rose {
        /// What was seen.
        seen: Term,
        /// The new one.
        to: Term,
    },
}

/// Is told each, before anybody who waits for it is answered.
pub type OnProgress = Box<dyn Fn(Progress) + Send>;

/// The engine, while this server leads.
pub struct Leadership {
    engine: Box<dyn StorageEngine>,
    numbers: Numbers,
    /// What is left in an engine that went back, until it is asked for.
    left: Option<Saved>,
}

/// Who numbers the commits.
enum Numbers {
    /// The only server that has the database.
    Alone {
        term: Term,
        /// The number of the last commit that was tried.
        last: u64,
        /// The number of the last one that was done.
        done: u64,
    },
    /// One of several servers.
    Elected(Elector, Arc<Trust>, OnProgress),
}

impl Leadership {
    /// Takes the lead and returns what was saved: for an engine that no other server can have at the same time. The
    /// error says what to do.
    pub fn take(mut engine: Box<dyn StorageEngine>) -> Result<(Leadership, Saved), String> {
        let seen = engine.look()?;
        let taken = engine.take(&seen.record)?;
        let term = taken.ok_or("another server has just taken it; start this one again")?;
        let saved = engine.load()?;
        let numbers = Numbers::Alone {
            term,
            last: 0,
            done: 0,
        };
        let leadership = Leadership {
            engine,
            numbers,
            left: None,
        };
        Ok((leadership, saved))
    }

    /// Goes on for an elector that has just loaded everything. From here on the trust is kept up to date.
    pub fn elected(
        engine: Box<dyn StorageEngine>,
        elector: Elector,
        trust: Arc<Trust>,
        on_progress: OnProgress,
    ) -> Leadership {
        trust.set(elector.trusted_until());
        let numbers = Numbers::Elected(elector, trust, on_progress);
        Leadership {
            engine,
            numbers,
            left: None,
        }
    }

    /// Saves a batch. Each attempt has a number of its own, because after [`Committed::Unknown`] the next batch is
    /// another one: it is empty, or contains the one before and the changes since.
    pub fn commit(&mut self, now: Time, batch: &Batch) -> Committed {
        match &mut self.numbers {
            Numbers::Alone { term, last, done } => {
                *last += 1;
                let number = CommitNumber {
                    term: *term,
                    n: *last,
                    after: *done,
                };
                let committed = self.engine.commit(number, now, batch);
                if committed == Committed::Done {
                    *done = *last;
                }
                committed
            }
            Numbers::Elected(elector, trust, on_progress) => {
                let number = loop {
                    match elector.act(boot_time(), true) {
                        Some(Action::Commit(number)) => break number,
                        Some(Action::Load) => {
                            return load_again(&mut *self.engine, elector, &mut self.left);
                        }
                        Some(_) => return Committed::Fenced,
                        // The pause after a failure is not over.
                        None => match elector.wakes_at(true) {
                            Some(at) => thread::sleep(at.saturating_sub(boot_time())),
                            None => return Committed::Fenced,
                        },
                    }
                };
                let committed = self.engine.commit(number, now, batch);
                if committed == Committed::Done {
                    on_progress(Progress::Committed(number.n));
                }
                elector.committed(boot_time(), &committed);
                trust.set(elector.trusted_until());
                let lost = matches!(committed, Committed::WentBack(_));
                match lost && elector.act(boot_time(), false) == Some(Action::Load) {
                    true => load_again(&mut *self.engine, elector, &mut self.left),
                    false => committed,
                }
            }
        }
    }

    /// What is left in an engine that went back, after [`Committed::WentBack`]: everything has to be written anew. `None`
    /// for an engine of which that is not known.
    pub fn take_left(&mut self) -> Option<Saved> {
        self.left.take()
    }

    /// Makes sure that the term is higher than this one, which somebody has seen. If another server leads, this one is
    /// fenced.
    pub fn rise_above(&mut self, seen: Term) -> Committed {
        let Numbers::Elected(elector, trust, on_progress) = &mut self.numbers else {
            return Committed::Done;
        };
        let Some(term) = elector.term().filter(|term| *term <= seen) else {
            trust.settle();
            return Committed::Done;
        };
        elector.heard(boot_time(), seen);
        if elector.act(boot_time(), false) == Some(Action::Look) {
            let looked = self.engine.look().map(|seen| seen.record);
            elector.looked(boot_time(), &looked);
            if let Err(why) = looked {
                return Committed::Unknown(why);
            }
        }
        if elector.term() != Some(term) {
            return Committed::Fenced;
        }
        let to = seen.next();
        let raised = self.engine.raise(term, to);
        if raised == Committed::Done {
            warn!(
                "somebody has seen term {} of this registry: the database has lost it; goes on in term {}",
                seen.0, to.0
            );
            elector.raised(to);
            on_progress(Progress::Rose { seen, to });
            trust.settle();
        }
        raised
    }

    /// Whether a commit is due although there may be nothing to save: others take the lead from a server of which
    /// they see nothing.
    pub fn must_show_life(&self) -> bool {
        match &self.numbers {
            Numbers::Alone { .. } => false,
            Numbers::Elected(elector, ..) => {
                let due = elector.wakes_at(false);
                due.is_some_and(|due| due <= boot_time())
            }
        }
    }

    /// Lets another server lead.
    pub fn resign(mut self) {
        let term = match &mut self.numbers {
            Numbers::Alone { term, .. } => Some(*term),
            Numbers::Elected(elector, trust, _) => {
                elector.resign();
                // First of all nothing is answered any more.
                trust.set(None);
                match elector.act(boot_time(), false) {
                    Some(Action::Resign(term)) => Some(term),
                    _ => None,
                }
            }
        };
        if let Some(term) = term {
            // An error loses nothing: the next server finds what it would find after a kill.
            let _ = self.engine.resign(term);
        }
    }
}

/// Reads what is left in an engine that went back.
fn load_again(
    engine: &mut dyn StorageEngine,
    elector: &mut Elector,
    left: &mut Option<Saved>,
) -> Committed {
    let loaded = engine.load();
    elector.loaded(boot_time(), loaded.is_ok());
    match loaded {
        Ok(saved) => {
            *left = Some(saved);
            Committed::WentBack(0)
        }
        Err(why) => Committed::Unknown(why),
    }
}
