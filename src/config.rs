//! Flags and environment, checked once, at the edge: later code never checks a setting again.
//!
//! Every default and every limit of the program is here, with its unit and its reason. To add a
//! setting: add the argument with its help text, check it in `checked`, and list it in the README.

#[cfg(feature = "agent")]
mod agent;
#[cfg(any(feature = "agent", feature = "cli"))]
mod registry;

#[cfg(feature = "agent")]
pub use agent::{AgentArgs, AgentConfig, Policy};
#[cfg(any(feature = "agent", feature = "cli"))]
pub use registry::{Registry, RegistryArgs};

#[cfg(feature = "server")]
use crate::core::TextLimits;
#[cfg(feature = "server")]
use crate::rules::{MAX_LABEL_BYTES, wrong_regex};
#[cfg(feature = "server")]
use crate::server::browser::Authority;
#[cfg(feature = "server")]
use crate::server::http::RequestLimits;
#[cfg(feature = "server")]
use crate::tls::PairFiles;
#[cfg(feature = "server")]
use crate::wire::span::Span;
#[cfg(feature = "server")]
use clap::Args;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
#[cfg(feature = "server")]
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// The port of the original, and ours.
pub const DEFAULT_PORT: u16 = 9410;
/// The longest name of a task, in bytes: it stands in tables and logs.
#[cfg(feature = "server")]
const MAX_NAME_BYTES: usize = 255;
/// The longest pattern, in bytes: a few dozen labels, written out.
#[cfg(feature = "server")]
const MAX_PATTERN_BYTES: usize = 1_024;
/// The largest compiled pattern, in KiB: with [`MAX_PATTERNS`] of them it bounds the memory (about
/// twice as much, measured), and with the length of a label the time of a match.
#[cfg(feature = "server")]
const MAX_COMPILED_KIB: usize = 128;
/// The most patterns known at once: a label that appears is matched with all of them.
#[cfg(feature = "server")]
const MAX_PATTERNS: usize = 1_000;

/// The largest number any limit can be set to: sums of a few of them must not overflow.
#[cfg(feature = "server")]
const MAX_NUMBER: usize = 100_000_000;

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "sidebike", version, about, long_about = None, disable_help_subcommand = true)]
#[command(
    after_help = "Logs go to stderr; RUST_LOG=debug shows more.\nTry it: sidebike server & sidebike agent & sidebike run -- uptime\nWhere the server wants a token, people's commands take it from SIDEBIKE_TOKEN or SIDEBIKE_TOKEN_FILE."
)]
pub struct CommandLine {
    /// Which program to be.
    #[command(subcommand)]
    pub program: Program,
}

/// The programs in the binary.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Program {
    /// Be the registry: keep machines and tasks, answer the HTTP API
    #[cfg(feature = "server")]
    #[command(
        after_help = "Tokens come from the environment, or from the file that the same name with _FILE names:\n  SIDEBIKE_TOKEN        for people: everything\n  SIDEBIKE_AGENT_TOKEN  for agents: polls and reports\n  SIDEBIKE_READ_TOKEN   to look only\nWithout any of them everything is open."
    )]
    Server(ServerArgs),
    /// Look into the database of a stopped server
    #[cfg(feature = "db")]
    #[command(subcommand)]
    Db(DbCommand),
    /// Be an agent: poll the server, run what it hands out on this machine
    #[cfg(feature = "agent")]
    #[command(
        after_help = "Its token comes from SIDEBIKE_AGENT_TOKEN, or from the file that SIDEBIKE_AGENT_TOKEN_FILE names."
    )]
    Agent(AgentArgs),
    /// Be one of the commands for people.
    #[cfg(feature = "cli")]
    #[command(flatten)]
    People(crate::cli::Command),
    /// Print this help, or that of a command
    Help {
        /// The command, such as run
        command: Vec<String>,
    },
}

impl CommandLine {
    /// What was typed. Ends the process when that makes no sense, with what would.
    pub fn typed() -> CommandLine {
        CommandLine::try_parse().unwrap_or_else(|wrong| advised(wrong).exit())
    }

    /// A command of a command (`db check`): its flags, its help.
    pub fn find(command: &[String]) -> Result<clap::Command, clap::Error> {
        let mut all = CommandLine::command();
        all.build();
        let mut found = &all;
        for name in command {
            let named = found.find_subcommand(name).filter(|c| !c.is_hide_set());
            found = named.ok_or_else(|| {
                let why = format!("unrecognized subcommand '{name}'");
                all.clone().error(ErrorKind::InvalidSubcommand, why)
            })?;
        }
        Ok(found.clone())
    }
}

/// A mistake with advice that fits. clap's own is to put `--` before a flag that it does not know:
/// before a command that would make the flag the command, on every machine.
fn advised(mut wrong: clap::Error) -> clap::Error {
    let Some(ContextValue::String(word)) = wrong.get(ContextKind::InvalidArg) else {
        return wrong;
    };
    let takes_command = matches!(
        wrong.get(ContextKind::Usage),
        Some(ContextValue::StyledStr(usage)) if usage.to_string().contains("-- COMMAND")
    );
    let is_flag = word.starts_with('-');
    let advice = format!("put -- before the command: sidebike run [OPTIONS] -- {word} …");
    if wrong.kind() == ErrorKind::UnknownArgument {
        wrong.remove(ContextKind::Suggested);
        if takes_command && !is_flag {
            let advice = ContextValue::StyledStrs(vec![StyledStr::from(advice)]);
            wrong.insert(ContextKind::Suggested, advice);
        }
    }
    wrong
}

/// What can be done with a stopped server's database.
#[cfg(feature = "db")]
#[derive(Debug, Subcommand)]
pub enum DbCommand {
    /// Say whether the file is whole
    Check {
        /// The file that the server was given with --db
        file: PathBuf,
    },
    /// Print every task, one JSON line each, oldest first
    Export {
        /// The file that the server was given with --db
        file: PathBuf,
    },
}

/// What was typed for `sidebike server`.
#[cfg(feature = "server")]
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "SIDEBIKE_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:9410"
    )]
    listen: String,
    /// File of the database in which what was acknowledged survives [default: none, memory only]
    #[arg(long, env = "SIDEBIKE_DB", value_name = "FILE")]
    db: Option<PathBuf>,
    /// Finished tasks kept; the oldest go first
    #[arg(
        long,
        env = "SIDEBIKE_MAX_TASKS",
        value_name = "N",
        default_value_t = 10_000
    )]
    max_tasks: usize,
    /// Executions that have not ended; more are refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_EXECUTIONS",
        value_name = "N",
        default_value_t = 100_000
    )]
    max_executions: usize,
    /// Machines known; more are refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_MACHINES",
        value_name = "N",
        default_value_t = 10_000
    )]
    max_machines: usize,
    /// Different patterns that tasks wait under; submits with another one are refused
    #[arg(
        long,
        env = "SIDEBIKE_MAX_PATTERNS",
        value_name = "N",
        default_value_t = MAX_PATTERNS
    )]
    max_patterns: usize,
    /// Bytes of a task's machinePattern
    #[arg(
        long,
        env = "SIDEBIKE_MAX_PATTERN",
        value_name = "BYTES",
        default_value_t = MAX_PATTERN_BYTES
    )]
    max_pattern: usize,
    /// KiB of a machinePattern when it is compiled
    ///
    /// In memory it takes about twice as much, as long as something waits under it: with the
    /// defaults 250 MiB when all --max-patterns are as large as can be. Matching a label with it
    /// takes longer, too.
    #[arg(
        long,
        env = "SIDEBIKE_MAX_COMPILED_PATTERN",
        value_name = "KIB",
        default_value_t = MAX_COMPILED_KIB
    )]
    max_compiled_pattern: usize,
    /// Bytes of a machine's label
    #[arg(
        long,
        env = "SIDEBIKE_MAX_LABEL",
        value_name = "BYTES",
        default_value_t = MAX_LABEL_BYTES
    )]
    max_label: usize,
    /// Bytes of a task's name
    #[arg(
        long,
        env = "SIDEBIKE_MAX_NAME",
        value_name = "BYTES",
        default_value_t = MAX_NAME_BYTES
    )]
    max_name: usize,
    /// MiB of output kept in all; beyond it the oldest finished tasks go, then output is cut
    #[arg(
        long,
        env = "SIDEBIKE_MAX_OUTPUT",
        value_name = "MIB",
        default_value_t = 256
    )]
    max_output: usize,
    /// Connections at once; the limit on open files may lower it
    #[arg(
        long,
        env = "SIDEBIKE_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 20_000
    )]
    max_connections: usize,
    /// Connections at once from one address [default: no limit, a fleet may come through one proxy]
    #[arg(long, env = "SIDEBIKE_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N")]
    max_connections_per_address: Option<usize>,
    /// Requests held at once (polls and waits); more are answered at once
    #[arg(
        long,
        env = "SIDEBIKE_MAX_HELD",
        value_name = "N",
        default_value_t = 11_000
    )]
    max_held: usize,
    /// MiB of large bodies and answers on their way at once; beyond it the slowest are cut
    #[arg(
        long,
        env = "SIDEBIKE_MAX_IN_FLIGHT",
        value_name = "MIB",
        default_value_t = 128
    )]
    max_in_flight: usize,
    /// KiB of a request's headers
    #[arg(
        long,
        env = "SIDEBIKE_MAX_HEAD",
        value_name = "KIB",
        default_value_t = 16
    )]
    max_head: usize,
    /// Headers of a request
    #[arg(
        long,
        env = "SIDEBIKE_MAX_HEADERS",
        value_name = "N",
        default_value_t = 64
    )]
    max_headers: usize,
    /// KiB of a request's path and query
    #[arg(
        long,
        env = "SIDEBIKE_MAX_TARGET",
        value_name = "KIB",
        default_value_t = 4
    )]
    max_target: usize,
    /// MiB of a request's body
    #[arg(
        long,
        env = "SIDEBIKE_MAX_BODY",
        value_name = "MIB",
        default_value_t = 1
    )]
    max_body: usize,
    /// How deep a body's JSON may be nested
    #[arg(
        long,
        env = "SIDEBIKE_MAX_JSON_DEPTH",
        value_name = "N",
        default_value_t = 32
    )]
    max_json_depth: usize,
    /// How long a request may take to arrive, an idle connection may stay, an answer may take to be read
    #[arg(
        long,
        env = "SIDEBIKE_MAX_REQUEST_TIME",
        value_name = "DURATION",
        default_value = "60s"
    )]
    max_request_time: String,
    /// Let the original's agents whose label matches in without a token
    #[arg(long, env = "SIDEBIKE_ALLOW_LEGACY", value_name = "REGEX")]
    allow_legacy: Option<String>,
    /// The address under which a proxy shows this server to browsers
    #[arg(long, env = "SIDEBIKE_PUBLIC_URL", value_name = "URL")]
    public_url: Option<String>,
    /// File for one JSON line per call that changes something [default: the log]
    #[arg(long, env = "SIDEBIKE_AUDIT", value_name = "FILE")]
    audit: Option<PathBuf>,
    /// PEM file of the certificate (and those that vouch for it) to serve https with
    #[arg(long, env = "SIDEBIKE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's key
    #[arg(long, env = "SIDEBIKE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

/// Where the audit's lines go.
#[derive(Debug, Clone)]
pub enum AuditTarget {
    /// To the log.
    Log,
    /// To this file.
    File(PathBuf),
}

/// Checked settings of the server.
#[cfg(feature = "server")]
#[derive(Debug)]
#[allow(
    missing_docs,
    reason = "the flags of the same names are documented; sizes are in bytes"
)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    pub db: Option<PathBuf>,
    pub max_tasks: usize,
    pub max_executions: usize,
    pub max_machines: usize,
    pub max_patterns: usize,
    pub texts: TextLimits,
    pub max_output_bytes: usize,
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    pub max_held: usize,
    pub max_in_flight_bytes: usize,
    pub request: RequestLimits,
    pub max_json_depth: usize,
    pub max_request_time: Span,
    pub allow_legacy: Option<regex::Regex>,
    pub public_url: Option<Authority>,
    pub audit: AuditTarget,
    pub tls: Option<PairFiles>,
}

#[cfg(feature = "server")]
impl ServerArgs {
    /// Checks what was typed. The error is one line for a person.
    pub fn checked(self) -> Result<ServerConfig, String> {
        let listen = self
            .listen
            .to_socket_addrs()
            .ok()
            .and_then(|mut addresses| addresses.next())
            .ok_or_else(|| {
                format!(
                    "--listen: expected ADDRESS:PORT such as 0.0.0.0:9410, got {:?}",
                    self.listen
                )
            })?;
        let per_address = self.max_connections_per_address.unwrap_or(MAX_NUMBER);
        for (flag, value) in [
            ("--max-tasks", self.max_tasks),
            ("--max-executions", self.max_executions),
            ("--max-machines", self.max_machines),
            ("--max-patterns", self.max_patterns),
            ("--max-pattern", self.max_pattern),
            ("--max-compiled-pattern", self.max_compiled_pattern),
            ("--max-label", self.max_label),
            ("--max-name", self.max_name),
            ("--max-output", self.max_output),
            ("--max-connections", self.max_connections),
            ("--max-connections-per-address", per_address),
            ("--max-held", self.max_held),
            ("--max-in-flight", self.max_in_flight),
            ("--max-head", self.max_head),
            ("--max-headers", self.max_headers),
            ("--max-target", self.max_target),
            ("--max-body", self.max_body),
            ("--max-json-depth", self.max_json_depth),
        ] {
            if value == 0 || value > MAX_NUMBER {
                return Err(format!(
                    "{flag}: expected a number from 1 to {MAX_NUMBER}, got {value}"
                ));
            }
        }
        let max_request_time = self.max_request_time.parse::<Span>();
        let max_request_time = max_request_time
            .ok()
            .filter(|span| *span >= Span::from_secs(1));
        let allow_legacy = self.allow_legacy.map(|pattern| {
            regex::Regex::new(&pattern).map_err(|why| {
                let why = wrong_regex(&pattern, &why);
                format!("--allow-legacy: expected a regular expression: {why}")
            })
        });
        let public_url = self.public_url.map(|url| {
            Authority::of_url(&url).ok_or_else(|| {
                format!(
                    "--public-url: expected a URL such as https://sidebike.example, got {url:?}"
                )
            })
        });
        let tls = match (self.tls_cert, self.tls_key) {
            (None, None) => None,
            (Some(certificates), Some(key)) => Some(PairFiles { certificates, key }),
            (Some(_), None) => return Err("--tls-cert: needs --tls-key, too".into()),
            (None, Some(_)) => return Err("--tls-key: needs --tls-cert, too".into()),
        };
        Ok(ServerConfig {
            listen,
            db: self.db,
            max_tasks: self.max_tasks,
            max_executions: self.max_executions,
            max_machines: self.max_machines,
            max_patterns: self.max_patterns,
            texts: TextLimits {
                pattern: self.max_pattern,
                compiled: self.max_compiled_pattern << 10,
                label: self.max_label,
                name: self.max_name,
            },
            max_output_bytes: self.max_output << 20,
            max_connections: self.max_connections,
            max_connections_per_address: per_address,
            max_held: self.max_held,
            max_in_flight_bytes: self.max_in_flight << 20,
            request: RequestLimits {
                head_bytes: self.max_head << 10,
                headers: self.max_headers,
                target_bytes: self.max_target << 10,
                body_bytes: self.max_body << 20,
            },
            max_json_depth: self.max_json_depth,
            max_request_time: max_request_time.ok_or_else(|| {
                format!(
                    "--max-request-time: expected 1s or more, such as 60s, got {:?}",
                    self.max_request_time
                )
            })?,
            allow_legacy: allow_legacy.transpose()?,
            public_url: public_url.transpose()?,
            audit: self.audit.map_or(AuditTarget::Log, AuditTarget::File),
            tls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }
}
