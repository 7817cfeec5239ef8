//! The knobs, and the machine that it is measured on.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// How long one thing is measured when not said otherwise, in seconds.
const SECONDS: u64 = 3;
/// How long `make soak` lasts when not said otherwise, in seconds.
const SOAK_SECONDS: u64 = 3_600;
/// Open files that 9,000 agents and their reports need, on both sides: the advice of `src/docs/operations.md`.
const FILES: u64 = 65_536;

/// What to measure, and how long.
pub struct Setting {
    /// The binary that is measured.
    pub binary: PathBuf,
    /// One built with the agent alone.
    pub agent_only: Option<PathBuf>,
    /// How long one thing is measured.
    pub span: Duration,
    /// How long the mixed load lasts.
    pub soak: Duration,
    only: Vec<String>,
    folder: PathBuf,
}

impl Setting {
    /// Reads the knobs. The error is one line for a person.
    pub fn from_environment() -> Result<Setting, String> {
        let binary = variable("SIDEBIKE").unwrap_or_else(|| env!("CARGO_BIN_EXE_sidebike").into());
        let binary = fs::canonicalize(&binary).map_err(|why| format!("{binary}: {why}"))?;
        let name = format!("bench-{}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).map_err(|why| format!("{}: {why}", folder.display()))?;
        let only = variable("BENCH_ONLY").unwrap_or_default();
        allow_files();
        Ok(Setting {
            binary,
            agent_only: variable("SIDEBIKE_AGENT_ONLY").map(PathBuf::from),
            span: Duration::from_secs(number("BENCH_SECONDS", SECONDS)?.max(1)),
            soak: Duration::from_secs(number("SOAK_SECONDS", SOAK_SECONDS)?.max(1)),
            only: { only.split(',') }
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect(),
            folder,
        })
    }

    /// Whether these rows are wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| name.contains(&**word))
    }

    /// A file's name that nobody has used yet, in a folder that goes with the benchmark.
    pub fn fresh(&self, name: &str) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        self.folder.join(format!("{n}-{name}"))
    }

    /// Which machine, which binary, when: without it the figures say little.
    pub fn machine(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        format!(
            "{cores} cores of {}, Linux {}, {}; sidebike {}, {}; {} s for each figure.",
            processor(),
            rustix::system::uname().release().to_string_lossy(),
            &today[..10],
            env!("CARGO_PKG_VERSION"),
            kind(&self.binary),
            self.span.as_secs(),
        )
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What is set, if anything is.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str, default: u64) -> Result<u64, String> {
    variable(name).map_or(Ok(default), |text| {
        text.parse()
            .map_err(|_| format!("{name}: expected a number, got {text:?}"))
    })
}

/// Raises the limit on open files, as a server for so many agents wants it; what is started
/// inherits it. Who may not raise it measures with what there is.
fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    let raise = |maximum: Option<u64>| {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(Resource::Nofile, raised).is_ok()
    };
    if limit.maximum.is_none_or(|maximum| maximum >= FILES) || !raise(Some(FILES)) {
        raise(limit.maximum);
    }
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names = text
        .lines()
        .filter_map(|line| line.strip_prefix("model name"));
    let name = names.next().and_then(|rest| rest.split_once(':'));
    name.map_or("an unknown processor", |(_, name)| name.trim())
        .to_owned()
}

/// Which build the binary is: a dynamic one has other figures.
fn kind(binary: &Path) -> &'static str {
    // The name of the dynamic linker stands near the beginning.
    const BEGINNING: usize = 4_096;
    let bytes = fs::read(binary).unwrap_or_default();
    let beginning = &bytes[..bytes.len().min(BEGINNING)];
    match beginning.windows(8).any(|word| word == b"ld-linux") {
        true => "dynamically linked",
        false => "static (musl)",
    }
}
