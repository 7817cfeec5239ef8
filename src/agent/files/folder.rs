//! The folder for files without a path, `$SIDEBIKE_FILES`.
//!
//! It is looked for only when a task brings such a file: the one that the owner has chosen (`--files-dir`), else one that
//! is made in the first folder of `$TMPDIR`, /tmp, /var/tmp, /dev/shm and /run where a file can be written and executed.
//! It is the same one for all tasks, so that a later command finds what an earlier one has pushed.

use super::place::{explain, is_folder};
use super::temporary::Temporary;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, StatVfsMountFlags, chmodat, mkdirat, open, statat,
};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Where the folder may be, beside `TMPDIR`.
const FOLDERS: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/run"];
/// Others may enter it: a command may run as another user.
const MODE: Mode = Mode::from_raw_mode(0o755);

/// The one that was chosen last.
static CHOSEN: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Remembers which one a helper has chosen: an undo that is run later needs it, too.
pub fn remember(folder: &Path) {
    *crate::agent::attempt::lock(&CHOSEN) = Some(folder.to_owned());
}

/// The folder for an undo that is run again: the one that was chosen last, else the one that is there.
pub fn known(chosen: Option<&Path>, root: Option<&Path>) -> Option<PathBuf> {
    let known = crate::agent::attempt::lock(&CHOSEN).clone();
    known.or_else(|| {
        candidates(chosen, root)
            .into_iter()
            .find(|folder| is_own(folder).is_ok())
    })
}

/// Chooses one, and makes it. The error names each that was tried.
pub fn choose(chosen: Option<&Path>, root: Option<&Path>) -> Result<PathBuf, String> {
    let mut reasons = Vec::new();
    for folder in candidates(chosen, root) {
        let is_given = chosen.is_some() || root.is_some();
        match prepare(&folder, is_given) {
            Ok(()) => return Ok(folder),
            Err(why) => reasons.push(format!("{}: {why}", folder.display())),
        }
    }
    Err(format!(
        "this machine has no folder where a file can be written and executed: {}; give the task a path, or start the agent with --files-dir",
        reasons.join("; ")
    ))
}

fn candidates(chosen: Option<&Path>, root: Option<&Path>) -> Vec<PathBuf> {
    // With a root nothing outside of it is touched.
    if let Some(folder) = chosen.or(root) {
        return vec![folder.to_owned()];
    }
    let own = std::env::var_os("TMPDIR").map(PathBuf::from);
    let own = own.filter(|folder| folder.is_absolute());
    let all = own.into_iter().chain(FOLDERS.map(PathBuf::from));
    let name = format!("sidebike-files-{}", rustix::process::geteuid().as_raw());
    all.filter(|folder| is_folder(folder))
        .map(|folder| folder.join(&name))
        .collect()
}

fn prepare(folder: &Path, is_given: bool) -> Result<(), String> {
    match mkdirat(CWD, folder, MODE) {
        // The umask of the agent does not count.
        Ok(()) => chmodat(CWD, folder, MODE, AtFlags::empty())
            .map_err(|why| explain(why, "it cannot be used"))?,
        Err(Errno::EXIST) => {}
        Err(why) => return Err(explain(why, "it cannot be made")),
    }
    if !is_given {
        is_own(folder)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened =
        open(folder, flags, Mode::empty()).map_err(|why| explain(why, "it cannot be used"))?;
    let found =
        rustix::fs::fstatvfs(&opened).map_err(|why| explain(why, "it cannot be looked at"))?;
    if found.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Err("nothing may be executed there (noexec)".into());
    }
    Temporary::new(&opened)
        .map(drop)
        .map_err(|why| explain(why, "it cannot be written"))
}

/// Others may write to the folder that it is in: what they have put there is not taken.
fn is_own(folder: &Path) -> Result<(), String> {
    let found = statat(CWD, folder, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|why| explain(why, "it cannot be looked at"))?;
    let is_folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    let is_own = found.st_uid == rustix::process::geteuid().as_raw();
    match is_folder && is_own && found.st_mode as u32 & 0o022 == 0 {
        true => Ok(()),
        false => Err("it was made by somebody else, or others may write to it".into()),
    }
}
