//! In which term this server leads, of one of several: its answers say so, and what agents have seen is compared with it.

use crate::core::Origin;
use crate::wire::term::{COMMIT_HEADER, LeaderCommit, Position, RegistryTerm, TERM_HEADER, Term};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// An agent that claims to have seen a term so much higher is not believed: there were never so many leaders. Whoever sends
/// such claims could otherwise use up the numbers.
const MOST_AHEAD: u64 = 1 << 20;

/// The term, which rises when the database has lost a higher one, and the last commit in it.
#[derive(Debug)]
pub struct OwnTerm {
    now: RwLock<Now>,
    origin: Origin,
    /// A loss was found: a further one is not looked for.
    knows_loss: AtomicBool,
}

#[derive(Debug)]
struct Now {
    term: RegistryTerm,
    commit: LeaderCommit,
    /// The header lines that say so.
    lines: Arc<str>,
}

/// What somebody has seen, beside what this server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// Nothing that this server does not know.
    Consistent,
    /// A higher term: whether this server still leads has to be looked up.
    Higher(Term),
    /// A commit that the database had lost when it was loaded. In words, for people.
    Lost(String),
}

impl OwnTerm {
    /// This term, of the server `me`, which has loaded what there was then.
    pub fn new(term: RegistryTerm, me: u64, origin: Origin) -> OwnTerm {
        let commit = LeaderCommit { leader: me, n: 0 };
        OwnTerm {
            now: RwLock::new(Now {
                term,
                commit,
                lines: lines(term, commit),
            }),
            origin,
            knows_loss: AtomicBool::new(false),
        }
    }

    /// The term now.
    pub fn term(&self) -> Term {
        self.now().term.term
    }

    fn now(&self) -> RwLockReadGuard<'_, Now> {
        self.now.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_mut(&self) -> RwLockWriteGuard<'_, Now> {
        self.now.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header lines that say how far this server has come.
    pub fn lines(&self) -> Arc<str> {
        self.now().lines.clone()
    }

    /// Compares what somebody says that was let in.
    pub fn compare(&self, seen: Position) -> Compared {
        let now = self.now();
        let (own, me) = (now.term, now.commit.leader);
        drop(now);
        if seen.term.registry != own.registry {
            return Compared::Consistent;
        }
        let (term, own) = (seen.term.term, own.term);
        if term > own {
            return match term.0 <= own.0.saturating_add(MOST_AHEAD) {
                true => Compared::Higher(term),
                false => Compared::Consistent,
            };
        }
        let is_news = !self.knows_loss.load(Ordering::Acquire);
        match seen.commit {
            Some(commit) if is_news && self.origin.is_behind(own, me, seen) => {
                let Origin { term: last, n, .. } = self.origin;
                Compared::Lost(format!(
                    "somebody has seen commit {} of term {}, and it had nothing after commit {n} of term {}",
                    commit.n, term.0, last.0
                ))
            }
            _ => Compared::Consistent,
        }
    }

    /// From now on no further loss is looked for.
    pub fn loss_is_known(&self) {
        self.knows_loss.store(true, Ordering::Release);
    }

    /// The term has risen.
    pub fn rose(&self, term: Term) {
        let mut now = self.now_mut();
        now.term.term = term;
        now.lines = lines(now.term, now.commit);
    }

    /// The commit with this number is done.
    pub fn committed(&self, n: u64) {
        let mut now = self.now_mut();
        now.commit.n = n;
        now.lines = lines(now.term, now.commit);
    }
}

fn lines(term: RegistryTerm, commit: LeaderCommit) -> Arc<str> {
    format!("{TERM_HEADER}: {term}\r\n{COMMIT_HEADER}: {commit}\r\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::term::RegistryId;

    fn term(registry: u64, term: u64) -> RegistryTerm {
        RegistryTerm {
            registry: RegistryId(registry),
            term: Term(term),
        }
    }

    fn seen(registry: u64, number: u64, commit: Option<(u64, u64)>) -> Position {
        Position {
            term: term(registry, number),
            commit: commit.map(|(leader, n)| LeaderCommit { leader, n }),
        }
    }

    /// Server 9 in term 5, after server 8 had led until commit 70 of term 4.
    fn own() -> OwnTerm {
        let origin = Origin {
            term: Term(4),
            leader: Some(8),
            n: 70,
        };
        OwnTerm::new(term(1, 5), 9, origin)
    }

    #[test]
    fn only_a_higher_term_of_the_same_registry_is_higher() {
        let own = own();
        let compare = |registry, term| own.compare(seen(registry, term, None));
        assert_eq!(compare(1, 6), Compared::Higher(Term(6)));
        for (registry, lower) in [(1, 5), (1, 4), (2, 6), (1, u64::MAX)] {
            assert_eq!(compare(registry, lower), Compared::Consistent, "{lower}");
        }
        own.rose(Term(7));
        assert_eq!(compare(1, 7), Compared::Consistent);
    }

    #[test]
    fn answers_say_the_term_and_the_last_commit() {
        let own = own();
        let said = |term, n| {
            format!(
                "Sidebike-Term: 0000000000000001:{term}\r\nSidebike-Commit: 0000000000000009:{n}\r\n"
            )
        };
        assert_eq!(*own.lines(), *said(5, 0));
        own.committed(12);
        assert_eq!(*own.lines(), *said(5, 12));
        own.rose(Term(7));
        assert_eq!(*own.lines(), *said(7, 12));
    }

    #[test]
    fn a_commit_that_was_not_loaded_is_a_loss_until_that_is_known() {
        let own = own();
        let lost = own.compare(seen(1, 4, Some((8, 71))));
        let expected =
            "somebody has seen commit 71 of term 4, and it had nothing after commit 70 of term 4";
        assert_eq!(lost, Compared::Lost(expected.into()));
        for (registry, number, commit) in [
            (1, 4, Some((8, 70))),
            (1, 4, None),
            (2, 4, Some((8, 71))),
            (1, 5, Some((9, 1_000))),
        ] {
            let compared = own.compare(seen(registry, number, commit));
            assert_eq!(compared, Compared::Consistent, "{number} {commit:?}");
        }
        own.loss_is_known();
        let again = own.compare(seen(1, 4, Some((8, 71))));
        assert_eq!(again, Compared::Consistent);
    }
}
