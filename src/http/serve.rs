//! Drives one connection through hyper, from its first request to its end.
//!
//! ```text
//! Detect -> Http1 -> switched (relay) -> lingering -> closed
//!        \> Http2 ------------------------------------^
//! ```
//!
//! - A drain lets open requests finish: HTTP/1.1 closes after the response, HTTP/2 sends GOAWAY.
//! - A connection that makes no progress by its deadline is closed.

use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;

use super::activity::Observed;
use super::detect::detect;
use super::forward::{Forwarder, Switched};
use super::service::OneAtATime;
use super::{Downstream, Gateway, Protocol};
use crate::drain::Watch;
use crate::io::relay::{Moved, relay};
use crate::io::{Net, Sleep, Stream, linger};
use crate::snapshot::Limits;
use crate::telemetry::request::{Flags, Record};
use crate::upstream::adapt::{Adapted, Tasks};

/// Fields that hyper parses without allocating room for them.
const HYPER_HEADER_FIELDS: usize = 100;

/// Bytes of a response that hyper's HTTP/2 holds for one stream before the upstream has to wait.
const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Serves HTTP on `stream` until it ends, or `watch` says that it is to.
pub(crate) async fn serve<N: Net, S: Stream>(
    gateway: Rc<Gateway<N>>,
    downstream: Rc<Downstream>,
    stream: S,
    protocol: Protocol,
    watch: Watch,
) {
    let limits = gateway.snapshots.borrow_mut().current().limits.clone();
    let serving = Serving { gateway, downstream, limits, watch };
    match protocol {
        Protocol::Http1 => serving.http1(stream).await,
        Protocol::Http2 => serving.http2(stream).await,
        Protocol::Detect => serving.detected(stream).await,
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

impl<N: Net> Serving<N> {
    async fn detected<S: Stream>(self, stream: S) {
        let detecting = detect(stream);
        let limit = self.limits.head_timeout;
        let Ok(Ok((stream, protocol))) =
            crate::io::timeout(&self.gateway.net, limit, detecting).await
        else {
            return;
        };
        match protocol {
            Protocol::Http2 => self.http2(stream).await,
            Protocol::Http1 | Protocol::Detect => self.http1(stream).await,
        }
    }

    async fn http1<S: Stream>(self, stream: S) {
        let forwarder = self.forwarder();
        let service = {
            let forwarder = Rc::clone(&forwarder);
            OneAtATime::new(move |request| {
                let forwarder = Rc::clone(&forwarder);
                async move { forwarder.serve(request).await }
            })
        };
        let mut connection = self.http1_builder().serve_connection(self.adapt(stream), service);
        let mut guard = Guard::new(&self);
        let ended = poll_fn(|cx| {
            if guard.poll_draining(cx) {
                Pin::new(&mut connection).graceful_shutdown();
            }
            let ended = connection.poll_without_shutdown(cx);
            guard.poll(ended, cx)
        })
        .await;
        self.note_malformed(&ended);
        let parts = connection.into_parts();
        let stream = parts.io.into_inner();
        match forwarder.take_switched() {
            Some(switched) => self.join(stream, &parts.read_buf, switched).await,
            None => linger(&self.gateway.net, self.limits.linger_timeout, stream).await,
        }
    }

    fn http1_builder(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(None).max_header_size(self.limits.head_bytes_max);
        if self.limits.header_fields_max != HYPER_HEADER_FIELDS {
            builder.max_headers(self.limits.header_fields_max);
        }
        builder
    }

    async fn http2<S: Stream>(self, stream: S) {
        let forwarder = self.forwarder();
        let service = service_fn(move |request| {
            let forwarder = Rc::clone(&forwarder);
            async move { forwarder.serve(request).await }
        });
        let connection = self.http2_builder().serve_connection(self.adapt(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut guard = Guard::new(&self);
        // How it ended makes no difference: each request has logged its own end.
        let _: Ended = poll_fn(|cx| {
            if guard.poll_draining(cx) {
                connection.as_mut().graceful_shutdown();
            }
            let ended = connection.as_mut().poll(cx);
            guard.poll(ended, cx)
        })
        .await;
    }

    fn http2_builder(&self) -> http2::Builder<Tasks<N>> {
        let limits = &self.limits;
        let mut builder = http2::Builder::new(Tasks(self.gateway.net.clone()));
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

    fn adapt<S: Stream>(&self, stream: S) -> Adapted<Observed<S, N>> {
        let downstream = Rc::clone(&self.downstream);
        Adapted::new(Observed::new(stream, self.gateway.net.clone(), downstream))
    }

    /// Joins a connection that has switched protocols to its upstream, until both are done.
    async fn join<S: Stream>(&self, mut stream: S, early: &[u8], switched: Switched<N>) {
        let Switched { stream: mut upstream, entry, active: _active } = switched;
        let mut moved = Moved::default();
        if upstream.write(&[IoSlice::new(early)]).is_ok() {
            // A side that breaks ends the other; there is nobody left to tell.
            let _: std::io::Result<()> = relay(&mut stream, &mut upstream, &mut moved).await;
        }
        entry.received(moved.forth + early.len() as u64);
        entry.sent(moved.back);
        entry.touch(self.gateway.net.now());
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

/// How a connection ended.
enum Ended {
    /// It has nothing more to say.
    Done,
    Failed(hyper::Error),
    /// It made no progress by its deadline.
    TooSlow,
}

/// What can end a connection from outside: the drain, and its deadline.
struct Guard<'a, N: Net> {
    serving: &'a Serving<N>,
    is_draining: bool,
    /// Armed not later than the deadline; when it fires too early it is armed again.
    sleep: N::Sleep,
    /// When `sleep` fires.
    armed: std::time::Instant,
}

impl<'a, N: Net> Guard<'a, N> {
    fn new(serving: &'a Serving<N>) -> Self {
        let armed = serving.downstream.activity.deadline(&serving.limits);
        let sleep = serving.gateway.net.sleep_until(armed);
        Self { serving, is_draining: false, sleep, armed }
    }

    /// Whether the drain has begun since the last call.
    fn poll_draining(&mut self, cx: &Context<'_>) -> bool {
        if self.is_draining || self.serving.watch.poll_draining(cx).is_pending() {
            return false;
        }
        self.is_draining = true;
        true
    }

    /// Passes on how the connection ended, or ends it at its deadline.
    fn poll(&mut self, ended: Poll<hyper::Result<()>>, cx: &mut Context<'_>) -> Poll<Ended> {
        match ended {
            Poll::Ready(Ok(())) => Poll::Ready(Ended::Done),
            Poll::Ready(Err(error)) => Poll::Ready(Ended::Failed(error)),
            Poll::Pending => self.poll_deadline(cx).map(|()| Ended::TooSlow),
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.serving.downstream.activity.deadline(&self.serving.limits);
        if deadline < self.armed {
            self.arm(deadline);
        }
        while Pin::new(&mut self.sleep).poll(cx).is_ready() {
            if self.serving.gateway.net.now() >= deadline {
                return Poll::Ready(());
            }
            self.arm(deadline);
        }
        Poll::Pending
    }

    fn arm(&mut self, deadline: std::time::Instant) {
        self.sleep.reset(deadline);
        self.armed = deadline;
    }
}
