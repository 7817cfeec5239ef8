//! What every command has: its result, its errors, the connection to the server.

use super::messages;
use crate::client::{CallError, Client, Kind};
use crate::config::{Registry, RegistryArgs};
use crate::secret;
use crate::wire::duration::TimeSpan;
use rustix::io::Errno;
use serde::Serialize;
use std::io::{self, ErrorKind, Write};
use std::thread;
use std::time::{Duration, Instant};

/// The variable with the token of people. With `_FILE` appended, the variable that names its file.
pub const TOKEN: &str = "SIDEBIKE_TOKEN";

/// How long a command that waits goes on although none of several servers answers: one of them takes over within 12 s.
const FAILOVER_PATIENCE: Duration = Duration::from_secs(30);
/// The pause before they are asked again.
const FAILOVER_PAUSE: Duration = Duration::from_millis(500);

/// The result of a command: an exit code, or the reason why it failed.
pub type CommandResult = Result<u8, Failure>;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// For this reason.
    Because(String),
    /// Wrong usage: this was wrong with it.
    Usage(String),
    /// No machine matches, or not as many as are wanted: nothing was submitted.
    NoMachine(String),
    /// The reader of our output is gone (`| head`); that is not reported as an error.
    NoReader,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::NoReader,
            // The terminal was closed.
            _ if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Failure::NoReader,
            _ => Failure::Because(format!("cannot write: {error}")),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let words = messages::describe_failure(&error);
        if messages::is_refusal_of_counts(&error) {
            return Failure::NoMachine(words);
        }
        match error.kind {
            // The server refused what was typed.
            Kind::Refused {
                status: 400,
                ours: true,
                ..
            } => Failure::Usage(words),
            _ => Failure::Because(words),
        }
    }
}

/// The server that a command talks to.
#[derive(Debug, clap::Args)]
pub struct ConnectionArgs {
    #[command(flatten)]
    registry: RegistryArgs,
}

impl ConnectionArgs {
    /// A client with the token of people.
    pub fn client(&self) -> Result<Client, Failure> {
        self.client_of(Client::new)
    }

    /// The same with connections that are made for files.
    pub fn client_for_files(&self) -> Result<Client, Failure> {
        self.client_of(Client::for_files)
    }

    fn client_of(&self, make: fn(&Registry) -> Result<Client, String>) -> Result<Client, Failure> {
        let registry = self.registry.checked().map_err(Failure::Usage)?;
        let tokens = secret::load(TOKEN).map_err(Failure::Usage)?;
        let client = make(&registry).map_err(Failure::Usage)?;
        if let Some(insecure) = registry.insecure().filter(|_| !tokens.is_empty()) {
            log::warn!(
                "the token is sent to {insecure} unencrypted and can be read on the way; use https"
            );
        }
        client.set_token(tokens.into_iter().next());
        Ok(client)
    }
}

/// Makes a call of a command that waits for an end, for `left` at most. Where there are several servers and none of them
/// answers, it is made again until one has taken over.
pub fn over_failovers<T>(
    client: &Client,
    left: Option<Duration>,
    mut call: impl FnMut() -> Result<T, CallError>,
) -> Result<T, CallError> {
    let begun = Instant::now();
    let patience = left.map_or(FAILOVER_PATIENCE, |left| left.min(FAILOVER_PATIENCE));
    loop {
        let answered = call();
        let may_help = |why: &CallError| {
            client.one_of_several().is_some() && why.is_temporary() && begun.elapsed() < patience
        };
        match answered {
            Err(why) if may_help(&why) => thread::sleep(FAILOVER_PAUSE),
            answered => return answered,
        }
    }
}

/// Parses the duration given with a flag, if it is given.
pub fn duration(flag: &str, text: &Option<String>) -> Result<Option<TimeSpan>, Failure> {
    let parse = |text: &String| {
        let duration = text.parse();
        duration.map_err(|why| Failure::Usage(format!("{flag}: {why}, got {text:?}")))
    };
    text.as_ref().map(parse).transpose()
}

/// Prints a value as JSON, for programs.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    // Our own types have only string keys and finite numbers: serializing them cannot fail.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
