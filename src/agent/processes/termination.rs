//! The steps of ending a process tree: looks in growing pauses, each of which sends TERM (with CONT) to
//! processes that have not got it; KILL after the grace; giving up.
//!
//! The supervisor of a command and the guard both end trees this way. There is no clock and no process in
//! here: time comes in as an argument, and the tree is a [`ProcessTree`].

use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The first pause between two looks at a tree.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Each pause is longer by this factor: a look reads all of /proc.
const PAUSE_GROWTH: u32 = 3;
/// The longest pause between two looks. A command whose own process has ended before its last one may be
/// reported this much later.
const MAX_PAUSE: Duration = Duration::from_millis(400);
/// This many looks in a row have to find the tree dead: a process that forks can hide from one look.
const DEAD_LOOKS: u32 = 2;
/// How long processes may live after KILL. One may hang in the kernel, and in a container zombies stay
/// when process 1 does not reap.
pub const KILL_TIMEOUT: Duration = Duration::from_millis(700);

/// The processes to be ended.
pub trait ProcessTree {
    /// Looks for live processes and sends them `signal`: TERM once to each, KILL every time. Whether there
    /// are any.
    fn sweep(&mut self, signal: Signal) -> bool;
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
    /// The first step, which sends TERM, is due now. KILL follows `grace` later.
    pub fn new(now: Instant, grace: Duration) -> Self {
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

    /// Looks for live processes, and sends them TERM, or KILL when the grace is over. Does nothing before
    /// the step is due.
    pub fn step(&mut self, now: Instant, tree: &mut impl ProcessTree) -> Progress {
        if now < self.next_step() {
            return Progress::Pending;
        }
        if now >= self.kill_at && self.give_up_at.is_none() {
            self.give_up_at = Some(now + KILL_TIMEOUT);
            self.pause = FIRST_PAUSE;
        }
        let signal = match self.give_up_at {
            None => Signal::TERM,
            Some(_) => Signal::KILL,
        };
        if tree.sweep(signal) {
            self.dead_looks = 0;
        } else {
            self.dead_looks += 1;
            self.pause = FIRST_PAUSE;
        }
        if self.dead_looks >= DEAD_LOOKS {
            return Progress::Dead;
        }
        if self.give_up_at.is_some_and(|at| now >= at) {
            return Progress::Survived;
        }
        self.next_look = now + self.pause;
        self.pause = (self.pause * PAUSE_GROWTH).min(MAX_PAUSE);
        Progress::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of processes that die of one signal, or of none.
    #[derive(Default)]
    struct FakeTree {
        dies_of: Option<Signal>,
        sent: Vec<Signal>,
    }

    impl ProcessTree for FakeTree {
        fn sweep(&mut self, signal: Signal) -> bool {
            let lives = !self.dies_of.is_some_and(|it| self.sent.contains(&it));
            self.sent.push(signal);
            lives
        }
    }

    /// Ends a tree: how it went, how long it took, and the signals of all looks.
    fn end(dies_of: Option<Signal>, grace: Duration) -> (Progress, Duration, Vec<Signal>) {
        let mut tree = FakeTree {
            dies_of,
            ..FakeTree::default()
        };
        let start = Instant::now();
        let mut now = start;
        let mut termination = Termination::new(now, grace);
        loop {
            match termination.step(now, &mut tree) {
                Progress::Pending => now = termination.next_step(),
                progress => return (progress, now - start, tree.sent),
            }
        }
    }

    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn a_tree_that_obeys_term_is_dead_after_two_looks() {
        let (progress, took, sent) = end(Some(Signal::TERM), GRACE);
        assert_eq!((progress, took), (Progress::Dead, 2 * FIRST_PAUSE));
        assert_eq!(sent, [Signal::TERM; 3]);
    }

    #[test]
    fn a_tree_that_ignores_term_is_killed_after_the_grace() {
        let (progress, took, sent) = end(Some(Signal::KILL), GRACE);
        assert_eq!(progress, Progress::Dead);
        assert!(took >= GRACE && took <= GRACE + MAX_PAUSE, "{took:?}");
        let kills = sent.iter().filter(|signal| **signal == Signal::KILL);
        assert_eq!(kills.count(), 3);
        assert!(sent.len() <= (GRACE.as_millis() / MAX_PAUSE.as_millis()) as usize + 10);
    }

    #[test]
    fn without_a_grace_the_kill_comes_at_once() {
        let (progress, took, sent) = end(Some(Signal::KILL), Duration::ZERO);
        assert_eq!((progress, took), (Progress::Dead, 2 * FIRST_PAUSE));
        assert_eq!(sent, [Signal::KILL; 3]);
    }

    #[test]
    fn a_tree_that_survives_kill_is_given_up() {
        let (progress, took, _) = end(None, GRACE);
        assert_eq!((progress, took), (Progress::Survived, GRACE + KILL_TIMEOUT));
    }

    #[test]
    fn nothing_is_sent_before_a_step_is_due() {
        let mut tree = FakeTree::default();
        let now = Instant::now();
        let mut termination = Termination::new(now, GRACE);
        for _ in 0..3 {
            assert_eq!(termination.step(now, &mut tree), Progress::Pending);
        }
        assert_eq!(tree.sent.len(), 1);
        termination.look_now(now);
        termination.step(now, &mut tree);
        assert_eq!(tree.sent.len(), 2);
    }
}
