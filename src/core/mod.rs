//! The registry: machines, tasks and executions as a pure state machine.
//!
//! What may happen to a task is decided here and nowhere else. There is no clock, lock, socket or log: the time
//! and new ids come in as arguments. What the server has to do because of a change (wake a held poll, write a
//! log line) is collected for [`Core::take_notices`], what has to be saved for [`Core::take_batch`]. An
//! operation either succeeds as a whole, or is refused and changes nothing.
//!
//! | for | operations | file |
//! | --- | --- | --- |
//! | users | submit | `launch.rs` |
//! | | rerun, cancel, delete, withdraw | `user.rs` |
//! | | pause, resume, stop | `pacing.rs` |
//! | | undo again, forgive | `debts.rs` |
//! | | submit of a list; cancel and rerun of many tasks | `lists.rs`, `sweep.rs` |
//! | | halt, lift | `halt.rs` |
//! | | suspend, lift_suspensions | `suspension.rs` |
//! | | drain, undrain, shut_down | `crew.rs` |
//! | agents | poll, collect, leave | `agent.rs` |
//! | | output, done | `report.rs` |
//! | agents of the original | ping, fetch, done | `original.rs` |
//! | | put, delete, pause, resume, run a schedule | `schedules.rs` |
//! | the clock | tick | `tick.rs`, `timers.rs` |
//! | every change | settle_dependents | `settle.rs` |
//! | | fires schedules | `firing.rs` |
//! | everyone | queries | `query.rs` |
//! | followers | follow, unfollow, next_events | `follow.rs` |
//! | the database | record_changes, take_batch, alive_at; restored | `saving.rs`, `saved.rs`, `restored.rs` |
//!
//! What they share:
//!
//! | file | content |
//! | --- | --- |
//! | `lifecycle.rs` | the table of an execution's states: which event leads from which state to which |
//! | `undo_lifecycle.rs`, `undo.rs`, `debts.rs` | the same table for undos; what is reported of them; who runs them again, or settles them |
//! | `attempt_end.rs` | the end of an attempt: end of the execution, or retry |
//! | `ledger.rs`, `retention.rs` | the sums of everything kept; its limits, and what is forgotten to make room |
//! | `spec.rs`, `detail_spec.rs`, `later_spec.rs`, `limits.rs` | from a posted task to a checked one |
//! | `refusals.rs` | the words of refusals |
//! | `launch.rs` | from a checked task to its executions |
//! | `waiting.rs`, `after.rs` | tasks that begin later: at a time, after others |
//! | `settle.rs` | settles what waits for others that have ended |
//! | `per_machine.rs`, `counterparts.rs` | tasks that begin after another one machine by machine; which executions wait for which |
//! | `children.rs` | tasks that are submitted with another one and begin with its end |
//! | `selector.rs` | which machines a task means |
//! | `counting.rs` | how many of them it may hit, and in which order |
//! | `rollout.rs` | a checked rollout, and its plan for a number of targets |
//! | `pacing.rs`, `pace.rs` | in which steps they get their turn, and when it stops; how far it has come |
//! | `probes.rs` | probes: when they begin and end, let a task begin, and stop it |
//! | `probe_spec.rs` | the probes of a posted task, checked |
//! | `probe_place.rs`, `probe_runs.rs`, `probe_data.rs` | when one is due at one place; its runs; the data |
//! | `files.rs` | files of tasks: their checks, which tasks need which blob, who may take and bring what |
//! | `update.rs` | tasks that replace the program of agents: what goes together with that |
//! | `order.rs` | in which order what waits is handed out |
//! | `unique.rs` | of the tasks with the same key one runs at a time |
//! | `named_limits.rs`, `limit_queues.rs` | how many run at once of the tasks that name a limit; who is woken when a place is free |
//! | `waits_for.rs` | what a task waits for, in words |
//! | `plan.rs`, `schedule.rs` | one schedule: what was posted, and its calendar; how far it has come, what is to be done at a given time |
//! | `firing.rs`, `firings.rs` | fires what is due; the tasks that were fired, and what their end means |
//! | `loss.rs` | how a leader finds out that its database has lost commits, and what is different then |
//! | `keep_alive.rs` | how many machines must stay while a task runs |
//! | `match_index.rs` | which machines match which selectors, and which tasks wait for them |
//! | `abilities.rs` | what a task asks of an agent, and what an agent can do |
//! | `notify.rs` | where notifications may go, when they are tried again |
//! | `outbox.rs` | the notifications that wait, when each is made |
//! | `newcomers.rs` | how many new machines are accepted from where |
//! | `about.rs`, `groups.rs` | what people say of a task; the members of a group, and how it goes as a whole |
//! | `task.rs`, `machine.rs`, `output.rs`, `lazy_box.rs` | the data |
//! | `task_answer.rs` | the API's answer about a task |
//! | `summary.rs` | how the server is, at a glance |
//! | `invariants.rs` | what must be true after every operation; for tests |
//!
//! To add:
//!
//! - a field of a task: a field of `wire::task::PostedTask` and `Task`, its check in `spec.rs`, its record in
//!   `saved.rs`, `saving.rs` and `restored.rs`; of its detail, whether the original's agents can do it: `original.rs`.
//! - a state or an event: `lifecycle.rs`. It does not compile until every cell of the table is decided.
//! - an operation or a rule: the file of whoever calls it; then let `tests/simulation` call it.
//! - a timer: `timers.rs` says how. A limit: `retention.rs` says how. A kind of event: `follow.rs` says how.

mod abilities;
mod about;
mod after;
mod agent;
mod attempt_end;
mod children;
mod counterparts;
mod counting;
mod crew;
mod debts;
mod detail_spec;
mod files;
mod firing;
mod firings;
mod follow;
mod groups;
mod halt;
mod invariants;
mod keep_alive;
mod later_spec;
mod launch;
mod lazy_box;
mod ledger;
mod lifecycle;
mod limit_queues;
mod limits;
mod lists;
mod loss;
mod machine;
mod match_index;
mod named_limits;
mod newcomers;
mod notify;
mod order;
mod original;
mod outbox;
mod output;
mod pace;
mod pacing;
mod per_machine;
mod plan;
mod probe_data;
mod probe_place;
mod probe_runs;
mod probe_spec;
mod probes;
#[cfg(test)]
mod probes_tests;
mod query;
mod refusals;
mod report;
mod restored;
mod retention;
mod rollout;
mod saved;
mod saving;
mod schedule;
#[cfg(test)]
mod schedule_tests;
mod schedules;
mod selector;
mod settle;
mod spec;
mod summary;
mod suspension;
mod sweep;
mod task;
mod task_answer;
mod tick;
mod timers;
mod undo;
mod undo_lifecycle;
mod unique;
mod update;
mod user;
mod waiting;
mod waits_for;

pub use self::about::{About, check_group, check_tag};
pub use self::agent::check_holds;
pub use self::counting::Preview;
pub use self::crew::Wish;
pub use self::files::{Files, HandBack};
pub use self::follow::{EventBatch, EventKind, Follower, OutputFilter, TaskEvent};
pub use self::groups::{GroupSummary, state_of};
pub use self::halt::{Halt, MAX_REASON_BYTES};
#[doc(hidden)]
pub use self::invariants::{ExecutionView, Rule, UndoView};
pub use self::limits::{Limits, TextLimits};
pub use self::lists::ListRefusal;
pub use self::loss::{CAUTION, Origin};
pub use self::machine::{MachineSnapshot, OFFLINE_AFTER};
pub use self::match_index::{MatchingSelectors, SelectorSnapshot, TraitsSnapshot};
pub use self::named_limits::{SavedLimit, checked_limit};
pub use self::notify::{CheckedNotify, MAX_NOTIFY, NotifyPolicy, place_of, without_query};
pub use self::order::PRIORITIES;
pub use self::original::{Link, is_of_original, original_instance};
pub use self::outbox::{Delivery, Entry as SavedNotification, Missed, NotifyStats};
pub use self::output::{Output, gap_line};
pub use self::plan::{MAX_SCHEDULE_ID_BYTES, Plan, check_schedule_id};
pub use self::probe_data::CheckedProbe;
pub use self::probe_runs::check_probe_results;
pub use self::query::{Histogram, Stats, TaskPage, TaskQuery};
pub use self::refusals::within;
pub use self::report::check_report;
pub use self::saved::{
    Batch, OutputChange, OutputKey, Saved, SavedExecution, SavedMachine, SavedPiece, SavedTask,
};
pub use self::schedule::{FiringOf, Progress};
pub use self::schedules::{FiredTask, NewSchedule};
pub use self::selector::{Narrowing, Selector, SelectorText, Tags, Traits, pattern_of};
pub use self::spec::Spec;
pub use self::summary::{MAX_LABELS, MachineSummary};
pub use self::suspension::{SavedSuspensions, Suspension};
pub use self::sweep::{MAX_RERUNS, MAX_SWEPT, Meant, Sweep};
pub use self::task::{Execution, OutputEnd, Target, Task, TaskData, execution_id};
pub use self::unique::Unique;
pub use self::user::Selection;

use self::after::Dependents;
use self::counterparts::Counterparts;
use self::counting::Recount;
use self::crew::OffQueue;
use self::follow::ChangeLog;
use self::groups::Groups;
use self::invariants::RestoredSums;
use self::keep_alive::Watch;
use self::ledger::Ledger;
use self::lifecycle::Event;
use self::loss::Loss;
use self::machine::Machine;
use self::match_index::{MatchIndex, SelectorKey};
use self::named_limits::NamedLimits;
use self::newcomers::Newcomers;
use self::order::Rank;
use self::outbox::Outbox;
use self::schedules::Schedules;
use self::suspension::Suspensions;
use self::task::Place;
use self::timers::Timers;
use self::undo::Undos;
use self::unique::Keys;
use self::waiting::WaitingTasks;
use crate::wire::duration::TimeSpan;
use crate::wire::machine::MachineState;
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// The message of an execution whose ttl is over.
const EXPIRED: &str = "not started within its ttl";

/// A point in time in milliseconds since 1970, on a clock that never goes backwards.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// This much later.
    pub fn plus(self, duration: TimeSpan) -> Time {
        self.later_by(duration.as_millis())
    }

    /// So many milliseconds later. They may be more than a `TimeSpan` has: a clock that was wrong when a file was made may be
    /// off by decades.
    pub fn later_by(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms))
    }

    /// The milliseconds since `earlier`; 0 if that is later.
    pub fn millis_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Identifies a task; in order of submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskKey(pub(crate) u64);

/// Identifies a machine; in order of registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineKey(u64);

/// Identifies a schedule; in order of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScheduleKey(pub(crate) u64);

/// Identifies an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ExecutionKey {
    task: TaskKey,
    n: u32,
}

/// Why an operation was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The task or machine does not exist.
    Unknown(String),
    /// The id is used by this task.
    Taken(TaskKey),
    /// The unique key is held by this task.
    Duplicate(TaskKey),
    /// The unique key is held by this task, which takes the place of the new one.
    Joins(TaskKey),
    /// Not possible in the present state.
    Conflict(String),
    /// The request contradicts itself, or what it names.
    Wrong(String),
    /// The request is well-formed, but cannot be carried out.
    Impossible(String),
    /// A limit is reached.
    Full(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Taken(_) => f.write_str("id: is taken"),
            Refusal::Duplicate(_) | Refusal::Joins(_) => {
                f.write_str("uniqueKey: is held by another task")
            }
            Refusal::Unknown(msg)
            | Refusal::Conflict(msg)
            | Refusal::Wrong(msg)
            | Refusal::Impossible(msg)
            | Refusal::Full(msg) => f.write_str(msg),
        }
    }
}

/// What the server has to do because of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Answer the held poll of this machine: there is work, or something to cancel.
    Wake(MachineKey),
    /// This machine was given work in an answer to a report while its poll is held. Answer the poll soon:
    /// the next one says what has been started.
    HandedOut(MachineKey),
    /// A task has ended.
    Finished(TaskKey),
    /// A schedule has fired.
    Fired(FiredTask),
    /// The last task of this group that had not ended has ended.
    GroupFinished(Arc<str>),
    /// A task that has followers has changed.
    Changed(TaskKey),
    /// The machine with this label went offline, for this reason.
    MachineOffline(Arc<str>, &'static str),
    /// There are notifications to be sent.
    NotificationsWait,
    /// This notification was given up, in words.
    NotificationDead(String),
    /// Too many new machines have come from this origin: more are refused for a while.
    NewcomersRefused(Arc<str>),
    /// The machine with this label and instance came online.
    MachineOnline(Arc<str>, Arc<str>),
}

/// The registry.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    tasks: BTreeMap<TaskKey, Task>,
    /// By id. A tree: it finds ids by their beginning, and unlike a hash table it never has to be rebuilt
    /// as a whole while a request waits for the lock.
    task_ids: BTreeMap<Arc<str>, TaskKey>,
    /// By prefix; only tasks whose prefix is not their id.
    task_prefixes: BTreeMap<Arc<str>, TaskKey>,
    task_names: HashMap<Arc<str>, BTreeSet<TaskKey>>,
    groups: Groups,
    next_task: u64,
    /// For how long servers of this registry were away in all, see [`Saved::away_ms`].
    away_ms: u64,
    /// Which tasks name which blob, and how often.
    blobs: files::BlobIndex,
    machines: BTreeMap<MachineKey, Machine>,
    /// How many are in each state, in the order of [`MachineState::ALL`].
    machine_states: [usize; MachineState::ALL.len()],
    /// A tree, as `task_ids` is: ten thousand hashes of texts take milliseconds.
    instances: BTreeMap<Arc<str>, MachineKey>,
    next_machine: u64,
    newcomers: Newcomers,
    /// How many unfinished executions of tasks with `keepAlive` or an undo each instance has.
    guarded: HashMap<Arc<str>, u32>,
    /// Executions that have had their turn and wait for their machine, by its instance.
    absent: HashMap<Arc<str>, BTreeSet<ExecutionKey>>,
    undos: Undos,
    /// The tasks that have not begun.
    waiting: WaitingTasks,
    /// Which tasks wait for which.
    after: Dependents,
    /// Which executions wait for which.
    counterparts: Counterparts,
    halt: Option<Halt>,
    loss: Loss,
    outbox: Outbox,
    suspensions: Suspensions,
    off_queue: OffQueue,
    schedules: Schedules,
    /// The watches over the pools of unfinished tasks.
    pools: BTreeMap<TaskKey, Watch>,
    /// The task that is given turns at this moment.
    paced: Option<TaskKey>,
    /// The machines that are waited for after a restart.
    recount: Recount,
    /// The offline machines for which nothing is queued, those that went first first.
    forgettable: BTreeSet<(Time, MachineKey)>,
    /// The instances that have an execution of an open task, by task.
    joined: BTreeMap<TaskKey, HashSet<Arc<str>>>,
    match_index: MatchIndex,
    /// The tasks of which something is queued, in the order in which they are handed out.
    queued_tasks: BTreeSet<(Rank, u64, TaskKey)>,
    keys: Keys,
    named_limits: NamedLimits,
    /// Machines whose held poll can be given work, longest-waiting first.
    ready: BTreeMap<u64, MachineKey>,
    next_ready: u64,
    timers: Timers,
    last_tick: Time,
    /// When the server last continued after a pause (it was stopped, or got no processor time).
    resumed_at: Time,
    ledger: Ledger,
    /// What a restart has brought, which may be beyond the limits.
    restored: RestoredSums,
    stats: Stats,
    change_logs: HashMap<TaskKey, ChangeLog>,
    notices: Vec<Notice>,
    /// A list of tasks is being accepted: what it makes too many is forgotten when it is through.
    forgets_later: bool,
    /// What has changed since the last batch, if changes are recorded.
    changes: Option<saving::Changes>,
    /// The rule that a test has switched off.
    broken: Option<Rule>,
}

impl Core {
    /// An empty registry.
    pub fn new(limits: Limits, now: Time) -> Core {
        Core {
            tasks: BTreeMap::new(),
            task_ids: BTreeMap::new(),
            task_prefixes: BTreeMap::new(),
            task_names: HashMap::new(),
            groups: Groups::default(),
            next_task: 1,
            away_ms: 0,
            blobs: Default::default(),
            machines: BTreeMap::new(),
            machine_states: Default::default(),
            instances: BTreeMap::new(),
            next_machine: 1,
            newcomers: Newcomers::default(),
            guarded: HashMap::new(),
            absent: HashMap::new(),
            undos: Undos::default(),
            waiting: WaitingTasks::default(),
            after: Dependents::default(),
            counterparts: Counterparts::default(),
            halt: None,
            loss: Loss::none_since(now),
            outbox: Outbox::default(),
            suspensions: Suspensions::default(),
            off_queue: OffQueue::default(),
            schedules: Schedules::new(now),
            pools: BTreeMap::new(),
            paced: None,
            recount: Recount::default(),
            forgettable: BTreeSet::new(),
            joined: BTreeMap::new(),
            match_index: MatchIndex::new(limits.patterns),
            queued_tasks: BTreeSet::new(),
            keys: Keys::new(),
            named_limits: NamedLimits::default(),
            ready: BTreeMap::new(),
            next_ready: 1,
            timers: Timers::default(),
            last_tick: now,
            resumed_at: Time(0),
            ledger: Ledger::default(),
            restored: RestoredSums::default(),
            stats: Stats::default(),
            change_logs: HashMap::new(),
            notices: Vec::new(),
            forgets_later: false,
            changes: None,
            broken: None,
            limits,
        }
    }

    /// The notices of the changes since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.wake_for_limits();
        let mut notices = std::mem::take(&mut self.notices);
        notices.retain(|notice| match notice {
            // What it was to be woken for may have been handed out with the answer to a report.
            Notice::Wake(machine) => self.is_still_to_wake(*machine),
            _ => true,
        });
        notices
    }

    fn is_still_to_wake(&mut self, key: MachineKey) -> bool {
        let Some(machine) = self.machines.get(&key).filter(|machine| machine.waking) else {
            return false;
        };
        let needed = !machine.cancels.is_empty() || self.has_work_for(key);
        self.machine_mut(key).waking = needed;
        needed
    }

    fn task(&self, key: TaskKey) -> &Task {
        self.tasks
            .get(&key)
            .expect("a task is removed together with every reference to it")
    }

    /// A task, to be changed. Records that it has to be saved.
    fn task_mut(&mut self, key: TaskKey) -> &mut TaskData {
        if let Some(changes) = &mut self.changes {
            changes.task(key);
        }
        data_mut(&mut self.tasks, key)
    }

    fn task_with_prefix(&self, prefix: &str) -> Option<TaskKey> {
        let with_id = self.task_ids.get(prefix).copied();
        with_id
            .filter(|key| *self.task(*key).prefix == *prefix)
            .or_else(|| self.task_prefixes.get(prefix).copied())
    }

    fn execution(&self, key: ExecutionKey) -> &Execution {
        &self.task(key.task).executions[key.n as usize]
    }

    /// An execution, to be changed. Records that it has to be saved.
    fn execution_mut(&mut self, key: ExecutionKey) -> &mut Execution {
        if let Some(changes) = &mut self.changes {
            changes.execution(key);
        }
        &mut data_mut(&mut self.tasks, key.task).executions[key.n as usize]
    }

    /// Records that a machine has to be saved.
    fn machine_changed(&mut self, key: MachineKey) {
        if let (Some(changes), Some(machine)) = (&mut self.changes, self.machines.get(&key)) {
            changes.machine(&machine.instance);
        }
    }

    /// Changes the state of a machine. False if it is in that state.
    fn set_machine_state(&mut self, key: MachineKey, state: MachineState) -> bool {
        let before = std::mem::replace(&mut self.machine_mut(key).state, state);
        self.machine_states[before as usize] -= 1;
        self.machine_states[state as usize] += 1;
        before != state
    }

    fn add_machine(&mut self, key: MachineKey, machine: Machine) {
        self.machine_states[machine.state as usize] += 1;
        self.machines.insert(key, machine);
    }

    fn remove_machine(&mut self, key: MachineKey) -> Option<Machine> {
        let machine = self.machines.remove(&key)?;
        self.machine_states[machine.state as usize] -= 1;
        Some(machine)
    }

    fn machine(&self, key: MachineKey) -> &Machine {
        self.machines
            .get(&key)
            .expect("a machine is removed together with every reference to it")
    }

    fn machine_mut(&mut self, key: MachineKey) -> &mut Machine {
        self.machines
            .get_mut(&key)
            .expect("a machine is removed together with every reference to it")
    }

    /// Applies an event to an execution, if the table allows it. The only place where a state changes.
    fn apply(&mut self, key: ExecutionKey, event: Event) -> bool {
        let task = data_mut(&mut self.tasks, key.task);
        let execution = &mut task.executions[key.n as usize];
        let Some(state) = lifecycle::next(execution.state, event) else {
            return false;
        };
        if let Some(changes) = &mut self.changes {
            changes.execution(key);
        }
        let (queued, was, limits) = (task.counts.queued, execution.state, task.limit_set);
        *task.counts.of(execution.state) -= 1;
        *task.counts.of(state) += 1;
        self.ledger.change_state(execution.state, state);
        execution.state = state;
        let changes_queued = (queued == 0) != (task.counts.queued == 0);
        let waited = task.waiting.is_some();
        if state.is_terminal() {
            if let Some(pacing) = &mut task.pacing {
                pacing.ended(key.n);
            }
            self.stats.ended(state);
            self.unguard(key);
            self.counterpart_ended(key);
        }
        self.count_for_limits(limits, was, state);
        if changes_queued {
            self.list_queued(key.task);
        }
        self.list_off_queue(key);
        self.record_change(key);
        if waited {
            self.release_parents(key.task);
        }
        true
    }

    /// Moves an execution to another place and updates the queues.
    fn place(&mut self, key: ExecutionKey, place: Place) {
        let turn = self.turn_of(key);
        let set = self.task(key.task).limit_set;
        let was = std::mem::replace(&mut self.execution_mut(key).place, place);
        match was {
            Place::Nowhere => {}
            Place::Selector(selector) => {
                let needed = self.needs_of(key.task);
                let entry = self.match_index.entry_mut(selector);
                entry.queue.remove(&key.task);
                if let Entry::Occupied(mut same_need) = entry.by_need.entry((needed, set)) {
                    let turns = same_need.get_mut();
                    let before = turns.first().copied();
                    turns.remove(&turn);
                    let after = turns.first().copied();
                    if turns.is_empty() {
                        same_need.remove();
                    }
                    let queue = (selector, needed);
                    self.head_of_selector_changed(set, queue, before, after);
                }
                self.named_limits.count_queued(set, false);
            }
            Place::Inbox(machine) => {
                let left = self.machine_mut(machine);
                left.inbox.remove(set, &turn);
                left.offers.remove(&turn);
                self.named_limits.count_queued(set, false);
                self.refresh_ready(machine);
            }
            Place::Active(machine) => {
                let machine_data = self.machine_mut(machine);
                machine_data.active.remove(&key);
                machine_data.original.doubted.remove(&key);
                self.refresh_ready(machine);
                // It has a free job now.
                self.wake(machine);
            }
        }
        match place {
            Place::Nowhere => {}
            Place::Selector(selector) => {
                let needed = self.needs_of(key.task);
                let entry = self.match_index.entry_mut(selector);
                entry.queue.insert(key.task);
                let turns = entry.by_need.entry((needed, set)).or_default();
                let before = turns.first().copied();
                turns.insert(turn);
                let after = turns.first().copied();
                self.head_of_selector_changed(set, (selector, needed), before, after);
                self.named_limits.count_queued(set, true);
            }
            Place::Inbox(machine) => {
                let is_any = self.task(key.task).is_any();
                let entered = self.machine_mut(machine);
                entered.inbox.insert(set, turn);
                if is_any {
                    entered.offers.insert(turn);
                }
                self.named_limits.count_queued(set, true);
                self.refresh_ready(machine);
            }
            Place::Active(machine) => {
                self.machine_mut(machine).active.insert(key);
                self.refresh_ready(machine);
            }
        }
    }

    fn selector_key_of(&mut self, task: TaskKey) -> SelectorKey {
        let selector = self.task(task).spec.selector.clone();
        self.match_index.key_of(&selector)
    }

    /// Counts an unfinished execution of a task with `keepAlive` or an undo at its machine. Not one that any machine may
    /// run: where it is, its undo is open.
    fn guard(&mut self, key: ExecutionKey) {
        if !self.execution(key).state.is_terminal() {
            self.add_busy(key);
        }
        let task = self.task(key.task);
        let execution = &task.executions[key.n as usize];
        if !task.spec.is_guarding() || execution.state.is_terminal() {
            return;
        }
        if let Some(target) = execution.target.clone() {
            *self.guarded.entry(target.instance.clone()).or_default() += 1;
        }
    }

    /// An execution that was counted has ended.
    fn unguard(&mut self, key: ExecutionKey) {
        self.remove_busy(key);
        let task = self.task(key.task);
        let target = task.executions[key.n as usize].target.as_ref();
        let target = target.filter(|_| task.spec.is_guarding());
        let Some(instance) = target.map(|target| target.instance.clone()) else {
            return;
        };
        if let Some(count) = self.guarded.get_mut(&instance) {
            *count -= 1;
            if *count == 0 {
                self.guarded.remove(&instance);
            }
        }
    }

    /// Updates the lists of ready and of forgettable machines after a machine has changed.
    fn refresh_ready(&mut self, key: MachineKey) {
        let machine = self
            .machines
            .get_mut(&key)
            .expect("a machine is removed together with every reference to it");
        let was_ready = machine.ready.is_some();
        let forgettable = (machine.offline_since, key);
        if machine.state == MachineState::Offline && machine.inbox.is_empty() {
            self.forgettable.insert(forgettable);
        } else {
            self.forgettable.remove(&forgettable);
        }
        match (machine.ready, machine.can_be_given_work()) {
            (None, true) => {
                machine.ready = Some(self.next_ready);
                self.ready.insert(self.next_ready, key);
                self.next_ready += 1;
            }
            (Some(order), false) => {
                machine.ready = None;
                self.ready.remove(&order);
            }
            (Some(_), true) | (None, false) => {}
        }
        self.list_heads_of(key, was_ready);
    }

    /// Has a machine's held poll answered, if there is something for it when this change is complete.
    fn wake(&mut self, key: MachineKey) {
        let machine = self.machine_mut(key);
        if machine.poll_held && !std::mem::replace(&mut machine.waking, true) {
            self.notices.push(Notice::Wake(key));
        }
    }

    fn target(&self, machine: MachineKey) -> Arc<Target> {
        self.machine(machine).target.clone()
    }
}

/// The data of a task, to be changed. Does not record the change.
fn data_mut(tasks: &mut BTreeMap<TaskKey, Task>, key: TaskKey) -> &mut TaskData {
    let task = tasks.get_mut(&key);
    task.expect("a task is removed together with every reference to it")
        .data_mut()
}
