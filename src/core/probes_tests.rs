//! Probes, pauses, stops, deaths and restarts in random order: the invariants hold after every operation, nothing is
//! handed out that must not be, and everything ends.

use super::*;
use crate::wire::agent::{AttemptId, Done, Ended, Goodbye, Hold, HoldState, Poll};
use crate::wire::probe::{ProbeOrder, ProbeResult, ProbeState};
use crate::wire::strict_object::Posted;
use crate::wire::task::{ExecutionState, PostedTask};
use crate::wire::undo::{UndoBy, UndoReport, UndoState};
use serde_json::json;

/// Scenes, in number; `PROBE_SEEDS=1000 cargo test --lib probes_tests` plays more.
const SEEDS: u64 = 25;
const STEPS: u32 = 250;

/// A generator that a seed decides: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

struct Agent {
    label: String,
    instance: String,
    seq: u64,
    held: Vec<AttemptId>,
    probes: Vec<ProbeOrder>,
}

struct Scene {
    core: Core,
    now: Time,
    random: Random,
    agents: Vec<Agent>,
    instances: u64,
    tasks: u64,
    saved: Saved,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let now = Time(1_000_000);
        let mut core = Core::new(Limits::NONE, now);
        core.record_changes();
        let mut scene = Scene {
            core,
            now,
            random: Random(seed * 2 + 1),
            agents: Vec::new(),
            instances: 0,
            tasks: 0,
            saved: Saved::default(),
        };
        for label in ["t-1", "t-2", "t-3", "probe-1", "probe-2"] {
            scene.instances += 1;
            scene.agents.push(Agent {
                label: label.into(),
                instance: format!("{:016x}", scene.instances),
                seq: 0,
                held: Vec::new(),
                probes: Vec::new(),
            });
            let n = scene.agents.len() - 1;
            scene.poll(n);
        }
        scene
    }

    fn check(&mut self) {
        self.core.take_notices();
        let batch = self.core.take_batch();
        self.saved.apply(self.now, &batch);
        self.core.check_invariants().unwrap();
    }

    fn submit(&mut self) {
        let r = &mut self.random;
        let probes: Vec<_> = (0..r.below(3))
            .map(|n| {
                let before = r.below(3) == 0;
                let on = match r.below(2) {
                    0 => json!("targets"),
                    _ => json!({"machinePattern": "."}),
                };
                json!({
                    "name": n.to_string(), "command": "x", "on": on, "before": before, "interval": 1 + r.below(3),
                    "timeout": 1 + r.below(3), "failures": 1 + r.below(3), "delay": r.below(3), "after": r.below(9),
                })
            })
            .collect();
        let mut posted = json!({
            "id": format!("task-{}", self.tasks), "machinePattern": "^t-[12]", "ttl": 5 + r.below(30), "probes": probes,
            "detail": {"command": "x", "timeout": 5},
            "retry": {"max": r.below(2), "on": ["failed", "lost"]},
        });
        if r.below(2) == 0 {
            posted["detail"]["undo"] = json!({"command": "y"});
        }
        match r.below(5) {
            0 => {
                posted["rollout"] =
                    json!({"concurrency": 1, "steps": [1, "100%"], "maxFailures": 1})
            }
            1 => posted["lateJoin"] = json!(true),
            2 => posted["mode"] = json!("any"),
            3 => posted["keepAlive"] = json!({"keep": 1, "pool": "^t"}),
            _ => {}
        }
        let Posted(posted): Posted<PostedTask> = serde_json::from_value(posted).unwrap();
        let texts = &Limits::NONE.texts;
        // Some of these cannot be meant.
        if let Ok(spec) = Spec::checked(posted, texts, |_| None) {
            let id = format!("fresh-{}", self.tasks);
            let _ = self.core.submit(self.now, &id, spec);
        }
        self.tasks += 1;
    }

    fn poll(&mut self, n: usize) {
        let lost = self.random.below(20) == 0;
        let agent = &mut self.agents[n];
        agent.seq += 1;
        let hold = |id: &AttemptId| Hold {
            id: id.clone(),
            state: HoldState::Running,
            started_ago_ms: 0,
            phase: None,
        };
        let poll = Poll {
            instance: agent.instance.clone(),
            seq: agent.seq,
            label: agent.label.clone(),
            host: agent.label.clone(),
            tags: Default::default(),
            version: String::new(),
            arch: String::new(),
            jobs: 2,
            draining: false,
            drained: false,
            ending: false,
            standing: false,
            wait: TimeSpan::default(),
            holds: agent.held.iter().map(hold).collect(),
            undos: Vec::new(),
            features: vec!["undo".into(), "probes".into()],
        };
        let before: Vec<TaskKey> = { self.core.tasks_by_key() }
            .filter(|(_, task)| task.is_gated() || task.is_stopped())
            .map(|(key, _)| key)
            .collect();
        let Ok((key, orders)) = self.core.poll(self.now, &poll, None) else {
            // Another one with this label has taken its place.
            return self.restart_agent(n);
        };
        for start in &orders.start {
            let task = self.core.task_of_execution(&start.id.execution).unwrap();
            assert!(!before.contains(&task), "{start:?} was handed out");
        }
        if self.random.below(2) == 0 && orders.is_empty() {
            self.core.hold_poll(key);
        }
        if lost {
            return;
        }
        let agent = &mut self.agents[n];
        agent
            .held
            .extend(orders.start.into_iter().map(|start| start.id));
        agent.probes.extend(orders.probe);
        let canceled: Vec<AttemptId> = orders.cancel;
        agent.held.retain(|id| !canceled.contains(id));
        for id in canceled {
            self.done(n, id, ExecutionState::Canceled);
        }
        for undo in orders.undo {
            let (execution, attempt) = (undo.execution, undo.attempt);
            self.undone(n, AttemptId { execution, attempt });
        }
    }

    fn undone(&mut self, n: usize, id: AttemptId) {
        let report = self.undo_report(id);
        let instance = self.agents[n].instance.clone();
        self.core.report_undos(self.now, &instance, &[report]);
    }

    fn undo_report(&mut self, id: AttemptId) -> UndoReport {
        let state = match self.random.below(4) {
            0 => UndoState::Failed,
            _ => UndoState::Done,
        };
        UndoReport {
            id,
            state,
            reason: None,
            by: UndoBy::Agent,
            tries: 1,
            exit_code: None,
            check_exit_code: None,
            msg: String::new(),
            output: "undone".into(),
            began_ago_ms: None,
            ended_ago_ms: None,
        }
    }

    fn done(&mut self, n: usize, id: AttemptId, state: ExecutionState) {
        let undo = self.undo_report(id.clone());
        let done = Done {
            instance: self.agents[n].instance.clone(),
            seq: None,
            pieces: Vec::new(),
            results: vec![Ended {
                id,
                state,
                exit_code: None,
                signal: None,
                msg: String::new(),
                ended_ago_ms: 0,
                duration_ms: Some(1),
                stdout_bytes: 0,
                stderr_bytes: 0,
                files: Vec::new(),
            }],
            undos: vec![undo],
            probes: Vec::new(),
        };
        self.core.done_and_next(self.now, &done);
    }

    fn probed(&mut self, n: usize) {
        let Some(order) = self.agents[n].probes.pop() else {
            return;
        };
        let ok = self.random.below(4) != 0;
        if self.random.below(5) == 0 {
            return;
        }
        let result = ProbeResult {
            id: order.id,
            ok,
            msg: "msg".into(),
            output: "x".repeat(self.random.below(9_000) as usize),
            duration_ms: self.random.below(10_000),
        };
        let done = Done {
            instance: self.agents[n].instance.clone(),
            seq: None,
            pieces: Vec::new(),
            results: Vec::new(),
            undos: Vec::new(),
            probes: vec![result.clone(), result],
        };
        self.core.done_and_next(self.now, &done);
    }

    fn restart_agent(&mut self, n: usize) {
        self.instances += 1;
        let agent = &mut self.agents[n];
        agent.instance = format!("{:016x}", self.instances);
        agent.seq = 0;
        agent.held.clear();
        agent.probes.clear();
    }

    fn restart_server(&mut self) {
        let mut saved = self.saved.clone();
        saved.last_alive = self.now;
        self.now.0 += self.random.below(20_000);
        self.core = Core::restored(Limits::NONE, self.now, saved).unwrap();
    }

    fn any_task(&mut self) -> Option<TaskKey> {
        let tasks: Vec<TaskKey> = self.core.tasks_by_key().map(|(key, _)| key).collect();
        let n = self.random.below(tasks.len().max(1) as u64) as usize;
        tasks.get(n).copied()
    }

    fn step(&mut self) {
        let n = self.random.below(self.agents.len() as u64) as usize;
        match self.random.below(26) {
            0 | 1 => self.submit(),
            2..8 => self.poll(n),
            8..12 => self.probed(n),
            12..14 => {
                if let Some(id) = self.agents[n].held.pop() {
                    let states = [ExecutionState::Succeeded, ExecutionState::Failed];
                    let state = states[self.random.below(2) as usize];
                    self.done(n, id, state);
                }
            }
            14 => {
                let holds = Vec::new();
                let instance = self.agents[n].instance.clone();
                self.core.leave(self.now, &Goodbye { instance, holds });
                self.restart_agent(n);
            }
            15 => self.restart_agent(n),
            16 if self.random.below(4) == 0 => self.restart_server(),
            17 => {
                if let Some(task) = self.any_task() {
                    let _ = match self.random.below(6) {
                        0 => self.core.cancel(self.now, task, &Selection::All),
                        1 => {
                            let on = Selection::Machine("t-1".into());
                            self.core.cancel(self.now, task, &on)
                        }
                        2 => self.core.stop(self.now, task, None),
                        3 => self.core.pause(self.now, task),
                        4 => self.core.resume(self.now, task),
                        _ => self.core.delete(task),
                    };
                }
            }
            18 => {
                if let Some(task) = self.any_task() {
                    let id = format!("fresh-{}", self.tasks);
                    let _ = self.core.rerun(self.now, &id, task, true);
                    self.tasks += 1;
                }
            }
            _ => {
                self.now.0 += self.random.below(900);
                self.core.tick(self.now);
            }
        }
        self.check();
    }

    /// Everything is resumed and reported from now on, until all has ended.
    fn finish(&mut self) {
        for _ in 0..400 {
            let keys: Vec<TaskKey> = self.core.tasks_by_key().map(|(key, _)| key).collect();
            for key in keys {
                let _ = self.core.resume(self.now, key);
            }
            for n in 0..self.agents.len() {
                self.poll(n);
                self.probed(n);
                while let Some(id) = self.agents[n].held.pop() {
                    self.done(n, id, ExecutionState::Succeeded);
                }
            }
            self.now.0 += 500;
            self.core.tick(self.now);
            self.check();
        }
        for (key, task) in self.core.tasks_by_key() {
            let open = { task.executions.iter() }.any(|e| !e.state.is_terminal());
            assert!(!open, "{key:?} has not ended: {:?}", task.state());
            for probe in task.answered_probes(true) {
                let unsettled = [
                    ProbeState::Before,
                    ProbeState::Running,
                    ProbeState::Recovering,
                ];
                let is_open = task.finished_at.is_none();
                assert!(is_open || !unsettled.contains(&probe.state), "{probe:?}");
            }
        }
    }
}

#[test]
fn whatever_happens_the_invariants_hold_and_everything_ends() {
    let mut stopped: u64 = 0;
    let seeds = std::env::var("PROBE_SEEDS").ok();
    let seeds = seeds.map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    for seed in 0..seeds {
        let result = std::panic::catch_unwind(|| {
            let mut scene = Scene::new(seed);
            for _ in 0..STEPS {
                scene.step();
            }
            scene.finish();
            let tasks = scene.core.tasks_by_key();
            let by_probe = tasks.filter(|(_, task)| {
                let by = task.stopped_by();
                by.is_some_and(|by| by.kind == crate::wire::rollout::StopKind::Probe)
            });
            by_probe.count() as u64
        });
        stopped += result.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(stopped >= seeds, "probes have stopped {stopped} tasks only");
}
