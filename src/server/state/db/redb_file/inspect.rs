//! Reading the file of a stopped server.

use super::super::inspect::{restored, summary, write_tasks};
use super::*;

/// Checks the file of a stopped server and describes it.
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
    let summary = summary(saved).map_err(|why| damaged(path, &why))?;
    let closed = if was_open {
        "; its server did not close it, nothing is lost by that"
    } else {
        ""
    };
    Ok(format!("{} is whole: {summary}{closed}", path.display()))
}

/// Reads the file of a stopped server.
#[cfg(feature = "pg")]
pub fn read(path: &Path) -> Result<Saved, String> {
    without_panic(path, || {
        let Opened { database, .. } = open_file(path)?;
        check_version(&database, path)?;
        Ok(read_all(&database, path, Strictness::RefuseFile)?.saved)
    })
}

/// Writes every task in the file of a stopped server. Of a damaged file it writes what can be read, and then returns an
/// error.
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
    write_tasks(&core, out)?;
    match left_out {
        0 => Ok(()),
        n => Err(format!(
            "{} is damaged: {n} records could not be read and are left out",
            path.display()
        )),
    }
}
