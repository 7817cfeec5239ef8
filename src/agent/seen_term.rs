//! The highest term that the agent has seen of its registry: whether an answer may be obeyed.
//!
//! Of several servers with one database one leads. One that was frozen, clock and all, and was replaced meanwhile would
//! answer from what it knew then; its term is lower than that of its successor, which gives it away.

use super::attempt::lock;
use crate::client::TermMemory;
use crate::wire::term::RegistryTerm;
use std::sync::Mutex;

/// The highest term seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeenTerm(Option<RegistryTerm>);

impl SeenTerm {
    /// As told by a process of the same agent.
    pub fn new(term: Option<RegistryTerm>) -> Self {
        SeenTerm(term)
    }

    /// What the agent tells servers; none if it has not seen any.
    pub fn highest(&self) -> Option<RegistryTerm> {
        self.0
    }

    /// Whether an answer with this term may be obeyed; if so, the term is remembered. Only answers to calls that were let
    /// in may be given here: anybody can write anything on others.
    ///
    /// A term of another registry replaces what was remembered: terms of different ones cannot be compared, and a server
    /// that begins anew is another registry. An answer without a term is of a server that stands alone.
    pub fn accepts(&mut self, answered: Option<RegistryTerm>) -> bool {
        let Some(answered) = answered else {
            return true;
        };
        let is_outdated = self
            .0
            .is_some_and(|seen| seen.registry == answered.registry && answered.term < seen.term);
        if !is_outdated {
            self.0 = Some(answered);
        }
        !is_outdated
    }
}

/// What the calls of all threads share.
#[derive(Debug, Default)]
pub struct SharedTerm(Mutex<SeenTerm>);

impl SharedTerm {
    /// As [`SeenTerm::new`].
    pub fn new(term: Option<RegistryTerm>) -> Self {
        SharedTerm(Mutex::new(SeenTerm::new(term)))
    }
}

impl TermMemory for SharedTerm {
    fn highest(&self) -> Option<RegistryTerm> {
        lock(&self.0).highest()
    }

    fn accepts(&self, answered: Option<RegistryTerm>) -> bool {
        lock(&self.0).accepts(answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::term::{RegistryId, Term};

    fn at(registry: u64, term: u64) -> Option<RegistryTerm> {
        Some(RegistryTerm {
            registry: RegistryId(registry),
            term: Term(term),
        })
    }

    /// Each answer, whether it is accepted, and what is remembered after it.
    fn check(answers: &[(Option<RegistryTerm>, bool, Option<RegistryTerm>)]) {
        let mut seen = SeenTerm::default();
        for (answered, is_accepted, highest) in answers {
            assert_eq!(seen.accepts(*answered), *is_accepted, "{answered:?}");
            assert_eq!(seen.highest(), *highest, "{answered:?}");
        }
    }

    #[test]
    fn a_lower_term_is_not_obeyed() {
        check(&[
            (at(1, 5), true, at(1, 5)),
            (at(1, 5), true, at(1, 5)),
            (at(1, 4), false, at(1, 5)),
            (at(1, 7), true, at(1, 7)),
            (at(1, 5), false, at(1, 7)),
        ]);
    }

    #[test]
    fn another_registry_replaces_what_was_seen() {
        check(&[
            (at(1, 5), true, at(1, 5)),
            (at(2, 1), true, at(2, 1)),
            (at(2, 0), false, at(2, 1)),
            (at(1, 4), true, at(1, 4)),
        ]);
    }

    #[test]
    fn an_answer_without_a_term_counts_and_changes_nothing() {
        check(&[
            (None, true, None),
            (at(1, 5), true, at(1, 5)),
            (None, true, at(1, 5)),
            (at(1, 4), false, at(1, 5)),
        ]);
    }
}
