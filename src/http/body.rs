//! The bodies that hyper reads from and writes to a client, counted on the way.
//!
//! - A body is never collected: frames pass one at a time, when the other side has room.
//! - The last of the two to be dropped writes the request's [`Entry`].

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::deadline::Deadline;
use super::entry::Entry;
use super::headers;
use super::outgoing::Outgoing;
use crate::io::Net;
use crate::telemetry::request::Flags;
use crate::upstream::{self, Data, Nothing};

/// What the client sends.
pub(crate) struct RequestBody {
    incoming: Incoming,
    entry: Rc<Entry>,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, entry: Rc<Entry>) -> Self {
        Self { incoming, entry }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame {
            self.entry.received(data_bytes(frame));
            if let (Some(call), Some(data)) = (self.entry.call(), frame.data_ref()) {
                call.request.pass(data);
            }
            if let Some(trailers) = frame.trailers_mut() {
                headers::clean_trailers(trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// What the client gets.
pub(crate) struct ResponseBody<N: Net> {
    source: Source<N>,
    /// By when it has to be complete.
    deadline: Option<Box<Deadline<N>>>,
    /// Nothing more is to come, whatever `source` says.
    is_done: bool,
    entry: Rc<Entry>,
    clock: N,
}

/// Where a response body comes from.
pub(crate) enum Source<N: Net> {
    /// The gateway's own words, until they are sent.
    Own(Option<Bytes>),
    Upstream(upstream::Body<N, Outgoing>),
    /// To a request that asked for another protocol in vain.
    Refused(upstream::Body<N, Nothing>),
}

impl<N: Net> ResponseBody<N> {
    /// `is_head` when the client gets no body whatever the source holds.
    pub(crate) fn new(source: Source<N>, entry: Rc<Entry>, clock: N, is_head: bool) -> Self {
        Self { source, deadline: None, is_done: is_head, entry, clock }
    }

    /// It is broken off when `deadline` passes; the gateway's own words, which may be about just
    /// that, are not.
    pub(crate) fn limit(&mut self, deadline: Option<Box<Deadline<N>>>) {
        if !matches!(self.source, Source::Own(_)) {
            self.deadline = deadline;
        }
    }

    /// Fails when the deadline has passed; ready only then.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<upstream::Error> {
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        deadline.poll_passed(cx).map(|()| upstream::Error::timeout())
    }

    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data<N>>, upstream::Error>>> {
        match &mut self.source {
            Source::Own(text) => {
                Poll::Ready(text.take().map(|text| Ok(Frame::data(Data::Bytes(text)))))
            }
            Source::Upstream(body) => Pin::new(body).poll_frame(cx),
            Source::Refused(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn count_grpc(&self, frame: &Frame<Data<N>>) {
        let Some(call) = self.entry.call() else { return };
        if let Some(data) = frame.data_ref() {
            // Either kind of data is one piece.
            call.response.pass(data.chunk());
        }
        if let Some(trailers) = frame.trailers_ref() {
            call.ends_with(trailers);
        }
    }

    /// The gateway's own words.
    pub(crate) fn own(text: Bytes, entry: Rc<Entry>, clock: N, is_head: bool) -> Self {
        let source = Source::Own((!text.is_empty()).then_some(text));
        Self::new(source, entry, clock, is_head)
    }
}

impl<N: Net> Body for ResponseBody<N> {
    type Data = Data<N>;
    type Error = upstream::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data<N>>, upstream::Error>>> {
        if self.is_done {
            return Poll::Ready(None);
        }
        let frame = match self.poll_deadline(cx) {
            // Before the source: that one may always have something.
            Poll::Ready(late) => Some(Err(late)),
            Poll::Pending => ready!(self.poll_source(cx)),
        };
        match &frame {
            Some(Ok(frame)) => {
                self.entry.sent(data_bytes(frame));
                self.count_grpc(frame);
            }
            Some(Err(error)) => {
                self.entry.flag(super::error::flags(error));
                self.is_done = true;
            }
            None => self.is_done = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.is_done
            || match &self.source {
                Source::Own(text) => text.is_none(),
                Source::Upstream(body) => body.is_end_stream(),
                Source::Refused(body) => body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
            Source::Upstream(body) => body.size_hint(),
            Source::Refused(body) => body.size_hint(),
        }
    }
}

impl<N: Net> Drop for ResponseBody<N> {
    fn drop(&mut self) {
        self.entry.touch(self.clock.now());
        if !self.is_done && !self.is_end_stream() {
            self.entry.flag(Flags::DOWNSTREAM_TERMINATION);
        }
    }
}

fn data_bytes(frame: &Frame<impl Buf>) -> u64 {
    frame.data_ref().map_or(0, |data| data.remaining() as u64)
}
