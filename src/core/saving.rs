//! Records what has changed, and makes the records of it that are saved. What they are is in `saved.rs`.

use super::halt::Halt;
use super::machine::Machine;
use super::output::Output;
use super::probe_data::{ONE_MACHINE, Summary};
use super::saved::{
    Batch, OutputChange, OutputKey, Saved, SavedChild, SavedExecution, SavedMachine, SavedPiece,
    SavedPlace, SavedProbe, SavedTask,
};
use super::spec::Spec;
use super::task::{Attempt, Execution, PastAttempt, Place, Task};
use super::{Core, ExecutionKey, ScheduleKey, TaskKey, Time};
use crate::wire::machine::MachineState;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The output of an attempt is saved piece by piece. Once the pieces have this many bytes in all, they are
/// replaced by the output that is kept.
const REPLACED_AFTER_BYTES: usize = 4 << 20;

/// What has changed since the last batch.
#[derive(Debug, Default)]
pub(super) struct Changes {
    tasks: BTreeSet<TaskKey>,
    pub(super) executions: BTreeSet<ExecutionKey>,
    machines: BTreeSet<Arc<str>>,
    output: Vec<(OutputKey, OutputChange)>,
    /// Notifications by number.
    pub(super) notifications: BTreeSet<u64>,
    /// The halt, if it has changed.
    pub(super) halt: Option<Option<Halt>>,
    /// Limits that have changed, by name.
    pub(super) limits: BTreeSet<Arc<str>>,
    /// The suspensions have changed.
    pub(super) suspensions: bool,
    /// For how long servers were away in all, if that has changed.
    pub(super) away_ms: Option<u64>,
    /// Schedules that have come further.
    schedules: BTreeSet<ScheduleKey>,
    /// Schedules that were posted or deleted.
    schedule_texts: BTreeSet<ScheduleKey>,
    /// The size of the pieces saved of each unfinished attempt since they were last replaced.
    pub(super) saved_bytes: BTreeMap<OutputKey, usize>,
}

impl Changes {
    pub fn task(&mut self, key: TaskKey) {
        self.tasks.insert(key);
    }

    pub fn execution(&mut self, key: ExecutionKey) {
        self.executions.insert(key);
    }

    /// Everything from this task on was taken back before anybody saw it.
    pub fn forget_from(&mut self, first: TaskKey) {
        drop(self.tasks.split_off(&first));
        drop(
            self.executions
                .split_off(&ExecutionKey { task: first, n: 0 }),
        );
    }

    /// A schedule has come further.
    pub fn schedule(&mut self, key: ScheduleKey) {
        self.schedules.insert(key);
    }

    /// A schedule was posted or deleted.
    pub fn schedule_text(&mut self, key: ScheduleKey) {
        self.schedule_texts.insert(key);
        self.schedules.insert(key);
    }

    pub fn machine(&mut self, instance: &Arc<str>) {
        self.machines.insert(instance.clone());
    }

    /// Records a new piece of an attempt's output; `output` is all that is kept of it.
    pub fn output(&mut self, key: OutputKey, piece: SavedPiece, output: &Output) {
        let saved = self.saved_bytes.entry(key).or_default();
        *saved += piece.cost();
        let mut change = OutputChange::Appended(piece);
        if *saved > REPLACED_AFTER_BYTES {
            change = OutputChange::Replaced(output.pieces());
            *saved = change.cost();
        }
        self.output.push((key, change));
    }

    /// Records that an attempt's output is complete.
    pub fn output_ended(&mut self, key: OutputKey, output: Option<&Output>) {
        let saved = self.saved_bytes.remove(&key).unwrap_or(0);
        let Some(output) = output.filter(|output| saved > output.kept()) else {
            return;
        };
        let kept = OutputChange::Replaced(output.pieces());
        if kept.cost() < saved {
            self.output.push((key, kept));
        }
    }

    /// Records that an attempt's output is dropped although its task is kept.
    pub fn output_dropped(&mut self, key: OutputKey) {
        self.saved_bytes.remove(&key);
        self.output.push((key, OutputChange::Replaced(Vec::new())));
    }
}

impl Core {
    /// From now on changes are recorded for [`Core::take_batch`].
    pub fn record_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// What has changed since the last call.
    pub fn take_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let Some(changes) = self.changes.as_mut() else {
            return batch;
        };
        batch.next_task = self.next_task;
        batch.away_ms = changes.away_ms.take();
        let tasks = std::mem::take(&mut changes.tasks);
        let executions = std::mem::take(&mut changes.executions);
        let machines = std::mem::take(&mut changes.machines);
        batch.output = std::mem::take(&mut changes.output);
        batch.halt = changes.halt.take();
        let limits = std::mem::take(&mut changes.limits);
        let notifications = std::mem::take(&mut changes.notifications);
        let suspensions = std::mem::take(&mut changes.suspensions);
        let schedules = std::mem::take(&mut changes.schedules);
        let texts = std::mem::take(&mut changes.schedule_texts);
        if !texts.is_empty() {
            batch.next_schedule = self.schedules.next_key;
        }
        for key in texts {
            let saved = self.saved_schedule(key);
            let posted = saved.map(|(posted, _)| posted.clone());
            batch.schedules.insert(key, posted);
        }
        for key in schedules {
            if let Some((_, progress)) = self.saved_schedule(key) {
                batch.progress.insert(key, progress.clone());
            }
        }
        batch
            .output
            .retain(|(key, _)| self.tasks.contains_key(&key.task));
        for name in limits {
            let saved = self.saved_limit(&name);
            batch.limits.insert(name, saved);
        }
        batch.suspensions = suspensions.then(|| self.saved_suspensions());
        for key in tasks {
            batch
                .tasks
                .insert(key, self.tasks.get(&key).map(|task| self.saved_task(task)));
        }
        for key in executions {
            if let Some(task) = self.tasks.get(&key.task) {
                batch
                    .executions
                    .insert((key.task, key.n), self.saved_execution(task, key.n));
            }
        }
        for instance in machines {
            let machine = self
                .instances
                .get(&instance)
                .map(|key| self.saved_machine(self.machine(*key)));
            batch.machines.insert(instance, machine);
        }
        for number in notifications {
            batch
                .notifications
                .insert(number, self.saved_notification(number));
        }
        batch
    }

    /// Records everything as changed, because the database has lost what it had saved. The next batch contains all
    /// records, and removes those that are `left` there and not known here. Returns the attempts whose output is to be
    /// saved as a whole, see [`Core::output_snapshot`].
    pub fn record_everything(&mut self, left: &Saved) -> BTreeSet<OutputKey> {
        let mut changes = Changes {
            halt: Some(self.halt.clone()),
            suspensions: true,
            away_ms: Some(self.away_ms),
            ..Changes::default()
        };
        let mut outputs: BTreeSet<OutputKey> = left.output.iter().map(|(key, _)| *key).collect();
        outputs.retain(|key| self.tasks.contains_key(&key.task));
        for (key, task) in &self.tasks {
            for (n, execution) in (0..).zip(task.executions.iter()) {
                let execution_key = ExecutionKey { task: *key, n };
                changes.executions.insert(execution_key);
                let past = execution.past.iter().map(|past| &past.attempt);
                let attempts = past.chain([&*execution.current]);
                let with_output = attempts.filter(|attempt| attempt.output.is_some());
                let keys = with_output.map(|it| OutputKey::of(execution_key, it.number));
                outputs.extend(keys);
            }
        }
        changes
            .tasks
            .extend(self.tasks.keys().chain(left.tasks.keys()));
        let machines = self.instances.keys().chain(left.machines.keys());
        changes.machines.extend(machines.cloned());
        let notifications = self
            .saved_numbers()
            .chain(left.notifications.keys().copied());
        changes.notifications.extend(notifications);
        let limits = self.saved_limit_names().chain(left.limits.keys().cloned());
        changes.limits.extend(limits);
        let schedules = self.schedules.all.keys().chain(left.schedules.keys());
        schedules.for_each(|key| changes.schedule_text(*key));
        let before = self.changes.take().unwrap_or_default();
        changes.saved_bytes = before.saved_bytes;
        self.changes = Some(changes);
        outputs
    }

    /// All output that is kept of these attempts, to be saved in place of the recorded changes.
    pub fn output_snapshot(&self, of: &BTreeSet<OutputKey>) -> Vec<(OutputKey, OutputChange)> {
        let kept = of.iter().filter_map(|key| {
            let execution = self.tasks.get(&key.task)?.executions.get(key.n as usize)?;
            let past = execution.past.iter().map(|past| &past.attempt);
            let attempt = past
                .chain([&*execution.current])
                .find(|attempt| attempt.number == key.attempt);
            let output = attempt.and_then(|attempt| attempt.output.as_ref());
            let pieces = output.map_or_else(Vec::new, |output| output.pieces());
            Some((*key, OutputChange::Replaced(pieces)))
        });
        kept.collect()
    }

    /// Whether there is an unfinished task. Then it has to be saved how long this process has run.
    pub fn has_unfinished(&self) -> bool {
        self.ledger.unfinished_tasks() > 0
    }

    /// Whether a task has finished at or after that time.
    pub fn has_ended_since(&self, key: TaskKey, time: Time) -> bool {
        let task = self.tasks.get(&key);
        task.is_some_and(|task| task.has_ended_since(time))
    }

    fn saved_task(&self, task: &Task) -> SavedTask {
        SavedTask {
            id: task.id.clone(),
            prefix: task.prefix.clone(),
            created_at: task.created_at,
            expires_at: task.expires_at,
            finished_at: task.finished_at,
            matched: task.matched,
            open: task.open,
            canceled: task.canceled,
            withdrawn: task.withdrawn,
            late_join_full: task.late_join_full,
            rerun_of: task.rerun_of.clone(),
            spared: task.spared,
            order: task.order,
            pacing: task.pacing.clone(),
            probes: saved_probes(task),
            waiting: task.waiting.clone(),
            cancels_dependents: task.cancels_dependents,
            away_ms: self.away_ms,
            ..saved_spec(&task.spec)
        }
    }

    fn saved_execution(&self, task: &Task, n: u32) -> SavedExecution {
        let execution: &Execution = &task.executions[n as usize];
        let probes = task.probes.iter().flat_map(|probes| &**probes).zip(0..);
        let without_output = |attempt: &Attempt| Attempt {
            output: None,
            ..attempt.clone()
        };
        SavedExecution {
            state: execution.state,
            place: match execution.place {
                Place::Nowhere => SavedPlace::Nowhere,
                Place::Selector(_) => SavedPlace::Selector,
                Place::Inbox(_) => SavedPlace::Inbox,
                Place::Active(_) => SavedPlace::Active,
            },
            target: execution.target.clone(),
            canceling: execution.canceling,
            current: without_output(&execution.current),
            past: execution
                .past
                .iter()
                .map(|past| PastAttempt {
                    attempt: without_output(&past.attempt),
                    ..past.clone()
                })
                .collect(),
            probes: { probes }
                .filter_map(|(data, probe)| Some((probe, data.places.get(&n)?.clone())))
                .collect(),
            away_ms: self.away_ms,
        }
    }

    fn saved_machine(&self, machine: &Machine) -> SavedMachine {
        SavedMachine {
            label: machine.label.clone(),
            host: machine.host.clone(),
            version: machine.version.clone(),
            arch: machine.arch.clone(),
            original: machine.is_original(),
            jobs: machine.jobs,
            since: machine.since,
            left: machine.left,
            offline: machine.state == MachineState::Offline,
            draining: machine.state == MachineState::Draining,
            suspended_since: machine.suspended_since,
            wish: machine.wish,
            tags: machine.tags.as_ref().clone(),
            seq: machine.seq,
            canceled: machine.original.canceled.clone(),
            away_ms: self.away_ms,
        }
    }
}

impl Task {
    /// Whether it has finished at or after that time.
    pub fn has_ended_since(&self, time: Time) -> bool {
        self.finished_at.is_some_and(|ended| ended >= time)
    }
}

/// The record of a task that was only posted.
fn saved_spec(spec: &Spec) -> SavedTask {
    let nameless: Arc<str> = "".into();
    SavedTask {
        id: nameless.clone(),
        prefix: nameless,
        name: spec.name.clone(),
        pattern: spec.selector.text().pattern.clone(),
        mode: spec.mode,
        ttl: spec.ttl,
        late_join: spec.late_join,
        retry: spec.retry.as_deref().cloned(),
        result_ttl: spec.result_ttl,
        failure_ttl: spec.failure_ttl,
        detail: spec.detail.clone(),
        created_at: Time::default(),
        expires_at: Time::default(),
        finished_at: None,
        matched: 0,
        open: false,
        canceled: false,
        withdrawn: false,
        late_join_full: false,
        rerun_of: None,
        narrowing: spec.selector.text().narrowing.clone(),
        expect: spec.counts.expect,
        max_targets: spec.counts.max_targets,
        keep_alive: spec.counts.keep_alive.as_ref().map(|it| it.posted()),
        rollout: spec.rollout.as_ref().map(|rollout| rollout.posted.clone()),
        spared: 0,
        pacing: None,
        probes: { spec.probes.iter() }
            .map(|probe| SavedProbe {
                posted: probe.posted.clone(),
                summary: Summary::default(),
                place: None,
            })
            .collect(),
        files: spec.files.clone(),
        priority: spec.priority,
        limits: spec.limits.clone(),
        spread: spec.spread,
        unique: spec.unique.clone(),
        order: None,
        notify: spec.notify.iter().map(|it| it.posted()).collect(),
        scheduled: spec.scheduled.clone(),
        about: spec.about.clone(),
        waiting: None,
        cancels_dependents: false,
        away_ms: 0,
        children: { spec.children.iter() }
            .map(|child| SavedChild {
                on: child.on,
                id: child.spec.id.clone(),
                task: Box::new(saved_spec(&child.spec)),
            })
            .collect(),
    }
}

fn saved_probes(task: &Task) -> Vec<SavedProbe> {
    let data = task.probes.iter().flat_map(|probes| &**probes);
    let probes = task.spec.probes.iter().zip(data);
    let probes = probes.map(|(probe, data)| SavedProbe {
        posted: probe.posted.clone(),
        summary: data.summary.clone(),
        place: data.places.get(&ONE_MACHINE).cloned(),
    });
    probes.collect()
}
