//! The command line: parse, run one program, say how it went.

use clap::Parser;
use sidebike::config::{CommandLine, Program};
use std::process::ExitCode;

/// Exit code of a program that could not do what it was asked to.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let ended = match line.program {
        #[cfg(feature = "server")]
        Program::Server(args) => args.checked().and_then(sidebike::server::run),
        #[cfg(feature = "agent")]
        Program::Agent(args) => args.checked().and_then(sidebike::agent::run),
        #[cfg(feature = "agent")]
        Program::AgentGuard => {
            sidebike::agent::guard::run();
            Ok(())
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("sidebike: {why}");
            ExitCode::from(FAILED)
        }
    }
}
