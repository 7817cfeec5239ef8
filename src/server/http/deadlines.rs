//! When something is due, in one ordered structure.
//!
//! A connection's deadline moves with each request, and moving an entry costs more than serving a small request
//! should. So an entry stays where it is when its deadline moves back: when it comes up too early, it is put where
//! it belongs.

use super::slab::Key;
use std::collections::BTreeSet;

/// Milliseconds since the edge started.
pub type Millis = u64;

/// Keys, in the order in which something may be due for them.
#[derive(Debug, Default)]
pub struct Deadlines(BTreeSet<(Millis, Key)>);

/// The deadline of one key.
#[derive(Debug, Default, Clone, Copy)]
pub struct Deadline {
    /// When something is due.
    due: Option<Millis>,
    /// Where the entry is; never later than `due`.
    entry: Option<Millis>,
}

impl Deadlines {
    /// Sets what is due for a key, or that nothing is.
    pub fn set(&mut self, key: Key, deadline: &mut Deadline, due: Option<Millis>) {
        deadline.due = due;
        let Some(due) = due else { return };
        if deadline.entry.is_none_or(|entry| due < entry) {
            self.remove(key, deadline);
            self.0.insert((due, key));
            deadline.entry = Some(due);
        }
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: Key, deadline: &mut Deadline) {
        if let Some(entry) = deadline.entry.take() {
            self.0.remove(&(entry, key));
        }
    }

    /// When the first entry comes up.
    pub fn next(&self) -> Option<Millis> {
        self.0.first().map(|(due, _)| *due)
    }

    /// Takes out the first key whose entry has come up.
    pub fn pop(&mut self, now: Millis) -> Option<Key> {
        let (due, key) = *self.0.first()?;
        (due <= now).then(|| {
            self.0.pop_first();
            key
        })
    }

    /// Whether a key that was taken out is due. Otherwise it is put back for when it will be.
    pub fn is_due(&mut self, key: Key, deadline: &mut Deadline, now: Millis) -> bool {
        deadline.entry = None;
        let due = deadline.due;
        let is_due = due.is_some_and(|due| due <= now);
        if !is_due {
            self.set(key, deadline, due);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_up_once_and_when_it_is_due() {
        let mut deadlines = Deadlines::default();
        let key = |slot| Key {
            slot,
            generation: 0,
        };
        let (mut a, mut b) = (Deadline::default(), Deadline::default());
        deadlines.set(key(1), &mut a, Some(10));
        deadlines.set(key(2), &mut b, Some(20));
        // Later, then earlier than the other one.
        deadlines.set(key(1), &mut a, Some(30));
        deadlines.set(key(2), &mut b, Some(5));
        assert_eq!(deadlines.pop(4), None);
        assert_eq!(deadlines.pop(10), Some(key(2)));
        assert!(deadlines.is_due(key(2), &mut b, 10));
        assert_eq!(deadlines.pop(10), Some(key(1)));
        assert!(!deadlines.is_due(key(1), &mut a, 10));
        assert_eq!(deadlines.next(), Some(30));
        deadlines.set(key(1), &mut a, None);
        assert_eq!(deadlines.pop(30), Some(key(1)));
        assert!(!deadlines.is_due(key(1), &mut a, 30));
        assert_eq!(deadlines.next(), None);
    }
}
