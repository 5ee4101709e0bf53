//! hyper's view of our streams, tasks and clock.
//!
//! - [`Adapted`] copies lent bytes into hyper's buffer, as much as is there and fits: the one copy
//!   that hyper's interface forces.
//! - A write is taken whole, up to [`WRITE_BYTES_MAX`], or not at all; a flush is done as soon as
//!   the bytes are in the send buffer, which leaves at the end of the loop turn.
//! - [`Tasks`] gives hyper the tasks of this thread, [`Timer`] its clock. Only pings need that: all
//!   other time is kept by us.
//!
//! Both directions use it: HTTP/2 towards endpoints here, everything downstream in `http`.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Executor, Read, ReadBufCursor, Write};

use crate::io::{Clock, Sleep, Spawn, Stream};

/// Bytes that one write takes at most, so that a send buffer overshoots its mark by no more.
pub(crate) const WRITE_BYTES_MAX: usize = 64 * 1024;

/// A stream with hyper's traits.
#[derive(Debug)]
pub(crate) struct Adapted<S: Stream>(S);

impl<S: Stream> Adapted<S> {
    /// Wraps `stream`, whose unread bytes hyper will read.
    pub(crate) fn new(stream: S) -> Self {
        Self(stream)
    }

    /// The stream; bytes that hyper read are gone from it.
    pub(crate) fn into_inner(self) -> S {
        self.0
    }
}

/// The stream is only ever used by `&mut`, never pinned.
impl<S: Stream> Unpin for Adapted<S> {}

impl<S: Stream> Read for Adapted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let lent = ready!(self.0.poll_fill(cx))?;
        let n = lent.len().min(buffer.remaining());
        buffer.put_slice(&lent[..n]);
        self.0.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> Write for Adapted<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.0.poll_write_ready(cx))?;
        Poll::Ready(write_some(&mut self.0, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.close_write();
        self.0.poll_flush(cx)
    }
}

/// Writes the leading slices that fit whole, or the first bytes of a slice that is too long alone.
fn write_some(stream: &mut impl Stream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // An empty slice before a long one must not make this a write of nothing, which hyper takes for
    // an error.
    let Some(first) = slices.iter().position(|slice| !slice.is_empty()) else { return Ok(0) };
    let slices = &slices[first..];
    let (count, bytes) = leading(slices);
    if count > 0 {
        stream.write(&slices[..count])?;
        return Ok(bytes);
    }
    stream.write(&[IoSlice::new(&slices[0][..WRITE_BYTES_MAX])])?;
    Ok(WRITE_BYTES_MAX)
}

/// How many leading slices fit into one write, and their bytes.
fn leading(slices: &[IoSlice<'_>]) -> (usize, usize) {
    let mut bytes = 0;
    for (index, slice) in slices.iter().enumerate() {
        if bytes + slice.len() > WRITE_BYTES_MAX {
            return (index, bytes);
        }
        bytes += slice.len();
    }
    (slices.len(), bytes)
}

/// hyper's executor over the tasks of this thread.
#[derive(Debug, Clone)]
pub(crate) struct Tasks<N>(pub(crate) N);

/// A handle, never pinned; hyper asks for it.
impl<N> Unpin for Tasks<N> {}

impl<N: Spawn, F: Future<Output = ()> + 'static> Executor<F> for Tasks<N> {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// hyper's timer over the clock of this thread.
#[derive(Debug)]
pub(crate) struct Timer<C>(pub(crate) C);

impl<C: Clock + Send + Sync> hyper::rt::Timer for Timer<C> {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Asleep(self.0.sleep(duration)))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Asleep(self.0.sleep_until(deadline)))
    }

    fn now(&self) -> Instant {
        self.0.now()
    }
}

/// One of our sleeps as one of hyper's.
struct Asleep<S>(S);

impl<S: Sleep> Future for Asleep<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<S: Sleep> hyper::rt::Sleep for Asleep<S> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::pipe::{self, Chunking, End, HIGH_WATER_BYTES};
    use hyper::rt::ReadBuf;
    use std::task::Waker;

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn read(stream: &mut Adapted<End>, room: usize) -> Poll<Vec<u8>> {
        let mut space = vec![0; room];
        let mut buffer = ReadBuf::new(&mut space);
        ready!(Pin::new(stream).poll_read(&mut context(), buffer.unfilled())).unwrap();
        Poll::Ready(buffer.filled().to_vec())
    }

    fn drain(end: &mut End) -> Vec<u8> {
        let mut all = Vec::new();
        while let Poll::Ready(Ok(lent)) = end.poll_fill(&mut context()) {
            let n = lent.len();
            all.extend_from_slice(lent);
            end.consume(n);
            if n == 0 {
                break;
            }
        }
        all
    }

    #[test]
    fn a_read_takes_what_is_there_and_fits() {
        let (mut peer, end) = pipe::pair(Chunking::UpTo(6));
        let mut stream = Adapted::new(end);
        assert!(read(&mut stream, 4).is_pending());
        peer.write(&[IoSlice::new(b"abcdefgh")]).unwrap();
        assert_eq!(read(&mut stream, 4), Poll::Ready(b"abcd".to_vec()));
        assert_eq!(read(&mut stream, 4), Poll::Ready(b"ef".to_vec()), "the rest of what was lent");
        assert_eq!(read(&mut stream, 4), Poll::Ready(b"gh".to_vec()));
        assert!(read(&mut stream, 4).is_pending());
        peer.close_write();
        assert_eq!(read(&mut stream, 4), Poll::Ready(Vec::new()), "the end");
    }

    #[test]
    fn unread_bytes_stay_in_the_stream() {
        let (mut peer, end) = pipe::pair(Chunking::UpTo(6));
        let mut stream = Adapted::new(end);
        peer.write(&[IoSlice::new(b"abcdef")]).unwrap();
        assert_eq!(read(&mut stream, 4), Poll::Ready(b"abcd".to_vec()));
        assert_eq!(drain(&mut stream.into_inner()), b"ef");
    }

    #[test]
    fn slices_are_written_whole_up_to_the_limit() {
        let (mut peer, end) = pipe::pair(Chunking::UpTo(usize::MAX));
        let mut stream = Adapted::new(end);
        let long = vec![7; WRITE_BYTES_MAX + 1];
        let cases: [(&[&[u8]], usize); 6] = [
            (&[b"ab", b"", b"cd"], 4),
            (&[], 0),
            (&[b"", b""], 0),
            (&[b"ab", &long], 2),
            (&[b"", &long], WRITE_BYTES_MAX),
            (&[&long[..WRITE_BYTES_MAX], b"x"], WRITE_BYTES_MAX),
        ];
        for (slices, expected) in cases {
            let all = slices.concat();
            let slices: Vec<_> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
            let written = Pin::new(&mut stream).poll_write_vectored(&mut context(), &slices);
            assert!(matches!(written, Poll::Ready(Ok(n)) if n == expected), "{written:?}");
            assert_eq!(drain(&mut peer), &all[..expected]);
        }
    }

    #[test]
    fn a_write_waits_for_room_and_then_takes_bytes() {
        let (mut peer, end) = pipe::pair(Chunking::UpTo(usize::MAX));
        let mut stream = Adapted::new(end);
        let bytes = [1; HIGH_WATER_BYTES];
        let first = Pin::new(&mut stream).poll_write(&mut context(), &bytes);
        assert!(matches!(first, Poll::Ready(Ok(HIGH_WATER_BYTES))));
        assert!(Pin::new(&mut stream).poll_write(&mut context(), b"x").is_pending());
        assert!(Pin::new(&mut stream).poll_flush(&mut context()).is_ready(), "never waits");
        assert_eq!(drain(&mut peer).len(), HIGH_WATER_BYTES);
        let second = Pin::new(&mut stream).poll_write(&mut context(), b"x");
        assert!(matches!(second, Poll::Ready(Ok(1))));
    }

    #[test]
    fn shutdown_closes_the_write_half_after_what_was_written() {
        let (mut peer, end) = pipe::pair(Chunking::UpTo(usize::MAX));
        let mut stream = Adapted::new(end);
        assert!(Pin::new(&mut stream).poll_write(&mut context(), b"bye").is_ready());
        assert!(Pin::new(&mut stream).poll_shutdown(&mut context()).is_pending());
        assert_eq!(drain(&mut peer), b"bye");
        assert!(Pin::new(&mut stream).poll_shutdown(&mut context()).is_ready());
        assert!(matches!(peer.poll_fill(&mut context()), Poll::Ready(Ok([]))));
    }
}
