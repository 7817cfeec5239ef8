//! What a leader has in memory: the real core, what is to be saved, held polls, and answers that wait for a commit. A
//! model of `server/state`.

use super::serving::Reply;
use crate::crash::read_back;
use crate::server::LIMITS;
use sidebike::core::{Batch, Core, MachineKey, OutputKey, Saved, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The delay before changes are saved that no answer waits for.
const IDLE_DELAY: Duration = Duration::from_millis(500);

/// A held poll.
pub struct Held {
    pub hold: u64,
    pub who: usize,
    pub id: u64,
    pub seq: u64,
}

/// A commit on its way.
pub struct Sent {
    pub batch: Batch,
    pub replies: Vec<Reply>,
}

pub struct Registry {
    pub core: Core,
    /// When it was restored, by the node's clock, and what its own clock showed then.
    started: (Duration, Time),
    waiting: Batch,
    /// Attempts whose output has to be saved as a whole, because it may or may not be saved.
    whole: BTreeSet<OutputKey>,
    replies: Vec<Reply>,
    /// Since when something waits to be saved.
    changed: Option<Duration>,
    pub held: BTreeMap<MachineKey, Held>,
}

impl Registry {
    /// As it was saved. Its clock is the wall clock, which never shows less than what was saved.
    pub fn restored(clock: Duration, wall: Time, saved: Saved) -> Registry {
        let now = wall.max(saved.last_alive);
        let saved = Saved {
            tasks: read_back(&saved.tasks),
            executions: read_back(&saved.executions),
            machines: read_back(&saved.machines),
            ..saved
        };
        let core = Core::restored(LIMITS, now, saved).expect("what was saved is restored");
        let mut registry = Registry {
            core,
            started: (clock, now),
            waiting: Batch::default(),
            whole: BTreeSet::new(),
            replies: Vec::new(),
            changed: None,
            held: BTreeMap::new(),
        };
        registry.gather_changes(clock);
        registry
    }

    /// What its clock shows.
    pub fn time(&self, clock: Duration) -> Time {
        let (since, started) = self.started;
        Time(started.0 + (clock - since).as_millis() as u64)
    }

    /// When the node's clock shows this time.
    pub fn clock_at(&self, time: Time) -> Duration {
        let (since, started) = self.started;
        since + Duration::from_millis(time.millis_since(started))
    }

    /// Queues what has changed.
    pub fn gather_changes(&mut self, clock: Duration) {
        self.waiting.add(self.core.take_batch());
        if self.has_unsaved() {
            self.changed.get_or_insert(clock);
        }
    }

    fn has_unsaved(&self) -> bool {
        !self.waiting.is_empty() || !self.whole.is_empty()
    }

    /// An answer that waits until everything so far is saved. Gives it back if it is, as far as it is not on its way.
    pub fn wait(&mut self, reply: Reply) -> Option<Reply> {
        if !self.has_unsaved() {
            return Some(reply);
        }
        self.replies.push(reply);
        None
    }

    /// From when on there is something to be saved.
    pub fn commit_due(&self) -> Option<Duration> {
        match self.replies.is_empty() {
            true => self.changed.map(|since| since + IDLE_DELAY),
            false => Some(Duration::ZERO),
        }
    }

    /// All that is to be saved now.
    pub fn next_commit(&mut self) -> Sent {
        let mut batch = std::mem::take(&mut self.waiting);
        let whole = std::mem::take(&mut self.whole);
        batch.output.extend(self.core.output_snapshot(&whole));
        self.changed = None;
        Sent {
            batch,
            replies: std::mem::take(&mut self.replies),
        }
    }

    /// A commit may have been saved or not: it is repeated with what has changed since.
    pub fn put_back(&mut self, mut batch: Batch) {
        let output = batch.output.drain(..).map(|(key, _)| key);
        self.whole.extend(output);
        batch.add(std::mem::take(&mut self.waiting));
        self.waiting = batch;
        if self.has_unsaved() {
            self.changed.get_or_insert(Duration::ZERO);
        }
    }

    /// The database went back, and has only this left: everything is to be written anew.
    pub fn heal(&mut self, left: &Saved) {
        self.whole.extend(self.core.record_everything(left));
        self.gather_changes(Duration::ZERO);
    }
}
