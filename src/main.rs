//! The command line: parse, run one program, say how it went.

use clap::Parser;
#[cfg(feature = "db")]
use sidebike::config::DbCommand;
use sidebike::config::{CommandLine, Program};
use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

/// Exit code of a program that could not do what it was asked to.
const FAILED: u8 = 1;

/// What is logged when `RUST_LOG` does not say otherwise.
const DEFAULT_LOG: &str = "info";
/// The same for people's commands: they want their answer, not a story.
const DEFAULT_LOG_FOR_PEOPLE: &str = "warn";

fn main() -> ExitCode {
    let line = CommandLine::parse();
    start_log(&line.program);
    let ended = match line.program {
        #[cfg(feature = "server")]
        Program::Server(args) => args.checked().and_then(sidebike::server::run),
        #[cfg(feature = "db")]
        Program::Db(DbCommand::Check { file }) => {
            sidebike::server::db::check(&file).map(|words| println!("{words}"))
        }
        #[cfg(feature = "db")]
        Program::Db(DbCommand::Export { file }) => {
            sidebike::server::db::export(&file, &mut std::io::stdout().lock())
        }
        #[cfg(feature = "agent")]
        Program::Agent(args) => args.checked().and_then(sidebike::agent::run),
        #[cfg(feature = "cli")]
        Program::People(command) => return sidebike::cli::run(command),
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

/// One line per record on stderr: time, level, module, text.
fn start_log(program: &Program) {
    let default = match program {
        #[cfg(feature = "cli")]
        Program::People(_) => DEFAULT_LOG_FOR_PEOPLE,
        _ => DEFAULT_LOG,
    };
    let filter = env_logger::Env::default().default_filter_or(default);
    let mut log = env_logger::Builder::from_env(filter);
    log.format(|out, record| {
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        writeln!(
            out,
            "{time} {:5} {}: {}",
            record.level(),
            record.target(),
            record.args()
        )
    });
    log.init();
}
