//! The command line: parse, run one program, say how it went.

#[cfg(any(target_env = "musl", test))]
mod memcmp;

#[cfg(feature = "db")]
use sidebike::config::DbCommand;
use sidebike::config::{CommandLine, Program};
use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

/// Exit code of a program that could not do what it was asked to.
#[cfg(any(feature = "server", feature = "agent"))]
const FAILED: u8 = 1;
/// Exit code for settings that make no sense, as clap's.
#[cfg(any(feature = "server", feature = "agent"))]
const USAGE: u8 = 2;

/// musl's allocator has one lock for all threads: with it a server answers a third fewer requests.
#[cfg(feature = "server")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Gives memory back as soon as it is free: by default the allocator keeps it for a second, and a crowd
/// that asks for large answers at once would have taken hundreds of megabytes by then.
#[cfg(feature = "server")]
#[allow(unsafe_code, reason = "the allocator has no safe call for its options")]
fn keep_no_free_memory() {
    /// `mi_option_purge_delay`, in milliseconds.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: it sets a number; there is no other thread yet that could read it meanwhile.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) };
}

fn main() -> ExitCode {
    #[cfg(feature = "server")]
    keep_no_free_memory();
    // It stays for as long as the agent: what reads a command line, and its log, would take a third of
    // its memory.
    #[cfg(feature = "agent")]
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == sidebike::agent::processes::guard::PROGRAM)
    {
        sidebike::agent::processes::guard::run();
        return ExitCode::SUCCESS;
    }
    let program = CommandLine::typed().program;
    start_log(default_log(&program));
    match program {
        #[cfg(feature = "server")]
        Program::Server(args) => with_settings(args.checked(), sidebike::server::run),
        #[cfg(feature = "db")]
        Program::Db(DbCommand::Check { file }) => {
            ended(sidebike::server::db::check(&file).map(|words| {
                // Whoever does not listen still gets the exit code.
                let _ = writeln!(std::io::stdout(), "{words}");
            }))
        }
        #[cfg(feature = "db")]
        Program::Db(DbCommand::Export { file }) => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            ended(sidebike::server::db::export(&file, &mut out))
        }
        #[cfg(feature = "agent")]
        Program::Agent(args) => with_settings(args.checked(), sidebike::agent::run),
        #[cfg(feature = "cli")]
        Program::People(command) => sidebike::cli::run(command),
        Program::Help { command } => match CommandLine::find(&command) {
            Ok(mut found) => {
                // Whoever does not listen does not want it.
                let _ = write!(std::io::stdout(), "{}", found.render_help());
                ExitCode::SUCCESS
            }
            Err(wrong) => wrong.exit(),
        },
    }
}

#[cfg(any(feature = "server", feature = "agent"))]
fn with_settings<T>(
    settings: Result<T, String>,
    run: impl FnOnce(T) -> Result<(), String>,
) -> ExitCode {
    match settings {
        Ok(settings) => ended(run(settings)),
        Err(why) => complain(&why, USAGE),
    }
}

#[cfg(any(feature = "server", feature = "agent"))]
fn ended(how: Result<(), String>) -> ExitCode {
    match how {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => complain(&why, FAILED),
    }
}

#[cfg(any(feature = "server", feature = "agent"))]
fn complain(why: &str, code: u8) -> ExitCode {
    eprintln!("sidebike: {why}");
    ExitCode::from(code)
}

/// What is logged when `RUST_LOG` does not say otherwise: people who give a command want its answer,
/// not a story.
fn default_log(program: &Program) -> &'static str {
    match program {
        #[cfg(feature = "cli")]
        Program::People(_) => "warn",
        _ => "info",
    }
}

/// One line per record on stderr: time, level, module, text.
fn start_log(default: &str) {
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
