//! The invariants of the registry, checked by tests and by `sidebike db check`. Nothing here changes anything.
//!
//! Much is stored twice for speed, and both copies must agree: the queues and the place of each execution, the
//! counts and the executions, the timers and the times they were set for.

use super::ledger::Frees;
use super::machine::Machine;
use super::named_limits::SetKey;
use super::order::Inbox;
use super::retention::LATE_JOIN_PART;
use super::task::Place;
use super::timers::Timer;
use super::{Core, ExecutionKey, Limits, MachineKey, Task, TaskKey};
use crate::wire::machine::MachineState;
use crate::wire::task::{Counts, ExecutionState};
use crate::wire::undo::UndoState;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A rule that a test can switch off, to see that the simulation finds its violation. No input can do that.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A late or repeated poll is refused.
    LatePollRefused,
    /// A report is answered with new work only if the poll it names is the latest here, too.
    MoreOnlyAfterTheLatestPoll,
    /// What may have started on a machine that went offline is not handed to another.
    UncertainIsLost,
    /// A canceled execution whose hand-out was lost is not handed out again.
    CanceledIsNotRepeated,
    /// What any machine may run goes back when the machine it was offered to cannot take it.
    OffersAreRevoked,
    /// A machine joins a task once.
    OneExecutionPerMachine,
    /// A task that machines join takes a part of the executions at most.
    LateJoinEnds,
    /// A machine for which something is queued is not forgotten to make room.
    QueuesAreKept,
    /// What was canceled while its hand-out was being saved is not sent.
    CanceledIsNotSent,
    /// No more executions of a rollout are under way than its window allows.
    WindowIsKept,
    /// What was not handed out of a task that was stopped is skipped.
    StoppedIsSkipped,
    /// What nobody has said of an undo is owed when its machine is gone.
    LostIsOwed,
    /// A machine runs one execution with a lock at a time, and none before the undo of the one before is settled.
    LockIsHeld,
    /// An attempt whose undo is failed or owed is not followed by another.
    RetryWaitsForUndo,
    /// A task has not ended while an undo of it runs.
    EndWaitsForUndo,
    /// A task with an undo that is failed or owed is not forgotten before its time, nor to make room.
    DebtsAreKept,
    /// Nothing with an undo is accepted during a halt.
    HaltRefuses,
    /// An event is told once.
    EventIsToldOnce,
    /// What waits to be told of a task is told also when the task is forgotten.
    PendingOutlastsItsTask,
    /// Machines that are offline are part of the pool of which some have to stay.
    OfflineIsOfThePool,
    /// What any machine may run goes to one whose agent can run it.
    AnyGoesWhereItCanRun,
    /// The failures of all steps count, not only those of the present one.
    FailuresAreOfTheTask,
    /// Of what two queues have for a machine, the one with the higher priority is handed out first.
    HigherPriorityFirst,
    /// No more executions run than their limits allow.
    LimitIsKept,
    /// No more executions are handed out a minute than their limits allow.
    RateIsKept,
    /// A task that replaces another one begins when that has ended.
    KeyWaitsForItsHolder,
    /// A share of machines that may be hit rounds down.
    HitsRoundDown,
    /// A time that became a task is settled.
    FiringSettlesItsTime,
    /// A machine that has not ended a firing is left out of the next, if the schedule says so.
    FiringsDoNotOverlap,
    /// The last firing of a schedule is not forgotten.
    LastFiringIsKept,
    /// A share of machines that must stay rounds up.
    KeptRoundsUp,
    /// A task begins only if what it is to begin after has ended so.
    EdgesAreKept,
    /// What follows another task machine by machine begins on a machine only when that has ended there.
    CounterpartIsAwaited,
    /// Who waits for a group is told when its last member has ended.
    EndOfGroupIsTold,
    /// A list of tasks is taken back when one of them is refused.
    ListIsTakenBack,
    /// Of many tasks that are canceled, what has not started is canceled first.
    UnstartedIsCanceledFirst,
    /// A machine that is suspended is handed nothing.
    SuspendedGetsNothing,
    /// The `ttl` of what waits for suspended machines stands still.
    SuspendedHasTime,
    /// A machine that is to drain is handed nothing.
    DrainedGetsNothing,
    /// An agent whose owner does not let it replace its program is handed no update.
    UpdateNeedsConsent,
    /// What any machine may run is not handed out just after a loss.
    CautionAfterLoss,
    /// What an agent holds just after a loss is adopted, not killed.
    HeldIsAdopted,
}

impl Rule {
    /// Every rule but those about the order of what waits.
    pub const ALL: [Rule; 32] = [
        Rule::LatePollRefused,
        Rule::MoreOnlyAfterTheLatestPoll,
        Rule::UncertainIsLost,
        Rule::CanceledIsNotRepeated,
        Rule::OffersAreRevoked,
        Rule::OneExecutionPerMachine,
        Rule::LateJoinEnds,
        Rule::QueuesAreKept,
        Rule::AnyGoesWhereItCanRun,
        Rule::WindowIsKept,
        Rule::StoppedIsSkipped,
        Rule::LostIsOwed,
        Rule::LockIsHeld,
        Rule::RetryWaitsForUndo,
        Rule::EndWaitsForUndo,
        Rule::DebtsAreKept,
        Rule::HaltRefuses,
        Rule::EventIsToldOnce,
        Rule::PendingOutlastsItsTask,
        Rule::OfflineIsOfThePool,
        Rule::FailuresAreOfTheTask,
        Rule::HitsRoundDown,
        Rule::KeptRoundsUp,
        Rule::EdgesAreKept,
        Rule::CounterpartIsAwaited,
        Rule::EndOfGroupIsTold,
        Rule::ListIsTakenBack,
        Rule::UnstartedIsCanceledFirst,
        Rule::SuspendedGetsNothing,
        Rule::SuspendedHasTime,
        Rule::DrainedGetsNothing,
        Rule::UpdateNeedsConsent,
    ];
    /// The rules about the order of what waits: they have a simulation of their own.
    pub const OF_ORDER: [Rule; 4] = [
        Rule::HigherPriorityFirst,
        Rule::KeyWaitsForItsHolder,
        Rule::LimitIsKept,
        Rule::RateIsKept,
    ];
}

/// What a core had when it was restored. Its limits may be lower than those that it was accepted under: it stays, and
/// is the bound until less is there.
#[derive(Debug, Default)]
pub(super) struct RestoredSums {
    executions: usize,
    machines: usize,
    detail_bytes: usize,
    output_bytes: usize,
}

/// What the simulation sees of an execution after every step.
#[doc(hidden)]
#[derive(Debug)]
#[allow(missing_docs)]
pub struct ExecutionView<'a> {
    pub n: u32,
    pub attempt: u32,
    pub state: ExecutionState,
    pub instance: Option<&'a str>,
    pub msg: &'a str,
    /// Its next attempt is not due yet.
    pub is_between: bool,
    /// The undo of the latest attempt, once that was handed out with one.
    pub undo: Option<UndoView<'a>>,
}

/// What the simulation sees of an undo.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct UndoView<'a> {
    /// None until it is armed.
    pub state: Option<UndoState>,
    /// The machine that is to run it again, until it has.
    pub handed_to: Option<&'a str>,
}

impl Task {
    /// Whether a user, or the task that replaces it, canceled all of it.
    #[doc(hidden)]
    pub fn is_canceled_for_tests(&self) -> bool {
        self.canceled
    }

    /// Its executions.
    #[doc(hidden)]
    pub fn execution_views(&self) -> impl Iterator<Item = ExecutionView<'_>> {
        (0..).zip(&self.executions).map(|(n, e)| ExecutionView {
            n,
            attempt: e.current.number,
            state: e.state,
            instance: e.target.as_ref().map(|target| &*target.instance),
            msg: &e.current.msg,
            is_between: e.current.due_at.is_some(),
            undo: e.current.undo.as_ref().map(|undo| undo.view()),
        })
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl Core {
    /// Switches a rule off from now on.
    #[doc(hidden)]
    pub fn break_rule_for_tests(&mut self, rule: Rule) {
        self.broken = Some(rule);
    }

    /// Whether a rule holds; always, except when a test has switched it off.
    pub(super) fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    /// All tasks and their keys.
    #[doc(hidden)]
    pub fn tasks_by_key(&self) -> impl Iterator<Item = (TaskKey, &Task)> {
        self.tasks.iter().map(|(key, task)| (*key, task))
    }

    /// The instances and states of all machines.
    #[doc(hidden)]
    pub fn machine_states(&self) -> impl Iterator<Item = (&str, MachineState)> {
        self.machines.values().map(|m| (&*m.instance, m.state))
    }

    /// Nothing that could run waits while a machine that could run it is free: each `any` execution that no held
    /// poll is about to take matches no machine that can be given work. The error names both.
    #[doc(hidden)]
    pub fn check_work_conservation(&self) -> Result<(), String> {
        self.check_debts_are_handed_out()?;
        let idle: Vec<&Machine> = { self.machines.iter() }
            .filter(|(key, machine)| {
                machine.can_be_given_work() && !machine.waking && !self.is_suspended(**key)
            })
            .map(|(_, machine)| machine)
            .collect();
        for machine in &idle {
            if let Some(next) = self.next_for(machine) {
                return Err(format!(
                    "{} is free, and would be handed {next:?}",
                    machine.instance
                ));
            }
        }
        let offered = { self.tasks.iter() }.filter(|(_, task)| {
            task.is_any() && task.limit_set == SetKey::NONE && !self.holds_back_any()
        });
        for (key, task) in offered {
            let execution = ExecutionKey { task: *key, n: 0 };
            let waits = match task.executions.first().map(|e| e.place) {
                Some(Place::Selector(_)) => true,
                Some(Place::Inbox(machine)) => {
                    let machine = self.machine(machine);
                    machine.inbox.before(&self.turn_of(execution)) >= machine.takes()
                }
                _ => false,
            };
            let entry = self.match_index.find_entry(task.spec.selector.text());
            let needed = self.needs_of(*key);
            let fits = |m: &&&Machine| {
                let is_meant = entry.is_some_and(|entry| entry.means(m.traits_key, &m.instance));
                is_meant && self.may_run(m, needed)
            };
            if let Some(machine) = idle.iter().find(fits).filter(|_| waits) {
                return Err(format!(
                    "{key:?} {:?} waits, and {} is free",
                    task.executions[0].place, machine.instance
                ));
            }
        }
        Ok(())
    }

    /// Checks all invariants. The error says which one is violated.
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_executions()?;
        self.check_undos()?;
        self.check_guarded()?;
        self.check_waiting()?;
        self.check_counterparts()?;
        self.check_blobs()?;
        self.check_machines()?;
        self.check_indexes()?;
        self.check_queued_tasks()?;
        self.check_keys()?;
        self.check_limit_sets()?;
        self.check_heads()?;
        self.check_notifications()?;
        self.check_schedules()?;
        self.check_groups()?;
        self.check_suspensions()?;
        self.check_off_queue()?;
        self.check_timers()
    }

    /// The machines that count as touched are those of the executions that have not ended.
    fn check_guarded(&self) -> Result<(), String> {
        let mut guarded: HashMap<&str, u32> = HashMap::new();
        for task in self.tasks.values().filter(|task| task.spec.is_guarding()) {
            let unfinished = task.executions.iter().filter(|e| !e.state.is_terminal());
            for target in unfinished.filter_map(|e| e.target.as_ref()) {
                *guarded.entry(&target.instance).or_default() += 1;
            }
        }
        let counted = self.guarded.iter().map(|(instance, n)| (&**instance, *n));
        let counted: HashMap<&str, u32> = counted.collect();
        ensure(counted == guarded, || {
            format!("guarded {counted:?}, recounted {guarded:?}")
        })
    }

    /// Counts, output bytes and queues agree with the executions.
    fn check_executions(&self) -> Result<(), String> {
        let mut all = Counts::default();
        let mut output = 0;
        let mut inboxes: BTreeMap<MachineKey, Inbox> = BTreeMap::new();
        let mut actives: BTreeMap<MachineKey, BTreeSet<ExecutionKey>> = BTreeMap::new();
        let mut waiting = 0;
        for (key, task) in &self.tasks {
            let mut counts = Counts::default();
            let mut task_output = task.kept_by_probes();
            for (n, e) in (0..).zip(&task.executions) {
                *counts.of(e.state) += 1;
                *all.of(e.state) += 1;
                let outputs = e.past.iter().map(|past| &past.attempt).chain([&*e.current]);
                task_output += outputs.map(|attempt| attempt.kept_output()).sum::<usize>();
                let execution = ExecutionKey { task: *key, n };
                self.check_place(execution, task)?;
                match e.place {
                    Place::Nowhere => {}
                    Place::Selector(_) => waiting += 1,
                    Place::Inbox(m) => {
                        let turn = self.turn_of(execution);
                        inboxes.entry(m).or_default().insert(task.limit_set, turn);
                    }
                    Place::Active(m) => drop(actives.entry(m).or_default().insert(execution)),
                }
            }
            self.check_pacing(*key, task)?;
            ensure(counts == task.counts, || {
                format!("{key:?}: counts {:?}, recounted {counts:?}", task.counts)
            })?;
            ensure(task_output == task.output_bytes, || {
                format!(
                    "{key:?}: {} bytes of output, recounted {task_output}",
                    task.output_bytes
                )
            })?;
            output += task_output;
        }
        ensure(all == self.ledger.executions(), || {
            format!("counts {:?}, recounted {all:?}", self.ledger.executions())
        })?;
        ensure(output == self.ledger.output_bytes(), || {
            format!(
                "{} bytes of output, recounted {output}",
                self.ledger.output_bytes()
            )
        })?;
        ensure(waiting == self.match_index.queued(), || {
            format!(
                "{} wait for any machine, {waiting} say so",
                self.match_index.queued()
            )
        })?;
        for (key, machine) in &self.machines {
            let same = machine.inbox.turns() == inboxes.remove(key).unwrap_or_default().turns()
                && machine.active == actives.remove(key).unwrap_or_default();
            ensure(same, || {
                format!("{key:?}: its queues and the places differ")
            })?;
            let inbox = machine.inbox.executions().into_iter();
            let any = inbox.filter(|e| self.task(e.task).is_any());
            ensure(any.eq(machine.offers.iter().map(|turn| turn.key)), || {
                format!("{key:?}: what is offered to it is not what any machine may run")
            })?;
        }
        ensure(inboxes.is_empty() && actives.is_empty(), || {
            format!("queued for machines that are not there: {inboxes:?} {actives:?}")
        })
    }

    /// An execution is where its state says that it is.
    fn check_place(&self, key: ExecutionKey, task: &Task) -> Result<(), String> {
        let e = &task.executions[key.n as usize];
        let in_its_queue = match e.place {
            Place::Selector(selector) => {
                let entry = self.match_index.find_entry(task.spec.selector.text());
                let same = self.match_index.entry(selector);
                let need = (self.needs_of(key.task), task.limit_set);
                let by_need = same.by_need.get(&need);
                let listed: usize = same.by_need.values().map(BTreeSet::len).sum();
                let queued = |entry: &_| {
                    std::ptr::eq(entry, same)
                        && same.queue.contains(&key.task)
                        && same.queue.len() == listed
                        && by_need.is_some_and(|waiting| waiting.contains(&self.turn_of(key)))
                };
                task.is_any() && key.n == 0 && entry.is_some_and(queued)
            }
            Place::Inbox(m) | Place::Active(m) => {
                let machine = self.machines.get(&m);
                // What could run elsewhere does not wait for a machine that takes no work.
                let waits = matches!(e.place, Place::Inbox(_)) && task.is_any();
                let instance = e.target.as_ref().map(|target| &target.instance);
                machine.is_some_and(|m| Some(&m.instance) == instance && (!waits || m.is_live()))
            }
            Place::Nowhere => true,
        };
        let fits = match e.state {
            ExecutionState::Queued => match e.place {
                Place::Selector(_) | Place::Inbox(_) => true,
                // Between two attempts.
                Place::Nowhere => e.current.due_at.is_some(),
                Place::Active(_) => false,
            },
            ExecutionState::Held => e.place == Place::Nowhere && task.finished_at.is_none(),
            ExecutionState::Delivered | ExecutionState::Running => {
                matches!(e.place, Place::Active(_))
            }
            _ => e.place == Place::Nowhere,
        };
        ensure(in_its_queue && fits, || {
            format!("{key:?}: {:?} at {:?}", e.state, e.place)
        })
    }

    /// The list of ready machines is right, and offline machines have no work.
    fn check_machines(&self) -> Result<(), String> {
        let (mut ready, mut forgettable) = (0, 0);
        for (key, machine) in &self.machines {
            ensure(
                machine.ready.is_some() == machine.can_be_given_work(),
                || format!("{key:?}: ready {:?}", machine.ready),
            )?;
            if let Some(order) = machine.ready {
                ready += 1;
                ensure(self.ready.get(&order) == Some(key), || {
                    format!("{key:?}: not in the list of ready machines")
                })?;
            }
            let offline = machine.state == MachineState::Offline;
            let listed = self.forgettable.contains(&(machine.offline_since, *key));
            forgettable += usize::from(listed);
            ensure(listed == (offline && machine.inbox.is_empty()), || {
                format!("{key:?}: may be forgotten {listed}")
            })?;
            ensure(
                !offline || (machine.active.is_empty() && !machine.poll_held),
                || format!("{key:?}: offline, with work in its hands"),
            )?;
            ensure(machine.original.doubted.is_subset(&machine.active), || {
                format!("{key:?}: doubts what it does not have")
            })?;
            ensure(self.instances.get(&machine.instance) == Some(key), || {
                format!("{key:?}: its instance does not lead to it")
            })?;
            let traits = self.match_index.traits(machine.traits_key);
            ensure(traits.machines.contains(key), || {
                format!("{key:?}: its traits do not lead to it")
            })?;
        }
        ensure(forgettable == self.forgettable.len(), || {
            "machines that are not there may be forgotten".into()
        })?;
        ensure(ready == self.ready.len(), || {
            format!("{} machines are ready, {ready} say so", self.ready.len())
        })
    }

    /// Each selector leads to the traits that it matches, and the traits to their selectors. Slow.
    #[doc(hidden)]
    pub fn check_matches(&self) -> Result<(), String> {
        self.match_index.check()
    }

    /// The indexes contain every task and machine and nothing else; limits hold.
    fn check_indexes(&self) -> Result<(), String> {
        let named: usize = self.task_names.values().map(BTreeSet::len).sum();
        let tasks = self.tasks.len();
        let counted = self.ledger.tasks();
        ensure(counted == tasks, || {
            format!("{tasks} tasks, counted {counted}")
        })?;
        ensure(self.task_ids.len() == tasks && named == tasks, || {
            format!("{tasks} tasks, {} ids, {named} names", self.task_ids.len())
        })?;
        let apart = self.tasks.values().filter(|task| task.id != task.prefix);
        ensure(self.task_prefixes.len() == apart.count(), || {
            format!("{} prefixes that are no ids", self.task_prefixes.len())
        })?;
        let mut finished = 0;
        let mut finished_executions = 0;
        let (mut detail_bytes, mut finished_detail_bytes) = (0, 0);
        for (key, task) in &self.tasks {
            let named = self.task_names.get(&task.spec.name);
            let known = self.task_ids.get(&task.id) == Some(key)
                && self.task_with_prefix(&task.prefix) == Some(*key)
                && named.is_some_and(|keys| keys.contains(key));
            ensure(known, || {
                format!("{key:?}: its id or name does not lead to it")
            })?;
            let entry = self.match_index.find_entry(task.spec.selector.text());
            let listed = entry.is_some_and(|entry| entry.open.contains(key));
            let joined = self.joined.get(key).map(HashSet::len);
            let right = match task.open {
                true => joined == Some(task.executions.len()),
                false => joined.is_none(),
            };
            ensure(listed == task.open && right, || {
                format!("{key:?}: open {}, joined by {joined:?}", task.open)
            })?;
            detail_bytes += task.spec.kept_bytes();
            let Some(finished_at) = task.finished_at else {
                let is_left =
                    task.counts.unfinished() + task.undos_under_way() > 0 || task.is_unbegun();
                ensure(
                    task.open || is_left || !self.keeps(Rule::EndWaitsForUndo),
                    || format!("{key:?}: nothing is left to do, and it has not ended"),
                )?;
                continue;
            };
            finished += 1;
            finished_detail_bytes += task.spec.kept_bytes();
            finished_executions += task.executions.len();
            let right = self.ledger.is_finished(finished_at, *key)
                && self.ledger.lists(finished_at, *key, task)
                && task.counts.unfinished() == 0
                && !task.open;
            ensure(right, || format!("{key:?}: has ended, but not altogether"))?;
        }
        ensure(finished == self.ledger.finished_tasks(), || {
            format!(
                "{} tasks have ended, {finished} say so",
                self.ledger.finished_tasks()
            )
        })?;
        ensure(
            finished_executions == self.ledger.finished_executions(),
            || "executions of ended tasks are miscounted".into(),
        )?;
        let right = detail_bytes == self.ledger.detail_bytes()
            && detail_bytes - finished_detail_bytes == self.ledger.unfinished_detail_bytes();
        ensure(right, || "the bytes of details are miscounted".into())?;
        ensure(self.instances.len() == self.machines.len(), || {
            "instances lead to machines that are not there".into()
        })?;
        for (state, counted) in self.machines_by_state() {
            let there = self.machines.values().filter(|m| m.state == state);
            ensure(there.count() == counted, || {
                format!("{} machines are miscounted", state.word())
            })?;
        }
        self.check_limits()
    }

    /// The sums that limits are for.
    pub(super) fn sums_beyond_limits(&self) -> RestoredSums {
        RestoredSums {
            executions: { self.ledger.executions_of_unfinished_tasks() }
                .max(self.ledger.unfinished_tasks())
                .saturating_mul(LATE_JOIN_PART),
            machines: self.machines.len(),
            detail_bytes: self.ledger.detail_bytes(),
            output_bytes: self.ledger.output_bytes(),
        }
    }

    /// The limits hold. The last finished task is always kept.
    fn check_limits(&self) -> Result<(), String> {
        let limits = &Limits {
            executions: self.limits.executions.max(self.restored.executions),
            machines: self.limits.machines.max(self.restored.machines),
            detail_bytes: self.limits.detail_bytes.max(self.restored.detail_bytes),
            output_bytes: self.limits.output_bytes.max(self.restored.output_bytes),
            ..self.limits.clone()
        };
        let unfinished = self.ledger.unfinished_executions();
        ensure(unfinished <= limits.executions, || {
            format!(
                "{unfinished} unfinished executions, the limit is {}",
                limits.executions
            )
        })?;
        let kept = self.ledger.executions_of_unfinished_tasks();
        ensure(kept <= limits.executions.saturating_mul(2), || {
            format!("{kept} executions of unfinished tasks are kept")
        })?;
        let joined =
            { self.tasks.values() }.filter(|task| task.spec.late_join && task.matched == 0);
        let most = joined.map(|task| task.executions.len()).max().unwrap_or(0);
        ensure(most <= limits.executions.div_ceil(LATE_JOIN_PART), || {
            format!("machines have joined a task {most} times")
        })?;
        let details = self.ledger.unfinished_detail_bytes();
        ensure(details <= limits.detail_bytes, || {
            format!("{details} bytes of details of unfinished tasks are kept")
        })?;
        let (details, finished) = (self.ledger.detail_bytes(), self.ledger.finished_tasks());
        // What is in debt is kept beyond the limits: nothing else may be left to be forgotten.
        let could_forget = |frees| {
            let waits = self.undos.are_settled_by_hand || self.after.has_freed;
            !waits && self.ledger.oldest_that_frees(frees).is_some()
        };
        let many = details > limits.detail_bytes
            && finished > 1
            && (could_forget(Frees::LargeDetail) || could_forget(Frees::Task));
        ensure(!many, || format!("{details} bytes of details are kept"))?;
        let tasks = self.ledger.unfinished_tasks();
        ensure(tasks <= limits.executions, || {
            format!("{tasks} unfinished tasks")
        })?;
        let many = self.ledger.finished_tasks() > limits.tasks.max(1) && could_forget(Frees::Task);
        ensure(!many, || {
            format!("{} ended tasks are kept", self.ledger.finished_tasks())
        })?;
        let many = self.ledger.finished_tasks() > 1
            && self.ledger.finished_executions() > limits.executions
            && could_forget(Frees::Executions);
        ensure(!many, || {
            "too many executions of ended tasks are kept".into()
        })?;
        ensure(self.machines.len() <= limits.machines, || {
            format!("{} machines are known", self.machines.len())
        })?;
        ensure(self.ledger.output_bytes() <= limits.output_bytes, || {
            format!("{} bytes of output are kept", self.ledger.output_bytes())
        })
    }

    /// Every timer belongs to something that exists, and everything that must end has its timer.
    fn check_timers(&self) -> Result<(), String> {
        let mut silent: BTreeSet<MachineKey> = BTreeSet::new();
        let mut ending: BTreeSet<TaskKey> = BTreeSet::new();
        let mut overdue: BTreeSet<ExecutionKey> = BTreeSet::new();
        let mut probes = 0;
        for (time, timer) in self.timers.iter() {
            let execution = |key: &ExecutionKey, number: u32| {
                let task = self.tasks.get(&key.task)?;
                let e = task.executions.get(key.n as usize)?;
                (e.current.number == number).then_some(e)
            };
            let meant = match timer {
                Timer::MachineSilent(key) => {
                    silent.insert(*key);
                    let machine = self.machines.get(key);
                    machine.is_some_and(|machine| machine.watched_at == Some(*time))
                }
                Timer::ForgetMachine(key) => {
                    let machine = self.machines.get(key);
                    machine.is_some_and(|machine| machine.state == MachineState::Offline)
                }
                Timer::AttemptTtl(key, number) => execution(key, *number)
                    .is_some_and(|e| e.current.expires_at == Some(*time) && !e.state.is_terminal()),
                Timer::AttemptDue(key, number) => execution(key, *number)
                    .is_some_and(|e| e.current.due_at == Some(*time) && e.place == Place::Nowhere),
                Timer::AttemptOverdue(key, number) => {
                    overdue.insert(*key);
                    execution(key, *number).is_some_and(|e| {
                        e.current.overdue_at == Some(*time) && matches!(e.place, Place::Active(_))
                    })
                }
                Timer::TaskTtl(key) => {
                    ending.insert(*key);
                    self.tasks
                        .get(key)
                        .is_some_and(|task| task.finished_at.is_none() && task.expires_at == *time)
                }
                Timer::BlockedTtl(key) => self.is_blocked_until(*key, *time),
                Timer::CounterpartTtl(key) => self.is_counterpart_ttl(*key, *time),
                // It may have become needless since it was set.
                Timer::Settle => true,
                Timer::Begin(key) => self.is_time_of(*key, *time),
                Timer::PauseOver(key) => {
                    let pacing = { self.tasks.get(key) }.and_then(|task| task.pacing.as_ref());
                    pacing.is_some_and(|pacing| pacing.resumes_at() == Some(*time))
                }
                // It may have become needless since it was set.
                Timer::Pace(_) => true,
                Timer::Probe(key) => {
                    probes += 1;
                    self.is_timer_of(*key, *time)
                }
                Timer::Limit(key) => self.is_timer_of_limit(*key, *time),
                Timer::KeepAlive(key) => self.is_next_look(*key, *time),
                Timer::SuspensionEnds | Timer::SuspensionSweep | Timer::SuspendedQueues => {
                    self.is_timer_of_suspensions(*time, *timer)
                }
                Timer::CautionEnds => self.is_end_of_caution(*time),
                Timer::ForgetTask(key) => {
                    ending.insert(*key);
                    let task = self.tasks.get(key);
                    task.and_then(|task| task.forgotten_at()) == Some(*time)
                }
            };
            ensure(meant, || {
                format!("{timer:?} at {time:?} belongs to nothing")
            })?;
        }
        self.check_probes(probes)?;
        for (key, machine) in &self.machines {
            let watched = silent.contains(key) || machine.state == MachineState::Offline;
            ensure(watched, || {
                format!("{key:?}: its silence would go unnoticed")
            })?;
            for execution in &machine.active {
                let limited = self.task(execution.task).spec.longest_run().is_some();
                ensure(!limited || overdue.contains(execution), || {
                    format!("{execution:?}: could stay in a machine's hands for ever")
                })?;
            }
        }
        for (key, task) in &self.tasks {
            let e = &task.executions;
            let first = (0..).zip(e).any(|(n, e)| {
                e.state == ExecutionState::Queued
                    && e.current.expires_at.is_none()
                    && e.current.due_at.is_none()
                    && e.current.number == 1
                    && !self.stands_still(ExecutionKey { task: *key, n })
            });
            let is_over = task.finished_at.is_some() && !task.needed && !task.is_last_firing;
            let needed = task.open || first || is_over;
            ensure(!needed || task.is_paused() || ending.contains(key), || {
                format!("{key:?}: could stay for ever")
            })?;
        }
        Ok(())
    }
}
