//! Runs the real core with a simulated network, clock, agents and users. Thousands of seeds of loss, repetition,
//! delay, reordering, crashes, pauses, restarts with other limits and another time, and agents that lie; the laws in `laws.rs` are checked after every step.
//!
//! - `SEED=7 cargo test --test simulation` runs one seed and prints what happened in it.
//! - `RULE=LockIsHeld cargo test --test simulation it_finds_a_broken_rule` breaks one rule only.
//! - `SIM_SEEDS=10000` sets the number of seeds; `SIM_SECONDS=600` runs seeds for that time instead.
//! - `SIM_FIRST_SEED=5000` begins with that seed in place of 0, to run seeds that were never run.
//!
//! To add a scenario: a random action in `users.rs`, or a fault in `world.rs`. To add a law: a function in `laws.rs`
//! (`targets.rs` for who is meant and how many, `pace.rs` for when, `notify.rs` for who is told), and a way to break it below.
//!
//! In which order tasks get their turn has small worlds of its own, on the core alone: `order.rs`.
//! Tasks that begin later have a simulation of their own, on the core alone: `later.rs`; so have those that follow others
//! machine by machine: `per_machine.rs`. Several servers over one database, their agents and users have a scene in `nodes/`,
//! whose laws are listed in `nodes/mod.rs`. The messages of simulated agents are made in `messages.rs`.
//!
//! Experiments (tasks with an undo) have worlds of their own. `experiment.rs` models what the agent does with them,
//! `guard.rs` its guard and the deaths of both, `undo_users.rs` what users do, `undo_laws.rs` has the laws, `undo_cases.rs`
//! single cases. A seed of them takes longer, so there are fewer of them (`EXPERIMENTS_PART`).
//!
//! The simulation is itself tested by breaking the core on purpose. `it_finds_a_broken_rule` switches off each
//! [`Rule`], `it_finds_a_broken_rule_of_the_agent` each [`AgentRule`] of the model; the following were broken by hand, and each was found within 500 seeds:
//!
//! | broken in `src/core` | found by |
//! | --- | --- |
//! | `OFFLINE_AFTER` is 20 s; `tick` does not allow for its own pause | no_machine_goes_offline_too_early, nothing_is_overdue_while_the_server_was_away |
//! | `cancel_execution` does not set `canceling` | nothing_canceled_is_handed_out |
//! | `join` does not check whether the machine already has the task | one_execution_per_machine |
//! | `reconcile_holds` or `active_attempt` ignores the number of the attempt | results_are_what_really_happened |
//! | `deliver` ignores the ttl | nothing_is_handed_out_after_its_ttl |
//! | `queue_for` does not wake the machine; execution ids are made of reused task ids | a_new_task_runs_at_once_everywhere |
//! | `poll` accepts a machine that said goodbye | who_said_goodbye_never_comes_back |
//! | a lost hand-out is not queued again, a timer is not set or not canceled | `Core::check_invariants` |
//! | a machine that goes offline keeps its queue | what_could_run_elsewhere_is_not_lost_unstarted |
//! | what is held of a new task is not saved; a restart drops the ttl of what had its turn | targets_are_fixed, what_was_accepted_ends |
//! | what a server was away counts again with each start; it is not saved | nothing_is_held_for_ever, nothing_is_given_up_too_early |
//! | `pause` leaves the timer of the pause before | `Core::check_invariants` |
//! | what is held for a machine that is forgotten waits for it | what_was_accepted_ends |
//! | a task with `lateJoin` is not stopped once its targets have ended | nothing_starts_after_too_many_failures |
//! | `HeadTailBuffer::write` ignores the offset | output_is_what_was_written |

mod agent;
mod clock;
mod crash;
mod crew;
mod experiment;
mod files;
mod guard;
mod hostile;
mod later;
mod laws;
mod messages;
#[cfg(feature = "db")]
mod nodes;
mod notify;
mod order;
mod original;
mod pace;
mod per_machine;
mod recovery;
mod rng;
mod schedules;
mod server;
mod several;
mod shares;
mod targets;
mod undo_cases;
mod undo_laws;
mod undo_users;
mod users;
mod world;

use experiment::AgentRule;
use rng::Rng;
use server::Server;
use sidebike::core::{Limits, Rule};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use world::{Tally, World};

/// The number of seeds of a plain `cargo test`; `make test` runs hundreds in an optimized build.
const SEEDS: u64 = 200;
/// The most seeds until a broken rule has to be found.
const BROKEN_SEEDS: u64 = 2_000;
/// A seed of experiments takes three times as long as another one: there is one for so many others, and so many at
/// least.
const EXPERIMENTS_PART: u64 = 4;
const EXPERIMENTS_LEAST: u64 = 40;
const THREADS: usize = 2;
/// The rules that only a full server can break.
const OF_LIMITS: [Rule; 3] = [Rule::LateJoinEnds, Rule::QueuesAreKept, Rule::DebtsAreKept];
/// The rules that only tasks with an undo can break.
const OF_UNDOS: [Rule; 6] = [
    Rule::LostIsOwed,
    Rule::LockIsHeld,
    Rule::RetryWaitsForUndo,
    Rule::EndWaitsForUndo,
    Rule::DebtsAreKept,
    Rule::HaltRefuses,
];
/// The rules that only tasks can break that tell somebody.
const OF_NOTIFICATIONS: [Rule; 2] = [Rule::EventIsToldOnce, Rule::PendingOutlastsItsTask];
/// The rules that only tasks with counts or with a rollout can break.
const OF_TARGETS: [Rule; 6] = [
    Rule::WindowIsKept,
    Rule::StoppedIsSkipped,
    Rule::OfflineIsOfThePool,
    Rule::FailuresAreOfTheTask,
    Rule::HitsRoundDown,
    Rule::KeptRoundsUp,
];

/// The rules that only suspensions and drains can break.
const OF_THE_CREW: [Rule; 3] = [
    Rule::SuspendedGetsNothing,
    Rule::SuspendedHasTime,
    Rule::DrainedGetsNothing,
];

/// The sum of the results of several seeds.
#[derive(Default)]
struct Sum {
    seeds: u64,
    steps: u64,
    tally: Tally,
    failures: Vec<(u64, String)>,
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}: expected a number, got {text:?}")),
    )
}

/// The seed to begin with.
fn first_seed() -> u64 {
    number("SIM_FIRST_SEED").unwrap_or(0)
}

/// The seeds of a simulation that has so many of them in a plain `cargo test`.
fn seeds(usual: u64) -> Range<u64> {
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = first_seed();
            first..first + number("SIM_SEEDS").unwrap_or(usual)
        }
    }
}

fn limits(rng: &mut Rng, broken: Option<Rule>) -> Limits {
    let is_small = broken.is_some_and(|rule| OF_LIMITS.contains(&rule));
    if rng.chance(200) || is_small {
        return Limits {
            tasks: 3,
            executions: 6,
            machines: 4,
            new_machines: 1_000,
            output_bytes: 1_500,
            detail_bytes: 100,
            schedules: 1_000,
            patterns: 2,
            texts: server::TEXTS,
        };
    }
    Limits {
        tasks: 50,
        executions: 500,
        machines: 100,
        new_machines: 1_000,
        output_bytes: 1 << 20,
        detail_bytes: 1 << 20,
        schedules: 1_000,
        patterns: 1_000,
        texts: server::TEXTS,
    }
}

fn world(seed: u64, broken: Option<Rule>) -> World {
    let limits = limits(&mut Rng::new(!seed), broken);
    let mut world = World::new(seed, Server::new(limits, broken));
    world.users.targeted = match broken {
        None => world.rng.pick(&[50, 300, 800, 800]),
        Some(rule) if OF_TARGETS.contains(&rule) => 800,
        Some(_) => 50,
    };
    world.crew.share = match broken {
        None => world.rng.pick(&[0, 0, 50, 200]),
        Some(rule) if OF_THE_CREW.contains(&rule) => 200,
        Some(_) => 0,
    };
    if broken.is_some() {
        // The rules are for messages that are late, lost or repeated: without such weather nobody misses them.
        (
            world.weather.repeat,
            world.weather.slow,
            world.weather.very_slow,
        ) = (300, 200, 20);
        world.weather.loss = 100;
    }
    if broken.is_some_and(|rule| OF_NOTIFICATIONS.contains(&rule)) {
        world.receivers.share = 900;
    }
    if broken.is_some_and(|rule| OF_UNDOS.contains(&rule)) {
        world.have_experiments(None);
    }
    world
}

/// Runs one seed. The error says what went wrong.
fn run(world: &mut World) -> Result<(), String> {
    caught(|| world.run())
}

/// Makes a panic an error.
fn caught(run: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Runs seeds on all threads until `enough` says so, or one fails.
fn run_many(enough: impl Fn(u64) -> bool + Sync, broken: Option<Rule>) -> Sum {
    run_worlds(enough, |seed| world(seed, broken))
}

/// A world whose server has a database and crashes.
fn world_with_disk(seed: u64) -> World {
    let mut world = world(seed, None);
    world.give_disk();
    world
}

/// A world with experiments, in half of all cases with a database.
fn world_of_experiments(seed: u64) -> World {
    let mut world = world(seed, None);
    world.have_experiments(None);
    if seed.is_multiple_of(2) {
        world.give_disk();
    }
    world
}

fn run_worlds(enough: impl Fn(u64) -> bool + Sync, world: impl Fn(u64) -> World + Sync) -> Sum {
    let first = first_seed();
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let failed = !sum.lock().unwrap().failures.is_empty();
                    if failed || enough(seed - first) {
                        return;
                    }
                    let mut world = world(seed);
                    let result = run(&mut world);
                    let mut sum = sum.lock().unwrap();
                    sum.seeds += 1;
                    sum.steps += world.steps;
                    for (what, n) in &world.tally {
                        *sum.tally.entry(what).or_default() += n;
                    }
                    if let Err(law) = result {
                        sum.failures.push((seed, law));
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

fn run_alone(seed: u64, mut world: World) {
    world.log = Some(Vec::new());
    let result = run(&mut world);
    for line in world.log.iter().flatten() {
        println!("{line}");
    }
    println!("seed {seed}: {} steps, {:?}", world.steps, world.tally);
    if let Err(law) = result {
        panic!("seed {seed}: {law}");
    }
}

#[test]
fn the_laws_hold_whatever_happens() {
    if let Some(seed) = number("SEED") {
        return run_alone(seed, world(seed, None));
    }
    run_all(|seed| world(seed, None), &SCENARIOS);
}

#[test]
fn the_laws_hold_when_a_server_with_a_database_dies() {
    if let Some(seed) = number("SEED") {
        return run_alone(seed, world_with_disk(seed));
    }
    let scenarios = [&SCENARIOS[..], &SCENARIOS_OF_A_DISK].concat();
    run_all(world_with_disk, &scenarios);
}

#[test]
fn the_laws_of_experiments_hold_whatever_dies() {
    if let Some(seed) = number("SEED") {
        return run_alone(seed, world_of_experiments(seed));
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS) / EXPERIMENTS_PART;
    run_seeds(
        world_of_experiments,
        seeds.max(EXPERIMENTS_LEAST),
        &SCENARIOS_OF_EXPERIMENTS,
    );
}

/// What the seeds are for: each of it must have happened in a run of [`ENOUGH_SEEDS`].
const SCENARIOS: [&str; 35] = [
    "agent cut off",
    "agent dropped the middle of a stream",
    "agent killed",
    "agent of the original started again",
    "agent paused > 45 s",
    "agent to drain",
    "agent to shut down",
    "agent to undrain",
    "agent told to drain or not to",
    "agent took a new instance",
    "both streams are longer than what is kept",
    "clock jumped back",
    "goodbye said",
    "group canceled",
    "group ended",
    "handed out with a report",
    "held poll answered late",
    "held poll dropped",
    "held poll ended by HUP",
    "hostile agent got work",
    "hostile goodbye",
    "hostile output",
    "hostile poll",
    "hostile results",
    "list accepted",
    "list refused",
    "machines suspended",
    "message delayed > 3 s",
    "notification taken, and not heard",
    "poll answered at once: too many are held",
    "suspension lifted",
    "tick every 100 ms",
    "told twice",
    "two agents with one instance",
    "wish refused",
];
/// The same of a server with a database.
const SCENARIOS_OF_A_DISK: [&str; 8] = [
    "canceled before its hand-out was sent",
    "clock jumped forwards",
    "commit refused",
    "crash after a commit that nobody heard of",
    "saved output replaced",
    "sender died with the server",
    "server crashed > 10 s",
    "server started with other limits",
];
/// What the seeds of experiments are for.
const SCENARIOS_OF_EXPERIMENTS: [&str; 27] = [
    "a poll took the place of a longer one",
    "agent and guard killed",
    "agent started where another one was",
    "agent waits for its guard",
    "answer to an older poll",
    "container killed",
    "dead man's switch",
    "debt forgiven",
    "debt handed out while its own agent lives",
    "debt handed to the next agent",
    "experiment canceled",
    "experiment forgotten",
    "experiment not started",
    "guard acts: agent gone",
    "guard acts: deadline",
    "guard acts: no contact",
    "guard did not acknowledge in time",
    "guard killed",
    "guard replaced",
    "guard stopped",
    "halt lifted",
    "not started after it was armed",
    "undo failed",
    "undo tried again",
    "undo waits for another one",
    "undo wanted again",
    "undone by its guard",
];
/// So many seeds reach every scenario.
const ENOUGH_SEEDS: u64 = 500;

fn run_all(world: impl Fn(u64) -> World + Sync, scenarios: &[&str]) {
    run_seeds(world, number("SIM_SEEDS").unwrap_or(SEEDS), scenarios);
}

fn run_seeds(world: impl Fn(u64) -> World + Sync, seeds: u64, scenarios: &[&str]) {
    let begin = Instant::now();
    let sum = match number("SIM_SECONDS") {
        Some(seconds) => {
            let end = begin + Duration::from_secs(seconds);
            run_worlds(|_| Instant::now() >= end, world)
        }
        None => run_worlds(|n| n >= seeds, world),
    };
    let Sum {
        seeds,
        steps,
        tally,
        failures,
    } = sum;
    println!(
        "{seeds} seeds, {steps} steps, {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    for (what, n) in &tally {
        println!("{n:>10} {what}");
    }
    for (seed, law) in &failures {
        println!("seed {seed}: {law}");
        println!("alone: SEED={seed} cargo test --test simulation -- --nocapture");
    }
    assert!(failures.is_empty(), "{} seeds failed", failures.len());
    for scenario in scenarios.iter().filter(|_| seeds >= ENOUGH_SEEDS) {
        assert!(tally.contains_key(scenario), "never: {scenario}");
    }
}

#[test]
fn it_finds_a_broken_rule() {
    let only = std::env::var("RULE").ok();
    // Those of `later.rs` and `per_machine.rs` have simulations of their own.
    let is_wanted = |rule: &Rule| {
        let is_chosen = only
            .as_ref()
            .is_none_or(|only| format!("{rule:?}") == *only);
        let has_own = later::RULES.contains(rule) || per_machine::RULES.contains(rule);
        is_chosen && !has_own
    };
    for rule in Rule::ALL.into_iter().filter(is_wanted) {
        let sum = run_many(|n| n >= BROKEN_SEEDS, Some(rule));
        assert!(
            !sum.failures.is_empty(),
            "{rule:?} is broken, and nobody noticed"
        );
        println!("{rule:?}: after {} seeds: {}", sum.seeds, sum.failures[0].1);
    }
}

#[test]
fn it_finds_a_broken_rule_of_the_agent() {
    for rule in AgentRule::ALL {
        let broken = |seed| {
            let mut world = world_of_experiments(seed);
            world.experiments.broken = Some(rule);
            world.crew.share = 0;
            // Agents that live on without their server: that is what the switch is for.
            world.weather.cut = 300;
            world.experiments.share = 900;
            world
        };
        let sum = run_worlds(|n| n >= BROKEN_SEEDS, broken);
        assert!(
            !sum.failures.is_empty(),
            "{rule:?} is broken, and nobody noticed"
        );
        let law = &sum.failures[0].1;
        println!("{rule:?}: after {} seeds: {law}", sum.seeds);
        // All that can go wrong without this rule is that the command starts.
        if rule == AgentRule::StopIsTold {
            assert!(law.starts_with("nothing_starts_after_a_stop"), "{law}");
        }
    }
}

#[test]
fn it_finds_answers_that_do_not_wait_for_the_disk() {
    let hasty = |seed| {
        let mut world = world_with_disk(seed);
        world.server.disk.as_mut().expect("it has one").hasty = true;
        world
    };
    let sum = run_worlds(|n| n >= 2_000, hasty);
    assert!(!sum.failures.is_empty(), "nobody noticed");
    println!("after {} seeds: {}", sum.seeds, sum.failures[0].1);
}

#[test]
fn it_finds_what_was_canceled_during_its_commit() {
    let broken = |seed| {
        let mut world = world(seed, Some(Rule::CanceledIsNotSent));
        world.give_disk();
        world
    };
    let sum = run_worlds(|n| n >= 2_000, broken);
    assert!(!sum.failures.is_empty(), "nobody noticed");
    println!("after {} seeds: {}", sum.seeds, sum.failures[0].1);
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    let once = || {
        let mut world = world(3, None);
        world.log = Some(Vec::new());
        let result = run(&mut world);
        (result, world.log, world.steps)
    };
    assert_eq!(once(), once());
}
