//! Parses the command line, runs one program and reports its result as an exit code.

#[cfg(feature = "db")]
use sidebike::command_line::DbCommand;
use sidebike::command_line::{CommandLine, Program};
use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

/// Exit code when a program failed.
#[cfg(any(feature = "server", feature = "agent"))]
const FAILED: u8 = 1;
/// Exit code for an invalid setting, the same as clap's.
#[cfg(any(feature = "server", feature = "agent"))]
const USAGE: u8 = 2;

/// musl's own allocator has one lock for all threads; a server answers a third fewer requests with it.
#[cfg(feature = "server")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Makes the allocator return freed memory to the system at once. By default it waits a second; many
/// clients that read large answers at the same time would take hundreds of megabytes within it.
#[cfg(feature = "server")]
#[allow(unsafe_code, reason = "the allocator has no safe call for its options")]
fn return_freed_memory_at_once() {
    /// `mi_option_purge_delay`, in milliseconds. The crate has no name for it. The environment variable
    /// (`MIMALLOC_PURGE_DELAY`) is read before `main`, so the program cannot set that for itself.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: it sets a number. No other thread runs yet that could read it at the same time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) };
}

/// Opens standard streams that are closed where there is no /dev/null. Rust's start would open that before
/// `main`, and abort.
#[cfg(feature = "agent")]
#[allow(unsafe_code, reason = "there is no other code before Rust's start")]
mod closed_streams {
    use rustix::fd::{AsRawFd, BorrowedFd, IntoRawFd};
    use rustix::fs::{Mode, OFlags, open};

    #[used]
    #[unsafe(link_section = ".init_array")]
    static BEFORE_START: extern "C" fn() = open_closed;

    /// Makes only system calls: nothing of the program has been started.
    extern "C" fn open_closed() {
        for fd in 0..3 {
            // SAFETY: the descriptor is only asked for, and nobody closes it meanwhile: there is one thread.
            let is_open = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_ok();
            if is_open || open("/dev/null", OFlags::RDWR, Mode::empty()).is_ok() {
                continue;
            }
            // The lowest number is taken first: it is this one.
            let Ok((reading, writing)) = rustix::pipe::pipe() else {
                continue;
            };
            if reading.as_raw_fd() != fd {
                continue;
            }
            let mut stream = reading;
            if fd != 0 {
                // Nobody reads what is written: that is an error, and no reason to wait.
                let _ = rustix::io::dup2(&writing, &mut stream);
            }
            let _ = stream.into_raw_fd();
        }
    }
}

fn main() -> ExitCode {
    #[cfg(feature = "server")]
    return_freed_memory_at_once();
    // The guard lives as long as its agent. It does without the command line's parser and the log, which
    // would be a third of its memory.
    #[cfg(feature = "agent")]
    if let Some(word) = std::env::args_os().nth(1) {
        use sidebike::agent::processes::guard;
        if word == guard::PROGRAM {
            guard::run();
            return ExitCode::SUCCESS;
        }
        if word == sidebike::agent::files::helper::PROGRAM {
            return match sidebike::agent::files::helper::run() {
                true => ExitCode::SUCCESS,
                false => ExitCode::from(FAILED),
            };
        }
        if word == sidebike::agent::update::image::TRIAL {
            return try_start();
        }
        if word == "agent" {
            sidebike::agent::update::begin::begin();
        }
        if word == guard::report::PROGRAM {
            return match guard::report::run() {
                true => ExitCode::SUCCESS,
                false => ExitCode::from(FAILED),
            };
        }
    }
    let program = CommandLine::parse_or_exit().program;
    start_log(&program);
    let code = run(program);
    #[cfg(feature = "server")]
    sidebike::server::log_queue::flush();
    code
}

/// Tries whether the agent would start with these arguments.
#[cfg(feature = "agent")]
fn try_start() -> ExitCode {
    use clap::Parser;
    let own = std::env::args_os().take(1);
    let args = own
        .chain(["agent".into()])
        .chain(std::env::args_os().skip(2));
    match CommandLine::try_parse_from(args).map(|line| line.program) {
        Ok(Program::Agent(args)) => with_settings(args.checked(), |config| {
            sidebike::agent::update::image::try_start(&config)
        }),
        Ok(_) => ExitCode::from(USAGE),
        Err(wrong) => wrong.exit(),
    }
}

fn run(program: Program) -> ExitCode {
    match program {
        #[cfg(feature = "server")]
        Program::Server(args) => with_settings(args.checked(), sidebike::server::run),
        #[cfg(feature = "db")]
        Program::Db(command) => exit_code(work_on_database(&command)),
        #[cfg(feature = "agent")]
        Program::Agent(args) => with_settings(args.checked(), sidebike::agent::run),
        #[cfg(feature = "cli")]
        Program::People(command) => sidebike::cli::run(command),
        Program::Help { command } => match CommandLine::find(&command) {
            Ok(mut found) => {
                // Ignore a closed stdout: there is nothing else to report.
                let _ = write!(std::io::stdout(), "{}", found.render_help());
                ExitCode::SUCCESS
            }
            Err(wrong) => wrong.exit(),
        },
    }
}

#[cfg(feature = "db")]
fn work_on_database(command: &DbCommand) -> Result<(), String> {
    use sidebike::server::db::inspect;
    let words = match command {
        DbCommand::Check(args) => inspect::check(&args.database, args.db_ca.as_deref())?,
        DbCommand::Export(args) => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            return inspect::export(&args.database, args.db_ca.as_deref(), &mut out);
        }
        #[cfg(feature = "pg")]
        DbCommand::Copy { file, url, db_ca } => inspect::copy(file, url, db_ca.as_deref())?,
        #[cfg(feature = "pg")]
        DbCommand::Schema => sidebike::server::db::postgres::SCHEMA.trim_end().to_owned(),
    };
    // Ignore a closed stdout: the exit code still reports the result.
    let _ = writeln!(std::io::stdout(), "{words}");
    Ok(())
}

#[cfg(any(feature = "server", feature = "agent"))]
fn with_settings<T>(
    settings: Result<T, String>,
    run: impl FnOnce(T) -> Result<(), String>,
) -> ExitCode {
    match settings {
        Ok(settings) => exit_code(run(settings)),
        Err(why) => fail(&why, USAGE),
    }
}

#[cfg(any(feature = "server", feature = "agent"))]
fn exit_code(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(&why, FAILED),
    }
}

#[cfg(any(feature = "server", feature = "agent"))]
fn fail(why: &str, code: u8) -> ExitCode {
    // What the log says comes before it.
    #[cfg(feature = "server")]
    sidebike::server::log_queue::flush();
    eprintln!("sidebike: {why}");
    ExitCode::from(code)
}

/// The log level when `RUST_LOG` is not set. The commands for people print their result; their log would
/// only be in the way.
fn default_log(program: &Program) -> &'static str {
    match program {
        #[cfg(feature = "cli")]
        Program::People(_) => "warn",
        _ => "info",
    }
}

/// One line per record on stderr: time, level, module, text.
fn start_log(program: &Program) {
    let filter = env_logger::Env::default().default_filter_or(default_log(program));
    let mut log = env_logger::Builder::from_env(filter);
    #[cfg(feature = "agent")]
    if matches!(program, Program::Agent(_)) {
        let writer = sidebike::agent::log_writer::LogWriter::default();
        log.target(env_logger::Target::Pipe(Box::new(writer)));
    }
    #[cfg(feature = "server")]
    if matches!(program, Program::Server(_)) {
        // Without a thread for it the server does not start either, and says why.
        if let Ok(lines) = sidebike::server::log_queue::start() {
            log.target(env_logger::Target::Pipe(Box::new(lines)));
        }
    }
    log.format(|out, record| {
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        writeln!(
            out,
            "{time} {:5} {}: {}",
            record.level(),
            record.target(),
            OneLine(&record.args().to_string())
        )
    });
    log.init();
}

/// A text in one line of the log. What others have written into it must not look like another line, or reach
/// the terminal of who reads it.
struct OneLine<'a>(&'a str);

impl std::fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.0;
        // What need not be escaped is written in pieces as long as possible: a server logs a line for each submit.
        while let Some(at) = rest.find(is_escaped) {
            let mut chars = rest[at..].chars();
            f.write_str(&rest[..at])?;
            if let Some(c) = chars.next() {
                write!(f, "{}", c.escape_default())?;
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

/// Whether a character is escaped in the log: control characters, other separators of lines, and marks that turn the
/// direction of writing.
fn is_escaped(c: char) -> bool {
    let is_mark =
        matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_mark
}
