//! Which worker serves a fresh connection.
//!
//! The kernel spreads connections over the workers by a hash (`SO_REUSEPORT`), so of a few heavy
//! ones some worker gets most, and those of a Unix socket all come to one. A worker that is far
//! above the mean hands a fresh connection to the less loaded of two random others, before anything
//! of it was read. Later it stays where it is.
//!
//! - What a worker is loaded with is the share of a CPU that its thread has used lately, which also
//!   counts the kernel's work for it. For a connection of which that tells nothing yet, it is what
//!   a connection costs on average; a small part of that remains with an old one, which may be idle
//!   now and busy later. So connections that come all at once are spread by their number.
//! - Every worker shows its load in a cache line that it alone writes, but for the number of those
//!   that are on their way to it. Deciding reads the lines of all others: nothing is locked.
//! - What is handed over arrives: a worker that closes its door takes in whatever was announced
//!   before. Who finds a closed door keeps its connection.
//!
//! It goes through a mailbox and not by IORING_OP_MSG_RING, which passes only descriptors of a
//! ring's own table, carries no address, and exists on one of the two drivers. A mailbox of its own
//! and not that of the orders: during a drain nobody reads orders, and with workers as its senders
//! that one would not tell when the control thread has gone.
//!
//! Deliberately not here: what is handed over, and moving a connection that is being served.

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::Add;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

use crate::drain::Watch;
use crate::runtime::{self, Receiver, Sender};

/// After this time, work counts 1/e: long against a burst of requests, short against the life of a
/// heavy connection.
const MEMORY: Duration = Duration::from_secs(1);
/// A worker that would be this many times the mean with the connection is far above it: of up to
/// 18 fresh ones on two workers, one too many already is. Handing over costs a few microseconds,
/// where a handshake costs some hundred.
const FAR_ABOVE: f64 = 1.1;
/// How much an old connection counts of what connections cost on average: it may wake up.
const OLD: f64 = 0.25;
/// The share of a CPU for each worker that connections are thought to need beyond what was seen, so
/// that they count also while all are idle.
const UNSEEN: f64 = 0.1;
/// Connections on their way to one worker; far more than it takes in with one turn of its loop.
const COMING_MAX: u32 = 1024;

/// One worker's view of all.
#[derive(Debug)]
pub(super) struct Balance<T> {
    me: usize,
    board: Arc<Board<T>>,
    /// How much of a CPU this worker used: a mean that forgets.
    busy: Cell<f64>,
    /// When that was brought up to date, and the CPU time used by then.
    seen: Cell<Option<(Instant, Duration)>>,
    connections: Cell<u32>,
    /// The sum over all connections of how little is known of each: 1 at first, then less at the
    /// rate at which `busy` learns of it.
    fresh: Cell<f64>,
    /// The time of `fresh`, in units of `MEMORY`.
    age: Cell<f64>,
}

/// Where what others hand over to this worker arrives.
#[derive(Debug)]
pub(super) struct Incoming<T> {
    me: usize,
    board: Arc<Board<T>>,
    receiver: Receiver<T>,
}

/// What the workers share: the load of each, and the door to it.
#[derive(Debug)]
struct Board<T> {
    loads: Box<[CachePadded<Load>]>,
    doors: Box<[Sender<T>]>,
}

/// What a worker shows. Fractions are the bits of an `f64`.
#[derive(Debug, Default)]
struct Load {
    busy: AtomicU64,
    fresh: AtomicU64,
    connections: AtomicU32,
    /// Announced by others and not taken in yet.
    coming: AtomicU32,
    /// Takes no more: it drains, or has ended.
    closed: AtomicBool,
}

/// The load of a worker, or of several together.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Work {
    busy: f64,
    connections: f64,
    fresh: f64,
}

/// A connection that this worker carries, counted until it is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Carried<T> {
    balance: Rc<Balance<T>>,
    /// The `age` at its beginning.
    born: f64,
}

/// The views and doors of `workers`; what they hand over are `T`s.
pub(super) fn among<T: Send>(workers: usize) -> Vec<(Balance<T>, Incoming<T>)> {
    let (doors, receivers): (Vec<_>, Vec<_>) =
        std::iter::repeat_with(runtime::mailbox).take(workers).unzip();
    let loads = (0..workers).map(|_| CachePadded::default()).collect();
    let board = Arc::new(Board { loads, doors: doors.into() });
    let ends = receivers.into_iter().enumerate().map(|(me, receiver)| {
        let incoming = Incoming { me, board: Arc::clone(&board), receiver };
        (Balance::new(me, &board), incoming)
    });
    ends.collect()
}

impl<T> Balance<T> {
    fn new(me: usize, board: &Arc<Board<T>>) -> Self {
        Self {
            me,
            board: Arc::clone(board),
            busy: Cell::default(),
            seen: Cell::default(),
            connections: Cell::default(),
            fresh: Cell::default(),
            age: Cell::default(),
        }
    }

    /// Hands `fresh` to a worker that should rather have it.
    ///
    /// # Errors
    /// There is none: here it is again.
    pub(super) fn hand_over(&self, fresh: T) -> Result<(), T> {
        let Some(other) = self.rather() else { return Err(fresh) };
        let load = &self.board.loads[other];
        if !load.announce() {
            return Err(fresh);
        }
        self.board.doors[other].send(fresh).inspect_err(|_| load.arrived())
    }

    /// Counts a connection that this worker keeps or was handed.
    pub(super) fn carry(self: &Rc<Self>) -> Carried<T> {
        self.count(self.connections.get() + 1, self.fresh.get() + 1.0);
        Carried { balance: Rc::clone(self), born: self.age.get() }
    }

    /// Learns that this thread has `used` so much CPU time until `now`. To be told several times in
    /// each `MEMORY`.
    pub(super) fn observe(&self, used: Duration, now: Instant) {
        let Some((before, used_before)) = self.seen.replace(Some((now, used))) else { return };
        let wall = now.saturating_duration_since(before).as_secs_f64();
        if wall <= 0.0 {
            return;
        }
        let age = wall / MEMORY.as_secs_f64();
        let kept = (-age).exp();
        let share = used.saturating_sub(used_before).as_secs_f64() / wall;
        self.busy.set(self.busy.get() * kept + share * (1.0 - kept));
        self.age.set(self.age.get() + age);
        self.mine().busy.store(self.busy.get().to_bits(), Relaxed);
        self.count(self.connections.get(), self.fresh.get() * kept);
    }

    fn mine(&self) -> &Load {
        &self.board.loads[self.me]
    }

    fn count(&self, connections: u32, fresh: f64) {
        // Without connections there is nothing unknown, whatever rounding has left.
        let fresh = if connections == 0 { 0.0 } else { fresh.max(0.0) };
        self.connections.set(connections);
        self.fresh.set(fresh);
        self.mine().connections.store(connections, Relaxed);
        self.mine().fresh.store(fresh.to_bits(), Relaxed);
    }

    /// The worker that should have one more connection instead of this one.
    fn rather(&self) -> Option<usize> {
        let (count, all) = self.board.sum();
        let cost = (all.busy + count * UNSEEN) / (all.connections + 1.0);
        let mine = self.mine().work().load(cost);
        let mean = (all.load(cost) + cost) / count;
        if mine + cost <= FAR_ABOVE * mean {
            return None;
        }
        let (other, load) = self.less_loaded_of_two(cost)?;
        // Not for a difference that is less than one connection.
        (load + OLD * cost <= mine).then_some(other)
    }

    fn less_loaded_of_two(&self, cost: f64) -> Option<(usize, f64)> {
        let others = self.board.loads.len() - 1;
        if others == 0 {
            return None;
        }
        let first = fastrand::usize(..others);
        let second = (first + 1 + fastrand::usize(..others.max(2) - 1)) % others;
        let load = |nth: usize| {
            let index = if nth < self.me { nth } else { nth + 1 };
            let load = &self.board.loads[index];
            (!load.closed.load(Relaxed)).then(|| (index, load.work().load(cost)))
        };
        [first, second].into_iter().filter_map(load).min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

impl<T> Board<T> {
    /// How many workers are open, and the load of these.
    fn sum(&self) -> (f64, Work) {
        let open = self.loads.iter().filter(|load| !load.closed.load(Relaxed));
        open.fold((0.0, Work::default()), |(n, sum), load| (n + 1.0, sum + load.work()))
    }
}

impl Load {
    fn work(&self) -> Work {
        let coming = f64::from(self.coming.load(Relaxed));
        Work {
            busy: f64::from_bits(self.busy.load(Relaxed)),
            connections: f64::from(self.connections.load(Relaxed)) + coming,
            fresh: f64::from_bits(self.fresh.load(Relaxed)) + coming,
        }
    }

    /// Says that a connection will be sent; false: it must not.
    fn announce(&self) -> bool {
        // Of this and `closed`, and of the two accesses of who closes, each side writes the one
        // before it reads the other, so not both can miss what the other has written.
        let before = self.coming.fetch_add(1, SeqCst);
        let open = before < COMING_MAX && !self.closed.load(SeqCst);
        if !open {
            self.arrived();
        }
        open
    }

    /// What was announced is taken in, or will not come.
    fn arrived(&self) {
        self.coming.fetch_sub(1, SeqCst);
    }
}

impl Work {
    /// As a share of a CPU, if a connection costs `cost` on average.
    fn load(self, cost: f64) -> f64 {
        (1.0 - OLD) * (self.busy + cost * self.fresh) + OLD * cost * self.connections
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            busy: self.busy + other.busy,
            connections: self.connections + other.connections,
            fresh: self.fresh + other.fresh,
        }
    }
}

impl<T> Incoming<T> {
    /// What is handed over next. `None`: the drain that `watch` tells of has started, and nothing
    /// will come any more.
    pub(super) async fn next(&mut self, watch: &Watch) -> Option<T> {
        poll_fn(|cx| self.poll_next(watch, cx)).await
    }

    fn poll_next(&mut self, watch: &Watch, cx: &Context<'_>) -> Poll<Option<T>> {
        let ending = watch.poll_draining(cx).is_ready();
        if ending {
            self.close();
        }
        let load = &self.board.loads[self.me];
        match self.receiver.poll_recv(cx) {
            Poll::Ready(Some(fresh)) => {
                load.arrived();
                Poll::Ready(Some(fresh))
            }
            // The senders live as long as the board: there is only nothing now.
            Poll::Ready(None) | Poll::Pending if !ending => Poll::Pending,
            Poll::Ready(None) | Poll::Pending if load.coming.load(SeqCst) == 0 => Poll::Ready(None),
            Poll::Ready(None) | Poll::Pending => {
                // Between announcing and sending there are instants, and who does not send does not
                // wake either: look again.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn close(&self) {
        self.board.loads[self.me].closed.store(true, SeqCst);
    }
}

impl<T> Drop for Incoming<T> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<T> Drop for Carried<T> {
    fn drop(&mut self) {
        let balance = &self.balance;
        let unknown = (self.born - balance.age.get()).exp();
        balance.count(balance.connections.get() - 1, balance.fresh.get() - unknown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Drain;
    use std::task::Waker;

    type Worker = (Rc<Balance<usize>>, Incoming<usize>);

    fn workers(count: usize) -> Vec<Worker> {
        among(count).into_iter().map(|(balance, incoming)| (Rc::new(balance), incoming)).collect()
    }

    /// Lets `worker` use `share` of a CPU for `seconds`, told four times a second.
    fn pass(workers: &[Worker], shares: &[f64], seconds: u32) {
        let mut now = Instant::now();
        for (balance, _) in workers {
            balance.observe(Duration::ZERO, now);
        }
        for tick in 1..=seconds * 4 {
            now += Duration::from_millis(250);
            for ((balance, _), share) in workers.iter().zip(shares) {
                balance.observe(Duration::from_millis(250).mul_f64(*share * f64::from(tick)), now);
            }
        }
    }

    /// `accepted` connections arrive at worker 0, one after the other; how many each worker has in
    /// the end.
    fn arrive(workers: &mut [Worker], accepted: usize, held: &mut Vec<Carried<usize>>) {
        for n in 0..accepted {
            if workers[0].0.hand_over(n).is_err() {
                held.push(workers[0].0.carry());
            }
            take_in(workers, held);
        }
    }

    fn take_in(workers: &mut [Worker], held: &mut Vec<Carried<usize>>) {
        let drain = Drain::default();
        for (balance, incoming) in workers {
            while let Poll::Ready(Some(_)) = next(incoming, &drain) {
                held.push(balance.carry());
            }
        }
    }

    fn next(incoming: &mut Incoming<usize>, drain: &Drain) -> Poll<Option<usize>> {
        incoming.poll_next(&drain.watch(), &Context::from_waker(Waker::noop()))
    }

    fn connections(workers: &[Worker]) -> Vec<u32> {
        workers.iter().map(|(balance, _)| balance.connections.get()).collect()
    }

    #[test]
    fn what_comes_all_at_once_is_spread_by_number() {
        for (count, accepted) in [(2, 8), (2, 64), (4, 8), (4, 400), (64, 64)] {
            let mut workers = workers(count);
            let mut held = Vec::new();
            arrive(&mut workers, accepted, &mut held);
            let each = connections(&workers);
            let most = f64::from(*each.iter().max().unwrap());
            let mean = accepted as f64 / count as f64;
            // Of two random others, both may have some already.
            let unlucky = if count > 2 { 3.0 } else { 0.0 };
            assert!(most <= (mean * FAR_ABOVE).ceil() + unlucky, "{accepted} on {count}: {each:?}");
        }
    }

    #[test]
    fn who_has_not_been_woken_yet_is_counted_with_what_is_on_its_way() {
        let workers = workers(2);
        let mut held = Vec::new();
        for n in 0..8 {
            if workers[0].0.hand_over(n).is_err() {
                held.push(workers[0].0.carry());
            }
        }
        assert_eq!(held.len(), 4);
        assert_eq!(workers[0].0.board.loads[1].coming.load(Relaxed), 4);
    }

    #[test]
    fn a_single_worker_keeps_everything() {
        let workers = workers(1);
        assert_eq!(workers[0].0.hand_over(7), Err(7));
    }

    #[test]
    fn a_worker_with_one_heavy_connection_gets_no_other() {
        let mut workers = workers(2);
        let mut held = vec![workers[0].0.carry()];
        held.extend((0..10).map(|_| workers[1].0.carry()));
        pass(&workers, &[1.0, 0.05], 5);
        arrive(&mut workers, 1, &mut held);
        assert_eq!(connections(&workers), [1, 11]);
        assert_eq!(workers[1].0.hand_over(0), Err(0), "and none is handed to it");
    }

    #[test]
    fn equally_busy_workers_go_by_the_number_of_connections() {
        let mut workers = workers(2);
        let mut held: Vec<_> = (0..10).map(|n| workers[usize::from(n >= 6)].0.carry()).collect();
        pass(&workers, &[1.0, 1.0], 5);
        arrive(&mut workers, 1, &mut held);
        assert_eq!(connections(&workers), [6, 5]);
    }

    #[test]
    fn idle_connections_count_too() {
        let mut workers = workers(2);
        let mut held = Vec::new();
        for _ in 0..8 {
            arrive(&mut workers, 1, &mut held);
            pass(&workers, &[0.0, 0.0], 20);
        }
        assert_eq!(connections(&workers), [4, 4]);
    }

    #[test]
    fn a_difference_of_less_than_one_connection_moves_nothing() {
        let workers = workers(2);
        let held = [workers[0].0.carry(), workers[1].0.carry()];
        pass(&workers, &[0.51, 0.49], 5);
        assert_eq!(workers[0].0.hand_over(0), Err(0));
        drop(held);
    }

    #[test]
    fn what_is_closed_is_forgotten_at_any_age() {
        let workers = workers(2);
        let balance = &workers[0].0;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.extend((0..5).map(|_| balance.carry()));
            pass(&workers, &[0.5, 0.5], 1);
        }
        assert!(balance.fresh.get() < 15.0 * 0.4, "{balance:?}");
        held.drain(3..9);
        let known = balance.fresh.get();
        held.drain(..).rev().for_each(drop);
        assert_eq!((balance.connections.get(), balance.fresh.get()), (0, 0.0), "{known}");
        assert_eq!(workers[0].0.mine().work().connections, 0.0);
    }

    #[test]
    fn the_mean_forgets() {
        let workers = workers(1);
        let balance = &workers[0].0;
        pass(&workers, &[1.0], 5);
        assert!(balance.busy.get() > 0.99, "{balance:?}");
        pass(&workers, &[0.0], 1);
        assert!((balance.busy.get() - (-1.0_f64).exp()).abs() < 0.01, "{balance:?}");
    }

    #[test]
    fn a_closed_door_is_not_used_and_counts_for_nothing() {
        let mut workers = workers(3);
        let draining = Drain::default();
        draining.start();
        assert_eq!(next(&mut workers[1].1, &draining), Poll::Ready(None));
        drop(workers.remove(2).1);
        let held: Vec<_> = (0..5).map(|_| workers[0].0.carry()).collect();
        assert_eq!(workers[0].0.hand_over(3), Err(3));
        assert_eq!(workers[0].0.board.sum().0, 1.0);
        drop(held);
    }

    #[test]
    fn what_was_announced_before_the_door_closed_is_taken_in() {
        let mut workers = workers(2);
        let draining = Drain::default();
        let load = |workers: &[Worker]| Arc::clone(&workers[0].0.board);
        let board = load(&workers);
        assert!(board.loads[1].announce());
        draining.start();
        assert_eq!(next(&mut workers[1].1, &draining), Poll::Pending, "it waits for it");
        assert!(!board.loads[1].announce(), "but for no other");
        board.doors[1].send(9).unwrap();
        assert_eq!(next(&mut workers[1].1, &draining), Poll::Ready(Some(9)));
        assert_eq!(next(&mut workers[1].1, &draining), Poll::Ready(None));
    }

    #[test]
    fn nothing_is_lost_when_a_door_closes_under_fire() {
        for _ in 0..50 {
            let mut ends = among::<usize>(2);
            let (_, mut incoming) = ends.remove(1);
            let (sender, _) = ends.remove(0);
            let sending = std::thread::spawn(move || {
                let sender = Rc::new(sender);
                // Always far above the mean.
                let held: Vec<_> = (0..10_000).map(|_| sender.carry()).collect();
                let kept = (0..1_000).filter(|n| sender.hand_over(*n).is_err()).count();
                drop(held);
                kept
            });
            let draining = Drain::default();
            let mut taken = 0;
            loop {
                match next(&mut incoming, &draining) {
                    Poll::Ready(Some(_)) => taken += 1,
                    Poll::Ready(None) => break,
                    Poll::Pending if taken > 100 || sending.is_finished() => draining.start(),
                    Poll::Pending => std::hint::spin_loop(),
                }
            }
            drop(incoming);
            assert_eq!(sending.join().unwrap() + taken, 1_000);
        }
    }
}
