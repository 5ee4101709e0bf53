//! A request body on its way to one attempt after the other.
//!
//! - What passed is kept up to a limit, so that another attempt can begin anew; beyond it nothing
//!   is kept and the request is sent once.
//! - Copies for others are made of what passes the first time.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::body::RequestBody;
use super::pieces::Pieces;
use super::tee::{Copied, Tee};

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

struct Kept {
    state: RefCell<State>,
    /// All of it has arrived.
    is_whole: Cell<bool>,
    /// Who waits for that.
    waiting: Cell<Option<Waker>>,
}

struct State {
    source: RequestBody,
    pieces: Pieces,
    tee: Tee,
    /// Something has passed that is not in `pieces`.
    is_lost: bool,
    /// The attempt that may read.
    turn: u32,
}

impl Replay {
    /// At most `bytes_max` of `source` are kept.
    pub(crate) fn new(source: RequestBody, bytes_max: usize) -> Self {
        if source.is_end_stream() {
            return Self(None);
        }
        let (pieces, tee) = (Pieces::new(bytes_max), Tee::default());
        let state = State { source, pieces, tee, is_lost: false, turn: 0 };
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

    /// A copy for somebody else, before any attempt has begun. At most `bytes_max` of it lie here.
    pub(crate) fn copied(&self, bytes_max: usize) -> Copied {
        let Some(kept) = &self.0 else { return Copied::EMPTY };
        let state = &mut *kept.state.borrow_mut();
        state.tee.copy(&state.source.size_hint(), bytes_max)
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
        self.tee.pass(frame);
        if !self.is_lost && self.pieces.push(frame).is_err() {
            self.is_lost = true;
            self.pieces.clear();
        }
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
        let state = &mut *kept.state.borrow_mut();
        if state.turn != self.turn {
            return Poll::Ready(Some(Err(Cut)));
        }
        if let Some(frame) = state.pieces.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = ready!(Pin::new(&mut state.source).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                state.keep(frame);
                self.next = state.pieces.len();
            }
            Some(Err(_)) => {
                state.is_lost = true;
                // What has passed is not all, whatever the source says of its end.
                state.tee = Tee::default();
            }
            None => {}
        }
        if frame.is_none() || state.source.is_end_stream() {
            state.tee.finish();
            kept.set_whole();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|_| Cut)))
    }

    fn is_end_stream(&self) -> bool {
        self.kept.as_ref().is_none_or(|kept| {
            let state = kept.state.borrow();
            state.turn == self.turn
                && self.next >= state.pieces.len()
                && state.source.is_end_stream()
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(kept) = &self.kept else { return SizeHint::with_exact(0) };
        let state = kept.state.borrow();
        let left = state.pieces.data_bytes(self.next);
        match state.source.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(left + rest),
            None => SizeHint::default(),
        }
    }
}
