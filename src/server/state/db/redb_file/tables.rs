//! The tables of a file, and how a record becomes bytes.
//!
//! To save something new: a table here, its lines in `write` and `read`, and a version in
//! [`Batch::reader_version`](crate::core::Batch::reader_version), if an older program would drop it.

use crate::core::SavedPiece;
use crate::wire::agent::Stream;
use redb::{Table, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;

/// Numbers by name.
pub const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Tasks by number.
pub const TASKS: TableDefinition<u64, &[u8]> = TableDefinition::new("tasks");
/// By task and number.
pub const EXECUTIONS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("executions");
/// By task, number, attempt, and a number that counts up.
pub const OUTPUT: TableDefinition<(u64, u32, u32, u64), &[u8]> = TableDefinition::new("output");
/// Machines by instance.
pub const MACHINES: TableDefinition<&str, &[u8]> = TableDefinition::new("machines");
/// What holds for the whole server, by its name. Files of earlier versions do not have it.
pub const SWITCHES: TableDefinition<&str, &[u8]> = TableDefinition::new("switches");
/// Limits by name. Files of earlier versions do not have it.
pub const LIMITS: TableDefinition<&str, &[u8]> = TableDefinition::new("limits");
/// Schedules as they were posted, by number. Files of earlier versions than 5 do not have these two.
pub const SCHEDULES: TableDefinition<u64, &[u8]> = TableDefinition::new("schedules");
/// How far they have come: that changes with each firing, and may be much shorter.
pub const PROGRESS: TableDefinition<u64, &[u8]> = TableDefinition::new("progress");
/// Notifications by number. Files of earlier versions do not have it.
pub const NOTIFICATIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("notifications");

/// The halt, among the switches.
pub const SWITCH_HALT: &str = "halt";
/// All suspensions, among the switches.
pub const SWITCH_SUSPENSIONS: &str = "suspensions";

/// The version of the format.
pub const META_VERSION: &str = "version";
/// When the server was last known to run.
pub const META_LAST_ALIVE: &str = "lastAlive";
/// The number of the next task.
pub const META_NEXT_TASK: &str = "nextTask";
/// That of the next schedule.
pub const META_NEXT_SCHEDULE: &str = "nextSchedule";
/// The term of the last leader, first of the three numbers of the leader record. Files of earlier programs do not have
/// them, and those programs leave them alone.
pub const META_TERM: &str = "term";
/// The number of the last commit in that term.
pub const META_BEAT: &str = "beat";
/// The leader. 0: it has resigned.
pub const META_HOLDER: &str = "holder";

/// [`META`], open for writing.
pub type MetaTable<'a> = Table<'a, &'static str, u64>;
/// [`OUTPUT`], open for writing.
pub type OutputTable<'a> = Table<'a, (u64, u32, u32, u64), &'static [u8]>;

/// Reads a record; the error names it.
pub fn record<T: DeserializeOwned>(
    what: &str,
    key: impl Display,
    bytes: &[u8],
) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|why| format!("the record of {what} {key}: {why}"))
}

/// Encodes a record.
pub fn json<T: Serialize>(record: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(record).map_err(text)
}

/// An error of the library, for a person.
pub fn text(error: impl Display) -> String {
    error.to_string()
}

/// Encodes a piece of output: the stream, the offset, the bytes.
pub fn encoded(piece: &SavedPiece) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + piece.data.len());
    bytes.push(piece.stream as u8);
    bytes.extend_from_slice(&piece.offset.to_le_bytes());
    bytes.extend_from_slice(&piece.data);
    bytes
}

/// Reads what [`encoded`] has made.
pub fn decoded(bytes: &[u8]) -> Option<SavedPiece> {
    let (stream, rest) = bytes.split_first()?;
    let (offset, data) = rest.split_first_chunk::<8>()?;
    let stream = match stream {
        0 => Stream::Stdout,
        1 => Stream::Stderr,
        _ => return None,
    };
    Some(SavedPiece {
        stream,
        offset: u64::from_le_bytes(*offset),
        data: data.to_vec(),
    })
}
