//! The seeds.

use super::{Broken, Lawful, Scene};
use crate::{THREADS, caught, first_seed, number, seeds};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const SEEDS: u64 = 100;
/// A seed takes longer than one of other scenes: there is one for so many others.
const PART: u64 = 2;
const BROKEN_SEEDS: u64 = 2_000;
/// So many seeds reach every scenario.
const ENOUGH_SEEDS: u64 = 200;
const SCENARIOS: [&str; 44] = [
    "a call arrived that was given up",
    "a cancel was acknowledged",
    "a database was healed",
    "a frozen leader was replaced",
    "a loss was found",
    "a leader looked because of a higher term",
    "a leader resigned",
    "a leader was fenced",
    "a leader was mute",
    "a paused leader was replaced",
    "a request arrived that was given up",
    "a result waited for its machine",
    "a seen write was lost",
    "a take was too late",
    "a task was acknowledged",
    "a wait for the standby was canceled",
    "agent killed",
    "an answer of a lower term was ignored",
    "an older copy was put back",
    "an outage > 60 s",
    "another led before a loss",
    "answer late > 7 s",
    "clean end alone",
    "command canceled",
    "command started",
    "cut off",
    "cut off from agents",
    "frozen with its clock",
    "killed",
    "leader told to end",
    "loss alone",
    "loss with the leader",
    "machine went offline",
    "outage alone",
    "own take seen, answer lost",
    "paused > 10 s",
    "result not taken",
    "standby of the database stalled",
    "standby stopped during an outage",
    "submit withdrawn",
    "task canceled",
    "task submitted",
    "tasks were read",
    "what had left no trace started again",
];

type Tally = BTreeMap<&'static str, u64>;

/// Runs seeds on all threads until one fails. Returns the first that was found, what it says, and how often what happened.
fn run_all(seeds: Range<u64>, broken: Option<Broken>) -> (Option<(u64, String)>, Tally) {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new((None, Tally::new()));
    let is_alone = seeds.end - seeds.start == 1;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || sum.lock().unwrap().0.is_some() {
                        return;
                    }
                    let mut scene = Scene::new(seed, broken);
                    scene.log = is_alone.then(Vec::new);
                    let result = caught(|| scene.run());
                    scene
                        .log
                        .iter()
                        .flatten()
                        .for_each(|line| println!("{line}"));
                    let mut sum = sum.lock().unwrap();
                    for (what, n) in scene.tally {
                        *sum.1.entry(what).or_default() += n;
                    }
                    if let Err(law) = result {
                        sum.0 = Some((seed, law));
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

#[test]
fn the_laws_hold_over_all_nodes() {
    let seeds = seeds(SEEDS * PART);
    let seeds = match number("SEED") {
        Some(_) => seeds,
        None => seeds.start..seeds.start + (seeds.end - seeds.start) / PART,
    };
    let count = seeds.end - seeds.start;
    let (failed, tally) = run_all(seeds, None);
    for (what, n) in &tally {
        println!("{n:>10} {what}");
    }
    if let Some((seed, law)) = failed {
        panic!("seed {seed}: {law}; alone: SEED={seed} cargo test --test simulation nodes");
    }
    for scenario in SCENARIOS.iter().filter(|_| count >= ENOUGH_SEEDS) {
        assert!(tally.contains_key(scenario), "never: {scenario}");
    }
}

#[test]
fn it_finds_a_broken_rule_of_nodes() {
    let only = std::env::var("RULE").ok();
    let is_wanted = |rule: &Broken| {
        let name = format!("{rule:?}");
        only.as_ref().is_none_or(|only| *only == name)
    };
    for rule in Broken::ALL.into_iter().filter(is_wanted) {
        let first = first_seed();
        let (found, _) = run_all(first..first + BROKEN_SEEDS, Some(rule));
        let Some((seed, law)) = found else {
            panic!("{rule:?} is broken, and nobody noticed");
        };
        println!("{rule:?}: after {} seeds: {law}", seed - first + 1);
    }
}

#[test]
fn a_seed_gives_the_same_run_of_nodes_each_time() {
    let once = || -> (Lawful, _, _) {
        let mut scene = Scene::new(3, None);
        scene.log = Some(Vec::new());
        let result = scene.run();
        (result, scene.log, scene.tally)
    };
    assert_eq!(once(), once());
}
