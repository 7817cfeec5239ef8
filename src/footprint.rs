//! How much of the program stays in memory.

use rustix::mm::{Advice, madvise};
use std::ffi::c_void;
use std::fs;

/// Lets go of the program's code. What is needed from now on comes back, from the system's cache, when it
/// is called; what only the start needed, such as the command line's, does not: a third of a process
/// that is idle.
#[allow(unsafe_code, reason = "memory is named by its address")]
pub fn forget_start() {
    let here = forget_start as *const () as usize;
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some((from, to)) = maps.lines().find_map(|line| code_with(here, line)) else {
        return;
    };
    // SAFETY: pages that cannot be written to, of a file that stays open as the program's own: each has
    // what is in the file, whenever it is read.
    let _ = unsafe { madvise(from as *mut c_void, to - from, Advice::LinuxDontNeed) };
}

/// The bounds of a mapping, from its line in `/proc/self/maps`, if it holds this address and is code that
/// cannot be written to.
fn code_with(address: usize, line: &str) -> Option<(usize, usize)> {
    let (bounds, rest) = line.split_once(' ')?;
    let (from, to) = bounds.split_once('-')?;
    let from = usize::from_str_radix(from, 16).ok()?;
    let to = usize::from_str_radix(to, 16).ok()?;
    let holds = (from..to).contains(&address) && rest.starts_with("r-xp ");
    holds.then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_let_go_of() {
        let line = "7f10a000-7f10f000 r-xp 00119000 fe:01 42 /usr/bin/sidebike";
        assert_eq!(
            code_with(0x7f10_a000, line),
            Some((0x7f10_a000, 0x7f10_f000))
        );
        assert_eq!(code_with(0x7f10_f000, line), None);
        for other in [
            line.replace("r-xp", "r--p"),
            line.replace("r-xp", "rwxp"),
            "".into(),
        ] {
            assert_eq!(code_with(0x7f10_a000, &other), None);
        }
    }

    #[test]
    fn the_code_is_there_again_when_it_is_called() {
        for _ in 0..3 {
            forget_start();
            assert_eq!(format!("{:>5}", 17 * 3), "   51");
        }
    }
}
