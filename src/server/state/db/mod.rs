//! The optional database, in which acknowledged changes survive a restart.
//!
//! | file | content |
//! | --- | --- |
//! | `engine` | [`StorageEngine`]: what the server asks of a database, and what each answer promises |
//! | `leadership` | this server's term: it takes the lead, numbers the commits, resigns |
//! | `election` | who leads, of several servers: roles and times, without a clock or I/O |
//! | `trust` | until when this server may answer from memory |
//! | `inspect` | `sidebike db …` |
//! | `records` | how a record becomes bytes, in every engine |
//! | `redb_file` | one file of redb, for one server |
//! | `postgres` | PostgreSQL, for several servers |
//! | `model`, `script` | for tests: an engine in memory, and the operations that every engine has to pass |
//!
//! To add an engine: implement [`StorageEngine`] in a file of its own, and run `script::run` against it.

pub mod election;
mod engine;
pub mod inspect;
mod leadership;
#[doc(hidden)]
pub mod model;
#[cfg(feature = "pg")]
pub mod postgres;
mod records;
mod redb_file;
#[cfg(test)]
mod script;
mod trust;

pub use self::engine::{
    Announced, CommitNumber, Committed, Connect, Holder, LeaderRecord, NOT_ALIVE, RegistryId,
    Secret, Seen, SettingsProof, StorageEngine, Term,
};
pub use self::leadership::{Leadership, Progress};
#[cfg(test)]
pub use self::model::{Fate, Model};
#[cfg(feature = "pg")]
pub use self::postgres::Postgres;
pub use self::redb_file::{RedbFile, damaged};
pub use self::trust::{Trust, boot_time};
