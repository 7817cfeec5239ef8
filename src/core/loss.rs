//! The database has lost commits that were acknowledged, and this leader has loaded what was left.
//!
//! An attempt whose hand-out was lost is queued again here, and runs on its machine all the same. So two things are
//! different for [`CAUTION`] after a loss was found:
//!
//! - Nothing that any machine may run is handed out: another machine may run it already. What is for one machine goes on:
//!   its agent does not start an attempt twice.
//! - What an agent says that it holds is *adopted*: it becomes what was handed to its machine, as it was before the loss.
//!   It is not killed, and its result is taken.
//!
//! The agents themselves are the witnesses: each answer says how far the commits had come, and each call of an agent says
//! the last that it has seen. Whoever was handed something by a lost commit has seen that commit, so the call that
//! reports it proves the loss as well.
//!
//! What nobody holds any more leaves no trace: a command that has ended and was reported before the loss may start again.

use super::invariants::Rule;
use super::lifecycle::Event;
use super::machine::OFFLINE_AFTER;
use super::task::{Attempt, Place};
use super::timers::Timer;
use super::{Core, ExecutionKey, MachineKey, Time};
use crate::wire::agent::AttemptId;
use crate::wire::duration::TimeSpan;
use crate::wire::task::ExecutionState;
use crate::wire::term::{Position, Term};
use std::collections::BTreeMap;

/// How long a leader is cautious after a loss was found. An agent polls every 20 s while it runs something; whoever has not
/// been heard of for this time is offline, and what it runs counts as lost anyway.
pub const CAUTION: TimeSpan = OFFLINE_AFTER;

/// After a loss, so many answers that hand out the same attempt are taken for lost. Then its agent is believed to have run it:
/// an agent does not start an attempt twice, but it does not say so, and would be handed it again and again.
const MAX_RETURNED: u32 = 3;

/// The message of an attempt of which the end was lost.
const END_LOST: &str = "the database has lost what became of it";

const LOST: (ExecutionState, &str) = (ExecutionState::Lost, END_LOST);

/// With what a leader began: what the database had when the lead was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The term of the leader before.
    pub term: Term,
    /// Which server that was; `None` if it had resigned.
    pub leader: Option<u64>,
    /// The number of its last commit.
    pub n: u64,
}

impl Origin {
    /// Whether what somebody has seen proves that acknowledged commits were lost, to the server `me` that leads in the term
    /// `own`. A term higher than that proves it as well, but has to be looked up in the database.
    pub fn is_behind(&self, own: Term, me: u64, seen: Position) -> bool {
        let Some(commit) = seen.commit.filter(|commit| commit.leader != me) else {
            // Its own answers, or an agent that knows only terms.
            return false;
        };
        let term = seen.term.term;
        if term > self.term {
            // Another server has led in this term, or in one that nobody knows of any more.
            return term <= own;
        }
        let is_other = self.leader.is_some_and(|leader| leader != commit.leader);
        term == self.term && (is_other || commit.n > self.n)
    }
}

/// What is known of a loss.
#[derive(Debug, Default)]
pub(super) struct Loss {
    /// When everything was loaded.
    loaded_at: Time,
    /// Until when this leader is cautious, once a loss was found.
    until: Option<Time>,
    is_over: bool,
    /// How often an attempt that was there when everything was loaded has come back since.
    returned: BTreeMap<ExecutionKey, u32>,
    /// How many attempts were adopted.
    adopted: u64,
}

impl Loss {
    /// Of a registry that was loaded at this time.
    pub fn none_since(loaded_at: Time) -> Loss {
        Loss {
            loaded_at,
            ..Loss::default()
        }
    }
}

impl Core {
    /// Notes that the database has lost acknowledged commits before everything was loaded. False if that is known: one loss
    /// is believed, or whoever speaks of more could keep everything waiting for ever.
    pub fn note_loss(&mut self, now: Time) -> bool {
        if self.loss.until.is_some() {
            return false;
        }
        let until = now.plus(CAUTION);
        self.loss.until = Some(until);
        self.timers.set(until, Timer::CautionEnds);
        self.lengthen_ttls(until);
        true
    }

    /// What would expire until then may run already, or has to wait through no fault of its own: it gets the time of the
    /// caution in addition.
    fn lengthen_ttls(&mut self, until: Time) {
        let due = self.timers.iter().take_while(|(time, _)| *time <= until);
        let due: Vec<(Time, Timer)> = due.copied().collect();
        for (time, timer) in due {
            let later = time.plus(CAUTION);
            match timer {
                Timer::TaskTtl(key) => {
                    self.timers.cancel(time, timer);
                    self.task_mut(key).expires_at = later;
                    self.timers.set(later, timer);
                }
                Timer::AttemptTtl(key, _) => {
                    self.timers.cancel(time, timer);
                    self.set_expiry(key, later);
                }
                _ => {}
            }
        }
    }

    /// Whether a loss was found.
    pub fn has_found_loss(&self) -> bool {
        self.loss.until.is_some()
    }

    /// How many attempts were adopted after a loss.
    pub fn adopted(&self) -> u64 {
        self.loss.adopted
    }

    fn is_cautious(&self) -> bool {
        self.loss.until.is_some() && !self.loss.is_over
    }

    /// Whether what any machine may run waits, because one may run it already.
    pub(super) fn holds_back_any(&self) -> bool {
        self.is_cautious() && self.keeps(Rule::CautionAfterLoss)
    }

    fn adopts(&self) -> bool {
        self.is_cautious() && self.keeps(Rule::HeldIsAdopted)
    }

    /// The caution is over: what has waited is handed out.
    pub(super) fn end_caution(&mut self) {
        self.loss.is_over = true;
        let ready: Vec<MachineKey> = self.ready.values().copied().collect();
        for machine in ready {
            self.wake(machine);
        }
    }

    /// Whether this is the timer of the caution.
    pub(super) fn is_end_of_caution(&self, time: Time) -> bool {
        self.is_cautious() && self.loss.until == Some(time)
    }

    /// Whether an agent is left alone with an attempt that is not known here: its task may be one that was lost.
    pub(super) fn is_left_alone(&self, id: &AttemptId) -> bool {
        self.adopts() && self.find(&id.execution).is_none()
    }

    /// Whether an attempt can be adopted once its machine has polled: that it was registered was lost, too. Until then its
    /// result is to be reported again; output that comes meanwhile is missing, and counted as that.
    pub(super) fn waits_for_its_machine(&self, instance: &str, id: &AttemptId) -> bool {
        self.adopts() && !self.instances.contains_key(instance) && { self.find(&id.execution) }
            .is_some_and(|key| self.is_adoptable(key, id.attempt))
    }

    /// How an attempt ends whose hand-out was loaded, and of which its agent knows nothing: whether it has arrived, and
    /// what has become of it since, was lost. None if it is not such an attempt.
    pub(super) fn end_of_loaded(&self, key: ExecutionKey) -> Option<&'static str> {
        let delivered_at = self.execution(key).current.delivered_at;
        let was_loaded = delivered_at.is_none_or(|at| at <= self.loss.loaded_at);
        (self.has_found_loss() && was_loaded).then_some(END_LOST)
    }

    /// The same for one that comes back again and again.
    pub(super) fn end_of_returned(&mut self, key: ExecutionKey) -> Option<&'static str> {
        if !self.has_found_loss() || self.task(key.task).created_at > self.loss.loaded_at {
            return None;
        }
        let returned = self.loss.returned.entry(key).or_default();
        *returned += 1;
        let is_over = *returned >= MAX_RETURNED;
        if is_over {
            self.loss.returned.remove(&key);
        }
        is_over.then_some(END_LOST)
    }

    /// Adopts an attempt that a machine holds, if its hand-out was lost. It has run for so many milliseconds.
    pub(super) fn adopt(&mut self, now: Time, instance: &str, id: &AttemptId, ran_ms: u64) {
        if !self.adopts() {
            return;
        }
        let Some((key, machine)) =
            { self.find(&id.execution) }.zip(self.instances.get(instance).copied())
        else {
            return;
        };
        let is_placed = self.execution(key).place == Place::Active(machine)
            && self.execution(key).current.number == id.attempt;
        if is_placed || !self.is_adoptable(key, id.attempt) || !self.may_hold(key, machine) {
            return;
        }
        if self.execution(key).state == ExecutionState::Held {
            self.forget_held(key);
            self.apply(key, Event::Release);
        }
        match self.execution(key).current.number == id.attempt {
            true => self.take_from_queue(key),
            false => self.begin_attempt(now, key, Attempt::new(id.attempt), LOST),
        }
        if !self.apply(key, Event::Deliver) {
            return;
        }
        let began = Time(now.0.saturating_sub(ran_ms)).max(self.task(key.task).created_at);
        self.hand_to(began, key, machine);
        self.expect_end(began, key, machine);
        self.loss.adopted += 1;
    }

    /// Whether an attempt can have been handed out by a commit that was lost.
    fn is_adoptable(&self, key: ExecutionKey, attempt: u32) -> bool {
        let (task, e) = (self.task(key.task), self.execution(key));
        if e.state.is_terminal() || e.canceling || task.canceled {
            return false;
        }
        match attempt.cmp(&e.current.number) {
            std::cmp::Ordering::Less => false,
            // One that runs somewhere cannot have been handed to another machine.
            std::cmp::Ordering::Equal => e.state != ExecutionState::Running,
            // The undo of the attempt before would have to be settled: that one is killed and undone instead.
            std::cmp::Ordering::Greater => {
                let most = task.spec.retry.as_ref().map_or(0, |retry| retry.max);
                attempt <= most.saturating_add(1) && !task.has_undo()
            }
        }
    }

    /// Whether a machine can have been handed an execution.
    fn may_hold(&mut self, key: ExecutionKey, machine: MachineKey) -> bool {
        if self.task(key.task).is_any() {
            let selector = self.selector_key_of(key.task);
            let machine = self.machine(machine);
            let entry = self.match_index.entry(selector);
            return entry.means(machine.traits_key, &machine.instance);
        }
        let target = self.execution(key).target.as_ref();
        target.is_some_and(|target| target.instance == self.machine(machine).instance)
    }

    /// Takes an attempt from where it is: in a queue, between two, or handed to a machine that it did not reach.
    fn take_from_queue(&mut self, key: ExecutionKey) {
        if self.execution(key).state == ExecutionState::Delivered {
            self.drop_undo(key);
            self.apply(key, Event::GiveBack);
        }
        self.cancel_attempt_timers(key);
        self.place(key, Place::Nowhere);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Limits, Saved, Spec, TaskKey};
    use super::*;
    use crate::wire::agent::{Done, Ended, Feature, Hold, HoldState, Poll};
    use crate::wire::term::{LeaderCommit, RegistryId, RegistryTerm};
    use serde_json::json;

    /// When everything was loaded, and some seconds later.
    const LOADED: Time = Time(1_000_000);
    const NOW: Time = Time(1_010_000);

    fn instance(machine: u64) -> String {
        format!("{machine:016x}")
    }

    /// A poll of one of three machines that says what it holds.
    fn poll(core: &mut Core, seq: u64, machine: u64, label: &str, holds: &[(&str, u32)]) -> usize {
        let holds = holds.iter().map(|(execution, attempt)| Hold {
            id: id(execution, *attempt),
            state: HoldState::Running,
            started_ago_ms: 3_000,
            phase: None,
        });
        let poll = Poll {
            instance: instance(machine),
            seq,
            label: label.into(),
            host: "host".into(),
            tags: Default::default(),
            version: String::new(),
            arch: String::new(),
            jobs: 2,
            draining: false,
            drained: false,
            ending: false,
            standing: false,
            wait: TimeSpan::from_secs(20),
            holds: holds.collect(),
            undos: Vec::new(),
            features: Feature::ALL.map(|feature| feature.word().into()).into(),
        };
        let (_, orders) = core.poll(NOW, &poll, None).unwrap();
        core.check_invariants().unwrap();
        orders.cancel.len() + orders.forget.len() * 10 + orders.start.len() * 100
    }

    fn id(execution: &str, attempt: u32) -> AttemptId {
        AttemptId {
            execution: execution.into(),
            attempt,
        }
    }

    fn submit(core: &mut Core, id: &str, retries: u32) {
        let mut posted = json!({"machinePattern": "web", "mode": "any", "ttl": "1h",
            "detail": {"command": "true"}});
        if retries > 0 {
            posted["retry"] = json!({"max": retries, "on": ["failed"]});
        }
        let posted = serde_json::from_value(posted).unwrap();
        let spec = Spec::checked(posted, &Limits::NONE.texts, |_| None).unwrap();
        core.submit(LOADED, id, spec).unwrap();
    }

    /// What was loaded: tasks that wait, one of which may be tried three times.
    fn loaded() -> Core {
        let mut core = Core::new(Limits::NONE, Time(LOADED.0 - 1));
        core.record_changes();
        submit(&mut core, "once", 0);
        submit(&mut core, "thrice", 2);
        let mut saved = Saved::default();
        saved.apply(LOADED, &core.take_batch());
        Core::restored(Limits::NONE, LOADED, saved).unwrap()
    }

    fn state(core: &Core, task: &str) -> (ExecutionState, u32, Option<String>) {
        let key: TaskKey = core.find_task(task).unwrap();
        let e = &core.task(key).executions[0];
        let instance = { e.target.as_ref() }.map(|target| target.instance.to_string());
        (e.state, e.current.number, instance)
    }

    #[test]
    fn what_a_machine_holds_is_adopted_and_the_rest_waits_until_the_caution_ends() {
        let mut core = loaded();
        assert!(core.note_loss(NOW));
        assert!(!core.note_loss(NOW), "one loss is believed");
        // A task that was lost is neither killed nor forgotten.
        let holds = [("once.0", 1), ("lost.0", 1)];
        assert_eq!(poll(&mut core, 1, 1, "web-1", &holds), 0);
        let running = ExecutionState::Running;
        assert_eq!(state(&core, "once"), (running, 1, Some(instance(1))));
        assert_eq!(core.adopted(), 1);
        assert_eq!(
            poll(&mut core, 1, 2, "web-2", &[]),
            0,
            "nothing is handed out"
        );
        let over = NOW.plus(CAUTION);
        core.tick(Time(over.0 - 1));
        assert_eq!(poll(&mut core, 2, 2, "web-2", &[]), 0);
        core.tick(over);
        assert_eq!(poll(&mut core, 3, 2, "web-2", &[]), 100);
        assert_eq!(
            poll(&mut core, 2, 1, "web-1", &holds),
            10,
            "its task is not known"
        );
    }

    #[test]
    fn a_later_attempt_takes_the_place_of_the_one_that_is_known() {
        let mut core = loaded();
        core.note_loss(NOW);
        assert_eq!(poll(&mut core, 1, 1, "web-1", &[("thrice.0", 2)]), 0);
        let running = ExecutionState::Running;
        assert_eq!(state(&core, "thrice"), (running, 2, Some(instance(1))));
        let key = core.find_task("thrice").unwrap();
        let past = &core.task(key).executions[0].past[0];
        assert_eq!((past.state, &*past.attempt.msg), LOST);
    }

    #[test]
    fn what_a_machine_cannot_have_been_handed_is_killed() {
        for (label, hold) in [
            ("db-1", ("once.0", 1)),
            ("web-1", ("once.0", 2)),
            ("web-1", ("thrice.0", 4)),
            ("web-1", ("thrice.0", 0)),
        ] {
            let mut core = loaded();
            core.note_loss(NOW);
            assert_eq!(poll(&mut core, 1, 1, label, &[hold]), 1, "{label} {hold:?}");
            assert_eq!(core.adopted(), 0);
        }
        // Nor without a loss.
        assert_eq!(poll(&mut loaded(), 1, 1, "db-1", &[("once.0", 1)]), 1);
    }

    #[test]
    fn a_result_of_a_machine_that_was_lost_too_waits_for_its_poll() {
        let mut core = loaded();
        core.note_loss(NOW);
        let done = |core: &mut Core| {
            let ended = |execution: &str| Ended {
                id: id(execution, 1),
                state: ExecutionState::Succeeded,
                exit_code: Some(0),
                signal: None,
                msg: String::new(),
                ended_ago_ms: 0,
                duration_ms: Some(5),
                stdout_bytes: 0,
                stderr_bytes: 0,
                files: Vec::new(),
            };
            let done = Done {
                instance: instance(1),
                seq: None,
                pieces: Vec::new(),
                results: ["once.0", "lost.0"].map(ended).into(),
                undos: Vec::new(),
                probes: Vec::new(),
            };
            let taken = core.done_and_next(NOW, &done).results;
            let taken = taken.into_iter().map(|it| (it.id.execution, it.taken));
            taken.collect::<Vec<_>>()
        };
        assert_eq!(done(&mut core), [("lost.0".to_owned(), false)]);
        poll(&mut core, 1, 1, "web-1", &[]);
        let both = [("once.0".to_owned(), true), ("lost.0".to_owned(), false)];
        assert_eq!(done(&mut core), both);
        let succeeded = ExecutionState::Succeeded;
        assert_eq!(state(&core, "once"), (succeeded, 1, Some(instance(1))));
    }

    #[test]
    fn what_its_agent_does_not_start_again_may_have_run_and_nothing_expires_meanwhile() {
        let mut core = loaded();
        let key = core.find_task("once").unwrap();
        let expires_at = |core: &Core| core.task(key).expires_at;
        let almost = Time(expires_at(&core).0 - 10_000);
        core.note_loss(almost);
        assert_eq!(expires_at(&core), almost.plus(TimeSpan::from_secs(55)));
        core.tick(almost.plus(CAUTION));
        // It ran there before the loss, and was reported.
        for seq in 1..4 {
            assert_eq!(poll(&mut core, seq, 1, "web-1", &[]), 200, "{seq}");
        }
        assert_eq!(poll(&mut core, 4, 1, "web-1", &[]), 0);
        assert_eq!(state(&core, "once").0, ExecutionState::Lost);
    }

    #[test]
    fn what_was_loaded_as_handed_out_and_is_not_held_may_have_run() {
        let mut core = loaded();
        assert_eq!(poll(&mut core, 1, 1, "web-1", &[]), 200);
        core.record_changes();
        let mut saved = Saved::default();
        core.record_everything(&Saved::default());
        saved.apply(NOW, &core.take_batch());
        let mut core = Core::restored(Limits::NONE, NOW, saved).unwrap();
        core.note_loss(NOW);
        assert_eq!(poll(&mut core, 2, 1, "web-1", &[("once.0", 1)]), 0);
        assert_eq!(state(&core, "once").0, ExecutionState::Running);
        assert_eq!(state(&core, "thrice").0, ExecutionState::Lost);
        let key = core.find_task("thrice").unwrap();
        let msg = &core.task(key).executions[0].current.msg;
        assert_eq!(**msg, *END_LOST);
    }

    /// Term 7 of server 1, after server 2 has led in term 6 until its commit 40.
    #[test]
    fn what_is_beyond_the_origin_proves_a_loss() {
        let origin = Origin {
            term: Term(6),
            leader: Some(2),
            n: 40,
        };
        let is_behind = |origin: Origin, term, commit: Option<(u64, u64)>| {
            let term = RegistryTerm {
                registry: RegistryId(1),
                term: Term(term),
            };
            let commit = commit.map(|(leader, n)| LeaderCommit { leader, n });
            origin.is_behind(Term(7), 1, Position { term, commit })
        };
        for (term, commit, expected) in [
            (6, Some((2, 40)), false),
            (6, Some((2, 41)), true),
            (6, None, false),
            // Another one has led in term 6, of which nothing is left.
            (6, Some((3, 1)), true),
            // The same in the term of this leader.
            (7, Some((3, 1)), true),
            (7, Some((1, 99)), false),
            (7, None, false),
            (5, Some((3, 99)), false),
            // That has to be looked up first.
            (8, Some((3, 1)), false),
        ] {
            let said = is_behind(origin, term, commit);
            assert_eq!(said, expected, "{term} {commit:?}");
        }
        let resigned = Origin {
            leader: None,
            ..origin
        };
        assert!(!is_behind(resigned, 6, Some((3, 40))));
        assert!(is_behind(resigned, 6, Some((3, 41))));
        // It has led before, as an earlier process or in a take whose answer was lost.
        let earlier = Origin {
            term: Term(5),
            ..origin
        };
        assert!(is_behind(earlier, 6, Some((3, 1))));
    }
}
