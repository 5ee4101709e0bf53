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
pub(super) struct Waiter(Cell<Option<Waker>>);

impl Waiter {
    /// From now on the task of `cx` is the one that waits.
    pub(super) fn register(&self, cx: &Context<'_>) {
        let waker = match self.0.take() {
            Some(waker) if waker.will_wake(cx.waker()) => waker,
            _ => cx.waker().clone(),
        };
        self.0.set(Some(waker));
    }

    /// Wakes the task that waits. Runs foreign code: hold no borrow.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }

    /// Nobody waits any more.
    pub(super) fn clear(&self) {
        self.0.take();
    }
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiter")
    }
}
