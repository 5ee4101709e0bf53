//! What one worker keeps per endpoint: idle connections and the number of requests under way.
//!
//! - Keyed by address and protocol, not by cluster, so it survives reloads.
//! - Idle connections are taken newest first, so that surplus ones age and close.
//! - A connection on which the peer closed, or spoke unasked, is never used again: it is checked
//!   before each reuse, and a sweep finds the others within [`SWEEP_PERIOD`].
//! - An endpoint that nobody uses and that keeps nothing is forgotten by the sweep.
//!
//! ```text
//!   connect -> leased -> idle -> leased -> ...
//!                 |        \-> expired, dead, surplus: dropped
//!                 \-> unclean exchange: dropped
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::io::{Net, Stream, timeout};
use crate::snapshot::{Cluster, UpstreamProtocol};
use crate::telemetry::{Counters, WorkerTelemetry};

use super::Bounds;
use super::error::{Error, Kind};
use super::h2;

/// How often idle connections are looked at.
pub(super) const SWEEP_PERIOD: Duration = Duration::from_secs(5);

/// How often two endpoints are drawn while both are to be avoided, as in Istio.
const DRAWS_MAX: u32 = 5;

type Key = (SocketAddr, UpstreamProtocol);

/// The endpoints that one worker has used lately.
pub(super) struct Pools<N: Net> {
    pub(super) net: N,
    telemetry: Rc<WorkerTelemetry>,
    endpoints: RefCell<HashMap<Key, Rc<Endpoint<N>>, foldhash::fast::RandomState>>,
    random: Cell<u64>,
    sweeping: Cell<bool>,
}

/// One endpoint.
pub(super) struct Endpoint<N: Net> {
    pub(super) remote: SocketAddr,
    active: Cell<usize>,
    /// Oldest first.
    idle: RefCell<Vec<Idle<N::Stream>>>,
    pub(super) shared: h2::Connections,
}

struct Idle<S> {
    stream: S,
    expires: Instant,
}

/// One request under way at an endpoint: counted as long as this lives.
#[must_use]
pub(super) struct Active<N: Net>(Rc<Endpoint<N>>);

/// A connection that one exchange has for itself.
pub(super) struct Lease<N: Net> {
    pub(super) stream: N::Stream,
    pub(super) active: Active<N>,
    /// It has carried an exchange before.
    pub(super) reused: bool,
}

impl<N: Net> Pools<N> {
    pub(super) fn new(net: N, telemetry: Rc<WorkerTelemetry>) -> Rc<Self> {
        Rc::new(Self {
            net,
            telemetry,
            endpoints: RefCell::default(),
            // Only balance depends on it. xorshift stays at zero if it starts there.
            random: Cell::new(RandomState::new().hash_one(0) | 1),
            sweeping: Cell::new(false),
        })
    }

    pub(super) fn counters(&self) -> &Counters {
        self.telemetry.counters()
    }

    /// Counts a request at the less busy of two random endpoints, not one of `avoid` if possible.
    pub(super) fn choose(
        &self,
        cluster: &Cluster,
        avoid: &[SocketAddr],
    ) -> Result<Active<N>, Error> {
        if cluster.endpoints.is_empty() {
            return Err(Error::unsent(None, Kind::NoEndpoint));
        }
        let mut key = self.draw(cluster, avoid);
        for _ in 1..DRAWS_MAX {
            if !avoid.contains(&key.0) {
                break;
            }
            key = self.draw(cluster, avoid);
        }
        Ok(self.count(key))
    }

    /// The better of two random endpoints; there is at least one.
    fn draw(&self, cluster: &Cluster, avoid: &[SocketAddr]) -> Key {
        let endpoints = &cluster.endpoints;
        let start = self.random(endpoints.len());
        // Distinct from `start` where there are two.
        let step = 1 + self.random((endpoints.len() - 1).max(1));
        let candidates = [start, start + step]
            .map(|index| (endpoints[index % endpoints.len()], cluster.protocol));
        let load = |key: &Key| (avoid.contains(&key.0), self.active(key));
        let [first, second] = candidates;
        if load(&second) < load(&first) { second } else { first }
    }

    /// Takes an idle connection of `active`'s endpoint, or connects.
    pub(super) async fn lease(
        &self,
        active: Active<N>,
        cluster: &Cluster,
    ) -> Result<Lease<N>, Error> {
        match active.take_idle(self.net.now()) {
            Some(stream) => {
                self.counters().upstream_reused.increment();
                Ok(Lease { stream, active, reused: true })
            }
            None => self.connect(active, cluster).await,
        }
    }

    /// Opens a new connection to `active`'s endpoint.
    pub(super) async fn connect(
        &self,
        active: Active<N>,
        cluster: &Cluster,
    ) -> Result<Lease<N>, Error> {
        let connecting = self.net.connect(active.remote);
        let kind = match timeout(&self.net, cluster.connect_timeout, connecting).await {
            Ok(Ok(stream)) => {
                self.counters().upstream_connects.increment();
                return Ok(Lease { stream, active, reused: false });
            }
            Ok(Err(error)) => Kind::Connect(error),
            Err(_) => Kind::ConnectTimeout,
        };
        self.counters().upstream_connect_failures.increment();
        Err(Error::unsent(Some(active.remote), kind))
    }

    /// Keeps `lease` for the next request.
    pub(super) fn keep(self: &Rc<Self>, lease: Lease<N>, bounds: Bounds) {
        let mut idle = lease.active.idle.borrow_mut();
        if bounds.idle_max == 0 {
            return;
        }
        if idle.len() >= bounds.idle_max {
            idle.remove(0);
        }
        let expires = self.net.now() + bounds.idle_timeout;
        idle.push(Idle { stream: lease.stream, expires });
        self.start_sweeping();
    }

    /// Sees to it that what is kept now is looked at later.
    pub(super) fn start_sweeping(self: &Rc<Self>) {
        if self.sweeping.replace(true) {
            return;
        }
        // Weak: the sweep must not keep a worker's pools alive.
        self.net.spawn(sweep_until_empty(self.net.clone(), Rc::downgrade(self)));
    }

    fn active(&self, key: &Key) -> usize {
        self.endpoints.borrow().get(key).map_or(0, |endpoint| endpoint.active.get())
    }

    fn count(&self, key: Key) -> Active<N> {
        let mut endpoints = self.endpoints.borrow_mut();
        Active::new(endpoints.entry(key).or_insert_with(|| Rc::new(Endpoint::new(key.0))))
    }

    /// Less than `bound`, which is not zero.
    fn random(&self, bound: usize) -> usize {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        usize::try_from(x % bound as u64).expect("less than a usize")
    }

    /// Drops what is dead or expired; whether anything is left to look at.
    fn sweep(&self) -> bool {
        let now = self.net.now();
        self.endpoints.borrow_mut().retain(|_, endpoint| endpoint.sweep(now));
        !self.endpoints.borrow().is_empty()
    }
}

async fn sweep_until_empty<N: Net>(net: N, pools: Weak<Pools<N>>) {
    loop {
        net.sleep(SWEEP_PERIOD).await;
        let Some(pools) = pools.upgrade() else { return };
        if !pools.sweep() {
            pools.sweeping.set(false);
            return;
        }
    }
}

impl<N: Net> Endpoint<N> {
    fn new(remote: SocketAddr) -> Self {
        Self {
            remote,
            active: Cell::new(0),
            idle: RefCell::default(),
            shared: h2::Connections::default(),
        }
    }

    /// The newest idle connection that still lives.
    fn take_idle(&self, now: Instant) -> Option<N::Stream> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let mut newest = idle.pop()?;
            if newest.lives(now) {
                return Some(newest.stream);
            }
        }
    }

    /// Drops what is dead or expired; whether the endpoint is worth remembering.
    fn sweep(&self, now: Instant) -> bool {
        self.idle.borrow_mut().retain_mut(|idle| idle.lives(now));
        self.shared.sweep(now);
        self.active.get() > 0 || !self.idle.borrow().is_empty() || !self.shared.is_empty()
    }
}

impl<S: Stream> Idle<S> {
    /// Neither expired nor closed, and the peer said nothing unasked.
    fn lives(&mut self, now: Instant) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        now < self.expires && matches!(self.stream.poll_fill(&mut cx), Poll::Pending)
    }
}

impl<N: Net> Active<N> {
    fn new(endpoint: &Rc<Endpoint<N>>) -> Self {
        endpoint.active.set(endpoint.active.get() + 1);
        Self(Rc::clone(endpoint))
    }

    /// Counts one more at the same endpoint.
    pub(super) fn again(&self) -> Self {
        Self::new(&self.0)
    }
}

impl<N: Net> std::ops::Deref for Active<N> {
    type Target = Endpoint<N>;

    fn deref(&self) -> &Endpoint<N> {
        &self.0
    }
}

impl<N: Net> Drop for Active<N> {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}
