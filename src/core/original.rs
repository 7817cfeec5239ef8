//! The original's agents: what they can run, when they are free, and their three calls.
//!
//! Such an agent pings, fetches one task when a ping says that there is one, runs it, and reports once. It cannot be
//! told anything while it runs a task; what it fetches meanwhile waits inside it, out of reach of a cancel. So a
//! machine with such an agent has one place, and the place stays taken until the agent reports, or is overdue, or was
//! replaced by another process.
//!
//! Its calls say nothing of a restart: the first ping of a process is the same as any other. The connection tells. The
//! agent keeps one connection and uses it for every call, so a ping that opens another one comes from another process.
//! A proxy between them may do the same, so this is not proof: the machine is handed the next task, but what it was
//! handed before is `lost` only once a later task has been reported. (The agent runs one after the other.) A call over
//! the earlier connection shows that its process still runs.

use super::firing::SCHEDULED_FOR;
use super::machine::Machine;
use super::tick::ORIGINAL_AT_MOST;
use super::{Core, ExecutionKey, MachineKey, Refusal, Time};
use crate::wire::agent::{AttemptId, Ended, Orders, Piece, Verdict};
use crate::wire::machine::MachineState;
use crate::wire::task::{Detail, ExecutionState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How the instance of a machine with the original's agent begins.
const INSTANCE_PREFIX: &str = "original:";

/// The connection by which a call of an original's agent came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its number; no other connection has it.
    pub connection: u64,
    /// The call was the first one over it.
    pub is_new: bool,
}

/// What is known of a machine's agent, if it is the original's.
#[derive(Debug, Default)]
pub(super) struct OriginalAgent {
    /// The connection over which the latest task was fetched, if the agent had used it before: only then a new
    /// connection says anything.
    fetched_over: Option<u64>,
    /// The same of the process before, while some of `doubted` may still run.
    earlier: Option<u64>,
    /// What was handed to a process that was probably replaced since. A part of the machine's `active`.
    pub doubted: BTreeSet<ExecutionKey>,
    /// Attempts that were canceled while the agent had them, and have not been reported.
    pub canceled: Vec<CanceledAttempt>,
}

/// An attempt that was canceled and may still run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CanceledAttempt {
    id: AttemptId,
    /// When its report is overdue.
    until: Time,
}

impl OriginalAgent {
    /// One of which only this is known.
    pub fn with(canceled: Vec<CanceledAttempt>) -> Self {
        OriginalAgent {
            canceled,
            ..OriginalAgent::default()
        }
    }
}

impl CanceledAttempt {
    /// The same after a time, in milliseconds, during which nothing could be reported.
    pub fn later(self, by: u64) -> Self {
        CanceledAttempt {
            until: self.until.later_by(by),
            ..self
        }
    }
}

/// The field of a task that the original's agent does not know, if it has one. A new field of a detail belongs here, or
/// is a `Feature`, unless a command may run without it.
pub(super) fn unknown_field(detail: &Detail) -> Option<&'static str> {
    // A command may run without the variables that the server adds.
    let has_env = { detail.env.iter().flatten() }.any(|(name, _)| name != SCHEDULED_FOR);
    let has_stdin = detail.stdin.as_ref().is_some_and(|text| !text.is_empty());
    match detail {
        Detail { argv: Some(_), .. } => Some("argv"),
        _ if has_env => Some("env"),
        _ if has_stdin => Some("stdin"),
        _ => detail.needs().next().map(|need| need.word()),
    }
}

/// The instance of a machine with the original's agent. Our agents' instances are hexadecimal, so the two
/// cannot be the same.
pub fn original_instance(label: &str) -> String {
    format!("{INSTANCE_PREFIX}{label}")
}

/// Whether this is the instance of such a machine.
pub fn is_of_original(instance: &str) -> bool {
    instance.starts_with(INSTANCE_PREFIX)
}

impl Core {
    /// A ping: registers the machine, or notes that it is there. Whether a task is to be fetched.
    pub fn ping_of_original(
        &mut self,
        now: Time,
        label: &str,
        link: Option<Link>,
    ) -> Result<bool, Refusal> {
        let key = self.register_original(now, &original_instance(label), label)?;
        self.note_link(now, key, link, true);
        Ok(self.has_work_for(key))
    }

    /// Hands out the next task, one at most. `None` if no machine with this label has pinged.
    pub fn fetch_of_original(
        &mut self,
        now: Time,
        label: &str,
        link: Option<Link>,
    ) -> Option<Orders<Arc<Detail>>> {
        let key = self.original(label)?;
        self.note_link(now, key, link, false);
        let orders = self.collect(now, key);
        if !orders.start.is_empty() {
            let kept = link.filter(|link| !link.is_new);
            self.machine_mut(key).original.fetched_over = kept.map(|link| link.connection);
        }
        Some(orders)
    }

    /// A hand-out was not sent, because it was canceled while it was being saved: its place is free.
    pub fn not_sent_to_original(&mut self, label: &str, id: &AttemptId) {
        let Some(key) = self.original(label) else {
            return;
        };
        let canceled = &mut self.machine_mut(key).original.canceled;
        let known = canceled.len();
        canceled.retain(|canceled| canceled.id != *id);
        if canceled.len() < known {
            self.machine_changed(key);
        }
    }

    /// Processes a result, with its output.
    pub fn done_of_original(
        &mut self,
        now: Time,
        label: &str,
        link: Option<Link>,
        piece: Piece,
        ended: &Ended,
    ) -> Option<Verdict> {
        let key = self.original(label);
        if let Some(key) = key {
            self.note_link(now, key, link, false);
            let canceled = &mut self.machine_mut(key).original.canceled;
            let known = canceled.len();
            canceled.retain(|canceled| canceled.id != ended.id);
            if canceled.len() < known {
                self.machine_changed(key);
            }
        }
        let execution = self.find(&ended.id.execution);
        let was_doubted = key.zip(execution).is_some_and(|(key, execution)| {
            let original = &self.machine(key).original;
            original.doubted.contains(&execution)
        });
        let instance = original_instance(label);
        let verdict = self
            .done(now, &instance, &[piece], std::slice::from_ref(ended))
            .pop();
        let taken = verdict.as_ref().is_some_and(|verdict| verdict.taken);
        if let Some(key) = key.filter(|_| taken && !was_doubted) {
            self.lose_doubted(now, key);
        }
        verdict
    }

    /// The machine of the original's agent with this label, if it has pinged.
    pub(super) fn original(&self, label: &str) -> Option<MachineKey> {
        self.instances.get(&*original_instance(label)).copied()
    }

    /// The label of the original's machine that was handed this attempt: reports of versions before 0.2.7 do not
    /// name it.
    pub fn original_with(&self, id: &AttemptId) -> Option<Arc<str>> {
        let execution = self.execution(self.find(&id.execution)?);
        let target = execution.target.as_ref()?;
        let is_original = *target.instance == *original_instance(&target.label);
        is_original.then(|| target.label.clone())
    }

    /// Takes in what the connection of a call says of the agent's process.
    fn note_link(&mut self, now: Time, key: MachineKey, link: Option<Link>, is_ping: bool) {
        let machine = self.machine_mut(key);
        let original = &mut machine.original;
        let pending = original.canceled.len();
        original.canceled.retain(|canceled| now < canceled.until);
        let mut has_changed = original.canceled.len() < pending;
        let mut doubted_twice = BTreeSet::new();
        match (link, original.fetched_over) {
            (Some(link), _) if original.earlier == Some(link.connection) => {
                original.earlier = None;
                original.doubted.clear();
            }
            // A report may open a connection while a ping uses the usual one.
            (Some(link), Some(usual)) if is_ping && link.is_new && link.connection != usual => {
                let active = machine.active.clone();
                doubted_twice = std::mem::replace(&mut original.doubted, active);
                original.earlier = original.fetched_over.take();
                has_changed |= !std::mem::take(&mut original.canceled).is_empty();
            }
            _ => {}
        }
        if has_changed {
            self.machine_changed(key);
        }
        self.lose(now, doubted_twice);
    }

    /// A later task has been reported, so what a replaced process was handed cannot run here any more.
    fn lose_doubted(&mut self, now: Time, key: MachineKey) {
        let original = &mut self.machine_mut(key).original;
        original.earlier = None;
        let doubted = std::mem::take(&mut original.doubted);
        self.lose(now, doubted);
    }

    fn lose(&mut self, now: Time, executions: BTreeSet<ExecutionKey>) {
        for execution in executions {
            let msg = "its agent was started again while it ran";
            self.end_attempt(now, execution, ExecutionState::Lost, msg);
        }
    }

    /// Cancels what the original's agent was handed. It cannot be told, so its place stays taken.
    pub(super) fn cancel_at_original(&mut self, now: Time, key: ExecutionKey, machine: MachineKey) {
        let id = self.task(key.task).attempt_id(key);
        let overdue = self.execution(key).current.overdue_at;
        let until = overdue.unwrap_or(now.plus(ORIGINAL_AT_MOST));
        let original = &mut self.machine_mut(machine).original;
        if !original.doubted.contains(&key) {
            original.canceled.push(CanceledAttempt { id, until });
            self.machine_changed(machine);
        }
        let msg = "canceled; the original's agent cannot be told, its command may still run";
        self.end_attempt(now, key, ExecutionState::Canceled, msg);
    }

    /// Ends an execution that is queued for a machine whose agent cannot express it. False if it can.
    pub(super) fn fail_if_unknown_to(
        &mut self,
        now: Time,
        key: ExecutionKey,
        machine: MachineKey,
    ) -> bool {
        if !self.machine(machine).is_original() {
            return false;
        }
        let spec = &self.task(key.task).spec;
        let field = unknown_field(&spec.detail).map(|field| format!("detail.{field}"));
        let files = { spec.files.as_ref() }.map(|files| match files.update {
            Some(_) => "update".to_owned(),
            None => "files".to_owned(),
        });
        let Some(field) = field.or(files) else {
            return false;
        };
        let msg = format!(
            "{field}: the original's agent on this machine cannot do it; it needs a sidebike agent"
        );
        self.execution_mut(key).target = Some(self.target(machine));
        self.end_attempt(now, key, ExecutionState::Failed, &msg)
    }

    /// When a task that is handed out now begins at the latest: a process that was not replaced after all runs what
    /// it has first.
    pub(super) fn begins_by(&self, now: Time, machine: &Machine) -> Time {
        let doubted = machine.original.doubted.iter();
        let overdue = doubted.filter_map(|key| self.execution(*key).current.overdue_at);
        overdue.max().unwrap_or(now).max(now)
    }

    /// Our agent takes over a label: the machine with the original's agent is gone at once.
    pub(super) fn replace_original(&mut self, now: Time, label: &str) {
        let Some(key) = self.original(label) else {
            return;
        };
        if self.machine(key).state != MachineState::Offline {
            self.take_offline(now, key, "a sidebike agent has taken its label");
        }
        self.drop_machine(now, key);
    }
}
