//! The order of an attempt with an undo: arming, command, end, undo.
//!
//! There is no process and no clock in here: what happened comes in as an [`Event`], what is to be done next goes out
//! as an [`Action`]. The agent drives it with real processes, the simulation with none.
//!
//! | stage | what has happened | leaves the stage when |
//! | --- | --- | --- |
//! | `Accepted` | the order has come | command, undo and check are allowed and prepared, or refused |
//! | `Arming` | the guard was given the plan | the guard has acknowledged it, or has not in time |
//! | `Armed` | the guard has the plan | the command is about to be started |
//! | `Starting` | the command may have been started | the start is known to have succeeded, or failed |
//! | `Running` | the command runs | it ends, or is to be ended |
//! | `Ending` | its process tree is being ended | the tree is dead, or survives KILL |
//! | `Undoing` | the undo runs | it is done, or its patience is over |
//! | `Over` | it is settled | never |
//!
//! The first reason wins. There is no start after an order to stop, and no undo before the command may have been
//! started.

use crate::wire::undo::{UndoReason, UndoState};

/// Where an attempt with an undo is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table at the top of this file")]
pub enum Stage {
    Accepted,
    Arming,
    Armed,
    Starting,
    Running,
    Ending,
    Undoing,
    Over(UndoState),
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Command, undo and check are allowed, and all that can be done before the start is done.
    Prepared,
    /// The guard has acknowledged the plan.
    Acknowledged,
    /// The command is about to be started.
    Start,
    /// It was started.
    Started,
    /// It was certainly not started, and will not be.
    NotStarted,
    /// It is to be ended.
    Stop(UndoReason),
    /// Its own process has ended, or its time is up.
    Ended(UndoReason),
    /// Its process tree is dead, or survives KILL.
    TreeEnded,
    /// The undo has ended in this state.
    Undone(UndoState),
    /// Whoever drives it has failed: what happened to the command is not known.
    Abandoned,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Give the plan to the guard.
    Arm,
    /// Report that it is armed.
    ReportArmed,
    /// Start the command.
    Start,
    /// End the whole process tree of the command.
    EndTree,
    /// Run the undo, for this reason.
    Undo(UndoReason),
    /// Disarm the guard, and report this state.
    Settle(UndoState),
}

/// An attempt with an undo.
#[derive(Debug, Clone, Copy)]
pub struct Experiment {
    stage: Stage,
    reason: Option<UndoReason>,
}

impl Experiment {
    /// One whose order has just come.
    pub fn new() -> Self {
        Experiment {
            stage: Stage::Accepted,
            reason: None,
        }
    }

    /// Where it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Why the command was ended, or is to be.
    pub fn reason(&self) -> Option<UndoReason> {
        self.reason
    }

    /// Whether there may be a command that has not ended, now or later.
    pub fn has_command(&self) -> bool {
        !matches!(self.stage, Stage::Undoing | Stage::Over(_))
    }

    /// Takes note of what happened. What is to be done about it; none if nothing is.
    pub fn on(&mut self, event: Event) -> Option<Action> {
        use Stage::*;
        if let Event::Stop(reason) | Event::Ended(reason) = event
            && self.has_command()
        {
            self.reason.get_or_insert(reason);
        }
        let is_stopped = self.reason.is_some();
        let (stage, action) = match (self.stage, event) {
            (Accepted, Event::Prepared) | (Arming, Event::Acknowledged) | (Armed, Event::Start)
                if is_stopped =>
            {
                self.not_needed()
            }
            (Accepted, Event::Prepared) => (Arming, Some(Action::Arm)),
            (Arming, Event::Acknowledged) => (Armed, Some(Action::ReportArmed)),
            (Armed, Event::Start) => (Starting, Some(Action::Start)),
            (Accepted | Arming | Armed | Starting, Event::NotStarted)
            | (Accepted | Arming | Armed, Event::Abandoned) => self.not_needed(),
            (Starting, Event::Started) if is_stopped => (Ending, Some(Action::EndTree)),
            (Starting, Event::Started) => (Running, None),
            (Running, Event::Stop(_) | Event::Ended(_)) => (Ending, Some(Action::EndTree)),
            (Ending, Event::TreeEnded) | (Starting | Running | Ending, Event::Abandoned) => {
                let reason = *self.reason.get_or_insert(UndoReason::Ended);
                (Undoing, Some(Action::Undo(reason)))
            }
            (Undoing, Event::Undone(state)) => (Over(state), Some(Action::Settle(state))),
            // Too late, or too early: nothing changes.
            (stage, _) => (stage, None),
        };
        self.stage = stage;
        action
    }

    fn not_needed(&self) -> (Stage, Option<Action>) {
        let state = UndoState::NotNeeded;
        (Stage::Over(state), Some(Action::Settle(state)))
    }
}

impl Default for Experiment {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is to be done after each of these events.
    fn actions(events: &[Event]) -> Vec<Action> {
        let mut experiment = Experiment::new();
        let actions = events.iter().filter_map(|event| experiment.on(*event));
        actions.collect()
    }

    const START: [Event; 4] = [
        Event::Prepared,
        Event::Acknowledged,
        Event::Start,
        Event::Started,
    ];
    const STARTED: [Action; 3] = [Action::Arm, Action::ReportArmed, Action::Start];

    #[test]
    fn the_order_is_always_the_same() {
        for end in [
            Event::Ended(UndoReason::Ended),
            Event::Ended(UndoReason::TimedOut),
            Event::Ended(UndoReason::Deadman),
            Event::Stop(UndoReason::Canceled),
            Event::Stop(UndoReason::Shutdown),
        ] {
            let (Event::Ended(reason) | Event::Stop(reason)) = end else {
                panic!("no end: {end:?}");
            };
            let mut events = START.to_vec();
            events.extend([end, Event::Stop(UndoReason::ByHand), Event::TreeEnded]);
            events.extend([Event::Undone(UndoState::Done), end, Event::Start]);
            let mut expected = STARTED.to_vec();
            expected.extend([Action::EndTree, Action::Undo(reason)]);
            expected.push(Action::Settle(UndoState::Done));
            assert_eq!(actions(&events), expected);
        }
    }

    #[test]
    fn nothing_starts_after_a_stop_and_nothing_is_undone_before_a_start() {
        for at in 0..3 {
            let mut events = START.to_vec();
            events.insert(at, Event::Stop(UndoReason::Canceled));
            events.push(Event::TreeEnded);
            let mut expected = STARTED[..at].to_vec();
            expected.push(Action::Settle(UndoState::NotNeeded));
            assert_eq!(actions(&events), expected, "stopped at {at}");
            for failure in [Event::NotStarted, Event::Abandoned] {
                let mut events = START[..at].to_vec();
                events.extend([failure, Event::Start, Event::TreeEnded]);
                assert_eq!(actions(&events), expected, "failed at {at}");
            }
        }
    }

    #[test]
    fn a_start_that_failed_needs_no_undo_and_one_that_is_not_known_does() {
        let starting = &START[..3];
        let not_needed = Action::Settle(UndoState::NotNeeded);
        let undo = Action::Undo(UndoReason::Ended);
        for (event, action) in [(Event::NotStarted, not_needed), (Event::Abandoned, undo)] {
            let mut expected = STARTED.to_vec();
            expected.push(action);
            assert_eq!(actions(&[starting, &[event]].concat()), expected);
        }
    }

    #[test]
    fn a_stop_while_it_starts_ends_it_as_soon_as_it_has_started() {
        let events = [
            &START[..3],
            &[Event::Stop(UndoReason::Canceled), Event::Started],
        ];
        let expected = [&STARTED[..], &[Action::EndTree]].concat();
        assert_eq!(actions(&events.concat()), expected);
    }

    #[test]
    fn every_sequence_of_events_keeps_the_laws() {
        let all = [
            Event::Prepared,
            Event::Acknowledged,
            Event::Start,
            Event::Started,
            Event::NotStarted,
            Event::Stop(UndoReason::Canceled),
            Event::Ended(UndoReason::Ended),
            Event::TreeEnded,
            Event::Undone(UndoState::Failed),
            Event::Abandoned,
        ];
        // All sequences of six events.
        for number in 0..all.len().pow(6) {
            let mut experiment = Experiment::new();
            let (mut rest, mut stopped, mut may_run, mut undone) = (number, false, false, false);
            for _ in 0..6 {
                let event = all[rest % all.len()];
                rest /= all.len();
                let was_starting = experiment.stage() == Stage::Starting;
                let action = experiment.on(event);
                stopped |= matches!(event, Event::Stop(_) | Event::Ended(_));
                match action {
                    Some(Action::Start) => {
                        assert!(!stopped && !may_run, "a start after a stop");
                        may_run = true;
                    }
                    Some(Action::Undo(_)) => {
                        assert!(may_run && !undone, "an undo before a start, or twice");
                        undone = true;
                    }
                    Some(Action::Settle(UndoState::NotNeeded)) => {
                        assert!(!may_run || was_starting, "not needed after a start");
                    }
                    Some(Action::Settle(_)) => assert!(undone, "settled without an undo"),
                    _ => {}
                }
            }
        }
    }
}
