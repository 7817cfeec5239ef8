//! Attempts with an undo at a model agent. The order of an attempt is the real one (`agent::undo::machine`), and so are the
//! tries of an undo (`tries`) and what the server is told of it (`ledger`). Modeled are threads, processes and
//! deaths; the guard is in `guard.rs`.
//!
//! What a command did is there from the moment in which it may have been started until an undo has worked. An undo
//! that meets a live process of the command changes nothing: the process does it again.
//!
//! One simplification: nobody is stopped between the last look for an order to stop and fork(2).

use crate::agent::Alarm;
use crate::guard::{Armed, GuardProcess, Order, Settled};
use crate::world::{AttemptKey, Event, Lawful, Ms, World};
use sidebike::agent::undo::deadman;
use sidebike::agent::undo::ledger::{UndoLedger, new_report};
use sidebike::agent::undo::machine::{self, Action, Experiment, Stage};
use sidebike::agent::undo::tries::{Phase, RunEnd, Step as NextStep, Tries};
use sidebike::core::TaskKey;
use sidebike::wire::agent::{AttemptId, UndoOrder};
use sidebike::wire::duration::{TimeSpan, Timeout};
use sidebike::wire::task::{Detail, ExecutionState};
use sidebike::wire::undo::{KILL_GRACE, UndoBy, UndoReason, UndoReport, UndoState};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the guard may take to acknowledge an undo.
const ARM_TIMEOUT: Ms = 2_000;
/// How long after it was armed a command may be started.
const START_TIMEOUT: Ms = ARM_TIMEOUT + 5_000;
/// From TERM to KILL at a shutdown.
const SHUTDOWN_GRACE: Ms = 2_000;
/// How often whoever undoes looks whether another one still does.
const NAME_LOOK: Ms = 1_000;
/// How long beyond two runs it is waited for another one.
const NAME_SLACK: Ms = 10_000;

/// The undos of executions: the state of each, and who was handed it.
pub type Unsettled = BTreeMap<(TaskKey, u32), (Option<UndoState>, Option<String>)>;
/// A label and a host.
pub type Spot = (String, String);

/// A rule of the agent that a test can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentRule {
    /// A command starts after the guard has acknowledged its undo.
    ArmedFirst,
    /// Everything of a command is ended before it is undone.
    EndedFirst,
    /// The guard acts when the agent is gone.
    GuardActs,
    /// A command ends when the server is silent for too long, and its guard acts if the agent does not.
    SilenceEnds,
    /// An order to stop reaches an attempt that is armed and not started yet.
    StopIsTold,
}

impl AgentRule {
    pub const ALL: [AgentRule; 5] = [
        AgentRule::ArmedFirst,
        AgentRule::EndedFirst,
        AgentRule::GuardActs,
        AgentRule::SilenceEnds,
        AgentRule::StopIsTold,
    ];
}

/// What an order says of an undo.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub timeout: Ms,
    pub grace: Ms,
    pub deadman: Option<Ms>,
    try_timeout: Ms,
    patience: Ms,
    has_check: bool,
    /// Not when an old debt is settled.
    pub has_command: bool,
}

impl Plan {
    pub fn of(detail: &Detail) -> Option<Plan> {
        let undo = detail.undo.as_ref()?;
        let Some(Timeout::After(timeout)) = detail.timeout else {
            return None;
        };
        Some(Plan {
            timeout: timeout.as_millis(),
            grace: detail.kill_grace.map_or(5_000, TimeSpan::as_millis),
            deadman: undo.deadman().map(TimeSpan::as_millis),
            try_timeout: undo.timeout().as_millis(),
            patience: undo.patience().as_millis(),
            has_check: undo.check.is_some(),
            has_command: true,
        })
    }

    /// How long one run may take.
    fn longest_try(&self) -> Ms {
        self.try_timeout + KILL_GRACE.as_millis()
    }
}

/// What really is of an attempt with an undo, whatever anybody says of it.
#[derive(Debug)]
pub struct Truth {
    pub id: AttemptId,
    /// The key in the environment of its processes.
    pub secret: String,
    /// The agent that it was handed to.
    pub who: usize,
    pub spot: Spot,
    pub lock: Option<String>,
    pub plan: Plan,
    pub started_at: Option<Ms>,
    /// A process of it lives.
    pub lives: bool,
    leader_ended: bool,
    /// Its command ends well.
    well: bool,
    /// What it did is there.
    pub effect: bool,
    /// So many tries of its undo will not work.
    bad_tries: u32,
    /// Agent and guard are dead, and had not undone it.
    pub is_orphan: bool,
    /// An undo of it was tried for all of its patience.
    pub has_failed: bool,
    /// Another machine was told to undo it while its own agent lived.
    pub is_given_away: bool,
    pub is_forgiven: bool,
    /// Said by somebody who says what he likes, or by one of two with the same name.
    pub is_untrusted: bool,
}

/// Who runs an undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doer {
    Agent(usize),
    Guard(usize),
}

/// An undo that runs.
struct UndoRun {
    /// Which of all; its events have it.
    ticket: u64,
    plan: Plan,
    reason: UndoReason,
    tries: Tries,
    began: Ms,
    /// It keeps others from undoing the attempt.
    has_name: bool,
    /// Until when it waits for others.
    waits_until: Ms,
}

/// What happens to an undo that runs.
#[derive(Debug, Clone, Copy)]
pub enum UndoStep {
    /// An old debt, or one whose command has ended: what is left of it is ended now.
    Begin,
    /// The command is still to be ended.
    EndTree,
    TreeEnded,
    /// It looks whether another one undoes it.
    Name,
    Ran(Phase, bool),
    Waited,
}

/// What happens beside the messages of the network.
#[derive(Debug, Clone)]
pub enum Happening {
    /// The process of a command ends by itself.
    LeaderEnds(AttemptKey),
    Undo(Doer, AttemptKey, u64, UndoStep),
    GuardReads(usize),
    GuardLooks(usize),
    GuardResumes(usize),
    /// The program that a guard has started tells the server.
    Reports(usize),
    /// The container of an agent is started again.
    Restart(Spot),
}

/// The moments of an attempt.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    Prepared,
    ArmTimeout,
    Start,
    Started,
    Silence,
    TimeUp,
    LeaderEnded,
    TreeEnded,
}

/// Why a command is ended by order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Canceled,
    Shutdown,
    Forgotten,
    Unguarded,
    TakenOver,
}

impl Stop {
    fn state(self) -> ExecutionState {
        match self {
            Stop::Canceled | Stop::Shutdown | Stop::Forgotten => ExecutionState::Canceled,
            Stop::Unguarded | Stop::TakenOver => ExecutionState::Failed,
        }
    }

    fn reason(self) -> UndoReason {
        match self {
            Stop::Canceled | Stop::Forgotten => UndoReason::Canceled,
            Stop::Shutdown => UndoReason::Shutdown,
            Stop::Unguarded | Stop::TakenOver => UndoReason::AgentLost,
        }
    }
}

/// An attempt with an undo, as its agent knows it.
#[derive(Debug)]
pub struct Trial {
    machine: Experiment,
    plan: Plan,
    stop: Option<Stop>,
    /// How its command has ended.
    outcome: ExecutionState,
    /// The guard has acknowledged it once.
    was_acknowledged: bool,
    /// The guard undoes it.
    waits_for_guard: bool,
}

/// What an agent knows of its experiments.
#[derive(Debug, Default)]
pub struct AgentExperiments {
    pub trials: BTreeMap<AttemptKey, Trial>,
    /// Undos that the server has ordered.
    pub orders: BTreeSet<AttemptKey>,
    pub ledger: UndoLedger,
    /// Its guard, as far as it knows.
    pub guard: Option<usize>,
    pub guard_starts: Vec<Ms>,
    pub armed: BTreeMap<AttemptKey, Armed>,
    /// When the server was last heard of.
    pub contact: Ms,
    /// Since when it has worked, or until when.
    pub works_since: Ms,
    pub worked_until: Ms,
    /// The shortest dead man's switch when it last polled.
    polled_for: Option<Ms>,
    /// Older polls whose answers still come.
    pub older_polls: Vec<u64>,
}

impl AgentExperiments {
    /// Those of an agent that starts now.
    pub fn new(now: Ms) -> Self {
        AgentExperiments {
            contact: now,
            works_since: now,
            ..AgentExperiments::default()
        }
    }

    /// The shortest dead man's switch of a command that may run.
    pub fn deadman(&self) -> Option<TimeSpan> {
        let running = self.trials.values().filter(|it| it.machine.has_command());
        let shortest = running.filter_map(|it| it.plan.deadman).min();
        shortest.map(TimeSpan::from_millis)
    }

    /// Whether anything is armed, or undone.
    pub fn is_open(&self) -> bool {
        !self.trials.is_empty() || !self.orders.is_empty()
    }

    /// Whether a command may write: it has no undo, or has not ended.
    pub fn may_write(&self, key: AttemptKey) -> bool {
        let trial = self.trials.get(&key);
        trial.is_none_or(|it| matches!(it.machine.stage(), Stage::Running))
    }
}

/// Everything about experiments.
pub struct Experiments {
    /// How many of a thousand tasks have an undo.
    pub share: u64,
    pub truths: BTreeMap<AttemptKey, Truth>,
    /// Those whose effect is there.
    pub present: BTreeSet<AttemptKey>,
    pub ids: HashMap<AttemptId, AttemptKey>,
    runs: BTreeMap<(Doer, AttemptKey), UndoRun>,
    last_ticket: u64,
    pub guards: Vec<GuardProcess>,
    /// The undos of unfinished tasks after the step before: their states, and who was handed them.
    pub unsettled: Unsettled,
    pub settled: Vec<Settled>,
    /// Two who undo one attempt know of each other.
    pub names_work: bool,
    /// Of a thousand runs of an undo, how many hang.
    pub hangs: u64,
    /// The rates of faults, per thousand.
    pub guard_dies: u64,
    pub both_die: u64,
    pub guard_pauses: u64,
    pub agent_stops: u64,
    pub broken: Option<AgentRule>,
    /// An instant of the ledgers' clock.
    origin: Instant,
}

impl Default for Experiments {
    fn default() -> Self {
        Experiments {
            share: 0,
            truths: BTreeMap::new(),
            present: BTreeSet::new(),
            ids: HashMap::new(),
            runs: BTreeMap::new(),
            last_ticket: 0,
            guards: Vec::new(),
            unsettled: BTreeMap::new(),
            settled: Vec::new(),
            names_work: true,
            hangs: 0,
            guard_dies: 0,
            both_die: 0,
            guard_pauses: 0,
            agent_stops: 0,
            broken: None,
            origin: Instant::now(),
        }
    }
}

impl Experiments {
    /// Whether a rule of the agent holds.
    pub fn keeps(&self, rule: AgentRule) -> bool {
        self.broken != Some(rule)
    }

    /// Whether any undo runs.
    pub fn is_any_undone(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Whoever ran undos is dead.
    pub fn drop_runs_of(&mut self, doer: Doer) {
        self.runs.retain(|(by, _), _| *by != doer);
    }

    fn is_named(&self, doer: Doer, key: AttemptKey) -> bool {
        let mut others = self.runs.iter();
        self.names_work && others.any(|((by, of), run)| *of == key && *by != doer && run.has_name)
    }
}

impl World {
    /// Users have tasks with an undo from now on, and guards die, too.
    pub fn have_experiments(&mut self, broken: Option<AgentRule>) {
        let rng = &mut self.rng;
        self.experiments = Experiments {
            share: rng.pick(&[400, 900]),
            names_work: rng.chance(700),
            hangs: rng.pick(&[0, 0, 60]),
            guard_dies: rng.pick(&[0, 100, 300]),
            both_die: rng.pick(&[0, 100, 200]),
            guard_pauses: rng.pick(&[0, 100, 200]),
            agent_stops: rng.pick(&[0, 200, 400]),
            broken,
            ..Experiments::default()
        };
    }

    /// The present time on the clock of the ledgers.
    pub fn instant(&self) -> Instant {
        let since = self.now - World::BEGINNING.0;
        self.experiments.origin + Duration::from_millis(since)
    }

    pub fn happens(&mut self, happening: Happening) -> Lawful {
        match happening {
            Happening::LeaderEnds(key) => self.leader_ends(key),
            Happening::Undo(doer, key, ticket, step) => {
                self.undo_goes_on(doer, key, ticket, step)?
            }
            Happening::GuardReads(guard) => self.guard_reads(guard),
            Happening::GuardLooks(guard) => self.guard_looks(guard),
            Happening::GuardResumes(guard) => self.guard_resumes(guard),
            Happening::Reports(number) => self.settled_is_reported(number),
            Happening::Restart(spot) => {
                if !self.calm {
                    self.count("agent started where another one was");
                    let who = self.add_agent(&spot.0);
                    self.agents[who].host = spot.1;
                    self.poll(who);
                }
            }
        }
        Ok(())
    }

    pub fn soon(&mut self, ms: Ms, happening: Happening) {
        self.after(ms, Event::Happening(happening));
    }

    fn moment(&mut self, ms: Ms, who: usize, key: AttemptKey, moment: Moment) {
        self.after(ms, Event::Alarm(who, Alarm::Trial(key, moment)));
    }

    fn trial(&mut self, who: usize, key: AttemptKey) -> Option<&mut Trial> {
        self.agents[who].experiments.trials.get_mut(&key)
    }

    fn truth(&mut self, key: AttemptKey) -> Option<&mut Truth> {
        self.experiments.truths.get_mut(&key)
    }

    /// The server has put an attempt with an undo into an answer.
    pub fn may_have_an_effect(
        &mut self,
        who: usize,
        key: AttemptKey,
        id: &AttemptId,
        job: (Plan, &str, &Detail),
    ) {
        let (plan, secret, detail) = job;
        let agent = &self.agents[who];
        let spot = (agent.label.clone(), agent.host.clone());
        let is_untrusted = !agent.is_plain();
        let bad_tries = match self.rng.between(0, 9) {
            0..7 => 0,
            7..9 => self.rng.between(1, 4) as u32,
            _ => u32::MAX,
        };
        let truth = Truth {
            id: id.clone(),
            secret: secret.to_owned(),
            who,
            spot,
            lock: detail.undo.as_ref().and_then(|undo| undo.lock.clone()),
            plan,
            started_at: None,
            lives: false,
            leader_ended: false,
            well: self.rng.chance(650),
            effect: false,
            bad_tries,
            is_orphan: false,
            has_failed: false,
            is_given_away: false,
            is_forgiven: false,
            is_untrusted,
        };
        self.experiments.ids.insert(id.clone(), key);
        // A server that crashed may use the number of a task again that it had not saved, and what did not arrive
        // may be handed to another machine.
        let known = self.experiments.truths.get(&key);
        let is_taken_back = |known: &Truth| {
            known.started_at.is_none()
                && !self.agents[known.who].experiments.trials.contains_key(&key)
        };
        if known.is_none_or(|known| known.secret != secret || is_taken_back(known)) {
            self.experiments.truths.insert(key, truth);
        }
    }

    /// An attempt was accepted.
    pub fn trial_begins(&mut self, who: usize, key: AttemptKey, plan: Plan) {
        self.count("experiment accepted");
        let trial = Trial {
            machine: Experiment::new(),
            plan,
            stop: None,
            outcome: ExecutionState::Failed,
            was_acknowledged: false,
            waits_for_guard: false,
        };
        self.agents[who].experiments.trials.insert(key, trial);
        // It may wait for a free job.
        let takes = match self.rng.chance(100) {
            true => self.rng.between(100, 20_000),
            false => self.rng.between(0, 5),
        };
        self.moment(takes, who, key, Moment::Prepared);
    }

    pub fn trial_goes_on(&mut self, who: usize, key: AttemptKey, moment: Moment) -> Lawful {
        if self.trial(who, key).is_none() {
            return Ok(());
        }
        match moment {
            Moment::Prepared => self.trial_prepared(who, key),
            Moment::ArmTimeout => {
                if self
                    .trial(who, key)
                    .is_some_and(|it| it.machine.stage() == Stage::Arming)
                {
                    self.count("guard did not acknowledge in time");
                    self.trial_not_started(who, key, ExecutionState::Failed);
                }
            }
            Moment::Start => self.trial_starts(who, key)?,
            Moment::Started => self.trial_started(who, key),
            Moment::Silence => self.trial_looks_for_silence(who, key),
            Moment::TimeUp => {
                self.trial_ends(who, key, UndoReason::TimedOut, ExecutionState::TimedOut)
            }
            Moment::LeaderEnded => self.trial_leader_ended(who, key),
            Moment::TreeEnded => self.trial_tree_ended(who, key)?,
        }
        Ok(())
    }

    fn trial_prepared(&mut self, who: usize, key: AttemptKey) {
        let is_refused = self.rng.chance(30);
        let (now, contact) = (self.now, self.agents[who].experiments.contact);
        let Some(trial) = self.trial(who, key) else {
            return;
        };
        let silent = trial
            .plan
            .deadman
            .is_some_and(|limit| now >= contact + limit);
        let (plan, stop) = (trial.plan, trial.stop);
        if let Some(stop) = stop {
            return self.trial_not_started(who, key, stop.state());
        }
        if is_refused || silent {
            return self.trial_not_started(who, key, ExecutionState::Failed);
        }
        if trial.machine.on(machine::Event::Prepared) == Some(Action::Arm) {
            self.arm(who, key, plan);
            self.moment(ARM_TIMEOUT, who, key, Moment::ArmTimeout);
            if !self.experiments.keeps(AgentRule::ArmedFirst) {
                self.trial_acknowledged(who, key, false);
            }
        }
    }

    /// Its guard has the plan.
    pub fn trial_acknowledged(&mut self, who: usize, key: AttemptKey, really: bool) {
        let Some(trial) = self.trial(who, key) else {
            return;
        };
        trial.was_acknowledged |= really;
        match trial.machine.on(machine::Event::Acknowledged) {
            Some(Action::ReportArmed) => {
                let Some(truth) = self.truth(key) else { return };
                let report = new_report(truth.id.clone(), UndoState::Armed);
                self.note_undo(who, report);
                let takes = match self.rng.chance(50) {
                    true => self.rng.between(10, 9_000),
                    false => self.rng.between(0, 3),
                };
                self.moment(takes, who, key, Moment::Start);
            }
            Some(Action::Settle(_)) => {
                let stop = self.trial(who, key).and_then(|trial| trial.stop);
                let state = stop.map_or(ExecutionState::Failed, Stop::state);
                self.trial_not_started(who, key, state);
            }
            _ => {}
        }
    }

    fn trial_starts(&mut self, who: usize, key: AttemptKey) -> Lawful {
        let now = self.now;
        let armed = self.agents[who].experiments.armed.get(&key);
        let may_start =
            armed.is_some_and(|it| it.taken_over.is_none() && now <= it.at + START_TIMEOUT);
        let Some(trial) = self.trial(who, key) else {
            return Ok(());
        };
        if trial.machine.stage() != Stage::Armed {
            return Ok(());
        }
        let (was_acknowledged, stop, plan) = (trial.was_acknowledged, trial.stop, trial.plan);
        if !may_start || trial.machine.on(machine::Event::Start) != Some(Action::Start) {
            self.count("not started after it was armed");
            let state = stop.map_or(ExecutionState::Failed, Stop::state);
            self.trial_not_started(who, key, state);
            return Ok(());
        }
        self.a_start_is_armed(key, was_acknowledged, stop)?;
        if self.rng.chance(30) {
            self.trial_not_started(who, key, ExecutionState::Failed);
            return Ok(());
        }
        self.count("experiment started");
        self.note(|| format!("agent {who}: {key:?} may have an effect now"));
        if let Some(truth) = self.truth(key) {
            (truth.started_at, truth.lives, truth.effect) = (Some(now), true, true);
            self.experiments.present.insert(key);
        }
        self.one_has_the_lock(key)?;
        let runs = match self.rng.between(0, 9) {
            0..3 => self.rng.between(1, 1_000),
            3..6 => self.rng.between(1_000, 30_000),
            _ => self.rng.between(10_000, 200_000),
        };
        // Otherwise its time is up before.
        if runs < plan.timeout {
            self.soon(runs, Happening::LeaderEnds(key));
        }
        let takes = self.rng.between(0, 3);
        self.moment(takes, who, key, Moment::Started);
        Ok(())
    }

    /// Its start has returned.
    fn trial_started(&mut self, who: usize, key: AttemptKey) {
        self.tell_guard(who, Order::Started(key, self.now));
        if let Some(held) = self.agents[who].holds.get_mut(&key) {
            held.has_started(self.now);
        }
        let now = self.now;
        let Some(trial) = self.trial(who, key) else {
            return;
        };
        let (plan, stop) = (trial.plan, trial.stop);
        if trial.machine.on(machine::Event::Started) == Some(Action::EndTree) {
            trial.outcome = stop.map_or(ExecutionState::Failed, Stop::state);
            return self.end_tree(who, key);
        }
        self.moment(plan.timeout, who, key, Moment::TimeUp);
        if let Some(limit) = plan.deadman {
            let due = (self.agents[who].experiments.contact + limit).saturating_sub(now);
            self.moment(due, who, key, Moment::Silence);
        }
        if self.truth(key).is_some_and(|truth| truth.leader_ended) {
            self.trial_leader_ended(who, key);
        }
        if self.rng.chance(500) {
            self.after(300, Event::Alarm(who, Alarm::Writes(key)));
        }
    }

    fn leader_ends(&mut self, key: AttemptKey) {
        let leaves_something = self.rng.chance(300);
        let Some(truth) = self.truth(key).filter(|truth| truth.lives) else {
            return;
        };
        truth.leader_ended = true;
        truth.lives = leaves_something;
        let who = truth.who;
        self.moment(0, who, key, Moment::LeaderEnded);
    }

    fn trial_leader_ended(&mut self, who: usize, key: AttemptKey) {
        let is_well = self.truth(key).is_some_and(|truth| truth.well);
        let outcome = match is_well {
            true => ExecutionState::Succeeded,
            false => ExecutionState::Failed,
        };
        self.trial_ends(who, key, UndoReason::Ended, outcome);
    }

    fn trial_looks_for_silence(&mut self, who: usize, key: AttemptKey) {
        let (now, contact) = (self.now, self.agents[who].experiments.contact);
        let keeps = self.experiments.keeps(AgentRule::SilenceEnds);
        let Some(trial) = self.trial(who, key) else {
            return;
        };
        let Some(limit) = trial.plan.deadman.filter(|_| keeps) else {
            return;
        };
        if trial.machine.stage() != Stage::Running {
            return;
        }
        if now < contact + limit {
            return self.moment(contact + limit - now, who, key, Moment::Silence);
        }
        self.count("dead man's switch");
        self.trial_ends(who, key, UndoReason::Deadman, ExecutionState::Failed);
    }

    fn trial_ends(
        &mut self,
        who: usize,
        key: AttemptKey,
        reason: UndoReason,
        outcome: ExecutionState,
    ) {
        let Some(trial) = self.trial(who, key) else {
            return;
        };
        if trial.machine.stage() != Stage::Running {
            return;
        }
        if trial.machine.on(machine::Event::Ended(reason)) == Some(Action::EndTree) {
            trial.outcome = outcome;
            self.end_tree(who, key);
        }
    }

    /// An order to end a command. Whether it changed anything.
    pub fn trial_stops(&mut self, who: usize, key: AttemptKey, stop: Stop) -> bool {
        let is_told = self.experiments.keeps(AgentRule::StopIsTold);
        let Some(trial) = self.trial(who, key) else {
            return false;
        };
        if trial.stop.is_some() || !trial.machine.has_command() {
            return false;
        }
        trial.stop = Some(stop);
        if !is_told && trial.machine.stage() == Stage::Armed {
            return true;
        }
        let action = trial.machine.on(machine::Event::Stop(stop.reason()));
        if action == Some(Action::EndTree) {
            trial.outcome = stop.state();
            self.end_tree(who, key);
        }
        if let Some(held) = self.agents[who].holds.get_mut(&key) {
            held.is_ending();
        }
        true
    }

    /// All of the command is ended: TERM, and KILL after a while.
    fn end_tree(&mut self, who: usize, key: AttemptKey) {
        let lives = self.truth(key).is_some_and(|truth| truth.lives);
        let Some(trial) = self.trial(who, key) else {
            return;
        };
        let grace = match trial.stop {
            Some(Stop::Shutdown) => trial.plan.grace.min(SHUTDOWN_GRACE),
            _ => trial.plan.grace,
        };
        let most = if lives { grace + 50 } else { 10 };
        if let Some(held) = self.agents[who].holds.get_mut(&key) {
            held.is_ending();
        }
        let takes = self.rng.between(1, most);
        self.moment(takes, who, key, Moment::TreeEnded);
    }

    fn trial_tree_ended(&mut self, who: usize, key: AttemptKey) -> Lawful {
        let Some(trial) = self.trial(who, key) else {
            return Ok(());
        };
        let outcome = trial.outcome;
        let Some(Action::Undo(reason)) = trial.machine.on(machine::Event::TreeEnded) else {
            return Ok(());
        };
        let plan = trial.plan;
        self.nothing_is_undone_before_its_start(key)?;
        if self.experiments.keeps(AgentRule::EndedFirst) {
            self.all_of_it_ends(key);
        }
        self.tell_guard(who, Order::Undoing(key, self.now));
        self.tell_guard(who, Order::Ended(key, reason));
        self.command_of_trial_ends(who, key, outcome);
        let armed = self.agents[who].experiments.armed.get_mut(&key);
        let mut report = None;
        let is_taken_over = armed.is_some_and(|armed| {
            (armed.undoing, armed.reason) = (true, Some(reason));
            report = armed.report.clone();
            armed.taken_over == Some(true)
        });
        match (is_taken_over, report) {
            (true, Some(report)) => self.trial_undone(who, key, report),
            (true, None) => {
                self.count("agent waits for its guard");
                if let Some(trial) = self.trial(who, key) {
                    trial.waits_for_guard = true;
                }
            }
            (false, _) => {
                self.undo_begins(Doer::Agent(who), key, plan, reason, (0, UndoStep::Name))
            }
        }
        Ok(())
    }

    /// The guard is gone that an undo was left to.
    pub fn trials_are_left_alone(&mut self, who: usize) {
        let trials = self.agents[who].experiments.trials.iter_mut();
        let waiting = trials.filter(|(_, trial)| trial.waits_for_guard);
        let waiting: Vec<_> = waiting
            .map(|(key, trial)| {
                trial.waits_for_guard = false;
                let reason = trial.machine.reason().unwrap_or(UndoReason::Ended);
                (*key, trial.plan, reason)
            })
            .collect();
        for (key, plan, reason) in waiting {
            self.undo_begins(Doer::Agent(who), key, plan, reason, (0, UndoStep::Name));
        }
    }

    /// The guard has undone an attempt that it took over.
    pub fn guard_says_undone(&mut self, who: usize, key: AttemptKey, report: UndoReport) {
        if self
            .trial(who, key)
            .is_some_and(|trial| trial.waits_for_guard)
        {
            self.trial_undone(who, key, report);
        }
    }

    fn trial_undone(&mut self, who: usize, key: AttemptKey, report: UndoReport) {
        let Some(mut trial) = self.agents[who].experiments.trials.remove(&key) else {
            return;
        };
        trial.machine.on(machine::Event::Undone(report.state));
        self.disarm(who, key);
        let now = self.instant();
        self.agents[who].experiments.ledger.note(report, now);
        self.result_of_trial(who, key, trial.outcome, true);
    }

    /// A command is not started any more, or its start has failed.
    fn trial_not_started(&mut self, who: usize, key: AttemptKey, state: ExecutionState) {
        self.count("experiment not started");
        let Some(mut trial) = self.agents[who].experiments.trials.remove(&key) else {
            return;
        };
        trial.machine.on(machine::Event::NotStarted);
        self.disarm(who, key);
        let now = self.instant();
        if let Some(truth) = self.experiments.truths.get(&key) {
            let report = new_report(truth.id.clone(), UndoState::NotNeeded);
            self.agents[who].experiments.ledger.note(report, now);
        }
        self.command_of_trial_ends(who, key, state);
        self.result_of_trial(who, key, state, false);
    }

    /// Tells the server of the state of an undo, if that is new.
    pub fn note_undo(&mut self, who: usize, report: UndoReport) {
        let now = self.instant();
        if self.agents[who].experiments.ledger.note(report, now) {
            self.report(who);
        }
    }

    /// Everything of an attempt is ended.
    fn all_of_it_ends(&mut self, key: AttemptKey) {
        if let Some(truth) = self.truth(key) {
            truth.lives = false;
        }
    }

    /// Undos that the server orders.
    pub fn obey_undos(&mut self, who: usize, orders: Vec<UndoOrder<Arc<Detail>>>) {
        for order in orders {
            let id = AttemptId {
                execution: order.execution,
                attempt: order.attempt,
            };
            let Some(key) = self.experiments.ids.get(&id).copied() else {
                continue;
            };
            let agent = &mut self.agents[who];
            let is_held =
                agent.experiments.trials.contains_key(&key) || agent.holds.contains_key(&key);
            let ledger = &agent.experiments.ledger;
            if agent.has_to_end() || is_held || ledger.knows(&id) || ledger.is_full() {
                self.count("undo order repeated, or not now");
                continue;
            }
            let Some(plan) = Plan::of(&order.detail) else {
                continue;
            };
            let plan = Plan {
                has_command: false,
                deadman: None,
                ..plan
            };
            self.count("undo ordered");
            self.note(|| format!("agent {who} is told to undo {key:?}, {:?}", order.reason));
            self.agents[who].experiments.orders.insert(key);
            let mut report = new_report(id, UndoState::Running);
            report.reason = Some(order.reason);
            self.note_undo(who, report);
            self.arm(who, key, plan);
            let takes = self.rng.between(1, 30);
            self.undo_begins(
                Doer::Agent(who),
                key,
                plan,
                order.reason,
                (takes, UndoStep::Begin),
            );
        }
    }

    pub fn undo_begins(
        &mut self,
        doer: Doer,
        key: AttemptKey,
        plan: Plan,
        reason: UndoReason,
        (after, first): (Ms, UndoStep),
    ) {
        self.experiments.last_ticket += 1;
        let ticket = self.experiments.last_ticket;
        let patience = Duration::from_millis(plan.patience);
        let run = UndoRun {
            ticket,
            plan,
            reason,
            tries: Tries::new(plan.has_check, patience),
            began: self.now,
            has_name: false,
            waits_until: self.now + 2 * plan.longest_try() + NAME_SLACK,
        };
        self.experiments.runs.insert((doer, key), run);
        self.soon(after, Happening::Undo(doer, key, ticket, first));
    }

    fn undo_goes_on(&mut self, doer: Doer, key: AttemptKey, ticket: u64, step: UndoStep) -> Lawful {
        let event = || Event::Happening(Happening::Undo(doer, key, ticket, step));
        let is_away = match doer {
            Doer::Agent(who) => self.is_away(who, event),
            Doer::Guard(guard) => self.guard_is_away(guard, event),
        };
        let is_named = self.experiments.is_named(doer, key);
        let run = self.experiments.runs.get_mut(&(doer, key));
        let Some(run) = run.filter(|run| run.ticket == ticket && !is_away) else {
            return Ok(());
        };
        let next = |world: &mut World, after: Ms, step: UndoStep| {
            world.soon(after, Happening::Undo(doer, key, ticket, step));
        };
        match step {
            UndoStep::Begin => {
                run.has_name = !is_named;
                if !is_named {
                    self.all_of_it_ends(key);
                }
                next(self, 0, UndoStep::Name);
            }
            UndoStep::EndTree => {
                run.has_name = !is_named;
                let takes = self.rng.between(1, KILL_GRACE.as_millis());
                next(self, takes, UndoStep::TreeEnded);
            }
            UndoStep::TreeEnded => {
                self.all_of_it_ends(key);
                next(self, 0, UndoStep::Name);
            }
            UndoStep::Name => {
                if !run.has_name && is_named && self.now < run.waits_until {
                    self.count("undo waits for another one");
                    next(self, NAME_LOOK, UndoStep::Name);
                    return Ok(());
                }
                run.has_name |= !is_named;
                run.began = self.now;
                let first = run.tries.begin();
                self.note_running(doer, key);
                self.next_step(doer, key, ticket, first);
            }
            UndoStep::Waited => {
                let then = run.tries.waited();
                self.next_step(doer, key, ticket, then);
            }
            UndoStep::Ran(phase, hung) => {
                let end = self.run_ends(key, phase, hung);
                let now = self.now;
                if let Some(run) = self.experiments.runs.get_mut(&(doer, key)) {
                    let then = run.tries.ended(end, Duration::from_millis(now - run.began));
                    self.next_step(doer, key, ticket, then);
                }
            }
        }
        Ok(())
    }

    /// An undo or a check has ended: what it did.
    fn run_ends(&mut self, key: AttemptKey, phase: Phase, hung: bool) -> RunEnd {
        let Some(truth) = self.experiments.truths.get_mut(&key) else {
            return RunEnd {
                exit_code: None,
                msg: "unknown".into(),
            };
        };
        let works = match phase {
            Phase::Undo if truth.bad_tries > 0 => {
                truth.bad_tries = truth
                    .bad_tries
                    .saturating_sub(u32::from(truth.bad_tries < u32::MAX));
                false
            }
            Phase::Undo => !hung,
            Phase::Check => !hung && !truth.effect,
        };
        if phase == Phase::Undo && works && !truth.lives {
            truth.effect = false;
            self.experiments.present.remove(&key);
        }
        RunEnd {
            exit_code: (!hung).then_some(i32::from(!works)),
            msg: if works {
                String::new()
            } else {
                "it did not work".into()
            },
        }
    }

    fn next_step(&mut self, doer: Doer, key: AttemptKey, ticket: u64, step: NextStep) {
        let Some(run) = self.experiments.runs.get(&(doer, key)) else {
            return;
        };
        let longest = run.plan.longest_try();
        let (after, next) = match step {
            NextStep::Run(phase) => {
                let hung = self.rng.chance(self.experiments.hangs);
                let takes = if hung {
                    longest
                } else {
                    self.rng.between(1, 400)
                };
                (takes, UndoStep::Ran(phase, hung))
            }
            NextStep::Pause(pause) => {
                self.count("undo tried again");
                self.note_running(doer, key);
                (pause.as_millis() as Ms, UndoStep::Waited)
            }
            NextStep::Over(state) => return self.undo_is_over(doer, key, state),
        };
        self.soon(after, Happening::Undo(doer, key, ticket, next));
    }

    fn report_of(&self, doer: Doer, key: AttemptKey, state: UndoState) -> Option<UndoReport> {
        let run = self.experiments.runs.get(&(doer, key))?;
        let truth = self.experiments.truths.get(&key)?;
        let mut report = new_report(truth.id.clone(), state);
        report.by = match doer {
            Doer::Agent(_) => UndoBy::Agent,
            Doer::Guard(_) => UndoBy::Guard,
        };
        report.reason = Some(run.reason);
        report.tries = run.tries.tries;
        report.exit_code = run.tries.exit_code();
        report.check_exit_code = run.tries.check_exit_code();
        report.msg = run.tries.msg();
        report.began_ago_ms = Some(self.now - run.began);
        report.ended_ago_ms = state.is_settled().then_some(0);
        Some(report)
    }

    /// A guard tells nobody before the end.
    fn note_running(&mut self, doer: Doer, key: AttemptKey) {
        if let (Doer::Agent(who), Some(report)) =
            (doer, self.report_of(doer, key, UndoState::Running))
        {
            self.note_undo(who, report);
        }
    }

    fn undo_is_over(&mut self, doer: Doer, key: AttemptKey, state: UndoState) {
        let report = self.report_of(doer, key, state);
        self.experiments.runs.remove(&(doer, key));
        let Some(mut report) = report else { return };
        report.output = "x".repeat(self.rng.between(0, 800) as usize);
        self.note(|| format!("{doer:?} has tried to undo {key:?}: {state:?}"));
        if let Some(truth) = self.truth(key) {
            truth.has_failed |= state == UndoState::Failed;
        }
        self.count(match (state, doer) {
            (UndoState::Done, Doer::Agent(_)) => "undone by its agent",
            (UndoState::Done, Doer::Guard(_)) => "undone by its guard",
            _ => "undo failed",
        });
        match doer {
            Doer::Guard(guard) => self.guard_has_undone(guard, key, report),
            Doer::Agent(who) if self.agents[who].experiments.orders.remove(&key) => {
                self.disarm(who, key);
                self.note_undo(who, report);
            }
            Doer::Agent(who) => self.trial_undone(who, key, report),
        }
    }

    /// An agent is dead.
    pub fn agent_is_gone(&mut self, who: usize) {
        self.experiments.drop_runs_of(Doer::Agent(who));
        if let Some(guard) = self.agents[who].experiments.guard {
            let soon = self.rng.between(0, 20);
            self.soon(soon, Happening::GuardReads(guard));
        }
        self.find_orphans(who);
    }

    /// Where agent and guard are dead nobody undoes anything.
    pub fn find_orphans(&mut self, who: usize) {
        let agent = &self.agents[who];
        let guards = &self.experiments.guards;
        let is_guarded = guards.iter().any(|guard| guard.who == who && guard.alive);
        if agent.alive || is_guarded {
            return;
        }
        for truth in self.experiments.truths.values_mut() {
            truth.is_orphan |= truth.who == who && truth.effect;
        }
    }

    /// How long the next poll may be held, and how long it may be under way beyond that.
    pub fn poll_for_switch(&mut self, who: usize, wait: Ms, slack: Ms) -> (Ms, Ms) {
        let agent = &mut self.agents[who];
        let limit = agent.experiments.deadman();
        agent.experiments.polled_for = limit.map(TimeSpan::as_millis);
        let Some(limit) = limit else {
            return (wait, slack);
        };
        let wait = match agent.is_down() {
            true => 0,
            false => wait.min(deadman::longest_hold(limit).as_millis()),
        };
        (
            wait,
            slack.min(deadman::longest_slack(limit).as_millis() as Ms),
        )
    }

    /// A command with a switch was accepted while a poll was held that may be held for longer.
    pub fn shorten_poll(&mut self, who: usize) {
        let agent = &mut self.agents[who];
        let Some(limit) = agent.experiments.deadman().map(TimeSpan::as_millis) else {
            return;
        };
        let known = agent.experiments.polled_for;
        if agent.has_to_end() || known.is_some_and(|known| known <= limit) {
            return;
        }
        if let Some(pending) = agent.pending_poll() {
            agent.experiments.older_polls.push(pending);
            self.count("a poll took the place of a longer one");
            self.poll(who);
        }
    }
}
