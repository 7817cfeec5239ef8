//! Blobs that the database of several servers has, and this one not: one thread fetches them, those that somebody has
//! asked for first.

use super::place::Draft;
use super::saving::Sharing;
use super::vault::{UploadNumber, VAULT_PIECE_BYTES, Vault};
use super::{Blobs, on_disk};
use crate::wire::files::BlobId;
use log::warn;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A blob that could not be fetched is tried again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// The pause after an error, also before the next blob.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// What is to be fetched, besides everything that is not here.
#[derive(Default)]
pub struct Fetches {
    state: Mutex<State>,
    comes: Condvar,
}

#[derive(Default)]
struct State {
    /// What somebody has asked for, each once.
    asked: VecDeque<BlobId>,
    /// What could not be fetched: when, and why.
    failed: BTreeMap<BlobId, (Instant, String)>,
}

impl Fetches {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, patience: Duration) {
        let nothing = |state: &mut State| state.asked.is_empty();
        // What comes is looked for again.
        drop(
            self.comes
                .wait_timeout_while(self.state(), patience, nothing),
        );
    }
}

impl State {
    fn has_failed(&self, id: BlobId) -> bool {
        { self.failed.get(&id) }.is_some_and(|(at, _)| at.elapsed() < RETRY_AFTER)
    }
}

impl Sharing {
    /// Somebody has asked for a blob that is not here: the words for him.
    pub fn want(&self, id: BlobId) -> String {
        let mut state = self.fetches.state();
        let why = state.failed.get(&id).map(|(_, why)| format!(" ({why})"));
        if !state.has_failed(id) && !state.asked.contains(&id) {
            state.asked.push_back(id);
            self.fetches.comes.notify_one();
        }
        format!(
            "the file is being fetched from the database{}; come back in a second",
            why.unwrap_or_default()
        )
    }
}

impl Blobs {
    /// How many blobs only the database has.
    pub fn missing(&self) -> usize {
        let index = self.index();
        let missing = index.blobs.values().filter(|blob| blob.stored.is_none());
        missing.count()
    }

    /// Fetches what is not here, for ever. Of a single server it returns at once.
    pub fn fetch_forever(&self) {
        let Some(sharing) = self.sharing() else {
            return;
        };
        let mut vault = sharing.open();
        loop {
            if let Some(id) = self.next_asked(sharing) {
                self.fetch(sharing, &mut *vault, id, true);
            } else if let Some(id) = self.next_missing(sharing) {
                self.fetch(sharing, &mut *vault, id, false);
            } else {
                sharing.fetches.wait(RETRY_AFTER);
            }
        }
    }

    fn next_asked(&self, sharing: &Sharing) -> Option<BlobId> {
        sharing.fetches.state().asked.pop_front()
    }

    fn next_missing(&self, sharing: &Sharing) -> Option<BlobId> {
        let state = sharing.fetches.state();
        let index = self.index();
        let mut missing = { index.blobs.iter() }.filter(|(_, blob)| blob.stored.is_none());
        let next = missing.find(|(id, _)| !state.has_failed(**id));
        next.map(|(id, _)| *id)
    }

    /// Fetches a blob, unless it is here. While nobody waits for it, those come first that somebody waits for.
    fn fetch(&self, sharing: &Sharing, vault: &mut dyn Vault, id: BlobId, is_asked: bool) {
        let fetched = self.try_to_fetch(sharing, vault, id, is_asked);
        let mut state = sharing.fetches.state();
        match fetched {
            Ok(()) => drop(state.failed.remove(&id)),
            Err(why) => {
                let failed = (Instant::now(), why.clone());
                let is_new = state.failed.insert(id, failed).is_none();
                drop(state);
                if is_new {
                    warn!("the file {id} cannot be fetched from the database: {why}; tries again");
                }
                thread::sleep(FAILURE_PAUSE);
            }
        }
    }

    fn try_to_fetch(
        &self,
        sharing: &Sharing,
        vault: &mut dyn Vault,
        id: BlobId,
        is_asked: bool,
    ) -> Result<(), String> {
        let Some((upload, bytes)) = self.lacks(id) else {
            return Ok(());
        };
        let place = self.place().map_err(|refused| refused.msg)?;
        let on_disk = |why| on_disk(why).msg;
        let draft: Draft = place.draft().map_err(on_disk)?;
        let mut hash = Sha256::new();
        for n in 0..bytes.div_ceil(VAULT_PIECE_BYTES) {
            while let Some(other) = (!is_asked).then(|| self.next_asked(sharing)).flatten() {
                if other != id {
                    self.fetch(sharing, vault, other, true);
                }
            }
            let at = n * VAULT_PIECE_BYTES;
            let length = (bytes - at).min(VAULT_PIECE_BYTES);
            let piece = vault.piece(upload, n)?.unwrap_or_default();
            if self.lacks(id) != Some((upload, bytes)) {
                return Ok(());
            }
            if piece.len() as u64 != length {
                return Err("the database has lost a piece of it".into());
            }
            sharing.fetched.fetch_add(length, Ordering::Relaxed);
            hash.update(&piece);
            draft.write(at, &piece).map_err(on_disk)?;
        }
        if BlobId(hash.finalize().into()) != id {
            return Err("the database has other bytes in its place".into());
        }
        place.sync(&draft).map_err(on_disk)?;
        let _disk = self.disk();
        if self.lacks(id) == Some((upload, bytes)) {
            let stored = place.keep(draft, id).map_err(on_disk)?;
            if let Some(blob) = self.index().blobs.get_mut(&id) {
                blob.stored = Some(stored);
            }
        }
        Ok(())
    }

    /// In which upload a blob is, and how long it is, if it is not here.
    fn lacks(&self, id: BlobId) -> Option<(UploadNumber, u64)> {
        let index = self.index();
        let blob = index.blobs.get(&id).filter(|blob| blob.stored.is_none())?;
        Some((blob.upload?, blob.bytes))
    }
}
