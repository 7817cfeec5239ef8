//! PostgreSQL, for several servers.
//!
//! | file | content |
//! | --- | --- |
//! | `url` | `postgres://…`, and how it is shown |
//! | `socket` | TCP and TLS to one server of the database |
//! | `connection` | a session: start, authentication, statements; alone it names postgres_protocol |
//! | `statement` | a statement with its parameters, a row of an answer |
//! | `schema` | the tables |
//! | `records` | from a batch to one statement, and from the tables to everything that was saved |
//! | `files` | the files of tasks |
//! | `servers` | who says that it is there |
//! | `inspect` | for `sidebike db …` |
//!
//! Each operation is one message with one statement in a transaction of its own. The server of the database locks
//! nothing before a message is complete, so whoever is stopped while it sends one blocks nobody. There are no locks that
//! outlive a statement, no settings of the session that matter, and no statements with a name: all of them get lost in a
//! pooler.
//!
//! With a synchronous standby a commit is acknowledged once that has it. Three things look like an acknowledgement and
//! are none: a look that shows the commit after a crash, a success with a warning (somebody has canceled the wait), and
//! a connection that was closed. After each of them the caller has to write again ([`Committed::Unknown`]).

mod connection;
mod files;
pub mod inspect;
mod records;
mod schema;
mod servers;
mod socket;
mod statement;
#[cfg(test)]
mod tests;
mod url;

pub use self::schema::SCHEMA;
use self::url::Host;
pub use self::url::Url;

use self::connection::{Connection, Failure};
use self::records::{Commit, SAFE, check_version};
use self::schema::Greeting;
use self::statement::{Row, Statement};
use super::{
    Announced, CommitNumber, Committed, Connect, Holder, LeaderRecord, RegistryId, Secret, Seen,
    SettingsProof, StorageEngine, Term,
};
use crate::core::{Batch, Saved, Time};
use crate::secret::Secret as Password;
use crate::server::blobs::vault::OpenVault;
use crate::server::state::db::records::VERSION;
use crate::tls::{ClientTls, Roots};
use log::{error, info, warn};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A look has failed after so long: a standby must not count the time of one that hangs.
const LOOK_TIMEOUT: Duration = Duration::from_secs(4);
/// Who wants the lead waits for the row of the leader for so long. The row is locked while a commit waits for the
/// standby of the database: then whoever led goes on afterwards.
const LOCK_TIMEOUT: &str = "2s";
/// A resignation that takes longer is given up: the server is about to end.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(3);
/// A commit that met another statement on its way is run again, at most so often.
const MAX_RUNS: u32 = 5;

/// Where the password comes from, if the URL has none; with `_FILE` appended, a file with it.
pub const PASSWORD: &str = "SIDEBIKE_DB_PASSWORD";

/// What to do about tables that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tables {
    AreMade,
    MustBeThere,
}

/// A database of PostgreSQL, to which each server has several connections.
pub struct Postgres {
    target: Arc<Target>,
    /// Where this server can be reached, for the others.
    address: Option<String>,
}

/// What connections are made with.
struct Target {
    url: Url,
    password: Option<String>,
    /// For each host; `None` where connections are not encrypted.
    tls: Vec<Option<ClientTls>>,
    /// The standbys that commits wait for, as the last connection has found them.
    standbys: Mutex<Option<String>>,
}

impl Postgres {
    /// Checks the settings; it does not connect yet. `password` is used where the URL has none. The error is for people
    /// and names no flag.
    pub fn connector(
        url: &str,
        ca: Option<&Path>,
        password: Option<Password>,
        address: Option<String>,
    ) -> Result<Postgres, String> {
        let url = Url::read(url)?;
        let wants_tls = |host: &Host| socket::Stream::wants_tls(url.tls, host);
        let roots = match url.hosts.iter().any(wants_tls) {
            true => crate::tls::load_roots_of("--db-ca", ca)?,
            false => Roots::new(),
        };
        let tls = url.hosts.iter().map(|host| {
            let tls = wants_tls(host).then(|| ClientTls::new(&roots, &host.name));
            tls.transpose()
        });
        let target = Target {
            password: url
                .password
                .clone()
                .or(password.map(|it| it.expose().to_owned())),
            tls: tls.collect::<Result<_, _>>()?,
            url,
            standbys: Mutex::new(None),
        };
        Ok(Postgres {
            target: Arc::new(target),
            address,
        })
    }

    /// The URL without the password.
    pub fn shown(&self) -> String {
        self.target.url.to_string()
    }

    /// Says which database it is, and what is wrong with the way to it.
    pub fn explain(&self) {
        info!("database {}", self.shown());
        if self.target.url.is_insecure() {
            warn!(
                "THE WAY TO THE DATABASE IS NOT ENCRYPTED: everything that is saved can be read on the way; leave out sslmode=disable"
            );
        }
    }
}

impl Connect for Postgres {
    fn connect(&self, holder: Holder) -> Box<dyn StorageEngine> {
        Box::new(Engine {
            target: self.target.clone(),
            address: self.address.clone(),
            holder,
            connection: None,
        })
    }

    fn vault(
        &self,
        holder: Holder,
        term: Arc<dyn Fn() -> Term + Send + Sync>,
    ) -> Option<Box<OpenVault>> {
        Some(files::open_vault(self, holder, term))
    }

    /// As the last connection has found it.
    fn is_synchronous(&self) -> Option<bool> {
        let standbys = self.target.standbys.lock();
        let standbys = standbys.unwrap_or_else(PoisonError::into_inner);
        standbys.as_ref().map(|names| !names.is_empty())
    }
}

impl Target {
    /// A session with the first host that can be written to.
    fn connect(&self, tables: Tables) -> Result<Connection, String> {
        let mut reasons = Vec::new();
        for (host, tls) in self.url.hosts.iter().zip(&self.tls) {
            let password = self.password.as_deref();
            let session = Connection::open(&self.url, host, password, tls.as_ref());
            match session.and_then(|session| greeted(session, tables)) {
                Ok((connection, standbys)) => {
                    self.note(standbys);
                    return Ok(connection);
                }
                Err(why) => reasons.push(format!("{host}: {why}")),
            }
        }
        Err(format!("PostgreSQL: {}", reasons.join("; ")))
    }

    /// Says whether acknowledged commits survive a failover, at the start and when that has changed.
    fn note(&self, standbys: String) {
        let mut known = self.standbys.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() == Some(&standbys) {
            return;
        }
        match standbys.as_str() {
            "" => warn!(
                "PostgreSQL has no synchronous standby (synchronous_standby_names is empty): unless its disk is replicated, its failover loses the last moments, although they were acknowledged"
            ),
            names => info!(
                "PostgreSQL waits for its standby (synchronous_standby_names = {names}): what was acknowledged survives its failover"
            ),
        }
        *known = Some(standbys);
    }
}

fn named(why: &Failure) -> String {
    format!("PostgreSQL: {why}")
}

/// Sees that the database can be written to and has the tables; makes them if there are none. With the session come the
/// standbys that commits wait for.
fn greeted(mut connection: Connection, tables: Tables) -> Result<(Connection, String), String> {
    let mut greeting = Err("nothing was answered".into());
    let ask = Statement::new(schema::GREETING);
    let mut read = |row: Row<'_>| greeting = Greeting::read(row);
    let answer = connection.run(&ask, Some(LOOK_TIMEOUT), &mut read);
    answer.map_err(|why| why.to_string())?;
    let found = greeting?;
    if found.is_standby {
        return Err("it is a standby of the database".into());
    }
    if found.server < schema::MIN_SERVER {
        return Err(format!(
            "it is older than PostgreSQL {}",
            schema::MIN_SERVER / 10_000
        ));
    }
    if tables == Tables::MustBeThere && !found.has_tables {
        return Err("there is nothing of sidebike in it".into());
    }
    // Of the tables of an earlier build some are missing.
    if tables == Tables::MustBeThere || found.has_all_tables {
        return Ok((connection, found.standbys));
    }
    match connection.run_script(SCHEMA, Some(LOOK_TIMEOUT)) {
        Ok(()) => Ok((connection, found.standbys)),
        Err(why) => Err(format!(
            "the tables cannot be made: {why}; `sidebike db schema` prints what makes them"
        )),
    }
}

/// A connection of one server.
struct Engine {
    target: Arc<Target>,
    address: Option<String>,
    holder: Holder,
    /// `None` before the first call, and after an error.
    connection: Option<Connection>,
}

/// Why a statement has no answer that counts.
enum Wrong {
    /// It did not get a lock in time.
    LockedOut,
    Other(String),
}

impl Engine {
    /// Does `work` with the connection, which is closed after an error.
    fn with_connection<T>(
        &mut self,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, Wrong> {
        let open = self.connection.take();
        let mut connection = match open.filter(|connection| !connection.is_stale()) {
            Some(connection) => connection,
            None => self.target.connect(Tables::AreMade).map_err(Wrong::Other)?,
        };
        match work(&mut connection) {
            Ok(done) => {
                self.connection = Some(connection);
                Ok(done)
            }
            Err(why) if why.is_locked_out() => Err(Wrong::LockedOut),
            Err(why) => Err(Wrong::Other(named(&why))),
        }
    }

    /// The only row of a statement, if there is one, and a warning of the server.
    fn row<T>(
        &mut self,
        statement: &Statement,
        limit: Option<Duration>,
        read: impl Fn(&mut Row<'_>) -> Result<T, String>,
    ) -> Result<(Option<T>, Option<String>), Wrong> {
        let mut found = None;
        let warning = self.with_connection(|connection| {
            connection.run(statement, limit, &mut |mut row| {
                found = Some(read(&mut row))
            })
        })?;
        let found = found.transpose().map_err(Wrong::Other)?;
        Ok((found, warning))
    }

    fn seen(&mut self) -> Result<Seen, Wrong> {
        let look = Statement::new(
            "SELECT version, term, holder, beat, address, registry, secret FROM sb_leader",
        );
        let (seen, _) = self.row(&look, Some(LOOK_TIMEOUT), |row| {
            check_version(row.number()?)?;
            let record = LeaderRecord {
                term: Term(row.number()?),
                holder: row.maybe_number()?.and_then(NonZeroU64::new).map(Holder),
                beat: row.number()?,
            };
            let address = row.maybe_text()?;
            let registry = RegistryId(row.number()?);
            let secret = row.bytes()?.try_into();
            let secret = secret.map_err(|_| "the secret in sb_leader has not 32 bytes")?;
            Ok(Seen {
                record,
                address,
                registry,
                secret: Secret(secret),
            })
        })?;
        seen.ok_or_else(|| {
            Wrong::Other("PostgreSQL: sb_leader has no row; run what `sidebike db schema` prints, or put a backup back".into())
        })
    }

    /// Runs a commit once. `None`: the term is not one's own, or it met another statement.
    fn run_commit(&mut self, commit: &Commit<'_>) -> Result<Option<()>, String> {
        let statement = commit.statement()?;
        // It waits for the standby as long as the connection is there.
        let answer = self.row(&statement, None, |row| row.truth());
        match answer.map_err(Wrong::words)? {
            (Some(_), None) => Ok(Some(())),
            (Some(_), Some(warning)) => Err(format!("PostgreSQL: {warning}")),
            (None, _) => Ok(None),
        }
    }
}

impl Wrong {
    fn words(self) -> String {
        match self {
            Wrong::LockedOut => "PostgreSQL: the row of the leader is locked: a commit waits for the standby of the database".into(),
            Wrong::Other(why) => why,
        }
    }
}

impl StorageEngine for Engine {
    fn look(&mut self) -> Result<Seen, String> {
        self.seen().map_err(Wrong::words)
    }

    fn take(&mut self, seen: &LeaderRecord) -> Result<Option<Term>, String> {
        let term = seen.term.next();
        let mut take = Statement::default();
        let (own, me) = (take.number(term.0), take.number(self.holder.0.get()));
        let address = take.maybe_text(self.address.as_deref());
        let (before, beat) = (take.number(seen.term.0), take.number(seen.beat));
        let holder = take.maybe_number(seen.holder.map(|holder| holder.0.get()));
        let version = take.number(VERSION);
        take.push(&format!(
            "WITH settings AS MATERIALIZED (SELECT set_config('lock_timeout', '{LOCK_TIMEOUT}', true), {SAFE}) \
             UPDATE sb_leader SET term = {own}, holder = {me}, address = {address}, beat = 0, moved = true \
             FROM settings WHERE term = {before} AND holder IS NOT DISTINCT FROM {holder} \
             AND beat = {beat} AND version <= {version} RETURNING true"
        ));
        match self
            .row(&take, None, |row| row.truth())
            .map_err(Wrong::words)?
        {
            (Some(_), Some(warning)) => Err(format!("PostgreSQL: {warning}")),
            (Some(_), None) => Ok(Some(term)),
            (None, _) => Ok(None),
        }
    }

    fn announce(
        &mut self,
        address: &str,
        settings: &SettingsProof,
    ) -> Result<Vec<Announced>, String> {
        let statement = servers::statement(address, settings, self.holder);
        let mut others = Vec::new();
        let answer = self.with_connection(|connection| {
            connection.rows(&statement, Some(LOOK_TIMEOUT), &mut |row| {
                others.push(servers::read(row)?);
                Ok(())
            })
        });
        answer.map(|_| others).map_err(Wrong::words)
    }

    fn load(&mut self) -> Result<Saved, String> {
        self.with_connection(records::load).map_err(Wrong::words)
    }

    fn commit(&mut self, number: CommitNumber, now: Time, batch: &Batch) -> Committed {
        let commit = Commit {
            number,
            holder: self.holder,
            now,
            batch,
        };
        for _ in 0..MAX_RUNS {
            match self.run_commit(&commit) {
                Err(why) => return Committed::Unknown(why),
                Ok(Some(())) => return Committed::Done,
                Ok(None) => {}
            }
            let record = match self.seen() {
                Ok(seen) => seen.record,
                Err(why) => return Committed::Unknown(why.words()),
            };
            let own = LeaderRecord {
                term: number.term,
                holder: Some(self.holder),
                beat: number.after,
            };
            if !record.is_same_leader(&own) {
                if record.term < own.term {
                    error!(
                        "the database is in term {}, this server leads in {}: an older backup was put back, or the database failed over without a synchronous standby",
                        record.term.0, own.term.0
                    );
                }
                return Committed::Fenced;
            }
            if record.beat < number.after {
                return Committed::WentBack(record.beat);
            }
        }
        Committed::Unknown("PostgreSQL: other commits of this server are still on their way".into())
    }

    fn raise(&mut self, term: Term, to: Term) -> Committed {
        let mut raise = Statement::default();
        let (own, me) = (raise.number(term.0), raise.number(self.holder.0.get()));
        let to = raise.number(to.0);
        raise.push(&format!(
            "WITH settings AS MATERIALIZED (SELECT set_config('lock_timeout', '{LOCK_TIMEOUT}', true), {SAFE}) \
             UPDATE sb_leader SET term = {to}, moved = true FROM settings \
             WHERE term = {own} AND holder = {me} RETURNING true"
        ));
        match self.row(&raise, None, |row| row.truth()) {
            Ok((Some(_), None)) => Committed::Done,
            Ok((Some(_), Some(warning))) => Committed::Unknown(format!("PostgreSQL: {warning}")),
            // It may have been raised before, and the answer was lost: the next commit tells.
            Ok((None, _)) => Committed::Fenced,
            Err(why) => Committed::Unknown(why.words()),
        }
    }

    fn resign(&mut self, term: Term) -> Result<(), String> {
        let mut resign = Statement::default();
        let (own, me) = (resign.number(term.0), resign.number(self.holder.0.get()));
        resign.push(&format!(
            "WITH settings AS MATERIALIZED (SELECT set_config('lock_timeout', '{LOCK_TIMEOUT}', true), {SAFE}) \
             UPDATE sb_leader SET holder = NULL, address = NULL FROM settings \
             WHERE term = {own} AND holder = {me} RETURNING true"
        ));
        let resigned = self.row(&resign, Some(RESIGN_TIMEOUT), |row| row.truth());
        resigned.map(drop).map_err(Wrong::words)
    }
}
