//! The steps of ending a process tree: TERM and CONT, looks whether it is dead, KILL after the grace,
//! looks again, and giving up.
//!
//! The supervisor of a command and the guard both end trees this way. There is no clock and no process in
//! here: time comes in as an argument, and the tree is a [`ProcessTree`].

use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The first pause between two looks at a tree. A look reads all of /proc, so the pauses grow.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between two looks: a command is reported dead no later than this.
const MAX_PAUSE: Duration = Duration::from_millis(200);
/// This many looks in a row have to find the tree dead: a process that forks can hide from one look.
const DEAD_LOOKS: u32 = 2;
/// How long processes may live after KILL. One may hang in the kernel, and in a container zombies stay
/// when process 1 does not reap.
const KILL_TIMEOUT: Duration = Duration::from_millis(700);

/// The processes to be ended.
pub trait ProcessTree {
    /// Sends `signal`. TERM comes with CONT, or a stopped process would not see it.
    fn send(&mut self, signal: Signal);

    /// Whether no process of it can do anything any more.
    fn is_dead(&mut self) -> bool;
}

/// A tree that is being ended.
#[derive(Debug)]
pub struct Termination {
    kill_at: Instant,
    /// Set when KILL was sent.
    give_up_at: Option<Instant>,
    /// Looks in a row that found the tree dead.
    dead_looks: u32,
    pause: Duration,
    next_look: Instant,
}

/// How far a termination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Processes live; continue with [`Termination::step`].
    Pending,
    /// All processes are dead.
    Dead,
    /// Processes live although KILL was sent.
    Survived,
}

impl Termination {
    /// Sends TERM; KILL will follow after `grace`.
    pub fn begin(now: Instant, grace: Duration, tree: &mut impl ProcessTree) -> Self {
        tree.send(Signal::TERM);
        tree.send(Signal::CONT);
        Termination {
            kill_at: now + grace,
            give_up_at: None,
            dead_looks: 0,
            pause: FIRST_PAUSE,
            next_look: now,
        }
    }

    /// When the next step is due.
    pub fn next_step(&self) -> Instant {
        self.next_look.min(self.give_up_at.unwrap_or(self.kill_at))
    }

    /// Has the next step look at once, because a process of the tree has ended.
    pub fn look_now(&mut self, now: Instant) {
        self.next_look = now;
    }

    /// Looks whether the tree is dead, and sends KILL when the grace is over. Does nothing before the step
    /// is due.
    pub fn step(&mut self, now: Instant, tree: &mut impl ProcessTree) -> Progress {
        if now < self.next_step() {
            return Progress::Pending;
        }
        if tree.is_dead() {
            self.dead_looks += 1;
            self.pause = FIRST_PAUSE;
        } else {
            self.dead_looks = 0;
        }
        let progress = if self.dead_looks >= DEAD_LOOKS {
            Progress::Dead
        } else if self.give_up_at.is_some_and(|at| now >= at) {
            Progress::Survived
        } else {
            Progress::Pending
        };
        if progress != Progress::Pending {
            // A process that hid from the looks dies of this one.
            tree.send(Signal::KILL);
            return progress;
        }
        if now >= self.kill_at && self.give_up_at.is_none() {
            tree.send(Signal::KILL);
            self.give_up_at = Some(now + KILL_TIMEOUT);
            self.pause = FIRST_PAUSE;
        }
        self.next_look = now + self.pause;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        Progress::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dies of one signal, or of none.
    #[derive(Default)]
    struct Fake {
        dies_of: Option<Signal>,
        sent: Vec<Signal>,
        looks: usize,
    }

    impl ProcessTree for Fake {
        fn send(&mut self, signal: Signal) {
            self.sent.push(signal);
        }

        fn is_dead(&mut self) -> bool {
            self.looks += 1;
            self.dies_of
                .is_some_and(|signal| self.sent.contains(&signal))
        }
    }

    /// Ends a tree; how it went, how long it took, and the tree.
    fn end(dies_of: Option<Signal>, grace: Duration) -> (Progress, Duration, Fake) {
        let mut tree = Fake {
            dies_of,
            ..Fake::default()
        };
        let start = Instant::now();
        let mut now = start;
        let mut termination = Termination::begin(now, grace, &mut tree);
        loop {
            match termination.step(now, &mut tree) {
                Progress::Pending => now = termination.next_step(),
                progress => return (progress, now - start, tree),
            }
        }
    }

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn a_tree_that_obeys_term_is_dead_after_two_looks() {
        let (progress, took, tree) = end(Some(Signal::TERM), GRACE);
        assert_eq!((progress, took), (Progress::Dead, FIRST_PAUSE));
        assert_eq!(tree.sent, [Signal::TERM, Signal::CONT, Signal::KILL]);
    }

    #[test]
    fn a_tree_that_ignores_term_is_killed_after_the_grace() {
        let (progress, took, tree) = end(Some(Signal::KILL), GRACE);
        assert_eq!(progress, Progress::Dead);
        assert!(took >= GRACE && took <= GRACE + MAX_PAUSE, "{took:?}");
        assert_eq!(tree.sent[2], Signal::KILL);
        assert!(tree.looks <= (GRACE.as_millis() / MAX_PAUSE.as_millis()) as usize + 10);
    }

    #[test]
    fn without_a_grace_the_kill_comes_at_once() {
        let (progress, took, _) = end(Some(Signal::KILL), Duration::ZERO);
        assert_eq!(progress, Progress::Dead);
        assert!(took <= 2 * FIRST_PAUSE + 2 * FIRST_PAUSE, "{took:?}");
    }

    #[test]
    fn a_tree_that_survives_kill_is_given_up() {
        let (progress, took, _) = end(None, GRACE);
        assert_eq!((progress, took), (Progress::Survived, GRACE + KILL_TIMEOUT));
    }
}
