//! What the server asks of a database, and what each answer promises.
//!
//! An engine keeps the records of one registry, and a *leader record*: the term, and how far its commits have come.
//! A server that wants to lead calls [`look`], [`take`] and [`load`], in this order, then [`commit`] until it ends, then
//! [`resign`]. `load` comes after `take`, because only then nobody else can change the records any more.
//!
//! The fence is inside the commit: the engine compares term and holder in the same atomic step in which it saves the
//! batch. A leader that was stopped, cut off or replaced without knowing it therefore changes nothing.
//!
//! [`look`]: StorageEngine::look
//! [`take`]: StorageEngine::take
//! [`load`]: StorageEngine::load
//! [`commit`]: StorageEngine::commit
//! [`resign`]: StorageEngine::resign

use crate::core::{Batch, Origin, Saved, Time};
use crate::server::blobs::vault::OpenVault;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::num::NonZeroU64;
use std::sync::Arc;

pub use crate::wire::term::{RegistryId, Term};

/// Tells servers apart: a random number that each draws when it connects to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(pub NonZeroU64);

impl Holder {
    /// A new one. It has to be new, not secret.
    pub fn fresh() -> Self {
        let random = RandomState::new().build_hasher().finish();
        Holder(NonZeroU64::new(random).unwrap_or(NonZeroU64::MIN))
    }
}

/// The time of a commit that does not say that the registry lives: the last such time stays.
pub const NOT_ALIVE: Time = Time(0);

/// Who leads, as the engine has saved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaderRecord {
    /// The term of the last leader.
    pub term: Term,
    /// Who has that term; `None` once it has resigned.
    pub holder: Option<Holder>,
    /// The number of the last commit in that term, 0 before the first.
    pub beat: u64,
}

impl LeaderRecord {
    /// With what a server begins that takes the lead from this one.
    pub fn origin(&self) -> Origin {
        Origin {
            term: self.term,
            leader: self.holder.map(|holder| holder.0.get()),
            n: self.beat,
        }
    }

    /// Whether the same holder leads, in the same term.
    pub fn is_same_leader(&self, other: &LeaderRecord) -> bool {
        (self.term, self.holder) == (other.term, other.holder)
    }
}

/// What a look shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who leads.
    pub record: LeaderRecord,
    /// Where the holder can be reached, as it said when it took the lead.
    pub address: Option<String>,
    /// Which registry the records are of. It is drawn when they are made, and never changes.
    pub registry: RegistryId,
    /// Known to all servers of the registry, and to nobody else.
    pub secret: Secret,
}

/// What the servers of a registry prove themselves with to each other. It is drawn together with the registry's id.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; Secret::BYTES]);

impl Secret {
    /// As long as the hash of an HMAC with SHA-256.
    pub const BYTES: usize = 32;

    /// A new one, from the kernel.
    pub fn fresh() -> Result<Self, String> {
        let mut bytes = [0; Secret::BYTES];
        // The kernel gives up to 256 bytes in one piece.
        let got = rustix::io::retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()));
        match got {
            Ok(Secret::BYTES) => Ok(Secret(bytes)),
            Ok(_) => Err("the kernel gave too few random bytes".into()),
            Err(why) => Err(format!("the kernel gives no random bytes: {why}")),
        }
    }
}

/// Nothing of it: it must not come into a log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Another server of the registry, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Where others reach it; no two have the same.
    pub address: String,
    /// Its version.
    pub version: String,
    /// Since when it has been there, by the clock of the engine, in milliseconds since 1970.
    pub since_ms: u64,
    /// It has the lead.
    pub leads: bool,
    /// What its settings are compared by.
    pub settings: SettingsProof,
}

/// What the settings of servers are compared by: each is the same where the settings are, and says nothing of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingsProof {
    /// Of the tokens.
    pub tokens: Vec<u8>,
    /// Of the limits.
    pub limits: Vec<u8>,
    /// Of the binaries that are handed out.
    pub binaries: Vec<u8>,
}

impl SettingsProof {
    /// What differs, in words.
    pub fn differing(&self, other: &SettingsProof) -> Vec<&'static str> {
        let pairs = [
            ("tokens", &self.tokens, &other.tokens),
            ("limits", &self.limits, &other.limits),
            ("binaries", &self.binaries, &other.binaries),
        ];
        let different = pairs.into_iter().filter(|(_, own, other)| own != other);
        different.map(|(what, ..)| what).collect()
    }
}

/// Which commit: of which term, and its place among the commits of that term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitNumber {
    /// The term of its leader.
    pub term: Term,
    /// Its number. The commits of a term are numbered from 1 upwards, and no number is used for two different batches.
    pub n: u64,
    /// The number of the last commit of this term that was done, 0 before the first. An engine that does not have it
    /// any more has gone back.
    pub after: u64,
}

/// What has become of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// The batch is saved, and so is every batch before it that was done: they survive whatever the engine survives.
    Done,
    /// The term is over, or another server has it. Nothing was changed, and no later commit of this term will change
    /// anything. What the caller has in memory is out of date: it must not commit again.
    Fenced,
    /// The term is this holder's, but the engine has lost commits of it that were done, as after a failover to a
    /// standby that was behind, or when an older backup was put back. This is the number of the last one it has. Nothing
    /// was changed, and nothing will be by commits that follow a lost one. What the caller has in memory is all there is:
    /// it has to write everything anew, as a commit that follows this number.
    WentBack(u64),
    /// The batch may be saved, now or later, or never; this is why. A look does not settle it: what it shows may still
    /// be lost. The caller has to write again: the same batch under the same number, or under a higher number a batch
    /// that contains it. An empty commit in between, to see whether the engine answers, says nothing about the batch.
    Unknown(String),
}

/// A connection to a database that keeps the records of one registry, for one leader at a time. It has a [`Holder`] of
/// its own. Errors are for people.
pub trait StorageEngine: Send {
    /// The leader record at this moment, and what goes with it. The record changes with each take, commit and
    /// resignation.
    fn look(&mut self) -> Result<Seen, String>;

    /// Says to the other servers of the registry that this one is there, and gives those that have said so lately. Only an
    /// engine that several servers share has others.
    fn announce(
        &mut self,
        _address: &str,
        _settings: &SettingsProof,
    ) -> Result<Vec<Announced>, String> {
        Ok(Vec::new())
    }

    /// Takes the lead, if the leader record is still the one that was `seen`: the answer is the new term. After that,
    /// commits of earlier holders are fenced. `None`: it has changed, and nothing was done; look again. After an error
    /// the lead may have been taken or not: look again.
    fn take(&mut self, seen: &LeaderRecord) -> Result<Option<Term>, String>;

    /// All records as they are at this moment.
    fn load(&mut self) -> Result<Saved, String>;

    /// Saves a batch completely or not at all, and `now` as the time at which the leader was last known to run, unless a
    /// later one is saved: a leader that has not loaded yet does not know it. A number that is not above the last one
    /// saved changes no record and is done: so a commit that is repeated, or that arrives late, does no harm.
    fn commit(&mut self, number: CommitNumber, now: Time, batch: &Batch) -> Committed;

    /// Makes a term higher without anybody else leading in between, because a higher one was seen: an older state of
    /// the database was put back. Only an engine that several servers share has to do that.
    fn raise(&mut self, term: Term, to: Term) -> Committed {
        Committed::Unknown(format!(
            "term {} cannot become {} with this engine",
            term.0, to.0
        ))
    }

    /// Ends a term, so that another server may lead at once. Later commits of it are fenced. If the term is over
    /// already, this changes nothing.
    fn resign(&mut self, term: Term) -> Result<(), String>;
}

/// An engine that several connections can use at the same time: a leader may load on one, while it commits signs of
/// life on another.
pub trait Connect: Send + Sync {
    /// A connection for this holder. It connects with its first call, and again after an error.
    fn connect(&self, holder: Holder) -> Box<dyn StorageEngine>;

    /// Opens connections for the files of tasks, if the engine keeps those as well. `term` is asked with each change.
    fn vault(
        &self,
        _holder: Holder,
        _term: Arc<dyn Fn() -> Term + Send + Sync>,
    ) -> Option<Box<OpenVault>> {
        None
    }

    /// Whether what was acknowledged survives a failover of the engine; `None` while that is not known.
    fn is_synchronous(&self) -> Option<bool> {
        None
    }
}
