//! When an undo is tried, checked, and given up.
//!
//! There is no process and no clock in here: what happened comes in with the time since the beginning, what is to be
//! done goes out as a [`Step`].
//!
//! A try is a run of the undo and, if there is one, of the check. With a check the undo's own end does not count: what
//! is to be found out is whether the effect is there, and an undo that finds nothing to do may fail.

use crate::wire::undo::UndoState;
use std::time::Duration;

/// The pause after the first try. Each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The undo.
    Undo,
    /// The check.
    Check,
}

impl Phase {
    /// The word of the environment, and of messages.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Undo => "undo",
            Phase::Check => "check",
        }
    }
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Run this, and call [`Tries::ended`].
    Run(Phase),
    /// Wait so long, and call [`Tries::waited`].
    Pause(Duration),
    /// It is over: `done` or `failed`.
    Over(UndoState),
}

/// How one run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEnd {
    /// The exit code, when it exited.
    pub exit_code: Option<i32>,
    /// Why it did not succeed; empty if it did.
    pub msg: String,
}

impl RunEnd {
    /// Whether it succeeded.
    pub fn is_success(&self) -> bool {
        self.exit_code == Some(0) && self.msg.is_empty()
    }
}

/// The tries of one undo.
#[derive(Debug)]
pub struct Tries {
    has_check: bool,
    patience: Duration,
    pause: Duration,
    /// How many tries were begun.
    pub tries: u32,
    running: Phase,
    undo: Option<RunEnd>,
    check: Option<RunEnd>,
}

impl Tries {
    /// Tries that go on for `patience`. There is one at least.
    pub fn new(has_check: bool, patience: Duration) -> Self {
        Tries {
            has_check,
            patience,
            pause: FIRST_PAUSE,
            tries: 0,
            running: Phase::Undo,
            undo: None,
            check: None,
        }
    }

    /// The first step.
    pub fn begin(&mut self) -> Step {
        self.run_undo()
    }

    /// The pause is over.
    pub fn waited(&mut self) -> Step {
        self.run_undo()
    }

    /// What ran has ended, so long after the beginning of the first try.
    pub fn ended(&mut self, end: RunEnd, elapsed: Duration) -> Step {
        let is_clean = match self.running {
            Phase::Undo if self.has_check => {
                self.undo = Some(end);
                self.running = Phase::Check;
                return Step::Run(Phase::Check);
            }
            Phase::Undo => self.undo.insert(end).is_success(),
            Phase::Check => self.check.insert(end).is_success(),
        };
        if is_clean {
            return Step::Over(UndoState::Done);
        }
        let left = self.patience.saturating_sub(elapsed);
        if left.is_zero() {
            return Step::Over(UndoState::Failed);
        }
        let pause = self.pause.min(left);
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        Step::Pause(pause)
    }

    /// The exit code of the last undo that ended.
    pub fn exit_code(&self) -> Option<i32> {
        self.undo.as_ref()?.exit_code
    }

    /// The exit code of the last check that ended.
    pub fn check_exit_code(&self) -> Option<i32> {
        self.check.as_ref()?.exit_code
    }

    /// Why the last try did not succeed; empty if it did, or if none has ended.
    pub fn msg(&self) -> String {
        let ends = [(Phase::Check, &self.check), (Phase::Undo, &self.undo)];
        let is_clean = self.check.as_ref().is_some_and(RunEnd::is_success);
        let failed = ends.iter().filter_map(|(phase, end)| {
            let end = end.as_ref().filter(|end| !end.is_success())?;
            Some(format!("{}: {}", phase.word(), end.msg))
        });
        match is_clean {
            true => String::new(),
            false => failed.collect::<Vec<_>>().join("; "),
        }
    }

    fn run_undo(&mut self) -> Step {
        self.tries = self.tries.saturating_add(1);
        self.running = Phase::Undo;
        Step::Run(Phase::Undo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> RunEnd {
        RunEnd {
            exit_code: Some(code),
            msg: match code {
                0 => String::new(),
                _ => format!("exit code {code}"),
            },
        }
    }

    fn not_started() -> RunEnd {
        RunEnd {
            exit_code: None,
            msg: "cannot start".into(),
        }
    }

    const AT_ONCE: Duration = Duration::ZERO;

    #[test]
    fn without_a_check_the_exit_code_of_the_undo_counts() {
        let mut tries = Tries::new(false, Duration::from_secs(60));
        assert_eq!(tries.begin(), Step::Run(Phase::Undo));
        assert_eq!(tries.ended(exited(1), AT_ONCE), Step::Pause(FIRST_PAUSE));
        assert_eq!(tries.msg(), "undo: exit code 1");
        assert_eq!(tries.waited(), Step::Run(Phase::Undo));
        assert_eq!(tries.ended(exited(0), AT_ONCE), Step::Over(UndoState::Done));
        assert_eq!((tries.tries, tries.exit_code()), (2, Some(0)));
        assert_eq!((tries.check_exit_code(), &*tries.msg()), (None, ""));
    }

    #[test]
    fn with_a_check_only_the_check_counts() {
        for undo in [exited(0), exited(7), not_started()] {
            let mut tries = Tries::new(true, Duration::from_secs(60));
            tries.begin();
            assert_eq!(tries.ended(undo.clone(), AT_ONCE), Step::Run(Phase::Check));
            let paused = tries.ended(not_started(), AT_ONCE);
            assert_eq!(paused, Step::Pause(FIRST_PAUSE));
            assert!(tries.msg().starts_with("check: cannot start"));
            assert_eq!(tries.waited(), Step::Run(Phase::Undo));
            assert_eq!(tries.ended(undo.clone(), AT_ONCE), Step::Run(Phase::Check));
            let over = tries.ended(exited(0), AT_ONCE);
            assert_eq!(over, Step::Over(UndoState::Done));
            assert_eq!(tries.exit_code(), undo.exit_code);
            assert_eq!((tries.check_exit_code(), &*tries.msg()), (Some(0), ""));
        }
    }

    #[test]
    fn pauses_grow_and_the_last_try_is_at_the_end_of_the_patience() {
        let patience = Duration::from_secs(100);
        let mut tries = Tries::new(false, patience);
        let (mut elapsed, mut pauses) = (Duration::ZERO, Vec::new());
        tries.begin();
        let state = loop {
            match tries.ended(exited(1), elapsed) {
                Step::Pause(pause) => {
                    pauses.push(pause.as_secs());
                    elapsed += pause;
                    assert_eq!(tries.waited(), Step::Run(Phase::Undo));
                }
                Step::Over(state) => break state,
                Step::Run(phase) => panic!("{phase:?} without a pause"),
            }
        };
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 9]);
        assert_eq!((state, elapsed), (UndoState::Failed, patience));
        assert_eq!(tries.tries, 9);
    }

    #[test]
    fn without_patience_there_is_one_try() {
        let mut tries = Tries::new(true, Duration::ZERO);
        assert_eq!(tries.begin(), Step::Run(Phase::Undo));
        assert_eq!(tries.ended(exited(0), AT_ONCE), Step::Run(Phase::Check));
        let over = tries.ended(exited(1), AT_ONCE);
        assert_eq!(over, Step::Over(UndoState::Failed));
    }
}
