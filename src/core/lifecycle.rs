//! The life of an execution, as a table: which state follows which, on what.
//!
//! This is the only place that says so. Every cell is filled; what must not happen is refused here,
//! whoever asks. To add a state or an event, add it to its enum: the table does not compile until
//! every new cell is decided.

use crate::wire::task::ExecutionState::{self, *};

/// What can happen to an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It was handed to its machine.
    Deliver,
    /// Its machine said that the command runs.
    Start,
    /// Its machine reported how the attempt ended: with this terminal state.
    End(ExecutionState),
    /// The attempt ended, and another one is due.
    Retry,
    /// It never reached its machine, or never started there: it can be handed out again.
    GiveBack,
    /// A user does not want it, and it cannot be running.
    Cancel,
    /// It waited too long.
    Expire,
    /// Its machine is gone.
    Lose,
}

/// The state that follows, or `None` where the event is refused and changes nothing.
pub fn next(state: ExecutionState, event: Event) -> Option<ExecutionState> {
    use Event::*;
    match (state, event) {
        (Queued, Deliver) => Some(Delivered),
        // The server took a hand-out for lost, and the report shows that it was not.
        (Queued, End(end)) => end.is_terminal().then_some(end),
        (Queued, Cancel) => Some(Canceled),
        (Queued, Expire) => Some(Expired),
        (Queued, Lose) => Some(Lost),
        (Queued, Start | Retry | GiveBack) => None,

        (Delivered, Start) => Some(Running),
        (Delivered, End(end)) => end.is_terminal().then_some(end),
        (Delivered, Retry | GiveBack) => Some(Queued),
        // Known never to have started: the machine does not hold it.
        (Delivered, Cancel) => Some(Canceled),
        (Delivered, Lose) => Some(Lost),
        (Delivered, Deliver | Expire) => None,

        (Running, End(end)) => end.is_terminal().then_some(end),
        (Running, Retry) => Some(Queued),
        (Running, Lose) => Some(Lost),
        (Running, Deliver | Start | GiveBack | Cancel | Expire) => None,

        // A terminal state never changes.
        (Succeeded | Failed | TimedOut | Canceled | Expired | Lost, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_state_never_changes() {
        let events = [
            Event::Deliver,
            Event::Start,
            Event::End(Succeeded),
            Event::Retry,
            Event::GiveBack,
            Event::Cancel,
            Event::Expire,
            Event::Lose,
        ];
        for state in ExecutionState::ALL
            .into_iter()
            .filter(|state| state.is_terminal())
        {
            for event in events {
                assert_eq!(next(state, event), None, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn a_report_must_end_it() {
        for state in [Queued, Delivered, Running] {
            assert_eq!(next(state, Event::End(Running)), None);
            assert_eq!(next(state, Event::End(Failed)), Some(Failed));
        }
    }
}
