//! What a runtime counts, for metrics. Plain numbers that only ever grow.

/// Counted since the runtime was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Turns of the loop: one `io_uring_enter` or `epoll_wait` each.
    pub turns: u64,
    /// Accepted connections opened.
    pub accepts: u64,
    /// Accepts that failed for want of descriptors or memory, and connections that could not be
    /// opened.
    pub accepts_refused: u64,
    /// Connects begun.
    pub connects: u64,
    /// Receives that found no free buffer; nothing is lost by it.
    pub buffers_exhausted: u64,
    /// Received pieces that were copied because free buffers were scarce.
    pub buffers_copied: u64,
    /// Receives stopped because their connection did not consume.
    pub receives_paused: u64,
    /// Sends that took only a part.
    pub sends_short: u64,
    /// Turns in which completions had to wait for room in the completion queue.
    pub completions_overflowed: u64,
    /// Times that the submission queue was full within a turn.
    pub submissions_full: u64,
    /// Tasks that panicked.
    pub task_panics: u64,
    /// Tasks that exist now: the one number here that also shrinks.
    pub tasks: u64,
}
