//! The tables of a file.
//!
//! To save something new: a table here, its lines in `write` and `read`, and a version in
//! [`Batch::reader_version`](crate::core::Batch::reader_version), if an older program would drop it.

pub use super::super::records::{
    SWITCH_HALT, SWITCH_SUSPENSIONS, decoded, encoded, json, record, text,
};

use redb::{Table, TableDefinition};

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

/// The version of the format.
pub const META_VERSION: &str = "version";
/// When the server was last known to run.
pub const META_LAST_ALIVE: &str = "lastAlive";
/// The number of the next task.
pub const META_NEXT_TASK: &str = "nextTask";
/// That of the next schedule.
pub const META_NEXT_SCHEDULE: &str = "nextSchedule";
/// For how long servers were away in all, in ms.
pub const META_AWAY: &str = "awayMs";
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
