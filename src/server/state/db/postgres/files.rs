//! The files of tasks: see [`Vault`].
//!
//! A statement that changes which blobs there are locks the row of the leader, as a commit does: whoever takes the
//! lead after it sees what it has done, and one that wakes up after a takeover does nothing. The pieces of an upload
//! are put without that lock, since commits would have to wait for them: what an old leader puts during a takeover
//! has no row, and never gets one.

#[cfg(test)]
mod tests;

use super::super::{Holder, Term};
use super::connection::{Connection, Failure};
use super::records::{LOAD_TIMEOUT, SAFE};
use super::statement::{Row, Statement};
use super::{Engine, LOCK_TIMEOUT, Postgres, Wrong, named};
use crate::server::blobs::vault::{
    Contents, Entry, Named, OpenVault, UploadNumber, VAULT_PIECE_BYTES, Vault,
};
use crate::wire::files::BlobId;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A statement has failed after so long without an answer. Uploads wait for it, and are told to come back then.
const FILE_TIMEOUT: Duration = Duration::from_secs(8);
/// How many pieces are removed by one statement: each is a few hundred rows for PostgreSQL.
const REMOVED_AT_ONCE: u64 = 64;
/// Why a statement has changed nothing.
const NOT_LEADING: &str = "another server leads by now";

/// The term of this server at the moment.
pub type OwnTermNow = Arc<dyn Fn() -> Term + Send + Sync>;

/// Opens connections for the files of the server that leads.
pub fn open_vault(postgres: &Postgres, holder: Holder, term: OwnTermNow) -> Box<OpenVault> {
    let target = postgres.target.clone();
    Box::new(move || {
        let engine = Engine {
            target: target.clone(),
            address: None,
            holder,
            connection: None,
        };
        let term = term.clone();
        Box::new(Files { engine, term })
    })
}

struct Files {
    engine: Engine,
    term: OwnTermNow,
}

/// Every blob with how much of it is there, and every upload without a blob.
const LIST: &str = "WITH pieces AS (SELECT upload, sum(octet_length(bytes))::bigint AS bytes \
     FROM sb_blob_piece GROUP BY upload) \
     SELECT id, size, name, since, upload, coalesce(pieces.bytes, 0) \
     FROM sb_blob FULL JOIN pieces USING (upload)";

/// Which rows of an answer are which.
fn listed(contents: &mut Contents, row: &mut Row<'_>) -> Result<(), String> {
    let Some(id) = row.maybe_bytes()? else {
        // The size, the name, the time.
        for _ in 0..3 {
            row.maybe_bytes()?;
        }
        let upload = UploadNumber(row.number()?);
        contents.leftovers.push(upload);
        return Ok(());
    };
    let id = id
        .try_into()
        .map_err(|_| "a hash in sb_blob has not 32 bytes")?;
    let bytes = row.number()?;
    let name = String::from_utf8_lossy(row.bytes()?).into_owned();
    let since = UNIX_EPOCH + Duration::from_millis(row.number()?);
    let upload = UploadNumber(row.number()?);
    let entry = Entry {
        id: BlobId(id),
        bytes,
        name,
        since,
        upload,
    };
    match row.number()? == bytes {
        true => contents.blobs.push(entry),
        false => contents.broken.push(entry),
    }
    Ok(())
}

fn list(connection: &mut Connection) -> Result<Contents, Failure> {
    let (mut contents, list) = (Contents::default(), Statement::new(LIST));
    connection.rows(&list, Some(LOAD_TIMEOUT), &mut |row| {
        listed(&mut contents, row)
    })?;
    Ok(contents)
}

impl Files {
    /// A statement that has begun with its settings, and the names of the parameters for one's own term and holder.
    /// One that meets an earlier try, which waits for the standby of the database, must not wait as well, or those
    /// that are given up here use up the connections there.
    fn own(&self) -> (Statement, String, String) {
        let mut statement = Statement::new(format!(
            "WITH settings AS MATERIALIZED (SELECT set_config('lock_timeout', '{LOCK_TIMEOUT}', true), {SAFE})"
        ));
        let term = statement.number((self.term)().0);
        let holder = statement.number(self.engine.holder.0.get());
        (statement, term, holder)
    }

    /// A statement that begins with the lock of one's own row.
    fn fenced(&self) -> Statement {
        let (mut statement, term, holder) = self.own();
        statement.push(&format!(
            ", fence AS MATERIALIZED (SELECT true FROM settings, sb_leader \
             WHERE term = {term} AND holder = {holder} FOR NO KEY UPDATE OF sb_leader)"
        ));
        statement
    }

    /// Runs a change; it returns a row if this server leads.
    fn change<T>(
        &mut self,
        statement: &Statement,
        read: impl Fn(&mut Row<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let done = self.engine.row(statement, Some(FILE_TIMEOUT), read);
        match done.map_err(Wrong::words)? {
            (Some(done), None) => Ok(done),
            (Some(_), Some(warning)) => Err(format!("PostgreSQL: {warning}")),
            (None, _) => Err(NOT_LEADING.into()),
        }
    }
}

impl Vault for Files {
    fn list(&mut self) -> Result<Contents, String> {
        self.engine.with_connection(list).map_err(Wrong::words)
    }

    fn put(&mut self, upload: UploadNumber, n: u64, piece: &[u8]) -> Result<(), String> {
        let (mut put, term, holder) = self.own();
        let (upload, n, piece) = (put.number(upload.0), put.number(n), put.bytes(piece));
        put.push(&format!(
            " INSERT INTO sb_blob_piece (upload, n, bytes) SELECT {upload}, {n}, {piece} \
             FROM settings, sb_leader WHERE term = {term} AND holder = {holder} \
             ON CONFLICT (upload, n) DO UPDATE SET bytes = excluded.bytes RETURNING true"
        ));
        self.change(&put, |row| row.truth()).map(drop)
    }

    fn name(&mut self, entry: &Entry) -> Result<Named, String> {
        let mut name = self.fenced();
        let (id, size) = (name.bytes(&entry.id.0), name.number(entry.bytes));
        let (words, since) = (
            name.bytes(entry.name.as_bytes()),
            name.number(milliseconds(entry.since)),
        );
        let upload = name.number(entry.upload.0);
        name.push(&format!(
            ", kept AS (INSERT INTO sb_blob (id, size, name, since, upload) \
             SELECT {id}, {size}, {words}, {since}, {upload} FROM fence WHERE {size} = \
             (SELECT coalesce(sum(octet_length(bytes)), 0) FROM sb_blob_piece WHERE sb_blob_piece.upload = {upload}) \
             ON CONFLICT (id) DO UPDATE SET since = excluded.since, \
             name = CASE excluded.name WHEN '' THEN sb_blob.name ELSE excluded.name END RETURNING upload) \
             SELECT (SELECT upload FROM kept) FROM fence"
        ));
        let upload = self.change(&name, |row| row.maybe_number())?;
        Ok(upload.map_or(Named::Incomplete, |upload| Named::By(UploadNumber(upload))))
    }

    fn remove(&mut self, id: BlobId, upload: UploadNumber) -> Result<(), String> {
        let mut remove = self.fenced();
        let (id, upload) = (remove.bytes(&id.0), remove.number(upload.0));
        remove.push(&format!(
            ", gone AS (DELETE FROM sb_blob USING fence WHERE id = {id} AND upload = {upload}) \
             SELECT true FROM fence"
        ));
        self.change(&remove, |row| row.truth()).map(drop)
    }

    fn discard(&mut self, upload: UploadNumber) -> Result<(), String> {
        let (mut discard, term, holder) = self.own();
        let upload = discard.number(upload.0);
        discard.push(&format!(
            ", fence AS MATERIALIZED (SELECT true FROM settings, sb_leader WHERE term = {term} AND holder = {holder}), \
             gone AS (DELETE FROM sb_blob_piece USING fence WHERE upload = {upload} AND n IN \
             (SELECT n FROM sb_blob_piece WHERE upload = {upload} LIMIT {REMOVED_AT_ONCE}) \
             AND NOT EXISTS (SELECT FROM sb_blob WHERE sb_blob.upload = {upload}) RETURNING 1) \
             SELECT (SELECT count(*) FROM gone) FROM fence"
        ));
        while self.change(&discard, |row| row.number())? > 0 {}
        Ok(())
    }

    fn piece(&mut self, upload: UploadNumber, n: u64) -> Result<Option<Vec<u8>>, String> {
        let piece = piece(upload, n);
        let read = |row: &mut Row<'_>| row.bytes().map(<[u8]>::to_vec);
        let found = self.engine.row(&piece, Some(FILE_TIMEOUT), read);
        found.map(|(piece, _)| piece).map_err(Wrong::words)
    }
}

fn piece(upload: UploadNumber, n: u64) -> Statement {
    let mut piece = Statement::default();
    let (upload, n) = (piece.number(upload.0), piece.number(n));
    piece.push(&format!(
        "SELECT bytes FROM sb_blob_piece WHERE upload = {upload} AND n = {n}"
    ));
    piece
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

/// For `sidebike db check`: how many files there are, and their bytes. The error names one that is not whole.
pub fn check(connection: &mut Connection) -> Result<(u64, u64), String> {
    let mut has_files = false;
    let ask = Statement::new("SELECT to_regclass('sb_blob') IS NOT NULL");
    let mut read = |row: &mut Row<'_>| row.truth().map(|truth| has_files = truth);
    let answer = connection.rows(&ask, Some(LOAD_TIMEOUT), &mut read);
    answer.map_err(|why| named(&why))?;
    if !has_files {
        return Ok((0, 0));
    }
    let contents = list(connection).map_err(|why| named(&why))?;
    if let Some(broken) = contents.broken.first() {
        return Err(format!("pieces of the file {} are missing", broken.id));
    }
    let mut all = 0;
    for entry in &contents.blobs {
        let mut hash = Sha256::new();
        for n in 0..entry.bytes.div_ceil(VAULT_PIECE_BYTES) {
            let mut read = |row: &mut Row<'_>| row.bytes().map(|bytes| hash.update(bytes));
            let answer = connection.rows(&piece(entry.upload, n), Some(LOAD_TIMEOUT), &mut read);
            answer.map_err(|why| named(&why))?;
        }
        let is = BlobId(hash.finalize().into());
        if is != entry.id {
            return Err(format!(
                "the bytes of the file {} have the SHA-256 {is}",
                entry.id
            ));
        }
        all += entry.bytes;
    }
    Ok((contents.blobs.len() as u64, all))
}
