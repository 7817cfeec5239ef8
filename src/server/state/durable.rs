//! What has to be on the disk before it is acknowledged, and who waits for that.
//!
//! Every change gets a ticket, in the order of the changes. One thread saves what has come together
//! since it last looked, as one commit; whoever must not answer before waits for its ticket. So
//! durability costs a wait, but not a commit each. Without a database every ticket is good at once.

#[cfg(feature = "db")]
use super::db::Db;
#[cfg(feature = "db")]
use crate::core::OutputChange;
use crate::core::{Batch, OutputKey, Time};
#[cfg(feature = "db")]
use log::{error, info, warn};
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "db")]
use std::time::{Duration, Instant};

/// Changes that nobody waits for (output that came, commands that started) are saved this late.
#[cfg(feature = "db")]
const UNHURRIED: Duration = Duration::from_millis(500);
/// The pause after an error of the disk, before it is tried again.
#[cfg(feature = "db")]
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// Those who have just been answered often come back at once: the next commit waits until as many are
/// there as the last one answered and as came meanwhile, but no longer than the last one took, and
/// no longer than this.
#[cfg(feature = "db")]
const MAX_GATHERING: Duration = Duration::from_millis(5);
/// While something has not ended, it is saved this often that the server lives: so the time that it
/// was away, which does not count, is known that well.
#[cfg(feature = "db")]
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// The most output that waits for the disk, in bytes: beyond it only of which attempts is noted.
const MAX_WAITING_OUTPUT: usize = 32 << 20;

/// A change's place in the order of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(u64);

/// What waits to be saved.
#[derive(Default)]
struct Waiting {
    batch: Batch,
    /// The output in it, in bytes.
    output_bytes: usize,
    /// Attempts of which everything that is kept is to be saved: what came of them did not fit in
    /// here, or may have reached the disk or not.
    whole: BTreeSet<OutputKey>,
    /// The last change in it.
    last: Ticket,
    /// When it was last known what has changed.
    now: Time,
    /// Something has not ended by then.
    unfinished: bool,
    /// How many wait for it: then it is saved at once.
    waiters: usize,
    /// The server ends.
    closing: bool,
}

impl Waiting {
    fn add(&mut self, batch: Batch) {
        let output = batch.output.iter();
        self.output_bytes += output.map(|(_, change)| change.cost()).sum::<usize>();
        self.batch.add(batch);
        if self.output_bytes > MAX_WAITING_OUTPUT {
            self.whole
                .extend(self.batch.output.drain(..).map(|(key, _)| key));
            self.output_bytes = 0;
        }
    }

    /// Puts back what was taken out and could not be saved.
    #[cfg(feature = "db")]
    fn put_back(&mut self, mut batch: Batch) {
        self.whole
            .extend(batch.output.drain(..).map(|(key, _)| key));
        let later = std::mem::replace(&mut self.batch, batch);
        self.batch.add(later);
    }
}

/// What is known of the disk.
#[derive(Default)]
struct Disk {
    /// The last change that it has.
    has: Ticket,
    /// The last change that it refused, and why, until it takes changes again.
    refused: Option<(Ticket, String)>,
    /// The last of everything has been saved, and the file is closed.
    closed: bool,
}

/// Saves changes in the order in which they are given.
pub struct Durable {
    /// `None` without a database.
    waiting: Option<Mutex<Waiting>>,
    comes: Condvar,
    disk: Mutex<Disk>,
    changes: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Durable {
    /// Nothing to be saved yet.
    pub fn new(with_database: bool) -> Self {
        Durable {
            waiting: with_database.then(Mutex::default),
            comes: Condvar::new(),
            disk: Mutex::default(),
            changes: Condvar::new(),
        }
    }

    /// Whether there is a disk to wait for.
    pub fn may_wait(&self) -> bool {
        self.waiting.is_some()
    }

    /// Takes in what a change has changed, and whether something has not ended. To be called in the
    /// order of the changes.
    pub fn take_in(&self, now: Time, batch: Batch, unfinished: bool) -> Ticket {
        let Some(waiting) = &self.waiting else {
            return Ticket::default();
        };
        let mut waiting = lock(waiting);
        waiting.now = now;
        waiting.unfinished = unfinished;
        if !batch.is_empty() {
            waiting.add(batch);
            waiting.last.0 += 1;
        }
        waiting.last
    }

    /// The ticket of everything that has changed so far.
    pub fn so_far(&self) -> Ticket {
        let waiting = self.waiting.as_ref();
        waiting.map_or(Ticket::default(), |waiting| lock(waiting).last)
    }

    /// Waits until the disk has everything up to `ticket`. The error says why it has not.
    pub fn wait(&self, ticket: Ticket) -> Result<(), String> {
        let Some(waiting) = &self.waiting else {
            return Ok(());
        };
        if lock(&self.disk).has >= ticket {
            return Ok(());
        }
        {
            let mut waiting = lock(waiting);
            waiting.waiters += 1;
            self.comes.notify_one();
        }
        let mut disk = lock(&self.disk);
        loop {
            match &disk.refused {
                _ if disk.has >= ticket => return Ok(()),
                Some((refused, why)) if *refused >= ticket => return Err(why.clone()),
                _ if disk.closed => return Err("the server ends".into()),
                _ => {
                    disk = self
                        .changes
                        .wait(disk)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    /// Why the disk takes nothing at the moment, if it does not.
    pub fn trouble(&self) -> Option<String> {
        self.waiting.as_ref()?;
        lock(&self.disk)
            .refused
            .as_ref()
            .map(|(_, why)| why.clone())
    }

    /// Saves for as long as the server lives. `kept` gives everything that is kept of the output of
    /// attempts, as it is now.
    #[cfg(feature = "db")]
    pub fn save_forever(
        &self,
        mut db: Db,
        kept: impl Fn(&BTreeSet<OutputKey>) -> Vec<(OutputKey, OutputChange)>,
    ) {
        let Some(waiting) = &self.waiting else { return };
        let mut last_commit = Instant::now();
        let (mut took, mut waiters) = (Duration::ZERO, 0);
        loop {
            let (mut batch, whole, last, now, unfinished, closing) = {
                let guard = lock(waiting);
                let expected = waiters + guard.waiters;
                let idle = |w: &mut Waiting| w.waiters == 0 && !w.closing;
                let (mut guard, _) = self
                    .comes
                    .wait_timeout_while(guard, UNHURRIED, idle)
                    .unwrap_or_else(PoisonError::into_inner);
                let fewer = |w: &mut Waiting| w.waiters < expected && !w.closing;
                if guard.waiters > 0 {
                    guard = self
                        .comes
                        .wait_timeout_while(guard, took.min(MAX_GATHERING), fewer)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                waiters = std::mem::take(&mut guard.waiters);
                guard.output_bytes = 0;
                (
                    std::mem::take(&mut guard.batch),
                    std::mem::take(&mut guard.whole),
                    guard.last,
                    guard.now,
                    guard.unfinished,
                    guard.closing,
                )
            };
            let silent = unfinished && last_commit.elapsed() >= SIGN_OF_LIFE;
            let saved = if batch.is_empty() && whole.is_empty() && !silent {
                Ok(())
            } else {
                // After an error the least is tried first, as all that is kept may be much.
                let works = self
                    .trouble()
                    .map_or(Ok(()), |_| db.commit(now, &Batch::default()));
                works.and_then(|()| {
                    if !whole.is_empty() {
                        // What came later is in there, too, and comes again: that does no harm.
                        batch.output.extend(kept(&whole));
                    }
                    last_commit = Instant::now();
                    let saved = db.commit(now, &batch);
                    took = last_commit.elapsed();
                    saved
                })
            };
            match saved {
                Ok(()) => self.note_saved(last),
                Err(why) => {
                    let mut waiting = lock(waiting);
                    waiting.whole.extend(whole);
                    waiting.put_back(batch);
                    drop(waiting);
                    self.note_refused(last, why, closing);
                }
            }
            if closing {
                db.close();
                lock(&self.disk).closed = true;
                self.changes.notify_all();
                return;
            }
            if self.trouble().is_some() {
                let guard = lock(waiting);
                let open = |w: &mut Waiting| !w.closing;
                drop(self.comes.wait_timeout_while(guard, AFTER_ERROR, open));
            }
        }
    }

    #[cfg(feature = "db")]
    fn note_saved(&self, last: Ticket) {
        let mut disk = lock(&self.disk);
        disk.has = disk.has.max(last);
        if disk.refused.take().is_some() {
            info!("the database takes changes again");
        }
        self.changes.notify_all();
    }

    #[cfg(feature = "db")]
    fn note_refused(&self, last: Ticket, why: String, closing: bool) {
        let mut disk = lock(&self.disk);
        if closing {
            error!("the last changes are not saved: {why}");
        } else if disk.refused.is_none() {
            warn!("database: {why}; nothing new is accepted until it takes changes again");
        }
        disk.refused = Some((
            last,
            format!("database: {why}; nothing is accepted until it takes changes again"),
        ));
        self.changes.notify_all();
    }

    /// Saves the last of it and closes the file; waits for that.
    pub fn close(&self) {
        let Some(waiting) = &self.waiting else { return };
        lock(waiting).closing = true;
        self.comes.notify_one();
        let disk = lock(&self.disk);
        drop(self.changes.wait_while(disk, |disk| !disk.closed));
    }
}
