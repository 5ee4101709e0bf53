//! The process's memory: of which pages it is made, and how freed memory is given back.
//!
//! Deliberately not here: the allocator itself, which is the program's choice.

/// Whoever sets mimalloc's own variable decides about huge pages, either way.
const ASKED_FOR: &str = "MIMALLOC_ALLOW_THP";

/// Forbids transparent huge pages to this process, unless the environment speaks of them: the
/// allocator asks for them, and one byte in use then takes 2 MB. `tuning/huge-pages.md` has what
/// was measured. To be called before there is much memory; has no effect on what is there.
pub fn forbid_huge_pages() {
    if std::env::var_os(ASKED_FOR).is_none() {
        // A kernel without them has nothing to forbid.
        let _ = rustix::thread::disable_transparent_huge_pages(true);
    }
}

/// Gives the system back what the calling thread has freed. The allocator would do that itself in
/// the course of further work, so it is for a thread that has nothing more to do for now. Takes
/// some milliseconds.
pub fn give_back_memory() {
    // SAFETY: it takes no pointer and leaves all that is allocated where it is; any thread may call
    // it at any time, also one whose global allocator is another.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
