//! What users want of the agents themselves: to take no more work, to take work again, to end.
//!
//! A wish is kept with its machine until a poll of the agent shows that it has come true; it goes with the machine. It takes
//! effect here at once: a machine that is to drain counts as `draining`. So an agent that cannot be told drains all the same,
//! as the server hands it nothing. Only [`Wish::Shutdown`] needs the agent.

use super::agent::is_instance;
use super::invariants::Rule;
use super::machine::Machine;
use super::match_index::SelectorKey;
use super::user::JOIN_ALL;
use super::{Core, ExecutionKey, MachineKey, MachineSnapshot, Refusal, TaskKey, Time};
use crate::wire::agent::{Feature, Poll};
use crate::wire::crew::{Standing, Wanted};
use crate::wire::machine::MachineState;
use crate::wire::task::ExecutionState;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// The most tasks that have not begun of one selector that are examined for an agent that asks what is pending: it runs
/// under the lock. If there are more, something is taken to be pending.
const MAX_UNBEGUN: usize = 1_000;

/// What is in no queue and will be in one again: held until its turn, or between two attempts.
#[derive(Debug, Default)]
pub(super) struct OffQueue {
    /// For the machine with this instance.
    own: BTreeSet<(Arc<str>, ExecutionKey)>,
    /// For any machine that this selector means. Such a selector is not dropped.
    any: BTreeMap<TaskKey, SelectorKey>,
}

/// What is wanted of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// It takes no more work.
    Drain,
    /// It takes work again.
    Undrain,
    /// It ends as after TERM.
    Shutdown,
}

impl Wish {
    /// Whether nothing more is handed to a machine with this wish.
    pub(super) fn is_drain(self) -> bool {
        self != Wish::Undrain
    }

    /// As the API answers it.
    pub(super) fn answer(self) -> Wanted {
        match self {
            Wish::Drain => Wanted::Drain,
            Wish::Undrain => Wanted::Undrain,
            Wish::Shutdown => Wanted::Shutdown,
        }
    }

    /// Whether a poll shows that it has come true.
    fn is_true_of(self, poll: &Poll) -> bool {
        match self {
            Wish::Drain => poll.drained || poll.ending,
            Wish::Undrain => !poll.drained,
            Wish::Shutdown => poll.ending,
        }
    }
}

impl Machine {
    /// What its agent is to be told with the next answer.
    pub(super) fn wish_to_tell(&self) -> Option<Wanted> {
        let wish = self.wish.filter(|_| self.abilities.has(Feature::Crew))?;
        Some(wish.answer())
    }
}

impl Core {
    /// The machines that a name means: the one with this instance, or all with this label. Those that said goodbye are not
    /// meant.
    pub fn machines_named(&self, name: &str) -> Result<Vec<MachineKey>, Refusal> {
        let mut found = match self.instances.get(name) {
            Some(key) => vec![*key],
            None => self.match_index.machines_labelled(name),
        };
        found.retain(|key| !self.machine(*key).left);
        if found.is_empty() {
            let what = match is_instance(name) {
                true => "no machine has the instance or label",
                false => "no machine has the label",
            };
            return Err(Refusal::Unknown(format!("{what} {name:?}")));
        }
        Ok(found)
    }

    /// Refuses a wish that cannot come true for one of these machines.
    pub fn check_wish(&self, machines: &[MachineKey], wish: Wish) -> Result<(), Refusal> {
        let known = { machines.iter() }.filter_map(|key| self.machines.get(key));
        for machine in known {
            let (label, instance) = (&machine.label, &machine.instance);
            let why = match wish {
                Wish::Shutdown if machine.is_restored => {
                    "has not been heard of since the server was started; try again when it was"
                }
                Wish::Shutdown if !machine.abilities.has(Feature::Crew) => {
                    "cannot be shut down by the server: its agent is too old for that; end it where it runs"
                }
                Wish::Undrain if machine.is_ending => "is about to end",
                _ => continue,
            };
            return Err(Refusal::Conflict(format!(
                "agent {label} (instance {instance}) {why}"
            )));
        }
        Ok(())
    }

    /// Notes a wish for a machine, and what follows from it. `None` if the machine is not known any more.
    pub fn wish(&mut self, now: Time, key: MachineKey, wish: Wish) -> Option<MachineSnapshot> {
        let machine = self.machines.get_mut(&key)?;
        let can_be_told = machine.abilities.has(Feature::Crew);
        machine.wish = match wish {
            // It has come true already.
            Wish::Drain if machine.is_drained && machine.wish.is_none() => None,
            Wish::Drain | Wish::Undrain if machine.is_ending => None,
            // One that was asked to end is not asked for less.
            Wish::Drain if machine.wish == Some(Wish::Shutdown) => machine.wish,
            Wish::Undrain if !can_be_told => None,
            Wish::Undrain
                if machine.wish.is_none() && !machine.is_drained && !machine.is_restored =>
            {
                None
            }
            wish => Some(wish),
        };
        self.machine_changed(key);
        self.apply_wish(now, key);
        if self.machine(key).wish_to_tell().is_some() {
            self.wake(key);
        }
        self.machine_snapshot(key)
    }

    /// A machine as it is now.
    pub fn machine_snapshot(&self, key: MachineKey) -> Option<MachineSnapshot> {
        let mut snapshot = self.machines.get(&key)?.snapshot();
        let suspension = self.suspension_of(key);
        snapshot.suspended = suspension.map(|it| it.reason.clone());
        Some(snapshot)
    }

    /// Has the state of a machine follow its wish, before the next poll.
    fn apply_wish(&mut self, now: Time, key: MachineKey) {
        let machine = self.machine(key);
        if machine.state == MachineState::Offline {
            return;
        }
        let state = match self.is_to_drain(machine) || machine.says_draining {
            true => MachineState::Draining,
            false => MachineState::Online,
        };
        if !self.set_machine_state(key, state) {
            return;
        }
        self.refresh_ready(key);
        self.revoke_offers(key);
        if state == MachineState::Online {
            self.machine_mut(key).joins_pending = Some(JOIN_ALL);
            self.machine_is_back(now, key);
            self.join_open_tasks(now, key);
            self.wake(key);
        }
        self.explain_waiting_for(key);
    }

    fn is_to_drain(&self, machine: &Machine) -> bool {
        machine.wish.is_some_and(Wish::is_drain) && self.keeps(Rule::DrainedGetsNothing)
    }

    /// Takes in what a poll says of the agent itself. Whether the machine takes no work.
    pub(super) fn take_crew(&mut self, key: MachineKey, poll: &Poll) -> bool {
        let machine = self.machine_mut(key);
        machine.is_drained = poll.drained;
        machine.is_ending = poll.ending;
        machine.says_draining = poll.draining;
        machine.asks_standing = poll.standing;
        if machine.wish.is_some_and(|wish| wish.is_true_of(poll)) {
            machine.wish = None;
            self.machine_changed(key);
        }
        poll.draining || self.is_to_drain(self.machine(key))
    }

    /// How things stand for a machine whose agent asks for it.
    pub(super) fn standing(&self, key: MachineKey) -> Option<Standing> {
        let machine = self.machine(key);
        machine.asks_standing.then(|| Standing {
            pending: self.could_be_handed_something(key),
            suspended: self.is_suspended(key),
        })
    }

    /// Whether something is queued, held, blocked or between two attempts that could come to a machine.
    fn could_be_handed_something(&self, key: MachineKey) -> bool {
        let machine = self.machine(key);
        if !machine.inbox.is_empty() || !machine.active.is_empty() || self.has_undo_for(key) {
            return true;
        }
        let first = ExecutionKey {
            task: TaskKey(0),
            n: 0,
        };
        let from = Bound::Included((machine.instance.clone(), first));
        let mut own = self.off_queue.own.range((from, Bound::Unbounded));
        if { own.next() }.is_some_and(|(instance, _)| *instance == machine.instance) {
            return true;
        }
        let index = &self.match_index;
        let mut selectors = index.selectors_of(machine.traits_key, &machine.instance);
        selectors.any(|selector| {
            let entry = index.entry(selector);
            let mut needs = entry.by_need.keys();
            needs.any(|(needed, _)| self.may_run(machine, *needed))
                || !entry.off_queue.is_empty()
                || entry.unbegun.len() > MAX_UNBEGUN
                || { entry.unbegun.iter() }.any(|task| self.task(*task).is_blocked())
        })
    }

    fn is_off_queue(&self, key: ExecutionKey) -> bool {
        let e = self.execution(key);
        match e.state {
            ExecutionState::Held => true,
            ExecutionState::Queued => e.current.due_at.is_some(),
            _ => false,
        }
    }

    /// Lists an execution as in no queue, or not: after its state or its pause before a retry has changed.
    pub(super) fn list_off_queue(&mut self, key: ExecutionKey) {
        let is_off = self.is_off_queue(key);
        if self.task(key.task).is_any() {
            let known = self.off_queue.any.get(&key.task).copied();
            match (known, is_off) {
                (None, true) => {
                    let selector = self.selector_key_of(key.task);
                    self.match_index
                        .entry_mut(selector)
                        .off_queue
                        .insert(key.task);
                    self.off_queue.any.insert(key.task, selector);
                }
                (Some(selector), false) => {
                    self.match_index
                        .entry_mut(selector)
                        .off_queue
                        .remove(&key.task);
                    self.off_queue.any.remove(&key.task);
                }
                _ => {}
            }
            return;
        }
        if !is_off && self.off_queue.own.is_empty() {
            return;
        }
        let Some(target) = self.execution(key).target.as_ref() else {
            return;
        };
        let listed = (target.instance.clone(), key);
        match is_off {
            true => drop(self.off_queue.own.insert(listed)),
            false => drop(self.off_queue.own.remove(&listed)),
        }
    }

    /// What is listed as in no queue is exactly what is in none.
    pub(super) fn check_off_queue(&self) -> Result<(), String> {
        let (mut own, mut any) = (BTreeSet::new(), BTreeSet::new());
        for (task, data) in &self.tasks {
            for (n, e) in (0..).zip(&data.executions) {
                let key = ExecutionKey { task: *task, n };
                match (self.is_off_queue(key), data.is_any(), &e.target) {
                    (true, true, _) => drop(any.insert(*task)),
                    (true, false, Some(target)) => drop(own.insert((target.instance.clone(), key))),
                    _ => {}
                }
            }
        }
        if own != self.off_queue.own {
            return Err(format!(
                "off queue {:?}, recounted {own:?}",
                self.off_queue.own
            ));
        }
        let listed: BTreeSet<TaskKey> = self.off_queue.any.keys().copied().collect();
        let is_kept = |(task, selector): (&TaskKey, &SelectorKey)| {
            self.match_index.entry(*selector).off_queue.contains(task)
        };
        match any == listed && self.off_queue.any.iter().all(is_kept) {
            true => Ok(()),
            false => Err(format!("off queue for any {listed:?}, recounted {any:?}")),
        }
    }

    /// What is wanted of an instance, for tests.
    #[doc(hidden)]
    pub fn wish_of(&self, instance: &str) -> Option<Wish> {
        self.machine(*self.instances.get(instance)?).wish
    }
}
