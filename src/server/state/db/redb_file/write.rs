//! From a batch to the tables.

use super::tables::*;
use crate::core::{Batch, OutputChange, OutputKey};
use redb::{ReadableTable, WriteTransaction};

/// Writes a batch. `next_piece` is the number of the next piece of output.
pub fn write_batch(
    write: &WriteTransaction,
    meta: &mut MetaTable<'_>,
    batch: &Batch,
    next_piece: &mut u64,
) -> Result<(), String> {
    let needed = batch.reader_version();
    let version = meta.get(META_VERSION).map_err(text)?;
    let version = version.map_or(0, |version| version.value());
    if needed > version {
        meta.insert(META_VERSION, needed).map_err(text)?;
    }
    if batch.next_task > 0 {
        meta.insert(META_NEXT_TASK, batch.next_task).map_err(text)?;
    }
    if let Some(away) = batch.away_ms {
        meta.insert(META_AWAY, away).map_err(text)?;
    }
    if let Some(halt) = &batch.halt {
        let mut switches = write.open_table(SWITCHES).map_err(text)?;
        match halt {
            Some(halt) => drop(switches.insert(SWITCH_HALT, &*json(halt)?).map_err(text)?),
            None => drop(switches.remove(SWITCH_HALT).map_err(text)?),
        }
    }
    if !batch.limits.is_empty() {
        let mut limits = write.open_table(LIMITS).map_err(text)?;
        for (name, limit) in &batch.limits {
            match limit {
                Some(limit) => limits.insert(&**name, &*json(limit)?).map_err(text)?,
                None => limits.remove(&**name).map_err(text)?,
            };
        }
    }
    if !batch.notifications.is_empty() {
        let mut notifications = write.open_table(NOTIFICATIONS).map_err(text)?;
        for (number, entry) in &batch.notifications {
            match entry {
                Some(entry) => drop(notifications.insert(number, &*json(entry)?).map_err(text)?),
                None => drop(notifications.remove(number).map_err(text)?),
            }
        }
    }
    if let Some(suspensions) = &batch.suspensions {
        let mut switches = write.open_table(SWITCHES).map_err(text)?;
        let suspensions = json(suspensions)?;
        drop(
            switches
                .insert(SWITCH_SUSPENSIONS, &*suspensions)
                .map_err(text)?,
        );
    }
    if !batch.schedules.is_empty() || !batch.progress.is_empty() {
        write_schedules(write, batch)?;
        if batch.next_schedule > 0 {
            meta.insert(META_NEXT_SCHEDULE, batch.next_schedule)
                .map_err(text)?;
        }
    }
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
    Ok(())
}

fn write_schedules(write: &WriteTransaction, batch: &Batch) -> Result<(), String> {
    let mut schedules = write.open_table(SCHEDULES).map_err(text)?;
    let mut progress = write.open_table(PROGRESS).map_err(text)?;
    for (key, saved) in &batch.progress {
        progress.insert(key.0, &*json(saved)?).map_err(text)?;
    }
    for (key, posted) in &batch.schedules {
        match posted {
            Some(posted) => drop(schedules.insert(key.0, &*json(posted)?).map_err(text)?),
            None => {
                schedules.remove(key.0).map_err(text)?;
                progress.remove(key.0).map_err(text)?;
            }
        }
    }
    Ok(())
}

fn write_output(
    table: &mut OutputTable<'_>,
    key: &OutputKey,
    change: &OutputChange,
    next_piece: &mut u64,
) -> Result<(), String> {
    let pieces = match change {
        OutputChange::Appended(piece) => std::slice::from_ref(piece),
        OutputChange::Replaced(pieces) => {
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
