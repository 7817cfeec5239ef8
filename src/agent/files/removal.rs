//! Removing what an execution made, when it is over.
//!
//! Its command may have put a link, or another folder, in the place of the folder that something was made in. What lies
//! there then is not its own: the agent, which may be root, does not remove it.

use super::job::{FolderId, HelperJob, Made, ToRemove};
use super::place::{Root, explain};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat, unlinkat};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::path::Path;

/// How deep a tree may be that is removed: each folder is open while what is in it is removed.
const MAX_DEPTH: u32 = 128;

/// Removes it, the last one first. The error is the first that occurred; the others are removed all the same.
pub fn remove(job: &HelperJob, made: &[ToRemove]) -> Result<(), String> {
    let root = Root::open(job.root.as_deref())?;
    let mut first = Ok(());
    for made in made.iter().rev() {
        let removed = remove_one(&root, made);
        first = first.and(removed);
    }
    first
}

/// The folder that something is in.
pub fn folder_of(root: &Root, made: &Made) -> Option<FolderId> {
    let place = root.find(path_of(made), Path::new("/")).ok().flatten()?;
    id_of(&place.folder).ok()
}

fn path_of(made: &Made) -> &Path {
    let (Made::File(path) | Made::Folder(path) | Made::Tree(path)) = made;
    path
}

fn id_of(folder: &OwnedFd) -> Result<FolderId, Errno> {
    let found = fstat(folder)?;
    Ok(FolderId(found.st_dev as u64, found.st_ino as u64))
}

fn remove_one(root: &Root, it: &ToRemove) -> Result<(), String> {
    let made = &it.made;
    let path = path_of(made);
    let failed = |why: String| format!("{}: {why}", path.display());
    let Some(place) = root.find(path, Path::new("/")).map_err(failed)? else {
        return Ok(());
    };
    if id_of(&place.folder) != Ok(it.folder) {
        return Err(failed(
            "its folder is another one by now, in which nothing is removed".into(),
        ));
    }
    let removed = match made {
        Made::File(_) => unlinkat(&place.folder, &*place.name, AtFlags::empty()),
        Made::Folder(_) => match unlinkat(&place.folder, &*place.name, AtFlags::REMOVEDIR) {
            // Somebody else has put something there.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => Ok(()),
            other => other,
        },
        Made::Tree(_) => remove_tree(&place.folder, &place.name, MAX_DEPTH),
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(why) => Err(failed(explain(why, "cannot be removed"))),
    }
}

fn remove_tree(folder: &impl AsFd, name: &OsStr, depth: u32) -> Result<(), Errno> {
    let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return unlinkat(folder, name, AtFlags::empty());
    }
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner: OwnedFd = openat(folder, name, flags, Mode::empty())?;
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::read_from(&inner)? {
        names.push(entry?.file_name().to_owned());
    }
    for name in names {
        if is_dots(&name) {
            continue;
        }
        match remove_tree(&inner, os(&name), depth - 1) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(why) => return Err(why),
        }
    }
    unlinkat(folder, name, AtFlags::REMOVEDIR)
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn os(name: &CStr) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes())
}
