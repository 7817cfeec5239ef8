//! From the tables to everything that was saved.

use super::damaged;
use super::tables::*;
use crate::core::{OutputKey, Saved, ScheduleKey, TaskKey, Time};
use log::warn;
use redb::{
    Database, Key, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableError,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// How to treat a record that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// The file is refused.
    RefuseFile,
    /// The record is left out.
    SkipDamaged,
}

/// Everything in the file.
pub struct Read {
    /// The records.
    pub saved: Saved,
    /// The number of the next piece of output.
    pub next_piece: u64,
    /// The size of all records, in bytes.
    pub bytes: u64,
    /// Records that were left out.
    pub left_out: usize,
}

/// Reads everything.
pub fn read_all(database: &Database, path: &Path, strictness: Strictness) -> Result<Read, String> {
    let mut all = Read {
        saved: Saved::default(),
        next_piece: 0,
        bytes: 0,
        left_out: 0,
    };
    // The tables before the damaged part can still be used.
    let read = catch_unwind(AssertUnwindSafe(|| {
        let read = database.begin_read().map_err(text)?;
        all.read_all(&read, strictness)
    }));
    let read = read.unwrap_or_else(|_| Err("it contradicts itself".into()));
    match (read, strictness) {
        (Ok(()), _) => Ok(all),
        (Err(why), Strictness::RefuseFile) => Err(damaged(path, &why)),
        (Err(why), Strictness::SkipDamaged) => {
            warn!("not everything can be read: {why}");
            all.left_out += 1;
            Ok(all)
        }
    }
}

impl Read {
    fn read_all(&mut self, read: &ReadTransaction, strictness: Strictness) -> Result<(), String> {
        let meta = read.open_table(META).map_err(text)?;
        let last_alive = meta.get(META_LAST_ALIVE).map_err(text)?;
        self.saved.last_alive = Time(last_alive.map_or(0, |alive| alive.value()));
        let next_task = meta.get(META_NEXT_TASK).map_err(text)?;
        self.saved.next_task = next_task.map_or(0, |next| next.value());
        let away = meta.get(META_AWAY).map_err(text)?;
        self.saved.away_ms = away.map_or(0, |away| away.value());
        if let Some(switches) = if_there(read.open_table(SWITCHES))? {
            if let Some(saved) = switches.get(SWITCH_SUSPENSIONS).map_err(text)? {
                let saved = record("switch", SWITCH_SUSPENSIONS, saved.value());
                self.saved.suspensions = self.or_left_out(saved, strictness)?.unwrap_or_default();
            }
            if let Some(halt) = switches.get(SWITCH_HALT).map_err(text)? {
                let halt = record("switch", SWITCH_HALT, halt.value());
                self.saved.halt = self.or_left_out(halt, strictness)?;
            }
        }
        if let Some(limits) = if_there(read.open_table(LIMITS))? {
            self.records(&limits, strictness, |all, name, bytes| {
                let limit = record("limit", name, bytes)?;
                all.saved.limits.insert(name.into(), limit);
                Ok(())
            })?;
        }
        if let Some(notifications) = if_there(read.open_table(NOTIFICATIONS))? {
            self.records(&notifications, strictness, |all, number, bytes| {
                let entry = record("notification", number, bytes)?;
                all.saved.notifications.insert(number, entry);
                Ok(())
            })?;
        }
        self.read_schedules(read, strictness)?;
        let tasks = read.open_table(TASKS).map_err(text)?;
        self.records(&tasks, strictness, |all, key, bytes| {
            let task = record("task", key, bytes)?;
            all.saved.tasks.insert(TaskKey(key), task);
            Ok(())
        })?;
        let executions = read.open_table(EXECUTIONS).map_err(text)?;
        self.records(&executions, strictness, |all, (task, n), bytes| {
            let execution = record("execution of task", task, bytes)?;
            all.saved.executions.insert((TaskKey(task), n), execution);
            Ok(())
        })?;
        let machines = read.open_table(MACHINES).map_err(text)?;
        self.records(&machines, strictness, |all, instance, bytes| {
            let machine = record("machine", instance, bytes)?;
            all.saved.machines.insert(instance.into(), machine);
            Ok(())
        })?;
        // The pieces of each attempt are ordered by number, which is the order of arrival.
        let output = read.open_table(OUTPUT).map_err(text)?;
        self.records(
            &output,
            strictness,
            |all, (task, n, attempt, number), bytes| {
                all.next_piece = all.next_piece.max(number + 1);
                let piece = decoded(bytes)
                    .ok_or_else(|| format!("output {number} of task {task} is not a piece"))?;
                let task = TaskKey(task);
                let key = OutputKey { task, n, attempt };
                all.saved.output.push((key, piece));
                Ok(())
            },
        )
    }

    fn read_schedules(
        &mut self,
        read: &ReadTransaction,
        strictness: Strictness,
    ) -> Result<(), String> {
        let meta = read.open_table(META).map_err(text)?;
        let next = meta.get(META_NEXT_SCHEDULE).map_err(text)?;
        self.saved.next_schedule = next.map_or(0, |next| next.value());
        let Some(schedules) = if_there(read.open_table(SCHEDULES))? else {
            return Ok(());
        };
        self.records(&schedules, strictness, |all, key, bytes| {
            let posted = record("schedule", key, bytes)?;
            all.saved
                .schedules
                .insert(ScheduleKey(key), Arc::new(posted));
            Ok(())
        })?;
        let progress = read.open_table(PROGRESS).map_err(text)?;
        self.records(&progress, strictness, |all, key, bytes| {
            let progress = record("the progress of schedule", key, bytes)?;
            all.saved.progress.insert(ScheduleKey(key), progress);
            Ok(())
        })
    }

    /// Gives each record of a table to `keep`. One that it cannot read is an error, or left out.
    fn records<K: Key>(
        &mut self,
        table: &ReadOnlyTable<K, &'static [u8]>,
        strictness: Strictness,
        mut keep: impl for<'a> FnMut(&mut Self, K::SelfType<'a>, &'a [u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        for entry in table.iter().map_err(text)? {
            let (key, value) = entry.map_err(text)?;
            self.bytes += value.value().len() as u64;
            let kept = keep(self, key.value(), value.value());
            self.or_left_out(kept, strictness)?;
        }
        Ok(())
    }

    /// A record; `None` if it cannot be read and is left out.
    fn or_left_out<T>(
        &mut self,
        record: Result<T, String>,
        strictness: Strictness,
    ) -> Result<Option<T>, String> {
        match record {
            Ok(record) => Ok(Some(record)),
            Err(why) if strictness == Strictness::RefuseFile => Err(why),
            Err(why) => {
                warn!("left out: {why}");
                self.left_out += 1;
                Ok(None)
            }
        }
    }

    /// Leaves out records that do not fit together, so that the rest can be exported.
    pub fn leave_out_incomplete_tasks(&mut self) {
        let Saved {
            tasks, executions, ..
        } = &mut self.saved;
        let before = tasks.len();
        tasks.retain(|key, _| {
            let of_task = executions.range((*key, 0)..=(*key, u32::MAX));
            of_task
                .zip(0..)
                .all(|(((_, n), _), expected)| *n == expected)
        });
        self.left_out += before - tasks.len();
        executions.retain(|(task, _), _| tasks.contains_key(task));
        let Saved {
            schedules,
            progress,
            ..
        } = &mut self.saved;
        schedules.retain(|key, _| progress.contains_key(key));
        progress.retain(|key, _| schedules.contains_key(key));
    }
}

/// A table that files of earlier versions do not have.
fn if_there<T>(opened: Result<T, TableError>) -> Result<Option<T>, String> {
    match opened {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        opened => opened.map(Some).map_err(text),
    }
}
