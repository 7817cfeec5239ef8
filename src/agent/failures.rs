//! Failed calls in the log: each reason of each call once, and now and then again, with how often it failed.
//!
//! A reason that changes ("unreachable", then 422) is a new one. What fails again and again for the same
//! reasons must not fill the log, also when there are two that alternate.

use std::fmt;
use std::time::{Duration, Instant};

/// How often the same reason is logged: it has to be near the end of a log.
const REPEAT_PERIOD: Duration = Duration::from_secs(300);
/// Reasons remembered of each call, in number. A server that gives more of them fills the log only as fast
/// as the pauses between tries allow.
const MAX_REASONS: usize = 8;

/// The failures of one call, or of several, since the last success of each.
#[derive(Debug, Default)]
pub struct FailureLog {
    calls: Vec<FailedCall>,
}

#[derive(Debug)]
struct FailedCall {
    name: &'static str,
    failures: u64,
    /// The reasons, and when each was logged last; the oldest first.
    reasons: Vec<(String, Instant)>,
}

/// How often a call has failed, for the end of a line: nothing the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(u64);

impl Count {
    /// Whether the call had not failed before.
    pub fn is_first(self) -> bool {
        self.0 <= 1
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 | 1 => Ok(()),
            failures => write!(f, " ({failures} failures so far)"),
        }
    }
}

impl FailureLog {
    /// Records a failure. How often the call has failed if that is to be logged; none if it was.
    pub fn failed(&mut self, name: &'static str, reason: &str, now: Instant) -> Option<Count> {
        let at = self.calls.iter().position(|call| call.name == name);
        let at = at.unwrap_or_else(|| {
            self.calls.push(FailedCall {
                name,
                failures: 0,
                reasons: Vec::new(),
            });
            self.calls.len() - 1
        });
        let call = &mut self.calls[at];
        call.failures += 1;
        let known = call.reasons.iter().position(|(known, _)| known == reason);
        if let Some(known) = known {
            if now.saturating_duration_since(call.reasons[known].1) < REPEAT_PERIOD {
                return None;
            }
            call.reasons.remove(known);
        }
        if call.reasons.len() >= MAX_REASONS {
            call.reasons.remove(0);
        }
        call.reasons.push((reason.to_owned(), now));
        Some(Count(call.failures))
    }

    /// Records a success. How often the call had failed before; none if it had not.
    pub fn succeeded(&mut self, name: &'static str) -> Option<u64> {
        let at = self.calls.iter().position(|call| call.name == name)?;
        Some(self.calls.swap_remove(at).failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_logged_now_and_then() {
        let (mut log, start) = (FailureLog::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let due =
            [0, 1, 299, 300, 301, 599, 600].map(|s| log.failed("poll", "why", after(s)).is_some());
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn each_reason_of_each_call_is_logged_with_how_often_it_failed() {
        let (mut log, now) = (FailureLog::default(), Instant::now());
        let mut failed = |name, reason| {
            let count = log.failed(name, reason, now);
            count.map(|count| count.to_string())
        };
        assert_eq!(failed("poll", "unreachable").as_deref(), Some(""));
        assert_eq!(failed("poll", "unreachable"), None);
        let again = failed("poll", "422");
        assert_eq!(again.as_deref(), Some(" (3 failures so far)"));
        assert_eq!(failed("poll", "unreachable"), None);
        assert_eq!(failed("done", "unreachable").as_deref(), Some(""));
        assert_eq!(log.succeeded("poll"), Some(4));
        assert_eq!(log.succeeded("poll"), None);
        assert_eq!(log.failed("poll", "422", now), Some(Count(1)));
        assert_eq!(log.failed("done", "unreachable", now), None);
    }

    #[test]
    fn reasons_are_bounded() {
        let (mut log, now) = (FailureLog::default(), Instant::now());
        for n in 0..100 {
            assert!(log.failed("poll", &n.to_string(), now).is_some());
        }
        assert_eq!(log.calls[0].reasons.len(), MAX_REASONS);
        assert_eq!(log.failed("poll", "99", now), None);
    }
}
