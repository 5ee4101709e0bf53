//! What one worker keeps per endpoint: idle connections and the number of requests under way.
//!
//! - Keyed by address, protocol and how connections are secured, not by cluster, so it survives
//!   reloads; a connection that was opened under another TLS policy, or for another name, is never
//!   used.
//! - Idle connections are taken newest first, so that surplus ones age and close.
//! - A connection on which the peer closed, or spoke unasked, is never used again: it is checked
//!   before each reuse, and a sweep finds the others within [`SWEEP_PERIOD`].
//! - An endpoint that nobody uses and that keeps nothing is forgotten by the sweep.
//! - A cluster that a DestinationRule says something about has endpoints of its own, so that what
//!   is counted for it is its own; all others share theirs.
//!
//! ```text
//!   connect -> leased -> idle -> leased -> ...
//!                 |        \-> expired, dead, surplus: dropped
//!                 \-> unclean exchange: dropped
//! ```
//!
//! Deliberately not here: what one endpoint keeps ([`endpoint`](super::endpoint)), and what is
//! known when one is chosen ([`view`](super::view)).

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use ::http::request::Parts;

use crate::address::Address;
use crate::io::{Net, timeout};
use crate::snapshot::{Cluster, PoolLimits, Traffic, UpstreamProtocol};
use crate::telemetry::{Counters, WorkerTelemetry};

use super::balance;
use super::endpoint::{Active, Endpoint, Idle, Kept};
use super::error::{Error, Kind};
use super::outlier::Outcome;
use super::proxy_header::Client;
use super::tally::{Count, Held, Life, Tally};
use super::transport::{Secured, Transport, host_name, unnamed};
use super::view::View;
use super::{Bounds, Reached, To};

/// How often idle connections are looked at.
pub(super) const SWEEP_PERIOD: Duration = Duration::from_secs(5);

/// Names that clients chose under which the endpoints of a shelf are remembered. What is beyond
/// has connections of its own, which nobody uses again.
const NAMES_MAX: usize = 1024;

/// There may be so many names more than twice those that kept something at the last look.
const NAMES_SPARE: usize = 64;

/// How often two endpoints are drawn while both are to be avoided, as in Istio.
const DRAWS_MAX: u32 = 5;

/// Address, protocol, and the number of the TLS policy; 0 without TLS.
pub(super) type Key = (Address, UpstreamProtocol, u64);

type Endpoints<N> = HashMap<Key, Rc<Endpoint<N>>, foldhash::fast::RandomState>;

/// The endpoints that one worker has used lately.
pub(super) struct Pools<N: Net> {
    pub(super) net: N,
    telemetry: Rc<WorkerTelemetry>,
    /// Those of all clusters without rules.
    shelf: Shelf<N>,
    /// Clusters with rules, by name.
    clusters: RefCell<HashMap<Box<str>, Rc<Own<N>>, foldhash::fast::RandomState>>,
    /// How many workers share the limits of a cluster.
    workers: Cell<u32>,
    random: Cell<u64>,
    sweeping: Cell<bool>,
}

/// A cluster with rules.
pub(super) struct Own<N: Net> {
    pub(super) shelf: Shelf<N>,
    pub(super) tally: Rc<Tally>,
    /// The number of the TLS policy in force.
    policy: Cell<u64>,
}

impl<N: Net> Own<N> {
    /// A request for `to` has come; notes what is new about its cluster.
    fn see(&self, to: To<'_>, policy: u64, now: Instant) {
        let has_others = self.tally.see((to.cluster, to.generation), now);
        let is_newest = self.tally.is_newest(to.generation);
        let has_other_policy = is_newest && self.policy.replace(policy) != policy;
        if has_others || has_other_policy {
            self.shelf.retire_others(|key| self.is_current(key));
        }
    }

    /// Whether there is such an endpoint under the TLS policy in force.
    fn is_current(&self, (endpoint, _, policy): &Key) -> bool {
        *policy == self.policy.get() && self.tally.knows(*endpoint)
    }
}

/// Endpoints.
pub(super) struct Shelf<N: Net> {
    endpoints: RefCell<Endpoints<N>>,
    /// Those that are asked for the name in the request's host, by that.
    named: RefCell<HashMap<Box<str>, Endpoints<N>>>,
    /// Names after the last look.
    names_kept: Cell<usize>,
}

/// A connection that one exchange has for itself.
pub(super) struct Lease<N: Net> {
    pub(super) stream: Transport<N::Stream>,
    /// Its part in the limits of its cluster, if it has any.
    pub(super) life: Option<Box<Life>>,
    pub(super) active: Active<N>,
    /// It has carried an exchange before.
    pub(super) reused: bool,
}

impl<N: Net> Pools<N> {
    pub(super) fn new(net: N, telemetry: Rc<WorkerTelemetry>) -> Rc<Self> {
        Rc::new(Self {
            net,
            telemetry,
            shelf: Shelf::default(),
            clusters: RefCell::default(),
            workers: Cell::new(1),
            // Only balance depends on it. xorshift stays at zero if it starts there.
            random: Cell::new(RandomState::new().hash_one(0) | 1),
            sweeping: Cell::new(false),
        })
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> usize {
        self.shelf.named.borrow().len()
    }

    pub(super) fn counters(&self) -> &Counters {
        self.telemetry.counters()
    }

    /// The limits of clusters are shared by so many workers.
    pub(super) fn share_limits(&self, workers: u32) {
        self.workers.set(workers.max(1));
    }

    /// Counts a request at an endpoint, not one of `avoid` if possible: at the less busy of two
    /// random ones, or as its cluster has it.
    pub(super) fn choose(&self, to: To<'_>, head: &Parts) -> Result<Active<N>, Error> {
        let limits = to.cluster.traffic.as_ref().map(|traffic| &traffic.policy.pool);
        let most = limits.and_then(|limits| limits.requests_max);
        let wanted = (to.protocol(head), most);
        self.choose_named(to, wanted, name(to.cluster, head)?.as_deref())
    }

    /// The same for who speaks `protocol`, if there are fewer than `most`, and asks for `name`. The
    /// name counts where the cluster speaks TLS and has none for it.
    pub(super) fn choose_named(
        &self,
        to: To<'_>,
        (protocol, most): (UpstreamProtocol, Option<u32>),
        name: Option<&str>,
    ) -> Result<Active<N>, Error> {
        let To { cluster, avoid, .. } = to;
        if cluster.endpoints.is_empty() {
            return Err(Error::unsent(None, Kind::NoEndpoint));
        }
        let name = name.filter(|_| cluster.tls.as_ref().is_some_and(|tls| tls.name.is_none()));
        let kind = (protocol, policy_number(cluster));
        if let Some(traffic) = &cluster.traffic {
            return self.choose_by((traffic, most), to, kind, name);
        }
        let mut key = self.draw(cluster, kind, name, avoid);
        for _ in 1..DRAWS_MAX {
            if !avoid.contains(&key.0) {
                break;
            }
            key = self.draw(cluster, kind, name, avoid);
        }
        to.reach(Reached::Chosen(key.0));
        Ok(Active::new(&self.shelf.endpoint(key, cluster, name)?, None))
    }

    /// The better of two random endpoints; there is at least one.
    fn draw(
        &self,
        cluster: &Cluster,
        (protocol, policy): (UpstreamProtocol, u64),
        name: Option<&str>,
        avoid: &[Address],
    ) -> Key {
        let key = |place: usize| (cluster.endpoints[place], protocol, policy);
        let place = balance::less_busy(cluster.endpoints.len(), self, |place| {
            let key = key(place);
            (avoid.contains(&key.0), self.shelf.active(&key, name))
        });
        key(place)
    }

    /// Counts a request at the endpoint that `traffic` has it for.
    fn choose_by(
        &self,
        (traffic, most): (&Traffic, Option<u32>),
        to: To<'_>,
        (protocol, policy): (UpstreamProtocol, u64),
        name: Option<&str>,
    ) -> Result<Active<N>, Error> {
        let (now, own) = (self.net.now(), self.own(to.cluster));
        own.see(to, policy, now);
        let held = own.tally.hold(Count::Request, most);
        let held = held.ok_or_else(|| self.overflow(None))?;
        let view = View { own: &own, traffic, to, kind: (protocol, policy), name, now };
        let place = view.choose(self);
        let place = place.ok_or_else(|| Error::unsent(None, Kind::NoEndpoint))?;
        let key = (to.cluster.endpoints[place], protocol, policy);
        to.reach(Reached::Chosen(key.0));
        let endpoint = own.shelf.endpoint(key, to.cluster, name)?;
        if !own.tally.is_newest(to.generation) {
            endpoint.is_retired.set(!own.is_current(&key));
        }
        Ok(Active::new(&endpoint, Some(held)))
    }

    /// What is kept of `cluster`, which has rules.
    fn own(&self, cluster: &Cluster) -> Rc<Own<N>> {
        if let Some(own) = self.clusters.borrow().get(cluster.name.as_str()) {
            return Rc::clone(own);
        }
        let turn = balance::Random::below(self, u64::from(u32::MAX));
        let tally = Tally::new(self.workers.get(), turn, self.net.now());
        let policy = Cell::new(policy_number(cluster));
        let own = Rc::new(Own { shelf: Shelf::default(), tally, policy });
        self.clusters.borrow_mut().insert(cluster.name.as_str().into(), Rc::clone(&own));
        own
    }

    /// Notes what came of a request at `endpoint`, where its cluster wants to know.
    pub(super) fn note(&self, cluster: &Cluster, endpoint: Address, outcome: Outcome) {
        let detects = cluster.traffic.as_ref().is_some_and(|t| t.policy.outliers.is_some());
        if detects && self.own(cluster).tally.note(cluster, (endpoint, outcome), self.net.now()) {
            self.counters().outlier_ejections.increment();
        }
    }

    /// The failure of a request, or of a connection to `remote`, that goes beyond a limit.
    pub(super) fn overflow(&self, remote: Option<Address>) -> Error {
        self.counters().upstream_overflows.increment();
        Error::unsent(remote, Kind::Overflow)
    }

    /// One more retry of a request for `cluster`, if there may be one.
    pub(super) fn hold_retry(&self, cluster: &Cluster) -> Option<Option<Held>> {
        let Some(traffic) = &cluster.traffic else { return Some(None) };
        let (limit, budget) = (traffic.policy.pool.retries_max, traffic.policy.retry_budget);
        let held = self.own(cluster).tally.hold_retry(limit, budget);
        if held.is_none() {
            self.counters().upstream_retry_overflows.increment();
        }
        held.map(Some)
    }

    /// Takes an idle connection of `active`'s endpoint, or connects.
    pub(super) async fn lease(&self, active: Active<N>, to: To<'_>) -> Result<Lease<N>, Error> {
        if !active.is_awaited()
            && let Some(kept) = active.take_idle(self.net.now())
        {
            return Ok(self.reuse(kept, active, to));
        }
        match &to.cluster.traffic {
            // Boxed, both: most requests do not carry the room for them.
            None => Box::pin(self.connect(active, to, None)).await,
            Some(traffic) => Box::pin(self.lease_within(active, to, &traffic.policy.pool)).await,
        }
    }

    fn reuse(&self, (stream, life): Kept<N>, active: Active<N>, to: To<'_>) -> Lease<N> {
        to.reach(Reached::Asked(active.remote));
        self.counters().upstream_reused.increment();
        Lease { stream, life, active, reused: true }
    }

    /// Connects if there may be one more connection, else waits for one. Who waits already has
    /// what comes first.
    async fn lease_within(
        &self,
        active: Active<N>,
        to: To<'_>,
        limits: &PoolLimits,
    ) -> Result<Lease<N>, Error> {
        let tally = active.tally().expect("a cluster with rules counts");
        let pending = tally.hold(Count::Pending, limits.pending_max);
        let remote = active.remote;
        let _pending = pending.ok_or_else(|| self.overflow(Some(remote)))?;
        let until = self.net.now() + to.limits.stream_idle_timeout;
        let mut may_look = !tally.is_awaited(&active.open);
        let place = tally.join(&active.open);
        loop {
            let now = self.net.now();
            if may_look {
                if let Some(kept) = active.take_idle(now) {
                    return Ok(self.reuse(kept, active, to));
                }
                if (place.is_first() || active.open.get() == 0)
                    && let Some(life) = Life::begin(&tally, &active.open, limits, now)
                {
                    drop(place);
                    return self.connect(active, to, Some(life)).await;
                }
            }
            let left = until.saturating_duration_since(now);
            if timeout(&self.net, left, place.called()).await.is_err() {
                return Err(Error::unsent(Some(remote), Kind::Timeout));
            }
            may_look = true;
        }
    }

    /// Opens a connection that nobody uses again, if there may be one more.
    pub(super) async fn open(
        &self,
        active: Active<N>,
        cluster: &Cluster,
        client: Option<Client>,
    ) -> Result<Lease<N>, Error> {
        let limits = cluster.traffic.as_ref().map(|traffic| &traffic.policy.pool);
        if !active.may_open(limits) {
            return Err(self.overflow(Some(active.remote)));
        }
        let life = active.life(cluster, self.net.now());
        self.connect_for(client, active, cluster, life).await
    }

    /// Opens a connection in the place of that of `lease`, which is dead.
    pub(super) async fn replace(&self, lease: Lease<N>, to: To<'_>) -> Result<Lease<N>, Error> {
        let Lease { stream, life, active, reused: _ } = lease;
        drop((stream, life));
        let life = active.life(to.cluster, self.net.now());
        self.connect(active, to, life).await
    }

    /// Opens a new connection to `active`'s endpoint.
    pub(super) async fn connect(
        &self,
        active: Active<N>,
        to: To<'_>,
        life: Option<Box<Life>>,
    ) -> Result<Lease<N>, Error> {
        to.reach(Reached::Asked(active.remote));
        self.connect_for(None, active, to.cluster, life).await
    }

    /// The same for `client` alone, or for whoever comes.
    async fn connect_for(
        &self,
        client: Option<Client>,
        active: Active<N>,
        cluster: &Cluster,
        life: Option<Box<Life>>,
    ) -> Result<Lease<N>, Error> {
        let connecting = active.connect(&self.net, cluster, client);
        let kind = match timeout(&self.net, cluster.connect_timeout, connecting).await {
            Ok(Ok(stream)) => {
                self.counters().upstream_connects.increment();
                return Ok(Lease { stream, life, active, reused: false });
            }
            Ok(Err(kind)) => kind,
            Err(_) => Kind::ConnectTimeout,
        };
        self.counters().upstream_connect_failures.increment();
        self.note(cluster, active.remote, Outcome::NoAnswer);
        Err(Error::unsent(Some(active.remote), kind))
    }

    /// Keeps `lease` for the next request.
    pub(super) fn keep(self: &Rc<Self>, lease: Lease<N>, bounds: Bounds) {
        let Lease { stream, life, active, reused: _ } = lease;
        let now = self.net.now();
        if let Some(life) = &life {
            life.carry();
        }
        if bounds.idle_max == 0
            || active.is_retired.get()
            || life.as_ref().is_some_and(|life| life.is_over(now))
        {
            return;
        }
        let mut idle = active.idle.borrow_mut();
        let surplus = (idle.len() >= bounds.idle_max).then(|| idle.remove(0));
        idle.push(Idle { stream, life, expires: now + bounds.idle_timeout });
        drop(idle);
        drop(surplus);
        if let Some(tally) = active.tally() {
            tally.call(&active.open);
        }
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

    /// Drops what is dead or expired; whether anything is left to look at.
    fn sweep(&self) -> bool {
        let now = self.net.now();
        self.clusters.borrow_mut().retain(|_, own| {
            let is_used = own.shelf.sweep(now);
            is_used || own.tally.is_needed(now)
        });
        let is_used = self.shelf.sweep(now);
        is_used || !self.clusters.borrow().is_empty()
    }
}

impl<N: Net> balance::Random for Pools<N> {
    fn below(&self, bound: u64) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x % bound
    }
}

impl<N: Net> Default for Shelf<N> {
    fn default() -> Self {
        Self {
            endpoints: RefCell::default(),
            named: RefCell::default(),
            names_kept: Cell::default(),
        }
    }
}

impl<N: Net> Shelf<N> {
    /// Requests under way at the endpoint of `key`, for `name` where it is asked for one.
    pub(super) fn active(&self, key: &Key, name: Option<&str>) -> usize {
        let active = |endpoints: &Endpoints<N>| {
            endpoints.get(key).map_or(0, |endpoint| endpoint.active.get())
        };
        match name {
            None => active(&self.endpoints.borrow()),
            Some(name) => self.named.borrow().get(name).map_or(0, active),
        }
    }

    /// The endpoint of `key`.
    fn endpoint(
        &self,
        key: Key,
        cluster: &Cluster,
        name: Option<&str>,
    ) -> Result<Rc<Endpoint<N>>, Error> {
        let Some(name) = name else {
            return endpoint_in(&mut self.endpoints.borrow_mut(), key, cluster, None);
        };
        let mut named = self.named.borrow_mut();
        if !named.contains_key(name) {
            if !self.has_room(&mut named) {
                return endpoint_in(&mut Endpoints::default(), key, cluster, Some(name));
            }
            named.insert(name.into(), Endpoints::default());
        }
        let endpoints = named.get_mut(name).expect("it is there now");
        endpoint_in(endpoints, key, cluster, Some(name))
    }

    /// Whether one more name can be remembered, after those were forgotten that keep nothing: where
    /// no connection succeeds the sweep does not run.
    fn has_room(&self, named: &mut HashMap<Box<str>, Endpoints<N>>) -> bool {
        if named.len() >= NAMES_MAX.min(2 * self.names_kept.get() + NAMES_SPARE) {
            named.retain(|_, endpoints| {
                endpoints.retain(|_, endpoint| endpoint.is_used());
                !endpoints.is_empty()
            });
            self.names_kept.set(named.len());
        }
        named.len() < NAMES_MAX
    }

    /// Lets go of what is idle where it is not `current`: nobody would use it, and it has its part
    /// in the limits of the cluster.
    fn retire_others(&self, current: impl Fn(&Key) -> bool) {
        let (endpoints, named) = (self.endpoints.borrow(), self.named.borrow());
        let mut retired = Vec::new();
        for (key, endpoint) in endpoints.iter().chain(named.values().flatten()) {
            let is_retired = !current(key);
            endpoint.is_retired.set(is_retired);
            retired.extend(is_retired.then(|| Rc::clone(endpoint)));
        }
        drop((endpoints, named));
        // Who waits for a connection is called by this, and looks here.
        for endpoint in retired {
            drop(endpoint.idle.take());
            endpoint.shared.let_go();
        }
    }

    /// Drops what is dead or expired; whether anything is left to look at.
    fn sweep(&self, now: Instant) -> bool {
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

/// The number of a cluster's TLS policy; 0 without TLS.
fn policy_number(cluster: &Cluster) -> u64 {
    cluster.tls.as_ref().map_or(0, |tls| tls.number())
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

fn endpoint_in<N: Net>(
    endpoints: &mut Endpoints<N>,
    key: Key,
    cluster: &Cluster,
    name: Option<&str>,
) -> Result<Rc<Endpoint<N>>, Error> {
    if let Some(endpoint) = endpoints.get(&key) {
        return Ok(Rc::clone(endpoint));
    }
    let secured = cluster.tls.as_ref().map(|tls| Secured::new(tls, name)).transpose();
    let secured = secured.map_err(|kind| Error::unsent(Some(key.0), kind))?;
    let endpoint = Rc::new(Endpoint::new(key.0, secured));
    Ok(Rc::clone(endpoints.entry(key).or_insert(endpoint)))
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
