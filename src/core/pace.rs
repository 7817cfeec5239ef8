//! The pace of a task: the data that is kept of it, and what the API answers of it. What changes it is in `pacing.rs`.

use super::Time;
use super::rollout::Plan;
use super::task::{Execution, Task, TaskData, timestamp};
use crate::wire::rollout::{self as wire, RolloutPhase, StopKind};
use crate::wire::task::{Counts, ExecutionState};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A pause of a task, during which it starts nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Paused {
    /// Since when.
    pub since: Time,
    /// When it ends by itself, if it is a pause between two steps; otherwise it ends when a user resumes the task.
    pub until: Option<Time>,
}

/// What stopped a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stopped {
    pub kind: StopKind,
    pub at: Time,
    pub msg: Arc<str>,
    /// The name of the probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
    /// The last of what the probe wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Arc<str>>,
    /// It kept the task from beginning: what was not handed out has failed.
    #[serde(default)]
    pub before_start: bool,
}

impl Stopped {
    /// By this kind of cause.
    pub fn new(kind: StopKind, at: Time, msg: &str) -> Self {
        Stopped {
            kind,
            at,
            msg: msg.into(),
            name: None,
            output: None,
            before_start: false,
        }
    }

    /// That it was stopped, and why.
    pub fn in_words(&self) -> Cow<'_, str> {
        match self.kind {
            StopKind::User | StopKind::Failures => Cow::from(&*self.msg),
            StopKind::Probe | StopKind::KeepAlive => Cow::from(format!("stopped: {}", self.msg)),
        }
    }
}

/// How far a task has come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Pacing {
    /// The plan of its rollout, if it has one.
    pub plan: Option<Plan>,
    /// The present step, from 0.
    pub step: usize,
    pub paused: Option<Paused>,
    pub stopped: Option<Stopped>,
    /// Nothing is handed out until probes have passed.
    #[serde(default)]
    pub is_gated: bool,
    /// All executions before this one have had their turn; without a rollout all have.
    #[serde(skip)]
    pub next: u32,
    /// Held executions that have had their turn and wait for a slot of the window.
    #[serde(skip)]
    pub returned: BTreeSet<u32>,
    /// How many executions of the steps so far have not ended; not counted in the last step.
    #[serde(skip)]
    pub unfinished: u32,
    /// Since it was paused or stopped, all executions before this one have been held back or skipped.
    #[serde(skip)]
    pub swept: u32,
}

/// The pace of a task without a rollout.
impl Default for Pacing {
    fn default() -> Self {
        Pacing {
            plan: None,
            step: 0,
            paused: None,
            stopped: None,
            is_gated: false,
            next: u32::MAX,
            returned: BTreeSet::new(),
            unfinished: 0,
            swept: 0,
        }
    }
}

impl Pacing {
    /// The pace of a task with a rollout.
    pub fn new(plan: Plan) -> Self {
        let mut pacing = Pacing {
            plan: Some(plan),
            next: 0,
            ..Pacing::default()
        };
        pacing.unfinished = pacing.started_when_done().unwrap_or(0);
        pacing
    }

    /// The pace of a task with so many executions and without a rollout, that waits for probes.
    pub fn gated(executions: u32) -> Self {
        Pacing {
            is_gated: true,
            returned: (0..executions).collect(),
            ..Pacing::default()
        }
    }

    /// The pace of a task of which each execution waits for its counterpart, and perhaps for probes.
    pub fn per_machine(mut self) -> Self {
        self.returned.clear();
        self
    }

    /// The pace of a task with so many executions and without a rollout, that is held back for now.
    pub fn held(executions: u32) -> Self {
        Pacing {
            returned: (0..executions).collect(),
            ..Pacing::default()
        }
    }

    /// How many targets have been started when the present step is done; `None` in the last step.
    pub fn started_when_done(&self) -> Option<u32> {
        let steps = &self.plan.as_ref()?.steps;
        (self.step + 1 < steps.len()).then(|| steps[self.step])
    }

    /// An execution of it has ended.
    pub fn ended(&mut self, n: u32) {
        if self.started_when_done().is_some_and(|until| n < until) {
            self.unfinished -= 1;
        }
    }

    /// A machine has joined, with an execution of this number.
    pub fn joined(&mut self, n: u32) {
        if self.plan.is_none() {
            self.returned.insert(n);
        }
    }

    /// Whether it starts nothing now.
    pub fn is_halted(&self) -> bool {
        self.paused.is_some() || self.stopped.is_some() || self.is_gated
    }

    /// Whether it starts nothing any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Whether it is paused: its ttl stands still.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some() && self.stopped.is_none()
    }

    /// When its pause between two steps is over.
    pub fn resumes_at(&self) -> Option<Time> {
        self.paused
            .as_ref()
            .filter(|_| self.stopped.is_none())?
            .until
    }

    /// Whether an execution has had its turn.
    pub fn has_had_its_turn(&self, n: u32) -> bool {
        n < self.next
    }

    /// The same, later by these milliseconds: the server did not run then.
    pub fn later(mut self, by: u64) -> Self {
        if let Some(paused) = &mut self.paused {
            let times = [Some(&mut paused.since), paused.until.as_mut()];
            for time in times.into_iter().flatten() {
                *time = time.later_by(by);
            }
        }
        self
    }
}

impl Task {
    /// The state of its rollout as the API answers it.
    pub(super) fn rollout_state(&self) -> Option<wire::RolloutState<Cow<'_, str>>> {
        let pacing = self.pacing.as_ref()?;
        let plan = pacing.plan.as_ref();
        let steps = plan.map_or_else(Vec::new, |plan| plan.steps.clone());
        let targets = steps.last().copied().unwrap_or(0);
        let state = match () {
            () if pacing.stopped.is_some() => RolloutPhase::Stopped,
            () if self.finished_at.is_some() => RolloutPhase::Done,
            () if pacing.paused.is_some() => RolloutPhase::Paused,
            () => RolloutPhase::Running,
        };
        let resumes_at = pacing.resumes_at().filter(|_| self.finished_at.is_none());
        Some(wire::RolloutState {
            state,
            step: pacing.step as u32 + 1,
            of: steps.len().max(1) as u32,
            started: self.started(),
            failures: self.failures(),
            late_joined: match plan {
                Some(_) => (self.executions.len() as u32).saturating_sub(targets),
                None => 0,
            },
            plan: steps,
            concurrency: plan
                .filter(|plan| plan.window < u32::MAX)
                .map(|plan| plan.window),
            max_failures: plan.map(|plan| plan.max_failures),
            resumes_at: resumes_at.map(timestamp),
        })
    }

    /// What stopped it, as the API answers it.
    pub(super) fn stopped_by(&self) -> Option<wire::StoppedBy<Cow<'_, str>>> {
        let stopped = self.stopped()?;
        Some(wire::StoppedBy {
            kind: stopped.kind,
            name: stopped.name.as_deref().map(Cow::from),
            at: timestamp(stopped.at),
            msg: Cow::from(&*stopped.msg),
            output: stopped.output.as_deref().map(Cow::from),
        })
    }

    /// How many executions are queued, or were handed out.
    fn started(&self) -> u32 {
        let is_started = |e: &&Execution| {
            let is_queued = e.state == ExecutionState::Queued;
            is_queued || e.current.delivered_at.is_some() || !e.past.is_empty()
        };
        self.executions.iter().filter(is_started).count() as u32
    }
}

impl TaskData {
    /// How many executions have failed. Over the whole task, not in each step.
    pub(super) fn failures(&self) -> u32 {
        failures_in(&self.counts) + self.only_dirty()
    }

    /// What stopped it.
    pub(super) fn stopped(&self) -> Option<&Stopped> {
        self.pacing.as_ref()?.stopped.as_ref()
    }

    /// How many executions of the steps that end with this many started have not ended.
    pub(super) fn unfinished_of_first(&self, until: u32) -> u32 {
        let executions = self.executions.iter().take(until as usize);
        executions.filter(|e| !e.state.is_terminal()).count() as u32
    }

    /// How many have failed in the present step; for tests that break the rule.
    pub(super) fn failures_of_step(&self) -> u32 {
        let pacing = self.pacing.as_ref();
        let begin = pacing.and_then(|pacing| {
            let before = pacing.step.checked_sub(1)?;
            pacing.plan.as_ref()?.steps.get(before).copied()
        });
        let mut counts = Counts::default();
        for e in self.executions.iter().skip(begin.unwrap_or(0) as usize) {
            *counts.of(e.state) += 1;
        }
        failures_in(&counts) + self.only_dirty()
    }

    /// How many executions ended well, or were canceled, and left an undo that is failed or owed.
    fn only_dirty(&self) -> u32 {
        if self.dirty() == 0 {
            return 0;
        }
        let ended = [ExecutionState::Succeeded, ExecutionState::Canceled];
        let ended = self.executions.iter().filter(|e| ended.contains(&e.state));
        ended.filter(|e| e.current.is_dirty()).count() as u32
    }

    /// Whether it starts nothing now.
    pub(super) fn is_halted(&self) -> bool {
        self.pacing
            .as_ref()
            .is_some_and(|pacing| pacing.is_halted())
    }

    /// Whether it was stopped.
    pub(super) fn is_stopped(&self) -> bool {
        { self.pacing.as_ref() }.is_some_and(|pacing| pacing.is_stopped())
    }

    /// Whether it is paused: its ttl stands still.
    pub(super) fn is_paused(&self) -> bool {
        { self.pacing.as_ref() }.is_some_and(|pacing| pacing.is_paused())
    }
}

/// How many of the executions that are counted have failed, for `maxFailures`.
fn failures_in(counts: &Counts) -> u32 {
    counts.failed + counts.timed_out + counts.lost + counts.expired
}
