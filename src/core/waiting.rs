//! Tasks that are accepted and have not begun: they wait for a time of their own, or for the end of others (`after.rs`).
//! Time comes first: a task is `scheduled`, then `blocked`.
//!
//! Such a task has no executions. Who matches is settled when it begins: it is then treated as if it were submitted at
//! that moment, and its `ttl` runs from there. What would be a refusal of a submit ends it, with the reason. Each change
//! between the phases goes through [`Core::set_phase`], which keeps the lists; a timer has each begin.
//!
//! To add something to wait for: a field of [`Waiting`], a phase, what ends the wait, and its check in
//! [`Core::check_waiting`].

use super::after::Edge;
use super::later_spec::{Start, Wait};
use super::spec::Spec;
use super::task::{Task, TaskData, rfc3339};
use super::timers::Timer;
use super::{Core, TaskKey, Time};
use crate::wire::duration::TimeSpan;
use crate::wire::task::{Detail, TaskState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The most executions that tasks begin with in one call: it runs under the lock. One task alone may have more.
const MAX_BEGUN: usize = 500;
/// After this time it is tried again to begin a task whose machines are still being counted after a restart.
const COUNT_AGAIN: TimeSpan = TimeSpan::from_secs(1);

/// What a task waits for before it begins. It is kept after that: it says why the task began, or did not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Waiting {
    /// The time that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<Time>,
    pub phase: Phase,
    /// While it is scheduled: when it is looked at next.
    pub due: Time,
    /// What has to end first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Edge>,
    /// How long it may be blocked by that, in milliseconds; a child by outcome may for longer than a `TimeSpan` lasts.
    #[serde(default)]
    pub blocked_ms: u64,
    /// While it is blocked: how long it is at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<Time>,
    /// It is the child by outcome of what it begins after.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_child: bool,
    /// Its parents are kept for it.
    #[serde(default)]
    pub holds: bool,
    /// The detail with the ids of its parents, once something of it was handed out.
    #[serde(skip)]
    pub detail: Option<Arc<Detail>>,
    /// How it ended without having begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unbegun: Option<Unbegun>,
}

/// What a task waits for at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// For its time.
    Scheduled,
    /// For the end of others.
    Blocked,
    /// For nothing any more: it has begun, or has ended.
    Over,
}

/// The end of a task that never began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unbegun {
    pub state: TaskState,
    pub msg: Box<str>,
}

/// The tasks that have not begun.
#[derive(Debug, Default)]
pub(super) struct WaitingTasks {
    scheduled: BTreeSet<TaskKey>,
    blocked: BTreeSet<TaskKey>,
    /// With how many executions tasks have begun since the last call of [`Core::tick`] began.
    begun: usize,
}

impl WaitingTasks {
    /// How many wait for their time.
    pub fn scheduled(&self) -> usize {
        self.scheduled.len()
    }

    /// How many wait for the end of others.
    pub fn blocked(&self) -> usize {
        self.blocked.len()
    }

    /// A tick begins.
    pub fn tick_begins(&mut self) {
        self.begun = 0;
    }

    /// Whether no further task is to begin in this call.
    pub fn has_begun_enough(&self) -> bool {
        self.begun >= MAX_BEGUN
    }
}

impl Waiting {
    /// What a child by outcome waits for.
    pub(super) fn child(now: Time, blocked_ms: u64, parent: Edge) -> Waiting {
        Waiting {
            start_at: None,
            phase: Phase::Blocked,
            due: now,
            after: vec![parent],
            blocked_ms,
            blocked_until: Some(now.later_by(blocked_ms)),
            is_child: true,
            holds: true,
            detail: None,
            unbegun: None,
        }
    }
}

impl TaskData {
    /// What it waits for, if it has not begun.
    pub(super) fn phase(&self) -> Phase {
        self.waiting
            .as_ref()
            .map_or(Phase::Over, |waiting| waiting.phase)
    }

    /// Whether it has neither begun nor ended.
    pub(super) fn is_unbegun(&self) -> bool {
        self.phase() != Phase::Over
    }

    /// Whether it waits for something else than its time, and may come any moment.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_unbegun() && self.phase() != Phase::Scheduled
    }

    /// How it ended, if it never began.
    pub(super) fn unbegun(&self) -> Option<&Unbegun> {
        self.waiting.as_ref()?.unbegun.as_ref()
    }

    /// What it waits for, or why it never began.
    pub(super) fn waiting_msg(&self) -> Option<String> {
        let waiting = self.waiting.as_ref()?;
        match waiting.phase {
            Phase::Scheduled => Some(format!(
                "begins at {}; who matches is settled then",
                rfc3339(waiting.start_at.unwrap_or(waiting.due))
            )),
            Phase::Blocked => Some(match waiting.waits_for() {
                ("end", names) => format!("waits for the end of {names}"),
                (_, names) => {
                    format!("waits until {names} has begun; then it follows machine by machine")
                }
            }),
            Phase::Over => { waiting.unbegun.as_ref() }.map(|unbegun| unbegun.msg.to_string()),
        }
    }
}

impl Core {
    /// What a posted task waits for; none if it begins at once.
    pub(super) fn waiting_of(now: Time, wait: &Wait, after: Vec<Edge>) -> Option<Waiting> {
        let start_at = wait.start.map(|start| match start {
            Start::At(time) => time,
            Start::After(delay) => now.plus(delay),
        });
        let due = start_at.filter(|time| *time > now);
        if due.is_none() && after.is_empty() {
            return None;
        }
        let blocked_ms = wait.blocked_ttl.as_millis();
        Some(Waiting {
            start_at,
            phase: match due {
                Some(_) => Phase::Scheduled,
                None => Phase::Blocked,
            },
            due: due.unwrap_or(now),
            holds: !after.is_empty(),
            blocked_until: due.is_none().then(|| now.later_by(blocked_ms)),
            blocked_ms,
            after,
            is_child: false,
            detail: None,
            unbegun: None,
        })
    }

    /// A task that waits has just been added, or was restored: lists it and sets its timer.
    pub(super) fn list_waiting(&mut self, key: TaskKey) {
        let Some(waiting) = self.task(key).waiting.as_ref() else {
            return;
        };
        let (due, until) = (waiting.due, waiting.blocked_until);
        match waiting.phase {
            Phase::Over => return,
            Phase::Scheduled => {
                self.waiting.scheduled.insert(key);
                self.timers.set(due, Timer::Begin(key));
            }
            Phase::Blocked => {
                self.waiting.blocked.insert(key);
                self.timers
                    .set(until.unwrap_or(due), Timer::BlockedTtl(key));
            }
        }
        self.list_edges(key);
        // Its selector stays compiled: when it begins there is no time for that.
        let selector = self.selector_key_of(key);
        self.match_index.entry_mut(selector).unbegun.insert(key);
    }

    /// Changes what a task waits for. It must wait for something.
    fn set_phase(&mut self, key: TaskKey, phase: Phase) {
        let Some(waiting) = self.task_mut(key).waiting.as_mut() else {
            return;
        };
        let (due, until) = (waiting.due, waiting.blocked_until);
        match std::mem::replace(&mut waiting.phase, phase) {
            Phase::Over => return,
            Phase::Scheduled => {
                self.waiting.scheduled.remove(&key);
                self.timers.cancel(due, Timer::Begin(key));
            }
            Phase::Blocked => {
                self.waiting.blocked.remove(&key);
                self.timers
                    .cancel(until.unwrap_or(due), Timer::BlockedTtl(key));
            }
        }
        self.unlist_edges(key);
        let selector = self.selector_key_of(key);
        self.match_index.entry_mut(selector).unbegun.remove(&key);
        self.list_waiting(key);
    }

    /// The time of a task has come.
    pub(super) fn time_has_come(&mut self, now: Time, key: TaskKey) {
        let Some(task) = self.tasks.get(&key) else {
            return;
        };
        if task.phase() != Phase::Scheduled {
            return;
        }
        if !self.is_blocked(key) {
            return self.begin(now, key);
        }
        self.set_phase_blocked(now, key);
    }

    fn set_phase_blocked(&mut self, now: Time, key: TaskKey) {
        if let Some(waiting) = self.task_mut(key).waiting.as_mut() {
            waiting.blocked_until = Some(now.later_by(waiting.blocked_ms));
        }
        self.set_phase(key, Phase::Blocked);
    }

    /// Has a task begin, as if it were submitted at this moment. What would refuse it ends it.
    pub(super) fn begin(&mut self, now: Time, key: TaskKey) {
        let task = self.task(key);
        let (id, spec) = (task.id.clone(), task.spec.clone());
        if !spec.counts.is_none() && self.is_recounting(now) {
            // The machines that it counts are still coming back.
            self.set_phase(key, Phase::Over);
            if let Some(waiting) = self.task_mut(key).waiting.as_mut() {
                waiting.due = now.plus(COUNT_AGAIN);
                waiting.phase = Phase::Scheduled;
            }
            return self.list_waiting(key);
        }
        match self.prepare(now, &id, &spec, Some(key)) {
            Ok(launch) if launch.is_of_no_machine() => {
                self.waiting.begun += 1;
                let why = "none of the machines of the task that it follows is meant";
                self.end_unbegun(now, key, TaskState::Skipped, why);
            }
            Ok(launch) => {
                self.waiting.begun += launch.targets.len().max(1);
                self.set_phase(key, Phase::Over);
                self.join_the_end(key);
                self.launch(now, key, launch);
            }
            Err(refusal) => {
                self.waiting.begun += 1;
                let why = format!("could not begin: {refusal}");
                self.end_unbegun(now, key, TaskState::Failed, &why);
            }
        }
    }

    /// Ends a task that has not begun. A task that has begun does not change.
    pub(super) fn end_unbegun(&mut self, now: Time, key: TaskKey, state: TaskState, msg: &str) {
        if !self.task(key).is_unbegun() {
            return;
        }
        self.set_phase(key, Phase::Over);
        if let Some(waiting) = self.task_mut(key).waiting.as_mut() {
            waiting.unbegun = Some(Unbegun {
                state,
                msg: msg.into(),
            });
        }
        self.finish_if_done(now, key);
    }

    /// Checks the lists of tasks that wait against the tasks.
    pub(super) fn check_waiting(&self) -> Result<(), String> {
        let (mut scheduled, mut blocked) = (BTreeSet::new(), BTreeSet::new());
        for (key, task) in &self.tasks {
            check_waiting_task(*key, task)?;
            match task.phase() {
                Phase::Scheduled => drop(scheduled.insert(*key)),
                Phase::Blocked => drop(blocked.insert(*key)),
                Phase::Over => {}
            }
            let entry = self.match_index.find_entry(task.spec.selector.text());
            let listed = entry.is_some_and(|entry| entry.unbegun.contains(key));
            if listed != task.is_unbegun() {
                return Err(format!("{key:?}: its selector is kept {listed}"));
            }
        }
        if scheduled != self.waiting.scheduled {
            return Err(format!(
                "scheduled {:?}, recounted {scheduled:?}",
                self.waiting.scheduled
            ));
        }
        if blocked != self.waiting.blocked {
            return Err(format!(
                "blocked {:?}, recounted {blocked:?}",
                self.waiting.blocked
            ));
        }
        let timers = self.timers.iter();
        let own = timers.filter(|(_, it)| matches!(it, Timer::Begin(_) | Timer::BlockedTtl(_)));
        match own.count() == scheduled.len() + blocked.len() {
            true => self.check_dependents(),
            false => Err("something that waits has no timer, or two".into()),
        }
    }

    /// Whether a timer is that of a task which waits for its time.
    pub(super) fn is_time_of(&self, key: TaskKey, time: Time) -> bool {
        let waiting = self.tasks.get(&key).and_then(|task| task.waiting.as_ref());
        waiting.is_some_and(|it| it.phase == Phase::Scheduled && it.due == time)
    }

    /// Whether a timer is that of a task which waits for the end of others.
    pub(super) fn is_blocked_until(&self, key: TaskKey, time: Time) -> bool {
        let waiting = self.tasks.get(&key).and_then(|task| task.waiting.as_ref());
        waiting.is_some_and(|it| it.phase == Phase::Blocked && it.blocked_until == Some(time))
    }
}

fn check_waiting_task(key: TaskKey, task: &Task) -> Result<(), String> {
    let is_empty = task.executions.is_empty() && !task.open;
    if task.is_unbegun() && !(is_empty && task.finished_at.is_none()) {
        return Err(format!("{key:?}: has not begun, and is not empty"));
    }
    if task.unbegun().is_some() && !(is_empty && task.finished_at.is_some()) {
        return Err(format!("{key:?}: never began, and is not over"));
    }
    Ok(())
}

impl Spec {
    /// What it waits for, taken out: what is stored of a task waits for nothing, so a rerun begins at once.
    pub(super) fn take_wait(&mut self) -> Wait {
        self.wait.take().map_or_else(Wait::default, |wait| *wait)
    }
}
