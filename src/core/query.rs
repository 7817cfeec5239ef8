//! Queries for tasks, machines and statistics. Nothing here changes anything.

use super::machine::MachineSnapshot;
use super::match_index::{SelectorSnapshot, TraitsSnapshot};
use super::output::Output;
use super::selector::{Selector, SelectorText, Tags, Traits};
use super::task::{OutputEnd, Task};
use super::{Core, MachineKey, Refusal, TaskKey};
use crate::wire::agent::Poll;
use crate::wire::machine::MachineState;
use crate::wire::task::{Counts, ExecutionState, TaskState};
use std::ops::Bound;
use std::sync::Arc;

/// The most tasks visited in one call of [`Core::list`], and machines in one of [`Core::list_machines`]: a query must
/// not hold the lock for long, however few it finds.
const MAX_VISITED: usize = 2_000;
/// The most executions in one page, so that a page of tasks with thousands of machines stays bounded.
const MAX_LISTED_EXECUTIONS: usize = 5_000;
/// The shortest beginning of an id that is accepted in its place; a shorter one is a typing mistake.
const MIN_BEGINNING_BYTES: usize = 6;

/// Which tasks are wanted.
#[derive(Debug, Clone, Default)]
pub struct TaskQuery {
    /// Only those whose name begins with this.
    pub prefix: Option<String>,
    /// Only those in this state.
    pub state: Option<TaskState>,
    /// Only those with a target of this label.
    pub label: Option<String>,
    /// Only those with an undo that is failed or owed, or only those without.
    pub clean: Option<bool>,
    /// Only the members of this group.
    pub group: Option<String>,
    /// Only those with all of these tags.
    pub tags: Vec<(String, String)>,
}

impl TaskQuery {
    pub(super) fn wants(&self, task: &Task) -> bool {
        let has_target = |label: &String| {
            task.executions
                .iter()
                .filter_map(|e| e.target.as_ref())
                .any(|target| *target.label == **label)
        };
        let tag_of = |name: &String| task.spec.about.as_ref()?.tags.get(name);
        self.prefix
            .as_ref()
            .is_none_or(|prefix| task.spec.name.starts_with(prefix.as_str()))
            && self.state.is_none_or(|state| task.state() == state)
            && self.label.as_ref().is_none_or(has_target)
            && self.clean.is_none_or(|clean| (task.dirty() == 0) == clean)
            && { self.group.as_ref() }
                .is_none_or(|group| task.group().is_some_and(|is| **is == **group))
            && { self.tags.iter() }.all(|(name, value)| tag_of(name) == Some(value))
    }
}

/// A page of a list of tasks.
#[derive(Debug)]
pub struct TaskPage {
    /// The tasks, newest first.
    pub tasks: Vec<Task>,
    /// Where the next page begins: at the tasks older than this one. `None` if there are no more.
    pub next: Option<TaskKey>,
    /// The page is not full because the search stopped at its limit: continue at once.
    pub interrupted: bool,
}

impl Core {
    /// A known selector, compiled. Compiling costs more than everything else in a submit.
    pub fn selector(&self, text: &SelectorText) -> Option<Selector> {
        self.match_index.selector(text)
    }

    /// The newest tasks that match and are older than `before`, `limit` at most. Visits a bounded number of
    /// tasks; the page says where to continue.
    pub fn list(&self, query: &TaskQuery, before: Option<TaskKey>, limit: usize) -> TaskPage {
        let all = self.matching_from(query, before);
        let (mut tasks, mut executions, mut last) = (Vec::new(), 0, None);
        for (visited, (key, task)) in all.enumerate() {
            let full = tasks.len() >= limit || executions > MAX_LISTED_EXECUTIONS;
            if full || visited >= MAX_VISITED {
                return TaskPage {
                    tasks,
                    next: last,
                    interrupted: !full,
                };
            }
            if query.wants(task) {
                executions += task.executions.len();
                tasks.push(task.clone().with_waits(self.waits_of(*key)));
            }
            last = Some(*key);
        }
        TaskPage {
            tasks,
            next: None,
            interrupted: false,
        }
    }

    /// The tasks among which a query finds those that it means: older than `before`, newest first.
    pub(super) fn matching_from(
        &self,
        query: &TaskQuery,
        before: Option<TaskKey>,
    ) -> impl Iterator<Item = (&TaskKey, &Task)> {
        let older = ..before.unwrap_or(TaskKey(u64::MAX));
        let group = query.group.as_deref();
        // The members of a group are found by its index, however many other tasks there are.
        let members = group.and_then(|group| self.group_members(group));
        let members = members
            .into_iter()
            .flat_map(move |members| members.range(older));
        let members = members.rev().map(|key| (key, self.task(*key)));
        let others = match group {
            Some(_) => ..TaskKey(0),
            None => older,
        };
        self.tasks.range(others).rev().chain(members)
    }

    /// The task with this id, or else the newest with this name.
    pub fn find_task(&self, name: &str) -> Result<TaskKey, Refusal> {
        self.by_id_or_name(name).ok_or_else(|| {
            // Not even a unique beginning is accepted here: a call that changes something needs the whole id.
            match self.find_task_by_beginning(name) {
                Ok(key) => Refusal::Unknown(format!(
                    "{name:?} is the beginning of the id of a task, {}; give the whole id to change it",
                    self.task(key).id
                )),
                Err(Refusal::Impossible(_)) => Refusal::Unknown(format!(
                    "{name:?} is the beginning of more than one id; give the whole id to change a task"
                )),
                Err(unknown) => unknown,
            }
        })
    }

    fn by_id_or_name(&self, name: &str) -> Option<TaskKey> {
        let by_name = || self.task_names.get(name)?.last();
        self.task_ids.get(name).or_else(by_name).copied()
    }

    /// The same, or else the only task whose id begins with this. For calls that change nothing.
    pub fn find_task_by_beginning(&self, name: &str) -> Result<TaskKey, Refusal> {
        if let Some(key) = self.by_id_or_name(name) {
            return Ok(key);
        }
        if name.len() < MIN_BEGINNING_BYTES {
            return Err(unknown(name));
        }
        let later = (Bound::Included(name), Bound::Unbounded);
        let mut ids = self
            .task_ids
            .range::<str, _>(later)
            .take_while(|(id, _)| id.starts_with(name));
        match (ids.next(), ids.next()) {
            (Some((_, key)), None) => Ok(*key),
            (None, _) => Err(unknown(name)),
            (Some(_), Some(_)) => Err(Refusal::Impossible(format!(
                "{name:?} is the beginning of more than one id; write more of it"
            ))),
        }
    }

    /// A copy of a task. Cheap: the data is shared.
    pub fn show(&self, key: TaskKey) -> Result<Task, Refusal> {
        let task = self.known_task(key)?.shown(self.waits_for(key));
        Ok(task.with_waits(self.waits_of(key)))
    }

    /// The output of an attempt. `None` when the attempt is no longer the latest of its execution, or is forgotten. As
    /// long as it is held, the core copies it whenever more comes.
    pub fn output_of(&self, key: TaskKey, of: &OutputEnd) -> Option<Arc<Output>> {
        let execution = self.tasks.get(&key)?.executions.get(of.n as usize)?;
        let attempt = Some(&execution.current).filter(|attempt| attempt.number == of.attempt)?;
        attempt.output.clone()
    }

    /// All tasks, oldest first.
    pub fn all_tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// Whether a task has finished, or is no longer known.
    pub fn is_finished(&self, key: TaskKey) -> bool {
        self.tasks
            .get(&key)
            .is_none_or(|task| task.finished_at.is_some())
    }

    /// The machines with this label and state, in order of registration: those after `last`. Visits a bounded number of
    /// machines, and also says where to continue; `None` if there are no more.
    pub fn list_machines(
        &self,
        label: Option<&str>,
        state: Option<MachineState>,
        last: Option<MachineKey>,
    ) -> (Vec<MachineSnapshot>, Option<MachineKey>) {
        let begin = last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.machines.range((begin, Bound::Unbounded));
        let (mut found, mut last) = (Vec::new(), None);
        for (key, machine) in rest.by_ref().take(MAX_VISITED) {
            let has_label = label.is_none_or(|label| *machine.label == *label);
            if has_label && state.is_none_or(|state| machine.state == state) {
                let mut snapshot = machine.snapshot();
                let suspension = self.suspension_of(*key);
                snapshot.suspended = suspension.map(|it| it.reason.clone());
                found.push(snapshot);
            }
            last = Some(*key);
        }
        (found, last.filter(|_| rest.next().is_some()))
    }

    /// The traits of this moment, to match a selector with before a task is submitted with it; `None` if the selector
    /// is known.
    pub fn traits_to_match(&mut self, selector: &SelectorText) -> Option<TraitsSnapshot> {
        self.match_index.traits_to_match(selector)
    }

    /// The selectors of this moment, to match a machine with before it is registered; `None` if it is known, or
    /// another one with its traits.
    pub fn selectors_to_match(&mut self, poll: &Poll) -> Option<(SelectorSnapshot, Traits)> {
        if self.instances.contains_key(&*poll.instance) {
            return None;
        }
        let traits = Traits {
            label: (&*poll.label).into(),
            host: super::agent::truncated(&poll.host).into(),
            tags: Tags::new(poll.tags.clone()),
        };
        let snapshot = self.match_index.selectors_to_match(&traits)?;
        Some((snapshot, traits))
    }

    /// The number of machines in each state.
    pub fn machines_by_state(&self) -> [(MachineState, usize); 3] {
        MachineState::ALL.map(|state| (state, self.machine_states[state as usize]))
    }

    /// The number of executions in each state.
    pub fn executions_by_state(&self) -> Counts {
        self.ledger.executions()
    }

    /// The number of tasks in each state.
    pub fn tasks_by_state(&self) -> [(TaskState, usize); TaskState::ALL.len()] {
        let unfinished = self.ledger.unfinished_tasks();
        let open = self.match_index.open_tasks();
        let queued = self.match_index.queued_tasks();
        let waiting = open
            .chain(queued)
            .filter(|key| self.task(*key).state() == TaskState::Waiting)
            .count();
        let (scheduled, blocked) = (self.waiting.scheduled(), self.waiting.blocked());
        TaskState::ALL.map(|state| match state {
            TaskState::Scheduled => (state, scheduled),
            TaskState::Blocked => (state, blocked),
            TaskState::Waiting => (state, waiting),
            TaskState::Running => (state, unfinished - waiting - scheduled - blocked),
            ended => (state, self.stats.kept[ended as usize]),
        })
    }

    /// Bytes of output kept.
    pub fn output_bytes(&self) -> usize {
        self.ledger.output_bytes()
    }

    /// Bytes of details kept.
    pub fn detail_bytes(&self) -> usize {
        self.ledger.detail_bytes()
    }

    /// The counters since the start.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}

fn unknown(name: &str) -> Refusal {
    let short = match name.len() < MIN_BEGINNING_BYTES {
        true => format!("; the beginning of an id has {MIN_BEGINNING_BYTES} characters or more"),
        false => String::new(),
    };
    Refusal::Unknown(format!(
        "no task has the id or name {name:?}; finished tasks are forgotten after their resultTtl or failureTtl, and all of them when a server without a database is restarted{short}"
    ))
}

/// Counters since the start of the server.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Tasks accepted.
    pub submitted: u64,
    /// Further attempts.
    pub retries: u64,
    /// Executions that ended, by [`ExecutionState`].
    pub executions_ended: [u64; ExecutionState::ALL.len()],
    /// Finished tasks that are kept, by [`TaskState`].
    pub(super) kept: [usize; TaskState::ALL.len()],
    /// From the submit to the start of the first attempt.
    pub submit_to_start: Histogram,
    /// How long commands ran.
    pub run_time: Histogram,
}

impl Stats {
    pub(super) fn ended(&mut self, state: ExecutionState) {
        self.executions_ended[state as usize] += 1;
    }

    pub(super) fn finished(&mut self, state: TaskState) {
        self.kept[state as usize] += 1;
    }

    pub(super) fn forgotten(&mut self, state: TaskState) {
        self.kept[state as usize] -= 1;
    }
}

/// A histogram of durations.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// How many were at most as long as the bound with the same index; the last has no bound.
    pub counts: [u64; Histogram::BOUNDS_MS.len() + 1],
    /// The sum of all, in milliseconds.
    pub sum_ms: u64,
}

impl Histogram {
    /// The bounds, in milliseconds.
    pub const BOUNDS_MS: [u64; 12] = [
        1, 2, 5, 10, 50, 200, 1_000, 5_000, 30_000, 120_000, 600_000, 3_600_000,
    ];

    pub(super) fn add(&mut self, ms: u64) {
        let n = Self::BOUNDS_MS
            .iter()
            .position(|bound| ms <= *bound)
            .unwrap_or(Self::BOUNDS_MS.len());
        self.counts[n] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }
}
