//! The pace of a task: in which steps its targets get their turn, how many at once, when it pauses and when it stops.
//!
//! The executions of a task with a rollout are numbered in its order and wait as `held`. [`Core::pace`] gives them
//! their turns, and is called after everything that may allow a further one: an end, the end of a pause, a machine
//! that is back. What it does in one call is bounded; a timer goes on with the rest. A task without a rollout has a
//! pace only once it was paused or stopped.
//!
//! An execution whose turn has come and whose machine is not online stays `held` and takes no place of the window; its
//! `ttl` has begun. It gets a place when its machine is back.

use super::invariants::Rule;
use super::lifecycle::Event;
use super::selector::Selector;
use super::task::{Place, Task, TaskData};
use super::timers::Timer;
use super::{Core, ExecutionKey, MachineKey, Refusal, TaskKey, Time};
use crate::wire::duration::TimeSpan;
use crate::wire::rollout::{self as wire, Order, Pause, RolloutPhase, Share, StopKind};
use crate::wire::task::{ExecutionState, Mode};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The most turns given, or executions skipped, in one call: it runs under the lock.
const MAX_TURNS: usize = 500;
/// When it goes on with the rest.
const SOON: TimeSpan = TimeSpan::from_millis(1);
/// The most steps of a rollout.
const MAX_STEPS: usize = 100;

/// A checked rollout, with the defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// As it was posted.
    pub posted: wire::Rollout,
    /// The order of its targets.
    pub order: Order,
    /// Those that are the first step.
    pub canary: Option<Selector>,
}

/// The numbers of a rollout for a certain number of targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// How many targets have been started when each step is done. The last step is everything, also what joins later.
    pub steps: Vec<u32>,
    /// The most executions at once.
    pub window: u32,
    /// It stops when more have failed.
    pub max_failures: u32,
}

impl Rollout {
    /// The plan for so many targets, of which these are the first step.
    pub(super) fn plan(&self, canaries: u32, total: u32) -> Plan {
        let shares = match &*self.posted.steps {
            [] => &[Share::Percent(100)],
            steps => steps,
        };
        let shares = shares.iter().map(|share| share.rounded_down(total));
        let mut steps: Vec<u32> = Vec::new();
        for until in (canaries > 0).then_some(canaries).into_iter().chain(shares) {
            let started = steps.last().copied().unwrap_or(0);
            if started < total {
                steps.push(until.clamp(started + 1, total));
            }
        }
        // The last one is everything, whatever it says.
        if let Some(last) = steps.last_mut() {
            *last = total;
        }
        let window = self.posted.concurrency.map(|share| share.rounded_up(total));
        let max_failures = self.posted.max_failures.unwrap_or(Share::Count(0));
        Plan {
            steps,
            window: window.unwrap_or(u32::MAX).max(1),
            max_failures: max_failures.rounded_down(total),
        }
    }
}

/// Why a task starts nothing for the time being.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Paused {
    /// Since when.
    since: Time,
    /// When the pause between two steps is over; it waits for somebody, if absent.
    until: Option<Time>,
}

/// What stopped a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stopped {
    kind: StopKind,
    at: Time,
    msg: Arc<str>,
}

/// How far a task has come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Pacing {
    /// The plan of its rollout, if it has one.
    plan: Option<Plan>,
    /// The present step, from 0.
    step: usize,
    paused: Option<Paused>,
    stopped: Option<Stopped>,
    /// All executions before this one have had their turn; without a rollout all have.
    #[serde(skip)]
    next: u32,
    /// Those that can be given a place again.
    #[serde(skip)]
    returned: BTreeSet<u32>,
    /// How many executions of the steps so far have not ended; not counted in the last step.
    #[serde(skip)]
    unfinished: u32,
    /// What was held back or skipped of it, since it was paused or stopped: everything before this one.
    #[serde(skip)]
    swept: u32,
}

/// That of a task without a rollout.
impl Default for Pacing {
    fn default() -> Self {
        Pacing {
            plan: None,
            step: 0,
            paused: None,
            stopped: None,
            next: u32::MAX,
            returned: BTreeSet::new(),
            unfinished: 0,
            swept: 0,
        }
    }
}

impl Pacing {
    /// That of a task with a rollout.
    pub fn new(plan: Plan) -> Self {
        let mut pacing = Pacing {
            plan: Some(plan),
            next: 0,
            ..Pacing::default()
        };
        pacing.unfinished = pacing.started_when_done().unwrap_or(0);
        pacing
    }

    /// How many targets have been started when the present step is done; `None` in the last step.
    fn started_when_done(&self) -> Option<u32> {
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
        self.paused.is_some() || self.stopped.is_some()
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
    fn has_had_its_turn(&self, n: u32) -> bool {
        n < self.next
    }

    /// The same after a time, in milliseconds, that does not count.
    pub fn later(mut self, by: u64) -> Self {
        if let Some(paused) = &mut self.paused {
            for time in [Some(&mut paused.since), paused.until.as_mut()] {
                time.into_iter()
                    .for_each(|time| time.0 = time.0.saturating_add(by));
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
            resumes_at: resumes_at.map(super::task::timestamp),
        })
    }

    /// What stopped it, as the API answers it.
    pub(super) fn stopped_by(&self) -> Option<wire::StoppedBy<Cow<'_, str>>> {
        let stopped = self.pacing.as_ref()?.stopped.as_ref()?;
        Some(wire::StoppedBy {
            kind: stopped.kind,
            at: super::task::timestamp(stopped.at),
            msg: Cow::from(&*stopped.msg),
        })
    }

    /// How many executions have been given a place, or were handed out before.
    fn started(&self) -> u32 {
        let is_started = |e: &&super::Execution| {
            let waits = e.state == ExecutionState::Queued;
            waits || e.current.delivered_at.is_some() || !e.past.is_empty()
        };
        self.executions.iter().filter(is_started).count() as u32
    }
}

impl TaskData {
    /// How many executions have failed. Over the whole task, not in each step.
    fn failures(&self) -> u32 {
        let counts = &self.counts;
        counts.failed + counts.timed_out + counts.lost + counts.expired
    }

    /// How many have failed in the present step; for tests that break the rule.
    fn failures_of_step(&self) -> u32 {
        let pacing = self.pacing.as_ref();
        let begin = pacing.and_then(|pacing| {
            let before = pacing.step.checked_sub(1)?;
            pacing.plan.as_ref()?.steps.get(before).copied()
        });
        let mut counts = crate::wire::task::Counts::default();
        for e in self.executions.iter().skip(begin.unwrap_or(0) as usize) {
            *counts.of(e.state) += 1;
        }
        counts.failed + counts.timed_out + counts.lost + counts.expired
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

impl Core {
    /// Starts nothing more of a task until it is resumed. What runs goes on; the `ttl` stands still.
    /// Refused with [`Refusal::Conflict`] if the task has ended or was stopped.
    pub fn pause(&mut self, now: Time, key: TaskKey) -> Result<(), Refusal> {
        self.check_can_go_on(key)?;
        match self.pacing_mut(key).paused.as_mut() {
            // From now on it waits for somebody.
            Some(paused) => {
                if let Some(until) = paused.until.take() {
                    self.timers.cancel(until, Timer::PauseOver(key));
                }
            }
            None => self.set_paused(now, key, None),
        }
        self.pace(now, key);
        Ok(())
    }

    /// Goes on with a task that is paused, or that waits between two steps. Refused as [`Core::pause`] is.
    pub fn resume(&mut self, now: Time, key: TaskKey) -> Result<(), Refusal> {
        self.check_can_go_on(key)?;
        self.end_pause(now, key);
        Ok(())
    }

    /// Starts nothing more of a task. What runs ends by itself, or is canceled. A task that has ended does not change.
    pub fn stop(&mut self, now: Time, key: TaskKey, cancels: Option<bool>) -> Result<(), Refusal> {
        let task = self.known_task(key)?;
        if task.finished_at.is_some() {
            return Ok(());
        }
        let cancels = cancels.unwrap_or(task.spec.stops_running());
        self.stop_by(now, key, StopKind::User, "stopped", cancels);
        Ok(())
    }

    fn check_can_go_on(&self, key: TaskKey) -> Result<(), Refusal> {
        let task = self.known_task(key)?;
        let why = match () {
            () if task.finished_at.is_some() => "has ended",
            () if task.canceled => "was canceled",
            () if task.is_stopped() => "was stopped",
            () => return Ok(()),
        };
        Err(Refusal::Conflict(format!("task {} {why}", task.id)))
    }

    fn pacing_mut(&mut self, key: TaskKey) -> &mut Pacing {
        self.task_mut(key).pacing.get_or_insert_default()
    }

    fn set_paused(&mut self, now: Time, key: TaskKey, until: Option<Time>) {
        let pacing = self.pacing_mut(key);
        pacing.swept = 0;
        pacing.paused = Some(Paused { since: now, until });
        if let Some(until) = until {
            self.timers.set(until, Timer::PauseOver(key));
        }
        let expires_at = self.task(key).expires_at;
        self.timers.cancel(expires_at, Timer::TaskTtl(key));
    }

    /// The pause between two steps may be over.
    pub(super) fn pause_may_be_over(&mut self, now: Time, key: TaskKey) {
        let pacing = self.tasks.get(&key).and_then(|task| task.pacing.as_ref());
        let until = pacing.and_then(|pacing| pacing.resumes_at());
        if until.is_some_and(|until| until <= now) {
            self.end_pause(now, key);
        }
    }

    fn end_pause(&mut self, now: Time, key: TaskKey) {
        if !self.task(key).is_paused() {
            return;
        }
        let Some(paused) = self.pacing_mut(key).paused.take() else {
            return;
        };
        if let Some(until) = paused.until {
            self.timers.cancel(until, Timer::PauseOver(key));
        }
        // Every wait goes on where it was.
        let stood_still = now.millis_since(paused.since);
        let later = |time: Time| Time(time.0.saturating_add(stood_still));
        let expires_at = later(self.task(key).expires_at);
        self.task_mut(key).expires_at = expires_at;
        self.timers.set(expires_at, Timer::TaskTtl(key));
        for n in 0..self.task(key).executions.len() as u32 {
            let execution = ExecutionKey { task: key, n };
            let e = self.execution(execution);
            let waits = matches!(e.state, ExecutionState::Held | ExecutionState::Queued);
            if let Some(expires) = e.current.expires_at.filter(|_| waits) {
                let number = e.current.number;
                self.timers
                    .cancel(expires, Timer::AttemptTtl(execution, number));
                self.set_expiry(execution, later(expires));
            }
        }
        self.pace(now, key);
    }

    /// Sets until when an attempt may be started.
    pub(super) fn set_expiry(&mut self, key: ExecutionKey, expires: Time) {
        let attempt = &mut self.execution_mut(key).current;
        attempt.expires_at = Some(expires);
        let timer = Timer::AttemptTtl(key, attempt.number);
        self.timers.set(expires, timer);
    }

    /// Stops a task: what has not been handed out is skipped, and what runs is canceled if that is wanted.
    fn stop_by(&mut self, now: Time, key: TaskKey, kind: StopKind, msg: &str, cancels: bool) {
        let pacing = self.pacing_mut(key);
        if pacing.stopped.is_none() {
            pacing.swept = 0;
            pacing.stopped = Some(Stopped {
                kind,
                at: now,
                msg: msg.into(),
            });
            if let Some(until) = pacing.paused.take().and_then(|paused| paused.until) {
                self.timers.cancel(until, Timer::PauseOver(key));
            }
            self.close(key);
        }
        if cancels {
            for n in 0..self.task(key).executions.len() as u32 {
                let execution = ExecutionKey { task: key, n };
                if matches!(self.execution(execution).place, Place::Active(_)) {
                    self.cancel_execution(now, execution);
                }
            }
        }
        self.pace(now, key);
        self.finish_if_done(now, key);
    }

    /// An execution has ended for good: counts its failure, and gives its place to the next.
    pub(super) fn pace_after_end(&mut self, now: Time, key: TaskKey) {
        let Some(task) = self.tasks.get(&key) else {
            return;
        };
        let Some(plan) = task.pacing.as_ref().and_then(|pacing| pacing.plan.as_ref()) else {
            return;
        };
        let failures = match self.keeps(Rule::FailuresAreOfTheTask) {
            true => task.failures(),
            false => task.failures_of_step(),
        };
        let allowed = plan.max_failures;
        let is_too_many = failures > allowed && !task.is_stopped() && !task.canceled;
        if is_too_many {
            let many = if failures == 1 { "failure" } else { "failures" };
            let msg = format!("stopped after {failures} {many} ({allowed} allowed)");
            let cancels = task.spec.stops_running();
            self.stop_by(now, key, StopKind::Failures, &msg, cancels);
            return;
        }
        self.pace(now, key);
    }

    /// Does what the pace of a task allows now: gives turns, goes to the next step, or holds back and skips what has
    /// not been handed out.
    pub(super) fn pace(&mut self, now: Time, key: TaskKey) {
        if self.paced == Some(key) {
            // Called again by the end of something that was given its turn; the loop below goes on anyway.
            return;
        }
        let outer = self.paced.replace(key);
        let mut left = MAX_TURNS;
        while self.take_turn(now, key) {
            left -= 1;
            if left == 0 {
                self.timers.set(now.plus(SOON), Timer::Pace(key));
                break;
            }
        }
        self.paced = outer;
    }

    /// One step of [`Core::pace`]. False if nothing is to be done.
    fn take_turn(&mut self, now: Time, key: TaskKey) -> bool {
        let Some(task) = self.tasks.get(&key) else {
            return false;
        };
        let Some(pacing) = task.pacing.as_ref() else {
            return false;
        };
        if task.finished_at.is_some() || task.canceled {
            return false;
        }
        if pacing.is_halted() {
            return self.sweep(now, key);
        }
        if let Some(until) = pacing.started_when_done()
            && pacing.unfinished == 0
            && pacing.next >= until
        {
            self.next_step(now, key);
            return true;
        }
        let window = pacing.plan.as_ref().map_or(u32::MAX, |plan| plan.window);
        let window = window.saturating_add(u32::from(!self.keeps(Rule::WindowIsKept)));
        if task.counts.under_way() >= window {
            return false;
        }
        if let Some(n) = pacing.returned.first().copied() {
            self.unsaved_pacing(key).returned.remove(&n);
            self.give_place(now, ExecutionKey { task: key, n });
            return true;
        }
        let until = pacing.started_when_done();
        let until = until.unwrap_or(task.executions.len() as u32);
        if pacing.next >= until {
            return false;
        }
        let n = pacing.next;
        self.unsaved_pacing(key).next += 1;
        let execution = ExecutionKey { task: key, n };
        if self.execution(execution).state == ExecutionState::Held {
            let expires = now.plus(self.task(key).spec.ttl);
            self.set_expiry(execution, expires);
            self.give_place(now, execution);
        }
        true
    }

    /// The pace of a task, to change what is not saved of it.
    fn unsaved_pacing(&mut self, key: TaskKey) -> &mut Pacing {
        let task = super::data_mut(&mut self.tasks, key);
        task.pacing.get_or_insert_default()
    }

    fn next_step(&mut self, now: Time, key: TaskKey) {
        let pause = self.task(key).spec.rollout.as_ref();
        let pause = pause.and_then(|rollout| rollout.posted.pause);
        let pacing = self.pacing_mut(key);
        pacing.step += 1;
        let until = pacing.started_when_done();
        let is_unfinished = |e: &&super::Execution| !e.state.is_terminal();
        let unfinished = until.map(|until| {
            let executions = self.task(key).executions.iter().take(until as usize);
            executions.filter(is_unfinished).count() as u32
        });
        self.unsaved_pacing(key).unfinished = unfinished.unwrap_or(0);
        match pause {
            None => {}
            Some(Pause::For(duration)) if duration == TimeSpan::default() => {}
            Some(Pause::For(duration)) => self.set_paused(now, key, Some(now.plus(duration))),
            Some(Pause::Approve) => self.set_paused(now, key, None),
        }
    }

    /// Gives a held execution whose turn has come a place: queues it for its machine, unless that is not online.
    fn give_place(&mut self, now: Time, key: ExecutionKey) {
        if self.execution(key).state != ExecutionState::Held {
            return;
        }
        if self.task(key.task).is_any() {
            self.apply(key, Event::Release);
            let selector = self.selector_key_of(key.task);
            self.queue_for_any(key, selector);
            return;
        }
        let target = self.execution(key).target.clone();
        let machine = target
            .as_ref()
            .and_then(|target| self.instances.get(&target.instance));
        let machine = machine.copied();
        match machine {
            Some(machine) if self.machine(machine).left => self.lose_held(now, key),
            // Without a rollout it waits for its machine in its queue.
            Some(machine) if self.machine(machine).is_live() || !self.is_rolled_out(key.task) => {
                self.apply(key, Event::Release);
                self.queue_for(key, machine);
            }
            // There is no queue to wait in, and its ttl is over in a queue only.
            None if !self.is_rolled_out(key.task) => self.lose_held(now, key),
            _ => self.wait_for_return(key),
        }
    }

    fn lose_held(&mut self, now: Time, key: ExecutionKey) {
        let target = self.execution(key).target.as_ref();
        let known = target.is_some_and(|target| self.instances.contains_key(&target.instance));
        let msg = match known {
            true => "its machine said goodbye before its turn came",
            false => "its machine is no longer known",
        };
        self.end_attempt(now, key, ExecutionState::Lost, msg);
    }

    pub(super) fn is_rolled_out(&self, key: TaskKey) -> bool {
        let pacing = self.task(key).pacing.as_ref();
        pacing.is_some_and(|pacing| pacing.plan.is_some())
    }

    fn wait_for_return(&mut self, key: ExecutionKey) {
        if let Some(target) = self.execution(key).target.clone() {
            let absent = self.absent.entry(target.instance.clone()).or_default();
            absent.insert(key);
        }
    }

    /// Forgets that an execution waits for its machine or for a place, because it has ended.
    pub(super) fn forget_held(&mut self, key: ExecutionKey) {
        if let Some(target) = self.execution(key).target.clone()
            && let Some(absent) = self.absent.get_mut(&target.instance)
        {
            absent.remove(&key);
            if absent.is_empty() {
                self.absent.remove(&target.instance);
            }
        }
        let pacing = super::data_mut(&mut self.tasks, key.task).pacing.as_mut();
        if let Some(pacing) = pacing {
            pacing.returned.remove(&key.n);
        }
    }

    /// A machine takes work again: what waited for it can be given a place.
    pub(super) fn machine_is_back(&mut self, now: Time, key: MachineKey) {
        let instance = self.machine(key).instance.clone();
        let Some(absent) = self.absent.remove(&instance) else {
            return;
        };
        for execution in absent {
            self.unsaved_pacing(execution.task)
                .returned
                .insert(execution.n);
            self.pace(now, execution.task);
        }
    }

    /// A machine is not online any more: what was queued for it gives its place to another.
    pub(super) fn hold_back_queued(&mut self, now: Time, key: MachineKey) {
        for execution in self.machine(key).inbox.clone() {
            if self.is_rolled_out(execution.task) && self.hold(execution) {
                self.wait_for_return(execution);
                self.pace(now, execution.task);
            }
        }
    }

    /// Holds back an execution that would be handed out although its task is paused, and skips it if the task was
    /// stopped. False if it may be handed out.
    pub(super) fn is_held_back(&mut self, now: Time, key: ExecutionKey) -> bool {
        let task = self.task(key.task);
        if !task.is_halted() || task.canceled {
            return false;
        }
        if task.is_stopped() {
            if !self.keeps(Rule::StoppedIsSkipped) {
                return false;
            }
            return self.skip(now, key);
        }
        if !self.hold(key) {
            return false;
        }
        self.unsaved_pacing(key.task).returned.insert(key.n);
        true
    }

    /// Takes an execution out of its queue. False if it is in none.
    fn hold(&mut self, key: ExecutionKey) -> bool {
        let holds = self.apply(key, Event::Hold);
        if holds {
            let due = self.execution(key).current.due_at;
            if let Some(due) = due {
                let number = self.execution(key).current.number;
                self.timers.cancel(due, Timer::AttemptDue(key, number));
                self.execution_mut(key).current.due_at = None;
            }
            self.place(key, Place::Nowhere);
        }
        holds
    }

    fn skip(&mut self, now: Time, key: ExecutionKey) -> bool {
        let stopped = self.task(key.task).pacing.as_ref();
        let stopped = stopped.and_then(|pacing| pacing.stopped.as_ref());
        let msg = stopped.map_or_else(|| "stopped".into(), |stopped| stopped.msg.clone());
        self.end_attempt(now, key, ExecutionState::Skipped, &msg)
    }

    /// Holds back or skips the next execution that has not been handed out, of a task that is paused or was stopped.
    /// False if there is none.
    fn sweep(&mut self, now: Time, key: TaskKey) -> bool {
        let task = self.task(key);
        let Some(pacing) = task.pacing.as_ref() else {
            return false;
        };
        let is_stopped = pacing.is_stopped();
        let is_to_sweep = |state| match state {
            ExecutionState::Queued => true,
            ExecutionState::Held => is_stopped,
            _ => false,
        };
        let from = pacing.swept;
        let rest = task.executions.iter().zip(0..).skip(from as usize);
        let mut rest = rest.filter(|(e, _)| is_to_sweep(e.state));
        let next = rest.next().map(|(_, n)| n);
        let swept = next.map_or(task.executions.len() as u32, |n| n + 1);
        self.unsaved_pacing(key).swept = swept;
        let Some(n) = next else {
            return false;
        };
        let execution = ExecutionKey { task: key, n };
        // What waits for a retry is held when that is due.
        let is_between = self.execution(execution).current.due_at.is_some();
        if is_stopped || !is_between {
            self.is_held_back(now, execution);
        }
        true
    }

    /// Restores what is not saved of a task's pace, and goes on with it at the next tick.
    pub(super) fn restore_pacing(&mut self, now: Time, key: TaskKey) {
        let task = self.task(key);
        let Some(pacing) = task.pacing.as_ref() else {
            return;
        };
        if task.finished_at.is_some() {
            return;
        }
        let is_rolled_out = pacing.plan.is_some();
        let had_turn = |e: &super::Execution| {
            !is_rolled_out || e.current.expires_at.is_some() || e.current.number > 1
        };
        let held = { task.executions.iter().zip(0..) }
            .filter(|(e, _)| e.state == ExecutionState::Held)
            .map(|(e, n)| (n, had_turn(e)));
        let held: Vec<(u32, bool)> = held.collect();
        let all = task.executions.len() as u32;
        let next = held.iter().find(|(_, had_turn)| !had_turn).map(|(n, _)| *n);
        let until = pacing.started_when_done().unwrap_or(0);
        let resumes_at = pacing.resumes_at();
        let unfinished = task.executions.iter().take(until as usize);
        let unfinished = unfinished.filter(|e| !e.state.is_terminal()).count();
        let returned = held.iter().filter(|(_, had_turn)| *had_turn);
        let returned = returned.map(|(n, _)| *n).collect();
        let pacing = self.unsaved_pacing(key);
        pacing.next = match is_rolled_out {
            true => next.unwrap_or(all),
            false => u32::MAX,
        };
        pacing.unfinished = unfinished as u32;
        // Those whose machine is not there wait for it when they are given a place.
        pacing.returned = returned;
        if let Some(until) = resumes_at {
            self.timers.set(until, Timer::PauseOver(key));
        }
        self.timers.set(now, Timer::Pace(key));
    }

    /// Checks what is kept of a task's pace against its executions.
    pub(super) fn check_pacing(&self, key: TaskKey, task: &Task) -> Result<(), String> {
        let held = { task.executions.iter().zip(0..) }
            .filter(|(e, _)| e.state == ExecutionState::Held)
            .map(|(e, n)| (ExecutionKey { task: key, n }, e));
        let Some(pacing) = task.pacing.as_ref() else {
            return match held.count() {
                0 => Ok(()),
                held => Err(format!("{key:?}: {held} are held without a reason")),
            };
        };
        for (execution, e) in held {
            let instance = e.target.as_ref().map(|target| &target.instance);
            let absent = instance.and_then(|instance| self.absent.get(instance));
            let is_absent = absent.is_some_and(|absent| absent.contains(&execution));
            let is_returned = pacing.returned.contains(&execution.n);
            let comes = !pacing.has_had_its_turn(execution.n);
            if [is_absent, is_returned, comes]
                .into_iter()
                .filter(|it| *it)
                .count()
                != 1
            {
                return Err(format!(
                    "{execution:?}: held, waits for its machine {is_absent}, for a place {is_returned}, for its turn {comes}"
                ));
            }
        }
        if let Some(until) = pacing.started_when_done() {
            let executions = task.executions.iter().take(until as usize);
            let unfinished = executions.filter(|e| !e.state.is_terminal()).count();
            if unfinished != pacing.unfinished as usize {
                return Err(format!(
                    "{key:?}: {} of its steps so far have not ended, recounted {unfinished}",
                    pacing.unfinished
                ));
            }
        }
        let window = pacing.plan.as_ref().map_or(u32::MAX, |plan| plan.window);
        let is_kept = !self.keeps(Rule::WindowIsKept) || task.counts.under_way() <= window;
        if pacing.paused.is_none() && !is_kept {
            return Err(format!(
                "{key:?}: {} are under way, the window is {window}",
                task.counts.under_way()
            ));
        }
        Ok(())
    }
}

/// Checks a posted rollout. The error names the field.
pub(super) fn checked(
    posted: wire::Rollout,
    mode: Mode,
    canary: Option<Selector>,
) -> Result<Rollout, String> {
    if mode == Mode::Any {
        return Err("rollout: goes with mode \"all\" only, an \"any\" task runs once".into());
    }
    if posted.concurrency.is_some_and(Share::is_zero) {
        return Err("rollout.concurrency: must be above 0".into());
    }
    if posted.steps.len() > MAX_STEPS {
        return Err(format!(
            "rollout.steps: must have {MAX_STEPS} entries at most, got {}",
            posted.steps.len()
        ));
    }
    if posted.steps.iter().any(|share| share.is_zero()) {
        return Err("rollout.steps: each must be above 0".into());
    }
    for (n, (before, step)) in posted
        .steps
        .iter()
        .zip(posted.steps.iter().skip(1))
        .enumerate()
    {
        // A number and a percentage can be compared only when the targets are known.
        let rises = match (before, step) {
            (Share::Count(before), Share::Count(step)) => step > before,
            (Share::Percent(before), Share::Percent(step)) => step > before,
            (Share::Percent(before), Share::Count(_)) => *before < 100,
            (Share::Count(_), Share::Percent(_)) => true,
        };
        if !rises {
            return Err(format!(
                "rollout.steps[{}]: each says how many have been started when it is done, so {step} cannot follow {before}",
                n + 1
            ));
        }
    }
    Ok(Rollout {
        order: posted.order.unwrap_or_default(),
        posted,
        canary,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(steps: &[Share]) -> Rollout {
        let posted = wire::Rollout {
            steps: steps.into(),
            ..wire::Rollout::default()
        };
        checked(posted, Mode::All, None).unwrap()
    }

    #[test]
    fn each_step_adds_at_least_one_and_the_last_is_everything() {
        use Share::{Count, Percent};
        let steps = |shares: &[Share], canaries, total| rollout(shares).plan(canaries, total).steps;
        let usual = [Count(1), Percent(10), Percent(100)];
        assert_eq!(steps(&usual, 0, 100), [1, 10, 100]);
        assert_eq!(steps(&usual, 0, 3), [1, 2, 3]);
        assert_eq!(steps(&usual, 0, 2), [1, 2]);
        assert_eq!(steps(&usual, 0, 1), [1]);
        assert_eq!(steps(&[], 0, 7), [7]);
        assert_eq!(steps(&[], 2, 7), [2, 7]);
        assert_eq!(steps(&[Percent(10), Percent(50)], 15, 100), [15, 16, 100]);
        assert_eq!(steps(&[Percent(10)], 100, 100), [100]);
        assert_eq!(
            steps(&[Percent(60), Count(50), Percent(70)], 0, 100),
            [60, 61, 100]
        );
        assert_eq!(steps(&usual, 0, 0), Vec::<u32>::new());
    }
}
