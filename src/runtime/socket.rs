//! One connection as its stream and the driver see it: a state machine without system calls.
//!
//! ```text
//! receiving:  Idle -> Armed -> Idle                 the driver has it, and gives it back
//!                     Armed -> Stopping -> Idle     too much is unconsumed
//!                     Armed -> Starved -> Armed     no buffer was free (io_uring)
//! writing:    Open -> Closing -> Closed             `close_write`, then everything was sent
//! ```
//!
//! - The descriptor is closed when the last holder of the [`Socket`] lets go: the stream, and each
//!   operation that the kernel still has.
//! - No waker is called and no foreign code runs while the state is borrowed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;

use super::buffers::{Chunk, Lease, Pool, Spares};
use super::counters::Counters;
use super::slot::Key;
use super::wake::Waiter;

/// With this many bytes unsent, a writer has to wait.
pub(super) const HIGH_WATER_BYTES: usize = 128 * 1024;
/// Received pieces that wait for a reader who is not keeping up.
const PIECES_MAX: usize = 4;
/// Received pieces that may pile up within one turn, before any reader could have run.
const PIECES_PER_TURN_MAX: usize = 16;

/// A connection.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    /// Waits for bytes, or for the connect.
    pub(super) reader: Waiter,
    /// Waits for room, or for everything to be sent.
    pub(super) writer: Waiter,
    pub(super) state: RefCell<State>,
}

/// What changes about it.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Not consumed. The stream holds one more piece.
    received: Received,
    pub(super) receiving: Receiving,
    /// After what was received. Once set it stays.
    read_end: Option<ReadEnd>,
    /// Written and not handed to the kernel.
    pub(super) gathered: Vec<u8>,
    /// How much of `gathered` was sent (epoll). Invariant: at most its length.
    pub(super) gathered_sent: usize,
    /// Bytes of the send that the kernel has (io_uring); 0 when it has none.
    pub(super) in_flight: usize,
    pub(super) sending: Option<Key>,
    write_error: Option<Errno>,
    pub(super) writing: Writing,
    pub(super) connecting: Connecting,
    /// Is in the list of those to be flushed.
    pub(super) dirty: bool,
    /// The stream was dropped.
    pub(super) abandoned: bool,
    /// Bytes that come from now on are the last (epoll).
    pub(super) peer_closed: bool,
    /// Its registration (epoll).
    pub(super) registration: Option<Key>,
}

/// Received pieces, oldest first. Mostly there is at most one, and that takes no allocation.
#[derive(Debug, Default)]
struct Received {
    first: Option<Piece>,
    /// Invariant: empty when there is no first.
    rest: VecDeque<Piece>,
}

#[derive(Debug)]
struct Piece {
    chunk: Chunk,
    /// The turn in which it came.
    turn: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Nothing is under way.
    #[default]
    Idle,
    /// The driver will report.
    Armed(Key),
    /// As `Armed`, but it was asked to stop.
    Stopping,
    /// In the list of those that wait for a buffer.
    Starved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadEnd {
    Closed,
    Broken(Errno),
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    #[default]
    Open,
    /// Ends after what is buffered.
    Closing,
    Closed,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connecting {
    #[default]
    Connected,
    /// io_uring has an operation for it.
    Pending(Option<Key>),
    Failed(Errno),
}

/// What a reader gets.
#[derive(Debug)]
pub(super) enum Next {
    Chunk(Chunk),
    Closed,
    Nothing,
}

impl Socket {
    pub(super) fn new(fd: OwnedFd) -> Rc<Self> {
        Rc::new(Self {
            fd,
            reader: Waiter::default(),
            writer: Waiter::default(),
            state: RefCell::default(),
        })
    }
}

impl Received {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    fn push(&mut self, piece: Piece) {
        match &mut self.first {
            Some(_) => self.rest.push_back(piece),
            first => *first = Some(piece),
        }
    }

    fn pop(&mut self) -> Option<Piece> {
        let popped = self.first.take();
        if !self.rest.is_empty() {
            self.first = self.rest.pop_front();
        }
        popped
    }
}

impl State {
    /// Takes the oldest received piece.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        match (self.received.pop(), self.read_end) {
            (Some(piece), _) => Ok(Next::Chunk(piece.chunk)),
            (None, Some(ReadEnd::Closed)) => Ok(Next::Closed),
            (None, Some(ReadEnd::Broken(errno))) => Err(errno.into()),
            (None, None) => Ok(Next::Nothing),
        }
    }

    /// Stores what was received in `turn`.
    pub(super) fn received(&mut self, chunk: Chunk, turn: u64) {
        self.received.push(Piece { chunk, turn });
    }

    /// Whether the reader lets pieces pile up, so that receiving must pause.
    pub(super) fn overfull(&self, turn: u64) -> bool {
        let lagging = self.received.first.as_ref().is_some_and(|piece| piece.turn != turn);
        self.received.len() >= if lagging { PIECES_MAX } else { PIECES_PER_TURN_MAX }
    }

    /// Whether more should be received.
    pub(super) fn wants_more(&self) -> bool {
        self.received.len() < PIECES_MAX
            && self.read_end.is_none()
            && !self.abandoned
            && self.connecting == Connecting::Connected
    }

    /// Whether the reader has nothing left, so that something should be received on the spot.
    pub(super) fn wants_at_once(&self) -> bool {
        self.received.first.is_none() && self.wants_more()
    }

    /// The peer closed its write half.
    pub(super) fn end(&mut self) {
        self.read_end.get_or_insert(ReadEnd::Closed);
    }

    /// Receiving failed, and with it the connection.
    pub(super) fn break_read(&mut self, errno: Errno) {
        self.read_end.get_or_insert(ReadEnd::Broken(errno));
        self.break_write(errno);
    }

    /// Sending failed: what was written is lost. What was received can still be read.
    pub(super) fn break_write(&mut self, errno: Errno) {
        self.write_error.get_or_insert(errno);
        self.gathered.clear();
        self.gathered_sent = 0;
    }

    /// Bytes that were received and not handed out.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let pieces = self.received.first.iter().chain(&self.received.rest);
        pieces.map(|piece| piece.chunk.bytes().len()).sum()
    }

    /// Bytes that were written and that the kernel has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.gathered.len() - self.gathered_sent + self.in_flight
    }

    /// Whether there is something for the driver to do on the write side.
    pub(super) fn write_pending(&self) -> bool {
        self.write_error.is_none()
            && (self.gathered.len() > self.gathered_sent || self.writing == Writing::Closing)
    }

    /// # Errors
    /// Why nothing can be written any more.
    pub(super) fn writable(&self) -> io::Result<()> {
        match (self.write_error, self.writing) {
            (Some(errno), _) => Err(errno.into()),
            (None, Writing::Open) => Ok(()),
            (None, Writing::Closing | Writing::Closed) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// # Errors
    /// Why what was written was lost.
    pub(super) fn sendable(&self) -> io::Result<()> {
        self.write_error.map_or(Ok(()), |errno| Err(errno.into()))
    }

    /// Takes what was gathered, to send it.
    pub(super) fn take_gathered(&mut self) -> Vec<u8> {
        self.gathered_sent = 0;
        std::mem::take(&mut self.gathered)
    }

    /// The stream is gone: gives back all memory.
    pub(super) fn abandon(&mut self, spares: &Spares) {
        self.abandoned = true;
        self.received = Received::default();
        spares.put(self.take_gathered());
    }
}

/// What all connections of a thread share.
#[derive(Debug)]
pub(super) struct Supplies {
    pub(super) buffers: Rc<Pool>,
    pub(super) spares: Spares,
    /// Sockets to be flushed at the end of the turn, each once.
    dirty: RefCell<Vec<Rc<Socket>>>,
    counters: Cell<Counters>,
}

impl Supplies {
    pub(super) fn new(buffers: Rc<Pool>) -> Rc<Self> {
        Rc::new(Self {
            buffers,
            spares: Spares::default(),
            dirty: RefCell::default(),
            counters: Cell::default(),
        })
    }

    /// Has `socket` flushed at the end of the turn.
    pub(super) fn mark_dirty(&self, socket: &Rc<Socket>, state: &mut State) {
        if !std::mem::replace(&mut state.dirty, true) {
            self.dirty.borrow_mut().push(Rc::clone(socket));
        }
    }

    /// Takes the sockets that are to be flushed; `batch` takes their place.
    pub(super) fn swap_dirty(&self, batch: &mut Vec<Rc<Socket>>) {
        std::mem::swap(&mut *self.dirty.borrow_mut(), batch);
    }

    /// Decides how received bytes are held, and counts.
    pub(super) fn keep(&self, lease: Lease) -> Chunk {
        let chunk = self.buffers.keep(lease);
        if matches!(chunk, Chunk::Copied { .. }) {
            self.count(|counters| counters.buffers_copied += 1);
        }
        chunk
    }

    /// A receive found no buffer. Counted unless there were more.
    pub(super) fn run_out(&self) {
        if self.buffers.ran_out() {
            self.count(|counters| counters.buffers_exhausted += 1);
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters.get()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }
}
