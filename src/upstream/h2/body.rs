//! Bodies of HTTP/2, and for how long one waits for them.
//!
//! A request's body is sent by the connection's own task: how it moves is seen from here by
//! [`Progress`].

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::io::Net;

use super::super::endpoint::Active;
use super::super::error::{Error, Kind};
use super::super::patience::Patience;
use super::connections::Stream;
use super::kind;

/// The request body failed: the client's fault.
#[derive(Debug)]
pub(super) struct BodyFailed;

impl std::fmt::Display for BodyFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request body failed")
    }
}

impl std::error::Error for BodyFailed {}

/// What became of a request body, which hyper sends elsewhere.
#[derive(Default)]
pub(super) struct Progress {
    frames: Cell<u64>,
    /// The client is to send the next one.
    is_awaited: Cell<bool>,
    /// hyper resets the stream then, and forgets why.
    failed: Cell<bool>,
}

/// A request body that tells when it moves.
pub(super) struct Observed<B> {
    pub(super) body: B,
    pub(super) progress: Rc<Progress>,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Observed<B> {
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.progress.is_awaited.set(frame.is_pending());
        if let Poll::Ready(frame) = &frame {
            self.progress.frames.set(self.progress.frames.get() + 1);
            self.progress.failed.set(matches!(frame, Some(Err(_))));
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(|_| BodyFailed)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Patience with an exchange whose request body moves elsewhere.
pub(super) struct Watch<N: Net> {
    patience: Patience<N>,
    progress: Rc<Progress>,
    seen: u64,
}

impl<N: Net> Watch<N> {
    pub(super) fn new(net: &N, limit: Duration, progress: Rc<Progress>) -> Self {
        Self { patience: Patience::new(net.clone(), limit), progress, seen: 0 }
    }

    /// What a failure of hyper means for this exchange.
    pub(super) fn kind(&self, error: &hyper::Error) -> Kind {
        if self.progress.failed.get() { Kind::RequestBody } else { kind(error) }
    }

    /// Ready when nothing has moved for too long, with whose fault that is.
    pub(super) fn poll_spent(&mut self, cx: &mut Context<'_>) -> Poll<Kind> {
        if self.seen != self.progress.frames.get() {
            self.seen = self.progress.frames.get();
            self.patience.renew();
        }
        let is_awaited = self.progress.is_awaited.get();
        let kind = if is_awaited { Kind::SlowClient } else { Kind::Timeout };
        self.patience.poll_spent(cx).map(|()| kind)
    }
}

/// An HTTP/2 response body.
pub(in super::super) struct Incoming<N: Net> {
    pub(super) body: hyper::body::Incoming,
    /// Held to count.
    pub(super) _stream: Stream,
    pub(super) patience: Watch<N>,
    pub(super) active: Active<N>,
    /// It failed: nothing more comes.
    pub(super) ended: bool,
}

impl<N: Net> Incoming<N> {
    pub(in super::super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let remote = self.active.remote;
        if let Poll::Ready(frame) = http_body::Body::poll_frame(Pin::new(&mut self.body), cx) {
            self.patience.patience.renew();
            self.ended = !matches!(frame, Some(Ok(_)));
            let failed = |error| Error::at(remote, self.patience.kind(&error));
            return Poll::Ready(frame.map(|frame| frame.map_err(failed)));
        }
        if self.patience.poll_spent(cx).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        Poll::Ready(Some(Err(Error::at(remote, Kind::Timeout))))
    }

    pub(in super::super) fn is_end_stream(&self) -> bool {
        self.ended || http_body::Body::is_end_stream(&self.body)
    }

    pub(in super::super) fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}
