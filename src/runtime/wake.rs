//! Wakes a thread that may be waiting in the kernel, from any other.
//!
//! - [`Bell::ring`] costs one atomic swap; it writes to the eventfd only when the thread has said
//!   that it will wait, and only the first of several rings does.
//! - No wake is lost: the thread says [`Bell::expect`], then looks once more at whatever it may be
//!   woken for, and only then waits. Who rings has put its reason there before. Of the two, at
//!   least one sees the other.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use rustix::event::{EventfdFlags, eventfd};

/// The bell of one thread.
#[derive(Debug)]
pub(super) struct Bell {
    /// Readable when it was rung. Both drivers wait for that.
    pub(super) eventfd: OwnedFd,
    /// The thread waits, or is about to, and nobody has rung since.
    expecting: AtomicBool,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { eventfd, expecting: AtomicBool::new(false) })
    }

    /// From now on rings reach the eventfd.
    pub(super) fn expect(&self) {
        self.expecting.store(true, Ordering::SeqCst);
        // Pairs with the swap in `ring`: the looks that follow this are not moved before it.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// The thread is awake: rings need not reach the eventfd.
    pub(super) fn ignore(&self) {
        self.expecting.store(false, Ordering::SeqCst);
    }

    /// Wakes the thread, if it waits.
    pub(super) fn ring(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.expecting.swap(false, Ordering::SeqCst) {
            // It blocks only 2^64 unread rings later.
            let written = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
            debug_assert_eq!(written, Ok(8));
        }
    }
}

/// The task that waits for something, if one does.
#[derive(Default)]
pub(super) struct Waiter {
    /// Kept when it is woken: mostly the same task waits again, which then costs no reference.
    waker: Cell<Option<Waker>>,
    waiting: Cell<bool>,
}

impl Waiter {
    /// From now on the task of `cx` is the one that waits.
    pub(super) fn register(&self, cx: &Context<'_>) {
        let waker = match self.waker.take() {
            Some(waker) if waker.will_wake(cx.waker()) => waker,
            _ => cx.waker().clone(),
        };
        self.waker.set(Some(waker));
        self.waiting.set(true);
    }

    /// Wakes the task that waits. Runs foreign code: hold no borrow.
    pub(super) fn wake(&self) {
        if !self.waiting.replace(false) {
            return;
        }
        let Some(waker) = self.waker.take() else { return };
        waker.wake_by_ref();
        // Unless that code has made another one wait.
        let newer = self.waker.take();
        self.waker.set(newer.or(Some(waker)));
    }

    /// Nobody waits any more.
    pub(super) fn clear(&self) {
        self.waiting.set(false);
        self.waker.take();
    }
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waker() -> (Arc<Wakes>, Waker) {
        let wakes = Arc::new(Wakes::default());
        (Arc::clone(&wakes), Waker::from(wakes))
    }

    #[test]
    fn who_waits_is_woken_once_for_each_wait() {
        let waiter = Waiter::default();
        let ((first, one), (second, two)) = (waker(), waker());
        for (waker, wakes) in [(&one, &first), (&one, &first), (&two, &second)] {
            let before = wakes.0.load(Ordering::Relaxed);
            waiter.register(&Context::from_waker(waker));
            waiter.wake();
            waiter.wake();
            assert_eq!(wakes.0.load(Ordering::Relaxed), before + 1);
        }
        waiter.register(&Context::from_waker(&two));
        waiter.clear();
        waiter.wake();
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (2, 1));
    }

    #[test]
    fn whoever_begins_to_wait_during_a_wake_is_not_forgotten() {
        thread_local! {
            static WAITER: Waiter = Waiter::default();
        }
        struct Successor(Waker);
        impl Wake for Successor {
            fn wake(self: Arc<Self>) {
                WAITER.with(|waiter| waiter.register(&Context::from_waker(&self.0)));
            }
        }
        let (wakes, next) = waker();
        let first = Waker::from(Arc::new(Successor(next)));
        WAITER.with(|waiter| {
            waiter.register(&Context::from_waker(&first));
            waiter.wake();
            assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
            waiter.wake();
            assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        });
    }
}
