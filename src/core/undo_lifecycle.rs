//! The lifecycle of an undo, as a table beside that of its execution: which event leads from which state to which.
//!
//! No other code decides this. Reports come late, twice, and from two processes (an agent and the guard that took over
//! from it), so most cells say what a report means that should not have come any more. Whatever is known for certain
//! wins over `owed`, and nothing wins over what a person has settled but the machine's own word that it is done.

use crate::wire::undo::UndoState::{self, *};

/// An event in the lifecycle of an undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UndoEvent {
    /// The guard has it, and the command is about to be started.
    Arm,
    /// The command was certainly never started.
    NotStarted,
    /// It is being tried.
    Begin,
    /// The effect is gone.
    Succeed,
    /// It was tried for all of its patience.
    Fail,
    /// Agent and guard are gone, or the machine is, and nobody has said what became of it.
    Lose,
    /// It was handed to an agent, to be run again.
    Again,
    /// Somebody has settled it by hand.
    Forgive,
}

/// The next state; `None` if the event changes nothing. `state` is none as long as the attempt has not been armed.
pub fn next(state: Option<UndoState>, event: UndoEvent) -> Option<UndoState> {
    use UndoEvent::*;
    match (state, event) {
        (None, Arm) => Some(Armed),
        (None, NotStarted) => Some(NotNeeded),
        // The report that it was armed has not arrived.
        (None, Begin) => Some(Running),
        (None, Succeed) => Some(Done),
        (None, Fail) => Some(Failed),
        // It was handed out, so it may have been armed and started.
        (None, Lose) => Some(Owed),
        (None, Again | Forgive) => None,

        (Some(Armed), NotStarted) => Some(NotNeeded),
        (Some(Armed), Begin) => Some(Running),
        (Some(Armed), Succeed) => Some(Done),
        (Some(Armed), Fail) => Some(Failed),
        (Some(Armed), Lose) => Some(Owed),
        (Some(Armed), Arm | Again | Forgive) => None,

        (Some(Running), Succeed) => Some(Done),
        (Some(Running), Fail) => Some(Failed),
        (Some(Running), Lose) => Some(Owed),
        (Some(Running), Arm | NotStarted | Begin | Again | Forgive) => None,

        // It is harmless to run it again.
        (Some(Done), Again) => Some(Running),
        // A start that had been given up came through late, and that could not be taken back.
        (Some(Done), Fail) => Some(Failed),
        (Some(Done), Arm | NotStarted | Begin | Succeed | Lose | Forgive) => None,

        (Some(Failed), Again) => Some(Running),
        (Some(Failed), Forgive) => Some(Forgiven),
        // The guard went on where the agent gave up.
        (Some(Failed), Succeed) => Some(Done),
        (Some(Failed), Arm | NotStarted | Begin | Fail | Lose) => None,

        (Some(Owed), Again | Begin) => Some(Running),
        (Some(Owed), Forgive) => Some(Forgiven),
        // The machine is back, or its guard has reported.
        (Some(Owed), NotStarted) => Some(NotNeeded),
        (Some(Owed), Succeed) => Some(Done),
        (Some(Owed), Fail) => Some(Failed),
        // An agent that was thought to be gone still runs it.
        (Some(Owed), Arm) => Some(Armed),
        (Some(Owed), Lose) => None,

        (Some(Forgiven), Succeed) => Some(Done),
        (Some(Forgiven), Again) => Some(Running),
        (Some(Forgiven), Arm | NotStarted | Begin | Fail | Lose | Forgive) => None,

        // Nothing was started, so there is nothing to take back.
        (Some(NotNeeded), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [UndoEvent; 8] = [
        UndoEvent::Arm,
        UndoEvent::NotStarted,
        UndoEvent::Begin,
        UndoEvent::Succeed,
        UndoEvent::Fail,
        UndoEvent::Lose,
        UndoEvent::Again,
        UndoEvent::Forgive,
    ];

    #[test]
    fn what_is_known_is_not_forgotten() {
        for known in [NotNeeded, Done, Failed, Forgiven] {
            assert_eq!(next(Some(known), UndoEvent::Lose), None);
            assert_eq!(next(Some(known), UndoEvent::Arm), None);
        }
    }

    #[test]
    fn a_debt_is_settled_by_any_certain_word() {
        for event in [
            UndoEvent::NotStarted,
            UndoEvent::Succeed,
            UndoEvent::Forgive,
        ] {
            let settled = next(Some(Owed), event).unwrap();
            assert!(settled.is_settled() && !settled.is_dirty(), "{event:?}");
        }
    }

    #[test]
    fn nothing_leads_to_the_state_it_is_in() {
        let states = UndoState::ALL.into_iter().map(Some).chain([None]);
        for state in states {
            for event in EVENTS {
                assert!(next(state, event).is_none_or(|next| Some(next) != state));
            }
        }
    }
}
