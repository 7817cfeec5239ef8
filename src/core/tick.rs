//! The passage of time: handles every timer that is due, and says when the next one will be.

use super::invariants::Rule;
use super::machine::FORGOTTEN_AFTER;
use super::original::OriginalAgent;
use super::task::Place;
use super::task::Task;
use super::timers::Timer;
use super::{Core, ExecutionKey, MachineKey, TaskKey, Time};
use crate::wire::duration::TimeSpan;
use crate::wire::machine::MachineState;
use crate::wire::task::ExecutionState;

/// If two ticks are this far apart the server itself was paused (stopped, or without processor time). The
/// silence of machines during that time does not count.
pub(super) const PAUSED: TimeSpan = TimeSpan::from_secs(5);
/// The longest time to the next tick that is asked for; well below [`PAUSED`].
const AT_LEAST_EVERY: TimeSpan = TimeSpan::from_secs(2);
/// The most timers handled in one call: it runs under the lock.
const MAX_DUE: usize = 1_000;

/// How long an online machine may take to report the end of an attempt, beyond its time-out and grace.
pub(super) const OVERDUE_AFTER: TimeSpan = TimeSpan::from_secs(60);
/// How long the original's agent may take for a task without a time-out. It cannot say whether it runs the task
/// or never got it, and every accepted task must end.
pub(super) const ORIGINAL_AT_MOST: TimeSpan = TimeSpan::from_secs(24 * 3_600);

impl Core {
    /// Handles every timer that is due. Returns when to call again at the latest; `None` if no timer is set.
    /// After a call that came much too late, machines get that time to report in.
    pub fn tick(&mut self, now: Time) -> Option<Time> {
        let pause = now.millis_since(self.last_tick);
        self.last_tick = now;
        if pause > PAUSED.as_millis() {
            self.resumed_at = now;
            for machine in self.machines.values_mut() {
                machine.last_seen = Time(machine.last_seen.0.saturating_add(pause).min(now.0));
            }
        }
        let frees = std::mem::take(&mut self.after.has_freed);
        if std::mem::take(&mut self.undos.are_settled_by_hand) || frees {
            self.keep_within_limits();
        }
        self.waiting.tick_begins();
        for _ in 0..MAX_DUE {
            if self.waiting.has_begun_enough() {
                // The next call goes on; it is due at once.
                break;
            }
            let Some(timer) = self.timers.pop_due(now) else {
                break;
            };
            self.fire(now, timer);
        }
        let firing = self.fire_schedules(now);
        self.settle_dependents(now);
        let next = self.timers.next().into_iter().chain(firing).min()?;
        Some(next.min(now.plus(AT_LEAST_EVERY)))
    }

    fn fire(&mut self, now: Time, timer: Timer) {
        match timer {
            Timer::MachineSilent(machine) => self.check_silence(now, machine),
            Timer::ForgetMachine(machine) => self.forget_machine(now, machine),
            Timer::AttemptTtl(key, attempt) => {
                let waits = [ExecutionState::Queued, ExecutionState::Held];
                let is_current = waits.map(|state| self.is_current(key, attempt, state));
                // In a pause the wait stands still; its end sets the timer again.
                if is_current != [false; 2] && !self.task(key.task).is_paused() {
                    self.expire(now, key);
                }
            }
            Timer::AttemptDue(key, attempt) => self.attempt_is_due(now, key, attempt),
            Timer::AttemptOverdue(key, attempt) => self.check_overdue(now, key, attempt),
            Timer::TaskTtl(task) => self.task_ttl_is_over(now, task),
            Timer::Begin(task) => self.time_has_come(now, task),
            Timer::BlockedTtl(task) => self.blocked_ttl_is_over(now, task),
            Timer::CounterpartTtl(task) => self.counterparts.expired.push_back(task),
            // What is to be settled is settled at the end of each tick.
            Timer::Settle => {}
            Timer::PauseOver(task) => self.pause_may_be_over(now, task),
            Timer::Pace(task) => self.pace(now, task),
            Timer::Probe(key) => self.probe_is_due(now, key),
            Timer::KeepAlive(task) => self.look_at_pool(now, task),
            Timer::Limit(limit) => self.token_is_due(now, limit),
            Timer::ForgetTask(task) => self.forget_task(task),
            Timer::SuspensionEnds => self.suspension_may_be_over(now),
            Timer::SuspensionSweep => self.sweep_machines(now),
            Timer::SuspendedQueues => self.look_at_queues(now),
            Timer::CautionEnds => self.end_caution(),
        }
    }

    fn is_current(&self, key: ExecutionKey, attempt: u32, state: ExecutionState) -> bool {
        let execution = self
            .tasks
            .get(&key.task)
            .and_then(|task| task.executions.get(key.n as usize));
        execution.is_some_and(|e| e.current.number == attempt && e.state == state)
    }

    fn check_silence(&mut self, now: Time, key: MachineKey) {
        let Some(machine) = self.machines.get(&key) else {
            return;
        };
        match machine.silent_at() {
            Some(time) if time <= now => self.take_offline(now, key, "silent for too long"),
            Some(time) => self.watch_silence(key, time),
            None => {}
        }
    }

    fn forget_machine(&mut self, now: Time, key: MachineKey) {
        let Some(machine) = self.machines.get(&key) else {
            return;
        };
        if machine.state != MachineState::Offline
            || now < machine.offline_since.plus(FORGOTTEN_AFTER)
        {
            return;
        }
        self.drop_machine(now, key);
    }

    /// Makes room for a new machine: forgets the one that has been offline for longest before its time. A
    /// redeploy of the whole fleet must not have to wait for that time. Never one for which something is queued. False
    /// if there is no such machine.
    pub(super) fn forget_an_offline_machine(&mut self, now: Time) -> bool {
        let mut oldest = self.forgettable.first().map(|(_, key)| *key);
        if !self.keeps(Rule::QueuesAreKept) {
            let mut machines = self.machines.iter();
            let offline = machines.find(|(_, m)| m.state == MachineState::Offline);
            oldest = offline.map(|(key, _)| *key);
        }
        if let Some(key) = oldest {
            self.drop_machine(now, key);
        }
        oldest.is_some()
    }

    /// Sets the timer that checks whether a machine has been silent for too long.
    pub(super) fn watch_silence(&mut self, key: MachineKey, time: Time) {
        self.machine_mut(key).watched_at = Some(time);
        self.timers.set(time, Timer::MachineSilent(key));
    }

    /// Sets the timer that forgets a machine that has just gone offline.
    pub(super) fn forget_later(&mut self, now: Time, key: MachineKey) {
        let timer = Timer::ForgetMachine(key);
        self.timers.set(now.plus(FORGOTTEN_AFTER), timer);
    }

    /// Cancels the timers of a machine that comes online, goes offline or is forgotten.
    pub(super) fn cancel_machine_timers(&mut self, key: MachineKey) {
        let machine = self.machine_mut(key);
        let forgotten = machine.offline_since.plus(FORGOTTEN_AFTER);
        if let Some(time) = machine.watched_at.take() {
            self.timers.cancel(time, Timer::MachineSilent(key));
        }
        self.timers.cancel(forgotten, Timer::ForgetMachine(key));
    }

    pub(super) fn drop_machine(&mut self, now: Time, key: MachineKey) {
        for execution in self.machine(key).inbox.executions() {
            self.end_attempt(
                now,
                execution,
                ExecutionState::Lost,
                "its machine went away before it started",
            );
        }
        self.drop_orders(key);
        self.machine_changed(key);
        self.cancel_machine_timers(key);
        if let Some(machine) = self.remove_machine(key) {
            self.forgettable.remove(&(machine.offline_since, key));
            self.instances.remove(&machine.instance);
            self.match_index.remove_machine(machine.traits_key, key);
            self.wake_for_debts(&(machine.label, machine.host));
        }
    }

    /// Expires the first attempts of a task that still wait, and closes the task to new machines.
    fn task_ttl_is_over(&mut self, now: Time, key: TaskKey) {
        let Some(task) = self.tasks.get(&key) else {
            return;
        };
        // What was held back by a pause may not be in a queue again yet.
        let is_held_too = !self.is_rolled_out(key) && !task.is_paused();
        let waiting = (0..).zip(&task.executions).filter(|(_, e)| match e.state {
            ExecutionState::Queued => true,
            // Its own time begins when it goes.
            ExecutionState::Held if task.awaits_counterpart(e) => false,
            ExecutionState::Held => is_held_too,
            _ => false,
        });
        // In a rollout each has its own time, from its turn on.
        // What is released later, within its spread, has its own time from then on.
        let first_attempts = waiting.filter(|(_, e)| {
            e.current.number == 1 && e.current.expires_at.is_none() && e.current.due_at.is_none()
        });
        let expired: Vec<ExecutionKey> = first_attempts
            .map(|(n, _)| ExecutionKey { task: key, n })
            .collect();
        self.close(key);
        for execution in expired {
            self.expire(now, execution);
        }
        self.finish_if_done(now, key);
    }

    /// Whether the current attempt has waited longer than it may.
    pub(super) fn has_expired(&self, now: Time, key: ExecutionKey) -> bool {
        let task = self.task(key.task);
        // What has not got its time back yet was in time when its time began to stand still.
        let now = self.frozen_since(key).map_or(now, |since| since.min(now));
        now >= self
            .execution(key)
            .current
            .expires_at
            .unwrap_or(task.expires_at)
    }

    fn expire(&mut self, now: Time, key: ExecutionKey) {
        if self.is_frozen(now, key) {
            // It is given its time back, and its timer set, when its machine takes work again.
            return;
        }
        self.end_attempt(now, key, ExecutionState::Expired, super::EXPIRED);
    }

    fn attempt_is_due(&mut self, now: Time, key: ExecutionKey, attempt: u32) {
        if !self.is_current(key, attempt, ExecutionState::Queued) {
            return;
        }
        let expires = now.plus(self.task(key.task).spec.ttl);
        self.execution_mut(key).current.due_at = None;
        self.list_off_queue(key);
        self.set_expiry(key, expires);
        if self.is_held_back(now, key) {
            return;
        }
        if self.task(key.task).is_any() {
            let selector = self.selector_key_of(key.task);
            self.queue_for_any(key, selector);
            return;
        }
        let target = self.execution(key).target.as_ref();
        let machine = target.and_then(|t| self.instances.get(&t.instance).copied());
        match machine.filter(|machine| !self.machine(*machine).left) {
            Some(machine) => {
                self.queue_for(key, machine);
                if !self.machine(machine).is_live() {
                    self.hold_back_queued(now, machine);
                }
            }
            None => {
                self.end_attempt(
                    now,
                    key,
                    ExecutionState::Lost,
                    "its machine is no longer known",
                );
            }
        }
    }

    /// Ends an attempt that an online machine should have reported long ago.
    fn check_overdue(&mut self, now: Time, key: ExecutionKey, attempt: u32) {
        let Some(task) = self.tasks.get(&key.task) else {
            return;
        };
        let execution = &task.executions[key.n as usize];
        let Place::Active(machine) = execution.place else {
            return;
        };
        if execution.current.number != attempt {
            return;
        }
        // The machine could not report while the server was paused.
        let patience = self.resumed_at.plus(OVERDUE_AFTER);
        if now < patience {
            self.cancel_overdue(key);
            self.set_overdue(key, patience);
            return;
        }
        let execution = self.execution(key);
        if execution.canceling {
            self.end_attempt(
                now,
                key,
                ExecutionState::Lost,
                "its machine did not confirm the cancel",
            );
            return;
        }
        let id = self.task(key.task).attempt_id(key);
        let msg = "its machine did not report it within its time-out";
        self.end_attempt(now, key, ExecutionState::Lost, msg);
        // Kill what may still run of it.
        self.machine_mut(machine).cancels.push(id);
        self.wake(machine);
    }

    /// Sets the time by which a machine should have reported an attempt; of several the earliest counts.
    pub(super) fn set_overdue(&mut self, key: ExecutionKey, due: Time) {
        let due = self
            .execution(key)
            .current
            .overdue_at
            .map_or(due, |known| known.min(due));
        self.cancel_overdue(key);
        let attempt = &mut self.execution_mut(key).current;
        attempt.overdue_at = Some(due);
        let timer = Timer::AttemptOverdue(key, attempt.number);
        self.timers.set(due, timer);
    }

    /// Cancels the timer of an attempt that its machine no longer has.
    pub(super) fn cancel_overdue(&mut self, key: ExecutionKey) {
        let attempt = &mut self.execution_mut(key).current;
        if let Some(due) = attempt.overdue_at.take() {
            let timer = Timer::AttemptOverdue(key, attempt.number);
            self.timers.cancel(due, timer);
        }
    }

    /// Cancels the timers of an attempt that has ended.
    pub(super) fn cancel_attempt_timers(&mut self, key: ExecutionKey) {
        self.cancel_overdue(key);
        let attempt = &mut self.execution_mut(key).current;
        let number = attempt.number;
        let (due, expires) = (attempt.due_at.take(), attempt.expires_at.take());
        if let Some(time) = due {
            self.timers.cancel(time, Timer::AttemptDue(key, number));
        }
        if let Some(time) = expires {
            self.timers.cancel(time, Timer::AttemptTtl(key, number));
        }
    }

    /// Takes a machine offline. What it was handed is lost; what is queued for it goes to another machine if
    /// its task allows that.
    pub(super) fn take_offline(&mut self, now: Time, key: MachineKey, why: &'static str) {
        self.cancel_machine_timers(key);
        self.set_machine_state(key, MachineState::Offline);
        let machine = self.machine_mut(key);
        machine.offline_since = now;
        (machine.poll_held, machine.waking) = (false, false);
        machine.cancels.clear();
        machine.original = OriginalAgent::default();
        let active = machine.active.clone();
        let label = machine.label.clone();
        self.refresh_ready(key);
        self.forget_later(now, key);
        self.machine_changed(key);
        self.notices.push(super::Notice::MachineOffline(label, why));
        for execution in active {
            let delivered = self.execution(execution).state == ExecutionState::Delivered;
            if delivered && !self.keeps(Rule::UncertainIsLost) && self.take_back(now, execution) {
                self.place(execution, Place::Inbox(key));
                continue;
            }
            let msg = match self.execution(execution).state {
                ExecutionState::Delivered => {
                    "its machine went away; whether it had started is not known"
                }
                _ => "its machine went away while it ran",
            };
            self.end_attempt(now, execution, ExecutionState::Lost, msg);
        }
        self.lose_undos_of(now, key);
        self.wake_for_debts(&self.machine(key).spot());
        self.revoke_offers(key);
        if !self.machine(key).left {
            self.hold_back_queued(now, key);
        }
        self.explain_waiting_for(key);
    }

    /// Sets the timer of an unfinished task.
    pub(super) fn set_task_ttl(&mut self, key: TaskKey, task: &Task) {
        if task.is_paused() {
            return;
        }
        self.timers.set(task.expires_at, Timer::TaskTtl(key));
    }

    /// Sets the timer of a finished task.
    pub(super) fn set_forget_task(&mut self, key: TaskKey, task: &Task) {
        if let Some(forgotten_at) = task.forgotten_at() {
            self.timers.set(forgotten_at, Timer::ForgetTask(key));
        }
    }

    /// Sets the timers of a restored attempt.
    pub(super) fn set_attempt_timers(&mut self, key: ExecutionKey) {
        let attempt = &self.execution(key).current;
        let number = attempt.number;
        let (due, expires, overdue) = (attempt.due_at, attempt.expires_at, attempt.overdue_at);
        let timers = [
            due.map(|time| (time, Timer::AttemptDue(key, number))),
            expires.map(|time| (time, Timer::AttemptTtl(key, number))),
            overdue.map(|time| (time, Timer::AttemptOverdue(key, number))),
        ];
        for (time, timer) in timers.into_iter().flatten() {
            self.timers.set(time, timer);
        }
    }
}
