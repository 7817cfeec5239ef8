//! Settings of an agent.
//!
//! They belong to the owner of the machine, and no task can change them; see [`CommandPolicy`].

use super::{Registry, RegistryArgs};
use crate::agent::command::path_lookup;
use crate::agent::idle::IdleConfig;
use crate::rules::{MAX_JOBS, MAX_LABEL_BYTES, check_label, check_tags, wrong_regex};
use crate::wire::duration::TimeSpan;
use clap::Args;
use clap::builder::FalseyValueParser;
use regex::Regex;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The bounds of an idle time: below, an agent would end before its first command can come; above, it is a mistake.
const MIN_IDLE: TimeSpan = TimeSpan::from_millis(100);
const MAX_IDLE: TimeSpan = TimeSpan::from_secs(366 * 24 * 3_600);

/// The arguments of `sidebike agent`.
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// The label of this machine [default: the host name]
    #[arg(long, env = "SIDEBIKE_MACHINE_LABEL", value_name = "LABEL")]
    machine_label: Option<String>,
    /// A tag of this machine, as NAME=VALUE; repeat it for more, or separate them by commas
    ///
    /// Tasks can select machines by them, and commands find each in a variable such as SIDEBIKE_TAG_ZONE.
    #[arg(
        long,
        env = "SIDEBIKE_TAGS",
        value_name = "NAME=VALUE",
        value_delimiter = ','
    )]
    tag: Vec<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Commands to run at the same time
    #[arg(long, env = "SIDEBIKE_JOBS", value_name = "N", default_value_t = 4)]
    jobs: u32,
    /// How long running commands may go on at shutdown
    #[arg(
        long,
        env = "SIDEBIKE_GRACE",
        value_name = "DURATION",
        default_value = "10s"
    )]
    grace: String,
    /// End when nothing is left to do: nothing ran for this long, and nothing waits that could come here
    ///
    /// What is queued, held, blocked or between two attempts waits; a schedule or a command that begins at a
    /// later time does not. For jobs of CI and workers that come and go.
    #[arg(long, env = "SIDEBIKE_UNTIL_IDLE", value_name = "DURATION")]
    until_idle: Option<String>,
    /// End when nothing ran for this long, whatever waits; time suspended or without a server does not count
    #[arg(long, env = "SIDEBIKE_MAX_IDLE", value_name = "DURATION")]
    max_idle: Option<String>,
    /// End after this many commands
    #[arg(long, env = "SIDEBIKE_MAX_COMMANDS", value_name = "N")]
    max_commands: Option<u64>,
    /// Run only commands that match this from their first to their last character
    ///
    /// Repeat it to allow more; the variable holds one pattern. The command is the shell line, or
    /// argv joined by blanks and quoted as for a shell. `.` does not match a newline; `\s` and `[^x]` do.
    /// Tasks may not set variables then. It prevents mistakes; against attackers use --wrapper.
    #[arg(long, env = "SIDEBIKE_ALLOW", value_name = "REGEX")]
    allow: Vec<String>,
    /// Start this program with the command as its arguments; it decides what to run
    ///
    /// Its arguments are `bash -c LINE` (`sh` where there is no bash), or argv. Tasks may not set
    /// variables then, as they would reach the wrapper.
    #[arg(long, env = "SIDEBIKE_WRAPPER", value_name = "PROGRAM")]
    wrapper: Option<PathBuf>,
    /// Let tasks run commands as these users only (detail.user); the name must match as a whole
    ///
    /// An agent that runs as root runs a command as any user that a task names. With --allow or --wrapper
    /// it does so only for users that match this.
    #[arg(long, env = "SIDEBIKE_ALLOW_USER", value_name = "REGEX")]
    allow_user: Option<String>,
    /// What tasks may do with files: push (lay files down before their command), pull (hand files back after it), both
    /// or off [default: both, with --allow or --wrapper off]
    #[arg(
        long,
        env = "SIDEBIKE_FILE_TRANSFER",
        value_name = "off|push|pull|both"
    )]
    file_transfer: Option<FileTransfer>,
    /// Tasks lay files down, and hand files back, in this folder only
    #[arg(long, env = "SIDEBIKE_FILES_ROOT", value_name = "DIR")]
    files_root: Option<PathBuf>,
    /// Files that a task brings without a path go into this folder [default: one in $TMPDIR, /tmp, /var/tmp,
    /// /dev/shm or /run, the first where a file can be executed]
    #[arg(long, env = "SIDEBIKE_FILES_DIR", value_name = "DIR")]
    files_dir: Option<PathBuf>,
    /// Let tasks replace this program by another version (update)
    #[arg(long, env = "SIDEBIKE_SELF_UPDATE", value_parser = FalseyValueParser::new())]
    self_update: bool,
    /// Refuse to start as root
    #[arg(long, env = "SIDEBIKE_REFUSE_ROOT", value_parser = FalseyValueParser::new())]
    refuse_root: bool,
}

/// What tasks may do with files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileTransfer {
    Off,
    Push,
    Pull,
    Both,
}

impl std::str::FromStr for FileTransfer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(FileTransfer::Off),
            "push" => Ok(FileTransfer::Push),
            "pull" => Ok(FileTransfer::Pull),
            "both" => Ok(FileTransfer::Both),
            _ => Err("expected off, push, pull or both".into()),
        }
    }
}

/// What the owner of a machine lets tasks do with files.
#[derive(Debug, Clone, Default)]
pub struct FilePolicy {
    /// They may lay files down.
    pub push: bool,
    /// They may hand files back.
    pub pull: bool,
    /// The setting that decides it, for refusals.
    pub setting: &'static str,
    /// They may do so in this folder only. A full path.
    pub root: Option<PathBuf>,
    /// Where files without a path go. A full path.
    pub folder: Option<PathBuf>,
}

/// Checked settings of an agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The label of this machine.
    pub label: String,
    /// The host name.
    pub host: String,
    /// Its tags, by name.
    pub tags: BTreeMap<String, String>,
    /// The server.
    pub registry: Registry,
    /// Commands to run at the same time.
    pub jobs: u32,
    /// How long running commands may go on at shutdown.
    pub grace: TimeSpan,
    /// When it ends by itself.
    pub idle: IdleConfig,
    /// Which commands may be run.
    pub policy: CommandPolicy,
    /// Tasks may replace its program.
    pub self_update: bool,
    /// Do not start as root.
    pub refuse_root: bool,
}

/// Which commands the owner of a machine allows; no task can change it.
#[derive(Debug, Clone, Default)]
pub struct CommandPolicy {
    /// If there are any, one of them must match; each matches a whole command or not at all.
    pub allow: Vec<Regex>,
    /// The full path of the program that is started with the command as its arguments.
    pub wrapper: Option<PathBuf>,
    /// What tasks may do with files.
    pub files: FilePolicy,
    /// The users that commands may run as besides the agent's own. None: all if every command is allowed, else none.
    pub allow_user: Option<Regex>,
}

impl AgentArgs {
    /// Checks the arguments. The error is one line for the user.
    pub fn checked(self) -> Result<AgentConfig, String> {
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let label = self
            .machine_label
            .filter(|label| !label.is_empty())
            .unwrap_or_else(|| host.clone());
        check_label(&label, MAX_LABEL_BYTES, "")
            .map_err(|why| format!("--machine-label: {why}"))?;
        if self.jobs == 0 || self.jobs > MAX_JOBS {
            return Err(format!(
                "--jobs: expected a number from 1 to {MAX_JOBS}, got {}",
                self.jobs
            ));
        }
        let idle = IdleConfig {
            until_idle: idle_time("--until-idle", self.until_idle.as_deref())?,
            max_idle: idle_time("--max-idle", self.max_idle.as_deref())?,
            max_commands: self.max_commands,
        };
        if idle.max_commands == Some(0) {
            return Err("--max-commands: expected a number from 1, got 0".into());
        }
        let grace = self
            .grace
            .parse()
            .map_err(|why| format!("--grace: {why}, got {:?}", self.grace))?;
        let files = file_policy(
            self.file_transfer,
            (!self.allow.is_empty(), self.wrapper.is_some()),
            (self.files_root, self.files_dir),
        )?;
        Ok(AgentConfig {
            label,
            host,
            tags: tags(&self.tag).map_err(|why| format!("--tag: {why}"))?,
            registry: self.registry.checked()?,
            jobs: self.jobs,
            grace,
            idle,
            policy: CommandPolicy {
                allow: self
                    .allow
                    .iter()
                    .map(|pattern| whole(pattern).map_err(|why| format!("--allow: {why}")))
                    .collect::<Result<_, _>>()?,
                wrapper: self.wrapper.map(wrapper).transpose()?,
                files,
                allow_user: self
                    .allow_user
                    .map(|pattern| whole(&pattern).map_err(|why| format!("--allow-user: {why}")))
                    .transpose()?,
            },
            self_update: self.self_update,
            refuse_root: self.refuse_root,
        })
    }
}

/// What tasks may do with files. An owner who restricts commands by `--allow` or `--wrapper` has not thought of files:
/// one of them could replace what is allowed.
fn file_policy(
    transfer: Option<FileTransfer>,
    (has_allow, has_wrapper): (bool, bool),
    (root, folder): (Option<PathBuf>, Option<PathBuf>),
) -> Result<FilePolicy, String> {
    let (transfer, setting) = match transfer {
        Some(FileTransfer::Off) => (FileTransfer::Off, "--file-transfer off"),
        Some(FileTransfer::Push) => (FileTransfer::Push, "--file-transfer push"),
        Some(FileTransfer::Pull) => (FileTransfer::Pull, "--file-transfer pull"),
        Some(FileTransfer::Both) => (FileTransfer::Both, "--file-transfer both"),
        None if has_allow => (FileTransfer::Off, "--allow and without --file-transfer"),
        None if has_wrapper => (FileTransfer::Off, "--wrapper and without --file-transfer"),
        None => (FileTransfer::Both, "--file-transfer both"),
    };
    // Found once at the start, so that the folder of a task cannot influence it.
    let found = |flag: &str, path: PathBuf| {
        let full = std::fs::canonicalize(&path).map_err(|why| why.to_string());
        let full = full.and_then(|full| match full.is_dir() {
            true => Ok(full),
            false => Err("that is no folder".into()),
        });
        full.map_err(|why| format!("{flag}: expected a folder, got {:?}: {why}", path.display()))
    };
    let root = root.map(|root| found("--files-root", root)).transpose()?;
    let folder = { folder.map(|folder| found("--files-dir", folder)) }.transpose()?;
    if let (Some(root), Some(folder)) = (&root, &folder)
        && !folder.starts_with(root)
    {
        return Err(format!(
            "--files-dir: must be in --files-root {}, got {}",
            root.display(),
            folder.display()
        ));
    }
    Ok(FilePolicy {
        push: matches!(transfer, FileTransfer::Push | FileTransfer::Both),
        pull: matches!(transfer, FileTransfer::Pull | FileTransfer::Both),
        setting,
        root,
        folder,
    })
}

/// How long an agent may be idle.
fn idle_time(flag: &str, text: Option<&str>) -> Result<Option<TimeSpan>, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let span: TimeSpan = { text.parse() }.map_err(|why| format!("{flag}: {why}, got {text:?}"))?;
    match (MIN_IDLE..=MAX_IDLE).contains(&span) {
        true => Ok(Some(span)),
        false => Err(format!(
            "{flag}: must be from {MIN_IDLE} to {MAX_IDLE}, got {text:?}"
        )),
    }
}

/// The tags by name.
fn tags(given: &[String]) -> Result<BTreeMap<String, String>, String> {
    let mut tags = BTreeMap::new();
    for tag in given.iter().filter(|tag| !tag.is_empty()) {
        let (name, value) = tag
            .split_once('=')
            .ok_or_else(|| format!("expected NAME=VALUE such as zone=cn-1, got {tag:?}"))?;
        if tags.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    check_tags(&tags)?;
    Ok(tags)
}

/// A pattern that matches a text as a whole or not at all.
fn whole(pattern: &str) -> Result<Regex, String> {
    if pattern.is_empty() {
        return Err("must not be empty".into());
    }
    // Compile the pattern itself first: the added parentheses would make `a)|(b` valid, with another meaning.
    Regex::new(pattern)
        .and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")))
        .map_err(|why| {
            let why = wrong_regex(pattern, &why);
            format!("expected a regular expression: {why}")
        })
}

/// Finds a wrapper. Done once at the start, so that the folder of a task cannot influence it.
fn wrapper(typed: PathBuf) -> Result<PathBuf, String> {
    let name = typed.to_string_lossy().into_owned();
    let base = std::env::current_dir()
        .map_err(|why| format!("--wrapper: the current folder is not known: {why}"))?;
    let path = std::env::var_os("PATH");
    path_lookup::typed(&typed, path.as_deref(), &base).ok_or_else(|| {
        let is_path = name.contains('/');
        let why = match std::fs::metadata(base.join(&typed)) {
            _ if !is_path => "there is none of that name on the PATH",
            Err(_) => "there is no such file",
            Ok(found) if !found.is_file() => "that is no file",
            Ok(_) => "it may not be executed (chmod +x)",
        };
        format!("--wrapper: expected a program that can be started, got {name:?}: {why}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_a_whole_command_or_nothing() {
        for (pattern, command, allowed) in [
            ("ls", "ls", true),
            ("ls", "ls -l", false),
            ("ls", "x; ls", false),
            ("ls|pwd", "pwd", true),
            ("ls|pwd", "pwd; reboot", false),
            ("ls|pwd", "reboot; ls", false),
            ("ls .*", "ls -l", true),
            ("ls .*", "ls -l\nreboot", false),
            ("ls .*", "ls -l\n", false),
            ("ls$", "ls\n", false),
            ("(?m)^ls$", "ls\nreboot", false),
            ("(?m)ls.*$", "reboot\nls", false),
            ("(?s)cat <<E.*E", "cat <<E\nhi\nE", true),
            ("a|ab", "ab", true),
        ] {
            let found = whole(pattern).unwrap().is_match(command);
            assert_eq!(found, allowed, "{pattern:?} on {command:?}");
        }
        for pattern in ["", "(", "a)|(b", "(?x) ls # a list"] {
            assert!(whole(pattern).is_err(), "{pattern:?}");
        }
    }
}
