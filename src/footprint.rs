//! How much of the program is in memory of this process. It is in the system's cache as well, so this is
//! about what the system may take back without anybody noticing, and about what `ps` shows.

use rustix::mm::{Advice, madvise};
use std::ffi::c_void;
use std::fs;

/// Lets go of the program's code, and says whether it could. What is called from now on comes back, mostly
/// from the system's cache; what only the start needed, such as the command line's, does not.
#[allow(unsafe_code, reason = "memory is named by its address")]
pub fn forget_start() -> bool {
    let here = forget_start as *const () as usize;
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    let Some((from, to)) = maps.lines().find_map(|line| code_with(here, line)) else {
        return false;
    };
    // SAFETY: the program cannot write to these pages, so each has what is in its file (but for a
    // debugger's marks, which are lost).
    unsafe { madvise(from as *mut c_void, to - from, Advice::LinuxDontNeed) }.is_ok()
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
            assert!(forget_start());
            assert_eq!(format!("{:>5}", 17 * 3), "   51");
        }
    }
}
