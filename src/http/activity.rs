//! When something last happened on a connection, and by when something has to happen next.
//!
//! - hyper's own timers are not used: its head timeout also runs while a kept-alive connection is
//!   idle, so heads are timed here from their first byte, and idleness apart.
//! - Noting an event is a few stores; a timer is touched only when a deadline comes closer.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::Downstream;
use super::detect::Peeked;
use crate::io::{Clock, Stream};
use crate::snapshot::Limits;

/// Between two requests of a connection that asks seldom. Far more than passes between those of a
/// busy one.
const SELDOM: Duration = Duration::from_millis(10);

/// A request that its client breaks off sooner, and without an answer, is premature.
const PREMATURE: Duration = Duration::from_secs(1);

/// So many premature requests are no accident, if they are more than half of all. Both are Envoy's.
const PREMATURE_MAX: u32 = 250;

/// What goes on on a connection.
#[derive(Debug)]
pub(crate) struct Activity {
    /// Requests whose response is not complete.
    requests: Cell<usize>,
    /// When bytes last moved, or a request ended.
    latest: Cell<Instant>,
    /// When the first byte of an incomplete head arrived.
    head_begun: Cell<Option<Instant>>,
    /// HTTP/2: bytes may be PING, SETTINGS or WINDOW_UPDATE, which neither begin a head nor make a
    /// request progress.
    multiplexed: Cell<bool>,
    /// A request progressed since `latest` was set.
    moved: Cell<bool>,
    /// No more requests are to come by this connection.
    retired: Cell<bool>,
    /// Requests that are over, and those of them that were premature.
    over: Cell<u32>,
    premature: Cell<u32>,
    /// When bytes came last.
    heard: Cell<Instant>,
    /// The send buffer had no room when it was last asked.
    congested: Cell<bool>,
    /// Before the latest head nothing had gone on for [`SELDOM`].
    seldom: Cell<bool>,
}

impl Activity {
    /// A connection that is open since `now`. Its first head is due at once: who connects and says
    /// nothing is not idle but slow.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            requests: Cell::new(0),
            latest: Cell::new(now),
            head_begun: Cell::new(Some(now)),
            multiplexed: Cell::new(false),
            moved: Cell::new(false),
            retired: Cell::new(false),
            over: Cell::new(0),
            premature: Cell::new(0),
            heard: Cell::new(now),
            congested: Cell::new(false),
            seldom: Cell::new(false),
        }
    }

    /// From now on only requests and the data of their bodies count, not bytes.
    pub(crate) fn multiplex(&self) {
        self.multiplexed.set(true);
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
        self.over.set(self.over.get().saturating_add(1));
        self.latest.set(now);
    }

    /// A response was given up of which nothing was sent, to a request that came at `start`.
    pub(crate) fn request_unanswered(&self, start: Instant) {
        if self.heard.get().saturating_duration_since(start) < PREMATURE {
            self.premature.set(self.premature.get().saturating_add(1));
        }
    }

    /// Whether its client breaks off so many requests that it cannot want the answers: each costs
    /// us and an endpoint more than it.
    pub(crate) fn is_abused(&self) -> bool {
        let premature = self.premature.get();
        premature > PREMATURE_MAX && premature.saturating_mul(2) > self.over.get()
    }

    /// Whether many requests share the connection.
    pub(crate) fn is_multiplexed(&self) -> bool {
        self.multiplexed.get()
    }

    /// From now on requests belong on another connection.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Data of a request or response passed.
    pub(crate) fn moved(&self) {
        self.moved.set(true);
    }

    /// Whether it waits for the rest of a head, or for its first.
    pub(crate) fn awaits_head(&self) -> bool {
        self.requests.get() == 0 && self.head_begun.get().is_some()
    }

    /// Since when nothing at all goes on: no request, no part of one, nothing to send. `None` for
    /// a connection of many requests, which is never asked to pause.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.requests.get() == 0
            && self.head_begun.get().is_none()
            && !self.congested.get()
            && !self.multiplexed.get();
        is_idle.then(|| self.latest.get())
    }

    /// Since when its client owes nothing and is owed nothing: it may be closed, as at its timeout,
    /// without a request that fails. One of which nothing was heard, and one of HTTP/2 that has not
    /// asked for anything yet, rests too.
    pub(crate) fn rests_since(&self) -> Option<Instant> {
        if self.requests.get() > 0 || self.congested.get() {
            return None;
        }
        match self.head_begun.get() {
            None => Some(self.latest.get()),
            Some(begun) => {
                let is_head = self.heard.get() != begun && !self.multiplexed.get();
                (!is_head).then_some(begun)
            }
        }
    }

    /// Whether its next request is probably far away, as the one before was.
    pub(crate) fn asks_seldom(&self) -> bool {
        self.seldom.get()
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
        self.heard.set(now);
        if self.requests.get() == 0 && self.head_begun.get().is_none() && !self.multiplexed.get() {
            self.seldom.set(now.saturating_duration_since(self.latest.get()) >= SELDOM);
            self.head_begun.set(Some(now));
        }
        self.bytes_passed(now);
    }

    fn bytes_passed(&self, now: Instant) {
        if self.moved.take() || !self.multiplexed.get() {
            self.latest.set(now);
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

impl<S, C> Observed<Peeked<S>, C> {
    /// Lends `bytes`, which were read and not used, once more before all others.
    pub(crate) fn lend_again(&mut self, bytes: &[u8]) {
        self.stream.lend_again(bytes);
    }
}

impl<S: Stream, C: Clock> Stream for Observed<S, C> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut [u8]>> {
        let filled = self.stream.poll_fill(cx);
        if matches!(&filled, Poll::Ready(Ok(bytes)) if !bytes.is_empty()) {
            self.downstream.activity.bytes_arrived(self.clock.now());
        }
        filled
    }

    fn consume(&mut self, n: usize) {
        self.stream.consume(n);
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = self.stream.poll_write_ready(cx);
        self.downstream.activity.congested.set(ready.is_pending());
        ready
    }

    fn write(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<()> {
        self.downstream.activity.bytes_passed(self.clock.now());
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

    #[test]
    fn a_connection_rests_before_and_between_its_requests() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let activity = Activity::new(start);
        assert_eq!(activity.rests_since(), Some(start), "nothing was heard of it");
        activity.bytes_arrived(at(1));
        assert_eq!(activity.rests_since(), None, "a part of a head");
        activity.request_began(at(2));
        assert_eq!(activity.rests_since(), None);
        activity.request_ended(at(3));
        assert_eq!(activity.rests_since(), Some(at(3)));
        activity.congested.set(true);
        assert_eq!(activity.rests_since(), None, "the end of its answer");
        let activity = Activity::new(start);
        activity.multiplex();
        activity.bytes_arrived(at(1));
        assert_eq!(activity.rests_since(), Some(start), "of HTTP/2 no byte is a head");
        activity.request_began(at(2));
        activity.request_ended(at(3));
        activity.bytes_arrived(at(4));
        assert_eq!(activity.rests_since(), Some(at(3)), "a PING");
    }

    #[test]
    fn who_asks_seldom_is_known_by_the_time_before_its_latest_head() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let activity = Activity::new(start);
        let ask = |begin, end| {
            activity.bytes_arrived(at(begin));
            activity.request_began(at(begin));
            activity.request_ended(at(end));
            activity.asks_seldom()
        };
        assert!(!ask(100, 1_000), "its first, however late");
        assert!(!ask(1_001, 2_000), "slow to be answered, quick to ask");
        assert!(ask(2_020, 2_021));
        assert!(!ask(2_022, 2_023), "it has changed its ways");
    }

    #[test]
    fn bytes_of_http_2_are_neither_a_head_nor_progress() {
        let limits = Limits::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let activity = Activity::new(start);
        activity.multiplex();
        activity.request_began(at(1));
        activity.bytes_arrived(at(2));
        activity.bytes_passed(at(2));
        let slow = limits.stream_idle_timeout + limits.linger_timeout;
        assert_eq!(activity.deadline(&limits), at(1) + slow, "a PING");
        activity.moved();
        activity.bytes_passed(at(3));
        assert_eq!(activity.deadline(&limits), at(3) + slow, "data");
        activity.request_ended(at(4));
        activity.bytes_arrived(at(5));
        assert_eq!(activity.deadline(&limits), at(4) + limits.idle_timeout, "a PING while idle");
    }
}
