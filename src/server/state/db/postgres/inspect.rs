//! For `sidebike db …`: reads a database that servers may be using, and fills an empty one.

use super::super::{CommitNumber, Committed, Connect, Holder, LeaderRecord};
use super::connection::Connection;
use super::{Postgres, Tables, files, named, records};
use crate::config::DatabaseUrl;
use crate::core::{Batch, Saved};
use std::path::Path;

/// The most output in one commit, in bytes.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// All statements see the tables as they were at the first one.
const ONE_MOMENT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

fn connector(url: &DatabaseUrl, ca: Option<&Path>) -> Result<Postgres, String> {
    let password = crate::secret::load_one(super::PASSWORD)?;
    Postgres::connector(url.expose(), ca, password, None)
}

/// Reads everything at one moment: the name of the database, and what is in it.
pub fn read(url: &DatabaseUrl, ca: Option<&Path>) -> Result<(String, Saved), String> {
    let (postgres, _, saved) = begin(url, ca)?;
    Ok((postgres.shown(), saved))
}

/// The same, with every byte of the files.
pub fn read_with_files(url: &DatabaseUrl, ca: Option<&Path>) -> Result<WithFiles, String> {
    let (postgres, mut connection, saved) = begin(url, ca)?;
    let files = files::check(&mut connection);
    Ok((postgres.shown(), saved, files))
}

/// The name of a database, what is in it, and how many files there are and their bytes, or which one is not whole.
pub type WithFiles = (String, Saved, Result<(u64, u64), String>);

fn begin(url: &DatabaseUrl, ca: Option<&Path>) -> Result<(Postgres, Connection, Saved), String> {
    let postgres = connector(url, ca)?;
    let mut connection = postgres.target.connect(Tables::MustBeThere)?;
    let begun = connection.run_script(ONE_MOMENT, Some(super::LOOK_TIMEOUT));
    let saved = begun.and_then(|()| records::load(&mut connection));
    Ok((postgres, connection, saved.map_err(|why| named(&why))?))
}

/// Fills a database in which nobody has ever led; returns its name.
pub fn write(url: &DatabaseUrl, ca: Option<&Path>, saved: Saved) -> Result<String, String> {
    let postgres = connector(url, ca)?;
    let name = postgres.shown();
    let mut engine = postgres.connect(Holder::fresh());
    let seen = engine.look()?.record;
    let used = || format!("{name} is in use, or was: only an empty one is filled");
    if seen != LeaderRecord::default() {
        return Err(used());
    }
    let term = engine.take(&seen)?.ok_or_else(used)?;
    let now = saved.last_alive;
    let mut first = Batch::of_all(saved);
    let output = std::mem::take(&mut first.output);
    let mut batches = vec![first];
    let mut bytes = MAX_OUTPUT_BYTES;
    for (key, change) in output {
        if bytes >= MAX_OUTPUT_BYTES {
            batches.push(Batch::default());
            bytes = 0;
        }
        bytes += change.cost();
        if let Some(last) = batches.last_mut() {
            last.output.push((key, change));
        }
    }
    for (after, batch) in (0..).zip(&batches) {
        let n = after + 1;
        match engine.commit(CommitNumber { term, n, after }, now, batch) {
            Committed::Done => {}
            Committed::Unknown(why) => {
                return Err(format!(
                    "{why}; {name} is filled in part: drop its tables and begin again"
                ));
            }
            Committed::Fenced | Committed::WentBack(_) => {
                return Err(format!("a server has begun to use {name}"));
            }
        }
    }
    engine.resign(term)?;
    Ok(name)
}
