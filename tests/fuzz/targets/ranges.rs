//! What `Range`, `Content-Range` and `offset` mean: a part lies within its file, a piece within its blob, and nothing
//! panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidebike::server::blobs::range::check_any;

fuzz_target!(|given: (u64, &str)| {
    let (size, text) = given;
    check_any(text, size);
    check_any(&format!("bytes={text}"), size);
    check_any(&format!("bytes {text}"), size);
});
