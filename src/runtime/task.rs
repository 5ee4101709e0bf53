//! The tasks of one thread, and their wakers.
//!
//! - A task is polled again only after it was woken; being woken twice is being woken once, or
//!   twice if one of them was elsewhere.
//! - A wake on the task's own thread is a push to a queue, without a locked instruction. A wake
//!   elsewhere goes through a lock-free queue and rings the thread's [`Bell`].
//! - A panic ends the task that panicked, is counted, and goes no further.
//! - Waking a task that has ended does nothing.
//!
//! Wakers are made by [`std::task::Wake`], so there is nothing unsafe here.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam::queue::SegQueue;

use super::slot::{Key, Slots};
use super::wake::Bell;

thread_local! {
    /// Woken tasks of the runtime whose number stands beside, in the order of their wakes.
    static READY: Ready = const { Ready::new() };
}

struct Ready {
    /// The runtime of this thread, 0 for none.
    runtime: Cell<u64>,
    queue: RefCell<VecDeque<Key>>,
}

impl Ready {
    const fn new() -> Self {
        Self { runtime: Cell::new(0), queue: RefCell::new(VecDeque::new()) }
    }
}

/// All tasks of one thread.
pub(super) struct Tasks {
    /// A task is `None` while it is polled.
    slots: RefCell<Slots<Option<Task>>>,
    remote: Arc<Remote>,
    /// Spawning is over: what is spawned now is dropped.
    closed: Cell<bool>,
    panics: Cell<u64>,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    wakeup: Arc<Wakeup>,
    /// Wraps `wakeup`; kept so that a poll costs no reference count.
    waker: Waker,
}

/// What other threads see of a runtime.
#[derive(Debug)]
pub(super) struct Remote {
    /// Different for every runtime of the process; never 0.
    pub(super) runtime: u64,
    /// Tasks woken by other threads.
    woken: SegQueue<Key>,
    pub(super) bell: Bell,
}

/// The waker of a task.
#[derive(Debug)]
pub(super) struct Wakeup {
    key: Key,
    /// The task's own thread has queued it. No other thread reads or writes this.
    queued: AtomicBool,
    /// Another thread has queued it.
    queued_elsewhere: AtomicBool,
    remote: Arc<Remote>,
}

impl Tasks {
    /// The tasks of this thread, of which there may be only one set at a time.
    pub(super) fn new(remote: Arc<Remote>) -> Self {
        READY.with(|ready| ready.runtime.set(remote.runtime));
        let (closed, panics) = (Cell::new(false), Cell::new(0));
        Self { slots: RefCell::new(Slots::new()), remote, closed, panics }
    }

    pub(super) fn remote(&self) -> &Arc<Remote> {
        &self.remote
    }

    /// The waker of the future that the loop itself runs: it is named [`Key::NONE`] in the queue.
    pub(super) fn main(&self) -> Arc<Wakeup> {
        Arc::new(Wakeup::new(Key::NONE, &self.remote))
    }

    /// Adds a task, to be polled in this turn.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        if self.closed.get() {
            return;
        }
        let future = Box::pin(future);
        let key = self.slots.borrow_mut().insert(None);
        let wakeup = Arc::new(Wakeup::new(key, &self.remote));
        let waker = Waker::from(Arc::clone(&wakeup));
        let task = Task { future, wakeup: Arc::clone(&wakeup), waker };
        self.put(key, task);
        wakeup.wake_by_ref();
    }

    /// The next task to poll.
    pub(super) fn next_ready(&self) -> Option<Key> {
        READY.with(|ready| ready.queue.borrow_mut().pop_front())
    }

    /// Whether a task is to be polled.
    pub(super) fn any_ready(&self) -> bool {
        READY.with(|ready| !ready.queue.borrow().is_empty())
    }

    /// Queues the tasks that other threads woke. Returns whether there were any.
    pub(super) fn collect_remote(&self) -> bool {
        let mut any = false;
        READY.with(|ready| {
            while let Some(key) = self.remote.woken.pop() {
                ready.queue.borrow_mut().push_back(key);
                any = true;
            }
        });
        any
    }

    /// Polls a task once. Does nothing when it has ended.
    pub(super) fn poll(&self, key: Key) {
        let Some(mut task) = self.slots.borrow_mut().find_mut(key).and_then(Option::take) else {
            return;
        };
        task.wakeup.unqueue();
        let polling =
            AssertUnwindSafe(|| task.future.as_mut().poll(&mut Context::from_waker(&task.waker)));
        match catch_unwind(polling) {
            Ok(Poll::Pending) => self.put(key, task),
            Ok(Poll::Ready(())) => self.end(key, task),
            Err(_) => {
                self.panics.set(self.panics.get() + 1);
                self.end(key, task);
            }
        }
    }

    /// How many tasks exist.
    pub(super) fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    /// How many tasks have panicked.
    pub(super) fn panics(&self) -> u64 {
        self.panics.get()
    }

    /// Drops all tasks; there will be no others.
    pub(super) fn close(&self) {
        self.closed.set(true);
        let keys: Vec<_> = self.slots.borrow().keys().collect();
        for key in keys {
            let task = self.slots.borrow_mut().remove(key).flatten();
            self.drop_caught(task);
        }
        READY.with(|ready| {
            ready.queue.borrow_mut().clear();
            ready.runtime.set(0);
        });
    }

    fn put(&self, key: Key, task: Task) {
        if let Some(slot) = self.slots.borrow_mut().find_mut(key) {
            *slot = Some(task);
        }
    }

    fn end(&self, key: Key, task: Task) {
        self.slots.borrow_mut().remove(key);
        self.drop_caught(Some(task));
    }

    fn drop_caught(&self, task: Option<Task>) {
        if catch_unwind(AssertUnwindSafe(|| drop(task))).is_err() {
            self.panics.set(self.panics.get() + 1);
        }
    }
}

impl Remote {
    pub(super) fn new() -> io::Result<Self> {
        static RUNTIMES: AtomicU64 = AtomicU64::new(1);
        let runtime = RUNTIMES.fetch_add(1, Ordering::Relaxed);
        Ok(Self { runtime, woken: SegQueue::new(), bell: Bell::new()? })
    }
}

impl Wakeup {
    fn new(key: Key, remote: &Arc<Remote>) -> Self {
        let (queued, queued_elsewhere) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { key, queued, queued_elsewhere, remote: Arc::clone(remote) }
    }

    /// The task is about to be polled: from now on a wake queues it again.
    pub(super) fn unqueue(&self) {
        self.queued.store(false, Ordering::Relaxed);
        // Who sets it unseen has put the task into the queue, and will be seen then.
        if self.queued_elsewhere.load(Ordering::Relaxed) {
            // Acquires what was written before the wake.
            self.queued_elsewhere.swap(false, Ordering::AcqRel);
        }
    }

    fn wake_here(&self, ready: &Ready) {
        if !self.queued.load(Ordering::Relaxed) {
            self.queued.store(true, Ordering::Relaxed);
            ready.queue.borrow_mut().push_back(self.key);
        }
    }

    fn wake_from_elsewhere(&self) {
        if !self.queued_elsewhere.swap(true, Ordering::AcqRel) {
            self.remote.woken.push(self.key);
            self.remote.bell.ring();
        }
    }
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let here = READY.try_with(|ready| {
            let own = ready.runtime.get() == self.remote.runtime;
            if own {
                self.wake_here(ready);
            }
            own
        });
        if here != Ok(true) {
            self.wake_from_elsewhere();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    /// A task that counts its polls and never ends.
    fn counting(tasks: &Tasks) -> (Rc<Cell<u32>>, Waker) {
        let polls = Rc::new(Cell::new(0));
        let waker = Rc::new(Cell::new(None));
        let (counted, shown) = (Rc::clone(&polls), Rc::clone(&waker));
        tasks.spawn(std::future::poll_fn(move |cx| {
            counted.set(counted.get() + 1);
            shown.set(Some(cx.waker().clone()));
            Poll::Pending
        }));
        poll_all(tasks);
        (polls, waker.take().expect("it was polled"))
    }

    fn poll_all(tasks: &Tasks) {
        tasks.collect_remote();
        std::iter::from_fn(|| tasks.next_ready()).for_each(|key| tasks.poll(key));
    }

    fn wake_elsewhere(waker: &Waker) {
        let waker = waker.clone();
        std::thread::spawn(move || waker.wake()).join().unwrap();
    }

    #[test]
    fn wakes_of_one_side_are_one() {
        let tasks = Tasks::new(Arc::new(Remote::new().unwrap()));
        let (polls, waker) = counting(&tasks);
        for n in 0..3 {
            waker.wake_by_ref();
            waker.wake_by_ref();
            poll_all(&tasks);
            assert_eq!(polls.get(), 2 + 2 * n);
            wake_elsewhere(&waker);
            wake_elsewhere(&waker);
            poll_all(&tasks);
            assert_eq!(polls.get(), 3 + 2 * n);
        }
        tasks.close();
    }

    #[test]
    fn a_wake_here_does_not_swallow_one_from_elsewhere() {
        let tasks = Tasks::new(Arc::new(Remote::new().unwrap()));
        let (polls, waker) = counting(&tasks);
        waker.wake_by_ref();
        wake_elsewhere(&waker);
        // Polled for the wake here, which is first in the queue, it also sees the other.
        poll_all(&tasks);
        assert!((2..=3).contains(&polls.get()));
        let before = polls.get();
        wake_elsewhere(&waker);
        waker.wake_by_ref();
        poll_all(&tasks);
        assert!(polls.get() > before);
        let before = polls.get();
        wake_elsewhere(&waker);
        poll_all(&tasks);
        assert_eq!(polls.get(), before + 1, "and the next one counts again");
        tasks.close();
    }
}
