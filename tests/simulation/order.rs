//! In which order what waits is handed out: random tasks on the core alone, whose agents lose answers, die and come back,
//! and whose server dies. The laws are checked after every step, on what was handed out in it and on what is left.

use crate::crash::read_back;
use crate::messages;
use crate::rng::Rng;
use crate::server::{LIMITS, TEXTS};
use serde_json::{Value, json};
use sidebike::core::checked_limit;
use sidebike::core::{Core, MachineKey, Notice, Rule, Saved, Selection, Spec, Task, TaskKey, Time};
use sidebike::wire::agent::{Assignment, AttemptId, Done, Goodbye, Orders, Poll};
use sidebike::wire::limit::PostedLimit;
use sidebike::wire::task::{Detail, ExecutionState, Mode};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const SEEDS: u64 = 60;
const BROKEN_SEEDS: u64 = 500;
const STEPS: u64 = 400;
const MACHINES: u64 = 4;
const MINUTE_MS: u64 = 60_000;
/// Patterns, and the machines that they mean.
const PATTERNS: [(&str, &[&str]); 5] = [
    ("^m", &["m-0", "m-1", "m-2", "m-3"]),
    ("^m-[01]$", &["m-0", "m-1"]),
    ("^m-[12]$", &["m-1", "m-2"]),
    ("^m-3$", &["m-3"]),
    ("^n", &[]),
];

/// Whether a task means the machines with a label.
fn means(task: &Task, label: &str) -> bool {
    let pattern = &*task.spec.selector.text().pattern;
    let known = PATTERNS.iter().find(|(known, _)| *known == pattern);
    known.is_some_and(|(_, labels)| labels.contains(&label))
}

/// An agent as far as it matters here.
struct Agent {
    instance: String,
    label: String,
    jobs: u32,
    seq: u64,
    holds: Vec<AttemptId>,
    key: Option<MachineKey>,
    is_held: bool,
}

struct Scene {
    rng: Rng,
    core: Core,
    saved: Saved,
    broken: Option<Rule>,
    now: Time,
    agents: Vec<Agent>,
    submitted: u64,
    /// What a machine was handed in this step: in order, with its label.
    handed_out: Vec<(String, AttemptId)>,
    /// What waited to be handed out before this step.
    waited: BTreeSet<(TaskKey, u32)>,
    /// How many ran of each limit when it was changed, as long as so many do.
    over: BTreeMap<&'static str, u32>,
    rates: BTreeMap<&'static str, Rate>,
    /// The attempts that were handed out, each once however often its order was lost.
    counted: BTreeSet<(String, u32)>,
    log: Vec<String>,
}

/// What may still be handed out for the rate of a limit: a token has `MINUTE_MS` parts, and each millisecond adds one
/// part for each token of a minute.
struct Rate {
    per_minute: u64,
    parts: u64,
    since: Time,
}

impl Rate {
    /// Ten seconds' worth, one token at least.
    fn most(&self) -> u64 {
        (self.per_minute * MINUTE_MS / 6).max(MINUTE_MS)
    }

    fn fill(&mut self, now: Time) {
        self.parts += self.per_minute * (now.0 - self.since.0);
        (self.parts, self.since) = (self.parts.min(self.most()), now);
    }
}

type Lawful = Result<(), String>;

impl Scene {
    fn new(seed: u64, broken: Option<Rule>) -> Scene {
        let mut rng = Rng::new(seed);
        let now = Time(1_700_000_000_000);
        let mut core = Core::new(LIMITS, now);
        core.record_changes();
        if let Some(rule) = broken {
            core.break_rule_for_tests(rule);
        }
        let agents = (0..MACHINES).map(|n| Agent {
            instance: rng.id(),
            label: format!("m-{n}"),
            jobs: rng.between(1, 3) as u32,
            seq: 0,
            holds: Vec::new(),
            key: None,
            is_held: false,
        });
        let agents = agents.collect();
        Scene {
            rng,
            core,
            saved: Saved::default(),
            broken,
            now,
            agents,
            submitted: 0,
            handed_out: Vec::new(),
            waited: BTreeSet::new(),
            over: BTreeMap::new(),
            rates: BTreeMap::new(),
            counted: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now.0 % 1_000_000_000;
        self.log.push(format!("{now} {}", what()));
    }

    fn run(&mut self) -> Lawful {
        for _ in 0..20 {
            self.change_limit();
        }
        for _ in 0..STEPS {
            self.handed_out.clear();
            self.waited = self.waiting();
            self.step()?;
            self.after()?;
        }
        Ok(())
    }

    /// Every execution that waits to be handed out.
    fn waiting(&self) -> BTreeSet<(TaskKey, u32)> {
        let tasks = self.core.tasks_by_key();
        let all = tasks.flat_map(|(key, task)| {
            let waits = { task.execution_views() }
                .filter(|e| e.state == ExecutionState::Queued && !e.is_between);
            waits.map(move |e| (key, e.n))
        });
        all.collect()
    }

    fn step(&mut self) -> Lawful {
        let who = self.rng.between(0, MACHINES - 1) as usize;
        match self.rng.between(0, 99) {
            0..=29 => self.submit(),
            30..=54 => self.poll(who),
            55..=74 => self.report(who),
            75..=79 => self.cancel(),
            80..=82 => self.go_away(who),
            83..=84 => self.restart()?,
            85..=86 => self.change_limit(),
            _ => self.wait(),
        }
        Ok(())
    }

    /// The notices, the batch and the laws of a step.
    fn after(&mut self) -> Lawful {
        self.core.tick(self.now);
        loop {
            let woken =
                { self.core.take_notices().into_iter() }.filter_map(|notice| match notice {
                    Notice::Wake(key) => Some(key),
                    _ => None,
                });
            let woken: Vec<MachineKey> = woken.collect();
            if woken.is_empty() {
                break;
            }
            for key in woken {
                let orders = self.core.collect(self.now, key);
                let who = self.agents.iter().position(|a| a.key == Some(key));
                self.take(who.expect("it has polled"), orders);
            }
        }
        let batch = self.core.take_batch();
        self.saved.apply(self.now, &batch);
        self.core.check_invariants()?;
        self.core.check_work_conservation()?;
        self.a_limit_is_never_exceeded()?;
        self.a_rate_is_never_exceeded()?;
        self.a_key_has_one_holder()?;
        self.priority_never_turns_round()
    }

    /// Of the tasks with the same key one at most runs, and one at most was not canceled.
    fn a_key_has_one_holder(&self) -> Lawful {
        let mut holders: BTreeMap<&str, [u32; 2]> = BTreeMap::new();
        for (key, task) in self.core.tasks_by_key() {
            let Some(unique) = task
                .spec
                .unique
                .as_ref()
                .filter(|_| !self.core.is_finished(key))
            else {
                continue;
            };
            let active = [ExecutionState::Delivered, ExecutionState::Running];
            let runs = task.execution_views().any(|e| active.contains(&e.state));
            let [running, wanted] = holders.entry(&unique.key).or_default();
            *running += u32::from(runs);
            *wanted += u32::from(!task.is_canceled_for_tests());
        }
        match holders
            .iter()
            .find(|(_, [running, wanted])| *running > 1 || *wanted > 1)
        {
            None => Ok(()),
            Some((key, counts)) => Err(format!("a_key_has_one_holder: {key} {counts:?}")),
        }
    }

    fn submit(&mut self) {
        self.submitted += 1;
        let mut task = json!({
            "machinePattern": self.rng.pick(&PATTERNS).0,
            "mode": self.rng.pick(&["any", "all"]),
            "priority": self.rng.pick(&[-10, -1, 0, 0, 0, 0, 1, 10]),
            "ttl": self.rng.pick(&[5, 60, 3_600]),
            "detail": {"command": "true", "timeout": 300},
        });
        if self.rng.chance(300) {
            let pause = self.rng.pick(&[0, 1, 30]);
            task["retry"] = json!({"max": 2, "interval": [pause], "on": ["failed", "lost"]});
        }
        if self.rng.chance(500) {
            let sets: [&[&str]; 4] = [&["few"], &["rate"], &["few", "rate"], &["some"]];
            task["limits"] = json!(self.rng.pick(&sets));
        }
        if self.rng.chance(100) {
            task["spread"] = 20.into();
            task["mode"] = "all".into();
        }
        if self.rng.chance(300) {
            task["uniqueKey"] = self.rng.pick(&["a", "b"]).into();
            task["onDuplicate"] = self
                .rng
                .pick(&["reject", "join", "replace", "replace"])
                .into();
            if task["onDuplicate"] == "replace" {
                task["replaceRunning"] = self.rng.chance(500).into();
            }
        }
        self.post(task);
    }

    fn post(&mut self, task: Value) {
        let id = format!("t{}", self.submitted);
        let posted = serde_json::from_value(task.clone()).expect("a task");
        let spec = Spec::checked(posted, &TEXTS, |_| None).expect("a good task");
        let said = match self.core.submit(self.now, &id, spec) {
            Ok(_) => id,
            Err(refusal) => refusal.to_string(),
        };
        self.note(|| format!("submit {task}: {said}"));
    }

    fn poll(&mut self, who: usize) {
        let agent = &mut self.agents[who];
        agent.seq += 1;
        let poll = Poll {
            jobs: agent.jobs,
            standing: true,
            ..messages::poll(&agent.instance, agent.seq, &agent.label, &agent.holds)
        };
        let Ok((key, orders)) = self.core.poll(self.now, &poll, None) else {
            return;
        };
        let agent = &mut self.agents[who];
        (agent.key, agent.is_held) = (Some(key), orders.is_empty());
        self.note(|| format!("machine {who} polls"));
        match orders.is_empty() {
            true => self.core.hold_poll(key),
            false => self.take(who, orders),
        }
    }

    /// An agent takes orders, unless they are lost on their way.
    fn take(&mut self, who: usize, orders: Orders<Arc<Detail>>) {
        let agent = &mut self.agents[who];
        agent.is_held = false;
        agent
            .holds
            .retain(|id| !orders.cancel.contains(id) && !orders.forget.contains(id));
        self.start(who, orders.start);
    }

    fn start(&mut self, who: usize, start: Vec<Assignment<Arc<Detail>>>) {
        let is_lost = self.rng.chance(100);
        for job in start {
            self.note(|| {
                format!(
                    "machine {who} is handed {} (lost: {is_lost})",
                    job.id.execution
                )
            });
            let agent = &mut self.agents[who];
            self.handed_out.push((agent.label.clone(), job.id.clone()));
            if !is_lost {
                agent.holds.push(job.id);
            }
        }
    }

    fn report(&mut self, who: usize) {
        let asks = self.rng.chance(700);
        let agent = &mut self.agents[who];
        let Some(id) = agent.holds.pop() else {
            return;
        };
        let state = match self.rng.chance(700) {
            true => ExecutionState::Succeeded,
            false => ExecutionState::Failed,
        };
        let done = Done {
            seq: asks.then_some(agent.seq),
            ..messages::done(&agent.instance, vec![messages::ended(&id, state)])
        };
        self.note(|| format!("machine {who} reports {}", id.execution));
        let taken = self.core.done_and_next(self.now, &done);
        self.start(who, taken.start);
    }

    fn some_task(&mut self) -> Option<TaskKey> {
        let unfinished = self.core.tasks_by_key();
        let unfinished = unfinished.filter(|(_, task)| !task.state().is_terminal());
        let keys: Vec<TaskKey> = unfinished.map(|(key, _)| key).collect();
        (!keys.is_empty()).then(|| self.rng.pick(&keys))
    }

    fn change_limit(&mut self) {
        let (name, running, rate) = self.rng.pick(&[
            ("few", Some(1), None),
            ("few", Some(2), None),
            ("few", Some(0), None),
            ("some", Some(3), Some(600)),
            ("rate", None, Some(1)),
            ("rate", None, Some(30)),
        ]);
        let posted = PostedLimit {
            running,
            per_minute: rate,
        };
        let allowed = checked_limit(name, &posted).expect("a good limit");
        self.note(|| format!("limit {name} {posted:?}"));
        let before = self.core.limit(name).map_or(0, |limit| limit.running_now);
        self.core
            .set_limit(self.now, name, allowed)
            .expect("there are few");
        // What runs already goes on.
        self.over.insert(name, before);
        let now = self.now;
        let Some(per_minute) = rate.map(u64::from) else {
            self.rates.remove(name);
            return;
        };
        let rate = self.rates.entry(name).or_insert(Rate {
            per_minute,
            parts: u64::MAX,
            since: now,
        });
        if rate.parts != u64::MAX {
            rate.fill(now);
        }
        rate.per_minute = per_minute;
        rate.parts = rate.parts.min(rate.most());
    }

    /// What was handed out in this step took a token of each of its rates, and there was one.
    fn a_rate_is_never_exceeded(&mut self) -> Lawful {
        for (_, id) in &self.handed_out {
            let Some(key) = self.core.task_of_execution(&id.execution) else {
                continue;
            };
            if !self.counted.insert((id.execution.to_string(), id.attempt)) {
                continue;
            }
            let Ok(task) = self.core.show(key) else {
                continue;
            };
            for name in &task.spec.limits {
                let Some(rate) = self.rates.get_mut(&**name) else {
                    continue;
                };
                rate.fill(self.now);
                let left = rate.parts.checked_sub(MINUTE_MS);
                rate.parts = left.ok_or_else(|| {
                    let allowed = rate.per_minute;
                    format!(
                        "a_rate_is_never_exceeded: {} of {name}, {allowed} a minute",
                        id.execution
                    )
                })?;
            }
        }
        Ok(())
    }

    /// No more executions are delivered or running than a limit allows, or than there were when it was lowered.
    fn a_limit_is_never_exceeded(&mut self) -> Lawful {
        for limit in self.core.limits() {
            let counted = self
                .core
                .tasks_by_key()
                .filter(|(_, task)| task.spec.limits.iter().any(|name| **name == *limit.name));
            let active = [ExecutionState::Delivered, ExecutionState::Running];
            let views = counted.flat_map(|(_, task)| task.execution_views());
            let running = views.filter(|e| active.contains(&e.state)).count() as u32;
            let over = self.over.entry(match &*limit.name {
                "few" => "few",
                "some" => "some",
                _ => "rate",
            });
            let over = over.or_default();
            *over = running.min(*over);
            if running != limit.running_now
                || limit.running.is_some_and(|most| running > most.max(*over))
            {
                return Err(format!(
                    "a_limit_is_never_exceeded: {running} run, {limit:?}"
                ));
            }
        }
        Ok(())
    }

    fn cancel(&mut self) {
        if let Some(key) = self.some_task() {
            self.note(|| format!("cancel {key:?}"));
            let _ = self.core.cancel(self.now, key, &Selection::All);
        }
    }

    /// An agent ends, with a goodbye or without, and another one takes its place.
    fn go_away(&mut self, who: usize) {
        let goodbye = self.rng.chance(500);
        let instance = self.rng.id();
        let agent = &mut self.agents[who];
        let before = std::mem::replace(&mut agent.instance, instance);
        if let Some(key) = agent.key.take().filter(|_| agent.is_held) {
            self.core.release_poll(key);
        }
        let agent = &mut self.agents[who];
        (agent.seq, agent.is_held) = (0, false);
        agent.holds.clear();
        self.note(|| format!("machine {who} ends, goodbye: {goodbye}"));
        if goodbye {
            let goodbye = Goodbye {
                instance: before,
                holds: Vec::new(),
            };
            self.core.leave(self.now, &goodbye);
        }
    }

    fn restart(&mut self) -> Lawful {
        self.note(|| "the server starts again".into());
        let saved = Saved {
            tasks: read_back(&self.saved.tasks),
            executions: read_back(&self.saved.executions),
            machines: read_back(&self.saved.machines),
            limits: read_back(&self.saved.limits),
            ..self.saved.clone()
        };
        self.now.0 += self.rng.pick(&[1, 5_000, 3_600_000]);
        self.core = Core::restored(LIMITS, self.now, saved)?;
        if let Some(rule) = self.broken {
            self.core.break_rule_for_tests(rule);
        }
        for agent in &mut self.agents {
            (agent.key, agent.is_held) = (None, false);
        }
        // What was said of a limit last may not have been saved.
        let saved = self.core.limits();
        let rate_of = |name: &str| {
            let limit = saved.iter().find(|limit| &*limit.name == name)?;
            limit.per_minute.map(u64::from)
        };
        self.rates.retain(|name, rate| match rate_of(name) {
            Some(per_minute) => {
                (rate.per_minute, rate.parts, rate.since) = (per_minute, 0, self.now);
                true
            }
            None => false,
        });
        Ok(())
    }

    fn wait(&mut self) {
        self.now.0 += self.rng.pick(&[0, 10, 1_000, 4_000, 30_000]);
        self.note(|| "time goes on".into());
    }

    /// Of what could have gone to the same machine, nothing with a higher priority waits.
    fn priority_never_turns_round(&self) -> Lawful {
        for (label, id) in &self.handed_out {
            let Some(key) = self.core.task_of_execution(&id.execution) else {
                continue;
            };
            let tasks: BTreeMap<_, _> = self.core.tasks_by_key().collect();
            let handed_out = tasks[&key].spec.priority;
            for (other, task) in &tasks {
                let waits = task.execution_views().any(|e| {
                    let is_there = match task.spec.mode {
                        // Offered to another machine it is as good as there.
                        Mode::Any => e.instance.is_none() && means(task, label),
                        Mode::All => e.instance.is_some_and(|instance| {
                            self.agents
                                .iter()
                                .any(|a| a.label == *label && a.instance == instance)
                        }),
                    };
                    let waited = self.waited.contains(&(*other, e.n));
                    e.state == ExecutionState::Queued && !e.is_between && waited && is_there
                });
                if waits && task.spec.limits.is_empty() && task.spec.priority > handed_out {
                    return Err(format!(
                        "priority_never_turns_round: {label} was handed {} with {handed_out}, and {other:?} waits with {}",
                        id.execution, task.spec.priority
                    ));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn the_laws_of_order_hold() {
    for seed in crate::seeds(SEEDS) {
        let mut scene = Scene::new(seed, None);
        if let Err(law) = scene.run() {
            let last = scene.log.len().saturating_sub(60);
            panic!("seed {seed}: {law}\n{}", scene.log[last..].join("\n"));
        }
    }
}

#[test]
fn it_finds_a_broken_rule_of_order() {
    for rule in Rule::OF_ORDER {
        let found = (0..BROKEN_SEEDS).find_map(|seed| {
            let law = Scene::new(seed, Some(rule)).run().err()?;
            Some((seed, law))
        });
        let (seed, law) = found.unwrap_or_else(|| panic!("{rule:?} is broken, and nobody noticed"));
        println!("{rule:?}: after {seed} seeds: {law}");
    }
}
