//! What agents say, line by line, to a registry that has work: `P` poll, `O` output, `D` done,
//! `G` goodbye, `T` some time goes by.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{from_slice, from_str};
use sidebike::core::{Core, Limits, Spec, TextLimits, Time};
use sidebike::wire::agent::{Done, Goodbye, Output, Poll};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        tasks: 4,
        executions: 40,
        machines: 3,
        output_bytes: 1 << 16,
        detail_bytes: 1 << 20,
        new_machines: 1_000,
        schedules: 1_000,
        patterns: 2,
        texts: TextLimits {
            pattern: 100,
            compiled: 1 << 16,
            label: 20,
            name: 20,
        },
    };
    let mut now = Time(1_000_000);
    let mut core = Core::new(limits.clone(), now);
    for (id, mode) in [("a", "any"), ("b", "any"), ("c", "all")] {
        let posted = format!(
            r#"{{"id":"{id}","mode":"{mode}","machinePattern":".","detail":{{"command":"x"}},"retry":{{"max":2,"on":["failed","lost"]}}}}"#
        );
        let posted = from_str(&posted).expect("a task");
        let spec = Spec::checked(posted, &limits.texts, |_| None).expect("a good task");
        core.submit(now, id, spec).expect("there is room");
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some((kind, body)) = line.split_first() else {
            continue;
        };
        match kind {
            b'P' => {
                if let Ok(poll) = from_slice::<Poll>(body)
                    && let Ok((machine, _)) = core.poll(now, &poll, None)
                {
                    core.hold_poll(machine);
                    core.collect(now, machine);
                }
            }
            b'O' => {
                if let Ok(output) = from_slice::<Output>(body) {
                    core.output(now, &output.instance, &output.pieces);
                }
            }
            b'D' => {
                if let Ok(done) = from_slice::<Done>(body) {
                    core.done_and_next(now, &done);
                }
            }
            b'G' => {
                if let Ok(goodbye) = from_slice::<Goodbye>(body) {
                    core.leave(now, &goodbye);
                }
            }
            b'T' => {
                now = Time(now.0 + 1_000 * body.len() as u64);
                core.tick(now);
            }
            _ => {}
        }
        core.take_notices();
        core.check_invariants().expect("it is as it should be");
    }
    core.tick(Time(now.0 + 3_600_000));
});
