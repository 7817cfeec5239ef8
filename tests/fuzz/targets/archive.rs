//! The checks of archives that a task has unpacked. The first byte says how it is packed, and how much is stripped of
//! the names. Whatever is in it, nothing is written, memory is bounded, and what is accepted is within the limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sidebike::agent::files::archive::check;
use sidebike::wire::files::Unpack;
use std::io::Cursor;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, archive)) = bytes.split_first() else { return };
    let kind = match first & 1 {
        0 => Unpack::Tar,
        _ => Unpack::TarGz,
    };
    if let Ok(plan) = check(&mut Cursor::new(archive), kind, u32::from(first >> 1) % 4) {
        assert!(plan.entries > 0 && plan.entries <= 100_000);
        assert!(plan.bytes <= 1 << 30);
    }
});
