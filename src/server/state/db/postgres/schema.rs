//! The tables, and what a connection finds of them.

use super::statement::Row;

/// What makes the tables.
pub const SCHEMA: &str = include_str!("schema.sql");

/// The oldest PostgreSQL with all that the statements use, as it numbers its versions: it draws random ids.
pub const MIN_SERVER: u64 = 130_000;

/// Asks whether writes are possible here, how old the server is, whether there are tables, and which standbys commits
/// wait for.
pub const GREETING: &str = "SELECT pg_is_in_recovery(), current_setting('server_version_num')::bigint, \
     to_regclass('sb_leader') IS NOT NULL, \
     to_regclass('sb_server') IS NOT NULL AND to_regclass('sb_blob_piece') IS NOT NULL, \
     current_setting('synchronous_standby_names')";

/// What is found there.
pub struct Greeting {
    pub is_standby: bool,
    pub server: u64,
    pub has_tables: bool,
    /// Those that earlier builds did not make, too.
    pub has_all_tables: bool,
    /// Empty: commits wait for none.
    pub standbys: String,
}

impl Greeting {
    /// Reads the answer.
    pub fn read(mut row: Row<'_>) -> Result<Greeting, String> {
        Ok(Greeting {
            is_standby: row.truth()?,
            server: row.number()?,
            has_tables: row.truth()?,
            has_all_tables: row.truth()?,
            standbys: row.maybe_text()?.unwrap_or_default().trim().to_owned(),
        })
    }
}
