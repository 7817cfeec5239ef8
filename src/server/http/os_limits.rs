//! The system's limits for this process. Staying below them from the start lets the server choose whom to refuse; at
//! the limit the system refuses whatever comes next.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many files may be open; raises the limit as far as allowed.
pub fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current =
        match limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
            true => limit.maximum,
            false => limit.current,
        };
    current.map_or(usize::MAX, |most| {
        usize::try_from(most).unwrap_or(usize::MAX)
    })
}

/// How many bytes of memory may be addressed; `None` without a limit.
pub fn memory() -> Option<usize> {
    let bytes = getrlimit(Resource::As).current?;
    usize::try_from(bytes).ok()
}
