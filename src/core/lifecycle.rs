//! The lifecycle of an execution, as a table: which event leads from which state to which.
//!
//! No other code decides this. Every cell of the table is filled; an event that is not allowed in a state is
//! refused here, wherever it came from. To add a state or an event, add it to its enum: the table does not
//! compile until every new cell is decided.

use crate::wire::task::ExecutionState::{self, *};

/// An event in the lifecycle of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its turn has come, and it can be handed out.
    Release,
    /// It is not to be handed out for the time being.
    Hold,
    /// It was handed to a machine.
    Deliver,
    /// Its machine reported that the command runs.
    Start,
    /// The attempt ended in this terminal state.
    End(ExecutionState),
    /// The attempt ended, and there will be another one.
    Retry,
    /// It did not reach its machine, or was not started there: it can be handed out again.
    GiveBack,
    /// A user canceled it, and it cannot be running.
    Cancel,
    /// It waited longer than its ttl.
    Expire,
    /// Its machine went offline.
    Lose,
    /// Its task was stopped before it started.
    Skip,
}

/// The next state; `None` if the event is refused, which changes nothing.
pub fn next(state: ExecutionState, event: Event) -> Option<ExecutionState> {
    use Event::*;
    match (state, event) {
        (Held, Release) => Some(Queued),
        // As the attempt before, if this one is not started any more; or because its machine cannot run it.
        (Held, End(end)) => end.is_terminal().then_some(end),
        (Held, Cancel) => Some(Canceled),
        (Held, Expire) => Some(Expired),
        (Held, Lose) => Some(Lost),
        (Held, Skip) => Some(Skipped),
        (Held, Hold | Deliver | Start | Retry | GiveBack) => None,

        (Queued, Hold) => Some(Held),
        (Queued, Deliver) => Some(Delivered),
        // As above.
        (Queued, End(end)) => end.is_terminal().then_some(end),
        (Queued, Cancel) => Some(Canceled),
        (Queued, Expire) => Some(Expired),
        (Queued, Lose) => Some(Lost),
        (Queued, Skip) => Some(Skipped),
        (Queued, Release | Start | Retry | GiveBack) => None,

        (Delivered, Start) => Some(Running),
        (Delivered, End(end)) => end.is_terminal().then_some(end),
        (Delivered, Retry | GiveBack) => Some(Queued),
        // The machine does not hold it, so it was never started.
        (Delivered, Cancel) => Some(Canceled),
        (Delivered, Lose) => Some(Lost),
        (Delivered, Release | Hold | Deliver | Expire | Skip) => None,

        (Running, End(end)) => end.is_terminal().then_some(end),
        (Running, Retry) => Some(Queued),
        (Running, Lose) => Some(Lost),
        (Running, Release | Hold | Deliver | Start | GiveBack | Cancel | Expire | Skip) => None,

        // A terminal state never changes.
        (Succeeded | Failed | TimedOut | Canceled | Expired | Lost | Skipped, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_state_never_changes() {
        let events = [
            Event::Release,
            Event::Hold,
            Event::Deliver,
            Event::Start,
            Event::End(Succeeded),
            Event::Retry,
            Event::GiveBack,
            Event::Cancel,
            Event::Expire,
            Event::Lose,
            Event::Skip,
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
        for state in [Held, Queued, Delivered, Running] {
            assert_eq!(next(state, Event::End(Running)), None);
            assert_eq!(next(state, Event::End(Failed)), Some(Failed));
        }
    }
}
