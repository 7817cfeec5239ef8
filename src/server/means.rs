//! What the system lets this process have. Limits that are known are kept to from the start; running
//! into them would hit whoever comes next, not who took too much.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many files may be open; raises the limit as far as allowed.
pub fn descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        return limit.maximum.unwrap_or(u64::MAX);
    }
    limit.current.unwrap_or(u64::MAX)
}

/// How many bytes of memory may be addressed; `None` without a limit.
pub fn memory() -> Option<usize> {
    let bytes = getrlimit(Resource::As).current?;
    usize::try_from(bytes).ok()
}

/// Gives back what others have freed of the memory that this thread has taken. The allocator leaves that
/// to the next time the thread takes some, which for one with nothing to do may be never.
#[allow(unsafe_code, reason = "the allocator has no safe call for this")]
pub fn give_memory_back() {
    // SAFETY: it looks at this thread's own heap, takes and returns nothing, and touches no memory that
    // is in use. Where another allocator is used that heap is empty.
    unsafe { libmimalloc_sys::mi_collect(false) };
}
