//! Requests that wait for the end of a group: what `held.rs` holds of them.
//!
//! How a group goes is summed up from all of its members, which takes time; so the answer is made by a thread that may
//! take it, when the request is answered.

use super::held::OnAnswer;
use crate::server::http::{Answer, Responder};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A request that waits for the end of a group.
pub struct GroupWait {
    /// Answers it.
    pub responder: Responder,
    /// Makes the answer: the group as it is then.
    pub make: Box<dyn FnOnce() -> Answer + Send>,
    /// Is told the status of the answer.
    pub on_answer: OnAnswer,
}

impl GroupWait {
    /// Answers with the group as it is now.
    pub fn answer(self) {
        let GroupWait {
            responder,
            make,
            on_answer,
        } = self;
        responder.answer_later(move || {
            let answer = make();
            on_answer.answered(answer.status);
            answer
        });
    }

    /// Gives the responder back: the request is not held after all.
    pub fn not_held(self) -> Responder {
        self.on_answer.dismiss();
        self.responder
    }
}

/// All of them, by number and by group.
#[derive(Default)]
pub struct GroupWaits {
    waits: HashMap<u64, (Arc<str>, GroupWait)>,
    by_group: HashMap<Arc<str>, BTreeSet<u64>>,
}

impl GroupWaits {
    /// Their number.
    pub fn len(&self) -> usize {
        self.waits.len()
    }

    /// Adds one under a number that no other has.
    pub fn add(&mut self, id: u64, group: Arc<str>, wait: GroupWait) {
        self.by_group.entry(group.clone()).or_default().insert(id);
        self.waits.insert(id, (group, wait));
    }

    /// Takes one out.
    pub fn take(&mut self, id: u64) -> Option<GroupWait> {
        let (group, wait) = self.waits.remove(&id)?;
        if let Some(ids) = self.by_group.get_mut(&group) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_group.remove(&group);
            }
        }
        Some(wait)
    }

    /// The numbers of those that wait for this group.
    pub fn of(&self, group: &str) -> Vec<u64> {
        let ids = self.by_group.get(group).into_iter().flatten();
        ids.copied().collect()
    }

    /// The numbers of all.
    pub fn all(&self) -> Vec<u64> {
        self.waits.keys().copied().collect()
    }
}
