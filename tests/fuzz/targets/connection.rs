//! The states of a connection under any order of events: each request is served once, answered once, in order, and
//! nothing is served after the last answer.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|events: &[u8]| sidebike::server::http::live(events));
