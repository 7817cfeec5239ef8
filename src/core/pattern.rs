//! Patterns and labels: who matches whom, worked out once and remembered.
//!
//! A submit must not cost a scan of all machines' labels, nor a poll a scan of all waiting tasks.
//! So every distinct label and every distinct pattern is kept once, each with the list of the others
//! it matches; matching happens only when a new label or a new pattern appears. A pattern's
//! [`Group`] is also the place where work for it waits.

use super::spec::Spec;
use super::{MachineKey, TaskKey, TextLimits};
use crate::rules::wrong_regex;
use regex::{Regex, RegexBuilder};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

/// How deep groups and repetitions of a pattern may be nested: compiling it goes as deep, on the
/// small stack of a connection's thread.
const MAX_NESTING: u32 = 50;

/// A `machinePattern`, searched unanchored in labels. It is compiled while something is submitted to
/// it or waits under it; a finished task keeps the text only, which takes a thousandth of the memory.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: Arc<str>,
    compiled: Option<Arc<Regex>>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Compiles a pattern, unless it is `known`. The error says what is wrong with it.
    pub fn compiled(
        text: &str,
        limits: &TextLimits,
        known: impl FnOnce(&str) -> Option<Pattern>,
    ) -> Result<Pattern, String> {
        if text.is_empty() {
            return Err("machinePattern: must not be empty; \".*\" matches every label".into());
        }
        if text.len() > limits.pattern {
            return Err(format!(
                "machinePattern: must have {} bytes at most (--max-pattern), got {}",
                limits.pattern,
                text.len()
            ));
        }
        if let Some(pattern) = known(text) {
            return Ok(pattern);
        }
        let regex = build(text, limits.compiled)?;
        Ok(Pattern {
            text: text.into(),
            compiled: Some(Arc::new(regex)),
        })
    }

    /// A pattern that was accepted before.
    pub(super) fn known(text: Arc<str>) -> Pattern {
        Pattern {
            text,
            compiled: None,
        }
    }

    /// The same without what can be compiled again.
    pub(super) fn forget_compiled(&mut self) {
        self.compiled = None;
    }

    /// The pattern as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a label matches; false when it is not compiled.
    pub fn matches(&self, label: &str) -> bool {
        // What was accepted compiles again, whatever the limit is by now; should it ever not, it
        // matches nobody.
        self.compiled
            .as_ref()
            .is_some_and(|regex| regex.is_match(label))
    }

    fn to_compiled(&self) -> Pattern {
        Pattern {
            text: self.text.clone(),
            compiled: { self.compiled.clone() }
                .or_else(|| build(&self.text, usize::MAX).ok().map(Arc::new)),
        }
    }
}

fn build(text: &str, max_bytes: usize) -> Result<Regex, String> {
    let built = RegexBuilder::new(text)
        .size_limit(max_bytes)
        .nest_limit(MAX_NESTING)
        .build();
    built.map_err(|error| {
        if let regex::Error::CompiledTooBig(most) = error {
            return format!(
                "machinePattern: must have {most} bytes at most when compiled (--max-compiled-pattern)"
            );
        }
        let reason = wrong_regex(text, &error);
        format!("machinePattern: must be a regular expression: {reason}")
    })
}

/// Where a label is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LabelKey(usize);

/// Where a pattern's group is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct GroupKey(usize);

/// A label and the machines that carry it.
#[derive(Debug)]
pub(super) struct Label {
    name: Arc<str>,
    pub machines: BTreeSet<MachineKey>,
    pub groups: BTreeSet<GroupKey>,
}

/// A pattern, and what waits for machines that match it.
#[derive(Debug)]
pub(super) struct Group {
    pattern: Pattern,
    pub labels: BTreeSet<LabelKey>,
    /// `any` tasks whose one execution no machine has been found for.
    pub queue: BTreeSet<TaskKey>,
    /// Tasks that machines yet to appear may still join.
    pub open: BTreeSet<TaskKey>,
    /// What was last asked for, while a task has it.
    pub last_spec: Weak<Spec>,
    used: u64,
}

impl Group {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.open.is_empty()
    }
}

/// All labels and all patterns.
#[derive(Debug)]
pub(super) struct Directory {
    max_patterns: usize,
    labels: Slots<Label>,
    label_keys: HashMap<Arc<str>, LabelKey>,
    groups: Slots<Group>,
    group_keys: HashMap<Arc<str>, GroupKey>,
    clock: u64,
}

impl Directory {
    pub fn new(max_patterns: usize) -> Self {
        Directory {
            max_patterns,
            labels: Slots::default(),
            label_keys: HashMap::new(),
            groups: Slots::default(),
            group_keys: HashMap::new(),
            clock: 0,
        }
    }

    pub fn label(&self, key: LabelKey) -> &Label {
        self.labels.get(key.0)
    }

    pub fn group(&self, key: GroupKey) -> &Group {
        self.groups.get(key.0)
    }

    pub fn group_mut(&mut self, key: GroupKey) -> &mut Group {
        self.groups.get_mut(key.0)
    }

    /// The group of a pattern, if there is one.
    pub fn group_with(&self, pattern: &str) -> Option<&Group> {
        self.group_keys.get(pattern).map(|key| self.group(*key))
    }

    /// A pattern that is known, compiled.
    pub fn pattern(&self, text: &str) -> Option<Pattern> {
        Some(self.group_with(text)?.pattern.clone())
    }

    /// How many executions no machine has been found for.
    pub fn queued(&self) -> usize {
        self.groups.iter().map(|(_, group)| group.queue.len()).sum()
    }

    /// Every task that machines yet to appear may join.
    pub fn open_tasks(&self) -> impl Iterator<Item = TaskKey> {
        self.groups
            .iter()
            .flat_map(|(_, group)| group.open.iter().copied())
    }

    /// Notes that a machine carries a label.
    pub fn add_machine(&mut self, name: &Arc<str>, machine: MachineKey) -> LabelKey {
        let key = match self.label_keys.get(name) {
            Some(key) => *key,
            None => self.add_label(name),
        };
        self.labels.get_mut(key.0).machines.insert(machine);
        key
    }

    /// Notes that a machine is gone, and with the last one its label.
    pub fn remove_machine(&mut self, key: LabelKey, machine: MachineKey) {
        let label = self.labels.get_mut(key.0);
        label.machines.remove(&machine);
        if label.machines.is_empty() {
            let label = self.labels.remove(key.0);
            self.label_keys.remove(&label.name);
            for group in label.groups {
                self.groups.get_mut(group.0).labels.remove(&key);
            }
        }
    }

    fn add_label(&mut self, name: &Arc<str>) -> LabelKey {
        let matching = self
            .groups
            .iter()
            .filter(|(_, group)| group.pattern.matches(name));
        let groups: BTreeSet<GroupKey> = matching.map(|(n, _)| GroupKey(n)).collect();
        let key = LabelKey(self.labels.add(Label {
            name: name.clone(),
            machines: BTreeSet::new(),
            groups: groups.clone(),
        }));
        for group in groups {
            self.groups.get_mut(group.0).labels.insert(key);
        }
        self.label_keys.insert(name.clone(), key);
        key
    }

    /// The group of a pattern, if one more task may wait under it.
    pub fn group_with_room(&mut self, pattern: &Pattern) -> Option<GroupKey> {
        if let Some(key) = self.known_group_of(pattern) {
            return Some(key);
        }
        let has_room = self.group_keys.len() < self.max_patterns || self.busy() < self.max_patterns;
        has_room.then(|| self.new_group_of(pattern))
    }

    /// How many patterns something waits under.
    fn busy(&self) -> usize {
        let groups = self.groups.iter();
        groups.filter(|(_, group)| !group.is_idle()).count()
    }

    /// The group of a pattern, made when there is none. What was accepted always finds its group:
    /// whether there is room was asked before.
    pub fn group_of(&mut self, pattern: &Pattern) -> GroupKey {
        let known = self.known_group_of(pattern);
        known.unwrap_or_else(|| self.new_group_of(pattern))
    }

    fn known_group_of(&mut self, pattern: &Pattern) -> Option<GroupKey> {
        let key = self.group_keys.get(pattern.text()).copied()?;
        self.clock += 1;
        self.groups.get_mut(key.0).used = self.clock;
        Some(key)
    }

    fn new_group_of(&mut self, pattern: &Pattern) -> GroupKey {
        self.clock += 1;
        // More than one when what was kept came in under a larger limit.
        while self.group_keys.len() >= self.max_patterns && self.drop_an_idle_group() {}
        let pattern = pattern.to_compiled();
        let matching = self
            .labels
            .iter()
            .filter(|(_, label)| pattern.matches(&label.name));
        let labels: BTreeSet<LabelKey> = matching.map(|(n, _)| LabelKey(n)).collect();
        let key = GroupKey(self.groups.add(Group {
            pattern: pattern.clone(),
            labels: labels.clone(),
            queue: BTreeSet::new(),
            open: BTreeSet::new(),
            last_spec: Weak::new(),
            used: self.clock,
        }));
        for label in labels {
            self.labels.get_mut(label.0).groups.insert(key);
        }
        self.group_keys.insert(pattern.text().into(), key);
        key
    }

    /// Forgets the idle pattern that was not used for longest; false when there is none.
    fn drop_an_idle_group(&mut self) -> bool {
        let idle = self.groups.iter().filter(|(_, group)| group.is_idle());
        let Some((n, _)) = idle.min_by_key(|(_, group)| group.used) else {
            return false;
        };
        let group = self.groups.remove(n);
        self.group_keys.remove(group.pattern.text());
        for label in group.labels {
            self.labels.get_mut(label.0).groups.remove(&GroupKey(n));
        }
        true
    }
}

/// Things with a fixed number each; numbers are used again.
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
