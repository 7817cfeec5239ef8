//! A bounded set of the ids of attempts that are over, so that a repeated order cannot start one twice.

use crate::wire::agent::AttemptId;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// Ids remembered, in number: far more than a server can repeat.
const MAX_IDS: usize = 10_000;

/// The ids that were added last.
#[derive(Debug, Default)]
pub struct RecentIds {
    ids: HashSet<Arc<AttemptId>>,
    oldest_first: VecDeque<Arc<AttemptId>>,
}

impl RecentIds {
    /// Whether an id is one of them.
    pub fn contains(&self, id: &AttemptId) -> bool {
        self.ids.contains(id)
    }

    /// Adds an id. The oldest one is dropped to make room.
    pub fn remember(&mut self, id: &AttemptId) {
        if !self.ids.contains(id) {
            let id = Arc::new(id.clone());
            self.ids.insert(Arc::clone(&id));
            self.oldest_first.push_back(id);
        }
        if self.oldest_first.len() > MAX_IDS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.ids.remove(&*oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> AttemptId {
        AttemptId {
            execution: format!("x.{n}"),
            attempt: 1,
        }
    }

    #[test]
    fn the_oldest_ids_are_dropped() {
        let mut recent = RecentIds::default();
        for n in 0..MAX_IDS + 10 {
            recent.remember(&id(n));
            recent.remember(&id(n));
        }
        assert_eq!(recent.ids.len(), MAX_IDS);
        assert_eq!(recent.oldest_first.len(), MAX_IDS);
        assert!(!recent.contains(&id(9)) && recent.contains(&id(10)));
    }
}
