//! The response body, whatever the endpoint speaks.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};

use crate::io::{Connect, Net, Take};

use super::error::Error;
use super::transport::Piece;
use super::{h1, h2};

/// The response body of an exchange whose request body is a `B`.
///
/// Polling it also sends the rest of the request body; dropping it gives the exchange up.
pub(crate) struct Body<N: Net, B>(Inner<N, B>);

enum Inner<N: Net, B> {
    Http1(h1::Incoming<N, B>),
    Http2(h2::Incoming<N>),
}

impl<N: Net, B> Body<N, B> {
    pub(super) fn http1(incoming: h1::Incoming<N, B>) -> Self {
        Self(Inner::Http1(incoming))
    }

    pub(super) fn http2(incoming: h2::Incoming<N>) -> Self {
        Self(Inner::Http2(incoming))
    }
}

/// Data of a response: where it was received, if it came by HTTP/1.1 without TLS.
pub(crate) enum Data<N: Net> {
    Bytes(Bytes),
    Piece(<<N as Connect>::Stream as Take>::Piece),
}

impl<N: Net> From<Piece<<<N as Connect>::Stream as Take>::Piece>> for Data<N> {
    fn from(piece: Piece<<<N as Connect>::Stream as Take>::Piece>) -> Self {
        match piece {
            Piece::Plain(piece) => Self::Piece(piece),
            Piece::Bytes(bytes) => Self::Bytes(bytes),
        }
    }
}

impl<N: Net> Buf for Data<N> {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.remaining(),
            Self::Piece(piece) => piece.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.chunk(),
            Self::Piece(piece) => piece.chunk(),
        }
    }

    fn advance(&mut self, n: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(n),
            Self::Piece(piece) => piece.advance(n),
        }
    }
}

/// Nothing in it is ever pinned.
impl<N: Net, B> Unpin for Body<N, B> {}

impl<N: Net, B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Body<N, B> {
    type Data = Data<N>;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data<N>>, Error>>> {
        match &mut self.0 {
            Inner::Http1(incoming) => incoming.poll_frame(cx),
            Inner::Http2(incoming) => {
                incoming.poll_frame(cx).map_ok(|frame| frame.map_data(Data::Bytes))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Http1(incoming) => incoming.is_end_stream(),
            Inner::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Http1(incoming) => incoming.size_hint(),
            Inner::Http2(incoming) => incoming.size_hint(),
        }
    }
}
