//! The servers of a registry, as each of them says that it is there. Not part of the records: nothing that is decided
//! hangs on this table.

use super::statement::{Row, Statement};
use crate::server::state::db::{Announced, Holder, SettingsProof};

/// Who has not announced itself for so long has ended: a few announcements may fail.
const SHOWN_FOR: &str = "interval '45 seconds'";
/// The rows of those who ended are removed after this time.
const KEPT_FOR: &str = "interval '1 day'";

/// Writes that a server is there, and reads the others. All times are those of the database. It does not wait for a
/// standby of the database: what is lost is written again soon.
pub fn statement(address: &str, settings: &SettingsProof, holder: Holder) -> Statement {
    let mut all = Statement::default();
    let address = all.maybe_text(Some(address));
    let holder = all.number(holder.0.get());
    let version = all.maybe_text(Some(env!("CARGO_PKG_VERSION")));
    let SettingsProof {
        tokens,
        limits,
        binaries,
    } = settings;
    let (tokens, limits) = (all.bytes(tokens), all.bytes(limits));
    let binaries = all.bytes(binaries);
    all.push(&format!(
        "WITH settings AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)), \
         own AS (INSERT INTO sb_server AS s (address, holder, version, since, seen, tokens, limits, binaries) \
         SELECT {address}, {holder}, {version}, now(), now(), {tokens}, {limits}, {binaries} FROM settings \
         ON CONFLICT (address) DO UPDATE SET holder = excluded.holder, version = excluded.version, \
         since = CASE WHEN s.holder = excluded.holder THEN s.since ELSE excluded.since END, \
         seen = excluded.seen, tokens = excluded.tokens, limits = excluded.limits, binaries = excluded.binaries), \
         gone AS (DELETE FROM sb_server WHERE seen < now() - {KEPT_FOR} AND address <> {address}) \
         SELECT s.address, s.version, (extract(epoch FROM s.since) * 1000)::bigint, \
         coalesce(s.holder = l.holder, false), s.tokens, s.limits, s.binaries \
         FROM sb_server s, sb_leader l WHERE s.seen > now() - {SHOWN_FOR} AND s.address <> {address} \
         ORDER BY s.address"
    ));
    all
}

/// Another server.
pub fn read(row: &mut Row<'_>) -> Result<Announced, String> {
    Ok(Announced {
        address: row.maybe_text()?.unwrap_or_default(),
        version: row.maybe_text()?.unwrap_or_default(),
        since_ms: row.number()?,
        leads: row.truth()?,
        settings: SettingsProof {
            tokens: row.bytes()?.into(),
            limits: row.bytes()?.into(),
            binaries: row.bytes()?.into(),
        },
    })
}
