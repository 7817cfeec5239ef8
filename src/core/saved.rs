//! What outlives the process: the tasks, executions, output and machines as they are saved.
//!
//! The core knows no database. It notes what has changed since it was last asked, and gives it as a
//! [`Batch`] of whole records; whoever saves them can put later batches on top of earlier ones. From
//! the records a core is made again by [`Core::restored`]. To save a new field: add it to the
//! record with `#[serde(default)]`, so that files of earlier versions still open.

use super::machine::{Kind, Machine};
use super::output::Output;
use super::pattern::Pattern;
use super::seldom::Seldom;
use super::spec::Spec;
use super::task::{Attempt, Execution, Kept, PastAttempt, Place, Target, Task};
use super::{Core, ExecutionKey, MachineKey, TaskKey, Time};
use crate::wire::agent::Stream;
use crate::wire::machine::MachineState;
use crate::wire::span::Span;
use crate::wire::task::{Detail, ExecutionState, Mode, Retry};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Output of one attempt is saved piece by piece; when the pieces have this many bytes together,
/// they are replaced by what is kept of them.
const REPLACED_AFTER_BYTES: usize = 4 << 20;
/// What a piece costs beside its bytes, about.
const PIECE_BYTES: usize = 64;

/// A task as saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the fields of Task and Spec of the same names are documented"
)]
pub struct SavedTask {
    pub id: Arc<str>,
    pub prefix: Arc<str>,
    pub name: Arc<str>,
    pub pattern: Arc<str>,
    pub mode: Mode,
    pub ttl: Span,
    pub late_join: bool,
    pub retry: Option<Retry>,
    pub result_ttl: Span,
    pub failure_ttl: Span,
    pub detail: Arc<Detail>,
    pub created_at: Time,
    pub expires_at: Time,
    pub finished_at: Option<Time>,
    pub matched: u32,
    pub open: bool,
    pub canceled: bool,
    #[serde(default)]
    pub withdrawn: bool,
    #[serde(default)]
    pub rerun_of: Option<Arc<str>>,
}

/// An execution as saved; its output is saved apart.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the fields of Execution of the same names are documented"
)]
pub struct SavedExecution {
    pub state: ExecutionState,
    pub place: SavedPlace,
    pub target: Option<Arc<Target>>,
    pub canceling: bool,
    pub now: Attempt,
    #[serde(default)]
    pub past: Vec<PastAttempt>,
}

impl SavedExecution {
    /// Whether its state and its place go together.
    fn is_where_it_can_be(&self) -> bool {
        match self.state {
            ExecutionState::Queued => match self.place {
                SavedPlace::Group => true,
                SavedPlace::Inbox => self.target.is_some(),
                SavedPlace::Nowhere => self.now.due_at.is_some(),
                SavedPlace::Active => false,
            },
            ExecutionState::Delivered | ExecutionState::Running => {
                self.place == SavedPlace::Active && self.target.is_some()
            }
            _ => self.place == SavedPlace::Nowhere,
        }
    }
}

/// Where an execution is; its target says which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the variants of Place of the same names are documented"
)]
pub enum SavedPlace {
    Nowhere,
    Group,
    Inbox,
    Active,
}

/// A machine as saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the fields of Machine of the same names are documented"
)]
pub struct SavedMachine {
    pub label: Arc<str>,
    pub host: Arc<str>,
    pub version: Arc<str>,
    pub original: bool,
    pub jobs: u32,
    pub since: Time,
    pub left: bool,
    pub offline: bool,
    #[serde(default)]
    pub draining: bool,
    pub seq: u64,
}

/// Of which attempt some output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutputKey {
    /// The task.
    pub task: TaskKey,
    /// The execution's number in it.
    pub n: u32,
    /// The attempt's number.
    pub attempt: u32,
}

/// A piece of output. Without bytes it says only how far the command wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedPiece {
    /// Of which stream.
    pub stream: Stream,
    /// At which place.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
}

impl SavedPiece {
    /// How many bytes it takes, about.
    pub fn cost(&self) -> usize {
        self.data.len() + PIECE_BYTES
    }
}

/// What happened to the output of an attempt.
#[derive(Debug, Clone)]
pub enum OutputChange {
    /// This came.
    Came(SavedPiece),
    /// Forget what came before: this is what is kept.
    Kept(Vec<SavedPiece>),
}

impl OutputChange {
    /// How many bytes it takes, about.
    pub fn cost(&self) -> usize {
        match self {
            OutputChange::Came(piece) => piece.cost(),
            OutputChange::Kept(pieces) => pieces.iter().map(SavedPiece::cost).sum(),
        }
    }
}

/// Everything that has changed, as whole records; `None` where something is gone.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Tasks; one that is gone takes its executions and their output along.
    pub tasks: BTreeMap<TaskKey, Option<SavedTask>>,
    /// Executions.
    pub executions: BTreeMap<(TaskKey, u32), SavedExecution>,
    /// Machines by instance.
    pub machines: BTreeMap<Arc<str>, Option<SavedMachine>>,
    /// Output, in the order in which it came.
    pub output: Vec<(OutputKey, OutputChange)>,
    /// The number of the next task, when there is a change: no number is given twice.
    pub next_task: u64,
}

impl Batch {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
            && self.executions.is_empty()
            && self.machines.is_empty()
            && self.output.is_empty()
    }

    /// Puts a later batch on top.
    pub fn add(&mut self, later: Batch) {
        let mut gone = BTreeSet::new();
        gone.extend(
            { later.tasks.iter() }
                .filter(|(_, task)| task.is_none())
                .map(|(key, _)| *key),
        );
        for key in &gone {
            while let Some((first, _)) = self.executions.range((*key, 0)..=(*key, u32::MAX)).next()
            {
                let first = *first;
                self.executions.remove(&first);
            }
        }
        if !gone.is_empty() {
            self.output.retain(|(of, _)| !gone.contains(&of.task));
        }
        self.tasks.extend(later.tasks);
        self.executions.extend(later.executions);
        self.machines.extend(later.machines);
        self.output.extend(later.output);
        self.next_task = self.next_task.max(later.next_task);
    }
}

/// All records, to make a core of.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    /// Tasks.
    pub tasks: BTreeMap<TaskKey, SavedTask>,
    /// Executions; numbered without gaps from 0 within a task.
    pub executions: BTreeMap<(TaskKey, u32), SavedExecution>,
    /// Output, in the order in which it came.
    pub output: Vec<(OutputKey, SavedPiece)>,
    /// Machines by instance.
    pub machines: BTreeMap<Arc<str>, SavedMachine>,
    /// The number of the next task; 0 when it was not saved.
    pub next_task: u64,
    /// When the process that saved them was last known to live.
    pub last_alive: Time,
}

/// What has changed since it was last asked for.
#[derive(Debug, Default)]
pub(super) struct Changes {
    tasks: BTreeSet<TaskKey>,
    executions: BTreeSet<ExecutionKey>,
    machines: BTreeSet<Arc<str>>,
    output: Vec<(OutputKey, OutputChange)>,
    /// Bytes of pieces saved of an attempt that goes on, since they were last replaced.
    saved_bytes: BTreeMap<OutputKey, usize>,
}

impl Changes {
    pub fn task(&mut self, key: TaskKey) {
        self.tasks.insert(key);
    }

    pub fn execution(&mut self, key: ExecutionKey) {
        self.executions.insert(key);
    }

    pub fn machine(&mut self, instance: &Arc<str>) {
        self.machines.insert(instance.clone());
    }

    /// Notes what came of an attempt's output; `output` is what is kept of it by now.
    pub fn output(&mut self, key: OutputKey, piece: SavedPiece, output: &Output) {
        let saved = self.saved_bytes.entry(key).or_default();
        *saved += piece.cost();
        let mut change = OutputChange::Came(piece);
        if *saved > REPLACED_AFTER_BYTES {
            change = OutputChange::Kept(output.pieces());
            *saved = change.cost();
        }
        self.output.push((key, change));
    }

    /// Notes that nothing more will come of an attempt's output.
    pub fn output_ended(&mut self, key: OutputKey, output: Option<&Output>) {
        let saved = self.saved_bytes.remove(&key).unwrap_or(0);
        let Some(output) = output.filter(|output| saved > output.kept()) else {
            return;
        };
        let kept = OutputChange::Kept(output.pieces());
        if kept.cost() < saved {
            self.output.push((key, kept));
        }
    }

    /// Notes that an attempt's output is dropped, though its task is kept.
    pub fn output_dropped(&mut self, key: OutputKey) {
        self.saved_bytes.remove(&key);
        self.output.push((key, OutputChange::Kept(Vec::new())));
    }
}

impl Core {
    /// From now on, changes are noted for [`Core::take_batch`].
    pub fn note_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// What has changed since the last call.
    pub fn take_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let Some(changes) = self.changes.as_mut() else {
            return batch;
        };
        batch.next_task = self.next_task;
        let tasks = std::mem::take(&mut changes.tasks);
        let executions = std::mem::take(&mut changes.executions);
        let machines = std::mem::take(&mut changes.machines);
        batch.output = std::mem::take(&mut changes.output);
        batch
            .output
            .retain(|(key, _)| self.tasks.contains_key(&key.task));
        for key in tasks {
            batch
                .tasks
                .insert(key, self.tasks.get(&key).map(saved_task));
        }
        for key in executions {
            if let Some(task) = self.tasks.get(&key.task) {
                batch.executions.insert(
                    (key.task, key.n),
                    saved_execution(&task.executions[key.n as usize]),
                );
            }
        }
        for instance in machines {
            let machine = self
                .instances
                .get(&instance)
                .map(|key| saved_machine(self.machine(*key)));
            batch.machines.insert(instance, machine);
        }
        batch
    }

    /// Everything that is kept of the output of these attempts, to be saved in place of what was
    /// noted of it.
    pub fn kept_output(&self, of: &BTreeSet<OutputKey>) -> Vec<(OutputKey, OutputChange)> {
        let kept = of.iter().filter_map(|key| {
            let execution = self.tasks.get(&key.task)?.executions.get(key.n as usize)?;
            let past = execution.past.iter().map(|past| &past.attempt);
            let attempt = past
                .chain([&*execution.now])
                .find(|attempt| attempt.number == key.attempt);
            let output = attempt.and_then(|attempt| attempt.output.as_ref());
            let pieces = output.map_or_else(Vec::new, |output| output.pieces());
            Some((*key, OutputChange::Kept(pieces)))
        });
        kept.collect()
    }

    /// Whether something has not ended: then it matters until when this process lived.
    pub fn has_unfinished(&self) -> bool {
        self.tasks.len() > self.finished.len()
    }

    /// Whether a task has ended, after that time.
    pub fn has_ended_since(&self, key: TaskKey, time: Time) -> bool {
        let ended = self.tasks.get(&key).and_then(|task| task.finished_at);
        ended.is_some_and(|ended| ended >= time)
    }

    /// A core as it was saved; it notes changes. Time during which nobody was there to act does not
    /// count: waits of what has not ended are longer by it, and every machine has its time to come
    /// back. The error says which record cannot be what it should be.
    pub fn restored(limits: super::Limits, now: Time, saved: Saved) -> Result<Core, String> {
        let mut core = Core::new(limits, now);
        let away = Span::from_millis(now.millis_since(saved.last_alive));
        core.back_since = now;
        core.next_task = core.next_task.max(saved.next_task);
        let mut words = Words::default();
        for (instance, mut machine) in saved.machines {
            words.share(&mut machine.label);
            words.share(&mut machine.host);
            words.share(&mut machine.version);
            let instance = words.shared(instance);
            core.restore_machine(now, instance, machine);
        }
        let mut executions: BTreeMap<TaskKey, Vec<SavedExecution>> = BTreeMap::new();
        for ((task, n), execution) in saved.executions {
            let of_task = executions.entry(task).or_default();
            if of_task.len() != n as usize {
                return Err(format!(
                    "execution {n} of task number {} does not follow another",
                    task.0
                ));
            }
            of_task.push(execution);
        }
        let mut changes = Changes::default();
        for (key, mut task) in saved.tasks {
            let mut executions = executions.remove(&key).unwrap_or_default();
            words.share_those_of(&mut task, &mut executions);
            if task.finished_at.is_none() {
                // Its waits are longer now: the next start adds only the time after this one.
                changes.task(key);
                changes.executions.extend((0..).zip(&executions).filter_map(
                    |(n, e)| -> Option<ExecutionKey> {
                        let waits = [e.now.due_at, e.now.expires_at, e.now.overdue_at];
                        waits
                            .iter()
                            .any(Option::is_some)
                            .then_some(ExecutionKey { task: key, n })
                    },
                ));
            }
            core.restore_task(now, away, key, task, executions)?;
        }
        if let Some((task, _)) = executions.first_key_value() {
            return Err(format!(
                "the executions of task number {} have no task",
                task.0
            ));
        }
        for (key, piece) in saved.output {
            core.restore_output(key, &piece, &mut changes);
        }
        core.notices.clear();
        core.changes = Some(changes);
        // The limits may be lower than they were.
        core.keep_within_limits();
        core.make_room_for_output(core.output_bytes);
        Ok(core)
    }

    fn restore_machine(
        &mut self,
        now: Time,
        instance: Arc<str>,
        saved: SavedMachine,
    ) -> MachineKey {
        let key = MachineKey(self.next_machine);
        self.next_machine += 1;
        let label_key = self.directory.add_machine(&saved.label, key);
        self.instances.insert(instance.clone(), key);
        let target = Target {
            label: saved.label.clone(),
            instance: instance.clone(),
            host: saved.host.clone(),
        };
        let machine = Machine {
            target: Arc::new(target),
            instance,
            label: saved.label,
            host: saved.host,
            version: saved.version,
            label_key,
            kind: if saved.original {
                Kind::Original
            } else {
                Kind::Agent
            },
            state: match (saved.offline, saved.draining) {
                (true, _) => MachineState::Offline,
                (false, true) => MachineState::Draining,
                (false, false) => MachineState::Online,
            },
            jobs: saved.jobs,
            since: saved.since,
            last_seen: now,
            offline_since: now,
            left: saved.left,
            watched_at: None,
            // Those that it has joined know it.
            owes_joins: true,
            seq: saved.seq,
            parked: false,
            ready: None,
            inbox: BTreeSet::new(),
            active: BTreeSet::new(),
            cancels: Vec::new(),
        };
        self.machines.insert(key, machine);
        if saved.offline {
            self.forget_later(now, key);
        } else {
            self.watch(key, now.plus(super::OFFLINE_AFTER));
        }
        key
    }

    fn restore_task(
        &mut self,
        now: Time,
        away: Span,
        key: TaskKey,
        saved: SavedTask,
        executions: Vec<SavedExecution>,
    ) -> Result<(), String> {
        let finished = saved.finished_at.is_some();
        let later = |time: Time| if finished { time } else { time.plus(away) };
        let mut task = Kept {
            id: saved.id,
            prefix: saved.prefix,
            created_at: saved.created_at,
            expires_at: later(saved.expires_at),
            finished_at: saved.finished_at,
            matched: saved.matched,
            open: saved.open,
            canceled: saved.canceled,
            withdrawn: saved.withdrawn,
            rerun_of: saved.rerun_of,
            counts: Default::default(),
            output_bytes: 0,
            executions: Vec::new(),
            spec: Arc::new(Spec {
                id: None,
                name: saved.name,
                pattern: Pattern::known(saved.pattern),
                mode: saved.mode,
                ttl: saved.ttl,
                late_join: saved.late_join,
                retry: saved.retry.map(Box::new),
                result_ttl: saved.result_ttl,
                failure_ttl: saved.failure_ttl,
                detail: saved.detail,
            }),
        };
        let mut places = Vec::new();
        for (n, saved) in (0..).zip(executions) {
            let key = ExecutionKey { task: key, n };
            if !saved.is_where_it_can_be() || (finished && !saved.state.is_terminal()) {
                return Err(format!(
                    "execution {n} of task {} is {} and at {:?}",
                    task.id,
                    saved.state.word(),
                    saved.place
                ));
            }
            *task.counts.of(saved.state) += 1;
            *self.executions.of(saved.state) += 1;
            places.push((key, saved.place));
            let mut now = saved.now;
            for time in [&mut now.due_at, &mut now.expires_at, &mut now.overdue_at] {
                *time = time.map(later);
            }
            task.executions.push(Execution {
                state: saved.state,
                place: Place::Nowhere,
                target: saved.target,
                canceling: saved.canceling,
                now: match (saved.state, now.number) {
                    (ExecutionState::Queued, 1) => Seldom::usual(),
                    _ => Seldom::of(now),
                },
                past: match saved.past.is_empty() {
                    true => Seldom::usual(),
                    false => Seldom::of(saved.past),
                },
            });
        }
        self.index_restored(key, Task::new(task))?;
        for (key, place) in places {
            self.restore_place(now, key, place);
        }
        Ok(())
    }

    /// Gives a restored task its places in the indexes, and its timers.
    fn index_restored(&mut self, key: TaskKey, task: Task) -> Result<(), String> {
        self.next_task = self.next_task.max(key.0 + 1);
        if self.task_ids.insert(task.id.clone(), key).is_some() {
            return Err(format!("two tasks have the id {}", task.id));
        }
        if task.prefix != task.id {
            self.task_prefixes.insert(task.prefix.clone(), key);
        }
        self.task_names
            .entry(task.spec.name.clone())
            .or_default()
            .insert(key);
        let open = task.open;
        match task.finished_at {
            Some(at) => {
                self.finished.insert((at, key));
                self.finished_executions += task.executions.len();
                self.figures.finished(task.state());
                self.arm_forget(at, key, &task);
            }
            None => self.arm_ttl(key, &task),
        }
        self.tasks.insert(key, task);
        if open {
            let group = self.group_of(key);
            self.directory.group_mut(group).open.insert(key);
        }
        Ok(())
    }

    fn restore_place(&mut self, now: Time, key: ExecutionKey, place: SavedPlace) {
        // A machine that nothing waits for may be forgotten since.
        let wanted = matches!(place, SavedPlace::Inbox | SavedPlace::Active);
        let target = self.execution(key).target.clone().filter(|_| wanted);
        let machine = target.map(|target| match self.instances.get(&target.instance) {
            Some(machine) => *machine,
            None => {
                let saved = SavedMachine {
                    label: target.label.clone(),
                    host: target.host.clone(),
                    version: "".into(),
                    original: false,
                    jobs: 1,
                    since: now,
                    left: false,
                    offline: false,
                    draining: false,
                    seq: 0,
                };
                self.restore_machine(now, target.instance.clone(), saved)
            }
        });
        match (place, machine) {
            (SavedPlace::Active, Some(machine)) => self.place(key, Place::Active(machine)),
            (SavedPlace::Inbox, Some(machine)) => self.place(key, Place::Inbox(machine)),
            (SavedPlace::Group, _) => {
                let group = self.group_of(key.task);
                self.place(key, Place::Group(group));
            }
            // Without a target only the last is possible, see `is_where_it_can_be`.
            (SavedPlace::Active | SavedPlace::Inbox, None) | (SavedPlace::Nowhere, _) => {}
        }
        self.arm_attempt(key);
    }

    fn restore_output(&mut self, key: OutputKey, piece: &SavedPiece, changes: &mut Changes) {
        let Some(task) = self.tasks.get_mut(&key.task).map(Task::kept) else {
            return;
        };
        let Some(execution) = task.executions.get_mut(key.n as usize) else {
            return;
        };
        if !execution.state.is_terminal() && execution.now.number == key.attempt {
            *changes.saved_bytes.entry(key).or_default() += piece.cost();
        }
        let past = { execution.past.own().into_iter() }
            .flatten()
            .map(|past| &mut past.attempt);
        let attempt = past
            .chain([&mut *execution.now])
            .find(|attempt| attempt.number == key.attempt);
        let Some(attempt) = attempt else { return };
        let output = Arc::make_mut(attempt.output.get_or_insert_default());
        let before = output.kept();
        output.write(piece.stream, piece.offset, &piece.data);
        let after = output.kept();
        task.output_bytes = task.output_bytes + after - before;
        self.output_bytes = self.output_bytes + after - before;
    }
}

/// Words that many records have, kept once, as they were before they were saved.
#[derive(Default)]
struct Words(HashSet<Arc<str>>);

impl Words {
    fn shared(&mut self, word: Arc<str>) -> Arc<str> {
        match self.0.get(&word) {
            Some(known) => known.clone(),
            None => {
                self.0.insert(word.clone());
                word
            }
        }
    }

    fn share(&mut self, word: &mut Arc<str>) {
        *word = self.shared(word.clone());
    }

    fn share_those_of(&mut self, task: &mut SavedTask, executions: &mut [SavedExecution]) {
        self.share(&mut task.name);
        self.share(&mut task.pattern);
        if task.prefix == task.id {
            task.prefix = task.id.clone();
        }
        let targets = executions.iter_mut().flat_map(|e| {
            let past = e.past.iter_mut().filter_map(|past| past.target.as_mut());
            past.chain(e.target.as_mut())
        });
        for target in targets.map(Arc::make_mut) {
            self.share(&mut target.label);
            self.share(&mut target.instance);
            self.share(&mut target.host);
        }
    }
}

fn saved_task(task: &Task) -> SavedTask {
    let spec = &task.spec;
    SavedTask {
        id: task.id.clone(),
        prefix: task.prefix.clone(),
        name: spec.name.clone(),
        pattern: spec.pattern.text().into(),
        mode: spec.mode,
        ttl: spec.ttl,
        late_join: spec.late_join,
        retry: spec.retry.as_deref().cloned(),
        result_ttl: spec.result_ttl,
        failure_ttl: spec.failure_ttl,
        detail: spec.detail.clone(),
        created_at: task.created_at,
        expires_at: task.expires_at,
        finished_at: task.finished_at,
        matched: task.matched,
        open: task.open,
        canceled: task.canceled,
        withdrawn: task.withdrawn,
        rerun_of: task.rerun_of.clone(),
    }
}

fn saved_execution(execution: &Execution) -> SavedExecution {
    let without_output = |attempt: &Attempt| Attempt {
        output: None,
        ..attempt.clone()
    };
    SavedExecution {
        state: execution.state,
        place: match execution.place {
            Place::Nowhere => SavedPlace::Nowhere,
            Place::Group(_) => SavedPlace::Group,
            Place::Inbox(_) => SavedPlace::Inbox,
            Place::Active(_) => SavedPlace::Active,
        },
        target: execution.target.clone(),
        canceling: execution.canceling,
        now: without_output(&execution.now),
        past: execution
            .past
            .iter()
            .map(|past| PastAttempt {
                attempt: without_output(&past.attempt),
                ..past.clone()
            })
            .collect(),
    }
}

fn saved_machine(machine: &Machine) -> SavedMachine {
    SavedMachine {
        label: machine.label.clone(),
        host: machine.host.clone(),
        version: machine.version.clone(),
        original: machine.is_original(),
        jobs: machine.jobs,
        since: machine.since,
        left: machine.left,
        offline: machine.state == MachineState::Offline,
        draining: machine.state == MachineState::Draining,
        seq: machine.seq,
    }
}
