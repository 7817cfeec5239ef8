//! Who is meant and how many: the machines as the users see them, tasks that choose among them, and the laws of a
//! registration. Selectors are evaluated and machines are counted here once more, without the core's own indexes.

use crate::users::{TaskModel, base_spec};
use crate::world::{Lawful, Ms, World};
use regex::Regex;
use serde_json::{Map, Value, json};
use sidebike::core::{Core, Refusal, Selector, Spec, Task, TaskKey};
use sidebike::wire::machine::MachineState;
use sidebike::wire::rollout::{Order, Share};
use sidebike::wire::task::Mode;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The percentages of every test with shares.
pub const PERCENTS: [u64; 5] = [1, 33, 50, 99, 100];
/// How long a restored server waits for its machines before it counts.
const COUNTING: Ms = 60_000;
/// Above this limit no machine is forgotten before its time.
const MANY_MACHINES: usize = 100;

/// The hosts of agents; two agents with one label and one host may be one machine that was started again.
pub const HOSTS: [&str; 3] = ["host", "rack-1", "rack-2"];
/// The tags of agents: zone and role.
pub const ZONES: [Option<&str>; 3] = [Some("cn-1"), Some("eu-1"), None];
pub const ROLES: [Option<&str>; 3] = [Some("canary"), Some("worker"), None];

thread_local! {
    static REGEXES: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// Whether a pattern is found in a text.
pub fn is_found(pattern: &str, text: &str) -> bool {
    REGEXES.with_borrow_mut(|regexes| {
        let regex = { regexes.entry(pattern.to_owned()) }
            .or_insert_with(|| Regex::new(pattern).expect("a good pattern"));
        regex.is_match(text)
    })
}

/// A share of so many, as the rules say: what may be hit rounds down.
pub fn down(share: Share, total: u32) -> u32 {
    match share {
        Share::Count(count) => count,
        Share::Percent(percent) => {
            let hundredths = total * u32::from(percent);
            (hundredths - hundredths % 100) / 100
        }
    }
}

/// The same for what must stay.
pub fn up(share: Share, total: u32) -> u32 {
    match share {
        Share::Count(count) => count,
        // All but what the other percent may be.
        Share::Percent(percent) => total - down(Share::Percent(100 - percent), total),
    }
}

/// A machine as its agent describes it.
#[derive(Debug, Clone)]
struct Machine {
    label: String,
    host: String,
    tags: BTreeMap<String, String>,
    since: Ms,
    heard: Ms,
}

/// What a server has to wait for after a restart.
#[derive(Debug)]
struct Recount {
    since: Ms,
    online: usize,
    offline: BTreeSet<String>,
    came: BTreeSet<String>,
}

/// Every machine that was ever accepted.
#[derive(Debug, Default)]
pub struct Fleet {
    machines: HashMap<String, Machine>,
    /// What was heard before that time may count as heard later: the server's own pauses do not count as silence.
    shaken_at: Ms,
    recount: Option<Recount>,
}

impl Fleet {
    /// A machine was accepted, or has polled again.
    pub fn polled(
        &mut self,
        now: Ms,
        instance: &str,
        (label, host): (&str, &str),
        tags: &BTreeMap<String, String>,
        was_known: bool,
    ) {
        let machine = self.machines.entry(instance.into());
        let machine = machine.or_insert_with(|| Machine {
            label: label.into(),
            host: host.into(),
            tags: tags.clone(),
            since: now,
            heard: now,
        });
        machine.heard = now;
        if !was_known {
            machine.since = now;
        }
        if let Some(recount) = &mut self.recount
            && !recount.offline.contains(instance)
        {
            recount.came.insert(instance.into());
        }
    }

    /// Where a machine is.
    pub fn spot(&self, instance: &str) -> Option<(String, String)> {
        let machine = self.machines.get(instance)?;
        Some((machine.label.clone(), machine.host.clone()))
    }

    /// What is known of two machines, for messages.
    pub fn describe(&self, instance: &str, other: &str) -> String {
        let (new, old) = (self.machines.get(instance), self.machines.get(other));
        format!("{new:?} after {old:?}, shaken {}", self.shaken_at)
    }

    /// Whether a machine appeared certainly after another one was last heard of.
    pub fn came_after(&self, instance: &str, other: &str) -> bool {
        let known = self.machines.get(instance).zip(self.machines.get(other));
        known.is_some_and(|(new, old)| new.since > old.heard && old.heard > self.shaken_at)
    }

    /// Something else was heard of a machine.
    pub fn heard(&mut self, now: Ms, instance: &str) {
        if let Some(machine) = self.machines.get_mut(instance) {
            machine.heard = now;
        }
    }

    /// The server was away until now.
    pub fn shaken(&mut self, now: Ms) {
        self.shaken_at = self.shaken_at.max(now);
    }

    /// The server is an empty one.
    pub fn wiped(&mut self) {
        self.recount = None;
    }

    /// The server was rebuilt.
    pub fn restored(&mut self, now: Ms, core: &Core) {
        self.shaken(now);
        let (offline, online): (Vec<_>, Vec<_>) =
            { core.machine_states() }.partition(|(_, state)| *state == MachineState::Offline);
        self.recount = Some(Recount {
            since: now,
            online: online.len(),
            offline: { offline.into_iter() }.map(|(i, _)| i.to_owned()).collect(),
            came: BTreeSet::new(),
        });
    }

    fn is_counting(&self, now: Ms) -> bool {
        self.recount.as_ref().is_some_and(|recount| {
            now < recount.since + COUNTING && recount.came.len() < recount.online
        })
    }

    fn means(&self, selector: &Selector, instance: &str) -> bool {
        let Some(machine) = self.machines.get(instance) else {
            return false;
        };
        let text = selector.text();
        let Some(narrowing) = &text.narrowing else {
            return is_found(&text.pattern, &machine.label);
        };
        let excluded = narrowing.exclude.as_ref();
        let named = narrowing.instances.is_empty() || narrowing.instances.contains(instance);
        let tagged = narrowing.tags.iter().all(|(name, pattern)| {
            let value = machine.tags.get(name);
            value.is_some_and(|value| is_found(pattern, value))
        });
        named
            && tagged
            && is_found(&text.pattern, &machine.label)
            && !excluded.is_some_and(|exclude| is_found(exclude, &machine.label))
            && { narrowing.hosts.as_ref() }.is_none_or(|hosts| is_found(hosts, &machine.host))
    }

    fn label(&self, instance: &str) -> &str {
        self.machines.get(instance).map_or("", |m| &m.label)
    }

    /// Drops the machines that another with their label and host has probably replaced. False if that cannot be
    /// known here.
    fn drop_replaced(&self, machines: &mut BTreeSet<String>, held: &BTreeSet<String>) -> bool {
        let mut newest: HashMap<(&str, &str), Ms> = HashMap::new();
        let known = |instance: &String| self.machines.get(instance);
        for machine in machines.iter().filter_map(known) {
            let since = newest.entry((&machine.host, &machine.label)).or_default();
            *since = machine.since.max(*since);
        }
        let mut is_certain = true;
        machines.retain(|instance| {
            let Some(machine) = self.machines.get(instance) else {
                return true;
            };
            let newest = newest[&(&*machine.host, &*machine.label)];
            if machine.since >= newest || held.contains(instance) || machine.heard >= newest {
                return true;
            }
            is_certain &= machine.heard > self.shaken_at;
            false
        });
        is_certain
    }
}

/// What the users know before a task is registered.
pub struct Census {
    /// The machines that a selector means and that are online, without those that were replaced if that matters.
    live: BTreeSet<String>,
    is_certain: bool,
    is_counting: bool,
    keep: Option<Keep>,
}

/// What a task has to leave alone.
struct Keep {
    pool: u32,
    must_stay: u32,
    healthy: BTreeSet<String>,
}

fn has_counts(spec: &Spec) -> bool {
    let counts = &spec.counts;
    counts.expect.is_some() || counts.max_targets.is_some() || counts.keep_alive.is_some()
}

impl World {
    /// Counts the machines before a task is registered.
    pub fn census(&self, spec: &Spec) -> Census {
        let core = &self.server.core;
        let states: BTreeMap<&str, MachineState> = core.machine_states().collect();
        let meant = |selector: &Selector| -> BTreeSet<String> {
            let meant = states.keys().filter(|i| self.fleet.means(selector, i));
            meant.map(|i| (*i).to_owned()).collect()
        };
        let is_live = |instance: &String| states[&**instance] == MachineState::Online;
        let mut held = self.server.held_instances();
        held.retain(|i| { states.get(&**i) }.is_some_and(|s| *s != MachineState::Offline));
        let all = meant(&spec.selector);
        let mut live: BTreeSet<String> = all.iter().filter(|i| is_live(i)).cloned().collect();
        let mut is_certain = true;
        if has_counts(spec) || spec.rollout.is_some() {
            is_certain &= self.fleet.drop_replaced(&mut live, &held);
        }
        let keep = spec.counts.keep_alive.as_ref().map(|keep_alive| {
            let mut pool = keep_alive.pool.as_ref().map_or(all, meant);
            pool.retain(|i| !self.laws.has_left(i));
            is_certain &= self.fleet.drop_replaced(&mut pool, &held);
            let touched = self.touched();
            let number = pool.len() as u32;
            pool.retain(|i| is_live(i) && !touched.contains(i));
            Keep {
                pool: number,
                must_stay: up(keep_alive.keep, number),
                healthy: pool,
            }
        });
        Census {
            live,
            is_certain,
            is_counting: has_counts(spec) && self.fleet.is_counting(self.now),
            keep,
        }
    }

    /// The targets of everything with `keepAlive` that has not ended.
    fn touched(&self) -> BTreeSet<String> {
        let tasks = self.server.core.tasks_by_key();
        let guards = |key: &TaskKey| self.users.task(*key).is_some_and(TaskModel::keeps_alive);
        let tasks = tasks.filter(|(key, _)| guards(key));
        let unfinished = tasks
            .flat_map(|(_, task)| task.execution_views())
            .filter(|e| !e.state.is_terminal());
        let mut touched: BTreeSet<String> = { unfinished.filter_map(|e| e.instance) }
            .map(str::to_owned)
            .collect();
        // Where an undo is open, too, whichever instance is there.
        let open = self.open_spots();
        let there = self.fleet.machines.iter();
        let there = there.filter(|(_, it)| open.contains(&(it.label.clone(), it.host.clone())));
        touched.extend(there.map(|(instance, _)| instance.clone()));
        touched
    }

    /// A task is registered: its targets are exactly those that it may have.
    pub fn was_right_to_accept(&mut self, key: TaskKey, census: &Census) -> Lawful {
        let Ok(task) = self.server.core.show(key) else {
            return Ok(());
        };
        let spec = &task.spec;
        if spec.mode == Mode::Any {
            return Ok(());
        }
        let in_order = targets(&task);
        let chosen: BTreeSet<String> = in_order.iter().cloned().collect();
        let law = |law: &str, why: String| Err(format!("{law}: {key:?} {why}"));
        if let Some(wrong) = in_order
            .iter()
            .find(|i| !self.fleet.means(&spec.selector, i))
        {
            return law("targets_match_their_selector", format!("not {wrong}"));
        }
        if census.is_counting && self.server.limits.machines >= MANY_MACHINES {
            return law("nothing_is_counted_too_early", String::new());
        }
        self.the_order_is_kept(key, &task, &in_order)?;
        if !census.is_certain {
            return Ok(());
        }
        let live = census.live.len() as u32;
        if task.matched() != live {
            let why = format!("{} matched, really {live}", task.matched());
            return law("targets_match_their_selector", why);
        }
        let counts = &spec.counts;
        if counts.expect.is_some_and(|expect| !expect.allows(live)) {
            let why = format!("{live} match, {:?}", counts.expect);
            return law("as_many_match_as_are_expected", why);
        }
        let most = counts.max_targets.map_or(live, |most| down(most, live));
        if chosen.len() as u32 != most.min(live) || !chosen.is_subset(&census.live) {
            let why = format!("{chosen:?} of {:?}, {most} at most", census.live);
            return law("no_more_than_the_most_targets", why);
        }
        let is_percent = matches!(counts.max_targets, Some(Share::Percent(_)));
        if chosen.is_empty() && (is_percent || counts.keep_alive.is_some()) {
            return law("no_machine_is_no_target", String::new());
        }
        self.so_many_stay(key, census, &chosen)
    }

    /// A task was registered again for these targets.
    pub fn was_right_to_rerun(&self, key: TaskKey, census: &Census) -> Lawful {
        let Ok(task) = self.server.core.show(key) else {
            return Ok(());
        };
        if task.spec.mode == Mode::Any || !census.is_certain {
            return Ok(());
        }
        let expect = task.spec.counts.expect;
        let live = census.live.len() as u32;
        if expect.is_some_and(|expect| !expect.allows(live)) {
            return Err(format!("as_many_match_as_are_expected: rerun {key:?}"));
        }
        self.so_many_stay(key, census, &targets(&task).into_iter().collect())
    }

    /// So many of the pool are online, and no targets of another task with `keepAlive` or of this one.
    fn so_many_stay(&self, key: TaskKey, census: &Census, chosen: &BTreeSet<String>) -> Lawful {
        let Some(keep) = &census.keep else {
            return Ok(());
        };
        let stay = keep.healthy.difference(chosen).count() as u32;
        if stay < keep.must_stay {
            return Err(format!(
                "so_many_stay: {key:?}, {stay} of {} stay, {} have to",
                keep.pool, keep.must_stay
            ));
        }
        Ok(())
    }

    /// Canaries come first, then all others, each sorted by label.
    fn the_order_is_kept(&self, key: TaskKey, task: &Task, in_order: &[String]) -> Lawful {
        let Some(rollout) = &task.spec.rollout else {
            return Ok(());
        };
        let place = |instance: &String| {
            let label = self.fleet.label(instance);
            let canary = rollout.posted.canary.as_ref();
            let later = canary.is_some_and(|canary| !is_found(canary, label));
            match rollout.order {
                Order::Label => (later, label.to_owned(), instance.clone()),
                _ => (later, String::new(), String::new()),
            }
        };
        match in_order.is_sorted_by_key(place) {
            true => Ok(()),
            false => Err(format!("the_order_is_kept: {key:?} {in_order:?}")),
        }
    }

    /// A task was refused because of its counts.
    pub fn was_right_to_refuse(&self, spec: &Spec, census: &Census, refusal: &Refusal) -> Lawful {
        let why = refusal.to_string();
        let law = || Err(format!("what_is_refused_had_to_be: {why}"));
        if why.starts_with("still counting") {
            let may_differ = self.server.limits.machines < MANY_MACHINES;
            return match census.is_counting || may_differ {
                true => Ok(()),
                false => law(),
            };
        }
        if !census.is_certain {
            return Ok(());
        }
        let counts = &spec.counts;
        let live = census.live.len() as u32;
        let most = counts.max_targets.map_or(live, |most| down(most, live));
        let field = why.split(':').next().unwrap_or_default();
        let is_right = match (field, &census.keep) {
            ("expect", _) => counts.expect.is_some_and(|expect| !expect.allows(live)),
            ("maxTargets", _) => counts.max_targets.is_some_and(|most| down(most, live) == 0),
            ("keepAlive.pool", Some(keep)) => keep.pool == 0,
            ("keepAlive", Some(keep)) => {
                // Which ones would have been chosen is not known here.
                let hit = keep.healthy.intersection(&census.live).count() as u32;
                let healthy = keep.healthy.len() as u32;
                live == 0 || healthy < keep.must_stay + hit.min(most)
            }
            ("rollout", _) => spec.rollout.is_some() && live == 0,
            ("rollout.canary", _) => {
                let canary = spec
                    .rollout
                    .as_ref()
                    .and_then(|it| it.posted.canary.as_ref());
                canary.is_some_and(|canary| {
                    let mut live = census.live.iter();
                    counts.max_targets.is_some()
                        || !live.any(|i| is_found(canary, self.fleet.label(i)))
                })
            }
            _ => false,
        };
        if is_right { Ok(()) } else { law() }
    }

    /// A share as it is posted: a number from 1, or a percentage.
    fn some_share(&mut self, most: u64) -> Value {
        match self.rng.chance(500) {
            true => json!(self.rng.between(1, most)),
            false => json!(format!("{}%", self.rng.pick(&PERCENTS))),
        }
    }

    /// Steps as they are posted: numbers and percentages, each of them rising.
    fn some_steps(&mut self) -> Value {
        let number = self.rng.between(0, 2);
        let counts: BTreeSet<u64> = (0..number).map(|_| self.rng.between(1, 3)).collect();
        let number = self.rng.between(u64::from(counts.is_empty()), 2);
        let percents: BTreeSet<u64> = (0..number).map(|_| self.rng.pick(&PERCENTS)).collect();
        let is_whole = percents.contains(&100);
        let counts = counts.into_iter().map(|count| json!(count));
        let percents = percents
            .into_iter()
            .map(|percent| json!(format!("{percent}%")));
        match is_whole || self.rng.chance(500) {
            true => counts.chain(percents).collect(),
            false => percents.chain(counts).collect(),
        }
    }

    /// A task that chooses among the machines, or goes step by step.
    pub fn targeted_spec(&mut self) -> Spec {
        let pattern = self.rng.pick(&[".*", ".*", ".*", "web", "db"]);
        let mut posted = Map::new();
        if self.rng.chance(200) {
            posted.insert(
                "exclude".into(),
                self.rng.pick(&["web-1", "db", "x"]).into(),
            );
        }
        if self.rng.chance(200) {
            let tags = [
                json!({"zone": "^cn-"}),
                json!({"role": "canary"}),
                json!({"zone": "1$", "role": "."}),
            ];
            let which = self.rng.between(0, 2) as usize;
            posted.insert("machineTags".into(), tags[which].clone());
        }
        if self.rng.chance(150) {
            posted.insert("hosts".into(), self.rng.pick(&["rack", "^host$"]).into());
        }
        if self.rng.chance(150) && !self.agents.is_empty() {
            let last = self.agents.len() as u64 - 1;
            let instances: Vec<Value> = (0..self.rng.between(1, 3))
                .map(|_| {
                    self.agents[self.rng.between(0, last) as usize]
                        .instance
                        .clone()
                })
                .map(Value::from)
                .collect();
            posted.insert("instances".into(), instances.into());
        }
        if self.rng.chance(300) {
            posted.insert("priority".into(), self.rng.pick(&[-10, -1, 1, 10]).into());
        }
        let rolls_out = self.rng.chance(750);
        if rolls_out {
            let rollout = self.some_rollout();
            posted.insert("rollout".into(), rollout);
        }
        if rolls_out && self.rng.chance(200) {
            posted.insert("lateJoin".into(), true.into());
        } else {
            if self.rng.chance(300) {
                let most = self.some_share(3);
                posted.insert("maxTargets".into(), most);
            }
            if self.rng.chance(400) {
                let keep = self.some_share(2);
                let pool = self.rng.pick(&[".*", "web", "db"]);
                let keep_alive = match self.rng.chance(400) {
                    true => json!({"keep": keep, "pool": pool}),
                    false => keep,
                };
                posted.insert("keepAlive".into(), keep_alive);
            }
        }
        if self.rng.chance(150) {
            let online = self.server.core.machine_states();
            let online = online.filter(|(_, state)| *state == MachineState::Online);
            let online = online.count() as u64;
            let min = self.rng.between(0, 2);
            let expect = match self.rng.between(0, 2) {
                0 => json!(online),
                1 => json!(self.rng.between(0, 4)),
                _ => json!({"min": min, "max": min + 3}),
            };
            posted.insert("expect".into(), expect);
        }
        base_spec(pattern, posted)
    }

    fn some_rollout(&mut self) -> Value {
        let mut rollout = Map::new();
        if self.rng.chance(600) {
            let concurrency = self.some_share(2);
            rollout.insert("concurrency".into(), concurrency);
        }
        if self.rng.chance(600) {
            rollout.insert("steps".into(), self.some_steps());
        }
        if self.rng.chance(400) {
            let pauses = [json!(0), json!("1s"), json!("20s"), json!("approve")];
            let which = self.rng.between(0, 3) as usize;
            rollout.insert("pause".into(), pauses[which].clone());
        }
        if self.rng.chance(600) {
            let failures = match self.rng.chance(500) {
                true => json!(self.rng.between(0, 2)),
                false => self.some_share(1),
            };
            rollout.insert("maxFailures".into(), failures);
        }
        if self.rng.chance(300) {
            rollout.insert("stopRunning".into(), true.into());
        }
        if self.rng.chance(400) {
            let order = self.rng.pick(&["label", "random", "joined"]);
            rollout.insert("order".into(), order.into());
        }
        if self.rng.chance(200) {
            let canary = self.rng.pick(&["^web-0$", "db", "nobody"]);
            rollout.insert("canary".into(), canary.into());
        }
        Value::Object(rollout)
    }

    /// What a dry run says is what happens.
    pub fn preview_of(&self, id: &str, spec: &Spec) -> (bool, Vec<String>) {
        let preview = self.server.core.preview(self.time(), id, spec);
        let machines = preview.machines.iter().map(|it| it.instance.to_string());
        (preview.refusal.is_some(), machines.collect())
    }
}

/// The instances of a task's executions, in their order.
pub fn targets(task: &Task) -> Vec<String> {
    let instances = task.execution_views().filter_map(|e| e.instance);
    instances.map(str::to_owned).collect()
}
