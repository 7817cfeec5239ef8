//! What a task waits for, in words: where it stands among what is handed out next, and why it is not handed out now.
//!
//! It is found out when somebody looks at one task, under the lock, so all of it is bounded. To add a reason: a line in
//! `why_it_waits`, in the order in which the reasons have to go away.

use super::loss::CAUTION;
use super::match_index::SelectorKey;
use super::named_limits::SetKey;
use super::order::{Turn, count_before};
use super::task::{Place, Waits};
use super::{Core, ExecutionKey, TaskKey};
use crate::wire::machine::MachineState;
use crate::wire::order::Position;
use crate::wire::task::{ExecutionState, TaskState};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The most machines that are looked at to say how many match.
const MAX_MACHINES: usize = 1_000;
/// The most selectors whose queues are counted for a position, and the most traits by which they are found.
const MAX_SELECTORS: usize = 200;
const MAX_TRAITS: usize = 100;

/// What a task waits for.
#[derive(Debug, Clone)]
pub(super) struct WaitsFor {
    pub position: Option<Position>,
    pub msg: Box<str>,
}

impl Core {
    /// What a task waits for: one that any machine may run, or that is held back as a whole. None if it does not wait, or
    /// says itself what it waits for.
    pub(super) fn waits_for(&self, key: TaskKey) -> Option<WaitsFor> {
        let task = self.tasks.get(&key)?;
        if task.finished_at.is_some() {
            return None;
        }
        let waits_for_key = self.waits_for_key(key) && task.counts.held > 0;
        if waits_for_key {
            let msg = "waits until the task that it replaces has ended".into();
            return Some(WaitsFor {
                position: None,
                msg,
            });
        }
        if !task.is_halted()
            && let Some(msg) = self.waits_machine_by_machine(key)
        {
            return Some(WaitsFor {
                position: None,
                msg: msg.into(),
            });
        }
        if task.state() == TaskState::Waiting && !task.is_any() {
            let msg = self
                .why_none_is_meant(self.match_index.key_if_known(&task.spec.selector)?)?
                .into();
            return Some(WaitsFor {
                position: None,
                msg,
            });
        }
        let execution = ExecutionKey { task: key, n: 0 };
        let first = task.executions.first().filter(|_| task.is_any())?;
        if first.state != ExecutionState::Queued {
            return None;
        }
        let Place::Selector(selector) = first.place else {
            return None;
        };
        let msg = self.why_it_waits(key, selector)?;
        let position = Some(self.position_of(self.turn_of(execution), selector, task.limit_set));
        Some(WaitsFor {
            position,
            msg: msg.into(),
        })
    }

    /// What the first waiting executions of a task wait for, where that does not follow from the task itself.
    pub(super) fn waits_of(&self, key: TaskKey) -> Waits {
        let mut waits = self.suspensions_in_words(key);
        waits.extend(self.counterparts_in_words(key));
        (!waits.is_empty()).then(|| Arc::new(waits))
    }

    /// Why what any machine may run is not handed out now.
    fn why_it_waits(&self, key: TaskKey, selector: SelectorKey) -> Option<String> {
        let task = self.task(key);
        let machines = self.machines_of(selector).take(MAX_MACHINES);
        let (mut known, mut live, mut suspended) = (0, 0, 0);
        for key in machines {
            known += 1;
            let is_live = self.machine(key).is_live();
            live += usize::from(is_live);
            suspended += usize::from(is_live && self.is_suspended(key));
        }
        let many = if known == MAX_MACHINES {
            " or more"
        } else {
            ""
        };
        if known == 0 {
            return Some(match task.matched() {
                0 => "no machine matches yet; it goes to the first that appears within its ttl".into(),
                _ => "no machine that matches is known any more; it goes to the first that appears within its ttl".into(),
            });
        }
        if live == 0 {
            return Some(format!(
                "none of the {known}{many} machines that match is online"
            ));
        }
        if suspended == live
            && let Some(why) = self.suspension_among(selector)
        {
            return Some(why);
        }
        if self.holds_back_any() {
            return Some(format!(
                "the database has lost what it had saved: a machine may run it already; it is handed out when all could say so, within {} s",
                CAUTION.as_millis() / 1_000
            ));
        }
        if let Some(why) = self.named_limits.why_exhausted(task.limit_set) {
            return Some(why);
        }
        Some(format!(
            "waits for a free machine, of {live}{many} that match"
        ))
    }

    /// Why a task for all machines that match has none: those that there are take no work. None if there is none.
    fn why_none_is_meant(&self, selector: SelectorKey) -> Option<String> {
        let machines = self.machines_of(selector).take(MAX_MACHINES);
        let (mut draining, mut offline) = (0, 0);
        for key in machines {
            match self.machine(key).state {
                MachineState::Draining => draining += 1,
                MachineState::Offline => offline += 1,
                MachineState::Online => {}
            }
        }
        (draining + offline > 0).then(|| {
            format!(
                "no machine that matches takes work now, {draining} draining and {offline} offline; it goes to the first that does within its ttl"
            )
        })
    }

    /// Where something stands among what is handed out before it: all that waits for any machine, under a selector that
    /// shares machines with its own. Of what counts for exhausted limits, only that which counts for the same.
    fn position_of(&self, turn: Turn, selector: SelectorKey, set: SetKey) -> Position {
        let index = &self.match_index;
        let traits = index.entry(selector).traits.iter().take(MAX_TRAITS);
        let others = traits.flat_map(|traits| &index.traits(*traits).selectors);
        let others = others.copied().take(MAX_SELECTORS);
        let selectors: BTreeSet<_> = others.chain([selector]).collect();
        let is_exhausted = self.named_limits.is_exhausted(set);
        let mut before = 0;
        for selector in selectors {
            for ((_, of), turns) in &index.entry(selector).by_need {
                let counts = match is_exhausted {
                    true => *of == set,
                    false => !self.named_limits.is_exhausted(*of),
                };
                if counts {
                    before += count_before(turns, turn, Position::MOST - before);
                }
            }
        }
        match before >= Position::MOST {
            true => Position::Beyond,
            false => Position::At(before + 1),
        }
    }
}
