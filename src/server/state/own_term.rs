//! In which term this server leads, of one of several: its answers say so, and what agents have seen is compared with it.

use crate::wire::term::{RegistryTerm, TERM_HEADER, Term};
use std::sync::{Arc, PoisonError, RwLock};

/// An agent that claims to have seen a term so much higher is not believed: there were never so many leaders. Whoever sends
/// such claims could otherwise use up the numbers.
const MOST_AHEAD: u64 = 1 << 20;

/// The term, which rises when the database has lost a higher one.
#[derive(Debug)]
pub struct OwnTerm(RwLock<(RegistryTerm, Arc<str>)>);

impl OwnTerm {
    /// This term.
    pub fn new(term: RegistryTerm) -> OwnTerm {
        OwnTerm(RwLock::new((term, line(term))))
    }

    /// The term now.
    pub fn term(&self) -> Term {
        let now = self.0.read().unwrap_or_else(PoisonError::into_inner);
        now.0.term
    }

    /// The header line that says so.
    pub fn line(&self) -> Arc<str> {
        let now = self.0.read().unwrap_or_else(PoisonError::into_inner);
        now.1.clone()
    }

    /// The term that somebody has seen if it is one of this registry, and higher.
    pub fn higher(&self, seen: RegistryTerm) -> Option<Term> {
        let own = self.0.read().unwrap_or_else(PoisonError::into_inner).0;
        let most = own.term.0.saturating_add(MOST_AHEAD);
        let is_higher = seen.term > own.term && seen.term.0 <= most;
        (seen.registry == own.registry && is_higher).then_some(seen.term)
    }

    /// It has risen.
    pub fn set(&self, term: Term) {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        now.0.term = term;
        now.1 = line(now.0);
    }
}

fn line(term: RegistryTerm) -> Arc<str> {
    format!("{TERM_HEADER}: {term}\r\n").into()
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

    #[test]
    fn only_a_higher_term_of_the_same_registry_is_higher() {
        let own = OwnTerm::new(term(1, 5));
        assert_eq!(&*own.line(), "Sidebike-Term: 0000000000000001:5\r\n");
        assert_eq!(own.higher(term(1, 6)), Some(Term(6)));
        for lower in [term(1, 5), term(1, 4), term(2, 6), term(1, u64::MAX)] {
            assert_eq!(own.higher(lower), None, "{lower}");
        }
        own.set(Term(7));
        assert_eq!(own.higher(term(1, 7)), None);
        assert_eq!(&*own.line(), "Sidebike-Term: 0000000000000001:7\r\n");
    }
}
