//! What one worker counts for a cluster that a DestinationRule says something about.
//!
//! - A limit is the whole gateway's, so each worker has its part of it, at least one.
//! - What is counted is given back when its token is dropped, whatever became of it.
//! - Who waits for a connection keeps its place in one queue until it has one: a free connection is
//!   for the first who waits for its endpoint, room for another one for the first of all, and who
//!   comes later stands behind.
//!
//! Deliberately not here: connections themselves, and which endpoint is chosen.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::snapshot::{Cluster, PoolLimits, RetryBudget};

use super::outlier::{Outcome, Outliers};
use super::warmup::Newcomers;

/// How long a cluster is remembered that nobody asks for.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// One cluster's counts and records.
pub(super) struct Tally {
    /// How many workers share the limits.
    workers: u32,
    requests: Cell<u32>,
    pending: Cell<u32>,
    connections: Cell<u32>,
    retries: Cell<u32>,
    /// Turns that endpoints had, or were passed over in.
    pub(super) turns: Cell<u64>,
    pub(super) outliers: RefCell<Outliers>,
    pub(super) newcomers: RefCell<Newcomers>,
    /// Who waits for a connection, in the order of coming.
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
    /// The list of endpoints that counts, and the newest generation that was seen with it.
    seen: Cell<Option<(u64, u64)>>,
    used: Cell<Instant>,
}

/// What can be counted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Count {
    Request,
    Pending,
    Connection,
    Retry,
}

/// One of what is counted, as long as it lives.
#[must_use]
pub(super) struct Held {
    pub(super) tally: Rc<Tally>,
    count: Count,
}

/// A connection's part in the limits of its cluster.
pub(super) struct Life {
    held: Held,
    /// Those of its endpoint.
    own: Rc<Cell<u32>>,
    /// When it is too old for another request.
    retires: Option<Instant>,
    /// How many more requests it may carry.
    left: Cell<Option<u32>>,
}

impl Tally {
    pub(super) fn new(workers: u32, turn: u64, now: Instant) -> Rc<Self> {
        Rc::new(Self {
            workers,
            requests: Cell::default(),
            pending: Cell::default(),
            connections: Cell::default(),
            retries: Cell::default(),
            turns: Cell::new(turn),
            outliers: RefCell::new(Outliers::new(now)),
            newcomers: RefCell::default(),
            waiting: RefCell::default(),
            seen: Cell::default(),
            used: Cell::new(now),
        })
    }

    /// The part of a limit that one worker has.
    fn part(&self, limit: u32) -> u32 {
        limit.div_ceil(self.workers)
    }

    fn counter(&self, count: Count) -> &Cell<u32> {
        match count {
            Count::Request => &self.requests,
            Count::Pending => &self.pending,
            Count::Connection => &self.connections,
            Count::Retry => &self.retries,
        }
    }

    /// One more, unless there are as many as this worker's part of `limit`.
    pub(super) fn hold(self: &Rc<Self>, count: Count, limit: Option<u32>) -> Option<Held> {
        let is_full = limit.is_some_and(|max| self.counter(count).get() >= self.part(max));
        (!is_full).then(|| self.held(count))
    }

    fn held(self: &Rc<Self>, count: Count) -> Held {
        let counter = self.counter(count);
        counter.set(counter.get() + 1);
        Held { tally: Rc::clone(self), count }
    }

    /// One more retry, if there may be one.
    pub(super) fn hold_retry(
        self: &Rc<Self>,
        limit: Option<u32>,
        budget: Option<RetryBudget>,
    ) -> Option<Held> {
        let Some(budget) = budget else { return self.hold(Count::Retry, limit) };
        let share = f64::from(self.requests.get()) * budget.percent / 100.0;
        let least = f64::from(self.part(budget.retries_min));
        (f64::from(self.retries.get()) < share.max(least)).then(|| self.held(Count::Retry))
    }

    /// Whether there may be one more connection than there are.
    pub(super) fn has_room(&self, limits: &PoolLimits) -> bool {
        limits.connections_max.is_none_or(|max| self.connections.get() < self.part(max))
    }

    /// Somebody asks for `cluster` of `generation` now; takes note of its endpoints where they are
    /// newer ones. Requests that began before a reload go on with the older ones for a while.
    pub(super) fn see(&self, (cluster, generation): (&Cluster, u64), now: Instant) {
        self.used.set(now);
        // What leads to the same cluster from elsewhere has a list of its own, but the same.
        let list = cluster.traffic.as_ref().map_or(0, |traffic| traffic.list);
        let seen = self.seen.get();
        if seen.is_some_and(|(_, newest)| generation < newest) {
            return;
        }
        self.seen.set(Some((list, generation)));
        if seen.is_none_or(|(seen, _)| seen != list) {
            self.newcomers.borrow_mut().see(&cluster.endpoints, now);
            self.outliers.borrow_mut().retain(&cluster.endpoints);
        }
    }

    /// Whether nobody asked with a newer generation.
    pub(super) fn is_newest(&self, generation: u64) -> bool {
        self.seen.get().is_none_or(|(_, newest)| newest <= generation)
    }

    /// Notes what came of a request at an endpoint of `cluster`; says whether that one is left out
    /// from now on.
    pub(super) fn note(&self, cluster: &Cluster, at: (SocketAddr, Outcome), now: Instant) -> bool {
        let traffic = cluster.traffic.as_ref();
        let detection = traffic.and_then(|traffic| traffic.policy.outliers.as_ref());
        // What is no endpoint any more gets no record that nobody would take away.
        let detection = detection.filter(|_| self.newcomers.borrow().knows(at.0));
        detection.is_some_and(|detection| {
            self.outliers.borrow_mut().note(detection, &cluster.endpoints, at, now)
        })
    }

    /// Whether there is anything to remember.
    pub(super) fn is_needed(&self, now: Instant) -> bool {
        let counts = [Count::Request, Count::Pending, Count::Connection, Count::Retry];
        counts.iter().any(|count| self.counter(*count).get() > 0)
            || now < self.used.get() + FORGET_AFTER
            || self.outliers.borrow().any_out(now)
    }

    /// Whether somebody waits for a connection to `endpoint`.
    pub(super) fn is_awaited(&self, endpoint: SocketAddr) -> bool {
        self.waiting.borrow().iter().any(|waiter| waiter.endpoint == endpoint)
    }

    /// Joins those who wait for a connection to `endpoint`.
    pub(super) fn join(&self, endpoint: SocketAddr) -> Place<'_> {
        let waiter =
            Rc::new(Waiter { endpoint, waker: Cell::default(), is_called: Cell::default() });
        self.waiting.borrow_mut().push_back(Rc::clone(&waiter));
        Place { tally: self, waiter }
    }

    /// Calls the first who waits for a connection to `endpoint` and was not called yet.
    pub(super) fn call(&self, endpoint: SocketAddr) {
        let waiting = self.waiting.borrow();
        let mut waiters = waiting.iter();
        let first = waiters.find(|w| w.endpoint == endpoint && !w.is_called.get()).cloned();
        drop(waiting);
        if let Some(waiter) = first {
            waiter.call();
        }
    }

    /// Calls all who wait, in the order of coming: there is room for a connection, and who may have
    /// it depends on the endpoint.
    fn call_all(&self) {
        self.waiting.borrow().iter().for_each(|waiter| waiter.call());
    }
}

impl Held {
    /// What it is counted in.
    pub(super) fn tally(&self) -> Rc<Tally> {
        Rc::clone(&self.tally)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let counter = self.tally.counter(self.count);
        counter.set(counter.get() - 1);
    }
}

impl Life {
    /// For a connection to an endpoint that has `own`, if there may be one. An endpoint without any
    /// may always have one, as in Envoy: who waits for it would wait forever.
    pub(super) fn begin(
        tally: &Rc<Tally>,
        own: &Rc<Cell<u32>>,
        limits: &PoolLimits,
        now: Instant,
    ) -> Option<Box<Self>> {
        (own.get() == 0 || tally.has_room(limits)).then(|| Self::new(tally, own, limits, now))
    }

    /// The same, whatever the limit.
    pub(super) fn new(
        tally: &Rc<Tally>,
        own: &Rc<Cell<u32>>,
        limits: &PoolLimits,
        now: Instant,
    ) -> Box<Self> {
        own.set(own.get() + 1);
        Box::new(Self {
            held: tally.held(Count::Connection),
            own: Rc::clone(own),
            retires: limits.connection_age_max.and_then(|age| now.checked_add(age)),
            left: Cell::new(limits.requests_per_connection_max),
        })
    }

    /// Counts a request that is sent on it.
    pub(super) fn carry(&self) {
        self.left.set(self.left.get().map(|left| left.saturating_sub(1)));
    }

    /// Whether it may carry no more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.left.get() == Some(0) || self.retires.is_some_and(|at| now >= at)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.own.set(self.own.get() - 1);
        // The count is given back after this: whoever is called looks only then.
        self.held.tally.call_all();
    }
}

/// Somebody who waits for a connection.
struct Waiter {
    endpoint: SocketAddr,
    waker: Cell<Option<Waker>>,
    /// It is to look whether there is a connection for it now.
    is_called: Cell<bool>,
}

impl Waiter {
    fn call(&self) {
        self.is_called.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A place in the queue of those who wait for a connection.
#[must_use]
pub(super) struct Place<'a> {
    tally: &'a Tally,
    waiter: Rc<Waiter>,
}

impl Place<'_> {
    /// Whether nobody came before.
    pub(super) fn is_first(&self) -> bool {
        let waiting = self.tally.waiting.borrow();
        waiting.front().is_some_and(|first| Rc::ptr_eq(first, &self.waiter))
    }

    /// Returns when there may be a connection for it.
    pub(super) async fn called(&self) {
        poll_fn(|cx| {
            if self.waiter.is_called.take() {
                return Poll::Ready(());
            }
            self.waiter.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Place<'_> {
    /// Whoever has become the first looks: it may have been called for more than was taken, or have
    /// left without taking anything.
    fn drop(&mut self) {
        let mut waiting = self.tally.waiting.borrow_mut();
        waiting.retain(|other| !Rc::ptr_eq(other, &self.waiter));
        let first = waiting.front().cloned();
        drop(waiting);
        if let Some(first) = first {
            first.call();
            self.tally.call(self.waiter.endpoint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{OutlierDetection, Traffic, TrafficPolicy, UpstreamProtocol};
    use crate::upstream::world;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    fn tally(workers: u32) -> Rc<Tally> {
        Tally::new(workers, 0, Instant::now())
    }

    fn endpoint(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    /// Whether it was called since it was asked last.
    fn is_called(place: &Place<'_>) -> bool {
        pin!(place.called()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn each_worker_has_its_part_of_a_limit_and_gives_back_what_it_holds() {
        for (workers, limit, part) in [(1, 3, 3), (2, 3, 2), (4, 3, 1), (8, 1, 1)] {
            let tally = tally(workers);
            let held: Vec<_> =
                std::iter::from_fn(|| tally.hold(Count::Request, Some(limit))).collect();
            assert_eq!(held.len(), part, "{limit} of {workers}");
            drop(held);
            assert!(tally.hold(Count::Request, Some(limit)).is_some());
        }
        assert!(tally(1).hold(Count::Request, None).is_some());
    }

    #[test]
    fn a_budget_allows_a_share_of_the_requests_but_always_some() {
        let tally = tally(1);
        let budget = Some(RetryBudget { percent: 20.0, retries_min: 3 });
        let retries = |tally: &Rc<Tally>| {
            let held: Vec<_> = std::iter::from_fn(|| tally.hold_retry(Some(1), budget)).collect();
            held.len()
        };
        assert_eq!(retries(&tally), 3);
        let requests: Vec<_> = (0..100).map(|_| tally.hold(Count::Request, None)).collect();
        assert_eq!(retries(&tally), 20);
        drop(requests);
        assert_eq!(retries(&tally), 3);
    }

    #[test]
    fn a_connection_ends_by_age_or_by_what_it_carried() {
        let (tally, own, now) = (tally(1), Rc::default(), Instant::now());
        let limits = PoolLimits {
            connections_max: Some(1),
            connection_age_max: Some(Duration::from_secs(10)),
            requests_per_connection_max: Some(2),
            ..PoolLimits::default()
        };
        let life = Life::begin(&tally, &own, &limits, now).unwrap();
        assert!(Life::begin(&tally, &own, &limits, now).is_none());
        assert!(Life::begin(&tally, &Rc::default(), &limits, now).is_some(), "an endpoint's first");
        life.carry();
        assert!(!life.is_over(now));
        assert!(life.is_over(now + Duration::from_secs(10)));
        life.carry();
        assert!(life.is_over(now));
        drop(life);
        assert!(Life::begin(&tally, &own, &limits, now).is_some());
    }

    #[test]
    fn who_waits_is_called_in_order_and_for_its_endpoint() {
        let tally = tally(1);
        let places = [1, 2, 1].map(|port| tally.join(endpoint(port)));
        assert_eq!(places.each_ref().map(is_called), [false; 3]);
        tally.call(endpoint(2));
        assert_eq!(places.each_ref().map(is_called), [false, true, false]);
        tally.call(endpoint(1));
        tally.call(endpoint(1));
        assert_eq!(places.each_ref().map(is_called), [true, false, true]);
        assert_eq!(places.each_ref().map(Place::is_first), [true, false, false]);
        assert!(tally.is_awaited(endpoint(2)) && !tally.is_awaited(endpoint(3)));
    }

    #[test]
    fn a_connection_that_ends_calls_those_of_every_endpoint() {
        let (tally, now) = (tally(1), Instant::now());
        let limits = PoolLimits { connections_max: Some(1), ..PoolLimits::default() };
        let [one, two] = [0; 2].map(|_| Rc::<Cell<u32>>::default());
        let busy = Life::begin(&tally, &one, &limits, now).unwrap();
        let gone = Life::begin(&tally, &two, &limits, now).unwrap();
        let places = [1, 2].map(|port| tally.join(endpoint(port)));
        drop(gone);
        assert!(Life::begin(&tally, &one, &limits, now).is_none(), "the first cannot use it");
        assert_eq!(places.each_ref().map(is_called), [true; 2], "the second can");
        drop(busy);
    }

    #[test]
    fn who_leaves_has_the_next_one_look() {
        let tally = tally(1);
        let [other, first, second] = [2, 1, 1].map(|port| tally.join(endpoint(port)));
        tally.call(endpoint(1));
        drop(first);
        assert!(is_called(&second), "as a connection to its endpoint may be free");
        assert!(is_called(&other), "as there may be room for another one");
        drop((second, other));
        assert!(tally.waiting.borrow().is_empty());
    }

    #[test]
    fn records_are_kept_while_the_list_of_endpoints_is_the_same() {
        let cluster = |ports: &[u16]| {
            let endpoints: Vec<_> = ports.iter().map(|port| endpoint(*port)).collect();
            let outliers = Some(OutlierDetection {
                server_errors: 1,
                ejected_percent_max: 100,
                ..OutlierDetection::default()
            });
            let policy = TrafficPolicy { outliers, ..TrafficPolicy::default() };
            let traffic = Traffic::new(policy, Box::default(), None).among(&endpoints);
            let plain = world::cluster(1, UpstreamProtocol::Http1);
            Cluster { endpoints, traffic: Some(Box::new(traffic)), ..plain }
        };
        let (tally, now) = (tally(1), Instant::now());
        let is_out = |tally: &Tally| tally.outliers.borrow().is_out(endpoint(1), now);
        let (both, same, other) = (cluster(&[1, 2]), cluster(&[1, 2]), cluster(&[2, 3]));
        tally.see((&both, 1), now);
        assert!(tally.note(&both, (endpoint(1), Outcome::ServerError), now));
        tally.see((&same, 2), now);
        assert!(is_out(&tally));
        tally.see((&other, 1), now);
        tally.see((&both, 2), now);
        assert!(is_out(&tally), "a request that began before");
        tally.see((&other, 3), now);
        assert!(!is_out(&tally));
        assert!(!tally.note(&both, (endpoint(1), Outcome::ServerError), now), "it is gone");
        tally.see((&both, 4), now);
        assert!(!is_out(&tally), "it was gone in between");
    }
}
