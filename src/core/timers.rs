//! Everything that happens at a point in time, as one ordered set.
//!
//! To add a timer: a variant of [`Timer`], its handler in `tick.rs`, where it is set and canceled, and its
//! check in `invariants.rs`. Whoever sets a timer remembers its time, so that it can be canceled.

use super::named_limits::LimitKey;
use super::probe_data::ProbeKey;
use super::{ExecutionKey, MachineKey, TaskKey, Time};
use std::collections::BTreeSet;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A machine may have been silent for too long.
    MachineSilent(MachineKey),
    /// An offline machine is forgotten.
    ForgetMachine(MachineKey),
    /// A retry has waited too long to be started.
    AttemptTtl(ExecutionKey, u32),
    /// The pause before a retry is over.
    AttemptDue(ExecutionKey, u32),
    /// A machine should have reported the end of this attempt by now.
    AttemptOverdue(ExecutionKey, u32),
    /// A task has waited too long to be started, and machines may no longer join it.
    TaskTtl(TaskKey),
    /// A task that waits for its time begins.
    Begin(TaskKey),
    /// A task has waited too long for the end of others.
    BlockedTtl(TaskKey),
    /// Executions of a task have waited too long for those of another one.
    CounterpartTtl(TaskKey),
    /// There was more to settle than one call does.
    Settle,
    /// The pause between two steps of a task is over.
    PauseOver(TaskKey),
    /// There was more to do for the pace of a task than one call does.
    Pace(TaskKey),
    /// A run of a probe begins, or has no result in time.
    Probe(ProbeKey),
    /// The pool of a task is counted.
    KeepAlive(TaskKey),
    /// A rate has a token again.
    Limit(LimitKey),
    /// A finished task is forgotten.
    ForgetTask(TaskKey),
    /// A suspension ends by itself.
    SuspensionEnds,
    /// There are more machines to apply suspensions to than one call does.
    SuspensionSweep,
    /// It is looked which queues have only suspended machines.
    SuspendedQueues,
    /// What any machine may run is handed out again after a loss.
    CautionEnds,
}

/// The timers that are set, in order of time.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Time, Timer)>);

impl Timers {
    /// Sets a timer.
    pub fn set(&mut self, time: Time, timer: Timer) {
        self.0.insert((time, timer));
    }

    /// Cancels a timer, if it is set.
    pub fn cancel(&mut self, time: Time, timer: Timer) {
        self.0.remove(&(time, timer));
    }

    /// The time of the next timer.
    pub fn next(&self) -> Option<Time> {
        self.0.first().map(|(time, _)| *time)
    }

    /// Takes the next timer whose time has come.
    pub fn pop_due(&mut self, now: Time) -> Option<Timer> {
        self.next().filter(|time| *time <= now)?;
        self.0.pop_first().map(|(_, timer)| timer)
    }

    /// All timers, in order of time.
    pub fn iter(&self) -> impl Iterator<Item = &(Time, Timer)> {
        self.0.iter()
    }
}
