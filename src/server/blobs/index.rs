//! Which blobs there are, what is half, and what has to go when there is no room. Without I/O.

use super::place::Stored;
use super::upload::Part;
use super::vault::UploadNumber;
use crate::wire::files::BlobId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A blob is not given up for others so soon after it came: its task is about to be submitted.
const FRESH: Duration = Duration::from_secs(3_600);
/// A part that nobody goes on with is forgotten after this.
const PART_KEPT: Duration = Duration::from_secs(24 * 3_600);
/// The most blobs at once: each takes about 300 bytes of memory.
const MAX_BLOBS: usize = 10_000;
/// The most halves at once: each has its hash state, and in a folder a descriptor.
const MAX_PARTS: usize = 64;
/// How many blobs are asked about at once: that is done under the lock of the tasks.
const ASKED_AT_ONCE: usize = 500;

/// Who needs a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// No task names it.
    Nobody,
    /// Only tasks that have ended, the last one then, in milliseconds of the server's time.
    Ended(u64),
    /// A task that has not ended.
    Now,
}

/// Says who needs these blobs.
pub type Needs = dyn Fn(&[BlobId]) -> Vec<Need> + Send + Sync;

/// A blob.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its length in bytes.
    pub bytes: u64,
    /// The name that it was uploaded with last; empty if it has none.
    pub name: Arc<str>,
    /// When it came last.
    pub since: SystemTime,
    /// Where it lies; `None` if only the database has it.
    pub stored: Option<Stored>,
    /// The upload that has its pieces in the database, of several servers.
    pub upload: Option<UploadNumber>,
}

/// What there is.
#[derive(Debug)]
pub struct Index {
    /// What is whole.
    pub blobs: BTreeMap<BlobId, Blob>,
    /// What is half, by what it will be.
    pub parts: BTreeMap<BlobId, Arc<Part>>,
    /// What uploads without a hash have set aside, by their number.
    reserved: BTreeMap<u64, u64>,
    /// Blobs that a task is just being submitted with, and how often.
    pins: BTreeMap<BlobId, u32>,
    next: u64,
    max_bytes: u64,
    max_blobs: usize,
}

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    /// What there is, in bytes.
    pub used: u64,
    /// What of it tasks need that have not ended, or is too fresh.
    pub needed: u64,
    /// The limit.
    pub max: u64,
    /// The number of blobs is the limit.
    pub by_number: bool,
}

impl Index {
    /// Nothing yet, with so many bytes and blobs at most.
    pub fn new(max_bytes: u64, max_blobs: usize) -> Self {
        Index {
            blobs: BTreeMap::new(),
            parts: BTreeMap::new(),
            reserved: BTreeMap::new(),
            pins: BTreeMap::new(),
            next: 0,
            max_bytes,
            max_blobs: max_blobs.min(MAX_BLOBS),
        }
    }

    /// What everything takes, in bytes.
    pub fn used(&self) -> u64 {
        let blobs: u64 = self.blobs.values().map(|blob| blob.bytes).sum();
        let parts: u64 = self.parts.values().map(|part| part.have()).sum();
        blobs + parts + self.reserved.values().sum::<u64>()
    }

    /// Whether so many bytes more fit without anything being removed.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.used() + bytes <= self.max_bytes
    }

    /// A number for an upload that sets room aside.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Sets aside so much for an upload, in place of what it had; 0 gives it back. See [`Index::make_room`].
    pub fn reserve(&mut self, number: u64, bytes: u64) {
        match bytes {
            0 => self.reserved.remove(&number),
            bytes => self.reserved.insert(number, bytes),
        };
    }

    /// Keeps these from being given up until they are unpinned. The error is the first that is not there.
    pub fn pin(&mut self, ids: &[BlobId]) -> Result<(), BlobId> {
        if let Some(missing) = ids.iter().find(|id| !self.blobs.contains_key(id)) {
            return Err(*missing);
        }
        ids.iter()
            .for_each(|id| *self.pins.entry(*id).or_default() += 1);
        Ok(())
    }

    /// Takes that back.
    pub fn unpin(&mut self, ids: &[BlobId]) {
        for id in ids {
            if let Some(pins) = self.pins.get_mut(id) {
                *pins -= 1;
                if *pins == 0 {
                    self.pins.remove(id);
                }
            }
        }
    }

    /// Whether a task is just being submitted with it.
    pub fn is_pinned(&self, id: BlobId) -> bool {
        self.pins.contains_key(&id)
    }

    /// Takes out the parts that nobody goes on with, and the oldest one if there is to be one `more` and they are too many.
    pub fn drop_old_parts(&mut self, now: SystemTime, more: bool) -> Vec<Arc<Part>> {
        let is_old = |part: &Arc<Part>| age(now, part.since()) > PART_KEPT;
        let mut gone: Vec<BlobId> = { self.parts.iter() }
            .filter(|(_, part)| is_old(part))
            .map(|(id, _)| *id)
            .collect();
        if more && self.parts.len() - gone.len() >= MAX_PARTS {
            let oldest = { self.parts.iter() }
                .filter(|(_, part)| !is_old(part))
                .min_by_key(|(_, part)| part.since());
            gone.extend(oldest.map(|(id, _)| *id));
        }
        gone.iter().filter_map(|id| self.parts.remove(id)).collect()
    }

    /// Takes out as many blobs as it needs for `bytes` more: first those that no task names, the oldest first; then
    /// those of tasks that have ended, the one that ended first first. `but` is not counted, nor is it taken out.
    pub fn make_room(
        &mut self,
        bytes: u64,
        but: Option<BlobId>,
        now: SystemTime,
        needs: &Needs,
    ) -> Result<Vec<(BlobId, Blob)>, Full> {
        let used = self.used();
        let too_much = (used + bytes).saturating_sub(self.max_bytes);
        let too_many = (self.blobs.len() + 1).saturating_sub(self.max_blobs);
        if too_much == 0 && too_many == 0 {
            return Ok(Vec::new());
        }
        let ids: Vec<BlobId> = self.blobs.keys().copied().collect();
        let asked = ids.chunks(ASKED_AT_ONCE).flat_map(needs);
        let mut spare: Vec<(Need, SystemTime, BlobId)> = { ids.iter().zip(asked) }
            .filter(|(id, need)| *need != Need::Now && !self.is_pinned(**id) && Some(**id) != but)
            .map(|(id, need)| (need, self.blobs[id].since, *id))
            .filter(|(_, since, _)| age(now, *since) >= FRESH)
            .collect();
        spare.sort();
        let (mut freed, mut going) = (0, 0);
        for (_, _, id) in &spare {
            if freed >= too_much && going >= too_many {
                break;
            }
            freed += self.blobs[id].bytes;
            going += 1;
        }
        if freed < too_much || going < too_many {
            let spared: u64 = spare.iter().map(|(_, _, id)| self.blobs[id].bytes).sum();
            return Err(Full {
                used,
                needed: used - spared,
                max: self.max_bytes,
                by_number: freed >= too_much,
            });
        }
        let gone = spare.iter().take(going);
        Ok(gone
            .filter_map(|(_, _, id)| Some((*id, self.blobs.remove(id)?)))
            .collect())
    }
}

/// How long ago; a clock that was set back makes everything new.
fn age(now: SystemTime, since: SystemTime) -> Duration {
    now.duration_since(since).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> BlobId {
        BlobId([n; 32])
    }

    fn blob(bytes: u64, hours: u64) -> Blob {
        Blob {
            bytes,
            name: "".into(),
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(hours * 3_600),
            stored: None,
            upload: None,
        }
    }

    #[test]
    fn what_nobody_needs_goes_first_and_what_is_needed_or_fresh_never() {
        let mut index = Index::new(100, 1_000);
        for (n, hours) in [(1, 5), (2, 1), (3, 2), (4, 3), (5, 9)] {
            index.blobs.insert(id(n), blob(20, hours));
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(9 * 3_600 + 10);
        let needs = |ids: &[BlobId]| {
            let need = |id: &BlobId| match id.0[0] {
                1 | 4 | 5 => Need::Nobody,
                2 => Need::Ended(7),
                _ => Need::Now,
            };
            ids.iter().map(need).collect()
        };
        let left = |index: &Index| index.blobs.keys().map(|id| id.0[0]).collect::<Vec<u8>>();
        assert_eq!(index.make_room(0, None, now, &needs).unwrap().len(), 0);
        // 5 is fresh; of 1 and 4 the latter is older.
        assert_eq!(index.make_room(1, None, now, &needs).unwrap().len(), 1);
        assert_eq!(left(&index), [1, 2, 3, 5]);
        let full = index.make_room(61, None, now, &needs).unwrap_err();
        assert_eq!(
            full,
            Full {
                used: 80,
                needed: 40,
                max: 100,
                by_number: false
            }
        );
        assert_eq!(left(&index), [1, 2, 3, 5], "nothing goes in vain");
        index.pin(&[id(1)]).unwrap();
        assert_eq!(index.make_room(40, None, now, &needs).unwrap().len(), 1);
        assert_eq!(left(&index), [1, 3, 5]);
        index.unpin(&[id(1)]);
        index.reserve(1, 40);
        assert!(index.make_room(21, None, now, &needs).is_err());
        assert_eq!(index.make_room(20, None, now, &needs).unwrap().len(), 1);
        assert_eq!(left(&index), [3, 5]);
        assert_eq!(index.pin(&[id(3), id(9)]), Err(id(9)));
        assert!(index.pins.is_empty());
        index.max_blobs = 2;
        index.reserve(1, 0);
        let full = index.make_room(1, None, now, &needs).unwrap_err();
        assert!(full.by_number);
    }
}
