//! The commands for people: `sidebike run`, `ps`, `show`, ….
//!
//! One file a command: its flags with their help and examples, and what it does. What they share:
//!
//! | file | what it is for |
//! | --- | --- |
//! | `mod` | which commands there are, how they end, how they reach the server |
//! | `named` | the task that an id or a name stands for |
//! | `words` | what the server says, in the words of the command line |
//! | `follow` | watching a task until it ends: output, Ctrl-C, summary |
//! | `stream` | the event of a task, kept coming over broken connections |
//! | `outcome` | how a task ended: exit codes, words |
//! | `progress` | the line that says how far it is |
//! | `fold` | machines with the same output together |
//! | `style`, `table`, `watch` | what the terminal can show |
//!
//! To add a command: its file with `Args` and `run`, its line in [`Command`] and in [`run`].

mod cancel;
mod event_stream;
mod fold;
mod follow;
mod logs;
mod machines;
mod messages;
mod outcome;
mod progress;
mod ps;
mod rerun;
mod run;
mod shell;
mod show;
mod table;
mod task_reference;
mod terminal;
mod wait;
mod watch;

use crate::client::{CallError, Client, Kind};
use crate::config::RegistryArgs;
use crate::secret;
use crate::wire::duration::TimeSpan;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Where the token of people comes from; with `_FILE` appended, the variable that names its file.
const TOKEN: &str = "SIDEBIKE_TOKEN";

/// Exit code of `ps`, `show`, `logs`, `cancel`, `machines` when they could not do it.
const FAILED: u8 = 1;
/// Exit code for what was typed wrongly, as clap's.
const USAGE: u8 = 2;
/// Exit code of what follows a task when it could not do it, as of ssh: smaller ones are the
/// commands' own.
const CANNOT_FOLLOW: u8 = 255;
/// Exit code when the reader of our output has gone away, as if by SIGPIPE.
const NO_READER: u8 = 128 + 13;

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command on machines, and show what comes of it
    Run(run::Args),
    /// List tasks, newest first
    Ps(ps::Args),
    /// Show one task: what it runs, how it went on each machine
    Show(show::Args),
    /// Print what a task has written
    Logs(logs::Args),
    /// Cancel a task: what waits never starts, what runs is killed
    Cancel(cancel::Args),
    /// Run a task again on the machines where it did not succeed
    Rerun(rerun::Args),
    /// List machines
    Machines(machines::Args),
    /// Wait until a task has ended; the exit code says how
    Wait(wait::Args),
    /// Print a script that completes sidebike's commands in a shell
    Completions(shell::Completions),
    /// Print the manual page
    Man(shell::Man),
}

/// Runs a command.
pub fn run(command: Command) -> ExitCode {
    let (ended, failed) = match command {
        Command::Run(args) => (run::run(args), CANNOT_FOLLOW),
        Command::Rerun(args) => (rerun::run(args), CANNOT_FOLLOW),
        Command::Wait(args) => (wait::run(args), CANNOT_FOLLOW),
        Command::Ps(args) => (ps::run(args), FAILED),
        Command::Show(args) => (show::run(args), FAILED),
        Command::Logs(args) => (logs::run(args), FAILED),
        Command::Cancel(args) => (cancel::run(args), FAILED),
        Command::Machines(args) => (machines::run(args), FAILED),
        Command::Completions(args) => (shell::completions(args), FAILED),
        Command::Man(args) => (shell::man(args), FAILED),
    };
    ExitCode::from(match ended {
        Ok(code) => code,
        Err(Failure::NoReader) => NO_READER,
        Err(Failure::Because(why)) => print_error(&why, failed),
        Err(Failure::Usage(why)) => print_error(&why, USAGE),
    })
}

fn print_error(why: &str, code: u8) -> u8 {
    // Nobody is there to read it: the exit code has to do.
    let _ = writeln!(io::stderr(), "sidebike: {why}");
    code
}

/// How a command ends: with an exit code, or for a reason to be said.
type CommandResult = Result<u8, Failure>;

/// Why a command could not do what it was asked to.
#[derive(Debug)]
enum Failure {
    /// In words.
    Because(String),
    /// It was asked in a way that makes no sense; in words.
    Usage(String),
    /// The one who reads our output has gone away (`| head`): no reason to complain.
    NoReader,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::NoReader,
            _ => Failure::Because(format!("cannot write: {error}")),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let words = messages::describe_failure(&error);
        match error.kind {
            // What was typed is not what the server takes.
            Kind::Refused {
                status: 400,
                ours: true,
                ..
            } => Failure::Usage(words),
            _ => Failure::Because(words),
        }
    }
}

/// The server a command talks to.
#[derive(Debug, Args)]
struct ConnectionArgs {
    #[command(flatten)]
    registry: RegistryArgs,
}

impl ConnectionArgs {
    fn client(&self) -> Result<Client, Failure> {
        let registry = self.registry.checked().map_err(Failure::Usage)?;
        let tokens = secret::load(TOKEN).map_err(Failure::Usage)?;
        let client = Client::new(&registry).map_err(Failure::Usage)?;
        if !tokens.is_empty() && registry.can_be_overheard() {
            log::warn!(
                "the token goes to {} as plain text: whoever is on the way can read it; use https",
                registry.url
            );
        }
        client.set_token(tokens.into_iter().next());
        Ok(client)
    }
}

/// A length of time, as it was typed for a flag.
fn duration(flag: &str, text: &str) -> Result<TimeSpan, Failure> {
    let duration = text.parse();
    duration.map_err(|why| Failure::Usage(format!("{flag}: {why}, got {text:?}")))
}

/// Prints JSON for a program to read.
fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    // Our own types have only string keys and finite numbers: serializing them cannot fail.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
