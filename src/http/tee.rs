//! Copies of a request body, made as it passes.
//!
//! - A copy gets each frame when the request itself takes it from its client, and never makes it
//!   wait.
//! - What a copy has not taken yet is limited: one that falls behind further is cut off. So is one
//!   whose request ends before its body does.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::outgoing::Cut;
use super::pieces::Pieces;

/// The copies that are made of one body.
#[derive(Default)]
pub(super) struct Tee(Vec<Rc<Queue>>);

/// A copy.
pub(crate) struct Copied(Option<Rc<Queue>>);

/// How a copy ends, for who does not take it just now.
pub(crate) struct Fate(Option<Rc<Queue>>);

/// What has passed and was not taken yet.
struct Queue {
    pieces: RefCell<Pieces>,
    /// `None` while there is more to come.
    end: Cell<Option<End>>,
    /// Bytes that are still to be taken, if that is known.
    length: Cell<Option<u64>>,
    waiting: Cell<Option<Waker>>,
    watching: Cell<Option<Waker>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All of it has passed.
    Whole,
    /// The rest never comes.
    Cut,
}

impl Tee {
    /// A copy of a body that has not begun, and whose length is in `hint`. At most `bytes_max` lie
    /// here for it.
    pub(super) fn copy(&mut self, hint: &SizeHint, bytes_max: usize) -> Copied {
        let queue = Rc::new(Queue {
            pieces: RefCell::new(Pieces::new(bytes_max)),
            end: Cell::default(),
            length: Cell::new(hint.exact()),
            waiting: Cell::default(),
            watching: Cell::default(),
        });
        self.0.push(Rc::clone(&queue));
        Copied(Some(queue))
    }

    /// `frame` passes.
    pub(super) fn pass(&mut self, frame: &Frame<Bytes>) {
        // Those that nobody takes any more are let go of, too.
        self.0.retain(|queue| Rc::strong_count(queue) > 1 && queue.push(frame));
    }

    /// All of the body has passed.
    pub(super) fn finish(&mut self) {
        self.0.drain(..).for_each(|queue| queue.end(End::Whole));
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|queue| queue.end(End::Cut));
    }
}

impl Copied {
    /// That of a body that is none.
    pub(super) const EMPTY: Self = Self(None);

    pub(crate) fn fate(&self) -> Fate {
        Fate(self.0.clone())
    }
}

impl Fate {
    /// Ready once nothing more comes, whether or not all of it has been taken.
    pub(crate) fn poll_end(&self, cx: &Context<'_>) -> Poll<End> {
        let Some(queue) = &self.0 else { return Poll::Ready(End::Whole) };
        if let Some(end) = queue.end.get() {
            return Poll::Ready(end);
        }
        queue.watching.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl Queue {
    /// Whether there was room for `frame`.
    fn push(&self, frame: &Frame<Bytes>) -> bool {
        if self.pieces.borrow_mut().push(frame).is_err() {
            self.pieces.borrow_mut().clear();
            self.end(End::Cut);
            return false;
        }
        self.wake();
        true
    }

    fn end(&self, end: End) {
        self.end.set(Some(end));
        self.wake();
        if let Some(waker) = self.watching.take() {
            waker.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    fn take(&self) -> Option<Frame<Bytes>> {
        let frame = self.pieces.borrow_mut().pop()?;
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.length.set(self.length.get().map(|length| length.saturating_sub(bytes)));
        Some(frame)
    }
}

impl Body for Copied {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Some(queue) = &self.0 else { return Poll::Ready(None) };
        if let Some(frame) = queue.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match queue.end.get() {
            Some(End::Whole) => Poll::Ready(None),
            Some(End::Cut) => Poll::Ready(Some(Err(Cut))),
            None => {
                queue.waiting.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|queue| {
            queue.end.get() == Some(End::Whole) && queue.pieces.borrow().len() == 0
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(queue) = &self.0 else { return SizeHint::with_exact(0) };
        queue.length.get().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(copied: &mut Copied) -> Poll<Option<Result<Bytes, ()>>> {
        let mut cx = Context::from_waker(Waker::noop());
        let frame = Pin::new(copied).poll_frame(&mut cx);
        frame.map_ok(|frame| frame.into_data().unwrap()).map_err(|Cut| ())
    }

    fn pass(tee: &mut Tee, text: &'static str) {
        tee.pass(&Frame::data(Bytes::from_static(text.as_bytes())));
    }

    #[test]
    fn a_copy_gets_what_passes_and_ends_with_it() {
        let mut tee = Tee::default();
        let mut copied = tee.copy(&SizeHint::with_exact(5), 100);
        assert!(poll(&mut copied).is_pending());
        pass(&mut tee, "abc");
        assert_eq!(poll(&mut copied), Poll::Ready(Some(Ok("abc".into()))));
        assert_eq!(copied.size_hint().exact(), Some(2));
        pass(&mut tee, "de");
        tee.finish();
        drop(tee);
        assert!(!copied.is_end_stream());
        assert_eq!(poll(&mut copied), Poll::Ready(Some(Ok("de".into()))));
        assert!(copied.is_end_stream());
        assert_eq!(poll(&mut copied), Poll::Ready(None));
    }

    #[test]
    fn a_copy_that_falls_behind_or_loses_its_request_is_cut_off() {
        let mut tee = Tee::default();
        let [mut slow, mut quick] = [4, 4].map(|max| tee.copy(&SizeHint::default(), max));
        pass(&mut tee, "abc");
        assert_eq!(poll(&mut quick), Poll::Ready(Some(Ok("abc".into()))));
        pass(&mut tee, "de");
        assert_eq!(poll(&mut slow), Poll::Ready(Some(Err(()))));
        assert_eq!(poll(&mut quick), Poll::Ready(Some(Ok("de".into()))));
        drop(tee);
        assert_eq!(poll(&mut quick), Poll::Ready(Some(Err(()))));
    }
}
