//! The process group of a command.

use super::termination::ProcessTree;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::path::Path;

/// A process group that is to be ended.
///
/// Its number stays its own while its leader has not been reaped or any process is in it. So signals are
/// sent before that, or while the latest look, a few milliseconds ago, found it alive.
#[derive(Debug, Clone, Copy)]
pub struct ProcessGroup(pub Pid);

impl ProcessTree for ProcessGroup {
    fn send(&mut self, signal: Signal) {
        // An error means that the group is empty, or that nothing can be done about it.
        let _ = kill_process_group(self.0, signal);
    }

    /// Zombies do not count: in many containers process 1 does not reap, and a dead process would keep
    /// its group for ever. Only /proc tells them from live processes; without /proc they do count.
    fn is_dead(&mut self) -> bool {
        test_kill_process_group(self.0) == Err(Errno::SRCH)
            || only_zombies(self.0.as_raw_nonzero().get(), Path::new("/proc")) == Some(true)
    }
}

/// None when it cannot be known.
fn only_zombies(group: i32, proc: &Path) -> Option<bool> {
    let mut members = 0;
    for entry in std::fs::read_dir(proc).ok()? {
        let name = entry.ok()?.file_name();
        if !name.as_encoded_bytes().first()?.is_ascii_digit() {
            continue;
        }
        // A process that has ended meanwhile is no member any more.
        let Ok(stat) = std::fs::read(proc.join(name).join("stat")) else {
            continue;
        };
        let Some((state, of)) = state_and_group(&String::from_utf8_lossy(&stat)) else {
            continue;
        };
        if of == group {
            if !matches!(state, 'Z' | 'X') {
                return Some(false);
            }
            members += 1;
        }
    }
    // Without any visible member (another mount of /proc, or hidepid) nothing is known.
    (members > 0).then_some(true)
}

/// `123 (a name) S parent group …`; the name may contain anything.
fn state_and_group(stat: &str) -> Option<(char, i32)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    let state = words.next()?.chars().next()?;
    Some((state, words.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc() {
        assert_eq!(state_and_group("7 (a) b) (c) Z 1 77 5"), Some(('Z', 77)));
        assert_eq!(state_and_group("7 (sh) S 1"), None);
        assert_eq!(state_and_group(""), None);
    }

    #[test]
    fn this_process_lives() {
        assert!(!ProcessGroup(rustix::process::getpgrp()).is_dead());
        assert_eq!(only_zombies(1, Path::new("/nowhere")), None);
    }
}
