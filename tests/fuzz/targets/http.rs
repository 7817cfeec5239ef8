//! Heads and bodies as they come from the network: never a panic, never a body beyond its limit, and the same requests
//! whether they come whole or in two pieces. A head that is not whole may be refused early when it comes at once.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sidebike::server::http::{RequestLimits, parsed};

const LIMITS: RequestLimits = RequestLimits {
    head_bytes: 1_024,
    headers: 8,
    target_bytes: 256,
    body_bytes: 512,
};

fuzz_target!(|input: (&[u8], u16)| {
    let (bytes, cut) = input;
    let whole = parsed(bytes, 0, &LIMITS);
    let cut = usize::from(cut) % (bytes.len() + 1);
    let in_pieces = parsed(bytes, cut, &LIMITS);
    // Of two faults of a head another one may be found first.
    let is_right = in_pieces.1.is_none() || whole.1.is_some();
    assert!(whole.0 == in_pieces.0 && is_right, "{whole:?}, cut at {cut} {in_pieces:?}");
});
