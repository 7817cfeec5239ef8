//! `sidebike completions` and `sidebike man`: what packagers and shells want.

use super::{Ended, Failure};
use crate::config::CommandLine;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::{self, Write};

const COMPLETIONS: &str = "\
Examples:
  source <(sidebike completions bash)
  sidebike completions zsh > ~/.zfunc/_sidebike
  sidebike completions fish > ~/.config/fish/completions/sidebike.fish";

const MAN: &str = "\
Examples:
  sidebike man | man -l -
  sidebike man run > sidebike-run.1";

/// What was typed for `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = COMPLETIONS)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// What was typed for `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = MAN)]
pub struct Man {
    /// The command whose page it is to be [default: sidebike's own]
    command: Option<String>,
}

/// Prints the script for a shell.
pub fn completions(args: Completions) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut CommandLine::command(),
        "sidebike",
        &mut script,
    );
    io::stdout().write_all(&script)?;
    Ok(0)
}

/// Prints the manual page.
pub fn man(args: Man) -> Ended {
    let mut all = CommandLine::command();
    all.build();
    let command = match &args.command {
        None => all,
        Some(name) => {
            let found = all
                .find_subcommand(name)
                .filter(|found| !found.is_hide_set());
            let found =
                found.ok_or_else(|| Failure::Usage(format!("there is no command {name:?}")))?;
            found.clone()
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    io::stdout().write_all(&page)?;
    Ok(0)
}
