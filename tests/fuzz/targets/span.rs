//! Durations, as text and as JSON. What is read must be bounded, and read back as what it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sidebike::wire::span::{MAX_SPAN_MS, Span, Timeout};

fuzz_target!(|text: &str| {
    for span in [text.parse::<Span>().ok(), serde_json::from_str(text).ok()] {
        let Some(span) = span else { continue };
        assert!(span.as_millis() <= MAX_SPAN_MS);
        let written = serde_json::to_string(&span).expect("it can be written");
        let read: Span = serde_json::from_str(&written).expect("and read");
        assert_eq!(read, span);
        assert_eq!(span.to_string().parse(), Ok(span));
    }
    if let Ok(timeout) = serde_json::from_str::<Timeout>(text) {
        let written = serde_json::to_string(&timeout).expect("it can be written");
        assert_eq!(serde_json::from_str::<Timeout>(&written).expect("and read"), timeout);
    }
});
