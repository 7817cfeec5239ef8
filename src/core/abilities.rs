//! What a task asks of an agent, and what an agent can do.
//!
//! A task for any machine goes only to a machine whose agent can run it. The others wait in one queue per set of
//! abilities that is needed, so a poll looks at the first of each queue, not at every task.

use super::machine::{Kind, Machine};
use super::match_index::SelectorKey;
use super::named_limits::SetKey;
use super::order::Turn;
use super::original::unknown_field;
use super::{Core, ExecutionKey, MachineKey, TaskKey};
use crate::wire::agent::Feature;
use crate::wire::task::Detail;
use std::collections::{BTreeMap, BTreeSet};

/// The most waiting tasks whose message is set when a machine appears or goes: that is done under the lock.
const MAX_EXPLAINED: usize = 1_000;
/// The most selectors for which that is done, for the same reason.
const MAX_SELECTORS: usize = 20;
/// The most machines of a selector that are examined for that, for the same reason. If more match, no message is set.
const MAX_COMPARED: usize = 1_000;

/// A set of abilities: a bit for each [`Feature`], and one for what every version of our agent can do and the
/// original's cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Abilities(u32);

/// Tasks that wait for a machine, by the abilities that they need and their limits.
pub(super) type WaitingByNeed = BTreeMap<(Abilities, SetKey), BTreeSet<Turn>>;

impl Abilities {
    /// The abilities of the original's agents, and the need of a task that they can run.
    pub const ORIGINAL: Self = Abilities(0);
    /// The abilities of the first version of our agent.
    const OURS: Self = Abilities(1 << 31);

    /// The abilities of an agent of this kind with these features.
    pub fn of_agent(kind: Kind, features: impl IntoIterator<Item = Feature>) -> Self {
        match kind {
            Kind::Original => Self::ORIGINAL,
            Kind::Agent => features.into_iter().fold(Self::OURS, Self::with),
        }
    }

    /// The abilities that a command needs.
    pub fn needed_by(detail: &Detail) -> Self {
        match unknown_field(detail) {
            None => Self::ORIGINAL,
            Some(_) => detail.needs().fold(Self::OURS, Self::with),
        }
    }

    fn with(self, feature: Feature) -> Self {
        Abilities(self.0 | 1 << feature as u32)
    }

    /// Whether it includes a feature.
    pub fn has(self, feature: Feature) -> bool {
        self == self.with(feature)
    }

    /// Whether these abilities include all that are needed.
    pub fn cover(self, needed: Self) -> bool {
        needed.0 & !self.0 == 0
    }
}

impl Core {
    /// The abilities that the executions of a task need.
    pub(super) fn needs_of(&self, task: TaskKey) -> Abilities {
        let spec = &self.task(task).spec;
        let needed = Abilities::needed_by(&spec.detail);
        match spec.probes_targets() {
            true => needed.with(Feature::Probes),
            false => needed,
        }
    }

    /// Sets the message of a waiting execution, if no agent on the machines that match can run it.
    pub(super) fn explain_waiting(&mut self, key: ExecutionKey, selector: SelectorKey) {
        let needed = self.needs_of(key.task);
        if needed != Abilities::ORIGINAL && self.is_beyond_all(selector, needed, usize::MAX) {
            self.set_waiting_message(key, selector);
        }
    }

    /// The same for everything that waits under a selector that means this machine, when it appears or goes.
    pub(super) fn explain_waiting_for(&mut self, machine: MachineKey) {
        let machine = self.machine(machine);
        let index = &self.match_index;
        let mut unexplained = Vec::new();
        let selectors = index.selectors_of(machine.traits_key, &machine.instance);
        let with_tasks = selectors.filter(|selector| !index.entry(*selector).by_need.is_empty());
        for selector in with_tasks.take(MAX_SELECTORS) {
            let waiting = index.entry(selector).by_need.iter();
            let beyond = waiting.filter(|((needed, _), _)| {
                *needed != Abilities::ORIGINAL
                    && self.is_beyond_all(selector, *needed, MAX_COMPARED)
            });
            let turns = beyond.flat_map(|(_, turns)| turns);
            let left = MAX_EXPLAINED - unexplained.len();
            unexplained.extend(turns.take(left).map(|turn| (selector, turn.key)));
        }
        for (selector, execution) in unexplained {
            self.set_waiting_message(execution, selector);
        }
    }

    /// Whether there are machines that match, and none of their agents has these abilities. False if more than `most`
    /// machines match.
    fn is_beyond_all(&self, selector: SelectorKey, needed: Abilities, most: usize) -> bool {
        let mut all = self.live_machines_of(selector).peekable();
        if all.peek().is_none() {
            return false;
        }
        let mut looked_at = all.by_ref().take(most);
        looked_at.all(|machine| !machine.abilities.cover(needed)) && all.next().is_none()
    }

    fn set_waiting_message(&mut self, key: ExecutionKey, selector: SelectorKey) {
        let detail = &self.task(key.task).spec.detail;
        let only_originals = self.live_machines_of(selector).all(Machine::is_original);
        let msg = match (unknown_field(detail), detail.needs().next()) {
            (Some(field), _) if only_originals => {
                format!(
                    "detail.{field}: waits for a sidebike agent; the original's agents cannot do it"
                )
            }
            (_, Some(feature)) => {
                let lacking = { self.live_machines_of(selector) }
                    .filter(|machine| !machine.is_original())
                    .find_map(|machine| detail.needs().find(|need| !machine.abilities.has(*need)));
                format!(
                    "detail.{}: waits for a machine whose agent can do it; an agent of the server's version ({}) can",
                    lacking.unwrap_or(feature).word(),
                    env!("CARGO_PKG_VERSION")
                )
            }
            _ if self.task(key.task).spec.probes_targets() => format!(
                "probes: waits for a machine whose agent can run them; an agent of the server's version ({}) can",
                env!("CARGO_PKG_VERSION")
            ),
            _ => return,
        };
        if *self.execution(key).current.msg != *msg {
            self.execution_mut(key).current.msg = msg.into();
        }
    }

    /// The live machines that match.
    fn live_machines_of(&self, selector: SelectorKey) -> impl Iterator<Item = &Machine> {
        let machines = self.machines_of(selector).map(|key| self.machine(key));
        machines.filter(|machine| machine.is_live())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_an_ability_of_its_own() {
        let none = Abilities::of_agent(Kind::Agent, []);
        let all = Abilities::of_agent(Kind::Agent, Feature::ALL);
        for feature in Feature::ALL {
            let one = Abilities::of_agent(Kind::Agent, [feature]);
            let others = Feature::ALL.into_iter().filter(|other| *other != feature);
            assert!(all.cover(one) && !none.cover(one));
            assert!(!Abilities::of_agent(Kind::Agent, others).cover(one));
        }
        assert!(none.cover(Abilities::ORIGINAL) && !Abilities::ORIGINAL.cover(none));
    }
}
