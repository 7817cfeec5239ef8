//! Tasks that begin after another one machine by machine: `"perMachine": true` in an entry of `after`.
//!
//! Such a task is launched as soon as its other edges are met and the machines of its parent are known; its targets are
//! those of the parent. Each execution is `held` until its counterpart, the execution of the parent on the same instance,
//! has ended for good. An agent reports an end together with its undo, so that is settled, too. Then it goes or is skipped:
//!
//! | the counterpart ended | `succeeded` | `failed` | `ended` |
//! | --- | --- | --- | --- |
//! | succeeded | goes | skipped | goes |
//! | failed, timed out, lost, expired | skipped | goes | goes |
//! | canceled, skipped | skipped | skipped | goes |
//! | there is none | skipped | skipped | skipped |
//!
//! Which execution waits for which follows from the two tasks and is not saved: what is held, has no `ttl` of its own yet and
//! has never been tried still waits. What has ended is worked off by [`Core::settle_dependents`], in the commit of the end,
//! with the same bound; a child is a parent itself, so a chain is no recursion.

use super::after::Edge;
use super::counting::Choice;
use super::invariants::Rule;
use super::selector::{Selector, Traits, no_tags};
use super::settle::Unsettled;
use super::spec::Spec;
use super::task::{Execution, Target, TaskData};
use super::timers::Timer;
use super::{Core, ExecutionKey, MachineKey, Refusal, TaskKey, Time, data_mut};
use crate::wire::after::Outcome;
use crate::wire::task::{ExecutionState, Mode};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// The number of a counterpart that is not there.
const NOWHERE: u32 = u32::MAX;
/// The targets of a task, and the live machines among them.
pub(super) type ChosenTargets = (Choice, Vec<Arc<Target>>);

/// Whether what waits goes after a counterpart that ended in this state.
fn goes(on: Outcome, state: ExecutionState) -> bool {
    use ExecutionState::*;
    match (on, state) {
        (_, Held | Queued | Delivered | Running) => false,
        (Outcome::Ended, _) => true,
        (_, Canceled | Skipped) => false,
        (Outcome::Succeeded, end) => end == Succeeded,
        (Outcome::Failed, end) => end != Succeeded,
    }
}

impl TaskData {
    /// The edge of a task that follows another one machine by machine.
    pub(super) fn per_machine(&self) -> Option<&Edge> {
        let waiting = self.waiting.as_ref()?;
        waiting.after.iter().find(|edge| edge.per_machine)
    }

    /// Whether an execution of it still waits for its counterpart, as far as it is saved.
    pub(super) fn awaits_counterpart(&self, e: &Execution) -> bool {
        let is_new = e.current.number == 1 && e.current.expires_at.is_none();
        is_new && e.state == ExecutionState::Held && self.per_machine().is_some()
    }
}

impl Core {
    /// Refuses a parent that has not the same machines for all of its time.
    pub(super) fn check_parent_per_machine(
        &self,
        entry: usize,
        parent: TaskKey,
    ) -> Result<(), Refusal> {
        let task = self.task(parent);
        let why = match (task.spec.mode, task.spec.late_join) {
            (Mode::Any, _) => "runs on any one machine; it has to have mode \"all\"",
            (Mode::All, true) => "has lateJoin, so it may get further machines at any time",
            (Mode::All, false) => return Ok(()),
        };
        Err(Refusal::Wrong(format!(
            "after[{entry}].perMachine: task {} {why}",
            task.id
        )))
    }

    /// The selector of a task that says nothing about machines itself: that of its parent.
    pub(super) fn selector_of_parent(&self, edges: &[Edge], own: Selector) -> Selector {
        let edge = edges.iter().find(|edge| edge.per_machine);
        let parent = edge.and_then(|edge| self.tasks.get(&TaskKey(*edge.tasks.first()?)));
        let Some(parent) = parent else {
            return own;
        };
        let selector = &parent.spec.selector;
        let known = self.match_index.selector(selector.text());
        known.unwrap_or_else(|| selector.clone())
    }

    /// The selector of a task that has not been accepted.
    pub(super) fn previewed_selector(&self, spec: &Spec) -> Selector {
        let parents = { spec.wait.iter() }
            .filter(|wait| wait.has_machines_of_parent)
            .flat_map(|wait| &wait.after);
        let parent = { parents }
            .filter(|parent| parent.per_machine)
            .find_map(|parent| self.find_task(&parent.name).ok());
        match parent {
            Some(parent) => self.task(parent).spec.selector.clone(),
            None => spec.selector.clone(),
        }
    }

    /// Whether it is known which machines a task has, or that it never has any.
    pub(super) fn has_fixed_machines(&self, key: TaskKey) -> bool {
        let task = self.tasks.get(&key);
        task.is_none_or(|task| !task.open && !task.is_unbegun())
    }

    /// The machines of a task may be known now: those that follow it machine by machine may begin.
    pub(super) fn machines_are_fixed(&mut self, parent: TaskKey) {
        if !self.has_fixed_machines(parent) {
            return;
        }
        let waits = |child: &TaskKey| {
            let edge = self.task(*child).per_machine();
            edge.is_some_and(|edge| edge.left.contains(&parent.0))
        };
        let children: Vec<TaskKey> = self.open_children(parent).filter(waits).collect();
        let children = children.into_iter().map(|child| (parent, child));
        self.counterparts.machines.extend(children);
    }

    /// What is to be settled next.
    pub(super) fn next_counterpart(&mut self) -> Option<Unsettled> {
        if let Some((parent, child)) = self.counterparts.machines.front().copied() {
            return Some(Unsettled::Machines(parent, child));
        }
        while let Some(task) = self.counterparts.expired.front().copied() {
            if let Some((waiting, _)) = self.counterparts.of_task(task).next() {
                return Some(Unsettled::Expired(waiting));
            }
            self.counterparts.expired.pop_front();
        }
        while let Some(counterpart) = self.counterparts.ended.front().copied() {
            if let Some(waiting) = self.counterparts.first_for(counterpart) {
                return Some(Unsettled::Counterpart(counterpart, waiting));
            }
            self.counterparts.ended.pop_front();
        }
        None
    }

    /// The machines of the parent are known: its child waits for nothing else of it.
    pub(super) fn settle_machines(&mut self, now: Time, parent: TaskKey, child: TaskKey) {
        self.counterparts.machines.pop_front();
        let Some(task) = self.tasks.get(&child).filter(|task| task.is_unbegun()) else {
            return;
        };
        let edge = task.per_machine();
        let Some(edge) = edge.filter(|edge| edge.left.contains(&parent.0)) else {
            return;
        };
        let met = self.verdict(edge);
        let waiting = self.task_mut(child).waiting.as_mut();
        let edges = waiting.into_iter().flat_map(|waiting| &mut waiting.after);
        for edge in edges.filter(|edge| edge.per_machine) {
            edge.left.clear();
            edge.met = Some(met);
        }
        self.edge_is_settled(parent, child);
        self.go_on_after(now, child);
    }

    /// The targets of a task that is about to begin, if it follows another one machine by machine: those of its parent
    /// that it means, and the machines that it means besides, on which it will be skipped.
    pub(super) fn choose_counterparts(
        &self,
        accepted: Option<TaskKey>,
        spec: &Spec,
    ) -> Result<Option<ChosenTargets>, Refusal> {
        let edge = accepted.and_then(|key| self.task(key).per_machine());
        let Some(edge) = edge else {
            return Ok(None);
        };
        let parents = edge.tasks.iter().map(|key| self.tasks.get(&TaskKey(*key)));
        let executions = parents.flatten().flat_map(|parent| &parent.executions);
        let targets = executions.filter_map(|e| e.target.clone());
        let mut targets: Vec<Arc<Target>> = targets.collect();
        let needs_meant = edge.has_own_machines || spec.counts.keep_alive.is_some();
        let meant = match needs_meant {
            true => self.meant_by(&spec.selector),
            false => Vec::new(),
        };
        if edge.has_own_machines {
            self.keep_meant(spec, &meant, &mut targets);
        }
        let known = |target: &Arc<Target>| self.instances.get(&target.instance).copied();
        let mut machines: Vec<MachineKey> = targets.iter().filter_map(known).collect();
        machines.retain(|key| self.machine(*key).is_live());
        if let Some(keep_alive) = &spec.counts.keep_alive {
            self.check_keep_alive(keep_alive, &meant, &machines)?;
        }
        self.check_probe_machines(spec, &machines)?;
        let choice = Choice {
            matched: machines.len() as u32,
            machines,
            ..Choice::default()
        };
        Ok(Some((choice, targets)))
    }

    /// Keeps of the targets of a parent those that a task means itself, and adds the live machines that it means besides.
    fn keep_meant(&self, spec: &Spec, meant: &[MachineKey], targets: &mut Vec<Arc<Target>>) {
        let is_known: HashSet<&MachineKey> = meant.iter().collect();
        let compiled = spec.selector.to_compiled();
        targets.retain(|target| match self.instances.get(&target.instance) {
            Some(key) => is_known.contains(key),
            // Of a machine that is forgotten the tags are no longer known.
            None => {
                let traits = Traits {
                    label: target.label.clone(),
                    host: target.host.clone(),
                    tags: no_tags(),
                };
                compiled.matches(&traits) && compiled.names(&target.instance)
            }
        });
        let there = targets.iter().map(|target| target.instance.clone());
        let there: HashSet<Arc<str>> = there.collect();
        let others = meant.iter().filter(|key| self.machine(**key).is_live());
        let others = others.filter(|key| !there.contains(&self.machine(**key).instance));
        targets.extend(others.map(|key| self.target(*key)));
    }

    /// The executions of a task that was just launched, or restored, begin to wait for their counterparts.
    pub(super) fn await_counterparts(&mut self, now: Time, key: TaskKey) {
        let task = self.task(key);
        let Some(edge) = task.per_machine() else {
            return;
        };
        let parent = TaskKey(edge.tasks.first().copied().unwrap_or_default());
        let executions = self.tasks.get(&parent).into_iter();
        let executions = executions.flat_map(|parent| (0..).zip(&parent.executions));
        let by_instance = executions.filter_map(|(n, e)| Some((&*e.target.as_ref()?.instance, n)));
        let by_instance: HashMap<&str, u32> = by_instance.collect();
        let waiting = (0..).zip(&task.executions);
        let waiting = waiting.filter(|(_, e)| task.awaits_counterpart(e));
        let pairs = waiting.map(|(n, e)| {
            let instance = e.target.as_ref().map(|target| &*target.instance);
            let counterpart = instance.and_then(|instance| by_instance.get(instance));
            let counterpart = ExecutionKey {
                task: parent,
                n: counterpart.copied().unwrap_or(NOWHERE),
            };
            (ExecutionKey { task: key, n }, counterpart)
        });
        let pairs: Vec<(ExecutionKey, ExecutionKey)> = pairs.collect();
        if pairs.is_empty() {
            return;
        }
        let mut ended = BTreeSet::new();
        for (waiting, counterpart) in pairs {
            self.counterparts.insert(waiting, counterpart);
            if self.is_over(counterpart) {
                ended.insert(counterpart);
            }
        }
        self.counterparts.ended.extend(ended);
        let Some(waiting) = self.task_mut(key).waiting.as_mut() else {
            return;
        };
        let later = now.later_by(waiting.blocked_ms);
        let until = *waiting.blocked_until.get_or_insert(later);
        self.timers.set(until, Timer::CounterpartTtl(key));
    }

    /// An execution waits no longer: it goes, or has ended.
    pub(super) fn awaits_no_longer(&mut self, key: ExecutionKey) {
        if !self.counterparts.remove(key) || self.awaits_something(key.task) {
            return;
        }
        let waiting = self.task(key.task).waiting.as_ref();
        if let Some(until) = waiting.and_then(|waiting| waiting.blocked_until) {
            self.timers.cancel(until, Timer::CounterpartTtl(key.task));
        }
    }

    pub(super) fn awaits_something(&self, key: TaskKey) -> bool {
        self.counterparts.of_task(key).next().is_some()
    }

    /// Whether a counterpart has ended for good. One that is not there has.
    pub(super) fn is_over(&self, key: ExecutionKey) -> bool {
        let task = self.tasks.get(&key.task);
        let execution = task.and_then(|task| task.executions.get(key.n as usize));
        execution.is_none_or(|e| e.state.is_terminal() || !self.keeps(Rule::CounterpartIsAwaited))
    }

    /// An execution has ended.
    pub(super) fn counterpart_ended(&mut self, key: ExecutionKey) {
        if self.counterparts.first_for(key).is_some() {
            self.counterparts.ended.push_back(key);
        }
    }

    /// An execution has ended for which another one has waited: that goes, or is skipped.
    pub(super) fn settle_counterpart(
        &mut self,
        now: Time,
        counterpart: ExecutionKey,
        waiting: ExecutionKey,
    ) {
        self.awaits_no_longer(waiting);
        let Some(edge) = self.task(waiting.task).per_machine() else {
            return;
        };
        let parent = self.tasks.get(&counterpart.task);
        let execution = parent.and_then(|task| task.executions.get(counterpart.n as usize));
        let state = execution.map(|e| e.state);
        let name = edge.in_words();
        let is_kept = self.keeps(Rule::CounterpartIsAwaited);
        let goes = state.is_some_and(|state| goes(edge.on, state) || !is_kept);
        if goes {
            return self.let_go(now, waiting);
        }
        let why = match (parent, state) {
            (None, _) => format!("{name} is no longer known"),
            (Some(_), None) => format!("{name} has nothing on this machine"),
            (Some(_), Some(state)) => format!(
                "was to begin after {name}{} on this machine, where it ended {}",
                edge.on_in_words(),
                state.word()
            ),
        };
        self.end_attempt(now, waiting, ExecutionState::Skipped, &why);
    }

    /// An execution has its turn: its `ttl` begins.
    fn let_go(&mut self, now: Time, key: ExecutionKey) {
        let task = self.task(key.task);
        let paused = task.pacing.as_ref().and_then(|it| it.paused.as_ref());
        // The end of a pause adds all of it, as no ttl runs meanwhile.
        let begin = paused.map_or(now, |paused| paused.since.min(now));
        let expires = begin.plus(task.spec.ttl);
        self.set_expiry(key, expires);
        let pacing = data_mut(&mut self.tasks, key.task).pacing.as_mut();
        if let Some(pacing) = pacing {
            pacing.returned.insert(key.n);
        }
        self.pace(now, key.task);
    }

    /// Cancels the next executions of a task of which some wait for those of a parent that was canceled together with its
    /// dependents, `most` of them at most. Returns how many. Those that wait come last, because the task is found by
    /// them, also after a restart.
    pub(super) fn cancel_waiting(
        &mut self,
        now: Time,
        parent: TaskKey,
        child: TaskKey,
        most: usize,
    ) -> usize {
        let why = match self.tasks.get(&parent) {
            Some(parent) => format!("canceled with task {}, which it waited for", parent.id),
            None => "canceled before it started".into(),
        };
        self.cancel_dependents(child);
        self.mark_canceled(now, child);
        let meant = (0..).zip(&self.task(child).executions);
        let meant = meant.filter(|(_, e)| e.is_meant(false));
        let (waiting, others): (Vec<_>, Vec<_>) = meant
            .map(|(n, _)| ExecutionKey { task: child, n })
            .partition(|key| self.counterparts.is_waiting(*key));
        // The last first: what is held behind others of its task does not get their turns.
        let slice = others.into_iter().rev().chain(waiting).take(most);
        let slice: Vec<ExecutionKey> = slice.collect();
        for execution in &slice {
            if self.counterparts.is_waiting(*execution) {
                self.end_attempt(now, *execution, ExecutionState::Canceled, &why);
            } else if self.tasks.contains_key(&child) {
                // With its last end a task may be forgotten, to make room.
                self.cancel_execution(now, *execution);
            }
        }
        slice.len()
    }

    /// What an execution waits for has not ended within the `blockedTtl` of its task.
    pub(super) fn counterpart_ttl_is_over(&mut self, now: Time, waiting: ExecutionKey) {
        if let Some(edge) = self.task(waiting.task).per_machine() {
            let name = edge.in_words();
            let why = format!("{name} did not end on this machine within the blockedTtl");
            self.end_attempt(now, waiting, ExecutionState::Expired, &why);
        }
    }

    /// Finds again who waits for whom, and what of it a crash has interrupted.
    pub(super) fn restore_counterparts(&mut self, now: Time) {
        let tasks = self.tasks.iter();
        let tasks = tasks.filter(|(_, task)| task.finished_at.is_none());
        let tasks = tasks.filter_map(|(key, task)| Some((*key, task.per_machine()?)));
        let tasks: Vec<(TaskKey, Vec<u64>)> = tasks
            .map(|(key, edge)| (key, edge.left.iter().copied().collect()))
            .collect();
        for (key, left) in tasks {
            if !self.task(key).is_unbegun() {
                self.await_counterparts(now, key);
                continue;
            }
            for parent in left.into_iter().map(TaskKey) {
                if self.has_fixed_machines(parent) {
                    self.counterparts.machines.push_back((parent, key));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Limits, Saved, Selection};
    use crate::wire::task::PostedTask;
    use serde_json::json;

    fn spec(json: &str) -> Spec {
        let posted: PostedTask = serde_json::from_str(json).unwrap();
        Spec::checked(posted, &Limits::NONE.texts, |_| None).unwrap()
    }

    #[test]
    fn an_older_program_does_not_open_a_file_with_such_a_task() {
        let mut core = Core::new(Limits::NONE, Time(1_000));
        core.record_changes();
        let parent = r#"{"id": "p", "machinePattern": "m", "detail": {"command": "true"}}"#;
        core.submit(Time(1_000), "one", spec(parent)).unwrap();
        let plain =
            r#"{"machinePattern": "m", "after": [{"task": "p"}], "detail": {"command": "true"}}"#;
        core.submit(Time(1_000), "two", spec(plain)).unwrap();
        assert_eq!(core.take_batch().reader_version(), 5);
        let child =
            r#"{"after": [{"task": "p", "perMachine": true}], "detail": {"command": "true"}}"#;
        core.submit(Time(1_000), "three", spec(child)).unwrap();
        assert_eq!(core.take_batch().reader_version(), 6);
    }

    #[test]
    fn the_table_of_ends() {
        use ExecutionState::*;
        for (state, expected) in [
            (Succeeded, [true, false, true]),
            (Failed, [false, true, true]),
            (TimedOut, [false, true, true]),
            (Lost, [false, true, true]),
            (Expired, [false, true, true]),
            (Canceled, [false, false, true]),
            (Skipped, [false, false, true]),
            (Held, [false; 3]),
            (Queued, [false; 3]),
            (Delivered, [false; 3]),
            (Running, [false; 3]),
        ] {
            let row = [Outcome::Succeeded, Outcome::Failed, Outcome::Ended];
            assert_eq!(row.map(|on| goes(on, state)), expected, "{state:?}");
        }
    }

    const MACHINES: u32 = 1_200;
    const NOW: Time = Time(1_000_000);

    /// A task on many machines, and one that follows it machine by machine. On the first `gone` machines the second one
    /// waits no longer, and half of these have been handed it.
    fn on_many_machines(gone: u32) -> (Core, TaskKey, TaskKey) {
        let mut core = Core::new(Limits::NONE, NOW);
        core.record_changes();
        let poll = |core: &mut Core, n: u32, seq: u64| {
            let poll = json!({"instance": format!("{n:08x}"), "seq": seq, "label": "m", "jobs": 1});
            let poll = serde_json::from_value(poll).unwrap();
            core.poll(NOW, &poll, None).unwrap();
        };
        (0..MACHINES).for_each(|n| poll(&mut core, n, 1));
        let parent = r#"{"id": "p", "machinePattern": "m", "detail": {"command": "x"}}"#;
        let parent = core.submit(NOW, "one", spec(parent)).unwrap();
        let child = r#"{"after": [{"task": "p", "on": "ended", "perMachine": true}],
            "blockedTtl": 10, "detail": {"command": "x"}}"#;
        let child = core.submit(NOW, "two", spec(child)).unwrap();
        core.tick(NOW);
        for n in 0..gone {
            core.cancel_execution(NOW, ExecutionKey { task: parent, n });
        }
        while core.next_counterpart().is_some() {
            core.tick(NOW);
        }
        (0..gone / 2).for_each(|n| poll(&mut core, n, 2));
        core.check_invariants().unwrap();
        let counts = core.task(child).counts;
        assert_eq!(
            (counts.held, counts.queued, counts.delivered),
            (MACHINES - gone, gone - gone / 2, gone / 2)
        );
        (core, parent, child)
    }

    fn restarted(core: &mut Core, now: Time) -> Core {
        let mut saved = Saved::default();
        saved.apply(now, &core.take_batch());
        Core::restored(Limits::NONE, now, saved).unwrap()
    }

    #[test]
    fn many_are_canceled_with_their_parent_in_slices() {
        let (mut core, parent, child) = on_many_machines(600);
        core.cancel_dependents(parent);
        core.cancel(NOW, parent, &Selection::All).unwrap();
        let open = |core: &Core| {
            let executions = core.task(child).executions.iter();
            executions.filter(|e| e.is_meant(false)).count()
        };
        let mut left = vec![open(&core)];
        while left.last() != Some(&0) && left.len() < 5 {
            core.settle_dependents(NOW);
            core.check_invariants().unwrap();
            left.push(open(&core));
            if left.len() == 2 {
                core = restarted(&mut core, NOW);
            }
        }
        assert_eq!(left, [1_200, 701, 202, 0]);
        let counts = core.task(child).counts;
        assert_eq!((counts.canceled, counts.delivered), (900, 300));
        let last = core.task(child).executions.last().unwrap();
        assert_eq!(
            &*last.current.msg,
            "canceled with task p, which it waited for"
        );
    }

    #[test]
    fn many_that_have_waited_too_long_expire_in_slices() {
        let (mut core, _, child) = on_many_machines(0);
        let now = Time(NOW.0 + 10_000);
        let mut expired = Vec::new();
        while expired.last() != Some(&MACHINES) && expired.len() < 5 {
            let next = core.tick(now).unwrap();
            core.check_invariants().unwrap();
            expired.push(core.task(child).counts.expired);
            match expired.len() {
                1 => core = restarted(&mut core, now),
                2 => assert_eq!(next.millis_since(now), 1),
                _ => {}
            }
        }
        assert_eq!(expired, [500, 1_000, 1_200]);
    }
}
