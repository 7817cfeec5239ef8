//! The laws of experiments: what was started is undone, and the server never says more than is known. Each is a
//! function named after it, or named in its message. What really is stands in `experiment.rs`.

use crate::experiment::{Plan, Spot, Stop, Truth};
use crate::world::{AttemptKey, Lawful, Ms, World};
use sidebike::core::TaskKey;
use sidebike::wire::agent::{Assignment, Feature, UndoOrder};
use sidebike::wire::machine::MachineState;
use sidebike::wire::task::Detail;
use sidebike::wire::undo::UndoState;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// How long after its time a command is dead: TERM, KILL 5 s later, what the guard gives the agent, and the pauses
/// between looks.
const END_SLACK: Ms = 25_000;
/// Until when everything has settled after the faults: the longest undos, and a machine that has to be noticed to be gone.
const SETTLED_WITHIN: Ms = 1_800_000;

/// What the server says of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    /// It is the latest of its execution, and was handed out.
    Latest(Option<UndoState>, Option<String>),
    /// Another attempt followed.
    Superseded,
    /// It was not handed out, as far as the server knows.
    NotOut,
    /// The task is not known.
    Unknown,
}

/// The undos of a server that are failed or owed.
pub type Debts = BTreeSet<(TaskKey, u32, u32)>;

/// An undo that nobody has settled, or that has left something.
fn is_open(state: Option<UndoState>) -> bool {
    state.is_none_or(|state| !state.is_settled() || state.is_dirty())
}

impl World {
    fn word(&self, key: AttemptKey) -> Word {
        if key.epoch != self.server.epoch {
            return Word::Unknown;
        }
        let Ok(task) = self.server.core.show(key.task) else {
            return Word::Unknown;
        };
        let view = task.execution_views().nth(key.n as usize);
        match view {
            Some(view) if view.attempt > key.attempt => Word::Superseded,
            Some(view) => match view.undo {
                Some(undo) => Word::Latest(undo.state, view.instance.map(str::to_owned)),
                None => Word::NotOut,
            },
            None => Word::Unknown,
        }
    }

    /// A start order was obeyed up to the start.
    pub fn a_start_is_armed(&self, key: AttemptKey, is_armed: bool, stop: Option<Stop>) -> Lawful {
        if stop.is_some() {
            return Err(format!("nothing_starts_after_a_stop: {key:?}"));
        }
        match is_armed {
            true => Ok(()),
            false => Err(format!("nothing_starts_before_it_is_armed: {key:?}")),
        }
    }

    pub fn nothing_is_undone_before_its_start(&self, key: AttemptKey) -> Lawful {
        let truth = self.experiments.truths.get(&key);
        match truth.is_some_and(|truth| truth.started_at.is_some()) {
            true => Ok(()),
            false => Err(format!("nothing_is_undone_before_its_start: {key:?}")),
        }
    }

    /// Whether its server can know how it is.
    fn is_certain(&self, key: AttemptKey, truth: &Truth) -> bool {
        key.epoch == self.server.epoch && !truth.is_untrusted && !truth.is_given_away
    }

    /// A command with a lock was started.
    pub fn one_has_the_lock(&self, key: AttemptKey) -> Lawful {
        let Some(own) = self
            .experiments
            .truths
            .get(&key)
            .filter(|own| own.lock.is_some())
        else {
            return Ok(());
        };
        if !self.is_certain(key, own) {
            return Ok(());
        }
        for other in &self.experiments.present {
            let truth = &self.experiments.truths[other];
            let is_same = truth.lock == own.lock && truth.spot == own.spot && *other != key;
            // Whether it may be forgotten is for `a_debt_is_not_forgotten`.
            let is_known = self.word(*other) != Word::Unknown;
            if is_same && is_known && self.is_certain(*other, truth) && !truth.is_forgiven {
                return Err(format!(
                    "one_has_the_lock: {key:?} and {other:?}, {:?}",
                    own.spot
                ));
            }
        }
        Ok(())
    }

    /// An attempt is put into an answer.
    pub fn hand_out_with_undo(
        &mut self,
        who: usize,
        key: AttemptKey,
        job: &Assignment<Arc<Detail>>,
    ) -> Lawful {
        let Some(plan) = Plan::of(&job.detail) else {
            return Ok(());
        };
        if let Some(halt) = self.server.core.halt() {
            return Err(format!(
                "nothing_is_handed_out_in_a_halt: {key:?}, {halt:?}"
            ));
        }
        let secret = job.key.as_deref().unwrap_or_default();
        if secret.len() != 32 {
            return Err(format!("each_attempt_has_a_key: {key:?} {secret:?}"));
        }
        for (other, truth) in &self.experiments.truths {
            if *other != key && truth.secret == secret {
                return Err(format!(
                    "each_attempt_has_a_key_of_its_own: {key:?} and {other:?}"
                ));
            }
        }
        self.may_have_an_effect(who, key, &job.id, (plan, secret, &job.detail));
        Ok(())
    }

    /// Undos are put into an answer to a machine, beside so many attempts to start.
    pub fn hand_out_undos(
        &mut self,
        who: usize,
        orders: &[UndoOrder<Arc<Detail>>],
        starts: usize,
    ) -> Lawful {
        for order in orders {
            let id = sidebike::wire::agent::AttemptId {
                execution: order.execution.clone(),
                attempt: order.attempt,
            };
            let key = self.experiments.ids.get(&id).copied();
            let Some(key) = key else {
                return Err(format!("only_what_was_handed_out_is_undone: {id:?}"));
            };
            let (own, spot) = {
                let truth = &self.experiments.truths[&key];
                if truth.secret != order.key {
                    return Err(format!("an_undo_has_the_key_of_its_attempt: {key:?}"));
                }
                (truth.who, truth.spot.clone())
            };
            let agent = &self.agents[who];
            if (&agent.label, &agent.host) != (&spot.0, &spot.1) && !agent.hostile {
                let (label, host) = (&agent.label, &agent.host);
                return Err(format!(
                    "a_debt_stays_where_it_is: {key:?} {spot:?}, {who} {label} {host}"
                ));
            }
            self.note(|| format!("agent {who} is handed the undo of {key:?}"));
            let is_given_away = own != who && self.agents[own].alive;
            if is_given_away {
                self.count("debt handed out while its own agent lives");
            } else if own != who {
                self.count("debt handed to the next agent");
            }
            if let Some(truth) = self.experiments.truths.get_mut(&key) {
                truth.is_given_away |= is_given_away;
            }
        }
        match starts {
            0 => Ok(()),
            _ => self.debts_come_first(who),
        }
    }

    /// A machine that is handed work has been handed all debts of its place.
    fn debts_come_first(&self, who: usize) -> Lawful {
        let agent = &self.agents[who];
        if !agent.is_plain() || !agent.can(Feature::Undo) {
            return Ok(());
        }
        let spot: Spot = (agent.label.clone(), agent.host.clone());
        let there = self
            .experiments
            .truths
            .iter()
            .filter(|(_, truth)| truth.spot == spot);
        for (key, _) in there {
            let Word::Latest(Some(UndoState::Owed), Some(target)) = self.word(*key) else {
                continue;
            };
            if self.is_next_of(&agent.instance, &target) {
                return Err(format!(
                    "debts_come_first: {key:?} at {spot:?}, agent {who}, {}",
                    self.fleet.describe(&agent.instance, &target)
                ));
            }
        }
        Ok(())
    }

    /// Whether a machine has certainly taken the place of another one.
    fn is_next_of(&self, instance: &str, target: &str) -> bool {
        let mut states = self.server.core.machine_states();
        let is_gone =
            !states.any(|(known, state)| known == target && state == MachineState::Online);
        is_gone && self.fleet.came_after(instance, target)
    }

    /// A task is announced to have ended.
    pub fn an_end_waits_for_its_undos(&self, key: TaskKey) -> Lawful {
        let Ok(task) = self.server.core.show(key) else {
            return Ok(());
        };
        for view in task.execution_views() {
            let Some(undo) = view.undo else { continue };
            // It may have become a debt, and have been handed to another machine in the same step.
            let now = (undo.state, undo.handed_to.map(str::to_owned));
            let is_as_before = self.experiments.unsettled.get(&(key, view.n)) == Some(&now);
            if undo.state.is_none_or(|state| !state.is_settled()) && is_as_before {
                return Err(format!("an_end_waits_for_its_undos: {key:?} {view:?}"));
            }
        }
        Ok(())
    }

    /// Remembers the undos of tasks that have not ended.
    fn remember_unsettled(&mut self) {
        self.experiments.unsettled.clear();
        for (key, task) in self.server.core.tasks_by_key() {
            if task.spec.detail.undo.is_none() || self.server.core.is_finished(key) {
                continue;
            }
            for view in task.execution_views() {
                if let Some(undo) = view.undo
                    && undo.state.is_none_or(|state| !state.is_settled())
                {
                    let state = (undo.state, undo.handed_to.map(str::to_owned));
                    self.experiments.unsettled.insert((key, view.n), state);
                }
            }
        }
    }

    /// After every step.
    pub fn look_at_undos(&mut self) -> Lawful {
        if self.experiments.share == 0 {
            return Ok(());
        }
        self.remember_unsettled();
        let is_shifted = self.time().0 != self.now;
        for key in self.experiments.present.clone() {
            self.no_command_outlives_its_time(key)?;
            let word = self.word(key);
            let Some(truth) = self.experiments.truths.get_mut(&key) else {
                continue;
            };
            let is_forgiven = matches!(word, Word::Latest(Some(UndoState::Forgiven), _));
            if word != Word::Unknown {
                truth.is_forgiven = is_forgiven;
            }
            if key.epoch != self.server.epoch || truth.is_untrusted || truth.is_given_away {
                continue;
            }
            match word {
                Word::Latest(Some(UndoState::Done | UndoState::NotNeeded), _) => {
                    return Err(format!(
                        "nothing_is_said_to_be_undone_that_is_not: {key:?} {word:?}"
                    ));
                }
                Word::Superseded => {
                    return Err(format!("an_attempt_waits_for_the_undo_before: {key:?}"));
                }
                // After a jump of its clock a server believes that the time to keep it is over.
                Word::Unknown if !truth.is_forgiven && !is_shifted => {
                    return Err(format!("a_debt_is_not_forgotten: {key:?}"));
                }
                Word::NotOut => return Err(format!("what_was_handed_out_is_known: {key:?}")),
                _ => {}
            }
        }
        Ok(())
    }

    /// A command whose time is up, or whose agent does not reach the server, is ended by its agent or its guard, if one of
    /// them works.
    fn no_command_outlives_its_time(&self, key: AttemptKey) -> Lawful {
        let truth = &self.experiments.truths[&key];
        let Some(started) = truth
            .started_at
            .filter(|_| truth.lives && !truth.is_untrusted)
        else {
            return Ok(());
        };
        let agent = &self.agents[truth.who];
        let contact = agent.experiments.contact.max(started);
        let plan = &truth.plan;
        let silent = plan.deadman.map(|limit| contact + limit);
        let due = silent.map_or(started + plan.timeout, |at| at.min(started + plan.timeout));
        let guards = self.experiments.guards.iter();
        let mut guards = guards.filter(|it| it.who == truth.who && it.alive && !it.paused);
        let guarded_since = guards.find(|it| it.knows(key)).map(|it| it.works_since);
        let agent_since =
            (agent.alive && !agent.paused && agent.experiments.trials.contains_key(&key))
                .then_some(agent.experiments.works_since);
        let Some(since) = guarded_since.into_iter().chain(agent_since).min() else {
            return Ok(());
        };
        let late = due.max(since) + plan.grace + END_SLACK;
        match self.now > late {
            true => Err(format!(
                "no_command_outlives_its_time: {key:?}, {} ms",
                self.now - due
            )),
            false => Ok(()),
        }
    }

    /// The debts that the server knows of.
    pub fn debts(&self) -> Debts {
        let tasks = self.server.core.tasks_by_key();
        let views = tasks.flat_map(|(key, task)| task.execution_views().map(move |it| (key, it)));
        let dirty = views.filter(|(_, view)| {
            let state = view.undo.and_then(|undo| undo.state);
            state.is_some_and(UndoState::is_dirty)
        });
        dirty
            .map(|(key, view)| (key, view.n, view.attempt))
            .collect()
    }

    /// Whether somebody still has to know of a task that has ended.
    pub fn is_in_debt(&self, key: TaskKey) -> bool {
        let task = self.server.core.show(key);
        task.is_ok_and(|task| {
            let states = task
                .execution_views()
                .filter_map(|it| it.undo?.state)
                .collect::<Vec<_>>();
            states.into_iter().any(|state| is_open(Some(state)))
        })
    }

    /// The sums that a server shows are those of its executions.
    pub fn debts_are_counted(&self) -> Lawful {
        let (debts, counted) = (self.debts().len(), self.server.core.debts());
        if debts != counted {
            return Err(format!("debts_are_counted: {counted}, really {debts}"));
        }
        for (key, task) in self.server.core.tasks_by_key() {
            let answer = task.answer(0);
            let Some(sums) = answer.undos else { continue };
            let views = task.execution_views();
            let states: Vec<UndoState> = views.filter_map(|it| it.undo?.state).collect();
            let is_clean = !states.iter().any(|state| state.is_dirty());
            for state in UndoState::ALL {
                let really = states.iter().filter(|it| **it == state).count();
                if *sums.clone().of(state) as usize != really || answer.clean != Some(is_clean) {
                    return Err(format!(
                        "the_sums_of_undos_are_right: {key:?} {sums:?} {states:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The places of machines at which an undo is open, for whoever counts healthy machines.
    pub fn open_spots(&self) -> BTreeSet<Spot> {
        let mut spots = BTreeSet::new();
        for (_, task) in self.server.core.tasks_by_key() {
            for view in task.execution_views() {
                if let (Some(undo), Some(instance)) = (view.undo, view.instance)
                    && is_open(undo.state)
                {
                    spots.extend(self.fleet.spot(instance));
                }
            }
        }
        spots
    }

    /// Whether anything is still to be undone, or to be said about it.
    fn is_being_undone(&self) -> Option<String> {
        if self.experiments.is_any_undone() {
            return Some("an undo runs".into());
        }
        let busy = |agent: &&crate::agent::Agent| {
            agent.alive && (agent.experiments.is_open() || !agent.experiments.ledger.is_empty())
        };
        if let Some(agent) = self.agents.iter().find(busy) {
            return Some(format!("{:?}", agent.experiments));
        }
        let open = |it: &&crate::guard::Settled| !it.is_over;
        if let Some(settled) = self.experiments.settled.iter().find(open) {
            return Some(format!("{settled:?}"));
        }
        for (key, task) in self.server.core.tasks_by_key() {
            for view in task.execution_views() {
                let Some(undo) = view.undo else { continue };
                let is_unsettled = undo.state.is_none_or(|state| !state.is_settled());
                let waits = undo.state == Some(UndoState::Owed)
                    && view
                        .instance
                        .is_some_and(|target| self.next_of(target).is_some());
                if is_unsettled || waits {
                    let next = view.instance.and_then(|target| self.next_of(target));
                    let next = next.map(|who| {
                        let instance = &self.agents[who].instance;
                        (
                            who,
                            self.fleet
                                .describe(instance, view.instance.unwrap_or_default()),
                        )
                    });
                    return Some(format!("{key:?} {view:?} {next:?}"));
                }
            }
        }
        None
    }

    /// The machine that a debt of this one is handed to.
    fn next_of(&self, target: &str) -> Option<usize> {
        let spot = self.fleet.spot(target)?;
        // A full server refuses some.
        let states: HashMap<&str, MachineState> = self.server.core.machine_states().collect();
        self.agents.iter().position(|agent| {
            let is_there = (&agent.label, &agent.host) == (&spot.0, &spot.1);
            let is_known = states.get(&*agent.instance) == Some(&MachineState::Online);
            let is_able = agent.alive && agent.is_plain() && agent.can(Feature::Undo) && is_known;
            let is_own = agent.instance == target;
            is_there && is_able && (is_own || self.is_next_of(&agent.instance, target))
        })
    }

    /// After the faults have stopped: what may have been started is done, failed, owed or forgiven, and what is owed
    /// waits for a machine that is not there.
    pub fn what_was_started_is_settled(&mut self) -> Lawful {
        let bound = self.now.max(self.stopped_until) + SETTLED_WITHIN;
        while let Some(what) = self.is_being_undone() {
            if self.now > bound {
                return Err(format!("what_was_started_is_settled: {what}"));
            }
            self.step()?;
        }
        for key in &self.experiments.present {
            let truth = &self.experiments.truths[key];
            if !truth.is_untrusted && !truth.is_orphan && !truth.has_failed {
                return Err(format!("what_was_started_is_undone: {key:?} {truth:?}"));
            }
        }
        self.debts_are_counted()
    }
}
