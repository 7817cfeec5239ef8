//! Which machines match which selectors, computed once and kept.
//!
//! A submit must not scan all machines, nor a poll all waiting tasks. So the traits that machines share, and each
//! distinct selector, have one entry with the list of the others they match. Regular expressions are evaluated only
//! when new traits or a new selector appear, and outside the lock: with a snapshot of the other side, to which those
//! are added that came after it. Selectors that name instances are found by these. Tasks that wait for a machine wait
//! in the entry of their selector.

use super::abilities::WaitingByNeed;
use super::selector::{Selector, SelectorText, Traits, no_tags};
use super::spec::Spec;
use super::{MachineKey, TaskKey};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Weak};

/// The most instances that all known selectors name together, unless tasks wait under more: the index keeps about
/// 200 bytes for each.
const MAX_NAMED_INSTANCES: usize = 100_000;

/// The slot of some traits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraitsKey(usize);

/// The slot of a selector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SelectorKey(usize);

impl SelectorKey {
    /// The first slot.
    pub(super) const FIRST: SelectorKey = SelectorKey(0);

    /// The slot after it.
    pub(super) fn next(self) -> SelectorKey {
        SelectorKey(self.0 + 1)
    }
}

/// Traits, the machines that have them and the selectors that match them.
#[derive(Debug)]
pub(super) struct TraitsEntry {
    traits: Arc<Traits>,
    pub machines: BTreeSet<MachineKey>,
    /// Without those that name instances.
    pub selectors: BTreeSet<SelectorKey>,
    /// Those that name instances: each means only those of the machines that it names.
    naming: BTreeSet<SelectorKey>,
    /// The generation in which they were added.
    added: u64,
}

/// The traits of one moment, to match a new selector with outside the lock.
#[derive(Debug, Clone)]
pub struct TraitsSnapshot {
    generation: u64,
    traits: Arc<Vec<(TraitsKey, Arc<Traits>)>>,
}

/// Which traits of a snapshot match a selector.
#[derive(Debug)]
pub(super) struct Matches {
    generation: u64,
    traits: Vec<TraitsKey>,
}

impl TraitsSnapshot {
    /// Matches a selector with all traits. Takes long: must not be called under the lock.
    pub fn match_with(&self, selector: &mut Selector) {
        let matching = { self.traits.iter() }.filter(|(_, traits)| selector.matches(traits));
        let traits = matching.map(|(key, _)| *key).collect();
        selector.set_matches(Matches {
            generation: self.generation,
            traits,
        });
    }
}

/// The selectors of one moment, to match new traits with outside the lock.
#[derive(Debug, Clone)]
pub struct SelectorSnapshot {
    generation: u64,
    selectors: Arc<Vec<(SelectorKey, Selector)>>,
}

/// Which selectors of a snapshot match some traits.
#[derive(Debug)]
pub struct MatchingSelectors {
    generation: u64,
    selectors: Vec<SelectorKey>,
}

impl SelectorSnapshot {
    /// Matches traits with all selectors. Takes long: must not be called under the lock.
    pub fn match_with(&self, traits: &Traits) -> MatchingSelectors {
        let matching = { self.selectors.iter() }.filter(|(_, selector)| selector.matches(traits));
        MatchingSelectors {
            generation: self.generation,
            selectors: matching.map(|(key, _)| *key).collect(),
        }
    }
}

/// A selector, the traits it matches, and the tasks that wait for such machines.
#[derive(Debug)]
pub(super) struct SelectorEntry {
    selector: Selector,
    pub traits: BTreeSet<TraitsKey>,
    /// `any` tasks whose execution waits for a free machine.
    pub queue: BTreeSet<TaskKey>,
    /// The same by what they need of an agent.
    pub by_need: WaitingByNeed,
    /// Tasks that new machines may still join.
    pub open: BTreeSet<TaskKey>,
    /// Tasks that will begin with it later.
    pub unbegun: BTreeSet<TaskKey>,
    /// `any` tasks that are held, or between two attempts.
    pub off_queue: BTreeSet<TaskKey>,
    /// The last spec that was submitted, while a task still uses it.
    pub last_spec: Weak<Spec>,
    /// A suspension uses it.
    pub suspends: bool,
    /// Since when the time of what waits in its queue stands still, see [`super::suspension`].
    pub frozen_since: Option<super::Time>,
    /// When a machine was last found that is there and not suspended.
    pub found_free: Option<super::Time>,
    /// The clock of the index when it was last used.
    used: u64,
    /// The generation in which it was added.
    added: u64,
}

impl SelectorEntry {
    fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.open.is_empty()
            && self.unbegun.is_empty()
            && self.off_queue.is_empty()
            && !self.suspends
    }

    /// Whether it means a machine.
    pub fn means(&self, traits: TraitsKey, instance: &str) -> bool {
        self.traits.contains(&traits) && self.selector.names(instance)
    }

    /// The only instances that it means; `None` if it names none.
    pub fn instances(&self) -> Option<&BTreeSet<Arc<str>>> {
        self.selector.text().instances()
    }
}

/// All traits and all selectors, and which match which.
#[derive(Debug)]
pub(super) struct MatchIndex {
    max_selectors: usize,
    traits: Slots<TraitsEntry>,
    /// A tree, which never has to be rebuilt as a whole.
    traits_keys: BTreeMap<Arc<Traits>, TraitsKey>,
    selectors: Slots<SelectorEntry>,
    selector_keys: HashMap<SelectorText, SelectorKey>,
    /// The selectors that name an instance.
    naming: HashMap<Arc<str>, BTreeSet<SelectorKey>>,
    /// How many instances the selectors name together.
    named: usize,
    /// How often a selector has been used so far.
    clock: u64,
    /// How many traits and selectors have been added so far.
    generation: u64,
    /// The traits by the generation in which they were added, and the selectors.
    traits_by_generation: BTreeMap<u64, TraitsKey>,
    selectors_by_generation: BTreeMap<u64, SelectorKey>,
    /// The last snapshots, until traits or selectors are added.
    traits_snapshot: Option<TraitsSnapshot>,
    selector_snapshot: Option<SelectorSnapshot>,
}

impl MatchIndex {
    pub fn new(max_selectors: usize) -> Self {
        MatchIndex {
            max_selectors,
            traits: Slots::default(),
            traits_keys: BTreeMap::new(),
            selectors: Slots::default(),
            selector_keys: HashMap::new(),
            naming: HashMap::new(),
            named: 0,
            clock: 0,
            generation: 0,
            traits_by_generation: BTreeMap::new(),
            selectors_by_generation: BTreeMap::new(),
            traits_snapshot: None,
            selector_snapshot: None,
        }
    }

    /// The traits of this moment, unless the selector is known.
    pub fn traits_to_match(&mut self, selector: &SelectorText) -> Option<TraitsSnapshot> {
        if self.selector_keys.contains_key(selector) {
            return None;
        }
        let snapshot = self.traits_snapshot.get_or_insert_with(|| {
            let traits = { self.traits.iter() }.map(|(n, t)| (TraitsKey(n), t.traits.clone()));
            TraitsSnapshot {
                generation: self.generation,
                traits: Arc::new(traits.collect()),
            }
        });
        Some(snapshot.clone())
    }

    /// The selectors of this moment, unless the traits are known.
    pub fn selectors_to_match(&mut self, traits: &Traits) -> Option<SelectorSnapshot> {
        if self.traits_keys.contains_key(traits) {
            return None;
        }
        let snapshot = self.selector_snapshot.get_or_insert_with(|| {
            let selectors = self.selectors.iter();
            let selectors = selectors.map(|(n, s)| (SelectorKey(n), s.selector.clone()));
            SelectorSnapshot {
                generation: self.generation,
                selectors: Arc::new(selectors.collect()),
            }
        });
        Some(snapshot.clone())
    }

    /// The traits that match a selector: the matches in a snapshot that are still there, and the matches among those
    /// that were added later.
    fn traits_of(&self, selector: &Selector, matches: Option<&Matches>) -> BTreeSet<TraitsKey> {
        let since = matches.map_or(0, |matches| matches.generation);
        let newer = self.traits_by_generation.range(since + 1..);
        let newer = newer.map(|(_, key)| *key);
        let newer = newer.filter(|key| selector.matches(&self.traits(*key).traits));
        let known = matches.into_iter().flat_map(|matches| &matches.traits);
        let known = known.copied().filter(|key| {
            // The slot may have been given to other traits.
            let traits = self.traits.try_get(key.0);
            traits.is_some_and(|traits| traits.added <= since)
        });
        known.chain(newer).collect()
    }

    /// The selectors that match new traits, found in the same way.
    fn selectors_of_traits(
        &self,
        traits: &Traits,
        matches: Option<&MatchingSelectors>,
    ) -> Vec<SelectorKey> {
        let since = matches.map_or(0, |matches| matches.generation);
        let newer = self.selectors_by_generation.range(since + 1..);
        let newer = newer.map(|(_, key)| *key);
        let newer = newer.filter(|key| self.entry(*key).selector.matches(traits));
        let known = matches.into_iter().flat_map(|matches| &matches.selectors);
        let known = known.copied().filter(|key| {
            let selector = self.selectors.try_get(key.0);
            selector.is_some_and(|selector| selector.added <= since)
        });
        known.chain(newer).collect()
    }

    /// The traits that match a selector which need not be known.
    pub fn matching(&self, selector: &Selector) -> Cow<'_, BTreeSet<TraitsKey>> {
        match self.find_entry(selector.text()) {
            Some(entry) => Cow::Borrowed(&entry.traits),
            None => {
                let matches = selector.matches_of_snapshot();
                Cow::Owned(self.traits_of(&selector.to_compiled(), matches.as_deref()))
            }
        }
    }

    pub fn traits(&self, key: TraitsKey) -> &TraitsEntry {
        self.traits.get(key.0)
    }

    pub fn entry(&self, key: SelectorKey) -> &SelectorEntry {
        self.selectors.get(key.0)
    }

    pub fn entry_mut(&mut self, key: SelectorKey) -> &mut SelectorEntry {
        self.selectors.get_mut(key.0)
    }

    /// The entry of a selector, if it is known.
    pub fn find_entry(&self, selector: &SelectorText) -> Option<&SelectorEntry> {
        let key = self.selector_keys.get(selector);
        key.map(|key| self.entry(*key))
    }

    /// Whether it has this selector.
    pub fn knows(&self, text: &SelectorText) -> bool {
        self.selector_keys.contains_key(text)
    }

    /// A known selector, compiled.
    pub fn selector(&self, text: &SelectorText) -> Option<Selector> {
        Some(self.find_entry(text)?.selector.clone())
    }

    /// The selectors that mean a machine, in order.
    pub fn selectors_of(
        &self,
        traits: TraitsKey,
        instance: &str,
    ) -> impl Iterator<Item = SelectorKey> {
        let entry = self.traits(traits);
        let naming = self.naming.get(instance);
        let naming = naming.map_or_else(Vec::new, |naming| {
            naming.intersection(&entry.naming).copied().collect()
        });
        let mut selectors = entry.selectors.iter().copied().peekable();
        let mut naming = naming.into_iter().peekable();
        std::iter::from_fn(move || match (selectors.peek(), naming.peek()) {
            (Some(one), Some(other)) if other < one => naming.next(),
            (None, _) => naming.next(),
            (Some(_), _) => selectors.next(),
        })
    }

    /// Every selector.
    pub fn entries(&self) -> impl Iterator<Item = (SelectorKey, &SelectorEntry)> {
        { self.selectors.iter() }.map(|(n, entry)| (SelectorKey(n), entry))
    }

    /// How many executions wait for any free machine.
    pub fn queued(&self) -> usize {
        self.selectors
            .iter()
            .map(|(_, entry)| entry.queue.len())
            .sum()
    }

    /// The oldest `any` task that waits for a free machine.
    pub fn first_queued(&self) -> Option<TaskKey> {
        let selectors = self.selectors.iter();
        let first = selectors.filter_map(|(_, entry)| entry.queue.first());
        first.min().copied()
    }

    /// Every `any` task that waits for a free machine.
    pub fn queued_tasks(&self) -> impl Iterator<Item = TaskKey> {
        self.selectors
            .iter()
            .flat_map(|(_, entry)| entry.queue.iter().copied())
    }

    /// Every task that new machines may join.
    pub fn open_tasks(&self) -> impl Iterator<Item = TaskKey> {
        self.selectors
            .iter()
            .flat_map(|(_, entry)| entry.open.iter().copied())
    }

    /// The machines with this label and host, whatever their tags.
    pub fn machines_at(&self, label: &Arc<str>, host: &Arc<str>) -> Vec<MachineKey> {
        let first = Traits {
            label: label.clone(),
            host: host.clone(),
            tags: no_tags(),
        };
        let from = (Bound::Included(first), Bound::Unbounded);
        let there = { self.traits_keys.range::<Traits, _>(from) }
            .take_while(|(traits, _)| traits.label == *label && traits.host == *host);
        there
            .flat_map(|(_, key)| &self.traits(*key).machines)
            .copied()
            .collect()
    }

    /// The machines with this label, whatever their hosts and tags.
    pub fn machines_labelled(&self, label: &str) -> Vec<MachineKey> {
        let first = Traits {
            label: label.into(),
            host: "".into(),
            tags: no_tags(),
        };
        let from = (Bound::Included(first), Bound::Unbounded);
        let there = { self.traits_keys.range::<Traits, _>(from) }
            .take_while(|(traits, _)| *traits.label == *label);
        there
            .flat_map(|(_, key)| &self.traits(*key).machines)
            .copied()
            .collect()
    }

    /// The first slot from this one on that is in use.
    pub fn next_entry(&self, from: SelectorKey) -> Option<SelectorKey> {
        let slots = self.selectors.slots.iter().enumerate().skip(from.0);
        let mut used = slots.filter(|(_, slot)| slot.is_some());
        used.next().map(|(n, _)| SelectorKey(n))
    }

    /// The selectors of queues whose time stands still, and since when.
    pub fn frozen(&self) -> impl Iterator<Item = (&SelectorText, super::Time)> {
        { self.selectors.iter() }
            .filter_map(|(_, entry)| Some((entry.selector.text(), entry.frozen_since?)))
    }

    /// Has the time of a queue stand still, as it did before a restart; unless nothing waits there any more.
    pub fn restore_frozen(&mut self, text: &SelectorText, since: super::Time) {
        if let Some(key) = self.selector_keys.get(text).copied() {
            self.entry_mut(key).frozen_since = Some(since);
        }
    }

    /// Adds a machine to its traits. If these are new, `matches` are their matches in a snapshot.
    pub fn add_machine(
        &mut self,
        traits: Traits,
        machine: MachineKey,
        matches: Option<&MatchingSelectors>,
    ) -> TraitsKey {
        let key = match self.traits_keys.get(&traits) {
            Some(key) => *key,
            None => self.add_traits(traits, matches),
        };
        self.traits.get_mut(key.0).machines.insert(machine);
        key
    }

    /// Removes a machine from its traits, and with their last machine the traits.
    pub fn remove_machine(&mut self, key: TraitsKey, machine: MachineKey) {
        let entry = self.traits.get_mut(key.0);
        entry.machines.remove(&machine);
        if entry.machines.is_empty() {
            let entry = self.traits.remove(key.0);
            self.traits_by_generation.remove(&entry.added);
            self.traits_keys.remove(&entry.traits);
            for selector in entry.selectors.into_iter().chain(entry.naming) {
                self.selectors.get_mut(selector.0).traits.remove(&key);
            }
        }
    }

    fn add_traits(&mut self, traits: Traits, matches: Option<&MatchingSelectors>) -> TraitsKey {
        let matching = self.selectors_of_traits(&traits, matches);
        let (naming, selectors) =
            { matching.iter() }.partition(|key| self.entry(**key).instances().is_some());
        self.generation += 1;
        self.traits_snapshot = None;
        let traits = Arc::new(traits);
        let key = TraitsKey(self.traits.add(TraitsEntry {
            traits: traits.clone(),
            added: self.generation,
            machines: BTreeSet::new(),
            selectors,
            naming,
        }));
        for selector in matching {
            self.selectors.get_mut(selector.0).traits.insert(key);
        }
        self.traits_by_generation.insert(self.generation, key);
        self.traits_keys.insert(traits, key);
        key
    }

    /// The key of a selector, added if necessary. `None` if too many selectors have waiting tasks.
    pub fn key_if_room(&mut self, selector: &Selector) -> Option<SelectorKey> {
        if let Some(key) = self.known_key(selector) {
            return Some(key);
        }
        let has_room =
            self.selector_keys.len() < self.max_selectors || self.busy() < self.max_selectors;
        has_room.then(|| self.add_entry(selector))
    }

    /// How many selectors have waiting or open tasks.
    fn busy(&self) -> usize {
        let selectors = self.selectors.iter();
        selectors.filter(|(_, entry)| !entry.is_idle()).count()
    }

    /// The key of an accepted selector, added if necessary, whatever the limit: it was checked when the
    /// task was submitted.
    pub fn key_of(&mut self, selector: &Selector) -> SelectorKey {
        let known = self.known_key(selector);
        known.unwrap_or_else(|| self.add_entry(selector))
    }

    /// The key of a selector, if it is known. It is not used by that.
    pub fn key_if_known(&self, selector: &Selector) -> Option<SelectorKey> {
        self.selector_keys.get(selector.text()).copied()
    }

    fn known_key(&mut self, selector: &Selector) -> Option<SelectorKey> {
        let key = self.selector_keys.get(selector.text()).copied()?;
        self.clock += 1;
        self.selectors.get_mut(key.0).used = self.clock;
        Some(key)
    }

    fn add_entry(&mut self, selector: &Selector) -> SelectorKey {
        self.clock += 1;
        // More than one if the limit is lower than when these selectors were accepted.
        while self.selector_keys.len() >= self.max_selectors && self.drop_idle_entry(|_| true) {}
        let names = |entry: &SelectorEntry| entry.instances().is_some();
        let added = selector.text().instances().map_or(0, BTreeSet::len);
        while added > 0 && self.named + added > MAX_NAMED_INSTANCES && self.drop_idle_entry(names) {
        }
        let matches = selector.matches_of_snapshot();
        let selector = selector.to_compiled();
        let traits = self.traits_of(&selector, matches.as_deref());
        self.generation += 1;
        self.selector_snapshot = None;
        let key = SelectorKey(self.selectors.add(SelectorEntry {
            selector: selector.clone(),
            traits: traits.clone(),
            queue: BTreeSet::new(),
            by_need: WaitingByNeed::new(),
            open: BTreeSet::new(),
            unbegun: BTreeSet::new(),
            off_queue: BTreeSet::new(),
            last_spec: Weak::new(),
            suspends: false,
            frozen_since: None,
            found_free: None,
            used: self.clock,
            added: self.generation,
        }));
        let instances = selector.text().instances();
        for traits in traits {
            let entry = self.traits.get_mut(traits.0);
            match instances {
                None => entry.selectors.insert(key),
                Some(_) => entry.naming.insert(key),
            };
        }
        self.named += added;
        for instance in instances.into_iter().flatten() {
            self.naming.entry(instance.clone()).or_default().insert(key);
        }
        self.selectors_by_generation.insert(self.generation, key);
        self.selector_keys.insert(selector.text().clone(), key);
        key
    }

    /// Checks that each selector and each traits lead to each other if they match.
    pub fn check(&self) -> Result<(), String> {
        for (n, entry) in self.selectors.iter() {
            let (key, instances) = (SelectorKey(n), entry.instances());
            for (t, traits) in self.traits.iter() {
                let matches = entry.selector.matches(&traits.traits);
                let listed = [
                    entry.traits.contains(&TraitsKey(t)),
                    traits.selectors.contains(&key),
                    traits.naming.contains(&key),
                ];
                let is_naming = instances.is_some();
                if listed != [matches, matches && !is_naming, matches && is_naming] {
                    let (text, traits) = (entry.selector.text(), &traits.traits);
                    return Err(format!(
                        "{text:?} and {traits:?}: {matches}, listed {listed:?}"
                    ));
                }
            }
            let is_named = |i: &Arc<str>| self.naming.get(i).is_some_and(|s| s.contains(&key));
            if !instances.into_iter().flatten().all(is_named) {
                return Err(format!(
                    "{:?}: not found by instances",
                    entry.selector.text()
                ));
            }
        }
        let named: usize = self.naming.values().map(BTreeSet::len).sum();
        let naming = { self.selectors.iter() }.filter_map(|(_, entry)| entry.instances());
        if [named, self.named] != [naming.map(BTreeSet::len).sum::<usize>(); 2] {
            return Err("instances lead to selectors that are not there".into());
        }
        Ok(())
    }

    /// Drops the least recently used of these selectors that has no tasks; false if there is none.
    fn drop_idle_entry(&mut self, of: impl Fn(&SelectorEntry) -> bool) -> bool {
        let idle = { self.selectors.iter() }.filter(|(_, entry)| entry.is_idle() && of(entry));
        let Some((n, _)) = idle.min_by_key(|(_, entry)| entry.used) else {
            return false;
        };
        let key = SelectorKey(n);
        let entry = self.selectors.remove(n);
        self.selectors_by_generation.remove(&entry.added);
        self.selector_keys.remove(entry.selector.text());
        for traits in &entry.traits {
            let traits = self.traits.get_mut(traits.0);
            traits.selectors.remove(&key);
            traits.naming.remove(&key);
        }
        for instance in entry.instances().into_iter().flatten() {
            self.named -= 1;
            if let Some(naming) = self.naming.get_mut(instance) {
                naming.remove(&key);
                if naming.is_empty() {
                    self.naming.remove(instance);
                }
            }
        }
        true
    }
}

/// What every use of a slot relies on.
const IN_USE: &str = "no key is used after its slot was freed";

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
        self.slots[n].take().expect(IN_USE)
    }

    fn get(&self, n: usize) -> &T {
        self.slots[n].as_ref().expect(IN_USE)
    }

    fn try_get(&self, n: usize) -> Option<&T> {
        self.slots.get(n)?.as_ref()
    }

    fn get_mut(&mut self, n: usize) -> &mut T {
        self.slots[n].as_mut().expect(IN_USE)
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(n, slot)| Some((n, slot.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Limits;
    use crate::core::selector::Narrowing;

    #[test]
    fn selectors_without_tasks_do_not_name_ever_more_instances() {
        let mut index = MatchIndex::new(1_000);
        let mut known = Vec::new();
        for n in 0..30u32 {
            let instances = (0..10_000).map(|m| format!("{n:04x}{m:08x}").into());
            let narrowing = Narrowing {
                instances: instances.collect(),
                ..Narrowing::default()
            };
            let selector = Selector::checked(None, narrowing, &Limits::NONE.texts, |_| None);
            let key = index.key_of(&selector.unwrap());
            if n == 0 {
                index.entry_mut(key).open.insert(TaskKey(1));
            }
            known.push(key);
        }
        index.check().unwrap();
        assert!(index.named <= MAX_NAMED_INSTANCES, "{}", index.named);
        assert_eq!(index.selectors.iter().count(), 10);
        // One with a task stays.
        assert!(!index.entry(known[0]).open.is_empty());
    }
}
