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
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::address::Address;
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
    waiting: RefCell<Queue>,
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

/// The number of an endpoint's connections. Who waits for one of them is known by it: addresses and
/// names do not tell all that connections may differ in.
pub(super) type Own = Rc<Cell<u32>>;

/// A connection's part in the limits of its cluster.
pub(super) struct Life {
    held: Held,
    own: Own,
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
    /// newer ones, and says whether they are. Requests that began before a reload go on with the
    /// older ones for a while.
    pub(super) fn see(&self, (cluster, generation): (&Cluster, u64), now: Instant) -> bool {
        self.used.set(now);
        // What leads to the same cluster from elsewhere has a list of its own, but the same.
        let list = cluster.traffic.as_ref().map_or(0, |traffic| traffic.list);
        let seen = self.seen.get();
        if seen.is_some_and(|(_, newest)| generation < newest) {
            return false;
        }
        self.seen.set(Some((list, generation)));
        let is_other = seen.is_none_or(|(seen, _)| seen != list);
        if is_other {
            self.newcomers.borrow_mut().see(&cluster.endpoints, now);
            self.outliers.borrow_mut().retain(&cluster.endpoints);
        }
        is_other
    }

    /// Whether `endpoint` is one now.
    pub(super) fn knows(&self, endpoint: Address) -> bool {
        self.newcomers.borrow().knows(endpoint)
    }

    /// Whether nobody asked with a newer generation.
    pub(super) fn is_newest(&self, generation: u64) -> bool {
        self.seen.get().is_none_or(|(_, newest)| newest <= generation)
    }

    /// Notes what came of a request at an endpoint of `cluster`; says whether that one is left out
    /// from now on.
    pub(super) fn note(&self, cluster: &Cluster, at: (Address, Outcome), now: Instant) -> bool {
        let traffic = cluster.traffic.as_ref();
        let detection = traffic.and_then(|traffic| traffic.policy.outliers.as_ref());
        // What is no endpoint any more gets no record that nobody would take away.
        let detection = detection.filter(|_| self.knows(at.0));
        detection.is_some_and(|detection| {
            self.outliers.borrow_mut().note(detection, &cluster.endpoints, at, now)
        })
    }

    /// Whether there is anything to remember.
    pub(super) fn is_needed(&self, now: Instant) -> bool {
        let counts = [Count::Request, Count::Pending, Count::Connection, Count::Retry];
        counts.iter().any(|count| self.counter(*count).get() > 0)
            || now < self.used.get() + FORGET_AFTER
            || self.outliers.borrow().out(now).next().is_some()
    }

    /// Whether somebody waits for a connection to the endpoint that has `own`.
    pub(super) fn is_awaited(&self, own: &Own) -> bool {
        let waiting = self.waiting.borrow();
        !waiting.all.is_empty() && waiting.of(own).next().is_some()
    }

    /// Joins those who wait for a connection to the endpoint that has `own`.
    pub(super) fn join(&self, own: &Own) -> Place<'_> {
        Place { tally: self, number: self.waiting.borrow_mut().push(own) }
    }

    /// Calls the first who waits for a connection to the endpoint that has `own` and was not called
    /// yet.
    pub(super) fn call(&self, own: &Own) {
        // Woken when nothing is lent any more.
        let called = self.waiting.borrow_mut().call(own);
        called.into_iter().for_each(Waker::wake);
    }

    /// A connection to the endpoint that has `own` is gone: there is room for another, which is for
    /// the first of all, and where it was the endpoint's last, also for the first who waits there.
    fn call_for_room(&self, own: &Own) {
        let called = {
            let mut waiting = self.waiting.borrow_mut();
            let is_last = own.get() == 0;
            [waiting.call_first(), is_last.then(|| waiting.call(own)).flatten()]
        };
        called.into_iter().flatten().for_each(Waker::wake);
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
        own: &Own,
        limits: &PoolLimits,
        now: Instant,
    ) -> Option<Box<Self>> {
        (own.get() == 0 || tally.has_room(limits)).then(|| Self::new(tally, own, limits, now))
    }

    /// The same, whatever the limit.
    pub(super) fn new(
        tally: &Rc<Tally>,
        own: &Own,
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
        self.held.tally.call_for_room(&self.own);
    }
}

/// Who waits for a connection. Nothing takes longer for there being many.
#[derive(Default)]
struct Queue {
    /// In the order of coming.
    all: BTreeMap<u64, Waiter>,
    /// Those of each endpoint, who was not called before who was.
    by_endpoint: BTreeSet<(usize, bool, u64)>,
    /// How many came.
    came: u64,
}

struct Waiter {
    /// That of the endpoint.
    own: Own,
    waker: Option<Waker>,
    /// It is to look whether there is a connection for it now.
    is_called: bool,
}

impl Queue {
    fn push(&mut self, own: &Own) -> u64 {
        let number = self.came;
        self.came += 1;
        self.by_endpoint.insert((key(own), false, number));
        self.all.insert(number, Waiter { own: Rc::clone(own), waker: None, is_called: false });
        number
    }

    /// Those who wait for the endpoint that has `own`.
    fn of(&self, own: &Own) -> impl Iterator<Item = &(usize, bool, u64)> {
        self.by_endpoint.range((key(own), false, 0)..=(key(own), true, u64::MAX))
    }

    /// The methods that call somebody return whom to wake, if one was not awake anyway.
    fn call(&mut self, own: &Own) -> Option<Waker> {
        let next = self.of(own).next().filter(|(_, is_called, _)| !is_called);
        let number = next.map(|(.., number)| *number)?;
        self.set_called(number, true);
        self.all.get_mut(&number)?.waker.take()
    }

    fn call_first(&mut self) -> Option<Waker> {
        let number = *self.all.keys().next()?;
        self.set_called(number, true);
        self.all.get_mut(&number)?.waker.take()
    }

    /// Returns whether it was called.
    fn set_called(&mut self, number: u64, is_called: bool) -> bool {
        let waiter = self.all.get_mut(&number).expect("a place is in the queue");
        let was_called = std::mem::replace(&mut waiter.is_called, is_called);
        if was_called != is_called {
            self.by_endpoint.remove(&(key(&waiter.own), was_called, number));
            self.by_endpoint.insert((key(&waiter.own), is_called, number));
        }
        was_called
    }

    /// Whoever has become the first looks: it may have been called for more than was taken, or have
    /// left without taking anything.
    fn leave(&mut self, number: u64) -> [Option<Waker>; 2] {
        let gone = self.all.remove(&number).expect("a place is in the queue");
        self.by_endpoint.remove(&(key(&gone.own), gone.is_called, number));
        [self.call_first(), self.call(&gone.own)]
    }
}

/// What tells the endpoint that has `own`, as long as that lives.
fn key(own: &Own) -> usize {
    Rc::as_ptr(own).addr()
}

/// A place in the queue of those who wait for a connection.
#[must_use]
pub(super) struct Place<'a> {
    tally: &'a Tally,
    number: u64,
}

impl Place<'_> {
    /// Whether nobody came before.
    pub(super) fn is_first(&self) -> bool {
        self.tally.waiting.borrow().all.keys().next() == Some(&self.number)
    }

    /// Returns when there may be a connection for it.
    pub(super) async fn called(&self) {
        poll_fn(|cx| {
            let mut waiting = self.tally.waiting.borrow_mut();
            if waiting.set_called(self.number, false) {
                return Poll::Ready(());
            }
            let waiter = waiting.all.get_mut(&self.number).expect("a place is in the queue");
            waiter.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let called = self.tally.waiting.borrow_mut().leave(self.number);
        called.into_iter().flatten().for_each(Waker::wake);
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

    fn endpoint(port: u16) -> Address {
        Address::from(([10, 0, 0, 1], port))
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
        let [one, two, three] = [0; 3].map(|_| Own::default());
        let places = [&one, &two, &one].map(|own| tally.join(own));
        assert_eq!(places.each_ref().map(is_called), [false; 3]);
        tally.call(&two);
        assert_eq!(places.each_ref().map(is_called), [false, true, false]);
        tally.call(&one);
        tally.call(&one);
        assert_eq!(places.each_ref().map(is_called), [true, false, true]);
        tally.call(&one);
        assert_eq!(places.each_ref().map(is_called), [true, false, false], "they looked");
        assert_eq!(places.each_ref().map(Place::is_first), [true, false, false]);
        assert!(tally.is_awaited(&two) && !tally.is_awaited(&three));
    }

    #[test]
    fn a_connection_that_ends_calls_those_of_every_endpoint() {
        let (tally, now) = (tally(1), Instant::now());
        let limits = PoolLimits { connections_max: Some(1), ..PoolLimits::default() };
        let [one, two] = [0; 2].map(|_| Own::default());
        let busy = Life::begin(&tally, &one, &limits, now).unwrap();
        let gone = Life::begin(&tally, &two, &limits, now).unwrap();
        let places = [&one, &two].map(|own| tally.join(own));
        drop(gone);
        assert!(Life::begin(&tally, &one, &limits, now).is_none(), "the first cannot use it");
        assert_eq!(places.each_ref().map(is_called), [true; 2], "the second can");
        drop(busy);
    }

    #[test]
    fn of_many_who_wait_only_those_look_for_whom_there_may_be_something() {
        let (tally, now) = (tally(1), Instant::now());
        let [one, two] = [0; 2].map(|_| Own::default());
        let mut lives =
            [&one, &one, &two].map(|own| Some(Life::new(&tally, own, &PoolLimits::default(), now)));
        let own = |n: usize| if n.is_multiple_of(2) { &one } else { &two };
        let places: Vec<_> = (0..1_000).map(|n| tally.join(own(n))).collect();
        let called =
            || -> Vec<_> { (0..places.len()).filter(|n| is_called(&places[*n])).collect() };
        drop(lives[0].take());
        assert_eq!(called(), [0], "there is room for the first");
        drop(lives[2].take());
        assert_eq!(called(), [0, 1], "the second may have its endpoint's first");
        (0..3).for_each(|_| tally.call(&two));
        assert_eq!(called(), [1, 3, 5]);
    }

    #[test]
    fn who_leaves_has_the_next_one_look() {
        let tally = tally(1);
        let [one, two] = [0; 2].map(|_| Own::default());
        let [other, first, second] = [&two, &one, &one].map(|own| tally.join(own));
        tally.call(&one);
        drop(first);
        assert!(is_called(&second), "as a connection to its endpoint may be free");
        assert!(is_called(&other), "as there may be room for another one");
        drop((second, other));
        let waiting = tally.waiting.borrow();
        assert!(waiting.all.is_empty() && waiting.by_endpoint.is_empty());
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
