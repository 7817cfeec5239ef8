//! From the tables to everything that was saved.

use super::damaged;
use super::tables::*;
use crate::core::{OutputKey, Saved, ScheduleKey, TaskKey, Time};
use log::warn;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableError};
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
        match read.open_table(SWITCHES) {
            Err(TableError::TableDoesNotExist(_)) => {}
            switches => {
                let switches = switches.map_err(text)?;
                let suspensions = switches.get(SWITCH_SUSPENSIONS).map_err(text)?;
                if let Some(suspensions) = suspensions {
                    let saved = record("switch", SWITCH_SUSPENSIONS, suspensions.value());
                    let saved = self.or_left_out(saved, strictness)?;
                    self.saved.suspensions = saved.unwrap_or_default();
                }
                let halt = switches.get(SWITCH_HALT).map_err(text)?;
                if let Some(halt) = halt {
                    let halt = record("switch", SWITCH_HALT, halt.value());
                    self.saved.halt = self.or_left_out(halt, strictness)?;
                }
            }
        }
        match read.open_table(LIMITS) {
            Err(TableError::TableDoesNotExist(_)) => {}
            limits => {
                for entry in limits.map_err(text)?.iter().map_err(text)? {
                    let (key, value) = entry.map_err(text)?;
                    let limit = record("limit", key.value(), value.value());
                    if let Some(limit) = self.or_left_out(limit, strictness)? {
                        self.saved.limits.insert(key.value().into(), limit);
                    }
                }
            }
        }
        match read.open_table(NOTIFICATIONS) {
            Err(TableError::TableDoesNotExist(_)) => {}
            notifications => {
                let notifications = notifications.map_err(text)?;
                for entry in notifications.iter().map_err(text)? {
                    let (key, value) = entry.map_err(text)?;
                    self.bytes += value.value().len() as u64;
                    let entry = record("notification", key.value(), value.value());
                    if let Some(entry) = self.or_left_out(entry, strictness)? {
                        self.saved.notifications.insert(key.value(), entry);
                    }
                }
            }
        }
        self.read_schedules(read, strictness)?;
        let tasks = read.open_table(TASKS).map_err(text)?;
        for entry in tasks.iter().map_err(text)? {
            let (key, value) = entry.map_err(text)?;
            self.bytes += value.value().len() as u64;
            let task = record("task", key.value(), value.value());
            if let Some(task) = self.or_left_out(task, strictness)? {
                self.saved.tasks.insert(TaskKey(key.value()), task);
            }
        }
        let executions = read.open_table(EXECUTIONS).map_err(text)?;
        for entry in executions.iter().map_err(text)? {
            let (key, value) = entry.map_err(text)?;
            let (task, n) = key.value();
            self.bytes += value.value().len() as u64;
            let execution = record("execution of task", task, value.value());
            if let Some(execution) = self.or_left_out(execution, strictness)? {
                self.saved.executions.insert((TaskKey(task), n), execution);
            }
        }
        let machines = read.open_table(MACHINES).map_err(text)?;
        for entry in machines.iter().map_err(text)? {
            let (key, value) = entry.map_err(text)?;
            self.bytes += value.value().len() as u64;
            let machine = record("machine", key.value(), value.value());
            if let Some(machine) = self.or_left_out(machine, strictness)? {
                self.saved.machines.insert(key.value().into(), machine);
            }
        }
        // The pieces of each attempt are ordered by number, which is the order of arrival.
        let output = read.open_table(OUTPUT).map_err(text)?;
        for entry in output.iter().map_err(text)? {
            let (key, value) = entry.map_err(text)?;
            let (task, n, attempt, number) = key.value();
            self.bytes += value.value().len() as u64;
            let piece = decoded(value.value())
                .ok_or_else(|| format!("output {number} of task {task} is not a piece"));
            if let Some(piece) = self.or_left_out(piece, strictness)? {
                let task = TaskKey(task);
                let key = OutputKey { task, n, attempt };
                self.saved.output.push((key, piece));
            }
            self.next_piece = self.next_piece.max(number + 1);
        }
        Ok(())
    }

    fn read_schedules(
        &mut self,
        read: &ReadTransaction,
        strictness: Strictness,
    ) -> Result<(), String> {
        let meta = read.open_table(META).map_err(text)?;
        let next = meta.get(META_NEXT_SCHEDULE).map_err(text)?;
        self.saved.next_schedule = next.map_or(0, |next| next.value());
        let schedules = match read.open_table(SCHEDULES) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            schedules => schedules.map_err(text)?,
        };
        for entry in schedules.iter().map_err(text)? {
            let (key, value) = entry.map_err(text)?;
            self.bytes += value.value().len() as u64;
            let posted = record("schedule", key.value(), value.value());
            if let Some(posted) = self.or_left_out(posted, strictness)? {
                let key = ScheduleKey(key.value());
                self.saved.schedules.insert(key, Arc::new(posted));
            }
        }
        let progress = read.open_table(PROGRESS).map_err(text)?;
        for entry in progress.iter().map_err(text)? {
            let (key, value) = entry.map_err(text)?;
            self.bytes += value.value().len() as u64;
            let progress = record("the progress of schedule", key.value(), value.value());
            if let Some(progress) = self.or_left_out(progress, strictness)? {
                self.saved
                    .progress
                    .insert(ScheduleKey(key.value()), progress);
            }
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
