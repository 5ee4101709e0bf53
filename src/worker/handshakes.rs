//! Handshakes under way: only so many, and beyond that the one that has taken longest gives way.
//!
//! Refusing the new ones instead would let whoever connects and keeps silent keep everybody out,
//! with no more connections than there may be handshakes. Those of others are done long before they
//! are the oldest.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Those of one worker.
#[derive(Default)]
pub(super) struct Handshakes {
    /// In the order of coming.
    under_way: RefCell<BTreeMap<u64, Rc<Slot>>>,
    /// How many came.
    came: Cell<u64>,
}

#[derive(Default)]
struct Slot {
    /// It is to give way.
    is_over: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

/// A handshake within the limit, counted until it is dropped: also by a panic, or a drain.
#[must_use]
pub(super) struct Shaking<'a> {
    handshakes: &'a Handshakes,
    number: u64,
    slot: Rc<Slot>,
}

impl Handshakes {
    /// One more. If there are `max` already, the oldest gives way to it.
    pub(super) fn begin(&self, max: usize) -> Shaking<'_> {
        let (number, slot) = (self.came.get(), Rc::<Slot>::default());
        self.came.set(number + 1);
        let oldest = {
            let mut under_way = self.under_way.borrow_mut();
            let is_full = under_way.len() >= max;
            let oldest = is_full.then(|| under_way.pop_first()).flatten();
            under_way.insert(number, Rc::clone(&slot));
            oldest
        };
        if let Some((_, oldest)) = oldest {
            oldest.is_over.set(true);
            oldest.waker.take().into_iter().for_each(Waker::wake);
        }
        Shaking { handshakes: self, number, slot }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.under_way.borrow().len()
    }
}

impl Shaking<'_> {
    /// Runs `future`; `None` if the handshake has to give way before that is done.
    pub(super) async fn run<F: Future + Unpin>(&self, mut future: F) -> Option<F::Output> {
        poll_fn(|cx| {
            if self.slot.is_over.get() {
                return Poll::Ready(None);
            }
            self.slot.waker.set(Some(cx.waker().clone()));
            Pin::new(&mut future).poll(cx).map(Some)
        })
        .await
    }
}

impl Drop for Shaking<'_> {
    fn drop(&mut self) {
        self.handshakes.under_way.borrow_mut().remove(&self.number);
    }
}
