//! What the data path needs of the world: byte streams, connects, tasks and time, as traits.
//!
//! - Everything here is single-threaded: nothing is `Send`, and nothing has to be.
//! - Streams lend their bytes. [`Stream::poll_fill`] shows received bytes where they lie,
//!   [`Stream::consume`] gives them back; [`Stream::append`] writes into the send buffer, which
//!   leaves at the end of the loop turn. A byte is copied only where cryptography or hyper forces
//!   it.
//! - The handles ([`Connect`], [`Spawn`], [`Clock`]) are plain data and cheap to clone.
//!
//! `runtime` implements the traits over the kernel, [`pipe`] in memory.
//!
//! Deliberately not here: accepting (only `worker` does it), files, names, and any notion of HTTP
//! or TLS.

#![forbid(unsafe_code)]

pub mod pipe;
pub mod relay;

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Buf;

use crate::address::Address;

/// An ordered stream of bytes in both directions, such as a TCP connection or TLS over one.
///
/// Dropping a stream closes it at once: bytes that are still in its send buffer are lost. To end it
/// politely, [`flush`] it, [`close_write`](Self::close_write), read to the end, then drop.
pub trait Stream: 'static {
    /// Lends the oldest received bytes that were not consumed yet. They may be overwritten, so that
    /// what is encrypted can be decrypted where it lies.
    ///
    /// `Ready(Ok(&[]))` is the end of the stream. The same bytes are lent again until they are
    /// consumed; more of them appear only after all of these are consumed, so whoever needs a
    /// longer run collects it. While nobody fills, at most a bounded amount is received
    /// (back-pressure).
    ///
    /// # Errors
    /// The connection broke. It stays broken.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut [u8]>>;

    /// Gives back the first `n` bytes that [`poll_fill`](Self::poll_fill) lent last.
    ///
    /// # Panics
    /// When `n` is more than were lent.
    fn consume(&mut self, n: usize);

    /// Ready while the send buffer is below its high-water mark.
    ///
    /// # Errors
    /// The connection broke: what is written from now on is lost.
    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Takes all of `bytes` into the send buffer, even past the high-water mark: ask
    /// [`poll_write_ready`](Self::poll_write_ready) first, and bound what is written at once.
    ///
    /// # Errors
    /// The connection broke, or its write half is closed.
    fn write(&mut self, bytes: &[io::IoSlice<'_>]) -> io::Result<()>;

    /// Like [`write`](Self::write), for bytes that are made on the spot: `fill` appends to what it
    /// is given.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn append(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut bytes = Vec::new();
        fill(&mut bytes);
        self.write(&[io::IoSlice::new(&bytes)])
    }

    /// Ready when every byte written so far was taken by the kernel (or the peer, in memory).
    ///
    /// # Errors
    /// The connection broke before that.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the write half after the bytes that are in the send buffer. Reading goes on.
    /// Idempotent.
    fn close_write(&mut self);
}

/// How a silent connection is probed; `None` leaves it to the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probes {
    /// Probes without an answer until it counts as broken.
    pub max: Option<u32>,
    /// Silence until the first.
    pub after: Option<Duration>,
    /// From one to the next.
    pub interval: Option<Duration>,
}

/// A stream whose received bytes can be kept beyond the next call without a copy.
pub trait Take: Stream {
    /// Bytes that left the stream.
    type Piece: Buf + 'static;

    /// Consumes the first `n` bytes that [`poll_fill`](Stream::poll_fill) lent last, but at least
    /// one, and hands them over: where they lie if those were all that was lent, else copied.
    ///
    /// # Panics
    /// When `n` is 0 or more than were lent.
    fn take(&mut self, n: usize) -> Self::Piece;
}

/// Opens streams.
pub trait Connect: Clone + 'static {
    /// What a successful connect yields.
    type Stream: Take + Probed;

    /// Connects to `to`. There is no timeout in it; dropping the future gives up.
    fn connect(&self, to: Address) -> impl Future<Output = io::Result<Self::Stream>> + 'static;
}

/// A connection that the kernel has, which it is told and asked about.
pub trait Probed {
    /// The address of its own end, known since it was connected; a Unix socket's has none.
    fn local(&self) -> Option<SocketAddr>;

    /// Has a silent peer probed, so that a connection to one that is gone breaks.
    ///
    /// # Errors
    /// The kernel does not take it.
    fn probe(&self, probes: Probes) -> io::Result<()>;
}

/// Starts tasks on this thread.
pub trait Spawn: Clone + 'static {
    /// Runs `task` beside the caller until it ends. A panic in it ends only it, and is counted.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
}

/// Tells the time, which stands still within one turn of the loop.
pub trait Clock: Clone + 'static {
    /// A pending [`sleep_until`](Self::sleep_until). Plain data, so it can live in hyper, which
    /// wants it `Send + Sync`; it is only ever used on its own thread.
    type Sleep: Sleep;

    /// The clock alone, which hyper wants `Send + Sync` as well.
    type Bare: Clock<Sleep = Self::Sleep> + Send + Sync;

    /// Without what else the handle may be.
    fn bare(&self) -> Self::Bare;

    /// The monotonic time of this loop turn.
    fn now(&self) -> Instant;

    /// The wall-clock time of this loop turn.
    fn wall(&self) -> SystemTime;

    /// Completes when [`now`](Self::now) has reached `deadline`, to the millisecond, never earlier.
    fn sleep_until(&self, deadline: Instant) -> Self::Sleep;

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.sleep_until(self.now() + duration)
    }
}

/// A timer that can be moved.
pub trait Sleep: Future<Output = ()> + Unpin + Send + Sync + 'static {
    /// Moves the deadline, also after it has passed.
    fn reset(&mut self, deadline: Instant);
}

/// All that a data layer needs of its thread.
pub trait Net: Connect + Spawn + Clock + Unpin {}

impl<T: Connect + Spawn + Clock + Unpin> Net for T {}

/// Waits until every byte written to `stream` was taken by the kernel.
///
/// # Errors
/// As [`Stream::poll_flush`].
pub async fn flush(stream: &mut impl Stream) -> io::Result<()> {
    poll_fn(|cx| stream.poll_flush(cx)).await
}

/// `future` ran out of its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// Runs `future` for at most `limit`.
///
/// # Errors
/// [`Elapsed`] when it did not complete by then; it is dropped.
pub async fn timeout<C: Clock, F: Future>(
    clock: &C,
    limit: Duration,
    future: F,
) -> Result<F::Output, Elapsed> {
    let mut future = std::pin::pin!(future);
    let mut sleep = clock.sleep(limit);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        std::pin::Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// Ends `stream` so that the peer can read all that was written: flush, close the write half, then
/// read and discard until the peer closes too or `limit` has passed. Closing a socket with unread
/// bytes would reset it and take the last response along.
pub async fn linger<C: Clock>(clock: &C, limit: Duration, mut stream: impl Stream) {
    let ending = async {
        stream.close_write();
        flush(&mut stream).await?;
        poll_fn(|cx| poll_discard(&mut stream, cx)).await
    };
    // Whether the peer closed in time or not, the stream is dropped now.
    let _: Result<io::Result<()>, Elapsed> = timeout(clock, limit, ending).await;
}

fn poll_discard(stream: &mut impl Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    loop {
        let n = std::task::ready!(stream.poll_fill(cx))?.len();
        if n == 0 {
            return Poll::Ready(Ok(()));
        }
        stream.consume(n);
    }
}
