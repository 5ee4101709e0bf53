//! Messages from any thread to a task.
//!
//! - Neither side locks or waits for the other; a send wakes the receiver's thread if it sleeps.
//! - Messages of one sender arrive in order.
//! - What nobody will receive is dropped at once, not when the last sender goes: a connection in it
//!   would stay open for as long.
//! - It is not bounded: what is sent here is rare (snapshots, questions of a scrape, connections
//!   handed over), and its senders bound themselves.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use arc_swap::ArcSwapOption;
use crossbeam::queue::SegQueue;

/// Makes a mailbox.
#[must_use]
pub fn mailbox<T: Send>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        messages: SegQueue::new(),
        senders: AtomicUsize::new(1),
        receiver_gone: AtomicBool::new(false),
        waker: ArcSwapOption::empty(),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

/// Puts messages into a mailbox.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// Takes messages out of a mailbox.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    messages: SegQueue<T>,
    senders: AtomicUsize,
    receiver_gone: AtomicBool,
    /// The task that receives. It stays here: waking it twice is harmless.
    waker: ArcSwapOption<Waker>,
}

impl<T> Sender<T> {
    /// Puts `message` into the mailbox and wakes the receiver. If that leaves at this moment, the
    /// message is dropped.
    ///
    /// # Errors
    /// The receiver is gone: here is the message again.
    pub fn send(&self, message: T) -> Result<(), T> {
        if self.shared.receiver_gone.load(Ordering::Acquire) {
            return Err(message);
        }
        self.shared.deliver(message);
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The next message; `None` when there is none and all senders are gone. Dropping the future
    /// loses none.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next message, if one is there.
    pub fn try_recv(&mut self) -> Option<T> {
        self.shared.messages.pop()
    }

    /// As [`recv`](Self::recv), to be called from a future of one's own.
    pub fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Option<T>> {
        if let Some(message) = self.try_recv() {
            return Poll::Ready(Some(message));
        }
        self.shared.register(cx);
        // Whoever came before the waker was there is found by looking again, in this order: the
        // last sender's messages were sent before it left.
        let abandoned = self.shared.senders.load(Ordering::Acquire) == 0;
        match self.try_recv() {
            Some(message) => Poll::Ready(Some(message)),
            None if abandoned => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_gone.store(true, Ordering::Release);
        self.shared.waker.store(None);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.shared.clear();
    }
}

impl<T> Shared<T> {
    fn deliver(&self, message: T) {
        self.messages.push(message);
        self.wake();
        // After the fence in `wake`, which pairs with the one in the receiver's drop: of its last
        // look at the queue and ours, at least one comes after the push.
        if self.receiver_gone.load(Ordering::Acquire) {
            self.clear();
        }
    }

    fn wake(&self) {
        // Pairs with the fence in `register`: the push came first, or the receiver finds it.
        std::sync::atomic::fence(Ordering::SeqCst);
        if let Some(waker) = &*self.waker.load() {
            waker.wake_by_ref();
        }
    }

    fn clear(&self) {
        while self.messages.pop().is_some() {}
    }

    fn register(&self, cx: &Context<'_>) {
        let present = self.waker.load();
        if !present.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker.store(Some(Arc::new(cx.waker().clone())));
        }
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(receiver: &mut Receiver<u32>) -> Poll<Option<u32>> {
        receiver.poll_recv(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn messages_arrive_in_order_and_then_the_end() {
        let (sender, mut receiver) = mailbox();
        let other = sender.clone();
        sender.send(1).unwrap();
        drop(sender);
        other.send(2).unwrap();
        assert_eq!(poll(&mut receiver), Poll::Ready(Some(1)));
        assert_eq!(poll(&mut receiver), Poll::Ready(Some(2)));
        assert_eq!(poll(&mut receiver), Poll::Pending);
        drop(other);
        assert_eq!(poll(&mut receiver), Poll::Ready(None));
    }

    #[test]
    fn a_message_without_a_receiver_comes_back() {
        let (sender, receiver) = mailbox();
        drop(receiver);
        assert_eq!(sender.send(7), Err(7));
    }
    #[test]
    fn nothing_stays_behind_when_the_receiver_leaves_during_a_send() {
        let (sender, receiver) = mailbox();
        let message = Arc::new(());
        drop(receiver);
        // As in a send that had looked before that.
        sender.shared.deliver(Arc::clone(&message));
        assert_eq!(Arc::strong_count(&message), 1);
    }
}
