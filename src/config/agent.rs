//! Settings of an agent.
//!
//! The owner of the machine speaks through these flags, and whoever posts tasks cannot overrule
//! them: see [`Policy`].

use super::{Registry, RegistryArgs};
use crate::agent::command::path_lookup;
use crate::rules::{MAX_JOBS, MAX_LABEL_BYTES, check_label, wrong_regex};
use crate::wire::span::Span;
use clap::Args;
use clap::builder::FalseyValueParser;
use regex::Regex;
use std::path::PathBuf;

/// What was typed for `sidebike agent`.
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// The name this machine is addressed by [default: the host name]
    #[arg(long, env = "SIDEBIKE_MACHINE_LABEL", value_name = "LABEL")]
    machine_label: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Commands run at once
    #[arg(long, env = "SIDEBIKE_JOBS", value_name = "N", default_value_t = 4)]
    jobs: u32,
    /// Patience with running commands at shutdown
    #[arg(
        long,
        env = "SIDEBIKE_GRACE",
        value_name = "DURATION",
        default_value = "10s"
    )]
    grace: String,
    /// Run only commands that match this from their first to their last character
    ///
    /// Repeat it to allow more; the variable holds one pattern. The command is the shell line, or
    /// argv joined by blanks and quoted as a shell would need. `.` matches no newline; `\s` and
    /// `[^x]` do. Tasks may not set variables then. It is a seat belt; the lock is --wrapper.
    #[arg(long, env = "SIDEBIKE_ALLOW", value_name = "REGEX")]
    allow: Vec<String>,
    /// Start this program with the command as its arguments: it decides what is run
    ///
    /// Its arguments are `bash -c LINE` (`sh` where there is no bash), or argv. Tasks may not set
    /// variables then: they would reach the wrapper.
    #[arg(long, env = "SIDEBIKE_WRAPPER", value_name = "PROGRAM")]
    wrapper: Option<PathBuf>,
    /// Do not start as root
    #[arg(long, env = "SIDEBIKE_REFUSE_ROOT", value_parser = FalseyValueParser::new())]
    refuse_root: bool,
}

/// Checked settings of an agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The name this machine is addressed by.
    pub label: String,
    /// The host name.
    pub host: String,
    /// The server.
    pub registry: Registry,
    /// Commands run at once.
    pub jobs: u32,
    /// Patience with running commands at shutdown.
    pub grace: Span,
    /// What may be run here.
    pub policy: Policy,
    /// Do not start as root.
    pub refuse_root: bool,
}

/// What the owner of a machine has decided about commands; no task can change it.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// When there are any, one of them must match; each matches a whole command or not at all.
    pub allow: Vec<Regex>,
    /// The program that is started with the command as its arguments, by its full path.
    pub wrapper: Option<PathBuf>,
}

impl AgentArgs {
    /// Checks what was typed. The error is one line for a person.
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
        let grace = self
            .grace
            .parse()
            .map_err(|why| format!("--grace: {why}, got {:?}", self.grace))?;
        Ok(AgentConfig {
            label,
            host,
            registry: self.registry.checked()?,
            jobs: self.jobs,
            grace,
            policy: Policy {
                allow: self
                    .allow
                    .iter()
                    .map(|pattern| whole(pattern).map_err(|why| format!("--allow: {why}")))
                    .collect::<Result<_, _>>()?,
                wrapper: self.wrapper.map(wrapper).transpose()?,
            },
            refuse_root: self.refuse_root,
        })
    }
}

/// A pattern that matches a whole text or nothing of it.
fn whole(pattern: &str) -> Result<Regex, String> {
    if pattern.is_empty() {
        return Err("must not be empty".into());
    }
    // First as it is: `a)|(b` becomes valid by what is put around it, and means something else.
    Regex::new(pattern)
        .and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")))
        .map_err(|why| {
            let why = wrong_regex(pattern, &why);
            format!("expected a regular expression: {why}")
        })
}

/// Where a wrapper is; settled at the start, so that no task's folder has a say in it.
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
