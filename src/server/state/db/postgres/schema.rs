//! The tables, and what a connection finds of them.

/// What makes the tables.
pub const SCHEMA: &str = include_str!("schema.sql");

/// The oldest PostgreSQL with all that the statements use, as it numbers its versions: it draws random ids.
pub const MIN_SERVER: u64 = 130_000;

/// Asks whether writes are possible here, how old the server is, and whether there are tables.
pub const GREETING: &str = "SELECT pg_is_in_recovery(), current_setting('server_version_num')::bigint, \
     to_regclass('sb_leader') IS NOT NULL";
