//! Tasks that follow others machine by machine, on the core alone: random tasks, chains of them, ends, retries, rollouts,
//! pauses, stops, cancels and deletes, machines that are silent, leave or come back as new ones, with restarts at any point,
//! also between the end of an execution and what follows from it.
//!
//! A model that knows nothing of the core says what has to become of each execution. Its laws:
//!
//! - no execution begins before its counterpart has ended as it asks (`a_counterpart_is_awaited`);
//! - what cannot begin any more is skipped, and only that; also where there is no counterpart (`the_table_of_ends`);
//! - what can begin is not held (`nothing_is_held_for_nothing`), and everything ends (`nothing_is_held_for_ever`), but not
//!   before its time, however often the server was away (`nothing_is_given_up_too_early`);
//! - a task without machines of its own has exactly those of its parent (`the_machines_are_those_of_the_parent`);
//! - a parent is there as long as something waits (`a_parent_is_kept`).

use crate::crash::read_back;
use crate::messages;
use crate::rng::Rng;
use crate::server::{LIMITS, TEXTS};
use serde_json::json;
use sidebike::core::{
    Core, Limits, MachineKey, Notice, Refusal, Rule, Saved, Selection, Spec, TaskKey, Time,
};
use sidebike::wire::agent::{Assignment, AttemptId, Goodbye};
use sidebike::wire::rollout::RolloutPhase;
use sidebike::wire::task::{Detail, ExecutionState, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The number of seeds of a plain `cargo test`.
const SEEDS: u64 = 30;
const BROKEN_SEEDS: u64 = 200;
const STEPS: u64 = 400;
const MACHINES: usize = 4;
/// The longest `delay` of a task.
const DELAY_MS: u64 = 10_000;
const START: Time = Time(1_700_000_000_000);
/// How long everything may take to end once nothing new comes: the longest of all waits, one after the other.
const CALM_MS: u64 = 8_000_000;

/// What was posted of a task that follows another one.
#[derive(Debug, Clone)]
struct Model {
    parent: TaskKey,
    on: &'static str,
    has_own_machines: bool,
    /// It waits for nothing else.
    is_alone: bool,
    /// It was canceled or stopped, or may have been: nobody expects anything of it.
    is_withdrawn: bool,
    blocked_until: Time,
}

/// Whether what follows goes after this end.
fn goes(on: &str, end: ExecutionState) -> bool {
    use ExecutionState::*;
    match end {
        Canceled | Skipped => on == "ended",
        Succeeded => on != "failed",
        _ => on != "succeeded",
    }
}

/// An agent as far as it matters here.
struct Agent {
    instance: String,
    is_silent: bool,
    running: Vec<AttemptId>,
}

struct Scene {
    core: Core,
    saved: Saved,
    now: Time,
    rng: Rng,
    fresh: u64,
    models: BTreeMap<TaskKey, Model>,
    /// How executions ended, by task and instance.
    ends: BTreeMap<(TaskKey, String), ExecutionState>,
    agents: Vec<Agent>,
    instances: u64,
    names: BTreeMap<MachineKey, String>,
    seq: u64,
    broken: Option<Rule>,
    seen: BTreeSet<&'static str>,
}

type Lawful = Result<(), String>;

const FEW_TASKS: Limits = Limits {
    tasks: 15,
    ..LIMITS
};

impl Scene {
    fn new(seed: u64, broken: Option<Rule>) -> Scene {
        let mut core = Core::new(FEW_TASKS, START);
        core.record_changes();
        let mut scene = Scene {
            core,
            saved: Saved::default(),
            now: START,
            rng: Rng::new(seed),
            fresh: 0,
            models: BTreeMap::new(),
            ends: BTreeMap::new(),
            agents: Vec::new(),
            instances: 0,
            names: BTreeMap::new(),
            seq: 0,
            broken,
            seen: BTreeSet::new(),
        };
        for _ in 0..MACHINES {
            let agent = scene.new_agent();
            scene.agents.push(agent);
        }
        scene.break_rule();
        scene
    }

    fn break_rule(&mut self) {
        if let Some(rule) = self.broken {
            self.core.break_rule_for_tests(rule);
        }
    }

    fn new_agent(&mut self) -> Agent {
        self.instances += 1;
        Agent {
            instance: format!("{:08x}", self.instances),
            is_silent: false,
            running: Vec::new(),
        }
    }

    /// One operation is complete: saves what it changed. Sometimes the server dies, also before what follows was done,
    /// which then is not saved.
    fn commit(&mut self) -> Lawful {
        let dies = self.rng.chance(40);
        let follows = !dies || self.rng.chance(500);
        if follows {
            self.follow_up()?;
        }
        self.save();
        if dies {
            self.restart()?;
            self.seen.insert(match follows {
                true => "restart",
                false => "restart before what follows",
            });
        }
        Ok(())
    }

    fn follow_up(&mut self) -> Lawful {
        loop {
            self.core.settle_dependents(self.now);
            let notices = self.core.take_notices();
            if notices.is_empty() {
                return Ok(());
            }
            for notice in notices {
                if let Notice::Wake(key) = notice {
                    let orders = self.core.collect(self.now, key);
                    self.start(key, orders.start)?;
                }
            }
        }
    }

    fn save(&mut self) {
        let batch = self.core.take_batch();
        let waits = |task: &TaskKey| self.models.contains_key(task);
        if { batch.tasks.iter() }.any(|(key, task)| task.is_some() && waits(key)) {
            let expected = if batch.away_ms.is_some() { 7 } else { 6 };
            assert_eq!(batch.reader_version(), expected);
        }
        self.saved.apply(self.now, &batch);
        self.saved.last_alive = self.now;
    }

    fn restart(&mut self) -> Lawful {
        let saved = Saved {
            tasks: read_back(&self.saved.tasks),
            executions: read_back(&self.saved.executions),
            machines: read_back(&self.saved.machines),
            ..self.saved.clone()
        };
        let away = self.rng.pick(&[0, 0, 1_000, 30_000]);
        self.now.0 += away;
        self.core = Core::restored(FEW_TASKS, self.now, saved)?;
        self.break_rule();
        for model in self.models.values_mut() {
            // The time of its absence does not count.
            model.blocked_until.0 += away;
        }
        self.core.check_invariants()?;
        self.poll_all()
    }

    fn poll_all(&mut self) -> Lawful {
        for who in 0..self.agents.len() {
            self.poll(who)?;
        }
        Ok(())
    }

    fn poll(&mut self, who: usize) -> Lawful {
        let agent = &self.agents[who];
        if agent.is_silent {
            return Ok(());
        }
        self.seq += 1;
        let label = format!("m-{who}");
        let poll = messages::poll(&agent.instance, self.seq, &label, &agent.running);
        let polled = self.core.poll(self.now, &poll, None);
        let (key, orders) = polled.map_err(|why| format!("a good poll is refused: {why}"))?;
        self.names.insert(key, poll.instance.clone());
        // The puppet obeys at once.
        for id in &orders.cancel {
            self.end(who, id.clone(), ExecutionState::Canceled);
        }
        let agent = &mut self.agents[who];
        agent.running.retain(|id| !orders.forget.contains(id));
        if orders.is_empty() {
            self.core.hold_poll(key);
        }
        self.start(key, orders.start)
    }

    fn start(&mut self, key: MachineKey, start: Vec<Assignment<Arc<Detail>>>) -> Lawful {
        let instance = self.names[&key].clone();
        for job in start {
            self.a_counterpart_is_awaited(&instance, &job.id.execution)?;
            // What is sent to one that has died is lost.
            let mut agents = self.agents.iter_mut();
            if let Some(agent) = agents.find(|agent| agent.instance == instance) {
                agent.running.push(job.id);
            }
        }
        Ok(())
    }

    /// Nothing is handed out before its counterpart has ended as it asks.
    fn a_counterpart_is_awaited(&mut self, instance: &str, execution: &str) -> Lawful {
        let prefix = execution.rsplit_once('.').map_or("", |(prefix, _)| prefix);
        let task = { self.core.tasks_by_key() }.find(|(_, task)| *task.prefix == *prefix);
        let Some(key) = task.map(|(key, _)| key) else {
            return Err(format!("nobody knows {execution}"));
        };
        let Some(model) = self.models.get(&key).cloned() else {
            return Ok(());
        };
        self.note_ends(model.parent);
        let end = self.ends.get(&(model.parent, instance.to_owned()));
        match end.is_some_and(|end| goes(model.on, *end)) {
            true => self.seen.insert("a follower was handed out"),
            false => {
                return Err(format!(
                    "a_counterpart_is_awaited: {key:?} {model:?} {end:?}"
                ));
            }
        };
        Ok(())
    }

    fn note_ends(&mut self, key: TaskKey) {
        let Ok(task) = self.core.show(key) else {
            return;
        };
        for e in task.execution_views().filter(|e| e.state.is_terminal()) {
            let instance = e.instance.unwrap_or_default().to_owned();
            self.ends.insert((key, instance), e.state);
        }
    }

    fn end(&mut self, who: usize, id: AttemptId, state: ExecutionState) {
        let agent = &mut self.agents[who];
        agent.running.retain(|it| *it != id);
        let ended = messages::ended(&id, state);
        self.core.done(self.now, &agent.instance, &[], &[ended]);
    }

    fn known(&self) -> Vec<TaskKey> {
        self.core.tasks_by_key().map(|(key, _)| key).collect()
    }

    fn submit(&mut self) -> Lawful {
        let known = self.known();
        let rng = &mut self.rng;
        let mut task = json!({
            "ttl": rng.pick(&[0.5, 20.0, 300.0]),
            "resultTtl": rng.pick(&[0.001, 1.0, 3_600.0]),
            "failureTtl": rng.pick(&[0.001, 1.0, 3_600.0]),
            "detail": {"command": "x", "timeout": 60},
        });
        if rng.chance(250) {
            task["retry"] = json!({"max": 1, "interval": [0.5], "on": ["failed", "lost"]});
        }
        if rng.chance(150) {
            task["delay"] = rng.between(0, DELAY_MS / 1_000).into();
        }
        let parent = match rng.chance(650) && !known.is_empty() {
            true => Some(rng.pick(&known)),
            false => None,
        };
        let on = rng.pick(&["succeeded", "succeeded", "failed", "ended"]);
        let pattern = rng.pick(&[".*", ".*", "m-[01]", "m-3", "nobody"]);
        let blocked_s = rng.pick(&[2, 60, 600, 600]);
        let (has_own, is_alone) = (rng.chance(400), rng.chance(800));
        match parent {
            None => {
                task["machinePattern"] = pattern.into();
                if rng.chance(150) {
                    task["rollout"] = json!({"steps": [1, "100%"], "concurrency": 1});
                }
            }
            Some(parent) => {
                let id = |key: TaskKey| self.core.show(key).map(|task| task.id.to_string());
                let id = |key: TaskKey| id(key).map_err(|why| format!("forgotten: {why}"));
                let mut edges = vec![json!({"task": id(parent)?, "on": on, "perMachine": true})];
                if !is_alone {
                    edges.push(json!({"task": id(rng.pick(&known))?, "on": "ended"}));
                }
                task["after"] = edges.into();
                task["blockedTtl"] = blocked_s.into();
                if has_own {
                    task["machinePattern"] = pattern.into();
                }
            }
        }
        let spec = Spec::checked(serde_json::from_value(task).unwrap(), &TEXTS, |_| None)?;
        self.fresh += 1;
        let id = format!("task-{:06}", self.fresh);
        match (self.core.submit(self.now, &id, spec), parent) {
            (Ok(key), Some(parent)) => {
                let model = Model {
                    parent,
                    on,
                    has_own_machines: has_own,
                    is_alone,
                    is_withdrawn: false,
                    blocked_until: Time(self.now.0 + DELAY_MS + blocked_s * 1_000),
                };
                if self.models.contains_key(&parent) {
                    self.seen.insert("a chain");
                }
                self.models.insert(key, model);
                Ok(())
            }
            (Ok(_) | Err(Refusal::Conflict(_) | Refusal::Full(_)), _) => Ok(()),
            (Err(why), _) => Err(format!("a good task is refused: {why}")),
        }
    }

    fn some_task(&mut self) -> Option<TaskKey> {
        let known = self.known();
        (!known.is_empty()).then(|| self.rng.pick(&known))
    }

    fn step(&mut self) -> Lawful {
        match self.rng.between(0, 99) {
            0..22 => self.submit()?,
            22..28 => self.cancel()?,
            28..32 => self.delete()?,
            32..36 => {
                if let Some(key) = self.some_task() {
                    let _ = match self.rng.chance(400) {
                        true => self.core.pause(self.now, key),
                        false => self.core.resume(self.now, key),
                    };
                }
            }
            36..38 => {
                if let Some(key) = self.some_task() {
                    self.withdraw(key, false);
                    let running = self.rng.chance(500);
                    let stopped = self.core.stop(self.now, key, Some(running));
                    stopped.map_err(|why| format!("a stop is refused: {why}"))?;
                }
            }
            38..40 => {
                if let Some(key) = self.some_task() {
                    self.fresh += 1;
                    let id = format!("again-{:06}", self.fresh);
                    let all = self.rng.chance(500);
                    // It waits for nothing, so there is no model of it.
                    let _ = self.core.rerun(self.now, &id, key, all);
                }
            }
            40..44 => self.change_agent(),
            44..62 => {
                let who = self.rng.between(0, MACHINES as u64 - 1) as usize;
                self.poll(who)?;
            }
            62..86 => {
                let all = { self.agents.iter().enumerate() }
                    .filter(|(_, agent)| !agent.is_silent)
                    .flat_map(|(who, agent)| agent.running.iter().map(move |id| (who, id)));
                let all: Vec<(usize, AttemptId)> = all.map(|(who, id)| (who, id.clone())).collect();
                if !all.is_empty() {
                    let n = self.rng.between(0, all.len() as u64 - 1) as usize;
                    let (who, id) = all[n].clone();
                    let states = [
                        ExecutionState::Succeeded,
                        ExecutionState::Succeeded,
                        ExecutionState::Failed,
                        ExecutionState::TimedOut,
                    ];
                    let state = self.rng.pick(&states);
                    self.end(who, id, state);
                    self.follow_up()?;
                    self.poll(who)?;
                }
            }
            _ => {
                self.now.0 += self.rng.pick(&[1, 300, 2_000, 8_000]);
                self.core.tick(self.now);
            }
        }
        self.commit()
    }

    fn cancel(&mut self) -> Lawful {
        let Some(key) = self.some_task() else {
            return Ok(());
        };
        if self.rng.chance(300) {
            let who = self.rng.between(0, MACHINES as u64 - 1);
            self.withdraw(key, false);
            // Refused where it has nothing.
            let machine = Selection::Machine(format!("m-{who}"));
            let _ = self.core.cancel(self.now, key, &machine);
            return Ok(());
        }
        let dependents = self.rng.chance(400);
        self.withdraw(key, dependents);
        if dependents {
            self.core.cancel_dependents(key);
        }
        let canceled = self.core.cancel(self.now, key, &Selection::All);
        canceled.map_err(|why| format!("a cancel is refused: {why}"))
    }

    /// What is canceled or stopped need not go, nor be skipped.
    fn withdraw(&mut self, key: TaskKey, dependents: bool) {
        let mut meant = vec![key];
        while let Some(key) = meant.pop() {
            if let Some(model) = self.models.get_mut(&key) {
                model.is_withdrawn = true;
            }
            if dependents {
                let children = self.models.iter();
                let children = children.filter(|(_, model)| model.parent == key);
                meant.extend(children.map(|(child, _)| *child));
            }
        }
    }

    fn delete(&mut self) -> Lawful {
        let Some(key) = self.some_task() else {
            return Ok(());
        };
        let waits = self.models.iter().any(|(child, model)| {
            let holds = |child: TaskKey| {
                self.core.show(child).is_ok_and(|task| {
                    let mut all = task.execution_views();
                    let is_held = all.any(|e| e.state == ExecutionState::Held && e.attempt == 1);
                    task.state().is_unbegun() || is_held
                })
            };
            model.parent == key && holds(*child)
        });
        let deleted = self.core.delete(key);
        if waits && deleted.is_ok() {
            return Err(format!("a_parent_is_kept: {key:?} was deleted"));
        }
        if waits && self.core.is_finished(key) {
            self.seen.insert("a delete was refused");
        }
        Ok(())
    }

    fn change_agent(&mut self) {
        let who = self.rng.between(0, MACHINES as u64 - 1) as usize;
        match self.rng.between(0, 3) {
            0 => {
                let goodbye = Goodbye {
                    instance: self.agents[who].instance.clone(),
                    holds: Vec::new(),
                };
                self.core.leave(self.now, &goodbye);
                self.agents[who] = self.new_agent();
                self.seen.insert("a machine left");
            }
            1 => {
                // It died, and nobody knows; the next one has its label.
                self.agents[who] = self.new_agent();
            }
            2 => self.agents[who].is_silent = true,
            _ => self.agents[who].is_silent = false,
        }
    }

    /// Checks all laws, after a tick.
    fn look(&mut self) -> Lawful {
        self.core.check_invariants()?;
        for key in self.known() {
            self.note_ends(key);
        }
        let models: Vec<(TaskKey, Model)> = self.models.clone().into_iter().collect();
        for (key, model) in models {
            if self.core.show(key).is_ok() {
                self.look_at(key, &model)?;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, key: TaskKey, model: &Model) -> Lawful {
        let (Ok(task), parent) = (self.core.show(key), self.core.show(model.parent)) else {
            return Ok(());
        };
        let state = task.state();
        if state.is_unbegun() {
            let Ok(parent) = parent else {
                return Err(format!("a_parent_is_kept: of {key:?} {model:?}"));
            };
            let has_machines = parent.size() > 0 || self.core.is_finished(model.parent);
            if state == TaskState::Blocked && has_machines && model.is_alone {
                return Err(format!("nothing_is_held_for_nothing: {key:?} is blocked"));
            }
            return Ok(());
        }
        let answer = task.answer(0);
        let is_paused =
            { answer.rollout_state.as_ref() }.is_some_and(|it| it.state == RolloutPhase::Paused);
        if let Ok(parent) = &parent
            && !model.has_own_machines
            && task.size() > 0
        {
            let instances = |task: &sidebike::core::Task| {
                let all = task
                    .execution_views()
                    .map(|e| e.instance.map(str::to_owned));
                all.collect::<BTreeSet<_>>()
            };
            if instances(&task) != instances(parent) {
                return Err(format!("the_machines_are_those_of_the_parent: {key:?}"));
            }
        }
        for e in task.execution_views() {
            let instance = e.instance.unwrap_or_default();
            let end = self.ends.get(&(model.parent, instance.to_owned())).copied();
            let exists = parent.as_ref().is_ok_and(|parent| {
                let mut all = parent.execution_views();
                all.any(|other| other.instance == Some(instance))
            });
            // As far as it is still known.
            let is_missing = parent.is_ok() && !exists;
            let may_go = end.is_some_and(|end| goes(model.on, end));
            // Both have ended since the last look, and the parent was forgotten with that.
            let is_unknown = parent.is_err() && end.is_none();
            if is_unknown && e.state.is_terminal() {
                continue;
            }
            let place = format!("{key:?} at {instance} is {:?}, {model:?} {end:?}", e.state);
            use ExecutionState::*;
            match e.state {
                Queued | Delivered | Running | Succeeded | Failed | TimedOut | Lost if !may_go => {
                    return Err(format!("a_counterpart_is_awaited: {place}"));
                }
                Held if parent.is_err() && e.attempt == 1 && !may_go => {
                    return Err(format!("a_parent_is_kept: {place}"));
                }
                Held if is_missing || (end.is_some() && !may_go) => {
                    return Err(format!("the_table_of_ends: {place}"));
                }
                Held if may_go && !is_paused => {
                    return Err(format!("nothing_is_held_for_nothing: {place}"));
                }
                Held if self.now.0 > model.blocked_until.0 + 10_000 && !may_go => {
                    return Err(format!("nothing_is_held_for_ever: {place}"));
                }
                Held => drop(self.seen.insert("something was held")),
                Skipped if may_go && !model.is_withdrawn => {
                    return Err(format!("the_table_of_ends: {place}"));
                }
                Skipped if end.is_none() && exists && !model.is_withdrawn => {
                    return Err(format!("the_table_of_ends: {place}, not ended"));
                }
                Skipped => {
                    self.seen.insert(match is_missing {
                        true => "skipped without a counterpart",
                        false => "skipped after its counterpart",
                    });
                }
                Canceled if !model.is_withdrawn => {
                    return Err(format!("the_table_of_ends: {place}, nobody canceled it"));
                }
                Expired if !may_go && !e.msg.contains("blockedTtl") => {
                    return Err(format!("the_table_of_ends: {place} {}", e.msg));
                }
                // It may have had a shorter `delay`.
                Expired if !may_go && self.now.0 + DELAY_MS < model.blocked_until.0 => {
                    return Err(format!("nothing_is_given_up_too_early: {place}"));
                }
                Expired if !may_go => drop(self.seen.insert("held for too long")),
                _ => {}
            }
        }
        Ok(())
    }

    fn after_step(&mut self) -> Lawful {
        self.core.tick(self.now);
        self.follow_up()?;
        self.save();
        self.look()
    }

    fn run(&mut self) -> Lawful {
        self.poll_all()?;
        self.commit()?;
        for _ in 0..STEPS {
            self.step()?;
            self.after_step()?;
        }
        // Nothing new comes: everything ends.
        let calm = self.now.0 + CALM_MS;
        for key in self.known() {
            let _ = self.core.resume(self.now, key);
        }
        for agent in &mut self.agents {
            agent.is_silent = false;
        }
        while self.core.has_unfinished() {
            if self.now.0 > calm {
                let left = self.core.tasks_by_key();
                let left = left.filter(|(key, _)| !self.core.is_finished(*key));
                let left: Vec<_> = left.map(|(key, task)| (key, task.state())).collect();
                return Err(format!("nothing_is_held_for_ever: {left:?}"));
            }
            for key in self.known() {
                // A pause between two steps may have begun since.
                let _ = self.core.resume(self.now, key);
            }
            for who in 0..MACHINES {
                for id in self.agents[who].running.clone() {
                    self.end(who, id, ExecutionState::Succeeded);
                }
                self.follow_up()?;
                self.poll(who)?;
                self.follow_up()?;
            }
            self.now.0 += 5_000;
            self.after_step()?;
        }
        Ok(())
    }
}

#[test]
fn what_follows_machine_by_machine_goes_when_it_should_and_not_before() {
    let mut seen = BTreeSet::new();
    let seeds = crate::seeds(SEEDS);
    for seed in seeds.clone() {
        let mut scene = Scene::new(seed, None);
        if let Err(law) = scene.run() {
            panic!(
                "seed {seed}: {law}; alone: SEED={seed} cargo test --test simulation per_machine::"
            );
        }
        seen.extend(scene.seen);
    }
    for scenario in [
        "a chain",
        "a delete was refused",
        "a follower was handed out",
        "a machine left",
        "held for too long",
        "restart",
        "restart before what follows",
        "skipped after its counterpart",
        "skipped without a counterpart",
        "something was held",
    ] {
        assert!(
            seeds.end - seeds.start < 20 || seen.contains(scenario),
            "never: {scenario}"
        );
    }
}

/// The rules of tasks that follow others machine by machine.
pub const RULES: [Rule; 1] = [Rule::CounterpartIsAwaited];

#[test]
fn it_finds_a_broken_rule_of_what_follows_machine_by_machine() {
    for rule in RULES {
        let mut seeds = 0..BROKEN_SEEDS;
        let law = seeds.find_map(|seed| Scene::new(seed, Some(rule)).run().err());
        let law = law.unwrap_or_else(|| panic!("{rule:?} is broken, and nobody noticed"));
        assert!(law.starts_with("a_counterpart_is_awaited"), "{law}");
    }
}
