//! The command line: which programs there are. To add one: a variant of [`Program`], and what `main` does for it.

#[cfg(feature = "agent")]
use crate::config::AgentArgs;
#[cfg(feature = "server")]
use crate::config::ServerArgs;
#[cfg(feature = "db")]
use clap::Args;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
#[cfg(feature = "db")]
use std::path::PathBuf;

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "sidebike", version, about, long_about = None, disable_help_subcommand = true)]
#[command(
    after_help = "Logs go to stderr; RUST_LOG=debug shows more.\nTry it: sidebike server & sidebike agent & sidebike run -- uptime\nWhere the server wants a token, people's commands take it from SIDEBIKE_TOKEN\nor SIDEBIKE_TOKEN_FILE."
)]
pub struct CommandLine {
    /// The program to run.
    #[command(subcommand)]
    pub program: Program,
}

/// The programs in the binary.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Program {
    /// Run the registry: keep machines and tasks, answer the HTTP API
    #[cfg(feature = "server")]
    #[command(
        after_help = "Tokens come from the environment, or from the file that the same name with _FILE names:\n  SIDEBIKE_TOKEN        for people: everything\n  SIDEBIKE_AGENT_TOKEN  for agents: polls and reports\n  SIDEBIKE_READ_TOKEN   for people: reading only\nWithout any of them every call is allowed."
    )]
    Server(ServerArgs),
    /// Check, export or copy a database
    #[cfg(feature = "db")]
    #[command(subcommand)]
    Db(DbCommand),
    /// Run an agent: poll the server, run its commands on this machine
    #[cfg(feature = "agent")]
    #[command(
        after_help = "Its token comes from SIDEBIKE_AGENT_TOKEN, or from the file that SIDEBIKE_AGENT_TOKEN_FILE names."
    )]
    Agent(AgentArgs),
    /// Run one of the commands for people.
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
    /// Parses the arguments of this process. Exits with an explanation when they are invalid.
    pub fn parse_or_exit() -> CommandLine {
        CommandLine::try_parse().unwrap_or_else(|wrong| with_advice(wrong).exit())
    }

    /// Finds a command or a subcommand such as `db check`, for its help.
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

/// Replaces clap's advice on an unknown argument. clap suggests `--` before an unknown flag; in front of a
/// command that would run the flag as the command, on every machine.
fn with_advice(mut wrong: clap::Error) -> clap::Error {
    if let Some(better) = no_number(&wrong) {
        return better;
    }
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

/// The error about what should be a number and has something else in it: the standard library only names the digit.
fn no_number(wrong: &clap::Error) -> Option<clap::Error> {
    let source = std::error::Error::source(wrong)?;
    source.downcast_ref::<std::num::ParseIntError>()?;
    let (Some(ContextValue::String(flag)), Some(ContextValue::String(value))) = (
        wrong.get(ContextKind::InvalidArg),
        wrong.get(ContextKind::InvalidValue),
    ) else {
        return None;
    };
    let why = format!(
        "invalid value '{value}' for '{flag}': expected a whole number\n\nFor more information, try '--help'.\n"
    );
    Some(clap::Error::raw(wrong.kind(), why))
}

/// The commands for databases.
#[cfg(feature = "db")]
#[derive(Debug, Subcommand)]
pub enum DbCommand {
    /// Check whether a database is intact
    Check(DbArgs),
    /// Print every task, one JSON line each, oldest first
    Export(DbArgs),
    /// Copy the file of a stopped server into an empty database of PostgreSQL
    #[cfg(feature = "pg")]
    Copy {
        /// The file that the server was given with --db
        file: PathBuf,
        /// Where to: postgres://USER@HOST/NAME
        url: PathBuf,
        /// PEM file of the authorities that signed the certificate of PostgreSQL [default: the system's]
        #[arg(long, env = "SIDEBIKE_DB_CA", value_name = "FILE")]
        db_ca: Option<PathBuf>,
    },
    /// Print what makes the tables in PostgreSQL, for servers that may not do it themselves
    #[cfg(feature = "pg")]
    Schema,
}

/// Which database.
#[cfg(feature = "db")]
#[derive(Debug, Args)]
pub struct DbArgs {
    /// What the server was given with --db: the file of a stopped one, or postgres://USER@HOST/NAME
    #[arg(value_name = "FILE|URL")]
    pub database: PathBuf,
    /// PEM file of the authorities that signed the certificate of PostgreSQL [default: the system's]
    #[arg(long, env = "SIDEBIKE_DB_CA", value_name = "FILE")]
    pub db_ca: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    /// Without a terminal clap breaks lines at 100 columns, and what is left of an example's line is not indented.
    #[test]
    fn what_follows_the_flags_in_a_help_fits_without_a_terminal() {
        let mut commands = vec![CommandLine::command()];
        let mut wide = Vec::new();
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
            let after = command.get_after_help().map(StyledStr::to_string);
            let lines = after.iter().flat_map(|text| text.lines());
            let is_wide = |line: &&str| line.chars().count() > 100;
            wide.extend(lines.filter(is_wide).map(str::to_owned));
        }
        assert_eq!(wide, [""; 0]);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn what_push_and_update_share_is_told_of_each() {
        for name in ["push", "update"] {
            let mut command = CommandLine::find(&[name.to_owned()]).unwrap();
            let help = command.render_help().to_string();
            assert!(help.contains(&format!("[default: {name}]")), "{help}");
            assert!(!help.contains("--task"), "{help}");
        }
    }
}
