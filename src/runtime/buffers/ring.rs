//! The buffer ring, from which the kernel takes the buffers that receives fill (io_uring).
//!
//! - The kernel takes buffers in the order in which they were offered, so all that are offered are
//!   touched one after the other. Therefore no more are than the cache holds when they are full:
//!   a buffer that was just given back is filled again while it is still there.
//! - How many those are follows from how full the last ones were. Requests fill a fraction of a
//!   buffer, and then all may be offered; bodies fill whole ones.
//!
//! Which buffers are free is not known here.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::Memory;

/// What the buffers on offer should hold when they are full. A second-level cache holds several
/// times as much, and needs to: in the same turn it is sealed or opened, gathered and sent.
const TURN_BYTES: usize = 128 * 1024;
/// The fewest buffers that are offered.
const WINDOW_MIN: u16 = 4;

/// Entries shared with the kernel, one for each buffer; the first also holds the tail.
#[derive(Debug)]
pub(super) struct Ring {
    memory: Memory,
    count: u16,
    tail: Cell<u16>,
    /// Buffers that the kernel may fill. Invariant: at most `count`.
    published: Cell<u16>,
    /// How many that should be at the beginning of a turn. Invariant: 1 to `count`.
    window: Cell<u16>,
    turn: Cell<Turn>,
}

/// What was received since buffers were last offered.
#[derive(Debug, Default, Clone, Copy)]
struct Turn {
    buffers: u16,
    bytes: usize,
    ran_out: bool,
}

impl Ring {
    pub(super) fn new(count: u16) -> Self {
        Self {
            memory: Memory::new(usize::from(count) * size_of::<BufRingEntry>()),
            count,
            tail: Cell::new(0),
            published: Cell::new(0),
            window: Cell::new(WINDOW_MIN.min(count)),
            turn: Cell::default(),
        }
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.start.as_ptr() as u64
    }

    pub(super) fn published(&self) -> u16 {
        self.published.get()
    }

    /// How many more buffers should be offered for the turn that begins.
    pub(super) fn wanted(&self) -> u16 {
        let window = self.turn.take().fit(self.window.get());
        self.window.set(window.clamp(WINDOW_MIN.min(self.count), self.count));
        self.window.get().saturating_sub(self.published.get())
    }

    /// The kernel has filled a buffer with `len` bytes.
    pub(super) fn claimed(&self, len: usize) {
        self.published.set(self.published.get() - 1);
        let turn = self.turn.get();
        self.turn.set(Turn { buffers: turn.buffers + 1, bytes: turn.bytes + len, ..turn });
    }

    /// A receive found no buffer.
    pub(super) fn ran_out(&self) {
        self.turn.set(Turn { ran_out: true, ..self.turn.get() });
    }

    /// Offers buffer `id`, which begins at `start`, to the kernel.
    pub(super) fn publish(&self, id: u16, start: NonNull<u8>, bytes: u32) {
        let tail = self.tail.get();
        let base = self.memory.start.cast::<BufRingEntry>();
        // SAFETY: the ring has `count` entries, and the masked tail is less than that.
        let entry = unsafe { base.add(usize::from(tail & (self.count - 1))) };
        // SAFETY: the entry is zeroed memory of this type. The kernel reads it only after the tail
        // has passed it (below), and it is free, because at most `count` buffers are published.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(start.as_ptr() as u64);
        entry.set_len(bytes);
        entry.set_bid(id);
        self.tail.set(tail.wrapping_add(1));
        self.published.set(self.published.get() + 1);
        // SAFETY: `base` is the first entry of a page-aligned ring; its last field is the tail.
        let shared = unsafe { BufRingEntry::tail(base.as_ptr()) };
        // SAFETY: the tail is aligned, outlives this call, and only ever accessed atomically.
        let shared = unsafe { AtomicU16::from_ptr(shared.cast_mut()) };
        shared.store(self.tail.get(), Ordering::Release);
    }
}

impl Turn {
    /// A better window after this turn with `window`: less if all of it, filled like this, were too
    /// much for a turn, more if it ran out well before that.
    fn fit(self, window: u16) -> u16 {
        if self.buffers == 0 {
            return window;
        }
        let full = self.bytes / usize::from(self.buffers) * usize::from(window);
        if full > TURN_BYTES {
            window - (window / 8).max(1)
        } else if self.ran_out && full <= TURN_BYTES / 2 {
            window.saturating_mul(2)
        } else {
            window
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: usize = 32 * 1024;

    /// The window after `turns` turns that each took what was on offer and ran out, with `len`
    /// bytes in each buffer.
    fn after(ring: &Ring, turns: usize, len: usize) -> u16 {
        for _ in 0..turns {
            ring.published.set(ring.published() + ring.wanted());
            (0..ring.published()).for_each(|_| ring.claimed(len));
            ring.ran_out();
        }
        ring.wanted()
    }

    #[test]
    fn as_many_are_offered_as_fit_when_they_are_full() {
        let ring = Ring::new(256);
        assert_eq!(after(&ring, 100, 100), 256, "requests");
        let window = after(&ring, 100, 4 * 1024);
        assert!((16..=32).contains(&window), "small bodies: {window}");
        assert_eq!(after(&ring, 100, FULL), WINDOW_MIN, "bodies");
        assert_eq!(after(&ring, 100, 100), 256, "requests again");
    }

    #[test]
    fn the_window_grows_only_when_it_was_too_small() {
        let ring = Ring::new(256);
        for _ in 0..100 {
            ring.published.set(ring.published() + ring.wanted());
            ring.claimed(100);
        }
        assert_eq!(ring.published() + ring.wanted(), WINDOW_MIN);
    }

    #[test]
    fn a_small_pool_is_offered_whole() {
        let ring = Ring::new(2);
        assert_eq!(after(&ring, 10, FULL), 2);
        assert_eq!(after(&ring, 10, 1), 2);
    }
}
