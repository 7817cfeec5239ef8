//! Names of signals: `SIGKILL` for one that has a name, else `signal 34`.

/// The names of the signals from 1 on. The numbers are those of Linux on x86, ARM, POWER, RISC-V and s390.
const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];
/// The highest number of a signal; those above the named ones are the real-time signals.
const MAX_NUMBER: u8 = 64;
/// What is before the number of a signal without a name.
const UNNAMED: &str = "signal ";

/// The name of a signal.
pub fn name(number: i32) -> String {
    let index = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
    let known = index.and_then(|index| NAMES.get(index));
    known.map_or_else(|| format!("{UNNAMED}{number}"), |name| (*name).to_owned())
}

/// The number of a signal with this name; none if there is no such signal.
pub fn number(name: &str) -> Option<u8> {
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return u8::try_from(index + 1).ok();
    }
    let number = name.strip_prefix(UNNAMED)?.parse().ok()?;
    (1..=MAX_NUMBER).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_name_that_is_understood() {
        for signal in 1..=MAX_NUMBER {
            assert_eq!(number(&name(signal.into())), Some(signal));
        }
        assert_eq!(name(25), "SIGXFSZ");
        assert_eq!(name(64), "signal 64");
        for unknown in ["SIGNONE", "signal 0", "signal 65", "signal -1", ""] {
            assert_eq!(number(unknown), None, "{unknown}");
        }
    }
}
