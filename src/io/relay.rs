//! Copies bytes between two streams, both ways at once, until both directions have ended.
//!
//! - The end of one direction closes that write half only; the other goes on (half-close).
//! - A side that does not read makes the other side wait (back-pressure): never more than its
//!   high-water mark plus one chunk is held.
//! - When nothing moves in either direction for too long, both are given up.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::{Clock, Sleep, Stream};

/// Bytes that a finished relay moved.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Moved {
    /// From the first stream to the second.
    pub forth: Cell<u64>,
    /// From the second stream to the first.
    pub back: Cell<u64>,
}

/// Why a relay ended before both directions had.
#[derive(Debug)]
pub enum Broken {
    /// The first stream broke.
    Near(io::Error),
    /// The second stream broke.
    Far(io::Error),
    /// Nothing moved for too long.
    Idle,
}

/// Relays between `near` and `far` until both directions have ended or one side breaks; `moved`
/// counts along, so that it is right also when the future is dropped or fails.
///
/// # Errors
/// The first error of either side.
pub async fn relay(
    near: &mut impl Stream,
    far: &mut impl Stream,
    moved: &Moved,
) -> Result<(), Broken> {
    let (mut forth, mut back) = (Direction::Open, Direction::Open);
    poll_fn(|cx| {
        // First what the far side said: it may be why that side takes no more.
        let back = back.poll(far, near, &moved.back, cx);
        let forth = forth.poll(near, far, &moved.forth, cx);
        let back = back.map_err(|fault| match fault {
            Fault::Source(error) => Broken::Far(error),
            Fault::Target(error) => Broken::Near(error),
        })?;
        let forth = forth.map_err(|fault| match fault {
            Fault::Source(error) => Broken::Near(error),
            Fault::Target(error) => Broken::Far(error),
        })?;
        if forth.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// As [`relay`], and gives up when nothing has moved for `limit`.
///
/// # Errors
/// The first error of either side; [`Broken::Idle`] when nothing moved.
pub async fn relay_active<C: Clock>(
    (clock, limit): (&C, Duration),
    near: &mut impl Stream,
    far: &mut impl Stream,
    moved: &Moved,
) -> Result<(), Broken> {
    let mut relaying = pin!(relay(near, far, moved));
    let (mut seen, mut deadline) = (0, clock.now() + limit);
    let mut sleep = clock.sleep_until(deadline);
    poll_fn(|cx| {
        let ended = relaying.as_mut().poll(cx);
        if ended.is_ready() {
            return ended;
        }
        if seen != moved.sum() {
            seen = moved.sum();
            deadline = clock.now() + limit;
        }
        // Moved only when it goes off too early: bytes come more often than that.
        while Pin::new(&mut sleep).poll(cx).is_ready() {
            if clock.now() >= deadline {
                return Poll::Ready(Err(Broken::Idle));
            }
            sleep.reset(deadline);
        }
        Poll::Pending
    })
    .await
}

impl Moved {
    fn sum(&self) -> u64 {
        self.forth.get() + self.back.get()
    }
}

/// Which end of a direction broke.
enum Fault {
    Source(io::Error),
    Target(io::Error),
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
        moved: &Cell<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        if matches!(self, Self::Open) {
            ready!(poll_copy(source, target, moved, cx))?;
            target.close_write();
            *self = Self::Flushing;
        }
        if matches!(self, Self::Flushing) {
            ready!(target.poll_flush(cx)).map_err(Fault::Target)?;
            *self = Self::Ended;
        }
        Poll::Ready(Ok(()))
    }
}

fn poll_copy(
    source: &mut impl Stream,
    target: &mut impl Stream,
    moved: &Cell<u64>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Fault>> {
    loop {
        ready!(target.poll_write_ready(cx)).map_err(Fault::Target)?;
        let bytes = ready!(source.poll_fill(cx)).map_err(Fault::Source)?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let n = bytes.len();
        target.write(&[io::IoSlice::new(bytes)]).map_err(Fault::Target)?;
        source.consume(n);
        moved.set(moved.get() + n as u64);
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
        let moved = Moved::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut relaying = Box::pin(relay(&mut near, &mut far, &moved));

        client.write(&[IoSlice::new(b"question")]).unwrap();
        client.close_write();
        assert!(relaying.as_mut().poll(&mut cx).is_pending());
        assert_eq!(drain(&mut server), b"question");
        assert!(
            matches!(server.poll_fill(&mut cx), Poll::Ready(Ok(lent)) if lent == b""),
            "the end is passed on"
        );

        server.write(&[IoSlice::new(b"answer")]).unwrap();
        server.close_write();
        assert!(relaying.as_mut().poll(&mut cx).is_pending(), "the answer is not read yet");
        assert_eq!(drain(&mut client), b"answer");
        assert!(matches!(relaying.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
        drop(relaying);
        assert_eq!((moved.forth.get(), moved.back.get()), (8, 6));
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
