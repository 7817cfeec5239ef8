//! Which labels match which patterns, computed once and kept.
//!
//! A submit must not scan the labels of all machines, nor a poll all waiting tasks. So each distinct label
//! and each distinct pattern has one entry with the list of the others it matches. Regular expressions are
//! evaluated only when a new label or a new pattern appears, a new pattern outside the lock: with a snapshot of the
//! labels, to which those are added that came after it. Tasks that wait for a machine wait in the
//! entry of their pattern.

use super::abilities::WaitingByNeed;
use super::pattern::Pattern;
use super::spec::Spec;
use super::{MachineKey, TaskKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

/// The slot of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelKey(usize);

/// The slot of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PatternKey(usize);

impl PatternKey {
    /// The first slot.
    pub const FIRST: PatternKey = PatternKey(0);
}

/// A label, the machines that carry it and the patterns that match it.
#[derive(Debug)]
pub(super) struct LabelEntry {
    name: Arc<str>,
    pub machines: BTreeSet<MachineKey>,
    pub patterns: BTreeSet<PatternKey>,
    /// The generation in which it was added.
    added: u64,
}

/// The labels of one moment, to match a new pattern with outside the lock.
#[derive(Debug, Clone)]
pub struct LabelSnapshot {
    generation: u64,
    labels: Arc<Vec<(LabelKey, Arc<str>)>>,
}

/// Which labels of a snapshot match a pattern.
#[derive(Debug)]
pub(super) struct Matches {
    generation: u64,
    labels: Vec<LabelKey>,
}

impl LabelSnapshot {
    /// Matches a pattern with all labels. Takes long: must not be called under the lock.
    pub fn match_with(&self, pattern: &mut Pattern) {
        let matching = { self.labels.iter() }.filter(|(_, name)| pattern.matches(name));
        let labels = matching.map(|(key, _)| *key).collect();
        pattern.set_matches(Matches {
            generation: self.generation,
            labels,
        });
    }
}

/// A pattern, the labels it matches, and the tasks that wait for such machines.
#[derive(Debug)]
pub(super) struct PatternEntry {
    pattern: Pattern,
    pub labels: BTreeSet<LabelKey>,
    /// `any` tasks whose execution waits for a free machine.
    pub queue: BTreeSet<TaskKey>,
    /// The same by what they need of an agent.
    pub by_need: WaitingByNeed,
    /// Tasks that new machines may still join.
    pub open: BTreeSet<TaskKey>,
    /// The last spec that was submitted, while a task still uses it.
    pub last_spec: Weak<Spec>,
    used: u64,
}

impl PatternEntry {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.open.is_empty()
    }
}

/// All labels and all patterns, and which match which.
#[derive(Debug)]
pub(super) struct MatchIndex {
    max_patterns: usize,
    labels: Slots<LabelEntry>,
    label_keys: HashMap<Arc<str>, LabelKey>,
    patterns: Slots<PatternEntry>,
    pattern_keys: HashMap<Arc<str>, PatternKey>,
    clock: u64,
    /// How many labels have been added so far.
    generation: u64,
    /// The labels by the generation in which they were added.
    by_generation: BTreeMap<u64, LabelKey>,
    /// The last snapshot, until a label is added.
    snapshot: Option<LabelSnapshot>,
}

impl MatchIndex {
    pub fn new(max_patterns: usize) -> Self {
        MatchIndex {
            max_patterns,
            labels: Slots::default(),
            label_keys: HashMap::new(),
            patterns: Slots::default(),
            pattern_keys: HashMap::new(),
            clock: 0,
            generation: 0,
            by_generation: BTreeMap::new(),
            snapshot: None,
        }
    }

    /// The labels of this moment, unless the pattern is known.
    pub fn snapshot_for(&mut self, pattern: &str) -> Option<LabelSnapshot> {
        if self.pattern_keys.contains_key(pattern) {
            return None;
        }
        let generation = self.generation;
        let known = self.snapshot.take().filter(|s| s.generation == generation);
        let snapshot = known.unwrap_or_else(|| {
            let labels = { self.labels.iter() }.map(|(n, l)| (LabelKey(n), l.name.clone()));
            LabelSnapshot {
                generation,
                labels: Arc::new(labels.collect()),
            }
        });
        self.snapshot = Some(snapshot.clone());
        Some(snapshot)
    }

    /// The labels that match a pattern: those found in a snapshot that are still there, and those of the ones that were
    /// added since that match.
    fn labels_of(&self, pattern: &Pattern, matches: Option<&Matches>) -> BTreeSet<LabelKey> {
        let since = matches.map_or(0, |matches| matches.generation);
        let newer = self.by_generation.range(since + 1..).map(|(_, key)| *key);
        let newer = newer.filter(|key| pattern.matches(&self.label(*key).name));
        let known = matches.into_iter().flat_map(|matches| &matches.labels);
        let known = known.copied().filter(|key| {
            // The slot may have been given to another label.
            let label = self.labels.try_get(key.0);
            label.is_some_and(|label| label.added <= since)
        });
        known.chain(newer).collect()
    }

    pub fn label(&self, key: LabelKey) -> &LabelEntry {
        self.labels.get(key.0)
    }

    pub fn entry(&self, key: PatternKey) -> &PatternEntry {
        self.patterns.get(key.0)
    }

    pub fn entry_mut(&mut self, key: PatternKey) -> &mut PatternEntry {
        self.patterns.get_mut(key.0)
    }

    /// The entry of a pattern, if it is known.
    pub fn find_entry(&self, pattern: &str) -> Option<&PatternEntry> {
        self.pattern_keys.get(pattern).map(|key| self.entry(*key))
    }

    /// A known pattern, compiled.
    pub fn pattern(&self, text: &str) -> Option<Pattern> {
        Some(self.find_entry(text)?.pattern.clone())
    }

    /// How many executions wait for any free machine.
    pub fn queued(&self) -> usize {
        self.patterns
            .iter()
            .map(|(_, entry)| entry.queue.len())
            .sum()
    }

    /// Every `any` task that waits for a free machine.
    pub fn queued_tasks(&self) -> impl Iterator<Item = TaskKey> {
        self.patterns
            .iter()
            .flat_map(|(_, entry)| entry.queue.iter().copied())
    }

    /// Every task that new machines may join.
    pub fn open_tasks(&self) -> impl Iterator<Item = TaskKey> {
        self.patterns
            .iter()
            .flat_map(|(_, entry)| entry.open.iter().copied())
    }

    /// Adds a machine to its label.
    pub fn add_machine(&mut self, name: &Arc<str>, machine: MachineKey) -> LabelKey {
        let key = match self.label_keys.get(name) {
            Some(key) => *key,
            None => self.add_label(name),
        };
        self.labels.get_mut(key.0).machines.insert(machine);
        key
    }

    /// Removes a machine from its label; the label goes with its last machine.
    pub fn remove_machine(&mut self, key: LabelKey, machine: MachineKey) {
        let label = self.labels.get_mut(key.0);
        label.machines.remove(&machine);
        if label.machines.is_empty() {
            let label = self.labels.remove(key.0);
            self.by_generation.remove(&label.added);
            self.label_keys.remove(&label.name);
            for entry in label.patterns {
                self.patterns.get_mut(entry.0).labels.remove(&key);
            }
        }
    }

    fn add_label(&mut self, name: &Arc<str>) -> LabelKey {
        let matching = self
            .patterns
            .iter()
            .filter(|(_, entry)| entry.pattern.matches(name));
        let patterns: BTreeSet<PatternKey> = matching.map(|(n, _)| PatternKey(n)).collect();
        self.generation += 1;
        let key = LabelKey(self.labels.add(LabelEntry {
            name: name.clone(),
            added: self.generation,
            machines: BTreeSet::new(),
            patterns: patterns.clone(),
        }));
        for entry in patterns {
            self.patterns.get_mut(entry.0).labels.insert(key);
        }
        self.by_generation.insert(self.generation, key);
        self.label_keys.insert(name.clone(), key);
        key
    }

    /// The key of a pattern, added if necessary. `None` if too many patterns have waiting tasks.
    pub fn key_if_room(&mut self, pattern: &Pattern) -> Option<PatternKey> {
        if let Some(key) = self.known_key(pattern) {
            return Some(key);
        }
        let has_room =
            self.pattern_keys.len() < self.max_patterns || self.busy() < self.max_patterns;
        has_room.then(|| self.add_entry(pattern))
    }

    /// How many patterns have waiting or open tasks.
    fn busy(&self) -> usize {
        let patterns = self.patterns.iter();
        patterns.filter(|(_, entry)| !entry.is_idle()).count()
    }

    /// The key of an accepted pattern, added if necessary, whatever the limit: it was checked when the
    /// task was submitted.
    pub fn key_of(&mut self, pattern: &Pattern) -> PatternKey {
        let known = self.known_key(pattern);
        known.unwrap_or_else(|| self.add_entry(pattern))
    }

    fn known_key(&mut self, pattern: &Pattern) -> Option<PatternKey> {
        let key = self.pattern_keys.get(pattern.text()).copied()?;
        self.clock += 1;
        self.patterns.get_mut(key.0).used = self.clock;
        Some(key)
    }

    fn add_entry(&mut self, pattern: &Pattern) -> PatternKey {
        self.clock += 1;
        // More than one if the limit is lower than when these patterns were accepted.
        while self.pattern_keys.len() >= self.max_patterns && self.drop_idle_entry() {}
        let matches = pattern.matches_of_snapshot();
        let pattern = pattern.to_compiled();
        let labels = self.labels_of(&pattern, matches.as_deref());
        let key = PatternKey(self.patterns.add(PatternEntry {
            pattern: pattern.clone(),
            labels: labels.clone(),
            queue: BTreeSet::new(),
            by_need: WaitingByNeed::new(),
            open: BTreeSet::new(),
            last_spec: Weak::new(),
            used: self.clock,
        }));
        for label in labels {
            self.labels.get_mut(label.0).patterns.insert(key);
        }
        self.pattern_keys.insert(pattern.text().into(), key);
        key
    }

    /// Checks that each pattern and each label lead to each other if they match.
    pub fn check(&self) -> Result<(), String> {
        for (n, entry) in self.patterns.iter() {
            for (l, label) in self.labels.iter() {
                let matches = entry.pattern.matches(&label.name);
                let both = [
                    entry.labels.contains(&LabelKey(l)),
                    label.patterns.contains(&PatternKey(n)),
                ];
                if both != [matches; 2] {
                    let (pattern, label) = (entry.pattern.text(), &label.name);
                    return Err(format!(
                        "{pattern:?} and {label:?}: {matches}, listed {both:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Drops the least recently used pattern without tasks; false if every pattern has tasks.
    fn drop_idle_entry(&mut self) -> bool {
        let idle = self.patterns.iter().filter(|(_, entry)| entry.is_idle());
        let Some((n, _)) = idle.min_by_key(|(_, entry)| entry.used) else {
            return false;
        };
        let entry = self.patterns.remove(n);
        self.pattern_keys.remove(entry.pattern.text());
        for label in entry.labels {
            self.labels.get_mut(label.0).patterns.remove(&PatternKey(n));
        }
        true
    }
}

/// Values that each keep their index; free indexes are reused.
#[derive(Debug)]
struct Slots<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    fn add(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(n) => {
                self.slots[n] = Some(value);
                n
            }
            None => {
                self.slots.push(Some(value));
                self.slots.len() - 1
            }
        }
    }

    fn remove(&mut self, n: usize) -> T {
        self.free.push(n);
        self.slots[n].take().expect("a slot is removed once")
    }

    fn get(&self, n: usize) -> &T {
        self.slots[n]
            .as_ref()
            .expect("a key outlives its slot only by a mistake in this file")
    }

    fn try_get(&self, n: usize) -> Option<&T> {
        self.slots.get(n)?.as_ref()
    }

    fn get_mut(&mut self, n: usize) -> &mut T {
        self.slots[n]
            .as_mut()
            .expect("a key outlives its slot only by a mistake in this file")
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(n, slot)| Some((n, slot.as_ref()?)))
    }
}
