//! Tasks of hyper's HTTP/2: one for each stream, which is given up when nothing of its request or
//! response moves for long.
//!
//! - A client that takes one response and leaves the windows of others closed keeps its connection
//!   alive, and hyper does not look at a response that has no window: nobody else would end it.
//! - What a stream waits for from its upstream has a timer of its own, which comes first.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;

use super::entry::Entry;
use crate::io::{Net, Sleep};

/// Runs the streams of one connection.
pub(super) struct Streams<N>(Rc<Inner<N>>);

struct Inner<N> {
    net: N,
    /// How long nothing may move.
    limit: Duration,
    /// That of the stream that comes next.
    next: Cell<Weak<Entry>>,
}

impl<N> Streams<N> {
    pub(super) fn new(net: N, limit: Duration) -> Self {
        Self(Rc::new(Inner { net, limit, next: Cell::default() }))
    }

    /// The next stream is that of the request with `entry`: hyper runs it as soon as its service
    /// has taken the request.
    pub(super) fn expect(&self, entry: &Rc<Entry>) {
        self.0.next.set(Rc::downgrade(entry));
    }
}

impl<N> Clone for Streams<N> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<N: Net, F: Future<Output = ()> + Unpin + 'static> Executor<F> for Streams<N> {
    fn execute(&self, stream: F) {
        let (streams, entry) = (self.clone(), self.0.next.take());
        self.0.net.spawn(Watched { stream, streams, entry, has_waited: false, timer: None });
    }
}

/// A stream.
struct Watched<F, N: Net> {
    stream: F,
    streams: Streams<N>,
    /// Weak: it is written when the request is over, not when this is.
    entry: Weak<Entry>,
    /// It has waited once: for its response mostly, and then mostly for nothing more. No timer is
    /// set for that.
    has_waited: bool,
    /// When something must have moved, and what had moved when that was set.
    timer: Option<(N::Sleep, u64)>,
}

/// Nothing in it is ever pinned.
impl<F: Unpin, N: Net> Unpin for Watched<F, N> {}

impl<F: Future<Output = ()> + Unpin, N: Net> Future for Watched<F, N> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { stream, streams, entry, has_waited, timer } = &mut *self;
        if Pin::new(stream).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !std::mem::replace(has_waited, true) {
            return Poll::Pending;
        }
        let Inner { net, limit, .. } = &*streams.0;
        let moved = || entry.upgrade().map_or(0, |entry| entry.moved());
        let (sleep, before) = timer.get_or_insert_with(|| (net.sleep(*limit), moved()));
        while Pin::new(&mut *sleep).poll(cx).is_ready() {
            let before = std::mem::replace(before, moved());
            if before == moved() {
                return Poll::Ready(());
            }
            sleep.reset(net.now() + *limit);
        }
        Poll::Pending
    }
}
