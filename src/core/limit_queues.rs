//! Who is woken when a limit has a free place: what waits for it is handed out by priority and age, on whichever machine
//! it waits.
//!
//! For each set of limits there is a list of the first of each queue: of the machines that could take it now, and of the
//! selectors. A machine that asks by itself passes over what is not the first of its limit while another machine is about
//! to take that; otherwise the machine that has just ended a command would take the free place for its own queue for ever.
//! Whatever changes the order, or who could take the first, notes the limit, and `Core::wake_for_limits` looks again.

use super::abilities::Abilities;
use super::machine::Machine;
use super::match_index::SelectorKey;
use super::named_limits::{LimitKey, SetKey};
use super::order::Turn;
use super::{Core, MachineKey};
use std::collections::{BTreeMap, BTreeSet};

/// The most machines that are woken for a limit in one call: it runs under the lock. What they take has the next woken.
const MAX_WOKEN: u32 = 64;
/// The most selectors whose first is looked at, for the same reason.
const MAX_SELECTORS: usize = 1_000;

/// The queue of a selector for what needs these abilities.
type SelectorQueue = (SelectorKey, Abilities);

/// The first of each queue, by set of limits.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// Only of machines that can be given work now.
    machines: BTreeMap<SetKey, BTreeSet<(Turn, MachineKey)>>,
    selectors: BTreeMap<SetKey, BTreeSet<(Turn, SelectorQueue)>>,
}

/// Replaces an entry of one of the lists. False if that changes nothing.
fn replace<Q: Ord + Copy>(
    lists: &mut BTreeMap<SetKey, BTreeSet<(Turn, Q)>>,
    set: SetKey,
    queue: Q,
    before: Option<Turn>,
    after: Option<Turn>,
) -> bool {
    if before == after {
        return false;
    }
    let list = lists.entry(set).or_default();
    if let Some(before) = before {
        list.remove(&(before, queue));
    }
    if let Some(after) = after {
        list.insert((after, queue));
    }
    if list.is_empty() {
        lists.remove(&set);
    }
    true
}

impl Core {
    /// The first of a selector's queue has changed.
    pub(super) fn head_of_selector_changed(
        &mut self,
        set: SetKey,
        queue: SelectorQueue,
        before: Option<Turn>,
        after: Option<Turn>,
    ) {
        let lists = &mut self.named_limits.heads.selectors;
        if set != SetKey::NONE && replace(lists, set, queue, before, after) {
            self.named_limits.touch(set);
        }
    }

    /// The queue of a machine, or whether it can be given work, may have changed.
    pub(super) fn list_heads_of(&mut self, key: MachineKey, was_ready: bool) {
        let Some(machine) = self.machines.get_mut(&key) else {
            return;
        };
        let is_ready = machine.ready.is_some();
        for (set, before, after) in machine.inbox.changed_heads(is_ready) {
            let lists = &mut self.named_limits.heads.machines;
            if replace(lists, set, key, before, after) {
                self.named_limits.touch(set);
            }
        }
        if was_ready && !is_ready {
            // It may have been the one that was to take the first of a selector.
            let sets: Vec<SetKey> = self.named_limits.heads.selectors.keys().copied().collect();
            sets.into_iter()
                .for_each(|set| self.named_limits.touch(set));
        }
    }

    /// Whether what waits with these limits may be handed to a machine that asks: as many are free as there are others
    /// before it that could be taken at this moment.
    pub(super) fn is_first_in_limits(&self, set: SetKey, turn: Turn, machine: &Machine) -> bool {
        let own = self.instances.get(&machine.instance).copied();
        let limits = self.named_limits.limits_of(set);
        limits.iter().all(|limit| {
            let free = self.named_limits.free(*limit);
            free > MAX_WOKEN || self.others_before(*limit, turn, own, free) < free
        })
    }

    /// How many are before this one that other machines could take now; `most` at most.
    fn others_before(
        &self,
        limit: LimitKey,
        turn: Turn,
        own: Option<MachineKey>,
        most: u32,
    ) -> u32 {
        let mut before = 0;
        for set in self.open_sets(limit) {
            let heads = { self.named_limits.heads.machines.get(&set) }
                .into_iter()
                .flatten();
            let earlier = heads.take_while(|(first, _)| *first < turn);
            let others = earlier.filter(|(_, machine)| Some(*machine) != own);
            before += others.take((most - before) as usize).count() as u32;
            let heads = { self.named_limits.heads.selectors.get(&set) }
                .into_iter()
                .flatten();
            for (_, (selector, needed)) in heads.take_while(|(first, _)| *first < turn) {
                if before >= most {
                    break;
                }
                let other = |key: MachineKey| Some(key) != own;
                let taker = self.ready_machine(*selector, *needed, other);
                before += u32::from(taker.is_some());
            }
            if before >= most {
                break;
            }
        }
        before
    }

    /// The sets with a limit of which no other limit is exhausted.
    fn open_sets(&self, limit: LimitKey) -> impl Iterator<Item = SetKey> {
        let sets = self.named_limits.sets_with(limit);
        sets.filter(|set| !self.named_limits.is_exhausted(*set))
    }

    /// Wakes the machines that are to take what waits for limits with a free place.
    pub(super) fn wake_for_limits(&mut self) {
        while let Some(limit) = self.named_limits.changed.pop_first() {
            self.wake_for_limit(limit);
        }
    }

    fn wake_for_limit(&mut self, limit: LimitKey) {
        let free = self.named_limits.free(limit).min(MAX_WOKEN) as usize;
        if free == 0 {
            return;
        }
        let mut first: Vec<(Turn, Result<MachineKey, SelectorQueue>)> = Vec::new();
        for set in self.open_sets(limit) {
            let heads = { self.named_limits.heads.machines.get(&set) }
                .into_iter()
                .flatten();
            first.extend(
                heads
                    .take(free)
                    .map(|(turn, machine)| (*turn, Ok(*machine))),
            );
            let heads = { self.named_limits.heads.selectors.get(&set) }
                .into_iter()
                .flatten();
            for (_, queue) in heads.take(MAX_SELECTORS) {
                let entry = self.match_index.entry(queue.0);
                let turns = { entry.by_need.get(&(queue.1, set)) }.into_iter().flatten();
                first.extend(turns.take(free).map(|turn| (*turn, Err(*queue))));
            }
        }
        first.sort_unstable_by_key(|(turn, _)| *turn);
        let (mut woken, mut without) = (0, BTreeSet::new());
        for (_, queue) in first {
            if woken == free {
                return;
            }
            let machine = match queue {
                Ok(machine) => Some(machine),
                Err(queue) if without.contains(&queue) => None,
                Err(queue) => {
                    let asleep = |key: MachineKey| !self.machine(key).waking;
                    let machine = self.ready_machine(queue.0, queue.1, asleep);
                    if machine.is_none() {
                        without.insert(queue);
                    }
                    machine
                }
            };
            if let Some(machine) = machine {
                self.wake(machine);
                woken += 1;
            }
        }
    }

    /// The lists of the first of each queue are right.
    pub(super) fn check_heads(&self) -> Result<(), String> {
        let mut machines: BTreeMap<SetKey, BTreeSet<(Turn, MachineKey)>> = BTreeMap::new();
        for (key, machine) in self.machines.iter().filter(|(_, m)| m.ready.is_some()) {
            for (set, turn) in machine.inbox.firsts() {
                machines.entry(set).or_default().insert((turn, *key));
            }
        }
        if machines != self.named_limits.heads.machines {
            return Err(format!(
                "first of the machines {:?}, recounted {machines:?}",
                self.named_limits.heads.machines
            ));
        }
        let mut selectors: BTreeMap<SetKey, BTreeSet<(Turn, SelectorQueue)>> = BTreeMap::new();
        for (selector, entry) in self.match_index.entries() {
            for ((needed, set), turns) in &entry.by_need {
                if let Some(first) = turns.first().filter(|_| *set != SetKey::NONE) {
                    let queue = (selector, *needed);
                    selectors.entry(*set).or_default().insert((*first, queue));
                }
            }
        }
        match selectors == self.named_limits.heads.selectors {
            true => Ok(()),
            false => Err("the first of the selectors are wrong".into()),
        }
    }
}
