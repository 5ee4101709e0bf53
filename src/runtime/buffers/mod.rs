//! Memory for received bytes, lent out buffer by buffer, and spare send buffers.
//!
//! - A buffer is in exactly one of three hands: free, the kernel's (published in the buffer ring)
//!   or a [`Lease`]'s. Dropping the lease gives the buffer back.
//! - The memory lives as long as the pool or any lease.
//! - When most buffers are out on lease, [`Pool::keep`] copies instead, so that slow consumers
//!   cannot starve the rest of the thread of buffers.
//!
//! It does not know sockets, and how many bytes one connection may hold is not decided here.

mod ring;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use self::ring::Ring;

/// The kernel wants the buffer ring to begin on a page: the largest of any kernel (arm64).
const PAGE_BYTES: usize = 64 * 1024;
/// Spare send buffers that are kept, all together: two for each of 120 requests of one turn.
const SPARES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The largest that is.
const SPARE_BYTES_MAX: usize = 192 * 1024;
/// A fresh send buffer: a TLS record, or a small response with all of its fields.
const SPARE_BYTES: usize = 17 * 1024;

/// Equally large receive buffers in one piece of memory.
#[derive(Debug)]
pub(super) struct Pool {
    memory: Memory,
    buffer_bytes: usize,
    count: u16,
    /// Buffers on lease. Invariant: at most `count`.
    leased: Cell<u16>,
    /// Those that nobody holds. The last one returned is used first, while it is in the cache.
    free: RefCell<Vec<u16>>,
    /// Where the kernel takes them from, if it does.
    ring: Option<Ring>,
    /// When buffers were last offered, none stayed behind.
    all_offered: Cell<bool>,
}

impl Pool {
    /// A pool of which we take the buffers ourselves.
    pub(super) fn stack(count: u16, buffer_bytes: u32) -> Rc<Self> {
        Self::new(count, buffer_bytes, None)
    }

    /// A pool of which the kernel takes those that [`publish`](Self::publish) offers it. `count` is
    /// a power of two.
    pub(super) fn ring(count: u16, buffer_bytes: u32) -> Rc<Self> {
        Self::new(count, buffer_bytes, Some(Ring::new(count)))
    }

    fn new(count: u16, buffer_bytes: u32, ring: Option<Ring>) -> Rc<Self> {
        let buffer_bytes = buffer_bytes as usize;
        let memory = Memory::new(usize::from(count) * buffer_bytes);
        let free = RefCell::new((0..count).rev().collect());
        let (leased, all_offered) = Default::default();
        Rc::new(Self { memory, buffer_bytes, count, leased, free, ring, all_offered })
    }

    /// The address of the buffer ring, for its registration.
    pub(super) fn ring_address(&self) -> Option<u64> {
        self.ring.as_ref().map(Ring::address)
    }

    /// How many buffers there are.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// How many buffers are not on lease.
    pub(super) fn free(&self) -> u16 {
        self.count - self.leased.get()
    }

    /// Offers the kernel what it may fill in the next turn; returns how many buffers those are.
    #[allow(clippy::cast_possible_truncation, reason = "buffer_bytes was made of a u32")]
    pub(super) fn publish(&self) -> u16 {
        let Some(ring) = &self.ring else { return 0 };
        let mut free = self.free.borrow_mut();
        for _ in 0..ring.wanted() {
            let Some(id) = free.pop() else { break };
            ring.publish(id, self.start(id), self.buffer_bytes as u32);
        }
        self.all_offered.set(free.is_empty());
        ring.published()
    }

    /// A receive found no buffer in the ring. Returns whether every free one had been offered.
    pub(super) fn ran_out(&self) -> bool {
        self.ring.iter().for_each(Ring::ran_out);
        self.all_offered.get()
    }

    /// Takes a free buffer. `None` when there is none.
    pub(super) fn take(self: &Rc<Self>) -> Option<Lease> {
        let id = self.free.borrow_mut().pop()?;
        self.leased.set(self.leased.get() + 1);
        Some(Lease { pool: Rc::clone(self), id, start: 0, end: self.buffer_bytes })
    }

    /// Takes the buffer that the kernel filled with `len` bytes.
    ///
    /// # Safety
    /// A completion of a receive from this pool's ring named the buffer `id`, and each completion
    /// is claimed once: by it the kernel has handed the buffer over.
    pub(super) unsafe fn claim(self: &Rc<Self>, id: u16, len: usize) -> Lease {
        assert!(id < self.count && len <= self.buffer_bytes, "the kernel chose one of our buffers");
        self.ring.iter().for_each(|ring| ring.claimed(len));
        self.leased.set(self.leased.get() + 1);
        Lease { pool: Rc::clone(self), id, start: 0, end: len }
    }

    /// Decides how the bytes of `lease` are held until they are consumed: where they lie, or, when
    /// buffers are scarce, in memory of their own.
    pub(super) fn keep(&self, lease: Lease) -> Chunk {
        let reserve = (self.count / 4).max(1);
        let scarce = self.free() < reserve;
        if scarce { Chunk::copy(lease.bytes()) } else { Chunk::Lent(lease) }
    }

    fn start(&self, id: u16) -> NonNull<u8> {
        let offset = usize::from(id) * self.buffer_bytes;
        assert!(id < self.count);
        // SAFETY: `memory` is `count * buffer_bytes` long and `id < count`, so the offset is in it.
        unsafe { self.memory.start.add(offset) }
    }
}

/// The right to one buffer, and the range of it that holds bytes.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Rc<Pool>,
    id: u16,
    /// Invariant: `start <= end <= pool.buffer_bytes`
    start: usize,
    end: usize,
}

impl Lease {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `start <= end <= buffer_bytes`, so both lie in the buffer.
        let start = unsafe { self.pool.start(self.id).add(self.start) };
        // SAFETY: the kernel was done with this memory when the lease was made and gets it again
        // only when the lease is dropped; it was zeroed at first, so it is initialised.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.end - self.start) }
    }

    /// The bytes, to be overwritten.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        let start = unsafe { self.pool.start(self.id).add(self.start) };
        // SAFETY: as in `bytes`; and a buffer has one lease, of which this is the only borrow.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.end - self.start) }
    }

    /// Forgets what lies after the first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start + len);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.leased.set(self.pool.leased.get() - 1);
        self.pool.free.borrow_mut().push(self.id);
    }
}

/// Received bytes until they are consumed. Never empty while it waits.
#[derive(Debug)]
pub(super) enum Chunk {
    /// In a buffer of the pool.
    Lent(Lease),
    /// Copied; those from `start` on are left.
    Copied { bytes: Box<[u8]>, start: usize },
}

impl Chunk {
    pub(super) fn copy(bytes: &[u8]) -> Self {
        Self::Copied { bytes: bytes.into(), start: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Lent(lease) => lease.bytes(),
            Self::Copied { bytes, start } => &bytes[*start..],
        }
    }

    /// The bytes, to be overwritten.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Lent(lease) => lease.bytes_mut(),
            Self::Copied { bytes, start } => &mut bytes[*start..],
        }
    }

    /// Gives the first `n` bytes back.
    ///
    /// # Panics
    /// When there are fewer.
    pub(super) fn consume(&mut self, n: usize) {
        assert!(n <= self.bytes().len(), "consumed more than was lent");
        match self {
            Self::Lent(lease) => lease.start += n,
            Self::Copied { start, .. } => *start += n,
        }
    }
}

/// Empty send buffers. The one that came back last is taken first, while it is in the cache.
#[derive(Debug, Default)]
pub(super) struct Spares {
    buffers: RefCell<Vec<Vec<u8>>>,
    /// The sum of their capacities. Invariant: at most `SPARES_BYTES_MAX`.
    bytes: Cell<usize>,
}

impl Spares {
    pub(super) fn take(&self) -> Vec<u8> {
        let spare = self.buffers.borrow_mut().pop();
        let Some(spare) = spare else { return Vec::with_capacity(SPARE_BYTES) };
        self.bytes.set(self.bytes.get() - spare.capacity());
        spare
    }

    pub(super) fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let bytes = self.bytes.get() + buffer.capacity();
        if bytes <= SPARES_BYTES_MAX && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
            self.bytes.set(bytes);
            self.buffers.borrow_mut().push(buffer);
        }
    }
}

/// Zeroed, page-aligned memory. The kernel may write to it at any time, so nobody may refer to it
/// as a whole; only parts that the kernel is done with.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("less than isize::MAX");
        assert_ne!(layout.size(), 0, "a pool has buffers");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this layout. The kernel is done with it: an
        // operation that may write to it keeps the pool alive until its final completion.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_one_holder() {
        let pool = Pool::stack(2, 16);
        let (mut one, two) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        one.bytes_mut().fill(7);
        assert_eq!(two.bytes(), [0; 16], "buffers do not overlap");
        drop(one);
        assert_eq!(pool.take().unwrap().bytes(), [7; 16], "the last returned is taken first");
    }

    #[test]
    fn the_buffer_ring_begins_on_a_page_however_large_pages_are() {
        let rings: Vec<_> = (0..8).map(|_| Pool::ring(2, 16)).collect();
        for ring in rings {
            assert_eq!(ring.ring_address().unwrap() % (64 * 1024), 0);
        }
    }

    #[test]
    fn the_kernel_is_offered_what_was_returned_last() {
        let pool = Pool::ring(16, 16);
        let offered = pool.publish();
        assert!(offered < 16, "not all at once");
        // SAFETY: no kernel knows this ring; the test stands in for it.
        let lease = unsafe { pool.claim(0, 16) };
        let returned = lease.id;
        drop(lease);
        assert_eq!(pool.take().unwrap().id, returned);
        assert_eq!(pool.publish(), offered, "another takes its place");
    }

    #[test]
    fn a_lease_outlives_its_pool() {
        let pool = Pool::stack(1, 16);
        let mut lease = pool.take().unwrap();
        drop(pool);
        lease.bytes_mut()[0] = 1;
        lease.truncate(1);
        assert_eq!(lease.bytes(), [1]);
    }

    #[test]
    fn scarce_buffers_are_given_back_by_copying() {
        let pool = Pool::stack(4, 16);
        let chunks: Vec<_> =
            std::iter::repeat_with(|| pool.take()).take(9).map(|l| pool.keep(l.unwrap())).collect();
        assert!(chunks.iter().all(|chunk| chunk.bytes().len() == 16));
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn a_chunk_is_consumed_from_its_front() {
        let mut chunk = Chunk::copy(b"abc");
        chunk.consume(2);
        assert_eq!(chunk.bytes(), b"c");
        let overrun = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| chunk.consume(2)));
        assert!(overrun.is_err());
    }

    #[test]
    fn huge_send_buffers_are_not_kept() {
        let spares = Spares::default();
        spares.put(Vec::with_capacity(SPARE_BYTES_MAX + 1));
        spares.put(Vec::new());
        assert!(spares.buffers.borrow().is_empty());
    }

    #[test]
    fn send_buffers_are_kept_up_to_a_sum() {
        let spares = Spares::default();
        let kept = || spares.buffers.borrow().iter().map(Vec::capacity).sum::<usize>();
        let used: Vec<_> = (0..300).map(|_| spares.take()).collect();
        used.into_iter().for_each(|buffer| spares.put(buffer));
        assert!(kept() <= SPARES_BYTES_MAX && kept() > SPARES_BYTES_MAX - 2 * SPARE_BYTES);
        assert_eq!(kept(), spares.bytes.get());
        spares.take();
        assert_eq!(kept(), spares.bytes.get());
        spares.put(Vec::with_capacity(SPARE_BYTES_MAX));
        assert!(kept() <= SPARES_BYTES_MAX);
    }
}
