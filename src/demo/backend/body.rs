//! The bodies that the backend sends.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Interval;

/// A body that is known, paced, or the request's own.
pub(super) enum Body {
    /// In one piece, with its length announced.
    Whole(Option<Bytes>),
    /// Piece by piece.
    Pieces(Pieces),
    /// What the client sends, as it comes.
    Echo(Incoming),
}

pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    /// Whether the length is announced beforehand.
    announced: bool,
    pace: Option<Interval>,
}

impl Body {
    pub(super) fn empty() -> Self {
        Self::Whole(None)
    }

    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// All pieces as fast as the client takes them, without a length.
    pub(super) fn chunked(pieces: VecDeque<Bytes>) -> Self {
        Self::Pieces(Pieces { pieces, announced: false, pace: None })
    }

    /// One piece per `pause`, the first at once, with the length announced.
    pub(super) fn paced(pieces: VecDeque<Bytes>, pause: Duration) -> Self {
        // An interval must not be zero.
        let pause = pause.max(Duration::from_millis(1));
        let pace = Some(tokio::time::interval(pause));
        Self::Pieces(Pieces { pieces, announced: true, pace })
    }
}

impl Pieces {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.pieces.is_empty()
            && let Some(pace) = &mut self.pace
        {
            ready!(pace.poll_tick(cx));
        }
        Poll::Ready(self.pieces.pop_front())
    }

    fn length(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let piece = match self.get_mut() {
            Self::Whole(bytes) => bytes.take(),
            Self::Pieces(pieces) => ready!(pieces.poll(cx)),
            Self::Echo(body) => return Pin::new(body).poll_frame(cx),
        };
        Poll::Ready(piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Pieces(pieces) => pieces.pieces.is_empty(),
            Self::Echo(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Pieces(pieces) if pieces.announced => SizeHint::with_exact(pieces.length()),
            Self::Pieces(_) => SizeHint::default(),
            Self::Echo(body) => body.size_hint(),
        }
    }
}
