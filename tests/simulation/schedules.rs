//! Schedules in a world of their own: a core, a model disk, a wall clock that leaps, agents that answer late or not at
//! all, and users who change everything. The server dies between any two steps, with or without its last commit, and
//! is away for a second, a minute or three days.
//!
//! Laws, checked after every step:
//!
//! - `one_task_for_each_time`: at most one task is ever saved for a schedule, its incarnation and a time.
//! - `positions_never_go_back`, neither in memory nor on the disk.
//! - `firings_do_not_overlap` where the schedule says so, on each machine of a task for all, also after it was deleted.
//! - `the_last_firing_is_kept`.
//! - `nothing_due_is_left`: after a look at the clock, whatever is due was fired, left out, missed, or says what it waits for.
//!
//! To add one: a function called by [`Scene::check`], and a way to break it in [`it_finds_a_broken_rule_of_schedules`].

use crate::messages;
use crate::rng::Rng;
use crate::server::{LIMITS, TEXTS};
use sidebike::core::{
    Core, Limits, NewSchedule, Notice, Plan, Rule, Saved, ScheduleKey, Selection, Spec, TaskKey,
    Time,
};
use sidebike::recurrence::Zone;
use sidebike::wire::agent::{AttemptId, Ended, Poll};
use sidebike::wire::schedule::{Overlap, PostedSchedule, ScheduleState};
use sidebike::wire::task::{ExecutionState, Mode};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const SEEDS: u64 = 60;
const STEPS: u64 = 250;
const IDS: [&str; 3] = ["a", "b", "c"];
const MACHINES: u64 = 3;
const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600 * SECOND;
/// How far the wall clock leaps.
const LEAPS: [i64; 4] = [-2 * HOUR, 2 * HOUR, 366 * 24 * HOUR, -5 * SECOND];
/// How long the server is away.
const AWAY: [i64; 3] = [SECOND, 61 * SECOND, 3 * 24 * HOUR];

/// A process of an agent, and what it holds.
#[derive(Clone)]
struct Agent {
    instance: String,
    label: String,
    seq: u64,
    holds: Vec<AttemptId>,
}

struct Scene {
    rng: Rng,
    core: Core,
    limits: Limits,
    broken: Option<Rule>,
    now: Time,
    wall_ahead: i64,
    disk: Saved,
    agents: Vec<Agent>,
    numbers: u64,
    /// Every firing that was ever saved, and its task.
    fired: BTreeMap<(u64, Time, bool), TaskKey>,
    positions: BTreeMap<ScheduleKey, Time>,
    /// The last firing of each schedule.
    last: BTreeMap<String, TaskKey>,
    log: Vec<String>,
}

fn posted(rng: &mut Rng) -> PostedSchedule {
    let times = [
        r#""every":"1s""#,
        r#""every":"7s""#,
        r#""every":"1h""#,
        r#""cron":"* * * * *""#,
        r#""cron":"30 2 * * *","timeZone":"Europe/Berlin""#,
        r#""cron":"*/20 1-3 * * *","timeZone":"Australia/Lord_Howe""#,
    ];
    let overlap = ["skip", "queueOne", "replace", "allow"];
    let catch_up = ["none", "latest", "all"];
    let mode = ["all", "any"];
    let others = [
        "",
        r#","startDeadline":"3s""#,
        r#","startDeadline":"2h","keep":1"#,
        r#","times":3"#,
        r#","pauseAfterFailures":2,"keep":2"#,
    ];
    let late = [r#","lateJoin":true,"ttl":"1h""#, ""];
    let (mode, late) = (rng.pick(&mode), rng.pick(&late));
    let late = if mode == "any" { "" } else { late };
    let text = format!(
        r#"{{{},"overlap":"{}","catchUp":"{}"{},"task":{{"machinePattern":"^m","mode":"{mode}"{late},"detail":{{"command":"x","timeout":100}}}}}}"#,
        rng.pick(&times),
        rng.pick(&overlap),
        rng.pick(&catch_up),
        rng.pick(&others),
    );
    serde_json::from_str(&text).expect("a schedule")
}

impl Scene {
    fn new(seed: u64, broken: Option<Rule>) -> Scene {
        let mut rng = Rng::new(seed);
        let limits = Limits {
            executions: rng.pick(&[4, 1_000]),
            tasks: rng.pick(&[2, 1_000]),
            ..LIMITS
        };
        // Some days before clocks are changed in Berlin.
        let now = Time(1_806_000_000_000 + rng.between(0, 3 * 24 * 3_600_000));
        let mut core = Core::new(limits.clone(), now);
        core.record_changes();
        let mut scene = Scene {
            rng,
            core,
            limits,
            broken,
            now,
            wall_ahead: 0,
            disk: Saved {
                last_alive: now,
                ..Saved::default()
            },
            agents: Vec::new(),
            numbers: 0,
            fired: BTreeMap::new(),
            positions: BTreeMap::new(),
            last: BTreeMap::new(),
            log: Vec::new(),
        };
        scene.break_rule();
        for n in 0..MACHINES {
            scene.start_agent(n as usize);
        }
        scene
    }

    fn break_rule(&mut self) {
        if let Some(rule) = self.broken {
            self.core.break_rule_for_tests(rule);
        }
    }

    fn wall(&self) -> Time {
        Time((self.now.0 as i64 + self.wall_ahead).max(0) as u64)
    }

    fn start_agent(&mut self, n: usize) {
        self.numbers += 1;
        let agent = Agent {
            instance: format!("{:032x}", self.numbers),
            label: format!("m{n}"),
            seq: 0,
            holds: Vec::new(),
        };
        match self.agents.get_mut(n) {
            Some(known) => *known = agent,
            None => self.agents.push(agent),
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let what = self.rng.between(0, 99);
        match what {
            0..30 => self.pass(&[100, 1_000, 1_000, 10_000]),
            30..34 => self.pass(&[60_000, 3_600_000]),
            34..60 => self.poll(),
            60..75 => self.report(),
            75..80 => self.put(),
            80..88 => self.change(),
            88..90 => {
                let leap = self.rng.pick(&LEAPS);
                self.log.push(format!("the clock leaps by {leap} ms"));
                self.wall_ahead += leap;
            }
            90..92 => {
                let n = self.rng.between(0, MACHINES - 1) as usize;
                self.start_agent(n);
            }
            92..97 => self.commit()?,
            _ => self.crash()?,
        }
        // All but what has just happened is saved, in most steps.
        if self.rng.chance(700) {
            self.commit()?;
        }
        self.check()
    }

    fn pass(&mut self, spans: &[u64]) {
        self.now = Time(self.now.0 + self.rng.pick(spans));
        self.tick();
    }

    fn tick(&mut self) {
        for _ in 0..1_000 {
            let wall = self.wall();
            self.core.set_wall_clock(self.now, wall);
            let next = self.core.tick(self.now);
            if next.is_none_or(|next| next > self.now) {
                return;
            }
        }
        panic!("the clock spins at {:?}", self.now);
    }

    fn put(&mut self) {
        let id = self.rng.pick(&IDS);
        let posted = posted(&mut self.rng);
        let task = posted.task.read().expect("a task");
        let spec = Spec::checked(task, &TEXTS, |_| None).expect("a spec");
        let zone = Zone::named(Plan::zone_name(&posted)).expect("a zone");
        let wall = self.wall();
        self.core.set_wall_clock(self.now, wall);
        let first = self.core.first_slot(id, &posted).unwrap_or(wall);
        let plan = Plan::checked(posted, spec, zone, first).expect("a plan");
        let seed = self.rng.id();
        let new = NewSchedule {
            id,
            made_by: None,
            seed: &seed,
        };
        self.log.push(format!("put {id} {:?}", plan.posted));
        self.core.put_schedule(self.now, &new, plan).expect("room");
    }

    fn change(&mut self) {
        let id = self.rng.pick(&IDS);
        let what = self.rng.between(0, 6);
        self.log.push(format!("change {what} of {id}"));
        let wall = self.wall();
        self.core.set_wall_clock(self.now, wall);
        let (core, now) = (&mut self.core, self.now);
        match what {
            0 => drop(core.delete_schedule(id)),
            1 => drop(core.pause_schedule(now, id, "test")),
            2 | 3 => drop(core.resume_schedule(now, id)),
            4 | 5 => drop(core.run_schedule(now, id)),
            _ => {
                let tasks: Vec<TaskKey> = core.tasks_by_key().map(|(key, _)| key).collect();
                if !tasks.is_empty() {
                    let task = self.rng.pick(&tasks);
                    match self.rng.chance(500) {
                        true => drop(core.cancel(now, task, &Selection::All)),
                        false => drop(core.delete(task)),
                    }
                }
            }
        }
    }

    fn poll(&mut self) {
        let n = self.rng.between(0, MACHINES - 1) as usize;
        let agent = &mut self.agents[n];
        agent.seq += 1;
        let poll = Poll {
            jobs: 4,
            ..messages::poll(&agent.instance, agent.seq, &agent.label, &agent.holds)
        };
        let Ok((_, orders)) = self.core.poll(self.now, &poll, None) else {
            return;
        };
        let agent = &mut self.agents[n];
        agent
            .holds
            .extend(orders.start.into_iter().map(|job| job.id));
        agent.holds.retain(|id| !orders.forget.contains(id));
        for id in orders.cancel {
            self.end(n, &id, ExecutionState::Canceled);
        }
    }

    fn report(&mut self) {
        let n = self.rng.between(0, MACHINES - 1) as usize;
        let holds = self.agents[n].holds.clone();
        if holds.is_empty() {
            return;
        }
        let id = holds[self.rng.between(0, holds.len() as u64 - 1) as usize].clone();
        let state = match self.rng.chance(400) {
            true => ExecutionState::Failed,
            false => ExecutionState::Succeeded,
        };
        self.end(n, &id, state);
    }

    fn end(&mut self, n: usize, id: &AttemptId, state: ExecutionState) {
        let ended = Ended {
            exit_code: Some(i32::from(state != ExecutionState::Succeeded)),
            duration_ms: None,
            ..messages::ended(id, state)
        };
        let agent = &mut self.agents[n];
        agent.holds.retain(|held| held != id);
        let instance = agent.instance.clone();
        self.core.done(self.now, &instance, &[], &[ended]);
    }

    /// Saves everything. What is saved for a firing is saved for the first time, or of the same task.
    fn commit(&mut self) -> Result<(), String> {
        let batch = self.core.take_batch();
        for (key, task) in &batch.tasks {
            let Some(task) = task else { continue };
            let Some(of) = &task.scheduled else { continue };
            let firing = (of.incarnation, of.at, of.by_hand);
            let known = *self.fired.entry(firing).or_insert(*key);
            if known != *key {
                return Err(format!(
                    "one_task_for_each_time: {firing:?} is {known:?} and {key:?}"
                ));
            }
        }
        for (key, progress) in &batch.progress {
            let before = self.disk.progress.get(key);
            if before.is_some_and(|before| before.position > progress.position) {
                return Err(format!("positions_never_go_back: {key:?} on the disk"));
            }
        }
        self.disk.apply(self.now, &batch);
        Ok(())
    }

    /// The server dies, and is away for a while.
    fn crash(&mut self) -> Result<(), String> {
        let away = self.rng.pick(&AWAY);
        self.log.push(format!("the server is away for {away} ms"));
        self.now = Time(self.now.0 + away as u64);
        // It reads the clock at its start.
        let shown = self.wall();
        self.now = shown.max(self.disk.last_alive);
        self.wall_ahead = shown.0 as i64 - self.now.0 as i64;
        let mut saved = self.disk.clone();
        saved.progress = crate::crash::read_back(&saved.progress);
        for posted in saved.schedules.values() {
            let name = Plan::zone_name(posted);
            let zone = Zone::named(name)?;
            saved.zones.insert(name.to_owned(), zone);
        }
        self.core = Core::restored(self.limits.clone(), self.now, saved)?;
        self.core.set_wall_clock(self.now, shown);
        self.break_rule();
        // What agents had been handed and was not saved is unknown now.
        let known: BTreeSet<String> = { self.core.tasks_by_key() }
            .map(|(_, task)| task.prefix.to_string())
            .collect();
        for agent in &mut self.agents {
            agent.holds.retain(|id| {
                let prefix = id.execution.rsplit_once('.').map(|(prefix, _)| prefix);
                prefix.is_some_and(|prefix| known.contains(prefix))
            });
        }
        self.positions.clear();
        self.last.clear();
        self.tick();
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        self.core.check_invariants()?;
        self.check_positions()?;
        self.check_overlap()?;
        self.check_last()
    }

    fn check_positions(&mut self) -> Result<(), String> {
        for (key, progress) in self.core.schedule_progress() {
            let before = self.positions.insert(key, progress.position);
            if before.is_some_and(|before| before > progress.position) {
                return Err(format!("positions_never_go_back: {key:?}"));
            }
        }
        Ok(())
    }

    /// The later of two firings was made although the earlier had not ended.
    fn check_overlap(&self) -> Result<(), String> {
        let firings = { self.core.tasks_by_key() }.filter_map(|(key, task)| {
            let of = task.spec.scheduled.as_ref()?;
            (!task.state().is_terminal()).then_some((key, of, task))
        });
        let firings: Vec<_> = firings.collect();
        for (n, (key, of, task)) in firings.iter().enumerate() {
            for (other, earlier, before) in &firings[..n] {
                if earlier.schedule != of.schedule || of.overlap == Overlap::Allow {
                    continue;
                }
                let whole = of.overlap != Overlap::Skip || task.spec.mode == Mode::Any;
                if whole {
                    return Err(format!("firings_do_not_overlap: {other:?} and {key:?}"));
                }
                if before.spec.mode == Mode::Any {
                    continue;
                }
                let active = |e: &sidebike::core::ExecutionView<'_>| !e.state.is_terminal();
                let busy: BTreeSet<String> = { before.execution_views() }
                    .filter(active)
                    .filter_map(|e| e.instance.map(str::to_owned))
                    .collect();
                let both = { task.execution_views() }
                    .filter(active)
                    .find(|e| e.instance.is_some_and(|instance| busy.contains(instance)));
                if let Some(both) = both {
                    return Err(format!(
                        "firings_do_not_overlap: {other:?} and {key:?} on {:?}",
                        both.instance
                    ));
                }
            }
        }
        Ok(())
    }

    /// Notes what was fired, and that it is there for as long as its schedule is.
    fn check_last(&mut self) -> Result<(), String> {
        for notice in self.core.take_notices() {
            if let Notice::Fired(fired) = notice {
                self.last.insert(fired.schedule.to_string(), fired.task);
            }
        }
        let there: BTreeSet<&str> = { self.core.schedule_progress() }
            .map(|(_, progress)| &*progress.id)
            .collect();
        self.last.retain(|id, _| there.contains(&**id));
        let gone = { self.last.iter() }.find(|(_, task)| self.core.show(**task).is_err());
        match gone {
            Some((id, task)) => Err(format!("the_last_firing_is_kept: {task:?} of {id}")),
            None => Ok(()),
        }
    }

    /// The clock goes on, agents do their work: nothing that is due is left.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..60 {
            self.pass(&[1_000]);
            for n in 0..self.agents.len() {
                for id in self.agents[n].holds.clone() {
                    self.end(n, &id, ExecutionState::Succeeded);
                }
            }
            for _ in 0..4 {
                self.poll();
            }
            self.commit()?;
            self.check()?;
        }
        self.tick();
        let wall = self.wall();
        for schedule in self.core.list_schedules(self.now, None, usize::MAX) {
            let is_active = schedule.state == ScheduleState::Active;
            let next = schedule.next.first().map(|next| next.utc.clone());
            let now = humantime::format_rfc3339_millis(
                std::time::UNIX_EPOCH + std::time::Duration::from_millis(wall.0),
            );
            let is_late = next.is_some_and(|next| next <= now.to_string());
            if is_active && is_late && schedule.waits.is_none() {
                return Err(format!("nothing_due_is_left: at {now}: {schedule:?}"));
            }
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.step()?;
        }
        self.settle()
    }
}

/// The first seed that fails, and how.
fn first_failure(
    mut seeds: Range<u64>,
    broken: Option<Rule>,
) -> Option<(u64, String, Vec<String>)> {
    seeds.find_map(|seed| {
        let mut scene = Scene::new(seed, broken);
        let law = crate::caught(|| scene.run()).err()?;
        Some((seed, law, std::mem::take(&mut scene.log)))
    })
}

#[test]
fn the_laws_of_schedules_hold_whatever_dies_and_whichever_way_the_clock_is_set() {
    if let Some((seed, law, log)) = first_failure(crate::seeds(SEEDS), None) {
        panic!("seed {seed}: {law}\n{}", log.join("\n"));
    }
}

#[test]
fn it_finds_a_broken_rule_of_schedules() {
    for rule in [
        Rule::FiringSettlesItsTime,
        Rule::FiringsDoNotOverlap,
        Rule::LastFiringIsKept,
    ] {
        let found = first_failure(0..500, Some(rule));
        let (seed, law, _) =
            found.unwrap_or_else(|| panic!("{rule:?} is broken, and nobody noticed"));
        println!("{rule:?}: after {seed} seeds: {law}");
    }
}

#[test]
fn what_is_due_in_the_same_second_is_fired_in_slices() {
    const SCHEDULES: usize = 1_000;
    const AT_ONCE: usize = 50;
    let now = Time(1_806_000_000_500);
    let mut core = Core::new(LIMITS, now);
    let text = r#"{"cron":"* * * * *","task":{"machinePattern":"^m","mode":"any","detail":{"command":"x"}}}"#;
    let posted: PostedSchedule = serde_json::from_str(text).unwrap();
    let spec = Spec::checked(posted.task.read().unwrap(), &TEXTS, |_| None).unwrap();
    let plan = Plan::checked(posted, spec, Zone::utc(), now).unwrap();
    for n in 0..SCHEDULES {
        let new = NewSchedule {
            id: &format!("s{n}"),
            made_by: None,
            seed: &n.to_string(),
        };
        core.put_schedule(now, &new, plan.clone()).unwrap();
    }
    let due = Time(now.0 + 60_000);
    let mut fired = 0;
    loop {
        let next = core.tick(due);
        let tasks = core.tasks_by_key().count();
        assert!(tasks - fired <= AT_ONCE, "{} in one call", tasks - fired);
        fired = tasks;
        if next.is_none_or(|next| next > due) {
            break;
        }
    }
    assert_eq!(fired, SCHEDULES, "each of them once");
    core.check_invariants().unwrap();
}
