//! How much CPU time the thread has used.
//!
//! By libc and not by rustix, which looks for the kernel's fast calls in a way that valgrind does
//! not survive.

use std::io;
use std::time::Duration;

/// The CPU time that this thread has used so far, the kernel's work for it included.
pub(super) fn used() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time`, which is of its type, and keeps no reference.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "a thread has a CPU clock: {}", io::Error::last_os_error());
    let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
    seconds + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}
