//! The allocator's calls that have no safe form.

/// Gives back what other threads have freed of the memory that this one has taken. The allocator leaves that to the
/// next time the thread takes some, which for one with nothing to do may be never.
#[allow(unsafe_code, reason = "the allocator has no safe call for this")]
pub fn give_back() {
    // SAFETY: it looks at this thread's own heap, takes and returns nothing, and touches no memory that is in use.
    // Where another allocator is used that heap is empty.
    unsafe { libmimalloc_sys::mi_collect(false) };
}
