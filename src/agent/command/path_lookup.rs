//! Finding a program on a PATH, as shells do it.

use rustix::fs::{Access, access};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The PATH where the environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The shells that run a command line, the preferred one first.
const SHELLS: [&str; 2] = ["bash", "sh"];

/// The program that a person typed: a path, or a name that is searched for.
pub fn typed(typed: &Path, path: Option<&OsStr>, base: &Path) -> Option<PathBuf> {
    if typed.as_os_str().as_bytes().contains(&b'/') {
        return Some(base.join(typed)).filter(|file| is_executable(file));
    }
    on_path(typed.to_str()?, path, base)
}

/// The first program called `name` in the directories of `path`. Relative directories start at `base`.
pub fn on_path(name: &str, path: Option<&OsStr>, base: &Path) -> Option<PathBuf> {
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    std::env::split_paths(path)
        .map(|directory| base.join(directory).join(name))
        .find(|file| is_executable(file))
}

/// The shell of this machine: its name and where it is.
pub fn shell(path: Option<&OsStr>, base: &Path) -> Option<(&'static str, PathBuf)> {
    let mut shells = SHELLS.into_iter();
    shells.find_map(|name| Some((name, on_path(name, path, base)?)))
}

fn is_executable(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|found| found.is_file())
        && access(file, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_executable_files_only() {
        let sh = on_path("sh", None, Path::new("/")).unwrap();
        assert!(sh.is_absolute() && sh.ends_with("sh"));
        assert_eq!(on_path("no-such-program", None, Path::new("/")), None);
        // A directory has the same permission bit and is no program.
        assert_eq!(on_path("usr", Some(OsStr::new("/")), Path::new("/")), None);
        assert_eq!(
            on_path("sh", Some(OsStr::new("/nowhere")), Path::new("/")),
            None
        );
        let directory = sh.parent().unwrap();
        assert_eq!(
            on_path("sh", Some(OsStr::new(".")), directory),
            Some(directory.join("./sh"))
        );
        assert_eq!(shell(Some(OsStr::new("/nowhere")), directory), None);
        assert!(shell(None, directory).is_some());
    }
}
