//! Shutdown and drain: one latch per worker, and a count of what still has to end.
//!
//! - [`Drain`] is the worker's end: it starts the drain once and waits for the last [`Watch`].
//! - A [`Watch`] is what each connection holds: it tells when to finish, and by being dropped that
//!   it has. A connection cannot forget to report.
//! - Single-threaded and without a clock: the deadline is the worker's business.
//!
//! ```text
//! open --start()--> draining --last Watch dropped--> drained
//! ```

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// Starts the drain and waits for its end.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    shared: Rc<RefCell<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    draining: bool,
    /// One entry per live [`Watch`]: whom to wake when the drain starts.
    watches: Slab<Option<Waker>>,
    /// Who waits for the last watch to go.
    emptied: Option<Waker>,
}

/// Held by whatever a drain has to wait for.
#[derive(Debug)]
#[must_use = "a drain waits only for watches that are held"]
pub struct Watch {
    shared: Rc<RefCell<Shared>>,
    /// Invariant: occupied in `shared.watches` as long as this watch lives.
    slot: usize,
}

impl Drain {
    /// Tells every watch to finish. More than once is the same as once.
    pub fn start(&self) {
        let wakers: Vec<Waker> = {
            let mut shared = self.shared.borrow_mut();
            shared.draining = true;
            shared.watches.iter_mut().filter_map(|(_, waker)| waker.take()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A new watch. One made after the drain has started is told to finish at once.
    pub fn watch(&self) -> Watch {
        let slot = self.shared.borrow_mut().watches.insert(None);
        Watch { shared: Rc::clone(&self.shared), slot }
    }

    /// How many watches are held.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.shared.borrow().watches.len()
    }

    /// Whether the drain has started.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.borrow().draining
    }

    /// Completes when the drain has started and no watch is held.
    pub async fn drained(&self) {
        poll_fn(|cx| self.poll_drained(cx)).await;
    }

    fn poll_drained(&self, cx: &Context<'_>) -> Poll<()> {
        let mut shared = self.shared.borrow_mut();
        if shared.draining && shared.watches.is_empty() {
            return Poll::Ready(());
        }
        shared.emptied = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Watch {
    /// Ready once the drain has started.
    pub fn poll_draining(&self, cx: &Context<'_>) -> Poll<()> {
        let mut shared = self.shared.borrow_mut();
        if shared.draining {
            return Poll::Ready(());
        }
        let waiting = &mut shared.watches[self.slot];
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Completes once the drain has started.
    pub async fn draining(&self) {
        poll_fn(|cx| self.poll_draining(cx)).await;
    }

    /// Whether the drain has started.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.borrow().draining
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let emptied = {
            let mut shared = self.shared.borrow_mut();
            shared.watches.remove(self.slot);
            if shared.draining && shared.watches.is_empty() { shared.emptied.take() } else { None }
        };
        if let Some(waker) = emptied {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_watch_is_told_and_the_last_one_ends_the_drain() {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        let drain = Drain::default();
        let (one, two) = (drain.watch(), drain.watch());
        assert!(one.poll_draining(&cx).is_pending());
        assert!(two.poll_draining(&cx).is_pending());
        drain.start();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        assert!(one.poll_draining(&cx).is_ready());
        drop(one);
        assert!(drain.poll_drained(&cx).is_pending());
        drop(two);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 3, "the waiting drain was woken");
        assert!(drain.poll_drained(&cx).is_ready());
    }

    #[test]
    fn a_drain_that_has_not_started_does_not_end() {
        let drain = Drain::default();
        assert!(drain.poll_drained(&Context::from_waker(Waker::noop())).is_pending());
        drain.start();
        assert!(drain.watch().is_draining(), "a late watch is told at once");
        assert_eq!(drain.watches(), 0);
    }
}
