//! Memory that was freed and that the allocator still has.

/// Gives the system back what the calling thread has freed. The allocator would do that itself in
/// the course of further work, so it is for a thread that has nothing more to do for now. Takes
/// some milliseconds.
pub fn give_back_memory() {
    // SAFETY: it takes no pointer and leaves all that is allocated where it is; any thread may call
    // it at any time, also one whose global allocator is another.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
