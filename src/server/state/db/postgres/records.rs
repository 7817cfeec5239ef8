//! From a batch to one statement, and from the tables to everything that was saved.

use super::connection::{Connection, Failure};
use super::statement::{List, Row, Statement};
use crate::core::{Batch, OutputChange, OutputKey, Saved, SavedPiece, ScheduleKey, TaskKey, Time};
use crate::server::state::db::records::{
    SWITCH_HALT, SWITCH_SUSPENSIONS, VERSION, decoded, piece_head, record,
};
use crate::server::state::db::{CommitNumber, Holder};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// For how long servers were away in all, in ms: among the switches, so that tables of earlier builds have room for it.
const SWITCH_AWAY: &str = "awayMs";

/// A load has failed if nothing comes for so long. The server has nothing to wait for, but it may have to read from a
/// slow disk.
pub const LOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What is set inside of a statement that must not be lost: a pooler forgets what was set before. The wait for the
/// standby, and the warning that says that it was canceled.
pub const SAFE: &str = "set_config('synchronous_commit', 'on', true), set_config('client_min_messages', 'warning', true)";

/// A commit: with whose fence, and what for.
pub struct Commit<'a> {
    pub number: CommitNumber,
    pub holder: Holder,
    pub now: Time,
    pub batch: &'a Batch,
}

impl Commit<'_> {
    /// The statement. It returns a row if the term is one's own and nothing is missing.
    ///
    /// All changes hang on the update of the leader record. If that has to wait for another statement, the other changes
    /// would not see what that one did, because a statement sees the tables as they were at its beginning. So the update
    /// demands the number that was there at the beginning: then there is no row, and the statement has to be run again.
    pub fn statement(&self) -> Result<Statement, String> {
        let output = Output::of(self.batch)?;
        let changes = Changes::of(self.batch)?;
        let mut all = Statement::default();
        let (term, holder) = (
            all.number(self.number.term.0),
            all.number(self.holder.0.get()),
        );
        let (n, after) = (all.number(self.number.n), all.number(self.number.after));
        let (now, pieces) = (all.number(self.now.0), all.number(output.added.data.len()));
        let next_task = all.number(self.batch.next_task);
        let next_schedule = all.number(self.batch.next_schedule);
        let version = all.number(self.batch.reader_version());
        all.push(&format!(
            "WITH fence AS (UPDATE sb_leader SET moved = beat < {n}, beat = greatest(beat, {n}), \
             alive = greatest(alive, {now}), \
             next_piece = CASE WHEN beat < {n} THEN next_piece + {pieces} ELSE next_piece END, \
             next_task = CASE WHEN beat < {n} THEN greatest(next_task, {next_task}) ELSE next_task END, \
             next_schedule = CASE WHEN beat < {n} THEN greatest(next_schedule, {next_schedule}) ELSE next_schedule END, \
             version = CASE WHEN beat < {n} THEN greatest(version, {version}) ELSE version END \
             WHERE term = {term} AND holder = {holder} AND beat >= {after} \
             AND beat = (SELECT beat FROM sb_leader) \
             RETURNING moved, next_piece - {pieces} AS first)"
        ));
        changes.add_to(&mut all);
        output.add_to(&mut all);
        all.push(&format!(" SELECT moved, {SAFE} FROM fence"));
        Ok(all)
    }
}

/// The changes of a table whose key is one column.
struct Table {
    name: &'static str,
    key: &'static str,
    written: (List, List),
    removed: List,
}

/// The changes of all tables but the output.
struct Changes {
    tables: Vec<Table>,
    executions: [List; 3],
    removed_tasks: List,
}

impl Table {
    fn numbered(name: &'static str, key: &'static str) -> Self {
        Table {
            name,
            key,
            written: (List::numbers(), List::byte_strings()),
            removed: List::numbers(),
        }
    }

    fn named(name: &'static str, key: &'static str) -> Self {
        Table {
            name,
            key,
            written: (List::byte_strings(), List::byte_strings()),
            removed: List::byte_strings(),
        }
    }

    fn set(&mut self, number: u64, record: Option<&impl Serialize>) -> Result<(), String> {
        match record {
            Some(record) => {
                self.written.0.number(number);
                self.written.1.json(record)?;
            }
            None => self.removed.number(number),
        }
        Ok(())
    }

    fn set_named(&mut self, name: &str, record: Option<&impl Serialize>) -> Result<(), String> {
        let name = name.as_bytes();
        match record {
            Some(record) => {
                self.written.0.byte_string(&[name])?;
                self.written.1.json(record)
            }
            None => self.removed.byte_string(&[name]),
        }
    }

    fn add_to(self, all: &mut Statement) {
        let Table { name, key, .. } = self;
        if !self.written.0.is_empty() {
            let (keys, records) = (all.list(self.written.0), all.list(self.written.1));
            all.push(&format!(
                ", {name}_written AS (INSERT INTO {name} ({key}, record) SELECT u.k, u.r FROM fence, \
                 unnest({keys}, {records}) AS u(k, r) WHERE fence.moved \
                 ON CONFLICT ({key}) DO UPDATE SET record = excluded.record)"
            ));
        }
        if !self.removed.is_empty() {
            let keys = all.list(self.removed);
            all.push(&format!(
                ", {name}_removed AS (DELETE FROM {name} USING fence \
                 WHERE fence.moved AND {name}.{key} = ANY({keys}))"
            ));
        }
    }
}

impl Changes {
    fn of(batch: &Batch) -> Result<Changes, String> {
        let mut tasks = Table::numbered("sb_task", "task");
        let mut removed_tasks = List::numbers();
        for (key, task) in &batch.tasks {
            tasks.set(key.0, task.as_ref())?;
            if task.is_none() {
                removed_tasks.number(key.0);
            }
        }
        let [mut of, mut numbers, mut records] =
            [List::numbers(), List::numbers(), List::byte_strings()];
        for ((task, n), execution) in &batch.executions {
            // One statement must not write and remove the same row.
            if !is_removed(batch, *task) {
                of.number(task.0);
                numbers.number((*n).into());
                records.json(execution)?;
            }
        }
        let mut machines = Table::named("sb_machine", "instance");
        for (instance, machine) in &batch.machines {
            machines.set_named(instance, machine.as_ref())?;
        }
        let mut limits = Table::named("sb_limit", "name");
        for (name, limit) in &batch.limits {
            limits.set_named(name, limit.as_ref())?;
        }
        let mut notifications = Table::numbered("sb_notification", "number");
        for (number, entry) in &batch.notifications {
            notifications.set(*number, entry.as_ref())?;
        }
        let mut schedules = Table::numbered("sb_schedule", "schedule");
        let mut progress = Table::numbered("sb_progress", "schedule");
        for (key, posted) in &batch.schedules {
            schedules.set(key.0, posted.as_ref())?;
            if posted.is_none() {
                progress.removed.number(key.0);
            }
        }
        for (key, saved) in &batch.progress {
            if !matches!(batch.schedules.get(key), Some(None)) {
                progress.set(key.0, Some(saved))?;
            }
        }
        let mut switches = Table::named("sb_switch", "name");
        if let Some(halt) = &batch.halt {
            switches.set_named(SWITCH_HALT, halt.as_ref())?;
        }
        if let Some(suspensions) = &batch.suspensions {
            switches.set_named(SWITCH_SUSPENSIONS, Some(suspensions))?;
        }
        if let Some(away) = &batch.away_ms {
            switches.set_named(SWITCH_AWAY, Some(away))?;
        }
        Ok(Changes {
            tables: vec![
                tasks,
                machines,
                limits,
                notifications,
                schedules,
                progress,
                switches,
            ],
            executions: [of, numbers, records],
            removed_tasks,
        })
    }

    fn add_to(self, all: &mut Statement) {
        for table in self.tables {
            table.add_to(all);
        }
        let [of, numbers, records] = self.executions;
        if !of.is_empty() {
            let (of, numbers, records) = (all.list(of), all.list(numbers), all.list(records));
            all.push(&format!(
                ", executions_written AS (INSERT INTO sb_execution (task, n, record) \
                 SELECT u.t, u.n, u.r FROM fence, unnest({of}, {numbers}, {records}) AS u(t, n, r) \
                 WHERE fence.moved ON CONFLICT (task, n) DO UPDATE SET record = excluded.record)"
            ));
        }
        if !self.removed_tasks.is_empty() {
            let tasks = all.list(self.removed_tasks);
            for table in ["sb_execution", "sb_output"] {
                all.push(&format!(
                    ", {table}_of_removed AS (DELETE FROM {table} USING fence \
                     WHERE fence.moved AND {table}.task = ANY({tasks}))"
                ));
            }
        }
    }
}

fn is_removed(batch: &Batch, task: TaskKey) -> bool {
    matches!(batch.tasks.get(&task), Some(None))
}

/// By attempt: the task, the execution's number, the attempt's.
struct Attempts([List; 3]);

impl Attempts {
    fn new() -> Self {
        Attempts([List::numbers(), List::numbers(), List::numbers()])
    }

    fn add(&mut self, key: &OutputKey) {
        let [task, n, attempt] = &mut self.0;
        task.number(key.task.0);
        n.number(key.n.into());
        attempt.number(key.attempt.into());
    }
}

/// The pieces to be added, in order of arrival.
struct Added {
    of: Attempts,
    data: List,
}

/// The changes of the output.
struct Output {
    /// All earlier pieces of these go.
    replaced: Attempts,
    added: Added,
}

impl Output {
    fn of(batch: &Batch) -> Result<Output, String> {
        // What stands before the last replacement of an attempt does not come into the table.
        let mut replaced: BTreeMap<OutputKey, usize> = BTreeMap::new();
        for (i, (key, change)) in batch.output.iter().enumerate() {
            if matches!(change, OutputChange::Replaced(_)) {
                replaced.insert(*key, i);
            }
        }
        let mut output = Output {
            replaced: Attempts::new(),
            added: Added {
                of: Attempts::new(),
                data: List::byte_strings(),
            },
        };
        for key in replaced.keys().filter(|key| !is_removed(batch, key.task)) {
            output.replaced.add(key);
        }
        for (i, (key, change)) in batch.output.iter().enumerate() {
            if is_removed(batch, key.task) || replaced.get(key).is_some_and(|last| i < *last) {
                continue;
            }
            let pieces = match change {
                OutputChange::Appended(piece) => std::slice::from_ref(piece),
                OutputChange::Replaced(pieces) => pieces,
            };
            for piece in pieces {
                output.added.of.add(key);
                let data = &mut output.added.data;
                data.byte_string(&[&piece_head(piece), &piece.data])?;
            }
        }
        Ok(output)
    }

    fn add_to(self, all: &mut Statement) {
        let Attempts([task, n, attempt]) = self.replaced;
        if !task.is_empty() {
            let (task, n, attempt) = (all.list(task), all.list(n), all.list(attempt));
            // The new pieces are not seen here: a statement sees the tables as they were at its beginning.
            all.push(&format!(
                ", output_replaced AS (DELETE FROM sb_output USING fence, \
                 unnest({task}, {n}, {attempt}) AS u(t, n, a) WHERE fence.moved \
                 AND sb_output.task = u.t AND sb_output.n = u.n AND sb_output.attempt = u.a)"
            ));
        }
        let Added { of, data } = self.added;
        let Attempts([task, n, attempt]) = of;
        if !data.is_empty() {
            let (task, n, attempt) = (all.list(task), all.list(n), all.list(attempt));
            let data = all.list(data);
            all.push(&format!(
                ", output_added AS (INSERT INTO sb_output (task, n, attempt, piece, data) \
                 SELECT u.t, u.n, u.a, fence.first + u.i - 1, u.d FROM fence, \
                 unnest({task}, {n}, {attempt}, {data}) WITH ORDINALITY AS u(t, n, a, d, i) \
                 WHERE fence.moved)"
            ));
        }
    }
}

/// Reads everything. Only the leader writes, so the tables fit together although they are read one after the other.
pub fn load(connection: &mut Connection) -> Result<Saved, Failure> {
    let mut loading = Loading {
        connection,
        saved: Saved::default(),
    };
    loading.load()?;
    Ok(loading.saved)
}

struct Loading<'a> {
    connection: &'a mut Connection,
    saved: Saved,
}

impl Loading<'_> {
    /// Gives each row of an answer to `keep`. Nothing is gathered on the way: the server sends the rows as it reads
    /// them.
    fn rows(
        &mut self,
        sql: &str,
        mut keep: impl FnMut(&mut Saved, &mut Row<'_>) -> Result<(), String>,
    ) -> Result<(), Failure> {
        let (saved, statement) = (&mut self.saved, Statement::new(sql));
        let mut read = |row: &mut Row<'_>| keep(saved, row);
        self.connection
            .rows(&statement, Some(LOAD_TIMEOUT), &mut read)?;
        Ok(())
    }

    fn load(&mut self) -> Result<(), Failure> {
        self.rows(
            "SELECT version, alive, next_task, next_schedule FROM sb_leader",
            |saved, row| {
                check_version(row.number()?)?;
                saved.last_alive = Time(row.number()?);
                saved.next_task = row.number()?;
                saved.next_schedule = row.number()?;
                Ok(())
            },
        )?;
        self.rows("SELECT name, record FROM sb_switch", |saved, row| {
            let (name, bytes) = (row.bytes()?, row.bytes()?);
            if name == SWITCH_HALT.as_bytes() {
                saved.halt = Some(record("switch", SWITCH_HALT, bytes)?);
            } else if name == SWITCH_SUSPENSIONS.as_bytes() {
                saved.suspensions = record("switch", SWITCH_SUSPENSIONS, bytes)?;
            } else if name == SWITCH_AWAY.as_bytes() {
                saved.away_ms = record("switch", SWITCH_AWAY, bytes)?;
            }
            Ok(())
        })?;
        self.rows("SELECT name, record FROM sb_limit", |saved, row| {
            let name = name(row)?;
            let limit = record("limit", &name, row.bytes()?)?;
            saved.limits.insert(name, limit);
            Ok(())
        })?;
        self.rows(
            "SELECT number, record FROM sb_notification",
            |saved, row| {
                let number = row.number()?;
                let entry = record("notification", number, row.bytes()?)?;
                saved.notifications.insert(number, entry);
                Ok(())
            },
        )?;
        self.rows("SELECT schedule, record FROM sb_schedule", |saved, row| {
            let key = row.number()?;
            let posted = record("schedule", key, row.bytes()?)?;
            saved.schedules.insert(ScheduleKey(key), Arc::new(posted));
            Ok(())
        })?;
        self.rows("SELECT schedule, record FROM sb_progress", |saved, row| {
            let key = row.number()?;
            let progress = record("the progress of schedule", key, row.bytes()?)?;
            saved.progress.insert(ScheduleKey(key), progress);
            Ok(())
        })?;
        self.rows("SELECT instance, record FROM sb_machine", |saved, row| {
            let instance = name(row)?;
            let machine = record("machine", &instance, row.bytes()?)?;
            saved.machines.insert(instance, machine);
            Ok(())
        })?;
        self.rows("SELECT task, record FROM sb_task", |saved, row| {
            let key = row.number()?;
            let task = record("task", key, row.bytes()?)?;
            saved.tasks.insert(TaskKey(key), task);
            Ok(())
        })?;
        self.rows("SELECT task, n, record FROM sb_execution", |saved, row| {
            let (task, n) = (row.number()?, row.small_number()?);
            let execution = record("execution of task", task, row.bytes()?)?;
            saved.executions.insert((TaskKey(task), n), execution);
            Ok(())
        })?;
        // Ordered here: the server would have to sort all of the bytes, too.
        let mut pieces: Vec<(OutputKey, u64, SavedPiece)> = Vec::new();
        self.rows(
            "SELECT task, n, attempt, piece, data FROM sb_output",
            |_, row| {
                let key = OutputKey {
                    task: TaskKey(row.number()?),
                    n: row.small_number()?,
                    attempt: row.small_number()?,
                };
                let number = row.number()?;
                let piece = decoded(row.bytes()?).ok_or_else(|| {
                    format!("output {number} of task {} is not a piece", key.task.0)
                })?;
                pieces.push((key, number, piece));
                Ok(())
            },
        )?;
        pieces.sort_unstable_by_key(|(key, number, _)| (*key, *number));
        let pieces = pieces.into_iter().map(|(key, _, piece)| (key, piece));
        self.saved.output = pieces.collect();
        Ok(())
    }
}

fn name(row: &mut Row<'_>) -> Result<Arc<str>, String> {
    let name = std::str::from_utf8(row.bytes()?).map_err(|why| format!("a name: {why}"))?;
    Ok(name.into())
}

/// Refuses records of a newer version.
pub fn check_version(version: u64) -> Result<(), String> {
    match version {
        ..=VERSION => Ok(()),
        _ => Err(format!(
            "its records have version {version} and were written by a newer sidebike, this one reads versions up to {VERSION}; use the newer one"
        )),
    }
}
