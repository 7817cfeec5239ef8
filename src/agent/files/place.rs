//! Paths that come from outside, resolved beneath a root.
//!
//! With `--files-root` nothing outside of that folder is touched, whatever links are in it; without it the root is `/`.
//! The kernel resolves a path in one call (`openat2`). Where it has none, a folder is entered part by part, and a path
//! that would need a link is refused. What is at the end of a path is never followed: a link there is refused.

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fchmod, mkdirat, open, openat,
    openat2, statat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The longest path, in bytes: Linux takes no longer one.
const MAX_PATH_BYTES: usize = 4_095;
/// The mode of folders that are made.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);
/// How folders are opened, to be read where that is allowed.
const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);
/// How often a call that found the tree changed under it is repeated.
const MAX_RACES: u32 = 16;

/// The folder beneath which everything is.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// As the owner wrote it, and as the kernel knows it.
    spelled: PathBuf,
    real: PathBuf,
    is_whole: bool,
}

/// A place for a file: its folder and its name in it.
#[derive(Debug)]
pub struct Place {
    /// The folder.
    pub folder: OwnedFd,
    /// Its name in there.
    pub name: OsString,
    /// Where it is, for people and for the end.
    pub path: PathBuf,
    /// Folders that were made for it, the outermost first.
    pub made: Vec<PathBuf>,
}

/// What is at a place.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Its size.
    pub size: u64,
    /// Its mode, without the kind of file.
    pub mode: u32,
}

impl Root {
    /// Opens it; `/` without one.
    pub fn open(root: Option<&Path>) -> Result<Self, String> {
        let spelled = root.unwrap_or(Path::new("/")).to_owned();
        let cannot =
            |why: &dyn std::fmt::Display| format!("--files-root {}: {why}", spelled.display());
        let real = std::fs::canonicalize(&spelled).map_err(|why| cannot(&why))?;
        let fd = open(&real, FOLDER, Mode::empty())
            .or_else(|_| open(&real, FOLDER | OFlags::PATH, Mode::empty()))
            .map_err(|why| cannot(&why))?;
        let is_whole = real == Path::new("/");
        Ok(Root {
            fd,
            spelled,
            real,
            is_whole,
        })
    }

    /// The parts of a path beneath the root. Relative paths begin at `base`.
    fn parts(&self, path: &Path, base: &Path) -> Result<Vec<OsString>, String> {
        if path.as_os_str().is_empty() || path.as_os_str().as_bytes().contains(&0) {
            return Err("must not be empty, and contains no NUL".into());
        }
        let is_upward = |path: &Path| path.components().any(|part| part == Component::ParentDir);
        if is_upward(path) {
            return Err("must not contain ..".into());
        }
        let absolute = match path.is_absolute() {
            true => path.to_owned(),
            // One that does not exist may be made by another file of the task.
            false => std::fs::canonicalize(base)
                .unwrap_or_else(|_| base.to_owned())
                .join(path),
        };
        if absolute.as_os_str().len() > MAX_PATH_BYTES {
            return Err(format!("must have {MAX_PATH_BYTES} bytes at most"));
        }
        let beneath =
            { absolute.strip_prefix(&self.real) }.or_else(|_| absolute.strip_prefix(&self.spelled));
        let beneath = beneath.map_err(|_| {
            format!(
                "refused by this machine's owner: it is not in --files-root {}",
                self.spelled.display()
            )
        })?;
        if is_upward(beneath) {
            return Err("the workspace must not contain ..".into());
        }
        let parts = beneath.components().filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_owned()),
            _ => None,
        });
        Ok(parts.collect())
    }

    /// The path of parts, for people.
    fn path_of(&self, parts: &[OsString]) -> PathBuf {
        self.real.join(parts.iter().collect::<PathBuf>())
    }

    /// Finds the place of a file, and makes the folders on the way to it that are missing.
    pub fn place(&self, path: &Path, base: &Path) -> Result<Place, String> {
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err("must be the path of a file, and does not end with /".into());
        }
        let mut parts = self.parts(path, base)?;
        let name = parts.pop().ok_or("must be the path of a file")?;
        let (folder, made) = self.make_folders(&parts)?;
        let path = self.path_of(&parts).join(&name);
        Ok(Place {
            folder,
            name,
            path,
            made,
        })
    }

    /// The same for a folder, which is made, too.
    pub fn folder(&self, path: &Path, base: &Path) -> Result<Place, String> {
        let parts = self.parts(path, base)?;
        let (folder, made) = self.make_folders(&parts)?;
        let path = self.path_of(&parts);
        Ok(Place {
            folder,
            name: OsString::new(),
            path,
            made,
        })
    }

    /// Finds the place of a file whose folder has to be there.
    pub fn find(&self, path: &Path, base: &Path) -> Result<Option<Place>, String> {
        let mut parts = self.parts(path, base)?;
        let name = parts.pop().ok_or("must be the path of a file")?;
        let full = self.path_of(&parts).join(&name);
        match self.open_folder(&parts) {
            Ok(folder) => Ok(Some(Place {
                folder,
                name,
                path: full,
                made: Vec::new(),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(why) => Err(self.refusal(why, &parts)),
        }
    }

    /// Opens a folder, and makes what is missing of it. Which ones were made.
    fn make_folders(&self, parts: &[OsString]) -> Result<(OwnedFd, Vec<PathBuf>), String> {
        let mut there = parts.len();
        let mut folder = loop {
            match self.open_folder(&parts[..there]) {
                Ok(folder) => break folder,
                Err(Errno::NOENT) if there > 0 => there -= 1,
                Err(why) => return Err(self.refusal(why, &parts[..there])),
            }
        };
        let mut made = Vec::new();
        for n in there..parts.len() {
            let name = &parts[n];
            let cannot = |why| self.refusal(why, &parts[..=n]);
            match mkdirat(&folder, name, FOLDER_MODE) {
                Ok(()) => made.push(self.path_of(&parts[..=n])),
                // Another one was faster.
                Err(Errno::EXIST) => {}
                Err(why) => return Err(cannot(why)),
            }
            let is_ours = made
                .last()
                .is_some_and(|made| *made == self.path_of(&parts[..=n]));
            folder =
                openat(&folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()).map_err(cannot)?;
            if is_ours {
                // The umask of the agent does not count.
                let _ = fchmod(&folder, FOLDER_MODE);
            }
        }
        Ok((folder, made))
    }

    fn open_folder(&self, parts: &[OsString]) -> Result<OwnedFd, Errno> {
        match self.open_folder_to(parts, FOLDER) {
            // It may be entered and not be listed.
            Err(Errno::ACCESS) => self.open_folder_to(parts, FOLDER | OFlags::PATH),
            other => other,
        }
    }

    fn open_folder_to(&self, parts: &[OsString], flags: OFlags) -> Result<OwnedFd, Errno> {
        if parts.is_empty() {
            return openat(&self.fd, ".", flags, Mode::empty());
        }
        let mut resolve = ResolveFlags::NO_MAGICLINKS;
        if !self.is_whole {
            resolve |= ResolveFlags::BENEATH;
        }
        let path: PathBuf = parts.iter().collect();
        for _ in 0..MAX_RACES {
            match openat2(&self.fd, &path, flags, Mode::empty(), resolve) {
                // The tree was changed meanwhile.
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Before Linux 5.6, and where a filter of system calls does not know it.
                Err(Errno::NOSYS | Errno::PERM) => return self.walk(parts, flags),
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Enters folder after folder, and no link.
    fn walk(&self, parts: &[OsString], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut folder = openat(&self.fd, ".", flags | OFlags::PATH, Mode::empty())?;
        for (n, part) in parts.iter().enumerate() {
            let how = match n + 1 == parts.len() {
                true => flags,
                false => flags | OFlags::PATH,
            };
            folder = match openat(&folder, part, how | OFlags::NOFOLLOW, Mode::empty()) {
                // With `DIRECTORY` a link is "not a directory".
                Err(Errno::NOTDIR) if is_link(&folder, part) => return Err(Errno::LOOP),
                other => other?,
            };
        }
        Ok(folder)
    }

    fn refusal(&self, why: Errno, parts: &[OsString]) -> String {
        let path = self.path_of(parts);
        let path = path.display();
        match why {
            Errno::XDEV => format!(
                "refused by this machine's owner: {path} leads out of --files-root {}",
                self.spelled.display()
            ),
            Errno::LOOP => {
                format!("the folder {path} is, or is behind, a link that is not followed here")
            }
            Errno::NOTDIR => format!("{path} is not a folder"),
            why => explain(why, &format!("the folder {path} cannot be used")),
        }
    }
}

fn is_link(folder: &OwnedFd, name: &OsStr) -> bool {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|found| kind(&found) == FileType::Symlink)
}

fn kind(found: &Stat) -> FileType {
    FileType::from_raw_mode(found.st_mode)
}

impl Place {
    /// What is there; an error if that is no ordinary file.
    pub fn look(&self) -> Result<Option<Found>, String> {
        let found = match statat(&self.folder, &*self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(why) => return Err(explain(why, "cannot be looked at")),
        };
        match kind(&found) {
            FileType::RegularFile => Ok(Some(Found {
                size: u64::try_from(found.st_size).unwrap_or(0),
                mode: found.st_mode as u32 & 0o7777,
            })),
            FileType::Directory => Err("there is a folder of that name".into()),
            FileType::Symlink => Err("there is a symbolic link of that name".into()),
            _ => Err("there is something of that name that is no ordinary file".into()),
        }
    }

    /// Opens the file that is there. A link is an error, and so is what is no ordinary file.
    pub fn open(&self, flags: OFlags) -> Result<std::fs::File, String> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            openat(&self.folder, &*self.name, flags, Mode::empty()).map_err(|why| match why {
                Errno::TXTBSY => {
                    "it is being executed, and inPlace would change it while it runs".into()
                }
                Errno::LOOP => "it is a symbolic link".into(),
                why => explain(why, "cannot be opened"),
            })?;
        let found = rustix::fs::fstat(&file).map_err(|why| explain(why, "cannot be looked at"))?;
        match kind(&found) {
            FileType::RegularFile => Ok(file.into()),
            _ => Err("it is no ordinary file".into()),
        }
    }
}

/// An error of the system in words.
pub fn explain(why: Errno, what: &str) -> String {
    match why {
        Errno::ROFS => format!("{what}: the file system is read-only"),
        Errno::NOSPC => format!("{what}: no room is left there"),
        Errno::DQUOT => format!("{what}: the quota of the agent's user is used up"),
        Errno::ACCESS | Errno::PERM => {
            format!("{what}: the agent's user may not (permission denied)")
        }
        why => format!("{what}: {}", std::io::Error::from(why)),
    }
}

/// Whether a path is an absolute one of a folder that is there.
pub fn is_folder(path: &Path) -> bool {
    let found = statat(CWD, path, AtFlags::empty());
    path.is_absolute() && found.is_ok_and(|found| kind(&found) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn temporary() -> PathBuf {
        let id = crate::agent::backoff::random_id().unwrap();
        let path = std::env::temp_dir().join(format!("sidebike-place-{id}"));
        std::fs::create_dir(&path).unwrap();
        std::fs::canonicalize(path).unwrap()
    }

    #[test]
    fn nothing_leads_out_of_the_root() {
        let outer = temporary();
        let inside = outer.join("root");
        std::fs::create_dir_all(inside.join("real")).unwrap();
        std::fs::create_dir(outer.join("other")).unwrap();
        symlink("/etc", inside.join("absolute")).unwrap();
        symlink("../other", inside.join("upward")).unwrap();
        symlink("real", inside.join("inner")).unwrap();
        let root = Root::open(Some(&inside)).unwrap();
        for path in [
            "absolute/x",
            "upward/x",
            "../other/x",
            "a/../../other/x",
            "/etc/x",
            "",
        ] {
            assert!(root.place(Path::new(path), &inside).is_err(), "{path}");
        }
        let place = root.place(Path::new("a/b/c"), &inside).unwrap();
        assert_eq!(place.path, inside.join("a/b/c"));
        assert_eq!(place.made, [inside.join("a"), inside.join("a/b")]);
        let again = root.place(&inside.join("a/b/c"), Path::new("/")).unwrap();
        assert!(again.made.is_empty() && again.look().unwrap().is_none());
        assert!(root.place(Path::new("inner/x"), &inside).is_ok());
        assert!(!outer.join("other/x").exists());
        for (name, word) in [("real", "folder"), ("inner", "link")] {
            let place = root.place(Path::new(name), &inside).unwrap();
            assert!(place.look().unwrap_err().contains(word), "{name}");
        }
        // Without openat2 no link is followed, also not one that stays inside.
        let parts: Vec<OsString> = ["inner", "x"].map(Into::into).into();
        assert_eq!(root.walk(&parts[..1], FOLDER).unwrap_err(), Errno::LOOP);
        assert!(root.walk(&["a".into(), "b".into()], FOLDER).is_ok());
        std::fs::remove_dir_all(outer).unwrap();
    }
}
