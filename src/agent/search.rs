//! Finding a program on a PATH, the way shells do it.

use rustix::fs::{Access, access};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is searched when there is no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program that was typed: a name to be searched for, or a path.
pub fn program(typed: &Path, path: Option<&OsStr>, base: &Path) -> Option<PathBuf> {
    if typed.as_os_str().as_bytes().contains(&b'/') {
        return Some(base.join(typed)).filter(|file| can_be_started(file));
    }
    on_path(typed.to_str()?, path, base)
}

/// The first program called `name` in the folders of `path`; relative ones are seen from `base`.
pub fn on_path(name: &str, path: Option<&OsStr>, base: &Path) -> Option<PathBuf> {
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    std::env::split_paths(path)
        .map(|folder| base.join(folder).join(name))
        .find(|file| can_be_started(file))
}

fn can_be_started(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|found| found.is_file())
        && access(file, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_and_nothing_else() {
        let sh = on_path("sh", None, Path::new("/")).unwrap();
        assert!(sh.is_absolute() && sh.ends_with("sh"));
        assert_eq!(on_path("no-such-program", None, Path::new("/")), None);
        // A folder is not a program, however executable.
        assert_eq!(on_path("usr", Some(OsStr::new("/")), Path::new("/")), None);
        assert_eq!(
            on_path("sh", Some(OsStr::new("/nowhere")), Path::new("/")),
            None
        );
        let folder = sh.parent().unwrap();
        assert_eq!(
            on_path("sh", Some(OsStr::new(".")), folder),
            Some(folder.join("./sh"))
        );
    }
}
