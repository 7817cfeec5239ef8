//! `memcmp` for musl, whose own goes byte by byte.
//!
//! Every comparison of texts in the program ends there: it was a tenth of what a submit costs. The linker
//! asks libc only for what it has not found by then, so it takes this one. (`memcpy` begins slowly, but on
//! x86_64 musl's `memmove` is a part of it: there would be two.)
//!
//! Nothing here may be compiled to a call of `memcmp` again, which a comparison of slices would be.

#![allow(unsafe_code, reason = "C's calls take addresses")]

use std::cmp::Ordering;
use std::ffi::c_int;
use std::slice::from_raw_parts;

/// C's `memcmp`.
///
/// # Safety
///
/// As in C: at both addresses are `n` bytes that can be read and have been written.
#[cfg_attr(target_env = "musl", unsafe(no_mangle))]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> c_int {
    if n == 0 {
        // Then the addresses may be any.
        return 0;
    }
    // SAFETY: the caller's promise, and `n` is not 0.
    let (a, b) = unsafe { (from_raw_parts(a, n), from_raw_parts(b, n)) };
    compared(a, b) as c_int
}

/// Which of two texts of the same length comes first: eight bytes at once, as numbers.
fn compared(a: &[u8], b: &[u8]) -> Ordering {
    let (a_words, a_rest) = a.as_chunks::<8>();
    let (b_words, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_words.iter().zip(b_words) {
        let (a, b) = (u64::from_be_bytes(*a), u64::from_be_bytes(*b));
        if a != b {
            return a.cmp(&b);
        }
    }
    for (a, b) in a_rest.iter().zip(b_rest) {
        if a != b {
            return a.cmp(b);
        }
    }
    Ordering::Equal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(a: &[u8], b: &[u8]) -> Ordering {
        assert_eq!(a.len(), b.len());
        // SAFETY: so many bytes are there.
        unsafe { memcmp(a.as_ptr(), b.as_ptr(), a.len()) }.cmp(&0)
    }

    #[test]
    fn a_difference_is_found_wherever_it_is() {
        for length in 0..40 {
            let text = vec![b'm'; length];
            assert_eq!(compared(&text, &text), Ordering::Equal);
            for at in 0..length {
                for other in [0, b'l', b'n', 0xFF] {
                    let mut changed = text.clone();
                    changed[at] = other;
                    // What follows the first difference does not count.
                    changed[at + 1..].fill(b'\x7F');
                    assert_eq!(compared(&text, &changed), b'm'.cmp(&other));
                    assert_eq!(compared(&changed, &text), other.cmp(&b'm'));
                }
            }
        }
    }
}
