//! `sidebike docs`: the documentation, for machines from which no web site can be reached.

use super::command::{CommandResult, Failure};
use crate::docs::{self, PAGES};
use std::env;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::{Child, Command, Stdio};

const EXAMPLES: &str = "\
On a terminal a page is shown with $PAGER, or with less where there is one; PAGER=cat prints it.
Examples:
  sidebike docs                the list of pages
  sidebike docs api            the HTTP API
  sidebike docs cli | grep -- --timeout";

/// What less is told when nothing else is set: end at once when all fits, pass colours, leave the text there.
const LESS: &str = "FRX";

/// The arguments of `docs`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The page, such as api [default: the list of pages]
    page: Option<String>,
}

/// Prints the page, or the list.
pub fn run(args: Args) -> CommandResult {
    let Some(name) = args.page else {
        let mut out = io::stdout().lock();
        for page in PAGES {
            writeln!(out, "{:13} {}", page.name, page.title)?;
        }
        return Ok(0);
    };
    let page = docs::find(&name).ok_or_else(|| {
        let names: Vec<&str> = PAGES.iter().map(|page| page.name).collect();
        let names = names.join(", ");
        Failure::Usage(format!("there is no page {name:?}; the pages are {names}"))
    })?;
    let text = page.markdown.text();
    let mut pager = match io::stdout().is_terminal() {
        true => pager()?,
        false => None,
    };
    match pager.as_mut().and_then(|pager| pager.stdin.take()) {
        // Whoever leaves the pager early has read enough: no reason to complain.
        Some(mut stdin) => match stdin.write_all(text.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        },
        None => io::stdout().write_all(text.as_bytes())?,
    }
    if let Some(mut pager) = pager {
        // Its standard input is closed by now. How it ends is its own affair.
        let _ = pager.wait();
    }
    Ok(0)
}

/// Starts what `PAGER` says, which may have arguments, or less. `None` when the page is to be printed.
fn pager() -> Result<Option<Child>, Failure> {
    let chosen = env::var_os("PAGER");
    let mut command = match &chosen {
        Some(line) if line.is_empty() => return Ok(None),
        Some(line) => {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(line);
            shell
        }
        None => Command::new("less"),
    };
    if env::var_os("LESS").is_none() {
        command.env("LESS", LESS);
    }
    match command.stdin(Stdio::piped()).spawn() {
        Ok(pager) => Ok(Some(pager)),
        // A thin container may have neither.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::Because(format!(
            "cannot start the pager: {error}; PAGER=cat prints the page"
        ))),
    }
}
