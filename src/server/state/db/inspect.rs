//! `sidebike db …`: what is in a database, which is a file or one of PostgreSQL.

use super::redb_file;
use crate::config::DatabaseUrl;
use crate::core::{Core, Limits, Saved};
use std::io::Write;
use std::path::Path;

#[cfg(feature = "pg")]
use super::postgres::inspect as postgres;

/// A build without PostgreSQL says so.
#[cfg(not(feature = "pg"))]
mod postgres {
    use super::{DatabaseUrl, Path, Saved};

    /// How many files there are, and of how many bytes.
    type Files = Result<(u64, u64), String>;

    /// There is none.
    pub fn read_with_files(
        url: &DatabaseUrl,
        ca: Option<&Path>,
    ) -> Result<(String, Saved, Files), String> {
        let (name, saved) = read(url, ca)?;
        Ok((name, saved, Ok((0, 0))))
    }

    /// There is none.
    pub fn read(_: &DatabaseUrl, _: Option<&Path>) -> Result<(String, Saved), String> {
        Err("this build has no PostgreSQL (it was made without the feature `pg`)".into())
    }
}

fn url(place: &Path) -> Option<DatabaseUrl> {
    place.to_str().and_then(DatabaseUrl::of)
}

/// `sidebike db check`: checks a database and describes it. A file must not be in use. `ca` is for PostgreSQL.
pub fn check(place: &Path, ca: Option<&Path>) -> Result<String, String> {
    let Some(url) = url(place) else {
        return redb_file::check(place);
    };
    let (name, saved, files) = postgres::read_with_files(&url, ca)?;
    let damaged = |why: String| format!("{name} contradicts itself: {why}");
    let summary = summary(saved).map_err(damaged)?;
    let files = match files.map_err(damaged)? {
        (0, _) => String::new(),
        (count, bytes) => format!(", {count} files of {bytes} bytes"),
    };
    Ok(format!("{name} is whole: {summary}{files}"))
}

/// `sidebike db export`: writes every task as the API answers it, one JSON line each, oldest first.
pub fn export(place: &Path, ca: Option<&Path>, out: &mut dyn Write) -> Result<(), String> {
    let Some(url) = url(place) else {
        return redb_file::export(place, out);
    };
    let (name, saved) = postgres::read(&url, ca)?;
    let core = restored(saved).map_err(|why| format!("{name} contradicts itself: {why}"))?;
    write_tasks(&core, out)
}

/// `sidebike db copy`: copies the file of a stopped server into an empty database of PostgreSQL.
#[cfg(feature = "pg")]
pub fn copy(file: &Path, to: &Path, ca: Option<&Path>) -> Result<String, String> {
    let to = url(to).ok_or("the second must be postgres://USER@HOST/DATABASE")?;
    if url(file).is_some() {
        return Err("the first must be a file".into());
    }
    let saved = redb_file::read(file)?;
    let names_files = saved.tasks.values().any(|task| task.files.is_some());
    let summary = summary(saved.clone()).map_err(|why| redb_file::damaged(file, &why))?;
    let name = postgres::write(&to, ca, saved)?;
    let files = match names_files {
        true => {
            "\nFiles of tasks were not copied, they are in no database of a single server: give the first server its --blobs folder, or push them again"
        }
        false => "",
    };
    Ok(format!(
        "{} was copied to {name}: {summary}{files}",
        file.display()
    ))
}

/// The core as it was when its records were last written, without limits.
pub fn restored(mut saved: Saved) -> Result<Core, String> {
    crate::server::state::read_zones(&mut saved);
    let then = saved.last_alive;
    Core::restored(Limits::NONE, then, saved)
}

/// How much there is. The error says what does not fit together.
pub fn summary(saved: Saved) -> Result<String, String> {
    let (tasks, executions, machines) = (
        saved.tasks.len(),
        saved.executions.len(),
        saved.machines.len(),
    );
    restored(saved)?.check_invariants()?;
    Ok(format!(
        "{tasks} tasks, {executions} executions, {machines} machines"
    ))
}

/// Writes every task as the API answers it, one JSON line each, oldest first.
pub fn write_tasks(core: &Core, out: &mut dyn Write) -> Result<(), String> {
    let mut write = || -> std::io::Result<()> {
        for task in core.all_tasks() {
            let mut line = serde_json::to_vec(&task.answer(usize::MAX))?;
            line.push(b'\n');
            out.write_all(&line)?;
        }
        out.flush()
    };
    match write() {
        // The reader has closed the pipe.
        Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|why| format!("cannot write: {why}")),
    }
}
