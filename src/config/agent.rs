//! Settings of an agent, and of everything else that calls a server.
//!
//! The owner of the machine speaks through these flags, and whoever posts tasks cannot overrule
//! them: see [`OwnerRules`].

use super::{DEFAULT_PORT, MAX_JOBS, check_label};
use crate::agent::search;
use crate::wire::span::Span;
use clap::Args;
use clap::builder::FalseyValueParser;
use regex::Regex;
use std::net::IpAddr;
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

/// Where the server is, for everything that calls it.
#[derive(Debug, Clone, Args)]
pub struct RegistryArgs {
    /// The server: HOST, HOST:PORT or a URL; port 9410 when none is given
    #[arg(
        long,
        env = "SIDEBIKE_REGISTRY_ADDRESS",
        value_name = "ADDRESS",
        default_value = "127.0.0.1"
    )]
    registry_address: String,
    /// PEM file of the authorities that may vouch for an https server [default: the system's]
    #[arg(long, env = "SIDEBIKE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// A server, and who may vouch for it.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Its base URL, without a slash at its end.
    pub url: String,
    /// The file of authorities; without one the system's count.
    pub ca: Option<PathBuf>,
}

impl Registry {
    /// Whether it is to be called by https.
    pub fn is_https(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// Whether what is sent to it can be read on its way.
    pub fn can_be_overheard(&self) -> bool {
        !self.is_https() && !is_loopback(&self.url)
    }
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
    pub rules: OwnerRules,
    /// Do not start as root.
    pub refuse_root: bool,
}

/// What the owner of a machine has decided about commands; no task can change it.
#[derive(Debug, Clone, Default)]
pub struct OwnerRules {
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
        check_label(&label).map_err(|why| format!("--machine-label: {why}"))?;
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
            rules: OwnerRules {
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

impl RegistryArgs {
    /// Checks what was typed. The error is one line for a person.
    pub fn checked(&self) -> Result<Registry, String> {
        let address = self.registry_address.trim();
        let url = registry_url(address).ok_or_else(|| {
            format!(
                "--registry-address: expected HOST, HOST:PORT or a URL such as http://10.23.45.67:9410, got {address:?}"
            )
        })?;
        let ca = self.ca.clone().filter(|file| !file.as_os_str().is_empty());
        Ok(Registry { url, ca })
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
        .map_err(|why| format!("expected a regular expression: {why}"))
}

/// Where a wrapper is; settled at the start, so that no task's folder has a say in it.
fn wrapper(typed: PathBuf) -> Result<PathBuf, String> {
    let name = typed.to_string_lossy().into_owned();
    let base = std::env::current_dir()
        .map_err(|why| format!("--wrapper: the current folder is not known: {why}"))?;
    let path = std::env::var_os("PATH");
    search::program(&typed, path.as_deref(), &base)
        .ok_or_else(|| format!("--wrapper: expected a program that can be started, got {name:?}"))
}

/// Whether a base URL names this very machine.
fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>().map_or_else(
        |_| host.eq_ignore_ascii_case("localhost"),
        |ip| ip.is_loopback(),
    )
}

/// `host`, `host:port`, `[v6]`, `v6` or a URL → base URL with a port.
fn registry_url(address: &str) -> Option<String> {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some(_) => return None,
        None => ("http", address),
    };
    let rest = rest.trim_end_matches('/');
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, port) = if let Ok(v6) = authority.parse::<std::net::Ipv6Addr>() {
        (format!("[{v6}]"), None)
    } else if authority.ends_with(']') {
        (authority.to_owned(), None)
    } else {
        match authority.rsplit_once(':') {
            Some((host, port)) => (
                host.to_owned(),
                Some(port.parse::<u16>().ok().filter(|p| *p != 0)?),
            ),
            None => (authority.to_owned(), None),
        }
    };
    let good_host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        }
    };
    let good_path = path
        .chars()
        .all(|c| c.is_ascii_graphic() && !"?#".contains(c));
    (good_host && good_path)
        .then(|| format!("{scheme}://{host}:{}{path}", port.unwrap_or(DEFAULT_PORT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_people_type() {
        for (typed, url) in [
            ("10.23.45.67", "http://10.23.45.67:9410"),
            ("registry", "http://registry:9410"),
            ("registry:80", "http://registry:80"),
            ("http://registry/", "http://registry:9410"),
            (
                "https://registry:443/sidebike/",
                "https://registry:443/sidebike",
            ),
            ("::1", "http://[::1]:9410"),
            ("[::1]:99", "http://[::1]:99"),
        ] {
            assert_eq!(registry_url(typed).as_deref(), Some(url), "{typed}");
        }
        for typed in [
            "",
            "a b",
            "ftp://x",
            "host:port",
            "host:0",
            "host:70000",
            "http://",
            "a?b",
            "::g",
            "http://u@h",
        ] {
            assert_eq!(registry_url(typed), None, "{typed}");
        }
    }

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

    #[test]
    fn what_can_be_overheard() {
        for (url, can) in [
            ("http://10.23.45.67:9410", true),
            ("http://localhost.example:9410/x", true),
            ("http://[2001:db8::1]:9410", true),
            ("http://127.0.0.1:9410", false),
            ("http://localhost:9410", false),
            ("http://[::1]:9410/x", false),
            ("https://10.23.45.67:9410", false),
        ] {
            let url = url.to_owned();
            let registry = Registry { url, ca: None };
            assert_eq!(registry.can_be_overheard(), can, "{registry:?}");
        }
    }
}
