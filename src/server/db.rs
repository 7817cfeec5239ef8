//! The optional database: one file in which what was acknowledged survives. The only place that
//! names redb.
//!
//! Its face is small: [`Db::open`] gives back what was saved, [`Db::commit`] puts a batch of records
//! on top and returns when the disk has it. Records are JSON, keyed by number; output is kept as the
//! pieces in which it came. The format has a version: to change it in a way that
//! `#[serde(default)]` does not cover, raise [`VERSION`] and bring older files up in `migrate`.

use crate::core::{Batch, OutputChange, OutputKey, Saved, SavedPiece, Task, TaskKey, Time};
use crate::wire::agent::Stream;
use log::warn;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table,
    TableDefinition, TableError, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The version of the format that this program writes.
const VERSION: u64 = 1;
/// Memory for pages of the file, in bytes: what is needed often is in the core anyway.
const CACHE_BYTES: usize = 16 << 20;
/// A file that could shrink by compaction to less than one part in so many is compacted at start.
const COMPACTED_BELOW: u64 = 2;
/// Smaller files are not worth it, in bytes.
const MIN_COMPACTED_BYTES: u64 = 16 << 20;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const TASKS: TableDefinition<u64, &[u8]> = TableDefinition::new("tasks");
/// By task and number.
const EXECUTIONS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("executions");
/// By task, number, attempt, and a number that counts up.
const OUTPUT: TableDefinition<(u64, u32, u32, u64), &[u8]> = TableDefinition::new("output");
const MACHINES: TableDefinition<&str, &[u8]> = TableDefinition::new("machines");

const META_VERSION: &str = "version";
const META_LAST_ALIVE: &str = "lastAlive";

/// The open file.
pub struct Db {
    path: PathBuf,
    /// `None` after an error, until it could be opened again.
    database: Option<Database>,
    next_piece: u64,
}

impl Db {
    /// Opens the file, or makes it, and reads what it holds. The error says what to do.
    pub fn open(path: &Path) -> Result<(Db, Saved), String> {
        let mut database = open_file(path, true)?;
        prepare(&database).map_err(|why| damaged(path, &why))?;
        compact(&mut database, path);
        let (saved, next_piece) = read_all(&database, path)?;
        Ok((
            Db {
                path: path.to_owned(),
                database: Some(database),
                next_piece,
            },
            saved,
        ))
    }

    /// Saves a batch; returns when the disk has it. After an error nothing of it is saved, and the
    /// same batch can be tried again.
    pub fn commit(&mut self, now: Time, batch: &Batch) -> Result<(), String> {
        let database = match self.database.take() {
            Some(database) => database,
            None => open_file(&self.path, false)?,
        };
        let mut next_piece = self.next_piece;
        let written = write_batch(&database, now, batch, &mut next_piece);
        match written {
            Ok(()) => {
                self.next_piece = next_piece;
                self.database = Some(database);
                Ok(())
            }
            // After an I/O error the file has to be opened anew.
            Err(why) => Err(format!("--db: cannot write {}: {why}", self.path.display())),
        }
    }
}

fn open_file(path: &Path, may_create: bool) -> Result<Database, String> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    let opened = if may_create {
        builder.create(path)
    } else {
        builder.open(path)
    };
    opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => {
            format!("--db: {} is in use by another server", path.display())
        }
        DatabaseError::Storage(StorageError::Io(why))
            if why.kind() != std::io::ErrorKind::InvalidData =>
        {
            format!("--db: cannot open {}: {why}", path.display())
        }
        DatabaseError::UpgradeRequired(_) => {
            format!(
                "--db: {} was written in a format that this version cannot read",
                path.display()
            )
        }
        other => damaged(path, &other),
    })
}

fn damaged(path: &Path, why: &dyn Display) -> String {
    format!(
        "--db: {} is damaged or not a sidebike database: {why}; nothing was changed. Put a copy back, or move the file away to start empty; `sidebike db export` may still read what is left",
        path.display()
    )
}

/// Makes the tables of a new file; refuses one of a newer version, brings an older one up.
fn prepare(database: &Database) -> Result<(), String> {
    let read = database.begin_read().map_err(text)?;
    let version = match read.open_table(META) {
        Ok(meta) => meta
            .get(META_VERSION)
            .map_err(text)?
            .map(|version| version.value()),
        Err(TableError::TableDoesNotExist(_)) => None,
        Err(why) => return Err(text(why)),
    };
    match version {
        // Nothing is written at a start that has nothing to change: the disk may be full.
        Some(VERSION) => return Ok(()),
        Some(version) if version > VERSION => {
            return Err(format!(
                "it has version {version}, written by a newer sidebike; this one reads up to {VERSION}"
            ));
        }
        Some(_) | None => {}
    }
    let write = database.begin_write().map_err(text)?;
    if let Some(version) = version {
        migrate(version, &write)?;
    }
    write
        .open_table(META)
        .map_err(text)?
        .insert(META_VERSION, VERSION)
        .map_err(text)?;
    write.open_table(TASKS).map_err(text)?;
    write.open_table(EXECUTIONS).map_err(text)?;
    write.open_table(OUTPUT).map_err(text)?;
    write.open_table(MACHINES).map_err(text)?;
    write.commit().map_err(text)
}

/// Brings a file of an earlier version up to this one, step by step.
fn migrate(version: u64, _write: &WriteTransaction) -> Result<(), String> {
    // The first version has none before it.
    Err(format!("there never was a version {version}"))
}

/// Gives back room that is no longer used. Without success it is as it was.
fn compact(database: &mut Database, path: &Path) {
    let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
    if size < MIN_COMPACTED_BYTES {
        return;
    }
    let used = database.begin_write().map_err(text).and_then(|write| {
        let stats = write.stats().map_err(text)?;
        write.abort().map_err(text)?;
        Ok(stats.allocated_pages() * stats.page_size() as u64)
    });
    let compacted = used.and_then(|used| match used * COMPACTED_BELOW < size {
        true => database.compact().map(drop).map_err(text),
        false => Ok(()),
    });
    if let Err(why) = compacted {
        warn!("{} was not compacted: {why}", path.display());
    }
}

fn write_batch(
    database: &Database,
    now: Time,
    batch: &Batch,
    next_piece: &mut u64,
) -> Result<(), String> {
    let write = database.begin_write().map_err(text)?;
    {
        let mut meta = write.open_table(META).map_err(text)?;
        meta.insert(META_LAST_ALIVE, now.0).map_err(text)?;
        let mut tasks = write.open_table(TASKS).map_err(text)?;
        let mut executions = write.open_table(EXECUTIONS).map_err(text)?;
        let mut output = write.open_table(OUTPUT).map_err(text)?;
        let mut machines = write.open_table(MACHINES).map_err(text)?;
        for (key, task) in &batch.tasks {
            match task {
                Some(task) => {
                    tasks.insert(key.0, &*json(task)?).map_err(text)?;
                }
                None => {
                    tasks.remove(key.0).map_err(text)?;
                    let numbers = (key.0, 0)..=(key.0, u32::MAX);
                    executions.retain_in(numbers, |_, _| false).map_err(text)?;
                    let pieces = (key.0, 0, 0, 0)..=(key.0, u32::MAX, u32::MAX, u64::MAX);
                    output.retain_in(pieces, |_, _| false).map_err(text)?;
                }
            }
        }
        for ((task, n), execution) in &batch.executions {
            executions
                .insert((task.0, *n), &*json(execution)?)
                .map_err(text)?;
        }
        for (key, change) in &batch.output {
            write_output(&mut output, key, change, next_piece)?;
        }
        for (instance, machine) in &batch.machines {
            match machine {
                Some(machine) => machines
                    .insert(&**instance, &*json(machine)?)
                    .map_err(text)?,
                None => machines.remove(&**instance).map_err(text)?,
            };
        }
    }
    write.commit().map_err(text)
}

type OutputTable<'a> = Table<'a, (u64, u32, u32, u64), &'static [u8]>;

fn write_output(
    table: &mut OutputTable<'_>,
    key: &OutputKey,
    change: &OutputChange,
    next_piece: &mut u64,
) -> Result<(), String> {
    let pieces = match change {
        OutputChange::Came(piece) => std::slice::from_ref(piece),
        OutputChange::Kept(pieces) => {
            let before =
                (key.task.0, key.n, key.attempt, 0)..=(key.task.0, key.n, key.attempt, u64::MAX);
            table.retain_in(before, |_, _| false).map_err(text)?;
            pieces
        }
    };
    for piece in pieces {
        let number = (key.task.0, key.n, key.attempt, *next_piece);
        *next_piece += 1;
        table.insert(number, &*encoded(piece)).map_err(text)?;
    }
    Ok(())
}

/// A piece: the stream, the offset, the bytes.
fn encoded(piece: &SavedPiece) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + piece.data.len());
    bytes.push(piece.stream as u8);
    bytes.extend_from_slice(&piece.offset.to_le_bytes());
    bytes.extend_from_slice(&piece.data);
    bytes
}

fn decoded(bytes: &[u8]) -> Option<SavedPiece> {
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

/// Everything in the file, and the number after the last piece of output.
fn read_all(database: &Database, path: &Path) -> Result<(Saved, u64), String> {
    let read = || -> Result<(Saved, u64), String> {
        let read = database.begin_read().map_err(text)?;
        let mut saved = Saved::default();
        let meta = read.open_table(META).map_err(text)?;
        saved.last_alive = Time(
            meta.get(META_LAST_ALIVE)
                .map_err(text)?
                .map_or(0, |alive| alive.value()),
        );
        for entry in read.open_table(TASKS).map_err(text)?.iter().map_err(text)? {
            let (key, value) = entry.map_err(text)?;
            saved.tasks.insert(
                TaskKey(key.value()),
                record("task", key.value(), value.value())?,
            );
        }
        for entry in read
            .open_table(EXECUTIONS)
            .map_err(text)?
            .iter()
            .map_err(text)?
        {
            let (key, value) = entry.map_err(text)?;
            let (task, n) = key.value();
            saved.executions.insert(
                (TaskKey(task), n),
                record("execution of task", task, value.value())?,
            );
        }
        for entry in read
            .open_table(MACHINES)
            .map_err(text)?
            .iter()
            .map_err(text)?
        {
            let (key, value) = entry.map_err(text)?;
            saved.machines.insert(
                Arc::from(key.value()),
                record("machine", key.value(), value.value())?,
            );
        }
        // By number, which is the order in which the pieces came.
        let mut next_piece = 0;
        let mut pieces = BTreeMap::new();
        for entry in read
            .open_table(OUTPUT)
            .map_err(text)?
            .iter()
            .map_err(text)?
        {
            let (key, value) = entry.map_err(text)?;
            let (task, n, attempt, number) = key.value();
            let piece = decoded(value.value())
                .ok_or_else(|| format!("output {number} of task {task} is not a piece"))?;
            pieces.insert(
                number,
                (
                    OutputKey {
                        task: TaskKey(task),
                        n,
                        attempt,
                    },
                    piece,
                ),
            );
            next_piece = next_piece.max(number + 1);
        }
        saved.output = pieces.into_values().collect();
        Ok((saved, next_piece))
    };
    read().map_err(|why| damaged(path, &why))
}

fn record<T: DeserializeOwned>(what: &str, key: impl Display, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|why| format!("the record of {what} {key}: {why}"))
}

fn json<T: Serialize>(record: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(record).map_err(text)
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// `sidebike db check FILE`: whether a stopped server's file is whole, in words.
pub fn check(path: &Path) -> Result<String, String> {
    let mut database = open_file(path, false)?;
    let whole = database
        .check_integrity()
        .map_err(|why| damaged(path, &why))?;
    prepare(&database).map_err(|why| damaged(path, &why))?;
    let (saved, _) = read_all(&database, path)?;
    let (tasks, executions, machines) = (
        saved.tasks.len(),
        saved.executions.len(),
        saved.machines.len(),
    );
    restored(saved).map_err(|why| damaged(path, &why))?;
    let repaired = if whole {
        ""
    } else {
        " (it had not been closed properly, and was repaired)"
    };
    Ok(format!(
        "{} is whole{repaired}: {tasks} tasks, {executions} executions, {machines} machines",
        path.display()
    ))
}

/// `sidebike db export FILE`: every task of a stopped server's file as the API answers it, one JSON
/// line each, oldest first.
pub fn export(path: &Path, out: &mut dyn Write) -> Result<(), String> {
    let database = open_file(path, false)?;
    let (saved, _) = read_all(&database, path)?;
    let core = restored(saved).map_err(|why| damaged(path, &why))?;
    let mut write = |task: &Task| -> std::io::Result<()> {
        serde_json::to_writer(&mut *out, &task.answer(usize::MAX))?;
        out.write_all(b"\n")
    };
    for task in core.all_tasks() {
        match write(task) {
            Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(|why| format!("cannot write: {why}"))?,
        }
    }
    out.flush().map_err(text)
}

/// A core as it was when the file was last written, with limits that nothing exceeds.
fn restored(saved: Saved) -> Result<crate::core::Core, String> {
    let most = crate::core::Limits {
        tasks: usize::MAX,
        executions: usize::MAX,
        machines: usize::MAX,
        output_bytes: usize::MAX,
    };
    let then = saved.last_alive;
    crate::core::Core::restored(most, then, saved)
}
