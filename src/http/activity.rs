//! When something last happened on a connection, and by when something has to happen next.
//!
//! - hyper's own timers are not used: its head timeout also runs while a kept-alive connection is
//!   idle, so heads are timed here from their first byte, and idleness apart.
//! - Noting an event is a few stores; a timer is touched only when a deadline comes closer.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::Downstream;
use crate::io::{Clock, Stream};
use crate::snapshot::Limits;

/// What goes on on a connection.
#[derive(Debug)]
pub(crate) struct Activity {
    /// Requests whose response is not complete.
    requests: Cell<usize>,
    /// When bytes last moved, or a request ended.
    latest: Cell<Instant>,
    /// When the first byte of an incomplete head arrived.
    head_begun: Cell<Option<Instant>>,
}

impl Activity {
    /// A connection that is open since `now`. Its first head is due at once: who connects and says
    /// nothing is not idle but slow.
    pub(crate) fn new(now: Instant) -> Self {
        Self { requests: Cell::new(0), latest: Cell::new(now), head_begun: Cell::new(Some(now)) }
    }

    /// A head has arrived whole.
    pub(crate) fn request_began(&self, now: Instant) {
        self.requests.set(self.requests.get() + 1);
        self.latest.set(now);
        self.head_begun.set(None);
    }

    /// A response is complete, or given up.
    pub(crate) fn request_ended(&self, now: Instant) {
        self.requests.set(self.requests.get() - 1);
        self.latest.set(now);
    }

    /// When the connection has waited long enough for whatever it waits for.
    pub(crate) fn deadline(&self, limits: &Limits) -> Instant {
        if self.requests.get() > 0 {
            // The upstream's own timer has the same limit and a better answer: let it come first.
            return self.latest.get() + limits.stream_idle_timeout + limits.linger_timeout;
        }
        match self.head_begun.get() {
            Some(begun) => begun + limits.head_timeout,
            None => self.latest.get() + limits.idle_timeout,
        }
    }

    fn bytes_arrived(&self, now: Instant) {
        self.latest.set(now);
        if self.requests.get() == 0 && self.head_begun.get().is_none() {
            self.head_begun.set(Some(now));
        }
    }
}

/// A stream that notes in a connection's [`Activity`] when bytes move.
pub(crate) struct Observed<S, C> {
    stream: S,
    clock: C,
    downstream: Rc<Downstream>,
}

impl<S, C> Observed<S, C> {
    pub(crate) fn new(stream: S, clock: C, downstream: Rc<Downstream>) -> Self {
        Self { stream, clock, downstream }
    }
}

impl<S: Stream, C: Clock> Stream for Observed<S, C> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let filled = self.stream.poll_fill(cx);
        if matches!(filled, Poll::Ready(Ok(bytes)) if !bytes.is_empty()) {
            self.downstream.activity.bytes_arrived(self.clock.now());
        }
        filled
    }

    fn consume(&mut self, n: usize) {
        self.stream.consume(n);
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }

    fn write(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<()> {
        self.downstream.activity.latest.set(self.clock.now());
        self.stream.write(bytes)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(cx)
    }

    fn close_write(&mut self) {
        self.stream.close_write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_state_has_its_own_deadline() {
        let limits = Limits::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let activity = Activity::new(start);
        assert_eq!(activity.deadline(&limits), start + limits.head_timeout, "no head yet");
        activity.request_began(at(1));
        let slow = limits.stream_idle_timeout + limits.linger_timeout;
        assert_eq!(activity.deadline(&limits), at(1) + slow, "a request is open");
        activity.request_ended(at(2));
        assert_eq!(activity.deadline(&limits), at(2) + limits.idle_timeout, "idle");
        activity.bytes_arrived(at(3));
        activity.bytes_arrived(at(4));
        assert_eq!(activity.deadline(&limits), at(3) + limits.head_timeout, "from its first byte");
    }
}
