//! The files of a task: the flags of `run`, and what `push` shares with them. To add one: a field of [`FileArgs`] or
//! [`HowArgs`], and the field of the API that it sets in `messages.rs`.

use super::command::{Failure, duration};
use super::terminal::sanitize;
use super::transfer::LocalFile;
use crate::client::Client;
use crate::wire::files::{Fetch, File, IfExists, Unpack};
use crate::wire::task::NewTask;
use serde_json::{Map, Value};
use std::path::Path;

/// The heading of these flags in the help.
const HEADING: &str = "Files";

/// The arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct FileArgs {
    /// Before the command, lay this file of this machine down there: at PATH, which is absolute or in the workspace
    /// (a / at its end: in that folder), else as $SIDEBIKE_FILES/NAME; can be given several times
    #[arg(help_heading = HEADING, long = "file", id = "local_file", value_name = "SRC[:PATH]")]
    files: Vec<String>,
    /// After the command, hand this file back: sidebike pull gets it; can be given several times
    #[arg(help_heading = HEADING, long, value_name = "PATH")]
    fetch: Vec<String>,
    #[command(flatten)]
    how: HowArgs,
    /// Remove in the end what was not there before
    #[arg(help_heading = HEADING, long, requires = "local_file")]
    remove_files: bool,
}

/// How files are laid down.
#[derive(Debug, clap::Args)]
pub struct HowArgs {
    /// The file is an archive (.tar, .tar.gz, .tgz): unpack it into the folder PATH
    #[arg(help_heading = HEADING, long)]
    unpack: bool,
    /// Leave out so many leading parts of the names in the archive
    #[arg(help_heading = HEADING, long, value_name = "N", requires = "unpack")]
    strip: Option<u32>,
    /// The mode of the file [default: 0755 if it may be executed here, else 0644]
    #[arg(help_heading = HEADING, long, value_name = "OCTAL", conflicts_with = "unpack")]
    mode: Option<String>,
    /// What happens if there is another file: replace it, keep it, or fail [default: replace]
    #[arg(help_heading = HEADING, long, value_name = "replace|keep|fail", value_parser = if_exists)]
    if_exists: Option<IfExists>,
    /// Write into the file that is there, where it cannot be replaced because it is mounted; not atomic
    #[arg(help_heading = HEADING, long, conflicts_with = "unpack")]
    in_place: bool,
    /// How long laying files down may take, and handing files back [default: 10m]
    #[arg(help_heading = HEADING, long, value_name = "DURATION")]
    files_timeout: Option<String>,
}

fn if_exists(text: &str) -> Result<IfExists, String> {
    match text {
        "replace" => Ok(IfExists::Replace),
        "keep" => Ok(IfExists::Keep),
        "fail" => Ok(IfExists::Fail),
        _ => Err("expected replace, keep or fail".into()),
    }
}

impl HowArgs {
    /// A file of a task, and where it goes.
    pub fn file(&self, local: &LocalFile, path: Option<&str>) -> Result<File, Failure> {
        let name = local.path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| {
            Failure::Usage(format!(
                "{}: its name is no text in UTF-8",
                sanitize(&local.path.to_string_lossy())
            ))
        })?;
        let path = path.map(|path| match path.ends_with('/') && !self.unpack {
            true => format!("{path}{name}"),
            false => path.to_owned(),
        });
        let mode = if local.is_executable { "0755" } else { "0644" };
        Ok(File {
            sha256: local.sha256.clone(),
            size: local.size,
            name: path.is_none().then(|| name.to_owned()),
            path,
            mode: (!self.unpack).then(|| self.mode.clone().unwrap_or_else(|| mode.into())),
            unpack: self.unpack.then_some(if local.is_gzip {
                Unpack::TarGz
            } else {
                Unpack::Tar
            }),
            strip: self.strip,
            if_exists: self.if_exists,
            in_place: self.in_place,
            remove: false,
        })
    }

    /// A flag that says how a file is laid down, if there is one.
    fn given(&self) -> Option<&'static str> {
        let flags = [
            (self.unpack, "--unpack"),
            (self.mode.is_some(), "--mode"),
            (self.if_exists.is_some(), "--if-exists"),
            (self.in_place, "--in-place"),
        ];
        let given = flags.iter().find(|(is_given, _)| *is_given);
        given.map(|(_, flag)| *flag)
    }

    /// Sets what concerns all files of a task.
    pub fn apply(&self, task: &mut NewTask) -> Result<(), Failure> {
        task.files_timeout = duration("--files-timeout", &self.files_timeout)?;
        Ok(())
    }
}

impl FileArgs {
    /// Sets what was given. Reads the files once.
    pub fn apply(&self, task: &mut NewTask) -> Result<(), Failure> {
        if self.files.is_empty()
            && let Some(flag) = self.how.given()
        {
            return Err(Failure::Usage(format!("{flag}: goes with --file only")));
        }
        for text in &self.files {
            let (source, path) = split(text);
            let file = self.how.file(&LocalFile::read(source)?, path)?;
            task.files.push(File {
                remove: self.remove_files,
                ..file
            });
        }
        for path in &self.fetch {
            task.fetch.push(Fetch {
                path: path.clone(),
                max: None,
                missing_ok: false,
            });
        }
        self.how.apply(task)
    }

    /// Sends the files of a task, in which the flags have set them.
    pub fn send(
        &self,
        task: &Map<String, Value>,
        client: &Client,
        is_told: bool,
    ) -> Result<(), Failure> {
        if self.files.is_empty() {
            return Ok(());
        }
        let files: Vec<File> = (task.get("files").cloned())
            .and_then(|files| serde_json::from_value(files).ok())
            .unwrap_or_default();
        for (text, file) in self.files.iter().zip(files) {
            let local = LocalFile {
                path: split(text).0.into(),
                sha256: file.sha256,
                size: file.size,
                is_executable: false,
                is_gzip: false,
            };
            local.send(client, is_told)?;
        }
        Ok(())
    }
}

/// A source, and where it goes. A file of this machine may have a colon in its name.
fn split(text: &str) -> (&str, Option<&str>) {
    if Path::new(text).is_file() {
        return (text, None);
    }
    let colons = text.match_indices(':').map(|(at, _)| at);
    let there = colons.clone().find(|at| Path::new(&text[..*at]).is_file());
    match there.or_else(|| colons.clone().next()) {
        Some(at) => (
            &text[..at],
            Some(&text[at + 1..]).filter(|path| !path.is_empty()),
        ),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_told_from_where_it_goes() {
        for (text, source, path) in [
            ("no-such-file", "no-such-file", None),
            ("no-such-file:/tmp/x", "no-such-file", Some("/tmp/x")),
            ("Cargo.toml:/a:b", "Cargo.toml", Some("/a:b")),
            ("Cargo.toml:", "Cargo.toml", None),
            ("Cargo.toml", "Cargo.toml", None),
        ] {
            assert_eq!(split(text), (source, path), "{text}");
        }
    }
}
