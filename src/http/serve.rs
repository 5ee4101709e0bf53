//! Drives one connection through hyper, from its first request to its end.
//!
//! ```text
//! Detect -> Http1 -> switched (relay) -> lingering -> closed
//!        \> Http2 ------------------------------------^
//! ```
//!
//! - A drain lets open requests finish: HTTP/1.1 closes after the response, HTTP/2 sends GOAWAY.
//! - A connection that makes no progress by its deadline is closed, one whose client breaks off
//!   most of its requests at once, and an idle one that has to give way to a new one.

use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;

use super::activity::Observed;
use super::detect::{Peeked, detect};
use super::entry::Entry;
use super::forward::{Forwarder, Switched};
use super::idle::Seat;
use super::streams::Streams;
use super::{Downstream, Gateway, Protocol, hurry};
use crate::drain::Watch;
use crate::io::relay::{Broken, Moved, relay_active};
use crate::io::{Net, Sleep, Stream, linger};
use crate::snapshot::Limits;
use crate::telemetry::request::{Flags, Record};
use crate::upstream::adapt::Adapted;

/// Fields that hyper parses without allocating room for them.
const HYPER_HEADER_FIELDS: usize = 100;

/// Bytes of a response that hyper's HTTP/2 holds for one stream before the upstream has to wait.
const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// An HTTP/1.1 connection that is idle for so long gives up what hyper needs for it, which is three
/// quarters of its memory. Taking it up again costs under a microsecond. One that asks seldom does
/// so after each request: what it gives up is still in the CPU's cache for the next connection.
const PAUSE_AFTER: Duration = Duration::from_millis(200);

/// A connection's future. Boxed, so that none carries the largest of them.
pub(crate) type Served = Pin<Box<dyn Future<Output = ()>>>;

/// Serves HTTP on `stream` until it ends, or `watch` says that it is to.
pub(crate) fn serve<N: Net, S: Stream>(
    gateway: Rc<Gateway<N>>,
    downstream: Rc<Downstream>,
    stream: S,
    protocol: Protocol,
    watch: Watch,
) -> Served {
    let limits = gateway.snapshots.borrow_mut().current().limits.clone();
    let serving = Serving { gateway, downstream, limits, watch };
    match protocol {
        Protocol::Http1 => Box::pin(serving.http1(Peeked::new(stream))),
        Protocol::Http2 => Box::pin(serving.http2(stream)),
        Protocol::Detect => Box::pin(serving.detected(stream)),
    }
}

/// A connection being served.
struct Serving<N: Net> {
    gateway: Rc<Gateway<N>>,
    downstream: Rc<Downstream>,
    /// Those of the snapshot that the connection began with.
    limits: Limits,
    watch: Watch,
}

/// What lives as long as a connection is made before its future, which then owns it once: what an
/// `async fn` moves out of its arguments lies in it twice.
impl<N: Net> Serving<N> {
    async fn detected<S: Stream>(self, stream: S) {
        let detecting = detect(stream);
        let limits = (self.limits.head_timeout, self.limits.linger_timeout);
        // Boxed: the connection does not carry its room when that is over.
        let detecting = Box::pin(hurry(&self.gateway.net, &self.watch, limits, detecting));
        let Some(Ok(Ok((stream, protocol)))) = self.gateway.idle.sit_down().run(detecting).await
        else {
            return;
        };
        let served: Served = match protocol {
            Protocol::Http2 => Box::pin(self.http2(stream)),
            Protocol::Http1 | Protocol::Detect => Box::pin(self.http1(stream)),
        };
        served.await;
    }

    fn http1<S: Stream>(self, stream: Peeked<S>) -> impl Future<Output = ()> {
        let forwarder = self.forwarder();
        let mut stream = self.observe(stream);
        async move {
            let mut guard = Guard::new(&self);
            let (ended, unread) = loop {
                // Boxed, so that an idle connection does not carry the room that hyper needs.
                let serving = Box::pin(self.http1_requests(stream, &forwarder, &mut guard));
                let (ended, parts) = serving.await;
                stream = parts.io.into_inner();
                if !matches!(ended, Ended::Idle) {
                    break (ended, parts.read_buf);
                }
                stream.lend_again(&parts.read_buf);
                drop(parts.read_buf);
                let paused = poll_fn(|cx| guard.poll_paused(&mut stream, cx)).await;
                if !matches!(paused, Ended::Idle) {
                    break (paused, Bytes::new());
                }
            };
            if matches!(ended, Ended::GaveWay) {
                // Somebody waits for its room, and nothing was sent that it could still take.
                return;
            }
            guard.seat = None;
            self.note_malformed(&ended);
            let finishing: Pin<Box<dyn Future<Output = ()> + '_>> = match forwarder.take_switched()
            {
                Some(switched) => Box::pin(self.join(stream, unread, switched)),
                None => Box::pin(linger(&self.gateway.net, self.limits.linger_timeout, stream)),
            };
            finishing.await;
        }
    }

    /// Serves requests until the connection ends or pauses.
    async fn http1_requests<S: Stream>(
        &self,
        stream: Observed<S, N>,
        forwarder: &Rc<Forwarder<N>>,
        guard: &mut Guard<'_, N>,
    ) -> (Ended, Http1Parts<Observed<S, N>>) {
        let service = service_fn(|request| {
            let forwarder = Rc::clone(forwarder);
            // hyper wants to move it. Freed with the request: it is larger than all the rest.
            Box::pin(async move {
                let responder = forwarder.begin(&request);
                let mut answered = forwarder.serve(request, responder).await;
                if let Ok(response) = &mut answered {
                    forwarder.mark_last(response);
                }
                answered
            })
        });
        let stream = Adapted::new(stream);
        let mut connection = self.http1_builder().serve_connection(stream, service);
        let ended = poll_fn(|cx| {
            let mut ended = connection.poll_without_shutdown(cx);
            if ended.is_pending() && guard.poll_draining(cx) {
                Pin::new(&mut connection).graceful_shutdown();
                ended = connection.poll_without_shutdown(cx);
            }
            guard.poll(ended, cx)
        })
        .await;
        let parts = connection.into_parts();
        (ended, Http1Parts { io: parts.io, read_buf: parts.read_buf })
    }

    fn http1_builder(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(None).max_header_size(self.limits.head_bytes_max);
        if self.limits.header_fields_max != HYPER_HEADER_FIELDS {
            builder.max_headers(self.limits.header_fields_max);
        }
        builder
    }

    fn http2<S: Stream>(self, stream: S) -> impl Future<Output = ()> {
        self.downstream.activity.multiplex();
        let forwarder = self.forwarder();
        // The upstream's own timer has the same limit and a better answer: let it come first.
        let limit = self.limits.stream_idle_timeout + self.limits.linger_timeout;
        let streams = Streams::new(self.gateway.net.clone(), limit);
        let builder = self.http2_builder(streams.clone());
        let service = service_fn(move |request| {
            let forwarder = Rc::clone(&forwarder);
            let responder = forwarder.begin(&request);
            streams.expect(&responder.entry);
            // hyper moves it into a stream and that into a task: a box is moved for less.
            Box::pin(async move { forwarder.serve(request, responder).await })
        });
        let mut connection = builder.serve_connection(Adapted::new(self.observe(stream)), service);
        async move {
            let mut guard = Guard::new(&self);
            // How it ended makes no difference: each request has logged its own end.
            let _: Ended = poll_fn(|cx| {
                let mut ended = Pin::new(&mut connection).poll(cx);
                if ended.is_pending() && guard.poll_draining(cx) {
                    Pin::new(&mut connection).graceful_shutdown();
                    ended = Pin::new(&mut connection).poll(cx);
                }
                guard.poll(ended, cx)
            })
            .await;
        }
    }

    fn http2_builder(&self, streams: Streams<N>) -> http2::Builder<Streams<N>> {
        let limits = &self.limits;
        let mut builder = http2::Builder::new(streams);
        builder
            .max_concurrent_streams(limits.h2_streams_max)
            .initial_stream_window_size(limits.h2_stream_window_bytes)
            .initial_connection_window_size(limits.h2_connection_window_bytes)
            .max_send_buf_size(H2_SEND_BUFFER_BYTES)
            .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX));
        builder
    }

    fn forwarder(&self) -> Rc<Forwarder<N>> {
        Rc::new(Forwarder::new(Rc::clone(&self.gateway), Rc::clone(&self.downstream)))
    }

    fn observe<S: Stream>(&self, stream: S) -> Observed<S, N> {
        let downstream = Rc::clone(&self.downstream);
        Observed::new(stream, self.gateway.net.clone(), downstream)
    }

    /// Joins a connection that has switched protocols to its upstream, until both are done.
    async fn join<S: Stream>(&self, mut stream: S, early: Bytes, switched: Switched<N>) {
        let Switched { stream: mut upstream, entry, active: _active } = switched;
        let net = &self.gateway.net;
        entry.received(early.len() as u64);
        let tally = Tally { moved: Moved::default(), entry, clock: net.clone() };
        let written = upstream.write(&[IoSlice::new(&early)]);
        drop(early);
        if written.is_ok() {
            let patience = (net, self.limits.stream_idle_timeout);
            // A side that breaks or stands still ends the other; there is nobody left to tell.
            let _: Result<(), Broken> =
                relay_active(patience, &mut stream, &mut upstream, &tally.moved).await;
        }
        drop((tally, upstream));
        linger(net, self.limits.linger_timeout, stream).await;
    }

    /// Logs bytes that hyper could not read as a request. It has answered them itself.
    fn note_malformed(&self, ended: &Ended) {
        let Ended::Failed(error) = ended else { return };
        if !error.is_parse() {
            return;
        }
        self.gateway.telemetry.record(&Record {
            status: if error.is_parse_too_large() { 431 } else { 400 },
            protocol: "HTTP/1.1",
            flags: Flags::DOWNSTREAM_PROTOCOL_ERROR,
            details: "http1.codec_error",
            downstream_local: Some(self.downstream.local),
            downstream_remote: Some(self.downstream.remote),
            server_name: self.downstream.server_name().unwrap_or_default(),
            ..Record::new(self.gateway.net.wall())
        });
    }
}

/// Enters what a relay moved, also when a drain cuts it.
struct Tally<N: Net> {
    moved: Moved,
    entry: Rc<Entry>,
    clock: N,
}

impl<N: Net> Drop for Tally<N> {
    fn drop(&mut self) {
        self.entry.received(self.moved.forth.get());
        self.entry.sent(self.moved.back.get());
        self.entry.touch(self.clock.now());
    }
}

/// What hyper leaves of a connection.
struct Http1Parts<S: Stream> {
    io: Adapted<S>,
    /// Bytes that it read and did not use.
    read_buf: Bytes,
}

/// How a connection ended, or its serving.
enum Ended {
    /// It goes on, and hyper need not know: nothing is going on and probably will not be soon, or
    /// something is again.
    Idle,
    /// It has nothing more to say.
    Done,
    Failed(hyper::Error),
    /// It made no progress by its deadline.
    TooSlow,
    /// Its client breaks off most requests as soon as they are under way.
    Abused,
    /// It was idle, and another one needs its room.
    GaveWay,
}

/// What can end a connection from outside: the drain, and its deadline.
struct Guard<'a, N: Net> {
    serving: &'a Serving<N>,
    /// When the drain was noticed.
    draining: Option<Instant>,
    /// hyper was told to take no more requests.
    is_told: bool,
    /// Armed not later than the deadline; when it fires too early it is armed again.
    sleep: N::Sleep,
    /// When `sleep` fires.
    armed: Instant,
    /// While it is idle.
    seat: Option<Seat<'a>>,
}

impl<'a, N: Net> Guard<'a, N> {
    fn new(serving: &'a Serving<N>) -> Self {
        let armed = serving.downstream.activity.deadline(&serving.limits);
        let sleep = serving.gateway.net.sleep_until(armed);
        Self { serving, draining: None, is_told: false, sleep, armed, seat: None }
    }

    /// Whether hyper is to be told now, once, to take no more requests. One whose head is on its
    /// way is still taken: hyper would drop what has arrived of it.
    fn poll_draining(&mut self, cx: &Context<'_>) -> bool {
        let Serving { watch, downstream, gateway, .. } = self.serving;
        if self.is_told {
            return false;
        }
        if downstream.activity.is_retired() {
            self.is_told = true;
            return true;
        }
        if watch.poll_draining(cx).is_pending() {
            return false;
        }
        self.draining.get_or_insert_with(|| gateway.net.now());
        self.is_told = !downstream.activity.awaits_head() || downstream.activity.is_multiplexed();
        self.is_told
    }

    /// By when the connection has to make progress; soon if it holds a drain up without a request.
    fn deadline(&self) -> Instant {
        let Serving { downstream, limits, .. } = self.serving;
        let deadline = downstream.activity.deadline(limits);
        match self.draining {
            Some(since) if downstream.activity.awaits_head() => {
                deadline.min(since + limits.linger_timeout)
            }
            Some(_) | None => deadline,
        }
    }

    /// Passes on how the connection ended, or ends it at its deadline.
    fn poll(&mut self, ended: Poll<hyper::Result<()>>, cx: &mut Context<'_>) -> Poll<Ended> {
        match ended {
            Poll::Ready(Ok(())) => Poll::Ready(Ended::Done),
            Poll::Ready(Err(error)) => Poll::Ready(Ended::Failed(error)),
            Poll::Pending => self.poll_idle(cx),
        }
    }

    /// Ends the serving at the deadline, or when it is time for a pause.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Serving { downstream, gateway, .. } = self.serving;
        let now = gateway.net.now();
        let activity = &downstream.activity;
        if activity.is_abused() {
            return Poll::Ready(Ended::Abused);
        }
        let after = if activity.asks_seldom() { Duration::ZERO } else { PAUSE_AFTER };
        let pause = activity.idle_since().map(|since| since + after);
        if pause.is_some_and(|pause| pause <= now) {
            return Poll::Ready(Ended::Idle);
        }
        let rests = activity.rests_since();
        if self.poll_seat(rests.is_some_and(|since| since + PAUSE_AFTER <= now), cx).is_ready() {
            return Poll::Ready(Ended::GaveWay);
        }
        // From now, not from the last request: a timer for each would cost more than a later pause.
        let look = rests.filter(|_| self.seat.is_none()).map(|_| now + PAUSE_AFTER);
        self.poll_deadline(look, cx).map(|()| Ended::TooSlow)
    }

    /// Takes a seat among the idle or leaves it. Ready when the connection is to give way.
    fn poll_seat(&mut self, is_idle: bool, cx: &Context<'_>) -> Poll<()> {
        if !is_idle {
            self.seat = None;
            return Poll::Pending;
        }
        let idle = &self.serving.gateway.idle;
        self.seat.get_or_insert_with(|| idle.sit_down()).poll_over(cx)
    }

    /// Waits for the next request without hyper.
    fn poll_paused(&mut self, stream: &mut impl Stream, cx: &mut Context<'_>) -> Poll<Ended> {
        match stream.poll_fill(cx) {
            Poll::Ready(Ok(bytes)) if !bytes.is_empty() => {
                self.seat = None;
                return Poll::Ready(Ended::Idle);
            }
            Poll::Ready(_) => return Poll::Ready(Ended::Done),
            Poll::Pending => {}
        }
        if self.poll_seat(true, cx).is_ready() {
            return Poll::Ready(Ended::GaveWay);
        }
        if self.poll_draining(cx) {
            return Poll::Ready(Ended::Done);
        }
        self.poll_deadline(None, cx).map(|()| Ended::TooSlow)
    }

    /// Ready at the deadline. Wakes the task at `look` too, if that is earlier.
    fn poll_deadline(&mut self, look: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline();
        let next = look.map_or(deadline, |look| look.min(deadline));
        if next < self.armed {
            self.arm(next);
        }
        while Pin::new(&mut self.sleep).poll(cx).is_ready() {
            if self.serving.gateway.net.now() >= deadline {
                return Poll::Ready(());
            }
            self.arm(next);
        }
        Poll::Pending
    }

    fn arm(&mut self, deadline: Instant) {
        self.sleep.reset(deadline);
        self.armed = deadline;
    }
}
