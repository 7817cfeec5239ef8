//! What has to be on the disk before it is acknowledged, and who waits for that.
//!
//! Every change gets a ticket, in the order of the changes. One thread saves what has come together
//! since it last looked, as one commit; whoever must not answer before waits for its ticket. So
//! durability costs a wait, but not a commit each. Without a database every ticket is good at once.

#[cfg(feature = "db")]
use super::db::Db;
use crate::core::{Batch, Time};
use log::{info, warn};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Changes that nobody waits for (output that came, commands that started) are saved this late.
const UNHURRIED: Duration = Duration::from_millis(500);
/// The pause after an error of the disk, before it is tried again.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// A change's place in the order of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(u64);

/// What waits to be saved.
#[derive(Default)]
struct Waiting {
    batch: Batch,
    /// The last change in it.
    last: Ticket,
    /// When that was.
    now: Time,
    /// Somebody waits for it.
    hurry: bool,
    /// The server ends.
    closing: bool,
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

    /// Takes in what a change has changed. To be called in the order of the changes.
    pub fn take_in(&self, now: Time, batch: Batch) -> Ticket {
        let Some(waiting) = &self.waiting else {
            return Ticket::default();
        };
        let mut waiting = lock(waiting);
        if !batch.is_empty() {
            waiting.batch.add(batch);
            waiting.last.0 += 1;
            waiting.now = now;
        }
        waiting.last
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
            waiting.hurry = true;
            self.comes.notify_one();
        }
        let mut disk = lock(&self.disk);
        loop {
            match &disk.refused {
                _ if disk.has >= ticket => return Ok(()),
                Some((refused, why)) if *refused >= ticket => return Err(why.clone()),
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

    /// Saves for as long as the server lives.
    #[cfg(feature = "db")]
    pub fn save_forever(&self, mut db: Db) {
        let Some(waiting) = &self.waiting else { return };
        loop {
            let (batch, last, now, closing) = {
                let guard = lock(waiting);
                let idle = |w: &mut Waiting| !w.hurry && !w.closing;
                let (mut guard, _) = self
                    .comes
                    .wait_timeout_while(guard, UNHURRIED, idle)
                    .unwrap_or_else(PoisonError::into_inner);
                guard.hurry = false;
                (
                    std::mem::take(&mut guard.batch),
                    guard.last,
                    guard.now,
                    guard.closing,
                )
            };
            let saved = if batch.is_empty() {
                Ok(())
            } else {
                db.commit(now, &batch)
            };
            match saved {
                Ok(()) => self.note_saved(last),
                Err(why) => {
                    self.note_refused(last, why);
                    let mut waiting = lock(waiting);
                    let later = std::mem::replace(&mut waiting.batch, batch);
                    waiting.batch.add(later);
                }
            }
            if closing {
                drop(db);
                lock(&self.disk).closed = true;
                self.changes.notify_all();
                return;
            }
            if self.trouble().is_some() {
                std::thread::sleep(AFTER_ERROR);
            }
        }
    }

    fn note_saved(&self, last: Ticket) {
        let mut disk = lock(&self.disk);
        disk.has = disk.has.max(last);
        if disk.refused.take().is_some() {
            info!("the database takes changes again");
        }
        self.changes.notify_all();
    }

    fn note_refused(&self, last: Ticket, why: String) {
        let mut disk = lock(&self.disk);
        if disk.refused.is_none() {
            warn!("{why}; nothing new is accepted until it works again");
        }
        disk.refused = Some((last, why));
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
