//! The pace of a task: in which steps its targets get their turn, how many at once, when it pauses and when it stops.
//!
//! The executions of a task with a rollout are numbered in its order and wait as `held`. [`Core::pace`] gives them
//! their turns, and is called after everything that may allow a further one: an end, the end of a pause, a machine
//! that is back. What it does in one call is bounded; a timer goes on with the rest. A task without a rollout has a
//! pace only if probes have to pass before it, or once it was paused or stopped.
//!
//! An execution whose turn has come and whose machine is not online stays `held` and takes no slot of the window; its
//! `ttl` has begun. When its machine is back, it waits for a slot.

use super::invariants::Rule;
use super::lifecycle::Event;
use super::pace::{Pacing, Paused, Stopped};
use super::task::{Place, Task};
use super::timers::Timer;
use super::{Core, ExecutionKey, MachineKey, Refusal, TaskKey, Time};
use crate::wire::duration::TimeSpan;
use crate::wire::notify::NotifyEvent;
use crate::wire::rollout::{Pause, StopKind};
use crate::wire::task::{ExecutionState, TaskState};

/// The most turns given, or executions skipped, in one call: it runs under the lock.
const MAX_TURNS: usize = 500;
/// After this time a call does the rest.
const SOON: TimeSpan = TimeSpan::from_millis(1);

impl Core {
    /// Starts nothing more of a task until it is resumed. What runs goes on; the `ttl` stands still.
    /// Refused with [`Refusal::Conflict`] if the task has ended or was stopped.
    pub fn pause(&mut self, now: Time, key: TaskKey) -> Result<(), Refusal> {
        self.check_can_go_on(key)?;
        match self.pacing_mut(key).paused.as_mut() {
            // A pause between two steps becomes one that ends only when a user resumes the task.
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
        if task.is_unbegun() {
            self.end_unbegun(now, key, TaskState::Skipped, "stopped before it began");
            return Ok(());
        }
        let cancels = cancels.unwrap_or(task.spec.stops_running());
        let stopped = Stopped::new(StopKind::User, now, "stopped");
        self.stop_by(now, key, stopped, cancels);
        Ok(())
    }

    fn check_can_go_on(&self, key: TaskKey) -> Result<(), Refusal> {
        let task = self.known_task(key)?;
        let why = match () {
            () if task.finished_at.is_some() => "has ended",
            () if task.is_unbegun() => "has not begun; cancel it to keep it from that",
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
        // No ttl runs during a pause.
        let stood_still = now.millis_since(paused.since);
        let later = |time: Time| time.later_by(stood_still);
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
    pub(super) fn stop_by(&mut self, now: Time, key: TaskKey, stopped: Stopped, cancels: bool) {
        let pacing = self.pacing_mut(key);
        if pacing.stopped.is_none() {
            pacing.swept = 0;
            pacing.stopped = Some(stopped);
            if let Some(until) = pacing.paused.take().and_then(|paused| paused.until) {
                self.timers.cancel(until, Timer::PauseOver(key));
            }
            self.count_stop_output(key);
            self.notify(now, key, NotifyEvent::Stopped);
            self.close(key);
        }
        if cancels {
            for n in 0..self.task(key).executions.len() as u32 {
                let execution = ExecutionKey { task: key, n };
                let is_active =
                    |task: &Task| matches!(task.executions[n as usize].place, Place::Active(_));
                // With its last end a task may be forgotten, to make room.
                if self.tasks.get(&key).is_some_and(is_active) {
                    self.cancel_execution(now, execution);
                }
            }
        }
        self.pace(now, key);
        self.finish_if_done(now, key);
    }

    /// An execution has ended for good: counts its failure, and gives its slot to the next.
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
            let stopped = Stopped::new(StopKind::Failures, now, &msg);
            self.stop_by(now, key, stopped, cancels);
            return;
        }
        self.pace(now, key);
    }

    /// Does what the pace of a task allows now: gives turns, goes to the next step, or holds back and skips what has
    /// not been handed out.
    pub(super) fn pace(&mut self, now: Time, key: TaskKey) {
        if self.paced == Some(key) {
            // A nested call: something that the loop below handles has ended. The loop goes on by itself.
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
        if self.waits_for_key(key) {
            return false;
        }
        if let Some(until) = pacing.started_when_done()
            && pacing.unfinished == 0
            && pacing.next >= until
        {
            if !self.probes_pass(key) {
                // The next run of the probe goes on with it, or stops it.
                return false;
            }
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
            self.release(now, ExecutionKey { task: key, n });
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
            self.release(now, execution);
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
        let unfinished = until.map_or(0, |until| self.task(key).unfinished_of_first(until));
        self.unsaved_pacing(key).unfinished = unfinished;
        match pause {
            None => {}
            Some(Pause::For(duration)) if duration == TimeSpan::default() => {}
            Some(Pause::For(duration)) => self.set_paused(now, key, Some(now.plus(duration))),
            Some(Pause::Approve) => self.set_paused(now, key, None),
        }
    }

    /// Gives a held execution whose turn has come a slot: queues it for its machine, unless that is not online.
    fn release(&mut self, now: Time, key: ExecutionKey) {
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
                self.queue_first(now, key, machine);
            }
            // Nothing waits for a machine that is not known, except in a rollout.
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

    /// Forgets that an execution waits for its machine, for a slot or for its counterpart, because it has ended.
    pub(super) fn forget_held(&mut self, key: ExecutionKey) {
        self.awaits_no_longer(key);
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

    /// A machine takes work again: what waited for it waits for a slot now.
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

    /// A machine is not online any more: what was queued for it frees its slot.
    pub(super) fn hold_back_queued(&mut self, now: Time, key: MachineKey) {
        for execution in self.machine(key).inbox.executions() {
            if self.is_rolled_out(execution.task) && self.hold(now, execution) {
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
        if !self.hold(now, key) {
            return false;
        }
        self.unsaved_pacing(key.task).returned.insert(key.n);
        true
    }

    /// Takes an execution out of its queue. False if it is in none.
    fn hold(&mut self, now: Time, key: ExecutionKey) -> bool {
        self.thaw(now, key);
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
        let stopped = self.task(key.task).stopped();
        let msg = stopped.map_or_else(|| "stopped".into(), |stopped| stopped.msg.clone());
        let state = match stopped.is_some_and(|stopped| stopped.before_start) {
            true => ExecutionState::Failed,
            false => ExecutionState::Skipped,
        };
        self.end_attempt(now, key, state, &msg)
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
        let rest = { task.executions.iter().skip(from as usize) }.zip(from..);
        let mut rest = rest.filter(|(e, _)| is_to_sweep(e.state));
        let next = rest.next().map(|(_, n)| n);
        let swept = next.map_or(task.executions.len() as u32, |n| n + 1);
        self.unsaved_pacing(key).swept = swept;
        let Some(n) = next else {
            return false;
        };
        let execution = ExecutionKey { task: key, n };
        // Before a retry is due the execution is in no queue; it is held back when it is due.
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
            .filter(|(e, _)| e.state == ExecutionState::Held && !task.awaits_counterpart(e))
            .map(|(e, n)| (n, had_turn(e)));
        let held: Vec<(u32, bool)> = held.collect();
        let all = task.executions.len() as u32;
        let next = held.iter().find(|(_, had_turn)| !had_turn).map(|(n, _)| *n);
        let until = pacing.started_when_done().unwrap_or(0);
        let resumes_at = pacing.resumes_at();
        let unfinished = task.unfinished_of_first(until);
        let returned = held.iter().filter(|(_, had_turn)| *had_turn);
        let returned = returned.map(|(n, _)| *n).collect();
        let pacing = self.unsaved_pacing(key);
        pacing.next = match is_rolled_out {
            true => next.unwrap_or(all),
            false => u32::MAX,
        };
        pacing.unfinished = unfinished;
        // Those whose machine is not online begin to wait for it when they get a slot.
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
            let has_counterpart = self.counterparts.is_waiting(execution);
            let waits = [is_absent, is_returned, comes, has_counterpart];
            if waits.into_iter().filter(|waits| *waits).count() != 1 {
                return Err(format!(
                    "{execution:?}: held, waits for its machine {is_absent}, for a slot {is_returned}, for its turn {comes}, for its counterpart {has_counterpart}"
                ));
            }
        }
        if let Some(until) = pacing.started_when_done() {
            let unfinished = task.unfinished_of_first(until);
            if unfinished != pacing.unfinished {
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
