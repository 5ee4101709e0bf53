//! What one worker keeps per endpoint: idle connections and the number of requests under way.
//!
//! - Keyed by address, protocol and how connections are secured, not by cluster, so it survives
//!   reloads; a connection that was opened under another TLS policy, or for another name, is never
//!   used.
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

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ::http::request::Parts;

use crate::io::{Net, Stream, timeout};
use crate::snapshot::{Cluster, UpstreamProtocol};
use crate::telemetry::{Counters, WorkerTelemetry};

use super::error::{Error, Kind};
use super::transport::{Secured, Transport, host_name, unnamed};
use super::{Bounds, To, h2};

/// How often idle connections are looked at.
pub(super) const SWEEP_PERIOD: Duration = Duration::from_secs(5);

/// How often two endpoints are drawn while both are to be avoided, as in Istio.
const DRAWS_MAX: u32 = 5;

/// Address, protocol, and the number of the TLS policy; 0 without TLS.
type Key = (SocketAddr, UpstreamProtocol, u64);

type Endpoints<N> = HashMap<Key, Rc<Endpoint<N>>, foldhash::fast::RandomState>;

/// The endpoints that one worker has used lately.
pub(super) struct Pools<N: Net> {
    pub(super) net: N,
    telemetry: Rc<WorkerTelemetry>,
    endpoints: RefCell<Endpoints<N>>,
    /// Those that are asked for the name in the request's host, by that.
    named: RefCell<HashMap<Box<str>, Endpoints<N>>>,
    random: Cell<u64>,
    sweeping: Cell<bool>,
}

/// One endpoint.
pub(super) struct Endpoint<N: Net> {
    pub(super) remote: SocketAddr,
    /// How its connections are secured.
    secured: Option<Secured>,
    active: Cell<usize>,
    /// Oldest first.
    idle: RefCell<Vec<Idle<Transport<N::Stream>>>>,
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
    pub(super) stream: Transport<N::Stream>,
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
            named: RefCell::default(),
            // Only balance depends on it. xorshift stays at zero if it starts there.
            random: Cell::new(RandomState::new().hash_one(0) | 1),
            sweeping: Cell::new(false),
        })
    }

    pub(super) fn counters(&self) -> &Counters {
        self.telemetry.counters()
    }

    /// Counts a request at the less busy of two random endpoints, not one of `avoid` if possible.
    pub(super) fn choose(&self, to: To<'_>, head: &Parts) -> Result<Active<N>, Error> {
        let To { cluster, avoid, .. } = to;
        if cluster.endpoints.is_empty() {
            return Err(Error::unsent(None, Kind::NoEndpoint));
        }
        let name = name(cluster, head)?;
        let mut key = self.draw(cluster, name.as_deref(), avoid);
        for _ in 1..DRAWS_MAX {
            if !avoid.contains(&key.0) {
                break;
            }
            key = self.draw(cluster, name.as_deref(), avoid);
        }
        self.count(key, cluster, name.as_deref())
    }

    /// The better of two random endpoints; there is at least one.
    fn draw(&self, cluster: &Cluster, name: Option<&str>, avoid: &[SocketAddr]) -> Key {
        let endpoints = &cluster.endpoints;
        let start = self.random(endpoints.len());
        // Distinct from `start` where there are two.
        let step = 1 + self.random((endpoints.len() - 1).max(1));
        let policy = cluster.tls.as_ref().map_or(0, |tls| tls.number());
        let candidates = [start, start + step]
            .map(|index| (endpoints[index % endpoints.len()], cluster.protocol, policy));
        let load = |key: &Key| (avoid.contains(&key.0), self.active(key, name));
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
        let connecting = active.connect(&self.net);
        let kind = match timeout(&self.net, cluster.connect_timeout, connecting).await {
            Ok(Ok(stream)) => {
                self.counters().upstream_connects.increment();
                return Ok(Lease { stream, active, reused: false });
            }
            Ok(Err(kind)) => kind,
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

    fn active(&self, key: &Key, name: Option<&str>) -> usize {
        let active = |endpoints: &Endpoints<N>| {
            endpoints.get(key).map_or(0, |endpoint| endpoint.active.get())
        };
        match name {
            None => active(&self.endpoints.borrow()),
            Some(name) => self.named.borrow().get(name).map_or(0, active),
        }
    }

    fn count(&self, key: Key, cluster: &Cluster, name: Option<&str>) -> Result<Active<N>, Error> {
        let Some(name) = name else {
            return count_in(&mut self.endpoints.borrow_mut(), key, cluster, None);
        };
        let mut named = self.named.borrow_mut();
        if !named.contains_key(name) {
            named.insert(name.into(), Endpoints::default());
        }
        let endpoints = named.get_mut(name).expect("it is there now");
        count_in(endpoints, key, cluster, Some(name))
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
        let mut endpoints = self.endpoints.borrow_mut();
        endpoints.retain(|_, endpoint| endpoint.sweep(now));
        let mut named = self.named.borrow_mut();
        named.retain(|_, endpoints| {
            endpoints.retain(|_, endpoint| endpoint.sweep(now));
            !endpoints.is_empty()
        });
        !endpoints.is_empty() || !named.is_empty()
    }
}

/// The name in the request's host, where that is what endpoints are asked for.
fn name<'a>(cluster: &Cluster, head: &'a Parts) -> Result<Option<Cow<'a, str>>, Error> {
    match &cluster.tls {
        Some(tls) if tls.name.is_none() => match host_name(head) {
            Some(name) => Ok(Some(name)),
            None => Err(Error::unsent(None, unnamed())),
        },
        Some(_) | None => Ok(None),
    }
}

fn count_in<N: Net>(
    endpoints: &mut Endpoints<N>,
    key: Key,
    cluster: &Cluster,
    name: Option<&str>,
) -> Result<Active<N>, Error> {
    if let Some(endpoint) = endpoints.get(&key) {
        return Ok(Active::new(endpoint));
    }
    let secured = cluster.tls.as_ref().map(|tls| Secured::new(tls, name)).transpose();
    let secured = secured.map_err(|kind| Error::unsent(Some(key.0), kind))?;
    let endpoint = Rc::new(Endpoint::new(key.0, secured));
    Ok(Active::new(endpoints.entry(key).or_insert(endpoint)))
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
    fn new(remote: SocketAddr, secured: Option<Secured>) -> Self {
        Self {
            remote,
            secured,
            active: Cell::new(0),
            idle: RefCell::default(),
            shared: h2::Connections::default(),
        }
    }

    /// Opens a connection.
    async fn connect(&self, net: &N) -> Result<Transport<N::Stream>, Kind> {
        let stream = net.connect(self.remote).await.map_err(Kind::Connect)?;
        match &self.secured {
            None => Ok(Transport::Plain(stream)),
            // Boxed: most connects do not carry the room for it.
            Some(secured) => Box::pin(secured.shake(stream, self.remote)).await,
        }
    }

    /// The newest idle connection that still lives.
    fn take_idle(&self, now: Instant) -> Option<Transport<N::Stream>> {
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
