//! `sidebike db check` and `sidebike db export`: reading the file of a stopped server.

use super::*;

/// `sidebike db check FILE`: checks the file of a stopped server and describes it.
pub fn check(path: &Path) -> Result<String, String> {
    without_panic(path, || checked(path))
}

fn checked(path: &Path) -> Result<String, String> {
    let Opened {
        mut database,
        was_open,
    } = open_file(path)?;
    check_version(&database, path)?;
    // `false` only means that it found and freed unused pages.
    database
        .check_integrity()
        .map_err(|why| damaged(path, &why))?;
    let Read { saved, .. } = read_all(&database, path, Strictness::RefuseFile)?;
    let (tasks, executions, machines) = (
        saved.tasks.len(),
        saved.executions.len(),
        saved.machines.len(),
    );
    let consistent = restored(saved).and_then(|core| core.check_invariants());
    consistent.map_err(|why| damaged(path, &why))?;
    let closed = if was_open {
        "; its server did not close it, nothing is lost by that"
    } else {
        ""
    };
    Ok(format!(
        "{} is whole: {tasks} tasks, {executions} executions, {machines} machines{closed}",
        path.display()
    ))
}

/// `sidebike db export FILE`: writes every task in the file of a stopped server as the API answers it, one JSON line
/// each, oldest first. Of a damaged file it writes what can be read, and then returns an error.
pub fn export(path: &Path, out: &mut dyn Write) -> Result<(), String> {
    without_panic(path, || exported(path, out))
}

fn exported(path: &Path, out: &mut dyn Write) -> Result<(), String> {
    let Opened { database, .. } = open_file(path)?;
    check_version(&database, path)?;
    let mut read = read_all(&database, path, Strictness::SkipDamaged)?;
    read.leave_out_incomplete_tasks();
    let left_out = read.left_out;
    let core = restored(read.saved).map_err(|why| damaged(path, &why))?;
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
        Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => other.map_err(|why| format!("cannot write: {why}"))?,
    }
    match left_out {
        0 => Ok(()),
        n => Err(format!(
            "{} is damaged: {n} records could not be read and are left out",
            path.display()
        )),
    }
}

/// The core as it was when the file was last written, without limits.
fn restored(mut saved: Saved) -> Result<Core, String> {
    crate::server::state::read_zones(&mut saved);
    let then = saved.last_alive;
    Core::restored(Limits::NONE, then, saved)
}
