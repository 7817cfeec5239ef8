//! `sidebike completions` and `sidebike man`, for shells and packages.

use super::CommandResult;
use crate::config::CommandLine;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use std::io::{self, Write};

const COMPLETIONS: &str = "\
Examples:
  source <(sidebike completions bash)     in this shell
  sidebike completions bash > ~/.local/share/bash-completion/completions/sidebike
  sidebike completions zsh > ~/.zfunc/_sidebike
  sidebike completions fish > ~/.config/fish/completions/sidebike.fish";

const MAN: &str = "\
Examples:
  sidebike man | man -l -
  sidebike man db check | man -l -
  sidebike man run > sidebike-run.1";

/// The arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = COMPLETIONS)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// The arguments of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = MAN)]
pub struct Man {
    /// The command whose page to print [default: sidebike itself]
    command: Vec<String>,
}

/// Prints the script for a shell.
pub fn completions(args: Completions) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut for_people(), "sidebike", &mut script);
    io::stdout().write_all(&script)?;
    Ok(0)
}

/// The command line without hidden commands, which would be completed, too.
fn for_people() -> Command {
    let all = CommandLine::command();
    let shown = all.get_subcommands().filter(|c| !c.is_hide_set()).cloned();
    let shown: Vec<Command> = shown.collect();
    Command::new("sidebike")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommands(shown)
}

/// Prints the manual page.
pub fn man(args: Man) -> CommandResult {
    let command = CommandLine::find(&args.command);
    let command = command.unwrap_or_else(|wrong| wrong.exit());
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    io::stdout().write_all(&page)?;
    Ok(0)
}
