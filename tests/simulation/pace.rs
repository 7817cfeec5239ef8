//! The pace of tasks: users who pause, resume and stop them, and the laws of steps, windows, pauses and failures. How
//! far a rollout may be is computed here once more, from what was posted and from the states of its executions.

use crate::targets::{down, is_found, up};
use crate::users::Users;
use crate::world::{Event, Lawful, Ms, World};
use sidebike::core::{Refusal, Spec, Task, TaskKey};
use sidebike::wire::rollout::{Pause, Share, StopKind};
use sidebike::wire::task::{ExecutionState, Mode};
use sidebike::wire::undo::UndoState;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// After the faults have stopped, users let everything that waits go on as often as this.
pub const APPROVED_EVERY: Ms = 5_000;

/// What users know of the pace of a task.
#[derive(Debug, Clone, Default)]
pub struct PaceModel {
    pub keeps_alive: bool,
    /// Its targets do not change.
    targets: Option<BTreeSet<String>>,
    rollout: Option<Plan>,
    created: Ms,
    ttl: Ms,
    /// When every execution of a step and of those before had ended.
    step_ended: Vec<Option<Ms>>,
    /// When each execution was first seen after its turn.
    queued: BTreeMap<u32, Ms>,
    pub paused_since: Option<Ms>,
    resumed_at: Option<Ms>,
    stopped: bool,
    failures: u32,
    /// Those of them that are not only left with a debt.
    ended_so: u32,
    is_checked: bool,
}

/// What a rollout may do.
#[derive(Debug, Clone)]
struct Plan {
    total: u32,
    steps: Vec<u32>,
    window: u32,
    max_failures: u32,
    pause: Option<Pause>,
}

impl Plan {
    fn of(spec: &Spec, task: &Task) -> Option<Plan> {
        let posted = &spec.rollout.as_ref()?.posted;
        let total = task.size() as u32;
        let canary = posted.canary.as_ref();
        let is_canary = |label: &&Arc<str>| canary.is_some_and(|canary| is_found(canary, label));
        let canaries = task.labels().filter(is_canary).count() as u32;
        let mut shares: Vec<u32> = posted.steps.iter().map(|s| down(*s, total)).collect();
        if shares.is_empty() {
            shares.push(total);
        }
        if canaries > 0 {
            shares.insert(0, canaries);
        }
        let mut steps: Vec<u32> = Vec::new();
        for share in shares {
            let before = steps.last().map_or(0, |before| *before);
            if before < total {
                steps.push(share.max(before + 1).min(total));
            }
        }
        if let Some(last) = steps.last_mut() {
            *last = total;
        }
        let window = posted
            .concurrency
            .map_or(u32::MAX, |share| up(share, total));
        let most = posted.max_failures.unwrap_or(Share::Count(0));
        Some(Plan {
            total,
            steps,
            window: window.max(1),
            max_failures: down(most, total),
            pause: posted.pause,
        })
    }

    /// The step of an execution.
    fn step_of(&self, n: u32) -> usize {
        let last = self.steps.len().saturating_sub(1);
        let step = self.steps.iter().position(|until| n < *until);
        step.unwrap_or(last)
    }
}

fn is_failure(state: ExecutionState) -> bool {
    matches!(
        state,
        ExecutionState::Failed
            | ExecutionState::TimedOut
            | ExecutionState::Lost
            | ExecutionState::Expired
    )
}

fn failures(task: &Task) -> u32 {
    let failed = task.execution_views().filter(|e| {
        let is_dirty = { e.undo }.is_some_and(|undo| undo.state.is_some_and(UndoState::is_dirty));
        let has_ended = [ExecutionState::Succeeded, ExecutionState::Canceled].contains(&e.state);
        is_failure(e.state) || (has_ended && is_dirty)
    });
    failed.count() as u32
}

impl PaceModel {
    pub fn new(now: Ms, spec: &Spec, task: &Task) -> PaceModel {
        let is_fixed = spec.mode == Mode::All && !spec.late_join && task.size() > 0;
        let rollout = Plan::of(spec, task);
        PaceModel {
            keeps_alive: spec.is_guarding(),
            targets: is_fixed.then(|| crate::targets::targets(task).into_iter().collect()),
            created: now,
            ttl: spec.ttl.as_millis(),
            step_ended: vec![None; rollout.as_ref().map_or(0, |plan| plan.steps.len())],
            rollout,
            ..PaceModel::default()
        }
    }

    pub fn is_rolled_out(&self) -> bool {
        self.rollout.is_some()
    }

    /// How much longer than one execution the task may take: one after the other, and the pauses.
    pub fn longest(&self, one: Ms) -> Ms {
        let Some(plan) = &self.rollout else {
            return 0;
        };
        // Agents that joined, too.
        const JOINED: Ms = 10;
        let pause = match plan.pause {
            Some(Pause::For(pause)) => pause.as_millis(),
            _ => 0,
        };
        let pauses = plan.steps.len() as u64 * (pause + 2 * APPROVED_EVERY);
        (u64::from(plan.total) + JOINED) * one + pauses
    }

    /// Time passed during which the server was away.
    pub fn later(&mut self, away: Ms) {
        if let Some(since) = &mut self.paused_since {
            *since += away;
        }
    }

    /// A user let it go on; for how long it had been paused by a user.
    fn resumed(&mut self, now: Ms) -> Ms {
        self.resumed_at = Some(now);
        self.paused_since.take().map_or(0, |since| now - since)
    }

    fn has_too_many_failures(&self, failures: u32) -> bool {
        let plan = self.rollout.as_ref();
        plan.is_some_and(|plan| failures > plan.max_failures)
    }

    /// An execution is handed out. `extended_ttl` has the time of all pauses in it.
    pub fn may_be_handed_out(
        &self,
        now: Ms,
        task: &Task,
        (n, attempt): (u32, u32),
        extended_ttl: Ms,
    ) -> Lawful {
        if self.paused_since.is_some() {
            return Err(format!("nothing_starts_in_a_pause: {} {n}", task.id));
        }
        if self.stopped {
            return Err(format!("nothing_starts_after_a_stop: {} {n}", task.id));
        }
        let failures = failures(task).max(self.failures);
        if self.has_too_many_failures(failures) {
            return Err(format!(
                "nothing_starts_after_too_many_failures: {} {n}, {failures} failures",
                task.id
            ));
        }
        let queued = self.queued.get(&n).copied().unwrap_or(now);
        if self.rollout.is_some() && attempt == 1 && now >= queued + extended_ttl {
            return Err(format!(
                "nothing_is_handed_out_after_its_ttl: {} {n}, queued {} ms ago",
                task.id,
                now - queued
            ));
        }
        Ok(())
    }

    /// Looks at a task after a step of the world.
    fn look(&mut self, now: Ms, task: &Task, is_finished: bool) -> Lawful {
        let is_dull = self.rollout.is_none() && self.targets.is_none() && !self.stopped;
        if self.is_checked || (is_dull && !is_finished) {
            return Ok(());
        }
        let law = |law: &str, why: String| Err(format!("{law}: {} {why}", task.id));
        let states: Vec<ExecutionState> = task.execution_views().map(|e| e.state).collect();
        if let Some(targets) = &self.targets {
            let mut instances = task.execution_views().filter_map(|e| e.instance);
            if states.len() != targets.len() || !instances.all(|i| targets.contains(i)) {
                return law("targets_are_fixed", format!("were {targets:?}"));
            }
        }
        // A debt counts as a failure until it is settled; what it has stopped stays stopped.
        let failures = failures(task).max(self.failures);
        let ended_so = states.iter().filter(|state| is_failure(**state)).count() as u32;
        if ended_so < self.ended_so {
            return law("failures_are_of_the_whole_task", format!("{ended_so}"));
        }
        (self.failures, self.ended_so) = (failures, ended_so);
        let is_stopped = self.stopped || self.has_too_many_failures(failures);
        let waits =
            |state: &ExecutionState| matches!(state, ExecutionState::Held | ExecutionState::Queued);
        // What the cancel of many has marked is canceled in its next slices.
        if is_stopped && !task.is_canceled() && states.iter().any(waits) {
            return law("what_is_stopped_skips_the_rest", format!("{states:?}"));
        }
        if !is_stopped && states.contains(&ExecutionState::Skipped) {
            return law("only_what_is_stopped_is_skipped", format!("{states:?}"));
        }
        self.the_plan_is_kept(now, task, &states)?;
        if is_finished {
            self.is_checked = true;
            let answer = task.answer(0);
            let shown = answer.rollout_state.as_ref().map(|state| &state.plan);
            if let (Some(plan), Some(shown)) = (&self.rollout, shown)
                && plan.steps != *shown
            {
                let why = format!("{:?}, shown {shown:?}", plan.steps);
                return law("the_plan_is_shown", why);
            }
            let stopped_by = answer.stopped_by.as_ref().map(|by| by.kind);
            if stopped_by == Some(StopKind::Failures) && !self.has_too_many_failures(failures) {
                return law("only_too_many_failures_stop_it", format!("{failures}"));
            }
        }
        Ok(())
    }

    /// The window, the barriers between the steps, their pauses, the time that each has.
    fn the_plan_is_kept(&mut self, now: Ms, task: &Task, states: &[ExecutionState]) -> Lawful {
        let Some(plan) = &self.rollout else {
            return Ok(());
        };
        let law = |law: &str, why: String| Err(format!("{law}: {} {why}", task.id));
        let in_hands = |state: &&ExecutionState| {
            matches!(state, ExecutionState::Delivered | ExecutionState::Running)
        };
        let in_hands = states.iter().filter(in_hands).count();
        if in_hands > plan.window as usize {
            let why = format!("{in_hands} of {}: {states:?}", plan.window);
            return law("the_window_is_kept", why);
        }
        for (n, state) in (0..).zip(states) {
            let has_begun = match state {
                ExecutionState::Held | ExecutionState::Canceled | ExecutionState::Skipped => false,
                _ => !self.queued.contains_key(&n),
            };
            if !has_begun {
                continue;
            }
            self.queued.insert(n, now);
            let step = plan.step_of(n);
            let Some(before) = step.checked_sub(1) else {
                let is_early = now < self.created + self.ttl;
                if *state == ExecutionState::Expired && is_early {
                    return law("nothing_expires_before_its_ttl", format!("{n}"));
                }
                continue;
            };
            let earlier = &states[..plan.steps[before] as usize];
            if !earlier.iter().all(|state| state.is_terminal()) {
                let why = format!("{n}, plan {:?}: {states:?}", plan.steps);
                return law("a_step_waits_for_the_one_before", why);
            }
            let ended = self.step_ended[before].unwrap_or(now);
            let is_approved = self.resumed_at.is_some_and(|at| at >= ended);
            let is_over = match plan.pause {
                None => true,
                Some(Pause::For(pause)) => now >= ended + pause.as_millis(),
                Some(Pause::Approve) => false,
            };
            if !is_over && !is_approved {
                let why = format!("{n}, {} ms after the step", now - ended);
                return law("a_step_waits_for_its_pause", why);
            }
        }
        for (n, state) in (0..).zip(states) {
            let step = plan.step_of(n);
            let begin = match step.checked_sub(1) {
                Some(before) => self.step_ended[before],
                None => Some(self.created),
            };
            let is_early = begin.is_none_or(|begin| now < begin + self.ttl);
            if *state == ExecutionState::Expired && is_early {
                return law("nothing_expires_before_its_ttl", format!("{n}"));
            }
        }
        for (until, ended) in plan.steps.iter().zip(&mut self.step_ended) {
            let step = &states[..*until as usize];
            if ended.is_none() && step.iter().all(|state| state.is_terminal()) {
                *ended = Some(now);
            }
        }
        Ok(())
    }
}

impl Users {
    /// The laws of pace, after every step of the world.
    pub fn look_at_pace(&mut self, now: Ms, core: &sidebike::core::Core) -> Lawful {
        for (key, task) in core.tasks_by_key() {
            if let Some(model) = self.task_mut(key) {
                model.pace.stopped |= task.was_stopped_by_keep_alive();
                model.pace.look(now, task, core.is_finished(key))?;
            }
        }
        Ok(())
    }
}

impl World {
    /// A user pauses, resumes or stops a task.
    pub fn user_paces(&mut self) -> Lawful {
        let Some(key) = self.some_task() else {
            return Ok(());
        };
        let now = self.time();
        let is_finished = self.server.core.is_finished(key);
        match self.rng.between(0, 9) {
            0..4 => {
                let paused = self.server.core.pause(now, key);
                self.note(|| format!("pause {key:?}: {paused:?}"));
                self.was_right_to_go_on(key, is_finished, &paused)?;
                if paused.is_ok() {
                    self.count("task paused");
                    let at = self.now;
                    let model = self.users.task_mut(key);
                    model.map(|model| model.pace.paused_since.get_or_insert(at));
                }
            }
            4..8 => {
                let resumed = self.user_resumes(key);
                self.was_right_to_go_on(key, is_finished, &resumed)?;
            }
            _ => {
                let cancels = self.rng.pick(&[None, Some(true), Some(false)]);
                let stopped = self.server.core.stop(now, key, cancels);
                self.note(|| format!("stop {key:?} {cancels:?}: {stopped:?}"));
                if stopped.is_err() {
                    return Err(format!("what_is_known_can_be_stopped: {key:?} {stopped:?}"));
                }
                if !is_finished {
                    self.count("task stopped");
                    if let Some(model) = self.users.task_mut(key) {
                        model.pace.stopped = true;
                    }
                }
            }
        }
        Ok(())
    }

    fn user_resumes(&mut self, key: TaskKey) -> Result<(), Refusal> {
        let resumed = self.server.core.resume(self.time(), key);
        self.note(|| format!("resume {key:?}: {resumed:?}"));
        if let (Ok(()), Some(model)) = (&resumed, self.users.task_mut(key)) {
            model.ttl += model.pace.resumed(self.now);
        }
        resumed
    }

    /// A task that has neither ended nor was stopped can be paused and resumed.
    fn was_right_to_go_on(
        &self,
        key: TaskKey,
        is_finished: bool,
        answer: &Result<(), Refusal>,
    ) -> Lawful {
        let Some(model) = self.users.task(key) else {
            return Ok(());
        };
        let pace = &model.pace;
        let is_over = is_finished
            || pace.stopped
            || pace.has_too_many_failures(pace.failures)
            || self.laws.is_canceled(key)
            || self.is_marked_canceled(key);
        match answer {
            Ok(()) if is_over => Err(format!("what_is_over_does_not_go_on: {key:?}")),
            Err(why) if !is_over => Err(format!("what_goes_on_can_be_paused: {key:?} {why}")),
            _ => Ok(()),
        }
    }

    /// After the faults have stopped: users let everything go on that waits for them.
    pub fn users_approve(&mut self) -> Lawful {
        self.crew_is_let_go();
        let unfinished: Vec<TaskKey> = { self.server.core.tasks_by_key() }
            .map(|(key, _)| key)
            .filter(|key| !self.server.core.is_finished(*key))
            .collect();
        for key in &unfinished {
            // Refused if it was stopped or canceled, and still runs.
            let _ = self.user_resumes(*key);
        }
        if !unfinished.is_empty() {
            self.after(APPROVED_EVERY, Event::User);
        }
        self.see_to_notices()
    }
}
