//! Whether anybody lives in a process group.

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process_group};
use std::path::Path;

/// Whether nobody in the group can do anything any more. Zombies do not count: in many containers
/// process 1 reaps nobody, and a dead process would keep its group for ever. They can only be told
/// from the living with /proc; without it they do count.
///
/// While the group can still fork, a new process may slip through one look; so look twice.
pub fn is_dead(group: Pid) -> bool {
    test_kill_process_group(group) == Err(Errno::SRCH)
        || only_zombies(group.as_raw_nonzero().get(), Path::new("/proc")) == Some(true)
}

/// None when that cannot be known.
fn only_zombies(group: i32, proc: &Path) -> Option<bool> {
    let mut members = 0;
    for entry in std::fs::read_dir(proc).ok()? {
        let name = entry.ok()?.file_name();
        if !name.as_encoded_bytes().first()?.is_ascii_digit() {
            continue;
        }
        // One that ends meanwhile is no member any more.
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
    // With no member in sight (another mount of /proc, or hidepid) nothing is known.
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
        assert!(!is_dead(rustix::process::getpgrp()));
        assert_eq!(only_zombies(1, Path::new("/nowhere")), None);
    }
}
