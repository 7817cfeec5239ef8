//! A posted task: read, checked, kept, shown. What passes the check must survive the rest.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sidebike::core::{Core, Limits, Spec, TextLimits, Time};
use sidebike::wire::strict_object::Posted;
use sidebike::wire::task::PostedTask;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Posted(posted)) = serde_json::from_slice::<Posted<PostedTask>>(bytes) else {
        return;
    };
    let limits = Limits {
        tasks: 10,
        executions: 10,
        machines: 10,
        output_bytes: 1 << 20,
        detail_bytes: 1 << 20,
        new_machines: 1_000,
        schedules: 1_000,
        patterns: 10,
        texts: TextLimits {
            pattern: 1_024,
            compiled: 128 << 10,
            label: 255,
            name: 255,
        },
    };
    let Ok(spec) = Spec::checked(posted, &limits.texts, |_| None) else {
        return;
    };
    let mut core = Core::new(limits.clone(), Time(1_000));
    let Ok(key) = core.submit(Time(1_000), "fresh", spec) else {
        return;
    };
    let task = core.show(key).expect("what was accepted is there");
    let shown = serde_json::to_vec(&task.answer(1_024)).expect("an answer can be written");
    // An answered task can be posted again.
    let Posted(again) = serde_json::from_slice::<Posted<PostedTask>>(&shown).expect("and read");
    Spec::checked(again, &limits.texts, |_| None).expect("and accepted");
    core.tick(Time(u64::MAX / 2));
});
