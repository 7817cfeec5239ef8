//! The dead man's switch: a command with an undo is ended when the server has not been heard of for too long.
//!
//! Contact is a complete, valid answer of the server to a poll or a report. The clock goes on while the machine is
//! suspended, and cannot be set: a machine that wakes undoes at once. While a command with such a switch may run, polls
//! are held for a part of its time only, so that silence means something.

use crate::agent::processes::process_table::now_in_ms;
use crate::wire::duration::{TimeSpan, Timeout};
use crate::wire::undo::Undo;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A poll is held for this part of the time of the switch.
const HOLD_PART: u64 = 6;
/// The time on the network of a poll is this part of it at most: an outage of half the time leaves some for another
/// poll.
const SLACK_PART: u32 = 4;
/// The shortest time a poll is held for the switch, in milliseconds: a server must not get a hundred polls a second.
const MIN_HOLD_MS: u64 = 100;
/// The longest pause after a failed call while a command with a switch may run.
pub const MAX_PAUSE: Duration = Duration::from_secs(1);

/// When the server was last heard of.
#[derive(Debug)]
pub struct Contact {
    /// In milliseconds since the machine was started.
    last: AtomicU64,
}

impl Default for Contact {
    /// The first contact is now.
    fn default() -> Self {
        Contact {
            last: AtomicU64::new(now_in_ms()),
        }
    }
}

impl Contact {
    /// The server has answered.
    pub fn made(&self) {
        self.last.store(now_in_ms(), Ordering::SeqCst);
    }

    /// How long ago the server was heard of.
    pub fn age(&self) -> Duration {
        Duration::from_millis(now_in_ms().saturating_sub(self.last.load(Ordering::SeqCst)))
    }
}

/// The switch of a command with an undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadman(pub Option<TimeSpan>);

impl Deadman {
    /// The switch of an order; none if it has no undo. The order is not checked here: this only finds out how often the
    /// server is to be asked from now on.
    pub fn of_detail(detail: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct WithUndo {
            undo: Option<Box<RawValue>>,
        }
        #[derive(Deserialize)]
        struct WithDeadman {
            deadman: Option<Timeout>,
        }
        // Most details have none, and need not be read twice.
        if !detail.get().contains("undo") {
            return None;
        }
        let undo = serde_json::from_str::<WithUndo>(detail.get()).ok()?.undo?;
        let deadman = serde_json::from_str::<WithDeadman>(undo.get())
            .ok()
            .and_then(|undo| undo.deadman);
        let undo = Undo {
            deadman,
            ..Undo::default()
        };
        Some(Deadman(undo.deadman()))
    }
}

/// Why a command was ended, or not started, when the server was silent for so long.
pub fn silence(limit: TimeSpan) -> String {
    format!("the server could not be reached for {limit}")
}

/// How long a poll may be held while a command with this limit may run.
pub fn longest_hold(limit: TimeSpan) -> TimeSpan {
    TimeSpan::from_millis((limit.as_millis() / HOLD_PART).max(MIN_HOLD_MS))
}

/// How long a poll may be under way beyond that.
pub fn longest_slack(limit: TimeSpan) -> Duration {
    Duration::from(limit) / SLACK_PART
}

/// The pause after a failed call, while a command with a switch of this limit may run, or none.
pub fn pause(pause: Duration, limit: Option<TimeSpan>) -> Duration {
    match limit {
        Some(_) => pause.min(MAX_PAUSE),
        None => pause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadman(detail: &str) -> Option<Deadman> {
        Deadman::of_detail(&RawValue::from_string(detail.to_owned()).unwrap())
    }

    #[test]
    fn an_order_says_how_often_the_server_is_asked() {
        let after = |seconds| Some(Deadman(Some(TimeSpan::from_secs(seconds))));
        assert_eq!(deadman(r#"{"command": "echo undo"}"#), None);
        assert_eq!(deadman(r#"{"command": "x", "undo": null}"#), None);
        assert_eq!(deadman("null"), None);
        assert_eq!(deadman(r#"{"undo": {"command": "x"}}"#), after(60));
        assert_eq!(deadman(r#"{"undo": {"deadman": "20s"}}"#), after(20));
        assert_eq!(deadman(r#"{"undo": {"deadman": -1}}"#), Some(Deadman(None)));
        // What is wrong about it is found out before the start.
        assert_eq!(deadman(r#"{"undo": 7}"#), after(60));
        assert_eq!(deadman(r#"{"undo": {"deadman": []}}"#), after(60));
    }

    #[test]
    fn an_outage_of_half_the_time_leaves_time_for_another_poll() {
        for seconds in [10, 60, 600] {
            let limit = TimeSpan::from_secs(seconds);
            let lost = Duration::from(longest_hold(limit)) + longest_slack(limit) + MAX_PAUSE;
            let next = longest_slack(limit) + MAX_PAUSE;
            assert!(lost + next < Duration::from(limit), "{seconds}");
        }
    }

    #[test]
    fn contact_has_an_age() {
        let contact = Contact::default();
        std::thread::sleep(Duration::from_millis(20));
        assert!(contact.age() >= Duration::from_millis(15));
        contact.made();
        assert!(contact.age() < Duration::from_secs(5));
    }
}
