//! Copies bytes between two streams, both ways at once, until both directions have ended.
//!
//! - The end of one direction closes that write half only; the other goes on (half-close).
//! - A side that does not read makes the other side wait (back-pressure): never more than its
//!   high-water mark plus one chunk is held.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use super::Stream;

/// Bytes that a finished relay moved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// From the first stream to the second.
    pub forth: u64,
    /// From the second stream to the first.
    pub back: u64,
}

/// Relays between `near` and `far` until both directions have ended or one side breaks; `moved`
/// counts along, so that it is right also when the future is dropped or fails.
///
/// # Errors
/// The first error of either side.
pub async fn relay(
    near: &mut impl Stream,
    far: &mut impl Stream,
    moved: &mut Moved,
) -> io::Result<()> {
    let (mut forth, mut back) = (Direction::Open, Direction::Open);
    poll_fn(|cx| {
        let forth = forth.poll(near, far, &mut moved.forth, cx)?;
        let back = back.poll(far, near, &mut moved.back, cx)?;
        if forth.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// Open -> Flushing (the source ended) -> Ended (its last byte has left).
enum Direction {
    Open,
    Flushing,
    Ended,
}

impl Direction {
    fn poll(
        &mut self,
        source: &mut impl Stream,
        target: &mut impl Stream,
        moved: &mut u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self, Self::Open) {
            ready!(poll_copy(source, target, moved, cx))?;
            target.close_write();
            *self = Self::Flushing;
        }
        if matches!(self, Self::Flushing) {
            ready!(target.poll_flush(cx))?;
            *self = Self::Ended;
        }
        Poll::Ready(Ok(()))
    }
}

fn poll_copy(
    source: &mut impl Stream,
    target: &mut impl Stream,
    moved: &mut u64,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    loop {
        ready!(target.poll_write_ready(cx))?;
        let bytes = ready!(source.poll_fill(cx))?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let n = bytes.len();
        target.write(&[io::IoSlice::new(bytes)])?;
        source.consume(n);
        *moved += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::pipe::{self, Chunking};
    use std::io::IoSlice;
    use std::task::Waker;

    #[test]
    fn both_directions_flow_and_half_close() {
        let (mut client, mut near) = pipe::pair(Chunking::UpTo(3));
        let (mut far, mut server) = pipe::pair(Chunking::UpTo(3));
        let mut moved = Moved::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut relaying = Box::pin(relay(&mut near, &mut far, &mut moved));

        client.write(&[IoSlice::new(b"question")]).unwrap();
        client.close_write();
        assert!(relaying.as_mut().poll(&mut cx).is_pending());
        assert_eq!(drain(&mut server), b"question");
        assert!(matches!(server.poll_fill(&mut cx), Poll::Ready(Ok(b""))), "the end is passed on");

        server.write(&[IoSlice::new(b"answer")]).unwrap();
        server.close_write();
        assert!(relaying.as_mut().poll(&mut cx).is_pending(), "the answer is not read yet");
        assert_eq!(drain(&mut client), b"answer");
        assert!(matches!(relaying.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
        drop(relaying);
        assert_eq!(moved, Moved { forth: 8, back: 6 });
    }

    fn drain(end: &mut pipe::End) -> Vec<u8> {
        let mut all = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(bytes)) = end.poll_fill(&mut cx) {
            let n = bytes.len();
            if n == 0 {
                break;
            }
            all.extend_from_slice(bytes);
            end.consume(n);
        }
        all
    }
}
