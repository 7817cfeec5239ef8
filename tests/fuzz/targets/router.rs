//! A request line: the target taken apart, decoded, and a route found for it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    let (method, target) = line.split_once(' ').unwrap_or(("GET", line));
    let status = sidebike::server::routed(method, target);
    assert!([200, 400, 404, 405].contains(&status), "{status}");
});
