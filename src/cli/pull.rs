//! `sidebike pull`.

use super::command::{CommandResult, ConnectionArgs, Failure};
use super::follow::print_message;
use super::messages::no_such_label;
use super::selection::short_instance;
use super::task_reference::TaskArg;
use super::terminal::sanitize;
use super::transfer::{get, in_units};
use crate::wire::files::FetchedFile;
use crate::wire::task::{Execution, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// How the name of a file begins and ends until all of it is there. Between them is the number of this process.
const PART_PREFIX: &str = ".sidebike-pull-";
const PART_SUFFIX: &str = ".part";
/// The longest name, in bytes: no file system has longer ones.
const MAX_NAME_BYTES: usize = 255;

const EXAMPLES: &str = "\
Examples:
  id=$(sidebike run --detach --fetch /tmp/heap.hprof -m '^web-' -- ./dump.sh)
  sidebike wait $id; sidebike pull $id dumps     as dumps/web-1/tmp/heap.hprof, …

A name that is no name here is changed, so that nothing is written outside of DIR. Files that are
there with the same bytes stay as they are, others are replaced. The exit code is 1 if there is
nothing to get.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    task: TaskArg,
    /// The folder that they go into, as DIR/LABEL/PATH; with the instance where a label is not unique
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// Only from the machines with this label, or the one with this instance
    #[arg(short, long = "machine", value_name = "LABEL")]
    machine: Option<String>,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Gets the files that a task has handed back.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client_for_files()?;
    let task = args.task.find(&client)?;
    let files = files_of(&task, args.machine.as_deref());
    if files.is_empty() {
        let is_there = executions(&task, args.machine.as_deref()).next().is_some();
        if let Some(label) = args.machine.as_deref().filter(|_| !is_there) {
            let what = format!("machine of task {} has", task.id);
            print_message(&no_such_label(label, &what));
            return Ok(1);
        }
        let why = match (task.fetch.is_empty(), task.state.is_terminal()) {
            (true, _) => "it hands no file back: run --fetch PATH asks for one",
            (false, true) => "no machine has handed a file back; sidebike show says why",
            (false, false) => "no machine has handed a file back yet",
        };
        return Err(Failure::Because(format!("task {}: {why}", task.id)));
    }
    let mut out = io::stdout().lock();
    for (place, file) in &files {
        let target = args.folder.join(place);
        let shown = sanitize(&target.to_string_lossy());
        let cannot = |why: io::Error| Failure::Because(format!("cannot write {shown}: {why}"));
        let parent = safe_folder(&args.folder, place).map_err(cannot)?;
        let note = if file.truncated {
            ", only its beginning"
        } else {
            ""
        };
        if is_there(&target, file) {
            writeln!(out, "{shown}: unchanged, {}{note}", in_units(file.size))?;
            continue;
        }
        let (part, mut written) = part_in(&parent).map_err(cannot)?;
        let got = get(&client, &shown, &file.sha256, file.size, &mut written);
        let named = got.and_then(|()| {
            written
                .sync_all()
                .and_then(|()| fs::rename(&part, &target))
                .map_err(cannot)
        });
        if let Err(why) = named {
            let _ = fs::remove_file(&part);
            return Err(why);
        }
        writeln!(out, "{shown}: {}{note}", in_units(file.size))?;
    }
    let missing = executions(&task, args.machine.as_deref())
        .filter(|e| e.attempt.files.is_empty())
        .count();
    if missing > 0 {
        print_message(&format!("sidebike: executions without a file: {missing}\n"));
    }
    Ok(0)
}

fn executions<'a>(task: &'a Task, machine: Option<&'a str>) -> impl Iterator<Item = &'a Execution> {
    let is_meant = move |e: &&Execution| {
        machine.is_none_or(|name| e.machine_label == name || e.instance == name)
    };
    task.result.iter().filter(is_meant)
}

/// The files of a task, by where each goes.
fn files_of<'a>(task: &'a Task, machine: Option<&'a str>) -> Vec<(PathBuf, &'a FetchedFile)> {
    let mut labels: BTreeMap<&str, u32> = BTreeMap::new();
    for execution in &task.result {
        *labels.entry(&execution.machine_label).or_default() += 1;
    }
    let mut files: Vec<(PathBuf, &FetchedFile)> = Vec::new();
    let mut taken: BTreeSet<PathBuf> = BTreeSet::new();
    for execution in executions(task, machine) {
        let label = &execution.machine_label;
        let folder = match labels.get(&**label) {
            Some(1) => label.clone(),
            _ => format!("{label}-{}", short_instance(&execution.instance)),
        };
        let folder = safe_name(&folder);
        for file in &execution.attempt.files {
            let names = file
                .path
                .split('/')
                .filter(|name| !matches!(*name, "" | "."));
            let mut place = PathBuf::from(&folder);
            place.extend(names.map(safe_name));
            while !taken.insert(place.clone()) {
                // Two names became the same.
                place.as_mut_os_string().push("_");
            }
            files.push((place, file));
        }
    }
    files
}

/// A new file with a name that no other file has: what the machine has handed back may be called as it likes.
fn part_in(folder: &Path) -> io::Result<(PathBuf, File)> {
    let process = std::process::id();
    for number in 0.. {
        let part = folder.join(format!("{PART_PREFIX}{process}-{number}{PART_SUFFIX}"));
        match OpenOptions::new().write(true).create_new(true).open(&part) {
            Ok(file) => return Ok((part, file)),
            Err(why) if why.kind() == ErrorKind::AlreadyExists => {}
            Err(why) => return Err(why),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// A name that is one here: no folder, not the one above, and not too long.
fn safe_name(name: &str) -> String {
    let name = &name[..name.floor_char_boundary(MAX_NAME_BYTES)];
    let safe: String = name
        .chars()
        .map(|c| if c == '/' || c.is_control() { '_' } else { c })
        .collect();
    match &*safe {
        "" | "." | ".." => safe.replace('.', "_") + "_",
        _ => safe,
    }
}

/// Makes the folder of a place beneath another one. A link there is not followed: it may lead anywhere.
fn safe_folder(base: &Path, place: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(base)?;
    let mut folder = base.to_owned();
    for part in place.parent().into_iter().flat_map(Path::components) {
        folder.push(part);
        match fs::create_dir(&folder) {
            Err(why) if why.kind() == ErrorKind::AlreadyExists => {}
            other => other?,
        }
        if !fs::symlink_metadata(&folder)?.is_dir() {
            return Err(io::Error::other(format!(
                "{} is no folder",
                folder.display()
            )));
        }
    }
    Ok(folder)
}

/// Whether the same bytes are there already.
fn is_there(target: &Path, file: &FetchedFile) -> bool {
    let found = fs::symlink_metadata(target);
    found.is_ok_and(|found| found.is_file() && found.len() == file.size)
        && File::open(target).is_ok_and(|found| {
            super::transfer::hash_of(found).is_ok_and(|hash| hash == file.sha256)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_outside() {
        for (name, safe) in [
            ("..", "___"),
            (".", "__"),
            ("", "_"),
            ("a/b", "a_b"),
            ("a\nb", "a_b"),
            ("web-1", "web-1"),
            ("...", "..."),
            (&"é".repeat(200), &"é".repeat(127)),
        ] {
            assert_eq!(safe_name(name), safe, "{name:?}");
        }
        let base = std::env::temp_dir().join(format!("sidebike-pull-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        std::os::unix::fs::symlink("/tmp", base.join("web-1")).unwrap();
        assert!(safe_folder(&base, Path::new("web-1/x")).is_err());
        assert!(safe_folder(&base, Path::new("web-2/a/x")).is_ok());
        fs::remove_dir_all(&base).unwrap();
    }
}
