//! Agents that can do less than ours, step by step. The original's: what their machine is handed after a cancel, after a
//! restart, and when one of ours takes its label. Older ones of ours: what goes to another machine instead.

use crate::messages;
use crate::server::{LIMITS, TEXTS};
use sidebike::core::{Core, Link, MachineKey, Selection, Spec, TaskKey, Time};
use sidebike::wire::agent::{AttemptId, Ended, Feature, Orders, Piece, Poll, Stream, Verdict};
use sidebike::wire::duration::TimeSpan;
use sidebike::wire::machine::MachineState;
use sidebike::wire::task::{Detail, ExecutionState, PostedTask};
use std::sync::Arc;

const LABEL: &str = "old-0";

/// A registry, the time, and the connections of its agents.
struct Scene {
    core: Core,
    now: Time,
    tasks: u64,
    polls: u64,
    /// By connection: calls made over it.
    calls: [u64; 4],
}

impl Scene {
    fn new() -> Scene {
        let now = Time(1_700_000_000_000);
        Scene {
            core: Core::new(LIMITS, now),
            now,
            tasks: 0,
            polls: 0,
            calls: [0; 4],
        }
    }

    fn submit(&mut self, json: &str) -> TaskKey {
        let posted: PostedTask = serde_json::from_str(json).unwrap();
        let spec = Spec::checked(posted, &TEXTS, |_| None).unwrap();
        self.tasks += 1;
        let id = format!("t{}", self.tasks);
        self.core.submit(self.now, &id, spec).unwrap()
    }

    /// A task for the machine alone.
    fn task(&mut self) -> TaskKey {
        self.submit(r#"{"machinePattern":"^old-0$","detail":{"command":"x","timeout":100}}"#)
    }

    fn link(&mut self, connection: u64) -> Option<Link> {
        let calls = &mut self.calls[connection as usize];
        *calls += 1;
        let is_new = *calls == 1;
        Some(Link { connection, is_new })
    }

    fn ping(&mut self, connection: u64) -> bool {
        let link = self.link(connection);
        let work = self.core.ping_of_original(self.now, LABEL, link).unwrap();
        self.check();
        work
    }

    fn fetch(&mut self, connection: u64) -> Option<AttemptId> {
        let link = self.link(connection);
        let orders = self.core.fetch_of_original(self.now, LABEL, link).unwrap();
        self.check();
        orders.start.into_iter().next().map(|job| job.id)
    }

    fn done(&mut self, connection: u64, id: &AttemptId) -> Verdict {
        let link = self.link(connection);
        let piece = Piece {
            id: id.clone(),
            stream: Stream::Stdout,
            offset: 0,
            data: Vec::new(),
        };
        let ended = Ended {
            duration_ms: None,
            ..messages::ended(id, ExecutionState::Succeeded)
        };
        let now = self.now;
        let verdict = self
            .core
            .done_of_original(now, LABEL, link, piece, &ended)
            .unwrap();
        self.check();
        verdict
    }

    fn state(&self, key: TaskKey) -> ExecutionState {
        let task = self.core.show(key).unwrap();
        task.execution_views().next().unwrap().state
    }

    fn msg(&self, key: TaskKey) -> String {
        let task = self.core.show(key).unwrap();
        task.execution_views().next().unwrap().msg.to_owned()
    }

    fn poll(&mut self, instance: &str, label: &str) -> usize {
        self.poll_with(instance, label, &[]).1.start.len()
    }

    /// A poll of one of our agents that can do these things beyond the first version.
    fn poll_with(
        &mut self,
        instance: &str,
        label: &str,
        features: &[Feature],
    ) -> (MachineKey, Orders<Arc<Detail>>) {
        self.polls += 1;
        let poll = Poll {
            jobs: 4,
            standing: true,
            features: { features.iter() }
                .map(|feature| feature.word().into())
                .collect(),
            ..messages::poll(instance, self.polls, label, &[])
        };
        let answer = self.core.poll(self.now, &poll, None).unwrap();
        self.check();
        answer
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.plus(TimeSpan::from_secs(seconds));
        self.core.tick(self.now);
        self.check();
    }

    fn check(&self) {
        self.core.check_invariants().unwrap();
    }
}

#[test]
fn a_canceled_task_keeps_its_place_until_it_is_reported_or_overdue() {
    for is_reported in [true, false] {
        let mut scene = Scene::new();
        scene.ping(0);
        let first = scene.task();
        let id = scene.fetch(0).unwrap();
        let cancel = scene.core.cancel(scene.now, first, &Selection::All);
        assert_eq!(cancel, Ok(()));
        assert_eq!(scene.state(first), ExecutionState::Canceled);
        assert_eq!(
            scene.core.delete(first),
            Ok(()),
            "the place outlives the task"
        );
        let next = scene.task();
        assert!(!scene.ping(0), "its command runs on");
        assert_eq!(scene.fetch(0), None);
        assert_eq!(
            scene.core.list_machines(None, None, None).0[0]
                .answer()
                .running,
            1
        );
        if is_reported {
            assert!(!scene.done(0, &id).taken);
        } else {
            for _ in 0..17 {
                scene.pass(10);
                scene.ping(0);
            }
        }
        assert!(scene.ping(0));
        assert!(scene.fetch(0).is_some());
        assert_eq!(scene.state(next), ExecutionState::Delivered);
    }
}

#[test]
fn an_agent_that_was_started_again_is_handed_the_next_task() {
    let mut scene = Scene::new();
    scene.ping(0);
    let first = scene.task();
    scene.fetch(0).unwrap();
    let second = scene.task();
    assert!(!scene.ping(0), "the same process is busy");
    assert!(scene.ping(1), "another process runs nothing");
    let id = scene.fetch(1).unwrap();
    assert!(!scene.ping(1));
    assert_eq!(scene.state(first), ExecutionState::Delivered);
    assert!(scene.done(1, &id).taken);
    assert_eq!(scene.state(second), ExecutionState::Succeeded);
    assert_eq!(scene.state(first), ExecutionState::Lost);
}

#[test]
fn what_a_process_has_is_lost_when_two_others_came_after_it() {
    let mut scene = Scene::new();
    scene.ping(0);
    let first = scene.task();
    scene.fetch(0).unwrap();
    scene.task();
    scene.task();
    for connection in [1, 2] {
        assert!(scene.ping(connection));
        assert!(scene.fetch(connection).is_some());
        assert!(!scene.ping(connection));
    }
    assert_eq!(scene.state(first), ExecutionState::Lost);
}

#[test]
fn a_connection_that_was_broken_is_no_restart() {
    let mut scene = Scene::new();
    scene.ping(0);
    let first = scene.task();
    let id = scene.fetch(0).unwrap();
    scene.ping(1);
    assert!(scene.done(1, &id).taken, "it ran on");
    assert_eq!(scene.state(first), ExecutionState::Succeeded);

    // Two processes with one label: the first one still pings, so it has what it was handed.
    let mut scene = Scene::new();
    scene.ping(0);
    let first = scene.task();
    let id = scene.fetch(0).unwrap();
    let second = scene.task();
    assert!(scene.ping(1));
    let other = scene.fetch(1).unwrap();
    scene.ping(0);
    assert!(scene.done(1, &other).taken && scene.done(0, &id).taken);
    assert_eq!(
        (scene.state(first), scene.state(second)),
        (ExecutionState::Succeeded, ExecutionState::Succeeded)
    );
}

#[test]
fn an_agent_that_uses_a_connection_once_tells_nothing_by_another_one() {
    let mut scene = Scene::new();
    scene.ping(0);
    let first = scene.task();
    let id = scene.fetch(1).unwrap();
    scene.task();
    assert!(
        !scene.ping(2),
        "a proxy may open a connection for each call"
    );
    assert!(scene.done(3, &id).taken);
    assert_eq!(scene.state(first), ExecutionState::Succeeded);
}

#[test]
fn what_it_cannot_express_waits_for_one_of_ours() {
    let mut scene = Scene::new();
    scene.ping(0);
    let any = |detail: &str| format!(r#"{{"machinePattern":"0$","mode":"any","detail":{detail}}}"#);
    let beyond = scene.submit(&any(r#"{"argv":["x"]}"#));
    let within = scene.submit(&any(r#"{"command":"x","env":{},"stdin":""}"#));
    assert!(
        scene.msg(beyond).starts_with("detail.argv: waits"),
        "{}",
        scene.msg(beyond)
    );
    assert!(scene.ping(0));
    let id = scene.fetch(0).unwrap();
    scene.done(0, &id);
    assert_eq!(scene.state(within), ExecutionState::Succeeded);
    assert!(!scene.ping(0), "the other one is not for it");
    assert_eq!(scene.state(beyond), ExecutionState::Queued);
    assert_eq!(scene.poll("aaaaaaaa", "new-0"), 1);
    assert_eq!(
        (scene.state(beyond), &*scene.msg(beyond)),
        (ExecutionState::Delivered, "")
    );
}

#[test]
fn what_waits_is_told_why_when_a_machine_appears_that_cannot_do_it() {
    let mut scene = Scene::new();
    let any = r#"{"machinePattern":"0$","mode":"any","detail":{"argv":["x"]}}"#;
    let beyond = scene.submit(any);
    assert_eq!(scene.msg(beyond), "");
    assert!(!scene.ping(0));
    assert!(
        scene.msg(beyond).starts_with("detail.argv: waits"),
        "{}",
        scene.msg(beyond)
    );
}

#[test]
fn the_machine_is_gone_when_one_of_ours_takes_its_label() {
    let mut scene = Scene::new();
    scene.ping(0);
    let running = scene.task();
    scene.fetch(0).unwrap();
    let waiting = scene.task();
    scene.poll("aaaaaaaa", "other");
    assert_eq!(scene.core.list_machines(Some(LABEL), None, None).0.len(), 1);
    scene.poll("bbbbbbbb", LABEL);
    let machines = scene.core.list_machines(Some(LABEL), None, None).0;
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0].answer().instance, "bbbbbbbb");
    for task in [running, waiting] {
        assert_eq!(scene.state(task), ExecutionState::Lost);
    }
    let broadcast = scene.task();
    let task = scene.core.show(broadcast).unwrap();
    assert_eq!(task.execution_views().count(), 1);
}

const USER_OR_SCRIPT: [Feature; 2] = [Feature::User, Feature::Script];
const ANY_WITH_USER: &str =
    r#"{"machinePattern":"web","mode":"any","detail":{"command":"x","user":"nobody"}}"#;
const ANY_PLAIN: &str = r#"{"machinePattern":"web","mode":"any","detail":{"command":"x"}}"#;

#[test]
fn what_an_older_agent_cannot_do_waits_for_a_newer_one() {
    let mut scene = Scene::new();
    let (older, _) = scene.poll_with("aaaaaaaa", "web-0", &[Feature::Script]);
    scene.core.hold_poll(older);
    let beyond = scene.submit(ANY_WITH_USER);
    let within = scene.submit(ANY_PLAIN);
    let says = "detail.user: waits for a machine whose agent can do it; ";
    assert!(scene.msg(beyond).starts_with(says), "{}", scene.msg(beyond));
    assert_eq!(scene.msg(within), "");
    let handed_out = scene.core.collect(scene.now, older).start;
    scene.check();
    assert_eq!(handed_out.len(), 1, "the younger one, which it can run");
    assert_eq!(scene.state(within), ExecutionState::Delivered);
    assert_eq!(scene.state(beyond), ExecutionState::Queued);
    assert!(!scene.core.has_work_for(older));

    let (_, orders) = scene.poll_with("bbbbbbbb", "web-1", &USER_OR_SCRIPT);
    assert_eq!(orders.start.len(), 1);
    assert_eq!(
        (scene.state(beyond), &*scene.msg(beyond)),
        (ExecutionState::Delivered, "")
    );
}

#[test]
fn a_newer_agent_takes_it_though_an_older_one_has_waited_longer() {
    let mut scene = Scene::new();
    let (older, _) = scene.poll_with("aaaaaaaa", "web-0", &[]);
    scene.core.hold_poll(older);
    let (newer, _) = scene.poll_with("bbbbbbbb", "web-1", &USER_OR_SCRIPT);
    scene.core.hold_poll(newer);
    let task = scene.submit(ANY_WITH_USER);
    assert_eq!(scene.core.collect(scene.now, older).start.len(), 0);
    assert_eq!(scene.core.collect(scene.now, newer).start.len(), 1);
    assert_eq!(scene.state(task), ExecutionState::Delivered);
}

#[test]
fn what_was_offered_to_an_agent_that_now_can_do_less_goes_to_another() {
    let mut scene = Scene::new();
    let (first, _) = scene.poll_with("aaaaaaaa", "web-0", &USER_OR_SCRIPT);
    scene.core.hold_poll(first);
    let (second, _) = scene.poll_with("bbbbbbbb", "web-1", &USER_OR_SCRIPT);
    scene.core.hold_poll(second);
    let task = scene.submit(ANY_WITH_USER);
    let (_, orders) = scene.poll_with("aaaaaaaa", "web-0", &[]);
    assert_eq!(orders.start.len(), 0);
    assert_eq!(scene.core.collect(scene.now, second).start.len(), 1);
    assert_eq!(scene.state(task), ExecutionState::Delivered);
}

#[test]
fn every_machine_means_also_those_that_cannot_and_says_so() {
    let mut scene = Scene::new();
    let (older, _) = scene.poll_with("aaaaaaaa", "web-0", &[]);
    scene.core.hold_poll(older);
    let all = r#"{"machinePattern":"web","detail":{"command":"x","user":"nobody"}}"#;
    let task = scene.submit(all);
    assert_eq!(scene.core.collect(scene.now, older).start.len(), 0);
    assert_eq!(scene.state(task), ExecutionState::Failed);
    assert!(
        scene
            .msg(task)
            .starts_with("detail.user: the agent on this machine"),
        "{}",
        scene.msg(task)
    );
}

#[test]
fn what_waits_is_told_why_when_the_last_machine_that_can_do_it_goes() {
    let mut scene = Scene::new();
    scene.poll_with("aaaaaaaa", "web-0", &[]);
    let (newer, _) = scene.poll_with("bbbbbbbb", "web-1", &USER_OR_SCRIPT);
    for _ in 0..4 {
        scene.submit(ANY_WITH_USER);
    }
    scene.core.hold_poll(newer);
    let last = scene.submit(ANY_WITH_USER);
    assert_eq!(scene.msg(last), "");
    for _ in 0..12 {
        scene.pass(4);
        scene.poll_with("aaaaaaaa", "web-0", &[]);
    }
    assert_eq!(
        scene.core.list_machines(Some("web-1"), None, None).0[0].state,
        MachineState::Offline
    );
    assert!(
        scene
            .msg(last)
            .starts_with("detail.user: waits for a machine"),
        "{}",
        scene.msg(last)
    );
}
