//! How much of the program is in memory of this process. It is in the system's cache as well, so this is
//! about what the system may take back without anybody noticing, and about what `ps` shows.

use rustix::mm::{Advice, madvise};
use std::ffi::c_void;
use std::fs;

/// Lets go of the program's code and constants, and says whether it could. What is used from now on comes
/// back, mostly from the system's cache; what only the start needed, such as the command line's, does not.
/// It takes some microseconds, and until the usual is back a tenth of a millisecond more.
#[allow(unsafe_code, reason = "memory is named by its address")]
pub fn forget_program() -> bool {
    let here = forget_program as *const () as usize;
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    let found = unwritten(&String::from_utf8_lossy(&maps), here);
    // SAFETY: nobody has written to these pages or can, so each has what is in its file (but for a
    // debugger's marks, which are lost).
    let forget =
        |(from, to)| unsafe { madvise(from as *mut c_void, to - from, Advice::LinuxDontNeed) };
    !found.is_empty() && found.into_iter().all(|bounds| forget(bounds).is_ok())
}

/// The bounds of the mapping, in the text of `/proc/self/maps`, that has the code at this address, and of
/// the constants before it. What lies behind it may have been written to before it became read-only.
fn unwritten(maps: &str, address: usize) -> Vec<(usize, usize)> {
    let mut before: Option<Mapping> = None;
    for mapping in maps.lines().filter_map(Mapping::parse) {
        if !(mapping.from..mapping.to).contains(&address) {
            before = Some(mapping);
            continue;
        }
        if mapping.access != "r-xp" {
            break;
        }
        let constants = before.filter(|it| it.access == "r--p" && it.path == mapping.path);
        let all = constants.into_iter().chain([mapping]);
        return all.map(|it| (it.from, it.to)).collect();
    }
    Vec::new()
}

/// A line of `/proc/self/maps`.
struct Mapping<'a> {
    from: usize,
    to: usize,
    access: &'a str,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (from, to) = words.next()?.split_once('-')?;
        Some(Mapping {
            from: usize::from_str_radix(from, 16).ok()?,
            to: usize::from_str_radix(to, 16).ok()?,
            access: words.next()?,
            path: words.nth(3)?.trim_start(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f109000-7f10a000 r--p 00000000 fe:01 41                         /lib/libc.so
7f10a000-7f10c000 r--p 00000000 fe:01 42                         /usr/bin/side bike
7f10c000-7f10f000 r-xp 00001000 fe:01 42                         /usr/bin/side bike
7f10f000-7f110000 r--p 00003000 fe:01 42                         /usr/bin/side bike
7f110000-7f111000 rw-p 00004000 fe:01 42                         /usr/bin/side bike
7f111000-7f112000 rw-p 00000000 00:00 0 
7ffe0000-7ffe2000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn code_and_the_constants_before_it_are_let_go_of() {
        let code = (0x7f10_c000, 0x7f10_f000);
        let both = vec![(0x7f10_a000, 0x7f10_c000), code];
        assert_eq!(unwritten(MAPS, 0x7f10_c000), both);
        assert_eq!(unwritten(MAPS, 0x7f10_efff), both);
        let of_another = MAPS.replacen("/usr/bin/side bike", "/lib/libm.so", 1);
        assert_eq!(unwritten(&of_another, 0x7f10_c000), [code]);
        let written = MAPS.replacen("7f10c000 r--p", "7f10c000 rw-p", 1);
        assert_eq!(unwritten(&written, 0x7f10_c000), [code]);
        for not_code in [0x7f10_a000, 0x7f10_f000, 0x7f11_0000, 0x7f11_1000, 1] {
            assert_eq!(unwritten(MAPS, not_code), [], "{not_code:x}");
        }
        for broken in ["", "x", "7f10c000-7f10f000", "7f10c000-7f10f000 r-xp"] {
            assert_eq!(unwritten(broken, 0x7f10_c000), []);
        }
        let writable = MAPS.replace("r-xp", "rwxp");
        assert_eq!(unwritten(&writable, 0x7f10_c000), []);
    }

    #[test]
    fn the_program_is_there_again_when_it_is_used() {
        for _ in 0..3 {
            assert!(forget_program());
            assert_eq!(format!("{:>5}", 17 * 3), "   51");
        }
    }
}
