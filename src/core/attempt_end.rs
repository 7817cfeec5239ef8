//! How an attempt ends, and what follows: the end of its execution, a retry, the end of its task.
//!
//! Every end goes through [`Core::end_attempt`], whether a machine reported it, a user canceled it, or its time
//! was up. To add a reason for an attempt to end: call it with a terminal state and a message.

use super::invariants::Rule;
use super::lazy_box::LazyBox;
use super::lifecycle::{self, Event};
use super::saved::OutputKey;
use super::task::{Attempt, MAX_PAST_ATTEMPTS, PastAttempt, Place};
use super::timers::Timer;
use super::{Core, ExecutionKey, Notice, TaskKey, Time, data_mut};
use crate::wire::duration::TimeSpan;
use crate::wire::task::{ExecutionState, RetryOn};
use std::borrow::Cow;

/// The message of an execution whose last attempt was not started: it ends as the one before did.
fn after_all(last: &PastAttempt, unstarted: u32, why: &str) -> String {
    let reason = match &*last.attempt.msg {
        "" => String::new(),
        msg => format!(": {msg}"),
    };
    format!(
        "attempt {unstarted} was {why}; attempt {} ended {}{reason}",
        last.attempt.number,
        last.state.word()
    )
}

impl Core {
    /// Ends the current attempt of an execution. The execution ends with it, or is tried again if its task
    /// asks for that. It is `expired` only if none of its attempts was started; a retry that was not started in time
    /// leaves it as the attempt before ended. `state` is terminal; `msg` is the reason if it is not `succeeded`. False if the
    /// attempt cannot end like this, or the execution has ended already.
    pub(super) fn end_attempt(
        &mut self,
        now: Time,
        key: ExecutionKey,
        state: ExecutionState,
        msg: &str,
    ) -> bool {
        let execution = self.execution(key);
        if lifecycle::next(execution.state, Event::End(state)).is_none() {
            return false;
        }
        let was_held = execution.state == ExecutionState::Held;
        let delivered = !was_held && execution.state != ExecutionState::Queued;
        if delivered {
            self.settle_undo(now, key, state);
        }
        if let (true, Some(due)) = (delivered, self.next_attempt_due(now, key, state)) {
            self.retry(now, key, state, msg, due);
            return true;
        }
        let execution = self.execution(key);
        if let (ExecutionState::Expired | ExecutionState::Skipped, Some(last)) =
            (state, execution.past.last())
        {
            let why = match (state, self.task(key.task).stopped()) {
                (ExecutionState::Skipped, Some(stopped)) => stopped.in_words(),
                _ => Cow::from(msg),
            };
            let (state, msg) = (last.state, after_all(last, execution.current.number, &why));
            let (exit_code, signal) = (last.attempt.exit_code, last.attempt.signal.clone());
            let current = &mut self.execution_mut(key).current;
            (current.exit_code, current.signal) = (exit_code, signal);
            return self.end_attempt(now, key, state, &msg);
        }
        let event = match state {
            ExecutionState::Canceled if !delivered => Event::Cancel,
            ExecutionState::Expired => Event::Expire,
            ExecutionState::Lost => Event::Lose,
            ExecutionState::Skipped => Event::Skip,
            state => Event::End(state),
        };
        if !self.apply(key, event) {
            return false;
        }
        if was_held {
            self.forget_held(key);
        }
        self.place(key, Place::Nowhere);
        self.record_end(now, key, msg);
        self.pace_after_end(now, key.task);
        self.finish_if_done(now, key.task);
        true
    }

    pub(super) fn record_end(&mut self, now: Time, key: ExecutionKey, msg: &str) {
        self.output_ended(key);
        self.cancel_attempt_timers(key);
        let attempt = &mut self.execution_mut(key).current;
        attempt.finished_at = attempt.finished_at.or(Some(now));
        attempt.msg = msg.into();
        if let Some(ms) = attempt.duration_ms {
            // It did not run for longer than it has been in its machine's hands, whatever the machine says.
            let held = now.millis_since(attempt.delivered_at.unwrap_or(now));
            self.stats.run_time.add(ms.min(held));
        }
    }

    /// Records that the current attempt's output is complete.
    fn output_ended(&mut self, key: ExecutionKey) {
        if let Some(changes) = &mut self.changes {
            let attempt = &self.tasks[&key.task].executions[key.n as usize].current;
            let output = OutputKey::of(key, attempt.number);
            changes.output_ended(output, attempt.output.as_deref());
        }
    }

    /// When the next attempt is due after one that ended in `state`; `None` if there will be none.
    fn next_attempt_due(
        &self,
        now: Time,
        key: ExecutionKey,
        state: ExecutionState,
    ) -> Option<Time> {
        let task = self.task(key.task);
        let execution = self.execution(key);
        let retry = task.spec.retry.as_ref()?;
        let asked = match state {
            ExecutionState::Failed => RetryOn::Failed,
            ExecutionState::TimedOut => RetryOn::TimedOut,
            ExecutionState::Lost => RetryOn::Lost,
            _ => return None,
        };
        if !retry.on.contains(&asked)
            || execution.current.number > retry.max
            || execution.canceling
            || task.canceled
            || task.is_stopped()
            || (execution.current.is_dirty() && self.keeps(Rule::RetryWaitsForUndo))
        {
            return None;
        }
        // An execution of an `all` task runs on its own machine only.
        if !task.is_any() {
            let instance = &execution.target.as_ref()?.instance;
            let machine = self.machine(*self.instances.get(instance)?);
            if !machine.is_live() {
                return None;
            }
        }
        let nth = (execution.current.number as usize).min(retry.interval.len());
        let pause = nth
            .checked_sub(1)
            .map_or(TimeSpan::default(), |n| retry.interval[n]);
        Some(now.plus(pause))
    }

    fn retry(&mut self, now: Time, key: ExecutionKey, state: ExecutionState, msg: &str, due: Time) {
        let number = self.execution(key).current.number + 1;
        let mut next = Attempt::new(number);
        next.due_at = Some(due);
        self.begin_attempt(now, key, next, (state, msg));
        self.list_off_queue(key);
        self.stats.retries += 1;
        self.timers.set(due, Timer::AttemptDue(key, number));
    }

    /// Puts the next attempt of an execution in the place of the current one, which has ended in this state with this
    /// message. It is queued nowhere yet.
    pub(super) fn begin_attempt(
        &mut self,
        now: Time,
        key: ExecutionKey,
        next: Attempt,
        (state, msg): (ExecutionState, &str),
    ) {
        // It is refused for one that was not handed out, which is queued as it is.
        self.apply(key, Event::Retry);
        self.place(key, Place::Nowhere);
        self.record_end(now, key, msg);
        self.leave_undo(key);
        self.drop_brought(key);
        let is_any = self.task(key.task).is_any();
        let execution = self.execution_mut(key);
        let attempt = std::mem::replace(&mut execution.current, LazyBox::new(next)).into_inner();
        let target = if is_any {
            execution.target.take()
        } else {
            execution.target.clone()
        };
        execution.past.push(PastAttempt {
            state,
            target,
            attempt,
        });
        if execution.past.len() > MAX_PAST_ATTEMPTS {
            let dropped = execution.past.remove(0);
            if let (Some(changes), Some(_)) = (&mut self.changes, &dropped.attempt.output) {
                changes.output_dropped(OutputKey::of(key, dropped.attempt.number));
            }
            let bytes = dropped.attempt.kept_output();
            data_mut(&mut self.tasks, key.task).output_bytes -= bytes;
            self.ledger.resize_output(bytes, 0);
        }
    }

    /// Finishes a task once all of its executions have ended and no machine may join it.
    pub(super) fn finish_if_done(&mut self, now: Time, key: TaskKey) {
        let Some(task) = self.tasks.get(&key) else {
            return;
        };
        let undos = task.undos_under_way() > 0 && self.keeps(Rule::EndWaitsForUndo);
        let is_unfinished = task.counts.unfinished() > 0 || undos;
        if task.open || task.is_unbegun() || task.finished_at.is_some() || is_unfinished {
            return;
        }
        let task = data_mut(&mut self.tasks, key);
        let resumes_at = { task.pacing.as_ref() }.and_then(|pacing| pacing.resumes_at());
        task.finished_at = Some(now);
        let task = self.task(key);
        let (state, expires_at) = (task.state(), task.expires_at);
        self.ledger.finish_task(now, key, &self.tasks[&key]);
        if let Some(changes) = &mut self.changes {
            changes.task(key);
        }
        self.timers.cancel(expires_at, Timer::TaskTtl(key));
        if let Some(until) = resumes_at {
            self.timers.cancel(until, Timer::PauseOver(key));
        }
        if let Some(forgotten_at) = self.forgotten_at(key) {
            self.timers.set(forgotten_at, Timer::ForgetTask(key));
        }
        self.probes_after(now, key);
        self.release_parents(key);
        self.parent_ended(key);
        if let Some(waiting) = data_mut(&mut self.tasks, key).waiting.as_mut() {
            waiting.detail = None;
        }
        self.stats.finished(state);
        self.notify_end(now, key);
        self.notices.push(Notice::Finished(key));
        self.free_limits(key);
        self.free_key(now, key);
        self.firing_ended(now, key);
        self.group_may_have_ended(key);
        self.forget_if_withdrawn(key);
        self.keep_within_limits();
    }
}
