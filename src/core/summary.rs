//! How the server is, at a glance: counts, machines by label, what has waited for longest. All of it comes from indexes;
//! the machines are visited in parts, and no task is looked for.

use super::task::{Place, rfc3339};
use super::{Core, ExecutionKey, MachineKey, TaskKey};
use crate::wire::crew::{LabelSummary, OldestWaiting};
use crate::wire::machine::MachineState;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// The most labels in a summary: more than anybody reads.
pub const MAX_LABELS: usize = 200;
/// The most machines visited in one call: it runs under the lock.
const MAX_VISITED: usize = 2_000;

/// What has been seen of the machines so far.
#[derive(Debug, Default)]
pub struct MachineSummary {
    /// The machines by label.
    pub labels: BTreeMap<Arc<str>, LabelSummary>,
    oldest: Option<ExecutionKey>,
    last: Option<MachineKey>,
}

impl MachineSummary {
    fn waits(&mut self, key: ExecutionKey) {
        self.oldest = Some(self.oldest.map_or(key, |oldest| oldest.min(key)));
    }
}

impl Core {
    /// Adds further machines to a summary. False if there are none left.
    pub fn summarize_machines(&self, summary: &mut MachineSummary) -> bool {
        let after = summary.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.machines.range((after, Bound::Unbounded));
        for (key, machine) in rest.by_ref().take(MAX_VISITED) {
            summary.last = Some(*key);
            if let Some(first) = machine.inbox.first() {
                summary.waits(first);
            }
            let label = summary.labels.entry(machine.label.clone());
            let label = label.or_insert_with(|| LabelSummary {
                label: machine.label.to_string(),
                ..LabelSummary::default()
            });
            *match machine.state {
                MachineState::Online => &mut label.online,
                MachineState::Draining => &mut label.draining,
                MachineState::Offline => &mut label.offline,
            } += 1;
            label.suspended += u32::from(self.is_suspended(*key));
            label.running += machine.active.len() as u32;
            label.queued += machine.inbox.len() as u32;
        }
        rest.next().is_some()
    }

    /// What has waited for longest, once all machines are in the summary.
    pub fn oldest_waiting(&self, mut summary: MachineSummary) -> Option<OldestWaiting> {
        let first = self.match_index.first_queued();
        first
            .into_iter()
            .for_each(|task: TaskKey| summary.waits(ExecutionKey { task, n: 0 }));
        let key = summary.oldest?;
        // It may have been handed out, or forgotten, meanwhile.
        let task = self.tasks.get(&key.task)?;
        task.executions.get(key.n as usize)?;
        Some(OldestWaiting {
            id: task.id.to_string(),
            name: task.spec.name.to_string(),
            created_at: rfc3339(task.created_at),
            msg: self.waits_in_words(key),
        })
    }

    /// What a queued execution waits for, in words.
    fn waits_in_words(&self, key: ExecutionKey) -> String {
        if let Some(suspension) = self.waits_for_suspension(key) {
            return suspension;
        }
        let e = self.execution(key);
        if !e.current.msg.is_empty() {
            return e.current.msg.to_string();
        }
        let set = self.task(key.task).limit_set;
        if let Some(limit) = self.named_limits.why_exhausted(set) {
            return limit;
        }
        match e.place {
            Place::Inbox(machine) => {
                let machine = self.machine(machine);
                let why = match machine.state {
                    MachineState::Online => "is busy",
                    MachineState::Draining => "takes no more work",
                    MachineState::Offline => "is offline",
                };
                format!("waits: {} {why}", machine.label)
            }
            Place::Selector(selector) => {
                let mut machines = self.machines_of(selector).map(|key| self.machine(key));
                match machines.any(|machine| machine.is_live()) {
                    true => "waits for a free machine".into(),
                    false => "waits for a machine: none that matches is online".into(),
                }
            }
            Place::Nowhere | Place::Active(_) => String::new(),
        }
    }
}
