//! A response body as it comes in, while the rest of the request body still goes out.
//!
//! - The two directions are independent; a frame's data stays where it was received.
//! - When both ended cleanly the connection goes back to the pool at once; a body that is dropped
//!   early drops it.

use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use ::http::HeaderMap;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::io::{Connect, Net, Stream, Take};

use super::super::Bounds;
use super::super::body::Data;
use super::super::error::{Error, Kind, early_end};
use super::super::patience::Patience;
use super::super::pool::{Lease, Pools};
use super::super::transport::Transport;
use super::chunked::Decoder;
use super::head::Framing;
use super::request::{BodyFailed, Upload};

/// An HTTP/1.1 response body of an exchange whose request body is a `B`.
pub(in super::super) struct Incoming<N: Net, B> {
    /// `None` once the body has ended, well or not.
    open: Option<Box<Open<N, B>>>,
    /// Trailers that were received and not yet yielded.
    trailers: Option<HeaderMap>,
}

struct Open<N: Net, B> {
    pools: Rc<Pools<N>>,
    lease: Lease<N>,
    upload: Upload<B>,
    rest: Rest,
    /// The connection can be used again after a clean end.
    keep: bool,
    patience: Patience<N>,
    bounds: Bounds,
}

type PieceOf<N> = <Transport<<N as Connect>::Stream> as Take>::Piece;

/// What has still to come.
enum Rest {
    Length(u64),
    Chunked(Decoder),
    Close,
}

impl<N: Net, B: http_body::Body<Data = Bytes> + Unpin> Incoming<N, B> {
    pub(super) fn new(
        pools: &Rc<Pools<N>>,
        lease: Lease<N>,
        upload: Upload<B>,
        (framing, keep): (Framing, bool),
        bounds: Bounds,
    ) -> Self {
        let rest = match framing {
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => {
                Rest::Chunked(Decoder::new(bounds.head_bytes_max, bounds.header_fields_max))
            }
            Framing::Close => Rest::Close,
        };
        let patience = Patience::new(pools.net.clone(), bounds.stream_idle_timeout);
        let pools = Rc::clone(pools);
        let open = Open { pools, lease, upload, rest, keep, patience, bounds };
        // Boxed: hyper moves a response several times.
        Self { open: Some(Box::new(open)), trailers: None }
    }

    /// Ends the exchange if nothing of the response is left.
    pub(super) fn settle(&mut self) {
        if let Some(open) = self.open.take_if(|open| open.rest.is_ended()) {
            open.end();
        }
    }

    pub(in super::super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data<N>>, Error>>> {
        let Some(open) = &mut self.open else {
            return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        };
        let remote = open.lease.active.remote;
        let result = ready!(open.poll_data(cx)).and_then(|data| {
            self.trailers = open.rest.trailers().map_err(Kind::BadResponse)?;
            Ok(data)
        });
        match result {
            Ok(data) => {
                self.settle();
                let trailers = if data.is_none() { self.trailers.take() } else { None };
                let frame = data
                    .map(|piece| Frame::data(Data::from(piece)))
                    .or_else(|| trailers.map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Err(kind) => {
                self.open = None;
                Poll::Ready(Some(Err(Error::at(remote, kind))))
            }
        }
    }

    pub(in super::super) fn is_end_stream(&self) -> bool {
        self.open.is_none() && self.trailers.is_none()
    }

    pub(in super::super) fn size_hint(&self) -> SizeHint {
        match self.open.as_ref().map(|open| &open.rest) {
            None => SizeHint::with_exact(0),
            Some(Rest::Length(left)) => SizeHint::with_exact(*left),
            Some(Rest::Chunked(_) | Rest::Close) => SizeHint::default(),
        }
    }
}

impl<N: Net, B: http_body::Body<Data = Bytes> + Unpin> Open<N, B> {
    /// The next data, `None` at the end. Sends what can be sent meanwhile.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<PieceOf<N>>, Kind>> {
        let mut moved = false;
        let stream = &mut self.lease.stream;
        if let Poll::Ready(Err(BodyFailed)) = self.upload.poll(stream, cx, &mut moved) {
            return Poll::Ready(Err(Kind::RequestBody));
        }
        if let Poll::Ready(result) = self.rest.poll_data(stream, &mut moved, cx) {
            self.patience.renew();
            return Poll::Ready(result);
        }
        if moved {
            self.patience.renew();
        }
        self.patience.poll_spent(cx).map(|()| Err(self.upload.blame()))
    }

    /// The response has ended: keeps the connection, unless the request has not.
    fn end(self) {
        if self.keep && self.upload.is_done() {
            self.pools.keep(self.lease, self.bounds);
        }
    }
}

impl Rest {
    fn is_ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(decoder) => decoder.ended(),
            Self::Close => false,
        }
    }

    /// The trailers of a body that has ended.
    fn trailers(&mut self) -> Result<Option<HeaderMap>, &'static str> {
        match self {
            Self::Chunked(decoder) if decoder.ended() => decoder.trailers(),
            Self::Chunked(_) | Self::Length(_) | Self::Close => Ok(None),
        }
    }

    fn poll_data<S: Take>(
        &mut self,
        stream: &mut S,
        moved: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<S::Piece>, Kind>> {
        loop {
            if self.is_ended() {
                return Poll::Ready(Ok(None));
            }
            let lent = ready!(stream.poll_fill(cx)).map_err(Kind::Reset)?;
            if lent.is_empty() {
                if !matches!(self, Self::Close) {
                    return Poll::Ready(Err(early_end()));
                }
                *self = Self::Length(0);
                continue;
            }
            let n = self.leading_data(lent.len());
            if n > 0 {
                let data = stream.take(n);
                self.took(n);
                self.look_ahead(stream)?;
                return Poll::Ready(Ok(Some(data)));
            }
            let used = self.skip(lent)?;
            stream.consume(used);
            *moved = true;
        }
    }

    /// How many of `available` bytes are data.
    fn leading_data(&self, available: usize) -> usize {
        let left = match self {
            Self::Length(left) => *left,
            Self::Chunked(decoder) => decoder.data(),
            Self::Close => return available,
        };
        usize::try_from(left).map_or(available, |left| left.min(available))
    }

    fn took(&mut self, n: usize) {
        match self {
            Self::Length(left) => *left -= n as u64,
            Self::Chunked(decoder) => decoder.took(n as u64),
            Self::Close => {}
        }
    }

    fn skip(&mut self, lent: &[u8]) -> Result<usize, Kind> {
        match self {
            Self::Chunked(decoder) => decoder.skip(lent).map_err(Kind::BadResponse),
            Self::Length(_) | Self::Close => Ok(0),
        }
    }

    /// Reads framing that has already come, so that the end is known with the last data.
    fn look_ahead(&mut self, stream: &mut impl Stream) -> Result<(), Kind> {
        let mut cx = Context::from_waker(Waker::noop());
        while let Self::Chunked(decoder) = self
            && decoder.data() == 0
            && !decoder.ended()
            && let Poll::Ready(Ok(lent)) = stream.poll_fill(&mut cx)
            && !lent.is_empty()
        {
            let used = decoder.skip(lent).map_err(Kind::BadResponse)?;
            stream.consume(used);
        }
        Ok(())
    }
}
