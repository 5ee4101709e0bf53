//! A request body on its way to one attempt after the other.
//!
//! - What passed is kept up to a limit, so that another attempt can begin anew; beyond it nothing
//!   is kept and the request is sent once.
//! - Kept data is shared with what was sent, not copied; only small pieces are, into one, so that
//!   what is kept takes little more memory than the limit allows data.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use ::http::HeaderMap;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

use super::body::RequestBody;

/// Kept pieces that are smaller than this together become one. Each takes about a hundred bytes
/// beside its data.
const JOINED_BYTES_MAX: usize = 1024;

/// The body of a request, for as many attempts as it takes.
#[derive(Clone)]
pub(crate) struct Replay(Option<Rc<Kept>>);

/// The body for one attempt.
pub(crate) struct Outgoing {
    kept: Option<Rc<Kept>>,
    /// Which attempt.
    turn: u32,
    /// The next of the kept frames.
    next: usize,
}

/// The client broke off, or another attempt has begun: what was sent is not all.
#[derive(Debug)]
pub(crate) struct Cut;

/// A body that has arrived.
pub(crate) struct Copied(std::vec::IntoIter<Piece>);

struct Kept {
    state: RefCell<State>,
    /// All of it has arrived.
    is_whole: Cell<bool>,
    /// Who waits for that.
    waiting: Cell<Option<Waker>>,
}

struct State {
    source: RequestBody,
    frames: Vec<Piece>,
    /// Room for more.
    bytes_left: usize,
    /// Something has passed that is not in `frames`.
    is_lost: bool,
    /// The attempt that may read.
    turn: u32,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Replay {
    /// At most `bytes_max` of `source` are kept.
    pub(crate) fn new(source: RequestBody, bytes_max: usize) -> Self {
        if source.is_end_stream() {
            return Self(None);
        }
        let (frames, is_lost) = (Vec::new(), false);
        let state = State { source, frames, bytes_left: bytes_max, is_lost, turn: 0 };
        let (is_whole, waiting) = (Cell::new(false), Cell::new(None));
        Self(Some(Rc::new(Kept { state: state.into(), is_whole, waiting })))
    }

    /// The body from its beginning. The attempt before is stopped.
    pub(crate) fn outgoing(&self) -> Outgoing {
        let mut outgoing = Outgoing { kept: self.0.clone(), turn: 0, next: 0 };
        if let Some(kept) = &self.0 {
            let mut state = kept.state.borrow_mut();
            state.turn += 1;
            outgoing.turn = state.turn;
        }
        outgoing
    }

    /// Stops the attempt that is under way: what still reads for it, as a task of HTTP/2 may for a
    /// while, fails, and takes nothing of what the next attempt needs.
    pub(crate) fn stop(&self) {
        if let Some(kept) = &self.0 {
            kept.state.borrow_mut().turn += 1;
        }
    }

    /// Whether it can be sent from its beginning.
    pub(crate) fn can_repeat(&self) -> bool {
        self.0.as_ref().is_none_or(|kept| !kept.state.borrow().is_lost)
    }

    /// All of it for somebody else, if it has arrived and was kept.
    pub(crate) fn copied(&self) -> Option<Copied> {
        let Some(kept) = &self.0 else { return Some(Copied(Vec::new().into_iter())) };
        let state = kept.state.borrow();
        let is_there = kept.is_whole.get() && !state.is_lost;
        is_there.then(|| Copied(state.frames.clone().into_iter()))
    }

    /// Whether there is no body.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Ready once all of it has arrived. One task may wait.
    pub(crate) fn poll_whole(&self, cx: &Context<'_>) -> Poll<()> {
        match &self.0 {
            Some(kept) if !kept.is_whole.get() => {
                kept.waiting.set(Some(cx.waker().clone()));
                Poll::Pending
            }
            Some(_) | None => Poll::Ready(()),
        }
    }
}

impl Kept {
    fn set_whole(&self) {
        self.is_whole.set(true);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

impl State {
    /// Keeps `frame` if there is room, and forgets everything if there is not.
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if self.is_lost {
            return;
        }
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let bytes = bytes + frame.trailers_ref().map_or(0, trailer_bytes);
        if bytes > self.bytes_left {
            self.is_lost = true;
            self.frames = Vec::new();
            return;
        }
        self.bytes_left -= bytes;
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => keep_data(&mut self.frames, data),
            (None, Some(trailers)) => self.frames.push(Piece::Trailers(trailers.clone())),
            (None, None) => {}
        }
    }
}

/// Adds `data` to the last of `pieces` if both are small.
fn keep_data(pieces: &mut Vec<Piece>, data: &Bytes) {
    match pieces.last_mut() {
        _ if data.is_empty() => {}
        Some(Piece::Data(last)) if last.len() + data.len() <= JOINED_BYTES_MAX => {
            // Its own already, unless it is the first or was sent meanwhile.
            let own = std::mem::take(last).try_into_mut();
            let mut joined = own.unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            joined.extend_from_slice(data);
            *last = joined.freeze();
        }
        Some(_) | None => pieces.push(Piece::Data(data.clone())),
    }
}

fn trailer_bytes(trailers: &HeaderMap) -> usize {
    trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

impl Piece {
    fn frame(&self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data.clone()),
            Self::Trailers(trailers) => Frame::trailers(trailers.clone()),
        }
    }
}

/// How many bytes of data `pieces` have.
fn length(pieces: &[Piece]) -> u64 {
    let bytes = |piece: &Piece| match piece {
        Piece::Data(data) => data.len() as u64,
        Piece::Trailers(_) => 0,
    };
    pieces.iter().map(bytes).sum()
}

impl Body for Copied {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(piece.frame())))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let pieces = self.0.as_slice();
        if pieces.iter().any(|piece| matches!(piece, Piece::Trailers(_))) {
            // A length would leave no room for trailers.
            return SizeHint::default();
        }
        SizeHint::with_exact(length(pieces))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Some(kept) = self.kept.clone() else { return Poll::Ready(None) };
        let mut state = kept.state.borrow_mut();
        if state.turn != self.turn {
            return Poll::Ready(Some(Err(Cut)));
        }
        if let Some(piece) = state.frames.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(piece.frame())));
        }
        let frame = ready!(Pin::new(&mut state.source).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                state.keep(frame);
                self.next = state.frames.len();
            }
            Some(Err(_)) => state.is_lost = true,
            None => {}
        }
        if frame.is_none() || state.source.is_end_stream() {
            kept.set_whole();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|_| Cut)))
    }

    fn is_end_stream(&self) -> bool {
        self.kept.as_ref().is_none_or(|kept| {
            let state = kept.state.borrow();
            state.turn == self.turn
                && self.next >= state.frames.len()
                && state.source.is_end_stream()
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(kept) = &self.kept else { return SizeHint::with_exact(0) };
        let state = kept.state.borrow();
        let left = length(state.frames.get(self.next..).unwrap_or_default());
        match state.source.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(left + rest),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(frames: impl IntoIterator<Item = Bytes>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        frames.into_iter().for_each(|data| keep_data(&mut pieces, &data));
        pieces
    }

    #[test]
    fn pieces_are_few_however_small_the_frames() {
        for size in [0, 1, 7, 511, 513, 1024, 16 * 1024] {
            let all: Vec<u8> = (0..=250).cycle().take(64 * 1024).collect();
            let frames: Vec<_> = match size {
                0 => vec![Bytes::new(); 1000],
                _ => all.chunks(size).map(Bytes::copy_from_slice).collect(),
            };
            let pieces = kept(frames);
            assert!(pieces.len() <= 2 * 64 + 1, "{size}: {}", pieces.len());
            let again: Vec<u8> =
                pieces.iter().flat_map(|piece| piece.frame().into_data().unwrap()).collect();
            assert_eq!(again, if size == 0 { Vec::new() } else { all }, "{size}");
        }
    }

    #[test]
    fn what_was_sent_does_not_change() {
        let mut pieces = kept([Bytes::from_static(b"ab"), Bytes::from_static(b"cd")]);
        let sent = pieces[0].frame().into_data().unwrap();
        keep_data(&mut pieces, &Bytes::from_static(b"ef"));
        assert_eq!((&sent[..], pieces.len()), (&b"abcd"[..], 1));
        assert_eq!(pieces[0].frame().into_data().unwrap(), "abcdef");
    }
}
