//! Durations, as text and as JSON. What is read must be bounded, and read back as what it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sidebike::wire::duration::{MAX_DURATION_MS, TimeSpan, Timeout};

fuzz_target!(|text: &str| {
    for duration in [text.parse::<TimeSpan>().ok(), serde_json::from_str(text).ok()] {
        let Some(duration) = duration else { continue };
        assert!(duration.as_millis() <= MAX_DURATION_MS);
        let written = serde_json::to_string(&duration).expect("it can be written");
        let read: TimeSpan = serde_json::from_str(&written).expect("and read");
        assert_eq!(read, duration);
        assert_eq!(duration.to_string().parse(), Ok(duration));
    }
    if let Ok(timeout) = serde_json::from_str::<Timeout>(text) {
        let written = serde_json::to_string(&timeout).expect("it can be written");
        assert_eq!(serde_json::from_str::<Timeout>(&written).expect("and read"), timeout);
    }
});
