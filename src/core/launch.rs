//! From a checked task to its executions, in two steps: it is accepted (its record, id and name), and it is launched
//! (who matches, its targets, the queues). Most tasks take both at once. One that waits for something is accepted now,
//! and launched when it begins, see `waiting.rs`.
//!
//! Nothing is changed before everything that could refuse it was checked: [`Core::prepare`] has all checks of a launch.

use super::counting::Choice;
use super::match_index::SelectorKey;
use super::named_limits::SetKey;
use super::pace::Pacing;
use super::selector::Selector;
use super::spec::Spec;
use super::task::{Execution, Target, Task, TaskData};
use super::timers::Timer;
use super::unique::Unique;
use super::waiting::Waiting;
use super::{Core, ExecutionKey, Refusal, TaskKey, Time, data_mut};
use crate::wire::order::OnDuplicate;
use crate::wire::task::{Counts, ExecutionState, Mode};
use crate::wire::undo::UndoCounts;
use std::sync::Arc;

/// A launch that nothing refuses: what becomes of a task at this moment.
#[derive(Debug)]
pub(super) struct Launch {
    selector: SelectorKey,
    choice: Choice,
    /// A machine for each execution.
    pub targets: Vec<Option<Arc<Target>>>,
    /// New machines may join it.
    open: bool,
}

impl Launch {
    /// Whether it follows another task machine by machine, and means none of its machines.
    pub(super) fn is_of_no_machine(&self) -> bool {
        self.targets.is_empty() && !self.open
    }
}

impl Core {
    /// Accepts a task, and launches it unless it has to wait. `fresh_id` was never used before; it becomes the task's id
    /// unless the spec has one.
    ///
    /// Refused with [`Refusal::Taken`] if the id is in use, with [`Refusal::Full`] at a limit, with
    /// [`Refusal::Conflict`] if it would hit more machines than it may, as [`Core::check_unique`] if its key is held.
    pub fn submit(
        &mut self,
        now: Time,
        fresh_id: &str,
        mut spec: Spec,
    ) -> Result<TaskKey, Refusal> {
        let prefix: Arc<str> = fresh_id.into();
        let id = spec.id.take().unwrap_or_else(|| prefix.clone());
        self.check_unused(&id, &prefix)?;
        let replaced = self.check_unique(&spec)?;
        self.check_named_limits(&spec.limits)?;
        self.check_notify(&spec)?;
        let wait = spec.take_wait();
        let replaces = |unique: &Unique| unique.on_duplicate == OnDuplicate::Replace;
        let replaces = spec.unique.as_deref().is_some_and(replaces);
        if replaces && !(wait.after.is_empty() && spec.children.is_empty()) {
            return Err(Refusal::Impossible(
                "onDuplicate: \"replace\" does not go with after, onSuccess, onFailure and onEnd"
                    .into(),
            ));
        }
        let edges = self.edges_of(&wait)?;
        if wait.has_machines_of_parent {
            spec.selector = self.selector_of_parent(&edges, spec.selector);
        }
        if let Some(waiting) = Core::waiting_of(now, &wait, edges) {
            self.check_halt(spec.detail.undo.is_some())?;
            self.check_room(&spec, 0)?;
            self.check_children(&id, &prefix, &spec)?;
            let selector = self.selector_if_room(&spec)?;
            let spec = self.shared_spec(selector, spec);
            // First: to add it may forget others to make room.
            self.keep_parents(TaskKey(self.next_task), &waiting);
            let key = self.add_task(now, id, prefix, spec, Some(waiting));
            self.list_waiting(key);
            self.replace(now, replaced);
            self.add_children(now, key);
            self.go_on_after(now, key);
            return Ok(key);
        }
        self.check_children(&id, &prefix, &spec)?;
        let launch = self.prepare(now, &id, &spec, None)?;
        let spec = self.shared_spec(launch.selector, spec);
        let key = self.add_task(now, id, prefix, spec, None);
        self.add_children(now, key);
        self.launch(now, key, launch);
        self.replace(now, replaced);
        Ok(key)
    }

    /// Checks everything that could refuse the launch of a task at this moment, and finds out who it is for. `accepted` is
    /// the task if it has been accepted already, and counts.
    pub(super) fn prepare(
        &mut self,
        now: Time,
        id: &str,
        spec: &Spec,
        accepted: Option<TaskKey>,
    ) -> Result<Launch, Refusal> {
        self.check_halt(spec.detail.undo.is_some())?;
        let per_machine = self.choose_counterparts(accepted, spec)?;
        let is_per_machine = per_machine.is_some();
        let (choice, counterparts) = match per_machine {
            Some((choice, targets)) => (choice, targets),
            None => {
                let meant = self.meant_by(&spec.selector);
                (self.choose(now, id, spec, meant)?, Vec::new())
            }
        };
        let is_any = spec.mode == Mode::Any;
        let number = if is_any {
            1
        } else {
            choice.machines.len().max(counterparts.len()).max(1)
        };
        match accepted {
            None => self.check_room(spec, number)?,
            Some(_) => self.check_room_to_begin(spec, number)?,
        }
        // Last of the checks: it may drop another selector to make room.
        let selector = self.selector_if_room(spec)?;
        let targets = match is_any {
            true => vec![None],
            false if is_per_machine => counterparts.into_iter().map(Some).collect(),
            false => { choice.machines.iter() }
                .map(|machine| Some(self.target(*machine)))
                .collect(),
        };
        Ok(Launch {
            open: !is_any && !is_per_machine && (spec.late_join || targets.is_empty()),
            selector,
            choice,
            targets,
        })
    }

    /// Launches an accepted task: gives it its executions, and queues them.
    pub(super) fn launch(&mut self, now: Time, key: TaskKey, launch: Launch) {
        let Launch {
            selector,
            choice,
            targets,
            open,
        } = launch;
        self.add_executions(now, key, targets, &choice);
        let spec = self.task(key).spec.clone();
        if open {
            self.task_mut(key).open = true;
            self.open(key, selector);
        }
        if self.task(key).pacing.is_some() {
            // Its probes have to pass first, it has a rollout, the task that it replaces has not ended, or it follows
            // another one machine by machine.
        } else if spec.mode == Mode::Any {
            self.queue_for_any(ExecutionKey { task: key, n: 0 }, selector);
        } else {
            for (n, machine) in (0..).zip(choice.machines) {
                self.queue_first(now, ExecutionKey { task: key, n }, machine);
            }
        }
        self.await_counterparts(now, key);
        self.pace(now, key);
        self.skip_busy_machines(now, key);
        self.machines_are_fixed(key);
        let watched = { spec.probes.iter() }.filter_map(|probe| probe.on.as_ref());
        let pool = { spec.counts.keep_alive.as_ref() }.and_then(|it| it.pool.as_ref());
        for selector in watched.chain(pool) {
            // They are asked for while it runs, and are compiled now.
            self.match_index.key_of(selector);
        }
    }

    pub(super) fn selector_if_room(&mut self, spec: &Spec) -> Result<SelectorKey, Refusal> {
        self.match_index.key_if_room(&spec.selector).ok_or_else(|| {
            Refusal::Full(format!(
                "{} different selectors of machines have tasks waiting for them, the limit (--max-patterns)",
                self.limits.patterns
            ))
        })
    }

    /// The spec as it is stored. Many tasks differ in nothing but their id, and many more have the same name:
    /// equal specs and names are stored once.
    pub(super) fn shared_spec(&mut self, selector: SelectorKey, mut spec: Spec) -> Arc<Spec> {
        spec.selectors_mut().for_each(Selector::drop_compiled);
        let last = &mut self.match_index.entry_mut(selector).last_spec;
        if let Some(same) = last.upgrade().filter(|last| **last == spec) {
            return same;
        }
        if let Some((name, _)) = self.task_names.get_key_value(&spec.name) {
            spec.name = name.clone();
        }
        let spec = Arc::new(spec);
        *last = Arc::downgrade(&spec);
        spec
    }

    /// Adds a task without executions: its record, its id and its name.
    pub(super) fn add_task(
        &mut self,
        now: Time,
        id: Arc<str>,
        prefix: Arc<str>,
        spec: Arc<Spec>,
        waiting: Option<Waiting>,
    ) -> TaskKey {
        let key = TaskKey(self.next_task);
        self.next_task += 1;
        self.make_room_for_detail(spec.kept_bytes());
        self.ledger.add_task(spec.kept_bytes());
        self.task_ids.insert(id.clone(), key);
        if prefix != id {
            self.task_prefixes.insert(prefix.clone(), key);
        }
        match self.task_names.get_mut(&spec.name) {
            Some(keys) => drop(keys.insert(key)),
            None => drop(self.task_names.insert(spec.name.clone(), [key].into())),
        }
        if let Some(group) = { spec.about.as_ref() }.and_then(|about| about.group.as_ref()) {
            self.groups.add(group, key, false);
        }
        let task = TaskData {
            id,
            prefix,
            created_at: now,
            order: None,
            limit_set: SetKey::NONE,
            expires_at: now.plus(spec.ttl),
            spec,
            finished_at: None,
            rerun_of: None,
            matched: 0,
            spared: 0,
            pacing: None,
            probes: None,
            open: false,
            late_join_full: false,
            canceled: false,
            withdrawn: false,
            waiting: waiting.map(Box::new),
            needed: false,
            cancels_dependents: false,
            counts: Counts::default(),
            undos: UndoCounts::default(),
            notifications: Vec::new(),
            output_bytes: 0,
            is_last_firing: false,
            executions: Vec::new(),
        };
        self.tasks.insert(key, Task::new(task));
        self.task_mut(key);
        self.add_blobs(key);
        self.take_key(key);
        self.take_limits(now, key);
        self.index_firing(key);
        self.stats.submitted += 1;
        key
    }

    /// Gives a task its executions. Its `ttl` begins.
    pub(super) fn add_executions(
        &mut self,
        now: Time,
        key: TaskKey,
        targets: Vec<Option<Arc<Target>>>,
        choice: &Choice,
    ) {
        let spec = &self.task(key).spec;
        let expires_at = now.plus(spec.ttl);
        let mut pacing = choice.plan.clone().map(Pacing::new);
        if spec.has_probe_before() {
            let gated = || Pacing::gated(targets.len() as u32);
            pacing.get_or_insert_with(gated).is_gated = true;
        }
        if self.waits_for_key(key) {
            pacing.get_or_insert_with(|| Pacing::held(targets.len() as u32));
        }
        if self.task(key).per_machine().is_some() {
            pacing = Some(pacing.unwrap_or_default().per_machine());
        }
        let state = match pacing {
            Some(_) => ExecutionState::Held,
            None => ExecutionState::Queued,
        };
        let number = targets.len() as u32;
        let task = data_mut(&mut self.tasks, key);
        (task.matched, task.spared) = (choice.matched, choice.spared.len() as u32);
        task.pacing = pacing.map(Box::new);
        task.expires_at = expires_at;
        *task.counts.of(state) += number;
        let executions = targets.into_iter();
        task.executions = executions.map(|t| Execution::new(state, t)).collect();
        self.timers.set(expires_at, Timer::TaskTtl(key));
        self.task_mut(key);
        self.list_queued(key);
        for n in 0..number {
            let execution = ExecutionKey { task: key, n };
            self.ledger.add_execution(state);
            // Also those that wait for their turn: nothing else changes them for a long time.
            if let Some(changes) = &mut self.changes {
                changes.execution(execution);
            }
            self.guard(execution);
            self.list_off_queue(execution);
            self.record_change(execution);
        }
        self.add_probes(now, key);
        self.watch_pool(now, key);
    }
}
