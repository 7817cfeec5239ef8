//! What an agent finds at its start: nothing, in nearly all cases; else it is the new program of an update, or the old
//! one after an update that has failed, or somebody was killed in between.
//!
//! This runs before anything else, also before the arguments are parsed: a new program that fails at that still puts
//! the old one back.

use super::marker::{self, Files, Marker, Pending, Step, Whose};
use crate::agent::command::launch;
use crate::agent::processes::process_table::ProcessTable;
use std::sync::OnceLock;

/// By how much the number of the latest poll grows with each start: none of the polls of an earlier one has it.
const SEQ_STEP: u64 = 1 << 20;

/// What this process goes on with.
static RESUMED: OnceLock<Resumed> = OnceLock::new();

/// What this process goes on with.
#[derive(Debug)]
pub struct Resumed {
    /// The update.
    pub pending: Pending,
    /// The children that the program before has left: nobody waits for them.
    pub children: Vec<i32>,
}

/// The update that this process goes on with, if it does.
pub fn resumed() -> Option<&'static Resumed> {
    RESUMED.get()
}

/// The children of this process.
fn children() -> Vec<i32> {
    let own = std::process::id() as i32;
    let table = ProcessTable::read().unwrap_or_default();
    let children = { table.processes.iter() }.filter(|process| process.parent == own);
    children.map(|process| process.pid).collect()
}

/// Looks for a marker, and does what it says. Returns when this program is to go on; it may execute another one.
pub fn begin() {
    // Process 1 only starts the agent itself, which looks.
    if rustix::process::getpid().is_init() {
        return;
    }
    let Some(files) = Files::of_this_process() else {
        return;
    };
    if !files.marker().exists() {
        return;
    }
    let found = marker::change(files, |marker| Ok(look(files, marker)));
    match found {
        Ok(Found::Nothing) => {}
        Ok(Found::Resumed(pending)) => {
            let _ = RESUMED.set(Resumed {
                pending: *pending,
                children: children(),
            });
        }
        Ok(Found::Unfinished(why)) => go_back(&why),
        // Without a marker that can be written, an update that fails later cannot be told from one that succeeds.
        Err(why) => eprintln!("sidebike: an update cannot be looked after: {why}"),
    }
}

enum Found {
    Nothing,
    Resumed(Box<Pending>),
    Unfinished(String),
}

fn look(files: &Files, marker: &mut Marker) -> Found {
    let Some((whose, pending)) = marker.pending(files) else {
        return Found::Nothing;
    };
    let is_returning = pending.step == Step::Returning;
    match whose {
        // Another agent with the same program is on probation.
        Whose::Other => Found::Nothing,
        Whose::Own if pending.step != Step::Probation => {
            pending.starts += 1;
            if !is_returning {
                pending.step = Step::Probation;
            }
            let mut resumed = pending.clone();
            resumed.seq += u64::from(resumed.starts) * SEQ_STEP;
            Found::Resumed(Box::new(resumed))
        }
        Whose::Own | Whose::Gone => Found::Unfinished(match is_returning {
            true => pending.why.clone(),
            false => "it ended before its first complete poll".into(),
        }),
    }
}

/// Puts the old program back and executes it in this process. Returns only if that is not possible.
pub fn go_back(why: &str) {
    let Some(files) = Files::of_this_process() else {
        return;
    };
    eprintln!("sidebike: the update of this agent has failed, going back: {why}");
    let put = marker::change(files, |marker| {
        marker.fail(why);
        Ok(())
    });
    let put = put.and_then(|()| marker::rename_back(files));
    let failed = match put {
        Ok(()) => launch::execute(&files.program).to_string(),
        Err(why) => why,
    };
    eprintln!("sidebike: cannot go back: {failed}");
}

/// Puts the old program back if this one is new and cannot start.
pub fn start_failed(why: &str) {
    if resumed().is_some_and(|resumed| resumed.pending.step == Step::Probation) {
        go_back(&format!("it does not start: {why}"));
    }
}
