//! What users want of the agents themselves: to take no more work, to take work again, to end.
//!
//! A wish is kept with its machine until a poll of the agent shows that it has come true; it goes with the machine. It takes
//! effect here at once: a machine that is to drain counts as `draining`. So an agent that cannot be told drains all the same,
//! as the server hands it nothing. Only [`Wish::Shutdown`] needs the agent.

use super::agent::is_instance;
use super::invariants::Rule;
use super::machine::Machine;
use super::user::JOIN_ALL;
use super::{Core, MachineKey, MachineSnapshot, Refusal, Time};
use crate::wire::agent::{Feature, Poll};
use crate::wire::crew::Wanted;
use crate::wire::machine::MachineState;
use serde::{Deserialize, Serialize};

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
        if machine.wish.is_some_and(|wish| wish.is_true_of(poll)) {
            machine.wish = None;
            self.machine_changed(key);
        }
        poll.draining || self.is_to_drain(self.machine(key))
    }

    /// What is wanted of an instance, for tests.
    #[doc(hidden)]
    pub fn wish_of(&self, instance: &str) -> Option<Wish> {
        self.machine(*self.instances.get(instance)?).wish
    }
}
