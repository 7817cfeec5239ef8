//! How far the agent has seen its registry come: whether an answer may be obeyed.
//!
//! Of several servers with one database one leads. One that was frozen, clock and all, and was replaced meanwhile would
//! answer from what it knew then; its term is lower than that of its successor, which gives it away.
//!
//! The agent also says which commit it has seen last: a leader whose database has lost that one finds out by it.

use super::attempt::lock;
use crate::client::TermMemory;
use crate::wire::term::Position;
use std::sync::Mutex;

/// The highest term seen, and the last commit in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeenTerm(Option<Position>);

impl SeenTerm {
    /// As told by a process of the same agent.
    pub fn new(seen: Option<Position>) -> Self {
        SeenTerm(seen)
    }

    /// What the agent tells servers; none if it has not seen any.
    pub fn highest(&self) -> Option<Position> {
        self.0
    }

    /// Whether an answer with this term may be obeyed; if so, the term is remembered. Only answers to calls that were let
    /// in may be given here: anybody can write anything on others.
    ///
    /// A term of another registry replaces what was remembered: terms of different ones cannot be compared, and a server
    /// that begins anew is another registry. An answer without a term is of a server that stands alone.
    ///
    /// Of the commits of one leader the last one is remembered, in whatever order the answers come. Another leader in the
    /// same term, after an older backup of the database was put back, was told the commit of the one before with the
    /// call; from now on its own count.
    pub fn accepts(&mut self, answered: Option<Position>) -> bool {
        let Some(mut answered) = answered else {
            return true;
        };
        let seen = self
            .0
            .filter(|seen| seen.term.registry == answered.term.registry);
        if let Some(seen) = seen {
            if answered.term.term < seen.term.term {
                return false;
            }
            let known = seen.commit.filter(|_| seen.term == answered.term);
            answered.commit = match (known, answered.commit) {
                (Some(known), Some(new)) if known.leader == new.leader && new.n < known.n => {
                    Some(known)
                }
                (known, new) => new.or(known),
            };
        }
        self.0 = Some(answered);
        true
    }
}

/// What the calls of all threads share.
#[derive(Debug, Default)]
pub struct SharedTerm(Mutex<SeenTerm>);

impl SharedTerm {
    /// As [`SeenTerm::new`].
    pub fn new(seen: Option<Position>) -> Self {
        SharedTerm(Mutex::new(SeenTerm::new(seen)))
    }
}

impl TermMemory for SharedTerm {
    fn highest(&self) -> Option<Position> {
        lock(&self.0).highest()
    }

    fn accepts(&self, answered: Option<Position>) -> bool {
        lock(&self.0).accepts(answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::term::{LeaderCommit, RegistryId, RegistryTerm, Term};

    fn at(registry: u64, term: u64) -> Option<Position> {
        let registry = RegistryId(registry);
        let term = Term(term);
        Some(Position {
            term: RegistryTerm { registry, term },
            commit: None,
        })
    }

    /// In registry 1.
    fn after(term: u64, leader: u64, n: u64) -> Option<Position> {
        let commit = Some(LeaderCommit { leader, n });
        at(1, term).map(|seen| Position { commit, ..seen })
    }

    /// Each answer, whether it is accepted, and what is remembered after it.
    fn check(answers: &[(Option<Position>, bool, Option<Position>)]) {
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
    fn the_last_commit_of_the_highest_term_is_remembered() {
        check(&[
            (after(5, 8, 3), true, after(5, 8, 3)),
            (after(5, 8, 7), true, after(5, 8, 7)),
            // It was overtaken by the other.
            (after(5, 8, 4), true, after(5, 8, 7)),
            // Of a server of an older version.
            (at(1, 5), true, after(5, 8, 7)),
            (after(4, 9, 99), false, after(5, 8, 7)),
            (after(5, 9, 1), true, after(5, 9, 1)),
            (at(1, 6), true, at(1, 6)),
            (after(7, 8, 0), true, after(7, 8, 0)),
            (at(2, 1), true, at(2, 1)),
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
