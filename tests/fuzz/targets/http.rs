//! Heads and bodies as they come from the network: never a panic, never a body beyond its limit, and the same requests
//! whether they come whole or in two pieces.

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
    assert_eq!(whole, parsed(bytes, cut, &LIMITS), "cut at {cut}");
});
