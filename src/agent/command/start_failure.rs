//! Why a program could not be started.
//!
//! `execve` reports a number only: "No such file or directory" also when the file is there and its interpreter is
//! not. This looks again at what was to be started, and names what is missing. To add a reason: a case in [`explain`].

use rustix::fs::{Access, access};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How much of a program is read, in bytes. Linux reads 256 of a `#!` line; the headers of an ELF file and the name of
/// its loader are within the first page.
const HEADER_BYTES: u64 = 4_096;

/// What a program needs besides itself.
#[derive(Debug, PartialEq)]
enum Needs {
    /// The interpreter that the first line of a script names.
    Interpreter(PathBuf),
    /// The dynamic loader of an ELF file.
    Loader(PathBuf),
    Nothing,
}

/// Why `program` could not be started, when `why` is what `execve` reported. A relative path begins at `directory`.
pub fn explain(why: &io::Error, program: &Path, directory: &Path) -> String {
    let file = directory.join(program);
    let header = || needs(&header(&file));
    match why.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => match header() {
            _ if !file.exists() => "there is no such file".into(),
            Needs::Interpreter(path) => missing_interpreter(&path),
            Needs::Loader(path) => format!(
                "the file is there, but not the dynamic loader {path:?} that it needs; it was built for another system"
            ),
            Needs::Nothing => why.to_string(),
        },
        Some(Errno::ACCESS) => match header() {
            _ if file.is_dir() => "it is a folder".into(),
            _ if access(&file, Access::EXEC_OK).is_err() => {
                "the agent's user may not execute it (chmod +x)".into()
            }
            Needs::Interpreter(path) => format!(
                "the interpreter {path:?} in its first line may not be executed: {why}"
            ),
            _ => format!("{why} (is it on a file system that is mounted with noexec?)"),
        },
        Some(Errno::NOEXEC) => "it is neither a program for this machine nor a script whose first line names an interpreter (#!/bin/sh)".into(),
        Some(Errno::TOOBIG) => "the command and its variables together are longer than this machine takes; pass long data as standard input".into(),
        _ => why.to_string(),
    }
}

fn missing_interpreter(path: &Path) -> String {
    if path.as_os_str().as_bytes().ends_with(b"\r") {
        return format!(
            "its first line names the interpreter {path:?}: the line ends with CR LF, as on Windows; save the file with LF line ends"
        );
    }
    format!("the interpreter {path:?} in its first line is not on this machine")
}

fn header(file: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(file) {
        // What cannot be read is not explained.
        let _ = file.take(HEADER_BYTES).read_to_end(&mut bytes);
    }
    bytes
}

/// What a file with these first bytes needs.
fn needs(header: &[u8]) -> Needs {
    if let Some(line) = header.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let mut words = line.split(is_blank).filter(|word| !word.is_empty());
        return match words.next() {
            Some(path) => Needs::Interpreter(OsStr::from_bytes(path).into()),
            None => Needs::Nothing,
        };
    }
    loader(header).map_or(Needs::Nothing, Needs::Loader)
}

/// The dynamic loader that a 64-bit little-endian ELF file names: the segment of type `PT_INTERP`.
fn loader(elf: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(bytes)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        )
    };
    let place = |at: usize, bytes: usize| usize::try_from(number(at, bytes)?).ok();
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (place(32, 8)?, place(54, 2)?, place(56, 2)?);
    let entries = (0..count).map(|n| table.checked_add(n * size));
    let entry = entries
        .map_while(|at| at)
        .find(|at| number(*at, 4) == Some(PT_INTERP))?;
    let (from, length) = (place(entry + 8, 8)?, place(entry + 32, 8)?);
    let name = elf.get(from..from.checked_add(length)?)?;
    let name = name.split(|byte| *byte == 0).next()?;
    Some(OsStr::from_bytes(name).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_names_its_interpreter() {
        let interpreter = |path: &str| Needs::Interpreter(path.into());
        assert_eq!(needs(b"#!/bin/sh\necho"), interpreter("/bin/sh"));
        assert_eq!(needs(b"#! /bin/sh -e\n"), interpreter("/bin/sh"));
        assert_eq!(needs(b"#!/bin/sh\r\necho"), interpreter("/bin/sh\r"));
        for none in [&b"#!"[..], b"#! \n", b"", b"echo", b"\x7fELF\x02\x01"] {
            assert_eq!(needs(none), Needs::Nothing);
        }
    }

    #[test]
    fn an_elf_file_names_its_loader() {
        let mut elf = vec![0; 200];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56]) = (64, 56, 1);
        (elf[64], elf[72], elf[96]) = (3, 128, 8);
        elf[128..136].copy_from_slice(b"/lib/ld\0");
        assert_eq!(needs(&elf), Needs::Loader("/lib/ld".into()));
        // Numbers that lead out of the file are no reason to stop.
        elf[72..80].fill(0xff);
        assert_eq!(needs(&elf), Needs::Nothing);
        elf[32..40].fill(0xff);
        assert_eq!(needs(&elf), Needs::Nothing);
    }
}
