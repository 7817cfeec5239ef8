//! Shares of 1, 2, 3, 99, 100 and 101 machines, step by step on the core alone: every percentage of everything that
//! takes one. Each run is compared with a calculation that knows nothing of the core.

use crate::messages;
use crate::server::{LIMITS, TEXTS};
use crate::targets::PERCENTS;
use serde_json::{Value, json};
use sidebike::core::{Core, MachineKey, Notice, Refusal, Spec, TaskKey, Time};
use sidebike::wire::agent::{Assignment, AttemptId, Poll};
use sidebike::wire::duration::TimeSpan;
use sidebike::wire::task::{Detail, ExecutionState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const TOTALS: [u64; 6] = [1, 2, 3, 99, 100, 101];

/// How many machines a share may hit, and how many have to stay.
fn down(percent: u64, total: u64) -> u64 {
    (0..=total)
        .rev()
        .find(|n| n * 100 <= percent * total)
        .unwrap()
}

fn up(percent: u64, total: u64) -> u64 {
    (0..=total).find(|n| n * 100 >= percent * total).unwrap()
}

/// A registry with machines whose polls are held; what is handed out runs until it is reported.
struct Scene {
    core: Core,
    now: Time,
    tasks: u64,
    /// By instance: each has one place.
    running: BTreeMap<String, AttemptId>,
    /// In the order in which they were handed out.
    started: Vec<u32>,
    /// The most that ever ran at once.
    most: usize,
    names: BTreeMap<MachineKey, String>,
    seq: u64,
}

impl Scene {
    fn new(machines: u64) -> Scene {
        let now = Time(1_700_000_000_000);
        let mut scene = Scene {
            core: Core::new(LIMITS, now),
            now,
            tasks: 0,
            running: BTreeMap::new(),
            started: Vec::new(),
            most: 0,
            names: BTreeMap::new(),
            seq: 0,
        };
        for n in 0..machines {
            scene.poll(&format!("{n:08x}"));
        }
        scene
    }

    fn poll(&mut self, instance: &str) {
        self.seq += 1;
        assert!(!self.running.contains_key(instance), "it reports first");
        let poll = Poll {
            jobs: 1,
            standing: true,
            ..messages::poll(instance, self.seq, &format!("m-{instance}"), &[])
        };
        let (key, orders) = self.core.poll(self.now, &poll, None).unwrap();
        self.names.insert(key, instance.into());
        if orders.is_empty() {
            self.core.hold_poll(key);
        }
        self.start(key, orders.start);
        self.wake();
    }

    fn start(&mut self, key: MachineKey, start: Vec<Assignment<Arc<Detail>>>) {
        for job in start {
            let (_, n) = job.id.execution.rsplit_once('.').unwrap();
            self.started.push(n.parse().unwrap());
            self.running.insert(self.names[&key].clone(), job.id);
        }
        self.most = self.most.max(self.running.len());
    }

    fn wake(&mut self) {
        loop {
            let notices = self.core.take_notices();
            if notices.is_empty() {
                return;
            }
            for notice in notices {
                if let Notice::Wake(key) = notice {
                    let orders = self.core.collect(self.now, key);
                    self.start(key, orders.start);
                }
            }
        }
    }

    fn submit(&mut self, mut fields: Value) -> Result<TaskKey, Refusal> {
        fields["machinePattern"] = ".*".into();
        fields["detail"] = json!({"command": "x", "timeout": 100});
        let spec = Spec::checked(serde_json::from_value(fields).unwrap(), &TEXTS, |_| None);
        self.tasks += 1;
        let id = format!("t{}", self.tasks);
        let task = self.core.submit(self.now, &id, spec.unwrap())?;
        self.wake();
        Ok(task)
    }

    /// One of those that run ends; its machine polls again.
    fn end(&mut self, instance: &str, state: ExecutionState) {
        let id = self.running.remove(instance).unwrap();
        let done = messages::done(instance, vec![messages::ended(&id, state)]);
        let taken = self.core.done_and_next(self.now, &done);
        assert!(taken.results[0].taken);
        self.wake();
        self.poll(instance);
    }

    /// All that run now end, in this state.
    fn end_all(&mut self, state: ExecutionState) {
        let running: Vec<String> = self.running.keys().cloned().collect();
        for instance in running {
            self.end(&instance, state);
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.plus(TimeSpan::from_secs(seconds));
        self.core.tick(self.now);
        self.wake();
    }

    fn count(&self, key: TaskKey, state: ExecutionState) -> u64 {
        let task = self.core.show(key).unwrap();
        let same = task.execution_views().filter(|e| e.state == state);
        same.count() as u64
    }

    /// Lets a few milliseconds pass, until this is reached.
    fn pass_all(&mut self, is_reached: impl Fn(&Scene) -> bool) {
        self.core.check_invariants().unwrap();
        for _ in 0..20 {
            if is_reached(self) {
                return;
            }
            self.now.0 += 1;
            self.core.tick(self.now);
            self.wake();
            self.core.check_invariants().unwrap();
        }
        panic!("it is not reached");
    }

    /// The task has ended, and each machine had it once.
    fn check_all_ran(&self, key: TaskKey, total: u64) {
        assert!(self.core.is_finished(key));
        assert_eq!(self.count(key, ExecutionState::Succeeded), total);
        let each: BTreeSet<u32> = self.started.iter().copied().collect();
        assert_eq!(
            (each.len(), self.started.len()),
            (total as usize, total as usize)
        );
        self.core.check_invariants().unwrap();
    }
}

fn for_each_share(mut check: impl FnMut(u64, u64)) {
    for total in TOTALS {
        for percent in PERCENTS {
            check(total, percent);
        }
    }
}

#[test]
fn the_window_is_a_share_of_all_rounded_up() {
    for_each_share(|total, percent| {
        let mut scene = Scene::new(total);
        let rollout = json!({"concurrency": format!("{percent}%")});
        let key = scene.submit(json!({ "rollout": rollout })).unwrap();
        while !scene.running.is_empty() {
            // The window slides: each end is followed by the next start.
            let instance = scene.running.keys().next().unwrap().clone();
            scene.end(&instance, ExecutionState::Succeeded);
        }
        assert_eq!(
            scene.most as u64,
            up(percent, total),
            "{percent} % of {total}"
        );
        scene.check_all_ran(key, total);
    });
}

#[test]
fn a_step_is_a_share_of_all_rounded_down_but_adds_one() {
    for_each_share(|total, percent| {
        let mut scene = Scene::new(total);
        let rollout = json!({"steps": [1, format!("{percent}%")], "pause": "approve"});
        let key = scene.submit(json!({ "rollout": rollout })).unwrap();
        let mut sizes = Vec::new();
        while !scene.core.is_finished(key) {
            sizes.push(scene.started.len() as u64);
            scene.end_all(ExecutionState::Succeeded);
            scene.core.check_invariants().unwrap();
            let before = scene.started.len();
            scene.pass(5);
            assert_eq!(scene.started.len(), before, "nobody has approved");
            let _ = scene.core.resume(scene.now, key);
            scene.wake();
        }
        // The last step is everything.
        let expected = if total == 1 { vec![1] } else { vec![1, total] };
        assert_eq!(sizes, expected, "{percent} % of {total}");
        scene.check_all_ran(key, total);

        if percent == 100 {
            // Nothing can follow everything.
            return;
        }
        let mut scene = Scene::new(total);
        let rollout = json!({"steps": [format!("{percent}%"), 1, "100%"], "pause": "10s"});
        let key = scene.submit(json!({ "rollout": rollout })).unwrap();
        let mut sizes = Vec::new();
        while !scene.core.is_finished(key) {
            sizes.push(scene.started.len() as u64);
            scene.end_all(ExecutionState::Succeeded);
            let before = scene.started.len();
            for _ in 0..9 {
                scene.pass(1);
            }
            assert_eq!(scene.started.len(), before, "the pause is not over");
            scene.pass(1);
        }
        let mut expected = vec![down(percent, total).max(1)];
        for more in [expected[0] + 1, total] {
            let last = *expected.last().unwrap();
            if last < total {
                expected.push(more);
            }
        }
        assert_eq!(sizes, expected, "{percent} % of {total}");
        scene.check_all_ran(key, total);
    });
}

#[test]
fn it_stops_when_more_have_failed_than_the_share_rounded_down() {
    for_each_share(|total, percent| {
        let mut scene = Scene::new(total);
        let rollout = json!({"concurrency": 1, "maxFailures": format!("{percent}%")});
        let key = scene.submit(json!({ "rollout": rollout })).unwrap();
        while !scene.core.is_finished(key) {
            scene.end_all(ExecutionState::Failed);
        }
        let failed = (down(percent, total) + 1).min(total);
        assert_eq!(scene.started.len() as u64, failed, "{percent} % of {total}");
        assert_eq!(scene.count(key, ExecutionState::Failed), failed);
        assert_eq!(scene.count(key, ExecutionState::Skipped), total - failed);
        scene.core.check_invariants().unwrap();
    });
}

#[test]
fn failures_of_one_moment_and_of_a_whole_step_stop_it_once() {
    for total in TOTALS.into_iter().filter(|total| *total > 1) {
        let mut scene = Scene::new(total);
        let rollout = json!({"steps": ["50%"], "stopRunning": true});
        let key = scene.submit(json!({ "rollout": rollout })).unwrap();
        let begun = scene.started.len() as u64;
        scene.end_all(ExecutionState::Failed);
        assert!(scene.core.is_finished(key));
        assert_eq!(scene.started.len() as u64, begun);
        assert_eq!(scene.count(key, ExecutionState::Skipped), total - begun);
        scene.core.check_invariants().unwrap();
    }
}

#[test]
fn at_most_the_share_rounded_down_are_targets() {
    for_each_share(|total, percent| {
        let mut scene = Scene::new(total);
        let most = format!("{percent}%");
        let accepted = scene.submit(json!({"maxTargets": most}));
        let number = down(percent, total);
        assert_eq!(accepted.is_ok(), number > 0, "{percent} % of {total}");
        assert_eq!(scene.started.len() as u64, number, "{percent} % of {total}");
        scene.core.check_invariants().unwrap();
    });
}

#[test]
fn the_share_rounded_up_stays_however_many_tasks_come() {
    for_each_share(|total, percent| {
        let mut scene = Scene::new(total);
        let keep = format!("{percent}%");
        let may_be_hit = total - up(percent, total);
        let mut accepted = 0;
        for _ in 0..=total {
            let one = json!({"keepAlive": keep, "maxTargets": 1});
            // Chosen at random among all: one that is a target already takes nothing away.
            accepted += u64::from(scene.submit(one).is_ok());
        }
        let touched = scene.running.keys().collect::<BTreeSet<_>>().len() as u64;
        assert!(touched <= may_be_hit, "{percent} % of {total}: {touched}");
        assert_eq!(accepted == 0, may_be_hit == 0, "{percent} % of {total}");
        // All of them at once is too many, unless none has to stay.
        let mut scene = Scene::new(total);
        assert!(scene.submit(json!({"keepAlive": keep})).is_err());
        let most = json!({"keepAlive": keep, "maxTargets": may_be_hit.max(1)});
        assert_eq!(scene.submit(most.clone()).is_ok(), may_be_hit > 0);
        // All that may be hit are, until they have ended.
        let one = json!({"keepAlive": keep, "maxTargets": total.div_ceil(2).max(1)});
        let again = scene.submit(one).is_ok();
        assert!(!again || total.div_ceil(2) <= may_be_hit);
        while !scene.running.is_empty() {
            scene.end_all(ExecutionState::Succeeded);
        }
        assert_eq!(scene.submit(most).is_ok(), may_be_hit > 0);
        scene.core.check_invariants().unwrap();
    });
}

#[test]
fn what_one_call_does_is_bounded_and_the_rest_follows() {
    const MACHINES: u64 = 1_101;
    let mut scene = Scene::new(MACHINES);
    let key = scene.submit(json!({"rollout": {}})).unwrap();
    let at_once = scene.started.len() as u64;
    assert!((100..MACHINES).contains(&at_once), "{at_once}");
    scene.pass_all(|scene| scene.started.len() as u64 == MACHINES);
    scene.end_all(ExecutionState::Succeeded);
    scene.check_all_ran(key, MACHINES);

    // Paused and resumed, with everything still in the queues.
    let running = scene.submit(json!({})).unwrap();
    let key = scene.submit(json!({"ttl": 60})).unwrap();
    scene.core.pause(scene.now, key).unwrap();
    scene.pass_all(|scene| scene.count(key, ExecutionState::Held) == MACHINES);
    scene.core.resume(scene.now, key).unwrap();
    scene.pass_all(|scene| scene.count(key, ExecutionState::Queued) == MACHINES);
    scene.core.stop(scene.now, key, None).unwrap();
    // What the stop has not reached yet is not handed out either.
    let before = scene.started.len();
    scene.core.stop(scene.now, running, None).unwrap();
    scene.end_all(ExecutionState::Succeeded);
    assert_eq!(scene.started.len(), before);
    scene.pass_all(|scene| scene.core.is_finished(key));
    assert_eq!(scene.count(key, ExecutionState::Skipped), MACHINES);
    assert_eq!(scene.count(running, ExecutionState::Succeeded), MACHINES);
}

#[test]
fn what_a_pause_held_back_expires_with_its_task() {
    const MACHINES: u64 = 601;
    let mut scene = Scene::new(MACHINES);
    scene.submit(json!({})).unwrap();
    let key = scene.submit(json!({"ttl": 5})).unwrap();
    scene.now.0 += 4_999;
    scene.core.tick(scene.now);
    scene.core.pause(scene.now, key).unwrap();
    scene.pass_all(|scene| scene.count(key, ExecutionState::Held) == MACHINES);
    scene.core.resume(scene.now, key).unwrap();
    // Only a part of them is in the queues when the time is over.
    scene.pass_all(|scene| scene.core.is_finished(key));
    assert_eq!(scene.count(key, ExecutionState::Expired), MACHINES);
}

#[test]
fn a_fleet_that_is_half_offline_does_not_shrink_its_floor() {
    for total in TOTALS.into_iter().filter(|total| *total > 1) {
        let mut scene = Scene::new(total);
        let stays = total.div_ceil(2);
        // The others are not heard of any more. (Longer steps would be a pause of the server.)
        for _ in 0..13 {
            for n in 0..stays {
                scene.poll(&format!("{n:08x}"));
            }
            scene.pass(4);
        }
        let one = json!({"keepAlive": "50%", "maxTargets": 1});
        assert!(scene.submit(one).is_err(), "{total}: half of them are left");
        assert!(scene.started.is_empty());
    }
}
