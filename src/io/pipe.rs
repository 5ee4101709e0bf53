//! Two streams joined in memory, for tests: what one end writes, the other reads.
//!
//! - Same contract as a socket: bytes are lent in chunks, the send buffer has a high-water mark,
//!   each half closes on its own, dropping one end closes both halves.
//! - [`Chunking`] decides how large a chunk the reader is lent, so that parsers meet every split.
//! - Bytes move at once; there is no latency and no loss.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{Probed, Probes, Stream, Take};

/// Bytes that one direction holds before its writer is told to wait.
pub const HIGH_WATER_BYTES: usize = 64 * 1024;

/// How many bytes a reader is lent at a time.
#[derive(Debug, Clone, Copy)]
pub enum Chunking {
    /// Every byte alone.
    Bytes,
    /// At most this many, not zero.
    UpTo(usize),
}

impl Chunking {
    fn limit(self) -> usize {
        match self {
            Self::Bytes => 1,
            Self::UpTo(limit) => limit,
        }
    }
}

/// One end of a pipe made by [`pair`].
#[derive(Debug)]
pub struct End {
    incoming: Rc<RefCell<Half>>,
    outgoing: Rc<RefCell<Half>>,
    /// The chunk on loan. Invariant: `lent_used <= lent.len()`.
    lent: Vec<u8>,
    lent_used: usize,
    chunking: Chunking,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    bytes: VecDeque<u8>,
    /// The writer closed: what is in `bytes` is the rest.
    closed: bool,
    /// The reader is gone: writing fails.
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Makes a pipe whose two ends lend chunks as `chunking` says.
#[must_use]
pub fn pair(chunking: Chunking) -> (End, End) {
    let (left, right) = (Rc::default(), Rc::default());
    (End::new(Rc::clone(&left), Rc::clone(&right), chunking), End::new(right, left, chunking))
}

impl End {
    fn new(incoming: Rc<RefCell<Half>>, outgoing: Rc<RefCell<Half>>, chunking: Chunking) -> Self {
        Self { incoming, outgoing, lent: Vec::new(), lent_used: 0, chunking }
    }
}

impl Probed for End {
    fn local(&self) -> Option<SocketAddr> {
        None
    }

    fn probe(&self, _: Probes) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for End {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut [u8]>> {
        if self.lent_used == self.lent.len() {
            let mut half = self.incoming.borrow_mut();
            if half.bytes.is_empty() && !half.closed {
                half.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let n = half.bytes.len().min(self.chunking.limit());
            self.lent = half.bytes.drain(..n).collect();
            self.lent_used = 0;
            wake(&mut half.writer);
        }
        Poll::Ready(Ok(&mut self.lent[self.lent_used..]))
    }

    fn consume(&mut self, n: usize) {
        self.lent_used += n;
        assert!(self.lent_used <= self.lent.len(), "consumed more than was lent");
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.borrow_mut().poll_below(HIGH_WATER_BYTES, cx)
    }

    fn write(&mut self, bytes: &[io::IoSlice<'_>]) -> io::Result<()> {
        let mut half = self.outgoing.borrow_mut();
        if half.broken || half.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        half.bytes.extend(bytes.iter().flat_map(|slice| slice.iter()));
        wake(&mut half.reader);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.borrow_mut().poll_below(1, cx)
    }

    fn close_write(&mut self) {
        let mut half = self.outgoing.borrow_mut();
        half.closed = true;
        wake(&mut half.reader);
    }
}

impl Take for End {
    type Piece = Bytes;

    fn take(&mut self, n: usize) -> Bytes {
        let piece = Bytes::copy_from_slice(&self.lent[self.lent_used..][..n]);
        self.consume(n);
        piece
    }
}

impl Half {
    /// Ready when fewer than `mark` bytes wait for the reader.
    fn poll_below(&mut self, mark: usize, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.bytes.len() < mark {
            return Poll::Ready(Ok(()));
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close_write();
        let mut half = self.incoming.borrow_mut();
        half.broken = true;
        wake(&mut half.writer);
    }
}

fn wake(waiting: &mut Option<Waker>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn read_all(end: &mut End) -> Vec<u8> {
        let mut all = Vec::new();
        while let Poll::Ready(Ok(bytes)) = end.poll_fill(&mut context()) {
            if bytes.is_empty() {
                break;
            }
            let n = bytes.len();
            all.extend_from_slice(bytes);
            end.consume(n);
        }
        all
    }

    #[test]
    fn bytes_arrive_in_order_whatever_the_chunking() {
        for chunking in [Chunking::Bytes, Chunking::UpTo(3), Chunking::UpTo(1024)] {
            let (mut left, mut right) = pair(chunking);
            left.write(&[IoSlice::new(b"hello "), IoSlice::new(b"world")]).unwrap();
            assert_eq!(read_all(&mut right), b"hello world");
        }
    }

    #[test]
    fn unconsumed_bytes_are_lent_again() {
        let (mut left, mut right) = pair(Chunking::UpTo(4));
        left.append(|buffer| buffer.extend_from_slice(b"abcdef")).unwrap();
        assert!(
            matches!(right.poll_fill(&mut context()), Poll::Ready(Ok(lent)) if lent == b"abcd")
        );
        right.consume(1);
        assert!(matches!(right.poll_fill(&mut context()), Poll::Ready(Ok(lent)) if lent == b"bcd"));
    }

    #[test]
    fn halves_close_on_their_own() {
        let (mut left, mut right) = pair(Chunking::UpTo(16));
        left.close_write();
        assert!(matches!(right.poll_fill(&mut context()), Poll::Ready(Ok(lent)) if lent == b""));
        right.write(&[IoSlice::new(b"still open")]).unwrap();
        assert_eq!(read_all(&mut left), b"still open");
        assert!(left.write(&[IoSlice::new(b"no")]).is_err());
    }

    #[test]
    fn a_full_pipe_makes_its_writer_wait() {
        let (mut left, mut right) = pair(Chunking::UpTo(HIGH_WATER_BYTES));
        left.write(&[IoSlice::new(&[0; HIGH_WATER_BYTES])]).unwrap();
        assert!(left.poll_write_ready(&mut context()).is_pending());
        assert!(left.poll_flush(&mut context()).is_pending());
        read_all(&mut right);
        assert!(left.poll_write_ready(&mut context()).is_ready());
        assert!(left.poll_flush(&mut context()).is_ready());
    }

    #[test]
    fn a_dropped_reader_breaks_the_writer() {
        let (mut left, right) = pair(Chunking::Bytes);
        drop(right);
        assert!(left.write(&[IoSlice::new(b"x")]).is_err());
        assert!(matches!(left.poll_fill(&mut context()), Poll::Ready(Ok(lent)) if lent == b""));
    }
}
