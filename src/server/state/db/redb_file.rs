//! One file of redb, for one server: while it is open, no other server can open it.
//!
//! Nothing outside of this room names redb. `tables` says what a file holds, `write` and `read` carry it from and to
//! the records, `inspect` is for the file of a stopped server.
//!
//! A commit returns when it is on the disk. Records are JSON, keyed by number; output is stored in the pieces in which it
//! arrived. The format has a version, which is the lowest version of a program that may read it: a commit raises it when
//! it contains what an older program would drop ([`Batch::reader_version`]).
//!
//! After an error of the disk the file is closed until the next attempt. If another server has led meanwhile, the
//! commits of this one are fenced.

mod inspect;
mod read;
mod tables;
mod write;

#[cfg(feature = "pg")]
pub use self::inspect::read;
pub use self::inspect::{check, export};

use self::read::{Read, Strictness, read_all};
use self::tables::*;
use self::write::write_batch;
use super::records::{FIRST_VERSION, VERSION};
use super::{
    CommitNumber, Committed, Holder, LeaderRecord, RegistryId, Secret, Seen, StorageEngine, Term,
};
use crate::core::{Batch, Saved, Time};
use log::{info, warn};
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableError,
};
use std::fmt::Display;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory for caching pages of the file, in bytes. Little is enough: the core holds all data anyway.
const CACHE_BYTES: usize = 16 << 20;
/// A file is compacted at the start if it is more than this many times as large as its records. Just after a
/// compaction it is about twice as large.
const COMPACTED_BELOW: u64 = 4;
/// Smaller files are not compacted, in bytes.
const MIN_COMPACTED_BYTES: u64 = 16 << 20;
/// Only the user of the server may read the file: it contains commands and their output.
const MODE: u32 = 0o600;

/// The open file.
pub struct RedbFile {
    path: PathBuf,
    /// `None` after an error, until it is opened again.
    database: Option<Database>,
    next_piece: u64,
    holder: Holder,
    /// Only this server ever sees them, so they are drawn at each opening.
    registry: RegistryId,
    secret: Secret,
    /// The leader record that was seen when the disk did not let this server take the lead. The next commit takes it.
    untaken: Option<LeaderRecord>,
    /// What was read when the file was opened, for the first load: nothing is written into a file before all of it was
    /// read, because a damaged one must be left alone.
    unloaded: Option<Saved>,
}

impl RedbFile {
    /// Opens or creates the file, and reads it. The error says what to do.
    pub fn open(path: &Path) -> Result<RedbFile, String> {
        without_panic(path, || RedbFile::open_or_make(path))
    }

    fn open_or_make(path: &Path) -> Result<RedbFile, String> {
        let known = path.try_exists();
        if !known.map_err(|why| format!("cannot open {}: {why}", path.display()))? {
            make_file(path)
                .map_err(|why| format!("cannot create the database {}: {why}", path.display()))?;
        }
        let mut opened = open_file(path)?;
        check_version(&opened.database, path)?;
        let Read {
            saved,
            next_piece,
            bytes,
            ..
        } = read_all(&opened.database, path, Strictness::RefuseFile)?;
        if let Err(why) = compact(&mut opened.database, path, bytes) {
            warn!("{} was not compacted: {why}", path.display());
            // After an error of the disk the file has to be opened again.
            drop(opened.database);
            opened = open_file(path)?;
        }
        Ok(RedbFile {
            path: path.to_owned(),
            database: Some(opened.database),
            next_piece,
            holder: Holder::fresh(),
            registry: RegistryId(Holder::fresh().0.get()),
            secret: Secret::fresh()?,
            untaken: None,
            unloaded: Some(saved),
        })
    }

    /// The leader record with which this server leads.
    fn own(&self, term: Term, beat: u64) -> LeaderRecord {
        LeaderRecord {
            term,
            holder: Some(self.holder),
            beat,
        }
    }

    fn record(&mut self) -> Result<LeaderRecord, String> {
        self.with_open_at_start("read", |database| {
            let read = database.begin_read().map_err(text)?;
            leader_record(&read.open_table(META).map_err(text)?)
        })
    }

    /// Does `work` with the open file. After an error of the disk the file has to be opened again. A panic of the
    /// library counts as one: the file may be damaged.
    fn with_open<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&Database) -> Result<T, String>,
    ) -> Result<T, String> {
        let database = match self.database.take() {
            Some(database) => database,
            None => open_file(&self.path)?.database,
        };
        let worked = catch_unwind(AssertUnwindSafe(|| {
            work(&database).map(|result| (result, database))
        }));
        match worked {
            Ok(Ok((result, database))) => {
                self.database = Some(database);
                Ok(result)
            }
            Ok(Err(why)) => Err(format!("cannot {doing} {}: {why}", self.path.display())),
            Err(_) => Err(format!("{} is damaged", self.path.display())),
        }
    }

    /// The same at the start, where a damaged file is reported in one line.
    fn with_open_at_start<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&Database) -> Result<T, String>,
    ) -> Result<T, String> {
        let path = self.path.clone();
        without_panic(&path, || self.with_open(doing, work))
    }
}

impl StorageEngine for RedbFile {
    fn look(&mut self) -> Result<Seen, String> {
        Ok(Seen {
            record: self.record()?,
            address: None,
            registry: self.registry,
            secret: self.secret.clone(),
        })
    }

    fn take(&mut self, seen: &LeaderRecord) -> Result<Option<Term>, String> {
        let own = self.own(seen.term.next(), 0);
        self.untaken = None;
        let taken = self.with_open_at_start("write", |database| write_take(database, *seen, own));
        let why = match taken {
            Ok(taken) => return Ok(taken.then_some(own.term)),
            Err(why) => why,
        };
        // A server whose disk is full starts all the same: it shows what there is, and what runs goes on. The open file
        // keeps others out, and the first commit finds out whether one came first.
        let now = self.record()?;
        if now == *seen {
            self.untaken = Some(now);
        } else if !now.is_same_leader(&own) {
            return Err(why);
        }
        Ok(Some(own.term))
    }

    fn load(&mut self) -> Result<Saved, String> {
        if let Some(saved) = self.unloaded.take() {
            return Ok(saved);
        }
        let path = self.path.clone();
        let read = self.with_open_at_start("read", |database| {
            Ok(read_all(database, &path, Strictness::RefuseFile))
        })??;
        self.next_piece = read.next_piece;
        Ok(read.saved)
    }

    fn commit(&mut self, number: CommitNumber, now: Time, batch: &Batch) -> Committed {
        self.unloaded = None;
        let (own, untaken) = (self.own(number.term, number.n), self.untaken);
        let mut next_piece = self.next_piece;
        let committed = self.with_open("write", |database| {
            write_commit(
                database,
                own,
                number.after,
                untaken,
                now,
                batch,
                &mut next_piece,
            )
        });
        // Numbers of pieces that may be in the file are not used again.
        self.next_piece = next_piece;
        match committed {
            Ok(committed) => {
                self.untaken = None;
                committed
            }
            Err(why) => Committed::Unknown(why),
        }
    }

    /// It also closes the file properly, so that the next start does not have to check all of it.
    fn resign(&mut self, term: Term) -> Result<(), String> {
        let own = self.own(term, 0);
        let resigned = self.with_open("write", |database| write_resignation(database, own));
        let database = self.database.take();
        // An error here has been reported by a commit before.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
        resigned
    }
}

fn leader_record(meta: &impl ReadableTable<&'static str, u64>) -> Result<LeaderRecord, String> {
    let number = |key| -> Result<u64, String> {
        let saved = meta.get(key).map_err(text)?;
        Ok(saved.map_or(0, |number| number.value()))
    };
    Ok(LeaderRecord {
        term: Term(number(META_TERM)?),
        holder: NonZeroU64::new(number(META_HOLDER)?).map(Holder),
        beat: number(META_BEAT)?,
    })
}

fn write_leader_record(meta: &mut MetaTable<'_>, record: LeaderRecord) -> Result<(), String> {
    let holder = record.holder.map_or(0, |holder| holder.0.get());
    for (key, number) in [
        (META_TERM, record.term.0),
        (META_HOLDER, holder),
        (META_BEAT, record.beat),
    ] {
        meta.insert(key, number).map_err(text)?;
    }
    Ok(())
}

/// Makes `own` the leader record, if it is the one that was `seen`.
fn write_take(database: &Database, seen: LeaderRecord, own: LeaderRecord) -> Result<bool, String> {
    let write = database.begin_write().map_err(text)?;
    {
        let mut meta = write.open_table(META).map_err(text)?;
        if leader_record(&meta)? != seen {
            return Ok(false);
        }
        write_leader_record(&mut meta, own)?;
    }
    write.commit().map_err(text)?;
    Ok(true)
}

fn write_resignation(database: &Database, own: LeaderRecord) -> Result<(), String> {
    let write = database.begin_write().map_err(text)?;
    {
        let mut meta = write.open_table(META).map_err(text)?;
        if !leader_record(&meta)?.is_same_leader(&own) {
            return Ok(());
        }
        meta.insert(META_HOLDER, 0).map_err(text)?;
    }
    write.commit().map_err(text)
}

/// The fence and the batch are one transaction. `own` is what the leader record becomes.
fn write_commit(
    database: &Database,
    own: LeaderRecord,
    after: u64,
    untaken: Option<LeaderRecord>,
    now: Time,
    batch: &Batch,
    next_piece: &mut u64,
) -> Result<Committed, String> {
    let write = database.begin_write().map_err(text)?;
    {
        let mut meta = write.open_table(META).map_err(text)?;
        let record = leader_record(&meta)?;
        let takes = untaken == Some(record) && own.term == record.term.next();
        if !takes && !record.is_same_leader(&own) {
            return Ok(Committed::Fenced);
        }
        if !takes && record.beat < after {
            return Ok(Committed::WentBack(record.beat));
        }
        // Written in any case: this commit also says that what is there is on the disk.
        let before = meta.get(META_LAST_ALIVE).map_err(text)?;
        let last_alive = before.map_or(now.0, |before| now.0.max(before.value()));
        meta.insert(META_LAST_ALIVE, last_alive).map_err(text)?;
        if takes || own.beat > record.beat {
            write_leader_record(&mut meta, own)?;
            write_batch(&write, &mut meta, batch, next_piece)?;
        }
    }
    write.commit().map_err(text)?;
    Ok(Committed::Done)
}

/// Creates the file under a temporary name and renames it once it is complete.
fn make_file(path: &Path) -> Result<(), String> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.mode(MODE).open(&new).map_err(text)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err("another server is creating it".into()),
        // A file system without locks cannot keep another server out.
        Err(TryLockError::Error(_)) | Ok(()) => {}
    }
    let made = file.set_len(0).map_err(text).and_then(|()| {
        let database = builder().create_file(file).map_err(text)?;
        prepare(&database)?;
        drop(database);
        give_name(&new, path)
    });
    if made.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    made
}

/// Gives a file its name, unless another file has it.
fn give_name(file: &Path, name: &Path) -> Result<(), String> {
    match std::fs::hard_link(file, name) {
        Ok(()) => std::fs::remove_file(file).map_err(text)?,
        Err(_) if !name.exists() => std::fs::rename(file, name).map_err(text)?,
        Err(why) => return Err(text(why)),
    }
    let folder = name.parent().filter(|folder| *folder != Path::new(""));
    let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(text)?;
    folder.sync_all().map_err(text)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

struct Opened {
    database: Database,
    /// It was not closed properly, which does no harm.
    was_open: bool,
}

/// Opens an existing file.
fn open_file(path: &Path) -> Result<Opened, String> {
    let cannot = |why: &dyn Display| format!("cannot open {}: {why}", path.display());
    let meta = std::fs::metadata(path).map_err(|why| cannot(&why))?;
    if !meta.is_file() {
        return Err(cannot(&"it is not a file"));
    }
    if meta.len() == 0 {
        return Err(damaged(path, &"it is empty"));
    }
    let was_open = Arc::new(AtomicBool::new(false));
    let noticed = was_open.clone();
    let mut builder = builder();
    builder.set_repair_callback(move |_| noticed.store(true, Ordering::Relaxed));
    let database = builder.open(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => cannot(&"it is in use by another server"),
        DatabaseError::Storage(StorageError::Io(why)) => match why.kind() {
            std::io::ErrorKind::InvalidData => damaged(path, &"it does not begin like one"),
            std::io::ErrorKind::UnexpectedEof => damaged(path, &"it is cut off"),
            _ => cannot(&why),
        },
        DatabaseError::UpgradeRequired(_) => {
            cannot(&"this version of sidebike cannot read its format")
        }
        other => damaged(path, &other),
    })?;
    Ok(Opened {
        database,
        was_open: was_open.load(Ordering::Relaxed),
    })
}

/// Runs `work` and turns a panic into an error for the user: the library panics on some damaged files.
fn without_panic<T>(path: &Path, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // The hook belongs to the whole process.
    static HOOK: Mutex<()> = Mutex::new(());
    let _one_at_a_time = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let worked = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    worked.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let line = text.unwrap_or_default().lines().next().unwrap_or_default();
        Err(damaged(path, &format!("it contradicts itself ({line})")))
    })
}

/// The error for a damaged file.
pub fn damaged(path: &Path, why: &dyn Display) -> String {
    format!(
        "{} is damaged or not a database of sidebike: {why}. Nothing is replaced: put a copy back, or move the file away to start empty; `sidebike db export` may still read a part of it",
        path.display()
    )
}

/// The version of a file.
fn version(database: &Database) -> Result<Option<u64>, String> {
    let read = database.begin_read().map_err(text)?;
    match read.open_table(META) {
        Ok(meta) => {
            let version = meta.get(META_VERSION).map_err(text)?;
            Ok(version.map(|version| version.value()))
        }
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(why) => Err(text(why)),
    }
}

/// Refuses a file of a newer version or of another program.
fn check_version(database: &Database, path: &Path) -> Result<(), String> {
    match version(database).map_err(|why| damaged(path, &why))? {
        Some(FIRST_VERSION..=VERSION) => Ok(()),
        None | Some(0) => Err(damaged(path, &"it has no version")),
        Some(version) => Err(format!(
            "cannot open {}: it has version {version} and was written by a newer sidebike, this one reads versions up to {VERSION}; use the newer one",
            path.display()
        )),
    }
}

/// Creates the tables of a new file.
fn prepare(database: &Database) -> Result<(), String> {
    let write = database.begin_write().map_err(text)?;
    write
        .open_table(META)
        .map_err(text)?
        .insert(META_VERSION, FIRST_VERSION)
        .map_err(text)?;
    write.open_table(TASKS).map_err(text)?;
    write.open_table(EXECUTIONS).map_err(text)?;
    write.open_table(OUTPUT).map_err(text)?;
    write.open_table(MACHINES).map_err(text)?;
    write.commit().map_err(text)
}

/// Compacts the file if that saves enough.
fn compact(database: &mut Database, path: &Path, record_bytes: u64) -> Result<(), String> {
    let size = || std::fs::metadata(path).map_or(0, |meta| meta.len());
    let before = size();
    let worth_it = before >= MIN_COMPACTED_BYTES && before / COMPACTED_BELOW > record_bytes;
    if worth_it && database.compact().map_err(text)? {
        let (path, after) = (path.display(), size());
        info!("{path} was compacted from {before} to {after} bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Core, Limits, Spec};
    use crate::wire::task::PostedTask;

    /// The records of a new task.
    fn batch() -> Batch {
        let json = r#"{"machinePattern": "m", "detail": {"command": "true"}}"#;
        let posted: PostedTask = serde_json::from_str(json).unwrap();
        let spec = Spec::checked(posted, &Limits::NONE.texts, |_| None).unwrap();
        let mut core = Core::new(Limits::NONE, Time(1_000));
        core.record_changes();
        core.submit(Time(1_000), "id", spec).unwrap();
        core.take_batch()
    }

    #[test]
    fn the_version_of_a_file_rises_with_the_first_record_that_an_older_program_would_not_understand()
     {
        let name = format!("sidebike-version-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut file = RedbFile::open(&path).unwrap();
        let version_of = |file: &RedbFile| version(file.database.as_ref().unwrap()).unwrap();
        let mut batch = batch();
        let term = file.take(&LeaderRecord::default()).unwrap().unwrap();
        let number = |n| CommitNumber {
            term,
            n,
            after: n - 1,
        };
        assert_eq!(file.commit(number(1), Time(1_000), &batch), Committed::Done);
        assert_eq!(
            version_of(&file),
            Some(FIRST_VERSION),
            "older programs read it"
        );
        for task in batch.tasks.values_mut().flatten() {
            task.late_join_full = true;
        }
        assert_eq!(file.commit(number(2), Time(2_000), &batch), Committed::Done);
        assert_eq!(version_of(&file), Some(2));
        file.resign(term).unwrap();
        let saved = RedbFile::open(&path).unwrap().load().unwrap();
        assert!(saved.tasks.values().all(|task| task.late_join_full));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_clock_that_stood_at_1970_expires_nothing_once_it_is_right() {
        let batch = batch();
        let saved = Saved {
            tasks: { batch.tasks.into_iter() }
                .filter_map(|(key, task)| Some((key, task?)))
                .collect(),
            executions: batch.executions,
            last_alive: Time(1_000),
            ..Saved::default()
        };
        let now = Time(1_700_000_000_000);
        let mut core = Core::restored(Limits::NONE, now, saved).unwrap();
        core.tick(now);
        assert!(core.all_tasks().all(|task| !task.state().is_terminal()));
    }
}
