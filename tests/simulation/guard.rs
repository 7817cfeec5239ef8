//! A model of the guard: what the agent tells it, when it acts, what it does then, and how it tells the server. Its
//! deaths and pauses, and those of whole containers.

use crate::experiment::{AgentRule, Doer, Happening, Plan, Spot, Stop, UndoStep};
use crate::laws::RealEnd;
use crate::messages;
use crate::world::{AttemptKey, Event, Lawful, Ms, Request, World};
use sidebike::wire::agent::{Done, Ended, Taken};
use sidebike::wire::task::{Detail, ExecutionState};
use sidebike::wire::undo::{UndoReason, UndoReport};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// How long after its time-out and the time to KILL an agent may be busy with the end of a command.
const DEADLINE_SLACK: Ms = 10_000;
/// The same after its dead man's switch.
const CONTACT_SLACK: Ms = 5_000;
/// How long an agent that undoes may be silent.
const UNDOING_SILENCE: Ms = 20_000;
/// How long another guard may take to acknowledge everything that is armed.
const REARM_TIMEOUT: Ms = 2_000;
/// So many guards are started within so long.
const MAX_STARTS: usize = 5;
const START_WINDOW: Ms = 60_000;
/// How long it is tried to tell the server.
const REPORT_PATIENCE: Ms = 600_000;

/// What an agent tells its guard.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    Arm(AttemptKey, Plan, Ms),
    Started(AttemptKey, Ms),
    Undoing(AttemptKey, Ms),
    Ended(AttemptKey, UndoReason),
    Disarm(AttemptKey),
}

/// What a guard tells its agent.
#[derive(Debug, Clone)]
pub enum Answer {
    Armed(AttemptKey),
    TakenOver(AttemptKey, bool),
    Undone(AttemptKey, UndoReport),
    /// Its end of the pipe is closed.
    Gone,
    /// The time is up in which it had to acknowledge what is armed.
    RearmTimeout,
}

/// What an agent knows of an armed attempt.
#[derive(Debug)]
pub struct Armed {
    pub at: Ms,
    plan: Plan,
    pub started_at: Option<Ms>,
    pub undoing: bool,
    pub reason: Option<UndoReason>,
    /// The guard that has acknowledged it.
    acknowledged: Option<usize>,
    pub taken_over: Option<bool>,
    pub report: Option<UndoReport>,
}

/// An attempt that a guard watches.
#[derive(Debug, Clone)]
struct Watched {
    plan: Plan,
    instance: String,
    armed_at: Ms,
    started_at: Option<Ms>,
    undoing_at: Option<Ms>,
    reason: Option<UndoReason>,
}

#[derive(Debug, Clone, Copy)]
enum Cause {
    AgentGone,
    Deadline,
    NoContact,
    Stalled,
}

impl Cause {
    fn reason(self) -> UndoReason {
        match self {
            Cause::AgentGone | Cause::Stalled => UndoReason::AgentLost,
            Cause::Deadline => UndoReason::TimedOut,
            Cause::NoContact => UndoReason::Deadman,
        }
    }
}

#[derive(Debug)]
pub struct GuardProcess {
    /// Its agent.
    pub who: usize,
    pub alive: bool,
    pub paused: bool,
    pub works_since: Ms,
    inbox: VecDeque<Order>,
    armed: BTreeMap<AttemptKey, Watched>,
    settling: BTreeMap<AttemptKey, Watched>,
    next_look: Option<Ms>,
    /// What happened while it was stopped.
    missed: Vec<Event>,
}

impl GuardProcess {
    /// Whether it watches an attempt, or undoes it.
    pub fn knows(&self, key: AttemptKey) -> bool {
        self.armed.contains_key(&key) || self.settling.contains_key(&key)
    }
}

/// What a guard has done and the server is to be told.
#[derive(Debug)]
pub struct Settled {
    pub who: usize,
    done: Done,
    at: Ms,
    pub is_over: bool,
    tries: u32,
}

impl World {
    /// Gives the guard the plan of an undo.
    pub fn arm(&mut self, who: usize, key: AttemptKey, plan: Plan) {
        if self.agents[who].experiments.guard.is_none() {
            self.start_guard(who);
        }
        let armed = Armed {
            at: self.now,
            plan,
            started_at: None,
            undoing: false,
            reason: None,
            acknowledged: None,
            taken_over: None,
            report: None,
        };
        self.agents[who].experiments.armed.insert(key, armed);
        self.tell_guard(who, Order::Arm(key, plan, self.now));
    }

    /// Nothing is left to be undone.
    pub fn disarm(&mut self, who: usize, key: AttemptKey) {
        if self.agents[who].experiments.armed.remove(&key).is_some() {
            self.tell_guard(who, Order::Disarm(key));
        }
    }

    pub fn tell_guard(&mut self, who: usize, order: Order) {
        let agent = &mut self.agents[who].experiments;
        if let Order::Started(key, at) = order
            && let Some(armed) = agent.armed.get_mut(&key)
        {
            armed.started_at = Some(at);
        }
        let Some(guard) = agent.guard else { return };
        self.experiments.guards[guard].inbox.push_back(order);
        let soon = self.rng.between(0, 4);
        self.soon(soon, Happening::GuardReads(guard));
    }

    /// Starts a guard, and tells it what the one before it knew.
    fn start_guard(&mut self, who: usize) {
        let now = self.now;
        let fails = !self.calm && self.rng.chance(50);
        let agent = &mut self.agents[who].experiments;
        agent.guard_starts.retain(|at| now < at + START_WINDOW);
        agent.guard = None;
        if agent.guard_starts.len() >= MAX_STARTS || fails {
            self.count("no other guard could be started");
            return;
        }
        agent.guard_starts.push(now);
        let guard = self.experiments.guards.len();
        agent.guard = Some(guard);
        let mut orders = Vec::new();
        for (key, armed) in &mut agent.armed {
            (armed.taken_over, armed.acknowledged) = (None, None);
            orders.push(Order::Arm(*key, armed.plan, armed.at));
            orders.extend(armed.started_at.map(|at| Order::Started(*key, at)));
            orders.extend(armed.reason.map(|reason| Order::Ended(*key, reason)));
            if armed.undoing {
                orders.push(Order::Undoing(*key, now));
            }
        }
        self.experiments.guards.push(GuardProcess {
            who,
            alive: true,
            paused: false,
            works_since: now,
            inbox: orders.into(),
            armed: BTreeMap::new(),
            settling: BTreeMap::new(),
            next_look: None,
            missed: Vec::new(),
        });
        let soon = self.rng.between(0, 20);
        self.soon(soon, Happening::GuardReads(guard));
    }

    fn answer_agent(&mut self, guard: usize, ms: Ms, answer: Answer) {
        let who = self.experiments.guards[guard].who;
        self.after(
            ms,
            Event::Alarm(who, crate::agent::Alarm::GuardSays(guard, Box::new(answer))),
        );
    }

    /// The agent reads an answer of its guard.
    pub fn guard_says(&mut self, who: usize, guard: usize, answer: Answer) {
        // In the order in which they were written, also when the agent was stopped meanwhile.
        let agent = &mut self.agents[who].experiments;
        let is_its_own = agent.guard == Some(guard);
        match answer {
            Answer::Armed(key) => {
                if let Some(armed) = agent.armed.get_mut(&key).filter(|_| is_its_own) {
                    armed.acknowledged = Some(guard);
                    self.trial_acknowledged(who, key, true);
                }
            }
            Answer::TakenOver(key, was_started) => {
                if let Some(armed) = agent.armed.get_mut(&key).filter(|_| is_its_own) {
                    armed.taken_over = Some(was_started);
                    self.trial_stops(who, key, Stop::TakenOver);
                }
            }
            Answer::Undone(key, report) => {
                if let Some(armed) = agent.armed.get_mut(&key).filter(|_| is_its_own) {
                    armed.report = Some(report.clone());
                    self.guard_says_undone(who, key, report);
                }
            }
            Answer::Gone if is_its_own => {
                for armed in agent.armed.values_mut() {
                    (armed.acknowledged, armed.taken_over) = (None, None);
                }
                self.count("guard replaced");
                self.start_guard(who);
                self.trials_are_left_alone(who);
                match self.agents[who].experiments.guard {
                    Some(next) => self.answer_agent(next, REARM_TIMEOUT, Answer::RearmTimeout),
                    None => self.end_the_unguarded(who, |_| true),
                }
            }
            Answer::RearmTimeout if is_its_own => {
                let is_missing = |it: &Armed| it.acknowledged != Some(guard) && it.report.is_none();
                self.end_the_unguarded(who, is_missing);
            }
            Answer::Gone | Answer::RearmTimeout => {}
        }
    }

    fn end_the_unguarded(&mut self, who: usize, is_meant: impl Fn(&Armed) -> bool) {
        let armed = self.agents[who].experiments.armed.iter();
        let armed = armed.filter(|(_, armed)| is_meant(armed));
        for key in armed.map(|(key, _)| *key).collect::<Vec<_>>() {
            if self.trial_stops(who, key, Stop::Unguarded) {
                self.count("ended because no guard has its undo");
            }
        }
    }

    /// Whether a guard can act: not if it is dead; if it is stopped it acts later.
    pub fn guard_is_away(&mut self, guard: usize, event: impl FnOnce() -> Event) -> bool {
        let process = &mut self.experiments.guards[guard];
        if process.alive && process.paused {
            process.missed.push(event());
        }
        !process.alive || process.paused
    }

    pub fn guard_reads(&mut self, guard: usize) {
        if self.guard_is_away(guard, || Event::Happening(Happening::GuardReads(guard))) {
            return;
        }
        let process = &mut self.experiments.guards[guard];
        let who = process.who;
        let instance = self.agents[who].instance.clone();
        for order in std::mem::take(&mut process.inbox) {
            let key = match order {
                Order::Arm(key, ..)
                | Order::Started(key, _)
                | Order::Undoing(key, _)
                | Order::Ended(key, _)
                | Order::Disarm(key) => key,
            };
            let process = &mut self.experiments.guards[guard];
            let watched = process.armed.get_mut(&key);
            match (order, watched) {
                (Order::Arm(_, plan, at), _) => {
                    let watched = Watched {
                        plan,
                        instance: instance.clone(),
                        armed_at: at,
                        started_at: None,
                        undoing_at: (!plan.has_command).then_some(at),
                        reason: None,
                    };
                    process.armed.insert(key, watched);
                    let soon = self.rng.between(0, 3);
                    self.answer_agent(guard, soon, Answer::Armed(key));
                }
                (Order::Started(_, at), Some(watched)) => watched.started_at = Some(at),
                (Order::Undoing(_, at), Some(watched)) => {
                    watched.undoing_at = watched.undoing_at.max(Some(at));
                }
                (Order::Ended(_, reason), Some(watched)) => {
                    watched.reason.get_or_insert(reason);
                }
                (Order::Disarm(_), _) => drop(process.armed.remove(&key)),
                _ => {}
            }
        }
        if self.agents[who].alive {
            return self.guard_looks_again(guard);
        }
        let process = &mut self.experiments.guards[guard];
        let armed = std::mem::take(&mut process.armed);
        if !self.experiments.keeps(AgentRule::GuardActs) {
            return;
        }
        for (key, watched) in armed {
            self.count("guard acts: agent gone");
            self.settle(guard, key, watched, Cause::AgentGone);
        }
    }

    /// When the guard has to act on an attempt, and why.
    fn due(&self, who: usize, watched: &Watched) -> (Ms, Cause) {
        let agent = &self.agents[who].experiments;
        let plan = &watched.plan;
        if let Some(at) = watched.undoing_at {
            let last_word = match self.agents[who].paused {
                true => agent.worked_until,
                false => self.now,
            };
            return (at.max(last_word) + UNDOING_SILENCE, Cause::Stalled);
        }
        let started = watched.started_at.unwrap_or(watched.armed_at);
        let deadline = started + plan.timeout + plan.grace + DEADLINE_SLACK;
        let keeps = self.experiments.keeps(AgentRule::SilenceEnds);
        let contact = agent.contact.max(watched.armed_at);
        let silent = plan.deadman.filter(|_| keeps);
        match silent.map(|limit| contact + limit + plan.grace + CONTACT_SLACK) {
            Some(at) if at < deadline => (at, Cause::NoContact),
            _ => (deadline, Cause::Deadline),
        }
    }

    pub fn guard_looks(&mut self, guard: usize) {
        if self.guard_is_away(guard, || Event::Happening(Happening::GuardLooks(guard))) {
            return;
        }
        self.experiments.guards[guard].next_look = None;
        if self.experiments.guards[guard].armed.is_empty() {
            return;
        }
        // All that was said counts before the clock does.
        self.guard_reads(guard);
    }

    fn guard_looks_again(&mut self, guard: usize) {
        let (now, process) = (self.now, &self.experiments.guards[guard]);
        let who = process.who;
        let armed = process.armed.iter();
        let due: Vec<_> = armed.map(|(key, it)| (*key, self.due(who, it))).collect();
        for (key, (at, cause)) in &due {
            if *at > now {
                continue;
            }
            let Some(watched) = self.experiments.guards[guard].armed.remove(key) else {
                continue;
            };
            self.count(match cause {
                Cause::AgentGone => "guard acts: agent gone",
                Cause::Deadline => "guard acts: deadline",
                Cause::NoContact => "guard acts: no contact",
                Cause::Stalled => "guard acts: agent stalled",
            });
            let was_started = watched.started_at.is_some() || watched.undoing_at.is_some();
            self.answer_agent(guard, 1, Answer::TakenOver(*key, was_started));
            self.settle(guard, *key, watched, *cause);
        }
        let next = due.iter().map(|(_, (at, _))| *at).filter(|at| *at > now);
        let process = &mut self.experiments.guards[guard];
        if let Some(at) = next.min()
            && process.next_look.is_none_or(|known| known > at)
        {
            process.next_look = Some(at);
            self.soon(at - now, Happening::GuardLooks(guard));
        }
    }

    fn settle(&mut self, guard: usize, key: AttemptKey, watched: Watched, cause: Cause) {
        let reason = watched.reason.unwrap_or(cause.reason());
        let first = match watched.undoing_at {
            Some(_) => UndoStep::Begin,
            None => UndoStep::EndTree,
        };
        let plan = watched.plan;
        self.note(|| format!("guard {guard} settles {key:?}, {cause:?}"));
        self.experiments.guards[guard].settling.insert(key, watched);
        self.undo_begins(Doer::Guard(guard), key, plan, reason, (0, first));
    }

    /// An undo of a guard is over: the agent is told, then the server.
    pub fn guard_has_undone(&mut self, guard: usize, key: AttemptKey, report: UndoReport) {
        let Some(watched) = self.experiments.guards[guard].settling.remove(&key) else {
            return;
        };
        self.answer_agent(guard, 1, Answer::Undone(key, report.clone()));
        let result = watched.plan.has_command.then(|| Ended {
            msg: "its guard ended it".into(),
            duration_ms: watched.started_at.map(|at| self.now - at),
            ..messages::ended(&report.id, ExecutionState::Failed)
        });
        if result.is_some() {
            self.laws.guard_ended(key);
        }
        let done = Done {
            undos: vec![report],
            ..messages::done(&watched.instance, result.into_iter().collect())
        };
        let number = self.experiments.settled.len();
        self.experiments.settled.push(Settled {
            who: self.experiments.guards[guard].who,
            done,
            at: self.now,
            is_over: false,
            tries: 0,
        });
        self.soon(5, Happening::Reports(number));
    }

    /// The program that a guard has started for that tells the server, again and again.
    pub fn settled_is_reported(&mut self, number: usize) {
        let now = self.now;
        let settled = &mut self.experiments.settled[number];
        let age = now - settled.at;
        if settled.is_over || age > REPORT_PATIENCE {
            settled.is_over = true;
            return;
        }
        let mut done = settled.done.clone();
        for ended in &mut done.results {
            ended.ended_ago_ms += age;
        }
        for undo in &mut done.undos {
            for ago in [&mut undo.began_ago_ms, &mut undo.ended_ago_ms] {
                *ago = ago.map(|ago| ago + age);
            }
        }
        let who = settled.who;
        settled.tries += 1;
        let pause = 200 << settled.tries.min(5);
        self.send(who, Event::ToServer(who, Request::Settled(number, done)));
        self.soon(pause, Happening::Reports(number));
    }

    /// The server has answered that program.
    pub fn settled_is_taken(&mut self, number: usize, taken: &Taken<Arc<Detail>>) {
        let settled = &mut self.experiments.settled[number];
        let mut results = settled.done.results.iter();
        let mut undos = settled.done.undos.iter();
        settled.is_over |= results.all(|it| taken.results.iter().any(|v| v.id == it.id))
            && undos.all(|undo| taken.undos.contains(&undo.id));
    }

    /// A guard is killed.
    fn kill_guard(&mut self, guard: usize) {
        let process = &mut self.experiments.guards[guard];
        if !std::mem::take(&mut process.alive) {
            return;
        }
        let who = process.who;
        self.count("guard killed");
        self.note(|| format!("guard {guard} of agent {who} is killed"));
        self.experiments.drop_runs_of(Doer::Guard(guard));
        let soon = self.rng.between(0, 50);
        self.answer_agent(guard, soon, Answer::Gone);
        self.find_orphans(who);
    }

    pub fn guard_resumes(&mut self, guard: usize) {
        let process = &mut self.experiments.guards[guard];
        if !std::mem::take(&mut process.paused) {
            return;
        }
        process.works_since = self.now;
        let missed = std::mem::take(&mut process.missed);
        for event in missed {
            let late = self.rng.between(0, 5);
            self.after(late, event);
        }
    }

    fn pause_guard(&mut self, guard: usize) {
        let process = &mut self.experiments.guards[guard];
        if !process.alive || std::mem::replace(&mut process.paused, true) {
            return;
        }
        self.count("guard stopped");
        let pause = match self.rng.chance(500) {
            true => self.rng.between(100, 3_000),
            false => self.rng.between(3_000, 90_000),
        };
        self.soon(pause, Happening::GuardResumes(guard));
    }

    /// Agent and guard die together: both were killed, or their container was, and all that ran in it.
    fn kill_both(&mut self, who: usize) {
        let is_container = self.rng.chance(600);
        self.count(match is_container {
            true => "container killed",
            false => "agent and guard killed",
        });
        self.kill(who);
        for guard in 0..self.experiments.guards.len() {
            if self.experiments.guards[guard].who == who {
                self.kill_guard(guard);
            }
        }
        for settled in self.experiments.settled.iter_mut() {
            settled.is_over |= settled.who == who;
        }
        if is_container {
            let truths = self.experiments.truths.values_mut();
            truths
                .filter(|truth| truth.who == who)
                .for_each(|truth| truth.lives = false);
        }
    }

    /// A fault of a guard, or of an agent together with it.
    pub fn guard_fault(&mut self) -> Lawful {
        if self.agents.is_empty() {
            return Ok(());
        }
        let last = self.agents.len() as u64 - 1;
        let who = self.rng.between(0, last) as usize;
        // Rather one that has something to lose.
        let busy = self
            .agents
            .iter()
            .position(|it| it.alive && it.experiments.is_open());
        let who = busy.filter(|_| self.rng.chance(700)).unwrap_or(who);
        let guard = self.agents[who].experiments.guard;
        if let Some(guard) = guard {
            if self.rng.chance(self.experiments.guard_dies) {
                self.kill_guard(guard);
            }
            if self.rng.chance(self.experiments.guard_pauses) {
                self.pause_guard(guard);
            }
        }
        // Long enough for its guard to act.
        if self.rng.chance(self.experiments.agent_stops) {
            self.pause(who, true);
        }
        let was_alive = self.agents[who].alive;
        if self.rng.chance(self.experiments.both_die) && was_alive {
            self.kill_both(who);
        } else if self.rng.chance(self.weather.kill) {
            self.kill(who);
        }
        let agent = &self.agents[who];
        if was_alive && !agent.alive && !agent.original && !agent.hostile {
            let spot: Spot = (agent.label.clone(), agent.host.clone());
            if self.rng.chance(700) {
                self.poll_is_dropped(who);
                self.see_to_notices()?;
            }
            if self.rng.chance(700) {
                let soon = match self.rng.chance(500) {
                    true => self.rng.between(10, 2_000),
                    false => self.rng.between(2_000, 60_000),
                };
                self.soon(soon, Happening::Restart(spot));
            }
        }
        Ok(())
    }

    /// The faults are over.
    pub fn guards_calm_down(&mut self) {
        for guard in 0..self.experiments.guards.len() {
            self.guard_resumes(guard);
        }
        for who in 0..self.agents.len() {
            if self.agents[who].alive && self.agents[who].experiments.guard.is_none() {
                self.agents[who].experiments.guard_starts.clear();
            }
        }
    }

    /// The end of a command, as whoever ended it saw it.
    pub fn command_of_trial_ends(&mut self, who: usize, key: AttemptKey, state: ExecutionState) {
        let written = self.agents[who]
            .holds
            .get(&key)
            .map_or([0; 2], |held| held.written());
        self.laws.ended(key, RealEnd { state, written });
    }
}
