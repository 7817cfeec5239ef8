//! Single cases of undos that the simulation has found, without the weather.

use crate::messages;
use crate::server::LIMITS;
use crate::users::base_spec;
use serde_json::Map;
use sidebike::agent::undo::ledger::new_report;
use sidebike::core::{Core, MachineKey, Notice, Selection, TaskKey, Time};
use sidebike::wire::agent::{AttemptId, Done, Ended, Feature, Orders, Poll};
use sidebike::wire::duration::{TimeSpan, Timeout};
use sidebike::wire::task::{Detail, ExecutionState, Mode};
use sidebike::wire::undo::{Undo, UndoReport, UndoState};
use std::sync::Arc;

/// Two agents at one place, one after the other.
const OLD: &str = "0000000000000001";
const NEW: &str = "0000000000000002";

struct Case {
    core: Core,
    now: u64,
    seq: u64,
    /// Whose poll was the latest.
    machine: Option<MachineKey>,
}

impl Case {
    fn new() -> Self {
        let now = 1_700_000_000_000;
        Case {
            core: Core::new(LIMITS, Time(now)),
            now,
            seq: 0,
            machine: None,
        }
    }

    fn check(&self) {
        self.core.check_invariants().expect("the invariants hold");
    }

    /// Time passes, with ticks.
    fn later(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1_000;
            self.core.tick(Time(self.now));
            self.check();
        }
    }

    /// A poll; it is held if there is nothing to do.
    fn poll(
        &mut self,
        instance: &str,
        holds: &[AttemptId],
        undos: Vec<UndoReport>,
    ) -> Orders<Arc<Detail>> {
        self.seq += 1;
        let poll = Poll {
            jobs: 4,
            standing: true,
            undos,
            features: vec![Feature::Undo.word().into()],
            ..messages::poll(instance, self.seq, "web", holds)
        };
        let (machine, orders) =
            { self.core.poll(Time(self.now), &poll, None) }.expect("a good poll");
        self.machine = Some(machine);
        if orders.is_empty() {
            self.core.hold_poll(machine);
        }
        self.core.take_notices();
        self.check();
        orders
    }

    fn done(&mut self, instance: &str, results: Vec<Ended>, undos: Vec<UndoReport>) -> usize {
        let done = Done {
            seq: Some(self.seq),
            undos,
            ..messages::done(instance, results)
        };
        let taken = self.core.done_and_next(Time(self.now), &done);
        self.check();
        taken.start.len()
    }

    fn submit(&mut self, id: &str) -> TaskKey {
        let mut spec = base_spec(".*", Map::new());
        let mut detail = (*spec.detail).clone();
        detail.timeout = Some(Timeout::After(TimeSpan::from_secs(60)));
        detail.undo = Some(Box::new(Undo {
            command: Some("undo".into()),
            ..Undo::default()
        }));
        spec.detail = Arc::new(detail);
        spec.mode = Mode::All;
        let key = { self.core.submit(Time(self.now), id, spec) }.expect("a good task");
        self.check();
        key
    }

    /// A task whose command runs at the old agent, armed.
    fn started(&mut self) -> (TaskKey, AttemptId) {
        self.poll(OLD, &[], Vec::new());
        self.starts("t")
    }

    /// Another task that the old agent starts, once it is known.
    fn starts(&mut self, id: &str) -> (TaskKey, AttemptId) {
        let key = self.submit(id);
        let id = self.poll(OLD, &[], Vec::new()).start.remove(0).id;
        let armed = vec![report(&id, UndoState::Armed)];
        self.poll(OLD, std::slice::from_ref(&id), armed);
        (key, id)
    }

    fn state(&self, key: TaskKey) -> Option<UndoState> {
        let task = self.core.show(key).expect("a known task");
        task.execution_views().next()?.undo?.state
    }
}

fn report(id: &AttemptId, state: UndoState) -> UndoReport {
    new_report(id.clone(), state)
}

fn ended(id: &AttemptId) -> Ended {
    messages::ended(id, ExecutionState::Succeeded)
}

#[test]
fn a_late_report_of_a_machine_that_is_gone_does_not_arm_anything() {
    let mut case = Case::new();
    let (key, id) = case.started();
    case.later(60);
    assert_eq!(case.state(key), Some(UndoState::Owed));
    for state in [UndoState::Armed, UndoState::Running] {
        case.done(OLD, Vec::new(), vec![report(&id, state)]);
        assert_eq!(case.state(key), Some(UndoState::Owed));
    }
    // What has ended has ended.
    case.done(OLD, Vec::new(), vec![report(&id, UndoState::Done)]);
    assert_eq!(case.state(key), Some(UndoState::Done));
}

#[test]
fn a_task_is_kept_while_an_undo_of_it_runs_again() {
    let mut case = Case::new();
    let (key, id) = case.started();
    case.later(60);
    assert_eq!(case.poll(NEW, &[], Vec::new()).undo.len(), 1);
    assert_eq!(case.state(key), Some(UndoState::Running));
    assert!(case.core.delete(key).is_err());
    // For longer than a finished task is kept.
    let until = case.now + 3 * 24 * 3_600 * 1_000;
    while case.now < until {
        case.later(20);
        case.now += 600_000;
        case.poll(NEW, &[], vec![report(&id, UndoState::Running)]);
    }
    assert_eq!(case.state(key), Some(UndoState::Running));
    let mut done = report(&id, UndoState::Done);
    done.output = "output".into();
    case.done(NEW, Vec::new(), vec![done]);
    assert_eq!(case.core.delete(key), Ok(()));
}

#[test]
fn a_deleted_task_leaves_no_undo_behind() {
    let mut case = Case::new();
    let (key, id) = case.started();
    case.done(OLD, vec![ended(&id)], vec![report(&id, UndoState::Done)]);
    assert_eq!(case.core.undo_again(key, &Selection::All), Ok(()));
    assert_eq!(case.core.delete(key), Ok(()));
    case.check();
    assert!(case.poll(OLD, &[], Vec::new()).is_empty());
}

#[test]
fn a_debt_that_was_kept_for_long_enough_is_not_counted_any_more() {
    let mut case = Case::new();
    let (key, _) = case.started();
    case.later(60);
    assert_eq!(case.core.debts(), 1);
    case.now += 8 * 24 * 3_600 * 1_000;
    case.later(20);
    assert!(case.core.show(key).is_err());
    assert_eq!(case.core.debts(), 0);
}

#[test]
fn a_report_is_not_answered_with_work_before_a_debt() {
    let mut case = Case::new();
    let (key, id) = case.started();
    case.done(OLD, vec![ended(&id)], vec![report(&id, UndoState::Failed)]);
    let (next, id) = case.starts("u");
    assert_eq!(case.core.undo_again(key, &Selection::All), Ok(()));
    case.submit("v");
    let undone = vec![report(&id, UndoState::Done)];
    assert_eq!(case.done(OLD, vec![ended(&id)], undone), 0);
    assert!(case.core.is_finished(next));
    let orders = case.poll(OLD, &[], Vec::new());
    assert_eq!((orders.undo.len(), orders.start.len()), (1, 1));
}

#[test]
fn a_held_poll_is_answered_as_soon_as_there_is_a_debt() {
    let mut case = Case::new();
    let (key, _) = case.started();
    case.now += 1_000;
    assert!(case.poll(NEW, &[], Vec::new()).is_empty());
    let mut woken = false;
    for _ in 0..60 {
        case.now += 1_000;
        // The new one lives.
        case.core.output(Time(case.now), NEW, &[]);
        case.core.tick(Time(case.now));
        let notices = case.core.take_notices();
        woken |= notices.iter().any(|it| matches!(it, Notice::Wake(_)));
        if case.state(key) == Some(UndoState::Owed) {
            break;
        }
    }
    assert!(woken, "the undo waits for the next poll");
    assert!(case.core.check_work_conservation().is_ok());
}

#[test]
fn an_agent_that_was_heard_of_has_not_hung_up() {
    for is_heard in [true, false] {
        let mut case = Case::new();
        let (key, _) = case.started();
        case.now += 1_000;
        let old = case.machine.expect("it has polled");
        case.core.release_poll(old);
        if is_heard {
            case.core.output(Time(case.now), OLD, &[]);
        }
        case.now += 1_000;
        let orders = case.poll(NEW, &[], Vec::new());
        assert_eq!(orders.undo.is_empty(), is_heard);
        let expected = if is_heard {
            UndoState::Armed
        } else {
            UndoState::Running
        };
        assert_eq!(case.state(key), Some(expected));
    }
}
